"""Gradient alignment: images that teach a network the reverse of what it should learn.

Fowl, Liam, et al. "Preventing Unauthorized Use of Proprietary Data: Poisoning for Secure Dataset
Release", 2021. G is the weight gradient of the reverse cross-entropy over all clean images, taken
once; each batch's weight gradient g, seen through random shifts and flips T, is turned towards it:

    R(x, y) = -log(1 - p_y(x)),    G = mean over clean images of  dR / d theta
    g       = d CE(f(T(x + delta)), y) / d theta
    minimise  1 - <g, G> / (|g| |G|)

theta are all weights that were trained. Who descends along g then makes the true class less likely.

The default update is that of the gradient matching code which the authors built on: Adam on the
sign of the gradient, on normalised images, with a rate tau that falls to a tenth after 3/8, 5/8 and
7/8 of the steps. `update=sign` is the default of their own repository, steps of tau epsilon that do
not shrink. Both project onto the budget and then [0, 1]. In the literature's tables the name is
also explained as alignment to the gradient of a target class; the code knows only this form.

Here batches have 500 images (512 there, and the rate of Adam is scaled by a 512th of it), and the
clean images weigh alike in G even where the last batch is short.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bench.component import setting
from bench.crafting import Crafting
from bench.data import chunks
from bench.pgd import Iterate, signs
from bench.registry import METHODS
from bench.second_order import Learner, Measure, Move, WeightGradientMethod


@METHODS.register("gradient-alignment")
@dataclass(frozen=True)
class GradientAlignment(WeightGradientMethod):
    """Batches whose weight gradient points where the true class becomes unlikely."""

    paper: ClassVar[str] = "Fowl et al., Preventing Unauthorized Use of Proprietary Data, 2021"
    presets: ClassVar = {
        "quick": {"steps": 8, "restarts": 1, "surrogate_recipe": "victim"},
        "standard": {"steps": 48, "restarts": 1, "surrogate_recipe": "victim"},
    }

    steps: int = setting(240, "updates")
    update: Literal["adam", "sign"] = setting("adam", "Adam on the gradient's sign, or its sign")
    tau: float = setting(0.1, "adam: first rate, in normalised units; sign: step over epsilon")

    def gradient_images(self, images: int) -> int:
        """The steps, and one pass for G."""
        return super().gradient_images(images) + images

    def measure(self, job: Crafting, learner: Learner) -> Measure:
        """1 - cos(g, G)."""
        direction = reverse_direction(job, learner, self.piece(job))
        norm = torch.stack([slope.norm() for slope in direction]).norm()

        def misalignment(gradient: Sequence[Tensor]) -> Tensor:
            product = sum((a * b).sum() for a, b in zip(gradient, direction, strict=True))
            length = torch.stack([slope.norm() for slope in gradient]).norm()
            return 1 - product / (length * norm)

        return misalignment

    def mover(self, job: Crafting) -> Move:
        """Adam on signs, or signs."""
        if self.update == "adam":
            std = torch.tensor(job.dataset.std, device=job.device).reshape(1, 3, 1, 1)
            return SignedAdam(self.tau * std, self.steps)
        return lambda x, gradient: x.descend(gradient, self.tau * self.epsilon)


def reverse_direction(job: Crafting, learner: Learner, piece: int) -> list[Tensor]:
    """G, one tensor for each weight, over all clean images, protected or not."""
    total = [torch.zeros_like(weight) for weight in learner.weights]
    for rows in chunks(torch.arange(len(job.dataset)), 500):
        images, labels = job.batch(rows)

        def loss(images: Tensor, part: slice, labels: Tensor = labels) -> Tensor:
            logits = learner.logits(images)
            return reverse_cross_entropy(logits, labels[part]).sum() / len(job.dataset)

        for sum_, slope in zip(
            total, learner.gradient(loss, images.float() / 255, piece), strict=True
        ):
            sum_ += slope
        job.spend(len(rows))
    return total


def reverse_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log(1 - p_y) of each image, (b,), exact where p_y is all but one."""
    true = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
    return logits.logsumexp(1) - logits.masked_fill(true, -torch.inf).logsumexp(1)


class SignedAdam:
    """Adam with the usual momenta, .9 and .999, that is told signs only.

    Args:
        rate: the first one, broadcastable to a batch, in units of [0, 1].
        steps: how many there will be; after 3/8, 5/8 and 7/8 of them the rate is divided by ten.
    """

    def __init__(self, rate: Tensor, steps: int) -> None:
        self._rate, self._steps, self._done = rate, steps, 0
        self._mean = self._square = torch.zeros_like(rate)

    def __call__(self, x: Iterate, gradient: Tensor) -> None:
        """One step of a batch, always the same one."""
        decay = 0.1 ** sum(8 * self._done >= eighths * self._steps for eighths in (3, 5, 7))
        self._done += 1
        sign = signs(gradient)
        self._mean = 0.9 * self._mean + 0.1 * sign
        self._square = 0.999 * self._square + 0.001 * sign.square()
        mean = self._mean / (1 - 0.9**self._done)
        deviation = (self._square / (1 - 0.999**self._done)).sqrt()
        x.move(-decay * self._rate * mean / (deviation + 1e-8))

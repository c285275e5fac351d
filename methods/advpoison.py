"""Adversarial poisons: targeted adversarial examples as training data.

Fowl, Liam, et al. "Adversarial Examples Make Strong Data Poisons", NeurIPS 2021 (also TAP). With
a fixed, cleanly trained surrogate f and random differentiable crops and flips T:

    delta <- Pi(delta - alpha sign(grad CE(f(T(x + delta)), g(y)))),   g(y) = y + 1 mod K

The untargeted form climbs instead, away from the true class:

    delta <- Pi(delta + alpha sign(grad CE(f(T(x + delta)), y)))

The settings are those of the authors' code of September 2021, whose step is a twentieth of
epsilon; the paper does not print it, the June version took a tenth, and SEP's appendix says 1/255.
Of several restarts the one with the least loss over all images is kept; that loss is taken once
more at the end of each restart, under the same draws of T for all, where the code reuses the one
of the last step. The surrogate has PyTorch's default initialisation, the authors' a Kaiming one,
and the start is clipped to [0, 1], too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.augment import draw_shifts, shift
from bench.component import setting
from bench.crafting import Crafting
from bench.data import chunks
from bench.method import BoundedMethod, Surrogate
from bench.network import Network
from bench.pgd import Iterate, input_gradient
from bench.recipe import FOWL, Recipe
from bench.registry import METHODS


@METHODS.register("advpoison", also=("TAP",))
@dataclass(frozen=True)
class AdversarialPoison(BoundedMethod):
    """Targeted adversarial examples of one surrogate, through random crops (TAP)."""

    paper: ClassVar[str] = "Fowl et al., Adversarial Examples Make Strong Data Poisons, 2021"
    presets: ClassVar = {
        "quick": {"steps": 20, "step_ratio": 0.2, "restarts": 1, "surrogate_recipe": "victim"},
        "standard": {"steps": 40, "restarts": 1, "surrogate_recipe": "victim"},
    }

    steps: int = setting(250, "updates")
    step_ratio: float = setting(0.05, "tau; alpha = tau epsilon")
    restarts: int = setting(8, "random starts, of which the best is kept")
    target_shift: int = setting(1, "g(y) = y + shift mod classes")
    shift: float = setting(4.0, "largest random shift of T, in pixels; T flips, too")
    batch: int = setting(500, "images that share a draw of the random numbers' stream")
    surrogate: str = setting("rn18", "the surrogate's architecture")
    surrogate_recipe: Literal["own", "victim"] = setting(
        "own", "train it as the authors do, or as the victims are trained"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.restarts < 1 or self.steps < 0 or self.batch < 1:
            raise ValueError("restarts and batch must be 1 or more, and steps 0 or more")

    def surrogates(self, recipe: Recipe) -> tuple[Surrogate, ...]:
        """The last epoch of one training."""
        source = FOWL if self.surrogate_recipe == "own" else recipe
        return (Surrogate(self.surrogate, (source.epochs,), source),)

    def gradient_images(self, images: int) -> int:
        """Steps times restarts for each image."""
        return images * self.steps * self.restarts

    def craft(self, job: Crafting) -> Tensor:
        """The restart with the least loss over all protected images."""
        (model,) = job.trained(0)
        best, least = torch.zeros(0), math.inf
        for restart in range(self.restarts):
            delta, loss = self.attempt(job, model, restart)
            if restart == 0 or loss < least:
                best, least = delta, loss
        return best

    def attempt(self, job: Crafting, model: Network, restart: int) -> tuple[Tensor, float]:
        """One restart: delta for all images, and the summed loss at its end."""
        mean = torch.tensor(job.dataset.mean, device=job.device).reshape(1, 3, 1, 1)

        def objective(x: Tensor, target_labels: Tensor, draws: torch.Generator) -> Tensor:
            offsets, mirrored = draw_shifts(len(x), self.shift, draws, job.device)
            moved = shift(x, offsets, mirrored, mean)
            return self.loss(model(moved), target_labels)

        def perturb(images: Tensor, labels: Tensor, number: int) -> Tensor:
            draws = job.stream("restart", restart, number)
            start = torch.randn(images.shape, generator=draws).to(job.device) * self.epsilon
            x = Iterate(images, self.budget, start)
            for _ in range(self.steps):
                g = input_gradient(
                    lambda x: objective(x, self.target(labels, job), draws), x.images
                )
                x.descend(g, self.step_ratio * self.epsilon)
                job.spend(len(labels))
            return x.delta

        delta = job.each_chunk(perturb, self.batch, f"restart-{restart}")
        if self.restarts == 1:
            return delta, 0.0
        loss = 0.0
        for number, rows in enumerate(chunks(job.mask.nonzero().flatten(), self.batch)):
            images, labels = job.batch(rows)
            x = images.float() / 255 + delta[rows].to(job.device)
            with torch.no_grad():
                draws = job.stream("choose", number)
                loss += float(objective(x, self.target(labels, job), draws))
        return delta, loss

    def target(self, labels: Tensor, job: Crafting) -> Tensor:
        """g(y)."""
        return (labels + self.target_shift) % job.classes

    def loss(self, logits: Tensor, target_labels: Tensor) -> Tensor:
        """What is minimised, summed over images."""
        return F.cross_entropy(logits, target_labels, reduction="sum")


@METHODS.register("advpoison-untargeted")
@dataclass(frozen=True)
class UntargetedPoison(AdversarialPoison):
    """Adversarial examples of one surrogate that flee their own class, whichever way."""

    target_shift: int = setting(0, "which class is fled: y + shift mod classes")

    def loss(self, logits: Tensor, target_labels: Tensor) -> Tensor:
        """Down this is up the cross-entropy."""
        return -super().loss(logits, target_labels)

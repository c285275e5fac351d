"""Unlearnable examples: noise that makes training images too easy to learn from.

Huang, Hanxun, et al. "Unlearnable Examples: Making Personal Data Unexploitable", ICLR 2021.
Weights and noise are minimised in turn (error-minimising noise):

    min over theta, min over |delta| <= epsilon of  CE(f_theta(x + delta), y)

One round: M training steps on protected images, then K noise steps on every image; rounds end when
f classifies nearly all protected images rightly. The network takes images without normalisation,
and they are not augmented.

The released evaluation clips the noise to [0, epsilon] before adding it, so that its negative half
is lost; `negatives=dropped` reproduces that, but not the rounding down that follows there.
Sample-wise noise is stored clipped to epsilon and before the clamp to [0, 1], as in the code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.component import setting
from bench.crafting import Crafting
from bench.method import BoundedMethod
from bench.network import Network, freeze
from bench.pgd import input_gradient, signs
from bench.recipe import batches
from bench.registry import METHODS


@METHODS.register("ule", also=("EMN", "EM", "UE"))
@dataclass(frozen=True)
class ErrorMinimising(BoundedMethod):
    """Error-minimising noise, for each sample or each class, trained with its own network."""

    paper: ClassVar[str] = "Huang et al., Unlearnable Examples, ICLR 2021"
    presets: ClassVar = {
        "quick": {"noise_steps": 5, "step_ratio": 0.25, "batch": 128, "max_rounds": 15},
        "standard": {"noise_steps": 5, "step_ratio": 0.25, "max_rounds": 20},
    }

    per: Literal["sample", "class"] = setting("sample", "one noise for each image or each class")
    train_steps: int = setting(10, "M, steps of SGD a round")
    noise_steps: int = setting(20, "K, noise steps a round; class-wise noise takes one")
    step_ratio: float = setting(0.1, "noise step over epsilon")
    stop_error: float = setting(0.01, "rounds end when the training error is this low")
    max_rounds: int = setting(100, "and at the latest after so many")
    batch: int = setting(512, "images a step")
    subset: float = setting(0.2, "share of the images that class-wise noise is learned on")
    negatives: Literal["keep", "dropped"] = setting("keep", "dropped: released evaluation")
    surrogate: str = setting("rn18", "the network's architecture")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch < 1 or min(self.train_steps, self.noise_steps, self.max_rounds) < 0:
            raise ValueError("batch must be 1 or more, and steps and rounds 0 or more")
        if not 0 < self.subset <= 1:
            raise ValueError(f"subset={self.subset:g} must lie above 0 and at most at 1")

    @property
    def own_batch(self) -> int | None:
        """Class-wise noise learns from whole batches alone."""
        return self.batch if self.per == "sample" else None

    def gradient_images(self, images: int) -> int:
        """An estimate: ten rounds."""
        steps = self.noise_steps if self.per == "sample" else self.subset
        return int(images * steps * min(10, self.max_rounds))

    def craft(self, job: Crafting) -> Tensor:
        """Rounds of training and of noise until the network errs on almost nothing."""
        state = Alternation(job, self)
        while state.rounds < self.max_rounds and not state.learned and len(state.rows):
            state.train()
            if self.per == "sample":
                state.improve_samples()
            else:
                state.improve_classes()
            state.rounds += 1
            state.learned = state.error() <= self.stop_error
            job.save("rounds", state.pack)
        job.report("rounds", state.rounds)
        noise = state.noise.cpu()
        if self.negatives == "dropped":
            noise = noise.clamp_min(0)
        delta, rows = job.blank(), state.rows
        delta[rows] = noise if self.per == "sample" else noise[job.dataset.labels[rows]]
        return delta


class Alternation:
    """The network and the noise, between two rounds.

    Attributes:
        rows: the protected rows, in file order.
        noise: (n, 3, h, w) for them, or (classes, 3, h, w); float32 in [-epsilon, epsilon].
        rounds: rounds done.
        learned: whether the training error is low enough to stop.
    """

    def __init__(self, job: Crafting, method: ErrorMinimising) -> None:
        self._job, self._method = job, method
        self.rows = job.mask.nonzero().flatten()
        self._network = job.network(method.surrogate, "network")
        self._optimizer = torch.optim.SGD(
            self._network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4
        )
        count = len(self.rows) if method.per == "sample" else job.classes
        shape = (count, *job.dataset.images.shape[1:])
        self.noise = torch.zeros(shape, device=job.device)
        self.noise = self.noise.contiguous(memory_format=torch.channels_last)
        self.rounds, self.learned, self._steps = 0, False, 0
        saved = job.load("rounds")
        if saved is not None:
            self._unpack(saved)

    def train(self) -> None:
        """M steps of SGD on x + delta, which is not clamped."""
        network = self._network.train()
        for _ in range(self._method.train_steps):
            places = self._next_batch()
            images, labels = self._job.batch(self.rows[places])
            loss = F.cross_entropy(network(images.float() / 255 + self._of(places, labels)), labels)
            self._optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            self._optimizer.step()

    def improve_samples(self) -> None:
        """K steps for every image: delta <- clip_eps(clip_[0,1](x + delta - a sign g) - x)."""
        model = self._frozen()
        for places in torch.arange(len(self.rows)).split(self._method.batch):
            images, labels = self._job.batch(self.rows[places])
            clean = images.float() / 255
            self.noise[places] = self._improve(
                model, clean, self.noise[places], labels, self._method.noise_steps
            )

    def improve_classes(self) -> None:
        """One step on a fifth of the images; a class takes the mean of its images' noises."""
        method, job = self._method, self._job
        model = self._frozen()
        draws = job.stream("classes", self.rounds)
        subset = self._stratified()
        order = subset[torch.randperm(len(subset), generator=draws)]
        for part in batches(len(order), method.batch, whole=True):
            places = order[part]
            images, labels = job.batch(self.rows[places])
            clean = images.float() / 255
            moved = self._improve(model, clean, self.noise[labels], labels, 1)
            sums = torch.zeros_like(self.noise).index_add_(0, labels, moved)
            counts = torch.bincount(labels, minlength=job.classes)[:, None, None, None]
            means = (sums / counts.clamp_min(1)).clamp(-method.epsilon, method.epsilon)
            self.noise = torch.where(counts > 0, means, self.noise)

    def error(self) -> float:
        """Mean over batches of the share of protected images that f gets wrong in eval mode."""
        model, rates = self._frozen(), []
        places_of = torch.arange(len(self.rows))
        if self._method.per == "class":
            places_of = self._stratified()
        with torch.no_grad():
            for places in places_of.split(self._method.batch):
                images, labels = self._job.batch(self.rows[places])
                guess = model(images.float() / 255 + self._of(places, labels)).argmax(1)
                rates.append((guess != labels).float().mean())
        return float(torch.stack(rates).mean())

    def _improve(
        self, model: Network, clean: Tensor, noise: Tensor, labels: Tensor, steps: int
    ) -> Tensor:
        """Signed steps down the cross-entropy from a warm start."""
        epsilon = self._method.epsilon
        size = self._method.step_ratio * epsilon
        for _ in range(steps):
            x = (clean + noise).clamp(0, 1)
            g = input_gradient(lambda x: F.cross_entropy(model(x), labels, reduction="sum"), x)
            # The clip to epsilon comes last: what is stored may leave [0, 1] with its image, which
            # is clipped when it is looked at or released.
            noise = (x - size * signs(g) - clean).clamp(-epsilon, epsilon)
            self._job.spend(len(labels))
        return noise

    def _of(self, places: Tensor, labels: Tensor) -> Tensor:
        """The noise of the images at these places."""
        return self.noise[places] if self._method.per == "sample" else self.noise[labels]

    def _next_batch(self) -> Tensor:
        """Places of the next training batch; the pass over the data runs on between rounds."""
        count, by_class = len(self.rows), self._method.per == "class"
        parts = batches(count, self._method.batch, whole=by_class)
        number, position = divmod(self._steps, len(parts))
        order = torch.arange(count)
        if by_class:
            order = torch.randperm(count, generator=self._job.stream("pass", number))
        self._steps += 1
        return order[parts[position]]

    def _stratified(self) -> Tensor:
        """Places of the same share of every class, the first ones in a fixed random order."""
        labels = self._job.dataset.labels[self.rows]
        order = torch.randperm(len(labels), generator=self._job.stream("subset"))
        chosen = []
        for label in range(self._job.classes):
            members = order[labels[order] == label]
            chosen.append(members[: max(1, round(len(members) * self._method.subset))])
        return torch.cat(chosen)

    def _frozen(self) -> Network:
        return freeze(self._network, self._job.device, self._job.precision)

    def pack(self) -> dict[str, Any]:
        """Everything that the next round needs."""
        return {
            "noise": self.noise.cpu(),
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "rounds": self.rounds,
            "learned": self.learned,
            "steps": self._steps,
            "spent": self._job.gradient_images,
        }

    def _unpack(self, saved: dict[str, Any]) -> None:
        self.noise = saved["noise"].to(self._job.device)
        self._network.load_state_dict(saved["network"])
        self._optimizer.load_state_dict(saved["optimizer"])
        self.rounds, self.learned, self._steps = saved["rounds"], saved["learned"], saved["steps"]
        self._job.spend(saved["spent"])

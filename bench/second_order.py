"""Gradients through weight gradients: images that make a network learn otherwise, or not at all.

A trainer follows g(x), the weight gradient of the loss on a batch x. What is to be minimised is a
scalar m of g, such as its length, and images move along

    d m(g(x)) / dx  =  d <v, g(x)> / dx,     v = dm/dg held fixed

Since g is a sum over images, the right-hand side falls apart into pieces of the batch: one pass
adds up g, a second one differentiates it, and memory holds one piece's graph at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from bench.augment import draw_shifts, shift
from bench.component import setting
from bench.crafting import Crafting
from bench.data import chunks
from bench.folding import Folding
from bench.method import BoundedMethod, Surrogate
from bench.network import Network, freeze
from bench.pgd import Iterate
from bench.recipe import FOWL, Recipe

COST = 3
"""Input gradients of the first order that one of the second order takes as long as."""
MEMORY = 3
"""And the memory it takes, in theirs."""

Loss = Callable[[Tensor, slice], Tensor]
"""Maps some images of a batch, and which ones they are, to their share of the batch's loss."""
Measure = Callable[[Sequence[Tensor]], Tensor]
"""Maps a weight gradient, one tensor for each weight, to the scalar that is minimised."""
Move = Callable[[Iterate, Tensor], None]
"""Moves a batch by one step, given the gradient."""


class Learner:
    """A trained network whose weight gradients can be taken and differentiated.

    The weights are those that were trained, batch norms' factors and offsets among them; only the
    arithmetic is that of folded batch norms, through which the chain rule leads back.

    Args:
        network: in eval mode and not folded; see `Surrogate.folded`.

    Attributes:
        weights: float32, each in its own shape.
    """

    def __init__(self, network: Network) -> None:
        self._names = [name for name, _ in network.named_parameters()]
        self.weights = [weight.detach().clone() for weight in network.parameters()]
        for weight in self.weights:
            weight.requires_grad_()
        self._folding = Folding(network.body, "body.")
        self._folded = freeze(network, network.mean.device, network.precision)

    def logits(self, images: Tensor) -> Tensor:
        """Logits, (b, classes) float32, with a graph to images and to weights."""
        folded = self._folding(dict(zip(self._names, self.weights, strict=True)))
        dtype = self._folded.head.weight.dtype
        stored = {name: weight.to(dtype) for name, weight in folded.items()}
        return functional_call(self._folded, stored, (images,))

    def gradient(self, loss: Loss, images: Tensor, piece: int) -> list[Tensor]:
        """The weight gradient of a loss.

        Args:
            loss: of a batch, as a sum over its images.
            images: (b, 3, h, w) float32 in [0, 1].
            piece: images whose graph fits into memory.

        Returns:
            One tensor for each weight.
        """
        total = [torch.zeros_like(weight) for weight in self.weights]
        for part in _parts(len(images), piece):
            for sum_, slope in zip(total, self._slopes(loss(images[part], part)), strict=True):
                sum_ += slope
        return total

    def pull_back(self, measure: Measure, loss: Loss, images: Tensor, piece: int) -> Tensor:
        """The gradient with respect to images of a measure of a loss's weight gradient.

        Args:
            measure: what is minimised.
            loss: of a batch, as a sum over its images.
            images: (b, 3, h, w) float32 in [0, 1].
            piece: images whose graph fits into memory; it changes the result by rounding alone.
        """
        if len(images) <= piece:  # the graph of the first pass is still there
            leaf = images.detach().requires_grad_()
            slopes = self._slopes(loss(leaf, slice(0, len(images))), create_graph=True)
            return _along(slopes, _derivative(measure, slopes), leaf)
        v = _derivative(measure, self.gradient(loss, images, piece))
        pulled = []
        for part in _parts(len(images), piece):
            leaf = images[part].detach().requires_grad_()
            slopes = self._slopes(loss(leaf, part), create_graph=True)
            pulled.append(_along(slopes, v, leaf))
        return torch.cat(pulled)

    def _slopes(self, value: Tensor, create_graph: bool = False) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            value, self.weights, create_graph=create_graph, materialize_grads=True
        )


def _parts(count: int, piece: int) -> Iterator[slice]:
    for start in range(0, count, piece):
        yield slice(start, min(start + piece, count))


def _derivative(measure: Measure, gradient: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The slope v of a measure at a weight gradient."""
    leaves = [slope.detach().requires_grad_() for slope in gradient]
    return torch.autograd.grad(measure(leaves), leaves, materialize_grads=True)


def _along(slopes: Sequence[Tensor], v: Sequence[Tensor], leaf: Tensor) -> Tensor:
    """The gradient of <v, g> with respect to a leaf."""
    # A weight that the loss does not use has a gradient of zero, without a graph.
    used = [(slope, w) for slope, w in zip(slopes, v, strict=True) if slope.requires_grad]
    return torch.autograd.grad([s for s, _ in used], leaf, grad_outputs=[w for _, w in used])[0]


@dataclass(frozen=True)
class WeightGradientMethod(BoundedMethod):
    """A method that shapes the weight gradient a surrogate takes from each batch.

    As Fowl et al. (2021) craft: batches in file order see the surrogate, in eval mode, through
    random shifts and flips T; from several random starts the one with the least measure, averaged
    over all batches, is kept. A subclass says what is measured and how a batch moves.
    """

    steps: int = setting(250, "updates")
    restarts: int = setting(8, "random starts, of which the best is kept")
    shift: float = setting(4.0, "largest random shift of T, in pixels; T flips, too")
    batch: int = setting(500, "images whose common weight gradient is looked at")
    surrogate: str = setting("rn18", "the surrogate's architecture")
    surrogate_recipe: Literal["own", "victim"] = setting(
        "own", "train it as the authors do, or as the victims are trained"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.restarts < 1 or self.steps < 0 or self.batch < 1:
            raise ValueError("restarts and batch must be 1 or more, and steps 0 or more")

    def measure(self, job: Crafting, learner: Learner) -> Measure:
        """What is minimised, the same for all batches."""
        raise NotImplementedError

    def mover(self, job: Crafting) -> Move:
        """How one batch moves, from its first step to its last."""
        raise NotImplementedError

    def surrogates(self, recipe: Recipe) -> tuple[Surrogate, ...]:
        """The last epoch of one training."""
        source = FOWL if self.surrogate_recipe == "own" else recipe
        return (Surrogate(self.surrogate, (source.epochs,), source, folded=False),)

    def gradient_images(self, images: int) -> int:
        """Steps times restarts for each image, each of them a double backward pass."""
        return images * self.steps * self.restarts * COST

    def craft(self, job: Crafting) -> Tensor:
        """The restart with the least measure."""
        if not job.mask.any():
            return job.blank()
        (network,) = job.trained(0)
        learner = Learner(network)
        measure = self.measure(job, learner)
        best, least = torch.zeros(0), math.inf
        for restart in range(self.restarts):
            delta, value = self.attempt(job, learner, measure, restart)
            if restart == 0 or value < least:
                best, least = delta, value
        return best

    def attempt(
        self, job: Crafting, learner: Learner, measure: Measure, restart: int
    ) -> tuple[Tensor, float]:
        """One restart: delta for all images, and the measure at its end, summed over batches."""
        piece = self.piece(job)

        def perturb(images: Tensor, labels: Tensor, number: int) -> Tensor:
            draws = job.stream("restart", restart, number)
            start = torch.randn(images.shape, generator=draws).to(job.device) * self.epsilon
            x, move = Iterate(images, self.budget, start), self.mover(job)
            for _ in range(self.steps):
                loss = self.loss(job, learner, labels, draws)
                move(x, learner.pull_back(measure, loss, x.images, piece))
                job.spend(COST * len(labels))
            return x.delta

        delta = job.each_chunk(perturb, self.batch, f"restart-{restart}")
        if self.restarts == 1:
            return delta, 0.0
        total = 0.0
        for number, rows in enumerate(chunks(job.mask.nonzero().flatten(), self.batch)):
            images, labels = job.batch(rows)
            x = images.float() / 255 + delta[rows].to(job.device)
            loss = self.loss(job, learner, labels, job.stream("choose", number))
            total += float(measure(learner.gradient(loss, x, piece)))
        return delta, total

    def loss(self, job: Crafting, learner: Learner, labels: Tensor, draws: torch.Generator) -> Loss:
        """CE(f(T(x)), y), the mean over a batch, under one draw of T."""
        offsets, mirrored = draw_shifts(len(labels), self.shift, draws, job.device)
        mean = torch.tensor(job.dataset.mean, device=job.device).reshape(1, 3, 1, 1)

        def share(images: Tensor, part: slice) -> Tensor:
            moved = shift(images, offsets[part], mirrored[part], mean)
            logits = learner.logits(moved)
            return F.cross_entropy(logits, labels[part], reduction="sum") / len(labels)

        return share

    def piece(self, job: Crafting) -> int:
        """Images of a batch whose graph fits into memory."""
        if not job.bytes_per_gradient:
            return self.batch
        return max(1, min(self.batch, int(job.memory / (MEMORY * job.bytes_per_gradient))))

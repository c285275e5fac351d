"""TensorClog: images whose training gradients vanish, so that nothing is learned from them.

Shen, Juncheng, et al. "TensorClog: An Imperceptible Poisoning Attack on Deep Neural Network
Applications", IEEE Access 2019. `tensorclog` is the form that was measured at 8/255: the recipe in
the code of Fowl et al. (2021), which minimises the length of the whole weight gradient of each
batch's mean cross-entropy, seen through random shifts and flips T, by signed steps:

    delta <- Pi(delta - alpha sign(d |d CE(f(T(x + delta)), y) / d theta|_2 / d delta))

theta are all weights that were trained, batch norms' factors and offsets among them. As released
that recipe asks for an option that is no longer there. Batches have 500 images here, 512 there.

`tensorclog-transfer` is the authors' own code. A network trained on other images gets a new last
layer (W, b) with Xavier-uniform W, and each image x, normalised, descends by itself, with no bound
but a clamp around x0:

    L(x) = |d CE / dW|_2 + |d CE / db|_2 + lambda |x - x0|_2
    x   <- clip(x - rate dL/dx, x0 - 0.1, x0 + 0.1)

With features h and p = softmax(W h + b), d CE / dW is the outer product of p - onehot(y) and h, so
its length is |p - onehot(y)| |h|, and the double backward pass is an ordinary one. Departures:

- The authors train on CIFAR-100. There are no other images here, so the body is trained on the
  clean images themselves, with the victims' recipe, and then loses its last layer. It knows the
  images better than a foreign one would.
- Their inputs are divided by the deviations .2023 .1994 .2010, ours by the data set's own, which
  are larger by a quarter, and so is the clamp in grey levels. On CIFAR-10 it is 6 to 7 levels, and
  the budget of 8/255 holds without cutting; `clamp=none` leaves the budget alone.
- Released images are clipped to [0, 1] and rounded; the authors keep floats. The code looks for
  the last layer under a name that its own networks do not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.component import setting
from bench.crafting import Crafting
from bench.method import BoundedMethod, Surrogate
from bench.network import Network
from bench.pgd import input_gradient
from bench.recipe import Recipe
from bench.registry import METHODS
from bench.second_order import Learner, Measure, Move, WeightGradientMethod


@METHODS.register("tensorclog", also=("TC",))
@dataclass(frozen=True)
class TensorClog(WeightGradientMethod):
    """Batches whose whole weight gradient is short, through random shifts."""

    paper: ClassVar[str] = "Shen et al., TensorClog, IEEE Access 2019"
    presets: ClassVar = {
        "quick": {"steps": 8, "step_ratio": 0.2, "restarts": 1, "surrogate_recipe": "victim"},
        "standard": {"steps": 50, "step_ratio": 0.1, "restarts": 1, "surrogate_recipe": "victim"},
    }

    step_ratio: float = setting(0.05, "tau; alpha = tau epsilon")

    def measure(self, job: Crafting, learner: Learner) -> Measure:
        """The length of the gradient as one long vector."""
        del job, learner
        return length

    def mover(self, job: Crafting) -> Move:
        """Signed steps of one size."""
        del job
        return lambda x, gradient: x.descend(gradient, self.step_ratio * self.epsilon)


def length(gradient: Sequence[Tensor]) -> Tensor:
    """The l2 norm of all tensors together; its slope at zero is zero."""
    return torch.stack([slope.norm() for slope in gradient]).norm()


@METHODS.register("tensorclog-transfer")
@dataclass(frozen=True)
class TensorClogTransfer(BoundedMethod):
    """Images whose gradient at a fresh last layer is short, each by plain descent."""

    paper: ClassVar[str] = "Shen et al., TensorClog, IEEE Access 2019"
    presets: ClassVar = {"quick": {"steps": 30}}

    steps: int = setting(100, "updates")
    rate: float = setting(1.0, "of gradient descent on normalised images")
    weight: float = setting(0.01, "lambda, of the distance to the clean image")
    clamp: float | None = setting(0.1, "largest change in normalised units; none: epsilon alone")
    surrogate: str = setting("rn18", "architecture of the body")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 0 or (self.clamp is not None and not self.clamp >= 0):
            raise ValueError("steps and clamp must be 0 or more")

    def surrogates(self, recipe: Recipe) -> tuple[Surrogate, ...]:
        """The last epoch of one training, with the victims' recipe."""
        return (Surrogate(self.surrogate, (recipe.epochs,)),)

    def gradient_images(self, images: int) -> int:
        """One for each step, thanks to the closed form."""
        return images * self.steps

    def craft(self, job: Crafting) -> Tensor:
        """Each image moves on its own, so chunks of any size give the same result."""
        (model,) = job.trained(0)
        head = fresh_head(model, job)

        def perturb(images: Tensor, labels: Tensor, number: int) -> Tensor:
            del number
            return self.descend(job, model, head, images.float() / 255, labels)

        return job.each_chunk(perturb)

    def descend(
        self, job: Crafting, model: Network, head: nn.Linear, clean: Tensor, labels: Tensor
    ) -> Tensor:
        """Delta (b, 3, h, w) in units of [0, 1] after all steps, from a start of zero."""
        most = torch.as_tensor(self.epsilon, device=job.device) / model.std
        if self.clamp is not None:
            most = most.clamp_max(self.clamp)
        change = torch.zeros_like(clean)  # normalised

        def objective(change: Tensor) -> Tensor:
            norms = gradient_norms(model.features(clean + change * model.std), head, labels)
            return (norms + self.weight * change.flatten(1).norm(dim=1)).sum()

        for _ in range(self.steps):
            change = change - self.rate * input_gradient(objective, change)
            change = torch.minimum(torch.maximum(change, -most), most)
            job.spend(len(labels))
        return change * model.std


def fresh_head(model: Network, job: Crafting) -> nn.Linear:
    """A last layer that has learned nothing: W Xavier-uniform, b uniform as PyTorch draws it."""
    draws = job.stream("head")
    # Born empty, since PyTorch's own initialisation draws from the global generator.
    head = nn.Linear(model.head.in_features, job.classes, device="meta").to_empty(device="cpu")
    nn.init.xavier_uniform_(head.weight, generator=draws)
    bound = model.head.in_features**-0.5
    nn.init.uniform_(head.bias, -bound, bound, generator=draws)
    return head.requires_grad_(False).to(job.device)


def gradient_norms(features: Tensor, head: nn.Linear, labels: Tensor) -> Tensor:
    """|d CE / dW| + |d CE / db| of each image by itself.

    Args:
        features: (b, features) float.
        head: the last layer.
        labels: (b,) int64.

    Returns:
        (b,) in the dtype of the features.
    """
    logits = F.linear(features, head.weight.to(features.dtype), head.bias.to(features.dtype))
    surplus = logits.softmax(1) - F.one_hot(labels, len(head.bias))
    return surplus.norm(dim=1) * (features.norm(dim=1) + 1)

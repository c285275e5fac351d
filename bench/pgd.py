"""Projected gradient descent on images: the one loop of methods and of adversarial training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bench.budget import Budget


class Iterate:
    """x = x0 + delta inside a budget and inside [0, 1], counted in grey levels.

    With a zero start, an integer epsilon and a step of whole grey levels every iterate is a whole
    number of levels, which float32 holds exactly; nothing is lost when the result becomes 8-bit.

    Args:
        images: x0, (b, 3, h, w), uint8 or float in [0, 1].
        budget: what delta is projected onto after every step.
        start: the first delta in units of [0, 1]; zero if left out. It is projected, too.
    """

    def __init__(self, images: Tensor, budget: Budget, start: Tensor | None = None) -> None:
        self._origin = images.float() if images.dtype == torch.uint8 else images * 255
        self._budget = budget
        self._levels = torch.zeros_like(self._origin)
        if start is not None:
            self._levels = self._inside(start * 255)

    @property
    def images(self) -> Tensor:
        """x, (b, 3, h, w) float32 in [0, 1]."""
        return (self._origin + self._levels) / 255

    @property
    def delta(self) -> Tensor:
        """X - x0, (b, 3, h, w) float32 in units of [0, 1]."""
        return self._levels / 255

    def copy(self) -> Iterate:
        """An iterate at the same place that moves on its own."""
        other = object.__new__(Iterate)
        other._origin, other._budget, other._levels = self._origin, self._budget, self._levels
        return other

    def descend(self, gradient: Tensor, step_size: float) -> None:
        """X <- Pi(x - step_size * direction), with the direction that suits the norm.

        Args:
            gradient: (b, 3, h, w); its sign is taken for l-inf, its unit vector for l2.
            step_size: in units of [0, 1]; negative to ascend.
        """
        if self._budget.norm == "l2":
            length = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)
            direction = gradient / length[:, None, None, None]
        else:
            direction = signs(gradient)
        self._levels = self._inside(self._levels - _in_levels(step_size) * direction)

    def move(self, step: Tensor) -> None:
        """X <- Pi(x + step) for a step of the caller's own, in units of [0, 1]."""
        self._levels = self._inside(self._levels + step * 255)

    def _inside(self, levels: Tensor) -> Tensor:
        """First the budget, then the valid range; both are kept, since the range holds zero."""
        if self._budget.norm == "linf":
            most = _in_levels(self._budget.epsilon)
            kept = levels.clamp(-most, most)
        else:
            kept = self._budget.project(levels / 255) * 255
        # A defense may have moved x0 out of the valid range; it then stays there or returns.
        lowest, highest = -self._origin.clamp_min(0), 255 - self._origin.clamp_max(255)
        return torch.minimum(torch.maximum(kept, lowest), highest)


def signs(gradient: Tensor) -> Tensor:
    """-1, 0 or 1; what is no number stays none, so that nothing is released that rests on it."""
    return torch.where(gradient.isnan(), gradient, gradient.sign())


def input_gradient(objective: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The gradient of a scalar with respect to images.

    Args:
        objective: maps images to a scalar. Sum over samples rather than average: the sign stays
            the same and small gradients do not vanish, and images do not depend on the batch.
        images: (b, 3, h, w) float.
    """
    leaf = images.detach().requires_grad_()
    return torch.autograd.grad(objective(leaf), leaf)[0]


def absolute_cosines(gradients: Tensor) -> tuple[Tensor, int]:
    """Absolute cosines between the gradients of every image in every pair of networks.

    Args:
        gradients: (k, b, d), of k networks.

    Returns:
        (b', k, k) and b', the number of images whose gradient is zero in none of them.
    """
    lengths = gradients.norm(dim=2)
    whole = (lengths > 0).all(0) & lengths.isfinite().all(0)
    units = (gradients / lengths[:, :, None])[:, whole].transpose(0, 1)
    return (units @ units.transpose(1, 2)).abs(), int(whole.sum())


@contextmanager
def at_rest(network: nn.Module) -> Iterator[None]:
    """Eval mode and frozen weights for a while; then every module and weight as before."""
    modes = [(module, module.training) for module in network.modules()]
    flags = [(weight, weight.requires_grad) for weight in network.parameters()]
    network.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for weight, learns in flags:
            weight.requires_grad_(learns)


def _in_levels(value: float) -> float:
    """Units of [0, 1] to grey levels, whole numbers exactly whole."""
    levels = value * 255
    return float(round(levels)) if abs(levels - round(levels)) < 1e-9 else levels

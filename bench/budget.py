"""How far a protected image may lie from its clean one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["linf", "l2", "l0", "none"]


@dataclass(frozen=True)
class Budget:
    """A norm and a radius.

    Attributes:
        norm: `linf`, `l2`, `l0` (pixels changed in any channel), or `none` (no bound).
        epsilon: the radius in units of [0, 1]; for `l0` a number of pixels.
    """

    norm: Norm
    epsilon: float = math.inf

    def __post_init__(self) -> None:
        if not self.epsilon >= 0:
            raise ValueError(f"epsilon is {self.epsilon}; it must be 0 or more")

    def __str__(self) -> str:
        sign = {"linf": "l∞", "l2": "l2", "l0": "l0"}.get(self.norm)
        return "none" if sign is None else f"{sign} {fraction(self.epsilon, self.norm)}"

    def size(self, delta: Tensor) -> Tensor:
        """The norm of each image's perturbation.

        Args:
            delta: (n, 3, h, w) in units of [0, 1].

        Returns:
            (n,) float32; for `none` the l-inf norm, for information.
        """
        flat = delta.float().flatten(1)
        if self.norm == "l2":
            return flat.norm(dim=1)
        if self.norm == "l0":
            return delta.ne(0).any(dim=1).flatten(1).sum(dim=1).float()
        return flat.abs().amax(dim=1)

    def project(self, delta: Tensor) -> Tensor:
        """The nearest perturbation inside the budget, image by image.

        Args:
            delta: (n, 3, h, w) float in units of [0, 1].
        """
        if self.norm == "linf":
            return delta.clamp(-self.epsilon, self.epsilon)
        if self.norm == "l2":
            size = self.size(delta).clamp_min(1e-12)
            factor = (self.epsilon / size).clamp_max(1.0).to(delta.dtype)
            return delta * factor[:, None, None, None]
        if self.norm == "l0":
            return self._keep_largest(delta)
        return delta

    def project_levels(self, levels: Tensor) -> Tensor:
        """Like `project` on the 8-bit lattice, so that the result keeps the budget exactly.

        Args:
            levels: (n, 3, h, w) integer differences in grey levels, int16.

        Returns:
            Integer differences of the same shape, never larger than before in any component.
        """
        if self.norm == "linf":
            most = math.floor(min(self.epsilon, 1.0) * 255 + 1e-6)
            return levels.clamp(-most, most)
        if self.norm == "l2":
            size = levels.double().flatten(1).norm(dim=1) / 255
            factor = (self.epsilon / size.clamp_min(1e-12))[:, None, None, None]
            # Truncating towards zero can only shorten, so one pass is enough.
            shorter = (levels.double() * factor).trunc().to(levels.dtype)
            return torch.where(factor < 1 - 1e-9, shorter, levels)
        if self.norm == "l0":
            return self._keep_largest(levels)
        return levels

    def contains(self, levels: Tensor) -> Tensor:
        """Which images' integer differences lie inside the budget, (n,) bool."""
        return self.project_levels(levels).eq(levels).flatten(1).all(dim=1)

    def _keep_largest(self, delta: Tensor) -> Tensor:
        """Keep the pixels with the largest change; among equals the first in reading order."""
        count = int(min(self.epsilon, delta.shape[2] * delta.shape[3]))
        weight = delta.abs().double().amax(dim=1).flatten(1)
        order = weight.sort(dim=1, descending=True, stable=True).indices[:, :count]
        kept = torch.zeros_like(weight, dtype=torch.bool).scatter_(1, order, True)
        return delta * kept.unflatten(1, delta.shape[2:])[:, None]


def fraction(value: float, norm: str = "linf") -> str:
    """A radius as papers print it: l-inf on the 8-bit grid as "8/255", others as decimals."""
    levels = value * 255
    if norm == "linf" and abs(levels - round(levels)) < 1e-6:
        return f"{round(levels)}/255" if round(levels) else "0"
    return f"{value:.4g}"

"""How far a protected image may lie from its clean one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

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

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> Budget | BudgetSum:
        """What `facts` was said of."""
        norm, epsilon = facts.get("norm") or "none", facts.get("epsilon")
        if isinstance(epsilon, list):
            norms = cast("list[Norm]", norm.split("+"))
            return add_up(Budget(part, radius) for part, radius in zip(norms, epsilon, strict=True))
        return Budget(norm, math.inf if epsilon is None else epsilon)

    def __str__(self) -> str:
        sign = {"linf": "l∞", "l2": "l2", "l0": "l0"}.get(self.norm)
        return "none" if sign is None else f"{sign} {fraction(self.epsilon, self.norm)}"

    def facts(self) -> dict[str, Any]:
        """Fit for JSON: `norm`, and `epsilon`, which is None where there is no bound."""
        return {"norm": self.norm, "epsilon": None if self.norm == "none" else self.epsilon}

    @property
    def parts(self) -> tuple[Budget, ...]:
        """The balls it consists of."""
        return (self,)

    def __add__(self, other: Budget | BudgetSum) -> Budget | BudgetSum:
        """What the sum of two perturbations keeps, one of each budget."""
        return add_up((*self.parts, *other.parts))

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
            return self.keep_pixels(delta, delta.abs().amax(dim=1))
        return delta

    def oversteps(self, delta: Tensor) -> Tensor:
        """Which perturbations lie outside by more than the round-off of float32, (n,) bool."""
        if self.norm == "none":
            return torch.zeros(len(delta), dtype=torch.bool, device=delta.device)
        return self.size(delta) > self.epsilon * (1 + 1e-4) + 1e-6

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
            return _shorten(levels, self.epsilon * 255)
        if self.norm == "l0":
            return self.keep_pixels(levels, levels.abs().amax(dim=1))
        return levels

    def contains(self, levels: Tensor) -> Tensor:
        """Which images' integer differences lie inside the budget, (n,) bool."""
        return self.project_levels(levels).eq(levels).flatten(1).all(dim=1)

    def keep_pixels(self, delta: Tensor, weight: Tensor) -> Tensor:
        """Keep epsilon pixels of each image and zero the others.

        Args:
            delta: (n, 3, h, w).
            weight: (n, h, w), the heaviest pixels stay; among equals the first in reading order.
        """
        count = int(min(self.epsilon, delta.shape[2] * delta.shape[3]))
        flat = weight.double().flatten(1)
        order = flat.sort(dim=1, descending=True, stable=True).indices[:, :count]
        kept = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order, True)
        return delta * kept.unflatten(1, delta.shape[2:])[:, None]


@dataclass(frozen=True)
class BudgetSum:
    """What a sum of perturbations keeps, one from each of several balls.

    Attributes:
        parts: balls of different norms, in the order l-inf, l2, l0; made by `add_up`.
    """

    parts: tuple[Budget, ...]

    def __str__(self) -> str:
        return " + ".join(map(str, self.parts))

    def __add__(self, other: Budget | BudgetSum) -> Budget | BudgetSum:
        """With one more."""
        return add_up((*self.parts, *other.parts))

    def facts(self) -> dict[str, Any]:
        """Fit for JSON: `norm` as "linf+l2", and `epsilon` as the list of radii."""
        return {"norm": self.norm, "epsilon": [part.epsilon for part in self.parts]}

    @property
    def norm(self) -> str:
        """The norms, as "linf+l2"."""
        return "+".join(part.norm for part in self.parts)

    def oversteps(self, delta: Tensor) -> Tensor:
        """Which perturbations lie outside once they are rounded to grey levels, (n,) bool."""
        return ~self.contains((delta * 255).round().to(torch.int16))

    def project_levels(self, levels: Tensor) -> Tensor:
        """A near perturbation inside the sum, on the 8-bit lattice.

        A component's first levels are paid by the l-inf ball, which is free of charge; what is
        left of the most changed pixels by the l0 ball, and the rest by the l2 ball.

        Args:
            levels: (n, 3, h, w) integer differences in grey levels, int16.

        Returns:
            Integer differences of the same shape, never larger than before in any component.
        """
        kept, rest = torch.zeros_like(levels), levels
        for part in sorted(self.parts, key=lambda part: ("linf", "l0", "l2").index(part.norm)):
            if part.norm == "l0":  # by energy, so that as little as possible is left for l2
                paid = part.keep_pixels(rest, rest.double().square().sum(dim=1))
            else:
                paid = part.project_levels(rest)
            kept, rest = kept + paid, rest - paid
        return kept

    def contains(self, levels: Tensor) -> Tensor:
        """Which images' integer differences lie inside the sum, (n,) bool."""
        return self.project_levels(levels).eq(levels).flatten(1).all(dim=1)


def add_up(parts: Iterable[Budget]) -> Budget | BudgetSum:
    """The sum of balls: radii of one norm add up, and no bound beside others is no bound."""
    radii: dict[Norm, float] = {}
    for part in parts:
        radii[part.norm] = radii.get(part.norm, 0.0) + part.epsilon
    if "none" in radii:
        return Budget("none")
    order: tuple[Norm, ...] = ("linf", "l2", "l0")
    balls = tuple(Budget(norm, radii[norm]) for norm in order if radii.get(norm))
    if len(balls) > 1:
        return BudgetSum(balls)
    return balls[0] if balls else Budget("linf", 0.0)


def _shorten(levels: Tensor, radius: float) -> Tensor:
    """Integer differences of an l2 norm of at most `radius` levels, near the given ones.

    Rounding a perturbation of full length overshoots by a fraction of a per cent, for which
    single levels of the largest components make up; only what is much too long is scaled first.
    """
    most = radius * radius * (1 + 1e-9)
    flat = levels.flatten(1).long()
    size = flat.square().sum(1).double().sqrt()
    factor = (radius / size.clamp_min(1e-12)).clamp_max(1.0)[:, None]
    scaled = (flat * factor).round().long()
    flat = torch.where(size[:, None] > 1.05 * radius, scaled, flat)
    rows = (flat.square().sum(1) > most).nonzero().flatten()
    while len(rows):
        flat[rows] = _less_by_one(flat[rows], most)
        rows = rows[flat[rows].square().sum(1) > most]
    return flat.to(levels.dtype).reshape(levels.shape)


def _less_by_one(flat: Tensor, most: float) -> Tensor:
    """Take one level off as many components, the largest first, as the excess asks for."""
    size = flat.abs()
    order = size.sort(dim=1, descending=True, stable=True)
    gain = (2 * order.values - 1).clamp_min(0).cumsum(1)
    excess = flat.square().sum(1, keepdim=True) - most
    before = torch.cat([torch.zeros_like(gain[:, :1]), gain[:, :-1]], 1)
    chosen = (before < excess) & (order.values > 0)
    taken = torch.zeros_like(flat).scatter_(1, order.indices, chosen.long())
    return flat - taken * flat.sign()


def fraction(value: float, norm: str = "linf") -> str:
    """A radius as papers print it: l-inf on the 8-bit grid as "8/255", others as decimals."""
    levels = value * 255
    if norm == "linf" and abs(levels - round(levels)) < 1e-6:
        return f"{round(levels)}/255" if round(levels) else "0"
    return f"{value:.4g}"

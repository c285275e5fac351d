"""From a perturbation to released 8-bit images, and the audit that goes with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.budget import Budget, BudgetSum
from bench.data import ImageDataset, chunks, portion
from bench.seeding import stream


class OverstepError(ValueError):
    """A method returned a perturbation outside its own budget; nothing is released."""


class Released(NamedTuple):
    """What a victim may see, and what was measured on it.

    Attributes:
        images: (n, 3, h, w) uint8.
        audit: numbers fit for JSON; see `audit`.
    """

    images: Tensor
    audit: dict[str, Any]


def draw_mask(
    labels: Tensor, poison_ratio: float, craft_seed: int, classes: Sequence[int] | None = None
) -> Tensor:
    """Which images are protected; a larger ratio protects a superset.

    Args:
        labels: (n,) int64.
        poison_ratio: share of them, or of those in the given classes.
        craft_seed: of the draw.
        classes: only images of these are protected; None means all.

    Returns:
        (n,) bool.
    """
    order = torch.randperm(len(labels), generator=stream(craft_seed, "mask"))
    if classes is not None:
        order = order[torch.isin(labels[order], torch.tensor(classes, dtype=torch.int64))]
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[order[: round(len(order) * poison_ratio)]] = True
    return mask


def release(
    dataset: ImageDataset,
    delta: Tensor,
    mask: Tensor,
    budget: Budget | BudgetSum,
    place: Tensor | None = None,
) -> Released:
    """Add delta, round to 8 bits, and hold the result to the budget exactly.

    Rounding moves a component by up to half a grey level. For l-inf with a whole number of levels
    it cannot leave the budget; for other budgets the integer differences are projected again, on
    the lattice.

    Args:
        dataset: the clean images, uint8.
        delta: (n, 3, h, w) float32 in units of [0, 1].
        mask: (n,) bool; rows outside stay byte for byte.
        budget: the method's.
        place: (n, 3, h, w) uint8, overwritten with the released images; it may be a mapped file.
            In memory if left out.

    Raises:
        OverstepError: if delta is of another shape, is not a number somewhere, or leaves the
            budget by more than the round-off of float32.
    """
    if delta.shape != dataset.images.shape:
        wanted = tuple(dataset.images.shape)
        raise OverstepError(f"delta has shape {tuple(delta.shape)}, the images {wanted}")
    images = torch.empty_like(dataset.images) if place is None else place
    images.copy_(dataset.images)
    for rows in chunks(mask.nonzero().flatten(), portion(delta)):
        clean, change = dataset.images[rows], delta[rows].detach().float().cpu()
        _refuse(change, budget, rows)
        wished = (clean.float() + change * 255).round().clamp(0, 255)
        levels = (wished - clean).to(torch.int16)
        levels = budget.project_levels(levels)
        images[rows] = (clean.to(torch.int16) + levels).to(torch.uint8)
    return Released(images, audit(dataset.images, images, mask, budget))


def _refuse(delta: Tensor, budget: Budget | BudgetSum, rows: Tensor) -> None:
    wrong = ~delta.isfinite().flatten(1).all(dim=1)
    if wrong.any():
        raise OverstepError(
            f"delta of {int(wrong.sum())} images, first row {int(rows[wrong][0])}, is not finite"
        )
    over = budget.oversteps(delta)
    if over.any():
        first = delta[over][:1]
        sizes = [f"{norm} {float(Budget(norm).size(first)):.5g}" for norm in ("linf", "l2", "l0")]
        raise OverstepError(
            f"delta of {int(over.sum())} images oversteps the budget {budget}: "
            f"row {int(rows[over][0])} has {', '.join(sizes)}"
        )


def audit(
    clean: Tensor, released: Tensor, mask: Tensor, budget: Budget | BudgetSum
) -> dict[str, Any]:
    """Measure released images against clean ones, after 8 bits.

    Args:
        clean: (n, 3, h, w) uint8.
        released: the same shape.
        mask: (n,) bool, the rows that count as protected.
        budget: what they were held to.

    Returns:
        Over protected images: `max_linf`, `mean_linf`, `max_l2`, `mean_l2` in units of [0, 1],
        `max_l0`, `mean_l0` in pixels, `max_levels` in grey levels, `share_changed` of components,
        `constant_images` (all pixels equal though the clean ones were not), `within_budget`, and
        `nan`, which is 0, since a delta with any is refused; and `protected_images`,
        `changed_outside_mask`, over all.
    """
    sums = {"linf": 0.0, "l2": 0.0, "l0": 0.0}
    most = {"linf": 0.0, "l2": 0.0, "l0": 0.0}
    changed = constant = 0
    within = True
    rows_of = mask.nonzero().flatten()
    for rows in chunks(rows_of, portion(clean)):
        levels = released[rows].to(torch.int16) - clean[rows].to(torch.int16)
        delta = levels.float() / 255
        for norm in ("linf", "l2", "l0"):
            size = Budget(norm).size(delta)
            sums[norm] += float(size.sum())
            most[norm] = max(most[norm], float(size.max()))
        changed += int(levels.ne(0).sum())
        flat = _is_constant(released[rows]) & ~_is_constant(clean[rows])
        constant += int(flat.sum())
        within &= bool(budget.contains(levels).all())
    outside = 0
    for rows in chunks((~mask).nonzero().flatten(), portion(clean)):
        outside += int((released[rows] != clean[rows]).flatten(1).any(1).sum())
    count = max(len(rows_of), 1)
    return {
        "protected_images": len(rows_of),
        **{f"max_{norm}": most[norm] for norm in most},
        **{f"mean_{norm}": sums[norm] / count for norm in sums},
        "max_levels": round(most["linf"] * 255),
        "share_changed": changed / (count * clean[0].numel()),
        "constant_images": constant,
        "nan": 0,
        "within_budget": within,
        "changed_outside_mask": outside,
    }


def _is_constant(images: Tensor) -> Tensor:
    flat = images.flatten(1)
    return flat.amax(1) == flat.amin(1)

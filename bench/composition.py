"""Several methods in one: `a+b` lays the perturbations of both over the clean images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.budget import Budget, BudgetSum, add_up
from bench.crafting import Crafting
from bench.data import ImageDataset, chunks, portion
from bench.joined import Joined
from bench.method import Method


@dataclass(frozen=True)
class Composition(Joined[Method], Method):
    """Perturbations that are crafted on the clean images independently, and added.

    Every part is crafted and released as if it stood alone, so that its 8-bit images are shared
    with a run of that part; then

        x' = clip(x + delta_1 + delta_2 + ...)

    except that parts that set pixels (`Method.overwrites`) set them last, in the order in which
    they stand: as SEP's Table 3 mixes l-inf with l2 and with a pixel. The budget is the sum of the
    budgets. What parts report is in their own audits.

    Parts share no draws because each method names its streams, not because their seeds differ: a
    part's set is then the one that it has alone.
    """

    @property
    def budget(self) -> Budget | BudgetSum:
        """The sum of the parts' budgets."""
        return add_up(ball for part in self.parts for ball in part.budget.parts)

    def craft(self, job: Crafting) -> Tensor:
        """The sum, in whole grey levels."""
        clean = job.dataset
        layers = [job.part(number) for number in range(len(self.parts))]
        pixels = self.set_pixels(job)
        delta = job.blank()
        for rows in chunks(job.mask.nonzero().flatten(), portion(delta)):
            images, labels = clean.images[rows], clean.labels[rows]
            laid = self.lay(images, [layer[rows] for layer in layers], pixels, labels)
            delta[rows] = (laid.to(torch.int16) - images).float() / 255
        return delta

    def set_pixels(self, job: Crafting) -> list[Tensor | None]:
        """For each part the pixels that it sets, (classes, h, w) bool, or None if it adds."""
        return [
            changed_pixels(job.dataset, job.part(number), job.mask) if part.overwrites else None
            for number, part in enumerate(self.parts)
        ]

    def lay(
        self,
        clean: Tensor,
        layers: Sequence[Tensor],
        pixels: Sequence[Tensor | None],
        labels: Tensor,
    ) -> Tensor:
        """Lay what the parts made of images over each other.

        Args:
            clean: (b, 3, h, w) uint8.
            layers: the same images as each part released them.
            pixels: from `set_pixels`.
            labels: (b,), whose pixels are set.

        Returns:
            (b, 3, h, w) uint8.
        """
        laid = clean.to(torch.int16)
        for layer, chosen in zip(layers, pixels, strict=True):
            if chosen is None:
                laid = laid + layer.to(torch.int16) - clean
        for layer, chosen in zip(layers, pixels, strict=True):
            if chosen is not None:
                laid = torch.where(chosen[labels][:, None], layer.to(torch.int16), laid)
        return laid.clamp(0, 255).to(torch.uint8)


def parts_of(method: Method) -> Sequence[Method]:
    """The methods that one is composed of; none for a method of its own."""
    return method.parts if isinstance(method, Composition) else ()


def changed_pixels(clean: ImageDataset, released: Tensor, mask: Tensor) -> Tensor:
    """Which pixels are changed in any protected image of each class.

    An image whose pixel had the wanted colour already is not changed there, hence the class.

    Args:
        clean: the clean images.
        released: (n, 3, h, w) uint8.
        mask: (n,) bool.

    Returns:
        (classes, h, w) bool.
    """
    changed = torch.zeros(len(clean.classes), *clean.image_size, dtype=torch.bool)
    for label in range(len(clean.classes)):
        members = (mask & (clean.labels == label)).nonzero().flatten()
        for rows in chunks(members, portion(clean.images)):
            changed[label] |= released[rows].ne(clean.images[rows]).any(1).any(0)
    return changed

"""Test images that carry a class's perturbation: did a victim learn the shortcut?

A victim that has learned it classifies an image by the perturbation that it carries: it is right
where that is the one of the image's own class, and follows it where it is another's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.crafting import Crafting
from bench.data import ImageDataset, chunks, portion
from bench.method import Method


def imprinted(
    method: Method, job: Crafting, released: Tensor, test: ImageDataset, shift: int
) -> ImageDataset | None:
    """Clean test images that carry the perturbation of class y + shift mod K.

    Where a method does not say how its shortcut is put on an image (`Method.imprint`), the
    perturbations of protected training images of that class are lent, one after the other.

    Args:
        method: whose perturbation.
        job: as it was crafted.
        released: (n, 3, h, w) uint8, what came of it.
        test: clean test images with their true labels y.
        shift: 0 for the own class's perturbation.

    Returns:
        The images under their true labels, or None if a class has no protected image to lend.
    """
    carried = (test.labels + shift) % len(test.classes)
    lenders = _lenders(job, carried)
    if lenders is None:
        return None
    images = torch.empty_like(test.images)
    for rows in chunks(torch.arange(len(test)), portion(test.images)):
        stamped = method.imprint(
            job,
            test.images[rows].to(job.device, memory_format=torch.channels_last),
            carried[rows].to(job.device),
        )
        if stamped is None:
            lender = lenders[rows]
            clean = job.dataset.images[lender].to(torch.int16)
            delta = released[lender].to(torch.int16) - clean
            stamped = (test.images[rows].to(torch.int16) + delta).clamp(0, 255)
        images[rows] = stamped.to("cpu", torch.uint8)
    return test.with_images(images)


def _lenders(job: Crafting, labels: Tensor) -> Tensor | None:
    """For each label a protected training image of that class, in turns; None if one has none."""
    lenders = torch.empty_like(labels)
    for label in labels.unique():
        members = (job.mask & (job.dataset.labels == label)).nonzero().flatten()
        if not len(members):
            return None
        places = (labels == label).nonzero().flatten()
        lenders[places] = members[torch.arange(len(places)) % len(members)]
    return lenders

"""Test images that carry a class's perturbation: did a victim learn the shortcut?

A victim that has learned it classifies an image by the perturbation that it carries: it is right
where that is the one of the image's own class, and follows it where it is another's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.composition import Composition
from bench.crafting import Crafting
from bench.data import ImageDataset, chunks, portion
from bench.method import Method


def imprinted(
    method: Method, job: Crafting, released: Tensor, test: ImageDataset, carried: Tensor
) -> ImageDataset:
    """Clean test images that carry the perturbations of given classes.

    Where a method does not say how its shortcut is put on an image (`Method.imprint`), the
    perturbations of protected training images of that class are lent, one after the other. The
    parts of a composition are put on separately and laid over each other as in crafting.

    Args:
        method: whose perturbation.
        job: as it was crafted.
        released: (n, 3, h, w) uint8, what came of it.
        test: clean test images with their true labels.
        carried: (n,) int64, whose perturbation each of them shall carry; classes that have a
            protected image.

    Returns:
        The images under their true labels.
    """
    if isinstance(method, Composition):
        layers = [
            imprinted(part, job, job.part(number), test, carried).images
            for number, part in enumerate(method.parts)
        ]
        laid = method.lay(test.images, layers, method.set_pixels(job), carried)
        return test.with_images(laid)
    lenders = _lenders(job, carried)
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


def protected_classes(job: Crafting) -> Tensor:
    """Indices of the classes that have a protected image, rising."""
    return job.dataset.labels[job.mask].unique()


def _lenders(job: Crafting, labels: Tensor) -> Tensor:
    """For each label a protected training image of that class, in turns."""
    lenders = torch.empty_like(labels)
    for label in labels.unique():
        members = (job.mask & (job.dataset.labels == label)).nonzero().flatten()
        places = (labels == label).nonzero().flatten()
        lenders[places] = members[torch.arange(len(places)) % len(members)]
    return lenders

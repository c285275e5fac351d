"""Images with labels, before and after protection, and where a data set comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from bench.component import Component
from bench.seeding import stream


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Images and their labels; checks itself when made.

    Attributes:
        images: (n, 3, h, w) uint8. Only what a defense prepared may be float32, in units of
            [0, 1] that it may leave.
        labels: (n,) int64, indices into `classes`.
        classes: the names, in label order.
        name: what to call it in tables.
        mean: per channel, of clean training images in [0, 1]; the networks' first layer uses it.
        std: per channel.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images have shape {tuple(images.shape)}, not (n, 3, h, w)")
        if images.dtype not in (torch.uint8, torch.float32):
            raise ValueError(f"images are {images.dtype}, not uint8")
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            raise ValueError(
                f"labels are {labels.dtype} of shape {tuple(labels.shape)}, "
                f"not int64 of shape ({len(images)},)"
            )
        if len(images) == 0:
            raise ValueError(f"dataset '{self.name}' has no images")
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
            raise ValueError(
                f"labels run from {int(labels.min())} to {int(labels.max())}, "
                f"but there are {len(self.classes)} classes"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[2], self.images.shape[3]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of shape, pixels, labels and class names: what the data is, not where."""
        sha = hashlib.sha256(repr((tuple(self.images.shape), self.classes)).encode())
        sha.update(self.images.contiguous().numpy().data)
        sha.update(self.labels.contiguous().numpy().data)
        return sha.hexdigest()

    def subset(self, rows: Tensor) -> ImageDataset:
        """The given rows, (m,) int64, in the given order."""
        return replace(self, images=self.images[rows], labels=self.labels[rows])

    def with_images(self, images: Tensor) -> ImageDataset:
        """The same labels under other images."""
        return replace(self, images=images)


class Splits(NamedTuple):
    """A data set as its authors cut it."""

    train: ImageDataset
    test: ImageDataset


Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Places:
    """Where images may lie and where decoded ones are kept.

    Attributes:
        data_dir: the user's folder of data sets, searched first; downloads go there.
        cache_dir: decoded arrays, safe to delete.
        download: whether the network may be used.
        progress: called while something takes long.
    """

    data_dir: Path
    cache_dir: Path
    download: bool = True
    progress: Progress = lambda what, done, total: None


class DatasetSource(Component):
    """A registered data set; its fields say which one exactly, never where it lies."""

    measured_statistics: ClassVar[bool] = False
    """Whether `mean` and `std` are measured on the images rather than published constants, which
    are part of the code: who changes one raises `grid.SCHEMA`."""

    protected_classes: ClassVar[tuple[str, ...]] = ()
    """The only classes that are protected unless asked otherwise; none stand for all."""

    def load(self, places: Places) -> Splits:
        """Find, decode or download it.

        Raises:
            UsageError: one line with where it looked and what to do.
        """
        raise NotImplementedError


def balanced_rows(labels: Tensor, count: int | None) -> Tensor:
    """Row numbers of a class-balanced random subset, sorted; None or too many means all rows.

    The draw belongs to the data: it depends on labels and count alone, never on a run's seed, so
    that everybody's small runs use the same images.
    """
    if count is None or count >= len(labels):
        return torch.arange(len(labels))
    order = torch.randperm(len(labels), generator=stream(0, "subset"))
    shuffled = labels[order]
    # Rank of each image inside its class, in shuffled order; the smallest ranks are taken.
    by_class = shuffled.sort(stable=True).indices
    sizes = torch.bincount(shuffled)
    starts = sizes.cumsum(0) - sizes
    rank = torch.empty_like(order)
    rank[by_class] = torch.arange(len(order)) - starts.repeat_interleave(sizes)
    return order[rank.sort(stable=True).indices[:count]].sort().values


def chunks(rows: Tensor, size: int) -> Iterator[Tensor]:
    """Cut row numbers into pieces of at most `size`, in order; none of them is empty."""
    if len(rows):
        yield from rows.split(size)


def portion(images: Tensor) -> int:
    """How many images to handle at once where nothing else decides: 16 million values.

    Args:
        images: (n, 3, h, w).

    Returns:
        A multiple of 16: PyTorch draws normal numbers in blocks of 16.
    """
    return max(2**24 // images[0].numel() // 16 * 16, 16)


def to_unit(images: Tensor) -> Tensor:
    """uint8 grey levels to float32 in [0, 1]; float32 passes unchanged."""
    return images if images.dtype == torch.float32 else images.float() / 255


def to_levels(images: Tensor) -> Tensor:
    """[0, 1] to uint8 grey levels by rounding to the nearest; values outside are clipped."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def as_levels(images: Tensor) -> Tensor:
    """Images of a dataset as uint8 grey levels, whatever its dtype."""
    return images if images.dtype == torch.uint8 else to_levels(images)

"""A data set made on the spot, for tests and first tries: smooth patterns under shift and noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from bench.component import setting
from bench.data import DatasetSource, ImageDataset, Places, Splits, to_levels
from bench.decoded import channel_statistics
from bench.registry import DATASETS
from bench.seeding import stream

_COARSE = 4
"""Cells along each side of the coarse grid from which a smooth pattern is interpolated."""


MOST_PIXELS = 10**9
"""Some seventy times as many as CIFAR-10 has."""


@DATASETS.register("synthetic")
@dataclass(frozen=True)
class Synthetic(DatasetSource):
    """Smooth colour patterns, one per class, shifted, faded and noisy; needs no files.

    An image of class c is

        0.5 + contrast * roll(pattern_c, shift) + noise * normal,

    with contrast and shift drawn for each image. Shifts keep one pixel from giving the class
    away; a small convolutional network still learns it within a few epochs.
    """

    measured_statistics: ClassVar[bool] = True

    classes: int = setting(4, "number of classes, at least 2")
    train: int = setting(200, "training images")
    test: int = setting(100, "test images")
    size: int = setting(16, "height and width in pixels")
    noise: float = setting(0.08, "standard deviation of the pixel noise, in units of [0, 1]")

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise ValueError(f"classes={self.classes}: there must be at least 2")
        if min(self.train, self.test) < self.classes:
            raise ValueError(
                f"train={self.train} and test={self.test} must each hold every one of the "
                f"{self.classes} classes"
            )
        if self.size < _COARSE:
            raise ValueError(f"size={self.size}: there must be at least {_COARSE} pixels")
        if (self.train + self.test + self.classes) * self.size**2 > MOST_PIXELS:
            raise ValueError(
                f"train={self.train}, test={self.test} and size={self.size} are more than the "
                f"{MOST_PIXELS} pixels that are drawn"
            )
        if self.noise < 0:
            raise ValueError(f"noise={self.noise}: it must not be negative")

    def load(self, places: Places) -> Splits:
        """Draw both halves; the same settings give the same images, whatever a run's seed."""
        del places  # nothing is read or kept
        coarse = (self.classes, 3, _COARSE, _COARSE)
        grid = torch.randn(coarse, generator=stream(0, "synthetic", "patterns"), dtype=torch.double)
        patterns = interpolate(grid, size=(self.size, self.size), mode="bilinear")
        # One scale for all classes, or the fainter ones would be harder by accident.
        patterns -= patterns.mean(dim=(1, 2, 3), keepdim=True)
        patterns *= 0.2 / patterns.std(dim=(1, 2, 3), keepdim=True)

        train = self._draw(patterns, self.train, "train")
        test = self._draw(patterns, self.test, "test")
        names = tuple(f"pattern {index}" for index in range(self.classes))
        about = (names, self.name, *channel_statistics(train))
        return Splits(
            ImageDataset(train, self._labels(self.train), *about),
            ImageDataset(test, self._labels(self.test), *about),
        )

    def _labels(self, count: int) -> Tensor:
        """(count,) int64: 0, 1, ..., 0, 1, ..., so that every stretch is balanced."""
        return torch.arange(count) % self.classes

    def _draw(self, patterns: Tensor, count: int, half: str) -> Tensor:
        """Images of one half.

        Args:
            patterns: (classes, 3, size, size) float64, of zero mean.
            count: how many images.
            half: `train` or `test`; each has its own stream.

        Returns:
            (count, 3, size, size) uint8.
        """
        draws = stream(0, "synthetic", half)
        reach = self.size // 4
        shifts = torch.randint(-reach, reach + 1, (count, 2), generator=draws).tolist()
        contrast = 0.6 + 0.8 * torch.rand(count, 1, 1, 1, generator=draws, dtype=torch.double)
        rows = zip(self._labels(count).tolist(), shifts, strict=True)
        images = torch.stack([patterns[label].roll(shift, (1, 2)) for label, shift in rows])
        noise = torch.randn(images.shape, generator=draws, dtype=torch.double)
        return to_levels(0.5 + contrast * images + self.noise * noise)

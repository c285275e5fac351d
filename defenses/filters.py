"""Local filters that keep edges: train on smoothed images.

*Robust Unlearnable Examples* (Fu et al., ICLR 2022) tries a median over 3 x 3 pixels and a
bilateral filter over 9 pixels with both deviations 75, before augmentation. *Image Shortcut
Squeezing* has columns of such names, but its filters come behind the conversion to tensors and do
not do what they are called by.

Median: each channel of a pixel becomes the median of its window.
Bilateral (Tomasi and Manduchi, ICCV 1998): a pixel p becomes the weighted mean of the pixels q in a
disc around it, with a weight that falls with their distance and with their difference in colour,

    w(p, q) = exp(-|p - q|^2 / (2 sigma_space^2)) exp(-|x_p - x_q|_1^2 / (2 sigma_colour^2)),

the l1 difference over the three channels in grey levels, as in OpenCV. Borders are mirrored without
repeating them, and the results rounded to 8 bits. OpenCV does so for its bilateral filter, but its
median repeats the outermost pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.component import setting
from bench.data import ImageDataset, as_levels, chunks, portion, to_levels, to_unit
from bench.defense import ImageFilter, check_window
from bench.registry import DEFENSES


@dataclass(frozen=True)
class LocalFilter(ImageFilter):
    """A filter that replaces every pixel by something of its neighbourhood."""

    @property
    def side(self) -> int:
        """Of the neighbourhood, in pixels, odd."""
        raise NotImplementedError

    def smooth(self, images: Tensor) -> Tensor:
        """Grey levels (b, 3, h, w) float32 to the like, not yet rounded."""
        raise NotImplementedError

    def prepare(self, dataset: ImageDataset, stream: torch.Generator) -> ImageDataset:
        """Filter every image and round it to 8 bits."""
        del stream
        self.check(dataset)
        levels = as_levels(dataset.images)
        changed = torch.empty_like(levels)
        # A filter holds a copy of its images for every place of the window.
        for rows in chunks(torch.arange(len(dataset)), max(portion(levels) // self.side**2, 1)):
            changed[rows] = self._rounded(levels[rows])
        return dataset.with_images(changed)

    def shown(self, images: Tensor) -> Tensor:
        """Filtered and rounded, as stored images are."""
        return to_unit(self._rounded(to_levels(images)))

    def _rounded(self, levels: Tensor) -> Tensor:
        return self.smooth(levels.float()).round().to(torch.uint8)


@DEFENSES.register("median-filter")
@dataclass(frozen=True)
class MedianFilter(LocalFilter):
    """Trains on images under a median filter; test images stay as they are unless asked for."""

    paper: ClassVar[str] = "Fu et al., Robust Unlearnable Examples, ICLR 2022"

    kernel: int = setting(3, "side of the window, in pixels, odd")

    def __post_init__(self) -> None:
        _check_odd("kernel", self.kernel)

    def check(self, train: ImageDataset) -> None:
        """A mirrored border cannot be wider than the image."""
        check_window("median-filter: kernel", self.kernel, train)

    @property
    def side(self) -> int:
        """Of the window."""
        return self.kernel

    def smooth(self, images: Tensor) -> Tensor:
        """Every component by the median of its window."""
        return torch.stack(list(_neighbours(images, self.kernel).values())).median(dim=0).values


@DEFENSES.register("bilateral-filter")
@dataclass(frozen=True)
class BilateralFilter(LocalFilter):
    """Trains on images smoothed within regions of one colour; test images stay unless asked for."""

    paper: ClassVar[str] = "Fu et al., Robust Unlearnable Examples, ICLR 2022"

    diameter: int = setting(9, "of the disc, in pixels, odd")
    sigma_colour: float = setting(75.0, "deviation of the weight of colours, in grey levels")
    sigma_space: float = setting(75.0, "deviation of the weight of distances, in pixels")

    def __post_init__(self) -> None:
        _check_odd("diameter", self.diameter)
        if not (self.sigma_colour > 0 and self.sigma_space > 0):
            raise ValueError("sigma_colour and sigma_space must be above 0")

    def check(self, train: ImageDataset) -> None:
        """A mirrored border cannot be wider than the image."""
        check_window("bilateral-filter: diameter", self.diameter, train)

    @property
    def side(self) -> int:
        """Of the disc."""
        return self.diameter

    def smooth(self, images: Tensor) -> Tensor:
        """Every pixel by the weighted mean of its disc."""
        total, weights = torch.zeros_like(images), torch.zeros_like(images[:, :1])
        for (down, right), shifted in _neighbours(images, self.diameter).items():
            distance = math.hypot(down, right)
            if distance > self.diameter // 2:
                continue
            difference = (shifted - images).abs().sum(1, keepdim=True)
            exponent = (difference / self.sigma_colour) ** 2 + (distance / self.sigma_space) ** 2
            weight = (-exponent / 2).exp()
            total += weight * shifted
            weights += weight
        return total / weights


def _neighbours(images: Tensor, size: int) -> dict[tuple[int, int], Tensor]:
    """The images moved to every place of a window, by how far down and right one looks."""
    reach, (height, width) = size // 2, images.shape[2:]
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    return {
        (row - reach, column - reach): padded[:, :, row : row + height, column : column + width]
        for row in range(size)
        for column in range(size)
    }


def _check_odd(name: str, size: int) -> None:
    if size < 1 or size % 2 == 0:
        raise ValueError(f"{name}={size} must be odd and positive")

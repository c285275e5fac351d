"""Gaussian smoothing: blur the released images once, then train as usual.

A low-pass filter against perturbations of high frequency, tried in SEP (ICLR 2023, Table 6), in
*Image Shortcut Squeezing* and in APBench. Each colour channel is convolved with

    k(i, j) proportional to exp(-(i^2 + j^2) / (2 sigma^2)),   |i|, |j| <= 2,   sum k = 1,

with the border mirrored, and the result is rounded to 8 bits, since it stands for stored images.

SEP gives the side, 5 pixels, but not sigma; 1.1 is OpenCV's choice for that side, and the taps are
.0708 .2445 .3695 .2445 .0708 along each axis. Nor does it say whether test images were smoothed;
here they stay sharp, and `test=yes` smooths them alike. Beware of published columns named Gaussian:
those of Image Shortcut Squeezing, APBench and AVATAR pass sigma = 0.1, for which the filter is the
identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.component import setting
from bench.data import ImageDataset, portion, to_levels, to_unit
from bench.defense import ImageFilter, check_window
from bench.registry import DEFENSES


@DEFENSES.register("gaussian-blur")
@dataclass(frozen=True)
class GaussianBlur(ImageFilter):
    """Trains on blurred images; test images stay sharp unless `test` says otherwise."""

    paper: ClassVar[str] = "Chen et al., Self-Ensemble Protection, ICLR 2023 (its Table 6)"

    kernel: int = setting(5, "side of the filter, in pixels, odd")
    sigma: float = setting(1.1, "standard deviation of the filter, in pixels")

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel} must be odd and positive")
        if not self.sigma > 0:
            raise ValueError(f"sigma={self.sigma:g} must be above 0")

    def check(self, train: ImageDataset) -> None:
        """A mirrored border cannot be wider than the image."""
        check_window("gaussian-blur: kernel", self.kernel, train)

    def prepare(self, dataset: ImageDataset, stream: torch.Generator) -> ImageDataset:
        """Blur every image; uint8 stays uint8, to the nearest level."""
        del stream
        self.check(dataset)
        parts = dataset.images.split(portion(dataset.images))
        return dataset.with_images(torch.cat([self._blurred(part) for part in parts]))

    def shown(self, images: Tensor) -> Tensor:
        """Blurred and rounded, as stored images are."""
        return to_unit(self._blurred(to_levels(images)))

    def _blurred(self, images: Tensor) -> Tensor:
        from torchvision.transforms.v2.functional import gaussian_blur

        # torchvision computes in float32 and rounds when it was given whole levels.
        return gaussian_blur(images, [self.kernel] * 2, [self.sigma] * 2)

"""Grayscale: train on images without colour.

Liu, Zhuoran, et al. "Image Shortcut Squeezing: Countering Perturbative Availability Poisons with
Compression", ICML 2023. The three channels become their luma,

    Y = .299 R + .587 G + .114 B,

rounded to 8 bits. The test images keep their colours, as in that paper and in APBench; CUDA's
figures are on gray test images, which is `test=yes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.component import setting
from bench.data import ImageDataset, chunks, portion, to_levels
from bench.defense import ImageFilter
from bench.registry import DEFENSES

LUMA = (0.299, 0.587, 0.114)


@DEFENSES.register("grayscale")
@dataclass(frozen=True)
class Grayscale(ImageFilter):
    """Trains on gray images, in three equal channels."""

    paper: ClassVar[str] = "Liu et al., Image Shortcut Squeezing, ICML 2023"

    test: bool = setting(False, "whether test images lose their colours, too")

    def prepare(self, dataset: ImageDataset, stream: torch.Generator) -> ImageDataset:
        """Replace each channel by the luma."""
        del stream
        gray = torch.empty_like(dataset.images)
        for rows in chunks(torch.arange(len(dataset)), portion(gray)):
            images = dataset.images[rows]
            shades = luma(images.float())
            if gray.dtype == torch.uint8:
                shades = to_levels(shades / 255)
            gray[rows] = shades.expand_as(images)
        return dataset.with_images(gray)

    def shown(self, images: Tensor) -> Tensor:
        """The luma, without rounding."""
        return luma(images).expand_as(images)


def luma(images: Tensor) -> Tensor:
    """Brightness of float images (b, 3, h, w), as (b, 1, h, w) in the same units."""
    weights = torch.tensor(LUMA, device=images.device).reshape(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)

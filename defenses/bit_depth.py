"""Bit depth: train on images with a few grey levels.

Liu, Zhuoran, et al. "Image Shortcut Squeezing: Countering Perturbative Availability Poisons with
Compression", ICML 2023. The b highest bits of every 8-bit component stay and the others become
zero: for b = 2 the levels 0, 64, 128, 192. It is no rounding to the nearest, so images grow darker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from bench.component import setting
from bench.data import ImageDataset, as_levels
from bench.defense import Defense
from bench.registry import DEFENSES


@DEFENSES.register("bit-depth")
@dataclass(frozen=True)
class BitDepth(Defense):
    """Trains on images whose low bits are cleared."""

    paper: ClassVar[str] = "Liu et al., Image Shortcut Squeezing, ICML 2023"

    bits: int = setting(2, "b, how many of the 8 bits stay")

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits={self.bits} must lie between 1 and 8")

    def prepare(self, dataset: ImageDataset, stream: torch.Generator) -> ImageDataset:
        """Clear the low bits."""
        del stream
        return dataset.with_images(as_levels(dataset.images) & (0xFF << 8 - self.bits & 0xFF))

"""Random noise: every training image is seen under fresh Gaussian noise.

Tried in SEP (ICLR 2023, Table 6), which tells of noise of "variance 8/255" without code. Read as a
variance, its deviation would be .177; read as a deviation, it has the size of the perturbation. The
published rows fit the second reading, which is the default; `std=0.177` is the first.

    x' = clip(x + N(0, std^2)),   drawn anew at every step

*Unlearnable Examples* means another thing by noise: whole grey levels from 0 to 8, added once and
to protected images only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.component import setting
from bench.defense import Defense, Step
from bench.registry import DEFENSES
from bench.seeding import on_device


@DEFENSES.register("random-noise")
@dataclass(frozen=True)
class RandomNoise(Defense):
    """Adds fresh Gaussian noise to every training image."""

    paper: ClassVar[str] = "Chen et al., Self-Ensemble Protection, ICLR 2023 (its Table 6)"

    std: float = setting(8 / 255, "standard deviation, in units of [0, 1]")

    def __post_init__(self) -> None:
        if not 0 <= self.std < math.inf:
            raise ValueError(f"std={self.std:g} must be finite and not negative")

    def batch(self, images: Tensor, soft_labels: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Add noise, and clip to [0, 1]."""
        if not self.std:
            return images, soft_labels
        noise = torch.empty_like(images).normal_(generator=on_device(step.stream, images.device))
        return (images + self.std * noise).clamp(0, 1), soft_labels

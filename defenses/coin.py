"""COIN: every pixel is read from a place a little beside it.

The countermeasure of Wang et al. (AAAI 2025) to protections that are convolutions, such as CUDA.
Every output pixel (i, j) of every image reads from

    (i + u, j + v),   u and v ~ U(-alpha, alpha), independent for each pixel, alpha = 2,

by bilinear interpolation; beyond the border the image continues on its other side. It is drawn anew
in every epoch and applied behind crops and flips. The released script does not run as it stands
(missing imports and an argument), so this follows the text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.component import setting
from bench.defense import Defense, Step
from bench.registry import DEFENSES
from bench.seeding import on_device


@DEFENSES.register("coin")
@dataclass(frozen=True)
class Coin(Defense):
    """Trains on images whose pixels are moved at random by up to two places."""

    paper: ClassVar[str] = "Wang et al., COIN, AAAI 2025"

    alpha: float = setting(2.0, "largest move in each direction, in pixels")

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < math.inf:
            raise ValueError(f"alpha={self.alpha:g} must be finite and not negative")

    def cost(self) -> float:
        """A resampling of each image."""
        return 1.1

    def batch(self, images: Tensor, soft_labels: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Move every pixel."""
        if not self.alpha:
            return images, soft_labels
        count, _, height, width = images.shape
        draws = on_device(step.stream, images.device)
        moves = torch.empty(count, height, width, 2, device=images.device)
        moves.uniform_(-self.alpha, self.alpha, generator=draws)
        return resampled(images, moves), soft_labels


def resampled(images: Tensor, moves: Tensor) -> Tensor:
    """Read every pixel from beside it, with wrapped borders.

    Args:
        images: (b, 3, h, w) float32.
        moves: (b, h, w, 2), how far right and down of itself each pixel reads, in pixels.
    """
    height, width = images.shape[2:]
    down = torch.arange(height, device=images.device)[:, None] + moves[..., 1]
    right = torch.arange(width, device=images.device) + moves[..., 0]
    # One more row and column, so that between the last pixel and the first there is a way.
    wrapped = F.pad(images, (0, 1, 0, 1), mode="circular")
    places = torch.stack([right % width * 2 / width - 1, down % height * 2 / height - 1], dim=-1)
    return F.grid_sample(wrapped, places, "bilinear", "border", align_corners=True)

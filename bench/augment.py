"""Random crops and flips of whole batches, on the device.

torchvision draws one set of parameters per call; per image it would mean a loop, hence these.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Crops:
    """Where each image is cut and whether it is mirrored.

    Attributes:
        down: (n,) rows by which the window is moved, from 0 to twice the padding.
        right: (n,) columns, likewise.
        mirrored: (n,) bool.
    """

    down: Tensor
    right: Tensor
    mirrored: Tensor

    @classmethod
    def draw(cls, count: int, padding: int, flip: bool, stream: torch.Generator) -> Crops:
        """Uniform offsets for `count` images; the same draws are made whatever the settings."""
        down = torch.randint(2 * padding + 1, (count,), generator=stream)
        right = torch.randint(2 * padding + 1, (count,), generator=stream)
        mirrored = torch.rand(count, generator=stream) < 0.5
        return cls(down, right, mirrored & flip)

    def to(self, device: torch.device) -> Crops:
        """The same on another device."""
        return Crops(*(part.to(device) for part in (self.down, self.right, self.mirrored)))

    def __getitem__(self, rows: slice) -> Crops:
        return Crops(self.down[rows], self.right[rows], self.mirrored[rows])


def cut(padded: Tensor, crops: Crops, size: tuple[int, int]) -> Tensor:
    """Cut windows out of padded images.

    Args:
        padded: (b, h + 2p, w + 2p, 3), any dtype; channels last, so that one gather moves pixels.
        crops: b windows.
        size: height and width of a window.

    Returns:
        (b, 3, h, w) in channels-last memory.
    """
    height, width = size
    line = torch.arange(height, device=padded.device)
    column = torch.arange(width, device=padded.device)
    down = crops.down[:, None] + line
    column = torch.where(crops.mirrored[:, None], column.flip(0), column)
    right = crops.right[:, None] + column
    image = torch.arange(len(padded), device=padded.device)
    window = padded[image[:, None, None], down[:, :, None], right[:, None, :]]
    return window.permute(0, 3, 1, 2)


def draw_shifts(
    count: int, padding: float, stream: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Offsets (count, 2) uniform within the padding, and coin flips (count,), for `shift`."""
    offsets = (2 * torch.rand(count, 2, generator=stream) - 1) * padding
    mirrored = torch.rand(count, generator=stream) < 0.5
    return offsets.to(device), mirrored.to(device)


def shift(images: Tensor, offsets: Tensor, mirrored: Tensor, fill: Tensor) -> Tensor:
    """Move images by fractions of a pixel, differentiably.

    Args:
        images: (b, 3, h, w) float.
        offsets: (b, 2) right and down, in pixels.
        mirrored: (b,) bool.
        fill: broadcastable to the images; the colour outside.

    Returns:
        (b, 3, h, w), bilinear.
    """
    height, width = images.shape[2:]
    sign = 1.0 - 2.0 * mirrored.to(images.dtype)
    zero = torch.zeros_like(sign)
    right = 2 * offsets[:, 0] / max(width - 1, 1)
    down = 2 * offsets[:, 1] / max(height - 1, 1)
    matrix = torch.stack([sign, zero, right, zero, zero + 1, down], dim=1).unflatten(1, (2, 3))
    grid = F.affine_grid(matrix, list(images.shape), align_corners=True)
    moved = F.grid_sample(images - fill, grid, "bilinear", "zeros", align_corners=True)
    return moved + fill

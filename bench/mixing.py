"""What defenses that mix or mask images draw: weights, and parts of an image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bench.seeding import sent


def draw_weights(alpha: float, count: int, stream: torch.Generator) -> Tensor:
    """Independent lambda ~ Beta(alpha, alpha).

    PyTorch's own sampler draws from the global generator alone. NumPy's is exact for every alpha,
    and that of `RandomState` is promised to stay as it is.

    Args:
        alpha: above 0.
        count: how many.
        stream: random numbers; it seeds NumPy's.

    Returns:
        (count,) float32 in [0, 1], on the CPU.
    """
    seed = int(torch.randint(2**32, (1,), generator=stream))
    drawn = np.random.RandomState(seed).beta(alpha, alpha, count)
    return torch.from_numpy(drawn).float()


def mix(values: Tensor, partners: Tensor, weights: Tensor) -> Tensor:
    """Compute lambda v_i + (1 - lambda) v_p(i) for every sample.

    Args:
        values: (b, ...) float, images or soft labels.
        partners: (b,) int64, the permutation p.
        weights: (b,) float32, lambda.
    """
    weights = weights.reshape(-1, *[1] * (values.ndim - 1))
    return weights * values + (1 - weights) * values[partners]


def draw_boxes(
    sizes: Tensor, shape: tuple[int, int], stream: torch.Generator, device: torch.device
) -> Tensor:
    """Boxes with uniform centres; what falls outside the image is lost.

    Args:
        sizes: (b, 2) int64, height and width of each box, on the CPU.
        shape: height and width of the images.
        stream: random numbers.
        device: where the result is wanted.

    Returns:
        (b, h, w) bool, True inside the box.
    """
    height, width = shape
    down = sent(torch.randint(height, (len(sizes),), generator=stream), device)
    right = sent(torch.randint(width, (len(sizes),), generator=stream), device)
    sizes = sent(sizes, device)
    rows, columns = covered(down, sizes[:, 0], height), covered(right, sizes[:, 1], width)
    return rows[:, :, None] & columns[:, None, :]


def covered(centers: Tensor, sizes: Tensor, length: int) -> Tensor:
    """Which places of a line lie in a segment, whatever of it falls outside left away.

    Args:
        centers: (b,) int64 in [0, length); of an even segment, the place right of its middle.
        sizes: (b,) int64, places that each whole segment covers.
        length: places of the line.

    Returns:
        (b, length) bool.
    """
    starts = (centers - sizes // 2)[:, None]
    places = torch.arange(length, device=centers.device)
    return (starts <= places) & (places < starts + sizes[:, None])

"""The image operations that learned augmentation policies draw from, batched on the device.

AutoAugment (Cubuk et al., CVPR 2019), RandAugment (Cubuk et al., 2020) and TrivialAugment (Müller
and Hutter, ICCV 2021) share a list of operations and differ in how they draw them. torchvision
has all three, but its classes draw one operation for a whole batch, and from the global generator.
Here every image draws its own. What an operation does is torchvision's definition: 8-bit levels in
and out, the nearest pixel, black outside, and levels cut off, not rounded, where colours are mixed.

Operations without magnitude are torchvision's functions. Those with one take a magnitude for each
image, which those functions do not; grouping images by magnitude would leave groups of one or two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.seeding import sent

Operation = Callable[[Tensor, Tensor], Tensor]
"""Maps levels (n, 3, h, w) uint8 and magnitudes (n,) float64 on the CPU to new levels."""

Ranges = Mapping[str, tuple[float, float]]
"""For each operation that may be drawn, its magnitudes at no and at full strength."""

SIGNED = frozenset(
    {
        *("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
        *("Brightness", "Color", "Contrast", "Sharpness"),
    }
)
"""Operations that go either way, by a fair coin."""


class Draws(NamedTuple):
    """What happens to each image of a batch.

    Attributes:
        operations: (b,) int64, places in `OPERATIONS`.
        magnitudes: (b,) float64 with their signs. What they mean: the tangent of a shear, pixels
            (fractions are dropped), degrees, what is added to a factor of 1, bits that are kept,
            and the share of 255 from which on levels are inverted.
    """

    operations: Tensor
    magnitudes: Tensor


def narrow(size: tuple[int, int]) -> Ranges:
    """The operations and ranges of RandAugment, for images of the given height and width."""
    height, width = size
    return {
        "Identity": (0, 0),
        "ShearX": (0, 0.3),
        "ShearY": (0, 0.3),
        "TranslateX": (0, 150 / 331 * width),
        "TranslateY": (0, 150 / 331 * height),
        "Rotate": (0, 30),
        "Brightness": (0, 0.9),
        "Color": (0, 0.9),
        "Contrast": (0, 0.9),
        "Sharpness": (0, 0.9),
        "Posterize": (8, 4),
        "Solarize": (1, 0),
        "AutoContrast": (0, 0),
        "Equalize": (0, 0),
    }


def wide(size: tuple[int, int]) -> Ranges:
    """The same operations with the wide ranges of TrivialAugment, which are the same in pixels."""
    enhanced = dict.fromkeys(["Brightness", "Color", "Contrast", "Sharpness"], (0, 0.99))
    moved = dict.fromkeys(["TranslateX", "TranslateY"], (0, 32))
    sheared = dict.fromkeys(["ShearX", "ShearY"], (0, 0.99))
    return {**narrow(size), **enhanced, **moved, **sheared, "Rotate": (0, 135), "Posterize": (8, 2)}


def scale(ranges: Ranges, bins: int) -> Tensor:
    """Equally spaced magnitudes of each operation, before signs.

    Args:
        ranges: by operation; the result has their order.
        bins: how many magnitudes there are, from no to full strength.

    Returns:
        (operations, bins) float64, whose values are those of a float32 as in torchvision.
    """
    rows = [torch.linspace(first, last, bins).double() for first, last in ranges.values()]
    return torch.stack(
        [r.round() if n == "Posterize" else r for n, r in zip(ranges, rows, strict=True)]
    )


def draw_signs(operations: Tensor, stream: torch.Generator) -> Tensor:
    """1 or -1, equally often, for operations that have a sign; 1 for the others.

    Args:
        operations: (b,) int64, places in `OPERATIONS`.
        stream: random numbers; as many are drawn whatever the operations.

    Returns:
        (b,) float64.
    """
    signed = torch.tensor([name in SIGNED for name in OPERATIONS])[operations]
    tails = torch.rand(operations.shape, generator=stream) < 0.5
    return 1 - 2 * (signed & tails).double()


def draw_one(
    count: int, ranges: Ranges, bins: int, stream: torch.Generator, magnitude: int | None = None
) -> Draws:
    """An operation for each image, all equally likely, and a sign.

    Args:
        count: number of images.
        ranges: the operations, with their magnitudes.
        bins: number of magnitudes.
        stream: random numbers.
        magnitude: which one, from 0; none: each image draws its own, all equally likely.
    """
    drawn = torch.randint(len(ranges), (count,), generator=stream)
    if magnitude is None:
        strengths = torch.randint(bins, (count,), generator=stream)
    else:
        strengths = torch.full((count,), magnitude)
    operations = torch.tensor([NAMES.index(name) for name in ranges])[drawn]
    signs = draw_signs(operations, stream)
    return Draws(operations, signs * scale(ranges, bins)[drawn, strengths])


def apply(levels: Tensor, draws: Draws) -> Tensor:
    """Do to each image what was drawn for it.

    Args:
        levels: (b, 3, h, w) uint8; left as they are.
        draws: for b images, on the CPU.

    Returns:
        (b, 3, h, w) uint8.
    """
    changed = levels.clone()
    for place, operation in enumerate(OPERATIONS.values()):
        rows = (draws.operations == place).nonzero()[:, 0]
        if operation is not identity and len(rows):
            here = sent(rows, levels.device)
            changed[here] = operation(levels[here], draws.magnitudes[rows])
    return changed


def identity(levels: Tensor, magnitudes: Tensor) -> Tensor:
    """Nothing."""
    del magnitudes
    return levels


def shear_x(levels: Tensor, magnitudes: Tensor) -> Tensor:
    """Rows slide by the tangent times their distance from the upper edge."""
    return _warp(levels, {"xy": magnitudes, "x": magnitudes * levels.shape[2] / 2})


def shear_y(levels: Tensor, magnitudes: Tensor) -> Tensor:
    """Columns slide by the tangent times their distance from the left edge."""
    return _warp(levels, {"yx": magnitudes, "y": magnitudes * levels.shape[3] / 2})


def translate_x(levels: Tensor, magnitudes: Tensor) -> Tensor:
    """To the right by whole pixels."""
    return _warp(levels, {"x": -magnitudes.trunc()})


def translate_y(levels: Tensor, magnitudes: Tensor) -> Tensor:
    """Down by whole pixels."""
    return _warp(levels, {"y": -magnitudes.trunc()})


def rotate(levels: Tensor, magnitudes: Tensor) -> Tensor:
    """Counter-clockwise about the middle, by degrees."""
    angle = magnitudes.deg2rad()
    cosine, sine = angle.cos(), angle.sin()
    return _warp(levels, {"xx": cosine, "xy": -sine, "yx": sine, "yy": cosine})


def brightness(levels: Tensor, magnitudes: Tensor) -> Tensor:
    """Away from black, or towards it."""
    return _cut_off(levels * _column(1 + magnitudes, levels))


def color(levels: Tensor, magnitudes: Tensor) -> Tensor:
    """Away from the same image in grey, or towards it."""
    from torchvision.transforms.v2.functional import rgb_to_grayscale

    return _blend(levels, rgb_to_grayscale(levels), magnitudes)


def contrast(levels: Tensor, magnitudes: Tensor) -> Tensor:
    """Away from the image's mean grey, or towards it."""
    from torchvision.transforms.v2.functional import rgb_to_grayscale

    mean = rgb_to_grayscale(levels).float().mean((1, 2, 3), keepdim=True)
    return _blend(levels, mean, magnitudes)


def sharpness(levels: Tensor, magnitudes: Tensor) -> Tensor:
    """Away from a blur of 3x3 pixels, or towards it; the outermost pixels stay."""
    from torchvision.transforms.v2.functional import adjust_sharpness

    detail = levels.float() - adjust_sharpness(levels, 0.0)
    return _cut_off(levels + detail * _column(magnitudes, levels))


def posterize(levels: Tensor, magnitudes: Tensor) -> Tensor:
    """Only the upper bits of each level."""
    masks = 256 - 2 ** (8 - magnitudes)
    return levels & _column(masks, levels).to(torch.uint8)


def solarize(levels: Tensor, magnitudes: Tensor) -> Tensor:
    """Levels from a threshold on are inverted."""
    return torch.where(levels >= _column(255 * magnitudes, levels), 255 - levels, levels)


def auto_contrast(levels: Tensor, magnitudes: Tensor) -> Tensor:
    """Each channel is stretched from 0 to 255."""
    from torchvision.transforms.v2.functional import autocontrast

    del magnitudes
    return autocontrast(levels)


def equalize(levels: Tensor, magnitudes: Tensor) -> Tensor:
    """The levels of each channel become equally frequent, as far as that goes."""
    from torchvision.transforms.v2 import functional

    del magnitudes
    return functional.equalize(levels)


def invert(levels: Tensor, magnitudes: Tensor) -> Tensor:
    """The negative."""
    del magnitudes
    return 255 - levels


OPERATIONS: Mapping[str, Operation] = {
    "Identity": identity,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "Rotate": rotate,
    "Brightness": brightness,
    "Color": color,
    "Contrast": contrast,
    "Sharpness": sharpness,
    "Posterize": posterize,
    "Solarize": solarize,
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
    "Invert": invert,
}
"""By the names of the AutoAugment paper."""

NAMES = tuple(OPERATIONS)


def _column(values: Tensor, levels: Tensor) -> Tensor:
    """One float32 for each image, (n, 1, 1, 1), on the images' device."""
    return sent(values.float(), levels.device)[:, None, None, None]


def _blend(levels: Tensor, other: Tensor, magnitudes: Tensor) -> Tensor:
    """Levels times 1 + m, less other ones times m.

    Where this is a whole number, the last bit decides whether it is cut off to the next lower one,
    and torchvision, whose sum may be fused, can come out at its neighbour: one level, for about a
    hundredth of the values.
    """
    return _cut_off(levels * _column(1 + magnitudes, levels) - other * _column(magnitudes, levels))


def _cut_off(values: Tensor) -> Tensor:
    """Float levels to uint8, towards zero."""
    return values.clamp(0, 255).to(torch.uint8)


def _warp(levels: Tensor, moves: Mapping[str, Tensor]) -> Tensor:
    """Each pixel is taken from elsewhere, nearest neighbour, black from outside.

    Args:
        levels: (n, 3, h, w) uint8.
        moves: the place a pixel (x, y) is taken from, in pixels right and down of the middle, is
            (xx x + xy y + x, yx x + yy y + y); each entry is (n,), the identity's if left out.

    Returns:
        (n, 3, h, w) uint8.
    """
    count, _, height, width = levels.shape
    one = torch.ones(count, dtype=torch.float64)
    entries = [moves.get(e, one * (e in ("xx", "yy"))) for e in ("xx", "xy", "x", "yx", "yy", "y")]
    matrices = sent(torch.stack(entries, 1).float(), levels.device).unflatten(1, (2, 3))
    places = torch.ones(height, width, 3, device=levels.device)
    places[..., 0] = torch.arange(width, device=levels.device) - (width - 1) / 2
    places[..., 1] = torch.arange(height, device=levels.device)[:, None] - (height - 1) / 2
    halves = torch.tensor([width / 2, height / 2], device=levels.device)
    grid = (places.flatten(0, 1) @ (matrices.mT / halves)).unflatten(1, (height, width))
    moved = F.grid_sample(levels.float(), grid, "nearest", "zeros", align_corners=False)
    return moved.to(torch.uint8)

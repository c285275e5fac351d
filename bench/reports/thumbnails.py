"""A sheet of thumbnails: released images and their amplified perturbations, a row a method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bench.reports.plots import DPI, GREY, brief, plain_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Images = NDArray[np.uint8]

MID_GREY = 128
SIDE = 64
"""Least size of a thumbnail in dots; smaller images are enlarged by a whole factor."""
GAP = 4
LETTERS = 14
"""Of a method's name that have room on the left."""
MARGINS = {"left": 150, "right": 90, "top": 64, "bottom": 16}
"""Room for text around the images, in dots."""


def thumbnail_sheet(
    clean: Images,
    rows: Sequence[tuple[str, Images]],
    factor: float | None = None,
    title: str = "",
) -> Figure:
    """What every method did to the same images.

    On the left the images, on the right protected minus clean, amplified about mid-grey, with the
    factor written beside each row.

    Args:
        clean: (k, h, w, 3) uint8.
        rows: for each method its label and its images, shaped like the clean ones.
        factor: one amplification for all; by default each row's own, with which its largest
            difference just fills the range.
        title: stands above the sheet.

    Raises:
        ValueError: if images are not uint8 or not of the clean ones' shape.
    """
    from matplotlib.figure import Figure

    for label, images in (("clean", clean), *rows):
        if images.dtype != np.uint8 or images.shape != clean.shape or images.ndim != 4:
            raise ValueError(
                f"images of '{label}' are {images.dtype} {images.shape}; thumbnails take uint8 "
                f"(k, h, w, 3), all like the clean ones {clean.shape}"
            )
    factors = [_fitting(images, clean) if factor is None else factor for _, images in rows]
    lines = [_line(clean, clean, 1.0)]
    lines += [_line(images, clean, own) for (_, images), own in zip(rows, factors, strict=True)]
    sheet = np.concatenate(lines)
    with plain_style():
        figure = Figure(dpi=DPI)
        axes = _exact_axes(figure, sheet)
        _write_names(axes, ["clean", *(label for label, _ in rows)], factors, sheet.shape[:2])
        figure.suptitle(title, fontsize=9)
    return figure


def _write_names(
    axes: Axes, labels: Sequence[str], factors: Sequence[float], shape: tuple[int, ...]
) -> None:
    """Labels on the left, factors on the right, headings above."""
    height, width = shape
    pitch = height / len(labels)
    for place, label in enumerate(labels):
        axes.text(-10, (place + 0.5) * pitch, brief(label, LETTERS), ha="right", va="center")
    small = {"fontsize": 7, "color": GREY}
    # The first row is the clean one, which has no difference to amplify.
    for place, factor in enumerate(factors, start=1):
        axes.text(width + 6, (place + 0.5) * pitch, f"× {factor:.3g}", va="center", **small)
    heads = ("images", "mid-grey + factor × (protected − clean)")
    for position, head in zip((0.25, 0.75), heads, strict=True):
        axes.text(position * width, -8, head, ha="center", **small)


def _fitting(images: Images, clean: Images) -> float:
    """The amplification with which the largest difference just fills the range."""
    largest = int(np.abs(images.astype(np.int16) - clean).max())
    return max((255 - MID_GREY) / largest, 1.0) if largest else 1.0


def amplified(images: Images, clean: Images, factor: float) -> Images:
    """Protected minus clean times a factor about mid-grey, clipped, as uint8."""
    delta = images.astype(np.float32) - clean
    return np.clip(np.rint(MID_GREY + factor * delta), 0, 255).astype(np.uint8)


def _line(images: Images, clean: Images, factor: float) -> Images:
    """One row of the sheet: images, a gap, amplified differences."""
    left, right = _strip(images), _strip(amplified(images, clean, factor))
    gap = np.full((len(left), 3 * GAP, 3), 255, np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def _strip(images: Images) -> Images:
    """Images side by side on white, enlarged by repeating pixels: nothing is smoothed away."""
    times = max(1, -(-SIDE // images.shape[1]))
    large = images.repeat(times, axis=1).repeat(times, axis=2)
    framed = np.pad(large, ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
    return np.concatenate(list(framed), axis=1)


def _exact_axes(figure: Figure, sheet: Images) -> Axes:
    """Axes in which one pixel of the sheet is one dot of the PNG."""
    height, width = sheet.shape[:2]
    full_width = MARGINS["left"] + width + MARGINS["right"]
    full_height = MARGINS["bottom"] + height + MARGINS["top"]
    figure.set_size_inches(full_width / DPI, full_height / DPI)
    axes = figure.add_axes(
        (
            MARGINS["left"] / full_width,
            MARGINS["bottom"] / full_height,
            width / full_width,
            height / full_height,
        )
    )
    axes.imshow(sheet, interpolation="nearest", extent=(0, width, height, 0))
    axes.axis("off")
    return axes

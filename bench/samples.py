"""A few images of every crafted set, kept beside the records so that reports need no store.

results/NAME/samples/sep-2c3d4e5f6a7b.png      clean images above, protected ones below

A file bears the key of its set and a digest of its pixels; older ones do not.
"""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bench.files import digest_of, remove, write_with

if TYPE_CHECKING:
    from torch import Tensor

COUNT = 8


class Sample(NamedTuple):
    """Images side by side, (k, h, w, 3) uint8 each."""

    clean: np.ndarray
    released: np.ndarray


def sample_file(results: Path, slug: str, crafted_key: str) -> Path:
    """Where the sample of a crafted set lies; the slug is for people."""
    folder = results / "samples"
    known = sorted(folder.glob(f"*-{crafted_key[:12]}.png"))
    return known[0] if known else folder / f"{slug}-{crafted_key[:12]}.png"


def write_sample(
    file: Path, key: str, clean: Tensor, released: Tensor, labels: Tensor, mask: Tensor
) -> bool:
    """Keep the first protected image of each of the first classes, losslessly.

    Args:
        file: a PNG; left alone if it is whole.
        key: of the crafted set.
        clean: (n, 3, h, w) uint8.
        released: the same shape.
        labels: (n,).
        mask: (n,) bool, which are protected.

    Returns:
        Whether a damaged file was replaced.
    """
    damaged = file.exists() and read_sample(file) is None
    if (file.exists() and not damaged) or not mask.any():
        return False
    rows = mask.nonzero().flatten()
    firsts = [int(rows[labels[rows] == label][0]) for label in labels[rows].unique()]
    chosen = (firsts + [row for row in rows.tolist() if row not in firsts])[:COUNT]
    strips = [
        np.concatenate(list(_channels_last(images[chosen])), 1) for images in (clean, released)
    ]
    buffer = BytesIO()
    facts = PngInfo()
    pixels = np.concatenate(strips)
    facts.add_text("images", str(len(chosen)))
    facts.add_text("crafted", key)
    facts.add_text("digest", _digest(len(chosen), key, pixels))
    Image.fromarray(pixels).save(buffer, format="png", pnginfo=facts)
    if damaged:
        remove(file)
    write_with(file, lambda handle: handle.write(buffer.getvalue()))
    return damaged


def read_sample(file: Path) -> Sample | None:
    """The images of a sample file, or None if it is damaged or another set's."""
    try:
        with Image.open(file) as image:
            pixels, told = np.asarray(image.convert("RGB")), image.info
        count = int(told["images"])
        if {"crafted", "digest"} & told.keys():
            key = told["crafted"]
            whole = told["digest"] == _digest(count, key, pixels)
            if not (whole and file.stem.endswith(key[:12])):
                return None
        return _cut(pixels, count)
    except (OSError, ValueError, KeyError, SyntaxError, ZeroDivisionError):
        return None


def _digest(count: int, key: str, pixels: np.ndarray) -> str:
    return digest_of([count, key, pixels.shape, hashlib.sha256(pixels.tobytes()).hexdigest()])


def _cut(pixels: np.ndarray, count: int) -> Sample:
    height, width = pixels.shape[0] // 2, pixels.shape[1] // count
    clean, released = pixels.reshape(2, height, count, width, 3).transpose(0, 2, 1, 3, 4)
    return Sample(clean, released)


def _channels_last(images: Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).contiguous().numpy()

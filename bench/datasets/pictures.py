"""Picture files: which there are, whether they changed, and all of them in one array on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from bench.data import DatasetSource, ImageDataset, Places, Splits
from bench.decoded import channel_statistics
from bench.errors import UsageError
from bench.files import unnamed_array

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
"""Of the files that count as pictures, in lower case."""
_AT_ONCE = 64
"""Pictures decoded side by side; each waits in memory for its turn to be stored."""

T = TypeVar("T")


def pictures(folder: Path) -> list[Path]:
    """Picture files at any depth, ordered by their path inside the folder; none that is hidden."""
    found = {
        file.relative_to(folder).as_posix(): file
        for file in folder.rglob("*")
        if file.suffix.lower() in ENDINGS and file.is_file()
    }
    return [found[name] for name in sorted(found) if not name.startswith(".") and "/." not in name]


def fingerprint(source: DatasetSource, root: Path, files: Iterable[Path]) -> str:
    """SHA-256 of all that decides what decoding gives, without reading a single file.

    Args:
        source: what reads them.
        root: a folder; where it lies does not count.
        files: below it, in their order; name, size and time of change count.
    """
    sha = hashlib.sha256(json.dumps(source.identity()).encode())
    for file in files:
        facts = file.stat()
        sha.update(os.fsencode(file.relative_to(root).as_posix()))
        sha.update(f"\0{facts.st_size} {facts.st_mtime_ns}\0".encode())
    return sha.hexdigest()


def decode_all(
    files: Sequence[T], decode: Callable[[T], np.ndarray], title: str, places: Places
) -> torch.Tensor:
    """Decode pictures side by side, in their order.

    Args:
        files: what to decode.
        decode: makes (h, w, 3) uint8 of one of them, in whatever thread.
        title: of the data set, for the progress line.
        places: where there is room for all of them, which may be more than memory holds.

    Returns:
        (n, 3, h, w) uint8, in a file without a name.

    Raises:
        UsageError: if two differ in size.
    """
    first = decode(files[0])
    height, width, _ = first.shape
    images = unnamed_array(places.cache_dir, (len(files), 3, height, width), "uint8")
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), _AT_ONCE):
            some = files[start : start + _AT_ONCE]
            for row, pixels in enumerate(pool.map(decode, some), start):
                places.progress(f"reading {title}", row, len(files))
                if pixels.shape != first.shape:
                    raise UsageError(
                        f"images differ in size: '{files[0]}' has {width} x {height} pixels, "
                        f"'{files[row]}' has {pixels.shape[1]} x {pixels.shape[0]}; "
                        "bring all to one with size=32"
                    )
                images[row] = pixels.transpose(2, 0, 1)
    places.progress(f"reading {title}", len(files), len(files))
    return torch.from_numpy(images)


def halves(
    images: torch.Tensor, labels: Sequence[int], cut: int, classes: Sequence[str], title: str
) -> Splits:
    """Cut decoded images in two and measure the first part.

    Args:
        images: (n, 3, h, w) uint8, those to train on first.
        labels: n indices into `classes`.
        cut: how many are to train on.
        classes: the names, in label order.
        title: what tables call the data set.
    """
    about: tuple[Any, ...] = (tuple(classes), title, *channel_statistics(images[:cut]))
    return Splits(
        ImageDataset(images[:cut], torch.tensor(labels[:cut]), *about),
        ImageDataset(images[cut:], torch.tensor(labels[cut:]), *about),
    )

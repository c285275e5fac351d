"""What is decoded once: channel statistics, and arrays kept on disk for the next start."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.data import ImageDataset, Splits, portion
from bench.errors import UsageError
from bench.files import write_text, write_with

Triple = tuple[float, float, float]

_META = "meta.json"


def channel_statistics(images: Tensor) -> tuple[Triple, Triple]:
    """Mean and standard deviation of each channel over all pixels, in units of [0, 1].

    Args:
        images: (n, 3, h, w) uint8.

    Returns:
        Two triples, taken from counts of the 256 grey levels: this needs no float copy of the
        images. A deviation is at least one grey level, since the networks divide by it and a
        channel may be constant.
    """
    counts = torch.zeros(3, 256, dtype=torch.int64)
    for part in images.split(portion(images)):
        counts += torch.stack(
            [torch.bincount(part[:, c].flatten(), minlength=256) for c in range(3)]
        )
    red, green, blue = (_mean_and_deviation(channel) for channel in counts.tolist())
    return (red[0], green[0], blue[0]), (red[1], green[1], blue[1])


def _mean_and_deviation(counts: list[int]) -> tuple[float, float]:
    """Of a channel whose 256 grey levels occur so often; in units of [0, 1].

    Whole numbers up to the last step: any machine gives the same digits.
    """
    total = sum(counts)
    first = sum(count * level for level, count in enumerate(counts))
    second = sum(count * level**2 for level, count in enumerate(counts))
    variance = (total * second - first**2) / total**2
    return first / total / 255, max(math.sqrt(variance), 1.0) / 255


def kept(folder: Path, decode: Callable[[], Splits]) -> Splits:
    """The splits kept in `folder`, or freshly decoded ones, which are then kept there.

    A copy that is incomplete, truncated or altered counts as none and is written anew. The arrays
    of a sound copy are mapped into memory, copy-on-write: nothing that is done to the tensors
    reaches the files.

    Args:
        folder: its name must say everything the content depends on.
        decode: called only if there is no sound copy.

    Raises:
        UsageError: if `decode` finds no source, or the folder cannot be written.
    """
    splits = _reopen(folder)
    if splits is not None:
        return splits
    try:
        splits = decode()
    except UsageError as error:
        if (folder / _META).exists():
            raise UsageError(f"{error}; the decoded copy in {folder} is damaged") from None
        raise
    try:
        _store(folder, splits)
    except OSError as error:
        raise UsageError(
            f"cannot keep decoded images in {folder}: {error.strerror or error}; "
            "free space there or choose another folder"
        ) from None
    return splits


def _store(folder: Path, splits: Splits) -> None:
    """Write four arrays and, last, what is needed to trust and to name them."""
    arrays: dict[str, Any] = {}
    for half, dataset in zip(Splits._fields, splits, strict=True):
        for part in ("images", "labels"):
            file, array = f"{half}-{part}.npy", getattr(dataset, part).numpy()
            write_with(folder / file, partial(np.save, arr=array, allow_pickle=False))
            arrays[file] = {"shape": array.shape, "sha256": _file_digest(folder / file)}
    train = splits.train
    meta = {
        "name": train.name,
        "classes": train.classes,
        "mean": train.mean,
        "std": train.std,
        "arrays": arrays,
    }
    write_text(folder / _META, json.dumps({**meta, "sha256": _meta_digest(meta)}, indent=1))


def _reopen(folder: Path) -> Splits | None:
    """The splits that `_store` wrote, or None if any byte of them is missing or altered."""
    try:
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        if meta.pop("sha256") != _meta_digest(meta):
            return None
        # Hashed before numpy reads them, so that a damaged header is never interpreted.
        for file, facts in meta["arrays"].items():
            if _file_digest(folder / file) != facts["sha256"]:
                return None
        return Splits(*(_reopen_half(folder, half, meta) for half in Splits._fields))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _reopen_half(folder: Path, half: str, meta: dict[str, Any]) -> ImageDataset:
    images, labels = (
        torch.from_numpy(np.load(folder / f"{half}-{part}.npy", mmap_mode="c", allow_pickle=False))
        for part in ("images", "labels")
    )
    classes, mean, std = (tuple(meta[key]) for key in ("classes", "mean", "std"))
    return ImageDataset(images, labels, classes, meta["name"], mean, std)


def _file_digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _meta_digest(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()

"""Fashion-MNIST: found in the data folder, packed or unpacked, or downloaded.

Xiao et al., Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms,
2017.

The grey pictures of 28 x 28 pixels are laid on a black square of 32 x 32, with three equal
channels, so that every network for CIFAR takes them. The content of each file is compared with a
SHA-256 sum kept here, so a file may have been unpacked or packed anew; the sums are those of the
original archives, whose MD5 torchvision knows.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch.nn.functional import pad

from bench.data import Progress, Splits
from bench.datasets.pictures import halves
from bench.datasets.sources import OfficialFiles, Remote
from bench.registry import DATASETS

_BORDER = 2
"""Black pixels on each side."""
_LIMIT = 1 << 26
"""Bytes that are unpacked at most; the largest file has 47 million."""


@DATASETS.register("fashion-mnist")
@dataclass(frozen=True)
class FashionMnist(OfficialFiles):
    """70,000 grey pictures of clothes, padded to 32 x 32, in 10 classes, 10,000 for testing.

    Mean and standard deviation are measured on the training images, border and all.
    """

    measured_statistics: ClassVar[bool] = True

    torchvision_class = "FashionMNIST"
    names = (
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    )
    # Downloads stay out of the data folder's top: MNIST's files have the same names.
    folders = ("fashion-mnist", "FashionMNIST/raw", "fashion_mnist", "")
    content: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte.gz": (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
        ),
        "train-labels-idx1-ubyte.gz": (
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
        ),
        "t10k-images-idx3-ubyte.gz": (
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
        ),
        "t10k-labels-idx1-ubyte.gz": (
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
        ),
    }
    """SHA-256 of each file as unpacked."""

    def remote(self) -> Mapping[str, Remote]:
        """As torchvision has it."""
        official = self._torchvision()
        return {
            name: Remote(md5, tuple(f"{mirror}{name}" for mirror in official.mirrors))
            for name, md5 in official.resources
        }

    def spellings(self, name: str) -> Collection[str]:
        """Packed or unpacked."""
        return (name, name.removesuffix(".gz"))

    def read(self, folder: Path, progress: Progress) -> Splits:
        """All four files, each only if its content is the original."""
        arrays = []
        for done, name in enumerate(self.names):
            progress(f"reading {self.name}", done, len(self.names))
            arrays.append(_array(name, self._genuine(folder, name)))
        progress(f"reading {self.name}", len(self.names), len(self.names))
        images, labels = (torch.from_numpy(np.concatenate(arrays[part::2])) for part in (0, 1))
        padded = pad(images, (_BORDER,) * 4)[:, None].repeat(1, 3, 1, 1)
        classes = self._torchvision().classes
        return halves(padded, labels.tolist(), len(arrays[0]), classes, self.name)

    def _genuine(self, folder: Path, name: str) -> bytes:
        """The content of a file, if it is what it should be.

        Raises:
            OSError: if it is missing.
            ValueError: if it is damaged or another one.
        """
        there = [folder / each for each in self.spellings(name) if (folder / each).is_file()]
        if not there:
            raise FileNotFoundError(f"there is no {name}")
        for file in there:
            content = _unpacked(file)
            if hashlib.sha256(content).hexdigest() == self.content[name]:
                return content
        raise ValueError(f"{name} is not the one of Fashion-MNIST")


def _unpacked(file: Path) -> bytes:
    """The content of a file that may be a gzip archive; empty if the archive is damaged."""
    if file.suffix != ".gz":
        return file.read_bytes()
    try:
        with gzip.open(file) as packed:
            return packed.read(_LIMIT)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return b""


def _array(name: str, content: bytes) -> np.ndarray:
    """The array of an IDX file of unsigned bytes.

    The header holds, each in four bytes with the highest first: 0x0800 plus the number of
    dimensions, and the size along each of them.

    Raises:
        ValueError: if the header or the length is another.
    """
    dimensions = 3 if "idx3" in name else 1
    magic, *shape = np.frombuffer(content, ">u4", 1 + dimensions).tolist()
    if magic != 0x0800 + dimensions:
        raise ValueError(f"{name} is no IDX file of {dimensions} dimensions")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)

"""Tiny ImageNet: 200 classes at 64 x 64 pixels, from its folder or its archive.

Le and Yang, Tiny ImageNet Visual Recognition Challenge, 2015.

The archive is read where it lies, and nothing of it is ever written under a name of its own.
There is no official checksum to compare with; what the files say of each other is checked instead.
"""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from bench.data import DatasetSource, Places, Splits
from bench.datasets.pictures import decode_all, fingerprint, halves
from bench.datasets.sources import FAILURES
from bench.decoded import kept
from bench.errors import UsageError
from bench.registry import DATASETS

_FOLDER = "tiny-imagenet-200"
_ARCHIVE = "tiny-imagenet-200.zip"
_SIZE = 64
"""Pixels along each side."""
_LIMIT = 1 << 24
"""Bytes that any one file may have; the largest, words.txt, has some three million."""


@DATASETS.register("tiny-imagenet")
@dataclass(frozen=True)
class TinyImageNet(DatasetSource):
    """110,000 photographs of 64 x 64 pixels in 200 classes, 10,000 of them for testing.

    The official validation images are the test images, since the labels of the test images were
    never published. Labels follow the order of the WordNet ids; grey pictures become RGB. Mean
    and standard deviation are measured on the training images.
    """

    measured_statistics: ClassVar[bool] = True

    def load(self, places: Places) -> Splits:
        """Decode every image, or reopen what was decoded while the files have not changed.

        Raises:
            UsageError: if it is not in the data folder, or a file is missing or damaged.
        """
        tree = _find(places.data_dir)
        with tree:
            mark = fingerprint(self, tree.root, tree.stamps(), places.cache_dir)
            folder = places.cache_dir / f"{self.name}-{mark[:16]}"
            return kept(folder, lambda: self._decode(tree, places))

    def _decode(self, tree: _Tree, places: Places) -> Splits:
        listed = _listed(tree)
        images = decode_all(listed.files, lambda file: _pixels(tree, file), self.name, places)
        return halves(images, listed.labels, listed.cut, listed.classes, self.name)


class _Tree:
    """The files of the official layout in a folder.

    Attributes:
        root: the folder, or the one that the archive lies in; named in messages.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def __enter__(self) -> _Tree:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @cached_property
    def names(self) -> list[str]:
        """Paths of all files inside the root, sorted."""
        files = (file for file in self.root.rglob("*") if file.is_file())
        return sorted(file.relative_to(self.root).as_posix() for file in files)

    def stamps(self) -> Iterable[Path]:
        """Files whose content decides what is decoded."""
        return (self.root / name for name in self.names)

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            UsageError: if it is missing or cannot be read.
        """
        try:
            with (self.root / name).open("rb") as file:
                return file.read(_LIMIT)
        except OSError as error:
            raise UsageError(_incomplete(self.root, name, error.strerror or error)) from None


class _Packed(_Tree):
    """The same inside the archive, of which only what is asked for is unpacked, into memory."""

    def __init__(self, archive: Path) -> None:
        super().__init__(archive.parent)
        self._archive = archive
        try:
            self._zip = zipfile.ZipFile(archive)
        except (OSError, zipfile.BadZipFile) as error:
            raise UsageError(
                f"'{archive}' is damaged ({error}); fetch {_ARCHIVE} again, or unpack it yourself"
            ) from None

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    @cached_property
    def names(self) -> list[str]:
        """Paths of all members inside the folder that the archive holds, sorted."""
        inside = f"{_FOLDER}/"
        names = (name for name in self._zip.namelist() if not name.endswith("/"))
        return sorted(name.removeprefix(inside) for name in names if name.startswith(inside))

    def stamps(self) -> Iterable[Path]:
        return (self._archive,)

    def read(self, name: str) -> bytes:
        try:
            with self._zip.open(f"{_FOLDER}/{name}") as member:
                return member.read(_LIMIT)
        except (*FAILURES, KeyError, RuntimeError, zipfile.BadZipFile) as error:
            raise UsageError(_incomplete(self._archive, name, error)) from None


def _find(data_dir: Path) -> _Tree:
    """The folder or the archive, whichever comes first.

    Raises:
        UsageError: if there is neither.
    """
    for place in (data_dir, data_dir / "tiny-imagenet"):
        for folder in (place / _FOLDER, place):
            if (folder / "wnids.txt").is_file():
                return _Tree(folder.resolve())
        if (place / _ARCHIVE).is_file():
            return _Packed((place / _ARCHIVE).resolve())
    raise UsageError(
        f"tiny-imagenet is not in {data_dir}: it has neither {_FOLDER}/ (with wnids.txt, "
        f"words.txt, train/ and val/) nor {_ARCHIVE}. Put one of them there, or name the folder "
        "that has it with --data-dir"
    )


class _Listed(NamedTuple):
    """The pictures, in order, as the text files list them."""

    files: list[str]
    """Those to train on first."""
    labels: list[int]
    cut: int
    """How many are to train on."""
    classes: list[str]


def _listed(tree: _Tree) -> _Listed:
    """Read the text files and compare them with what is there.

    Raises:
        UsageError: if they disagree.
    """
    ids = sorted(_lines(tree, "wnids.txt"))
    if len(ids) < 2 or len(set(ids)) < len(ids):
        raise UsageError(_incomplete(tree.root, "wnids.txt", "it does not list distinct classes"))
    label_of = {wordnet_id: label for label, wordnet_id in enumerate(ids)}

    by_class: dict[str, list[str]] = {wordnet_id: [] for wordnet_id in ids}
    for name in tree.names:
        match name.split("/"):
            case ["train", wordnet_id, "images", file] if (
                wordnet_id in by_class and file.endswith(".JPEG") and not file.startswith(".")
            ):
                by_class[wordnet_id].append(name)
    fewest, most = (choose(by_class, key=lambda one: len(by_class[one])) for choose in (min, max))
    if len(by_class[fewest]) < max(len(by_class[most]), 1):
        found = f"{len(by_class[fewest])} images, where {most} has {len(by_class[most])}"
        raise UsageError(_incomplete(tree.root, f"train/{fewest}/images", found))
    train = [(name, label_of[wordnet_id]) for wordnet_id in ids for name in by_class[wordnet_id]]

    test, there = [], set(tree.names)
    for line in _lines(tree, "val/val_annotations.txt"):
        file, wordnet_id, *_ = [*line.split("\t"), ""]
        name = f"val/images/{file}"
        if wordnet_id not in label_of:
            why = f"it gives {file} the class '{wordnet_id}'"
            raise UsageError(_incomplete(tree.root, "val/val_annotations.txt", why))
        if name not in there:
            raise UsageError(_incomplete(tree.root, name, "it is not there"))
        test.append((name, label_of[wordnet_id]))
    if not test:
        raise UsageError(_incomplete(tree.root, "val/val_annotations.txt", "it is empty"))

    files, labels = (list(part) for part in zip(*train, *test, strict=True))
    return _Listed(files, labels, len(train), _names(tree, ids))


def _names(tree: _Tree, ids: list[str]) -> list[str]:
    """The first word for each class, with the id where two have the same."""
    pairs = (line.partition("\t") for line in _lines(tree, "words.txt"))
    words = {wordnet_id: meanings for wordnet_id, _, meanings in pairs}
    missing = next((wordnet_id for wordnet_id in ids if not words.get(wordnet_id)), None)
    if missing:
        raise UsageError(_incomplete(tree.root, "words.txt", f"it has no words for {missing}"))
    first = {wordnet_id: words[wordnet_id].partition(",")[0].strip() for wordnet_id in ids}
    often = Counter(first.values())
    return [name if often[name] == 1 else f"{name} ({one})" for one, name in first.items()]


def _lines(tree: _Tree, name: str) -> list[str]:
    """The lines of a text file, without empty ones."""
    try:
        text = tree.read(name).decode()
    except UnicodeDecodeError as error:
        raise UsageError(_incomplete(tree.root, name, error)) from None
    return [line for line in text.splitlines() if line.strip()]


def _pixels(tree: _Tree, name: str) -> np.ndarray:
    """One picture as (64, 64, 3) uint8.

    Raises:
        UsageError: if it is missing, damaged or of another size.
    """
    content = tree.read(name)
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            if image.size != (_SIZE, _SIZE):
                size = f"{image.width} x {image.height}"
                raise ValueError(f"it has {size} pixels, not {_SIZE} x {_SIZE}")
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:
        raise UsageError(_incomplete(tree.root, name, "it is no JPEG picture")) from None
    except Exception as error:  # what a damaged file provokes depends on the damage
        raise UsageError(_incomplete(tree.root, name, error)) from error


def _incomplete(root: Path, name: str, why: object) -> str:
    """One line about a file that is not as it should be."""
    return f"tiny-imagenet in '{root}': {name}: {why}; unpack {_ARCHIVE} again"

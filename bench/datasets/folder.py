"""Images of one's own: a folder with one subfolder for each class."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageOps

from bench.component import setting
from bench.data import DatasetSource, Places, Splits
from bench.datasets.pictures import (
    LeftOut,
    decode_all,
    fingerprint,
    halves,
    is_hidden,
    pictures,
    read_picture,
)
from bench.decoded import kept
from bench.errors import UsageError
from bench.files import slugify, user_path
from bench.names import composed, text_of
from bench.registry import DATASETS
from bench.seeding import stream

Sorted = dict[str, list[Path]]
"""Image files by class; classes and files in the order of their names."""

_TRAIN = ("train", "training", "trn", "tr")
_TEST = ("test", "testing", "tst", "val", "valid", "validation", "eval", "evaluation", "dev")
"""Names of halves, the best first; of two the better one is taken. Case does not count, nor do
words such as "set" and "images" beside them, as in Training_Set or images-val."""
_AROUND = ("", "set", "data", "dataset", "split", "images", "image", "imgs", "img", "folder")


@DATASETS.register("folder", argument="path")
@dataclass(frozen=True)
class Folder(DatasetSource):
    """Your own images: folder:PATH, with one subfolder for each class.

    The classes are the first-level subfolders in the order of their names; images may lie deeper.
    If PATH has `train/` and `test/` (or `val/`, or other usual names of halves), the classes lie in
    each of them; otherwise a share of every class is held out as test images, always the same.
    What Pillow reads is taken; what is left out is counted in a line.

    Everything becomes 8-bit RGB: orientation tags are applied, transparent parts are laid over
    white, 16-bit greys are scaled down, and of an animation the first frame is taken.
    """

    measured_statistics: ClassVar[bool] = True

    path: str = setting(MISSING, "the folder with your images")
    size: int | None = setting(
        None, "resize and crop to a square of this many pixels; none if all have one size already"
    )
    test: float = setting(0.2, "share of each class held out as test images, where none are given")

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"size={self.size}: it must be at least 1 pixel")
        if not 0 < self.test < 1:
            raise ValueError(f"test={self.test}: it must lie between 0 and 1")

    @property
    def title(self) -> str:
        """The folder's own name."""
        return text_of(user_path(self.path).resolve().name) or self.name

    def settings(self) -> dict[str, Any]:
        """All but the path: results belong to the images, wherever they lie."""
        return {key: value for key, value in super().settings().items() if key != "path"}

    def load(self, places: Places) -> Splits:
        """Decode every image, or reopen what was decoded while the files have not changed.

        Raises:
            UsageError: if the folder, its classes or one of its images cannot be used.
        """
        root = user_path(self.path)
        if not root.is_dir():
            raise UsageError(f"'{self.path}' is not a folder; give one with a subfolder per class")
        root, left_out = root.resolve(), LeftOut()
        train, test = self._halves(root, left_out)
        files = [file for half in (train, test) for group in half.values() for file in group]
        if left_out:
            said = f"note: of '{root.name}' {len(files)} images are used; left out: {left_out}"
            places.progress(said, 0, 0)
        mark = fingerprint(self, root, files, places.cache_dir)
        folder = places.cache_dir / f"{slugify(self.title)[:40]}-{mark[:16]}"
        return kept(folder, lambda: self._decode(train, test, places))

    def _halves(self, root: Path, left_out: LeftOut) -> tuple[Sorted, Sorted]:
        """Files of the training and of the test half, by class."""
        given = _given_halves(root)
        if given is not None:
            train, test = (_sorted(half, left_out) for half in given)
            _beside(root, given, left_out)
            # macOS writes accents as letters of their own, which may differ between the halves.
            test = {_alike(label, train): files for label, files in test.items()}
            if train.keys() != test.keys():
                odd = sorted(train.keys() ^ test.keys())[0]
                names = [half.name for half in given]
                here, there = names if odd in train else reversed(names)
                raise UsageError(f"class '{odd}' of '{root}' is in {here}/ but not in {there}/")
            return train, {label: test[label] for label in train}
        train, test = _sorted(root, left_out), {}
        for label, files in train.items():
            if len(files) < 2:
                raise UsageError(
                    f"class '{label}' of '{root}' has one image; "
                    "two are needed, one to train on and one to test"
                )
            count = min(max(round(self.test * len(files)), 1), len(files) - 1)
            order = torch.randperm(len(files), generator=stream(0, "held out", label)).tolist()
            held_out = set(order[:count])
            test[label] = [file for row, file in enumerate(files) if row in held_out]
            train[label] = [file for row, file in enumerate(files) if row not in held_out]
        return train, test

    def _decode(self, train: Sorted, test: Sorted, places: Places) -> Splits:
        files = [file for half in (train, test) for group in half.values() for file in group]
        labels = [
            label
            for half in (train, test)
            for label, group in enumerate(half.values())
            for _ in group
        ]
        images = decode_all(files, self._pixels, self.title, places)
        return halves(images, labels, sum(map(len, train.values())), list(train), self.title)

    def _pixels(self, file: Path) -> np.ndarray:
        """One image as (h, w, 3) uint8.

        Raises:
            UsageError: if Pillow cannot read it.
        """
        pixels = read_picture(file)
        if self.size is None:
            return pixels
        square = (self.size, self.size)
        return np.asarray(ImageOps.fit(Image.fromarray(pixels), square, Image.Resampling.BICUBIC))


def _given_halves(root: Path) -> tuple[Path, Path] | None:
    """The training and the test half, or None if the folder holds classes.

    Raises:
        UsageError: if there is one half alone, or more than one of a kind that is as good.
    """
    found: list[Path] = []
    for names in (_TRAIN, _TEST):
        ranked = [(names.index(name), one) for one in _folders(root) if (name := _half(one, names))]
        best = [one for rank, one in ranked if rank == min(ranked)[0]]
        if len(best) > 1:
            raise UsageError(
                f"'{root}' has both {best[0].name}/ and {best[1].name}/; keep one of them"
            )
        found += best
    train, test = (
        next((one for one in found if _half(one, names)), None) for names in (_TRAIN, _TEST)
    )
    if train is not None and test is not None:
        return train, test
    lone = train or test
    # A class may be called so, too; but then it holds images, and not folders of images.
    if lone is None or _at_top(lone) or not any(map(pictures, _folders(lone))):
        return None
    others = [one.name for one in _folders(root) if one != lone]
    wanted = _TEST if lone is train else _TRAIN
    if not others:
        raise UsageError(
            f"'{root}' has {lone.name}/ alone, and the classes inside it; give folder:{lone}, of "
            f"which a share is held out, or add the other half as {wanted[0]}/"
        )
    raise UsageError(
        f"'{root}' has a half {lone.name}/, but {', '.join(others[:5])} is no name of the other; "
        f"call it {' or '.join(wanted)}, or give folder:{lone}, of which a share is held out"
    )


def _half(folder: Path, names: tuple[str, ...]) -> str:
    """Which of these names of halves a folder has; empty if none."""
    words = "".join(filter(str.isalnum, folder.name.casefold()))
    forms = ((name, around) for name in names for around in _AROUND)
    return next((name for name, more in forms if words in (name + more, more + name)), "")


def _folders(folder: Path) -> list[Path]:
    """The subfolders that may be classes or halves, in the order of their names."""
    return sorted(one for one in folder.iterdir() if one.is_dir() and not is_hidden(one.name))


def _at_top(folder: Path) -> list[Path]:
    """Pictures that lie in no subfolder."""
    return [file for file in pictures(folder) if file.parent == folder]


def _beside(folder: Path, used: Collection[Path], left_out: LeftOut) -> None:
    """Count the files of a folder that lie in none of the subfolders that are used."""
    for one in folder.iterdir():
        if one in used:
            continue
        if not one.is_dir():
            left_out["hidden" if is_hidden(one.name) else "outside the classes"] += 1
        elif count := sum(file.is_file() for file in one.rglob("*")):
            left_out[f"in '{one.name}'"] += count


def _alike(label: str, known: Collection[str]) -> str:
    """The same name as it is known, whatever its Unicode form."""
    return next((one for one in known if composed(one) == composed(label)), label)


def _sorted(folder: Path, left_out: LeftOut) -> Sorted:
    """Image files below each first-level subfolder; hidden files and folders do not count.

    Raises:
        UsageError: if there are no two classes with images each.
    """
    classes = _folders(folder)
    found = {text_of(entry.name): pictures(entry, left_out) for entry in classes}
    _beside(folder, classes, left_out)
    if not any(found.values()):
        hint = f"; left out: {left_out}" if left_out else ""
        raise UsageError(
            f"'{folder}' has no images in subfolders; put .png, .jpg or other pictures into one "
            f"subfolder per class{hint}"
        )
    if len(found) == 1:
        (only,) = classes
        deeper = [one.name for one in _folders(only) if pictures(one)]
        hint = (
            f"; did you mean folder:{only}, which has {', '.join(deeper[:5])}?"
            if len(deeper) > 1 and not _at_top(only)
            else ""
        )
        raise UsageError(
            f"'{folder}' has one class only, '{only.name}'; classification needs a second "
            f"subfolder{hint}"
        )
    for label, files in found.items():
        if not files:
            raise UsageError(f"class '{label}' of '{folder}' has no images; fill it or remove it")
    return found

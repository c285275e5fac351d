"""Images of one's own: a folder with one subfolder for each class."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageOps

from bench.component import setting
from bench.data import DatasetSource, Places, Splits
from bench.datasets.pictures import ENDINGS, decode_all, fingerprint, halves, pictures
from bench.decoded import kept
from bench.errors import UsageError
from bench.files import user_path
from bench.registry import DATASETS
from bench.seeding import stream

Sorted = dict[str, list[Path]]
"""Image files by class; classes and files in the order of their names."""


@DATASETS.register("folder", argument="path")
@dataclass(frozen=True)
class Folder(DatasetSource):
    """Your own images: folder:PATH, with one subfolder for each class.

    The classes are the first-level subfolders in the order of their names; images may lie deeper.
    If PATH has `train/` and `test/` (or `val/`), these are the two halves and the classes lie in
    each of them; otherwise a share of every class is held out as test images, always the same.

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
        return user_path(self.path).resolve().name or self.name

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
        root = root.resolve()
        train, test = self._halves(root)
        files = [file for half in (train, test) for group in half.values() for file in group]
        folder = places.cache_dir / f"{self.title[:40]}-{fingerprint(self, root, files)[:16]}"
        return kept(folder, lambda: self._decode(train, test, places))

    def _halves(self, root: Path) -> tuple[Sorted, Sorted]:
        """Files of the training and of the test half, by class."""
        given = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
        if given is not None and (root / "train").is_dir():
            train, test = _sorted(root / "train"), _sorted(given)
            if train.keys() != test.keys():
                odd = sorted(train.keys() ^ test.keys())[0]
                here, there = ("train", given.name) if odd in train else (given.name, "train")
                raise UsageError(f"class '{odd}' of '{root}' is in {here}/ but not in {there}/")
            return train, test
        train, test = _sorted(root), {}
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
        try:
            with Image.open(file) as image:
                upright = _to_rgb(ImageOps.exif_transpose(image))
        except Exception as error:  # what a damaged file provokes depends on the format
            raise UsageError(f"cannot read the image '{file}': {error}") from error
        if self.size is not None:
            upright = ImageOps.fit(upright, (self.size, self.size), Image.Resampling.BICUBIC)
        return np.asarray(upright)


def _sorted(folder: Path) -> Sorted:
    """Image files below each first-level subfolder; hidden files and folders do not count.

    Raises:
        UsageError: if there are no two classes with images each.
    """
    classes = sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    found = {entry.name: pictures(entry) for entry in classes}
    if not any(found.values()):
        raise UsageError(
            f"'{folder}' has no images in subfolders; put {', '.join(sorted(ENDINGS))} files into "
            "one subfolder per class"
        )
    for label, files in found.items():
        if not files:
            raise UsageError(f"class '{label}' of '{folder}' has no images; fill it or remove it")
    if len(found) < 2:
        raise UsageError(
            f"'{folder}' has one class only, '{next(iter(found))}'; "
            "classification needs a second subfolder"
        )
    return found


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any picture as 8-bit RGB.

    Raises:
        ValueError: for floating-point pixels, which have no known white.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        # Pillow would clip these at 255. Some of its versions call 16-bit greys "I" (32 bits).
        greys = np.asarray(image).astype(np.int64)
        if greys.min() < 0 or greys.max() > 65535:
            raise ValueError("its greys need more than 16 bits; save it with 8 or 16")
        return Image.fromarray(np.round(greys / 257).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        if image.mode == "La":  # converts to nothing but LA
            image = image.convert("LA")
        drawing = image.convert("RGBA")
        white = Image.new("RGBA", drawing.size, "white")
        return Image.alpha_composite(white, drawing).convert("RGB")
    return image.convert("RGB")

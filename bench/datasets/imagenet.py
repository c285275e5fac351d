"""The first hundred classes of ImageNet in the two forms that papers use, from your copy of it.

Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, 2015.

Wanted is a folder with `train/` and `val/`, and in each of them a folder for every class, called
by its WordNet id (`n01440764`) or by its first name (`tench`); further folders are passed over.
Pictures become RGB squares of 224 pixels as torchvision's `Resize` and `CenterCrop` make them, are
decoded once and then mapped from disk: no more than a few of them are ever in memory. Orientation
tags are ignored, as by torchvision's loader. Training therefore sees the central square, where
papers crop it at random out of the whole picture for every epoch.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image

from bench.component import setting
from bench.data import DatasetSource, Places, Splits
from bench.datasets.pictures import decode_all, fingerprint, halves, pictures
from bench.decoded import kept
from bench.errors import UsageError
from bench.registry import DATASETS
from bench.seeding import stream

SIZE = 224
"""Pixels along each side."""
_CLASSES = 100


class Synset(NamedTuple):
    """A class of ImageNet."""

    wordnet_id: str
    name: str
    """The first of its words."""


class _FirstHundred(DatasetSource):
    """What the two share: where the pictures lie and how they are decoded."""

    measured_statistics: ClassVar[bool] = True

    def synsets(self) -> list[Synset]:
        """The classes in label order."""
        raise NotImplementedError

    def tested(self) -> Collection[str]:
        """Names of the classes whose validation pictures are the test images."""
        return [synset.name for synset in self.synsets()]

    def chosen(self, label: int, files: list[Path]) -> list[Path]:
        """Those of a class's training pictures that are used."""
        del label
        return files

    def shorter_side(self) -> int | None:
        """To how many pixels it is brought before the crop; None for no change."""
        raise NotImplementedError

    def load(self, places: Places) -> Splits:
        """Decode every picture, or reopen what was decoded while the files have not changed.

        Raises:
            UsageError: if the folder, one of its classes or one of its pictures cannot be used.
        """
        root, synsets, tested = self._find(places.data_dir), self.synsets(), set(self.tested())
        train = [
            (file, label)
            for label, synset in enumerate(synsets)
            for file in self.chosen(label, self._of_class(root / "train", synset))
        ]
        test = [
            (file, label)
            for label, synset in enumerate(synsets)
            if synset.name in tested
            for file in self._of_class(root / "val", synset)
        ]
        files, labels = (list(part) for part in zip(*train, *test, strict=True))
        mark = fingerprint(self, root, files, places.cache_dir)
        folder = places.cache_dir / f"{self.name}-{mark[:16]}"

        def decode() -> Splits:
            images = decode_all(files, self._pixels, self.name, places)
            names = [synset.name for synset in synsets]
            return halves(images, labels, len(train), names, self.name)

        return kept(folder, decode)

    def _find(self, data_dir: Path) -> Path:
        """The folder with the two halves.

        Raises:
            UsageError: if there is none.
        """
        folders = (self.name, "imagenet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC", "")
        for folder in (data_dir / inside for inside in folders):
            if (folder / "train").is_dir() and (folder / "val").is_dir():
                return folder.resolve()
        raise UsageError(
            f"{self.name} is not in {data_dir}: neither it nor {', '.join(folders[:-1])} inside it "
            "has train/ and val/ with a folder for each class, such as n01440764 or tench. "
            "ImageNet cannot be downloaded without an account: put your copy into "
            f"{data_dir / 'imagenet'}, or name the folder that has it with --data-dir"
        )

    def _of_class(self, half: Path, synset: Synset) -> list[Path]:
        """A class's pictures in the order of their names.

        Raises:
            UsageError: if there are none.
        """
        spellings = (synset.wordnet_id, synset.name, synset.name.replace(" ", "_"))
        folder = next((half / name for name in spellings if (half / name).is_dir()), None)
        if folder is None:
            raise UsageError(
                f"{self.name}: '{half}' has no folder {synset.wordnet_id} or '{synset.name}'; "
                f"all {_CLASSES} classes are needed there, each in a folder of its own"
            )
        files = pictures(folder)
        if not files:
            raise UsageError(f"{self.name}: '{folder}' has no pictures; unpack the class again")
        return files

    def _pixels(self, file: Path) -> np.ndarray:
        """One picture as (224, 224, 3) uint8.

        Raises:
            UsageError: if Pillow cannot read it.
        """
        from torchvision import transforms  # here, because it takes seconds and is seldom needed

        try:
            with Image.open(file) as image:
                picture = image.convert("RGB")
        except Exception as error:  # what a damaged file provokes depends on the format
            raise UsageError(f"cannot read the image '{file}': {error}") from error
        shorter = self.shorter_side()
        resized = [] if shorter is None else [transforms.Resize(shorter)]
        return np.asarray(transforms.Compose([*resized, transforms.CenterCrop(SIZE)])(picture))


@DATASETS.register("imagenet-100")
@dataclass(frozen=True)
class ImageNet100(_FirstHundred):
    """The first 100 classes of ImageNet in the order of their WordNet ids, 224 x 224 pixels.

    ULE's subset: some 130,000 pictures to train on and 5000 to test, resized to 256 pixels along
    the shorter side before the central square is cut out. Elsewhere other lists of a hundred
    classes go by the same name; they are not this one.
    """

    share: float = setting(
        1.0, "share of each class's training images, the same for everybody; ULE takes 0.2"
    )

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share}: it must be above 0 and at most 1")

    def synsets(self) -> list[Synset]:
        """In the order of the WordNet ids."""
        return list(first_hundred())

    def chosen(self, label: int, files: list[Path]) -> list[Path]:
        """A random part, which depends on the class and its number of pictures alone."""
        count = max(round(self.share * len(files)), 1)
        wordnet_id = first_hundred()[label].wordnet_id
        order = torch.randperm(len(files), generator=stream(0, "share", wordnet_id))
        return [files[row] for row in order[:count].sort().values.tolist()]

    def shorter_side(self) -> int:
        """256 pixels."""
        return 256


@DATASETS.register("sep-imagenet")
@dataclass(frozen=True)
class SepImageNet(_FirstHundred):
    """SEP's ImageNet subset: 100 classes in the order of their names, tested on ten of them.

    The classes are those of `imagenet-100`, but SEP kept them in folders called by name, so that
    labels follow the ASCII order of the names, capitals first. SEP protects all pictures of ten
    classes, `protected_classes`, and measures accuracy on the 500 validation pictures of these
    ten alone, with a network of 100 outputs: they are the test images here, their labels are kept.

    The released code cuts its test images, and those it protects, out of the middle without
    resizing; whether the folder had been resized before is unknown. `resize=none` is that literal
    form, in which smaller pictures get a black border; the default resizes first, as is usual.
    """

    paper: ClassVar[str] = "Chen et al., Self-Ensemble Protection, ICLR 2023"
    protected_classes: ClassVar[tuple[str, ...]] = (
        "African chameleon",
        "black grouse",
        "electric ray",
        "hammerhead",
        "hen",
        "house finch",
        "king snake",
        "ostrich",
        "tailed frog",
        "wolf spider",
    )
    """In label order; SEP's targets go half round among them."""

    resize: int | None = setting(
        256, "pixels along the shorter side before the central 224 are cut out, none to leave it"
    )

    def __post_init__(self) -> None:
        if self.resize is not None and self.resize < SIZE:
            raise ValueError(f"resize={self.resize}: it must be at least {SIZE}, or none")

    def synsets(self) -> list[Synset]:
        """In the order of the names as computers sort them."""
        return sorted(first_hundred(), key=lambda synset: synset.name)

    def tested(self) -> Collection[str]:
        """Those that are protected."""
        return self.protected_classes

    def shorter_side(self) -> int | None:
        """As set."""
        return self.resize


@cache
def first_hundred() -> tuple[Synset, ...]:
    """The first classes of ILSVRC 2012 in the order of their WordNet ids, as timm lists them."""
    # Here, because it takes seconds and is seldom needed.
    from timm.data.imagenet_info import ImageNetInfo

    known = ImageNetInfo()
    ids = sorted(known.label_names())[:_CLASSES]
    return tuple(Synset(one, known.label_name_to_description(one).split(", ")[0]) for one in ids)

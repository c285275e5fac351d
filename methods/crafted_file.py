"""Somebody's own crafted images, run through the same grid as every method here.

What decides the numbers is the content of the file, so its hash stands in the identity, and the
path does not: a set that was moved is still the same set, and one that was changed is another.
Sets come from anywhere. They are read without pickle, never unpacked to disk, and an image is
decoded only after its size has been found right.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bench.budget import Budget, fraction
from bench.component import setting
from bench.crafting import Crafting
from bench.data import ImageDataset, portion, to_levels, to_unit
from bench.datasets.pictures import pictures, read_picture, refuse_damaged
from bench.errors import UsageError
from bench.files import user_path
from bench.method import Method
from bench.names import text_of
from bench.registry import METHODS
from bench.resemblance import Resemblance

DAMAGE = (
    *(OSError, ValueError, EOFError, KeyError, MemoryError, RuntimeError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, TypeError, OverflowError),  # headers with odd shapes
)
"""What reading a damaged archive may raise."""
ROUND_OFF = 1e-5
"""How far beyond [0, 1] float32 arithmetic may have carried a float image."""


@METHODS.register("file", argument="path")
@dataclass(frozen=True)
class CraftedFile(Method):
    """Your own crafted images: file:PATH, an .npz, an .npy or a folder of images.

    An .npz, made by numpy.savez(PATH, images=..., labels=..., rows=...), holds

        images    (n, h, w, 3) or (n, 3, h, w), uint8, or float in [0, 1], which is rounded
        labels    optional, (n,) whole numbers; they must agree with the data set
        rows      optional, (n,) whole numbers: which training images these replace, counted
                  from 0 in the official order; `index` is understood, too

    An .npy holds the images alone. Without `rows` the images stand in the order of the training
    split, all of it, or exactly the part that the recipe trains on.

    In a folder, a file is named after the row that it replaces, as 123.png or 00123.png; it may
    lie in a subfolder, and one that has a class's name must hold images of that class. Other names
    are taken in sorted order within each class's subfolder, which must then hold as many images as
    the run trains on: that is how the data set folder:PATH orders its own. JPEG loses details.

    Whatever the set says of its order, its images must be recognisable as the clean ones that they
    replace: other rows, exchanged channels or axes, and noise without images are refused. Images
    too strange to be recognised are taken with match=trust, and tables say so.

    Images that the set does not cover stay clean and do not count as protected, as do those outside
    --poison-ratio. With epsilon=8/255 a set that changes any value by more is refused; without, it
    may do anything, and the audit says what it did.

    python run_bench.py --methods file:mine.npz,sep
    python run_bench.py --methods "file:mine.npz,epsilon=8/255" --recipe paper
    """

    path: str = setting(MISSING, "an .npz, an .npy, or a folder of images")
    epsilon: float | None = setting(None, "refuse more than this l∞ distance; none: no bound")
    match: Literal["check", "trust"] = setting(
        "check",
        "check: its images must resemble the clean ones; trust: whatever they are of",
        added=True,
    )

    def __post_init__(self) -> None:
        if self.epsilon is not None and not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon={self.epsilon:g} must lie between 0 and 1, as 8/255 does")
        self._source()

    @property
    def title(self) -> str:
        """`file:` and the name without its ending."""
        file = self._file.absolute()
        return f"{self.name}:{text_of(file.name if file.is_dir() else file.stem)}"

    @property
    def budget(self) -> Budget:
        """The bound that was asked for, or none."""
        return Budget("none") if self.epsilon is None else Budget("linf", self.epsilon)

    def settings(self) -> dict[str, Any]:
        """The content's hash in place of the path."""
        said = {key: value for key, value in super().settings().items() if key != "path"}
        return {"digest": self.digest, **said}

    def deviations(self) -> dict[str, list[Any]]:
        """There is no paper to deviate from, but a check that may have been left out."""
        return {} if self.match == "check" else {"match": [self.match, "check"]}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file, or of the names and contents of a folder's images."""
        try:
            return self._source().digest()
        except OSError as error:
            raise UsageError(f"'{self.path}' cannot be read: {error}") from None

    def check(self, train: ImageDataset, rows: Tensor, total: int) -> None:
        """Read the whole set against the data set, before anything is trained."""
        self._read(train, rows, total, None)

    def craft(self, job: Crafting) -> Tensor:
        """Protected minus clean; zero for images that the set does not cover."""
        delta = job.blank()
        covered = torch.zeros_like(job.mask)
        covered[self._read(job.dataset, job.rows, None, delta)] = True
        job.mask = job.mask & covered
        if CraftedFile(self.path).digest != self.digest:
            raise UsageError(f"'{self.path}' has changed since this run began; start it again")
        return delta

    @property
    def _file(self) -> Path:
        return user_path(self.path)

    def _source(self) -> Arrays | Pictures:
        """A reader that suits the file; it has looked at names and headers only."""
        try:
            if self.path and self._file.is_dir():
                return Pictures(self._file)
            with self._file.open("rb") as content:
                start = content.read(6)
        except FileNotFoundError:
            raise UsageError(
                f"'{self.path}' does not exist; give an .npz, an .npy or a folder of images"
            ) from None
        except OSError as error:
            raise UsageError(f"'{self.path}' cannot be read: {error.strerror}") from None
        if start.startswith(b"PK") or start == b"\x93NUMPY":
            return Arrays(self._file, compressed=start.startswith(b"PK"))
        raise UsageError(
            f"'{self.path}' is neither an .npz nor an .npy file nor a folder; write one with "
            "numpy.savez(PATH, images=..., labels=...)"
        )

    def _read(
        self, train: ImageDataset, rows: Tensor, total: int | None, delta: Tensor | None
    ) -> Tensor:
        """Read all images, fill delta with what `craft` returns, or say why the set does not fit.

        Args:
            train: the clean training images.
            rows: where they stand in the whole training split.
            total: images in the whole training split, or None where that has been checked.
            delta: zeros to be filled, or None to check only.

        Returns:
            The places in `train` that the set covers, (m,) int64.
        """
        source = self._source()
        which, places = source.match(train, rows, total)
        most, size = torch.zeros(len(train)), portion(train.images)
        resemblance = Resemblance(train, rows, places)
        checked = delta is None and self.match == "check"
        for chosen, here in zip(which.split(size), places.split(size), strict=True):
            images = to_unit(source.read(chosen))
            change = images - to_unit(train.images[here])
            if delta is not None:
                delta[here] = change
            if checked:
                resemblance.add(to_unit(to_levels(images)))
            most[here] = change.abs().flatten(1).amax(1)
        source.finish()
        if checked:
            seen = resemblance.objection(lambda n: to_unit(source.read(which[n])))
            if seen is not None:
                raise UsageError(
                    f"'{self.path}' {seen}; bring its images into the order and form of the "
                    "training split, or accept them as they are with match=trust"
                )
        if self.epsilon is not None and float(most.max()) > self.epsilon * (1 + 1e-4) + 1e-6:
            levels = round(float(most.max()) * 255, 3)  # free of float32's round-off
            raise UsageError(
                f"'{self.path}' changes a value of row {int(rows[most.argmax()])} by "
                f"{levels:.4g}/255, more than epsilon={fraction(self.epsilon)}; allow it, or leave "
                "epsilon out"
            )
        return places


class Arrays:
    """Images in an .npz or .npy file.

    Args:
        file: one whose first bytes say that it is of this kind.
        compressed: whether it is an .npz, which may unpack to much more than its own size.
    """

    def __init__(self, file: Path, compressed: bool) -> None:
        self._path, self._compressed = file, compressed
        if compressed:
            with self._reading(), zipfile.ZipFile(file) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist()]
                if any(name.endswith("data.pkl") for name in names):
                    raise self._wrong(
                        "is a PyTorch file, which may hold code; write the images, not the "
                        "perturbation, with numpy.savez(PATH, images=..., labels=...)"
                    )
                if "images" not in names:
                    raise self._wrong(f"holds {_some(names)} but no 'images'")

    def digest(self) -> str:
        """SHA-256 of the file."""
        with self._path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()

    def match(self, train: ImageDataset, rows: Tensor, total: int | None) -> tuple[Tensor, Tensor]:
        """Which images are used, and the places in `train` that they take.

        Args:
            train: the clean training images of the run.
            rows: (n,) int64, where they stand in the whole training split.
            total: images in the whole training split, or None where that has been checked.
        """
        height, width = train.image_size
        most = max(total or 0, int(rows.max()) + 1)
        found = self._load(limit=most * 3 * height * width * 8)
        images = found["images"]
        if images.ndim == 0 or len(images) == 0:
            raise self._wrong("holds no images")
        if images.dtype != np.uint8 and images.dtype.kind != "f":
            raise self._wrong(f"holds images as {images.dtype}; save uint8, or float in [0, 1]")
        if images.shape[1:] == (height, width, 3):
            images = images.transpose(0, 3, 1, 2)
        elif images.shape[1:] != (3, height, width):
            raise self._wrong(
                f"holds images of shape {images.shape}, where {train.name} needs "
                f"(n, {height}, {width}, 3) or (n, 3, {height}, {width})"
            )
        self._images = images
        numbers = found.get("rows", found.get("index"))
        if numbers is not None:
            which, places = self._by_row(self._whole_numbers("rows", numbers), rows, total)
        else:
            which, places = self._in_order(rows, total)
        labels = found.get("labels")
        if labels is not None:
            given = self._whole_numbers("labels", labels)
            _compare_labels(self._path, given[which], train.labels[places], rows[places])
        return which, places

    def read(self, which: Tensor) -> Tensor:
        """The images of these numbers, (b, 3, h, w), uint8 or float32 in [0, 1]."""
        images = self._images[which.numpy()]
        if images.dtype == np.uint8:
            return torch.from_numpy(np.ascontiguousarray(images))
        broken = ~np.isfinite(images).reshape(len(images), -1).all(axis=1)
        if broken.any():
            first = int(which[int(broken.argmax())])
            raise self._wrong(f"holds values that are no finite numbers, first in image {first}")
        low, high = float(images.min()), float(images.max())
        if low < -ROUND_OFF or high > 1 + ROUND_OFF:
            raise self._wrong(
                f"holds float images between {low:.4g} and {high:.4g}; bring them to [0, 1], "
                "or save grey levels as uint8"
            )
        return torch.from_numpy(images.astype(np.float32)).clamp(0, 1)

    def finish(self) -> None:
        """Nothing is left to say once all images are read."""

    def _by_row(self, given: Tensor, rows: Tensor, total: int | None) -> tuple[Tensor, Tensor]:
        if len(given.unique()) < len(given):
            raise self._wrong(f"names row {int(given.mode().values)} more than once")
        return _places_of(self._path, given, rows, total)

    def _in_order(self, rows: Tensor, total: int | None) -> tuple[Tensor, Tensor]:
        count, places = len(self._images), torch.arange(len(rows))
        if count == len(rows):
            return places, places
        if count == total or (total is None and count > int(rows.max())):
            return rows, places
        whole = "" if total in (None, len(rows)) else f", or the {total} of the whole split,"
        raise self._wrong(
            f"holds {count} images; give the {len(rows)} that this run trains on{whole} in order, "
            "or store their 'rows'"
        )

    def _whole_numbers(self, name: str, numbers: np.ndarray) -> Tensor:
        """Labels or rows as (n,) int64."""
        if numbers.dtype.kind not in "iu" or numbers.shape != self._images.shape[:1]:
            raise self._wrong(
                f"holds '{name}' as {numbers.dtype} of shape {numbers.shape}, where whole numbers "
                f"of shape ({len(self._images)},) are needed"
            )
        return torch.from_numpy(numbers.astype(np.int64))

    def _load(self, limit: int) -> dict[str, np.ndarray]:
        """The arrays that matter; `limit` in bytes is what the largest sensible one takes."""
        with self._reading():
            if not self._compressed:
                return {"images": np.load(self._path, mmap_mode="r", allow_pickle=False)}
            with zipfile.ZipFile(self._path) as archive:
                members = archive.namelist()
                sizes = {info.filename: info.file_size for info in archive.infolist()}
            with np.load(self._path, allow_pickle=False) as archive:
                found = {}
                for name in ("images", "labels", "rows", "index"):
                    if name in archive:
                        if members.count(f"{name}.npy") != 1 or name in members:
                            raise self._wrong(f"holds '{name}' twice, or not as an array")
                        if sizes.get(f"{name}.npy", 0) > limit + 2**20:
                            raise self._wrong(
                                f"unpacks '{name}' to {sizes[f'{name}.npy'] / 1e6:.0f} MB, where "
                                f"{limit / 1e6:.0f} MB hold the whole training split"
                            )
                        found[name] = archive[name]
                return found

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn whatever a damaged or foreign file provokes into one line."""
        try:
            yield
        except UsageError:
            raise
        except DAMAGE as error:
            why = " ".join(str(error).split()) or type(error).__name__
            raise self._wrong(
                f"is damaged or holds Python objects ({why}); write it again with "
                "numpy.savez(PATH, images=..., labels=...)"
            ) from None

    def _wrong(self, what: str) -> UsageError:
        return UsageError(f"'{self._path}' {what}")


class Pictures:
    """Images in a folder.

    Args:
        folder: hidden files and whatever is no image are passed over.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder
        self._files = pictures(folder)
        self._names = [text_of(file.relative_to(folder).as_posix()) for file in self._files]
        self._damaged: list[str] = []
        if not self._files:
            raise UsageError(f"'{folder}' has no images; it needs .png files, or give an .npz file")
        numbered = all(re.fullmatch(r"[0-9]{1,18}", file.stem) for file in self._files)
        self._by_number = numbered and len({int(f.stem) for f in self._files}) == len(self._files)

    def digest(self) -> str:
        """SHA-256 of names, sizes and contents."""
        sha = hashlib.sha256()
        for name, file in zip(self._names, self._files, strict=True):
            content = file.read_bytes()
            sha.update(f"{name}\0{len(content)}\0".encode())
            sha.update(content)
        return sha.hexdigest()

    def match(self, train: ImageDataset, rows: Tensor, total: int | None) -> tuple[Tensor, Tensor]:
        """Which images are used, and the places in `train` that they take, as for `Arrays`."""
        self._size = train.image_size
        tops = [name.partition("/")[0] if "/" in name else None for name in self._names]
        if not self._by_number:
            return self._by_class(tops, train)
        given = torch.tensor([int(file.stem) for file in self._files])
        which, places = _places_of(self._path, given, rows, total)
        known = {name: label for label, name in enumerate(train.classes)}
        labels = torch.tensor([known.get(str(top), -1) for top in tops])[which]
        told = labels >= 0
        taken = places[told]
        _compare_labels(self._path, labels[told], train.labels[taken], rows[taken])
        return which, places

    def read(self, which: Tensor) -> Tensor:
        """The images of these numbers, (b, 3, h, w) uint8; those that are damaged are black."""
        height, width = self._size
        pixels = np.zeros((len(which), height, width, 3), np.uint8)
        for place, number in enumerate(which.tolist()):
            try:
                pixels[place] = read_picture(self._files[number], exact=(width, height))
            except UsageError as error:
                self._damaged.append(str(error))
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def finish(self) -> None:
        """Raise UsageError with all that could not be read."""
        refuse_damaged(self._damaged)

    def _by_class(self, tops: list[str | None], train: ImageDataset) -> tuple[Tensor, Tensor]:
        """The files of each class in sorted order, for the images of that class in order."""
        odd = next((top for top in tops if top not in train.classes), "")
        if odd != "":
            where = "at its top" if odd is None else f"in '{odd}', which is no class of it"
            raise UsageError(
                f"'{self._path}' has images {where}; name files after training rows, as 123.png, "
                f"or use a subfolder for each class of {train.name}: {_some(train.classes)}"
            )
        have, places = Counter(tops), []
        for label, name in enumerate(train.classes):
            members = (train.labels == label).nonzero().flatten()
            if name in have:
                if have[name] != len(members):
                    raise UsageError(
                        f"'{self._path}' has {have[name]} images of '{name}', but the run trains "
                        f"on {len(members)}; name files after training rows, as 123.png, or train "
                        "on all images with --recipe NAME:train_images=none"
                    )
                places.append((name, members))
        # Names are sorted by class folder, classes need not be.
        order = [members for _, members in sorted(places, key=lambda item: f"{item[0]}/")]
        return torch.arange(len(tops)), torch.cat(order)


def _places_of(path: Path, given: Tensor, rows: Tensor, total: int | None) -> tuple[Tensor, Tensor]:
    """Match distinct rows of the training split with those of the run.

    Args:
        path: for messages.
        given: (m,) int64, the rows of a set.
        rows: (n,) int64, sorted, the rows of the run.
        total: images in the whole training split, or None where that has been checked.

    Returns:
        Numbers below m and places below n, both (k,) int64.
    """
    low, high = int(given.min()), int(given.max())
    if low < 0 or (total is not None and high >= total):
        wrong = low if low < 0 else high
        raise UsageError(
            f"'{path}' replaces row {wrong}, but rows of the training split run from 0 to "
            f"{(total or len(rows)) - 1}"
        )
    place = torch.searchsorted(rows, given).clamp_max(len(rows) - 1)
    which = (rows[place] == given).nonzero().flatten()
    if not len(which):
        raise UsageError(
            f"'{path}' replaces none of the {len(rows)} images that this run trains on; train on "
            "all with --recipe NAME:train_images=none"
        )
    return which, place[which]


def _compare_labels(path: Path, given: Tensor, labels: Tensor, rows: Tensor) -> None:
    wrong = (given != labels).nonzero().flatten()
    if len(wrong):
        first = int(wrong[0])
        raise UsageError(
            f"labels of {len(wrong)} of {len(labels)} images in '{path}' disagree with the data "
            f"set, first in row {int(rows[first])}: {int(given[first])}, where it has "
            f"{int(labels[first])}; bring the images into the order of the training split"
        )


def _some(names: Iterable[str]) -> str:
    """A few names, for a message."""
    names = list(names)
    shown = ", ".join(map(str, names[:10])) or "nothing"
    return f"{shown} and {len(names) - 10} more" if len(names) > 10 else shown

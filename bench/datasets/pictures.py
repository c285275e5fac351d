"""Picture files: which there are, what is in them, and all of them in one array on disk."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

from bench.data import DatasetSource, ImageDataset, Places, Splits
from bench.decoded import channel_statistics
from bench.errors import UsageError
from bench.files import unnamed_array, write_text

_NO_PICTURES = {
    *("EPS", "PDF", "WMF", "EMF"),  # drawings, some of which start other programs
    *("MPEG", "BUFR", "GRIB", "HDF5"),  # known by name only
    *("ICO", "CUR", "ICNS"),  # icons, which programs put into folders
}
"""Formats in Pillow's lists that are passed over."""
_KNOWN_BY_CONTENT = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Formats that are recognised in a file without an ending."""
_OF_PROGRAMS = {
    *("__macosx", "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),
    *("$recycle.bin", "recycler", "lost+found", "system volume information", "captureone"),
    *("__pycache__", "thumbnails", "_thumbs"),
}
"""Folders that cameras, network disks and programs make for themselves, in lower case."""
_AT_ONCE = 64
"""Pictures decoded side by side; each waits in memory for its turn to be stored."""
_NAMED = 20
"""So many damaged pictures are named in a message."""
_SETTLED = 2.0
"""Seconds after which a file that changes again has another time of change on any file system."""

T = TypeVar("T")


class LeftOut(Counter[str]):
    """How many files were passed over, by reason."""

    def __str__(self) -> str:
        """In words, the most frequent first."""
        parts = ", ".join(f"{count} {reason}" for reason, count in self.most_common())
        return f"{self.total()} files ({parts})"


@cache
def endings() -> frozenset[str]:
    """Of the files that Pillow reads as pictures, in lower case with a dot."""
    return frozenset(end for end, kind in Image.registered_extensions().items() if kind in kinds())


@cache
def kinds() -> tuple[str, ...]:
    """Formats that Pillow reads as pictures here, with what plug-ins of it add."""
    Image.init()
    return tuple(kind for kind in Image.OPEN if kind not in _NO_PICTURES)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or belongs to a program."""
    return name.startswith(".") or name.lower() in _OF_PROGRAMS


def pictures(folder: Path, left_out: LeftOut | None = None) -> list[Path]:
    """Picture files at any depth, ordered by their path inside the folder; none that is hidden.

    Args:
        folder: where to look; links to folders inside it are not followed.
        left_out: counts what is passed over.

    Raises:
        UsageError: if a folder cannot be read.
    """
    found: dict[str, Path] = {}
    for place, reason in _files(folder):
        reason = reason or _no_picture(place)
        if not reason:
            found[place.relative_to(folder).as_posix()] = place
        elif left_out is not None:
            left_out[reason] += 1
    return [found[name] for name in sorted(found)]


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    """All files in a folder, each with why it does not count, if so."""

    def unreadable(error: OSError) -> None:
        raise UsageError(f"'{error.filename}' cannot be read: {error.strerror}")

    for top, folders, files in os.walk(folder, onerror=unreadable):
        inside = Path(top).relative_to(folder).parts
        odd = next((part for part in inside if is_hidden(part)), None)
        reason = "" if odd is None else f"in '{odd}'"
        for name in files:
            yield Path(top, name), reason or ("hidden" if is_hidden(name) else "")
        for name in folders:
            if Path(top, name).is_symlink():
                yield Path(top, name), reason or "linked folders"


def _no_picture(file: Path) -> str:
    """Why a file is no picture; empty if it is one."""
    ending = file.suffix.lower()
    if not file.is_file():
        return "no regular files"
    if ending in endings():
        return ""
    if ending:
        return f"with the ending {ending}"
    try:
        with Image.open(file, formats=_KNOWN_BY_CONTENT):
            return ""
    except Exception:  # noqa: BLE001 - what other content provokes depends on the content
        return "without an ending"


def read_picture(file: Path, exact: tuple[int, int] | None = None) -> np.ndarray:
    """Any picture as 8-bit RGB, upright.

    Orientation tags are applied, transparent parts are laid over white, 16-bit greys are scaled
    down, and of an animation the first frame is taken.

    Args:
        file: where it is.
        exact: width and height that it must have, looked at before it is decoded.

    Returns:
        (h, w, 3) uint8.

    Raises:
        UsageError: if Pillow cannot read it, or it has another size.
    """
    try:
        with Image.open(file, formats=kinds()) as image:
            size = image.size
            if image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8):
                size = size[::-1]
            if exact in (None, size):
                return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except Exception as error:  # what a damaged file provokes depends on the format
        why = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"cannot read the image '{file}': {why}") from error
    needed = f"{exact[0]} x {exact[1]}" if exact else ""
    raise UsageError(f"the image '{file}' has {size[0]} x {size[1]} pixels; {needed} are needed")


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


def refuse_damaged(damaged: Sequence[str]) -> None:
    """Raise UsageError with all of these messages, if there are any."""
    if len(damaged) < 2:
        for message in damaged:
            raise UsageError(message)
        return
    more = f"; and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
    said = "; ".join(damaged[:_NAMED])
    raise UsageError(f"{len(damaged)} images cannot be used: {said}{more}")


def fingerprint(source: DatasetSource, root: Path, files: Iterable[Path], cache_dir: Path) -> str:
    """SHA-256 of all that decides what decoding gives: the content of the files.

    It is kept with a first look at the files: inode, size, time of change and time of
    modification of each. Where any of them is another, all files are read again.

    Args:
        source: what reads them.
        root: a folder; where it lies does not count.
        files: below it, in their order; their names count.
        cache_dir: where first looks are kept.

    Raises:
        UsageError: if one cannot be read.
    """
    files = list(files)
    look = hashlib.sha256(json.dumps(source.identity()).encode())
    whole, newest = look.copy(), 0.0
    try:
        for file in files:
            facts = file.stat()
            seen = facts.st_ino, facts.st_size, facts.st_ctime_ns, facts.st_mtime_ns
            look.update(os.fsencode(file.relative_to(root).as_posix()))
            look.update(f"\0{seen}\0".encode())
            newest = max(newest, facts.st_ctime)
        known = cache_dir / "looks" / f"{look.hexdigest()}.txt"
        if known.is_file() and len(text := known.read_text(encoding="ascii")) == 64:
            return text
        with ThreadPoolExecutor() as pool:
            for file, content in zip(files, pool.map(_digest, files), strict=True):
                whole.update(os.fsencode(file.relative_to(root).as_posix()))
                whole.update(f"\0{content}\0".encode())
        # A file that changes once more within its clock's tick would look the same.
        if time.time() - newest > _SETTLED:
            write_text(known, whole.hexdigest())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"'{root}' cannot be read: {error}") from None
    return whole.hexdigest()


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


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
        UsageError: if any cannot be read, with all of those; or if two differ in size.
    """

    def attempt(file: T) -> np.ndarray | UsageError:
        try:
            return decode(file)
        except UsageError as error:
            return error

    images: np.memmap | None = None
    first, damaged, odd = 0, [], ""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), _AT_ONCE):
            some = files[start : start + _AT_ONCE]
            for row, pixels in enumerate(pool.map(attempt, some), start):
                places.progress(f"reading {title}", row, len(files))
                if isinstance(pixels, UsageError):
                    damaged.append(str(pixels))
                    continue
                height, width, _ = pixels.shape
                if images is None:
                    shape = (len(files), 3, height, width)
                    images, first = unnamed_array(places.cache_dir, shape, "uint8"), row
                if images.shape[2:] == (height, width):
                    images[row] = pixels.transpose(2, 0, 1)
                elif not odd:
                    odd = (
                        f"images differ in size: '{files[first]}' has {images.shape[3]} x "
                        f"{images.shape[2]} pixels, '{files[row]}' has {width} x {height}; "
                        "bring all to one with size=32"
                    )
    refuse_damaged(damaged)
    if odd or images is None:
        raise UsageError(odd or f"{title} has no images")
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

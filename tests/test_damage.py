"""Nothing damaged is used in silence: flipped bits, cut files, strangers' records, from seeds."""

import errno
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

import run_bench
from bench import Grid, record, soundness
from bench.budget import Budget
from bench.crafting import Crafting, Monitor
from bench.data import Places
from bench.datasets.synthetic import Synthetic
from bench.errors import DivergedError, Stopped, UsageError
from bench.files import Unfinished, make_array, write_text
from bench.pgd import Iterate
from bench.registry import METHODS, ROOT, load_plugin
from bench.reports.report import write_report
from bench.running import runner
from bench.running.runner import Outcome, run_session
from bench.running.session import Session
from bench.samples import read_sample, sample_file, write_sample
from bench.store import MANIFEST, Store, check_locks, key_of
from bench.train import Training
from tests.damage import KINDS, campaign, flip, hostile, spoil
from tests.invented import AUDIT
from tests.test_compare import made, study

NOWHERE = Places(Path(), Path(), download=False)

GRID = Grid(
    methods="sep:checkpoints=2",
    archs="rn18:width=0.0625",
    dataset="synthetic:train=48,test=20,size=8",
    recipe="quick:epochs=2,batch_size=24,train_images=none,curve_images=10",
    precision="fp32",
)


def go(folder: Path, grid: Grid = GRID) -> tuple[Outcome, str]:
    """Run a grid in folders of its own; what came of it, and what was said."""
    said = io.StringIO()
    session = Session(grid, folder / "results", folder / "store", folder / "data")
    return run_session(session, 1, 1, said), said.getvalue()


def numbers(folder: Path) -> dict[str, dict[str, Any]]:
    """What must not depend on damage."""
    times = {"seconds", "core_seconds", "crafting_seconds", "finished", "peak_memory"}
    return {
        one["key"]: {name: value for name, value in one.items() if name not in times}
        for one in record.read_all(folder / "results")
    }


def run_on(folder: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """Run to the end; raise where a task fails."""
    outcome, said = go(folder)
    if outcome.failed:
        raise RuntimeError(str(outcome.failed))
    return said, numbers(folder)


def stop_at(look: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was stopped when it looked at the clock for that time."""
    looks = iter(range(look))
    with monkeypatch.context() as patch:
        patch.setattr(Session, "time_is_up", lambda session: next(looks, None) is None)
        patch.setattr("bench.crafting.CPU_CHUNK", 24)
        patch.setattr("bench.crafting.SAVE_EVERY_SECONDS", 0.0)
        go(folder)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    run_on(folder)
    return folder


# Unfinished work.


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def work(tmp_path: Path, notes: list[str]) -> Unfinished:
    return Unfinished(tmp_path / "partial", "k" * 64, notes.append)


def test_one_flipped_bit_in_unfinished_work_is_noticed(work: Unfinished, notes: list[str]) -> None:
    state = {"weights": torch.arange(64.0), "epoch": 3, "curve": json.dumps([0.25, 0.5])}
    work.save("training", state)
    work.write("clock", {"seconds": 12.5, "core_seconds": 10.0})
    files, draws = sorted(work.folder.iterdir()), random.Random(0)
    for file in files:
        content = file.read_bytes()
        for _ in range(150):
            file.write_bytes(flip(content, draws))
            assert (work.load("training") if file.suffix == ".pt" else work.read("clock")) is None
            assert not file.exists(), "what is damaged makes room"
        file.write_bytes(content)
    assert len(notes) == 300
    found = work.load("training")
    assert found is not None
    assert found["weights"].equal(state["weights"])
    assert work.read("clock") == {"seconds": 12.5, "core_seconds": 10.0}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "missing"])
def test_whatever_lies_in_the_place_of_unfinished_work_is_told_and_removed(
    kind: str, tmp_path: Path, work: Unfinished, notes: list[str]
) -> None:
    other = Unfinished(tmp_path / "other", "o" * 64, notes.append)
    for one, value in ((work, 1.0), (other, 2.0)):
        one.save("training", {"value": value})
        one.write("clock", {"value": value})
    for ending in ("training.pt", "clock.json"):
        spoil(work.folder / ending, kind, random.Random(0), [other.folder / ending])
    assert work.load("training") is None
    assert work.read("clock") is None
    assert [note.split(" is ")[0] for note in notes] == [
        str(work.folder / ending) for ending in ("training.pt", "clock.json")
    ]
    work.save("training", {"value": 3.0})
    assert work.load("training") == {"value": 3.0}
    shutil.copy(work.folder / "training.pt", work.folder / "epoch-001.pt")
    assert work.load("epoch-001") is None


class Saves(Monitor):
    """Saves at every safe point, notes, and stops at one of them."""

    save_every = -1.0

    def __init__(self, notes: list[str], points: int = 10**9) -> None:
        super().__init__()
        self._notes, self._left = notes, points

    def note(self, text: str) -> None:
        self._notes.append(text)

    def stopping(self) -> bool:
        self._left -= 1
        return self._left == 0


def crafting(folder: Path, monitor: Monitor, key: str = "k") -> Crafting:
    """A job on 20 images of which the last 15 are protected."""
    return Crafting(
        dataset=Synthetic(train=20, test=4, size=8).load(NOWHERE).train,
        rows=torch.arange(20),
        mask=torch.arange(20) >= 5,
        seed=0,
        device=torch.device("cpu"),
        precision="fp32",
        trained=lambda number: [],
        scratch=folder,
        key=key,
        monitor=monitor,
    )


def counted(done: list[int], scale: float = 255) -> Callable[[Tensor, Tensor, int], Tensor]:
    """What a method does to a chunk; it notes the chunk's number."""

    def perturb(images: Tensor, labels: Tensor, number: int) -> Tensor:
        done.append(number)
        return images / scale + number + 1

    return perturb


@pytest.mark.parametrize(("row", "again"), [(6, [0, 1, 2]), (12, [1, 2]), (2, [2])])
def test_a_perturbation_is_made_again_from_where_it_is_damaged(
    row: int, again: list[int], tmp_path: Path, notes: list[str]
) -> None:
    """Rows 5 to 9 are the first of three chunks; row 2 is not protected and stays zero."""
    whole = crafting(tmp_path / "whole", Saves(notes)).each_chunk(counted([]), 5)
    with pytest.raises(Stopped):
        crafting(tmp_path / "part", Saves(notes, 2)).each_chunk(counted([]), 5)
    (file,) = (tmp_path / "part").glob("*.npy")
    array = np.load(file, mmap_mode="r+")
    array[row, 0, 0, 0] += 1 / 255
    array.flush()
    assert not notes
    done: list[int] = []
    assert crafting(tmp_path / "part", Saves(notes)).each_chunk(counted(done), 5).equal(whole)
    assert done == again
    assert len(notes) == (row > 5), "of what was never noted nothing is lost"


def test_anothers_perturbation_in_its_place_is_not_taken(tmp_path: Path, notes: list[str]) -> None:
    whole = crafting(tmp_path / "whole", Saves(notes)).each_chunk(counted([]), 5)
    for ending in ("npy", "json"):  # without what was noted of it, and with that alone
        for name, key, scale in (("mine", "k", 255), ("theirs", "other", 99)):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
            job = crafting(tmp_path / name, Saves(notes, 2), key)
            with pytest.raises(Stopped):
                job.each_chunk(counted([], scale), 5)
        (file,) = (tmp_path / "theirs").glob(f"*.{ending}")
        shutil.copy(file, tmp_path / "mine")
        done: list[int] = []
        found = crafting(tmp_path / "mine", Saves(notes)).each_chunk(counted(done), 5)
        assert found.equal(whole)
        assert done == [0, 1, 2]
    assert len(notes) == 2


def test_keeping_a_perturbation_costs_what_is_new(
    tmp_path: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[int] = []
    job = crafting(tmp_path, Saves(notes))
    sha256 = hashlib.sha256

    class Counts:
        def __init__(self, content: bytes = b"") -> None:
            self._hash = sha256(content)
            self.digest, self.hexdigest = self._hash.digest, self._hash.hexdigest

        def update(self, content: memoryview) -> None:
            hashed.append(content.nbytes)
            self._hash.update(content)

    monkeypatch.setattr(hashlib, "sha256", Counts)
    job.each_chunk(counted([]), 5)
    assert hashed == [5 * 3 * 8 * 8 * 4] * 3


# Finished work.


def test_a_manifest_is_believed_as_it_was_written_or_not_at_all(tmp_path: Path) -> None:
    identity = {"kind": "score", "of": "x"}
    artifact = Store(tmp_path).artifact("scores", "sep", identity)
    artifact.publish({"a.bin": lambda file: file.write(b"a")}, {"value": 0.25})
    file, draws = artifact.folder / MANIFEST, random.Random(0)
    content = file.read_bytes()

    def again() -> Any:
        return Store(tmp_path).artifact("scores", "sep", identity)

    for _ in range(300):
        file.write_bytes(flip(content, draws))
        assert again().manifest() is None
        assert again().damaged()
    # One of before there were digests is taken as it is.
    older = json.loads(content)
    del older["digest"]
    file.write_text(json.dumps(older))
    assert again().manifest()["facts"] == {"value": 0.25}
    file.write_text(json.dumps(older | {"dihest": "x"}))
    assert again().manifest() is None
    for kind in ("folder", "text", "empty"):
        spoil(file, kind, draws, [])
        found = again()
        assert found.damaged()
        found.publish({"a.bin": lambda out: out.write(b"a")}, {"value": 0.5})
        assert again().manifest()["facts"] == {"value": 0.5}


def test_readers_keep_what_they_have_while_more_is_added(tmp_path: Path) -> None:
    def surrogate() -> Any:
        return Store(tmp_path).artifact("surrogates", "rn18", {"kind": "surrogate"})

    surrogate().publish({"epoch-001.pt": lambda file: file.write(b"one")}, {"epochs": [1]})
    seen = []

    def meanwhile(file: Any) -> None:
        seen.append(surrogate().manifest())
        file.write(b"two")

    surrogate().publish({"epoch-002.pt": meanwhile}, {"epochs": [1, 2]})
    assert [manifest and manifest["facts"] for manifest in seen] == [{"epochs": [1]}]
    assert sorted(surrogate().manifest()["files"]) == ["epoch-001.pt", "epoch-002.pt"]


def test_a_sample_is_of_its_set_or_is_none(tmp_path: Path) -> None:
    images = torch.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8).to(torch.uint8)
    mask, labels = torch.ones(2, dtype=torch.bool), torch.tensor([0, 1])
    keys = [key_of(name) for name in "ab"]
    one, two = (sample_file(tmp_path, "sep", key) for key in keys)
    for file, key, shown in ((one, keys[0], images), (two, keys[1], 255 - images)):
        assert not write_sample(file, key, images, shown, labels, mask)
    content, draws = one.read_bytes(), random.Random(0)
    sample = read_sample(one)
    assert sample is not None
    for _ in range(100):
        one.write_bytes(flip(content, draws))
        found = read_sample(one)
        assert found is None or all(map(np.array_equal, found, sample)), "never another picture"
    shutil.copy(two, one)
    assert read_sample(one) is None
    assert write_sample(one, keys[0], images, images, labels, mask), "and it is made again"
    assert read_sample(one) is not None


# Records.


def test_one_flipped_bit_in_a_record_is_noticed(tmp_path: Path) -> None:
    draws = random.Random(0)
    for room, one in ((record.CELLS, made(audit=AUDIT)), (record.STUDIES, study())):
        file = record.write(tmp_path, "x", one, room)
        assert record.read(file)["key"] == one["key"]
        content = file.read_bytes()
        for _ in range(300):
            file.write_bytes(flip(content, draws))
            with pytest.raises(UsageError):
                record.read(file)
        # Records of before have no digest.
        older = json.loads(content)
        del older["digest"]
        file.write_text(json.dumps(older))
        assert record.read(file)["key"] == one["key"]
        file.write_text(json.dumps(older | {"dihest": "x"}))
        with pytest.raises(UsageError, match="digest"):
            record.read(file)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"final_test_acc": 0.99}, "curve"),
        ({"peak_test_acc": 0.99}, "curve"),
        ({"final_train_acc": 0.1}, "curve"),
        ({"confusion": [[40, 60], [31, 69]]}, "confusion"),
        ({"confusion": [[40, 60], [30, 71]]}, "confusion"),
        ({"audit": AUDIT | {"max_levels": 9}}, "levels"),
        (
            {"audit": AUDIT | {"max_linf": 9 / 255, "max_levels": 9, "within_budget": True}},
            "budget",
        ),
        ({"audit": AUDIT | {"mean_l2": 1.6}}, "l2"),
        ({"epsilon": 4 / 255}, "epsilon"),
        ({"seed": 1}, "seed"),
        ({"method": "ule"}, "method"),
        ({"key": "0" * 64}, "key"),
        ({"crafted_key": "0" * 64}, "crafted key"),
        ({"method_settings": {"steps": 8}}, "method"),
    ],
)
def test_an_older_record_is_at_one_with_itself(change: dict[str, Any], word: str) -> None:
    one = made(test=0.55, peak=0.6, audit=AUDIT, classes=["a", "b"], test_images=200)
    one |= {"confusion": [[40, 60], [30, 70]], "method_settings": {"steps": 9, "later": 1}}
    crafted = {**one["identity"]["crafted"], "method": {"name": "sep", "settings": {"steps": 9}}}
    one["identity"] |= {"crafted": crafted}
    one |= {"key": key_of(one["identity"]), "crafted_key": key_of(crafted)}
    assert soundness.fault(one) is None
    assert word in (soundness.fault(one | change) or "nothing")


@pytest.fixture
def no_ink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are made and not drawn, which takes the longest."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, out, **how: out.write(b"drawn"))


@pytest.mark.usefixtures("no_ink")
def test_a_copy_with_another_seed_is_no_second_victim(tmp_path: Path, capsys) -> None:
    file = record.write(tmp_path, "sep", made(test=0.34))
    copied = {**record.read(file), "seed": 1}
    (tmp_path / "cells" / "sep-s1-000000000000.json").write_text(json.dumps(copied))
    assert run_bench.main(["--report-only", "--results-dir", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "tells another seed than its identity" in said.err
    assert "34.0" in said.out
    assert "34.0 ±" not in said.out


@pytest.mark.usefixtures("no_ink")
def test_no_odd_record_blocks_report_diff_or_merge(tmp_path: Path, capsys) -> None:
    """All of them at once: some from a seed, and those that blocked a report one day."""
    good, a = made(test=0.3, audit=AUDIT), tmp_path / "a"
    record.write(a, "sep", good)
    record.write(a, "clean", made("clean", test=0.6))
    texts = list(hostile(good, random.Random(0), 60))
    odd = {"curve": [None], "width": float("nan"), "classes": [], "seconds": 10**400}
    odd |= {"method_label": chr(0xD800), "crafted_key": "../*", "budget": {"norm": 5}}
    odd |= {"protected_classes": [{}], "defense_notes": [5], "audit": {"max_linf": "x"}}
    texts += [json.dumps(good | {field: value}) for field, value in odd.items()]
    for number, text in enumerate(texts):
        (a / "cells" / f"odd-{number:012d}.json").write_text(text)
    assert "30.0" in write_report(a).text
    assert run_bench.main(["--report-only", "--results-dir", str(a)]) == 0
    assert run_bench.main(["diff", str(a), str(a)]) == 1
    for number in range(60):  # some are another result of the good one: a conflict, as it should be
        (a / "cells" / f"odd-{number:012d}.json").unlink()
    assert run_bench.main(["merge", str(a), "--into", str(tmp_path / "b"), "--no-report"]) == 1
    said = capsys.readouterr().err
    for number in range(60, len(texts)):  # A and B of the diff are one
        assert said.count(f"odd-{number:012d}") >= 3


# Runs.


def test_damage_anywhere_in_the_store_is_told_and_mended(whole: Path, tmp_path: Path) -> None:
    """A little of the campaign below."""
    done = shutil.copytree(whole, tmp_path / "done")
    shutil.rmtree(done / "results" / "cells")
    found = campaign([done], tmp_path / "place", run_on, numbers(whole), seed=3, count=2)
    assert not [what for what in found if what.startswith(("silence", "stuck"))], found


@pytest.mark.slow
def test_damage_in_every_state_of_the_store_is_told_and_mended(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = shutil.copytree(whole, tmp_path / "done")
    shutil.rmtree(done / "results" / "cells")
    stopped = [stop_at(look, tmp_path / str(look), monkeypatch) for look in (1, 3, 4, 7, 9)]
    found = campaign([done, *stopped], tmp_path / "place", run_on, numbers(whole), 0, 120)
    assert not [what for what in found if what.startswith(("silence", "stuck"))], found
    assert found["told"] > 40


def test_a_surrogate_that_is_resumed_after_its_end_tells_its_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (training,) = stop_at(1, tmp_path, monkeypatch).rglob("surrogates/*/partial/training.pt")
    assert training.exists()
    _, said = go(tmp_path)
    assert "train accuracy" in said
    assert "nan" not in said


def test_a_surrogate_that_diverged_is_refused_with_its_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_epoch = Training.run_epoch

    def diverge(self: Training, *arguments: Any) -> dict[str, Any]:
        row = run_epoch(self, *arguments)
        if self.epoch == 2:
            self.network.head.weight.data[0, 0] = torch.nan
        return row

    monkeypatch.setattr(Training, "run_epoch", diverge)
    outcome, _ = go(tmp_path)
    assert any("diverged in epoch 2" in reason for reason in outcome.failed.values())
    assert not list((tmp_path / "store").rglob("sep-*/released.npz"))


def test_what_is_no_number_is_never_released() -> None:
    images = torch.full((1, 3, 2, 2), 0.5)
    for gradient, wanted in ((torch.nan, torch.nan), (torch.inf, -1.0)):
        x = Iterate(images, Budget("linf", 8 / 255))
        x.descend(torch.full_like(images, gradient), 1 / 255)
        expected = torch.full_like(images, wanted)
        assert (x.delta * 255).round().allclose(expected, equal_nan=True)


def test_a_network_that_diverges_while_crafting_is_refused_at_the_next_safe_point(
    tmp_path: Path, notes: list[str]
) -> None:
    crafting(tmp_path, Saves(notes)).save("rounds", dict)
    job = crafting(tmp_path, Saves(notes))
    assert job.load("rounds") == {}
    network = job.network("rn18:width=0.0625", "network")
    network.head.weight.data[0, 0] = torch.inf
    with pytest.raises(DivergedError, match="round 2"):
        job.save("rounds", dict)


def test_a_limit_shorter_than_the_start_still_comes_to_a_safe_point(tmp_path: Path) -> None:
    grid, calls = replace(GRID, methods="noise"), 1
    session = Session(grid, tmp_path / "results", tmp_path / "store", deadline=0.0)
    while run_session(session, 1, 1, io.StringIO()).unfinished:
        calls += 1
        assert calls < 12
    assert calls > 2
    assert len(numbers(tmp_path)) == 2


PLUGIN = """
from dataclasses import dataclass
from bench.method import Method
from bench.registry import METHODS

{leave_at_once}

@METHODS.register("leaving")
@dataclass(frozen=True)
class Leaving(Method):
    "Leaves."

    def craft(self, job):
        raise SystemExit(3)
"""


def test_a_plugin_that_leaves_has_failed(tmp_path: Path) -> None:
    plugin = tmp_path / "leaving.py"
    try:
        plugin.write_text(PLUGIN.format(leave_at_once=""))
        load_plugin(str(plugin))
        outcome, _ = go(tmp_path, replace(GRID, methods="leaving"))
        assert "SystemExit: 3" in outcome.failed["craft leaving"]
        found = Counter(one["status"] for one in record.read_all(tmp_path / "results"))
        assert found == {"done": 1, "failed": 1}
        METHODS.forget(plugin)
        plugin.write_text(PLUGIN.format(leave_at_once="raise SystemExit(3)"))
        load_plugin(str(plugin))
        with pytest.raises(UsageError, match=r"cannot be imported \(SystemExit: 3\)"):
            METHODS.get("leaving")
    finally:
        METHODS.forget(plugin)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("words", "code"), [(["--list"], 0), (["--describe", "nosuch"], 2)])
def test_a_reader_who_leaves_changes_no_exit_code(
    words: list[str], code: int, unbuffered: str
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [sys.executable, ROOT / "run_bench.py", *words],
        stdout=writing,
        stderr=writing,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        check=False,
    )
    os.close(writing)
    assert process.returncode == code


def refuse(error: int) -> Callable[..., Any]:
    """A function of the system that a file system does not know, or that fails."""

    def raises(*arguments: Any, **named: Any) -> Any:
        raise OSError(error, os.strerror(error))

    return raises


def test_file_systems_that_know_less_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", refuse(errno.EINVAL))
    monkeypatch.setattr(Path, "chmod", refuse(errno.EPERM))
    monkeypatch.setattr(os, "posix_fallocate", refuse(errno.EOPNOTSUPP), raising=False)
    write_text(tmp_path / "text.md", "text")
    assert (tmp_path / "text.md").read_text() == "text"
    assert make_array(tmp_path / "array.npy", (2, 3)).shape == (2, 3)
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))  # a disk that fails is none of these
    with pytest.raises(OSError, match="Input/output"):
        write_text(tmp_path / "text.md", "other")


def test_a_store_without_locks_is_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_locks(tmp_path, "store", "--store")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("fcntl.flock", refuse(errno.ENOTSUP))
    with pytest.raises(UsageError, match=r"cannot be locked.*--store"):
        check_locks(tmp_path, "store", "--store")


def test_data_that_change_while_workers_start_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ready:
        alive = True

        def __init__(self, number: int, session: Session, events: Any, gpu: str | None) -> None:
            events.put((number, {"event": "ready", "jobs": key_of(["other images"])}))

        def stop(self) -> None:
            self.alive = False

    monkeypatch.setattr(runner, "_Worker", Ready)
    session = Session(replace(GRID, methods="noise"), tmp_path / "results", tmp_path / "store")
    with pytest.raises(runner.WorkerError, match="data changed while workers started"):
        run_session(session, 2, 1, io.StringIO())

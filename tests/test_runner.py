"""The whole path on a small synthetic set: records, resuming, sharing, failing."""

import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import Grid, load_results, run
from bench import record as records
from bench.data import ImageDataset
from bench.errors import UsageError
from bench.files import write_text
from bench.grid import Cell
from bench.network import Arch
from bench.registry import METHODS, ROOT, load_plugin
from bench.reports.summary import LONGER_ACC, summarise
from bench.running.plan import Job
from bench.running.runner import Outcome, run_session
from bench.running.session import Session
from bench.running.work import Workshop
from bench.train import Training

SMALL = Grid(
    methods="sham,noise,sep:checkpoints=2",
    archs="rn18:width=0.0625",
    dataset="synthetic:train=96,test=40,size=16",
    recipe="quick:epochs=3,batch_size=32,train_images=none,curve_images=20",
    precision="fp32",
)
FAILING = '''
from dataclasses import dataclass
from bench.method import Method
from bench.registry import METHODS

@METHODS.register("failing")
@dataclass(frozen=True)
class Failing(Method):
    """Raises while it crafts."""

    def craft(self, job):
        raise RuntimeError("no such luck")
'''
NOT_RESULTS = {
    "digest",
    "seconds",
    "core_seconds",
    "crafting_seconds",
    "finished",
    "peak_memory",
    "device",
}
"""Fields that may differ between two runs of one cell."""


def go(folder: Path, grid: Grid = SMALL, **options) -> Outcome:
    """Run a grid with folders of its own, in this process."""
    return run(
        grid,
        results_dir=folder / "results",
        store=folder / "store",
        **{"workers": 1, "threads": 1, "quiet": True, **options},
    )


def numbers(folder: Path) -> dict[str, dict]:
    """What must be equal between two runs of the same grid."""
    found = {}
    for file in sorted((folder / "results" / "cells").glob("*.json")):
        record = json.loads(file.read_text())
        found[file.name] = {k: v for k, v in record.items() if k not in NOT_RESULTS}
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder in which the small grid has run."""
    folder = tmp_path_factory.mktemp("finished")
    outcome = go(folder)
    assert not outcome.failed
    assert not outcome.unfinished
    return folder


def test_every_cell_has_a_record_and_the_control_is_among_them(finished: Path) -> None:
    frame = load_results(finished / "results")
    assert sorted(frame["method"]) == ["clean", "noise", "sep", "sham"]
    assert set(frame["status"]) == {"done"}
    assert all(len(curve) == 3 for curve in frame["curve"])
    for record in frame.to_dict("records"):
        last = record["curve"][-1]
        assert set(last) == {"epoch", "lr", "train_loss", "train_acc", "test_acc"}
        assert record["final_test_acc"] == last["test_acc"]
        assert record["peak_test_acc"] == max(row["test_acc"] for row in record["curve"])
        confusion = np.array(record["confusion"])
        assert confusion.sum() == 40
        assert np.trace(confusion) / 40 == pytest.approx(record["final_test_acc"])
        assert record["audit"]["within_budget"]
        assert ("checkpoint_cosine" in record["audit"]) == (record["method"] == "sep")
        assert len(record["key"]) == 64


def test_the_sham_control_equals_the_clean_one_to_the_last_digit(finished: Path) -> None:
    frame = load_results(finished / "results").set_index("method")
    assert frame.loc["sham", "curve"] == frame.loc["clean", "curve"]
    assert frame.loc["noise", "curve"] != frame.loc["clean", "curve"]


def test_running_again_does_nothing(finished: Path) -> None:
    files = list((finished / "results" / "cells").iterdir())
    before = [file.stat().st_mtime_ns for file in files]
    go(finished)
    assert [file.stat().st_mtime_ns for file in files] == before


def test_cells_are_trained_longer_on_the_very_same_crafted_set(finished: Path, tmp_path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (sep,) = (one for one in records.read_all(tmp_path / "results") if one["method"] == "sep")
    session = Session(SMALL, tmp_path / "results", tmp_path / "store", longer=(sep["key"],))
    run_session(Session.from_json(session.to_json()), 1, 1, io.StringIO())
    found = list(records.read_all(tmp_path / "results"))
    (more,) = (one for one in found if one["recipe_settings"]["epochs"] == 6)
    assert len(found) == 5
    assert len(more["curve"]) == 6
    assert more["crafted_key"] == sep["crafted_key"]
    assert more["identity"]["crafted"] == sep["identity"]["crafted"]
    assert more["crafting_recipe"] == sep["recipe_label"] != more["recipe_label"]
    assert "crafting_recipe" not in sep
    usual, longer = sorted(summarise(found), key=lambda one: one.context.settings["epochs"])
    assert [len(one.records) for one in (usual, longer)] == [4, 1]
    told = {one["method"]: one.get(LONGER_ACC) for one in usual.records}
    assert told.pop("sep") == more["final_test_acc"]
    assert set(told.values()) == {None}


def test_two_runs_agree_exactly(finished: Path, tmp_path: Path) -> None:
    go(tmp_path)
    assert numbers(tmp_path) == numbers(finished)


def test_processes_side_by_side_give_the_same_records(finished: Path, tmp_path: Path) -> None:
    outcome = go(tmp_path, workers=2)
    assert not outcome.failed
    assert numbers(tmp_path) == numbers(finished)


def test_the_time_limit_stops_at_checkpoints_and_the_next_call_continues(
    finished: Path, tmp_path: Path, monkeypatch
) -> None:
    # The limit is reached at every fourth look at the clock, on however slow a machine.
    looks = itertools.count(1)
    monkeypatch.setattr(Session, "time_is_up", lambda session: next(looks) % 4 == 0)
    calls = 1
    while go(tmp_path, time_limit=1.0).unfinished:
        calls += 1
        assert calls < 100
    assert calls > 3
    assert numbers(tmp_path) == numbers(finished)


@pytest.mark.slow
def test_kill_minus_nine_anywhere_and_the_same_command_continues(
    finished: Path, tmp_path: Path
) -> None:
    arguments = ["--methods", SMALL.methods, "--archs", SMALL.archs, "--dataset", SMALL.dataset]
    arguments += [
        "--recipe",
        SMALL.recipe,
        "--precision",
        "fp32",
        "--workers",
        "2",
        "--threads",
        "1",
    ]
    arguments += ["--results-dir", str(tmp_path / "results"), "--store", str(tmp_path / "store")]
    command = [sys.executable, str(ROOT / "run_bench.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # Kill points spread over a run, a little later each time, until one run gets through.
    killed = 0
    for patience in np.geomspace(3.0, 120.0, 30):
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(patience)
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
            time.sleep(0.2)  # its workers notice that nobody listens any more
    assert killed >= 2
    assert process.returncode == 0
    assert numbers(tmp_path) == numbers(finished)


def test_one_surrogate_serves_the_whole_family(tmp_path: Path) -> None:
    grid = replace(SMALL, methods="sep:checkpoints=3,sep-fa:checkpoints=1,sep-fa-vr:checkpoints=2")
    go(tmp_path, replace(grid, methods=grid.methods + ",advpoison:steps=2"))
    surrogates = list((tmp_path / "store" / "surrogates").iterdir())
    assert len(surrogates) == 1
    kept = sorted(file.name for file in surrogates[0].glob("*.pt"))
    assert kept == ["epoch-001.pt", "epoch-002.pt", "epoch-003.pt"]


def test_a_later_call_may_ask_for_more_checkpoints(tmp_path: Path) -> None:
    go(tmp_path, replace(SMALL, methods="sep:checkpoints=1"))
    go(tmp_path, replace(SMALL, methods="sep:checkpoints=3"))
    (surrogate,) = (tmp_path / "store" / "surrogates").iterdir()
    manifest = json.loads((surrogate / "manifest.json").read_text())
    assert manifest["facts"]["epochs"] == [1, 2, 3]


def test_a_failing_method_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    plugin = tmp_path / "failing.py"
    plugin.write_text(FAILING)
    grid = replace(SMALL, methods="failing,noise", seeds=(0, 1))
    outcome = go(tmp_path, grid, plugins=(str(plugin),))
    METHODS.forget(plugin)
    assert set(outcome.failed) == {
        "craft failing",
        "failing × rn18:width=0.0625, seed 0",
        "failing × rn18:width=0.0625, seed 1",
    }
    frame = load_results(tmp_path / "results").set_index(["method", "seed"])
    assert list(frame.loc["failing", "status"]) == ["failed", "failed"]
    assert "RuntimeError: no such luck" in frame.loc[("failing", 0), "error"]
    assert list(frame.loc["noise", "status"]) == ["done", "done"]
    assert list(frame.loc["clean", "status"]) == ["done", "done"]


def test_a_worker_that_dies_fails_its_task_alone(tmp_path: Path) -> None:
    plugin = tmp_path / "dying.py"
    dying = FAILING.replace("failing", "dying").replace("Failing", "Dying")
    plugin.write_text(
        dying.replace(
            'raise RuntimeError("no such luck")',
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        )
    )
    grid = replace(SMALL, methods="dying,noise")
    outcome = go(tmp_path, grid, plugins=(str(plugin),), workers=2)
    METHODS.forget(plugin)
    assert set(outcome.failed) == {"craft dying", "dying × rn18:width=0.0625, seed 0"}
    frame = load_results(tmp_path / "results").set_index("method")
    assert "ended with status -9" in frame.loc["dying", "error"]
    assert frame.loc["noise", "status"] == frame.loc["clean", "status"] == "done"


def test_another_command_on_the_same_folders_harms_nothing(
    finished: Path, tmp_path: Path, monkeypatch
) -> None:
    # The other one does everything between this one's plan and its first worker.
    from bench.running import runner

    class Late(runner._Worker):
        def __init__(self, *arguments) -> None:
            if not (tmp_path / "results" / "cells").exists():
                monkeypatch.setattr(runner, "_Worker", self.__class__.__base__)
                go(tmp_path)
            super().__init__(*arguments)

    monkeypatch.setattr(runner, "_Worker", Late)
    assert not go(tmp_path, workers=2).failed
    assert numbers(tmp_path) == numbers(finished)


def test_processes_know_plugins_and_ignore_the_current_folder(tmp_path, monkeypatch) -> None:
    plugin = tmp_path / "quiet.py"
    quiet = FAILING.replace('"failing"', '"quiet"').replace(
        'raise RuntimeError("no such luck")', "return job.dataset.images.float() * 0"
    )
    plugin.write_text(quiet)
    load_plugin(str(plugin))
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "bench").mkdir(parents=True)
    (elsewhere / "random.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(elsewhere)
    outcome = go(tmp_path, replace(SMALL, methods="quiet"), workers=2)
    METHODS.forget(plugin)
    assert not outcome.failed
    frame = load_results(tmp_path / "results").set_index("method")
    assert "source" in frame.loc["quiet", "identity"]["crafted"]["method"]


def test_what_is_left_does_not_decide_the_number_of_threads(tmp_path, monkeypatch) -> None:
    go(tmp_path)
    next((tmp_path / "results" / "cells").glob("noise-*.json")).unlink()
    used = []
    monkeypatch.setattr(
        "bench.running.runner.configure", lambda precision, threads, *rest: used.append(threads)
    )
    monkeypatch.setattr("bench.running.runner.cores", lambda: 8)
    go(tmp_path, workers=4, threads=None)
    assert used == [2], "one task is left for four workers, each of which has two threads"


def test_a_record_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    go(tmp_path)
    file = next((tmp_path / "results" / "cells").glob("noise-*.json"))
    content = file.read_text().replace('"schema": 1,', '"schema": 99,', 1)
    file.write_text(content)
    with pytest.raises(UsageError, match="newer version"):
        go(tmp_path)
    assert file.read_text() == content


def test_equal_grids_have_equal_keys(tmp_path: Path) -> None:
    one = Session(replace(SMALL, seeds=(0, 1), poison_ratio=1.0, epsilon=0.0)).open()
    two = Session(Grid(**{**vars(SMALL), "seeds": range(2), "poison_ratio": 1, "epsilon": 0}))
    assert [cell.key for cell in one.cells] == [cell.key for cell in two.open().cells]
    assert Session.from_json(two.to_json()) == two


def test_damage_in_the_store_is_noticed_and_mended(finished: Path, tmp_path: Path) -> None:
    go(tmp_path)
    for file in (tmp_path / "store").rglob("released.npz"):
        file.write_bytes(file.read_bytes()[:100])
    (surrogate,) = (tmp_path / "store" / "surrogates").iterdir()
    content = bytearray((surrogate / "epoch-003.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (surrogate / "epoch-003.pt").write_bytes(content)
    for file in (tmp_path / "results" / "cells").iterdir():
        file.write_text(file.read_text()[:50])
    assert not go(tmp_path).failed
    assert numbers(tmp_path) == numbers(finished)


def test_a_newer_record_that_comes_in_the_meantime_stays(tmp_path: Path, monkeypatch) -> None:
    execute, newer = Workshop.execute, json.dumps({"schema": records.SCHEMA + 1})

    def late(self: Workshop, job: Job, *arguments) -> str:
        if isinstance(job, Cell) and "noise" in job.slug:
            write_text(records.path_of(tmp_path / "results", job.key, "theirs"), newer)
        return execute(self, job, *arguments)

    monkeypatch.setattr(Workshop, "execute", late)
    outcome = go(tmp_path, replace(SMALL, methods="noise"))
    (reason,) = outcome.failed.values()
    assert "NewerRecordError" in reason
    (theirs,) = (tmp_path / "results" / "cells").glob("theirs-*.json")
    assert theirs.read_text() == newer
    assert len(list(theirs.parent.iterdir())) == 2  # and the control


def test_holdout_is_kept_from_training_and_evaluated(tmp_path: Path) -> None:
    go(tmp_path, replace(SMALL, methods="noise", holdout=16))
    for record in load_results(tmp_path / "results").to_dict("records"):
        assert record["train_images"] == 80
        assert all(0 <= row["holdout_acc"] <= 1 for row in record["curve"])


def test_what_is_held_out_is_released_and_not_trained_on(tmp_path: Path, monkeypatch) -> None:
    """Suspicion and early stopping look at protected images that the victim never learned."""
    trained, evaluated = [], []
    begin, confusion = Training.__init__, Training.confusion

    def watch(self: Training, arch: Arch, released: ImageDataset, *more) -> None:
        trained.append(released)
        begin(self, arch, released, *more)

    def watch_too(self: Training, dataset: ImageDataset) -> torch.Tensor:
        evaluated.append(dataset)
        return confusion(self, dataset)

    monkeypatch.setattr(Training, "__init__", watch)
    monkeypatch.setattr(Training, "confusion", watch_too)
    assert not go(tmp_path, replace(SMALL, methods="noise", holdout=16)).failed
    (file,) = (tmp_path / "store").rglob("noise-*/released.npz")
    released = [image.tobytes() for image in np.load(file)["images"]]

    def places(dataset: ImageDataset) -> set[int]:
        return {released.index(image.numpy().tobytes()) for image in dataset.images}

    (learned,) = [one for one in trained if one.images[0].numpy().tobytes() in released]
    held = [one for one in evaluated if one.images[0].numpy().tobytes() in released]
    assert len(held) == 3  # one an epoch; all else is the test set, and the control's
    for one in held:
        assert len(places(one)) == 16
        assert places(one) | places(learned) == set(range(96))
        assert not places(one) & places(learned)


def test_only_the_protected_share_changes(tmp_path: Path) -> None:
    go(tmp_path, replace(SMALL, methods="noise", poison_ratio=0.25))
    frame = load_results(tmp_path / "results").set_index("method")
    audit = frame.loc["noise", "audit"]
    assert audit["protected_images"] == 24
    assert audit["changed_outside_mask"] == 0


def test_a_method_does_not_move_the_numbers_of_another(finished: Path, tmp_path: Path) -> None:
    go(tmp_path, replace(SMALL, methods="noise", defenses="none"))
    alone = numbers(tmp_path)
    assert all(numbers(finished)[name] == record for name, record in alone.items())


def test_moving_the_folders_runs_nothing_again(finished: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(finished, tmp_path / "moved")
    before = numbers(tmp_path / "moved")
    outcome = go(tmp_path / "moved")
    assert outcome.seconds < 30
    assert numbers(tmp_path / "moved") == before


def test_samples_are_kept_beside_the_records(finished: Path) -> None:
    from bench.samples import read_sample

    (file,) = (finished / "results" / "samples").glob("sep-*.png")
    sample = read_sample(file)
    assert sample.clean.shape == sample.released.shape == (8, 16, 16, 3)
    difference = sample.released.astype(int) - sample.clean.astype(int)
    assert 0 < abs(difference).max() <= 8

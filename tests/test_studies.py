"""Studies: what they measure by hand, that they run like cells, and that they can be resumed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import run_bench
from bench import load_results, record
from bench.compare.merge import ConflictError, merge
from bench.component import build, parse_one
from bench.crafting import Monitor
from bench.data import ImageDataset
from bench.errors import Stopped, UsageError
from bench.grid import Grid
from bench.pgd import absolute_cosines
from bench.registry import STUDIES
from bench.running.runner import Outcome, run_session
from bench.running.session import Session
from bench.running.work import Workshop
from bench.store import key_of
from bench.studies import gradient_cosine
from bench.train import Training
from tests.invented import record as invented

SMALL = Grid(
    methods="sep:checkpoints=3,steps=2,noise",
    archs="rn18:width=0.0625",
    dataset="synthetic:train=96,test=40,size=16",
    recipe="quick:epochs=3,batch_size=32,train_images=none,curve_images=20",
    precision="fp32",
)


def session(folder: Path, study: str, grid: Grid = SMALL) -> Session:
    """A session that takes one study, with folders of its own."""
    return Session(
        grid, folder / "results", folder / "store", folder / "data", studies=(study,), threads=1
    )


def go(folder: Path, study: str, grid: Grid = SMALL, workers: int = 1) -> Outcome:
    """Take a study."""
    with (folder / "log").open("w") as log:
        return run_session(session(folder, study, grid), workers, 1, log)


def studies(folder: Path) -> list[dict]:
    """The records that came of it."""
    return list(record.read_all(folder / "results", room=record.STUDIES))


class Impatient(Monitor):
    """Ends the work at the second safe point of a study."""

    points = 0

    def safe_point(self, save=lambda: None) -> None:
        self.points += 1
        if self.points == 2:
            save()
            raise Stopped


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """A folder in which both studies were taken."""
    folder = tmp_path_factory.mktemp("measured")
    for study in ("gradient-cosine:images=40", "cross-training"):
        outcome = go(folder, study)
        assert not outcome.failed
        assert not outcome.unfinished
    return folder


class TestCosines:
    def test_by_hand(self) -> None:
        gradients = torch.tensor(
            [
                [[1.0, 0.0], [3.0, 4.0], [1.0, 1.0]],
                [[0.0, 2.0], [4.0, 3.0], [0.0, 0.0]],  # the last image has none here
            ]
        )
        cosines, whole = absolute_cosines(gradients)
        assert whole == 2
        assert torch.allclose(cosines[0], torch.eye(2))
        assert torch.allclose(cosines[1, 0, 1], torch.tensor(24 / 25))

    def test_sign_and_length_do_not_count(self) -> None:
        one = torch.randn(1, 5, 7, generator=torch.Generator().manual_seed(0))
        cosines, _ = absolute_cosines(torch.cat([one, -3 * one]))
        assert torch.allclose(cosines, torch.ones(5, 2, 2))

    def test_a_gradient_that_diverged_is_left_out(self) -> None:
        gradients = torch.ones(2, 3, 4)
        gradients[1, 2, 0] = torch.nan
        assert absolute_cosines(gradients)[1] == 2


class TestGradientCosine:
    def test_record(self, measured: Path) -> None:
        (one,) = [one for one in studies(measured) if one["study"] == "gradient-cosine"]
        assert one["subject"] == "sep:steps=2"  # noise trains nothing
        values = one["values"]
        assert values["networks"] == ["epoch 1", "epoch 2", "epoch 3"]
        assert values["images"] == 40
        table = np.array(values["cosines"])
        assert np.allclose(table, table.T)
        assert np.allclose(np.diag(table), 1)
        assert ((table >= 0) & (table <= 1 + 1e-6)).all()
        off = table[~np.eye(3, dtype=bool)]
        assert values["between"] == pytest.approx(off.mean(), abs=1e-5)
        assert off.max() < 0.999  # three different networks
        assert one["key"] == key_of(one["identity"])
        assert one["seed"] is None

    def test_equals_the_slow_obvious_way(self, measured: Path) -> None:
        (one,) = [one for one in studies(measured) if one["study"] == "gradient-cosine"]
        asked = session(measured, "gradient-cosine:images=40")
        opened = asked.open()
        (job,) = opened.studies
        workshop = Workshop(opened, asked, torch.device("cpu"), Monitor())
        networks = workshop._trained(job.surrogates[0], "fp32")
        train, sums = opened.data.train, np.zeros((3, 3))
        for image, label in zip(train.images[:40], train.labels[:40].tolist(), strict=True):
            gradients = []
            for network in networks:
                x = (image[None].float() / 255).requires_grad_()
                target = torch.tensor([(label + len(train.classes) // 2) % len(train.classes)])
                F.cross_entropy(network(x), target).backward()
                gradients.append(x.grad.flatten().double().numpy())
            for a, first in enumerate(gradients):
                for b, second in enumerate(gradients):
                    lengths = np.linalg.norm(first) * np.linalg.norm(second)
                    sums[a, b] += abs(first @ second) / lengths
        assert np.allclose(sums / 40, one["values"]["cosines"], atol=1e-3)

    def test_trainings_of_several_architectures_are_named_by_them(self, tmp_path: Path) -> None:
        archs = "[rn18:width=0.0625,vgg16:width=0.0625]"
        grid = replace(SMALL, methods=f"ensemble:ensemble={archs},members=2,steps=1")
        assert not go(tmp_path, "gradient-cosine:images=10", grid).failed
        (one,) = studies(tmp_path)
        names = one["values"]["networks"]
        assert names == ["rn18 #0", "rn18 #1", "vgg16 #0", "vgg16 #1"]

    def test_resumed_it_says_the_same(
        self, measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gradient_cosine, "BATCH", 10)
        asked = session(tmp_path, "gradient-cosine:images=40")
        opened = asked.open()
        (job,) = opened.studies
        patient = Workshop(opened, asked, torch.device("cpu"), Monitor())
        for surrogate in job.surrogates:
            patient.execute(surrogate, surrogate.surrogate.epochs)
        with pytest.raises(Stopped):
            Workshop(opened, asked, torch.device("cpu"), Impatient()).execute(job)
        taken: list[int] = []
        monkeypatch.setattr(
            gradient_cosine,
            "absolute_cosines",
            lambda gradients: taken.append(gradients.shape[1]) or absolute_cosines(gradients),
        )
        patient.execute(job)
        assert taken == [10, 10]  # the first two batches were kept
        (resumed,) = studies(tmp_path)
        (whole,) = [one for one in studies(measured) if one["study"] == "gradient-cosine"]
        cosines = resumed["values"]["cosines"], whole["values"]["cosines"]
        assert np.allclose(*cosines, atol=1e-5)

    def test_the_crafting_seed_is_told(self, tmp_path: Path) -> None:
        for study in ("gradient-cosine", "cross-training"):
            (job,) = session(tmp_path, study, replace(SMALL, craft_seed=3)).open().studies
            assert job.describe()["craft_seed"] == 3

    def test_images_must_be_there(self) -> None:
        with pytest.raises(Exception, match="images must be 1 or more"):
            build(STUDIES, parse_one("gradient-cosine:images=0", STUDIES))


class TestCrossTraining:
    def test_record(self, measured: Path) -> None:
        (one,) = [one for one in studies(measured) if one["study"] == "cross-training"]
        values = one["values"]
        assert one["subject"] == "rn18:width=0.0625"
        assert one["seed"] == 0
        assert [row["epoch"] for row in values["curve"]] == [1, 2, 3]
        assert set(values["never_correct"]) == {"clean", "sep:steps=2", "noise"}
        for label, never in values["never_correct"].items():
            best = max(row["sets"][label] for row in values["curve"])
            assert 0 <= never <= 1 - best + 1e-12  # who is right once is right in the best epoch

    def test_right_once_is_right(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def guesses(training: Training, dataset: ImageDataset) -> torch.Tensor:
            # After each of the three epochs another quarter of the images is right.
            right = torch.arange(len(dataset)) % 4 == training.epoch - 1
            return torch.where(right, dataset.labels, dataset.labels + 1)

        monkeypatch.setattr(Training, "guesses", guesses)
        assert not go(tmp_path, "cross-training", replace(SMALL, methods="noise")).failed
        (one,) = studies(tmp_path)
        assert one["values"]["never_correct"] == {"clean": 0.25, "noise": 0.25}
        assert [row["sets"]["noise"] for row in one["values"]["curve"]] == [0.25] * 3

    def test_it_is_the_training_of_the_control(self, measured: Path) -> None:
        (one,) = [one for one in studies(measured) if one["study"] == "cross-training"]
        plain = replace(session(measured, ""), studies=())
        with (measured / "log").open("w") as log:
            run_session(plain, 1, 1, log)
        cells = record.read_all(measured / "results")
        (control,) = [cell for cell in cells if cell["method"] == "clean"]
        expected = [row["train_acc"] for row in control["curve"]]
        assert [row["train_acc"] for row in one["values"]["curve"]] == expected

    def test_resumed_after_any_epoch_it_says_the_same(self, measured: Path, tmp_path: Path) -> None:
        (whole,) = [one for one in studies(measured) if one["study"] == "cross-training"]
        asked = session(tmp_path, "cross-training")
        opened = asked.open()
        (job,) = opened.studies

        quiet = Workshop(opened, asked, torch.device("cpu"), Monitor())
        for _, crafting in job.crafted:
            for surrogate in crafting.surrogates:
                quiet.execute(surrogate, surrogate.surrogate.epochs)
            quiet.execute(crafting)
        with pytest.raises(Stopped):
            Workshop(opened, asked, torch.device("cpu"), Impatient()).execute(job)
        assert not studies(tmp_path)
        quiet.execute(job)
        (resumed,) = studies(tmp_path)
        assert resumed["values"] == whole["values"]
        assert resumed["key"] == whole["key"]


def test_a_recorded_study_is_not_taken_again(measured: Path) -> None:
    before = {file: file.read_bytes() for file in (measured / "results/studies").iterdir()}
    go(measured, "gradient-cosine:images=40")
    assert {f: f.read_bytes() for f in (measured / "results/studies").iterdir()} == before


def test_workers_take_studies_too(measured: Path, tmp_path: Path) -> None:
    assert not go(tmp_path, "gradient-cosine:images=40", workers=2).failed
    (alone,) = [one for one in studies(measured) if one["study"] == "gradient-cosine"]
    (shared,) = studies(tmp_path)
    assert shared["values"] == alone["values"]


def test_a_session_with_studies_travels(tmp_path: Path) -> None:
    asked = session(tmp_path, "cross-training")
    assert Session.from_json(asked.to_json()) == asked


def test_what_a_study_depends_on_changes_its_key(tmp_path: Path) -> None:
    def key(study: str, grid: Grid = SMALL) -> str:
        return session(tmp_path, study, grid).open().studies[0].key

    usual = key("cross-training")
    others = [
        key("cross-training", replace(SMALL, seeds=(1,))),
        key("cross-training", replace(SMALL, craft_seed=1)),
        key("cross-training", replace(SMALL, methods="noise")),
        key("cross-training", replace(SMALL, recipe=f"{SMALL.recipe},lr=0.2")),
        key("gradient-cosine"),
        key("gradient-cosine:images=7"),
        key("gradient-cosine", replace(SMALL, methods="sep:checkpoints=2,steps=2")),
    ]
    assert len({usual, *others}) == 8


class TestMerge:
    def test_studies_come_along(self, measured: Path, tmp_path: Path) -> None:
        (tmp_path / "other" / "cells").mkdir(parents=True)
        (measured / "results" / "cells").mkdir(exist_ok=True)
        done = merge([measured / "results", tmp_path / "other"], tmp_path / "all")
        assert done.studies == 2
        assert len(list((tmp_path / "all" / "studies").iterdir())) == 2
        assert merge([measured / "results"], tmp_path / "all").studies == 0

    def test_contradictions_are_refused(self, measured: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        (measured / "results" / "cells").mkdir(exist_ok=True)
        (other / "cells").mkdir(parents=True)
        first = studies(measured)[0]
        first["values"] = first["values"] | {"changed": 1}
        record.write(other, "x", first, record.STUDIES)
        with pytest.raises(ConflictError) as error:
            merge([measured / "results", other], tmp_path / "all")
        assert "cross-training" in error.value.cells[0]
        assert not (tmp_path / "all").exists()

    def test_foreign_files_are_left_out(self, measured: Path, tmp_path: Path) -> None:
        folder = tmp_path / "other"
        (folder / "cells").mkdir(parents=True)
        first = studies(measured)[0]
        record.write(folder, "x", first | {"key": "0" * 64}, record.STUDIES)
        (folder / "studies" / "broken-123456789012.json").write_text("{")
        done = merge([folder], tmp_path / "all")
        assert done.studies == 0
        assert len(done.damaged) == 2

    def test_folders_with_studies_alone_are_merged(
        self, measured: Path, tmp_path: Path, capsys
    ) -> None:
        folder = only_studies(tmp_path / "a", studies(measured))
        assert run_bench.main(["merge", str(folder), "--into", str(tmp_path / "all")]) == 0
        assert "2 studies added" in capsys.readouterr().out
        (tmp_path / "empty").mkdir()
        with pytest.raises(UsageError, match=r"empty holds no records .*cells or .*studies"):
            merge([tmp_path / "empty"], tmp_path / "all")
        with pytest.raises(UsageError, match=r"holds no records \(no folder [^ ]*cells\)"):
            load_results(folder)

    def test_what_is_damaged_is_replaced(self, measured: Path, tmp_path: Path) -> None:
        folder = only_studies(tmp_path / "a", studies(measured))
        merge([folder], tmp_path / "all")
        file, other = sorted((tmp_path / "all" / "studies").iterdir())
        whole, before = file.read_bytes(), other.stat().st_mtime_ns
        file.write_bytes(whole[: len(whole) // 2])
        done = merge([folder], tmp_path / "all")
        assert done.studies == 1
        assert file.read_bytes() == whole
        assert other.stat().st_mtime_ns == before  # an equal one is left as it is
        assert merge([folder], tmp_path / "all").studies == 0

    @pytest.mark.parametrize("order", [1, -1])
    def test_done_before_any_other(self, measured: Path, tmp_path: Path, order: int) -> None:
        done = studies(measured)[0]
        failed = done | {"status": "failed", "values": {}, "finished": "1999-01-01T00:00:00Z"}
        folders = [only_studies(tmp_path / str(i), [one]) for i, one in enumerate((done, failed))]
        merge(folders[::order], tmp_path / "all")
        assert list(record.read_all(tmp_path / "all", room=record.STUDIES)) == [done]
        merge(folders[:1], folders[1])
        assert list(record.read_all(folders[1], room=record.STUDIES)) == [done]

    def test_the_last_bits_of_a_number_are_no_contradiction(
        self, measured: Path, tmp_path: Path
    ) -> None:
        def merged(name: str, *several: dict) -> list[dict]:
            first = studies(measured)[0]
            later = [f"20{30 + i}-01-01T00:00:00Z" for i in range(len(several))]
            folders = [
                only_studies(tmp_path / name / when, [first | {"values": v, "finished": when}])
                for v, when in zip(several, later, strict=True)
            ]
            merge(folders[::-1], tmp_path / name / "all")
            return [o["values"] for o in record.read_all(tmp_path / name / "all", [], "studies")]

        values = {"rows": [{"x": 0.1 + 0.2, "n": 3}], "lost": float("nan"), "end": float("inf")}
        close = values | {"rows": [{"x": 0.3, "n": 3}]}
        (kept,) = merged("close", values, close)
        assert kept["rows"] == values["rows"]  # the one that was finished first
        for name, rows in {
            "far": [{"x": 0.3 + 1e-8, "n": 3}],
            "count": [{"x": 0.3, "n": 4}],
            "longer": [{"x": 0.3, "n": 3}, {}],
            "other": [{"y": 0.3, "n": 3}],
            "text": [{"x": "0.3", "n": 3}],
        }.items():
            with pytest.raises(ConflictError):
                merged(name, values, values | {"rows": rows})

    def test_a_record_in_the_wrong_room_is_told(self, measured: Path, tmp_path: Path) -> None:
        folder = swapped(tmp_path / "a", measured)
        done = merge([folder], tmp_path / "all")
        assert (done.added, done.studies) == (1, 1)
        assert sum("belongs in studies/" in line for line in done.damaged) == 1
        assert sum("belongs in cells/" in line for line in done.damaged) == 1


def only_studies(folder: Path, several: list[dict]) -> Path:
    """A folder with these records of studies, and none of cells."""
    for one in several:
        record.write(folder, one["study"], one, record.STUDIES)
    return folder


def swapped(folder: Path, measured: Path) -> Path:
    """A cell, a study, and one of each in the room of the other."""
    cell, study = invented(identity={}, key=key_of({}), crafted_key=None), studies(measured)[0]
    record.write(folder, "cell", cell)
    record.write(folder, "study", study, record.STUDIES)
    (folder / "studies" / "lost.json").write_text(json.dumps(cell))
    (folder / "cells" / "lost.json").write_text(json.dumps(study))
    return folder


class TestRooms:
    """Where a record lies says what it must be."""

    def test_reports_leave_out_what_belongs_elsewhere(
        self, measured: Path, tmp_path: Path, capsys
    ) -> None:
        folder = swapped(tmp_path / "r", measured)
        assert run_bench.main(["--report-only", "--results-dir", str(folder)]) == 0
        (note,) = [s for s in capsys.readouterr().err.splitlines() if s.startswith("note: ")]
        assert "lost.json belongs in studies/, not in cells/; move it there" in note
        for room in (record.CELLS, record.STUDIES):
            notes: list[str] = []
            assert len(list(record.read_all(folder, notes, room))) == 1
            assert len(notes) == 1
            assert "lost.json belongs in" in notes[0]

    def test_writing_asks_for_the_fields_of_the_room(self, measured: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="belongs in studies/"):
            record.write(tmp_path, "x", studies(measured)[0])
        with pytest.raises(UsageError, match="belongs in cells/"):
            record.write(tmp_path, "x", invented(), record.STUDIES)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("room", [record.CELLS, record.STUDIES])
    @pytest.mark.parametrize("depth", [200, 900, 100_000])
    def test_what_is_nested_too_deeply_is_no_record(
        self, measured: Path, tmp_path: Path, room: str, depth: int, capsys
    ) -> None:
        folder = swapped(tmp_path / "r", measured)
        file = next((folder / room).glob("[!l]*.json"))
        whole = json.loads(file.read_text())
        whole["values" if room == record.STUDIES else "recipe_settings"] = {"x": "DEEP"}
        file.write_text(json.dumps(whole).replace('"DEEP"', "[" * depth + "]" * depth))
        notes: list[str] = []
        assert not list(record.read_all(folder, notes, room))
        assert sum("cannot be read (it is nested too deeply)" in line for line in notes) == 1
        done = merge([folder], tmp_path / "all")
        assert sum("nested too deeply" in line for line in done.damaged) == 1
        code = run_bench.main(["--report-only", "--results-dir", str(folder)])
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert code == (2 if room == record.CELLS else 0)  # no other cell is there

    @pytest.mark.parametrize("room", [record.CELLS, record.STUDIES])
    @pytest.mark.parametrize("content", ["3", '"x"', "null", "[3]", "{}"])
    def test_what_is_no_object_is_no_record(self, tmp_path: Path, room: str, content: str) -> None:
        (tmp_path / room).mkdir()
        (tmp_path / room / "x.json").write_text(content)
        with pytest.raises(UsageError, match="has schema None"):
            list(record.read_all(tmp_path, room=room))

    @pytest.mark.parametrize("room", [record.CELLS, record.STUDIES])
    def test_a_newer_record_is_not_replaced(
        self, measured: Path, tmp_path: Path, room: str
    ) -> None:
        one = studies(measured)[0] if room == record.STUDIES else invented(key="0" * 64)
        file = record.write(tmp_path, "x", one, room)
        assert record.is_done(tmp_path, one["key"], room)
        newer = json.dumps({"schema": record.SCHEMA + 1})
        file.write_text(newer)
        with pytest.raises(record.NewerRecordError):
            record.is_done(tmp_path, one["key"], room)
        with pytest.raises(record.NewerRecordError):
            record.write(tmp_path, "y", one, room)
        assert file.read_text() == newer
        file.write_text(newer[:5])  # a damaged one is
        assert not record.is_done(tmp_path, one["key"], room)
        assert record.write(tmp_path, "y", one, room) == file
        assert record.is_done(tmp_path, one["key"], room)


def test_a_study_lacks_no_field(measured: Path) -> None:
    file = next(iter((measured / "results" / "studies").iterdir()))
    for name in record.STUDY_FIELDS:
        broken = json.loads(file.read_text())
        del broken[name]
        with pytest.raises(UsageError, match=f"lacks '{name}'|has schema None"):
            record.check(broken, "somewhere", record.STUDIES)

"""Published figures by name: read, run on a small synthetic set, and drawn from records alone."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import run_bench
from bench import record as records
from bench.component import parse_one
from bench.errors import UsageError
from bench.grid import Expansion, Grid
from bench.papers.figures import DRAW, report_figures, run_figures
from bench.papers.material import FigureGrid, needs_images
from bench.papers.plots import (
    confusion_figure,
    confusion_shares,
    cosine_figure,
    cross_training_figure,
)
from bench.papers.published import (
    KINDS,
    OF_STUDIES,
    PaperFigure,
    figures_of,
    find_published,
    read_figures,
)
from bench.papers.request import PaperOutcome
from bench.papers.targets import paper_names
from bench.record import STUDIES as ROOM
from bench.registry import STUDIES, load_plugin
from bench.reports.summary import summarise
from bench.running.runner import run_session
from bench.running.session import Session
from tests.invented import record

FIGURES = [figure for paper in paper_names() for figure in figures_of(paper).values()]
BASE = Grid(
    recipe="quick:epochs=2,batch_size=32,train_images=none,curve_images=20", precision="fp32"
)
SETS = {"dataset": "synthetic:train=96,test=40,size=16", "archs": "rn18:width=0.0625"}
GRIDS = {
    "curves": {"methods": "noise,sham"},
    "held-out": {"methods": "noise", "holdout": 0.0002},  # of 50 000 where a recipe takes all
    "sweep": {"methods": "lsp:epsilon=[0.02,0.06]"},
    "samples": {"methods": "noise"},
    "confusion": {"methods": "sep:checkpoints=1,steps=1", "protect_classes": "1-2"},
    "gradient-cosine": {"methods": "sep:checkpoints=2,steps=1"},
    "cross-training": {"methods": "noise"},
    "gaussian-mixture": {},
}


def figure(kind: str, **options) -> PaperFigure:
    """An invented one on the synthetic set."""
    grid = SETS | GRIDS[kind] if kind != "gaussian-mixture" else {}
    return PaperFigure(
        paper="invented",
        name=f"fig-{kind}",
        kind=kind,
        title="Figure 0: nothing",
        source="Nobody, Nothing, never",
        shows="nothing at all",
        options=grid | options,
        instead={},
        aims=(1, 2, 0, 0) if kind == "confusion" else (),
        quirks=("it was invented",),
    )


def session(folder: Path) -> Session:
    """With folders of its own."""
    return Session(BASE, folder / "results", folder / "store", folder / "data", threads=1)


FAILING = '''
from dataclasses import dataclass
from bench.method import Method
from bench.registry import METHODS

@METHODS.register("hopeless")
@dataclass(frozen=True)
class Hopeless(Method):
    """Raises while it crafts."""

    def craft(self, job):
        raise RuntimeError("no such luck")
'''


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """A folder in which one figure of every kind was run."""
    folder = tmp_path_factory.mktemp("drawn")
    made, log = PaperOutcome(), io.StringIO()
    run_figures(session(folder), list(map(figure, GRIDS)), 1, 1, log, made)
    assert not made.failed
    assert not made.undrawn
    assert not made.left
    return folder


class TestFiles:
    def test_every_figure_of_the_issue_is_there(self) -> None:
        named = {one.label for one in FIGURES}
        numbers = ["1", "2a", "2b", "2c", *"3456789"]
        sep = {f"sep:fig{number}" for number in numbers}
        assert named == sep | {"cuda:theory"}

    def test_every_kind_is_drawn_and_used(self) -> None:
        assert {one.kind for one in FIGURES} == set(DRAW) == set(KINDS)
        assert set(OF_STUDIES) == set(STUDIES.entries)

    @pytest.mark.parametrize("one", FIGURES, ids=lambda one: one.label)
    @pytest.mark.parametrize("recipe", ["paper", "quick"])
    def test_what_is_typed_can_be_built(self, one: PaperFigure, recipe: str) -> None:
        if needs_images(one):
            wanted = FigureGrid.of(one, Grid(recipe=recipe, device="cpu"))
            Expansion(wanted.grid)
            assert wanted.grid.seeds == (0,)

    def test_held_out_is_a_share_of_the_training_images(self) -> None:
        (fig4,) = find_published("sep:fig4")[1]
        assert FigureGrid.of(fig4, Grid(recipe="paper", device="cpu")).grid.holdout == 2500
        assert FigureGrid.of(fig4, Grid(recipe="quick", device="cpu")).grid.holdout == 250

    def test_small_recipes_may_ask_for_less_and_say_so(self) -> None:
        (fig5,) = find_published("sep:fig5")[1]
        small = FigureGrid.of(fig5, Grid(recipe="quick", device="cpu"))
        assert small.grid.archs == "rn18"
        assert any("archs rn18 instead of" in text for text in fig5.departures("quick"))
        assert fig5.departures("paper") == []

    def test_names(self) -> None:
        tables, figures = find_published("sep:table4,fig1,cuda:theory,sep:fig1")
        assert [one.label for one in tables] == ["sep:table4"]
        assert [one.label for one in figures] == ["sep:fig1", "cuda:theory"]
        tables, figures = find_published("sep:all")
        assert len(tables) == 6
        assert not figures
        tables, figures = find_published("sep:figures")
        assert len(figures) == 11
        assert not tables

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("sep:fig12", "did you mean fig1?"),
            ("spe:fig1", "did you mean sep?"),
            ("ops:figures", "unknown table or figure of ops"),
            ("", "names nothing"),
        ],
    )
    def test_wrong_names_say_what_there_is(self, text: str, said: str) -> None:
        with pytest.raises(UsageError) as error:
            find_published(text)
        assert said in str(error.value)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ('colour = "red"', "unknown field 'colour'"),
            ("aims = [1.5]", "a list of classes"),
            ('epsilon = "big"', "a radius"),
            ("holdout = 2", "a share of 0 to 1"),
            ("methods = 3", "a text"),
            ('kind = "pie"', "one of curves"),
        ],
    )
    def test_wrong_files_say_where(self, tmp_path: Path, line: str, said: str) -> None:
        kind = "" if line.startswith("kind") else 'kind = "curves"'
        text = f'[paper]\ntitle = "x"\n[fig1]\n{kind}\ntitle = "t"\nshows = "s"\n{line}\n'
        (tmp_path / "x.toml").write_text(text)
        with pytest.raises(UsageError) as error:
            read_figures(tmp_path / "x.toml")
        assert said in str(error.value)
        assert "x.toml: fig1" in str(error.value)


class TestRuns:
    @pytest.mark.parametrize("kind", GRIDS)
    def test_pictures_and_tables(self, drawn: Path, kind: str) -> None:
        report = report_figures(drawn / "results", [figure(kind)], BASE, {})
        endings = {file.suffix for file in report.files}
        assert {".png", ".pdf", ".txt", ".md", ".csv", ".tex"} <= endings
        assert all(file.stat().st_size > 50 for file in report.files)
        (name,) = report.numbers
        assert name == f"paper-invented-fig-{kind}"
        assert report.numbers[name]
        assert "The paper shows: nothing at all." in report.text
        assert "It was invented." in report.text
        assert "not drawn" not in report.text

    def test_again_there_is_nothing_to_do(self, drawn: Path) -> None:
        log = io.StringIO()
        before = {f: f.stat().st_mtime_ns for f in (drawn / "results").rglob("*.json")}
        run_figures(session(drawn), list(map(figure, GRIDS)), 1, 1, log, PaperOutcome())
        assert {f: f.stat().st_mtime_ns for f in (drawn / "results").rglob("*.json")} == before
        assert "[1/" not in log.getvalue()

    def test_equal_records_make_equal_tables(self, drawn: Path, tmp_path: Path) -> None:
        for room in ("cells", ROOM, "samples"):
            shutil.copytree(drawn / "results" / room, tmp_path / room)
        first = report_figures(drawn / "results", list(map(figure, GRIDS)), BASE, {})
        second = report_figures(tmp_path, list(map(figure, GRIDS)), BASE, {})
        assert first.text == second.text
        assert first.numbers == second.numbers

    def test_only_records_of_its_grid_are_in_it(self, drawn: Path) -> None:
        names = json.dumps(report_figures(drawn / "results", [figure("curves")], BASE, {}).numbers)
        assert "noise" in names
        assert "lsp" not in names
        # The same methods with protected classes or held-out images stand in other figures.
        text = report_figures(drawn / "results", [figure("confusion")], BASE, {}).text
        assert "classes" in text
        other = figure("confusion", protect_classes="0-1")
        assert "not drawn: no record" in report_figures(drawn / "results", [other], BASE, {}).text

    def test_studies_of_other_data_are_not_drawn(self, drawn: Path) -> None:
        for kind in ("gradient-cosine", "cross-training"):
            other = figure(kind, dataset="cifar100")
            assert "not drawn" in report_figures(drawn / "results", [other], BASE, {}).text

    def test_studies_of_other_sets_are_not_mixed_in(self, drawn: Path) -> None:
        other = figure("cross-training", methods="sham")
        assert "not drawn" in report_figures(drawn / "results", [other], BASE, {}).text
        longer = replace(BASE, recipe=BASE.recipe.replace("epochs=2", "epochs=3"))
        mine = figure("cross-training")
        assert "not drawn" in report_figures(drawn / "results", [mine], longer, {}).text

    def test_what_is_asked_for_is_what_is_drawn(self, drawn: Path) -> None:
        def text(kind: str, **changes) -> str:
            base = replace(BASE, **changes)
            return report_figures(drawn / "results", [figure(kind)], base, {}).text

        for kind in ("curves", "confusion", "gradient-cosine", "cross-training"):
            assert "not drawn" in text(kind, craft_seed=7)
            assert "not drawn" in text(kind, precision="bf16")
            assert "not drawn" not in text(kind, precision="auto")

    def test_a_study_with_other_settings_is_not_drawn(self, drawn: Path, tmp_path: Path) -> None:
        shutil.copytree(drawn / "results", tmp_path / "results")
        asked = figure("gradient-cosine")
        plain = report_figures(tmp_path / "results", [asked], BASE, {}).text
        other = replace(
            session(tmp_path),
            grid=FigureGrid.of(asked, BASE).grid,
            store=drawn / "store",
            studies=("gradient-cosine:images=7",),
        )
        run_session(other, 1, 1, io.StringIO())
        theory = replace(other, studies=())
        made = PaperOutcome()
        run_figures(theory, [figure("gaussian-mixture")], 1, 1, io.StringIO(), made)
        assert len(list((tmp_path / "results" / ROOM).iterdir())) == 4
        assert report_figures(tmp_path / "results", [asked], BASE, {}).text == plain

    def test_methods_that_share_their_surrogates_share_the_study(self, drawn: Path) -> None:
        both = figure("gradient-cosine", methods="sep:checkpoints=2,sep-fa:checkpoints=2,steps=1")
        (drawn / "log").touch()
        run_figures(session(drawn), [both], 1, 1, io.StringIO(), PaperOutcome())
        (rows,) = report_figures(drawn / "results", [both], BASE, {}).numbers.values()
        assert len({row["method"] for row in rows}) == 2
        text = report_figures(drawn / "results", [figure("gradient-cosine")], BASE, {}).text
        assert "not drawn" not in text

    def test_what_is_missing_is_named(self, drawn: Path) -> None:
        wider = figure("curves", methods="noise,sham,ule,lsp")
        text = report_figures(drawn / "results", [wider], BASE, {}).text
        assert "No record: ule × rn18" in text
        other = figure("cross-training", archs="rn18:width=0.0625,vgg16:width=0.0625")
        text = report_figures(drawn / "results", [other], BASE, {}).text
        assert "No record: vgg16" in text
        assert (
            "No record" not in report_figures(drawn / "results", [figure("sweep")], BASE, {}).text
        )

    def test_a_failed_study_is_told(self, tmp_path: Path) -> None:
        made = PaperOutcome()
        lost = figure("gradient-cosine", methods="sep:checkpoints=2,steps=1")
        bad = replace(BASE, recipe=f"{BASE.recipe},lr=1e30,clip_grad=none,warmup_epochs=0")
        asked = replace(session(tmp_path), grid=bad)
        run_figures(asked, [lost], 1, 1, io.StringIO(), made)
        assert "surrogate rn18 diverged in epoch 1" in made.undrawn[lost.label]
        text = report_figures(tmp_path / "results", [lost], bad, made.undrawn).text
        assert "not drawn: surrogate rn18" in text
        assert "gradient-cosine of sep" in text

    def test_failed_victims_do_not_stop_the_report(self, tmp_path: Path) -> None:
        plugin = tmp_path / "bad.py"
        plugin.write_text(FAILING)
        load_plugin(str(plugin))
        lost = [figure(kind, methods="hopeless") for kind in ("confusion", "held-out", "curves")]
        made = PaperOutcome()
        run_figures(session(tmp_path), lost, 1, 1, io.StringIO(), made)
        assert made.failed
        text = report_figures(tmp_path / "results", lost, BASE, made.undrawn).text
        assert text.count("hopeless") >= 3

    def test_several_seeds_are_one_panel_with_an_interval(
        self, drawn: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(drawn / "results", tmp_path / "results")
        asked = figure("cross-training")
        seeds = replace(session(tmp_path), store=drawn / "store")
        seeds = replace(seeds, grid=replace(BASE, seeds=(1, 2)))
        run_figures(seeds, [asked], 1, 1, io.StringIO(), PaperOutcome())
        report = report_figures(tmp_path / "results", [asked], BASE, {})
        (rows,) = report.numbers.values()
        assert {row["n"] for row in rows} == {3}
        assert "fewer than" not in report.text
        (clean,) = [row for row in rows if row["images"] == "clean"]
        values = [
            one["values"]["never_correct"]["clean"]
            for one in records.read_all(tmp_path / "results", room=ROOM)
            if one["study"] == "cross-training"
        ]
        assert clean["never_correct"] == pytest.approx(np.mean(values), abs=1e-4)
        assert clean["never_correct_sd"] == pytest.approx(np.std(values, ddof=1), abs=1e-4)

    def test_values_that_make_no_sense_are_left_out_and_told(
        self, drawn: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(drawn / "results", tmp_path / "results")
        for file in (tmp_path / "results" / ROOM).iterdir():
            file.write_text(json.dumps(records.read(file) | {"values": {}}))
        kinds = [figure(kind) for kind in OF_STUDIES]
        report = report_figures(tmp_path / "results", kinds, BASE, {})
        assert report.text.count("not drawn") == 3
        assert len(report.notes) == 3
        assert all("make no sense" in note for note in report.notes)

    def test_pictures_of_before_do_not_stay(self, drawn: Path) -> None:
        stale = drawn / "results" / "plots" / "paper-invented-fig-curves-3.png"
        other = drawn / "results" / "plots" / "paper-invented-fig-curves-extra.png"
        for file in (stale, other):
            file.write_bytes(b"x")
        report_figures(drawn / "results", [figure("curves")], BASE, {})
        assert not stale.exists()
        assert other.exists()

    def test_what_cannot_be_run_says_why(self, tmp_path: Path) -> None:
        made, log = PaperOutcome(), io.StringIO()
        lost = figure("curves", dataset="folder:nowhere")
        run_figures(session(tmp_path), [lost, figure("curves")], 1, 1, log, made)
        assert list(made.undrawn) == ["invented:fig-curves"]
        assert len(made.outcomes) == 1  # the other one ran
        text = report_figures(tmp_path / "results", [lost], BASE, made.undrawn).text
        assert "nowhere" in text

    def test_the_time_limit_leaves_figures(self, tmp_path: Path) -> None:
        made, log = PaperOutcome(), io.StringIO()
        late = replace(session(tmp_path), deadline=0.0)
        run_figures(late, [figure("curves"), figure("confusion")], 1, 1, log, made)
        assert made.left == 2


class TestConfusion:
    def test_doubts_stand_behind_its_numbers(self, drawn: Path) -> None:
        report = report_figures(drawn / "results", [figure("confusion")], BASE, {})
        (rows,) = report.numbers.values()
        assert all("few-seeds" in row["flags"] for row in rows)
        assert "fewer than 3 victim seeds" in report.text

    def test_marks_stand_above_its_panels(self) -> None:
        chosen = {"confusion": [[8, 2], [3, 7]], "classes": ["a", "b"]}
        told = [record(name, **chosen) for name in ("clean", "sep", "ule")]
        told.append(record("advpoison", **chosen, audit={"within_budget": False}))
        (summary,) = summarise(told)
        picture = confusion_figure(summary, (1, 0), "x")
        titles = [axes.get_title() for axes in picture.axes if axes.get_title()]
        heads = {title.split(" ")[0]: title for title in titles}
        assert {name for name, head in heads.items() if head.endswith("#")} == {"advpoison"}
        assert len(heads) == 3
        assert "#: the audit found" in " ".join(picture._supxlabel.get_text().split())

    def test_one_scale_tells_what_its_colours_mean(self) -> None:
        chosen = {"confusion": [[8, 2], [3, 7]], "classes": ["a", "b"]}
        (summary,) = summarise([record(name, **chosen) for name in ("clean", "sep", "ule")])
        picture = confusion_figure(summary, (1, 0), "x")
        (scale,) = [axes for axes in picture.axes if "(%)" in axes.get_ylabel()]
        assert scale.get_ylim() == (0, 100)

    def test_rows_sum_to_a_hundred_and_seeds_are_added_up(self) -> None:
        one = record(confusion=[[3, 1], [0, 4]], classes=["a", "b"])
        other = record(confusion=[[1, 3], [4, 0]], classes=["a", "b"])
        assert np.allclose(confusion_shares([one]), [[75, 25], [0, 100]])
        assert np.allclose(confusion_shares([one, other]), [[50, 50], [50, 50]])

    def test_table(self, drawn: Path) -> None:
        report = report_figures(drawn / "results", [figure("confusion")], BASE, {})
        (rows,) = report.numbers.values()
        control, ours = rows
        assert control["method"] == "clean"
        assert control["protected_right"] is None
        assert control["others_right"] is not None
        (file,) = [
            one
            for one in (drawn / "results" / "cells").glob("sep*.json")
            if json.loads(one.read_text()).get("protected_classes")
        ]
        counts = np.array(json.loads(file.read_text())["confusion"], dtype=float)
        shares = 100 * counts / counts.sum(1, keepdims=True)
        assert ours["protected_right"] == pytest.approx((shares[1, 1] + shares[2, 2]) / 2)
        assert ours["aimed_at"] == pytest.approx((shares[1, 2] + shares[2, 0]) / 2)


def measured(seed: int = 0, **values: Any) -> dict[str, Any]:
    """The record of an invented study."""
    return record("clean", seed=seed, precision="bf16") | {"values": values}


class TestStudies:
    @staticmethod
    def crossed(seed: int) -> tuple[str, dict[str, Any]]:
        sets = {"clean": 0.6 + 0.01 * seed, "ar": 0.5}
        curve = [{"epoch": epoch, "sets": sets} for epoch in (1, 2)]
        never = {label: 1 - share for label, share in sets.items()}
        return "rn18", measured(seed, curve=curve, never_correct=never)

    def test_one_training_is_called_one(self) -> None:
        picture = cross_training_figure([self.crossed(0)], "x")
        caption = " ".join(picture.get_supxlabel().split())
        assert picture.axes[0].get_title() == "rn18 · n = 1*"
        assert "Lines: one training each. *: fewer than 3 victim seeds." in caption
        assert "interval" not in caption

    def test_several_trainings_have_a_band(self) -> None:
        picture = cross_training_figure([self.crossed(seed) for seed in range(3)], "x")
        caption = " ".join(picture.get_supxlabel().split())
        assert picture.axes[0].get_title() == "rn18 · n = 3"
        assert caption.endswith("bands: lowest to highest.")

    def test_doubts_stand_above_cosines(self) -> None:
        cosines = [[1.0, 0.2], [0.2, 1.0]]
        exact = measured(networks=["a", "b"], cosines=cosines, between=0.2, images=9)
        rounded = exact | {"recipe": "cuda"}
        picture = cosine_figure([("sep", rounded), ("ensemble", exact)], "x")
        titles = [axes.get_title() for axes in picture.axes]
        assert titles == ["sep: mean 0.20 between~", "ensemble: mean 0.20 between"]
        caption = " ".join(picture.get_supxlabel().split())
        assert "all numbers: fewer than 3 victim seeds. ~: trained in another" in caption


class TestTables:
    """What a picture shows stands in the table beside it."""

    @pytest.mark.parametrize("kind", ["curves", "held-out"])
    def test_train_accuracy_stands_beside_its_picture(self, drawn: Path, kind: str) -> None:
        report = report_figures(drawn / "results", [figure(kind)], BASE, {})
        (rows,) = report.numbers.values()
        grid = FigureGrid.of(figure(kind), BASE).grid
        found = {
            one["method"]: 100 * one["final_train_acc"]
            for one in records.read_all(drawn / "results", [])
            if one["holdout"] == grid.holdout and not one.get("protected_classes")
        }
        assert "train %" in report.text
        assert {row["method"] for row in rows} >= {"clean", "noise"}
        for row in rows:
            assert row["train_acc_percent"] == pytest.approx(found[row["method"]], abs=1e-3)

    def test_another_radius_is_told_behind_the_title(self, drawn: Path) -> None:
        asked = replace(figure("samples"), instead={"quick": {"epsilon": "8/255"}})
        asked = replace(asked, options=asked.options | {"epsilon": "2/255"})
        text = report_figures(drawn / "results", [asked], BASE, {}).text
        assert "(Nobody, Nothing, never).\nHere at 8/255.\n" in text
        assert (
            "Here at" not in report_figures(drawn / "results", [figure("samples")], BASE, {}).text
        )


class TestCommand:
    def test_plan_lists_figures(self, capsys, tmp_path: Path) -> None:
        code = run_bench.main(
            ["--paper", "cuda:theory", "--plan", "--results-dir", str(tmp_path / "r")]
        )
        assert code == 0
        assert "cuda:theory" in capsys.readouterr().out

    def test_theory_needs_no_images(self, capsys, tmp_path: Path) -> None:
        arguments = ["--paper", "cuda:theory", "--results-dir", str(tmp_path / "r")]
        arguments += [
            "--store",
            str(tmp_path / "s"),
            "--data-dir",
            str(tmp_path / "d"),
            "--offline",
        ]
        assert run_bench.main(arguments) == 0
        assert "drawn: plots/paper-cuda-theory.png" in capsys.readouterr().out
        assert (tmp_path / "r" / "plots" / "paper-cuda-theory.pdf").exists()

    def test_list_names_them(self, capsys) -> None:
        run_bench.main(["--list"])
        out = capsys.readouterr().out
        assert "sep:fig2a" in out
        assert "studies\n" in out


def test_kinds_are_studies_or_grids() -> None:
    for name in OF_STUDIES:
        parse_one(name, STUDIES)

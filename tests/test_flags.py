"""Doubts about numbers: raised by hand-made records, shown in every table, never dropped."""

import io
import math
import statistics
import tomllib
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench import load_results
from bench.papers.targets import find_tables, paper_names
from bench.recipe import PUBLISHED
from bench.registry import RECIPES
from bench.reports.axes import axis_table, find_axes
from bench.reports.axis_plots import axis_figures
from bench.reports.cells import KNOWS
from bench.reports.claims import Claim, claims_table
from bench.reports.class_tables import class_tables
from bench.reports.defense_tables import LEFT_OUT, ONE_SEED, UNRANKED, defense_tables
from bench.reports.detection import holdout_tables
from bench.reports.flags import (
    ADAPTED,
    BROKEN,
    CONTROLS,
    EXACT,
    FAILED,
    FEW,
    FLAGS,
    LINEAR,
    LOW_TRAINING,
    NO_CONTROL,
    ONE_CLASS,
    OTHERWISE,
    RECRAFTED,
    UNCHECKED,
    UNLEARNED,
    WEAK_CONTROL,
    Flag,
    Number,
    flags,
    flags_of_all,
    is_separable,
    is_weak,
    settle,
)
from bench.reports.heatmap import heatmaps
from bench.reports.plots import curve_figures, overview_figure
from bench.reports.summary import Group, Summary, summarise
from bench.reports.table import Table
from bench.reports.tables import all_tables, details_table, main_table
from tests.invented import record

RESULTS = Path(__file__).resolve().parent.parent / "results"

# Raised.


def group(*tests: float, **more: Any) -> Group:
    return Group(tuple(record("sep", seed=s, test=t, **more) for s, t in enumerate(tests)))


CLEAN = Group(tuple(record("clean", seed=seed, test=0.61, train=0.9) for seed in range(3)))


@pytest.mark.parametrize(
    ("score", "more", "marked"),
    [
        (0.91, {}, True),  # ten classes: 10 + 0.9 * 90
        (0.9099, {}, False),
        (0.95, {"protected_classes": [3, 4]}, True),  # two of them: 50 + 0.9 * 50
        (0.9499, {"protected_classes": [3, 4]}, False),
        (None, {}, False),
    ],
)
def test_separable_is_nine_tenths_of_the_way_from_chance(score, more, marked) -> None:
    one = record("ule", separability=score, **more)
    assert is_separable(one) is marked
    assert (LINEAR in flags(Group((one,) * 3), CLEAN)) is marked


@pytest.mark.parametrize(
    ("predicted", "collapsed"),
    [
        ([50, 30, 20], False),  # a half
        ([51, 29, 20], True),
        ([60, 40], False),  # of two classes a half is a fair share
        ([75, 25], False),
        ([76, 24], True),
        ([100], False),
    ],
)
def test_one_class_for_most_images_is_more_than_half_and_than_a_fair_share(
    predicted: list[int], collapsed: bool
) -> None:
    classes = [f"class {i}" for i in range(len(predicted))]
    table = [predicted] + [[0] * len(predicted)] * (len(predicted) - 1)
    one = record("sep", classes=classes, confusion=table)
    assert (ONE_CLASS in flags(Group((one,) * 3), Group())) is collapsed


def test_a_record_without_a_score_is_not_marked() -> None:
    assert not is_separable(record("ule"))


def test_a_mean_over_several_groups_has_the_doubts_of_all() -> None:
    failed = Group((), (record("sep", error="E: no"),))
    badly, broken = group(0.3, 0.3, 0.3, train=0.7), group(0.3, audit={"within_budget": False})
    pairs = [(badly, CLEAN), (broken, CLEAN)]
    assert flags_of_all(pairs, 3) == [BROKEN, LOW_TRAINING]  # three victims, chosen from four
    assert flags_of_all(pairs, 2) == [BROKEN, LOW_TRAINING, FEW]
    assert flags_of_all([*pairs, (failed, CLEAN)], 3) == [BROKEN, LOW_TRAINING, FAILED]
    assert flags_of_all([(CLEAN, CLEAN)], 3) == []


def test_without_a_control_nothing_shows_that_training_works() -> None:
    made = group(0.3, 0.3, 0.3)
    failed = Group((), tuple(record("clean", seed=seed, error="E: no") for seed in range(3)))
    for control in (Group(), failed):
        assert flags(made, control, strict=True) == [NO_CONTROL]
        assert flags(made, control) == []  # the table has no drop there
        assert flags(CLEAN, control, strict=True) == []
    assert flags(made, CLEAN, strict=True) == []


def test_a_control_of_which_nothing_is_known_is_a_doubt_where_that_is_asked() -> None:
    unheard = Group(tuple(one | {"arch_label": "unheard-of"} for one in CLEAN.done))
    assert flags(group(0.3, 0.3, 0.3), unheard) == []
    assert flags(group(0.3, 0.3, 0.3), unheard, strict=True) == [UNCHECKED]
    assert flags(unheard, unheard, strict=True) == [UNCHECKED]
    assert flags(group(0.3, 0.3, 0.3), CLEAN, strict=True) == []


def test_settings_that_change_no_training_leave_a_control_known() -> None:
    weak = Group(tuple(record("clean", seed=s, test=0.5, train=0.9) for s in range(3)))
    for label, known in (
        ("quick:curve_images=500", True),
        ("quick:epochs=20,curve_images=500", True),
        ("quick:curve_images=500,epochs=20", True),
        ("quick:epochs=21", False),
    ):
        told = Group(tuple(one | {"recipe_label": label} for one in weak.done))
        assert is_weak(told) is known, label


def test_a_control_that_held_images_back_is_not_known() -> None:
    weak = Group(tuple(record("clean", seed=s, test=0.5, train=0.9) for s in range(3)))
    held = Group(tuple(one | {"holdout": 500} for one in weak.done))
    assert flags(weak, weak) == [WEAK_CONTROL]  # 61.1 is known, 5.2 below it is allowed
    assert flags(held, held) == []


def test_recipes_that_ask_for_exact_training_are_known_by_name() -> None:
    classes = {name: RECIPES.get(name) for name in RECIPES.entries}
    assert {n for n, recipe in classes.items() if recipe.precision == "exact"} == set(EXACT)


@pytest.mark.parametrize("recipe", sorted(RECIPES.entries))
def test_rounded_training_is_marked_where_a_recipe_asks_for_exact(recipe: str) -> None:
    exact = RECIPES.get(recipe).precision == "exact"
    for precision in ("bf16", "tf32", "fp32"):
        made = group(0.3, 0.3, 0.3, recipe=recipe, precision=precision)
        assert (OTHERWISE in flags(made, Group())) == (exact and precision == "bf16")


AUDIT = {"mean_l2": 1.3520576171875, "share_changed": 0.9378045572916667, "max_levels": 8}
"""What an audit may hold."""
NEARLY = AUDIT | {"mean_l2": 1.3520579}  # the same images, added up in another order
ANEW = AUDIT | {"mean_l2": 1.3522, "share_changed": 0.9381}  # the nearest seen of two machines


def drawn(audits: list[dict[str, Any]], **more: Any) -> list[bool]:
    """Which of some victims, in the order in which they finished, are of another crafted set."""
    records = [
        record("ule", seed=seed, key=str(seed), finished=f"{seed}", audit=audit, **more)
        for seed, audit in enumerate(audits)
    ]
    (summary,) = summarise(reversed(records))
    return [RECRAFTED in flags(Group((one,)), Group()) for one in summary.records]


def test_victims_of_a_set_that_was_crafted_again_are_told_from_most() -> None:
    assert drawn([ANEW, AUDIT, AUDIT]) == [True, False, False]
    assert drawn([AUDIT, AUDIT, ANEW, NEARLY]) == [False, False, True, False]
    assert drawn([AUDIT, ANEW]) == [False, True]  # of equally many the earlier one is usual


def test_sets_of_other_settings_are_no_sets_crafted_again() -> None:
    assert drawn([AUDIT, AUDIT]) == [False, False]
    records = [
        record("ule", seed=0, key="a", crafted_key="a", audit=AUDIT),
        record("ule", seed=0, key="b", crafted_key="b", audit=ANEW, craft_seed=1),
    ]
    found = [one for summary in summarise(records) for one in summary.records]
    assert not any(RECRAFTED in flags(Group((one,)), Group()) for one in found)


def test_marks_mean_one_thing_each() -> None:
    marks = [flag.mark for flag in FLAGS] + [KNOWS, ONE_SEED, LEFT_OUT, UNRANKED]
    assert len(set(marks)) == len(marks)
    assert all(len(mark) == 1 for mark in marks)
    assert len({flag.name for flag in FLAGS}) == len(FLAGS)


# Told.


def test_what_all_numbers_share_is_told_once() -> None:
    few, both = Number("1.0", [FEW]), Number("2.0", [BROKEN, FEW], " n=1")
    lines, notes = settle([["a", few], ["b", both], ["c", "failed"]])
    assert lines == [["a", "1.0"], ["b", "2.0# n=1"], ["c", "failed"]]
    assert notes == [f"all numbers: {FEW.note}", f"#: {BROKEN.note}"]


def test_one_number_without_it_is_enough_to_mark_the_others() -> None:
    lines, notes = settle([["a", Number("1.0", [FEW])], ["b", Number("2.0")]])
    assert lines == [["a", "1.0*"], ["b", "2.0"]]
    assert notes == [f"*: {FEW.note}"]


def test_a_number_alone_has_its_marks_in_their_order() -> None:
    assert settle([[Number("1.0", [FEW, LOW_TRAINING])]])[0] == [["1.0†*"]]
    assert settle([["failed"]]) == ([["failed"]], [])
    assert settle([]) == ([], [])


def test_tables_of_one_seed_say_so_once() -> None:
    one = [record("clean", test=0.6), record("sep", test=0.3)]
    (summary,) = summarise(one)
    made = main_table(summary)
    assert made.cells.to_numpy().tolist() == [
        ["clean", "", "60.0", ""],
        ["sep", "l∞ 8/255", "30.0", "30.0"],
    ]
    assert made.notes[0] == "all numbers: fewer than 3 victim seeds."
    (mixed,) = summarise([*one, *(record("ule", seed=seed, test=0.1) for seed in range(3))])
    # Ule has three seeds, but one pair.
    assert [line[2:] for line in main_table(mixed).cells.to_numpy().tolist()] == [
        ["60.0* n=1", ""],
        ["30.0* n=1", "30.0*"],
        ["10.0 ± 0.0", "50.0*"],
    ]


def test_scores_stand_in_the_details_where_there_are_any() -> None:
    known = [record("clean", test=0.6, separability=None), record("ule", separability=0.9996)]
    (summary,) = summarise([*known, record("sep")])
    made = details_table(summary)
    assert made.cells.set_index("method")["separable %"].to_dict() == {
        "clean": "–",
        "sep": "–",
        "ule": "100.0",
    }
    assert any(note.startswith("separable %: how often a linear rule") for note in made.notes)
    assert made.numbers.set_index("method")["separability"].dropna().to_dict() == {"ule": 0.9996}
    (without,) = summarise([record("clean"), record("sep")])
    assert "separable %" not in details_table(without).cells
    assert "separability" not in details_table(without).numbers


# Shown: every doubt in every kind of table.

FOLLOWED = {"own_acc": 0.9, "next_acc": 0.2, "next_followed": 0.7}
UNFOLLOWED = {"own_acc": 0.6, "next_acc": 0.6, "next_followed": 0.05}

RAISED: dict[Flag, dict[str, Any]] = {
    BROKEN: {"audit": {"within_budget": False}},
    LOW_TRAINING: {"train": 0.7},
    FAILED: {},
    WEAK_CONTROL: {},
    ONE_CLASS: {"confusion": [[1, 0, 0, 4]] * 4},
    UNLEARNED: {"shortcut": UNFOLLOWED},
    LINEAR: {"separability": 0.99},
    ADAPTED: {"training": {"lr": 0.01}},
    RECRAFTED: {"other_set": True},
    FEW: {},
}
"""What makes a record doubtful, where a field does."""

EVEN = [[4 if i == j else 2 for j in range(4)] for i in range(4)]
DEFENSES = ("none", "cutout", "mixup")
RADII = (4 / 255, 8 / 255)


def victims(method: str, arch: str, flag: Flag | None) -> list[dict]:
    """Three victims under every defense, with everything that any table asks for."""
    made = []
    for place, defense in enumerate(DEFENSES):
        for radius in RADII if method == "sep" else RADII[:1]:
            test = {"clean": 0.6, "noise": 0.58, "sep": 0.3}[method] + 0.01 * place - radius
            test -= 0.2 * (flag is WEAK_CONTROL and method == "clean")
            row = {"epoch": 1, "lr": 0.1, "train_loss": 1.0, "train_acc": 0.9, "test_acc": test}
            fields: dict[str, Any] = {
                "confusion": EVEN,
                "curve": [row | {"holdout_acc": 0.9}],
                "shortcut": FOLLOWED if method == "sep" else UNFOLLOWED,
                **({} if method == "clean" else {"protected_classes": [0, 1]}),
                **({"method_settings": {"epsilon": radius}} if method == "sep" else {}),
                "epsilon": radius,
                "classes": list("abcd"),
                "defense": defense,
                "defense_label": defense,
            }
            doubtful = flag is not None and method == "sep" and arch == "rn18"
            fields |= RAISED[flag] if doubtful and flag else {}
            for seed in range(2 if doubtful and flag is FEW else 3):
                key = f"{method}-{arch}-{defense}-{radius}-{seed}"
                made.append(record(method, arch=arch, seed=seed, test=test, key=key, **fields))
            if doubtful and flag is FAILED:
                made.append(
                    record(method, arch=arch, seed=3, key=f"{key}+", error="E: no", **fields)
                )
    return made


def board(flag: Flag | None) -> Summary:
    """Methods on two architectures; there is a doubt about one method on one of them.

    About the control, and whatever is compared with it, where that is the doubt; of the other
    architecture nothing is known.
    """
    records = [
        one
        for arch in ("rn18", "unheard-of")
        for method in ("clean", "noise", "sep")
        for one in victims(method, arch, flag if arch == "rn18" else None)
    ]
    (summary,) = summarise(records)
    return summary


SHARED = ["method", "none", "cutout", "mixup", "worst of 3"]
MARKED = {
    "main": ["rn18 ×1/4", "drop"],
    "details": ["train %", "peak (oracle) %"],
    "premises": ["train % (≥ 95)", "clean test %"],
    "shortcut": ["clean %", "own %", "next %", "followed %"],
    "classes": ["protected classes %", "other classes %"],
    "defenses": [*SHARED[1:], "at most"],
    "recovery": SHARED[1:],
    "ranking": ["plain", "worst of 3", "at most"],
    "detection": ["held-out %", "clean test %", "suspicion", "AUC %"],
    "early-stopping": ["last %", "picked %", "peak (oracle) %"],
    "axis-epsilon": ["4/255", "8/255"],
    "claims": ["difference"],
}
"""By table the columns of numbers about which there is a doubt."""

LATEX = {"#": r"\#", "†": r"$\dagger$", "‡": r"$\ddagger$", "◊": r"$\diamond$"}
LATEX |= {"≈": r"$\approx$", "≠": r"$\neq$", "¬": r"$\neg$"}
MARKDOWN = {"*": r"\*", "~": r"\~"}


@cache
def tables(flag: Flag | None) -> dict[str, Table]:
    """Every kind of table of the board."""
    summary = board(flag)
    claims = [Claim(("clean",), ("sep",), (arch,)) for arch in ("rn18", "unheard-of")]
    made = [*all_tables(summary), *class_tables(summary), *defense_tables(summary)]
    made += [*holdout_tables(summary), claims_table(summary, claims)]
    made += map(axis_table, find_axes([summary]))
    return {table.name: table for table in made}


def doubtful(table: Table) -> list[str]:
    """The cells about which there is a doubt, as they are shown."""
    rows = table.cells["method"].str.startswith("sep")
    if "architecture" in table.cells:
        rows &= table.cells["architecture"].str.startswith("rn18")
    cells = table.cells[rows]
    columns = MARKED[table.name]
    if table.name == "main":  # of the two drops the first is that of rn18
        first = list(cells.columns).index(columns[0])
        return cells.iloc[:, first : first + 2].to_numpy().flatten().tolist()
    return cells[columns].to_numpy().flatten().tolist()


@pytest.mark.parametrize("flag", RAISED, ids=lambda flag: flag.name)
@pytest.mark.parametrize("name", MARKED)
def test_every_doubt_is_shown_in_every_table(name: str, flag: Flag) -> None:
    table, sound = tables(flag)[name], tables(None)[name]
    cells, note = doubtful(table), f"{flag.mark}: {flag.note}"
    assert len(cells) >= 2
    assert not any(flag.mark in cell for cell in doubtful(sound))
    assert not any(flag.note in one for one in sound.notes)
    if (name, flag) == ("detection", WEAK_CONTROL):  # its rows are of both architectures
        assert table.notes.count(f"all numbers: {flag.note}") == 1
        return
    assert all(flag.mark in cell for cell in cells), cells
    assert table.notes.count(note) == 1
    for shown, escapes in (
        (table.text(), {}),
        (table.markdown(), MARKDOWN),
        (table.latex(), LATEX),
    ):
        mark = escapes.get(flag.mark, flag.mark)
        assert f"{mark}: " in shown
        # More than in the notes: once for each cell, and for other cells of the same kind.
        assert shown.count(mark) > len(cells)


@pytest.mark.parametrize("flag", RAISED, ids=lambda flag: flag.name)
@pytest.mark.parametrize("name", MARKED)
def test_every_doubt_is_named_for_machines(name: str, flag: Flag) -> None:
    frame = pd.read_csv(io.StringIO(tables(flag)[name].csv()), keep_default_na=False)
    rows = frame[frame["method"].str.startswith("sep")]
    if "arch" in rows:
        rows = rows[rows["arch"].str.startswith("rn18")]
    columns = [column for column in rows if column.endswith("flags")]
    assert columns
    named = rows[columns].to_numpy().flatten().tolist()
    assert named
    assert all(flag.name in cell.split() for cell in named)


@pytest.mark.parametrize("flag", RAISED, ids=lambda flag: flag.name)
def test_every_doubt_is_shown_beside_dots(flag: Flag) -> None:
    figure = overview_figure(board(flag))
    known, unknown = (
        [text.get_text() for axes in figure.axes[start::2] for text in axes.texts]
        for start in (0, 1)
    )
    rows = len(known) // len(DEFENSES)  # clean, noise, and sep at two radii
    marked = [place % rows for place, text in enumerate(known) if flag.mark in text]
    assert set(marked) == (set(range(rows)) if flag is WEAK_CONTROL else {rows - 2, rows - 1})
    assert not any(flag.mark in text for text in unknown)
    assert f"{flag.mark}: {flag.note}" in " ".join(figure.get_supxlabel().split())


@pytest.mark.parametrize("flag", RAISED, ids=lambda flag: flag.name)
def test_every_doubt_is_shown_beside_lines(flag: Flag) -> None:
    summary = board(flag)
    (axis,) = find_axes([summary])
    for figure, panels in (
        (curve_figures(summary)["none"], slice(1, None, 2)),
        (axis_figures(axis)["none"], slice(2)),
    ):
        known, unknown = ({text.get_text() for text in axes.texts} for axes in figure.axes[panels])
        assert all(flag.mark in name for name in known if name.startswith("sep")), known
        assert ("clean" in known) == (flag is not WEAK_CONTROL)
        assert not any(flag.mark in name for name in unknown)
        assert f"{flag.mark}: {flag.note}" in " ".join(figure.get_supxlabel().split())


def test_every_doubt_is_shown_in_a_matrix() -> None:
    def by(surrogate: str, **more: Any) -> list[dict]:
        fields = {"method_settings": {"surrogate": surrogate}, "key": surrogate, **more}
        return [record("sep", seed=seed, **fields) for seed in range(3)]

    records = [record("clean", seed=seed, test=0.6) for seed in range(3)]
    records += [*by("rn18"), *by("vgg16", training={"lr": 0.01}, train=0.5)]
    (figure,) = axis_figures(find_axes(summarise(records))[0]).values()
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["60.0\n± 0.0", "30.0\n± 0.0", "30.0\n± 0.0†≈"]
    assert f"≈: {ADAPTED.note}" in " ".join(figure.get_supxlabel().split())


@pytest.mark.parametrize("flag", RAISED, ids=lambda flag: flag.name)
def test_every_doubt_is_shown_in_fields(flag: Flag) -> None:
    (figure, _) = heatmaps(board(flag)).values()
    texts = [text.get_text() for text in figure.axes[0].texts]
    said, columns = " ".join(figure.get_supxlabel().split()), len(DEFENSES) + 1
    if flag is WEAK_CONTROL:
        assert f"all numbers: {flag.note}" in said
        return
    assert all(flag.mark in text for text in texts[2 * columns :]), texts  # after clean and noise
    assert not any(flag.mark in text for text in texts[: 2 * columns])
    assert f"{flag.mark}: {flag.note}" in said


def test_sound_numbers_have_no_mark() -> None:
    for table in tables(None).values():
        cells = table.cells.to_numpy().flatten()
        assert not any(flag.mark in cell for flag in FLAGS for cell in cells)
        if "flags" in table.numbers:
            assert set(table.numbers["flags"]) == {""}


def test_a_doubt_about_the_one_above_is_told_with_the_claim() -> None:
    summary = board(WEAK_CONTROL)
    made = claims_table(summary, [Claim(("clean",), ("sep",), ("rn18", "unheard-of"))])
    shown = made.cells["difference"].tolist()
    assert [WEAK_CONTROL.mark in cell for cell in shown] == [True, True, False, False]
    assert set(made.numbers["gap_flags"]) == {WEAK_CONTROL.name, ""}


# Known controls.

KNOWN = tomllib.loads(CONTROLS.read_text(encoding="utf-8"))["control"]
MEASURED = [one for one in KNOWN if "records" in one]


def accuracies(one: dict[str, Any]) -> list[float]:
    """Of the committed victims that an entry names, in percent."""
    frame = load_results(RESULTS / one["records"])
    frame = frame[(frame["method"] == "clean") & (frame["holdout"] == 0)]
    for field, name in (("dataset", "dataset"), ("recipe_label", "recipe")):
        frame = frame[frame[field] == one[name]]
    for field in ("arch", "defense"):
        frame = frame[frame[f"{field}_label"] == one[field]]
    frame = frame[frame["seed"].isin(one["seeds"])]
    assert sorted(frame["seed"]) == one["seeds"]
    return (100 * frame["final_test_acc"]).tolist()


@pytest.mark.parametrize("one", MEASURED, ids=lambda one: "-".join(map(str, one.values()))[8:40])
def test_known_controls_are_those_of_the_committed_records(one: dict[str, Any]) -> None:
    assert one["accuracy"] == round(statistics.fmean(accuracies(one)), 1)
    assert one["margin"] == round(3 * 1.5 * math.sqrt(1 + 1 / len(one["seeds"])), 1)


def test_the_deviation_of_known_controls_is_what_margins_allow_for() -> None:
    several = [accuracies(one) for one in MEASURED if len(one["seeds"]) == 3]
    pooled = math.sqrt(statistics.fmean(map(statistics.variance, several)))
    assert len(several) >= 2
    assert 0.5 < pooled <= 1.5


def test_known_controls_without_records_are_those_of_the_papers() -> None:
    printed = {
        (one.place.dataset, table.recipe, one.place.arch, one.place.defense, one.published)
        for table in find_tables(",".join(paper_names()))
        for *_, one in table.cells()
        if one.place.method == "clean" and one.published is not None
    }
    published = [one for one in KNOWN if "records" not in one]
    for one in published:
        keys = ("dataset", "recipe", "arch", "defense", "accuracy")
        assert tuple(one[key] for key in keys) in printed
        assert one["margin"] == 1.5
    # APBench printed none.
    assert {one["recipe"] for one in published} == set(PUBLISHED) - {"apbench"}


def test_no_control_is_known_twice() -> None:
    names = ("dataset", "recipe", "version", "arch", "defense")
    keys = [tuple(str(one.get(name, "")) for name in names) for one in KNOWN]
    assert all(a != b for a, b in pairwise(sorted(keys)))

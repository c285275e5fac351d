"""Sets of defenses, the trainer who chooses among them, and the tables that tell of it."""

import io
import json
import math
import random
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

import run_bench
from bench import record as records_of
from bench.component import parse, parse_one
from bench.errors import UsageError
from bench.grid import Expansion, Grid
from bench.registry import DEFENSES
from bench.reports.defense_tables import (
    AT_MOST_NOTE,
    LEFT_OUT,
    ONE_SEED,
    ONE_SEED_NOTE,
    UNRANKED_NOTE,
    Board,
    defense_tables,
    defenses_table,
    ranking_table,
    recovery_table,
    told_tables,
)
from bench.reports.flags import LOW_TRAINING
from bench.reports.heatmap import heatmaps
from bench.reports.notes import SMALL_SCALE
from bench.reports.plots import save_figure
from bench.reports.report import write_report
from bench.reports.summary import Summary, summarise
from bench.reports.table import MISSING, Table
from bench.reports.tables import main_table
from bench.stack import build_defense
from bench.worst_case import AUTO, AUTO_FAST, SETS, expand, title_of, worst_case
from tests.invented import record

SPEED = Path(__file__).resolve().parent.parent / "results" / "speed"


def summary(records: list[dict]) -> Summary:
    (only,) = summarise(records)
    return only


def cell(method: str, defense: str, tests: list[float], **others) -> list[dict]:
    """A victim a seed; a number that is NaN stands for a failure."""
    return [
        record(
            method,
            seed=seed,
            test=test,
            defense=defense,
            defense_label=defense,
            error="ValueError: no" if math.isnan(test) else None,
            **others,
        )
        for seed, test in enumerate(tests)
    ]


def table(records: list[dict], name: str) -> Table:
    return next(t for t in defense_tables(summary(records)) if t.name == name)


def lines(made: Table) -> list[list[str]]:
    return made.cells.to_numpy().tolist()


def numbers(made: Table) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(made.csv()), keep_default_na=False, na_values=[""])


# Sets.


def test_names_of_sets_stand_for_their_members() -> None:
    assert expand("auto") == ",".join(AUTO)
    assert expand(" auto-fast , dpsgd-batch") == ",".join([*AUTO_FAST, "dpsgd-batch"])
    assert (
        expand("mixup:alpha=2,probability=0.5,at-linf") == "mixup:alpha=2,probability=0.5,at-linf"
    )
    assert expand("") == ""


def test_a_set_runs_as_its_members_do(monkeypatch) -> None:
    monkeypatch.setitem(SETS, "auto-fast", ("none", "mixup", "cutout"))
    made = Expansion(Grid(methods="noise", archs="rn18", defenses="auto-fast,mixup,dpsgd-batch"))
    labels = [label for label, _ in made.defenses]
    assert labels == ["none", "mixup", "cutout", "dpsgd-batch"]  # each once


def test_members_of_sets_come_without_settings_and_once() -> None:
    for members in SETS.values():
        assert members[0] == "none"
        assert len(set(members)) == len(members)
        assert not any(":" in member or "," in member for member in members)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("auto-fats", "auto-fast"), ("autofast", "auto-fast"), ("AUTO", "auto"), ("auot", "auto")],
)
def test_a_mistyped_set_is_told_which_was_meant(typed: str, meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        expand(f"mixup,{typed}")
    expected = f"unknown defense '{typed}'; did you mean {meant}, which stands for none,grayscale,"
    assert str(caught.value).startswith(expected)


def test_no_defense_is_taken_for_a_mistyped_set(monkeypatch) -> None:
    assert expand(",".join(DEFENSES.entries)) == ",".join(DEFENSES.entries)
    monkeypatch.setitem(DEFENSES.entries, "autos", DEFENSES.entries["mixup"])  # a plug-in's
    assert expand("autos") == "autos"
    assert expand("auto*,aut?") == "auto*,aut?"
    assert expand("mixup:alpha=1,x=auto") == "mixup:alpha=1,x=auto"  # a setting
    with pytest.raises(UsageError, match="unknown defense 'mixpu'; did you mean mixup"):
        parse(expand("mixpu"), DEFENSES)


@pytest.mark.parametrize(
    "typed",
    ["auto:steps=3", "auto-fast+mixup", "auto,steps=3", "mixup+auto", "jpeg:quality=9+auto"],
)
def test_sets_take_no_settings_and_are_not_joined(typed: str) -> None:
    with pytest.raises(UsageError, match="stands for several defenses"):
        expand(typed)


@pytest.mark.parametrize(
    "typed", ["early-stopping", "none, early-stopping", "jpeg+early-stopping", "early-stopping:k=1"]
)
def test_early_stopping_is_no_defense_but_a_reading(typed: str) -> None:
    with pytest.raises(UsageError, match="--holdout 500"):
        expand(typed)


def test_sets_are_listed_and_helped_without_torch(capsys) -> None:
    assert run_bench.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert ",".join(AUTO_FAST) in listed
    assert ",".join(AUTO) in listed
    assert run_bench.main(["--describe", "auto"]) == run_bench.USAGE
    assert "stands for several defenses" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_bench.main(["--help"])
    assert "auto or auto-fast" in " ".join(capsys.readouterr().out.split())
    code = "import sys, bench.worst_case; print('torch' in sys.modules)"
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_the_title_says_over_what() -> None:
    assert title_of(AUTO) == "worst case (auto)"
    assert title_of([*reversed(AUTO_FAST), "mixup"]) == "worst case (auto-fast and 1 more)"
    assert title_of(AUTO[1:]) == "worst of 13"
    assert title_of([*AUTO, "ueraser-lite"]) == "worst case (auto and 1 more)"


# The estimator.


def test_a_defense_is_chosen_on_the_other_seeds() -> None:
    # Means over the others, none and a: seed 0 .25 .35, seed 1 .35 .3, seed 2 .4 .25.
    found = worst_case({"none": {0: 0.5, 1: 0.3, 2: 0.2}, "a": {0: 0.2, 1: 0.3, 2: 0.4}})
    assert found is not None
    assert found.chosen == {0: "a", 1: "none", 2: "none"}
    assert found.scores == {0: 0.2, 1: 0.3, 2: 0.2}
    assert found.usual == ("none", 2)
    assert not found.flatters


def test_of_equals_the_plainer_is_chosen() -> None:
    # 0.1 + 0.2 and 0.3 differ in the last bit of a float.
    scores = {"none": {0: 0.3, 1: 0.3}, "a": {0: 0.1 + 0.2, 1: 0.1 + 0.2}}
    found = worst_case(scores)
    assert found is not None
    assert set(found.chosen.values()) == {"none"}
    turned = worst_case({"a": scores["a"], "none": scores["none"]})
    assert turned is not None
    assert set(turned.chosen.values()) == {"a"}
    # Chosen once each: the plainer is told.
    each = worst_case({"none": {0: 0.1, 1: 0.3}, "a": {0: 0.3, 1: 0.1}})
    assert each is not None
    assert each.usual == ("none", 1)


def test_one_seed_is_the_maximum_and_is_marked() -> None:
    found = worst_case({"none": {0: 0.3}, "a": {0: 0.5}, "b": {0: 0.4}})
    assert found is not None
    assert (found.chosen, found.scores, found.flatters) == ({0: "a"}, {0: 0.5}, True)


def test_two_common_seeds_keep_every_defense() -> None:
    found = worst_case({"none": dict.fromkeys(range(5), 0.3), "a": {1: 0.4, 4: 0.6}})
    assert found is not None
    assert found.scores == {1: 0.4, 4: 0.6}
    assert found.left_out == {}


def test_laggards_are_left_out_for_the_sake_of_seeds() -> None:
    full = {0: 0.3, 1: 0.3, 2: 0.3}
    found = worst_case({"none": full, "a": full, "b": {0: 0.9}, "c": {}})
    assert found is not None
    assert (found.compared, found.left_out) == (("none", "a"), {"b": 1, "c": 0})
    assert set(found.scores) == {0, 1, 2}


@pytest.mark.parametrize(
    ("many", "seeds", "more", "fewer"), [(7, 3, 18, 1), (12, 5, 1, 2), (2, 2, 30, 1), (2, 5, 9, 4)]
)
def test_more_defenses_on_fewer_seeds_spoil_nothing(
    many: int, seeds: int, more: int, fewer: int
) -> None:
    draws = random.Random(many)
    whole = {f"d{d}": {s: draws.random() for s in range(seeds)} for d in range(many)}
    partly = {f"e{e}": {s: draws.random() for s in range(fewer)} for e in range(more)}
    found = worst_case(whole | partly)
    alone = worst_case(whole)
    assert found is not None
    assert alone is not None
    assert (found.chosen, found.scores, found.highest) == (
        *(alone.chosen, alone.scores, alone.highest),
    )
    assert found.compared == tuple(whole)
    assert found.left_out == dict.fromkeys(partly, fewer)
    assert len(found.scores) == seeds


def test_the_seeds_are_those_of_the_first_that_has_any() -> None:
    # More seeds than the first has are of no use, and other seeds are none of those it needs.
    first, more, other = {0: 0.2, 1: 0.3}, {0: 0.3, 1: 0.4, 2: 0.9}, {1: 0.9, 2: 0.9, 3: 0.9}
    found = worst_case({"none": {}, "a": first, "b": more, "c": other})
    assert found is not None
    assert found.compared == ("a", "b")
    assert found.scores == {0: 0.3, 1: 0.4}
    assert found.left_out == {"none": 0, "c": 1}


def test_a_first_defense_of_one_seed_leaves_the_maximum() -> None:
    found = worst_case({"none": {1: 0.3}, "a": {0: 0.9, 1: 0.4, 2: 0.9}, "b": {0: 0.9}})
    assert found is not None
    assert (found.compared, found.scores, found.left_out) == (("none", "a"), {1: 0.4}, {"b": 0})
    assert found.flatters


def test_where_the_first_has_most_seeds_the_common_ones_count() -> None:
    found = worst_case(
        {"none": dict.fromkeys(range(5), 0.3), "a": {0: 0.4, 1: 0.4, 2: 0.2}, "b": {1: 0.1, 2: 0.1}}
    )
    assert found is not None
    assert (found.chosen, found.left_out) == ({1: "none", 2: "a"}, {})
    assert found.scores == {1: 0.3, 2: 0.2}
    assert found.highest == pytest.approx(0.3)  # none and a alike, over seeds 1 and 2


@pytest.mark.parametrize("seed", range(5))
def test_the_estimate_is_never_above_the_highest_mean(seed: int) -> None:
    draws = random.Random(seed)
    for _ in range(200):
        defenses, seeds = draws.randint(2, 6), draws.randint(1, 5)
        scores = {d: {s: draws.random() for s in range(seeds)} for d in range(defenses)}
        found = worst_case(scores)
        assert found is not None
        assert statistics.fmean(found.scores.values()) <= found.highest + 1e-12
        assert found.highest == max(statistics.fmean(by.values()) for by in scores.values())


def test_the_best_lies_between_the_estimate_and_the_highest_mean() -> None:
    draws, methods, noise = random.Random(5), 2000, 0.03
    truth = {"none": 0.40, "a": 0.38, "b": 0.42}
    low, high = [], []
    for _ in range(methods):
        found = worst_case(
            {d: {s: m + draws.gauss(0, noise) for s in range(2)} for d, m in truth.items()}
        )
        assert found is not None
        low.append(statistics.fmean(found.scores.values()) - 0.42)
        high.append(found.highest - 0.42)
    for values, sign in ((low, -1), (high, 1)):
        error = statistics.stdev(values) / math.sqrt(methods)
        assert sign * statistics.fmean(values) > 3 * error


def test_where_most_have_one_seed_all_stay() -> None:
    found = worst_case({"none": {0: 0.3, 1: 0.3}, "a": {0: 0.4}, "b": {0: 0.5}})
    assert found is not None
    assert (found.compared, found.flatters) == (("none", "a", "b"), True)


@pytest.mark.parametrize(
    "scores",
    [
        {},
        {"none": {0: 0.3}},
        {"none": {0: 0.3, 1: 0.2}, "a": {}},
        {"none": {0: 0.3}, "a": {1: 0.3}},
    ],
)
def test_without_two_defenses_on_one_seed_there_is_no_worst_case(scores: dict) -> None:
    assert worst_case(scores) is None


def test_the_maximum_flatters_and_the_estimate_does_not() -> None:
    """Equal defenses with independent noise: the truth is known."""
    draws, defenses, seeds, methods, noise = random.Random(3), 5, 3, 1500, 0.05
    crossed, highest = [], []
    for _ in range(methods):
        scores = {
            f"d{d}": {s: 0.4 + draws.gauss(0, noise) for s in range(seeds)} for d in range(defenses)
        }
        found = worst_case(scores)
        assert found is not None
        crossed.append(statistics.fmean(found.scores.values()))
        highest.append(max(statistics.fmean(by.values()) for by in scores.values()))

    def z(values: list[float], mean: float) -> float:
        return (statistics.fmean(values) - mean) / (statistics.stdev(values) / math.sqrt(methods))

    # The highest of five standard normal numbers is 1.16296 on average.
    flattery = 1.16296 * noise / math.sqrt(seeds)
    assert abs(z(crossed, 0.4)) < 3
    assert abs(z(highest, 0.4 + flattery)) < 3
    assert z(highest, 0.4) > 30


def test_what_is_really_best_is_found() -> None:
    draws = random.Random(4)
    means = {"none": 0.2, "a": 0.5, "b": 0.3}
    scores = {d: {s: m + draws.gauss(0, 0.02) for s in range(5)} for d, m in means.items()}
    found = worst_case(scores)
    assert found is not None
    assert found.usual == ("a", 5)
    assert found.scores == scores["a"]


# Tables.


def board() -> list[dict]:
    """Clean, ule and sep under three defenses and one that knows clean samples.

    Worked out by hand, in percent:

    - ule: none 10 20, cutout failed 40 (one seed), mixup 50 40; at-linf is not run.
      Cutout lacks a seed of none and is left out. Chosen: mixup twice, 50 40.
    - sep: none 30 30, cutout 35 36, mixup 20 60. Chosen on seed 1 for seed 0: mixup, 20; for
      seed 1 cutout (35 against 30 and 20), 36. Mean 28, sd 11.3.
    - clean: none 90 90, cutout 80 80, mixup 18 18: within 10 points of chance, and marked, as is
      all that is compared with it, since it is known to reach more.
    """
    nan = math.nan
    knowing = {"side_information": "clean-samples"}
    return [
        *cell("clean", "none", [0.9, 0.9]),
        *cell("clean", "cutout", [0.8, 0.8], side_information="none"),
        *cell("clean", "mixup", [0.18, 0.18], side_information="none"),
        *cell("clean", "at-linf", [0.7, 0.7], **knowing),
        *cell("ule", "none", [0.1, 0.2]),
        *cell("ule", "cutout", [nan, 0.4], side_information="none"),
        *cell("ule", "mixup", [0.5, 0.4], side_information="none"),
        *cell("sep", "none", [0.3, 0.3]),
        *cell("sep", "cutout", [0.35, 0.36], side_information="none", train=0.5),
        *cell("sep", "mixup", [0.2, 0.6], side_information="none"),
        *cell("sep", "at-linf", [0.69, 0.7], **knowing),
    ]


def test_accuracies_by_defense_and_the_worst_case() -> None:
    made = table(board(), "defenses")
    assert list(made.cells.columns) == [
        *("method", "none", "cutout", "mixup", "at-linf°", "worst of 3", "at most", "by")
    ]
    by_none, by_both = ("90.0 ± 0.0", "90.0", "none"), ("28.0 ± 11.3†§", "40.0§", "cutout 1/2")
    by_mixup = ("45.0 ± 7.1§⊂", "45.0§", "mixup")
    assert lines(made) == [
        ["clean", *("90.0 ± 0.0", "80.0 ± 0.0", "18.0 ± 0.0†§", "70.0 ± 0.0"), *by_none],
        [*("sep", "30.0 ± 0.0", "35.5 ± 0.7†", "40.0 ± 28.3§", "69.5 ± 0.7"), *by_both],
        ["ule", "15.0 ± 7.1", "40.0‡ n=1", "45.0 ± 7.1§", MISSING, *by_mixup],
    ]
    assert "all numbers: fewer than 3 victim seeds." in made.notes
    text = " ".join(made.text().split())
    assert "⊂: worst of 3 does without cutout (1 of 2) for want of seeds: ule." in text
    assert "on average at most the accuracy of the best" in text
    assert "over folds that share seeds" in text
    assert AT_MOST_NOTE in made.notes
    assert "is not in the worst case: at-linf: clean-samples." in text
    assert "ule on rn18 ×1/4 under cutout, seed 0: ValueError: no" in text
    assert f"†: {LOW_TRAINING.note}" in made.notes
    assert ONE_SEED_NOTE not in made.notes
    assert made.caption[-1] == SMALL_SCALE


def test_old_records_without_side_information_are_compared() -> None:
    knows = summary(board()).knows
    assert list(knows.values()) == ["none", "none", "none", "clean-samples"]
    # An older record beside a newer one of the same defense does not hide what it knows.
    mixed = [
        *cell("clean", "none", [0.9]),
        *cell("clean", "d-vae", [0.8]),
        *cell("sep", "d-vae", [0.8], side_information="public-model"),
    ]
    assert summary(mixed).knows[("d-vae", "d-vae")] == "public-model"
    assert not Board(summary(mixed)).has_worst
    (made, _) = defense_tables(summary(mixed))
    assert list(made.cells.columns) == ["method", "none", "d-vae°"]


def test_numbers_of_the_worst_case() -> None:
    found = numbers(table(board(), "defenses"))
    (sep,) = found.query("method == 'sep' and defense == 'worst of 3'").to_dict("records")
    assert (sep["n"], sep["test_acc_percent"], sep["by"], sep["by_seeds"]) == (2, 28, "cutout", 1)
    assert sep["test_acc_percent_sd"] == pytest.approx(8 * math.sqrt(2), abs=1e-4)
    assert (sep["compared"], sep["at_most_percent"]) == (3, 40)
    (ule,) = found.query("method == 'ule' and defense == 'worst of 3'").to_dict("records")
    assert (ule["left_out"], ule["failed"]) == ("cutout", 0)
    (failed,) = found.query("method == 'ule' and defense == 'cutout'").to_dict("records")
    assert (failed["n"], failed["failed"], failed["test_acc_percent"]) == (1, 1, 40)
    (knowing,) = found.query("method == 'sep' and defense == 'at-linf'").to_dict("records")
    assert knowing["side_information"] == "clean-samples"


def test_recovery_is_the_share_of_the_same_defenses_ceiling() -> None:
    made = table(board(), "recovery")
    # sep: none 20/80; cutout 25/70 and 26/70; no score under mixup; at-linf 59/60 and 60/60.
    # The worst case was once by mixup, whose ceiling is near chance. ule: cutout 30/70.
    assert lines(made) == [
        ["sep", "25.0 ± 0.0", "36.4 ± 1.0†", MISSING, "99.2 ± 1.2", MISSING, "cutout 1/2"],
        ["ule", "6.2 ± 8.8", "42.9‡ n=1", MISSING, MISSING, MISSING, "mixup"],
    ]


def test_the_worst_case_is_held_against_the_chosen_ceiling() -> None:
    records = [
        *cell("clean", "none", [0.9, 0.7]),
        *cell("clean", "cutout", [0.6, 0.5]),
        *cell("sep", "none", [0.2, 0.4]),
        *cell("sep", "cutout", [0.3, 0.3]),
    ]
    # For seed 0 none is chosen (0.4 on seed 1): 0.1/0.8; for seed 1 cutout: 0.2/0.4.
    (line,) = lines(table(records, "recovery"))
    assert line[-2:] == ["31.2 ± 26.5", "none 1/2"]
    assert "chosen by accuracy" in table(records, "recovery").notes[0]
    (row,) = numbers(table(records, "recovery")).query("defense == 'worst of 2'").to_dict("records")
    assert row["recovery_percent"] == 31.25


def test_a_ceiling_within_ten_points_of_chance_gives_no_score() -> None:
    def shown(ceiling: float) -> str:
        records = [
            *cell("clean", "none", [0.9]),
            *cell("clean", "mixup", [ceiling]),
            *cell("sep", "none", [0.3]),
            *cell("sep", "mixup", [0.2]),
        ]
        return lines(table(records, "recovery"))[0][2]

    assert shown(0.2) == MISSING
    assert shown(0.201) == "99.0§"


def ranked() -> list[dict]:
    """Plain: ule 10, sep 20, cuda 20, ar 40. Worst: cuda 30, sep 50, ule 60, ar failed."""
    return [
        *cell("clean", "none", [0.9, 0.9]),
        *cell("clean", "mixup", [0.8, 0.8]),
        *cell("sham", "none", [0.05, 0.05]),
        *cell("ule", "none", [0.1, 0.1]),
        *cell("ule", "mixup", [0.6, 0.6]),
        *cell("sep", "none", [0.2, 0.2]),
        *cell("sep", "mixup", [0.5, 0.5]),
        *cell("cuda", "none", [0.3, 0.1]),
        *cell("cuda", "mixup", [0.3, 0.3]),
        *cell("ar", "none", [0.4, 0.4]),
        *cell("ar", "mixup", [math.nan, math.nan]),
    ]


def test_ranks_by_plain_training_and_by_the_worst_case() -> None:
    made = table(ranked(), "ranking")
    assert list(made.cells.columns) == [
        *("method", "plain", "rank", "worst of 2", "at most", "rank", "change", "by")
    ]
    shown = [[line[0], line[2], line[5], line[6]] for line in lines(made)]
    assert shown == [
        ["clean", "", "", ""],
        ["sham", "", "", ""],
        ["cuda", "2 (1–3)", "1 (1–1)", "+1"],  # 30 and 10: alone it may be first or last
        ["sep", "2 (2–3)", "2 (2–2)", "0"],
        ["ule", "1 (1–1)", "3 (3–3)", "−2"],
        ["ar", MISSING, MISSING, ""],  # no worst case, and no one's place
    ]
    found = numbers(made).set_index("method")
    assert found.change.dropna().to_dict() == {"cuda": 1, "sep": 0, "ule": -2}
    highest = {"clean": 90, "cuda": 30, "sep": 50, "ule": 60}
    assert found.at_most_percent.dropna().to_dict() == highest
    assert any("ar on rn18 ×1/4 under mixup, seed 1" in note for note in made.notes)
    assert "Near values may change places: ranks are of means." in " ".join(made.notes)
    assert "another set of the same method may differ by more than ± says" in " ".join(made.notes)
    assert UNRANKED_NOTE not in made.notes


def ranks(records: list[dict]) -> dict[str, tuple[str, ...]]:
    """By method: plain, its rank, worst case, its rank; the intervals are left out."""
    found = {line[0]: line[1:4] + line[5:6] for line in lines(table(records, "ranking"))}
    return {name: tuple(cell.partition(" (")[0] for cell in line) for name, line in found.items()}


def three(method: str, *tests: list[float]) -> list[dict]:
    """A method under none, mixup and cutout, as far as there are numbers."""
    pairs = zip(("none", "mixup", "cutout"), tests, strict=False)
    return [one for defense, there in pairs for one in cell(method, defense, there)]


def test_only_worst_cases_of_the_same_kind_are_ranked() -> None:
    records = [
        *three("clean", [0.9, 0.9], [0.9, 0.9], [0.9, 0.9]),
        *three("ule", [0.1, 0.1], [0.5, 0.5], [0.2, 0.2]),
        *three("sep", [0.2, 0.2], [0.4, 0.4], [0.2, 0.2]),
        *three("ar", [0.05, 0.05], [0.3, 0.3], [0.9]),  # lacks a seed under cutout
        *three("ops", [0.01], [0.02], [0.03]),  # one seed
        *three("hypo", [0.01, 0.01]),
    ]
    found = ranks(records)
    assert found["ule"] == ("10.0 ± 0.0", "1", "50.0 ± 0.0", "2")
    assert found["sep"] == ("20.0 ± 0.0", "2", "40.0 ± 0.0", "1")
    assert found["ar"] == ("5.0 ± 0.0", "–‖", "30.0 ± 0.0⊂", "–‖")
    assert found["ops"] == ("1.0 n=1", "–‖", "3.0↑ n=1", "–‖")
    assert found["hypo"] == ("1.0 ± 0.0", MISSING, MISSING, MISSING)
    assert found["clean"][1::2] == ("", "")
    made = table(records, "ranking")
    assert UNRANKED_NOTE in made.notes
    assert any(f"{LEFT_OUT}: worst of 3 does without cutout (1 of 2)" in n for n in made.notes)
    assert r"$\Vert$" in made.latex()
    saved = numbers(made).set_index("method")
    assert saved.plain_rank.dropna().to_dict() == {"ule": 1, "sep": 2}
    assert saved.worst_rank.dropna().to_dict() == {"ule": 2, "sep": 1}
    assert saved.left_out["ar"] == "cutout"


def test_of_equally_frequent_worst_cases_the_larger_are_ranked() -> None:
    records = [
        *three("ule", [0.1, 0.1], [0.5, 0.5], [0.2, 0.2]),
        *three("sep", [0.2, 0.2], [0.4, 0.4]),
    ]
    found = ranks(records)
    assert {name: cells[1] for name, cells in found.items()} == {"ule": "1", "sep": "–‖"}
    # Two with fewer defenses outnumber one with more.
    found = ranks([*records, *three("ar", [0.1, 0.1], [0.3, 0.3])])
    assert {name: cells[1] for name, cells in found.items()} == {"ar": "1", "sep": "2", "ule": "–‖"}
    # Two of one seed outnumber one of two, and stand beside none of those.
    single = [*three("ule", [0.1], [0.5]), *three("sep", [0.2], [0.4])]
    found = ranks([*single, *three("ar", [0.0, 0.0], [0.1, 0.1])])
    assert {name: cells[3] for name, cells in found.items()} == {"sep": "1", "ule": "2", "ar": "–‖"}


def test_plain_is_over_the_seeds_of_the_worst_case() -> None:
    records = [
        *three("ule", [0.1, 0.2, 0.9], [0.4, 0.4]),
        *three("sep", [0.3, 0.3, 0.0], [0.2, 0.2]),
    ]
    found = ranks(records)
    # Over all three seeds ule would have 40 and sep 20, and their ranks would be the other way.
    assert found["ule"] == ("15.0 ± 7.1 n=2", "1", "40.0 ± 0.0 n=2", "2")
    assert found["sep"] == ("30.0 ± 0.0 n=2", "2", "30.0 ± 0.0 n=2", "1")
    saved = numbers(table(records, "ranking")).set_index("method")
    assert saved.plain_percent.to_dict() == {"ule": 15, "sep": 30}
    assert saved.plain_n.to_dict() == {"ule": 2, "sep": 2}


def test_architectures_stand_in_a_column_and_rank_apart() -> None:
    both = [one for arch in ("rn18", "vgg16") for one in cell("sep", "none", [0.2], arch=arch)]
    both += [one for arch in ("rn18", "vgg16") for one in cell("sep", "mixup", [0.3], arch=arch)]
    made = table(both, "ranking")
    assert [line[:2] for line in lines(made)] == [["rn18 ×1/4", "sep"], ["vgg16 ×1/4", "sep"]]
    assert [line[3] for line in lines(made)] == ["1", "1"]


def test_one_seed_is_flagged_everywhere() -> None:
    one = [r for r in ranked() if r["seed"] == 0]
    for made in (defenses_table(summary(one)), ranking_table(summary(one))):
        assert ONE_SEED_NOTE in made.notes
        assert any(ONE_SEED in c for line in lines(made) for c in line)
        assert "highest accuracy of the defenses" in " ".join(made.notes)
    assert ONE_SEED in recovery_table(summary(one)).text()


def test_one_seed_beside_several_hides_no_explanation() -> None:
    records = [*three("ule", [0.1], [0.5]), *three("sep", [0.2, 0.2], [0.4, 0.4])]
    notes = " ".join(table(records, "defenses").notes)
    assert "on the other seeds, reported on this seed" in notes
    assert ONE_SEED_NOTE in notes


def test_what_all_methods_lack_is_told_once() -> None:
    lacking = [[0.1, 0.1], [0.5, 0.5], [0.2]]
    records = [*three("ule", *lacking), *three("sep", *lacking)]
    told = [note for note in table(records, "defenses").notes if note.startswith(LEFT_OUT)]
    # The title counts what there was to choose from.
    assert told == ["⊂: worst of 2 does without cutout (1 of 2) for want of seeds: all methods."]
    ranking = table(records, "ranking")
    assert "chooses among 2 defenses" in " ".join(ranking.caption)
    assert "worst of 2" in list(ranking.cells.columns)
    assert [cells[1] for cells in ranks(records).values()] == ["1", "1"]  # both lack the same


def test_settings_facts_and_departures_of_defenses_are_told() -> None:
    blur = {"defense_settings": {"kernel": 5, "sigma": 1.1}}
    attack = {"defense_settings": {"epsilon": 8 / 255, "steps": 10}}
    private = {
        "defense_settings": {"clip": 1.0, "votes": 10},
        "defense_deviations": {"votes": [10, 100]},
        "defense_notes": ["another architecture", "alters prediction"],
    }
    facts = [{"defense_facts": {"privacy_epsilon": e, "privacy_delta": 1e-5}} for e in (3.3567, 4)]
    records = [
        *cell("sep", "none", [0.2], defense_notes=[], defense_facts={}),
        *cell("sep", "gaussian-blur", [0.3], **blur),
        *cell("sep", "at-linf", [0.3], **attack),
        *cell("sep", "dpsgd-sample", [0.3], **private, **facts[0]),
        *cell("clean-part", "dpsgd-sample", [0.3], **private, **facts[1]),
    ]
    told = [
        "at-linf: epsilon 8/255, steps 10",
        "dpsgd-sample: clip 1, votes 10 (paper 100); privacy_epsilon 3.357 or 4, "
        "privacy_delta 1e-05; another architecture, alters prediction",
        "gaussian-blur: kernel 5, sigma 1.1",
    ]
    for made in (table(records, "defenses"), main_table(summary(records))):
        assert list(made.notes[-3:]) == told
        assert not any(note.startswith("none:") for note in made.notes)
    alone = main_table(summary(cell("sep", "gaussian-blur", [0.3], **blur)))
    assert alone.notes[-1] == told[-1]


def test_one_defense_has_no_such_tables() -> None:
    assert defense_tables(summary(cell("sep", "none", [0.2]))) == []
    assert told_tables(summary(cell("sep", "mixup", [0.2]))) == []


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_records_does_not_matter(seed: int) -> None:
    shuffled = board()
    random.Random(seed).shuffle(shuffled)
    before, after = (defense_tables(summary(records)) for records in (board(), shuffled))
    assert [t.text() + t.csv() for t in after] == [t.text() + t.csv() for t in before]


def test_all_formats_are_set() -> None:
    for made in defense_tables(summary(board())):
        assert made.latex().count(r"\\") == len(made.cells) + 1
        assert "⊂" in made.markdown() or made.name == "recovery"
        assert r"$\subset$" in made.latex() or made.name == "recovery"


# The picture.


def test_heatmaps_show_every_number_once(tmp_path: Path) -> None:
    (drawn,) = heatmaps(summary(board())).values()
    texts = [text.get_text() for text in drawn.axes[0].texts]
    assert texts == [
        *("90.0", "80.0", "18.0†§", "70.0", "90.0"),
        *("30.0", "35.5†", "40.0§", "69.5", "28.0†§"),
        *("15.0", "40.0‡", "45.0§", MISSING, "45.0§⊂"),
    ]
    said = caption(drawn)
    assert "all numbers: fewer than 3 victim seeds." in said
    assert "§: the clean control is below" in said
    assert "⊂: worst of 3 does without cutout (1 of 2) for want of seeds: ule." in said
    assert "chosen on the other seeds" in said
    heads = [tick.get_text() for tick in drawn.axes[0].get_xticklabels()]
    assert heads == ["none", "cutout", "mixup", "at-linf°", "worst case"]
    # What knows more, and the worst case, are set apart.
    places = drawn.axes[0].get_xticks()
    assert [round(b - a, 3) for a, b in pairwise(places)] == [1, 1, 1.3, 1.3]
    assert len(drawn.axes[0].patches) == 14  # the cell that was not run stays white
    found = []
    for name in ("a", "b"):
        (again,) = heatmaps(summary(board())).values()
        found.append([file.read_bytes() for file in save_figure(again, tmp_path / name)])
    assert found[0] == found[1]


def caption(figure) -> str:
    return " ".join(figure.get_supxlabel().split())


def test_the_picture_explains_one_seed_and_the_estimator() -> None:
    several = three("ule", [0.1, 0.1], [0.5, 0.5], [0.2, 0.2])
    one = three("sep", [0.2], [0.4], [0.1])
    (mixed,) = heatmaps(summary([*several, *one])).values()
    assert "chosen on the other seeds" in caption(mixed)
    assert ONE_SEED_NOTE in caption(mixed)
    (single,) = heatmaps(summary([*one, *three("ar", [0.2], [0.4], [0.1])])).values()
    assert "chosen on the other seeds" not in caption(single)
    assert "the highest of these defenses" in caption(single)
    assert ONE_SEED_NOTE in caption(single)


def test_digits_can_be_read_on_their_ground() -> None:
    # Every share of the scale, in steps of a hundredth.
    even = [cell(f"m{m}", f"d{d}", [(25 * m + d) / 100]) for m in range(4) for d in range(25)]
    (drawn,) = heatmaps(summary([one for there in even for one in there])).values()
    axes = drawn.axes[0]
    inks = [text.get_color() for text in axes.texts]
    for ink, patch in zip(inks, axes.patches, strict=True):
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in patch.get_facecolor()[:3]
        ]
        ground = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        own = 1.0 if ink == "white" else 0.0
        light, dark = max(own, ground), min(own, ground)
        assert (light + 0.05) / (dark + 0.05) > 4.3  # web pages are held to 4.5


def test_small_grids_and_failures_have_no_heatmap() -> None:
    assert heatmaps(summary(ranked())) == {}  # two defenses
    few = [r for r in board() if r["method"] != "ule"]
    assert heatmaps(summary(few)) == {}  # one method
    nan = [math.nan]
    failed = [one for d in ("none", "a", "b") for m in ("x", "y") for one in cell(m, d, nan)]
    assert heatmaps(summary(failed)) == {}


# The whole report.


def test_a_report_has_tables_picture_and_text(tmp_path: Path) -> None:
    for one in json.loads(json.dumps(board())):
        records_of.write(tmp_path, "cell", one)
    report = write_report(tmp_path)
    names = {file.name.partition("2e36ce-")[2] or file.name for file in report.files}
    for kind in ("defenses.csv", "recovery.tex", "ranking.md", "heatmap-rn18-1-4.png"):
        assert any(name.endswith(kind) for name in names), kind
    assert "percent by defense on rn18" in report.text
    assert "a trainer who chooses among 3 defenses" in " ".join(report.text.split())
    assert all(f.exists() for f in report.files)


@pytest.mark.parametrize("file", sorted(SPEED.glob("*-defenses.json")), ids=lambda file: file.stem)
def test_the_fast_set_was_measured_at_most_six_times_as_dear(file: Path) -> None:
    """Steps, and what is done to the images before the first one."""
    told = json.loads(file.read_text())
    measured, machine = told["defenses"]["defenses"], told["machine"]["name"]
    plain = victims(machine, "core_seconds")["none"]
    total = 1.0
    for name in set(AUTO_FAST) - {"none"}:
        steps = measured[name]["cost"][0]
        if (file.stem, name) == ("epyc-2-cores-defenses", "grayscale"):
            # Disturbed by other work, says the page beside it; whole victims were not.
            steps = victims(machine, "core_seconds")[name] / plain
        total += steps + measured[name]["prepare_seconds"] / plain
    assert 5 < total <= 6


def victims(machine: str, what: str) -> dict[str, float]:
    """By defense, the median of what ResNet-18 victims took on machines of one kind."""
    told = json.loads((SPEED / "victims.json").read_text())["victims"]
    there = [one for one in told if (one["machine"], one["arch"]) == (machine, "rn18")]
    # Of two precisions that of the recipe, which is bf16 where a machine computes in it.
    there.sort(key=lambda one: one["precision"] == "bf16")
    return {one["defense"]: one[what] for one in there}


def test_of_the_fast_set_none_is_dear_on_a_gpu_that_small_networks_do_not_fill() -> None:
    """All members but the projection, which was not run there.

    Its fit, on the processor, would take as long as several such victims.
    """
    medians = victims("NVIDIA H200", "seconds")
    assert set(AUTO_FAST) - set(medians) == {"orthogonal-projection"}
    assert sum(medians.get(name, 0.0) for name in AUTO_FAST) <= 5 * medians["none"]


def test_the_fast_set_was_measured() -> None:
    assert len(list(SPEED.glob("*-defenses.json"))) >= 2


def test_members_of_the_sets_know_nothing_and_exist() -> None:
    for name in {*AUTO, *AUTO_FAST}:
        assert build_defense(parse_one(name, DEFENSES)).side_information == "none"

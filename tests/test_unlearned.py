"""Victims that have not learned the shortcut: when it is said, what lifts it, what rests on it."""

import itertools
import random
from collections.abc import Iterable
from typing import Any

import pandas as pd
import pytest

import run_bench
from bench import record as records_of
from bench.reports.defense_tables import (
    BOUND_NOTE,
    UNLEARNED_NOTE,
    defenses_table,
    ranking_table,
)
from bench.reports.flags import GRAVE, LINEAR, UNLEARNED, flags, unlearned
from bench.reports.heatmap import heatmaps
from bench.reports.premises import premises_table
from bench.reports.ranks import Rank, ranks
from bench.reports.summary import Summary, summarise
from bench.reports.tables import SEPARABLE_NOTE, all_tables, details_table
from tests.invented import AUDIT, record


def victim(method: str = "sep", *, followed: Any = 0.04, **more: Any) -> dict[str, Any]:
    """A victim that follows so many imprinted shortcuts, at the control's train accuracy."""
    shortcut = {"own_acc": 0.6, "next_acc": 0.6, "next_followed": followed}
    more = {"train": 0.63, "shortcut": shortcut, **more}
    if method == "clean":
        more["shortcut"] = None
    return record(method, **more)


def marked(*records: dict[str, Any]) -> set[str]:
    """Methods of which a number is marked, in a folder that holds these."""
    return {
        row.method
        for summary in summarise(records)
        for (row, column), group in summary.groups.items()
        if UNLEARNED in flags(group, summary.control(row, column))
    }


CLEAN = victim("clean", test=0.6)
NOISE = victim("noise", test=0.58, followed=0.03)


@pytest.mark.parametrize(
    ("more", "open_"),
    [
        ({}, True),
        ({"train": 0.68}, True),  # 5 points above the control's
        ({"train": 0.681}, False),
        ({"train": 0.4}, True),  # it cannot have learned more than the control
        ({"followed": 0.05}, True),  # 2 points above noise
        ({"followed": 0.051}, False),
        ({"shortcut": None}, False),  # not measured
        ({"followed": None}, False),
        ({"method": "noise"}, False),
        ({"method": "sham"}, False),
        ({"method": "clean-part"}, False),
    ],
)
def test_a_shortcut_is_not_learned_where_neither_train_accuracy_nor_following_shows_it(
    more: dict[str, Any], open_: bool
) -> None:
    assert marked(CLEAN, NOISE, victim(**more)) == ({"sep"} if open_ else set())


def test_who_fits_the_release_has_learned_it_whatever_is_followed() -> None:
    fitting = victim("clean", test=0.6, train=0.97)
    assert marked(fitting, NOISE, victim(train=0.95)) == set()
    assert marked(fitting, NOISE, victim(train=0.949)) == {"sep"}


def test_without_a_control_under_the_same_defense_nothing_is_said() -> None:
    other = {"defense": "cutout", "defense_label": "cutout"}
    assert marked(CLEAN, NOISE, victim(**other)) == set()
    assert marked(CLEAN, NOISE, victim(**other), victim("clean", train=0.6, **other)) == {"sep"}


@pytest.mark.parametrize(("followed", "open_"), [(0.068, True), (0.0745, False)])
def test_without_noise_victims_errors_of_clean_ones_are_what_counts(
    followed: float, open_: bool
) -> None:
    """Clean ones that reach 56.8 % err towards each of nine classes in 4.8 %; with 2 more, 6.8.

    Of the README's command, VGG-16 under SEP followed 7.45 % and lost 21 points: it had learned.
    """
    clean = victim("clean", test=0.568, train=0.573)
    elsewhere = victim("noise", arch="vgg16", followed=0.3)
    protected = victim(test=0.359, train=0.592, followed=followed)
    assert marked(clean, elsewhere, protected) == ({"sep"} if open_ else set())


def test_one_of_several_victims_is_enough_for_a_doubt_and_it_is_not_grave() -> None:
    learned = [victim(seed=seed, train=0.9, followed=0.8) for seed in (1, 2)]
    assert marked(CLEAN, NOISE, *learned) == set()
    assert marked(CLEAN, NOISE, *learned, victim(seed=0)) == {"sep"}
    assert UNLEARNED not in GRAVE


def longer(epochs: int, test: float, **more: Any) -> dict[str, Any]:
    """The same cell trained for other epochs (10 is usual), fitted too little, too."""
    settings = {"epochs": epochs, "train_images": 5000, "curve_images": 2000}
    label = f"quick:epochs={epochs}"
    made = victim(test=test, recipe_settings=settings, recipe_label=label, key=label)
    return made | {"crafting_recipe": "quick"} | more


@pytest.mark.parametrize(
    ("runs", "open_"),
    [
        ([longer(20, 0.27)], False),  # 3 points below 30 %
        ([longer(20, 0.269)], True),
        ([longer(20, 0.5)], False),
        ([longer(19, 0.3)], True),  # not twice
        ([longer(40, 0.3)], False),
        ([longer(20, 0.3), longer(40, 0.2)], True),  # the longest counts
        ([longer(20, 0.2), longer(40, 0.3)], False),
        ([longer(20, 0.3, crafted_key="another")], True),
        ([longer(20, 0.3, seed=1)], True),
        ([longer(20, 0.3, precision="fp32")], True),
        ([longer(20, 0.3, defense="cutout", defense_label="cutout")], True),
        ([longer(20, 0.3, recipe="standard")], True),
        ([longer(20, 0.3, training={"epochs": 10})], True),  # the defense keeps to its own
        ([longer(20, 0.3, status="failed", final_test_acc=None)], True),
    ],
)
def test_a_run_of_twice_the_epochs_that_is_not_lower_lifts_it(
    runs: list[dict[str, Any]], open_: bool
) -> None:
    usual = victim(test=0.3)
    assert (usual["key"] in unlearned([CLEAN, NOISE, usual, *runs])) is open_


def test_longer_runs_have_a_table_of_their_own() -> None:
    anew = longer(20, 0.3, crafted_key="anew", key="anew") | {"crafting_recipe": ""}
    found = summarise([CLEAN, NOISE, victim(), longer(20, 0.4), anew])
    assert [len(summary.records) for summary in found] == [3, 1, 1]
    assert len({summary.context.slug for summary in found}) == 3
    told = [table.caption[1] for summary in found[1:] for table in all_tables(summary)[:1]]
    assert ["sets of recipe quick" in text for text in told] == [False, True]


# What rests on it.


def cells(method: str, defense: str, tests: Iterable[float], **more: Any) -> list[dict[str, Any]]:
    fields: dict[str, Any] = {"defense": defense, "defense_label": defense}
    return [victim(method, seed=s, test=t, **fields, **more) for s, t in enumerate(tests)]


LEARNED: dict[str, Any] = {"train": 0.97, "followed": 0.8}


def board() -> Summary:
    """Plain sep is learned, plain ar is not; under mixup ule is not learned, and is higher."""
    (summary,) = summarise(
        [
            *cells("clean", "none", [0.6, 0.61, 0.6]),
            *cells("clean", "mixup", [0.6, 0.6, 0.6]),
            *cells("clean", "cutout", [0.6, 0.6, 0.6]),
            *cells("sep", "none", [0.1, 0.11, 0.12], **LEARNED),
            *cells("sep", "mixup", [0.3, 0.31, 0.32], **LEARNED),
            *cells("sep", "cutout", [0.2, 0.2, 0.2], **LEARNED),
            *cells("ule", "none", [0.2, 0.21, 0.22], **LEARNED),
            *cells("ule", "mixup", [0.5, 0.51, 0.52]),
            *cells("ule", "cutout", [0.2, 0.2, 0.2], **LEARNED),
            *cells("ar", "none", [0.05, 0.05, 0.05]),
            *cells("ar", "mixup", [0.4, 0.4, 0.4], **LEARNED),
            *cells("ar", "cutout", [0.2, 0.2, 0.2], **LEARNED),
        ]
    )
    return summary


def test_a_method_whose_plain_victims_have_not_learned_has_no_rank_and_no_worst_case() -> None:
    made = ranking_table(board())
    lines = {line[0]: line[1:] for line in made.cells.to_numpy().tolist()}
    assert lines["ar"] == ["5.0 ± 0.0¬", "–¬", "–¬", "–¬", "–¬", "", ""]
    assert [lines[name][1] for name in ("sep", "ule")] == ["1 (1–1)", "2 (2–2)"]
    assert UNLEARNED_NOTE in made.notes
    found = next(one for one in made.numbers.to_dict("records") if one["method"] == "ar")
    unknown = ("plain_rank", "worst_rank", "worst_rank_low", "change", "worst_percent")
    assert all(pd.isna(found[name]) for name in unknown)
    assert (found["plain_flags"], found["worst_flags"]) == (UNLEARNED.name, UNLEARNED.name)


def test_a_worst_case_that_rests_on_unlearned_victims_is_an_upper_bound() -> None:
    summary = board()
    for made in (ranking_table(summary), defenses_table(summary)):
        lines = made.cells.set_index("method")["worst of 3"].to_dict()
        assert lines["ule"] == "≤ 51.0 ± 1.0¬"
        assert lines["sep"] == "31.0 ± 1.0"
        assert BOUND_NOTE in made.notes
        assert r"$\leq$" in made.latex()
    (figure,) = heatmaps(summary).values()
    assert "≤51.0¬" in [text.get_text() for text in figure.axes[0].texts]
    assert BOUND_NOTE in " ".join(figure.get_supxlabel().split())


# Ranks.


def test_ranks_that_no_draw_changes_have_narrow_intervals() -> None:
    far = {"a": [0.1, 0.11, 0.12], "b": [0.3, 0.31], "c": [0.3, 0.31]}
    assert ranks(far)["a"] == Rank(1, 1, 1)
    assert str(ranks(far)["a"]) == "1 (1–1)"
    assert ranks(far)["b"].place == ranks(far)["c"].place == 2  # equals share a place
    assert ranks({}) == {}


def test_one_seed_gives_no_interval() -> None:
    found = ranks({"a": [0.2], "b": [0.1, 0.3, 0.4]})
    assert found == {"a": Rank(1), "b": Rank(2)}
    assert str(found["a"]) == "1"


def test_intervals_are_those_of_all_possible_draws() -> None:
    scores = {"a": [0.10, 0.30, 0.32], "b": [0.15, 0.25, 0.30], "c": [0.28, 0.29, 0.5]}
    drawn: dict[str, list[int]] = {name: [] for name in scores}
    for draw in itertools.product(*(itertools.product(v, repeat=3) for v in scores.values())):
        means = dict(zip(scores, map(sum, draw), strict=True))
        for name, own in means.items():
            drawn[name].append(1 + sum(other < own - 1e-9 for other in means.values()))
    for name, rank in ranks(scores).items():
        assert rank.low is not None
        assert rank.high is not None
        every = drawn[name]
        below, above = (sum(test) / len(every) for test in _beyond(every, rank.low, rank.high))
        inner = _beyond(every, rank.low + 1, rank.high - 1)
        # A thousand draws know a share of 2.5 % to half a percent; three times that is allowed.
        assert max(below, above) < 0.04
        assert min(sum(test) / len(every) for test in inner) > 0.01


def _beyond(places: list[int], low: int, high: int) -> tuple[list[bool], list[bool]]:
    return [place < low for place in places], [place > high for place in places]


def test_intervals_hold_the_rank_of_the_truth_more_often_than_not() -> None:
    draws, held = random.Random(1), 0
    for _ in range(40):
        scores = {f"m{m}": [m + draws.gauss(0, 1) for _ in range(5)] for m in range(4)}
        rank = ranks(scores)["m2"]
        assert rank.low is not None
        assert rank.high is not None
        held += rank.low <= 3 <= rank.high
    assert held >= 34


def test_ranks_are_the_same_whenever_they_are_made() -> None:
    scores = {name: [random.Random(name).random() for _ in range(3)] for name in "abcdef"}
    assert ranks(scores) == ranks(scores)


# Told.


def test_separable_is_told_as_one_of_all_classes_and_promises_nothing() -> None:
    assert "one of all protected classes" in LINEAR.note
    assert "one of all protected classes" in SEPARABLE_NOTE
    assert "Whether a network learns it is another question" in LINEAR.note


def test_the_peak_is_told_with_its_epoch() -> None:
    early, late = (
        [{"epoch": e, "lr": 0.1, "train_loss": 1.0, "train_acc": 0.5, "test_acc": t} for e, t in of]
        for of in ([(1, 0.4), (2, 0.4), (3, 0.1)], [(1, 0.2), (2, 0.1), (3, 0.3)])
    )
    records = [victim(seed=0, curve=early), victim(seed=1, curve=late), victim("ule", curve=early)]
    made = details_table(summarise(records)[0])
    assert made.cells.set_index("method")["at epoch"].to_dict() == {"sep": "1–3", "ule": "1"}
    assert made.numbers.set_index("method")["peak_epoch"].to_dict() == {"sep": 2, "ule": 1}


def test_premises_stand_beside_what_is_wanted_of_them() -> None:
    told = {"checkpoint_cosine": 0.41, "checkpoint_acc_min": 0.3, "checkpoint_acc_max": 0.68}
    records = [
        CLEAN,
        NOISE,
        victim("sep", audit=AUDIT | told),
        victim("ule", audit=AUDIT | {"rounds": 11}, **LEARNED),
        victim("ar", audit=AUDIT, defense="cutout", defense_label="cutout"),
    ]
    made = premises_table(summarise(records)[0])
    assert made.cells.to_numpy().tolist() == [
        ["clean", "rn18 ×1/4", "63.0", "60.0", "–", "–", "–"],
        ["sep", "rn18 ×1/4", "63.0¬", "30.0¬", "–", "0.41", "30–68"],
        ["ule", "rn18 ×1/4", "97.0", "30.0", "11.0", "–", "–"],
    ]
    heads = list(made.cells.columns)
    assert heads[2] == "train % (≥ 95)"
    assert "≤ 0.25" in heads[5]
    assert made.numbers.set_index("method")["checkpoint_cosine"].dropna().to_dict() == {"sep": 0.41}


def test_premises_have_no_columns_of_what_nobody_measured() -> None:
    (summary,) = summarise([CLEAN, victim(audit=AUDIT)])
    assert premises_table(summary).cells.shape == (2, 4)
    (controls,) = summarise([CLEAN, NOISE])
    assert len(premises_table(controls).cells) == 0
    assert "premises" not in [table.name for table in all_tables(controls)]


def test_of_least_accuracies_in_an_audit_the_least_set_counts() -> None:
    audits = [AUDIT | {"checkpoint_acc_min": a, "max_linf": m} for a, m in ((0.2, 0.1), (0.4, 0.2))]
    records = [
        victim(seed=seed, audit=audit, crafted_key=f"{seed}") for seed, audit in enumerate(audits)
    ]
    (table,) = (t for t in all_tables(summarise(records)[0]) if t.name == "audit")
    assert table.numbers["checkpoint_acc_min"].tolist() == [0.2]
    assert table.numbers["max_linf"].tolist() == [0.2]


# Made.


def test_confirm_takes_what_is_recorded_and_marked(tmp_path) -> None:
    for place, one in enumerate((CLEAN, NOISE, victim(), victim("ule", **LEARNED))):
        records_of.write(tmp_path, f"cell{place}", one)
    words = ["--results-dir", str(tmp_path), "--methods", "sep"]
    for more, keys in (([], ()), (["--confirm"], (victim()["key"],))):
        typed = vars(run_bench.parser().parse_args([*words, *more]))
        assert run_bench.session_of(run_bench.with_defaults(typed), typed).longer == keys


def test_confirm_is_not_for_published_tables(tmp_path, capsys) -> None:
    words = ["--paper", "sep:table4", "--results-dir", str(tmp_path), "--confirm"]
    assert run_bench.main(words) == run_bench.USAGE
    assert "--confirm goes with a grid" in capsys.readouterr().err

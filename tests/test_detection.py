"""Held-out released images: suspicion, its ROC, and early stopping, worked out by hand."""

import io
import itertools
import math
import random
from pathlib import Path

import pandas as pd
import pytest

from bench.component import parse_one
from bench.record import PREPARES
from bench.registry import DEFENSES
from bench.reports.detection import (
    ENOUGH,
    PARTLY_NOTE,
    Stop,
    area,
    area_within,
    detection_table,
    early_stopping_table,
    holdout_tables,
    roc,
    roc_figures,
    suspicion,
)
from bench.reports.notes import SMALL_SCALE
from bench.reports.plots import save_figure
from bench.reports.report import write_report
from bench.reports.summary import Summary, summarise
from bench.reports.table import MISSING
from bench.stack import build_defense
from tests.invented import record
from tests.test_reports import write_records


def summary(records: list[dict]) -> Summary:
    (only,) = summarise(records)
    return only


def victim(method: str, held: list[float], tests: list[float], **others) -> dict:
    """A victim with an epoch for every pair of accuracies."""
    curve = [
        {"epoch": e, "lr": 0.1, "train_loss": 1.0, "train_acc": 0.9, "test_acc": t}
        | {"holdout_acc": h}
        for e, (h, t) in enumerate(zip(held, tests, strict=True), start=1)
    ]
    ends = {"test": tests[-1], "peak": max(tests), "train": 0.9}
    return record(method, **ends, curve=curve, **{"holdout": 500, **others})


def board() -> list[dict]:
    """Suspicions in points: clean 0 and 10; sep 10 and 50, one tie; ule 70 and one failed."""
    return [
        victim("clean", [0.5, 0.6], [0.55, 0.6], seed=0),
        victim("clean", [0.5, 0.7], [0.55, 0.6], seed=1),
        victim("sep", [0.5, 0.4], [0.4, 0.3], seed=0),
        victim("sep", [0.7, 0.7], [0.5, 0.2], seed=1),
        victim("ule", [0.6, 0.8], [0.6, 0.1], seed=0),
        record("ule", seed=1, holdout=500, error="ValueError: no"),
    ]


def lines(made) -> list[list[str]]:
    return made.cells.to_numpy().tolist()


def numbers(made) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(made.csv())).set_index("method")


# Numbers.


def test_suspicion_is_of_the_last_epoch() -> None:
    assert suspicion(board()[2]) == pytest.approx(0.1)
    assert suspicion(board()[-1]) is None  # failed
    assert suspicion(record("sep")) is None  # nothing was held out


@pytest.mark.parametrize(
    ("yes", "no", "share"),
    [
        ([2.0, 3.0], [0.0, 1.0], 1.0),
        ([0.0], [1.0], 0.0),
        ([1.0], [1.0], 0.5),
        ([1.0, 3.0], [1.0, 2.0], 0.625),  # half, nothing, one, one
        ([0.1 + 0.2], [0.3], 0.5),  # a tie but for the last bit
        ([1.0], [], None),
        ([], [1.0], None),
    ],
)
def test_area_counts_pairs(yes: list, no: list, share: float | None) -> None:
    assert area(yes, no) == share


def test_area_within_strata_sums_wins_over_pairs() -> None:
    # 1 of 2 pairs, and 3 of 3: 4 of 5. Together 2 beats 5 no more.
    strata = [([2.0], [1.0, 3.0]), ([7.0, 8.0, 6.0], [5.0])]
    assert area_within(strata) == 0.8
    assert area_within([*strata, ([0.0], []), ([], [9.0])]) == 0.8
    assert area_within([]) is None
    assert area_within([([1.0], []), ([], [0.0])]) is None


@pytest.mark.parametrize("seed", range(5))
def test_area_is_that_below_the_curve_and_of_ranks(seed: int) -> None:
    from scipy.stats import mannwhitneyu

    draws = random.Random(seed)
    # Few levels, so that there are ties within and between both kinds.
    yes, no = ([draws.randrange(6) / 7 for _ in range(n)] for n in (11, 8))
    points = roc(yes, no)
    below = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))
    assert area(yes, no) == pytest.approx(below)
    assert area(yes, no) == pytest.approx(mannwhitneyu(yes, no).statistic / (11 * 8))
    assert points[0] == (0, 0)
    assert points[-1] == (1, 1)


def test_without_ties_the_curve_is_a_staircase() -> None:
    assert roc([3.0, 1.0], [2.0, 0.0]) == [(0, 0), (0, 0.5), (0.5, 0.5), (0.5, 1), (1, 1)]


# Tables.


def test_detection_by_method() -> None:
    made = detection_table(summary(board()))
    # sep against clean: 10 > 0, 10 = 10, 50 > both: 3.5 of 4 pairs. Its held-out 40 and 70.
    assert list(made.cells.columns) == [
        *("method", "held-out %", "clean test %", "suspicion", "AUC %", "n")
    ]
    assert lines(made) == [
        ["clean", "65.0 ± 7.1", "60.0 ± 0.0", "5.0 ± 7.1", "", "2"],
        ["sep", "55.0 ± 21.2", "25.0 ± 7.1", "30.0 ± 28.3", "88", "2 : 2"],
        ["ule", "80.0‡", "10.0‡", "70.0‡", "100‡", "1 : 2"],
    ]
    text = " ".join(made.text().split())
    assert "needs clean test images" in text
    assert "failed: ule on rn18 ×1/4, seed 1: ValueError: no" in text
    assert SMALL_SCALE in made.caption
    found = numbers(made)
    assert found.auc["sep"] == 0.875
    assert (found.n["ule"], found.failed["ule"], found.control_n["ule"]) == (1, 1, 2)
    assert found.suspicion_points["sep"] == 30


@pytest.mark.parametrize("partly", [{"poison_ratio": 0.5}, {"protected_classes": [1, 2]}])
def test_clean_images_among_the_held_out_are_told(partly: dict) -> None:
    assert PARTLY_NOTE not in detection_table(summary(board())).notes
    some = [victim("clean", [0.5], [0.5], **partly), victim("sep", [0.7], [0.5], **partly)]
    assert any(PARTLY_NOTE in detection_table(made).notes for made in summarise(some))


def test_unprepared_images_are_told_of_where_training_images_are_prepared() -> None:
    gray = {"defense": "grayscale", "defense_label": "grayscale", "defense_notes": [PREPARES]}
    records = [
        *board(),
        *(victim(m, [0.6], [0.5], seed=s, **gray) for m in ("clean", "sep") for s in (0, 1)),
    ]
    for make in (detection_table, early_stopping_table):
        (note,) = (one for one in make(summary(records)).notes if "prepared" in one)
        assert note.startswith("Under grayscale only training images")
        assert not any("prepared" in one for one in make(summary(board())).notes)
    drawn = roc_figures(summary(records))
    said = {
        name: "prepared" in " ".join(one.get_supxlabel().split()) for name, one in drawn.items()
    }
    assert said == {"none rn18 ×1/4": False, "grayscale rn18 ×1/4": True}


def test_defenses_say_whether_they_prepare_training_images_only() -> None:
    typed = {
        **dict.fromkeys(("jpeg", "grayscale", "jpeg+mixup", "gaussian-blur:test=yes+jpeg"), True),
        **dict.fromkeys(("none", "mixup", "grayscale:test=yes"), False),
        "gaussian-blur:test=yes+mixup": False,
    }
    for text, prepares in typed.items():
        notes = build_defense(parse_one(text, DEFENSES)).notes()
        assert (PREPARES in notes) is prepares, text


def test_seeds_and_architectures_are_samples_of_one_row() -> None:
    records = [
        *board(),
        victim("clean", [0.5], [0.5], arch="vgg16"),
        victim("sep", [0.5], [0.2], arch="vgg16"),
    ]
    made = detection_table(summary(records))
    # No victim of ule is beside the control's of vgg16.
    assert [line[-1] for line in lines(made)] == ["3", "3 : 3", "1 : 2"]
    # rn18: 10 beats 0 and ties with 10, 50 beats both; vgg16: 30 beats 0. 4.5 of 5.
    assert numbers(made).auc["sep"] == pytest.approx(4.5 / 5)
    assert "over seeds and architectures" in " ".join(made.text().split())
    assert "of the same architecture" in " ".join(made.text().split())


def test_architectures_are_not_told_apart_for_methods() -> None:
    """In points: clean 0 on rn18 and 20 on vgg16, sep 10 on rn18; across both it would be 50 %."""
    records = [
        victim("clean", [0.6], [0.6]),
        victim("clean", [0.6], [0.4], arch="vgg16"),
        victim("sep", [0.6], [0.5]),
    ]
    assert lines(detection_table(summary(records)))[1][-2:] == ["100", "1 : 1"]


def test_every_architecture_has_a_curve_of_its_own() -> None:
    records = [
        victim(method, [0.6], [test], arch=arch, seed=seed)
        for arch, tests in {"rn18": (0.6, 0.5), "vgg16": (0.4, 0.45)}.items()
        for method, test in zip(("clean", "sep"), tests, strict=True)
        for seed in range(2)
    ]
    drawn = roc_figures(summary(records))
    assert list(drawn) == ["none rn18 ×1/4", "none vgg16 ×1/4"]
    # Across both it would be 50 %.
    assert [legend(figure) for figure in drawn.values()] == [
        ["sep: AUC 100 % (n = 2)"],
        ["sep: AUC 0 % (n = 2)"],
    ]


def test_a_defense_is_held_against_its_own_control() -> None:
    other = {"defense": "mixup", "defense_label": "mixup"}
    records = [
        *board(),
        victim("clean", [0.9], [0.1], **other),
        victim("sep", [0.5], [0.3], **other),
        victim("sep", [0.5], [0.3], defense="cutout", defense_label="cutout"),
    ]
    shown = {tuple(line[:2]): line[-2:] for line in lines(detection_table(summary(records)))}
    assert shown["mixup", "sep"] == ["0†", "1 : 1"]  # a control at chance
    assert shown["none", "sep"] == ["88", "2 : 2"]
    assert shown["cutout", "sep"] == [MISSING, "1 : 0"]  # no control


def test_failed_methods_do_not_vanish() -> None:
    records = [*board()[:2], record("ule", holdout=500, error="ValueError: no")]
    assert lines(detection_table(summary(records)))[1][:2] == ["ule", "failed"]
    assert lines(early_stopping_table(summary(records)))[-1][:3] == ["ule", "rn18 ×1/4", "failed"]


def test_early_stopping_picks_the_first_of_the_highest() -> None:
    # Held-out 70 at epochs 2 and 3; the test accuracy is highest at 1 and 4.
    one = victim("sep", [0.3, 0.7, 0.7, 0.6], [0.5, 0.4, 0.45, 0.5])
    assert Stop.of(one) == Stop(last=0.5, epoch=2, picked=0.4, best=1, peak=0.5)
    assert Stop.of(record("sep")) is None


def test_early_stopping_by_method() -> None:
    made = early_stopping_table(summary(board()))
    assert list(made.cells.columns) == [
        *("method", "architecture", "last %", "picked %", "epoch", "peak (oracle) %", "epoch", "n")
    ]
    # sep picks epoch 1 twice, once of a tie; clean and ule pick the last.
    assert lines(made) == [
        ["clean", "rn18 ×1/4", "60.0 ± 0.0", "60.0 ± 0.0", "2", "60.0 ± 0.0", "2", "2"],
        ["sep", "rn18 ×1/4", "25.0 ± 7.1", "45.0 ± 7.1", "1", "45.0 ± 7.1", "1", "2"],
        ["ule", "rn18 ×1/4", "10.0‡", "10.0‡", "2", "60.0‡", "1", "1"],
    ]
    assert "over 2000 test images" in " ".join(made.text().split())
    found = numbers(made)
    assert (found.picked_percent["sep"], found.picked_epoch["sep"]) == (45, 1)
    spread = [*board(), victim("clean", [0.9, 0.7], [0.5, 0.6], seed=2)]
    assert lines(early_stopping_table(summary(spread)))[0][4] == "1–2"


def test_whole_test_sets_need_no_note() -> None:
    whole = {"recipe_settings": {"epochs": 10, "train_images": 5000, "curve_images": None}}
    one = victim("sep", [0.5], [0.3], **whole)
    assert "test images, so that" not in early_stopping_table(summary([one])).text()


def test_without_held_out_images_there_is_nothing_to_tell() -> None:
    assert holdout_tables(summary([record("clean"), record("sep")])) == []
    assert roc_figures(summary([record("clean"), record("sep")])) == {}
    assert [made.name for made in holdout_tables(summary(board()))] == [
        *("detection", "early-stopping")
    ]


# Pictures.


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_all_methods_have_a_curve_and_few_seeds_none_of_their_own(tmp_path: Path) -> None:
    (drawn,) = roc_figures(summary(board())).values()
    # 10 ties with 10; all else is told apart: 5.5 of 6.
    assert legend(drawn) == ["all 2 methods: AUC 92 % (n = 3)"]
    xs, ys = drawn.axes[0].lines[0].get_data()
    assert list(xs) == [0, 0, 0, 50, 100]
    assert list(ys) == pytest.approx([0, 100 / 3, 200 / 3, 100, 100])
    assert "clean test images" in " ".join(drawn.get_supxlabel().split())
    files = [save_figure(drawn, tmp_path / name) for name in "ab"]
    assert files[0][0].read_bytes()[:4] == b"\x89PNG"


def test_many_seeds_give_methods_their_own_curves() -> None:
    def many(method: str, count: int) -> list[dict]:
        low = 0.6 if method == "clean" else 0.2
        return [victim(method, [0.6], [low], seed=seed) for seed in range(count)]

    records = many("clean", ENOUGH) + many("sep", ENOUGH) + many("ule", ENOUGH - 1)
    records += many("sham", ENOUGH)  # a control is no protected victim
    (drawn,) = roc_figures(summary(records)).values()
    assert legend(drawn) == ["all 2 methods: AUC 100 % (n = 19)", "sep: AUC 100 % (n = 10)"]


def test_one_method_is_called_by_its_name() -> None:
    (drawn,) = roc_figures(summary(board()[:4])).values()
    assert legend(drawn) == ["sep: AUC 88 % (n = 2)"]


def test_one_victim_of_a_kind_has_no_curve() -> None:
    assert roc_figures(summary(board()[1:])) == {}


def test_a_report_tells_of_held_out_images(tmp_path: Path) -> None:
    report = write_report(write_records(tmp_path, board()))
    names = [file.name for file in report.files]
    for kind in ("-detection.csv", "-early-stopping.md", "-detection-none-rn18-1-4.png"):
        assert any(name.endswith(kind) for name in names), kind
    assert "Does early stopping help?" in report.text
    assert not math.isnan(numbers(detection_table(summary(board()))).auc["ule"])

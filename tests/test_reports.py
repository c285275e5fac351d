"""Tables and pictures of invented records, against text written by hand."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from PIL import Image

from bench import record as records_of
from bench.errors import UsageError
from bench.record import EACH
from bench.reports.flags import LOW_TRAINING
from bench.reports.notes import SMALL_SCALE
from bench.reports.plots import (
    brief,
    curve_figures,
    move_apart,
    overview_figure,
    save_figure,
    styles,
)
from bench.reports.report import write_report
from bench.reports.summary import Context, Summary, summarise
from bench.reports.table import TERMINAL_WIDTH
from bench.reports.tables import all_tables, audit_table, details_table, main_table
from bench.reports.thumbnails import amplified, thumbnail_sheet
from tests.invented import ARCHS, AUDIT, REALISTIC, realistic, record

GOLDEN = Path(__file__).parent / "golden"

TRACEBACK = """Traceback (most recent call last):
  File "bench/train.py", line 1, in run_epoch
RuntimeError: loss is nan_or_inf & 100% useless
"""


def summary(records: list[dict]) -> Summary:
    """The only summary of these records."""
    (only,) = summarise(records)
    return only


def grid() -> list[dict]:
    """Two architectures, two defenses, four budgets; cells missing, failed, and of few seeds.

    Worked out by hand, in percent (sd is the sample standard deviation):

    - none, clean: rn18 60 62 64, mean 62, sd 2; vgg16 58 60 62, mean 60, sd 2.
    - none, ar: rn18 failed; vgg16 missing.
    - none, cuda: rn18 only seed 0, 25, drop 60 - 25 = 35; its train accuracy, 70, is 20 points
      below clean's 90, so it is marked; vgg16 missing.
    - none, sep: rn18 30 33 36, mean 33, sd 3, drops 30 29 28, mean 29, sd 1;
      vgg16 seed 0 failed, 40 44, mean 42, sd sqrt(8) = 2.828, drops 20 18, mean 19, sd 1.414.
    - mixup, clean: rn18 seed 0, 55; its train accuracy, 49, is on mixed images and says nothing.
    - mixup, sep: rn18 seed 0, 50, drop 5; vgg16 seed 0, 35, without a control.

    Whatever is of fewer than three seeds is marked, too.
    """
    deviations = {"checkpoints": [5, 30], "steps": [8, 30], "step_size": [2 / 255, 0.4 / 255]}
    sep = {"method_deviations": deviations, "audit": AUDIT}
    mixup = {"defense": "mixup", "defense_label": "mixup", "defense_settings": {"alpha": 1.0}}
    cuda = {"budget": {"norm": "none", "epsilon": None}, "epsilon": None}
    ar = {"budget": {"norm": "l2", "epsilon": 1.0}, "epsilon": None}
    return [
        *(record("clean", seed=i, test=t) for i, t in enumerate((0.60, 0.62, 0.64))),
        *(record("clean", arch="vgg16", seed=i, test=t) for i, t in enumerate((0.58, 0.60, 0.62))),
        *(record("sep", seed=i, test=t, peak=0.4, **sep) for i, t in enumerate((0.3, 0.33, 0.36))),
        record("sep", arch="vgg16", seed=0, error=TRACEBACK, **sep),
        record("sep", arch="vgg16", seed=1, test=0.40, **sep),
        record("sep", arch="vgg16", seed=2, test=0.44, **sep),
        record("cuda", test=0.25, train=0.70, audit={**AUDIT, "max_linf": 0.61}, **cuda),
        record("ar", error="ValueError: no", **ar),
        record("clean", test=0.55, train=0.49, **mixup),
        record("sep", test=0.50, train=0.55, **sep, **mixup),
        record("sep", arch="vgg16", test=0.35, train=0.55, **sep, **mixup),
    ]


# Tables.


def test_invented_records_are_records() -> None:
    for invented in grid() + realistic():
        records_of.check(json.loads(json.dumps(invented)), "invented")


@pytest.mark.parametrize("golden", sorted(GOLDEN.iterdir()), ids=lambda file: file.name)
def test_tables_equal_the_text_written_by_hand(golden: Path) -> None:
    table = next(t for t in all_tables(summary(grid())) if t.name == golden.stem)
    formats = {"txt": table.text, "md": table.markdown, "csv": table.csv, "tex": table.latex}
    assert formats[golden.suffix[1:]]() == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_records_does_not_matter(seed: int) -> None:
    shuffled = grid()
    random.Random(seed).shuffle(shuffled)
    before, after = (all_tables(summary(records)) for records in (grid(), shuffled))
    assert [t.text() + t.csv() for t in after] == [t.text() + t.csv() for t in before]


def test_csv_carries_numbers_and_scale() -> None:
    frame = pd.read_csv(io.StringIO(main_table(summary(grid())).csv()), keep_default_na=True)
    line = frame.query("method == 'sep' and arch == 'vgg16' and defense == 'none'").iloc[0]
    assert (line.n, line.failed, line.test_acc_percent, line.drop_points) == (2, 1, 42.0, 19.0)
    assert (line.train_images, line.epochs, line.width, line.precision) == (5000, 10, 0.25, "bf16")
    failed = frame.query("method == 'ar'").iloc[0]
    assert np.isnan(failed.test_acc_percent)


def test_one_seed_has_no_spread() -> None:
    text = main_table(summary(realistic(seeds=1))).text()
    assert "±" not in text
    assert "1 victim seed;" in text


def test_latex_and_markdown_escape_what_they_must() -> None:
    label = r"file:a_b&50%#1^2~{x}\y$|*"
    table = main_table(summary([record("file", method_label=label)]))
    escaped = (
        r"file:a\_b\&50\%\#1\textasciicircum{}2\textasciitilde{}\{x\}\textbackslash{}y\$\textbar{}*"
    )
    assert escaped in table.latex()
    assert r"file:a\_b&50%#1^2\~{x}\\y\$\|\*" in table.markdown()


def test_low_train_accuracy_is_judged_against_the_control() -> None:
    def marked(control: float, train: float) -> list[bool]:
        records = [record("clean", train=control), record("sep", train=train)]
        return [
            LOW_TRAINING.mark in line[2] for line in main_table(summary(records)).cells.to_numpy()
        ]

    assert marked(0.9, 0.81) == [False, False]
    assert marked(0.9, 0.79) == [False, True]
    # As well trained as a badly trained control: only the control is to blame.
    assert marked(0.4, 0.4) == [True, False]


def test_under_a_defense_the_control_is_judged_by_its_test_accuracy() -> None:
    def marked(test: float, trains: tuple[float, float], **others) -> list[bool]:
        mixup = {"defense": "mixup", "defense_label": "mixup", **others}
        records = [
            record("clean", train=trains[0], test=test, **mixup),
            record("sep", train=trains[1], test=0.05, **mixup),
        ]
        return [
            LOW_TRAINING.mark in line[2] for line in main_table(summary(records)).cells.to_numpy()
        ]

    # Mixed images are hard to tell, by a good network, too.
    assert marked(0.8, (0.3, 0.3)) == [False, False]
    assert marked(0.8, (0.3, 0.15)) == [False, True]  # held against the control all the same
    # Ten classes: the limit is 20 %. Train accuracy does not excuse it.
    assert marked(0.2, (0.9, 0.9)) == [False, False]
    assert marked(0.199, (0.9, 0.9)) == [True, False]
    # A hundred classes: 11 %.
    many = [str(place) for place in range(100)]
    assert marked(0.12, (0.9, 0.9), classes=many) == [False, False]
    assert marked(0.10, (0.9, 0.9), classes=many) == [True, False]


def test_under_a_defense_without_a_control_train_accuracy_says_nothing() -> None:
    table = main_table(summary([record("sep", train=0.1, defense="mixup", defense_label="mixup")]))
    assert table.cells.to_numpy().tolist() == [["sep", "l∞ 8/255", "30.0*", "–"]]


def test_without_a_control_low_is_below_half_and_there_is_no_drop() -> None:
    table = main_table(summary([record("sep", train=0.4, test=0.2)]))
    assert table.cells.to_numpy().tolist() == [["sep", "l∞ 8/255", "20.0†*", "–"]]


@pytest.mark.parametrize(("archs", "blocks"), [(2, 1), (5, 2)])
def test_terminal_tables_fit(archs: int, blocks: int) -> None:
    records = realistic(archs=ARCHS[:archs])
    blurred = realistic(archs=ARCHS[:archs], defense="gaussian-blur", defense_label="gaussian-blur")
    for table in all_tables(summary(records + blurred)):
        assert max(map(len, table.text().splitlines())) <= TERMINAL_WIDTH
    assert main_table(summary(records)).text().count("method ") == blocks


def test_paper_scale_says_nothing_about_smallness() -> None:
    paper = {
        "recipe": "paper",
        "recipe_label": "paper",
        "recipe_settings": {"epochs": 120, "train_images": None, "curve_images": None},
        "width": 1.0,
        "train_images": 50000,
    }
    assert SMALL_SCALE not in main_table(summary([record(**paper)])).text()
    for smaller in (
        {"width": 0.5},
        {"recipe": "mine"},
        {"recipe_settings": {**paper["recipe_settings"], "epochs": 60}},
        {"recipe_settings": {**paper["recipe_settings"], "train_images": 5000}},
    ):
        small = main_table(summary([record(**{**paper, **smaller})]))
        assert small.caption[-1] == SMALL_SCALE


def test_methods_stand_controls_first() -> None:
    shown = [row.method for row in summary(realistic(seeds=1)).rows]
    assert shown == ["clean", "sham", "noise", *sorted(set(REALISTIC) - set(shown[:3]))]


def test_audit_takes_the_worst_of_several_crafted_sets() -> None:
    audits = ({"max_linf": 4 / 255, "share_changed": 0.5}, {"max_linf": 8 / 255}, {})
    records = [
        record(arch=arch, audit=audit, crafted_key=arch)
        for arch, audit in zip(ARCHS, audits, strict=False)
    ]
    (line,) = audit_table(summary(records)).cells.to_numpy().tolist()
    assert line == ["sep", "l∞ 8/255", "8/255", "–", "–", "50.0", "–", "–"]


def test_audit_says_what_methods_report_where_one_does() -> None:
    crafted = AUDIT | {"checkpoint_cosine": 0.25, "checkpoint_acc_min": 0.5}
    crafted |= {"checkpoint_acc_max": 0.9}
    again = crafted | {"checkpoint_cosine": 0.35, "checkpoint_acc_min": 0.4}
    records = [
        record("ops", audit=AUDIT),
        record("sep", audit=crafted),
        record("sep", audit=again, arch="vgg16", crafted_key="another"),
        record("ule", audit=AUDIT | {"rounds": 9}),
        record("ule", audit=AUDIT | {"rounds": 11}, arch="vgg16", crafted_key="other"),
    ]
    table = audit_table(summary(records))
    shown = {line["method"]: line for line in table.cells.to_dict("records")}
    heads = ["rounds", "cosine", "least acc %", "best acc %"]
    assert [shown["ops"][head] for head in heads] == ["–"] * 4
    assert [shown["sep"][head] for head in heads] == ["–", "0.3", "40.0", "90.0"]
    assert [shown["ule"][head] for head in heads] == ["10", "–", "–", "–"]
    assert "growth" not in table.cells
    assert "cosine: mean absolute cosine" in table.caption[0]
    assert list(table.numbers["checkpoint_acc_min"].dropna()) == [0.4]
    without = audit_table(summary(records[:1]))
    assert list(without.cells) == list(table.cells)[: -len(heads)]
    assert "crafting" not in without.caption[0]


def test_columns_say_their_width_once() -> None:
    named = {"arch": "rn18", "arch_label": "rn18:width=0.5", "width": 0.5}
    records = [record(), record(width=1.0), record(**named)]
    shown = [str(column) for column in summary(records).columns]
    assert shown == ["rn18", "rn18 ×1/4", "rn18:width=0.5"]


# Which records stand together.


def test_a_later_record_of_the_same_cell_supersedes_the_earlier() -> None:
    old = record("sep", test=0.9, finished="2026-01-01T00:00:00Z")
    new = record("sep", test=0.2, finished="2026-02-01T00:00:00Z")
    for records in ([old, new], [new, old]):
        table = main_table(summary(records))
        assert table.cells.to_numpy().tolist()[0][2] == "20.0*"
        assert "1 older record of the same cells is left out." in table.notes


def test_the_control_serves_every_crafting_seed_and_ratio() -> None:
    records = [
        record("clean", test=0.6),
        record("sep", test=0.3),
        record("sep", test=0.4, craft_seed=1),
        record("sep", test=0.5, poison_ratio=0.5),
    ]
    drops = [main_table(s).cells.to_numpy().tolist()[1][3] for s in summarise(records)]
    assert sorted(drops) == ["10.0", "20.0", "30.0"]


def test_sets_of_each_victim_are_one_table() -> None:
    """Paired with the clean victim of the seed; crossed with victims, sets stay apart."""
    clean = [record("clean", test=t, seed=s) for s, t in enumerate((0.6, 0.7, 0.8))]
    own = [record("sep", test=t, seed=s, craft_seed=s) for s, t in enumerate((0.3, 0.5, 0.4))]
    (one,) = summarise(clean + own)
    assert one.context.craft_seed == EACH
    ((row, column),) = [key for key in one.groups if key[0].method == "sep"]
    assert one.group(row, column).drop(one.control(row, column)).mean == pytest.approx(0.3)
    assert "a crafted set for each victim" in " ".join(main_table(one).caption)
    (asked,) = summarise(clean + own, [Context.of(own[1])])
    assert asked == one
    crossed = [*own, record("sep", test=0.2, seed=0, craft_seed=1)]
    assert [s.context.craft_seed for s in summarise(clean + crossed)] == [1, EACH]
    (apart, common) = summarise(clean + crossed)
    assert sum(map(len, (g.done for g in apart.groups.values()))) == 3 + 2
    assert common.groups == one.groups


def test_contexts_have_files_of_their_own() -> None:
    records = [
        record(),
        record(dataset_digest="d2"),
        record(holdout=500),
        record(precision="fp32"),
        record(recipe_settings={"epochs": 11}),
    ]
    slugs = {one.context.slug for one in summarise(records)}
    assert len(slugs) == len(records)
    chosen = summarise(records, [Context.of(records[2])])
    assert [one.context.holdout for one in chosen] == [500]


def test_namesakes_are_told_apart_by_their_settings() -> None:
    records = [
        record("sep", method_settings={"checkpoints": n, "steps": 8}, key=f"k{n}") for n in (5, 15)
    ]
    lines = main_table(summary(records)).cells.to_numpy().tolist()
    assert [line[0] for line in lines] == ["sep checkpoints=15", "sep checkpoints=5"]


# Plots.


def test_plots_are_valid_and_equal_when_drawn_again(tmp_path: Path) -> None:
    found = []
    for folder in ("first", "second"):
        drawn = summary(realistic(seeds=2, archs=ARCHS[:1]))
        (figure,) = curve_figures(drawn).values()
        files = save_figure(figure, tmp_path / folder / "curves.v1")
        files += save_figure(overview_figure(drawn), tmp_path / folder / "final")
        found.append([file.read_bytes() for file in files])
        assert [file.suffix for file in files] == [".png", ".pdf"] * 2
    assert found[0] == found[1]
    for png, pdf in (found[0][:2], found[0][2:]):
        image = Image.open(io.BytesIO(png))
        image.load()
        assert min(image.size) > 300
        assert pdf.startswith(b"%PDF-")
        assert b"CreationDate" not in pdf


def test_curves_of_one_epoch_and_one_method() -> None:
    (figure,) = curve_figures(summary(realistic(epochs=1, seeds=1, methods=("sep",)))).values()
    figure.canvas.draw()
    assert list(figure.axes[0].get_xticks()) == [1]


def test_curves_show_the_mean_between_lowest_and_highest() -> None:
    low, high = (record(seed=i, train=t, test=t) for i, t in enumerate((0.4, 0.8)))
    (figure,) = curve_figures(summary([low, high])).values()
    train = figure.axes[0]
    # Train accuracies by epoch are 20 40 and 40 80 %.
    assert train.lines[0].get_ydata() == pytest.approx([30, 60])
    (band,) = train.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((20, 80))


def test_failed_cells_alone_give_tables_and_no_plots() -> None:
    only = summary([record(error=TRACEBACK)])
    assert curve_figures(only) == {}
    assert overview_figure(only) is None
    assert "failed" in details_table(only).text()


def test_a_failed_cell_beside_done_ones_is_named_in_the_overview() -> None:
    figure = overview_figure(summary(grid()))
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts.count("failed") == 1


def test_many_defenses_stand_side_by_side_on_a_page() -> None:
    names = [f"d{i:02}" for i in range(30)]
    records = [
        record(method, defense=name, defense_label=name)
        for name in names
        for method in ("clean", "sep", "ule")
    ]
    figure = overview_figure(summary(records))
    width, height = figure.get_size_inches()
    assert height < 1.2 * width + 8
    assert [axes.get_ylabel() for axes in figure.axes] == names
    assert all(len(axes.get_yticklabels()) == 3 for axes in figure.axes)


@pytest.mark.parametrize("count", [1, 4])
def test_names_of_panels_do_not_run_into_each_other(count: int) -> None:
    methods = ("clean", "sep", "ule", "cuda")[: count + 1]
    names = ["none", "random-noise:std=0.06275", "random-noise:std=0.08235", "bit-depth"]
    records = [record(m, defense=n, defense_label=n) for n in names for m in methods]
    figure = overview_figure(summary(records))
    figure.savefig(io.BytesIO(), format="png")
    boxes = [axes.yaxis.label.get_window_extent() for axes in figure.axes]
    ticks = [axes.yaxis.get_tightbbox(for_layout_only=False) for axes in figure.axes]
    assert {axes.get_ylabel() for axes in figure.axes} == set(names)
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(box.x0 >= 0 and box.y0 >= 0 for box in [*boxes, *ticks])


def test_pictures_round_as_tables_do() -> None:
    # Half of .4874 + .5036 is .4955, and a hundred times that, in binary, a little more than 49.55.
    victims = [record("clean", test=test, seed=seed) for seed, test in enumerate((0.4874, 0.5036))]
    one = summary(victims)
    (axes,) = overview_figure(one).axes
    assert "49.5" in [text.get_text()[:4] for text in axes.texts]
    assert any("49.5 ±" in cell for cell in main_table(one).cells.iloc[0])


def test_methods_keep_their_looks() -> None:
    both = realistic(seeds=1) + realistic(seeds=1, craft_seed=1)
    looks = styles(summarise(both))
    assert looks == styles([summary(realistic(seeds=1))])
    assert len(set(looks.values())) == len(REALISTIC)


def test_many_methods_still_differ() -> None:
    looks = styles([summary([record(f"m{i}") for i in range(80)])])
    assert len(set(looks.values())) == 80


def test_curves_say_how_few_seeds_a_line_may_have() -> None:
    records = [record("clean", seed=seed, test=0.6) for seed in range(3)]
    (figure,) = curve_figures(summary([*records, record("sep"), record("ule")])).values()
    assert figure.get_suptitle().endswith("1 to 3 victim seeds")
    assert {text.get_text() for text in figure.axes[1].texts} == {"clean", "sep*", "ule*", "chance"}
    assert "*: fewer than 3 victim seeds." in " ".join(figure.get_supxlabel().split())


@pytest.mark.parametrize("count", [5, 30])
def test_names_beside_curves_do_not_overlap(count: int) -> None:
    records = [record("clean", test=0.6), *(record(f"method-{i}") for i in range(count))]
    records += [record("clean", arch="vgg16", test=0.6)]
    (figure,) = curve_figures(summary(records)).values()
    figure.draw_without_rendering()
    names = figure.axes[1].texts
    assert len(names) == count + 2
    boxes = sorted(
        (middle - height / 2, middle + height / 2)
        for name in names
        for (_, middle) in [name.get_transform().transform(name.get_position())]
        for height in [Text.get_window_extent(name).height]
    )
    assert all(lower[1] <= upper[0] for lower, upper in pairwise(boxes))
    # A panel with few lines needs no more room for that.
    heights = [axes.get_position().height for axes in figure.axes[1::2]]
    assert heights[0] == pytest.approx(heights[1]) if count == 5 else heights[0] > 1.5 * heights[1]


@pytest.mark.parametrize("seed", range(5))
def test_names_are_moved_apart_no_further_than_needed(seed: int) -> None:
    wanted = sorted((random.Random(seed).uniform(0, 100) for _ in range(9)), reverse=True)
    moved = move_apart(wanted, gap=5, low=1, high=99)
    gaps = [a - b for a, b in pairwise(moved)]
    assert min(gaps) >= 5 - 1e-9
    assert max(moved) <= 99
    assert min(moved) >= 1
    assert move_apart([90, 50, 10], gap=5, low=1, high=99) == [90, 50, 10]
    assert move_apart([50, 50], gap=6, low=1, high=99) == [53, 47]


def test_long_labels_are_shortened_in_the_middle() -> None:
    assert brief("sep-fa-vr") == "sep-fa-vr"
    assert brief("file:/home/somebody/sets/mine.npz") == "file:/home…ets/mine.npz"


# Thumbnails.


def test_amplified_difference_is_about_mid_grey() -> None:
    clean = np.full((1, 1, 4, 3), 100, np.uint8)
    protected = clean + np.array([0, 1, 2, 3], np.uint8)[:, None]
    grey = amplified(protected, clean, 10.0)[0, 0, :, 0]
    assert grey.tolist() == [128, 138, 148, 158]
    # Darker must not wrap around: uint8 has no negative numbers.
    assert amplified(clean, protected, 100.0)[0, 0, :, 0].tolist() == [128, 28, 0, 0]


def test_thumbnails_state_their_factors(tmp_path: Path) -> None:
    clean = np.full((2, 8, 8, 3), 100, np.uint8)
    rows = [("sham", clean), ("sep", clean + np.uint8(8))]
    figure = thumbnail_sheet(clean, rows, title="two images")
    texts = [text.get_text() for text in figure.axes[0].texts]
    # The largest difference of 8 grey levels fills the 127 above mid-grey.
    assert {"clean", "sham", "sep", "× 1", "× 15.9"} <= set(texts)
    files = save_figure(figure, tmp_path / "sheet")
    assert all(file.stat().st_size for file in files)


@pytest.mark.parametrize("wrong", [np.zeros((2, 8, 8, 3)), np.zeros((1, 8, 8, 3), np.uint8)])
def test_thumbnails_refuse_other_shapes_and_types(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="images of 'sep'"):
        thumbnail_sheet(np.zeros((2, 8, 8, 3), np.uint8), [("sep", wrong)])


# The whole report.


def write_records(folder: Path, records: list[dict]) -> Path:
    for position, one in enumerate(records):
        records_of.write(folder, f"cell{position}", one)
    return folder


def test_a_report_is_written_and_rebuilt_to_the_byte(tmp_path: Path) -> None:
    write_records(tmp_path, [record("clean"), record("sep"), record("sep", craft_seed=1)])
    first = write_report(tmp_path)
    before = {file: file.read_bytes() for file in first.files}
    second = write_report(tmp_path)
    assert second == first
    assert {file: file.read_bytes() for file in second.files} == before
    assert len(before) == len(first.files)
    folders = {file.parent.relative_to(tmp_path).as_posix() for file in first.files}
    assert folders == {"tables", "plots"}
    assert sum(line.strip("=") == "" for line in first.text.splitlines() if line) == 2
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_report_of_one_context_leaves_the_others_alone(tmp_path: Path) -> None:
    other = record("sep", craft_seed=1, error="E: no")
    write_records(tmp_path, [record("sep"), other])
    report = write_report(tmp_path, [Context.of(other)])
    said = " ".join(report.text.split())
    assert "crafting seed 1" in said
    assert "crafting seed 0" not in said
    assert all("craft1" in file.name for file in report.files)


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no records to report on"):
        write_report(tmp_path)


def test_importing_reports_costs_nothing() -> None:
    heavy = "{'torch', 'pandas', 'matplotlib', 'tabulate'} & set(sys.modules)"
    code = f"import sys, bench.reports.report, bench.reports.plots; print({heavy})"
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_a_budget_that_is_not_used_is_told() -> None:
    audit = {"max_linf": 8 / 255}
    small = record("sep", test=0.4, epsilon=16 / 255)
    whole = record("ule", test=0.2, epsilon=8 / 255)
    for one in (small, whole):
        one["audit"] = AUDIT | audit
    (summary,) = summarise([record("clean", test=0.6), small, whole])
    text = " ".join(main_table(summary).text().split())
    assert "sep: no component moves by more than 8/255 of its 16/255." in text
    assert "ule: no component" not in text

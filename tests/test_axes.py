"""Axes among invented records: which there are, their tables against text written by hand."""

from __future__ import annotations

import io
import json
import math
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.text import Text
from PIL import Image

from bench import record as records_of
from bench.reports.axes import Axis, arch_text, axis_table, find_axes
from bench.reports.axis_plots import axis_figures, axis_styles
from bench.reports.plots import save_figure
from bench.reports.report import write_report
from bench.reports.summary import Context, summarise
from tests.invented import ARCHS, controls, realistic, record, swept

GOLDEN = Path(__file__).parent / "golden_axes"

RADII = (2 / 255, 4 / 255, 8 / 255)
RATIOS = (0.2, 0.6, 1.0)


def axes_of(records: list[dict]) -> dict[str, Axis]:
    """The axes of these records by name."""
    found = find_axes(summarise(records))
    assert len({axis.name for axis in found}) == len(found)
    return {axis.name: axis for axis in found}


def sep(settings: dict[str, Any], **others: Any) -> dict:
    """A record of sep with these settings."""
    key = f"{settings}{sorted(others.items())}"
    return record("sep", method_settings=settings, key=key, **others)


def cells(axis: Axis) -> list[list[str]]:
    """Its table's lines."""
    return axis_table(axis).cells.to_numpy().tolist()


def along_epsilon() -> list[dict]:
    """Two architectures and two methods along the radius; cells missing, failed, of few seeds.

    Worked out by hand, in percent (sd is the sample standard deviation):

    - clean: rn18 60 62 64, mean 62, sd 2; vgg16 58, of one seed where three are usual.
    - sep rn18: 2/255 50 52 54, mean 52, sd 2, drops all 10; 4/255 all failed;
      8/255 30 33 36, mean 33, sd 3, drops 30 29 28, mean 29, sd 1, its train accuracy 70, 20 below
      clean's.
    - sep vgg16: 2/255 44, drop 14; 4/255 missing; 8/255 seed 0 failed, seed 1 40, no pair.
    - noise rn18: 2/255 61; 8/255 60.
    """
    radii = dict(zip((2, 4, 8), RADII, strict=True))

    def at(level: int, method: str = "sep", **others: Any) -> dict:
        settings = {"epsilon": radii[level], "steps": 8}
        deviations = {"steps": [8, 30], "epsilon": [radii[level], 8 / 255]}
        key = f"{method}{level}{sorted(others.items())}"
        facts = {"method_settings": settings, "epsilon": radii[level], "key": key}
        facts["method_deviations"] = deviations if method == "sep" else {}
        return record(method, **facts, **others)

    return [
        *(record("clean", seed=i, test=t) for i, t in enumerate((0.60, 0.62, 0.64))),
        record("clean", arch="vgg16", test=0.58),
        *(at(2, seed=i, test=t) for i, t in enumerate((0.50, 0.52, 0.54))),
        *(at(4, seed=i, error="E: no") for i in range(3)),
        *(at(8, seed=i, test=t, train=0.7) for i, t in enumerate((0.30, 0.33, 0.36))),
        at(2, arch="vgg16", test=0.44),
        at(8, arch="vgg16", error="E: no"),
        at(8, arch="vgg16", seed=1, test=0.40),
        at(2, "noise", test=0.61),
        at(8, "noise", test=0.60),
    ]


def surrogates() -> list[dict]:
    """A matrix with narrow and wide networks on both sides."""

    def by(surrogate: str, arch: str, width: float = 0.25, **others: Any) -> dict:
        return sep({"surrogate": surrogate, "steps": 8}, arch=arch, width=width, **others)

    return [
        record("clean", test=0.6),
        record("clean", test=0.8, width=1.0, key="wide"),
        by("rn18:width=0.25", "rn18", test=0.20),
        by("rn18:width=0.25", "vgg16", test=0.22),
        by("rn18", "rn18", test=0.31),
        by("rn18", "vgg16", test=0.33),
        by("vgg16:width=0.25", "rn18", test=0.35),
        by("vgg16:width=0.25", "rn18", width=1.0, test=0.45),
        by("vgg16:width=0.25", "vgg16", error="E: no"),
    ]


def ratios() -> list[dict]:
    """A control that only one poison ratio has, beside a method at three."""
    part = record("clean-part", test=0.55, poison_ratio=0.2, key="part", epsilon=0.0)
    tests = dict(zip(RATIOS, (0.58, 0.48, 0.30), strict=True))
    return [
        record("clean", test=0.6),
        part,
        *(sep({}, poison_ratio=ratio, test=test) for ratio, test in tests.items()),
    ]


MADE = {
    "axis-epsilon": along_epsilon,
    "axis-surrogate": surrogates,
    "axis-poison-ratio": ratios,
}
"""What the tables written by hand are of."""

# Which axes there are.


def test_invented_records_are_records() -> None:
    for invented in along_epsilon() + surrogates() + ratios() + swept("sep", "steps", (5, 8)):
        records_of.check(json.loads(json.dumps(invented)), "invented")


def test_one_setting_is_an_axis_and_two_at_once_are_none() -> None:
    one = [sep({"steps": 8, "checkpoints": n}) for n in (3, 5)]
    assert list(axes_of(one)) == ["checkpoints"]
    two = [sep({"steps": 8, "checkpoints": 3}), sep({"steps": 15, "checkpoints": 5})]
    assert axes_of(two) == {}
    # A third record beside each of them makes two axes, each of its one line.
    corner = [*two, sep({"steps": 8, "checkpoints": 5})]
    found = axes_of(corner)
    assert list(found) == ["checkpoints", "steps"]
    assert [line.label for line in found["checkpoints"].lines] == ["sep"]
    assert found["steps"].values == [8, 15]


@pytest.mark.parametrize(
    "other",
    [
        {"arch": "vgg16"},
        {"arch": "rn18", "width": 0.5},
        {"defense": "mixup", "defense_label": "mixup"},
        {"dataset_digest": "d2"},
        {"recipe_settings": {"epochs": 11}},
        {"precision": "fp32"},
        {"holdout": 500},
        {"craft_seed": 1},
        {"poison_ratio": 0.5},
    ],
    ids=lambda other: next(reversed(other)),
)
def test_what_differs_in_anything_else_is_no_axis(other: dict[str, Any]) -> None:
    records = [sep({"checkpoints": 3}), sep({"checkpoints": 5}, **other)]
    assert axes_of(records) == {}
    assert list(axes_of([*records, sep({"checkpoints": 5})])) != []


def test_seeds_are_averaged_and_make_no_axis() -> None:
    assert axes_of([sep({"checkpoints": 3}, seed=seed) for seed in range(3)]) == {}
    records = [sep({"steps": n}, seed=s, test=n / 100 + s / 50) for n in (3, 5) for s in range(3)]
    # 3 5 7 and 5 7 9: means 5 and 7, sd 2.
    assert cells(axes_of(records)["steps"]) == [["sep", "rn18 ×1/4", "–", "5.0 ± 2.0", "7.0 ± 2.0"]]


def test_committed_grids_without_a_sweep_have_no_axis() -> None:
    assert axes_of(realistic()) == {}


def test_words_and_switches_are_no_axis() -> None:
    records = [
        *(sep({"centers": centers}) for centers in ("own", "last")),
        *(record("m", method_settings={"on": on}, key=f"m{on}") for on in (True, False)),
    ]
    assert axes_of(records) == {}


def test_methods_at_one_value_are_no_lines() -> None:
    records = swept("sep", "epsilon", RADII) + swept("ule", "epsilon", RADII[:1])
    assert [line.label for line in axes_of(records)["epsilon"].lines] == ["sep"]


def test_sums_of_budgets_and_other_norms_are_not_on_the_axis_of_epsilon() -> None:
    mixed = [
        record(
            "sep+ar",
            budget={"norm": "linf+l2", "epsilon": [epsilon, 1.0]},
            epsilon=None,
            method_settings={"sep.epsilon": epsilon, "ar.epsilon": 1.0},
            key=f"mixed{epsilon}",
        )
        for epsilon in RADII
    ]
    round_ones = [
        record(
            "ar",
            budget={"norm": "l2", "epsilon": epsilon},
            epsilon=None,
            method_settings={"epsilon": epsilon},
            key=f"round{epsilon}",
        )
        for epsilon in (0.5, 1.0)
    ]
    found = axes_of(mixed + round_ones + swept("sep", "epsilon", RADII))
    assert sorted(found) == ["epsilon", "epsilon-l2", "sep.epsilon"]
    assert [line.label for line in found["epsilon"].lines] == ["sep"]
    assert list(axis_table(found["epsilon-l2"]).cells.columns[3:]) == ["epsilon=0.5", "epsilon=1"]
    assert found["sep.epsilon"].text(2 / 255) == "sep.epsilon=2/255"


def test_parts_that_take_one_radius_together_lie_at_the_sum() -> None:
    records = [
        record(
            "sep+noise",
            epsilon=2 * epsilon,
            method_settings={"sep.epsilon": epsilon, "noise.epsilon": epsilon},
            key=f"both{epsilon}",
        )
        for epsilon in RADII
    ]
    found = axes_of(records)
    assert list(found) == ["epsilon"]
    assert found["epsilon"].values == [4, 8, 16]


def test_a_setting_that_decides_the_budget_is_an_axis() -> None:
    records = [
        record(
            "ops",
            budget={"norm": "l0", "epsilon": pixels},
            epsilon=None,
            method_settings={"pixels": pixels},
            key=f"ops{pixels}",
        )
        for pixels in (1, 4)
    ]
    assert axes_of(records)["pixels"].values == [1, 4]


def test_a_setting_left_out_at_its_default_has_its_default() -> None:
    plain = sep({"steps": 8}, test=0.3)
    deviating = sep({"steps": 8, "blur": 3}, test=0.4, method_deviations={"blur": [3, 1]})
    axis = axes_of([plain, deviating])["blur"]
    assert axis.values == [1, 3]
    assert cells(axis)[0][3:] == ["30.0", "40.0"]


def test_a_later_record_supersedes_the_earlier() -> None:
    old = sep({"steps": 8}, test=0.9)
    new = {**old, "key": "new", "finished": "2026-02-01T00:00:00Z", "final_test_acc": 0.2}
    axis = axes_of([new, old, sep({"steps": 5}, test=0.4)])["steps"]
    assert cells(axis)[0][3:] == ["40.0", "20.0"]


# Lines and their names.


def test_labels_lose_what_is_swept_and_keep_what_is_not() -> None:
    labels = {3: "sep:steps=15,checkpoints=3", 5: "sep:steps=15", 10: "sep:steps=15,checkpoints=10"}
    records = [
        sep({"steps": 15, "checkpoints": n}, method_label=label) for n, label in labels.items()
    ]
    (line,) = axes_of(records)["checkpoints"].lines
    assert line.label == "sep:steps=15"
    joined = [
        record(
            "sep+cuda",
            method_label=f"sep:checkpoints={n}+cuda",
            method_settings={"sep.checkpoints": n, "cuda.blur": 0.3},
            key=f"joined{n}",
        )
        for n in (3, 5)
    ]
    (line,) = axes_of(joined)["sep.checkpoints"].lines
    assert line.label == "sep+cuda"


def test_lines_of_one_method_are_told_apart_in_order_of_size() -> None:
    records = [sep({"steps": s, "checkpoints": n}) for s in (5, 10, 8) for n in (3, 5)]
    found = axes_of(records)
    labels = [line.label for line in found["checkpoints"].lines]
    assert labels == ["sep steps=5", "sep steps=8", "sep steps=10"]
    assert found["checkpoints"].values == [3, 5]
    assert found["steps"].values == [5, 8, 10]


def test_architectures_are_written_as_columns_are() -> None:
    written = {
        "rn18": "rn18",
        "rn18:width=0.25": "rn18 ×1/4",
        "dn121:growth=32,width=0.5": "dn121:growth=32 ×1/2",
        "timm:resnet50": "timm:resnet50",
    }
    assert {text: arch_text(text) for text in written} == written


# Tables.


@pytest.mark.parametrize("golden", sorted(GOLDEN.iterdir()), ids=lambda file: file.name)
def test_tables_equal_the_text_written_by_hand(golden: Path) -> None:
    made = map(axis_table, find_axes(summarise(MADE[golden.stem]())))
    (table,) = (table for table in made if table.name == golden.stem)
    formats = {"txt": table.text, "md": table.markdown, "csv": table.csv, "tex": table.latex}
    assert formats[golden.suffix[1:]]() == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_records_does_not_matter(seed: int) -> None:
    def tables(records: list[dict]) -> list[str]:
        found = map(axis_table, find_axes(summarise(records)))
        return [text for table in found for text in (table.text(), table.csv())]

    records = along_epsilon() + swept("sep", "checkpoints", (3, 10), archs=ARCHS[:2], seeds=2)
    records += surrogates()[2:] + ratios()
    shuffled = list(records)
    random.Random(seed).shuffle(shuffled)
    assert tables(shuffled) == tables(records)


def test_the_control_joins_every_context() -> None:
    records = controls(seeds=2, test=0.7)
    records += [r for seed in (0, 1) for r in swept("sep", "steps", (5, 8), craft_seed=seed)]
    records += swept("sep", "steps", (5, 8), poison_ratio=0.5)
    steps = [axis for axis in find_axes(summarise(records)) if axis.name == "steps"]
    assert [sorted(c.craft_seed for c in axis.contexts) for axis in steps] == [[0], [0], [1]]
    assert {cells(axis)[0][2] for axis in steps} == {"70.5 ± 0.7"}
    (ratio,) = [axis for axis in find_axes(summarise(records)) if axis.name == "poison_ratio"]
    assert {line[2] for line in cells(ratio)} == {"70.5 ± 0.7"}
    numbers = axis_table(ratio).numbers
    assert list(numbers.poison_ratio) == [0.0, 0.5, 1.0, 0.5, 1.0]
    assert math.isclose(numbers.test_acc_percent[0], 70.5)


def test_numbers_of_a_setting_stay_whole() -> None:
    records = controls() + swept("sep", "checkpoints", (3, 10))
    frame = pd.read_csv(io.StringIO(axis_table(axes_of(records)["checkpoints"]).csv()), dtype=str)
    assert frame.checkpoints.fillna("").tolist() == ["", "3", "10"]
    # 0.5 - 0.004 * 3, and 0.06 less; the control has 60.
    assert frame.test_acc_percent.tolist() == ["60.0", "48.8", "42.8"]
    assert frame.drop_points.fillna("").tolist() == ["", "11.2", "17.2"]


def test_defenses_have_a_column_where_there_are_several() -> None:
    blurred = {"defense": "blur", "defense_label": "blur"}
    records = controls() + swept("sep", "steps", (5, 8)) + swept("sep", "steps", (5, 8), **blurred)
    table = axis_table(axes_of(records)["steps"])
    lines = table.cells.to_numpy().tolist()
    assert [line[:4] for line in lines] == [
        ["none", "sep", "rn18 ×1/4", "60.0"],
        ["blur", "sep", "rn18 ×1/4", "–"],
    ]
    assert table.cells.columns[0] == "defense"


# Plots.


def lines_of(axes: Any) -> list[list[float]]:
    """Heights of the lines of methods in a panel, NaN where they are broken."""
    drawn = [line for line in axes.lines if line.get_marker() == "o" and len(line.get_xdata()) > 1]
    return [[float(y) for y in line.get_ydata()] for line in drawn]


def test_lines_are_broken_where_cells_are_missing_or_failed() -> None:
    (figure,) = axis_figures(axes_of(along_epsilon())["epsilon"]).values()
    first, second = figure.axes
    assert [text.get_text() for text in first.get_xticklabels()] == ["2", "4", "8"]
    nan = math.nan
    np.testing.assert_allclose(lines_of(first), [[61, nan, 60], [52, nan, 33]])
    np.testing.assert_allclose(lines_of(second), [[44, nan, 40]])
    caption = " ".join(figure.get_supxlabel().split())
    assert "n = 1 to 3 victim seeds" in caption
    assert "A line is broken where a cell failed or was not run." in caption
    assert "Small scale" in caption


def test_the_axis_goes_from_zero_to_the_controls_level() -> None:
    records = controls(seeds=3, test=0.6) + swept("sep", "epsilon", RADII, seeds=3)
    (figure,) = axis_figures(axes_of(records)["epsilon"]).values()
    low, high = figure.axes[0].get_ylim()
    # The control has 60 61 62, mean 61, sd 1.
    assert low == 0
    assert 62 <= high <= 66
    named = {text.get_text() for text in figure.axes[0].texts}
    assert named == {"clean", "chance", "sep"}


def test_shares_go_from_nothing_to_everything() -> None:
    (figure,) = axis_figures(axes_of(ratios())["poison_ratio"]).values()
    (panel,) = figure.axes
    assert [text.get_text() for text in panel.get_xticklabels()] == ["0", "20", "60", "100"]
    np.testing.assert_allclose(lines_of(panel), [[55, math.nan, math.nan], [58, 48, 30]])
    # The control stands at a share of nothing, and no line joins it.
    dots = [line for line in panel.lines if list(line.get_xdata()) == [0]]
    assert [list(dot.get_ydata()) for dot in dots] == [[60]]


def test_wide_ranges_are_logarithmic() -> None:
    for values, scale in (((3, 5, 120), "log"), ((3, 5, 10), "linear")):
        axis = axes_of(swept("sep", "checkpoints", values))["checkpoints"]
        (figure,) = axis_figures(axis).values()
        assert figure.axes[0].get_xscale() == scale


def test_matrices_have_their_numbers_in_the_fields() -> None:
    (figure,) = axis_figures(axes_of(surrogates())["surrogate"]).values()
    (panel,) = figure.axes
    shown = {text.get_position(): text.get_text() for text in panel.texts}
    assert [shown[0, row] for row in range(4)] == ["80.0", "–", "–", "45.0"]
    assert [shown[1, row] for row in range(4)] == ["60.0", "31.0", "20.0", "35.0"]
    assert [shown[2, row] for row in range(4)] == ["–", "33.0", "22.0", "failed"]
    # Framed where the victim is the surrogate's equal, even if that was not run.
    corners = [(round(p.get_x() + 0.46), round(p.get_y() + 0.4)) for p in panel.patches]
    assert corners == [(0, 1), (1, 2), (2, 3)]
    image = panel.images[0].get_array()
    np.testing.assert_allclose(np.ma.filled(image[:, 1], -1), [60, 31, 20, 35])


def test_failed_cells_alone_give_a_table_and_no_figure() -> None:
    axis = axes_of([sep({"steps": n}, error="E: no") for n in (5, 8)])["steps"]
    assert axis_figures(axis) == {}
    assert cells(axis) == [["sep", "rn18 ×1/4", "–", "failed", "failed"]]


@pytest.mark.parametrize("count", [1, 2, 6, 20])
def test_names_do_not_overlap(count: int) -> None:
    records = controls(ARCHS[:3])
    for place in range(count):
        records += swept(f"method-{place}", "steps", (5, 8), archs=ARCHS[:3])
    (figure,) = axis_figures(axes_of(records)["steps"]).values()
    figure.draw_without_rendering()
    for panel in figure.axes[:3]:
        # Their extents have the leaders in them; letters alone are as large wherever they stand.
        sizes = [Text.get_window_extent(text) for text in panel.texts]
        places = [text.get_transform().transform(text.get_position()) for text in panel.texts]
        boxes = sorted(
            (y - size.height / 2, y + size.height / 2)
            for (_, y), size in zip(places, sizes, strict=True)
        )
        assert len(boxes) == count + 2
        assert all(lower[1] <= upper[0] for lower, upper in pairwise(boxes))
        ends = [x + size.width for (x, _), size in zip(places, sizes, strict=True)]
        assert max(ends) <= figure.bbox.x1


def test_what_leads_to_a_name_stays_outside_its_panel() -> None:
    records = [*controls(), *swept("sep", "steps", (5, 8)), *swept("ule", "steps", (5, 10))]
    (figure,) = axis_figures(axes_of(records)["steps"]).values()
    (panel,) = figure.axes
    assert {text.get_text() for text in panel.texts} == {"clean", "chance", "sep", "ule"}
    for text in panel.texts:
        assert text.xycoords == panel.get_yaxis_transform()
        assert text.xy[0] == 1.0


def test_doubtful_dots_are_hollow() -> None:
    records = [*controls(seeds=3), *swept("sep", "steps", (5, 8), seeds=3)]
    records += [*swept("sep", "steps", (10,)), *swept("ule", "steps", (5, 8), seeds=3)]
    (figure,) = axis_figures(axes_of(records)["steps"]).values()
    (panel,) = figure.axes
    hollow = [one for one in panel.collections if isinstance(one, PathCollection)]
    assert [list(one.get_offsets()[:, 0]) for one in hollow] == [[10]]
    assert {text.get_text() for text in panel.texts} == {"clean", "chance", "sep*", "ule"}
    caption = " ".join(figure.get_supxlabel().split())
    assert "Hollow: the dots" in caption
    assert "*: fewer than 3 victim seeds." in caption


def test_a_doubt_about_all_dots_leaves_none_hollow() -> None:
    (figure,) = axis_figures(axes_of(swept("sep", "steps", (5, 8)))["steps"]).values()
    assert not any(isinstance(one, PathCollection) for one in figure.axes[0].collections)
    caption = " ".join(figure.get_supxlabel().split())
    assert "all numbers: fewer than 3 victim seeds." in caption
    assert "Hollow" not in caption


def test_methods_keep_their_looks() -> None:
    records = along_epsilon() + swept("sep-fa", "checkpoints", (3, 5))
    found = find_axes(summarise(records))
    looks = axis_styles(found)
    assert set(looks) == {"noise", "sep", "sep-fa"}
    assert len(set(looks.values())) == 3


def test_figures_are_valid_and_equal_when_drawn_again(tmp_path: Path) -> None:
    found = []
    for folder in ("first", "second"):
        files = []
        for records in (along_epsilon(), surrogates(), ratios()):
            (axis,) = find_axes(summarise(records))
            (figure,) = axis_figures(axis).values()
            files += save_figure(figure, tmp_path / folder / axis.name)
        found.append([file.read_bytes() for file in files])
    assert found[0] == found[1]
    for png, pdf in zip(found[0][::2], found[0][1::2], strict=True):
        image = Image.open(io.BytesIO(png))
        image.load()
        assert min(image.size) > 300
        assert pdf.startswith(b"%PDF-")


# The report.


def write_records(folder: Path, records: list[dict]) -> Path:
    for position, one in enumerate(records):
        records_of.write(folder, f"cell{position}", one)
    return folder


def test_reports_have_axes_only_where_there_are_any(tmp_path: Path) -> None:
    plain = [*controls(), record("sep"), record("ule")]
    before = write_report(write_records(tmp_path / "plain", plain))
    assert not [file.name for file in before.files if "axis" in file.name]
    sweeping = [*plain, *(sep({"steps": n}, seed=1) for n in (5, 8))]
    after = write_report(write_records(tmp_path / "swept", sweeping))
    added = {file.name for file in after.files} - {file.name for file in before.files}
    (stem,) = {name.partition("-axis-")[0] for name in added}
    assert stem == Context.of(plain[0]).slug
    assert sorted(name.removeprefix(f"{stem}-axis-") for name in added) == [
        "steps-none.pdf",
        "steps-none.png",
        "steps.csv",
        "steps.md",
        "steps.tex",
        "steps.txt",
    ]
    assert all(file.exists() for file in after.files)
    assert "percent by steps" in " ".join(after.text.split())
    assert write_report(tmp_path / "swept") == after


def test_a_report_of_one_context_has_only_its_axes(tmp_path: Path) -> None:
    half = swept("sep", "steps", (5, 8), poison_ratio=0.5)
    other = swept("sep", "steps", (5, 8), craft_seed=1)
    records = controls() + half + swept("sep", "steps", (5, 8)) + other
    folder = write_records(tmp_path, records)
    report = write_report(folder, [Context.of(half[0])])
    tables = {file.stem for file in report.files if "-axis-" in file.name and file.suffix == ".md"}
    assert {name.partition("-axis-")[2] for name in tables} == {"steps", "poison-ratio"}
    assert not any("craft1" in name for name in tables)

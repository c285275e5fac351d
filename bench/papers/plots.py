"""Pictures that published figures need and no ordinary report draws, from records alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.papers.study_tables import (
    Named,
    by_subject,
    cosine_note,
    doubts_of,
    never_correct,
    scale_of_studies,
)
from bench.record import CONTROL
from bench.reports.flags import Number, flags, settle
from bench.reports.plots import (
    BAND_NOTE,
    COLOURS,
    NAME_HEIGHT,
    SHORT_RUN,
    End,
    Style,
    brief,
    caption_figure,
    colour_bar,
    entitle,
    name_ends,
    plain_style,
    styles_of,
)
from bench.reports.summary import Column, Group, Record, Row, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

SEQUENTIAL = "Blues"
"""Darker is more, with any kind of colour vision."""
DARK = 0.6
"""Numbers on fields above this share of the range are white."""
AIM = "#D55E00"
"""Of the frame around the fields that a protection aims at."""
ACROSS = 3
"""Panels in a row."""
BAR_HEIGHT = 3.0
"""Most inches that a scale of colours is high, however many rows of panels there are."""
LEGIBLE = 12
"""Up to so many classes every field has its number where there is one panel."""
HELD_OUT = {
    "train_acc": ("train", Style(COLOURS[1])),
    "holdout_acc": ("held out", Style(COLOURS[0])),
    "test_acc": ("clean test", Style("#000000")),
}
"""The lines of a held-out figure: field of the curve, name, look."""
CROSS_PICTURE_NOTE = (
    "Accuracy on training images, with their true labels and without augmentation, after every "
    "epoch of a training on the clean ones; in brackets the share that was right after no epoch."
)
ONE_TRAINING_NOTE = "Lines: one training each."


def held_out_figure(summary: Summary, title: str) -> Figure:
    """Train, held-out and clean test accuracy by epoch, a panel a method and architecture."""
    panels = [
        (summary.method_label(row), column, group)
        for row in summary.rows
        for column in summary.columns
        if (group := summary.group(row, column)).done
    ]
    several = len(summary.columns) > 1
    names = [brief(f"{label} · {column}" if several else label) for label, column, _ in panels]
    heads, marked = _headed(summary, names, [group for *_, group in panels])
    with plain_style():
        figure, grid = _grid(len(panels), 1.9, legible=True)
        for axes, head, (*_, group) in zip(grid, heads, panels, strict=False):
            ends = []
            for field, (name, look) in HELD_OUT.items():
                points = _mean_curve(group, field)
                if points:
                    _line(axes, points, look)
                    ends.append(End(name, look, list(points.values())[-1]))
            axes.set_title(head)
            name_ends(axes, ends, gap=NAME_HEIGHT / 1.9)
        _percent_axes(grid[: len(panels)], "epoch", "accuracy (%)")
        entitle(figure, summary, title, marked)
    return figure


def confusion_figure(summary: Summary, aims: Sequence[int], title: str) -> Figure:
    """What clean test images of each class are taken for, a panel a method and architecture.

    Rows are true classes and sum to 100 %; seeds are added up. Frames stand around the classes
    that the protection aims at.
    """
    panels = [
        (summary.method_label(row), str(column), group)
        for row, column in _protected(summary)
        if (group := summary.group(row, column)).done
    ]
    several = len({label for label, *_ in panels}) > 1
    titles = [f"{brief(label)} · {column}" if several else column for label, column, _ in panels]
    heads, marked = _headed(summary, titles, [group for *_, group in panels])
    with plain_style():
        figure, grid = _grid(len(panels), 2.95)
        for number, (axes, (*_, group)) in enumerate(zip(grid, panels, strict=False)):
            shares, names = confusion_shares(group.done), group.done[0]["classes"]
            numbered = len(panels) == 1 and len(names) <= LEGIBLE
            _matrix(axes, shares, 100.0, "{:.0f}" if numbered else None)
            protected = group.done[0].get("protected_classes", range(len(names)))
            for true, aimed in enumerate(aims):
                if true in protected and aimed < len(names):
                    _frame(axes, true, aimed)
            size = 6 if len(panels) == 1 else 5
            axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
            shown = names if number % ACROSS == 0 else [""] * len(names)
            axes.set_yticks(range(len(names)), shown, fontsize=size)
            axes.set_title(heads[number])
            if number % ACROSS == 0:
                axes.set_ylabel("true class")
            if number + ACROSS >= len(panels):
                axes.set_xlabel("taken for")
        used = grid[: len(panels)]
        scale = colour_bar(
            figure, used[0].images[0], used, shrink=min(1.0, BAR_HEIGHT / figure.get_figheight())
        )
        scale.set_ylabel("share of the true class (%)", fontsize=7)
        notes = ["Rows sum to 100 %; darker is more."]
        notes += ["Framed: the class that a protected class is aimed at."] if aims else []
        entitle(figure, summary, title, [*notes, *marked])
    return figure


def cosine_figure(found: Named, title: str) -> Figure:
    """Absolute cosines between input gradients, a panel a method whose networks are compared."""
    cells = []
    for subject, record in found:
        between = record["values"]["between"]
        mean = "" if between is None else f": mean {between:.2f} between"
        cells.append(Number(brief(subject) + mean, doubts_of([record])))
    (heads,), marked = settle([cells])
    with plain_style():
        figure, grid = _grid(len(found), 3.0)
        for axes, head, (_, record) in zip(grid, heads, found, strict=False):
            _matrix(axes, np.array(record["values"]["cosines"]), 1.0, "{:.2f}")
            names = record["values"]["networks"]
            axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
            axes.set_yticks(range(len(names)), names, fontsize=6)
            axes.set_title(head)
        caption_figure(figure, title, [*scale_of_studies(found), cosine_note(found), *marked])
    return figure


def cross_training_figure(found: Named, title: str) -> Figure:
    """Accuracy on fixed training images during a clean training, a panel an architecture.

    Lines are means over seeds, bands reach from the lowest to the highest.
    """
    groups = by_subject(found)
    looks = styles_of(
        {label: label for _, one in found for label in one["values"]["never_correct"]}
    )
    cells = [
        Number(f"{subject} · n = {len(group)}", doubts_of(group))
        for subject, group in groups.items()
    ]
    (heads,), marked = settle([cells])
    with plain_style():
        figure, grid = _grid(len(groups), 2.3, legible=True)
        for axes, head, group in zip(grid, heads, groups.values(), strict=False):
            ends = []
            for label in group[0]["values"]["never_correct"]:
                curves: dict[int, list[float]] = {}
                for row in (row for one in group for row in one["values"]["curve"]):
                    curves.setdefault(row["epoch"], []).append(100 * row["sets"][label])
                points = {epoch: sum(v) / len(v) for epoch, v in sorted(curves.items())}
                _line(axes, points, looks[label])
                if len(group) > 1:
                    low, high = ([edge(curves[e]) for e in points] for edge in (min, max))
                    fill: dict[str, Any] = {"color": looks[label].colour, "alpha": 0.15}
                    axes.fill_between(list(points), low, high, linewidth=0, **fill)
                name = f"{brief(label, 14)} ({100 * never_correct(group, label).mean:.0f} %)"
                ends.append(End(name, looks[label], list(points.values())[-1]))
            name_ends(axes, ends, gap=NAME_HEIGHT / 2.3)
            axes.set_title(head)
        _percent_axes(grid[: len(groups)], "epoch of the clean training", "accuracy (%)")
        several = any(len(group) > 1 for group in groups.values())
        notes = [CROSS_PICTURE_NOTE, BAND_NOTE if several else ONE_TRAINING_NOTE, *marked]
        caption_figure(figure, title, [*scale_of_studies(found), *notes])
    return figure


def confusion_shares(records: Sequence[Record]) -> NDArray[np.float64]:
    """Confusion counts of several victims together, each row in percent of its true class."""
    counts = np.sum([np.array(one["confusion"], dtype=float) for one in records], axis=0)
    return 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def _headed(
    summary: Summary, names: Sequence[str], groups: Sequence[Group]
) -> tuple[list[str], list[str]]:
    """Names of panels with the marks of what they show, and what the marks mean."""
    cells = []
    for name, group in zip(names, groups, strict=True):
        first = group.done[0]
        control = summary.control(Row.of(first), Column.of(first))
        cells.append(Number(name, flags(group, control)))
    (heads,), marked = settle([cells])
    return heads, marked


def _protected(summary: Summary) -> list[tuple[Row, Any]]:
    """Rows and columns of all but the control."""
    rows = [row for row in summary.rows if row.method != CONTROL]
    return [(row, column) for row in rows for column in summary.columns]


def _grid(count: int, height: float, legible: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure with room for so many panels, the unused ones taken away.

    Args:
        count: of panels.
        height: of each, in inches.
        legible: whether names stand beside each panel, which takes room.
    """
    from matplotlib.figure import Figure

    across = min(count, 2 if legible and count in (2, 4) else ACROSS)
    down = math.ceil(count / across)
    width = 7.2 if across > 1 else 4.4
    figure = Figure(figsize=(width, 1.0 + height * down), layout="constrained")
    grid = list(figure.subplots(down, across, squeeze=False).flat)
    for axes in grid[count:]:
        axes.remove()
    return figure, grid


def _mean_curve(group: Group, field: str) -> dict[int, float]:
    """By epoch the mean of a group's victims, in percent."""
    values: dict[int, list[float]] = {}
    for record in group.done:
        for point in record["curve"]:
            if point.get(field) is not None:
                values.setdefault(point["epoch"], []).append(100 * point[field])
    return {epoch: sum(found) / len(found) for epoch, found in sorted(values.items())}


def _line(axes: Axes, points: Mapping[int, float], look: Style) -> None:
    axes.plot(
        list(points),
        list(points.values()),
        color=look.colour,
        linestyle=look.dashes,
        linewidth=1.4,
        marker="o" if len(points) <= SHORT_RUN else "",
        markersize=2.2,
    )


def _percent_axes(panels: Sequence[Axes], across: str, down: str) -> None:
    """0 to 100 and the same epochs everywhere."""
    from matplotlib.ticker import MaxNLocator

    last = max(axes.get_xlim()[1] for axes in panels)
    first = min(axes.get_xlim()[0] for axes in panels)
    for axes in panels:
        axes.set_ylim(0, 100)
        axes.set_yticks(range(0, 101, 20))
        axes.set_xlim(first, last)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.set_xlabel(across)
        place = axes.get_subplotspec()
        if place is not None and place.is_first_col():
            axes.set_ylabel(down)


def _matrix(axes: Axes, values: NDArray[np.float64], top: float, text: str | None) -> None:
    """Fields from white at zero to dark at `top`, with their numbers if there is a format."""
    axes.imshow(values, cmap=SEQUENTIAL, vmin=0, vmax=top, interpolation="nearest")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if text is None:
        return
    for (down, across), value in np.ndenumerate(values):
        colour = "white" if value > DARK * top else "#333333"
        axes.text(across, down, text.format(value), color=colour, ha="center", va="center", size=6)


def _frame(axes: Axes, down: int, across: int) -> None:
    from matplotlib.patches import Rectangle

    corner = (across - 0.46, down - 0.46)
    axes.add_patch(
        Rectangle(corner, 0.92, 0.92, fill=False, edgecolor=AIM, linewidth=0.9, zorder=3)
    )

"""Pictures of axes: accuracy along a setting, as in SEP's Figure 5, and surrogates by victims."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.record import CLEAN_PART, CONTROL
from bench.reports.axes import CLEAN_PART_NOTE, EPSILON, POISON_RATIO, Axis, Line, Value
from bench.reports.cells import defense_phrase, verdict
from bench.reports.flags import FLAGS, Number, flags, settle
from bench.reports.notes import chance
from bench.reports.plots import (
    CHANCE_STYLE,
    CONTROL_STYLES,
    GREY,
    LONGEST_LABEL,
    NAME_HEIGHT,
    End,
    Style,
    brief,
    entitle,
    marks_of,
    name_ends,
    panel_height,
    plain_style,
    styles_of,
    victim_seeds,
)
from bench.reports.summary import Column, Group, Spread
from bench.reports.table import decimals

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AROUND = 0.5
"""Inches above and below a panel for what is written there."""
MOST_TICKS = 8
FIELDS_ACROSS = 12
"""About so many fields of matrices stand side by side."""
LETTER = 0.062
"""Width of a letter of a tick's label in inches."""
LOG_SPAN = 10
"""Settings whose largest value is at least so many times the least stand on a logarithmic axis."""
PALE = 0.5
"""The share of clean's level from which a field of a matrix is pale enough for dark digits."""

DOT = 3
"""Size of the dots of lines."""

HOLLOW_NOTE = "Hollow: the dots that the marks behind a line's name are about."
GAP_NOTE = "A line is broken where a cell failed or was not run."
COLOUR_NOTE = "The darker the lower; framed: surrogate and victim of one architecture."


def axis_styles(axes: Iterable[Axis]) -> dict[str, Style]:
    """A style for every line's label, the same in all figures of one report."""
    return styles_of({line.label: line.method for axis in axes for line in axis.lines})


def axis_figures(axis: Axis, looks: Mapping[str, Style] | None = None) -> dict[str, Figure]:
    """Accuracy along an axis, a figure a defense; those under which no cell is done are left out.

    Args:
        axis: what to draw.
        looks: a style for each label of a line; `axis_styles` of this axis by default.

    Returns:
        Figures by the label of their defense.
    """
    looks = axis_styles([axis]) if looks is None else looks
    figures = {}
    for name, label in axis.defenses:
        lines = [line for line in axis.lines if line.defense == (name, label)]
        columns = [c for c in axis.columns if any(_done(line, c) for line in lines)]
        if not columns:
            continue
        title = defense_phrase(axis.summary, (name, label))
        if axis.is_matrix:
            figures[label] = _matrices(axis, lines, columns, title)
        else:
            figures[label] = _panels(axis, lines, columns, looks, title)
    return figures


def _done(line: Line, column: Column) -> bool:
    return any(line.group(value, column).done for value in line.values)


def _accuracy(group: Group) -> Spread:
    """Final clean test accuracy in percent."""
    spread = group.spread("final_test_acc")
    return Spread(100 * spread.mean, 100 * spread.sd, spread.n)


def _level(spreads: Iterable[Spread]) -> float:
    """The top of some means and their deviations."""
    return max((s.mean + (s.sd if s.n > 1 else 0) for s in spreads if s.n), default=0.0)


# Lines.


@dataclass(frozen=True)
class Point:
    """A number of a line: where it stands, what it is, and the marks of the doubts about it."""

    x: float
    spread: Spread
    marks: str


def _panels(
    axis: Axis,
    lines: Sequence[Line],
    columns: Sequence[Column],
    looks: Mapping[str, Style],
    title: str,
) -> Figure:
    """A panel an architecture; names stand beside the ends of lines."""
    from matplotlib.figure import Figure

    with plain_style():
        names = max(len(line.label) for line in lines)
        across = min(len(columns), 1 if names > LONGEST_LABEL else 2)
        down = math.ceil(len(columns) / across)
        inside = panel_height(1.75, len(lines) + 2)
        width = 7.2 if across > 1 else 5.6
        figure = Figure(figsize=(width, 1.3 + (inside + AROUND) * down), layout="constrained")
        grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        controls = {column: axis.control(lines[0].defense, column) for column in columns}
        cells = {
            (line.label, value, column): line.group(value, column)
            for line in lines
            for value in axis.values
            for column in columns
        }
        everything = cells | {(CONTROL, None, column): controls[column] for column in columns}
        marks, marked = marks_of(
            {
                place: flags(group, controls[place[-1]])
                for place, group in everything.items()
                if group.done
            }
        )
        points = {
            place: Point(_x(axis, place[1]), _accuracy(group), marks.get(place, ""))
            for place, group in cells.items()
        }
        level = _level(map(_accuracy, everything.values()))
        top = 1.04 * max(level, 100 * chance(axis.summary))
        grid[0][0].set_ylim(0, top)
        _scale_across(grid[0][0], axis)
        for column, axes in zip(columns, grid.flat, strict=False):
            axes.set_title(str(column))
            axes.tick_params(labelbottom=True)
            control = _accuracy(controls[column])
            ends = [*_draw_control(axes, axis, control, marks.get((CONTROL, None, column), ""))]
            for line in lines:
                along = [points[line.label, value, column] for value in axis.values]
                ends += _draw_line(axes, line, along, looks[line.label])
            gap, within = NAME_HEIGHT / 100 * top / inside, (0.01 * top, 0.99 * top)
            name_ends(axes, ends, gap, within, longest=2 * LONGEST_LABEL)
        for axes in list(grid.flat)[len(columns) :]:
            axes.set_axis_off()
        for line in grid:
            line[0].set_ylabel("clean test accuracy (%)")
        for place, axes in enumerate(grid.flat):
            if place + across >= len(columns):
                axes.set_xlabel(_words_across(axis))
        counts = [len(group.done) for group in cells.values()]
        known = any(control.done for control in controls.values())
        notes = [*_line_notes(axis, lines, counts, known)]
        notes += [HOLLOW_NOTE] if any(point.marks for point in points.values()) else []
        heading = f"accuracy by {axis.title} · {title} · {victim_seeds(counts)}"
        entitle(figure, axis.summary, heading, [*notes, *marked])
    return figure


def _line_notes(
    axis: Axis, lines: Iterable[Line], counts: Sequence[int], control: bool
) -> Iterator[str]:
    several = max(counts) > 1
    spread = "; bars and grey band: ± sample standard deviation" if several else ""
    yield f"Dots: mean of n = {victim_seeds(counts)}{spread}."
    yield f"Dashed: {CONTROL}; dotted: chance." if control else "Dotted: chance."
    if any(line.method == CLEAN_PART for line in lines):
        yield CLEAN_PART_NOTE
    if 0 in counts:
        yield GAP_NOTE
    if _is_logarithmic(axis):
        yield "Logarithmic axis."


def _words_across(axis: Axis) -> str:
    unit = {EPSILON: " (grey levels of 255)", POISON_RATIO: " (%)"}
    return axis.title + unit.get(axis.name, "")


def _x(axis: Axis, value: Value) -> float:
    return 100 * float(value) if axis.name == POISON_RATIO else float(value)


def _is_logarithmic(axis: Axis) -> bool:
    least, most = (float(edge(map(float, axis.values))) for edge in (min, max))
    free = axis.name not in (EPSILON, POISON_RATIO)
    return free and least > 0 and most >= LOG_SPAN * least


def _scale_across(axes: Axes, axis: Axis) -> None:
    """Ticks at the values; all panels share them."""
    from matplotlib.ticker import NullLocator

    values = axis.values
    if _is_logarithmic(axis):
        axes.set_xscale("log")
    shown = values[:: math.ceil(len(values) / MOST_TICKS)]
    places, texts = [_x(axis, value) for value in shown], [axis.short(value) for value in shown]
    if axis.name == POISON_RATIO:
        axes.set_xlim(-3, 103)
        if values[0]:
            places, texts = [0, *places], ["0", *texts]
    axes.set_xticks(places, texts)
    axes.xaxis.set_minor_locator(NullLocator())


def _draw_control(axes: Axes, axis: Axis, control: Spread, marks: str) -> Iterator[End]:
    """Clean across the panel with a band of its deviation, and chance."""
    level = 100 * chance(axis.summary)
    axes.axhline(level, color=GREY, linestyle=":", linewidth=1)
    yield End("chance", CHANCE_STYLE, level)
    if not control.n:
        return
    look = CONTROL_STYLES[CONTROL]
    axes.axhline(control.mean, color=look.colour, linestyle=look.dashes, linewidth=0.9, zorder=2.5)
    if control.n > 1:
        low, high = control.mean - control.sd, control.mean + control.sd
        axes.axhspan(low, high, color=look.colour, alpha=0.1, linewidth=0)
    if axis.name == POISON_RATIO:
        # The control is what every method comes to where nothing is protected.
        axes.plot([0], [control.mean], "o", color=look.colour, markersize=DOT)
        _draw_hollow(axes, [(0, control.mean)] if marks else [], look, 3)
    yield End(CONTROL, look, control.mean, marks)


def _draw_line(axes: Axes, line: Line, points: Sequence[Point], look: Style) -> Iterator[End]:
    """A method's means, broken at values that are missing, hollow where they are in doubt."""
    there = [point for point in points if point.spread.n]
    if not there:
        return
    height = 4 if line.method in CONTROL_STYLES else 3
    axes.plot(
        [point.x for point in points],
        [point.spread.mean for point in points],  # NaN where there is none
        color=look.colour,
        linestyle=look.dashes,
        linewidth=1.4,
        marker="o",
        markersize=DOT,
        zorder=height,
    )
    bars = [point for point in there if point.spread.n > 1]
    if bars:
        axes.errorbar(
            [point.x for point in bars],
            [point.spread.mean for point in bars],
            yerr=[point.spread.sd for point in bars],
            fmt="none",
            ecolor=look.colour,
            elinewidth=0.9,
            capsize=1.8,
            capthick=0.9,
            alpha=0.7,
        )
    _draw_hollow(axes, [(p.x, p.spread.mean) for p in there if p.marks], look, height)
    marks = "".join(flag.mark for flag in FLAGS if any(flag.mark in p.marks for p in there))
    yield End(line.label, look, there[-1].spread.mean, marks)


def _draw_hollow(
    axes: Axes, places: Sequence[tuple[float, float]], look: Style, height: float
) -> None:
    """White inside of dots that a line drawn at this height has."""
    if places:
        axes.scatter(
            *zip(*places, strict=True),
            s=DOT**2,
            facecolor="white",
            edgecolor=look.colour,
            linewidth=1,
            zorder=height + 0.5,
        )


# Matrices.


def _matrices(axis: Axis, lines: Sequence[Line], columns: Sequence[Column], title: str) -> Figure:
    """A panel a method, surrogates down and victims across, with the control above them."""
    from matplotlib.figure import Figure

    with plain_style():
        across = min(len(lines), max(1, FIELDS_ACROSS // (len(columns) + 1)))
        down = math.ceil(len(lines) / across)
        rows = len(axis.values) + 1
        beside, field = (
            LETTER * max(map(len, names)) + 0.15
            for names in (map(axis.text, axis.values), map(str, columns))
        )
        size = (
            max(4.4, 0.3 + beside + across * (0.15 + max(field, 0.6) * len(columns))),
            1.2 + down * (0.35 * rows + 0.75),
        )
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(down, across, squeeze=False, sharey=True)
        controls = [axis.control(lines[0].defense, column) for column in columns]
        cells = {
            line.label: [[line.group(v, column) for column in columns] for v in axis.values]
            for line in lines
        }
        everything = [group for table in cells.values() for row in table for group in row]
        level = _level(Spread(s.mean, 0, s.n) for s in map(_accuracy, [*controls, *everything]))
        tables = [[controls, *cells[line.label]] for line in lines]
        texts, marked = settle(
            [
                _text(group, control)
                for row in table
                for group, control in zip(row, controls, strict=True)
            ]
            for table in tables
        )
        for line, table, told, axes in zip(lines, tables, texts, grid.flat, strict=False):
            axes.set_title(brief(line.label, 2 * LONGEST_LABEL))
            _draw_matrix(axes, table, told, level)
            _frame_equals(axes, axis, columns)
            axes.set_xticks(range(len(columns)), list(map(str, columns)))
            axes.set_yticks(range(rows), [CONTROL, *map(axis.text, axis.values)])
        for axes in list(grid.flat)[len(lines) :]:
            axes.set_axis_off()
        for row in grid:
            row[0].set_ylabel("surrogate")
        for place, axes in enumerate(grid.flat):
            if place + across >= len(lines):
                axes.set_xlabel("victim")
        counts = [len(group.done) for group in everything]
        spread = " ± sample standard deviation" if max(counts) > 1 else ""
        numbers = f"Numbers: percent, mean of n = {victim_seeds(counts)}{spread}."
        heading = f"accuracy by {axis.title} and victim · {title}"
        entitle(figure, axis.summary, heading, [numbers, COLOUR_NOTE, *marked])
    return figure


def _text(group: Group, control: Group) -> str | Number:
    """What stands in a field."""
    spread = _accuracy(group)
    if not spread.n:
        return verdict(group)
    deviation = f"\n± {spread.sd:.1f}" if spread.n > 1 else ""
    return Number(f"{decimals(spread.mean, 1)}{deviation}", flags(group, control))


def _draw_matrix(
    axes: Axes, table: Sequence[Sequence[Group]], texts: Iterable[str], level: float
) -> None:
    """Fields with their numbers, the control's above the others; what is missing stays white."""
    import numpy as np

    means = np.array([[_accuracy(group).mean for group in row] for row in table])
    axes.imshow(means, cmap="Blues_r", vmin=0, vmax=1.15 * level, aspect="auto")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.axhline(0.5, color="white", linewidth=4, zorder=1)  # the control stands apart
    text_of = iter(texts)
    for down, row in enumerate(table):
        for across, group in enumerate(row):
            spread, text = _accuracy(group), next(text_of)
            dark = bool(spread.n) and spread.mean < PALE * level
            colour = "white" if dark else "black" if spread.n else GREY
            axes.text(across, down, text, color=colour, fontsize=7, ha="center", va="center")


def _frame_equals(axes: Axes, axis: Axis, columns: Sequence[Column]) -> None:
    """A frame where the victim has the surrogate's architecture and width."""
    from matplotlib.patches import Rectangle

    for down, value in enumerate(axis.values, start=1):
        for across, column in enumerate(columns):
            if axis.text(value) == str(column):
                corner, look = (
                    (across - 0.46, down - 0.4),
                    {"edgecolor": "#D55E00", "linewidth": 1.2},
                )
                axes.add_patch(Rectangle(corner, 0.92, 0.8, fill=False, **look))

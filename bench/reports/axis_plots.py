"""Pictures of axes: accuracy along a setting, as in SEP's Figure 5, and surrogates by victims."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.record import CLEAN_PART, CONTROL
from bench.reports.axes import CLEAN_PART_NOTE, EPSILON, POISON_RATIO, Axis, Line, Value
from bench.reports.cells import verdict
from bench.reports.flags import Number, flags, settle
from bench.reports.notes import chance
from bench.reports.plots import (
    CONTROL_STYLES,
    GREY,
    LONGEST_LABEL,
    NAME_HEIGHT,
    Style,
    brief,
    entitle,
    move_apart,
    plain_style,
    styles_of,
)
from bench.reports.summary import Column, Group, Spread

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
        title = "no defense" if name == "none" else f"defense {label}"
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
        inside = max(1.75, 1.1 * NAME_HEIGHT / 100 * (len(lines) + 2))
        width = 7.2 if across > 1 else 5.6
        figure = Figure(figsize=(width, 1.3 + (inside + AROUND) * down), layout="constrained")
        grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        controls = {c: _accuracy(axis.control(lines[0].defense, c)) for c in columns}
        cells = {
            (line.label, value, column): _accuracy(line.group(value, column))
            for line in lines
            for value in axis.values
            for column in columns
        }
        level = _level([*controls.values(), *cells.values()])
        top = 1.04 * max(level, 100 * chance(axis.summary))
        grid[0][0].set_ylim(0, top)
        _scale_across(grid[0][0], axis)
        for column, axes in zip(columns, grid.flat, strict=False):
            axes.set_title(str(column))
            axes.tick_params(labelbottom=True)
            ends = [*_draw_control(axes, axis, controls[column])]
            for line in lines:
                spreads = [cells[line.label, value, column] for value in axis.values]
                ends += _draw_line(axes, axis, line, spreads, looks[line.label])
            _name_ends(axes, ends, gap=NAME_HEIGHT / 100 * top / inside, top=top)
        for axes in list(grid.flat)[len(columns) :]:
            axes.set_axis_off()
        for line in grid:
            line[0].set_ylabel("clean test accuracy (%)")
        for place, axes in enumerate(grid.flat):
            if place + across >= len(columns):
                axes.set_xlabel(_words_across(axis))
        counts = [spread.n for spread in cells.values() if spread.n]
        gaps = any(not spread.n for spread in cells.values())
        notes = _line_notes(axis, lines, counts, gaps, bool(_level(controls.values())))
        entitle(
            figure, axis.summary, f"accuracy by {axis.title} · {title} · {_number(counts)}", notes
        )
    return figure


def _number(counts: Sequence[int]) -> str:
    """How many victims stand behind a mean."""
    least, most = min(counts), max(counts)
    told = f"{most}" if least == most else f"{least} to {most}"
    return f"{told} victim seed{'' if told == '1' else 's'}"


def _line_notes(
    axis: Axis, lines: Iterable[Line], counts: Sequence[int], gaps: bool, control: bool
) -> Iterator[str]:
    several = max(counts) > 1
    spread = "; bars and grey band: ± sample standard deviation" if several else ""
    yield f"Dots: mean of n = {_number(counts)}{spread}."
    yield f"Dashed: {CONTROL}; dotted: chance." if control else "Dotted: chance."
    if any(line.method == CLEAN_PART for line in lines):
        yield CLEAN_PART_NOTE
    if gaps:
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


@dataclass(frozen=True)
class _End:
    """Where a line ends; without a place, at the right edge."""

    label: str
    colour: str
    x: float | None
    percent: float


def _draw_control(axes: Axes, axis: Axis, control: Spread) -> Iterator[_End]:
    """Clean across the panel with a band of its deviation, and chance."""
    level = 100 * chance(axis.summary)
    axes.axhline(level, color=GREY, linestyle=":", linewidth=1)
    yield _End("chance", GREY, None, level)
    if not control.n:
        return
    look = CONTROL_STYLES[CONTROL]
    axes.axhline(control.mean, color=look.colour, linestyle=look.dashes, linewidth=0.9, zorder=2.5)
    if control.n > 1:
        low, high = control.mean - control.sd, control.mean + control.sd
        axes.axhspan(low, high, color=look.colour, alpha=0.1, linewidth=0)
    if axis.name == POISON_RATIO:
        # The control is what every method comes to where nothing is protected.
        axes.plot([0], [control.mean], "o", color=look.colour, markersize=3)
    yield _End(CONTROL, look.colour, None, control.mean)


def _draw_line(
    axes: Axes, axis: Axis, line: Line, spreads: Sequence[Spread], look: Style
) -> Iterator[_End]:
    """A method's means, broken at values that are missing."""
    xs, ys = [_x(axis, value) for value in axis.values], [spread.mean for spread in spreads]
    there = [(x, spread) for x, spread in zip(xs, spreads, strict=True) if spread.n]
    if not there:
        return
    axes.plot(
        xs,
        ys,  # NaN where there is none
        color=look.colour,
        linestyle=look.dashes,
        linewidth=1.4,
        marker="o",
        markersize=3,
        zorder=4 if line.method in CONTROL_STYLES else 3,
    )
    bars = [(x, spread) for x, spread in there if spread.n > 1]
    if bars:
        axes.errorbar(
            [x for x, _ in bars],
            [spread.mean for _, spread in bars],
            yerr=[spread.sd for _, spread in bars],
            fmt="none",
            ecolor=look.colour,
            elinewidth=0.9,
            capsize=1.8,
            capthick=0.9,
            alpha=0.7,
        )
    yield _End(line.label, look.colour, there[-1][0], there[-1][1].mean)


def _name_ends(axes: Axes, ends: Iterable[_End], gap: float, top: float) -> None:
    """Write each name beside the end of its line, `gap` apart where lines meet."""
    places = sorted(ends, key=lambda end: (-end.percent, end.label))
    wanted = [end.percent for end in places]
    heights = move_apart(wanted, gap=gap, low=0.01 * top, high=0.99 * top)
    beside = axes.get_yaxis_transform()
    for end, height in zip(places, heights, strict=True):
        axes.annotate(
            brief(end.label, 2 * LONGEST_LABEL),
            xy=(1.0 if end.x is None else end.x, end.percent),
            xycoords=beside if end.x is None else "data",
            xytext=(1.07, height),
            textcoords=beside,
            color=end.colour,
            fontsize=7,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": end.colour,
                "linewidth": 0.6,
                "linestyle": (0, (1, 1.5)),  # no continuation of the line
                "shrinkA": 1,
                "shrinkB": 1,
                "relpos": (0, 0.5),
            },
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
        counts = [len(group.done) for group in everything if group.done]
        spread = " ± sample standard deviation" if max(counts) > 1 else ""
        notes = [f"Numbers: percent, mean of n = {_number(counts)}{spread}.", COLOUR_NOTE, *marked]
        heading = f"accuracy by {axis.title} and victim · {title}"
        entitle(figure, axis.summary, heading, notes)
    return figure


def _text(group: Group, control: Group) -> str | Number:
    """What stands in a field."""
    spread = _accuracy(group)
    if not spread.n:
        return verdict(group)
    deviation = f"\n± {spread.sd:.1f}" if spread.n > 1 else ""
    return Number(f"{spread.mean:.1f}{deviation}", flags(group, control))


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

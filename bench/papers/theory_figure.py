"""A picture of the Gaussian mixture: what the best rule for blurred classes is worth, by blur."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.record import CONTROL
from bench.reports.plots import (
    CHANCE_STYLE,
    COLOURS,
    CONTROL_STYLES,
    GREY,
    End,
    Style,
    caption_figure,
    name_ends,
    plain_style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

ACROSS = 2
"""Panels side by side."""
PANEL_HEIGHT = 1.95
NAME_HEIGHT = 6.0
"""Height of a name in percent of accuracy, for panels this high."""
LOWEST, HIGHEST, CHANCE = 45, 102.5, 50
"""In percent; the axes begin lower if something is drawn there."""

TITLE = "Gaussian mixture blurred class by class · accuracy of the protected mixture's Bayes rule"


@dataclass(frozen=True)
class _Panel:
    """Some of the rows, and what to draw of them."""

    title: str
    across: str
    data: str
    rows: Sequence[Row]
    bounded: bool = False


def theory_figure(values: Mapping[str, Any]) -> Figure:
    """Accuracy by blur, a line a dimension, in panels that share their axes.

    Args:
        values: as `bench.gaussian_mixture.measure` returns them, or as read from their JSON.
    """
    from matplotlib.figure import Figure

    panels = _panels(values["rows"])
    dimensions = sorted({row["dimension"] for row in values["rows"]})
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(dimensions)}
    down = math.ceil(len(panels) / ACROSS)
    with plain_style():
        figure = Figure(figsize=(7.2, 1.0 + (PANEL_HEIGHT + 0.35) * down), layout="constrained")
        grid = figure.subplots(down, ACROSS, sharex=True, sharey=True, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            _draw(axes, panel, colours)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel("accuracy (%)")
        grid[0, 0].set_ylim(_lowest(values["rows"]), HIGHEST)
        caption_figure(figure, TITLE, [_caption(values)])
    return figure


def _panels(rows: Sequence[Row]) -> list[_Panel]:
    """Clean data for each blur of class -1, then the control, then what the trainer sees."""
    apart = [row for row in rows if not row["shared"]]
    fixed = sorted({row["blur_minus"] for row in apart})
    panels = []
    for blur in fixed:
        known = "not blurred" if blur == 0 else f"blurred by {blur:g}"
        title = f"clean data · class −1 {known}"
        members = [row for row in apart if row["blur_minus"] == blur]
        panels.append(_Panel(title, "blur of class +1", "clean", members, bounded=True))
    control = [row for row in rows if row["shared"]]
    if control:
        title = "clean data · control: both classes blurred alike"
        panels.append(_Panel(title, "blur of both classes", "clean", control))
    if fixed:
        title = panels[0].title.replace("clean", "protected")
        panels.append(_Panel(title, "blur of class +1", "protected", panels[0].rows))
    return panels


def _lowest(rows: Sequence[Row]) -> float:
    """Where the axes begin, in percent."""
    drawn = [100 * share for row in rows for share in row["exact"].values()]
    sampled = [part for row in rows for part in (row["sampled"] or {}).values()]
    drawn += [100 * part["low"] for part in sampled]
    return min(LOWEST, min(drawn) - 2)


def _draw(axes: Axes, panel: _Panel, colours: Mapping[int, str]) -> None:
    clean = CONTROL_STYLES[CONTROL]
    best = 100 * panel.rows[0]["clean_rule"]["clean"]
    axes.axhline(CHANCE, color=GREY, linestyle=":", linewidth=1, zorder=1)
    axes.axhline(best, color=clean.colour, linestyle=clean.dashes, linewidth=0.8, zorder=4)
    ends = [End("clean Bayes", clean, best), End("chance", CHANCE_STYLE, CHANCE)]
    for dimension, colour in colours.items():
        line = [row for row in panel.rows if row["dimension"] == dimension]
        line.sort(key=lambda row: row["blur_plus"])
        if line:
            _draw_line(axes, panel, line, colour)
            last = 100 * line[-1]["exact"][panel.data]
            ends.append(End(f"d = {dimension}", Style(colour), last))
    name_ends(axes, ends, NAME_HEIGHT, within=(LOWEST + 2, HIGHEST))
    axes.set_title(panel.title)
    axes.set_xlabel(panel.across)
    axes.tick_params(labelbottom=True)


def _draw_line(axes: Axes, panel: _Panel, line: Sequence[Row], colour: str) -> None:
    """One dimension: exact values joined, drawn points as dots, the bound in fine dots."""
    axes.plot(
        [row["blur_plus"] for row in line],
        [100 * row["exact"][panel.data] for row in line],
        color=colour,
        linewidth=1.3,
        zorder=3,
    )
    if panel.bounded:
        axes.plot(
            [row["blur_plus"] for row in line],
            # Nothing is drawn where the bound says nothing.
            [100 * row["bound"] if row["bound"] < 1 else math.nan for row in line],
            color=colour,
            linewidth=0.7,
            linestyle=(0, (1, 1)),
            zorder=2,
        )
    dots = [(row["blur_plus"], row["sampled"][panel.data]) for row in line if row["sampled"]]
    middle = [100 * dot["accuracy"] for _, dot in dots]
    axes.errorbar(
        [blur for blur, _ in dots],
        middle,
        yerr=[
            [at - 100 * dot["low"] for at, (_, dot) in zip(middle, dots, strict=True)],
            [100 * dot["high"] - at for at, (_, dot) in zip(middle, dots, strict=True)],
        ],
        fmt="o",
        color=colour,
        markersize=2.6,
        elinewidth=0.8,
        zorder=5,
    )


def _caption(values: Mapping[str, Any]) -> str:
    settings = values["settings"]
    return (
        f"y = ±1, x given y is N(y mu, I) in d dimensions, |mu| = {settings['norm']:g}, "
        f"{settings['mean']} mean; a class is multiplied by the tridiagonal matrix of its blur. "
        "Lines: exact, by inversion of the characteristic function; dots: Monte Carlo, "
        f"{settings['draws']} points, with 95 % intervals; fine dots: Chernoff's upper bound. "
        "Dashed: the most that any rule has on clean data; dotted: chance."
    )

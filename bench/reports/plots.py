"""Pictures from records: accuracy by epoch, as in SEP's Figure 3, and final accuracies."""

from __future__ import annotations

import textwrap
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.files import write_with
from bench.record import CLEAN_PART, CONTROL
from bench.reports.cells import defense_head, defense_phrase, verdict
from bench.reports.flags import Flag, Number, flags, settle
from bench.reports.notes import chance, known, scale
from bench.reports.summary import Column, Group, Row, Summary
from bench.reports.table import decimals
from bench.terminal import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure, SubFigure

DPI = 150
GREY = "#777777"
SHORT_RUN = 20
"""Up to so many epochs every one of them is marked with a dot."""

LONGEST_LABEL = 24
LETTERS_PER_INCH = 17.5
"""How much of a caption fits into a line."""
USUAL_LINES, LINE_HEIGHT = 4, 0.13
"""Lines of a caption that every figure has room for, and the height of one more, in inches."""
LEADER = 18
"""Points between a panel and a name beside it, enough for the look of the line that it names."""
PAGE_LINES, PANEL_GAP = 48, 1.4
"""Lines of the overview above each other, and how many of them are between two of its panels."""
LINE, LETTER = 0.21, 0.1
"""Height of a line of the overview, and width of a letter of a panel's name, in inches."""
NAME_HEIGHT = 12.9
"""Height of a method's name in percent of a panel one inch high."""

BAND_NOTE = "Lines: mean of the seeds; bands: lowest to highest."
OVERVIEW_NOTE = "Dots: seeds; bars and numbers: their mean; dashed: the control; dotted: chance."

PANELS = {"train_acc": "train accuracy", "test_acc": "clean test accuracy"}

# Okabe and Ito's colours, told apart with any kind of colour vision, without black (the control)
# and yellow (too pale for a line); then three of Paul Tol's for longer lists.
COLOURS = (
    "#D55E00",
    "#0072B2",
    "#009E73",
    "#E69F00",
    "#56B4E9",
    "#CC79A7",
    "#882255",
    "#999933",
    "#332288",
)
DASHES: tuple[Any, ...] = (
    "-",
    (0, (6, 1.5, 1.5, 1.5)),
    (0, (2.5, 1)),
    (0, (1, 1)),
    (0, (9, 2)),
)
"""Line styles, for when the colours have all been used; see `nth_style` for what follows."""


@dataclass(frozen=True)
class Style:
    """How the lines and dots of a method look."""

    colour: str
    dashes: Any = "-"


CONTROL_STYLES = {
    CONTROL: Style("#000000", (0, (4, 2))),
    CLEAN_PART: Style("#000000", (0, (1.5, 1))),
    "sham": Style("#555555", (0, (6, 1.5, 1.5, 1.5))),
    "noise": Style("#999999"),
}
CHANCE_STYLE = Style(GREY, ":")


def nth_style(place: int) -> Style:
    """A look for each of any number of lines: all colours solid, then all of them dashed, ..."""
    cycle, colour = divmod(place, len(COLOURS))
    # Beyond the dashes that are easy to tell apart: a dash and a growing number of dots.
    more = (0, (6, 1.5, *(1.5, 1.5) * (cycle - len(DASHES) + 2)))
    return Style(COLOURS[colour], DASHES[cycle] if cycle < len(DASHES) else more)


def styles(summaries: Iterable[Summary]) -> dict[str, Style]:
    """A style for every method label, the same in all figures of one report."""
    return styles_of(
        {summary.method_label(row): row.method for summary in summaries for row in summary.rows}
    )


def styles_of(labels: Mapping[str, str]) -> dict[str, Style]:
    """A style for every label, given the name of its method."""
    chosen = {}
    for label in sorted(labels):
        name = labels[label]
        if name in CONTROL_STYLES:
            chosen[label] = CONTROL_STYLES[name]
            continue
        used = sum(labels[other] not in CONTROL_STYLES for other in chosen)
        chosen[label] = nth_style(used)
    return chosen


def curve_figures(summary: Summary, looks: Mapping[str, Style] | None = None) -> dict[str, Figure]:
    """Accuracy by epoch, a figure a defense; defenses under which no cell is done are left out.

    Args:
        summary: of one context.
        looks: a style for each method label; `styles` of this context by default.

    Returns:
        Figures by the label of their defense.
    """
    looks = styles([summary]) if looks is None else looks
    figures = {}
    for name, label in summary.defenses:
        rows = [row for row in summary.rows if summary.defense_of(row) == (name, label)]
        columns = _with_results(summary, rows)
        if columns:
            title = defense_phrase(summary, (name, label))
            figures[label] = _curves(summary, rows, columns, looks, title)
    return figures


def _with_results(summary: Summary, rows: Iterable[Row]) -> list[Column]:
    rows = list(rows)
    return [c for c in summary.columns if any(summary.group(row, c).done for row in rows)]


def _curves(
    summary: Summary,
    rows: Sequence[Row],
    columns: Sequence[Column],
    looks: Mapping[str, Style],
    title: str,
) -> Figure:
    """Two panels an architecture: train accuracy, clean test accuracy."""
    from matplotlib.figure import Figure

    cells = {
        (row, column): summary.group(row, column)
        for column in columns
        for row in rows
        if summary.group(row, column).done
    }
    marks, marked = marks_of(
        {place: flags(group, summary.control(*place)) for place, group in cells.items()}
    )
    level = 100 * chance(summary)
    with plain_style():
        names = [1 + sum(place == column for _, place in cells) for column in columns]
        heights = [panel_height(2.3 if len(columns) < 3 else 1.9, count) for count in names]
        figure = Figure(figsize=(7.2, 1.1 + sum(heights)), layout="constrained")
        grid = figure.subplots(
            len(columns),
            len(PANELS),
            sharex=True,
            sharey=True,
            squeeze=False,
            height_ratios=heights,
        )
        for column, line, height in zip(columns, grid, heights, strict=True):
            groups = {row: group for (row, place), group in cells.items() if place == column}
            ends: list[End] = []
            for axes, field in zip(line, PANELS, strict=True):
                means = _draw_lines(axes, summary, groups, looks, field)
                axes.axhline(level, color=GREY, linestyle=":", linewidth=1)
                ends = [End("chance", CHANCE_STYLE, level)]
                for row, mean in means.items():
                    label = summary.method_label(row)
                    ends.append(End(label, looks[label], mean, marks[row, column]))
            # Only the panel on the right, of test accuracy, has room beside it.
            name_ends(line[-1], ends, gap=NAME_HEIGHT / height)
            line[0].set_ylabel(f"{column}\naccuracy (%)")
        for axes, name in zip(grid[0], PANELS.values(), strict=True):
            axes.set_title(name)
        for axes in grid[-1]:
            axes.set_xlabel("epoch")
        _scale_axes(grid[0][0], summary)
        seeds = victim_seeds(len(group.done) for group in cells.values())
        banded = [BAND_NOTE] if any(axes.collections for axes in grid.flat) else []
        entitle(figure, summary, f"{title} · {seeds}", [*banded, *_thinned(summary), *marked])
    return figure


def panel_height(usual: float, names: int) -> float:
    """Height of a panel in inches, so that so many names have room beside it."""
    return max(usual, 1.1 * NAME_HEIGHT / 100 * names)


def victim_seeds(counts: Iterable[int]) -> str:
    """How many victims stand behind means, as in "1 to 3 victim seeds"; none are no mean."""
    there = [count for count in counts if count]
    least, most = min(there), max(there)
    told = f"{most}" if least == most else f"{least} to {most}"
    return f"{told} victim seed{'' if told == '1' else 's'}"


def marks_of(doubts: Mapping[Any, Iterable[Flag]]) -> tuple[dict[Any, str], list[str]]:
    """What stands behind names, where lines stand for numbers; and what it means.

    Args:
        doubts: about each number of a figure; what all share is told once, as below a table.

    Returns:
        Marks by what they are about, and a text for each.
    """
    (texts,), notes = settle([[Number("", tuple(found)) for found in doubts.values()]])
    return dict(zip(doubts, texts, strict=True)), notes


@dataclass(frozen=True)
class End:
    """Where a line ends, whose it is, and the marks of the doubts about it."""

    label: str
    look: Style
    percent: float
    marks: str = ""


def _draw_lines(
    axes: Axes,
    summary: Summary,
    groups: Mapping[Row, Group],
    looks: Mapping[str, Style],
    field: str,
) -> dict[Row, float]:
    """Draw a line a method, the mean of its seeds, with a band from the lowest to the highest.

    Returns:
        Where the lines end, in percent.
    """
    ends = {}
    for row, group in groups.items():
        points = _points(group, field)
        if not points:
            continue
        look, epochs = looks[summary.method_label(row)], list(points)
        means = [sum(values) / len(values) for values in points.values()]
        control = row.method == CONTROL
        axes.plot(
            epochs,
            means,
            color=look.colour,
            linestyle=look.dashes,
            linewidth=1.4,
            marker="o" if len(epochs) <= SHORT_RUN and (not control or len(epochs) == 1) else "",
            markersize=2.2,
            # The control above all others: it is what they are compared with.
            zorder=4 if control else 3,
        )
        if any(len(values) > 1 for values in points.values()):
            lows, highs = (list(map(edge, points.values())) for edge in (min, max))
            axes.fill_between(epochs, lows, highs, color=look.colour, alpha=0.15, linewidth=0)
        ends[row] = means[-1]
    return ends


def _points(group: Group, field: str) -> dict[int, list[float]]:
    """For every epoch the values of a group's victims, in percent."""
    values: dict[int, list[float]] = defaultdict(list)
    for record in group.done:
        for point in record["curve"]:
            if point.get(field) is not None:
                values[point["epoch"]].append(100 * point[field])
    return dict(sorted(values.items()))


def name_ends(
    axes: Axes,
    ends: Iterable[End],
    gap: float,
    within: tuple[float, float] = (1, 99),
    longest: int = LONGEST_LABEL,
) -> None:
    """Write each line's name to the right of the panel, at the height of its end.

    What leads there has the look of the line, and stays outside the panel, where it would be taken
    for a part of it.

    Args:
        axes: the panel.
        ends: of the lines.
        gap: least distance between names, in percent.
        within: lowest and highest place for a name, in percent.
        longest: names of more letters are shortened.
    """
    from matplotlib.transforms import ScaledTranslation

    places = sorted(ends, key=lambda end: (-end.percent, end.label))
    figure = axes.get_figure()
    assert figure is not None
    # A fixed distance: a share of the panel would change with the room that the names are given.
    beside = axes.get_yaxis_transform()
    away = beside + ScaledTranslation(LEADER / 72, 0, figure.dpi_scale_trans)
    low, high = within
    heights = move_apart([end.percent for end in places], gap=gap, low=low, high=high)
    for end, height in zip(places, heights, strict=True):
        axes.annotate(
            brief(end.label, longest) + end.marks,
            xy=(1.0, end.percent),
            xycoords=beside,
            xytext=(1.0, height),
            textcoords=away,
            color=end.look.colour,
            fontsize=7,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": end.look.colour,
                "linewidth": 0.8,
                "linestyle": end.look.dashes,
                "shrinkA": 1,
                "shrinkB": 1,
                "relpos": (0, 0.5),
            },
        )


def brief(label: str, longest: int = LONGEST_LABEL) -> str:
    """A label short enough to stand beside a panel; the table has it in full."""
    tail = longest // 2
    return label if len(label) <= longest else f"{label[: tail - 2]}…{label[-tail:]}"


def move_apart(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Falling heights with at least `gap` between neighbours, moved as little as may be.

    Neighbours that would overlap form a block around the mean of where they want to be; blocks
    that come to overlap are merged. If there is not room for all, the gap shrinks.

    Args:
        heights: where things want to be, from high to low.
        gap: the least distance.
        low: none ends up below this.
        high: none ends up above this.
    """
    if not heights:
        return []
    gap = min(gap, (high - low) / max(len(heights) - 1, 1))
    blocks: list[tuple[float, int]] = []  # the height of the first, and how many
    start = 0
    for position in range(len(heights)):
        size, first = 1, _fit(heights[position : position + 1], gap, low, high)
        while blocks and blocks[-1][0] - gap * blocks[-1][1] < first:
            size += blocks.pop()[1]
            start = position + 1 - size
            first = _fit(heights[start : position + 1], gap, low, high)
        blocks.append((first, size))
    return [first - gap * index for first, size in blocks for index in range(size)]


def _fit(wanted: Sequence[float], gap: float, low: float, high: float) -> float:
    """The height of the first of a block, so that the block lies around its wishes and inside."""
    length = gap * (len(wanted) - 1)
    centre = sum(wanted) / len(wanted)
    return min(max(centre + length / 2, low + length), high)


def _scale_axes(axes: Axes, summary: Summary) -> None:
    """Percent from 0 to 100, whole epochs; all panels share these axes."""
    from matplotlib.ticker import MaxNLocator

    epochs = [point["epoch"] for record in summary.records for point in record["curve"]]
    first, last = min(epochs), max(epochs)
    margin = 0.02 * (last - first) or 0.5
    axes.set_xlim(first - margin, last + margin)
    axes.set_ylim(0, 100)
    axes.set_yticks(range(0, 101, 20))
    if first == last:
        # The locator has no whole number but one, and would fall back on fractions.
        axes.set_xticks([first])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def overview_figure(summary: Summary, looks: Mapping[str, Style] | None = None) -> Figure | None:
    """Final clean test accuracies: panels defense by architecture, a dot a seed, a bar the mean.

    Args:
        summary: of one context.
        looks: a style for each method label; `styles` of this context by default.

    Returns:
        The figure, or None if no cell is done.
    """
    from matplotlib.figure import Figure

    looks = styles([summary]) if looks is None else looks
    columns = _with_results(summary, summary.rows)
    if not columns:
        return None
    parts = {
        defense_head(summary, defense): [
            row for row in summary.rows if summary.defense_of(row) == defense
        ]
        for defense in summary.defenses
    }
    stacks = _stacked(parts)
    height = max(map(_lines, stacks))
    heads = {label: brief(label) if len(parts) > 1 else "" for label in parts}
    # A name that is longer than its panel is high would run into the next one.
    level = any(LETTER * len(heads[n]) > LINE * (len(parts[n]) + PANEL_GAP) for n in parts)
    turn = {"rotation": "horizontal", "ha": "right", "va": "center"} if level else {}
    with plain_style():
        size = _overview_size(height, len(columns) * len(stacks))
        if level:
            size = (size[0] + LETTER * max(map(len, heads.values())) * len(stacks), size[1])
        figure = Figure(figsize=size, layout="constrained")
        texts, marked = settle([_mean(summary, row, c) for c in columns] for row in summary.rows)
        means = dict(zip(summary.rows, texts, strict=True))
        for side, stack in zip(
            figure.subfigures(1, len(stacks), squeeze=False)[0], stacks, strict=True
        ):
            # What a stack lacks stays empty below it, so that a line is equally high in all.
            heights = [*map(len, stack.values()), max(height - _lines(stack), 1e-3)]
            grid = side.subplots(len(heights), len(columns), squeeze=False, height_ratios=heights)
            for axes in grid[-1]:
                axes.remove()
            for (label, rows), line in zip(stack.items(), grid[:-1], strict=True):
                for place, (column, axes) in enumerate(zip(columns, line, strict=True)):
                    beside = [means[row][place] for row in rows]
                    _draw_dots(axes, summary, rows, column, looks, beside)
                    axes.tick_params(labelbottom=False)
                names = [brief(summary.method_label(row)) for row in rows]
                line[0].set_yticks(range(len(rows)), names)
                line[0].set_ylabel(heads[label], **turn)
            for column, axes in zip(columns, grid[0], strict=True):
                axes.set_title(str(column))
            for axes in grid[-2]:
                axes.tick_params(labelbottom=True)
                axes.set_xlabel("accuracy (%)")
        seeds = victim_seeds(len(group.done) for group in summary.groups.values())
        title = f"final clean test accuracy, {seeds}"
        notes = [OVERVIEW_NOTE, *marked, *known(summary, [list(parts)])]
        entitle(figure, summary, title, notes)
    return figure


def _stacked(parts: Mapping[str, Sequence[Row]]) -> list[dict[str, Sequence[Row]]]:
    """Panels in as few stacks as fit a page, of about equal height."""
    lines = _lines(parts)
    wanted = lines / -(-lines // PAGE_LINES)
    stacks: list[dict[str, Sequence[Row]]] = [{}]
    for label, rows in parts.items():
        if stacks[-1] and _lines(stacks[-1]) + len(rows) / 2 > wanted:
            stacks.append({})
        stacks[-1][label] = rows
    return stacks


def _lines(parts: Mapping[str, Sequence[Row]]) -> float:
    """Height of panels one above the other, in lines of text."""
    return sum(len(rows) + PANEL_GAP for rows in parts.values())


def _overview_size(lines: float, panels: int) -> tuple[float, float]:
    """Width and height in inches: wide panels while they are few, a line of text a row."""
    panel = 2.6 if panels < 3 else 1.7
    return max(1.4 + panel * panels, 4.6), 1.3 + LINE * lines


def _mean(summary: Summary, row: Row, column: Column) -> str | Number:
    """What stands beside the dots of a row."""
    group = summary.group(row, column)
    if not group.done:
        return verdict(group) if group.failed else ""
    mean = 100 * group.spread("final_test_acc").mean
    return Number(decimals(mean, 1), flags(group, summary.control(row, column)))


def _draw_dots(
    axes: Axes,
    summary: Summary,
    rows: Sequence[Row],
    column: Column,
    looks: Mapping[str, Style],
    texts: Sequence[str],
) -> None:
    """Fill one panel of the overview."""
    axes.axvline(100 * chance(summary), color=GREY, linestyle=":", linewidth=1)
    control = summary.control(rows[0], column).spread("final_test_acc")
    if control.n:
        axes.axvline(100 * control.mean, color="#000000", linestyle=(0, (4, 2)), linewidth=0.7)
    for place, (row, text) in enumerate(zip(rows, texts, strict=True)):
        values = [100 * record["final_test_acc"] for record in summary.group(row, column).done]
        colour = looks[summary.method_label(row)].colour
        axes.plot(values, [place] * len(values), "o", color=colour, markersize=3.5, alpha=0.6)
        if values:
            mean = sum(values) / len(values)
            axes.plot([mean], [place], "|", color=colour, markersize=10, markeredgewidth=2)
        beside = axes.get_yaxis_transform()
        axes.text(1.02, place, text, color=GREY, fontsize=7, va="center", transform=beside)
    axes.set_xlim(0, 100)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [""] * len(rows))
    axes.tick_params(axis="y", length=0)


def entitle(figure: Figure, summary: Summary, title: str, notes: Iterable[str] = ()) -> None:
    """The title above, the scale below: a picture that is copied takes its scale along."""
    caption_figure(figure, f"{summary.context.dataset} · {title}", [*scale(summary), *notes])


def caption_figure(figure: Figure, title: str, notes: Iterable[str]) -> None:
    """A title above and notes below; where these are long the figure grows by their height."""
    figure.suptitle(title, fontsize=9)
    width = int(figure.get_figwidth() * LETTERS_PER_INCH)
    lines = textwrap.wrap(" ".join(notes), width, break_on_hyphens=False)
    figure.supxlabel("\n".join(lines), fontsize=6.5, color=GREY, x=0.01, ha="left")
    longer = max(len(lines) - USUAL_LINES, 0)
    figure.set_figheight(figure.get_figheight() + LINE_HEIGHT * longer)


def _thinned(summary: Summary) -> list[str]:
    """What to know of the points before the last, if they were measured on fewer images."""
    images = summary.context.settings.get("curve_images")
    return [] if images is None else [f"Test points before the last epoch: {images} images."]


def colour_bar(
    figure: Figure | SubFigure,
    colours: ScalarMappable,
    axes: Axes | Sequence[Axes],
    shrink: float = 1.0,
) -> Axes:
    """A plain scale of colours to the right of one or several panels; returns its axes.

    Args:
        figure: that of the panels.
        colours: what is shown.
        axes: the panels.
        shrink: its length as a share of their height.
    """
    bar = figure.colorbar(colours, ax=axes, pad=0.01, aspect=15, shrink=shrink)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(labelsize=6, length=0)
    return bar.ax


FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei"),
    *("PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Arial Unicode MS", "Noto Sans Arabic"),
    *("Noto Sans Devanagari", "Noto Sans Thai", "Noto Emoji"),
)
"""For characters of names that Matplotlib's own font lacks; of these, what the machine has."""


@cache
def _more_fonts() -> tuple[str, ...]:
    from matplotlib import font_manager

    there = set(font_manager.get_font_names())
    return tuple(name for name in FONTS if name in there)


@contextmanager
def plain_style() -> Iterator[None]:
    """Matplotlib's own defaults and few departures, whatever the user's files say."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.family": ["DejaVu Sans", *_more_fonts()],
                "font.size": 8,
                "axes.titlesize": 8,
                "axes.labelsize": 8,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.linewidth": 0.6,
                "axes.grid": True,
                "axes.axisbelow": True,
                "grid.color": "#E6E6E6",
                "grid.linewidth": 0.5,
                "xtick.labelsize": 7,
                "ytick.labelsize": 7,
                # A label is never mathematics, even if a file name in it has dollar signs.
                "text.parse_math": False,
                # Text stays text in a PDF.
                "pdf.fonttype": 42,
            }
        )
        yield


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG and PDF, without dates, so that equal figures are equal files.

    Args:
        figure: what to write.
        stem: the path without its ending.
    """
    from matplotlib.text import Text

    metadata = {
        "png": {"Software": None},
        "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    }
    for part in figure.findobj(Text):
        assert isinstance(part, Text)
        lines = "\n".join(map(printable, part.get_text().split("\n")))
        if lines != part.get_text():
            part.set_text(lines)
    files = []
    for ending, facts in metadata.items():
        file = stem.with_name(f"{stem.name}.{ending}")
        with plain_style(), warnings.catch_warnings():
            # Without a font for them such characters are boxes; tables have them in any case.
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            write_with(
                file,
                lambda out, ending=ending, facts=facts: figure.savefig(
                    out, format=ending, dpi=DPI, metadata=facts
                ),
            )
        # The layout was found for the first format; the other takes it as it is.
        figure.set_layout_engine("none")
        files.append(file)
    return files

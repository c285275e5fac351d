"""A picture of methods by defenses: the more of a row is bright, the less the protection holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from bench.reports.cells import KNOWS, defense_head, verdict
from bench.reports.defense_tables import (
    BOUND,
    BOUND_NOTE,
    ONE_SEED,
    ONE_SEED_NOTE,
    Board,
    Line,
)
from bench.reports.flags import UNLEARNED, Number, flags, settle
from bench.reports.plots import GREY, brief, colour_bar, entitle, plain_style
from bench.reports.summary import CONTROLS, NOTHING, Column, Group, Spread, Summary
from bench.reports.table import MISSING, decimals

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEWEST_METHODS, FEWEST_DEFENSES = 2, 3
"""Below these a table says it better; the clean control is no method here."""

COLOURS = "cividis"
"""From dark to bright in equal steps, alike with any kind of colour vision, and in print."""
BRIGHT = 0.48
"""From this share of the scale on, digits are dark."""

FIELD_WIDTH, FIELD_HEIGHT = 0.29, 0.2
LETTER = 0.058
DIGIT = 0.052
LEAST_WIDTH = 5.2
"""Sizes in inches."""
GAP = 0.3
"""Between defenses, those that know more, and the worst case, and below the controls; in fields."""

WORST = "worst case"

WORST_NOTE = "for each seed the defense is chosen on the other seeds."
HIGHEST_NOTE = "the highest of these defenses."
KNOWS_NOTE = f"{KNOWS}: knows more than the released images."


@dataclass(frozen=True)
class _Field:
    """One number of the picture; without a number a word."""

    percent: float | None
    cell: str | Number


def heatmaps(summary: Summary) -> dict[Column, Figure]:
    """Accuracy of methods by defenses, a figure an architecture.

    Args:
        summary: of one context.

    Returns:
        Figures by architecture; those with too few methods or defenses, or with no cell that is
        done, have none.
    """
    board = Board(summary)
    figures = {}
    for column in summary.columns:
        lines = [line for line in board.lines if line.column == column]
        methods = [line for line in lines if line.first.method not in CONTROLS[:1]]
        done = any(line.group(name).done for line in lines for name in board.summary.defenses)
        if (
            done
            and len(methods) >= FEWEST_METHODS
            and len(board.summary.defenses) >= FEWEST_DEFENSES
        ):
            figures[column] = _figure(board, column, lines)
    return figures


def _figure(board: Board, column: Column, lines: Sequence[Line]) -> Figure:
    from matplotlib.figure import Figure

    rows = [_fields(board, line) for line in lines]
    texts, marked = settle([field.cell for field in row] for row in rows)
    heads = [brief(defense_head(board.summary, name)) for name in board.summary.defenses]
    heads += [WORST] if board.has_worst else []
    kinds = [told != NOTHING for told in board.summary.knows.values()]
    across = _places([*kinds, *([WORST] if board.has_worst else [])])
    down = _places([line.first.method in CONTROLS for line in lines])
    labels = [brief(line.label) for line in lines]
    with plain_style():
        letters = max(len(text) for row in texts for text in row)
        field = max(FIELD_WIDTH, DIGIT * letters)
        width = field * (across[-1] + 1) + LETTER * max(map(len, labels)) + 1.0
        height = FIELD_HEIGHT * len(lines) + 0.75 * LETTER * max(map(len, heads)) + 1.35
        figure = Figure(figsize=(max(width, LEAST_WIDTH), height), layout="constrained")
        axes = figure.subplots()
        _draw(axes, rows, texts, across, down)
        axes.set_xticks(across, heads, rotation=45, ha="left", rotation_mode="anchor")
        axes.set_yticks(down, labels)
        entitle(
            figure,
            board.summary,
            f"clean test accuracy (%) by defense · {column} · {_seeds(board, lines)}",
            _notes(board, lines, [*heads, *(text for row in texts for text in row)], marked),
        )
    return figure


def _seeds(board: Board, lines: Sequence[Line]) -> str:
    """How many victims stand behind a number."""
    counts = {len(line.group(n).done) for line in lines for n in board.summary.defenses} - {0}
    least, most = min(counts), max(counts)
    if most == 1:
        return "one seed"
    return f"mean of {most if least == most else f'{least} to {most}'} seeds"


def _notes(
    board: Board, lines: Sequence[Line], texts: Sequence[str], marked: Sequence[str]
) -> list[str]:
    notes = {ONE_SEED: ONE_SEED_NOTE, BOUND: BOUND_NOTE, KNOWS: KNOWS_NOTE}
    found = [note for mark, note in notes.items() if any(mark in text for text in texts)]
    found += marked
    if board.has_worst:
        over = board.title.removeprefix(WORST).removeprefix("worst").strip(" ()")
        how = WORST_NOTE if board.chooses(lines) else HIGHEST_NOTE
        found = [f"Worst case ({over}): {how}", *found, *board.left_out(lines)]
    return found


def _places(kinds: Sequence[object]) -> list[float]:
    """Where rows or columns stand: those of another kind are set apart."""
    places = [0.0]
    for before, kind in pairwise(kinds):
        places.append(places[-1] + 1 + GAP * (before != kind))
    return places


def _fields(board: Board, line: Line) -> list[_Field]:
    """The numbers of a method: its defenses, and the worst case if there is one."""
    fields = [_field(line.group(name), line.control(name)) for name in board.summary.defenses]
    if board.has_worst:
        worst = board.worst(line)
        if worst is None:
            return [*fields, _Field(None, MISSING)]
        mean = 100 * Spread.of(worst.scores.values()).mean
        doubts = board.doubts(line, worst)
        text = BOUND * (UNLEARNED in doubts) + decimals(mean, 1)
        number = Number(text, doubts, board.marks(worst))
        fields.append(_Field(mean, number))
    return fields


def _field(group: Group, control: Group) -> _Field:
    if not group.done:
        return _Field(None, verdict(group))
    percent = 100 * group.spread("final_test_acc").mean
    return _Field(percent, Number(decimals(percent, 1), flags(group, control)))


def _draw(
    axes: Axes,
    rows: Sequence[Sequence[_Field]],
    texts: Sequence[Sequence[str]],
    places_across: Sequence[float],
    places_down: Sequence[float],
) -> None:
    """Fields with their numbers; what is missing stays white."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    known = [field.percent for row in rows for field in row if field.percent is not None]
    scale = Normalize(min(known), max(max(known), min(known) + 1))
    colours = colormaps[COLOURS]
    for down, row, line in zip(places_down, rows, texts, strict=True):
        for across, field, text in zip(places_across, row, line, strict=True):
            ink = GREY
            if field.percent is not None:
                share = float(scale(field.percent))
                ink = "black" if share > BRIGHT else "white"
                corner = (across - 0.5, down - 0.5)
                look = {"facecolor": colours(share), "edgecolor": "white", "linewidth": 0.6}
                axes.add_patch(Rectangle(corner, 1, 1, **look))
            axes.text(across, down, text, color=ink, fontsize=6, ha="center", va="center")
    axes.set_xlim(-0.5, places_across[-1] + 0.5)
    axes.set_ylim(places_down[-1] + 0.5, -0.5)
    axes.grid(visible=False)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure = axes.get_figure()
    assert figure is not None
    colour_bar(figure, ScalarMappable(scale, colours), axes)

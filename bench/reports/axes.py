"""Along which settings records differ while all else is equal, and tables over each of them.

An axis is the l-inf radius, the poison ratio, or a setting of methods: a number, or `surrogate`.
It exists where a method was measured at two of its values or more under one defense and on one
architecture, with every other setting equal. All but the poison ratio lie within one context.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bench.files import slugify
from bench.record import CLEAN_PART, CONTROL
from bench.reports.cells import accuracy, cell_names, defense_head, main_numbers
from bench.reports.flags import Number, settle
from bench.reports.notes import deviations, failures, known, over_seeds, scale
from bench.reports.summary import (
    CONTROLS,
    PAPER_WIDTH,
    Column,
    Context,
    Group,
    Row,
    Summary,
    told_apart,
    value_text,
    width_text,
)
from bench.reports.table import MISSING, Table, frame

if TYPE_CHECKING:
    import pandas as pd

EPSILON, POISON_RATIO, SURROGATE = "epsilon", "poison_ratio", "surrogate"

Value = float | str
"""A place on an axis: grey levels of an l-inf radius, a share, a setting's number, or the text of
a surrogate's architecture."""

CLEAN_PART_NOTE = f"{CLEAN_PART}: trained on the unprotected images alone."


@dataclass(frozen=True)
class Place:
    """A cell of the main table of a context."""

    summary: Summary
    row: Row
    column: Column

    @property
    def group(self) -> Group:
        """Its records."""
        return self.summary.group(self.row, self.column)

    @property
    def control(self) -> Group:
        """The control's records beside it."""
        return self.summary.control(self.row, self.column)


@dataclass(frozen=True)
class Line:
    """A method with all its other settings, under one defense, along an axis.

    Attributes:
        label: the method's, with the settings that tell it from other lines of its name.
        method: its name.
        defense: name and label.
        places: those that have any records, by value and architecture.
    """

    label: str
    method: str
    defense: tuple[str, str]
    places: Mapping[tuple[Value, Column], Place]

    @property
    def values(self) -> list[Value]:
        """Its values, rising; architectures by name, wide before narrow."""
        return sorted({value for value, _ in self.places}, key=_order)

    @property
    def columns(self) -> list[Column]:
        """Its architectures, in the order of tables."""
        return sorted({column for _, column in self.places}, key=lambda column: column.order)

    def group(self, value: Value, column: Column) -> Group:
        """The records at a value; an empty group where there are none."""
        place = self.places.get((value, column))
        return place.group if place else Group()


@dataclass(frozen=True)
class Axis:
    """All lines along one setting.

    Attributes:
        name: `epsilon` for the l-inf radius, `poison_ratio`, or a setting, whose radius if it is
            one is of another norm and then named, as in `epsilon-l2`.
        setting: the name under which tables for machines have it.
        summary: all records that lie along it, with their controls; only of the poison ratio do
            they come from several contexts, in the context of the ratio 1.
        contexts: where they come from.
        lines: in the order of tables: no defense first, then controls first, then by label.
        controls: the control by defense and architecture.
    """

    name: str
    setting: str
    summary: Summary
    contexts: frozenset[Context]
    lines: tuple[Line, ...]
    controls: Mapping[tuple[tuple[str, str], Column], Place]

    @cached_property
    def values(self) -> list[Value]:
        """The values of all lines together."""
        return sorted({value for line in self.lines for value in line.values}, key=_order)

    @cached_property
    def columns(self) -> list[Column]:
        """The architectures of all lines together."""
        return sorted(
            {column for line in self.lines for column in line.columns},
            key=lambda column: column.order,
        )

    @property
    def defenses(self) -> list[tuple[str, str]]:
        """Name and label of every defense, in order."""
        return list(dict.fromkeys(line.defense for line in self.lines))

    @property
    def is_matrix(self) -> bool:
        """Whether its values are no numbers, but architectures to be set against the victims'."""
        return _last(self.setting) == SURROGATE

    @property
    def title(self) -> str:
        """What its values are, in words."""
        known = {EPSILON: "l∞ radius", POISON_RATIO: "protected share of the images"}
        radius = self.name.partition(f"{EPSILON}-")[2]
        return known.get(self.name) or (f"{radius} radius" if radius else self.name)

    def text(self, value: Value) -> str:
        """A value for people: "8/255", "20 %", "steps=8", or an architecture with its width."""
        if self.is_matrix:
            return arch_text(str(value))
        if self.name in (EPSILON, POISON_RATIO):
            return self.short(value) + ("/255" if self.name == EPSILON else " %")
        return f"{self.setting}={self.short(value)}"

    def short(self, value: Value) -> str:
        """A value without its unit."""
        if self.name == EPSILON:
            return f"{value:g}"
        if self.name == POISON_RATIO:
            return f"{100 * float(value):g}"
        return value_text(value, self.setting if self.name == self.setting else "")

    def control(self, defense: tuple[str, str], column: Column) -> Group:
        """The control's records; an empty group where there are none."""
        place = self.controls.get((defense, column))
        return place.group if place else Group()

    def seeds(self) -> int:
        """The number of victims of a complete cell."""
        places = [place for line in self.lines for place in line.places.values()]
        groups = [place.group for place in [*places, *self.controls.values()]]
        return max(len(group.done) + len(group.failed) for group in groups)


def find_axes(summaries: Sequence[Summary]) -> list[Axis]:
    """Every axis in the records of a folder, context by context, the poison ratio last.

    Args:
        summaries: of all contexts of the folder.
    """
    usual = _left_out(summaries)
    found = []
    for summary in summaries:
        points: dict[tuple[str, str], list[_Point]] = defaultdict(list)
        for row, column in summary.groups:
            for name, setting, value, rest in _coordinates(row, usual):
                place = Place(summary, row, column)
                points[name, setting].append(_Point(value, rest, place))
        for (name, setting), there in sorted(points.items()):
            found += _axis(name, setting, summary.context, there)
    families: dict[Context, list[Summary]] = defaultdict(list)
    for summary in summaries:
        families[replace(summary.context, poison_ratio=1.0)].append(summary)
    for context, family in families.items():
        there = [
            _Point(summary.context.poison_ratio, _all_settings(row, usual), place)
            for summary in family
            for row, column in summary.groups
            if row.method != CONTROL
            for place in [Place(summary, row, column)]
        ]
        found += _axis(POISON_RATIO, POISON_RATIO, context, there)
    return found


# How rows become lines.


@dataclass(frozen=True)
class _Point:
    """A place of a table, its value on an axis, and all else that must be equal, as JSON."""

    value: Value
    rest: str
    place: Place


def _coordinates(
    row: Row, usual: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, str, Value, str]]:
    """The axes of one context that a row may lie on: name, setting, value, all else."""
    settings = json.loads(_all_settings(row, usual))
    radii = {key: value for key, value in settings.items() if _is_radius(key)}
    levels = 255 * row.epsilon if isinstance(row.epsilon, float) and row.norm == "linf" else None
    if levels is not None and len(set(radii.values())) == 1:
        # In one step of `--epsilon` all parts of a composition take the same radius.
        rest = {key: value for key, value in settings.items() if key not in radii}
        yield EPSILON, EPSILON, round(levels, 6), _json(rest)
    for key, value in settings.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        arch = _last(key) == SURROGATE and isinstance(value, str)
        if not (number or arch) or (levels is not None and [*radii] == [key]):
            continue
        # The budget may follow from the setting, as from a number of pixels; its norm does not.
        rest = _json([row.norm, {k: v for k, v in settings.items() if k != key}])
        name = f"{key}-{row.norm}" if key == EPSILON else key
        yield name, key, value, rest


def _all_settings(row: Row, usual: Mapping[str, Mapping[str, Any]]) -> str:
    """JSON of a row's settings, those included that are left out while at their default."""
    return _json({**usual[row.method], **json.loads(row.method_settings)})


def _left_out(summaries: Iterable[Summary]) -> dict[str, dict[str, Any]]:
    """By method, the defaults of settings that any of its records departs from.

    A setting that was added later is only in records in which it departs from its default; these
    records say what the default is.
    """
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for summary in summaries:
        for record in summary.records:
            for key, (_, default) in record["method_deviations"].items():
                found[record["method"]][key] = default
    return found


def _axis(name: str, setting: str, context: Context, points: Sequence[_Point]) -> list[Axis]:
    """The axis on which these points lie, if it is one."""
    candidates: dict[tuple[str, ...], list[_Point]] = defaultdict(list)
    for point in points:
        row = point.place.row
        same = (row.defense, row.defense_settings, row.method, point.rest)
        # With the poison ratio nothing but the ratio may change.
        same += (row.norm, str(row.epsilon)) if name == POISON_RATIO else ()
        candidates[same].append(point)
    kept = {same: there for same, there in candidates.items() if _differ(there)}
    if not kept:
        return []
    if name == POISON_RATIO:
        # Nothing is left to train on at a ratio of 1, so that one value of it is all there may be.
        defenses = {same[:2] for same in kept}
        for same, there in candidates.items():
            if same[2] == CLEAN_PART and same[:2] in defenses:
                kept[same] = there
    summary = _together(context, [point.place for there in kept.values() for point in there])
    lines = sorted(
        _lines(summary, setting, kept),
        key=lambda line: (summary.defenses.index(line.defense), _line_order(line)),
    )
    used = {place.summary.context for line in lines for place in line.places.values()}
    axis = Axis(name, setting, summary, frozenset(used), tuple(lines), {})
    wanted = {(defense, column) for defense in axis.defenses for column in axis.columns}
    controls = {
        (summary.defense_of(row), column): Place(summary, row, column)
        for row, column in summary.groups
        if row.method == CONTROL and (summary.defense_of(row), column) in wanted
    }
    return [replace(axis, controls=controls)]


def _differ(points: Iterable[_Point]) -> bool:
    """Whether there are two values on one architecture."""
    values: dict[Column, set[Value]] = defaultdict(set)
    for point in points:
        values[point.place.column].add(point.value)
    return any(len(there) > 1 for there in values.values())


def _together(context: Context, places: Sequence[Place]) -> Summary:
    """All records of some places and of the controls beside them, as if of one context."""
    groups: dict[tuple[Row, Column], Group] = {}
    for place in places:
        before = groups.get((place.row, place.column), Group())
        done, failed = before.done + place.group.done, before.failed + place.group.failed
        groups[place.row, place.column] = Group(done, failed)
    columns = {place.column for place in places}
    defenses = {(place.row.defense, place.row.defense_settings) for place in places}
    for summary in {id(place.summary): place.summary for place in places}.values():
        for (row, column), group in summary.groups.items():
            beside = column in columns and (row.defense, row.defense_settings) in defenses
            if row.method == CONTROL and beside:
                groups[row, column] = group  # the same in every context
    return Summary(context, groups)


def _lines(
    summary: Summary, setting: str, kept: Mapping[tuple[str, ...], Sequence[_Point]]
) -> Iterator[Line]:
    labels = {same: _label(there, setting) for same, there in kept.items()}
    for same, there in kept.items():
        namesakes = {
            _settings_of(other[3])
            for other, label in labels.items()
            if label == labels[same] and other[:2] == same[:2]
        }
        row = there[0].place.row
        yield Line(
            label=told_apart(labels[same], _settings_of(same[3]), namesakes),
            method=row.method,
            defense=summary.defense_of(row),
            places={(point.value, point.place.column): point.place for point in there},
        )


def _label(points: Iterable[_Point], setting: str) -> str:
    """The label of some rows without the setting in which they differ."""
    piece = re.compile(rf"(?P<before>[:,]){re.escape(_last(setting))}=[^,+]*(?P<after>,|$|(?=\+))")
    rows = {point.place.row for point in points}
    labels = {
        piece.sub(lambda m: m["before"] if m["after"] else "", row.method_label) for row in rows
    }
    return labels.pop() if len(labels) == 1 else min(row.method for row in rows)


def _settings_of(rest: str) -> str:
    """The settings among all that must be equal."""
    read = json.loads(rest)
    return _json(read[1] if isinstance(read, list) else read)


def _line_order(line: Line) -> tuple[Any, ...]:
    place = CONTROLS.index(line.method) if line.method in CONTROLS else len(CONTROLS)
    return place, _natural(line.label)


def _order(value: Value) -> tuple[Any, ...]:
    """Numbers by size, architectures by name and with falling width, as the columns of tables."""
    if not isinstance(value, str):
        return (value,)
    name, width, rest = _arch(value)
    return name, rest, -width


def _natural(text: str) -> list[tuple[float, str]]:
    """A key by which "10/255" comes after "2/255"."""
    found = re.findall(r"(\d+\.?\d*)|(\D+)", text)
    return [(float(number) if number else -1.0, word) for number, word in found]


def arch_text(text: str) -> str:
    """An architecture as typed, written as the columns of tables are: "rn18 ×1/4"."""
    name, width, rest = _arch(text)
    told = f"{name}:{rest}" if rest else name
    return told if width == PAPER_WIDTH else f"{told} ×{width_text(width)}"


def _arch(text: str) -> tuple[str, float, str]:
    """Name, width and other settings of an architecture as typed."""
    name, _, typed = text.partition(":")
    pieces = [piece for piece in typed.split(",") if piece]
    widths = [piece.partition("=")[2] for piece in pieces if piece.startswith("width=")]
    rest = ",".join(piece for piece in pieces if not piece.startswith("width="))
    try:
        return name, float(widths[0]) if widths else PAPER_WIDTH, rest
    except ValueError:
        return name, PAPER_WIDTH, typed


def _is_radius(setting: str) -> bool:
    return _last(setting) == EPSILON


def _last(setting: str) -> str:
    """The setting itself, without the part of a composition that it belongs to."""
    return setting.rpartition(".")[2]


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


# Tables.


def axis_table(axis: Axis) -> Table:
    """Final clean test accuracy along an axis.

    A row a method and architecture, and a column a value; of surrogates a row each, and a column
    an architecture of the victims.
    """
    usual, several = axis.seeds(), len(axis.defenses) > 1
    heads, told = _matrix(axis, usual) if axis.is_matrix else _along(axis, usual)
    lines, marked = settle([label, *cells] if several else cells for label, cells in told)
    what = "of each victim (columns) by surrogate (rows)" if axis.is_matrix else f"by {axis.title}"
    caption = f"Clean test accuracy after the last epoch in percent {what}, {over_seeds(usual)}."
    return Table(
        name=f"axis-{slugify(axis.name)}",
        caption=(caption, *scale(axis.summary)),
        cells=frame(["defense", *heads] if several else heads, lines),
        lead=2 + several,
        step=1,
        notes=tuple(_notes(axis, lines, marked)),
        numbers=_numbers(axis),
    )


_Lines = list[tuple[str, list[str | Number]]]


def _along(axis: Axis, usual: int) -> tuple[list[str], _Lines]:
    """Headings, and of each line of the table its defense and its cells."""
    heads = ["method", "architecture", CONTROL, *map(axis.text, axis.values)]
    lines: _Lines = []
    for line in axis.lines:
        for column in line.columns:
            control = axis.control(line.defense, column)
            groups = [control, *(line.group(value, column) for value in axis.values)]
            cells = [accuracy(group, control, usual) for group in groups]
            head = defense_head(axis.summary, line.defense)
            lines.append((head, [line.label, str(column), *cells]))
    return heads, lines


def _matrix(axis: Axis, usual: int) -> tuple[list[str], _Lines]:
    """Likewise, the control above the methods that it is compared with."""
    heads = ["method", "surrogate", *map(str, axis.columns)]
    lines: _Lines = []
    for defense in axis.defenses:
        controls = [axis.control(defense, column) for column in axis.columns]
        cells = [accuracy(control, control, usual) for control in controls]
        head = defense_head(axis.summary, defense)
        lines.append((head, [CONTROL, "", *cells]))
        for line in axis.lines:
            for value in line.values if line.defense == defense else ():
                groups = [line.group(value, column) for column in axis.columns]
                pairs = zip(groups, controls, strict=True)
                cells = [accuracy(group, control, usual) for group, control in pairs]
                lines.append((head, [line.label, axis.text(value), *cells]))
    return heads, lines


def _notes(axis: Axis, lines: list[list[str]], marked: list[str]) -> Iterator[str]:
    if any(line.method == CLEAN_PART for line in axis.lines):
        yield CLEAN_PART_NOTE
    yield from marked
    yield from known(axis.summary, lines)
    yield from failures(_named(axis))
    if any(MISSING in line for line in lines):
        yield f"{MISSING}: not run."
    swept = {axis.setting}
    for label, places in _by_label(axis).items():
        records = [one for place in places for one in place.group.done + place.group.failed]
        if axis.name == EPSILON:
            swept = {key for one in records for key in one["method_settings"] if _is_radius(key)}
        yield from deviations(label, records, but=swept)


def _named(axis: Axis) -> Iterator[tuple[str, Group]]:
    """Every cell in words."""
    for (defense, column), place in axis.controls.items():
        yield _words(axis, CONTROL, column, defense), place.group
    for line in axis.lines:
        for (value, column), place in line.places.items():
            label = f"{line.label} at {axis.text(value)}"
            yield _words(axis, label, column, line.defense), place.group


def _words(axis: Axis, label: str, column: Column, defense: tuple[str, str]) -> str:
    under = f" under {defense[1]}" if len(axis.defenses) > 1 else ""
    return f"{label} on {column}{under}"


def _by_label(axis: Axis) -> dict[str, list[Place]]:
    """The places of every method: what is crafted does not depend on the defense."""
    found: dict[str, list[Place]] = defaultdict(list)
    for line in axis.lines:
        found[line.label] += line.places.values()
    return found


def _numbers(axis: Axis) -> pd.DataFrame:
    """A row a cell: the names and the scale of it, its value, and what the main table says."""
    import pandas as pd

    lines = [
        _cell(axis, CONTROL, None, axis.controls[defense, column])
        for defense in axis.defenses
        for column in axis.columns
        if (defense, column) in axis.controls
    ]
    for line in axis.lines:
        places = sorted(
            line.places.items(), key=lambda item: (item[0][1].order, _order(item[0][0]))
        )
        lines += [_cell(axis, line.label, value, place) for (value, _), place in places]
    table = pd.DataFrame(lines)
    whole = all(isinstance(value, int) for value in axis.values)
    # The control has no value; a gap must not turn counts into floats.
    return table.astype({axis.setting: "Int64"}) if whole else table


def _cell(axis: Axis, label: str, value: Value | None, place: Place) -> dict[str, Any]:
    names = cell_names(place.summary, place.row, place.column)
    names |= {"defense": axis.summary.defense_of(place.row)[1], "method": label}
    if axis.name == POISON_RATIO:
        names[POISON_RATIO] = value or 0.0  # nothing is protected for the control
    elif axis.name != EPSILON:  # which is there already
        names[axis.setting] = value
    return {**names, **main_numbers(place.row, place.group, place.control)}

"""The tables that every report has: accuracies, details, premises, audit, what was learned."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench.record import CONTROL
from bench.reports.cells import (
    accuracy,
    cell_names,
    drop_cell,
    figure_cell,
    first_to_last,
    main_numbers,
    peak_epochs,
    radius_number,
    row_heads,
    row_names,
    separability_of,
)
from bench.reports.flags import Number, flag_names, flags, settle
from bench.reports.notes import (
    PEAK_NOTE,
    defense_notes,
    deviations,
    failures,
    known,
    over_seeds,
    scale,
    settings_text,
    usual_seeds,
)
from bench.reports.premises import premises_table
from bench.reports.summary import Column, Group, Record, Row, Spread, Summary
from bench.reports.table import (
    MISSING,
    Table,
    decimals,
    frame,
    hundredths,
    in_percent,
    machine,
    percent,
)

if TYPE_CHECKING:
    import pandas as pd

TRAIN = "train %"
TRAIN_NOTE = f"{TRAIN}: accuracy on the released training images after the last epoch"
SEPARABLE = "separable %"
SEPARABLE_NOTE = (
    f"{SEPARABLE}: how often a linear rule that was fitted to half of the perturbations picks the "
    "right one of all protected classes for the other half; among K classes chance is 100/K."
)
SHORTCUT_NOTE = (
    "A shortcut that is a rule is put on the test image; otherwise the perturbation of a training "
    "image of the class is lent to it, which tells what the class's perturbations have in common."
)

REPORTED = {
    "rounds": ("rounds", "rounds until the method ended"),
    "growth": ("growth", "how far noise that begins with 1 grew"),
    "checkpoint_cosine": ("cosine", "mean absolute cosine of two networks' input gradients"),
    "checkpoint_acc_min": ("least acc %", "the least accuracy of a network crafted with"),
    "checkpoint_acc_max": ("best acc %", "the highest"),
}
"""What methods report of their crafting: a column each, where some method has it, and its words."""


def all_tables(summary: Summary) -> list[Table]:
    """The tables of one context: accuracies, details, premises, audit, and what was learned."""
    tables = [main_table(summary), details_table(summary)]
    more = (premises_table(summary), audit_table(summary), shortcut_table(summary))
    return [*tables, *(table for table in more if len(table.cells))]


def main_table(summary: Summary, *, train: bool = False) -> Table:
    """Final clean test accuracy and drop: a row a method, two columns an architecture.

    Args:
        summary: of one context.
        train: whether a third column has the final train accuracy, as beside a picture of both.
    """
    usual = usual_seeds(summary)
    columns = ["drop", *([TRAIN] if train else [])]
    heads = [name for column in summary.columns for name in (str(column), *columns)]
    lines = []
    for row in summary.rows:
        line = [*row_names(summary, row), row.budget]
        for column in summary.columns:
            group, control = summary.group(row, column), summary.control(row, column)
            line += [accuracy(group, control, usual), drop_cell(row, group, control)]
            if train:
                cell = figure_cell(group, control, "final_train_acc")
                line.append(cell if group.done else MISSING)
        lines.append(line)
    cells, marked = settle(lines)
    caption = (
        f"Clean test accuracy after the last epoch in percent, {over_seeds(usual)}; drop against "
        f"{CONTROL} in percentage points, paired by seed{f'; {TRAIN_NOTE}' if train else ''}."
    )
    return Table(
        name="main",
        caption=(caption, *scale(summary)),
        cells=frame([*row_heads(summary), "budget", *heads], cells),
        lead=len(row_heads(summary)) + 1,
        step=1 + len(columns),
        notes=(*marked, *_main_notes(summary, cells)),
        numbers=_numbers(summary, _main_and_train_numbers if train else main_numbers),
    )


def details_table(summary: Summary) -> Table:
    """What stands behind the accuracies: train accuracy, the oracle's peak, number, cost."""
    usual = usual_seeds(summary)
    scored = any(separability_of(group).n for group in summary.groups.values())
    heads = [
        *row_heads(summary),
        "architecture",
        TRAIN,
        "peak (oracle) %",
        "at epoch",
        "n",
        *([SEPARABLE] if scored else []),
        "gradient images",
        "seconds",
    ]
    lines = []
    for row, column in _cells(summary):
        group, control = summary.group(row, column), summary.control(row, column)
        if not group.done and not group.failed:
            continue
        score = decimals(in_percent(separability_of(group).mean), 1)
        lines.append(
            [
                *row_names(summary, row),
                str(column),
                figure_cell(group, control, "final_train_acc"),
                figure_cell(group, control, "peak_test_acc") if group.done else MISSING,
                first_to_last(peak_epochs(group)) if group.done else MISSING,
                str(len(group.done)),
                *([score] if scored else []),
                _whole(group.spread("crafting_gradient_images").mean),
                _whole(group.spread("seconds").mean),
            ]
        )
    cells, marked = settle(lines)
    caption = (
        f"Behind the accuracies: train accuracy after the last epoch and peak test accuracy in "
        f"percent, {over_seeds(usual)}; the epoch of the peak, from the first to the last of the "
        "seeds'; number n of victims; images through a gradient while crafting; seconds of "
        "training a victim."
    )
    notes = [PEAK_NOTE, *([SEPARABLE_NOTE] if scored else []), *marked]
    notes += [*known(summary, cells), *_failures(summary)]
    return Table(
        name="details",
        caption=(caption, *scale(summary)),
        cells=frame(heads, cells),
        lead=len(row_heads(summary)) + 1,
        step=1,
        notes=tuple(notes),
        numbers=_numbers(summary, _details_numbers, ["crafting_gradient_images"]),
    )


def audit_table(summary: Summary) -> Table:
    """How far the released 8-bit images lie from the clean ones, a row a method."""
    heads = ["method", "budget", "max l∞", "max l2", "max l0", "changed %", "NaN", "constant"]
    audits = {row: audit for row in _methods(summary) if (audit := _audit(summary, row))}
    reported = [name for name in REPORTED if any(name in audit for audit in audits.values())]
    lines = [
        [
            summary.method_label(row),
            row.budget,
            _linf(audit.get("max_linf")),
            decimals(audit.get("max_l2"), 3),
            _whole(audit.get("max_l0")),
            decimals(in_percent(audit.get("share_changed")), 1),
            _whole(audit.get("nan")),
            _whole(audit.get("constant_images")),
            *(_reported(name, audit.get(name)) for name in reported),
        ]
        for row, audit in audits.items()
    ]
    caption = (
        "Released images against clean ones after rounding to 8 bits: the largest norm of any "
        "image (l2 in units of [0, 1], l0 in pixels), the share of components changed, and the "
        "numbers of NaN values and of images of one colour."
    )
    if reported:
        words = "; ".join(f"{REPORTED[name][0]}: {REPORTED[name][1]}" for name in reported)
        caption += f" Of the crafting, {words}."
    return Table(
        name="audit",
        caption=(caption, *scale(summary)),
        cells=frame([*heads, *(REPORTED[name][0] for name in reported)], lines),
        lead=2,
        step=len(heads) + len(reported) - 2,
        notes=(),
        numbers=_audit_numbers(summary, audits),
    )


def shortcut_table(summary: Summary) -> Table:
    """Whether victims learned the shortcut: their accuracy on test images that carry it."""
    names = row_heads(summary)
    heads = [*names, "architecture", "clean %", "own %", "next %", "followed %", "n"]
    keys = ("own_acc", "next_acc", "next_followed")
    lines, numbers = [], []
    for row, column in _cells(summary):
        group = summary.group(row, column)
        found = [r for r in group.done if r.get("shortcut")]
        if not found:
            continue
        doubts = flags(replace(group, done=tuple(found)), summary.control(row, column))
        spreads = [
            Spread.of(record["final_test_acc"] for record in found),
            *(Spread.of(record["shortcut"][key] for record in found) for key in keys),
        ]
        shown = [Number(percent(spread), doubts) for spread in spreads]
        lines.append([*row_names(summary, row), str(column), *shown, str(len(found))])
        means = zip(("final_test_acc", *keys), (s.mean for s in spreads), strict=True)
        told = {"n": len(found), "flags": flag_names(doubts)}
        numbers.append(cell_names(summary, row, column) | dict(means) | told)
    cells, marked = settle(lines)
    caption = (
        "Did the victims learn the shortcut? Accuracy in percent on clean test images, on test "
        "images that carry their own class's perturbation (own) and on such that carry the next "
        "class's (next), and how many of the latter are taken for that class (followed). The last "
        "three are of those test images that a point of the curve is taken on, and of protected "
        "classes only."
    )
    return Table(
        name="shortcut",
        caption=(caption, *scale(summary)),
        cells=frame(heads, cells),
        lead=len(names) + 1,
        step=len(heads) - len(names) - 1,
        notes=(SHORTCUT_NOTE, *marked, *known(summary, cells)) if lines else (),
        numbers=machine(numbers),
    )


def _main_notes(summary: Summary, lines: list[list[str]]) -> Iterator[str]:
    yield from known(summary, lines)
    yield from _failures(summary)
    if any(MISSING in line for line in lines):
        yield f"{MISSING}: not run, or nothing to compare with."
    yield from _deviations(summary)
    yield from defense_notes(summary)
    yield from _unused_budgets(summary)
    yield from _trainings(summary)
    if summary.superseded:
        one = summary.superseded == 1
        count = "1 older record" if one else f"{summary.superseded} older records"
        yield f"{count} of the same cells {'is' if one else 'are'} left out."


def _unused_budgets(summary: Summary) -> Iterator[str]:
    """Methods whose steps end before their l-inf budget does: a larger one changes nothing."""
    from bench.budget import fraction

    for row in _methods(summary):
        reached = _audit(summary, row).get("max_linf")
        if row.norm != "linf" or reached is None or not isinstance(row.epsilon, float):
            continue
        if reached < row.epsilon - 1 / 255 - 1e-9:
            yield (
                f"{summary.method_label(row)}: no component moves by more than "
                f"{fraction(reached)} of its {fraction(row.epsilon)}."
            )


def _failures(summary: Summary) -> Iterator[str]:
    """Failed cells by the last line of their traceback."""
    named = []
    for row, column in _cells(summary):
        *defense, method = row_names(summary, row)
        place = " ".join([method, "on", str(column), *(f"under {name}" for name in defense)])
        named.append((place, summary.group(row, column)))
    return failures(named)


def _deviations(summary: Summary) -> Iterator[str]:
    """The settings in which a method departs from its paper, a line a method."""
    for row in _methods(summary):
        yield from deviations(summary.method_label(row), _records_of(summary, row))


def _trainings(summary: Summary) -> Iterator[str]:
    """The settings in which an architecture is trained otherwise than the recipe says."""
    for column in summary.columns:
        # What all defenses share is the architecture's; a defense may depart from more.
        found: dict[str, dict[str, Any]] = {}
        for row in summary.rows:
            group = summary.group(row, column)
            for record in group.done + group.failed:
                found.setdefault(summary.defense_of(row)[1], {}).update(record["training"])
        plain = min(found.values(), key=len, default={})
        if plain:
            yield f"{column}: trained with {settings_text(plain)}"
        for defense, settings in found.items():
            if settings != plain:
                yield f"{column} under {defense}: trained with {settings_text(settings)}"


def _cells(summary: Summary) -> Iterator[tuple[Row, Column]]:
    return ((row, column) for row in summary.rows for column in summary.columns)


def _methods(summary: Summary) -> list[Row]:
    """The first row of every method: what is crafted does not depend on the defense."""
    first: dict[tuple[Any, ...], Row] = {}
    for row in summary.rows:
        first.setdefault((row.method, row.method_settings, row.norm, row.epsilon), row)
    return list(first.values())


def _records_of(summary: Summary, row: Row) -> list[Record]:
    """All records of a row's method, whatever the defense."""
    mine = (row.method, row.method_settings, row.norm, row.epsilon)
    return [
        record
        for (other, _), group in summary.groups.items()
        if (other.method, other.method_settings, other.norm, other.epsilon) == mine
        for record in group.done + group.failed
    ]


def _whole(value: float | None) -> str:
    """A count with its thousands apart, for instance 1,250,000."""
    return MISSING if value is None or math.isnan(value) else f"{value:,.0f}"


def _reported(name: str, value: float | None) -> str:
    if value is None:
        return MISSING
    share = REPORTED[name][0].endswith("%")
    return decimals(in_percent(value), 1) if share else f"{value:.3g}"


def _linf(value: float | None) -> str:
    from bench.budget import fraction

    return MISSING if value is None else fraction(value)


def _numbers(summary: Summary, of: Any, counts: Collection[str] = ()) -> pd.DataFrame:
    """What `of` computes of each row and column, below the names and the scale of the cell."""
    lines = []
    for row, column in _cells(summary):
        group, control = summary.group(row, column), summary.control(row, column)
        if group.done or group.failed:
            lines.append({**cell_names(summary, row, column), **of(row, group, control)})
    return machine(lines, counts)


def _main_and_train_numbers(row: Row, group: Group, control: Group) -> dict[str, Any]:
    train = hundredths("train_acc_percent", group.spread("final_train_acc"))
    return {**main_numbers(row, group, control), **train}


def _details_numbers(row: Row, group: Group, control: Group) -> dict[str, Any]:
    images = group.spread("crafting_gradient_images").mean
    score = separability_of(group)
    return {
        "n": len(group.done),
        "failed": len(group.failed),
        **hundredths("train_acc_percent", group.spread("final_train_acc")),
        **hundredths("peak_oracle_percent", group.spread("peak_test_acc")),
        "peak_epoch": Spread.of(peak_epochs(group)).mean,
        "crafting_gradient_images": None if math.isnan(images) else round(images),
        "training_seconds": round(group.spread("seconds").mean, 2),
        **({"separability": score.mean} if score.n else {}),
        "flags": flag_names(flags(group, control)),
    }


def _audit(summary: Summary, row: Row) -> dict[str, float]:
    """One audit of a method: counts and maxima at their worst, means and shares averaged.

    What methods report is averaged, too, but for the least and the highest of its kind.
    """
    records = _records_of(summary, row)
    # Victims of one crafted set repeat its audit; each set counts once.
    audits = {record["crafted_key"]: record["audit"] for record in records if record["audit"]}
    values: dict[str, list[float]] = defaultdict(list)
    for audit in audits.values():
        for name, value in audit.items():
            if value is not None:
                values[name].append(value)
    averaged = {name for name in values if name.startswith(("mean", "share"))}
    averaged |= REPORTED.keys() - {"checkpoint_acc_min", "checkpoint_acc_max"}
    return {
        name: Spread.of(found).mean
        if name in averaged
        else (min if name.endswith("_min") else max)(found)
        for name, found in sorted(values.items())
    }


def _audit_numbers(summary: Summary, audits: dict[Row, dict[str, float]]) -> pd.DataFrame:
    lines = [
        {
            "method": summary.method_label(row),
            "norm": row.norm,
            "epsilon": radius_number(row),
            **audit,
        }
        for row, audit in audits.items()
    ]
    return machine(lines)

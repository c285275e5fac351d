"""Accuracy on the protected classes and on the others, where not all classes are protected."""

from __future__ import annotations

from collections.abc import Collection

from bench.reports.cells import cell_names, row_heads, row_names
from bench.reports.flags import Number, flag_names, flags, settle
from bench.reports.notes import known, over_seeds, scale, usual_seeds
from bench.reports.summary import Group, Record, Spread, Summary
from bench.reports.table import MISSING, Table, frame, machine, percent


def class_tables(summary: Summary) -> list[Table]:
    """One table, or none where all classes are protected."""
    protected = summary.context.protected_classes
    if not protected:
        return []
    names = row_heads(summary)
    heads = [*names, "architecture", "protected classes %", "other classes %", "n"]
    lines, numbers = [], []
    for row in summary.rows:
        for column in summary.columns:
            group = summary.group(row, column)
            if not group.done:
                continue
            inside, outside = (_spread(group, protected, within) for within in (True, False))
            doubts = flags(group, summary.control(row, column))
            # None of the test images may be of other classes.
            found = [Number(percent(s), doubts) if s.n else MISSING for s in (inside, outside)]
            lines.append([*row_names(summary, row), str(column), *found, str(len(group.done))])
            means = {"protected_acc": inside.mean, "other_acc": outside.mean}
            told = {"n": len(group.done), "flags": flag_names(doubts)}
            numbers.append(cell_names(summary, row, column) | means | told)
    cells, marked = settle(lines)
    caption = (
        "Clean test accuracy after the last epoch in percent on images of the protected classes "
        f"and on those of the others, {over_seeds(usual_seeds(summary))}."
    )
    table = Table(
        name="classes",
        caption=(caption, *scale(summary)),
        cells=frame(heads, cells),
        lead=len(names) + 1,
        step=3,
        notes=(*marked, *known(summary, cells)),
        numbers=machine(numbers),
    )
    return [table] if lines else []


def _spread(group: Group, protected: Collection[int], within: bool) -> Spread:
    return Spread.of(_accuracy(record, protected, within) for record in group.done)


def _accuracy(record: Record, protected: Collection[int], within: bool) -> float | None:
    """Accuracy on the test images of some classes; None where there are none."""
    chosen = [
        (row[label], sum(row))
        for label, row in enumerate(record["confusion"] or [])
        if (label in protected) == within
    ]
    total = sum(images for _, images in chosen)
    return sum(right for right, _ in chosen) / total if total else None

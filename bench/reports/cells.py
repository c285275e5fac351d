"""What stands in a cell, and the names of its row: for readers, and for machines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bench.errors import NOT_RUN
from bench.record import CONTROL
from bench.reports.flags import Number, flag_names, flags, flags_of_all
from bench.reports.summary import NOTHING, Column, Group, Record, Row, Spread, Summary
from bench.reports.table import MISSING, decimals, hundredths, in_percent, percent

KNOWS = "°"
"""Behind a defense that knows more than the released images; no doubt about victims."""


def last_line(error: str | None) -> str:
    """The last line of a traceback that says anything."""
    lines = [line.strip() for line in (error or "").splitlines() if line.strip()]
    return lines[-1] if lines else "no traceback recorded"


def defense_head(summary: Summary, defense: tuple[str, str]) -> str:
    """A defense of `Summary.defenses` for readers, marked if it knows more than the images."""
    return defense[1] + KNOWS * (summary.knows[defense] != NOTHING)


def defense_phrase(summary: Summary, defense: tuple[str, str]) -> str:
    """A defense of `Summary.defenses` in the words of a caption or title."""
    (name, label), knows = defense, summary.knows[defense]
    if name == "none":
        return "no defense"
    return f"defense {label}" + f" (knows {knows})" * (knows != NOTHING)


def row_heads(summary: Summary) -> list[str]:
    """A single defense stands in the caption instead of in a column."""
    return ["defense", "method"] if len(summary.defenses) > 1 else ["method"]


def row_names(summary: Summary, row: Row) -> list[str]:
    """What stands in the columns that `row_heads` names."""
    names = [defense_head(summary, summary.defense_of(row)), summary.method_label(row)]
    return names[-len(row_heads(summary)) :]


def verdict(group: Group) -> str:
    """Why a cell has no number: nobody asked for it, it could not be run, or it failed."""
    if not group.failed:
        return MISSING
    return "not run" if all(map(not_run, group.failed)) else "failed"


def not_run(record: Record) -> bool:
    """Whether a cell without numbers lacked something from outside, and is no failure."""
    return last_line(record["error"]).startswith(NOT_RUN)


def accuracy(group: Group, control: Group, usual: int) -> str | Number:
    """A cell: mean and deviation in percent with marks, and n unless it is the usual one."""
    number = f" n={len(group.done)}" if len(group.done) != usual else ""
    return figure_cell(group, control, "final_test_acc", number)


def figure_cell(group: Group, control: Group, field: str, after: str = "") -> str | Number:
    """Mean and deviation of a field in percent with marks, or why there is none."""
    if not group.done:
        return verdict(group)
    return Number(percent(group.spread(field)), flags(group, control), after)


def drop_cell(row: Row, group: Group, control: Group) -> str | Number:
    """What is lost against the control, about which there may be doubts, too."""
    drop = group.drop(control)
    if row.method == CONTROL or not drop.n:
        return "" if row.method == CONTROL else MISSING
    doubts = flags_of_all([(group, control), (control, control)], drop.n)
    return Number(decimals(in_percent(drop.mean), 1), doubts)


def peak_of(record: Record) -> Mapping[str, Any] | None:
    """The row of the curve with the highest test accuracy, the earliest of equals, if any."""
    tested = [row for row in record["curve"] if row.get("test_acc") is not None]
    return max(tested, key=lambda row: (row["test_acc"], -row["epoch"]), default=None)


def peak_epochs(group: Group) -> list[int]:
    """After which epoch each victim was at its best."""
    return [peak["epoch"] for record in group.done if (peak := peak_of(record))]


def first_to_last(epochs: Iterable[int]) -> str:
    """The range of some epochs."""
    found = sorted(set(epochs))
    return "–".join(map(str, dict.fromkeys(found[:1] + found[-1:]))) or MISSING


def separability_of(group: Group) -> Spread:
    """The shortcut score of what was crafted, of victims whose records tell it."""
    return Spread.of(record.get("separability") for record in group.done)


def cell_names(summary: Summary, row: Row, column: Column) -> dict[str, Any]:
    """The names and the scale of a cell, for machines."""
    context = summary.context
    return {
        "dataset": context.dataset,
        "train_images": context.train_images,
        "recipe": context.recipe_label,
        "epochs": context.settings.get("epochs"),
        "precision": context.precision,
        "poison_ratio": context.poison_ratio,
        "craft_seed": context.craft_seed,
        "defense": summary.defense_of(row)[1],
        "method": summary.method_label(row),
        "norm": row.norm,
        "epsilon": radius_number(row),
        "arch": column.arch_label,
        "width": column.width,
    }


def radius_number(row: Row) -> float | str | None:
    """The radius for machines; several, of a sum of budgets, as "0.0314+1"."""
    if isinstance(row.epsilon, tuple):
        return "+".join(f"{epsilon:.4g}" for epsilon in row.epsilon)
    return row.epsilon


def main_numbers(row: Row, group: Group, control: Group) -> dict[str, Any]:
    """Numbers of victims, test accuracy and drop of a cell, for machines."""
    drop = Group().drop(control) if row.method == CONTROL else group.drop(control)
    return {
        "n": len(group.done),
        "failed": len(group.failed),
        **hundredths("test_acc_percent", group.spread("final_test_acc")),
        **hundredths("drop_points", drop),
        "drop_n": drop.n,
        "flags": flag_names(flags(group, control)),
    }

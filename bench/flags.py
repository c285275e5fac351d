"""What makes a number doubtful, as marks that go with it into every table.

Found from records alone, and never taken off: a marked number is shown with its mark.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.errors import UsageError
from bench.record import CONTROL
from bench.summary import LOW_CONTROL, LOW_TRAIN, LOW_TRAIN_GAP, Group, Record

FEW_SEEDS = 3
"""Fewer victims than these are a hint, not a result."""
COLLAPSE = 0.5
"""Share of the test images that one class may be predicted for."""
EXACT = ("paper",)
"""Recipes that ask for fp32, or TF32 on a GPU."""
CONTROLS = Path(__file__).resolve().parent / "controls.toml"


@dataclass(frozen=True)
class Flag:
    """A doubt about a number.

    Attributes:
        name: in tables for machines.
        mark: one character that stands behind the number.
        note: what it means.
    """

    name: str
    mark: str
    note: str


BROKEN = Flag(
    "broken-bound",
    "#",
    "the audit found released images outside the method's budget, changed where they must not be, "
    "or not finite.",
)
LOW_TRAINING = Flag(
    "low-train",
    "†",
    f"train accuracy {100 * LOW_TRAIN_GAP:.0f} points or more below the control's under the same "
    f"defense (the control itself: below {100 * LOW_TRAIN:.0f} %, or under a defense less than "
    f"{100 * LOW_CONTROL:.0f} points above chance on test images); a low test accuracy here may "
    "be failed training rather than protection.",
)
FAILED = Flag("failed-victims", "‡", "some victims failed; the mean is over the other n.")
WEAK_CONTROL = Flag(
    "low-control", "§", "the clean control is below what it is known to reach under this recipe."
)
ONE_CLASS = Flag(
    "class-collapse",
    "¶",
    f"a victim predicts one class for more than {100 * COLLAPSE:.0f} % of the test images.",
)
OTHERWISE = Flag(
    "other-training",
    "~",
    "trained in another precision than most of the table or than its recipe asks for, or in other "
    "settings than its recipe's.",
)
FEW = Flag("few-seeds", "*", f"fewer than {FEW_SEEDS} victim seeds.")

FLAGS = (BROKEN, LOW_TRAINING, FAILED, WEAK_CONTROL, ONE_CLASS, OTHERWISE, FEW)
"""In the order of their marks."""


def flags(group: Group, control: Group, precision: str | None = None) -> list[Flag]:
    """The doubts about a group of victims.

    Args:
        group: victims of one cell.
        control: those on clean images with the same architecture, recipe and defense.
        precision: of most of the table; None takes any.
    """
    done = group.done
    if not done:
        return []
    found = {
        BROKEN: any(map(is_broken, done)),
        LOW_TRAINING: group.low_train(control),
        FAILED: bool(group.failed),
        WEAK_CONTROL: is_weak(control if control.done else group),
        ONE_CLASS: any(largest_prediction(one) > COLLAPSE for one in done),
        OTHERWISE: any(is_otherwise(one, precision) for one in done),
        FEW: len(done) < FEW_SEEDS,
    }
    return [flag for flag in FLAGS if found[flag]]


def marks(found: Iterable[Flag]) -> str:
    """What stands behind a number."""
    return "".join(flag.mark for flag in found)


def notes(found: Collection[Flag]) -> list[str]:
    """What the marks of a table mean, a line each."""
    return [f"{flag.mark}: {flag.note}" for flag in FLAGS if flag in found]


def is_broken(record: Record) -> bool:
    """Whether what was released does not keep its bound."""
    audit = record["audit"] or {}
    kept = audit.get("within_budget", True)
    return not kept or bool(audit.get("changed_outside_mask")) or bool(audit.get("nan"))


def is_otherwise(record: Record, precision: str | None = None) -> bool:
    """Whether it was trained otherwise than its recipe says, or than the table's others."""
    rounded = record["recipe"] in EXACT and record["precision"] == "bf16"
    return (
        bool(record["training"])
        or rounded
        or record["precision"] != (precision or record["precision"])
    )


def largest_prediction(record: Record) -> float:
    """The share of the clean test images that the most frequent prediction takes."""
    table = record["confusion"]
    if not table:
        return 0.0
    predicted = [sum(row[column] for row in table) for column in range(len(table[0]))]
    return max(predicted) / max(sum(predicted), 1)


def is_weak(control: Group) -> bool:
    """Whether a control is below what is known of its like; unknown ones are not."""
    done = [one for one in control.done if one["method"] == CONTROL]
    if not done:
        return False
    first = done[0]
    lowest = lowest_controls().get(
        (first["dataset"], first["recipe_label"], first["arch_label"], first["defense_label"])
    )
    mean = Group(tuple(done)).spread("final_test_acc").mean
    return lowest is not None and not math.isnan(mean) and 100 * mean < lowest - 1e-9


@cache
def lowest_controls() -> dict[tuple[str, str, str, str], float]:
    """By data set, recipe, architecture and defense, what a sound control reaches, in percent."""
    try:
        listed = tomllib.loads(CONTROLS.read_text(encoding="utf-8"))["control"]
        keys = ("dataset", "recipe", "arch", "defense")
        return {
            (one[keys[0]], one[keys[1]], one[keys[2]], one[keys[3]]): one["accuracy"]
            - one["margin"]
            for one in listed
        }
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise UsageError(f"{CONTROLS} is not understood ({error})") from None

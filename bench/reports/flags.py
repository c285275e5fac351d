"""What makes a number doubtful, as marks that go with it into every table and picture.

Found from records alone, and never taken off: a marked number is shown with its mark, or below a
table whose numbers all have it. Every mark means one thing wherever it stands.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.errors import UsageError
from bench.recipe import PUBLISHED
from bench.record import CONTROL
from bench.reports.summary import CONTROLS as CONTROL_METHODS
from bench.reports.summary import (
    LONGER_ACC,
    NOISE_FOLLOWED,
    OTHER_SET,
    Group,
    Record,
    summarise,
    version_of_recipe,
)

LOW_TRAIN = 0.5
"""The control counts as badly trained when its train accuracy is below this."""
LOW_CONTROL = 0.1
"""Under a defense it does when its final test accuracy is less than this above chance."""
LOW_TRAIN_GAP = 0.1
"""Any other method does when its train accuracy is this much below the control's."""
FEW_SEEDS = 3
"""Fewer victims than these are a hint, not a result."""
COLLAPSE = 0.5
"""Share of the test images that one class may be predicted for. Where half is a class's fair share,
as with two classes, it is `UNFAIR` times that."""
UNFAIR = 1.5
SEPARABLE = 0.9
"""A perturbation is separable when its score is this part of the way from chance to 1 or more. With
ten classes that is 0.91; our crafted sets of 1000 to 5000 images lie above 0.96 or below 0.88."""
LEARNED = 0.95
"""A victim of this train accuracy has learned what it was given, whatever it follows."""
LEARNED_GAP = 0.05
"""One that is more than this above the control's has learned something that the control has not."""
FOLLOWED_GAP = 0.02
"""One that follows imprinted shortcuts by more than this above `noise` victims has learned them.
Such shares are some 0.05; of 2000 images two differ by 0.02 by chance in under one of 200 cases."""
LOWER = 0.03
"""More epochs find nothing where they lower the test accuracy by no more than this."""
EXACT = tuple(PUBLISHED)
"""Recipes that ask for fp32, or TF32 on a GPU, for reports, which know records and no classes."""
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
NO_CONTROL = Flag(
    "no-control",
    "?",
    f"no victim on {CONTROL} images with the same architecture, recipe and defense is there to "
    "show that training works.",
)
UNCHECKED = Flag(
    "unchecked-control",
    "!",
    "what the clean control should reach under this recipe is not known for this architecture and "
    "defense, so that nobody checked its training.",
)
ONE_CLASS = Flag(
    "class-collapse",
    "¶",
    f"a victim predicts one class for more than {100 * COLLAPSE:.0f} % of the test images.",
)
UNLEARNED = Flag(
    "shortcut-not-learned",
    "¬",
    "the shortcut was not learned: a victim's train accuracy is below "
    f"{100 * LEARNED:.0f} % and no more than {100 * LEARNED_GAP:.0f} points above the control's "
    "under the same defense, and it follows imprinted shortcuts no more than noise victims do "
    f"(by {100 * FOLLOWED_GAP:.0f} points at most; without such victims, than clean ones err "
    "towards each other class). It is open whether the defense removed the shortcut or training "
    "ended before it was learned. A run of twice the epochs that is no more than "
    f"{100 * LOWER:.0f} points lower lifts this mark.",
)
LINEAR = Flag(
    "separable",
    "◊",
    "a linear rule picks the right one of all protected classes from the perturbation alone: its "
    f"score is {100 * SEPARABLE:.0f} % or more of the way from chance to 100 %. Whether a network "
    "learns it is another question.",
)
OTHERWISE = Flag(
    "other-training",
    "~",
    "trained in another precision than most of the table or than its recipe asks for.",
)
ADAPTED = Flag(
    "adapted-training",
    "≈",
    "trained in other settings than its recipe's, which its network or its defense asks for.",
)
RECRAFTED = Flag(
    "other-set",
    "≠",
    "of another crafted set than most victims of this method here: crafted again with the same "
    "settings and seed, which on another machine gives other images.",
)
FEW = Flag("few-seeds", "*", f"fewer than {FEW_SEEDS} victim seeds.")

FLAGS = (BROKEN, LOW_TRAINING, FAILED, WEAK_CONTROL, NO_CONTROL, UNCHECKED)
FLAGS += (ONE_CLASS, UNLEARNED, LINEAR, OTHERWISE, ADAPTED, RECRAFTED, FEW)
"""In the order of their marks."""
GRAVE = (BROKEN, LOW_TRAINING, WEAK_CONTROL, NO_CONTROL, OTHERWISE)
"""With one of these a number speaks neither for nor against what was published or claimed.

`ADAPTED` is none of them: papers, too, train VGG without batch norm, transformers and networks with
trained weights at other rates, so that such victims are as theirs are.
"""


def flags(
    group: Group, control: Group, precision: str | None = None, strict: bool = False
) -> list[Flag]:
    """The doubts about a group of victims.

    Args:
        group: victims of one cell.
        control: those on clean images with the same architecture, recipe and defense.
        precision: of most of the table; None takes any.
        strict: whether a control that is missing, or of which nothing is known, is a doubt: where
            a number is to be compared with a published one. Elsewhere tables show that by
            themselves.
    """
    done = group.done
    if not done:
        return []
    standard = control if control.done else group
    found = {
        BROKEN: any(map(is_broken, done)),
        LOW_TRAINING: is_badly_trained(group, control),
        FAILED: bool(group.failed),
        WEAK_CONTROL: is_weak(standard),
        NO_CONTROL: strict and not any(one["method"] == CONTROL for one in standard.done),
        UNCHECKED: strict and bool(_controls(standard)) and lowest_of(standard) is None,
        ONE_CLASS: any(map(is_of_one_class, done)),
        UNLEARNED: any(is_unlearned(one, control) for one in done),
        LINEAR: any(map(is_separable, done)),
        OTHERWISE: any(is_otherwise(one, precision) for one in done),
        ADAPTED: any(one["training"] for one in done),
        RECRAFTED: any(one.get(OTHER_SET) for one in done),
        FEW: len(done) < FEW_SEEDS,
    }
    return [flag for flag in FLAGS if found[flag]]


def flags_of_all(groups: Iterable[tuple[Group, Group]], victims: int) -> list[Flag]:
    """The doubts about a number that several groups went into.

    Args:
        groups: each with the control beside it.
        victims: how many, or how many pairs, the number is a mean over.
    """
    groups = list(groups)
    found = {flag for group, control in groups for flag in flags(group, control)} - {FEW}
    found |= {FAILED} if any(group.failed for group, _ in groups) else set()
    found |= {FEW} if victims < FEW_SEEDS else set()
    return [flag for flag in FLAGS if flag in found]


def flag_names(found: Iterable[Flag]) -> str:
    """Doubts for machines."""
    return " ".join(flag.name for flag in found)


@dataclass(frozen=True)
class Number:
    """A number of a table, with the doubts about it.

    Attributes:
        text: the number.
        flags: the doubts.
        after: what stands behind the marks.
    """

    text: str
    flags: Collection[Flag] = ()
    after: str = ""


def settle(lines: Iterable[Sequence[str | Number]]) -> tuple[list[list[str]], list[str]]:
    """The cells of a table as texts, and what its marks mean.

    A doubt that all of several numbers share is told once instead of behind each.

    Args:
        lines: of the table; a cell without doubts of its own is a text.
    """
    lines = list(lines)
    numbers = [cell for line in lines for cell in line if isinstance(cell, Number)]
    found = [flag for flag in FLAGS if any(flag in number.flags for number in numbers)]
    shared = [
        flag
        for flag in found
        if len(numbers) > 1 and all(flag in number.flags for number in numbers)
    ]
    shown = [flag for flag in found if flag not in shared]

    def text(cell: str | Number) -> str:
        if isinstance(cell, str):
            return cell
        return cell.text + "".join(f.mark for f in shown if f in cell.flags) + cell.after

    notes = [f"all numbers: {flag.note}" for flag in shared]
    notes += [f"{flag.mark}: {flag.note}" for flag in shown]
    return [[text(cell) for cell in line] for line in lines], notes


def is_badly_trained(group: Group, control: Group) -> bool:
    """Whether a low test accuracy could be failed training; see `LOW_TRAIN`.

    Under a defense the train accuracy is on images that the defense alters, and says nothing by
    itself: the control is judged by its test accuracy there, and a method only against the control.
    """
    if not group.done:
        return False
    first = group.done[0]
    own, other = (one.spread("final_train_acc").mean for one in (group, control))
    if first["method"] != CONTROL and not math.isnan(other):
        limit = other - LOW_TRAIN_GAP
    elif first["defense"] == "none":
        limit = LOW_TRAIN
    elif first["method"] == CONTROL:
        own = group.spread("final_test_acc").mean
        limit = 1 / len(first["classes"]) + LOW_CONTROL
    else:
        return False
    # A difference of exactly the gap must not be decided by the last bit of a float.
    return own < limit - 1e-9


def is_unlearned(record: Record, control: Group) -> bool:
    """Whether it is open if its victim's shortcut was removed or training ended too early.

    A shortcut that was learned raises the train accuracy above the control's, or at least makes
    victims follow it on test images. Where either is not known there is no doubt, and never about
    a control.

    Args:
        record: of one victim.
        control: those on clean images with the same architecture, recipe and defense.
    """
    train, followed = record["final_train_acc"], (record.get("shortcut") or {}).get("next_followed")
    if record["method"] in CONTROL_METHODS or train is None or followed is None:
        return False
    usual = control.spread("final_train_acc").mean
    # A victim that ignores shortcuts errs towards each of the other classes alike.
    errors = 1 - control.spread("final_test_acc").mean
    by_chance = errors / max(len(record["classes"]) - 1, 1)
    most = record.get(NOISE_FOLLOWED, by_chance) + FOLLOWED_GAP
    longer = record.get(LONGER_ACC)
    lifted = longer is not None and longer >= record["final_test_acc"] - LOWER - 1e-9
    return (
        train < LEARNED - 1e-9
        and train <= usual + LEARNED_GAP + 1e-9  # never of a mean that is NaN
        and followed <= most + 1e-9
        and not lifted
    )


def unlearned(records: Iterable[Record]) -> list[str]:
    """Keys of the records of a results folder whose victims have not learned the shortcut."""
    return [
        one["key"]
        for summary in summarise(records)
        for (row, column), group in summary.groups.items()
        for one in group.done
        if is_unlearned(one, summary.control(row, column))
    ]


def is_broken(record: Record) -> bool:
    """Whether what was released does not keep its bound."""
    audit = record["audit"] or {}
    kept = audit.get("within_budget", True)
    return not kept or bool(audit.get("changed_outside_mask")) or bool(audit.get("nan"))


def is_separable(record: Record) -> bool:
    """Whether the perturbation alone gives the class away; where no score is known it does not."""
    score = record.get("separability")
    chance = 1 / len(record.get("protected_classes") or record["classes"])
    return score is not None and score >= chance + SEPARABLE * (1 - chance) - 1e-9


def is_otherwise(record: Record, precision: str | None = None) -> bool:
    """Whether its precision is not its recipe's, or not that of the table's others."""
    rounded = record["recipe"] in EXACT and record["precision"] == "bf16"
    return rounded or record["precision"] != (precision or record["precision"])


def is_of_one_class(record: Record) -> bool:
    """Whether its victim predicts one class for most test images; see `COLLAPSE`."""
    limit = max(COLLAPSE, UNFAIR / max(len(record["classes"]), 1))
    return largest_prediction(record) > min(limit, 1.0) + 1e-9


def largest_prediction(record: Record) -> float:
    """The share of the clean test images that the most frequent prediction takes."""
    table = record["confusion"]
    if not table:
        return 0.0
    predicted = [sum(row[column] for row in table) for column in range(len(table[0]))]
    return max(predicted) / max(sum(predicted), 1)


def is_weak(control: Group) -> bool:
    """Whether a control is below what is known of its like; unknown ones are not."""
    lowest = lowest_of(control)
    mean = Group(tuple(_controls(control))).spread("final_test_acc").mean
    return lowest is not None and not math.isnan(mean) and 100 * mean < lowest - 1e-9


def lowest_of(control: Group) -> float | None:
    """What a sound control of its kind reaches, in percent; None where that is not known."""
    for first in _controls(control):
        name, _, settings = first["recipe_label"].partition(":")
        # How many test images the points of a curve are taken on changes no training.
        told = [one for one in settings.split(",") if one and not one.startswith("curve_images=")]
        recipe = ":".join([name, *([",".join(told)] if told else [])])
        named = (recipe, version_of_recipe(first))
        kind = (first["dataset"], *named, first["arch_label"], first["defense_label"])
        return lowest_controls().get(kind)
    return None


def _controls(group: Group) -> list[Record]:
    """Victims on all clean images."""
    return [one for one in group.done if one["method"] == CONTROL and not one["holdout"]]


@cache
def lowest_controls() -> dict[tuple[str, str, int, str, str], float]:
    """What a sound control reaches, in percent.

    By data set, recipe, its version, architecture and defense.
    """
    try:
        listed = tomllib.loads(CONTROLS.read_text(encoding="utf-8"))["control"]
        return {
            (one["dataset"], one["recipe"], one.get("version", 1), one["arch"], one["defense"]): (
                one["accuracy"] - one["margin"]
            )
            for one in listed
        }
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise UsageError(f"{CONTROLS} is not understood ({error})") from None

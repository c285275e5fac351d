"""What stands above and below tables: scale, seeds, failures, settings."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from bench.errors import NOT_RUN
from bench.recipe import PUBLISHED
from bench.record import CONTROL, EACH
from bench.reports.cells import KNOWS, defense_phrase, last_line
from bench.reports.summary import (
    NOTHING,
    PAPER_WIDTH,
    Context,
    Group,
    Record,
    Summary,
    value_text,
    width_text,
)

PEAK_NOTE = "peak: best epoch on the test set, an oracle no trainer has."
SMALL_SCALE = (
    "Small scale: not comparable with published values, and the order inside a family of methods "
    "means nothing."
)


def scale(summary: Summary) -> list[str]:
    """The scale of a context in a sentence, and a second one where it is below the paper's."""
    context, settings = summary.context, summary.context.settings
    widths = sorted({column.width for column in summary.columns}, reverse=True)
    parts = [
        f"{context.dataset}, {context.train_images} training and {_tests(summary)} test images",
        f"recipe {context.recipe_label}{_version(context)}, {_epochs(settings.get('epochs'))}",
        f"width {', '.join(map(width_text, widths))}",
        context.precision,
        crafting_text(context.craft_seed),
        *([f"sets of recipe {context.crafting_recipe}"] if context.crafting_recipe else []),
        *([f"poison ratio {context.poison_ratio:g}"] if context.poison_ratio != 1 else []),
        *_protected(summary),
        *([f"{context.holdout} images held out"] if context.holdout else []),
        *_only_defense(summary),
        *_common_epsilon(summary),
        f"chance {100 * chance(summary):.3g} %",
    ]
    return ["; ".join(parts) + ".", *([SMALL_SCALE] if is_small(summary) else [])]


def _version(context: Context) -> str:
    return f" (version {context.recipe_version})" if context.recipe_version > 1 else ""


def crafting_text(craft_seed: int | str) -> str:
    """Of which crafting seed the crafted sets are."""
    each = craft_seed == EACH
    return "a crafted set for each victim" if each else f"crafting seed {craft_seed}"


def chance(summary: Summary) -> float:
    """Accuracy of guessing."""
    return 1 / max(len(record["classes"]) for record in summary.records)


def _epochs(count: int | None) -> str:
    return "1 epoch" if count == 1 else f"{'?' if count is None else count} epochs"


def _tests(summary: Summary) -> str:
    return " or ".join(map(str, sorted({record["test_images"] for record in summary.records})))


def _only_defense(summary: Summary) -> list[str]:
    """The defense, where it has no column of its own."""
    defense, *others = summary.defenses
    return [] if others else [defense_phrase(summary, defense)]


def _protected(summary: Summary) -> list[str]:
    """The only classes that are protected, by name."""
    chosen = summary.context.protected_classes
    if not chosen:
        return []
    classes = next((r["classes"] for r in summary.records), [])
    names = [str(classes[index]) if index < len(classes) else str(index) for index in chosen]
    return [f"protected classes {', '.join(names)}"]


def is_small(summary: Summary) -> bool:
    """Whether less was trained than its paper trains: its recipe, images, epochs or width."""
    settings = summary.context.settings
    return (
        summary.context.recipe not in PUBLISHED
        or settings.get("train_images") is not None
        or settings.get("epochs", math.inf) < PUBLISHED[summary.context.recipe]
        or any(column.width < PAPER_WIDTH for column in summary.columns)
    )


def _common_epsilon(summary: Summary) -> list[str]:
    """The radius of all l-inf methods, if they share one; radii of 0 belong to controls."""
    rows = [row for row in summary.rows if row.method != CONTROL and row.norm == "linf"]
    budgets = {row.budget for row in rows if row.epsilon}
    return [f"l∞ methods keep {budgets.pop().split()[-1]}"] if len(budgets) == 1 else []


def usual_seeds(summary: Summary) -> int:
    """The number of victims of a complete cell; a cell with another number says so."""
    return max((len(g.done) + len(g.failed) for g in summary.groups.values()), default=0)


def over_seeds(usual: int) -> str:
    """What a cell is of, where a complete one has so many victims."""
    if usual == 1:
        return "1 victim seed"
    return f"mean ± sample standard deviation over {usual} victim seeds"


def failures(named: Iterable[tuple[str, Group]]) -> Iterator[str]:
    """Which victims of named groups failed or could not be run, a line for each reason."""
    cells: dict[str, list[str]] = defaultdict(list)
    for place, group in named:
        for record in group.failed:
            cells[last_line(record["error"])].append(f"{place}, seed {record['seed']}")
    for error, names in cells.items():
        kind = "not run" if error.startswith(NOT_RUN) else "failed"
        yield f"{kind}: {'; '.join(names)}: {error.removeprefix(NOT_RUN)}"


def deviations(label: str, records: Iterable[Record], but: Collection[str] = ()) -> Iterator[str]:
    """A line on the settings in which the records of one method depart from its paper.

    Args:
        label: of the method.
        records: of it.
        but: settings to leave out.
    """
    found: dict[str, list[Any]] = {}
    for record in records:
        found.update(record["method_deviations"])
    pairs = [
        f"{name} {value_text(ours, name)} (paper {value_text(theirs, name)})"
        for name, (ours, theirs) in sorted(found.items())
        if name not in but
    ]
    if pairs:
        yield f"{label}: {', '.join(pairs)}"


def known(summary: Summary, shown: Iterable[Sequence[str]], more: str = "") -> Iterator[str]:
    """Which defenses know more than the released images, and what.

    Args:
        summary: of one context.
        shown: the rows of a table; where no defense in it is marked, there is nothing to say.
        more: what else is to be said of them.
    """
    if not any(KNOWS in cell for line in shown for cell in line):
        return
    knowing: dict[str, list[str]] = defaultdict(list)
    for (_, label), told in summary.knows.items():
        if told != NOTHING:
            knowing[told].append(label)
    said = "; ".join(f"{', '.join(names)}: {told}" for told, names in knowing.items())
    yield f"{KNOWS}: knows more than the released images{more}: {said}."


def defense_notes(summary: Summary) -> Iterator[str]:
    """The settings of every defense that has any, and what else its records say of it."""
    found: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for (row, _), group in summary.groups.items():
        found[summary.defense_of(row)] += group.done + group.failed
    for name in summary.defenses:
        records = found[name]
        words = dict.fromkeys(word for one in records for word in one.get("defense_notes", []))
        parts = [_defense_settings(records), _facts(records), ", ".join(words)]
        if any(parts):
            yield f"{name[1]}: {'; '.join(filter(None, parts))}"


def _defense_settings(records: Iterable[Record]) -> str:
    """All settings of a defense, with the paper's where they depart from it."""
    settings: dict[str, Any] = {}
    paper: dict[str, Any] = {}
    for record in records:
        settings.update(record["defense_settings"])
        # Older records do not tell.
        for name, (ours, theirs) in record.get("defense_deviations", {}).items():
            settings[name], paper[name] = ours, theirs
    return ", ".join(
        f"{name} {value_text(value, name)}"
        + (f" (paper {value_text(paper[name], name)})" if name in paper else "")
        for name, value in settings.items()
    )


def _facts(records: Iterable[Record]) -> str:
    """What can be said of a defense beforehand; it may depend on the number of images."""
    found: dict[str, set[float]] = defaultdict(set)
    for record in records:
        for name, value in record.get("defense_facts", {}).items():
            found[name].add(value)
    return ", ".join(
        f"{name} {' or '.join(dict.fromkeys(map(value_text, sorted(values))))}"
        for name, values in found.items()
    )


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings with their values, by name."""
    return ", ".join(
        f"{name} {value_text(value, name)}" for name, value in sorted(settings.items())
    )

"""What differs between two results folders: numbers, by how many standard errors, and settings.

This is of cells; `bench.compare.studies` does the same for studies.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bench import record
from bench.errors import UsageError
from bench.record import CONTROL
from bench.reports.summary import Column, Context, Record, Row, Spread
from bench.reports.table import MISSING

MOVED = 2.0
"""A difference of more standard errors than this is called a move."""

COST = (
    *("finished", "seconds", "core_seconds", "crafting_seconds", "peak_memory"),
    *("device", "commit", "versions"),
)
"""Fields of a record that say when, where and for how long: no results."""
TOLD = (
    *("method_label", "defense_label", "arch_label", "recipe_label"),
    *("method_deviations", "defense_deviations", "defense_notes", "defense_facts"),
    *("arch_notes", "side_information", "training"),
)
"""Fields that describe what the key decides; how it is put may change between versions."""


def results_differ(one: Record, other: Record) -> list[str]:
    """The fields of results in which two records differ.

    A field that one of them does not have, because it is older, is no difference.
    """
    names = [name for name in one if name in other and name not in (*COST, *TOLD)]
    return [name for name in names if not _same(one[name], other[name])]


def _same(one: Any, other: Any) -> bool:
    """Equality in which 1 is 1.0, and NaN, which a diverged training leaves, is NaN."""
    return one == other or json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@dataclass(frozen=True)
class Place:
    """Where a reader looks for a number: all that was asked for but the seed and the precision.

    A data set is its content, whatever its folder is called. Settings are JSON text; those of the
    curve are left out, which decide no final accuracy.
    """

    dataset: str = field(compare=False)
    dataset_digest: str
    train_images: int
    recipe: str
    recipe_label: str = field(compare=False)
    recipe_settings: str
    holdout: int
    poison_ratio: float
    protected_classes: tuple[int, ...]
    craft_seed: int | str
    crafting_recipe: str
    row: Row
    column: Column

    @classmethod
    def of(cls, one: Record) -> Place:
        """The place of a record."""
        context, row = Context.of(one), Row.of(one)
        if row.method == CONTROL:
            # It is neither crafted nor mixed, and has no budget.
            context, row = context.training, replace(row, norm="none", epsilon=None)
        settings = {k: v for k, v in context.settings.items() if not k.startswith("curve")}
        return cls(
            dataset=context.dataset,
            dataset_digest=context.dataset_digest,
            train_images=context.train_images,
            recipe=context.recipe,
            recipe_label=context.recipe_label,
            recipe_settings=json.dumps(settings, sort_keys=True),
            holdout=context.holdout,
            poison_ratio=context.poison_ratio,
            protected_classes=context.protected_classes,
            craft_seed=context.craft_seed,
            crafting_recipe=context.crafting_recipe,
            row=row,
            column=Column.of(one),
        )

    @property
    def order(self) -> tuple[Any, ...]:
        """As tables are ordered."""
        first = (
            self.dataset,
            self.dataset_digest,
            self.recipe_label,
            self.train_images,
            self.holdout,
        )
        mixed = (self.poison_ratio, self.protected_classes, self.craft_seed)
        return (*first, *mixed, self.row.order, self.column.order)

    @property
    def bare(self) -> Place:
        """The same without any settings."""
        row = replace(self.row, method_settings="", defense_settings="")
        return replace(self, recipe_settings="", row=row)

    def agrees(self, other: Place) -> bool:
        """Whether every setting that both name has one value: one may know settings more."""
        mine, theirs = ((p.recipe_settings, *_settings(p.row)) for p in (self, other))
        pairs = [(json.loads(a), json.loads(b)) for a, b in zip(mine, theirs, strict=True)]
        return all(_same(a[name], b[name]) for a, b in pairs for name in a.keys() & b.keys())


def _settings(row: Row) -> tuple[str, str]:
    return row.method_settings, row.defense_settings


@dataclass(frozen=True)
class Move:
    """The difference between two sides.

    Attributes:
        before: mean of A over the seeds that count, a fraction.
        after: mean of B.
        difference: B minus A.
        error: standard error of the difference; NaN where a side has one seed.
        freedom: its degrees of freedom.
        sizes: victims that count, of A and of B; a single number where they are paired.
    """

    before: float
    after: float
    difference: float
    error: float
    freedom: float
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, a: Mapping[int, float], b: Mapping[int, float]) -> Move:
        """Paired where both sides have two seeds or more in common, else Welch's.

        Args:
            a: accuracies by victim seed; at least one.
            b: likewise.
        """
        common = sorted(a.keys() & b.keys())
        several = min(len(a), len(b)) > 1
        if len(common) > 1 or (common and not several):
            pairs = Spread.of(b[seed] - a[seed] for seed in common)
            before, after = (Spread.of(side[seed] for seed in common) for side in (a, b))
            error = pairs.sd / math.sqrt(pairs.n)
            return cls(before.mean, after.mean, pairs.mean, error, pairs.n - 1, (pairs.n,))
        before, after = Spread.of(a.values()), Spread.of(b.values())
        parts = [side.sd**2 / side.n for side in (before, after)]
        error, freedom = math.sqrt(sum(parts)), math.nan
        if several and error:
            terms = zip(parts, (before.n, after.n), strict=True)
            freedom = sum(parts) ** 2 / sum(part**2 / (n - 1) for part, n in terms)
        difference = after.mean - before.mean
        return cls(before.mean, after.mean, difference, error, freedom, (before.n, after.n))

    @property
    def errors(self) -> float:
        """The difference in standard errors, without its sign; NaN where there are none."""
        if math.isnan(self.error):
            return math.nan
        size = 0.0 if abs(self.difference) < 1e-12 else abs(self.difference)
        # Differences that are all equal but for dust of binary fractions have no spread.
        if self.error < 1e-12:
            return math.inf if size else 0.0
        return size / self.error

    @property
    def chance(self) -> float:
        """How probable a move is where nothing changed but the noise of training."""
        from scipy.special import stdtr

        if not self.error > 1e-12:
            return 0.0
        return 2 * float(stdtr(self.freedom, -MOVED))


@dataclass(frozen=True)
class Pair:
    """One cell, its seeds pooled, on both sides; a side may have none.

    Attributes:
        place: of the cell.
        a: records by victim seed.
        b: likewise.
    """

    place: Place
    a: Mapping[int, Record]
    b: Mapping[int, Record]

    @cached_property
    def move(self) -> Move | None:
        """None unless both sides have a number."""
        a, b = numbers(self.a), numbers(self.b)
        return Move.of(a, b) if a and b else None

    @property
    def identical(self) -> bool:
        """Whether all seeds that both sides have are the same records with the same results."""
        common = [(self.a[seed], self.b[seed]) for seed in self.a.keys() & self.b.keys()]
        return bool(common) and all(
            one["key"] == other["key"]
            and one["status"] == other["status"]
            and not results_differ(one, other)
            for one, other in common
        )

    @property
    def recrafted(self) -> bool:
        """Whether the two sides were trained on other crafted images."""
        sets = [{one["crafted_key"] for one in side.values()} - {None} for side in (self.a, self.b)]
        return self.place.row.method != CONTROL and bool(all(sets)) and sets[0] != sets[1]

    @cached_property
    def differing(self) -> dict[str, tuple[str, str]]:
        """What differs beside the numbers, each with its value in A and in B."""
        a, b = ([facts_of(one) for one in side.values()] for side in (self.a, self.b))
        return differences(a, b) if a and b else {}


@dataclass(frozen=True)
class Comparison:
    """Two results folders side by side.

    Attributes:
        pairs: cells of both, or of one of them.
        counts: records of A and of B.
        equal_keys: how many records of A and B have the same key, and numbers on both sides.
        unequal: those of them whose results differ.
        superseded: records left out because a later one is of the same cell and seed.
    """

    pairs: Sequence[Pair]
    counts: tuple[int, int]
    equal_keys: int
    unequal: Sequence[tuple[Record, Record]]
    superseded: int


def compare(a: Iterable[Record], b: Iterable[Record]) -> Comparison:
    """Match the records of two folders by what they are for a reader.

    Cells that are found on one side only are matched with such of the other precision, and then
    with such that agree in all settings that both name, where that leaves no choice.
    """
    sides = [list(a), list(b)]
    first, second = ({one["key"]: one for one in side if _number(one)} for side in sides)
    equal = [(first[key], second[key]) for key in first if key in second]
    cells = [_cells(side) for side in sides]
    places: list[tuple[_Spot | None, _Spot | None]] = []
    left = [dict.fromkeys(side) for side in cells]
    for coarse, same in _PASSES:
        places += (matched := list(_matches(left[0], left[1], coarse, same)))
        for one, other in matched:
            del left[0][one], left[1][other]
    places += [*((spot, None) for spot in left[0]), *((None, spot) for spot in left[1])]
    pairs = [
        Pair(
            (one or other)[0],  # type: ignore[index]
            cells[0][one] if one else {},
            cells[1][other] if other else {},
        )
        for one, other in places
    ]
    return Comparison(
        pairs=sorted(pairs, key=lambda pair: pair.place.order),
        counts=(len(sides[0]), len(sides[1])),
        equal_keys=len(equal),
        unequal=[(one, other) for one, other in equal if results_differ(one, other)],
        superseded=sum(map(len, sides)) - sum(len(s) for side in cells for s in side.values()),
    )


_Spot = tuple[Place, str]
"""A place and a precision."""

_PASSES: tuple[tuple[Callable[[_Spot], Any], Callable[[_Spot, _Spot], bool]], ...] = (
    (lambda spot: spot, lambda one, other: True),
    (lambda spot: spot[0], lambda one, other: True),
    (lambda spot: spot[0].bare, lambda one, other: one[0].agrees(other[0])),
)


def _matches(
    a: Iterable[_Spot],
    b: Iterable[_Spot],
    coarse: Callable[[_Spot], Any],
    same: Callable[[_Spot, _Spot], bool],
) -> Iterator[tuple[_Spot, _Spot]]:
    """Those of A and B that are the same to each other and to no third."""
    bins: dict[Any, tuple[list[_Spot], list[_Spot]]] = defaultdict(lambda: ([], []))
    for side, spots in enumerate((a, b)):
        for spot in spots:
            bins[coarse(spot)][side].append(spot)
    for ours, theirs in bins.values():
        for one in ours:
            found = [other for other in theirs if same(one, other)]
            if len(found) == 1 and sum(same(third, found[0]) for third in ours) == 1:
                yield one, found[0]


def _cells(records: Iterable[Record]) -> dict[_Spot, dict[int, Record]]:
    """Records by place, precision and victim seed; of two of the same the later one counts."""
    cells: dict[_Spot, dict[int, Record]] = defaultdict(dict)
    for one in sorted(records, key=lambda r: (r["finished"], r["key"])):
        cells[Place.of(one), one["precision"]][one["seed"]] = one
    return cells


def _number(one: Record) -> bool:
    value = one["final_test_acc"]
    return one["status"] == "done" and value is not None and math.isfinite(value)


def numbers(side: Mapping[int, Record]) -> dict[int, float]:
    """Final accuracies by victim seed, of those that have one."""
    return {seed: one["final_test_acc"] for seed, one in side.items() if _number(one)}


# What stands behind a record, in words.

DIGEST = 12
"""Of a hash so many digits are told."""
_HASH = re.compile("[0-9a-f]{64}")


def facts_of(one: Record) -> dict[str, str]:
    """Everything beside numbers that may differ between two records, of cells or of studies."""
    facts = {
        "precision": one["precision"],
        "dataset_digest": one["dataset_digest"],
        **_flat("training", one.get("training", {})),
        **_flat("", one["versions"]),
        **_flat("device", {k: v for k, v in one["device"].items() if k != "cores"}),
        **_flat("recipe", one["recipe_settings"]),
        **_flat("", {k: v for k, v in one["identity"].items() if k != "seed"}),
        "commit": one["commit"][:7] + "+" * one["commit"].endswith("+"),
    }
    return {name: short(value) for name, value in facts.items()}


def differences(
    a: Sequence[Mapping[str, str]], b: Sequence[Mapping[str, str]]
) -> dict[str, tuple[str, str]]:
    """The facts of two sides' records that are not the same, each with its value in A and in B."""
    names = dict.fromkeys(name for facts in (*a, *b) for name in facts)
    found: dict[str, tuple[str, str]] = {}
    for name in sorted(names, key=lambda name: (name.startswith("commit"), name.count("."))):
        values = [{facts.get(name, MISSING) for facts in side} for side in (a, b)]
        if values[0] == values[1]:
            continue
        told = some(values[0]), some(values[1])
        # A precision stands in an identity once for each part; the shortest path will do.
        last = name.rpartition(".")[2]
        if not any(
            told == other and (last == path.rpartition(".")[2] or len(told[0]) == DIGEST)
            for path, other in found.items()
        ):
            found[name] = told
    return found


def words_of(differing: Mapping[str, tuple[str, str]]) -> str:
    """What differs, in words."""
    return "; ".join(f"{name} {old} in A, {new} in B" for name, (old, new) in differing.items())


def _flat(name: str, value: Any) -> dict[str, Any]:
    """Nested values by their path."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = {str(index): item for index, item in enumerate(value)}
    if not isinstance(value, dict):
        return {name: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        # A recipe's settings are its own, once by its field and once in the identity.
        path = name if (name, key) == ("recipe", "settings") else f"{name}.{key}".strip(".")
        found |= _flat(path, item)
    return found


def short(value: Any) -> str:
    """A value as text, hashes cut."""
    text = value if isinstance(value, str) else json.dumps(value)
    return _HASH.sub(lambda found: found[0][:DIGEST], text)


def some(values: Iterable[str]) -> str:
    """A few values in words."""
    first, *others = sorted(values)
    if len(others) < 3:
        return " or ".join((first, *others))
    return f"{first} and {len(others)} others"


def told(one: Record, seeds: str | None = None) -> str:
    """A record by what people call it."""
    defense = "" if one["defense"] == "none" else f" under {one['defense_label']}"
    place = f"{one['method_label']} on {Column.of(one)}{defense}"
    return f"{place}, seed {one['seed'] if seeds is None else seeds} ({one['key'][:DIGEST]})"


def fields(one: Record, other: Record) -> str:
    """The results in which two records differ, with their values where those are numbers."""
    said = []
    for name in results_differ(one, other):
        values = one[name], other[name]
        plain = all(isinstance(value, int | float | type(None)) for value in values)
        said.append(f"{name} {values[0]} and {values[1]}" if plain else name)
    return ", ".join(said)


# Files.


def read_folder(folder: Path, notes: list[str]) -> list[Record]:
    """The records of a results folder that a table can be made of.

    Args:
        folder: the one that holds `cells/`, or `studies/` alone.
        notes: takes a line for every file that is left out.

    Raises:
        UsageError: if there is no such folder.
    """
    check_rooms(folder)
    return [one for one, _ in read_files(folder, notes)]


def check_rooms(folder: Path) -> None:
    """Raise UsageError unless it is a results folder."""
    rooms = [folder / room for room in (record.CELLS, record.STUDIES)]
    if not any(room.is_dir() for room in rooms):
        missing = " or ".join(map(str, rooms))
        raise UsageError(f"{folder} holds no records (no folder {missing})")


def read_files(
    folder: Path, notes: list[str], room: str = record.CELLS
) -> Iterator[tuple[Record, Path]]:
    """The sound records in a room of a results folder, each with its file.

    Args:
        folder: the one that holds the room.
        notes: takes a line for every file that is left out.
        room: `CELLS` or `STUDIES`.

    Raises:
        NewerRecordError: if a record is of a newer version, which may mean anything.
    """
    for file in sorted((folder / room).glob("*.json")):
        try:
            yield record.read(file), file
        except record.NewerRecordError:
            raise
        except UsageError as error:
            notes.append(f"left out: {error}")

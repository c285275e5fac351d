"""Which records may stand in one table, and what a cell of it says about them."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

from bench.files import slugify
from bench.record import CLEAN_PART, CONTROL, EACH

Record = Mapping[str, Any]

CONTROLS = (CONTROL, CLEAN_PART, "sham", "noise")
"""Methods that stand first in tables and plots, in this order; the others follow by name."""

PAPER_WIDTH = 1.0

SAME_SET = 1e-5
"""Relative difference up to which two audits are of one crafted set: the same images measured by
other processors differ by .0000003, sets crafted again on another machine by .0001 and more."""
OTHER_SET = "other_set"
"""Field of a record whose crafted set is not the one that most victims under its key had."""
NOISE_FOLLOWED = "noise_followed"
"""Field of a record: the share of imprinted shortcuts that `noise` victims beside it follow."""
LONGER_ACC = "longer_test_acc"
"""Field of a record: test accuracy of the same cell after twice its epochs or more, the longest."""

NOTHING = "none"
"""The side information of most defenses."""

LARGEST_FRACTION = 32 / 255
"""Larger radii and steps are not told as multiples of 1/255: they belong to l2 balls."""


@dataclass(frozen=True)
class Context:
    """What the cells of one table share.

    `recipe_settings` is JSON text, so that contexts can be compared and sorted.
    """

    dataset: str = field(compare=False)
    dataset_digest: str
    train_images: int
    recipe: str
    recipe_label: str
    recipe_settings: str
    precision: str
    holdout: int
    poison_ratio: float
    craft_seed: int | str
    """Of the one set of each method, or `EACH`."""
    protected_classes: tuple[int, ...] = ()
    """The only classes that are protected; none stand for all."""
    recipe_version: int = 1
    crafting_recipe: str = ""
    """The recipe that crafted sets are of; empty for the same as the victims'."""

    @classmethod
    def of(cls, record: Record) -> Context:
        """The context that a record belongs to."""
        values = {name: record[name] for name in cls.__dataclass_fields__ if name in record}
        values["protected_classes"] = tuple(record.get("protected_classes", ()))
        values["recipe_settings"] = _json(record["recipe_settings"])
        values["poison_ratio"] = float(record["poison_ratio"])
        return cls(**values, recipe_version=version_of_recipe(record))

    @property
    def settings(self) -> dict[str, Any]:
        """The resolved settings of the recipe."""
        return json.loads(self.recipe_settings)

    @property
    def training(self) -> Context:
        """The part that matters to the control, which is not crafted and has nothing to mix."""
        return replace(
            self, poison_ratio=1.0, craft_seed=0, protected_classes=(), crafting_recipe=""
        )

    @property
    def slug(self) -> str:
        """A file name for people, with six digits of a hash against collisions."""
        parts = [self.dataset, self.recipe_label, self.train_images, self.precision]
        parts += [f"ratio{self.poison_ratio:g}"] if self.poison_ratio != 1 else []
        classes = "-".join(map(str, self.protected_classes[:12]))
        parts += [f"classes{classes}"] if classes else []
        parts += [f"holdout{self.holdout}"] if self.holdout else []
        parts += [f"craft{self.craft_seed}"] if self.craft_seed else []
        parts += [f"by-{self.crafting_recipe}"] if self.crafting_recipe else []
        # These were added later: where they say nothing a context keeps its file names.
        told = {name: getattr(self, name) for name in self.__dataclass_fields__}
        told |= {} if classes else {"protected_classes": None}
        told |= {} if self.recipe_version > 1 else {"recipe_version": None}
        told |= {} if self.crafting_recipe else {"crafting_recipe": None}
        said = ", ".join(f"{k}={v!r}" for k, v in told.items() if v is not None)
        digest = hashlib.sha256(f"Context({said})".encode()).hexdigest()[:6]
        return f"{slugify('-'.join(map(str, parts)))}-{digest}"


def version_of_recipe(record: Record) -> int:
    """Which form of a recipe it was, as a name stays when its settings are found anew."""
    return record["identity"].get("recipe", {}).get("version", 1)


@dataclass(frozen=True)
class Row:
    """A line of a table: a defense and a method, each with all of its settings."""

    # Labels tell how it was typed, which may differ between seeds of one row.
    defense: str
    defense_label: str = field(compare=False)
    defense_settings: str
    method: str
    method_label: str = field(compare=False)
    method_settings: str
    norm: str
    epsilon: float | tuple[float, ...] | None

    @classmethod
    def of(cls, record: Record) -> Row:
        """The line that a record belongs to."""
        budget = record["budget"]
        return cls(
            defense=record["defense"],
            defense_label=record["defense_label"],
            defense_settings=_json(record["defense_settings"]),
            method=record["method"],
            method_label=record["method_label"],
            method_settings=_json(record["method_settings"]),
            norm=budget.get("norm") or "none",
            epsilon=_radius(budget.get("epsilon")),
        )

    @property
    def order(self) -> tuple[Any, ...]:
        """No defense first; within a defense as `method_order`."""
        defense = (self.defense != "none", self.defense_label, self.defense_settings)
        return (*defense, *self.method_order)

    @property
    def method_order(self) -> tuple[Any, ...]:
        """The controls first; then by name."""
        place = CONTROLS.index(self.method) if self.method in CONTROLS else len(CONTROLS)
        method = (place, self.method_label, self.method_settings)
        return (*method, self.norm, _tuple(self.epsilon))

    @property
    def budget(self) -> str:
        """How far this method may change an image; empty for the control, which changes none."""
        from bench.budget import Budget

        if self.method == CONTROL:
            return ""
        epsilon = list(self.epsilon) if isinstance(self.epsilon, tuple) else self.epsilon
        return str(Budget.read({"norm": self.norm, "epsilon": epsilon}))


@dataclass(frozen=True, order=True)
class Column:
    """An architecture at a width."""

    arch: str
    arch_label: str
    width: float

    @classmethod
    def of(cls, record: Record) -> Column:
        """The architecture that a record was trained with."""
        return cls(record["arch"], record["arch_label"], float(record["width"]))

    @property
    def order(self) -> tuple[Any, ...]:
        """By name, wide before narrow."""
        return self.arch, self.arch_label, -self.width

    def __str__(self) -> str:
        said = self.width == PAPER_WIDTH or "width=" in self.arch_label
        return self.arch_label if said else f"{self.arch_label} ×{width_text(self.width)}"


@dataclass(frozen=True)
class Spread:
    """Mean, sample standard deviation and number of some values; NaN where undefined."""

    mean: float
    sd: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread:
        """The spread of the values that are there."""
        there = [value for value in values if value is not None]
        mean = statistics.fmean(there) if there else math.nan
        sd = statistics.stdev(there) if len(there) > 1 else math.nan
        return cls(mean, sd, len(there))


@dataclass(frozen=True)
class Group:
    """The records of one row and column, in order of victim seed."""

    done: tuple[Record, ...] = ()
    failed: tuple[Record, ...] = ()

    def spread(self, field: str) -> Spread:
        """The spread of a field over the seeds that are done."""
        return Spread.of(record[field] for record in self.done)

    def drop(self, control: Group) -> Spread:
        """Control minus this in final test accuracy, paired by seed."""
        before = {record["seed"]: record["final_test_acc"] for record in control.done}
        return Spread.of(
            before[record["seed"]] - record["final_test_acc"]
            for record in self.done
            if before.get(record["seed"]) is not None and record["final_test_acc"] is not None
        )


@dataclass(frozen=True)
class Summary:
    """The records of one context, sorted into rows and columns.

    Attributes:
        context: what all of them share.
        groups: the records of each row and column that has any.
        superseded: how many records were left out because a later one is of the same cell.
    """

    context: Context
    groups: Mapping[tuple[Row, Column], Group]
    superseded: int = 0

    @cached_property
    def rows(self) -> list[Row]:
        """In the order of the table: those whose defense knows more than the images come last."""
        rows = {row for row, _ in self.groups}
        return sorted(rows, key=lambda row: (self._knows[row] != NOTHING, row.order))

    @cached_property
    def _knows(self) -> dict[Row, str]:
        """What the defense of every row knows beyond the released images."""
        found: dict[tuple[str, str], str] = {}
        for (row, _), group in self.groups.items():
            defense = row.defense, row.defense_settings
            for record in group.done + group.failed:
                # Older records do not say; their defenses knew nothing.
                told = record.get("side_information", NOTHING)
                if found.get(defense, NOTHING) == NOTHING:
                    found[defense] = told
        return {row: found[row.defense, row.defense_settings] for row, _ in self.groups}

    @cached_property
    def columns(self) -> list[Column]:
        """In the order of the table: by name, wide before narrow."""
        return sorted({column for _, column in self.groups}, key=lambda column: column.order)

    @cached_property
    def defenses(self) -> list[tuple[str, str]]:
        """Defenses, each as its name and its label among the others, in the order of rows."""
        return list(dict.fromkeys(self.defense_of(row) for row in self.rows))

    @cached_property
    def knows(self) -> dict[tuple[str, str], str]:
        """What every defense knows beyond the released images, in the order of `defenses`."""
        return {self.defense_of(row): self._knows[row] for row in self.rows}

    @property
    def records(self) -> list[Record]:
        """All records, failed ones included."""
        return [record for group in self.groups.values() for record in group.done + group.failed]

    def group(self, row: Row, column: Column) -> Group:
        """The records of a row and column; an empty group where there are none."""
        return self.groups.get((row, column), Group())

    def control(self, row: Row, column: Column) -> Group:
        """The records of the control under the same defense and architecture."""
        return self._controls.get((row.defense, row.defense_settings, column), Group())

    @cached_property
    def _controls(self) -> dict[tuple[str, str, Column], Group]:
        """Those of every defense and architecture; of several the first."""
        found: dict[tuple[str, str, Column], Group] = {}
        for (row, column), group in self.groups.items():
            if row.method == CONTROL:
                found.setdefault((row.defense, row.defense_settings, column), group)
        return found

    def method_label(self, row: Row) -> str:
        """The label of a row's method, with the settings that tell it from its namesakes."""
        namesakes = {r.method_settings for r in self.rows if r.method_label == row.method_label}
        return told_apart(row.method_label, row.method_settings, namesakes)

    def defense_of(self, row: Row) -> tuple[str, str]:
        """The name of a row's defense, and its label told apart as `method_label` does."""
        namesakes = {r.defense_settings for r in self.rows if r.defense_label == row.defense_label}
        return row.defense, told_apart(row.defense_label, row.defense_settings, namesakes)


def summarise(
    records: Iterable[Record], contexts: Collection[Context] | None = None
) -> list[Summary]:
    """One summary a context, whatever the order of the records.

    The control is neither crafted nor mixed, so its records are in every context that differs only
    in crafting seed or poison ratio. Victims of sets of their own seeds share a context, too, where
    there are several: a method's spread is then that between sets and victims together.

    Args:
        records: of one results folder.
        contexts: only these, or all; all as well if none of them has a table of its own.
    """
    crafted: dict[Context, list[Record]] = defaultdict(list)
    controls: dict[Context, list[Record]] = defaultdict(list)
    for record in with_evidence(_other_sets_told(records)):
        context = Context.of(record)
        if record["method"] == CONTROL:
            controls[context.training].append(record)
        else:
            crafted[context].append(record)
    pooled = _pool(crafted)
    alone = set(controls) - {context.training for context in crafted}
    for training in alone:
        # No method beside it: the controls make a table of their own.
        first = min(map(Context.of, controls[training]), key=_order)
        crafted[first] = []
    asked = {one for context in contexts or () for one in (context, pooled.get(context))}
    wanted = set(crafted) & asked or set(crafted)
    return [
        _summary(context, crafted[context], controls[context.training])
        for context in sorted(wanted, key=_order)
    ]


def _pool(crafted: dict[Context, list[Record]]) -> dict[Context, Context]:
    """Give victims of sets of their own seeds a common context, where there are several such sets.

    Contexts that hold other victims, too, stay.

    Returns:
        The common context of each that went into one.
    """
    families: dict[Context, list[Context]] = defaultdict(list)
    for context, records in crafted.items():
        if any(map(_is_own_set, records)):
            families[replace(context, craft_seed=EACH)].append(context)
    pooled = {}
    for common, family in families.items():
        for context in family if len(family) > 1 else ():
            pooled[context] = common
            crafted[common] += filter(_is_own_set, crafted[context])
            if all(map(_is_own_set, crafted[context])):
                del crafted[context]
    return pooled


def _is_own_set(record: Record) -> bool:
    """Whether what a victim was trained on was crafted with the victim's seed."""
    return record["seed"] == record["craft_seed"]


def _other_sets_told(records: Iterable[Record]) -> list[Record]:
    """Records, of which those with another crafted set than most of their like have `OTHER_SET`.

    A key says what is to be crafted. What comes of it depends on the machine, too, wherever a
    network goes into it, so that victims trained on several may have seen different images.
    """
    records = list(records)
    sets: dict[str, list[list[Record]]] = defaultdict(list)
    for record in sorted(records, key=lambda r: (r["finished"], r["key"])):
        if record["audit"]:
            known = sets[record["crafted_key"]]
            mine = next((one for one in known if _alike(one[0]["audit"], record["audit"])), None)
            if mine is None:
                known.append([record])
            else:
                mine.append(record)
    # Of equally many the earlier set.
    rare = [one for known in sets.values() for one in known if one is not max(known, key=len)]
    others = {id(record) for one in rare for record in one}
    return [{**one, OTHER_SET: True} if id(one) in others else one for one in records]


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two audits are of the same images."""
    return all(
        one[name] == other[name] or math.isclose(one[name], other[name], rel_tol=SAME_SET)
        for name in one.keys() & other.keys()
        if isinstance(one[name], float) and isinstance(other[name], float)
    )


def with_evidence(records: Iterable[Record]) -> list[Record]:
    """Records with what others say of whether their victims learned the shortcut.

    Every record has `NOISE_FOLLOWED` where there are `noise` victims in its context under the same
    defense, of the same architecture; and `LONGER_ACC` where the same cell, with the very same
    crafted set, was also trained for at least twice the epochs, the recipe being equal otherwise.
    """
    records = list(records)
    noise: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    runs: dict[tuple[Any, ...], dict[int, float]] = defaultdict(dict)
    for record in records:
        followed = (record.get("shortcut") or {}).get("next_followed")
        if record["method"] == "noise" and followed is not None:
            noise[_beside(record)].append(followed)
        if record["status"] == "done" and record["final_test_acc"] is not None:
            runs[_but_epochs(record)][_epochs(record)] = record["final_test_acc"]
    told = []
    for record in records:
        more: dict[str, float] = {}
        if found := noise.get(_beside(record)):
            more[NOISE_FOLLOWED] = statistics.fmean(found)
        others = runs[_but_epochs(record)]
        if others and 0 < 2 * _epochs(record) <= max(others):
            more[LONGER_ACC] = others[max(others)]
        told.append({**record, **more} if more else record)
    return told


def _beside(record: Record) -> tuple[Any, ...]:
    """What records share that differ in nothing but method and seed."""
    row = Row.of(record)
    return Context.of(record), row.defense, row.defense_settings, Column.of(record)


def _but_epochs(record: Record) -> tuple[Any, ...]:
    """What records share that differ in nothing but the epochs of the victim."""
    recipe = _json({**record["recipe_settings"], "epochs": None})
    of_data = record["dataset_digest"], record["crafted_key"], record.get(OTHER_SET)
    of_victim = recipe, record["recipe"], record["precision"], record["holdout"], record["seed"]
    return *of_data, *of_victim, *_beside(record)[1:]


def _epochs(record: Record) -> int:
    """What the victim was trained for; 0 where that is not known."""
    return (record["recipe_settings"] | record["training"]).get("epochs") or 0


def _order(context: Context) -> tuple[Any, ...]:
    values = (getattr(context, name) for name in Context.__dataclass_fields__)
    return tuple((1, value) if value == EACH else (0, value) for value in values)


def _summary(context: Context, crafted: list[Record], controls: list[Record]) -> Summary:
    """Sort records into rows and columns; of two of the same cell the later one counts.

    Two records of one cell exist when a component's version was raised: averaging them would
    count a seed twice and mix old numbers with new ones.
    """
    latest: dict[tuple[Row, Column, int], Record] = {}
    for record in sorted((*crafted, *controls), key=lambda r: (r["finished"], r["key"])):
        latest[Row.of(record), Column.of(record), record["seed"]] = record
    groups: dict[tuple[Row, Column], Group] = {}
    for row, column, seed in sorted(latest, key=lambda k: (k[0].order, k[1], k[2])):
        record, group = latest[row, column, seed], groups.get((row, column), Group())
        if record["status"] == "done":
            groups[row, column] = replace(group, done=(*group.done, record))
        else:
            groups[row, column] = replace(group, failed=(*group.failed, record))
    # The same control of another crafting seed is a twin, not an older version.
    kept = {record["key"] for record in latest.values()}
    superseded = sum(record["key"] not in kept for record in crafted)
    return Summary(context, groups, superseded)


def told_apart(label: str, settings: str, namesakes: Collection[str]) -> str:
    """Append the settings in which things of one label differ."""
    values = [json.loads(text) for text in sorted(namesakes)]
    differing = [
        f"{name}={value_text(value, name)}"
        for name, value in json.loads(settings).items()
        if any(other.get(name) != value for other in values)
    ]
    return f"{label} {', '.join(differing)}" if differing else label


def width_text(width: float) -> str:
    """A width as a fraction: 0.25 as "1/4"."""
    return str(Fraction(width).limit_denominator(64))


def value_text(value: Any, name: str = "") -> str:
    """A setting's value for people; radii and strides as multiples of 1/255."""
    from bench.budget import fraction

    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, list):
        return " ".join(value_text(item, name) for item in value) or "none"
    if isinstance(value, float):
        radius = name.endswith(("step_size", "epsilon")) and value <= LARGEST_FRACTION
        return fraction(value, "linf" if radius else "l2")
    return str(value) or "empty"


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _radius(value: Any) -> float | tuple[float, ...] | None:
    """JSON has no infinity that every reader takes; no bound and an infinite one are the same."""
    if isinstance(value, list):
        return tuple(value)
    return None if value is None or math.isinf(value) else float(value)


def _tuple(radius: float | tuple[float, ...] | None) -> tuple[float, ...]:
    """Radii that can be sorted."""
    return radius if isinstance(radius, tuple) else (radius or 0.0,)

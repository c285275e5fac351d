"""Our victims beside each published number: which records count, and the verdict.

Verdicts are given at the papers' scale alone: with a recipe by which a paper trained. There, with
intervals of our mean over victim seeds, and the band of published +- tolerance:

    agrees           the 90 % interval lies inside the band, which is two one-sided tests at 5 %
    differs          the 95 % interval lies outside it, and outside what is expected instead
    differs, named   the 95 % interval lies outside the band, and the 90 % interval inside what the
                     targets file, before any run, expected instead
    undecided        none of these, or one victim, which has no interval
    no verdict       the published victims or images are others than ours, and nobody knows what
                     to expect of ours: the number is quoted from another paper, the recipe is that
                     of another paper, or the targets file says so
    doubtful         whatever it is: the number has a broken bound, failed training, a weak control,
                     or another precision than the recipe's behind it

Where victims deviate by a point and the band is two wide, a perfect copy agrees in 56 of a hundred
cases with three victims, in 95 with five: verdicts ask for five.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any, cast

from bench.component import Component
from bench.data import ImageDataset
from bench.errors import NOT_RUN
from bench.grid import Expansion, Grid, takes_epsilon
from bench.method import Method
from bench.papers.targets import PAPER_SCALE, SECONDS, Named, PaperTable, Place, Target
from bench.recipe import PUBLISHED
from bench.record import CONTROL, EACH
from bench.registry import METHODS
from bench.reports.cells import last_line, not_run, verdict
from bench.reports.claims import CONFIDENCE, DOUBTFUL, DUST, half_width
from bench.reports.flags import GRAVE, Flag, flags
from bench.reports.notes import crafting_text
from bench.reports.summary import PAPER_WIDTH, Group, Record, Spread, with_evidence
from bench.reports.table import MISSING

AGREES, DIFFERS, NAMED, UNDECIDED = "agrees", "differs", "differs, named", "undecided"
NO_VERDICT = "no verdict"
INSIDE, OUTSIDE = 0.9, CONFIDENCE
"""Of the intervals that must lie inside a band, and outside."""
VICTIMS = 5
"""How many verdicts ask for."""
NO_RECORD = "no record"
Reasons = Mapping[Place, str]
"""Why places could not be run, as it turned out."""


@dataclass(frozen=True)
class Wanted:
    """What a place stands for, by what its records say of it."""

    expansion: Expansion
    method: Method
    defense: Component
    arch: Component

    def fits(self, record: Record, place: Place) -> bool:
        """Whether a record is of this place; recipe, precision and seeds are others' concern."""
        return (
            record["method"] == self.method.name
            and record["dataset"] == self.expansion.source.title
            and record["defense"] == self.defense.name
            and record["defense_settings"] == self._defense_settings
            and self._is_arch(record)
            and (record["method"] == CONTROL or self._is_crafted(record, place))
        )

    def _is_crafted(self, record: Record, place: Place) -> bool:
        """With the same settings and share, on the very classes that the grid protects."""
        named = cast(ImageDataset, SimpleNamespace(classes=tuple(record["classes"])))
        classes = self.expansion.protected_classes(named) or ()
        return (
            record["poison_ratio"] == place.share
            and list(record.get("protected_classes") or ()) == list(classes)
            and record["method_settings"] == self.method_settings(record)
        )

    @cached_property
    def _defense_settings(self) -> dict[str, Any]:
        return self.defense.settings()

    def _is_arch(self, record: Record) -> bool:
        said = record["identity"].get("arch")
        if said is None:
            return record["arch_label"] == self.arch_label
        return (said["name"], said["settings"]) == (self.arch.name, self.arch.settings())

    @cached_property
    def arch_label(self) -> str:
        """What tables call the architecture."""
        return self.expansion.archs[0][0]

    def method_settings(self, record: Record) -> dict[str, Any]:
        """Of the method, with what it takes from the data, as far as a record tells."""
        small = self.expansion.source.title.startswith(("cifar", "svhn", "synthetic"))
        side = 32 if small else 224
        known = SimpleNamespace(classes=record["classes"], image_size=(side, side))
        data = cast(ImageDataset, known)
        # What somebody chose to protect, other than a data set's paper, changes no setting.
        usual = [record["classes"].index(name) for name in self.expansion.source.protected_classes]
        return self.method.fitted(data, usual).settings()


@dataclass(frozen=True)
class Scale:
    """How tables are asked for: the recipe, and what else all grids share.

    Attributes:
        base: a grid with recipe, precision, crafting seed and device; the rest is the tables'.
    """

    base: Grid

    @cached_property
    def expansion(self) -> Expansion:
        """Of the base, for its recipe."""
        return Expansion(_grid(self.base, Place(method=CONTROL)))

    @property
    def is_paper(self) -> bool:
        """Whether numbers may be compared: a paper's recipe, all images, full width."""
        recipe = self.expansion.recipe
        plain = type(recipe)(curve_images=recipe.curve_images)
        return recipe.name in PUBLISHED and recipe == plain and recipe.width >= PAPER_WIDTH

    def is_of(self, table: PaperTable) -> bool:
        """Whether the recipe is that of a table's published victims."""
        return self.expansion.recipe.name == table.recipe

    @cached_property
    def full(self) -> Scale:
        """The same at the scale of SEP, where every method has its paper's settings."""
        return Scale(replace(self.base, recipe=PAPER_SCALE))

    @cached_property
    def _known(self) -> dict[Place, Wanted]:
        return {}

    def wanted(self, place: Place) -> Wanted:
        """What a place stands for.

        Raises:
            UsageError: if a name in it is not known.
        """
        if place not in self._known:
            made = Expansion(_grid(self.base, place))
            method = made.methods[-1][1]
            self._known[place] = Wanted(made, method, made.defenses[0][1], made.archs[0][1])
        return self._known[place]


def _grid(base: Grid, place: Place) -> Grid:
    """A grid of one place."""
    return replace(
        base,
        dataset=place.dataset,
        methods=place.method,
        defenses=place.defense,
        archs=place.arch,
        epsilon=None if place.epsilon is None else (place.epsilon,),
        poison_ratio=(place.share,),
    )


def normal(place: Place) -> Place:
    """The same place, without what its method does not take: the control has no radius."""
    names = [part.partition(":")[0].strip() for part in place.method.split("+")]
    bounded = any(name in METHODS.entries and takes_epsilon(METHODS.get(name)) for name in names)
    epsilon = place.epsilon if bounded else None
    share = 1.0 if place.method == CONTROL else place.share
    return replace(place, epsilon=epsilon, share=share)


@dataclass(frozen=True)
class Found:
    """What there is of one cell.

    Attributes:
        target: the published side.
        group: our victims.
        values: of them, in percent or in seconds.
        flags: doubts about them.
        reason: why there are none; empty if there are.
        comparable: whether a verdict may be given.
        others: why the published victims or images are others than ours.
        control: victims on clean images under the same defense, in the same precision.
        recrafted: victims by crafting seed, that of `group` among them.
    """

    target: Target
    group: Group = field(default_factory=Group)
    values: tuple[float, ...] = ()
    flags: tuple[Flag, ...] = ()
    reason: str = ""
    comparable: bool = False
    others: tuple[str, ...] = ()
    control: Group = field(default_factory=Group)
    recrafted: Mapping[CraftSeed, Group] = field(default_factory=dict)

    @cached_property
    def spread(self) -> Spread:
        """Mean, sample standard deviation and number of the values."""
        return Spread.of(self.values)

    @cached_property
    def by_seed(self) -> dict[int, float]:
        """What the values are made of, by victim seed."""
        measured_all = (
            (one["seed"], measured(one, self.target.measure)) for one in self.group.done
        )
        return {seed: value for seed, value in measured_all if value is not None}

    @property
    def half(self) -> float:
        """Of the interval of the mean; NaN for fewer than two values."""
        return half_width(self.spread)

    @property
    def absence(self) -> str:
        """Why there is no figure, in two words."""
        return verdict(self.group) if self.group.failed else "not run"

    @property
    def difference(self) -> float | None:
        """Ours minus published, None where that is nothing to compare."""
        if not self.comparable or not self.values or self.target.published is None:
            return None
        return self.spread.mean - self.target.published

    @property
    def verdict(self) -> str:
        """In a word or two; empty where nothing was published."""
        target = self.target
        if target.published is None or target.measure == SECONDS:
            return ""
        if not self.values:
            return self.absence
        if not self.comparable:
            return MISSING
        if self.doubts:
            return DOUBTFUL
        if self.others and not target.named:
            return NO_VERDICT
        return judged(self.spread, target.published, target.tolerance, target.named)

    @property
    def wants_victims(self) -> bool:
        """Whether it is judged by fewer victims than verdicts ask for."""
        words = (AGREES, DIFFERS, NAMED, UNDECIDED)
        return self.verdict in words and self.spread.n < VICTIMS

    @property
    def doubts(self) -> tuple[Flag, ...]:
        """Those that forbid a verdict."""
        return tuple(flag for flag in self.flags if flag in GRAVE)


def judged(ours: Spread, published: float, tolerance: float, named: Sequence[Named] = ()) -> str:
    """The verdict on a number, all in percentage points."""
    if ours.n < 2:
        return UNDECIDED
    # A sum of decimals must not fall off the edge of a band by its last bit.
    inner, outer = half_width(ours, INSIDE) - DUST, half_width(ours, OUTSIDE) + DUST

    def inside(low: float, high: float) -> bool:
        return low - tolerance <= ours.mean - inner and ours.mean + inner <= high + tolerance

    def outside(low: float, high: float) -> bool:
        return ours.mean + outer < low - tolerance or high + tolerance < ours.mean - outer

    if inside(published, published):
        return AGREES
    if not outside(published, published):
        return UNDECIDED
    if any(inside(one.low, one.high) for one in named):
        return NAMED
    return DIFFERS if all(outside(one.low, one.high) for one in named) else UNDECIDED


Cells = dict[tuple[int, int], Found]
CraftSeed = int | str


def is_asked_for(record: Record, craft_seed: CraftSeed) -> bool:
    """Whether what a victim was trained on is of this crafting seed, or of its own for `each`."""
    return record["craft_seed"] == (record["seed"] if craft_seed == EACH else craft_seed)


def look_up(
    table: PaperTable, records: Iterable[Record], scale: Scale, reasons: Reasons | None = None
) -> Cells:
    """What records say of every cell of a table.

    Args:
        table: the published one.
        records: of a results folder; those of other seeds than were asked for count, too.
        scale: recipe and precision of the records that are looked for.
        reasons: why places could not be run.
    """
    recipe = (scale.expansion.recipe.name, scale.expansion.recipe.settings())
    kept = [
        one
        for one in with_evidence(records)
        if (one["recipe"], one["recipe_settings"]) == recipe
        and one["holdout"] == 0
        and not one.get("crafting_recipe")
    ]
    known: dict[Place, dict[CraftSeed, list[Record]]] = {}

    def fitting(place: Place) -> dict[CraftSeed, list[Record]]:
        """By crafting seed, or under `each`; the control is with the one asked for."""
        if place not in known:
            wanted = scale.wanted(place)
            known[place] = defaultdict(list)
            for one in kept:
                if wanted.fits(one, place):
                    if place.method == CONTROL or is_asked_for(one, asked):
                        known[place][asked].append(one)
                    elif asked != EACH:
                        known[place][one["craft_seed"]].append(one)
        return known[place]

    def group_of(place: Place) -> Group:
        return _group(fitting(place).get(asked, []), precision)

    asked = scale.base.craft_seed
    precision = _precision(kept, scale)
    other = [] if scale.is_of(table) or not scale.is_paper else [_other_recipe(table, scale)]
    found: Cells = {}
    for row, column, target in table.cells():
        others = (*target.others, *other)
        if target.missing:
            found[row, column] = Found(target, reason=target.missing, others=others)
            continue
        place = normal(target.place)
        group = group_of(place)
        values = tuple(_values(group, target.measure))
        reason = "" if values else _why(group, (reasons or {}).get(place), fitting(place), scale)
        doubts: list[Flag] = []
        control = Group()
        if values and target.measure != SECONDS:
            control = group_of(Place(place.dataset, CONTROL, None, place.defense, place.arch))
            doubts = flags(group, control, precision, strict=scale.is_paper)
        found[row, column] = Found(
            target=target,
            group=group,
            values=values,
            flags=tuple(doubts),
            reason=reason,
            comparable=scale.is_paper,
            others=others,
            control=_alike(control, group),
            recrafted=_recrafted(fitting(place), group, precision),
        )
    return found


def _other_recipe(table: PaperTable, scale: Scale) -> str:
    """The reason that holds of a whole table."""
    ours = scale.expansion.recipe_label
    theirs = f"by --recipe {table.recipe}" if table.recipe else "otherwise"
    return f"our victims are trained by --recipe {ours}, the published ones {theirs}"


def _alike(control: Group, group: Group) -> Group:
    """The part of the control that was trained in a precision of the group."""
    precisions = {one["precision"] for one in group.done}
    done, failed = (
        tuple(one for one in records if one["precision"] in precisions)
        for records in (control.done, control.failed)
    )
    return Group(done, failed)


def _recrafted(
    records: Mapping[CraftSeed, list[Record]], group: Group, precision: str
) -> dict[CraftSeed, Group]:
    """Victims that are done, by crafting seed, in the group's precision."""
    wanted = {one["precision"] for one in group.done} or {precision}
    found = {}
    for seed in sorted(records, key=str):
        same = [one for one in records[seed] if one["precision"] in wanted]
        if (made := _group(same, precision)).done:
            found[seed] = made
    return found


def _group(records: list[Record], precision: str) -> Group:
    """The latest record of every seed; of several precisions the table's, so far as there is."""
    same = [one for one in records if one["precision"] == precision]
    latest: dict[int, Record] = {}
    for one in sorted(same or records, key=lambda r: (r["finished"], r["key"])):
        latest[one["seed"]] = one
    chosen = [latest[seed] for seed in sorted(latest)]
    if not same and chosen:
        first = Counter(one["precision"] for one in chosen).most_common(1)[0][0]
        chosen = [one for one in chosen if one["precision"] == first]
    return Group(
        tuple(one for one in chosen if one["status"] == "done"),
        tuple(one for one in chosen if one["status"] != "done"),
    )


def _precision(records: Sequence[Record], scale: Scale) -> str:
    """The one that was asked for, else that of most records."""
    if scale.base.precision != "auto" or not records:
        return scale.expansion.precision
    return Counter(one["precision"] for one in records).most_common(1)[0][0]


def _values(group: Group, measure: str) -> Iterator[float]:
    """One a victim, or a crafted set where the time of crafting is asked for."""
    sets: set[str | None] = set()
    for one in group.done:
        value = measured(one, measure)
        if value is not None and not (measure == SECONDS and one["crafted_key"] in sets):
            sets.add(one["crafted_key"])
            yield value


def measured(record: Record, measure: str) -> float | None:
    """The number that a table asks for, in percent or in seconds."""
    if measure == SECONDS:
        value = record[SECONDS]
        return None if record["method"] == CONTROL else value
    value = (record.get("shortcut") or {}).get(measure, record.get(measure))
    return None if value is None else 100 * value


def _why(group: Group, refused: str | None, seeds: Iterable[CraftSeed], scale: Scale) -> str:
    """Why there is no figure."""
    if group.failed:
        told = last_line(group.failed[0]["error"])
        return told.removeprefix(NOT_RUN) if not_run(group.failed[0]) else f"failed: {told}"
    if refused:
        return refused
    if others := ", ".join(map(str, sorted(seeds))):
        return f"{NO_RECORD} of {crafting_text(scale.base.craft_seed)}, only of {others}"
    if scale.is_paper and scale.expansion.device.type == "cpu":
        recipe = scale.expansion.recipe_label
        return f"{NO_RECORD}; recipe {recipe} is for a GPU, of which there is none here"
    return NO_RECORD

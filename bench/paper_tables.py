"""A published table with our figures in it: interval, difference and verdict of every cell.

Verdicts are given at the papers' scale alone: with a recipe by which a paper trained. There, with
the 95 % interval of our mean over victim seeds, and the band of published +- tolerance:

    agrees                      the interval lies inside the band
    differs                     it lies outside
    differs, named beforehand   so it does, and the targets file gave a reason before any run, or
                                the recipe is that of another paper
    undecided                   it lies across an edge, or one victim has no interval
    doubtful                    whatever it lies in: the number has a broken bound, failed training,
                                a weak control, or other training than the recipe's behind it

That a number is quoted from another paper is a reason named beforehand, without being listed: its
victims were trained otherwise.

Below that scale only orders are judged: a claim holds where every interval that must lie lower
ends below the beginning of every other, does not hold where two lie the other way round, and is
undecided otherwise. It is doubtful where a number with one of the doubts above has a part in it,
unless two others decide against it.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any, cast

from bench.claims import CONFIDENCE, WORDS, half_width
from bench.component import Component
from bench.data import ImageDataset
from bench.errors import NOT_RUN
from bench.flags import FLAGS, GRAVE, Flag, Number, flag_names, flags, settle
from bench.grid import Expansion, Grid, takes_epsilon
from bench.method import Method
from bench.recipe import PUBLISHED
from bench.record import CONTROL
from bench.registry import METHODS
from bench.summary import PAPER_WIDTH, Group, Record, Spread, width_text
from bench.tables import MISSING, SMALL_SCALE, Table, frame, last_line, machine, not_run, verdict
from bench.targets import Claim, PaperTable, Place, Target

SECONDS = "crafting_seconds"
AGREES, DIFFERS, NAMED, UNDECIDED = "agrees", "differs", "differs, named", "undecided"
DOUBTFUL = "doubtful"
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
            and record["method_settings"] == self._fitted(record).settings()
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

    def _fitted(self, record: Record) -> Method:
        """The method with what it takes from the data, as far as a record tells."""
        small = self.expansion.source.title.startswith(("cifar", "svhn", "synthetic"))
        side = 32 if small else 224
        known = SimpleNamespace(classes=record["classes"], image_size=(side, side))
        data = cast(ImageDataset, known)
        # What somebody chose to protect, other than a data set's paper, changes no setting.
        usual = [record["classes"].index(name) for name in self.expansion.source.protected_classes]
        return self.method.fitted(data, usual)


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
        named: reasons, known beforehand, why ours may differ.
        control: victims on clean images under the same defense, in the same precision.
        recrafted: victims by crafting seed, that of `group` among them.
    """

    target: Target
    group: Group = field(default_factory=Group)
    values: tuple[float, ...] = ()
    flags: tuple[Flag, ...] = ()
    reason: str = ""
    comparable: bool = False
    named: tuple[str, ...] = ()
    control: Group = field(default_factory=Group)
    recrafted: Mapping[int, Group] = field(default_factory=dict)

    @cached_property
    def spread(self) -> Spread:
        """Mean, sample standard deviation and number of the values."""
        return Spread.of(self.values)

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
        return judged(self.spread, target.published, target.tolerance, bool(self.named))

    @property
    def doubts(self) -> tuple[Flag, ...]:
        """Those that forbid a verdict."""
        return tuple(flag for flag in self.flags if flag in GRAVE)


def judged(ours: Spread, published: float, tolerance: float, named: bool) -> str:
    """The verdict on a number, all in percentage points."""
    half = half_width(ours)
    if math.isnan(half):
        return UNDECIDED
    dust = 1e-9  # a sum of decimals must not fall off the edge by its last bit
    low, high = ours.mean - half, ours.mean + half
    if low >= published - tolerance - dust and high <= published + tolerance + dust:
        return AGREES
    if high < published - tolerance - dust or low > published + tolerance + dust:
        return NAMED if named else DIFFERS
    return UNDECIDED


Cells = dict[tuple[int, int], Found]


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
        for one in records
        if (one["recipe"], one["recipe_settings"]) == recipe and one["holdout"] == 0
    ]
    known: dict[Place, dict[int, list[Record]]] = {}

    def fitting(place: Place) -> dict[int, list[Record]]:
        """By crafting seed; the control has none, and stands with the one asked for."""
        if place not in known:
            wanted = scale.wanted(place)
            known[place] = defaultdict(list)
            for one in kept:
                if wanted.fits(one, place):
                    own = place.method == CONTROL
                    known[place][asked if own else one["craft_seed"]].append(one)
        return known[place]

    def group_of(place: Place) -> Group:
        return _group(fitting(place).get(asked, []), precision)

    asked = scale.base.craft_seed
    precision = _precision(kept, scale)
    other = [] if scale.is_of(table) or not scale.is_paper else [_other_recipe(table, scale)]
    found: Cells = {}
    for row, column, target in table.cells():
        named = (*target.reasons, *other)
        if target.missing:
            found[row, column] = Found(target, reason=target.missing, named=named)
            continue
        place = normal(target.place)
        group = group_of(place)
        values = tuple(_values(group, target.measure))
        reason = "" if values else _why(group, (reasons or {}).get(place), fitting(place), scale)
        doubts: list[Flag] = []
        control = Group()
        if values and target.measure != SECONDS:
            control = group_of(Place(place.dataset, CONTROL, None, place.defense, place.arch))
            doubts = flags(group, control, precision)
        found[row, column] = Found(
            target=target,
            group=group,
            values=values,
            flags=tuple(doubts),
            reason=reason,
            comparable=scale.is_paper,
            named=named,
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
    records: Mapping[int, list[Record]], group: Group, precision: str
) -> dict[int, Group]:
    """Victims that are done, by crafting seed, in the group's precision."""
    wanted = {one["precision"] for one in group.done} or {precision}
    found = {}
    for seed in sorted(records):
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


def _why(group: Group, refused: str | None, seeds: Iterable[int], scale: Scale) -> str:
    """Why there is no figure."""
    if group.failed:
        told = last_line(group.failed[0]["error"])
        return told.removeprefix(NOT_RUN) if not_run(group.failed[0]) else f"failed: {told}"
    if refused:
        return refused
    if others := ", ".join(map(str, sorted(seeds))):
        return f"{NO_RECORD} of crafting seed {scale.base.craft_seed}, only of {others}"
    if scale.is_paper and scale.expansion.device.type == "cpu":
        recipe = scale.expansion.recipe_label
        return f"{NO_RECORD}; recipe {recipe} is for a GPU, of which there is none here"
    return NO_RECORD


# The table.


def paper_table(table: PaperTable, cells: Cells, scale: Scale) -> Table:
    """A published table in its own layout, several lines for each of its rows."""
    heads = [*table.lead, "", *table.columns, *(["mean"] if table.means else [])]
    lines: list[list[str | Number]] = []
    for row, names in enumerate(table.rows):
        line = [cells.get((row, column)) for column in range(len(table.columns))]
        blank = [""] * len(names)
        for kind, found in _lines(table, row, line):
            lines.append([*(names if blank != list(names) else blank), kind, *found])
            names = tuple(blank)
    shown, marked = settle(lines)
    return Table(
        name=f"paper-{table.paper}-{table.name}",
        caption=tuple(_caption(table, cells, scale)),
        cells=frame(heads, shown),
        lead=len(table.lead) + 1,
        step=1,
        notes=(*marked, *_told(table, cells, scale)),
        numbers=machine(_numbers(table, cells, scale), ["n", "published_n"]),
    )


Line = Sequence[Found | None]


def _lines(table: PaperTable, row: int, line: Line) -> Iterator[tuple[str, list[str | Number]]]:
    """Kind and cells of the lines that a row of the paper becomes."""
    times = any(one is not None and one.target.measure == SECONDS for one in line)
    shown = _time if times else _points
    published = [None if one is None else one.target.published for one in line]
    known = [value for value in published if value is not None]
    if known:
        yield "published", [*map(shown, published), *_published_mean(table, row, published)]
    judged_line = bool(known) and not times and any(one and one.comparable for one in line)
    yield "ours", [*(_ours(one, times, judged_line) for one in line), *_our_mean(table, line)]
    if any(one is not None and one.values for one in line):
        own = [_each(one, lambda f: f"{_sd(f, times)} ({f.spread.n})") for one in line]
        yield "sd (n)", [*own, *_nothing(table)]
    if not judged_line:
        return
    if any(one is not None and one.difference is not None for one in line):
        gaps = [_each(one, lambda f: Number(_signed(f.difference), f.flags)) for one in line]
        yield "difference", [*gaps, *_nothing(table)]
    words = ["" if one is None else one.verdict for one in line]
    yield "verdict", [*words, *_nothing(table)]


def _nothing(table: PaperTable) -> list[str]:
    return [""] if table.means else []


def _each(one: Found | None, cell: Callable[[Found], str | Number]) -> str | Number:
    return "" if one is None or not one.values else cell(one)


def _ours(one: Found | None, times: bool, judged_line: bool) -> str | Number:
    """Mean and half of the interval; where there is none, the line of verdicts says so."""
    if one is None:
        return ""
    if not one.values:
        return MISSING if judged_line else one.absence
    half = one.half
    text = _time(one.spread.mean) if times else f"{one.spread.mean:.1f}"
    if not math.isnan(half) and one.target.measure != SECONDS:
        text += f" ± {half:.1f}"
    return Number(text, one.flags)


def _published_mean(table: PaperTable, row: int, values: list[float | None]) -> list[str]:
    if not table.means:
        return []
    known = [value for value in values if value is not None]
    printed = table.means[row]
    if printed is None and len(known) == len(values):
        printed = sum(known) / len(known)
    return [_points(printed)]


def _our_mean(table: PaperTable, line: Line) -> list[str | Number]:
    """Of the columns, if there is a figure in each."""
    if not table.means:
        return []
    whole = [one for one in line if one is not None and one.values]
    if len(whole) != len(line):
        return [MISSING]
    mean = sum(one.spread.mean for one in whole) / len(whole)
    return [Number(f"{mean:.1f}", {flag for one in whole for flag in one.flags})]


def _points(value: float | None) -> str:
    if value is None:
        return ""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def _signed(value: float | None) -> str:
    return "" if value is None else f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")


def _sd(one: Found, times: bool) -> str:
    sd = one.spread.sd
    return MISSING if math.isnan(sd) else (_time(sd) if times else f"{sd:.1f}")


def _time(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f} s" if value < 360 else f"{value / 3600:.2f} h"


# What stands above and below it.


def _caption(table: PaperTable, cells: Cells, scale: Scale) -> Iterator[str]:
    yield f"{table.title}. Published: {table.source}."
    seconds = all(target.measure == SECONDS for *_, target in table.cells())
    interval = f"± half of the {100 * CONFIDENCE:.0f} % interval (Student's t)"
    if seconds:
        yield "Ours: seconds of crafting, with standard deviation (sd) and number of sets (n)."
    else:
        yield (
            f"Ours: clean test accuracy after the last epoch in percent, mean over victim seeds "
            f"{interval}, with sample standard deviation (sd) and number of victims (n); what is "
            f"crafted has seed {scale.base.craft_seed} in all of them."
        )
    yield scale_text(cells, scale)
    if seconds:
        return
    if not scale.is_paper:
        yield (
            f"No verdicts on numbers: they need --recipe {table.recipe or 'paper'}, "
            f"all images and full width. {SMALL_SCALE}"
        )
        return
    bands = Counter(t.tolerance for *_, t in table.cells() if t.published is not None)
    usual = " or ".join(f"{band:g}" for band in sorted(bands))
    yield (
        f"Verdicts: with the band of published ± {usual} points, fixed beforehand (smaller below "
        "20 %), an interval inside agrees, one outside differs (named: for a reason given "
        "beforehand), one across an edge is undecided, and so is a single victim. Doubtful is a "
        "number that itself forbids a verdict."
    )


def scale_text(cells: Cells, scale: Scale) -> str:
    """Recipe, images, width and precision in a sentence."""
    recipe = scale.expansion.recipe
    images = "all" if recipe.train_images is None else str(recipe.train_images)
    done = [one for found in cells.values() for one in found.group.done]
    precisions = sorted({one["precision"] for one in done}) or [scale.expansion.precision]
    epochs = "1 epoch" if recipe.epochs == 1 else f"{recipe.epochs} epochs"
    return (
        f"Recipe {scale.expansion.recipe_label}: {epochs} on {images} training images, width "
        f"{width_text(recipe.width)}, {' or '.join(precisions)}."
    )


def _told(table: PaperTable, cells: Cells, scale: Scale) -> Iterator[str]:
    """What the targets file says of cells, and why some were not run, with where that holds."""
    yield _sentence(table.trained)
    if not scale.is_of(table) and not scale.is_paper:
        advice = f"; --recipe {table.recipe} is that of the published ones" if table.recipe else ""
        yield f"Ours are of recipe {scale.expansion.recipe_label}{advice}."
    yield from map(_sentence, table.quirks)
    kinds: list[tuple[str, Callable[[Found], Iterable[str]]]] = [
        ("", lambda one: one.target.quirks),
        ("Named beforehand", lambda one: one.named),
        ("Doubtful", lambda one: _reasons(one.doubts) if one.verdict == DOUBTFUL else []),
        ("Not run", lambda one: [one.reason] if one.reason else []),
    ]
    for kind, of in kinds:
        places: dict[str, set[tuple[int, int]]] = defaultdict(set)
        for place, one in cells.items():
            for text in of(one):
                places[text].add(place)
        for text, where in places.items():
            start = f"{kind}: " if kind else ""
            yield f"{start}{where_text(table, where, cells)}: {text.removesuffix('.')}."


def _reasons(doubts: Iterable[Flag]) -> list[str]:
    """Doubts by name, with the marks whose meaning stands beside them."""
    return [f"{flag.name} ({flag.mark})" for flag in doubts]


def _sentence(text: str) -> str:
    """With a capital and one full stop."""
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}."


def where_text(table: PaperTable, places: set[tuple[int, int]], cells: Cells) -> str:
    """A set of cells in words: whole rows and columns by their names."""
    if places == set(cells) and len(places) > 1:
        return "all"
    rows = {row for row, _ in places}
    columns = {column for _, column in places}
    names = table.row_names
    if places == {place for place in cells if place[0] in rows}:
        return ", ".join(names[row] for row in sorted(rows))
    if places == {place for place in cells if place[1] in columns}:
        return ", ".join(table.columns[column] for column in sorted(columns))
    by_row: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row in sorted(rows):
        by_row[tuple(sorted(c for r, c in places if r == row))].append(row)
    return "; ".join(
        f"{', '.join(names[row] for row in same)} on "
        f"{', '.join(table.columns[column] for column in which)}"
        if len(which) < sum(r == same[0] for r, _ in cells)
        else ", ".join(names[row] for row in same)
        for which, same in by_row.items()
    )


def _numbers(table: PaperTable, cells: Cells, scale: Scale) -> Iterator[dict[str, Any]]:
    names = table.row_names
    for (row, column), one in cells.items():
        target, place, ours = one.target, normal(one.target.place), one.spread
        yield {
            "table": table.label,
            "row": names[row],
            "column": table.columns[column],
            **vars(place),
            "measure": target.measure,
            "published": target.published,
            "published_n": target.n,
            "quoted": target.quoted,
            "tolerance": target.tolerance if target.published is not None else None,
            "recipe": scale.expansion.recipe_label,
            "precision": " ".join(sorted({r["precision"] for r in one.group.done})),
            "seeds": " ".join(str(r["seed"]) for r in one.group.done),
            "n": ours.n,
            "mean": rounded(ours.mean),
            "sd": rounded(ours.sd),
            "ci95_low": rounded(ours.mean - one.half),
            "ci95_high": rounded(ours.mean + one.half),
            "difference": rounded(one.difference),
            "verdict": "" if one.verdict == MISSING else one.verdict,
            "named": "; ".join(one.named),
            "flags": flag_names(one.flags),
            "reason": one.reason,
        }


def rounded(value: float | None) -> float | None:
    """For machines, without the dust of binary fractions."""
    return None if value is None or math.isnan(value) else round(value, 4)


# Claims.


@dataclass(frozen=True)
class Judgement:
    """What came of a claim in one column, or row.

    Attributes:
        claim: what was claimed.
        where: name of the column or row.
        floor: lowest lower end among those above, times the factor; or the claimed bound.
        lowest: which has it.
        ceiling: highest upper end among those below.
        highest: which has it.
        holds: None if that is undecided.
        absent: which have no record.
        flags: doubts about every number that has a part in it, by name.
    """

    claim: Claim
    where: str
    floor: float
    lowest: str
    ceiling: float
    highest: str
    holds: bool | None
    absent: tuple[str, ...]
    flags: Mapping[str, tuple[Flag, ...]]

    @property
    def doubtful(self) -> dict[str, tuple[Flag, ...]]:
        """The numbers that forbid a verdict, each with why."""
        grave = {n: tuple(flag for flag in f if flag in GRAVE) for n, f in self.flags.items()}
        return {name: found for name, found in grave.items() if found}

    @property
    def verdict(self) -> str:
        """In a word or two."""
        return DOUBTFUL if self.holds is None and self.doubtful else WORDS[self.holds]

    @property
    def all_flags(self) -> list[Flag]:
        """Doubts about any of the numbers."""
        return [flag for flag in FLAGS if any(flag in found for found in self.flags.values())]


def judgements(table: PaperTable, cells: Cells, scale: Scale) -> list[Judgement]:
    """Every claim wherever it is judged and something is there to judge."""
    found = []
    for claim in table.claims:
        if not claim.is_order and not scale.is_paper:
            continue
        names, others = table.row_names, list(table.columns)
        names, others = (names, others) if claim.rows else (others, names)
        for where in claim.only or others:
            place = others.index(where)
            side = {
                name: cells.get((index, place) if claim.rows else (place, index))
                for index, name in enumerate(names)
            }
            made = _judge(claim, where, side)
            if made is not None:
                found.append(made)
    return found


def _judge(claim: Claim, where: str, side: Mapping[str, Found | None]) -> Judgement | None:
    ends: dict[str, tuple[float, float]] = {}
    absent = []
    doubts: dict[str, tuple[Flag, ...]] = {}
    for name in (*claim.above, *claim.below):
        one = side[name]
        if one is None or not one.values:
            absent.append(name)
            continue
        doubts[name] = one.flags
        factor = claim.factor if name in claim.above else 1.0
        ends[name] = (
            factor * (one.spread.mean - one.half),
            factor * (one.spread.mean + one.half),
        )
    above = {name: ends[name] for name in claim.above if name in ends}
    below = {name: ends[name] for name in claim.below if name in ends}
    if claim.under is not None:
        above["the bound"] = (claim.under, claim.under)
    if not above or not below:
        return None
    # A single victim has no interval: its NaN comes first, and decides nothing.
    lowest = min(above, key=lambda name: _first(above[name][0], -math.inf))
    highest = max(below, key=lambda name: _first(below[name][1], math.inf))
    floor, ceiling = above[lowest][0], below[highest][1]
    made = Judgement(claim, where, floor, lowest, ceiling, highest, None, tuple(absent), doubts)
    sound = [
        [pair for name, pair in group.items() if name not in made.doubtful]
        for group in (above, below)
    ]
    if any(b[0] > a[1] for a, b in itertools.product(*sound)):
        return replace(made, holds=False)
    holds = ceiling < floor and not absent and not made.doubtful
    return replace(made, holds=True) if holds else made


def _first(value: float, instead: float) -> float:
    return instead if math.isnan(value) else value


def paper_claims_table(
    table: PaperTable, found: Sequence[Judgement], cells: Cells, scale: Scale
) -> Table:
    """What came of a table's claims."""
    lines: list[list[str | Number]] = []
    last = ""
    for one in found:
        said = "" if one.claim.says == last else one.claim.says
        last = one.claim.says
        part = f" x {one.claim.factor:g}" if one.claim.factor != 1 else ""
        lines.append(
            [
                said,
                one.where,
                _end(one.floor, one.flags.get(one.lowest), f" ({one.lowest}{part})"),
                _end(one.ceiling, one.flags[one.highest], f" ({one.highest})"),
                one.verdict,
            ]
        )
    shown, marked = settle(lines)
    absent = sorted({name for one in found for name in one.absent})
    told = [f"Not run, so that nothing holds of them yet: {', '.join(absent)}."] if absent else []
    told += _doubts_told(found)
    caption = (
        f"{table.title}: what its order says. Lowest lower end of a {100 * CONFIDENCE:.0f} % "
        "interval over victim seeds in the group that must lie above, and highest upper end in the "
        "other, in percent; a claim holds where all intervals lie apart, does not where two lie "
        "the other way round, and is undecided otherwise; it is doubtful where a number that "
        "forbids a verdict has a part in it, unless two others decide against it."
    )
    small = () if scale.is_paper else (SMALL_SCALE,)
    return Table(
        name=f"paper-{table.paper}-{table.name}-claims",
        caption=(caption, scale_text(cells, scale), *small),
        cells=frame(["claim", "where", "above", "below", "verdict"], shown),
        lead=2,
        step=3,
        notes=(*marked, *told),
        numbers=machine(
            {
                "table": table.label,
                "claim": one.claim.says,
                "where": one.where,
                "above": one.lowest,
                "above_low": rounded(one.floor),
                "below": one.highest,
                "below_high": rounded(one.ceiling),
                "verdict": one.verdict,
                "absent": " ".join(one.absent),
                "doubtful": " ".join(one.doubtful),
                "above_flags": flag_names(one.flags.get(one.lowest, ())),
                "below_flags": flag_names(one.flags[one.highest]),
                "flags": flag_names(one.all_flags),
            }
            for one in found
        ),
    )


def _doubts_told(found: Sequence[Judgement]) -> Iterator[str]:
    """Whose numbers make claims doubtful, and why, in lines by reason."""
    places: dict[str, dict[str, None]] = defaultdict(dict)
    for one in found:
        for name, doubts in one.doubtful.items() if one.verdict == DOUBTFUL else ():
            row, column = (name, one.where) if one.claim.rows else (one.where, name)
            for reason in _reasons(doubts):
                places[reason][f"{row} on {column}"] = None
    for reason, where in places.items():
        yield f"Doubtful: {', '.join(where)}: {reason}."


def _end(value: float, doubts: Sequence[Flag] | None, after: str) -> str | Number:
    """An end of an interval and whose it is; a claimed bound has no doubts."""
    text = MISSING if math.isnan(value) else f"{value:.1f}"
    return text + after if math.isnan(value) or doubts is None else Number(text, doubts, after)

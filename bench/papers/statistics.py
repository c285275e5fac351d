"""What stands behind our figures in a published table: seeds, spread, drop, peak; a line a cell.

A figure is a mean over victims of one crafted set, or over victims with a set each; its interval
tells how these vary. Where a folder has several crafted sets of a cell, a second line tells how
those vary: there each set counts once, by the mean over its victims, and never as so many victims
more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bench.papers.lookup import Cells, Found, Scale, measured
from bench.papers.tables import scale_text, where_text
from bench.papers.targets import SECONDS, PaperTable
from bench.record import CONTROL
from bench.reports.claims import CONFIDENCE, half_width
from bench.reports.flags import FEW, FLAGS, Flag, Number, flag_names, flags_of_all, settle
from bench.reports.notes import PEAK_NOTE, SMALL_SCALE, crafting_text
from bench.reports.summary import Group, Record, Spread
from bench.reports.table import MISSING, Table, frame, machine, rounded

FINAL = "final_test_acc"
VICTIM, CRAFTING, BOTH = "victim", "crafting", "both"


@dataclass(frozen=True)
class Sample:
    """What a mean is taken over: groups of victims that count once each, by their mean.

    Attributes:
        varied: which seeds differ between them.
        parts: single victims of one crafted set, or the victims of each of several sets.
        control: victims on clean images.
        measure: which number of a record counts.
        flags: doubts about them.
    """

    varied: str
    parts: tuple[Group, ...]
    control: Group
    measure: str
    flags: tuple[Flag, ...]

    @cached_property
    def spread(self) -> Spread:
        """Of the measure, in percent."""
        return Spread.of(
            Spread.of(measured(one, self.measure) for one in part.done).mean for part in self.parts
        )

    @cached_property
    def drop(self) -> Spread:
        """Clean minus ours, each victim paired with that of its seed, in percentage points."""
        if self.measure != FINAL or self.victims[0]["method"] == CONTROL:
            return Spread.of([])
        drops = [part.drop(self.control) for part in self.parts]
        return Spread.of(100 * drop.mean for drop in drops if drop.n)

    @property
    def drop_flags(self) -> tuple[Flag, ...]:
        """Doubts about the drop, the control's own among them; few are few pairs."""
        if not self.drop.n:
            return ()
        found = {*self.flags} - {FEW}
        found |= {*flags_of_all([(self.control, self.control)], self.drop.n)}
        return tuple(flag for flag in FLAGS if flag in found)

    @cached_property
    def peak(self) -> Spread:
        """Of the best epochs, in percent."""
        if self.measure != FINAL:
            return Spread.of([])
        return Spread.of(100 * part.spread("peak_test_acc").mean for part in self.parts)

    @property
    def victims(self) -> list[Record]:
        """All of them."""
        return [one for part in self.parts for one in part.done]

    @property
    def unpaired(self) -> tuple[int, ...]:
        """Victim seeds that the drop leaves out, for want of a control."""
        if self.measure != FINAL or self.victims[0]["method"] == CONTROL:
            return ()
        known = {one["seed"] for one in self.control.done if one[FINAL] is not None}
        return tuple(sorted({one["seed"] for one in self.victims} - known))

    def seeds(self, name: str) -> str:
        """Victim seeds, or crafting seeds; the control has none of the latter."""
        if name == "craft_seed" and self.victims[0]["method"] == CONTROL:
            return ""
        return " ".join(map(str, sorted({one[name] for one in self.victims})))


def samples(one: Found) -> Iterator[Sample]:
    """What there is to tell of a cell."""
    measure = one.target.measure
    victims = [r for r in one.group.done if measured(r, measure) is not None]
    if victims:
        parts = tuple(Group((record,)) for record in victims)
        sets = {record["craft_seed"] for record in victims}
        varied = MISSING if len(parts) == 1 else BOTH if len(sets) > 1 else VICTIM
        yield Sample(varied, parts, one.control, measure, one.flags)
    recrafted = {
        seed: there
        for seed, group in one.recrafted.items()
        if (there := [r for r in group.done if measured(r, measure) is not None])
    }
    if len(recrafted) > 1:
        # With the same victims for every set, sets alone differ, if it is one victim each.
        common = set.intersection(*({r["seed"] for r in there} for there in recrafted.values()))
        parts = tuple(
            Group(tuple(r for r in there if r["seed"] in common or not common))
            for there in recrafted.values()
        )
        varied = CRAFTING if len(common) == 1 else BOTH
        doubts = flags_of_all(((part, one.control) for part in parts), len(parts))
        yield Sample(varied, parts, one.control, measure, tuple(doubts))


Lines = Sequence[tuple[tuple[int, int], Sample]]


def statistics_table(table: PaperTable, cells: Cells, scale: Scale) -> Table:
    """A line for every cell with a figure, and a second where several sets were crafted."""
    found = [
        (place, sample)
        for place, one in cells.items()
        if one.target.measure != SECONDS
        for sample in samples(one)
    ]
    several = len(table.columns) > 1
    names = ["row", "column"] if several else ["row"]
    heads = [*names, "varied", "n", "accuracy", "sd", "drop", "sd", "pairs", "peak (oracle)"]
    lines, last = [], None
    for (row, column), sample in found:
        name = "" if row == last else table.row_names[row]
        last = row
        lines.append([name, *([table.columns[column]] if several else []), *_line(sample)])
    shown, marked = settle(lines)
    return Table(
        name=f"paper-{table.paper}-{table.name}-statistics",
        caption=tuple(_caption(table, cells, found, scale)),
        cells=frame(heads, shown),
        lead=len(names) + 1,
        step=len(heads) - len(names) - 1,
        notes=(*marked, *_notes(table, cells, found, scale)),
        numbers=machine(
            (_numbers(table, place, sample) for place, sample in found),
            ["n", "drop_n"],
        ),
    )


def _line(sample: Sample) -> list[str | Number]:
    spread, drop, peak = sample.spread, sample.drop, sample.peak
    return [
        sample.varied,
        str(spread.n),
        Number(_with_half(spread), sample.flags),
        _decimal(spread.sd),
        Number(_with_half(drop), sample.drop_flags) if drop.n else "",
        _decimal(drop.sd) if drop.n else "",
        str(drop.n) if drop.n or sample.unpaired else "",
        Number(_decimal(peak.mean), sample.flags) if peak.n else "",
    ]


def _with_half(spread: Spread) -> str:
    """Mean and half of its interval, as far as there are any."""
    half = half_width(spread)
    return _decimal(spread.mean) + ("" if half != half else f" ± {half:.1f}")


def _decimal(value: float) -> str:
    return MISSING if value != value else f"{round(value, 1) + 0.0:.1f}".replace("-", "−")


def _caption(table: PaperTable, cells: Cells, found: Lines, scale: Scale) -> Iterator[str]:
    yield (
        f"{table.title}: what stands behind our figures. Accuracy after the last epoch on clean "
        f"test images in percent, ± half of the {100 * CONFIDENCE:.0f} % interval of its mean "
        "(Student's t), with sample standard deviation (sd); drop against clean in percentage "
        "points, each victim paired with the clean one of its seed, with its own interval and the "
        "number of pairs."
    )
    words = {
        VICTIM: f"n victims of one crafted set, of {crafting_text(scale.base.craft_seed)}",
        CRAFTING: "n crafted sets with one victim each, always of the same seed",
        BOTH: "n crafted sets, each counted once by the mean over its victims",
        MISSING: "a single victim",
    }
    there = {sample.varied for _, sample in found}
    said = "; ".join(f"{varied}, {word}" for varied, word in words.items() if varied in there)
    yield f"Varied: {said}."
    yield scale_text(cells, scale)
    if not scale.is_paper:
        yield SMALL_SCALE


def _notes(table: PaperTable, cells: Cells, found: Lines, scale: Scale) -> Iterator[str]:
    points = scale.expansion.recipe.curve_images
    fewer = "" if points is None else f" Epochs before the last are tested on {points} images."
    yield f"{PEAK_NOTE[:1].upper()}{PEAK_NOTE[1:]}{fewer}"
    unpaired: dict[tuple[int, ...], set[tuple[int, int]]] = defaultdict(set)
    for place, sample in found:
        if sample.unpaired:
            unpaired[sample.unpaired].add(place)
    for seeds, places in unpaired.items():
        yield (
            "Left out of the drop, for want of a clean victim of the same seed and precision: "
            f"seeds {', '.join(map(str, seeds))} of {where_text(table, places, cells)}."
        )


def _numbers(table: PaperTable, place: tuple[int, int], sample: Sample) -> Mapping[str, Any]:
    row, column = place
    return {
        "table": table.label,
        "row": table.row_names[row],
        "column": table.columns[column],
        "measure": sample.measure,
        "varied": "" if sample.varied == MISSING else sample.varied,
        "seeds": sample.seeds("seed"),
        "craft_seeds": sample.seeds("craft_seed"),
        **_interval("", sample.spread),
        **_interval("drop_", sample.drop),
        "unpaired_seeds": " ".join(map(str, sample.unpaired)),
        "peak_oracle": rounded(sample.peak.mean),
        "flags": flag_names(sample.flags),
        "drop_flags": flag_names(sample.drop_flags),
    }


def _interval(prefix: str, spread: Spread) -> dict[str, Any]:
    half = half_width(spread)
    told = {
        "mean": rounded(spread.mean),
        "sd": rounded(spread.sd),
        "ci95_low": rounded(spread.mean - half),
        "ci95_high": rounded(spread.mean + half),
    }
    return {f"{prefix}n": spread.n} | {f"{prefix}{name}": value for name, value in told.items()}

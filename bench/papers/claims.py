"""What a published table says by its order, judged on ours.

This is all that is judged below the papers' scale. Of each pair, one that must lie above and one
that must lie below, we take the 95 % interval of the difference, paired by victim seed. A claim
holds where all of these lie above zero, does not hold where one lies below, and is undecided
otherwise. It is doubtful where a number that forbids a verdict has a part in it, unless two others
decide against it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from bench.papers.lookup import DOUBTFUL, Cells, Found, Scale
from bench.papers.tables import reasons_text, rounded, scale_text
from bench.papers.targets import Claim, PaperTable
from bench.reports.claims import CONFIDENCE, WORDS, half_width
from bench.reports.flags import FLAGS, GRAVE, Flag, Number, flag_names, settle
from bench.reports.notes import SMALL_SCALE
from bench.reports.summary import Spread
from bench.reports.table import MISSING, Table, frame, machine


@dataclass(frozen=True)
class Gap:
    """By how much one that must lie above does, paired by victim seed, in percentage points.

    Attributes:
        above: name of the one above; empty where a claimed bound stands there.
        below: of the other.
        difference: over the seeds that both have.
    """

    above: str
    below: str
    difference: Spread

    @cached_property
    def low(self) -> float:
        """The lower end of the interval; NaN for fewer than two pairs."""
        return self.difference.mean - half_width(self.difference)

    @cached_property
    def high(self) -> float:
        """The upper end."""
        return self.difference.mean + half_width(self.difference)

    @property
    def names(self) -> tuple[str, ...]:
        """Whose numbers it is made of."""
        return (self.above, self.below) if self.above else (self.below,)


@dataclass(frozen=True)
class Judgement:
    """What came of a claim in one column, or row.

    Attributes:
        claim: what was claimed.
        where: name of the column or row.
        gap: the one whose interval begins lowest.
        holds: None if that is undecided.
        absent: which have no record.
        flags: doubts about every number that has a part in it, by name.
    """

    claim: Claim
    where: str
    gap: Gap
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
    def gap_flags(self) -> list[Flag]:
        """Doubts about the numbers of `gap`."""
        return _in_order(self.flags[name] for name in self.gap.names)

    @property
    def all_flags(self) -> list[Flag]:
        """Doubts about any of the numbers."""
        return _in_order(self.flags.values())

    def cell(self, name: str) -> str:
        """One that has a part in it, with its place in the table."""
        row, column = (name, self.where) if self.claim.rows else (self.where, name)
        return f"{row} on {column}"


def _in_order(several: Iterable[tuple[Flag, ...]]) -> list[Flag]:
    found = {flag for flags in several for flag in flags}
    return [flag for flag in FLAGS if flag in found]


def judgements(table: PaperTable, cells: Cells, scale: Scale) -> list[Judgement]:
    """Every claim wherever it is judged and something is there to judge."""
    found = []
    for claim in table.claims:
        if claim.needs_paper and not scale.is_paper:
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
    values = {n: one.by_seed for n in (*claim.above, *claim.below) if (one := side[n])}
    there = {name: found for name, found in values.items() if found}
    absent = tuple(name for name in (*claim.above, *claim.below) if name not in there)
    flags = {name: found.flags for name in there if (found := side[name])}
    below = [name for name in claim.below if name in there]
    gaps = [
        Gap(one, other, _paired(there[one], there[other], claim.factor))
        for one, other in product([name for name in claim.above if name in there], below)
    ]
    if claim.under is not None:
        gaps += [
            Gap("", name, Spread.of(claim.under - value for value in there[name].values()))
            for name in below
        ]
    if not gaps:
        return None
    # A single pair has no interval: its NaN comes first, and decides nothing.
    narrowest = min(gaps, key=lambda gap: -math.inf if math.isnan(gap.low) else gap.low)
    made = Judgement(claim, where, narrowest, None, absent, flags)
    dust = 1e-9  # a difference of nothing must not be decided by the last bit of a float
    sound = [gap for gap in gaps if not made.doubtful.keys() & set(gap.names)]
    if any(gap.high < -dust for gap in sound):
        return replace(made, holds=False)
    holds = narrowest.low > dust and not absent and not made.doubtful
    return replace(made, holds=True) if holds else made


def _paired(above: Mapping[int, float], below: Mapping[int, float], factor: float) -> Spread:
    return Spread.of(factor * above[seed] - below[seed] for seed in above if seed in below)


def paper_claims_table(
    table: PaperTable, found: Sequence[Judgement], cells: Cells, scale: Scale
) -> Table:
    """What came of a table's claims."""
    lines: list[list[str | Number]] = []
    last = ""
    for one in found:
        said = "" if one.claim.says == last else one.claim.says
        last = one.claim.says
        lines.append([said, one.where, _gap_text(one), str(one.gap.difference.n), one.verdict])
    shown, marked = settle(lines)
    caption = (
        f"{table.title}: what its order says. Of each pair, one that must lie above and one that "
        f"must lie below, the {100 * CONFIDENCE:.0f} % interval (Student's t) of the difference, "
        "paired by victim seed, in percentage points over n pairs; the pair whose interval begins "
        "lowest is shown. A claim holds where all intervals lie above zero, does not where one "
        "lies below, and is undecided otherwise; it is doubtful where a number that forbids a "
        "verdict has a part in it, unless two others decide against it."
    )
    small = () if scale.is_paper else (SMALL_SCALE,)
    return Table(
        name=f"paper-{table.paper}-{table.name}-claims",
        caption=(caption, scale_text(cells, scale), *small),
        cells=frame(["claim", "where", "difference", "n", "verdict"], shown),
        lead=2,
        step=3,
        notes=(*marked, *_told(table, found, scale)),
        numbers=machine(
            {
                "table": table.label,
                "claim": one.claim.says,
                "where": one.where,
                "above": one.gap.above,
                "below": one.gap.below,
                "n": one.gap.difference.n,
                "difference": rounded(one.gap.difference.mean),
                "ci95_low": rounded(one.gap.low),
                "ci95_high": rounded(one.gap.high),
                "verdict": one.verdict,
                "absent": " ".join(one.absent),
                "doubtful": " ".join(one.doubtful),
                "gap_flags": flag_names(one.gap_flags),
                "flags": flag_names(one.all_flags),
            }
            for one in found
        ),
    )


def _told(table: PaperTable, found: Sequence[Judgement], scale: Scale) -> Iterator[str]:
    """What is missing, what is doubtful and why, and what is not judged at this scale."""
    absent = dict.fromkeys(one.cell(name) for one in found for name in one.absent)
    if absent:
        yield f"Not run, so that what needs them cannot hold yet: {', '.join(absent)}."
    places: dict[str, dict[str, None]] = defaultdict(dict)
    for one in found:
        for name, doubts in one.doubtful.items() if one.verdict == DOUBTFUL else ():
            for reason in reasons_text(doubts):
                places[reason][one.cell(name)] = None
    for reason, where in places.items():
        yield f"Doubtful: {', '.join(where)}: {reason}."
    unjudged = [claim.says for claim in table.claims if claim.needs_paper and not scale.is_paper]
    if unjudged:
        yield f"Judged at the paper's scale only: {'; '.join(unjudged)}."


def _gap_text(one: Judgement) -> str | Number:
    """The interval, and of what."""
    gap = one.gap
    part = f"{one.claim.factor:g} x " if one.claim.factor != 1 else ""
    above = f"{part}{gap.above}" if gap.above else f"{one.claim.under:g} %"
    after = f" ({above} − {gap.below})"
    if math.isnan(gap.low):
        return MISSING + after
    return Number(f"{_signed(gap.low)} to {_signed(gap.high)}", one.gap_flags, after)


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}".replace("-", "−")

"""What a published table says by its order, judged on ours.

This is all that is judged below the papers' scale. A claim holds where every interval that must
lie lower ends below the beginning of every other, does not hold where two lie the other way round,
and is undecided otherwise. It is doubtful where a number that forbids a verdict has a part in it,
unless two others decide against it.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.papers.lookup import DOUBTFUL, Cells, Found, Scale
from bench.papers.tables import reasons_text, rounded, scale_text
from bench.papers.targets import Claim, PaperTable
from bench.reports.claims import CONFIDENCE, WORDS
from bench.reports.flags import FLAGS, GRAVE, Flag, Number, flag_names, settle
from bench.reports.notes import SMALL_SCALE
from bench.reports.table import MISSING, Table, frame, machine


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
            for reason in reasons_text(doubts):
                places[reason][f"{row} on {column}"] = None
    for reason, where in places.items():
        yield f"Doubtful: {', '.join(where)}: {reason}."


def _end(value: float, doubts: Sequence[Flag] | None, after: str) -> str | Number:
    """An end of an interval and whose it is; a claimed bound has no doubts."""
    text = MISSING if math.isnan(value) else f"{value:.1f}"
    return text + after if math.isnan(value) or doubts is None else Number(text, doubts, after)

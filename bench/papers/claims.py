"""What a published table says by its order, judged on ours.

This is all that is judged below the papers' scale. How it is judged: bench/reports/claims.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from bench.papers.lookup import Cells, Found, Scale
from bench.papers.tables import reasons_text, scale_text
from bench.papers.targets import Claim, PaperTable
from bench.reports.claims import DOUBTFUL, RULE, WORDS_NOTE, Decision, Gap, decide
from bench.reports.flags import Number, settle
from bench.reports.notes import SMALL_SCALE
from bench.reports.summary import Spread
from bench.reports.table import Table, frame, machine


@dataclass(frozen=True)
class Judgement(Decision):
    """What came of a claim in one column, or row.

    Attributes:
        claim: what was claimed.
        where: name of the column or row.
    """

    claim: Claim
    where: str

    def cell(self, name: str) -> str:
        """One that has a part in it, with its place in the table."""
        row, column = (name, self.where) if self.claim.rows else (self.where, name)
        return f"{row} on {column}"


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
    absent = [name for name in (*claim.above, *claim.below) if name not in there]
    flags = {name: found.flags for name in there if (found := side[name])}
    above = [(name, _raised(claim, there[name])) for name in claim.above if name in there]
    below = [(name, there[name]) for name in claim.below if name in there]
    gaps = [Gap.paired(one, other) for one, other in product(above, below)]
    if claim.under is not None:
        bound = claim.under
        gaps += [Gap("", n, Spread.of(bound - v for v in found.values())) for n, found in below]
    if not gaps:
        return None
    return Judgement(**vars(decide(gaps, absent, flags)), claim=claim, where=where)


def _raised(claim: Claim, values: Mapping[int, float]) -> dict[int, float]:
    """What those below must lie below: a part of one above, or some points more than it."""
    return {seed: claim.factor * value + claim.within for seed, value in values.items()}


def paper_claims_table(
    table: PaperTable, found: Sequence[Judgement], cells: Cells, scale: Scale
) -> Table:
    """What came of a table's claims."""
    lines: list[list[str | Number]] = []
    last = ""
    for one in found:
        said = "" if one.claim.says == last else one.claim.says
        last = one.claim.says
        gap = one.gap.text(one.gap_flags, _above(one))
        lines.append([said, one.where, gap, str(one.gap.difference.n), one.verdict])
    shown, marked = settle(lines)
    caption = (
        f"{table.title}: what its order says. Of each pair, one that must lie above and one that "
        f"must lie below, {RULE}; the pair whose interval begins lowest is shown. {WORDS_NOTE}"
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
                **one.numbers(),
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


def _above(one: Judgement) -> str:
    """What those below must lie below, in words."""
    claim = one.claim
    if not one.gap.above:
        return f"{claim.under:g} %"
    part = f"{claim.factor:g} x " if claim.factor != 1 else ""
    more = f" + {claim.within:g}" if claim.within else ""
    return f"{part}{one.gap.above}{more}"

"""Claims about groups of methods, written down before a run, and what came of them.

A results folder may hold `claims.toml`:

    [[claim]]
    above = ["clean", "noise"]      every one of these
    below = ["ule", "cuda"]         must have a higher accuracy than every one of these
    archs = ["rn18", "vgg16"]       on each of these architectures

by more than both confidence intervals over victim seeds.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import UsageError
from bench.reports.flags import Flag, Number, flag_names, flags, settle
from bench.reports.notes import scale
from bench.reports.summary import Spread, Summary
from bench.reports.table import MISSING, Table, decimals

CONFIDENCE = 0.95
FILE = "claims.toml"
WORDS = {True: "holds", False: "does not hold", None: "undecided"}
"""What can come of a claim."""


@dataclass(frozen=True)
class Claim:
    """That methods of one group lie above those of another.

    Attributes:
        above: names of methods.
        below: names of methods.
        archs: names of architectures.
    """

    above: tuple[str, ...]
    below: tuple[str, ...]
    archs: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """What came of a claim for one method of the lower group on one architecture.

    Attributes:
        method: of the lower group.
        arch: on which architecture.
        upper: upper end of the method's interval, a fraction.
        floor: lowest lower end of an interval in the upper group.
        lowest: the method that has it.
        n: victims of the method, or of the upper group's method that has the fewest.
        flags: doubts about the method's victims.
        floor_flags: doubts about those of `lowest`.
    """

    method: str
    arch: str
    upper: float
    floor: float
    lowest: str
    n: int
    flags: tuple[Flag, ...] = ()
    floor_flags: tuple[Flag, ...] = ()

    @property
    def holds(self) -> bool | None:
        """Whether it does; None where too few victims are there to say."""
        margin = self.floor - self.upper
        return None if math.isnan(margin) else margin > 0


def read_claims(folder: Path) -> list[Claim]:
    """The claims of a results folder; none if it has no file of them.

    Raises:
        UsageError: if the file is not what the module describes.
    """
    file = folder / FILE
    if not file.exists():
        return []
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))["claim"]
        return [Claim(*(_names(one[key]) for key in ("above", "below", "archs"))) for one in found]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UsageError(
            f"{file} is not understood ({error}); it needs [[claim]] with above, below and archs, "
            "each a list of names"
        ) from None


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise TypeError(f"{value!r} is no list of names")
    return tuple(value)


def verdicts(summary: Summary, claims: Sequence[Claim]) -> list[Verdict]:
    """Each claim, row of its lower group and architecture, without defense."""
    found = []
    for claim in claims:
        for arch in claim.archs:
            above = [side for name in claim.above for side in _sides(summary, name, arch)]
            # One that has no interval decides that nothing is decided.
            lowest = min(above, key=lambda side: _first(side.low))
            for method in claim.below:
                for side in _sides(summary, method, arch):
                    found.append(
                        Verdict(
                            method=side.label,
                            arch=side.arch,
                            upper=side.high,
                            floor=lowest.low,
                            lowest=lowest.label,
                            n=min(one.spread.n for one in (side, *above)),
                            flags=side.flags,
                            floor_flags=lowest.flags,
                        )
                    )
    return found


def half_width(spread: Spread) -> float:
    """Of the confidence interval of a mean, by Student's t; NaN for fewer than two values."""
    from scipy.stats import t

    if spread.n < 2:
        return math.nan
    return float(t.ppf((1 + CONFIDENCE) / 2, spread.n - 1)) * spread.sd / math.sqrt(spread.n)


def claims_table(summary: Summary, claims: Sequence[Claim]) -> Table:
    """What came of the claims."""
    import pandas as pd

    found = verdicts(summary, claims)
    cells, marked = settle(
        [
            v.method,
            v.arch,
            _percent(v.upper, v.flags),
            _percent(v.floor, v.floor_flags, f" ({v.lowest})"),
            WORDS[v.holds],
        ]
        for v in found
    )
    heads = ["method", "architecture", "at most %", "below %", "claim"]
    caption = (
        f"Claims fixed before the run: upper end of each method's {100 * CONFIDENCE:.0f} % "
        "interval of clean test accuracy over victim seeds, and lowest lower end in the group "
        "that must lie above it."
    )
    return Table(
        name="claims",
        caption=(caption, *scale(summary)),
        cells=pd.DataFrame(cells, columns=heads, dtype=object),
        lead=2,
        step=3,
        notes=tuple(marked),
        numbers=pd.DataFrame([_numbers(v) for v in found]),
    )


def _numbers(verdict: Verdict) -> dict[str, Any]:
    told = {name: flag_names(getattr(verdict, name)) for name in ("flags", "floor_flags")}
    return vars(verdict) | told | {"holds": verdict.holds}


@dataclass(frozen=True)
class _Side:
    """Final accuracies of one row and column, without defense."""

    label: str
    arch: str
    spread: Spread
    flags: tuple[Flag, ...] = ()

    @property
    def low(self) -> float:
        return self.spread.mean - half_width(self.spread)

    @property
    def high(self) -> float:
        return self.spread.mean + half_width(self.spread)


def _sides(summary: Summary, method: str, arch: str) -> list[_Side]:
    """Each row and column of these names; one without victims if there is none."""
    found = [
        _Side(
            summary.method_label(row),
            str(column),
            group.spread("final_test_acc"),
            tuple(flags(group, summary.control(row, column))),
        )
        for (row, column), group in summary.groups.items()
        if (row.method, row.defense) == (method, "none") and column.arch == arch
    ]
    return found or [_Side(method, arch, Spread.of([]))]


def _first(value: float) -> float:
    """NaN comes first."""
    return -math.inf if math.isnan(value) else value


def _percent(value: float, doubts: tuple[Flag, ...], after: str = "") -> str | Number:
    return MISSING + after if math.isnan(value) else Number(decimals(100 * value, 1), doubts, after)

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
from bench.summary import Spread, Summary
from bench.tables import MISSING, Table, scale

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
    """

    method: str
    arch: str
    upper: float
    floor: float
    lowest: str
    n: int

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
            above = {k: s for name in claim.above for k, s in _spreads(summary, name, arch)}
            ends = {k: s.mean - half_width(s) for k, s in above.items()}
            unknown = [key for key, end in ends.items() if math.isnan(end)]
            lowest = unknown[0] if unknown else min(ends, key=lambda key: ends[key])
            for method in claim.below:
                for (label, column), spread in _spreads(summary, method, arch):
                    upper = spread.mean + half_width(spread)
                    count = min(spread.n, *(s.n for s in above.values()))
                    found.append(Verdict(label, column, upper, ends[lowest], lowest[0], count))
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
    lines = [
        [v.method, v.arch, _percent(v.upper), f"{_percent(v.floor)} ({v.lowest})", WORDS[v.holds]]
        for v in found
    ]
    heads = ["method", "architecture", "at most %", "below %", "claim"]
    caption = (
        f"Claims fixed before the run: upper end of each method's {100 * CONFIDENCE:.0f} % "
        "interval of clean test accuracy over victim seeds, and lowest lower end in the group "
        "that must lie above it."
    )
    return Table(
        name="claims",
        caption=(caption, *scale(summary)),
        cells=pd.DataFrame(lines, columns=heads, dtype=object),
        lead=2,
        step=3,
        notes=(),
        numbers=pd.DataFrame([vars(v) | {"holds": v.holds} for v in found]),
    )


def _spreads(summary: Summary, method: str, arch: str) -> list[tuple[tuple[str, str], Spread]]:
    """Labels and final accuracies of each row and column of these names; one of none if none is."""
    found = [
        ((summary.method_label(row), str(column)), group.spread("final_test_acc"))
        for (row, column), group in summary.groups.items()
        if (row.method, row.defense) == (method, "none") and column.arch == arch
    ]
    return found or [((method, arch), Spread.of([]))]


def _percent(value: float) -> str:
    return MISSING if math.isnan(value) else f"{100 * value:.1f}"

"""Claims about groups of methods, written down before a run, and what came of them.

A results folder may hold `claims.toml`:

    [[claim]]
    above = ["clean", "noise"]      every one of these
    below = ["ule", "cuda"]         must have a higher accuracy than every one of these
    archs = ["rn18", "vgg16"]       on each of these architectures

Methods are called as tables call them: `cuda` is that method with the settings of its recipe, and
`cuda:shared=True`, with another setting, is another.

Claims about orders, these and those of published tables, are judged in one way. Of each pair, one
that must lie above and one that must lie below, we take the difference, paired by victim seed. A
claim holds where the 95 % interval of every difference lies above zero. It does not hold where the
interval of one lies below zero, at the level that several pairs ask for: with k pairs each interval
is one of 1 - .05 / k, so that chance alone refutes a true claim in at most one case of twenty. It
is undecided otherwise. It is doubtful where a number that forbids a verdict has a part in it,
unless two others decide against it.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.errors import UsageError
from bench.reports.flags import FLAGS, GRAVE, Flag, Number, flag_names, flags, settle
from bench.reports.notes import scale
from bench.reports.summary import Column, Group, Row, Spread, Summary
from bench.reports.table import MISSING, Table, rounded

CONFIDENCE = 0.95
FILE = "claims.toml"
WORDS = {True: "holds", False: "does not hold", None: "undecided"}
"""What can come of a claim."""
DOUBTFUL = "doubtful"
RULE = (
    f"the {100 * CONFIDENCE:.0f} % interval (Student's t) of the difference, paired by victim "
    "seed, in percentage points over n pairs of victims"
)
WORDS_NOTE = (
    "A claim holds where all intervals lie above zero. It does not hold where one lies below zero "
    f"even at the level 1 − {1 - CONFIDENCE:.2f} / k, k being the number of pairs, and is "
    "undecided otherwise. It is doubtful where a number that forbids a verdict has a part in it, "
    "unless two others decide against it."
)


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

    @classmethod
    def paired(
        cls, above: tuple[str, Mapping[int, float]], below: tuple[str, Mapping[int, float]]
    ) -> Gap:
        """Of two, each a name and its accuracies in percent by victim seed."""
        (one, high), (other, low) = above, below
        return cls(one, other, Spread.of(high[seed] - low[seed] for seed in high if seed in low))

    @cached_property
    def low(self) -> float:
        """The lower end of the interval; NaN for fewer than two pairs."""
        return self.difference.mean - half_width(self.difference)

    @cached_property
    def high(self) -> float:
        """The upper end."""
        return self.difference.mean + half_width(self.difference)

    def lies_below_zero(self, pairs: int) -> bool:
        """Whether it refutes, as one of so many pairs."""
        half = half_width(self.difference, 1 - (1 - CONFIDENCE) / max(pairs, 1))
        return self.difference.mean + half < -DUST

    @property
    def names(self) -> tuple[str, ...]:
        """Whose numbers it is made of."""
        return (self.above, self.below) if self.above else (self.below,)

    def text(self, doubts: Sequence[Flag], above: str = "") -> str | Number:
        """The interval, and of what; `above` instead of the name of the one above."""
        after = f" ({above or self.above} − {self.below})"
        if math.isnan(self.low):
            return MISSING + after
        return Number(f"{_signed(self.low)} to {_signed(self.high)}", doubts, after)


DUST = 1e-9
"""A difference of nothing must not be decided by the last bit of a float."""


@dataclass(frozen=True)
class Decision:
    """What came of one claim in one place.

    Attributes:
        gap: the one whose interval begins lowest.
        pairs: how many could have refuted it.
        holds: None if that is undecided.
        absent: which have no record.
        flags: doubts about every number that has a part in it, by name.
    """

    gap: Gap
    pairs: int
    holds: bool | None
    absent: tuple[str, ...]
    flags: Mapping[str, tuple[Flag, ...]]

    @property
    def doubtful(self) -> dict[str, tuple[Flag, ...]]:
        """The numbers that forbid a verdict, each with why."""
        return grave(self.flags)

    @property
    def verdict(self) -> str:
        """In a word or two."""
        return DOUBTFUL if self.holds is None and self.doubtful else WORDS[self.holds]

    @property
    def gap_flags(self) -> list[Flag]:
        """Doubts about the numbers of `gap`."""
        return _in_order(self.flags.get(name, ()) for name in self.gap.names)

    @property
    def all_flags(self) -> list[Flag]:
        """Doubts about any of the numbers."""
        return _in_order(self.flags.values())

    def numbers(self) -> dict[str, Any]:
        """For machines."""
        difference = self.gap.difference
        return {
            "above": self.gap.above,
            "below": self.gap.below,
            "n": difference.n,
            "difference": rounded(difference.mean),
            "ci95_low": rounded(self.gap.low),
            "ci95_high": rounded(self.gap.high),
            "pairs": self.pairs,
            "verdict": self.verdict,
            "absent": " ".join(self.absent),
            "doubtful": " ".join(self.doubtful),
            "gap_flags": flag_names(self.gap_flags),
            "flags": flag_names(self.all_flags),
        }


def grave(found: Mapping[str, tuple[Flag, ...]]) -> dict[str, tuple[Flag, ...]]:
    """Of the doubts about several numbers those that forbid a verdict."""
    several = {name: tuple(flag for flag in some if flag in GRAVE) for name, some in found.items()}
    return {name: some for name, some in several.items() if some}


def _in_order(several: Iterable[Sequence[Flag]]) -> list[Flag]:
    found = {flag for flags in several for flag in flags}
    return [flag for flag in FLAGS if flag in found]


def decide(
    gaps: Sequence[Gap], absent: Sequence[str], found: Mapping[str, tuple[Flag, ...]]
) -> Decision:
    """Judge a claim by all of its pairs, of which there is one at least.

    Args:
        gaps: of every pair.
        absent: which have no record, so that the claim cannot hold yet.
        found: doubts by name.
    """
    # A single pair of victims has no interval: its NaN comes first, and decides nothing.
    narrowest = min(gaps, key=lambda gap: -math.inf if math.isnan(gap.low) else gap.low)
    forbidden = grave(found).keys()
    sound = [g for g in gaps if g.difference.n > 1 and not forbidden & set(g.names)]
    holds = None
    if any(gap.lies_below_zero(len(sound)) for gap in sound):
        holds = False
    elif narrowest.low > DUST and not absent and not forbidden:
        holds = True
    return Decision(narrowest, len(sound), holds, tuple(absent), found)


def half_width(spread: Spread, confidence: float = CONFIDENCE) -> float:
    """Of the confidence interval of a mean, by Student's t; NaN for fewer than two values."""
    from scipy.stats import t

    if spread.n < 2:
        return math.nan
    return float(t.ppf((1 + confidence) / 2, spread.n - 1)) * spread.sd / math.sqrt(spread.n)


# Claims of a results folder.


@dataclass(frozen=True)
class Claim:
    """That methods of one group lie above those of another.

    Attributes:
        above: methods, as tables call them.
        below: methods, as tables call them.
        archs: architectures, as typed.
    """

    above: tuple[str, ...]
    below: tuple[str, ...]
    archs: tuple[str, ...]


@dataclass(frozen=True)
class Verdict(Decision):
    """What came of a claim for one method of the lower group on one architecture.

    Attributes:
        method: of the lower group.
        arch: on which architecture.
    """

    method: str
    arch: str


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
            for name in claim.below:
                for side in _sides(summary, name, arch):
                    one, sides = side.by_seed, [*above, side]
                    gaps = [Gap.paired((a.label, a.by_seed), (side.label, one)) for a in above]
                    absent = [each.label for each in sides if not each.by_seed]
                    made = decide(gaps, absent, {each.label: each.flags for each in sides})
                    found.append(Verdict(**vars(made), method=side.label, arch=side.arch))
    return found


def claims_table(summary: Summary, claims: Sequence[Claim]) -> Table:
    """What came of the claims."""
    import pandas as pd

    found = verdicts(summary, claims)
    cells, marked = settle(
        [v.method, v.arch, v.gap.text(v.gap_flags), str(v.gap.difference.n), v.verdict]
        for v in found
    )
    heads = ["method", "architecture", "difference", "n", "claim"]
    caption = (
        f"Claims fixed before the run. Of each method and each that must lie above it, {RULE}; the "
        f"pair whose interval begins lowest is shown. {WORDS_NOTE}"
    )
    return Table(
        name="claims",
        caption=(caption, *scale(summary)),
        cells=pd.DataFrame(cells, columns=heads, dtype=object),
        lead=2,
        step=3,
        notes=tuple(marked),
        numbers=pd.DataFrame([{"method": v.method, "arch": v.arch, **v.numbers()} for v in found]),
    )


@dataclass(frozen=True)
class _Side:
    """Final accuracies of one row and column by victim seed, in percent, without defense."""

    label: str
    arch: str
    by_seed: Mapping[int, float]
    flags: tuple[Flag, ...] = ()


def _sides(summary: Summary, method: str, arch: str) -> list[_Side]:
    """Each row and column that tables call so; one without victims if there is none."""
    found = [
        _Side(
            summary.method_label(row),
            str(column),
            _by_seed(group),
            tuple(flags(group, summary.control(row, column))),
        )
        for (row, column), group in summary.groups.items()
        if _is_called(row, column, method, arch)
    ]
    return found or [_Side(method, arch, {})]


def _is_called(row: Row, column: Column, method: str, arch: str) -> bool:
    """By whole labels: a setting more makes it another method, or another architecture."""
    return (row.method_label, row.defense, column.arch_label) == (method, "none", arch)


def _by_seed(group: Group) -> dict[int, float]:
    return {one["seed"]: 100 * one["final_test_acc"] for one in group.done}


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}".replace("-", "−")

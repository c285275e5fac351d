"""Ranks of methods, and how far chance among their victims could move them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

DRAWS = 1000
"""So often the seeds are drawn anew."""
INTERVAL = 0.95
"""The share of draws that lies within an interval."""
TIE = 1e-9
"""A mean is lower than another only if it is by more than this."""


class Rank(NamedTuple):
    """A place among others: 1 is the lowest mean, and equals share a place.

    Attributes:
        place: of the mean.
        low: lower end of its interval; None where one value is all there is.
        high: upper end.
    """

    place: int
    low: int | None = None
    high: int | None = None

    def __str__(self) -> str:
        return f"{self.place}" if self.low is None else f"{self.place} ({self.low}–{self.high})"


def ranks(scores: Mapping[str, Sequence[float]]) -> dict[str, Rank]:
    """Rank names by the means of their scores, with an interval where each has several.

    The interval is a percentile bootstrap: every name draws its scores anew, as many as it has and
    with repetition, and the means of each draw are ranked. The draws are always the same.

    Args:
        scores: by name, a score a victim seed; at least one.
    """
    means = {name: fmean(values) for name, values in scores.items()}
    places = _places(means)
    if any(len(values) < 2 for values in scores.values()):
        return {name: Rank(place) for name, place in places.items()}
    generator = random.Random(0)
    drawn: dict[str, list[int]] = {name: [] for name in scores}
    for _ in range(DRAWS):
        anew = {n: fmean(generator.choices(v, k=len(v))) for n, v in scores.items()}
        for name, place in _places(anew).items():
            drawn[name].append(place)
    cut = round(DRAWS * (1 - INTERVAL) / 2)
    ends = {name: (sorted(found)[cut], sorted(found)[-1 - cut]) for name, found in drawn.items()}
    return {name: Rank(place, *ends[name]) for name, place in places.items()}


def _places(means: Mapping[str, float]) -> dict[str, int]:
    """One more than there are lower ones."""
    values = means.values()
    return {name: 1 + sum(other < own - TIE for other in values) for name, own in means.items()}

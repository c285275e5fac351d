"""The trainer who chooses among defenses: sets to choose from, and how good the best of them is.

A protection that withstands one defense is worth nothing if it falls to the next one, so methods
are to be judged by the strongest of several. The sets are fixed, so that nobody tunes them to a
method; their members know nothing but the released images; and each aims at a family of
perturbations, since none is strong against all.

The highest of several noisy accuracies is higher than the accuracy of the best defense: reported
as it is, it would flatter the trainer the more, the more defenses are tried. Here the defense is
chosen on some victim seeds and reported on the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Generic, TypeVar

from bench.component import split
from bench.errors import UsageError

K = TypeVar("K", bound=Hashable)

AUTO = (
    "none",
    "grayscale",  # colour: class-wise tints, CUDA's filters in part
    "jpeg",  # whatever is small and of high frequency
    "bit-depth",  # whatever is smaller than a coarse grey level
    "gaussian-blur",  # high frequencies again, without block edges
    "cutout",  # single pixels and patches
    "cutmix",  # shortcuts that do not need the whole image
    "mixup",  # shortcuts that do not survive averaging
    "random-kernel",  # class-wise convolutions
    "orthogonal-projection",  # linearly separable, class-wise patterns
    "ueraser-max",  # error-minimising perturbations, by augmentations of the highest loss
    "at-linf",  # anything inside a small l∞ ball
    "jpeg+mixup",  # two that work at different places, together
)
AUTO_FAST = ("none", "grayscale", "jpeg", "orthogonal-projection", "ueraser-lite")
"""Together some five times plain training."""

SETS: Mapping[str, tuple[str, ...]] = {"auto": AUTO, "auto-fast": AUTO_FAST}
"""Names that stand for several defenses in `--defenses`; the members have no settings."""

TIE = 1e-9
"""A mean accuracy is higher than another only if it is by more than this."""


def expand(text: str) -> str:
    """A list of defenses with the members of a set in the place of its name.

    Args:
        text: as typed, for instance "auto-fast,dpsgd-batch".

    Raises:
        UsageError: if a set is given settings or joined with something.
    """
    pieces: list[str] = []
    for piece in split(text):
        head = piece.partition(":")[0].strip()
        parts = {part.strip() for part in head.split("+")}
        key = "=" in head and pieces and pieces[-1] in SETS
        if piece not in SETS and (key or parts & set(SETS)):
            name = pieces[-1] if key else min(parts & set(SETS))
            raise UsageError(
                f"'{name}' stands for several defenses ({','.join(SETS[name])}); it takes no "
                f"settings and is not joined by +: '{piece}'"
            )
        pieces.append(piece)
    return ",".join(",".join(SETS.get(piece, (piece,))) for piece in pieces)


def title_of(defenses: Collection[str]) -> str:
    """What the worst case is over: a set if all of it is there, with the number of others."""
    whole = [name for name, members in SETS.items() if set(members) <= set(defenses)]
    if not whole:
        return f"worst of {len(defenses)}"
    name = max(whole, key=lambda name: len(SETS[name]))
    more = len(defenses) - len(SETS[name])
    return f"worst case ({name}{f' and {more} more' if more else ''})"


@dataclass(frozen=True)
class WorstCase(Generic[K]):
    """What a trainer reaches who may choose the defense.

    Attributes:
        chosen: by victim seed, the defense that did best on the other seeds.
        scores: by victim seed, its score on this one.
        compared: the defenses that were chosen from.
        left_out: those that were not, for want of seeds, each with the number it has.
    """

    chosen: Mapping[int, K]
    scores: Mapping[int, float]
    compared: tuple[K, ...]
    left_out: Mapping[K, int]

    @property
    def flatters(self) -> bool:
        """Whether a defense was chosen and reported on the same, single seed."""
        return len(self.scores) == 1

    @property
    def usual(self) -> tuple[K, int]:
        """The defense chosen most often, the plainest of several, and how often."""
        counts = Counter(self.chosen.values())
        best = max(self.compared, key=lambda one: counts[one])  # the first of several
        return best, counts[best]


def worst_case(scores: Mapping[K, Mapping[int, float]]) -> WorstCase[K] | None:
    """Choose a defense on all victim seeds but one, report it on that one; for every seed.

    The seeds are those that all defenses have. If these are fewer than two, the defenses with
    fewer seeds than most are left out first. If one seed remains even so, choice and report fall
    together. Of equals the earlier is chosen.

    Args:
        scores: by defense, the plainest first, and victim seed.

    Returns:
        None where there are no two defenses with a seed in common.
    """
    there = {defense: found for defense, found in scores.items() if found}
    seeds = _common(there)
    if len(seeds) < 2:
        there = _without_laggards(there)
        seeds = _common(there)
    if len(there) < 2 or not seeds:
        return None
    chosen = {}
    for seed in seeds:
        others = [other for other in seeds if other != seed] or [seed]
        chosen[seed] = _best({d: fmean(found[s] for s in others) for d, found in there.items()})
    return WorstCase(
        chosen=chosen,
        scores={seed: there[defense][seed] for seed, defense in chosen.items()},
        compared=tuple(there),
        left_out={d: len(found) for d, found in scores.items() if d not in there},
    )


def _common(scores: Mapping[K, Mapping[int, float]]) -> list[int]:
    """The seeds that all have."""
    return sorted(set.intersection(*map(set, scores.values()))) if scores else []


def _without_laggards(scores: Mapping[K, Mapping[int, float]]) -> dict[K, Mapping[int, float]]:
    """Without those that have fewer seeds than most.

    Of two numbers of seeds that are equally frequent the larger counts.
    """
    counts = Counter(len(found) for found in scores.values())
    usual = max(counts, key=lambda count: (counts[count], count), default=0)
    return {defense: found for defense, found in scores.items() if len(found) >= usual}


def _best(means: Mapping[K, float]) -> K:
    """The highest; of equals the first."""
    first, *others = means
    for other in others:
        first = other if means[other] > means[first] + TIE else first
    return first

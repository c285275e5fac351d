"""The trainer who chooses among defenses: sets to choose from, and how good the best of them is.

A protection that withstands one defense is worth nothing if it falls to the next one, so methods
are to be judged by the strongest of several. The sets are fixed, so that nobody tunes them to a
method; their members know nothing but the released images; and each aims at a family of
perturbations, since none is strong against all.

The highest of several noisy accuracies is higher than the accuracy of the best defense: reported
as it is, it would flatter the trainer the more, the more defenses are tried. Here the defense is
chosen on all victim seeds but one and reported on that one, in turn. On average this gives at most
the accuracy of the best defense, and less the more often the choice goes wrong. The best lies, on
average, between this and the highest mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from statistics import fmean
from typing import Generic, TypeVar

from bench.component import split
from bench.errors import UsageError
from bench.registry import DEFENSES

K = TypeVar("K", bound=Hashable)

AUTO = (
    "none",
    "grayscale",  # colour, such as class-wise tints
    "jpeg",  # whatever is small and of high frequency
    "bit-depth",  # whatever is smaller than a coarse grey level
    "gaussian-blur",  # high frequencies again, without block edges
    "cutout",  # single pixels and patches
    "cutmix",  # shortcuts that do not need the whole image
    "mixup",  # shortcuts that do not survive averaging
    "random-kernel",  # patterns that one convolution destroys
    "coin",  # class-wise convolutions
    "orthogonal-projection",  # linearly separable, class-wise patterns
    "ueraser-max",  # error-minimising perturbations, by augmentations of the highest loss
    "at-linf",  # anything inside a small l∞ ball
    "jpeg+mixup",  # two that work at different places, together
)
AUTO_FAST = ("none", "grayscale", "jpeg", "orthogonal-projection", "coin")
"""Together five to six times plain training, as measured on processors (`results/speed`).

That includes the linear fit of the projection, ten to forty seconds of one core. It is done on the
processor everywhere: beside a GPU that trains a small network in four seconds it would be the
dearest part of the set, which would then cost more than six times plain training. `ueraser-lite`
costs no more than the others on processors, but four times plain training on an H200 that small
networks did not fill (`results/speed`): its many small operations wait for their
launches.
"""

SETS: Mapping[str, tuple[str, ...]] = {"auto": AUTO, "auto-fast": AUTO_FAST}
"""Names that stand for several defenses in `--defenses`; the members have no settings."""

READING = "early-stopping"
"""What others count as a defense, and is read off every curve here."""

TIE = 1e-9
"""A mean accuracy is higher than another only if it is by more than this."""


def expand(text: str) -> str:
    """A list of defenses with the members of a set in the place of its name.

    Args:
        text: as typed, for instance "auto-fast,dpsgd-batch".

    Raises:
        UsageError: if a set is given settings, joined with something or misspelt, or for early
            stopping.
    """
    pieces: list[str] = []
    for piece in split(text):
        names = {part.partition(":")[0].strip() for part in piece.split("+")}
        if READING in names:
            raise UsageError(
                f"'{READING}' is no training of its own: add --holdout 500 (images that are kept "
                "from training), and the tables tell what it would have given"
            )
        names &= set(SETS)
        setting = "=" in piece.partition(":")[0] and pieces and pieces[-1] in SETS
        if piece not in SETS and (setting or names):
            name = pieces[-1] if setting else min(names)
            raise UsageError(
                f"'{name}' stands for several defenses ({','.join(SETS[name])}); it takes no "
                f"settings and is not joined by +: '{piece}'"
            )
        near = get_close_matches(piece.lower(), SETS, n=1, cutoff=0.75)
        plain = not any(character in piece for character in "*?[=")
        if near and plain and piece not in (*SETS, *DEFENSES.entries):
            raise UsageError(
                f"unknown defense '{piece}'; did you mean {near[0]}, which stands for "
                f"{','.join(SETS[near[0]])}?"
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
        highest: the highest mean over all these seeds of any defense chosen from. It flatters, and
            is never below the mean of `scores`.
        compared: the defenses that were chosen from.
        left_out: those that were not, for want of seeds, each with how many of these it has.
    """

    chosen: Mapping[int, K]
    scores: Mapping[int, float]
    highest: float
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

    The seeds are those of the first defense that has any, and the defenses those that have all of
    them; the others are left out. So a few defenses on three seeds are not spoilt by many more on
    one. Where this leaves the first alone, all defenses are compared on the seeds that they share.
    If one seed remains, choice and report fall together. Of equals the earlier is chosen.

    Args:
        scores: by defense, the plainest first, and victim seed.

    Returns:
        None where there are no two defenses with a seed in common.
    """
    compared = {defense: found for defense, found in scores.items() if found}
    seeds = set(next(iter(compared.values()), ()))
    complete = {defense: found for defense, found in compared.items() if seeds <= set(found)}
    if len(complete) > 1:
        compared = complete
    else:
        seeds = seeds.intersection(*compared.values())
    if len(compared) < 2 or not seeds:
        return None
    chosen = {}
    for seed in sorted(seeds):
        others = seeds - {seed} or {seed}
        chosen[seed] = _best({d: _mean(found, others) for d, found in compared.items()})
    return WorstCase(
        chosen=chosen,
        scores={seed: compared[defense][seed] for seed, defense in chosen.items()},
        highest=max(_mean(found, seeds) for found in compared.values()),
        compared=tuple(compared),
        left_out={d: len(seeds & set(by)) for d, by in scores.items() if d not in compared},
    )


def _mean(scores: Mapping[int, float], seeds: Collection[int]) -> float:
    return fmean(scores[seed] for seed in seeds)


def _best(means: Mapping[K, float]) -> K:
    """The highest; of equals the first."""
    first, *others = means
    for other in others:
        first = other if means[other] > means[first] + TIE else first
    return first

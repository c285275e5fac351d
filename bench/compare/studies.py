"""What differs between the studies of two results folders, in lines."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import record
from bench.compare.cells import differences, facts_of, words_of
from bench.reports.summary import Record


def values_agree(one: Any, other: Any) -> bool:
    """Equality in which floats may differ by 1e-9 of their size, and NaN is NaN.

    What needs no images is computed anew on every machine, and its last bits are the machine's.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            values_agree(one[name], other[name]) for name in one
        )
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(values_agree, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9) or (math.isnan(one) and math.isnan(other))
    return one == other


@dataclass(frozen=True)
class StudyPair:
    """One study on both sides; a side may have none."""

    a: Record | None
    b: Record | None

    @property
    def name(self) -> str:
        """What people call it."""
        one = self.a or self.b
        assert one is not None
        known = "" if one["seed"] is None else f", seed {one['seed']}"
        return f"{one['study']} of {one['subject']}{known}"

    @property
    def identical(self) -> bool:
        """Whether both sides have the same values."""
        return bool(self.a and self.b) and values_agree(self.a["values"], self.b["values"])  # type: ignore[index]

    @property
    def reproducible(self) -> bool:
        """Whether both sides are done and have one key, so that they must agree."""
        if self.a is None or self.b is None or self.a["key"] != self.b["key"]:
            return False
        return self.a["status"] == self.b["status"] == "done"

    @property
    def unequal(self) -> bool:
        """Whether they must agree and do not."""
        return self.reproducible and not self.identical

    def told(self) -> str:
        """What moved, and what differs beside it; empty where nothing did."""
        if self.a is None or self.b is None:
            return f"{self.name}: only in {'B' if self.a is None else 'A'}"
        failed = [n for n, one in (("A", self.a), ("B", self.b)) if one["status"] != "done"]
        if failed:
            return f"{self.name}: failed in {' and '.join(failed)}"
        if self.identical:
            return ""
        a, b = (dict(_numbers("", one["values"])) for one in (self.a, self.b))
        moved = {path: b[path] - a[path] for path in a if path in b and a[path] != b[path]}
        said = f"{len(moved)} of {len(a.keys() | b.keys())} numbers moved"
        if moved:
            # A number that came or went as NaN has moved the furthest.
            far = max(moved, key=lambda p: math.inf if math.isnan(moved[p]) else abs(moved[p]))
            said += f", {far} the furthest, {a[far]:.4g} in A and {b[far]:.4g} in B"
        if a.keys() != b.keys():
            said += f", {len(a.keys() ^ b.keys())} on one side only"
        if self.unequal:
            said += "; NOT REPRODUCED: the key is the same"
        if found := differences([facts_of(self.a)], [facts_of(self.b)]):
            said += f"; {words_of(found)}"
        return f"{self.name}: {said}"


def compare_studies(a: Iterable[Record], b: Iterable[Record]) -> list[StudyPair]:
    """Match studies by what was measured, of what and with which settings.

    What is found on one side only is matched with one of the other precision. Of two of the same
    the later one counts.
    """
    sides = [_places(a), _places(b)]
    pairs = []
    for known in (None, -1):  # all of a place, and all but the precision
        first, second = ({place[:known]: place for place in side} for side in sides)
        for place in first.keys() & second.keys():
            one, other = sides[0].pop(first[place]), sides[1].pop(second[place])
            pairs.append(StudyPair(one, other))
    pairs += [StudyPair(one, None) for one in sides[0].values()]
    pairs += [StudyPair(None, one) for one in sides[1].values()]
    return sorted(pairs, key=lambda pair: pair.name)


def study_lines(pairs: Sequence[StudyPair]) -> Iterator[str]:
    """A line for all that were compared, and one for each that is not the same on both sides."""
    both = [pair for pair in pairs if pair.a and pair.b]
    if not pairs:
        return
    same = sum(pair.identical for pair in both)
    yield (
        f"Studies, which have no standard error: {len(both)} in both, {same} of them with the same "
        "values."
    )
    yield from (f"study {said}." for pair in pairs if (said := pair.told()))


def read_studies(folder: Path, notes: list[str]) -> list[Record]:
    """The records of studies of a results folder, none where it has no such room.

    Args:
        folder: the one that holds `studies/`.
        notes: takes a line for every file that is left out.
    """
    return list(record.read_all(folder, notes, record.STUDIES))


def _places(records: Iterable[Record]) -> dict[tuple[str, ...], Record]:
    """Records by what was measured and how; the precision stands last."""
    names = ("study", "subject", "study_settings", "dataset_digest", "recipe", "recipe_settings")
    names = (*names, "seed", "craft_seed", "precision")
    ordered = sorted(records, key=lambda one: (one["finished"], one["key"]))
    return {tuple(json.dumps(one[name], sort_keys=True) for name in names): one for one in ordered}


def _numbers(path: str, value: Any) -> Iterator[tuple[str, float]]:
    """Every number in nested values, with where it stands."""
    if isinstance(value, Mapping):
        inside: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list):
        inside = enumerate(value)
    else:
        if isinstance(value, int | float):
            yield path, float(value)
        return
    for name, item in inside:
        yield from _numbers(f"{path}.{name}".strip("."), item)

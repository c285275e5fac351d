"""What `bench.compare.cells` found, as a table."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bench.compare.cells import (
    MOVED,
    Comparison,
    Pair,
    Place,
    fields,
    numbers,
    short,
    some,
    told,
    words_of,
)
from bench.compare.studies import StudyPair, study_lines
from bench.record import CONTROL
from bench.reports.cells import last_line, not_run
from bench.reports.summary import Record, Spread, told_apart
from bench.reports.table import MISSING, Table, frame, machine

SHOWN = 20
"""So many records that should be equal are named one by one."""


def diff_table(
    found: Comparison, names: tuple[str, str], studies: Sequence[StudyPair] = ()
) -> Table:
    """The cells that are not identical, those that moved the furthest first.

    Args:
        found: what was compared.
        names: of folders A and B.
        studies: what was compared of those; they have lines below the table.
    """
    listed = _listed(found)
    facets = _facets(listed)
    shared, sets = _differences(listed)
    marks = {id(pair): str(sets.index(rest) + 1) for pair, rest in _rests(listed, shared) if rest}
    moves = any(pair.move for pair in listed)
    figures = ["B − A", "s.e.", "in s.e."] if moves else []
    heads = [*facets, "A %", "B %", *figures, "n", *(["differs"] if sets else [])]
    lines, figured = [], []
    for pair in listed:
        words = [of(pair) for of in facets.values()]
        mark = [marks.get(id(pair), "")] if sets else []
        figures = _figures(pair)
        lines.append([*words, *(figures if moves else [*figures[:2], figures[-1]]), *mark])
        figured.append(_machine_row(pair, listed))
    return Table(
        name="diff",
        caption=tuple(_caption(found, names, listed)),
        cells=frame(heads, lines),
        lead=len(facets),
        step=len(heads) - len(facets),
        notes=(*_notes(found, listed, shared, sets), *study_lines(studies)),
        numbers=machine(figured),
    )


def table_text(table: Table, ending: str) -> str:
    """A table in the format of a file's ending; without a row only its words."""
    if ending == ".csv":
        return table.csv()
    if not len(table.cells):
        return "\n".join((*table.caption, *table.notes)) + "\n"
    return {".md": table.markdown, ".tex": table.latex, ".txt": table.text}[ending]()


def _listed(found: Comparison) -> list[Pair]:
    """Judged cells by standard errors, then those of one seed, then those without a number."""

    def rank(pair: Pair) -> tuple[Any, ...]:
        move = pair.move
        if move is None:
            return (2 + (not pair.b) + 2 * (not pair.a), 0)
        if math.isnan(move.errors):
            return (1, -abs(move.difference))
        return (0, -move.errors)

    return sorted((pair for pair in found.pairs if not pair.identical), key=rank)


def _facets(listed: Sequence[Pair]) -> dict[str, Callable[[Pair], str]]:
    """The columns that name a cell; what all have in common is left to the caption."""
    facets = {name: of for name, of in _possible_facets(listed).items() if name != "method"}
    varying = {
        name: of
        for name, of in facets.items()
        if len({of(pair) for pair in listed} - {""}) > 1 or name == "architecture"
    }
    method = _possible_facets(listed)["method"]
    budget = {"budget": varying.pop("budget")} if "budget" in varying else {}
    arch = {"architecture": varying.pop("architecture")}
    return {**varying, "method": method, **budget, **arch}


def _possible_facets(listed: Sequence[Pair]) -> dict[str, Callable[[Pair], str]]:
    """Everything that may tell one cell from another, as functions of a cell."""

    def precision(pair: Pair) -> str:
        """Of A and of B, once where they are the same."""
        return ", ".join(dict.fromkeys(p for side in _precisions(pair) for p in sorted(side)))

    # Where each side has one precision, a difference is told once and needs no column.
    mixed = any(len({p for pair in listed for p in _precisions(pair)[i]}) > 1 for i in (0, 1))
    mixed = mixed or len({precision(pair) for pair in listed}) == 1
    namesakes: dict[tuple[str, str], set[str]] = defaultdict(set)
    for place, row in ((pair.place, pair.place.row) for pair in listed):
        namesakes["recipe", place.recipe_label].add(place.recipe_settings)
        namesakes["method", row.method_label].add(_but_radius(row.method_settings))
        namesakes["defense", row.defense_label].add(row.defense_settings)

    def label(kind: str, name: str, settings: str) -> str:
        return short(told_apart(name, settings, namesakes[kind, name]))

    def defense(pair: Pair) -> str:
        row = pair.place.row
        return label("defense", row.defense_label, row.defense_settings)

    def method(pair: Pair) -> str:
        row = pair.place.row
        return label("method", row.method_label, _but_radius(row.method_settings))

    contents: dict[str, set[str]] = defaultdict(set)
    for pair in listed:
        contents[pair.place.dataset].add(pair.place.dataset_digest)

    def dataset(pair: Pair) -> str:
        """By name, with the content where two of one name are not the same images."""
        name, digest = pair.place.dataset, pair.place.dataset_digest
        return f"{name} ({short(digest)})" if len(contents[name]) > 1 else name

    def crafted(word: Callable[[Place], str]) -> Callable[[Pair], str]:
        """Of the control, which is not crafted, nothing."""
        return lambda pair: "" if pair.place.row.method == CONTROL else word(pair.place)

    return {
        "dataset": dataset,
        "images": lambda pair: str(pair.place.train_images),
        "recipe": lambda pair: label("recipe", pair.place.recipe_label, pair.place.recipe_settings),
        "precision": lambda pair: precision(pair) if mixed else "",
        "held out": lambda pair: str(pair.place.holdout),
        "ratio": crafted(lambda place: f"{place.poison_ratio:g}"),
        "classes": crafted(lambda place: " ".join(map(str, place.protected_classes)) or "all"),
        "craft seed": crafted(lambda place: str(place.craft_seed)),
        "defense": defense,
        "method": method,
        "budget": lambda pair: pair.place.row.budget,
        "architecture": lambda pair: str(pair.place.column),
    }


def _but_radius(settings: str) -> str:
    """A method's settings without the one that its budget tells."""
    return json.dumps({k: v for k, v in json.loads(settings).items() if k != "epsilon"})


def _precisions(pair: Pair) -> tuple[set[str], set[str]]:
    """Those of A and those of B."""
    a, b = ({one["precision"] for one in side.values()} for side in (pair.a, pair.b))
    return a, b


def _figures(pair: Pair) -> list[str]:
    """The columns of numbers."""
    move = pair.move
    if move is None:
        texts = [_side(side) for side in (pair.a, pair.b)]
        victims = ", ".join(str(len(numbers(side))) for side in (pair.a, pair.b) if side)
        return [*texts, MISSING, MISSING, MISSING, victims]
    single = math.isnan(move.errors)
    return [
        *(f"{100 * value:.1f}" for value in (move.before, move.after)),
        # Adding zero turns the "-0.0" of a tiny negative number into "+0.0".
        f"{round(100 * move.difference, 1) + 0.0:+.1f}".replace("-", "−"),
        MISSING if single else f"{100 * move.error:.1f}",
        "n = 1" if single else _count(move.errors),
        ", ".join(map(str, move.sizes)),
    ]


def _side(side: Mapping[int, Record]) -> str:
    """The mean of a side, or why it has none."""
    if known := numbers(side):
        return f"{100 * Spread.of(known.values()).mean:.1f}"
    if not side:
        return MISSING
    return "not run" if all(map(not_run, side.values())) else "failed"


def _count(errors: float) -> str:
    return "∞" if math.isinf(errors) else f"{errors:.1f}"


def _differences(
    listed: Sequence[Pair],
) -> tuple[dict[str, tuple[str, str]], list[dict[str, tuple[str, str]]]]:
    """What differs in all matched cells, and every set of what differs in some."""
    matched = [_but_commits(pair) for pair in listed if pair.a and pair.b]
    shared = dict(matched[0]) if matched else {}
    for one in matched:
        shared = {name: told for name, told in shared.items() if one.get(name) == told}
    sets: list[dict[str, tuple[str, str]]] = []
    for _, rest in _rests(listed, shared):
        if rest and rest not in sets:
            sets.append(rest)
    return shared, sets


def _rests(
    listed: Sequence[Pair], shared: Mapping[str, tuple[str, str]]
) -> Iterator[tuple[Pair, dict[str, tuple[str, str]]]]:
    for pair in listed:
        differing = _but_commits(pair)
        yield pair, {name: told for name, told in differing.items() if name not in shared}


def _but_commits(pair: Pair) -> dict[str, tuple[str, str]]:
    """What differs; commits nearly always do, and are told for all cells together."""
    return {name: told for name, told in pair.differing.items() if name != "commit"}


def _caption(found: Comparison, names: tuple[str, str], listed: Sequence[Pair]) -> Iterator[str]:
    """What came of it, in sentences."""
    both = [pair for pair in found.pairs if pair.a and pair.b]
    same = [pair for pair in both if pair.identical]
    moves = [pair.move for pair in both if not pair.identical and pair.move is not None]
    judged = [move for move in moves if not math.isnan(move.errors)]
    moved = sum(move.errors > MOVED for move in judged)
    sentence = [f"{_number_of(len(both), 'cell')} in both"]
    if same:
        records = sum(len(pair.a.keys() & pair.b.keys()) for pair in same)
        count = "all" if len(same) == len(both) else str(len(same))
        sentence.append(
            f"{count} identical ({_number_of(records, 'record')} with the same key and the "
            "same results)"
        )
    if judged:
        which = "them" if len(judged) == len(both) else str(len(judged))
        expected = sum(move.chance for move in judged)
        sentence.append(
            f"{moved} of {which} moved by more than {MOVED:g} standard errors, where "
            f"{expected:.1f} would by chance if nothing had changed"
        )
    if single := len(moves) - len(judged):
        sentence.append(f"{single} with one seed and no standard error (n = 1)")
    if failed := len(both) - len(same) - len(moves):
        sentence.append(f"{failed} without a number on one side")
    yield f"{', '.join(sentence)}."
    only = [sum(bool(p.a) and not p.b for p in listed), sum(bool(p.b) and not p.a for p in listed)]
    if any(only):
        a, b = (_number_of(count, "cell") if count else "none" for count in only)
        yield f"Only in A: {a}. Only in B: {b}."
    if found.unequal:
        yield (
            f"NOT REPRODUCED: {len(found.unequal)} of {found.equal_keys} records with equal keys "
            "have other results."
        )
    sizes = [_number_of(count, "record") for count in found.counts]
    yield f"A is {names[0]} ({sizes[0]}), B is {names[1]} ({sizes[1]})."
    if listed:
        difference = "; difference B − A in percentage points" if moves else ""
        yield (
            f"Final clean test accuracy in percent, mean over n victim seeds{difference}"
            f"{_common(listed)}."
        )


def _common(listed: Sequence[Pair]) -> str:
    """What all listed cells share."""
    shown, said = _facets(listed), []
    for name, of in _possible_facets(listed).items():
        values = {of(pair) for pair in listed} - {""}
        if name not in shown and len(values) == 1 and (value := values.pop()) not in _USUAL[name]:
            said.append(f"{name} {value}")
    return f"; all: {', '.join(said)}" if said else ""


_USUAL: Mapping[str, tuple[str, ...]] = defaultdict(
    tuple, {"held out": ("0",), "ratio": ("1",), "classes": ("all",), "defense": ("none",)}
)
"""What goes without saying."""


def _number_of(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _notes(
    found: Comparison,
    listed: Sequence[Pair],
    shared: Mapping[str, tuple[str, str]],
    sets: Sequence[Mapping[str, tuple[str, str]]],
) -> Iterator[str]:
    moves = [pair.move for pair in listed if pair.move is not None]
    judged = [move for move in moves if not math.isnan(move.errors)]
    if shared:
        yield f"Different in all of them: {words_of(shared)}."
    for index, rest in enumerate(sets):
        yield f"differs {index + 1}: {words_of(rest)}."
    commits = [
        {one["commit"][:7] for pair in listed if pair.a and pair.b for one in side(pair).values()}
        for side in (lambda pair: pair.a, lambda pair: pair.b)
    ]
    if commits[0] != commits[1]:
        yield f"Made by commits {some(commits[0])} in A, {some(commits[1])} in B."
    if judged:
        yield (
            "s.e.: standard error over victim seeds, of the paired differences where both sides "
            "have the same seeds (n pairs), else Welch's (n of A, n of B). What chance does is by "
            "Student's t: of cells with 3 pairs that did not move, 18 in 100 pass 2 standard "
            "errors."
        )
    if recrafted := sum(pair.recrafted for pair in listed if pair.move):
        yield (
            f"In {_number_of(recrafted, 'cell')} the two sides were trained on different crafted "
            "images: how much crafting again would move a number by itself is in no standard "
            "error, so that chance moves more of them."
        )
    more = [p for p in found.pairs if p.identical and p.a.keys() != p.b.keys()]
    if more:
        yield f"In {len(more)} of the identical cells one side has further seeds."
    if found.superseded:
        yield f"{_number_of(found.superseded, 'older record')} of the same cells left out."
    for one, other in found.unequal[:SHOWN]:
        yield f"equal key, other results: {told(one)}: {fields(one, other)}."
    if len(found.unequal) > SHOWN:
        yield f"... and {len(found.unequal) - SHOWN} more such records."
    for pair in listed:
        for side, name in ((pair.a, "A"), (pair.b, "B")):
            if failed := [one for one in side.values() if one["status"] != "done"]:
                seeds = ", ".join(str(one["seed"]) for one in failed)
                yield (
                    f"failed in {name}: {told(failed[0], seeds)}: {last_line(failed[0]['error'])}"
                )


def _machine_row(pair: Pair, listed: Sequence[Pair]) -> dict[str, Any]:
    """One cell for machines, in hundredths, without the dust of binary fractions."""
    names = {name.replace(" ", "_"): of(pair) for name, of in _possible_facets(listed).items()}
    del names["precision"]  # which has a column only where a reader needs it
    for name, there in zip(("precision_a", "precision_b"), _precisions(pair), strict=True):
        names[name] = " ".join(sorted(there))
    known = [numbers(side) for side in (pair.a, pair.b)]
    figures: dict[str, Any] = {
        f"{name}_percent": round(100 * Spread.of(side.values()).mean, 4)
        for name, side in zip(("a", "b"), known, strict=True)
    }
    if move := pair.move:
        figures |= {
            "a_percent": round(100 * move.before, 4),
            "b_percent": round(100 * move.after, 4),
            "difference_points": round(100 * move.difference, 4),
            "standard_error_points": round(100 * move.error, 4),
            "standard_errors": round(move.errors, 4),
            "degrees_of_freedom": round(move.freedom, 4),
        }
    paired = None if pair.move is None else len(pair.move.sizes) == 1
    sizes = {"seeds_a": len(known[0]), "seeds_b": len(known[1]), "paired": paired}
    return {**names, **figures, **sizes, "differs": words_of(pair.differing)}

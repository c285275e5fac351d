"""A published table with our figures in it: interval, difference and verdict of every cell."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from bench.papers.lookup import INSIDE, OUTSIDE, VICTIMS, Cells, Found, Scale, normal
from bench.papers.targets import SECONDS, PaperTable
from bench.reports.claims import CONFIDENCE, DOUBTFUL
from bench.reports.flags import Flag, Number, flag_names, settle
from bench.reports.notes import SMALL_SCALE, crafting_text
from bench.reports.summary import value_text, width_text
from bench.reports.table import MISSING, Table, decimals, frame, machine, rounded


def paper_table(table: PaperTable, cells: Cells, scale: Scale) -> Table:
    """A published table in its own layout, several lines for each of its rows."""
    heads = [*table.lead, "", *table.columns, *(["mean"] if table.means else [])]
    lines: list[list[str | Number]] = []
    for row, names in enumerate(table.rows):
        line = [cells.get((row, column)) for column in range(len(table.columns))]
        blank = [""] * len(names)
        for kind, found in _lines(table, row, line):
            lines.append([*(names if blank != list(names) else blank), kind, *found])
            names = tuple(blank)
    shown, marked = settle(lines)
    return Table(
        name=f"paper-{table.paper}-{table.name}",
        caption=tuple(_caption(table, cells, scale)),
        cells=frame(heads, shown),
        lead=len(table.lead) + 1,
        step=1,
        notes=(*marked, *_told(table, cells, scale)),
        numbers=machine(_numbers(table, cells, scale), ["n", "published_n"]),
    )


Line = Sequence[Found | None]


def _lines(table: PaperTable, row: int, line: Line) -> Iterator[tuple[str, list[str | Number]]]:
    """Kind and cells of the lines that a row of the paper becomes."""
    times = any(one is not None and one.target.measure == SECONDS for one in line)
    shown = _time if times else _points
    published = [None if one is None else one.target.published for one in line]
    known = [value for value in published if value is not None]
    if known:
        yield "published", [*map(shown, published), *_published_mean(table, row, published)]
    judged_line = bool(known) and not times and any(one and one.comparable for one in line)
    yield "ours", [*(_ours(one, times, judged_line) for one in line), *_our_mean(table, line)]
    if any(one is not None and one.values for one in line):
        own = [_each(one, lambda f: f"{_sd(f, times)} ({f.spread.n})") for one in line]
        yield "sd (n)", [*own, *_nothing(table)]
    if not judged_line:
        return
    if any(one is not None and one.difference is not None for one in line):
        gaps = [_each(one, lambda f: Number(_signed(f.difference), f.flags)) for one in line]
        yield "difference", [*gaps, *_nothing(table)]
    words = ["" if one is None else one.verdict for one in line]
    yield "verdict", [*words, *_nothing(table)]


def _nothing(table: PaperTable) -> list[str]:
    return [""] if table.means else []


def _each(one: Found | None, cell: Callable[[Found], str | Number]) -> str | Number:
    return "" if one is None or not one.values else cell(one)


def _ours(one: Found | None, times: bool, judged_line: bool) -> str | Number:
    """Mean and half of the interval; where there is none, the line of verdicts says so."""
    if one is None:
        return ""
    if not one.values:
        return MISSING if judged_line else one.absence
    half = one.half
    text = _time(one.spread.mean) if times else decimals(one.spread.mean, 1)
    if not math.isnan(half) and one.target.measure != SECONDS:
        text += f" ± {half:.1f}"
    return Number(text, one.flags)


def _published_mean(table: PaperTable, row: int, values: list[float | None]) -> list[str]:
    if not table.means:
        return []
    known = [value for value in values if value is not None]
    printed = table.means[row]
    if printed is None and len(known) == len(values):
        printed = sum(known) / len(known)
    return [_points(printed)]


def _our_mean(table: PaperTable, line: Line) -> list[str | Number]:
    """Of the columns, if there is a figure in each."""
    if not table.means:
        return []
    whole = [one for one in line if one is not None and one.values]
    if len(whole) != len(line):
        return [MISSING]
    mean = sum(one.spread.mean for one in whole) / len(whole)
    return [Number(decimals(mean, 1), {flag for one in whole for flag in one.flags})]


def _points(value: float | None) -> str:
    if value is None:
        return ""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def _signed(value: float | None) -> str:
    return "" if value is None else f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")


def _sd(one: Found, times: bool) -> str:
    sd = one.spread.sd
    return MISSING if math.isnan(sd) else (_time(sd) if times else f"{sd:.1f}")


def _time(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f} s" if value < 360 else f"{value / 3600:.2f} h"


# What stands above and below it.


def _caption(table: PaperTable, cells: Cells, scale: Scale) -> Iterator[str]:
    yield f"{table.title}. Published: {table.source}."
    seconds = all(target.measure == SECONDS for *_, target in table.cells())
    interval = f"± half of the {100 * CONFIDENCE:.0f} % interval (Student's t)"
    if seconds:
        yield "Ours: seconds of crafting, with standard deviation (sd) and number of sets (n)."
    else:
        yield (
            f"Ours: clean test accuracy after the last epoch in percent, mean over victim seeds "
            f"{interval}, with sample standard deviation (sd) and number of victims (n); "
            f"{crafting_text(scale.base.craft_seed)}."
        )
    yield scale_text(cells, scale)
    if seconds:
        return
    if not scale.is_paper:
        yield (
            f"No verdicts on numbers: they need --recipe {table.recipe or 'paper'}, "
            f"all images and full width. {SMALL_SCALE}"
        )
        return
    bands = {t.tolerance for *_, t in table.cells() if t.published is not None}
    usual = " or ".join(f"{band:g}" for band in sorted(bands))
    yield (
        f"Verdicts, by the band of published ± {usual} points, fixed beforehand (narrower below 20 "
        f"% and near clean victims): agrees, if the {100 * INSIDE:.0f} % interval lies inside; "
        f"differs, if the {100 * OUTSIDE:.0f} % interval lies outside; differs, named, if so and "
        "where a reason given beforehand expects it, give or take as much; undecided otherwise, as "
        "is a single victim. "
        f"They ask for {VICTIMS} victims. No verdict: the published victims or images are others. "
        "Doubtful is a number that itself forbids a verdict."
    )


def scale_text(cells: Cells, scale: Scale) -> str:
    """Recipe, images, width and precision in a sentence."""
    recipe = scale.expansion.recipe
    images = "all" if recipe.train_images is None else str(recipe.train_images)
    done = [one for found in cells.values() for one in found.group.done]
    precisions = sorted({one["precision"] for one in done}) or [scale.expansion.precision]
    epochs = "1 epoch" if recipe.epochs == 1 else f"{recipe.epochs} epochs"
    return (
        f"Recipe {scale.expansion.recipe_label}: {epochs} on {images} training images, width "
        f"{width_text(recipe.width)}, {' or '.join(precisions)}."
    )


def _told(table: PaperTable, cells: Cells, scale: Scale) -> Iterator[str]:
    """What the targets file says of cells, and why some were not run, with where that holds."""
    yield _sentence(table.trained)
    if not scale.is_of(table) and not scale.is_paper:
        advice = f"; --recipe {table.recipe} is that of the published ones" if table.recipe else ""
        yield f"Ours are of recipe {scale.expansion.recipe_label}{advice}."
    yield from _departures(table, cells, scale)
    yield from map(_sentence, table.quirks)
    kinds: list[tuple[str, Callable[[Found], Iterable[str]]]] = [
        ("", lambda one: one.target.quirks),
        ("Named beforehand", _expected),
        ("Others than ours", lambda one: one.others),
        ("Doubtful", lambda one: reasons_text(one.doubts) if one.verdict == DOUBTFUL else []),
        (f"Fewer victims than {VICTIMS}", _few),
        ("Not run", lambda one: [one.reason] if one.reason else []),
    ]
    for kind, of in kinds:
        places: dict[str, set[tuple[int, int]]] = defaultdict(set)
        for place, one in cells.items():
            for text in of(one):
                places[text].add(place)
        for text, where in places.items():
            start = f"{kind}: " if kind else ""
            yield f"{start}{where_text(table, where, cells)}: {text.removesuffix('.')}."


def _expected(one: Found) -> list[str]:
    """What ours is expected to be instead, and why."""
    return [f"{why.why} (expected {why.low:g} to {why.high:g})" for why in one.target.named]


def _few(one: Found) -> list[str]:
    """By how many victims it is judged, if by fewer than verdicts ask for."""
    return [f"{one.spread.n}, by which few numbers agree"] if one.wants_victims else []


def _departures(table: PaperTable, cells: Cells, scale: Scale) -> Iterator[str]:
    """A line a row on how ours is crafted below the papers' scale otherwise than at it."""
    found: dict[int, dict[str, str]] = defaultdict(dict)
    for (row, _), one in cells.items() if not scale.is_paper else ():
        for record in one.group.done:
            full = scale.full.wanted(normal(one.target.place)).method_settings(record)
            for name, ours in record["method_settings"].items():
                # Settings that came later are left out where they have the paper's value.
                usual = record["method_deviations"].get(name, [ours, ours])[1]
                if ours != (theirs := full.get(name, usual)):
                    texts = value_text(ours, name), value_text(theirs, name)
                    found[row][name] = "{} {} (paper {})".format(name, *texts)
    for row, texts in found.items():
        yield f"Ours of {table.row_names[row]}: {', '.join(texts.values())}."


def reasons_text(doubts: Iterable[Flag]) -> list[str]:
    """Doubts by name, with the marks whose meaning stands beside them."""
    return [f"{flag.name} ({flag.mark})" for flag in doubts]


def _sentence(text: str) -> str:
    """With a capital and one full stop."""
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}."


def where_text(table: PaperTable, places: set[tuple[int, int]], cells: Cells) -> str:
    """A set of cells in words: whole rows and columns by their names."""
    if places == set(cells) and len(places) > 1:
        return "all"
    rows = {row for row, _ in places}
    columns = {column for _, column in places}
    names = table.row_names
    if places == {place for place in cells if place[0] in rows}:
        return ", ".join(names[row] for row in sorted(rows))
    if places == {place for place in cells if place[1] in columns}:
        return ", ".join(table.columns[column] for column in sorted(columns))
    by_row: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row in sorted(rows):
        by_row[tuple(sorted(c for r, c in places if r == row))].append(row)
    return "; ".join(
        f"{', '.join(names[row] for row in same)} on "
        f"{', '.join(table.columns[column] for column in which)}"
        if len(which) < sum(r == same[0] for r, _ in cells)
        else ", ".join(names[row] for row in same)
        for which, same in by_row.items()
    )


def _numbers(table: PaperTable, cells: Cells, scale: Scale) -> Iterator[dict[str, Any]]:
    names = table.row_names
    for (row, column), one in cells.items():
        target, place, ours = one.target, normal(one.target.place), one.spread
        yield {
            "table": table.label,
            "row": names[row],
            "column": table.columns[column],
            **vars(place),
            "measure": target.measure,
            "published": target.published,
            "published_n": target.n,
            "quoted": target.quoted,
            "tolerance": target.tolerance if target.published is not None else None,
            "recipe": scale.expansion.recipe_label,
            "precision": " ".join(sorted({r["precision"] for r in one.group.done})),
            "seeds": " ".join(str(r["seed"]) for r in one.group.done),
            "n": ours.n,
            "mean": rounded(ours.mean),
            "sd": rounded(ours.sd),
            "ci95_low": rounded(ours.mean - one.half),
            "ci95_high": rounded(ours.mean + one.half),
            "difference": rounded(one.difference),
            "verdict": "" if one.verdict == MISSING else one.verdict,
            "named": "; ".join(_expected(one)),
            "others": "; ".join(one.others),
            "flags": flag_names(one.flags),
            "reason": one.reason,
        }

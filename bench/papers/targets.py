"""What papers published, cell by cell, read from one TOML file a paper in `bench/papers/`.

    [paper]                         title, how its victims were trained, and tolerances, in points:
    below_20 = 2                    of published values below 20 %,
    from_20 = 4                     of others,
    near_clean = 1.5                and of those near what clean victims reach
    recipe = "paper"                what trains as its victims were, if there is such a recipe
    [table4]                        a table by its name, with what all of its cells share
    title = "Table 4: ..."
    epsilon = "2/255"
    lead = ["method", "steps"]      headings of the columns that name a row
    columns = [{ head = "VGG16", arch = "vgg16" }, ...]
    rows = [{ head = ["SEP", "30"], method = "sep", values = [28.12, ...] }, ...]

A cell is what its table, its column and its row say, later ones first: `dataset`, `method`,
`epsilon`, `defense`, `arch` and `share` as typed on the command line, and `measure`, the number
that is compared. A value may depend on the data set: { cifar100 = "ule:train_steps=20", others =
"ule" }. Published values are percent; `nan` where nothing was published, and a row without values
is a control of ours. With them stand, in the same places:

    n           runs behind the value, where that is said
    quoted      from where, if it was not measured for this paper: its victims are others than ours
    other       why its victims or images are others than ours, if that is known in another way
    named       { why = "...", expected = [low, high] }: what ours is expected to be instead, as
                other laboratories have it, give or take the tolerance
    quirk       what a reader should know of it
    missing     why this suite cannot run it
    tolerance   in percentage points, instead of the paper's
    ceiling     what clean victims reach there, in percent, where the paper has none

and [[table4.cells]] with `rows` and `columns` adds them to single cells. Where victims are others
there is no verdict, unless `named` says what to expect. Ten points below the ceiling, or from 85 %
on where none is known, a band of four points would hold what has no effect at all, so that no
tolerance is wider there than `near_clean`. A claim is an order:

    [[table4.claims]]
    says = "SEP-FA lies below SEP"
    above = ["SEP"]                 heads of rows, judged in every column, or of columns, in every
    below = ["SEP-FA"]              row that `only` lists; with `under`, below that many percent,
    factor = 0.5                    with `factor`, below this part of those above,
    within = 3                      and with `within`, no more than so many points above them
    scale = "paper"                 judged at that scale only, as those with a figure are

Nothing here knows a method: whether what is typed exists is for the registries to say.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from bench.component import number
from bench.errors import UsageError
from bench.record import CONTROL

FOLDER = Path(__file__).resolve().parent
ALL, PAPER_SCALE = "all", "paper"
LOW = 20.0
"""Percent, below which published values have the smaller tolerance."""
NEAR, HIGH = 10.0, 85.0
"""How many points below clean victims a value is near them; and percent from which on it is, where
nothing is known of them."""
SECONDS = "crafting_seconds"
MEASURES = ("final_test_acc", "own_acc", "next_acc", SECONDS)
"""What can be compared: accuracies on clean test images and on such that carry a shortcut, and
the time of crafting, for information."""


@dataclass(frozen=True)
class Place:
    """Where a cell stands in the grid, as typed on the command line.

    Attributes:
        dataset: one data set.
        method: one method.
        epsilon: for `--epsilon`; None leaves the method's own.
        defense: one defense.
        arch: one architecture.
        share: of the training images that are protected.
    """

    dataset: str = "cifar10"
    method: str = ""
    epsilon: float | None = None
    defense: str = "none"
    arch: str = "rn18"
    share: float = 1.0


@dataclass(frozen=True)
class Named:
    """What ours is expected to be instead of the published value, and why.

    Attributes:
        why: known before any run.
        low: the lowest that is expected, in percent, give or take the cell's tolerance.
        high: the highest.
    """

    why: str
    low: float
    high: float


@dataclass(frozen=True)
class Target:
    """One cell of a published table.

    Attributes:
        place: what has to be run for it.
        published: in percent, or in seconds; None where nothing was published.
        measure: which number of a record it is compared with.
        tolerance: how far apart laboratories may lie, in percentage points.
        n: runs behind it, None where that is not said.
        quoted: from where, empty if it was measured for this paper.
        quirks: what a reader should know of it.
        named: what ours is expected to be instead.
        other: why its victims or images are others than ours.
        missing: why this suite cannot run it; empty if it can.
        ceiling: what clean victims reach there, in percent, where the paper has none.
    """

    place: Place
    published: float | None
    measure: str
    tolerance: float
    n: int | None
    quoted: str
    quirks: tuple[str, ...]
    named: tuple[Named, ...]
    other: tuple[str, ...]
    missing: str
    ceiling: float | None

    @property
    def others(self) -> tuple[str, ...]:
        """Why its victims are others; that it is quoted is such a reason, too."""
        quoted = f"quoted ({self.quoted}), from victims that were trained otherwise"
        return (*self.other, quoted) if self.quoted else self.other


@dataclass(frozen=True)
class Claim:
    """An order of rows or of columns.

    Attributes:
        says: the claim in words.
        rows: whether `above` and `below` are rows; they are columns otherwise.
        above: heads of those that must lie above.
        below: of those that must lie below.
        only: heads of the columns, or rows, in which it is judged; none stand for all.
        factor: of those above, below this part of which the others must lie.
        under: percent, below which they must lie.
        within: percentage points, by which they may lie above those above.
        scale: "paper" for an order that means nothing below that scale, as inside a family of
            methods, or between architectures that differ on clean images, too.
    """

    says: str
    rows: bool
    above: tuple[str, ...]
    below: tuple[str, ...]
    only: tuple[str, ...]
    factor: float
    under: float | None
    within: float
    scale: str

    @property
    def needs_paper(self) -> bool:
        """Whether it means nothing below the papers' scale, as bare figures do not."""
        figure = self.under is not None or self.factor != 1 or self.within != 0
        return self.scale == PAPER_SCALE or figure


@dataclass(frozen=True)
class PaperTable:
    """One published table.

    Attributes:
        paper: name of its paper's file.
        name: of the table.
        title: what it is about.
        source: title of the paper.
        trained: how its victims were trained.
        recipe: the recipe that does; empty if none does.
        lead: headings of the columns that name a row.
        columns: headings of the others.
        rows: what names each row, a text for each of `lead`.
        means: printed means of rows, with None where none is known; empty without such a column.
        targets: cells, row by row; None where neither the paper nor we have anything.
        claims: orders that it shows.
        quirks: what a reader should know of all of it.
    """

    paper: str
    name: str
    title: str
    source: str
    trained: str
    recipe: str
    lead: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    means: tuple[float | None, ...]
    targets: tuple[tuple[Target | None, ...], ...]
    claims: tuple[Claim, ...]
    quirks: tuple[str, ...]

    @property
    def label(self) -> str:
        """As typed behind `--paper`."""
        return f"{self.paper}:{self.name}"

    @property
    def row_names(self) -> list[str]:
        """What claims call the rows: their first heads, or as many as it takes."""
        return row_names(self.rows)

    def cells(self) -> Iterator[tuple[int, int, Target]]:
        """Row, column and target of every cell."""
        for row, line in enumerate(self.targets):
            for column, target in enumerate(line):
                if target is not None:
                    yield row, column, target


def row_names(heads: Sequence[tuple[str, ...]]) -> list[str]:
    """The first heads, where those are different; all of them joined otherwise."""
    first = [head[0] for head in heads]
    unique = len(set(first)) == len(first)
    return first if unique else [" ".join(filter(None, head)) for head in heads]


def paper_names() -> list[str]:
    """Papers that there are files of."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


def titles() -> dict[str, dict[str, str]]:
    """Of every paper the titles of its tables; nothing is checked, so that listing is instant."""
    found = {}
    for name in paper_names():
        content = content_of(FOLDER / f"{name}.toml")
        found[name] = {key: str(table.get("title")) for key, table in content.items()}
        found[name].pop("paper", None)
    return found


def recipes() -> dict[str, str]:
    """Of every paper the recipe by which its victims were trained; empty where there is none."""
    contents = {name: content_of(FOLDER / f"{name}.toml") for name in paper_names()}
    return {name: str(content["paper"].get("recipe", "")) for name, content in contents.items()}


def find_tables(text: str) -> list[PaperTable]:
    """The tables that `sep:table4,table6,cuda:all` stands for, each once.

    Raises:
        UsageError: in one line that says what there is.
    """
    found: dict[str, PaperTable] = {}
    for name, table in requests(text):
        tables = read_paper(name)
        if table in ("", ALL):
            found |= {one.label: one for one in tables.values()}
        else:
            known = known_name(table, [*tables, ALL], f"table of {name}", f"write {name}:NAME")
            found[f"{name}:{known}"] = tables[known]
    return list(found.values())


def requests(text: str) -> list[tuple[str, str]]:
    """Papers and what is asked for of them: `sep:table4,fig1,cuda` has sep twice, cuda with "".

    Raises:
        UsageError: if there is no such paper, or nothing is named.
    """
    found: list[tuple[str, str]] = []
    for piece in filter(None, (part.strip() for part in text.split(","))):
        name, colon, wanted = piece.partition(":")
        if not colon and name not in paper_names() and found:
            name, wanted = found[-1][0], name
        known = known_name(name, paper_names(), "paper", "--list shows what they have")
        found.append((known, wanted))
    if not found:
        raise UsageError(f"--paper names nothing; there are: {', '.join(paper_names())}")
    return found


def known_name(name: str, names: Sequence[str], kind: str, advice: str) -> str:
    """The name, if it is one of those.

    Raises:
        UsageError: with the nearest and all others, if it is not.
    """
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ";"
    raise UsageError(
        f"--paper: unknown {kind} '{name}'{hint} There are: {', '.join(names)}; {advice}"
    )


@cache
def read_paper(name: str) -> dict[str, PaperTable]:
    """The tables of a paper by name.

    Raises:
        UsageError: with file, table and field, if the file is not what the module describes.
    """
    return read_file(FOLDER / f"{name}.toml")


def read_file(file: Path) -> dict[str, PaperTable]:
    """Like `read_paper`, from any file."""
    content = content_of(file)
    about = Fields(content.pop("paper", None), f"{file.name}: paper")
    about.only("title", "trained", "recipe", *TOLERANCES, "n")
    for name in TOLERANCES:
        about.value(name)
    tables = {
        key: _table(file, key, value, about)
        for key, value in content.items()
        if not is_figure(value)
    }
    clean = {
        _victims(one.place): one.published
        for table in tables.values()
        for *_, one in table.cells()
        if one.place.method == CONTROL and one.published is not None
    }
    narrow = about.value("near_clean")
    return {
        key: replace(
            table,
            targets=tuple(
                tuple(one and _narrowed(one, clean, narrow) for one in line)
                for line in table.targets
            ),
        )
        for key, table in tables.items()
    }


def _narrowed(target: Target, clean: Mapping[Place, float], narrow: float) -> Target:
    """With the tolerance of values near clean victims, if it is one."""
    ceiling = target.ceiling or clean.get(_victims(target.place))
    start = HIGH if ceiling is None else ceiling - NEAR
    if target.published is None or target.published < start or target.measure == SECONDS:
        return target
    return replace(target, tolerance=min(target.tolerance, narrow))


def _victims(place: Place) -> Place:
    """Where the clean victims stand that are trained as those of a place."""
    return Place(dataset=place.dataset, method=CONTROL, defense=place.defense, arch=place.arch)


def is_figure(section: Any) -> bool:
    """Whether a section of a file is a figure, which `bench.papers.published` reads."""
    return isinstance(section, dict) and "kind" in section


def content_of(file: Path) -> dict[str, Any]:
    """A paper's file as it is.

    Raises:
        UsageError: if it cannot be read.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is not valid TOML: {error}") from None


class Fields:
    """A TOML table whose fields are asked for by type."""

    def __init__(self, content: Any, where: str) -> None:
        if not isinstance(content, dict):
            raise UsageError(f"{where} is missing, or no table of fields")
        self.content, self.where = content, where

    def only(self, *names: str) -> None:
        """Raise UsageError if there is any other field."""
        for key in self.content:
            if key not in names:
                near = difflib.get_close_matches(key, names, n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(names)}"
                raise UsageError(f"{self.where} has unknown field '{key}'{hint}")

    def __contains__(self, name: str) -> bool:
        return name in self.content

    def wrong(self, name: str, what: str) -> UsageError:
        """What to raise for a field."""
        return UsageError(f"{self.where}.{name}: {self.content.get(name)!r} is not {what}")

    def text(self, name: str, default: str | None = None) -> str:
        """A text; without a default it must be there and not be empty."""
        value = self.content.get(name, default)
        if not isinstance(value, str) or (default is None and not value):
            raise self.wrong(name, "a text")
        return value

    def texts(self, name: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """A list of texts."""
        value = self.content.get(name, default)
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise self.wrong(name, "a list of texts")
        return tuple(value)

    def value(self, name: str, default: float | None = None) -> float:
        """A number."""
        value = self.content.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, "a number")
        return float(value)

    def flag(self, name: str) -> bool:
        """True or false; false where it is missing."""
        value = self.content.get(name, False)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def parts(self, name: str, default: list[Any] | None = None) -> list[Fields]:
        """A list of tables."""
        value = self.content.get(name, default)
        if not isinstance(value, list):
            raise self.wrong(name, "a list of tables")
        return [Fields(v, f"{self.where}.{name}[{i}]") for i, v in enumerate(value)]


PLACES = tuple(item.name for item in fields(Place))
FACTS = ("measure", "n", "quoted", "other", "named", "quirk", "missing", "tolerance", "ceiling")
TOLERANCES = ("below_20", "from_20", "near_clean")


def _table(file: Path, name: str, content: Any, about: Fields) -> PaperTable:
    table = Fields(content, f"{file.name}: {name}")
    own = (
        "title",
        "trained",
        "recipe",
        "lead",
        "mean",
        "columns",
        "rows",
        "cells",
        "claims",
        "quirks",
    )
    table.only(*own, *PLACES, *FACTS)
    lead, columns, rows = table.texts("lead"), table.parts("columns"), table.parts("rows")
    with_mean = table.flag("mean")
    heads = tuple(column.text("head") for column in columns)
    names = tuple(_head(row, lead) for row in rows)
    for column in columns:
        column.only("head", *PLACES, *FACTS)
    called = row_names(names)
    for what, there in (("columns", heads), ("rows", tuple(called))):
        if len(set(there)) < len(there) or not there:
            raise UsageError(f"{table.where}.{what}: heads must be there and differ: {there}")
    extra = _single_cells(table, called, heads)
    targets = []
    for i, row in enumerate(rows):
        row.only("head", "values", "mean", *PLACES, *FACTS)
        values = _values(row, len(columns))
        targets.append(
            tuple(
                _target(values[j], [about, table, column, row, *extra.get((i, j), [])])
                for j, column in enumerate(columns)
            )
        )
    return PaperTable(
        paper=file.stem,
        name=name,
        title=table.text("title"),
        source=about.text("title"),
        trained=table.text("trained", about.text("trained")),
        recipe=table.text("recipe", about.text("recipe", "")),
        lead=lead,
        columns=heads,
        rows=names,
        means=tuple(row.value("mean") if "mean" in row else None for row in rows)
        if with_mean
        else (),
        targets=tuple(targets),
        claims=tuple(_claim(one, called, heads) for one in table.parts("claims", [])),
        quirks=table.texts("quirks", ()),
    )


def _head(row: Fields, lead: tuple[str, ...]) -> tuple[str, ...]:
    head = row.content.get("head")
    head = [head] if isinstance(head, str) else head
    if not isinstance(head, list) or not all(isinstance(part, str) for part in head):
        raise row.wrong("head", "a text or a list of texts")
    if len(head) != len(lead):
        raise row.wrong("head", f"{len(lead)} texts, for {', '.join(lead)}")
    return tuple(head)


def _values(row: Fields, count: int) -> list[float]:
    values = row.content.get("values", [math.nan] * count)
    numbers = isinstance(values, list) and all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in values
    )
    if not numbers or len(values) != count:
        raise row.wrong("values", f"a list of {count} numbers, one a column")
    if any(value < 0 for value in values):
        raise row.wrong("values", "without negative numbers")
    return [float(value) for value in values]


def _single_cells(
    table: Fields, rows: Sequence[str], columns: Sequence[str]
) -> dict[tuple[int, int], list[Fields]]:
    found: dict[tuple[int, int], list[Fields]] = {}
    for one in table.parts("cells", []):
        one.only("rows", "columns", *PLACES, *FACTS)
        for row in _among(one, "rows", rows):
            for column in _among(one, "columns", columns):
                place = (rows.index(row), columns.index(column))
                found.setdefault(place, []).append(one)
    return found


def _among(part: Fields, name: str, known: Sequence[str]) -> tuple[str, ...]:
    found = part.texts(name)
    for one in found:
        if one not in known:
            raise UsageError(
                f"{part.where}.{name}: '{one}' is none of the heads {', '.join(known)}"
            )
    return found


def _target(published: float, said: list[Fields]) -> Target | None:
    """A cell from what is said of it, the last one first; None where there is nothing in it."""
    place = _place(said)
    about, *others = said
    known = None if math.isnan(published) else published
    values = [part for part in others if "values" in part]
    if known is None and values:
        return None  # a hole in a published row
    kinds = [part for part in others if "measure" in part]
    measure = kinds[-1].text("measure") if kinds else MEASURES[0]
    if measure not in MEASURES:
        raise kinds[-1].wrong("measure", f"one of {', '.join(MEASURES)}")
    if known is not None and known > 100 and measure != SECONDS:
        raise values[-1].wrong("values", "in percent")
    missing = _said(others, "missing")
    if not place.method and not missing:
        raise UsageError(f"{others[-1].where} names no method, nor does its column or its table")
    usual = about.value("below_20" if known is not None and known < LOW else "from_20")
    tolerances = [part.value("tolerance") for part in others if "tolerance" in part]
    ceilings = [part.value("ceiling") for part in others if "ceiling" in part]
    counts = [part.value("n") for part in said if "n" in part]
    return Target(
        place=place,
        published=known,
        measure=measure,
        tolerance=tolerances[-1] if tolerances else usual,
        n=int(counts[-1]) if counts else None,
        quoted="; ".join(_said(others, "quoted")),
        quirks=_said(others, "quirk"),
        named=tuple(_named(part) for part in others if "named" in part),
        other=_said(others, "other"),
        missing="; ".join(missing),
        ceiling=ceilings[-1] if ceilings else None,
    )


def _named(part: Fields) -> Named:
    said = Fields(part.content["named"], f"{part.where}.named")
    said.only("why", "expected")
    ends = said.content.get("expected")
    if (
        not isinstance(ends, list)
        or [type(end) in (int, float) for end in ends] != [True, True]
        or not 0 <= ends[0] <= ends[1] <= 100
    ):
        raise said.wrong("expected", "a range [low, high] in percent")
    return Named(said.text("why"), float(ends[0]), float(ends[1]))


def _said(parts: list[Fields], name: str) -> tuple[str, ...]:
    """What each of them says, each once."""
    return tuple(dict.fromkeys(part.text(name) for part in parts if name in part))


def _place(said: list[Fields]) -> Place:
    found: dict[str, tuple[Fields, Any]] = {}
    for part in said:
        found |= {name: (part, part.content[name]) for name in PLACES if name in part}
    dataset = found["dataset"][0].text("dataset") if "dataset" in found else Place.dataset
    chosen: dict[str, Any] = {}
    for name, (part, value) in found.items():
        if isinstance(value, dict):
            value = value.get(dataset, value.get("others"))
            if value is None:
                raise part.wrong(name, f"said of '{dataset}', nor of others")
        if name == "share":
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
                raise part.wrong(name, "a share of 0 to 1")
        elif not isinstance(value, str) or not value:
            raise part.wrong(name, "a text")
        elif name == "epsilon":
            try:
                value = number(value)
            except ValueError:
                raise part.wrong(name, "a radius such as 2/255") from None
        chosen[name] = value
    return Place(**chosen)


def _claim(one: Fields, rows: Sequence[str], columns: Sequence[str]) -> Claim:
    one.only("says", "above", "below", "only", "factor", "under", "within", "scale")
    above, below = one.texts("above", ()), one.texts("below")
    if not below or bool(above) == ("under" in one):
        raise UsageError(f"{one.where} needs below, and above or under")
    for name in ("factor", "within"):
        if name in one and not above:
            raise UsageError(f"{one.where}.{name} needs above")
    of_rows = set(above + below) <= set(rows)
    names, others = (rows, columns) if of_rows else (columns, rows)
    for name in ("above", "below") if above else ("below",):
        _among(one, name, names)
    only = _among(one, "only", others) if "only" in one else ()
    scale = one.text("scale", "")
    if scale not in ("", PAPER_SCALE):
        raise one.wrong("scale", f"'{PAPER_SCALE}', or left out")
    return Claim(
        says=one.text("says"),
        rows=of_rows,
        above=above,
        below=below,
        only=only,
        factor=one.value("factor", 1.0),
        under=one.value("under") if "under" in one else None,
        within=one.value("within", 0.0),
        scale=scale,
    )

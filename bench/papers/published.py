"""Published figures by name, read from the same files as the published tables.

    [fig3]
    kind = "curves"                 how it is measured and drawn; see bench/papers/figures.py
    title = "Figure 3: ..."
    shows = "what the paper reads from it"
    methods = "sep,sep-fa"          the grid, as on the command line, with `holdout` as a share of
    archs = "rn18"                  the training images
    aims = [5, 6, ...]              for each class the one that its images are aimed at
    quirks = ["what a reader should know of it"]

    [fig3.quick]                    what stands instead under a recipe of that scale, and is told
    epsilon = "8/255"

A figure is told from a table by its `kind`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.component import number
from bench.grid import Grid
from bench.papers import targets
from bench.papers.targets import (
    ALL,
    Fields,
    PaperTable,
    content_of,
    find_tables,
    is_figure,
    known_name,
    read_paper,
    requests,
)

FIGURES = "figures"
"""What stands for all figures of a paper."""
OF_STUDIES = ("gradient-cosine", "cross-training", "gaussian-mixture")
"""Kinds that are named like their study."""
KINDS = ("curves", "held-out", "sweep", "samples", "confusion", *OF_STUDIES)
"""How figures are measured and drawn."""
OPTIONS = ("dataset", "methods", "archs", "defenses", "epsilon", "protect_classes", "holdout")
"""What a figure may say of its grid."""


@dataclass(frozen=True)
class PaperFigure:
    """One published figure.

    Attributes:
        paper: name of its paper's file.
        name: of the figure.
        kind: how it is measured and drawn.
        title: what it is about.
        source: title of the paper.
        shows: what the paper reads from it.
        options: its grid, as on the command line; empty if it needs none.
        instead: other options, by the scale of the recipe that they are for.
        aims: for each class the one that its images are aimed at, or nothing.
        quirks: what a reader should know of it.
    """

    paper: str
    name: str
    kind: str
    title: str
    source: str
    shows: str
    options: Mapping[str, Any]
    instead: Mapping[str, Mapping[str, Any]]
    aims: tuple[int, ...]
    quirks: tuple[str, ...]

    @property
    def label(self) -> str:
        """As typed behind `--paper`."""
        return f"{self.paper}:{self.name}"

    def grid(self, base: Grid, scale: str, images: int | None) -> Grid:
        """What is run for it.

        Args:
            base: recipe, seeds, precision, crafting seed and device.
            scale: of the recipe.
            images: training images under the recipe, for a share that is held out.
        """
        options = dict(self.options) | dict(self.instead.get(scale, {}))
        share = options.pop("holdout", 0.0)
        if "epsilon" in options:
            options["epsilon"] = (number(options["epsilon"]),)
        return replace(base, **options, holdout=round(share * (images or 0)))

    def other_radius(self, scale: str) -> list[str]:
        """What stands at once behind the title, which names the published radius, or nothing."""
        changed = self.instead.get(scale, {})
        return [f"Here at {changed['epsilon']}."] if "epsilon" in changed else []

    def departures(self, scale: str) -> list[str]:
        """What is otherwise under a recipe of that scale, in words."""
        changed = self.instead.get(scale, {})
        return [
            f"under a recipe of scale {scale}: {name} {value} instead of {self.options.get(name)}"
            for name, value in changed.items()
        ]


def figures_of(paper: str) -> dict[str, PaperFigure]:
    """The figures of a paper by name.

    Raises:
        UsageError: with file, figure and field, if the file is not what the module describes.
    """
    return read_figures(targets.FOLDER / f"{paper}.toml")


def read_figures(file: Path) -> dict[str, PaperFigure]:
    """Like `figures_of`, from any file."""
    content = content_of(file)
    source = Fields(content.get("paper"), f"{file.name}: paper").text("title")
    return {
        key: _figure(file, key, value, source) for key, value in content.items() if is_figure(value)
    }


def _figure(file: Path, name: str, content: Any, source: str) -> PaperFigure:
    figure = Fields(content, f"{file.name}: {name}")
    scales = [key for key, value in content.items() if isinstance(value, dict)]
    figure.only("kind", "title", "shows", "aims", "quirks", *OPTIONS, *scales)
    if figure.text("kind") not in KINDS:
        raise figure.wrong("kind", f"one of {', '.join(KINDS)}")
    aims = content.get("aims", [])
    if not isinstance(aims, list) or not all(type(aim) is int for aim in aims):
        raise figure.wrong("aims", "a list of classes")
    instead = {}
    for scale in scales:
        part = Fields(content[scale], f"{figure.where}.{scale}")
        part.only(*OPTIONS)
        instead[scale] = _options(part)
    return PaperFigure(
        paper=file.stem,
        name=name,
        kind=figure.text("kind"),
        title=figure.text("title"),
        source=source,
        shows=figure.text("shows"),
        options=_options(figure),
        instead=instead,
        aims=tuple(aims),
        quirks=figure.texts("quirks", ()),
    )


def _options(part: Fields) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in OPTIONS:
        if name not in part:
            continue
        if name == "holdout":
            found[name] = part.value(name)
            if not 0 < found[name] < 1:
                raise part.wrong(name, "a share of 0 to 1")
        else:
            found[name] = part.text(name)
    if "epsilon" in found:
        try:
            number(found["epsilon"])
        except ValueError:
            raise part.wrong("epsilon", "a radius such as 2/255") from None
    return found


def find_published(text: str) -> tuple[list[PaperTable], list[PaperFigure]]:
    """The tables and figures that `sep:table4,fig1,cuda:all,sep:figures` stands for, each once.

    `all` are the tables of a paper, `figures` its figures.

    Raises:
        UsageError: in one line that says what there is.
    """
    tables: dict[str, PaperTable] = {}
    figures: dict[str, PaperFigure] = {}
    for paper, wanted in requests(text):
        drawn = figures_of(paper)
        if wanted == FIGURES and drawn:
            figures |= {one.label: one for one in drawn.values()}
        elif wanted in drawn:
            figures[drawn[wanted].label] = drawn[wanted]
        else:
            there = [*read_paper(paper), ALL, *drawn, *([FIGURES] if drawn else [])]
            kind = f"table or figure of {paper}"
            known = known_name(wanted or ALL, there, kind, f"write {paper}:NAME")
            tables |= {one.label: one for one in find_tables(f"{paper}:{known}")}
    return list(tables.values()), list(figures.values())

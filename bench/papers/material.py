"""What there is of a published figure: its grid, and the records that belong to it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from bench import record
from bench.component import build, parse_one
from bench.grid import Expansion, Grid, TrainingData
from bench.papers.lookup import Wanted, is_asked_for
from bench.papers.published import OF_STUDIES, PaperFigure
from bench.papers.targets import Place
from bench.record import CONTROL
from bench.registry import STUDIES
from bench.reports.summary import Record, Summary, summarise
from bench.study import Study, StudyJob

PUBLISHED_IMAGES = 50_000
"""Training images of the published data sets, where a recipe takes all of them."""


@dataclass(frozen=True)
class FigureGrid:
    """A figure with what is run for it.

    Attributes:
        figure: the published one.
        grid: what it looks at.
        scale: of the recipe.
    """

    figure: PaperFigure
    grid: Grid
    scale: str

    @classmethod
    def of(cls, figure: PaperFigure, base: Grid) -> FigureGrid:
        """What a figure needs under recipe, seeds and precision of a base."""
        recipe = Expansion(replace(base, methods=CONTROL, archs="rn18")).recipe
        images = recipe.train_images or PUBLISHED_IMAGES
        return cls(figure, figure.grid(base, recipe.scale, images), recipe.scale)

    @property
    def studies(self) -> tuple[str, ...]:
        """What is measured instead of victims, as a session takes it."""
        return (self.figure.kind,) if self.figure.kind in OF_STUDIES else ()


def study_of(figure: PaperFigure) -> Study:
    """The study behind a figure, with its usual settings."""
    return build(STUDIES, parse_one(figure.kind, STUDIES))


def needs_images(figure: PaperFigure) -> bool:
    """Whether there is a grid to run; theory has none."""
    return figure.kind not in OF_STUDIES or study_of(figure).needs_images


class Material:
    """The records behind a figure.

    Args:
        results: the folder.
        wanted: the figure and its grid.
        notes: takes a line for every file that is left out.
    """

    def __init__(self, results: Path, wanted: FigureGrid, notes: list[str]) -> None:
        self.results, self.figure, self.grid = results, wanted.figure, wanted.grid
        self.notes = notes

    @cached_property
    def expansion(self) -> Expansion:
        """The grid with its names resolved."""
        return Expansion(self.grid)

    @cached_property
    def summary(self) -> Summary | None:
        """Of the victims; of several precisions, unless one was asked for, that of most records."""
        found = list(self._victims(record.read_all(self.results, self.notes)))
        summaries = [one for one in summarise(found) if any(r.method != CONTROL for r in one.rows)]
        return max(summaries, key=lambda one: len(one.records), default=None)

    def _victims(self, records: Iterable[Record]) -> Iterator[Record]:
        grid, recipe = self.grid, self.expansion.recipe
        place = Place(share=grid.poison_ratio[0])
        for one in records:
            asked = grid.precision == "auto" or one["precision"] == self.expansion.precision
            same = (one["recipe"], one["recipe_settings"]) == (recipe.name, recipe.settings())
            if not (asked and same and one["holdout"] == grid.holdout):
                continue
            if one["method"] != CONTROL and not is_asked_for(one, grid.craft_seed):
                continue
            if any(cell.fits(one, place) for cell in self._cells.values()):
                yield one

    @cached_property
    def _cells(self) -> dict[str, Wanted]:
        """Every combination of the grid, by what tables call it."""
        made = self.expansion
        several = len(made.defenses) > 1
        return {
            " + ".join([method_label, *([defense_label] if several else [])])
            + f" × {arch_label}": Wanted(made, method, defense, arch)
            for method_label, method in made.methods
            for defense_label, defense in made.defenses
            for arch_label, arch in made.archs
        }

    @cached_property
    def missing(self) -> list[str]:
        """What the grid has and no record is of; for studies, their subjects."""
        if self.figure.kind in OF_STUDIES:
            known = {subject for subject, _ in self.studies}
            return [job.subject for job in self._expected if job.subject not in known]
        there = [] if self.summary is None else self.summary.records
        place = Place(share=self.grid.poison_ratio[0])
        return [
            title
            for title, cell in self._cells.items()
            if not any(cell.fits(one, place) for one in there)
        ]

    @cached_property
    def studies(self) -> list[tuple[str, Record]]:
        """Subject and record of every measurement that the grid names, in its order.

        Of equal ones the latest; of several precisions, unless one was asked for, that of most.
        """
        known: dict[str, list[Record]] = {}
        for one in record.read_all(self.results, self.notes, record.STUDIES):
            if one["status"] == "done" and self._is_sound(one):
                known.setdefault(self._comparable(one["identity"]), []).append(one)
        found = [
            (job.subject, one)
            for job in self._expected
            for one in known.get(self._comparable(job.identity), [])
        ]
        if found:
            most = Counter(one["precision"] for _, one in found).most_common(1)[0][0]
            found = [pair for pair in found if pair[1]["precision"] == most]
        found.sort(key=lambda pair: pair[1]["finished"])
        latest = {(subject, one["seed"]): (subject, one) for subject, one in found}
        order = [job.subject for job in self._expected]
        return sorted(latest.values(), key=lambda p: (order.index(p[0]), p[1]["seed"] or 0))

    def _is_sound(self, one: Record) -> bool:
        """Whether a record is of this study and data set, and its values what it promises."""
        title = self.expansion.source.title if needs_images(self.figure) else ""
        if (one["study"], one["dataset"]) != (self.figure.kind, title):
            return False
        try:
            study_of(self.figure).check(one["values"])
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            name = f"{one['study']} of {one['subject']}"
            self.notes.append(
                f"left out: the values of {name}, key {one['key'][:12]}, make no sense"
            )
            return False
        return True

    @cached_property
    def _expected(self) -> list[StudyJob]:
        """The measurements of the grid, with images that are not loaded.

        Two subjects may share all that is measured, as sep and sep-fa do their surrogates.
        """
        study = study_of(self.figure)
        if not study.needs_images:
            return [StudyJob(study, study.name)]
        train = _Unseen(self.expansion.source.protected_classes)
        data = SimpleNamespace(train=train, test=train, label=self.expansion.source.title)
        return study.jobs(self.expansion.cells(cast(TrainingData, data)))

    def _comparable(self, identity: dict[str, Any]) -> str:
        """An identity without what cannot be known here: images, and precision unless asked for."""
        unknown = {"train", "test"} | ({"precision"} if self.grid.precision == "auto" else set())

        def strip(value: Any) -> Any:
            if isinstance(value, dict):
                # Settings of components may be called so, too, but are no texts.
                lost = {k for k, v in value.items() if k in unknown and isinstance(v, str)}
                return {k: strip(v) for k, v in value.items() if k not in lost}
            return [strip(item) for item in value] if isinstance(value, list) else value

        said = strip(identity)
        if isinstance(said.get("victim"), dict):
            said["victim"].pop("seed", None)  # other victims than those asked for count, too
        return json.dumps(said, sort_keys=True)


class _Unseen:
    """Stands for images that are not loaded, where only their names and number could matter."""

    digest = ""
    image_size = (32, 32)

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes) or tuple(map(str, range(10)))

    def __len__(self) -> int:
        return PUBLISHED_IMAGES

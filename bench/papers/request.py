"""Published tables by name: the grids behind them, run as far as they are not recorded."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from bench import record
from bench.errors import UsageError
from bench.files import unless_read_only
from bench.grid import Expansion, Grid
from bench.papers.claims import judgements, paper_claims_table
from bench.papers.lookup import Reasons, Scale, look_up, normal
from bench.papers.statistics import statistics_table
from bench.papers.tables import paper_table
from bench.papers.targets import PaperTable, Place
from bench.reports.report import write_tables
from bench.reports.table import join
from bench.running.estimate import plan_facts
from bench.running.estimate import text_of as grid_text
from bench.running.runner import Outcome, run_session
from bench.running.session import Session
from bench.terminal import say


@dataclass(frozen=True)
class PaperGrid:
    """One grid of several tables.

    Attributes:
        grid: what to run; it has the control in every combination, and nothing else too many.
        places: what the tables ask of it.
    """

    grid: Grid
    places: tuple[Place, ...]

    @property
    def title(self) -> str:
        """In a line."""
        grid = self.grid
        radius = "" if grid.epsilon is None else f" at {_radii(grid.epsilon)}"
        share = "" if grid.poison_ratio == (1.0,) else f", share {grid.poison_ratio[0]:g}"
        defense = "" if grid.defenses == "none" else f" under {grid.defenses}"
        return f"{grid.dataset}{share}: {grid.methods}{radius}{defense} on {grid.archs}"


def _radii(values: Sequence[float]) -> str:
    from bench.budget import fraction

    return ", ".join(map(fraction, values))


def paper_grids(tables: Sequence[PaperTable], base: Grid) -> list[PaperGrid]:
    """The grids that hold every cell of some tables, and no other than controls.

    Args:
        tables: to be filled.
        base: recipe, seeds, precision, crafting seed and device.

    Raises:
        UsageError: if a name in a table, or a value of the base, cannot be used.
    """
    places = dict.fromkeys(
        normal(target.place)
        for table in tables
        for *_, target in table.cells()
        if not target.missing
    )
    shared: dict[tuple[Any, ...], dict[str, dict[str, list[Place]]]] = {}
    for place in places:
        methods = shared.setdefault((place.dataset, place.epsilon, place.share), {})
        methods.setdefault(place.method, {}).setdefault(place.defense, []).append(place)
    grids = []
    for (dataset, epsilon, share), methods in shared.items():
        for products in _products(methods):
            block = [place for group in products for place in group]
            made = PaperGrid(
                replace(
                    base,
                    dataset=dataset,
                    methods=_list(place.method for place in block),
                    defenses=_list(place.defense for place in block),
                    archs=_list(place.arch for place in block),
                    epsilon=None if epsilon is None else (epsilon,),
                    poison_ratio=(share,),
                ),
                tuple(block),
            )
            Expansion(made.grid)
            grids.append(made)
    return grids


def _list(texts: Any) -> str:
    return ",".join(dict.fromkeys(texts))


def _products(methods: dict[str, dict[str, list[Place]]]) -> list[list[list[Place]]]:
    """Methods that are crossed with the same defenses and architectures, together."""
    blocks: dict[tuple[Any, ...], list[list[Place]]] = defaultdict(list)
    for defenses in methods.values():
        by_archs: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for defense, places in defenses.items():
            by_archs[tuple(dict.fromkeys(place.arch for place in places))].append(defense)
        for archs, names in by_archs.items():
            mine = [place for name in names for place in defenses[name]]
            blocks[tuple(sorted(names)), tuple(sorted(archs))].append(mine)
    return list(blocks.values())


@dataclass
class PaperOutcome:
    """How the runs of some tables and figures ended.

    Attributes:
        outcomes: of the grids that ran.
        reasons: why places could not be run.
        undrawn: why figures could not be run, by label.
        unfinished: grids that the time limit left untouched.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    reasons: dict[Place, str] = field(default_factory=dict)
    undrawn: dict[str, str] = field(default_factory=dict)
    unfinished: int = 0

    @property
    def failed(self) -> dict[str, str]:
        """Titles of tasks that failed, with why."""
        return {title: why for one in self.outcomes for title, why in one.failed.items()}

    @property
    def left(self) -> int:
        """Tasks, and whole grids, that the time limit left."""
        return self.unfinished + sum(one.unfinished for one in self.outcomes)

    @property
    def total(self) -> Outcome:
        """All of them as one."""
        return Outcome(
            [cell for one in self.outcomes for cell in one.cells],
            self.outcomes[0].results if self.outcomes else Path(),
            self.failed,
            self.left,
            sum(one.seconds for one in self.outcomes),
            [study for one in self.outcomes for study in one.studies],
        )


def run_paper(
    session: Session,
    tables: Sequence[PaperTable],
    workers: int | None,
    threads: int | None,
    stream: TextIO,
) -> PaperOutcome:
    """Run one grid after the other; one that cannot be run leaves its reason, and the others run.

    Args:
        session: folders and limits; its grid gives recipe, seeds, precision and device.
        tables: to be filled.
        workers: as for a run.
        threads: as for a run.
        stream: for headings and progress.
    """
    session.check_folders()
    made = PaperOutcome()
    grids = paper_grids(tables, session.grid)
    for number, one in enumerate(grids, 1):
        if session.time_is_up():
            made.unfinished += 1
            continue
        say(stream, "")
        say(stream, f"grid {number} of {len(grids)}: {one.title}")
        try:
            outcome = run_session(replace(session, grid=one.grid), workers, threads, stream)
        except UsageError as error:
            say(stream, f"not run: {error}")
            made.reasons |= dict.fromkeys(one.places, str(error))
            continue
        made.outcomes.append(outcome)
    return made


def plan_paper(
    session: Session,
    tables: Sequence[PaperTable],
    workers: int | None,
    threads: int | None,
    stream: TextIO,
) -> list[dict[str, Any]]:
    """What would run, a plan for each grid with its `title`; or its `reason`, if it cannot."""
    plans = []
    for one in paper_grids(tables, session.grid):
        facts: dict[str, Any] = {"title": one.title}
        try:
            facts |= plan_facts(replace(session, grid=one.grid), workers, threads, stream)
        except UsageError as error:
            facts["reason"] = str(error)
        plans.append(facts)
    return plans


def text_of(plan: dict[str, Any]) -> str:
    """One of the plans for people."""
    body = plan.get("at_once") or (
        f"cannot be run: {plan['reason']}" if "reason" in plan else grid_text(plan)
    )
    return f"{plan['title']}\n{body}"


@dataclass(frozen=True)
class PaperReport:
    """Tables and figures as they came out.

    Attributes:
        text: for the terminal.
        files: everything written.
        numbers: of every table and figure by its name, a row a cell or a line.
        notes: a line for every file of the results that was left out.
    """

    text: str
    files: list[Path]
    numbers: dict[str, list[dict[str, Any]]]
    notes: list[str] = field(default_factory=list)


def report_paper(
    results: Path, tables: Sequence[PaperTable], base: Grid, reasons: Reasons | None = None
) -> PaperReport:
    """Fill tables from the records of a folder, and write them into its `tables/`."""
    scale = Scale(base)
    notes: list[str] = []
    records = list(record.read_all(results, notes))
    texts, files, numbers = [], [], {}
    for table in tables:
        cells = look_up(table, records, scale, reasons)
        made = [paper_table(table, cells, scale)]
        found = judgements(table, cells, scale)
        made += [paper_claims_table(table, found, cells, scale)] if found else []
        beside = statistics_table(table, cells, scale)
        made += [beside] if len(beside.cells) else []
        with unless_read_only(results, notes):
            files += write_tables(results / "tables", made)
        heading = f"{table.label}\n{'=' * len(table.label)}\n\n" if len(tables) > 1 else ""
        texts.append(heading + join(made))
        for one in made:
            numbers[one.name] = json.loads(one.numbers.to_json(orient="records") or "[]")
    return PaperReport("\n\n".join(texts), files, numbers, notes)

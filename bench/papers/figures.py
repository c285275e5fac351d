"""Published figures by name: what they need is run as far as it is not recorded, and drawn.

    gradient-cosine, cross-training, gaussian-mixture      a study of that name
    curves, held-out, sweep, confusion, samples            victims of a grid

A figure has no numbers to be compared with. What the paper reads from it stands beside a table of
what is in ours.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from bench import record
from bench.device import choose_device
from bench.errors import UsageError
from bench.files import unless_read_only
from bench.grid import Grid
from bench.papers.lookup import NO_RECORD
from bench.papers.material import FigureGrid, Material, needs_images, study_of
from bench.papers.published import PaperFigure
from bench.papers.request import PaperOutcome, PaperReport
from bench.record import CONTROL
from bench.reports.axes import axis_table, find_axes
from bench.reports.detection import detection_table
from bench.reports.flags import Number, flag_names, flags, settle
from bench.reports.notes import scale
from bench.reports.report import sample_sheet, write_tables
from bench.reports.summary import Record, Row, Summary
from bench.reports.table import Table, frame, join, machine
from bench.reports.tables import main_table
from bench.running.estimate import plan_facts
from bench.running.runner import run_session
from bench.running.session import Session
from bench.running.work import provenance
from bench.study import StudyJob, Tools
from bench.terminal import say

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run_figures(
    session: Session,
    figures: Sequence[PaperFigure],
    workers: int | None,
    threads: int | None,
    stream: TextIO,
    made: PaperOutcome,
) -> None:
    """Run what figures need, one after the other; one that cannot be run leaves its reason.

    Args:
        session: folders and limits; its grid gives recipe, seeds, precision and device.
        figures: to be drawn.
        workers: as for a run.
        threads: as for a run.
        stream: for headings and progress.
        made: takes what comes of it.
    """
    session.check_folders()
    for figure in figures:
        if session.time_is_up():
            made.unfinished += 1
            continue
        say(stream, "")
        say(stream, f"{figure.label}: {figure.title}")
        try:
            if not needs_images(figure):
                _measure_at_once(session, figure)
                continue
            wanted = FigureGrid.of(figure, session.grid)
            asked = replace(session, grid=wanted.grid, studies=wanted.studies)
            outcome = run_session(asked, workers, threads, stream)
            made.outcomes.append(outcome)
            if outcome.failed and wanted.studies:  # victims that failed have records that say so
                reasons = (f"{title}: {why}" for title, why in outcome.failed.items())
                made.undrawn[figure.label] = "; ".join(reasons)
        except UsageError as error:
            say(stream, f"not run: {error}")
            made.undrawn[figure.label] = str(error)


def plan_figures(
    session: Session,
    figures: Sequence[PaperFigure],
    workers: int | None,
    threads: int | None,
    stream: TextIO,
) -> list[dict[str, Any]]:
    """What would run, a plan for each figure with its `title`; or its `reason`, if it cannot."""
    plans = []
    for figure in figures:
        facts: dict[str, Any] = {"title": f"{figure.label}: {figure.title}"}
        try:
            if needs_images(figure):
                wanted = FigureGrid.of(figure, session.grid)
                asked = replace(session, grid=wanted.grid, studies=wanted.studies)
                facts |= plan_facts(asked, workers, threads, stream)
            else:
                facts["at_once"] = "computed in seconds, from no images"
        except UsageError as error:
            facts["reason"] = str(error)
        plans.append(facts)
    return plans


def _measure_at_once(session: Session, figure: PaperFigure) -> None:
    """A study that needs no images, recorded like the others."""
    import torch

    study = study_of(figure)
    job = StudyJob(study, study.name)
    if record.is_done(session.results, job.key, record.STUDIES):
        return
    wall, core = time.perf_counter(), time.process_time()
    values = study.measure(cast(Tools, None))
    made = {
        **job.describe(),
        "status": "done",
        "values": values,
        "seconds": round(time.perf_counter() - wall, 2),
        "core_seconds": round(time.process_time() - core, 2),
        **provenance(torch.device("cpu"), session.commit),
    }
    record.write(session.results, job.slug, made, record.STUDIES)


def report_figures(
    results: Path, figures: Sequence[PaperFigure], base: Grid, reasons: Mapping[str, str]
) -> PaperReport:
    """Draw figures from the records of a folder, into its `plots/` and `tables/`.

    Args:
        results: the folder.
        figures: to be drawn.
        base: recipe, seeds, precision, crafting seed and device.
        reasons: why figures, or parts of them, could not be run, by label.
    """
    parts = [_report(results, figure, base, reasons.get(figure.label)) for figure in figures]
    return PaperReport(
        "\n\n".join(part.text for part in parts),
        [file for part in parts for file in part.files],
        {name: rows for part in parts for name, rows in part.numbers.items()},
        list(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def _report(results: Path, figure: PaperFigure, base: Grid, reason: str | None) -> PaperReport:
    from bench.reports.plots import save_figure

    wanted, notes = FigureGrid.of(figure, base), list[str]()
    material = Material(results, wanted, notes)
    heading = f"{figure.label}\n{'=' * len(figure.label)}\n"
    stem = f"paper-{figure.label.replace(':', '-')}"
    pictures, tables = DRAW[figure.kind](material)
    if not tables:
        why = reason or _absence(wanted)
        return PaperReport(f"{heading}\n{figure.title}\nnot drawn: {why}", [], {}, notes)
    files: list[Path] = []
    with unless_read_only(results, notes):
        for picture, name in zip(pictures, _numbered(stem, len(pictures)), strict=True):
            files += save_figure(picture, results / "plots" / name)
    drawn = [f"drawn: plots/{file.name}" for file in files if file.suffix == ".png"]
    told = [f"The paper shows: {figure.shows}", *figure.quirks, *figure.departures(wanted.scale)]
    told += [f"No record: {', '.join(material.missing)}"] if material.missing else []
    told += [f"Not all of it could be run: {reason}"] if reason else []
    tables = [
        replace(
            table,
            name=name,
            caption=(
                f"{figure.title} ({figure.source}).",
                *figure.other_radius(wanted.scale),
                *table.caption,
            ),
            notes=(*(f"{text[0].upper()}{text[1:].rstrip('.')}." for text in told), *table.notes),
        )
        for table, name in zip(tables, _numbered(stem, len(tables)), strict=True)
    ]
    with unless_read_only(results, notes):
        files += write_tables(results / "tables", tables)
        _remove_stale(results, stem, files)
    numbers = {
        table.name: json.loads(table.numbers.to_json(orient="records") or "[]") for table in tables
    }
    return PaperReport("\n".join([heading, join(tables), *drawn]), files, numbers, notes)


def _numbered(stem: str, count: int) -> list[str]:
    return [stem] if count == 1 else [f"{stem}-{number}" for number in range(1, count + 1)]


def _remove_stale(results: Path, stem: str, files: Sequence[Path]) -> None:
    """Take away what an earlier report of the figure wrote under another number."""
    mine = re.compile(re.escape(stem) + r"(-\d+)?")
    for room in ("plots", "tables"):
        for file in (results / room).glob(f"{stem}*"):
            if mine.fullmatch(file.stem) and file not in files:
                file.unlink()


def _absence(wanted: FigureGrid) -> str:
    """Why there is nothing to draw."""
    if wanted.scale == "paper" and choose_device(wanted.grid.device).type == "cpu":
        return f"{NO_RECORD}; a recipe of this scale is for a GPU, of which there is none here"
    return NO_RECORD


# How each kind is drawn. All give pictures and tables, none of either if there are no records.

Made = tuple[list["Figure"], list[Table]]
NOTHING: Made = ([], [])


def _done(summary: Summary) -> bool:
    """Whether any victim of a protection came to an end."""
    return any(group.done for (row, _), group in summary.groups.items() if row.method != CONTROL)


def _curves(material: Material) -> Made:
    from bench.reports.plots import curve_figures

    summary = material.summary
    if summary is None:
        return NOTHING
    return list(curve_figures(summary).values()), [main_table(summary, train=True)]


def _held_out(material: Material) -> Made:
    from bench.papers.plots import held_out_figure

    summary = material.summary
    if summary is None:
        return NOTHING
    title = "accuracy on training, held-out and clean test images"
    pictures = [held_out_figure(summary, title)] if _done(summary) else []
    return pictures, [detection_table(summary, train=True)]


def _sweep(material: Material) -> Made:
    from bench.reports.axis_plots import axis_figures

    summary = material.summary
    if summary is None:
        return NOTHING
    axes = find_axes([summary])
    pictures = [picture for axis in axes for picture in axis_figures(axis).values()]
    return pictures, [axis_table(axis) for axis in axes] or [main_table(summary)]


def _samples(material: Material) -> Made:
    summary = material.summary
    sheet = None if summary is None else sample_sheet(material.results, summary, material.notes)
    if summary is None or sheet is None:
        return NOTHING
    return [sheet], [main_table(summary)]


def _confusion(material: Material) -> Made:
    from bench.papers.plots import confusion_figure

    summary, aims = material.summary, material.figure.aims
    if summary is None:
        return NOTHING
    title = "what clean test images are taken for"
    pictures = [confusion_figure(summary, aims, title)] if _done(summary) else []
    return pictures, [_confusion_table(summary, aims)]


CONFUSION_NOTE = (
    "Of the clean test images of protected classes the percentage that is recognised (right), "
    "taken for the class they were aimed at, and for any class that is not protected; of the other "
    "classes the percentage that is recognised; and the class that is predicted most often, with "
    "its share of all predictions. Several seeds are added up."
)


def _confusion_table(summary: Summary, aims: Sequence[int]) -> Table:
    """Of clean test images: how many are recognised, and how many go where they were aimed."""
    from bench.papers.plots import confusion_shares

    heads = ["method", "architecture", "n", "right", "aimed at", "to others"]
    heads += ["others right", "most"]
    lines: list[list[str | Number]] = []
    numbers = []
    for row in summary.rows:
        for column in summary.columns:
            group = summary.group(row, column)
            if not group.done:
                continue
            doubts = flags(group, summary.control(row, column))
            found = _confused(group.done, confusion_shares(group.done), aims, row)
            label, count = summary.method_label(row), len(group.done)
            shares = [value for key, value in found.items() if key != "most"]
            shown = ["" if share is None else Number(f"{share:.1f}", doubts) for share in shares]
            lines.append([label, str(column), str(count), *shown, found["most"]])
            told = {"method": label, "arch": str(column), "n": count, **found}
            numbers.append(told | {"flags": flag_names(doubts)})
    cells, marked = settle(lines)
    notes = (CONFUSION_NOTE, *marked)
    caption = tuple(scale(summary))
    return Table("", caption, frame(heads, cells), 2, 1, notes, machine(numbers, ("n",)))


def _confused(done: Sequence[Record], shares: Any, aims: Sequence[int], row: Row) -> dict[str, Any]:
    """The numbers of one line; shares are percent, a row a true class."""
    names = done[0]["classes"]
    every = range(len(names))
    protected = [] if row.method == CONTROL else list(done[0].get("protected_classes", every))
    others = [one for one in every if one not in protected]
    aimed = [shares[one][aims[one]] for one in protected if aims and aims[one] != one]
    lost = [sum(shares[one][other] for other in others) for one in protected if others]
    most = int(shares.sum(axis=0).argmax())
    return {
        "protected_right": _mean(shares[one][one] for one in protected),
        "aimed_at": _mean(aimed),
        "to_others": _mean(lost),
        "others_right": _mean(shares[one][one] for one in others),
        "most": f"{names[most]} {shares.sum(axis=0)[most] / len(names):.0f} %",
    }


def _mean(values: Iterable[float]) -> float | None:
    found = [float(value) for value in values]
    return sum(found) / len(found) if found else None


def _gradient_cosine(material: Material) -> Made:
    from bench.papers.plots import cosine_figure
    from bench.papers.study_tables import cosine_table

    found = material.studies
    if not found:
        return NOTHING
    title = "mean absolute cosine between input gradients"
    return [cosine_figure(found, title)], [cosine_table(found)]


def _cross_training(material: Material) -> Made:
    from bench.papers.plots import cross_training_figure
    from bench.papers.study_tables import cross_training_table

    found = material.studies
    if not found:
        return NOTHING
    title = "accuracy on fixed training images during a training on the clean ones"
    return [cross_training_figure(found, title)], [cross_training_table(found)]


def _gaussian_mixture(material: Material) -> Made:
    from bench.papers.study_tables import theory_table
    from bench.papers.theory_figure import theory_figure

    if not material.studies:
        return NOTHING
    values = material.studies[-1][1]["values"]
    return [theory_figure(values)], [theory_table(values)]


DRAW: dict[str, Callable[[Material], Made]] = {
    "curves": _curves,
    "held-out": _held_out,
    "sweep": _sweep,
    "samples": _samples,
    "confusion": _confusion,
    "gradient-cosine": _gradient_cosine,
    "cross-training": _cross_training,
    "gaussian-mixture": _gaussian_mixture,
}
"""How each kind of figure is drawn."""

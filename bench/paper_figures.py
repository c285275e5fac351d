"""Published figures by name: what they need is run as far as it is not recorded, and drawn.

    gradient-cosine, cross-training, gaussian-mixture      a study of that name
    curves, held-out, sweep, confusion, samples            victims of a grid

A figure has no numbers to be compared with. What the paper reads from it stands beside a table of
what is in ours.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TextIO, cast

from bench import record
from bench.axes import axis_table, find_axes
from bench.component import build, parse_one
from bench.data import ImageDataset
from bench.detection import detection_table
from bench.device import choose_device
from bench.errors import UsageError
from bench.estimate import plan_facts
from bench.grid import Expansion, Grid
from bench.paper import PaperOutcome, PaperReport
from bench.paper_tables import NO_RECORD, Wanted
from bench.published_figures import PaperFigure
from bench.record import CONTROL
from bench.registry import STUDIES
from bench.report import sample_sheet, write_tables
from bench.runner import run_session
from bench.session import Session
from bench.study import StudyJob, Tools
from bench.summary import Record, Row, Summary, summarise
from bench.tables import SMALL_SCALE, Table, frame, join, machine, main_table, scale
from bench.targets import Place
from bench.work import provenance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OF_STUDIES = ("gradient-cosine", "cross-training", "gaussian-mixture")
"""Kinds that are named like their study."""


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
        # The published splits have 50 000 images where a recipe takes all of them.
        images = recipe.train_images or 50_000
        return cls(figure, figure.grid(base, recipe.scale, images), recipe.scale)

    @property
    def studies(self) -> tuple[str, ...]:
        """What is measured instead of victims, as a session takes it."""
        return (self.figure.kind,) if self.figure.kind in OF_STUDIES else ()


def needs_images(figure: PaperFigure) -> bool:
    """Whether there is a grid to run; theory has none."""
    return figure.kind not in OF_STUDIES or STUDIES.get(figure.kind).needs_images


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
        stream.write(f"\n{figure.label}: {figure.title}\n")
        stream.flush()
        try:
            if not needs_images(figure):
                _measure_at_once(session, figure)
                continue
            wanted = FigureGrid.of(figure, session.grid)
            asked = replace(session, grid=wanted.grid, studies=wanted.studies)
            made.outcomes.append(run_session(asked, workers, threads, stream))
        except UsageError as error:
            stream.write(f"not run: {error}\n")
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
                facts["reason"] = "it is computed at once, from no images"
        except UsageError as error:
            facts["reason"] = str(error)
        plans.append(facts)
    return plans


def _measure_at_once(session: Session, figure: PaperFigure) -> None:
    """A study that needs no images, recorded like the others."""
    import torch

    study = build(STUDIES, parse_one(figure.kind, STUDIES))
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
    record.write(session.results, job.slug, made)


def report_figures(
    results: Path, figures: Sequence[PaperFigure], base: Grid, reasons: Mapping[str, str]
) -> PaperReport:
    """Draw figures from the records of a folder, into its `plots/` and `tables/`.

    Args:
        results: the folder.
        figures: to be drawn.
        base: recipe, seeds, precision, crafting seed and device.
        reasons: why figures could not be run, by label.
    """
    parts = [_report(results, figure, base, reasons.get(figure.label)) for figure in figures]
    return PaperReport(
        "\n\n".join(part.text for part in parts),
        [file for part in parts for file in part.files],
        {name: rows for part in parts for name, rows in part.numbers.items()},
    )


def _report(results: Path, figure: PaperFigure, base: Grid, reason: str | None) -> PaperReport:
    from bench.plots import save_figure

    wanted = FigureGrid.of(figure, base)
    heading = f"{figure.label}\n{'=' * len(figure.label)}\n"
    pictures, tables = DRAW[figure.kind](_Material(results, wanted))
    if not tables:
        why = reason or _absence(wanted)
        return PaperReport(f"{heading}\n{figure.title}\nnot drawn: {why}", [], {})
    stem = f"paper-{figure.label.replace(':', '-')}"
    files: list[Path] = []
    for picture, name in zip(pictures, _numbered(stem, len(pictures)), strict=True):
        files += save_figure(picture, results / "plots" / name)
    drawn = [f"drawn: plots/{file.name}" for file in files if file.suffix == ".png"]
    told = [f"The paper shows: {figure.shows}", *figure.quirks, *figure.departures(wanted.scale)]
    tables = [
        replace(
            table,
            name=name,
            caption=(f"{figure.title} ({figure.source}).", *table.caption),
            notes=(*(f"{text[0].upper()}{text[1:]}." for text in told), *table.notes),
        )
        for table, name in zip(tables, _numbered(stem, len(tables)), strict=True)
    ]
    files += write_tables(results / "tables", tables)
    numbers = {
        table.name: json.loads(table.numbers.to_json(orient="records") or "[]") for table in tables
    }
    return PaperReport("\n".join([heading, join(tables), *drawn]), files, numbers)


def _numbered(stem: str, count: int) -> list[str]:
    return [stem] if count == 1 else [f"{stem}-{number}" for number in range(1, count + 1)]


def _absence(wanted: FigureGrid) -> str:
    """Why there is nothing to draw."""
    alone = wanted.scale == "paper" and choose_device(wanted.grid.device).type == "cpu"
    return (
        "no record; recipe paper is for a GPU, of which there is none here" if alone else NO_RECORD
    )


# What there is of a figure.


class _Material:
    """The records behind a figure.

    Args:
        results: the folder.
        wanted: the figure and its grid.
    """

    def __init__(self, results: Path, wanted: FigureGrid) -> None:
        self.results, self.figure, self.grid = results, wanted.figure, wanted.grid
        self._wanted = wanted

    def summary(self) -> Summary | None:
        """Of the victims in the grid; where there are several precisions, of the most records."""
        found = list(_matching(self.grid, record.read_all(self.results, notes=[])))
        summaries = [one for one in summarise(found) if any(r.method != CONTROL for r in one.rows)]
        return max(summaries, key=lambda one: len(one.records), default=None)

    def studies(self) -> Sequence[Record]:
        """Records of the figure's study on what the grid names, in the order of the grid."""
        everything = list(record.read_all(self.results, [], record.STUDIES))
        mine = [one for one in everything if one["study"] == self.figure.kind]
        if not needs_images(self.figure):
            return mine
        expansion = Expansion(self.grid)
        labels = [label for label, _ in (*expansion.methods, *expansion.archs)]
        mine = [
            one
            for one in mine
            if one["dataset"] == expansion.source.title
            and one["recipe_settings"] == expansion.recipe.settings()
            and one["recipe"] == expansion.recipe.name
            and one["subject"] in labels
            and _same_sets(one, labels)
        ]
        if mine:
            most = Counter(one["precision"] for one in mine).most_common(1)[0][0]
            mine = [one for one in mine if one["precision"] == most]
        mine.sort(key=lambda one: (labels.index(one["subject"]), one["seed"] or 0))
        return mine


def _same_sets(one: Record, labels: Sequence[str]) -> bool:
    """Whether a study looked at crafted sets of the grid alone, if it looked at any."""
    return set(one["identity"].get("crafted", ())) <= set(labels)


def _matching(grid: Grid, records: Iterable[Record]) -> Iterable[Record]:
    """Records of the cells of a grid, whatever their precision and seed."""
    expansion = Expansion(grid)
    recipe = (expansion.recipe.name, expansion.recipe.settings())
    cells = [
        Wanted(expansion, method, defense, arch)
        for _, method in expansion.methods
        for _, defense in expansion.defenses
        for _, arch in expansion.archs
    ]
    place = Place(share=grid.poison_ratio[0])
    for one in records:
        if (one["recipe"], one["recipe_settings"]) != recipe or one["holdout"] != grid.holdout:
            continue
        if one["method"] != CONTROL and not _same_classes(expansion, one):
            continue
        if any(cell.fits(one, place) for cell in cells):
            yield one


def _same_classes(expansion: Expansion, one: Record) -> bool:
    named = cast(ImageDataset, SimpleNamespace(classes=tuple(one["classes"])))
    classes = expansion.protected_classes(named)
    return list(classes or ()) == list(one.get("protected_classes") or ())


# How each kind is drawn. All give pictures and tables, none of either if there are no records.

Made = tuple[list["Figure"], list[Table]]


def _curves(material: _Material) -> Made:
    from bench.plots import curve_figures

    summary = material.summary()
    if summary is None:
        return [], []
    return list(curve_figures(summary).values()), [main_table(summary)]


def _held_out(material: _Material) -> Made:
    from bench.paper_plots import held_out_figure

    summary = material.summary()
    if summary is None:
        return [], []
    title = "accuracy on training, held-out and clean test images"
    return [held_out_figure(summary, title)], [detection_table(summary)]


def _sweep(material: _Material) -> Made:
    from bench.axis_plots import axis_figures

    summary = material.summary()
    axes = find_axes([summary]) if summary else []
    pictures = [picture for axis in axes for picture in axis_figures(axis).values()]
    return pictures, [axis_table(axis) for axis in axes]


def _samples(material: _Material) -> Made:
    summary = material.summary()
    sheet = None if summary is None else sample_sheet(material.results, summary)
    if summary is None or sheet is None:
        return [], []
    return [sheet], [main_table(summary)]


def _confusion(material: _Material) -> Made:
    from bench.paper_plots import confusion_figure

    summary, aims = material.summary(), material.figure.aims
    if summary is None:
        return [], []
    picture = confusion_figure(summary, aims, "what clean test images are taken for")
    return [picture], [_confusion_table(summary, aims)]


def _confusion_table(summary: Summary, aims: Sequence[int]) -> Table:
    """Of clean test images: how many are recognised, and how many go where they were aimed."""
    from bench.paper_plots import confusion_shares

    heads = [
        "method",
        "architecture",
        "n",
        "right",
        "aimed at",
        "to others",
        "others right",
        "most",
    ]
    lines, numbers = [], []
    for row in summary.rows:
        for column in summary.columns:
            done = summary.group(row, column).done
            if not done:
                continue
            found = _confused(done, confusion_shares(done), aims, row)
            label = summary.method_label(row)
            values = {key: value for key, value in found.items() if key != "most"}
            texts = ["" if value is None else f"{value:.1f}" for value in values.values()]
            lines.append([label, str(column), str(len(done)), *texts, found["most"]])
            numbers.append({"method": label, "arch": str(column), "n": len(done), **found})
    notes = (
        "Of the clean test images of protected classes the percentage that is recognised (right), "
        "taken for the class they were aimed at, and for any class that is not protected; of the "
        "other classes the percentage that is recognised; and the class that is predicted most "
        "often, with its share of all predictions.",
    )
    caption = tuple(scale(summary))
    return Table("", caption, frame(heads, lines), 2, 1, notes, machine(numbers, ("n",)))


def _confused(done: Sequence[Record], shares: Any, aims: Sequence[int], row: Row) -> dict[str, Any]:
    """The numbers of one line; shares are percent, a row a true class."""
    names = done[0]["classes"]
    every = range(len(names))
    protected = [] if row.method == CONTROL else list(done[0].get("protected_classes", every))
    others = [one for one in every if one not in protected]
    aimed = [shares[one][aims[one]] for one in protected if aims and aims[one] != one]
    most = int(shares.sum(axis=0).argmax())
    return {
        "protected_right": _mean(shares[one][one] for one in protected),
        "aimed_at": _mean(aimed),
        "to_others": _mean(sum(shares[one][other] for other in others) for one in protected)
        if others
        else None,
        "others_right": _mean(shares[one][one] for one in others),
        "most": f"{names[most]} {shares.sum(axis=0)[most] / len(names):.0f} %",
    }


def _mean(values: Iterable[float]) -> float | None:
    found = [float(value) for value in values]
    return sum(found) / len(found) if found else None


def _gradient_cosine(material: _Material) -> Made:
    from bench.paper_plots import cosine_figure

    records = material.studies()
    if not records:
        return [], []
    caption = _study_caption(records)
    title = "mean absolute cosine between input gradients"
    heads = ["networks of", "pair", "cosine"]
    lines, numbers = [], []
    for one in records:
        names, cosines = one["values"]["networks"], one["values"]["cosines"]
        for a, first in enumerate(names):
            for b, second in enumerate(names[a + 1 :], a + 1):
                lines.append([one["subject"], f"{first} / {second}", f"{cosines[a][b]:.3f}"])
                numbers.append(
                    {"method": one["subject"], "a": first, "b": second, "cosine": cosines[a][b]}
                )
        between = one["values"]["between"]
        lines.append([one["subject"], "mean of all pairs", f"{between:.3f}"])
    count = min(one["values"]["images"] for one in records)
    note = f"Mean over {count} clean training images of |<g_a, g_b>| / (||g_a|| ||g_b||)."
    table = Table("", caption, frame(heads, lines), 2, 1, (note,), machine(numbers))
    return [cosine_figure(records, title, " ".join([*caption, note]))], [table]


def _cross_training(material: _Material) -> Made:
    from bench.paper_plots import cross_training_figure

    records = material.studies()
    if not records:
        return [], []
    caption = _study_caption(records)
    title = "training images in a training on clean images that never saw them"
    heads = ["architecture", "seed", "images", "first %", "last %", "never right %"]
    lines, numbers = [], []
    for one in records:
        curve = one["values"]["curve"]
        for label, never in one["values"]["never_correct"].items():
            first, last = curve[0]["sets"][label], curve[-1]["sets"][label]
            texts = [f"{100 * value:.1f}" for value in (first, last, never)]
            lines.append([one["subject"], str(one["seed"]), label, *texts])
            numbers.append(
                {
                    "arch": one["subject"],
                    "seed": one["seed"],
                    "images": label,
                    "first": first,
                    "last": last,
                    "never_correct": never,
                }
            )
    note = (
        "Accuracy with true labels after the first and the last epoch, and the share of the images "
        "that were right after none of them. In the picture that share stands in brackets."
    )
    table = Table("", caption, frame(heads, lines), 3, 1, (note,), machine(numbers, ("seed",)))
    return [cross_training_figure(records, title, " ".join([*caption, note]))], [table]


def _study_caption(records: Sequence[Record]) -> tuple[str, ...]:
    """The scale of studies in a sentence."""
    first = records[0]
    settings = first["recipe_settings"]
    images = settings.get("train_images")
    parts = [
        f"{first['dataset']}, {'all' if images is None else images} training images",
        f"recipe {first['recipe_label']}, {settings.get('epochs')} epochs",
        f"width {settings.get('width'):g}",
        first["precision"],
        f"crafting seed {first['craft_seed']}",
    ]
    small = [] if first["recipe"] == "paper" else [SMALL_SCALE.partition(",")[0] + "."]
    return ("; ".join(parts) + ".", *small)


def _gaussian_mixture(material: _Material) -> Made:
    from bench.theory_figure import theory_figure

    records = material.studies()
    if not records:
        return [], []
    values = records[-1]["values"]
    return [theory_figure(values)], [_theory_table(values)]


def _theory_table(values: Mapping[str, Any]) -> Table:
    """Where points were drawn: computed and counted accuracies side by side."""
    heads = ["d", "blur −1", "blur +1", "clean %", "counted", "protected %", "counted", "best rule"]
    lines, numbers = [], []
    rows = {(row["dimension"], row["blur_minus"], row["blur_plus"]): row for row in values["rows"]}
    for row in rows.values():  # of the control's some are among the others
        drawn = row["sampled"]
        if drawn is None:
            continue
        rates = [
            row["exact"]["clean"],
            drawn["clean"]["accuracy"],
            row["exact"]["protected"],
            drawn["protected"]["accuracy"],
            row["clean_rule"]["clean"],
        ]
        blurs = [f"{row['blur_minus']:g}", f"{row['blur_plus']:g}"]
        lines.append([str(row["dimension"]), *blurs, *(f"{100 * rate:.1f}" for rate in rates)])
        numbers.append(
            {
                "dimension": row["dimension"],
                "blur_minus": row["blur_minus"],
                "blur_plus": row["blur_plus"],
                **{f"exact_{data}": row["exact"][data] for data in row["exact"]},
                **{f"counted_{data}": drawn[data]["accuracy"] for data in drawn},
                "draws": drawn["clean"]["draws"],
                "bound": row["bound"],
                "clean_rule": row["clean_rule"]["clean"],
            }
        )
    settings = values["settings"]
    caption = (
        f"Two Gaussians in d dimensions, means ± mu with |mu| = {settings['norm']:g}, "
        f"{settings['mean']}; each class is multiplied by the tridiagonal matrix of its blur.",
    )
    notes = (
        "Accuracy of the Bayes rule of the protected mixture on clean and on protected data, "
        f"computed exactly and counted on {settings['draws']} points; best rule: that of the clean "
        "mixture, on clean data. The paper's theorem is not restated: the exact value stands in "
        "its place.",
    )
    counts = ("dimension", "draws")
    return Table("", caption, frame(heads, lines), 3, 1, notes, machine(numbers, counts))


DRAW: dict[str, Callable[[_Material], Made]] = {
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

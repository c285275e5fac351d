"""Everything that can be said of a results folder, made from its records alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench import record
from bench.errors import UsageError
from bench.files import slugify, unless_read_only, user_path, write_text
from bench.record import CONTROL
from bench.reports.axes import Axis, axis_table, find_axes
from bench.reports.claims import claims_table, read_claims
from bench.reports.class_tables import class_tables
from bench.reports.defense_tables import defense_tables, told_tables
from bench.reports.detection import holdout_tables, roc_figures
from bench.reports.summary import Context, Row, Summary, summarise
from bench.reports.table import Table, join
from bench.reports.tables import all_tables, details_table, main_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bench.reports.plots import Style


@dataclass(frozen=True)
class Report:
    """What was reported.

    Attributes:
        text: accuracies and details of every context, and what its defenses and held-out images
            tell, for the terminal.
        files: everything written, in order.
        notes: what was left out or not written, and why.
    """

    text: str
    files: list[Path]
    notes: list[str] = field(default_factory=list)


def write_report(results_dir: str | Path, contexts: Collection[Context] | None = None) -> Report:
    """Write tables and plots of a results folder into its `tables/` and `plots/`.

    Args:
        results_dir: the folder that holds `cells/`.
        contexts: report only on these (`Context.of(record)`); on all by default.

    Raises:
        UsageError: if the folder holds no records, or one of its files is not a record.
    """
    from bench.reports.axis_plots import axis_styles
    from bench.reports.plots import styles

    folder = user_path(results_dir)
    # What is no record was told about by whoever read it before; the rest is reported on.
    records = list(record.read_all(folder, notes=[]))
    if not records:
        raise UsageError(f"{folder} holds no records to report on; run some cells first")
    everything = summarise(records)
    chosen = summarise(records, contexts)
    # A method keeps its colour whichever contexts are asked for.
    looks = styles(everything)
    files, notes = list[Path](), list[str]()
    claims = read_claims(folder)
    axes = find_axes(everything)
    line_looks = axis_styles(axes)
    asked = {summary.context for summary in chosen}
    axes = [axis for axis in axes if asked & axis.contexts]
    with unless_read_only(folder, notes):
        for summary in chosen:
            tables = [*all_tables(summary), *class_tables(summary)]
            tables += [*defense_tables(summary), *holdout_tables(summary)]
            tables += [claims_table(summary, claims)] if claims else []
            files += write_tables(folder / "tables", tables, f"{summary.context.slug}-")
            files += _write_plots(folder / "plots", summary, looks)
            files += _write_samples(folder, summary, notes)
        for axis in axes:
            files += write_tables(
                folder / "tables", [axis_table(axis)], f"{axis.summary.context.slug}-"
            )
            files += _write_axis_plots(folder / "plots", axis, line_looks)
    texts = [*_texts(chosen), *map(_axis_text, axes)]
    return Report("\n\n".join(texts), files, list(dict.fromkeys(notes)))


def _texts(summaries: list[Summary]) -> Iterator[str]:
    """Each context's tables, under a heading if there are several contexts."""
    for summary in summaries:
        more = [*class_tables(summary), *told_tables(summary), *holdout_tables(summary)]
        text = join([main_table(summary), details_table(summary), *more])
        heading = summary.context.slug
        several = len(summaries) > 1
        yield f"{heading}\n{'=' * len(heading)}\n\n{text}" if several else text


def _axis_text(axis: Axis) -> str:
    """Its table under a heading."""
    table = axis_table(axis)
    heading = f"{axis.summary.context.slug}-{table.name}"
    return f"{heading}\n{'=' * len(heading)}\n\n{table.text()}"


def write_tables(folder: Path, tables: Iterable[Table], prefix: str = "") -> list[Path]:
    """Write tables as text, Markdown, CSV and LaTeX; returns the files.

    Args:
        folder: of the tables.
        tables: each becomes four files of its name.
        prefix: stands before the names.
    """
    files = []
    for table in tables:
        name = f"{prefix}{table.name}"
        formats = {
            "txt": table.text(),
            "md": table.markdown(),
            "csv": table.csv(),
            "tex": table.latex(name),
        }
        for ending, text in formats.items():
            files.append(folder / f"{name}.{ending}")
            write_text(files[-1], text)
    return files


def _write_plots(folder: Path, summary: Summary, looks: Mapping[str, Style]) -> list[Path]:
    from bench.reports.heatmap import heatmaps
    from bench.reports.plots import curve_figures, overview_figure, save_figure

    files, taken = [], set()
    kinds = {
        "curves": curve_figures(summary, looks),
        "heatmap": {str(column): figure for column, figure in heatmaps(summary).items()},
        "detection": roc_figures(summary),
    }
    for kind, figures in kinds.items():
        for label, figure in figures.items():
            name = free_name(f"{summary.context.slug}-{kind}-{slugify(label)}", taken)
            files += save_figure(figure, folder / name)
    overview = overview_figure(summary, looks)
    if overview is not None:
        files += save_figure(overview, folder / f"{summary.context.slug}-final")
    return files


def _write_axis_plots(folder: Path, axis: Axis, looks: Mapping[str, Style]) -> list[Path]:
    from bench.reports.axis_plots import axis_figures
    from bench.reports.plots import save_figure

    files, taken = [], set()
    for label, figure in axis_figures(axis, looks).items():
        name = f"{axis.summary.context.slug}-axis-{slugify(axis.name)}-{slugify(label)}"
        files += save_figure(figure, folder / free_name(name, taken))
    return files


def _write_samples(folder: Path, summary: Summary, notes: list[str]) -> list[Path]:
    from bench.reports.plots import save_figure

    sheet = sample_sheet(folder, summary, notes)
    stem = folder / "plots" / f"{summary.context.slug}-samples"
    return [] if sheet is None else save_figure(sheet, stem)


def sample_sheet(folder: Path, summary: Summary, notes: list[str]) -> Figure | None:
    """The images that every method kept beside the records, where they are the same; or None.

    Args:
        folder: of the results.
        summary: of its records.
        notes: takes a line for every sample that is missing or damaged.
    """
    import numpy as np

    from bench.reports.thumbnails import thumbnail_sheet
    from bench.samples import read_sample, sample_file

    clean, rows = None, []
    for row in summary.rows:
        records = [one for one in summary.records if Row.of(one) == row]
        keys = sorted({one["crafted_key"] for one in records} - {None})
        measured = {one["crafted_key"] for one in records if one["audit"]}
        label = summary.method_label(row)
        samples = []
        for key in keys:
            file = sample_file(folder, "", key)
            samples.append(read_sample(file))
            if samples[-1] is None and key in measured and row.method != CONTROL:
                state = "is damaged" if file.exists() else "is missing"
                notes.append(
                    f"left out: the sample of {label}, {file}, {state}; the next victim that is "
                    "trained on this set makes it again"
                )
        if label in dict(rows) or not samples or samples[0] is None:
            continue
        clean = samples[0].clean if clean is None else clean
        changed = bool((samples[0].released != samples[0].clean).any())
        if changed and np.array_equal(samples[0].clean, clean):
            rows.append((label, samples[0].released))
    if clean is None or not rows:
        return None
    title = f"{summary.context.dataset}: clean and protected images, and their amplified difference"
    return thumbnail_sheet(clean, rows, title=title)


def free_name(name: str, taken: set[str]) -> str:
    """The name, numbered if another label was reduced to the same one; it is then taken."""
    number = 1
    while (free := name if number == 1 else f"{name}-{number}") in taken:
        number += 1
    taken.add(free)
    return free

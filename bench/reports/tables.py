"""Tables from records: for the terminal, in Markdown, CSV and LaTeX."""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bench.errors import NOT_RUN
from bench.recipe import PUBLISHED
from bench.record import CONTROL
from bench.reports.flags import Number, flag_names, flags, flags_of_all, settle
from bench.reports.summary import (
    PAPER_WIDTH,
    Column,
    Group,
    Record,
    Row,
    Spread,
    Summary,
    value_text,
    width_text,
)

if TYPE_CHECKING:
    import pandas as pd

TERMINAL_WIDTH = 100
MISSING = "–"

PEAK_NOTE = "peak: best epoch on the test set, an oracle no trainer has."
SMALL_SCALE = (
    "Small scale: not comparable with published values, and the order inside a family of methods "
    "means nothing."
)
SEPARABLE = "separable %"
SEPARABLE_NOTE = (
    f"{SEPARABLE}: how often a linear rule, fitted to half of the perturbations, tells the class "
    "from one of the others."
)
SHORTCUT_NOTE = (
    "A shortcut that is a rule is put on the test image; otherwise the perturbation of a training "
    "image of the class is lent to it, which tells what the class's perturbations have in common."
)


@dataclass(frozen=True)
class Table:
    """One table, ready to be set in any of four formats.

    Attributes:
        name: what the table is about, as a part of file names.
        caption: what the figures are, at which scale they were made, and what that means.
        cells: every cell as text; headings may repeat.
        lead: how many columns name the row; they are set flush left.
        step: how many of the other columns belong together.
        notes: explanations below the table, a paragraph each.
        numbers: the same content for machines, a row a cell.
    """

    name: str
    caption: tuple[str, ...]
    cells: pd.DataFrame
    lead: int
    step: int
    notes: tuple[str, ...]
    numbers: pd.DataFrame

    def text(self) -> str:
        """For the terminal, at most `TERMINAL_WIDTH` wide where names allow it."""
        blocks = "\n\n".join(self._plain(block) for block in self._blocks())
        caption, notes = ("\n".join(map(_wrap, part)) for part in (self.caption, self.notes))
        return "\n\n".join(filter(None, (caption, blocks, notes))) + "\n"

    def markdown(self) -> str:
        """A pipe table between its caption and its notes."""
        safe = self.cells.map(_markdown)
        safe.columns = [_markdown(name) for name in self.cells.columns]
        body = self._headed(safe, "pipe")
        notes = "\n".join(f"- {_markdown(note)}" for note in self.notes)
        return "\n\n".join(filter(None, (_markdown(" ".join(self.caption)), body, notes))) + "\n"

    def csv(self) -> str:
        """One line a row and architecture, numbers only; what is unknown is empty."""
        return self.numbers.to_csv(index=False, lineterminator="\n")

    def latex(self, label: str = "") -> str:
        """A floating table for the packages booktabs and inputenc (utf8).

        Args:
            label: what `ref` finds it by; the name of the table by default.
        """
        safe = self.cells.map(_latex)
        safe.columns = [_latex(name) for name in self.cells.columns]
        caption = _latex(" ".join(self.caption))
        body = self._headed(safe, "latex_raw")
        for rule in ("top", "mid", "bottom"):
            body = body.replace(r"\hline", rf"\{rule}rule", 1)
        lines = [
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{label or self.name}}}",
            body,
            *(rf"\par\footnotesize {_latex(note)}" for note in self.notes),
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def _blocks(self) -> list[pd.DataFrame]:
        """The whole table, or, where that is too wide, evenly cut groups of its columns."""
        pairs = max((self.cells.shape[1] - self.lead) // self.step, 1)
        for count in range(1, pairs):
            blocks = [self._block(part) for part in _cut(range(pairs), count)]
            if max(map(self._width, blocks)) <= TERMINAL_WIDTH:
                return blocks
        return [self._block(part) for part in _cut(range(pairs), pairs)]

    def _block(self, pairs: range) -> pd.DataFrame:
        first, last = (self.lead + self.step * i for i in (pairs.start, pairs.stop))
        return self.cells.iloc[:, [*range(self.lead), *range(first, last)]]

    def _width(self, block: pd.DataFrame) -> int:
        return max(map(len, self._plain(block).splitlines()))

    def _plain(self, cells: pd.DataFrame) -> str:
        """A table for the terminal, its headings set as a row: tabulate pads real ones."""
        headed = [list(cells.columns), *cells.to_numpy().tolist()]
        rule, heads, *lines, _ = self._set(headed, "simple", [])
        return "\n".join([heads, rule, *lines])

    def _headed(self, cells: pd.DataFrame, style: str) -> str:
        return "\n".join(self._set(cells.to_numpy().tolist(), style, list(cells.columns)))

    def _set(self, lines: list[list[str]], style: str, heads: list[str]) -> list[str]:
        from tabulate import tabulate

        columns = max(map(len, lines), default=0)
        sides = ["left"] * self.lead + ["right"] * (columns - self.lead)
        body = tabulate(lines, headers=heads, tablefmt=style, disable_numparse=True, colalign=sides)
        return [line.rstrip() for line in body.splitlines()]


def all_tables(summary: Summary) -> list[Table]:
    """The tables of one context: accuracies, details, audit, and what was learned."""
    tables = [main_table(summary), details_table(summary)]
    more = (audit_table(summary), shortcut_table(summary))
    return [*tables, *(table for table in more if len(table.cells))]


def main_table(summary: Summary) -> Table:
    """Final clean test accuracy and drop: a row a method, two columns an architecture."""
    usual = usual_seeds(summary)
    heads = [name for column in summary.columns for name in (str(column), "drop")]
    lines = []
    for row in summary.rows:
        line = [*row_names(summary, row), row.budget]
        for column in summary.columns:
            group, control = summary.group(row, column), summary.control(row, column)
            line += [accuracy(group, control, usual), _drop(row, group, control)]
        lines.append(line)
    cells, marked = settle(lines)
    caption = (
        f"Clean test accuracy after the last epoch in percent, {over_seeds(usual)}; drop against "
        f"{CONTROL} in percentage points, paired by seed."
    )
    return Table(
        name="main",
        caption=(caption, *scale(summary)),
        cells=frame([*row_heads(summary), "budget", *heads], cells),
        lead=len(row_heads(summary)) + 1,
        step=2,
        notes=(*marked, *_main_notes(summary, cells)),
        numbers=_numbers(summary, main_numbers),
    )


def details_table(summary: Summary) -> Table:
    """What stands behind the accuracies: train accuracy, the oracle's peak, number, cost."""
    usual = usual_seeds(summary)
    scored = any(_separability(group).n for group in summary.groups.values())
    heads = [
        *row_heads(summary),
        "architecture",
        "train %",
        "peak (oracle) %",
        "n",
        *([SEPARABLE] if scored else []),
        "gradient images",
        "seconds",
    ]
    lines = []
    for row, column in _cells(summary):
        group, control = summary.group(row, column), summary.control(row, column)
        if not group.done and not group.failed:
            continue
        score = _decimals(_percent(_separability(group).mean), 1)
        lines.append(
            [
                *row_names(summary, row),
                str(column),
                _figure(group, control, "final_train_acc"),
                _figure(group, control, "peak_test_acc") if group.done else MISSING,
                str(len(group.done)),
                *([score] if scored else []),
                _whole(group.spread("crafting_gradient_images").mean),
                _whole(group.spread("seconds").mean),
            ]
        )
    cells, marked = settle(lines)
    caption = (
        f"Behind the accuracies: train accuracy after the last epoch and peak test accuracy in "
        f"percent, {over_seeds(usual)}; number n of victims; images through a gradient while "
        "crafting; seconds of training a victim."
    )
    notes = [PEAK_NOTE, *([SEPARABLE_NOTE] if scored else []), *marked, *_failures(summary)]
    return Table(
        name="details",
        caption=(caption, *scale(summary)),
        cells=frame(heads, cells),
        lead=len(row_heads(summary)) + 1,
        step=1,
        notes=tuple(notes),
        numbers=_numbers(summary, _details_numbers, ["crafting_gradient_images"]),
    )


def audit_table(summary: Summary) -> Table:
    """How far the released 8-bit images lie from the clean ones, a row a method."""
    heads = ["method", "budget", "max l∞", "max l2", "max l0", "changed %", "NaN", "constant"]
    audits = {row: audit for row in _methods(summary) if (audit := _audit(summary, row))}
    lines = [
        [
            summary.method_label(row),
            row.budget,
            _linf(audit.get("max_linf")),
            _decimals(audit.get("max_l2"), 3),
            _whole(audit.get("max_l0")),
            _decimals(_percent(audit.get("share_changed")), 1),
            _whole(audit.get("nan")),
            _whole(audit.get("constant_images")),
        ]
        for row, audit in audits.items()
    ]
    caption = (
        "Released images against clean ones after rounding to 8 bits: the largest norm of any "
        "image (l2 in units of [0, 1], l0 in pixels), the share of components changed, and the "
        "numbers of NaN values and of images of one colour."
    )
    return Table(
        name="audit",
        caption=(caption, *scale(summary)),
        cells=frame(heads, lines),
        lead=2,
        step=len(heads) - 2,
        notes=(),
        numbers=_audit_numbers(summary, audits),
    )


def shortcut_table(summary: Summary) -> Table:
    """Whether victims learned the shortcut: their accuracy on test images that carry it."""
    names = row_heads(summary)
    heads = [*names, "architecture", "clean %", "own %", "next %", "followed %", "n"]
    keys = ("own_acc", "next_acc", "next_followed")
    lines, numbers = [], []
    for row, column in _cells(summary):
        group = summary.group(row, column)
        found = [r for r in group.done if r.get("shortcut")]
        if not found:
            continue
        doubts = flags(replace(group, done=tuple(found)), summary.control(row, column))
        spreads = [
            Spread.of(record["final_test_acc"] for record in found),
            *(Spread.of(record["shortcut"][key] for record in found) for key in keys),
        ]
        shown = [Number(percent(spread), doubts) for spread in spreads]
        lines.append([*row_names(summary, row), str(column), *shown, str(len(found))])
        means = zip(("final_test_acc", *keys), (s.mean for s in spreads), strict=True)
        told = {"n": len(found), "flags": flag_names(doubts)}
        numbers.append(cell_names(summary, row, column) | dict(means) | told)
    cells, marked = settle(lines)
    caption = (
        "Did the victims learn the shortcut? Accuracy in percent on clean test images, on test "
        "images that carry their own class's perturbation (own) and on such that carry the next "
        "class's (next), and how many of the latter are taken for that class (followed). The last "
        "three are of those test images that a point of the curve is taken on, and of protected "
        "classes only."
    )
    return Table(
        name="shortcut",
        caption=(caption, *scale(summary)),
        cells=frame(heads, cells),
        lead=len(names) + 1,
        step=len(heads) - len(names) - 1,
        notes=(SHORTCUT_NOTE, *marked) if lines else (),
        numbers=machine(numbers),
    )


# Captions and notes.


def scale(summary: Summary) -> list[str]:
    """The scale of a context in a sentence, and a second one where it is below the paper's."""
    context, settings = summary.context, summary.context.settings
    widths = sorted({column.width for column in summary.columns}, reverse=True)
    parts = [
        f"{context.dataset}, {context.train_images} training and {_tests(summary)} test images",
        f"recipe {context.recipe_label}, {_epochs(settings.get('epochs'))}",
        f"width {', '.join(map(width_text, widths))}",
        context.precision,
        f"crafting seed {context.craft_seed}",
        *([f"poison ratio {context.poison_ratio:g}"] if context.poison_ratio != 1 else []),
        *_protected(summary),
        *([f"{context.holdout} images held out"] if context.holdout else []),
        *_only_defense(summary),
        *_common_epsilon(summary),
        f"chance {100 * chance(summary):.3g} %",
    ]
    return ["; ".join(parts) + ".", *([SMALL_SCALE] if is_small(summary) else [])]


def chance(summary: Summary) -> float:
    """Accuracy of guessing."""
    return 1 / max(len(record["classes"]) for record in summary.records)


def _epochs(count: int | None) -> str:
    return "1 epoch" if count == 1 else f"{'?' if count is None else count} epochs"


def _tests(summary: Summary) -> str:
    return " or ".join(map(str, sorted({record["test_images"] for record in summary.records})))


def _only_defense(summary: Summary) -> list[str]:
    """The defense, where it has no column of its own."""
    (name, label), *others = summary.defenses
    if others:
        return []
    return ["no defense" if name == "none" else f"defense {label}"]


def _protected(summary: Summary) -> list[str]:
    """The only classes that are protected, by name."""
    chosen = summary.context.protected_classes
    if not chosen:
        return []
    classes = next((r["classes"] for r in summary.records), [])
    names = [str(classes[index]) if index < len(classes) else str(index) for index in chosen]
    return [f"protected classes {', '.join(names)}"]


def is_small(summary: Summary) -> bool:
    """Whether less was trained than its paper trains: its recipe, images, epochs or width."""
    settings = summary.context.settings
    return (
        summary.context.recipe not in PUBLISHED
        or settings.get("train_images") is not None
        or settings.get("epochs", math.inf) < PUBLISHED[summary.context.recipe]
        or any(column.width < PAPER_WIDTH for column in summary.columns)
    )


def _common_epsilon(summary: Summary) -> list[str]:
    """The radius of all l-inf methods, if they share one; radii of 0 belong to controls."""
    rows = [row for row in summary.rows if row.method != CONTROL and row.norm == "linf"]
    budgets = {row.budget for row in rows if row.epsilon}
    return [f"l∞ methods keep {budgets.pop().split()[-1]}"] if len(budgets) == 1 else []


def usual_seeds(summary: Summary) -> int:
    """The number of victims of a complete cell; a cell with another number says so."""
    return max((len(g.done) + len(g.failed) for g in summary.groups.values()), default=0)


def over_seeds(usual: int) -> str:
    """What a cell is of, where a complete one has so many victims."""
    if usual == 1:
        return "1 victim seed"
    return f"mean ± sample standard deviation over {usual} victim seeds"


def _main_notes(summary: Summary, lines: list[list[str]]) -> Iterator[str]:
    yield from _failures(summary)
    if any(MISSING in line for line in lines):
        yield f"{MISSING}: not run, or nothing to compare with."
    yield from _deviations(summary)
    yield from defense_notes(summary)
    yield from _unused_budgets(summary)
    yield from _trainings(summary)
    if summary.superseded:
        one = summary.superseded == 1
        count = "1 older record" if one else f"{summary.superseded} older records"
        yield f"{count} of the same cells {'is' if one else 'are'} left out."


def _unused_budgets(summary: Summary) -> Iterator[str]:
    """Methods whose steps end before their l-inf budget does: a larger one changes nothing."""
    from bench.budget import fraction

    for row in _methods(summary):
        reached = _audit(summary, row).get("max_linf")
        if row.norm != "linf" or reached is None or not isinstance(row.epsilon, float):
            continue
        if reached < row.epsilon - 1 / 255 - 1e-9:
            yield (
                f"{summary.method_label(row)}: no component moves by more than "
                f"{fraction(reached)} of its {fraction(row.epsilon)}."
            )


def _failures(summary: Summary) -> Iterator[str]:
    """Failed cells by the last line of their traceback."""
    named = []
    for row, column in _cells(summary):
        *defense, method = row_names(summary, row)
        place = " ".join([method, "on", str(column), *(f"under {name}" for name in defense)])
        named.append((place, summary.group(row, column)))
    return failures(named)


def failures(named: Iterable[tuple[str, Group]]) -> Iterator[str]:
    """Which victims of named groups failed or could not be run, a line for each reason."""
    cells: dict[str, list[str]] = defaultdict(list)
    for place, group in named:
        for record in group.failed:
            cells[last_line(record["error"])].append(f"{place}, seed {record['seed']}")
    for error, names in cells.items():
        kind = "not run" if error.startswith(NOT_RUN) else "failed"
        yield f"{kind}: {'; '.join(names)}: {error.removeprefix(NOT_RUN)}"


def last_line(error: str | None) -> str:
    """The last line of a traceback that says anything."""
    lines = [line.strip() for line in (error or "").splitlines() if line.strip()]
    return lines[-1] if lines else "no traceback recorded"


def _deviations(summary: Summary) -> Iterator[str]:
    """The settings in which a method departs from its paper, a line a method."""
    for row in _methods(summary):
        yield from deviations(summary.method_label(row), _records_of(summary, row))


def deviations(label: str, records: Iterable[Record], but: Collection[str] = ()) -> Iterator[str]:
    """A line on the settings in which the records of one method depart from its paper.

    Args:
        label: of the method.
        records: of it.
        but: settings to leave out.
    """
    found: dict[str, list[Any]] = {}
    for record in records:
        found.update(record["method_deviations"])
    pairs = [
        f"{name} {value_text(ours, name)} (paper {value_text(theirs, name)})"
        for name, (ours, theirs) in sorted(found.items())
        if name not in but
    ]
    if pairs:
        yield f"{label}: {', '.join(pairs)}"


def defense_notes(summary: Summary) -> Iterator[str]:
    """The settings of every defense that has any, and what else its records say of it."""
    found: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for (row, _), group in summary.groups.items():
        found[summary.defense_of(row)] += group.done + group.failed
    for name in summary.defenses:
        records = found[name]
        words = dict.fromkeys(word for one in records for word in one.get("defense_notes", []))
        parts = [_defense_settings(records), _facts(records), ", ".join(words)]
        if any(parts):
            yield f"{name[1]}: {'; '.join(filter(None, parts))}"


def _defense_settings(records: Iterable[Record]) -> str:
    """All settings of a defense, with the paper's where they depart from it."""
    settings: dict[str, Any] = {}
    paper: dict[str, Any] = {}
    for record in records:
        settings.update(record["defense_settings"])
        # Older records do not tell.
        for name, (ours, theirs) in record.get("defense_deviations", {}).items():
            settings[name], paper[name] = ours, theirs
    return ", ".join(
        f"{name} {value_text(value, name)}"
        + (f" (paper {value_text(paper[name], name)})" if name in paper else "")
        for name, value in settings.items()
    )


def _facts(records: Iterable[Record]) -> str:
    """What can be said of a defense beforehand; it may depend on the number of images."""
    found: dict[str, set[float]] = defaultdict(set)
    for record in records:
        for name, value in record.get("defense_facts", {}).items():
            found[name].add(value)
    return ", ".join(
        f"{name} {' or '.join(dict.fromkeys(map(value_text, sorted(values))))}"
        for name, values in found.items()
    )


def _trainings(summary: Summary) -> Iterator[str]:
    """The settings in which an architecture is trained otherwise than the recipe says."""
    for column in summary.columns:
        # What all defenses share is the architecture's; a defense may depart from more.
        found: dict[str, dict[str, Any]] = {}
        for row in summary.rows:
            group = summary.group(row, column)
            for record in group.done + group.failed:
                found.setdefault(summary.defense_of(row)[1], {}).update(record["training"])
        plain = min(found.values(), key=len, default={})
        if plain:
            yield f"{column}: trained with {_pairs(plain)}"
        for defense, settings in found.items():
            if settings != plain:
                yield f"{column} under {defense}: trained with {_pairs(settings)}"


def _pairs(settings: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value_text(value, name)}" for name, value in sorted(settings.items())
    )


# Rows and cells.


def _cells(summary: Summary) -> Iterator[tuple[Row, Column]]:
    return ((row, column) for row in summary.rows for column in summary.columns)


def _methods(summary: Summary) -> list[Row]:
    """The first row of every method: what is crafted does not depend on the defense."""
    first: dict[tuple[Any, ...], Row] = {}
    for row in summary.rows:
        first.setdefault((row.method, row.method_settings, row.norm, row.epsilon), row)
    return list(first.values())


def _records_of(summary: Summary, row: Row) -> list[Record]:
    """All records of a row's method, whatever the defense."""
    mine = (row.method, row.method_settings, row.norm, row.epsilon)
    return [
        record
        for (other, _), group in summary.groups.items()
        if (other.method, other.method_settings, other.norm, other.epsilon) == mine
        for record in group.done + group.failed
    ]


def row_heads(summary: Summary) -> list[str]:
    """A single defense stands in the caption instead of in a column."""
    return ["defense", "method"] if len(summary.defenses) > 1 else ["method"]


def row_names(summary: Summary, row: Row) -> list[str]:
    """What stands in the columns that `row_heads` names."""
    names = [summary.defense_of(row)[1], summary.method_label(row)]
    return names[-len(row_heads(summary)) :]


def verdict(group: Group) -> str:
    """Why a cell has no number: nobody asked for it, it could not be run, or it failed."""
    if not group.failed:
        return MISSING
    return "not run" if all(map(not_run, group.failed)) else "failed"


def not_run(record: Record) -> bool:
    """Whether a cell without numbers lacked something from outside, and is no failure."""
    return last_line(record["error"]).startswith(NOT_RUN)


def accuracy(group: Group, control: Group, usual: int) -> str | Number:
    """A cell: mean and deviation in percent with marks, and n unless it is the usual one."""
    number = f" n={len(group.done)}" if len(group.done) != usual else ""
    return _figure(group, control, "final_test_acc", number)


def _figure(group: Group, control: Group, field: str, after: str = "") -> str | Number:
    """Mean and deviation of a field in percent with marks, or why there is none."""
    if not group.done:
        return verdict(group)
    return Number(percent(group.spread(field)), flags(group, control), after)


def _drop(row: Row, group: Group, control: Group) -> str | Number:
    """What is lost against the control, about which there may be doubts, too."""
    drop = group.drop(control)
    if row.method == CONTROL or not drop.n:
        return "" if row.method == CONTROL else MISSING
    doubts = flags_of_all([(group, control), (control, control)], drop.n)
    return Number(_decimals(_percent(drop.mean), 1), doubts)


def _separability(group: Group) -> Spread:
    """The shortcut score of what was crafted, of victims whose records tell it."""
    return Spread.of(record.get("separability") for record in group.done)


def percent(spread: Spread) -> str:
    """Mean and deviation of fractions, in percent; a single value stands alone."""
    if not spread.n:
        return MISSING
    mean = _decimals(100 * spread.mean, 1)
    return mean if spread.n == 1 else f"{mean} ± {100 * spread.sd:.1f}"


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _decimals(value: float | None, digits: int) -> str:
    if value is None or math.isnan(value):
        return MISSING
    # Adding zero turns the "-0.0" of a tiny negative number into "0.0".
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def _whole(value: float | None) -> str:
    """A count with its thousands apart, for instance 1,250,000."""
    return MISSING if value is None or math.isnan(value) else f"{value:,.0f}"


def _linf(value: float | None) -> str:
    from bench.budget import fraction

    return MISSING if value is None else fraction(value)


def frame(heads: list[str], lines: list[list[str]]) -> pd.DataFrame:
    """The cells of a table; headings may repeat."""
    import pandas as pd

    return pd.DataFrame(lines, columns=heads, dtype=object)


# Numbers for machines.


def _numbers(summary: Summary, of: Any, counts: Collection[str] = ()) -> pd.DataFrame:
    """What `of` computes of each row and column, below the names and the scale of the cell."""
    lines = []
    for row, column in _cells(summary):
        group, control = summary.group(row, column), summary.control(row, column)
        if group.done or group.failed:
            lines.append({**cell_names(summary, row, column), **of(row, group, control)})
    return machine(lines, counts)


def machine(numbers: Iterable[Mapping[str, Any]], counts: Collection[str] = ()) -> pd.DataFrame:
    """Rows of numbers as a frame.

    Args:
        numbers: a row each.
        counts: columns of whole numbers, which stay whole where rows have none.
    """
    import pandas as pd

    made = pd.DataFrame(list(numbers))
    return made.astype({name: "Int64" for name in counts if name in made})


def cell_names(summary: Summary, row: Row, column: Column) -> dict[str, Any]:
    """The names and the scale of a cell, for machines."""
    context = summary.context
    return {
        "dataset": context.dataset,
        "train_images": context.train_images,
        "recipe": context.recipe_label,
        "epochs": context.settings.get("epochs"),
        "precision": context.precision,
        "poison_ratio": context.poison_ratio,
        "craft_seed": context.craft_seed,
        "defense": summary.defense_of(row)[1],
        "method": summary.method_label(row),
        "norm": row.norm,
        "epsilon": _radius(row),
        "arch": column.arch_label,
        "width": column.width,
    }


def _radius(row: Row) -> float | str | None:
    """The radius for machines; several, of a sum of budgets, as "0.0314+1"."""
    if isinstance(row.epsilon, tuple):
        return "+".join(f"{epsilon:.4g}" for epsilon in row.epsilon)
    return row.epsilon


def main_numbers(row: Row, group: Group, control: Group) -> dict[str, Any]:
    """Numbers of victims, test accuracy and drop of a cell, for machines."""
    drop = Group().drop(control) if row.method == CONTROL else group.drop(control)
    return {
        "n": len(group.done),
        "failed": len(group.failed),
        **hundredths("test_acc_percent", group.spread("final_test_acc")),
        **hundredths("drop_points", drop),
        "drop_n": drop.n,
        "flags": flag_names(flags(group, control)),
    }


def _details_numbers(row: Row, group: Group, control: Group) -> dict[str, Any]:
    images = group.spread("crafting_gradient_images").mean
    score = _separability(group)
    return {
        "n": len(group.done),
        "failed": len(group.failed),
        **hundredths("train_acc_percent", group.spread("final_train_acc")),
        **hundredths("peak_oracle_percent", group.spread("peak_test_acc")),
        "crafting_gradient_images": None if math.isnan(images) else round(images),
        "training_seconds": round(group.spread("seconds").mean, 2),
        **({"separability": score.mean} if score.n else {}),
        "flags": flag_names(flags(group, control)),
    }


def hundredths(name: str, spread: Spread) -> dict[str, float]:
    """Mean and deviation of fractions in hundredths, without the dust of binary fractions."""
    return {name: round(100 * spread.mean, 4), f"{name}_sd": round(100 * spread.sd, 4)}


def _audit(summary: Summary, row: Row) -> dict[str, float]:
    """One audit of a method: counts and maxima at their worst, means and shares averaged."""
    records = _records_of(summary, row)
    # Victims of one crafted set repeat its audit; each set counts once.
    audits = {record["crafted_key"]: record["audit"] for record in records if record["audit"]}
    values: dict[str, list[float]] = defaultdict(list)
    for audit in audits.values():
        for name, value in audit.items():
            if value is not None:
                values[name].append(value)
    return {
        name: Spread.of(found).mean if name.startswith(("mean", "share")) else max(found)
        for name, found in sorted(values.items())
    }


def _audit_numbers(summary: Summary, audits: dict[Row, dict[str, float]]) -> pd.DataFrame:
    lines = [
        {"method": summary.method_label(row), "norm": row.norm, "epsilon": _radius(row), **audit}
        for row, audit in audits.items()
    ]
    return machine(lines)


# Text for each format.


def _wrap(text: str) -> str:
    return textwrap.fill(text, TERMINAL_WIDTH, break_long_words=False, break_on_hyphens=False)


def _cut(items: range, count: int) -> list[range]:
    """`count` runs of nearly equal length."""
    size = math.ceil(len(items) / count)
    return [items[start : start + size] for start in range(0, len(items), size)]


_MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\|*_<`[~"})

_LATEX = str.maketrans(
    {
        **{c: f"\\{c}" for c in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "[": "{[}",
        "±": r"$\pm$",
        "−": "$-$",
        "×": r"$\times$",
        "∞": r"$\infty$",
        "·": r"$\cdot$",
        "–": "--",
        "†": r"$\dagger$",
        "‡": r"$\ddagger$",
        "‖": r"$\Vert$",
        "◊": r"$\diamond$",
        "↑": r"$\uparrow$",
        "⊂": r"$\subset$",
        "°": r"$^\circ$",
    }
)


def _markdown(text: str) -> str:
    return text.translate(_MARKDOWN)


def _latex(text: str) -> str:
    return text.translate(_LATEX)


def join(tables: Iterable[Table]) -> str:
    """Several tables for the terminal, one below the other."""
    return "\n\n".join(table.text() for table in tables)

"""What the curve of held-out released images tells a trainer, as in SEP's Figure 4.

Released images that are kept from training say whether a network learned the shortcut: on
protected ones it is as good as ever while it fails on clean images. The difference is a suspicion,
for which a trainer needs clean test images. The same curve, for which nothing clean is needed,
also tells when to stop.

Held-out images are evaluated as they were released, like test images: what a defense does to
training images before training (`prepare`) is not done to them. Prepared, they would differ from
test images by the preparation, too, and clean victims would be under suspicion for it. They are
kept from training only where `--holdout` asks for it, since fewer training images would change
every other number.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.record import CONTROL, PREPARES
from bench.reports.cells import (
    cell_names,
    defense_phrase,
    first_to_last,
    peak_of,
    row_heads,
    row_names,
    verdict,
)
from bench.reports.flags import Flag, Number, flag_names, flags, flags_of_all, settle
from bench.reports.notes import PEAK_NOTE, failures, known, over_seeds, scale, usual_seeds
from bench.reports.plots import GREY, Style, brief, entitle, nth_style, plain_style
from bench.reports.summary import CONTROLS, Column, Group, Record, Row, Spread, Summary
from bench.reports.table import MISSING, Table, frame, hundredths, machine, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENOUGH = 10
"""So many victims of a method are needed for a curve of its own."""

INSIDE = 6
"""So many curves are named inside the picture; more, beside it."""

DETECTOR_NOTE = "The detector needs clean test images; it trains as the victim does."
AUC_NOTE = (
    f"AUC: how often a victim of the method is more suspicious than one of {CONTROL} of the same "
    "architecture under the same defense, ties counted half; 50 % is guessing. n: victims of both, "
    "seeds and architectures together; a few can tell no more than perfect from imperfect."
)
PARTLY_NOTE = (
    "Not all images are protected, so some that were held out are clean, and dilute the suspicion: "
    "a trainer cannot tell them apart."
)


PREPARED_NOTE = (
    "Under {defenses} only training images are prepared; those that were held out are evaluated as "
    "they were released, as test images are."
)


def suspicion(record: Record) -> float | None:
    """Accuracy on held-out released images minus that on clean test images, after training.

    Where only some images are protected, others are held out, too: a trainer cannot tell them
    apart.
    """
    held, clean = _held_out(record), record["final_test_acc"]
    return None if held is None or clean is None else held - clean


def area(positives: Sequence[float], negatives: Sequence[float]) -> float | None:
    """The share of pairs in which the positive is higher, ties counted half; the area under ROC."""
    return area_within([(positives, negatives)])


def area_within(strata: Iterable[tuple[Sequence[float], Sequence[float]]]) -> float | None:
    """The same share where positives and negatives are only compared within their stratum.

    Networks differ in accuracy: across architectures it would tell those apart.
    """
    gaps = [_round(a) - _round(b) for yes, no in strata for a in yes for b in no]
    return sum((gap > 0) + (gap == 0) / 2 for gap in gaps) / len(gaps) if gaps else None


def roc(positives: Sequence[float], negatives: Sequence[float]) -> list[tuple[float, float]]:
    """False and true positive rates from the strictest threshold to none.

    Without ties the line through them is a staircase; a tie between both kinds is a slope, so that
    the area below is `area`.
    """
    yes, no = ([_round(value) for value in values] for values in (positives, negatives))
    points = [(0.0, 0.0)]
    for threshold in sorted({*yes, *no}, reverse=True):
        rates = (sum(v >= threshold for v in values) / len(values) for values in (no, yes))
        points.append((next(rates), next(rates)))
    return points


def _round(value: float) -> float:
    """Ties must not be decided by the last bit of a float."""
    return round(value, 9)


def _held_out(record: Record) -> float | None:
    return record["curve"][-1].get("holdout_acc") if record["curve"] else None


# Tables.


def holdout_tables(summary: Summary) -> list[Table]:
    """Detection and early stopping; none where no victim was evaluated on held-out images."""
    if not any(_held_out(record) is not None for record in summary.records):
        return []
    return [detection_table(summary), early_stopping_table(summary)]


def detection_table(summary: Summary, *, train: bool = False) -> Table:
    """How suspicious the victims of every method are, a row a method and defense.

    Args:
        summary: of one context.
        train: whether there is the train accuracy, too, as beside a picture of all three.
    """
    columns = [*(["train %"] if train else []), "held-out %", "clean test %", "suspicion", "AUC %"]
    heads = [*row_heads(summary), *columns, "n"]
    lines, numbers = [], []
    for row in summary.rows:
        groups = [summary.group(row, column) for column in summary.columns]
        whole = Group(failed=tuple(record for group in groups for record in group.failed))
        found, failed = _victims(groups), len(whole.failed)
        if not found and not failed:
            continue
        strata = [_stratum(summary, row, column) for column in summary.columns]
        controls = sum(len(others) for own, others in strata if own)
        held = Spread.of(map(_held_out, found))
        clean = Spread.of(record["final_test_acc"] for record in found)
        gap = Spread.of(map(suspicion, found))
        auc = None if row.method == CONTROL else area_within(strata)
        count = f"{len(found)} : {controls}" if row.method != CONTROL else f"{len(found)}"
        doubts = _doubts(summary, row)
        trained = [Spread.of(one["final_train_acc"] for one in found)] if train else []
        shown = [Number(percent(spread), doubts) for spread in (*trained, held, clean, gap)]
        lines.append(
            [
                *row_names(summary, row),
                *(shown if found else [verdict(whole), *[MISSING] * (len(shown) - 1)]),
                "" if row.method == CONTROL else _auc(auc, summary, row),
                count,
            ]
        )
        names = cell_names(summary, row, summary.columns[0])
        numbers.append(
            {
                **{key: names[key] for key in names if key not in ("arch", "width")},
                "n": len(found),
                "failed": failed,
                "control_n": controls,
                **(hundredths("train_acc_percent", *trained) if train else {}),
                **hundredths("holdout_acc_percent", held),
                **hundredths("test_acc_percent", clean),
                **hundredths("suspicion_points", gap),
                "auc": auc,
                "flags": flag_names(doubts),
            }
        )
    cells, marked = settle(lines)
    caption = (
        f"Can the protection be detected? Accuracy in percent {'in training, ' if train else ''}on "
        "released images that were held out of training, and on clean test images, after the last "
        f"epoch; suspicion is the difference {'of these two ' if train else ''}in percentage "
        f"points. {_over(summary)}"
    )
    return Table(
        name="detection",
        caption=(caption, *scale(summary)),
        cells=frame(heads, cells),
        lead=len(row_heads(summary)),
        step=len(columns) + 1,
        notes=(
            *(DETECTOR_NOTE, AUC_NOTE),
            *(*_partly(summary), *_prepared(summary)),
            *(*marked, *_notes(summary, cells)),
        ),
        numbers=machine(numbers),
    )


def _partly(summary: Summary) -> list[str]:
    """That held-out images are protected only in part, where they are."""
    context = summary.context
    return [PARTLY_NOTE] * (context.poison_ratio != 1 or bool(context.protected_classes))


def _prepared(summary: Summary, only: tuple[str, str] | None = None) -> list[str]:
    """That held-out images are not prepared as training images are, where those are.

    Args:
        summary: of one context.
        only: the defense that is shown, as in `Summary.defenses`; all if left out.
    """
    found = {
        summary.defense_of(row)
        for (row, _), group in summary.groups.items()
        if any(PREPARES in one.get("defense_notes", ()) for one in group.done)
    }
    labels = [one[1] for one in summary.defenses if one in found and only in (None, one)]
    return [PREPARED_NOTE.format(defenses=", ".join(labels))] if labels else []


def _doubts(summary: Summary, row: Row, *, controls: bool = False) -> list[Flag]:
    """About victims of all architectures, and the controls beside them if they count, too."""
    pairs = [
        (group, summary.control(row, column))
        for column in summary.columns
        if (group := summary.group(row, column)).done or group.failed
    ]
    pairs += [(control, control) for _, control in pairs] if controls else []
    # Architectures have seeds of their own; the fewest count.
    seeds = min((len(group.done) for group, _ in pairs if group.done), default=0)
    return flags_of_all(pairs, seeds)


def _auc(share: float | None, summary: Summary, row: Row) -> str | Number:
    if share is None:
        return MISSING
    return Number(f"{100 * share:.0f}", _doubts(summary, row, controls=True))


@dataclass(frozen=True)
class Stop:
    """What early stopping does to one victim.

    Attributes:
        last: test accuracy after the last epoch.
        epoch: the epoch of the highest held-out accuracy, the earliest of equals.
        picked: test accuracy there.
        best: the epoch of the highest test accuracy, the earliest of equals.
        peak: test accuracy there, an oracle.
    """

    last: float
    epoch: int
    picked: float
    best: int
    peak: float

    @classmethod
    def of(cls, record: Record) -> Stop | None:
        """From a record; None where epochs were not evaluated on held-out images."""
        tested = [p for p in record["curve"] if p.get("test_acc") is not None]
        held = [p for p in tested if p.get("holdout_acc") is not None]
        top = peak_of(record)
        if not held or top is None or record["final_test_acc"] is None:
            return None
        pick = max(held, key=lambda p: (p["holdout_acc"], -p["epoch"]))
        return cls(
            last=record["final_test_acc"],
            epoch=pick["epoch"],
            picked=pick["test_acc"],
            best=top["epoch"],
            peak=top["test_acc"],
        )


def early_stopping_table(summary: Summary) -> Table:
    """Whether stopping where held-out accuracy is highest helps against a protection."""
    names = [*row_heads(summary), "architecture"]
    heads = [*names, "last %", "picked %", "epoch", "peak (oracle) %", "epoch", "n"]
    lines, numbers = [], []
    for row in summary.rows:
        for column in summary.columns:
            group = summary.group(row, column)
            stops = [stop for record in group.done if (stop := Stop.of(record))]
            if not stops and not group.failed:
                continue
            doubts = flags(group, summary.control(row, column))
            place = [*row_names(summary, row), str(column)]
            lines.append([*place, *_stop_cells(stops, group, doubts)])
            numbers.append(_stop_numbers(summary, row, column, stops, doubts))
    cells, marked = settle(lines)
    caption = (
        f"Does early stopping help? Clean test accuracy in percent, "
        f"{over_seeds(usual_seeds(summary))}: after the last epoch; at the epoch of the highest "
        "accuracy on held-out released images (picked), the earliest of equals; and at its peak. "
        "Epochs from the first to the last of the seeds'."
    )
    return Table(
        name="early-stopping",
        caption=(caption, *scale(summary)),
        cells=frame(heads, cells),
        lead=len(names),
        step=6,
        notes=(
            *(PEAK_NOTE, *_thinned(summary), *_prepared(summary)),
            *(*marked, *_notes(summary, cells)),
        ),
        numbers=machine(numbers),
    )


def _stop_cells(stops: Sequence[Stop], group: Group, doubts: Sequence[Flag]) -> list[str | Number]:
    if not stops:
        return [verdict(group), MISSING, MISSING, MISSING, MISSING, "0"]
    return [
        Number(percent(Spread.of(stop.last for stop in stops)), doubts),
        Number(percent(Spread.of(stop.picked for stop in stops)), doubts),
        first_to_last(stop.epoch for stop in stops),
        Number(percent(Spread.of(stop.peak for stop in stops)), doubts),
        first_to_last(stop.best for stop in stops),
        str(len(stops)),
    ]


def _stop_numbers(
    summary: Summary, row: Row, column: Column, stops: Sequence[Stop], doubts: Sequence[Flag]
) -> dict[str, Any]:
    return {
        **cell_names(summary, row, column),
        "n": len(stops),
        "failed": len(summary.group(row, column).failed),
        **hundredths("last_percent", Spread.of(stop.last for stop in stops)),
        **hundredths("picked_percent", Spread.of(stop.picked for stop in stops)),
        "picked_epoch": Spread.of(stop.epoch for stop in stops).mean,
        **hundredths("peak_oracle_percent", Spread.of(stop.peak for stop in stops)),
        "peak_epoch": Spread.of(stop.best for stop in stops).mean,
        "flags": flag_names(doubts),
    }


def _thinned(summary: Summary) -> list[str]:
    """Why picked and peak are not measured as the last is."""
    images = summary.context.settings.get("curve_images")
    return [
        f"Test accuracies of all epochs but the last are over {images} test images, so that "
        "picked and peak may differ from last by chance alone; the peak, being the highest of "
        "many, is above it by that, too."
    ] * (images is not None)


def _victims(groups: Iterable[Group]) -> list[Record]:
    return [one for group in groups for one in group.done if suspicion(one) is not None]


def _suspicions(records: Iterable[Record]) -> list[float]:
    return [value for record in records if (value := suspicion(record)) is not None]


def _stratum(summary: Summary, row: Row, column: Column) -> tuple[list[float], list[float]]:
    """How suspicious a method's victims of an architecture are, and the control's beside them."""
    pair = summary.group(row, column), summary.control(row, column)
    own, others = (_suspicions(group.done) for group in pair)
    return own, others


def _over(summary: Summary) -> str:
    """What the victims of a row are."""
    many = len(summary.columns) > 1
    on = ", ".join(map(str, summary.columns))
    over = "seeds and architectures" if many else "seeds"
    return f"On {on}; mean ± sample standard deviation over {over}."


def _notes(summary: Summary, lines: list[list[str]]) -> Iterator[str]:
    yield from known(summary, lines)
    yield from failures(
        (f"{' under '.join(row_names(summary, row)[::-1])} on {column}", summary.group(row, column))
        for row in summary.rows
        for column in summary.columns
    )
    if any(MISSING in line for line in lines):
        yield f"{MISSING}: not run, or nothing to compare with."


# Pictures.


def roc_figures(summary: Summary) -> dict[str, Figure]:
    """ROC curves of the suspicion by defense and architecture; none with fewer than two of a kind.

    All protected victims of all methods are told from the control's; methods with many victims
    have a curve of their own, too.

    Returns:
        Figures by the label of their defense and the architecture.
    """
    figures = {}
    for (name, label), column in itertools.product(summary.defenses, summary.columns):
        rows = [row for row in summary.rows if summary.defense_of(row) == (name, label)]
        found = {row: _suspicions(summary.group(row, column).done) for row in rows}
        controls = [value for row in rows if row.method == CONTROL for value in found[row]]
        methods = {
            summary.method_label(row): there
            for row, there in found.items()
            if there and row.method not in CONTROLS
        }
        together = [value for there in methods.values() for value in there]
        if min(len(controls), len(together)) < 2:
            continue
        if len(methods) > 1:
            enough = {m: there for m, there in methods.items() if len(there) >= ENOUGH}
            methods = {f"all {len(methods)} methods": together, **enough}
        title = defense_phrase(summary, (name, label))
        place = f"{label} {column}"
        notes = [DETECTOR_NOTE, *_prepared(summary, (name, label))]
        figures[place] = _roc_figure(summary, methods, controls, f"{title} · {column}", notes)
    return figures


def _roc_figure(
    summary: Summary,
    curves: dict[str, list[float]],
    controls: list[float],
    title: str,
    notes: Sequence[str],
) -> Figure:
    from matplotlib.figure import Figure

    with plain_style():
        figure = Figure(figsize=(4.8 if len(curves) <= INSIDE else 7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        for place, (label, values) in enumerate(curves.items()):
            _draw_curve(axes, label, values, controls, place)
        axes.plot([0, 100], [0, 100], color=GREY, linestyle=":", linewidth=1)
        axes.set_xlim(-2, 102)
        axes.set_ylim(-2, 102)
        axes.set_aspect("equal")
        axes.set_xlabel(f"{CONTROL} victims taken for protected (%)")
        axes.set_ylabel("protected victims detected (%)")
        if len(curves) <= INSIDE:
            axes.legend(loc="lower right", frameon=False, fontsize=7)
        else:
            figure.legend(loc="outside right upper", frameon=False, fontsize=7)
        said = [
            "Suspicion: accuracy on held-out released images minus that on clean test images.",
            *notes,
            f"n = {len(controls)} victims of {CONTROL}; dotted: guessing.",
        ]
        entitle(figure, summary, f"detection · {title}", said)
    return figure


def _draw_curve(
    axes: Axes, label: str, values: Sequence[float], controls: Sequence[float], place: int
) -> None:
    """The first in black, since it is of all methods."""
    points, auc = roc(values, controls), area(values, controls) or 0.0
    look = nth_style(place - 1) if place else Style("#000000")
    axes.plot(
        [100 * false for false, _ in points],
        [100 * true for _, true in points],
        color=look.colour,
        linestyle=look.dashes,
        linewidth=1.8 if place == 0 else 1.1,
        label=f"{brief(label)}: AUC {100 * auc:.0f} % (n = {len(values)})",
    )

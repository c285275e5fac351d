"""What studies measured, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.recipe import PUBLISHED
from bench.reports.claims import half_width
from bench.reports.flags import (
    FEW,
    FEW_SEEDS,
    FLAGS,
    OTHERWISE,
    Flag,
    Number,
    flag_names,
    is_otherwise,
    settle,
)
from bench.reports.notes import SMALL_SCALE
from bench.reports.summary import Record, Spread
from bench.reports.table import Table, frame, machine

Named = Sequence[tuple[str, Record]]
"""Records of one study, each with what its figure calls its subject."""


def cosine_table(found: Named) -> Table:
    """Every pair of networks, and the mean of all pairs."""
    lines: list[list[str | Number]] = []
    numbers = []
    for subject, one in found:
        values, doubts = one["values"], doubts_of([one])
        names, cosines = values["networks"], values["cosines"]
        for a, first in enumerate(names):
            for b, second in enumerate(names[a + 1 :], a + 1):
                number = Number(f"{cosines[a][b]:.3f}", doubts)
                lines.append([subject, f"{first} / {second}", number])
                numbers.append(
                    {
                        "method": subject,
                        "a": first,
                        "b": second,
                        "cosine": cosines[a][b],
                        "images": values["images"],
                        "flags": flag_names(doubts),
                    }
                )
        if values["between"] is not None:
            mean = Number(f"{values['between']:.3f}", doubts)
            lines.append([subject, "mean of all pairs", mean])
    cells, marked = settle(lines)
    heads = ["networks of", "pair", "cosine"]
    notes = (cosine_note(found), *marked)
    caption = scale_of_studies(found)
    return Table("", caption, frame(heads, cells), 2, 1, notes, machine(numbers, ("images",)))


def cosine_note(found: Named) -> str:
    """What the cosines are means over."""
    counts = sorted({one["values"]["images"] for _, one in found})
    return (
        f"Mean over {' or '.join(map(str, counts))} clean training images of "
        "|<g_a, g_b>| / (||g_a|| ||g_b||); each network was trained once."
    )


def cross_training_table(found: Named) -> Table:
    """Accuracy on every set after the first and the last epoch, and what was never right."""
    lines: list[list[str | Number]] = []
    numbers = []
    for subject, group in by_subject(found).items():
        doubts = doubts_of(group)
        for label in group[0]["values"]["never_correct"]:
            curves = [one["values"]["curve"] for one in group]
            spreads = {
                "first": Spread.of(curve[0]["sets"][label] for curve in curves),
                "last": Spread.of(curve[-1]["sets"][label] for curve in curves),
                "never_correct": never_correct(group, label),
            }
            shown = [Number(percent_with_half(spread), doubts) for spread in spreads.values()]
            lines.append([subject, label, *shown, str(len(group))])
            told: dict[str, Any] = {"arch": subject, "images": label}
            for name, spread in spreads.items():
                half = half_width(spread)
                told |= {name: spread.mean, f"{name}_sd": spread.sd, f"{name}_half": half}
            numbers.append(told | {"n": len(group), "flags": flag_names(doubts)})
    cells, marked = settle(lines)
    heads = ["architecture", "images", "first %", "last %", "never right %", "n"]
    notes = (f"{CROSS_NOTE} {INTERVAL_NOTE}", *marked)
    caption = scale_of_studies(found)
    return Table("", caption, frame(heads, cells), 2, 1, notes, machine(numbers, ("n",)))


CROSS_NOTE = (
    "Accuracy on training images, with their true labels and without augmentation, after the first "
    "and the last epoch of a training on the clean ones; and the share that was right after no "
    "epoch (in the picture in brackets)."
)
INTERVAL_NOTE = "Mean over n such trainings, of several ± half of its 95 % interval."


def never_correct(group: Sequence[Record], label: str) -> Spread:
    """The share of a set's images that were right at no epoch."""
    return Spread.of(one["values"]["never_correct"][label] for one in group)


def percent_with_half(spread: Spread) -> str:
    """A mean of fractions in percent, with half of its interval where there is one."""
    half = half_width(spread)
    return f"{100 * spread.mean:.1f}" + ("" if half != half else f" ± {100 * half:.1f}")


def by_subject(found: Named) -> dict[str, list[Record]]:
    """Records of several seeds together; only those that looked at the same sets."""
    groups: dict[str, list[Record]] = {}
    for subject, one in found:
        groups.setdefault(subject, []).append(one)
    return groups


def doubts_of(group: Sequence[Record]) -> list[Flag]:
    """The doubts about what a study measured on networks that were trained for it.

    Args:
        group: one record for each time that they were trained.
    """
    rounded = any(is_otherwise(one) for one in group)
    found = {OTHERWISE: rounded, FEW: len(group) < FEW_SEEDS}
    return [flag for flag in FLAGS if found.get(flag)]


def scale_of_studies(found: Named) -> tuple[str, ...]:
    """The scale of studies in a sentence, and a second one where it is below the papers'."""
    first = found[0][1]
    settings = first["recipe_settings"]
    images, epochs = settings.get("train_images"), settings.get("epochs", 0)
    parts = [
        f"{first['dataset']}, {'all' if images is None else images} training images",
        f"recipe {first['recipe_label']}, {epochs} epochs",
        f"usual width {settings.get('width', 1):g}",
        first["precision"],
        *([] if first["craft_seed"] is None else [f"crafting seed {first['craft_seed']}"]),
    ]
    whole = images is None and settings.get("width", 1) >= 1
    full = whole and epochs >= PUBLISHED.get(first["recipe"], epochs + 1)
    return ("; ".join(parts) + ".", *([] if full else [SMALL_SCALE.partition(",")[0] + "."]))


def theory_table(values: Mapping[str, Any]) -> Table:
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

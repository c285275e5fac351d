"""What has to hold before the numbers of a campaign say anything: wanted beside measured.

Without a defense protected victims must have learned what they were given, clean ones must
classify well, and what the sets were crafted with must be as the method's paper supposes.
"""

from __future__ import annotations

from typing import Any

from bench.reports.cells import cell_names, figure_cell
from bench.reports.flags import LEARNED, UNLEARNED, Number, flag_names, flags, settle
from bench.reports.notes import over_seeds, scale, usual_seeds
from bench.reports.summary import CONTROLS, Group, Spread, Summary
from bench.reports.table import MISSING, Table, decimals, frame, hundredths, machine

COSINE = 0.25
"""Wanted of the mean absolute cosine between the gradients of a method's checkpoints, at most."""
OF_SETS = ("rounds", "checkpoint_cosine", "checkpoint_acc_min", "checkpoint_acc_max")
"""Figures that an audit of a crafted set may hold, accuracies as fractions."""
HEADS = ("rounds", f"checkpoints' cosine (≤ {COSINE:g})", "checkpoints' accuracy %")

NOTE = (
    f"In brackets what is wanted. Train accuracy: {100 * LEARNED:.0f} % says that a shortcut was "
    f"learned; below that {UNLEARNED.mark} says where it was not. rounds: of crafting, until the "
    "method was content. checkpoints: mean absolute cosine between the gradients of a method's "
    "networks, and the accuracy of the worst and the best of them."
)


def premises_table(summary: Summary) -> Table:
    """A row a method and architecture without a defense; empty where nothing is protected."""
    plain = [row for row in summary.rows if row.defense == "none"]
    shown = [row for row in plain if row.method not in CONTROLS[1:]]
    lines: list[list[str | Number]] = []
    numbers: list[dict[str, Any]] = []
    for row in shown if any(row.method not in CONTROLS for row in shown) else []:
        for column in summary.columns:
            group, control = summary.group(row, column), summary.control(row, column)
            if not group.done:
                continue
            of_sets = _of_sets(group)
            cells = [figure_cell(group, control, f"final_{of}_acc") for of in ("train", "test")]
            names = [summary.method_label(row), str(column)]
            lines.append([*names, *cells, *_texts(of_sets)])
            numbers.append(
                {
                    **cell_names(summary, row, column),
                    "n": len(group.done),
                    **hundredths("train_acc_percent", group.spread("final_train_acc")),
                    **hundredths("test_acc_percent", group.spread("final_test_acc")),
                    **{name: spread.mean for name, spread in of_sets.items() if spread.n},
                    "flags": flag_names(flags(group, control)),
                }
            )
    texts, marked = settle(lines)
    heads = ["method", "architecture", f"train % (≥ {100 * LEARNED:.0f})", "clean test %", *HEADS]
    # What nothing is known of has no column.
    known = [i for i in range(len(heads)) if i < 4 or any(line[i] != MISSING for line in texts)]
    caption = (
        "Premises: accuracy in percent on released training images and on clean test images, "
        f"without a defense, {over_seeds(usual_seeds(summary))}; and what sets were crafted with."
    )
    return Table(
        name="premises",
        caption=(caption, *scale(summary)),
        cells=frame([heads[i] for i in known], [[line[i] for i in known] for line in texts]),
        lead=2,
        step=1,
        notes=(NOTE, *marked),
        numbers=machine(numbers),
    )


def _of_sets(group: Group) -> dict[str, Spread]:
    """Figures of the crafted sets that victims were trained on, each set once."""
    audits = {one["crafted_key"]: one["audit"] or {} for one in group.done}
    return {name: Spread.of(audit.get(name) for audit in audits.values()) for name in OF_SETS}


def _texts(of_sets: dict[str, Spread]) -> list[str]:
    rounds, cosine, least, most = (of_sets[name].mean for name in OF_SETS)
    ends = f"{decimals(100 * least, 0)}–{decimals(100 * most, 0)}"
    return [decimals(rounds, 1), decimals(cosine, 2), ends if of_sets[OF_SETS[2]].n else MISSING]

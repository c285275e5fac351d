"""Measure the suite's speed on this machine, in about three minutes.

python -m bench.speed
python -m bench.speed --out results/speed/my-machine.json
python -m bench.speed --accuracy
python -m bench.speed --only defenses
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench.component import build, parse_one
from bench.data import Places, Splits, balanced_rows
from bench.device import choose_device, choose_precision, configure, describe
from bench.errors import UsageError
from bench.files import write_text
from bench.network import Precision
from bench.registry import DATASETS, RECIPES, ROOT
from bench.running.session import commit, cores
from bench.running.work import versions
from bench.speed import sections
from bench.speed.sections import Bench
from bench.store import check_writable

Row = tuple[str, str, str, str]
NAMES = {
    "eager": "a competent loop, fp32 channels last",
    "released": "the released way",
    "plain": "a plain loop, PIL and DataLoader, fp32",
}
AIMS = {("crafting", "released"): 5.0, ("crafting", "eager"): 2.5, ("training", "plain"): 2.5}
"""Targets that the suite has set itself, by section and contender."""


def main() -> int:
    """Run the sections, print a table, write JSON."""
    options = parser().parse_args()
    for name in ("rounds", "threads"):
        if getattr(options, name) < 1:
            print(f"error: --{name} must be 1 or more", file=sys.stderr)
            return 2
    try:
        if options.out:
            check_writable(Path(options.out).parent, "output", "--out")
        device = choose_device(options.device)
        fast = choose_precision(options.precision, "fast", device)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    exact: Precision = "fp32" if fast == "bf16" else fast  # TF32 would hold for baselines, too
    configure(exact, options.threads, device)
    splits, dataset = load(options.data_dir)
    print(f"{fast} on {describe(device)['name']}, {options.threads} threads, {dataset}")
    bench = Bench(splits.train, device, fast, options.rounds)
    chosen = options.only.split(",") if options.only else list(_plan(bench, options, dataset))
    if options.accuracy:
        chosen = ["accuracy"]
    found: dict[str, Any] = {
        "machine": describe(device),
        "threads": options.threads,
        "dataset": dataset,
        "versions": versions(),
        "commit": commit(),
    }
    plan = {**_plan(bench, options, dataset), **_long(bench, splits)}
    for name in chosen:
        if name not in plan:
            print(f"error: no section '{name}'; there are: {', '.join(plan)}", file=sys.stderr)
            return 2
    for number, name in enumerate(chosen, start=1):
        started = time.perf_counter()
        print(f"[{number}/{len(chosen)}] {name}", end="", file=sys.stderr, flush=True)
        found[name] = plan[name]()
        print(f": {time.perf_counter() - started:.0f} s", file=sys.stderr)
    print()
    headers = ("", "measured", "target", "met")
    print(tabulate(rows(found), headers, tablefmt="github", disable_numparse=True))
    if options.out:
        write_text(Path(options.out), json.dumps(found, indent=1) + "\n")
    return 0


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="python -m bench.speed", description=__doc__)
    add = made.add_argument
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--precision", default="auto", help="of the fast path (auto: bf16 where it is fast)")
    add("--threads", type=int, default=cores(), help="for PyTorch (all cores)")
    add("--rounds", type=int, default=2, help="how often contenders take turns (2)")
    add("--data-dir", default=str(ROOT / "data"), help="where CIFAR-10 lies; else synthetic images")
    add("--only", metavar="LIST", help="sections: crafting, training, training-quarter, ...")
    add("--accuracy", action="store_true", help="compare accuracies with a plain loop; long")
    add("--out", metavar="FILE", help="write the numbers as JSON")
    return made


def load(data: str) -> tuple[Splits, str]:
    """CIFAR-10 if it is there, else something of its shape."""
    places = Places(Path(data), ROOT / "store" / "datasets", download=False)
    try:
        source = build(DATASETS, parse_one("cifar10", DATASETS))
        return source.load(places), "cifar10"
    except UsageError:
        name = "synthetic:classes=10,train=10000,test=1000,size=32"
        return build(DATASETS, parse_one(name, DATASETS)).load(places), name


def _plan(bench: Bench, options: argparse.Namespace, dataset: str) -> dict[str, Callable[[], Any]]:
    """The sections; a GPU gets more images, since it needs more to be busy."""
    many = 40 if bench.device.type == "cuda" else 1
    return {
        "crafting": lambda: sections.crafting(bench, 1.0),
        "crafting-quarter": lambda: sections.crafting(bench, 0.25),
        "training": lambda: sections.training(bench, 1.0, 128, 256 * many),
        "training-quarter": lambda: sections.training(bench, 0.25, 64, 1280 * many),
        "adversarial": lambda: sections.adversarial(bench, 0.25, 64, 320 * many),
        "agreement": lambda: sections.agreement(bench),
        "closed-forms": lambda: sections.closed_forms(bench),
        "start-up": lambda: sections.start_up(Path(options.data_dir), dataset, bench.device),
    }


def _long(bench: Bench, splits: Splits) -> dict[str, Callable[[], Any]]:
    """Sections that run only when they are asked for."""
    many = 20 if bench.device.type == "cuda" else 1
    return {
        "defenses": lambda: sections.defenses(bench, 0.25, 64, 320 * many),
        "rounding": lambda: sections.rounding(bench, 0.25, 64, 128 * many),
        "accuracy": lambda: _accuracies(bench, splits),
    }


def _accuracies(bench: Bench, splits: Splits) -> list[Any]:
    """At quarter width by the recipe `quick`, and at full width for three of its epochs."""
    found = []
    for width, text, count in ((0.25, "quick", 5000), (1.0, "quick:epochs=3", 2500)):
        recipe = build(RECIPES, parse_one(text, RECIPES))
        part = splits.train.subset(balanced_rows(splits.train.labels, count))
        small = Bench(part, bench.device, bench.fast, bench.rounds)
        found.append(sections.accuracy(small, width, recipe, 3, splits.test))
    return found


def rows(found: dict[str, Any]) -> list[Row]:
    """The table, with the targets that the suite has set itself."""
    made: list[Row] = []

    def row(what: str, text: str, target: str = "", met: bool | None = None) -> None:
        made.append((what, text, target, {True: "yes", False: "no", None: ""}[met]))

    def ratio(what: str, values: list[float], aim: float | None) -> None:
        middle, low, high = values
        met = None if aim is None else middle >= aim
        text = f"{middle:.2f} x  ({low:.2f} to {high:.2f})"
        row(what, text, "" if aim is None else f"{aim:g} x", met)

    for name in ("crafting", "crafting-quarter", "training", "training-quarter"):
        if part := found.get(name):
            kind = name.partition("-")[0]
            unit = "gradients" if kind == "crafting" else "images"
            what = f"{kind}, rn18 x {part['width']:g}, {part['precision']}: {unit} a second"
            speed = part["images_per_second"]
            row(what, f"{speed['ours']:.0f}")
            for other, values in part["times"].items():
                what = f"  against {NAMES.get(other, other)} ({speed[other]:.0f})"
                ratio(what, values, AIMS.get((name, other)))
            share = part["share_of_convolutions"]
            what = f"  share of its convolutions alone ({part['convolutions_alone']:.0f})"
            aim = ("60 %", share >= 0.6) if name == "crafting" else ("", None)
            row(what, f"{share:.0%}", *aim)
            if "share_of_product" in part:
                row("  share of a matrix product's rate", f"{part['share_of_product']:.0%}")
                row("  SEP-FA-VR's gradients, projected", f"{part['hours_of_sep_fa_vr']:.3g} h")
            else:
                row("  a victim of 120 epochs, projected", f"{part['hours_of_a_victim']:.3g} h")
            if part["peak_memory"]:
                row("  peak memory on the device", f"{part['peak_memory'] / 2**30:.2f} GiB")
    if part := found.get("adversarial"):
        cost, low, high = part["cost"]
        text = f"{cost:.2f} x  ({low:.2f} to {high:.2f})"
        row("adversarial training, 10 steps, against plain", text, "8.5 x at most", cost <= 8.5)
    if part := found.get("defenses"):
        for name, one in part["defenses"].items():
            ratio(f"training under {name} (declared {one['declared']:.1f} x)", one["cost"], None)
            if one["prepare_seconds"] > 0.01:
                row("  preparation of 1000 images", f"{one['prepare_seconds']:.2f} s")
    if part := found.get("rounding"):
        speed, kernels = part["images_per_second"], part["instructions"]
        how = "PyTorch's kernels" if kernels else "float32 kernels on rounded operands"
        row(f"bf16 by {how}: images a second", f"{speed['ours']:.0f}")
        for other, name in (("pytorch", "PyTorch's kernels"), ("fp32", "fp32")):
            ratio(f"  against {name} ({speed[other]:.0f})", part["times"][other], None)
    if part := found.get("agreement"):
        steps = part["share_by_step"]
        what = f"signs of {part['precision']} like {part['against']}'s, by step"
        row(what, " ".join(f"{share:.0%}" for share in steps))
        weighted = " ".join(f"{share:.1%}" for share in part["share_by_step_weighted"])
        row("  weighted by size", weighted)
        row("  equal components at the end", f"{part['equal_at_the_end']:.0%}")
    if part := found.get("closed-forms"):
        for name, seconds in part["seconds"].items():
            row(f"{name} on 50 000 images", f"{seconds:.1f} s", "seconds", seconds < 10)
    if part := found.get("start-up"):
        row("--list", f"{part['list']:.2f} s", "0.5 s", part["list"] <= 0.5)
        cached = part["cached_grid"]
        row(f"a cached grid of {part['cells']} cells", f"{cached:.1f} s", "5 s", cached <= 5)
        first = part["first_step"]
        row("until the first training step", f"{first:.1f} s", "5 s", first <= 5)
    for part in found.get("accuracy", []):
        what = f"accuracy, rn18 x {part['width']:g}, {part['images']} images"
        for name in [key for key in part if isinstance(part[key], list)]:
            row(f"{what}: {name}", " ".join(f"{100 * value:.1f}" for value in part[name]))
    return made


if __name__ == "__main__":
    sys.exit(main())

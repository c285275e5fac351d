"""Measure the suite's speed on this machine, in about three minutes.

python -m bench.speed
python -m bench.speed --out results/speed/my-machine.json
python -m bench.speed --accuracy
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
from bench.registry import DATASETS, RECIPES, ROOT
from bench.session import commit, cores
from bench.speed import sections
from bench.speed.sections import Bench
from bench.work import versions

Row = tuple[str, str, str, str]


def main() -> int:
    """Run the sections, print a table, write JSON."""
    options = parser().parse_args()
    try:
        device = choose_device(options.device)
        fast = choose_precision(options.precision, "fast", device)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    configure(fast, options.threads, device)
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
    plan = {**_plan(bench, options, dataset), "accuracy": lambda: _accuracies(bench, splits)}
    for name in chosen:
        if name not in plan:
            print(f"error: no section '{name}'; there are: {', '.join(plan)}", file=sys.stderr)
            return 2
        started = time.perf_counter()
        found[name] = plan[name]()
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
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
    add("--rounds", type=int, default=3, help="how often contenders take turns (3)")
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
        "crafting": lambda: sections.crafting(bench),
        "training": lambda: sections.training(bench, 1.0, 128, 256 * many),
        "training-quarter": lambda: sections.training(bench, 0.25, 64, 1280 * many),
        "adversarial": lambda: sections.adversarial(bench, 0.25, 64, 320 * many),
        "agreement": lambda: sections.agreement(bench),
        "closed-forms": lambda: sections.closed_forms(bench),
        "start-up": lambda: sections.start_up(Path(options.data_dir), dataset),
    }


def _accuracies(bench: Bench, splits: Splits) -> list[Any]:
    """At quarter width by the recipe `quick`, and at full width for four of its epochs."""
    found = []
    for width, text, count in ((0.25, "quick", 5000), (1.0, "quick:epochs=4", 2500)):
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

    def ratio(what: str, values: list[float], least: float) -> None:
        middle, low, high = values
        text = f"{middle:.2f} x  ({low:.2f} to {high:.2f})"
        row(what, text, f"{least:g} x", middle >= least)

    if part := found.get("crafting"):
        speed = part["images_per_second"]
        row("crafting, rn18: gradients a second", f"{speed['ours']:.0f}")
        row("  a competent loop, fp32 channels last", f"{speed['eager']:.1f}")
        row("  the released way", f"{speed['released']:.1f}")
        row("  convolutions alone", f"{part['convolutions_alone']:.0f}")
        ratio("  against the released way", part["times_released"], 5)
        ratio("  against the competent loop", part["times_eager"], 2.5)
        share = part["share_of_convolutions"]
        row("  share of the convolutions' ceiling", f"{share:.0%}", "60 %", share >= 0.6)
        row("  share of a matrix product's rate", f"{part['share_of_product']:.0%}")
        row("  SEP-FA-VR on CIFAR-10", f"{part['hours_of_sep_fa_vr']:.3g} h")
        row("  peak memory", f"{part['peak_memory'] / 2**30:.2f} GiB")
    for name in ("training", "training-quarter"):
        if part := found.get(name):
            for contender, speed in part["images_per_second"].items():
                what = f"training, rn18 x {part['width']:g}, {contender}: images a second"
                row(what, f"{speed:.0f}")
            ratio("  against the plain loop", part["times_plain"], 2.5)
            row("  share of the convolutions' ceiling", f"{part['share_of_convolutions']:.0%}")
            row("  a victim of 120 epochs on CIFAR-10", f"{part['hours_of_a_victim']:.3g} h")
            row("  peak memory", f"{part['peak_memory'] / 2**30:.2f} GiB")
    if part := found.get("adversarial"):
        cost, low, high = part["cost"]
        text = f"{cost:.2f} x  ({low:.2f} to {high:.2f})"
        row("adversarial training, 10 steps, against plain", text, "8.5 x at most", cost <= 8.5)
    if part := found.get("agreement"):
        steps = part["share_by_step"]
        what = f"signs of {part['precision']} like {part['against']}'s, by step"
        row(what, " ".join(f"{share:.0%}" for share in steps))
        weighted = " ".join(f"{share:.0%}" for share in part["share_by_step_weighted"])
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

"""What is measured, one function a section; each returns plain numbers, fit for JSON."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from bench import bfloat16
from bench.component import build, parse_one
from bench.crafting import Crafting
from bench.data import ImageDataset
from bench.defense import Defense
from bench.device import peak_memory, reset_peak_memory
from bench.grid import Grid
from bench.network import PASSES_PER_TRAINING_STEP, Arch, Network, Precision, freeze
from bench.pgd import Iterate
from bench.recipe import Recipe
from bench.registry import ARCHS, DEFENSES, METHODS, RECIPES, ROOT
from bench.release import release
from bench.running.runner import run
from bench.running.session import cores
from bench.seeding import stream
from bench.speed import ceiling
from bench.speed.baselines import EagerCrafting, PlainTraining, ReleasedCrafting, targets
from bench.speed.processes import SideBySide, one_thread, untouched
from bench.speed.timing import Contender, Rates, take_turns
from bench.stack import build_defense
from bench.train import Training
from bench.train import accuracy as share_correct

CHECKPOINTS, AT_ONCE = 15, 3
"""Resident networks, and how many of them a turn visits."""
PAPER_IMAGES, PAPER_TESTS, PAPER_EPOCHS = 50_000, 10_000, 120


@dataclass(frozen=True)
class Bench:
    """What every section works with.

    Attributes:
        train: clean training images, 32 x 32.
        device: where to compute.
        fast: the precision of the fast path there.
        rounds: how often contenders take turns.
    """

    train: ImageDataset
    device: torch.device
    fast: Precision
    rounds: int

    @property
    def exact(self) -> Precision:
        """What the fast path is compared with."""
        return "fp32"

    def some(self, count: int) -> ImageDataset:
        """The first images."""
        return self.train.subset(torch.arange(min(count, len(self.train))))

    def network(self, width: float, seed: int = 0) -> Network:
        """A fresh ResNet-18."""
        train = self.train
        return _rn18(width).network(
            len(train.classes), train.image_size, train.mean, train.std, stream(seed, "speed")
        )


def crafting(bench: Bench, width: float) -> dict[str, Any]:
    """Input gradients per second by SEP's own code and by others, beside the ceiling."""
    small = dataclasses.replace(bench, train=bench.some(_job(bench, width).chunk))
    count, device = len(small.train), bench.device
    reset_peak_memory(device)
    ours = our_crafting(small, width)
    ours()
    peak = peak_memory(device)
    with TemporaryDirectory() as folder, ExitStack() as stack:
        contenders: dict[str, Contender] = {"ours": ours}
        contenders["eager"] = _apart(stack, eager_crafting, small, width)
        if width == 1:
            more = dataclasses.replace(bench, train=bench.some(20 * count))
            contenders["released"] = _apart(stack, released_crafting, more, width, folder, count)
        if device.type == "cpu":
            both = SideBySide(cores(), one_thread, our_crafting, small, width)
            contenders["ours, side by side"] = stack.enter_context(both)
        rates = take_turns(contenders, device, bench.rounds)
    top = _ceiling(bench, bench.network(width), count, bench.fast)
    flop = _gradient_flop(bench, width)
    method = build(METHODS, parse_one("sep-fa-vr", METHODS))
    return {
        "width": width,
        "precision": bench.fast,
        "chunk": count,
        "images_per_second": _medians(rates),
        "times": {name: _ratio(rates, "ours", name) for name in contenders if name != "ours"},
        "convolutions_alone": top.gradients,
        "share_of_convolutions": rates["ours"] / top.gradients,
        "product_flops": top.products,
        "share_of_product": rates["ours"] * flop / top.products,
        "hours_of_sep_fa_vr": method.gradient_images(PAPER_IMAGES) / rates["ours"] / 3600,
        "peak_memory": peak if device.type == "cuda" else None,
    }


def eager_crafting(bench: Bench, width: float) -> Contender:
    """A competent loop, on as many networks as ours visits a turn."""
    networks = (bench.network(width, seed) for seed in range(AT_ONCE))
    return EagerCrafting(networks, bench.train.images, bench.train.labels, bench.device)


def released_crafting(bench: Bench, width: float, folder: str, batch: int) -> Contender:
    """The released way."""
    networks = (bench.network(width, seed) for seed in range(CHECKPOINTS))
    return ReleasedCrafting(networks, bench.train, bench.device, Path(folder), batch, cores())


def plain_training(bench: Bench, width: float, batch_size: int) -> Contender:
    """A plain loop, an epoch a turn."""
    network, workers = bench.network(width), min(cores(), 4)
    plain = PlainTraining(network, bench.train, _steady(batch_size), bench.device, workers)
    return lambda: float(sum(plain.epoch()))


def _apart(stack: ExitStack, make: Callable[..., Contender], *arguments: Any) -> Contender:
    """A baseline in a process of its own: what ours sets for a whole process must not help it."""
    threads = torch.get_num_threads()
    return stack.enter_context(SideBySide(1, untouched, make, threads, *arguments))


def our_crafting(bench: Bench, width: float) -> Contender:
    """SEP's own code, three of fifteen resident checkpoints a call, so that a turn is short."""
    models = [
        freeze(bench.network(width, seed), bench.device, bench.fast) for seed in range(CHECKPOINTS)
    ]
    turns = cycle([models[k : k + AT_ONCE] for k in range(0, CHECKPOINTS, AT_ONCE)])
    method = build(METHODS, parse_one(f"sep:checkpoints={AT_ONCE},steps=1", METHODS))
    whole = _job(bench, width)
    job = dataclasses.replace(
        whole, dataset=bench.some(whole.chunk), mask=whole.mask[: whole.chunk]
    )

    def work() -> float:
        part = next(turns)
        method.craft(dataclasses.replace(job, trained=lambda number: part))
        return float(AT_ONCE * len(job.dataset))

    return work


def _job(bench: Bench, width: float) -> Crafting:
    """A crafting job on all images, with the fast precision."""
    return Crafting(
        dataset=bench.train,
        rows=torch.arange(len(bench.train)),
        mask=torch.ones(len(bench.train), dtype=torch.bool),
        seed=0,
        device=bench.device,
        precision=bench.fast,
        trained=lambda number: [],
        flop_per_gradient=_gradient_flop(bench, width),
    )


def training(bench: Bench, width: float, batch_size: int, images: int) -> dict[str, Any]:
    """Training images per second: ours, ours in float32, and a plain loop."""
    bench = dataclasses.replace(bench, train=bench.some(images))
    reset_peak_memory(bench.device)
    ours = our_training(bench, width, batch_size, images)
    ours()
    peak = peak_memory(bench.device)
    contenders = {"ours": ours}
    if bench.exact != bench.fast:
        exact = dataclasses.replace(bench, fast=bench.exact)
        contenders[f"ours, {bench.exact}"] = our_training(exact, width, batch_size, images)
    with ExitStack() as stack:
        contenders["plain"] = _apart(stack, plain_training, bench, width, batch_size)
        if bench.device.type == "cpu":
            arguments = (our_training, bench, width, batch_size, images)
            both = SideBySide(cores(), one_thread, *arguments)
            contenders["ours, side by side"] = stack.enter_context(both)
        rates = take_turns(contenders, bench.device, bench.rounds)
    top = _ceiling(bench, bench.network(width), batch_size, bench.fast)
    # A test image is a forward pass, a third of a training image.
    epoch = PAPER_IMAGES + PAPER_TESTS / PASSES_PER_TRAINING_STEP
    return {
        "width": width,
        "precision": bench.fast,
        "batch_size": batch_size,
        "images_per_second": _medians(rates),
        "times": {name: _ratio(rates, "ours", name) for name in contenders if name != "ours"},
        "convolutions_alone": top.training,
        "share_of_convolutions": rates["ours"] / top.training,
        "hours_of_a_victim": PAPER_EPOCHS * epoch / rates["ours"] / 3600,
        "peak_memory": peak if bench.device.type == "cuda" else None,
    }


def our_training(
    bench: Bench, width: float, batch_size: int, images: int, defense: str = "none"
) -> Contender:
    """An epoch on some images."""
    some = bench.some(images)
    made = _training(
        *(bench, width, some, _steady(batch_size)),
        *(build_defense(parse_one(defense, DEFENSES), "quick"), bench.fast),
    )

    def work() -> float:
        made.run_epoch()
        return float(len(some))

    return work


def _steady(batch_size: int) -> Recipe:
    """A recipe whose rate never changes."""
    return Recipe(batch_size=batch_size, warmup_epochs=0, lr=0.01, milestones=(), epochs=10**5)


def adversarial(bench: Bench, width: float, batch_size: int, images: int) -> dict[str, Any]:
    """Adversarial training of ten steps as a multiple of plain training."""
    contenders = {
        "plain": our_training(bench, width, batch_size, images),
        "at": our_training(bench, width, batch_size, images, "at-linf"),
    }
    rates = take_turns(contenders, bench.device, bench.rounds)
    return {"width": width, "cost": _ratio(rates, "plain", "at")}


def defenses(
    bench: Bench, width: float, batch_size: int, images: int, names: Sequence[str] = ()
) -> dict[str, Any]:
    """The time of a training step under each defense as a multiple of plain training's.

    Each defense takes turns with plain training alone, so that few networks are alive at once.

    Returns:
        For each defense `cost` (median, least, greatest), what it `declares`, and the seconds that
        its preparation takes for 1000 images; by names as typed, all defenses that need nothing.
    """
    found = {}
    for name in names or DEFENSES.match("all"):
        defense = build_defense(parse_one(name, DEFENSES), "quick")
        started = time.perf_counter()
        defense.prepare(bench.some(1000), stream(0, "speed"))
        prepared = time.perf_counter() - started
        contenders = {
            "plain": our_training(bench, width, batch_size, images),
            "defended": our_training(bench, width, batch_size, images, name),
        }
        rates = take_turns(contenders, bench.device, bench.rounds, least=0.5)
        found[name] = {
            "cost": _ratio(rates, "plain", "defended"),
            "declared": defense.cost(),
            "prepare_seconds": prepared,
        }
    return {"width": width, "batch_size": batch_size, "defenses": found}


def agreement(bench: Bench, steps: int = 8, images: int = 100) -> dict[str, Any]:
    """How often bf16 steps into the direction of float32, step by step of SEP.

    The networks are quarter-width checkpoints of a short training. Both directions are taken at
    each place of one path, which follows float32; and both go their own way from the start, to
    see how far apart they end.
    """
    recipe = build(RECIPES, parse_one("quick", RECIPES))
    made = _training(bench, 0.25, bench.some(2500), recipe, Defense(), bench.exact)
    exact, fast = [], []
    for _ in range(3):
        made.run_epoch()
        exact.append(freeze(made.network, bench.device, bench.exact))
        fast.append(freeze(made.network, bench.device, bench.fast))
    some = bench.some(images)
    labels = targets(some.labels, len(some.classes)).to(bench.device)
    method = build(METHODS, parse_one("sep", METHODS))

    def direction(models: list[Network], x: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for objective in method.objectives(SimpleNamespace(trained=lambda number: models)):
            total += objective.gradient(x, labels)
        return total

    start = some.images.to(bench.device)
    path, alone = (Iterate(start, method.budget) for _ in range(2))
    shares, weighted = [], []
    for _ in range(steps):
        one, other = direction(exact, path.images), direction(fast, path.images)
        same = (one.sign() == other.sign()).float()
        shares.append(float(same.mean()))
        weighted.append(float((same * one.abs()).sum() / one.abs().sum()))
        path.descend(one, method.step_size)
        alone.descend(direction(fast, alone.images), method.step_size)
    apart = (path.delta - alone.delta).abs() * 255
    return {
        "precision": bench.fast,
        "against": bench.exact,
        "share_by_step": shares,
        "share_by_step_weighted": weighted,
        "equal_at_the_end": float((apart < 0.5).float().mean()),
        "levels_apart_at_the_end": float(apart.mean()),
    }


def rounding(bench: Bench, width: float, batch_size: int, images: int) -> dict[str, Any]:
    """What bfloat16 costs in training on this machine: our way, PyTorch's own kernels, float32."""

    def by_pytorch() -> float:
        with patch.object(bfloat16, "computes_bf16", return_value=True):
            return theirs()

    rounded, exact = (dataclasses.replace(bench, fast=fast) for fast in ("bf16", "fp32"))
    theirs = our_training(rounded, width, batch_size, images)
    contenders: dict[str, Contender] = {
        "ours": our_training(rounded, width, batch_size, images),
        "pytorch": by_pytorch,
        "fp32": our_training(exact, width, batch_size, images),
    }
    rates = take_turns(contenders, bench.device, bench.rounds)
    return {
        "width": width,
        "batch_size": batch_size,
        "instructions": bfloat16.computes_bf16(bench.device),
        "images_per_second": _medians(rates),
        "times": {name: _ratio(rates, "ours", name) for name in ("pytorch", "fp32")},
    }


def closed_forms(bench: Bench) -> dict[str, Any]:
    """Seconds to craft and release 50 000 images with methods that need no network."""
    repeats = -(-PAPER_IMAGES // len(bench.train))
    rows = torch.arange(len(bench.train)).repeat(repeats)[:PAPER_IMAGES]
    whole = bench.train.subset(rows)
    mask = torch.ones(len(whole), dtype=torch.bool)
    found = {}
    with TemporaryDirectory() as folder:
        for name in ("noise", "cuda"):
            method = build(METHODS, parse_one(name, METHODS))
            started = time.perf_counter()
            job = Crafting(
                *(whole, rows, mask, 0, bench.device, bench.exact, lambda number: []),
                scratch=Path(folder),
            )
            release(whole, method.craft(job), mask, method.budget)
            found[name] = time.perf_counter() - started
    return {"seconds": found}


def start_up(data: Path, dataset: str, device: torch.device) -> dict[str, Any]:
    """Seconds until a user sees something."""
    run_bench = [sys.executable, str(ROOT / "run_bench.py")]
    with TemporaryDirectory() as folder:
        places = ("--store", f"{folder}/store", "--results-dir", f"{folder}/results")
        small = "quick:epochs=1,train_images=20,width=0.03"
        seeds = 40
        source = "synthetic:train=20,test=20"
        grid = Grid("noise,noise:law=gaussian,cuda,sham", "rn18", "none", source, small)
        grid = dataclasses.replace(grid, seeds=tuple(range(seeds)), device="cpu")
        outcome = run(
            grid, results_dir=Path(folder) / "results", store=Path(folder) / "store", quiet=True
        )
        again = [
            *("--methods", grid.methods, "--archs", "rn18", "--dataset", source),
            *("--recipe", small, "--seeds", f"0-{seeds - 1}", "--device", "cpu", *places),
        ]
        first = (
            "import sys, os; sys.path.insert(0, sys.argv.pop(1)); import run_bench, bench.train\n"
            "whole = bench.train.Training.run_epoch\n"
            "bench.train.Training.run_epoch = lambda self, advance: whole(\n"
            "    self, lambda images: os._exit(0))\n"
            "run_bench.main(sys.argv[1:])"
        )
        clean = [
            *("--methods", "clean", "--archs", "rn18", "--workers", "1", "--offline"),
            *("--dataset", dataset, "--data-dir", str(data), "--device", str(device), *places),
        ]
        start = [sys.executable, "-c", first, str(ROOT), *clean]
        _run(start)  # decodes the images and writes the control's; the second start has them
        return {
            "list": median(_run([*run_bench, "--list"]) for _ in range(3)),
            "cells": len(outcome.cells),
            "cached_grid": _run([*run_bench, *again]),
            "first_step": _run(start),
        }


def accuracy(bench: Bench, width: float, recipe: Recipe, seeds: int, test: ImageDataset) -> Any:
    """Final test accuracies of a plain loop and of ours, on the same images and settings."""
    found: dict[str, list[float]] = {"plain": [], "ours": [], f"ours, {bench.exact}": []}
    for seed in range(seeds):
        torch.manual_seed(seed)
        plain = PlainTraining(bench.network(width, seed), bench.train, recipe, bench.device, 1)
        plain.network.to(memory_format=torch.contiguous_format)
        for _ in range(recipe.epochs):
            sum(plain.epoch())
        ours: dict[str, Precision] = {"ours": bench.fast, f"ours, {bench.exact}": bench.exact}
        for name, precision in ours.items():
            made = _training(bench, width, bench.train, recipe, Defense(), precision, seed)
            for _ in range(recipe.epochs):
                made.run_epoch()
            found[name].append(share_correct(made.confusion(test)))
        made = _training(bench, width, bench.train, recipe, Defense(), bench.exact, seed)
        made.network = plain.network.to(memory_format=torch.channels_last)
        found["plain"].append(share_correct(made.confusion(test)))
    return {"width": width, "recipe": recipe.settings(), "images": len(bench.train), **found}


def _training(
    bench: Bench,
    width: float,
    dataset: ImageDataset,
    recipe: Recipe,
    defense: Defense,
    precision: Precision,
    seed: int = 0,
) -> Training:
    return Training(_rn18(width), dataset, recipe, defense, seed, "victim", bench.device, precision)


def _rn18(width: float) -> Arch:
    return build(ARCHS, parse_one(f"rn18:width={width}", ARCHS))


def _ceiling(bench: Bench, network: Network, count: int, precision: Precision) -> ceiling.Ceiling:
    images = torch.rand(count, 3, *bench.train.image_size, device=bench.device)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return ceiling.measure(network.to(bench.device), images, dtype, bench.device)


def _gradient_flop(bench: Bench, width: float) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        bench.network(width).eval()(torch.zeros(1, 3, *bench.train.image_size))
    return 2.0 * counter.get_total_flops()


def _medians(rates: Rates) -> dict[str, float]:
    return {name: rates[name] for name in rates.rounds}


def _ratio(rates: Rates, name: str, other: str) -> list[float]:
    """The median, the smallest and the largest of the rounds' ratios."""
    return [rates.ratio(name, other), *rates.spread(name, other)]


def _run(command: list[str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - started

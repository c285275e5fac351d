"""What a run would cost, before it is started."""

from __future__ import annotations

import time
from typing import Any, TextIO

import torch
import torch.nn.functional as F

from bench.device import configure, gpus
from bench.network import PASSES_PER_TRAINING_STEP
from bench.running.plan import CostTable, make_plan
from bench.running.progress import duration
from bench.running.runner import Loading, share_out
from bench.running.session import Opened, Session
from bench.terminal import printable


def plan_facts(
    session: Session, workers: int | None, threads: int | None, stream: TextIO
) -> dict[str, Any]:
    """What would run, what is there, and the time and disk it would take; fit for JSON.

    The time comes from a few training steps of the grid's first architecture on this machine.

    Args:
        session: what would run.
        workers: as for a run.
        threads: as for a run.
        stream: told what loading does, where that takes long.
    """
    opened = session.open(Loading(stream))
    plan = make_plan(opened.cells, opened.data, opened.store, session.results, opened.studies)
    session, workers = share_out(session, opened.expansion.device, workers, threads)
    workers = max(1, min(workers, len(plan.tasks)))
    # Processes on one GPU share what it gives.
    devices = min(workers, len(gpus(opened.expansion.device)) or workers)
    rate = measured_rate(opened, session.threads) * devices if plan.tasks else 1.0
    longest = max(plan.urgency().values(), default=0.0)
    seconds = max(plan.flop / rate, longest * workers / rate)
    return {
        "recipe": opened.expansion.recipe_label,
        "device": str(opened.expansion.device),
        "precision": opened.expansion.precision,
        "workers": workers,
        "cells": len(plan.cells) + len(plan.studies),
        "recorded": len(plan.recorded),
        "cached": plan.cached,
        "tasks": [
            {"kind": task.kind, "title": task.title, "seconds": task.flop * workers / rate}
            for task in plan.tasks.values()
        ],
        "seconds": seconds,
        "bytes": sum(task.bytes for task in plan.tasks.values())
        + workers * max((task.temporary for task in plan.tasks.values()), default=0.0),
        "store": str(session.store),
        "notes": plan.notes,
    }


def measured_rate(opened: Opened, threads: int) -> float:
    """Operations a second of one process in training, from a few steps on this machine."""
    expansion, data = opened.expansion, opened.data
    configure(expansion.precision, threads, expansion.device)
    arch, train = expansion.archs[0][1], data.train
    network = arch.network(
        len(train.classes), train.image_size, train.mean, train.std, torch.Generator()
    ).to(expansion.device)
    network = network.to(memory_format=torch.channels_last)
    network.precision = expansion.precision
    count = min(expansion.recipe.batch_size, len(train))
    images = torch.rand(count, 3, *train.image_size, device=expansion.device)
    labels = train.labels[:count].to(expansion.device)

    def step() -> None:
        F.cross_entropy(network(images), labels).backward()
        if expansion.device.type == "cuda":
            torch.cuda.synchronize(expansion.device)

    step()
    started, steps = time.perf_counter(), 0
    while steps < 3 or time.perf_counter() - started < 0.5:
        step()
        steps += 1
    work = PASSES_PER_TRAINING_STEP * CostTable(data)(arch) * count * steps
    return work / (time.perf_counter() - started)


def text_of(facts: dict[str, Any]) -> str:
    """A plan for people."""
    lines = [
        f"recipe {facts['recipe']}, {facts['precision']} on {facts['device']}, "
        f"{facts['workers']} at a time",
        f"{facts['cells']} cells, {facts['recorded']} recorded already",
    ]
    lines += [f"  in the store   {title}" for title in facts["cached"]]
    lines += [f"  {duration(task['seconds']):>12}   {task['title']}" for task in facts["tasks"]]
    lines += [f"note: {note}" for note in facts["notes"]]
    if facts["tasks"]:
        lines.append(
            f"about {duration(facts['seconds'])} and {facts['bytes'] / 1e6:.0f} MB in "
            f"{facts['store']}"
        )
    else:
        lines.append("nothing to do: everything is recorded")
    return "\n".join(map(printable, lines))

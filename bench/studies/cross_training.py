"""Do protected images still fool a network that was trained on clean ones, at every epoch of it?

Chen et al., *Self-Ensemble Protection*, ICLR 2023, Figure 2a: a network is trained on the clean
images, and after each epoch it is asked for the fixed protected training images, with their true
labels and without augmentation. A protected image that is never taken for what it is, at no epoch
of a training that had no part in it, is one that such a training does not learn: the paper's
reading of why its protection works. The clean images, which are trained on, stand for comparison.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from bench.data import ImageDataset
from bench.errors import UsageError
from bench.grid import Cell, TrainingData
from bench.network import PASSES_PER_TRAINING_STEP, Arch
from bench.record import CONTROL
from bench.registry import STUDIES
from bench.study import Study, StudyJob, Tools, protections
from bench.train import Training

CLEAN = "clean"
"""What the training images themselves are called among the sets."""


@STUDIES.register("cross-training")
@dataclass(frozen=True)
class CrossTraining(Study):
    """Accuracy of a network in clean training on protected training images, epoch by epoch.

    Its values: `curve`, a row an epoch with `epoch`, `train_acc` as it is trained, and `sets`, the
    accuracy on every set of training images by label, those without perturbation among them;
    `never_correct`, by label the share of the images that were right at no epoch.
    """

    paper: ClassVar[str] = "Chen et al., Self-Ensemble Protection, ICLR 2023"

    def jobs(self, cells: Sequence[Cell]) -> list[StudyJob]:
        """One for each clean training of the grid; all its crafted sets are shown to it."""
        if any(cell.holdout for cell in cells):
            raise UsageError(f"{self.name} trains on all images; leave --holdout out")
        crafted = tuple(protections(cells).items())
        return [
            StudyJob(self, cell.labels["arch"], cell, crafted=crafted, victim=cell)
            for cell in cells
            if cell.crafting.method.name == CONTROL and cell.defense.name == "none"
        ]

    def work(self, job: StudyJob, data: TrainingData, cost: Callable[[Arch], float]) -> float:
        """A training, and all sets after each of its epochs."""
        assert job.victim is not None
        recipe, sets = job.victim.recipe, len(job.crafted) + 1
        images = len(data.train) * recipe.epochs
        return cost(job.victim.arch) * images * (PASSES_PER_TRAINING_STEP + sets)

    def check(self, values: Mapping[str, Any]) -> None:
        """Every epoch and the last line have an accuracy of every set."""
        labels = list(values["never_correct"])
        rows = [*(row["sets"] for row in values["curve"]), values["never_correct"]]
        if not labels or len(rows) < 2:
            raise ValueError("no set or no epoch")
        for row in rows:
            if not all(0 <= row[label] <= 1 for label in labels):
                raise ValueError("an accuracy outside 0 to 1")
        if not all(isinstance(row["epoch"], int) for row in values["curve"]):
            raise TypeError("epochs must be numbers")

    def measure(self, tools: Tools) -> dict[str, Any]:
        """Train as the control of the grid is trained, and look after every epoch."""
        job, clean, victim = tools.job, tools.dataset, tools.job.victim
        assert victim is not None
        sets = {CLEAN: clean} | {label: tools.released(label) for label, _ in job.crafted}
        training, curve, ever = _resumed(tools, sets)
        forward = tools.cost(victim.arch)
        per_image = PASSES_PER_TRAINING_STEP * forward

        def pack() -> dict[str, Any]:
            return {"training": training.state(), "curve": json.dumps(curve), "ever": ever}

        tools.monitor.advance(
            (per_image + forward * len(sets)) * len(clean) * training.epoch  # of before
        )
        while training.epoch < victim.recipe.epochs:
            row = training.run_epoch(lambda images: tools.monitor.advance(per_image * images))
            shares = {}
            for label, dataset in sets.items():
                right = training.guesses(dataset).cpu() == clean.labels
                ever[label] |= right
                shares[label] = right.double().mean().item()
                tools.monitor.advance(forward * len(dataset))
            curve.append({"epoch": row["epoch"], "train_acc": row["train_acc"], "sets": shares})
            tools.save(pack)
        never = {label: 1 - seen.double().mean().item() for label, seen in ever.items()}
        return {"curve": curve, "never_correct": never}


Progress = tuple[Training, list[dict[str, Any]], dict[str, torch.Tensor]]


def _resumed(tools: Tools, sets: dict[str, ImageDataset]) -> Progress:
    """Training, curve and which images were ever right, as kept last or from the beginning."""
    training = tools.begin()
    state = tools.load()
    if state:
        try:
            training.load_state(state["training"])
            return training, json.loads(state["curve"]), {one: state["ever"][one] for one in sets}
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError):
            training = tools.begin()
    nothing = torch.zeros(len(tools.dataset), dtype=torch.bool)
    return training, [], {label: nothing.clone() for label in sets}

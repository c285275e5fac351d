"""What has to be done for a grid, in which order, and what is there already."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench import record
from bench.component import build, canonical, parse_one
from bench.errors import UsageError
from bench.grid import Cell, CraftJob, SurrogateJob, TrainingData
from bench.method import Method
from bench.network import PASSES_PER_GRADIENT, PASSES_PER_TRAINING_STEP, Arch, Precision, freeze
from bench.registry import ARCHS, METHODS
from bench.store import Artifact, Store, key_of
from bench.study import StudyJob

OPERATIONS_PER_VALUE = 400
"""Operations in the time that a value costs which a forward pass keeps: written, read, normalised.

Fitted to the seconds of the committed records, which it meets within a factor of 1.6; operations
alone told an eighth of what DenseNet-121 took. Processors without bf16 instructions want 270.
"""

Job = SurrogateJob | CraftJob | Cell | StudyJob


@dataclass(frozen=True)
class Task:
    """One thing to make: a surrogate training, a crafted set, or the record of a victim or study.

    Attributes:
        key: of its identity.
        kind: `surrogate`, `craft`, `victim` or `study`.
        title: for progress lines.
        job: what to make.
        flop: estimated work.
        bytes: estimated size in the store, once finished.
        needs: keys of tasks that come first.
        epochs: for a surrogate, the checkpoints that anybody asks for.
        temporary: bytes that making it takes in the store for a while.
    """

    key: str
    kind: str
    title: str
    job: Job
    flop: float
    bytes: float
    needs: frozenset[str]
    epochs: tuple[int, ...] = ()
    temporary: float = 0.0


@dataclass
class Plan:
    """The tasks of a grid that are still to be done.

    Attributes:
        cells: all cells of the grid.
        studies: all studies that were asked for.
        recorded: keys of the cells and studies that have a record already.
        tasks: the rest, and what they need, each after what it needs.
        cached: titles of crafted sets and surrogates that are in the store already.
        notes: lines worth telling, such as damaged files that will be made again.
    """

    cells: list[Cell]
    studies: list[StudyJob] = field(default_factory=list)
    recorded: set[str] = field(default_factory=set)
    tasks: dict[str, Task] = field(default_factory=dict)
    cached: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def flop(self) -> float:
        """Work of all tasks."""
        return sum(task.flop for task in self.tasks.values())

    def urgency(self) -> dict[str, float]:
        """For each task, the work of the longest chain that begins with it."""
        chain: dict[str, float] = {}
        for key, task in reversed(self.tasks.items()):
            after = [chain[k] for k, other in self.tasks.items() if key in other.needs]
            chain[key] = task.flop + max(after, default=0.0)
        return chain


def make_plan(
    cells: Iterable[Cell],
    data: TrainingData,
    store: Store,
    results: Path,
    studies: Iterable[StudyJob] = (),
) -> Plan:
    """Compare a grid with the records and the store."""
    plan = Plan(list(cells), list(studies))
    planner = _Planner(plan, data, store)
    for cell in plan.cells:
        if _is_recorded(cell, results, plan.notes):
            plan.recorded.add(cell.key)
        else:
            planner.add_cell(cell)
    for job in plan.studies:
        if _is_recorded(job, results, plan.notes):
            plan.recorded.add(job.key)
        else:
            planner.add_study(job)
    # Surrogates first, then crafted sets, then victims: each after what it needs.
    order = {"surrogate": 0, "craft": 1, "victim": 2, "study": 3}
    plan.tasks = dict(sorted(planner.tasks.items(), key=lambda item: order[item[1].kind]))
    return plan


class _Planner:
    def __init__(self, plan: Plan, data: TrainingData, store: Store) -> None:
        self.tasks: dict[str, Task] = {}
        self._plan, self._data, self._store = plan, data, store
        self._cost = CostTable(data)
        self._seen: dict[str, bool] = {}

    def add_cell(self, cell: Cell) -> None:
        """A victim, and what it needs."""
        recipe, data = cell.recipe, self._data
        cell.defense.check(data.train)
        crafted = key_of(cell.crafting.identity)
        to_craft = self._craft(cell.crafting, cell.crafting.called(cell.labels["method"]))
        needs = frozenset({crafted}) if to_craft else frozenset[str]()
        forward = self._cost(cell.arch)
        trained = len(data.train) - cell.holdout
        if cell.crafting.method.unprotected_only:
            trained -= self._protected(cell.crafting)
        images = trained * recipe.epochs
        curve = min(recipe.curve_images or len(data.test), len(data.test)) + cell.holdout
        tested = curve * (recipe.epochs - 1) + len(data.test) + cell.holdout + 2 * curve
        tested *= cell.defense.prediction_cost()
        work = forward * (PASSES_PER_TRAINING_STEP * images * cell.defense.cost() + tested)
        self.tasks[cell.key] = Task(cell.key, "victim", cell.title, cell, work, 0, needs)

    def add_study(self, job: StudyJob) -> None:
        """A measurement, and what it needs."""
        needs = {key for one in job.surrogates if (key := self._surrogate(one))}
        for label, crafting in job.crafted:
            if self._craft(crafting, label):
                needs.add(key_of(crafting.identity))
        work = job.study.work(job, self._data, self._cost)
        self.tasks[job.key] = Task(job.key, "study", job.title, job, work, 0, frozenset(needs))

    def _craft(self, job: CraftJob, label: str) -> bool:
        """Plan a crafted set; returns whether it is still to be made."""
        key = key_of(job.identity)
        if key in self._seen:
            return self._seen[key]
        title = f"craft {label}"
        missing = self._whole(artifact_of(self._store, job)) is None
        self._seen[key] = missing
        if not missing:
            self._cached(title)
        else:
            job.method.check(self._data.train, self._data.rows, self._data.total)
            needs = {k for s in job.surrogates if (k := self._surrogate(s))}
            for part in job.parts:
                if self._craft(part, part.called(canonical(part.method, METHODS))):
                    needs.add(key_of(part.identity))
            images = self._protected(job)
            if not images and job.poison_ratio > 0:
                self._plan.notes.append(
                    f"{label} protects no image: {job.poison_ratio:g} of those that may be "
                    "protected is less than half of one"
                )
            work = job.method.gradient_images(images) * self._cost.of_gradient(job.method)[1]
            size = self._data.train.images.numel()
            self.tasks[key] = Task(
                key,
                "craft",
                title,
                job,
                work,
                size,
                frozenset(needs),
                temporary=(4 + 1) * size,
            )
        return missing

    def _protected(self, job: CraftJob) -> int:
        """How many training images are protected."""
        return int(job.mask(self._data.train.labels).sum())

    def _surrogate(self, job: SurrogateJob) -> str | None:
        """Plan a surrogate training; returns its key if it is still to be made."""
        key = key_of(job.identity)
        known = self.tasks.get(key)
        wanted = set(job.surrogate.epochs) | set(known.epochs if known else ())
        artifact = artifact_of(self._store, job)
        title = f"surrogate {canonical(job.arch, ARCHS)}"
        if job.defended:
            title += f" + {job.defense.title}"
        manifest = self._whole(artifact)
        have = set(manifest["facts"]["epochs"]) if manifest else set[int]()
        if known is None and wanted <= have:
            self._cached(title)
            return None
        epochs = tuple(sorted(wanted))
        passes = PASSES_PER_TRAINING_STEP * job.defense.cost()
        work = self._cost(job.arch) * passes * len(self._data.train) * epochs[-1]
        size = 4.0 * self._cost.of(job.arch).parameters * len(epochs)
        self.tasks[key] = Task(key, "surrogate", title, job, work, size, frozenset(), epochs)
        return key

    def _whole(self, artifact: Artifact) -> dict[str, Any] | None:
        """The manifest of what is whole; where it is damaged that is noted."""
        note = f"{artifact.folder} is damaged and will be made again"
        if artifact.damaged() and note not in self._plan.notes:
            self._plan.notes.append(note)
        return artifact.manifest()

    def _cached(self, title: str) -> None:
        if title not in self._plan.cached:
            self._plan.cached.append(title)


@dataclass(frozen=True)
class Cost:
    """Of a network, for one image.

    Attributes:
        forward: operations of a forward pass.
        parameters: number of weights.
        saved: values that a forward pass keeps for the gradient with respect to the image.
    """

    forward: float
    parameters: float
    saved: float

    @property
    def work(self) -> float:
        """A forward pass in operations, with those that moving what it keeps is worth."""
        return self.forward + OPERATIONS_PER_VALUE * self.saved


class CostTable:
    """What networks cost, counted once each."""

    def __init__(self, data: TrainingData) -> None:
        self._data = data
        self._known: dict[str, Cost] = {}

    def __call__(self, arch: Arch) -> float:
        """Work of one image's forward pass, in operations."""
        return self.of(arch).work

    def of_gradient(
        self, method: Method, precision: Precision = "fp32"
    ) -> tuple[float, float, float]:
        """Operations, work and bytes of one image's input gradient through a method's networks.

        The means of the first two, the most of the bytes; zeros if it has none.
        """
        archs = [build(ARCHS, parse_one(text, ARCHS)) for text in method.differentiates()]
        if not archs:
            return 0.0, 0.0, 0.0
        costs = [self.of(arch) for arch in archs]
        # As much again for gradients and for what convolutions need to work in.
        size = 2 * max(c.saved for c in costs) * (2 if precision == "bf16" else 4)
        passes = PASSES_PER_GRADIENT / len(costs)
        return passes * sum(c.forward for c in costs), passes * sum(c.work for c in costs), size

    def of(self, arch: Arch) -> Cost:
        """All that is known of it."""
        key = key_of(arch.identity())
        if key not in self._known:
            self._known[key] = self._measure(arch)
        return self._known[key]

    def _measure(self, arch: Arch) -> Cost:
        from torch.utils.flop_counter import FlopCounterMode

        train = self._data.train
        network = arch.network(
            len(train.classes), train.image_size, train.mean, train.std, torch.Generator()
        )
        count = sum(weight.numel() for weight in network.parameters())
        network = freeze(network, torch.device("cpu"), "fp32")
        image = torch.zeros(1, 3, *train.image_size, requires_grad=True)
        weights = {weight.data_ptr() for weight in network.parameters()}
        saved: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            saved[tensor.data_ptr()] = tensor.numel()
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            FlopCounterMode(display=False) as counter,
        ):
            network(image)
        kept = sum(size for place, size in saved.items() if place not in weights)
        return Cost(float(counter.get_total_flops()), float(count), float(kept))


def artifact_of(store: Store, job: SurrogateJob | CraftJob) -> Artifact:
    """Where a job's result lies in the store."""
    kind = "crafted" if isinstance(job, CraftJob) else "surrogates"
    return store.artifact(kind, job.slug, job.identity)


def _is_recorded(cell: Cell | StudyJob, results: Path, notes: list[str]) -> bool:
    room = record.CELLS if isinstance(cell, Cell) else record.STUDIES
    file = record.find(results, cell.key, room)
    if file is None:
        return False
    if file.is_dir():
        raise UsageError(f"{file} is a folder where a record belongs; move it away")
    try:
        found = record.read(file)
    except record.NewerRecordError:
        raise
    except UsageError:
        notes.append(f"record {file} is damaged; it is made again")
        return False
    if found["key"] != cell.key or key_of(found["identity"]) != cell.key:
        raise UsageError(f"record {file} is not what its name says; move it away")
    return found["status"] == "done"

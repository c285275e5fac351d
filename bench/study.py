"""What every study is: a measurement on networks and crafted sets that is no victim's accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from bench.component import Component
from bench.crafting import Monitor
from bench.data import ImageDataset
from bench.files import Unfinished, slugify
from bench.grid import SCHEMA, Cell, CraftJob, SurrogateJob, TrainingData
from bench.network import Arch, Network
from bench.record import CONTROL
from bench.store import key_of
from bench.train import Training


@dataclass(frozen=True)
class Study(Component):
    """A measurement; a subclass says what it needs in `jobs` and takes it in `measure`."""

    needs_images: ClassVar[bool] = True
    """Whether it looks at a data set; one that does not has no jobs and is taken at once."""

    def jobs(self, cells: Sequence[Cell]) -> list[StudyJob]:
        """The measurements for a grid; its cells say what to look at and are not run."""
        del cells
        return []

    def work(self, job: StudyJob, data: TrainingData, cost: Callable[[Arch], float]) -> float:
        """Estimated operations, beside those for what is needed.

        Args:
            job: one of those that `jobs` gave.
            data: the images.
            cost: operations of one image's forward pass.
        """
        del job, data, cost
        return 0.0

    def check(self, values: Mapping[str, Any]) -> None:
        """Look whether somebody's values are what `measure` returns.

        Raises:
            KeyError, IndexError, TypeError or ValueError: if they are not.
        """
        del values

    def measure(self, tools: Tools) -> dict[str, Any]:
        """Take it.

        Returns:
            What a record calls `values`: plain numbers, texts, lists and dictionaries.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class StudyJob:
    """One measurement.

    Attributes:
        study: which.
        subject: what is looked at, as tables call it.
        context: a cell of the grid that it was made for, which gives recipe, precision and labels;
            None if it needs no images.
        surrogates: trainings whose checkpoints it needs.
        crafted: crafted sets that it needs, by label.
        victim: a cell whose training it repeats, or None.
    """

    study: Study
    subject: str
    context: Cell | None = None
    surrogates: tuple[SurrogateJob, ...] = ()
    crafted: tuple[tuple[str, CraftJob], ...] = ()
    victim: Cell | None = None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that decides its numbers."""
        said: dict[str, Any] = {
            "schema": SCHEMA,
            "kind": "study",
            "study": self.study.identity(),
        }
        if self.context is not None:
            said["train"] = self.context.crafting.train_digest
            said["precision"] = self.context.precision
        if self.surrogates:
            said["surrogates"] = [
                {**job.identity, "epochs": list(job.surrogate.epochs)} for job in self.surrogates
            ]
        if self.crafted:
            said["crafted"] = {label: job.identity for label, job in self.crafted}
        if self.victim is not None:
            said["victim"] = self.victim.identity
        return said

    @cached_property
    def key(self) -> str:
        """SHA-256 of the identity."""
        return key_of(self.identity)

    @property
    def slug(self) -> str:
        """A label for people: the front of the record's file name."""
        recipe = () if self.context is None else (self.subject, self.context.recipe.name)
        seed = () if self.victim is None else (f"s{self.victim.seed}",)
        return slugify("-".join([self.study.name, *recipe, *seed]))

    @property
    def title(self) -> str:
        """The study in progress lines."""
        seed = "" if self.victim is None else f", seed {self.victim.seed}"
        return f"{self.study.name} of {self.subject}{seed}"

    def describe(self) -> dict[str, Any]:
        """The part of a record that says what was asked for."""
        cell = self.context
        # Not the context's: that may be the control, for which nothing is drawn.
        seeds = [job.seed for job in (*self.surrogates, *(job for _, job in self.crafted))]
        return {
            "schema": SCHEMA,
            "key": self.key,
            "identity": self.identity,
            "study": self.study.name,
            "study_settings": self.study.settings(),
            "subject": self.subject,
            "dataset": "" if cell is None else cell.labels["dataset"],
            "dataset_digest": "" if cell is None else cell.crafting.train_digest,
            "recipe": "" if cell is None else cell.recipe.name,
            "recipe_label": "" if cell is None else cell.labels["recipe"],
            "recipe_settings": {} if cell is None else cell.recipe.settings(),
            "precision": "" if cell is None else cell.precision,
            "seed": None if self.victim is None else self.victim.seed,
            "craft_seed": seeds[0] if seeds else None,
        }


@dataclass
class Tools:
    """What a study measures with.

    Attributes:
        job: what is asked for.
        dataset: the clean training images.
        device: where to compute.
        networks: gives the checkpoints of the surrogate with that number, frozen, in fp32 and in
            the order of their epochs.
        released: gives the crafted set with that label.
        begin: gives a fresh training of the victim on the clean images.
        cost: operations of one image's forward pass.
        monitor: told about progress; ends the work when the time is up.
        scratch: folder for partial results.
        memory: bytes that images may take on the device.
    """

    job: StudyJob
    dataset: ImageDataset
    device: torch.device
    networks: Callable[[int], list[Network]]
    released: Callable[[str], ImageDataset]
    begin: Callable[[], Training]
    cost: Callable[[Arch], float]
    scratch: Path
    memory: float
    monitor: Monitor = field(default_factory=Monitor)

    def save(self, pack: Callable[[], dict[str, Any]]) -> None:
        """A safe point: keep what is done if it is time to, end here if the time is up."""
        self.monitor.safe_point(lambda: self._work.save("study", pack()))

    def load(self) -> dict[str, Any] | None:
        """What was kept last, or None."""
        return self._work.load("study")

    @property
    def _work(self) -> Unfinished:
        return Unfinished(self.scratch, self.job.key, self.monitor.note)


def protections(cells: Sequence[Cell]) -> dict[str, CraftJob]:
    """The crafted sets of a grid, each once, by what tables call them; the control is none."""
    found: dict[str, CraftJob] = {}
    for cell in cells:
        if cell.crafting.method.name != CONTROL:
            found.setdefault(cell.crafting.called(cell.labels["method"]), cell.crafting)
    return found

"""Doing one task: train a surrogate, craft a set, or train a victim and write its record."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from bench import record
from bench.crafting import Crafting, Monitor
from bench.data import ImageDataset
from bench.defense import Defense
from bench.device import describe, peak_memory
from bench.files import load_tensors, save_tensors, write_text
from bench.grid import Cell, CraftJob, SurrogateJob, TrainingData, held_out
from bench.network import Network, Precision, freeze
from bench.plan import PASSES_PER_TRAINING_STEP, FlopTable, Task, artifact_of
from bench.registry import ROOT
from bench.release import draw_mask, release
from bench.samples import sample_file, write_sample
from bench.store import Artifact, Store
from bench.train import Training, accuracy


class Workshop:
    """Everything a task needs, in one process.

    Args:
        data: of the grid.
        store: where surrogates and crafted sets are kept.
        results: folder of the records.
        device: where to compute.
        monitor: told about progress; ends the work when the time is up.
    """

    def __init__(
        self,
        data: TrainingData,
        store: Store,
        results: Path,
        device: torch.device,
        monitor: Monitor,
    ) -> None:
        self._data, self._store, self._results = data, store, results
        self._device, self._monitor = device, monitor
        self._flop = FlopTable(data)

    def execute(self, task: Task) -> str:
        """Do a task, continuing where an earlier attempt stopped.

        Returns:
            What came of it, in a few words.

        Raises:
            Stopped: if the monitor says so; what is done is on disk.
        """
        job = task.job
        if isinstance(job, SurrogateJob):
            return self._train_surrogate(job, task.epochs)
        if isinstance(job, CraftJob):
            return self._craft(job)
        return self._train_victim(job)

    def _train_surrogate(self, job: SurrogateJob, epochs: Sequence[int]) -> str:
        artifact = artifact_of(self._store, job)
        with artifact.lock():
            manifest = artifact.manifest()
            if manifest is not None and set(epochs) <= set(manifest["facts"]["epochs"]):
                return "was in the store"
            clock = Clock(artifact)
            training = Training(
                job.arch,
                self._data.train,
                job.recipe,
                Defense(),
                job.seed,
                f"surrogate-{job.surrogate.index}",
                self._device,
                job.precision,
            )
            kept = {epoch: artifact.partial / _checkpoint(epoch) for epoch in epochs}
            state = load_tensors(artifact.partial / "training.pt")
            if state and all(kept[e].exists() for e in epochs if e <= state["epoch"]):
                training.load_state(state)
                self._advance(job, training.epoch * len(self._data.train))
            row: dict[str, Any] = {"train_acc": math.nan}
            while training.epoch < max(epochs):
                row = training.run_epoch(lambda images: self._advance(job, images))
                if training.epoch in kept:
                    save_tensors(kept[training.epoch], training.network.state_dict())
                save_tensors(artifact.partial / "training.pt", training.state())
                clock.save()
                self._monitor.safe_point()
            files = {file.name: _copy(file) for file in kept.values()}
            facts = {"epochs": sorted(epochs), "last": _finite(row), **provenance(self._device)}
            artifact.publish(files, {**facts, **clock.read()})
        return f"train accuracy {row['train_acc']:.1%}"

    def _advance(self, job: SurrogateJob, images: int) -> None:
        self._monitor.advance(PASSES_PER_TRAINING_STEP * self._flop(job.arch) * images)

    def _trained(self, job: SurrogateJob, precision: Precision) -> list[Network]:
        """The checkpoints of a surrogate from the store, frozen."""
        folder = artifact_of(self._store, job).folder
        train = self._data.train
        networks = []
        for epoch in job.surrogate.epochs:
            network = job.arch.network(
                len(train.classes), train.image_size, train.mean, train.std, torch.Generator()
            )
            weights = load_tensors(folder / _checkpoint(epoch))
            if weights is None:
                raise RuntimeError(f"{folder / _checkpoint(epoch)} is damaged; delete its folder")
            network.load_state_dict(weights)
            networks.append(freeze(network, self._device, precision))
        return networks

    def _craft(self, job: CraftJob) -> str:
        artifact = artifact_of(self._store, job)
        train = self._data.train
        with artifact.lock():
            if artifact.manifest() is not None:
                return "was in the store"
            clock = Clock(artifact)
            mask = draw_mask(len(train), job.poison_ratio, job.seed)
            crafting = Crafting(
                dataset=train,
                rows=self._data.rows,
                mask=mask,
                seed=job.seed,
                device=self._device,
                precision=job.precision,
                trained=lambda number: self._trained(job.surrogates[number], job.precision),
                scratch=artifact.partial,
                monitor=_Timed(self._monitor, clock),
                flop_per_gradient=self._flop.of_gradient(job.method),
            )
            released = release(train, job.method.craft(crafting), mask, job.method.budget)
            clock.save()

            def write(file: IO[bytes]) -> None:
                np.savez(
                    file,
                    images=released.images.numpy(),
                    labels=train.labels.numpy(),
                    mask=mask.numpy(),
                    rows=self._data.rows.numpy(),
                )

            facts = {
                "audit": released.audit,
                "gradient_images": crafting.gradient_images,
                **clock.read(),
                **provenance(self._device),
            }
            artifact.publish({"released.npz": write}, facts)
        return f"l∞ {released.audit['max_levels']}/255"

    def _train_victim(self, cell: Cell) -> str:
        crafted = artifact_of(self._store, cell.crafting)
        working = self._store.artifact("victims", cell.slug, cell.identity)
        with working.lock():
            file = record.find(self._results, cell.key)
            if file is not None and record.read(file)["status"] == "done":
                return "was recorded"
            clock = Clock(working)
            released = self._released(crafted)
            self._keep_sample(cell, crafted, released)
            rows, out = held_out(len(released), cell.holdout, cell.seed)
            if cell.holdout:
                released, held = released.subset(rows), released.subset(out)
            else:
                held = None
            training = Training(
                cell.arch,
                released,
                cell.recipe,
                cell.defense,
                cell.seed,
                "victim",
                self._device,
                cell.precision,
            )
            curve, counts = self._curve(cell, training, held, working, clock)
            facts = (crafted.manifest() or {"facts": {}})["facts"]
            final = curve[-1]
            made = {
                **self.describe(cell),
                "status": "done",
                "error": None,
                "final_test_acc": final["test_acc"],
                "peak_test_acc": max(row["test_acc"] for row in curve),
                "final_train_acc": final["train_acc"],
                "curve": curve,
                "confusion": counts.tolist(),
                "audit": facts.get("audit"),
                "crafted_key": crafted.key,
                "crafting_gradient_images": facts.get("gradient_images"),
                "crafting_seconds": facts.get("seconds"),
                **clock.read(),
                "peak_memory": peak_memory(self._device),
                **provenance(self._device),
            }
            record.write(self._results, cell.slug, made)
            working.discard()
        return f"test {final['test_acc']:.1%}, train {final['train_acc']:.1%}"

    def _curve(
        self,
        cell: Cell,
        training: Training,
        held: ImageDataset | None,
        working: Artifact,
        clock: Clock,
    ) -> tuple[list[dict[str, Any]], torch.Tensor]:
        """Train to the end; a row an epoch, and the confusion counts after the last."""
        recipe, forward = cell.recipe, self._flop(cell.arch)
        checkpoint = working.partial / "training.pt"
        per_image = PASSES_PER_TRAINING_STEP * forward * cell.defense.cost()
        curve: list[dict[str, Any]] = []
        state = load_tensors(checkpoint)
        if state is not None:
            training.load_state(state["training"])
            curve = json.loads(state["curve"])
            self._monitor.advance(per_image * training.images * training.epoch)
        counts = torch.zeros(0)
        while training.epoch < recipe.epochs:
            row = training.run_epoch(lambda images: self._monitor.advance(per_image * images))
            last = training.epoch == recipe.epochs
            if last:
                training.finish()
            test = self._data.test_for_curve(None if last else recipe.curve_images)
            counts = training.confusion(test)
            row["test_acc"] = accuracy(counts)
            if held is not None:
                row["holdout_acc"] = accuracy(training.confusion(held))
            self._monitor.advance(forward * (len(test) + cell.holdout))
            curve.append(_finite(row))
            clock.save()
            if not last:
                state = {"training": training.state(), "curve": json.dumps(curve)}
                save_tensors(checkpoint, state)
                self._monitor.safe_point()
        return curve, counts

    def _released(self, crafted: Artifact) -> ImageDataset:
        """The dataset that a victim may see."""
        with np.load(crafted.folder / "released.npz", allow_pickle=False) as arrays:
            return self._data.train.with_images(torch.from_numpy(arrays["images"]))

    def _keep_sample(self, cell: Cell, crafted: Artifact, released: ImageDataset) -> None:
        """A few images beside the record, for reports."""
        file = sample_file(self._results, cell.crafting.slug, crafted.key)
        mask = draw_mask(len(released), cell.crafting.poison_ratio, cell.crafting.seed)
        train = self._data.train
        write_sample(file, train.images, released.images, train.labels, mask)

    def failed(self, cell: Cell, error: str) -> None:
        """Record that a cell failed, with the traceback."""
        nothing = (
            "final_test_acc peak_test_acc final_train_acc confusion audit crafted_key "
            "crafting_gradient_images crafting_seconds"
        )
        made = {
            **self.describe(cell),
            "status": "failed",
            "error": error,
            **dict.fromkeys(nothing.split()),
            "curve": [],
            "seconds": 0.0,
            "core_seconds": 0.0,
            "peak_memory": 0,
            **provenance(self._device),
        }
        record.write(self._results, cell.slug, made)

    def describe(self, cell: Cell) -> dict[str, Any]:
        """The part of a record that says what was asked for."""
        method, data = cell.crafting.method, self._data
        budget = method.budget
        radius = None if budget.norm == "none" else budget.epsilon
        return {
            "schema": record.SCHEMA,
            "key": cell.key,
            "identity": cell.identity,
            "method": method.name,
            "method_label": cell.labels["method"],
            "method_settings": method.settings(),
            "method_deviations": method.deviations(),
            "budget": {"norm": budget.norm, "epsilon": radius},
            "epsilon": radius if budget.norm == "linf" else None,
            "defense": cell.defense.name,
            "defense_label": cell.labels["defense"],
            "defense_settings": cell.defense.settings(),
            "arch": cell.arch.name,
            "arch_label": cell.labels["arch"],
            "arch_notes": cell.arch.notes(data.train.image_size),
            "width": cell.arch.width,
            "dataset": data.label,
            "dataset_digest": data.train.digest,
            "classes": list(data.train.classes),
            "train_images": len(data.train) - cell.holdout,
            "test_images": len(data.test),
            "recipe": cell.recipe.name,
            "recipe_label": cell.labels["recipe"],
            "recipe_settings": cell.recipe.settings(),
            "precision": cell.precision,
            "poison_ratio": cell.crafting.poison_ratio,
            "holdout": cell.holdout,
            "seed": cell.seed,
            "craft_seed": cell.crafting.seed,
        }


class Clock:
    """Seconds spent on an artifact, over all attempts.

    Args:
        artifact: its partial folder keeps the count.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._file = artifact.partial / "clock.json"
        self._before = {"seconds": 0.0, "core_seconds": 0.0}
        if self._file.exists():
            self._before = json.loads(self._file.read_text())
        self._start = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """`seconds` on the wall and `core_seconds` of the processor."""
        wall = time.perf_counter() - self._start[0]
        core = time.process_time() - self._start[1]
        return {
            "seconds": round(self._before["seconds"] + wall, 2),
            "core_seconds": round(self._before["core_seconds"] + core, 2),
        }

    def save(self) -> None:
        """Keep the count for a later attempt."""
        write_text(self._file, json.dumps(self.read()))


class _Timed(Monitor):
    """A monitor that keeps the clock whenever work is safe."""

    def __init__(self, monitor: Monitor, clock: Clock) -> None:
        self._monitor, self._clock = monitor, clock

    def advance(self, flop: float) -> None:
        self._monitor.advance(flop)

    def safe_point(self) -> None:
        self._clock.save()
        self._monitor.safe_point()


def provenance(device: torch.device) -> dict[str, Any]:
    """When, with which code, which versions, and on what."""
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions(),
        "device": describe(device),
    }


@cache
def commit() -> str:
    """The code's commit, with "+" if files differ from it; "unknown" outside a checkout."""
    try:
        head, changes = (
            subprocess.run(
                ["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changes else "")


@cache
def versions() -> dict[str, str]:
    """Versions of everything that computes."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("unlearnable-bench", "torchvision", "timm", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _checkpoint(epoch: int) -> str:
    return f"epoch-{epoch:03d}.pt"


def _copy(source: Path) -> Any:
    content = source.read_bytes()
    return lambda file: file.write(content)


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: a loss that diverged becomes null."""
    wrong = {k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)}
    return {key: None if key in wrong else value for key, value in row.items()}

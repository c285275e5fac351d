"""Doing one task: train a surrogate, craft a set, train a victim or take a measurement."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, partial
from typing import IO, Any

import numpy as np
import torch

from bench import record
from bench.crafting import Crafting, Monitor
from bench.data import ImageDataset
from bench.device import describe, peak_memory, reset_peak_memory, total_memory
from bench.files import Unfinished, map_member, unnamed_array
from bench.grid import Cell, CraftJob, SurrogateJob, held_out
from bench.imprint import imprinted, protected_classes
from bench.network import PASSES_PER_TRAINING_STEP, Network, Precision, check_finite, freeze
from bench.release import release
from bench.running.plan import CostTable, Job, artifact_of
from bench.running.session import Opened, Session
from bench.samples import sample_file, write_sample
from bench.separability import VERSION, separability
from bench.store import Artifact
from bench.study import StudyJob, Tools
from bench.train import Training, accuracy


class Workshop:
    """Everything a task needs, in one process.

    Args:
        opened: images and store.
        session: folders and commit.
        device: where to compute.
        monitor: told about progress; ends the work when the time is up.
    """

    def __init__(
        self,
        opened: Opened,
        session: Session,
        device: torch.device,
        monitor: Monitor,
    ) -> None:
        self._data, self._store, self._results = opened.data, opened.store, session.results
        self._device, self._monitor, self._commit = device, monitor, session.commit
        self._cost = CostTable(opened.data)
        # A quarter for the images, a quarter for activations; the rest for networks and caches.
        self._memory = (session.memory or total_memory(device)) / 4

    def execute(self, job: Job, epochs: Sequence[int] = ()) -> str:
        """Do a job, continuing where an earlier attempt stopped.

        Args:
            job: what to make.
            epochs: for a surrogate, the checkpoints that anybody asks for.

        Returns:
            What came of it, in a few words.

        Raises:
            Stopped: if the monitor says so; what is done is on disk.
        """
        reset_peak_memory(self._device)
        if isinstance(job, SurrogateJob):
            return self._train_surrogate(job, epochs)
        if isinstance(job, CraftJob):
            return self._craft(job)
        if isinstance(job, StudyJob):
            return self._study(job)
        return self._train_victim(job)

    def _train_surrogate(self, job: SurrogateJob, epochs: Sequence[int]) -> str:
        artifact = artifact_of(self._store, job)
        with artifact.lock(self._monitor.safe_point):
            manifest = artifact.manifest()
            have = set(manifest["facts"]["epochs"]) if manifest else set[int]()
            missing = sorted(set(epochs) - have)  # whoever asked before keeps what it asked for
            if not missing:
                return "was in the store"
            work = self._unfinished(artifact)
            clock = Clock(work)

            def begin() -> Training:
                return Training(
                    job.arch,
                    self._data.train,
                    job.recipe,
                    job.defense,
                    job.seed,
                    f"surrogate-{job.surrogate.index}",
                    self._device,
                    job.precision,
                    self._memory,
                )

            def save() -> None:
                state = {"training": training.state(), "row": json.dumps(row)}
                work.save("training", state)
                clock.save()

            def keep(file: IO[bytes], name: str) -> None:
                weights = work.load(name)
                if weights is None:
                    raise RuntimeError(f"{name} is damaged; the next call makes it again")
                torch.save(weights, file)

            state = work.load("training") or {}
            training = _resumed(state.get("training"), begin)
            done = [_checkpoint(epoch) for epoch in missing if epoch <= training.epoch]
            if any(work.load(name) is None for name in done):
                training = begin()
            row: dict[str, Any] = json.loads(state["row"]) if training.epoch else {}
            self._advance(job, training.epoch * len(self._data.train))
            while training.epoch < missing[-1]:
                row = _finite(training.run_epoch(lambda images: self._advance(job, images)))
                check_finite(training.network, _called(job), f"epoch {training.epoch}")
                if training.epoch in missing:
                    work.save(_checkpoint(training.epoch), training.network.state_dict())
                self._monitor.safe_point(save)
            files = {f"{name}.pt": partial(keep, name=name) for name in map(_checkpoint, missing)}
            facts = {
                "epochs": sorted(have | set(epochs)),
                "last": row,
                **provenance(self._device, self._commit),
            }
            artifact.publish(files, {**facts, **clock.read()})
        return f"train accuracy {row['train_acc']:.1%}"

    def _unfinished(self, artifact: Artifact) -> Unfinished:
        """What an earlier attempt left."""
        return Unfinished(artifact.partial, artifact.key, self._monitor.note)

    def _advance(self, job: SurrogateJob, images: int) -> None:
        per_image = PASSES_PER_TRAINING_STEP * self._cost(job.arch) * job.defense.cost()
        self._monitor.advance(per_image * images)

    def _trained(self, job: SurrogateJob, precision: Precision) -> list[Network]:
        """The checkpoints of a surrogate from the store, frozen."""
        artifact = artifact_of(self._store, job)
        self._facts(artifact)  # it is whole
        train = self._data.train
        networks = []
        for epoch in job.surrogate.epochs:
            network = job.arch.network(
                len(train.classes), train.image_size, train.mean, train.std, torch.Generator()
            )
            file = artifact.folder / f"{_checkpoint(epoch)}.pt"
            network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
            check_finite(network, _called(job), f"epoch {epoch}")
            networks.append(freeze(network, self._device, precision, job.surrogate.folded))
        return networks

    def _craft(self, job: CraftJob) -> str:
        artifact = artifact_of(self._store, job)
        train = self._data.train
        with artifact.lock(self._monitor.safe_point):
            if artifact.manifest() is not None:
                return "was in the store"
            clock = Clock(self._unfinished(artifact))
            crafting = self._crafting(job)
            crafting.scratch, crafting.key = artifact.partial, artifact.key
            crafting.monitor = _Timed(self._monitor, clock)
            delta = job.method.craft(crafting)
            mask = crafting.mask  # a finished set may cover a part only
            place = unnamed_array(artifact.partial, tuple(train.images.shape), "uint8")
            released = release(train, delta, mask, job.method.budget, torch.from_numpy(place))
            clock.save()

            def write(file: IO[bytes]) -> None:
                np.savez(
                    file,
                    images=released.images.numpy(),
                    labels=train.labels.numpy(),
                    mask=mask.numpy(),
                    rows=self._data.rows.numpy(),
                )

            spent = {"gradient_images": crafting.gradient_images, **clock.read()}
            for part in job.parts:
                facts = self._facts(artifact_of(self._store, part))
                spent = {key: value + facts[key] for key, value in spent.items()}
            facts = {
                "audit": crafting.facts | released.audit,
                **spent,
                **provenance(self._device, self._commit),
            }
            artifact.publish({"released.npz": write}, facts)
        covered = released.audit["protected_images"]
        asked = int(job.mask(train.labels).sum())
        part = f" on {covered} of {asked} images" if covered < asked else ""
        return f"l∞ {released.audit['max_levels']}/255{part}"

    def _crafting(self, job: CraftJob) -> Crafting:
        """What a method works with."""
        train = self._data.train
        operations, work, size = self._cost.of_gradient(job.method, job.precision)
        return Crafting(
            dataset=train,
            rows=self._data.rows,
            mask=job.mask(train.labels),
            seed=job.seed,
            device=self._device,
            precision=job.precision,
            trained=lambda number: self._trained(job.surrogates[number], job.precision),
            part=lambda n: self._released(artifact_of(self._store, job.parts[n])).images,
            flop_per_gradient=operations,
            work_per_gradient=work,
            bytes_per_gradient=size,
            memory=self._memory,
        )

    def _train_victim(self, cell: Cell) -> str:
        crafted = artifact_of(self._store, cell.crafting)
        working = self._store.artifact("victims", cell.slug, cell.identity)
        with working.lock(self._monitor.safe_point):
            if record.is_done(self._results, cell.key):
                return "was recorded"
            score = self._separability(cell.crafting, crafted)  # no part of the training's time
            work = self._unfinished(working)
            clock = Clock(work)
            asked = self.describe(cell)  # before hours of training: a plug-in may fail in it
            facts = self._facts(crafted)
            released = self._released(crafted)
            self._keep_sample(cell, crafted, released)
            if cell.crafting.method.unprotected_only:
                released = released.subset((~cell.crafting.mask(released.labels)).nonzero()[:, 0])
            rows, out = held_out(len(released), cell.holdout, cell.seed)
            if cell.holdout:
                released, held = released.subset(rows), released.subset(out)
            else:
                held = None

            def begin() -> Training:
                return self._victim(cell, released)

            curve, counts, training = self._curve(cell, begin, held, work, clock)
            final = curve[-1]
            made = {
                **asked,
                "status": "done",
                "error": None,
                "final_test_acc": final["test_acc"],
                "peak_test_acc": max(row["test_acc"] for row in curve),
                "final_train_acc": final["train_acc"],
                "curve": curve,
                "confusion": counts.tolist(),
                "shortcut": self._shortcut(cell, training, crafted),
                "audit": facts["audit"],
                "separability": score,
                "crafted_key": crafted.key,
                "crafting_gradient_images": facts["gradient_images"],
                "crafting_seconds": facts["seconds"],
                **clock.read(),
                "peak_memory": peak_memory(self._device),
                **provenance(self._device, self._commit),
            }
            record.write(self._results, cell.slug, made)
            working.discard()
        return f"test {final['test_acc']:.1%}, train {final['train_acc']:.1%}"

    def _victim(self, cell: Cell, released: ImageDataset) -> Training:
        """A cell's training, at its beginning."""
        return Training(
            cell.arch,
            released,
            cell.recipe,
            cell.defense,
            cell.seed,
            "victim",
            self._device,
            cell.precision,
            self._memory,
        )

    def _study(self, job: StudyJob) -> str:
        working = self._store.artifact("studies", job.slug, job.identity)
        crafted = dict(job.crafted)

        def begin() -> Training:
            assert job.victim is not None, "a study that trains names the cell it repeats"
            return self._victim(job.victim, self._data.train)

        with working.lock(self._monitor.safe_point):
            if record.is_done(self._results, job.key, record.STUDIES):
                return "was recorded"
            clock = Clock(self._unfinished(working))
            tools = Tools(
                job,
                self._data.train,
                self._device,
                lambda number: self._trained(job.surrogates[number], "fp32"),
                lambda label: self._released(artifact_of(self._store, crafted[label])),
                begin,
                self._cost,
                working.partial,
                self._memory,
                _Timed(self._monitor, clock),
            )
            values = job.study.measure(tools)
            made = {**job.describe(), "status": "done", "values": values, **clock.read()}
            made |= provenance(self._device, self._commit)
            record.write(self._results, job.slug, made, record.STUDIES)
            working.discard()
        return "measured"

    def _curve(
        self,
        cell: Cell,
        begin: Callable[[], Training],
        held: ImageDataset | None,
        work: Unfinished,
        clock: Clock,
    ) -> tuple[list[dict[str, Any]], torch.Tensor, Training]:
        """Train to the end; a row an epoch, the last confusion counts, and what was trained."""
        recipe, forward = cell.recipe, self._cost(cell.arch)
        per_image = PASSES_PER_TRAINING_STEP * forward * cell.defense.cost()
        curve: list[dict[str, Any]] = []
        state = work.load("training") or {}
        training = _resumed(state.get("training"), begin)
        if training.epoch:
            curve = json.loads(state["curve"])
            self._monitor.advance(per_image * training.images * training.epoch)

        def save(training: Training) -> None:
            state = {"training": training.state(), "curve": json.dumps(curve)}
            work.save("training", state)
            clock.save()

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
            tested = (len(test) + cell.holdout) * cell.defense.prediction_cost()
            self._monitor.advance(forward * tested)
            curve.append(_finite(row))
            if not last:
                self._monitor.safe_point(partial(save, training))
        return curve, counts, training

    def _shortcut(
        self, cell: Cell, training: Training, crafted: Artifact
    ) -> dict[str, float | None] | None:
        """How the victim takes test images that carry a class's perturbation; see `record`."""
        method = cell.crafting.method
        job = self._crafting(cell.crafting)
        classes = protected_classes(job)
        if not len(classes) or all(ball.epsilon == 0 for ball in method.budget.parts):
            return None
        test = self._data.test_for_curve(cell.recipe.curve_images)
        if len(classes) < len(test.classes):
            test = test.subset(torch.isin(test.labels, classes).nonzero().flatten())
        released = self._released(crafted).images
        forward = self._cost(cell.arch) * cell.defense.prediction_cost()
        following = torch.arange(len(test.classes))
        following[classes] = classes.roll(-1)  # the next protected class, the first after the last

        def confusion(carried: torch.Tensor) -> torch.Tensor:
            self._monitor.advance(forward * len(test))
            return training.confusion(imprinted(method, job, released, test, carried))

        own = confusion(test.labels)
        if len(classes) < 2:  # there is no other shortcut to follow
            return {"own_acc": accuracy(own), "next_acc": None, "next_followed": None}
        other = confusion(following[test.labels])
        followed = int(other[torch.arange(len(following)), following].sum())
        return {
            "own_acc": accuracy(own),
            "next_acc": accuracy(other),
            "next_followed": followed / max(int(other.sum()), 1),
        }

    def _separability(self, job: CraftJob, crafted: Artifact) -> float | None:
        """The shortcut score of a crafted set, taken for whichever victim comes first."""
        identity = {"kind": "separability", "version": VERSION, "crafted": crafted.key}
        score = self._store.artifact("scores", job.slug, identity)
        with score.lock(self._monitor.safe_point):
            if score.damaged():
                self._monitor.note(f"{score.folder} is damaged and is made again")
            if score.manifest() is None:
                train, released = self._data.train, self._released(crafted)
                mask = job.mask(train.labels)
                value = separability(
                    train.images, released.images, train.labels, mask, self._device
                )
                score.publish({}, {"value": value, **provenance(self._device, self._commit)})
            return self._facts(score)["value"]

    def _facts(self, artifact: Artifact) -> dict[str, Any]:
        """What was measured when it was made."""
        manifest = artifact.manifest()
        if manifest is None:
            raise RuntimeError(f"{artifact.folder} is damaged; the next call makes it again")
        return manifest["facts"]

    def _released(self, crafted: Artifact) -> ImageDataset:
        """The dataset that a victim may see."""
        self._facts(crafted)  # it is whole
        images = map_member(crafted.folder / "released.npz", "images")
        return self._data.train.with_images(torch.from_numpy(images))

    def _keep_sample(self, cell: Cell, crafted: Artifact, released: ImageDataset) -> None:
        """A few images beside the record, for reports."""
        file = sample_file(self._results, cell.crafting.slug, crafted.key)
        train = self._data.train
        mask = cell.crafting.mask(train.labels)
        if write_sample(file, crafted.key, train.images, released.images, train.labels, mask):
            self._monitor.note(f"{file} was damaged and is made again")

    def failed(self, cell: Cell, error: str) -> None:
        """Record that a cell failed, with the traceback, unless another command finished it."""
        try:
            if record.is_done(self._results, cell.key):
                return
        except record.NewerRecordError:
            return  # it came in the meantime and stays; the failure is told at the end
        nothing = (
            "final_test_acc peak_test_acc final_train_acc confusion audit crafted_key "
            "crafting_gradient_images crafting_seconds"
        )
        made = {
            **self.describe(cell, failed=True),
            "status": "failed",
            "error": error,
            **dict.fromkeys(nothing.split()),
            "curve": [],
            "seconds": 0.0,
            "core_seconds": 0.0,
            "peak_memory": 0,
            **provenance(self._device, self._commit),
        }
        record.write(self._results, cell.slug, made)

    def describe(self, cell: Cell, *, failed: bool = False) -> dict[str, Any]:
        """The part of a record that says what was asked for.

        Where a cell failed nothing is said of the training that there was not.
        """
        method, classes, data = cell.crafting.method, cell.crafting.classes, self._data
        budget, trained = method.budget, len(data.train) - cell.holdout
        unused = cell.crafting.mask(data.train.labels) if method.unprotected_only else None
        learned = trained - (0 if unused is None else int(unused.sum()))
        return {
            "schema": record.SCHEMA,
            "key": cell.key,
            "identity": cell.identity,
            "method": method.name,
            "method_label": cell.labels["method"],
            "method_settings": method.settings(),
            "method_deviations": method.deviations(),
            "budget": budget.facts(),
            "epsilon": budget.facts()["epsilon"] if budget.norm == "linf" else None,
            "defense": cell.defense.name,
            "defense_label": cell.labels["defense"],
            "defense_settings": cell.defense.settings(),
            "side_information": cell.defense.side_information,
            "defense_deviations": cell.defense.deviations(),
            "defense_notes": list(cell.defense.notes()),
            "defense_facts": {} if failed else self._defense_facts(cell, learned),
            "arch": cell.arch.name,
            "arch_label": cell.labels["arch"],
            "arch_notes": cell.arch.notes(data.train.image_size),
            "width": cell.arch.width,
            "dataset": data.label,
            "dataset_digest": data.train.digest,
            "classes": list(data.train.classes),
            "train_images": trained,
            "test_images": len(data.test),
            "recipe": cell.recipe.name,
            "recipe_label": cell.labels["recipe"],
            "recipe_settings": cell.recipe.settings(),
            "training": cell.trained_by.departures(cell.recipe),
            "precision": cell.precision,
            "poison_ratio": cell.crafting.poison_ratio,
            **({"protected_classes": list(classes)} if classes is not None else {}),
            **({"crafting_recipe": cell.crafted_by} if cell.crafted_by else {}),
            "holdout": cell.holdout,
            "seed": cell.seed,
            "craft_seed": cell.crafting.seed,
        }

    def _defense_facts(self, cell: Cell, images: int) -> dict[str, float]:
        weights = round(self._cost.of(cell.arch).parameters)
        return dict(cell.defense.facts(cell.trained_by, images, weights))


class Clock:
    """Seconds spent on something, over all attempts.

    Args:
        work: keeps the count.
    """

    def __init__(self, work: Unfinished) -> None:
        self._work = work
        self._before = work.read("clock") or {"seconds": 0.0, "core_seconds": 0.0}
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
        self._work.write("clock", self.read())


class _Timed(Monitor):
    """A monitor that keeps the clock whenever work is saved."""

    def __init__(self, monitor: Monitor, clock: Clock) -> None:
        super().__init__()
        self._monitor, self._clock = monitor, clock

    def advance(self, flop: float) -> None:
        self._monitor.advance(flop)

    def note(self, text: str) -> None:
        self._monitor.note(text)

    def stopping(self) -> bool:
        return self._monitor.stopping()

    def safe_point(self, save: Callable[[], None] = lambda: None) -> None:
        def save_both() -> None:
            save()
            self._clock.save()

        self._monitor.safe_point(save_both)


def provenance(device: torch.device, commit: str) -> dict[str, Any]:
    """When, with which code, which versions, and on what."""
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "versions": versions(),
        "device": describe(device),
    }


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


def _called(job: SurrogateJob) -> str:
    return f"surrogate {job.arch.title}"


def _checkpoint(epoch: int) -> str:
    return f"epoch-{epoch:03d}"


def _resumed(state: Any, begin: Callable[[], Training]) -> Training:
    """The training with a saved state loaded, or a fresh one if there is none or it is foreign."""
    training = begin()
    if not state:
        return training
    try:
        training.load_state(state)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError):
        return begin()
    return training


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: a loss that diverged becomes null."""
    wrong = {k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)}
    return {key: None if key in wrong else value for key, value in row.items()}

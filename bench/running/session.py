"""A run as it was asked for: the grid, the folders, and how much of the machine to use."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from bench.component import build, parse_one
from bench.data import Places, Progress
from bench.grid import Cell, Expansion, Grid, TrainingData
from bench.record import CELLS
from bench.record import STUDIES as MEASUREMENTS
from bench.registry import ROOT, STUDIES, load_plugin
from bench.running.plan import Job
from bench.store import Store, check_locks, check_writable, key_of
from bench.study import Study, StudyJob


@dataclass(frozen=True)
class Session:
    """Everything that another process needs to take part in a run.

    Attributes:
        grid: what to run.
        results: folder of the records.
        store: folder of tensors and checkpoints.
        data: folder of data sets.
        download: whether the network may be used.
        plugins: files with further components.
        threads: for PyTorch, in each process.
        jobs_per_gpu: processes that share a GPU.
        memory: bytes that each process may take of its GPU, or plan with on a processor; None
            for all there is.
        deadline: when to stop, by `time.monotonic`, or None. All processes of a machine share
            that clock, and nobody sets it.
        studies: what is measured instead of the grid's cells, as typed; the grid says on what.
        longer: keys of cells of the grid that are also trained for twice the epochs.
        commit: of the code, taken when the run begins; what is imported later may differ from
            what stands in the folder by then.
    """

    grid: Grid
    results: Path = ROOT / "results" / "local"
    store: Path = ROOT / "store"
    data: Path = ROOT / "data"
    download: bool = True
    plugins: tuple[str, ...] = ()
    threads: int = field(default_factory=lambda: cores())
    jobs_per_gpu: int = 1
    memory: int | None = None
    deadline: float | None = None
    studies: tuple[str, ...] = ()
    longer: tuple[str, ...] = ()
    commit: str = field(default_factory=lambda: commit())

    def open(
        self,
        progress: Progress = lambda what, done, total: None,
        resolved: Callable[[Expansion], None] = lambda expansion: None,
    ) -> Opened:
        """Resolve the names and load the images.

        Args:
            progress: told about loading.
            resolved: told what will run, before anything is loaded.

        Raises:
            UsageError: in one line, for anything that cannot be run as asked.
        """
        for plugin in self.plugins:
            load_plugin(plugin)
        expansion = Expansion(self.grid)
        resolved(expansion)
        places = Places(self.data, self.store / "datasets", self.download, progress)
        splits = expansion.source.load(places)
        data = TrainingData.cut(splits, expansion.recipe, expansion.source)
        cells, studies = expansion.cells(data), []
        cells += [cell.longer() for cell in cells if cell.key in self.longer]
        for typed in self.studies:
            study: Study = build(STUDIES, parse_one(typed, STUDIES), expansion.recipe.scale)
            studies += study.jobs(cells)
        wanted = [] if self.studies else cells
        return Opened(expansion, data, wanted, Store(self.store), studies)

    def check_folders(self) -> None:
        """Raise UsageError if results or store cannot be written."""
        check_writable(self.store, "store", "--store")
        check_locks(self.store, "store", "--store")
        for room in (MEASUREMENTS,) if self.studies else (CELLS,):
            check_writable(self.results / room, "results", "--results-dir")

    def time_is_up(self) -> bool:
        """Whether the time limit has been reached."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def to_json(self) -> str:
        """One line for another process."""
        paths = {name: str(getattr(self, name)) for name in ("results", "store", "data")}
        return json.dumps(asdict(self) | paths)

    @classmethod
    def from_json(cls, text: str) -> Session:
        """What `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        grid: Mapping[str, Any] = values.pop("grid")
        for name in ("results", "store", "data"):
            values[name] = Path(values[name])
        for name in ("plugins", "studies", "longer"):
            values[name] = tuple(values[name])
        return cls(grid=Grid(**grid), **values)


@dataclass(frozen=True)
class Opened:
    """A session with its names resolved and its images loaded.

    Attributes:
        cells: to be recorded; none if there are studies.
        studies: to be recorded.
    """

    expansion: Expansion
    data: TrainingData
    cells: list[Cell]
    store: Store
    studies: list[StudyJob]

    def jobs(self) -> dict[str, Job]:
        """Everything that may have to be made for cells and studies, by key, done or not."""
        found: dict[str, Job] = {one.key: one for one in (*self.cells, *self.studies)}
        crafted = [cell.crafting for cell in self.cells]
        for study in self.studies:
            crafted += [crafting for _, crafting in study.crafted]
            found |= {key_of(job.identity): job for job in study.surrogates}
        for whole in crafted:
            for crafting in (*whole.parts, whole):
                found[key_of(crafting.identity)] = crafting
                found |= {key_of(job.identity): job for job in crafting.surrogates}
        return found


def cores() -> int:
    """Processor cores that this process may use, a container's quota counted."""
    has_affinity = hasattr(os, "sched_getaffinity")
    count = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return count if quota == "max" else max(1, min(count, int(quota) // int(period)))
    except (OSError, ValueError):
        return count


@cache
def commit() -> str:
    """The code's commit, with "+" if a file of it was changed; "unknown" outside a checkout."""
    packages = ["run_bench.py", "bench", "methods", "defenses"]
    try:
        top, head, changes = (
            subprocess.run(
                ["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in (
                ["rev-parse", "--show-toplevel"],
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--", *packages],
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    if Path(top).resolve() != ROOT:
        return "unknown"
    return head + ("+" if changes else "")

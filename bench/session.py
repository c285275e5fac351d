"""A run as it was asked for: the grid, the folders, and how much of the machine to use."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.data import Places, Progress
from bench.grid import Cell, Expansion, Grid, TrainingData
from bench.plan import Plan, make_plan
from bench.registry import ROOT, load_plugin
from bench.store import Store, check_writable


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
        deadline: seconds since the epoch at which to stop, or None.
    """

    grid: Grid
    results: Path = ROOT / "results" / "local"
    store: Path = ROOT / "store"
    data: Path = ROOT / "data"
    download: bool = True
    plugins: tuple[str, ...] = ()
    threads: int = field(default_factory=lambda: cores())
    deadline: float | None = None

    def open(self, progress: Progress = lambda what, done, total: None) -> Opened:
        """Resolve the names, load the images, and see what is left to do.

        Raises:
            UsageError: in one line, for anything that cannot be run as asked.
        """
        for plugin in self.plugins:
            load_plugin(plugin)
        expansion = Expansion(self.grid)
        store = Store(self.store)
        store.check_writable()
        check_writable(self.results, "results", "--results-dir")
        places = Places(self.data, self.store / "datasets", self.download, progress)
        splits = expansion.source.load(places)
        data = TrainingData.cut(splits, expansion.recipe, expansion.source.title)
        cells = expansion.cells(data)
        return Opened(expansion, data, cells, store, make_plan(cells, data, store, self.results))

    def time_is_up(self) -> bool:
        """Whether the time limit has been reached."""
        return self.deadline is not None and time.time() >= self.deadline

    def to_json(self) -> str:
        """One line for another process."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Session:
        """What `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        grid: Mapping[str, Any] = values.pop("grid")
        for name in ("results", "store", "data"):
            values[name] = Path(values[name])
        values["plugins"] = tuple(values["plugins"])
        return cls(grid=Grid(**{**grid, "seeds": tuple(grid["seeds"])}), **values)


@dataclass(frozen=True)
class Opened:
    """A session with its images, and what is left to do."""

    expansion: Expansion
    data: TrainingData
    cells: list[Cell]
    store: Store
    plan: Plan


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

"""Run a grid: what is not recorded yet, in an order that shares, on as many processes as asked."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import torch

from bench.crafting import Monitor
from bench.device import configure, gpus, total_memory
from bench.errors import NOT_RUN
from bench.files import user_path
from bench.grid import Cell, Expansion, Grid
from bench.registry import ROOT, plugin_files
from bench.running.plan import Plan, Task, make_plan
from bench.running.progress import Display, duration
from bench.running.session import Opened, Session, cores
from bench.running.work import Workshop
from bench.running.worker import Relay, attempt
from bench.store import key_of
from bench.study import StudyJob
from bench.terminal import say


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        cells: all cells of the grid.
        failed: titles of the tasks that failed, each with the last line of its traceback.
        unfinished: how many tasks the time limit left.
        results: folder of the records.
        seconds: on the wall.
        studies: all studies that were asked for.
    """

    cells: list[Cell]
    results: Path
    failed: dict[str, str] = field(default_factory=dict)
    unfinished: int = 0
    seconds: float = 0.0
    studies: list[StudyJob] = field(default_factory=list)


def run(
    grid: Grid,
    *,
    results_dir: str | Path = ROOT / "results" / "local",
    store: str | Path = ROOT / "store",
    data_dir: str | Path = ROOT / "data",
    workers: int | None = None,
    threads: int | None = None,
    jobs_per_gpu: int = 1,
    memory: int | None = None,
    time_limit: float | None = None,
    download: bool = True,
    plugins: tuple[str, ...] = (),
    quiet: bool = False,
) -> Outcome:
    """Run every cell of a grid that has no record yet.

    Args:
        grid: what to run.
        results_dir: where the records go.
        store: where tensors and checkpoints go; safe to delete.
        data_dir: where data sets lie.
        workers: processes; None takes one a core on a CPU, and `jobs_per_gpu` on each GPU.
        threads: of each process; None shares the cores out. A CPU's sums depend on it in their
            last digits, so only equal numbers give records that are equal to the last digit.
        jobs_per_gpu: processes that share a GPU; worthwhile where networks are small.
        memory: bytes that each process may take of its GPU, or plan with on a CPU.
        time_limit: seconds after which to stop at the next checkpoint.
        download: whether a data set that is not there may be fetched.
        plugins: files with further components.
        quiet: show no progress.

    Raises:
        UsageError: in one line, for anything that cannot be run as asked.
    """
    results, kept, data = (user_path(one).resolve() for one in (results_dir, store, data_dir))
    session = Session(
        grid,
        results,
        kept,
        data,
        download,
        plugins,
        jobs_per_gpu=jobs_per_gpu,
        memory=memory,
        deadline=None if time_limit is None else time.monotonic() + time_limit,
    )
    with _output(quiet) as stream:
        return run_session(session, workers, threads, stream)


def run_session(
    session: Session, workers: int | None, threads: int | None, stream: TextIO
) -> Outcome:
    """Like `run`, with the session made already and progress written to a stream."""
    started = time.monotonic()
    session.check_folders()
    session = replace(session, plugins=tuple(dict.fromkeys([*session.plugins, *plugin_files()])))
    opened = session.open(Loading(stream), lambda made: say(stream, announcement(made)))
    plan = make_plan(opened.cells, opened.data, opened.store, session.results, opened.studies)
    for note in plan.notes:
        say(stream, f"note: {note}")
    # Not from what is left to do: a run that is resumed must not compute with other threads.
    session, workers = share_out(session, opened.expansion.device, workers, threads)
    workers = max(1, min(workers, len(plan.tasks)))
    outcome = Outcome(opened.cells, session.results, studies=opened.studies)
    if plan.tasks:
        display = Display(plan.flop, len(plan.tasks), stream)
        schedule = _Schedule(opened, plan, session, outcome, display)
        try:
            if workers == 1:
                schedule.run_here()
            else:
                schedule.run_in_processes(workers)
        finally:
            display.close()
    outcome.seconds = time.monotonic() - started
    return outcome


def share_out(
    session: Session, device: torch.device, workers: int | None, threads: int | None
) -> tuple[Session, int]:
    """Decide on the number of processes, and give each its part of cores and memory.

    One a core on a processor, since small networks gain little from a second thread; on GPUs
    `jobs_per_gpu` on each.

    Args:
        session: with the user's own limits.
        device: where it runs; "cuda" without a number stands for all GPUs.
        workers: a number of processes asked for.
        threads: a number of threads asked for.
    """
    devices = max(len(gpus(device)), 1)
    if workers is None:
        workers = cores() if device.type == "cpu" else devices * session.jobs_per_gpu
    threads = threads or max(1, cores() // workers)
    memory = session.memory or total_memory(device) // -(-workers // devices)
    return replace(session, threads=threads, memory=memory), workers


class WorkerError(RuntimeError):
    """A worker process could not start."""


class _Schedule:
    """Which task is next, and what follows from the end of one."""

    def __init__(
        self, opened: Opened, plan: Plan, session: Session, outcome: Outcome, display: Display
    ) -> None:
        self._opened, self._session = opened, session
        self._outcome, self._display = outcome, display
        self._waiting = dict(plan.tasks)
        self._urgency = plan.urgency()
        self._unmet = {key: set(task.needs) for key, task in self._waiting.items()}
        self._started: dict[str, float] = {}
        self._stopping = False

    def run_here(self) -> None:
        """One task after the other in this process."""
        relay = Relay(self._session, self._display.advance, self._display.line)
        expansion, session = self._opened.expansion, self._session
        configure(expansion.precision, session.threads, expansion.device, session.memory)
        workshop = self._workshop(relay)
        while (task := self._next()) is not None:
            event = attempt(workshop, task.job, task.epochs)
            relay.flush()
            self._ended(task, event)
        self._outcome.unfinished += len(self._waiting)

    def run_in_processes(self, count: int) -> None:
        """Tasks side by side, each worker with its share of the cores."""
        events: queue.Queue[tuple[int, dict[str, Any]]] = queue.Queue()
        places = gpus(self._opened.expansion.device)
        jobs = key_of(sorted(self._opened.jobs()))

        def start(number: int) -> _Worker:
            # A device with a number was chosen by the user and is left to the worker to find.
            gpu = places[number % len(places)] if len(places) > 1 else None
            return _Worker(number, self._session, events, gpu)

        workers = [start(number) for number in range(count)]
        logs = self._session.store / "logs"
        busy: dict[int, Task] = {}
        idle: set[int] = set()
        try:
            while True:
                self._assign(workers, idle, busy)
                if not busy and len(idle) == sum(worker.alive for worker in workers):
                    break
                number, event = events.get()
                if event["event"] == "ready":
                    if event["jobs"] != jobs:
                        raise WorkerError("the data changed while workers started; repeat this")
                    idle.add(number)
                elif event["event"] == "advance":
                    self._display.advance(event["flop"])
                elif event["event"] == "note":
                    self._display.line(event["line"])
                elif event["event"] == "broken" and number not in busy:
                    reason = event["error"].strip().rpartition("\n")[2]
                    raise WorkerError(f"a worker could not go on ({reason}); see {logs}")
                else:
                    if event["event"] == "broken":
                        event = {"event": "failed", "error": event["error"]}
                        workers[number].stop()
                        workers[number] = start(number)
                    else:
                        idle.add(number)
                    self._ended(busy.pop(number), event)
        finally:
            for worker in workers:
                worker.stop()
        self._outcome.unfinished += len(self._waiting)

    def _assign(self, workers: list[_Worker], idle: set[int], busy: dict[int, Task]) -> None:
        for number in sorted(idle):
            task = self._next()
            if task is None:
                return
            idle.discard(number)
            busy[number] = task
            workers[number].send(json.dumps({"key": task.key, "epochs": task.epochs}))

    def _next(self) -> Task | None:
        """The most urgent task that can start now."""
        # One task begins whatever the limit, and comes to its first safe point: else a limit that
        # is shorter than the start would never be of any use.
        if self._stopping or (self._started and self._session.time_is_up()):
            return None
        ready = [key for key in self._waiting if not self._unmet[key]]
        if not ready:
            return None
        task = self._waiting.pop(max(ready, key=lambda key: self._urgency[key]))
        self._started[task.key] = time.monotonic()
        self._display.start(task.title)
        return task

    def _ended(self, task: Task, event: dict[str, Any]) -> None:
        seconds = time.monotonic() - self._started[task.key]
        if event["event"] == "done":
            for unmet in self._unmet.values():
                unmet.discard(task.key)
            self._display.finish(task.title, event["outcome"], seconds)
        elif event["event"] == "stopped":
            self._stopping = True
            self._outcome.unfinished += 1
            self._display.finish(task.title, "stopped at a checkpoint", seconds)
        else:
            reason = event["error"].strip().rpartition("\n")[2]
            self._outcome.failed[task.title] = reason
            kind = "NOT RUN" if reason.startswith(NOT_RUN) else "FAILED"
            self._display.finish(task.title, f"{kind}: {reason.removeprefix(NOT_RUN)}", seconds)
            self._record_failure(task, event["error"])

    def _record_failure(self, task: Task, error: str) -> None:
        """Record the cell, or every cell that waited for it, as failed."""
        if isinstance(task.job, StudyJob):
            return  # it has no place in a grid, and is told at the end
        if isinstance(task.job, Cell):
            self._workshop(Monitor()).failed(task.job, error)
            return
        for key in [key for key, other in self._waiting.items() if task.key in other.needs]:
            dependent = self._waiting.pop(key)
            self._outcome.failed[dependent.title] = f"{task.title} failed"
            self._record_failure(dependent, f"{task.title} failed:\n{error}")

    def _workshop(self, monitor: Monitor) -> Workshop:
        device = self._opened.expansion.device
        return Workshop(self._opened, self._session, device, monitor)


class _Worker:
    """The runner's end of a worker process."""

    def __init__(
        self,
        number: int,
        session: Session,
        events: queue.Queue[tuple[int, dict[str, Any]]],
        gpu: str | None,
    ) -> None:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        logs = session.store / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self._log = logs / f"worker-{os.getpid()}-{number}.log"
        with self._log.open("w") as log:
            # A session of its own, so that Ctrl-C reaches the runner alone, which then ends it.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "bench.running.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={
                    **os.environ,
                    "PYTHONPATH": path,
                    "OMP_NUM_THREADS": str(session.threads),
                    **({"CUDA_VISIBLE_DEVICES": gpu} if gpu is not None else {}),
                },
                start_new_session=True,
            )
        self._number, self._events = number, events
        self.alive = True
        self.send(session.to_json())
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, line: str) -> None:
        """Write one line; a dead worker is noticed by its silence."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError:
            pass

    def stop(self) -> None:
        """End the process, whatever it is doing; what was saved is on disk."""
        self.alive = False
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        if self._log.exists() and self._log.stat().st_size == 0:
            self._log.unlink()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                self._events.put((self._number, json.loads(line)))
        except ValueError:  # closed by `stop`, or cut off in the middle of a line
            self._process.kill()
        if self.alive:
            self.alive = False
            code = self._process.wait()
            tail = self._log.read_text(errors="replace")[-2000:] if self._log.exists() else ""
            error = f"{tail}\nworker process ended with status {code}"
            self._events.put((self._number, {"event": "broken", "error": error}))


class Loading:
    """Says what loading a data set is doing, where that takes long."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._last, self._what = stream, time.monotonic(), ""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Write a line when something else begins, and every two seconds."""
        now = time.monotonic()
        if now - self._last < 2 and what == self._what:
            return
        share = f" {done / total:.0%}" if total else ""
        say(self._stream, f"{what}{share}")
        self._last, self._what = now, what


@contextmanager
def _output(quiet: bool) -> Iterator[TextIO]:
    if not quiet and sys.stderr is not None:
        yield sys.stderr
        return
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - not a file of ours
        yield nowhere


def announcement(expansion: Expansion) -> str:
    """What is about to run, in a line; below the papers' scale it says so."""
    recipe = expansion.recipe
    images = "all images" if recipe.train_images is None else f"{recipe.train_images} images"
    text = (
        f"recipe {expansion.recipe_label}: {recipe.epochs} epochs on {images} at width "
        f"{recipe.width:g}, {expansion.precision} on {expansion.device}"
    )
    if recipe.scale != "paper":
        text += "; not comparable with published values, as --recipe paper is"
    return text


def summary(outcome: Outcome) -> str:
    """How a run ended, in a line."""
    done = len(outcome.cells) + len(outcome.studies)
    kind = "studies" if outcome.studies and not outcome.cells else "cells"
    text = f"{done} {kind} in {duration(outcome.seconds)}"
    if outcome.unfinished:
        text += f"; {outcome.unfinished} tasks left: the same command continues"
    lacking = sum(reason.startswith(NOT_RUN) for reason in outcome.failed.values())
    if len(outcome.failed) > lacking:
        text += f"; {len(outcome.failed) - lacking} tasks FAILED"
    if lacking:
        text += f"; {lacking} not run"
    return text

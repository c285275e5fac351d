"""The same work in several processes of one thread each, as the runner does it on a processor."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch

from bench.device import configure
from bench.speed.timing import Contender


class SideBySide:
    """A contender made of several; use it in a `with` block.

    Args:
        count: of processes.
        make: a function of a module, which makes a process's own contender.
        arguments: for `make`, fit to be sent to another process.
    """

    def __init__(self, count: int, make: Callable[..., Contender], *arguments: Any) -> None:
        context = get_context("spawn")
        self._ends: list[Connection] = []
        self._processes = []
        for _ in range(count):
            near, far = context.Pipe()
            # No daemon, since it may have children that decode; it ends when its pipe closes.
            process = context.Process(target=_serve, args=(far, make, arguments))
            process.start()
            far.close()
            self._ends.append(near)
            self._processes.append(process)

    def __call__(self) -> float:
        """Let all of them work once; returns the images of all."""
        for end in self._ends:
            end.send(None)
        return sum(end.recv() for end in self._ends)

    def __enter__(self) -> SideBySide:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for end in self._ends:
            end.close()  # what a process waits for; it then ends its own children in order
        for process in self._processes:
            process.join(10)
            process.terminate()
            process.join()


def _serve(orders: Connection, make: Callable[..., Contender], arguments: tuple[Any, ...]) -> None:
    work = make(*arguments)
    while True:
        try:
            orders.recv()
        except EOFError:
            return
        orders.send(work())


def one_thread(make: Callable[..., Contender], bench: Any, *arguments: Any) -> Contender:
    """A contender in a process that computes with one thread."""
    configure(bench.fast, 1, bench.device)
    return make(bench, *arguments)


def untouched(make: Callable[..., Contender], threads: int, *arguments: Any) -> Contender:
    """A contender in a process in which nothing of ours is set, such as how memory is freed."""
    torch.set_num_threads(threads)
    return make(*arguments)

"""Timing side by side, so that a machine's moods hit all contenders alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

Contender = Callable[[], float]
"""Does some work and returns how much of it, in images."""


@dataclass(frozen=True)
class Rates:
    """Images per second in every round, by contender."""

    rounds: dict[str, list[float]]

    def __getitem__(self, name: str) -> float:
        """The median of a contender's rounds."""
        return median(self.rounds[name])

    def ratio(self, name: str, other: str) -> float:
        """How many times as fast `name` is as `other`: the median over rounds of their ratio."""
        pairs = zip(self.rounds[name], self.rounds[other], strict=True)
        return median(one / two for one, two in pairs)

    def spread(self, name: str, other: str) -> tuple[float, float]:
        """The smallest and the largest of those ratios."""
        ratios = [a / b for a, b in zip(self.rounds[name], self.rounds[other], strict=True)]
        return min(ratios), max(ratios)


def take_turns(
    contenders: Mapping[str, Contender], device: torch.device, rounds: int, least: float = 1.0
) -> Rates:
    """Let each contender work in turn, in every round for at least some time.

    Args:
        contenders: by name; each is called once beforehand, to warm up.
        device: waited for before the clock is read.
        rounds: how often each has its turn.
        least: seconds of a turn.
    """
    for work in contenders.values():
        work()
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            wait(device)
            started, done = time.perf_counter(), 0.0
            while True:
                done += work()
                wait(device)
                spent = time.perf_counter() - started
                if spent >= least:
                    break
            found[name].append(done / spent)
    return Rates(found)


def best_seconds(work: Callable[[], object], device: torch.device, times: int = 5) -> float:
    """The shortest of some runs: what a ceiling is made of.

    A run repeats the work for some 20 ms, so that waiting for a GPU does not count.
    """

    def run(count: int) -> float:
        wait(device)
        started = time.perf_counter()
        for _ in range(count):
            work()
        wait(device)
        return (time.perf_counter() - started) / count

    run(1)
    count = max(1, round(0.02 / max(run(1), 1e-6)))
    return min(run(count) for _ in range(times))


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

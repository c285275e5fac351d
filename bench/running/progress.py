"""What a long run shows: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

from tqdm import tqdm

from bench.terminal import printable, say

LINE_EVERY_SECONDS = 30.0


class Display:
    """Progress of a plan.

    Args:
        total: estimated work, in floating point operations.
        tasks: how many there are.
        stream: where to write.
    """

    def __init__(self, total: float, tasks: int, stream: TextIO = sys.stderr) -> None:
        self._total, self._tasks, self._stream = max(total, 1.0), tasks, stream
        self._done_work, self._finished = 0.0, 0
        self._start = self._last_line = time.monotonic()
        self._running: list[str] = []
        self._bar = None
        if stream.isatty():
            form = "{percentage:3.0f} % |{bar}| {elapsed}, {remaining} left{postfix}"
            # Some pseudo-terminals claim a size of zero, which tqdm takes as no room for a bar.
            columns, rows = shutil.get_terminal_size()
            self._bar = tqdm(
                total=self._total,
                bar_format=form,
                file=stream,
                smoothing=0.05,
                ncols=columns,
                nrows=rows,
            )

    def advance(self, flop: float) -> None:
        """So much more is done."""
        flop = min(flop, self._total - self._done_work)  # estimates may fall short
        self._done_work += flop
        if self._bar is not None:
            self._bar.update(flop)
        elif time.monotonic() - self._last_line > LINE_EVERY_SECONDS:
            running, share = "; ".join(self._running), self._done_work / self._total
            # From next to nothing no time can be foretold; closed forms count as no work at all.
            left = f", {self._left()} left" if share > 0.001 else ""
            self.line(f"  {share:4.0%} done{left}: {running}")

    def start(self, title: str) -> None:
        """A task begins."""
        self._running.append(title)
        self._show_running()

    def finish(self, title: str, outcome: str, seconds: float) -> None:
        """A task ended."""
        self._running.remove(title)
        self._finished += 1
        self.line(f"[{self._finished}/{self._tasks}] {title}: {outcome} ({seconds:.0f} s)")
        self._show_running()

    def line(self, text: str) -> None:
        """A line of its own."""
        self._last_line = time.monotonic()
        if self._bar is None:
            say(self._stream, text)
        else:
            self._bar.write(printable(text), file=self._stream)

    def close(self) -> None:
        """Leave the terminal tidy."""
        if self._bar is not None:
            self._bar.close()

    def _show_running(self) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(printable("; ".join(self._running))[:60])

    def _left(self) -> str:
        spent = time.monotonic() - self._start
        rest = spent * (self._total - self._done_work) / max(self._done_work, 1.0)
        return duration(rest)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"

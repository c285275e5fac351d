"""Standard streams whose reader may leave before the end, as in `run_bench.py --list | head`."""

from __future__ import annotations

import io
import os
from typing import Any, TextIO


class _Forgetful(io.FileIO):
    """A pipe; once nobody reads it any more it takes everything and keeps nothing."""

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(memoryview(content).cast("B"))


def outliving(stream: TextIO) -> TextIO:
    """The stream, which no longer cares whether somebody reads it; other streams as they are.

    What a command does, and the code it ends with, must not depend on who looks at what it says.
    """
    buffer = getattr(stream, "buffer", None)
    unbuffered = isinstance(buffer, io.FileIO)  # as Python was asked to with -u
    if not unbuffered and not isinstance(getattr(buffer, "raw", None), io.FileIO):
        return stream
    stream.flush()
    raw = _Forgetful(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),  # type: ignore[arg-type]
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=bool(stream.line_buffering),
        write_through=unbuffered,
    )

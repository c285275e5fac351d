"""The way to a terminal: a wrong option is one line, and no name can steer the screen."""

from __future__ import annotations

import argparse
import os
import re
from typing import NoReturn, TextIO

from bench.errors import UsageError

LONGEST_LINE = 2000
"""Characters of a line; of a longer one the middle is left out."""

# Characters that move the cursor, break the line, turn the direction of reading, or are halves.
_STEERING = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def printable(text: str) -> str:
    r"""Text on one line whose control characters are written out, as `\n` and `\u001b`."""
    return _STEERING.sub(lambda found: _SHORT.get(found[0], f"\\u{ord(found[0]):04x}"), text)


def say(stream: TextIO, text: str) -> None:
    """Write a line, at once and whatever is in it."""
    line = printable(text)
    if len(line) > LONGEST_LINE:
        half = LONGEST_LINE // 2
        line = f"{line[:half]} ... {line[-half:]}"
    stream.write(line + "\n")
    stream.flush()


def show(text: str) -> None:
    """Print text of any number of lines, or JSON, on standard output."""
    print("\n".join(map(printable, text.split("\n"))))  # noqa: T201 - what commands answer


def open_closed_streams() -> None:
    """Give standard streams that were closed a place that takes everything.

    The next file opened would get the number of one, and what libraries print would land in it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one


class Parser(argparse.ArgumentParser):
    """Options; what is wrong with them is one line."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{message}; {self.prog} --help lists what there is")

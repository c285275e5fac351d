"""A table as text: for the terminal, in Markdown, CSV and LaTeX; and numbers as text."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.reports.summary import Spread
from bench.terminal import printable

if TYPE_CHECKING:
    import pandas as pd

TERMINAL_WIDTH = 100
MISSING = "–"


@dataclass(frozen=True)
class Table:
    """One table, ready to be set in any of four formats.

    Attributes:
        name: what the table is about, as a part of file names.
        caption: what the figures are, at which scale they were made, and what that means.
        cells: every cell as text; headings may repeat.
        lead: how many columns name the row; they are set flush left.
        step: how many of the other columns belong together.
        notes: explanations below the table, a paragraph each.
        numbers: the same content for machines, a row a cell.
    """

    name: str
    caption: tuple[str, ...]
    cells: pd.DataFrame
    lead: int
    step: int
    notes: tuple[str, ...]
    numbers: pd.DataFrame

    def __post_init__(self) -> None:
        # What a name consists of was up to others: a table stays one, wherever it is shown.
        safe = self.cells.map(printable)
        safe.columns = list(map(printable, self.cells.columns))
        object.__setattr__(self, "cells", safe)
        for name in ("caption", "notes"):
            object.__setattr__(self, name, tuple(map(printable, getattr(self, name))))

    def text(self) -> str:
        """For the terminal, at most `TERMINAL_WIDTH` wide where names allow it."""
        blocks = "\n\n".join(self._plain(block) for block in self._blocks())
        caption, notes = ("\n".join(map(_wrap, part)) for part in (self.caption, self.notes))
        return "\n\n".join(filter(None, (caption, blocks, notes))) + "\n"

    def markdown(self) -> str:
        """A pipe table between its caption and its notes."""
        safe = self.cells.map(_markdown)
        safe.columns = [_markdown(name) for name in self.cells.columns]
        body = self._headed(safe, "pipe")
        notes = "\n".join(f"- {_markdown(note)}" for note in self.notes)
        return "\n\n".join(filter(None, (_markdown(" ".join(self.caption)), body, notes))) + "\n"

    def csv(self) -> str:
        """One line a row and architecture, numbers only; what is unknown is empty."""
        from pandas.api.types import is_numeric_dtype

        safe = self.numbers.rename(columns=_entry)
        for place, kind in enumerate(safe.dtypes):
            if not is_numeric_dtype(kind):
                safe.isetitem(place, safe.iloc[:, place].map(_entry))
        return safe.to_csv(index=False, lineterminator="\n")

    def latex(self, label: str = "") -> str:
        """A floating table for the packages booktabs and inputenc (utf8).

        Args:
            label: what `ref` finds it by; the name of the table by default.
        """
        # A star at the beginning of a line would belong to the end of the line before.
        safe = self.cells.map(lambda text: re.sub(r"^\*", "{*}", _latex(text)))
        safe.columns = [_latex(name) for name in self.cells.columns]
        caption = _latex(" ".join(self.caption))
        body = self._headed(safe, "latex_raw")
        for rule in ("top", "mid", "bottom"):
            body = body.replace(r"\hline", rf"\{rule}rule", 1)
        lines = [
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{label or self.name}}}",
            body,
            *(rf"\par\footnotesize {_latex(note)}" for note in self.notes),
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def _blocks(self) -> list[pd.DataFrame]:
        """The whole table, or, where that is too wide, evenly cut groups of its columns."""
        pairs = max((self.cells.shape[1] - self.lead) // self.step, 1)
        for count in range(1, pairs):
            blocks = [self._block(part) for part in _cut(range(pairs), count)]
            if max(map(self._width, blocks)) <= TERMINAL_WIDTH:
                return blocks
        return [self._block(part) for part in _cut(range(pairs), pairs)]

    def _block(self, pairs: range) -> pd.DataFrame:
        first, last = (self.lead + self.step * i for i in (pairs.start, pairs.stop))
        return self.cells.iloc[:, [*range(self.lead), *range(first, last)]]

    def _width(self, block: pd.DataFrame) -> int:
        return max(map(len, self._plain(block).splitlines()))

    def _plain(self, cells: pd.DataFrame) -> str:
        """A table for the terminal, its headings set as a row: tabulate pads real ones."""
        headed = [list(cells.columns), *cells.to_numpy().tolist()]
        rule, heads, *lines, _ = self._set(headed, "simple", [])
        return "\n".join([heads, rule, *lines])

    def _headed(self, cells: pd.DataFrame, style: str) -> str:
        return "\n".join(self._set(cells.to_numpy().tolist(), style, list(cells.columns)))

    def _set(self, lines: list[list[str]], style: str, heads: list[str]) -> list[str]:
        from tabulate import tabulate

        columns = max(map(len, lines), default=0)
        sides = ["left"] * self.lead + ["right"] * (columns - self.lead)
        body = tabulate(lines, headers=heads, tablefmt=style, disable_numparse=True, colalign=sides)
        return [line.rstrip() for line in body.splitlines()]


def percent(spread: Spread) -> str:
    """Mean and deviation of fractions, in percent; a single value stands alone."""
    if not spread.n:
        return MISSING
    mean = decimals(100 * spread.mean, 1)
    return mean if spread.n == 1 else f"{mean} ± {100 * spread.sd:.1f}"


def in_percent(value: float | None) -> float | None:
    """A fraction in percent; None stays None."""
    return None if value is None else 100 * value


def decimals(value: float | None, digits: int) -> str:
    """A number with so many digits after the point, or a dash where there is none."""
    if value is None or math.isnan(value):
        return MISSING
    # A tie must not fall by the dust of a sum, which depends on the units that it was taken in;
    # adding zero turns the "-0.0" of a tiny negative number into "0.0".
    return f"{round(round(value, 9), digits) + 0.0:.{digits}f}".replace("-", "−")


def rounded(value: float | None) -> float | None:
    """For machines, without the dust of binary fractions; None where there is no number."""
    return None if value is None or math.isnan(value) else round(value, 4)


def frame(heads: list[str], lines: list[list[str]]) -> pd.DataFrame:
    """The cells of a table; headings may repeat."""
    import pandas as pd

    return pd.DataFrame(lines, columns=heads, dtype=object)


def machine(numbers: Iterable[Mapping[str, Any]], counts: Collection[str] = ()) -> pd.DataFrame:
    """Rows of numbers as a frame.

    Args:
        numbers: a row each.
        counts: columns of whole numbers, which stay whole where rows have none.
    """
    import pandas as pd

    made = pd.DataFrame(list(numbers))
    return made.astype({name: "Int64" for name in counts if name in made})


def hundredths(name: str, spread: Spread) -> dict[str, float]:
    """Mean and deviation of fractions in hundredths, without the dust of binary fractions."""
    return {name: round(100 * spread.mean, 4), f"{name}_sd": round(100 * spread.sd, 4)}


def _wrap(text: str) -> str:
    return textwrap.fill(text, TERMINAL_WIDTH, break_long_words=False, break_on_hyphens=False)


def _cut(items: range, count: int) -> list[range]:
    """`count` runs of nearly equal length."""
    size = math.ceil(len(items) / count)
    return [items[start : start + size] for start in range(0, len(items), size)]


_FORMULA = ("=", "@", "+", "-", "＝", "＠", "＋", "－")
_MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\|*_<`[~$"})
_LATEX = str.maketrans(
    {
        **{c: f"\\{c}" for c in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "[": "{[}",
        "±": r"$\pm$",
        "−": "$-$",
        "×": r"$\times$",
        "∞": r"$\infty$",
        "·": r"$\cdot$",
        "–": "--",
        "†": r"$\dagger$",
        "‡": r"$\ddagger$",
        "‖": r"$\Vert$",
        "◊": r"$\diamond$",
        "¬": r"$\neg$",
        "≤": r"$\leq$",
        "≠": r"$\neq$",
        "≈": r"$\approx$",
        "↑": r"$\uparrow$",
        "⊂": r"$\subset$",
        "°": r"$^\circ$",
    }
)


def _markdown(text: str) -> str:
    return text.translate(_MARKDOWN)


def _latex(text: str) -> str:
    return text.translate(_LATEX)


def _entry(value: Any) -> Any:
    """A value that no spreadsheet takes for a formula; the apostrophe is its mark of a text."""
    if not isinstance(value, str):
        return value
    safe = printable(value)
    return f"'{safe}" if safe.startswith(_FORMULA) else safe


def join(tables: Iterable[Table]) -> str:
    """Several tables for the terminal, one below the other."""
    return "\n\n".join(table.text() for table in tables)

"""`run_bench.py diff` and `run_bench.py merge`: between results folders, nothing is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.errors import UsageError
from bench.files import user_path
from bench.terminal import Parser

INCOMPLETE, REFUSED = 1, 2
"""Exit codes: something was left out or not reproduced; nothing was done."""

FORMATS = (".md", ".csv", ".tex", ".txt")


@dataclass(frozen=True)
class Answer:
    """What a command has to say.

    Attributes:
        text: for standard output.
        notes: lines for standard error.
        code: the exit code.
    """

    text: str
    notes: Sequence[str] = ()
    code: int = 0


def diff_parser() -> Parser:
    """The options of `diff`."""
    made = Parser(
        prog="run_bench.py diff",
        description="Which numbers moved between two results folders, by how many standard errors "
        "over victim seeds, which cells only one has, and what differs in settings or versions. "
        "Records with the same key and the same results are counted, not listed. Studies have "
        "lines of their own below.",
        epilog="Exit codes: 0 done, 1 a file was left out or --check failed, 2 wrong request.",
    )
    made.add_argument("a", metavar="A", help="results folder (it holds cells/, studies/ or both)")
    made.add_argument("b", metavar="B", help="another one")
    made.add_argument("--out", metavar="FILE", help=f"write it, too: {', '.join(FORMATS)}")
    made.add_argument(
        "--check",
        action="store_true",
        help="fail if records with equal keys have different results",
    )
    return made


def merge_parser() -> Parser:
    """The options of `merge`."""
    made = Parser(
        prog="run_bench.py merge",
        description="Fold the records, of cells and of studies, and the samples of several results "
        "folders together. Of records with equal keys and results one stays (with the most fields, "
        "then the first finished), and one that is done replaces one that failed. If any two are "
        "done and their results differ, they are listed and nothing is written. Damaged files are "
        "named and left out.",
        epilog="Exit codes: 0 done, 1 done but a file was left out, 2 conflict or wrong request. "
        "After an interruption the same command goes on.",
    )
    made.add_argument(
        "folders", metavar="A", nargs="+", help="results folders (with cells/ or studies/)"
    )
    made.add_argument(
        "--into", metavar="C", required=True, help="folder, new or not; what it has takes part"
    )
    made.add_argument("--no-report", action="store_true", help="no tables and plots in C")
    return made


def answer(words: Sequence[str]) -> Answer:
    """Do what the command line says; its first word is one of `COMMANDS`."""
    return COMMANDS[words[0]](words[1:])


def diff(words: Sequence[str]) -> Answer:
    """Compare two folders."""
    from bench.compare.cells import compare, read_folder
    from bench.compare.studies import compare_studies, read_studies
    from bench.compare.table import diff_table, table_text
    from bench.files import write_text

    typed = diff_parser().parse_args(words)
    out = None if typed.out is None else user_path(typed.out)
    if out is not None and out.suffix not in FORMATS:
        raise UsageError(f"--out {typed.out} must end in {', '.join(FORMATS)}")
    notes: list[str] = []
    folders = [user_path(folder) for folder in (typed.a, typed.b)]
    a, b = (read_folder(folder, notes) for folder in folders)
    studies = compare_studies(*(read_studies(folder, notes) for folder in folders))
    code = INCOMPLETE if notes else 0
    found = compare(a, b)
    equal = found.equal_keys + sum(pair.reproducible for pair in studies)
    unequal = len(found.unequal) + sum(pair.unequal for pair in studies)
    if typed.check and not equal:
        raise UsageError("--check: no record of A and B has the same key, nothing can be checked")
    table = diff_table(found, (typed.a, typed.b), studies)
    if out is not None:
        write_text(out, table_text(table, out.suffix))
        notes.append(f"written: {out}")
    if typed.check:
        notes.append(f"{equal} records with equal keys, {unequal} differ")
        code = INCOMPLETE if unequal else code
    return Answer(table_text(table, ".txt").rstrip(), notes, code)


def merge(words: Sequence[str]) -> Answer:
    """Fold folders together, and report."""
    from bench.compare.merge import ConflictError
    from bench.compare.merge import merge as merge_folders

    typed = merge_parser().parse_args(words)
    into = user_path(typed.into)
    folders = [user_path(folder) for folder in typed.folders]
    try:
        done = merge_folders(folders, into)
    except ConflictError as error:
        conflicts = [f"conflict: {line}" for line in error.cells]
        return Answer("", [*conflicts, f"error: {error}"], REFUSED)
    said = (
        f"{into}: {done.added} records added, {done.replaced} replaced, {done.kept} as they were, "
        f"{done.samples} samples added, {done.studies} studies added or replaced"
    )
    notes = [*done.damaged, *done.notes]
    if not typed.no_report and done.added + done.replaced + done.kept:
        from bench.reports.report import write_report

        report = write_report(into)
        notes += [*report.notes, f"written: {len(report.files)} tables and plots in {into}"]
    return Answer(said, notes, INCOMPLETE if done.damaged else 0)


COMMANDS: dict[str, Callable[[Sequence[str]], Answer]] = {"diff": diff, "merge": merge}

"""Cross protection methods with defenses and architectures; write records, tables and curves.

python run_bench.py --methods sep,advpoison --archs rn18,vgg16
python run_bench.py --list
python run_bench.py --describe sep
"""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench import check_system
from bench.compare.cli import COMMANDS, answer
from bench.component import LONGEST_NUMBER, few, number, whole
from bench.errors import NOT_RUN, UsageError
from bench.files import user_path
from bench.papers.targets import recipes, titles
from bench.pipes import outliving
from bench.registry import DEFENSES, REGISTRIES, load_plugin
from bench.terminal import Parser, open_closed_streams, say, show
from bench.worst_case import SETS

if TYPE_CHECKING:
    from bench.running.runner import Outcome
    from bench.running.session import Session

FAILED, USAGE, UNFINISHED, INTERRUPTED = 1, 2, 3, 130
"""Exit codes: a cell failed; asked for something impossible; the time limit; Ctrl-C."""

DEFAULTS: dict[str, Any] = {
    "methods": "sep,advpoison",
    "archs": "rn18,vgg16",
    "defenses": "none",
    "dataset": "cifar10",
    "recipe": "quick",
    "epsilon": None,
    "seeds": "0",
    "craft_seed": 0,
    "poison_ratio": 1.0,
    "protect_classes": "",
    "clean_part": False,
    "holdout": 0,
    "precision": "auto",
    "device": "auto",
    "workers": None,
    "threads": None,
    "jobs_per_gpu": 1,
    "memory": None,
    "time_limit": None,
    "data_dir": "data",
    "results_dir": "results/local",
    "store": "store",
}
"""Of every option that a configuration file may set, too."""

MOST_PROCESSES = 1024
"""More processes or threads than anybody has; the system would give way, not the command."""

OF_TABLES = ("methods", "archs", "defenses", "dataset", "epsilon", "poison_ratio")
OF_TABLES += ("protect_classes", "clean_part", "holdout")
"""Options that a published table settles."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    open_closed_streams()
    if sys.stderr is None:  # closed: what would be told goes nowhere, least of all to the answer
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every terminal knows ∞
    sys.stdout, sys.stderr = outliving(sys.stdout), outliving(sys.stderr)
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        check_system()
        if words and words[0] in COMMANDS:
            return between_folders(words)
        return command(vars(parser().parse_args(words)))
    except UsageError as error:
        tell(f"error: {error}")
        return USAGE
    except OSError as error:
        tell(f"error: {error}; nothing finished is lost, the same command goes on")
        return USAGE
    except MemoryError:
        tell("error: what was asked for does not fit into memory; ask for less at a time")
        return USAGE
    except KeyboardInterrupt:
        tell("interrupted; the same command continues")
        return INTERRUPTED
    except ImportError as error:
        tell(
            f"error: {error}; install the requirements with `pip install -e .`, and a torchvision "
            "that belongs to the installed torch"
        )
        return USAGE


def tell(line: str) -> None:
    """A line about the run, on standard error."""
    say(sys.stderr, line)


def command(typed: dict[str, Any]) -> int:
    """Do what the options say."""
    for plugin in typed["plugin"]:
        load_plugin(plugin)
    if typed["list"]:
        return show_list(typed["json"])
    options = with_defaults(typed)
    if typed["describe"]:
        return show_description(typed["describe"], typed["json"])
    if typed["paper"] is not None:
        return run_papers(options, typed)
    if typed["report_only"]:
        return show_report(_folder(options["results_dir"]), None, typed["json"])
    return run_grid(session_of(options, typed), options, typed)


def between_folders(words: Sequence[str]) -> int:
    """`diff` and `merge`."""
    told = answer(words)
    if told.text:
        show(told.text)
    for note in told.notes:
        tell(note)
    return told.code


def parser() -> Parser:
    """The options. None are converted here, so that a file may set them in the same words."""
    made = Parser(
        prog="run_bench.py",
        description="Cross methods that make training images unlearnable with defenses and "
        "architectures. What is recorded already is not run again; the clean control is always "
        "in the grid.",
        epilog="Settings follow a name: sep:checkpoints=5,surrogate=vgg16. `all` and globs such "
        "as 'sep*' stand for several. Exit codes: 0 done, 1 a cell failed, 2 wrong request, "
        "3 time limit reached. `run_bench.py diff A B` compares two results folders, "
        "`run_bench.py merge A B --into C` folds several together (--help after either).",
    )
    grid = made.add_argument_group("what to run")
    add = grid.add_argument
    add("--methods", metavar="LIST", help="protections (sep,advpoison)")
    add("--archs", metavar="LIST", help="victim architectures (rn18,vgg16)")
    add(
        "--defenses",
        metavar="LIST",
        help=f"training-time defenses, or a set of them: {' or '.join(SETS)} (none)",
    )
    add("--dataset", metavar="NAME", help="cifar10, cifar100, folder:PATH, ... (cifar10)")
    add("--recipe", metavar="NAME", help="quick, standard, paper, or another paper's (quick)")
    add("--epsilon", metavar="LIST", help="radii for l∞ methods: 2/255,8/255 (their own: 8/255)")
    add("--seeds", metavar="LIST", help="victim seeds, such as 0,1,2 or 0-2 (0)")
    add("--craft-seed", metavar="N", help="of all that the protector draws; each: the victim's (0)")
    add("--poison-ratio", metavar="LIST", help="shares of the training images protected (1)")
    add("--protect-classes", metavar="LIST", help="only these, such as 5-9 or cat,dog (all)")
    add(
        "--clean-part",
        action="store_true",
        default=None,
        help="also train on the unprotected images alone",
    )
    add("--paper", metavar="LIST", help="published tables and figures: sep:table4,fig3, cuda:all")
    add(
        "--confirm",
        action="store_true",
        help="also train recorded cells of the grid that have not learned the shortcut (marked ¬) "
        "for twice the epochs, on the same crafted sets",
    )
    add("--holdout", metavar="N", help="released images kept from training and evaluated (0)")
    add("--config", metavar="FILE", help="TOML file that sets these options by their names")
    how = made.add_argument_group("how to run it")
    add = how.add_argument
    add("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N (auto)")
    add("--precision", metavar="NAME", help="auto, fp32, tf32 or bf16 (auto: the recipe's)")
    add("--workers", metavar="N", help="processes (one a core on a CPU, or --jobs-per-gpu)")
    add("--threads", metavar="N", help="threads a process (the cores shared out)")
    add("--jobs-per-gpu", metavar="N", help="processes that share a GPU (1)")
    add("--memory", metavar="SIZE", help="of a GPU, for each process, such as 4G (all)")
    add("--time-limit", metavar="T", help="stop at a checkpoint after 9m, 1h30m, 90s")
    add("--data-dir", metavar="DIR", help="where data sets lie (data)")
    add("--offline", action="store_true", help="never download")
    add("--results-dir", metavar="DIR", help="where records, tables and plots go (results/local)")
    add("--store", metavar="DIR", help="where tensors and checkpoints go (store)")
    add("--plugin", metavar="FILE", action="append", default=[], help="file with more components")
    what = made.add_argument_group("instead of running")
    add = what.add_argument
    add("--plan", action="store_true", help="show what would run, what is cached, time and disk")
    add("--report-only", action="store_true", help="tables and plots from the records there are")
    add("--list", action="store_true", help="every component with its summary")
    add("--describe", metavar="NAME", help="settings, paper, budget and cost of a component")
    add("--json", action="store_true", help="print JSON instead of text")
    return made


def with_defaults(typed: dict[str, Any]) -> dict[str, Any]:
    """Options from the command line, else from the configuration file, else the defaults."""
    options = dict(DEFAULTS)
    if typed["config"]:
        options |= read_config(user_path(typed["config"], pipes=True))
    return options | {key: typed[key] for key in DEFAULTS if typed[key] is not None}


def read_config(file: Path) -> dict[str, Any]:
    """Options from a TOML file; a list stands for a comma-separated text."""
    import difflib
    import tomllib

    try:
        found = tomllib.loads(file.read_text(encoding="utf-8-sig"))  # some editors write the mark
    except OSError as error:
        raise UsageError(f"--config {file} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise UsageError(f"--config {file} is not valid TOML: {error}") from None
    options = {}
    for name, value in found.items():
        key = name.replace("-", "_")
        if key not in DEFAULTS:
            near = difflib.get_close_matches(key, DEFAULTS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ";"
            raise UsageError(
                f"--config {file} sets unknown '{name}'{hint} There are: {', '.join(DEFAULTS)}"
            )
        options[key] = ",".join(map(str, value)) if isinstance(value, list) else value
    return options


def session_of(options: dict[str, Any], typed: dict[str, Any]) -> Session:
    """What the options ask for, every value checked."""
    from bench.grid import Grid
    from bench.running.session import Session

    epsilon = options["epsilon"]
    clean_part = options["clean_part"]
    if not isinstance(clean_part, bool):
        raise UsageError(f"clean_part = {clean_part!r}: write true or false")
    grid = Grid(
        methods=str(options["methods"]),
        archs=str(options["archs"]),
        defenses=str(options["defenses"]),
        dataset=str(options["dataset"]),
        recipe=str(options["recipe"]),
        epsilon=None if epsilon is None else _numbers("--epsilon", epsilon),
        seeds=seeds(str(options["seeds"])),
        craft_seed=craft_seed(str(options["craft_seed"])),
        poison_ratio=_numbers("--poison-ratio", options["poison_ratio"]),
        protect_classes=str(options["protect_classes"]),
        clean_part=clean_part,
        holdout=_whole("--holdout", options["holdout"]),
        precision=str(options["precision"]),
        device=str(options["device"]),
    )
    limit = options["time_limit"]
    results = _folder(options["results_dir"])
    return Session(
        grid,
        results=results,
        store=_folder(options["store"]),
        data=_folder(options["data_dir"]),
        download=not typed["offline"],
        plugins=tuple(str(user_path(plugin).resolve()) for plugin in typed["plugin"]),
        jobs_per_gpu=_count("--jobs-per-gpu", options["jobs_per_gpu"]) or 1,
        memory=None if options["memory"] is None else memory(str(options["memory"])),
        deadline=None if limit is None else time.monotonic() + seconds(str(limit)),
        longer=_unlearned(results) if typed["confirm"] else (),
    )


def _unlearned(results: Path) -> tuple[str, ...]:
    """Keys of recorded cells whose victims have not learned the shortcut."""
    from bench import record
    from bench.reports.flags import unlearned

    return tuple(unlearned(record.read_all(results, notes=[])))


def run_grid(session: Session, options: dict[str, Any], typed: dict[str, Any]) -> int:
    """Run, or only plan, and report."""
    workers = _count("--workers", options["workers"])
    threads = _count("--threads", options["threads"])
    if typed["plan"]:
        return show_plan(session, workers, threads, typed["json"])
    from bench.running.runner import WorkerError, run_session, summary

    try:
        outcome = run_session(session, workers, threads, sys.stderr)
    except WorkerError as error:
        tell(f"error: {error}")
        return FAILED
    tell(f"{summary(outcome)}, {core_seconds():.0f} core-seconds")
    show_report(session.results, outcome, typed["json"])
    if outcome.failed:
        show_failures(outcome.failed)
        return FAILED
    return UNFINISHED if outcome.unfinished else 0


def show_failures(failed: Mapping[str, str]) -> None:
    """Why tasks failed or could not be run, a line each."""
    for title, reason in failed.items():
        kind = "not run" if reason.startswith(NOT_RUN) else "failed"
        tell(f"{kind}: {title}: {reason.removeprefix(NOT_RUN)}")


def run_papers(options: dict[str, Any], typed: dict[str, Any]) -> int:
    """Run what published tables and figures need, or plan it, or neither, and print them."""
    from bench.papers.published import find_published

    tables, figures = find_published(typed["paper"])
    for name in OF_TABLES:
        if typed[name] is not None or options[name] != DEFAULTS[name]:
            raise UsageError(
                f"--{name.replace('_', '-')} comes from the table; leave it out, or --paper"
            )
    if typed["confirm"]:
        raise UsageError("--confirm goes with a grid; name its methods and defenses, not --paper")
    session = session_of(options, typed)
    workers = _count("--workers", options["workers"])
    threads = _count("--threads", options["threads"])
    from bench.papers import figures as paper_figures
    from bench.papers import request as paper

    if typed["plan"]:
        plans = paper.plan_paper(session, tables, workers, threads, sys.stderr)
        plans += paper_figures.plan_figures(session, figures, workers, threads, sys.stderr)
        as_text = "\n\n".join(map(paper.text_of, plans))
        show(json.dumps(plans, ensure_ascii=False, indent=1) if typed["json"] else as_text)
        return 0
    ended = paper.PaperOutcome()
    if not typed["report_only"]:
        from bench.running.runner import WorkerError, summary

        try:
            ended = paper.run_paper(session, tables, workers, threads, sys.stderr)
            paper_figures.run_figures(session, figures, workers, threads, sys.stderr, ended)
        except WorkerError as error:
            tell(f"error: {error}")
            return FAILED
        tell(f"{summary(ended.total)}, {core_seconds():.0f} core-seconds")
    elif not session.results.exists():
        raise UsageError(f"{session.results} is not there; run --paper without --report-only first")
    report = paper.report_paper(session.results, tables, session.grid, ended.reasons)
    drawn = paper_figures.report_figures(session.results, figures, session.grid, ended.undrawn)
    for note in dict.fromkeys([*report.notes, *drawn.notes]):
        tell(f"note: {note}")
    texts = "\n\n".join(filter(None, (report.text, drawn.text)))
    numbers = json.dumps(report.numbers | drawn.numbers, ensure_ascii=False)
    show(numbers if typed["json"] else texts)
    files = [*report.files, *drawn.files]
    folders = sorted({str(_short(file.parent)) for file in files})
    if files:
        tell(f"written: {len(files)} files in {' and '.join(folders)}")
    show_failures(ended.failed)
    if ended.failed or ended.reasons or ended.undrawn:
        return FAILED
    return UNFINISHED if ended.left else 0


def show_report(results: Path, outcome: Outcome | None, as_json: bool) -> int:
    """Write tables and plots, and print the tables of the contexts that just ran."""
    from bench import record
    from bench.reports.report import write_report
    from bench.reports.summary import Context

    notes: list[str] = []
    records = list(record.read_all(results, notes))
    for note in notes:
        tell(f"note: {note}")
    if outcome is not None:
        keys = {cell.key for cell in outcome.cells}
        contexts = {Context.of(one) for one in records if one["key"] in keys}
        records = [one for one in records if Context.of(one) in contexts]
    if as_json:
        show(json.dumps(records, ensure_ascii=False))
    if outcome is not None and not records:
        return 0
    report = write_report(results, {Context.of(one) for one in records} or None)
    if not as_json:
        show(f"\n{report.text}\n")
    for note in report.notes:
        tell(f"note: {note}")
    folders = sorted({str(_short(file.parent)) for file in report.files})
    if report.files:
        tell(f"written: {len(report.files)} files in {' and '.join(folders)}")
    return 0


def show_list(as_json: bool) -> int:
    """Names and summaries, read from the files; nothing is imported."""
    if as_json:
        listed = {
            registry.kind: {name: entry.summary for name, entry in registry.entries.items()}
            for registry in REGISTRIES
        }
        show(json.dumps(listed, ensure_ascii=False, indent=1))
        return 0
    for registry in REGISTRIES:
        show(registry.plural)
        for name, entry in registry.entries.items():
            shown = f"{name}:{entry.argument.upper()}" if entry.argument else name
            show(f"  {shown:22} {entry.summary}")
        if registry is DEFENSES:
            for name, members in SETS.items():
                show(f"  {name:22} {len(members)} of them: {','.join(members)}")
        show("")
    show("published tables and figures")
    for paper, tables in titles().items():
        recipe = recipes()[paper]
        trained = f"; --recipe {recipe} trains as its victims were" if recipe else ""
        show(f"  {f'{paper}:all':22} all of these{trained}")
        for name, title in tables.items():
            show(f"  {f'{paper}:{name}':22} {title}")
    return 0


def show_description(name: str, as_json: bool) -> int:
    """Everything about one component."""
    from bench.describe import description, find, text_of

    found = description(*find(name))
    show(json.dumps(found, ensure_ascii=False, indent=1) if as_json else text_of(found))
    return 0


def show_plan(session: Session, workers: int | None, threads: int | None, as_json: bool) -> int:
    """What would run."""
    from bench.running.estimate import plan_facts, text_of

    facts = plan_facts(session, workers, threads, sys.stderr)
    show(json.dumps(facts, ensure_ascii=False, indent=1) if as_json else text_of(facts))
    return 0


def seeds(text: str) -> tuple[int, ...]:
    """Seeds from "0,1,2" or "0-2"."""
    found: list[range] = []
    for piece in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"([+-]?\d+)(?:-(\d+))?", piece)
        if match is None:
            raise UsageError(f"--seeds: '{piece}' is no seed; write 0,1,2 or 0-2")
        first = _whole("--seeds", match[1])
        found.append(range(first, _whole("--seeds", match[2] or first) + 1))
    return few("seeds", itertools.chain(*found))


def craft_seed(text: str) -> int | Literal["each"]:
    """The seed of all crafted sets, or `each`."""
    return "each" if text.strip() == "each" else _whole("--craft-seed", text, "; or write each")


def seconds(text: str) -> float:
    """A duration from "9m", "1h30m", "90s" or plain seconds."""
    units = {"h": 3600, "m": 60, "s": 1, "": 1}
    part = r"(\d+(?:\.\d+)?)"
    if not re.fullmatch(rf"{part}|({part}[hms])+", text):
        raise UsageError(f"--time-limit: '{text}' is no duration; write 9m, 1h30m or 90s")
    return sum(float(n) * units[unit] for n, unit in re.findall(rf"{part}([hms]?)", text))


def memory(text: str) -> int:
    """Bytes from "4G", "500M" or a plain number; a G is 2^30."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    size = float(match[1]) * 1024 ** " KMG".index(match[2].upper() or " ") if match else 0
    if not 2**20 <= size < 2**63:
        raise UsageError(f"--memory: '{text}' is no size; write 4G or 500M")
    return int(size)


def _numbers(option: str, value: Any) -> tuple[float, ...]:
    """One number or several between commas."""
    found = []
    for piece in filter(None, (part.strip() for part in str(value).split(","))):
        try:
            found.append(number(piece))
        except ValueError as error:
            raise UsageError(f"{option}: '{piece}': {error}") from None
    if not found:
        raise UsageError(f"{option}: no number given")
    return tuple(found)


def _folder(value: Any) -> Path:
    return user_path(str(value)).resolve()


def _whole(option: str, value: Any, hint: str = "") -> int:
    try:
        return whole(str(value))
    except ValueError:
        raise UsageError(
            f"{option}: '{value}' is not a whole number of at most {LONGEST_NUMBER} digits{hint}"
        ) from None


def _count(option: str, value: Any) -> int | None:
    count = None if value is None else _whole(option, value)
    if count is not None and count < 1:
        raise UsageError(f"{option} {count} must be 1 or more")
    if count is not None and count > MOST_PROCESSES:
        raise UsageError(
            f"{option} {count} is more than {MOST_PROCESSES}; leave it out for the usual"
        )
    return count


def core_seconds() -> float:
    """Processor time of this process and of its workers."""
    import resource  # here, because `check_system` comes first

    parts = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in parts)


def _short(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


if __name__ == "__main__":
    sys.exit(main())

"""Tables of methods by defenses, and of the trainer who chooses the best of those.

Accuracy under every defense; the share of what the same defense reaches on clean images; and how
the order of methods changes once the trainer may choose. The worst case is over defenses that
know nothing but the released images; see `bench.worst_case`.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from bench.record import CONTROL
from bench.reports.cells import accuracy, cell_names, defense_head, verdict
from bench.reports.flags import UNLEARNED, Flag, Number, flag_names, flags, flags_of_all, settle
from bench.reports.notes import (
    chance,
    defense_notes,
    failures,
    known,
    over_seeds,
    scale,
    usual_seeds,
)
from bench.reports.ranks import INTERVAL, Rank, ranks
from bench.reports.summary import CONTROLS, NOTHING, Column, Group, Row, Spread, Summary
from bench.reports.table import MISSING, Table, frame, hundredths, machine, percent
from bench.worst_case import WorstCase, title_of, worst_case

Name = tuple[str, str]
"""A defense by its name and its label, as in `Summary.defenses`."""

ONE_SEED, LEFT_OUT, UNRANKED, BOUND = "↑", "⊂", "‖", "≤"
"""Marks that are no doubts about victims; none of them is a flag's."""
AT_MOST = "at most"
NEAR_CHANCE = 0.1
"""A ceiling that lies this near to chance leaves nothing to be recovered."""

COUNTS = ("by_seeds", "compared", "change")
COUNTS += ("plain_rank", "plain_rank_low", "plain_rank_high")
COUNTS += ("worst_rank", "worst_rank_low", "worst_rank_high")
"""Columns of whole numbers that some rows lack."""

ESTIMATOR_NOTE = (
    "{title}: for each victim seed the defense of the highest mean accuracy on the other seeds, "
    "reported on this seed, so that noise does not flatter it; only defenses that know nothing "
    "but the released images. With n seeds this estimates what a choice on n − 1 gives (with 2, a "
    "choice on one), which is on average at most the accuracy of the best of these defenses; ± is "
    "over folds that share seeds. by: the one chosen most often."
)
MAXIMUM_NOTE = (
    "{title}: the highest accuracy of the defenses that know nothing but the released images; by: "
    "which one."
)
AT_MOST_NOTE = (
    f"{AT_MOST}: the highest mean of these defenses over all the seeds, which flatters the trainer."
)
SHARE_NOTE = (
    "{title}: here the share recovered by the defense that is chosen by accuracy, which need not "
    "be the highest share."
)
ONE_SEED_NOTE = f"{ONE_SEED}: chosen and reported on one seed: flatters the trainer."
INTERVAL_NOTE = (
    f"In brackets the ranks that {100 * INTERVAL:.0f} % of draws give where every method draws its "
    "seeds (in the worst case, their scores) anew, with repetition; few seeds make them narrow."
)
BIAS_NOTE = (
    "The worst case is the further below the best defense, the more the seeds of a method differ, "
    f"which favours a method of great spread: compare {AT_MOST}, too."
)
BOUND_NOTE = (
    f"{BOUND}: at most this: it rests on victims that have not learned the shortcut "
    f"({UNLEARNED.mark}); trained for longer they may be lower."
)
UNLEARNED_NOTE = (
    f"{MISSING}{UNLEARNED.mark}: no rank and no worst case: victims of the first column of numbers "
    "have not learned the shortcut."
)
CHANGE_NOTE = (
    f"rank: 1 is the lowest accuracy, the best protection; {CONTROL} and other controls have none. "
    "change: places gained (+) or lost (−) once the trainer may choose the defense. Near values "
    "may change places: ranks are of means. Where all sets are of one "
    "crafting seed, another set of the same method may differ by more than ± says."
)
PLAIN_NOTE = "{title}: over the seeds of the worst case, where there is one."
UNRANKED_NOTE = (
    f"{UNRANKED}: not ranked: its worst case is not over the same defenses, or not over as many "
    "seeds, as that of the ranked ones."
)


@dataclass(frozen=True)
class Line:
    """A method on an architecture, under every defense.

    Attributes:
        summary: where it is from.
        column: the architecture.
        rows: the row of each defense that it was run with.
    """

    summary: Summary
    column: Column
    rows: Mapping[Name, Row]

    @property
    def first(self) -> Row:
        """Its row under the first defense."""
        return next(iter(self.rows.values()))

    @property
    def label(self) -> str:
        """Of the method."""
        return self.summary.method_label(self.first)

    def group(self, defense: Name) -> Group:
        """The records under a defense; an empty group where there are none."""
        row = self.rows.get(defense)
        return Group() if row is None else self.summary.group(row, self.column)

    def control(self, defense: Name) -> Group:
        """The control's records under a defense."""
        row = self.rows.get(defense)
        return Group() if row is None else self.summary.control(row, self.column)

    def accuracies(self, defense: Name) -> dict[int, float]:
        """Final clean test accuracy by victim seed."""
        return _accuracies(self.group(defense))

    def recoveries(self, defense: Name) -> dict[int, float | None]:
        """By victim seed the share of what the same defense reaches on clean images.

        (accuracy - chance) / (ceiling - chance), the ceiling being the control's accuracy with the
        same seed; None where that lies near chance.
        """
        floor, ceilings = chance(self.summary), _accuracies(self.control(defense))
        return {
            seed: (value - floor) / (ceilings[seed] - floor)
            if ceilings[seed] - floor > NEAR_CHANCE
            else None
            for seed, value in self.accuracies(defense).items()
            if seed in ceilings
        }


@dataclass(frozen=True)
class Board:
    """The methods of a context on one side, its defenses on the other."""

    summary: Summary

    @property
    def compared(self) -> list[Name]:
        """The defenses that know nothing, among which the worst case is found."""
        return [name for name, told in self.summary.knows.items() if told == NOTHING]

    @cached_property
    def chosen_from(self) -> list[Name]:
        """Those of them that a worst case is really found among; others lack seeds everywhere.

        All of them where there is no worst case yet.
        """
        worsts = [worst for line in self.lines if (worst := self.worst(line)) is not None]
        found = [name for name in self.compared if any(name in w.compared for w in worsts)]
        return found or self.compared

    @property
    def title(self) -> str:
        """What the worst case is over."""
        return title_of([label for _, label in self.chosen_from])

    @property
    def has_worst(self) -> bool:
        """Whether there is something to choose from."""
        return len(self.compared) > 1

    @cached_property
    def usual(self) -> int:
        """The number of victims of a complete cell."""
        return usual_seeds(self.summary)

    @cached_property
    def lines(self) -> list[Line]:
        """Every method on every architecture that has any records, architecture by architecture."""
        methods: dict[tuple[Any, ...], dict[Name, Row]] = defaultdict(dict)
        for row in sorted(self.summary.rows, key=lambda row: row.method_order):
            same = (row.method, row.method_settings, row.norm, row.epsilon)
            methods[same][self.summary.defense_of(row)] = row
        return [
            line
            for column in self.summary.columns
            for rows in methods.values()
            for line in [Line(self.summary, column, rows)]
            if any(line.group(name).done or line.group(name).failed for name in rows)
        ]

    def worst(self, line: Line) -> WorstCase[Name] | None:
        """What a trainer reaches against a method, in accuracy."""
        return worst_case({name: line.accuracies(name) for name in self.compared})

    def chooses(self, lines: Iterable[Line]) -> bool:
        """Whether any worst case of these is chosen on other seeds than it is reported on."""
        worsts = [worst for line in lines if (worst := self.worst(line)) is not None]
        return not worsts or any(not worst.flatters for worst in worsts)

    def by(self, worst: WorstCase[Name] | None) -> str:
        """The defense chosen most often, and how often if not always."""
        if worst is None:
            return ""
        (_, label), count = worst.usual
        return label if count == len(worst.chosen) else f"{label} {count}/{len(worst.chosen)}"

    def doubts(self, line: Line, worst: WorstCase[Name]) -> list[Flag]:
        """About a worst case: those about any of the victims that it is made of."""
        chosen = [(line.group(name), line.control(name)) for name in set(worst.chosen.values())]
        return flags_of_all(chosen, len(worst.scores))

    def unlearned(self, line: Line) -> bool:
        """Whether plain training, or what stands in its place, has not learned the shortcut."""
        return UNLEARNED in flags(_plain(self, line), line.control(self.compared[0]))

    def marks(self, worst: WorstCase[Name]) -> str:
        """Of a worst case: chosen and reported on one seed, or not over all defenses."""
        return ONE_SEED * worst.flatters + LEFT_OUT * bool(worst.left_out)

    def left_out(self, lines: Iterable[Line]) -> Iterator[str]:
        """Which defenses the worst cases of some lines had to do without."""
        found: dict[str, list[str]] = defaultdict(list)
        worsts = [(line, worst) for line in lines if (worst := self.worst(line)) is not None]
        columns = {line.column for line, _ in worsts}
        for line, worst in worsts:
            said = ", ".join(
                f"{label} ({count} of {len(worst.scores)})"
                for (_, label), count in worst.left_out.items()
            )
            found[said].append(line.label + f" on {line.column}" * (len(columns) > 1))
        for said, places in found.items():
            where = ", ".join(places) if len(places) < len(worsts) else "all methods"
            if said:
                yield f"{LEFT_OUT}: {self.title} does without {said} for want of seeds: {where}."


def defense_tables(summary: Summary) -> list[Table]:
    """Methods by defenses, recovery, and ranking; none where there is only one defense."""
    if len(summary.defenses) < 2:
        return []
    tables = [defenses_table(summary)]
    if any(row.method != CONTROL for row in summary.rows):
        tables.append(recovery_table(summary))
    return [*tables, *_ranking(summary)]


def told_tables(summary: Summary) -> list[Table]:
    """Those of them that are worth a place in the terminal."""
    if len(summary.defenses) < 2 or not Board(summary).has_worst:
        return []
    return [defenses_table(summary), *_ranking(summary)]


def _ranking(summary: Summary) -> list[Table]:
    ranked = any(row.method not in CONTROLS for row in summary.rows)
    return [ranking_table(summary)] if ranked and Board(summary).has_worst else []


def defenses_table(summary: Summary) -> Table:
    """Accuracy of every method under every defense, and of the trainer who chooses."""
    board = Board(summary)
    lines, numbers = [], []
    for line in board.lines:
        cells = [
            accuracy(line.group(n), line.control(n), board.usual) for n in board.summary.defenses
        ]
        worst = board.worst(line)
        chosen = _worst_cells(board, line, worst)
        chosen[1:1] = [_at_most(line, worst)] * board.has_worst
        lines.append([*_names(board, line), *cells, *chosen])
        numbers += _numbers(board, line, worst)
    texts, marked = settle(lines)
    caption = (
        f"Clean test accuracy after the last epoch in percent by defense{_place(board)}, "
        f"{over_seeds(board.usual)}."
    )
    return Table(
        name="defenses",
        caption=(caption, *scale(summary)),
        cells=frame([*_heads(board), *_across(board, AT_MOST)], texts),
        lead=len(_heads(board)),
        step=1,
        notes=(*_notes(board, texts, marked, AT_MOST), *defense_notes(summary)),
        numbers=machine(numbers, COUNTS),
    )


def recovery_table(summary: Summary) -> Table:
    """The share of the clean ceiling that every defense recovers."""
    board = Board(summary)
    lines, numbers = [], []
    for line in board.lines:
        if line.first.method == CONTROL:
            continue
        cells, parts = [], {}
        for name in board.summary.defenses:
            group, spread = line.group(name), _whole(line.recoveries(name).values())
            parts[name] = spread
            missing = MISSING if group.done else verdict(group)
            doubts = _share_doubts(line, [name], spread)
            number = Number(percent(spread), doubts, _count(spread, board))
            cells.append(number if spread.n else missing)
        worst = board.worst(line)
        ratio = worst_recovery(line, worst)
        cells += _worst_cells(board, line, worst, ratio)
        lines.append([*_names(board, line), *cells])
        numbers += _recovery_numbers(board, line, parts, worst, ratio)
    texts, marked = settle(lines)
    caption = (
        f"Recovered share in percent by defense{_place(board)}, {over_seeds(board.usual)}: "
        f"(accuracy − chance) / (accuracy of {CONTROL} under the same defense − chance), paired by "
        "seed; 100 is what this defense reaches on clean images, 0 is chance."
    )
    near = f"{100 * NEAR_CHANCE:.0f} points"
    chosen = [SHARE_NOTE.format(title=board.title)] * board.has_worst
    gap = any(MISSING in line for line in texts)
    gaps = [
        f"{MISSING}: not run, or the ceiling is missing or within {near} of chance.",
    ]
    return Table(
        name="recovery",
        caption=(caption, *scale(summary)),
        cells=frame([*_heads(board), *_across(board)], texts),
        lead=len(_heads(board)),
        step=1,
        notes=(*chosen, *_notes(board, texts, marked, gaps=False), *(gaps if gap else [])),
        numbers=machine(numbers, COUNTS),
    )


def worst_recovery(line: Line, worst: WorstCase[Name] | None) -> Spread:
    """The worst case with the ceiling of the chosen defense on the reported seed.

    The defense is chosen by accuracy, which a trainer could at least estimate.
    """
    if worst is None:
        return Spread.of([])
    return _whole([line.recoveries(name).get(seed) for seed, name in worst.chosen.items()])


def ranking_table(summary: Summary) -> Table:
    """The order of methods against plain training, and against the trainer who chooses."""
    board = Board(summary)
    lines, numbers = [], []
    for column in summary.columns:
        there = [line for line in board.lines if line.column == column]
        places, plain = _ranked(board, there), board.compared[0]
        for line in sorted(there, key=lambda line: _place_of(line, places)):
            before, after = places.get(line.label, (None, None))
            worst, group = board.worst(line), _plain(board, line)
            none = MISSING + UNRANKED * (worst is not None and bool(group.done))
            text, chosen = _worst_cells(board, line, worst)
            highest = _at_most(line, worst)
            if board.unlearned(line):
                worst, chosen = None, ""
                none = text = highest = MISSING + UNLEARNED.mark
            none = "" if line.first.method in CONTROLS else none
            lines.append(
                [
                    *_names(board, line),
                    accuracy(group, line.control(plain), board.usual),
                    none if before is None else str(before),
                    text,
                    highest,
                    none if after is None else str(after),
                    _change(before, after),
                    chosen,
                ]
            )
            numbers.append(_ranking_numbers(board, line, worst, before, after))
    texts, marked = settle(lines)
    first = board.compared[0][1]
    title = "plain" if first == "none" else first
    caption = (
        f"Protections by clean test accuracy in percent{_place(board)}, {over_seeds(board.usual)}: "
        f"{'without defense' if first == 'none' else f'under {first}'}, and against a trainer who "
        f"chooses among {len(board.chosen_from)} defenses."
    )
    several = any(one["plain_rank_low"] is not None for one in numbers)
    notes = [CHANGE_NOTE, *[INTERVAL_NOTE] * several, BIAS_NOTE, PLAIN_NOTE.format(title=title)]
    notes += [UNRANKED_NOTE] * any(UNRANKED in cell for line in texts for cell in line)
    notes += [UNLEARNED_NOTE] * any(board.unlearned(line) for line in board.lines)
    return Table(
        name="ranking",
        caption=(caption, *scale(summary)),
        cells=frame(
            [*_heads(board), title, "rank", board.title, AT_MOST, "rank", "change", "by"],
            texts,
        ),
        lead=len(_heads(board)),
        step=1,
        notes=(*notes, *_notes(board, texts, marked, AT_MOST)),
        numbers=machine(numbers, COUNTS),
    )


def _place_of(line: Line, places: Mapping[str, tuple[Rank, Rank]]) -> tuple[float, ...]:
    """Controls first, in their order; then by rank in the worst case; the unranked last."""
    if line.first.method in CONTROLS:
        return 0, CONTROLS.index(line.first.method), 0
    if line.label not in places:
        return 1, math.inf, math.inf
    before, after = places[line.label]
    return 1, after.place, before.place


def _ranked(board: Board, lines: Iterable[Line]) -> dict[str, tuple[Rank, Rank]]:
    """By label the ranks under plain training and in the worst case, of methods that have both.

    More defenses to choose from raise the worst case, and fewer seeds to choose on lower it: only
    those are ranked that have the most frequent defenses and number of seeds, of equally frequent
    ones the most. Where plain victims have not learned the shortcut there is nothing to rank.
    """
    found = {}
    for line in lines:
        plain, worst = _accuracies(_plain(board, line)), board.worst(line)
        protected = line.first.method not in CONTROLS and not board.unlearned(line)
        if protected and plain and worst is not None:
            scores = list(plain.values()), list(worst.scores.values())
            found[line.label] = (worst.compared, len(worst.scores)), scores
    bases = Counter(basis for basis, _ in found.values())
    usual = max(bases, key=lambda b: (bases[b], len(b[0]), b[1]), default=None)
    same = {label: scores for label, (basis, scores) in found.items() if basis == usual}
    plain, worst = (ranks({name: pair[of] for name, pair in same.items()}) for of in (0, 1))
    return {label: (plain[label], worst[label]) for label in same}


def _change(before: Rank | None, after: Rank | None) -> str:
    if before is None or after is None:
        return ""
    gained = before.place - after.place
    return f"{gained:+d}".replace("-", "−") if gained else "0"


def _plain(board: Board, line: Line) -> Group:
    """A method under plain training, or what stands in its place, on the worst case's seeds."""
    group, worst = line.group(board.compared[0]), board.worst(line)
    if worst is None:
        return group
    return replace(group, done=tuple(one for one in group.done if one["seed"] in worst.scores))


# Text.


def _heads(board: Board) -> list[str]:
    """A single architecture stands in the caption instead of in a column."""
    return ["architecture", "method"] if len(board.summary.columns) > 1 else ["method"]


def _names(board: Board, line: Line) -> list[str]:
    return [str(line.column), line.label][-len(_heads(board)) :]


def _place(board: Board) -> str:
    columns = board.summary.columns
    return f" on {columns[0]}" if len(columns) == 1 else ""


def _across(board: Board, *more: str) -> list[str]:
    """The headings of all defenses, and of the worst case if there is one, with more beside it."""
    heads = [defense_head(board.summary, name) for name in board.summary.defenses]
    return [*heads, board.title, *more, "by"] if board.has_worst else heads


def _worst_cells(
    board: Board, line: Line, worst: WorstCase[Name] | None, share: Spread | None = None
) -> list[str | Number]:
    """The worst case and what it is by; in accuracy, or as the spread of a share of the ceiling."""
    if not board.has_worst:
        return []
    if worst is None:
        return [MISSING, ""]
    if share is None:
        spread, doubts = Spread.of(worst.scores.values()), board.doubts(line, worst)
    else:
        spread, doubts = share, _share_doubts(line, set(worst.chosen.values()), share)
    if not spread.n:
        return [MISSING, board.by(worst)]
    number = f" n={len(worst.scores)}" if len(worst.scores) != board.usual else ""
    bound = f"{BOUND} " if UNLEARNED in doubts else ""
    return [Number(bound + percent(spread), doubts, board.marks(worst) + number), board.by(worst)]


def _share_doubts(line: Line, defenses: Iterable[Name], share: Spread) -> list[Flag]:
    """About a share of the control's accuracy: there may be doubts about that one, too."""
    pairs = [(line.group(name), line.control(name)) for name in defenses]
    return flags_of_all([*pairs, *((control, control) for _, control in pairs)], share.n)


def _at_most(line: Line, worst: WorstCase[Name] | None) -> str | Number:
    """The flattering upper end."""
    if worst is None:
        return MISSING
    best = [
        (line.group(name), line.control(name))
        for name in worst.compared
        if _mean(line.accuracies(name), worst.scores) > worst.highest - 1e-9
    ]
    return Number(percent(Spread.of([worst.highest])), flags_of_all(best, len(worst.scores)))


def _mean(accuracies: Mapping[int, float], seeds: Iterable[int]) -> float:
    return Spread.of(accuracies[seed] for seed in seeds).mean


def _whole(shares: Collection[float | None]) -> Spread:
    """Their spread; none at all if one is missing, since the others would be the better ones."""
    return Spread.of([] if None in shares else shares)


def _count(spread: Spread, board: Board) -> str:
    return f" n={spread.n}" if spread.n != board.usual else ""


def _notes(
    board: Board, lines: list[list[str]], marked: list[str], *more: str, gaps: bool = True
) -> Iterator[str]:
    if board.has_worst:
        note = ESTIMATOR_NOTE if board.chooses(board.lines) else MAXIMUM_NOTE
        yield note.format(title=board.title)
        if AT_MOST in more:
            yield AT_MOST_NOTE
        told = {ONE_SEED: ONE_SEED_NOTE, BOUND: BOUND_NOTE}
        yield from (n for m, n in told.items() if any(m in c for line in lines for c in line))
        yield from board.left_out(board.lines)
    heads = [[defense_head(board.summary, name) for name in board.summary.defenses]]
    yield from known(board.summary, heads, ", and is not in the worst case")
    yield from marked
    yield from failures(_named(board))
    if gaps and any(MISSING in line for line in lines):
        yield f"{MISSING}: not run, or nothing to compare with."


def _named(board: Board) -> Iterator[tuple[str, Group]]:
    """Every cell in words."""
    for line in board.lines:
        for name, row in line.rows.items():
            group = board.summary.group(row, line.column)
            under = defense_head(board.summary, name)
            yield f"{line.label} on {line.column} under {under}", group


# Numbers for machines.


def _numbers(board: Board, line: Line, worst: WorstCase[Name] | None) -> Iterator[dict[str, Any]]:
    """A row a defense that has any records, and one for the worst case."""
    for name in board.summary.defenses:
        group = line.group(name)
        if group.done or group.failed:
            yield {
                **cell_names(board.summary, line.rows[name], line.column),
                "side_information": board.summary.knows[name],
                "n": len(group.done),
                "failed": len(group.failed),
                **hundredths("test_acc_percent", group.spread("final_test_acc")),
                "flags": flag_names(flags(group, line.control(name))),
            }
    if worst is not None:
        yield {
            **_worst_names(board, line, worst),
            **hundredths("test_acc_percent", Spread.of(worst.scores.values())),
            "flags": flag_names(board.doubts(line, worst)),
            "at_most_percent": round(100 * worst.highest, 4),
            **_choice(worst),
        }


def _recovery_numbers(
    board: Board,
    line: Line,
    parts: Mapping[Name, Spread],
    worst: WorstCase[Name] | None,
    ratio: Spread,
) -> Iterator[dict[str, Any]]:
    for name, spread in parts.items():
        group = line.group(name)
        if group.done or group.failed:
            yield {
                **cell_names(board.summary, line.rows[name], line.column),
                "side_information": board.summary.knows[name],
                "n": spread.n,
                "failed": len(group.failed),
                **hundredths("recovery_percent", spread),
                "flags": flag_names(_share_doubts(line, [name], spread)),
            }
    if worst is not None:
        yield {
            **_worst_names(board, line, worst),
            "n": ratio.n,
            **hundredths("recovery_percent", ratio),
            "flags": flag_names(_share_doubts(line, set(worst.chosen.values()), ratio)),
            **_choice(worst),
        }


def _ranking_numbers(
    board: Board,
    line: Line,
    worst: WorstCase[Name] | None,
    before: Rank | None,
    after: Rank | None,
) -> dict[str, Any]:
    names = cell_names(board.summary, line.first, line.column)
    spread = Spread.of([] if worst is None else worst.scores.values())
    group, control = _plain(board, line), line.control(board.compared[0])
    plain = group.spread("final_test_acc")
    choice = {} if worst is None else _choice(worst)
    doubts = [] if worst is None else board.doubts(line, worst)
    doubts = [UNLEARNED] if board.unlearned(line) else doubts
    return {
        **{key: value for key, value in names.items() if key != "defense"},
        "plain": board.compared[0][1],
        **hundredths("plain_percent", plain),
        "plain_n": plain.n,
        "plain_flags": flag_names(flags(group, control)),
        **_rank_numbers("plain_rank", before),
        "worst": board.title,
        **hundredths("worst_percent", spread),
        "worst_n": spread.n,
        "worst_flags": flag_names(doubts),
        **_rank_numbers("worst_rank", after),
        "change": None if before is None or after is None else before.place - after.place,
        "at_most_percent": None if worst is None else round(100 * worst.highest, 4),
        **choice,
    }


def _rank_numbers(name: str, rank: Rank | None) -> dict[str, int | None]:
    place, low, high = rank or (None, None, None)
    return {name: place, f"{name}_low": low, f"{name}_high": high}


def _worst_names(board: Board, line: Line, worst: WorstCase[Name]) -> dict[str, Any]:
    return {
        **cell_names(board.summary, line.first, line.column),
        "defense": board.title,
        "side_information": NOTHING,
        "n": len(worst.scores),
        "failed": sum(len(line.group(name).failed) for name in worst.compared),
    }


def _choice(worst: WorstCase[Name]) -> dict[str, Any]:
    (_, label), count = worst.usual
    return {
        "by": label,
        "by_seeds": count,
        "compared": len(worst.compared),
        "left_out": " ".join(label for _, label in worst.left_out),
        "one_seed": worst.flatters,
    }


def _accuracies(group: Group) -> dict[int, float]:
    return {
        record["seed"]: record["final_test_acc"]
        for record in group.done
        if record["final_test_acc"] is not None
    }

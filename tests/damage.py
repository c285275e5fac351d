"""Damage on purpose, drawn from seeds: what a disk, a network or a stranger does to files."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

KINDS = ("bit", "cut", "empty", "text", "zeros", "folder", "foreign", "missing")
"""How a file is damaged; `foreign` puts another of the same ending in its place."""


def flip(content: bytes, draws: random.Random) -> bytes:
    """One bit turned over."""
    place, changed = draws.randrange(len(content)), bytearray(content)
    changed[place] ^= 1 << draws.randrange(8)
    return bytes(changed)


def spoil(file: Path, kind: str, draws: random.Random, others: list[Path]) -> bool:
    """Damage a file in one of `KINDS`; whether there was anything to do."""
    content = file.read_bytes()
    if kind in ("folder", "missing"):
        file.unlink()
        if kind == "folder":
            (file / "inside").mkdir(parents=True)
        return True
    if kind == "foreign":
        others = [f for f in others if f.suffix == file.suffix and f.read_bytes() != content]
        if not others:
            return False
        shutil.copyfile(draws.choice(others), file)
        return True
    made = {
        "cut": content[: draws.randrange(len(content))] if content else b"",
        "empty": b"",
        "text": b"this is plain text\n",
        "zeros": content[: len(content) // 2] + bytes(len(content) - len(content) // 2),
    }
    made = flip(content, draws) if kind == "bit" else made[kind]
    file.write_bytes(made)
    return made != content


ODD: tuple[str, ...] = (
    *("null", "true", "-1", "NaN", "Infinity", "1e999", "1" + "0" * 400, "1e308", "-0.0", "0"),
    *('""', '"x"', '"../../x"', '"\\ud800"', '"\\u0000"', '"a\\nb"', '"\\u001b[2J"', '"=1+1"'),
    *("[]", "[null]", "[[]]", '[{"epoch": 1}]', "[1, 2]", '["a"]', "{}", '{"a": null}', '{"": []}'),
    *('{"norm": 5}', '{"norm": "linf", "epsilon": "x"}', "[" * 200 + "]" * 200, "2.5", "99999"),
)
"""JSON values that a field is not meant to have."""


def hostile(record: Mapping[str, Any], draws: random.Random, count: int) -> Iterator[str]:
    """Texts of records of which one value, anywhere inside, is an odd one."""
    for _ in range(count):
        made = json.loads(json.dumps(record))
        place: Any = made
        while True:
            key = draws.choice(list(place) if isinstance(place, dict) else range(len(place)))
            inner = place[key]
            if not isinstance(inner, dict | list) or not inner or draws.random() < 0.4:
                break
            place = inner
        place[key] = "ODD VALUE"
        yield json.dumps(made).replace('"ODD VALUE"', draws.choice(ODD))


Numbers = dict[str, dict[str, Any]]


def campaign(
    states: list[Path],
    place: Path,
    run: Callable[[Path], tuple[str, Numbers]],
    whole: Numbers,
    seed: int,
    count: int,
) -> Counter[str]:
    """Damage a file of a store, run on, and see what came of it, again and again.

    Args:
        states: folders, each as a run has left it at some point.
        place: a folder for copies.
        run: runs the same command in a folder; what was said, and the records' numbers. It raises
            where the command ends with an error.
        whole: the numbers of a run without damage.
        seed: of the draws.
        count: how many files.

    Returns:
        How often the damage was `told` and mended, was `refused` and mended by the next call, lay
        where nobody looked (`unused`), or was used in `silence`, with where it was.
    """
    draws, found = random.Random(seed), Counter[str]()
    while sum(found.values()) < count:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(draws.choice(states), place)
        files = [file for file in sorted((place / "store").rglob("*.*")) if file.is_file()]
        files = [file for file in files if file.suffix != ".lock"]
        file, kind = draws.choice(files), draws.choice(KINDS)
        if not spoil(file, kind, draws, [other for other in files if other != file]):
            continue
        where = f"{kind} {file.relative_to(place / 'store').parts[0]} {file.name}"
        numbers: Numbers = {}
        try:
            said, numbers = run(place)
            if numbers != whole:
                found[f"silence: {where}"] += 1
            else:
                found["told" if "damaged" in said else f"unused: {where}"] += 1
        except Exception as error:  # noqa: BLE001 - whatever it is must be gone the next time
            with suppress(Exception):
                numbers = run(place)[1]
            mended = numbers == whole
            found[f"refused {type(error).__name__}" if mended else f"stuck: {where}"] += 1
    return found

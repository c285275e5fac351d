"""Damage on purpose, drawn from seeds: what a disk, a network or a stranger does to files."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Mapping
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

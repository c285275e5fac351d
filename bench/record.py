"""One JSON file a cell, or a study: the evidence that every table and plot is made from.

Beside its fields a file has `digest`, the SHA-256 of all of them. It finds damage, not forgery.
Records of before have none; `bench.soundness` finds what it can of theirs.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UsageError
from bench.files import sealed, unsealed, user_path, write_text
from bench.soundness import fault

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
CONTROL = "clean"
"""The method that every grid contains and every other is compared with."""
EACH = "each"
"""As a crafting seed: every victim has a crafted set of its own, of the victim's seed."""
CELLS, STUDIES = "cells", "studies"
"""Rooms of a results folder: records of victims, and records of measurements that are none."""
MARKS = {CELLS: "method", STUDIES: "study"}
"""A field that every record of a room has, and none of the other."""
DEEPEST = 100
"""Lists and dictionaries in each other; a record has a few."""
SHARES = ("final_test_acc", "peak_test_acc", "final_train_acc")
"""Fields that are accuracies, None where they are undefined."""
CLEAN_PART = "clean-part"
"""The control of a partial protection: its victims are trained on the unprotected images alone."""
PREPARES = "prepares training images only"
"""In `defense_notes`, where test images, and images held out, are not prepared alike."""

FIELDS: dict[str, tuple[type, ...]] = {
    # What was asked for. `identity` is the whole of it, and `key` its SHA-256.
    "schema": (int,),
    "key": (str,),
    "identity": (dict,),
    "method": (str,),
    "method_label": (str,),
    "method_settings": (dict,),
    "method_deviations": (dict,),
    "budget": (dict,),
    "epsilon": (float, int, type(None)),
    "defense": (str,),
    "defense_label": (str,),
    "defense_settings": (dict,),
    "arch": (str,),
    "arch_label": (str,),
    "arch_notes": (dict,),
    "width": (float, int),
    "dataset": (str,),
    "dataset_digest": (str,),
    "classes": (list,),
    "train_images": (int,),
    "test_images": (int,),
    "recipe": (str,),
    "recipe_label": (str,),
    "recipe_settings": (dict,),
    "training": (dict,),
    "precision": (str,),
    "poison_ratio": (float, int),
    "holdout": (int,),
    "seed": (int,),
    "craft_seed": (int,),
    # What came of it. Accuracies are fractions; a failed cell has none.
    "status": (str,),
    "error": (str, type(None)),
    "final_test_acc": (float, type(None)),
    "peak_test_acc": (float, type(None)),
    "final_train_acc": (float, type(None)),
    "curve": (list,),
    "confusion": (list, type(None)),
    "audit": (dict, type(None)),
    "crafted_key": (str, type(None)),
    "crafting_gradient_images": (int, type(None)),
    "crafting_seconds": (float, int, type(None)),
    # What it took, and with what.
    "seconds": (float, int),
    "core_seconds": (float, int),
    "peak_memory": (int,),
    "finished": (str,),
    "commit": (str,),
    "versions": (dict,),
    "device": (dict,),
}
"""Every field of a record and the types it may have.

`status` is "done" or "failed"; `error` the traceback of a failed cell, or one line that says what
it lacked, such as weights that cannot be fetched. `curve` has a row an epoch with `epoch`, `lr`,
`train_loss`, `train_acc`, `test_acc`, and `holdout_acc` when images were held out; `test_acc` of
the last row is over all test images. `confusion[i][j]` counts clean test images of class i
predicted as j. `budget` is {"norm", "epsilon"}; `epsilon` repeats it for l-inf methods.
`training` has the settings in which the architecture was trained otherwise than the recipe says.
`seconds` and `core_seconds` are the victim's training. `peak_memory` is in bytes, of the cell on a
GPU, and on a CPU of its process since that began.
"""

ADDED: dict[str, Any] = {"training": {}}
"""Fields that older records lack, with what holds for those."""


LATER_FIELDS: dict[str, tuple[type, ...]] = {
    "protected_classes": (list,),
    "crafting_recipe": (str,),
    "shortcut": (dict, type(None)),
    "side_information": (str,),
    "defense_deviations": (dict,),
    "defense_notes": (list,),
    "defense_facts": (dict,),
    "separability": (float, type(None)),
}
"""Fields that records of before do not have.

`protected_classes` are the indices of the only classes that are protected, where not all are.
`crafting_recipe` is the label of the recipe that the crafted set is of, where it is not the
victim's: surrogates that follow it were trained for other epochs than the victim.
`shortcut` is measured on the test images of the curve: accuracy where each carries its own class's
perturbation (`own_acc`), accuracy where it carries that of the next protected class (`next_acc`),
and the share of the latter that is taken for that class (`next_followed`); None where there is
nothing to carry. `side_information` is what the defense knows beyond the released images,
`defense_deviations` the settings in which it departs from its paper, `defense_notes` what else a
reader should know of it in a few words, and `defense_facts` what can be said of it beforehand, such
as a privacy guarantee. `separability` is how often a linear rule tells the class from the
perturbation alone, see `bench.separability`; None where nothing was changed, or in one class only.
"""


STUDY_FIELDS: dict[str, tuple[type, ...]] = {
    "schema": (int,),
    "key": (str,),
    "identity": (dict,),
    "study": (str,),
    "study_settings": (dict,),
    "subject": (str,),
    "dataset": (str,),
    "dataset_digest": (str,),
    "recipe": (str,),
    "recipe_label": (str,),
    "recipe_settings": (dict,),
    "precision": (str,),
    "seed": (int, type(None)),
    "craft_seed": (int, type(None)),
    "status": (str,),
    "values": (dict,),
    "seconds": (float, int),
    "core_seconds": (float, int),
    "finished": (str,),
    "commit": (str,),
    "versions": (dict,),
    "device": (dict,),
}
"""Every field of a study's record and the types it may have.

`subject` is what was measured, such as the method whose surrogates were looked at; `values` what
came of it, described by the study. `seed` and `craft_seed` are None where nothing of the kind was
drawn. Where a study needs no images, data set and recipe are empty.
"""


class NewerRecordError(UsageError):
    """A record that this version cannot read and must not replace."""


def path_of(folder: Path, key: str, slug: str, room: str = CELLS) -> Path:
    """Where the record of a cell or of a study lies; the slug is for people, the key decides."""
    return folder / room / f"{slug}-{key[:12]}.json"


def find(folder: Path, key: str, room: str = CELLS) -> Path | None:
    """The file of the record with this key, whatever its slug, or None."""
    return next(iter(sorted((folder / room).glob(f"*-{key[:12]}.json"))), None)


def is_done(folder: Path, key: str, room: str = CELLS) -> bool:
    """Whether there is a whole record with this key, and not one of a failure.

    Raises:
        NewerRecordError: if there is one of a newer version.
    """
    file = find(folder, key, room)
    found = None if file is None else _whole(file)
    return found is not None and found["status"] == "done"


def write(folder: Path, slug: str, record: Mapping[str, Any], room: str = CELLS) -> Path:
    """Write a record aside and rename it into place.

    Args:
        folder: the one that holds the rooms.
        slug: for people, the front of the file's name.
        record: of a cell, or of a study.
        room: `CELLS` or `STUDIES`.

    Raises:
        NewerRecordError: if it would replace a record of a newer version.
        UsageError: if it is no record of that room.
    """
    check(record, "this run", room)
    key = record["key"]
    # A record that is replaced keeps its name, even if the slug is another by now.
    file = find(folder, key, room) or path_of(folder, key, slug, room)
    _whole(file)  # whatever else lies there may be replaced
    write_text(file, json.dumps(sealed(record), indent=1, ensure_ascii=False) + "\n")
    return file


def read(file: Path) -> dict[str, Any]:
    """A record from its file; the folder where it lies says of what kind it must be.

    Raises:
        NewerRecordError: if it was written by a newer version.
        UsageError: if the file is not a whole and sound record of this schema, and of its room.
    """
    room = STUDIES if file.parent.name == STUDIES else CELLS
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if _is_deep(record):
            raise RecursionError
    except (OSError, ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise UsageError(
            f"record {file} cannot be read ({why}); delete it and the cell runs again"
        ) from None
    _check_schema(record, str(file))
    facts = unsealed(record, older={*FIELDS, *LATER_FIELDS, *STUDY_FIELDS})
    if facts is None:
        wrong = "is damaged: its digest is not that of its fields"
    else:
        record = copy.deepcopy({} if room == STUDIES else ADDED) | facts
        check(record, str(file), room)
        wrong = fault(record)
    if wrong is not None:
        raise UsageError(f"record {file} {wrong}; delete it and the cell runs again")
    return record


def _whole(file: Path) -> dict[str, Any] | None:
    """A record, or None where there is none that is whole; a newer one raises."""
    try:
        return read(file)
    except NewerRecordError:
        raise
    except UsageError:
        return None


def _is_deep(value: Any) -> bool:
    """Whether it is nested more deeply than `DEEPEST`, which nobody could then walk through."""
    level = [value]
    for _ in range(DEEPEST):
        nests = [one for one in level if isinstance(one, dict | list)]
        level = [i for one in nests for i in (one.values() if isinstance(one, dict) else one)]
    return bool(level)


def check(record: Any, where: str, room: str = CELLS) -> None:
    """Raise UsageError unless every field that the room asks for is there with its type."""
    _check_schema(record, where)
    other = CELLS if room == STUDIES else STUDIES
    if MARKS[room] not in record and MARKS[other] in record:
        raise UsageError(f"record {where} belongs in {other}/, not in {room}/; move it there")
    fields = STUDY_FIELDS if room == STUDIES else FIELDS | LATER_FIELDS
    for name, types in fields.items():
        if name not in record:
            if name in LATER_FIELDS:
                continue
            raise UsageError(f"record {where} lacks '{name}'; delete it and the cell runs again")
        if not isinstance(record[name], types):
            raise UsageError(f"record {where}: '{name}' is a {type(record[name]).__name__}")
        if name in SHARES and record[name] is not None and not 0 <= record[name] <= 1:
            raise UsageError(f"record {where}: '{name}' {record[name]:g} is no share of 0 to 1")


def _check_schema(record: Any, where: str) -> None:
    schema = record.get("schema") if isinstance(record, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise NewerRecordError(
            f"record {where} was written by a newer version of this suite (schema {schema})"
        )
    if schema != SCHEMA:
        raise UsageError(f"record {where} has schema {schema}, this version reads {SCHEMA}")


def read_all(
    folder: Path, notes: list[str] | None = None, room: str = CELLS
) -> Iterator[dict[str, Any]]:
    """Every record in a room of a results folder, in order of file name.

    The perturbation's separability belongs to the crafted set: where an older record lacks it, it
    is that of a later record of the same set.

    Args:
        folder: the one that holds `cells/`.
        notes: takes a line for every file that is no record, or one that belongs in the other
            room; without it such a file raises.
        room: `CELLS` or `STUDIES`.
    """
    found = []
    for file in sorted((folder / room).glob("*.json")):
        try:
            found.append(read(file))
        except UsageError as error:
            if notes is None:
                raise
            notes.append(f"left out: {error}")
    yield from _scored(found) if room == CELLS else found


def _scored(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records, of which older ones have the score that a later one tells of their crafted set."""
    name = "separability"
    scores = {one["crafted_key"]: one[name] for one in records if one.get(name) is not None}
    for one in records:
        if name not in one and one["crafted_key"] in scores:
            one[name] = scores[one["crafted_key"]]
    return records


def load_results(folder: str | Path) -> pd.DataFrame:
    """The records of a results folder as a data frame, a row a cell, a column a field.

    Args:
        folder: a results folder, the one that holds `cells/`.

    Raises:
        UsageError: if there is no such folder, or a file in it is not a record.
    """
    import pandas as pd

    folder = user_path(folder)
    if not (folder / "cells").is_dir():
        raise UsageError(f"{folder} holds no records (no folder {folder / 'cells'})")
    return pd.DataFrame(list(read_all(folder)), columns=[*FIELDS, *LATER_FIELDS])

"""The records of several machines in one folder; where they contradict each other, none."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from bench import record
from bench.compare.cells import check_rooms, fields, read_files, results_differ, told
from bench.compare.studies import values_agree
from bench.errors import UsageError
from bench.files import slugify, write_with
from bench.reports.claims import FILE
from bench.reports.summary import Record
from bench.store import check_writable


class ConflictError(UsageError):
    """Records of one key have different results; nothing was written.

    Attributes:
        cells: a line for each.
    """

    def __init__(self, cells: Sequence[str]) -> None:
        self.cells = cells
        some = "one cell" if len(cells) == 1 else f"{len(cells)} cells"
        super().__init__(
            f"{some} with equal keys and different results, nothing is written; find out which is "
            "right and delete the other record"
        )


@dataclass(frozen=True)
class Merged:
    """What came of it.

    Attributes:
        added: records that were not there.
        replaced: records that were, and failed, said less or were made later.
        kept: records that were there and stayed.
        samples: sample files that were added.
        studies: records of studies that were added, or that replaced one that was not done, was
            damaged, said less or was made later.
        notes: what else is worth knowing.
        damaged: a line for every file that was left out.
    """

    added: int
    replaced: int
    kept: int
    samples: int
    studies: int
    notes: Sequence[str]
    damaged: Sequence[str]


@dataclass(frozen=True)
class Source:
    """A record where it was found.

    Attributes:
        record: what it says.
        text: the bytes of its file, which are copied as they are.
        file: that file.
    """

    record: Record
    text: bytes
    file: Path

    @property
    def folder(self) -> Path:
        """The results folder."""
        return self.file.parent.parent

    @property
    def preference(self) -> tuple[bool, int, str, bytes]:
        """The lowest of several stays, whichever folder comes first.

        One that is done before one that failed, then the one with more fields, for older ones
        lack some, then the one that was finished first.
        """
        one = self.record
        return one["status"] != "done", -len(json.loads(self.text)), one["finished"], self.text

    @property
    def key(self) -> str:
        """Of the record."""
        return self.record["key"]


def merge(folders: Sequence[Path], into: Path) -> Merged:
    """Fold results folders together.

    Every file is written aside and renamed, so that a run that is killed leaves a whole folder
    and the same call goes on. No name of a file is taken from inside a record.

    Args:
        folders: each holds `cells/` or `studies/`.
        into: may be new, one of the others, or have records, which then take part.

    Raises:
        ConflictError: if records of one key are done and have different results.
        UsageError: if a folder is not there, cannot be written, or holds newer records.
    """
    for folder in folders:
        check_rooms(folder)
    inputs = list({folder.resolve(): folder for folder in (into, *folders)}.values())
    damaged: list[str] = []
    found = _read(inputs, record.CELLS, damaged)
    studies = _read(inputs, record.STUDIES, damaged)
    _check_names(found)
    _check_names(studies)
    conflicts = [line for sources in found.values() for line in _conflicts(sources)]
    conflicts += [line for sources in studies.values() for line in _study_conflicts(sources)]
    if conflicts:
        raise ConflictError(conflicts)
    chosen, chosen_studies = (
        {key: min(sources, key=lambda s: s.preference) for key, sources in room.items()}
        for room in (found, studies)
    )
    check_writable(into, "results", "--into")
    notes = [
        f"{folder / FILE} is not merged: claims belong to the records that they were made before"
        for folder in inputs[1:]
        if (folder / FILE).exists()
    ]
    # First the samples: a record that stands is then complete.
    samples = _merge_samples(inputs, into, [source.record for source in chosen.values()], notes)
    added, replaced = _write(into, chosen, record.CELLS)
    kept = len(chosen) - added - replaced
    new_studies = sum(_write(into, chosen_studies, record.STUDIES))
    return Merged(added, replaced, kept, samples, new_studies, notes, damaged)


def _write(into: Path, chosen: Mapping[str, Source], room: str) -> tuple[int, int]:
    """Put records where they are not yet, byte for byte; how many are new, and how many replace."""
    added = replaced = 0
    for key, source in sorted(chosen.items()):
        known = record.find(into, key, room)
        if known is not None and known.read_bytes() == source.text:
            continue
        slug = slugify(source.file.stem.removesuffix(f"-{key[:12]}"))
        text = source.text
        write_with(
            known or record.path_of(into, key, slug, room),
            lambda file, text=text: file.write(text),
        )
        if known is None:
            added += 1
        else:
            replaced += 1
    return added, replaced


def _read(folders: Iterable[Path], room: str, damaged: list[str]) -> dict[str, list[Source]]:
    """The records of a room by key; a line for every file that is none."""
    found: dict[str, list[Source]] = defaultdict(list)
    for folder in folders:
        for one, file in read_files(folder, damaged, room):
            found[one["key"]].append(Source(one, file.read_bytes(), file))
    return found


def _study_conflicts(sources: Sequence[Source]) -> Iterator[str]:
    """The first contradiction between records of one study."""
    done = [source for source in sources if source.record["status"] == "done"]
    for one, other in combinations(done, 2):
        if not values_agree(one.record["values"], other.record["values"]):
            title = f"{one.record['study']} of {one.record['subject']}"
            yield f"{title}: values in {one.folder} and {other.folder}"
            return


def _check_names(found: Mapping[str, Sequence[Source]]) -> None:
    """Raise UsageError if the files of two cells would have one name."""
    names: dict[str, str] = {}
    for key in found:
        other = names.setdefault(key[:12], key)
        if other != key:
            files = " and ".join(str(found[one][0].file) for one in (other, key))
            raise UsageError(f"the keys of {files} begin alike; nothing is written")


def _conflicts(sources: Sequence[Source]) -> Iterator[str]:
    """The first contradiction between records of one key."""
    done = [source for source in sources if source.record["status"] == "done"]
    for one, other in combinations(done, 2):
        if results_differ(one.record, other.record):
            differing = fields(one.record, other.record)
            yield f"{told(one.record)}: {differing} in {one.folder} and {other.folder}"
            return


def _merge_samples(
    folders: Sequence[Path], into: Path, records: Iterable[Record], notes: list[str]
) -> int:
    """Copy the samples of the records' crafted sets; the number of files that are new."""
    import numpy as np

    from bench.samples import read_sample, sample_file

    added = 0
    for key in sorted({one["crafted_key"] for one in records} - {None}):
        files = [file for folder in folders if (file := sample_file(folder, "", key)).exists()]
        whole = [(file, found) for file in files if (found := read_sample(file)) is not None]
        if not whole:
            notes += [f"left out: sample {file} cannot be read" for file in files]
            continue
        first, images = whole[0]
        for other, others in whole[1:]:
            if not all(map(np.array_equal, images, others)):
                notes.append(f"sample {first} is kept, {other} shows other images")
        slug = slugify(first.stem.removesuffix(f"-{key[:12]}"))
        target = sample_file(into, slug, key)
        if target.resolve() == first.resolve():
            continue
        content = first.read_bytes()
        write_with(target, lambda file, content=content: file.write(content))
        added += 1
    return added

"""Files: written so that nothing is ever half there, read so that no damage passes unseen.

Everything is written aside, synced and renamed, but for the arrays of `make_array` and
`unnamed_array`, which are filled in place. Digests find damage; who forges can forge them, too.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from bench.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

NEXT_TO_NOTHING = 64 * 1024
"""Bytes left on a disk on which the next write fails."""

UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""How a file system says that it does not know an operation."""

DIGEST = "digest"
"""The field in which facts bear the digest of all their others."""


def write_with(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Write a file through `fill`; it appears under its name whole or not at all.

    Args:
        path: where it shall stand; missing folders are made.
        fill: writes the content to the open binary file it is given.

    Raises:
        OSError: where the file cannot be written; of number ENOSPC, with the folder, where the disk
            is full, whatever `fill` made of that.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            fill(file)
            file.flush()
            with known_only():
                os.fsync(file.fileno())
        with suppress(OSError):  # some file systems have no permissions to give
            temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException as error:
        full = shutil.disk_usage(path.parent).free < NEXT_TO_NOTHING
        temporary.unlink(missing_ok=True)
        # PyTorch tells no more of a full disk than where its own writing went wrong.
        if full and isinstance(error, OSError | RuntimeError):
            text = f"{os.strerror(errno.ENOSPC)}; make room and repeat the command"
            raise OSError(errno.ENOSPC, text, str(path.parent)) from error
        raise
    _sync_folder(path.parent)


@contextmanager
def known_only() -> Iterator[None]:
    """Do without what a file system does not know; a disk that is full or fails still raises."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as `write_with` does."""
    write_with(path, lambda file: file.write(text.encode()))


def user_path(text: str | Path, *, pipes: bool = False) -> Path:
    """A path as people write it: `~` is their home, and names may be in either Unicode form.

    Args:
        text: what they wrote.
        pipes: whether it may also be a pipe or a device, which are read once and may never end.

    Raises:
        UsageError: if nothing can be called so, or it is something else than a file or a folder.
    """
    if "\0" in str(text):
        raise UsageError("the name of a file or folder cannot contain a zero character")
    try:
        path = _in_either_form(Path(text).expanduser())
    except RuntimeError:
        user = str(text).partition("/")[0]
        raise UsageError(
            f"'{text}': nobody's home here is {user}; write ./{text} for a name that begins so"
        ) from None
    try:
        odd = path.resolve().exists() and not (pipes or path.is_file() or path.is_dir())
    except RuntimeError:
        raise UsageError(f"'{text}' is a link that leads to itself") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UsageError(f"'{text}' is longer than a name can be") from None
        return path  # whoever opens it tells why that fails
    if odd:
        raise UsageError(f"'{text}' is neither a file nor a folder; copy what it gives to a file")
    return path


def _in_either_form(path: Path) -> Path:
    """The path; a part of it that is not there is tried in the other Unicode form."""
    if os.path.lexists(path):
        return path
    found = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        found /= next((form for form in forms if os.path.lexists(found / form)), part)
    return found


READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def unless_read_only(folder: Path, notes: list[str]) -> Iterator[None]:
    """Write what can be done without; where the folder may not be written, note that and go on.

    Args:
        folder: for the note.
        notes: takes a line, once.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        note = f"tables and plots are not kept: {folder} cannot be written ({error.strerror})"
        if note not in notes:
            notes.append(note)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; some systems cannot open folders, and need it less."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        with known_only():
            os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def slugify(text: str) -> str:
    """Text reduced to a name that every file system takes."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.").lower()[:80] or "x"


def digest_of(facts: Any) -> str:
    """SHA-256 of plain values in one canonical spelling."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts with a digest of all of them."""
    return {**facts, DIGEST: digest_of(facts)}


def unsealed(found: Any, older: Collection[str] = ()) -> dict[str, Any] | None:
    """The facts that `sealed` was given, or None if they are not those any more.

    Args:
        found: what was read back.
        older: fields of such facts as were kept before there were digests, and are taken as they
            are. With any other field, such as a digest whose name was damaged, they are not.
    """
    if not isinstance(found, dict):
        return None
    facts = {name: value for name, value in found.items() if name != DIGEST}
    if DIGEST in found:
        return facts if found[DIGEST] == digest_of(facts) else None
    return facts if facts.keys() <= set(older) else None


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Hashing:
    """A file to write to, and the hash of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.sha256 = file, hashlib.sha256()
        self.flush = file.flush

    def write(self, content: bytes) -> int:
        self.sha256.update(content)
        return self._file.write(content)


def save_tensors(path: Path, state: dict[str, Any]) -> None:
    """Save nested tensors and plain values, atomically, with a digest behind them."""
    import torch

    def fill(file: IO[bytes]) -> None:
        hashing = _Hashing(file)
        torch.save(state, cast("IO[bytes]", hashing))
        file.write(hashing.sha256.digest())

    write_with(path, fill)


def load_tensors(path: Path) -> dict[str, Any] | None:
    """What `save_tensors` wrote, or None if it is not that any more; runs no code from the file."""
    import torch

    try:
        content = path.read_bytes()
    except OSError:
        return None
    size = hashlib.sha256().digest_size
    content, digest = content[:-size], content[-size:]
    if hashlib.sha256(content).digest() != digest:
        return None
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


class Unfinished:
    """Work that is not complete yet: what is read back is what was written, or nothing.

    Args:
        folder: where it lies.
        key: of what it will become. Files bear it and their own names, since the work of something
            else, or something else of this work, is as good as damaged.
        note: told of whatever is damaged, which is removed.
    """

    def __init__(self, folder: Path, key: str, note: Callable[[str], None]) -> None:
        self.folder, self._key, self._note = folder, key, note

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Keep nested tensors and plain values."""
        save_tensors(self.folder / f"{name}.pt", {"of": [self._key, name], "kept": state})

    def load(self, name: str) -> dict[str, Any] | None:
        """What was saved last under this name, or None."""
        file = self.folder / f"{name}.pt"
        return self._own(file, load_tensors(file))

    def write(self, name: str, facts: Any) -> None:
        """Keep plain values."""
        made = sealed({"of": [self._key, name], "kept": facts})
        write_text(self.folder / f"{name}.json", json.dumps(made))

    def read(self, name: str) -> Any:
        """The plain values written last under this name, or None."""
        file = self.folder / f"{name}.json"
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            found = None
        return self._own(file, unsealed(found))

    def _own(self, file: Path, found: dict[str, Any] | None) -> Any:
        if found is not None and found.get("of") == [self._key, file.stem]:
            return found["kept"]
        if file.exists():
            self.tell(file)
            remove(file)
        return None

    def tell(self, file: Path) -> None:
        """Say that one of the files is damaged."""
        self._note(f"{file} is damaged or foreign; what it held is made again")


def make_array(path: Path, shape: Sequence[int]) -> np.memmap:
    """A new .npy file of float32 zeros, mapped into memory; it may be larger than memory.

    It is filled in place, so whoever relies on it notes elsewhere, after `flush`, how far it is.
    """
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    remove(path)  # zeros everywhere, also where an older file had something
    array = np.lib.format.open_memmap(path, "w+", np.float32, tuple(shape))
    _reserve(path)
    return array


def open_array(path: Path, shape: Sequence[int]) -> np.memmap:
    """The file that `make_array` made.

    Raises:
        OSError: if it is not there.
        ValueError: if it is something else.
    """
    import numpy as np

    try:
        np.load(path, mmap_mode="r", allow_pickle=False)  # refuses what is cut off; "r+" extends it
        array = np.load(path, mmap_mode="r+", allow_pickle=False)
    except EOFError:
        raise ValueError(f"{path} is empty") from None
    if array.shape != tuple(shape) or array.dtype != np.float32:
        raise ValueError(f"{path} holds {array.dtype} {array.shape}, not float32 {tuple(shape)}")
    return array


def unnamed_array(folder: Path, shape: Sequence[int], dtype: str = "float32") -> np.memmap:
    """Zeros in a file without a name, which goes when the last user of the array does.

    Args:
        folder: on whose disk; made if it is missing.
        shape: of the array.
        dtype: of its elements.
    """
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        file.truncate(max(size, 1))
        _reserve(Path(file.name))
        return np.memmap(file, dtype, "r+", shape=tuple(shape))


def map_member(archive: Path, name: str) -> np.memmap:
    """One array of an uncompressed .npz, mapped into memory instead of read.

    Changes to it stay in memory and never reach the file.

    Raises:
        ValueError: if the member is compressed or holds Python objects.
        KeyError: if there is no such member.
    """
    import numpy as np

    with zipfile.ZipFile(archive) as members:
        if members.getinfo(f"{name}.npy").compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} in {archive} is compressed")
        with members.open(f"{name}.npy") as member, archive.open("rb") as raw:
            # Where the content begins: the header in front of it names its own length.
            raw.seek(members.getinfo(f"{name}.npy").header_offset)
            header = raw.read(30)
            start = raw.tell() + int.from_bytes(header[26:28], "little")
            start += int.from_bytes(header[28:30], "little")
            major = np.lib.format.read_magic(member)[0]
            read = np.lib.format.read_array_header_1_0
            shape, fortran, dtype = (read if major == 1 else np.lib.format.read_array_header_2_0)(
                member
            )
            start += member.tell()
    if dtype.hasobject:
        raise ValueError(f"{name} in {archive} holds Python objects")
    return np.memmap(archive, dtype, "c", start, shape, "F" if fortran else "C")


def _reserve(path: Path) -> None:
    """Make a full disk an error now; later, a write to the mapping would kill the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file, known_only():
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)

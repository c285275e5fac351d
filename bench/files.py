"""Files: written so that nothing is ever half there, and arrays that live on disk.

Everything is written aside, synced and renamed, but for the arrays of `make_array` and
`unnamed_array`, which are filled in place.
"""

from __future__ import annotations

import errno
import os
import pickle
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bench.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

NEXT_TO_NOTHING = 64 * 1024
"""Bytes left on a disk on which the next write fails."""


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
            os.fsync(file.fileno())
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


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as `write_with` does."""
    write_with(path, lambda file: file.write(text.encode()))


def user_path(text: str | Path, *, pipes: bool = False) -> Path:
    """A path as people write it, `~` standing for their home.

    Args:
        text: what they wrote.
        pipes: whether it may also be a pipe or a device, which are read once and may never end.

    Raises:
        UsageError: if nothing can be called so, or it is something else than a file or a folder.
    """
    if "\0" in str(text):
        raise UsageError("the name of a file or folder cannot contain a zero character")
    try:
        path = Path(text).expanduser()
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
        os.fsync(handle)
    finally:
        os.close(handle)


def slugify(text: str) -> str:
    """Text reduced to a name that every file system takes."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.").lower()[:80] or "x"


def save_tensors(path: Path, state: dict[str, Any]) -> None:
    """Save nested tensors and plain values, atomically."""
    import torch

    write_with(path, lambda file: torch.save(state, file))


def load_tensors(path: Path) -> dict[str, Any] | None:
    """What `save_tensors` wrote, or None if the file is damaged; runs no code from the file."""
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        return None


def make_array(path: Path, shape: Sequence[int]) -> np.memmap:
    """A new .npy file of float32 zeros, mapped into memory; it may be larger than memory.

    It is filled in place, so whoever relies on it notes elsewhere, after `flush`, how far it is.
    """
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # zeros everywhere, also where an older file had something
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

    np.load(path, mmap_mode="r", allow_pickle=False)  # refuses a truncated file; "r+" extends it
    array = np.load(path, mmap_mode="r+", allow_pickle=False)
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
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)

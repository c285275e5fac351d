"""Writing so that nothing is ever half there: aside, fsync, rename."""

from __future__ import annotations

import os
import pickle
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_with(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Write a file through `fill`; it appears under its name whole or not at all.

    Args:
        path: where it shall stand; missing folders are made.
        fill: writes the content to the open binary file it is given.
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
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as `write_with` does."""
    write_with(path, lambda file: file.write(text.encode()))


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

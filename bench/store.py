"""Tensors and checkpoints by content of their recipe: made once, verified, shared, safe to delete.

    store/surrogates/rn18-0a1b.../   epoch-002.pt ... manifest.json
    store/crafted/sep-2c3d.../       released.npz manifest.json
    store/scores/sep-6a7b.../        manifest.json, what was measured on a crafted set
    store/victims/sep-rn18-4e5f.../  partial/training.pt, gone when the record is written

A folder counts only once its manifest stands, which is written last, names the SHA-256 of every
file and bears a digest of all that it says. Whatever is damaged or foreign is made again.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bench.errors import UsageError
from bench.files import digest_of, file_digest, remove, sealed, unsealed, write_text, write_with

Fill = Callable[[IO[bytes]], object]
MANIFEST = "manifest.json"
TOLD: tuple[str, ...] = ("key", "identity", "files", "facts")
"""What a manifest says; older ones have no digest of it."""


def key_of(identity: Any) -> str:
    """SHA-256 of an identity in one canonical spelling."""
    return digest_of(identity)


@dataclass(frozen=True)
class Store:
    """A folder of artifacts.

    Attributes:
        root: made when the first artifact is written.
    """

    root: Path

    def artifact(self, kind: str, slug: str, identity: Mapping[str, Any]) -> Artifact:
        """The artifact of this identity, whether it exists or not."""
        return Artifact(self.root, kind, slug, identity)


def check_writable(folder: Path, what: str, option: str) -> None:
    """Raise UsageError unless files can be made in the folder, which is created if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"{what} folder '{folder}' cannot be written ({reason}); choose another with {option}"
        ) from None


def check_locks(folder: Path, what: str, option: str) -> None:
    """Raise UsageError unless files in the folder can be locked."""
    from filelock import FileLock

    try:
        with tempfile.TemporaryDirectory(dir=folder) as made, FileLock(Path(made) / "lock"):
            pass
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"{what} folder '{folder}' lies where files cannot be locked ({reason}), and two "
            f"commands would spoil each other's work; choose another with {option}"
        ) from None


class Artifact:
    """One folder of the store.

    Args:
        root: of the store.
        kind: its subfolder.
        slug: a label for people.
        identity: all that decides the content; its hash is the key.
    """

    def __init__(self, root: Path, kind: str, slug: str, identity: Mapping[str, Any]) -> None:
        self.identity = dict(identity)
        self.key = key_of(identity)
        self._root, self._parent = root, root / kind
        self._name = f"{slug}-{self.key[:16]}"
        self._verified: dict[str, Any] | None = None

    @property
    def folder(self) -> Path:
        """Where it lies; a folder of the same key under another slug is taken as it is."""
        known = sorted(self._parent.glob(f"*-{self.key[:16]}")) if self._parent.is_dir() else []
        return known[0] if known else self._parent / self._name

    @property
    def partial(self) -> Path:
        """A folder for unfinished work."""
        return self.folder / "partial"

    @contextmanager
    def lock(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Held while it is being made, so that two commands do not make it twice.

        Args:
            waiting: called every second while another command holds it; may raise.
        """
        # Imported here: it warns where there are no locks, which `check_system` says better.
        from filelock import FileLock, Timeout

        folder = self._root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{self.key[:16]}.lock"
        if file.is_dir():
            remove(file)
        lock = FileLock(file)
        while not lock.is_locked:
            try:
                lock.acquire(timeout=1)
            except Timeout:
                waiting()
        try:
            self._verified = None  # it may have been made meanwhile
            for place in (self.folder, self.partial):
                if place.exists() and not place.is_dir():
                    remove(place)
            yield
        finally:
            lock.release()

    def manifest(self) -> dict[str, Any] | None:
        """What `publish` noted, after checking every file against it; None if anything is off."""
        if self._verified is None:
            self._verified = self._verify()
        return self._verified

    def damaged(self) -> bool:
        """Whether there is more of it than unfinished work, and it is not whole."""
        if self.manifest() is not None or not self.folder.exists():
            return False
        return not self.folder.is_dir() or any(f != self.partial for f in self.folder.iterdir())

    def publish(self, files: Mapping[str, Fill], facts: Mapping[str, Any]) -> None:
        """Write the files, then the manifest, then forget the partial work.

        If it is whole already it is added to: files of other names stay as they are, and whoever
        reads them meanwhile finds it whole throughout.

        Args:
            files: by name, functions that write into an open binary file.
            facts: noted in the manifest, fit for JSON.
        """
        folder = self.folder
        known = self.manifest()
        hashes = {} if known is None else dict(known["files"])
        for name in [*files, *([MANIFEST] if known is None else [])]:
            remove(folder / name)
        for name, fill in files.items():
            write_with(folder / name, fill)
            hashes[name] = file_digest(folder / name)
        told = (self.key, self.identity, hashes, dict(facts))
        manifest = dict(zip(TOLD, told, strict=True))
        write_text(folder / MANIFEST, json.dumps(sealed(manifest), indent=1) + "\n")
        self._verified = manifest
        shutil.rmtree(self.partial, ignore_errors=True)

    def discard(self) -> None:
        """Remove it altogether."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._verified = None

    def _verify(self) -> dict[str, Any] | None:
        folder = self.folder
        try:
            found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            manifest = unsealed(found, older=TOLD)
            if manifest is None or not manifest["key"] == self.key == key_of(manifest["identity"]):
                return None
            files = manifest["files"].items()
            whole = all(file_digest(folder / name) == digest for name, digest in files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        return manifest if whole else None

"""Official files: the first place that has them whole and genuine, here or on a server."""

from __future__ import annotations

import hashlib
import http.client
import subprocess
import tarfile
import time
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

from PIL import Image

from bench.data import DatasetSource, Places, Progress, Splits
from bench.decoded import kept
from bench.errors import UsageError
from bench.files import write_with

_SILENCE = 30.0
"""Seconds without a byte after which a server is given up."""
FAILURES = (
    OSError,
    ValueError,
    TypeError,
    EOFError,
    SyntaxError,  # Pillow, for a broken PNG chunk
    Image.DecompressionBombError,
    tarfile.TarError,
    zlib.error,
    http.client.HTTPException,
    subprocess.SubprocessError,
)
"""What a missing, damaged or unreachable source raises."""

Source = tuple[str, Callable[[], Splits]]
"""What to call it in messages, and a function that reads it or raises one of `FAILURES`."""


class OfficialDataset(DatasetSource):
    """A data set known byte for byte: wherever its files come from, they are checked.

    What was decoded is therefore kept under the data set's name and version alone.
    """

    torchvision_class: ClassVar[str]
    """Its name there; it knows file names, MD5 sums and the home server."""
    folders: ClassVar[tuple[str, ...]]
    """Where to look inside the data folder."""

    @property
    def wanted(self) -> str:
        """The files to put into the data folder, for messages."""
        raise NotImplementedError

    def _sources(self, places: Places) -> Iterator[Source]:
        """What to try, in this order; nothing is opened or fetched yet."""
        raise NotImplementedError

    def load(self, places: Places) -> Splits:
        """Reopen what was decoded before, or search the data folder, or download.

        Raises:
            UsageError: if no source is left; it names each and why it failed.
        """
        folder = places.cache_dir / f"{self.name}-v{self.version}"
        return kept(folder, lambda: self._decode(places))

    def _decode(self, places: Places) -> Splits:
        """The images from the first source that has them, whole and genuine."""
        refused = []
        for source, read in self._sources(places):
            try:
                return read()
            except FAILURES as error:
                refused.append(f"{source} ({_brief(error)})")
                places.progress(f"{self.name}: passed over {refused[-1]}", 1, 1)
        raise UsageError(
            f"{self.name} is not in {places.data_dir}"
            + (f"; tried {', '.join(refused)}" if refused else "")
            + ("" if places.download else "; downloading is switched off")
            + f". Put {self.wanted} there, or name the folder that has it with --data-dir"
        )

    def _torchvision(self) -> Any:
        import torchvision.datasets  # here, because it takes seconds and is seldom needed

        return getattr(torchvision.datasets, self.torchvision_class)


class Remote(NamedTuple):
    """A file on servers."""

    md5: str
    urls: tuple[str, ...]
    """Where it is; each is asked until one sends it."""


class OfficialFiles(OfficialDataset):
    """A data set that comes as a few files; the first of `folders` is where downloads go."""

    names: ClassVar[tuple[str, ...]]
    """The files; what is needed to search is said here, as torchvision takes seconds."""

    @property
    def wanted(self) -> str:
        """A folder with all files by name."""
        *others, last = self.names
        return f"the folder {self.folders[0]} with {', '.join(others)} and {last}"

    def remote(self) -> Mapping[str, Remote]:
        """Where each of `names` can be fetched."""
        raise NotImplementedError

    def read(self, folder: Path, progress: Progress) -> Splits:
        """Check and decode the files in a folder.

        Raises:
            OSError: if one is missing.
            ValueError: if one is damaged or not the original.
        """
        raise NotImplementedError

    def spellings(self, name: str) -> Collection[str]:
        """Names under which a file may lie in a folder."""
        return (name,)

    def _sources(self, places: Places) -> Iterator[Source]:
        """Folders that have any of the files, then the servers."""
        for inside in self.folders:
            folder = places.data_dir / inside
            if any(
                (folder / each).is_file() for name in self.names for each in self.spellings(name)
            ):
                yield inside or "the folder itself", partial(self.read, folder, places.progress)
        if places.download:
            yield "the download", partial(self._download, places)

    def _download(self, places: Places) -> Splits:
        """Fetch the files that are missing or not the original ones, and read all of them."""
        folder = places.data_dir / self.folders[0]
        for name, remote in self.remote().items():
            if not (folder / name).is_file() or md5_of(folder / name) != remote.md5:
                write_with(folder / name, partial(self._fetch, name, remote, places))
        return self.read(folder, places.progress)

    def _fetch(self, name: str, remote: Remote, places: Places, out: IO[bytes]) -> None:
        """Copy a file to `out` from the first server that sends it.

        Raises:
            OSError: if none does; it tells what each did.
        """
        refused = []
        for url in remote.urls:
            host = urllib.parse.urlsplit(url).hostname or "this machine"
            what = f"downloading {name} of {self.name} from {host}"
            try:
                return fetch(url, remote.md5, 0, partial(places.progress, what), out)
            except FAILURES as error:
                refused.append(f"{host}: {_brief(error)}")
                out.seek(0)
                out.truncate()
        raise OSError(f"{name} cannot be had from {'; '.join(refused)}")


def md5_of(file: Path) -> str:
    """The MD5 of a file in hexadecimal digits: proof against accidents, not against malice."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def fetch(
    url: str, md5: str, least_speed: float, progress: Callable[[int, int], None], out: IO[bytes]
) -> None:
    """Copy what a server sends to an open file.

    Args:
        url: where it is.
        md5: of the whole, in hexadecimal digits.
        least_speed: bytes per second; a slower server is given up, though never in the first
            moments.
        progress: told the bytes that came and the bytes there are.
        out: what it is written to.

    Raises:
        OSError: if the server cannot be reached, falls silent or is too slow.
        ValueError: if something else was sent.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "unlearnable-bench"})
    sha, done, start = hashlib.md5(usedforsecurity=False), 0, time.monotonic()
    with urllib.request.urlopen(request, timeout=_SILENCE) as response:
        total = int(response.headers.get("Content-Length") or 0)
        while piece := response.read1(1 << 18):
            out.write(piece)
            sha.update(piece)
            done += len(piece)
            progress(done, max(total, done))
            elapsed = time.monotonic() - start
            if elapsed > _SILENCE / 2 and done < least_speed * elapsed:
                raise TimeoutError(f"only {done / elapsed / 1000:.0f} kB/s")
    if sha.hexdigest() != md5:
        raise ValueError(f"sent {done} bytes with another MD5 than {md5}")


def _brief(error: BaseException) -> str:
    """The message of an error on one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.removeprefix("<urlopen error ").removesuffix(">")
    return text if len(text) <= 200 else f"{text[:197]}..."

"""What a method works with while it crafts: images, networks, streams, and a place to pause."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.component import build, parse_one
from bench.data import ImageDataset, chunks, portion
from bench.errors import Stopped
from bench.files import Unfinished, make_array, open_array, unnamed_array
from bench.loading import Loader
from bench.network import Network, Precision, check_finite
from bench.registry import ARCHS
from bench.seeding import stream

SAVE_EVERY_SECONDS = 10.0
GPU_WORK = 2e12
"""Operations of one call that keep a large GPU busy for some ten milliseconds."""
CPU_CHUNK = 250
"""Images whose activations a core works through fastest; see results/speed/README.md."""


class Monitor:
    """Told how far a long computation has come; decides when it is saved, and may end it.

    The base class reports to nobody and never ends anything; the runner's does.
    """

    save_every = SAVE_EVERY_SECONDS

    def __init__(self) -> None:
        self._saved = time.monotonic()

    def advance(self, flop: float) -> None:
        """So much more work is done."""

    def note(self, text: str) -> None:
        """Something that people should know, such as damage that was mended."""

    def stopping(self) -> bool:
        """Whether the time is up."""
        return False

    def safe_point(self, save: Callable[[], None] = lambda: None) -> None:
        """Between two units of work: save if the last time is long ago, end if the time is up.

        Args:
            save: puts on disk all that is needed to continue from here.

        Raises:
            Stopped: if the time is up.
        """
        stopping = self.stopping()
        if stopping or time.monotonic() - self._saved >= self.save_every:
            save()
            self._saved = time.monotonic()
        if stopping:
            raise Stopped


def _no_parts(number: int) -> Tensor:
    raise LookupError(f"part {number} of a method that is no composition")


@dataclass
class Crafting:
    """One crafting job.

    Attributes:
        dataset: the clean training images.
        rows: (n,) int64, where they stand in the whole training split.
        mask: (n,) bool, which of them shall be protected.
        seed: the craft seed.
        device: where to compute.
        precision: in which arithmetic.
        trained: gives the checkpoints, frozen and in the order of their epochs, of the surrogate
            with that number among those that the method asked for.
        part: gives the released images, (n, 3, h, w) uint8, of the part with that number of a
            composition.
        scratch: folder for partial results, or None to keep none.
        key: of what is crafted, which partial results bear.
        monitor: told about progress.
        flop_per_gradient: operations of one image's input gradient.
        work_per_gradient: the same with what it moves, as time is foretold.
        bytes_per_gradient: memory of one image's input gradient.
        memory: bytes that a chunk's gradient may take, and the images on the device as much.
        gradient_images: input gradients of single images taken so far.
        facts: what the method reported, by name.
    """

    dataset: ImageDataset
    rows: Tensor
    mask: Tensor
    seed: int
    device: torch.device
    precision: Precision
    trained: Callable[[int], Sequence[Network]]
    part: Callable[[int], Tensor] = _no_parts
    scratch: Path | None = None
    key: str = ""
    monitor: Monitor = field(default_factory=Monitor)
    flop_per_gradient: float = 0.0
    work_per_gradient: float = 0.0
    bytes_per_gradient: float = 0.0
    memory: float = math.inf
    gradient_images: int = 0
    facts: dict[str, float] = field(default_factory=dict)
    _networks: list[Network] = field(default_factory=list, init=False, repr=False)
    _rounds: int = field(default=0, init=False, repr=False)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.dataset.classes)

    def stream(self, *purpose: str | int) -> torch.Generator:
        """Random numbers for one purpose of this job."""
        return stream(self.seed, "craft", *purpose)

    def network(self, arch: str, *purpose: str | int) -> Network:
        """A fresh network on the device that takes [0, 1] as it is, without normalisation."""
        made = build(ARCHS, parse_one(arch, ARCHS)).network(
            self.classes, self.dataset.image_size, (0.0,) * 3, (1.0,) * 3, self.stream(*purpose)
        )
        made.precision = self.precision
        self._networks.append(made)
        return made.to(self.device, memory_format=torch.channels_last)

    @cached_property
    def _loader(self) -> Loader:
        return Loader(self.dataset, self.device, self.memory)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images (b, 3, h, w) uint8, channels last, and labels (b,) on the device."""
        return self._loader.batch(rows)

    def blank(self) -> Tensor:
        """A perturbation of zeros, (n, 3, h, w) float32, to be filled by chunks.

        It lies in the scratch folder, so that it may be larger than memory.
        """
        shape = tuple(self.dataset.images.shape)
        if self.scratch is None:
            return torch.zeros(shape)
        return torch.from_numpy(unnamed_array(self.scratch, shape))

    @cached_property
    def chunk(self) -> int:
        """Images whose gradients are best taken in one call.

        It decides speed and, in the last digit, rounding; so it depends on what the machine has
        and on how it is shared out, not on what is free at the moment.
        """
        size = CPU_CHUNK
        if self.device.type == "cuda":
            size = round(GPU_WORK / max(self.flop_per_gradient, GPU_WORK / 1000))
        if self.bytes_per_gradient:
            size = min(size, int(self.memory / self.bytes_per_gradient))
        return max(size, 1)

    def spend(self, gradient_images: int) -> None:
        """Count input gradients."""
        self.gradient_images += gradient_images
        self.monitor.advance(gradient_images * self.work_per_gradient)

    def report(self, name: str, value: float) -> None:
        """Say a finite number about this crafting, to be kept in the audit of the crafted set.

        A run that is resumed begins `craft` anew and keeps nothing that was reported before. So
        say it where every run comes by, from what is kept or from what can be taken again.
        """
        if not math.isfinite(value):
            raise ValueError(f"{name}={value} is no finite number")
        self.facts[name] = value

    def each_chunk(
        self,
        perturb: Callable[[Tensor, Tensor, int], Tensor],
        size: int | None = None,
        label: str = "chunks",
        rows: Tensor | None = None,
    ) -> Tensor:
        """Craft image by image, in chunks that are kept on disk as they finish.

        Args:
            perturb: maps images (b, 3, h, w) uint8 and labels (b,) on the device, and the number
                of the chunk, to delta (b, 3, h, w).
            size: images a chunk. Leave it out where the result for one image does not depend on
                the others; give it where random numbers are drawn by chunk.
            label: tells several passes of one method apart.
            rows: which images, in which order; the protected ones in file order if left out.

        Returns:
            delta (n, 3, h, w) float32, zero for the other rows.
        """
        # Where the size is free, a run may continue with another one.
        name, size = (f"{label}-{size}", size) if size else (label, self.chunk)
        wanted = self.mask.nonzero().flatten() if rows is None else rows
        before = self.gradient_images
        part = _Part(self._unfinished, name, tuple(self.dataset.images.shape), wanted)
        self.spend(part.spent)
        rest, first = wanted[part.images :], part.images // size
        for number, chunk in enumerate(chunks(rest, size), start=first):
            images, labels = self.batch(chunk)
            part.delta[chunk] = perturb(images, labels, number).float().cpu()
            part.images, part.spent = part.images + len(chunk), self.gradient_images - before
            self.monitor.safe_point(part.keep)
        return part.finish()

    def save(self, name: str, pack: Callable[[], dict[str, Any]]) -> None:
        """A safe point: keep a partial result if it is time to, end here if the time is up.

        Args:
            name: to `load` it by.
            pack: gives what to keep: tensors and plain values.

        Raises:
            DivergedError: if a network of this job has weights that are not finite.
        """
        self._rounds += 1
        for network in self._networks:
            check_finite(network, "a network trained while crafting", f"round {self._rounds}")
        work = self._unfinished
        if work is not None:
            self.monitor.safe_point(
                lambda: work.save(name, {"round": self._rounds, "kept": pack()})
            )

    def load(self, name: str) -> dict[str, Any] | None:
        """The last partial result of this name, or None."""
        found = None if self._unfinished is None else self._unfinished.load(name)
        if found is None:
            return None
        self._rounds = found["round"]
        return found["kept"]

    @cached_property
    def _unfinished(self) -> Unfinished | None:
        if self.scratch is None:
            return None
        return Unfinished(self.scratch, self.key, self.monitor.note)


class _Part:
    """A perturbation that fills up chunk by chunk, in a file if there is a folder for it.

    Of every stretch that was kept it notes where that ends, the input gradients spent by then, and
    a digest, so that keeping and checking cost as much as what is new.

    Attributes:
        delta: (n, 3, h, w) float32.
        images: how many are done.
        spent: input gradients of single images that they took.
    """

    def __init__(
        self, work: Unfinished | None, name: str, shape: tuple[int, ...], rows: Tensor
    ) -> None:
        self.images = self.spent = 0
        self._work, self._name, self._rows = work, name, rows
        self._kept: list[dict[str, Any]] = []
        if work is None:
            self.delta = torch.zeros(shape)
            return
        noted, self._file = work.read(name) or [], work.folder / f"{name}.npy"
        try:
            self._array = open_array(self._file, shape)
        except (OSError, ValueError):  # there is none, or it is damaged
            self._array = make_array(self._file, shape)
        self.delta = torch.from_numpy(self._array)
        for stretch in noted:
            if self._digest(stretch["images"]) != stretch["digest"]:
                work.tell(self._file)
                break
            self._kept.append(stretch)
            self.images, self.spent = stretch["images"], stretch["spent"]
        # What was not noted may be anything, where a new array has zeros.
        rest = torch.ones(len(self.delta), dtype=torch.bool)
        rest[rows[: self.images]] = False
        for unknown in chunks(rest.nonzero().flatten(), portion(self.delta)):
            if self.delta[unknown].any():
                self.delta[unknown] = 0

    def keep(self) -> None:
        """Put on disk what is done, and then that it is done."""
        if self._work is None or self.images == self._end:
            return
        stretch = {"images": self.images, "spent": self.spent, "digest": self._digest(self.images)}
        self._array.flush()
        self._kept.append(stretch)
        self._work.write(self._name, self._kept)

    def finish(self) -> Tensor:
        """The perturbation; what is done to it does not reach the file."""
        if self._work is None:
            return self.delta
        self.keep()
        return torch.from_numpy(np.load(self._file, mmap_mode="c", allow_pickle=False))

    @property
    def _end(self) -> int:
        """Of the stretches that were kept, in images."""
        return self._kept[-1]["images"] if self._kept else 0

    def _digest(self, end: int) -> str:
        """SHA-256 of the perturbations behind the stretches that were kept."""
        found = hashlib.sha256()
        for rows in chunks(self._rows[self._end : end], portion(self.delta)):
            found.update(self.delta[rows].numpy().data)
        return found.hexdigest()

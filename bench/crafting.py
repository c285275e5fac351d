"""What a method works with while it crafts: images, networks, streams, and a place to pause."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.component import build, parse_one
from bench.data import ImageDataset, chunks
from bench.files import load_tensors, save_tensors
from bench.network import Network, Precision
from bench.registry import ARCHS
from bench.seeding import stream

SAVE_EVERY_SECONDS = 10.0


class Monitor:
    """Told how far a long computation has come; may end it at a safe point.

    The base class ignores everything; the runner's reports progress and keeps the time limit.
    """

    def advance(self, flop: float) -> None:
        """So much more work is done."""

    def safe_point(self) -> None:
        """All work so far is on disk; raises `Stopped` if the time is up."""


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
        scratch: folder for partial results, or None to keep none.
        monitor: told about progress.
        flop_per_gradient: work of one image's input gradient.
        gradient_images: input gradients of single images taken so far.
        save_every: seconds between partial results of `each_chunk`.
    """

    dataset: ImageDataset
    rows: Tensor
    mask: Tensor
    seed: int
    device: torch.device
    precision: Precision
    trained: Callable[[int], Sequence[Network]]
    scratch: Path | None = None
    monitor: Monitor = field(default_factory=Monitor)
    flop_per_gradient: float = 0.0
    gradient_images: int = 0
    save_every: float = SAVE_EVERY_SECONDS

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
            self.classes, self.dataset.image_size, (0, 0, 0), (1, 1, 1), self.stream(*purpose)
        )
        made.precision = self.precision
        return made.to(self.device, memory_format=torch.channels_last)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images (b, 3, h, w) uint8, channels last, and labels (b,) on the device."""
        images = self.dataset.images[rows].to(self.device)
        labels = self.dataset.labels[rows].to(self.device)
        return images.contiguous(memory_format=torch.channels_last), labels

    def spend(self, gradient_images: int) -> None:
        """Count input gradients."""
        self.gradient_images += gradient_images
        self.monitor.advance(gradient_images * self.flop_per_gradient)

    def each_chunk(
        self,
        perturb: Callable[[Tensor, Tensor, int], Tensor],
        size: int | None = None,
        label: str = "chunks",
    ) -> Tensor:
        """Craft image by image, in chunks that are kept on disk as they finish.

        Args:
            perturb: maps images (b, 3, h, w) uint8 and labels (b,) on the device, and the number
                of the chunk, to delta (b, 3, h, w).
            size: images a chunk. Leave it out where the result for one image does not depend on
                the others; give it where random numbers are drawn by chunk.
            label: tells several passes of one method apart.

        Returns:
            delta (n, 3, h, w) float32, zero for rows that are not protected.
        """
        size = size or (1000 if self.device.type == "cuda" else 250)
        delta = torch.zeros(self.dataset.images.shape)
        protected = self.mask.nonzero().flatten()
        done = part = 0
        while saved := self._load_part(f"{label}-{size}-{part:04d}", protected[done * size :]):
            delta[protected[done * size : saved["done"] * size]] = saved["delta"]
            self.spend(saved["spent"])
            done, part = saved["done"], part + 1
        before, last = self.gradient_images, time.monotonic()
        for number, rows in enumerate(chunks(protected, size)):
            if number < done:
                continue
            images, labels = self.batch(rows)
            delta[rows] = perturb(images, labels, number).float().cpu()
            if time.monotonic() - last > self.save_every:
                # Only what is new since the last part: it may be a long way to the end.
                new = delta[protected[done * size : (number + 1) * size]]
                state = {"done": number + 1, "spent": self.gradient_images - before, "delta": new}
                self.save(f"{label}-{size}-{part:04d}", state)
                done, part = number + 1, part + 1
                before, last = self.gradient_images, time.monotonic()
        return delta

    def _load_part(self, name: str, rest: Tensor) -> dict[str, Any] | None:
        """A part of a crafted set, or None if it is not there or not one."""
        saved = self.load(name)
        if saved is None or set(saved) != {"done", "spent", "delta"}:
            return None
        fits = saved["delta"].shape[1:] == self.dataset.images.shape[1:]
        return saved if fits and 0 < len(saved["delta"]) <= len(rest) else None

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Keep a partial result, tensors and plain values, and end here if the time is up."""
        if self.scratch is not None:
            save_tensors(self.scratch / f"{name}.pt", state)
            self.monitor.safe_point()

    def load(self, name: str) -> dict[str, Any] | None:
        """The last partial result of this name, or None."""
        file = None if self.scratch is None else self.scratch / f"{name}.pt"
        return load_tensors(file) if file is not None and file.exists() else None

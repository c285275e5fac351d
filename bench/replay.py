"""A training step's gradients from one recorded GPU graph instead of hundreds of launches.

On a GPU that computes a step faster than Python can ask for it, launching is what takes time. The
kernels of one step are recorded once and replayed with new images in the same place: the same
kernels on the same numbers, so results do not change.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

WARM_UP = 3
"""Steps of one shape before it is recorded: libraries choose their algorithms in them."""


class Learned(NamedTuple):
    """What a step leaves behind besides the gradients."""

    loss: Tensor
    logits: Tensor | None


Compute = Callable[[Tensor, Tensor], Learned]
"""Fills the network's gradients, which are None before; from images and soft labels."""
Record = Callable[[Callable[[], Learned]], tuple[Learned, Callable[[], None]]]
"""Runs a function once and returns its results, and what to call to have them filled anew."""


class Replay:
    """Calls `compute`, and after a few times replays it.

    Batches of another shape than the first, such as the last one of an epoch, are computed
    directly. If recording fails everything is computed directly.

    Args:
        network: whose gradients are filled.
        compute: the work; it must ask for nothing from the host, and decide nothing there.
        record: `cuda_graph`, or a stand-in.
    """

    def __init__(self, network: nn.Module, compute: Compute, record: Record) -> None:
        self._parameters = list(network.parameters())
        self._compute, self._record = compute, record
        self._seen, self._usable = 0, True
        self._shape: torch.Size | None = None
        self._replay: Callable[[], None] | None = None

    def __call__(self, images: Tensor, soft_labels: Tensor) -> Learned:
        """The step's loss and logits; they and the gradients are valid until the next call.

        Args:
            images: (b, 3, h, w).
            soft_labels: (b, classes).
        """
        if self._shape is None:
            self._shape = images.shape
        if not self._usable or images.shape != self._shape:
            return self._compute(images, soft_labels)
        if self._replay is None:
            self._seen += 1
            if self._seen <= WARM_UP:
                return _aside(lambda: self._compute(images, soft_labels), images.device)
            self._images, self._soft_labels = images.clone(), soft_labels.clone()
            try:
                self._start()
            except RuntimeError as error:
                self._usable = False
                reason = str(error.__context__ or error).strip().partition("\n")[0]
                warnings.warn(f"training steps are not replayed: {reason}", stacklevel=2)
        if not self._usable:  # not inside `except`, which holds on to what was recorded
            for parameter in self._parameters:
                parameter.grad = None
            return self._compute(images, soft_labels)
        assert self._replay is not None
        self._images.copy_(images)
        self._soft_labels.copy_(soft_labels)
        self._replay()
        # A batch that was computed directly has left gradients of its own in their place.
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return self._learned

    def _start(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None
        self._learned, self._replay = self._record(
            lambda: self._compute(self._images, self._soft_labels)
        )
        self._gradients = [parameter.grad for parameter in self._parameters]


def cuda_graph(compute: Callable[[], Learned]) -> tuple[Learned, Callable[[], None]]:
    """Record a CUDA graph. Recording computes nothing yet: replay it for the first result."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        learned = compute()
    return learned, graph.replay


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all trainings: libraries keep a workspace, 65 MB here, for every stream they meet."""
    return torch.cuda.Stream(device)


def _aside(compute: Callable[[], Learned], device: torch.device) -> Learned:
    """Compute on another stream, as PyTorch asks for before a recording."""
    if device.type != "cuda":
        return compute()
    here, side = torch.cuda.current_stream(device), _side_stream(device)
    side.wait_stream(here)
    with torch.cuda.stream(side):
        learned = compute()
    here.wait_stream(side)
    return learned

"""Bfloat16 everywhere: by autocast, and on processors that lack its instructions by float32.

PyTorch's own kernels emulate it there, ten times slower than float32. What the instructions do is
simple: products of rounded operands, summed in float32, rounded once. Float32 kernels do the same
when operands are rounded before and results after, forward and backward, so that a campaign that
was begun in bfloat16 goes on anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

LAYERS = (F.conv2d, F.linear)
"""Where the time goes: functions (input, weight, bias, ...) -> output."""


def computes_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there, not merely emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    # No public name exists for these two; without them the answer is a slower, safe no.
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in asked)


@contextmanager
def casting(device: torch.device, wanted: bool, held: bool = False) -> Iterator[None]:
    """Compute in bfloat16 inside, if `wanted`.

    Args:
        device: of the tensors.
        wanted: nothing changes otherwise.
        held: whether weights are bfloat16 themselves, so that autocast has nothing to do.
    """
    emulated = wanted and device.type == "cpu" and not computes_bf16(device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=wanted and not held)
    with autocast, RoundedLayers() if emulated else nullcontext():
        yield


class RoundedLayers(TorchFunctionMode):
    """Inside it, convolutions and linear layers multiply bfloat16 values by float32 kernels.

    Operands of any float dtype are rounded to bfloat16; outputs are bfloat16, and so are all
    gradients, as under autocast on a processor that has the instructions. Sums may be taken in
    another order, so that a few results fall to the other neighbour.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Round what goes into `func` and what comes out, if it is one of `LAYERS`."""
        kwargs = kwargs or {}
        if func not in LAYERS:
            return func(*args, **kwargs)
        args = tuple(map(_rounded, args))
        kwargs = {name: _rounded(value) for name, value in kwargs.items()}
        with torch.autocast("cpu", enabled=False):
            return func(*args, **kwargs).bfloat16()


def _rounded(value: Any) -> Any:
    """The nearest bfloat16 values, in float32; what is no tensor stays."""
    return value.bfloat16().float() if isinstance(value, Tensor) else value

"""What the libraries of models share: a name, a stem to fit, features, a way of training."""

from __future__ import annotations

import difflib
import functools
from dataclasses import MISSING, dataclass
from typing import ClassVar

import torch
from torch import nn

from bench.component import setting
from bench.errors import UsageError
from bench.network import Arch
from bench.recipe import Recipe

SMALL = 64
"""Images with a shorter side below this many pixels get another stem.

The networks of these libraries shrink their input 32 times, and would see 32x32 as one pixel.
"""
STEM_POOLS = ("maxpool", "maxpool1", "pool0", "features.pool0", "stem.pool")
"""Where the libraries keep the pooling that follows the first convolution."""


@dataclass(frozen=True)
class ZooArch(Arch):
    """A network of another library; a subclass writes `names`, `original` and `create`."""

    version: ClassVar[int] = 2  # since then by `adapt`, and dropout draws from the cell's seed

    model: str = setting(MISSING, "the library's name of the network")

    def __post_init__(self) -> None:
        names = self.names()
        if self.model not in names:
            near = difflib.get_close_matches(self.model, names, n=5, cutoff=0.4)
            guess = f"; the nearest are: {', '.join(near)}" if near else ""
            raise ValueError(f"no model '{self.model}' among its {len(names)}{guess}")

    @property
    def title(self) -> str:
        """The library and the network, by which tables tell two of one library apart."""
        return f"{self.name}:{self.model}"

    def names(self) -> list[str]:
        """Every model that the library has."""
        raise NotImplementedError

    def original(self) -> nn.Module:
        """The library's network as it comes, untrained."""
        raise NotImplementedError

    def create(self, image_size: tuple[int, int]) -> tuple[nn.Module, str]:
        """The library's network with its last layer taken off, and what was done to its stem."""
        raise NotImplementedError

    def body(self, image_size: tuple[int, int]) -> tuple[nn.Module, int]:
        """The network up to its pooled features, however many it has."""
        size = "x".join(map(str, image_size))
        try:
            model, _ = self.create(image_size)
            # One look at the output says more than the library's conventions. Eval mode leaves
            # batch norms and the random state as they are.
            with torch.no_grad():
                shape = model.eval()(torch.zeros(1, 3, *image_size)).shape
        except Exception as error:  # each model complains in its own way
            reason = str(error).partition("\n")[0]
            raise UsageError(f"{self.name}:{self.model} does not take {size}: {reason}") from error
        if len(shape) != 2:
            raise UsageError(f"{self.name}:{self.model} gives {tuple(shape)}, not pooled features")
        return model.train(), shape[1]

    def notes(self, image_size: tuple[int, int]) -> dict[str, str]:
        """What was done to the stem of a model that is given small images."""
        if not is_small(image_size):
            return {}
        with torch.random.fork_rng(devices=[]):
            return {"stem": self.create(image_size)[1]}

    def adapt(self, recipe: Recipe) -> Recipe:
        """By what the network normalises with, which says what it was made to be trained by.

        With more layer norms than batch norms, as transformers have, by AdamW; with no
        normalisation at all, as VGG without batch norm, by SGD at .01 (SEP's rate for that one)
        or less; any other as the recipe says.
        """
        layer_norms, batch_norms, others = _norms(self)
        if layer_norms > batch_norms:
            return recipe.with_adamw()
        return recipe if batch_norms or others else recipe.at_most(0.01)


@functools.cache
def _norms(arch: ZooArch) -> tuple[int, int, int]:
    """How many layer norms, batch norms and other norms a network has, by the names of classes."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):  # which costs neither time nor memory
                model = arch.original()
        except Exception:  # noqa: BLE001 - some look at values while they are made
            model = arch.original()
    kinds = [
        " ".join(cls.__name__.lower() for cls in type(module).__mro__) for module in model.modules()
    ]
    norms = [kind for kind in kinds if "norm" in kind]
    layer = sum("layernorm" in kind or "rmsnorm" in kind for kind in norms)
    batch = sum("batchnorm" in kind for kind in norms)
    return layer, batch, len(norms) - layer - batch


def is_small(image_size: tuple[int, int]) -> bool:
    """Whether images are too small for a stem that was made for 224x224."""
    return min(image_size) < SMALL


def keep_resolution(model: nn.Module) -> str:
    """Let a convolutional network see small images at full size, in place.

    The first convolution loses its stride 2, and a kernel larger than 3x3 is cut down to that;
    the pooling after it goes. Networks that begin otherwise stay as they are.

    Returns:
        What was done, in words.
    """
    convolutions = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    first = next(convolutions, None)
    if first is None or first.in_channels != 3 or first.stride != (2, 2):
        return "stem unchanged"
    done = ["stride 1"]
    first.stride = (1, 1)
    size = first.kernel_size[0]
    if size > 3:
        # The middle of the kernel, as large as if it had been drawn for 3x3.
        margin = (size - 3) // 2
        middle = first.weight.detach()[..., margin : margin + 3, margin : margin + 3]
        first.weight = nn.Parameter(middle * (size / 3))
        first.kernel_size, first.padding = (3, 3), (1, 1)
        done.insert(0, "3x3")
    modules = dict(model.named_modules())
    for path in STEM_POOLS:
        if not isinstance(modules.get(path), nn.Identity | None):
            model.set_submodule(path, nn.Identity())
            done.append("max-pool removed")
    return ", ".join(done)

"""Networks: input normalisation first, pooled features, one linear layer last."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bench.bfloat16 import casting
from bench.component import Component, setting
from bench.errors import DivergedError
from bench.recipe import Recipe

Precision = Literal["fp32", "tf32", "bf16"]

PASSES_PER_TRAINING_STEP = 3
"""Forward, and backward to weights and to activations, in forward passes."""
PASSES_PER_GRADIENT = 2
"""Forward, and backward to the images alone."""


class Network(nn.Module):
    """A classifier of images in [0, 1].

    Args:
        body: (b, 3, h, w) normalised -> (b, features), pooled.
        features: width of the body's output.
        classes: number of outputs.
        mean: per channel, subtracted first.
        std: per channel, divided by.

    The forward pass runs in `precision`, which is set here once, so that neither methods nor
    defenses deal with it; logits and features are always float32.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        body: nn.Module,
        features: int,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, 3, 1, 1), persistent=False)
        self.body = body
        self.head = nn.Linear(features, classes)
        self.precision: Precision = "fp32"

    def features(self, images: Tensor) -> Tensor:
        """Pooled features before the linear layer.

        Args:
            images: (b, 3, h, w) float in [0, 1].

        Returns:
            (b, features) float32.
        """
        with self._casting(images):
            return self._features(images).float()

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (b, classes) float32, of images (b, 3, h, w) float in [0, 1]."""
        with self._casting(images):
            return self.head(self._features(images)).float()

    def _features(self, images: Tensor) -> Tensor:
        normalised = (images - self.mean) / self.std
        return self.body(normalised.to(self.head.weight.dtype))

    def _casting(self, images: Tensor) -> AbstractContextManager[None]:
        held = self.head.weight.dtype == torch.bfloat16  # of a frozen network
        return casting(images.device, self.precision == "bf16", held)


@dataclass(frozen=True)
class Arch(Component):
    """A registered architecture of one size; a subclass writes `body`."""

    width = 1.0  # without annotation, so that it is no setting: recipes cannot shrink it

    def body(self, image_size: tuple[int, int]) -> tuple[nn.Module, int]:
        """The network up to its pooled features.

        Args:
            image_size: height and width of the images.

        Returns:
            A module from normalised (b, 3, h, w) to (b, features), and `features`.
        """
        raise NotImplementedError

    def network(
        self,
        classes: int,
        image_size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        generator: torch.Generator,
    ) -> Network:
        """A freshly initialised network whose weights depend on the generator alone."""
        # PyTorch's initialisers draw from the global generator, so it is borrowed and given back.
        with torch.random.fork_rng(devices=[]):
            seed = int(torch.randint(2**62, (1,), generator=generator))
            torch.default_generator.manual_seed(seed)
            body, features = self.body(image_size)
            return Network(body, features, classes, mean, std)

    def notes(self, image_size: tuple[int, int]) -> dict[str, str]:
        """What was changed to fit the image size, for the record; empty if nothing was."""
        del image_size
        return {}

    def adapt(self, recipe: Recipe) -> Recipe:
        """The recipe by which this network is trained when `recipe` is asked for.

        Most train by any; one that fails under SGD at a convolutional network's learning rate
        changes optimizer, learning rate or weight decay, and nothing else.
        """
        return recipe


@dataclass(frozen=True)
class ScalableArch(Arch):
    """An architecture whose layers can all be made narrower or wider."""

    width: float = setting(1.0, "factor on the number of channels of every layer")

    def __post_init__(self) -> None:
        if not 0 < self.width <= 16:
            raise ValueError(f"width={self.width:g} must be above 0 and at most 16")

    def channels(self, count: int) -> int:
        """`count` channels at this width, at least one."""
        return max(1, round(count * self.width))


def freeze(
    network: Network, device: torch.device, precision: Precision, folded: bool = True
) -> Network:
    """A copy to take input gradients of: eval mode, no weight gradients, batch norm folded.

    Args:
        network: trained; it is left untouched.
        device: where the copy shall live.
        precision: `bf16` computes in bfloat16, and stores folded weights in it, too.
        folded: whether batch norms join the convolutions before them. Not where the weights as
            they were trained are wanted, each by its name and in full precision.

    Returns:
        A network with the same outputs up to rounding.
    """
    from bench.folding import fold_batch_norms

    frozen = copy.deepcopy(network).to(device).eval().requires_grad_(False)
    if folded:
        frozen.body = fold_batch_norms(frozen.body)
    frozen = frozen.to(memory_format=torch.channels_last)
    frozen.precision = precision
    if folded and precision == "bf16":
        frozen.body.to(torch.bfloat16)
        frozen.head.to(torch.bfloat16)
    return frozen


def check_finite(network: nn.Module, what: str, when: str) -> None:
    """Look whether a network can still be computed with, after a part of its training.

    The sign of a gradient that is no number is zero, so crafting would end well and change nothing.

    Args:
        network: looked at with one wait for its device.
        what: it is called.
        when: that part was, such as "epoch 3".

    Raises:
        DivergedError: if a weight, or what a batch norm counts, is not finite.
    """
    states = [state for state in network.state_dict().values() if state.is_floating_point()]
    if not torch.stack([state.isfinite().all() for state in states]).all():
        raise DivergedError(f"{what} diverged in {when}: its weights are not finite; lower its lr")

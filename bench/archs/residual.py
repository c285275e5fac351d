"""What residual networks share: a stem, stages of blocks, an average; and the blocks of several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from bench.network import ScalableArch


class Stage(NamedTuple):
    """Blocks of one size."""

    channels: int
    """That every block gives, before `width`."""
    blocks: int
    stride: int
    """Of the first block; the others keep the size."""
    expansion: int = 1
    """Channels inside a block for each that enters it, where blocks grow before they shrink."""


@dataclass(frozen=True)
class ResidualArch(ScalableArch):
    """A stem, stages of blocks, an average; a subclass names its `stages` and writes `block`."""

    stages: ClassVar[tuple[Stage, ...]]
    stem_channels: ClassVar[int] = 64

    def block(self, stage: Stage, inputs: int, outputs: int, stride: int) -> nn.Module:
        """One block.

        Args:
            stage: to which it belongs.
            inputs: channels of (b, inputs, h, w).
            outputs: the stage's channels at this width.
            stride: the output is (b, outputs, h / stride, w / stride).
        """
        raise NotImplementedError

    def first_layers(self, channels: int) -> list[nn.Module]:
        """Before the first block: from (b, 3, h, w) to (b, channels, h, w)."""
        return [
            nn.Conv2d(3, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        ]

    def last_layers(self, channels: int) -> tuple[list[nn.Module], int]:
        """After the last block: from (b, channels, h, w) to (b, features), and `features`."""
        return [nn.AdaptiveAvgPool2d(1), nn.Flatten()], channels

    def body(self, image_size: tuple[int, int]) -> tuple[nn.Module, int]:
        """From (b, 3, h, w) to (b, features)."""
        del image_size  # every layer adapts
        channels = self.channels(self.stem_channels)
        layers = self.first_layers(channels)
        for stage in self.stages:
            outputs = self.channels(stage.channels)
            for position in range(stage.blocks):
                stride = 1 if position else stage.stride
                layers.append(self.block(stage, channels, outputs, stride))
                channels = outputs
        last, features = self.last_layers(channels)
        return nn.Sequential(*layers, *last), features


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, added to what came in.

    Args:
        inputs: channels of (b, inputs, h, w).
        outputs: channels of (b, outputs, h / stride, w / stride).
        stride: of the first convolution and of the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, h, w) to (b, outputs, h / stride, w / stride)."""
        return F.relu_(self.residual(x).add_(self.shortcut(x)))


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Nothing where the shape stays; otherwise a 1x1 convolution with batch norm."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(*projection(inputs, outputs, stride), nn.BatchNorm2d(outputs))


SAFE_CHANNELS = 16
"""From so many input channels on, PyTorch's own strided 1x1 convolution is used."""


def projection(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    """A 1x1 convolution without bias.

    On processors the weight gradient of a strided one with few input channels, channels last,
    writes past its memory and may crash (oneDNN issue 6035, PyTorch 2.15); narrow ones therefore
    take every `stride`-th pixel first, which is the same function.
    """
    if stride == 1 or inputs >= SAFE_CHANNELS:
        return [nn.Conv2d(inputs, outputs, 1, stride, bias=False)]
    return [Subsample(stride), nn.Conv2d(inputs, outputs, 1, bias=False)]


class Subsample(nn.Module):
    """Every `stride`-th pixel in both directions, the first one included."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(b, channels, h, w) to (b, channels, h / stride, w / stride)."""
        return x[:, :, :: self.stride, :: self.stride]


class PreActivationBlock(nn.Module):
    """BN-ReLU-conv twice, added to what came in.

    Args:
        inputs: channels of (b, inputs, h, w).
        outputs: channels of (b, outputs, h / stride, w / stride).
        stride: of the first convolution and of the shortcut.
        excited: hidden channels of a gate by which each output channel is scaled; 0 for no gate.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, excited: int = 0) -> None:
        super().__init__()
        self.activation = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        )
        self.gate = _gate(outputs, excited) if excited else None
        changed = stride != 1 or inputs != outputs
        layers = projection(inputs, outputs, stride) if changed else []
        # Without a list around it where there is one layer: its weights keep their names.
        several = nn.Sequential(*layers) if layers else None
        self.projection = layers[0] if len(layers) == 1 else several

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, h, w) to (b, outputs, h / stride, w / stride)."""
        active = self.activation(x)
        residual = self.residual(active)
        if self.gate is not None:
            residual = residual * self.gate(residual)
        # A projection sees the activated input, an identity shortcut the raw one.
        return residual + (x if self.projection is None else self.projection(active))


def _gate(channels: int, hidden: int) -> nn.Sequential:
    """Squeeze and excitation: (b, channels, h, w) to factors (b, channels, 1, 1)."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(channels, hidden, 1),
        nn.ReLU(),
        nn.Conv2d(hidden, channels, 1),
        nn.Sigmoid(),
    )

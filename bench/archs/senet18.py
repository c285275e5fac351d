"""Squeeze-and-excitation ResNet-18, pre-activation, for small images."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from bench.network import ScalableArch
from bench.registry import ARCHS

STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))
"""Channels, and the stride of the first of two blocks."""
REDUCTION = 16
"""Channels of a block per channel of its excitation's hidden layer."""


@ARCHS.register("senet18")
@dataclass(frozen=True)
class SENet18(ScalableArch):
    """Pre-activation ResNet-18 with squeeze and excitation; 11.3 M parameters.

    layer     output       built from
    stem      32x32, 64    3x3
    stage 1   32x32, 64    2 blocks of two 3x3, excited
    stage 2   16x16, 128   2 blocks of two 3x3, excited
    stage 3   8x8, 256     2 blocks of two 3x3, excited
    stage 4   4x4, 512     2 blocks of two 3x3, excited
    pool      512          average; no batch norm after the last block
    """

    paper: ClassVar[str] = "Hu et al. 2018, Squeeze-and-Excitation Networks"

    def body(self, image_size: tuple[int, int]) -> tuple[nn.Module, int]:
        """From (b, 3, h, w) to (b, 512) at width 1."""
        del image_size  # every layer adapts
        channels = self.channels(64)
        layers: list[nn.Module] = [
            nn.Conv2d(3, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
        for count, first_stride in STAGES:
            for stride in (first_stride, 1):
                layers.append(ExcitedBlock(channels, self.channels(count), stride))
                channels = self.channels(count)
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels


class ExcitedBlock(nn.Module):
    """BN-ReLU-conv twice, each output channel scaled by a gate, added to what came in.

    Args:
        inputs: channels of (b, inputs, h, w).
        outputs: channels of (b, outputs, h / stride, w / stride).
        stride: of the first convolution and of the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        hidden = max(1, outputs // REDUCTION)
        self.activation = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        )
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(outputs, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, outputs, 1),
            nn.Sigmoid(),
        )
        changed = stride != 1 or inputs != outputs
        self.projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changed else None

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, h, w) to (b, outputs, h / stride, w / stride)."""
        active = self.activation(x)
        residual = self.residual(active)
        # A projection sees the activated input, an identity shortcut the raw one.
        shortcut = x if self.projection is None else self.projection(active)
        return residual * self.gate(residual) + shortcut

"""DenseNet-121 for small images."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.component import setting
from bench.network import ScalableArch
from bench.registry import ARCHS

STAGES = (6, 12, 24, 16)
"""Layers of each dense block."""
BOTTLENECK = 4
"""Channels of a layer's 1x1 convolution per channel that the layer adds."""


@ARCHS.register("dn121", also=("DenseNet-121",))
@dataclass(frozen=True)
class DenseNet121(ScalableArch):
    """DenseNet-121 with a 3x3 stem; 1.0 M parameters at growth 12, 7.0 M at 32.

    layer     output       built from
    stem      32x32, 24    3x3
    block 1   32x32, 96    6 layers of 1x1 and 3x3, then transition to 16x16, 48
    block 2   16x16, 192   12 layers of 1x1 and 3x3, then transition to 8x8, 96
    block 3   8x8, 384     24 layers of 1x1 and 3x3, then transition to 4x4, 192
    block 4   4x4, 384     16 layers of 1x1 and 3x3
    pool      384          batch norm, ReLU, average

    SEP's DenseNet-121 has growth 12; that of ULE, APBench and ISS has growth 32.
    """

    paper: ClassVar[str] = "Huang et al. 2017, Densely Connected Convolutional Networks"

    growth: int = setting(12, "channels that each layer adds, before `width`")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.growth < 1:
            raise ValueError(f"growth={self.growth} must be at least 1")

    def body(self, image_size: tuple[int, int]) -> tuple[nn.Module, int]:
        """From (b, 3, h, w) to (b, 384) at growth 12 and width 1."""
        del image_size  # every layer adapts
        growth = self.channels(self.growth)
        channels = 2 * growth
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
        for stage, count in enumerate(STAGES):
            if stage > 0:
                layers.append(transition(channels, channels // 2))
                channels //= 2
            for _ in range(count):
                layers.append(DenseLayer(channels, growth))
                channels += growth
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels


class DenseLayer(nn.Module):
    """BN-ReLU-conv twice, 1x1 then 3x3; the result is put beside what came in.

    Args:
        inputs: channels of (b, inputs, h, w).
        growth: channels added; the output is (b, growth + inputs, h, w).
    """

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.addition = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, BOTTLENECK * growth, 1, bias=False),
            nn.BatchNorm2d(BOTTLENECK * growth),
            nn.ReLU(),
            nn.Conv2d(BOTTLENECK * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, h, w) to (b, growth + inputs, h, w)."""
        return torch.cat([self.addition(x), x], dim=1)


def transition(inputs: int, outputs: int) -> nn.Sequential:
    """Between dense blocks: (b, inputs, h, w) to (b, outputs, h / 2, w / 2)."""
    return nn.Sequential(
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.AvgPool2d(2),
    )

"""ResNet-18 for small images."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from bench.network import ScalableArch
from bench.registry import ARCHS

STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))
"""Channels, and the stride of the first of two blocks."""


@ARCHS.register("rn18")
@dataclass(frozen=True)
class ResNet18(ScalableArch):
    """ResNet-18 with a 3x3 stem and no max-pool; 11.2 M parameters.

    layer     output       built from
    stem      32x32, 64    3x3
    stage 1   32x32, 64    2 blocks of two 3x3
    stage 2   16x16, 128   2 blocks of two 3x3
    stage 3   8x8, 256     2 blocks of two 3x3
    stage 4   4x4, 512     2 blocks of two 3x3
    pool      512          average
    """

    paper: ClassVar[str] = "He et al. 2016, Deep Residual Learning for Image Recognition"

    def body(self, image_size: tuple[int, int]) -> tuple[nn.Module, int]:
        """From (b, 3, h, w) to (b, 512) at width 1."""
        del image_size  # every layer adapts
        channels = self.channels(64)
        layers: list[nn.Module] = [
            nn.Conv2d(3, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        ]
        for count, first_stride in STAGES:
            for stride in (first_stride, 1):
                layers.append(BasicBlock(channels, self.channels(count), stride))
                channels = self.channels(count)
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels


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
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, h, w) to (b, outputs, h / stride, w / stride)."""
        return F.relu_(self.residual(x).add_(self.shortcut(x)))

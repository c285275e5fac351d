"""ResNet-50 for small images."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from bench.archs.residual import ResidualArch, Stage, shortcut
from bench.registry import ARCHS

BOTTLENECK = 4
"""Channels that a block gives for each that its 3x3 convolution sees."""


@ARCHS.register("rn50", also=("ResNet-50",))
@dataclass(frozen=True)
class ResNet50(ResidualArch):
    """ResNet-50 with a 3x3 stem and no max-pool; 23.5 M parameters.

    layer     output        built from
    stem      32x32, 64     3x3
    stage 1   32x32, 256    3 blocks of 1x1, 3x3 and 1x1
    stage 2   16x16, 512    4 blocks of 1x1, 3x3 and 1x1
    stage 3   8x8, 1024     6 blocks of 1x1, 3x3 and 1x1
    stage 4   4x4, 2048     3 blocks of 1x1, 3x3 and 1x1
    pool      2048          average

    A block's stride is that of its 3x3, as in torchvision and the CIFAR networks of the field.
    """

    paper: ClassVar[str] = "He et al. 2016, Deep Residual Learning for Image Recognition"
    stages: ClassVar = (Stage(256, 3, 1), Stage(512, 4, 2), Stage(1024, 6, 2), Stage(2048, 3, 2))

    def block(self, stage: Stage, inputs: int, outputs: int, stride: int) -> nn.Module:
        """A bottleneck."""
        del stage
        return BottleneckBlock(inputs, outputs, stride)


class BottleneckBlock(nn.Module):
    """A 3x3 convolution between two 1x1, added to what came in.

    Args:
        inputs: channels of (b, inputs, h, w).
        outputs: channels of (b, outputs, h / stride, w / stride); the 3x3 has a quarter.
        stride: of the 3x3 convolution and of the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = max(1, outputs // BOTTLENECK)
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, h, w) to (b, outputs, h / stride, w / stride)."""
        return F.relu_(self.residual(x).add_(self.shortcut(x)))

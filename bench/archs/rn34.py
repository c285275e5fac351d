"""ResNet-34 for small images."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from bench.archs.residual import BasicBlock, ResidualArch, Stage
from bench.registry import ARCHS


@ARCHS.register("rn34", also=("ResNet-34",))
@dataclass(frozen=True)
class ResNet34(ResidualArch):
    """ResNet-34 with a 3x3 stem and no max-pool; 21.3 M parameters.

    layer     output       built from
    stem      32x32, 64    3x3
    stage 1   32x32, 64    3 blocks of two 3x3
    stage 2   16x16, 128   4 blocks of two 3x3
    stage 3   8x8, 256     6 blocks of two 3x3
    stage 4   4x4, 512     3 blocks of two 3x3
    pool      512          average
    """

    paper: ClassVar[str] = "He et al. 2016, Deep Residual Learning for Image Recognition"
    stages: ClassVar = (Stage(64, 3, 1), Stage(128, 4, 2), Stage(256, 6, 2), Stage(512, 3, 2))

    def block(self, stage: Stage, inputs: int, outputs: int, stride: int) -> nn.Module:
        """Two 3x3 convolutions."""
        del stage
        return BasicBlock(inputs, outputs, stride)

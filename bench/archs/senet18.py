"""Squeeze-and-excitation ResNet-18, pre-activation."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from bench.archs.residual import PreActivationBlock, ResidualArch, Stage
from bench.component import setting
from bench.registry import ARCHS

REDUCTION = 16
"""Channels of a block per channel of its excitation's hidden layer."""


@ARCHS.register("senet18")
@dataclass(frozen=True)
class SENet18(ResidualArch):
    """Pre-activation ResNet-18 with squeeze and excitation; 11.3 M parameters.

    layer     output       built from
    stem      32x32, 64    3x3
    stage 1   32x32, 64    2 blocks of two 3x3, excited
    stage 2   16x16, 128   2 blocks of two 3x3, excited
    stage 3   8x8, 256     2 blocks of two 3x3, excited
    stage 4   4x4, 512     2 blocks of two 3x3, excited
    pool      512          average; no batch norm after the last block

    SEP trains another form on 224x224 images, `senet18:stem=7x7`: a 7x7 stem of stride 2 without
    max-pool behind it, and averages over quarters of the image, 7x7 each: 2048 features,
    11 467 804 parameters for 100 classes. With the 3x3 stem, 224x224 costs four times as much.
    """

    paper: ClassVar[str] = "Hu et al. 2018, Squeeze-and-Excitation Networks"
    stages: ClassVar = (Stage(64, 2, 1), Stage(128, 2, 2), Stage(256, 2, 2), Stage(512, 2, 2))

    stem: Literal["3x3", "7x7"] = setting(
        "3x3", "first convolution: 3x3, or 7x7 of stride 2 for large images", added=True
    )

    def block(self, stage: Stage, inputs: int, outputs: int, stride: int) -> nn.Module:
        """Two 3x3 convolutions behind their activations, and a gate."""
        del stage
        return PreActivationBlock(inputs, outputs, stride, max(1, outputs // REDUCTION))

    def first_layers(self, channels: int) -> list[nn.Module]:
        """The stem, with batch norm and ReLU."""
        if self.stem == "3x3":
            return super().first_layers(channels)
        return [
            nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        ]

    def last_layers(self, channels: int) -> tuple[list[nn.Module], int]:
        """The average, of all places or of each quarter."""
        if self.stem == "3x3":
            return super().last_layers(channels)
        return [nn.AdaptiveAvgPool2d(2), nn.Flatten()], 4 * channels

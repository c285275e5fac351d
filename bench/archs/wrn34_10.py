"""WideResNet-34-10 for small images."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from bench.archs.residual import BasicBlock, PreActivationBlock, ResidualArch, Stage
from bench.component import setting
from bench.registry import ARCHS


@ARCHS.register("wrn34-10", also=("WideResNet-34-10",))
@dataclass(frozen=True)
class WideResNet34(ResidualArch):
    """WideResNet of depth 34 and widening factor 10, pre-activation; 46.2 M parameters.

    layer     output       built from
    stem      32x32, 16    3x3, without batch norm
    stage 1   32x32, 160   5 blocks of two 3x3
    stage 2   16x16, 320   5 blocks of two 3x3
    stage 3   8x8, 640     5 blocks of two 3x3
    pool      640          batch norm, ReLU, average

    No dropout and no biases, as in the networks that adversarial training is measured on. The
    weights begin as PyTorch draws them, like all of ours, not normal with the fan-out's variance.
    `width` multiplies the factor of 10, and the stem.

    `activation=post` is the form that REM and CUDA measure, with blocks as in ResNet-18: batch norm
    and ReLU behind the stem and in the blocks, batch norm in the shortcuts, none before the pool.
    It has 2240 parameters more.
    """

    paper: ClassVar[str] = "Zagoruyko and Komodakis 2016, Wide Residual Networks"
    stem_channels: ClassVar[int] = 16
    stages: ClassVar = (Stage(160, 5, 1), Stage(320, 5, 2), Stage(640, 5, 2))

    activation: Literal["pre", "post"] = setting(
        "pre", "batch norm and ReLU before or behind convolutions", added=True
    )

    def first_layers(self, channels: int) -> list[nn.Module]:
        """A convolution alone where the first block begins with batch norm."""
        if self.activation == "post":
            return super().first_layers(channels)
        return [nn.Conv2d(3, channels, 3, padding=1, bias=False)]

    def block(self, stage: Stage, inputs: int, outputs: int, stride: int) -> nn.Module:
        """Two 3x3 convolutions with their activations."""
        del stage
        if self.activation == "post":
            return BasicBlock(inputs, outputs, stride)
        return PreActivationBlock(inputs, outputs, stride)

    def last_layers(self, channels: int) -> tuple[list[nn.Module], int]:
        """The last block's output has seen no activation in the original form."""
        layers, features = super().last_layers(channels)
        if self.activation == "post":
            return layers, features
        return [nn.BatchNorm2d(channels), nn.ReLU(), *layers], features

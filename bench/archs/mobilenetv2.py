"""MobileNetV2 for small images."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from bench.archs.residual import ResidualArch, Stage, shortcut
from bench.registry import ARCHS


@ARCHS.register("mobilenetv2")
@dataclass(frozen=True)
class MobileNetV2(ResidualArch):
    """MobileNetV2 that shrinks small images eight times; 2.3 M parameters.

    layer     output        built from
    stem      32x32, 32     3x3
    stage 1   32x32, 16     1 block, not expanded
    stage 2   32x32, 24     2 blocks, expanded 6 times, as all that follow
    stage 3   16x16, 32     3 blocks
    stage 4   8x8, 64       4 blocks
    stage 5   8x8, 96       3 blocks
    stage 6   4x4, 160      3 blocks
    stage 7   4x4, 320      1 block
    last      4x4, 1280     1x1
    pool      1280          average

    The form in which the field trains it on CIFAR departs from the paper: stem and stage 2 keep
    the size, ReLU stands for ReLU6, a block that changes only the channels has a shortcut too
    (1x1 with batch norm), and there is no dropout before the linear layer.
    """

    paper: ClassVar[str] = "Sandler et al. 2018, MobileNetV2: Inverted Residuals"
    stem_channels: ClassVar[int] = 32
    stages: ClassVar = (
        Stage(16, 1, 1, expansion=1),
        Stage(24, 2, 1, expansion=6),
        Stage(32, 3, 2, expansion=6),
        Stage(64, 4, 2, expansion=6),
        Stage(96, 3, 1, expansion=6),
        Stage(160, 3, 2, expansion=6),
        Stage(320, 1, 1, expansion=6),
    )

    def block(self, stage: Stage, inputs: int, outputs: int, stride: int) -> nn.Module:
        """An inverted residual."""
        return InvertedResidual(inputs, outputs, stride, stage.expansion)

    def last_layers(self, channels: int) -> tuple[list[nn.Module], int]:
        """A last convolution widens before the average."""
        wide = self.channels(1280)
        layers, features = super().last_layers(wide)
        last = [nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
        return [*last, *layers], features


class InvertedResidual(nn.Module):
    """1x1 to more channels, 3x3 on each of them alone, 1x1 to fewer; a shortcut at stride 1.

    Args:
        inputs: channels of (b, inputs, h, w).
        outputs: channels of (b, outputs, h / stride, w / stride).
        stride: of the 3x3 convolution.
        expansion: channels that it sees for each of `inputs`.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = expansion * inputs
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = shortcut(inputs, outputs, stride) if stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, h, w) to (b, outputs, h / stride, w / stride)."""
        residual = self.residual(x)
        return residual if self.shortcut is None else residual.add_(self.shortcut(x))

"""GoogLeNet with batch norm for small images."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.network import ScalableArch
from bench.registry import ARCHS

STAGES = (
    (
        (64, (96, 128), (16, 32), 32),
        (128, (128, 192), (32, 96), 64),
    ),
    (
        (192, (96, 208), (16, 48), 64),
        (160, (112, 224), (24, 64), 64),
        (128, (128, 256), (24, 64), 64),
        (112, (144, 288), (32, 64), 64),
        (256, (160, 320), (32, 128), 128),
    ),
    (
        (256, (160, 320), (32, 128), 128),
        (384, (192, 384), (48, 128), 128),
    ),
)
"""Channels of each inception block: 1x1; 3x3 after its 1x1; 5x5 after its 1x1; pooled."""


@ARCHS.register("googlenet")
@dataclass(frozen=True)
class GoogLeNet(ScalableArch):
    """GoogLeNet with batch norm and no auxiliary heads; 6.2 M parameters.

    layer     output       built from
    stem      32x32, 192   3x3
    stage 1   32x32, 480   2 inception blocks
    stage 2   16x16, 832   max-pool, 5 inception blocks
    stage 3   8x8, 1024    max-pool, 2 inception blocks
    pool      1024         average
    """

    paper: ClassVar[str] = "Szegedy et al. 2015, Going Deeper with Convolutions"

    def body(self, image_size: tuple[int, int]) -> tuple[nn.Module, int]:
        """From (b, 3, h, w) to (b, 1024) at width 1."""
        del image_size  # every layer adapts
        channels = self.channels(192)
        layers: list[nn.Module] = [convolution(3, channels, 3)]
        for position, stage in enumerate(STAGES):
            if position > 0:
                layers.append(nn.MaxPool2d(3, stride=2, padding=1))
            for single, triple, quintuple, pooled in stage:
                block = Inception(
                    channels,
                    self.channels(single),
                    (self.channels(triple[0]), self.channels(triple[1])),
                    (self.channels(quintuple[0]), self.channels(quintuple[1])),
                    self.channels(pooled),
                )
                layers.append(block)
                channels = block.outputs
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels


class Inception(nn.Module):
    """Four views of the input side by side: 1x1, 3x3, 5x5 and its neighbourhood's maximum.

    Args:
        inputs: channels of (b, inputs, h, w).
        single: channels of the 1x1 branch.
        triple: channels of the 3x3 branch, after its 1x1 and at its end.
        quintuple: the same of the 5x5 branch, whose 5x5 is made of two 3x3.
        pooled: channels of the branch that begins with a max-pool.
    """

    def __init__(
        self,
        inputs: int,
        single: int,
        triple: tuple[int, int],
        quintuple: tuple[int, int],
        pooled: int,
    ) -> None:
        super().__init__()
        self.outputs = single + triple[1] + quintuple[1] + pooled
        self.single = convolution(inputs, single, 1)
        self.triple = nn.Sequential(
            convolution(inputs, triple[0], 1),
            convolution(triple[0], triple[1], 3),
        )
        self.quintuple = nn.Sequential(
            convolution(inputs, quintuple[0], 1),
            convolution(quintuple[0], quintuple[1], 3),
            convolution(quintuple[1], quintuple[1], 3),
        )
        self.pooled = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1),
            convolution(inputs, pooled, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, h, w) to (b, outputs, h, w)."""
        branches = [self.single(x), self.triple(x), self.quintuple(x), self.pooled(x)]
        return torch.cat(branches, dim=1)


def convolution(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """A convolution that keeps the size, with bias, batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )

"""VGG-16 with batch norm for small images."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from bench.network import ScalableArch
from bench.registry import ARCHS

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the 3x3 convolutions before each max-pool."""


@ARCHS.register("vgg16")
@dataclass(frozen=True)
class VGG16(ScalableArch):
    """VGG-16 with batch norm, one linear layer and no dropout; 14.7 M parameters.

    layer     output       built from
    stage 1   16x16, 64    3x3, 3x3, max-pool
    stage 2   8x8, 128     3x3, 3x3, max-pool
    stage 3   4x4, 256     3x3, 3x3, 3x3, max-pool
    stage 4   2x2, 512     3x3, 3x3, 3x3, max-pool
    stage 5   1x1, 512     3x3, 3x3, 3x3, max-pool
    pool      512          average, for images larger than 32x32
    """

    paper: ClassVar[str] = "Simonyan and Zisserman 2015, Very Deep Convolutional Networks"

    def body(self, image_size: tuple[int, int]) -> tuple[nn.Module, int]:
        """From (b, 3, h, w) to (b, 512) at width 1."""
        del image_size  # every layer adapts
        channels = 3
        layers: list[nn.Module] = []
        for stage in STAGES:
            for count in stage:
                outputs = self.channels(count)
                layers += [
                    nn.Conv2d(channels, outputs, 3, padding=1),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(),
                ]
                channels = outputs
            # Rounding up leaves a pixel to images below 32x32; even sizes halve all the same.
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels

"""AlexNet for small images."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from bench.network import ScalableArch
from bench.recipe import Recipe
from bench.registry import ARCHS

SIDE = 2
"""Height and width of the map that the linear layers see; what 32x32 images come to."""
POOLED = 2
"""Factor of each max-pool, which does not overlap as the paper's does."""


@ARCHS.register("alexnet")
@dataclass(frozen=True)
class AlexNet(ScalableArch):
    """AlexNet with 3x3 convolutions, no batch norm and dropout; 23.3 M parameters.

    layer     output       built from
    conv 1    8x8, 64      3x3 of stride 2, max-pool
    conv 2    4x4, 192     3x3, max-pool
    conv 3    4x4, 384     3x3
    conv 4    4x4, 256     3x3
    conv 5    2x2, 256     3x3, max-pool
    linear    4096         dropout 1/2 and linear, twice

    There is no agreed AlexNet of 32x32. This one is OPS's (Wu et al. 2023, its released code):
    channels and linear layers of Krizhevsky 2014, kernels of 3x3. Larger images are averaged down
    to a map of 2x2 (at 224x224 take `torchvision:alexnet`). Without batch norm it bears no high
    learning rate (see `adapt`), and cannot begin with the small weights that PyTorch draws, which
    keep it at chance for longer than the quick recipe lasts: its body begins as He et al. 2015
    proposed.
    """

    paper: ClassVar[str] = "Krizhevsky 2014, One weird trick for parallelizing CNNs"

    def body(self, image_size: tuple[int, int]) -> tuple[nn.Module, int]:
        """From (b, 3, h, w) to (b, 4096) at width 1."""
        del image_size  # every layer adapts
        widths = [self.channels(count) for count in (64, 192, 384, 256, 256)]
        layers: list[nn.Module] = []
        for position, (inputs, outputs) in enumerate(zip([3, *widths], widths, strict=False)):
            stride = 2 if position == 0 else 1
            layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.ReLU(inplace=True)]
            if position in (0, 1, 4):
                # Rounding up leaves a pixel to images below 32x32; even sizes halve all the same.
                layers.append(nn.MaxPool2d(POOLED, ceil_mode=True))
        layers += [nn.AdaptiveAvgPool2d(SIDE), nn.Flatten()]
        channels, features = SIDE * SIDE * widths[-1], self.channels(4096)
        for inputs in (channels, features):
            layers += [nn.Dropout(), nn.Linear(inputs, features), nn.ReLU(inplace=True)]
        for layer in layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        return nn.Sequential(*layers), features

    def adapt(self, recipe: Recipe) -> Recipe:
        """A learning rate that it bears."""
        return recipe.at_most(0.01)

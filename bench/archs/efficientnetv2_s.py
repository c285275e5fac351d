"""EfficientNetV2-S."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from bench.archs.timm_zoo import Timm
from bench.network import Arch
from bench.registry import ARCHS


@ARCHS.register("efficientnetv2-s")
@dataclass(frozen=True)
class EfficientNetV2Small(Arch):
    """EfficientNetV2-S of timm, stem of stride 1 on small images; 20.2 M parameters; for a GPU.

    32x32 images come to a map of 2x2. No dropout and no stochastic depth. It has one size,
    whatever the recipe's width.
    """

    paper: ClassVar[str] = "Tan and Le 2021, EfficientNetV2: Smaller Models and Faster Training"

    def __post_init__(self) -> None:
        self._original()  # if timm is missing, that is said now

    def body(self, image_size: tuple[int, int]) -> tuple[nn.Module, int]:
        """From (b, 3, h, w) to (b, 1280)."""
        return self._original().body(image_size)

    def notes(self, image_size: tuple[int, int]) -> dict[str, str]:
        """What was done to the stem."""
        return self._original().notes(image_size)

    def _original(self) -> Timm:
        return Timm("efficientnetv2_s")

"""What vision transformers share: patches that fit the image, a width in heads, AdamW."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from bench.archs.timm_zoo import patch_size, timm_library
from bench.archs.zoo import is_small
from bench.network import ScalableArch
from bench.recipe import Recipe

PATCH = 16
"""Height and width of the patches of images that are not small."""


@dataclass(frozen=True)
class Transformer(ScalableArch):
    """A vision transformer of timm; a subclass names it, and says what its heads are.

    Small images are cut into 8x8 patches or more. `width` changes the number of heads, and with
    it the channels: every layer keeps whole heads of the published size.
    """

    model: ClassVar[str]
    """Its name in timm."""
    heads: ClassVar[int]
    """Of every layer, at width 1."""
    head_channels: ClassVar[int]

    def __post_init__(self) -> None:
        super().__post_init__()
        timm_library()  # if it is missing, that is said now

    def body(self, image_size: tuple[int, int]) -> tuple[nn.Module, int]:
        """From (b, 3, h, w) to the class token, (b, heads * head_channels)."""
        heads = self.channels(self.heads)
        features = heads * self.head_channels
        body = timm_library().create_model(
            self.model,
            pretrained=False,
            num_classes=0,
            img_size=image_size,
            patch_size=self._patch(image_size),
            embed_dim=features,
            num_heads=heads,
        )
        return body, features

    def notes(self, image_size: tuple[int, int]) -> dict[str, str]:
        """The patches of small images."""
        patch = self._patch(image_size)
        return {"stem": f"patches of {patch}x{patch}"} if is_small(image_size) else {}

    def adapt(self, recipe: Recipe) -> Recipe:
        """By AdamW."""
        return recipe.with_adamw()

    def _patch(self, image_size: tuple[int, int]) -> int:
        return patch_size(image_size) if is_small(image_size) else PATCH

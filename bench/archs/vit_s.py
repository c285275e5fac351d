"""The small vision transformer."""

from dataclasses import dataclass
from typing import ClassVar

from bench.archs.transformer import Transformer
from bench.registry import ARCHS


@ARCHS.register("vit-s")
@dataclass(frozen=True)
class ViTSmall(Transformer):
    """ViT-S of timm, patches of 4x4 on 32x32 images; 21.3 M parameters there.

    12 layers of 6 heads of 64 channels; 65 tokens from 32x32 images. From 64 pixels on the patches
    are 16x16: 197 tokens and 21.7 M parameters at 224x224. No dropout. What papers of this field
    call ViT on CIFAR are mostly smaller networks of their own.
    """

    paper: ClassVar[str] = "Dosovitskiy et al. 2021, An Image is Worth 16x16 Words"
    model: ClassVar[str] = "vit_small_patch16_224"
    heads: ClassVar[int] = 6
    head_channels: ClassVar[int] = 64

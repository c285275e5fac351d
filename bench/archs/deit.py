"""The tiny DeiT."""

from dataclasses import dataclass
from typing import ClassVar

from bench.archs.transformer import Transformer
from bench.registry import ARCHS


@ARCHS.register("deit")
@dataclass(frozen=True)
class DeiTTiny(Transformer):
    """DeiT-Ti of timm, patches of 4x4 on 32x32 images; 5.4 M parameters there.

    12 layers of 3 heads of 64 channels; 65 tokens from 32x32 images. From 64 pixels on the patches
    are 16x16: 197 tokens and 5.5 M parameters at 224x224. It has no distillation token, and is
    trained like any other network here: what remains of DeiT is a ViT of its tiny size.
    """

    paper: ClassVar[str] = "Touvron et al. 2021, Training Data-Efficient Image Transformers"
    model: ClassVar[str] = "deit_tiny_patch16_224"
    heads: ClassVar[int] = 3
    head_channels: ClassVar[int] = 64

"""The small CaiT."""

from dataclasses import dataclass
from typing import ClassVar

from bench.archs.transformer import Transformer
from bench.registry import ARCHS


@ARCHS.register("cait-s")
@dataclass(frozen=True)
class CaiTSmall(Transformer):
    """CaiT-S24 of timm, patches of 4x4 on 32x32 images; 46.2 M parameters there; for a GPU.

    24 layers of 8 heads of 48 channels, and two of class attention; 64 tokens from 32x32 images.
    From 64 pixels on the patches are 16x16: 196 tokens and 46.5 M parameters at 224x224. No
    dropout and no stochastic depth.
    """

    paper: ClassVar[str] = "Touvron et al. 2021, Going Deeper with Image Transformers"
    model: ClassVar[str] = "cait_s24_224"
    heads: ClassVar[int] = 8
    head_channels: ClassVar[int] = 48

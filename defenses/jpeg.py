"""JPEG: train on images that were compressed hard.

Liu, Zhuoran, et al. "Image Shortcut Squeezing: Countering Perturbative Availability Poisons with
Compression", ICML 2023. Every released image is encoded at quality 10, with chroma at half the
resolution (4:2:0) and the standard tables, and decoded; test images stay as they are. Networks
trained on clean images lose about nine points by it, so look at the clean control beside it.

The paper's code compresses in every epoch. The result is the same each time, so once is enough.
The encoder is Pillow's, as in that code: torchvision's is to be removed.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bench.component import setting
from bench.data import ImageDataset, as_levels
from bench.defense import Defense
from bench.registry import DEFENSES


@DEFENSES.register("jpeg")
@dataclass(frozen=True)
class Jpeg(Defense):
    """Trains on images compressed by JPEG."""

    paper: ClassVar[str] = "Liu et al., Image Shortcut Squeezing, ICML 2023"

    quality: int = setting(10, "of the encoder, from 1 to 100")

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality={self.quality} must lie between 1 and 100")

    def prepare(self, dataset: ImageDataset, stream: torch.Generator) -> ImageDataset:
        """Encode and decode every image."""
        del stream
        compressed = torch.empty_like(dataset.images, dtype=torch.uint8)
        for place, image in enumerate(as_levels(dataset.images)):
            compressed[place] = self.compress(image)
        return dataset.with_images(compressed)

    def compress(self, image: Tensor) -> Tensor:
        """Encode and decode one image, (3, h, w) uint8."""
        from PIL import Image

        file = io.BytesIO()
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        picture.save(file, "JPEG", quality=self.quality, subsampling="4:2:0")
        with Image.open(file) as decoded:
            return torch.from_numpy(np.array(decoded)).permute(2, 0, 1)

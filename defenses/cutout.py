"""Cutout: one black square somewhere on every training image.

DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017.
The centre is uniform over the pixels of the image, and the part of the square that falls outside
is lost, so the expected area is smaller than the nominal one; this matters (their section 3), since
some images keep most of their content. 16 pixels is their side for CIFAR-10, 8 for CIFAR-100.

Departures. They fill with zero after normalisation, the mean colour; here, as in all repositories
on unlearnable data, zero comes before it and is black. SEP's code mixes cutout through a helper
whose side is 18 pixels, at one place for the whole batch; here every image draws its own place.
No function of torchvision does this: `RandomErasing` keeps its box inside the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.component import setting
from bench.defense import Defense, Step
from bench.mixing import draw_boxes
from bench.registry import DEFENSES


@DEFENSES.register("cutout")
@dataclass(frozen=True)
class Cutout(Defense):
    """Blacks out a random square of every image."""

    paper: ClassVar[str] = "DeVries and Taylor, Improved Regularization with Cutout, 2017"

    size: int = setting(16, "side of the square, in pixels; 0 cuts nothing")

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size={self.size} must not be negative")

    def batch(self, images: Tensor, soft_labels: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Cut a hole into every image; labels stay."""
        sizes = torch.full((len(images), 2), self.size)
        hole = draw_boxes(sizes, (images.shape[2], images.shape[3]), step.stream, images.device)
        return images.masked_fill(hole[:, None], 0.0), soft_labels

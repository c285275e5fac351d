"""RandAugment: a few random operations of one strength on every training image.

Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space",
2020. Out of K operations, each image draws N, one after the other and with replacement, and all
are done with magnitude M; what has a direction goes either way, by a fair coin. After crops and
flips, as in the paper.

The paper tunes N and M for each data set and network. The defaults are torchvision's, N = 2 and
M = 9 of 0 to 30 with K = 14 operations, as is what an operation does (see `bench.policies`).
torchvision's class would draw the operations once for a whole batch.

Images are rounded to 8 bits for it, and values that another defense moved out of [0, 1] are
clipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bench.component import setting
from bench.data import to_levels, to_unit
from bench.defense import Defense, Step
from bench.policies import apply, draw_one, narrow
from bench.registry import DEFENSES

BINS = 31


@DEFENSES.register("randaugment")
@dataclass(frozen=True)
class RandAugment(Defense):
    """Does random operations of one magnitude to every image."""

    paper: ClassVar[str] = "Cubuk et al., RandAugment: Practical Data Augmentation, 2020"

    num_ops: int = setting(2, "N, operations for each image; 0 leaves it as it is")
    magnitude: int = setting(9, "M, from 0 to 30")

    def __post_init__(self) -> None:
        if self.num_ops < 0:
            raise ValueError(f"num_ops={self.num_ops} must not be negative")
        if not 0 <= self.magnitude < BINS:
            raise ValueError(f"magnitude={self.magnitude} must lie between 0 and {BINS - 1}")

    def batch(self, images: Tensor, soft_labels: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """N operations in a row; labels stay."""
        if not self.num_ops:
            return images, soft_labels
        ranges = narrow((images.shape[2], images.shape[3]))
        levels = to_levels(images)
        for _ in range(self.num_ops):
            draws = draw_one(len(images), ranges, BINS, step.stream, self.magnitude)
            levels = apply(levels, draws)
        return to_unit(levels), soft_labels

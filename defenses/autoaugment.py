"""AutoAugment: policies of image operations that were learned for a data set.

Cubuk et al., "AutoAugment: Learning Augmentation Strategies from Data", CVPR 2019. Each image draws
one of 25 sub-policies, and does its two operations one after the other, each with its probability
and at its magnitude; what has a direction goes either way, by a fair coin. After crops and flips.

The sub-policies are those of the paper's appendix. What an operation does, and the magnitude that
a number from 0 to 9 stands for, are torchvision's (see `bench.policies`). The code the authors
released differs: it divides the number by 10, so that a 9 is not yet the full range; moves by at
most 10 pixels, against 150/331 of the side; enhances colours by a factor from .1 to 1.9 that the
number alone decides, where here the number is the distance from 1 and a coin the side; fills the
outside with the mean colour, not with black; and ends with cutout, as `autoaugment+cutout` does.

Images are rounded to 8 bits for it, and values that another defense moved out of [0, 1] are
clipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bench.component import setting
from bench.data import to_levels, to_unit
from bench.defense import Defense, SideInformation, Step
from bench.policies import NAMES, Draws, apply, draw_signs, narrow, scale
from bench.registry import DEFENSES

BINS = 10

POLICIES = {
    "cifar10": """
        Invert 0.1 - > Contrast 0.2 6
        Rotate 0.7 2 > TranslateX 0.3 9
        Sharpness 0.8 1 > Sharpness 0.9 3
        ShearY 0.5 8 > TranslateY 0.7 9
        AutoContrast 0.5 - > Equalize 0.9 -
        ShearY 0.2 7 > Posterize 0.3 7
        Color 0.4 3 > Brightness 0.6 7
        Sharpness 0.3 9 > Brightness 0.7 9
        Equalize 0.6 - > Equalize 0.5 -
        Contrast 0.6 7 > Sharpness 0.6 5
        Color 0.7 7 > TranslateX 0.5 8
        Equalize 0.3 - > AutoContrast 0.4 -
        TranslateY 0.4 3 > Sharpness 0.2 6
        Brightness 0.9 6 > Color 0.2 8
        Solarize 0.5 2 > Invert 0.0 -
        Equalize 0.2 - > AutoContrast 0.6 -
        Equalize 0.2 - > Equalize 0.6 -
        Color 0.9 9 > Equalize 0.6 -
        AutoContrast 0.8 - > Solarize 0.2 8
        Brightness 0.1 3 > Color 0.7 0
        Solarize 0.4 5 > AutoContrast 0.9 -
        TranslateY 0.9 9 > TranslateY 0.7 9
        AutoContrast 0.9 - > Solarize 0.8 3
        Equalize 0.8 - > Invert 0.1 -
        TranslateY 0.7 9 > AutoContrast 0.9 -
    """,
    "imagenet": """
        Posterize 0.4 8 > Rotate 0.6 9
        Solarize 0.6 5 > AutoContrast 0.6 -
        Equalize 0.8 - > Equalize 0.6 -
        Posterize 0.6 7 > Posterize 0.6 6
        Equalize 0.4 - > Solarize 0.2 4
        Equalize 0.4 - > Rotate 0.8 8
        Solarize 0.6 3 > Equalize 0.6 -
        Posterize 0.8 5 > Equalize 1.0 -
        Rotate 0.2 3 > Solarize 0.6 8
        Equalize 0.6 - > Posterize 0.4 6
        Rotate 0.8 8 > Color 0.4 0
        Rotate 0.4 9 > Equalize 0.6 -
        Equalize 0.0 - > Equalize 0.8 -
        Invert 0.6 - > Equalize 1.0 -
        Color 0.6 4 > Contrast 1.0 8
        Rotate 0.8 8 > Color 1.0 2
        Color 0.8 8 > Solarize 0.8 7
        Sharpness 0.4 7 > Invert 0.6 -
        ShearX 0.6 5 > Equalize 1.0 -
        Color 0.4 0 > Equalize 0.6 -
        Equalize 0.4 - > Solarize 0.2 4
        Solarize 0.6 5 > AutoContrast 0.6 -
        Invert 0.6 - > Equalize 1.0 -
        Color 0.6 4 > Contrast 1.0 8
        Equalize 0.8 - > Equalize 0.6 -
    """,
    "svhn": """
        ShearX 0.9 4 > Invert 0.2 -
        ShearY 0.9 8 > Invert 0.7 -
        Equalize 0.6 - > Solarize 0.6 6
        Invert 0.9 - > Equalize 0.6 -
        Equalize 0.6 - > Rotate 0.9 3
        ShearX 0.9 4 > AutoContrast 0.8 -
        ShearY 0.9 8 > Invert 0.4 -
        ShearY 0.9 5 > Solarize 0.2 6
        Invert 0.9 - > AutoContrast 0.8 -
        Equalize 0.6 - > Rotate 0.9 3
        ShearX 0.9 4 > Solarize 0.3 3
        ShearY 0.8 8 > Invert 0.7 -
        Equalize 0.9 - > TranslateY 0.6 6
        Invert 0.9 - > Equalize 0.6 -
        Contrast 0.3 3 > Rotate 0.8 4
        Invert 0.8 - > TranslateY 0.0 2
        ShearY 0.7 6 > Solarize 0.4 8
        Invert 0.6 - > Rotate 0.8 4
        ShearY 0.3 7 > TranslateX 0.9 3
        ShearX 0.1 6 > Invert 0.6 -
        Solarize 0.7 2 > TranslateY 0.6 7
        ShearY 0.8 4 > Invert 0.8 -
        ShearX 0.7 9 > TranslateY 0.8 3
        ShearY 0.8 5 > AutoContrast 0.7 -
        ShearX 0.7 2 > Invert 0.1 -
    """,
}
"""Sub-policies: two operations, each with its probability and, where it has one, its magnitude."""


@DEFENSES.register("autoaugment")
@dataclass(frozen=True)
class AutoAugment(Defense):
    """Does two operations to every image, by a policy learned for a data set."""

    paper: ClassVar[str] = "Cubuk et al., AutoAugment: Learning Strategies from Data, CVPR 2019"
    # Its choice of operations was trained on clean, labelled images of that data set.
    side_information: ClassVar[SideInformation] = "public-model"

    policy: Literal["cifar10", "imagenet", "svhn"] = setting(
        "cifar10", "the data set that the sub-policies were learned for"
    )

    def batch(self, images: Tensor, soft_labels: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Both operations of the drawn sub-policies; labels stay."""
        size = (images.shape[2], images.shape[3])
        levels = to_levels(images)
        for draws in draw(self.policy, len(images), size, step.stream):
            levels = apply(levels, draws)
        return to_unit(levels), soft_labels


def draw(
    policy: str, count: int, size: tuple[int, int], stream: torch.Generator
) -> tuple[Draws, Draws]:
    """Sub-policies for a batch, all equally likely.

    Args:
        policy: a key of `POLICIES`.
        count: number of images.
        size: their height and width.
        stream: random numbers.

    Returns:
        What comes first and what comes second; an operation that is left out is the identity.
    """
    operations, probabilities, strengths = read(policy)
    drawn = torch.randint(len(operations), (count,), generator=stream)
    done = torch.rand(count, 2, generator=stream) < probabilities[drawn]
    chosen = torch.where(done, operations[drawn], NAMES.index("Identity"))
    signs = draw_signs(chosen, stream)
    ranges = {"Invert": (0.0, 0.0), **narrow(size)}
    magnitudes = scale({name: ranges[name] for name in NAMES}, BINS)
    magnitudes = signs * magnitudes[chosen, strengths[drawn]]
    return Draws(chosen[:, 0], magnitudes[:, 0]), Draws(chosen[:, 1], magnitudes[:, 1])


@cache
def read(policy: str) -> tuple[Tensor, Tensor, Tensor]:
    """Operations, as places in `NAMES`, probabilities and magnitudes, each (sub-policies, 2)."""
    rows = [line.split(">") for line in POLICIES[policy].strip().splitlines()]
    words = [[part.split() for part in row] for row in rows]
    return (
        torch.tensor([[NAMES.index(name) for name, _, _ in row] for row in words]),
        torch.tensor([[float(chance) for _, chance, _ in row] for row in words]),
        torch.tensor([[int(m) if m != "-" else 0 for _, _, m in row] for row in words]),
    )

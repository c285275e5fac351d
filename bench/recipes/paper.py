"""The protocol of *Self-Ensemble Protection* (ICLR 2023) as its code trains."""

from dataclasses import dataclass
from typing import ClassVar

from bench.recipe import Recipe
from bench.registry import RECIPES


@RECIPES.register("paper")
@dataclass(frozen=True)
class Paper(Recipe):
    """SEP's protocol: 120 epochs on all images at full width; for a GPU.

    SGD .1 with momentum .9 and weight decay 5e-4, batches of 128, the rate divided by ten at
    epochs 75 and 90. The warm-up of one epoch, from .001 to .1, stands in the released code and
    not in the paper; every published figure was made with it.
    """

    paper: ClassVar[str] = "Chen et al., Self-Ensemble Protection, ICLR 2023"

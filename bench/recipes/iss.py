"""The victims of *Image Shortcut Squeezing* (ICML 2023) as its code trains them."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from bench.component import setting
from bench.recipe import Recipe
from bench.registry import RECIPES


@RECIPES.register("iss")
@dataclass(frozen=True)
class Iss(Recipe):
    """ISS's victims: 60 epochs with a cosine; for a GPU.

    SGD .1 with momentum .9 and weight decay 5e-4, batches of 128, a cosine down to 0, no warm-up.
    Departures: its images enter the network as they are, ours are normalised; its rate falls from
    epoch to epoch, ours from step to step.
    """

    paper: ClassVar[str] = "Liu et al., Image Shortcut Squeezing, ICML 2023"

    epochs: int = setting(60, "passes over the training images")
    schedule: Literal["steps", "cosine", "onecycle"] = setting("cosine", "course of the rate")
    milestones: tuple[int, ...] = setting((), "epochs at which `steps` lowers it")
    warmup_epochs: float = setting(0.0, "epochs of linear rise, step by step")

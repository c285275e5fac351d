"""An evening on one consumer GPU: all images, half width."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from bench.component import setting
from bench.recipe import Recipe
from bench.registry import RECIPES


@RECIPES.register("standard")
@dataclass(frozen=True)
class Standard(Recipe):
    """40 epochs on all images at half width; an evening on one consumer GPU."""

    scale: ClassVar[str] = "standard"

    epochs: int = setting(40, "passes over the training images")
    schedule: Literal["steps", "cosine", "onecycle"] = setting("onecycle", "course of the rate")
    milestones: tuple[int, ...] = setting((), "epochs at which `steps` lowers it")
    warmup_epochs: float = setting(4.0, "epochs of linear rise, step by step")
    nesterov: bool = setting(True, "Nesterov's form of momentum")
    width: float = setting(0.5, "default width of the networks")

"""Minutes on a laptop: small enough to try, large enough to see protection work."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from bench.component import setting
from bench.recipe import Recipe
from bench.registry import RECIPES


@RECIPES.register("quick")
@dataclass(frozen=True)
class Quick(Recipe):
    """10 epochs on 5000 images at an eighth of the width; minutes on two processor cores.

    The effect is plain to see; the figures are not comparable with published ones, and the order of
    methods of one family means nothing at this scale.
    """

    version: ClassVar[int] = 2
    scale: ClassVar[str] = "quick"
    precision: ClassVar[Literal["exact", "fast"]] = "fast"

    epochs: int = setting(10, "passes over the training images")
    batch_size: int = setting(64, "images per step; the last batch may be partial")
    lr: float = setting(0.03, "highest learning rate")
    schedule: Literal["steps", "cosine", "onecycle"] = setting("onecycle", "course of the rate")
    milestones: tuple[int, ...] = setting((), "epochs at which `steps` lowers it")
    warmup_epochs: float = setting(2.0, "epochs of linear rise, step by step")
    nesterov: bool = setting(True, "Nesterov's form of momentum")
    width: float = setting(0.125, "default width of the networks")
    train_images: int | None = setting(5000, "class-balanced subset to train on, none for all")
    curve_images: int | None = setting(
        2000, "test images per point of the curve, or none for all; the last epoch uses all"
    )

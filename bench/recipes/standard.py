"""The scale of evidence: all images, a narrow network, few epochs."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from bench.component import setting
from bench.recipe import Recipe
from bench.registry import RECIPES


@RECIPES.register("standard")
@dataclass(frozen=True)
class Standard(Recipe):
    """8 epochs on all images at an eighth of the width; a quarter of an hour a victim on one core.

    Meant to be long enough for victims to learn shortcuts, with the papers' target maps, radius and
    step size of SEP and AdvPoison; the table `premises` shows whether they did. On a GPU,
    `standard:width=1` is the same course at full width.
    """

    version: ClassVar[int] = 2
    scale: ClassVar[str] = "standard"
    precision: ClassVar[Literal["exact", "fast"]] = "fast"

    epochs: int = setting(8, "passes over the training images")
    lr: float = setting(0.06, "highest learning rate")
    schedule: Literal["steps", "cosine", "onecycle"] = setting("onecycle", "course of the rate")
    milestones: tuple[int, ...] = setting((), "epochs at which `steps` lowers it")
    warmup_epochs: float = setting(2.0, "epochs of linear rise, step by step")
    nesterov: bool = setting(True, "Nesterov's form of momentum")
    width: float = setting(0.125, "default width of the networks")
    curve_images: int | None = setting(
        2000, "test images per point of the curve, or none for all; the last epoch uses all"
    )

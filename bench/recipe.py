"""How a network is trained: the settings that every cell of a table shares."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from bench.component import Component, setting

MOST_EPOCHS = 100_000
"""Each is a row of every record."""


def batches(images: int, size: int, *, whole: bool = False) -> list[slice]:
    """Cut a pass over so many images into the batches that a network in training learns from.

    A single image left over joins the batch before it: batch norm finds no spread in one image,
    and stops where that has become a single pixel.

    Args:
        images: their number.
        size: images a batch.
        whole: whether a partial last batch is left out, unless it is the only one.
    """
    cuts = [*range(0, images, size), images]
    if whole and images > size and images % size:
        del cuts[-1]
    elif leaves_one(images, size):
        del cuts[-2]
    return [slice(first, last) for first, last in itertools.pairwise(cuts)]


def leaves_one(images: int, size: int) -> bool:
    """Whether batches of `size` leave a single image over, behind one batch or more."""
    return images > size and images % size == 1


@dataclass(frozen=True)
class Recipe(Component):
    """Stochastic gradient descent on cross-entropy, with crops and flips."""

    scale: ClassVar[str] = "paper"
    """Whose presets components take: `paper` (none), `standard` or `quick`."""
    precision: ClassVar[Literal["exact", "fast"]] = "exact"
    """`exact`: fp32, TF32 on a GPU. `fast`: bf16 where the machine computes in it, else fp32."""

    epochs: int = setting(120, "passes over the training images")
    batch_size: int = setting(128, "images per step; the last batch may be partial")
    lr: float = setting(0.1, "highest learning rate")
    schedule: Literal["steps", "cosine", "onecycle"] = setting("steps", "course of the rate")
    milestones: tuple[int, ...] = setting((75, 90), "epochs at which `steps` lowers it")
    decay: float = setting(0.1, "what `steps` multiplies it by at each milestone", added=True)
    warmup_epochs: float = setting(1.0, "epochs of linear rise, step by step")
    momentum: float = setting(0.9, "of SGD")
    nesterov: bool = setting(False, "Nesterov's form of momentum")
    weight_decay: float = setting(5e-4, "on all parameters, biases and norms too")
    clip_grad: float | None = setting(None, "largest gradient norm, or none")
    optimizer: Literal["sgd", "adamw"] = setting(
        "sgd", "what steps; `adamw` has no momentum to set, and weight decay apart", added=True
    )
    shuffle: bool = setting(True, "draw a new order of the images for every epoch", added=True)
    drop_last: bool = setting(False, "leave a partial last batch out", added=True)
    crop_padding: int = setting(4, "largest shift of a random crop, in pixels")
    crops: Literal["whole", "bilinear"] = setting(
        "whole", "shift by whole pixels into black, or by fractions into the mean colour"
    )
    flip: bool = setting(True, "mirror half of the images")
    width: float = setting(1.0, "default width of the networks")
    train_images: int | None = setting(None, "class-balanced subset to train on, or none for all")
    curve_images: int | None = setting(
        None, "test images per point of the curve, or none for all; the last epoch uses all"
    )

    def __post_init__(self) -> None:
        for key in ("epochs", "batch_size", "lr", "decay", "width"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key}={getattr(self, key)} must be above 0")
        for key in ("momentum", "weight_decay", "crop_padding", "warmup_epochs"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key}={getattr(self, key)} must not be negative")
        if self.epochs > MOST_EPOCHS:
            raise ValueError(f"epochs={self.epochs} must be at most {MOST_EPOCHS}")
        for key in ("train_images", "curve_images", "clip_grad"):
            if getattr(self, key) is not None and not getattr(self, key) > 0:
                raise ValueError(f"{key}={getattr(self, key)} must be above 0, or none")

    def learning_rate(self, progress: float, step: float = 0.0) -> float:
        """The learning rate of one step.

        Args:
            progress: epochs done before this step, with the fraction of the present one.
            step: length of one step in epochs; the warm-up rises to the rate of its own end.
        """
        if progress < self.warmup_epochs:
            share = min((progress + step) / self.warmup_epochs, 1.0)
            return self.lr * (0.01 + 0.99 * share)
        if self.schedule == "steps":
            passed = sum(progress >= milestone for milestone in self.milestones)
            return self.lr * self.decay**passed
        rest = max(self.epochs - self.warmup_epochs, 1e-9)
        done = min((progress - self.warmup_epochs) / rest, 1.0)
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * done)) / 2
        return self.lr * max(1 - done, 0.0)

    def batches(self, images: int) -> list[slice]:
        """The batches of an epoch on so many images, one at least."""
        return batches(images, self.batch_size, whole=self.drop_last)

    def joins(self, images: int) -> bool:
        """Whether of so many images a single one is left over and joins the last batch."""
        return not self.drop_last and leaves_one(images, self.batch_size)

    def with_adamw(self) -> Self:
        """The same course with AdamW at OPS's 5e-4 and weight decay 3e-2, as transformers need it.

        A recipe that asks for AdamW itself keeps its own rate.
        """
        if self.optimizer == "adamw":
            return self
        return dataclasses.replace(self, optimizer="adamw", lr=5e-4, weight_decay=3e-2)

    def at_most(self, lr: float) -> Self:
        """The same recipe, its learning rate lowered to `lr` if it is higher."""
        return dataclasses.replace(self, lr=min(self.lr, lr))

    def departures(self, given: Recipe) -> dict[str, Any]:
        """Settings in which this recipe differs from the one that was given, with its values."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {key: value for key, value in values.items() if value != getattr(given, key)}


PUBLISHED = {"paper": 120, "cuda": 100, "ops": 200, "iss": 60, "apbench": 200}
"""Recipes that papers trained their victims by, with their epochs, for reports, which know records
and no classes."""

SEP = Recipe()
"""How Chen et al. (2023) train the networks that their protections craft with, and their victims:
the recipe `paper`."""

FOWL = Recipe(epochs=40, milestones=(14, 24, 35), warmup_epochs=0, nesterov=True, crops="bilinear")
"""How Fowl et al. (2021) train the networks that their protections craft with."""

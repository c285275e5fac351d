"""The victims of *APBench* as its code trains them on CIFAR."""

from dataclasses import dataclass
from typing import ClassVar

from bench.component import setting
from bench.recipe import Recipe
from bench.registry import RECIPES


@RECIPES.register("apbench")
@dataclass(frozen=True)
class Apbench(Recipe):
    """APBench's victims: 200 epochs, the rate halved once, never shuffled; for a GPU.

    SGD .1 with momentum .9 and weight decay 5e-4, batches of 256 (128 in code of before December
    2023), the rate halved at epoch 100 (its other milestones lie behind the end), the last, partial
    batch dropped, no warm-up. Every epoch has the same images in the same batches. Departures: its
    images enter the network as they are, ours are normalised; its one order is that of a folder's
    listing, ours that of the data set. On SVHN it neither crops nor flips (crop_padding=0,flip=no),
    and on ImageNet-100 it shuffles and lets the rate fall with a cosine.
    """

    paper: ClassVar[str] = "Qin et al., APBench, 2023"

    epochs: int = setting(200, "passes over the training images")
    batch_size: int = setting(256, "images per step; the last batch may be partial")
    milestones: tuple[int, ...] = setting((100,), "epochs at which `steps` lowers it")
    decay: float = setting(0.5, "what `steps` multiplies it by at each milestone")
    warmup_epochs: float = setting(0.0, "epochs of linear rise, step by step")
    shuffle: bool = setting(False, "draw a new order of the images for every epoch")
    drop_last: bool = setting(True, "leave a partial last batch out")

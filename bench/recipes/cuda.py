"""The victims of *CUDA: Convolution-based Unlearnable Datasets* (CVPR 2023) as its code trains."""

from dataclasses import dataclass
from typing import ClassVar

from bench.component import setting
from bench.recipe import Recipe
from bench.registry import RECIPES


@RECIPES.register("cuda")
@dataclass(frozen=True)
class Cuda(Recipe):
    """CUDA's victims: 100 epochs in batches of 512, gradients clipped; for a GPU.

    SGD .1 with momentum .9 and weight decay 5e-4, the rate divided by ten every 40 epochs, the
    norm of the gradient at most 5, no warm-up. So the released code trains on CIFAR-10 and
    CIFAR-100; the paper names REM's settings instead (40 000 steps in batches of 128, divided at
    16 000 and 32 000), by which its columns quoted from REM were made. What it did on ImageNet-100
    is not released. Departure: its images enter the network as they are, ours are normalised.
    """

    paper: ClassVar[str] = "Sadasivan et al., CUDA, CVPR 2023"

    epochs: int = setting(100, "passes over the training images")
    batch_size: int = setting(512, "images per step; the last batch may be partial")
    milestones: tuple[int, ...] = setting((40, 80), "epochs at which `steps` lowers it")
    warmup_epochs: float = setting(0.0, "epochs of linear rise, step by step")
    clip_grad: float | None = setting(5.0, "largest gradient norm, or none")

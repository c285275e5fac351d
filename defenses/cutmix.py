"""CutMix: a box of every training image is replaced by the same box of another.

Yun, Sangdoo, et al. "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
Features", ICCV 2019. For every sample i of a batch, with a random permutation p of the batch and
lambda ~ Beta(alpha, alpha): a box of sqrt(1 - lambda) times the sides of the image, its centre
uniform over the pixels and what falls outside lost, is pasted from x_p(i) into x_i, and

    y'_i = (1 - a_i) y_i + a_i y_p(i),    a_i the share of pixels that were really pasted.

The authors draw one box per batch and mix half of the batches; *Unlearnable Examples* and *Image
Shortcut Squeezing* mix inside the data set, with probability one half, twice. Here every sample has
a box of its own and every batch is mixed, as in `mixup`; SEP says alpha = 1.

`torchvision.transforms.v2.CutMix` is not used: it draws one box per batch, pairs each image with
its neighbour instead of a random one, and takes its numbers from the global generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.component import setting
from bench.defense import Defense, Step
from bench.mixing import draw_boxes, draw_weights, mix
from bench.registry import DEFENSES
from bench.seeding import sent


@DEFENSES.register("cutmix")
@dataclass(frozen=True)
class CutMix(Defense):
    """Trains on images with a box of another image in them, labels mixed by area."""

    paper: ClassVar[str] = "Yun et al., CutMix, ICCV 2019"

    alpha: float = setting(1.0, "both parameters of the Beta law of lambda; 1: uniform")

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"alpha={self.alpha:g} must be above 0")

    def batch(self, images: Tensor, soft_labels: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Paste a box from a partner in the same batch into every sample."""
        count, device = len(images), images.device
        shape = images.shape[2], images.shape[3]
        partners = sent(torch.randperm(count, generator=step.stream), device)
        sides = (1 - draw_weights(self.alpha, count, step.stream)).sqrt()
        sizes = (sides[:, None] * torch.tensor(shape)).long()  # cut down, as the authors do
        box = draw_boxes(sizes, shape, step.stream, device)
        kept = 1 - box.float().mean((1, 2))
        pasted = torch.where(box[:, None], images[partners], images)
        return pasted, mix(soft_labels, partners, kept)

"""Mixup: straight lines between pairs of training images, and between their labels.

Zhang, Hongyi, et al. "mixup: Beyond Empirical Risk Minimization", ICLR 2018. For every sample i of
a batch, with a random permutation p of the batch and lambda_i ~ Beta(alpha, alpha):

    x'_i = lambda_i x_i + (1 - lambda_i) x_p(i)
    y'_i = lambda_i y_i + (1 - lambda_i) y_p(i)

Sources differ in what shares a draw. The authors' code takes one lambda per batch; *Unlearnable
Examples* and *Image Shortcut Squeezing* mix inside the data set with probability one half, twice;
APBench draws a lambda for every sample, as here, and mixes every batch. SEP says alpha = 1.

`torchvision.transforms.v2.MixUp` is not used: it draws one lambda per batch, pairs each image with
its neighbour instead of a random one, and takes its numbers from the global generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.component import setting
from bench.defense import Defense, Step
from bench.mixing import draw_weights, mix
from bench.registry import DEFENSES
from bench.seeding import sent


@DEFENSES.register("mixup")
@dataclass(frozen=True)
class Mixup(Defense):
    """Trains on mixtures of two images, with their labels mixed alike."""

    paper: ClassVar[str] = "Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018"

    alpha: float = setting(1.0, "both parameters of the Beta law of lambda; 1: uniform")

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"alpha={self.alpha:g} must be above 0")

    def batch(self, images: Tensor, soft_labels: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Mix every sample with a partner from the same batch."""
        count, device = len(images), images.device
        partners = sent(torch.randperm(count, generator=step.stream), device)
        weights = sent(draw_weights(self.alpha, count, step.stream), device)
        return mix(images, partners, weights), mix(soft_labels, partners, weights)

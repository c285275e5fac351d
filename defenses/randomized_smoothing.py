"""Randomized smoothing: train under heavy noise, and let noisy copies of a test image vote.

Cohen, Jeremy, et al. "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019, tried
by CUDA (Sadasivan et al., CVPR 2023) with sigma = .5. Every training image is seen under fresh
noise, not clipped,

    x' = x + N(0, sigma^2),

and a test image gets the class that most of n noisy copies of it get. Their certified prediction
also abstains where the vote is close; the accuracy here is that of the vote alone. That of the
network itself on one noisy copy is had with `votes=1`, which trains alike. Clean training suffers
much from such noise, so look at the clean control beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.component import setting
from bench.defense import Defense, Step
from bench.network import Network
from bench.registry import DEFENSES
from bench.seeding import on_device


@DEFENSES.register("randomized-smoothing")
@dataclass(frozen=True)
class RandomizedSmoothing(Defense):
    """Trains under noise and predicts by a vote over noisy copies."""

    paper: ClassVar[str] = "Cohen et al., Certified Adversarial Robustness, ICML 2019"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"quick": {"votes": 10}}
    alters_prediction: ClassVar[bool] = True
    leaves_range: ClassVar[bool] = True

    sigma: float = setting(0.5, "standard deviation of the noise, in units of [0, 1]")
    votes: int = setting(100, "n, noisy copies of each test image")

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < math.inf or self.votes < 1:
            raise ValueError("sigma must be finite and not negative, votes must be 1 or more")

    def prediction_cost(self) -> float:
        """A pass a vote."""
        return float(self.votes)

    def batch(self, images: Tensor, soft_labels: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Add noise."""
        return self._noisy(images, on_device(step.stream, images.device)), soft_labels

    def predict(self, network: Network, images: Tensor, stream: torch.Generator) -> Tensor:
        """The number of votes for each class."""
        draws = on_device(stream, images.device)
        votes = torch.zeros(len(images), network.head.out_features, device=images.device)
        one = torch.ones(len(images), 1, device=images.device)
        for _ in range(self.votes):
            choice = network(self._noisy(images, draws)).argmax(1, keepdim=True)
            votes.scatter_add_(1, choice, one)
        return votes

    def _noisy(self, images: Tensor, draws: torch.Generator) -> Tensor:
        return images + self.sigma * torch.empty_like(images).normal_(generator=draws)

"""Adversarial training: learn from the worst images near the released ones.

Madry, Aleksander, et al. "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR
2018:

    min over w  E [ max over |delta|_inf <= epsilon of  CE(f_w(x + delta), y) ]

The inner maximum is approached by projected gradient ascent from a random place:

    delta_0 ~ U(-epsilon, epsilon) for every component
    delta  <- Pi(delta + alpha sign(grad CE(f_w(x + delta), y)))        `steps` times

Pi clips to the ball, then x + delta to [0, 1]. The weights are learned from x + delta alone, with
no clean term. As a defense, Tao et al. (NeurIPS 2021) show that it bounds the natural risk if its
ball is at least as large as the protector's, hence epsilon = 8/255 against 8/255.

Sources agree on ten steps of 2/255 but not on the start: *Unlearnable Examples* adds normal noise
of one step's size, here as elsewhere it is uniform. SEP trains with the perturbation's own bound
and gives no steps. While attacking, the network is in eval mode, so that the images of the attack
leave no trace in its batch statistics, and its weights are frozen, which saves a third of the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.budget import Budget
from bench.component import setting
from bench.defense import Defense, Step
from bench.network import Network
from bench.pgd import Iterate, input_gradient
from bench.registry import DEFENSES


@DEFENSES.register("at-linf")
@dataclass(frozen=True)
class AdversarialTraining(Defense):
    """Trains on adversarial images of the present network, within an l∞ ball."""

    paper: ClassVar[str] = "Madry et al., Towards Deep Learning Models Resistant, ICLR 2018"

    epsilon: float = setting(8 / 255, "radius of the l∞ ball, in units of [0, 1]")
    step_size: float = setting(2 / 255, "alpha, in units of [0, 1]")
    steps: int = setting(10, "updates of delta; with 0 of them there is no random start either")

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon={self.epsilon:g} must lie between 0 and 1, as 8/255 does")
        if self.steps < 0 or self.step_size < 0:
            raise ValueError("steps and step_size must not be negative")

    def cost(self) -> float:
        """A forward pass, half a backward pass: 2 a step against the 3 of learning."""
        return (2 * self.steps + 3) / 3 if self.epsilon else 1.0

    def loss(self, network: Network, images: Tensor, soft_labels: Tensor, step: Step) -> Tensor:
        """Cross-entropy of the adversarial images."""
        adversarial = self.attack(network, images, soft_labels, step)
        return F.cross_entropy(network(adversarial), soft_labels)

    def attack(self, network: Network, images: Tensor, soft_labels: Tensor, step: Step) -> Tensor:
        """Climb the loss inside the ball.

        Args:
            network: left as it is found.
            images: (b, 3, h, w) float32. Pixels that a defense moved out of [0, 1] stay or return.
            soft_labels: (b, classes) float32.
            step: whose stream draws the start.

        Returns:
            x + delta, of the images' shape.
        """
        if not (self.steps and self.epsilon):
            return images  # as they are, to the last bit: plain training

        def objective(x: Tensor) -> Tensor:
            return F.cross_entropy(network(x), soft_labels, reduction="sum")

        start = (2 * torch.rand(images.shape, generator=step.stream) - 1) * self.epsilon
        x = Iterate(images, Budget("linf", self.epsilon), start.to(images.device))
        with at_rest(network):
            for _ in range(self.steps):
                x.descend(input_gradient(objective, x.images), -self.step_size)
        return x.images


@contextmanager
def at_rest(network: Network) -> Iterator[None]:
    """Eval mode and frozen weights for a while; then every module and weight as before."""
    modes = [(module, module.training) for module in network.modules()]
    flags = [(weight, weight.requires_grad) for weight in network.parameters()]
    network.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for weight, learns in flags:
            weight.requires_grad_(learns)

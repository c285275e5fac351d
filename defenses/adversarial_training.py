"""Adversarial training: learn from the worst images near the released ones.

Madry, Aleksander, et al. "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR
2018:

    min over w  E [ max over |delta|_p <= epsilon of  CE(f_w(x + delta), y) ]

The inner maximum is approached by projected gradient ascent from a random place in the ball, with
the gradient g of the cross-entropy at x + delta:

    delta  <- Pi(delta + alpha sign(g))         l∞        `steps` times
    delta  <- Pi(delta + alpha g / |g|_2)       l2

Pi projects onto the ball, then clips x + delta to [0, 1]. The weights are learned from x + delta
alone, with no clean term. As a defense, Tao et al. (NeurIPS 2021) show that it bounds the natural
risk if its ball is at least as large as the protector's, hence epsilon = 8/255 against 8/255.

Sources agree on ten steps of 2/255 for l∞ but not on the start: *Unlearnable Examples* adds normal
noise of one step's size, here as elsewhere it is uniform in the ball. SEP trains with the
perturbation's own bound, 8/255 or an l2 norm of 1, and gives no steps; for l2 they are ten of a
fifth of the radius. Beware of APBench's l2 variant: it takes the l∞ radius and step for l2 norms,
so that the whole attack moves an image by .078 at most, and is all but plain training.

Such training is slow. Where few epochs leave a clean victim under it far from what longer training
reaches, that a protection takes nothing from the victim says only that little was learned yet.

A pixel that another defense moved out of [0, 1], such as noise or a projection, may only return, so
that behind those the ball is cut there.

While attacking, the network is in eval mode, so that the images of the attack leave no trace in its
batch statistics, and its weights are frozen, which saves a third of the work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.budget import Budget, Norm
from bench.component import setting
from bench.defense import Defense, Step
from bench.network import Network
from bench.pgd import Iterate, at_rest, input_gradient
from bench.registry import DEFENSES
from bench.seeding import on_device, sent


@DEFENSES.register("at-linf")
@dataclass(frozen=True)
class AdversarialTraining(Defense):
    """Trains on adversarial images of the present network, within an l∞ ball."""

    paper: ClassVar[str] = "Madry et al., Towards Deep Learning Models Resistant, ICLR 2018"
    norm: ClassVar[Norm] = "linf"
    largest: ClassVar[float] = 1.0
    """Radius above which the ball holds nothing new; a slip of units, rather."""

    epsilon: float = setting(8 / 255, "radius of the l∞ ball, in units of [0, 1]")
    step_size: float = setting(2 / 255, "alpha, in units of [0, 1]")
    steps: int = setting(10, "updates of delta; with 0 of them there is no random start either")

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= self.largest:
            example = ", as 8/255 does" if self.norm == "linf" else ""
            raise ValueError(
                f"epsilon={self.epsilon:g} must lie between 0 and {self.largest:g}{example}"
            )
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

        start = self.start(images.shape, step.stream, images.device)
        x = Iterate(images, Budget(self.norm, self.epsilon), start)
        with at_rest(network):
            for _ in range(self.steps):
                x.descend(input_gradient(objective, x.images), -self.step_size)
        return x.images

    def start(self, shape: torch.Size, stream: torch.Generator, device: torch.device) -> Tensor:
        """Delta of shape (b, 3, h, w), uniform in the ball."""
        # Drawn on the CPU, as in version 1 of the suite, so that records stay what they are.
        return sent((2 * torch.rand(shape, generator=stream) - 1) * self.epsilon, device)


@DEFENSES.register("at-l2")
@dataclass(frozen=True)
class L2AdversarialTraining(AdversarialTraining):
    """Trains on adversarial images of the present network, within an l2 ball."""

    norm: ClassVar[Norm] = "l2"
    largest: ClassVar[float] = math.inf

    epsilon: float = setting(1.0, "radius of the l2 ball; an image has values in [0, 1]")
    step_size: float = setting(0.2, "alpha, length of a step")

    def start(self, shape: torch.Size, stream: torch.Generator, device: torch.device) -> Tensor:
        """A Gaussian direction, at r^(1/d) of the radius for uniform r in d dimensions."""
        draws = on_device(stream, device)
        direction = torch.randn(shape, generator=draws, device=device).flatten(1)
        share = torch.rand(shape[0], 1, generator=draws, device=device)
        radius = self.epsilon * share ** (1 / direction.shape[1])
        return (direction * radius / direction.norm(dim=1, keepdim=True)).reshape(shape)

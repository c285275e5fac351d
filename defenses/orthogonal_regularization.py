"""Orthogonal regularization: keep the filters of every layer orthogonal.

A weight penalty that CUDA (Sadasivan et al., CVPR 2023) tries against itself, with 50.7 % on
CIFAR-10 and no details. This is the form of Brock et al., "Neural Photo Editing with Introspective
Adversarial Networks" (ICLR 2017), squared: over the convolutions and linear layers, W the weights
of one as a matrix with a row a filter,

    loss = CE + beta  sum over layers  |W W^T - I|_F^2

with the weight 1e-4 of Brock et al., "Large Scale GAN Training for High Fidelity Natural Image
Synthesis" (ICLR 2019), who leave the diagonal out. Do not expect much of it: with weight decay
5e-4 rows shrink whatever their length, and on a quarter ResNet-18 in training the penalty is .05
beside a cross-entropy of 1.7, its gradient a thousandth of that one's.

With more filters than inputs, W W^T cannot be the identity; the smaller product, W^T W, is taken
there. It has nothing in common with `orthogonal-projection` but the word.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.component import setting
from bench.defense import Defense, Step
from bench.network import Network
from bench.registry import DEFENSES


@DEFENSES.register("orthogonal-regularization")
@dataclass(frozen=True)
class OrthogonalRegularization(Defense):
    """Trains with a penalty on filters that are not orthogonal."""

    paper: ClassVar[str] = "Brock et al., Neural Photo Editing, ICLR 2017; tried by CUDA"

    beta: float = setting(1e-4, "weight of the penalty")

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"beta={self.beta:g} must be finite and not negative")

    def cost(self) -> float:
        """Products of small matrices: little beside a pass over a batch."""
        return 1.1 if self.beta else 1.0

    def loss(self, network: Network, images: Tensor, soft_labels: Tensor, step: Step) -> Tensor:
        """Cross-entropy and penalty."""
        loss = super().loss(network, images, soft_labels, step)
        return loss + self.beta * penalty(network) if self.beta else loss


def penalty(network: nn.Module) -> Tensor:
    """The sum over all convolutions and linear layers, a float32 scalar."""
    kinds = (nn.Conv2d, nn.Linear)
    terms = []
    for module in network.modules():
        if isinstance(module, kinds):
            filters = module.weight.flatten(1)
            if filters.shape[0] > filters.shape[1]:
                filters = filters.T
            product = filters @ filters.T
            terms.append((product - torch.eye(len(product), device=product.device)).square().sum())
    return torch.stack(terms).sum()

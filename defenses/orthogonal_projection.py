"""Orthogonal projection: remove the directions in which the labels can be read off linearly.

Sandoval-Segura, Pedro, et al. "What Can We Learn from Unlearnable Datasets?", NeurIPS 2023. With
the released images as rows of X (n x d), flattened, in [0, 1]:

1. Fit a linear classifier W (classes x d, no bias) by softmax regression: SGD at .1 without
   momentum, batches of 1024 in the order of the data, 20 epochs, a tenth of the rate from the
   10th and again from the 15th.
2. Normalise the columns of W^T, and take an orthonormal basis Q (d x classes) of them by QR.
3. Train on X_r = X - (X Q) Q^T.

Perturbations that a linear classifier tells apart by class, such as LSP and OPS, lie in these
directions. The projected images leave [0, 1], and are not clipped; test images stay as they are.

Departures. The paper's script also turns on rotation, shear, colour jitter and CutMix for the
projected run; here the projection is alone. On a set below 50 000 images the fit takes as many
steps as on 50 000, since a few epochs of few steps would find no direction at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.component import setting
from bench.data import ImageDataset, chunks, portion, to_unit
from bench.defense import Defense
from bench.registry import DEFENSES

STEPS_AN_EPOCH = math.ceil(50_000 / 1024)
"""What the paper's 20 epochs are counted in, whatever the number of images."""


@DEFENSES.register("orthogonal-projection")
@dataclass(frozen=True)
class OrthogonalProjection(Defense):
    """Trains on images without the directions that a linear classifier reads."""

    paper: ClassVar[str] = "Sandoval-Segura et al., Learn from Unlearnable Datasets, NeurIPS 2023"
    leaves_range: ClassVar[bool] = True

    epochs: int = setting(20, "of the linear fit, counted as on 50 000 images; 0 projects nothing")
    lr: float = setting(0.1, "learning rate of the linear fit")
    batch_size: int = setting(1024, "of the linear fit")

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1 or not 0 < self.lr < math.inf:
            raise ValueError("epochs must not be negative; lr and batch_size must be above 0")

    def prepare(self, dataset: ImageDataset, stream: torch.Generator) -> ImageDataset:
        """Project the images, which become float32."""
        del stream
        if not self.epochs:
            return dataset
        basis = F.normalize(self.fit(dataset).T, dim=0)
        basis = torch.linalg.qr(basis).Q
        projected = torch.empty(dataset.images.shape)
        for rows in chunks(torch.arange(len(dataset)), portion(projected)):
            flat = to_unit(dataset.images[rows]).flatten(1)
            rest = flat - (flat @ basis) @ basis.T
            projected[rows] = rest.reshape(projected[rows].shape)
        return dataset.with_images(projected)

    def fit(self, dataset: ImageDataset) -> Tensor:
        """Softmax regression from zero weights.

        Returns:
            W, (classes, 3 h w) float32.
        """
        rows = torch.arange(len(dataset)).split(self.batch_size)
        weights = torch.zeros(len(dataset.classes), dataset.images[0].numel(), requires_grad=True)
        steps = self.epochs * STEPS_AN_EPOCH
        for number in range(steps):
            batch = rows[number % len(rows)]
            flat = to_unit(dataset.images[batch]).flatten(1)
            loss = F.cross_entropy(flat @ weights.T, dataset.labels[batch])
            (gradient,) = torch.autograd.grad(loss, weights)
            drops = sum(number >= steps * share for share in (0.5, 0.75))
            weights.data -= self.lr * 0.1**drops * gradient
        return weights.detach()

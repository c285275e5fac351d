"""Orthogonal projection: remove the directions in which the labels can be read off linearly.

Sandoval-Segura, Pedro, et al. "What Can We Learn from Unlearnable Datasets?", NeurIPS 2023. With
the released images as rows of X (n x d), flattened, in [0, 1]:

1. Fit a linear classifier W (classes x d, no bias) by softmax regression: SGD at .1 without
   momentum, batches of 1024, always the same, 20 epochs, a tenth of the rate from the 10th and
   again from the 15th.
2. Normalise the columns of W^T, and take an orthonormal basis Q (d x classes) of them by QR.
3. Train on X_r = X - (X Q) Q^T.

Perturbations that a linear classifier tells apart by class, such as LSP and OPS, lie in these
directions, as far as the fit has found them: twenty epochs leave a rest that a linear rule in
closed form still reads where there are images enough. The projected images leave [0, 1], and are
not clipped; test images stay as they are.

Like the paper's, the fit starts from the small random weights that PyTorch gives a linear layer.
It matters: softmax regression leaves the sum of the rows of W as it began, and from zeros the rows
span one dimension less than there are classes. QR then completes them by whatever round-off left,
which is the mean image: five sixths of the energy of CIFAR-10, of which test images lose nothing.

Departures. The paper's script also turns on rotation, shear, colour jitter and CutMix for the
projected run; here the projection is alone. The script's batches follow the order of the data,
which is a random one for CIFAR-10; here it is drawn, for data that lie sorted by class. On a set
below 50 000 images the fit takes as many steps as on 50 000, since a few epochs of few steps would
find no direction at all.

Defenses behind it that work on 8-bit images, such as `jpeg`, or that clip, such as `random-noise`,
cut off what leaves [0, 1].
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

LEAST_IMAGES = 50_000
"""What epochs are counted in where there are fewer images."""
MOST_VALUES = 2**28
"""Images of so many values in all, a gigabyte in float32, are converted once for all epochs."""


@DEFENSES.register("orthogonal-projection")
@dataclass(frozen=True)
class OrthogonalProjection(Defense):
    """Trains on images without the directions that a linear classifier reads."""

    # Version 1 began at zero, and so took the mean image away.
    version: ClassVar[int] = 2
    paper: ClassVar[str] = "Sandoval-Segura et al., Learn from Unlearnable Datasets, NeurIPS 2023"
    leaves_range: ClassVar[bool] = True

    epochs: int = setting(
        20, "of the linear fit, counted as on 50 000 images at least; 0 projects nothing"
    )
    lr: float = setting(0.1, "learning rate of the linear fit")
    batch_size: int = setting(1024, "of the linear fit")

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1 or not 0 < self.lr < math.inf:
            raise ValueError("epochs must not be negative; lr and batch_size must be above 0")

    def cost(self) -> float:
        """A fiftieth more for the fit beside a training of full length."""
        return 1.02 if self.epochs else 1.0

    def prepare(self, dataset: ImageDataset, stream: torch.Generator) -> ImageDataset:
        """Project the images, which become float32."""
        if not self.epochs:
            return dataset
        order = torch.randperm(len(dataset), generator=stream)
        weights = self.fit(dataset, order, initial_weights(dataset, stream))
        basis = torch.linalg.qr(F.normalize(weights.T, dim=0)).Q
        projected = torch.empty(dataset.images.shape)
        for rows in chunks(torch.arange(len(dataset)), portion(projected)):
            flat = to_unit(dataset.images[rows]).flatten(1)
            rest = flat - (flat @ basis) @ basis.T
            projected[rows] = rest.reshape(projected[rows].shape)
        return dataset.with_images(projected)

    def fit(self, dataset: ImageDataset, order: Tensor, start: Tensor) -> Tensor:
        """Softmax regression.

        Args:
            dataset: the images and their labels.
            order: (n,) int64, of the rows that batches are cut from.
            start: W before the first step, (classes, 3 h w) float32; it is left as it is.

        Returns:
            W, (classes, 3 h w) float32.
        """
        rows = order.split(self.batch_size)
        weights = start.clone().requires_grad_()
        small = dataset.images.numel() <= MOST_VALUES
        kept = [to_unit(dataset.images[batch]).flatten(1) for batch in rows] if small else []
        steps = self.epochs * math.ceil(max(len(dataset), LEAST_IMAGES) / self.batch_size)
        for number in range(steps):
            batch = rows[number % len(rows)]
            flat = kept[number % len(rows)] if small else to_unit(dataset.images[batch]).flatten(1)
            loss = F.cross_entropy(flat @ weights.T, dataset.labels[batch])
            (gradient,) = torch.autograd.grad(loss, weights)
            drops = sum(number >= steps * share for share in (0.5, 0.75))
            weights.data -= self.lr * 0.1**drops * gradient
        return weights.detach()


def initial_weights(dataset: ImageDataset, stream: torch.Generator) -> Tensor:
    """What PyTorch gives a linear layer: (classes, d) uniform between -1/sqrt(d) and 1/sqrt(d)."""
    shape = len(dataset.classes), dataset.images[0].numel()
    return (2 * torch.rand(shape, generator=stream) - 1) / math.sqrt(shape[1])

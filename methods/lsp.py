"""Linearly separable perturbations: points that a linear classifier tells apart, as coarse pixels.

Yu, Da, et al. "Availability Attacks Create Shortcuts", KDD 2022. One point for every image is drawn
in (h / cell) (w / cell) 3 dimensions, one Gaussian cluster per class on the corners of a hypercube
with sides of 20; its coordinates become the red, green and blue of square cells, scaled to

    l2 norm  sqrt((6/255)^2 3 h w)  =  1.304 on 32 x 32 pixels

Images of a class take the points of that class in the order of the training images, protected or
not. There is a point for each image; where classes are unequal, as in SVHN, as many times more as
the largest class needs. The points are those of scikit-learn's `make_classification` under NumPy's
legacy generator, so that `--craft-seed 1` gives the released ones.

The code truncates to 8 bits, which `quantize=truncate` reproduces to the last byte: it scales in
float32, adds in float64 and cuts. That lengthens the perturbation by half a per cent, so this
variant is held to no budget.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from bench.budget import Budget, Norm
from bench.component import setting
from bench.crafting import Crafting
from bench.data import ImageDataset, portion
from bench.errors import UsageError
from bench.method import BoundedMethod
from bench.registry import METHODS


@METHODS.register("lsp")
@dataclass(frozen=True)
class LinearlySeparable(BoundedMethod):
    """Coloured cells that are points of linearly separable clusters; no network."""

    norm: ClassVar[Norm] = "l2"
    paper: ClassVar[str] = "Yu et al., Availability Attacks Create Shortcuts, KDD 2022"

    epsilon: float = setting(
        6 / 255 * math.sqrt(3 * 32 * 32),
        "l2 norm; this one is replaced by that of the same 6/255 on images of other sizes",
    )
    cell: int = setting(8, "side of a cell in pixels; 32 for images of 224")
    separation: float = setting(10.0, "half the distance of neighbouring clusters")
    quantize: Literal["round", "truncate"] = setting("round", "to 8 bits; truncate: released code")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cell < 1:
            raise ValueError(f"cell={self.cell} must be 1 or more")

    @property
    def budget(self) -> Budget:
        """The ball; none for what truncation makes of it."""
        return super().budget if self.quantize == "round" else Budget("none")

    def identity(self) -> dict[str, Any]:
        """Truncation gives the released bytes since version 2; what is rounded is as it was."""
        said = super().identity()
        return said | {"version": 2} if self.quantize == "truncate" else said

    def fitted(self, train: ImageDataset, protected: Sequence[int]) -> LinearlySeparable:
        """The default norm grows with the side of the image, to 9.127 at 224 pixels."""
        del protected
        if self.epsilon != type(self).epsilon:
            return self
        height, width = train.image_size
        return replace(self, epsilon=6 / 255 * math.sqrt(3 * height * width))

    def check(self, train: ImageDataset, rows: Tensor, total: int) -> None:
        """Look whether cells fill the image and are enough for all classes."""
        del rows, total
        height, width = train.image_size
        if height % self.cell or width % self.cell:
            raise UsageError(
                f"lsp: cell={self.cell} does not divide images of {height} x {width} pixels; give "
                "one that does"
            )
        features, classes = self._features(height, width), len(train.classes)
        if classes > 2**features:
            raise UsageError(
                f"lsp: cell={self.cell} gives {features} dimensions, whose cube has too few "
                f"corners for {classes} classes; give smaller cells"
            )

    def craft(self, job: Crafting) -> Tensor:
        """Draw all points, and hand them out by class."""
        dataset, delta = job.dataset, job.blank()
        height, width = dataset.image_size
        self.check(dataset, job.rows, len(dataset))
        points, of_class = self.points(
            dataset.labels, len(dataset.classes), self._features(height, width), job.seed
        )
        given = torch.empty_like(dataset.labels)
        for label in range(len(dataset.classes)):
            members = (dataset.labels == label).nonzero().flatten()
            given[members] = (of_class == label).nonzero().flatten()[: len(members)]
        grid = points.reshape(-1, height // self.cell, width // self.cell, 3).permute(0, 3, 1, 2)
        for rows in torch.arange(len(delta)).split(portion(delta)):
            cells = grid[given[rows]]
            noise = cells.repeat_interleave(self.cell, 2).repeat_interleave(self.cell, 3)
            if self.quantize == "truncate":
                delta[rows] = self.truncated(dataset.images[rows], noise)
            else:
                delta[rows] = noise * (self.epsilon / Budget("l2").size(noise))[:, None, None, None]
        return delta

    def truncated(self, clean: Tensor, noise: Tensor) -> Tensor:
        """What the released code adds to images, with its order of summation and its precisions.

        Args:
            clean: (b, 3, h, w) uint8.
            noise: (b, 3, h, w) float32, of any length.

        Returns:
            (b, 3, h, w) float32, whole grey levels over 255.
        """
        rows = noise.permute(0, 2, 3, 1).flatten(1).numpy()
        scaled = rows / np.linalg.norm(rows, axis=1, keepdims=True) * np.float32(self.epsilon)
        last = torch.from_numpy(scaled).unflatten(1, (*noise.shape[2:], 3)).permute(0, 3, 1, 2)
        levels = ((clean.double() / 255 + last) * 255).clamp(0, 255).floor() - clean
        return levels.float() / 255

    def points(
        self, labels: Tensor, classes: int, features: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Enough points for all images.

        Args:
            labels: (n,) int64 of the training images.
            classes: number of classes.
            features: dimensions of a point.
            seed: of the draws.

        Returns:
            Points (m, features) float32 and their classes (m,), in the order of the generator.
        """
        drawn_elsewhere = random.getstate()
        from sklearn.datasets import make_classification

        random.setstate(drawn_elsewhere)  # one of the modules that it imports draws a number
        count = len(labels)
        needed = int(torch.bincount(labels).max())
        times = next(k for k in range(1, needed * classes + 1) if k * count // classes >= needed)
        points, of_class = make_classification(
            n_samples=times * count,
            n_features=features,
            n_informative=features,
            n_redundant=0,
            n_repeated=0,
            n_classes=classes,
            n_clusters_per_class=1,
            class_sep=self.separation,
            flip_y=0.0,
            random_state=np.random.RandomState(seed % 2**32),
        )
        return torch.from_numpy(np.asarray(points, np.float32)), torch.from_numpy(
            np.asarray(of_class)
        )

    def _features(self, height: int, width: int) -> int:
        return (height // self.cell) * (width // self.cell) * 3

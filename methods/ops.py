"""One-pixel shortcut: in every image of a class, the same pixel has the same extreme colour.

Wu, Shutong, et al. "One-Pixel Shortcut: On the Learning Preference of Deep Neural Networks",
ICLR 2023. Over all positions p and all eight colours xi in {0, 1}^3, a class takes the pair that
changes its images much and evenly; with u = sum over channels of |x[c, p] - xi[c]| for an image,

    maximise  E[u] / Var[u]      over the images of the class

The released code has instead the mean of |x[c, p] - xi[c]| over images and channels together, over
their standard deviation; that is the default here, `paper` is the equation above, and `art` the
Adversarial Robustness Toolbox's E[u / 3] - Var[u / 3]. A pair that an earlier class has taken
scores 0 for later ones, but not with `art`. Of several pixels the best pairs of the same table are
taken, from the best to the worst; where two of them name one position, the later overwrites.

Since |x - 1| = 1 - x, all scores follow from the sums and the sums of products of a class's grey
levels, which are whole numbers: nothing is rounded before the division, and among equals the last
position wins, and then the last colour. The protector knows all images of the run, so those that
`--poison-ratio` leaves clean are counted as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from bench.budget import Budget
from bench.component import setting
from bench.crafting import Crafting
from bench.data import ImageDataset, chunks, portion
from bench.method import Method
from bench.registry import METHODS

COLOURS = np.array(list(np.ndindex(2, 2, 2)), dtype=np.int64)
"""(8, 3), 0 or 1 for red, green and blue."""


@METHODS.register("ops")
@dataclass(frozen=True)
class OnePixelShortcut(Method):
    """One pixel of an extreme colour, the same in all images of a class; no network."""

    overwrites: ClassVar[bool] = True
    paper: ClassVar[str] = "Wu et al., One-Pixel Shortcut, ICLR 2023"

    pixels: int = setting(1, "pixels set in each image; the paper goes up to 4")
    score: Literal["code", "paper", "art"] = setting(
        "code", "mean / std of the change (code), E / Var (paper), or E - Var (art)"
    )

    def __post_init__(self) -> None:
        if self.pixels < 0:
            raise ValueError(f"pixels={self.pixels} must be 0 or more")

    @property
    def budget(self) -> Budget:
        """So many pixels."""
        return Budget("l0", self.pixels)

    def craft(self, job: Crafting) -> Tensor:
        """The shortcut of its class minus what each image has there."""
        delta, dataset = job.blank(), job.dataset
        set_pixels = shortcuts(dataset, self.pixels, self.score)
        for rows in torch.arange(len(delta)).split(portion(delta)):
            images = dataset.images[rows].clone()
            for label, pairs in enumerate(set_pixels):
                paint(images, dataset.labels[rows] == label, pairs)
            delta[rows] = (images.float() - dataset.images[rows].float()) / 255
        return delta

    def imprint(self, job: Crafting, images: Tensor, labels: Tensor) -> Tensor:
        """Set the pixels of these classes."""
        painted = images.clone()
        for label, pairs in enumerate(shortcuts(job.dataset, self.pixels, self.score)):
            paint(painted, labels == label, pairs)
        return painted


def paint(images: Tensor, chosen: Tensor, pairs: list[tuple[int, int]]) -> None:
    """Set pixels of some images in place, one pair after the other.

    Args:
        images: (b, 3, h, w) uint8.
        chosen: (b,) bool.
        pairs: position in reading order, and number of the colour.
    """
    width = images.shape[3]
    for position, colour in pairs:
        pixel = torch.from_numpy(COLOURS[colour] * 255).to(images)
        place = images[:, :, position // width, position % width]  # a view
        place[chosen] = pixel


@lru_cache(maxsize=1)  # victims' test images are painted batch by batch
def shortcuts(dataset: ImageDataset, pixels: int, score: str) -> list[list[tuple[int, int]]]:
    """For each class its pairs of position and colour, the best first."""
    positions = dataset.images[0, 0].numel()
    taken = np.zeros((positions, len(COLOURS)), dtype=bool)
    chosen = []
    for label in range(len(dataset.classes)):
        table = scores(*moments(dataset, label), score)
        if score != "art":
            table[taken] = 0
        order = table.ravel().argsort(kind="stable")[::-1][:pixels]
        places, colours = np.divmod(order, len(COLOURS))
        taken[places, colours] = True
        chosen.append(list(zip(places.tolist(), colours.tolist(), strict=True)))
    return chosen


def moments(dataset: ImageDataset, label: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Sums over the images of a class, in grey levels and exact.

    Returns:
        How many images there are, the sums (3, positions), and the sums of products of channels
        (3, 3, positions); int64.
    """
    members = (dataset.labels == label).nonzero().flatten()
    positions = dataset.images[0, 0].numel()
    sums = torch.zeros((3, positions), dtype=torch.int64)
    products = torch.zeros((3, 3, positions), dtype=torch.int64)
    for rows in chunks(members, portion(dataset.images)):
        x = dataset.images[rows].flatten(2).to(torch.int32)
        sums += x.sum(0)
        for one, other in np.ndindex(3, 3):
            products[one, other] += (x[:, one] * x[:, other]).sum(0)
    return len(members), sums.numpy(), products.numpy()


def scores(count: int, sums: np.ndarray, products: np.ndarray, score: str) -> np.ndarray:
    """The table (positions, 8) of a class, from `moments`; a class without images scores 0.

    For a colour bit of 0 the distance |x - xi| is x, for 1 it is 255 - x: t + s x with t = 0 or
    255 and s = 1 or -1. Its moments are those of x, shifted.
    """
    t, s = 255 * COLOURS, 1 - 2 * COLOURS
    # A, the sums of distances, (8, 3, p); B, those of products of two channels, (8, 3, 3, p).
    a = count * t[:, :, None] + s[:, :, None] * sums
    b = (
        count * (t[:, :, None] * t[:, None])[..., None]
        + (t[:, :, None] * s[:, None])[..., None] * sums
        + (s[:, :, None] * t[:, None])[..., None] * sums[:, None]
        + (s[:, :, None] * s[:, None])[..., None] * products
    )
    terms, total = count, a.sum(1)
    squares = b.sum((1, 2))
    if score == "code":  # channels count as so many images
        terms, squares = 3 * count, np.trace(b, axis1=1, axis2=2)
    spread = terms * squares - total * total  # the variance times the square of the terms
    with np.errstate(divide="ignore", invalid="ignore"):
        if score == "code":
            table = total / np.sqrt(spread)
        elif score == "paper":
            table = total * terms / spread * 255
        else:
            table = total / (terms * 765) - spread / (terms * 765.0) ** 2
    # 0 / 0 is a class without images, or one that has this very colour there already.
    return np.nan_to_num(table, nan=0.0, posinf=np.inf).T.copy()

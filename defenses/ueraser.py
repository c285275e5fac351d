"""UEraser: strong random augmentations, of which each image is learned in its worst version.

Qin et al., "Learning the Unlearnable: Adversarial Augmentations Suppress Unlearnable Example
Attacks", 2023. With a random augmentation T, networks learn

    min over theta of the mean over images of max over k = 1..K of CE(f(T_k(x)), y).

`ueraser-max` does so always, with K = 5; `ueraser-default` in the first quarter of the epochs, and
then with K = 1; `ueraser-lite` has K = 1 throughout. T is, in this order:

    plasma brightness   x <- clip(x + u (2 p - 1)),   u ~ U[.5, 1]
    plasma contrast     x <- clip((x - .5) 4 p + .5)
    channel shuffle     with probability .5, one of the 6 orders
    TrivialAugment      one operation of a random magnitude (Müller and Hutter, ICCV 2021)

where p is a plasma fractal in [0, 1], another one for each image, channel and step, of roughness
U[.3, .7].

Sources differ. The probability of a plasma step is .5 in the authors' repository, which warns that
more may cost accuracy, and 1 in their notebook and in parts of APBench; here it is .5. The number
of epochs with K > 1 is 50 of 200 in the scripts and 60 in the authors' README; here it is a share,
so that short recipes keep it. Both repositories have variants with JPEG, and APBench uses its own
against chosen methods only; a trainer cannot know the method, so there is none here, and
`jpeg+ueraser-max` joins the two openly.

Departures. The code takes T from kornia, which draws from global generators.
- kornia's TrivialAugment draws one operation for a whole batch, lacks saturation, and turns in one
  direction only. Here each image draws its own, by the paper's law. The ranges are RandAugment's,
  the nearest to kornia's, which moves a little further (half the side against .45) and posterises
  more; `space=wide` takes those that the authors of TrivialAugment prefer. Images are rounded to
  8 bits for it.
- kornia's fractals (0.6.12; mended since) start from values that are too small by a factor of three
  in places, so that it darkens images and takes contrast from them, the smoother the more: the mean
  of p is some .4 at roughness .3. Here it is 1/2. Differences of neighbouring pixels agree.
- Its loss takes gradients through all K versions in train mode. Only the worst one has a gradient,
  so the others are computed without, (K + 3) / 3 times the work of plain training instead of K;
  the worst is chosen by the network in eval mode, in which K passes leave batch statistics alone.

A reviewer could not reproduce the published accuracies, so rows with it are our measurements.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.component import setting
from bench.data import to_levels, to_unit
from bench.defense import Defense, Step
from bench.network import Network
from bench.pgd import at_rest
from bench.policies import apply, draw_one, narrow, wide
from bench.registry import DEFENSES
from bench.seeding import on_device, sent

ROUGHNESS = (0.3, 0.7)
INTENSITY = (0.5, 1.0)
BINS = 31


@dataclass(frozen=True)
class Augmenting(Defense):
    """The augmentation T, which all variants share."""

    paper: ClassVar[str] = "Qin et al., Learning the Unlearnable, 2023"

    plasma_probability: float = setting(0.5, "of each of the two plasma steps, for each image")
    shuffle_probability: float = setting(0.5, "of reordering the channels of an image")
    space: Literal["narrow", "wide"] = setting(
        "narrow", "ranges of TrivialAugment; narrow: those of RandAugment"
    )

    def __post_init__(self) -> None:
        for chance in (self.plasma_probability, self.shuffle_probability):
            if not 0 <= chance <= 1:
                raise ValueError(f"probability {chance:g} must lie between 0 and 1")

    def augment(self, images: Tensor, stream: torch.Generator) -> Tensor:
        """Draw one version of each image.

        Args:
            images: (b, 3, h, w) float32; values outside [0, 1] are clipped.
            stream: random numbers.

        Returns:
            (b, 3, h, w) float32 in [0, 1].
        """
        size = (images.shape[2], images.shape[3])
        ranges = narrow(size) if self.space == "narrow" else wide(size)
        images = plasma_brightness(images, self.plasma_probability, stream)
        images = plasma_contrast(images, self.plasma_probability, stream)
        images = shuffle_channels(images, self.shuffle_probability, stream)
        draws = draw_one(len(images), ranges, BINS, stream)
        return to_unit(apply(to_levels(images), draws))


@DEFENSES.register("ueraser-lite")
@dataclass(frozen=True)
class UEraserLite(Augmenting):
    """Trains on strongly augmented images: fractal light, shuffled colours, TrivialAugment."""

    def batch(self, images: Tensor, soft_labels: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """One version of every image; labels stay."""
        return self.augment(images, step.stream), soft_labels


@DEFENSES.register("ueraser-max")
@dataclass(frozen=True)
class UEraserMax(Augmenting):
    """UEraser that learns, of several augmented versions of an image, the one of largest loss."""

    repeats: int = setting(5, "K, versions of an image to choose from")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.repeats < 1:
            raise ValueError(f"repeats={self.repeats} must be 1 or more")

    def cost(self) -> float:
        """K forward passes to choose, 1 against the 3 of learning."""
        return (self.repeats + 3) / 3 if self.repeats > 1 else 1.0

    def repeats_at(self, step: Step) -> int:
        """K in this epoch."""
        del step
        return self.repeats

    def loss(self, network: Network, images: Tensor, soft_labels: Tensor, step: Step) -> Tensor:
        """Cross-entropy of the worst versions."""
        worst = self.worst(network, images, soft_labels, step)
        return F.cross_entropy(network(worst), soft_labels)

    def worst(self, network: Network, images: Tensor, soft_labels: Tensor, step: Step) -> Tensor:
        """For each image the version, of K, whose cross-entropy is largest.

        Args:
            network: left as it is found.
            images: (b, 3, h, w) float32.
            soft_labels: (b, classes) float32.
            step: whose stream draws the versions.

        Returns:
            (b, 3, h, w) float32 in [0, 1].
        """
        count = self.repeats_at(step)
        # At once: what is done to many images costs little more than what is done to few.
        versions = self.augment(torch.cat([images] * count), step.stream)
        if count == 1:
            return versions
        versions = versions.unflatten(0, (count, len(images)))
        with at_rest(network):
            losses = [F.cross_entropy(network(x), soft_labels, reduction="none") for x in versions]
        rows = torch.arange(len(images), device=images.device)
        return versions[torch.stack(losses).argmax(0), rows]


@DEFENSES.register("ueraser-default")
@dataclass(frozen=True)
class UEraserDefault(UEraserMax):
    """UEraser that learns the worst versions at first, and any of them later."""

    repeat_epochs: float = setting(0.25, "share of the epochs, from the first, that have K > 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.repeat_epochs <= 1:
            raise ValueError(f"repeat_epochs={self.repeat_epochs:g} must lie between 0 and 1")

    def cost(self) -> float:
        """The mean over the epochs."""
        return 1 + self.repeat_epochs * (super().cost() - 1)

    def repeats_at(self, step: Step) -> int:
        """K in the first epochs, their number rounded; then 1."""
        return self.repeats if step.epoch < round(self.repeat_epochs * step.epochs) else 1


def plasma_brightness(images: Tensor, probability: float, stream: torch.Generator) -> Tensor:
    """Add light and shadow, clip(x + u (2 p - 1)), to some of the images."""
    rows = heads(len(images), probability, stream)
    intensity = sent(uniform(INTENSITY, len(rows), stream), images.device)[:, None, None, None]
    fractals = draw_plasma(images, rows, stream)
    return replaced(images, rows, lambda x: x + intensity * (2 * fractals - 1))


def plasma_contrast(images: Tensor, probability: float, stream: torch.Generator) -> Tensor:
    """Stretch and flatten contrast, clip((x - .5) 4 p + .5), in some of the images."""
    rows = heads(len(images), probability, stream)
    fractals = draw_plasma(images, rows, stream)
    return replaced(images, rows, lambda x: (x - 0.5) * 4 * fractals + 0.5)


def shuffle_channels(images: Tensor, probability: float, stream: torch.Generator) -> Tensor:
    """Reorder the channels of some of the images; all 6 orders are equally likely."""
    rows = heads(len(images), probability, stream)
    orders = torch.rand(len(rows), images.shape[1], generator=stream).argsort(1)
    orders = sent(orders, images.device)
    return replaced(images, rows, lambda x: x.gather(1, orders[:, :, None, None].expand_as(x)))


def draw_plasma(images: Tensor, rows: Tensor, stream: torch.Generator) -> Tensor:
    """A fractal for each channel of some of the images, (rows, 3, h, w) on their device."""
    channels, height, width = images.shape[1:]
    side = 3
    while side < max(height, width):
        side = 2 * side - 1
    roughness = uniform(ROUGHNESS, len(rows), stream).repeat_interleave(channels)
    draws, shape = on_device(stream, images.device), (len(rows) * channels, side, side)
    noise = torch.rand(shape, generator=draws, device=images.device)
    fields = plasma(noise, sent(roughness, images.device))
    return fields[:, :height, :width].unflatten(0, (len(rows), channels))


def plasma(noise: Tensor, roughness: Tensor) -> Tensor:
    """Plasma fractals by the diamond-square algorithm (Fournier et al., 1982).

    Nine equally distant points have their noise as value. Then points half as far apart are put
    between them, time and again, first in the middle of four (diamond step), then between those
    (square step). The k-th time, a new point is (1 - r^k) times the mean of its nearest points, of
    which there are three on the border, and r^k times its noise: a mixture, so that values stay in
    [0, 1] without being rescaled.

    Args:
        noise: (n, s, s) in [0, 1], a number for each point; s - 1 is a power of 2 and at least 2.
        roughness: (n,) in [0, 1], r.

    Returns:
        (n, s, s) in [0, 1].
    """
    step = (noise.shape[1] - 1) // 2
    field, share = noise[:, ::step, ::step], torch.ones_like(roughness)
    while step > 1:
        step, share = step // 2, share * roughness
        field = refine(field, noise[:, ::step, ::step], share[:, None, None])
    return field


def refine(field: Tensor, noise: Tensor, share: Tensor) -> Tensor:
    """Put points between those of a grid.

    Args:
        field: (n, r, r) values.
        noise: (n, 2 r - 1, 2 r - 1), one for each point of the finer grid.
        share: (n, 1, 1), how much of a new point is noise.

    Returns:
        (n, 2 r - 1, 2 r - 1).
    """
    finer = noise.clone()
    finer[:, ::2, ::2] = field
    pairs = field[:, :, 1:] + field[:, :, :-1]
    centres = torch.lerp((pairs[:, 1:] + pairs[:, :-1]) / 4, noise[:, 1::2, 1::2], share)
    finer[:, 1::2, 1::2] = centres
    finer[:, ::2, 1::2] = torch.lerp(between(field, centres), noise[:, ::2, 1::2], share)
    # The points on the other edges of the squares are the same, seen with the axes exchanged.
    columns = between(field.mT, centres.mT).mT
    finer[:, 1::2, ::2] = torch.lerp(columns, noise[:, 1::2, ::2], share)
    return finer


def between(field: Tensor, centres: Tensor) -> Tensor:
    """For points between neighbours of one row, the mean of these and of the centres around.

    Args:
        field: (n, r, r) values.
        centres: (n, r - 1, r - 1) values in the middle of its squares.

    Returns:
        (n, r, r - 1).
    """
    around = field[:, :, 1:] + field[:, :, :-1]
    around[:, 1:] += centres
    around[:, :-1] += centres
    around[:, 1:-1] /= 4
    around[:, [0, -1]] /= 3
    return around


def heads(count: int, probability: float, stream: torch.Generator) -> Tensor:
    """Places of the images for which a coin falls on heads, (m,) int64 on the CPU."""
    return (torch.rand(count, generator=stream) < probability).nonzero()[:, 0]


def uniform(bounds: tuple[float, float], count: int, stream: torch.Generator) -> Tensor:
    """Independent numbers between two bounds, (count,) float32 on the CPU."""
    low, high = bounds
    return low + (high - low) * torch.rand(count, generator=stream)


def replaced(images: Tensor, rows: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """A copy in which the given rows are changed, and clipped to [0, 1]."""
    here = sent(rows, images.device)
    copy = images.clone()
    copy[here] = change(images[here]).clamp(0, 1)
    return copy

"""Deconvolution-based adversarial training: learn from images under the worst filters.

The adaptive defense that Sadasivan et al., "CUDA: Convolution-based Unlearnable Datasets" (CVPR
2023), try against themselves: adversarial training whose adversary moves filters, not pixels. With
a k x k filter s_c and an offset b_c for each class c, shared by the colours, at every step

1. draw s and b, uniform in (-1/k, 1/k), as PyTorch starts a transposed convolution;
2. ten times  (s_c, b_c) <- clip((s_c, b_c) + alpha grad L_c, -5, 5)  for every class c,
   L_c the mean of  CE(f_w(x * s_y + b_y), y)  over its images in the batch;
3. learn from r(x * s_y + b_y),

r rescaling an image to [0, 1] by its least and greatest value. k = 7, alpha = .1. The paper has
39.1, 46.2 and 38.5 % for k = 3, 5 and 7 on CIFAR-10.

So the search climbs by brightness and scale, too, which r then takes back. `rescale=within` puts r
into the objective of the search, where offsets and the scale of filters change nothing: the search
then means the very images that are learned from.

Departures. The network rests while the filters are searched; the released search moves the batch
statistics a hundred times for every step of learning. A transposed convolution of stride 1 is a
convolution with the mirrored filter, and the start has no preferred side. Where labels are mixed,
the heavier one chooses the filter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.component import setting
from bench.defense import Defense, Step
from bench.network import Network
from bench.pgd import at_rest
from bench.registry import DEFENSES
from bench.seeding import sent

LARGEST = 5.0
"""No entry of a filter and no offset is larger."""


@DEFENSES.register("deconvolution-at")
@dataclass(frozen=True)
class DeconvolutionTraining(Defense):
    """Trains on images under class-wise filters that make the present network fail."""

    # Version 1 took the mean loss of the batch. Of version 3, `deconvolution-at` without settings
    # meant rescale=within; of all others it means rescale=after.
    version: ClassVar[int] = 4
    paper: ClassVar[str] = "Sadasivan et al., CUDA, CVPR 2023"

    kernel: int = setting(7, "k, side of the filters, in pixels, odd")
    step_size: float = setting(0.1, "alpha")
    steps: int = setting(10, "updates of the filters")
    start: Literal["random", "identity"] = setting("random", "the filters before the first update")
    rescale: Literal["within", "after"] = setting(
        "after", "whether images are rescaled in the search, too, or after it alone"
    )

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel} must be odd and positive")
        if self.steps < 0 or self.step_size < 0:
            raise ValueError("steps and step_size must not be negative")

    def cost(self) -> float:
        """A forward pass, half a backward pass: 2 a step against the 3 of learning."""
        return (2 * self.steps + 3) / 3

    def loss(self, network: Network, images: Tensor, soft_labels: Tensor, step: Step) -> Tensor:
        """Cross-entropy of the filtered images."""
        changed = self.attack(network, images, soft_labels, step)
        return F.cross_entropy(network(changed), soft_labels)

    def attack(self, network: Network, images: Tensor, soft_labels: Tensor, step: Step) -> Tensor:
        """Climb the loss by the filters.

        Args:
            network: left as it is found.
            images: (b, 3, h, w) float32.
            soft_labels: (b, classes) float32.
            step: whose stream draws the filters.

        Returns:
            The images under the filters found, each spanning [0, 1].
        """
        device, owners = images.device, soft_labels.argmax(1)
        filters, offsets = (sent(part, device) for part in self.draw(step.classes, step.stream))
        shares = 1 / F.one_hot(owners, step.classes).sum(0)[owners]
        with at_rest(network):
            for _ in range(self.steps):
                filters.requires_grad_()
                offsets.requires_grad_()
                changed = filtered(images, filters[owners], offsets[owners])
                if self.rescale == "within":
                    changed = rescaled(changed)
                losses = F.cross_entropy(network(changed), soft_labels, reduction="none")
                # The sum of the classes' means: a filter's gradient is that of its own class's.
                gradients = torch.autograd.grad((losses * shares).sum(), (filters, offsets))
                filters, offsets = (
                    (part.detach() + self.step_size * gradient).clamp(-LARGEST, LARGEST)
                    for part, gradient in zip((filters, offsets), gradients, strict=True)
                )
        return rescaled(filtered(images, filters[owners], offsets[owners]))

    def draw(self, classes: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """Filters (classes, k, k) and offsets (classes,) to start from."""
        if self.start == "identity":
            filters = torch.zeros(classes, self.kernel, self.kernel)
            filters[:, self.kernel // 2, self.kernel // 2] = 1.0
            return filters, torch.zeros(classes)
        filters = 2 * torch.rand(classes, self.kernel, self.kernel, generator=stream) - 1
        offsets = 2 * torch.rand(classes, generator=stream) - 1
        return filters / self.kernel, offsets / self.kernel


def filtered(images: Tensor, filters: Tensor, offsets: Tensor) -> Tensor:
    """Each image under its own filter.

    Args:
        images: (b, 3, h, w) float32.
        filters: (b, k, k), shared by the channels, with zero padding.
        offsets: (b,).

    Returns:
        (b, 3, h, w), of any range.
    """
    count, channels, height, width = images.shape
    side = filters.shape[-1]
    flat = images.reshape(1, count * channels, height, width)
    weights = filters.repeat_interleave(channels, 0)[:, None]
    shifts = offsets.repeat_interleave(channels)
    moved = F.conv2d(flat, weights, shifts, padding=side // 2, groups=count * channels)
    return moved.reshape(images.shape)


def rescaled(images: Tensor) -> Tensor:
    """Each image moved and stretched to span [0, 1]; one of a single value becomes zero."""
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp_min(1e-12)

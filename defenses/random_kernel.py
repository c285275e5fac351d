"""Random kernels: blur every batch with a random filter of CUDA's own family.

The adaptive defense that Sadasivan et al., "CUDA: Convolution-based Unlearnable Datasets" (CVPR
2023), try against themselves, with 9.2 % and 13.4 % on CIFAR-10 for p' = .1 and .3. For each batch
one 3 x 3 filter is drawn, its entries from U(0, p') and one of them, drawn uniformly, set to 1; all
images are convolved with it channel by channel, with zero padding, and divided by their maxima:

    x' = (x * s) / max(x * s)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.component import setting
from bench.defense import Defense, Step
from bench.registry import DEFENSES
from bench.seeding import sent


@DEFENSES.register("random-kernel")
@dataclass(frozen=True)
class RandomKernel(Defense):
    """Convolves each batch with a random filter."""

    paper: ClassVar[str] = "Sadasivan et al., CUDA, CVPR 2023"

    kernel: int = setting(3, "side of the filter, in pixels, odd")
    blur: float = setting(0.3, "p', largest entry beside the 1")

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel} must be odd and positive")
        if not 0 <= self.blur <= 1:
            raise ValueError(f"blur={self.blur:g} must lie between 0 and 1")

    def batch(self, images: Tensor, soft_labels: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Convolve, and let the largest value of each image be 1."""
        filters = sent(self.draw(step.stream), images.device).expand(3, 1, -1, -1)
        blurred = F.conv2d(images, filters, padding=self.kernel // 2, groups=3)
        largest = blurred.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
        return (blurred / largest).clamp(0, 1), soft_labels

    def draw(self, stream: torch.Generator) -> Tensor:
        """A filter, (kernel, kernel) float32."""
        drawn = self.blur * torch.rand(self.kernel**2, generator=stream)
        drawn[torch.randint(self.kernel**2, (1,), generator=stream)] = 1.0
        return drawn.reshape(self.kernel, self.kernel)

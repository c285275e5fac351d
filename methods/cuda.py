"""Convolution-based unlearnable data: one random blur filter for each class.

Sadasivan, Vinu Sankar, et al. "CUDA: Convolution-based Unlearnable Datasets", CVPR 2023.
A class's filter has k x k entries drawn from U(0, p_b), of which one, drawn uniformly, becomes 1;
it is applied to each colour channel alone, with zero padding, and the result is divided by its own
maximum over the whole image:

    x' = (x * s_y) / max(x * s_y)

The filters are not normalised, so changes of brightness are part of the shortcut. There is no
budget. The code truncates to 8 bits; here the image is rounded unless `quantize=truncate`.

The paper's control is a universal blur: with one filter for all classes, `shared=yes`, nothing is
left of the shortcut, and a victim learns as from clean images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.component import setting
from bench.crafting import Crafting
from bench.data import chunks, portion, to_levels
from bench.method import Method
from bench.registry import METHODS


@METHODS.register("cuda")
@dataclass(frozen=True)
class ConvolutionShortcut(Method):
    """A random blur filter for each class; no surrogate, no gradient, no budget."""

    paper: ClassVar[str] = "Sadasivan et al., CUDA, CVPR 2023"

    kernel: int = setting(3, "k, filter side in pixels, odd; the paper takes 9 on ImageNet")
    blur: float = setting(0.3, "p_b, largest entry beside the 1; the paper takes .06 on ImageNet")
    quantize: Literal["round", "truncate"] = setting("round", "to 8 bits; truncate: released code")
    shared: bool = setting(False, "the control: one filter, that of class 0, for all", added=True)

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel} must be odd and positive")
        if self.blur < 0:
            raise ValueError(f"blur={self.blur:g} must not be negative")

    def craft(self, job: Crafting) -> Tensor:
        """Compute x' - x, a class at a time."""
        filters = self._filters(job)
        delta = job.blank()
        for label in range(job.classes):
            members = ((job.dataset.labels == label) & job.mask).nonzero().flatten()
            for rows in chunks(members, portion(delta)):
                images, _ = job.batch(rows)
                delta[rows] = self._change(images, filters[label]).cpu()
        return delta

    def imprint(self, job: Crafting, images: Tensor, labels: Tensor) -> Tensor:
        """Blur with the filters of these classes."""
        filters, released = self._filters(job), images.clone()
        for label in labels.unique().tolist():
            chosen = labels == label
            change = self._change(images[chosen], filters[label])
            released[chosen] = to_levels(images[chosen].float() / 255 + change)
        return released

    def _filters(self, job: Crafting) -> Tensor:
        """The filter of each class, on the device."""
        filters = class_filters(job.classes, self.kernel, self.blur, job.seed).to(job.device)
        return filters[:1].expand_as(filters) if self.shared else filters

    def _change(self, images: Tensor, kernel: Tensor) -> Tensor:
        """X' - x under one filter (size, size), for images (b, 3, h, w) uint8."""
        x = images.float() / 255
        with torch.backends.cudnn.flags(allow_tf32=False):  # ten bits would move grey levels
            blurred = F.conv2d(x, kernel.expand(3, 1, -1, -1), padding=self.kernel // 2, groups=3)
        released = blurred / blurred.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
        if self.quantize == "truncate":
            released = (released * 255).floor() / 255
        return released - x


def class_filters(classes: int, size: int, blur: float, seed: int) -> Tensor:
    """The filter s_y of every class, (classes, size, size) float32.

    The draws follow the released code with NumPy's legacy generator: for each class three filters
    of uniforms, of which the first is used, then row and column of the 1.
    """
    draws = np.random.RandomState(seed % 2**32)
    filters = np.empty((classes, size, size))
    for label in range(classes):
        filters[label] = draws.uniform(0, blur, 3 * size * size)[: size * size].reshape(size, size)
        row, column = draws.randint(size, size=2)
        filters[label, row, column] = 1.0
    return torch.from_numpy(filters).float()

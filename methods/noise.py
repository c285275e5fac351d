"""Random noise: what a perturbation of this size does when nothing is optimised."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bench.component import setting
from bench.crafting import Crafting
from bench.method import LinfMethod
from bench.registry import METHODS


@METHODS.register("noise")
@dataclass(frozen=True)
class Noise(LinfMethod):
    """Random noise inside the budget, drawn for each image.

    Uniform on [-epsilon, epsilon] as in *Unlearnable Examples*. SEP states its baseline only as
    "variance 8/255"; `law=gaussian` takes epsilon as the standard deviation and clips at epsilon.
    Drawn once for each class, even random noise is a strong shortcut.
    """

    paper: ClassVar[str] = "Huang et al., Unlearnable Examples, ICLR 2021 (its baseline)"

    law: Literal["uniform", "gaussian"] = setting("uniform", "distribution of a component")
    per: Literal["sample", "class"] = setting("sample", "one draw for each image or each class")

    def craft(self, job: Crafting) -> Tensor:
        """Draw delta ~ U(-epsilon, epsilon), or clip(N(0, epsilon^2)); independent components."""
        count = len(job.dataset) if self.per == "sample" else job.classes
        shape, draws = (count, *job.dataset.images.shape[1:]), job.stream("noise")
        if self.law == "uniform":
            drawn = (2 * torch.rand(shape, generator=draws) - 1) * self.epsilon
        else:
            drawn = torch.randn(shape, generator=draws) * self.epsilon
        drawn = drawn.clamp(-self.epsilon, self.epsilon)
        return drawn if self.per == "sample" else drawn[job.dataset.labels]

"""Random noise: what a perturbation of this size does when nothing is optimised."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from bench.component import setting
from bench.crafting import Crafting
from bench.data import portion
from bench.method import BoundedMethod
from bench.registry import METHODS


@METHODS.register("noise")
@dataclass(frozen=True)
class Noise(BoundedMethod):
    """Random noise inside the budget, drawn for each image.

    Uniform on [-epsilon, epsilon] as in *Unlearnable Examples*. SEP states its baseline only as
    "variance 8/255"; `law=gaussian` takes epsilon as the standard deviation and clips at epsilon.
    Drawn once for each class, even random noise is a strong shortcut.
    """

    paper: ClassVar[str] = "Huang et al., Unlearnable Examples, ICLR 2021 (its baseline)"

    law: Literal["uniform", "gaussian"] = setting("uniform", "distribution of a component")
    per: Literal["sample", "class"] = setting("sample", "one draw for each image or each class")

    def identity(self) -> dict[str, Any]:
        """Gaussians have a stream of their own since version 2; uniform noise is as it was."""
        said = super().identity()
        return said | {"version": 2} if self.law == "gaussian" else said

    def craft(self, job: Crafting) -> Tensor:
        """Draw delta ~ U(-epsilon, epsilon), or clip(N(0, epsilon^2)); independent components."""
        purpose = () if self.law == "uniform" else (self.law,)  # a sum of both shares no draws
        draws, shape = job.stream("noise", *purpose), job.dataset.images.shape[1:]
        delta = job.blank()
        of_class = self.draw((job.classes, *shape), draws) if self.per == "class" else None
        for rows in torch.arange(len(delta)).split(portion(delta)):
            if of_class is None:
                delta[rows] = self.draw((len(rows), *shape), draws)
            else:
                delta[rows] = of_class[job.dataset.labels[rows]]
        return delta

    def draw(self, shape: tuple[int, ...], draws: torch.Generator) -> Tensor:
        """Independent components of this shape."""
        if self.law == "uniform":
            drawn = (2 * torch.rand(shape, generator=draws) - 1) * self.epsilon
        else:
            drawn = torch.randn(shape, generator=draws) * self.epsilon
        return drawn.clamp(-self.epsilon, self.epsilon)

"""The control that every protected training is compared with."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.budget import Budget
from bench.crafting import Crafting
from bench.method import Method
from bench.registry import METHODS


@METHODS.register("clean")
@dataclass(frozen=True)
class Clean(Method):
    """The control: the images as they are; in every grid."""

    @property
    def budget(self) -> Budget:
        """Nothing may change."""
        return Budget("linf", 0.0)

    def craft(self, job: Crafting) -> Tensor:
        """No perturbation."""
        return job.blank()


@METHODS.register("clean-part", in_all=False)
@dataclass(frozen=True)
class CleanPart(Clean):
    """A control of partial protection: train on the unprotected images alone.

    What the protected images add to it, or take from it, is what their trainer learns from them.
    It needs a poison ratio below 1, or classes that are not protected.
    """

    unprotected_only: ClassVar[bool] = True


@METHODS.register("sham")
@dataclass(frozen=True)
class Sham(Clean):
    """A second control: a zero perturbation sent through the whole crafting path.

    Its victims see the bytes that the clean ones see, and under equal seeds draw the same numbers,
    so on a CPU their curves must be equal to the last digit. Any difference is a fault of the
    instrument.
    """

    def craft(self, job: Crafting) -> Tensor:
        """Zero, but computed chunk by chunk like any other."""
        return job.each_chunk(lambda images, labels, number: torch.zeros(images.shape))

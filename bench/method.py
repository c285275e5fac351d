"""What every protection method is: settings, a budget, and `craft`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from bench.budget import Budget, BudgetSum, Norm
from bench.component import Component, setting
from bench.data import ImageDataset
from bench.errors import UsageError
from bench.recipe import Recipe

if TYPE_CHECKING:
    from bench.crafting import Crafting


PLAIN = "none"
"""The defense that does nothing, as it is typed."""


@dataclass(frozen=True)
class Surrogate:
    """A network that a method wants trained on the clean images before it crafts.

    Attributes:
        arch: an architecture as typed on the command line, at full width unless it says
            otherwise. A method's own setting `surrogate` says so: the grid has put the recipe's
            width into it.
        epochs: the checkpoints to keep, counted from 1, in rising order.
        recipe: how to train it; None means as the victims are trained.
        index: tells several of one kind apart; it selects the seed.
        defense: what it is trained with, as typed on the command line; one that acts on batches
            or on the loss, such as adversarial training, and leaves the architecture as it is.
        folded: whether batch norms are folded when it is handed out, which is quickest for input
            gradients. Not for methods that differentiate the weights that were trained.
    """

    arch: str
    epochs: tuple[int, ...]
    recipe: Recipe | None = None
    index: int = 0
    defense: str = PLAIN
    folded: bool = True


@dataclass(frozen=True)
class Method(Component):
    """A way of making images unlearnable; a subclass writes `craft`.

    The fields of a subclass default to the paper's values. `--epsilon` sets the radius of every
    method whose budget is an l-inf ball; others keep a budget of their own.
    """

    unprotected_only: ClassVar[bool] = False
    """Whether victims are trained on the unprotected images alone: a control, not a protection."""
    overwrites: ClassVar[bool] = False
    """Whether it sets pixels rather than adding to them. Composed with other methods it has the
    last word on the pixels that it changes in any image of a class, wherever it stands."""

    @property
    def budget(self) -> Budget | BudgetSum:
        """What the released images are held to; nothing, unless a method says otherwise."""
        return Budget("none")

    def surrogates(self, recipe: Recipe) -> tuple[Surrogate, ...]:
        """The trained networks that `craft` will ask for.

        Args:
            recipe: the victims' recipe.

        Raises:
            UsageError: if it cannot give what the settings ask for.
        """
        del recipe
        return ()

    def fitted(self, train: ImageDataset, protected: Sequence[int]) -> Method:
        """The same with the settings that depend on the data, where they were left open.

        Args:
            train: the clean training images.
            protected: the classes that the data set's paper protects, if those are not all.
        """
        del train, protected
        return self

    def check(self, train: ImageDataset, rows: Tensor, total: int) -> None:
        """Look whether `craft` can work on these images, before anything is trained for it.

        Args:
            train: the clean training images.
            rows: (n,) int64, rising, where they stand in the whole training split.
            total: images in the whole training split.

        Raises:
            UsageError: if it cannot.
        """
        del train, rows, total

    def craft(self, job: Crafting) -> Tensor:
        """Compute the perturbation.

        Args:
            job: the clean images and all that crafting may use; test images are not there.

        Returns:
            delta, (n, 3, h, w) float32 in units of [0, 1], inside the budget; rows that are not
            protected are ignored. It becomes 8-bit by rounding afterwards.
        """
        raise NotImplementedError

    def differentiates(self) -> tuple[str, ...]:
        """The architectures through which `craft` takes gradients, equally often each."""
        surrogate = getattr(self, "surrogate", None)
        return tuple(getattr(self, "ensemble", ())) or ((surrogate,) if surrogate else ())

    def imprint(self, job: Crafting, images: Tensor, labels: Tensor) -> Tensor | None:
        """Put the shortcuts of given classes on images that were never protected.

        Victims are measured on such test images: who learned the shortcut follows it.

        Args:
            job: as for `craft`; the shortcuts are those of its training images and seed.
            images: (b, 3, h, w) uint8, channels last, on the job's device.
            labels: (b,) int64, whose shortcut each image shall carry.

        Returns:
            (b, 3, h, w) uint8; or None, upon which each image is lent the delta of a protected
            image of the class. That is exact where delta does not depend on the image it is for,
            and otherwise asks whether what is common to the class carries over.
        """
        del job, images, labels
        return None

    @property
    def own_batch(self) -> int | None:
        """Images a step of a network that `craft` itself trains, in `bench.recipe.batches`.

        None where it trains none, or leaves a partial last batch out.
        """
        return None

    def gradient_images(self, images: int) -> int:
        """How many input gradients of single images `craft` will take, for time estimates."""
        del images
        return 0


@dataclass(frozen=True)
class BoundedMethod(Method):
    """A method whose budget is a ball; l-inf unless a subclass says otherwise."""

    norm: ClassVar[Norm] = "linf"

    epsilon: float = setting(8 / 255, "radius of the l∞ ball, in units of [0, 1]")

    @property
    def budget(self) -> Budget:
        """The ball."""
        return Budget(self.norm, self.epsilon)

    def __post_init__(self) -> None:
        if self.norm == "linf" and not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon={self.epsilon:g} must lie between 0 and 1, as 8/255 does")
        if not self.epsilon >= 0:
            raise ValueError(f"epsilon={self.epsilon:g} must not be negative")


def equidistant(count: int, epochs: int) -> tuple[int, ...]:
    """`count` epochs of a training of `epochs`, equally far apart, the last one included.

    Raises:
        UsageError: if there are not that many epochs.
    """
    if count > epochs:
        raise UsageError(
            f"checkpoints={count} asks for more checkpoints than the surrogate's {epochs} epochs; "
            f"ask for {epochs} or fewer, or train longer with --recipe NAME:epochs={count}"
        )
    return tuple(round(epochs * (k + 1) / count) for k in range(count))

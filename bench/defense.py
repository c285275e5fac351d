"""What a trainer may do against protected data: hooks that each do nothing by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.component import Component, setting
from bench.data import ImageDataset
from bench.errors import UsageError
from bench.network import Arch, Network
from bench.recipe import Recipe
from bench.record import PREPARES

SideInformation = Literal["none", "public-model", "pretrained-weights", "clean-samples"]
"""What a trainer knows beyond the released images, from the least to the most."""
SIDE_INFORMATION: tuple[SideInformation, ...] = get_args(SideInformation)


@dataclass(frozen=True)
class Step:
    """Where training stands.

    Attributes:
        epoch: from 0.
        epochs: how many there will be.
        classes: number of classes.
        stream: the defense's own random numbers of this epoch.
    """

    epoch: int
    epochs: int
    classes: int
    stream: torch.Generator


def check_window(name: str, side: int, train: ImageDataset) -> None:
    """Raise UsageError unless images are large enough to mirror the border that a window needs.

    Args:
        name: of the setting.
        side: its value, in pixels, odd.
        train: the images.
    """
    height, width = train.image_size
    if side // 2 >= min(height, width):
        raise UsageError(
            f"{name}={side} is too large for images of {height} x {width} pixels; give "
            f"{2 * min(height, width) - 1} or less"
        )


@dataclass(frozen=True)
class Defense(Component):
    """A training-time countermeasure; a subclass overrides the hooks it needs."""

    side_information: ClassVar[SideInformation] = "none"
    """What it knows beyond the released images."""
    changes_architecture: ClassVar[bool] = False
    alters_prediction: ClassVar[bool] = False
    """Whether `predict` is not simply the network in eval mode."""
    leaves_range: ClassVar[bool] = False
    """Whether images that it trains on may leave [0, 1]."""

    @property
    def prepares_training_only(self) -> bool:
        """Whether `prepare` changes training images in a way that test images are not changed."""
        return self.replaces("prepare")

    def cost(self) -> float:
        """Time of a training step as a multiple of plain training."""
        return 1.0

    def prediction_cost(self) -> float:
        """Forward passes for an evaluated image."""
        return 1.0

    def replaces(self, hook: str) -> bool:
        """Whether a hook does something of its own."""
        return getattr(type(self), hook) is not getattr(Defense, hook)

    def notes(self) -> list[str]:
        """What tables should say of it beside its settings, in a few words each."""
        said = {
            "another architecture": self.changes_architecture,
            "alters prediction": self.alters_prediction,
            PREPARES: self.prepares_training_only,
        }
        return [words for words, holds in said.items() if holds]

    def adapt(self, recipe: Recipe) -> Recipe:
        """The recipe by which it trains when `recipe` is asked for.

        Most train by any. One that starts from trained weights needs a smaller learning rate. It
        may change optimizer, learning rate and weight decay, and nothing else.
        """
        return recipe

    def facts(self, recipe: Recipe, images: int, weights: int | None) -> Mapping[str, float]:
        """What can be said beforehand of a training, for the record.

        Args:
            recipe: as adapted.
            images: how many are trained on.
            weights: parameters of the architecture's network; None where another defense makes
                the network.
        """
        del recipe, images, weights
        return {}

    def check(self, train: ImageDataset) -> None:
        """Look whether it can work on images like these, before anything is crafted or trained.

        Args:
            train: of which only the size of the images and the classes matter.

        Raises:
            UsageError: if it cannot.
        """
        del train

    def prepare(self, dataset: ImageDataset, stream: torch.Generator) -> ImageDataset:
        """Change the released training images, once, before training.

        Args:
            dataset: released images, uint8; never the clean ones, the mask, or test images.
            stream: random numbers.

        Returns:
            A dataset of the same size and labels; float32 images may leave [0, 1].
        """
        del stream
        return dataset

    def build(self, arch: Arch, dataset: ImageDataset, stream: torch.Generator) -> Network:
        """Make the network that will be trained."""
        return arch.network(
            len(dataset.classes), dataset.image_size, dataset.mean, dataset.std, stream
        )

    def batch(self, images: Tensor, soft_labels: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Change a batch, after crops and flips.

        Args:
            images: (b, 3, h, w) float32 in [0, 1] on the device; not to be changed in place.
            soft_labels: (b, classes) float32 that sum to 1, one-hot unless another defense came
                before; not to be changed in place.
            step: where training stands.

        Returns:
            Images and soft labels of the same shapes.
        """
        return images, soft_labels

    def loss(self, network: Network, images: Tensor, soft_labels: Tensor, step: Step) -> Tensor:
        """The scalar to minimise: soft cross-entropy, averaged over the batch."""
        del step
        return F.cross_entropy(network(images), soft_labels)

    def backward(self, network: Network, images: Tensor, soft_labels: Tensor, step: Step) -> Tensor:
        """Fill the gradients; returns the loss, detached."""
        loss = self.loss(network, images, soft_labels, step)
        loss.backward()
        return loss.detach()

    def finish(self, network: Network, dataset: ImageDataset, stream: torch.Generator) -> Network:
        """Change the network after the last epoch; the dataset is the released one."""
        del dataset, stream
        return network

    def predict(self, network: Network, images: Tensor, stream: torch.Generator) -> Tensor:
        """Scores (b, classes) of test images (b, 3, h, w), with the network in eval mode."""
        del stream
        return network(images)


@dataclass(frozen=True, kw_only=True)
class ImageFilter(Defense):
    """A filter of the training images that may be asked to work on test images, too.

    A subclass filters training images in `prepare`, and the same way in `shown`.
    """

    test: bool = setting(False, "whether test images are filtered, too", added=True)

    @property
    def alters_prediction(self) -> bool:  # type: ignore[override]
        """Only where test images are filtered, too."""
        return self.test

    @property
    def prepares_training_only(self) -> bool:
        """Only where test images stay as they are."""
        return not self.test

    def replaces(self, hook: str) -> bool:
        """Where test images stay as they are, prediction is the network's."""
        return self.test if hook == "predict" else super().replaces(hook)

    def shown(self, images: Tensor) -> Tensor:
        """Test images (b, 3, h, w) float32 in [0, 1] as `test` has them classified."""
        raise NotImplementedError

    def predict(self, network: Network, images: Tensor, stream: torch.Generator) -> Tensor:
        """Scores of the test images, filtered if asked for."""
        return super().predict(network, self.shown(images) if self.test else images, stream)


def one_hot(labels: Tensor, step: Step) -> Tensor:
    """Labels (b,) as (b, classes) float32."""
    return F.one_hot(labels, step.classes).float()

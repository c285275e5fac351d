"""What a trainer may do against protected data: seven hooks, each doing nothing by default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.component import Component
from bench.data import ImageDataset
from bench.network import Arch, Network


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


@dataclass(frozen=True)
class Defense(Component):
    """A training-time countermeasure; a subclass overrides the hooks it needs."""

    side_information: ClassVar[
        Literal["none", "public-model", "pretrained-weights", "clean-samples"]
    ] = "none"
    """What it knows beyond the released images."""
    changes_architecture: ClassVar[bool] = False
    alters_prediction: ClassVar[bool] = False
    """Whether `predict` is not simply the network in eval mode."""

    def cost(self) -> float:
        """Time of a training step as a multiple of plain training."""
        return 1.0

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

    def batch(self, images: Tensor, labels: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Change a batch, after crops and flips.

        Args:
            images: (b, 3, h, w) float32 in [0, 1] on the device; not to be changed in place.
            labels: (b,) int64.
            step: where training stands.

        Returns:
            Images of the same shape, and soft labels (b, classes) float32 that sum to 1.
        """
        return images, one_hot(labels, step)

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


def one_hot(labels: Tensor, step: Step) -> Tensor:
    """Labels (b,) as (b, classes) float32."""
    return F.one_hot(labels, step.classes).float()

"""What the suite is measured against: the released way, and loops that a competent person writes.

All are written anew from descriptions. `ReleasedCrafting` wastes what SEP's released scripts
waste: a data loader that starts anew for every gradient and decodes all chunks up to the one
wanted, a checkpoint read from disk for every gradient, float32 in the default memory layout, batch
norms apart, weights that ask for gradients, and statistics that nobody reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, cycle, repeat
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bench.data import ImageDataset
from bench.network import Network
from bench.recipe import Recipe


class Pictures(Dataset[tuple[Tensor, int]]):
    """A data set that decodes each picture when it is asked for, as torchvision's do."""

    def __init__(self, dataset: ImageDataset, transform: Any) -> None:
        self._pixels = dataset.images.permute(0, 2, 3, 1).contiguous().numpy()
        self._labels, self._transform = dataset.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._pixels[row])), self._labels[row]


class ReleasedCrafting:
    """Targeted gradients as the released scripts take them, in chunks of 5000 images.

    For each gradient of a chunk they read a checkpoint from disk and decode all chunks up to this
    one, 5.5 of the ten on average. Here a chunk is worked through in batches, each of which comes
    with its share of that: 5.5 times as many pictures are decoded as used. Starting the decoding
    processes, a tenth of a second for 5000 images, is left out.

    Args:
        networks: the checkpoints; their weights are written to files.
        dataset: clean images.
        device: where to compute.
        folder: for the checkpoint files.
        batch: images a call.
        workers: processes that decode.
    """

    CHUNK, DECODED = 5000, 5.5

    def __init__(
        self,
        networks: Iterable[Network],
        dataset: ImageDataset,
        device: torch.device,
        folder: Path,
        batch: int,
        workers: int,
    ) -> None:
        from torchvision import transforms

        files = []
        for number, network in enumerate(networks):
            optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
            for parameter in network.parameters():  # so that there is momentum to store
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            files.append(folder / f"{number}.pt")
            torch.save(state, files[-1])
            self._network = network.to(device).eval()
        self._files, self._device = cycle(files), device
        self._loader = DataLoader(
            Pictures(dataset, transforms.ToTensor()),
            batch,
            num_workers=workers,
            drop_last=True,
            persistent_workers=workers > 0,
        )
        self._batches = chain.from_iterable(repeat(self._loader))
        self._used, self._decoded = 0, 0.0

    def __call__(self) -> float:
        """One gradient of one batch; returns its images."""
        if self._used % self.CHUNK < (self._loader.batch_size or 1):
            state = torch.load(next(self._files), map_location=self._device, weights_only=True)
            self._network.load_state_dict(state["network"])
        images, labels = next(self._batches)
        self._decoded += self.DECODED - 1
        while self._decoded >= 1:
            next(self._batches)
            self._decoded -= 1
        leaf = images.to(self._device).requires_grad_()
        logits = self._network(leaf)
        loss = F.cross_entropy(logits, targets(labels).to(self._device))
        (gradient,) = torch.autograd.grad(loss, leaf)
        float((logits.argmax(1).cpu() == labels).float().mean())
        gradient.cpu()
        self._used += len(images)
        return float(len(images))


class EagerCrafting:
    """SEP's steps as a competent person writes them: the sum of all gradients, and a step.

    float32, channels last, networks frozen and resident, the images on the device.
    """

    def __init__(
        self, networks: Iterable[Network], images: Tensor, labels: Tensor, device: torch.device
    ) -> None:
        self._networks = [
            network.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
            for network in networks
        ]
        clean = images.to(device).float() / 255
        self._clean = clean.contiguous(memory_format=torch.channels_last)
        self._x, self._targets = self._clean.clone(), targets(labels).to(device)

    def __call__(self) -> float:
        """A gradient on each network and one step; returns the images times the networks."""
        total = torch.zeros_like(self._x)
        for network in self._networks:
            leaf = self._x.detach().requires_grad_()
            loss = F.cross_entropy(network(leaf), self._targets, reduction="sum")
            total += torch.autograd.grad(loss, leaf)[0]
        moved = self._x - total.sign() / 255
        moved = torch.minimum(torch.maximum(moved, self._clean - 8 / 255), self._clean + 8 / 255)
        self._x = moved.clamp(0, 1)
        return float(len(self._x) * len(self._networks))


def targets(labels: Tensor, classes: int = 10) -> Tensor:
    """g(y) of SEP."""
    return (labels + classes // 2) % classes


class PlainTraining:
    """A training loop as tutorials write it: PIL transforms, a DataLoader, float32.

    Args:
        network: in training.
        dataset: uint8 images.
        recipe: whose batch size, crops, flips, optimiser and schedule are taken.
        device: where to compute.
        workers: processes that decode and augment.
    """

    def __init__(
        self,
        network: Network,
        dataset: ImageDataset,
        recipe: Recipe,
        device: torch.device,
        workers: int,
    ) -> None:
        from torchvision import transforms

        augmented = transforms.Compose(
            [
                transforms.RandomCrop(dataset.image_size, padding=recipe.crop_padding),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
            ]
        )
        self.network = network.to(device)
        self._loader = DataLoader(
            Pictures(dataset, augmented),
            recipe.batch_size,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
        )
        self._optimizer = torch.optim.SGD(
            network.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
        )
        self._recipe, self._device, self._epoch = recipe, device, 0

    def epoch(self) -> Iterator[int]:
        """Train for an epoch; yields the number of images after each step."""
        self.network.train()
        length = 1 / len(self._loader)
        for index, (images, labels) in enumerate(self._loader):
            rate = self._recipe.learning_rate(self._epoch + index * length, length)
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            images, labels = images.to(self._device), labels.to(self._device)
            self._optimizer.zero_grad()
            loss = F.cross_entropy(self.network(images), labels)
            loss.backward()
            self._optimizer.step()
            loss.item()  # as a loop does that prints it: it waits for the device
            yield len(images)
        self._epoch += 1

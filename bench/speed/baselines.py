"""What the suite is measured against: the released way, and loops that a competent person writes.

All are written anew from descriptions. `ReleasedCrafting` wastes what SEP's released scripts
waste: a data loader that starts anew for every gradient and decodes all chunks up to the one
wanted, a checkpoint read from disk for every gradient, float32 in the default memory layout, batch
norms apart, weights that ask for gradients, and statistics that nobody reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle
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
    """Targeted gradients as the released scripts take them, one checkpoint a call.

    Args:
        networks: the checkpoints; their weights are written to files once.
        dataset: clean images, in ten chunks, as the scripts have them.
        device: where to compute.
        folder: for the checkpoint files.
        workers: processes that decode.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        dataset: ImageDataset,
        device: torch.device,
        folder: Path,
        workers: int,
    ) -> None:
        from torchvision import transforms

        self._network = networks[0].to(device)
        self._files = []
        for number, network in enumerate(networks):
            optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
            for parameter in network.parameters():  # so that there is momentum to store
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            self._files.append(folder / f"{number}.pt")
            torch.save(state, self._files[-1])
        self._turn = cycle(self._files)
        self._pictures = Pictures(dataset, transforms.ToTensor())
        self._size = -(-len(dataset) // 10)
        self._chunk = cycle(range(-(-len(dataset) // self._size)))
        self._device, self._workers = device, workers

    def __call__(self) -> float:
        """One gradient of one chunk; returns its images."""
        state = torch.load(next(self._turn), map_location=self._device, weights_only=True)
        network = self._network
        network.load_state_dict(state["network"])
        network.eval()
        images, labels = self._chunk_of(next(self._chunk))
        leaf = images.to(self._device).requires_grad_()
        logits = network(leaf)
        loss = F.cross_entropy(logits, (labels.to(self._device) + 5) % 10)
        (gradient,) = torch.autograd.grad(loss, leaf)
        float((logits.argmax(1).cpu() == labels).float().mean())
        gradient.cpu()
        return float(len(images))

    def _chunk_of(self, wanted: int) -> tuple[Tensor, Tensor]:
        loader = DataLoader(self._pictures, self._size, num_workers=self._workers)
        for number, (images, labels) in enumerate(loader):
            if number == wanted:
                return images, labels
        raise IndexError(wanted)


class EagerCrafting:
    """Targeted signed steps as a competent person writes them, one checkpoint a call.

    float32, channels last, networks frozen and resident, the images on the device.
    """

    def __init__(
        self, networks: Sequence[Network], images: Tensor, labels: Tensor, device: torch.device
    ) -> None:
        self._networks = cycle(
            network.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
            for network in networks
        )
        clean = images.to(device).float() / 255
        self._clean = clean.contiguous(memory_format=torch.channels_last)
        self._x, self._targets = self._clean.clone(), (labels.to(device) + 5) % 10

    def __call__(self) -> float:
        """One gradient and one step; returns the images."""
        leaf = self._x.detach().requires_grad_()
        loss = F.cross_entropy(next(self._networks)(leaf), self._targets, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
        moved = self._x - gradient.sign() / 255
        moved = torch.minimum(torch.maximum(moved, self._clean - 8 / 255), self._clean + 8 / 255)
        self._x = moved.clamp(0, 1)
        return float(len(leaf))


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
        total = 0.0
        for index, (images, labels) in enumerate(self._loader):
            rate = self._recipe.learning_rate(self._epoch + index * length, length)
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            images, labels = images.to(self._device), labels.to(self._device)
            self._optimizer.zero_grad()
            loss = F.cross_entropy(self.network(images), labels)
            loss.backward()
            self._optimizer.step()
            total += loss.item()
            yield len(images)
        self._epoch += 1

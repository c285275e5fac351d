"""The one training loop and the one evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.augment import Crops, cut, draw_shifts, shift
from bench.data import ImageDataset, to_unit
from bench.defense import Defense, Step, one_hot
from bench.loading import Loader
from bench.network import Arch, Precision
from bench.recipe import Recipe
from bench.replay import Learned, Replay, cuda_graph
from bench.seeding import stream

EVALUATION_BATCH = 500
"""Images evaluated at once, fewer where they are larger than 64 x 64."""


class Batches:
    """Training images on the device, cut into augmented batches.

    Args:
        dataset: uint8 or prepared float32 images.
        recipe: batch size, padding, flip.
        device: where batches are wanted.
        memory: bytes that images may take there; above, they stay on the host.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        recipe: Recipe,
        device: torch.device,
        memory: float = math.inf,
    ) -> None:
        self._bilinear = recipe.crops == "bilinear"
        self._padding = 0 if self._bilinear else recipe.crop_padding
        self._loader = Loader(dataset, device, memory)
        self._recipe, self._size, self._device = recipe, dataset.image_size, device
        self._parts = recipe.batches(len(dataset))
        self._count = len(dataset)
        self._mean_colour = torch.tensor(dataset.mean, device=device).reshape(1, 3, 1, 1)

    def __len__(self) -> int:
        return len(self._parts)

    def epoch(self, draws: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, as ((b, 3, h, w) float32 in [0, 1], (b,) int64).

        They are shuffled, and a partial batch is last, unless the recipe says otherwise. A single
        image left over joins the batch before.
        """
        recipe, count, margin = self._recipe, self._count, (self._padding,) * 4
        # All draws are made on the CPU at once, so that every device sees the same numbers.
        order = torch.randperm(count, generator=draws) if recipe.shuffle else torch.arange(count)
        order = order.to(self._loader.rows_on)
        whole_flip = recipe.flip and not self._bilinear
        crops = Crops.draw(count, self._padding, whole_flip, draws).to(self._device)
        offsets, mirrored = draw_shifts(count, recipe.crop_padding, draws, self._device)
        for part in self._parts:
            images, labels = self._loader.batch(order[part])
            padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, *margin))
            images = to_unit(cut(padded, crops[part], self._size))
            if self._bilinear:
                flips = mirrored[part] & recipe.flip
                images = shift(images, offsets[part], flips, self._mean_colour)
            yield images, labels


class Training:
    """One network in training; the same object trains surrogates and victims.

    Every random number comes from a stream named by role and epoch, so a training that is resumed
    after an epoch continues exactly as if it had never stopped.

    Args:
        arch: what to train.
        released: all that the trainer has: uint8 images and labels.
        recipe: how; adapted to the architecture and to the defense.
        defense: the trainer's countermeasure.
        seed: of this training.
        role: "victim" or "surrogate"; their streams differ under equal seeds.
        device: where.
        precision: in which arithmetic.
        memory: bytes that images may take on the device.
    """

    def __init__(
        self,
        arch: Arch,
        released: ImageDataset,
        recipe: Recipe,
        defense: Defense,
        seed: int,
        role: str,
        device: torch.device,
        precision: Precision,
        memory: float = math.inf,
    ) -> None:
        self._purpose = (seed, role)
        recipe = defense.adapt(arch.adapt(recipe))
        self._recipe, self._defense, self._device = recipe, defense, device
        self._released = released
        prepared = defense.prepare(released, self._stream("prepare"))
        self._memory = memory
        self._batches = Batches(prepared, recipe, device, memory)
        self._loaders: dict[ImageDataset, Loader] = {}
        self.network = defense.build(arch, released, self._stream("build"))
        # On processors PyTorch's batch norm sums less carefully in this layout: on batches of
        # 32 x 32 pixels it errs by 4e-6 to 1e-5 of its output, in contiguous memory by 5e-8. That
        # takes 1.4 to 1.7 times as long, and bf16 errs by 4e-3, so the layout stays. Networks
        # in both layouts agree to some five digits a layer, and no more.
        self.network.to(device).to(memory_format=torch.channels_last)
        self.network.precision = precision
        self._optimizer = _optimizer(self.network, recipe)
        self._epoch = 0
        self._replay: Replay | None = None
        self._last = _LastLogits()
        self.network.register_forward_hook(self._last)

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self._epoch

    @property
    def images(self) -> int:
        """Training images an epoch."""
        return len(self._released)

    def run_epoch(self, advance: Callable[[int], None] = lambda images: None) -> dict[str, Any]:
        """Train for one epoch.

        Args:
            advance: told the number of images after each step.

        Returns:
            A curve row: `epoch` (from 1), `lr` (of the last step), `train_loss`, `train_acc`.
            Accuracy is taken while training, on the images as trained on; where labels are mixed
            it is agreement with the heavier one.
        """
        recipe, network = self._recipe, self.network
        classes = network.head.out_features
        step = Step(self._epoch, recipe.epochs, classes, self._stream("defense", self._epoch))
        loss_sum = torch.zeros((), device=self._device)
        correct = torch.zeros((), dtype=torch.int64, device=self._device)
        seen, lr, length = 0, recipe.lr, 1 / len(self._batches)
        network.train()
        draws = self._stream("batches", self._epoch)
        with _own_draws(self._stream("layers", self._epoch), self._device):
            for index, (images, labels) in enumerate(self._batches.epoch(draws)):
                lr = recipe.learning_rate(self._epoch + index * length, length)
                for group in self._optimizer.param_groups:
                    group["lr"] = lr
                images, soft_labels = self._defense.batch(images, one_hot(labels, step), step)
                self._optimizer.zero_grad()
                loss, logits = self._learn(images, soft_labels, step)
                if recipe.clip_grad is not None:
                    torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_grad)
                self._optimizer.step()
                loss_sum += loss * len(labels)
                if logits is not None and len(logits) == len(labels):
                    correct += (logits.argmax(1) == soft_labels.argmax(1)).sum()
                seen += len(labels)
                advance(len(labels))
        self._epoch += 1
        return {
            "epoch": self._epoch,
            "lr": lr,
            "train_loss": loss_sum.item() / seen,
            "train_acc": correct.item() / seen,
        }

    def _learn(self, images: Tensor, soft_labels: Tensor, step: Step) -> Learned:
        """Fill the gradients; returns the loss and the logits of the pass learned from."""
        network, defense, last = self.network, self._defense, self._last

        def compute(images: Tensor, soft_labels: Tensor) -> Learned:
            loss = defense.backward(network, images, soft_labels, step)
            return Learned(loss, last.value)

        # A defense with a backward pass of its own may draw random numbers or wait for the GPU.
        own = defense.replaces("loss") or defense.replaces("backward")
        if self._device.type != "cuda" or own:
            return compute(images, soft_labels)
        if self._replay is None:
            # It must not know this object: a cycle would hold GPU memory until it is collected.
            self._replay = Replay(network, compute, cuda_graph)
        return self._replay(images, soft_labels)

    def finish(self) -> None:
        """Let the defense have its last word; call it once, after the last epoch."""
        network = self._defense.finish(self.network, self._released, self._stream("finish"))
        self.network = network

    def confusion(self, dataset: ImageDataset) -> Tensor:
        """Counts (classes, classes) int64: row the true class, column the predicted one."""
        classes = self.network.head.out_features
        guesses = self.guesses(dataset)
        counts = torch.zeros(classes * classes, dtype=torch.int64, device=self._device)
        # Not bincount, which waits for the GPU to tell the largest value.
        places = dataset.labels.to(self._device) * classes + guesses
        counts.index_add_(0, places, torch.ones_like(places))
        return counts.reshape(classes, classes).cpu()

    def guesses(self, dataset: ImageDataset) -> Tensor:
        """The class that each image is taken for, (n,) int64 on the device."""
        if dataset not in self._loaders:
            self._loaders[dataset] = Loader(dataset, self._device, self._memory)
        loader = self._loaders[dataset]
        size = max(min(EVALUATION_BATCH, 2**21 // math.prod(dataset.image_size)), 16)
        draws = self._stream("predict", self._epoch)
        self.network.eval()
        with torch.no_grad():
            return torch.cat(
                [
                    self._defense.predict(
                        self.network, to_unit(loader.batch(rows)[0]), draws
                    ).argmax(1)
                    for rows in torch.arange(len(dataset), device=loader.rows_on).split(size)
                ]
            )

    def state(self) -> dict[str, Any]:
        """Everything needed to go on: tensors, numbers and nothing that needs code to load."""
        return {
            "epoch": self._epoch,
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned, possibly in another process."""
        self._epoch = state["epoch"]
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])

    def _stream(self, *purpose: str | int) -> torch.Generator:
        return stream(*self._purpose, *purpose)


def _optimizer(network: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(
            network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, foreach=True
        )
    return torch.optim.SGD(
        network.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        foreach=True,
    )


@contextmanager
def _own_draws(draws: torch.Generator, device: torch.device) -> Iterator[None]:
    """Lend PyTorch's own generators a seed: layers such as dropout draw from no other."""
    seed = int(torch.randint(2**62, (1,), generator=draws))
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


class _LastLogits:
    """A forward hook that keeps the logits of the last pass that was learned from.

    An object of its own: whoever copies the network copies its hooks and all that they hold.
    """

    value: Tensor | None = None

    def __call__(self, module: torch.nn.Module, inputs: Any, logits: Tensor) -> None:
        del inputs
        if module.training:  # an attack evaluates in eval mode
            self.value = logits.detach()


def accuracy(confusion: Tensor) -> float:
    """Share of the counts that lie on the diagonal."""
    return confusion.diagonal().sum().item() / max(int(confusion.sum()), 1)

"""Images on the device: all of them once, or, where they do not fit, a batch at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.data import ImageDataset


class Loader:
    """Hands out images of a data set, by row, on a device.

    They are copied there once and stay, as uint8 in channels-last memory, if they take no more
    than `memory`. Otherwise rows are gathered on the host, where the images may be a mapped file
    that exceeds its memory, and travel through pinned memory while the device computes.

    Args:
        dataset: uint8 or prepared float32 images.
        device: where they are wanted.
        memory: bytes they may take.

    Attributes:
        resident: whether they stay on the device.
        rows_on: the device on which row numbers are best made.
    """

    def __init__(self, dataset: ImageDataset, device: torch.device, memory: float) -> None:
        images, self._device = dataset.images, device
        self.resident = images.numel() * images.element_size() <= memory
        self._labels = dataset.labels
        self._images = images
        if self.resident:
            # Channels last, so that a gather moves whole images and a crop whole pixels.
            self._images = images.to(device).permute(0, 2, 3, 1).contiguous()
            self._labels = dataset.labels.to(device)
        self.rows_on = self._labels.device

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels of some rows.

        Args:
            rows: (b,) int64.

        Returns:
            (b, 3, h, w) of the data set's dtype, in channels-last memory, and (b,) int64.
        """
        rows = rows.to(self.rows_on)
        images, labels = self._images[rows], self._labels[rows]
        if self.resident:
            return images.permute(0, 3, 1, 2), labels
        images = images.contiguous(memory_format=torch.channels_last)
        if self._device.type == "cuda":
            images, labels = images.pin_memory(), labels.pin_memory()
        return (
            images.to(self._device, non_blocking=True),
            labels.to(self._device, non_blocking=True),
        )

"""What the machine could do at most: a network's convolutions alone, and matrix products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.network import Network
from bench.speed.timing import best_seconds


@dataclass(frozen=True)
class Ceiling:
    """Images per second that the convolutions alone would allow.

    Attributes:
        gradients: forward, and backward to the input.
        training: forward, and backward to inputs and weights.
        products: operations per second of a large matrix product.
    """

    gradients: float
    training: float
    products: float


def measure(network: Network, images: Tensor, dtype: torch.dtype, device: torch.device) -> Ceiling:
    """Time every convolution of a network, by shape, with nothing between them.

    Args:
        network: any.
        images: (b, 3, h, w) float, the batch.
        dtype: of the convolutions, which are in channels-last memory.
        device: where.
    """
    forward = inputs = weights = first = 0.0
    known: dict[tuple[object, ...], tuple[float, float, float]] = {}
    for number, (convolution, source) in enumerate(_convolutions(network, images)):
        shape = (
            *(source.shape, convolution.weight.shape),
            *(convolution.stride, convolution.padding, convolution.groups),
        )
        if shape not in known:
            known[shape] = _seconds(convolution, source.shape, dtype, device)
        times = known[shape]
        forward, inputs, weights = forward + times[0], inputs + times[1], weights + times[2]
        if number == 0:
            first = times[1]  # training never asks for the gradient to the images
    count = len(images)
    return Ceiling(
        gradients=count / (forward + inputs),
        training=count / (forward + inputs - first + weights),
        products=products(dtype, device),
    )


def products(dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of the product of two large square matrices."""
    side = 8192 if device.type == "cuda" else 2048
    one, two = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / best_seconds(lambda: one @ two, device)


def _convolutions(network: Network, images: Tensor) -> list[tuple[nn.Conv2d, Tensor]]:
    found: list[tuple[nn.Conv2d, Tensor]] = []

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.Conv2d)
        found.append((module, args[0]))

    hooks = [
        module.register_forward_pre_hook(note)
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        network(images[:1])
    for hook in hooks:
        hook.remove()
    return [(module, source.expand(len(images), *source.shape[1:])) for module, source in found]


def _seconds(
    convolution: nn.Conv2d, shape: torch.Size, dtype: torch.dtype, device: torch.device
) -> tuple[float, float, float]:
    """Of the forward pass, of the gradient to the input, and of that to the weights."""

    def draw(shape: torch.Size) -> Tensor:
        drawn = torch.randn(shape, device=device).to(dtype)
        return drawn.contiguous(memory_format=torch.channels_last)

    source, weight = draw(shape), draw(convolution.weight.shape)
    stride, padding = list(convolution.stride), [int(side) for side in convolution.padding]
    dilation, groups = list(convolution.dilation), convolution.groups

    def forward() -> Tensor:
        return torch.conv2d(source, weight, None, stride, padding, dilation, groups)

    gradient = torch.randn_like(forward())

    def backward(mask: list[bool]) -> None:
        torch.ops.aten.convolution_backward(
            gradient, source, weight, None, stride, padding, dilation, False, [0, 0], groups, mask
        )

    with torch.no_grad():
        return (
            best_seconds(forward, device),
            best_seconds(lambda: backward([True, False, False]), device),
            best_seconds(lambda: backward([False, True, False]), device),
        )

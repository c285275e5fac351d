"""Bfloat16 by float32 kernels gives what bfloat16 instructions give."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench import bfloat16
from bench.bfloat16 import RoundedLayers, casting
from bench.network import Network, freeze

CPU = torch.device("cpu")


class Seen(TorchDispatchMode):
    """Dtypes that convolutions and matrix products are computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("convolution", "convolution_backward", "addmm", "mm"):
            found = {one.dtype for one in args if isinstance(one, Tensor)}
            self.dtypes.setdefault(name, set()).update(found)
        return func(*args, **(kwargs or {}))


def network() -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        made = Network(body, 8, 10, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    made.precision = "bf16"
    return made


def images() -> Tensor:
    return torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def without_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfloat16, "computes_bf16", lambda device: False)


def with_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfloat16, "computes_bf16", lambda device: True)


def gradients(out: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    # Signs and sizes that differ, so that a sum of gradients cannot hide an exchange.
    weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
    return torch.autograd.grad((out.float() * weights).sum(), leaves)


def rounded(values: Tensor) -> Tensor:
    return values.detach().bfloat16().double()


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_rounded_layers_round_the_exact_result(kind: str) -> None:
    draws = torch.Generator().manual_seed(2)
    shape, weight_shape = ((4, 6, 7, 7), (5, 6, 3, 3)) if kind == "conv" else ((9, 24), (5, 24))
    leaves = [torch.randn(s, generator=draws).requires_grad_() for s in (shape, weight_shape, (5,))]
    layer = F.conv2d if kind == "conv" else F.linear
    with RoundedLayers():
        ours = layer(*leaves)
    assert ours.dtype == torch.bfloat16

    # Float64 holds the products of bfloat16 values and their sums exactly.
    operands = [rounded(leaf).requires_grad_() for leaf in leaves]
    exact = layer(*operands)
    upstream = rounded(torch.randn(ours.shape, generator=draws))
    found = (ours, *torch.autograd.grad(ours, leaves, upstream.bfloat16()))
    true = (exact, *torch.autograd.grad(exact, operands, upstream))
    for mine, theirs in zip(found, true, strict=True):
        equal = mine.detach().double() == rounded(theirs)
        assert equal.double().mean() > 0.99, "more than a few near ties fall to the other side"
        torch.testing.assert_close(mine.detach().double(), theirs.detach(), rtol=2**-8, atol=1e-4)


def test_products_of_rounded_operands_are_rounded_once() -> None:
    # 1 + 2^-9 rounds to 1; 1 + 2^-7 is held. The exact sum 2 + 2^-7 + 2^-14 lies between
    # 2 and 2 + 2^-6, nearer to neither than a tie but for the last term, which decides upwards.
    operands = torch.tensor([[1 + 2**-9, 1 + 2**-7, 2**-7]])
    weights = torch.tensor([[1.0, 1.0, 2**-7]])
    with RoundedLayers():
        out = F.linear(operands, weights)
    assert out.dtype == torch.bfloat16
    assert out.item() == 2 + 2**-6


def test_float32_kernels_compute_where_there_are_no_instructions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_instructions(monkeypatch)
    net = network()
    with Seen() as seen:
        F.cross_entropy(net(images()), torch.arange(16) % 10).backward()
    assert seen.dtypes.keys() >= {"convolution", "convolution_backward", "addmm"}
    assert set.union(*seen.dtypes.values()) == {torch.float32}


def test_native_kernels_compute_where_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with_instructions(monkeypatch)
    with Seen() as seen:
        network()(images())
    assert seen.dtypes["convolution"] == {torch.bfloat16}


@pytest.mark.parametrize("frozen", [False, True])
def test_a_network_gives_the_same_either_way(frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for machine in (without_instructions, with_instructions):
        machine(monkeypatch)
        net = network()
        if frozen:
            net = freeze(net, CPU, "bf16")
        x = images().requires_grad_()
        out = net(x)
        found.append((out.detach(), *gradients(out, x)))
    for ours, native in zip(*found, strict=True):
        assert (ours - native).norm() < 0.05 * native.norm()
    assert not torch.equal(found[0][0], network_in_fp32(frozen)), "nothing was rounded"


def network_in_fp32(frozen: bool) -> Tensor:
    net = freeze(network(), CPU, "fp32") if frozen else network()
    net.precision = "fp32"
    return net(images()).detach()


def test_nothing_changes_where_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    without_instructions(monkeypatch)
    x, weight = images(), torch.randn(4, 3, 3, 3)
    plain = F.conv2d(x, weight)
    with casting(CPU, wanted=False):
        assert torch.equal(F.conv2d(x, weight), plain)
    with casting(CPU, wanted=True):
        assert F.conv2d(x, weight).dtype == torch.bfloat16
    assert torch.equal(F.conv2d(x, weight), plain), "it outlived its block"


def test_gradients_of_gradients_pass_through() -> None:
    # As TensorClog and gradient alignment need them: d/dx of (dL/dw)^2 for L = w x is 2 x.
    x = torch.tensor([[3.0]], requires_grad=True)
    weight = torch.tensor([[2.0]], requires_grad=True)
    with RoundedLayers():
        out = F.linear(x, weight)
    (slope,) = torch.autograd.grad(out.sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(slope.square().sum(), x)
    assert second.item() == 6.0

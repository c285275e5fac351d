"""NTGA: its kernels against wide networks, its machine against the flow, its gradient against both.

What holds for every method alike is tested in `test_laws.py`.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.component import build, parse_one
from bench.data import ImageDataset
from bench.errors import UsageError
from bench.registry import METHODS
from bench.testing import crafting_job, small_splits
from methods import ntga
from methods.ntga import (
    KERNELS,
    HeldOutLoss,
    TangentAttack,
    erf_moments,
    held_out,
    kernel_gradients,
    predict,
    relu_moments,
)

W, B = 1.76, 0.18
"""The published variances of weights and biases, once more."""


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(count: int, height: int = 8, width: int = 8, seed: int = 0) -> Tensor:
    """Images in [0, 1], float64."""
    return torch.rand(count, 3, height, width, generator=draws(seed), dtype=torch.float64)


def theta(name: str, left: Tensor, right: Tensor) -> Tensor:
    kernel = KERNELS[name]
    return kernel.between(kernel.features(left), kernel.features(right))


# --- kernels ----------------------------------------------------------------------------------

MOMENTS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {
    "erf": (erf_moments, torch.erf, lambda a: 2 / math.sqrt(math.pi) * torch.exp(-a * a)),
    "relu": (relu_moments, torch.relu, lambda a: (a > 0).double()),
}


@pytest.mark.parametrize("name", MOMENTS)
@pytest.mark.parametrize(("v", "w", "k"), [(1.0, 1.0, 0.6), (0.4, 2.5, -0.9), (1.3, 1.3, 1.3)])
def test_moments_are_means_over_normal_pairs(name: str, v: float, w: float, k: float) -> None:
    moments, function, slope = MOMENTS[name]
    first, second = torch.randn(2, 1_000_000, generator=draws(), dtype=torch.float64)
    a = math.sqrt(v) * first
    b = k / math.sqrt(v) * first + math.sqrt(max(w - k * k / v, 0)) * second
    exact = moments(*(torch.tensor([[value]], dtype=torch.float64) for value in (k, v, w)))
    for products, value in zip(
        (function(a) * function(b), slope(a) * slope(b)), exact, strict=True
    ):
        standard_error = float(products.std()) / math.sqrt(len(products))
        assert float(products.mean()) == pytest.approx(float(value), abs=5 * standard_error)


def test_the_hand_written_gradient_of_relu_moments() -> None:
    v, w = torch.tensor([[0.7], [1.2]]).double(), torch.tensor([[0.9, 2.0, 0.3]]).double()
    k = (v * w).sqrt() * torch.tensor([[0.5, -0.3, 0.9], [0.0, 0.99, -0.7]]).double()
    assert torch.autograd.gradcheck(
        relu_moments, [part.requires_grad_() for part in (k, v, w)], atol=1e-7
    )


class Wide:
    """Finite networks with the two surrogates' layers, written out; `width` neurons each.

    Each layer is sqrt(1.76 / fan-in) times weights plus sqrt(.18) times biases, all standard
    normal.
    """

    def __init__(self, width: int, seed: int) -> None:
        self._width, self._draws = width, draws(seed)
        self.weights: list[Tensor] = []

    def _layer(self, *shape: int) -> tuple[Tensor, Tensor]:
        weight = torch.randn(*shape, generator=self._draws).requires_grad_()
        bias = torch.randn(shape[0], generator=self._draws).requires_grad_()
        self.weights += [weight, bias]
        fan_in = math.prod(shape[1:])
        return math.sqrt(W / fan_in) * weight, math.sqrt(B) * bias

    def fnn(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for _ in range(5):
            x = torch.erf(F.linear(x, *self._layer(self._width, x.shape[1])))
        return x

    def cnn(self, x: Tensor) -> Tensor:
        for _ in range(2):
            pads: list[int] = []
            for size in (x.shape[3], x.shape[2]):
                whole = 4 if size % 2 else 3  # with stride 2: (size + 1) // 2 windows of 5
                pads += [whole // 2, whole - whole // 2]
            layer = self._layer(self._width, x.shape[1], 5, 5)
            x = F.conv2d(F.pad(x, pads), *layer, stride=2).relu()
        x = x.flatten(1)
        for _ in range(3):
            x = F.linear(x, *self._layer(self._width, x.shape[1]))
        return x


def empirical_kernel(name: str, x: Tensor, width: int, seed: int) -> Tensor:
    """Mean over outputs of the products of their parameter gradients.

    It is taken along one random sign vector s: the mean over s of (s J)(s J')^T is the trace.
    """
    net = Wide(width, seed)
    outputs = getattr(net, name)(x.float())
    signs = torch.randint(0, 2, (outputs.shape[1],), generator=draws(seed + 1)).float() * 2 - 1
    rows = []
    for output in outputs:
        parts = torch.autograd.grad(output @ signs, net.weights, retain_graph=True)
        rows.append(torch.cat([part.flatten() for part in parts]))
    jacobian = torch.stack(rows)
    return (jacobian @ jacobian.T / outputs.shape[1]).double()


@pytest.mark.parametrize(
    ("name", "width", "size"), [("fnn", 512, (8, 8)), ("cnn", 256, (8, 8)), ("cnn", 256, (7, 10))]
)
def test_kernels_are_those_of_wide_networks(name: str, width: int, size: tuple[int, int]) -> None:
    # One random network is off by some 12 %, from its finite width and from the sign vector, hence
    # the mean of 32 by 2 %: 5 % are more than two standard errors, under fixed seeds. Other biases,
    # depths, paddings or variances move some entry by more than 6 %.
    x = photos(3, *size)
    x[1] = (x[0] + 0.3 * x[1]).clamp(0, 1)  # a similar pair
    x[2] = 0
    x[2, :, :2, :1] = 4  # a bright corner, which tells where the convolutions' windows begin
    mean = sum(empirical_kernel(name, x, width, 10 * s) for s in range(32)) / 32
    torch.testing.assert_close(mean, theta(name, x, x), rtol=0.05, atol=0)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_symmetric_and_positive(name: str) -> None:
    x = photos(12)
    x[1] = x[0]
    x[2], x[3] = 0, 1
    exact = theta(name, x, x)
    torch.testing.assert_close(exact, exact.T, rtol=1e-12, atol=0)
    assert exact[0].equal(exact[1])
    assert float(torch.linalg.eigvalsh(exact)[0]) > -1e-6  # the equal pair makes a zero
    torch.testing.assert_close(theta(name, x[4:6], x), exact[4:6], rtol=1e-10, atol=0)


# --- the kernel machine -----------------------------------------------------------------------


def machine(
    n: int = 7, m: int = 5, classes: int = 3, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Theta(X, X), Theta(X_v, X), one-hot Y and y_v of random features."""
    features = torch.randn(n + m, 2 * n, generator=draws(seed), dtype=torch.float64)
    targets = F.one_hot(torch.arange(n) % classes, classes).double()
    wanted = F.one_hot(torch.arange(m) % classes, classes).double()
    train, others = features[:n], features[n:]
    return train @ train.T, others @ train.T, targets, wanted


def with_ridge(kernel: Tensor) -> Tensor:
    return kernel + 1e-4 * kernel.diagonal().mean() * torch.eye(len(kernel)).double()


@pytest.mark.parametrize("time", [0.0, 1.0, 30.0])
def test_prediction_solves_the_flow(time: float) -> None:
    with_train, with_others, targets, _ = machine()
    a, rate = with_ridge(with_train), 1 / targets.numel()
    train, others = torch.zeros_like(targets), torch.zeros(5, 3).double()

    def velocity(train: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient descent on half the mean squared error over images and classes."""
        return rate * a @ (targets - train), rate * with_others @ (targets - train)

    steps = 2000
    h = time / steps
    for _ in range(steps):  # Runge and Kutta's, of fourth order
        k1, v1 = velocity(train)
        k2, v2 = velocity(train + h / 2 * k1)
        k3, v3 = velocity(train + h / 2 * k2)
        k4, v4 = velocity(train + h * k3)
        train = train + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        others = others + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
    torch.testing.assert_close(
        predict(with_train, with_others, targets, time), others, rtol=1e-8, atol=1e-10
    )


@pytest.mark.parametrize("time", [1e9, math.inf])
def test_long_training_is_kernel_regression(time: float) -> None:
    with_train, with_others, targets, _ = machine()
    expected = with_others @ torch.linalg.solve(with_ridge(with_train), targets)
    got = predict(with_train, with_others, targets, time)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)


def test_centred_labels_would_change_nothing() -> None:
    with_train, with_others, targets, _ = machine()
    plain = predict(with_train, with_others, targets, 10.0)
    centred = predict(with_train, with_others, targets - 1 / 3, 10.0)
    assert not torch.allclose(plain, centred)
    torch.testing.assert_close(plain.softmax(1), centred.softmax(1))


def literal_loss(
    with_train: Tensor, with_others: Tensor, targets: Tensor, wanted: Tensor, time: float
) -> Tensor:
    """The same loss by an exponential of a matrix and a linear system; autograd knows both."""
    a = with_ridge(with_train)
    learned = targets - torch.linalg.matrix_exp(-a * time / targets.numel()) @ targets
    scores = with_others @ torch.linalg.solve(a, learned)
    return -(wanted * scores.log_softmax(1)).sum()


@pytest.mark.parametrize("time", [0.05, 3.0, 200.0])
@pytest.mark.parametrize("equal", [False, True], ids=["generic", "equal eigenvalues"])
def test_gradients_through_the_matrix_function(time: float, equal: bool) -> None:
    with_train, with_others, targets, wanted = machine()
    if equal:  # four times 2, and two that differ in the tenth digit
        vectors = torch.linalg.eigh(with_train).eigenvectors
        values = torch.tensor([2, 2, 2, 2, 5, 5 + 1e-9, 9]).double()
        with_train = vectors * values @ vectors.T
    leaves = with_train.clone().requires_grad_(), with_others.clone().requires_grad_()
    expected = torch.autograd.grad(literal_loss(*leaves, targets, wanted, time), leaves)
    got = kernel_gradients(with_train, with_others, targets, wanted, time)
    # Theta(X, X) is symmetric, so only the symmetric part of its gradient has a meaning.
    torch.testing.assert_close(got[0], (expected[0] + expected[0].T) / 2, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-7, atol=1e-10)


def test_divided_differences_are_smooth_where_branches_meet() -> None:
    # Against 1 / rate times an integral: phi(a) is that of exp(-a s) over s from 0 to rate.
    nodes = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    for a in (0.0, 1e-6, 0.0199, 0.0201, 1.0, 40.0):
        for gap in (0.0, 1e-9, 0.9e-5, 1.1e-5, 1e-3, 2.0):
            values = torch.tensor([a, a + gap]).double()
            middle, half = a + gap / 2, gap / 2 * nodes
            spread = torch.where(half > 0, torch.sinh(half) / half.clamp_min(1e-300), 1)
            expected = -(nodes * torch.exp(-middle * nodes) * spread).mean()
            got = ntga._divided_differences(values, 1.0)[0, 1]
            # The midpoint rule is good to 1e-9 / 24 times second derivatives of some a^2.
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


def objective(name: str, time: float, others: int = 9) -> tuple[HeldOutLoss, Tensor, Tensor]:
    x_v = (photos(others, seed=1) * 255).to(torch.uint8)
    loss = HeldOutLoss(KERNELS[name], x_v, torch.arange(others) % 3, 3, time)
    return loss, photos(6), torch.arange(6) % 3


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("time", [8.0, 4096.0])
def test_image_gradient_against_finite_differences(name: str, time: float) -> None:
    loss, x, labels = objective(name, time)
    gradient, h = loss.gradient(x, labels), 1e-5
    for seed in range(4):
        along = torch.randn(x.shape, generator=draws(seed), dtype=torch.float64)
        rise = loss.value(x + h * along, labels) - loss.value(x - h * along, labels)
        assert float(rise / (2 * h)) == pytest.approx(float((gradient * along).sum()), rel=1e-5)


@pytest.mark.parametrize("name", KERNELS)
def test_image_gradient_does_not_depend_on_pieces(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, x, labels = objective(name, 64.0)
    whole = loss.gradient(x, labels)
    monkeypatch.setitem(ntga.WORKING_BYTES, "cpu", 8 * 16 * KERNELS[name].numbers(x))
    assert len(x.split(loss._side(x))) == 2
    torch.testing.assert_close(loss.gradient(x, labels), whole, rtol=1e-9, atol=1e-14)


def test_equal_images_have_finite_gradients() -> None:
    # Two equal images in a block, and one of them held out: the slope of ReLU's second moment has
    # no limit there and counts as zero.
    loss, x, labels = objective("cnn", 64.0)
    x[1] = x[0]
    x[2] = loss._others[0] / 255.0
    x[3], x[4] = 0, 1
    assert loss.gradient(x, labels).isfinite().all()


# --- the attack -------------------------------------------------------------------------------


def method(text: str) -> TangentAttack:
    made = build(METHODS, parse_one(text, METHODS))
    assert isinstance(made, TangentAttack)
    return made


def attacked(text: str) -> tuple[HeldOutLoss, Tensor, Tensor, Tensor]:
    """The loss on held-out images, a block, its labels, and what the attack adds to it."""
    made, train = method(text), small_splits().train
    images, labels = train.images[:30], train.labels[:30]
    others, other_labels = train.images[30:], train.labels[30:]
    delta = made.attack(crafting_job(made, train), images, labels, others, other_labels)
    time = {"fnn": 4096.0, "cnn": 8.0}[made.kernel]
    loss = HeldOutLoss(KERNELS[made.kernel], others, other_labels, 4, time)
    return loss, images.double() / 255, labels, delta.double()


@pytest.mark.parametrize("name", KERNELS)
def test_attack_raises_the_held_out_loss(name: str) -> None:
    loss, clean, labels, delta = attacked(f"ntga:kernel={name},steps=4")
    before, after = loss.value(clean, labels), loss.value(clean + delta, labels)
    signs = torch.randint(0, 2, delta.shape, generator=draws()) * 2 - 1
    noise = ((clean + 8 / 255 * signs).clamp(0, 1)) - clean
    by_chance = abs(loss.value(clean + noise, labels) - before)
    assert after - before > 3 * by_chance


@pytest.mark.parametrize("name", KERNELS)
def test_released_steps_are_one_step_of_the_whole_epsilon(name: str) -> None:
    loss, clean, labels, delta = attacked(f"ntga:kernel={name},iterate=restart")
    step = 8 / 255 * loss.gradient(clean.float(), labels).sign()
    expected = (clean + step).clamp(0, 1) - clean
    torch.testing.assert_close(delta, expected, rtol=0, atol=1e-6)
    made = method(f"ntga:kernel={name},iterate=restart")
    assert made.gradient_images(1000) == 1000
    assert method("ntga").gradient_images(1000) == 10_000


def test_steps_go_on_from_where_the_last_one_ended() -> None:
    loss, clean, labels, delta = attacked("ntga:kernel=fnn,steps=3")
    x, epsilon = clean.float(), 8 / 255
    for _ in range(3):
        x = x + 1.1 * epsilon / 3 * loss.gradient(x, labels).sign()
        low, high = clean.float() - epsilon, clean.float() + epsilon
        x = torch.minimum(torch.maximum(x, low), high).clamp(0, 1)
    # Gradients that are zero up to rounding may take either sign.
    assert (clean + delta - x).abs().gt(1e-5).double().mean() < 0.005


def test_held_out_images_are_balanced_and_lie_outside() -> None:
    labels = torch.arange(100).remainder(5).sort().values
    inside = torch.arange(0, 30)  # all of class 0, half of class 1
    outside = held_out(labels, inside, 40, draws())
    assert len(outside.unique()) == 40
    assert not torch.isin(outside, inside).any()
    assert labels[outside].bincount(minlength=5).tolist() == [0, 10, 10, 10, 10]
    assert not outside.equal(held_out(labels, inside, 40, draws(1)))


def test_blocks_are_random_and_cover_what_is_protected(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.arange(60, dtype=torch.uint8)[:, None, None, None].expand(60, 3, 4, 4)
    labels = torch.arange(60) // 30
    both = (0.5,) * 3
    train = ImageDataset(images.contiguous(), labels, ("a", "b"), "sorted", both, both)
    seen: list[tuple[list[int], list[int]]] = []

    def note(self: Any, job: Any, images: Tensor, labels: Tensor, others: Tensor, _: Tensor):
        seen.append((images[:, 0, 0, 0].tolist(), others[:, 0, 0, 0].tolist()))
        return torch.zeros(images.shape)

    monkeypatch.setattr(TangentAttack, "attack", note)
    made = method("ntga:block=20,held_out=0.2")
    made.craft(crafting_job(made, train, poison_ratio=0.75))
    assert [len(block) for block, _ in seen] == [20, 20, 5]
    rows = [row for block, _ in seen for row in block]
    mask = crafting_job(made, train, poison_ratio=0.75).mask
    assert sorted(rows) == mask.nonzero().flatten().tolist()
    for block, others in seen:
        assert 4 < sum(row < 30 for row in block[:20]) < 16 or len(block) < 20
        assert len(others) == 12
        assert sum(row < 30 for row in others) == 6
        assert not set(block) & set(others)


def test_a_block_leaves_enough_to_hold_out(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []

    def note(self: Any, job: Any, images: Tensor, labels: Tensor, others: Tensor, _: Tensor):
        sizes.append((len(images), len(others)))
        return torch.zeros(images.shape)

    monkeypatch.setattr(TangentAttack, "attack", note)
    made, train = method("ntga"), small_splits().train
    made.craft(crafting_job(made, train))
    assert sizes == [(38, 10), (10, 10)]


@pytest.mark.parametrize(
    "text",
    ["ntga:block=0", "ntga:steps=-1", "ntga:time=-1", "ntga:held_out=0", "ntga:held_out=1"],
)
def test_settings_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        method(text)


def test_one_image_is_too_few() -> None:
    train = small_splits().train
    one = train.subset(torch.tensor([0]))
    with pytest.raises(UsageError, match="two images at least"):
        method("ntga").check(one, torch.arange(1), 1)

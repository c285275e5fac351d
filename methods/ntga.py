"""Neural tangent generalization attack: training images from which a kernel machine mislearns.

Yuan, Chia-Hung, and Shan-Hung Wu. "Neural Tangent Generalization Attacks", ICML 2021. An infinitely
wide network that is trained for a time t by gradient flow on the mean squared error is a kernel
machine with a closed form. With its neural tangent kernel Theta, the images X of a block, their
one-hot labels Y, and held-out images X_v with labels y_v,

    p(X_v) = Theta(X_v, X) A^-1 (I - exp(-eta A t)) Y,     A = Theta(X, X) + ridge
    max over |X - X_0| <= epsilon of  CE(p(X_v), y_v)

by signed steps on X, block by block of 512 images (B-NTGA), in float64. As in the library that the
authors used, t counts steps of gradient descent with rate 1 on the mean over images and classes of
half the squared error, hence eta = 1 / (images x classes); the ridge is 1e-4 of the mean diagonal
of Theta(X, X); labels are not centred, which would not change the cross-entropy. The networks have
weights of variance 1.76 / fan-in and biases of variance .18:

    fnn   five times dense, erf; the last erf is the output
    cnn   twice conv 5 x 5 of stride 2 with zero padding, ReLU; then three dense layers without
          nonlinearities

As released the steps are lost: each of them starts from the clean image with the full epsilon, so
that ten equal one (`iterate=restart`). The published figures come from that code, with the t that
was best for each network on CIFAR-10: 8 for cnn, 4096 for fnn. The code's own default is 64, fnn.

Departures: the paper keeps 10 000 of the 50 000 training images clean, as X_v, and trains victims
without them. Here all images are released; so each block has an X_v of its own, a share of the
images outside the block, drawn with equal classes. The code drops what does not fill a block; here
the last one is smaller.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.component import setting
from bench.crafting import Crafting
from bench.data import ImageDataset
from bench.errors import UsageError
from bench.method import BoundedMethod
from bench.pgd import Iterate
from bench.registry import METHODS

WEIGHT_VARIANCE = 1.76
BIAS_VARIANCE = 0.18
RIDGE = 1e-4
"""Added to the diagonal of Theta(X, X), in units of its mean."""
BEST_TIME = {"fnn": 4096.0, "cnn": 8.0}
"""The paper's best t on CIFAR-10."""
WORKING_BYTES = {"cpu": 2**26, "cuda": 2**30}
"""What a piece of the kernel may take on its way; a processor likes it small."""

Features = tuple[Tensor, ...]


@METHODS.register("ntga")
@dataclass(frozen=True)
class TangentAttack(BoundedMethod):
    """Neural tangent generalization attack: raise the held-out loss of an infinite network."""

    paper: ClassVar[str] = "Yuan and Wu, Neural Tangent Generalization Attacks, ICML 2021"
    presets: ClassVar = {
        "quick": {"kernel": "fnn", "time": 64.0},
        "standard": {"held_out": 0.05},
    }

    kernel: Literal["cnn", "fnn"] = setting("cnn", "which infinitely wide network")
    time: float | None = setting(
        None, "t, steps of training; none: the paper's best, 8 for cnn and 4096 for fnn"
    )
    iterate: Literal["pgd", "restart"] = setting(
        "pgd", "restart: released code, one step of the full epsilon"
    )
    steps: int = setting(10, "T, signed steps; with restart one is enough")
    reach: float = setting(1.1, "T times the step size, over epsilon")
    block: int = setting(512, "images attacked together")
    held_out: float = setting(0.2, "share of the images that a block is attacked against")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block < 1 or self.steps < 0:
            raise ValueError("block must be 1 or more, and steps 0 or more")
        if self.time is not None and self.time < 0:
            raise ValueError(f"time={self.time:g} must not be negative")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out={self.held_out:g} must lie between 0 and 1, both excluded")

    def check(self, train: ImageDataset, rows: Tensor, total: int) -> None:
        """Something must remain beside the held-out images."""
        del rows, total
        if len(train) < 2:
            raise UsageError("ntga needs two images at least: one to change, one held out")

    @property
    def strides(self) -> tuple[int, float]:
        """How many steps are taken, and their size in units of [0, 1]."""
        if self.iterate == "restart":
            return min(self.steps, 1), self.epsilon
        return self.steps, self.reach * self.epsilon / max(self.steps, 1)

    def gradient_images(self, images: int) -> int:
        """One for each step; they go through the kernel, not through a network."""
        return images * self.strides[0]

    def craft(self, job: Crafting) -> Tensor:
        """Attack random blocks of the protected images, one after the other."""
        images = len(job.dataset)
        count = min(max(round(self.held_out * images), 1), images - 1)
        size = min(self.block, images - count)
        protected = job.mask.nonzero().flatten()
        order = protected[torch.randperm(len(protected), generator=job.stream("blocks"))]

        def perturb(block: Tensor, labels: Tensor, number: int) -> Tensor:
            inside = order[number * size : (number + 1) * size]
            outside = held_out(job.dataset.labels, inside, count, job.stream("held-out", number))
            return self.attack(job, block, labels, *job.batch(outside))

        return job.each_chunk(perturb, size, "blocks", order)

    def attack(
        self, job: Crafting, images: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor
    ) -> Tensor:
        """Signed steps of one block up the loss on held-out images.

        Args:
            job: told about progress.
            images: X_0, (n, 3, h, w) uint8.
            labels: (n,) int64.
            others: X_v, (m, 3, h, w) uint8.
            other_labels: (m,) int64.

        Returns:
            delta, (n, 3, h, w) float32 in units of [0, 1].
        """
        time = BEST_TIME[self.kernel] if self.time is None else self.time
        objective = HeldOutLoss(KERNELS[self.kernel], others, other_labels, job.classes, time)
        x = Iterate(images, self.budget)
        steps, size = self.strides
        for _ in range(steps):
            x.descend(objective.gradient(x.images, labels), -size)
            job.spend(len(labels))
        return x.delta


def held_out(labels: Tensor, inside: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """Row numbers of held-out images, with as equal classes as there are images for.

    Args:
        labels: (n,) int64, of all images.
        inside: rows that may not be taken.
        count: how many.
        draws: random numbers.
    """
    order = torch.randperm(len(labels), generator=draws)
    order = order[~torch.isin(order, inside)]
    by_class = labels[order].sort(stable=True).indices
    sizes = torch.bincount(labels[order])
    starts = sizes.cumsum(0) - sizes
    rank = torch.empty_like(order)  # of each image among those of its class
    rank[by_class] = torch.arange(len(order)) - starts.repeat_interleave(sizes)
    return order[rank.sort(stable=True).indices[:count]]


# --- the kernel machine -----------------------------------------------------------------------


class HeldOutLoss:
    """The sum of CE(p(X_v), y_v) as a function of the training images X.

    Args:
        kernel: Theta.
        others: X_v, (m, 3, h, w) uint8.
        labels: y_v, (m,) int64.
        classes: how many there are.
        time: t.
    """

    def __init__(
        self, kernel: Kernel, others: Tensor, labels: Tensor, classes: int, time: float
    ) -> None:
        self._kernel, self._classes, self._time = kernel, classes, time
        # There is no float64 on Apple's GPUs.
        self._device = torch.device("cpu") if others.device.type == "mps" else others.device
        self._others = others.to(self._device)
        self._wanted = self._one_hot(labels)

    def value(self, x: Tensor, labels: Tensor) -> Tensor:
        """The loss of the machine trained on (n, 3, h, w) images in [0, 1]: a float64 scalar."""
        x = x.to(self._device, torch.float64)
        with_train, with_others = self._kernels(x)
        scores = predict(with_train, with_others, self._one_hot(labels), self._time)
        return F.cross_entropy(scores, self._wanted, reduction="sum")

    def gradient(self, x: Tensor, labels: Tensor) -> Tensor:
        """Its gradient with respect to those images; on their device, in their precision."""
        clean = x.detach().to(self._device, torch.float64)
        targets = self._one_hot(labels)
        to_train, to_others = kernel_gradients(
            *self._kernels(clean), targets, self._wanted, self._time
        )
        # Theta(X, X) is symmetric: both of its arguments give the same gradient.
        weights = torch.cat([2 * to_train, to_others])
        return pull_back(self._kernel, self._pieces(clean), self._tiles(clean), weights).to(x)

    def _kernels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Theta(X, X) and Theta(X_v, X)."""
        with torch.no_grad():
            tiles = [self._kernel.features(tile) for tile in self._tiles(x)]
            rows = []
            for piece in self._pieces(x):
                left = self._kernel.features(piece)
                rows.append(torch.cat([self._kernel.between(left, t) for t in tiles], 1))
        whole = torch.cat(rows)
        return whole[: len(x)], whole[len(x) :]

    def _pieces(self, x: Tensor) -> Iterator[Tensor]:
        """X, then X_v, float64 in [0, 1], a few at a time."""
        yield from self._tiles(x)
        for images in self._others.split(self._side(x)):
            yield images.double() / 255

    def _tiles(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(self._side(x))

    def _side(self, x: Tensor) -> int:
        """As many images as can meet as many others in one piece of work."""
        room = WORKING_BYTES["cuda" if x.is_cuda else "cpu"]
        return max(math.isqrt(room // (8 * self._kernel.numbers(x))), 1)

    def _one_hot(self, labels: Tensor) -> Tensor:
        return F.one_hot(labels.to(self._device), self._classes).double()


def predict(with_train: Tensor, with_others: Tensor, targets: Tensor, time: float) -> Tensor:
    """What the kernel machine says of other images after training for a time.

    Args:
        with_train: Theta(X, X), (n, n) float64.
        with_others: Theta(X_v, X), (m, n).
        targets: Y, (n, classes).
        time: t, in steps of gradient descent; infinity gives kernel regression.

    Returns:
        p(X_v), (m, classes).
    """
    values, vectors = torch.linalg.eigh(_with_ridge(with_train))
    learned = _learned(values, time / targets.numel())
    return with_others @ (vectors @ (learned[:, None] * (vectors.T @ targets)))


def kernel_gradients(
    with_train: Tensor, with_others: Tensor, targets: Tensor, wanted: Tensor, time: float
) -> tuple[Tensor, Tensor]:
    """Gradients of the summed cross-entropy of `predict` with respect to both kernels.

    The one through the matrix function phi(A) = A^-1 (I - exp(-eta A t)) is Daleckii and Krein's:
    with A = U diag(a) U^T and G the gradient with respect to phi(A), it is U (F * U^T G U) U^T,
    where F holds the divided differences of phi. These stay finite where eigenvalues meet, which
    the gradients of eigenvectors do not.

    Args:
        with_train: Theta(X, X), (n, n) float64.
        with_others: Theta(X_v, X), (m, n).
        targets: Y, (n, classes).
        wanted: one-hot y_v, (m, classes).
        time: t.

    Returns:
        (n, n), symmetric, and (m, n).
    """
    rate = time / targets.numel()
    values, vectors = torch.linalg.eigh(_with_ridge(with_train))
    turned = vectors.T @ targets
    weights = vectors @ (_learned(values, rate)[:, None] * turned)
    surplus = (with_others @ weights).softmax(1) - wanted
    inner = (vectors.T @ (with_others.T @ surplus)) @ turned.T
    inner = (inner + inner.T) / 2 * _divided_differences(values, rate)
    to_train = vectors @ inner @ vectors.T
    to_train.diagonal().add_(RIDGE * to_train.trace() / len(to_train))
    return to_train, surplus @ weights.T


def _with_ridge(kernel: Tensor) -> Tensor:
    ridge = RIDGE * kernel.trace() / len(kernel)
    return kernel + ridge * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)


def _learned(values: Tensor, rate: float) -> Tensor:
    """Phi(a) = (1 - exp(-a rate)) / a."""
    values = values.clamp_min(1e-300)
    return -torch.expm1(-values * rate) / values


def _divided_differences(values: Tensor, rate: float) -> Tensor:
    """(phi(a) - phi(b)) / (a - b) for all pairs of values; phi' where they are close.

    With z = a rate, phi(a) = rate E(z). At the border of the two branches, values that differ by
    1e-5 of themselves, either loses some five of sixteen digits.
    """
    z = values.clamp_min(0) * rate
    gap, middle = z[:, None] - z, (z[:, None] + z) / 2
    e = _learned(z, 1.0)
    close = gap.abs() <= 1e-5 * middle.clamp_min(1)
    quotient = (e[:, None] - e) / torch.where(close, 1, gap)
    return rate**2 * torch.where(close, _slope(middle), quotient)


def _slope(z: Tensor) -> Tensor:
    """E'(z) of E(z) = (1 - exp(-z)) / z; by its series where the closed form cancels."""
    series = torch.zeros_like(z)
    for n in reversed(range(6)):
        series = (n + 1) / math.factorial(n + 2) - z * series
    safe = z.clamp_min(0.02)
    closed = (torch.exp(-safe) * (1 + safe) - 1) / safe**2
    return torch.where(z < 0.02, -series, closed)


def pull_back(
    kernel: Kernel, pieces: Iterator[Tensor], tiles: Sequence[Tensor], weights: Tensor
) -> Tensor:
    """The gradient of sum(weights * Theta(left, X)) with respect to X.

    Args:
        kernel: Theta.
        pieces: the left images, in order, a few at a time.
        tiles: X in pieces of its own, (.., 3, h, w) float64.
        weights: (left images, images of X).
    """
    leaves = [tile.detach().requires_grad_() for tile in tiles]
    features = [kernel.features(leaf) for leaf in leaves]
    # Gradients gather in copies, so that what leads from the images to them is gone back once.
    ends = [tuple(part.detach().requires_grad_() for part in parts) for parts in features]
    sizes = [len(tile) for tile in tiles]
    done = 0
    for piece in pieces:
        with torch.no_grad():
            left = kernel.features(piece)
        rows = weights[done : done + len(piece)]
        for right, part in zip(ends, rows.split(sizes, 1), strict=True):
            (kernel.between(left, right) * part).sum().backward()
        done += len(piece)
    gradients = [
        torch.autograd.grad(parts, leaf, [end.grad for end in right])[0]
        for parts, leaf, right in zip(features, leaves, ends, strict=True)
    ]
    return torch.cat(gradients)


# --- neural tangent kernels -------------------------------------------------------------------


class Kernel(Protocol):
    """The neural tangent kernel of an infinitely wide network."""

    def features(self, x: Tensor) -> Features:
        """What it needs to know of images alone: (n, 3, h, w) float64 in [0, 1]."""
        ...

    def between(self, left: Features, right: Features) -> Tensor:
        """Theta between the images of two features, (n, m)."""
        ...

    def numbers(self, x: Tensor) -> int:
        """How many float64 it holds at once for each pair of images, about."""
        ...


class Dense:
    """Layers of dense, erf; each neuron of the last is an output.

    Args:
        layers: how many.
    """

    def __init__(self, layers: int) -> None:
        self._layers = layers

    def features(self, x: Tensor) -> Features:
        """Pixels over the root of their number, and each layer's variance."""
        flat = x.flatten(1)
        flat = flat / math.sqrt(flat.shape[1])
        variances = [_affine((flat * flat).sum(1))]
        for _ in range(self._layers - 1):
            v = variances[-1]
            variances.append(_affine(erf_moments(v, v, v)[0]))
        return flat, *variances

    def between(self, left: Features, right: Features) -> Tensor:
        """Layer by layer: covariance k, tangent kernel theta."""
        k = theta = _affine(left[0] @ right[0].T)
        for layer in range(1, self._layers + 1):
            k, slope = erf_moments(k, left[layer][:, None], right[layer])
            theta = theta * slope
            if layer < self._layers:
                k = _affine(k)
                theta = k + WEIGHT_VARIANCE * theta
        return theta

    def numbers(self, x: Tensor) -> int:
        """Some ten a layer."""
        del x
        return 10 * self._layers


class Convolutional:
    """Two 5 x 5 convolutions of stride 2 with ReLU, then dense layers without nonlinearities.

    There is no pooling, so only equal positions of two images ever meet.

    Args:
        dense: how many dense layers.
    """

    SIDE, STRIDE = 5, 2

    def __init__(self, dense: int) -> None:
        self._dense = dense

    def features(self, x: Tensor) -> Features:
        """Patches (positions, n, values), and both layers' variances (height, width, n)."""
        high, wide = (self._windows(size, x.device) for size in x.shape[2:])
        padded = F.pad(x, (*self._padding(x.shape[3]), *self._padding(x.shape[2])))
        patches = F.unfold(padded, self.SIDE, stride=self.STRIDE).permute(2, 0, 1).contiguous()
        patches = patches / math.sqrt(patches.shape[2])
        first = _affine((patches * patches).sum(2)).unflatten(0, (len(high), len(wide)))
        second = _affine(self._gather(first / 2))
        return patches, first, second

    def between(self, left: Features, right: Features) -> Tensor:
        """Layer by layer: covariance k, tangent kernel theta, (height, width, n, m)."""
        k = theta = _affine(left[0] @ right[0].mT).unflatten(0, left[1].shape[:2])
        k, slope = relu_moments(k, left[1][..., None], right[1][..., None, :])
        theta = self._gather(theta * slope)
        k = _affine(self._gather(k))
        theta = k + WEIGHT_VARIANCE * theta
        k, slope = relu_moments(k, left[2][..., None], right[2][..., None, :])
        k, theta = k.mean((0, 1)), (theta * slope).mean((0, 1))
        for _ in range(self._dense):
            k = _affine(k)
            theta = k + WEIGHT_VARIANCE * theta
        return theta

    def numbers(self, x: Tensor) -> int:
        """Some ten for each position of the first layer."""
        return 10 * math.prod(-(-size // self.STRIDE) for size in x.shape[2:])

    def _gather(self, values: Tensor) -> Tensor:
        """Mean over each window of (height, width, ...), zeros beyond the border."""
        height, width, *rest = values.shape
        high, wide = (self._windows(size, values.device) for size in (height, width))
        rows = (high @ values.reshape(height, -1)).view(len(high), width, -1)
        return (wide @ rows).unflatten(2, rest)

    def _windows(self, size: int, device: torch.device) -> Tensor:
        """(windows, size): 1/5 where a window covers a pixel."""
        starts = torch.arange(0, size, self.STRIDE, device=device) - self._padding(size)[0]
        place = torch.arange(size, device=device) - starts[:, None]
        return ((place >= 0) & (place < self.SIDE)).double() / self.SIDE

    def _padding(self, size: int) -> tuple[int, int]:
        """Before and after, so that size / stride windows fit, rounded up."""
        whole = max((-(-size // self.STRIDE) - 1) * self.STRIDE + self.SIDE - size, 0)
        return whole // 2, whole - whole // 2


KERNELS: dict[str, Kernel] = {"fnn": Dense(5), "cnn": Convolutional(3)}


def _affine(k: Tensor) -> Tensor:
    """The covariance behind a layer of weights and biases."""
    return WEIGHT_VARIANCE * k + BIAS_VARIANCE


def erf_moments(k: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """E[erf(a) erf(b)] and E[erf'(a) erf'(b)] of normal a, b with mean zero.

    Args:
        k: their covariance.
        v: variance of a, shaped to broadcast.
        w: variance of b.
    """
    product = (1 + 2 * v) * (1 + 2 * w)
    return 2 / math.pi * torch.asin(2 * k * product.rsqrt()), 4 / math.pi * (
        product - 4 * k * k
    ).rsqrt()


def relu_moments(k: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """E[relu(a) relu(b)] and E[relu'(a) relu'(b)]; arguments as for `erf_moments`."""
    return _ReluMoments.apply(k, v, w)  # type: ignore[return-value]


class _ReluMoments(torch.autograd.Function):
    """Moments of ReLU with a gradient by hand.

    With r^2 = v w - k^2 and the angle between a and b, tan(angle) = r / k,

        E[relu' relu'] = (pi - angle) / (2 pi),    E[relu relu] = k E[relu' relu'] + r / (2 pi)

    The second moment has no slope where r = 0. There, on the diagonal of Theta(X, X), a and b are
    the same and stay so, hence the slope counts as 0. By hand it also takes less memory.
    """

    SAME = 1e-14
    """Up to this r^2 / (v w), a and b are the same; rounding makes it some 1e-16."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        product = v * w
        rest = product - k * k
        rest = torch.where(rest > _ReluMoments.SAME * product, rest, 0).sqrt_()
        both = torch.atan2(rest, k).neg_().add_(math.pi).div_(2 * math.pi)
        ctx.save_for_backward(k, v, w, rest, both)
        return torch.addcmul(rest / (2 * math.pi), k, both), both

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        k, v, w, rest, both = ctx.saved_tensors
        first, second = gradients
        steep = torch.where(rest > 0, second / rest, 0).div_(2 * math.pi)
        to_k = torch.addcmul(steep, first, both)
        shared = (first * rest).div_(4 * math.pi).sub_(steep.mul_(k).div_(2))
        to_v = (shared / v).sum_to_size(v.shape) if ctx.needs_input_grad[1] else None
        return to_k, to_v, (shared / w).sum_to_size(w.shape)

"""Gradient shaping by sample: clip the gradient of each image, add noise to their sum.

DP-SGD (Abadi et al., "Deep Learning with Differential Privacy", CCS 2016) as a defense: Hong et
al., "On the Effectiveness of Mitigating Data Poisoning Attacks with Gradient Shaping" (2020). With
g_i the gradient of image i's loss, over all weights at once, and B images in the batch:

    g = (1/B) (sum over i of  g_i min(1, C / |g_i|)  +  N(0, (C s)^2) in every coordinate)

so that no image moves the weights by more than its share of C. Hong et al. try it on small networks
and give no figures for unlearnable images.

`dpsgd-batch` clips one gradient a batch and does not divide its noise; the two share (C, s) by name
only. The s = .005 that stands in this field's tables belongs to that one: here it would be a
deviation of 3.9e-5 a coordinate at B = 128, which nobody notices. s = .1 gives 7.8e-4: in a
ResNet-18 of 11.2 million weights a noise of length 2.6 beside a gradient of length 1 at most.

That is slow learning above all. At the start every image's gradient is clipped, on a quarter
ResNet-18 from some 30 to 1, and since they point apart their mean has length .14, where it had 4.7;
the noise is nine times that. A short recipe ends where plain training is after two epochs, and that
a protection takes nothing from such a victim says only that it has learned nothing yet.

A batch norm mixes the images of a batch and has no gradients of single ones, so each becomes a
group norm, of gcd(groups, channels) groups, as is customary, with the batch norm's eps and
whatever activation it carried along. That is another network: compare with a clean control under
this defense. Where a map of one pixel meets groups of one channel, nothing would be left of it;
that is refused, and fewer `groups` help. Networks with torchvision's stochastic depth cannot be
had: it draws in place for the whole batch, which PyTorch cannot take apart by image.

`privacy_epsilon` at `privacy_delta`, the power of ten at or below 1/n, is the customary account: of
the subsampled Gaussian mechanism by integer Renyi orders (Mironov et al. 2019, converted as by
Canonne et al. 2020), at sampling rate B/n. It is an approximation, since batches here are shuffled
and not drawn by Poisson sampling; behind a defense that mixes images it says nothing. From about 10
on there is no privacy worth the name, and fractional orders would give another large number; what
mitigates poisoning is the clipping and the noise themselves.

Opacus is not used: it refuses in-place additions and activations, and wants a loader of its own.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from bench.component import setting
from bench.data import ImageDataset
from bench.defense import Defense, Step
from bench.errors import UsageError
from bench.network import Arch, Network
from bench.recipe import Recipe
from bench.registry import DEFENSES
from bench.seeding import on_device

AT_ONCE = 32
"""Images whose gradients are computed together; with 64, processors take nearly twice as long."""
GRADIENT_BYTES = 2**30
"""Memory for these gradients: of a full ResNet-18, 24 fit."""
ORDERS = range(2, 257)
"""Renyi orders among which the best is taken."""


@DEFENSES.register("dpsgd-sample")
@dataclass(frozen=True)
class SampleGradientShaping(Defense):
    """Clips the gradient of each image and adds Gaussian noise to their sum; no batch norm."""

    paper: ClassVar[str] = "Hong et al., Mitigating Data Poisoning with Gradient Shaping, 2020"
    changes_architecture: ClassVar[bool] = True

    clip: float = setting(1.0, "C, largest length of the gradient of one image")
    noise: float = setting(
        0.1,
        "s; the sum of gradients gets noise of standard deviation C s in every coordinate. The "
        "privacy_epsilon of the record is approximate: batches are shuffled, not Poisson samples",
    )
    groups: int = setting(32, "of a group norm, or their common divisor with its channels")

    def __post_init__(self) -> None:
        if not 0 < self.clip < math.inf or not 0 <= self.noise < math.inf:
            raise ValueError("clip must be above 0, noise must not be negative, both finite")
        if self.groups < 1:
            raise ValueError(f"groups={self.groups} must be 1 or more")

    def cost(self) -> float:
        """As measured: a quarter ResNet-18, 64 images, fp32, one thread, 2.9 plain steps."""
        return 3.0

    def facts(self, recipe: Recipe, images: int, weights: int | None) -> Mapping[str, float]:
        """The customary account; none without noise, where epsilon is infinite."""
        del weights
        rate = min(recipe.batch_size / images, 1.0)
        steps = recipe.epochs * len(recipe.batches(images))
        delta = 10.0 ** -math.ceil(math.log10(images))
        spent = privacy_spent(rate, self.noise, steps, delta)
        return {"privacy_epsilon": spent, "privacy_delta": delta} if math.isfinite(spent) else {}

    def build(self, arch: Arch, dataset: ImageDataset, stream: torch.Generator) -> Network:
        """The architecture's network with group norms in the places of its batch norms."""
        network = super().build(arch, dataset, stream)
        replace_batch_norms(network, self.groups)
        try:
            freeze_unreached(network, dataset.image_size)
        except ValueError as error:
            reason = str(error).partition("\n")[0]
            raise UsageError(
                f"{arch.name} cannot take {self.groups} groups ({reason}); write groups=1, or "
                "train a wider network"
            ) from error
        return network

    def backward(self, network: Network, images: Tensor, soft_labels: Tensor, step: Step) -> Tensor:
        """Clip the gradients of single images, sum, add noise, and divide by their number."""
        weights = {name: w for name, w in network.named_parameters() if w.requires_grad}
        sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        fitting = GRADIENT_BYTES // (4 * sum(weight.numel() for weight in weights.values()))
        size = min(max(fitting, 1), AT_ONCE)
        losses, logits = [], []
        for x, y in zip(images.split(size), soft_labels.split(size), strict=True):
            gradients, losses_here, logits_here = sample_gradients(network, weights, x, y)
            squares = sum(gradient.flatten(1).square().sum(1) for gradient in gradients.values())
            shares = self.clip / torch.as_tensor(squares).sqrt().clamp_min(self.clip)
            for name, gradient in gradients.items():
                sums[name] += torch.tensordot(shares, gradient, 1)
            losses.append(losses_here)
            logits.append(logits_here)
        if self.noise:
            draws = on_device(step.stream, images.device)
            for total in sums.values():
                drawn = torch.empty_like(total).normal_(generator=draws)
                total.add_(drawn, alpha=self.clip * self.noise)
        for name, weight in weights.items():
            weight.grad = sums[name].div_(len(images))
        tell(network, images, torch.cat(logits))
        return torch.cat(losses).mean()


def sample_gradients(
    network: Network, weights: Mapping[str, Tensor], images: Tensor, soft_labels: Tensor
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The gradient of each image's own loss.

    Args:
        network: without batch norm, in any mode; layers that draw do so for each image.
        weights: parameters by name, of which the gradients are wanted.
        images: (b, 3, h, w) float32.
        soft_labels: (b, classes) float32.

    Returns:
        Gradients by name, each with a first dimension of b; losses (b,); logits (b, classes).
    """
    bare = _Bare(network)

    def loss_of_one(
        weights: Mapping[str, Tensor], image: Tensor, soft_label: Tensor
    ) -> tuple[Tensor, Tensor]:
        named = {f"network.{name}": weight for name, weight in weights.items()}
        logits = functional_call(bare, named, (image[None],))
        return F.cross_entropy(logits, soft_label[None]), logits[0]

    each = vmap(
        grad_and_value(loss_of_one, has_aux=True), in_dims=(None, 0, 0), randomness="different"
    )
    detached = {name: weight.detach() for name, weight in weights.items()}
    # Of the kernels for attention, this one is made of operations that can be taken apart by image.
    with sdpa_kernel(SDPBackend.MATH):
        gradients, (losses, logits) = each(detached, images, soft_labels)
    return gradients, losses, logits


class _Bare(nn.Module):
    """A network without its own hooks, which would see the stand-ins that `vmap` computes with."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Logits (b, classes)."""
        return self.network.forward(images)


def tell(network: Network, images: Tensor, logits: Tensor) -> None:
    """Show logits to the network's hooks, as if it had just computed them from the images.

    The training loop takes train accuracy by such a hook. A forward pass of the whole batch would
    do, too, for a seventh of the step's time.
    """
    vars(network)["forward"] = lambda images: logits
    try:
        network(images)
    finally:
        del network.forward


def replace_batch_norms(network: nn.Module, groups: int) -> None:
    """Put a group norm in the place of every batch norm."""
    for name, module in list(network.named_modules()):
        if isinstance(module, _BatchNorm):
            network.set_submodule(name, group_norm(module, groups))


def group_norm(batch_norm: _BatchNorm, groups: int) -> nn.Module:
    """A group norm with the weights of a batch norm.

    Args:
        batch_norm: of any kind. timm's have layers of their own, such as an activation, that they
            apply to what they have normalised: these follow the group norm.
        groups: of channels; their greatest common divisor with the number of channels is taken.
    """
    channels = batch_norm.num_features
    norm = nn.GroupNorm(math.gcd(groups, channels), channels, batch_norm.eps, batch_norm.affine)
    norm.load_state_dict(dict(batch_norm.named_parameters(recurse=False)))
    followers = dict(batch_norm.named_children())
    return nn.Sequential(OrderedDict(norm=norm, **followers)) if followers else norm


def freeze_unreached(network: Network, image_size: tuple[int, int]) -> None:
    """Let weights that no image reaches learn nothing: plain training leaves them alone.

    The gradients of single images would count them as zeros, and noise would move them.
    """
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    network.eval()  # so that nothing is drawn
    score = network(torch.full((1, 3, *image_size), 0.5)).sum()
    for weight, gradient in zip(
        weights, torch.autograd.grad(score, weights, allow_unused=True), strict=True
    ):
        weight.requires_grad_(gradient is not None)
    network.train()


@cache
def privacy_spent(rate: float, noise: float, steps: int, delta: float) -> float:
    """Epsilon of the subsampled Gaussian mechanism, at the best integer order.

    Of one step at order a, with n = a and the binomial law of k draws at the rate q, the Renyi
    divergence is  log(sum over k of  B(n, k) q^k (1 - q)^(n - k) exp(k (k - 1) / (2 s^2)))/(a - 1).

    Args:
        rate: q, share of the images in a batch.
        noise: s; without any, epsilon is infinite.
        steps: how many there are.
        delta: above 0.
    """
    if not noise:
        return math.inf
    q = torch.tensor(rate, dtype=torch.float64)
    found = [math.inf]
    for order in ORDERS:
        n, k = torch.tensor(order, dtype=torch.float64), torch.arange(order + 1).double()
        chosen = (n + 1).lgamma() - (k + 1).lgamma() - (n - k + 1).lgamma()
        drawn = torch.xlogy(k, q) + torch.xlogy(n - k, 1 - q)
        moment = (chosen + drawn + k * (k - 1) / (2 * noise**2)).logsumexp(0).item()
        conversion = math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
        found.append(steps * moment / (order - 1) + conversion)
    return max(min(found), 0.0)

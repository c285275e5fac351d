"""Transferable unlearnable examples: noise whose classes are told apart, whoever learns from it.

Ren, Jie, et al. "Transferable Unlearnable Examples", ICLR 2023. Noise minimises a contrastive loss
plus a measure of how badly the noises of different classes are separated,

    CSD = mean over i != j of  (s_i + s_j) / d_ij

s_i is the mean distance of a batch's noises of class i to their mean c_i, and d_ij = |c_i - c_j|;
the code adds 1e-5 to numerator and denominator, and takes s as a constant, so that only the centres
are driven apart. Its recipes for CIFAR-10 with SimCLR and with SimSiam give the contrastive loss a
weight of 0: the noise then depends on no network, and none is trained here. The recipe with MoCo,
of weight 1, is another method and is not built.

A step is delta <- clip_eps(clip_[0,1](x + delta) - .8/255 sign(grad CSD) - x), from uniform noise.
SimCLR's recipe has 40 epochs of 98 batches of 512, and after every 20 training steps, as well as
after the 18 that are left of an epoch, a round of K = 20 noise steps on all images, shuffled into
batches of 512: 200 rounds (SimSiam's 50 epochs, a round after every 25, make 200, too). All images
of a class move alike, so that after some ten rounds their noises are equal, but for where [0, 1]
clips them, and nothing moves any more: rounds end when one has changed no bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.component import setting
from bench.crafting import Crafting
from bench.data import portion
from bench.method import BoundedMethod
from bench.registry import METHODS

STABILISER = 1e-5


@METHODS.register("tue")
@dataclass(frozen=True)
class TransferableNoise(BoundedMethod):
    """Noise with class centres driven apart, as in the recipes with SimCLR; no network."""

    paper: ClassVar[str] = "Ren et al., Transferable Unlearnable Examples, ICLR 2023"
    presets: ClassVar = {"quick": {"rounds": 10}}

    rounds: int = setting(200, "rounds at most; they end when nothing moves any more")
    noise_steps: int = setting(20, "K, noise steps a round")
    step_ratio: float = setting(0.1, "noise step over epsilon")
    batch: int = setting(512, "images whose noises are compared")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch < 1 or min(self.rounds, self.noise_steps) < 0:
            raise ValueError("batch must be 1 or more, and rounds and noise_steps 0 or more")

    def craft(self, job: Crafting) -> Tensor:
        """Rounds over all images in batches that are shuffled anew each time."""
        rows = job.mask.nonzero().flatten()
        saved = job.load("rounds")
        if saved is None:
            delta, rounds, still = self._start(job), 0, False
        else:
            delta, rounds, still = saved["delta"], saved["rounds"], saved["still"]
        while rounds < self.rounds and not still and len(rows):
            order = torch.randperm(len(rows), generator=job.stream("order", rounds))
            still = True
            for batch in rows[order].split(self.batch):
                images, labels = job.batch(batch)
                before = delta[batch]
                after = self.improve(
                    images.contiguous() / 255, before.to(job.device), labels, job.classes
                ).cpu()
                still = still and after.equal(before)
                delta[batch] = after
            rounds += 1
            job.save("rounds", partial(dict, delta=delta, rounds=rounds, still=still))
        job.report("rounds", rounds)
        return delta

    def improve(self, clean: Tensor, noise: Tensor, labels: Tensor, classes: int) -> Tensor:
        """K signed steps down the CSD of one batch.

        Args:
            clean: (b, 3, h, w) float32 in [0, 1].
            noise: the same shape, in [-epsilon, epsilon].
            labels: (b,) int64.
            classes: how many there are in all.
        """
        size = self.step_ratio * self.epsilon
        for _ in range(self.noise_steps):
            step = size * csd_gradient(noise.flatten(1), labels, classes).sign()
            x = (clean + noise).clamp(0, 1) - step[labels].view_as(noise)
            noise = (x - clean).clamp(-self.epsilon, self.epsilon)
        return noise

    def _start(self, job: Crafting) -> Tensor:
        """Uniform noise for the protected images, drawn for all of them."""
        draws, delta = job.stream("start"), job.blank()
        for rows in torch.arange(len(delta)).split(portion(delta)):
            drawn = torch.rand((len(rows), *delta.shape[1:]), generator=draws)
            delta[rows] = (2 * drawn - 1) * self.epsilon * job.mask[rows, None, None, None]
        return delta


def csd_gradient(noise: Tensor, labels: Tensor, classes: int) -> Tensor:
    """What the CSD of a batch has as gradient for each image of a class, up to a positive factor.

    The sum over j of (s_i + s_j) (c_j - c_i) / d_ij^3, with the stabilisers in their places. The
    factor is 2 over the number of ordered pairs and over the images of the class.

    Args:
        noise: (b, d) float.
        labels: (b,) int64.
        classes: how many there are in all; those without images in the batch do not count.

    Returns:
        (classes, d), zero for classes that are absent or alone.
    """
    member = F.one_hot(labels, classes).to(noise)
    counts = member.sum(0)
    here = counts > 0
    share = member / counts.clamp_min(1)
    centers = share.T @ noise
    s = share.T @ (noise - centers[labels]).norm(dim=1)
    d = torch.cdist(centers, centers, compute_mode="donot_use_mm_for_euclid_dist")
    weight = (s[:, None] + s + STABILISER) / ((d + STABILISER).square() * d.clamp_min(1e-30))
    # Centres that coincide have no direction, as autograd has it, and absent ones are none.
    weight = torch.where((d > 0) & here[:, None] & here, weight, 0.0)
    return weight @ centers - weight.sum(1, keepdim=True) * centers

"""Robust error-minimising noise: unlearnable to adversarial training, too.

Fu, Shaopeng, et al. "Robust Unlearnable Examples: Protecting Data Against Adversarial Learning",
ICLR 2022 (RULE in SEP's tables, REM elsewhere). With random crops and flips t:

    min over theta, min over |delta_u| <= rho_u of
        E_t [ max over |delta_a| <= rho_a of  CE(f_theta(t(x + delta_u) + delta_a), y) ]

One visit to a batch begins at a fresh delta ~ U(-rho_u, rho_u) and takes K_u steps

    z_j    = t_j(x + delta),                                             j = 1..J
    z_j^a  = the end of K_a steps of PGD up CE(f(z), y) in the rho_a ball around z_j
    delta <- Pi(delta - a_u sign(sum over j of  (dz_j / dx)^T grad CE(f(z_j^a), y)))

so that z^a moves one to one with z: the inner maximum is not differentiated. Then delta is stored
in whole grey levels (Pi keeps x + delta in [0, 1], too, where the code cuts it off only when it is
looked at), and theta takes one step of SGD on t(x + delta) after PGD, with a new t. After all
visits every batch of one more shuffled pass gets its final noise. That pass, too, leaves out
the last partial batch, whose images keep an older noise, or none if they were never visited.

The defaults are the released code's on CIFAR-10. Its ImageNet subset takes
`rule:iterations=3000,steps=7,step_ratio=0.25,inner_steps=7,inner_step_ratio=0.25,draws=4`. There as
here the learning rate falls to a tenth after two and after four fifths of the iterations. Images
reach the network minus 0.5, and crops have black borders. Attacks are computed in eval mode.

Without the inner maximum (`radius_ratio=0` or `inner_steps=0`) this is error-minimising noise in
expectation over t; as in the code there is then no random start either. APBench's REM is another
algorithm, without expectation and without adversarial training, and is not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.augment import Crops, cut
from bench.budget import Budget
from bench.component import setting
from bench.crafting import Crafting
from bench.data import chunks, portion
from bench.method import BoundedMethod
from bench.network import Network, freeze
from bench.pgd import Iterate, input_gradient
from bench.registry import METHODS

DECAYS = (0.4, 0.8)
"""Shares of the iterations after which the learning rate is divided by ten."""


@METHODS.register("rule", also=("REM",))
@dataclass(frozen=True)
class RobustErrorMinimising(BoundedMethod):
    """Error-minimising noise against an adversarially trained network (REM)."""

    paper: ClassVar[str] = "Fu et al., Robust Unlearnable Examples, ICLR 2022"
    presets: ClassVar = {
        "quick": {
            "iterations": 160,
            "steps": 3,
            "step_ratio": 0.5,
            "draws": 1,
            "inner_steps": 1,
            "inner_step_ratio": 1.0,
        },
        "standard": {
            "iterations": 2000,
            "steps": 3,
            "step_ratio": 0.5,
            "draws": 1,
            "inner_steps": 1,
            "inner_step_ratio": 1.0,
        },
    }

    iterations: int = setting(5000, "batches visited, each with a training step")
    steps: int = setting(10, "K_u, noise steps a visit")
    step_ratio: float = setting(0.2, "a_u, noise step over epsilon, which is rho_u")
    radius_ratio: float = setting(0.5, "rho_a over epsilon, the radius of the inner maximum")
    inner_steps: int = setting(10, "K_a, steps up to the inner maximum")
    inner_step_ratio: float = setting(0.2, "a_a, such a step over rho_a")
    draws: int = setting(5, "J, crops and flips of an image at each noise step")
    crop_padding: int = setting(4, "largest shift of a random crop, in pixels")
    flip: bool = setting(True, "mirror half of the images")
    batch: int = setting(128, "images a visit")
    lr: float = setting(0.1, "learning rate of the network, momentum 0.9, weight decay 5e-4")
    surrogate: str = setting("rn18", "the network's architecture")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epsilon * 255 >= 128:
            raise ValueError(f"epsilon={self.epsilon:g} must be below 128/255")
        if self.batch < 1 or self.draws < 1:
            raise ValueError("batch and draws must be 1 or more")
        if min(self.iterations, self.steps, self.inner_steps, self.crop_padding) < 0:
            raise ValueError("iterations, steps, inner_steps and crop_padding must be 0 or more")
        if min(self.step_ratio, self.radius_ratio, self.inner_step_ratio, self.lr) < 0:
            raise ValueError("ratios and lr must not be negative")

    @property
    def radius(self) -> float:
        """rho_a, in units of [0, 1]."""
        return self.radius_ratio * self.epsilon

    @property
    def ascents(self) -> int:
        """Steps up to the inner maximum that are taken: none without a ball."""
        return self.inner_steps if self.radius else 0

    def gradient_images(self, images: int) -> int:
        """Those of the noise and of the inner maxima, and one for each image of a training step."""
        size = min(self.batch, images)
        noise = self.steps * self.draws * (self.ascents + 1)
        visits = self.iterations * size * (noise + self.ascents + 1)
        return visits + (images // size * size * noise if size else 0)

    def craft(self, job: Crafting) -> Tensor:
        """All visits, then the final pass."""
        state = Visits(job, self)
        while state.done < state.total:
            if state.done < self.iterations:
                state.visit()
            else:
                state.finish()
            state.done += 1
            job.save("visits", state.pack)
        delta = job.blank()
        for places in chunks(torch.arange(len(state.rows)), portion(job.dataset.images)):
            delta[state.rows[places]] = state.levels[places].float() / 255
        return delta


class Visits:
    """The network and the noise, between two visits.

    Attributes:
        rows: the protected rows, in file order.
        levels: (n, 3, h, w) int8, their noise in grey levels; zero until the first visit.
        done: visits done, those of the final pass included.
        total: how many there are.
        model: the network as attacks see it, in eval mode, its weights those before the visit.
    """

    def __init__(self, job: Crafting, method: RobustErrorMinimising) -> None:
        self._job, self._method = job, method
        self.rows = job.mask.nonzero().flatten()
        self._size = min(method.batch, len(self.rows))
        self._per_pass = len(self.rows) // self._size if self._size else 0
        self.total = method.iterations + self._per_pass if self._size else 0
        self._network = job.network(method.surrogate, "network")
        self._network.mean = torch.full_like(self._network.mean, 0.5, dtype=torch.float32)
        self._optimizer = torch.optim.SGD(
            self._network.parameters(), lr=method.lr, momentum=0.9, weight_decay=5e-4
        )
        self.levels = torch.zeros(
            (len(self.rows), *job.dataset.images.shape[1:]), dtype=torch.int8
        ).contiguous(memory_format=torch.channels_last)
        self.done = 0
        saved = job.load("visits")
        if saved is not None:
            self._unpack(saved)
        self.model = self._frozen()

    def visit(self) -> None:
        """New noise for the next batch, then one training step on its worst crops."""
        job = self._job
        places, draws = self.places(), job.stream("visit", self.done)
        images, labels = job.batch(self.rows[places])
        noise = self.minimise(images, labels, draws)
        self.levels[places] = noise.cpu()
        crops = self._crops(len(images), draws)
        z = self.moved((images.float() + noise) / 255, crops)
        self._learn(self.worst(z, labels, self._start(z.shape, draws)), labels)

    def finish(self) -> None:
        """The final noise of the next batch of one more pass."""
        places = self.places()
        images, labels = self._job.batch(self.rows[places])
        noise = self.minimise(images, labels, self._job.stream("visit", self.done))
        self.levels[places] = noise.cpu()

    def places(self) -> Tensor:
        """Places of the next batch; shuffled passes without their last partial batch."""
        method = self._method
        if self.done < method.iterations:
            number, position = divmod(self.done, self._per_pass)
            draws = self._job.stream("pass", number)
        else:
            position = self.done - method.iterations
            draws = self._job.stream("final pass")
        order = torch.randperm(len(self.rows), generator=draws)
        return order[position * self._size : (position + 1) * self._size]

    def minimise(self, images: Tensor, labels: Tensor, draws: torch.Generator) -> Tensor:
        """K_u steps from a fresh start.

        Args:
            images: (b, 3, h, w) uint8.
            labels: (b,).
            draws: for the start, crops and inner starts.

        Returns:
            (b, 3, h, w) int8 in grey levels, inside the budget.
        """
        method = self._method
        start = (2 * torch.rand(images.shape, generator=draws) - 1) * method.epsilon
        x = Iterate(images, method.budget, start.to(images.device))
        for _ in range(method.steps):
            g = self.expected_gradient(x.images, labels, draws)
            x.descend(g, method.step_ratio * method.epsilon)
        levels = (x.delta * 255).round().to(torch.int16)
        return method.budget.project_levels(levels).to(torch.int8)

    def expected_gradient(self, x: Tensor, labels: Tensor, draws: torch.Generator) -> Tensor:
        """The gradient with respect to images, summed over J draws of t.

        Args:
            x: (b, 3, h, w) float in [0, 1].
            labels: (b,).
            draws: for the crops and inner starts, those of all draws at once.
        """
        count = len(x) * self._method.draws
        crops = self._crops(count, draws)
        start = self._start(torch.Size((count, *x.shape[1:])), draws)
        image = torch.arange(count, device=x.device) % len(x)
        pulled = []
        # As many draws in one call as memory allows; the numbers are those of one draw at a time.
        for first in range(0, count, self._job.chunk):
            part = slice(first, first + self._job.chunk)
            rows = image[part]
            z = self.moved(x[rows], crops[part])
            worst = self.worst(z, labels[rows], None if start is None else start[part])
            g = input_gradient(self._loss(labels[rows]), worst)
            pulled.append(self.moved(g, undoing(crops[part], self._method.crop_padding)))
            self._job.spend(len(rows))
        return torch.cat(pulled).unflatten(0, (-1, len(x))).sum(0)

    def worst(self, z: Tensor, labels: Tensor, start: Tensor | None) -> Tensor:
        """K_a steps up the loss inside the rho_a ball around z and inside [0, 1].

        Args:
            z: (b, 3, h, w) float in [0, 1].
            labels: (b,).
            start: the first offset from z; None for no ascent at all.
        """
        if start is None:
            return z
        method = self._method
        inner = Iterate(z, Budget("linf", method.radius), start.to(z.device))
        for _ in range(method.ascents):
            g = input_gradient(self._loss(labels), inner.images)
            inner.descend(g, -method.inner_step_ratio * method.radius)
        self._job.spend(len(z) * method.ascents)
        return inner.images

    def moved(self, images: Tensor, crops: Crops) -> Tensor:
        """t(images): each image shifted into black and mirrored, or not."""
        padded = F.pad(images, (self._method.crop_padding,) * 4).permute(0, 2, 3, 1)
        return cut(padded, crops, (images.shape[2], images.shape[3]))

    def _learn(self, images: Tensor, labels: Tensor) -> None:
        """One step of SGD in train mode."""
        method = self._method
        passed = sum(self.done >= share * method.iterations for share in DECAYS)
        for group in self._optimizer.param_groups:
            group["lr"] = method.lr * 0.1**passed
        loss = F.cross_entropy(self._network.train()(images), labels)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._job.spend(len(images))
        self.model = self._frozen()

    def _loss(self, labels: Tensor) -> Any:
        return lambda x: F.cross_entropy(self.model(x), labels, reduction="sum")

    def _crops(self, count: int, draws: torch.Generator) -> Crops:
        method = self._method
        return Crops.draw(count, method.crop_padding, method.flip, draws).to(self._job.device)

    def _start(self, shape: torch.Size, draws: torch.Generator) -> Tensor | None:
        """A uniform offset in the rho_a ball, or None where there is no inner maximum."""
        if not self._method.ascents:
            return None
        return (2 * torch.rand(shape, generator=draws) - 1) * self._method.radius

    def _frozen(self) -> Network:
        return freeze(self._network, self._job.device, self._job.precision)

    def pack(self) -> dict[str, Any]:
        """Everything that the next visit needs."""
        return {
            "levels": self.levels,
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "done": self.done,
            "spent": self._job.gradient_images,
        }

    def _unpack(self, saved: dict[str, Any]) -> None:
        self.levels, self.done = saved["levels"], saved["done"]
        self._network.load_state_dict(saved["network"])
        self._optimizer.load_state_dict(saved["optimizer"])
        self._job.spend(saved["spent"])


def undoing(crops: Crops, padding: int) -> Crops:
    """The crops that put gradients back: cutting by them is the transpose of cutting by `crops`.

    A pixel that was cut away gets no gradient, and what came from the border goes nowhere.

    Args:
        crops: of images padded with zeros.
        padding: by how many pixels on each side.
    """
    back = 2 * padding - crops.right
    # What was mirrored is mirrored back, and in a mirrored window left and right are exchanged.
    right = torch.where(crops.mirrored, crops.right, back)
    return Crops(2 * padding - crops.down, right, crops.mirrored)

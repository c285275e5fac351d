"""Hypocritical perturbations: images that look well learned to a network before they are.

Steps down the cross-entropy of the true label on a fixed surrogate f, from a start of zero:

    delta <- Pi(delta - alpha direction(grad CE(f(T(x + delta)), y)))

where the direction is the gradient's unit vector in an l2 ball and its sign in an l-inf ball.

`hypo` is P2 of Tao, Lue, et al. "Better Safe Than Sorry: Preventing Delusive Adversaries with
Adversarial Training", NeurIPS 2021: an l2 ball of .5, steps of a fifth of it, no T, and a VGG-16
trained for 150 epochs. `hypo-linf` is Tao et al. "Can Adversarial Training Be Manipulated By
Non-Robust Features?", NeurIPS 2022: an l-inf ball of 8/255, steps of a tenth, T a random shift by
up to four pixels and a flip, and a ResNet-18 trained adversarially for ten epochs within 2/255
(ten steps of a quarter of that).

The second paper's code shifts black into the picture, since its networks normalise inside, and it
releases 8-bit images by rounding down; here they are rounded to the nearest. Both hold out 1000
images when they train. APBench's HYPO, l-inf on a plainly trained ResNet-18 whose training it does
not tell, is `hypo-linf:robust_epsilon=0,shift=none,surrogate_recipe=victim`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.augment import draw_shifts, shift
from bench.budget import Norm
from bench.component import setting
from bench.crafting import Crafting
from bench.method import PLAIN, BoundedMethod, Surrogate
from bench.pgd import Iterate, input_gradient
from bench.recipe import Recipe
from bench.registry import METHODS


@METHODS.register("hypo")
@dataclass(frozen=True)
class Hypocritical(BoundedMethod):
    """Images that a fixed surrogate finds easy already, in an l2 ball (P2)."""

    paper: ClassVar[str] = "Tao et al., Better Safe Than Sorry, NeurIPS 2021"
    presets: ClassVar = {
        "quick": {"steps": 25, "surrogate_recipe": "victim"},
        "standard": {"surrogate_recipe": "victim"},
    }
    norm: ClassVar[Norm] = "l2"
    training: ClassVar[Recipe] = Recipe(epochs=150, milestones=(100, 125), warmup_epochs=0)

    epsilon: float = setting(0.5, "radius of the l2 ball, in units of [0, 1]")
    steps: int = setting(100, "updates")
    step_ratio: float = setting(0.2, "alpha over epsilon")
    shift: float | None = setting(
        None, "largest random shift of T, in pixels; T flips, too; none: no T"
    )
    batch: int = setting(250, "images that share a draw of T's stream")
    surrogate: str = setting("vgg16", "the surrogate's architecture")
    surrogate_recipe: Literal["own", "victim"] = setting(
        "own", "train it as the authors do, or as the victims are trained"
    )
    robust_epsilon: float = setting(
        0.0, "radius of the l∞ ball that it is trained adversarially in; 0: plainly"
    )
    robust_steps: int = setting(10, "steps of that training's attack, each a quarter of the radius")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 0 or self.batch < 1:
            raise ValueError("batch must be 1 or more, and steps 0 or more")
        if not 0 <= self.robust_epsilon <= 1 or self.robust_steps < 1:
            raise ValueError(
                "robust_epsilon must lie between 0 and 1, as 2/255 does; robust_steps must be 1 "
                "or more"
            )

    def surrogates(self, recipe: Recipe) -> tuple[Surrogate, ...]:
        """The last epoch of one training, adversarial where a radius is given."""
        recipe = self.training if self.surrogate_recipe == "own" else recipe
        defense, radius = PLAIN, self.robust_epsilon
        if radius:
            steps = f"steps={self.robust_steps},step_size={radius / 4!r}"
            defense = f"at-linf:epsilon={radius!r},{steps}"
        return (Surrogate(self.surrogate, (recipe.epochs,), recipe, defense=defense),)

    def gradient_images(self, images: int) -> int:
        """One for each step."""
        return images * self.steps

    def craft(self, job: Crafting) -> Tensor:
        """Each image moves on its own, if T is not drawn for its batch."""
        (model,) = job.trained(0)

        def perturb(images: Tensor, labels: Tensor, number: int) -> Tensor:
            draws = job.stream("shifts", number)
            black = torch.zeros((), device=job.device)
            x = Iterate(images, self.budget)

            def objective(x: Tensor) -> Tensor:
                if self.shift is not None:
                    x = shift(x, *draw_shifts(len(x), self.shift, draws, job.device), black)
                return F.cross_entropy(model(x), labels, reduction="sum")

            for _ in range(self.steps):
                g = input_gradient(objective, x.images)
                x.descend(g, self.step_ratio * self.epsilon)
                job.spend(len(labels))
            return x.delta

        return job.each_chunk(perturb, None if self.shift is None else self.batch)


@METHODS.register("hypo-linf")
@dataclass(frozen=True)
class HypocriticalLinf(Hypocritical):
    """Images that an adversarially trained surrogate finds easy, through random shifts."""

    paper: ClassVar[str] = "Tao et al., Can Adversarial Training Be Manipulated, NeurIPS 2022"
    presets: ClassVar = {
        "quick": {"steps": 25, "robust_steps": 3, "surrogate_recipe": "victim"},
        "standard": {"surrogate_recipe": "victim"},
    }
    norm: ClassVar[Norm] = "linf"
    training: ClassVar[Recipe] = Recipe(epochs=10, milestones=(), warmup_epochs=0)

    epsilon: float = setting(8 / 255, "radius of the l∞ ball, in units of [0, 1]")
    step_ratio: float = setting(0.1, "alpha over epsilon")
    shift: float | None = setting(
        4.0, "largest random shift of T, in pixels; T flips, too; none: no T"
    )
    surrogate: str = setting("rn18", "the surrogate's architecture")
    robust_epsilon: float = setting(
        2 / 255, "radius of the l∞ ball that it is trained adversarially in; 0: plainly"
    )

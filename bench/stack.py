"""Several defenses in one: `a+b` puts the second behind the first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.component import Spec, build
from bench.data import ImageDataset
from bench.defense import SIDE_INFORMATION, Defense, SideInformation, Step
from bench.errors import UsageError
from bench.joined import Joined
from bench.network import Arch, Network
from bench.recipe import Recipe
from bench.registry import DEFENSES

OWNED = (("build",), ("loss", "backward"), ("finish",), ("predict",))
"""Hooks that cannot be chained: of each group only one part may have any. A backward pass of one's
own calls one's own loss, so that another part's would be lost without a word."""


@dataclass(frozen=True)
class Stack(Joined[Defense], Defense):
    """Defenses in a row.

    `prepare` and `batch` are chained in the order given: the second works on what the first made.
    Every other hook belongs to the one part that has it.

    Raises:
        ValueError: if two parts would have the same hook to themselves, or if a part stands twice.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        identities = [part.identity() for part in self.parts]
        if any(one in identities[:place] for place, one in enumerate(identities)):
            raise ValueError("joins a defense with itself; nothing would be new")
        if len(self.parts) > 1 and any(part.name == "none" for part in self.parts):
            raise ValueError("joins another defense with none; nothing would be new")
        for hooks in OWNED:
            owners = [part.name for part in self.parts if any(map(part.replaces, hooks))]
            if len(owners) > 1:
                what = DUTIES[hooks[0]]
                raise ValueError(f"both {' and '.join(owners)} {what}; only one of them can")

    @property
    def side_information(self) -> SideInformation:  # type: ignore[override]
        """The most that any part knows."""
        known = (SIDE_INFORMATION.index(part.side_information) for part in self.parts)
        return SIDE_INFORMATION[max(known)]

    @property
    def changes_architecture(self) -> bool:  # type: ignore[override]
        """Whether any part does."""
        return any(part.changes_architecture for part in self.parts)

    @property
    def alters_prediction(self) -> bool:  # type: ignore[override]
        """Whether any part does."""
        return any(part.alters_prediction for part in self.parts)

    @property
    def leaves_range(self) -> bool:  # type: ignore[override]
        """Whether any part does."""
        return any(part.leaves_range for part in self.parts)

    @property
    def prepares_training_only(self) -> bool:
        """Whether any part does."""
        return any(part.prepares_training_only for part in self.parts)

    def cost(self) -> float:
        """What the parts add to a plain step, on the network of the part that makes one."""
        added = [part.cost() - 1 for part in self.parts if not part.replaces("build")]
        network = math.prod(part.cost() for part in self.parts if part.replaces("build"))
        return network * (1 + sum(added))

    def prediction_cost(self) -> float:
        """Those of the parts together: votes, and the network that each of them takes."""
        return math.prod(part.prediction_cost() for part in self.parts)

    def replaces(self, hook: str) -> bool:
        """Whether any part has it."""
        return any(part.replaces(hook) for part in self.parts)

    def adapt(self, recipe: Recipe) -> Recipe:
        """Adapted to one part after the other."""
        for part in self.parts:
            recipe = part.adapt(recipe)
        return recipe

    def facts(self, recipe: Recipe, images: int, weights: int | None) -> Mapping[str, float]:
        """Those of a part that learns from the released images as they are.

        What is known of a defense by itself, such as a guarantee for each image, need not hold
        where another part mixes images or changes them in the light of all others.
        """
        changing = [p for p in self.parts if p.replaces("prepare") or p.replaces("batch")]
        told = [part for part in self.parts if all(other is part for other in changing)]
        weights = None if self.replaces("build") else weights
        return {k: v for part in told for k, v in part.facts(recipe, images, weights).items()}

    def check(self, train: ImageDataset) -> None:
        """Every part by itself."""
        for part in self.parts:
            part.check(train)

    def prepare(self, dataset: ImageDataset, stream: torch.Generator) -> ImageDataset:
        """One part after the other."""
        for part in self.parts:
            dataset = part.prepare(dataset, stream)
        return dataset

    def build(self, arch: Arch, dataset: ImageDataset, stream: torch.Generator) -> Network:
        """By the part that builds."""
        return self._owner("build").build(arch, dataset, stream)

    def batch(self, images: Tensor, soft_labels: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """One part after the other."""
        for part in self.parts:
            images, soft_labels = part.batch(images, soft_labels, step)
        return images, soft_labels

    def loss(self, network: Network, images: Tensor, soft_labels: Tensor, step: Step) -> Tensor:
        """Of the part that has one."""
        return self._owner("loss").loss(network, images, soft_labels, step)

    def backward(self, network: Network, images: Tensor, soft_labels: Tensor, step: Step) -> Tensor:
        """Of the part that learns in its own way, be it by its loss or by its backward pass."""
        return self._owner("loss", "backward").backward(network, images, soft_labels, step)

    def finish(self, network: Network, dataset: ImageDataset, stream: torch.Generator) -> Network:
        """By the part that has something to finish."""
        return self._owner("finish").finish(network, dataset, stream)

    def predict(self, network: Network, images: Tensor, stream: torch.Generator) -> Tensor:
        """By the part that predicts."""
        return self._owner("predict").predict(network, images, stream)

    def _owner(self, *hooks: str) -> Defense:
        """The part that has one of some hooks to itself, or one that does not, as all others."""
        owners = [part for part in self.parts if any(map(part.replaces, hooks))]
        return owners[0] if owners else self.parts[0]


DUTIES = {
    "build": "make the network",
    "loss": "decide how a batch is learned",
    "finish": "work on the trained network",
    "predict": "decide how test images are classified",
}
"""What the owner of a hook does, for messages."""


def build_defense(spec: Spec, scale: str = "paper") -> Defense:
    """The defense that a spec describes, be it one or several joined.

    Raises:
        UsageError: as `build` does, and for parts that cannot be joined.
    """
    if not spec.joined:
        return build(DEFENSES, spec, scale)
    try:
        return Stack(tuple(build_defense(part, scale) for part in spec.joined))
    except ValueError as error:
        raise UsageError(f"defense '{spec.name}': {error}") from None

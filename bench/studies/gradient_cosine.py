"""How far the networks that a method crafts with agree on where an image should go.

Chen et al., *Self-Ensemble Protection*, ICLR 2023, Figures 1 and 8: for two networks a and b, the
mean over images of

    |<g_a, g_b>| / (||g_a|| ||g_b||),    g_a = grad_x CE(f_a(x), g(y)),

in eval mode, on clean images. Which loss and which images the paper takes is not said; ours are the
crafting loss of plain SEP, with the target half of the classes on, and the first training images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.component import setting
from bench.data import to_unit
from bench.grid import Cell, SurrogateJob, TrainingData
from bench.loading import Loader
from bench.network import PASSES_PER_GRADIENT, Arch, Network
from bench.pgd import absolute_cosines, input_gradient
from bench.registry import STUDIES
from bench.study import Study, StudyJob, Tools, protections

BATCH = 100
"""Images differentiated at once."""


@STUDIES.register("gradient-cosine")
@dataclass(frozen=True)
class GradientCosine(Study):
    """Cosines between the input gradients of the networks that a method crafts with.

    Its values: `networks`, their names; `cosines[a][b]`, the mean over images of the absolute
    cosine; `images`, how many had a gradient in every network; `between`, the mean of all pairs of
    different networks.
    """

    paper: ClassVar[str] = "Chen et al., Self-Ensemble Protection, ICLR 2023"

    images: int = setting(1000, "clean training images, the first ones")

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError("images must be 1 or more")

    def jobs(self, cells: Sequence[Cell]) -> list[StudyJob]:
        """One for each method that trains networks."""
        return [
            StudyJob(self, label, cells[0], surrogates=crafting.surrogates)
            for label, crafting in protections(cells).items()
            if crafting.surrogates
        ]

    def work(self, job: StudyJob, data: TrainingData, cost: Callable[[Arch], float]) -> float:
        """One input gradient for each network and image."""
        count = min(self.images, len(data.train))
        networks = ((one.arch, len(one.surrogate.epochs)) for one in job.surrogates)
        return PASSES_PER_GRADIENT * count * sum(cost(arch) * epochs for arch, epochs in networks)

    def check(self, values: Mapping[str, Any]) -> None:
        """A square of cosines, a name a network, and their mean."""
        count = len([name for name in values["networks"] if isinstance(name, str)])
        table = np.array(values["cosines"], dtype=float)
        if table.shape != (count, count) or not np.isfinite(table).all() or not count:
            raise ValueError(f"cosines of {count} networks")
        if not isinstance(values["images"], int) or not isinstance(values["between"], float | None):
            raise TypeError("images must be a number, and between one or none")

    def measure(self, tools: Tools) -> dict[str, Any]:
        """Gradients of a batch in all networks, then their cosines; only sums are kept."""
        jobs = tools.job.surrogates
        networks: list[Network] = []
        costs: list[float] = []
        for number, job in enumerate(jobs):
            networks += tools.networks(number)
            costs += [tools.cost(job.arch)] * (len(networks) - len(costs))
        count = min(self.images, len(tools.dataset))
        loader = Loader(tools.dataset, tools.device, tools.memory)
        half = len(tools.dataset.classes) // 2
        per_image = PASSES_PER_GRADIENT * sum(costs)
        nothing = torch.zeros(len(networks), len(networks), dtype=torch.float64)
        state = tools.load() or {"sums": nothing, "counted": 0, "batches": 0}
        batches = torch.arange(count, device=loader.rows_on).split(BATCH)
        for rows in batches[: state["batches"]]:
            tools.monitor.advance(per_image * len(rows))
        for rows in batches[state["batches"] :]:
            images, labels = loader.batch(rows)
            targets = (labels + half) % len(tools.dataset.classes)
            gradients = [_gradients(one, to_unit(images), targets) for one in networks]
            cosines, whole = absolute_cosines(torch.stack(gradients))
            state = {
                "sums": state["sums"] + cosines.sum(0).double().cpu(),
                "counted": state["counted"] + whole,
                "batches": state["batches"] + 1,
            }
            tools.monitor.advance(per_image * len(rows))
            tools.save(lambda state=state: state)
        if not state["counted"]:
            raise RuntimeError("no image has a finite gradient in every network")
        means = state["sums"] / state["counted"]
        different = ~torch.eye(len(networks), dtype=torch.bool)
        return {
            "networks": _names(jobs),
            "cosines": [[round(value, 6) for value in line] for line in means.tolist()],
            "images": state["counted"],
            "between": round(float(means[different].mean()), 6) if len(networks) > 1 else None,
        }


def _gradients(network: Network, images: Tensor, targets: Tensor) -> Tensor:
    def loss(x: Tensor) -> Tensor:
        return F.cross_entropy(network(x), targets, reduction="sum")

    return input_gradient(loss, images).flatten(1)


def _names(jobs: Sequence[SurrogateJob]) -> list[str]:
    """Of the checkpoints: by epoch if they are of one training, else by architecture, too."""
    names = []
    alike = {job.arch.title for job in jobs}
    for job in jobs:
        for epoch in job.surrogate.epochs:
            parts = [job.arch.title] if len(alike) > 1 else []
            parts += [f"#{job.surrogate.index}"] if len(jobs) > len(alike) else []
            parts += [f"epoch {epoch}"] if len(job.surrogate.epochs) > 1 or not parts else []
            names.append(" ".join(parts))
    return names

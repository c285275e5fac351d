"""What blurring two Gaussian classes differently does to the best rule that can be learned.

Sadasivan et al., *CUDA: Convolution-based Unlearnable Datasets*, CVPR 2023, its part on theory; the
mathematics is in `bench.gaussian_mixture`. It needs no images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from bench.component import setting
from bench.gaussian_mixture import Settings, measure
from bench.registry import STUDIES
from bench.study import Study, Tools

USUAL = Settings()


@STUDIES.register("gaussian-mixture")
@dataclass(frozen=True)
class GaussianMixture(Study):
    """Accuracy of the best rule for two blurred Gaussians on clean data, computed and counted.

    Its values are those of `bench.gaussian_mixture.measure`.
    """

    paper: ClassVar[str] = (
        "Sadasivan et al., CUDA: Convolution-based Unlearnable Datasets, CVPR 2023"
    )
    needs_images: ClassVar[bool] = False

    dimensions: tuple[int, ...] = setting(USUAL.dimensions, "of the data")
    fixed: tuple[float, ...] = setting(USUAL.fixed, "blurs of class -1")
    blurs: tuple[float, ...] = setting(USUAL.blurs, "blurs of class +1, and of both in the control")
    sampled: tuple[float, ...] = setting(USUAL.sampled, "of these, where points are counted")
    norm: float = setting(USUAL.norm, "length of the means")
    mean: Literal["flat", "random"] = setting(USUAL.mean, "direction of the means")
    draws: int = setting(USUAL.draws, "points that are counted, for each blur and dimension")
    seed: int = setting(USUAL.seed, "of those points")

    def check(self, values: Mapping[str, Any]) -> None:
        """Rows with accuracies that are computed, and here and there counted."""
        settings = values["settings"]
        if not values["rows"] or not math.isfinite(settings["norm"] + settings["draws"]):
            raise ValueError("no rows")
        for row in values["rows"]:
            rates = [row["bound"], *row["exact"].values(), *row["clean_rule"].values()]
            counted = (row["sampled"] or {}).values()
            rates += [part[name] for part in counted for name in ("accuracy", "low", "high")]
            if not all(math.isfinite(rate) for rate in rates):
                raise ValueError("a rate that is none")
            if {"clean", "protected"} - set(row["exact"]) or not isinstance(row["dimension"], int):
                raise ValueError("a row that lacks something")

    def measure(self, tools: Tools) -> dict[str, Any]:
        """Every pair of blurs in every dimension."""
        del tools
        return measure(Settings(**self.values()))

    def values(self) -> dict[str, Any]:
        """The settings as they are, tuples and all."""
        return {name: getattr(self, name) for name in self.settings()}

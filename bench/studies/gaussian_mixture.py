"""What blurring two Gaussian classes differently does to the best rule that can be learned.

Sadasivan et al., *CUDA: Convolution-based Unlearnable Datasets*, CVPR 2023, its part on theory; the
mathematics is in `bench.gaussian_mixture`. It needs no images.
"""

from __future__ import annotations

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
    norm: float = setting(USUAL.norm, "length of the means")
    mean: Literal["flat", "random"] = setting(USUAL.mean, "direction of the means")
    draws: int = setting(USUAL.draws, "points that are counted, for each blur and dimension")
    seed: int = setting(USUAL.seed, "of those points")

    def measure(self, tools: Tools) -> dict[str, Any]:
        """Every pair of blurs in every dimension."""
        del tools
        return measure(Settings(**self.values()))

    def values(self) -> dict[str, Any]:
        """The settings as they are, tuples and all."""
        return {name: getattr(self, name) for name in self.settings()}

"""Every classifier of the library torchvision, by its name there: `torchvision:resnet18`."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

from torch import nn

from bench.archs.zoo import ZooArch, is_small, keep_resolution
from bench.errors import UsageError
from bench.registry import ARCHS

OPTIONS: dict[str, dict[str, Any]] = {
    # Auxiliary heads would return tuples in training; the library warns if the second is not said.
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


@ARCHS.register("torchvision", argument="model")
@dataclass(frozen=True)
class Torchvision(ZooArch):
    """A classifier of torchvision, untrained; below 64 pixels its stem keeps the resolution.

    Convolutional networks lose the first stride and max-pool. Vision transformers are made for
    our image size but keep their patches; take them from timm to have these smaller.
    """

    paper: ClassVar[str] = "TorchVision maintainers and contributors 2016"

    def names(self) -> list[str]:
        """Every classifier of torchvision, without quantised ones."""
        models = _torchvision().models
        return models.list_models(module=models)

    def original(self) -> nn.Module:
        """The network for the images that torchvision made it for."""
        options = OPTIONS.get(self.model, {})
        return _torchvision().models.get_model(self.model, weights=None, **options)

    def create(self, image_size: tuple[int, int]) -> tuple[nn.Module, str]:
        """The network with its classifier taken off, and what was done to its stem."""
        options = dict(OPTIONS.get(self.model, {}))
        if self.model.startswith("vit_"):
            height, width = image_size
            if height != width:
                raise ValueError("it takes square images only")
            options["image_size"] = height
        if self.model.startswith("maxvit"):
            options["input_size"] = image_size
        model = _torchvision().models.get_model(self.model, weights=None, **options)
        _take_off_classifier(model)
        return model, keep_resolution(model) if is_small(image_size) else "stem unchanged"


def _take_off_classifier(model: nn.Module) -> None:
    """Put an identity in the place of the last layer; in SqueezeNets it is a convolution."""
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    model.set_submodule(layers[-1], nn.Identity())


def _torchvision() -> ModuleType:
    try:
        import torchvision
    except (ImportError, RuntimeError, OSError) as error:
        # A torchvision that was built for another torch fails as a RuntimeError or OSError.
        raise UsageError(
            f"torchvision cannot be imported ({error}); run: pip install torchvision, in the "
            "build that matches the installed torch"
        ) from error
    return torchvision

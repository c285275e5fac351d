"""Every network of the library timm, by its name there: `timm:resnet18`."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar

from torch import nn

from bench.archs.zoo import ZooArch, is_small, keep_resolution
from bench.errors import UsageError
from bench.registry import ARCHS


@ARCHS.register("timm", argument="model")
@dataclass(frozen=True)
class Timm(ZooArch):
    """A network of timm, untrained; below 64 pixels its stem keeps the resolution.

    Convolutional networks lose the first stride and max-pool. Networks made for one image size,
    such as vision transformers, are made for ours, and cut small images into at least 8x8
    patches.
    """

    paper: ClassVar[str] = "Wightman 2019, PyTorch Image Models"

    def names(self) -> list[str]:
        """Every architecture that timm lists."""
        return timm_library().list_models()

    def original(self) -> nn.Module:
        """The network for the images that timm made it for."""
        return timm_library().create_model(self.model, pretrained=False)

    def create(self, image_size: tuple[int, int]) -> tuple[nn.Module, str]:
        """The network with its classifier taken off, and what was done to its stem."""
        timm = timm_library()
        options = {"pretrained": False, "num_classes": 0}
        if timm.models.get_pretrained_cfg_value(self.model, "fixed_input_size"):
            options["img_size"] = image_size
            if is_small(image_size):
                patch = patch_size(image_size)
                try:
                    model = timm.create_model(self.model, patch_size=patch, **options)
                except TypeError:  # it has no such setting
                    pass
                else:
                    return model, f"patches of {patch}x{patch}"
            return timm.create_model(self.model, **options), "stem unchanged"
        model = timm.create_model(self.model, **options)
        return model, keep_resolution(model) if is_small(image_size) else "stem unchanged"


def patch_size(image_size: tuple[int, int]) -> int:
    """The largest square, in pixels, of which eight or more fit exactly into each side."""
    fitting = (
        patch
        for patch in range(min(image_size) // 8, 1, -1)
        if all(side % patch == 0 for side in image_size)
    )
    return next(fitting, 1)


def timm_library() -> ModuleType:
    """The library, imported now.

    Raises:
        UsageError: if it cannot be.
    """
    try:
        import timm
    except (ImportError, RuntimeError, OSError) as error:
        # A torchvision that was built for another torch fails as a RuntimeError or OSError.
        raise UsageError(
            f"timm cannot be imported ({error}); run: pip install timm torchvision, the latter "
            "in the build that matches the installed torch"
        ) from error
    return timm

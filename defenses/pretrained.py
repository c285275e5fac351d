"""Transfer learning: start from the weights of a network that saw other images.

Sadasivan et al., "CUDA: Convolution-based Unlearnable Datasets" (CVPR 2023), who start a ResNet-18
from ImageNet and (a) train all of it or (b) a new last layer only: 42.4 and 48.2 % on CIFAR-10.
Studies after it find that most protections lose most of their effect. The trainer's knowledge is
more than the released images, hence side information `pretrained-weights`.

What must be said of such a figure, and what was chosen here:

Weights. Those that timm publishes, by its default tag (the record has timm's version), or those of
a file, known by its content. The classifier is left out and a new one drawn.

Network. Weights belong to the layers that they were trained in, so a library's network keeps the
stem of its weights, made for 224 pixels, instead of the one that it is given here for small images.
Our own architectures are made for the images that enter them, as always.

Input size. With size=0 images enter as they are. 32 pixels behind a stem for 224 leave a ResNet a
map of one pixel; size=224 is something else: images are enlarged first, inside the network, so that
defenses work on them as they were, and gradients pass through.

Normalisation. The weights' own mean and standard deviation as timm tells them; for all others those
of ImageNet, by which nearly all published weights were trained.

Learning rate. At most .01: the recipe's .1 would undo the weights in its first epoch.

What learns. All weights, or the last layer; then the statistics of batch norms stay, too.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.archs.timm_zoo import Timm, timm_library
from bench.archs.zoo import ZooArch
from bench.component import canonical, setting
from bench.data import ImageDataset
from bench.defense import Defense, SideInformation
from bench.errors import NotRunError, UsageError
from bench.files import user_path
from bench.network import Arch, Network
from bench.recipe import Recipe
from bench.registry import ARCHS, DEFENSES

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of its images, by channel."""
NATIVE = (224, 224)
"""Images that libraries make their networks for, unless they say otherwise."""
PATIENCE = 5
"""Seconds to wait for the host of published weights."""
DAMAGE = (OSError, ValueError, EOFError, KeyError, RuntimeError, pickle.UnpicklingError)
"""What reading a damaged file of weights may raise."""
WRAPPINGS = ("state_dict", "model", "network")
"""Under which names files keep weights beside other things."""


@dataclass(frozen=True)
class Pretrained(Defense):
    """Begins with trained weights; a subclass says what goes on learning."""

    paper: ClassVar[str] = "Sadasivan et al., CUDA: Convolution-based Unlearnable Datasets, 2023"
    side_information: ClassVar[SideInformation] = "pretrained-weights"
    changes_architecture: ClassVar[bool] = True
    body_learns: ClassVar[bool]

    weights: str = setting(
        "", "path of a .safetensors or torch file; empty: those that timm publishes for timm:NAME"
    )
    lr: float = setting(0.01, "highest learning rate, where the recipe's is higher")
    size: int = setting(0, "side to which images are resized in the network; 0: as they are")
    normalise: Literal["weights", "data"] = setting(
        "weights", "by the statistics of the weights' images, ImageNet's for a file; or by our own"
    )

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr:g} must be above 0")
        if self.size < 0:
            raise ValueError(f"size={self.size} must not be negative")
        if self.weights:
            self.digest  # noqa: B018 - if the file is missing, that is said now

    def settings(self) -> dict[str, Any]:
        """A file's hash in place of its path: what decides the numbers is its content."""
        said = super().settings()
        if self.weights:
            del said["weights"]
            said["weights_sha256"] = self.digest[:16]
        return said

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file of weights."""
        return self._hash()

    def cost(self) -> float:
        """Of images of 32 pixels in a library's network, which takes 128 as ours take 32."""
        step = (self.size / 128) ** 2 if self.size else 1.0
        return step if self.body_learns else step / 3  # a forward pass is all the body does

    def prediction_cost(self) -> float:
        """As many pixels as while training."""
        return (self.size / 128) ** 2 if self.size else 1.0

    def adapt(self, recipe: Recipe) -> Recipe:
        """By steps small enough for trained weights."""
        return recipe.at_most(self.lr)

    def build(self, arch: Arch, dataset: ImageDataset, stream: torch.Generator) -> Network:
        """A body with trained weights and a new last layer.

        Raises:
            NotRunError: if the weights cannot be had, or are another network's.
        """
        entering = (self.size, self.size) if self.size else dataset.image_size
        with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator
            state = self._from_file() if self.weights else published(arch)
            seed = int(torch.randint(2**62, (1,), generator=stream))
            torch.default_generator.manual_seed(seed)
            body, features = arch.body(size_of_weights(arch, entering))
            whose = f"the weights in '{self._file.name}'" if self.weights else "timm's weights"
            fill(body, features, state, arch, whose)
            self._try(body, arch, entering)
            body = TrainedBody(body, self.size, self.body_learns)
            own = (dataset.mean, dataset.std)
            statistics = own if self.normalise == "data" else normalisation(arch)
            return Network(body, features, len(dataset.classes), *statistics)

    def _try(self, body: nn.Module, arch: Arch, entering: tuple[int, int]) -> None:
        """See whether images of this size go through."""
        try:
            with torch.no_grad():
                body.eval()(torch.zeros(1, 3, *entering))
        except Exception as error:  # each network complains in its own way
            side = size_of_weights(arch, entering)[0]
            raise NotRunError(
                f"{described(arch)} with trained weights does not take "
                f"{entering[0]}x{entering[1]} pixels ({first_line(error)}); write size={side}"
            ) from error

    def _from_file(self) -> dict[str, Tensor]:
        """The weights of the file by name, without what was wrapped around them."""
        if self._hash() != self.digest:
            raise UsageError(f"'{self.weights}' has changed since this run began; start it again")
        try:
            return unwrapped(read(self._file))
        except DAMAGE as error:
            raise NotRunError(
                f"'{self._file.name}' holds no plain weights ({first_line(error)}); write it with "
                "torch.save(network.state_dict(), PATH) or as .safetensors"
            ) from error

    @property
    def _file(self) -> Path:
        return user_path(self.weights)

    def _hash(self) -> str:
        try:
            with self._file.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UsageError(
                f"weights={self.weights} cannot be read ({error.strerror}); give the path of a "
                ".safetensors or torch file, or leave it out for those that timm publishes"
            ) from None


@DEFENSES.register("pretrained-finetune", in_all=False)
@dataclass(frozen=True)
class PretrainedFinetune(Pretrained):
    """Starts from pretrained weights and goes on training all of them.

    Not part of `all`, since it needs weights that somebody has to have: with an empty `weights` it
    runs with timm:NAME alone, and fetches what is not in the cache of Hugging Face. A cell whose
    weights cannot be had, or do not fit, stands as "not run" in tables.
    """

    body_learns: ClassVar[bool] = True


@DEFENSES.register("pretrained-probe", in_all=False)
@dataclass(frozen=True)
class PretrainedProbe(Pretrained):
    """Trains a new last layer on top of pretrained weights, which stay as they are.

    Where the weights come from, and when a cell is "not run": see pretrained-finetune.
    """

    body_learns: ClassVar[bool] = False


class TrainedBody(nn.Module):
    """A body that may enlarge its images first, and may be at rest.

    Args:
        body: (b, 3, h, w) normalised -> (b, features).
        size: side to which images are resized, or 0.
        learns: otherwise its weights are frozen, and it stays in eval mode for good: batch norms
            use the statistics they came with, and dropout is off.
    """

    def __init__(self, body: nn.Module, size: int, learns: bool) -> None:
        super().__init__()
        self.body = body.requires_grad_(learns)
        self._size, self._learns = size, learns
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, h, w) to (b, features)."""
        if self._size:
            # The filter matters where images shrink; where they grow it is the plain one.
            images = F.interpolate(
                images, (self._size, self._size), mode="bilinear", antialias=True
            )
        return self.body(images)

    def train(self, mode: bool = True) -> TrainedBody:
        """Switch between train and eval mode, as far as the body takes part."""
        super().train(mode)
        if not self._learns:
            self.body.eval()
        return self


# Where weights come from.


def read(file: Path) -> Mapping[str, Any]:
    """What a file holds; no code in it is run."""
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(str(error)) from error
    return torch.load(file, map_location="cpu", weights_only=True)


def unwrapped(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights by their names in a body.

    Args:
        content: such weights, perhaps beside other things; of a whole network of ours, or of one
            that was trained in parallel, whose names have something before them.

    Raises:
        ValueError: if there are no weights.
    """
    for name in WRAPPINGS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not content:
        raise ValueError("no names with weights")
    odd = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if odd:
        raise ValueError(f"'{odd[0]}' is no tensor")
    state = dict(content)
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    tops = {name.partition(".")[0] for name in state}
    if "body" in tops and tops <= {"body", "head"}:
        state = {name.removeprefix("body."): value for name, value in state.items()}
    return state


def published(arch: Arch) -> dict[str, Tensor]:
    """The weights that timm publishes for a network of its own, from its cache or from the host.

    Raises:
        NotRunError: if there are none, or if they cannot be fetched.
    """
    file = "or give a file: weights=PATH"
    if not isinstance(arch, Timm):
        raise NotRunError(
            f"{described(arch)} has no published weights; take an architecture of timm, such as "
            f"timm:resnet18, {file}"
        )
    facts = pretrained_facts(arch)
    if facts is None or not facts.has_weights:
        raise NotRunError(
            f"timm publishes no weights for {described(arch)}; take another architecture of "
            f"timm, such as timm:resnet18, {file}"
        )
    try:
        kept = in_cache(facts)
        if kept is None:
            find_host()
        network = timm_library().create_model(
            arch.model,
            pretrained=True,
            num_classes=0,
            pretrained_cfg_overlay={"file": kept} if kept else None,
        )
    except Exception as error:  # libraries, network and disk fail in many ways
        raise NotRunError(
            f"the weights {facts.architecture}.{facts.tag} of timm are not on this machine and "
            f"cannot be fetched ({first_line(error)}); connect it, {file}"
        ) from error
    return network.state_dict()


def in_cache(facts: Any) -> str | None:
    """The file of published weights, if it has been fetched before."""
    from huggingface_hub import try_to_load_from_cache

    if facts.custom_load or not facts.hf_hub_id:
        return None
    names = [facts.hf_hub_filename] if facts.hf_hub_filename else WEIGHT_FILES
    found = (try_to_load_from_cache(facts.hf_hub_id, name) for name in names)
    return next((file for file in found if isinstance(file, str)), None)


WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""What the host calls the weights of a network."""


def find_host() -> None:
    """Ask the host of weights for a sign of life.

    Without a connection its own library tries again for most of a minute, and each cell would.

    Raises:
        Exception: of whatever library asks, if there is no answer.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    get_session().head(constants.ENDPOINT, timeout=PATIENCE)


# What belongs to weights.


def pretrained_facts(arch: Timm) -> Any:
    """What timm knows of the weights of a network, or None."""
    return timm_library().models.get_pretrained_cfg(arch.model)


def size_of_weights(arch: Arch, entering: tuple[int, int]) -> tuple[int, int]:
    """The size for which a body is made so that weights fit: a library's own, or the images'."""
    if not isinstance(arch, ZooArch):
        return entering
    facts = pretrained_facts(arch) if isinstance(arch, Timm) else None
    return NATIVE if facts is None else facts.input_size[-2:]


def normalisation(arch: Arch) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of the images that the weights were trained on."""
    facts = pretrained_facts(arch) if isinstance(arch, Timm) else None
    return IMAGENET if facts is None else (facts.mean, facts.std)


def fill(
    body: nn.Module, features: int, state: Mapping[str, Tensor], arch: Arch, whose: str
) -> None:
    """Load weights that fit exactly, the last layer aside.

    Args:
        body: of the network.
        features: that the body gives.
        state: weights by name.
        arch: of the body, for messages.
        whose: what messages call the weights.

    Raises:
        NotRunError: if they do not fit.
    """
    own = body.state_dict()
    # Files from before there was such a counter lack it; nothing reads it here.
    missing = [name for name in own if name not in state and not name.endswith("batches_tracked")]
    foreign = [
        name for name in state if name not in own and not of_classifier(name, state, features)
    ]
    other = [name for name in own if name in state and own[name].shape != state[name].shape]
    fault = None
    if other:  # most telling first: another width has other names, too
        shapes = tuple(state[other[0]].shape), tuple(own[other[0]].shape)
        fault = f"have {told(other)} of shape {shapes[0]} instead of {shapes[1]}"
    elif missing:
        fault = f"lack {told(missing)}"
    elif foreign:
        fault = f"have {told(foreign)}, which it has not"
    if fault:
        raise NotRunError(
            f"{whose} do not fit {described(arch)}: they {fault}; give those of the same network "
            "and width"
        )
    body.load_state_dict({name: state[name] for name in own if name in state})


def of_classifier(name: str, state: Mapping[str, Tensor], features: int) -> bool:
    """Whether a weight is one of a linear layer that takes the features."""
    layer, _, kind = name.rpartition(".")
    matrix = state.get(f"{layer}.weight")
    if kind not in ("weight", "bias") or matrix is None or matrix.ndim not in (2, 4):
        return False
    return matrix.shape[1] == features and all(side == 1 for side in matrix.shape[2:])


def told(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def described(arch: Arch) -> str:
    """An architecture as it is typed."""
    return canonical(arch, ARCHS)


def first_line(error: BaseException) -> str:
    """What an error says, in a line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__

"""The laws of every registered method and defense, and that the kit notices when one is broken."""

import dataclasses
import itertools
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.budget import Budget
from bench.crafting import Crafting
from bench.defense import Defense
from bench.grid import Expansion, Grid, TrainingData
from bench.method import BoundedMethod, Method, Surrogate
from bench.network import Arch, Network
from bench.registry import DEFENSES, METHODS
from bench.seeding import stream
from bench.testing import (
    ARCH,
    DATASET,
    RECIPE,
    check_defense,
    check_method,
    craft,
    crafting_job,
    small_arch,
    small_method,
    small_splits,
)

METHOD_CASES = {
    "advpoison": ("advpoison:steps=2,batch=16", "advpoison:steps=1,restarts=2,batch=20"),
    "ar": ("ar", "ar:crop=2,epsilon=0.5"),
    "ar-linf": ("ar-linf",),
    "advpoison-untargeted": ("advpoison-untargeted:steps=2,batch=16",),
    "clean": ("clean",),
    "clean-part": ("clean-part",),
    "deepconfuse": (
        "deepconfuse:trials=2,epochs=2,batch=16,generator_width=0.0625",
        "deepconfuse:trials=1,epochs=1,batch=23,generator_width=0.02,"
        "classifier=vgg11,classifier_width=0.05",
    ),
    "cuda": ("cuda", "cuda:kernel=5,quantize=truncate", "cuda:shared=yes"),
    "file": ("file:PATH", "file:PATH,epsilon=3/255"),
    "lsp": ("lsp", "lsp:cell=4,epsilon=0.6", "lsp:quantize=truncate"),
    "gradient-alignment": (
        "gradient-alignment:steps=2,batch=16",
        "gradient-alignment:steps=1,restarts=2,batch=20,update=sign",
    ),
    "hypo": ("hypo:steps=2", "hypo:steps=2,shift=2,batch=20"),
    "hypo-linf": (
        "hypo-linf:steps=2,robust_steps=1,batch=20",
        "hypo-linf:steps=2,robust_epsilon=0,shift=none",
    ),
    "noise": ("noise", "noise:law=gaussian", "noise:per=class", "noise:epsilon=0.02"),
    "rule": (
        "rule:iterations=4,steps=2,inner_steps=1,draws=2,batch=16",
        "rule:iterations=3,steps=1,radius_ratio=0,draws=1,batch=20,crop_padding=0,flip=no",
    ),
    "ops": ("ops", "ops:pixels=3,score=paper", "ops:pixels=0,score=art"),
    "ntga": ("ntga:block=20,steps=2,time=64", "ntga:kernel=fnn,iterate=restart,block=16"),
    "sep": ("sep:checkpoints=2,steps=2",),
    "ensemble": ("ensemble:ensemble=[rn18,vgg16],members=1,steps=2",),
    "sep-fa": ("sep-fa:checkpoints=2,steps=2,target_shift=1",),
    "sep-fa-l2": ("sep-fa-l2:checkpoints=2,steps=2,epsilon=0.5",),
    "sep-fa-vr-l2": ("sep-fa-vr-l2:checkpoints=2,steps=1,inner_steps=2,epsilon=0.5",),
    "sep-l2": ("sep-l2:checkpoints=2,steps=2,target_labels=[1,0,3,0]",),
    "sep-fa-vr": (
        "sep-fa-vr:checkpoints=2,steps=2,inner_steps=2",
        "sep-fa-vr:checkpoints=2,steps=1,inner_steps=2,centers=last",
    ),
    "sham": ("sham",),
    "tue": ("tue:rounds=2,noise_steps=3,batch=16",),
    "tensorclog": ("tensorclog:steps=2,batch=16", "tensorclog:steps=1,restarts=2,batch=20"),
    "tensorclog-transfer": ("tensorclog-transfer:steps=3", "tensorclog-transfer:clamp=none"),
    "ule": (
        "ule:max_rounds=2,train_steps=2,noise_steps=2,batch=16",
        "ule:per=class,max_rounds=2,train_steps=2,batch=16,negatives=dropped",
    ),
}
"""Short settings for each registered method; PATH becomes a crafted set."""

DEFENSE_CASES = {
    "at-l2": ("at-l2:steps=2", "at-l2:epsilon=0.25,steps=1"),
    "at-linf": ("at-linf:steps=2", "at-linf:steps=0", "at-linf:steps=1+cutout+mixup"),
    "autoaugment": ("autoaugment", "autoaugment:policy=svhn"),
    "bilateral-filter": ("bilateral-filter:diameter=5", "bilateral-filter:diameter=3,test=yes"),
    "bit-depth": ("bit-depth", "bit-depth:bits=5"),
    "coin": ("coin",),
    "cutmix": ("cutmix", "cutmix:alpha=0.2+mixup"),
    "cutout": ("cutout:size=6", "cutout"),
    "deconvolution-at": (
        "deconvolution-at:steps=2,kernel=3",
        "deconvolution-at:steps=1,rescale=within",
    ),
    "dpsgd-batch": ("dpsgd-batch", "jpeg+dpsgd-batch+grayscale"),
    "dpsgd-sample": ("dpsgd-sample", "dpsgd-sample:groups=1,noise=0"),
    "gaussian-blur": ("gaussian-blur", "gaussian-blur:test=yes"),
    "grayscale": ("grayscale", "grayscale:test=yes"),
    "jpeg": ("jpeg", "orthogonal-projection:epochs=1+jpeg:quality=50"),
    "median-filter": ("median-filter", "median-filter:test=yes"),
    "mixup": ("mixup", "mixup:alpha=0.2"),
    "none": ("none",),
    "orthogonal-projection": ("orthogonal-projection", "grayscale+orthogonal-projection"),
    "orthogonal-regularization": ("orthogonal-regularization:beta=0.01",),
    "pretrained-finetune": (
        "pretrained-finetune:weights=PATH",
        "pretrained-finetune:weights=PATH,size=24",
    ),
    "pretrained-probe": ("pretrained-probe:weights=PATH", "pretrained-probe:weights=PATH,size=24"),
    "randaugment": ("randaugment", "randaugment:num_ops=1,magnitude=30"),
    "random-kernel": ("random-kernel",),
    "random-noise": ("random-noise", "random-noise:std=0.177"),
    "randomized-smoothing": ("randomized-smoothing:votes=3",),
    "ueraser-default": ("ueraser-default:repeats=2,repeat_epochs=0.5",),
    "ueraser-lite": ("ueraser-lite", "ueraser-lite:space=wide,plasma_probability=1"),
    "ueraser-max": ("ueraser-max:repeats=2",),
}


@pytest.fixture(scope="module")
def crafted_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody's set: every component three levels nearer to the middle."""
    train = small_splits().train
    images = train.images.to(torch.int16)
    images = (images + torch.where(images < 128, 3, -3)).to(torch.uint8)
    path = tmp_path_factory.mktemp("crafted") / "set.npz"
    np.savez(path, images=images.permute(0, 2, 3, 1).numpy(), labels=train.labels.numpy())
    return path


def cases(table: dict[str, tuple[str, ...]]) -> list[str]:
    return list(itertools.chain.from_iterable(table.values()))


@pytest.mark.parametrize("text", cases(METHOD_CASES))
def test_method_keeps_the_laws(text: str, crafted_file: Path) -> None:
    check_method(text.replace("PATH", str(crafted_file)))


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a small network, for defenses that start from some."""
    network = small_arch().network(7, (16, 16), (0,) * 3, (1,) * 3, stream(5, "weights"))
    path = tmp_path_factory.mktemp("weights") / "weights.pt"
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.parametrize("text", cases(DEFENSE_CASES))
def test_defense_keeps_the_laws(text: str, weights_file: Path) -> None:
    check_defense(text.replace("PATH", str(weights_file)))


def test_no_component_slips_by() -> None:
    assert METHOD_CASES.keys() == METHODS.entries.keys()
    assert DEFENSE_CASES.keys() == DEFENSES.entries.keys()


class TestTestImages:
    """Test images can have no influence: nothing that crafts can reach them."""

    def test_crafting_has_none(self) -> None:
        fields = {item.name for item in dataclasses.fields(Crafting) if item.init}
        assert fields == {
            *(
                "dataset",
                "rows",
                "mask",
                "seed",
                "device",
                "precision",
                "trained",
                "part",
                "scratch",
                "key",
            ),
            *(
                "monitor",
                "flop_per_gradient",
                "work_per_gradient",
                "bytes_per_gradient",
                "memory",
                "gradient_images",
                "facts",
            ),
        }

    def test_crafted_sets_do_not_depend_on_them(self) -> None:
        grid = Grid(methods="sep", dataset=DATASET, recipe=RECIPE, archs=ARCH, precision="fp32")
        expansion, splits = Expansion(grid), small_splits()
        other = splits._replace(test=splits.test.with_images(255 - splits.test.images))
        data = [TrainingData.cut(s, expansion.recipe, expansion.source) for s in (splits, other)]
        one, two = ([cell.identity for cell in expansion.cells(d)] for d in data)
        assert [a["crafted"] for a in one] == [b["crafted"] for b in two]
        assert one != two


class TestSelfEnsemble:
    """What plain SEP promises: every image moves on its own, the order of checkpoints is free."""

    # float32 sums depend on the batch's size and on the order of terms in the last bit; where a
    # gradient is zero up to rounding its sign may flip, which moves a component by a step or two.
    MOST_FLIPS = 0.01

    @pytest.mark.parametrize("name", ["sep", "sep-fa", "sep-fa-vr"])
    def test_size_of_chunks_is_free(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        method, train = small_method(f"{name}:checkpoints=2,steps=2"), small_splits().train
        whole = craft(method, train).images
        each_chunk = Crafting.each_chunk
        monkeypatch.setattr(
            Crafting, "each_chunk", lambda job, perturb: each_chunk(job, perturb, size=7)
        )
        assert whole.ne(craft(method, train).images).float().mean() < self.MOST_FLIPS

    def test_order_of_checkpoints_is_free(self) -> None:
        method, train = small_method("sep:checkpoints=5,steps=2"), small_splits().train
        job = crafting_job(method, train)
        forwards = method.craft(job)
        backwards = method.craft(
            dataclasses.replace(job, trained=lambda number: job.trained(number)[::-1])
        )
        assert forwards.ne(backwards).float().mean() < self.MOST_FLIPS


# Components that break one law each. They have a name but are in no registry.


@dataclass(frozen=True)
class Broken(BoundedMethod):
    """Does something it should not, which is a function from job and perturbation."""

    name = "broken"
    sin: Callable[[Crafting, Tensor], Any] = dataclasses.field(
        default=lambda job, delta: None, metadata={"help": "what is wrong"}
    )

    def settings(self) -> dict[str, Any]:
        return {}

    def craft(self, job: Crafting) -> Tensor:
        delta = torch.zeros(job.dataset.images.shape)
        wrong = self.sin(job, delta)
        return delta if wrong is None else wrong


def draws_from_torch(job: Crafting, delta: Tensor) -> Tensor:
    return (2 * torch.rand(delta.shape) - 1) / 255


def draws_from_python(job: Crafting, delta: Tensor) -> None:
    random.random()


def changes_images(job: Crafting, delta: Tensor) -> None:
    job.dataset.images[0] = 7


def changes_mask(job: Crafting, delta: Tensor) -> None:
    job.mask[:] = False


def counts_calls(job: Crafting, delta: Tensor) -> Tensor:
    calls.append(1)
    return delta + len(calls) / 255


calls: list[int] = []


@pytest.mark.parametrize(
    ("sin", "message"),
    [
        (draws_from_torch, "global random numbers must not be drawn"),
        (draws_from_python, "global random numbers must not be drawn"),
        (changes_images, "images must not be changed in place"),
        (counts_calls, "equal seeds must give equal bytes"),
        (lambda job, delta: delta[:3], r"delta is \(3, 3, 16, 16\)"),
        (lambda job, delta: delta.double(), "delta is torch.float64"),
        (lambda job, delta: delta / 0, "is not finite"),
        (lambda job, delta: delta + 9 / 255, "oversteps the budget l∞ 8/255"),
        (lambda job, delta: delta + 1 / 255, "oversteps the budget l∞ 0"),
        (lambda job, delta: delta.numpy(), "must return a tensor"),
        (changes_mask, "mask must not be changed in place"),
    ],
)
def test_kit_finds_a_broken_method(sin: Callable[..., Any], message: str) -> None:
    calls.clear()
    train = small_splits().train
    own = train.with_images(train.images.clone())
    with pytest.raises(AssertionError, match=message):
        check_method(Broken(sin=sin), own)
    check_method(Broken())


class ForgetsToResume(Broken):
    """Starts from the wrong place when it is continued."""

    def craft(self, job: Crafting) -> Tensor:
        start = (job.load("state") or {"level": 0})["level"]
        for level in range(start, 3):
            job.save("state", partial(dict, level=level + 1))
        return torch.full(job.dataset.images.shape, self.epsilon * (start > 0))


class NeverEnds(Broken):
    """Saves before it has done anything."""

    def craft(self, job: Crafting) -> Tensor:
        job.save("state", dict)
        return super().craft(job)


class AsksForTooMuch(Broken):
    """Wants a checkpoint that no training reaches."""

    def surrogates(self, recipe: Any) -> tuple[Surrogate, ...]:
        return (Surrogate("rn18", (1, recipe.epochs + 1)),)


@dataclass(frozen=True)
class Unexplained(Method):
    """A setting that nobody explains."""

    name = "unexplained"
    strength: float = 1.0


@dataclass(frozen=True)
class Nameless(Method):
    """Registered nowhere."""


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (ForgetsToResume(), "stopped and continued must give the same bytes"),
        (NeverEnds(), "never ends"),
        (AsksForTooMuch(), "checkpoint 6 comes after 5 epochs"),
        (Unexplained(), "setting 'strength' needs an explanation"),
        (Nameless(), re.escape("register it: @METHODS.register('name')")),
    ],
    ids=lambda value: value.name if isinstance(value, Method) else "",
)
def test_kit_finds_a_method_that_does_not_fit_in(
    method: Method, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.testing.MOST_INTERRUPTIONS", 20)
    with pytest.raises(AssertionError, match=message):
        check_method(method)


@dataclass(frozen=True)
class Plain(Defense):
    """A defense that does nothing, from which broken ones are made."""

    name = "plain"


def spoils_labels(self: Defense, images: Tensor, labels: Tensor, step: Any) -> Any:
    return images, labels * 0.9


def spoils_images(self: Defense, images: Tensor, labels: Tensor, step: Any) -> Any:
    return images.mul_(0.5), labels


def leaves_range(self: Defense, images: Tensor, labels: Tensor, step: Any) -> Any:
    return images + 0.1, labels


def draws_anywhere(self: Defense, images: Tensor, labels: Tensor, step: Any) -> Any:
    return images * torch.rand(1), labels


def reverses(self: Defense, dataset: Any, stream: Any) -> Any:
    return dataset.subset(torch.arange(len(dataset)).flip(0))


def stays_in_eval(self: Defense, network: Network, images: Tensor, labels: Tensor, step: Any):
    return Defense.loss(self, network.eval(), images, labels, step)


def freezes(self: Defense, network: Network, images: Tensor, labels: Tensor, step: Any):
    loss = Defense.loss(self, network, images, labels, step)
    network.head.requires_grad_(False)
    return loss


def forgets_backward(self: Defense, network: Network, images: Tensor, labels: Tensor, step: Any):
    return self.loss(network, images, labels, step).detach()


def narrows(self: Defense, arch: Arch, dataset: Any, stream: Any) -> Network:
    return arch.network(2, dataset.image_size, dataset.mean, dataset.std, stream)


def wakes(self: Defense, network: Network, images: Tensor, stream: Any) -> Tensor:
    return network.train()(images)


def loses_one(self: Defense, network: Network, images: Tensor, stream: Any) -> Tensor:
    return network(images)[:, 1:]


@pytest.mark.parametrize(
    ("hook", "broken", "message"),
    [
        ("batch", spoils_labels, "sum to 1"),
        ("batch", spoils_images, "images must not be changed in place"),
        ("batch", leaves_range, r"in \[0, 1\]"),
        ("batch", draws_anywhere, "global random numbers"),
        ("prepare", reverses, "labels and order"),
        ("loss", stays_in_eval, "modes as they were"),
        ("loss", freezes, "requires_grad as it was"),
        ("backward", forgets_backward, "fill the gradients"),
        ("build", narrows, "network of 2 classes"),
        ("predict", wakes, "must not change the network"),
        ("predict", loses_one, r"\(24, 3\), not \(24, 4\)"),
        ("cost", lambda self: 0.0, "not a positive number"),
    ],
)
def test_kit_finds_a_broken_defense(hook: str, broken: Callable[..., Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_defense(type("Broken", (Plain,), {hook: broken})())
    check_defense(Plain())


def test_other_budgets_are_held_exactly() -> None:
    class TwoNorm(Method):
        """Random directions of full length."""

        name, budget = "two-norm", Budget("l2", 0.5)

        def craft(self, job: Crafting) -> Tensor:
            delta = torch.randn(job.dataset.images.shape, generator=job.stream("directions"))
            return self.budget.project(delta)

    check_method(dataclass(frozen=True)(TwoNorm)())

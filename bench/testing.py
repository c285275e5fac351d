"""Check your own method or defense against the laws that every registered one keeps.

    from bench.testing import check_defense, check_method

    def test_my_method():
        check_method("my-method:steps=2")

Each check takes seconds on one core, needs no files, and raises AssertionError with the first law
that is broken. A component may be given as typed on the command line, if the registry can find it,
or as an object; as text it takes the shortened settings of small recipes and narrow networks.

`craft` and `crafting_job` do in memory what a run does with a store, for tests of single methods.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.component import Component, build, canonical, parse_one
from bench.composition import parts_of
from bench.crafting import Crafting, Monitor
from bench.data import ImageDataset, Places, Splits, to_unit
from bench.defense import SIDE_INFORMATION, Defense, Step, one_hot
from bench.errors import Stopped
from bench.grid import Expansion, Grid
from bench.method import BoundedMethod, Method, Surrogate
from bench.network import Arch, Network, freeze
from bench.recipe import Recipe
from bench.registry import ARCHS, DATASETS, DEFENSES, METHODS, RECIPES, Registry
from bench.release import OverstepError, Released, draw_mask, release
from bench.seeding import stream
from bench.stack import build_defense
from bench.train import Training

DATASET = "synthetic:train=48,test=24"
RECIPE = "quick:epochs=5,batch_size=16,width=0.0625,train_images=none,curve_images=none"
"""Five epochs, since methods shortened for small recipes ask for up to five checkpoints."""
ARCH = "rn18:width=0.0625"
CPU = torch.device("cpu")
MOST_INTERRUPTIONS = 1000


def check_method(method: Method | str, dataset: ImageDataset | None = None) -> None:
    """Raise AssertionError for the first law that a protection method breaks.

    Args:
        method: for instance `"sep:checkpoints=2,steps=2"`, or an object; an object's settings stay,
            so give it a narrow surrogate if it builds one itself.
        dataset: clean training images; a small synthetic set if left out.
    """
    method = small_method(method) if isinstance(method, str) else method
    dataset = dataset or small_splits().train
    judge = Judge("method", method)
    _check_settings(judge, method, METHODS)
    _check_plans(judge, method, dataset)
    _check_delta(judge, method, dataset)
    first = _release(judge, method, dataset, crafting_job(method, dataset), global_seed=1)
    _check_repeats(judge, method, dataset, first)
    _check_resumes(judge, method, dataset, first)
    _check_mask(judge, method, dataset)
    _check_zero_epsilon(judge, method, dataset)
    _check_parts(judge, method, dataset)


def check_defense(defense: Defense | str, splits: Splits | None = None) -> None:
    """Raise AssertionError for the first law that a defense breaks.

    Args:
        defense: for instance `"at-linf:steps=2"`, or an object.
        splits: images to train and to test on; a small synthetic set if left out.
    """
    if isinstance(defense, str):
        defense = build_defense(parse_one(defense, DEFENSES), small_recipe().scale)
    splits = splits or small_splits()
    judge = Judge("defense", defense)
    _check_settings(judge, defense, DEFENSES)
    _check_facts(judge, defense)
    defense.check(splits.train)
    _check_prepare(judge, defense, splits.train)
    _check_batch(judge, defense, splits.train)
    _check_backward(judge, defense, splits.train)
    _check_training(judge, defense, splits)


# What the checks work with


@cache
def small_splits() -> Splits:
    """A few synthetic images, with an all-black and an all-white one among those to train on."""
    source = build(DATASETS, parse_one(DATASET, DATASETS))
    train, test = source.load(Places(Path(), Path(), download=False))
    images = train.images.clone()
    images[0], images[1] = 0, 255
    return Splits(train.with_images(images), test)


@cache
def small_recipe() -> Recipe:
    """How the checks train."""
    return build(RECIPES, parse_one(RECIPE, RECIPES))


def small_method(text: str) -> Method:
    """The method that the command line would make of this text under `small_recipe`."""
    parse_one(text, METHODS)
    grid = Grid(
        methods=text, archs=ARCH, dataset=DATASET, recipe=RECIPE, precision="fp32", device="cpu"
    )
    return Expansion(grid).methods[-1][1]  # behind the control, unless it is the control


def small_arch() -> Arch:
    """What the checks of defenses train."""
    return build(ARCHS, parse_one(ARCH, ARCHS))


def victim(defense: Defense, dataset: ImageDataset, seed: int = 0) -> Training:
    """A small network about to be trained on released images."""
    return Training(small_arch(), dataset, small_recipe(), defense, seed, "victim", CPU, "fp32")


def crafting_job(
    method: Method,
    dataset: ImageDataset,
    craft_seed: int = 0,
    poison_ratio: float = 1.0,
    recipe: Recipe | None = None,
    **more: Any,
) -> Crafting:
    """A job in memory, with surrogates trained when they are first asked for.

    Args:
        method: whose surrogates it offers.
        dataset: clean training images.
        craft_seed: of everything that is drawn.
        poison_ratio: share of the images to protect.
        recipe: the victims'; `small_recipe` if left out.
        more: further fields of `Crafting`.
    """
    surrogates = method.surrogates(recipe or small_recipe())

    def trained(number: int) -> Sequence[Network]:
        return checkpoints(surrogates[number], dataset, recipe or small_recipe(), craft_seed)

    def part(number: int) -> Tensor:
        return craft(parts_of(method)[number], dataset, craft_seed, poison_ratio, recipe).images

    return Crafting(
        dataset=dataset,
        rows=torch.arange(len(dataset)),
        mask=draw_mask(dataset.labels, poison_ratio, craft_seed),
        seed=craft_seed,
        device=CPU,
        precision="fp32",
        trained=trained,
        **{"part": part, **more},
    )


def craft(
    method: Method,
    dataset: ImageDataset,
    craft_seed: int = 0,
    poison_ratio: float = 1.0,
    recipe: Recipe | None = None,
) -> Released:
    """Protect a dataset in memory; arguments as for `crafting_job`."""
    job = crafting_job(method, dataset, craft_seed, poison_ratio, recipe)
    return release(dataset, method.craft(job), job.mask, method.budget)


@lru_cache(maxsize=16)
def checkpoints(
    surrogate: Surrogate, dataset: ImageDataset, recipe: Recipe, seed: int
) -> tuple[Network, ...]:
    """A surrogate, trained and frozen at the epochs it is wanted at."""
    arch = build(ARCHS, parse_one(surrogate.arch, ARCHS), recipe.scale, {"width": recipe.width})
    training = Training(
        arch,
        dataset,
        surrogate.recipe or recipe,
        build_defense(parse_one(surrogate.defense, DEFENSES)),
        seed,
        f"surrogate-{surrogate.index}",
        CPU,
        "fp32",
    )
    frozen = []
    while training.epoch < max(surrogate.epochs):
        training.run_epoch()
        if training.epoch in surrogate.epochs:
            frozen.append(freeze(training.network, CPU, "fp32", surrogate.folded))
    return tuple(frozen)


# Laws of every component


class Judge:
    """Speaks for one component.

    Args:
        kind: what the component is called.
        component: which one is judged.

    Attributes:
        who: how messages call it.
    """

    def __init__(self, kind: str, component: Component) -> None:
        self.who = f"{kind} '{component.name or type(component).__name__}'"

    def demand(self, holds: bool, law: str) -> None:
        """Raise AssertionError with the law unless it holds."""
        if not holds:
            raise AssertionError(f"{self.who}: {law}")

    @contextmanager
    def watch(self, global_seed: int = 0, **tensors: Tensor) -> Iterator[None]:
        """Demand that neither the given tensors nor the global random numbers are touched.

        Args:
            global_seed: what the global generators start from meanwhile. Results that should be
                equal are computed under different ones, so that reading them is found out, too.
            tensors: by the name they are called in the message.
        """
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        outside = _global_state()
        random.seed(global_seed)
        np.random.seed(global_seed)  # noqa: NPY002 - to see whether anybody uses it
        torch.manual_seed(global_seed)
        before = pickle.dumps(_global_state())
        try:
            yield
            after = pickle.dumps(_global_state())
        finally:
            _set_global_state(outside)
        self.demand(after == before, "global random numbers must not be drawn; use the stream")
        for name, tensor in tensors.items():
            self.demand(tensor.equal(copies[name]), f"{name} must not be changed in place")


def _global_state() -> tuple[Any, ...]:
    numbers = torch.random.get_rng_state().numpy().copy()
    return random.getstate(), np.random.get_state(), numbers  # noqa: NPY002


def _set_global_state(state: tuple[Any, ...]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])  # noqa: NPY002
    torch.random.set_rng_state(torch.from_numpy(state[2]))


def _check_settings(judge: Judge, component: Component, registry: Registry) -> None:
    cls = type(component)
    judge.demand(bool(component.name), f"register it: @{registry.variable}.register('name')")
    judge.demand(
        dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen,  # type: ignore[attr-defined]
        "its class must be a @dataclass(frozen=True)",
    )
    for item in dataclasses.fields(cls):
        told = bool(item.metadata.get("help"))
        judge.demand(told, f"setting '{item.name}' needs an explanation: setting(default, help)")
    try:
        stored = json.loads(json.dumps(component.identity(), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{judge.who}: its settings do not fit into JSON: {error}") from None
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in stored["settings"].items()}
    expected = {i.name for i in dataclasses.fields(cls) if not i.metadata.get("added")}
    if expected <= values.keys() <= {item.name for item in dataclasses.fields(cls)}:
        # Otherwise it is known by something else, as somebody's own file is by its content.
        judge.demand(cls(**values) == component, "settings read back from JSON must give the same")
    if component.name in registry.entries:
        entry = registry.entry(component.name)
        judge.demand(bool(entry.summary), "the first line of its docstring must summarise it")
        text = canonical(component, registry)
        again = build(registry, parse_one(text, registry))
        judge.demand(again == component, f"its label, typed as '{text}', must give the same")


# Laws of methods


def _check_plans(judge: Judge, method: Method, dataset: ImageDataset) -> None:
    method.check(dataset, torch.arange(len(dataset)), len(dataset))
    count = method.gradient_images(len(dataset))
    judge.demand(type(count) is int and count >= 0, f"gradient_images gave {count!r}, no count")
    recipe = small_recipe()
    for surrogate in method.surrogates(recipe):
        epochs = surrogate.epochs
        rising = list(epochs) == sorted(set(epochs)) and min(epochs, default=0) >= 1
        judge.demand(rising, f"a surrogate's epochs {epochs} must rise from 1 or more")
        most = (surrogate.recipe or recipe).epochs
        judge.demand(max(epochs) <= most, f"checkpoint {max(epochs)} comes after {most} epochs")


def _check_delta(judge: Judge, method: Method, dataset: ImageDataset) -> None:
    job = crafting_job(method, dataset)
    with judge.watch(images=dataset.images, labels=dataset.labels, mask=job.mask):
        delta = method.craft(job)
    wanted = tuple(dataset.images.shape)
    judge.demand(isinstance(delta, Tensor), f"craft must return a tensor, not {type(delta)}")
    judge.demand(tuple(delta.shape) == wanted, f"delta is {tuple(delta.shape)}, not {wanted}")
    judge.demand(delta.dtype == torch.float32, f"delta is {delta.dtype}, not float32")


def _release(
    judge: Judge, method: Method, dataset: ImageDataset, job: Crafting, global_seed: int = 0
) -> Released:
    """Craft and release under the laws that hold for every single crafting."""
    with judge.watch(global_seed, images=dataset.images, labels=dataset.labels):
        delta = method.craft(job)
    try:
        released = release(dataset, delta, job.mask, method.budget)
    except OverstepError as error:
        raise AssertionError(f"{judge.who}: {error}") from None
    levels = released.images.to(torch.int16) - dataset.images.to(torch.int16)
    inside = bool(method.budget.contains(levels).all())
    judge.demand(inside, f"released images must keep the budget {method.budget} exactly")
    stay = released.images[~job.mask].equal(dataset.images[~job.mask])
    judge.demand(stay, "images outside the mask must stay byte for byte")
    return released


def _check_repeats(judge: Judge, method: Method, dataset: ImageDataset, first: Released) -> None:
    again = _release(judge, method, dataset, crafting_job(method, dataset), global_seed=2)
    differ = int(again.images.ne(first.images).flatten(1).any(1).sum())
    judge.demand(differ == 0, f"equal seeds must give equal bytes; {differ} images differ")


class _StopsAlways(Monitor):
    def stopping(self) -> bool:
        return True


def _check_resumes(judge: Judge, method: Method, dataset: ImageDataset, first: Released) -> None:
    """Stopped wherever it saves and started anew, crafting must come to the same end."""
    whole = crafting_job(method, dataset)
    method.craft(whole)
    with TemporaryDirectory() as folder:
        for _ in range(MOST_INTERRUPTIONS):
            options = {"scratch": Path(folder), "monitor": _StopsAlways()}
            job = crafting_job(method, dataset, **options)
            try:
                released = _release(judge, method, dataset, job)
                break
            except Stopped:
                continue
        else:
            raise AssertionError(f"{judge.who}: crafting never ends if stopped where it saves")
    equal = released.images.equal(first.images)
    judge.demand(equal, "crafting that is stopped and continued must give the same bytes")
    counts = job.gradient_images, whole.gradient_images
    judge.demand(
        counts[0] == counts[1], f"stopped and continued it spends {counts[0]}, not {counts[1]}"
    )
    same = job.facts == whole.facts
    judge.demand(same, f"stopped and continued it reports {job.facts}, not {whole.facts}")


def _check_mask(judge: Judge, method: Method, dataset: ImageDataset) -> None:
    """Another seed and half of the images: everything that `_release` demands still holds."""
    job = crafting_job(method, dataset, craft_seed=1, poison_ratio=0.5)
    mask = job.mask.clone()
    _release(judge, method, dataset, job)
    judge.demand(job.mask.equal(mask), "mask must not be changed in place")


def _check_zero_epsilon(judge: Judge, method: Method, dataset: ImageDataset) -> None:
    if isinstance(method, BoundedMethod):  # whatever its norm
        none = dataclasses.replace(method, epsilon=0.0)
        released = _release(judge, none, dataset, crafting_job(none, dataset))
        judge.demand(released.images.equal(dataset.images), "epsilon 0 must give the clean bytes")


@dataclass
class _Heard(Crafting):
    """A job that remembers which streams were drawn from."""

    streams: set[tuple[str | int, ...]] = field(default_factory=set)

    def stream(self, *purpose: str | int) -> torch.Generator:
        self.streams.add(purpose)
        return super().stream(*purpose)


def _check_parts(judge: Judge, method: Method, dataset: ImageDataset) -> None:
    """Perturbations that share their draws add up to one pattern, not to two."""
    drawn: set[tuple[str | int, ...]] = set()
    for part in parts_of(method):
        job = crafting_job(part, dataset)
        heard = _Heard(**{f.name: getattr(job, f.name) for f in dataclasses.fields(job) if f.init})
        part.craft(heard)
        shared = sorted(map(str, drawn & heard.streams))
        law = f"its parts must draw from streams of their own, and share {', '.join(shared)}"
        judge.demand(not shared, law)
        drawn |= heard.streams


# Laws of defenses


def _check_facts(judge: Judge, defense: Defense) -> None:
    cost = defense.cost()
    judge.demand(math.isfinite(cost) and cost > 0, f"cost is {cost}, not a positive number")
    tested = defense.prediction_cost()
    judge.demand(math.isfinite(tested) and tested > 0, f"prediction_cost is {tested}")
    facts = dict(defense.facts(small_recipe(), 48, 1000))
    numbers = all(isinstance(v, (int, float)) and math.isfinite(v) for v in facts.values())
    judge.demand(numbers, f"facts must be finite numbers, not {facts}")
    changed = defense.adapt(small_recipe()).departures(small_recipe()).keys()
    excess = changed - {"optimizer", "lr", "weight_decay"}
    judge.demand(not excess, f"adapt must not change {', '.join(sorted(excess))}")
    known = defense.side_information
    judge.demand(known in SIDE_INFORMATION, f"side_information is {known!r}")


def _twice(judge: Judge, make: Callable[[], Any], **tensors: Tensor) -> tuple[Any, Any]:
    """What a hook gives under equal streams and different global random numbers."""
    with judge.watch(1, **tensors):
        first = make()
    with judge.watch(2, **tensors):
        second = make()
    return first, second


def _check_prepare(judge: Judge, defense: Defense, released: ImageDataset) -> None:
    prepared, again = _twice(
        judge,
        lambda: defense.prepare(released, stream(0, "prepare")),
        images=released.images,
        labels=released.labels,
    )
    same = prepared.labels.equal(released.labels) and prepared.classes == released.classes
    judge.demand(same, "prepare must keep number, labels and order")
    shape = tuple(prepared.images.shape)
    judge.demand(shape == tuple(released.images.shape), f"prepare made images of shape {shape}")
    judge.demand(bool(prepared.images.isfinite().all()), "prepare made values that are not finite")
    judge.demand(prepared.images.equal(again.images), "prepare: equal streams, unequal results")
    values = to_unit(prepared.images)
    inside = bool(((values >= 0) & (values <= 1)).all())
    law = "prepare must keep images in [0, 1], unless leaves_range says otherwise"
    judge.demand(inside or defense.leaves_range, law)


def _check_batch(judge: Judge, defense: Defense, dataset: ImageDataset) -> None:
    classes = len(dataset.classes)
    for count, epoch in ((12, 0), (12, 4), (1, 0)):  # a first, a last, and a lonely batch
        images = to_unit(dataset.images[:count])
        labels = one_hot(dataset.labels[:count], Step(epoch, 5, classes, stream(0, "batch")))

        def make(images: Tensor = images, labels: Tensor = labels, epoch: int = epoch) -> Any:
            return defense.batch(images, labels, Step(epoch, 5, classes, stream(0, "batch")))

        (x, y), again = _twice(judge, make, images=images, soft_labels=labels)
        judge.demand(x.shape == images.shape, f"batch made images of shape {tuple(x.shape)}")
        judge.demand(x.dtype == y.dtype == torch.float32, f"batch gave {x.dtype} and {y.dtype}")
        judge.demand(y.shape == (count, classes), f"batch made labels of shape {tuple(y.shape)}")
        inside = bool(((x >= -1e-6) & (x <= 1 + 1e-6)).all())
        law = "batch must keep images in [0, 1], unless leaves_range says otherwise"
        judge.demand(inside or defense.leaves_range, law)
        whole = bool((y >= 0).all()) and torch.allclose(y.sum(1), torch.ones(count))
        judge.demand(whole, "soft labels must not be negative, and sum to 1")
        equal = x.equal(again[0]) and y.equal(again[1])
        judge.demand(equal, "batch: equal streams, unequal results")


def _check_backward(judge: Judge, defense: Defense, dataset: ImageDataset) -> None:
    def build_network() -> Network:
        return defense.build(small_arch(), dataset, stream(0, "build"))

    network, twin = _twice(judge, build_network)
    outputs = network.head.out_features
    judge.demand(outputs == len(dataset.classes), f"build made a network of {outputs} classes")
    judge.demand(_equal_states(network, twin), "build: equal streams, unequal networks")
    network.train()
    modes = [module.training for module in network.modules()]
    flags = [weight.requires_grad for weight in network.parameters()]
    step = Step(0, 5, len(dataset.classes), stream(0, "step"))
    images, labels = to_unit(dataset.images[:12]), one_hot(dataset.labels[:12], step)
    images, soft_labels = defense.batch(images, labels, step)
    with judge.watch(images=images, soft_labels=soft_labels):
        loss = defense.backward(network, images, soft_labels, step)
    number = loss.ndim == 0 and bool(loss.isfinite()) and not loss.requires_grad
    judge.demand(number, "backward must return the loss: one finite number, detached")
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    filled = bool(gradients) and all(bool(g.isfinite().all()) for g in gradients)
    judge.demand(filled, "backward must fill the gradients with finite numbers")
    same = modes == [module.training for module in network.modules()]
    judge.demand(same, "backward must leave train and eval modes as they were")
    same = flags == [weight.requires_grad for weight in network.parameters()]
    judge.demand(same, "backward must leave requires_grad as it was")


def _check_training(judge: Judge, defense: Defense, splits: Splits) -> None:
    train, test = splits

    def two_epochs() -> tuple[Training, list[dict[str, Any]]]:
        training = victim(defense, train)
        return training, [training.run_epoch(), training.run_epoch()]

    fresh = defense.build(small_arch(), train, stream(0, "victim", "build"))
    (training, rows), (twin, other_rows) = _twice(judge, two_epochs, images=train.images)
    network = training.network
    same = rows == other_rows and _equal_states(network, twin.network)
    judge.demand(same, "equal seeds must give equal curves and weights")
    weights = list(network.parameters())
    finite = all(bool(weight.isfinite().all()) for weight in weights)
    judge.demand(finite, "weights must stay finite")
    moved = any(not now.equal(then) for now, then in zip(weights, fresh.parameters(), strict=True))
    judge.demand(moved, "training must change the weights")
    judge.demand(network.training, "an epoch must end in train mode")
    with judge.watch(images=train.images, labels=train.labels):
        training.finish()
    judge.demand(isinstance(training.network, Network), "finish must return a network")
    _check_predict(judge, defense, training, test)


def _check_predict(judge: Judge, defense: Defense, training: Training, test: ImageDataset) -> None:
    network = training.network.eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    images = to_unit(test.images)

    def predict() -> Tensor:
        with torch.no_grad():
            return defense.predict(network, images, stream(0, "predict"))

    scores, again = _twice(judge, predict, images=images)
    wanted = (len(test), len(test.classes))
    judge.demand(scores.shape == wanted, f"predict gave shape {tuple(scores.shape)}, not {wanted}")
    judge.demand(bool(scores.isfinite().all()), "predict gave scores that are not finite")
    judge.demand(scores.equal(again), "predict: equal streams, unequal scores")
    with judge.watch(images=test.images, labels=test.labels):
        counts = training.confusion(test)
    of_class = torch.bincount(test.labels, minlength=len(test.classes))
    judge.demand(counts.sum(1).equal(of_class), "every test image must be counted once")
    still = all(value.equal(before[key]) for key, value in network.state_dict().items())
    judge.demand(still, "evaluation must not change the network")
    judge.demand(not any(m.training for m in network.modules()), "predict must stay in eval mode")
    altered = "prediction that is not the network's must be told: alters_prediction = True"
    judge.demand(defense.alters_prediction or not defense.replaces("predict"), altered)


def _equal_states(one: Network, other: Network) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(first[k].equal(second[k]) for k in first)

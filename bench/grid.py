"""From what was asked for to cells, each with all that decides its numbers."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from bench.component import (
    Component,
    Spec,
    bracket,
    build,
    canonical,
    few,
    parse,
    parse_one,
    unwrap,
    variants,
)
from bench.composition import Composition, parts_of
from bench.data import DatasetSource, ImageDataset, Splits, balanced_rows
from bench.decoded import channel_statistics
from bench.defense import Defense
from bench.device import choose_device, choose_precision
from bench.errors import UsageError
from bench.files import slugify, user_path
from bench.joined import Joined
from bench.method import PLAIN, BoundedMethod, Method, Surrogate
from bench.names import composed, text_of
from bench.network import Arch, Precision
from bench.recipe import Recipe, leaves_one
from bench.record import CLEAN_PART, CONTROL, EACH
from bench.registry import ARCHS, DATASETS, DEFENSES, METHODS, RECIPES, Registry
from bench.release import draw_mask
from bench.stack import build_defense
from bench.store import key_of
from bench.worst_case import expand

C = TypeVar("C", bound=Component)

SCHEMA = 1
"""Part of every identity; raise it when the meaning of an identity changes."""
MOST_CELLS = 100_000
"""Of a grid: more take longer to list than anybody waits."""


@dataclass(frozen=True)
class Grid:
    """What to run, as typed; every combination of methods, defenses, architectures and seeds.

    Attributes:
        methods: for instance "sep,advpoison", "all", "sep*", "sep:steps=15,noise".
        archs: likewise.
        defenses: likewise; or a set of them, "auto" or "auto-fast".
        dataset: one data set.
        recipe: one recipe.
        epsilon: radii for l-inf methods, in units of [0, 1], each a row of its own; None leaves
            each method's own.
        seeds: of the victims.
        craft_seed: of everything a protector draws; `each` crafts a set for every victim seed,
            with that seed.
        poison_ratio: shares of the training images that are protected, each a table of its own.
        protect_classes: the only classes that are protected, as typed: "5-9,cat", or "all"; empty
            for what the data set's paper protects.
        clean_part: whether victims are also trained on the unprotected images alone.
        holdout: released images kept from training and evaluated after every epoch.
        precision: `auto`, `fp32`, `tf32` or `bf16`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; it decides nothing but `auto` precision.
    """

    methods: str = "sep,advpoison"
    archs: str = "rn18,vgg16"
    defenses: str = "none"
    dataset: str = "cifar10"
    recipe: str = "quick"
    epsilon: tuple[float, ...] | None = None
    seeds: tuple[int, ...] = (0,)
    craft_seed: int | Literal["each"] = 0
    poison_ratio: tuple[float, ...] = (1.0,)
    protect_classes: str = ""
    clean_part: bool = False
    holdout: int = 0
    precision: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        # Equal grids must have equal keys, whether they were typed with 1, 1.0 or range(2).
        for name, kind in (("seeds", int), ("poison_ratio", float), ("epsilon", float)):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _each(name, getattr(self, name), kind))
        if not self.seeds:
            raise UsageError("no seeds given; write --seeds 0 or --seeds 0,1,2")
        if not self.poison_ratio or self.epsilon == ():
            raise UsageError("an empty list of poison ratios or radii leaves nothing to run")
        for ratio in self.poison_ratio:
            if not 0 <= ratio <= 1:
                raise UsageError(f"poison ratio {ratio:g} must lie between 0 and 1")
        if isinstance(self.craft_seed, str) and self.craft_seed != EACH:
            raise UsageError(f"craft seed '{self.craft_seed}' must be a number, or {EACH}")
        if self.holdout < 0:
            raise UsageError(f"holdout {self.holdout} must not be negative")
        for epsilon in self.epsilon or ():
            if not 0 <= epsilon <= 1:
                raise UsageError(
                    f"epsilon {epsilon:g} must lie between 0 and 1; write 8/255 for 8 grey levels"
                )


def _each(name: str, values: Any, kind: Callable[[Any], Any]) -> tuple[Any, ...]:
    """One value or several, each once."""
    several = values if isinstance(values, Iterable) else (values,)
    return few(name, map(kind, several))


@dataclass(frozen=True)
class TrainingData:
    """The images of a grid: the recipe's part of the training split, and the test split.

    Attributes:
        rows: (n,) int64, where the training images stand in the whole split.
        train: clean training images.
        test: clean test images; no method ever sees them.
        label: the data set as typed.
        total: images in the whole training split.
    """

    rows: Tensor
    train: ImageDataset
    test: ImageDataset
    label: str
    total: int

    @classmethod
    def cut(cls, splits: Splits, recipe: Recipe, source: DatasetSource) -> TrainingData:
        """The class-balanced part of the training split that a recipe trains on.

        Where mean and standard deviation are measured they are measured on that part, so that
        they are known to whoever knows its digest.
        """
        rows = balanced_rows(splits.train.labels, recipe.train_images)
        whole = len(rows) == len(splits.train)
        train = splits.train if whole else splits.train.subset(rows)
        if source.measured_statistics and not whole:
            mean, std = channel_statistics(train.images)
            train = dataclasses.replace(train, mean=mean, std=std)
        return cls(rows, train, splits.test, source.title, len(splits.train))

    @cached_property
    def curve_test(self) -> dict[int | None, ImageDataset]:
        """Test subsets already cut, by size."""
        return {}

    def test_for_curve(self, count: int | None) -> ImageDataset:
        """The class-balanced part of the test split that curve points are taken on."""
        if count not in self.curve_test:
            rows = balanced_rows(self.test.labels, count)
            whole = len(rows) == len(self.test)
            self.curve_test[count] = self.test if whole else self.test.subset(rows)
        return self.curve_test[count]


def _last_batch(joins: bool) -> dict[str, str]:
    """What identities say of the last batch: nothing but where `bench.recipe.batches` joins one.

    All others had their keys before a single image left over joined the batch before it.
    """
    return {"last_batch": "joined"} if joins else {}


@dataclass(frozen=True)
class SurrogateJob:
    """One surrogate training."""

    surrogate: Surrogate
    arch: Arch
    recipe: Recipe
    seed: int
    precision: Precision
    train_digest: str
    defense: Defense
    joins: bool = False
    """Whether a single image left over joins the last batch of every epoch."""

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that decides its weights; which checkpoints are kept does not."""
        said = {
            "schema": SCHEMA,
            "kind": "surrogate",
            "train": self.train_digest,
            "arch": self.arch.identity(),
            "recipe": self.recipe.identity(),
            "precision": self.precision,
            "seed": self.seed,
            "index": self.surrogate.index,
        }
        # Most are trained plainly, and the keys of those are older than the choice.
        said |= {"defense": self.defense.identity()} if self.defended else {}
        return said | _last_batch(self.joins)

    @property
    def defended(self) -> bool:
        """Whether it is trained otherwise than plainly."""
        return self.surrogate.defense != PLAIN

    @property
    def slug(self) -> str:
        """A label for people."""
        parts = [self.arch.title, self.recipe.name or "own"]
        return "-".join([*parts, self.defense.title] if self.defended else parts)


@dataclass(frozen=True)
class CraftJob:
    """One crafted set.

    Attributes:
        parts: the crafted sets that a composition is made of.
        classes: the only classes that are protected, as indices; None for all.
        joins: whether the method trains a network of its own, and there a single image left over
            joins the last batch.
    """

    method: Method
    surrogates: tuple[SurrogateJob, ...]
    poison_ratio: float
    seed: int
    precision: Precision
    train_digest: str
    parts: tuple[CraftJob, ...] = ()
    classes: tuple[int, ...] | None = None
    joins: bool = False

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that decides its bytes."""
        more: dict[str, Any] = _last_batch(self.joins)
        if self.parts:
            more["parts"] = [part.identity for part in self.parts]
        if self.classes is not None:
            more["classes"] = list(self.classes)
        return more | {
            "schema": SCHEMA,
            "kind": "crafted",
            "train": self.train_digest,
            "method": self.method.identity(),
            "surrogates": [
                {**job.identity, "epochs": list(job.surrogate.epochs)} for job in self.surrogates
            ],
            "poison_ratio": self.poison_ratio,
            "seed": self.seed,
            "precision": self.precision,
        }

    @property
    def slug(self) -> str:
        """A label for people."""
        return slugify(self.method.title)

    def called(self, label: str) -> str:
        """A method's label with what else tells crafted sets of one grid apart."""
        if any(key.endswith("epsilon") for key in self.method.deviations()):
            label += f" {self.method.budget}" if "epsilon" not in label else ""
        return label if self.poison_ratio == 1 else f"{label} at ratio {self.poison_ratio:g}"

    def mask(self, labels: Tensor) -> Tensor:
        """Which of the training images, given their labels (n,), are protected; (n,) bool."""
        return draw_mask(labels, self.poison_ratio, self.seed, self.classes)


@dataclass(frozen=True)
class Cell:
    """One victim training: the unit of the grid, of the records and of the tables."""

    crafting: CraftJob
    defense: Defense
    arch: Arch
    recipe: Recipe
    precision: Precision
    holdout: int
    seed: int
    test_digest: str
    labels: Mapping[str, str] = field(hash=False)
    """How tables call `method`, `defense`, `arch`, `recipe` and `dataset`."""
    joins: bool = False
    """Whether a single image left over joins the last batch of every epoch."""
    crafted_by: str = ""
    """The label of the recipe that the crafted set is of, where it is not the victim's."""

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that decides its numbers."""
        return _last_batch(self.joins) | {
            "schema": SCHEMA,
            "kind": "cell",
            "crafted": self.crafting.identity,
            "test": self.test_digest,
            "defense": self.defense.identity(),
            "arch": self.arch.identity(),
            "recipe": self.recipe.identity(),
            "precision": self.precision,
            "holdout": self.holdout,
            "seed": self.seed,
        }

    @cached_property
    def key(self) -> str:
        """SHA-256 of the identity."""
        return key_of(self.identity)

    def longer(self) -> Cell:
        """The same cell, with the very same crafted set, trained for twice the epochs."""
        given = self.recipe
        milestones = tuple(2 * epoch for epoch in given.milestones)
        recipe = dataclasses.replace(given, epochs=2 * given.epochs, milestones=milestones)
        labels = {**self.labels, "recipe": canonical(recipe, RECIPES)}
        crafted_by = self.labels["recipe"]
        return dataclasses.replace(self, recipe=recipe, labels=labels, crafted_by=crafted_by)

    @property
    def trained_by(self) -> Recipe:
        """The recipe as architecture and defense adapt it."""
        return self.defense.adapt(self.arch.adapt(self.recipe))

    @property
    def slug(self) -> str:
        """A label for people: the front of the record's file name."""
        names = [self.crafting.method.title, self.arch.title, self.defense.title, self.recipe.name]
        return slugify("-".join([*names, f"s{self.seed}"]))

    @property
    def title(self) -> str:
        """The cell in progress lines."""
        defense = "" if self.defense.name == "none" else f" + {self.labels['defense']}"
        method = self.crafting.called(self.labels["method"])
        return f"{method}{defense} × {self.labels['arch']}, seed {self.seed}"


class Expansion:
    """A grid with its names resolved; no images are needed yet.

    Raises:
        UsageError: in one line, for anything that cannot be run as asked.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.device = choose_device(grid.device)
        self.recipe: Recipe = build(RECIPES, parse_one(grid.recipe, RECIPES))
        self.recipe_label = canonical(self.recipe, RECIPES)
        self.precision: Precision = choose_precision(
            grid.precision, self.recipe.precision, self.device
        )
        self.source: DatasetSource = build(DATASETS, parse_one(grid.dataset, DATASETS))
        self.archs = self._components(parse(grid.archs, ARCHS), ARCHS, self._arch)
        listed = parse(expand(grid.defenses), DEFENSES)
        self.defenses = self._components(listed, DEFENSES, self._defense)
        methods = [Spec(CONTROL), *parse(grid.methods, METHODS)]
        if grid.clean_part:
            methods.insert(1, Spec(CLEAN_PART))
        self.methods = self._components(methods, METHODS, self._method)
        for label, method in self.methods:
            parts = parts_of(method)
            if len({_pattern(part) for part in parts}) < len(parts):
                raise UsageError(f"'{label}' joins a method with itself; nothing would be new")
        if grid.epsilon is not None and not any(
            takes_epsilon(type(part))
            for _, method in self.methods
            for part in parts_of(method) or (method,)
        ):
            names = ", ".join(label for label, _ in self.methods)
            raise UsageError(f"--epsilon is given, but none of {names} has an l∞ budget")

    def cells(self, data: TrainingData) -> list[Cell]:
        """Every cell, the control first."""
        if self.grid.holdout >= len(data.train):
            raise UsageError(
                f"holdout {self.grid.holdout} leaves nothing of {len(data.train)} training images"
            )
        axes = (self.methods, self.defenses, self.archs, self.grid.seeds, self.grid.poison_ratio)
        count = math.prod(map(len, axes))
        if count > MOST_CELLS:
            raise UsageError(f"{count} cells are more than the {MOST_CELLS} that one grid may have")
        classes = self.protected_classes(data.train)
        usual = [data.train.classes.index(name) for name in self.source.protected_classes]
        cells: dict[str, Cell] = {}
        for ratio, (method_label, method) in itertools.product(
            self.grid.poison_ratio, self.methods
        ):
            method = _fitted(method, data.train, usual)
            craftings = {
                seed: self._crafting(method, data.train, ratio, crafted, classes)
                for seed, crafted in self._craft_seeds.items()
            }
            crafting = craftings[self.grid.seeds[0]]
            left = len(data.train)
            if method.unprotected_only:
                left = int((~crafting.mask(data.train.labels)).sum())
                if not left and len(self.grid.poison_ratio) > 1:
                    continue  # the other ratios have a clean part
                if left <= self.grid.holdout:
                    raise UsageError(
                        f"{method.name} leaves {left} images at poison ratio {ratio:g}; protect "
                        "or hold out fewer with --poison-ratio, --protect-classes or --holdout"
                    )
            for defense_label, defense in self.defenses:
                for arch_label, arch in self.archs:
                    labels = {
                        "method": method_label,
                        "defense": defense_label,
                        "arch": arch_label,
                        "recipe": self.recipe_label,
                        "dataset": data.label,
                    }
                    for seed in self.grid.seeds:
                        cell = Cell(
                            craftings[seed],
                            defense,
                            arch,
                            self.recipe,
                            self.precision,
                            self.grid.holdout,
                            seed,
                            data.test.digest,
                            labels,
                            self.recipe.joins(left - self.grid.holdout),
                        )
                        cells.setdefault(cell.key, cell)  # every ratio has the same control
        return list(cells.values())

    def protected_classes(self, train: ImageDataset) -> tuple[int, ...] | None:
        """Indices of the only classes that are protected, or None for all."""
        typed, usual = self.grid.protect_classes, self.source.protected_classes
        if typed.strip() == "all" or not (typed or usual):
            return None
        if typed and not typed.strip(", "):
            raise UsageError("--protect-classes: no class given")
        listed = _listed_classes(typed, train.classes) if typed else usual
        found = sorted({index for piece in listed for index in _classes(piece, train)})
        return None if len(found) == len(train.classes) else tuple(found)

    @property
    def _craft_seeds(self) -> dict[int, int]:
        """By victim seed, that of the set it is trained on."""
        one = self.grid.craft_seed
        return {seed: seed if isinstance(one, str) else one for seed in self.grid.seeds}

    def _crafting(
        self,
        method: Method,
        train: ImageDataset,
        ratio: float,
        seed: int,
        classes: tuple[int, ...] | None,
    ) -> CraftJob:
        jobs = tuple(self._surrogate(one, train, seed) for one in method.surrogates(self.recipe))
        if method.name == CONTROL:
            ratio, seed, classes = 1.0, 0, None  # nothing is drawn, so one control serves all
        parts = tuple(self._crafting(p, train, ratio, seed, classes) for p in parts_of(method))
        job = CraftJob(method, jobs, ratio, seed, self.precision, train.digest, parts, classes)
        if method.own_batch is None:
            return job
        every = ratio == 1 and classes is None
        protected = len(train) if every else int(job.mask(train.labels).sum())
        return dataclasses.replace(job, joins=leaves_one(protected, method.own_batch))

    def _surrogate(self, surrogate: Surrogate, train: ImageDataset, seed: int) -> SurrogateJob:
        recipe = surrogate.recipe or self.recipe
        return SurrogateJob(
            surrogate,
            build(ARCHS, parse_one(surrogate.arch, ARCHS)),
            recipe,
            seed,
            self.precision,
            train.digest,
            build_defense(parse_one(surrogate.defense, DEFENSES)),
            recipe.joins(len(train)),
        )

    def _components(
        self, specs: list[Spec], registry: Registry, make: Callable[[Spec], list[C]]
    ) -> list[tuple[str, C]]:
        """Labels and components of a list, each once."""
        made: dict[str, tuple[str, C]] = {}
        for spec in (one for listed in specs for one in variants(listed, registry)):
            usual = make(_without_settings(spec))
            for component, plain in zip(make(spec), usual, strict=True):
                label = _label(component, plain)
                made.setdefault(key_of(component.identity()), (label, component))
        return _told_apart(list(made.values()), registry)

    def _arch(self, spec: Spec) -> list[Arch]:
        return [build(ARCHS, spec, self.recipe.scale, {"width": self.recipe.width})]

    def _defense(self, spec: Spec) -> list[Defense]:
        return [build_defense(spec, self.recipe.scale)]

    def _method(self, spec: Spec) -> list[Method]:
        """The method, once for every radius in `--epsilon`."""
        return [self._method_of(spec, epsilon) for epsilon in self.grid.epsilon or (None,)]

    def _method_of(self, spec: Spec, epsilon: float | None) -> Method:
        if spec.joined:
            parts = tuple(self._method_of(part, epsilon) for part in spec.joined)
            if any(part.unprotected_only for part in parts):
                raise UsageError(f"'{spec.name}': {CLEAN_PART} is a control and cannot be joined")
            return Composition(parts)
        given = {}
        if epsilon is not None and takes_epsilon(METHODS.get(spec.name)):
            given["epsilon"] = epsilon
        method = build(METHODS, spec, self.recipe.scale, given)
        # The recipe's width becomes part of the settings, so that the identity says it all.
        if getattr(method, "surrogate", None) is not None:
            method = dataclasses.replace(method, surrogate=self._widened(method.surrogate))
        if getattr(method, "ensemble", None) is not None:
            wide = tuple(map(self._widened, method.ensemble))
            method = dataclasses.replace(method, ensemble=wide)
        return method

    def _widened(self, arch: str) -> str:
        """An architecture as typed, with the recipe's width unless it says its own."""
        (made,) = self._arch(parse_one(arch, ARCHS))
        return canonical(made, ARCHS)


def _fitted(method: Method, train: ImageDataset, protected: list[int]) -> Method:
    """A method, or each part of a composition, fitted to the data."""
    if isinstance(method, Composition):
        return Composition(tuple(_fitted(part, train, protected) for part in method.parts))
    return method.fitted(train, protected)


def takes_epsilon(method: type) -> bool:
    """Whether `--epsilon` is meant for it: its budget is an l-inf ball of any radius."""
    return issubclass(method, BoundedMethod) and method.norm == "linf"


def _pattern(part: Method) -> str:
    """What tells the perturbations of a sum's parts apart: all but how large they are."""
    said = part.identity()
    return key_of(said | {"settings": {**said["settings"], "epsilon": None}})


def _without_settings(spec: Spec) -> Spec:
    joined = tuple(map(_without_settings, spec.joined))
    return Spec(spec.name, spec.argument, joined=joined)


def _listed_classes(text: str, names: Sequence[str]) -> list[str]:
    """Cut at commas, but for those that belong to a class's name; the longest name wins."""
    pieces, found = text.split(","), []
    while pieces:
        joined = [",".join(pieces[:count]).strip() for count in range(len(pieces), 0, -1)]
        known = (i for i, one in enumerate(joined) if _named(one, names) is not None)
        taken = next(known, len(joined) - 1)
        found += [joined[taken]] if joined[taken] else []
        pieces = pieces[len(pieces) - taken :]
    return found


def _named(text: str, names: Sequence[str]) -> int | None:
    """The class of this name, in quotes or not, in either Unicode form; None if there is none."""
    forms = [composed(name) for name in names]
    wanted = (composed(text), composed(unwrap(text)))
    return next((forms.index(one) for one in wanted if one in forms), None)


def _classes(text: str, train: ImageDataset) -> Iterable[int]:
    """Class indices from a class's name, from "3" or "5-9".

    Where classes are called by numbers, a number is a name and means that class.
    """
    count, names = len(train.classes), train.classes
    if (index := _named(text, names)) is not None:
        return [index]
    match = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", text)
    if match is None:
        near = difflib.get_close_matches(text, names, n=3, cutoff=0.5)
        guess = f"did you mean {' or '.join(near)}? " if near else ""
        raise UsageError(
            f"--protect-classes: no class '{text}'; {guess}write names, or numbers from 0 to "
            f"{count - 1} as in 5-9; a name in quotes may hold anything, as in \"'a, b'\""
        )
    first, last = int(match[1]), int(match[2] or match[1])
    numbered = {int(name): index for index, name in enumerate(names) if re.fullmatch(r"\d+", name)}
    if numbered:
        if not first <= last or not {first, last} <= numbered.keys():
            known = ", ".join(map(str, sorted(numbered)))
            raise UsageError(
                f"--protect-classes: '{text}' is no class; those called by numbers are {known}"
            )
        return [index for number, index in numbered.items() if first <= number <= last]
    if not first <= last < count:
        raise UsageError(f"--protect-classes: '{text}' does not lie within 0 to {count - 1}")
    return range(first, last + 1)


def _common(several: Iterable[tuple[str, ...]]) -> int:
    """How many first items all have in common."""
    equal = (len(set(items)) == 1 for items in zip(*several, strict=False))
    return sum(1 for _ in itertools.takewhile(bool, equal))


def _told_apart(made: list[tuple[str, C]], registry: Registry) -> list[tuple[str, C]]:
    """Add to equal labels of files the part of their paths in which they differ."""
    paths: dict[str, dict[int, tuple[str, ...]]] = defaultdict(dict)
    for number, (label, component) in enumerate(made):
        if component.name in registry.entries and registry.entry(component.name).argument == "path":
            path = user_path(getattr(component, "path")).absolute()  # noqa: B009 - a file's setting
            paths[label][number] = path.parts
    for label, several in paths.items():
        if len(set(several.values())) < 2:
            continue
        alike = _common(several.values())
        ends = [parts[alike:][::-1] for parts in several.values()]
        same = _common(ends)
        for number, parts in several.items():
            middle = "/".join(map(text_of, parts[alike : len(parts) - same]))
            made[number] = f"{label} ({middle or '.'})", made[number][1]
    return made


def _label(component: Component, plain: Component) -> str:
    """The title, with the settings that differ from those of the bare name."""
    if isinstance(component, Joined) and isinstance(plain, Joined):
        pairs = zip(component.parts, plain.parts, strict=True)
        return Joined.joint.join(_label(part, usual) for part, usual in pairs)
    usual = plain.settings()
    changed = {k: v for k, v in component.settings().items() if usual.get(k) != v}
    text = ",".join(f"{key}={_short(value)}" for key, value in changed.items())
    return f"{component.title}:{text}" if text else component.title


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(bracket(_short(item)) for item in value)}]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else bracket(str(value))


def held_out(count: int, holdout: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows held out, both sorted."""
    from bench.seeding import stream

    order = torch.randperm(count, generator=stream(seed, "holdout"))
    return order[holdout:].sort().values, order[:holdout].sort().values

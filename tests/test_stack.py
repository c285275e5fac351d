"""Defenses joined by "+": chained where they can be, refused where one would be lost."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench import Grid, record, run
from bench.component import parse, parse_one, variants
from bench.data import ImageDataset
from bench.defense import Defense, Step
from bench.errors import UsageError
from bench.grid import Expansion
from bench.network import Arch, Network
from bench.recipe import Recipe
from bench.registry import DEFENSES
from bench.seeding import stream
from bench.stack import Stack, build_defense
from bench.testing import ARCH, DATASET, RECIPE, check_defense, small_splits, victim
from defenses.adversarial_training import AdversarialTraining
from defenses.cutout import Cutout
from defenses.dpsgd_batch import BatchGradientShaping
from defenses.grayscale import Grayscale
from defenses.mixup import Mixup
from defenses.randomized_smoothing import RandomizedSmoothing

SMALL = {"dataset": DATASET, "recipe": RECIPE, "archs": ARCH, "precision": "fp32", "device": "cpu"}


@dataclass(frozen=True)
class Marker(Defense):
    """Adds to every image, so that the order of two shows in the result."""

    name: ClassVar[str] = "marker"
    amount: float = 0.0
    factor: float = 1.0

    def prepare(self, dataset: ImageDataset, stream: torch.Generator) -> ImageDataset:
        return dataset.with_images(dataset.images.float() * self.factor + self.amount)

    def batch(self, images: Tensor, soft_labels: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        return images * self.factor + self.amount, soft_labels.roll(1, dims=1)

    def adapt(self, recipe: Recipe) -> Recipe:
        return recipe.at_most(recipe.lr * self.factor)

    def cost(self) -> float:
        return self.factor


def test_prepare_and_batch_follow_each_other() -> None:
    add, double = Marker(amount=0.25), Marker(factor=2.0)
    data = small_splits().train
    step = Step(0, 1, 4, stream(0, "test"))
    images, labels = torch.rand(4, 3, 8, 8), torch.eye(4)
    orders = {
        (add, double): lambda x: 2 * (x + 0.25),
        (double, add): lambda x: 2 * x + 0.25,
    }
    for parts, wanted in orders.items():
        stack = Stack(parts)
        prepared = stack.prepare(data, stream(0, "test")).images
        assert prepared.equal(wanted(data.images.float()))
        changed, rolled = stack.batch(images, labels, step)
        assert changed.equal(wanted(images))
        assert rolled.equal(torch.eye(4).roll(2, dims=1))


def test_every_other_hook_has_one_owner() -> None:
    stack = Stack((Cutout(), AdversarialTraining(), RandomizedSmoothing(votes=7)))
    assert {hook for hook in ("build", "finish") if stack.replaces(hook)} == set()
    assert all(map(stack.replaces, ("loss", "batch", "predict")))
    assert stack.prediction_cost() == 7
    assert stack.cost() == pytest.approx(1 + 20 / 3)
    assert stack.alters_prediction
    assert stack.leaves_range
    assert not stack.changes_architecture
    assert not Stack((Cutout(), Grayscale())).alters_prediction


@dataclass(frozen=True)
class Enlarging(Defense):
    """A defense whose network takes more pixels."""

    name: ClassVar[str] = "enlarging"

    def build(self, arch: Arch, dataset: ImageDataset, stream: torch.Generator) -> Network:
        return super().build(arch, dataset, stream)

    def cost(self) -> float:
        return 4.0

    def prediction_cost(self) -> float:
        return 3.0


def test_every_step_of_an_attack_is_on_the_larger_network() -> None:
    """Ten steps of two passes and the three of learning, each four times as dear."""
    for parts in ((AdversarialTraining(), Enlarging()), (Enlarging(), AdversarialTraining())):
        assert Stack(parts).cost() == pytest.approx(4 * 23 / 3)
    assert Stack((Cutout(), Enlarging())).cost() == 4


def test_evaluation_costs_what_each_part_makes_it_cost() -> None:
    """A larger network costs more whether or not it decides how images are classified."""
    votes = RandomizedSmoothing(votes=7)
    for parts in ((Cutout(), Enlarging()), (Enlarging(), Cutout())):
        assert Stack(parts).prediction_cost() == 3
    assert Stack((votes, Enlarging())).prediction_cost() == 21


def test_adversary_and_mixture_by_hand() -> None:
    """`at-linf+mixup` mixes first, and attacks the mixture with its mixed labels."""
    stack = Stack((AdversarialTraining(steps=2), Mixup()))
    network = victim(stack, small_splits().train).network
    images = torch.rand(8, 3, 8, 8, generator=stream(0, "images"))
    labels = F.one_hot(torch.arange(8) % 4, 4).float()
    ours = Step(0, 1, 4, stream(0, "test"))
    loss = stack.backward(network, *stack.batch(images, labels, ours), ours)
    by_hand = Step(0, 1, 4, stream(0, "test"))
    mixed, soft = Mixup().batch(images, labels, by_hand)
    twin = victim(stack, small_splits().train).network
    worst = AdversarialTraining(steps=2).attack(twin, mixed, soft, by_hand)
    assert loss.equal(F.cross_entropy(twin(worst), soft).detach())


@dataclass(frozen=True)
class Informed(Defense):
    """A defense that knows some clean images and a network of its own."""

    name: ClassVar[str] = "informed"
    side_information = "clean-samples"

    def build(self, arch: Arch, dataset: ImageDataset, stream: torch.Generator) -> Network:
        return super().build(arch, dataset, stream).eval()

    def finish(self, network: Network, dataset: ImageDataset, stream: torch.Generator) -> Network:
        return network.train()


def test_what_is_known_and_built_and_finished() -> None:
    stack = Stack((Cutout(), Informed()))
    assert stack.side_information == "clean-samples"
    training = victim(stack, small_splits().train)
    assert not training.network.training
    training.finish()
    assert training.network.training


def test_recipes_are_adapted_one_after_the_other() -> None:
    training = Recipe(lr=0.8)
    stack = Stack((Marker(factor=0.5), Marker(factor=0.25)))
    assert stack.adapt(training).lr == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("at-linf+at-l2", "both at-linf and at-l2 decide how a batch is learned"),
        ("at-linf+cutout+dpsgd-batch", "both at-linf and dpsgd-batch decide how a batch"),
        ("randomized-smoothing+grayscale:test=yes", "decide how test images are classified"),
        ("cutout+cutout", "joins a defense with itself"),
        ("none+cutout", "joins another defense with none"),
        ("cutout+cutuot", "unknown defense 'cutuot'; did you mean cutout"),
        ("cutout:size=3+mixup:size=3", "defense 'mixup' has no setting 'size'"),
    ],
)
def test_what_cannot_be_joined_is_refused_in_a_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        Expansion(Grid(defenses=text, **SMALL))
    assert "\n" not in str(error.value)


def test_labels_and_identity() -> None:
    text = "jpeg:quality=10+mixup,at-linf+cutout:size=8,cutout:size=8+at-linf"
    defenses = Expansion(Grid(defenses=text, **SMALL)).defenses
    labels = [label for label, _ in defenses]
    assert labels == ["jpeg+mixup", "at-linf+cutout:size=8", "cutout:size=8+at-linf"]
    assert len({repr(defense.identity()) for _, defense in defenses}) == 3
    stack = defenses[1][1]
    assert stack.name == "at-linf+cutout"
    assert stack.settings()["cutout.size"] == 8
    assert stack.settings()["at-linf.steps"] == 10
    assert stack.deviations() == {"cutout.size": [8, 16]}


def test_presets_and_sweeps_reach_the_parts() -> None:
    (spec,) = parse("randomized-smoothing+cutout:size=[4,8]", DEFENSES)
    found = [build_defense(one, "quick") for one in variants(spec, DEFENSES)]
    assert [d.settings()["cutout.size"] for d in found] == [4, 8]
    assert {d.settings()["randomized-smoothing.votes"] for d in found} == {10}
    assert build_defense(parse_one("cutout", DEFENSES)) == Cutout()


def test_laws_hold_for_stacks() -> None:
    check_defense("gaussian-blur+cutout+at-linf:steps=1+randomized-smoothing:sigma=0.1,votes=2")


def test_a_stack_runs_through_the_grid(tmp_path: Path) -> None:
    grid = Grid(methods="noise", defenses="none,jpeg+mixup", **SMALL)
    run(grid, results_dir=tmp_path / "results", store=tmp_path / "store")
    records = {(r["method"], r["defense"]): r for r in record.read_all(tmp_path / "results")}
    assert records.keys() == {(m, d) for m in ("clean", "noise") for d in ("none", "jpeg+mixup")}
    made = records["noise", "jpeg+mixup"]
    assert made["defense_label"] == "jpeg+mixup"
    assert made["defense_settings"] == {"jpeg.quality": 10, "mixup.alpha": 1.0}
    assert made["side_information"] == "none"
    assert made["defense_facts"] == {}
    assert made["status"] == "done"


@dataclass(frozen=True)
class Private(Defense):
    """A defense with a guarantee for each image."""

    name: ClassVar[str] = "private"

    def facts(self, recipe: Recipe, images: int, weights: int | None) -> dict[str, float]:
        return {"guarantee": images / recipe.batch_size}

    def backward(self, network: Network, images: Tensor, soft_labels: Tensor, step: Step) -> Tensor:
        return super().backward(network, images, soft_labels, step)


def test_a_guarantee_ends_where_another_part_changes_images() -> None:
    recipe = Recipe(batch_size=10)
    assert Stack((Private(),)).facts(recipe, 100, 10) == {"guarantee": 10}
    assert Stack((Private(), RandomizedSmoothing())).facts(recipe, 100, 10) == {}
    assert Stack((Mixup(), Private())).facts(recipe, 100, 10) == {}
    assert Stack((Informed(), Private())).facts(recipe, 100, 10) == {"guarantee": 10}


def test_the_size_of_a_network_is_unknown_where_another_part_makes_it() -> None:
    shaping = BatchGradientShaping()
    assert "noise_length" in Stack((shaping,)).facts(Recipe(), 100, 10)
    assert Stack((Informed(), shaping)).facts(Recipe(), 100, 10) == {}

"""Each defense against its definition, on cases worked out by hand or by a slow loop."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.component import build, parse_one
from bench.data import ImageDataset
from bench.defense import Defense, Step
from bench.errors import UsageError
from bench.mixing import covered, draw_weights
from bench.network import Network
from bench.pgd import at_rest
from bench.recipe import Recipe
from bench.record import read_all
from bench.registry import DEFENSES
from bench.reports.notes import defense_notes
from bench.reports.summary import summarise
from bench.seeding import stream
from bench.testing import small_arch, small_splits, victim
from defenses import gaussian_blur
from defenses.adversarial_training import AdversarialTraining, L2AdversarialTraining
from defenses.bit_depth import BitDepth
from defenses.coin import Coin
from defenses.cutout import Cutout
from defenses.dpsgd_batch import BatchGradientShaping
from defenses.filters import BilateralFilter, MedianFilter
from defenses.gaussian_blur import GaussianBlur
from defenses.mixup import Mixup
from defenses.none import NoDefense
from defenses.orthogonal_projection import OrthogonalProjection
from defenses.orthogonal_regularization import OrthogonalRegularization
from defenses.random_noise import RandomNoise
from defenses.randomized_smoothing import RandomizedSmoothing
from tests.test_runner import SMALL, go

CLASSES = 4
ROUND_OFF = 1e-6
"""A few units in the last place of a float32 near 1."""


def step(seed: int = 0) -> Step:
    return Step(0, 1, CLASSES, stream(seed, "test"))


def some_batch(count: int = 12, size: int = 8) -> tuple[Tensor, Tensor]:
    images = torch.rand(count, 3, size, size, generator=stream(0, "images"))
    return images, torch.arange(count) % CLASSES


def small_network() -> Network:
    train = small_splits().train
    return small_arch().network(CLASSES, (8, 8), train.mean, train.std, stream(0, "network"))


def one_hot(labels: Tensor) -> Tensor:
    return F.one_hot(labels, CLASSES).float()


@pytest.mark.parametrize(
    "defense",
    [
        AdversarialTraining(epsilon=0.0),
        AdversarialTraining(steps=0),
        L2AdversarialTraining(epsilon=0.0),
        L2AdversarialTraining(steps=0),
        BatchGradientShaping(clip=1e9, noise=0.0),
        Cutout(size=0),
        GaussianBlur(sigma=1e-3),
        GaussianBlur(kernel=1),
        RandomNoise(std=0.0),
        BitDepth(bits=8),
        MedianFilter(kernel=1),
        BilateralFilter(diameter=1),
        OrthogonalProjection(epochs=0),
        OrthogonalRegularization(beta=0.0),
        RandomizedSmoothing(sigma=0.0, votes=1),
        Coin(alpha=0.0),
    ],
    ids=repr,
)
def test_without_strength_it_is_plain_training_exactly(defense: Defense) -> None:
    plain = victim(NoDefense(), small_splits().train)
    ours = victim(defense, small_splits().train)
    assert ours.run_epoch() == plain.run_epoch()
    expected = plain.network.state_dict()
    assert all(value.equal(expected[key]) for key, value in ours.network.state_dict().items())
    assert ours.confusion(small_splits().test).equal(plain.confusion(small_splits().test))


@pytest.mark.parametrize(
    "text",
    [
        "mixup:alpha=0",
        "cutout:size=-1",
        "gaussian-blur:kernel=4",
        "gaussian-blur:sigma=0",
        "at-linf:epsilon=8",
        "at-linf:steps=-1",
        "at-l2:epsilon=-1",
        "at-l2:step_size=-1",
        "at-linf:step_size=-1/255",
        "dpsgd-batch:clip=0",
        "dpsgd-batch:noise=-1",
    ],
)
def test_senseless_settings_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="must"):
        build(DEFENSES, parse_one(text, DEFENSES))


class TestMixup:
    def test_element_by_element(self) -> None:
        images, labels = some_batch()
        mixed, soft_labels = Mixup(alpha=0.7).batch(images, one_hot(labels), step())
        draws = stream(0, "test")
        partners = torch.randperm(12, generator=draws).tolist()
        weights = draw_weights(0.7, 12, draws).tolist()
        assert len(set(weights)) == 12
        for i, (partner, weight) in enumerate(zip(partners, weights, strict=True)):
            expected = weight * images[i] + (1 - weight) * images[partner]
            torch.testing.assert_close(mixed[i], expected, rtol=0, atol=ROUND_OFF)
            expected = torch.zeros(CLASSES)
            expected[labels[i]] += weight
            expected[labels[partner]] += 1 - weight
            torch.testing.assert_close(soft_labels[i], expected, rtol=0, atol=ROUND_OFF)

    def test_partners_are_drawn_anew(self) -> None:
        images, labels = some_batch()
        here = step()
        first, second = (Mixup().batch(images, one_hot(labels), here)[0] for _ in range(2))
        assert not first.equal(second)

    @pytest.mark.parametrize(
        ("alpha", "distribution"),
        [
            (0.5, lambda x: 2 / math.pi * x.sqrt().asin()),
            (1.0, lambda x: x),
            (2.0, lambda x: 3 * x**2 - 2 * x**3),
        ],
    )
    def test_law_of_the_weights(
        self, alpha: float, distribution: Callable[[Tensor], Tensor]
    ) -> None:
        count = 20_000
        drawn = draw_weights(alpha, count, stream(0, "beta")).double().sort().values
        ranks = torch.arange(1, count + 1, dtype=torch.double) / count
        # Kolmogorov and Smirnov: 1.63 / sqrt(n) is exceeded once in a hundred.
        assert (ranks - distribution(drawn)).abs().max() < 1.63 / math.sqrt(count)
        assert drawn.mean().item() == pytest.approx(0.5, abs=0.01)
        assert drawn.var().item() == pytest.approx(1 / (8 * alpha + 4), rel=0.03)

    @pytest.mark.parametrize("alpha", [1e-3, 1e3])
    def test_extreme_weights_are_numbers(self, alpha: float) -> None:
        drawn = draw_weights(alpha, 1000, stream(0, "beta"))
        assert ((drawn >= 0) & (drawn <= 1)).all()


class TestCutout:
    @pytest.mark.parametrize("size", [0, 1, 4, 5, 16, 40])
    def test_segment_against_a_loop(self, size: int) -> None:
        length = 12
        found = covered(torch.arange(length), torch.full((length,), size), length)
        for center, place in itertools.product(range(length), repeat=2):
            inside = center - size // 2 <= place < center - size // 2 + size
            assert found[center, place] == inside

    def test_one_black_square_and_nothing_else(self) -> None:
        images, labels = some_batch(200)
        images += 0.01  # no pixel is black by itself
        cut, soft_labels = Cutout(size=4).batch(images, one_hot(labels), step())
        assert soft_labels.equal(one_hot(labels))
        hole = cut.eq(0).all(1)
        assert cut.equal(torch.where(hole[:, None], 0, images))
        rows, columns = hole.any(2), hole.any(1)
        assert hole.equal(rows[:, :, None] & columns[:, None, :])
        for line in (rows, columns):
            assert line.sum(1).min() == 2  # centre on the border: the other half is lost
            assert line.sum(1).max() == 4
            starts_and_ends = F.pad(line.int(), (1, 1)).diff(dim=1).abs().sum(1)
            assert (starts_and_ends == 2).all()

    def test_expected_area(self) -> None:
        size, length, count = 16, 32, 4000
        lengths = [
            sum(0 <= place < length for place in range(center - 8, center + 8))
            for center in range(length)
        ]
        expected = (sum(lengths) / length) ** 2
        assert expected == pytest.approx(196)  # of 256: 14 in each direction on average
        images = torch.ones(count, 3, length, length)
        cut, _ = Cutout(size).batch(images, torch.zeros(count, CLASSES), step())
        area = cut[:, 0].eq(0).sum((1, 2)).float()
        error = area.std() / math.sqrt(count)
        assert abs(area.mean() - expected) < 4 * error


class TestGaussianBlur:
    TAPS = torch.tensor([0.0708, 0.2445, 0.3695, 0.2445, 0.0708])

    def dataset(self, images: Tensor) -> ImageDataset:
        labels = torch.arange(len(images)) % CLASSES
        return ImageDataset(images, labels, tuple("abcd"), "test", (0.5,) * 3, (0.2,) * 3)

    def blur(self, images: Tensor, defense: GaussianBlur | None = None) -> Tensor:
        defense = defense or GaussianBlur()
        return defense.prepare(self.dataset(images), stream(0, "test")).images

    def test_default_spreads_an_impulse_by_the_taps(self) -> None:
        impulse = torch.zeros(2, 3, 11, 11)
        impulse[0, 1, 5, 5] = 1
        blurred = self.blur(impulse)
        expected = torch.zeros(2, 3, 11, 11)
        expected[0, 1, 3:8, 3:8] = self.TAPS.outer(self.TAPS)
        torch.testing.assert_close(blurred, expected, rtol=0, atol=1e-4)  # the taps' four digits
        levels = self.blur((impulse * 255).to(torch.uint8))
        assert levels.dtype == torch.uint8
        assert levels.equal((blurred * 255).round().to(torch.uint8))
        assert levels[0, 1, 5, 5] == round(255 * 0.3695**2)

    def test_border_is_mirrored_without_repeating_it(self) -> None:
        ramp = torch.arange(8.0).expand(1, 3, 8, 8) / 10
        padded = torch.tensor([2.0, 1, 0, 1, 2]) / 10
        expected = (padded * self.TAPS).sum().item()
        assert self.blur(ramp)[0, 0, 4, 0].item() == pytest.approx(expected, abs=1e-4)

    def test_noise_is_damped_as_computed(self) -> None:
        noise = 0.5 + 0.1 * torch.randn(20, 3, 32, 32, generator=stream(0, "noise"))
        inner = self.blur(noise)[:, :, 2:-2, 2:-2]
        assert (inner.std() / noise.std()).item() == pytest.approx(0.27, abs=0.01)

    def test_a_checkerboard_all_but_vanishes(self) -> None:
        """By (.3695 - 2 x .2445 + 2 x .0708) squared, one factor a direction."""
        side = torch.arange(16)
        squares = (side[:, None] + side) % 2 * 2.0 - 1
        blurred = self.blur(squares.expand(1, 3, 16, 16).clone())
        factor = blurred / squares  # the mirrored border goes on as the pattern does
        torch.testing.assert_close(factor, torch.full_like(factor, 4.9e-4), rtol=0.02, atol=0)

    def test_chunks_leave_no_trace(self, monkeypatch: pytest.MonkeyPatch) -> None:
        images = small_splits().train.images
        whole = self.blur(images)
        assert not whole.equal(images)
        monkeypatch.setattr(gaussian_blur, "portion", lambda images: 7)
        assert self.blur(images).equal(whole)

    def test_too_large_a_filter(self) -> None:
        with pytest.raises(ValueError, match="kernel=17 is too large"):
            self.blur(torch.rand(1, 3, 8, 8), GaussianBlur(kernel=17))


class TestAdversarialTraining:
    def test_reaches_the_optimum_of_a_linear_model(self) -> None:
        """With two classes the worst image is x - epsilon sign(w_y - w_other), whatever x."""
        network = Network(nn.Flatten(), 3 * 8 * 8, 2, (0, 0, 0), (1, 1, 1))
        images = 0.2 + 0.6 * some_batch()[0]
        labels = torch.arange(12) % 2
        epsilon = 8 / 255
        adversarial = AdversarialTraining().attack(
            network, images, F.one_hot(labels, 2).float(), step()
        )
        direction = network.head.weight[labels] - network.head.weight[1 - labels]
        best = images - epsilon * direction.sign().unflatten(1, (3, 8, 8))
        torch.testing.assert_close(adversarial, best, rtol=0, atol=ROUND_OFF)

        def margin(x: Tensor) -> Tensor:
            scores = network(x)
            return scores.gather(1, labels[:, None]) - scores.gather(1, 1 - labels[:, None])

        lost = (margin(images) - margin(adversarial)).flatten()
        torch.testing.assert_close(lost, epsilon * direction.abs().sum(1), rtol=1e-4, atol=1e-5)

    def test_stays_in_the_ball_and_in_range_and_raises_the_loss(self) -> None:
        network = small_network().eval()
        images, labels = some_batch()
        images = (1.4 * images - 0.2).clamp(0, 1)  # some pixels at either end
        adversarial = AdversarialTraining().attack(network, images, one_hot(labels), step())
        assert (adversarial - images).abs().max() <= 8 / 255 + ROUND_OFF
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1
        clean, worst = (F.cross_entropy(network(x), labels) for x in (images, adversarial))
        assert worst > clean

    def test_starts_uniformly_in_the_ball(self) -> None:
        defense = AdversarialTraining(epsilon=0.1, step_size=0.0, steps=1)
        images, labels = torch.full((12, 3, 8, 8), 0.5), some_batch()[1]
        start = defense.attack(small_network(), images, one_hot(labels), step()) - images
        assert start.abs().max() <= 0.1 + ROUND_OFF
        assert start.mean().item() == pytest.approx(0, abs=0.01)
        assert start.std().item() == pytest.approx(0.2 / math.sqrt(12), rel=0.05)

    def test_pixels_outside_the_range_stay_in_the_ball(self) -> None:
        images, labels = some_batch()
        images = 2 * images - 0.5
        adversarial = AdversarialTraining().attack(small_network(), images, one_hot(labels), step())
        assert (adversarial - images).abs().max() <= 8 / 255 + ROUND_OFF
        outside = (images < 0) | (images > 1)
        assert ((adversarial - 0.5).abs() <= (images - 0.5).abs() + ROUND_OFF)[outside].all()

    def test_leaves_the_network_as_it_was(self) -> None:
        network = small_network().train()
        network.head.eval()
        network.head.bias.requires_grad_(False)
        images, labels = some_batch()
        before = {key: value.clone() for key, value in network.state_dict().items()}
        AdversarialTraining(steps=2).attack(network, images, one_hot(labels), step())
        assert [m for m in network.modules() if not m.training] == [network.head]
        assert [p for p in network.parameters() if not p.requires_grad] == [network.head.bias]
        assert all(p.grad is None for p in network.parameters())
        assert all(value.equal(before[key]) for key, value in network.state_dict().items())

    def test_rests_only_inside_even_if_the_attack_fails(self) -> None:
        network = small_network().train()

        def fail() -> None:
            with at_rest(network):
                assert not any(m.training for m in network.modules())
                assert not any(p.requires_grad for p in network.parameters())
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fail()
        assert all(m.training for m in network.modules())
        assert all(p.requires_grad for p in network.parameters())

    def test_learns_from_adversarial_images_alone(self) -> None:
        network, twin = small_network().train(), small_network().train()
        images, labels = some_batch()
        defense = AdversarialTraining(steps=2)
        loss = defense.loss(network, images, one_hot(labels), step())
        adversarial = defense.attack(twin, images, one_hot(labels), step())
        assert loss.equal(F.cross_entropy(twin(adversarial), one_hot(labels)))

    def test_climbs_the_loss_of_mixed_labels(self) -> None:
        """A network surer than the label wants is made surer still; the heavier alone, less."""
        network = Network(nn.Flatten(), 3 * 8 * 8, 2, (0, 0, 0), (1, 1, 1))
        with torch.no_grad():
            network.head.weight.mul_(0.1)
            network.head.bias.copy_(torch.tensor([0.0, 3.0]))  # 95 % for the second class
        images = 0.2 + 0.6 * some_batch()[0]
        labels = torch.tensor([0.3, 0.7]).expand(12, 2)
        adversarial = AdversarialTraining().attack(network, images, labels, step())
        direction = (network.head.weight[1] - network.head.weight[0]).sign().reshape(3, 8, 8)
        best = images + 8 / 255 * direction
        torch.testing.assert_close(adversarial, best, rtol=0, atol=ROUND_OFF)

    def test_l2_reaches_the_optimum_of_a_linear_model(self) -> None:
        """The worst image is x - epsilon (w_y - w_other) / |w_y - w_other|, at the full radius."""
        network = Network(nn.Flatten(), 3 * 8 * 8, 2, (0, 0, 0), (1, 1, 1))
        images = 0.4 + 0.2 * some_batch()[0]  # far enough from 0 and 1 for a radius of .5
        labels = torch.arange(12) % 2
        adversarial = L2AdversarialTraining(epsilon=0.5, step_size=0.25, steps=20).attack(
            network, images, F.one_hot(labels, 2).float(), step()
        )
        direction = network.head.weight[labels] - network.head.weight[1 - labels]
        moves = (adversarial - images).flatten(1)
        expected = -0.5 * direction / direction.norm(dim=1, keepdim=True)
        torch.testing.assert_close(moves, expected, rtol=0, atol=1e-3)
        torch.testing.assert_close(moves.norm(dim=1), torch.full((12,), 0.5), rtol=1e-5, atol=0)

    def test_default_l2_ball_is_no_linf_ball(self) -> None:
        """At its defaults the attack reaches far further than .078, the slip of APBench."""
        images, labels = some_batch()
        network = small_network().eval()
        moves = L2AdversarialTraining().attack(network, images, one_hot(labels), step()) - images
        sizes = moves.flatten(1).norm(dim=1)
        assert sizes.max() <= 1 + 1e-5
        assert sizes.min() > 0.5  # clipping to [0, 1] costs some of it

    def test_l2_starts_uniformly_in_the_ball(self) -> None:
        """In two dimensions: r^2 is uniform, and so is the angle."""
        count = 20_000
        start = L2AdversarialTraining(epsilon=2.0).start(
            torch.Size([count, 2]), stream(0, "l2"), torch.device("cpu")
        )
        squares = (start.norm(dim=1).double() / 2).square().sort().values
        angles = (torch.atan2(start[:, 1], start[:, 0]).double() / math.tau + 0.5).sort().values
        ranks = torch.arange(1, count + 1, dtype=torch.double) / count
        for values in (squares, angles):
            assert (ranks - values).abs().max() < 1.63 / math.sqrt(count)

    def test_cost(self) -> None:
        assert AdversarialTraining().cost() == pytest.approx(23 / 3)
        assert AdversarialTraining(steps=0).cost() == AdversarialTraining(epsilon=0.0).cost() == 1


class ZeroLoss(BatchGradientShaping):
    """Every gradient is zero, so that only the noise is left."""

    def loss(self, network: Network, images: Tensor, soft_labels: Tensor, step: Step) -> Tensor:
        return 0 * network(images).sum()


class TestBatchGradientShaping:
    def gradient(self, defense: Defense, count: int = 12) -> Tensor:
        network = small_network().train()
        images, labels = some_batch(count)
        defense.backward(network, images, one_hot(labels), step())
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    @pytest.mark.parametrize("count", [4, 32])
    def test_noise_has_the_stated_size_whatever_the_batch(self, count: int) -> None:
        noise = self.gradient(ZeroLoss(clip=2.0, noise=0.005), count)
        assert noise.ne(0).all()  # every coordinate, biases and batch norms too
        error = 1 / math.sqrt(2 * len(noise))
        assert noise.std().item() == pytest.approx(0.01, rel=4 * error)
        assert noise.mean().abs() < 4 * 0.01 / math.sqrt(len(noise))

    def test_noise_comes_on_top_of_the_clipped_gradient(self) -> None:
        clipped = self.gradient(BatchGradientShaping(clip=0.1, noise=0.0))
        noise = self.gradient(ZeroLoss(clip=0.1, noise=0.01))
        both = self.gradient(BatchGradientShaping(clip=0.1, noise=0.01))
        torch.testing.assert_close(both, clipped + noise, rtol=0, atol=ROUND_OFF)

    def test_its_length_is_told(self) -> None:
        noise = self.gradient(ZeroLoss(clip=2.0, noise=0.005))
        facts = BatchGradientShaping(clip=2.0, noise=0.005).facts(Recipe(), 50_000, len(noise))
        assert facts["noise_length"] == pytest.approx(noise.norm().item(), rel=0.05)
        full = BatchGradientShaping().facts(Recipe(), 50_000, 11_173_962)  # a whole ResNet-18
        assert full == {"noise_length": pytest.approx(16.71, abs=0.01)}
        assert BatchGradientShaping().facts(Recipe(), 50_000, None) == {}

    @pytest.mark.parametrize(("limit", "told"), [(5.0, True), (16.0, True), (17.0, False)])
    def test_so_is_a_recipe_that_shortens_it(self, limit: float, told: bool) -> None:
        recipe = Recipe(clip_grad=limit)
        facts = BatchGradientShaping().facts(recipe, 50_000, 11_173_962)
        assert facts.get("clipped_again_at") == (limit if told else None)

    def test_tables_say_it_for_the_width_that_was_trained(self, tmp_path: Path) -> None:
        grid = replace(
            SMALL,
            methods="clean",
            defenses="dpsgd-batch",
            recipe=f"{SMALL.recipe.replace('epochs=3', 'epochs=1')},clip_grad=0.5",
        )
        outcome = go(tmp_path, grid)
        assert not outcome.failed
        (made,) = read_all(tmp_path / "results", notes=[])
        facts = made["defense_facts"]
        weights = small_arch().network(4, (16, 16), (0.5,) * 3, (0.2,) * 3, stream(0, "n"))
        count = sum(weight.numel() for weight in weights.parameters())
        assert facts["noise_length"] == pytest.approx(0.005 * math.sqrt(count))
        assert facts["clipped_again_at"] == 0.5
        (note,) = defense_notes(summarise([made])[0])
        assert f"noise_length {facts['noise_length']:.4}" in note
        assert "clipped_again_at 0.5" in note

    @pytest.mark.parametrize("clip", [0.01, 0.1, 100.0])
    def test_the_whole_gradient_is_clipped(self, clip: float) -> None:
        plain: Any = self.gradient(NoDefense())
        clipped = self.gradient(BatchGradientShaping(clip=clip, noise=0.0))
        expected = plain * min(1.0, clip / plain.norm().item())
        torch.testing.assert_close(clipped, expected, rtol=1e-4, atol=1e-8)
        assert clipped.norm() <= clip * (1 + ROUND_OFF)
        assert plain.norm() > 0.1

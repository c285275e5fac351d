"""Defenses that change images, against slow loops and cases worked out by hand."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from bench.component import parse_one
from bench.data import ImageDataset
from bench.defense import Defense, Step
from bench.errors import UsageError
from bench.mixing import draw_weights
from bench.network import Network
from bench.registry import DEFENSES
from bench.seeding import on_device, stream
from bench.stack import build_defense
from bench.testing import small_arch, small_splits
from defenses.bit_depth import BitDepth
from defenses.coin import Coin, resampled
from defenses.cutmix import CutMix
from defenses.deconvolution_at import DeconvolutionTraining, filtered, rescaled
from defenses.filters import BilateralFilter, MedianFilter
from defenses.grayscale import Grayscale
from defenses.jpeg import Jpeg
from defenses.none import NoDefense
from defenses.orthogonal_projection import OrthogonalProjection, initial_weights
from defenses.orthogonal_regularization import OrthogonalRegularization, penalty
from defenses.random_kernel import RandomKernel
from defenses.random_noise import RandomNoise
from defenses.randomized_smoothing import RandomizedSmoothing

CLASSES = 4
ROUND_OFF = 1e-6


def step(seed: int = 0) -> Step:
    return Step(0, 1, CLASSES, stream(seed, "test"))


def some_batch(count: int = 12, size: int = 8) -> tuple[Tensor, Tensor]:
    images = torch.rand(count, 3, size, size, generator=stream(0, "images"))
    return images, F.one_hot(torch.arange(count) % CLASSES, CLASSES).float()


def dataset(images: Tensor) -> ImageDataset:
    labels = torch.arange(len(images)) % CLASSES
    return ImageDataset(images, labels, tuple("abcd"), "test", (0.5,) * 3, (0.2,) * 3)


def smooth_images(count: int = 6, size: int = 16) -> Tensor:
    """Pictures with shapes in them, which JPEG is made for, as uint8."""
    coarse = torch.rand(count, 3, 4, 4, generator=stream(0, "smooth"))
    fine = F.interpolate(coarse, (size, size), mode="bilinear")
    return (fine * 255).round().to(torch.uint8)


def prepared(defense: Defense, images: Tensor) -> Tensor:
    return defense.prepare(dataset(images), stream(0, "test")).images


def small_network() -> Network:
    train = small_splits().train
    return small_arch().network(CLASSES, (8, 8), train.mean, train.std, stream(0, "network"))


@pytest.mark.parametrize(
    "text",
    [
        "cutmix:alpha=0",
        "random-noise:std=-1",
        "jpeg:quality=0",
        "jpeg:quality=101",
        "bit-depth:bits=0",
        "bit-depth:bits=9",
        "median-filter:kernel=2",
        "bilateral-filter:diameter=0",
        "bilateral-filter:sigma_space=0",
        "orthogonal-projection:epochs=-1",
        "orthogonal-projection:lr=0",
        "orthogonal-regularization:beta=-1",
        "randomized-smoothing:sigma=-1",
        "randomized-smoothing:votes=0",
        "random-kernel:kernel=2",
        "random-kernel:blur=2",
        "deconvolution-at:kernel=4",
        "deconvolution-at:steps=-1",
        "coin:alpha=-1",
    ],
)
def test_senseless_settings_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="must"):
        build_defense(parse_one(text, DEFENSES))


class TestCutMix:
    def test_element_by_element(self) -> None:
        images, soft_labels = some_batch()
        mixed, labels = CutMix(alpha=0.8).batch(images, soft_labels, step())
        draws = stream(0, "test")
        partners = torch.randperm(12, generator=draws).tolist()
        weights = draw_weights(0.8, 12, draws).tolist()
        down = torch.randint(8, (12,), generator=draws).tolist()
        right = torch.randint(8, (12,), generator=draws).tolist()
        shares = []
        for i, partner in enumerate(partners):
            side = int(8 * math.sqrt(1 - weights[i]))
            expected, pasted = images[i].clone(), 0
            for y, x in itertools.product(range(8), range(8)):
                inside = all(
                    c - side // 2 <= p < c - side // 2 + side
                    for c, p in ((down[i], y), (right[i], x))
                )
                if inside:
                    expected[:, y, x] = images[partner, :, y, x]
                    pasted += 1
            assert mixed[i].equal(expected)
            share = pasted / 64
            wanted = (1 - share) * soft_labels[i] + share * soft_labels[partner]
            torch.testing.assert_close(labels[i], wanted, rtol=0, atol=ROUND_OFF)
            shares.append(share)
        assert max(shares) > 0.2
        assert len(set(shares)) > 3

    def test_labels_that_are_mixed_already(self) -> None:
        images, _ = some_batch()
        even = torch.full((12, CLASSES), 1 / CLASSES)
        _, labels = CutMix().batch(images, even, step())
        torch.testing.assert_close(labels, even)


class TestRandomNoise:
    def test_size_law_and_clipping(self) -> None:
        images = torch.full((64, 3, 16, 16), 0.5)
        labels = torch.zeros(64, CLASSES)
        here = step()
        first, second = (RandomNoise().batch(images, labels, here)[0] - 0.5 for _ in range(2))
        count = first.numel()
        assert not first.equal(second)
        assert first.mean().abs() < 4 * (8 / 255) / math.sqrt(count)
        assert first.std().item() == pytest.approx(8 / 255, rel=4 / math.sqrt(2 * count))
        assert (first**4).mean().item() == pytest.approx(3 * (8 / 255) ** 4, rel=0.1)  # Gaussian
        black, _ = RandomNoise(std=0.2).batch(0 * images, labels, here)
        assert black.min() == 0
        assert black.eq(0).float().mean().item() == pytest.approx(0.5, abs=0.02)


class TestJpeg:
    @pytest.mark.parametrize(("quality", "scale"), [(10, 500), (50, 100), (75, 50)])
    def test_flat_blocks_by_hand(self, quality: int, scale: int) -> None:
        """Of a flat block only the mean is left, in steps of the table's first entry, 16."""
        quantum = 16 * scale / 100 / 8  # the transform of 8 x 8 equal values v is 8 v
        for level in (6, 100, 132, 250):
            image = torch.full((1, 3, 16, 16), level, dtype=torch.uint8)
            expected = 128 + quantum * round((level - 128) / quantum)
            found = prepared(Jpeg(quality), image)
            assert (found - min(max(expected, 0), 255)).abs().max() <= 1

    def test_colours_have_half_the_resolution(self) -> None:
        """Stripes of two colours of one brightness run together; stripes of brightness stay."""
        stripes = torch.arange(16) % 2
        red, teal = torch.tensor([200, 60, 60]), torch.tensor([60, 131, 60])
        colours = torch.where(stripes == 0, red[:, None], teal[:, None])
        shades = (60 + 140 * stripes).expand(3, 16)
        images = torch.stack([colours, shades])[:, :, None].expand(2, 3, 16, 16).to(torch.uint8)
        found = prepared(Jpeg(quality=95), images).float()
        contrast = (found[..., 0::2] - found[..., 1::2]).abs().amax((1, 2, 3))
        assert contrast[0] < 30
        assert contrast[1] > 130

    def test_default_is_hard_and_again_is_nothing_new(self) -> None:
        images = smooth_images()
        once = prepared(Jpeg(), images)
        twice = prepared(Jpeg(), once)
        assert once.dtype == torch.uint8
        lost = (once.int() - images.int()).abs().float().mean()
        assert lost > 5
        assert (twice.int() - once.int()).abs().float().mean() < lost / 5
        gray = images[:, :1].expand_as(images)
        assert (prepared(Jpeg(100), gray).int() - gray.int()).abs().max() <= 2

    def test_at_the_highest_quality_only_colour_changes(self) -> None:
        """Coefficients are kept to a unit each; colour has half the resolution nevertheless."""
        images = 64 + smooth_images() // 2  # none is cut off at black or white
        change = prepared(Jpeg(100), images).float() - images.float()
        luma = (change * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)
        assert luma.abs().max() <= 2
        assert 1 < change.abs().mean() < 4

    def test_float_images_are_rounded_first(self) -> None:
        images = smooth_images()
        assert prepared(Jpeg(), images / 255).equal(prepared(Jpeg(), images))


class TestGrayscale:
    def test_luma_of_every_pixel(self) -> None:
        images = torch.randint(256, (4, 3, 8, 8), generator=stream(0, "x"), dtype=torch.uint8)
        gray = prepared(Grayscale(), images)
        for i, y, x in itertools.product(range(4), range(8), range(8)):
            r, g, b = images[i, :, y, x].tolist()
            wanted = 0.299 * r + 0.587 * g + 0.114 * b
            assert gray[i, :, y, x].tolist() == [pytest.approx(wanted, abs=0.5001)] * 3
        pillow = [
            np.array(Image.fromarray(i.permute(1, 2, 0).numpy()).convert("L")) for i in images
        ]
        differences = gray[:, 0].int() - torch.from_numpy(np.stack(pillow)).int()
        assert differences.abs().max() <= 1
        assert differences.ne(0).float().mean() < 0.01
        assert prepared(Grayscale(), gray).equal(gray)

    def test_float_images_stay_float(self) -> None:
        images = 2 * torch.rand(4, 3, 8, 8) - 0.5
        gray = prepared(Grayscale(), images)
        wanted = torch.einsum("nchw,c->nhw", images, torch.tensor([0.299, 0.587, 0.114]))
        torch.testing.assert_close(gray, wanted[:, None].expand_as(images))

    def test_test_images_keep_their_colours_unless_asked(self) -> None:
        network, (images, _) = small_network().eval(), some_batch()
        with torch.no_grad():
            plain = network(images)
            colour, gray = (
                Grayscale(test=test).predict(network, images, stream(0, "p"))
                for test in (False, True)
            )
            shown = prepared(Grayscale(), images)
            assert colour.equal(plain)
            torch.testing.assert_close(gray, network(shown))
        assert not gray.equal(plain)
        assert (Grayscale().alters_prediction, Grayscale(test=True).alters_prediction) == (0, 1)


@pytest.mark.parametrize("name", ["gaussian-blur", "median-filter", "bilateral-filter"])
def test_filters_work_on_test_images_when_asked(name: str) -> None:
    """Such images are filtered as training images are, to the last bit of what the network sees."""
    plain, asked = (build_defense(parse_one(text, DEFENSES)) for text in (name, f"{name}:test=yes"))
    network, levels = small_network().eval(), smooth_images(size=8)
    images = levels.float() / 255
    with torch.no_grad():
        sharp, filtered = (
            defense.predict(network, images, stream(0, "p")) for defense in (plain, asked)
        )
        assert sharp.equal(network(images))
        assert filtered.equal(network(prepared(plain, levels).float() / 255))
    assert not filtered.equal(sharp)
    assert (plain.alters_prediction, asked.alters_prediction) == (False, True)
    # Those who do not ask keep their keys.
    assert "test" not in plain.identity()["settings"]
    assert asked.identity()["settings"]["test"] is True


class TestBitDepth:
    @pytest.mark.parametrize("bits", range(1, 9))
    def test_every_level(self, bits: int) -> None:
        levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
        kept = prepared(BitDepth(bits), levels)[0, 0].flatten().tolist()
        width = 2 ** (8 - bits)
        assert kept == [level // width * width for level in range(256)]
        assert len(set(kept)) == 2**bits


def mirrored(place: int, length: int) -> int:
    """Where a place beyond the border is found, the border itself not repeated."""
    place = abs(place)
    return place if place < length else 2 * (length - 1) - place


class TestFilters:
    IMAGES = torch.randint(256, (2, 3, 7, 9), generator=stream(0, "f"), dtype=torch.uint8)

    @pytest.mark.parametrize("size", [3, 5])
    def test_median_against_a_loop(self, size: int) -> None:
        ours, reach = prepared(MedianFilter(size), self.IMAGES), size // 2
        for i, c, y, x in itertools.product(*map(range, self.IMAGES.shape)):
            window = [
                int(self.IMAGES[i, c, mirrored(y + dy, 7), mirrored(x + dx, 9)])
                for dy in range(-reach, reach + 1)
                for dx in range(-reach, reach + 1)
            ]
            assert int(ours[i, c, y, x]) == sorted(window)[len(window) // 2]

    def test_bilateral_against_a_loop(self) -> None:
        defense = BilateralFilter(diameter=5, sigma_colour=60.0, sigma_space=1.5)
        ours = prepared(defense, self.IMAGES)
        pixels = self.IMAGES.double()
        for i, y, x in itertools.product(range(2), range(7), range(9)):
            total, weights = torch.zeros(3, dtype=torch.double), 0.0
            for dy, dx in itertools.product(range(-2, 3), repeat=2):
                if dy * dy + dx * dx > 4:
                    continue
                other = pixels[i, :, mirrored(y + dy, 7), mirrored(x + dx, 9)]
                difference = float((other - pixels[i, :, y, x]).abs().sum())
                weight = math.exp(-(difference**2) / 7200 - (dy * dy + dx * dx) / 4.5)
                total, weights = total + weight * other, weights + weight
            assert (ours[i, :, y, x] - total / weights).abs().max() <= 0.5001

    def test_bilateral_keeps_edges_and_smooths_noise(self) -> None:
        flat = 100.0 + 10 * torch.randn(2, 3, 16, 16, generator=stream(0, "flat"))
        flat[:, :, :, 8:] += 140
        images = flat.round().clamp(0, 255).to(torch.uint8)
        smooth = prepared(BilateralFilter(sigma_colour=40.0), images).float()
        step_height = smooth[:, :, :, 8:].mean() - smooth[:, :, :, :8].mean()
        assert step_height.item() == pytest.approx(140, abs=6)
        assert smooth[:, :, 4:12, :6].std() < 0.6 * images[:, :, 4:12, :6].float().std()

    def test_too_large(self) -> None:
        with pytest.raises(ValueError, match="too large"):
            prepared(MedianFilter(15), self.IMAGES)

    def test_chunks_leave_no_trace(self, monkeypatch: pytest.MonkeyPatch) -> None:
        images = small_splits().train.images
        whole = [prepared(defense, images) for defense in (MedianFilter(), BilateralFilter())]
        monkeypatch.setattr("defenses.filters.portion", lambda images: 7)
        again = [prepared(defense, images) for defense in (MedianFilter(), BilateralFilter())]
        assert all(a.equal(b) for a, b in zip(whole, again, strict=True))


class TestOrthogonalProjection:
    def shortcut(self, count: int = 400, strength: float = 0.2) -> Tensor:
        """Noise with a pattern for each class."""
        patterns = torch.randn(CLASSES, 3, 8, 8, generator=stream(0, "patterns"))
        noise = torch.rand(count, 3, 8, 8, generator=stream(0, "noise"))
        return (noise + strength * patterns[torch.arange(count) % CLASSES]).clamp(0, 1)

    def test_what_is_left_is_orthogonal_to_what_was_fitted(self) -> None:
        images = self.shortcut()
        defense = OrthogonalProjection()
        draws = stream(0, "test")  # the one that `prepared` gives
        order = torch.randperm(len(images), generator=draws)
        start = initial_weights(dataset(images), draws)
        weights = defense.fit(dataset(images), order, start)
        rest = prepared(defense, images).flatten(1)
        assert (rest @ weights.T).abs().max() < 1e-3 * (images.flatten(1) @ weights.T).abs().max()
        before = torch.linalg.matrix_rank(images.flatten(1), rtol=1e-4)
        assert before - torch.linalg.matrix_rank(rest, rtol=1e-4) == CLASSES
        removed = images.flatten(1) - rest
        assert (removed * rest).sum(1).abs().max() < 1e-2  # Pythagoras: it is a projection

    def test_round_off_decides_no_direction(self) -> None:
        """From zero weights one of them would be left to it: on CIFAR-10 it is the mean image."""
        images = dataset(self.shortcut())
        start = initial_weights(images, stream(0, "test"))
        weights = OrthogonalProjection().fit(images, torch.arange(len(images)), start)
        sizes = torch.linalg.svdvals(F.normalize(weights.T, dim=0))
        assert sizes.min() > 0.05

    def test_the_fit_begins_as_a_linear_layer_does(self) -> None:
        start = initial_weights(dataset(self.shortcut()), stream(0, "test"))
        theirs = nn.Linear(192, CLASSES, bias=False).weight
        assert start.shape == theirs.shape
        assert start.abs().max() <= 192**-0.5
        assert start.std().item() == pytest.approx(192**-0.5 / 3**0.5, rel=0.05)
        assert theirs.std().item() == pytest.approx(192**-0.5 / 3**0.5, rel=0.05)

    def refit(self, images: Tensor) -> float:
        """Held-out accuracy of a linear rule in closed form, with half of the images fitted."""
        flat = F.pad(images.flatten(1).double(), (0, 1), value=1.0)
        labels = torch.arange(len(images)) % CLASSES
        wanted, half = F.one_hot(labels).double(), len(images) // 2
        seen = flat[:half]
        gram = seen.T @ seen + torch.eye(flat.shape[1])
        rule = torch.linalg.solve(gram, seen.T @ wanted[:half])
        return ((flat[half:] @ rule).argmax(1) == labels[half:]).float().mean().item()

    def test_a_faint_linear_shortcut_disappears_from_a_few_images(self) -> None:
        images = self.shortcut(strength=0.1)
        assert self.refit(images) > 0.9
        by_chance = 1 / CLASSES + 3 * math.sqrt((CLASSES - 1) / CLASSES**2 / 200)
        assert self.refit(prepared(OrthogonalProjection(), images)) < by_chance

    def test_a_strong_one_is_weakened_as_far_as_the_fit_goes(self) -> None:
        """Twenty epochs do not find all of it, and where there are images enough it shows."""
        images = self.shortcut(4000)
        rest = prepared(OrthogonalProjection(), images)

        def spread(of: Tensor) -> Tensor:
            means = torch.stack([of[c::CLASSES].mean(0) for c in range(CLASSES)])
            return (means - means.mean(0)).norm()

        assert spread(rest) < spread(images) / 3
        assert 0.5 < self.refit(rest) < 0.9 < self.refit(images)
        further = prepared(OrthogonalProjection(lr=1.0), images)
        assert self.refit(further) < self.refit(rest) - 0.1

    def test_fit_against_a_slow_loop(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Batches of unequal size in a given order, a step after the other."""
        images = self.shortcut(5)
        defense = OrthogonalProjection(epochs=1, batch_size=2, lr=0.3)
        start = initial_weights(dataset(images), stream(0, "start"))
        weights = start.double().numpy().copy()
        flat = images.flatten(1).double().numpy()
        for number in range(50):
            lr = 0.3 * 0.1 ** sum(number >= 50 * s for s in (0.5, 0.75))
            rows = [(3, 1), (0, 4), (2,)][number % 3]
            gradient = np.zeros_like(weights)
            for row in rows:
                scores = np.exp(weights @ flat[row])
                chances = scores / scores.sum()
                chances[row % CLASSES] -= 1
                gradient += np.outer(chances, flat[row]) / len(rows)
            weights -= lr * gradient
        monkeypatch.setattr("defenses.orthogonal_projection.LEAST_IMAGES", 100)
        order = torch.tensor([3, 1, 0, 4, 2])
        ours = defense.fit(dataset(images), order, start).double().numpy()
        np.testing.assert_allclose(ours, weights, atol=1e-5)

    def test_large_data_are_converted_batch_by_batch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        images = (255 * self.shortcut(100)).to(torch.uint8)
        whole = prepared(OrthogonalProjection(epochs=1), images)
        monkeypatch.setattr("defenses.orthogonal_projection.MOST_VALUES", 0)
        assert prepared(OrthogonalProjection(epochs=1), images).equal(whole)

    def test_images_may_leave_the_range(self) -> None:
        rest = prepared(OrthogonalProjection(), self.shortcut())
        assert rest.dtype == torch.float32
        assert rest.min() < 0


class TestOrthogonalRegularization:
    def test_by_hand(self) -> None:
        wide = nn.Linear(3, 2)  # 2 filters of 3 inputs: W W^T is 2 x 2
        wide.weight.data = torch.tensor([[1.0, 0, 0], [1, 1, 0]])
        tall = nn.Conv2d(1, 2, 1)  # 2 filters of 1 input: W^T W is 1 x 1
        tall.weight.data = torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1)
        # [[1, 1], [1, 2]] - I = [[0, 1], [1, 1]], whose squares add up to 3; 5 - 1 = 4, squared 16.
        assert penalty(nn.Sequential(wide, nn.ReLU(), tall)).item() == 19

    def test_orthogonal_filters_cost_nothing(self) -> None:
        layer = nn.Conv2d(2, 4, 2)
        nn.init.orthogonal_(layer.weight)
        assert penalty(layer).item() == pytest.approx(0, abs=1e-10)

    def test_it_is_added_to_the_loss(self) -> None:
        network, (images, labels) = small_network(), some_batch()
        plain = NoDefense().loss(network, images, labels, step())
        ours = OrthogonalRegularization(beta=0.01).loss(network, images, labels, step())
        torch.testing.assert_close(ours, plain + 0.01 * penalty(network))


class Brighter(nn.Module):
    """Features by which an image is of class 1 if it is brighter than .6 on average."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.flatten(1).mean(1, keepdim=True)
        return torch.cat([0.6 - mean, mean - 0.6], dim=1)


def brightness_network() -> Network:
    network = Network(Brighter(), 2, 2, (0, 0, 0), (1, 1, 1)).eval()
    network.head.weight.data, network.head.bias.data = torch.eye(2), torch.zeros(2)
    return network


class TestRandomizedSmoothing:
    def test_share_of_votes_is_the_chance(self) -> None:
        """The mean of d noisy pixels is off by sigma / sqrt(d)."""
        images = torch.full((200, 3, 2, 2), 0.55)
        defense = RandomizedSmoothing(sigma=0.1, votes=50)
        with torch.no_grad():
            votes = defense.predict(brightness_network(), images, stream(0, "votes"))
        assert votes.sum(1).eq(50).all()
        deviations = 0.05 / (0.1 / math.sqrt(12))
        chance = 0.5 * math.erfc(deviations / math.sqrt(2))
        share = votes[:, 1].sum().item() / 10_000
        assert share == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / 10_000))

    def test_without_noise_the_vote_is_the_choice(self) -> None:
        network, (images, _) = small_network().eval(), some_batch()
        with torch.no_grad():
            votes = RandomizedSmoothing(0.0, 3).predict(network, images, stream(0, "votes"))
            assert votes.argmax(1).equal(network(images).argmax(1))
        assert votes.max(1).values.eq(3).all()

    def test_training_noise_is_not_clipped(self) -> None:
        images, labels = torch.full((64, 3, 8, 8), 0.9), torch.zeros(64, CLASSES)
        noisy, _ = RandomizedSmoothing().batch(images, labels, step())
        assert (noisy - 0.9).std().item() == pytest.approx(0.5, rel=0.03)
        assert noisy.max() > 1.5

    def test_a_pass_a_vote(self) -> None:
        assert RandomizedSmoothing().prediction_cost() == 100


class TestRandomKernel:
    def test_against_a_loop(self) -> None:
        images, labels = some_batch(3)
        ours, _ = RandomKernel(blur=0.3).batch(images, labels, step())
        kernel = RandomKernel(blur=0.3).draw(stream(0, "test"))
        for i in range(3):
            expected = torch.zeros(3, 8, 8)
            for c, y, x in itertools.product(range(3), range(8), range(8)):
                for dy, dx in itertools.product((-1, 0, 1), repeat=2):
                    if 0 <= y + dy < 8 and 0 <= x + dx < 8:
                        expected[c, y, x] += kernel[dy + 1, dx + 1] * images[i, c, y + dy, x + dx]
            torch.testing.assert_close(ours[i], expected / expected.max())

    def test_law_of_the_filters(self) -> None:
        draws, ones = stream(0, "kernels"), torch.zeros(3, 3)
        for _ in range(900):
            kernel = RandomKernel(blur=0.25).draw(draws)
            assert kernel.eq(1).sum() == 1
            assert kernel[kernel.ne(1)].max() < 0.25
            ones += kernel.eq(1)
        assert ((ones - 100).abs() < 40).all()  # four deviations of a binomial

    def test_a_filter_a_batch(self) -> None:
        images, labels = some_batch()
        here = step()
        first, second = (RandomKernel().batch(images, labels, here)[0] for _ in range(2))
        assert not first.equal(second)


class TestDeconvolution:
    def test_transform_against_a_loop(self) -> None:
        images, _ = some_batch(4)
        filters = torch.randn(4, 3, 3, generator=stream(0, "k"))
        offsets = torch.randn(4, generator=stream(0, "o"))
        moved = filtered(images, filters, offsets)
        ours = rescaled(moved)
        for i in range(4):
            each = F.conv2d(images[i][:, None], filters[i][None, None], padding=1)[:, 0]
            torch.testing.assert_close(moved[i], each + offsets[i])
            low, high = each.min(), each.max()
            torch.testing.assert_close(ours[i], (each - low) / (high - low))
        assert ours.amin((1, 2, 3)).eq(0).all()
        assert ours.amax((1, 2, 3)).eq(1).all()

    @pytest.mark.parametrize("how", [{}, {"rescale": "within"}, {"rescale": "after"}])
    def test_a_step_against_each_class_alone(
        self, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A filter climbs the mean loss of its own class, however many images that has."""
        found: list[Tensor] = []

        def watch(images: Tensor, filters: Tensor, offsets: Tensor) -> Tensor:
            found[:] = [filters.detach(), offsets.detach()]
            return filtered(images, filters, offsets)

        monkeypatch.setattr("defenses.deconvolution_at.filtered", watch)
        images, labels = some_batch()
        labels = labels.clone()
        labels[1:] = labels[1]  # one image of class 0, and all others of class 1
        owners = labels.argmax(1)
        assert owners.tolist() == [0, *[1] * (len(labels) - 1)]
        network = small_network().eval()
        defense = DeconvolutionTraining(steps=1, **how)
        starts = defense.draw(CLASSES, step().stream)
        defense.attack(network, images, labels, step())
        for label in (0, 1):
            mine = owners == label
            parts = [part[label].clone().requires_grad_() for part in starts]
            shown = filtered(
                images[mine], *(part[None].expand(mine.sum(), *part.shape) for part in parts)
            )
            shown = rescaled(shown) if how.get("rescale") == "within" else shown
            loss = F.cross_entropy(network(shown), labels[mine])
            for part, gradient, ours in zip(
                parts, torch.autograd.grad(loss, parts), found, strict=True
            ):
                torch.testing.assert_close(ours[label], part.detach() + 0.1 * gradient)

    def test_the_released_order_is_the_default(self) -> None:
        """Search, then rescale; what an older record calls by the bare name is told apart."""
        assert DeconvolutionTraining() == DeconvolutionTraining(rescale="after")
        identity = DeconvolutionTraining().identity()
        assert identity["version"] > 3
        assert identity["settings"]["rescale"] == "after"
        images, labels = some_batch()
        ours, released, within = (
            DeconvolutionTraining(steps=3, **how).attack(small_network(), images, labels, step())
            for how in ({}, {"rescale": "after"}, {"rescale": "within"})
        )
        assert ours.equal(released)
        assert not ours.equal(within)

    def test_rescaling_within_makes_offsets_idle(self) -> None:
        """A sum that is taken back from every pixel moves nothing: the two searches differ."""
        images, labels = some_batch()
        network = small_network().eval()
        sizes = []
        for change in (rescaled, lambda shown: shown):
            offsets = torch.zeros(len(images), requires_grad=True)
            filters = torch.randn(len(images), 3, 3, generator=stream(0, "k")).requires_grad_()
            loss = F.cross_entropy(network(change(filtered(images, filters, offsets))), labels)
            by_filter, by_offset = torch.autograd.grad(loss, (filters, offsets))
            sizes.append((by_offset.norm() / by_filter.norm()).item())
        assert sizes[0] < 1e-3 < sizes[1]

    def test_identity_without_a_step_leaves_images_that_span_the_range(self) -> None:
        images, labels = some_batch()
        images[:, 0, 0, 0], images[:, 0, 0, 1] = 0, 1
        defense = DeconvolutionTraining(steps=0, start="identity")
        network = small_network()
        assert defense.attack(network, images, labels, step()).equal(images)
        plain = NoDefense().loss(network, images, labels, step())
        assert defense.loss(small_network(), images, labels, step()).equal(plain)

    def test_raises_the_loss_and_leaves_the_network(self) -> None:
        network = small_network().train()
        images, labels = some_batch()
        before = {key: value.clone() for key, value in network.state_dict().items()}
        losses = []
        for steps in (0, 10):
            changed = DeconvolutionTraining(steps=steps).attack(network, images, labels, step())
            network.eval()
            losses.append(F.cross_entropy(network(changed), labels).item())
            network.train()
        assert losses[1] > losses[0]
        assert all(value.equal(before[key]) for key, value in network.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in network.parameters())

    def test_one_filter_for_all_images_of_a_class(self) -> None:
        images, labels = some_batch()
        images[4] = images[0]  # both of class 0
        images[1] = images[0]  # of class 1
        changed = DeconvolutionTraining(steps=2).attack(small_network(), images, labels, step())
        assert changed[0].equal(changed[4])
        assert not changed[0].equal(changed[1])

    def test_entries_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[Tensor] = []

        def watch(images: Tensor, filters: Tensor, offsets: Tensor) -> Tensor:
            seen.append(filters.detach())
            return filtered(images, filters, offsets)

        monkeypatch.setattr("defenses.deconvolution_at.filtered", watch)
        images, labels = some_batch()
        defense = DeconvolutionTraining(step_size=1e6)
        defense.attack(small_network(), images, labels, step())
        assert seen[0].abs().max() <= 1 / 7
        assert seen[-1].abs().max() == 5


class TestCoin:
    def slow(self, image: Tensor, moves: Tensor) -> Tensor:
        channels, height, width = image.shape
        result = torch.zeros_like(image)
        for y, x in itertools.product(range(height), range(width)):
            right, down = x + float(moves[y, x, 0]), y + float(moves[y, x, 1])
            left, top = math.floor(right), math.floor(down)
            for dy, dx in itertools.product((0, 1), repeat=2):
                weight = abs(1 - dx - (right - left)) * abs(1 - dy - (down - top))
                place = image[:, (top + dy) % height, (left + dx) % width]
                result[:, y, x] += weight * place
        assert channels == 3
        return result

    @pytest.mark.parametrize("shape", [(8, 8), (5, 9)])
    def test_against_a_loop(self, shape: Sequence[int]) -> None:
        images = torch.rand(2, 3, *shape, generator=stream(0, "coin"))
        moves = 4 * torch.rand(2, *shape, 2, generator=stream(0, "moves")) - 2
        ours = resampled(images, moves)
        for image, move, found in zip(images, moves, ours, strict=True):
            torch.testing.assert_close(found, self.slow(image, move), rtol=0, atol=1e-5)

    def test_whole_moves_roll_the_image(self) -> None:
        images = torch.rand(1, 3, 8, 8, generator=stream(0, "coin"))
        moves = torch.tensor([1.0, -2.0]).expand(1, 8, 8, 2)
        rolled = images.roll((2, -1), dims=(2, 3))
        torch.testing.assert_close(resampled(images, moves), rolled, rtol=0, atol=1e-5)

    def test_moves_are_fresh_and_bounded(self) -> None:
        ramp = torch.arange(32.0).expand(1, 3, 32, 32) / 31
        labels, here = torch.zeros(1, CLASSES), step()
        first, second = (Coin().batch(ramp, labels, here)[0] for _ in range(2))
        assert not first.equal(second)
        inner = 31 * (first - ramp)[:, :, :, 3:-3]
        assert 1.9 < inner.abs().max() <= 2 + 1e-4
        assert inner.std().item() == pytest.approx(4 / math.sqrt(12), rel=0.05)


def test_generators_on_a_device_follow_the_stream() -> None:
    device = torch.device("cpu")
    one, two = stream(0, "draws"), stream(0, "draws")
    first = [torch.rand(3, generator=on_device(one, device)) for _ in range(2)]
    assert not first[0].equal(first[1])
    assert first[0].equal(torch.rand(3, generator=on_device(two, device)))

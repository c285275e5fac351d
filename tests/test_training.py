"""Schedules, crops, the training loop and the PGD loop, against hand numbers and slow loops."""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bench.augment import Crops, cut, draw_shifts, shift
from bench.budget import Budget, Norm
from bench.data import ImageDataset, Splits
from bench.defense import Defense, Step
from bench.files import load_tensors, save_tensors
from bench.network import Arch, Network
from bench.pgd import Iterate, input_gradient
from bench.recipe import Recipe, batches, leaves_one
from bench.recipes.paper import Paper
from bench.seeding import stream
from bench.testing import craft, small_splits
from bench.train import Batches, Training, accuracy
from defenses.adversarial_training import AdversarialTraining
from defenses.dpsgd_batch import BatchGradientShaping
from defenses.mixup import Mixup
from methods.clean import Clean, Sham

CPU = torch.device("cpu")
SHORT = Recipe(epochs=3, batch_size=20, warmup_epochs=0.5, milestones=(2,), crop_padding=2)
ROUND_OFF = 1e-6


@dataclass(frozen=True)
class Tiny(Arch):
    """One convolution with batch norm."""

    name = "tiny"

    def body(self, image_size: tuple[int, int]) -> tuple[nn.Module, int]:
        layers = [nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2)]
        return nn.Sequential(*layers, nn.Flatten()), 32


def training(
    dataset: ImageDataset | None = None,
    defense: Defense | None = None,
    recipe: Recipe = SHORT,
    seed: int = 0,
    role: str = "victim",
) -> Training:
    dataset = dataset or small_splits().train
    return Training(Tiny(), dataset, recipe, defense or Defense(), seed, role, CPU, "fp32")


def equal_weights(one: Training, other: Training) -> bool:
    first, second = one.network.state_dict(), other.network.state_dict()
    return all(value.equal(second[key]) for key, value in first.items())


class TestLearningRate:
    def test_paper(self) -> None:
        length = 1 / 391  # 50 000 images in batches of 128
        first_epoch = [Paper().learning_rate(k * length, length) for k in range(391)]
        rise = [0.001 + 0.099 * (k + 1) / 391 for k in range(391)]
        assert first_epoch == pytest.approx(rise, rel=1e-9)
        assert first_epoch[-1] == pytest.approx(0.1)
        for epoch, rate in [(1, 0.1), (74, 0.1), (75, 0.01), (89, 0.01), (90, 0.001), (119, 0.001)]:
            for k in (0, 200, 390):
                found = Paper().learning_rate(epoch + k * length, length)
                assert found == pytest.approx(rate, rel=1e-9)

    @pytest.mark.parametrize(
        ("schedule", "rates"),
        [
            ("onecycle", {2: 1.0, 3: 0.875, 6: 0.5, 8: 0.25, 9.75: 0.03125}),
            ("cosine", {2: 1.0, 4: (1 + math.sqrt(0.5)) / 2, 6: 0.5, 10 - 8 / 3: 0.25}),
        ],
    )
    def test_falling_to_zero(self, schedule: Any, rates: dict[float, float]) -> None:
        recipe = Recipe(epochs=10, lr=1.0, schedule=schedule, warmup_epochs=2)
        assert recipe.learning_rate(0, 0.25) == pytest.approx(0.01 + 0.99 / 8)
        assert recipe.learning_rate(1.75, 0.25) == pytest.approx(1.0)
        for progress, rate in rates.items():
            assert recipe.learning_rate(progress, 0.25) == pytest.approx(rate)
        assert recipe.learning_rate(10) == pytest.approx(0)

    @given(
        st.sampled_from(["steps", "cosine", "onecycle"]),
        st.floats(0, 3),
        st.integers(1, 400),
    )
    def test_always_positive_and_never_above_the_highest(
        self, schedule: Any, warmup: float, steps: int
    ) -> None:
        recipe = Recipe(epochs=4, milestones=(2, 3), schedule=schedule, warmup_epochs=warmup)
        rates = [recipe.learning_rate(k / steps, 1 / steps) for k in range(4 * steps)]
        assert min(rates) > 0
        assert max(rates) <= recipe.lr * (1 + 1e-12)

    def test_the_loop_asks_for_every_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []
        real = Recipe.learning_rate

        def learning_rate(self: Recipe, progress: float, step: float = 0.0) -> float:
            asked.append((progress, step))
            return real(self, progress, step)

        monkeypatch.setattr(Recipe, "learning_rate", learning_rate)
        ours = training()  # 48 images in batches of 20, 20 and 8
        rows = [ours.run_epoch(), ours.run_epoch()]
        assert asked == [(pytest.approx(k / 3), pytest.approx(1 / 3)) for k in range(6)]
        assert rows[0]["lr"] == pytest.approx(0.1)
        assert rows[1]["lr"] == pytest.approx(0.1)


class TestCrops:
    COUNT, SIZE, PADDING = 10, 6, 2

    def images(self) -> Tensor:
        shape = (self.COUNT, 3, self.SIZE, self.SIZE)
        return torch.randint(256, shape, generator=stream(0, "images")).to(torch.uint8)

    @pytest.mark.parametrize("flip", [True, False])
    def test_cut_against_a_loop(self, flip: bool) -> None:
        images, padding, size = self.images(), self.PADDING, self.SIZE
        padded = F.pad(images, (padding,) * 4)
        rows = torch.tensor([3, 0, 9, 3, 5])
        crops = Crops.draw(len(rows), padding, flip, stream(3, "crops"))
        assert crops.mirrored.any() == flip
        assert not crops.mirrored.all()
        found = cut(padded[rows].permute(0, 2, 3, 1), crops, (size, size))
        for place, row in enumerate(rows):
            down, right = int(crops.down[place]), int(crops.right[place])
            window = padded[row, :, down : down + size, right : right + size]
            expected = window.flip(2) if crops.mirrored[place] else window
            assert found[place].equal(expected)
        assert found.dtype == torch.uint8

    def test_draws_are_uniform_and_the_same_with_and_without_flips(self) -> None:
        with_flips = Crops.draw(5000, 4, True, stream(0, "crops"))
        without = Crops.draw(5000, 4, False, stream(0, "crops"))
        for line in (with_flips.down, with_flips.right):
            counts = torch.bincount(line, minlength=9)
            assert len(counts) == 9
            assert (counts - 5000 / 9).abs().max() < 4 * math.sqrt(5000 / 9)
        assert with_flips.mirrored.float().mean().item() == pytest.approx(0.5, abs=0.03)
        assert with_flips.down.equal(without.down)
        assert not without.mirrored.any()

    def test_shift_by_whole_pixels_is_a_crop_of_the_padded_image(self) -> None:
        images = self.images().float() / 255
        fill = torch.tensor([0.1, 0.5, 0.9]).reshape(1, 3, 1, 1)
        padded = F.pad(images - fill, (self.PADDING,) * 4) + fill
        crops = Crops.draw(self.COUNT, self.PADDING, True, stream(0, "crops"))
        expected = cut(padded.permute(0, 2, 3, 1), crops, (self.SIZE, self.SIZE))
        # `shift` samples at mirrored x + offset: the window moves after the mirroring.
        offsets = torch.stack([crops.right, crops.down], dim=1).float() - self.PADDING
        found = shift(images, offsets, crops.mirrored, fill)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

    def test_shift_by_half_a_pixel_is_the_mean_of_neighbours(self) -> None:
        images = self.images().float() / 255
        offsets = torch.tensor([0.5, 0.0]).expand(self.COUNT, 2)
        still = torch.zeros(self.COUNT, dtype=torch.bool)
        found = shift(images, offsets, still, torch.zeros(1, 3, 1, 1))
        expected = (images[..., :-1] + images[..., 1:]) / 2
        torch.testing.assert_close(found[..., :-1], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(found[..., -1], images[..., -1] / 2, rtol=0, atol=1e-5)

    def test_shift_has_the_right_gradient(self) -> None:
        images = self.images()[:2].double() / 255
        offsets, mirrored = draw_shifts(2, 2.5, stream(1, "shifts"), CPU)
        fill = torch.full((1, 3, 1, 1), 0.4, dtype=torch.double)
        assert torch.autograd.gradcheck(
            lambda x: shift(x, offsets.double(), mirrored, fill), images.requires_grad_()
        )


class TestBatches:
    def epoch(self, recipe: Recipe, dataset: ImageDataset | None = None) -> tuple[Tensor, Tensor]:
        batches = Batches(dataset or small_splits().train, recipe, CPU)
        found = list(batches.epoch(stream(0, "epoch")))
        assert len(found) == len(batches) == -(-48 // recipe.batch_size)
        images, labels = zip(*found, strict=True)
        return torch.cat(images), torch.cat(labels)

    def test_every_image_once_byte_for_byte(self) -> None:
        train = small_splits().train
        images, labels = self.epoch(replace(SHORT, crop_padding=0, flip=False))
        order = torch.randperm(48, generator=stream(0, "epoch"))
        assert (images * 255).round().to(torch.uint8).equal(train.images[order])
        assert images.equal(train.images[order].float() / 255)
        assert labels.equal(train.labels[order])
        assert not order.equal(torch.arange(48))

    def test_crops_keep_bytes_and_pad_with_black(self) -> None:
        images, _ = self.epoch(SHORT)
        levels = images * 255
        assert levels.equal(levels.round())
        white = small_splits().train.with_images(torch.full_like(small_splits().train.images, 255))
        images, _ = self.epoch(SHORT, white)
        assert set(images.unique().tolist()) == {0.0, 1.0}

    def test_bilinear_pads_with_the_mean_colour(self) -> None:
        train = small_splits().train
        mean = torch.tensor(train.mean).reshape(1, 3, 1, 1).expand(48, 3, 16, 16)
        images, _ = self.epoch(replace(SHORT, crops="bilinear"), train.with_images(mean))
        torch.testing.assert_close(images, mean, rtol=0, atol=ROUND_OFF)

    def test_prepared_floats_pass_as_they_are(self) -> None:
        train = small_splits().train
        prepared = train.with_images(2 * train.images.float() / 255 - 0.5)
        images, _ = self.epoch(replace(SHORT, crop_padding=0, flip=False), prepared)
        assert images.equal(prepared.images[torch.randperm(48, generator=stream(0, "epoch"))])

    def test_unshuffled_images_come_as_they_lie(self) -> None:
        train = small_splits().train
        _, labels = self.epoch(replace(SHORT, shuffle=False))
        assert labels.equal(train.labels)

    @pytest.mark.parametrize(
        ("size", "kept", "all_steps", "whole_steps"),
        [(20, 40, 3, 2), (16, 48, 3, 3), (50, 48, 1, 1)],  # of 48 images; one batch is kept
    )
    def test_a_partial_batch_can_be_left_out(
        self, size: int, kept: int, all_steps: int, whole_steps: int
    ) -> None:
        recipe = replace(SHORT, batch_size=size)
        assert len(recipe.batches(48)) == all_steps
        less = replace(recipe, drop_last=True)
        ours = Batches(small_splits().train, less, CPU)
        found = [len(labels) for _, labels in ours.epoch(stream(0, "epoch"))]
        assert (len(found), len(ours), sum(found)) == (whole_steps, whole_steps, kept)
        assert len(less.batches(48)) == whole_steps

    @given(st.integers(1, 60), st.integers(1, 20), st.booleans())
    def test_batches_hold_every_image_once_and_none_alone(
        self, count: int, size: int, whole: bool
    ) -> None:
        parts = batches(count, size, whole=whole)
        places = [place for part in parts for place in range(part.start, part.stop)]
        sizes = [part.stop - part.start for part in parts]
        assert places == list(range(len(places)))
        assert set(sizes[:-1]) <= {size}
        if whole:
            assert len(places) == (count // size * size or count)
        else:
            assert len(places) == count
            assert sizes[-1] > 1 or 1 in (size, count)
            # Where no image is left alone, the batches are what they always were.
            split = [len(part) for part in torch.arange(count).split(size)]
            assert (sizes == split) is not leaves_one(count, size)

    def test_the_rate_falls_by_the_decay(self) -> None:
        recipe = Recipe(milestones=(2, 3), decay=0.5, warmup_epochs=0)
        assert [recipe.learning_rate(e) for e in (0, 2, 3)] == pytest.approx([0.1, 0.05, 0.025])
        with pytest.raises(ValueError, match="decay=0"):
            Recipe(decay=0)

    @pytest.mark.parametrize("crops", ["whole", "bilinear"])
    def test_order_does_not_depend_on_augmentation(self, crops: Any) -> None:
        plain = self.epoch(replace(SHORT, flip=False, crop_padding=0))[1]
        assert self.epoch(replace(SHORT, crops=crops))[1].equal(plain)


class Watching(Defense):
    """Plain training that remembers what it was given."""

    def __init__(self) -> None:
        hooks = ("prepare", "batch", "finish", "predict")
        object.__setattr__(self, "seen", {hook: [] for hook in hooks})  # it is frozen

    def prepare(self, dataset: ImageDataset, stream: torch.Generator) -> ImageDataset:
        self.seen["prepare"].append(dataset)
        return dataset

    def batch(self, images: Tensor, soft_labels: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        self.seen["batch"].append((images.clone(), soft_labels, step))
        return images, soft_labels

    def finish(self, network: Network, dataset: ImageDataset, stream: torch.Generator) -> Network:
        self.seen["finish"].append(dataset)
        return network

    def predict(self, network: Network, images: Tensor, stream: torch.Generator) -> Tensor:
        assert not network.training
        assert not torch.is_grad_enabled()
        self.seen["predict"].append(images)
        return network(images)


class TestTraining:
    def test_learns(self) -> None:
        ours = training(recipe=replace(SHORT, epochs=12, milestones=(10,)))
        rows = [ours.run_epoch() for _ in range(12)]
        assert rows[-1]["train_acc"] > 0.7 > rows[0]["train_acc"]
        assert accuracy(ours.confusion(small_splits().test)) > 0.7

    def test_curve_row(self) -> None:
        """One step at rate zero: loss and accuracy are those of the fresh network."""
        train = small_splits().train
        recipe = replace(SHORT, batch_size=48, lr=1e-30, flip=False, crop_padding=0)
        ours = training(recipe=recipe)
        row, network = ours.run_epoch(), ours.network
        assert network.training
        logits = network(train.images.float() / 255)
        loss = F.cross_entropy(logits, train.labels).item()
        right = (logits.argmax(1) == train.labels).float().mean().item()
        assert row["epoch"] == ours.epoch == 1
        assert row["train_loss"] == pytest.approx(loss, rel=1e-5)
        assert row["train_acc"] == pytest.approx(right)

    def test_accuracy_on_mixed_labels_is_agreement_with_the_heavier(self) -> None:
        """Never with the labels that the images had before they were mixed."""

        class Mixing(Defense):
            """Most of every label becomes the next class."""

            def batch(self, images: Tensor, soft: Tensor, step: Step) -> tuple[Tensor, Tensor]:
                return images, 0.3 * soft + 0.7 * soft.roll(1, dims=1)

        train = small_splits().train
        recipe = replace(SHORT, batch_size=48, lr=1e-30, flip=False, crop_padding=0)
        ours = training(recipe=recipe, defense=Mixing())
        row = ours.run_epoch()
        guesses = ours.network(train.images.float() / 255).argmax(1)
        agreeing, before = (
            (guesses == labels).float().mean().item()
            for labels in ((train.labels + 1) % 4, train.labels)
        )
        assert agreeing != before
        assert row["train_acc"] == pytest.approx(agreeing)

    def test_losses_are_weighted_by_images(self) -> None:
        class Counted(Defense):
            """The loss of a batch is its size."""

            def loss(self, network: Network, images: Tensor, soft: Tensor, step: Step) -> Tensor:
                return 0 * network(images).sum() + len(images)

        row = training(defense=Counted()).run_epoch()
        assert row["train_loss"] == pytest.approx((20 * 20 + 20 * 20 + 8 * 8) / 48)

    def test_one_step_against_torch(self) -> None:
        """Nesterov, weight decay on everything, clipping after the gradient is complete."""
        recipe = replace(
            SHORT, batch_size=24, nesterov=True, clip_grad=0.05, flip=False, crop_padding=0
        )
        ours = training(recipe=recipe)
        twin = copy.deepcopy(ours.network).train()
        ours.run_epoch()
        velocity = [torch.zeros_like(weight) for weight in twin.parameters()]
        train = small_splits().train
        order = torch.randperm(48, generator=stream(0, "victim", "batches", 0))
        for k, rows in enumerate(order.split(24)):
            rate = recipe.learning_rate(k / 2, 1 / 2)
            loss = F.cross_entropy(twin(train.images[rows].float() / 255), train.labels[rows])
            gradients = torch.autograd.grad(loss, list(twin.parameters()))
            length = torch.cat([g.flatten() for g in gradients]).norm()
            for g, v, weight in zip(gradients, velocity, twin.parameters(), strict=True):
                g = g * (0.05 / length).clamp_max(1) + 5e-4 * weight.detach()
                v.mul_(0.9).add_(g)
                weight.data -= rate * (g + 0.9 * v)
        for found, expected in zip(ours.network.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize(
        "defense", [Defense(), Mixup(), BatchGradientShaping(), AdversarialTraining(steps=1)]
    )
    def test_resumed_after_an_epoch_it_is_bit_identical(
        self, defense: Defense, tmp_path: Path
    ) -> None:
        whole = training(defense=defense)
        rows = [whole.run_epoch() for _ in range(3)]
        stopped = training(defense=defense)
        first = stopped.run_epoch()
        stopped.confusion(small_splits().test)  # evaluation draws from streams of its own
        save_tensors(tmp_path / "state.pt", stopped.state())
        resumed = training(defense=defense)
        resumed.load_state(load_tensors(tmp_path / "state.pt") or {})
        assert json.loads(json.dumps([first])) + [resumed.run_epoch() for _ in range(2)] == rows
        assert equal_weights(resumed, whole)

    def test_a_defense_does_not_move_other_draws(self) -> None:
        plain, mixing = Watching(), training(defense=Mixup())
        network = copy.deepcopy(training(defense=plain).network.state_dict())
        assert all(value.equal(network[key]) for key, value in mixing.network.state_dict().items())
        training(defense=plain).run_epoch()
        given_to_mixup = []

        class WatchedMixup(Mixup):
            """Mixup that remembers what it was given."""

            def batch(self, images: Tensor, labels: Tensor, step: Step) -> tuple[Tensor, Tensor]:
                given_to_mixup.append((images.clone(), labels))
                return super().batch(images, labels, step)

        training(defense=WatchedMixup()).run_epoch()
        for (images, labels, _), (others, other_labels) in zip(
            plain.seen["batch"], given_to_mixup, strict=True
        ):
            assert images.equal(others)
            assert labels.equal(other_labels)

    def test_seed_and_role_choose_the_streams(self) -> None:
        ours = training()
        ours.run_epoch()
        for options, same in [({}, True), ({"seed": 1}, False), ({"role": "surrogate-0"}, False)]:
            other = training(**options)
            other.run_epoch()
            assert equal_weights(ours, other) == same

    def test_hooks_are_called_where_they_belong(self) -> None:
        train, test = small_splits()
        defense = Watching()
        ours = training(defense=defense)
        for _ in range(3):
            ours.run_epoch()
            ours.confusion(test)
        ours.finish()
        assert defense.seen["prepare"] == [train]
        assert defense.seen["finish"] == [train]
        steps = [step for _, _, step in defense.seen["batch"]]
        assert [step.epoch for step in steps] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert {(step.epochs, step.classes) for step in steps} == {(3, 4)}
        assert len({id(step.stream) for step in steps}) == 3
        seen = torch.cat(defense.seen["predict"])
        assert seen.equal((test.images.float() / 255).repeat(3, 1, 1, 1))

    def test_clean_and_sham_are_bit_identical(self) -> None:
        train = small_splits().train
        curves, trained = [], []
        for method in (Clean(), Sham()):
            ours = training(train.with_images(craft(method, train).images))
            curves.append([ours.run_epoch() for _ in range(2)])
            trained.append(ours)
        assert curves[0] == curves[1]
        assert equal_weights(*trained)

    def test_copies_of_the_network_do_not_carry_the_training(self) -> None:
        ours = training()
        ours.run_epoch()
        for hook in ours.network._forward_hooks.values():
            assert not isinstance(getattr(hook, "__self__", None), Training)
            assert not any(isinstance(value, Training) for value in vars(hook).values())


class TestConfusion:
    def test_against_a_loop(self) -> None:
        test = small_splits().test
        ours = training()
        ours.run_epoch()
        counts = torch.zeros(4, 4, dtype=torch.int64)
        network = ours.network.eval()
        for image, label in zip(test.images, test.labels, strict=True):
            guess = network(image[None].float() / 255).argmax()
            counts[label, guess] += 1
        assert ours.confusion(test).equal(counts)
        assert accuracy(counts) == counts.diagonal().sum() / 24

    def test_batches_cover_everything(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ours = training()
        whole = ours.confusion(small_splits().test)
        monkeypatch.setattr("bench.train.EVALUATION_BATCH", 7)
        assert ours.confusion(small_splits().test).equal(whole)

    def test_leaves_the_network_alone(self) -> None:
        ours = training()
        ours.run_epoch()
        before = copy.deepcopy(ours.network.state_dict())
        ours.confusion(small_splits().test)
        assert all(value.equal(before[key]) for key, value in ours.network.state_dict().items())
        ours.run_epoch()
        assert ours.network.training

    def test_accuracy_of_nothing(self) -> None:
        assert accuracy(torch.zeros(3, 3)) == 0


NORMS: list[tuple[Norm, float]] = [("linf", 8 / 255), ("l2", 0.5), ("l0", 3), ("none", math.inf)]


class TestIterate:
    def images(self) -> Tensor:
        images = torch.randint(256, (4, 3, 5, 5), generator=stream(0, "pgd")).to(torch.uint8)
        images[0, 0], images[0, 1] = 0, 255
        return images

    def gradients(self) -> list[Tensor]:
        draws = stream(1, "pgd")
        return [torch.randn(4, 3, 5, 5, generator=draws) for _ in range(30)]

    @pytest.mark.parametrize("as_float", [False, True])
    def test_stays_on_the_grid_of_grey_levels(self, as_float: bool) -> None:
        images = self.images()
        x = Iterate(images.float() / 255 if as_float else images, Budget("linf", 8 / 255))
        expected = images.to(torch.int64)
        for gradient in self.gradients():
            x.descend(gradient, 1 / 255)
            expected = expected - gradient.sign().to(torch.int64)
            low, high = images.to(torch.int64) - 8, images.to(torch.int64) + 8
            expected = torch.minimum(torch.maximum(expected, low), high).clamp(0, 255)
            assert (x.images * 255).equal(expected.float())
            assert (x.delta * 255).round().equal((expected - images).float())

    @pytest.mark.parametrize(("norm", "epsilon"), NORMS)
    @pytest.mark.parametrize("started", [False, True])
    def test_never_leaves_budget_and_range(self, norm: Norm, epsilon: float, started: bool) -> None:
        budget = Budget(norm, epsilon)
        start = torch.randn(4, 3, 5, 5, generator=stream(2, "pgd")) if started else None
        x = Iterate(self.images(), budget, start)
        for gradient in self.gradients():
            assert (budget.size(x.delta) <= epsilon * (1 + 1e-5)).all()
            assert x.images.min() >= 0
            assert x.images.max() <= 1
            x.descend(gradient, 0.1)

    def test_l2_radius_is_reached(self) -> None:
        budget = Budget("l2", 0.5)
        x = Iterate(torch.full((4, 3, 5, 5), 0.5), budget)
        for _ in range(4):
            x.descend(self.gradients()[0], 0.2)
        assert budget.size(x.delta).tolist() == pytest.approx([0.5] * 4)

    def test_l2_steps_have_the_stated_length(self) -> None:
        x = Iterate(torch.full((4, 3, 5, 5), 0.5), Budget("l2", 1.0))
        (gradient, *_) = self.gradients()
        x.descend(gradient, 0.2)
        lengths = gradient.flatten(1).norm(dim=1)[:, None, None, None]
        torch.testing.assert_close(x.delta, -0.2 * gradient / lengths, rtol=1e-4, atol=ROUND_OFF)
        x.descend(torch.zeros(4, 3, 5, 5), 0.2)
        assert x.delta.isfinite().all()

    def test_copies_move_on_their_own(self) -> None:
        x = Iterate(self.images(), Budget("linf", 8 / 255))
        (first, second, *_) = self.gradients()
        x.descend(first, 1 / 255)
        here, v = x.images, x.copy()
        v.descend(second, 1 / 255)
        assert x.images.equal(here)
        assert not v.images.equal(here)

    @pytest.mark.parametrize("sign", [1, -1])
    def test_reaches_the_optimum_of_a_linear_objective(self, sign: int) -> None:
        """Down or up a plane: delta = -+ epsilon sign(w), cut off where the range ends."""
        images, (w, *_) = self.images(), self.gradients()
        x = Iterate(images, Budget("linf", 8 / 255))
        for _ in range(8):
            x.descend(input_gradient(lambda x: (x * w).sum(), x.images), sign / 255)
        best = (images.float() - sign * 8 * w.sign()).clamp(0, 255)
        assert (x.images * 255).equal(best)

    def test_gradients_are_of_the_sum_and_leave_weights_alone(self) -> None:
        weight = torch.ones(3, requires_grad=True)
        images = torch.rand(2, 3, 4, 4, generator=stream(0, "pgd"))
        found = input_gradient(lambda x: (x.square() * weight[:, None, None]).sum(), images)
        torch.testing.assert_close(found, 2 * images)
        assert weight.grad is None
        assert not images.requires_grad

    def test_pixels_outside_the_range_are_not_pulled_out_of_the_ball(self) -> None:
        images = torch.tensor([-0.5, 1.5, 0.0, 1.0]).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)
        x = Iterate(images, Budget("linf", 8 / 255))
        assert x.delta.eq(0).all()
        for step_size in (1.0, -1.0):
            x.descend(torch.ones_like(images), step_size)
            assert x.delta.abs().max() <= 8 / 255 * (1 + ROUND_OFF)
            assert ((x.images - 0.5).abs() <= (images - 0.5).abs() + ROUND_OFF).all()


def test_splits_of_the_kit_are_not_changed_by_all_this() -> None:
    fresh: Callable[[], Splits] = small_splits.__wrapped__
    for used, made in zip(small_splits(), fresh(), strict=True):
        assert used.digest == made.digest
        assert used.images.equal(made.images)

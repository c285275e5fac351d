"""Gradient shaping by sample, against one backward pass an image and against another accountant."""

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bench.component import build, parse_one
from bench.data import ImageDataset
from bench.defense import Step
from bench.errors import UsageError
from bench.network import Arch, Network
from bench.recipe import Recipe
from bench.registry import ARCHS, DEFENSES
from bench.seeding import stream
from bench.testing import CPU, small_arch, small_recipe, small_splits
from bench.train import Training
from defenses import dpsgd_sample
from defenses.dpsgd_sample import (
    SampleGradientShaping,
    group_norm,
    privacy_spent,
    replace_batch_norms,
    sample_gradients,
)
from defenses.none import NoDefense

CLASSES = 4
PLAIN = SampleGradientShaping(clip=1e9, noise=0.0)
"""Neither clips nor adds noise."""
ROUND_OFF = 1e-4
"""Of a gradient whose sums were taken in another order."""


def step(seed: int = 0) -> Step:
    return Step(0, 1, CLASSES, stream(seed, "test"))


def batch(count: int = 12) -> tuple[Tensor, Tensor]:
    """Images, and soft labels that are no corners of the simplex."""
    draws = stream(0, "batch")
    images = torch.rand(count, 3, 16, 16, generator=draws)
    return images, torch.rand(count, CLASSES, generator=draws).softmax(1)


def dataset(side: int = 16) -> ImageDataset:
    images = torch.zeros(CLASSES, 3, side, side, dtype=torch.uint8)
    return ImageDataset(
        images, torch.arange(CLASSES), tuple("abcd"), "test", (0.5,) * 3, (0.2,) * 3
    )


def network(defense: SampleGradientShaping = PLAIN, arch: Arch | None = None) -> Network:
    return defense.build(arch or small_arch(), dataset(), stream(0, "build")).train()


def gradient(defense: SampleGradientShaping, net: Network, count: int = 12) -> Tensor:
    net.zero_grad()
    defense.backward(net, *batch(count), step())
    return flat(net)


def flat(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def distance(found: Tensor, expected: Tensor) -> float:
    """Length of the error in units of the expected gradient's length."""
    assert found.shape == expected.shape
    return ((found - expected).norm() / expected.norm()).item()


def one_by_one(net: Network, images: Tensor, soft_labels: Tensor) -> Tensor:
    """The gradient of each image by a backward pass of its own, (b, weights)."""
    rows = []
    for image, soft_label in zip(images, soft_labels, strict=True):
        net.zero_grad()
        F.cross_entropy(net(image[None]), soft_label[None]).backward()
        rows.append(flat(net))
    net.zero_grad()
    return torch.stack(rows)


class TestGradient:
    @pytest.mark.parametrize("at_once", [1, 5, 12, 32])
    def test_is_that_of_a_loop_over_images(
        self, at_once: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dpsgd_sample, "AT_ONCE", at_once)
        net, (images, soft_labels) = network(), batch()
        rows = one_by_one(net, images, soft_labels)
        lengths = rows.norm(dim=1)
        clip = lengths.median().item()  # so that half of the images are clipped
        assert lengths.min() < 0.99 * clip < 1.01 * clip < lengths.max()
        shares = torch.tensor([min(1.0, clip / length) for length in lengths.tolist()])
        expected = (shares[:, None] * rows).mean(0)
        found = gradient(SampleGradientShaping(clip=clip, noise=0.0), net)
        assert distance(found, expected) < ROUND_OFF

    def test_memory_bounds_what_is_held_and_changes_nothing_else(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        net, defense = network(), SampleGradientShaping(clip=0.5, noise=0.0)
        whole, sizes, original = gradient(defense, net), [], sample_gradients

        def spy(net: Network, weights: Any, images: Tensor, soft_labels: Tensor) -> Any:
            sizes.append(len(images))
            return original(net, weights, images, soft_labels)

        count = sum(weight.numel() for weight in net.parameters())
        monkeypatch.setattr(dpsgd_sample, "sample_gradients", spy)
        monkeypatch.setattr(dpsgd_sample, "GRADIENT_BYTES", 4 * count * 5 + 4)
        assert distance(gradient(defense, net), whole) < ROUND_OFF
        monkeypatch.setattr(dpsgd_sample, "GRADIENT_BYTES", 1)
        gradient(defense, net, 2)
        assert sizes == [5, 5, 2, 1, 1]

    def test_without_clipping_and_noise_it_is_plain_training(self) -> None:
        net = network()
        images, soft_labels = batch()
        found = gradient(PLAIN, net)
        loss = PLAIN.backward(net, images, soft_labels, step())
        net.zero_grad()
        expected = NoDefense().backward(net, images, soft_labels, step())
        assert distance(found, flat(net)) < ROUND_OFF
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)

    @pytest.mark.parametrize("clip", [1e-3, 0.1])
    def test_no_image_moves_the_weights_by_more_than_its_share(self, clip: float) -> None:
        net, defense = network(), SampleGradientShaping(clip=clip, noise=0.0)
        found = gradient(defense, net)
        rows = one_by_one(net, *batch())
        assert rows.norm(dim=1).min() > clip  # all are clipped
        expected = clip * F.normalize(rows).mean(0)
        assert distance(found, expected) < ROUND_OFF
        assert found.norm() <= clip * (1 + 1e-5)
        alone = SampleGradientShaping(clip=clip, noise=0.0)
        assert gradient(alone, net, 1).norm().item() == pytest.approx(clip, rel=1e-4)

    def test_attention_can_be_taken_apart(self) -> None:
        net = network(arch=build(ARCHS, parse_one("vit-s:width=0.17", ARCHS)))
        expected = one_by_one(net, *batch(3)).mean(0)
        assert distance(gradient(PLAIN, net, 3), expected) < ROUND_OFF

    def test_in_bfloat16(self) -> None:
        # One group each: bfloat16 is too coarse for the four values of this network's last groups.
        defense = SampleGradientShaping(clip=0.5, noise=0.0, groups=1)
        net = network(defense)
        exact = gradient(defense, net)
        net.precision, seen = "bf16", set()
        net.body[0].register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
        found = gradient(defense, net)
        assert seen == {torch.bfloat16}
        assert found.dtype == torch.float32
        assert 0 < distance(found, exact) < 0.1

    def test_layers_that_draw_do_so_for_each_image(self) -> None:
        body = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
        net = Network(body, 768, CLASSES, (0, 0, 0), (1, 1, 1)).train()
        images, soft_labels = torch.ones(2, 3, 16, 16), batch(2)[1][:1].expand(2, -1)
        weights = dict(net.named_parameters())
        gradients, _, _ = sample_gradients(net, weights, images, soft_labels)
        dropped = gradients["head.weight"].eq(0).all(1)
        assert not dropped[0].equal(dropped[1])
        assert dropped.float().mean().item() == pytest.approx(0.5, abs=0.06)
        gradients, _, _ = sample_gradients(net.eval(), weights, images, soft_labels)
        assert gradients["head.weight"][0].equal(gradients["head.weight"][1])


class TestNoise:
    @staticmethod
    def zero(net: Network, defense: SampleGradientShaping, count: int) -> Tensor:
        """The gradient where every image's own is zero: uniform scores and uniform labels."""
        nn.init.zeros_(net.head.weight)
        nn.init.zeros_(net.head.bias)
        net.zero_grad()
        images, uniform = batch(count)[0], torch.full((count, CLASSES), 1 / CLASSES)
        defense.backward(net, images, uniform, step())
        return flat(net)

    @pytest.mark.parametrize("count", [4, 16])
    def test_is_divided_by_the_batch(self, count: int) -> None:
        net = network()
        noise = self.zero(net, SampleGradientShaping(clip=2.0, noise=0.3), count)
        assert noise.ne(0).all()  # every coordinate, group norms and biases too
        assert len(noise) == sum(weight.numel() for weight in net.parameters())
        expected, error = 0.6 / count, 1 / math.sqrt(2 * len(noise))
        assert noise.std().item() == pytest.approx(expected, rel=4 * error)
        assert noise.mean().abs() < 4 * expected / math.sqrt(len(noise))
        assert not self.zero(net, SampleGradientShaping(noise=0.0), count).any()

    def test_comes_once_on_top_of_the_clipped_sum(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dpsgd_sample, "AT_ONCE", 5)
        clipped = gradient(SampleGradientShaping(clip=0.1, noise=0.0), network())
        noise = self.zero(network(), SampleGradientShaping(clip=0.1, noise=0.1), 12)
        both = gradient(SampleGradientShaping(clip=0.1, noise=0.1), network())
        torch.testing.assert_close(both, clipped + noise, rtol=0, atol=1e-6)

    def test_is_drawn_anew_every_step(self) -> None:
        net, defense, here = network(), SampleGradientShaping(noise=100.0), step()
        found = []
        for _ in range(2):
            net.zero_grad()
            defense.backward(net, *batch(), here)
            found.append(flat(net).clone())
        correlation = torch.corrcoef(torch.stack(found))[0, 1].abs()
        assert correlation < 4 / math.sqrt(len(found[0]))


class TestHooks:
    def test_see_the_logits_that_were_learned_from_and_nothing_else(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dpsgd_sample, "AT_ONCE", 5)
        net, seen = network(), []
        net.register_forward_hook(lambda module, inputs, logits: seen.append((inputs, logits)))
        images, soft_labels = batch()
        SampleGradientShaping().backward(net, images, soft_labels, step())
        ((inputs, logits),) = seen
        assert inputs == (images,)
        assert not torch._C._functorch.is_functorch_wrapped_tensor(logits)
        assert not logits.requires_grad
        assert "forward" not in vars(net)
        torch.testing.assert_close(logits, net(images), rtol=1e-4, atol=1e-5)

    def test_train_accuracy_is_that_of_the_images_learned(self) -> None:
        counts = []

        class Spying(SampleGradientShaping):
            def backward(self, network: Network, images: Tensor, soft_labels: Tensor, step: Step):
                right = network.forward(images).argmax(1) == soft_labels.argmax(1)
                counts.append(int(right.sum()))
                return super().backward(network, images, soft_labels, step)

        train = small_splits().train
        images = train.images // 4
        for label in range(CLASSES - 1):
            images[train.labels == label, label] += 190  # a colour, so that accuracy rises
        train = dataclasses.replace(train, images=images)
        recipe = dataclasses.replace(small_recipe(), lr=0.05)
        defense = Spying(clip=100.0, noise=0.0)
        training = Training(small_arch(), train, recipe, defense, 0, "victim", CPU, "fp32")
        rows = [training.run_epoch() for _ in range(5)]
        assert len(counts) == 15
        shares = [sum(counts[at : at + 3]) / len(train) for at in range(0, 15, 3)]
        # Image by image sums come in another order than in a batch: near ties may fall either way.
        assert [row["train_acc"] for row in rows] == pytest.approx(shares, abs=1.01 / len(train))
        assert max(shares) - min(shares) > 5 / len(train)


class Wasteful(Arch):
    """Has a layer that no image passes."""

    name = "wasteful"

    def body(self, image_size: tuple[int, int]) -> tuple[nn.Module, int]:
        body = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        body[0].unused = nn.Linear(2, 2)
        return body, 5


class TestWeights:
    def test_frozen_ones_are_left_out(self) -> None:
        net = network()
        frozen = [net.head.bias, next(net.body.parameters())]
        for weight in frozen:
            weight.requires_grad_(False)
        found = gradient(SampleGradientShaping(noise=0.0, clip=0.1), net)
        assert all(weight.grad is None for weight in frozen)
        rows = one_by_one(net, *batch())  # of the others alone
        expected = (rows * (0.1 / rows.norm(dim=1).clamp_min(0.1))[:, None]).mean(0)
        assert distance(found, expected) < ROUND_OFF

    def test_unreached_ones_stay_as_they_are(self) -> None:
        net = network(SampleGradientShaping(), Wasteful())
        learning = {name for name, weight in net.named_parameters() if weight.requires_grad}
        assert learning == {"body.0.weight", "body.0.bias", "head.weight", "head.bias"}
        assert net.training
        SampleGradientShaping().backward(net, *batch(), step())
        assert {name for name, weight in net.named_parameters() if weight.grad is not None} == (
            learning
        )

    def test_all_are_reached_in_a_usual_network(self) -> None:
        assert all(weight.requires_grad for weight in network().parameters())


def narrow(name: str) -> str:
    """A small network of a kind."""
    fields = {item.name for item in dataclasses.fields(ARCHS.get(name))}
    return f"{name}:width=0.125" if "width" in fields else name


OWN = [narrow(name) for name, entry in ARCHS.entries.items() if entry.argument is None]
FOREIGN = [
    "timm:test_efficientnet",
    "timm:levit_128s",
    "timm:densenet121",
    "torchvision:mobilenet_v3_small",
]


class TestGroupNorm:
    @pytest.mark.parametrize("text", [*OWN, *FOREIGN])
    def test_no_batch_norm_is_left(self, text: str) -> None:
        arch = build(ARCHS, parse_one(text, ARCHS))
        before = arch.network(CLASSES, (32, 32), (0,) * 3, (1,) * 3, stream(0, "build"))
        norms = {n: m for n, m in before.named_modules() if isinstance(m, _BatchNorm)}
        assert norms or text.startswith(("alexnet", "vit", "deit", "cait"))
        weights = {n: w.clone() for n, w in before.named_parameters()}
        others = sum(isinstance(m, nn.GroupNorm) for m in before.modules())
        replace_batch_norms(before, 32)
        after = list(before.modules())
        assert not any(isinstance(module, _BatchNorm) for module in after)
        assert sum(isinstance(module, nn.GroupNorm) for module in after) == len(norms) + others
        for name, old in norms.items():
            new = before.get_submodule(name)
            group = new if isinstance(new, nn.GroupNorm) else new.norm
            assert isinstance(group, nn.GroupNorm)
            assert (group.num_channels, group.eps) == (old.num_features, old.eps)
            assert group.num_groups == math.gcd(32, old.num_features)
            assert group.weight.equal(weights[f"{name}.weight"])
            assert group.bias.equal(weights[f"{name}.bias"])

    def test_against_a_loop_over_groups(self) -> None:
        norm = group_norm(nn.BatchNorm2d(12, eps=0.1), 8)  # gcd: four groups of three channels
        x = torch.rand(2, 12, 5, 5, generator=stream(0, "x"))
        for image, result in zip(x, norm(x), strict=True):
            for start in range(0, 12, 3):
                group = image[start : start + 3]
                expected = (group - group.mean()) / (group.var(correction=0) + 0.1).sqrt()
                torch.testing.assert_close(result[start : start + 3], expected)

    def test_keeps_the_activation_and_the_weights(self) -> None:
        from timm.layers import BatchNormAct2d

        old = BatchNormAct2d(4, eps=1e-3, act_layer=nn.SiLU, inplace=False)
        nn.init.normal_(old.weight, generator=stream(0, "weight"))
        nn.init.normal_(old.bias, generator=stream(0, "bias"))
        x = torch.randn(3, 4, 6, 6, generator=stream(0, "x"))
        expected = F.silu(F.group_norm(x, 2, old.weight, old.bias, 1e-3))
        torch.testing.assert_close(group_norm(old, 6)(x), expected)

    def test_without_weights(self) -> None:
        norm = group_norm(nn.BatchNorm2d(4, affine=False), 2)
        assert not list(norm.parameters())

    def test_build_differs_from_plain_in_nothing_else(self) -> None:
        ours = network().state_dict()
        plain = NoDefense().build(small_arch(), dataset(), stream(0, "build")).state_dict()
        gone = ("running_mean", "running_var", "num_batches_tracked")
        assert ours.keys() == {name for name in plain if not name.endswith(gone)}
        assert all(value.equal(plain[name]) for name, value in ours.items())

    def test_an_image_does_not_depend_on_its_batch(self) -> None:
        net, (images, _) = network(), batch()
        torch.testing.assert_close(net(images)[:1], net(images[:1]), rtol=1e-4, atol=1e-5)

    def test_groups_of_one_value_are_refused(self) -> None:
        arch = build(ARCHS, parse_one("vgg16:width=0.0625", ARCHS))  # ends in 32 maps of one pixel
        with pytest.raises(UsageError, match=r"vgg16 cannot take 32 groups .*write groups=1"):
            network(SampleGradientShaping(), arch)
        gradient(SampleGradientShaping(), network(SampleGradientShaping(groups=1), arch), 2)


# Of opacus 1.6.0, compute_rdp and get_privacy_spent at orders 2 to 256.
OPACUS = [
    ((128 / 50000, 1.0, 4000, 1e-5), 1.0938646925852265),
    ((0.01, 1.1, 10000, 1e-5), 5.654308000149469),
    ((128 / 5000, 0.1, 400, 1e-4), 37075.69370401356),
    ((0.25, 0.5, 100, 1e-2), 150.2338023012461),
    ((0.004, 4.0, 500, 1e-5), 0.07721479299521061),
    ((1.0, 4.0, 10, 1e-3), 2.6639357903227996),
]


class TestAccount:
    @pytest.mark.parametrize(("arguments", "expected"), OPACUS)
    def test_agrees_with_opacus(
        self, arguments: tuple[float, float, int, float], expected: float
    ) -> None:
        assert privacy_spent(*arguments) == pytest.approx(expected, rel=1e-8)

    def test_of_whole_batches_by_hand(self) -> None:
        """At rate 1 the Renyi divergence of order a is a / (2 s^2), a step."""
        expected = min(
            5 * a / (2 * 3.0**2) + math.log((a - 1) / a) - math.log(1e-3 * a) / (a - 1)
            for a in range(2, 257)
        )
        assert privacy_spent(1.0, 3.0, 5, 1e-3) == pytest.approx(expected, rel=1e-9)

    def test_more_noise_and_fewer_steps_spend_less(self) -> None:
        spent = privacy_spent(0.01, 1.0, 1000, 1e-5)
        assert privacy_spent(0.01, 1.5, 1000, 1e-5) < spent
        assert privacy_spent(0.01, 1.0, 500, 1e-5) < spent
        assert privacy_spent(0.005, 1.0, 1000, 1e-5) < spent

    @pytest.mark.parametrize(
        ("images", "delta"), [(50_000, 1e-5), (10_000, 1e-4), (5000, 1e-4), (48, 1e-2)]
    )
    def test_facts(self, images: int, delta: float) -> None:
        recipe = Recipe(epochs=3, batch_size=128)
        facts = SampleGradientShaping(noise=1.0).facts(recipe, images, 10)
        assert facts.keys() == {"privacy_epsilon", "privacy_delta"}
        assert facts["privacy_delta"] == pytest.approx(delta, rel=1e-12)
        steps = 3 * -(-images // 128)
        expected = privacy_spent(min(128 / images, 1), 1.0, steps, delta)
        assert facts["privacy_epsilon"] == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("noise", [0.0, 1e-160])
    def test_nothing_is_said_of_infinity(self, noise: float) -> None:
        assert SampleGradientShaping(noise=noise).facts(Recipe(), 5000, 10) == {}


@pytest.mark.parametrize("setting", ["clip=0", "noise=-1", "groups=0"])
def test_senseless_settings_are_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="must"):
        build(DEFENSES, parse_one(f"dpsgd-sample:{setting}", DEFENSES))

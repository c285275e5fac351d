"""The papers' networks: sizes as published, trained as they need it, and what records say of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench import Grid, load_results, run
from bench import record as records_of
from bench.archs.residual import projection
from bench.component import build, parse_one
from bench.data import ImageDataset, Places
from bench.defense import Defense
from bench.errors import UsageError
from bench.network import Arch, Network, freeze
from bench.recipe import Recipe
from bench.recipes.paper import Paper
from bench.recipes.quick import Quick
from bench.registry import ARCHS, DATASETS
from bench.reports.summary import summarise
from bench.reports.tables import main_table
from bench.seeding import stream
from bench.testing import small_splits
from bench.train import Training, accuracy
from tests.invented import record

CPU = torch.device("cpu")
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
TRANSFORMERS = ("vit-s", "deit", "cait-s")
NARROW = {
    "alexnet": 0.125,
    "cait-s": 0.125,
    "deit": 0.25,
    "efficientnetv2-s": None,
    "mobilenetv2": 0.25,
    "rn34": 0.0625,
    "rn50": 0.0625,
    "senet18:stem=7x7": 0.0625,
    "vit-s": 0.3,
    "wrn34-10": 0.05,
}
"""The papers' networks at widths that cost next to nothing."""
ADAMW = {"optimizer": "adamw", "lr": 5e-4, "weight_decay": 3e-2}
SHORT = Recipe(epochs=3, batch_size=20, warmup_epochs=0.5, milestones=(2,), crop_padding=2)


def arch(text: str, width: float | None = None) -> Arch:
    given = {} if width is None else {"width": width}
    return build(ARCHS, parse_one(text, ARCHS), given=given)


def network(text: str, size: int = 32, width: float | None = None, classes: int = 10) -> Network:
    generator = torch.Generator().manual_seed(0)
    return arch(text, width).network(classes, (size, size), MEAN, STD, generator)


def narrow(text: str, size: int = 32) -> Network:
    return network(text, size, NARROW[text])


def images(count: int = 2, size: int = 32) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def parameters(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


class Size(NamedTuple):
    """What a network measures at an image size."""

    image: int
    parameters: int
    classes: int
    gmac: float
    features: int


class TestSizes:
    """Of convolutional networks on small images: tests/test_archs.py."""

    @pytest.mark.parametrize(
        ("name", "size"),
        [
            # Published for 1000 classes: 22.05, 5.72, 46.9 and 21.46 M.
            ("vit-s", Size(224, 22_050_664, 1000, 4.60, 384)),
            ("deit", Size(224, 5_717_416, 1000, 1.25, 192)),
            pytest.param("cait-s", Size(224, 46_916_200, 1000, 9.33, 384), marks=pytest.mark.slow),
            ("efficientnetv2-s", Size(224, 21_458_488, 1000, 2.85, 1280)),
            # In patches of 4x4 instead of 16x16, and 64 instead of 196 of them.
            ("vit-s", Size(32, 22_050_664 - 990 * 385 - 327_168, 10, 1.42, 384)),
            ("deit", Size(32, 5_717_416 - 990 * 193 - 163_584, 10, 0.365, 192)),
            ("cait-s", Size(32, 46_916_200 - 990 * 385 - 327_168, 10, 2.85, 384)),
            ("efficientnetv2-s", Size(32, 20_190_298, 10, 0.236, 1280)),
            # SEP's networks for 100 classes of ImageNet.
            ("senet18:stem=7x7", Size(224, 11_467_804, 100, 6.90, 2048)),
            ("torchvision:resnet18", Size(224, 11_227_812, 100, 1.81, 512)),
            pytest.param(
                "torchvision:vgg16",
                Size(224, 134_670_244, 100, 15.47, 4096),
                marks=pytest.mark.slow,
            ),
            ("torchvision:densenet121", Size(224, 7_978_856, 1000, 2.83, 1024)),
            ("torchvision:googlenet", Size(224, 6_624_904, 1000, 1.50, 1024)),
            ("torchvision:alexnet", Size(224, 61_100_840, 1000, 0.714, 4096)),
        ],
    )
    def test_size(self, name: str, size: Size) -> None:
        ours = network(name, size.image, classes=size.classes).eval().requires_grad_(False)
        assert ours.head.in_features == size.features
        assert parameters(ours.body) + parameters(ours.head) == parameters(ours)
        assert size.parameters == sum(weight.numel() for weight in ours.parameters())
        # Which fused kernel of attention a processor gets, and whether it is counted, varies.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            logits = ours(images(1, size.image))
        assert logits.shape == (1, size.classes)
        assert counter.get_total_flops() / 2e9 == pytest.approx(size.gmac, rel=0.005)

    @pytest.mark.parametrize(
        ("name", "width", "features"),
        [
            ("vit-s", 0.5, 3 * 64),
            ("vit-s", 0.01, 64),
            ("deit", 2.0, 6 * 64),
            ("cait-s", 0.125, 48),
        ],
    )
    def test_width_is_a_number_of_heads(self, name: str, width: float, features: int) -> None:
        ours = network(name, width=width)
        assert ours.features(images()).shape == (2, features)
        with pytest.raises(UsageError, match="must be above 0"):
            arch(f"{name}:width=0")

    @pytest.mark.parametrize("name", TRANSFORMERS)
    def test_patches(self, name: str) -> None:
        ours = arch(name, NARROW[name])
        assert ours.notes((32, 32)) == {"stem": "patches of 4x4"}
        assert ours.notes((48, 32)) == {"stem": "patches of 4x4"}
        assert ours.notes((64, 64)) == ours.notes((224, 224)) == {}
        one = ours.network(10, (48, 32), MEAN, STD, torch.Generator())
        assert one(torch.zeros(2, 3, 48, 32)).shape == (2, 10)

    def test_efficientnet_keeps_the_stem_of_large_images_only(self) -> None:
        ours = arch("efficientnetv2-s", 0.25)
        assert ours.width == 1
        assert ours.notes((32, 32)) == {"stem": "stride 1"}
        assert ours.notes((224, 224)) == {}

    def test_a_stem_of_7x7_averages_quarters(self) -> None:
        """At 224 pixels the map is 14x14, so that a quarter is the 7x7 of the released code."""
        ours = network("senet18:stem=7x7", 224, width=0.0625).eval()
        x = (images(1, 224) - ours.mean) / ours.std
        layers = list(ours.body.children())
        place = nn.Sequential(*layers[:-2])(x)
        assert place.shape == (1, 32, 14, 14)
        torch.testing.assert_close(F.avg_pool2d(place, 7).flatten(1), ours.body(x))

    def test_a_stem_of_3x3_is_not_mentioned(self) -> None:
        assert arch("senet18").identity() == arch("senet18:stem=3x3").identity()
        assert arch("senet18").settings() == {"width": 1.0}
        assert arch("senet18:stem=7x7").settings() == {"width": 1.0, "stem": "7x7"}


class TestComputing:
    @pytest.mark.parametrize("name", NARROW)
    def test_bfloat16_and_channels_last(self, name: str) -> None:
        ours = narrow(name).to(memory_format=torch.channels_last).train()
        ours.precision = "bf16"
        logits = ours(images(4).to(memory_format=torch.channels_last))
        assert logits.dtype == torch.float32
        F.cross_entropy(logits, torch.arange(4)).backward()
        for key, weight in ours.named_parameters():
            assert weight.grad is not None, key
            assert weight.grad.isfinite().all(), key

    @pytest.mark.parametrize("name", NARROW)
    def test_frozen_it_gives_the_same(self, name: str) -> None:
        ours = narrow(name)
        with torch.no_grad():
            ours.train()(images(8))  # running statistics that it would be wrong to forget
        frozen = freeze(ours.eval(), CPU, "fp32")
        torch.testing.assert_close(frozen(images()), ours(images()), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("name", TRANSFORMERS)
    def test_frozen_to_bfloat16(self, name: str) -> None:
        ours = narrow(name).eval()
        exact, rounded = ours.features(images()), freeze(ours, CPU, "bf16").features(images())
        assert (rounded - exact).norm() < 0.1 * exact.norm()

    @pytest.mark.parametrize("name", TRANSFORMERS)
    def test_large_images(self, name: str) -> None:
        assert narrow(name, 224).eval()(images(1, 224)).shape == (1, 10)

    @pytest.mark.parametrize("name", ["vit-s", "efficientnetv2-s"])
    def test_weights_depend_on_the_generator_alone(self, name: str) -> None:
        torch.manual_seed(0)
        first = narrow(name)
        torch.manual_seed(1)
        torch.testing.assert_close(narrow(name).state_dict(), first.state_dict(), rtol=0, atol=0)


class TestAdapt:
    @pytest.mark.parametrize("recipe", [Paper(), Quick()], ids=["paper", "quick"])
    def test_of_ours(self, recipe: Recipe) -> None:
        others = ["rn18", "vgg16", "senet18", "dn121", "googlenet", "rn34", "rn50", "wrn34-10"]
        for name in [*others, "mobilenetv2", "efficientnetv2-s"]:
            assert arch(name).adapt(recipe) == recipe
        for name in TRANSFORMERS:
            adapted = arch(name).adapt(recipe)
            assert type(adapted) is type(recipe)
            assert adapted.departures(recipe) == ADAMW
        assert arch("alexnet").adapt(recipe).departures(recipe) == {"lr": 0.01}

    def test_what_already_suits_stays(self) -> None:
        low = Quick(lr=1e-3)
        assert arch("alexnet").adapt(low) == low
        own = Quick(optimizer="adamw", lr=1e-3)
        assert arch("vit-s").adapt(own) == own
        once = arch("deit").adapt(Quick())
        assert arch("deit").adapt(once) == once

    @pytest.mark.parametrize(
        ("name", "departures"),
        [
            ("torchvision:vgg16", {"lr": 0.01}),
            ("torchvision:vgg11_bn", {}),
            ("torchvision:alexnet", {"lr": 0.01}),
            ("torchvision:squeezenet1_1", {"lr": 0.01}),
            ("torchvision:googlenet", {}),
            ("torchvision:resnet18", {}),
            ("torchvision:densenet121", {}),
            ("torchvision:mobilenet_v3_small", {}),
            ("torchvision:vit_b_16", ADAMW),
            ("torchvision:swin_t", ADAMW),
            ("torchvision:convnext_tiny", ADAMW),
            ("timm:test_vit", ADAMW),
            ("timm:cait_xxs24_224", ADAMW),
            ("timm:mixer_s16_224", ADAMW),
            ("timm:test_resnet", {}),
            ("timm:gcresnet33ts", {}),  # layer norms in the gates of a network of batch norms
            ("timm:resnet50_gn", {}),  # group norms
        ],
    )
    def test_of_libraries(self, name: str, departures: dict) -> None:
        """By the norms, which are counted without weights and without the random state."""
        before = torch.random.get_rng_state()
        assert arch(name).adapt(Paper()).departures(Paper()) == departures
        assert torch.random.get_rng_state().equal(before)

    def test_recipes_are_who_they_were(self) -> None:
        assert "optimizer" not in Paper().settings()
        assert Paper(optimizer="adamw").settings()["optimizer"] == "adamw"
        assert Paper(optimizer="adamw").identity() != Paper().identity()


def training(text: str, recipe: Recipe, dataset: ImageDataset | None = None) -> Training:
    dataset = dataset or small_splits().train
    ours = arch(text, NARROW[text])
    return Training(ours, dataset, recipe, Defense(), 0, "victim", CPU, "fp32")


def equal_states(one: Training, other: Training) -> bool:
    first, second = one.network.state_dict(), other.network.state_dict()
    return all(value.equal(second[key]) for key, value in first.items())


class TestTraining:
    def test_steps_against_adamw(self) -> None:
        """Decay apart from the moments, the rate of each step, no momentum of SGD."""
        recipe = dataclasses.replace(SHORT, batch_size=24, flip=False, crop_padding=0)
        ours = training("deit", recipe)
        twin = network("deit", 16, NARROW["deit"], classes=4)
        twin.load_state_dict(ours.network.state_dict())
        twin.mean, twin.std = ours.network.mean, ours.network.std
        ours.run_epoch()
        weights = [weight.detach().clone() for weight in twin.parameters()]
        first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
        # Adam divides a gradient by its own size, so one that is nought but for rounding (of the
        # biases of keys, which softmax does not see) moves its weight a whole step somewhere.
        told = [torch.ones_like(w, dtype=torch.bool) for w in weights]
        train = small_splits().train
        order = torch.randperm(48, generator=stream(0, "victim", "batches", 0))
        rates = dataclasses.replace(recipe, lr=5e-4)
        twin.train()
        for k, rows in enumerate(order.split(24)):
            rate = rates.learning_rate(k / 2, 1 / 2)
            loss = F.cross_entropy(twin(train.images[rows].float() / 255), train.labels[rows])
            gradients = torch.autograd.grad(loss, list(twin.parameters()))
            for w, m, v, g, clear, live in zip(
                weights, first, second, gradients, told, twin.parameters(), strict=True
            ):
                clear.logical_and_(g.abs() > 1e-6)
                m.mul_(0.9).add_(g, alpha=0.1)
                v.mul_(0.999).add_(g * g, alpha=0.001)
                mean, square = m / (1 - 0.9 ** (k + 1)), v / (1 - 0.999 ** (k + 1))
                w.mul_(1 - rate * 0.03).sub_(rate * mean / (square.sqrt() + 1e-8))
                live.data.copy_(w)
        for found, expected, clear in zip(ours.network.parameters(), weights, told, strict=True):
            distances = (found.detach() - expected).abs()
            assert distances[clear].max() < 0.005 * rates.lr
            assert distances.max() < 2 * 2 * rates.lr
        assert sum(int(clear.sum()) for clear in told) > 0.95 * sum(w.numel() for w in weights)
        fresh = training("deit", recipe).network.parameters()
        moved = max((w - p).abs().max() for w, p in zip(weights, fresh, strict=True))
        assert moved > rates.lr

    @pytest.mark.parametrize("name", ["vit-s", "alexnet"])
    def test_resumed_it_is_bit_identical(self, name: str, tmp_path: Path) -> None:
        """With AdamW's moments, and with dropout, which draws from the global generator."""
        torch.manual_seed(0)
        whole = training(name, SHORT)
        rows = [whole.run_epoch() for _ in range(3)]
        stopped = training(name, SHORT)
        torch.manual_seed(1)
        before = torch.random.get_rng_state()
        assert stopped.run_epoch() == rows[0]
        assert torch.random.get_rng_state().equal(before)
        torch.save(stopped.state(), tmp_path / "state.pt")
        again = training(name, SHORT)
        again.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
        assert [again.run_epoch(), again.run_epoch()] == rows[1:]
        assert equal_states(again, whole)
        assert not equal_states(again, stopped)

    def test_dropout_differs_from_epoch_to_epoch(self) -> None:
        recipe = dataclasses.replace(SHORT, lr=1e-30, flip=False, crop_padding=0, batch_size=48)
        ours = training("alexnet", recipe)
        losses = {ours.run_epoch()["train_loss"] for _ in range(3)}
        assert len(losses) == 3

    @pytest.mark.slow
    @pytest.mark.parametrize("name", [n for n in NARROW if n != "efficientnetv2-s"])
    def test_learns(self, name: str) -> None:
        source = build(DATASETS, parse_one("synthetic:size=32,train=200", DATASETS))
        train, test = source.load(Places(Path(), Path(), download=False))
        # CaiT's layers begin as next to nothing, and grow.
        epochs = 24 if name == "cait-s" else 12
        recipe = Quick(epochs=epochs, batch_size=20, crop_padding=2, flip=False)
        ours = training(name, recipe, train)
        row = [ours.run_epoch() for _ in range(epochs)][-1]
        assert row["train_acc"] > 0.9
        assert accuracy(ours.confusion(test)) > 0.85


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    grid = Grid(
        methods="clean",
        archs="deit:width=0.25,rn18:width=0.0625",
        dataset="synthetic:train=40,test=20",
        recipe="quick:epochs=2,batch_size=20,train_images=none,curve_images=none",
        device="cpu",
    )
    run(
        grid,
        store=folder / "store",
        results_dir=folder / "results",
        data_dir=folder,
        workers=1,
        download=False,
        quiet=True,
    )
    return folder / "results"


class TestRecords:
    def test_say_what_differs(self, folder: Path) -> None:
        frame = load_results(folder).set_index("arch")
        assert frame.training["deit"] == ADAMW
        assert frame.training["rn18"] == {}
        assert frame.recipe_settings["deit"] == frame.recipe_settings["rn18"]

    def test_older_ones_say_nothing(self, folder: Path, tmp_path: Path) -> None:
        old = record()
        del old["training"]
        (tmp_path / "cells").mkdir()
        records_of.write(tmp_path, "new", record(key="0" * 64))
        file = next((tmp_path / "cells").iterdir())
        older = json.loads(file.read_text())
        del older["training"], older["digest"]
        file.write_text(json.dumps(older))
        assert '"training"' not in file.read_text()
        assert records_of.read(file)["training"] == {}
        with pytest.raises(UsageError, match="lacks 'training'"):
            records_of.check(old, "a new one")

    def test_notes_of_tables(self) -> None:
        said = {"rn18": {}, "vit-s": ADAMW}
        methods = ("clean", "sep")
        rows = [record(m, arch=name, training=said[name]) for m in methods for name in said]
        (summary,) = summarise(rows)
        notes = [note for note in main_table(summary).notes if "trained with" in note]
        assert notes == ["vit-s ×1/4: trained with lr 0.0005, optimizer adamw, weight_decay 0.03"]


@pytest.mark.parametrize("inputs", [4, 15, 16])
def test_projections_are_strided_convolutions(inputs: int) -> None:
    layers = projection(inputs, 6, 2)
    assert len(layers) == (1 if inputs >= 16 else 2)
    plain = nn.Conv2d(inputs, 6, 1, 2, bias=False).double()
    ours = nn.Sequential(*layers).double()
    ours[-1].weight.data.copy_(plain.weight.data)
    images = torch.randn(2, inputs, 7, 8, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(ours(images), plain(images))


def test_narrow_networks_survive_large_images() -> None:
    # PyTorch's own strided 1x1 convolution crashes here; see `projection`.
    network = build(ARCHS, parse_one("rn18:width=0.0625", ARCHS)).network(
        4, (128, 128), (0.5,) * 3, (0.2,) * 3, torch.Generator()
    )
    network.to(memory_format=torch.channels_last)
    network(torch.rand(2, 3, 128, 128, generator=torch.Generator())).sum().backward()

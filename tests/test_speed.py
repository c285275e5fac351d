"""The benchmark of speed: contenders do the same work, and its own arithmetic is right."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bench import bfloat16
from bench.bfloat16 import RoundedLayers
from bench.data import ImageDataset
from bench.network import freeze
from bench.recipe import Recipe
from bench.speed import __main__ as command
from bench.speed import ceiling, sections
from bench.speed.baselines import EagerCrafting, Pictures, PlainTraining, ReleasedCrafting
from bench.speed.processes import SideBySide
from bench.speed.sections import Bench
from bench.speed.timing import Rates, take_turns
from bench.testing import small_splits

CPU = torch.device("cpu")
SMALL = small_splits().train
TEN = ImageDataset(
    SMALL.images, torch.arange(len(SMALL)) % 10, tuple("abcdefghij"), "ten", SMALL.mean, SMALL.std
)
BENCH = Bench(TEN, CPU, "fp32", rounds=2)


def network(seed: int = 0):
    return BENCH.network(0.05, seed)


def input_gradients(net, images, labels):
    leaf = (images.float() / 255).requires_grad_()
    loss = F.cross_entropy(net.eval()(leaf), (labels + 5) % 10, reduction="sum")
    return torch.autograd.grad(loss, leaf)[0]


def test_the_released_way_takes_the_same_gradients(tmp_path: Path, monkeypatch) -> None:
    nets = [network(0), network(1)]
    expected = [input_gradients(net, TEN.images, TEN.labels) for net in nets]
    taken = []
    gradient = torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *args: taken.append(gradient(*args)[0]) or (taken[-1],)
    )
    monkeypatch.setattr(ReleasedCrafting, "CHUNK", 8)
    released = ReleasedCrafting(nets, TEN, CPU, tmp_path, batch=4, workers=0)
    decoded = []
    monkeypatch.setattr(Pictures, "__getitem__", counting(Pictures.__getitem__, decoded))
    for turn in range(4):
        assert released() == 4
        rows = decoded[-4 * (5 + turn % 2) :][:4]
        # The scripts average over a chunk; the sign is what counts.
        whole = expected[turn // 2][rows]
        assert (taken[-1] * 4).allclose(whole, atol=1e-5)
    assert len(decoded) == 4 * (5 + 6 + 5 + 6)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0.pt", "1.pt"]


def counting(method, rows):
    def counted(self, row):
        rows.append(row)
        return method(self, row)

    return counted


def test_the_competent_loop_takes_sep_steps() -> None:
    nets = [network(0)]
    gradient = input_gradients(nets[0], TEN.images[:8], TEN.labels[:8])
    eager = EagerCrafting(nets, TEN.images[:8], TEN.labels[:8], CPU)
    assert eager() == 8 == len(eager._x) * 1
    clean = TEN.images[:8].float() / 255
    expected = (clean - gradient.sign() / 255).clamp(0, 1)
    assert (eager._x - expected).abs().gt(1e-6).float().mean() < 0.01
    for _ in range(20):
        eager()
    assert (eager._x - clean).abs().max() <= 8 / 255 + 1e-6


def test_ours_and_frozen_networks_take_them_too() -> None:
    net = network(0)
    frozen = freeze(net, CPU, "fp32")
    expected = input_gradients(net, TEN.images, TEN.labels)
    found = input_gradients(frozen, TEN.images, TEN.labels)
    assert found.allclose(expected, atol=1e-6)
    assert sections.our_crafting(BENCH, 0.05)() == 3 * len(TEN)


def test_the_plain_loop_learns_and_sees_every_image_once() -> None:
    recipe = Recipe(epochs=2, batch_size=10, warmup_epochs=0, lr=0.1, schedule="cosine")
    plain = PlainTraining(network(), TEN, recipe, CPU, workers=0)
    before = plain.network.head.weight.clone()
    assert list(plain.epoch()) == [10, 10, 10, 10, 8] == list(plain.epoch())
    assert not plain.network.head.weight.equal(before)
    rates = [group["lr"] for group in plain._optimizer.param_groups]
    assert rates == [pytest.approx(recipe.learning_rate(1.8, 0.2))]
    picture, label = Pictures(TEN, lambda picture: picture)[3]
    assert label == int(TEN.labels[3])
    assert torch.from_numpy(np.array(picture)).permute(2, 0, 1).equal(TEN.images[3])


def test_ceiling_counts_every_convolution_by_its_shape(monkeypatch) -> None:
    asked = []

    def seconds(convolution, shape, dtype, device):
        asked.append((tuple(shape), tuple(convolution.weight.shape)))
        return 1.0, 2.0, 3.0

    monkeypatch.setattr(ceiling, "_seconds", seconds)
    monkeypatch.setattr(ceiling, "products", lambda dtype, device: 7.0)
    top = ceiling.measure(network(), torch.rand(60, 3, 16, 16), torch.float32, CPU)
    convolutions = 1 + 16 + 3
    assert top == ceiling.Ceiling(60 / (3.0 * convolutions), 60 / (6.0 * convolutions - 2.0), 7.0)
    assert len(asked) == len(set(asked)) < convolutions
    assert all(shape[0] == 60 for shape, _ in asked)


def test_ceiling_is_measured() -> None:
    """In float32, since processors without bf16 instructions take minutes for its large product."""
    top = ceiling.measure(network(), torch.rand(8, 3, 16, 16), torch.float32, CPU)
    assert top.gradients > top.training > 0
    assert top.products > 0


def test_turns_and_ratios() -> None:
    order: list[str] = []

    def worker(name: str, seconds: float):
        def work() -> float:
            order.append(name)
            time.sleep(seconds)
            return 10.0

        return work

    rates = take_turns({"a": worker("a", 0.01), "b": worker("b", 0.03)}, CPU, 2, least=0)
    assert order == ["a", "b", "a", "b", "a", "b"], "a warm-up, then rounds"
    assert rates["a"] > rates["b"]
    fixed = Rates({"a": [10.0, 20.0, 60.0], "b": [10.0, 10.0, 10.0]})
    assert fixed["a"] == 20
    assert fixed.ratio("a", "b") == 2
    assert fixed.spread("a", "b") == (1, 6)


def ten() -> object:
    return lambda: 10.0


def test_side_by_side_adds_up() -> None:
    with SideBySide(2, ten) as both:  # type: ignore[arg-type]
        assert both() == 20
        assert both() == 20
        processes = both._processes
    assert not any(process.is_alive() for process in processes)


def test_fast_precision_agrees_with_itself() -> None:
    found = sections.agreement(BENCH, steps=2, images=8)
    assert found["share_by_step"] == found["share_by_step_weighted"] == [1.0, 1.0]
    assert found["equal_at_the_end"] == 1
    assert found["levels_apart_at_the_end"] == 0


def test_bf16_agrees_with_fp32_for_the_most_part() -> None:
    found = sections.agreement(dataclasses.replace(BENCH, fast="bf16"), steps=2, images=8)
    assert all(0.7 < share < 1 for share in found["share_by_step"])
    assert min(found["share_by_step_weighted"]) > 0.95


@pytest.mark.slow
def test_the_command(tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "speed.json"
    monkeypatch.setattr(command, "load", lambda data: (small_ten(), "small"))
    arguments = ["--device", "cpu", "--rounds", "1", "--out", str(out), "--threads", "1"]
    only = ["--only", "training-quarter,adversarial,agreement"]
    monkeypatch.setattr(sys, "argv", ["speed", *arguments, *only])
    assert command.main() == 0
    found = json.loads(out.read_text())
    assert found["training-quarter"]["images_per_second"]["ours"] > 0
    text = capsys.readouterr().out
    assert "against a plain loop" in text
    assert "8.5 x at most" in text
    monkeypatch.setattr(sys, "argv", ["speed", *arguments, "--only", "nothing"])
    assert command.main() == 2
    assert "no section 'nothing'; there are: crafting" in capsys.readouterr().err


def small_ten():
    return small_splits()._replace(train=TEN)


def test_costs_of_defenses_are_times_of_plain_training() -> None:
    """A defense that does everything twice costs about two; one that prepares is timed there."""
    found = sections.defenses(BENCH, 0.05, 16, 48, ["none", "at-linf:steps=3", "jpeg"])["defenses"]
    assert list(found) == ["none", "at-linf:steps=3", "jpeg"]
    assert found["at-linf:steps=3"]["declared"] == 3
    assert found["at-linf:steps=3"]["cost"][0] > found["none"]["cost"][0]
    assert found["jpeg"]["prepare_seconds"] > found["none"]["prepare_seconds"]
    text = [what for what, *_ in command.rows({"defenses": {"defenses": found}})]
    assert text[0] == "training under none (declared 1.0 x)"
    assert "training under at-linf:steps=3 (declared 3.0 x)" in text


@pytest.mark.slow
def test_rounding_is_compared_with_pytorchs_own_kernels(monkeypatch) -> None:
    once, machine, used = dataclasses.replace(BENCH, rounds=1), [], set()
    monkeypatch.setattr(bfloat16, "computes_bf16", lambda device: bool(machine))

    def layers() -> RoundedLayers:
        used.add(bfloat16.computes_bf16(CPU))
        return RoundedLayers()

    monkeypatch.setattr(bfloat16, "RoundedLayers", layers)
    found = sections.rounding(once, 0.05, 16, 48)
    assert used == {False}, "PyTorch's kernels were timed with rounded operands"
    assert found["images_per_second"].keys() == {"ours", "pytorch", "fp32"}
    text = [what for what, *_ in command.rows({"rounding": found})]
    assert text[0] == "bf16 by float32 kernels on rounded operands: images a second"
    assert text[1].startswith("  against PyTorch's kernels (")
    assert text[2].startswith("  against fp32 (")

    machine.append("has the instructions")
    text = [what for what, *_ in command.rows({"rounding": sections.rounding(once, 0.05, 16, 48)})]
    assert text[0] == "bf16 by PyTorch's kernels: images a second"
    assert used == {False}

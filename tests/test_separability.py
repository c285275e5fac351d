"""The shortcut score on perturbations whose class is known to be told, or not to be."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench import Grid, run
from bench.running.work import Clock
from bench.seeding import stream
from bench.separability import SIDE, dual, primal, separability
from bench.store import Artifact
from tests.invented import record

CPU = torch.device("cpu")


def images(count: int, side: int = 8, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Mid-grey images, so that nothing is clipped, and labels in turns."""
    draws = stream(1, "images", count, side)
    clean = torch.randint(100, 156, (count, 3, side, side), generator=draws).to(torch.uint8)
    return clean, torch.arange(count) % classes


def score(clean: Tensor, delta: Tensor, labels: Tensor, mask: Tensor | None = None) -> float | None:
    released = (clean.short() + delta.short()).to(torch.uint8)
    mask = torch.ones(len(labels), dtype=torch.bool) if mask is None else mask
    return separability(clean, released, labels, mask, CPU)


def noise(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randint(-8, 9, shape, generator=stream(seed, "noise"))


def mixed(count: int, **more: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise with a faint pattern of the class: told for some, and not for others."""
    clean, labels = images(count, **more)
    patterns = noise((int(labels.max()) + 1, *clean.shape[1:]), 1)
    return clean, noise(clean.shape) + patterns[labels] // 5, labels


@pytest.mark.parametrize("count", [120, 1200])  # fewer and more than 192 components twice over
def test_class_wise_perturbations_are_told_always(count: int) -> None:
    clean, labels = images(count)
    patterns = noise((4, 3, 8, 8))
    assert score(clean, patterns[labels], labels) == 1.0


@pytest.mark.parametrize("count", [120, 1200])
def test_one_pixel_of_the_class_is_told_always(count: int) -> None:
    clean, labels = images(count)
    delta = torch.zeros_like(clean, dtype=torch.short)
    delta[torch.arange(count), :, labels, labels] = 1
    assert score(clean, delta, labels) == 1.0


@pytest.mark.parametrize("count", [400, 4000])
def test_noise_is_told_by_chance(count: int) -> None:
    clean, labels = images(count)
    found = score(clean, noise(clean.shape), labels)
    error = (0.25 * 0.75 / (count / 2)) ** 0.5
    assert found == pytest.approx(0.25, abs=3 * error)


def test_noise_is_told_by_chance_where_classes_are_of_different_sizes() -> None:
    clean, _ = images(2000)
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 1, 2]).repeat(200)
    # Who always says 0 is right for 70 % of the images, and for one class of three.
    assert score(clean, noise(clean.shape), labels) == pytest.approx(1 / 3, abs=0.08)


def test_a_rare_class_counts_as_much_as_a_frequent_one() -> None:
    clean, _ = images(2000)
    labels = (torch.arange(2000) % 10 == 0).long()
    found = score(clean, noise(clean.shape) + noise((2, 3, 8, 8), 1)[labels] // 5, labels)
    assert found is not None
    assert found > 0.9  # 0.82 for a rule to which every image counts alike


def test_the_judged_half_is_not_the_fitted_one() -> None:
    # 60 perturbations with 192 components each are separated by a rule that has seen them.
    clean, labels = images(60)
    delta = noise(clean.shape)
    x, y = delta.flatten(1).double(), torch.nn.functional.one_hot(labels).double()
    assert ((x @ dual([(x, y)], 1e-9)).argmax(1) == labels).all()
    found = score(clean, delta, labels)
    assert found is not None
    assert found < 0.6


def test_unchanged_images_have_no_score() -> None:
    clean, labels = images(40)
    assert score(clean, torch.zeros_like(clean), labels) is None


def test_fewer_than_two_classes_have_no_score() -> None:
    clean, labels = images(40)
    delta = noise(clean.shape)
    nobody = torch.zeros(40, dtype=torch.bool)
    assert score(clean, delta, labels, nobody) is None
    assert score(clean, delta, labels, labels == 2) is None
    lonely = (labels == 2) | (torch.arange(40) == 1)  # one image of class 1: no half to judge
    assert score(clean, delta, labels, lonely) is None


def test_only_protected_rows_count() -> None:
    clean, labels = images(400)
    patterns = noise((4, 3, 8, 8))
    mask = torch.arange(400) % 8 < 4
    delta = torch.where(mask[:, None, None, None], patterns[labels], noise(clean.shape))
    assert score(clean, delta, labels, mask) == 1.0
    some = mask & (labels != 1)  # three classes are left
    assert score(clean, delta, labels, some) == 1.0


@pytest.mark.parametrize("count", [300, 1500])
def test_a_score_between_is_kept_by_scale_and_order(count: int) -> None:
    clean, delta, labels = mixed(count)
    found = score(clean, delta, labels)
    assert found is not None
    assert 0.3 < found < 0.95
    assert score(clean, -3 * delta, labels) == found
    order = torch.randperm(count, generator=stream(2, "order"))
    assert score(clean[order], delta[order], labels[order]) == found
    renamed = torch.tensor([2, 0, 3, 1])[labels]
    assert score(clean, delta, renamed) == found


def test_one_perturbation_for_all_tells_nothing() -> None:
    clean, labels = images(120)
    assert score(clean, torch.full_like(clean, 4), labels) == 0.25  # class 0 is told, always


def test_a_component_that_never_varies_tells_nothing_and_harms_nothing() -> None:
    clean, delta, labels = mixed(300)
    delta[:, :, 0] = 5
    moved = delta.clone()
    moved[:, :, 0] = -7
    assert score(clean, moved, labels) == score(clean, delta, labels)


def test_both_ways_give_one_rule() -> None:
    draws = stream(3, "rule")
    x = torch.randn(50, 20, dtype=torch.float64, generator=draws)
    y = torch.randn(50, 4, dtype=torch.float64, generator=draws)
    pieces = [(x[:17], y[:17]), (x[17:], y[17:])]
    expected = torch.linalg.solve(x.T @ x + 3 * torch.eye(20, dtype=torch.float64), x.T @ y)
    for rule in (primal(pieces, 3.0), dual(pieces, 3.0)):
        torch.testing.assert_close(rule, expected, rtol=1e-9, atol=1e-12)


def test_both_ways_give_one_score(monkeypatch) -> None:
    clean, delta, labels = mixed(300)
    found = score(clean, delta, labels)
    monkeypatch.setattr("bench.separability.dual", primal)
    assert score(clean, delta, labels) == found


def test_sizes_of_pieces_do_not_matter(monkeypatch) -> None:
    clean, delta, labels = mixed(1500)
    found = score(clean, delta, labels)
    monkeypatch.setattr("bench.separability.portion", lambda images: 4 * 37)
    assert score(clean, delta, labels) == found


def test_large_images_keep_what_is_fine_grained() -> None:
    side = 4 * SIDE
    clean, labels = images(80, side, classes=2)
    # A checkerboard and its negative: every place of the grid has mean 0.
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    board = 1 - 2 * ((rows + columns) % 2)
    delta = (board * (1 - 2 * labels)[:, None, None])[:, None].expand_as(clean)
    assert score(clean, delta, labels) == 1.0
    found = score(clean, noise(clean.shape), labels)
    assert found == pytest.approx(0.5, abs=0.25)  # 40 images


# In records.

SMALL = Grid(
    methods="sham,noise:per=class",
    archs="rn18:width=0.0625",
    dataset="synthetic:train=96,test=40,size=16",
    recipe="quick:epochs=1,batch_size=32,train_images=none,curve_images=20",
    precision="fp32",
    seeds=(0, 1),
)


def records(folder: Path) -> list[dict]:
    return [json.loads(file.read_text()) for file in (folder / "results/cells").glob("*.json")]


def go(folder: Path, **changes: object) -> None:
    grid = SMALL if not changes else Grid(**(vars(SMALL) | changes))
    places = {"results_dir": folder / "results", "store": folder / "store"}
    assert not run(grid, **places, workers=1, threads=1, quiet=True).failed


def test_a_score_is_recorded_and_taken_once_for_several_victims(tmp_path, monkeypatch) -> None:
    taken = []

    def counted(*inputs):
        taken.append(inputs)
        return separability(*inputs)

    monkeypatch.setattr("bench.running.work.separability", counted)
    go(tmp_path)
    found = {(one["method"], one["seed"]): one["separability"] for one in records(tmp_path)}
    assert found == {
        **{(method, seed): None for method in ("clean", "sham") for seed in (0, 1)},
        **{("noise", seed): 1.0 for seed in (0, 1)},
    }
    assert len(taken) == 3  # crafted sets
    scores = sorted((tmp_path / "store" / "scores").glob("*/manifest.json"))
    assert [file.parent.name.partition("-")[0] for file in scores] == ["clean", "noise", "sham"]
    go(tmp_path, seeds=(0, 1, 2))
    assert len(taken) == 3
    scores[1].write_text("{}")  # damaged: taken again
    go(tmp_path, seeds=(0, 1, 2, 3))
    assert len(taken) == 4
    assert {one["separability"] for one in records(tmp_path) if one["method"] == "noise"} == {1.0}


def test_another_version_takes_the_score_again_and_keeps_every_key(tmp_path, monkeypatch) -> None:
    go(tmp_path)
    keys = {(one["key"], one["crafted_key"]) for one in records(tmp_path)}
    monkeypatch.setattr("bench.running.work.VERSION", 99)
    monkeypatch.setattr("bench.running.work.separability", lambda *inputs: 0.125)
    for file in (tmp_path / "results" / "cells").glob("*.json"):
        file.unlink()
    go(tmp_path)
    again = records(tmp_path)
    assert {(one["key"], one["crafted_key"]) for one in again} == keys
    assert {one["separability"] for one in again} == {0.125}


def test_the_time_it_takes_is_not_the_victims(tmp_path, monkeypatch) -> None:
    begun, taken = [], []

    class Watched(Clock):
        def __init__(self, artifact: Artifact) -> None:
            begun.append(artifact)
            super().__init__(artifact)

    monkeypatch.setattr("bench.running.work.Clock", Watched)
    monkeypatch.setattr("bench.running.work.separability", lambda *inputs: taken.append(len(begun)))
    go(tmp_path, methods="clean", seeds=(0,))
    assert taken == [1]  # crafting has begun, training has not
    assert len(begun) == 2


def test_older_records_are_whole_without_it() -> None:
    from bench.record import check

    old = record("sep")
    assert "separability" not in old
    check(old, "invented")
    check(old | {"separability": None}, "invented")
    check(old | {"separability": 0.5}, "invented")


def test_older_records_have_the_score_of_a_later_one_of_the_same_set(tmp_path) -> None:
    from bench.record import read_all, write

    written = [
        record("sep"),
        record("sep", seed=1, separability=0.75),
        record("sep", seed=2, separability=None),
        record("ops"),
        record("clean", separability=None),
    ]
    for one in written:
        write(tmp_path, "cell", one)
    read = {one["key"]: one.get("separability", "none told") for one in read_all(tmp_path)}
    assert [read[one["key"]] for one in written] == [0.75, 0.75, None, "none told", None]

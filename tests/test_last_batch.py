"""One image more than whole batches hold: it joins the last of them, and only there keys change."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import Grid
from bench.component import build, parse_one
from bench.data import ImageDataset, Places
from bench.datasets.synthetic import Synthetic
from bench.grid import Cell, Expansion, TrainingData
from bench.method import Surrogate
from bench.recipe import Recipe
from bench.registry import ARCHS, DEFENSES
from bench.stack import build_defense
from bench.testing import checkpoints, crafting_job, small_method
from bench.train import Training
from tests.test_runner import go

SIZE, COUNT = 16, 33
"""Images of 16 pixels are a single one before VGG-16's last batch norm."""
SPLITS = Synthetic(train=COUNT, test=8).load(Places(Path(), Path(), download=False))
RECIPE = Recipe(epochs=1, batch_size=SIZE, warmup_epochs=0, lr=0.01)
VGG = "vgg16:width=0.0625"
GRID = Grid(
    methods="ule:batch=16,sep:checkpoints=1",
    archs=VGG,
    dataset=f"synthetic:train={COUNT},test=8",
    recipe=f"quick:epochs=1,batch_size={SIZE},train_images=none",
    precision="fp32",
    device="cpu",
)


def train(dataset: ImageDataset, defense: str = "none") -> list[int]:
    """Train a VGG-16 for an epoch; returns the sizes of its steps."""
    training = Training(
        build(ARCHS, parse_one(VGG, ARCHS)),
        dataset,
        RECIPE,
        build_defense(parse_one(defense, DEFENSES)),
        0,
        "victim",
        torch.device("cpu"),
        "fp32",
    )
    steps: list[int] = []
    row = training.run_epoch(steps.append)
    assert 0 <= row["train_acc"] <= 1
    return steps


@pytest.mark.parametrize(
    "defense",
    [
        *("none", "dpsgd-batch", "dpsgd-sample:groups=1", "mixup", "cutmix", "at-linf:steps=1"),
        *("ueraser-max:repeats=2", "ueraser-lite", "deconvolution-at:steps=1", "coin+mixup"),
        *("orthogonal-regularization", "randomized-smoothing"),
    ],
)
def test_victims_learn_from_it(defense: str) -> None:
    assert train(SPLITS.train, defense) == [16, 17]


def test_a_single_image_more_than_one_batch() -> None:
    assert train(SPLITS.train.subset(torch.arange(17))) == [17]


def test_surrogates_learn_from_it() -> None:
    (network,) = checkpoints(Surrogate(VGG, (1,)), SPLITS.train, RECIPE, 0)
    assert network(torch.rand(2, 3, 16, 16)).isfinite().all()


@pytest.mark.parametrize(
    "text",
    [
        f"ule:surrogate=({VGG}),batch=16,train_steps=3,noise_steps=1,max_rounds=1",
        f"ule:surrogate=({VGG}),batch=16,train_steps=3,noise_steps=1,max_rounds=1,per=class",
        f"rule:surrogate=({VGG}),batch=16,iterations=3,steps=1,inner_steps=1,draws=1",
        "deepconfuse:trials=1,epochs=1,batch=16,generator_width=0.0625,classifier_width=0.0625",
    ],
)
def test_methods_learn_from_it(text: str) -> None:
    made = small_method(text)
    delta = made.craft(crafting_job(made, SPLITS.train))
    assert delta.isfinite().all()
    assert delta.ne(0).any()


def cells(grid: Grid = GRID, **changes: Any) -> dict[str, Cell]:
    """The cells of a grid by their method."""
    expansion = Expansion(replace(grid, **changes))
    splits = expansion.source.load(Places(Path(), Path(), download=False))
    data = TrainingData.cut(splits, expansion.recipe, expansion.source)
    return {cell.crafting.method.name: cell for cell in expansion.cells(data)}


def joined(cell: Cell) -> tuple[bool, bool, bool]:
    """Whether the identities of a victim, its crafted set and a surrogate name the last batch."""
    crafted = cell.identity["crafted"]
    said = [cell.identity, crafted, *(crafted["surrogates"] or [{}])]
    return tuple("last_batch" in one for one in said)  # type: ignore[return-value]


def test_identities_name_it_where_it_occurs_and_nowhere_else() -> None:
    found = cells()
    assert joined(found["clean"]) == (True, False, False)
    assert joined(found["ule"]) == (True, True, False)
    assert joined(found["sep"]) == (True, False, True)
    for other in ("train=32", "train=34", "train=15"):
        there = cells(dataset=f"synthetic:{other},test=8").values()
        assert not any(any(joined(cell)) for cell in there)
    dropped = cells(recipe=f"{GRID.recipe},drop_last=yes")
    assert [joined(dropped[name])[0] for name in ("clean", "sep")] == [False, False]
    assert joined(dropped["ule"]) == (False, True, False)


def test_held_out_and_unprotected_images_are_not_counted() -> None:
    held = cells(holdout=1)
    assert joined(held["sep"]) == (False, False, True)
    assert joined(held["ule"]) == (False, True, False)
    parts = cells(poison_ratio=(0.5,), clean_part=True)  # 16 are protected, and 17 are not
    assert joined(parts["clean-part"]) == (True, False, False)
    assert joined(parts["ule"]) == (True, False, False)
    assert joined(cells(poison_ratio=(0.52,))["ule"]) == (True, True, False)  # 17 are
    by_class = cells(methods="ule:batch=16,per=class")
    assert joined(by_class["ule"]) == (True, False, False)


def test_a_run_with_it(tmp_path: Path) -> None:
    grid = replace(GRID, methods="sep:checkpoints=1,steps=1,surrogate=(vgg16:width=0.0625)")
    outcome = go(tmp_path, grid)
    assert not outcome.failed
    assert not outcome.unfinished

"""How much is protected, and what that does: ratios, classes, the clean part, the shortcut."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from bench import load_results
from bench.errors import UsageError
from bench.grid import Expansion, Grid, TrainingData
from bench.imprint import imprinted, protected_classes
from bench.release import draw_mask
from bench.reports.report import write_report
from bench.running.plan import make_plan
from bench.running.session import Session
from bench.testing import craft, crafting_job, small_method, small_splits
from tests.test_runner import SMALL, go

LABELS = torch.arange(100) % 5
SPLITS = small_splits()


def test_only_the_given_classes_are_protected() -> None:
    mask = draw_mask(LABELS, 0.5, 0, [1, 3])
    assert int(mask.sum()) == 20
    assert set(LABELS[mask].tolist()) == {1, 3}
    assert draw_mask(LABELS, 1.0, 0, [1, 3]).equal((LABELS == 1) | (LABELS == 3))
    assert not draw_mask(LABELS, 1.0, 0, []).any()


def test_a_larger_ratio_protects_a_superset_within_classes() -> None:
    less, more = (draw_mask(LABELS, ratio, 7, [0, 2, 4]) for ratio in (0.3, 0.6))
    assert (less & ~more).sum() == 0


def masks(grid: Grid) -> list[torch.Tensor]:
    """Of every crafted set of a grid, each once."""
    expansion = Expansion(grid)
    data = TrainingData.cut(SPLITS, expansion.recipe, expansion.source)
    return [cell.crafting.mask(data.train.labels) for cell in expansion.cells(data)]


def test_each_victim_has_a_set_of_its_own_seed() -> None:
    """And the keys are those of single crafting seeds."""
    expansions = [
        Expansion(replace(SMALL, methods="noise", seeds=seeds, craft_seed=chosen))
        for seeds, chosen in (((0, 3), "each"), ((0,), 0), ((3,), 3))
    ]
    data = TrainingData.cut(SPLITS, expansions[0].recipe, expansions[0].source)
    each, *single = [one.cells(data) for one in expansions]
    noise = [cell for cell in each if cell.crafting.method.name == "noise"]
    assert [(cell.crafting.seed, cell.seed) for cell in noise] == [(0, 0), (3, 3)]
    assert {cell.key for cell in each} == {cell.key for cells in single for cell in cells}
    with pytest.raises(UsageError, match="'all' must be a number, or each"):
        replace(SMALL, craft_seed="all")


def control_of(table: pd.DataFrame) -> pd.Series:
    """The record of the control."""
    return table[table["method"] == "clean"].iloc[0]


@pytest.mark.parametrize(
    ("typed", "classes"), [("1", {1}), ("2-3", {2, 3}), ("NAME,0", {0, 3}), ("all", {0, 1, 2, 3})]
)
def test_classes_are_typed_as_numbers_or_names(typed: str, classes: set[int]) -> None:
    typed = typed.replace("NAME", SPLITS.train.classes[3])
    clean, noise = masks(replace(SMALL, methods="noise", protect_classes=typed))
    assert clean.all()
    assert set(SPLITS.train.labels[noise].tolist()) == classes


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("0-2", {"0", "1", "2"}),
        ("10", {"10"}),
        ("9-11,tench, Tinca tinca", {"9", "10", "11", "tench, Tinca tinca"}),
        ("it's,'tench, Tinca tinca'", {"it's", "tench, Tinca tinca"}),
        ("cafe\u0301", {"caf\u00e9"}),
    ],
)
def test_a_class_is_meant_by_its_name_whatever_it_is_called(typed: str, names: set[str]) -> None:
    named = (*sorted(map(str, range(12))), "it's", "tench, Tinca tinca", "caf\u00e9")
    train = replace(SPLITS.train, classes=named)
    found = Expansion(replace(SMALL, protect_classes=typed)).protected_classes(train)
    assert found is not None
    assert {named[index] for index in found} == names


def test_a_number_that_is_no_class_is_refused_where_classes_are_numbers() -> None:
    train = replace(SPLITS.train, classes=("1", "2", "5", "7"))
    with pytest.raises(UsageError, match="those called by numbers are 1, 2, 5, 7"):
        Expansion(replace(SMALL, protect_classes="0")).protected_classes(train)


def test_a_ratio_that_protects_nothing_gets_a_note(tmp_path: Path) -> None:
    grid = replace(SMALL, methods="noise", poison_ratio=(0.0001, 0.0))
    folders = (tmp_path / "results", tmp_path / "store", tmp_path)
    opened = Session(grid, *folders, download=False).open()
    plan = make_plan(opened.cells, opened.data, opened.store, folders[0])
    assert [note.startswith("noise at ratio 0.0001 protects no image") for note in plan.notes] == [
        True
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"protect_classes": "9"}, "'9' does not lie within 0 to 3"),
        ({"protect_classes": "3-1"}, "'3-1' does not lie within"),
        ({"protect_classes": "dog"}, "no class 'dog'; .*numbers from 0 to 3"),
        ({"clean_part": True}, "clean-part leaves 0 images at poison ratio 1"),
        (
            {"clean_part": True, "poison_ratio": (0.9,), "holdout": 9},
            "leaves 5 images at poison ratio 0.9",
        ),
        ({"methods": "noise+clean-part"}, "clean-part is a control and cannot be joined"),
        ({"methods": "noise+noise"}, "joins a method with itself"),
        ({"methods": "noise+noise:epsilon=2/255"}, "joins a method with itself"),
        ({"poison_ratio": ()}, "leaves nothing to run"),
        ({"protect_classes": ","}, "no class given"),
        ({"poison_ratio": (0.5, 1.5)}, "poison ratio 1.5 must lie between 0 and 1"),
        ({"epsilon": (0.1, 2)}, "epsilon 2 must lie between 0 and 1"),
    ],
)
def test_impossible_extents_are_refused(change: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        masks(replace(SMALL, **({"methods": "noise"} | change)))


def test_the_clean_part_is_left_out_where_there_is_none() -> None:
    grid = replace(SMALL, methods="noise", poison_ratio=(0.5, 1), clean_part=True)
    expansion = Expansion(grid)
    data = TrainingData.cut(SPLITS, expansion.recipe, expansion.source)
    cells = expansion.cells(data)
    titles = [cell.title.partition(" ×")[0] for cell in cells]
    assert titles == ["clean", "clean-part at ratio 0.5", "noise at ratio 0.5", "noise"]


def test_titles_tell_radii_apart() -> None:
    grid = replace(SMALL, methods="noise,noise+cuda", epsilon=(4 / 255, 8 / 255))
    expansion = Expansion(grid)
    data = TrainingData.cut(SPLITS, expansion.recipe, expansion.source)
    titles = [cell.title for cell in expansion.cells(data)]
    assert len(set(titles)) == len(titles) == 5


def test_plans_count_the_images_that_are_protected(tmp_path: Path) -> None:
    def flop(**more: Any) -> float:
        grid = replace(SMALL, methods="sep:checkpoints=2", **more)
        opened = Session(grid, tmp_path / "results", tmp_path / "store").open()
        plan = make_plan(opened.cells, opened.data, opened.store, tmp_path / "results")
        return sum(task.flop for task in plan.tasks.values() if task.kind == "craft")

    assert flop(protect_classes="0") == pytest.approx(flop() / 4, rel=0.05)
    assert flop(poison_ratio=(0.5,)) == pytest.approx(flop() / 2, rel=0.05)


def test_the_clean_part_is_trained_on_alone(tmp_path: Path) -> None:
    grid = replace(
        SMALL, methods="noise:per=class", poison_ratio=(0.25, 0.5), clean_part=True, epsilon=0.3
    )
    assert not go(tmp_path, grid).failed
    table = load_results(tmp_path / "results")
    assert len(table) == 5  # the control serves both ratios
    parts = table[table["method"] == "clean-part"].set_index("poison_ratio")
    assert len(parts) == 2
    text = " ".join(write_report(tmp_path / "results").text.split())
    for ratio in ("0.25", "0.5"):
        assert f"poison ratio {ratio}" in text
    assert parts.loc[0.5, "train_images"] == control_of(table)["train_images"]
    # Half of the images are as many steps: its curve must differ from the control's.
    control = control_of(table)
    assert parts.loc[0.5, "curve"] != control["curve"]
    assert parts.loc[0.5, "shortcut"] is None


def test_protected_classes_are_recorded_and_have_a_table_of_their_own(tmp_path: Path) -> None:
    grid = replace(SMALL, methods="noise", archs="rn18:width=0.0625", protect_classes="1-2")
    assert not go(tmp_path, grid).failed
    table = load_results(tmp_path / "results").set_index("method")
    assert table.loc["noise", "protected_classes"] == [1, 2]
    assert table.loc["noise", "audit"]["changed_outside_mask"] == 0
    assert table.loc["noise", "audit"]["protected_images"] == 48
    assert table.loc["noise", "shortcut"].keys() == {"own_acc", "next_acc", "next_followed"}
    names = ", ".join(SPLITS.train.classes[1:3])
    assert f"protected classes {names}" in " ".join(write_report(tmp_path / "results").text.split())


def test_a_lonely_class_has_no_other_shortcut_to_follow(tmp_path: Path) -> None:
    assert not go(tmp_path, replace(SMALL, methods="noise", protect_classes="1")).failed
    found = load_results(tmp_path / "results").set_index("method").loc["noise", "shortcut"]
    assert found["own_acc"] is not None
    assert found["next_acc"] is found["next_followed"] is None
    assert "noise" in write_report(tmp_path / "results").text


# --- test images that carry the shortcut ------------------------------------------------------


def test_lent_perturbations_are_those_of_the_class() -> None:
    method = small_method("noise:per=class,epsilon=0.1")
    job, released = crafting_job(method, SPLITS.train), craft(method, SPLITS.train).images
    grey = SPLITS.test.with_images(torch.full_like(SPLITS.test.images, 128))
    for shift in (0, 1):
        marked = imprinted(method, job, released, grey, (grey.labels + shift) % 4)
        assert marked.labels.equal(grey.labels)
        # Twins: a training image of the class whose clean pixels did not meet the edges.
        delta = released.int() - SPLITS.train.images
        for image, label in zip(marked.images, (grey.labels + shift) % 4, strict=True):
            members = delta[SPLITS.train.labels == label]
            assert any((128 + member).equal(image.int()) for member in members)


def test_only_protected_images_lend() -> None:
    method = small_method("noise")
    job, released = crafting_job(method, SPLITS.train), craft(method, SPLITS.train).images
    job.mask[SPLITS.train.labels == 2] = False
    job.mask[10:] = False
    assert set(protected_classes(job).tolist()) == set(SPLITS.train.labels[job.mask].tolist())
    assert 2 not in protected_classes(job)
    grey = SPLITS.test.with_images(torch.full_like(SPLITS.test.images, 128))
    lent = imprinted(method, job, released, grey, torch.zeros_like(grey.labels)).images
    members = (job.mask & (SPLITS.train.labels == 0)).nonzero().flatten()
    assert len(lent.flatten(1).unique(dim=0)) <= len(members)


def test_who_learns_the_shortcut_follows_it(tmp_path: Path) -> None:
    # Class-wise noise of this size is all that a network looks at.
    recipe = "quick:epochs=12,batch_size=16,crop_padding=0,flip=no,train_images=none"
    grid = replace(SMALL, methods="noise:per=class", epsilon=0.5, recipe=recipe)
    assert not go(tmp_path, grid).failed
    found = load_results(tmp_path / "results").set_index("method").loc["noise", "shortcut"]
    assert found["own_acc"] > 0.9
    assert found["next_followed"] > 0.9
    assert found["next_acc"] < 0.1


# --- settings that depend on the data ---------------------------------------------------------


def test_targets_go_half_round_among_the_classes_that_a_paper_protects() -> None:
    # SEP's ImageNet subset: (rank + 5) mod 10 among ten of a hundred classes.
    ten = (0, 17, 33, 45, 47, 51, 57, 66, 83, 99)
    train = replace(SPLITS.train, classes=tuple(map(str, range(100))))
    fitted = small_method("sep:target_shift=none").fitted(train, ten)
    table = fitted.targets(100).tolist()
    assert [table[label] for label in ten] == [51, 57, 66, 83, 99, 0, 17, 33, 45, 47]
    assert fitted.settings()["target_labels"] == table
    shifted = small_method("sep:target_shift=1")
    assert shifted.fitted(train, ten) == shifted
    whole = small_method("sep:target_shift=none").fitted(train, ())
    assert whole.targets(10).tolist()[:2] == [5, 6]


def test_a_length_that_was_left_open_follows_the_image_size() -> None:
    large = SPLITS.train.with_images(torch.zeros(len(SPLITS.train), 3, 64, 64, dtype=torch.uint8))
    lsp = small_method("lsp")
    assert lsp.fitted(large, ()).epsilon == pytest.approx(2 * lsp.epsilon)
    given = small_method("lsp:epsilon=0.5")
    assert given.fitted(large, ()) == given

"""Several methods in one: how they are typed, how they are laid over each other, what they keep."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bench import load_results
from bench.budget import Budget, BudgetSum, add_up
from bench.component import Spec, build, parse, parse_one, variants
from bench.composition import Composition, changed_pixels
from bench.crafting import Crafting
from bench.errors import UsageError
from bench.grid import Expansion
from bench.imprint import imprinted
from bench.method import Method
from bench.registry import ARCHS, DEFENSES, METHODS
from bench.testing import check_method, craft, crafting_job, small_method, small_splits
from tests.test_budget import deltas
from tests.test_runner import SMALL, go

TRAIN = small_splits().train

# --- how they are typed -----------------------------------------------------------------------


def test_a_plus_joins_and_settings_stay_with_their_part() -> None:
    (one, two) = parse("sep:steps=8,checkpoints=3+cuda:kernel=5,blur=.1,noise", METHODS)
    assert one == Spec(
        "sep+cuda",
        joined=(
            Spec("sep", None, {"steps": "8", "checkpoints": "3"}),
            Spec("cuda", None, {"kernel": "5", "blur": ".1"}),
        ),
    )
    assert two == Spec("noise")


def test_patterns_may_be_joined() -> None:
    names = [spec.name for spec in parse("sep-fa-* + noise", METHODS)]
    assert names == ["sep-fa-l2+noise", "sep-fa-vr+noise", "sep-fa-vr-l2+noise"]


def test_other_pluses_stay() -> None:
    (file,) = parse("file:a+b.npz", METHODS)
    assert file.argument == "a+b.npz"
    (noise,) = parse("noise:epsilon=1e+0", METHODS)
    assert noise.settings == {"epsilon": "1e+0"}
    (folder,) = parse("file:some/x+y", METHODS)
    assert folder.argument == "some/x+y"
    (joined,) = parse("file:some/x+noise", METHODS)
    assert joined.name == "file+noise"
    (bracketed,) = parse("file:(some+noise)", METHODS)
    assert bracketed.argument == "some+noise"


def test_wrong_parts_are_named() -> None:
    with pytest.raises(UsageError, match="unknown method 'nois'; did you mean noise"):
        parse("sep+nois", METHODS)
    with pytest.raises(UsageError, match="no setting 'epsilom'; did you mean epsilon"):
        Expansion(replace(SMALL, methods="sep+noise:epsilom=1"))
    with pytest.raises(UsageError, match=r"unknown architecture 'rn18.vgg16'"):
        parse("rn18+vgg16", ARCHS)


def test_one_place_takes_one_component() -> None:
    spec = parse_one("sep+noise", METHODS)
    with pytest.raises(UsageError, match="several methods where one may stand"):
        build(METHODS, spec)


def test_a_list_stands_for_several() -> None:
    (spec,) = parse("sep:checkpoints=[3,5],steps=[1,2]", METHODS)
    found = [dict(one.settings) for one in variants(spec, METHODS)]
    assert found == [{"checkpoints": c, "steps": s} for c in ("3", "5") for s in ("1", "2")]
    (spec,) = parse("sep:target_labels=[1,0]", METHODS)
    assert len(list(variants(spec, METHODS))) == 1
    (spec,) = parse("sep:target_labels=[[1,0],[0,0]]+noise:law=[uniform,gaussian]", METHODS)
    assert len(list(variants(spec, METHODS))) == 4
    (spec,) = parse("sep:surrogate=[(dn121:growth=12,width=.5),vgg16]", METHODS)
    found = [one.settings["surrogate"] for one in variants(spec, METHODS)]
    assert found == ["dn121:growth=12,width=.5", "vgg16"]
    (spec,) = parse("mixup:alpha=[.2,1]", DEFENSES)
    assert [one.settings["alpha"] for one in variants(spec, DEFENSES)] == [".2", "1"]


def test_labels_can_be_typed_again() -> None:
    text = (
        "sep:steps=2,checkpoints=1+noise:law=gaussian,sep+cuda,sep:steps=[1,3]+noise,"
        "ensemble:ensemble=[(vgg16:width=0.25),rn18]"
    )
    first = Expansion(replace(SMALL, methods=text)).methods
    again = Expansion(replace(SMALL, methods=",".join(label for label, _ in first[1:]))).methods
    assert first == again
    assert [label for label, _ in first] == [
        "clean",
        "sep:steps=2,checkpoints=1+noise:law=gaussian",
        "sep+cuda",
        "sep:steps=1+noise",
        "sep:steps=3+noise",
        "ensemble:ensemble=[vgg16:width=0.25,rn18:width=0.125]",
    ]


def test_every_radius_is_a_row_of_its_own() -> None:
    methods = Expansion(replace(SMALL, methods="noise,cuda+noise", epsilon=(2 / 255, 0.1))).methods
    sizes = [str(method.budget) for _, method in methods]
    assert sizes == ["l∞ 0", "l∞ 2/255", "l∞ 0.1", "none", "none"]
    assert methods[3][1].settings()["noise.epsilon"] == 2 / 255
    with pytest.raises(UsageError, match="none of clean, cuda has an l∞ budget"):
        Expansion(replace(SMALL, methods="cuda", epsilon=(0.1,)))


# --- how they are laid over each other --------------------------------------------------------


@dataclass(frozen=True)
class Dot(Method):
    """Sets the pixel (2, 3) to white."""

    name = "dot"
    overwrites: ClassVar[bool] = True
    budget = Budget("l0", 1)

    def craft(self, job: Crafting) -> Tensor:
        delta = job.blank()
        delta[:, :, 2, 3] = 1 - job.dataset.images[:, :, 2, 3].float() / 255
        return delta


@pytest.mark.parametrize(
    "text", ["noise+noise:law=gaussian", "cuda+noise", "sep:steps=2+noise", "ar-linf+ar"]
)
def test_compositions_keep_the_laws(text: str) -> None:
    check_method(text)


@pytest.mark.parametrize("text", ["ar-linf+ar", "noise+noise:law=gaussian"])
def test_parts_share_no_draws(text: str) -> None:
    """Two patterns, not one that is larger: their lengths add up as those of a right angle do."""
    one, two = (
        (craft(part, TRAIN).images[2:].double() - TRAIN.images[2:]).flatten(1)
        for part in small_method(text).parts
    )
    cosines = (one * two).sum(1) / one.norm(dim=1) / two.norm(dim=1)
    # One pair alone may lean, as noise of one process does; 46 do not lean the same way.
    assert abs(float(cosines.mean())) < 0.1


def test_the_law_notices_parts_that_share_draws() -> None:
    same = Composition((small_method("noise"), small_method("noise:epsilon=2/255")))
    with pytest.raises(AssertionError, match=r"streams of their own, and share \('noise',\)"):
        check_method(same)


def test_perturbations_add_up_in_whole_levels() -> None:
    both = small_method("noise:epsilon=20/255+noise:law=gaussian,epsilon=100/255")
    assert isinstance(both, Composition)
    one, two = (craft(part, TRAIN).images.int() - TRAIN.images for part in both.parts)
    expected = (TRAIN.images + one + two).clamp(0, 255)
    assert craft(both, TRAIN).images.equal(expected.to(torch.uint8))
    assert both.settings()["noise(2).law"] == "gaussian"


def test_pixels_that_are_set_win_over_what_lies_below() -> None:
    noise = small_method("noise:epsilon=20/255")
    last, first = Composition((noise, Dot())), Composition((Dot(), noise))
    noisy = craft(noise, TRAIN).images
    elsewhere = torch.ones(TRAIN.image_size, dtype=torch.bool)
    elsewhere[2, 3] = False
    images = craft(last, TRAIN).images
    # Also where the clean pixel was white already: image 1 is all white.
    assert images[:, :, 2, 3].unique().tolist() == [255]
    assert images[..., elsewhere].equal(noisy[..., elsewhere])
    assert craft(first, TRAIN).images.equal(images), "wherever it stands"


def test_changed_pixels_are_found_by_class() -> None:
    released = craft(Dot(), TRAIN).images
    whole = torch.ones(len(TRAIN), dtype=torch.bool)
    found = changed_pixels(TRAIN, released, whole)
    assert found.sum((1, 2)).tolist() == [1] * len(TRAIN.classes)
    assert found[:, 2, 3].all()
    assert not changed_pixels(TRAIN, released, TRAIN.labels == 0)[1:].any()


@pytest.mark.parametrize("text", ["noise+ops", "ops+noise", "ops+cuda"])
def test_test_images_carry_every_part(text: str) -> None:
    both = small_method(text)
    assert isinstance(both, Composition)
    test, job = small_splits().test, crafting_job(both, TRAIN)
    carried = (test.labels + 1) % 4
    marked = imprinted(both, job, craft(both, TRAIN).images, test, carried).images
    (place,) = (k for k, part in enumerate(both.parts) if part.overwrites)
    ops, other = both.parts[place], both.parts[1 - place]
    alone = imprinted(ops, job, job.part(place), test, carried).images
    pixels = changed_pixels(TRAIN, job.part(place), job.mask)[carried]
    for image, dotted, where in zip(marked, alone, pixels, strict=True):
        assert image[:, where].equal(dotted[:, where])
    below = imprinted(other, job, job.part(1 - place), test, carried).images
    assert marked.permute(0, 2, 3, 1)[~pixels].equal(below.permute(0, 2, 3, 1)[~pixels])


def test_parts_are_crafted_once_and_shared(tmp_path: Path) -> None:
    grid = replace(SMALL, methods="sep:checkpoints=2,sep:checkpoints=2+noise", seeds=(0,))
    outcome = go(tmp_path, grid)
    assert not outcome.failed
    sets = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "store/crafted").iterdir())
    assert sets == ["clean", "noise", "sep", "sep-noise"]
    table = load_results(tmp_path / "results").set_index("method")
    assert table.loc["sep+noise", "budget"] == {"norm": "linf", "epsilon": 16 / 255}
    spent = table["crafting_gradient_images"]
    assert spent["sep+noise"] == spent["sep"] > 0


# --- what they keep ---------------------------------------------------------------------------


def test_radii_of_one_norm_add_up() -> None:
    assert add_up([Budget("linf", 0.1), Budget("linf", 0.2)]) == Budget("linf", 0.1 + 0.2)
    assert Budget("linf", 0.0) + Budget("l0", 2) == Budget("l0", 2)
    assert Budget("linf", 0.1) + Budget("none") + Budget("l2", 1.0) == Budget("none")
    both = Budget("l0", 1) + Budget("linf", 8 / 255)
    assert str(both) == "l∞ 8/255 + l0 1"
    assert isinstance(both, BudgetSum)
    assert both.facts() == {"norm": "linf+l0", "epsilon": [8 / 255, 1]}
    assert Budget.read(both.facts()) == both
    assert Budget.read(Budget("none").facts()) == Budget("none")


radii = st.tuples(st.integers(1, 20), st.floats(0.05, 2), st.integers(1, 5))


@given(radii, deltas(), deltas(), deltas())
def test_a_sum_holds_what_its_parts_hold(
    sizes: tuple[int, float, int], one: Tensor, two: Tensor, three: Tensor
) -> None:
    parts = [Budget("linf", sizes[0] / 255), Budget("l2", sizes[1]), Budget("l0", sizes[2])]
    whole = torch.zeros(one.shape, dtype=torch.int16)
    for part, delta in zip(parts, (one, two, three), strict=True):
        levels = (delta * 255).round().clamp(-255, 255).to(torch.int16)
        whole += part.project_levels(levels)
    assert add_up(parts).contains(whole).all()


@given(radii, deltas(), st.sampled_from([(0, 1), (0, 2), (1, 2), (0, 1, 2)]))
def test_projection_on_a_sum_is_exact(
    sizes: tuple[int, float, int], delta: Tensor, chosen: tuple[int, ...]
) -> None:
    parts = [Budget("linf", sizes[0] / 255), Budget("l2", sizes[1]), Budget("l0", sizes[2])]
    budget = add_up(parts[index] for index in chosen)
    levels = (delta * 255).round().clamp(-255, 255).to(torch.int16)
    kept = budget.project_levels(levels)
    assert budget.contains(kept).all()
    assert (kept.abs() <= levels.abs()).all()
    inside = budget.contains(levels)
    assert kept[inside].equal(levels[inside])


def test_a_sum_does_not_hold_more() -> None:
    budget = Budget("linf", 8 / 255) + Budget("l0", 2)
    levels = torch.full((1, 3, 4, 6), 8, dtype=torch.int16)
    levels[0, 0, 0, :2] = 200
    assert budget.contains(levels).all()
    levels[0, 1, 3, 3] = 9  # a third pixel
    assert not budget.contains(levels).any()
    pair = Budget("linf", 8 / 255) + Budget("l2", 5 / 255)
    levels = torch.full((2, 3, 4, 6), 8, dtype=torch.int16)
    levels[:, 0, 0, 0], levels[:, 0, 0, 1] = 11, -12  # 3 and 4 beyond the l∞ ball: 5 in l2
    levels[1, 0, 0, 2] = 9
    assert pair.contains(levels).tolist() == [True, False]


def test_rounding_costs_an_l2_perturbation_next_to_nothing() -> None:
    draws = torch.Generator().manual_seed(0)
    delta = Budget("l2", 1.0).project(torch.randn(20, 3, 32, 32, generator=draws))
    levels = (delta * 255).round().to(torch.int16)
    kept = Budget("l2", 1.0).project_levels(levels)
    size = kept.double().flatten(1).norm(dim=1) / 255
    assert (size <= 1).all()
    assert (size > 0.998).all()
    # Single levels of single components: truncating all of them took a sixth of the length.
    assert int((kept - levels).abs().max()) <= 1
    assert float(kept.ne(levels).float().mean()) < 0.02

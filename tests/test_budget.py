"""Budgets and release: nothing leaves the ball, nothing else moves, the audit tells the truth."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bench.budget import Budget, Norm, fraction
from bench.data import ImageDataset
from bench.release import OverstepError, draw_mask, release

SHAPE = (5, 3, 4, 6)
ROUND_OFF = 1e-6
"""Of float32 sums over the components of one image, relative to the radius."""

NORMS: tuple[Norm, ...] = ("linf", "l2", "l0", "none")


@st.composite
def budgets(draw: st.DrawFn, norms: tuple[Norm, ...] = NORMS) -> Budget:
    """Any radius between nothing and more than everything."""
    norm = draw(st.sampled_from(norms))
    if norm == "none":
        return Budget("none")
    if norm == "l0":
        return Budget("l0", draw(st.integers(0, 30)))
    on_the_grid = st.integers(0, 300).map(lambda levels: levels / 255)
    return Budget(norm, draw(st.one_of(on_the_grid, st.floats(0, 3))))


@st.composite
def deltas(draw: st.DrawFn) -> Tensor:
    """(5, 3, 4, 6) float32 of any size, now and then with many zeros."""
    values = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    delta = values.normal(size=SHAPE) * draw(st.sampled_from([0.003, 0.03, 0.3, 3.0]))
    delta *= values.random(SHAPE) < draw(st.sampled_from([0.05, 0.5, 1.0]))
    return torch.from_numpy(delta).float()


@st.composite
def levels(draw: st.DrawFn) -> Tensor:
    """(5, 3, 4, 6) int16 differences of grey levels."""
    return (draw(deltas()) * 255).round().clamp(-255, 255).to(torch.int16)


# --- the ball ---------------------------------------------------------------------------------


@given(deltas())
def test_sizes_are_numpys(delta: Tensor) -> None:
    flat = delta.numpy().reshape(len(delta), -1)
    pixels = delta.numpy().reshape(len(delta), 3, -1)
    expected = {
        "linf": np.abs(flat).max(1),
        "l2": np.linalg.norm(flat.astype(np.float64), axis=1),
        "l0": (pixels != 0).any(1).sum(1),
        "none": np.abs(flat).max(1),
    }
    for norm in NORMS:
        np.testing.assert_allclose(Budget(norm).size(delta).numpy(), expected[norm], rtol=ROUND_OFF)


@given(budgets(), deltas())
def test_projection_lands_inside(budget: Budget, delta: Tensor) -> None:
    size = budget.size(budget.project(delta))
    assert (size <= budget.epsilon * (1 + ROUND_OFF)).all()


@given(budgets(), deltas())
def test_projection_is_idempotent(budget: Budget, delta: Tensor) -> None:
    once = budget.project(delta)
    torch.testing.assert_close(budget.project(once), once, rtol=ROUND_OFF, atol=0)


@given(budgets(), deltas())
def test_inner_points_stay(budget: Budget, delta: Tensor) -> None:
    projected = budget.project(delta)
    inside = budget.size(delta) <= budget.epsilon
    assert projected[inside].equal(delta[inside])


@given(budgets(("linf", "l2")), deltas(), deltas())
def test_projection_is_the_nearest_point(budget: Budget, delta: Tensor, other: Tensor) -> None:
    # Of a convex set: seen from the projection, nothing inside lies in the direction of delta.
    nearest, inner = budget.project(delta).double(), budget.project(other).double()
    away = ((delta.double() - nearest) * (inner - nearest)).flatten(1).sum(1)
    scale = 1 + delta.double().flatten(1).norm(dim=1) * (1 + inner.flatten(1).norm(dim=1))
    assert (away <= 1e-5 * scale).all()


@given(deltas(), st.integers(0, 30))
def test_l0_keeps_the_pixels_that_change_most(delta: Tensor, count: int) -> None:
    kept = Budget("l0", count).project(delta)
    moved = kept.ne(0).any(1).flatten(1)
    weight = delta.abs().amax(1).flatten(1)
    for image in range(len(delta)):
        least = min(weight[image][moved[image]].tolist(), default=math.inf)
        lost = max(weight[image][~moved[image]].tolist(), default=0.0)
        assert lost <= least
        assert int(moved[image].sum()) == min(count, int(weight[image].ne(0).sum()))


# --- the lattice of grey levels ---------------------------------------------------------------


def exact_size(norm: Norm, change: Tensor) -> list[int]:
    """Of integer differences, without any rounding: largest, sum of squares, pixels."""
    flat = change.long().flatten(1)
    if norm == "l2":
        return flat.square().sum(1).tolist()
    if norm == "l0":
        return change.ne(0).any(1).flatten(1).sum(1).tolist()
    return flat.abs().amax(1).tolist()


@given(budgets(("linf", "l2", "l0")), levels())
def test_lattice_projection_is_exact(budget: Budget, change: Tensor) -> None:
    kept = budget.project_levels(change)
    assert kept.dtype == torch.int16
    assert budget.contains(kept).all()
    assert budget.project_levels(kept).equal(kept)
    assert (kept.abs() <= change.abs()).all()
    assert (kept.int() * change.int() >= 0).all()
    # Whole numbers against the radius: the grid points 8/255 count as inside despite float64.
    radius = {"linf": 255.0, "l2": 255.0, "l0": 1.0}[budget.norm] * budget.epsilon
    most = radius * radius if budget.norm == "l2" else radius
    sizes = exact_size(budget.norm, kept)
    assert all(size <= most + 1e-6 * max(most, 1) for size in sizes)
    inside = torch.tensor([size <= most for size in exact_size(budget.norm, change)])
    assert kept[inside].equal(change[inside])


@pytest.mark.parametrize("epsilon", [2 / 255, 8 / 255, 16 / 255])
def test_whole_levels_are_reached_and_not_passed(epsilon: float) -> None:
    change = torch.full(SHAPE, 20, dtype=torch.int16)
    assert Budget("linf", epsilon).project_levels(change).unique().tolist() == [
        round(epsilon * 255)
    ]
    below = Budget("linf", epsilon - 0.4 / 255)
    assert below.project_levels(change).unique().tolist() == [round(epsilon * 255) - 1]


def test_no_bound_is_no_bound() -> None:
    change = torch.randint(-255, 256, SHAPE, dtype=torch.int16)
    for norm in NORMS:
        assert Budget(norm).project_levels(change).equal(change)
        assert Budget(norm).project(change.float()).equal(change.float())


@pytest.mark.parametrize("epsilon", [-0.1, math.nan])
def test_radius_must_be_a_size(epsilon: float) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        Budget("l2", epsilon)


def test_radii_are_printed_as_papers_do() -> None:
    assert str(Budget("linf", 8 / 255)) == "l∞ 8/255"
    assert str(Budget("l2", 0.5)) == "l2 0.5"
    assert str(Budget("l0", 1)) == "l0 1"
    assert str(Budget("none")) == "none"
    assert [fraction(0.0), fraction(0.03)] == ["0", "0.03"]


# --- release ----------------------------------------------------------------------------------


def dataset(images: Tensor) -> ImageDataset:
    labels = torch.arange(len(images)) % 2
    return ImageDataset(images, labels, ("a", "b"), "made up", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


@st.composite
def releases(draw: st.DrawFn) -> tuple[ImageDataset, Tensor, Tensor, Budget]:
    """Images, a delta inside a budget, a mask and that budget."""
    values = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    extremes = draw(st.booleans())
    choices = [0, 1, 254, 255] if extremes else list(range(256))
    images = torch.from_numpy(values.choice(choices, SHAPE).astype(np.uint8))
    mask = torch.from_numpy(values.random(len(images)) < draw(st.sampled_from([0.0, 0.5, 1.0])))
    budget = draw(budgets())
    return dataset(images), budget.project(draw(deltas())), mask, budget


@given(releases())
def test_release_rounds_inside_the_budget_and_leaves_the_rest(
    case: tuple[ImageDataset, Tensor, Tensor, Budget],
) -> None:
    clean, delta, mask, budget = case
    before = clean.images.clone()
    released, audit = release(clean, delta, mask, budget)
    change = released.to(torch.int16) - clean.images.to(torch.int16)
    assert clean.images.equal(before)
    assert released.dtype == torch.uint8
    assert change[~mask].eq(0).all()
    assert budget.contains(change).all()
    # Where nothing was projected again, this is rounding to the nearest of 256 levels.
    exact = (clean.images.double() + delta.double() * 255).clamp(0, 255)
    gap = (released.double() - exact).abs()[mask].flatten(1)
    if budget.norm == "none":
        assert (gap <= 0.5 + 1e-3).all()

    sizes = {norm: Budget(norm).size(change[mask].float() / 255) for norm in ("linf", "l2", "l0")}
    assert audit["protected_images"] == int(mask.sum())
    assert audit["within_budget"]
    assert audit["changed_outside_mask"] == 0
    for norm, size in sizes.items():
        assert audit[f"max_{norm}"] == pytest.approx(max(size.tolist(), default=0.0))
        assert audit[f"mean_{norm}"] == pytest.approx(float(size.mean()) if len(size) else 0.0)
    assert audit["max_levels"] == max(change[mask].abs().flatten().tolist(), default=0)
    share = float(change[mask].ne(0).float().mean()) if mask.any() else 0.0
    assert audit["share_changed"] == pytest.approx(share)


def test_release_rounds_to_the_nearest_level() -> None:
    clean = dataset(torch.full((2, 3, 2, 2), 100, dtype=torch.uint8))
    mask = torch.ones(2, dtype=torch.bool)
    for wish, expected in [(1.4, 101), (1.6, 102), (-1.4, 99), (-1.6, 98), (300, 255)]:
        delta = torch.full(clean.images.shape, wish / 255)
        images, _ = release(clean, delta, mask, Budget("none"))
        assert images.unique().tolist() == [expected]
    # Off the grid, rounding up would leave the ball: 7.6 levels become 7.
    delta = torch.full(clean.images.shape, 7.6 / 255)
    images, _ = release(clean, delta, mask, Budget("linf", 7.6 / 255))
    assert images.unique().tolist() == [107]


def test_audit_counts_images_that_became_constant() -> None:
    images = torch.randint(0, 256, SHAPE, dtype=torch.uint8)
    images[0] = 7  # was constant before
    clean = dataset(images)
    delta = -images.float() / 255
    _, audit = release(clean, delta, torch.tensor([True, True, True, False, False]), Budget("none"))
    assert audit["constant_images"] == 2
    assert audit["nan"] == 0


GRID = Budget("linf", 8 / 255)


@pytest.mark.parametrize(
    ("budget", "value", "message"),
    [
        (
            GRID,
            8.1 / 255,
            "delta of 1 images oversteps the budget l∞ 8/255: row 3 has linf 0.03176",
        ),
        (GRID, math.nan, "delta of 1 images, first row 3, is not finite"),
        (GRID, math.inf, "is not finite"),
        (Budget("none"), math.nan, "is not finite"),
        (Budget("l2", 0.5), 0.6, "oversteps the budget l2 0.5: row 3 has linf 0.6, l2 0.6"),
        (Budget("l0", 0), 0.1, "oversteps the budget l0 0: row 3 has linf 0.1, l2 0.1, l0 1"),
    ],
)
def test_oversteps_are_never_released(budget: Budget, value: float, message: str) -> None:
    clean = dataset(torch.full(SHAPE, 100, dtype=torch.uint8))
    delta = torch.zeros(SHAPE)
    delta[3, 1, 2, 2] = value
    with pytest.raises(OverstepError, match=message):
        release(clean, delta, torch.ones(5, dtype=torch.bool), budget)
    # What lies outside the mask is nobody's business.
    images, _ = release(clean, delta, torch.arange(5) != 3, budget)
    assert images.equal(clean.images)


def test_delta_of_another_shape_is_refused() -> None:
    clean = dataset(torch.zeros(SHAPE, dtype=torch.uint8))
    with pytest.raises(OverstepError, match=r"delta has shape \(1, 3, 4, 6\)"):
        release(clean, torch.zeros(1, 3, 4, 6), torch.ones(5, dtype=torch.bool), GRID)


def test_round_off_of_float32_is_no_overstep() -> None:
    clean = dataset(torch.full(SHAPE, 100, dtype=torch.uint8))
    delta = torch.full(SHAPE, np.nextafter(np.float32(8 / 255), np.float32(1)).item())
    images, audit = release(clean, delta, torch.ones(5, dtype=torch.bool), GRID)
    assert images.unique().tolist() == [108]
    assert audit["max_levels"] == 8


# --- who is protected -------------------------------------------------------------------------


@given(st.integers(1, 300), st.floats(0, 1), st.floats(0, 1), st.integers(0, 5))
def test_a_larger_ratio_protects_a_superset(
    count: int, one: float, other: float, seed: int
) -> None:
    fewer, more = (
        draw_mask(torch.zeros(count, dtype=torch.int64), ratio, seed)
        for ratio in sorted((one, other))
    )
    assert not (fewer & ~more).any()
    assert int(more.sum()) == round(count * max(one, other))


def test_mask_depends_on_the_craft_seed() -> None:
    assert not draw_mask(torch.zeros(100, dtype=torch.int64), 0.5, 0).equal(
        draw_mask(torch.zeros(100, dtype=torch.int64), 0.5, 1)
    )
    assert draw_mask(torch.zeros(100, dtype=torch.int64), 1.0, 0).all()
    assert not draw_mask(torch.zeros(100, dtype=torch.int64), 0.0, 0).any()

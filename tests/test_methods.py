"""Methods against hand-computed values and against slow, literal forms of their algorithms.

What holds for every method alike is tested in `test_laws.py`.
"""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.augment import draw_shifts, shift
from bench.budget import Budget
from bench.component import build, parse_one
from bench.crafting import Crafting, Monitor
from bench.data import ImageDataset, Places
from bench.datasets.synthetic import Synthetic
from bench.errors import Stopped, UsageError
from bench.grid import Expansion, Grid, TrainingData
from bench.method import equidistant
from bench.network import Network, freeze
from bench.pgd import Iterate
from bench.recipe import SEP
from bench.registry import ARCHS, METHODS, RECIPES
from bench.release import draw_mask, release
from bench.seeding import stream
from bench.store import key_of
from bench.testing import DATASET, small_splits
from methods import advpoison, sep, ule
from methods.advpoison import AdversarialPoison
from methods.cuda import class_filters
from methods.sep import FeatureDistance, SelfEnsemble, VarianceReduced, class_centers
from methods.ule import Alternation

TINY = Synthetic(train=24, test=4, size=8).load(Places(Path(), Path(), download=False)).train
"""24 images of 8 x 8 pixels in 4 classes."""
ARCH = "rn18:width=0.0625"
CPU = torch.device("cpu")
LEVEL = 1 / 255
NEAR_ZERO = 0.005
"""Share of components whose sign may differ between two orders of summation: sums that cancel."""


@cache
def network(number: int) -> Network:
    """A frozen network with random weights; each number is another one."""
    made = build(ARCHS, parse_one(ARCH, ARCHS)).network(
        len(TINY.classes), TINY.image_size, TINY.mean, TINY.std, stream(number, "test")
    )
    return freeze(made, CPU, "fp32")


def linear(number: int, dataset: ImageDataset = TINY) -> Network:
    """Logits = weight (x - mean) / std: every gradient is known on paper."""
    with torch.random.fork_rng():
        torch.manual_seed(number)
        features = dataset.images[0].numel()
        net = Network(
            nn.Flatten(), features, len(dataset.classes), dataset.mean, dataset.std
        ).eval()
    nn.init.zeros_(net.head.bias)
    return net.requires_grad_(False)


def job(nets: Sequence[Network] = (), dataset: ImageDataset = TINY, **more: Any) -> Crafting:
    """A job on the whole dataset with these checkpoints."""
    return Crafting(
        **{
            "dataset": dataset,
            "rows": torch.arange(len(dataset)),
            "mask": torch.ones(len(dataset), dtype=torch.bool),
            "seed": 0,
            "device": CPU,
            "precision": "fp32",
            "trained": lambda number: nets,
            **more,
        }
    )


def method(text: str) -> Any:
    return build(METHODS, parse_one(text, METHODS))


def unit(images: Tensor = TINY.images) -> Tensor:
    return images.float() / 255


def inside(x: Tensor, clean: Tensor, epsilon: float) -> Tensor:
    """clip(clip(x, x0 - epsilon, x0 + epsilon), 0, 1)."""
    return torch.minimum(torch.maximum(x, clean - epsilon), clean + epsilon).clamp(0, 1)


def differing(one: Tensor, other: Tensor) -> float:
    """Share of components that lie more than a tenth of a grey level apart."""
    return float(((one - other).abs() > 0.1 * LEVEL).float().mean())


# --- noise ------------------------------------------------------------------------------------

GREY = ImageDataset(
    torch.full((64, 3, 16, 16), 128, dtype=torch.uint8),
    torch.arange(64) % 4,
    ("a", "b", "c", "d"),
    "grey",
    (0.5, 0.5, 0.5),
    (0.2, 0.2, 0.2),
)
COMPONENTS = GREY.images.numel()


def test_uniform_noise_has_its_range_mean_and_variance() -> None:
    epsilon = 8 / 255
    delta = method("noise").craft(job(dataset=GREY)).double()
    assert epsilon * 0.999 < float(delta.abs().max()) <= epsilon * (1 + 1e-6)
    deviation = epsilon / math.sqrt(3)
    # Five standard errors of a mean and of a variance over independent uniforms.
    assert abs(float(delta.mean())) < 5 * deviation / math.sqrt(COMPONENTS)
    assert float(delta.var()) == pytest.approx(deviation**2, rel=5 * math.sqrt(0.8 / COMPONENTS))
    assert len(delta.flatten(1).unique(dim=0)) == len(GREY)


def test_gaussian_noise_is_clipped_at_one_deviation() -> None:
    epsilon = 8 / 255
    delta = method("noise:law=gaussian").craft(job(dataset=GREY)).double()
    assert float(delta.abs().max()) <= epsilon * (1 + 1e-6)
    clipped = float((delta.abs() > epsilon * (1 - 1e-6)).double().mean())
    beyond = math.erfc(1 / math.sqrt(2))
    assert clipped == pytest.approx(beyond, abs=5 * math.sqrt(beyond / COMPONENTS))
    assert abs(float(delta.mean())) < 5 * epsilon / math.sqrt(COMPONENTS)


def test_class_wise_noise_is_one_draw_for_each_class() -> None:
    delta = method("noise:per=class").craft(job(dataset=GREY))
    assert delta.equal(delta[GREY.labels])  # the first four images are of classes 0 to 3
    assert len(delta.flatten(1).unique(dim=0)) == 4


# --- CUDA -------------------------------------------------------------------------------------


def test_cuda_filters_have_the_released_codes_values() -> None:
    filters = class_filters(4, 3, 0.3, seed=0)
    published = torch.tensor(
        [[0.1646, 0.2146, 1.0], [0.1635, 0.1271, 0.1938], [0.1313, 0.2675, 0.2891]]
    )
    torch.testing.assert_close(filters[0], published, atol=5e-5, rtol=0)
    assert filters.eq(1).nonzero().tolist() == [[0, 0, 2], [1, 0, 0], [2, 0, 1], [3, 0, 2]]
    others = filters[filters != 1]
    assert 0 <= float(others.min()) <= float(others.max()) <= 0.3


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_cuda_is_a_convolution_pixel_by_pixel(kernel: int) -> None:
    filters = class_filters(4, kernel, 0.3, seed=0).double().numpy()
    clean = TINY.images.double().numpy() / 255
    expected = np.empty_like(clean)
    reach = kernel // 2
    for image, label in enumerate(TINY.labels.tolist()):
        for channel, y, x in np.ndindex(clean.shape[1:]):
            total = 0.0
            for i, j in np.ndindex(kernel, kernel):
                row, column = y + i - reach, x + j - reach
                if 0 <= row < 8 and 0 <= column < 8:
                    total += filters[label, i, j] * clean[image, channel, row, column]
            expected[image, channel, y, x] = total
        expected[image] /= expected[image].max()
    delta = method(f"cuda:kernel={kernel}").craft(job())
    np.testing.assert_allclose(clean + delta.double().numpy(), expected, atol=1e-6)

    mask = torch.ones(len(TINY), dtype=torch.bool)
    truncated = method(f"cuda:kernel={kernel},quantize=truncate")
    released = release(TINY, truncated.craft(job()), mask, truncated.budget).images
    # Where the exact value is a whole level, float32 may fall on either side of it.
    exact = expected * 255
    certain = np.abs(exact - exact.round()) > 1e-3
    assert (released.numpy()[certain] == np.floor(exact[certain])).all()


# --- checkpoints ------------------------------------------------------------------------------


def test_checkpoints_are_equally_far_apart_and_end_with_the_last() -> None:
    assert equidistant(15, 120) == tuple(range(8, 121, 8))
    assert equidistant(30, 120) == tuple(range(4, 121, 4))
    assert equidistant(3, 120) == (40, 80, 120)
    assert equidistant(120, 120) == tuple(range(1, 121))
    assert equidistant(1, 7) == (7,)
    for epochs in range(1, 40):
        for count in range(1, epochs + 1):
            chosen = equidistant(count, epochs)
            assert len(set(chosen)) == count
            assert list(chosen) == sorted(chosen)
            assert chosen[0] >= 1
            assert chosen[-1] == epochs
    with pytest.raises(UsageError, match="more checkpoints than the surrogate's 10 epochs"):
        equidistant(11, 10)


# --- SEP --------------------------------------------------------------------------------------


def test_sep_stays_on_the_grid_of_grey_levels() -> None:
    delta = method("sep:checkpoints=2,steps=5,epsilon=3/255").craft(job([network(0), network(1)]))
    levels = (delta * 255).round()
    assert delta.equal(levels / 255)
    assert set(levels.unique().tolist()) == {-3, -2, -1, 0, 1, 2, 3}


def test_sep_does_not_care_for_the_order_of_checkpoints() -> None:
    nets = [network(number) for number in range(3)]
    forward = method("sep:checkpoints=3,steps=3").craft(job(nets))
    backward = method("sep:checkpoints=3,steps=3").craft(job(nets[::-1]))
    assert differing(forward, backward) < NEAR_ZERO


@pytest.mark.parametrize(("classes", "expected"), [(10, 5), (100, 50), (4, 2), (5, 2)])
def test_targets_lie_half_of_the_classes_ahead(
    classes: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    aimed: list[Tensor] = []
    monkeypatch.setattr(
        SelfEnsemble, "descend", lambda self, job, objectives, x, aims: aimed.append(aims)
    )
    names = tuple(map(str, range(classes)))
    some = ImageDataset(TINY.images, TINY.labels, names, "some", TINY.mean, TINY.std)
    method("sep").craft(job(dataset=some))
    assert torch.cat(aimed).tolist() == [(y + expected) % classes for y in TINY.labels.tolist()]
    method("sep:target_shift=1").craft(job(dataset=some))
    assert aimed[-1].tolist() == [(y + 1) % classes for y in TINY.labels.tolist()]


def cross_entropy_gradient(net: Network, x: Tensor, target: Tensor) -> Tensor:
    """weight^T (softmax - onehot) / std, by hand in float64."""
    weight = net.head.weight.double()
    normalised = (x.double() - net.mean.double()) / net.std.double()
    surplus = (normalised.flatten(1) @ weight.T).softmax(1) - F.one_hot(target, 4)
    return (surplus @ weight).unflatten(1, x.shape[1:]) / net.std.double()


def test_sep_step_on_linear_networks_is_the_one_on_paper() -> None:
    nets = [linear(number) for number in range(3)]
    clean, target, epsilon = unit(), (TINY.labels + 2) % 4, 2 / 255
    x = clean.double()
    for _ in range(4):
        direction = sum(cross_entropy_gradient(net, x, target) for net in nets)
        x = inside(x - LEVEL * direction.sign(), clean.double(), epsilon)
    delta = method("sep:checkpoints=3,steps=4,epsilon=2/255").craft(job(nets))
    assert differing(clean.double() + delta, x) == 0


def test_sep_reaches_the_best_point_of_the_ball_on_a_linear_network() -> None:
    # With two classes the gradient never turns: the best delta is epsilon times a sign.
    labels = TINY.labels % 2
    two = ImageDataset(TINY.images, labels, ("a", "b"), "two", TINY.mean, TINY.std)
    net, epsilon = linear(5, two), 4 / 255
    slope = (net.head.weight[1 - labels] - net.head.weight[labels]).unflatten(1, (3, 8, 8))
    best = (unit() + epsilon * slope.sign()).clamp(0, 1)
    delta = method("sep:checkpoints=1,steps=6,epsilon=4/255").craft(job([net], two))
    assert differing(unit() + delta, best) == 0


# --- feature alignment ------------------------------------------------------------------------


def test_class_centres_are_means_over_clean_images() -> None:
    net = network(0)
    with torch.no_grad():
        features = torch.stack([net.features(unit(image[None]))[0] for image in TINY.images])
    expected = [features[TINY.labels == label].mean(0) for label in range(4)]
    mask = torch.zeros(len(TINY), dtype=torch.bool)  # clean images count whether protected or not
    torch.testing.assert_close(class_centers(job(mask=mask), net), torch.stack(expected))


def alignment_gradient(net: Network, x: Tensor, centers: Tensor) -> Tensor:
    """Gradient of MSE(h(x), c), image by image."""
    rows = []
    for image, center in zip(x, centers, strict=True):
        leaf = image[None].clone().requires_grad_()
        ((net.features(leaf)[0] - center) ** 2).mean().backward()
        assert leaf.grad is not None
        rows.append(leaf.grad[0])
    return torch.stack(rows)


def centers_of(nets: Sequence[Network]) -> list[Tensor]:
    return [class_centers(job(), net) for net in nets]


def test_feature_aligned_step_is_the_sum_over_checkpoints() -> None:
    nets, target = [network(number) for number in range(3)], (TINY.labels + 2) % 4
    x = clean = unit()
    for _ in range(2):
        total = torch.zeros_like(x)
        for net, centers in zip(nets, centers_of(nets), strict=True):
            total += alignment_gradient(net, x, centers[target])
        x = inside(x - LEVEL * total.sign(), clean, 8 / 255)
    delta = method("sep-fa:checkpoints=3,steps=2").craft(job(nets))
    assert differing(clean + delta, x) < NEAR_ZERO


def algorithm_1(nets: Sequence[Network], steps: int, inner: int, centers: str) -> Tensor:
    """SEP-FA-VR as the released scripts go about it; `centers` as in the method's setting."""
    target, own = (TINY.labels + 2) % 4, centers_of(nets)
    aims = own if centers == "own" else [own[-1]] * len(nets)
    draws = np.random.RandomState(0)
    x = clean = unit()
    for _ in range(steps):
        g = [alignment_gradient(net, x, c[target]) for net, c in zip(nets, own, strict=True)]
        g_ens = sum(g) / len(nets)
        accumulated, v = torch.zeros_like(x), x
        for _ in range(inner):
            k = draws.randint(len(nets))
            accumulated = accumulated + (
                alignment_gradient(nets[k], v, aims[k][target]) - (g[k] - g_ens)
            )
            v = inside(v - LEVEL * accumulated.sign(), clean, 8 / 255)
        x = inside(x - LEVEL * accumulated.sign(), clean, 8 / 255)
    return x - clean


@pytest.mark.parametrize("centers", ["own", "last"])
def test_variance_reduction_is_algorithm_1(centers: str) -> None:
    # With own centres the method leaves out the first inner gradient, which cancels.
    nets = [network(number) for number in range(3)]
    text = f"sep-fa-vr:checkpoints=3,steps=2,inner_steps=3,centers={centers}"
    delta = method(text).craft(job(nets))
    assert differing(delta, algorithm_1(nets, 2, 3, centers)) < NEAR_ZERO


def test_centres_of_the_last_checkpoint_make_another_set() -> None:
    nets = [network(number) for number in range(3)]
    text = "sep-fa-vr:checkpoints=3,steps=3,inner_steps=3"
    own, last = (method(f"{text},centers={c}").craft(job(nets)) for c in ("own", "last"))
    assert differing(own, last) > 0.05
    alone = "sep-fa-vr:checkpoints=1,steps=3,inner_steps=3"
    own, last = (method(f"{alone},centers={c}").craft(job(nets[:1])) for c in ("own", "last"))
    assert differing(own, last) < NEAR_ZERO  # a single checkpoint is the last


def test_one_inner_step_is_plain_feature_alignment() -> None:
    nets = [network(number) for number in range(3)]
    for count in (1, 3):
        plain = method(f"sep-fa:checkpoints={count},steps=3").craft(job(nets[:count]))
        reduced = method(f"sep-fa-vr:checkpoints={count},steps=3,inner_steps=1")
        assert differing(plain, reduced.craft(job(nets[:count]))) < NEAR_ZERO


def test_drawn_checkpoints_are_the_released_codes() -> None:
    published = [12, 5, 0, 3, 11, 3, 7, 9, 3, 5, 2, 4, 7, 6, 8]
    log: list[int] = []

    def recording(number: int) -> Any:
        def features(images: Tensor) -> Tensor:
            log.append(number)
            return images.flatten(1)

        return FeatureDistance(SimpleNamespace(features=features), torch.zeros(4, 192))  # type: ignore[arg-type]

    objectives: list[Any] = [recording(number) for number in range(15)]
    for chunk in (slice(0, 9), slice(9, 24)):  # every chunk sees the same draws
        log.clear()
        made = VarianceReduced(checkpoints=15, steps=3, inner_steps=5, centers="last")
        made.descend(
            job(), objectives, Iterate(TINY.images[chunk], made.budget), TINY.labels[chunk]
        )
        outer, drawn = (
            [log[i : i + 15] for i in (0, 20, 40)],
            [log[i + 15 : i + 20] for i in (0, 20, 40)],
        )
        assert outer == [list(range(15))] * 3
        assert [k for step in drawn for k in step] == published


# --- AdvPoison --------------------------------------------------------------------------------


def test_start_is_a_clipped_gaussian() -> None:
    epsilon = 8 / 255
    text = "advpoison:steps=0,restarts=1,batch=40"
    delta = method(text).craft(job([linear(0, GREY)], GREY)).double()
    clipped = float((delta.abs() > epsilon * (1 - 1e-5)).double().mean())
    beyond = math.erfc(1 / math.sqrt(2))
    assert clipped == pytest.approx(beyond, abs=5 * math.sqrt(beyond / COMPONENTS))
    assert float(delta.abs().max()) <= epsilon * (1 + 1e-5)
    assert len(delta.flatten(1).unique(dim=0)) == len(GREY)  # other draws in the second batch


def test_updates_are_those_of_the_released_code() -> None:
    net, epsilon, target = network(0), 8 / 255, (TINY.labels + 1) % 4
    crafting, clean = job([net]), unit()
    draws = crafting.stream("restart", 0, 0)
    x = inside(clean + epsilon * torch.randn(clean.shape, generator=draws), clean, epsilon)
    mean = torch.tensor(TINY.mean).reshape(1, 3, 1, 1)
    for _ in range(3):
        offsets, mirrored = draw_shifts(len(x), 4.0, draws, CPU)
        leaf = x.clone().requires_grad_()
        F.cross_entropy(net(shift(leaf, offsets, mirrored, mean)), target).backward()
        assert leaf.grad is not None
        x = inside(x - 0.05 * epsilon * leaf.grad.sign(), clean, epsilon)
    delta = method("advpoison:steps=3,restarts=1").craft(crafting)
    assert differing(clean + delta, x) < NEAR_ZERO


def test_steps_lead_towards_the_next_class_inside_the_budget() -> None:
    net, epsilon = linear(0), 8 / 255
    delta = method("advpoison:steps=40,restarts=1,shift=1").craft(job([net]))
    target = (TINY.labels + 1) % 4
    with torch.no_grad():
        before, after = (F.cross_entropy(net(x), target) for x in (unit(), unit() + delta))
    assert after < before - 0.1, (before, after)
    assert float(delta.abs().max()) <= epsilon * (1 + 1e-5)
    assert 0 <= float((unit() + delta).min()) <= float((unit() + delta).max()) <= 1 + 1e-6


def test_restart_with_the_least_loss_is_kept() -> None:
    net = network(0)
    made: AdversarialPoison = method("advpoison:steps=2,restarts=3,batch=10")
    attempts = [made.attempt(job([net]), net, restart) for restart in range(3)]
    losses = [loss for _, loss in attempts]
    assert len(set(losses)) == 3
    assert made.craft(job([net])).equal(attempts[losses.index(min(losses))][0])
    assert made.craft(job([net])).equal(made.craft(job([net])))
    assert not made.craft(job([net], seed=1)).equal(made.craft(job([net])))


def test_losses_of_restarts_are_compared_under_equal_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = network(0)
    made: AdversarialPoison = method("advpoison:steps=0,restarts=2,batch=10")
    same = torch.zeros(TINY.images.shape)
    monkeypatch.setattr(Crafting, "each_chunk", lambda *args: same)
    one, other = (made.attempt(job([net]), net, restart)[1] for restart in range(2))
    assert one == other


# --- how surrogates of SEP are trained, and what is said of them ------------------------------

FAMILY = ("sep", "sep-fa", "sep-fa-vr", "sep-l2", "sep-fa-l2", "sep-fa-vr-l2", "ensemble")


@pytest.mark.parametrize("name", FAMILY)
def test_seps_networks_are_the_papers_whatever_trains_the_victims(name: str) -> None:
    recipes = {key: build(RECIPES, parse_one(key, RECIPES)) for key in RECIPES.entries}
    assert not recipes["paper"].departures(SEP), "SEP's own is the recipe that has its name"
    own, victims = method(name), method(f"{name},surrogate_recipe=victim")
    for key, recipe in recipes.items():
        for surrogate in own.surrogates(recipe):
            # The recipe itself where it is the same, so that they are the same trainings.
            assert surrogate.recipe == (recipe if key == "paper" else SEP)
            assert surrogate.epochs[-1] == 120
    for surrogate in victims.surrogates(recipes["ops"]):
        assert surrogate.recipe == recipes["ops"]
        assert surrogate.epochs[-1] == 200
    for scale in ("quick", "standard"):
        small = build(METHODS, parse_one(name, METHODS), scale)
        assert small.surrogate_recipe == "victim"
        assert small.deviations()["surrogate_recipe"] == ["victim", "own"]
        assert small.surrogates(recipes[scale])[0].recipe == recipes[scale]


def test_sets_of_the_papers_recipe_keep_their_keys() -> None:
    train = small_splits().train
    grid = Grid("sep,ensemble", archs="rn18", dataset=DATASET, recipe="paper", precision="fp32")
    expansion = Expansion(grid)
    cells = expansion.cells(TrainingData.cut(small_splits(), expansion.recipe, expansion.source))
    assert cells[0].crafting.train_digest == train.digest
    keys = [key_of(cell.crafting.identity)[:16] for cell in cells[1:]]
    assert keys == ["0274fb96f6ca1a98", "c15a7541fb6b696e"]  # before there was another recipe


@pytest.mark.parametrize("text", ["sep:checkpoints=3", "sep-fa:checkpoints=3", "sep:checkpoints=1"])
def test_networks_are_compared_and_judged_before_they_craft(text: str) -> None:
    made = method(f"{text},steps=0")
    nets, mask = [network(number) for number in range(made.checkpoints)], TINY.labels != 2
    crafting = job(nets, mask=mask)
    made.craft(crafting)
    x, labels = unit()[mask].requires_grad_(), TINY.labels[mask]
    gradients, rights = [], []
    for net in nets:
        loss = F.cross_entropy(net(x), (labels + 2) % 4, reduction="sum")
        if isinstance(made, sep.FeatureAligned):
            distance = net.features(x) - class_centers(crafting, net)[(labels + 2) % 4]
            loss = distance.square().mean(1).sum()
        gradients.append(torch.autograd.grad(loss, x)[0].flatten(1))
        rights.append(float((net(x).argmax(1) == labels).double().mean()))
    pairs = [(0, 1), (0, 2), (1, 2)] if len(nets) == 3 else []
    cosines = [F.cosine_similarity(gradients[a], gradients[b]).abs().mean() for a, b in pairs]
    facts = crafting.facts
    assert facts["checkpoint_acc_min"] == pytest.approx(min(rights))
    assert facts["checkpoint_acc_max"] == pytest.approx(max(rights))
    assert ("checkpoint_cosine" in facts) == bool(pairs)
    if pairs:
        mean = float(torch.stack(cosines).mean())
        assert facts["checkpoint_cosine"] == pytest.approx(mean, abs=1e-5)


def test_what_is_measured_of_networks_costs_next_to_nothing() -> None:
    """Under two per cent of the gradients of `quick`, counting three passes for a gradient."""
    crafted = 3 * 2000 * 8
    assert 0.02 * crafted >= 3 * sep.COMPARED + sep.JUDGED


@pytest.mark.parametrize("name", ["sep", "sep-fa", "sep-fa-vr"])
def test_truncated_storage_is_that_of_the_released_code(name: str) -> None:
    """Float32 in [0, 1], steps that are no whole levels there, and bytes that are cut."""
    text = f"{name}:checkpoints=2,steps=16" + (",inner_steps=3" if "vr" in name else "")
    made, rounded = method(f"{text},quantize=truncate"), method(text)
    nets, clean = [network(0), network(1)], unit()
    crafting = job(nets)
    images = release(TINY, made.craft(crafting), crafting.mask, made.budget).images
    whole = release(TINY, rounded.craft(crafting), crafting.mask, rounded.budget).images
    change = images.int() - whole.int()
    assert set(change.unique().tolist()) <= {-1, 0}
    assert 0 < float((change < 0).double().mean()) < 0.2
    # A level beyond epsilon, where images lost one at the lower end.
    assert int((images.int() - TINY.images.int()).min()) in (-8, -9)
    assert made.budget == Budget("none")
    assert made.identity()["settings"]["quantize"] == "truncate"
    assert "quantize" not in rounded.identity()["settings"]
    if name == "sep":
        x, wanted = clean, (TINY.labels + 2) % 4
        for _ in range(16):
            g = sum(sep.CrossEntropy(net).gradient(x, wanted) for net in nets)
            x = inside(x - torch.as_tensor(g).sign() / 255 * 1, clean, 8 / 255)
        assert np.array_equal(images.numpy(), (x.numpy() * 255).astype(np.uint8))
    with pytest.raises(UsageError, match="leave it out"):
        method("sep-l2:quantize=truncate")


@pytest.mark.parametrize(
    ("text", "rounds"),
    [("ule:batch=10,max_rounds=3,stop_error=0,noise_steps=1", 3), ("tue:rounds=2", 2)],
)
def test_rounds_are_reported(text: str, rounds: int) -> None:
    crafting = job(mask=draw_mask(TINY.labels, 0.75, 0))
    method(f"{text},surrogate=({ARCH})" if "ule" in text else text).craft(crafting)
    assert crafting.facts == {"rounds": rounds}


# --- cost -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "nets"),
    [
        ("sep:checkpoints=3,steps=2", 3),
        ("sep-fa:checkpoints=3,steps=2", 3),
        ("sep-fa-vr:checkpoints=3,steps=2,inner_steps=4", 3),
        ("sep-fa-vr:checkpoints=3,steps=2,inner_steps=4,centers=last", 3),
        ("advpoison:steps=3,restarts=2,batch=10", 1),
        ("ule:batch=10,max_rounds=2,stop_error=0,noise_steps=3", 0),
        ("ule:batch=10,max_rounds=2,stop_error=0,per=class,subset=1", 0),
    ],
)
def test_gradients_taken_are_those_announced(
    text: str, nets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = 0

    def counted(objective: Any, images: Tensor) -> Tensor:
        nonlocal taken
        taken += len(images)
        return genuine(objective, images)

    genuine = sep.input_gradient
    for module in (sep, advpoison, ule):
        monkeypatch.setattr(module, "input_gradient", counted)
    monkeypatch.setattr(sep, "report_networks", lambda *measured: None)  # measures, crafts nothing
    made = method(f"{text},surrogate=({ARCH})")
    crafting = job(
        [network(number) for number in range(nets)], mask=draw_mask(TINY.labels, 0.75, 0)
    )
    made.craft(crafting)
    assert crafting.gradient_images == taken
    if "per=class" in text:  # short last batches are dropped: an estimate from above
        assert taken == 2 * 10
    else:
        assert made.gradient_images(18) == taken


def test_papers_costs() -> None:
    # Chen et al., Table 4, and Fowl et al.: gradients an image.
    assert method("sep").gradient_images(1) == method("sep-fa").gradient_images(1) == 900
    assert method("sep-fa-vr:centers=last").gradient_images(1) == 900
    assert method("sep-fa-vr").gradient_images(1) == 870
    assert method("advpoison").gradient_images(1) == 2000


# --- ULE --------------------------------------------------------------------------------------

ULE = f"ule:surrogate=({ARCH}),batch=10,train_steps=4,noise_steps=3"


def huang(start: Tensor, passes: int, epsilon: float = 8 / 255) -> tuple[Tensor, Network]:
    """M training steps under a given noise, then K noise steps as often as asked, written out."""
    net, clean, labels = job().network(ARCH, "network"), unit(), TINY.labels
    weights = list(net.parameters())
    velocity = [torch.zeros_like(w) for w in weights]
    noise = start.clone()
    batches = [torch.arange(24)[i : i + 10] for i in (0, 10, 20)]
    net.train()
    for rows in batches[:2]:
        net.zero_grad()
        F.cross_entropy(net(clean[rows] + noise[rows]), labels[rows]).backward()
        slopes = [w.grad for w in weights if w.grad is not None]
        length = math.sqrt(sum(float((g**2).sum()) for g in slopes))
        scale = min(1.0, 5.0 / (length + 1e-6))
        with torch.no_grad():
            for w, v, g in zip(weights, velocity, slopes, strict=True):
                v.mul_(0.9).add_(g * scale + 5e-4 * w)
                w.sub_(0.1 * v)
    net.eval()
    for _ in range(passes):
        for rows in batches:
            x = (clean[rows] + noise[rows]).clamp(0, 1)
            eta = noise[rows]
            for _ in range(3):
                leaf = x.clone().requires_grad_()
                (g,) = torch.autograd.grad(F.cross_entropy(net(leaf), labels[rows]), leaf)
                eta = (x - 0.1 * epsilon * g.sign() - clean[rows]).clamp(-epsilon, epsilon)
                x = (clean[rows] + eta).clamp(0, 1)
            noise[rows] = eta
    return noise, net


@pytest.mark.parametrize("passes", [1, 2])
def test_sample_wise_round_is_that_of_the_released_code(passes: int) -> None:
    # Two training steps: after four, these small batch norms have made 1e-3 of a round-off of 1e-7
    # (float64 says the same), and a later round could not be compared.
    start = (2 * torch.rand(unit().shape, generator=stream(0, "start")) - 1) * 8 / 255
    noise, net = huang(start, passes)
    state = Alternation(
        job(), method(f"ule:surrogate=({ARCH}),batch=10,train_steps=2,noise_steps=3")
    )
    state.noise = start.clone()
    state.train()
    for _ in range(passes):  # each begins where the noise stands
        state.improve_samples()
    weights = dict(state._network.named_parameters())
    for name, expected in net.named_parameters():
        torch.testing.assert_close(weights[name], expected, rtol=1e-4, atol=1e-5)
    assert differing(state.noise, noise) < NEAR_ZERO


def test_crafting_is_rounds_of_training_and_noise() -> None:
    state = Alternation(job(), method(ULE))
    assert state.noise.eq(0).all()
    for _ in range(2):
        state.train()
        state.improve_samples()
    assert method(f"{ULE},max_rounds=2,stop_error=0").craft(job()).equal(state.noise)


def test_sample_wise_batches_run_on_in_file_order() -> None:
    state = Alternation(job(mask=draw_mask(TINY.labels, 0.75, 0)), method(ULE))
    places = [state._next_batch().tolist() for _ in range(5)]
    assert places == [list(range(10)), list(range(10, 18))] * 2 + [list(range(10))]


def test_class_wise_batches_are_shuffled_and_whole() -> None:
    state = Alternation(job(), method(f"{ULE},per=class"))
    passes = [[state._next_batch().tolist() for _ in range(2)] for _ in range(3)]
    for batches in passes:
        assert [len(batch) for batch in batches] == [10, 10]
        assert len({*batches[0], *batches[1]}) == 20
    assert passes[0] != passes[1] != passes[2]


def test_noise_is_stored_before_the_clamp_to_the_valid_range() -> None:
    white = TINY.with_images(torch.full_like(TINY.images, 255))
    delta = method(f"{ULE},max_rounds=1,stop_error=0").craft(job(dataset=white))
    assert float(delta.max()) > 0
    mask = torch.ones(24, dtype=torch.bool)
    released = release(white, delta, mask, method(ULE).budget).images
    assert int(released.max()) == 255


def test_dropped_negatives_leave_the_positive_half() -> None:
    text = f"{ULE},max_rounds=1,stop_error=0"
    kept, dropped = (method(f"{text},negatives={n}").craft(job()) for n in ("keep", "dropped"))
    assert float(kept.min()) < 0
    assert dropped.equal(kept.clamp_min(0))


def test_training_error_counts_a_short_batch_in_full() -> None:
    state = Alternation(job(), method(ULE))
    state.train()
    net = state._network.eval()
    with torch.no_grad():
        wrong = (net(unit()).argmax(1) != TINY.labels).float()
    rates = [wrong[:10].mean(), wrong[10:20].mean(), wrong[20:].mean()]
    assert state.error() == pytest.approx(float(sum(rates)) / 3)


@pytest.mark.parametrize(
    ("errors", "rounds"), [([0.5, 0.0101, 0.01], 3), ([0.0], 1), ([0.5] * 9, 5)]
)
def test_rounds_end_when_the_error_is_low_enough(
    errors: list[float], rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = list(errors)
    monkeypatch.setattr(Alternation, "error", lambda self: left.pop(0))
    crafting = job()
    method(f"{ULE},max_rounds=5").craft(crafting)
    assert len(errors) - len(left) == rounds
    assert crafting.gradient_images == rounds * 24 * 3


def test_class_wise_noise_is_the_mean_of_its_images_steps() -> None:
    made = method(
        f"ule:surrogate=({ARCH}),batch=64,train_steps=1,per=class,subset=0.5,max_rounds=2"
    )
    state = Alternation(job(), made)
    state.train()
    net, epsilon = state._network.eval(), 8 / 255
    places = state._stratified()
    assert torch.bincount(TINY.labels[places]).tolist() == [3, 3, 3, 3]
    assert places.equal(state._stratified())
    noise = torch.zeros(4, 3, 8, 8)
    for _ in range(2):
        sums = torch.zeros_like(noise)
        for place in places.tolist():
            clean, label = unit(TINY.images[place, None]), TINY.labels[place, None]
            x = (clean + noise[label]).clamp(0, 1).requires_grad_()
            (g,) = torch.autograd.grad(F.cross_entropy(net(x), label), x)
            sums[label] += (x.detach() - 0.1 * epsilon * g.sign() - clean).clamp(-epsilon, epsilon)
        noise = sums / 3
        state.improve_classes()
        # Each image weighs a third; where one sign differs, the mean moves by a fraction of a step.
        assert float((state.noise - noise).abs().gt(1e-6).float().mean()) < NEAR_ZERO
    delta = made.craft(job())
    assert delta.equal(delta[:4][TINY.labels])
    assert 0 < float(delta.abs().max()) <= epsilon * (1 + 1e-6)


# --- interruptions ----------------------------------------------------------------------------


class StopsAt(Monitor):
    """Ends the work at the n-th safe point."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._left = number

    def stopping(self) -> bool:
        self._left -= 1
        return self._left == 0


class Saves(Monitor):
    """Saves at every safe point."""

    save_every = -1.0


def test_chunks_that_are_done_are_not_done_again(tmp_path: Path) -> None:
    done: list[int] = []

    def perturb(images: Tensor, labels: Tensor, number: int) -> Tensor:
        done.append(number)
        crafting.spend(len(labels))
        return images / 255 * (number + 1)

    mask = draw_mask(TINY.labels, 0.9, 0)
    crafting = job(mask=mask)
    whole = crafting.each_chunk(perturb, 5)
    assert whole[~mask].eq(0).all()
    for stop in (1, 3, 5):
        done.clear()
        scratch = tmp_path / str(stop)
        crafting = job(mask=mask, scratch=scratch, monitor=StopsAt(stop))
        with pytest.raises(Stopped):
            crafting.each_chunk(perturb, 5)
        crafting = job(mask=mask, scratch=scratch, monitor=Saves())
        assert crafting.each_chunk(perturb, 5).equal(whole)
        assert done == [0, 1, 2, 3, 4]
        assert crafting.gradient_images == int(mask.sum())
    done.clear()
    for _ in range(5):  # stopped at every safe point, and no time left after the last
        crafting = job(mask=mask, scratch=tmp_path, monitor=StopsAt(1))
        with pytest.raises(Stopped):
            crafting.each_chunk(perturb, 5)
    crafting = job(mask=mask, scratch=tmp_path)
    assert crafting.each_chunk(perturb, 5).equal(whole)
    assert done == [0, 1, 2, 3, 4]
    assert crafting.gradient_images == int(mask.sum())


@pytest.mark.parametrize(
    ("text", "nets", "stops"),
    [
        ("advpoison:steps=2,restarts=2,batch=10", 1, (1, 2, 4, 6)),
        (f"{ULE},max_rounds=3,stop_error=0", 0, (1, 3)),
        (f"{ULE},max_rounds=2,stop_error=0,per=class", 0, (1,)),
    ],
)
def test_interrupted_crafting_comes_to_the_same_end(
    text: str, nets: int, stops: tuple[int, ...], tmp_path: Path
) -> None:
    made, models = method(text), [network(number) for number in range(nets)]
    whole = job(models)
    expected = made.craft(whole)
    for stop in stops:
        scratch = tmp_path / str(stop)
        with pytest.raises(Stopped):
            made.craft(job(models, monitor=StopsAt(stop), scratch=scratch))
        again = job(models, monitor=Saves(), scratch=scratch)
        assert made.craft(again).equal(expected)
        assert again.gradient_images == whole.gradient_images


# --- edges ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("clean", "sham", "noise", "cuda", "advpoison:steps=1,restarts=2", "sep:checkpoints=1"),
        *("sep-fa-vr:checkpoints=1", ULE, f"{ULE},per=class"),
    ],
)
def test_nothing_to_protect_and_odd_seeds(text: str) -> None:
    made, none = method(text), torch.zeros(24, dtype=torch.bool)
    crafting = job([network(0)], mask=none, seed=-1)
    images, audit = release(TINY, made.craft(crafting), none, made.budget)
    assert images.equal(TINY.images)
    assert audit["protected_images"] == audit["max_linf"] == 0
    assert crafting.gradient_images == 0


@pytest.mark.parametrize(
    "text",
    [
        *("sep:checkpoints=0", "sep:steps=-1", "sep-fa-vr:inner_steps=0", "noise:epsilon=8"),
        *("advpoison:restarts=0", "advpoison:batch=0", "cuda:kernel=4", "cuda:blur=-1"),
        *("ule:batch=0", "ule:max_rounds=-1", "ule:subset=0"),
    ],
)
def test_settings_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        method(text)

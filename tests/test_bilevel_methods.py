"""RULE and DeepConfuse against slow, literal forms of their algorithms.

What holds for every method alike is tested in `test_laws.py`, resuming among it.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from bench.augment import Crops, cut
from bench.component import build, parse_one
from bench.crafting import Crafting
from bench.data import ImageDataset, Places
from bench.datasets.synthetic import Synthetic
from bench.errors import UsageError
from bench.network import Network
from bench.pgd import input_gradient
from bench.registry import METHODS
from bench.release import draw_mask
from bench.seeding import stream
from methods import rule
from methods.deepconfuse import Trials, UNet, loss_after_step, new_classifier, seeded
from methods.rule import Visits, undoing

TINY = Synthetic(train=24, test=4, size=8).load(Places(Path(), Path(), download=False)).train
"""24 images of 8 x 8 pixels in 4 classes."""
ARCH = "rn18:width=0.0625"
CPU = torch.device("cpu")
LEVEL = 1 / 255
NEAR_ZERO = 0.005
"""Share of components whose sign may differ between two orders of summation: sums that cancel."""


def job(dataset: ImageDataset = TINY, **more: Any) -> Crafting:
    """A job on the whole dataset."""
    return Crafting(
        **{
            "dataset": dataset,
            "rows": torch.arange(len(dataset)),
            "mask": torch.ones(len(dataset), dtype=torch.bool),
            "seed": 0,
            "device": CPU,
            "precision": "fp32",
            "trained": lambda number: (),
            **more,
        }
    )


def method(text: str, more: str = "") -> Any:
    """A method as typed, with more settings instead of or beside those that were typed."""
    spec = parse_one(text, METHODS)
    settings = dict(piece.split("=") for piece in more.split(",") if piece)
    return build(METHODS, dataclasses.replace(spec, settings={**spec.settings, **settings}))


def unit(dataset: ImageDataset = TINY) -> Tensor:
    return dataset.images.float() / 255


# --- RULE -------------------------------------------------------------------------------------

RULE = f"rule:surrogate=({ARCH}),batch=10,iterations=5,steps=3,inner_steps=2,draws=3"


def visits(more: str = "", trained: int = 2, **fields: Any) -> Visits:
    """A state whose network has learned a little, so that its gradients mean something."""
    state = Visits(job(**fields), method(RULE, more))
    for _ in range(trained):
        state.visit()
        state.done += 1
    return state


def literal_move(image: Tensor, down: int, right: int, mirrored: bool) -> Tensor:
    """A black border of four, a window at (down, right), and perhaps a mirror; (3, h, w)."""
    channels, height, width = image.shape
    framed = torch.zeros(channels, height + 8, width + 8)
    framed[:, 4:-4, 4:-4] = image
    window = framed[:, down : down + height, right : right + width]
    return window.flip(2) if mirrored else window


def literal_gradient(state: Visits, x: Tensor, labels: Tensor, draws: torch.Generator) -> Tensor:
    """The expectation's gradient: one draw after another, one image after another."""
    net, radius = copy.deepcopy(state._network).eval(), 4 / 255
    crops = Crops.draw(3 * len(x), 4, True, draws)
    starts = (2 * torch.rand(3 * len(x), *x.shape[1:], generator=draws) - 1) * radius
    total = torch.zeros_like(x)
    for index in range(3 * len(x)):
        image = index % len(x)
        leaf = x[image].clone().requires_grad_()
        where = int(crops.down[index]), int(crops.right[index]), bool(crops.mirrored[index])
        z = literal_move(leaf, *where)
        label = labels[image, None]
        fixed = z.detach()
        low, high = (fixed - radius).clamp(0, 1), (fixed + radius).clamp(0, 1)
        worst = torch.minimum(torch.maximum(fixed + starts[index], low), high)
        for _ in range(2):
            at = worst.clone().requires_grad_()
            (g,) = torch.autograd.grad(F.cross_entropy(net(at[None]), label), at)
            worst = torch.minimum(torch.maximum(worst + 0.2 * radius * g.sign(), low), high)
        at = worst.clone().requires_grad_()
        (v,) = torch.autograd.grad(F.cross_entropy(net(at[None]), label), at)
        # Straight through: z^a is taken to move as z does.
        (pulled,) = torch.autograd.grad((z * v).sum(), leaf)
        total[image] += pulled
    return total


def test_expected_gradient_is_that_of_direct_sampling() -> None:
    state, x, labels = visits(), unit()[:6], TINY.labels[:6]
    ours = state.expected_gradient(x, labels, stream(0, "draws"))
    literal = literal_gradient(state, x, labels, stream(0, "draws"))
    assert float(literal.abs().max()) > 1e-3
    # A sign that flips in the inner loop moves its pixel of z^a, and little else.
    assert float((ours - literal).norm() / literal.norm()) < 0.01
    assert float(ours.sign().ne(literal.sign()).float().mean()) < NEAR_ZERO


def test_gradient_goes_straight_through_the_inner_maximum() -> None:
    state, x, labels = visits(), unit()[:6], TINY.labels[:6]
    ours = state.expected_gradient(x, labels, stream(0, "draws"))
    draws = stream(0, "draws")
    crops, start = state._crops(18, draws), state._start(torch.Size((18, 3, 8, 8)), draws)
    leaf, many = x.clone().requires_grad_(), labels.repeat(3)
    z = state.moved(leaf.repeat(3, 1, 1, 1), crops)
    offset = (state.worst(z.detach(), many, start) - z).detach()
    moving = F.cross_entropy(state.model(z + offset), many, reduction="sum")
    (g,) = torch.autograd.grad(moving, leaf, retain_graph=True)
    torch.testing.assert_close(ours, g, rtol=1e-4, atol=1e-6)
    unmoved = F.cross_entropy(state.model(z), many, reduction="sum")
    (at_z,) = torch.autograd.grad(unmoved, leaf)
    assert float((at_z - g).norm() / g.norm()) > 0.05  # the maximum is somewhere else


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_undoing_a_crop_is_its_transpose(padding: int) -> None:
    draws = stream(0, "crops")
    crops = Crops.draw(40, padding, True, draws)
    leaf = torch.rand(40, 3, 8, 9, generator=draws).requires_grad_()
    v = torch.randn(40, 3, 8, 9, generator=draws)

    def moved(images: Tensor, crops: Crops) -> Tensor:
        return cut(F.pad(images, (padding,) * 4).permute(0, 2, 3, 1), crops, (8, 9))

    (g,) = torch.autograd.grad(moved(leaf, crops), leaf, v)
    assert moved(v, undoing(crops, padding)).equal(g)


def test_draws_in_pieces_give_the_gradient_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    state, x, labels = visits(), unit()[:6], TINY.labels[:6]
    whole = state.expected_gradient(x, labels, stream(0, "draws"))
    monkeypatch.setattr(Crafting, "chunk", 5)
    pieces = state.expected_gradient(x, labels, stream(0, "draws"))
    assert float((whole - pieces).norm() / whole.norm()) < 0.01


def test_inner_maximum_stays_in_its_ball_and_climbs() -> None:
    state = visits()
    x, labels = unit(), TINY.labels
    x[:2] = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
    start = state._start(x.shape, stream(0, "start"))
    assert start is not None
    assert 0.99 * 4 / 255 < float(start.abs().max()) <= 4 / 255
    worst = state.worst(x, labels, start)
    assert float((worst - x).abs().max()) <= 4 / 255 + 1e-6
    assert float(worst.min()) >= 0
    assert float(worst.max()) <= 1
    with torch.no_grad():
        before, after = (F.cross_entropy(state.model(z), labels) for z in (x, worst))
    assert after > before


@pytest.mark.parametrize("off", ["inner_steps=0", "radius_ratio=0"])
def test_without_maximum_and_crops_it_is_error_minimisation(off: str) -> None:
    state = visits(f"{off},crop_padding=0,flip=no,draws=1")
    images, labels, epsilon = TINY.images[:10], TINY.labels[:10], 8 / 255
    ours = state.minimise(images, labels, stream(0, "draws"))
    clean, net = images.float() / 255, copy.deepcopy(state._network).eval()
    delta = (2 * torch.rand(images.shape, generator=stream(0, "draws")) - 1) * epsilon
    for _ in range(3):
        x = (clean + delta).clamp(0, 1).requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(net(x), labels), x)
        delta = (x.detach() - clean - 1.6 / 255 * g.sign()).clamp(-epsilon, epsilon)
    expected = ((clean + delta).clamp(0, 1) - clean) * 255
    assert float((ours - expected).abs().gt(0.51).float().mean()) < NEAR_ZERO


def test_noise_is_stored_in_whole_levels_and_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[Tensor] = []
    monkeypatch.setattr(Visits, "_learn", lambda self, images, labels: learned.append(images))
    state = visits("radius_ratio=0,crop_padding=0,flip=no", trained=0)
    state.visit()
    places = state.places()
    assert state.levels.dtype == torch.int8
    assert 6 <= int(state.levels.abs().max()) <= 8
    released = TINY.images[places].to(torch.int16) + state.levels[places]
    assert 0 <= int(released.min()) <= int(released.max()) <= 255
    torch.testing.assert_close(learned[0] * 255, released.float(), rtol=0, atol=1e-4)
    rest = torch.ones(24, dtype=torch.bool)
    rest[places] = False
    assert state.levels[rest].eq(0).all()


def test_odd_epsilons_round_inwards() -> None:
    delta = method(RULE, "epsilon=0.03").craft(job())
    assert round(float(delta.abs().max() * 255), 3) == 7


def test_final_pass_leaves_older_noise_where_the_last_batch_is_dropped() -> None:
    made, state = method(RULE), visits(trained=5)
    before, finished = state.levels.clone(), torch.zeros(24, dtype=torch.bool)
    assert state.total - made.iterations == 2
    for _ in range(2):
        finished[state.places()] = True
        state.finish()
        state.done += 1
    assert int(finished.sum()) == 20
    assert state.levels[~finished].equal(before[~finished])
    assert state.levels[finished].ne(before[finished]).flatten(1).any(1).all()
    delta = made.craft(job())
    assert (delta * 255).round().equal(state.levels.float())


def test_passes_are_shuffled_and_whole() -> None:
    state, passes = visits(trained=0), []
    for _ in range(2):
        batches = []
        for _ in range(2):
            batches += state.places().tolist()
            state.done += 1
        assert len(set(batches)) == 20
        passes.append(batches)
    assert passes[0] != passes[1]
    few = visits(trained=0, mask=draw_mask(torch.zeros(24, dtype=torch.int64), 0.25, 0))
    assert sorted(few.places().tolist()) == list(range(6))  # fewer than a batch are one


def test_learning_rate_falls_after_two_and_four_fifths() -> None:
    state, rates = visits(trained=0), []
    for _ in range(5):
        state.visit()
        rates.append(state._optimizer.param_groups[0]["lr"])
        state.done += 1
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])


def test_network_sees_images_around_zero_and_attacks_see_it_at_rest() -> None:
    state, x = visits(), unit()
    net = copy.deepcopy(state._network).eval()
    expected = net.head(net.body(x - 0.5))
    torch.testing.assert_close(state.model(x), expected, rtol=1e-4, atol=1e-5)
    assert not state.model.training
    assert state._network.training


def test_rule_costs_what_the_paper_says() -> None:
    # 5000 visits of 128 with 10 x 5 x 11 + 10 + 1 gradients an image, and 550 in the final pass.
    assert method("rule").gradient_images(50_000) / 50_000 == pytest.approx(7730, abs=0.5)
    imagenet = "rule:iterations=3000,steps=7,step_ratio=0.25,inner_steps=7,draws=4"
    assert method(imagenet).gradient_images(128_000) / 128_000 == 920


@pytest.mark.parametrize("more", ["", "radius_ratio=0", "inner_steps=0", "batch=64"])
def test_rule_takes_the_gradients_it_announces(more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0

    def counted(objective: Any, images: Tensor) -> Tensor:
        nonlocal taken
        taken += len(images)
        return input_gradient(objective, images)

    monkeypatch.setattr(rule, "input_gradient", counted)
    made, crafting = (
        method(RULE, more),
        job(mask=draw_mask(torch.zeros(24, dtype=torch.int64), 0.75, 0)),
    )
    made.craft(crafting)
    learned = 5 * (18 if "batch" in more else 10)
    assert crafting.gradient_images == made.gradient_images(18) == taken + learned


# --- DeepConfuse ------------------------------------------------------------------------------

CONFUSE = "deepconfuse:trials=2,epochs=2,batch=10,generator_width=0.0625"
EPSILON = 8 / 255


def test_hypergradient_agrees_with_finite_differences() -> None:
    draws = stream(0, "hypergradient")
    classifier = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Softplus(), nn.Flatten(), nn.Linear(64, 3)
        ),
        draws,
    ).double()
    generator = seeded(lambda: nn.Conv2d(3, 3, 3, padding=1), draws).double()
    x = torch.rand(6, 3, 6, 6, generator=draws, dtype=torch.float64) * 0.8 + 0.1
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    names = [name for name, _ in generator.named_parameters()]

    def objective(*weights: Tensor) -> Tensor:
        raw = functional_call(generator, dict(zip(names, weights, strict=True)), (x,))
        altered = (x + 0.05 * raw.tanh()).clamp(0, 1)
        return loss_after_step(classifier, altered, x, labels, 0.5)

    weights = [weight.detach().clone().requires_grad_() for weight in generator.parameters()]
    slopes = torch.autograd.grad(objective(*weights), weights)
    assert max(float(slope.abs().max()) for slope in slopes) > 1e-5
    assert torch.autograd.gradcheck(objective, weights, eps=1e-5, atol=1e-9, rtol=1e-4)


def test_pseudo_step_is_a_step_of_sgd_that_is_taken_back() -> None:
    draws = stream(0, "pseudo-step")
    classifier = seeded(lambda: new_classifier("cnn5", 4), draws).train()
    altered = (unit() + EPSILON * torch.randn(24, 3, 8, 8, generator=draws).sign()).clamp(0, 1)
    before = copy.deepcopy(classifier)
    loss = loss_after_step(classifier, altered, unit(), TINY.labels, 0.3)
    optimizer = torch.optim.SGD(before.parameters(), lr=0.3)
    start = [weight.clone() for weight in before.parameters()]
    F.cross_entropy(before(altered), TINY.labels).backward()
    optimizer.step()
    expected = F.cross_entropy(before(unit()), TINY.labels)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    for weight, then in zip(classifier.parameters(), start, strict=True):
        assert weight.equal(then)
        assert weight.grad is None


def test_epoch_is_pseudo_step_generator_step_and_real_step() -> None:
    state = Trials(job(), method(CONFUSE))
    generator, frozen = (
        copy.deepcopy(state.generator).train(),
        copy.deepcopy(state.generator).eval(),
    )
    classifier = copy.deepcopy(state.classifier).train()
    adam = torch.optim.Adam(generator.parameters(), lr=1e-4)
    sgd = torch.optim.SGD(classifier.parameters(), lr=0.01)
    order = torch.randperm(24, generator=job().stream("pass", 0))
    for rows in (order[:10], order[10:20], order[20:]):
        x, y = unit()[rows], TINY.labels[rows]
        stepped = copy.deepcopy(classifier)
        altered = (x + EPSILON * torch.tanh(generator(x))).clamp(0, 1)
        weights = list(classifier.parameters())
        slopes = torch.autograd.grad(
            F.cross_entropy(classifier(altered), y), weights, create_graph=True
        )
        names = [name for name, _ in classifier.named_parameters()]
        after = {n: w - 0.01 * s for n, w, s in zip(names, weights, slopes, strict=True)}
        adam.zero_grad()
        (-F.cross_entropy(functional_call(stepped, after, (x,)), y)).backward()
        adam.step()
        with torch.no_grad():
            altered = (x + EPSILON * torch.tanh(frozen(x))).clamp(0, 1)
        sgd.zero_grad()
        F.cross_entropy(classifier(altered), y).backward()
        sgd.step()
    state.run_epoch()
    for ours, theirs in ((state.generator, generator), (state.classifier, classifier)):
        for weight, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
            # Biases before a batch norm have no gradient but round-off, which Adam makes large.
            if weight.ndim == 4:
                assert float((weight - expected).abs().gt(2e-5).float().mean()) < 0.02


def test_real_step_is_on_the_generator_before_the_trial() -> None:
    state = Trials(job(), method(CONFUSE))
    start = copy.deepcopy(state.generator.state_dict())
    for _ in range(2):  # the first trial
        state.run_epoch()
        for key, value in state.frozen.state_dict().items():
            assert value.equal(start[key])
    learned = copy.deepcopy(state.generator.state_dict())
    assert any(not learned[key].equal(start[key]) for key in start)
    first = copy.deepcopy(state.classifier.state_dict())
    state.run_epoch()
    assert all(state.frozen.state_dict()[key].equal(learned[key]) for key in learned)
    # The second trial's classifier began anew and took three steps.
    fresh = state._new_classifier(1)
    moved = max(
        float((a - b).abs().max().detach())
        for a, b in zip(state.classifier.parameters(), fresh.parameters(), strict=True)
    )
    assert 0 < moved < 0.1
    assert not state.classifier.state_dict()["head.weight"].equal(first["head.weight"])

    expected = copy.deepcopy(state.classifier).train()
    with torch.no_grad():
        altered = (unit() + EPSILON * torch.tanh(state.frozen.eval()(unit()))).clamp(0, 1)
    sgd = torch.optim.SGD(expected.parameters(), lr=0.01)
    F.cross_entropy(expected(altered), TINY.labels).backward()
    sgd.step()
    state.train(unit(), TINY.labels)
    for weight, other in zip(state.classifier.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-5, atol=1e-6)


def test_generator_learns_to_make_a_step_do_harm() -> None:
    state = Trials(job(), method(CONFUSE, "generator_lr=0.003,classifier_lr=0.3"))
    x, y = unit(), TINY.labels

    def harm() -> float:
        altered = state.altered(state.generator.train(), x)
        return float(loss_after_step(state.classifier.train(), altered, x, y, 0.3).detach())

    before = harm()
    for _ in range(30):
        state.confuse(x, y)
    assert harm() > before + 0.01


def test_last_generators_noise_stays_inside_epsilon() -> None:
    made = method(CONFUSE, "generator_lr=0.05")
    delta = made.craft(job())
    state = Trials(job(), made)
    for _ in range(4):
        state.run_epoch()
    torch.testing.assert_close(delta, state.noise(unit()))
    assert 0.5 * EPSILON < float(delta.abs().max()) <= EPSILON * (1 + 1e-6)
    half = draw_mask(torch.zeros(24, dtype=torch.int64), 0.5, 0)
    assert made.craft(job(mask=half))[~half].eq(0).all()


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (9, 14), (30, 33)])
def test_unet_keeps_the_shape(size: tuple[int, int]) -> None:
    net = seeded(lambda: UNet(0.05, "fp32"), stream(0, "unet"))
    assert net(torch.rand(2, 3, *size)).shape == (2, 3, *size)
    assert (
        seeded(lambda: UNet(0.05, "bf16"), stream(0, "unet"))(torch.rand(2, 3, *size)).dtype
        == torch.float32
    )


def test_unet_of_full_width_has_the_papers_layers() -> None:
    def block(inputs: int, outputs: int, kernel: int = 3) -> int:
        return inputs * outputs * kernel**2 + outputs + 2 * outputs  # with bias and batch norm

    down = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512)]
    up = [(512 + 256, 256), (256, 256), (256 + 128, 128), (128, 128), (128 + 64, 64), (64, 64)]
    expected = sum(block(*pair) for pair in [*down, (512, 512), *up]) + block(64, 3, 1)
    assert sum(weight.numel() for weight in UNet(1.0, "fp32").parameters()) == expected


@pytest.mark.parametrize(("kind", "convolutions", "features"), [("cnn5", 5, 128), ("vgg11", 9, 2)])
def test_classifiers_are_those_of_the_paper_and_of_the_code(
    kind: str, convolutions: int, features: int
) -> None:
    net = new_classifier(kind, 10)
    assert isinstance(net, Network)
    found = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(found) == convolutions
    assert (net.head.in_features, net.head.out_features) == (features, 10)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert net.mean.eq(0).all()


def test_lonely_images_join_others_and_small_ones_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = method(CONFUSE)
    sizes: list[int] = []
    monkeypatch.setattr(Trials, "confuse", lambda state, x, labels: sizes.append(len(x)))
    for protected in (11, 21, 22):
        Trials(job(mask=torch.arange(24) < protected), made).run_epoch()
    assert sizes == [11, 10, 11, 10, 10, 2]
    made.craft(job(mask=torch.arange(24) < 1))  # nothing to learn from, and no harm done
    small = TINY.with_images(TINY.images[:, :, :7, :7].contiguous())
    with pytest.raises(UsageError, match="8 x 8"):
        made.check(small, torch.arange(24), 24)


def test_deepconfuse_counts_double_backwards() -> None:
    assert method("deepconfuse").gradient_images(1) == 500 * 20 * (3 + 1)
    crafting = job()
    method(CONFUSE).craft(crafting)
    assert crafting.gradient_images == method(CONFUSE).gradient_images(24)


# --- both -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [RULE, CONFUSE])
def test_nothing_to_protect(text: str) -> None:
    crafting = job(mask=torch.zeros(24, dtype=torch.bool), seed=-1)
    assert method(text).craft(crafting).eq(0).all()
    assert crafting.gradient_images == method(text).gradient_images(0) == 0


@pytest.mark.parametrize(
    "text",
    [
        *("rule:epsilon=0.51", "rule:draws=0", "rule:batch=0", "rule:steps=-1"),
        *("rule:radius_ratio=-1", "deepconfuse:batch=1", "deepconfuse:generator_width=0"),
        *("deepconfuse:trials=-1", "deepconfuse:classifier=resnet", "deepconfuse:generator_lr=-1"),
    ],
)
def test_settings_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        method(text)

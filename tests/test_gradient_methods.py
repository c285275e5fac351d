"""Methods that steer gradients, against literal double backward passes and values on paper.

TensorClog, gradient alignment, the untargeted form of adversarial poisons, and hypocritical
perturbations with the adversarially trained networks that they ask for.
"""

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import Grid, load_results, run
from bench.augment import draw_shifts, shift
from bench.budget import Budget
from bench.component import build, parse_one
from bench.crafting import Crafting
from bench.data import Places
from bench.datasets.synthetic import Synthetic
from bench.defense import Defense
from bench.errors import UsageError
from bench.grid import Expansion, SurrogateJob, TrainingData
from bench.method import Surrogate
from bench.network import Network, freeze
from bench.pgd import Iterate
from bench.registry import ARCHS, DEFENSES, METHODS
from bench.release import draw_mask, release
from bench.running.plan import make_plan
from bench.second_order import Learner, WeightGradientMethod
from bench.seeding import stream
from bench.store import Store
from bench.testing import checkpoints, small_recipe
from bench.train import Training
from methods.gradient_alignment import (
    GradientAlignment,
    SignedAdam,
    reverse_cross_entropy,
    reverse_direction,
)
from methods.hypo import Hypocritical, HypocriticalLinf
from methods.tensorclog import TensorClogTransfer, fresh_head, gradient_norms, length

TINY = Synthetic(train=24, test=4, size=8).load(Places(Path(), Path(), download=False)).train
"""24 images of 8 x 8 pixels in 4 classes."""
CPU = torch.device("cpu")
LEVEL = 1 / 255
ROUNDING = 2e-3
"""Largest error, over the largest component, of a float32 double backward pass."""
NEAR_ZERO = 0.02
"""Share of components whose sign may differ between float32 and float64: sums that cancel."""


@cache
def trained(arch: str = "rn18:width=0.0625") -> Network:
    """A network whose batch norms are not trivial, in eval mode, as `folded=False` gives it."""
    made = build(ARCHS, parse_one(arch, ARCHS)).network(
        len(TINY.classes), TINY.image_size, TINY.mean, TINY.std, stream(0, "test")
    )
    draws = stream(1, "test")
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            count = len(module.weight)
            module.running_mean.copy_(0.2 * torch.randn(count, generator=draws))
            module.running_var.copy_(0.5 + torch.rand(count, generator=draws))
            with torch.no_grad():
                module.weight.copy_(0.5 + torch.rand(count, generator=draws))
                module.bias.copy_(0.2 * torch.randn(count, generator=draws))
    return freeze(made, CPU, "fp32", folded=False)


def linear() -> Network:
    """Logits = W (x - mean) / std + b."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        features = TINY.images[0].numel()
        net = Network(nn.Flatten(), features, len(TINY.classes), TINY.mean, TINY.std)
    return net.eval().requires_grad_(False)


def job(net: Network | None = None, **more: Any) -> Crafting:
    """A job on all of the tiny images with one checkpoint."""
    return Crafting(
        **{
            "dataset": TINY,
            "rows": torch.arange(len(TINY)),
            "mask": torch.ones(len(TINY), dtype=torch.bool),
            "seed": 0,
            "device": CPU,
            "precision": "fp32",
            "trained": lambda number: [net or trained()],
            **more,
        }
    )


def method(text: str) -> Any:
    return build(METHODS, parse_one(text, METHODS))


def unit(images: Tensor = TINY.images) -> Tensor:
    return images.float() / 255


def inside(x: Tensor, epsilon: float) -> Tensor:
    """clip(clip(x, x0 - epsilon, x0 + epsilon), 0, 1)."""
    clean = unit().to(x.dtype)
    return torch.minimum(torch.maximum(x, clean - epsilon), clean + epsilon).clamp(0, 1)


def differing(one: Tensor, other: Tensor) -> float:
    """Share of components that lie more than a tenth of a grey level apart."""
    return float(((one - other).abs() > 0.1 * LEVEL).float().mean())


class Literal:
    """A network in float64 whose weight gradients autograd takes twice, with nothing folded."""

    def __init__(self, net: Network) -> None:
        self.net = copy.deepcopy(net).double().requires_grad_(True)
        self.weights = list(self.net.parameters())

    def logits(self, x: Tensor) -> Tensor:
        """In float64 throughout, which `Network.forward` is not."""
        return self.net.head(self.net.body((x - self.net.mean) / self.net.std))

    def slopes(self, loss: Tensor, **options: Any) -> Sequence[Tensor]:
        """d loss / d theta."""
        return torch.autograd.grad(loss, self.weights, **options)

    def gradient(
        self, measure: Callable[..., Tensor], x: Tensor, labels: Tensor, view: Any = None
    ) -> Tensor:
        """d m(d CE / d theta) / dx."""
        leaf = x.double().requires_grad_()
        loss = F.cross_entropy(self.logits(view(leaf) if view else leaf), labels)
        return torch.autograd.grad(measure(self.slopes(loss, create_graph=True)), leaf)[0]


def norm64(slopes: Sequence[Tensor]) -> Tensor:
    """The length of a gradient, written out."""
    return sum((slope**2).sum() for slope in slopes).sqrt()  # type: ignore[union-attr]


def cosine64(slopes: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """The cosine of two gradients, written out."""
    product = sum((a * b.double()).sum() for a, b in zip(slopes, others, strict=True))
    return product / (norm64(slopes) * norm64([other.double() for other in others]))


def mean_loss(learner: Learner, labels: Tensor) -> Any:
    """The cross-entropy of a batch, as the methods hand it over."""

    def share(images: Tensor, part: slice) -> Tensor:
        logits = learner.logits(images)
        return F.cross_entropy(logits, labels[part], reduction="sum") / len(labels)

    return share


def assert_near(one: Tensor, other: Tensor, most: float = ROUNDING) -> None:
    """Equal up to a small part of the largest component."""
    assert float((one.double() - other.double()).abs().max()) < most * float(other.abs().max())


# --- gradients through weight gradients -------------------------------------------------------

ARCHITECTURES = ["rn18:width=0.0625", "vgg16:width=0.0625", "senet18:width=0.125"]
"""Every batch norm folds; they follow convolutions with a bias; most of them cannot be folded."""


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_learner_computes_what_the_network_does(arch: str) -> None:
    net = trained(arch)
    learner = Learner(net)
    torch.testing.assert_close(learner.logits(unit()), net(unit()), rtol=1e-4, atol=1e-4)
    assert [w.shape for w in learner.weights] == [w.shape for w in net.parameters()]
    assert not any(weight.requires_grad for weight in net.parameters())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_weight_gradients_are_those_of_the_network_as_trained(arch: str) -> None:
    learner, literal = Learner(trained(arch)), Literal(trained(arch))
    expected = literal.slopes(F.cross_entropy(literal.logits(unit().double()), TINY.labels))
    for piece in (24, 7):
        taken = learner.gradient(mean_loss(learner, TINY.labels), unit(), piece)
        most = max(float(slope.abs().max()) for slope in expected)
        for one, other in zip(taken, expected, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-4 * most)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("measured", ["norm", "cosine"])
def test_gradient_is_that_of_a_literal_double_backward(arch: str, measured: str) -> None:
    learner, literal = Learner(trained(arch)), Literal(trained(arch))
    crafting = job(trained(arch))
    if measured == "norm":
        measure, written_out = length, norm64
    else:
        measure = method("gradient-alignment").measure(crafting, learner)
        towards = reverse_direction(crafting, learner, 24)
        written_out = lambda slopes: 1 - cosine64(slopes, towards)  # noqa: E731
    expected = literal.gradient(written_out, unit(), TINY.labels)
    loss = mean_loss(learner, TINY.labels)
    for piece in (24, 7, 1):  # at once, in pieces, and image by image
        assert_near(learner.pull_back(measure, loss, unit(), piece), expected)
    # Not something that any loss would give:
    plain = literal.gradient(lambda slopes: norm64(slopes[-2:]), unit(), TINY.labels)
    assert F.cosine_similarity(plain.flatten(), expected.flatten(), dim=0) < 0.99


def test_bfloat16_keeps_most_signs() -> None:
    exact, fast = Learner(trained()), Learner(freeze(trained(), CPU, "bf16", folded=False))
    assert fast.logits(unit()).dtype == torch.float32
    assert {weight.dtype for weight in fast.weights} == {torch.float32}
    one, other = (
        learner.pull_back(length, mean_loss(learner, TINY.labels), unit(), 24)
        for learner in (exact, fast)
    )
    assert not one.equal(other)
    assert float((one.sign() == other.sign()).float().mean()) > 0.9


def test_weight_gradient_of_a_linear_network_on_paper() -> None:
    net = linear()
    learner = Learner(net)
    h = ((unit().double() - net.mean.double()) / net.std.double()).flatten(1)
    weight, bias = net.head.weight.double(), net.head.bias.double()
    surplus = (h @ weight.T + bias).softmax(1) - F.one_hot(TINY.labels, 4)
    # The mean of outer products (p - onehot) h^T, and of p - onehot for the bias.
    expected = math.sqrt(
        float(((surplus.T @ h / 24) ** 2).sum()) + float((surplus.mean(0) ** 2).sum())
    )
    slopes = learner.gradient(mean_loss(learner, TINY.labels), unit(), 24)
    assert float(length(slopes)) == pytest.approx(expected, rel=1e-5)
    # One image: |p - onehot| sqrt(|h|^2 + 1).
    alone = learner.gradient(mean_loss(learner, TINY.labels[:1]), unit()[:1], 24)
    by_hand = surplus[0].norm() * math.sqrt(float(h[0].square().sum()) + 1)
    assert float(length(alone)) == pytest.approx(float(by_hand), rel=1e-5)


def test_a_vanished_gradient_asks_for_no_move() -> None:
    leaf = torch.zeros(3, 2, requires_grad=True)
    assert torch.autograd.grad(length([leaf, leaf]), leaf)[0].eq(0).all()


def test_pieces_fill_the_memory_that_there_is() -> None:
    made = method("tensorclog:batch=500")
    assert made.piece(job()) == 500
    assert made.piece(job(bytes_per_gradient=1e6, memory=3e8)) == 100
    assert made.piece(job(bytes_per_gradient=1e6, memory=1e12)) == 500
    assert made.piece(job(bytes_per_gradient=1e9, memory=1.0)) == 1
    whole = method("tensorclog:steps=2,restarts=1,batch=12").craft(job())
    parts = method("tensorclog:steps=2,restarts=1,batch=12").craft(
        job(bytes_per_gradient=1.0, memory=15.0)
    )
    assert differing(whole, parts) < NEAR_ZERO


# --- TensorClog -------------------------------------------------------------------------------


def start_of(crafting: Crafting, epsilon: float = 8 / 255) -> tuple[Tensor, torch.Generator]:
    """The first iterate in float64, and the stream that goes on to draw T."""
    draws = crafting.stream("restart", 0, 0)
    start = torch.randn(unit().shape, generator=draws).double() * epsilon
    return inside(unit().double() + start, epsilon), draws


def seen(draws: torch.Generator) -> Callable[[Tensor], Tensor]:
    """T under the next draw."""
    offsets, mirrored = draw_shifts(24, 4.0, draws, CPU)
    mean = torch.tensor(TINY.mean).double().reshape(1, 3, 1, 1)
    return lambda x: shift(x, offsets.double(), mirrored, mean)


@pytest.mark.parametrize("batch", [500, 24])
def test_tensorclog_step_by_step(batch: int) -> None:
    literal, crafting, epsilon = Literal(trained()), job(), 8 / 255
    x, draws = start_of(crafting)
    for _ in range(3):
        g = literal.gradient(norm64, x, TINY.labels, seen(draws))
        x = inside(x - 0.05 * epsilon * g.sign(), epsilon)
    delta = method(f"tensorclog:steps=3,restarts=1,batch={batch}").craft(crafting)
    assert differing(unit() + delta, x) < NEAR_ZERO


@pytest.mark.parametrize("text", ["tensorclog:shift=0.5", "gradient-alignment:shift=0.5,tau=0.02"])
def test_what_is_minimised_falls(text: str) -> None:
    made, net = method(f"{text},steps=25,restarts=1"), trained()
    learner, crafting = Learner(net), job()
    measure = made.measure(crafting, learner)

    def at(x: Tensor) -> float:
        return float(measure(learner.gradient(mean_loss(learner, TINY.labels), x, 24)))

    delta = made.craft(crafting)
    assert at(unit() + delta) < at(unit()) * 0.97
    assert float(delta.abs().max()) <= 8 / 255 * (1 + 1e-5)


@pytest.mark.parametrize("text", ["tensorclog:steps=2", "gradient-alignment:steps=2"])
def test_restart_with_the_least_measure_is_kept(text: str) -> None:
    made: WeightGradientMethod = method(f"{text},restarts=3,batch=10")
    learner = Learner(trained())
    measure = made.measure(job(), learner)
    attempts = [made.attempt(job(), learner, measure, restart) for restart in range(3)]
    values = [value for _, value in attempts]
    assert len(set(values)) == 3
    assert made.craft(job()).equal(attempts[values.index(min(values))][0])
    assert not made.craft(job(seed=1)).equal(made.craft(job()))


def test_measures_of_restarts_are_summed_over_batches_under_equal_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, learner, crafting = method("tensorclog:restarts=2,batch=10"), Learner(trained()), job()
    same = torch.zeros(TINY.images.shape)
    monkeypatch.setattr(Crafting, "each_chunk", lambda *args: same)
    one, other = (made.attempt(crafting, learner, length, restart)[1] for restart in range(2))
    assert one == other
    expected, literal = 0.0, Literal(trained())
    mean = torch.tensor(TINY.mean).double().reshape(1, 3, 1, 1)
    for number, rows in enumerate(torch.arange(24).split(10)):
        offsets, mirrored = draw_shifts(len(rows), 4.0, crafting.stream("choose", number), CPU)
        moved = shift(unit()[rows].double(), offsets.double(), mirrored, mean)
        loss = F.cross_entropy(literal.logits(moved), TINY.labels[rows])
        expected += float(norm64(literal.slopes(loss)))
    assert one == pytest.approx(expected, rel=1e-4)


def test_closed_form_of_the_transfer_variant_is_a_literal_double_backward() -> None:
    net = freeze(trained(), CPU, "fp32")
    literal, crafting = Literal(net), job(net)
    layer = copy.deepcopy(fresh_head(net, crafting)).double().requires_grad_(True)
    std = net.std.double()
    for clamp in (0.1, 0.01):
        made: TensorClogTransfer = method(f"tensorclog-transfer:steps=4,clamp={clamp}")
        delta = made.craft(crafting)
        expected = []
        for place in range(24):  # one image at a time, as in the released code
            origin = (unit()[place, None].double() - net.mean.double()) / std
            x, label = origin.clone(), TINY.labels[place, None]
            for _ in range(4):
                leaf = x.clone().requires_grad_()
                loss = F.cross_entropy(layer(literal.net.body(leaf)), label)
                slopes = torch.autograd.grad(loss, list(layer.parameters()), create_graph=True)
                value = sum(slope.norm() for slope in slopes)
                value = value + 0.01 * (origin - leaf).norm()
                x = x - torch.autograd.grad(value, leaf)[0]
                x = torch.minimum(torch.maximum(x, origin - clamp), origin + clamp)
            expected.append((x - origin) * std)
        assert_near(delta, torch.cat(expected))
        assert float((delta.double() / std).abs().max()) <= clamp * (1 + 1e-5)
    assert crafting.gradient_images == 2 * 4 * 24


def test_transfer_variant_shortens_gradients_within_the_budget() -> None:
    net = freeze(trained(), CPU, "fp32")
    head = fresh_head(net, job(net))
    bound = math.sqrt(6 / (net.head.in_features + 4))
    assert 0.5 * bound < float(head.weight.abs().max()) <= bound
    assert not head.weight.equal(net.head.weight)
    delta = method("tensorclog-transfer:clamp=none,epsilon=2/255,rate=5").craft(job(net))
    assert float(delta.abs().max()) == pytest.approx(2 / 255, rel=1e-5)
    before, after = (
        gradient_norms(net.features(x), head, TINY.labels) for x in (unit(), unit() + delta)
    )
    assert bool((after < before).all())


# --- gradient alignment -----------------------------------------------------------------------


def test_reverse_cross_entropy_on_paper() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5], [60.0, -40.0, 0.0]]).requires_grad_()
    labels = torch.tensor([1, 0])
    values = reverse_cross_entropy(logits, labels)
    p = logits.detach().double().softmax(1)
    at = values.detach()
    assert float(at[0]) == pytest.approx(-math.log(1 - float(p[0, 1])), rel=1e-6)
    assert float(at[1]) == pytest.approx(60, rel=1e-6)  # where 1 - p is lost to rounding
    (slope,) = torch.autograd.grad(values.sum(), logits)
    others = torch.tensor([1.0, 0.5]).softmax(0)
    # p_y for the true class, p_k less the share among the others for the rest.
    expected = [p[0, 0] - others[0], p[0, 1], p[0, 2] - others[1]]
    torch.testing.assert_close(slope[0], torch.stack(expected).float())
    torch.testing.assert_close(slope[1], torch.tensor([1.0, 0.0, -1.0]), atol=1e-6, rtol=0)


def test_direction_is_the_reverse_gradient_over_all_clean_images() -> None:
    net = linear()
    h = ((unit().double() - net.mean.double()) / net.std.double()).flatten(1)
    logits = h @ net.head.weight.double().T + net.head.bias.double()
    true = F.one_hot(TINY.labels, 4).bool()
    others = logits.masked_fill(true, -math.inf).softmax(1)
    slope = logits.softmax(1) - others  # p_y where it is true, since others is zero there
    crafting = job(net, mask=draw_mask(torch.zeros(24, dtype=torch.int64), 0.25, 0))
    for piece in (24, 5):
        weight, bias = reverse_direction(crafting, Learner(net), piece)
        assert_near(weight, slope.T @ h / 24, 1e-5)
        assert_near(bias, slope.mean(0), 1e-5)
    # Down this direction the true classes become unlikely.
    moved = copy.deepcopy(net)
    moved.head.weight -= 0.1 * weight / weight.norm()
    with torch.no_grad():
        assert F.cross_entropy(moved(unit()), TINY.labels) > F.cross_entropy(
            net(unit()), TINY.labels
        )


@pytest.mark.parametrize("update", ["adam", "sign"])
def test_alignment_step_by_step(update: str) -> None:
    literal, crafting, epsilon, steps = Literal(trained()), job(), 8 / 255, 8
    tau = 0.01 if update == "adam" else 0.1
    loss = reverse_cross_entropy(literal.logits(unit().double()), TINY.labels).mean()
    towards = literal.slopes(loss)
    std = torch.tensor(TINY.std).double().reshape(1, 3, 1, 1)
    x, draws = start_of(crafting)
    delta = nn.Parameter((x - unit().double()) / std)  # normalised, as in the released code
    optimizer = torch.optim.Adam([delta], lr=tau)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5, 7])
    for _ in range(steps):
        x = unit().double() + delta.detach() * std
        g = literal.gradient(lambda s: 1 - cosine64(s, towards), x, TINY.labels, seen(draws))
        if update == "adam":
            delta.grad = g.sign()
            optimizer.step()
            schedule.step()
        else:
            delta.data -= tau * epsilon / std * g.sign()
        delta.data = (inside(unit().double() + delta.data * std, epsilon) - unit().double()) / std
    text = f"gradient-alignment:steps={steps},restarts=1,update={update},tau={tau}"
    made = method(text).craft(crafting)
    # A sign that differs once keeps Adam's momenta apart for a while.
    assert differing(made, delta.detach() * std) < 2 * NEAR_ZERO
    assert float((made - (start_of(crafting)[0] - unit())).abs().max()) > 0.5 * LEVEL


def test_rate_falls_after_three_five_and_seven_eighths() -> None:
    wide = Budget("linf", 1.0)
    grey = Iterate(torch.full((1, 3, 2, 2), 0.5), wide)
    move, ones = SignedAdam(torch.full((1, 3, 1, 1), 0.01), 240), torch.ones(1, 3, 2, 2)
    places = [0.0]
    for _ in range(240):  # on a constant sign Adam's step is its rate
        move(grey, ones)
        places.append(-float(grey.delta[0, 0, 0, 0]))
        if places[-1] > 0.4:
            grey = Iterate(torch.full((1, 3, 2, 2), 0.5), wide)
            places[-1] = 0.0
    rates = [after - before for before, after in itertools.pairwise(places)]
    for step, rate in ((0, 0.01), (89, 0.01), (90, 1e-3), (149, 1e-3), (150, 1e-4), (209, 1e-4)):
        assert rates[step] == pytest.approx(rate, rel=0.02), step
    assert rates[210] == rates[239] == pytest.approx(1e-5, rel=0.2)


def test_alignment_turns_the_gradient_towards_the_reverse() -> None:
    made: GradientAlignment = method("gradient-alignment:steps=25,restarts=1,tau=0.02,shift=0.5")
    literal = Literal(trained())
    reverse = reverse_cross_entropy(literal.logits(unit().double()), TINY.labels).mean()
    towards = literal.slopes(reverse)
    cosines = []
    for x in (unit().double(), (unit() + made.craft(job())).double()):
        slopes = literal.slopes(F.cross_entropy(literal.logits(x), TINY.labels))
        cosines.append(float(cosine64(slopes, towards)))
    assert cosines[1] > cosines[0] + 0.1, cosines


# --- AdvPoison, untargeted --------------------------------------------------------------------


def test_untargeted_steps_climb_the_loss_of_the_true_class() -> None:
    net, epsilon, crafting = freeze(trained(), CPU, "fp32"), 8 / 255, job()
    draws = crafting.stream("restart", 0, 0)
    x = inside(unit() + epsilon * torch.randn(unit().shape, generator=draws), epsilon)
    mean = torch.tensor(TINY.mean).reshape(1, 3, 1, 1)
    for _ in range(3):
        leaf = x.clone().requires_grad_()
        offsets, mirrored = draw_shifts(24, 4.0, draws, CPU)
        value = F.cross_entropy(net(shift(leaf, offsets, mirrored, mean)), TINY.labels)
        x = inside(x + 0.05 * epsilon * torch.autograd.grad(value, leaf)[0].sign(), epsilon)
    delta = method("advpoison-untargeted:steps=3,restarts=1").craft(job(net))
    assert differing(unit() + delta, x) < NEAR_ZERO


def test_untargeted_images_err_and_targeted_ones_please() -> None:
    net = linear()
    before = F.cross_entropy(net(unit()), TINY.labels)
    fled = method("advpoison-untargeted:steps=40,restarts=1,shift=1").craft(job(net))
    assert F.cross_entropy(net(unit() + fled), TINY.labels) > before + 0.1
    sought = method("advpoison:steps=40,restarts=1,shift=1,target_shift=0").craft(job(net))
    assert F.cross_entropy(net(unit() + sought), TINY.labels) < before - 0.1


def test_untargeted_keeps_the_restart_that_errs_most(monkeypatch: pytest.MonkeyPatch) -> None:
    net = linear()
    good, bad = (sign * 0.03 * unit_gradient(net) for sign in (1, -1))
    deltas = iter([bad, good, bad])
    monkeypatch.setattr(Crafting, "each_chunk", lambda *args: next(deltas))
    assert method("advpoison-untargeted:restarts=3").craft(job(net)).equal(good)


def unit_gradient(net: Network) -> Tensor:
    """The sign of the gradient of the true label's cross-entropy."""
    leaf = unit().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(net(leaf), TINY.labels), leaf)[0].sign()


def test_targeted_form_is_known_by_the_same_settings_as_before() -> None:
    assert method("advpoison").identity() == {
        "name": "advpoison",
        "version": 1,
        "settings": {
            "epsilon": 8 / 255,
            "steps": 250,
            "step_ratio": 0.05,
            "restarts": 8,
            "target_shift": 1,
            "shift": 4.0,
            "batch": 500,
            "surrogate": "rn18",
            "surrogate_recipe": "own",
        },
    }


# --- HYPO -------------------------------------------------------------------------------------


def test_l2_steps_are_unit_vectors_kept_in_the_ball() -> None:
    net, epsilon = freeze(trained(), CPU, "fp32"), 0.3
    x = unit().double()
    literal = Literal(net)
    for _ in range(7):
        leaf = x.clone().requires_grad_()
        value = F.cross_entropy(literal.logits(leaf), TINY.labels, reduction="sum")
        (g,) = torch.autograd.grad(value, leaf)
        x = x - 0.2 * epsilon * g / g.flatten(1).norm(dim=1)[:, None, None, None]
        delta = x - unit().double()
        size = delta.flatten(1).norm(dim=1).clamp_min(epsilon)[:, None, None, None]
        x = (unit().double() + delta * epsilon / size).clamp(0, 1)
    made: Hypocritical = method(f"hypo:steps=7,epsilon={epsilon}")
    torch.testing.assert_close((unit() + made.craft(job(net))).double(), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("text", ["hypo:steps=20", "hypo-linf:steps=20,shift=1"])
def test_hypocritical_images_have_a_lower_loss_inside_the_budget(text: str) -> None:
    net, made = linear(), method(text)
    crafting = job(net)
    delta = made.craft(crafting)
    before, after = (F.cross_entropy(net(x), TINY.labels) for x in (unit(), unit() + delta))
    assert after < before - 0.1, (before, after)
    released = release(TINY, delta, crafting.mask, made.budget).images
    levels = (released.short() - TINY.images.short()).double()
    if made.norm == "l2":
        assert made.epsilon == 0.5
        sizes = levels.flatten(1).norm(dim=1) / 255
        assert 0.95 * 0.5 < float(sizes.max()) <= 0.5
    else:
        assert float(levels.abs().max()) == 8


def test_linf_form_sees_images_shifted_into_black() -> None:
    net, epsilon, crafting = freeze(trained(), CPU, "fp32"), 8 / 255, job()
    x = unit()
    streams = [crafting.stream("shifts", number) for number in range(3)]
    for _ in range(3):
        leaf = x.clone().requires_grad_()
        draws = [draw_shifts(n, 4.0, s, CPU) for n, s in zip((10, 10, 4), streams, strict=True)]
        offsets, mirrored = (torch.cat(parts) for parts in zip(*draws, strict=True))
        moved = shift(leaf, offsets, mirrored, torch.zeros(()))
        value = F.cross_entropy(net(moved), TINY.labels, reduction="sum")
        x = inside(x - 0.1 * epsilon * torch.autograd.grad(value, leaf)[0].sign(), epsilon)
    delta = method("hypo-linf:steps=3,batch=10").craft(job(net))
    assert differing(unit() + delta, x) < NEAR_ZERO


def test_hypo_without_shifts_does_not_care_for_chunks() -> None:
    net = freeze(trained(), CPU, "fp32")
    whole = method("hypo:steps=3").craft(job(net))
    parts = method("hypo:steps=3").craft(job(net, bytes_per_gradient=1.0, memory=5.0))
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=0)


def test_settings_of_the_sources() -> None:
    (own,) = method("hypo").surrogates(small_recipe())
    assert (own.arch, own.epochs, own.defense) == ("vgg16", (150,), "none")
    assert own.recipe is not None
    assert [own.recipe.learning_rate(epoch) for epoch in (0, 99, 100, 125)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.001]
    )
    (robust,) = method("hypo-linf").surrogates(small_recipe())
    assert robust.recipe is not None
    assert (robust.arch, robust.recipe.epochs, robust.recipe.learning_rate(9)) == ("rn18", 10, 0.1)
    attack = build(DEFENSES, parse_one(robust.defense, DEFENSES))
    assert attack.settings() == {"epsilon": 2 / 255, "step_size": 0.5 / 255, "steps": 10}
    # APBench's: l-inf 8/255, .8/255, a plain ResNet-18.
    apbench: HypocriticalLinf = method(
        "hypo-linf:robust_epsilon=0,shift=none,surrogate_recipe=victim"
    )
    assert str(apbench.budget) == "l∞ 8/255"
    assert apbench.step_ratio * apbench.epsilon == pytest.approx(0.8 / 255)
    assert apbench.shift is None
    (plain,) = apbench.surrogates(small_recipe())
    assert plain == Surrogate("rn18", (small_recipe().epochs,), small_recipe())


# --- surrogates that are trained with a defense -----------------------------------------------


def surrogate_job(surrogate: Surrogate) -> SurrogateJob:
    return SurrogateJob(
        surrogate,
        build(ARCHS, parse_one(surrogate.arch, ARCHS)),
        small_recipe(),
        5,
        "fp32",
        "digest",
        build(DEFENSES, parse_one(surrogate.defense, DEFENSES)),
    )


def test_plain_surrogates_keep_the_identity_that_they_had() -> None:
    before = {
        "schema": 1,
        "kind": "surrogate",
        "train": "digest",
        "arch": {"name": "rn18", "version": 1, "settings": {"width": 1.0}},
        "recipe": small_recipe().identity(),
        "precision": "fp32",
        "seed": 5,
        "index": 2,
    }
    plain = surrogate_job(Surrogate("rn18", (5,), index=2))
    assert plain.identity == before
    assert plain.slug == "rn18-quick"
    # Handing it out with its batch norms does not make it another training.
    assert surrogate_job(Surrogate("rn18", (5,), index=2, folded=False)).identity == before
    robust = surrogate_job(Surrogate("rn18", (5,), index=2, defense="at-linf:epsilon=2/255"))
    attack = build(DEFENSES, parse_one("at-linf:epsilon=2/255", DEFENSES))
    assert robust.identity == {**before, "defense": attack.identity()}
    assert robust.slug == "rn18-quick-at-linf"


def test_tests_train_surrogates_with_their_defense() -> None:
    arch, recipe = "rn18:width=0.0625", dataclasses.replace(small_recipe(), epochs=1)
    text = "at-linf:epsilon=2/255,step_size=1/255,steps=2"
    (plain,) = checkpoints(Surrogate(arch, (1,)), TINY, recipe, 0)
    (robust,) = checkpoints(Surrogate(arch, (1,), defense=text), TINY, recipe, 0)
    made = build(ARCHS, parse_one(arch, ARCHS))
    for network, defense in (
        (plain, Defense()),
        (robust, build(DEFENSES, parse_one(text, DEFENSES))),
    ):
        training = Training(made, TINY, recipe, defense, 0, "surrogate-0", CPU, "fp32")
        training.run_epoch()
        assert network(unit()).equal(freeze(training.network, CPU, "fp32")(unit()))
    assert not plain(unit()).equal(robust(unit()))
    (whole,) = checkpoints(Surrogate(arch, (1,), folded=False), TINY, recipe, 0)
    assert any(isinstance(module, nn.BatchNorm2d) for module in whole.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    torch.testing.assert_close(whole(unit()), plain(unit()), rtol=1e-4, atol=1e-4)


def test_runs_train_them_too_and_share_what_is_equal(tmp_path: Path) -> None:
    grid = Grid(
        methods="tensorclog,advpoison:steps=1,hypo-linf",
        archs="rn18:width=0.0625",
        dataset="synthetic:train=48,test=24,size=8",
        recipe="quick:epochs=2,batch_size=16,width=0.0625,train_images=none,curve_images=none",
        precision="fp32",
    )
    outcome = run(
        grid,
        results_dir=tmp_path / "results",
        store=tmp_path / "store",
        workers=1,
        threads=1,
        quiet=True,
    )
    assert not outcome.failed
    assert not outcome.unfinished
    assert set(load_results(tmp_path / "results")["status"]) == {"done"}
    kept = sorted(
        path.name.rpartition("-")[0] for path in (tmp_path / "store/surrogates").iterdir()
    )
    assert kept == ["rn18-quick", "rn18-quick-at-linf"]


# --- cost -------------------------------------------------------------------------------------


def test_costs_are_those_of_the_tables() -> None:
    # A double backward pass counts as three input gradients; gradient alignment takes one pass
    # over the clean images besides.
    assert method("tensorclog").gradient_images(1) == 250 * 8 * 3
    assert method("tensorclog-transfer").gradient_images(1) == 100
    assert method("gradient-alignment").gradient_images(1) == 240 * 8 * 3 + 1
    assert method("advpoison-untargeted").gradient_images(1) == 2000
    assert method("hypo").gradient_images(1) == method("hypo-linf").gradient_images(1) == 100


@pytest.mark.parametrize(
    "text",
    [
        *("tensorclog:steps=2,restarts=2,batch=10", "tensorclog-transfer:steps=3"),
        *("gradient-alignment:steps=2,restarts=2,batch=10", "hypo:steps=2"),
        "hypo-linf:steps=2,batch=10",
    ],
)
def test_gradients_counted_are_those_announced(text: str) -> None:
    made = method(text)
    net = trained() if made.surrogates(small_recipe())[0].folded is False else linear()
    for ratio in (1.0, 0.75):
        crafting = job(net, mask=draw_mask(torch.zeros(24, dtype=torch.int64), ratio, 0))
        made.craft(crafting)
        announced = made.gradient_images(round(24 * ratio))
        if "alignment" in text:  # the pass over all clean images is announced for protected ones
            announced += 24 - round(24 * ratio)
        assert crafting.gradient_images == announced


def test_an_adversarial_training_is_planned_at_its_cost(tmp_path: Path) -> None:
    plain, robust = (
        Grid(
            methods=f"hypo-linf:robust_epsilon={radius},robust_steps=3",
            archs="rn18:width=0.0625",
            dataset="synthetic:train=48,test=24,size=8",
            recipe="quick:epochs=2,train_images=none",
            precision="fp32",
        )
        for radius in ("0", "2/255")
    )
    work = [surrogate_work(grid, tmp_path) for grid in (plain, robust)]
    assert work[1] == pytest.approx(3 * work[0])  # (2 steps + 3) / 3


def surrogate_work(grid: Grid, folder: Path) -> float:
    """What the plan of a grid says of its one surrogate."""
    expansion = Expansion(grid)
    splits = expansion.source.load(Places(folder, folder, download=False))
    data = TrainingData.cut(splits, expansion.recipe, expansion.source)
    plan = make_plan(expansion.cells(data), data, Store(folder / "store"), folder / "results")
    (task,) = [task for task in plan.tasks.values() if task.kind == "surrogate"]
    assert task.flop > 0
    return task.flop


# --- edges ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["tensorclog:steps=1,restarts=2", "tensorclog-transfer", "gradient-alignment", "hypo"],
)
def test_nothing_to_protect_costs_nothing(text: str) -> None:
    made, none = method(text), torch.zeros(24, dtype=torch.bool)
    crafting = job(linear(), mask=none, seed=-1)
    images, _ = release(TINY, made.craft(crafting), none, made.budget)
    assert images.equal(TINY.images)
    assert crafting.gradient_images == 0


@pytest.mark.parametrize(
    "text",
    [
        *("tensorclog:batch=0", "tensorclog:restarts=0", "gradient-alignment:steps=-1"),
        *("gradient-alignment:update=momentum", "tensorclog-transfer:clamp=-1", "hypo:steps=-1"),
        *("hypo:batch=0", "hypo-linf:robust_epsilon=2", "hypo-linf:robust_steps=0"),
        "tensorclog-transfer:steps=-1",
    ],
)
def test_settings_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        method(text)

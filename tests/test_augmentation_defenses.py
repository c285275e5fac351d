"""Augmentation policies against torchvision's own classes, plasma fractals against a slow loop."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from bench import policies
from bench.component import build, parse_one
from bench.data import to_levels, to_unit
from bench.defense import Defense, Step
from bench.errors import UsageError
from bench.network import Network
from bench.policies import NAMES, OPERATIONS, SIGNED, Draws, apply, draw_one, narrow, scale, wide
from bench.registry import DEFENSES
from bench.seeding import stream
from bench.stack import build_defense
from bench.testing import small_arch, small_splits, victim
from defenses import autoaugment, ueraser
from defenses.autoaugment import POLICIES, AutoAugment
from defenses.none import NoDefense
from defenses.randaugment import RandAugment
from defenses.ueraser import (
    Augmenting,
    UEraserDefault,
    UEraserLite,
    UEraserMax,
    draw_plasma,
    plasma,
    plasma_brightness,
    plasma_contrast,
    shuffle_channels,
)

CLASSES = 4
BINS = 31
SIZE = (20, 28)
SPACES = {"narrow": (narrow, v2.RandAugment), "wide": (wide, v2.TrivialAugmentWide)}
BLENDS = {"Color", "Contrast", "Sharpness"}
"""Cut off at whole levels: float sums in another order may differ by one, here and there."""
TURNS = {"ShearX", "ShearY", "Rotate"}
"""Where a pixel is equally near to two others, rounding of coordinates decides between them."""


def step(seed: int = 0, epoch: int = 0, epochs: int = 1) -> Step:
    return Step(epoch, epochs, CLASSES, stream(seed, "test"))


def some_levels(size: tuple[int, int] = SIZE, count: int = 6) -> Tensor:
    """Noise, a grey image, one of low contrast, a flat one, a ramp, and one with few levels."""
    shape = (count, 3, *size)
    images = torch.randint(256, shape, generator=stream(0, "images"), dtype=torch.uint8)
    images[1] = images[1, :1]
    images[2] = images[2] // 4 + 60
    images[3] = 7
    images[4] = (torch.arange(size[1]) * 9).to(torch.uint8)
    images[5] = images[5] // 100 * 100
    return images


def some_images(count: int) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=stream(0, "images"))


def some_labels(count: int) -> Tensor:
    """Every second label is mixed."""
    labels = F.one_hot(torch.arange(count) % CLASSES, CLASSES).float()
    labels[::2] = 0.7 * labels[::2] + 0.3 * labels[::2].roll(1, 1)
    return labels


def small_network() -> Network:
    train = small_splits().train
    return small_arch().network(CLASSES, (16, 16), train.mean, train.std, stream(0, "network"))


def everything(name: str, magnitude: float, count: int) -> Draws:
    """The same operation for every image."""
    operations = torch.full((count,), NAMES.index(name))
    return Draws(operations, torch.full((count,), magnitude, dtype=torch.float64))


def close(ours: Tensor, theirs: Tensor, level: int, share: float) -> bool:
    apart = (ours.int() - theirs.int()).abs()
    return bool(apart.max() <= level and apart.ne(0).float().mean() <= share)


def binomial_error(chance: float, count: int) -> float:
    """Four standard deviations, which are overstepped once in 16000 times."""
    return 4 * math.sqrt(chance * (1 - chance) / count)


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes torch.rand give one value, and torch.randint what a function of its bound says."""

    def fix(value: float, integers: Callable[[int], Any] = lambda bound: 0) -> None:
        def rand(*size: Any, generator: Any = None) -> Tensor:
            del generator
            return torch.full(size[0] if isinstance(size[0], tuple) else size, value)

        def randint(bound: int, size: tuple[int, ...], generator: Any = None) -> Tensor:
            del generator
            return torch.as_tensor(integers(bound)).expand(size)

        monkeypatch.setattr(torch, "rand", rand)
        monkeypatch.setattr(torch, "randint", randint)

    return fix


class TestOperations:
    @pytest.mark.parametrize("space", SPACES)
    @pytest.mark.parametrize("size", [(32, 32), SIZE])
    def test_magnitudes_are_torchvisions(self, space: str, size: tuple[int, int]) -> None:
        ranges, theirs = SPACES[space][0](size), SPACES[space][1]._AUGMENTATION_SPACE
        assert list(ranges) == list(theirs)
        for bins in (10, BINS):
            for row, (name, (magnitudes, signed)) in zip(
                scale(ranges, bins), theirs.items(), strict=True
            ):
                expected = magnitudes(bins, *size)
                if expected is None:
                    assert row.eq(0).all()
                else:
                    assert row.equal(expected.double()), name
                assert signed == (name in SIGNED)

    @pytest.mark.parametrize("space", SPACES)
    @pytest.mark.parametrize("name", [name for name in NAMES if name != "Invert"])
    def test_every_operation_is_torchvisions(
        self, space: str, name: str, fixed: Callable[..., None]
    ) -> None:
        images = some_levels()
        ranges, transform = SPACES[space]
        magnitudes, signed = transform._AUGMENTATION_SPACE[name]
        ours = scale({name: ranges(SIZE)[name]}, BINS)[0]
        for number, sign in itertools.product(range(BINS), (1, -1) if signed else (1,)):

            def only(bins: int, height: int, width: int, number: int = number) -> Any:
                values = magnitudes(bins, height, width)
                return None if values is None else values[number].expand(bins)

            one = type("One", (transform,), {"_AUGMENTATION_SPACE": {name: (only, signed)}})
            theirs = one(num_ops=1, magnitude=0) if transform is v2.RandAugment else one()
            fixed(0.25 if sign < 0 else 0.75)  # heads or tails
            expected = theirs(images)
            found = apply(images, everything(name, sign * ours[number].item(), len(images)))
            if name in BLENDS:
                assert close(found, expected, level=1, share=0.02), number
            elif name in TURNS:
                assert close(found, expected, level=255, share=0.005), number
            else:
                assert found.equal(expected), number

    def test_inversion(self) -> None:
        images = some_levels()
        inverted = apply(images, everything("Invert", 0, len(images)))
        assert inverted.equal(v2.functional.invert(images))

    def test_cases_by_hand(self) -> None:
        image = torch.zeros(1, 3, 5, 5, dtype=torch.uint8)
        image[0, :, 2, 2], image[0, :, 2, 3] = 100, 200

        def lit(name: str, magnitude: float) -> dict[tuple[int, int], int]:
            found = apply(image, everything(name, magnitude, 1))[0, 0]
            return {(int(y), int(x)): int(found[y, x]) for y, x in found.nonzero()}

        assert lit("TranslateX", 1.9) == {(2, 3): 100, (2, 4): 200}
        assert lit("TranslateX", -1.9) == {(2, 1): 100, (2, 2): 200}
        assert lit("TranslateY", 2.0) == {(4, 2): 100, (4, 3): 200}
        assert lit("Rotate", 90.0) == {(2, 2): 100, (1, 2): 200}
        # Seen from the upper edge the middle row lies at 2.5, so it moves by 1 with a tangent .4.
        assert lit("ShearX", 0.4) == {(2, 1): 100, (2, 2): 200}
        assert lit("ShearY", -0.4) == {(3, 2): 100, (3, 3): 200}
        assert lit("Brightness", 0.5) == {(2, 2): 150, (2, 3): 255}
        assert lit("Posterize", 1) == {(2, 3): 128}
        assert lit("Solarize", 0.5)[2, 3] == 55
        assert lit("Solarize", 0.5)[2, 2] == 100

    def test_every_image_has_its_own(self) -> None:
        images = some_levels().repeat(20, 1, 1, 1)
        before = images.clone()
        draws = draw_one(len(images), narrow(SIZE), BINS, stream(0, "draws"))
        assert len(set(draws.operations.tolist())) == 14
        together = apply(images, draws)
        assert images.equal(before)
        for row in range(len(images)):
            alone = slice(row, row + 1)
            single = Draws(draws.operations[alone], draws.magnitudes[alone])
            name = NAMES[int(draws.operations[row])]
            tolerance = {"level": 255, "share": 0.005 if name in TURNS else 0}
            if name in BLENDS:
                tolerance = {"level": 1, "share": 0.02}
            assert close(apply(images[alone], single), together[alone], **tolerance), name

    def test_nothing_else_than_what_was_drawn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        images = some_levels()
        called: list[tuple[str, list[float]]] = []

        def spy(name: str) -> Callable[[Tensor, Tensor], Tensor]:
            def operation(levels: Tensor, magnitudes: Tensor) -> Tensor:
                called.append((name, magnitudes.tolist()))
                return OPERATIONS[name](levels, magnitudes)

            return operation

        spies = {name: policies.identity if name == "Identity" else spy(name) for name in NAMES}
        monkeypatch.setattr(policies, "OPERATIONS", spies)
        names = ["Identity", "Rotate", "Identity", "Invert", "Rotate", "Identity"]
        operations = torch.tensor([NAMES.index(name) for name in names])
        found = apply(images, Draws(operations, torch.arange(6.0).double()))
        assert called == [("Rotate", [1.0, 4.0]), ("Invert", [3.0])]
        assert found[[0, 2, 5]].equal(images[[0, 2, 5]])
        assert found[3].equal(255 - images[3])


class TestDraws:
    COUNT = 28_000

    @pytest.mark.parametrize("space", SPACES)
    def test_law(self, space: str) -> None:
        """Operations, magnitudes and signs are uniform, and independent of each other."""
        ranges = SPACES[space][0](SIZE)
        draws = draw_one(self.COUNT, ranges, BINS, stream(0, "draws"))
        for name, row in zip(ranges, scale(ranges, BINS), strict=True):
            found = draws.magnitudes[draws.operations == NAMES.index(name)]
            assert len(found) / self.COUNT == pytest.approx(
                1 / 14, abs=binomial_error(1 / 14, self.COUNT)
            )
            values = found.abs() if name in SIGNED else found
            assert set(values.tolist()) == set(row.tolist())
            for value, bins in Counter(row.tolist()).items():
                chance = bins / BINS
                share = values.eq(value).double().mean().item()
                assert share == pytest.approx(chance, abs=binomial_error(chance, len(found)))
            if name in SIGNED:
                strong = found[values > row.abs().mean()]
                share = strong.lt(0).double().mean().item()
                assert share == pytest.approx(0.5, abs=binomial_error(0.5, len(strong)))

    def test_one_magnitude(self) -> None:
        ranges = narrow(SIZE)
        draws = draw_one(2000, ranges, BINS, stream(0, "draws"), magnitude=9)
        for name, row in zip(ranges, scale(ranges, BINS), strict=True):
            found = set(draws.magnitudes[draws.operations == NAMES.index(name)].tolist())
            value = row[9].item()
            assert found == ({value, -value} if name in SIGNED else {value})

    def test_signs_take_as_many_numbers_whatever_is_drawn(self) -> None:
        one, two = stream(0, "signs"), stream(0, "signs")
        policies.draw_signs(torch.full((9,), NAMES.index("Invert")), one)
        policies.draw_signs(torch.full((9,), NAMES.index("Rotate")), two)
        assert torch.rand(3, generator=one).equal(torch.rand(3, generator=two))


class TestRandAugment:
    def test_against_torchvision(self, fixed: Callable[..., None]) -> None:
        """All operations at once, twice in a row, both with the sign that is drawn."""
        images = some_levels(count=14)
        for coin, magnitude in itertools.product((0.25, 0.75), (0, 9, 30)):
            fixed(coin, lambda bound: torch.arange(bound))
            found, labels = RandAugment(magnitude=magnitude).batch(
                to_unit(images), some_labels(14), step()
            )
            assert labels.equal(some_labels(14))
            theirs = v2.RandAugment(num_ops=2, magnitude=magnitude)
            for number in range(14):
                fixed(coin, lambda bound, number=number: number)
                expected = theirs(images[number])
                # Blending twice widens a difference of one level.
                assert close(to_levels(found[number]), expected, level=3, share=0.03), number

    def test_number_of_operations(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[Draws] = []

        def record(levels: Tensor, draws: Draws) -> Tensor:
            seen.append(draws)
            return levels

        monkeypatch.setattr("defenses.randaugment.apply", record)
        images = to_unit(some_levels())
        found, _ = RandAugment(num_ops=3).batch(images, some_labels(6), step())
        assert found.equal(images)  # whole levels survive the way there and back
        assert len(seen) == 3
        assert len({tuple(draws.operations.tolist()) for draws in seen}) == 3  # drawn anew


def torchvisions_table(policy: str) -> list[Any]:
    kind = v2.AutoAugmentPolicy[policy.upper()]
    return v2.AutoAugment(kind)._get_policies(kind)


class TestAutoAugment:
    def test_its_policies_are_knowledge(self) -> None:
        """Found by training on clean images; the uniform draw of RandAugment needs none."""
        assert AutoAugment().side_information == "public-model"
        assert RandAugment().side_information == "none"

    @pytest.mark.parametrize("policy", POLICIES)
    def test_table_is_torchvisions(self, policy: str) -> None:
        operations, probabilities, magnitudes = autoaugment.read(policy)
        expected = torchvisions_table(policy)
        assert len(expected) == len(operations) == 25
        rows = zip(operations, probabilities, magnitudes, expected, strict=True)
        for names, chances, numbers, pair in rows:
            assert [NAMES[name] for name in names] == [name for name, _, _ in pair]
            assert chances.tolist() == pytest.approx([chance for _, chance, _ in pair])
            assert numbers.tolist() == [number or 0 for _, _, number in pair]

    def test_some_rows_of_the_paper(self) -> None:
        """Table 7 of the appendix, first and last sub-policy for CIFAR-10."""
        rows = [line.split() for line in POLICIES["cifar10"].strip().splitlines()]
        assert rows[0] == ["Invert", "0.1", "-", ">", "Contrast", "0.2", "6"]
        assert rows[-1] == ["TranslateY", "0.7", "9", ">", "AutoContrast", "0.9", "-"]

    @pytest.mark.parametrize("policy", POLICIES)
    def test_against_torchvision(self, policy: Any, fixed: Callable[..., None]) -> None:
        """Every sub-policy, with more and fewer of its operations done, and either sign."""
        images = some_levels(count=25)
        kind = v2.AutoAugmentPolicy[policy.upper()]
        worst = 0.0
        for coin in (1e-6, 0.45, 0.55, 0.85, 0.99):
            fixed(coin, lambda bound: torch.arange(bound))
            found, _ = AutoAugment(policy).batch(to_unit(images), some_labels(25), step())
            for number in range(25):
                fixed(coin, lambda bound, number=number: number)
                expected = v2.AutoAugment(kind)(images[number])
                apart = to_levels(found[number]).ne(expected).float().mean().item()
                worst = max(worst, apart)
        assert worst < 0.03

    @pytest.mark.parametrize("policy", POLICIES)
    def test_law_of_the_draws(self, policy: str) -> None:
        """How often each pair of operations is done, and their signs."""
        count = 40_000
        first, second = autoaugment.draw(policy, count, SIZE, stream(0, "draws"))
        expected: Counter[tuple[str, str]] = Counter()
        for (a, p, _), (b, q, _) in torchvisions_table(policy):
            for one, other in itertools.product((True, False), repeat=2):
                names = (a if one else "Identity", b if other else "Identity")
                expected[names] += (p if one else 1 - p) * (q if other else 1 - q) / 25
        pairs = zip(first.operations.tolist(), second.operations.tolist(), strict=True)
        found = Counter((NAMES[a], NAMES[b]) for a, b in pairs)
        assert found.keys() <= {names for names, chance in expected.items() if chance}
        for names, chance in expected.items():
            # A little more than for one number, as there are many.
            error = 1.2 * binomial_error(chance, count) + 1e-4
            assert found[names] / count == pytest.approx(chance, abs=error), names
        magnitudes = torch.cat([first.magnitudes, second.magnitudes])
        operations = torch.cat([first.operations, second.operations])
        signed = torch.tensor([name in SIGNED for name in NAMES])[operations] & magnitudes.ne(0)
        share = magnitudes[signed].lt(0).double().mean().item()
        assert share == pytest.approx(0.5, abs=binomial_error(0.5, int(signed.sum())))
        assert magnitudes[~signed].ge(0).all()

    def test_operations_keep_the_magnitudes_of_their_row(self) -> None:
        first, second = autoaugment.draw("svhn", 20_000, (32, 32), stream(0, "draws"))
        allowed = {("Identity", 0.0)}
        spaces = v2.AutoAugment._AUGMENTATION_SPACE
        for name, _, number in itertools.chain(*torchvisions_table("svhn")):
            values = spaces[name][0](10, 32, 32)
            allowed.add((name, 0.0 if values is None else float(values[number])))
        for draws in (first, second):
            pairs = zip(draws.operations.tolist(), draws.magnitudes.abs().tolist(), strict=True)
            assert {(NAMES[name], value) for name, value in pairs} <= allowed

    @pytest.mark.parametrize("text", ["randaugment", "autoaugment", "ueraser-lite"])
    def test_images_out_of_range_are_clipped_to_levels(self, text: str) -> None:
        images = 2 * torch.rand(40, 3, *SIZE, generator=stream(0, "images")) - 0.5
        found, _ = build_defense(parse_one(text, DEFENSES)).batch(images, some_labels(40), step())
        assert found.equal(to_unit(to_levels(found)))


def slow_plasma(noise: Sequence[Sequence[float]], roughness: float) -> list[list[float]]:
    """One point after the other, in order of their level."""
    side = len(noise)
    value: dict[tuple[int, int], float] = {}
    distance, share = (side - 1) // 2, 1.0
    for y, x in itertools.product(range(0, side, distance), repeat=2):
        value[y, x] = noise[y][x]
    while distance > 1:
        half, share = distance // 2, share * roughness
        diagonal = list(itertools.product((-half, half), repeat=2))
        straight = [(-half, 0), (half, 0), (0, -half), (0, half)]
        for odd, near in ((2, diagonal), (1, straight)):
            places = itertools.product(range(0, side, half), repeat=2)
            for y, x in [(y, x) for y, x in places if y // half % 2 + x // half % 2 == odd]:
                known = [value[y + v, x + u] for v, u in near if (y + v, x + u) in value]
                assert len(known) in (3, 4)
                mean = sum(known) / len(known)
                value[y, x] = (1 - share) * mean + share * noise[y][x]
        distance = half
    return [[value[y, x] for x in range(side)] for y in range(side)]


class TestPlasma:
    @pytest.mark.parametrize("side", [3, 5, 9, 17])
    def test_against_a_slow_loop(self, side: int) -> None:
        noise = torch.rand(4, side, side, generator=stream(0, "noise"))
        roughness = torch.tensor([0.0, 0.3, 0.7, 1.0])
        found = plasma(noise, roughness)
        for one, own, r in zip(found, noise.double(), roughness.double(), strict=True):
            expected = torch.tensor(slow_plasma(own.tolist(), r.item())).float()
            torch.testing.assert_close(one, expected, rtol=0, atol=1e-6)

    def test_cases_by_hand(self) -> None:
        noise = torch.rand(2, 33, 33, generator=stream(0, "noise"))
        assert plasma(noise[:1], torch.ones(1)).equal(noise[:1])  # nothing but noise
        flat = torch.full((2, 33, 33), 0.25)
        torch.testing.assert_close(plasma(flat, torch.tensor([0.2, 0.9])), flat)
        corner = torch.zeros(1, 5, 5)
        corner[0, 0, 0] = 1
        expected = torch.tensor(
            # .25 in the middle of the first square; (1 + 0 + .25) / 3 on the border beside it;
            # (.25 + 0 + 0 + 0) / 4 inside, between it and the next.
            [
                [1, 1.25 / 3, 0, 0, 0],
                [1.25 / 3, 1 / 4, 1 / 16, 0, 0],
                [0, 1 / 16, 0, 0, 0],
                [0, 0, 0, 0, 0],
                [0, 0, 0, 0, 0],
            ]
        )
        torch.testing.assert_close(plasma(corner, torch.zeros(1))[0], expected)

    def test_stays_in_range_around_one_half(self) -> None:
        count = 600
        noise = torch.rand(count, 33, 33, generator=stream(0, "noise"))
        for r in (0.3, 0.5, 0.7):
            fields = plasma(noise, torch.full((count,), r))
            assert fields.min() >= 0
            assert fields.max() <= 1 + 1e-6
            means = fields.mean((1, 2))
            assert means.mean().item() == pytest.approx(
                0.5, abs=4 * means.std().item() / math.sqrt(count)
            )

    def test_rougher_fields_have_less_alike_neighbours(self) -> None:
        noise = torch.rand(300, 33, 33, generator=stream(0, "noise"))
        unlike = []
        for r in (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0):
            fields = plasma(noise, torch.full((300,), r))
            ratio = fields.diff(dim=2).var() / fields.var()
            unlike.append(ratio.item())
        assert unlike == sorted(unlike)
        assert unlike[0] < 0.02  # nine points and straight lines between them, 16 pixels long
        assert unlike[-1] == pytest.approx(2, abs=0.05)  # independent values

    @pytest.mark.parametrize("size", [(32, 32), SIZE, (16, 16), (2, 2)])
    def test_one_for_each_image_and_channel(self, size: tuple[int, int]) -> None:
        images, rows = torch.zeros(9, 3, *size), torch.tensor([1, 4, 8])
        fields = draw_plasma(images, rows, stream(0, "plasma"))
        assert fields.shape == (3, 3, *size)
        assert len({tuple(field.flatten().tolist()) for field in fields.flatten(0, 1)}) == 9
        assert fields.equal(draw_plasma(images, rows, stream(0, "plasma")))
        nothing = draw_plasma(images, rows[:0], stream(0, "plasma"))
        assert nothing.shape == (0, 3, *size)

    def test_roughness_is_drawn_for_each_image(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[Tensor] = []

        def record(noise: Tensor, roughness: Tensor) -> Tensor:
            seen.append(roughness)
            return noise

        monkeypatch.setattr(ueraser, "plasma", record)
        draw_plasma(torch.zeros(4000, 3, 2, 2), torch.arange(4000), stream(0, "plasma"))
        roughness = seen[0].unflatten(0, (4000, 3))
        assert roughness.eq(roughness[:, :1]).all()  # the channels of an image share it
        drawn = roughness[:, 0].sort().values
        assert drawn[0] >= 0.3
        assert drawn[-1] <= 0.7
        ranks = torch.arange(1, 4001) / 4000
        assert (ranks - (drawn - 0.3) / 0.4).abs().max() < 1.63 / math.sqrt(4000)


class TestAugmentation:
    """The steps of UEraser's T."""

    def constant(self, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
        monkeypatch.setattr(
            ueraser, "draw_plasma", lambda images, rows, stream: torch.full((1, 1, 1, 1), value)
        )

    def test_brightness(self, monkeypatch: pytest.MonkeyPatch) -> None:
        images = torch.zeros(4000, 3, 1, 1)
        self.constant(monkeypatch, 0.5)
        grey = images + 0.4
        assert plasma_brightness(grey, 1.0, stream(0, "draws")).equal(grey)
        self.constant(monkeypatch, 0.75)
        light = plasma_brightness(images, 1.0, stream(0, "draws"))  # u / 2
        assert light.eq(light[:, :1]).all()
        drawn = 2 * light[:, 0, 0, 0].sort().values
        assert drawn[0] >= 0.5
        assert drawn[-1] <= 1
        ranks = torch.arange(1, 4001) / 4000
        assert (ranks - (drawn - 0.5) / 0.5).abs().max() < 1.63 / math.sqrt(4000)
        self.constant(monkeypatch, 1.0)
        assert plasma_brightness(images + 0.6, 1.0, stream(0, "draws")).eq(1).all()
        self.constant(monkeypatch, 0.0)
        assert plasma_brightness(images + 0.4, 1.0, stream(0, "draws")).eq(0).all()

    @pytest.mark.parametrize(
        ("field", "expected"),
        [(0.25, [0.1, 0.4, 0.9]), (0.0, [0.5, 0.5, 0.5]), (0.5, [0.0, 0.3, 1.0])],
    )
    def test_contrast(
        self, field: float, expected: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.constant(monkeypatch, field)
        image = torch.tensor([0.1, 0.4, 0.9]).reshape(1, 3, 1, 1)
        found = plasma_contrast(image, 1.0, stream(0, "draws"))
        torch.testing.assert_close(found.flatten(), torch.tensor(expected))

    @pytest.mark.parametrize("change", [plasma_brightness, plasma_contrast])
    def test_only_some_images_are_changed(self, change: Any) -> None:
        images = 0.2 + 0.6 * torch.rand(2000, 3, 4, 4, generator=stream(0, "images"))
        before = images.clone()
        for chance in (0.0, 0.5, 1.0):
            found = change(images, chance, stream(0, "draws"))
            assert found.ge(0).all()
            assert found.le(1).all()
            share = found.ne(images).flatten(1).any(1).double().mean().item()
            assert share == pytest.approx(chance, abs=binomial_error(chance, 2000))
        assert images.equal(before)

    def test_orders_of_channels(self) -> None:
        count = 12_000
        images = torch.tensor([0.1, 0.2, 0.3]).reshape(1, 3, 1, 1).repeat(count, 1, 2, 2)
        images[..., 0] += 0.5
        found = shuffle_channels(images, 0.5, stream(0, "draws"))
        torch.testing.assert_close(found[..., 0], found[..., 1] + 0.5)  # whole channels move
        orders = Counter(tuple(row) for row in found[:, :, 0, 1].argsort(1).tolist())
        assert len(orders) == 6
        for order, times in orders.items():
            chance = 1 / 12 + (order == (0, 1, 2)) / 2
            assert times / count == pytest.approx(chance, abs=binomial_error(chance, count))
        assert shuffle_channels(images, 0.0, stream(0, "draws")).equal(images)

    def test_steps_and_their_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        said: list[Any] = []

        def tell(name: str) -> Callable[..., Tensor]:
            def stand_in(images: Tensor, probability: float, stream: torch.Generator) -> Tensor:
                said.append((name, probability))
                return images

            return stand_in

        for name in ("plasma_brightness", "plasma_contrast", "shuffle_channels"):
            monkeypatch.setattr(ueraser, name, tell(name))
        defense = UEraserLite(plasma_probability=0.3, shuffle_probability=0.2)
        found = defense.augment(to_unit(some_levels()), stream(0, "draws"))
        assert said == [
            ("plasma_brightness", 0.3),
            ("plasma_contrast", 0.3),
            ("shuffle_channels", 0.2),
        ]
        draws = draw_one(6, narrow(SIZE), BINS, stream(0, "draws"))
        assert found.equal(to_unit(apply(some_levels(), draws)))

    @pytest.mark.parametrize(("space", "turn"), [("narrow", 30), ("wide", 135)])
    def test_ranges_of_trivial_augment(
        self, space: Any, turn: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[Draws] = []

        def record(levels: Tensor, draws: Draws) -> Tensor:
            seen.append(draws)
            return levels

        monkeypatch.setattr(ueraser, "apply", record)
        UEraserLite(space=space).augment(torch.zeros(3000, 3, 2, 2), stream(0, "draws"))
        turned = seen[0].magnitudes[seen[0].operations == NAMES.index("Rotate")].abs()
        assert turned.max() == turn
        assert len(set(turned.tolist())) == BINS


def states_are_equal(one: Network, other: Network) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return all(value.equal(second[key]) for key, value in first.items())


class TestUEraser:
    @pytest.mark.parametrize(
        "defense", [UEraserMax(repeats=1), UEraserDefault(repeat_epochs=0.0)], ids=repr
    )
    def test_with_one_version_it_is_the_lite_one_exactly(self, defense: Defense) -> None:
        lite = victim(UEraserLite(), small_splits().train)
        ours = victim(defense, small_splits().train)
        assert ours.run_epoch()["train_loss"] == lite.run_epoch()["train_loss"]
        assert states_are_equal(ours.network, lite.network)

    def test_default_is_the_maximum_at_first(self) -> None:
        train = small_splits().train
        whole, part, lite = (
            victim(defense, train)
            for defense in (UEraserMax(), UEraserDefault(repeat_epochs=0.2), UEraserLite())
        )
        assert whole.run_epoch() == part.run_epoch()
        assert states_are_equal(whole.network, part.network)
        assert lite.run_epoch()["train_loss"] != whole.run_epoch()["train_loss"]
        assert part.run_epoch()["train_loss"] != whole.run_epoch()["train_loss"]

    def test_equal_versions_are_like_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Augmenting, "augment", lambda self, images, stream: 1 - images)
        plain, one, five = (
            victim(defense, small_splits().train)
            for defense in (NoDefense(), UEraserMax(repeats=1), UEraserMax(repeats=5))
        )
        losses = [training.run_epoch()["train_loss"] for training in (plain, one, five)]
        assert losses[1] == losses[2] != losses[0]
        assert states_are_equal(one.network, five.network)

    def test_the_worst_version_is_chosen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Image by image, against a loop over all versions in eval mode."""
        versions: list[Tensor] = []
        augment = Augmenting.augment

        def record(self: Augmenting, images: Tensor, stream: torch.Generator) -> Tensor:
            versions.append(augment(self, images, stream))
            return versions[-1]

        monkeypatch.setattr(Augmenting, "augment", record)
        network, images, labels = (
            small_network().train(),
            some_images(12),
            some_labels(12),
        )
        network(images)  # batch statistics of its own
        worst = UEraserMax(repeats=4).worst(network, images, labels, step())
        network.eval()
        chosen = set()
        for row in range(12):
            candidates = versions[0].unflatten(0, (4, 12))[:, row]
            losses = -(network(candidates).log_softmax(1) * labels[row]).sum(1)
            assert losses.max() - losses.min() > 1e-4
            place = int(losses.argmax())
            assert worst[row].equal(candidates[place])
            chosen.add(place)
        assert len(chosen) > 1

    def test_versions_are_drawn_independently(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[Tensor] = []
        augment = Augmenting.augment
        monkeypatch.setattr(
            Augmenting,
            "augment",
            lambda self, images, stream: seen.append(augment(self, images, stream)) or seen[-1],
        )
        image = some_images(1)
        UEraserMax(repeats=20).worst(small_network(), image, some_labels(1), step())
        assert len({tuple(version.flatten().tolist()) for version in seen[0]}) > 15

    def test_choosing_leaves_no_trace(self) -> None:
        network = small_network().train()
        network.head.bias.requires_grad_(False)
        images, labels = some_images(12), some_labels(12)
        copy, before = images.clone(), {k: v.clone() for k, v in network.state_dict().items()}
        worst = UEraserMax(repeats=3).worst(network, images, labels, step())
        assert not worst.requires_grad
        assert images.equal(copy)
        assert all(module.training for module in network.modules())
        assert [p for p in network.parameters() if not p.requires_grad] == [network.head.bias]
        assert all(p.grad is None for p in network.parameters())
        assert all(value.equal(before[key]) for key, value in network.state_dict().items())

    def test_learns_the_worst_in_train_mode(self) -> None:
        network, twin = small_network().train(), small_network().train()
        images, labels = some_images(12), some_labels(12)
        defense = UEraserMax(repeats=3)
        loss = defense.loss(network, images, labels, step())
        worst = defense.worst(twin, images, labels, step())
        assert loss.equal(F.cross_entropy(twin(worst), labels))
        assert states_are_equal(network, twin)  # one update of batch statistics each

    def test_lite_keeps_soft_labels(self) -> None:
        images, labels = some_images(12), some_labels(12)
        found, same = UEraserLite().batch(images, labels, step())
        assert same.equal(labels)
        assert found.ne(images).flatten(1).any(1).sum() >= 10

    @pytest.mark.parametrize(
        ("share", "epochs", "first"),
        [
            (0.25, 200, 50),
            (0.3, 200, 60),
            (0.25, 8, 2),
            (0.1, 30, 3),
            (0.29, 100, 29),
            (1.0, 5, 5),
            (0.0, 5, 0),
        ],
    )
    def test_first_epochs(self, share: float, epochs: int, first: int) -> None:
        defense = UEraserDefault(repeat_epochs=share)
        counts = [defense.repeats_at(step(0, epoch, epochs)) for epoch in range(epochs)]
        assert counts == [5] * first + [1] * (epochs - first)

    def test_cost(self) -> None:
        assert UEraserLite().cost() == UEraserMax(repeats=1).cost() == 1
        assert UEraserMax().cost() == pytest.approx(8 / 3)
        assert UEraserDefault().cost() == pytest.approx((50 * 8 / 3 + 150) / 200)
        assert UEraserDefault(repeats=1).cost() == 1

    def test_behind_mixup(self) -> None:
        stack = build_defense(parse_one("mixup+ueraser-max:repeats=2", DEFENSES))
        row = victim(stack, small_splits().train).run_epoch()
        assert math.isfinite(row["train_loss"])
        with pytest.raises(UsageError, match="only one of them can"):
            build_defense(parse_one("at-linf+ueraser-max", DEFENSES))


def test_without_operations_it_is_plain_training_exactly() -> None:
    plain = victim(NoDefense(), small_splits().train)
    ours = victim(RandAugment(num_ops=0), small_splits().train)
    assert ours.run_epoch() == plain.run_epoch()
    assert states_are_equal(ours.network, plain.network)


@pytest.mark.parametrize(
    "text",
    [
        "randaugment:num_ops=-1",
        "randaugment:magnitude=31",
        "randaugment:magnitude=-1",
        "ueraser-lite:plasma_probability=1.1",
        "ueraser-lite:shuffle_probability=-0.1",
        "ueraser-max:repeats=0",
        "ueraser-max:plasma_probability=2",
        "ueraser-default:repeat_epochs=50",
    ],
)
def test_senseless_settings_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="must"):
        build(DEFENSES, parse_one(text, DEFENSES))

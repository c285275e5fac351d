"""Two Gaussian classes blurred differently: what the best rule for them is worth on clean data.

A class-wise convolution can be followed through with a pencil where the data are two Gaussians, as
in Sadasivan et al., "CUDA: Convolution-based Unlearnable Datasets", CVPR 2023. Labels y = ±1
are equally likely, and x given y is N(y mu, I) in d dimensions. The protector replaces x by A_y x,
where A_y has 1 on its diagonal and the blur a_y of the class on both neighbouring diagonals. The
trainer is given the best there is, the Bayes rule of the protected mixture; it answers +1 where

    q(x) = |A_-^-1 x + mu|^2 / 2 - |A_+^-1 x - mu|^2 / 2 + log det A_- - log det A_+

is positive. What counts is how often that is right for clean x. The blurs lie in |a| < 1/2, where
both matrices are positive definite in every dimension.

Exact, up to round-off or a tolerance that is given:

- The Bayes rule of the clean mixture, the sign of mu . x, is right with probability Phi(|mu|).
- If both classes are blurred alike, q is linear, and its sign is right with probability
  Phi(mu . A^-1 mu / |A^-1 mu|): nearly as often, since only the direction is a little wrong.
- Otherwise q is quadratic. The matrices A share their eigenvectors, which are sines, and have
  eigenvalues 1 + 2 a cos(pi k / (d + 1)), k = 1 ... d. So q is a sum of independent terms, one a
  frequency, a generalised chi-square, and its characteristic function is a product. The
  distribution follows by inversion: Imhof, "Computing the distribution of quadratic forms in
  normal variables", Biometrika 1961, by a sum whose step is that of Davies, "Numerical inversion
  of a characteristic function", Biometrika 1973; where it may end is our own argument.

The paper bounds the accuracy on clean data from above. Its theorem is not restated here, neither
the conditions nor the constants; what stands in its place is ours: the exact value, a bound of
Chernoff's kind, and this rule of thumb. With a_- = 0 and a small a = a_+, blurring takes 2 a^2 d
from the mean of q, which is 2 |mu|^2 for class +1 otherwise. So half of that class is lost near

    a = |mu| / sqrt(d).

Clean data look unblurred, thus like class -1, and the rule calls more and more of them by that
name, until its accuracy is chance, while on protected data it only becomes more accurate.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Data = Literal["clean", "protected"]
DATA: tuple[Data, ...] = ("clean", "protected")

TOLERANCE = 1e-7
"""How far an exact probability may be off."""
MOST_TERMS = 50_000_000
"""Of the sum that inverts a characteristic function, times the dimension; else it is refused."""
BLOCK = 2**16
"""Numbers that are worked on at a time."""
TILTS, STEEPEST = 100, 20.0
"""So many s for bounds on tails, and the largest, in units of one over a standard deviation."""

Z95 = 1.959963984540054
"""Of a standard normal variable, 95 % lie between this and its negative."""


@dataclass(frozen=True)
class Mixture:
    """Two Gaussian classes and how each is blurred.

    Attributes:
        mean: mu, the mean of class +1; that of class -1 is its negative.
        blur_minus: a_-, blur of class -1, between -1/2 and 1/2.
        blur_plus: a_+, blur of class +1, likewise.
    """

    mean: tuple[float, ...]
    blur_minus: float
    blur_plus: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.norm) and self.norm > 0):
            raise ValueError(f"the mean has length {self.norm:g}; it must be finite and above 0")
        for blur in (self.blur_minus, self.blur_plus):
            if not abs(blur) < 0.5:
                raise ValueError(
                    f"blur {blur:g} must lie between -1/2 and 1/2, where the matrices are "
                    "positive definite in every dimension"
                )

    @property
    def dimension(self) -> int:
        """Of the data, d."""
        return len(self.mean)

    @property
    def norm(self) -> float:
        """Length of the mean, half the distance of the classes in standard deviations."""
        return math.hypot(*self.mean)

    def blur(self, label: int) -> float:
        """That of a class, +1 or -1."""
        return self.blur_plus if label > 0 else self.blur_minus


def flat_mean(dimension: int, norm: float) -> tuple[float, ...]:
    """All entries equal: classes that differ by their brightness."""
    return (norm / math.sqrt(dimension),) * dimension


def random_mean(dimension: int, norm: float, seed: int) -> tuple[float, ...]:
    """Any direction, all being equally likely."""
    drawn = _stream(seed, "mean", dimension).standard_normal(dimension)
    return tuple((norm / np.linalg.norm(drawn) * drawn).tolist())


@dataclass(frozen=True)
class Settings:
    """What is measured: every dimension with every blur.

    Attributes:
        dimensions: of the data, d.
        norm: |mu|, the same in all dimensions, and so is the clean accuracy.
        mean: direction of mu: `flat`, all its entries equal, or `random`. It matters little where
            the blurs differ; where they do not, a flat mean is hardly turned at all.
        fixed: blurs of class -1; that of class +1 varies.
        blurs: those of class +1, and of both classes in the control.
        sampled: of these, the blurs at which points are drawn as well.
        draws: how many points, for each mixture and kind of data.
        seed: settles what is drawn.
    """

    dimensions: tuple[int, ...] = (2, 10, 100, 1000)
    norm: float = 2.0
    mean: Literal["flat", "random"] = "flat"
    fixed: tuple[float, ...] = (0.0, 0.1)
    blurs: tuple[float, ...] = tuple(step / 80 for step in range(37))
    sampled: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)
    draws: int = 4000
    seed: int = 0

    def __post_init__(self) -> None:
        extra = set(self.sampled) - set(self.blurs)
        if extra:
            raise ValueError(f"sampled blurs {sorted(extra)} are not among the blurs")

    def mixture(self, dimension: int, blur_minus: float, blur_plus: float) -> Mixture:
        """The one with these blurs, in that dimension."""
        if self.mean == "flat":
            mean = flat_mean(dimension, self.norm)
        else:
            mean = random_mean(dimension, self.norm, self.seed)
        return Mixture(mean, blur_minus, blur_plus)


def measure(settings: Settings | None = None) -> dict[str, Any]:
    """Accuracies of the protected mixture's Bayes rule, computed and counted.

    Args:
        settings: what to look at; a quarter of a minute's work by default.

    Returns:
        `settings`, and `rows`, one a dimension and pair of blurs. A row has `dimension`,
        `blur_minus`, `blur_plus` and `shared`, whether it is of the control, where both classes
        are blurred alike; `exact`, the rule's accuracy on `clean` and on `protected` data;
        `sampled`, None or for the same data `draws`, `accuracy`, `low` and `high`, the ends of
        the 95 % interval; `bound`, Chernoff's on the accuracy on clean data; and `clean_rule`, the
        accuracy of the clean mixture's Bayes rule on the same data. All are fractions.
    """
    settings = settings or Settings()
    pairs = [(minus, plus, False) for minus in settings.fixed for plus in settings.blurs]
    pairs += [(blur, blur, True) for blur in settings.blurs]
    rows = [
        _row(settings, settings.mixture(dimension, minus, plus), shared)
        for dimension in settings.dimensions
        for minus, plus, shared in pairs
    ]
    told = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(settings).items()}
    return {"settings": told, "rows": rows}


def _row(settings: Settings, mixture: Mixture, shared: bool) -> dict[str, Any]:
    sampled = None
    if mixture.blur_plus in settings.sampled:
        sampled = {
            data: monte_carlo(mixture, settings.draws, settings.seed, data).told() for data in DATA
        }
    return {
        "dimension": mixture.dimension,
        "blur_minus": mixture.blur_minus,
        "blur_plus": mixture.blur_plus,
        "shared": shared,
        "exact": {data: exact_accuracy(mixture, data) for data in DATA},
        "sampled": sampled,
        "bound": chernoff_bound(mixture),
        "clean_rule": {data: clean_accuracy(mixture, data) for data in DATA},
    }


# --- exact ------------------------------------------------------------------------------------


def clean_accuracy(mixture: Mixture, data: Data = "clean") -> float:
    """Of the clean mixture's Bayes rule, the sign of mu . x; on clean data no rule has more.

    Args:
        mixture: what is protected, and how.
        data: what the rule is tried on.
    """
    if data == "clean":
        return _normal_cdf(mixture.norm)
    mean = frequencies(np.array(mixture.mean))
    blurred = [eigenvalues(mixture.dimension, mixture.blur(label)) * mean for label in (1, -1)]
    return sum(_normal_cdf(float(mean @ m / np.linalg.norm(m))) for m in blurred) / 2


def exact_accuracy(mixture: Mixture, data: Data = "clean", tolerance: float = TOLERANCE) -> float:
    """Of the protected mixture's Bayes rule.

    Args:
        mixture: what is protected, and how.
        data: what the rule is tried on.
        tolerance: how far the answer may be off.
    """
    right = (_score(mixture, label, data).times(label) for label in (1, -1))
    return sum(form.positive(tolerance) for form in right) / 2


def chernoff_bound(mixture: Mixture) -> float:
    """Not less than `exact_accuracy` on clean data: no integral, but E exp(± s q)."""
    right = (_score(mixture, label, "clean").times(label) for label in (1, -1))
    return sum(form.chernoff() for form in right) / 2


def eigenvalues(dimension: int, blur: float) -> Array:
    """Of the blur matrix; (d,), all positive for |blur| < 1/2."""
    return 1 + 2 * blur * np.cos(np.pi * np.arange(1, dimension + 1) / (dimension + 1))


def frequencies(values: Array) -> Array:
    """Coordinates with respect to the eigenvectors of all blur matrices.

    These are sqrt(2 / (d + 1)) sin(pi j k / (d + 1)) at place j for frequency k, and the transform
    is its own inverse.

    Args:
        values: (d, ...).
    """
    dimension = len(values)
    border = np.zeros((1, *values.shape[1:]))
    odd = np.concatenate([border, values, border, -values[::-1]])
    sines = -np.fft.rfft(odd, axis=0).imag[1 : dimension + 1] / 2
    return math.sqrt(2 / (dimension + 1)) * sines


@dataclass(frozen=True, eq=False)
class Form:
    """The sum of `square` z^2 + `linear` z over independent standard normal z, plus a constant.

    Attributes:
        square: (d,).
        linear: (d,).
        constant: one number.
    """

    square: Array
    linear: Array
    constant: float

    def __post_init__(self) -> None:
        if not (self.square.any() or self.linear.any()):
            raise ValueError("a form whose coefficients are all 0 does not vary")

    def times(self, factor: float) -> Form:
        """The multiple of this form."""
        return Form(factor * self.square, factor * self.linear, factor * self.constant)

    def positive(self, tolerance: float = TOLERANCE) -> float:
        """The probability that the form is above zero.

        A sum over the characteristic function at the odd multiples of half a step. Its step lets
        the form pass a whole period, 2 pi / step, with a probability of at most half the
        tolerance, and the terms left out add up to no more than the other half.

        Raises:
            ValueError: if that takes too many terms; the fewer squares, the more it takes.
        """
        if not self.square.any():
            return _normal_cdf(self.constant / float(np.linalg.norm(self.linear)))
        step = 2 * math.pi / self._reach(tolerance / 2)
        total, first, count = 0.5, 0, max(BLOCK // len(self.square), 1)
        while first * len(self.square) < MOST_TERMS:
            odd = first + np.arange(count, dtype=np.float64) + 0.5
            size, phase = self._characteristic(step * odd)
            total += float(np.sum(size * np.sin(phase) / odd)) / math.pi
            first += count
            if self._left_out(step, step * (first - 0.5)) <= tolerance / 2:
                return min(max(total, 0.0), 1.0)
        raise ValueError(
            f"{first} terms do not give the probability to within {tolerance:g}; ask for less"
        )

    def chernoff(self) -> float:
        """Not less than `positive`: the least E exp(s form) over some s, or 1."""
        return math.exp(min(float(self._cumulants(self._tilts()).min()), 0.0))

    def _reach(self, chance: float) -> float:
        """The form is above this, and below its negative, with at most the given probability."""
        above = []
        for form in (self, self.times(-1)):
            tilts = form._tilts()
            # Chernoff's bound says at most `chance` from here on, whatever s is.
            above.append(float(((form._cumulants(tilts) - math.log(chance)) / tilts).min()))
        return max(above)

    def _tilts(self) -> Array:
        """Some s > 0 for which E exp(s form) is finite, as close as bounds on tails need them."""
        deviation = math.sqrt(float(np.sum(2 * self.square**2 + self.linear**2)))
        largest = float(self.square.max())
        last = min(STEEPEST / deviation, 0.5 / largest if largest > 0 else math.inf)
        return last * (np.arange(TILTS) + 0.5) / TILTS

    def _characteristic(self, at: Array) -> tuple[Array, Array]:
        """E exp(i t form) at some t, as absolute value and phase; (n,) each."""
        twice = 2 * np.outer(at, self.square)
        damped = np.outer(at, self.linear) ** 2 / (2 * (1 + twice**2))
        size = np.exp(-np.sum(np.log1p(twice**2) / 4 + damped, axis=1))
        phase = np.sum(np.arctan(twice) / 2 - twice * damped, axis=1)
        return size, phase + self.constant * at

    def _left_out(self, step: float, start: float) -> float:
        """More than the terms from here on add up to, by the better of two arguments."""
        (size,), _ = self._characteristic(np.array([start]))
        # The absolute value falls at least like a power of t, whose exponent only grows.
        twice = 2 * start * np.abs(self.square)
        exponent = float(np.sum(twice**2 / (1 + twice**2))) / 2
        falling = size / exponent if size else 0.0
        # The phase comes to grow evenly, by `turn` a term; what is left then moves little, and
        # neighbours cancel (Dirichlet's test): of use where few squares let the terms fall slowly.
        square, linear = self.square[self.square != 0], self.linear[self.square != 0]
        if len(square) < len(self.square):
            return falling / math.pi
        stretch = linear**2 / (4 * square)
        turn = abs(math.sin(step * (self.constant - float(stretch.sum())) / 2))
        rest = (math.pi / 2 - np.arctan(twice)) / (2 * np.abs(square))
        variation = 1 + float(np.sum((np.abs(square) + np.abs(stretch)) * rest))
        cancelling = step * size * variation / (start * turn) if turn else math.inf
        return min(falling, cancelling) / math.pi

    def _cumulants(self, tilts: Array) -> Array:
        """Log E exp(s form) at some s; (n,)."""
        left = 1 - 2 * np.outer(tilts, self.square)
        terms = np.outer(tilts, self.linear) ** 2 / (2 * left) - np.log(left) / 2
        return tilts * self.constant + terms.sum(axis=1)


def _score(mixture: Mixture, label: int, data: Data) -> Form:
    """The log-likelihood ratio q of the protected classes, for data of one class."""
    dimension = mixture.dimension
    plus, minus = (eigenvalues(dimension, mixture.blur(y)) for y in (1, -1))
    mean = frequencies(np.array(mixture.mean))
    square = (1 / minus**2 - 1 / plus**2) / 2
    linear = (1 / minus + 1 / plus) * mean
    # x = scale (y mu + z), frequency by frequency.
    scale = np.ones(dimension)
    if data == "protected":
        scale = plus if label > 0 else minus
    centre = scale * label * mean
    return Form(
        square * scale**2,
        scale * (2 * square * centre + linear),
        float(np.sum((square * centre + linear) * centre + np.log(minus / plus))),
    )


def _normal_cdf(value: float) -> float:
    return math.erfc(-value / math.sqrt(2)) / 2


# --- by drawing -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """An accuracy as it was counted.

    Attributes:
        draws: how many points were tried, each independent of the others, labels included.
        right: how many of their labels were found.
    """

    draws: int
    right: int

    @property
    def accuracy(self) -> float:
        """The share that was found."""
        return self.right / self.draws

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval: inside [0, 1], and of use where all are found."""
        square = Z95**2 / self.draws
        centre = self.accuracy + square / 2
        half = math.sqrt(square * (self.accuracy * (1 - self.accuracy) + square / 4))
        return (centre - half) / (1 + square), (centre + half) / (1 + square)

    def told(self) -> dict[str, float]:
        """What a row says of it."""
        low, high = self.interval()
        return {"draws": self.draws, "accuracy": self.accuracy, "low": low, "high": high}


def monte_carlo(mixture: Mixture, draws: int, seed: int, data: Data = "clean") -> Estimate:
    """Try the protected mixture's Bayes rule on points that are drawn.

    In the coordinates of the data, by solving A v = x, and so without a word of eigenvalues.

    Args:
        mixture: what is protected, and how.
        draws: how many points, at least 1.
        seed: settles their labels and noise, together with dimension, blurs and `data`.
        data: what the rule is tried on.
    """
    if draws < 1:
        raise ValueError(f"{draws} draws say nothing; ask for 1 or more")
    mean = np.array(mixture.mean)[:, None]
    purpose = (mixture.dimension, mixture.blur_minus, mixture.blur_plus, data)
    stream = _stream(seed, "monte carlo", *purpose)
    right = 0
    for count in _portions(draws, max(BLOCK * 16 // mixture.dimension, 1)):
        labels = 2 * stream.integers(0, 2, count) - 1
        points = stream.standard_normal((mixture.dimension, count))
        points += labels * mean
        if data == "protected":
            points = _blurred(points, np.where(labels > 0, mixture.blur_plus, mixture.blur_minus))
        plus, volume_plus = _unblurred(points, mixture.blur_plus)
        minus, volume_minus = _unblurred(points, mixture.blur_minus)
        score = (_squared(minus) - _squared(plus)) / 2 + mean.T[0] @ (minus + plus)
        right += int(np.sum((score + volume_minus - volume_plus > 0) == (labels > 0)))
    return Estimate(draws, right)


def _portions(draws: int, most: int) -> Iterator[int]:
    while draws > 0:
        yield min(draws, most)
        draws -= most


def _squared(points: Array) -> Array:
    """Squared lengths of the columns."""
    return np.einsum("ij,ij->j", points, points)


def _blurred(points: Array, blurs: Array) -> Array:
    """A_y x for each column, (d, n), of its own blur, (n,); zeros lie outside."""
    blurred = points.copy()
    blurred[1:] += blurs * points[:-1]
    blurred[:-1] += blurs * points[1:]
    return blurred


def _unblurred(points: Array, blur: float) -> tuple[Array, float]:
    """A^-1 x for each column, (d, n), and log det A, by elimination."""
    if not blur:
        return points, 0.0
    solved, pivots = points.copy(), [1.0]
    for row in range(1, len(points)):
        solved[row] -= blur / pivots[-1] * solved[row - 1]
        pivots.append(1 - blur**2 / pivots[-1])
    solved[-1] /= pivots[-1]
    for row in range(len(points) - 2, -1, -1):
        solved[row] -= blur * solved[row + 1]
        solved[row] /= pivots[row]
    return solved, math.fsum(map(math.log, pivots))


def _stream(seed: int, *purpose: object) -> np.random.Generator:
    """Random numbers of their own for each purpose."""
    digest = hashlib.sha256("/".join(map(str, (seed, *purpose))).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))

"""Claims written down before a run: intervals by hand, and verdicts that can be negative."""

import math
from pathlib import Path

import pytest

from bench.errors import UsageError
from bench.reports.claims import FILE, Claim, claims_table, half_width, read_claims, verdicts
from bench.reports.summary import Spread, Summary, summarise
from tests.invented import record

CLAIM = Claim(("clean", "noise"), ("sep", "cuda"), ("rn18",))


def summary(**accuracies: list[float]) -> Summary:
    (made,) = summarise(
        record(method, test=value, seed=seed)
        for method, values in accuracies.items()
        for seed, value in enumerate(values)
    )
    return made


def test_interval_is_students() -> None:
    # Mean 0.6 and standard deviation 0.1 of three values: 4.303 * 0.1 / sqrt(3).
    assert half_width(Spread(0.6, 0.1, 3)) == pytest.approx(0.2484, abs=1e-4)
    assert half_width(Spread(0.6, 0.1, 2)) == pytest.approx(12.706 * 0.1 / math.sqrt(2), abs=1e-3)
    assert math.isnan(half_width(Spread(0.6, math.nan, 1)))


def test_a_claim_holds_only_beyond_both_intervals() -> None:
    made = summary(
        clean=[0.60, 0.61, 0.62],  # 0.61 - 0.0248
        noise=[0.58, 0.60, 0.62],  # 0.60 - 0.0497 is the lowest lower end
        sep=[0.30, 0.40, 0.50],  # 0.40 + 0.2484 reaches above it
        cuda=[0.20, 0.21, 0.22],
    )
    sep, cuda = verdicts(made, [CLAIM])
    assert (sep.method, sep.lowest, sep.holds, cuda.holds) == ("sep", "noise", False, True)
    assert sep.upper == pytest.approx(0.6484, abs=1e-4)
    assert sep.floor == pytest.approx(0.5503, abs=1e-4)
    text = claims_table(made, [CLAIM]).text()
    assert "does not hold" in text
    assert "55.0 (noise)" in text


def test_too_few_victims_decide_nothing() -> None:
    made = summary(clean=[0.6, 0.601], noise=[0.6, 0.601], sep=[0.3], cuda=[0.2, 0.2])
    sep, cuda = verdicts(made, [CLAIM])
    assert sep.holds is None
    assert cuda.holds is True
    (missing, _) = verdicts(summary(clean=[0.6, 0.6], sep=[0.3, 0.3]), [CLAIM])
    assert (missing.holds, missing.lowest, missing.n) == (None, "noise", 0)


def test_claims_are_read_from_a_file(tmp_path: Path) -> None:
    assert read_claims(tmp_path) == []
    (tmp_path / FILE).write_text(
        '[[claim]]\nabove = ["clean", "noise"]\nbelow = ["sep", "cuda"]\narchs = ["rn18"]\n'
    )
    assert read_claims(tmp_path) == [CLAIM]
    (tmp_path / FILE).write_text('[[claim]]\nabove = ["clean"]\n')
    with pytest.raises(UsageError, match=r"needs .*above, below and archs"):
        read_claims(tmp_path)
    for wrong in ('"clean"', "[]", "[1]"):
        (tmp_path / FILE).write_text(
            f'[[claim]]\nabove = {wrong}\nbelow = ["sep"]\narchs = ["rn18"]\n'
        )
        with pytest.raises(UsageError, match="is no list of names"):
            read_claims(tmp_path)


def test_settings_of_one_method_are_judged_apart() -> None:
    (made,) = summarise(
        record(method, test=test + seed / 1000, seed=seed, **more)
        for seed in range(3)
        for method, test, more in (
            ("clean", 0.6, {}),
            ("noise", 0.6, {}),
            ("cuda", 0.2, {}),
            ("sep", 0.3, {"epsilon": 8 / 255, "method_settings": {"epsilon": 8 / 255}}),
            ("sep", 0.6, {"epsilon": 2 / 255, "method_settings": {"epsilon": 2 / 255}}),
        )
    )
    strong, weak, _ = sorted(
        verdicts(made, [CLAIM]), key=lambda v: (v.method[:3] != "sep", v.upper)
    )
    assert (strong.holds, weak.holds) == (True, False)
    assert strong.method != weak.method

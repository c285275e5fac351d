"""Claims written down before a run: differences by hand, and verdicts of three values."""

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


def test_a_claim_holds_or_not_or_is_undecided() -> None:
    made = summary(
        clean=[0.60, 0.61, 0.62],
        noise=[0.58, 0.60, 0.62],
        sep=[0.30, 0.40, 0.60],  # 30, 21 and 2 below clean; 28, 20 and 2 below noise
        cuda=[0.20, 0.21, 0.22],
        ule=[0.80, 0.81, 0.83],
    )
    claim = Claim(CLAIM.above, (*CLAIM.below, "ule"), CLAIM.archs)
    sep, cuda, ule = verdicts(made, [claim])
    # Three victims that spread that far decide nothing, and surely not against it.
    assert (sep.holds, cuda.holds, ule.holds) == (None, True, False)
    assert (sep.method, sep.gap.above, sep.gap.difference.n) == ("sep", "clean", 3)
    half = 4.3027 * math.sqrt((12.333**2 + 3.333**2 + 15.667**2) / 2 / 3)
    assert sep.gap.low == pytest.approx(53 / 3 - half, abs=1e-2)
    assert [v.verdict for v in (sep, cuda, ule)] == ["undecided", "holds", "does not hold"]
    table = claims_table(made, [claim])
    assert list(table.cells["claim"]) == ["undecided", "holds", "does not hold"]
    assert "(clean − sep)" in table.text()
    assert list(table.numbers["verdict"]) == list(table.cells["claim"])


def test_differences_are_paired_by_victim_seed() -> None:
    """Victims that vary by ten points from seed to seed, each three below clean."""
    line = [0.55, 0.65, 0.75]
    low = [value - 0.03 for value in line]
    made = summary(clean=line, noise=line, sep=low, cuda=low[::-1])
    sep, cuda = verdicts(made, [CLAIM])
    assert (sep.holds, cuda.holds) == (True, None)
    assert sep.gap.low == pytest.approx(3)


def test_a_variant_is_not_judged_under_the_name_of_the_method() -> None:
    shared = {"method_label": "cuda:shared=True", "method_settings": {"shared": True}}
    old = {"method_label": "cuda:kernel=5", "method_settings": {"kernel": 5}}
    (made,) = summarise(
        record(method, test=test + seed / 1000, seed=seed, **more)
        for seed in range(3)
        for method, test, more in (
            ("clean", 0.6, {}),
            ("noise", 0.6, {}),
            ("cuda", 0.2, {"method_settings": {"shared": False}}),
            ("cuda", 0.59, shared),
            ("cuda", 0.7, old),
        )
    )
    (only,) = verdicts(made, [Claim(CLAIM.above, ("cuda",), CLAIM.archs)])
    assert (only.method, only.verdict) == ("cuda", "holds")
    (control,) = verdicts(made, [Claim(("cuda:shared=True",), ("cuda",), CLAIM.archs)])
    assert (control.gap.above, control.verdict) == ("cuda:shared=True", "holds")


def test_a_variant_of_an_architecture_is_none_of_the_claim() -> None:
    wide = {"arch": "rn18", "arch_label": "rn18:width=0.5", "width": 0.5}
    (made,) = summarise(
        record(method, test=test + seed / 1000, seed=seed, **more)
        for seed in range(3)
        for method, test, more in (("clean", 0.6, {}), ("sep", 0.2, {}), ("clean", 0.1, wide))
    )
    (one,) = verdicts(made, [Claim(("clean",), ("sep",), ("rn18",))])
    assert one.verdict == "holds"


def test_what_forbids_a_verdict_forbids_this_one() -> None:
    (made,) = summarise(
        record(method, test=test + seed / 1000, seed=seed, **more)
        for seed in range(3)
        for method, test, more in (
            ("clean", 0.6, {}),
            ("noise", 0.6, {}),
            ("sep", 0.2, {"audit": {"within_budget": False}}),
            ("cuda", 0.2, {}),
        )
    )
    sep, cuda = verdicts(made, [CLAIM])
    assert (sep.verdict, cuda.verdict) == ("doubtful", "holds")
    assert list(claims_table(made, [CLAIM]).numbers["doubtful"]) == ["sep", ""]


def test_too_few_victims_decide_nothing() -> None:
    made = summary(clean=[0.6, 0.601], noise=[0.6, 0.601], sep=[0.3], cuda=[0.2, 0.2])
    sep, cuda = verdicts(made, [CLAIM])
    assert sep.holds is None
    assert cuda.holds is True
    (missing, _) = verdicts(summary(clean=[0.6, 0.6], sep=[0.3, 0.3]), [CLAIM])
    assert (missing.holds, missing.gap.above, missing.gap.difference.n) == (None, "noise", 0)
    assert missing.absent == ("noise",)


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
    strong, weak = sorted(
        (v for v in verdicts(made, [CLAIM]) if v.method[:3] == "sep"), key=lambda v: -v.gap.low
    )
    assert (strong.holds, weak.holds) == (True, None)
    assert strong.method != weak.method

"""The claim itself on real images: protection destroys test accuracy, and the controls do not."""

from pathlib import Path

import pytest

from bench import Grid, load_results, run
from bench.data import Splits
from tests.realdata import real_data_dir

RECIPE = "quick:width=0.125,epochs=20,train_images=2000"
"""A quarter of the default recipe's cost, so that two seeds can be averaged in a test."""


@pytest.mark.slow
def test_protected_cifar10_teaches_nothing_and_the_controls_do(
    cifar10: Splits, tmp_path: Path
) -> None:
    """ResNet-18, means over two seeds; bands leave room for what other processors round to.

    Seeds 0, 1 and 2 in float32 gave, in percent: clean 56, 48, 52; noise 53, 50, 52; sep 37, 41,
    35; advpoison 24, 29, 26. What one victim of sep reaches varies most: over the committed
    records of the default recipe, 26 to 53 where clean has 59 to 64, as some victims find the
    shortcut only in their last epochs. The claim at that recipe is made with three seeds, in
    `results/methods-quick-cifar10/claims.toml`.
    """
    del cifar10  # asked for so that the test is skipped, or fails, where there are no images
    data = real_data_dir()
    assert data is not None
    outcome = run(
        Grid(methods="noise,sep,advpoison", archs="rn18", recipe=RECIPE, seeds=(0, 1)),
        results_dir=tmp_path / "results",
        store=tmp_path / "store",
        data_dir=data,
        download=False,
        quiet=True,
    )
    assert not outcome.failed
    frame = load_results(tmp_path / "results")
    means = frame.groupby("method")[["final_test_acc", "final_train_acc"]].mean()
    test, train = means["final_test_acc"], means["final_train_acc"]
    assert test["clean"] >= 0.45
    assert abs(test["noise"] - test["clean"]) <= 0.05
    for method, drop in (("sep", 0.06), ("advpoison", 0.15)):
        assert test["clean"] - test[method] >= drop
        # Low accuracy with low train accuracy would be failed training, not protection.
        assert train[method] >= train["clean"] - 0.05
        for audit in frame.loc[frame["method"] == method, "audit"]:
            assert audit["max_levels"] == 8
            assert audit["within_budget"]
    sep = frame[frame["method"] == "sep"]
    assert set(sep["crafting_gradient_images"]) == {2000 * 5 * 8}

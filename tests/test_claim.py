"""The claim itself on real images: protection destroys test accuracy, and the controls do not."""

from pathlib import Path

import pytest

from bench import Grid, load_results, run
from bench.data import Splits
from tests.realdata import real_data_dir


@pytest.mark.slow
def test_protected_cifar10_teaches_nothing_and_the_controls_do(
    cifar10: Splits, tmp_path: Path
) -> None:
    """ResNet-18 under the default recipe, one victim each.

    The limits are those that every single victim of `results/quick` keeps, with three crafting
    seeds, so one is enough here.
    """
    del cifar10  # asked for so that the test is skipped, or fails, where there are no images
    data = real_data_dir()
    assert data is not None
    outcome = run(
        Grid(methods="noise,sep,advpoison", archs="rn18", recipe="quick"),
        results_dir=tmp_path / "results",
        store=tmp_path / "store",
        data_dir=data,
        download=False,
        quiet=True,
    )
    assert not outcome.failed
    frame = load_results(tmp_path / "results").set_index("method")
    test, train = frame["final_test_acc"], frame["final_train_acc"]
    assert test["clean"] >= 0.45
    assert abs(test["noise"] - test["clean"]) <= 0.06  # of two single victims
    for method in ("sep", "advpoison"):
        assert test["clean"] - test[method] >= 0.12
        # Low accuracy with low train accuracy would be failed training, not protection.
        assert train[method] >= train["clean"]
        assert frame.loc[method, "audit"]["max_levels"] == 8
        assert frame.loc[method, "audit"]["within_budget"]
    assert frame.loc["sep", "crafting_gradient_images"] == 5000 * 3 * 4

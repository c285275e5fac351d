"""What all tests share: one thread, folders of their own, and the real images if there are any."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from bench.data import Places, Splits
from bench.datasets.cifar import Cifar10
from bench.reports import flags
from tests.invented import LOWEST_CONTROLS
from tests.realdata import DATA, real_data_dir

# Small tensors gain nothing from threads, and sums then have one order on every machine.
torch.set_num_threads(1)

# How long a case takes says nothing on a shared machine; equal cases make failures repeatable.
settings.register_profile("bench", deadline=None, derandomize=True)
settings.load_profile("bench")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever asks for the real images is marked as needing them."""
    for item in items:
        if "cifar10" in getattr(item, "fixturenames", ()):
            item.add_marker("real_data")


@pytest.fixture(autouse=True)
def controls_of_invented_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invented records have controls of which as much is known as of measured ones."""
    known = flags.lowest_controls() | LOWEST_CONTROLS
    monkeypatch.setattr(flags, "lowest_controls", lambda: known)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Empty folders, and no network."""
    (tmp_path / "data").mkdir()
    return Places(data_dir=tmp_path / "data", cache_dir=tmp_path / "cache", download=False)


@pytest.fixture(scope="session")
def cifar10() -> Splits:
    """The real CIFAR-10, decoded once per checkout."""
    folder = real_data_dir()
    if folder is None:
        if os.environ.get("BENCH_REQUIRE_REAL_DATA"):
            pytest.fail("real CIFAR-10 is required here and was not found")
        pytest.skip("no real CIFAR-10: set BENCH_TEST_DATA to a data folder that has it")
    return Cifar10().load(Places(folder, cache_dir=DATA / "test-cache", download=False))

"""Accuracy by protected and other classes, from confusion counts worked out by hand."""

from typing import Any

import pytest

from bench.reports.class_tables import class_tables
from bench.reports.summary import Summary, summarise
from tests.invented import record

CLASSES = ["a", "b", "c"]


def found(*records: dict[str, Any]) -> Summary:
    """The one context with protected classes."""
    return next(s for s in summarise(records) if s.context.protected_classes)


def made(method: str, counts: list[list[int]], seed: int = 0, **others: Any) -> dict[str, Any]:
    protected = {} if method == "clean" else {"protected_classes": [0, 2]}
    more = {"test": 0.6, **protected, **others}
    return record(method, confusion=counts, classes=CLASSES, seed=seed, **more)


def test_by_hand() -> None:
    clean = [[8, 1, 1], [0, 9, 1], [5, 0, 5]]
    one, two = [[0, 10, 0], [0, 10, 0], [4, 2, 4]], [[4, 6, 0], [2, 8, 0], [10, 0, 0]]
    summary = found(made("clean", clean), made("sep", one), made("sep", two, seed=1))
    (table,) = class_tables(summary)
    cells = table.cells.set_index("method")
    assert list(cells.loc["clean"]) == ["rn18 ×1/4", "65.0", "90.0", "1"]  # 13 of 20, 9 of 10
    assert list(cells.loc["sep"]) == ["rn18 ×1/4", "20.0 ± 0.0¶", "90.0 ± 14.1¶", "2"]
    # The first victim takes 22 of 30 images for b.
    assert any(note.startswith("¶: a victim predicts one class") for note in table.notes)
    assert "all numbers: fewer than 3 victim seeds." in table.notes
    numbers = table.numbers.set_index("method")
    assert numbers.loc["sep", "protected_acc"] == pytest.approx(0.2)
    assert numbers.loc["sep", "flags"] == "class-collapse few-seeds"
    assert "protected classes a, c" in " ".join(table.caption)


def test_nothing_where_all_classes_are_protected() -> None:
    (summary,) = summarise([record("clean"), record("sep")])
    assert class_tables(summary) == []


def test_failed_victims_and_classes_without_test_images() -> None:
    failed = record("sep", classes=CLASSES, protected_classes=[0, 2], error="RuntimeError: no")
    summary = found(made("clean", [[1, 0, 0], [0, 0, 0], [0, 0, 1]]), failed)
    (table,) = class_tables(summary)
    assert table.cells["method"].tolist() == ["clean"]
    assert table.cells["other classes %"].tolist() == ["–"]

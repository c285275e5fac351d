"""The instrument: data, networks, training, the grid, records and reports.

from bench import Grid, load_results, run

run(Grid(methods="sep,advpoison", archs="rn18", seeds=(0, 1, 2)))
frame = load_results("results/local")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.grid import Grid
    from bench.record import load_results
    from bench.running.runner import run

__all__ = ["Grid", "load_results", "run"]

_HOMES = {"Grid": "bench.grid", "load_results": "bench.record", "run": "bench.running.runner"}


def __getattr__(name: str) -> Any:
    """Import on first use: listing components must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'bench' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)

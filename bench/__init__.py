"""The instrument: data, networks, training, the grid, records and reports.

from bench import Grid, load_results, run

run(Grid(methods="sep,advpoison", archs="rn18", seeds=(0, 1, 2)))
frame = load_results("results/local")
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.grid import Grid
    from bench.record import load_results
    from bench.running.runner import run

__all__ = ["Grid", "load_results", "run"]

_HOMES = {"Grid": "bench.grid", "load_results": "bench.record", "run": "bench.running.runner"}


def check_system() -> None:
    """Raise UsageError where the system is not one that the suite runs on."""
    from bench.errors import UsageError

    if not all(importlib.util.find_spec(name) for name in ("fcntl", "resource")):
        raise UsageError(
            "Windows is not supported; run this under Linux, macOS or the Windows Subsystem for "
            "Linux (wsl --install)"
        )


def __getattr__(name: str) -> Any:
    """Import on first use: listing components must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'bench' has no attribute '{name}'")
    check_system()
    return getattr(importlib.import_module(_HOMES[name]), name)

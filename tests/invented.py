"""Invented records for the tests of reports: nothing was trained."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from bench.store import key_of

ARCHS = ("rn18", "vgg16", "senet18", "dn121", "googlenet")

LOWEST_CONTROLS = {
    ("cifar10", recipe, 1, arch, defense): accuracy - 5.2
    for recipe, arch, defense, accuracy in (
        ("quick:epochs=20", "rn18", "none", 68.6),
        ("quick", "rn18", "none", 61.1),
        ("quick", "vgg16", "none", 60.9),
        ("quick", "dn121", "none", 56.8),
        ("quick", "googlenet", "none", 67.0),
        ("quick", "senet18", "none", 59.4),
        ("quick", "rn18", "cutout", 55.9),
        ("quick", "rn18", "gaussian-blur", 50.7),
        ("quick", "rn18", "grayscale", 60.6),
        ("quick", "rn18", "jpeg", 55.8),
        ("quick", "rn18", "mixup", 54.6),
        ("quick", "rn18", "ueraser-lite", 56.3),
    )
}
"""What is known of controls in the world of these records, as `bench.reports.flags` tells it."""


def record(
    method: str = "sep",
    *,
    arch: str = "rn18",
    seed: int = 0,
    test: float = 0.3,
    train: float = 0.9,
    peak: float | None = None,
    error: str | None = None,
    epsilon: float | None = 8 / 255,
    curve: list[dict[str, Any]] | None = None,
    **others: Any,
) -> dict[str, Any]:
    """A valid record; `others` replaces any field.

    Args:
        method: name and label of the method.
        arch: name and label of the architecture.
        seed: of the victim.
        test: final test accuracy.
        train: final train accuracy.
        peak: best test accuracy; the final one if not given.
        error: the traceback of a failed cell.
        epsilon: radius of the l-inf budget.
        curve: a row an epoch; a straight line of two epochs if not given.
        others: fields by name.
    """
    failed = error is not None
    epsilon = None if method == "clean" else epsilon
    peak = test if peak is None else peak
    line = [
        {"epoch": 1, "lr": 0.1, "train_loss": 2.0, "train_acc": train / 2, "test_acc": peak},
        {"epoch": 2, "lr": 0.0, "train_loss": 1.0, "train_acc": train, "test_acc": test},
    ]
    fields = {
        "schema": 1,
        "key": "",
        "identity": {},
        "method": method,
        "method_label": method,
        "method_settings": {},
        "method_deviations": {},
        "budget": {"norm": "none" if method == "clean" else "linf", "epsilon": epsilon},
        "epsilon": epsilon,
        "defense": "none",
        "defense_label": "none",
        "defense_settings": {},
        "arch": arch,
        "arch_label": arch,
        "arch_notes": {},
        "width": 0.25,
        "dataset": "cifar10",
        "dataset_digest": "d1",
        "classes": [f"class {i}" for i in range(10)],
        "train_images": 5000,
        "test_images": 10000,
        "recipe": "quick",
        "recipe_label": "quick",
        "recipe_settings": {"epochs": 10, "train_images": 5000, "curve_images": 2000},
        "training": {},
        "precision": "bf16",
        "poison_ratio": 1.0,
        "holdout": 0,
        "seed": seed,
        "craft_seed": 0,
        "status": "failed" if failed else "done",
        "error": error,
        "final_test_acc": None if failed else test,
        "peak_test_acc": None if failed else peak,
        "final_train_acc": None if failed else train,
        "curve": [] if failed else (line if curve is None else curve),
        "confusion": None,
        "audit": None,
        "crafted_key": None if method == "clean" else f"crafted-{method}",
        "crafting_gradient_images": None if method == "clean" else 1_250_000,
        "crafting_seconds": 30.0,
        "seconds": 61.0,
        "core_seconds": 120.0,
        "peak_memory": 10**9,
        "finished": "2026-01-01T00:00:00Z",
        "commit": "0" * 40,
        "versions": {},
        "device": {},
        **others,
    }
    coordinates = ("method_label", "defense_label", "arch_label", "seed", "craft_seed", "finished")
    if not fields["identity"]:
        name = fields["key"] or "-".join(str(fields[name]) for name in coordinates)
        fields["identity"] = {"crafted": {"of": fields["crafted_key"]}, "name": name}
        fields["key"] = key_of(fields["identity"])
        if fields["crafted_key"] is not None:
            fields["crafted_key"] = key_of(fields["identity"]["crafted"])
    return fields


def curve(final: float, train: float, epochs: int, early: float) -> list[dict[str, Any]]:
    """A plausible course of training that may peak early and collapse."""
    rows = []
    for epoch in range(1, epochs + 1):
        done = epoch / epochs
        rise = 1 - math.exp(-5 * done)
        bump = early * math.exp(-(((done - 0.25) / 0.2) ** 2)) * (1 - done)
        wobble = 0.02 * math.sin(3 * epoch + 40 * final) * (1 - done)
        rows.append(
            {
                "epoch": epoch,
                "lr": 0.1 * (1 - done),
                "train_loss": 2.3 * (1 - done),
                "train_acc": 0.1 + (train - 0.1) * rise / (1 - math.exp(-5)),
                "test_acc": 0.1 + (final - 0.1) * rise / (1 - math.exp(-5)) + bump + wobble * rise,
            }
        )
    rows[-1]["test_acc"] = final
    return rows


# method: final test accuracy on rn18, train accuracy, height of the early peak, l-inf radius
REALISTIC: dict[str, tuple[float, float, float, float | None]] = {
    "clean": (0.592, 0.63, 0.0, None),
    "sham": (0.588, 0.63, 0.0, 0.0),
    "noise": (0.570, 0.62, 0.0, 8 / 255),
    "advpoison": (0.252, 0.55, 0.12, 8 / 255),
    "cuda": (0.223, 0.93, 0.10, None),
    "sep": (0.331, 0.66, 0.10, 8 / 255),
    "sep-fa": (0.305, 0.68, 0.10, 8 / 255),
    "sep-fa-vr": (0.282, 0.70, 0.10, 8 / 255),
    "ule": (0.247, 0.91, 0.15, 8 / 255),
}


def realistic(
    archs: tuple[str, ...] = ARCHS[:2],
    seeds: int = 3,
    epochs: int = 10,
    methods: tuple[str, ...] = tuple(REALISTIC),
    **others: Any,
) -> list[dict[str, Any]]:
    """A whole grid that looks like a run."""
    records = []
    for name in methods:
        final, train, early, epsilon = REALISTIC[name]
        for position, arch in enumerate(archs):
            for seed in range(seeds):
                shift = 0.012 * ((7 * seed + 3 * position + len(name)) % 5 - 2)
                test = final + shift + 0.02 * position
                course = curve(test, train, epochs, early)
                peak = max(row["test_acc"] for row in course)
                settings = {"epochs": epochs, "train_images": 5000, "curve_images": 2000}
                norm = "none" if epsilon is None else "linf"
                fields = {
                    "budget": {"norm": norm, "epsilon": epsilon},
                    "recipe_settings": settings,
                    "audit": None if name == "clean" else AUDIT,
                    **others,
                }
                records.append(
                    record(
                        name,
                        arch=arch,
                        seed=seed,
                        test=test,
                        train=train,
                        peak=peak,
                        epsilon=epsilon,
                        curve=course,
                        **fields,
                    )
                )
    return records


AUDIT = {
    "max_linf": 8 / 255,
    "mean_linf": 8 / 255,
    "max_l2": 1.512,
    "mean_l2": 1.4,
    "max_l0": 1024,
    "mean_l0": 1020.5,
    "share_changed": 0.9731,
    "nan": 0,
    "constant_images": 0,
    "protected_images": 5000,
    "max_levels": 8,
}


def swept(
    method: str,
    name: str,
    values: Iterable[Any],
    *,
    archs: tuple[str, ...] = ARCHS[:1],
    seeds: int = 1,
    **others: Any,
) -> list[dict[str, Any]]:
    """Records of a method along one setting: the further the lower, and the seeds a point apart.

    Args:
        method: name and label of the method.
        name: `epsilon`, `poison_ratio`, or a setting of the method.
        values: of it.
        archs: of the victims.
        seeds: victims a cell.
        others: fields of every record; `method_settings` those that are not swept.
    """
    fixed = others.pop("method_settings", {})
    records = []
    for place, value in enumerate(values):
        settings = {"epsilon": 8 / 255, **fixed}
        fields = {"epsilon": value} if name == "epsilon" else {}
        if name == "poison_ratio":
            fields["poison_ratio"] = value
        else:
            settings[name] = value
        for position, arch in enumerate(archs):
            for seed in range(seeds):
                test = 0.5 - 0.06 * place + 0.02 * position + 0.01 * seed - 0.004 * len(method)
                cell = {**fields, "method_settings": settings, **others}
                key = f"{method}-{arch}-{seed}-{name}-{value}-{settings}-{sorted(others.items())}"
                records.append(record(method, arch=arch, seed=seed, test=test, key=key, **cell))
    return records


def controls(
    archs: tuple[str, ...] = ARCHS[:1], seeds: int = 1, test: float = 0.6
) -> list[dict[str, Any]]:
    """The control on every architecture, the seeds a point apart."""
    return [
        record("clean", arch=arch, seed=seed, test=test - 0.02 * position + 0.01 * seed)
        for position, arch in enumerate(archs)
        for seed in range(seeds)
    ]

"""What a record must be beside whole: that of its key, at one with itself, and fit for a table.

A record of today bears a digest, which finds all damage. This finds what it can of older ones, and
what never was a record of ours. Nothing here finds a careful forgery.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from bench.store import key_of

SORTED_BY = ("seed", "precision", "recipe", "arch", "defense", "holdout", "study")
"""What a record tells beside its identity, which has them, or what bears these names, too."""
CRAFTED = {"train": "dataset_digest", "poison_ratio": "poison_ratio", "seed": "craft_seed"}
"""What the identity of a crafted set has, and the field that tells it."""

_ENDLESS = re.compile(rb"\d{300}")
"""Whole numbers that no floating-point number comes near."""
SHARES = ("own_acc", "next_acc", "next_followed")
"""What `shortcut` has."""

Fault = tuple[str, bool]
"""What is wrong if this is true."""


def fault(one: Mapping[str, Any]) -> str | None:
    """Why a record whose fields have their types is not to be believed, or None.

    Args:
        one: of a cell or of a study.
    """
    try:
        # Infinite and missing numbers are none of JSON; a study's values may have them.
        plain = {name: value for name, value in one.items() if name != "values"}
        text = json.dumps(plain, ensure_ascii=False, allow_nan=False)
        if _ENDLESS.search(text.encode()):
            return "has a number that is too long"
        faults = chain(_of_key(one), () if "study" in one else _of_cell(one))
        return next((why for why, wrong in faults if wrong), None)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError):
        return "makes no sense"


def _of_key(one: Mapping[str, Any]) -> Iterator[Fault]:
    identity = one["identity"]
    yield "has a key that is not that of its identity", key_of(identity) != one["key"]
    crafted = identity.get("crafted")
    if "study" not in one:
        alike = one["crafted_key"] in (None, key_of(crafted))
        yield "has a crafted key that is not that of its identity", not alike
        crafted = crafted or {}
        known = {field: crafted[name] for name, field in CRAFTED.items() if name in crafted}
        known |= {"method": crafted["method"]} if "method" in crafted else {}
        known |= {"protected_classes": crafted["classes"]} if "classes" in crafted else {}
    else:
        known = {"dataset_digest": identity["train"]} if "train" in identity else {}
    known |= {name: identity[name] for name in SORTED_BY if name in identity and name in one}
    for name, said in known.items():
        is_component = isinstance(said, Mapping)
        wrong = one.get(name) != (said.get("name") if is_component else said)
        settings = one.get(f"{name}_settings")
        if is_component and settings is not None:
            wrong |= any(
                settings.get(k, math.nan) != v for k, v in said.get("settings", {}).items()
            )
        yield f"tells another {name} than its identity", wrong


def _of_cell(one: Mapping[str, Any]) -> Iterator[Fault]:
    classes, budget = one["classes"], one["budget"]
    yield "is neither done nor failed", one["status"] not in ("done", "failed")
    yield "has no classes", not classes or not all(isinstance(name, str) for name in classes)
    yield (
        "protects classes that there are not",
        not set(one.get("protected_classes", ())) <= set(range(len(classes))),
    )
    yield "has a wrong number of images", min(one["train_images"], one["test_images"]) < 1
    yield "has no width", not _within(one["width"], 1e-6, 1e6)
    yield "has a poison ratio that is none", not _within(one["poison_ratio"], 0, 1)
    yield (
        "has seconds that are none",
        not all(
            _within(one[name] or 0, 0, 1e12)
            for name in ("seconds", "core_seconds", "crafting_seconds")
        ),
    )
    for name in ("method_deviations", "defense_deviations"):
        yield f"has odd {name}", any(len(pair) != 2 for pair in one.get(name, {}).values())
    yield "has odd notes", not all(isinstance(n, str) for n in one.get("defense_notes", ()))
    for name in ("defense_facts", "device", "versions", "arch_notes"):
        plain = all(isinstance(v, str | int | float | None) for v in one.get(name, {}).values())
        yield f"has odd {name}", not plain
    radii = budget.get("epsilon")
    radii = radii if isinstance(radii, list) else [radii]
    yield "has an odd budget", len(radii) != len((budget.get("norm") or "none").split("+"))
    yield "has an odd budget", not all(r is None or _within(r, 0, 1e12) for r in radii)
    linf = radii[0] if budget.get("norm") == "linf" else None
    yield "tells another epsilon than its budget", one["epsilon"] not in (None, linf)
    followed = one.get("shortcut")
    shares = [one.get("separability"), *([] if followed is None else (followed[n] for n in SHARES))]
    yield "has a share that is none", not all(map(_is_share, shares))
    yield from _of_results(one)
    yield from _of_audit(one)


def _of_results(one: Mapping[str, Any]) -> Iterator[Fault]:
    """Accuracies are those of the curve and of the confusion."""
    curve, counts, final = one["curve"], one["confusion"], one["final_test_acc"]
    for place, row in enumerate(curve, start=1):
        plain = all(isinstance(value, int | float | None) for value in row.values())
        shares = all(_is_share(row[name]) for name in row if name.endswith("_acc"))
        yield "has an odd curve", not (plain and shares and row["epoch"] == place)
        yield "has an odd curve", not {"train_loss", "train_acc", "test_acc"} <= row.keys()
    if curve and one["status"] == "done":
        reached = [row["test_acc"] for row in curve]
        yield (
            "has accuracies that are not those of its curve",
            not (
                _close(final, reached[-1])
                and _close(one["final_train_acc"], curve[-1]["train_acc"])
                and _close(
                    one["peak_test_acc"], max((a for a in reached if a is not None), default=None)
                )
            ),
        )
    if counts is not None:
        size = len(one["classes"])
        square = len(counts) == size and all(len(row) == size for row in counts)
        whole = all(isinstance(n, int) and 0 <= n < 2**53 for row in counts for n in row)
        yield "has an odd confusion", not (square and whole)
        total = sum(map(sum, counts))
        yield "has a confusion of other images than it tells", total != one["test_images"]
        right = sum(counts[label][label] for label in range(size))
        yield "has an accuracy that is not that of its confusion", not _close(final, right / total)


def _of_audit(one: Mapping[str, Any]) -> Iterator[Fault]:
    """Means are below maxima, levels are those of l-inf, and what is within the budget is."""
    audit, budget = one["audit"], one["budget"]
    if audit is None:
        return
    yield "has an odd audit", not all(isinstance(v, int | float) for v in audit.values())
    for norm in ("linf", "l2", "l0"):
        mean, most = audit.get(f"mean_{norm}", 0), audit.get(f"max_{norm}", math.inf)
        yield f"has an odd {norm} in its audit", not 0 <= mean <= most * (1 + 1e-5)
    if "max_levels" in audit:
        levels = round(audit["max_linf"] * 255)
        yield "has other levels in its audit than its l-inf", levels != audit["max_levels"]
    yield "has an odd audit", not _is_share(audit.get("share_changed"))
    trained = one["train_images"] + one["holdout"]
    yield "protects more images than there are", audit.get("protected_images", 0) > trained
    if audit.get("within_budget") and budget.get("norm") in ("linf", "l2", "l0"):
        most = audit[f"max_{budget['norm']}"]
        yield "is not within its budget", most > budget["epsilon"] * (1 + 1e-5) + 1e-6


def _within(value: Any, least: float, most: float) -> bool:
    return isinstance(value, int | float) and least <= value <= most


def _is_share(value: Any) -> bool:
    return value is None or _within(value, 0, 1)


def _close(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, abs_tol=1e-9)

"""What can be said of a component: settings, paper, budget, cost."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import typing
from typing import Any

from bench.budget import fraction
from bench.component import Component, Spec, build, defaults
from bench.errors import UsageError
from bench.recipe import PUBLISHED
from bench.registry import DEFENSES, METHODS, RECIPES, REGISTRIES, Registry
from bench.reports.summary import LARGEST_FRACTION
from bench.worst_case import SETS

CIFAR_IMAGES = 50_000
"""For which costs are told: some methods take so many steps, whatever there is."""


def find(name: str) -> tuple[Registry, str]:
    """The first registry that knows a name; `recipe:ops` says which.

    Raises:
        UsageError: if none does.
    """
    kind, colon, rest = name.partition(":")
    among = [r for r in REGISTRIES if not colon or r.kind == kind]
    for registry in among:
        known = registry.called(rest if colon else name)
        if known is not None:
            return registry, known
    if name in SETS:
        raise UsageError(f"'{name}' stands for several defenses: {', '.join(SETS[name])}")
    known = [entry for registry in REGISTRIES for entry in registry.entries]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UsageError(f"nothing is called '{name}'; {hint}--list shows everything")


def description(registry: Registry, name: str) -> dict[str, Any]:
    """All facts about a component, fit for JSON."""
    cls: type[Component] = registry.get(name)
    entry = registry.entry(name)
    hints = typing.get_type_hints(cls)
    settings = []
    for item in dataclasses.fields(cls):
        row: dict[str, Any] = {
            "name": item.name,
            "type": _type_text(hints[item.name]),
            "default": _text(defaults(cls).get(item.name, "required"), item.name),
            "meaning": item.metadata.get("help", ""),
        }
        for scale, preset in cls.presets.items():
            if item.name in preset:
                row[scale] = _text(preset[item.name], item.name)
        settings.append(row)
    facts: dict[str, Any] = {
        "kind": registry.kind,
        "name": name,
        "version": cls.version,
        "summary": entry.summary,
        "defined": entry.origin,
        "also": [f"{r.kind}:{name}" for r in REGISTRIES if r is not registry and name in r.entries],
        "called": list(entry.also),
        "paper": cls.paper,
        "about": inspect.cleandoc(cls.__doc__ or "").partition("\n")[2].strip(),
        "settings": settings,
    }
    if registry is METHODS and entry.argument is None:
        facts |= _method_facts(name)
    if registry is DEFENSES:
        facts |= _defense_facts(name)
    return facts


def _method_facts(name: str) -> dict[str, Any]:
    """Budget, and input gradients an image, at the paper's settings and at each preset."""
    facts: dict[str, Any] = {"cost": {}}
    for recipe in RECIPES.entries:
        if recipe in PUBLISHED and recipe != "paper":
            continue  # its scale is that of `paper`
        trained = build(RECIPES, Spec(recipe))
        method = build(METHODS, Spec(name), trained.scale)
        images = trained.train_images or CIFAR_IMAGES
        facts["budget"] = str(method.budget)
        gradients = method.gradient_images(images) / images
        surrogates = method.surrogates(trained)
        facts["cost"][recipe] = {
            "gradients_per_image": round(gradients, 1),
            "surrogate_epochs": sum(s.epochs[-1] for s in surrogates),
        }
    return facts


def _defense_facts(name: str) -> dict[str, Any]:
    """What it knows, its cost as a multiple of plain training, and what else is to be said."""
    made = build(DEFENSES, Spec(name))
    return {
        "side_information": made.side_information,
        "training_cost": round(made.cost(), 2),
        "prediction_cost": round(made.prediction_cost(), 2),
        "notes": made.notes(),
    }


def text_of(facts: dict[str, Any]) -> str:
    """A description for people."""
    lines = [f"{facts['name']} ({facts['kind']}, {facts['defined']})", facts["summary"]]
    if facts["about"]:
        lines += ["", facts["about"]]
    if facts["also"]:
        lines += ["", f"Also of this name: {', '.join(facts['also'])}."]
    if facts["called"]:
        lines += ["", f"Papers call it {' or '.join(facts['called'])}, which is understood, too."]
    if facts["paper"]:
        lines += ["", f"paper     {facts['paper']}"]
    if "budget" in facts:
        lines.append(f"budget    {facts['budget']}")
        costs = [
            f"{recipe}: {cost['gradients_per_image']:g} gradients an image after "
            f"{cost['surrogate_epochs']} epochs of surrogate training"
            for recipe, cost in facts["cost"].items()
        ]
        lines += [f"{'cost' if i == 0 else '':9} {cost}" for i, cost in enumerate(costs)]
    if "side_information" in facts:
        known = facts["side_information"]
        lines.append(f"knows     {'the released images' if known == 'none' else known}")
        tested = facts["prediction_cost"]
        costs = f"{facts['training_cost']:g} x plain training"
        costs += f", {tested:g} passes a test image" if tested != 1 else ""
        lines.append(f"cost      {costs}")
        lines += [f"note      {note}" for note in facts["notes"]]
    if facts["settings"]:
        lines += ["", "settings"]
    for row in facts["settings"]:
        shorter = ", ".join(f"{row[s]} under {s}" for s in ("quick", "standard") if s in row)
        default = row["default"] + (f" ({shorter})" if shorter else "")
        lines.append(f"  {row['name']} = {default}")
        lines.append(f"      {row['type']}: {row['meaning']}")
    return "\n".join(lines)


def _type_text(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    return getattr(hint, "__name__", str(hint)).replace("typing.", "")


def _text(value: Any, name: str) -> str:
    if isinstance(value, float) and math.isfinite(value):
        radius = name in ("epsilon", "step_size") and value <= LARGEST_FRACTION
        return fraction(value) if radius else f"{value:.4g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    return "none" if value is None else str(value)

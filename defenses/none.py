"""Plain training, against which every defense is measured."""

from dataclasses import dataclass

from bench.defense import Defense
from bench.registry import DEFENSES


@DEFENSES.register("none")
@dataclass(frozen=True)
class NoDefense(Defense):
    """Plain training on the released images."""

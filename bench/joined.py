"""Several components in one, joined by "+": what methods and defenses have in common there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from bench.component import Component, setting

C = TypeVar("C", bound=Component)


@dataclass(frozen=True)
class Joined(Component, Generic[C]):
    """A component made of others; a subclass says what joining them means."""

    joint: ClassVar[str] = "+"

    parts: tuple[C, ...] = setting((), "the components, in the order in which they are joined")

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.joint.join(part.name for part in self.parts))

    @property
    def title(self) -> str:
        """The titles of the parts."""
        return self.joint.join(part.title for part in self.parts)

    def settings(self) -> dict[str, Any]:
        """The settings of every part, each behind the name of its part."""
        return self._of_parts(lambda part: part.settings())

    def deviations(self) -> dict[str, list[Any]]:
        """Likewise what differs from the papers' values."""
        return self._of_parts(lambda part: part.deviations())

    def identity(self) -> dict[str, Any]:
        """What the parts are, in their order."""
        return {
            "name": self.name,
            "version": self.version,
            "parts": [part.identity() for part in self.parts],
            "settings": {},
        }

    def _of_parts(self, facts: Callable[[C], dict[str, Any]]) -> dict[str, Any]:
        names = [part.name for part in self.parts]
        found: dict[str, Any] = {}
        for place, part in enumerate(self.parts):
            again = names[:place].count(part.name)
            name = f"{part.name}({again + 1})" if again else part.name
            found |= {f"{name}.{key}": value for key, value in facts(part).items()}
        return found

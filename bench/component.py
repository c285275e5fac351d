"""Settings: the one grammar in which they are typed, checked, and turned into an identity.

sep                          a name
sep:checkpoints=5,steps=8    with settings
file:PATH,epsilon=8/255      a first value without `key=` is the component's argument
sep:surrogate=(rn18:width=0.5,depth=2),noise      brackets keep commas together
sep-fa-vr:steps=8+ops        several in one, where their kind allows it
sep:checkpoints=[3,5,10]     three components: a list where one value may stand
file:'a, b+c (1).npz'        quotes, single or double, around a name that holds any of these signs

A quote counts where a name or value begins and ends; folder:Bob's photos needs no care.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, field
from typing import Any, ClassVar, Literal, TypeVar, Union

from bench.errors import UsageError
from bench.registry import Registry

C = TypeVar("C", bound="Component")
T = TypeVar("T")

LONGEST_NUMBER = 18
"""Digits of a whole number; all of so many fit into 64 bits."""
MOST_VALUES = 10_000
"""Values that one option may list; each is a table of its own, or multiplies the work."""


def setting(default: Any, help: str, *, added: bool = False) -> Any:
    """A dataclass field with its explanation, shown by `--describe`.

    Args:
        default: the paper's value.
        help: what it means, and in which unit.
        added: whether records exist from before this setting did. At its default it is then left
            out of identities and records, so that those stay valid.
    """
    return field(default=default, metadata={"help": help, "added": added})


@dataclass(frozen=True)
class Component:
    """A registered thing whose fields are its settings.

    A subclass is a frozen dataclass; the first line of its docstring is its summary in lists.
    Its settings default to the paper's values; `presets` shortens them for smaller recipes.
    """

    name: ClassVar[str] = ""
    """Set by the registry."""
    version: ClassVar[int] = 1
    """Raise it when the same settings begin to give other numbers: old artefacts then expire."""
    source: ClassVar[str] = ""
    """For a plug-in, a hash of its file, set by the registry."""
    paper: ClassVar[str] = ""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """For each scale of recipe (`quick`, `standard`), the settings that differ from the paper's."""

    @property
    def title(self) -> str:
        """What tables call it, settings aside."""
        return self.name

    def settings(self) -> dict[str, Any]:
        """Every setting with its resolved value, fit for JSON; see `setting` on added ones."""
        return {
            spec.name: _jsonable(getattr(self, spec.name))
            for spec in dataclasses.fields(self)
            if not spec.metadata.get("added") or getattr(self, spec.name) != spec.default
        }

    def identity(self) -> dict[str, Any]:
        """What makes two components give the same numbers: name, version, settings."""
        said = {"name": self.name, "version": self.version, "settings": self.settings()}
        return said | {"source": self.source} if self.source else said

    def deviations(self) -> dict[str, list[Any]]:
        """Settings that differ from the paper's defaults, as {key: [ours, paper's]}."""
        return {
            key: [value, _jsonable(default)]
            for key, value in self.settings().items()
            if (default := defaults(type(self)).get(key, MISSING)) is not MISSING
            and value != _jsonable(default)
        }


def _jsonable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def defaults(cls: type[Component], scale: str | None = None) -> dict[str, Any]:
    """The default of every setting that has one, under a scale's preset if one is named."""
    values = {s.name: s.default for s in dataclasses.fields(cls) if s.default is not MISSING}
    return {**values, **cls.presets.get(scale, {})} if scale else values


@dataclass(frozen=True)
class Spec:
    """A component as typed: its name, its argument if any, and settings as text.

    Attributes:
        name: as registered; of several joined by "+", all their names.
        argument: what stood after the name without `key=`.
        settings: as text.
        joined: the components that are joined into this one, or none.
    """

    name: str
    argument: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    joined: tuple[Spec, ...] = ()


_SETTING = re.compile(r"[A-Za-z_][\w-]*\s*=")
_JOINT = re.compile(r"\+(?=\s*[A-Za-z*?][\w*?-]*\s*(?:[:+]|$))")
"""A plus before the name of a component; a file's name or a number may have others."""


def parse(text: str, registry: Registry) -> list[Spec]:
    """Read a comma-separated list of components; `all` and globs are expanded.

    A piece that begins with `key=` belongs to the component before it.

    Raises:
        UsageError: if the list is empty, malformed, or names something unknown.
    """
    groups: list[list[list[str]]] = []  # components, of which each is joined of some, in pieces
    for piece in split(text):
        first, *others = _joined(piece, registry)
        if _SETTING.match(first):
            if not groups:
                raise UsageError(f"'{piece}' stands before any {registry.kind} in '{text}'")
            groups[-1][-1].append(first)
        else:
            groups.append([[first]])
        groups[-1] += [[other] for other in others]
    specs: list[Spec] = []
    for group in groups:
        try:
            named = [_named(registry, pieces) for pieces in group]
        except UsageError as error:
            if any(registry.entry(part.name).argument for one in specs for part in _parts(one)):
                raise UsageError(f"{error}; {_QUOTE_NAMES}") from None
            raise
        for parts in itertools.product(*named):
            specs.append(parts[0] if len(parts) == 1 else _join(parts))
    if not specs:
        raise UsageError(
            f"no {registry.kind} given; choose from: {', '.join(registry.entries)}, or all"
        )
    return specs


def _parts(spec: Spec) -> tuple[Spec, ...]:
    return spec.joined or (spec,)


def _joined(piece: str, registry: Registry) -> list[str]:
    """The parts of a piece; a file's name is left whole unless every plus precedes a known name."""
    parts = split(piece, _JOINT) if registry.joinable else [piece]
    head = parts[0].partition(":")[0].strip()
    if registry.called(head) and registry.entry(head).argument is not None:
        names = (part.partition(":")[0].strip() for part in parts[1:])
        if not all(map(registry.called, names)):
            return [piece]
    return parts


def _named(registry: Registry, pieces: Sequence[str]) -> list[Spec]:
    """The components that a name or a pattern with its settings stands for."""
    head, *rest = pieces
    name, colon, first = (part.strip() for part in head.partition(":"))
    if colon and not first:
        raise UsageError(f"'{head}' ends after the colon; write {name}:key=value or {name}")
    found = registry.match(name)
    return [_spec(registry, known, [first, *rest] if colon else rest) for known in found]


def _join(parts: tuple[Spec, ...]) -> Spec:
    return Spec("+".join(part.name for part in parts), joined=parts)


def _spec(registry: Registry, name: str, pieces: Sequence[str]) -> Spec:
    argument, settings = None, {}
    key = registry.entry(name).argument
    for position, piece in enumerate(pieces):
        if _SETTING.match(piece):
            setting_name, _, value = (part.strip() for part in piece.partition("="))
            setting_name = setting_name.replace("-", "_")
            if setting_name in settings:
                raise UsageError(f"{registry.kind} '{name}': '{setting_name}' is given twice")
            settings[setting_name] = unwrap(value)
        elif position == 0 and key is not None:
            argument = unwrap(piece)
        else:
            raise UsageError(f"{registry.kind} '{name}': '{piece}' is not of the form key=value")
    if key is not None and argument is None:
        argument = settings.pop(key, None)  # written out, it is the argument all the same
    if key is not None and argument is None:
        raise UsageError(f"{registry.kind} '{name}' needs its {key}: write {name}:{key.upper()}")
    return Spec(name, argument, settings)


def parse_one(text: str, registry: Registry) -> Spec:
    """Like `parse` for a place where exactly one component may stand."""
    specs = parse(text, registry)
    if len(specs) != 1:
        raise UsageError(f"'{text}' names {len(specs)} {registry.plural} where one may stand")
    return specs[0]


def variants(spec: Spec, registry: Registry) -> Iterator[Spec]:
    """The components that a spec stands for: one for each value of a list in square brackets.

    Where a setting is itself a list, `[1,2]` is one value of it and `[[1,2],[3]]` are two.
    """
    if spec.joined:
        for parts in itertools.product(*(tuple(variants(s, registry)) for s in spec.joined)):
            yield _join(parts)
        return
    hints = typing.get_type_hints(registry.get(spec.name))
    choices = {key: _choices(text, hints.get(key)) for key, text in spec.settings.items()}
    for values in itertools.product(*choices.values()):
        yield Spec(spec.name, spec.argument, dict(zip(choices, values, strict=True)))


def _choices(text: str, hint: Any) -> list[str]:
    marks = ("[[", "]]") if typing.get_origin(hint) is tuple else ("[", "]")
    swept = text.startswith(marks[0]) and text.endswith(marks[1])
    return [unwrap(piece) for piece in split(text[1:-1])] or [text] if swept else [text]


_COMMA = re.compile(",")
_ENDS = re.compile(r"\s*([,)\]+:]|$)")
"""What follows a quote that closes."""
_QUOTE_NAMES = "put a name that holds commas, brackets or + in quotes, as file:'a, b.npz'"


def split(text: str, at: re.Pattern[str] = _COMMA) -> list[str]:
    """Cut at commas that stand outside brackets and quotes; empty pieces are dropped.

    Args:
        text: what to cut.
        at: where else to cut than at commas; it matches one character.
    """
    pieces, quote, current = [], "", ""
    closing: list[str] = []
    for place, character in enumerate(text):
        if quote:
            ends = character == quote and _ENDS.match(text, place + 1)
            quote = "" if ends else quote
        elif character in "'\"" and (not current.strip() or current.rstrip()[-1] in ":=([+,"):
            quote = character
        elif character in "([":
            closing.append(")" if character == "(" else "]")
        elif character in ")]" and (not closing or closing.pop() != character):
            raise UsageError(f"unbalanced brackets in '{text}'; {_QUOTE_NAMES}")
        if not closing and not quote and at.match(text, place):
            pieces.append(current)
            current = ""
        else:
            current += character
    if closing or quote:
        kind = "quotes" if quote else "brackets"
        raise UsageError(f"unbalanced {kind} in '{text}'; {_QUOTE_NAMES}")
    return [piece.strip() for piece in [*pieces, current] if piece.strip()]


def unwrap(text: str) -> str:
    """Remove one pair of enclosing round brackets or quotes, if there is one."""
    pairs = {"(": ")", "'": "'", '"': '"'}
    return text[1:-1] if len(text) > 1 and pairs.get(text[0]) == text[-1] else text


def build(
    registry: Registry, spec: Spec, scale: str = "paper", given: Mapping[str, Any] | None = None
) -> Any:
    """Make the component that a spec describes.

    Args:
        registry: where its class is found.
        spec: name and settings as typed.
        scale: whose preset fills the settings that were not typed.
        given: further defaults, stronger than the preset; keys it has no setting for are ignored.

    Raises:
        UsageError: for an unknown setting, a value of the wrong type, or one out of range.
    """
    if spec.joined:
        raise UsageError(f"'{spec.name}' is several {registry.plural} where one may stand")
    cls = registry.get(spec.name)
    hints = typing.get_type_hints(cls)
    known = [item.name for item in dataclasses.fields(cls)]
    values = {k: v for k, v in cls.presets.get(scale, {}).items() if k in known}
    values |= {k: v for k, v in (given or {}).items() if k in known}
    typed = dict(spec.settings)
    if spec.argument is not None:
        typed[str(registry.entry(spec.name).argument)] = spec.argument
    for key, text in typed.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ";"
            there = f"It has: {', '.join(known)}" if known else "It has none"
            raise UsageError(f"{registry.kind} '{spec.name}' has no setting '{key}'{hint} {there}")
        try:
            values[key] = coerce(text, hints[key])
        except ValueError as error:
            raise UsageError(f"{registry.kind} '{spec.name}': {key}={text}: {error}") from None
    try:
        return cls(**values)
    except ValueError as error:
        raise UsageError(f"{registry.kind} '{spec.name}': {error}") from None


def coerce(text: str, hint: Any) -> Any:
    """Turn typed text into a value of the annotated type.

    Floats may be fractions ("8/255"), booleans yes/no/true/false/1/0, tuples "[1,2,3]".

    Raises:
        ValueError: if the text is no such value; the message says what would be.
    """
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if type(None) in options and text.lower() == "none":
            return None
        return coerce(text, next(o for o in options if o is not type(None)))
    if origin is Literal:
        if text not in options:
            raise ValueError(f"choose from {', '.join(map(str, options))}")
        return text
    if origin is tuple:
        inner = text[1:-1] if text.startswith("[") else text
        return tuple(coerce(unwrap(piece), options[0]) for piece in split(inner))
    if hint is bool:
        words = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
        if text.lower() not in words:
            raise ValueError("write yes or no")
        return words[text.lower()]
    if hint is int:
        return whole(text)
    if hint is float:
        return number(text)
    return text


def number(text: str) -> float:
    """A finite number, typed as a decimal or as a fraction such as 8/255."""
    numerator, slash, denominator = text.partition("/")
    try:
        value = float(numerator) / (float(denominator) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        raise ValueError("write a number such as 0.5 or a fraction such as 8/255") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError("write a finite number")
    return value


def whole(text: str) -> int:
    """A whole number of at most 18 digits, which every library takes."""
    if not re.fullmatch(r"[+-]?\d+", text):
        raise ValueError("write a whole number")
    if len(text.lstrip("+-")) > LONGEST_NUMBER:
        raise ValueError(f"write a whole number of at most {LONGEST_NUMBER} digits")
    return int(text)


def few(what: str, values: Iterable[T]) -> tuple[T, ...]:
    """Each value once.

    Raises:
        UsageError: if there are more than `MOST_VALUES`.
    """
    # One more tells that there are too many, without making room for three billion of them.
    found = tuple(dict.fromkeys(itertools.islice(values, MOST_VALUES + 1)))
    if len(found) > MOST_VALUES:
        raise UsageError(f"more than {MOST_VALUES} {what}; ask for fewer at a time")
    return found


def canonical(component: Component, registry: Registry) -> str:
    """The text that `parse` and `build` turn into this very component."""
    cls, entry = type(component), registry.entry(component.name)
    plain = defaults(cls)
    parts = []
    for key in (item.name for item in dataclasses.fields(component)):
        value = _jsonable(getattr(component, key))
        if key == entry.argument:
            parts.insert(0, _quoted(component.name, str(value), registry))
        elif key not in plain or _jsonable(plain[key]) != value:
            parts.append(f"{key}={bracket(_text(value))}")
    return f"{component.name}:{','.join(parts)}" if parts else component.name


def _quoted(name: str, argument: str, registry: Registry) -> str:
    """An argument in the first spelling that is read as it."""
    spellings = (argument, f"({argument})", f"'{argument}'", f'"{argument}"')
    for spelling in spellings:
        with suppress(UsageError):
            if parse(f"{name}:{spelling}", registry) == [Spec(name, argument)]:
                return spelling
    return spellings[-1]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def bracket(text: str) -> str:
    """Put round brackets around text that would otherwise be cut at its commas."""
    return f"({text})" if "," in text and not text.startswith(("[", "(")) else text

"""Find components by name: one file each, listed by reading the files, imported only when used.

A component announces itself where it is defined:

    @METHODS.register("sep")
    @dataclass(frozen=True)
    class SelfEnsemble(Method):
        '''Steps against a trajectory of surrogate checkpoints.'''

Listing names and summaries parses the source and runs none of it, so it needs no torch. Three
places are read: the package that belongs to the registry, files given with `--plugin`, and
installed distributions that declare an entry point in the group `unlearnable_bench.<package>`.
"""

from __future__ import annotations

import ast
import difflib
import fnmatch
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from bench.errors import UsageError
from bench.files import user_path

ROOT = Path(__file__).resolve().parent.parent
T = TypeVar("T", bound=type)

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
"""What can be typed as a name; settings, patterns and joints have other characters."""


@dataclass(frozen=True)
class Entry:
    """What is known of a component before it is imported."""

    name: str
    summary: str
    argument: str | None
    """The setting that may follow the name without `key=`, as the path in `file:PATH`."""
    in_all: bool
    """Whether `all` and globs stand for it, too."""
    also: tuple[str, ...]
    """What papers call it."""
    file: Path
    line: int
    module: str | None
    """Dotted module name, or None for a plug-in file that belongs to no package."""

    @property
    def origin(self) -> str:
        """Where it is defined, as `methods/sep.py:40`."""
        inside = self.file.is_relative_to(ROOT)
        return f"{self.file.relative_to(ROOT) if inside else self.file}:{self.line}"


class Registry:
    """The components of one kind.

    Args:
        kind: what one of them is called in messages, such as "method".
        variable: the name of this object in source code, by which decorators are recognised.
        package: dotted name of the package whose files are searched.
        base: dotted name of the class that all of them are derived from.
        joinable: whether several joined by "+" make one.
    """

    def __init__(
        self,
        kind: str,
        variable: str,
        package: str,
        base: str = "bench.component.Component",
        *,
        joinable: bool = False,
    ) -> None:
        self.kind, self.variable, self.package, self.base = kind, variable, package, base
        self.joinable = joinable
        self._classes: dict[str, type] = {}
        self.plugins: list[Path] = []

    @property
    def plural(self) -> str:
        """What several of one kind are called."""
        return f"{self.kind[:-1]}ies" if self.kind.endswith("y") else f"{self.kind}s"

    def register(
        self,
        name: str,
        *,
        argument: str | None = None,
        in_all: bool = True,
        also: tuple[str, ...] = (),
    ) -> Callable[[T], T]:
        """Class decorator: make the class known under `name`.

        Args:
            name: lower case with hyphens, as typed on the command line.
            argument: the setting that may follow the name without `key=`.
            in_all: whether `all` and globs stand for it, too; they never do for those that need
                an argument.
            also: what papers call it; understood wherever the name is, and shown nowhere else.
        """
        del argument, in_all, also  # read from the source, so that they are known before the import

        def decorate(cls: T) -> T:
            known = self._classes.get(name)
            if known is not None and known.__module__ != cls.__module__:
                raise UsageError(
                    f"{self.kind} '{name}' is defined twice: in {known.__module__} and in "
                    f"{cls.__module__}. Rename one of them."
                )
            cls.name = name
            self._classes[name] = cls
            return cls

        return decorate

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Every component by name, sorted, without importing any."""
        found: dict[str, Entry] = {}
        for entry in [*self._built_in(), *self._installed(), *self._from_plugins()]:
            other = found.get(entry.name)
            if other is not None and other.origin != entry.origin:
                raise UsageError(
                    f"{self.kind} '{entry.name}' is defined twice: {other.origin} and "
                    f"{entry.origin}. Rename one of them."
                )
            found[entry.name] = entry
        return dict(sorted(found.items()))

    @cached_property
    def _spellings(self) -> dict[str, str]:
        """Names by what is left of them, and of what papers call them, without case and hyphens."""
        known = {_folded(name): name for name in self.entries}
        for name, entry in self.entries.items():
            for other in map(_folded, entry.also):
                mine = known.setdefault(other, name)
                if mine != name and _folded(mine) != other:  # a name of its own comes first
                    raise UsageError(
                        f"{self.kind} '{name}' is also called as '{known[other]}' is; see "
                        f"{entry.origin}"
                    )
        return known

    def called(self, name: str) -> str | None:
        """The registered name of what somebody calls `name`, in any case, or None."""
        return name if name in self.entries else self._spellings.get(_folded(name))

    def entry(self, name: str) -> Entry:
        """The entry called `name`; an unknown name lists the nearest and all others."""
        known = self.called(name)
        if known is None:
            raise UsageError(self._unknown(name))
        return self.entries[known]

    def get(self, name: str) -> type:
        """The class registered as `name`, importing its file if need be."""
        entry = self.entry(name)
        name = entry.name
        if name not in self._classes:
            try:
                _import(entry)
            except (Exception, SystemExit) as error:
                if entry.file.is_relative_to(ROOT):
                    raise
                reason = f"{type(error).__name__}: {error}"
                raise UsageError(f"plug-in {entry.file} cannot be imported ({reason})") from error
            self._check(entry)
            if not entry.file.is_relative_to(ROOT):
                # Others' files change without a version: their content is part of what they are.
                content = hashlib.sha256(entry.file.read_bytes())
                self._classes[name].source = content.hexdigest()[:16]
        return self._classes[name]

    def match(self, pattern: str) -> list[str]:
        """Names that a pattern stands for: `all`, a glob, or one name.

        Patterns match neither components that need an argument, such as `file:PATH`, nor those
        that only make sense when asked for.
        """
        if pattern.lower() != "all" and not any(character in pattern for character in "*?["):
            return [self.entry(pattern).name]
        plain = [name for name, entry in self.entries.items() if entry.in_all]
        names = plain if pattern.lower() == "all" else fnmatch.filter(plain, pattern.lower())
        if not names:
            raise UsageError(
                f"no {self.kind} matches '{pattern}'; there are: {', '.join(self.entries)}"
            )
        return names

    def add_plugin(self, file: Path) -> int:
        """Search one more file; returns how many components of this kind it defines."""
        file = file.resolve()
        count = len(self._scan(file, None))
        if count and file not in self.plugins:
            self.plugins.append(file)
            self._scan_again()
        return count

    def forget(self, file: Path) -> None:
        """Undo `add_plugin`, for tests of plug-ins."""
        module = _plugin_module(file)
        self._classes = {k: c for k, c in self._classes.items() if c.__module__ != module}
        self.plugins = [known for known in self.plugins if known != file.resolve()]
        self._scan_again()

    def _scan_again(self) -> None:
        for found in ("entries", "_spellings"):
            self.__dict__.pop(found, None)

    def _check(self, entry: Entry) -> None:
        """Raise UsageError unless importing it has registered a class of this kind."""
        cls = self._classes.get(entry.name)
        module, _, name = self.base.rpartition(".")
        base = getattr(importlib.import_module(module), name)
        if cls is None:
            fault = "was not registered when the file was run; decorate the class at its top level"
        elif not (isinstance(cls, type) and issubclass(cls, base)):
            fault = f"is no {name}; derive its class from {self.base}"
        elif not set(inspect.get_annotations(cls)) <= set(cls.__dataclass_fields__):
            fault = "is no dataclass; write @dataclass(frozen=True) below the registration"
        else:
            return
        self._classes.pop(entry.name, None)
        raise UsageError(f"{self.kind} '{entry.name}' in {entry.origin} {fault}")

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name.lower(), self.entries, n=3, cutoff=0.5)
        guess = f"did you mean {' or '.join(near)}? There" if near else "there"
        return f"unknown {self.kind} '{name}'; {guess} are: {', '.join(self.entries)}"

    def _built_in(self) -> list[Entry]:
        folder = ROOT.joinpath(*self.package.split("."))
        entries = []
        for file in sorted(folder.glob("*.py")):
            entries += self._scan(file, f"{self.package}.{file.stem}")
        return entries

    def _installed(self) -> list[Entry]:
        entries = []
        group = f"unlearnable_bench.{self.package.rpartition('.')[2]}"
        for point in importlib.metadata.entry_points(group=group):
            file = _locate(point.module)
            if file is not None:
                entries += self._scan(file, point.module)
        return entries

    def _from_plugins(self) -> list[Entry]:
        return [entry for file in self.plugins for entry in self._scan(file, None)]

    def _scan(self, file: Path, module: str | None) -> list[Entry]:
        """Components that a source file registers here, in the order in which they stand."""
        try:
            source = file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{file} cannot be read as UTF-8 text ({error})") from None
        if f"{self.variable}.register" not in source:
            return []
        try:
            tree = ast.parse(source)
        except SyntaxError as error:
            raise UsageError(f"{file}:{error.lineno} is not valid Python: {error.msg}") from None
        except (ValueError, RecursionError, MemoryError) as error:  # zero bytes, endless brackets
            raise UsageError(f"{file} is not valid Python: {error}") from None
        entries = []
        for node in tree.body:
            if not isinstance(node, ast.ClassDef):
                continue
            for call in node.decorator_list:
                if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                    continue
                owner = call.func.value
                if not (isinstance(owner, ast.Name) and owner.id == self.variable):
                    continue
                try:
                    name = ast.literal_eval(call.args[0])
                    keywords = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
                    argument, also = keywords.get("argument"), tuple(keywords.get("also", ()))
                    for text in (name, argument or name, *also):
                        if not _NAME.fullmatch(text):
                            raise ValueError
                except (ValueError, IndexError, TypeError):
                    raise UsageError(
                        f"{file}:{call.lineno}: write the name out, with letters, digits, hyphens "
                        f'and dots, as in @{self.variable}.register("my-{self.kind}")'
                    ) from None
                summary = (ast.get_docstring(node) or "").partition("\n")[0]
                in_all = argument is None and bool(keywords.get("in_all", True))
                entries.append(
                    Entry(name, summary, argument, in_all, also, file, call.lineno, module)
                )
        return entries


def _folded(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _locate(module: str) -> Path | None:
    """The file of a dotted module, found without running any of its packages."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return None
    if not rest:
        return Path(spec.origin)
    file = Path(spec.origin).parent.joinpath(*rest).with_suffix(".py")
    return file if file.exists() else None


def _plugin_module(file: Path) -> str:
    place = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]
    return f"unlearnable_bench_plugin_{file.stem}_{place}"


def _import(entry: Entry) -> ModuleType:
    if entry.module is not None:
        return importlib.import_module(entry.module)
    name = _plugin_module(entry.file)
    spec = importlib.util.spec_from_file_location(name, entry.file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it is being run
    spec.loader.exec_module(module)
    return module


METHODS = Registry("method", "METHODS", "methods", "bench.method.Method", joinable=True)
DEFENSES = Registry("defense", "DEFENSES", "defenses", "bench.defense.Defense", joinable=True)
ARCHS = Registry("architecture", "ARCHS", "bench.archs", "bench.network.Arch")
DATASETS = Registry("dataset", "DATASETS", "bench.datasets", "bench.data.DatasetSource")
RECIPES = Registry("recipe", "RECIPES", "bench.recipes", "bench.recipe.Recipe")
STUDIES = Registry("study", "STUDIES", "bench.studies", "bench.study.Study")
REGISTRIES = (METHODS, DEFENSES, ARCHS, DATASETS, RECIPES, STUDIES)


def plugin_files() -> list[str]:
    """The plug-ins loaded so far."""
    files = [str(file) for registry in REGISTRIES for file in registry.plugins]
    return list(dict.fromkeys(files))


def load_plugin(path: str) -> None:
    """Make every component in the file at `path` known to its registry.

    Raises:
        UsageError: if there is no such file or it registers nothing.
    """
    file = user_path(path)
    if not file.is_file():
        raise UsageError(f"plug-in '{path}' is not a file; give the path of a Python file")
    if not sum(registry.add_plugin(file) for registry in REGISTRIES):
        names = ", ".join(f"@{registry.variable}.register" for registry in REGISTRIES)
        raise UsageError(
            f"plug-in '{path}' registers nothing; decorate a class with one of {names}"
        )

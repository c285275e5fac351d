"""The house itself: imports point one way, packages are ours, listing needs no torch."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    file for folder in ("bench", "methods", "defenses") for file in (ROOT / folder).rglob("*.py")
)
LEAVES_TO_USERS = [
    {"errors", "terminal", "pipes", "seeding", "files", "names", "augment", "replay"},
    {"policies", "gaussian_mixture", "bfloat16"},
    {"registry"},
    {"component"},
    {"budget", "data", "recipe", "store", "folding", "worst_case", "mixing"},
    {"soundness", "samples", "record"},
    {"targets"},
    {"network", "decoded", "pgd", "joined", "separability", "resemblance"},
    {"method", "defense", "device", "release", "loading"},
    {"archs", "datasets", "recipes"},
    {"crafting", "train", "composition", "stack", "imprint", "grid", "second_order"},
    {"study"},
    {"studies"},
    {"running"},
    {"reports"},
    {"describe", "compare"},
    {"papers"},
    {"testing"},
    {"speed"},
]
"""Modules and packages of `bench`: each may import those above it and its neighbours."""
ROOMS = {
    "running": [{"plan", "progress"}, {"session"}, {"work"}, {"worker", "runner"}, {"estimate"}],
    "reports": [
        {"summary"},
        {"flags"},
        {"table", "ranks"},
        {"cells"},
        {"notes"},
        {"premises"},
        {"tables"},
        {"claims", "axes", "class_tables", "defense_tables", "plots"},
        {"axis_plots", "thumbnails", "heatmap", "detection"},
        {"report"},
    ],
    "compare": [{"cells"}, {"studies"}, {"table", "merge"}, {"cli"}],
    "papers": [
        {"targets"},
        {"published", "lookup", "study_tables"},
        {"tables", "material", "plots", "theory_figure"},
        {"claims", "statistics"},
        {"request"},
        {"figures"},
    ],
}
"""The same inside packages whose modules depend on each other."""


def imported(file: Path) -> set[str]:
    """Dotted names that a file imports at run time, wherever in the file."""
    names = set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names.add(node.module or "")
            inside = ROOT.joinpath(*(node.module or "").split("."))
            names |= {
                f"{node.module}.{alias.name}"
                for alias in node.names
                if (inside / alias.name).is_dir() or (inside / f"{alias.name}.py").is_file()
            }
    return names


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file: Path) -> None:
    package = file.relative_to(ROOT).parts[0]
    tops = {name.partition(".")[0] for name in imported(file)}
    assert not tops & {"run_bench", "tests"}
    siblings = {"bench": {"methods", "defenses"}, "methods": {"defenses"}, "defenses": {"methods"}}
    assert not tops & siblings[package]
    if package == "methods":
        others = {name for name in imported(file) if name.startswith("methods.")}
        assert not others, "methods never import each other: what two need is bench's"


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_modules_of_bench_import_only_downwards(room: str) -> None:
    layers = ROOMS[room] if room else LEAVES_TO_USERS
    level = {name: index for index, names in enumerate(layers) for name in names}
    inside = ("bench", room) if room else ("bench",)
    depth = len(inside)
    for file in SOURCES:
        parts = file.relative_to(ROOT).with_suffix("").parts
        if parts[:depth] != inside or parts[depth] == "__init__":
            continue
        own = level[parts[depth]]
        for name in imported(file):
            others = tuple(name.split("."))
            if others[:depth] != inside or len(others) == depth:
                continue
            assert level[others[depth]] <= own, f"{file.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("package", ["bench", "methods", "defenses"])
def test_packages_are_those_of_this_checkout(package: str) -> None:
    # Another installed distribution with a folder `methods` would win over an editable install.
    module = importlib.import_module(package)
    assert Path(str(module.__file__)).parent == ROOT / package


def test_listing_imports_nothing_slow() -> None:
    """Half a second on an idle machine, where torch alone would take several."""
    code = (
        "import sys, run_bench; run_bench.main(['--list']); "
        "assert not {'torch', 'numpy', 'timm', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sep-fa-vr" in done.stdout


def test_help_needs_no_torch() -> None:
    code = (
        "import sys, run_bench\n"
        "try: run_bench.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_file_names_a_path_of_this_machine() -> None:
    words = ("/" + "work/", "/" + "root/", "/" + "home/")
    for file in [*SOURCES, ROOT / "run_bench.py", ROOT / "README.md", ROOT / "pyproject.toml"]:
        text = file.read_text(encoding="utf-8")
        assert not any(word in text for word in words), file

"""What the README shows is what the code and the committed records say."""

import re
from pathlib import Path

import pytest

import run_bench
from bench.compare.cli import diff_parser, merge_parser
from bench.registry import METHODS, load_plugin
from bench.testing import check_method

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def between(name: str) -> str:
    """The part of the README between two markers."""
    found = re.search(f"<!-- {name}:start -->(.*)<!-- {name}:end -->", README, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def corner(tmp_path: Path):
    """The README's example as a file of its own; its method is forgotten afterwards."""
    file = tmp_path / "corner.py"
    file.write_text(between("example").replace("```python\n", "").replace("```", ""))
    yield file
    METHODS.forget(file)


def test_the_example_method_keeps_the_laws(corner: Path) -> None:
    load_plugin(str(corner))
    check_method("corner")


@pytest.mark.slow
def test_the_example_method_runs_from_the_command_line(corner: Path, tmp_path, capsys) -> None:
    arguments = ["--plugin", str(corner), "--methods", "corner", "--archs", "rn18:width=0.0625"]
    arguments += ["--dataset", "synthetic", "--workers", "1", "--threads", "1"]
    arguments += ["--results-dir", str(tmp_path / "results"), "--store", str(tmp_path / "store")]
    assert run_bench.main(arguments) == 0
    assert "corner" in capsys.readouterr().out


def test_the_table_is_that_of_the_committed_records() -> None:
    shown = between("campaign")
    named = re.findall(r"results/[\w./-]+-main\.(?:md|txt)", shown)
    assert named, "the text names the file that its table is copied from"
    for name in named:
        table = [line for line in (ROOT / name).read_text().splitlines() if line.startswith("|")]
        assert table
        for line in table:
            assert line in shown


def test_every_option_in_the_readme_exists() -> None:
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))
    parsers = (run_bench.parser, diff_parser, merge_parser)
    known = {option for made in parsers for option in made()._option_string_actions}
    assert options <= known


def test_every_picture_is_there() -> None:
    for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / name).is_file()

"""The committed records are whole, and the committed tables are made from them."""

import shutil
from pathlib import Path

import pytest

from bench import Grid, load_results
from bench.claims import FILE
from bench.paper import report_paper
from bench.report import write_report
from bench.store import key_of
from bench.targets import find_tables

RESULTS = Path(__file__).resolve().parent.parent / "results"
CAMPAIGNS = sorted(
    folder.parent for folder in RESULTS.glob("*/cells") if folder.parent.name != "local"
)


def paper_tables(folder: Path) -> set[str]:
    """The published tables that are filled there, as `sep-table4`."""
    return {file.stem.removeprefix("paper-") for file in (folder / "tables").glob("paper-*")}


@pytest.mark.parametrize("folder", CAMPAIGNS, ids=lambda folder: folder.name)
def test_committed_records_are_what_their_keys_say(folder: Path) -> None:
    frame = load_results(folder)
    assert len(frame)
    for record in frame.to_dict("records"):
        assert key_of(record["identity"]) == record["key"]
        assert record["status"] == "done"
        assert len(record["curve"]) == record["recipe_settings"]["epochs"]
        assert not record["commit"].endswith("+"), "made from code that is not committed"


@pytest.mark.parametrize("folder", CAMPAIGNS, ids=lambda folder: folder.name)
def test_committed_tables_are_made_from_the_committed_records(folder: Path, tmp_path) -> None:
    shutil.copytree(folder / "cells", tmp_path / "cells")
    if (folder / FILE).exists():
        shutil.copy(folder / FILE, tmp_path)
    write_report(tmp_path)
    tables = sorted((folder / "tables").iterdir())
    papers = {name.partition("-claims")[0] for name in paper_tables(folder)}
    for name in papers:
        report_paper(tmp_path, find_tables(name.replace("-", ":", 1)), Grid(recipe="quick"))
    assert tables
    for table in tables:
        assert table.read_text() == (tmp_path / "tables" / table.name).read_text()

"""The committed records are whole, and the committed tables are made from them."""

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import run_bench
from bench import Grid, load_results
from bench.data import Splits
from bench.grid import Expansion, TrainingData
from bench.papers.figures import report_figures
from bench.papers.published import find_published
from bench.papers.request import report_paper
from bench.record import CELLS, STUDIES, read, read_all
from bench.reports.claims import FILE
from bench.reports.report import write_report
from bench.store import key_of

RESULTS = Path(__file__).resolve().parent.parent / "results"
CAMPAIGNS = sorted(
    folder.parent for folder in RESULTS.glob("*/cells") if folder.parent.name != "local"
)


def published(folder: Path) -> set[str]:
    """The published tables and figures that are filled there, as `sep:table4`."""
    names = {file.stem.removeprefix("paper-") for file in (folder / "tables").glob("paper-*")}
    return {":".join(name.split("-")[:2]) for name in names}


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
def test_committed_tables_are_made_from_the_committed_records(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And every committed picture is still made; drawing them took most of the time."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, out, **how: out.write(b"drawn"))
    for room in (CELLS, STUDIES, "samples"):
        if (folder / room).exists():
            shutil.copytree(folder / room, tmp_path / room)
    if (folder / FILE).exists():
        shutil.copy(folder / FILE, tmp_path)
    write_report(tmp_path)
    for name in sorted(published(folder)):
        filled, drawn = find_published(name)
        report_paper(tmp_path, filled, Grid(recipe="quick"))
        report_figures(tmp_path, drawn, Grid(recipe="quick"), {})
    tables = sorted((folder / "tables").iterdir())
    assert tables
    for table in tables:
        assert table.read_text() == (tmp_path / "tables" / table.name).read_text()
    for picture in (folder / "plots").iterdir():
        assert (tmp_path / "plots" / picture.name).read_bytes() == b"drawn"


@pytest.mark.parametrize("folder", CAMPAIGNS, ids=lambda folder: folder.name)
def test_every_record_is_one_that_the_grids_of_its_campaign_ask_for(
    folder: Path, cifar10: Splits
) -> None:
    """So that `--config` with these files makes the campaign again."""
    recorded = {one["key"]: one["precision"] for one in read_all(folder)}
    grids = [file for file in folder.glob("*.toml") if file.name != FILE]
    assert grids
    asked = set()
    for file, precision in itertools.product(grids, set(recorded.values())):
        typed = vars(run_bench.parser().parse_args(["--config", str(file)]))
        session = run_bench.session_of(run_bench.with_defaults(typed), typed)
        assert session.results == folder
        expansion = Expansion(replace(session.grid, precision=precision))
        data = TrainingData.cut(cifar10, expansion.recipe, expansion.source)
        cells = expansion.cells(data)
        asked |= {cell.key for one in cells for cell in (one, one.longer())}
    assert recorded.keys() <= asked


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*/studies/*.json")), ids=lambda f: f.stem)
def test_committed_studies_are_what_their_keys_say(file: Path) -> None:
    one = read(file)
    assert key_of(one["identity"]) == one["key"]
    assert not one["commit"].endswith("+"), "made from code that is not committed"

"""The command line: what it prints, what it refuses, and with which exit code."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import run_bench
from bench import Grid
from bench.errors import UsageError
from bench.registry import RECIPES

TINY = [
    *("--archs", "rn18:width=0.0625"),
    *("--dataset", "synthetic:train=64,test=40,size=16"),
    *("--recipe", "quick:epochs=2,batch_size=32,train_images=none,curve_images=none"),
    *("--workers", "1", "--threads", "1"),
]


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """Options that keep a run inside the test's own folder."""
    return [
        *("--results-dir", str(tmp_path / "results")),
        *("--store", str(tmp_path / "store")),
        *("--data-dir", str(tmp_path / "data")),
        "--offline",
    ]


def write_images(folder: Path, count: int, size: tuple[int, int] = (16, 16)) -> None:
    """A folder with a few random images."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")


WRONG = {
    "unknown method": (["--methods", "sepp"], "unknown method 'sepp'; did you mean sep"),
    "unknown architecture": (["--archs", "rn19"], "unknown architecture 'rn19'; did you mean rn18"),
    "unknown defense": (["--defenses", "mixdown"], "unknown defense 'mixdown'"),
    "unknown data set": (
        ["--dataset", "cifar11"],
        "unknown dataset 'cifar11'; did you mean cifar1",
    ),
    "unknown recipe": (["--recipe", "fast"], "unknown recipe 'fast'"),
    "two recipes": (["--recipe", "quick,paper"], "names 2 recipes where one may stand"),
    "empty methods": (["--methods", ""], "no method given"),
    "empty architectures": (["--archs", ","], "no architecture given"),
    "empty seeds": (["--seeds", ""], "no seeds given"),
    "malformed seed": (["--seeds", "one"], "'one' is no seed"),
    "malformed epsilon": (["--epsilon", "8//255"], "--epsilon: '8//255'"),
    "epsilon in grey levels": (["--epsilon", "8"], "write 8/255 for 8 grey levels"),
    "negative epsilon": (["--epsilon", "-0.1"], "must lie between 0 and 1"),
    "epsilon that nobody takes": (
        ["--methods", "cuda", "--epsilon", "8/255"],
        "none of clean, cuda has an l∞ budget",
    ),
    "unknown setting": (["--methods", "sep:checkpoint=5"], "did you mean checkpoints"),
    "setting of a wrong type": (["--methods", "sep:steps=few"], "write a whole number"),
    "setting out of range": (["--recipe", "quick:epochs=0"], "epochs=0 must be above 0"),
    "setting before a name": (["--methods", "steps=3"], "stands before any method"),
    "open bracket": (["--methods", "sep:surrogate=(rn18"], "unbalanced brackets"),
    "argument missing": (["--archs", "timm"], "needs its model: write timm:MODEL"),
    "unknown timm model": (["--archs", "timm:resnet19"], "resnet"),
    "more checkpoints than epochs": (
        ["--methods", "sep:checkpoints=11", "--dataset", "synthetic"],
        "more checkpoints than the surrogate's 10 epochs",
    ),
    "blur wider than the image": (
        ["--defenses", "jpeg+gaussian-blur:kernel=33", "--dataset", "synthetic"],
        "gaussian-blur: kernel=33 is too large for images of 16 x 16 pixels; give 31 or less",
    ),
    "median wider than the image": (
        ["--defenses", "median-filter:kernel=65", "--dataset", "synthetic"],
        "median-filter: kernel=65 is too large",
    ),
    "bilateral filter wider than the image": (
        ["--defenses", "bilateral-filter:diameter=65", "--dataset", "synthetic"],
        "bilateral-filter: diameter=65 is too large",
    ),
    "poison ratio above one": (["--poison-ratio", "1.5"], "must lie between 0 and 1"),
    "negative holdout": (["--holdout", "-1"], "must not be negative"),
    "holdout of everything": (
        ["--holdout", "200", "--methods", "noise", "--dataset", "synthetic"],
        "leaves nothing",
    ),
    "fraction of a holdout": (["--holdout", "0.5"], "not a whole number"),
    "no workers": (["--workers", "0"], "must be 1 or more"),
    "malformed time limit": (["--time-limit", "soon"], "'soon' is no duration"),
    "unknown device": (["--device", "abacus"], "device 'abacus' cannot be used"),
    "tf32 on a processor": (["--device", "cpu", "--precision", "tf32"], "needs a CUDA device"),
    "unknown precision": (["--precision", "fp8"], "unknown precision 'fp8'"),
    "missing data": (["--dataset", "cifar10"], "--data-dir"),
    "missing folder": (["--dataset", "folder:nowhere"], "nowhere"),
    "missing plug-in": (["--plugin", "nowhere.py"], "is not a file"),
    "missing configuration": (["--config", "nowhere.toml"], "cannot be read"),
    "unknown description": (["--describe", "sepp"], "nothing is called 'sepp'; did you mean sep"),
    "report of nothing": (["--report-only"], "records"),
    "missing crafted set": (["--methods", "file:nowhere.npz"], "nowhere.npz"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_requests_end_with_one_line(kind: str, folders: list[str], capsys) -> None:
    arguments, words = WRONG[kind]
    assert run_bench.main([*folders, *arguments]) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert printed[-1].startswith("error: ")
    assert words in printed[-1]
    assert not any("Traceback" in line for line in printed)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("methods = ", "not valid TOML"),
        ("method = 'sep'", "sets unknown 'method'; did you mean methods"),
        ("methods = ['sepp']", "unknown method 'sepp'"),
    ],
)
def test_wrong_configurations(content, words, folders, tmp_path, capsys) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(content)
    assert run_bench.main([*folders, "--config", str(file)]) == 2
    assert words in capsys.readouterr().err


def test_wrong_image_folders(folders, tmp_path, capsys) -> None:
    write_images(tmp_path / "one" / "cats", 4)
    assert run_bench.main([*folders, "--dataset", f"folder:{tmp_path / 'one'}"]) == 2
    assert "class" in capsys.readouterr().err
    write_images(tmp_path / "odd" / "cats", 4)
    write_images(tmp_path / "odd" / "dogs", 4, (20, 12))
    assert run_bench.main([*folders, "--dataset", f"folder:{tmp_path / 'odd'}"]) == 2
    assert "size=" in capsys.readouterr().err


def test_a_results_folder_that_cannot_be_written(tmp_path, capsys) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    arguments = ["--results-dir", str(blocked / "results"), "--store", str(tmp_path / "store")]
    assert run_bench.main([*arguments, *TINY, "--methods", "noise"]) == 2
    assert "choose another with --results-dir" in capsys.readouterr().err


def test_a_grid_runs_and_prints_its_table(folders, capsys) -> None:
    assert run_bench.main([*folders, *TINY, "--methods", "noise"]) == 0
    shown = capsys.readouterr()
    assert "noise" in shown.out
    assert "l∞ 8/255" in shown.out
    assert "not comparable with published values" in shown.out.replace("\n", " ").lower()
    assert "recipe quick" in shown.err
    assert "core-seconds" in shown.err
    assert run_bench.main([*folders, "--report-only", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert {record["method"] for record in records} == {"clean", "noise"}


def test_the_plan_says_what_is_there(folders, capsys) -> None:
    arguments = [*folders, *TINY, "--methods", "noise"]
    assert run_bench.main([*arguments, "--plan"]) == 0
    assert "craft noise" in capsys.readouterr().out
    run_bench.main(arguments)
    capsys.readouterr()
    assert run_bench.main([*arguments, "--plan", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["cells"] == facts["recorded"] == 2
    assert facts["tasks"] == []


def test_epsilon_zero_gives_back_the_clean_result(folders, capsys) -> None:
    arguments = [*folders, *TINY, "--methods", "noise", "--epsilon", "0", "--json"]
    assert run_bench.main(arguments) == 0
    clean, noise = json.loads(capsys.readouterr().out)
    assert noise["epsilon"] == 0
    assert noise["curve"] == clean["curve"]


def test_epsilon_sets_linf_methods_and_leaves_the_others(folders, capsys) -> None:
    arguments = [*folders, *TINY, "--methods", "noise,cuda", "--epsilon", "2/255", "--json"]
    assert run_bench.main(arguments) == 0
    records = {record["method"]: record for record in json.loads(capsys.readouterr().out)}
    assert records["noise"]["audit"]["max_levels"] == 2
    assert records["cuda"]["budget"] == {"norm": "none", "epsilon": None}


def test_a_configuration_file_is_overridden_by_options(tmp_path) -> None:
    file = tmp_path / "grid.toml"
    file.write_text('methods = ["sep", "noise"]\nseeds = [0, 1]\ncraft-seed = 4\n')
    typed = vars(run_bench.parser().parse_args(["--config", str(file), "--seeds", "5"]))
    options = run_bench.with_defaults(typed)
    session = run_bench.session_of(options, typed)
    assert session.grid == Grid(methods="sep,noise", seeds=(5,), craft_seed=4)


def test_description_of_a_defense_tells_what_it_knows_and_costs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_bench.main(["--describe", "pretrained-probe"]) == 0
    told = capsys.readouterr().out
    assert "knows     pretrained-weights\ncost      0.33 x plain training\n" in told
    assert "note      another architecture" in told
    assert run_bench.main(["--describe", "randomized-smoothing"]) == 0
    told = capsys.readouterr().out
    assert "knows     the released images\n" in told
    assert "1 x plain training, 100 passes a test image\nnote      alters prediction" in told


def test_lists_and_descriptions(capsys) -> None:
    assert run_bench.main(["--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert set(listed) == {"method", "defense", "architecture", "dataset", "recipe", "study"}
    assert run_bench.main(["--describe", "sep-fa-vr"]) == 0
    text = capsys.readouterr().out
    for words in ("checkpoints = 15 (3 under quick", "870 gradients an image", "ICLR 2023"):
        assert words in text
    for name in RECIPES.entries:
        assert run_bench.main(["--describe", name]) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("90s", 90), ("9m", 540), ("1h30m", 5400), ("1.5h", 5400)],
)
def test_durations(text: str, expected: float) -> None:
    assert run_bench.seconds(text) == expected


def test_seed_ranges() -> None:
    assert run_bench.seeds("0-2,7,1") == (0, 1, 2, 7)
    with pytest.raises(UsageError):
        run_bench.seeds("2-")


def test_published_tables_tell_what_was_left_out(folders, tmp_path, capsys) -> None:
    file = tmp_path / "results" / "cells" / "half.json"
    file.parent.mkdir(parents=True)
    file.write_text("{")
    assert run_bench.main([*folders, "--paper", "sep:table4", "--report-only"]) == 0
    shown = capsys.readouterr()
    notes = [line for line in shown.err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert notes[0].startswith(f"note: left out: record {file} cannot be read")
    assert "note: " not in shown.out


def test_a_missing_library_is_one_line(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "bench.grid", None)
    assert run_bench.main(["--methods", "sep"]) == 2
    assert "install the requirements" in capsys.readouterr().err

"""Odd requests end in one line, names steer nothing, and the same holds at every border."""

import io
import json
import os
import random
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

import bench
import run_bench
from bench.component import parse, parse_one
from bench.errors import UsageError
from bench.files import user_path
from bench.grid import Grid
from bench.record import load_results
from bench.registry import ARCHS, DATASETS, DEFENSES, METHODS, load_plugin
from bench.reports.table import Table, frame, machine
from bench.running.progress import Display
from bench.running.runner import run
from bench.running.session import Session
from bench.terminal import LONGEST_LINE, printable, say
from tests.invented import record
from tests.test_cli import TINY, folders, write_images  # noqa: F401 - a fixture

ROOT = Path(__file__).resolve().parent.parent
DIGITS = "9" * 5000
ODD = "\x1b[31mred\nnext\x9b2J\u202e\udce9"


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a request is refused."""
    assert run_bench.main(arguments) == 2
    *before, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: ")
    assert not any(line.startswith(("error", "usage", "Traceback")) for line in before)
    return last


ONE_LINE = {
    "an unknown option": (["--method", "sep", "--frobnicate"], "--frobnicate; run_bench.py --help"),
    "an option of diff": (["diff", "a", "b", "--chek"], "run_bench.py diff --help"),
    "merge of nothing": (["merge"], "required"),
    "an abbreviation of two": (["--re", "x"], "could match"),
    "a missing value": (["--seeds"], "expected one argument"),
    "three billion seeds": (["--seeds", "0-3000000000"], "more than 10000 seeds"),
    "three billion cells": (
        ["--methods", "all", "--defenses", "all", "--seeds", "0-9999", "--dataset", "synthetic"],
        "that one grid may have",
    ),
    "a seed of many digits": (["--seeds", DIGITS], "at most 18 digits"),
    "more epochs than anybody trains": (["--recipe", f"quick:epochs={'9' * 18}"], "at most 100000"),
    "more images than fit": (["--dataset", f"synthetic:train={'9' * 18}"], "pixels that are drawn"),
    "images larger than fit": (["--dataset", f"synthetic:size={'9' * 18}"], "pixels"),
    "a crop larger than fits": (["--methods", f"ar:crop={'9' * 18}"], "at most 1000"),
    "a range of many digits": (["--seeds", f"0-{DIGITS}"], "at most 18 digits"),
    "workers of many digits": (["--workers", DIGITS], "at most 18 digits"),
    "more threads than a system has": (["--threads", "100000"], "more than 1024"),
    "a holdout of many digits": (["--holdout", DIGITS], "at most 18 digits"),
    "a crafting seed of many digits": (["--craft-seed", DIGITS], "at most 18 digits"),
    "a setting of many digits": (["--methods", f"sep:steps={DIGITS}"], "at most 18 digits"),
    "a radius of many digits": (["--epsilon", f"{DIGITS}/255"], "finite"),
    "memory of many digits": (["--memory", f"{DIGITS}G"], "is no size"),
    "another's results": (["--results-dir", "~nosuchuser/r"], "nobody's home here is ~nosuchuser"),
    "another's store": (["--store", "~nosuchuser"], "~nosuchuser"),
    "another's data": (["--data-dir", "~nosuchuser"], "~nosuchuser"),
    "another's configuration": (["--config", "~nosuchuser/x.toml"], "~nosuchuser"),
    "another's plug-in": (["--plugin", "~nosuchuser/x.py"], "~nosuchuser"),
    "another's images": (["--dataset", "folder:~nosuchuser"], "~nosuchuser"),
    "another's crafted set": (["--methods", "file:~nosuchuser/x.npz"], "~nosuchuser"),
    "another's processes": (
        ["--methods", "ar:coefficients=~nosuchuser/x.npz", "--dataset", "synthetic"],
        "~nosuchuser",
    ),
    "another's weights": (
        ["--defenses", "pretrained-probe:weights=~nosuchuser/x.pt", "--dataset", "synthetic"],
        "~nosuchuser",
    ),
    "another's records": (["diff", "~nosuchuser", "b"], "~nosuchuser"),
    "another's folder to merge into": (["merge", "a", "--into", "~nosuchuser"], "~nosuchuser"),
    "a name that is too long": (["--results-dir", "x" * 300], "longer than a name can be"),
    "a method with a newline": (["--methods", "se\np\x1b[2J"], r"'se\np\u001b[2J'"),
    "a device that is no device": (["--device", "mps:9"], "device 'mps:9' cannot be used"),
}


@pytest.mark.parametrize("kind", ONE_LINE)
def test_odd_requests_end_with_one_line(kind, folders, capsys) -> None:  # noqa: F811
    arguments, words = ONE_LINE[kind]
    usual = [] if arguments[0] in run_bench.COMMANDS else folders
    line = refused([*usual, *arguments], capsys)
    assert words in line
    assert len(line) <= LONGEST_LINE + 10


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has the device")
def test_a_device_of_another_system_is_one_short_line(folders, capsys) -> None:  # noqa: F811
    line = refused([*folders, "--device", "mps"], capsys)
    assert "this machine has none" in line
    assert len(line) < 200


def test_a_pipe_in_place_of_a_file_is_refused_at_once(tmp_path, folders, capsys) -> None:  # noqa: F811
    pipe = tmp_path / "pipe.npz"
    os.mkfifo(pipe)
    for arguments in (
        ["--methods", f"file:{pipe}"],
        ["--methods", f"ar:coefficients={pipe}", "--dataset", "synthetic"],
        ["--defenses", f"pretrained-probe:weights={pipe}", "--dataset", "synthetic"],
    ):
        assert "neither a file nor a folder" in refused([*folders, *arguments], capsys)


def npy(shape: str, content: bytes) -> bytes:
    """An .npy file of bytes that says to be of any shape."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + content


ARCHIVES = {
    "a shape with true in it": ([("images.npy", "(True, 16, 16, 3)")], "is damaged"),
    "more entries than numbers": ([("images.npy", f"({2**64 + 1}, 16, 16, 3)")], "is damaged"),
    "images and images.npy": (
        [("images", "(1, 16, 16, 3)"), ("images.npy", "(1, 16, 16, 3)")],
        "holds 'images' twice",
    ),
    "images that are no array": ([("images", "")], "not as an array"),
    "labels that are no array": (
        [("images.npy", "(1, 16, 16, 3)"), ("labels", "")],
        "'labels' twice, or not as an array",
    ),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_odd_archives_are_one_line(kind: str, folders, tmp_path, capsys) -> None:  # noqa: F811
    members, words = ARCHIVES[kind]
    file = tmp_path / "odd.npz"
    with zipfile.ZipFile(file, "w") as archive:
        for name, shape in members:
            archive.writestr(name, npy(shape, bytes(768)))
    line = refused([*folders, *TINY, "--methods", f"file:{file}", "--plan"], capsys)
    assert words in line


def test_a_link_to_itself_is_one_line(tmp_path, capsys) -> None:
    (tmp_path / "loop").symlink_to("loop")
    line = refused(["--results-dir", str(tmp_path / "loop" / "r"), "--report-only"], capsys)
    assert "leads to itself" in line


def test_a_file_where_records_go_is_told_before_anything_is_trained(folders, capsys) -> None:  # noqa: F811
    cells = Path(folders[1]) / "cells"
    cells.parent.mkdir(parents=True)
    cells.write_text("")
    line = refused([*folders, *TINY, "--methods", "noise"], capsys)
    assert "cannot be written" in line
    assert "--results-dir" in line


def test_a_home_is_known_everywhere(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert user_path("~/r") == tmp_path / "r"
    grid = Grid(dataset="folder:nowhere")
    with pytest.raises(UsageError):
        run(grid, results_dir="~/r", store="~/s", data_dir="~/d", quiet=True)
    assert (tmp_path / "r").is_dir()
    assert not Path("~").exists()
    with pytest.raises(UsageError, match=str(tmp_path)):
        load_results("~/r/none")


def test_grids_from_python_have_the_same_limit() -> None:
    with pytest.raises(UsageError, match="more than 10000 seeds"):
        Grid(seeds=range(3_000_000_000))  # pyright: ignore[reportArgumentType]
    assert Grid(seeds=[1, 1.0, 0]).seeds == (1, 0)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("typed", "ours", "registry"),
    [
        ("SEP", "sep", METHODS),
        ("SEP-FA-VR", "sep-fa-vr", METHODS),
        ("EMN", "ule", METHODS),
        ("rem", "rule", METHODS),
        ("TAP", "advpoison", METHODS),
        ("AdvPoison", "advpoison", METHODS),
        ("TensorClog", "tensorclog", METHODS),
        ("ResNet-18", "rn18", ARCHS),
        ("resnet_50", "rn50", ARCHS),
        ("VGG-16", "vgg16", ARCHS),
        ("DenseNet-121", "dn121", ARCHS),
        ("MobileNetV2", "mobilenetv2", ARCHS),
        ("CIFAR-10", "cifar10", DATASETS),
        ("TinyImageNet", "tiny-imagenet", DATASETS),
        ("Cutout", "cutout", DEFENSES),
        ("RandAugment", "randaugment", DEFENSES),
    ],
)
def test_papers_names_in_any_case(typed: str, ours: str, registry) -> None:
    assert parse_one(typed, registry).name == ours


def test_papers_names_give_our_keys_and_labels(places) -> None:
    def cells(methods: str, archs: str):
        expansion = bench.grid.Expansion(Grid(methods=methods, archs=archs, dataset="synthetic"))
        data = bench.grid.TrainingData.cut(
            expansion.source.load(places), expansion.recipe, expansion.source
        )
        return expansion.cells(data)

    ours = cells("sep:surrogate=rn18,noise+ops", "rn18")
    papers = cells("SEP:surrogate=ResNet-18,Noise+OPS", "ResNet-18")
    assert [cell.key for cell in papers] == [cell.key for cell in ours]
    assert [cell.labels for cell in papers] == [cell.labels for cell in ours]
    assert [spec.name for spec in parse("SEP-FA*", METHODS)] == [
        spec.name for spec in parse("sep-fa*", METHODS)
    ]


def test_descriptions_know_papers_names(capsys) -> None:
    assert run_bench.main(["--describe", "TAP"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("advpoison ")
    assert "Papers call it TAP" in told


PLUGINS = {
    "an integer name": ("@METHODS.register(5)\nclass X(Method): pass", "write the name out"),
    "a name with a comma": ('@METHODS.register("a,b")\nclass X(Method): pass', "letters, digits"),
    "no component": ('@METHODS.register("odd")\nclass X: pass', "is no Method"),
    "a defense": ('@METHODS.register("odd")\nclass X(Defense): pass', "is no Method"),
    "no dataclass": (
        '@METHODS.register("odd")\nclass X(Method):\n    steps: int = 3',
        "is no dataclass",
    ),
    "never registered": (
        "class R:\n    register = lambda *a: (lambda c: c)\nMETHODS = R()\n"
        '@METHODS.register("odd")\nclass X(Method): pass',
        "was not registered",
    ),
    "zero bytes": ('@METHODS.register("odd")\nclass X(Method): pass\n\0', "not valid Python"),
    "one name for two": ('@METHODS.register("odd", also=("TAP",))\nclass X: pass', "also called"),
}


@pytest.mark.parametrize("kind", PLUGINS)
def test_odd_plug_ins_end_with_one_line(kind: str, tmp_path: Path) -> None:
    source, words = PLUGINS[kind]
    file = tmp_path / "plugin.py"
    imports = "from bench.registry import METHODS\nfrom bench.method import Method\n"
    file.write_text(f"{imports}from bench.defense import Defense\n{source}\n")
    try:
        with pytest.raises(UsageError, match=words):  # noqa: PT012 - the fault shows in either
            load_plugin(str(file))
            METHODS.match("Odd")
            METHODS.get("odd")
    finally:
        METHODS.forget(file)


def test_a_plug_in_may_have_a_name_that_papers_use(tmp_path: Path) -> None:
    file = tmp_path / "plugin.py"
    file.write_text('METHODS = None\n@METHODS.register("tap")\nclass X: pass\n')
    load_plugin(str(file))
    try:
        assert METHODS.match("TAP") == ["tap"]
        assert METHODS.match("EMN") == ["ule"]
    finally:
        METHODS.forget(file)
    assert METHODS.match("TAP") == ["advpoison"]


def test_byte_order_marks_are_no_content(tmp_path: Path) -> None:
    config = tmp_path / "grid.toml"
    config.write_bytes(b"\xef\xbb\xbfmethods = 'noise'\n")
    assert run_bench.read_config(config) == {"methods": "noise"}
    config.write_text(f"seeds = {DIGITS}")
    with pytest.raises(UsageError, match="not valid TOML"):
        run_bench.read_config(config)
    plugin = tmp_path / "plugin.py"
    plugin.write_bytes(b"\xef\xbb\xbfMETHODS = None\n@METHODS.register('bom')\nclass X: pass\n")
    load_plugin(str(plugin))
    METHODS.forget(plugin)


def test_a_clock_that_is_set_back_changes_no_limit(monkeypatch) -> None:
    session = Session(Grid(), deadline=time.monotonic() + 100)
    assert not session.time_is_up()
    now = time.monotonic()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "monotonic", lambda: now + 200)
    assert session.time_is_up()
    typed = vars(run_bench.parser().parse_args(["--time-limit", "1m"]))
    made = run_bench.session_of(run_bench.with_defaults(typed), typed)
    assert made.deadline == pytest.approx(now + 260)


def table(label: str) -> Table:
    """One row of a name and a number."""
    return Table(
        name="odd",
        caption=(f"caption {label}",),
        cells=frame(["method", label], [[label, "1.0"]]),
        lead=1,
        step=1,
        notes=(f"note {label}",),
        numbers=machine([{"method": label, "value": -1.0, "n": 2}], ["n"]),
    )


def test_names_steer_neither_terminals_nor_files() -> None:
    usual, odd = table("plain"), table(ODD)
    for made in ("text", "markdown", "latex", "csv"):
        text = getattr(odd, made)()
        assert text.isprintable() or all(c == "\n" or c.isprintable() for c in text)
        assert text.count("\n") == getattr(usual, made)().count("\n")
        text.encode()


def test_markup_in_names_stays_text() -> None:
    odd = table("*a|b$c$")
    assert r"\*a\|b\$c\$" in odd.markdown()
    assert "\n {*}a\\textbar{}b\\$c\\$" in odd.latex()


@pytest.mark.parametrize("label", ["=1+1", "@x", "+x", "-x", "＝1"])
def test_csv_cells_are_never_formulas(label: str) -> None:
    assert table(label).csv() == f"method,value,n\n'{label},-1.0,2\n"


def test_progress_lines_are_lines(tmp_path: Path) -> None:
    stream = io.StringIO()
    display = Display(1.0, 1, stream)
    display.start(ODD)
    display.finish(ODD, "done", 1.0)
    say(stream, "x" * 10_000)
    first, second = stream.getvalue().splitlines()
    assert r"\u001b[31mred\nnext\u009b2J\u202e\udce9: done" in first
    assert len(second) < LONGEST_LINE + 10


def test_printed_json_stays_json(capsys) -> None:
    from bench.terminal import show

    show(json.dumps({"name": ODD}, ensure_ascii=False, indent=1))
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"name": ODD}
    assert printable(printed.replace("\n", "")) == printed.replace("\n", "")


def test_titles_in_any_script_and_with_dollars_are_drawn_without_a_word(tmp_path) -> None:
    from matplotlib.figure import Figure

    from bench.reports.plots import caption_figure, plain_style, save_figure

    with plain_style():
        figure = Figure()
        figure.subplots().set_title(f"{ODD} $x$ $")
        caption_figure(figure, "folder:猫と犬 · هر", ["猫 $"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files = save_figure(figure, tmp_path / "figure")
    assert [file.suffix for file in files] == [".png", ".pdf"]


def test_fonts_for_other_scripts_are_used_where_they_are(monkeypatch) -> None:
    import matplotlib
    from matplotlib import font_manager

    from bench.reports import plots

    monkeypatch.setattr(font_manager, "get_font_names", lambda: ["PingFang SC", "Papyrus"])
    plots._more_fonts.cache_clear()
    with plots.plain_style():
        assert matplotlib.rcParams["font.family"] == ["DejaVu Sans", "PingFang SC"]
    plots._more_fonts.cache_clear()


def test_a_report_on_a_read_only_folder_prints_its_tables(tmp_path, monkeypatch, capsys) -> None:
    cells = tmp_path / "cells"
    cells.mkdir()
    for method in ("clean", "noise"):
        (cells / f"{method}.json").write_text(json.dumps(record(method)))

    def refuse(path: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert run_bench.main(["--results-dir", str(tmp_path), "--report-only"]) == 0
    printed = capsys.readouterr()
    assert "noise" in printed.out
    assert printed.err.count("\n") == 1
    assert "tables and plots are not kept" in printed.err


def run_command(code: str) -> subprocess.CompletedProcess[str]:
    """Another Python, in this checkout."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_a_system_without_its_modules_is_told_in_one_line() -> None:
    hide = "import sys; sys.modules['resource'] = sys.modules['fcntl'] = None\n"
    done = run_command(f"{hide}import run_bench; sys.exit(run_bench.main(['--list']))")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Windows is not supported" in done.stderr
    done = run_command(f"{hide}from bench import run")
    assert done.stderr.strip().splitlines()[-1].endswith("(wsl --install)")


def test_without_standard_error_nothing_lands_elsewhere(tmp_path) -> None:
    for number in (1, 2):
        command = f"exec {sys.executable} run_bench.py --plugin nosuch {number}>&-"
        done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.count("\n") == number % 2


def test_without_standard_error_a_run_is_quiet(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(UsageError, match="not a folder"):
        run(Grid(dataset="folder:nowhere"), results_dir=tmp_path, store=tmp_path / "s")


WORDS = (
    *("sep", "none", "0", "-1", "1e400", "1/0", "nan", "0-3", "3-0", DIGITS, "9" * 18, "", " "),
    *(",", ":", "+", "=", "(", "]", "'", "[[", "*", "\n", "\x1b[2J", "\udce9", "猫", "$", "~x"),
    *("/", "/dev/null", "x" * 300, "%s", "{}", "--", "1.5", "yes", "all", "[1,2]", "rn18:width=9"),
)
OPTIONS: dict[str, tuple[str, ...]] = {
    "--methods": ("SEP", "noise:epsilon=", "file:", "ops+noise", "sep:steps=", "lsp", "cuda:"),
    "--archs": ("ResNet-18", "rn18:width=", "vgg16", "timm:", "torchvision:", "deit"),
    "--defenses": ("cutout:", "jpeg+mixup", "jpeg:quality=", "auto", "at-linf:steps=", "coin"),
    "--dataset": ("synthetic:train=", "synthetic:classes=", "folder:", "synthetic:size="),
    "--recipe": ("quick:epochs=", "quick:lr=", "quick:batch_size=", "quick:width=", "ops"),
    "--epsilon": ("8/255", "0", "1/"),
    "--seeds": ("0-2", "1,", "-"),
    "--craft-seed": ("3",),
    "--poison-ratio": ("0.5", "0,1", "1e-9"),
    "--protect-classes": ("0-1", "all", "0"),
    "--holdout": ("10", "99"),
    "--device": ("cpu", "cuda:", "mps", "meta"),
    "--memory": ("4G", "9"),
    "--precision": ("fp32", "bf16"),
    "--workers": ("2",),
    "--threads": ("1", "2"),
    "--jobs-per-gpu": ("2",),
    "--time-limit": ("9m", "1h"),
    "--config": ("grid.toml",),
    "--paper": ("sep:table4", "sep:fig", "CUDA:all"),
    "--plugin": ("plugin.py",),
    "--describe": ("TAP", "recipe:", "none"),
    "--nosuch": ("",),
    "--data-dir": ("d",),
}
"""Options and words that are nearly right."""


def odd_command_line(draws: random.Random) -> list[str]:
    """A few options with words that are right, nearly right or wrong."""
    if draws.random() < 0.03:
        return [draws.choice(("diff", "merge")), *draws.choices(WORDS, k=draws.randrange(4))]
    words = []
    for option in draws.sample(list(OPTIONS), draws.randrange(1, 4)):
        value = draws.choice((*OPTIONS[option], *WORDS[:4]))
        if draws.random() < 0.6:
            value += draws.choice(WORDS)
        words += [option, value] if draws.random() < 0.9 else [f"{option}={value}"]
    return words


def fuzz(count: int, seed: int, usual: list[str], capsys) -> dict[int, int]:
    """Run odd command lines that train nothing; returns how often each exit code came."""
    draws, codes = random.Random(seed), dict[int, int]()
    for _ in range(count):
        words = odd_command_line(draws)
        plain = words[0] in run_bench.COMMANDS
        code = run_bench.main(words if plain else [*usual, *words, "--plan"])
        codes[code] = codes.get(code, 0) + 1
        printed = capsys.readouterr()
        assert code in (0, 1, 2), words
        errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == (code == 2), words
        assert "Traceback" not in printed.err, words
        assert all(c == "\n" or c.isprintable() for c in printed.err), words
    return codes


def test_odd_command_lines(folders, capsys) -> None:  # noqa: F811
    write_images(Path(folders[5]), 1)
    tiny = [*TINY, "--methods", "noise", "--defenses", "none"]
    codes = fuzz(30, 0, [*folders, *tiny], capsys)
    assert codes[2] > 15

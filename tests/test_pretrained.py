"""Transfer learning: whose weights they are, what learns, and what happens where there are none."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from matplotlib.text import Text
from safetensors.torch import save_file
from torch import Tensor, nn

import run_bench
from bench import Grid, run
from bench.component import build, parse_one
from bench.data import ImageDataset
from bench.defense import Defense
from bench.errors import NOT_RUN, NotRunError, UsageError
from bench.network import Arch, Network
from bench.recipe import Recipe
from bench.record import read_all
from bench.registry import ARCHS, DEFENSES
from bench.reports.axes import axis_table, find_axes
from bench.reports.class_tables import class_tables
from bench.reports.defense_tables import defense_tables
from bench.reports.detection import holdout_tables
from bench.reports.plots import curve_figures, overview_figure
from bench.reports.summary import summarise
from bench.reports.tables import all_tables, main_table
from bench.running.runner import Outcome, summary
from bench.seeding import stream
from bench.testing import ARCH, DATASET, check_defense, small_arch, small_recipe, small_splits
from bench.train import Training
from defenses import pretrained
from defenses.pretrained import IMAGENET, PretrainedFinetune, PretrainedProbe, TrainedBody
from tests.invented import record

CPU = torch.device("cpu")


def arch(text: str) -> Arch:
    return build(ARCHS, parse_one(text, ARCHS))


def some_images(count: int, height: int, width: int) -> Tensor:
    return torch.rand(count, 3, height, width, generator=stream(7, "images"))


def trained(of: Arch | None = None, classes: int = 7) -> Network:
    """A network whose weights and statistics are none that a fresh one has."""
    made = (of or small_arch()).network(classes, (16, 16), (0,) * 3, (1,) * 3, stream(5, "other"))
    norms = [module for module in made.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0  # one batch is all there is
    with torch.no_grad():
        made.train()(some_images(16, 16, 16))
    for norm in norms:
        norm.momentum = 0.1
    return made


@pytest.fixture
def file(tmp_path: Path) -> str:
    """The weights of a small network, with a classifier of seven classes."""
    path = tmp_path / "weights.pt"
    torch.save(trained().state_dict(), path)
    return str(path)


def made(defense: Defense, of: Arch | None = None, seed: int = 0) -> Network:
    return defense.build(of or small_arch(), small_splits().train, stream(seed, "build"))


def inner(network: Network) -> nn.Module:
    """The body as the architecture made it."""
    assert isinstance(network.body, TrainedBody)
    return network.body.body


def same(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(first[k].equal(second[k]) for k in first)


def training(defense: Defense) -> Training:
    return Training(
        small_arch(), small_splits().train, small_recipe(), defense, 0, "victim", CPU, "fp32"
    )


class TestFile:
    @pytest.mark.parametrize("cls", [PretrainedFinetune, PretrainedProbe])
    def test_body_comes_from_it_and_the_last_layer_from_the_stream(
        self, cls: type[Any], file: str
    ) -> None:
        one, other = made(cls(weights=file)), made(cls(weights=file), seed=1)
        assert same(inner(one), trained().body)
        assert same(inner(one), inner(other))
        assert one.head.weight.shape == (4, 32)
        assert not one.head.weight.equal(other.head.weight)
        # As PyTorch draws a linear layer: uniform in +-1/sqrt(inputs).
        assert 0.9 / 32**0.5 < one.head.weight.abs().max() < 1 / 32**0.5

    @pytest.mark.parametrize(
        "form",
        [
            lambda net: net.body.state_dict(),
            lambda net: {"state_dict": net.state_dict(), "epoch": 3},
            lambda net: {"model": net.body.state_dict()},
            lambda net: {f"module.{k}": v for k, v in net.state_dict().items()},
            lambda net: {k: v for k, v in net.state_dict().items() if "tracked" not in k},
            lambda net: {k: v.double() for k, v in net.state_dict().items()},
        ],
        ids=["body", "wrapped", "model", "parallel", "old", "double"],
    )
    def test_forms(self, form: Callable[[Network], Any], tmp_path: Path) -> None:
        torch.save(form(trained()), tmp_path / "form.pth")
        found = inner(made(PretrainedFinetune(str(tmp_path / "form.pth")))).state_dict()
        for name, value in trained().body.state_dict().items():
            assert found[name].equal(value) or name.endswith("tracked")
            assert found[name].dtype == value.dtype

    def test_safetensors(self, tmp_path: Path) -> None:
        save_file(trained().state_dict(), tmp_path / "weights.safetensors")
        found = made(PretrainedFinetune(str(tmp_path / "weights.safetensors")))
        assert same(inner(found), trained().body)

    def test_is_known_by_its_content(self, file: str, tmp_path: Path) -> None:
        moved, other = tmp_path / "moved.pt", tmp_path / "other.pt"
        moved.write_bytes(Path(file).read_bytes())
        torch.save(trained(classes=3).state_dict(), other)
        first, second, third = (
            PretrainedProbe(str(path)).identity() for path in (file, moved, other)
        )
        assert first == second != third
        assert first["settings"].keys() == {"weights_sha256", "lr", "size", "normalise"}
        assert PretrainedProbe().identity()["settings"]["weights"] == ""

    def test_that_changes_meanwhile_is_refused(self, file: str) -> None:
        defense = PretrainedProbe(file)
        Path(file).write_bytes(b"something else")
        with pytest.raises(UsageError, match="has changed since this run began"):
            made(defense)

    def test_that_is_missing_ends_the_run_before_it_begins(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"nowhere.pt cannot be read \(No such file") as caught:
            build(DEFENSES, parse_one("pretrained-probe:weights=nowhere.pt", DEFENSES))
        assert "\n" not in str(caught.value)
        with pytest.raises(UsageError, match="cannot be read"):
            PretrainedProbe(str(tmp_path))


class Spiteful:
    """Would run code when it is loaded."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("code of the file was run",))


def less(state: dict[str, Tensor]) -> Any:
    return {name: value for name, value in state.items() if not name.startswith("body.1.")}


def more(state: dict[str, Tensor]) -> Any:
    return {**state, "body.9.conv.weight": torch.zeros(4, 4, 3, 3)}


def wide_classifier(state: dict[str, Tensor]) -> Any:
    return {**state, "head.weight": torch.zeros(7, 33)}


def wider(state: dict[str, Tensor]) -> Any:
    return trained(arch("rn18:width=0.125")).state_dict()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (less, r"do not fit rn18:width=0.0625: they lack 1.weight and \d more; give"),
        (more, r"they have 9.conv.weight, which it has not; give"),
        (wide_classifier, r"they have head.weight and 1 more, which it has not; give"),
        (wider, r"0.weight and \d+ more of shape \(8, 3, 3, 3\) instead of \(4, 3, 3, 3\); give"),
        (lambda state: {}, "holds no plain weights"),
        (lambda state: [1, 2], "holds no plain weights"),
        (lambda state: {"a": "text"}, "'a' is no tensor"),
        (lambda state: {"a": Spiteful()}, "holds no plain weights"),
    ],
)
def test_weights_that_do_not_fit(
    content: Callable[[Any], Any], message: str, tmp_path: Path
) -> None:
    torch.save(content(dict(trained().state_dict())), tmp_path / "bad.pt")
    with pytest.raises(NotRunError, match=message) as caught:
        made(PretrainedFinetune(str(tmp_path / "bad.pt")))
    assert "'bad.pt'" in str(caught.value)  # records tell it without the path
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["bad.pt", "bad.safetensors"])
def test_damaged_files(name: str, tmp_path: Path) -> None:
    for content in (b"", b"PK\3\4 no archive", b"\x00" * 100):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(NotRunError, match="holds no plain weights"):
            made(PretrainedFinetune(str(tmp_path / name)))


class TestWhatLearns:
    def test_finetune_trains_all(self, file: str) -> None:
        job = training(PretrainedFinetune(file))
        before = {k: v.clone() for k, v in job.network.state_dict().items()}
        job.run_epoch()
        assert not any(v.equal(before[k]) for k, v in job.network.state_dict().items())

    def test_probe_trains_the_last_layer_and_leaves_statistics(self, file: str) -> None:
        job = training(PretrainedProbe(file))
        before = {k: v.clone() for k, v in job.network.state_dict().items()}
        job.run_epoch()
        job.run_epoch()
        moved = {k for k, v in job.network.state_dict().items() if not v.equal(before[k])}
        assert moved == {"head.weight", "head.bias"}
        assert same(inner(job.network), trained().body)

    def test_probe_is_logistic_regression_on_fixed_features(self, file: str) -> None:
        network = made(PretrainedProbe(file)).train()
        assert network.training
        assert not any(module.training for module in inner(network).modules())
        images, labels = some_images(6, 16, 16), torch.arange(6) % 4
        fixed = trained().body.eval()
        mean, std = (torch.tensor(part).reshape(3, 1, 1) for part in IMAGENET)
        features = fixed((images - mean) / std)
        assert features.gt(0).float().mean() > 0.2
        torch.testing.assert_close(network.features(images), features)
        F.cross_entropy(network(images), labels).backward()
        residual = network(images).softmax(1) - F.one_hot(labels, 4)
        torch.testing.assert_close(network.head.weight.grad, residual.T @ features / 6)
        assert [name for name, w in network.named_parameters() if w.grad is not None] == [
            "head.weight",
            "head.bias",
        ]

    def test_probe_passes_gradients_to_images(self, file: str) -> None:
        images = some_images(2, 16, 16).requires_grad_()
        made(PretrainedProbe(file))(images).sum().backward()
        assert images.grad is not None
        assert images.grad.abs().sum() > 0

    def test_modes_come_and_go(self, file: str) -> None:
        for cls, awake in ((PretrainedFinetune, True), (PretrainedProbe, False)):
            network = made(cls(file))
            assert inner(network).training is awake
            network.eval()
            assert not any(module.training for module in network.modules())
            network.train()
            assert inner(network).training is awake
            assert network.training

    def test_learning_rate_is_lowered_only(self) -> None:
        recipe = Recipe(lr=0.1)
        assert PretrainedFinetune().adapt(recipe) == dataclasses.replace(recipe, lr=0.01)
        assert PretrainedProbe(lr=0.5).adapt(recipe) == recipe

    def test_cost(self) -> None:
        full, probe = PretrainedFinetune(size=256), PretrainedProbe(size=256)
        assert full.cost() == full.prediction_cost() == probe.prediction_cost() == 4
        assert probe.cost() == pytest.approx(4 / 3)
        assert PretrainedFinetune().cost() == 1


class TestSize:
    class Keep(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images

    def test_as_they_are(self) -> None:
        images = some_images(2, 16, 16)
        assert TrainedBody(self.Keep(), 0, True)(images) is images

    def test_enlarged_bilinearly(self) -> None:
        """Between pixel centres, which after doubling lie at .25 and .75 of each interval."""
        ramp = torch.tensor([0.0, 4.0, 8.0, 12.0]).expand(1, 3, 4, 4)
        found = TrainedBody(self.Keep(), 8, True)(ramp)
        expected = torch.tensor([0.0, 1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 12.0])
        torch.testing.assert_close(found, expected.expand(1, 3, 8, 8))
        images = some_images(2, 5, 7)
        plain = F.interpolate(images, (9, 9), mode="bilinear", align_corners=False)
        torch.testing.assert_close(TrainedBody(self.Keep(), 9, True)(images), plain)

    def test_shrunk_without_aliasing(self) -> None:
        """A quarter of all columns is bright, and between the pixels that a plain one reads."""
        columns = torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(4).expand(1, 3, 16, 16)
        found = TrainedBody(self.Keep(), 4, True)(columns)
        torch.testing.assert_close(found, torch.full_like(found, 0.25), rtol=0, atol=0.1)

    def test_is_what_the_body_sees(self, file: str) -> None:
        network, seen = made(PretrainedFinetune(file, size=24)), []
        inner(network).register_forward_hook(lambda m, inputs, out: seen.append(inputs[0].shape))
        images = some_images(2, 16, 16).requires_grad_()
        network(images).sum().backward()
        assert seen == [(2, 3, 24, 24)]
        assert images.grad is not None
        assert images.grad.ne(0).all()


def offline() -> None:
    raise ConnectionError("Name or service not known\nand more")


class TestPublished:
    @pytest.fixture
    def cached(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], nn.Module]:
        """Pretends that the published weights of a network have been fetched before."""

        def put(name: str) -> nn.Module:
            import timm

            with torch.random.fork_rng():
                torch.manual_seed(8)
                model = timm.create_model(name)
            save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
            path = str(tmp_path / f"{name}.safetensors")
            monkeypatch.setattr(pretrained, "in_cache", lambda facts: path)
            monkeypatch.setattr(pretrained, "find_host", pytest.fail)
            return model

        return put

    def test_are_taken_with_their_own_stem_and_normalisation(
        self, cached: Callable[[str], nn.Module]
    ) -> None:
        model = cached("test_resnet").eval()
        network = made(PretrainedProbe(), arch("timm:test_resnet")).eval()
        ours, theirs = inner(network).state_dict(), model.state_dict()
        assert theirs.keys() - ours.keys() == {"fc.weight", "fc.bias"}
        assert all(value.equal(theirs[name]) for name, value in ours.items())
        assert network.mean.flatten().tolist() == network.std.flatten().tolist() == [0.5] * 3
        other = made(PretrainedProbe(normalise="data"), arch("timm:test_resnet"))
        train = small_splits().train
        assert other.mean.flatten().tolist() == pytest.approx(train.mean)
        assert other.std.flatten().tolist() == pytest.approx(train.std)
        images = some_images(2, 16, 16)
        features = model.forward_head(model.forward_features(2 * images - 1), pre_logits=True)
        torch.testing.assert_close(network.features(images), features)

    def test_of_a_transformer_need_their_size(self, cached: Callable[[str], nn.Module]) -> None:
        model = cached("test_vit3").eval()
        with pytest.raises(NotRunError, match=r"does not take 16x16 pixels .*write size=160"):
            made(PretrainedProbe(), arch("timm:test_vit3"))
        network = made(PretrainedProbe(size=160), arch("timm:test_vit3")).eval()
        images = some_images(2, 16, 16)
        large = F.interpolate(images, (160, 160), mode="bilinear") * 2 - 1
        features = model.forward_head(model.forward_features(large), pre_logits=True)
        torch.testing.assert_close(network.features(images), features, rtol=1e-4, atol=1e-4)

    def test_a_library_network_takes_a_file_of_the_whole(self, tmp_path: Path) -> None:
        import torchvision

        with torch.random.fork_rng():
            model = torchvision.models.shufflenet_v2_x0_5(weights=None)
        torch.save(model.state_dict(), tmp_path / "tv.pth")
        defense = PretrainedFinetune(str(tmp_path / "tv.pth"))
        network = made(defense, arch("torchvision:shufflenet_v2_x0_5"))
        ours, theirs = inner(network).state_dict(), model.state_dict()
        assert all(value.equal(theirs[name]) for name, value in ours.items())
        stem = next(m for m in inner(network).modules() if isinstance(m, nn.Conv2d))
        assert stem.stride == (2, 2)  # that of the weights, not the one for small images
        assert network.mean.flatten().tolist() == pytest.approx(list(IMAGENET[0]))

    def test_without_a_connection_that_is_said_at_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pretrained, "in_cache", lambda facts: None)
        monkeypatch.setattr(pretrained, "find_host", offline)
        started = time.perf_counter()
        with pytest.raises(NotRunError) as caught:
            made(PretrainedFinetune(), arch("timm:test_resnet"))
        assert time.perf_counter() - started < 5
        assert str(caught.value) == (
            "the weights test_resnet.r160_in1k of timm are not on this machine and cannot be "
            "fetched (Name or service not known); connect it, or give a file: weights=PATH"
        )

    def test_host_is_asked_once_and_not_for_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub.utils

        asked = []

        class Session:
            def head(self, address: str, timeout: float) -> None:
                asked.append((address.partition("://")[0], timeout))
                raise OSError("unreachable")

        monkeypatch.setattr(huggingface_hub.utils, "get_session", Session)
        with pytest.raises(OSError, match="unreachable"):
            pretrained.find_host()
        assert asked == [("https", 5)]

    def test_cache_is_looked_at(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        import huggingface_hub

        looked = []

        def look(repository: str, name: str) -> Any:
            looked.append((repository, name))
            return "kept.bin" if name == "pytorch_model.bin" else None

        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", look)
        of = arch("timm:test_resnet")
        assert pretrained.in_cache(pretrained.pretrained_facts(of)) == "kept.bin"
        assert [name for _, name in looked] == ["model.safetensors", "pytorch_model.bin"]
        assert looked[0][0] == "timm/test_resnet.r160_in1k"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (ARCH, "rn18:width=0.0625 has no published weights; take an architecture of timm"),
            ("torchvision:resnet18", "torchvision:resnet18 has no published weights"),
            ("timm:test_vit4", "timm publishes no weights for timm:test_vit4"),
        ],
    )
    def test_there_are_none(self, text: str, message: str) -> None:
        with pytest.raises(NotRunError, match=message) as caught:
            made(PretrainedProbe(), arch(text))
        assert "weights=PATH" in str(caught.value)


class TestNotRun:
    GRID = Grid(
        methods="clean",
        defenses="none,pretrained-probe",
        archs=ARCH,
        dataset=DATASET,
        recipe="quick:epochs=1,batch_size=16,train_images=none,curve_images=none",
        precision="fp32",
    )

    @pytest.mark.parametrize("workers", [1, 2])
    def test_the_other_cells_go_on_and_tables_say_it(self, workers: int, tmp_path: Path) -> None:
        folders = {"results_dir": tmp_path / "results", "store": tmp_path / "store"}
        outcome = run(self.GRID, workers=workers, threads=1, quiet=True, **folders)
        (reason,) = outcome.failed.values()
        assert reason.startswith(f"{NOT_RUN}rn18:width=0.0625 has no published weights")
        records = list(read_all(tmp_path / "results"))
        assert {r["defense"]: r["status"] for r in records} == {
            "none": "done",
            "pretrained-probe": "failed",
        }
        (error,) = [r["error"] for r in records if r["error"]]
        assert error == reason  # no traceback: nothing is wrong with the code
        table = main_table(summarise(records)[0])
        cells = {row[0]: row[3] for row in table.cells.to_numpy().tolist()}
        assert cells["pretrained-probe°"] == "not run"
        assert cells["none"][0].isdigit()
        assert not [note for note in table.notes if note.startswith("failed")]

    def test_in_tables(self) -> None:
        records = [
            record("clean"),
            record("sep", arch="rn18", error=f"craft sep failed:\n{NOT_RUN}no weights; get some"),
            record("sep", arch="vgg16", error="Traceback\nRuntimeError: no luck"),
            record("clean", arch="vgg16"),
        ]
        table = main_table(summarise(records)[0])
        cells = table.cells.set_index("method")
        assert cells.loc["sep"].tolist()[1:] == ["not run", "–", "failed", "–"]
        assert "not run: sep on rn18 ×1/4, seed 0: no weights; get some" in table.notes
        assert "failed: sep on vgg16 ×1/4, seed 0: RuntimeError: no luck" in table.notes

    def test_one_that_failed_is_a_failure(self) -> None:
        errors = [f"{NOT_RUN}no weights", "RuntimeError: no luck"]
        records = [record("clean")]
        records += [record("sep", seed=seed, error=error) for seed, error in enumerate(errors)]
        cells = main_table(summarise(records)[0]).cells.set_index("method")
        assert cells.loc["sep"].tolist()[1] == "failed"


class TestSideInformation:
    KNOWING: ClassVar = {"defense": "pretrained-probe", "defense_label": "pretrained-probe"}
    KNOWING |= {"side_information": "pretrained-weights", "defense_settings": {"weights": ""}}
    TOLD = "°: knows more than the released images{}: pretrained-probe: pretrained-weights."

    def records(self, *defenses: str) -> list[dict]:
        """A protection of classes 0 and 1 under each, with all that any table is made of."""
        curve = [{"epoch": 1, "test_acc": 0.5, "holdout_acc": 0.9, "train_acc": 0.9}]
        more = {"holdout": 500, "protected_classes": [0, 1], "curve": curve}
        more["shortcut"] = {"own_acc": 0.9, "next_acc": 0.1, "next_followed": 0.9}
        kinds = {name: {"defense": name, "defense_label": name} for name in defenses}
        kinds["pretrained-probe"] = self.KNOWING
        methods = [("clean", {}), ("sep", {"steps": 5}), ("sep", {"steps": 10})]
        return [
            record(
                method, method_settings=settings, key=f"{name}{method}{settings}", **more, **kind
            )
            for name, kind in kinds.items()
            for method, settings in methods
        ]

    def test_it_is_told_by_every_table_of_accuracies(self) -> None:
        one = summarise(self.records("none", "random-noise"))[0]
        tables = [*all_tables(one), *holdout_tables(one), *class_tables(one)]
        tables += map(axis_table, find_axes([one]))
        made = {table.name: table for table in tables if table.name not in ("audit", "premises")}
        assert set(made) == {
            *("main", "details", "shortcut", "detection", "early-stopping", "classes"),
            "axis-steps",
        }
        for table in made.values():
            assert self.TOLD.format("") in table.notes, table.name
            # Those that know more stand last, though they come first in the alphabet.
            order = list(dict.fromkeys(table.cells["defense"]))
            assert order == ["none", "random-noise", "pretrained-probe°"], table.name
        made = {table.name: table for table in defense_tables(one)}
        for table in made.values():
            assert self.TOLD.format(", and is not in the worst case") in table.notes

    def test_it_is_told_where_all_know_more(self) -> None:
        table = main_table(summarise(self.records())[0])
        assert "; defense pretrained-probe (knows pretrained-weights); " in table.caption[1]
        assert table.notes[-1] == "pretrained-probe: weights empty"

    def test_nothing_is_said_where_no_such_row_is_shown(self) -> None:
        records = [
            one | {"shortcut": None} if one["defense"] == "pretrained-probe" else one
            for one in self.records("none")
        ]
        tables = {table.name: table for table in all_tables(summarise(records)[0])}
        assert self.TOLD.format("") in tables["main"].notes
        assert self.TOLD.format("") not in tables["shortcut"].notes

    def test_pictures_say_it_too(self) -> None:
        one = summarise(self.records("none"))[0]
        figures = curve_figures(one)
        assert list(figures) == ["none", "pretrained-probe"]
        said = [" ".join(text.get_text() for text in f.findobj(Text)) for f in figures.values()]
        assert ["(knows pretrained-weights)" in text for text in said] == [False, True]
        overview = overview_figure(one)
        assert overview is not None
        said = [" ".join(text.get_text().split()) for text in overview.findobj(Text)]
        assert "pretrained-probe°" in said
        assert any(self.TOLD.format("") in text for text in said)

    def test_nothing_is_said_where_none_does(self) -> None:
        table = main_table(summarise([record("clean"), record("sep")])[0])
        assert not [note for note in table.notes if "knows" in note]


def test_the_command_line_ends_with_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    run_bench.show_failures({"a": f"{NOT_RUN}no weights", "b": "RuntimeError: no luck"})
    said = capsys.readouterr().err.splitlines()
    assert said == ["not run: a: no weights", "failed: b: RuntimeError: no luck"]


def test_a_run_is_summed_up_with_what_was_not_run() -> None:
    lacking, broken = f"{NOT_RUN}no weights", "RuntimeError: no luck"
    assert summary(Outcome([], Path(), {"a": lacking})).endswith("0 s; 1 not run")
    assert summary(Outcome([], Path(), {"a": broken})).endswith("0 s; 1 tasks FAILED")
    both = {"a": lacking, "b": broken, "c": lacking}
    assert summary(Outcome([], Path(), both)).endswith("; 1 tasks FAILED; 2 not run")


def test_all_does_not_stand_for_them() -> None:
    assert not [name for name in DEFENSES.match("all") if name.startswith("pretrained")]
    assert DEFENSES.match("pretrained-probe") == ["pretrained-probe"]


@pytest.mark.parametrize("setting", ["lr=0", "size=-1"])
@pytest.mark.parametrize("name", ["pretrained-finetune", "pretrained-probe"])
def test_senseless_settings_are_refused(name: str, setting: str) -> None:
    with pytest.raises(UsageError, match="must"):
        build(DEFENSES, parse_one(f"{name}:{setting}", DEFENSES))


@pytest.mark.parametrize("name", ["pretrained-finetune", "pretrained-probe"])
@pytest.mark.parametrize("more", ["", ",size=24"])
def test_laws(name: str, more: str, file: str) -> None:
    check_defense(f"{name}:weights={file}{more}")


def test_knows_more_than_the_images(file: str) -> None:
    assert PretrainedFinetune(file).side_information == "pretrained-weights"
    same_images: ImageDataset = small_splits().train
    assert PretrainedFinetune(file).prepare(same_images, stream(0, "p")) is same_images

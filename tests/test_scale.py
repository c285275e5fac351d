"""Large data, small memory, and GPU graphs: the same numbers another way."""

import gc
import itertools
import json
import weakref
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

import run_bench
from bench.budget import Budget
from bench.component import build, parse_one
from bench.crafting import CPU_CHUNK, Crafting, Monitor
from bench.defense import Defense, Step
from bench.device import configure, gpus, total_memory
from bench.errors import Stopped, UsageError
from bench.files import make_array, map_member, open_array, unnamed_array
from bench.grid import Grid, TrainingData
from bench.loading import Loader
from bench.registry import ARCHS, METHODS
from bench.release import release
from bench.replay import WARM_UP, Learned, Record, Replay
from bench.running.plan import CostTable
from bench.running.runner import share_out
from bench.running.session import Session
from bench.seeding import stream
from bench.testing import small_recipe, small_splits
from bench.train import Batches, Training
from tests.realdata import ROOT

CPU = torch.device("cpu")
TRAIN = small_splits().train


# --- images that do not fit -------------------------------------------------------------------


def test_staged_images_are_the_resident_ones() -> None:
    resident, staged = (Loader(TRAIN, CPU, memory) for memory in (1e9, 0))
    assert resident.resident
    assert not staged.resident
    rows = torch.tensor([5, 0, 47, 5])
    for one, other in zip(resident.batch(rows), staged.batch(rows), strict=True):
        assert one.equal(other)
    for loader in (resident, staged):
        images, labels = loader.batch(rows)
        assert images.equal(TRAIN.images[rows])
        assert labels.equal(TRAIN.labels[rows])
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_training_does_not_depend_on_where_the_images_lie() -> None:
    arch = build(ARCHS, parse_one("rn18:width=0.05", ARCHS))
    weights = []
    for memory in (1e9, 0):
        training = Training(
            arch, TRAIN, small_recipe(), Defense(), 0, "victim", CPU, "fp32", memory
        )
        training.run_epoch()
        assert training.confusion(small_splits().test).sum() == len(small_splits().test)
        weights.append(training.network.head.weight)
    assert weights[0].equal(weights[1])


def test_batches_from_a_mapped_file_are_the_same(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", TRAIN.images.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "images.npy", mmap_mode="c"))
    recipe = small_recipe()
    ones = Batches(TRAIN, recipe, CPU).epoch(stream(0, "x"))
    others = Batches(TRAIN.with_images(mapped), recipe, CPU, 0).epoch(stream(0, "x"))
    for (image, label), (other, name) in zip(ones, others, strict=True):
        assert image.equal(other)
        assert label.equal(name)


# --- arrays on disk ---------------------------------------------------------------------------


def test_an_array_on_disk_keeps_what_was_flushed(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "delta.npy"
    array = make_array(file, (4, 3))
    assert not array.any()
    array[1] = 5
    array.flush()
    assert open_array(file, (4, 3))[1].tolist() == [5, 5, 5]
    with pytest.raises(ValueError, match="not float32"):
        open_array(file, (3, 4))
    whole = file.read_bytes()
    for length in (40, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError):  # noqa: PT011 - NumPy's own words
            open_array(file, (4, 3))
        assert file.stat().st_size == length
    assert not make_array(file, (4, 3)).any()
    with pytest.raises(OSError, match="absent"):
        open_array(tmp_path / "absent.npy", (1,))


def test_an_unnamed_array_leaves_no_file(tmp_path: Path) -> None:
    array = unnamed_array(tmp_path / "here", (5, 2), "uint8")
    array[3] = 7
    assert array.sum() == 14
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize("count", [1, 7, 5000])
def test_a_member_of_an_archive_is_mapped_where_it_lies(tmp_path: Path, count: int) -> None:
    images = np.random.default_rng(0).integers(256, size=(count, 3, 4, 4), dtype=np.uint8)
    labels = np.arange(count)
    with (tmp_path / "released.npz").open("wb") as file:
        np.savez(file, labels=labels, images=images, fortran=np.asfortranarray(images))
    before = (tmp_path / "released.npz").read_bytes()
    for name, expected in (("images", images), ("labels", labels), ("fortran", images)):
        mapped = map_member(tmp_path / "released.npz", name)
        assert isinstance(mapped, np.memmap)
        assert np.array_equal(mapped, expected)
        mapped[0] = 0
    assert (tmp_path / "released.npz").read_bytes() == before


def test_an_archive_that_cannot_be_mapped_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros(9))
    with pytest.raises(ValueError, match="compressed"):
        map_member(tmp_path / "a.npz", "images")
    np.savez(tmp_path / "b.npz", images=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="Python objects"):
        map_member(tmp_path / "b.npz", "images")
    with pytest.raises(KeyError):
        map_member(tmp_path / "b.npz", "labels")


@pytest.mark.parametrize("text", ["noise", "noise:law=gaussian", "cuda", "sep:checkpoints=1"])
def test_crafting_on_disk_gives_the_same_perturbation(text: str, tmp_path: Path) -> None:
    method = build(METHODS, parse_one(text, METHODS))
    net = build(ARCHS, parse_one("rn18:width=0.05", ARCHS)).network(
        10, TRAIN.image_size, (0, 0, 0), (1, 1, 1), stream(0, "net")
    )
    deltas = [
        method.craft(crafting(trained=lambda number: [net.eval()], scratch=scratch))
        for scratch in (None, tmp_path)
    ]
    assert deltas[0].equal(deltas[1])
    mask = torch.ones(len(TRAIN), dtype=torch.bool)
    place = torch.zeros(TRAIN.images.shape, dtype=torch.uint8)
    released = release(TRAIN, deltas[0], mask, method.budget, place)
    assert released.images is place
    assert place.equal(release(TRAIN, deltas[1], mask, method.budget).images)


def test_what_lies_outside_the_mask_stays_in_a_place_that_was_used_before() -> None:
    mask = torch.zeros(len(TRAIN), dtype=torch.bool)
    place = torch.full(TRAIN.images.shape, 9, dtype=torch.uint8)
    delta = torch.zeros(TRAIN.images.shape)
    assert release(TRAIN, delta, mask, Budget("linf", 0.1), place).images.equal(TRAIN.images)


class Saves(Monitor):
    """Saves at every safe point, and stops at the last one of its number."""

    save_every = -1.0

    def __init__(self, points: int) -> None:
        super().__init__()
        self._left = points

    def stopping(self) -> bool:
        self._left -= 1
        return self._left == 0


@pytest.fixture
def stopped(tmp_path: Path):
    """A scratch folder in which two chunks of five images are done."""
    with pytest.raises(Stopped):
        crafting(scratch=tmp_path, monitor=Saves(2)).each_chunk(unit, 5)
    return tmp_path


def unit(images: Tensor, labels: Tensor, number: int) -> Tensor:
    return images / 255


def test_a_truncated_perturbation_is_made_again(stopped: Path) -> None:
    whole = crafting().each_chunk(unit, 5)
    assert crafting(scratch=stopped).each_chunk(unit, 5).equal(whole)
    file = next(stopped.glob("*.npy"))
    file.write_bytes(file.read_bytes()[:-1])
    # Killed again before it could save anything: what is noted must not be believed then.
    with pytest.raises(KeyboardInterrupt):
        crafting(scratch=stopped).each_chunk(interrupted, 5)
    assert crafting(scratch=stopped).each_chunk(unit, 5).equal(whole)


def interrupted(images: Tensor, labels: Tensor, number: int) -> Tensor:
    raise KeyboardInterrupt


def test_a_free_size_of_chunks_may_change_between_attempts(tmp_path: Path) -> None:
    done: list[int] = []

    def counted(images: Tensor, labels: Tensor, number: int) -> Tensor:
        done.append(len(images))
        return images / 255

    sizes = {"bytes_per_gradient": 1.0, "scratch": tmp_path}
    with pytest.raises(Stopped):
        crafting(**sizes, memory=7.0, monitor=Saves(2)).each_chunk(counted)
    whole = crafting(**sizes, memory=20.0).each_chunk(counted)
    assert done == [7, 7, 20, 14]
    assert whole.equal(TRAIN.images / 255)


def test_work_on_the_result_does_not_reach_the_disk(stopped: Path) -> None:
    delta = crafting(scratch=stopped).each_chunk(unit, 5)
    kept = delta.clone()
    delta.mul_(0.5)
    assert crafting(scratch=stopped).each_chunk(unit, 5).equal(kept)


# --- sizes of chunks --------------------------------------------------------------------------


def crafting(**more: object) -> Crafting:
    fields = {
        "dataset": TRAIN,
        "rows": torch.arange(len(TRAIN)),
        "mask": torch.ones(len(TRAIN), dtype=torch.bool),
        "seed": 0,
        "device": CPU,
        "precision": "fp32",
        "trained": lambda number: [],
    }
    return Crafting(**{**fields, **more})  # type: ignore[arg-type]


def test_chunks_follow_work_and_memory() -> None:
    gpu = {"device": torch.device("cuda"), "flop_per_gradient": 2.2e9}
    assert crafting().chunk == CPU_CHUNK
    assert crafting(bytes_per_gradient=1e6, memory=40.5e6).chunk == 40
    assert crafting(bytes_per_gradient=1e9, memory=1e6).chunk == 1
    assert crafting(**gpu).chunk == 909
    assert crafting(**gpu, bytes_per_gradient=5e6, memory=1e9).chunk == 200
    assert crafting(device=torch.device("cuda")).chunk == 1000


def test_memory_of_a_gradient_is_what_a_pass_keeps() -> None:
    data = TrainingData.cut(small_splits(), small_recipe(), SimpleNamespace(
        measured_statistics=False, title="small"
    ))  # fmt: skip
    arch = build(ARCHS, parse_one("vgg16:width=0.1", ARCHS))
    one, two = (CostTable(data).of(arch).saved for _ in range(2))
    assert one == two > 16 * 16 * 6  # the first layer's activations alone
    operations, work, size = CostTable(data).of_gradient(
        build(METHODS, parse_one("sep:surrogate=(vgg16:width=0.1)", METHODS)), "bf16"
    )
    assert size == 2 * 2 * one
    assert operations == 2 * CostTable(data).of(arch).forward
    assert work == 2 * CostTable(data)(arch) > operations


def test_estimates_follow_the_seconds_of_victims() -> None:
    """Between networks of one recipe; those with many small layers are bound by memory."""
    data = SimpleNamespace(
        train=SimpleNamespace(
            classes=tuple(range(10)), image_size=(32, 32), mean=(0.5,) * 3, std=(0.2,) * 3
        )
    )
    costs = CostTable(data)
    seconds = defaultdict(list)
    for one in json.loads((ROOT / "results/speed/victims.json").read_text())["victims"]:
        kind = (one["machine"], one["precision"], one["defense"])
        if kind == ("x86_64, AVX512", "bf16", "none"):
            seconds[one["arch"]].append(one["core_seconds"])
    ratios = {
        name: costs(build(ARCHS, parse_one(f"{name}:width=0.25", ARCHS))) / np.median(taken)
        for name, taken in seconds.items()
        if name != "deit"  # attention's kernels
    }
    assert {"rn18", "dn121", "vgg16", "googlenet", "senet18", "mobilenetv2"} <= ratios.keys()
    for name, ratio in ratios.items():
        assert ratio == pytest.approx(np.median(list(ratios.values())), rel=0.6), name


# --- sharing a machine ------------------------------------------------------------------------


def test_a_gpu_is_chosen_and_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    properties = SimpleNamespace(total_memory=80)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "set_device", told.append)
    threads, flags = torch.get_num_threads(), torch.backends.cudnn.benchmark

    def limit(share: float, index: int) -> None:
        # What PyTorch demands: it refuses a device without a number.
        assert isinstance(index, int)
        told.append((share, index))

    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limit)
    for name, memory in (("cuda", 20), ("cuda:1", 160), ("cuda:2", None)):
        configure("fp32", threads, torch.device(name), memory)
    assert told == [0, (0.25, 0), 1, (1.0, 1), 2]
    torch.backends.cudnn.benchmark = flags


def session(**more: object) -> Session:
    return replace(Session(Grid(methods="clean")), **more)  # type: ignore[arg-type]


def test_processes_share_cores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.running.runner.cores", lambda: 8)
    shared, workers = share_out(session(), CPU, None, None)
    assert (workers, shared.threads) == (8, 1)
    assert shared.memory == total_memory(CPU) // 8
    shared, workers = share_out(session(memory=5), CPU, 2, 3)
    assert (workers, shared.threads, shared.memory) == (2, 3, 5)


def test_jobs_share_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.running.runner.cores", lambda: 8)
    monkeypatch.setattr("bench.running.runner.total_memory", lambda device: 80)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    every, one = torch.device("cuda"), torch.device("cuda:1")
    assert gpus(every) == ["3", "5"]
    assert gpus(one) == ["5"]
    assert gpus(CPU) == []
    for device, jobs, expected in ((every, 1, (2, 80)), (every, 3, (6, 26)), (one, 2, (2, 40))):
        shared, workers = share_out(session(jobs_per_gpu=jobs), device, None, None)
        assert (workers, shared.memory) == expected
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert gpus(every) == ["0", "1"]


@pytest.mark.parametrize(
    ("text", "size"), [("4G", 4 * 2**30), ("500M", 500 * 2**20), ("1.5GiB", 3 * 2**29)]
)
def test_sizes(text: str, size: int) -> None:
    assert run_bench.memory(text) == size


@pytest.mark.parametrize("text", ["much", "", "4", "-4G", "0G", "4T"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="write 4G"):
        run_bench.memory(text)


# --- graphs -----------------------------------------------------------------------------------


class Recorder:
    """Behaves like a CUDA graph: it always writes into the same tensors."""

    def __init__(self) -> None:
        self.replays = 0
        self.parameters: list[torch.nn.Parameter] = []

    def __call__(self, compute):
        assert all(parameter.grad is None for parameter in self.parameters)
        learned = compute()
        gradients = [parameter.grad for parameter in self.parameters]

        def replay() -> None:
            self.replays += 1
            for parameter in self.parameters:
                parameter.grad = None
            again = compute()
            for place, parameter in zip(gradients, self.parameters, strict=True):
                place.copy_(parameter.grad)
            learned.loss.copy_(again.loss)
            learned.logits.copy_(again.logits)

        return learned, replay


@pytest.mark.parametrize("batch_size", [8, 7])
def test_replayed_training_is_training(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # 48 images in batches of 7 leave a batch of 6, which is computed directly each time.
    recipe = replace(small_recipe(), batch_size=batch_size)
    arch = build(ARCHS, parse_one("rn18:width=0.05", ARCHS))
    plain, replayed = (
        Training(arch, TRAIN, recipe, Defense(), 0, "victim", CPU, "fp32") for _ in range(2)
    )
    recorder = Recorder()
    recorder.parameters = list(replayed.network.parameters())

    def learn(images: Tensor, soft_labels: Tensor) -> Learned:
        loss = Defense().backward(replayed.network, images, soft_labels, None)  # type: ignore
        return Learned(loss, replayed._last.value)

    replay = Replay(replayed.network, learn, recorder)
    monkeypatch.setattr(replayed, "_learn", lambda images, labels, step: replay(images, labels))
    # Recording on a GPU computes nothing; the stand-in does, and moves the running statistics.
    for module in (*plain.network.modules(), *replayed.network.modules()):
        if isinstance(module, torch.nn.BatchNorm2d):
            module.track_running_stats = False
    for _ in range(2):
        one, other = plain.run_epoch(), replayed.run_epoch()
        assert one == other
    assert recorder.replays == 2 * (48 // batch_size) - WARM_UP
    for one, other in zip(plain.network.parameters(), replayed.network.parameters(), strict=True):
        assert one.equal(other)


def test_a_training_that_is_over_frees_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    arch = build(ARCHS, parse_one("rn18:width=0.05", ARCHS))
    training = Training(arch, TRAIN, small_recipe(), Defense(), 0, "victim", CPU, "fp32")
    recorder = Recorder()
    recorder.parameters = list(training.network.parameters())
    monkeypatch.setattr("bench.train.cuda_graph", recorder)
    monkeypatch.setattr("bench.replay._aside", lambda compute, device: compute())
    monkeypatch.setattr(training, "_device", SimpleNamespace(type="cuda"))
    step = Step(0, 1, len(TRAIN.classes), stream(0, "x"))
    images = torch.rand(4, 3, *TRAIN.image_size)
    labels = torch.eye(len(TRAIN.classes))[:4]
    gc.disable()
    try:
        for _ in range(WARM_UP + 1):
            training._learn(images, labels, step)
        assert recorder.replays == 1
        gone = weakref.ref(training)
        monkeypatch.undo()
        del training
        assert gone() is None, "something in a cycle holds it"
    finally:
        gc.enable()


def test_a_step_that_cannot_be_recorded_is_computed() -> None:
    layer = torch.nn.Linear(3, 2)
    calls = itertools.count()

    def compute(images: Tensor, soft_labels: Tensor) -> Learned:
        next(calls)
        for parameter in layer.parameters():
            parameter.grad = None
        loss = (layer(images) * soft_labels).sum()
        loss.backward()
        return Learned(loss.detach(), None)

    def refuse(compute):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    record: Record = refuse
    replay = Replay(layer, compute, record)
    images, labels = torch.rand(4, 3), torch.rand(4, 2)
    for _ in range(WARM_UP):
        replay(images, labels)
    with pytest.warns(UserWarning, match="not replayed: operation not permitted when stream is"):
        replay(images, labels)
    loss = replay(images, labels).loss
    assert loss.equal((layer(images) * labels).sum())
    assert next(calls) == WARM_UP + 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_graph_computes_what_its_kernels_do(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cuda")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    recipe = replace(small_recipe(), batch_size=7)
    arch = build(ARCHS, parse_one("rn18:width=0.25", ARCHS))
    made = []
    for plain in (True, False):
        training = Training(arch, TRAIN, recipe, Defense(), 0, "victim", device, precision)  # type: ignore
        if plain:
            training._replay = lambda images, labels, t=training: direct(t, images, labels)  # type: ignore
        made.append(([training.run_epoch() for _ in range(3)], training.network))
    assert made[0][0] == made[1][0]
    states = [network.state_dict() for _, network in made]
    for name in states[0]:
        assert states[0][name].equal(states[1][name]), name


def direct(training: Training, images: Tensor, labels: Tensor) -> Learned:
    loss = Defense().backward(training.network, images, labels, None)  # type: ignore
    return Learned(loss, training._last.value)

"""`file:PATH`: what is read, where it lands, and what is said when it does not fit."""

import io
import shutil
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import bench
from bench.component import Spec, build, canonical, parse_one
from bench.crafting import Crafting
from bench.data import ImageDataset, Places, balanced_rows
from bench.datasets.folder import Folder
from bench.datasets.synthetic import Synthetic
from bench.errors import UsageError
from bench.grid import Expansion, Grid
from bench.method import Method
from bench.record import load_results
from bench.registry import METHODS
from bench.release import draw_mask, release

NOWHERE = Places(Path("none"), Path("none"), download=False)
WHOLE = Synthetic(train=40, test=8, size=8).load(NOWHERE).train
ROWS = balanced_rows(WHOLE.labels, 12)
PART = WHOLE.subset(ROWS)
"""What a recipe of twelve images trains on."""


def changed(images: torch.Tensor, by: int = 3) -> np.ndarray:
    """A crafted copy, (n, h, w, 3) uint8: one corner a few grey levels off."""
    crafted = images.permute(0, 2, 3, 1).numpy().copy()
    corner = crafted[:, 0, 0]
    crafted[:, 0, 0] = np.where(corner > 127, corner - by, corner + by)
    return crafted


CRAFTED = changed(WHOLE.images)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., str]:
    """Writes an .npz and returns its path."""

    def write(name: str = "mine", **arrays: Any) -> str:
        np.savez(tmp_path / f"{name}.npz", **arrays)
        return str(tmp_path / f"{name}.npz")

    return write


def method(path: str | Path, **settings: str) -> Method:
    pairs = "".join(f",{key}={value}" for key, value in settings.items())
    return build(METHODS, parse_one(f"file:'{path}'{pairs}", METHODS))


def craft(made: Method, train: ImageDataset = WHOLE, rows: torch.Tensor | None = None) -> Any:
    """The images that are released, as (n, h, w, 3), after the check that a run begins with."""
    rows = torch.arange(len(train)) if rows is None else rows
    mask = torch.ones(len(train), dtype=torch.bool)
    made.check(train, rows, len(WHOLE))
    job = Crafting(train, rows, mask, 0, torch.device("cpu"), "fp32", lambda number: [])
    released = release(train, made.craft(job), mask, made.budget)
    return released.images.permute(0, 2, 3, 1).numpy()


def failure(call: Callable[[], object]) -> str:
    """The message of the UsageError a call ends in; it must be one line."""
    with pytest.raises(UsageError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- arrays -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "images",
    [
        CRAFTED,
        CRAFTED.transpose(0, 3, 1, 2),
        CRAFTED / 255,
        (CRAFTED / np.float32(255)).astype(np.float32),
        ((CRAFTED + 0.4) / 255).clip(0, 1),
    ],
    ids=["uint8", "channels first", "float64", "float32", "rounded"],
)
def test_every_layout_and_dtype_releases_the_same_bytes(images: np.ndarray, save: Any) -> None:
    assert (craft(method(save(images=images))) == CRAFTED).all()


def test_npy_holds_images_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", CRAFTED)
    assert (craft(method(tmp_path / "mine.npy")) == CRAFTED).all()


def test_whole_set_serves_a_part(save: Any) -> None:
    file = save(images=CRAFTED, labels=WHOLE.labels.numpy())
    assert (craft(method(file), PART, ROWS) == CRAFTED[ROWS]).all()


def test_exact_part_without_rows(save: Any) -> None:
    file = save(images=CRAFTED[ROWS], labels=PART.labels.numpy())
    assert (craft(method(file), PART, ROWS) == CRAFTED[ROWS]).all()


@pytest.mark.parametrize("key", ["rows", "index"])
def test_rows_say_which_images_are_replaced_in_any_order(key: str, save: Any) -> None:
    rows = np.array([30, 2, 17])
    got = craft(method(save(images=CRAFTED[rows], **{key: rows})))
    wished = WHOLE.images.permute(0, 2, 3, 1).numpy().copy()
    wished[rows] = CRAFTED[rows]
    assert (got == wished).all()


def test_rows_outside_the_part_are_passed_over(save: Any) -> None:
    rows = np.arange(len(WHOLE))[::-1].copy()
    assert (craft(method(save(images=CRAFTED[rows], rows=rows)), PART, ROWS) == CRAFTED[ROWS]).all()


def noisy(images: torch.Tensor, levels: int, seed: int = 0) -> torch.Tensor:
    """The same, every value up or down by so many grey levels."""
    signs = torch.randint(0, 2, images.shape, generator=torch.Generator().manual_seed(seed))
    return (images.short() + (2 * signs - 1) * levels).clamp(0, 255).to(torch.uint8)


def by_class(images: torch.Tensor) -> torch.Tensor:
    """Each image in the place of another one of its class."""
    moved = images.clone()
    for label in range(4):
        members = (WHOLE.labels == label).nonzero().flatten()
        moved[members] = images[members.roll(1)]
    return moved


def two_exchanged(images: torch.Tensor) -> torch.Tensor:
    moved = images.clone()
    moved[[3, 7]] = images[[7, 3]]  # both of class 3
    return moved


def one_in_bgr(images: torch.Tensor) -> torch.Tensor:
    moved = images.clone()
    moved[5] = images[5].flip(0)
    return moved


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: x.flip(0), "of other clean images: one for row"),
        (lambda x: x[WHOLE.labels.sort(stable=True).indices], "of other clean images"),
        (by_class, "of other clean images of the same class"),
        (two_exchanged, "2 images of other clean images of the same class"),
        (lambda x: x.flip(1), "channels exchanged (BGR for RGB)"),
        (lambda x: x[:, [1, 2, 0]], "channels exchanged (GBR for RGB)"),
        (one_in_bgr, "1 image changed from the clean: channels exchanged"),
        (lambda x: x.transpose(2, 3), "axes transposed"),
        (lambda x: x.flip(1).transpose(2, 3), "channels exchanged (BGR for RGB) and axes"),
        (lambda x: x.flip(3), "left and right exchanged"),
        (lambda x: 255 - x, "light and dark exchanged"),
        (lambda x: x // 128, "divided by 255 twice"),
        (torch.zeros_like, "images of one colour"),
        (lambda x: torch.full_like(x, 127), "noise without images"),
    ],
)
def test_sets_of_other_images_are_refused_whatever_they_say(
    wrong: Any, message: str, rows: bool, labels: bool, save: Any
) -> None:
    said = {"labels": WHOLE.labels.numpy()} if labels else {}
    said |= {"rows": np.arange(40)} if rows else {}
    made = wrong(WHOLE.images)
    # Noise would be most of what is left.
    images = made if "one colour" in message or "twice" in message else noisy(made, 2)
    file = save(images=images.numpy(), **said)
    found = failure(lambda: craft(method(file)))
    assert message in found
    assert "match=trust" in found
    trusted = craft(method(file, match="trust"))
    assert (trusted == images.permute(0, 2, 3, 1).numpy()).all()


@pytest.mark.parametrize("levels", [0, 8, 32, 64])
def test_strong_sets_pass(levels: int, save: Any) -> None:
    craft(method(save(images=noisy(WHOLE.images, levels).numpy())))


@pytest.mark.parametrize("name", ["cuda", "ops", "noise:epsilon=48/255"])
def test_legitimate_sets_of_other_methods_pass(name: str, save: Any) -> None:
    train = Synthetic(train=60, test=8).load(NOWHERE).train
    mask, made = torch.ones(60, dtype=torch.bool), build(METHODS, parse_one(name, METHODS))
    rows = torch.arange(60)
    job = Crafting(train, rows, mask, 0, torch.device("cpu"), "fp32", lambda number: [])
    released = release(train, made.craft(job), mask, made.budget).images
    method(save(images=released.numpy())).check(train, rows, 60)
    wrong = released.flip(0)
    refused = failure(lambda: method(save(images=wrong.numpy())).check(train, rows, 60))
    assert "other" in refused


def test_few_images_on_the_rows_of_others_are_refused(save: Any) -> None:
    """What a part of the recipe is, numbered from 0 as if it were the whole."""
    file = save(images=noisy(PART.images, 4).numpy(), rows=np.arange(12))
    assert "one for row" in failure(lambda: craft(method(file), PART, ROWS))


def test_trust_is_told_and_the_check_has_the_old_identity(save: Any) -> None:
    file = save(images=CRAFTED)
    assert method(file).settings().keys() == {"digest", "epsilon"}
    trusting = method(file, match="trust")
    assert trusting.identity() != method(file).identity()
    assert trusting.deviations() == {"match": ["trust", "check"]}
    expansion = Expansion(Grid(methods=f"file:({file}),match=trust", dataset="synthetic"))
    assert expansion.methods[1][0].endswith(":match=trust")


def test_images_that_a_set_does_not_cover_do_not_count_as_protected(save: Any) -> None:
    made = method(save(images=CRAFTED[:3], rows=np.arange(3)))
    mask = torch.ones(40, dtype=torch.bool)
    job = Crafting(WHOLE, torch.arange(40), mask, 0, torch.device("cpu"), "fp32", lambda n: [])
    made.craft(job)
    assert job.mask.nonzero().flatten().tolist() == [0, 1, 2]


def test_a_perturbation_saved_by_pytorch_is_called_so(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "delta.pt")
    assert "is a PyTorch file" in failure(lambda: method(tmp_path / "delta.pt"))


# --- folders ----------------------------------------------------------------------------------


def draw(file: Path, image: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(file)


@pytest.mark.parametrize("name", ["{row}.png", "{row:05}.png", "{label}/{row}.png", "x/{row}.bmp"])
def test_files_named_after_rows(name: str, tmp_path: Path) -> None:
    for row, image in enumerate(CRAFTED):
        label = WHOLE.classes[int(WHOLE.labels[row])]
        draw(tmp_path / "mine" / name.format(row=row, label=label), image)
    (tmp_path / "mine" / "notes.txt").write_text("not an image")
    assert (craft(method(tmp_path / "mine")) == CRAFTED).all()
    assert (craft(method(tmp_path / "mine"), PART, ROWS) == CRAFTED[ROWS]).all()


def test_class_folders_follow_the_order_of_a_folder_data_set(tmp_path: Path) -> None:
    for half in ("train", "test"):
        for row, image in enumerate(WHOLE.images.permute(0, 2, 3, 1).numpy()):
            # Numbers that repeat from class to class, and class names of which one begins another.
            label = ["a", "a b", "b", "c"][int(WHOLE.labels[row])]
            draw(tmp_path / "own" / half / label / f"{row // 4}.png", image)
    places = Places(tmp_path, tmp_path / "cache", download=False)
    train = Folder(str(tmp_path / "own")).load(places).train
    shutil.copytree(tmp_path / "own" / "train", tmp_path / "crafted")
    for file in (tmp_path / "crafted").rglob("*.png"):
        image = torch.from_numpy(np.array(Image.open(file)))
        draw(file, changed(image.permute(2, 0, 1)[None])[0])
    assert (craft(method(tmp_path / "crafted"), train) == changed(train.images)).all()

    next((tmp_path / "crafted" / "a").iterdir()).unlink()
    message = failure(lambda: craft(method(tmp_path / "crafted"), train))
    assert "has 9 images of 'a', but the run trains on 10" in message
    shutil.rmtree(tmp_path / "crafted" / "a")
    got = craft(method(tmp_path / "crafted"), train)
    absent = (train.labels == 0).numpy()
    assert (got[absent] == train.images.permute(0, 2, 3, 1).numpy()[absent]).all()
    assert (got[~absent] == changed(train.images)[~absent]).all()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no images"),
        ({"x/a.png": 8}, "in 'x', which is no class of it"),
        ({"a.png": 8}, "images at its top"),
        ({"1.png": 9}, "has 9 x 9 pixels; 8 x 8 are needed"),
        ({"40.png": 8}, "replaces row 40, but rows of the training split run from 0 to 39"),
        ({"pattern 1/0.png": 8}, "labels of 1 of 1 images"),
    ],
)
def test_folders_that_do_not_fit(files: dict[str, int], message: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name, size in files.items():
        draw(tmp_path / "mine" / name, np.zeros((size, size, 3), np.uint8))
    assert message in failure(lambda: craft(method(tmp_path / "mine")))


def test_pictures_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "mine" / "3.png"
    file.parent.mkdir()
    Image.new("RGBA", (8, 8)).save(file)
    transparent = craft(method(file.parent, match="trust"))
    assert (transparent[3] == 255).all()  # over white, as the data set folder:PATH has it
    file.write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    assert "cannot read the image" in failure(lambda: craft(method(file.parent)))
    file.with_name("2.png").write_bytes(b"")
    both = failure(lambda: craft(method(file.parent)))
    assert "2.png" in both
    assert "3.png" in both
    Image.new("1", (30_000, 30_000)).save(file)  # small on disk, huge in memory
    assert "3.png" in failure(lambda: craft(method(file.parent)))


# --- what does not fit ------------------------------------------------------------------------

ONE = {"images": CRAFTED}
LABELS = WHOLE.labels.numpy()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": CRAFTED}, "holds pictures but no 'images'"),
        ({"images": CRAFTED.astype(np.int64)}, "holds images as int64; save uint8, or float"),
        ({"images": CRAFTED[:0]}, "holds no images"),
        ({"images": np.array(3.0)}, "holds no images"),
        ({"images": CRAFTED[:, :7]}, "shape (40, 7, 8, 3), where synthetic needs (n, 8, 8, 3)"),
        ({"images": CRAFTED[..., 0]}, "shape (40, 8, 8)"),
        ({"images": CRAFTED[:39]}, "holds 39 images; give the 40 that this run trains on in order"),
        ({"images": CRAFTED.astype(float)}, "float images between 0 and 255"),
        ({"images": CRAFTED / 255 - 0.01}, "float images between -0.01 and"),
        ({**ONE, "labels": (LABELS + (LABELS == 3)) % 4}, "labels of 10 of 40 images"),
        ({**ONE, "labels": LABELS[:39]}, "'labels' as int64 of shape (39,), where whole numbers"),
        ({**ONE, "labels": LABELS / 1}, "'labels' as float64"),
        ({**ONE, "rows": np.arange(40) - 1}, "replaces row -1"),
        ({**ONE, "rows": np.arange(40) + 1}, "replaces row 40"),
        ({**ONE, "rows": np.arange(40) // 2}, "names row 0 more than once"),
        ({**ONE, "labels": np.array([None] * 40)}, "holds Python objects"),
    ],
)
def test_arrays_that_do_not_fit(arrays: dict[str, Any], message: str, save: Any) -> None:
    assert message in failure(lambda: craft(method(save(**arrays))))


def test_labels_that_disagree_are_counted_and_placed(save: Any) -> None:
    labels = LABELS.copy()
    labels[[7, 20]] = 2, 1
    message = failure(lambda: craft(method(save(**ONE, labels=labels))))
    assert "labels of 2 of 40 images" in message
    assert "first in row 7: 2, where it has 3" in message


def test_not_a_number_is_refused_with_its_image(save: Any) -> None:
    images = CRAFTED / 255
    images[5, 0, 0, 0] = np.nan
    assert "first in image 5" in failure(lambda: craft(method(save(images=images))))


def test_part_of_another_size_says_both_numbers(save: Any) -> None:
    message = failure(lambda: craft(method(save(images=CRAFTED[:20])), PART, ROWS))
    assert "holds 20 images; give the 12 that this run trains on, or the 40 of" in message


def test_rows_that_the_run_does_not_train_on(save: Any) -> None:
    rows = np.setdiff1d(np.arange(40), ROWS)
    file = save(images=CRAFTED[rows], rows=rows)
    assert "replaces none of the 12 images" in failure(lambda: craft(method(file), PART, ROWS))


def test_files_that_are_no_sets_are_refused_at_once(tmp_path: Path, save: Any) -> None:
    assert "does not exist" in failure(lambda: method(tmp_path / "nothing.npz"))
    (tmp_path / "text.npz").write_text("images")
    assert "neither an .npz nor an .npy" in failure(lambda: method(tmp_path / "text.npz"))
    file = Path(save(**ONE))
    file.write_bytes(file.read_bytes()[:-100])
    assert "is damaged" in failure(lambda: method(file))
    (tmp_path / "short.npy").write_bytes(b"\x93NUMPY\x01\x00")
    assert "is damaged" in failure(lambda: craft(method(tmp_path / "short.npy")))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    assert "Python objects" in failure(lambda: craft(method(tmp_path / "objects.npy")))
    assert "must lie between 0 and 1" in failure(lambda: method(save(**ONE), epsilon="8"))
    assert "needs its path" in failure(lambda: parse_one("file", METHODS))


def test_archive_that_would_fill_the_memory_is_not_unpacked(tmp_path: Path) -> None:
    content = io.BytesIO()
    np.lib.format.write_array(content, np.zeros((1000, 64, 64, 3)))
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", content.getvalue())
    assert (tmp_path / "bomb.npz").stat().st_size < 200_000
    message = failure(lambda: craft(method(tmp_path / "bomb.npz")))
    assert "unpacks 'images' to 98 MB" in message


def test_flipped_byte_in_the_archive_is_noticed(save: Any) -> None:
    file = Path(save(**ONE))
    content = bytearray(file.read_bytes())
    content[2000] ^= 1
    file.write_bytes(content)
    assert "is damaged" in failure(lambda: craft(method(file)))


# --- budget and identity ----------------------------------------------------------------------


def test_epsilon_is_a_bound_that_the_set_must_keep(save: Any) -> None:
    file = save(**ONE)
    kept = method(file, epsilon="3/255")
    assert (craft(kept) == CRAFTED).all()
    assert str(kept.budget) == "l∞ 3/255"
    message = failure(lambda: craft(method(file, epsilon="2/255")))
    assert "by 3/255, more than epsilon=2/255" in message


def test_identity_is_the_content(tmp_path: Path, save: Any) -> None:
    file = Path(save(**ONE))
    (tmp_path / "deep").mkdir()
    other = shutil.copy(file, tmp_path / "deep" / "renamed.npz")
    assert method(file).identity() == method(other).identity()
    assert str(tmp_path) not in str(method(file).identity())
    assert method(file).identity() != method(file, epsilon="0.1").identity()
    assert method(file).identity() != method(save("other", images=CRAFTED + 1)).identity()
    assert method(file).title == "file:mine"
    assert method(other).title == "file:renamed"


def test_identity_of_a_folder_is_names_and_contents(tmp_path: Path) -> None:
    for name in ("one", "two"):
        draw(tmp_path / name / "1.png", CRAFTED[1])
    assert method(tmp_path / "one").identity() == method(tmp_path / "two").identity()
    (tmp_path / "two" / "1.png").rename(tmp_path / "two" / "2.png")
    assert method(tmp_path / "one").identity() != method(tmp_path / "two").identity()


def test_set_that_changes_during_a_run_is_noticed(save: Any) -> None:
    made = method(save(**ONE))
    made.identity()
    save(images=changed(WHOLE.images, 4))
    assert "has changed since this run began" in failure(lambda: craft(made))


def test_labels_of_tables_and_canonical_text(save: Any, tmp_path: Path) -> None:
    file = save("a,b", **ONE)
    methods = f"file:({file}),file:path=({file}),file:({file}),epsilon=3/255"
    expansion = Expansion(Grid(methods=methods, dataset="synthetic"))
    assert [label for label, _ in expansion.methods] == [
        "clean",
        "file:a,b",
        "file:a,b:epsilon=0.01176",
    ]
    for _, made in expansion.methods:
        again = build(METHODS, parse_one(canonical(made, METHODS), METHODS))
        assert again.identity() == made.identity()
    # --epsilon tells methods what to craft to; somebody's finished set is not crafted.
    with pytest.raises(UsageError, match="none of"):
        Expansion(Grid(methods=f"file:({file})", dataset="synthetic", epsilon=0.1))


@pytest.mark.parametrize("name", ["a+noise", "a, b", "it's", "a(b", "a)b, 'c", "x=1", "café+ops"])
def test_canonical_text_of_odd_names_is_read_as_them(name: str, save: Any) -> None:
    made = build(METHODS, Spec("file", save(name, **ONE)))
    assert parse_one(canonical(made, METHODS), METHODS).argument == made.path


def test_path_in_the_other_unicode_form_is_found(save: Any) -> None:
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    file = save(apart, **ONE)
    assert method(file.replace(apart, composed)).identity() == method(file).identity()


def test_files_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    for name, by in (("one", 3), ("two", 4)):
        (tmp_path / name / "out").mkdir(parents=True)
        np.savez(tmp_path / name / "out" / "set.npz", images=changed(WHOLE.images, by))
    methods = ",".join(f"file:{tmp_path}/{name}/out/set.npz" for name in ("one", "two"))
    labels = [label for label, _ in Expansion(Grid(methods=methods, dataset="synthetic")).methods]
    assert labels == ["clean", "file:set (one)", "file:set (two)"]


# --- through the grid -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """Runs methods on a small grid in folders of its own; returns the store."""
    folder = tmp_path_factory.mktemp("run")

    def start(methods: str) -> Path:
        grid = Grid(
            methods=methods,
            archs="rn18:width=0.0625",
            dataset="synthetic",
            recipe="quick:epochs=2,train_images=none,curve_images=none",
        )
        outcome = bench.run(
            grid,
            results_dir=folder / "results",
            store=folder / "store",
            data_dir=folder,
            workers=1,
            download=False,
            quiet=True,
        )
        assert not outcome.failed
        return folder

    threads = torch.get_num_threads()
    yield start
    torch.set_num_threads(threads)


def test_released_set_of_the_suite_gives_the_same_curve_again(run: Callable[..., Path]) -> None:
    folder = run("noise")
    (crafted,) = (folder / "store" / "crafted").glob("noise-*/released.npz")
    run(f"file:({crafted})")
    records = load_results(folder / "results").set_index("method")
    assert set(records.index) == {"clean", "noise", "file"}
    assert records.loc["file", "curve"] == records.loc["noise", "curve"]
    assert records.loc["file", "curve"] != records.loc["clean", "curve"]
    assert records.loc["file", "confusion"] == records.loc["noise", "confusion"]
    assert records.loc["file", "audit"] == records.loc["noise", "audit"]
    assert records.loc["file", "method_label"] == "file:released"


def test_set_for_another_data_set_ends_the_run_before_anything_is_trained(
    run: Callable[..., Path], save: Any
) -> None:
    file = save(**ONE)
    assert "where synthetic needs (n, 16, 16, 3)" in failure(
        lambda: run(f"sep:checkpoints=2,file:({file})")
    )


def test_mask_of_a_run_leaves_the_rest_clean(save: Any) -> None:
    mask = draw_mask(WHOLE.labels, 0.5, 0)
    made = method(save(**ONE))
    job = Crafting(WHOLE, torch.arange(40), mask, 0, torch.device("cpu"), "fp32", lambda n: [])
    released = release(WHOLE, made.craft(job), mask, made.budget)
    assert released.audit["protected_images"] == 20
    assert released.audit["changed_outside_mask"] == 0
    assert (released.images[~mask] == WHOLE.images[~mask]).all()

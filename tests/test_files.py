"""Files appear whole or not at all, and a full disk is called one."""

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.files import NEXT_TO_NOTHING, load_tensors, save_tensors, write_text, write_with


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_file_and_its_folders_are_made(tmp_path: Path) -> None:
    file = tmp_path / "some" / "where" / "text.md"
    write_text(file, "π")
    assert file.read_bytes() == "π".encode()
    assert names(file.parent) == ["text.md"]
    assert file.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_what_goes_wrong_leaves_the_older_file(tmp_path: Path, error: BaseException) -> None:
    file = tmp_path / "text.md"
    write_text(file, "older")

    def fill(out) -> None:
        out.write(b"half of the new")
        raise error

    with pytest.raises(type(error)):
        write_with(file, fill)
    assert file.read_text() == "older"
    assert names(tmp_path) == ["text.md"]


def test_tensors_come_back(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    state = {"weight": torch.arange(6.0).reshape(2, 3), "epoch": 3}
    save_tensors(file, state)
    found = load_tensors(file)
    assert found is not None
    assert found["weight"].equal(state["weight"])
    assert found["epoch"] == 3
    file.write_bytes(file.read_bytes()[:-40])
    assert load_tensors(file) is None


class TestFullDisk:
    @staticmethod
    def leave(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))

    @pytest.mark.parametrize(
        "error",
        [
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 8 vs 4"),
            OSError(errno.ENOSPC, "No space left on device"),
        ],
    )
    def test_it_is_named_with_the_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        self.leave(monkeypatch, NEXT_TO_NOTHING - 1)

        def fill(out) -> None:
            raise error

        with pytest.raises(OSError, match="make room and repeat the command") as found:
            write_with(tmp_path / "state.pt", fill)
        assert found.value.errno == errno.ENOSPC
        assert found.value.filename == str(tmp_path)
        assert found.value.__cause__ is error
        assert names(tmp_path) == []

    @pytest.mark.parametrize(
        ("free", "error"),
        [(NEXT_TO_NOTHING, RuntimeError), (0, ValueError), (0, KeyboardInterrupt)],
    )
    def test_other_errors_stay(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, error: type
    ) -> None:
        self.leave(monkeypatch, free)

        def fill(out) -> None:
            raise error("another")

        with pytest.raises(error, match="another"):
            write_with(tmp_path / "state.pt", fill)

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint import load_checkpoint, save_checkpoint

STATE = {"weights": {"w": torch.arange(6.0).reshape(2, 3)}, "epoch": 3, "losses": [1.5, float("nan")], "name": "Ü"}


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def refused(path: Path) -> None:
    with pytest.raises(ValueError, match="not a") as error:
        load_checkpoint(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "delete" not in message, "it may be somebody's weights"
    assert "\n" not in message


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "new" / "last.pt"
    save_checkpoint(path, STATE)
    state = load_checkpoint(path)
    assert torch.equal(state["weights"]["w"], STATE["weights"]["w"])  # type: ignore[index]
    assert (state["epoch"], state["losses"][0], state["name"]) == (3, 1.5, "Ü")
    assert files(path.parent) == ["last.pt"]


def test_a_newer_one_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"epoch": 1})
    save_checkpoint(path, {"epoch": 2})
    assert load_checkpoint(path) == {"epoch": 2}
    assert files(tmp_path) == ["last.pt"]


@pytest.mark.parametrize("failing", ["save", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"epoch": 1})

    def full(*arguments: Any) -> None:
        if failing == "save":
            arguments[1].write(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    owner = {"save": torch, "fsync": os, "replace": Path}[failing]
    monkeypatch.setattr(owner, failing, full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, {"epoch": 2})
    monkeypatch.undo()
    assert load_checkpoint(path) == {"epoch": 1}
    assert files(tmp_path) == ["last.pt"]


def test_a_write_that_is_interrupted_leaves_the_old_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"epoch": 1})

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {"epoch": 2})
    assert load_checkpoint(path) == {"epoch": 1}
    assert files(tmp_path) == ["last.pt"]


def test_what_did_not_reach_the_disk_never_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(*arguments: Any) -> Any:
            order.append(name)
            return original(*arguments)

        monkeypatch.setattr(owner, name, watched)

    watch(os, "fsync")
    watch(Path, "replace")
    save_checkpoint(tmp_path / "last.pt", STATE)
    assert order == ["fsync", "replace"]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_torn_file_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path)


@pytest.mark.parametrize("place", range(0, 48, 8))
def test_a_byte_that_has_changed_is_noticed(tmp_path: Path, place: int) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"w": torch.arange(12.0)})
    whole = bytearray(path.read_bytes())
    numbers = torch.arange(12.0).numpy().tobytes()
    whole[whole.index(numbers) + place] ^= 0xFF
    path.write_bytes(whole)
    assert not torch.equal(torch.load(path, weights_only=True)["w"], torch.arange(12.0)), "torch alone says nothing"
    refused(path)


class Foreign:
    """A pickle that makes a folder where it is opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_foreign_pickle_is_refused_unopened(tmp_path: Path, zipped: bool) -> None:
    path, made = tmp_path / "last.pt", tmp_path / "made"
    if zipped:
        torch.save({"trainer": Foreign(made)}, path)
    else:
        path.write_bytes(pickle.dumps(Foreign(made)))
    refused(path)
    assert not made.exists()
    torch.load(path, weights_only=False) if zipped else pickle.loads(path.read_bytes())
    assert made.is_dir()  # so it would have


def test_a_bare_tensor_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(2), tmp_path / "last.pt")
    refused(tmp_path / "last.pt")


def test_no_file_and_no_permission_are_said_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "last.pt")

    def denied(*arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    save_checkpoint(tmp_path / "last.pt", STATE)
    monkeypatch.setattr(torch, "load", denied)
    with pytest.raises(PermissionError):  # never "not whole; delete it"
        load_checkpoint(tmp_path / "last.pt")

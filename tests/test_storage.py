"""Files written whole or not at all; checkpoints that notice damage."""

import pytest
import torch

from ltr import InputError, storage


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "file"
    storage.write_text(path, "old")

    def fail(file) -> None:
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        storage.write_whole(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def state(epoch: int) -> dict:
    return {"epoch": epoch, "model": {"weight": torch.full((3,), float(epoch))}, "history": [{"loss": 0.5}]}


def test_a_checkpoint_comes_back(tmp_path):
    path = tmp_path / "checkpoint.pt"
    assert storage.load_checkpoint(path) is None
    storage.save_checkpoint(path, state(1))
    loaded = storage.load_checkpoint(path)
    assert loaded["epoch"] == 1
    assert torch.equal(loaded["model"]["weight"], torch.ones(3))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign", "gone"])
def test_a_damaged_checkpoint_is_noticed_and_the_previous_one_used(tmp_path, damage):
    path = tmp_path / "checkpoint.pt"
    storage.save_checkpoint(path, state(1))
    storage.save_checkpoint(path, state(2))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":  # killed between the two renames of a save
        path.unlink()
        assert storage.load_checkpoint(path)["epoch"] == 1
        return
    new = {"flip": bytes(content), "cut": bytes(content[:-7]), "empty": b"", "foreign": b"not ours" * 99}[damage]
    path.write_bytes(new)
    with pytest.warns(UserWarning, match=r"checkpoint\.pt cannot be used"):
        assert storage.load_checkpoint(path)["epoch"] == 1


def test_when_both_are_damaged_both_are_named(tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"x")
    storage.previous(path).write_bytes(b"y")
    with pytest.raises(InputError, match=r"checkpoint\.pt cannot .*checkpoint\.pt\.previous cannot"):
        storage.load_checkpoint(path)


@pytest.mark.parametrize("kind", ["checkpoint", "weights"])
def test_nothing_in_a_file_is_executed(tmp_path, kind):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "evil.pt"
    if kind == "checkpoint":
        storage.save_checkpoint(path, {"model": Evil()})
        read = storage.load_checkpoint
    else:
        storage.write_weights(path, {"model": Evil()})
        read = storage.read_weights
    with pytest.raises(InputError):
        read(path)
    assert not (tmp_path / "ran").exists()


def test_a_save_that_fails_leaves_what_could_be_loaded(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    storage.save_checkpoint(path, state(1))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        storage.save_checkpoint(path, state(2))
    assert storage.load_checkpoint(path)["epoch"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_removing_takes_both(tmp_path):
    path = tmp_path / "checkpoint.pt"
    storage.save_checkpoint(path, state(1))
    storage.save_checkpoint(path, state(2))
    storage.remove_checkpoint(path)
    assert list(tmp_path.iterdir()) == []

"""Files written whole or not at all; tables whose words stay words; checkpoints that notice damage."""

import errno
import io
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ltr.errors import InputError, StorageError
from ltr.runtime import storage
from ltr.runtime.checkpoint import DIGEST_SIZE, MAGIC, load_checkpoint, previous, remove_checkpoint, save_checkpoint


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


# A data folder's name is data. These are read by pandas as numbers, as truth values or as nothing.
NAMES = ["007", "1.10", "1e3", "NA", "N/A", "<NA>", "nan", "None", "null", "NULL", "True", "false", "inf", "-inf"]
NAMES += ["0x1", "-0", "1_000", "2024-01-01", "1,5", ' a "b" ', "#1", "½", "a\nb"]


def test_words_of_a_table_stay_as_they_were_written():
    table = pd.DataFrame({"dataset": NAMES, "seed": range(len(NAMES)), "all": np.linspace(0, 1, len(NAMES))})
    table = table.assign(mode=None, tau=np.nan, chosen=True)
    read = storage.read_table(io.StringIO(storage.table_text(table)))
    assert read.dataset.tolist() == NAMES
    assert read.seed.tolist() == table.seed.tolist()
    assert read["all"].tolist() == pytest.approx(table["all"].tolist(), rel=1e-5)
    assert read[["mode", "tau"]].isna().all(axis=None)
    assert read.chosen.all()


@pytest.mark.parametrize("name", NAMES)
def test_a_column_of_one_name_is_no_column_of_numbers(name):
    text = storage.table_text(pd.DataFrame({"dataset": [name, name], "torch": ["2.10", "2.10"]}))
    read = storage.read_table(io.StringIO(text))
    assert read.dataset.tolist() == [name, name]
    assert read.torch.tolist() == ["2.10", "2.10"]
    assert storage.table_text(read) == text


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n1,2,3\n", b"a,b\n\xff,\xfe\n"])
def test_a_file_that_is_no_table_is_named(tmp_path, content):
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^results: \S+results\.csv must be a table of comma-separated values \("):
        storage.read_table(path, "results")


def state(epoch: int) -> dict:
    return {"epoch": epoch, "model": {"weight": torch.full((3,), float(epoch))}, "history": [{"loss": 0.5}]}


def test_a_checkpoint_comes_back(tmp_path):
    path = tmp_path / "checkpoint.pt"
    assert load_checkpoint(path) is None
    save_checkpoint(path, state(1))
    loaded = load_checkpoint(path)
    assert loaded["epoch"] == 1
    assert torch.equal(loaded["model"]["weight"], torch.ones(3))


def flip(position: float):
    """Change one bit, at a share of the file's length."""

    def damaged(content: bytes) -> bytes:
        at = int(position * (len(content) - 1))
        return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]

    return damaged


DAMAGES = {
    "first byte": flip(0),
    "last byte": flip(1),
    **{f"byte at {share} %": flip(share / 100) for share in range(1, 100, 7)},  # magic word, hash and content
    "cut by a byte": lambda content: content[:-1],
    "cut in half": lambda content: content[: len(content) // 2],
    "cut behind the hash": lambda content: content[: len(MAGIC) + DIGEST_SIZE],
    "empty": lambda content: b"",
    "foreign": lambda content: b"not ours" * 99,
    "of plain torch.save": lambda content: content[len(MAGIC) + DIGEST_SIZE :],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_noticed_and_the_previous_one_used(tmp_path, damage):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state(1))
    save_checkpoint(path, state(2))
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.warns(UserWarning, match=r"checkpoint\.pt cannot be used: .*; going on from checkpoint\.pt\.previous"):
        assert load_checkpoint(path)["epoch"] == 1


def test_a_damaged_checkpoint_never_takes_the_place_of_the_previous_one(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state(1))
    save_checkpoint(path, state(2))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="going on from"):
        load_checkpoint(path)
    replace = os.replace

    def full(source, target):
        if str(source).endswith(".tmp"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError):
        save_checkpoint(path, state(3))
    assert load_checkpoint(path)["epoch"] == 1


def test_a_checkpoint_that_cannot_be_read_now_stays(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state(1))
    save_checkpoint(path, state(2))
    read = Path.read_bytes

    def stale(self):
        if self == path:
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", stale)
    with pytest.warns(UserWarning, match="going on from"):
        assert load_checkpoint(path)["epoch"] == 1
    monkeypatch.undo()
    assert load_checkpoint(path)["epoch"] == 2


def test_json_has_numbers_of_numpys_as_numbers(tmp_path):
    content = {"seed": np.int64(3), "share": np.float32(0.5), "path": tmp_path}
    storage.write_json(tmp_path / "a.json", content)
    assert storage.read_json(tmp_path / "a.json", {}) == {"seed": 3, "share": 0.5, "path": str(tmp_path)}


def test_a_kill_between_the_two_renames_of_a_save_leaves_the_previous_one(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state(1))
    save_checkpoint(path, state(2))
    path.unlink()
    assert load_checkpoint(path)["epoch"] == 1


def test_when_both_are_damaged_both_are_named(tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"x")
    previous(path).write_bytes(b"y")
    with pytest.raises(InputError, match=r"checkpoint\.pt cannot .*checkpoint\.pt\.previous cannot"):
        load_checkpoint(path)


@pytest.mark.parametrize("kind", ["checkpoint", "weights"])
def test_nothing_in_a_file_is_executed(tmp_path, kind):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "evil.pt"
    if kind == "checkpoint":
        save_checkpoint(path, {"model": Evil()})
        read = load_checkpoint
    else:
        storage.write_weights(path, {"model": Evil()})
        read = storage.read_weights
    with pytest.raises(InputError):
        read(path)
    assert not (tmp_path / "ran").exists()


def test_a_save_that_fails_leaves_what_could_be_loaded(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state(1))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, state(2))
    assert load_checkpoint(path)["epoch"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_removing_takes_both(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state(1))
    save_checkpoint(path, state(2))
    remove_checkpoint(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="links take rights there")
def test_what_a_link_leads_to_is_written(tmp_path):
    (tmp_path / "target.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to(tmp_path / "target.csv")
    storage.write_text(tmp_path / "link.csv", "new")
    assert (tmp_path / "target.csv").read_text() == "new"
    assert (tmp_path / "link.csv").is_symlink()


def test_rows_are_replaced_and_others_stay(tmp_path):
    path, rows = tmp_path / "t.csv", pd.DataFrame({"run": ["a", "b"], "all": [1.0, 2.0]})
    for new in (rows, rows.assign(run=["b", "c"])):
        storage.update_table(path, new, lambda old, new: old.run.isin(new.run), ["run"], ["run"])
    assert storage.read_table(path).to_numpy().tolist() == [["a", 1.0], ["b", 1.0], ["c", 2.0]]
    path.write_text("x,y\n1,2\n")
    with pytest.raises(InputError, match="must have a column run, got x, y$"):
        storage.update_table(path, rows, lambda old, new: old.run.isin(new.run), ["run"])

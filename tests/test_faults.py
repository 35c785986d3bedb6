"""What can go wrong around a run, one test each: full and read-only disks, damage, locks, clocks, moved folders.

Damaged and malicious files are in test_storage.py, foreign checkpoints in test_training.py, kills in
test_interruptions.py.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import forked
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from ltr import first_stage, models, recipes, runs, second_stage, training
from ltr.datasets import LabelledImages, LongTailed
from ltr.errors import InputError, StorageError
from ltr.runtime import storage
from ltr.runtime.checkpoint import DIGEST_SIZE, MAGIC, load_checkpoint, save_checkpoint
from ltr.settings import FirstStage

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and limits")
COUNTS = np.array([40, 15, 10, 5])


@pytest.fixture(scope="module")
def data() -> LongTailed:
    """70 training images of 4 classes, 8x8 noise."""
    rng = np.random.default_rng(3)
    images = LabelledImages(rng.integers(0, 256, (70, 8, 8, 3), np.uint8), np.repeat(np.arange(4), COUNTS))
    return LongTailed("noise", list("abcd"), images, images, None, (0.5,) * 3, (0.25,) * 3)


def network() -> models.CifarResNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.CifarResNet(4, (8,), (1,), projection=True)


def fit(data: LongTailed, stage: int, checkpoint: Path | None, epochs: int = 3) -> training.Outcome:
    """A short training of either stage."""
    recipe, model = recipes.Recipe(epochs, 16, lr=0.05), network()
    if stage == 1:
        return training.fit(model, first_stage.ImageData(data, "cpu"), recipe, None, checkpoint)
    frozen = second_stage.FrozenFeatures(model, data, "cpu", batch_size=16)
    return training.fit(models.copy_classifier(model), frozen, recipe, None, checkpoint)


class Struck(Exception):
    """What ends a training in these tests."""


def stop(patch: pytest.MonkeyPatch) -> None:
    raise Struck


def interrupted_fit(data: LongTailed, stage: int, path: Path, strike=stop, after: int = 1) -> None:
    """Train and save after each epoch; after so many saves something strikes at the next one."""
    saved = []

    def save(trainer: training.Trainer) -> None:
        if len(saved) == after:
            strike(patch)
        save_checkpoint(trainer.checkpoints.path, trainer.state())
        saved.append(trainer.epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Trainer, "save_when_due", save)
        fit(data, stage, path)


def assert_same(one: training.Outcome, other: training.Outcome) -> None:
    """Equal at tolerance 0, but for times."""
    for name, value in one.weights.items():
        assert torch.equal(value, other.weights[name]), name
    assert np.array_equal(one.norms, other.norms)
    assert one.history.drop(columns="seconds").equals(other.history.drop(columns="seconds"))


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("at", ["open", "fsync", "replace"])
def test_a_full_disk_leaves_the_last_checkpoint_and_the_run_goes_on_later(data, tmp_path, stage, at):
    checkpoint = tmp_path / "checkpoint.pt"

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def strike(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(storage if at == "open" else os, at, full, raising=False)

    with pytest.raises(StorageError, match=r"^cannot write \S+checkpoint\.pt: No space left on device; .*whole$"):
        interrupted_fit(data, stage, checkpoint, strike)
    assert load_checkpoint(checkpoint)["epoch"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert_same(fit(data, stage, checkpoint), fit(data, stage, None))


def run_script(options: str, out: Path, **how) -> subprocess.CompletedProcess:
    """The first script, one epoch long."""
    return forked.run(forked.SCRIPTS[0], f"{options} --epochs 1 --out {out}".split(), **how)


@pytest.mark.slow
@posix
def test_a_script_that_may_write_no_large_file_says_so_in_one_line(small, tmp_path):
    import resource

    limit = 2**20  # bytes; a checkpoint of the narrow network has 5.6 million
    result = run_script(small, tmp_path, before=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)))
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: cannot write")
    assert "checkpoint.pt: File too large" in result.stderr
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.rglob("summary.json"))


@contextlib.contextmanager
def small_disk(path: Path, options: str):
    """A file system of its own, where this process may mount one."""
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this process may not mount a file system")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
def test_a_disk_that_fills_up_keeps_the_old_checkpoint(data, tmp_path):
    with small_disk(tmp_path / "disk", "size=64k") as disk:
        checkpoint = disk / "checkpoint.pt"
        save_checkpoint(checkpoint, {"epoch": 1, "weight": torch.zeros(6000)})
        with pytest.raises(StorageError, match="No space left on device"):
            save_checkpoint(checkpoint, {"epoch": 2, "weight": torch.zeros(12_000)})
        assert load_checkpoint(checkpoint)["epoch"] == 1
        assert list(disk.iterdir()) == [checkpoint]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
def test_a_read_only_disk_is_refused_before_any_work(small, tmp_path):
    with small_disk(tmp_path / "disk", "ro") as disk:
        result = run_script(small, disk / "out")
    assert result.returncode == 2
    assert result.stderr.startswith("error: --out: must be a folder that can be written to")
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
@posix
def test_a_folder_that_cannot_be_made_is_refused_before_any_work(small):
    result = run_script(small, Path("/proc/ltr"))
    assert result.returncode == 2
    assert result.stderr.startswith("error: --out: must be a folder that can be written to, got /proc/ltr")
    assert "settings:" not in result.stdout


def hold(folder: Path, data: LongTailed) -> None:
    """What another process does: train a run, for ever."""
    run = runs.Run(folder, {"method": "WD"})  # its lock goes when it goes
    run.begin(data.describe(), "cpu")
    (folder / "held").touch()
    time.sleep(120)


@pytest.fixture
def holder(tmp_path, data):
    """Another process that trains the run in tmp_path/run."""
    process = forked.call(hold, tmp_path / "run", data)
    while process.is_alive() and not (tmp_path / "run" / "held").exists():
        time.sleep(0.02)
    yield process
    process.kill()
    process.join()


@pytest.mark.slow
def test_a_live_lock_refuses_a_second_process_and_harms_nobody(tmp_path, holder, data):
    before = (tmp_path / "run" / "config.json").read_text()
    with pytest.raises(InputError, match=r"^--out: another process is training \S+run$"):
        runs.Run(tmp_path / "run", {"method": "WD"}).begin(data.describe(), "cpu", retrain=True)
    assert holder.is_alive()
    assert (tmp_path / "run" / "config.json").read_text() == before


@pytest.mark.slow
@posix
def test_a_dead_processs_lock_is_taken_over_and_its_litter_removed(tmp_path, holder, data):
    litter = tmp_path / "run" / f".checkpoint.pt.{holder.pid}.tmp"
    litter.write_bytes(b"half")
    holder.kill()
    holder.join()
    assert (tmp_path / "run" / ".lock").exists()
    run = runs.Run(tmp_path / "run", {"method": "CB"})
    run.begin(data.describe(), "cpu")
    assert json.loads((run.path / "config.json").read_text())["settings"] == {"method": "CB"}
    assert not litter.exists()
    run.lock.release(force=True)


@pytest.mark.slow
@posix
def test_of_two_scripts_in_one_folder_one_is_refused_and_the_other_ends(small, tmp_path):
    words = f"{small} --epochs 2 --out {tmp_path}".split()
    logs = [(tmp_path / f"{number}.out", tmp_path / f"{number}.err") for number in range(2)]
    both = [forked.start(forked.SCRIPTS[0], words, *own) for own in logs]
    for process in both:
        process.join(300)
    codes = [process.exitcode for process in both]
    said = [err.read_text() for _, err in logs]
    assert sorted(codes) == [0, 2], said
    refused = said[codes.index(2)]
    assert refused.startswith("error: --out: another process is training")
    assert refused.count("\n") == 1
    assert len(pd.read_csv(tmp_path / "results.csv")) == 2 * 4


def append(path: str, name: str) -> None:
    """In a process of its own: put a run's rows into results.csv again and again."""
    rows = [{column: name if column == "run" else 0 for column in runs.COLUMNS}]
    result = type("Rows", (), {"rows": lambda self: rows, "averaged": ()})()
    for _ in range(10):
        runs.append_results(Path(path), [result])


@pytest.mark.slow
def test_two_processes_that_write_results_at_once_lose_no_row(tmp_path):
    for process in [forked.call(append, str(tmp_path / "results.csv"), name) for name in ("a", "b")]:
        process.join(120)
        assert process.exitcode == 0
    assert sorted(pd.read_csv(tmp_path / "results.csv").run) == ["a", "b"]


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("years", [-30, 30])
def test_a_clock_that_jumps_changes_nothing(data, tmp_path, monkeypatch, stage, years):
    checkpoint, later = tmp_path / "checkpoint.pt", time.time() + years * 365 * 86400
    with pytest.raises(Struck):
        interrupted_fit(data, stage, checkpoint, after=2)
    for path in tmp_path.iterdir():
        os.utime(path, (later, later))
    monkeypatch.setattr(time, "time", lambda: later)
    resumed = fit(data, stage, checkpoint)
    assert_same(resumed, fit(data, stage, None))
    assert (resumed.history.seconds >= 0).all()


@pytest.mark.parametrize("stage", [1, 2])
def test_a_run_folder_can_be_moved_and_goes_on(data, tmp_path, stage):
    (tmp_path / "here").mkdir()
    with pytest.raises(Struck):
        interrupted_fit(data, stage, tmp_path / "here" / "checkpoint.pt")
    shutil.move(tmp_path / "here", tmp_path / "there")
    resumed = fit(data, stage, tmp_path / "there" / "checkpoint.pt")
    assert_same(resumed, fit(data, stage, None))


def test_a_finished_run_is_found_where_it_was_moved_to(data, tmp_path):
    run = runs.open_run(tmp_path / "here" / "demo_1", "wd", {"method": "WD"}, data.describe()["fingerprint"])
    run.begin(data.describe(), "cpu")
    run.save(fit(data, 1, None), COUNTS)
    expected = run.load()
    shutil.move(tmp_path / "here", tmp_path / "there")
    found = runs.find(tmp_path / "there" / "demo_1", {"method": "WD"})
    assert found.summary == expected.summary
    assert found.weights().keys() == network().state_dict().keys()


def test_a_checkpoint_in_an_older_format_goes_on(data, tmp_path, monkeypatch):
    """PyTorch wrote no zip files before 1.6, and still reads what it wrote then."""
    checkpoint, real = tmp_path / "checkpoint.pt", torch.save
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", lambda *what: real(*what, _use_new_zipfile_serialization=False))
        pytest.raises(Struck, interrupted_fit, data, 1, checkpoint)
    assert not checkpoint.read_bytes()[len(MAGIC) + DIGEST_SIZE :].startswith(b"PK")
    assert_same(fit(data, 1, checkpoint), fit(data, 1, None))


def test_a_checkpoint_loads_onto_another_device(data, tmp_path):
    save_checkpoint(tmp_path / "checkpoint.pt", {"model": nn.Linear(2, 3).state_dict()})
    state = load_checkpoint(tmp_path / "checkpoint.pt", "meta")
    assert {value.device.type for value in state["model"].values()} == {"meta"}


def test_retrain_starts_anew_and_resume_is_the_default(data, tmp_path):
    settings = FirstStage.parse(["--preset", "demo", "--resume", "--out", str(tmp_path)])
    assert settings == FirstStage.parse(["--preset", "demo", "--out", str(tmp_path)])
    with pytest.raises(InputError, match="^--resume: .*--retrain"):
        FirstStage.parse(["--preset", "demo", "--resume", "--retrain"])
    run = runs.Run(tmp_path / "run", {"method": "WD"})
    run.path.mkdir()
    save_checkpoint(run.checkpoint, {"epoch": 1})
    run.begin(data.describe(), "cpu")
    assert run.checkpoint.exists()
    run.begin(data.describe(), "cpu", retrain=True)
    assert not run.checkpoint.exists()
    run.lock.release(force=True)

"""A run's folder: whole files, loading, finding, results.csv."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from ltr import metrics, runs, training
from ltr.datasets import LabelledImages, LongTailed
from ltr.errors import InputError

COUNTS = np.array([300, 50, 5])


@pytest.fixture
def data() -> LongTailed:
    images = LabelledImages(np.zeros((355, 2, 2, 3), np.uint8), np.repeat(np.arange(3), COUNTS))
    return LongTailed("tiny", list("abc"), images, images.take(np.arange(9)), None, (0.5,) * 3, (0.5,) * 3)


@pytest.fixture
def outcome() -> training.Outcome:
    rng = np.random.default_rng(0)
    logits = {variant: rng.normal(size=(12, 3)).astype(np.float32) for variant in metrics.VARIANTS}
    history = pd.DataFrame({"epoch": [1, 2], "test_accuracy": [10.0, 20.0]})
    weights = {"weight": torch.arange(6.0).reshape(3, 2)}
    extra = {"seconds": 1.5, "max_norm": 0.25, "max_norm_fired": 0.5}
    return training.Outcome(history, rng.random((3, 3)), logits, np.arange(12) % 3, weights, extra)


def finished(folder, outcome, data, name="wd", **settings) -> runs.Result:
    identity = {"method": "WD", "seed": 0, "backbone": "resnet32", "imbalance_factor": 100.0} | settings
    run = runs.open_run(folder, name, identity, data.describe()["fingerprint"])
    run.begin(data, "cpu")
    run.save(outcome, COUNTS)
    return run.load()


def test_what_is_saved_is_loaded(tmp_path, outcome, data):
    result = finished(tmp_path, outcome, data, mode="paper")
    files = {path.name for path in result.path.iterdir()}
    assert files - {".lock"} == {
        "config.json",
        "metrics.csv",
        "norms.npy",
        "test_logits.npz",
        "summary.json",
        "weights.pt",
    }
    assert result.label == "WD (paper)"
    for selection, tta in metrics.VARIANTS:
        expected = metrics.summarise(outcome.logits[selection, tta], outcome.labels, COUNTS)
        assert result.accuracy(selection, tta) == pytest.approx(expected)
    logits, labels = result.test_logits
    np.testing.assert_allclose(logits, outcome.logits["last", "none"], atol=2e-3)
    assert np.array_equal(labels, outcome.labels)
    np.testing.assert_allclose(result.norms, outcome.norms, rtol=1e-6)
    assert torch.equal(result.weights()["weight"], outcome.weights["weight"])
    assert result.config["data"]["class_counts"] == COUNTS.tolist()
    assert {"device", "torch", "commit", "python"} <= result.config["environment"].keys()


def test_logits_beyond_half_precision_stay_finite(tmp_path, outcome, data):
    outcome.logits["last", "none"][0] = [1e9, -1e9, 3.0]
    logits, _ = finished(tmp_path, outcome, data).test_logits
    assert logits[0].tolist() == [65504, -65504, 3]


def test_an_empty_group_stays_empty(tmp_path, outcome, data):
    run = runs.Run(tmp_path / "run", {"method": "CB"})
    run.begin(data, "cpu")
    run.save(outcome, np.array([300, 200, 50]))  # no few-shot class
    assert np.isnan(run.load().accuracy()["few"])
    assert json.loads((run.path / "summary.json").read_text())["last/none"]["few"] is None
    assert runs.table([run.load()]).loc["CB", "few"] == "–"


def test_a_run_is_named_by_settings_and_data(tmp_path):
    name = lambda settings, data: runs.open_run(tmp_path, "x", settings, data).name  # noqa: E731
    assert name({"lr": 0.1}, {"train": "a"}) == name({"lr": 0.1}, {"train": "a"})
    assert name({"lr": 0.1}, {"train": "a"}) != name({"lr": 0.2}, {"train": "a"})
    assert name({"lr": 0.1}, {"train": "a"}) != name({"lr": 0.1}, {"train": "b"})


def test_retraining_forgets_what_was_there(tmp_path, outcome, data):
    run = runs.Run(tmp_path / "run", {"method": "CB"})
    run.begin(data, "cpu")
    run.save(outcome, COUNTS)
    run.checkpoint.write_bytes(b"old")
    assert run.finished
    run.begin(data, "cpu", retrain=True)
    assert not run.finished
    assert not run.checkpoint.exists()


def test_without_images_nothing_is_begun(tmp_path):
    with pytest.raises(InputError, match=r"^--data-root: "):
        runs.Run(tmp_path / "run", {}).begin(None, "cpu")
    assert not (tmp_path / "run").exists()


def test_find_takes_the_run_that_fits_and_says_what_differs(tmp_path, outcome, data):
    with pytest.raises(InputError, match="there is no finished run"):
        runs.find(tmp_path, {"seed": 0})
    one, two = (finished(tmp_path, outcome, data, seed=seed) for seed in (0, 1))
    assert runs.find(tmp_path, {"seed": 1}).path == two.path
    assert runs.find(tmp_path, {"seed": 0}, data.describe()["fingerprint"]).path == one.path
    with pytest.raises(InputError, match=r"^--backbone: no finished run in .* with resnet34; .* has resnet32$"):
        runs.find(tmp_path, {"seed": 1, "backbone": "resnet34"})
    with pytest.raises(InputError, match=r"^--data-root: "):
        runs.find(tmp_path, {"seed": 1}, {"train": "other"})


def test_results_hold_four_rows_a_run_and_replace_older_ones(tmp_path, outcome, data):
    path = tmp_path / "results.csv"
    one, two = (finished(tmp_path, outcome, data, seed=seed) for seed in (0, 1))
    runs.append_results(path, [one, two])
    table = runs.append_results(path, [one])
    assert list(table.columns) == runs.COLUMNS
    assert len(table) == 8
    assert set(zip(table.selection, table.tta, strict=True)) == set(metrics.VARIANTS)
    row = table[(table.run == two.path.name) & (table.selection == "best_test") & (table.tta == "flip")].iloc[0]
    assert row["all"] == pytest.approx(two.accuracy("best_test", "flip")["all"], abs=1e-3)
    assert (row.dataset, row.seed, row.max_norm, row.max_norm_fired) == ("tiny", 1, 0.25, 0.5)


HOLD = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); input()"


def test_two_processes_cannot_train_one_run_but_a_dead_one_is_no_hindrance(tmp_path, outcome, data):
    run = runs.Run(tmp_path / "run", {"method": "CB"})
    run.path.mkdir()
    command = [sys.executable, "-c", HOLD, str(run.path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=r"^--out: another process is training"):
            run.begin(data, "cpu")
        other.kill()
    run.begin(data, "cpu")
    run.save(outcome, COUNTS)


def test_an_interrupted_cell_can_start_again_in_the_same_process(tmp_path, outcome, data):
    interrupted = runs.Run(tmp_path / "run", {"method": "CB"})
    interrupted.begin(data, "cpu")  # and never saved
    again = runs.Run(tmp_path / "run", {"method": "CB"})
    again.begin(data, "cpu")
    again.save(outcome, COUNTS)
    assert not interrupted.lock.is_locked


def test_large_weights_are_kept_out_of_git(tmp_path, outcome, data, monkeypatch):
    assert not (finished(tmp_path, outcome, data, "small").path / ".gitignore").exists()
    monkeypatch.setattr(runs, "COMMIT_LIMIT", 1000)
    assert (finished(tmp_path, outcome, data, "large").path / ".gitignore").read_text() == "weights.pt\n"


def test_a_damaged_run_is_named(tmp_path, outcome, data):
    result = finished(tmp_path, outcome, data)
    (result.path / "summary.json").write_text("{")
    with pytest.raises(InputError, match=rf"^--out: .*{result.path.name}.*--retrain"):
        runs.Run(result.path, {}).load()


def test_where_there_are_no_images_either_both_causes_are_said(tmp_path):
    absent = InputError("--data-root: there is no folder x")
    with pytest.raises(InputError, match=r"^--data-root: there is no folder x; --out: there is no finished run"):
        runs.find(tmp_path, {"method": "WD"}, absent=absent)


def test_a_further_table_is_made_once_for_its_settings(tmp_path, outcome, data):
    result, made = finished(tmp_path, outcome, data), []

    def make() -> pd.DataFrame:
        made.append(len(made))
        return pd.DataFrame({"made": [len(made)]})

    assert result.cached("norms", None) is None
    for settings, number in ((None, 1), ({"lr": 0.1}, 2), ({"lr": 0.2}, 3), ({"lr": 0.1}, 2), (None, 1)):
        assert result.cached("norms", make, settings).made.tolist() == [number]
    assert len(made) == 3
    assert result.cached("norms", None, {"lr": 0.2}).made.tolist() == [3]

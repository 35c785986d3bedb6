"""Runs made ready to be committed: what goes, and what stays."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ltr import datasets, metrics, recipes, runs, training
from ltr.errors import InputError
from ltr.first_stage import ImageData
from ltr.models import build_model
from ltr.runtime.options import ROOT
from ltr.second_stage import FEATURES
from ltr.study import pack

CUT = {"imbalance_factor": 10.0, "profile": "exp", "choice": "first", "hold_out": 0, "seed": 0}
RECIPE = recipes.Recipe(epochs=1, batch_size=64, lr=0.1)
FILES = {"config.json", "metrics.csv", "norms.npy", "predictions.npz", "summary.json"}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A network's run, with weights that are large, and one of weights that are small."""
    data = datasets.load("synthetic", tmp_path, **CUT)
    outcome = training.fit(build_model("resnet32", len(data.class_counts), 1), ImageData(data, "cpu"), RECIPE)
    out = tmp_path / "exp"
    for stage, name in (("demo_1", "WD"), ("demo_2", "CB")):
        run = runs.open_run(out / stage, name, CUT | {"method": name}, data.describe()["fingerprint"])
        run.begin(data.describe(), "cpu")
        run.save(outcome, data.class_counts)
        outcome.weights = {name: value for name, value in outcome.weights.items() if "classifier" in name}
    return out


def packed(folder: Path, *words: str) -> dict[str, set[str]]:
    """Names of the files of each run afterwards, by method."""
    pack.main([str(folder), *words])
    return {
        path.name.split("-")[0]: {file.name for file in path.iterdir() if file.name != ".lock"}
        for path in folder.glob("demo_?/*")
    }


def test_large_weights_go_and_a_second_time_changes_nothing(folder, capsys):
    assert packed(folder) == {"WD": FILES, "CB": FILES | {"weights.pt"}}
    assert "2 runs are ready to be committed" in capsys.readouterr().out
    before = {path: path.read_bytes() for path in folder.glob("demo_?/*/*") if path.name != ".lock"}
    packed(folder)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_run_that_is_kept_keeps_its_weights_and_features(folder):
    name = next(folder.glob("demo_1/*")).name
    (folder / "demo_1" / name / FEATURES).write_bytes(bytes(200_000))
    assert packed(folder, "--keep", name)["WD"] == FILES | {"weights.pt", FEATURES}
    assert packed(folder)["WD"] == FILES


def test_the_history_keeps_seven_digits_and_whole_epochs(folder):
    before = {path: runs.Result.read(path).history for path in folder.glob("demo_?/*")}
    packed(folder)
    for path, history in before.items():
        pd.testing.assert_frame_equal(runs.Result.read(path).history, history, rtol=1e-6, check_dtype=False)
    line = (next(folder.glob("demo_1/*")) / "metrics.csv").read_text("utf-8").splitlines()[1]
    epoch, *values = line.split(",")
    assert epoch == "1"
    assert all(len(value.lstrip("0.").replace(".", "")) <= 7 for value in values)


def test_norms_of_many_epochs_go_but_for_the_first_and_the_last(folder):
    base, head = next(folder.glob("demo_1/*")), next(folder.glob("demo_2/*"))
    long, short = np.random.default_rng(0).random((201, 100)).astype(np.float32), np.load(head / "norms.npy")
    np.save(base / "norms.npy", long)
    packed(folder, "--keep", base.name)
    assert np.array_equal(np.load(base / "norms.npy"), long)
    packed(folder)
    assert np.array_equal(runs.Result.read(base).norms, long[[0, -1]])
    assert np.array_equal(np.load(head / "norms.npy"), short)


def test_a_damaged_run_is_named(folder):
    (next(folder.glob("demo_1/*")) / "norms.npy").write_bytes(b"none")
    with pytest.raises(InputError, match=r"^--out: .*norms.npy cannot be read"):
        packed(folder)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--keep", "none"], "^--keep: must be finished runs in .*, got none$"),
        ([], "^folder: must hold finished runs, got "),
        (["--what"], "^--what: must be one of the options"),
    ],
)
def test_bad_options_are_refused(tmp_path, words, message):
    with pytest.raises(InputError, match=message):
        pack.main([str(tmp_path), *words])


# ---- the committed runs

COMMITTED = sorted(path.parent for path in (ROOT / "exp").glob("**/demo_[12]/*/summary.json"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_committed_predictions_give_the_tables_last_digit(path):
    run = runs.Result.read(path)
    told = run.accuracy()
    for name, value in run.predictions.summary(run.class_counts).items():
        assert metrics.or_dash(value) == metrics.or_dash(told[name]), name
    assert run.predictions.by_class.round(4).tolist() == run.summary["last/none"]["per_class"]

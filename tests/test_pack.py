"""Runs made ready to be committed: predictions from weights, and what goes."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from trees import write_tree

from ltr import datasets, metrics, models, recipes, runs, training
from ltr.errors import InputError
from ltr.first_stage import ImageData
from ltr.regularizers import row_norms
from ltr.runtime.options import ROOT
from ltr.second_stage import FrozenFeatures
from ltr.study import pack

CUT = {"imbalance_factor": 1.0, "profile": "as-is", "choice": "first", "hold_out": 0, "seed": 0}
SETTINGS = {"dataset": "folder", "backbone": "resnet32", "normalization": "cifar100", **CUT}
RECIPE = recipes.Recipe(epochs=1, batch_size=4, lr=0.1)


def finished(folder: Path, data: datasets.LongTailed, name: str, outcome: training.Outcome, **told) -> runs.Result:
    """A run as earlier versions left it: logits in place of predictions."""
    run = runs.open_run(folder, name, SETTINGS | {"method": name} | told, data.describe()["fingerprint"])
    run.begin(data.describe(), "cpu")
    run.save(outcome, data.class_counts)
    (run.path / "predictions.npz").rename(run.path / "expected.npz")
    logits = outcome.logits["last", "none"].astype(np.float16)
    np.savez_compressed(run.path / "test_logits.npz", logits=logits, labels=outcome.labels.astype(np.int16))
    return run.load()


@pytest.fixture
def folder(tmp_path, images) -> Path:
    """A network, a classifier on its drifting features, and last layers that learned."""
    data = datasets.load("folder", write_tree(tmp_path / "tree", images), **CUT)
    network = models.build_model("resnet32", len(data.class_counts), seed=1)
    logits = ImageData(data, "cpu").test_logits(network, 0)
    norms = row_norms(network.classifier.weight.detach()).numpy()[None]
    shared = logits, data.test.labels, {name: value.clone() for name, value in network.state_dict().items()}
    whole = training.Outcome(
        pd.DataFrame({"epoch": [1]}), norms, dict.fromkeys(metrics.VARIANTS, shared[0]), *shared[1:], {"seconds": 0.0}
    )
    out = tmp_path / "exp"
    base = finished(out / "demo_1", data, "WD", whole, stage1_weight_decay=0.1).path.name
    for name, layers in (("CB", 1), ("last 2 layers", 2)):
        model = models.restore("resnet32", len(data.class_counts), shared[2])
        drifting = FrozenFeatures(model if layers == 1 else models.Trunk(model, 2), data, "cpu", "released", 4)
        start = models.copy_classifier(model) if layers == 1 else models.LastLayers(model, 2, 2, drifts=True)
        outcome = training.fit(start, drifting, RECIPE)
        outcome.weights |= drifting.drifted()
        finished(out / "demo_2", data, name, outcome, stage1_run=base, stage1_weight_decay=0.1)
    return out


def packed(folder: Path, *words: str) -> dict[str, set[str]]:
    """Names of the files of each run afterwards, by method."""
    pack.main([str(folder), *words])
    return {
        path.name.split("-")[0]: {file.name for file in path.iterdir() if file.name != ".lock"}
        for path in folder.glob("demo_?/*")
    }


LEFT = {"config.json", "expected.npz", "metrics.csv", "norms.npy", "predictions.npz", "summary.json"}


def test_predictions_come_from_weights_and_heavy_files_go(folder, tmp_path, capsys):
    images = "--data-root", str(tmp_path / "tree")
    files = packed(folder, *images)
    assert files == {"WD": LEFT, "CB": LEFT | {"weights.pt"}, "last 2 layers": LEFT}
    assert "3 of 3 runs are ready to be committed" in capsys.readouterr().out
    for path in folder.glob("demo_?/*"):
        ours, theirs = (runs.read_predictions(path / name) for name in ("predictions.npz", "expected.npz"))
        assert np.array_equal(ours.predicted, theirs.predicted)
        np.testing.assert_allclose(ours.confidence, theirs.confidence, atol=1e-5)
    before = {path: path.read_bytes() for path in folder.glob("demo_?/*/*") if path.name != ".lock"}
    pack.main([str(folder)])  # no images are needed any more
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_run_that_is_kept_keeps_its_weights(folder, tmp_path):
    name = next(folder.glob("demo_1/*")).name
    (folder / "demo_1" / name / pack.FEATURES).write_bytes(bytes(200_000))
    files = packed(folder, "--data-root", str(tmp_path / "tree"), "--keep", name)
    assert files["WD"] == LEFT | {"weights.pt", pack.FEATURES}
    assert "weights.pt" not in files["last 2 layers"]


def test_the_history_keeps_seven_digits_and_whole_epochs(folder, tmp_path):
    before = {path: runs.Result.read(path).history for path in folder.glob("demo_?/*")}
    packed(folder, "--data-root", str(tmp_path / "tree"))
    for path, history in before.items():
        pd.testing.assert_frame_equal(runs.Result.read(path).history, history, rtol=1e-6, check_dtype=False)
    line = (next(folder.glob("demo_1/*")) / "metrics.csv").read_text("utf-8").splitlines()[1]
    epoch, *values = line.split(",")
    assert epoch == "1"
    assert all(len(value.lstrip("0.").replace(".", "")) <= 7 for value in values)


def test_norms_of_many_epochs_go_but_for_the_first_and_the_last(folder, tmp_path):
    base, head = next(folder.glob("demo_1/*")), next(folder.glob("demo_2/CB*"))
    long, short = np.random.default_rng(0).random((201, 100)).astype(np.float32), np.load(head / "norms.npy")
    np.save(base / "norms.npy", long)
    packed(folder, "--data-root", str(tmp_path / "tree"), "--keep", base.name)
    assert np.array_equal(np.load(base / "norms.npy"), long)
    pack.main([str(folder)])
    assert np.array_equal(runs.Result.read(base).norms, long[[0, -1]])
    assert np.array_equal(np.load(head / "norms.npy"), short)


def test_a_run_whose_predictions_cannot_be_had_stays_as_it_is(folder, tmp_path, capsys):
    root = "--data-root", str(tmp_path / "tree")
    base, layers = next(folder.glob("demo_1/*")), next(folder.glob("demo_2/last*"))
    (layers / "weights.pt").unlink()
    weights = torch.load(base / "weights.pt", weights_only=True)
    weights["classifier.bias"][0] += 100  # another network than its summary's: every image is of class 0
    torch.save(weights, base / "weights.pt")
    files = packed(folder, *root)
    assert files["WD"] == LEFT - {"predictions.npz"} | {"test_logits.npz", "weights.pt"}
    assert files["last 2 layers"] == files["WD"] - {"weights.pt"}
    said = capsys.readouterr().out
    assert re.search(f"{base.name} stays as it is: --data-root: \\w+ is .* from its weights, .* in its summary", said)
    assert re.search(f"{layers.name} stays as it is: --out: .* has no weights.pt", said)
    assert "1 of 3 runs are ready" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--keep", "none"], "^--keep: must be finished runs in .*, got none$"),
        (["--what"], "^--what: must be one of the options"),
    ],
)
def test_bad_options_are_refused(tmp_path, words, message):
    with pytest.raises(InputError, match=message):
        pack.main([str(tmp_path), *words])


# ---- the committed runs

COMMITTED = sorted(path.parent for path in (ROOT / "exp").glob("**/demo_[12]/*/predictions.npz"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_committed_predictions_give_the_tables_last_digit(path):
    run = runs.Result.read(path)
    told = run.accuracy()
    for name, value in run.predictions.summary(run.class_counts).items():
        assert metrics.percent(value) == metrics.percent(told[name]), name
    assert run.predictions.by_class.round(4).tolist() == run.summary["last/none"]["per_class"]


def test_a_network_keeps_what_a_head_that_stays_still_needs(folder, capsys):
    (base,) = folder.glob("demo_1/*")
    (base / "expected.npz").rename(base / "predictions.npz")  # the network alone could be packed
    files = packed(folder)
    assert "1 of 3 runs are ready" in capsys.readouterr().out
    assert "weights.pt" in files["WD"]


def test_git_holds_no_logits():
    assert COMMITTED
    assert not list((ROOT / "exp").glob("**/demo_[12]/*/test_logits.npz"))

"""A run's folder: whole files, loading, finding, results.csv."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from ltr import metrics, runs, training
from ltr.datasets import LabelledImages, LongTailed
from ltr.errors import InputError
from ltr.runtime.storage import read_json

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
    extra = {"seconds": 1.5, "max_norm": 0.25, "projected_share": 0.5}
    return training.Outcome(history, rng.random((3, 3)), logits, np.arange(12) % 3, weights, extra)


def finished(folder, outcome, data, name="wd", **settings) -> runs.Result:
    identity = {"method": "WD", "seed": 0, "backbone": "resnet32", "imbalance_factor": 100.0} | settings
    run = runs.open_run(folder, name, identity, data.describe()["fingerprint"])
    run.begin(data.describe(), "cpu")
    run.save(outcome, COUNTS)
    return run.load()


def test_what_is_saved_is_loaded(tmp_path, outcome, data):
    result = finished(tmp_path, outcome, data, mode="paper")
    files = {path.name for path in result.path.iterdir()}
    assert files - {".lock"} == {
        "config.json",
        "metrics.csv",
        "norms.npy",
        "predictions.npz",
        "summary.json",
        "weights.pt",
    }
    assert result.label == "WD (paper)"
    for selection, tta in metrics.VARIANTS:
        expected = metrics.Predictions.of(outcome.logits[selection, tta], outcome.labels).summary(COUNTS)
        assert result.accuracy(selection, tta) == pytest.approx(expected)
    made, expected = result.predictions, metrics.Predictions.of(outcome.logits["last", "none"], outcome.labels)
    assert np.array_equal(made.hits, expected.hits)
    assert np.array_equal(made.confusion, expected.confusion)
    np.testing.assert_allclose(made.confidence, expected.confidence, rtol=0, atol=1 / runs.STEPS)
    np.testing.assert_allclose(made.marginal, expected.marginal, rtol=1e-7)
    assert made.summary(COUNTS) == pytest.approx(result.accuracy(), rel=1e-4)  # ECE of 12 images alone
    np.testing.assert_allclose(result.norms, outcome.norms, rtol=1e-6)
    assert torch.equal(result.weights()["weight"], outcome.weights["weight"])
    assert result.config["data"]["class_counts"] == COUNTS.tolist()
    assert {"device", "torch", "commit", "python"} <= result.config["environment"].keys()


def test_a_run_that_goes_on_keeps_where_it_was_begun(tmp_path, data, monkeypatch):
    about, starts = data.describe(), ("ax", "by", "cz", "dw", "ev")
    stamps = iter({"device": device, "torch": "2", "commit": commit} for device, commit in starts)
    monkeypatch.setattr(runs, "environment", lambda device: next(stamps))
    run = runs.open_run(tmp_path, "wd", {"method": "WD"}, about["fingerprint"])
    run.begin(about, "cpu")
    run.begin(about, "cpu")  # it was killed before its first checkpoint: nothing of the first start is left
    run.checkpoint.touch()
    run.begin(about, "cpu")
    run.begin(about, "cpu")
    config = read_json(run.path / "config.json", {})
    assert (config["environment"]["commit"], [each["device"] for each in config["resumed"]]) == ("y", ["c", "d"])
    run.begin(about, "cpu", retrain=True)
    config = read_json(run.path / "config.json", {})
    assert config["environment"]["commit"] == "v"
    assert "resumed" not in config


def test_what_a_first_stage_did_otherwise_stands_in_its_rows(tmp_path, outcome, data):
    plain = finished(tmp_path, outcome, data, "plain", schedule="cosine", warm_up=0)
    other = finished(tmp_path, outcome, data, "other", warm_up=5, choice="random", mix="mixup", mix_alpha=0.4)
    second = finished(tmp_path, outcome, data, "cb", warm_up=5, stage1_run=other.path.name)
    own, named = (finished(tmp_path, outcome, data, c, dataset="folder", choice=c) for c in ("hash", "first"))
    told = [
        tuple(each.rows()[0][name] for name in ("further", "choice")) for each in (plain, other, second, own, named)
    ]
    assert told == [
        (None, None),
        ("mix_alpha 0.4, warm_up 5", "random"),
        (None, None),
        (None, None),
        (None, "first"),
    ], "one's own images are drawn by their hashes, unless they are told not to be"


def test_stored_confidences_stay_in_their_bins():
    edges = np.arange(1, 16) / 15
    near = np.concatenate([edges, edges[:-1] + 1e-6, edges - 1e-6, [1e-9, 1.0]])
    confidence = np.concatenate([near, np.random.default_rng(0).random(10_000)])
    stored = runs.in_steps(confidence)
    assert stored.dtype == np.uint16
    read = stored / runs.STEPS
    np.testing.assert_allclose(read, confidence, atol=1.5 / runs.STEPS)
    bins = [np.clip(np.ceil(values * 15), 1, 15) for values in (read, confidence)]  # (a, b], as in `reliability`
    np.testing.assert_array_equal(*bins)
    np.testing.assert_array_equal(runs.in_steps(np.array([np.nan, np.nan])), [np.nan, np.nan])


def test_a_thousand_classes_keep_their_numbers(tmp_path):
    labels = np.array([0, 255, 256, 999])
    made = metrics.Predictions.of(np.eye(1000)[[0, 256, 256, 999]], labels)
    runs.write_predictions(tmp_path, made)
    read = runs.read_predictions(tmp_path / "predictions.npz")
    assert read.predicted.tolist() == [0, 256, 256, 999]
    assert read.labels.tolist() == labels.tolist()
    assert read.hits.tolist() == [1, 0, 1, 1]


def test_an_empty_group_stays_empty(tmp_path, outcome, data):
    run = runs.Run(tmp_path / "run", {"method": "CB"})
    run.begin(data.describe(), "cpu")
    run.save(outcome, np.array([300, 200, 50]))  # no few-shot class
    assert np.isnan(run.load().accuracy()["few"])
    assert json.loads((run.path / "summary.json").read_text())["last/none"]["few"] is None


def test_a_run_is_named_by_settings_and_data(tmp_path):
    name = lambda settings, data: runs.open_run(tmp_path, "x", settings, data).name  # noqa: E731
    assert name({"lr": 0.1}, {"train": "a"}) == name({"lr": 0.1}, {"train": "a"})
    assert name({"lr": 0.1}, {"train": "a"}) != name({"lr": 0.2}, {"train": "a"})
    assert name({"lr": 0.1}, {"train": "a"}) != name({"lr": 0.1}, {"train": "b"})


def test_retraining_forgets_what_was_there(tmp_path, outcome, data):
    run = runs.Run(tmp_path / "run", {"method": "CB"})
    run.begin(data.describe(), "cpu")
    run.save(outcome, COUNTS)
    run.checkpoint.write_bytes(b"old")
    assert run.finished
    run.begin(data.describe(), "cpu", retrain=True)
    assert not run.finished
    assert not run.checkpoint.exists()


def test_without_images_nothing_is_begun(tmp_path):
    with pytest.raises(InputError, match=r"^--data-root: "):
        runs.Run(tmp_path / "run", {}).begin(None, "cpu")
    assert not (tmp_path / "run").exists()


def test_without_images_the_nearest_finished_run_is_named(tmp_path, outcome, data):
    done = finished(tmp_path, outcome, data)
    wanted = runs.Run(tmp_path / "other", done.config["settings"] | {"epochs": 3})
    said = "^--data-root: other is not finished and the images .* are not there; --epochs: no finished run in .* with 3"
    with pytest.raises(InputError, match=said):
        wanted.begin(None, "cpu")
    assert not wanted.path.exists()


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


def test_first_stages_of_other_seeds_are_found_by_seed(tmp_path, outcome, data):
    one, two = (finished(tmp_path, outcome, data, seed=seed) for seed in (0, 1))
    finished(tmp_path, outcome, data, seed=2, imbalance_factor=10.0)
    found = runs.seeds_of(one)
    assert {seed: run.path for seed, run in found.items()} == {0: one.path, 1: two.path}


def test_results_hold_four_rows_a_run_and_replace_older_ones(tmp_path, outcome, data):
    path = tmp_path / "results.csv"
    one, two = (finished(tmp_path, outcome, data, seed=seed, max_norm=0.25) for seed in (0, 1))
    runs.append_results(path, [one, two])
    table = runs.append_results(path, [one])
    assert list(table.columns) == runs.COLUMNS
    assert len(table) == 8
    assert set(zip(table.selection, table.tta, strict=True)) == set(metrics.VARIANTS)
    row = table[(table.run == two.path.name) & (table.selection == "best_test") & (table.tta == "flip")].iloc[0]
    assert row["all"] == pytest.approx(two.accuracy("best_test", "flip")["all"], abs=1e-3)
    assert (row.dataset, row.seed, row.max_norm, row.projected_share) == ("tiny", 1, 0.25, 0.5)


HOLD = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); input()"


def test_two_processes_cannot_train_one_run_but_a_dead_one_is_no_hindrance(tmp_path, outcome, data):
    run = runs.Run(tmp_path / "run", {"method": "CB"})
    run.path.mkdir()
    command = [sys.executable, "-c", HOLD, str(run.path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=r"^--out: another process is training"):
            run.begin(data.describe(), "cpu")
        other.kill()
    run.begin(data.describe(), "cpu")
    run.save(outcome, COUNTS)


def test_a_run_that_another_process_has_finished_meanwhile_is_not_trained_again(tmp_path, outcome, data):
    run, other = (runs.Run(tmp_path / "run", {"method": "CB"}) for _ in range(2))
    assert not run.finished
    assert other.begin(data.describe(), "cpu")
    other.save(outcome, COUNTS)
    before = (run.path / "config.json").read_bytes()
    assert not run.begin(data.describe(), "another")
    assert (run.path / "config.json").read_bytes() == before
    assert not run.lock.is_locked
    assert run.begin(data.describe(), "cpu", retrain=True)
    assert not run.finished


def test_the_precision_is_that_of_every_engine(tmp_path, outcome, data):
    result = finished(tmp_path, outcome, data)
    engines = {"engine": "cuda, bf16, eager steps", "later_engines": ["cuda, bf16, eager steps", "cpu, fp32, eager"]}
    assert dataclasses.replace(result, summary=engines).precision == "bf16, then fp32"
    assert dataclasses.replace(result, summary={"engine": "cpu, fp32, eager steps"}).precision == "fp32"
    assert dataclasses.replace(result, summary={}).precision is None


def test_an_interrupted_cell_can_start_again_in_the_same_process(tmp_path, outcome, data):
    interrupted = runs.Run(tmp_path / "run", {"method": "CB"})
    interrupted.begin(data.describe(), "cpu")  # and never saved
    again = runs.Run(tmp_path / "run", {"method": "CB"})
    again.begin(data.describe(), "cpu")
    again.save(outcome, COUNTS)
    assert not interrupted.lock.is_locked


def test_large_weights_are_kept_out_of_git(tmp_path, outcome, data, monkeypatch):
    assert not (finished(tmp_path, outcome, data, "small").path / ".gitignore").exists()
    monkeypatch.setattr(runs, "COMMIT_LIMIT", 1000)
    assert (finished(tmp_path, outcome, data, "large").path / ".gitignore").read_text() == "weights.pt\n"


@pytest.mark.seconds
def test_results_of_any_name_come_back_and_nothing_doubles(tmp_path, outcome, data):
    """A data folder's name is data, also where pandas would read a number, a truth value or nothing."""
    path, names = tmp_path / "results.csv", ["007", "1.10", "1e3", "NA", "None", "null", "True", "inf", "nan", "cats"]
    for name in names * 2:
        named = dataclasses.replace(data, name=name)
        table = runs.append_results(path, [finished(tmp_path, outcome, named, f"of-{name.lower()}")])
    assert sorted(table.dataset) == sorted(names * 4)
    assert not table.duplicated(["run", "selection", "tta"]).any()
    before = path.read_text()
    runs.append_results(path, [])
    assert path.read_text() == before


def test_a_results_csv_of_something_else_is_refused(tmp_path, outcome, data):
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"^--out: \S+results\.csv must have a column dataset, got a, b$"):
        runs.append_results(tmp_path / "results.csv", [finished(tmp_path, outcome, data)])


# ---- damaged runs


FILES = ("config.json", "summary.json", "metrics.csv", "norms.npy")


def become_archive(path) -> None:
    """A file of NumPy's, but of several arrays."""
    np.savez(path.with_name("archive.npz"), np.zeros(3))
    shutil.move(path.with_name("archive.npz"), path)


def become_folder(path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 3]),
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x00" * 9),
    "null": lambda path: path.write_text("null"),
    "a list": lambda path: path.write_text("[1, 2]"),
    "without parts": lambda path: path.write_text("{}"),
    "an archive": become_archive,
    "a folder": become_folder,
}
DAMAGED = [(file, damage) for file in FILES for damage in DAMAGES]


def damage(result: runs.Result, file: str, kind: str) -> None:
    DAMAGES[kind](result.path / file)


@pytest.fixture
def stages(tmp_path, outcome, data):
    """Three finished first stages: one with weight decay, the naive one beside it, and one of another seed."""
    same = {"stage1_weight_decay": 0.1, "seed": 0}
    return [
        finished(tmp_path, outcome, data, "wd", **same),
        finished(tmp_path, outcome, data, "naive", **same | {"stage1_weight_decay": 0, "method": "naive"}),
        finished(tmp_path, outcome, data, "other", **same | {"seed": 7}),
    ]


WANTED = {"stage1_weight_decay": 0.1, "seed": 0}


@pytest.mark.parametrize(("file", "kind"), DAMAGED)
def test_a_damaged_run_hinders_no_other(stages, tmp_path, file, kind):
    base, naive, other = stages
    damage(other, file, kind)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert runs.find(tmp_path, WANTED).path == base.path
        assert runs.find_base(tmp_path, base.path.name, WANTED).path == base.path
        assert runs.find_naive(tmp_path, base).path == naive.path
        found = runs.finished_runs(tmp_path)
    assert [result.path for result in found] == [naive.path, base.path]
    assert all(
        f"{other.path} is passed over (--out: {other.path / file} cannot be read" in str(w.message) for w in said
    )
    assert len(said) == (3 if file == "config.json" else 1)  # of the others `find` reads no more than the config


@pytest.mark.parametrize(("file", "kind"), DAMAGED)
def test_of_a_damaged_run_that_is_wanted_the_file_is_named_and_what_helps(stages, tmp_path, outcome, data, file, kind):
    base, naive, _ = stages
    damage(base, file, kind)
    says = rf"^--out: {base.path}/{file} cannot be read: .+; without its folder, this run is trained anew$"
    for find in (lambda: runs.find_base(tmp_path, base.path.name, WANTED), runs.Run(base.path, {}).load):
        with pytest.raises(InputError, match=says) as caught:
            find()
        assert "\n" not in str(caught.value)
    if file != "config.json":  # by which it is known to be the wanted one
        with pytest.raises(InputError, match=says):
            runs.find(tmp_path, WANTED)
    else:
        with pytest.warns(UserWarning, match="is passed over"), pytest.raises(runs.NoRun) as caught:
            runs.find(tmp_path, WANTED)
        assert f"but the config.json of {base.path.name} cannot be read: without its folder" in str(caught.value)
    shutil.rmtree(base.path)
    assert runs.find(tmp_path, WANTED | {"seed": 7})
    finished(tmp_path, outcome, data, "wd", **WANTED)
    assert runs.find(tmp_path, WANTED).path == base.path


@pytest.mark.parametrize(("file", "kind"), DAMAGED)
def test_a_damaged_naive_run_is_named(stages, tmp_path, file, kind):
    base, naive, _ = stages
    damage(naive, file, kind)
    if file == "config.json":  # nobody knows that it is the naive one
        with pytest.warns(UserWarning, match="is passed over"):
            assert runs.find_naive(tmp_path, base) is None
    else:
        with pytest.raises(InputError, match=rf"^--out: {naive.path}/{file} cannot be read: .+; without its folder, "):
            runs.find_naive(tmp_path, base)


@pytest.mark.parametrize("file", ["config.json", "metrics.csv", "norms.npy"])
def test_a_missing_file_is_named(stages, tmp_path, file):
    (stages[0].path / file).unlink()
    with pytest.raises(
        InputError, match=rf"^--out: {stages[0].path}/{file} cannot be read: No such file or directory;"
    ):
        runs.find_base(tmp_path, stages[0].path.name, WANTED)


def test_a_run_without_a_summary_is_no_finished_one(stages, tmp_path):
    base, naive, _ = stages
    (base.path / "summary.json").unlink()
    with pytest.raises(runs.NoRun, match=r"^--stage1-weight-decay: no finished run .* with 0\.1; naive-\w+ has 0"):
        runs.find(tmp_path, WANTED)
    with pytest.raises(InputError, match=rf"^--stage1: must be a finished run in {tmp_path}, got {base.path.name}"):
        runs.find_base(tmp_path, base.path.name, WANTED)
    (naive.path / "summary.json").unlink()
    assert runs.find_naive(tmp_path, base) is None


@pytest.mark.parametrize("file", ["weights.pt", "predictions.npz"])
@pytest.mark.parametrize("kind", ["absent", *DAMAGES])
def test_weights_and_logits_that_cannot_be_read_are_named(tmp_path, outcome, data, file, kind):
    result = finished(tmp_path, outcome, data)
    if kind == "absent":
        (result.path / file).unlink()
    else:
        damage(result, file, kind)
    with pytest.raises(InputError, match=rf"^--out: \S+ .*{file}|^--out: \S+{file} ") as caught:
        assert result.weights() if file == "weights.pt" else result.predictions
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["empty", "binary", "an archive"])
def test_a_damaged_further_table_is_made_anew(tmp_path, outcome, data, kind):
    result = finished(tmp_path, outcome, data)
    assert result.cached("norms", lambda: pd.DataFrame({"made": [1]})).made.tolist() == [1]
    damage(result, "norms.csv", kind)
    assert result.cached("norms", None) is None
    assert result.cached("norms", lambda: pd.DataFrame({"made": [2]})).made.tolist() == [2]


# ---- which run


def test_several_first_stages_that_fit_are_named(stages, tmp_path, outcome, data):
    base, _, other = stages
    says = rf"^--stage1: must say which of 2 runs that differ in seed: {other.path.name}, {base.path.name}$"
    for find in (runs.find, lambda folder, wanted: runs.find_base(folder, None, wanted)):
        with pytest.raises(InputError, match=says) as caught:
            find(tmp_path, {"stage1_weight_decay": 0.1})
        assert not isinstance(caught.value, runs.NoRun)
    twice = finished(
        tmp_path, outcome, dataclasses.replace(data, train=data.train.take(np.arange(300))), "wd", **WANTED
    )
    with pytest.raises(InputError, match=r"^--stage1: must say which of 2 runs that differ in their images: "):
        runs.find(tmp_path, WANTED)
    assert runs.find(tmp_path, WANTED, data.describe()["fingerprint"]).path == base.path
    assert runs.find_base(tmp_path, twice.path.name, WANTED).path == twice.path


def test_a_named_first_stage_is_taken_where_it_is_as_wanted(stages, tmp_path, data):
    base, _, other = stages
    fingerprint = data.describe()["fingerprint"]
    for run in (base, other):
        found = runs.find_base(tmp_path, run.path.name, {"stage1_weight_decay": 0.1}, fingerprint)
        assert found.path == run.path
    with pytest.raises(InputError, match=rf"^--stage1: must be a run with seed 0, {other.path.name} has 7$"):
        runs.find_base(tmp_path, other.path.name, WANTED)
    with pytest.raises(InputError, match=r"^--stage1: must be a run with data_root the images loaded here, .* another"):
        runs.find_base(tmp_path, base.path.name, WANTED, {"train": "other"})


def test_a_name_that_is_not_there_is_answered_with_the_nearest(stages, tmp_path):
    base = stages[0].path.name
    for name in (base[:-1], base.upper(), f"{tmp_path}/{base}", f"{base}/"):
        with pytest.raises(InputError, match=rf"^--stage1: must be a finished run in \S+, got .+mean {base}\?\)$"):
            runs.find_base(tmp_path, name, WANTED)
    with pytest.raises(InputError, match=r"^--stage1: must be a finished run in \S+, got xyz$"):
        runs.find_base(tmp_path, "xyz", WANTED)


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({"test_every": 3}, True),  # decides no weight of the network
        ({"seed": 1}, False),
        ({"lr": 0.5}, False),
        ({"loss": "smooth"}, False),
        ({"mix": "mixup"}, False),
        ({"warm_up": 2}, False),
        ({"nesterov": True}, False),
        ({"sam_rho": 0.1}, False),
        ({"stage1_epochs": 9}, False),
        ({"stage1_weight_decay": 1e-9}, False),
    ],
)
def test_naive_and_base_differ_in_weight_decay_alone(tmp_path, outcome, data, change, fits):
    base = finished(tmp_path, outcome, data, lr=0.1, loss="ce", stage1_weight_decay=0.1)
    naive = {"lr": 0.1, "loss": "ce", "stage1_weight_decay": 0.0, "method": "naive"}
    other = finished(tmp_path, outcome, data, "naive", **naive | change)
    found = runs.find_naive(tmp_path, base)
    assert (found.path if found else None) == (other.path if fits else None)


def test_a_naive_run_is_of_the_same_images_and_the_only_one(stages, tmp_path, outcome, data):
    base, naive, _ = stages
    other = dataclasses.replace(data, train=data.train.take(np.arange(300)))
    settings = naive.config["settings"]
    finished(tmp_path, outcome, other, "naive", **settings)
    assert runs.find_naive(tmp_path, base).path == naive.path
    again = finished(tmp_path, outcome, data, "naive", **settings | {"test_every": 2})
    assert runs.find_naive(tmp_path, base).path == naive.path  # tested as often as the base
    rarely = dataclasses.replace(base, config=base.config | {"settings": base.config["settings"] | {"test_every": 5}})
    with pytest.raises(InputError, match=r"^--out: must hold one naive run beside wd-\w+, there are ") as caught:
        runs.find_naive(tmp_path, rarely)
    assert {naive.path.name, again.path.name} <= set(re.split(r"[,;]? ", str(caught.value)))


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

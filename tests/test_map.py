"""`python -m ltr map`: learning rate x weight decay on held-out images, before and after balancing."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from ltr import metrics, runs
from ltr.errors import InputError
from ltr.runtime.options import ROOT
from ltr.runtime.storage import read_table, read_weights, write_weights
from ltr.study import map as lr_wd
from ltr.study import sweep

FIRST = "--preset demo --epochs 1 --imbalance-factor 200"


def test_halves_take_every_class_in_turn():
    assert lr_wd.halves_of(np.array([1, 0, 1, 1, 0, 2])).tolist() == [0, 0, 1, 0, 1, 0]


def test_settings_are_scored_on_the_half_that_did_not_choose_them():
    halves = np.array([0, 0, 0, 1, 1, 1])
    hits = np.array([[1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 1, 0]])  # each is best on one half, poor on the other
    assert lr_wd.cross_fitted(hits, halves).tolist() == [0, 1, 0, 0, 0, 0]
    assert hits.mean(1).max() > lr_wd.cross_fitted(hits, halves).mean()  # what choosing on the same images claims


def test_a_setting_that_diverged_is_chosen_by_no_half():
    halves, nan = np.array([0, 0, 1, 1]), np.full(4, np.nan)
    assert lr_wd.cross_fitted(np.stack([nan, [1, 0, 1, 0]]), halves).tolist() == [1, 0, 1, 0]
    assert np.isnan(lr_wd.cross_fitted(np.stack([nan, nan]), halves)).all()
    measures = lr_wd.Scored({}, nan, np.array(["many"] * 4)).accuracies(nan)
    assert np.isnan([*measures.values()]).all()  # no number, rather than 0.00 ± 0.00


def test_errors_are_those_of_a_mean_over_images():
    groups = np.array(["many"] * 8 + ["few"] * 2)
    measures = lr_wd.Scored({}, np.ones(10), groups).accuracies(np.array([1, 0, 1, 0, 1, 0, 1, 0, 1, 1.0]))
    assert (measures["all"], measures["many"], measures["few"]) == (60, 50, 100)
    assert measures["many ±"] == pytest.approx(100 * (2 / 7) ** 0.5 / 8**0.5)
    assert measures["few ±"] == 0
    assert np.isnan(measures["medium"])


def test_gains_are_paired_and_over_the_cell_that_shares_most():
    groups, rows = np.array(["many"] * 4), []
    cells = [(0.1, 5e-4, [1, 1, 0, 0]), (0.1, 0.0, [1, 0, 0, 0]), (0.01, 5e-3, [0, 0, 1, 1]), (0.2, 5e-4, [1, 1, 1, 1])]
    for lr, decay, hits in cells:
        about = lr_wd.cell(
            {"lr": lr, "stage1_weight_decay": decay, "batch_size": 64, "stage1_epochs": 40}, f"{lr} {decay}"
        )
        rows += [lr_wd.Scored(about | {"classifier": lr_wd.BEFORE}, np.array(hits, float), groups)]
    table = lr_wd.tabulate(rows).set_index("run")
    assert set(table.against) == {"0.1 0.0005"}
    assert table["all gain"].to_dict() == {"0.01 0.005": 0, "0.1 0.0": -25, "0.1 0.0005": 0, "0.2 0.0005": 50}
    assert table.loc["0.1 0.0", "all gain ±"] == pytest.approx(25)  # one image of four differs
    assert table["lr x wd"].tolist() == [5e-5, 0, 5e-5, 1e-4]


def test_what_the_map_has_no_axis_for_is_said():
    settings = {"lr": 0.2, "stage1_weight_decay": 5e-4, "batch_size": 64, "stage1_epochs": 40, "schedule": "cosine"}
    mixed = lr_wd.cell(settings | {"mix": "mixup", "mix_alpha": 0.4}, "mixed")
    assert mixed["further"] == "mix mixup, mix_alpha 0.4"
    assert lr_wd.cell(settings, "plain")["further"] == ""
    other = lr_wd.cell(settings | {"schedule": "linear", "nesterov": True, "average": "ema", "warm_up": 8}, "other")
    assert (other["further"], other["warm-up"]) == ("schedule linear, nesterov True, average ema", 8)
    assert lr_wd.cell(settings | {"momentum": 0.5}, "slow")["further"] == "momentum 0.5"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    out = tmp_path_factory.mktemp("map")
    sweep.main(f"{FIRST} --hold-out 10 --weight-decays 0 0.002 --out {out}".split())
    return out


@pytest.mark.seconds
def test_finished_runs_become_a_table(tuned, tmp_path, capsys):
    lr_wd.main([str(tuned / "tuning" / "demo_1"), "--table", str(tmp_path / "map.csv"), "--device", "cpu"])
    table = read_table(tmp_path / "map.csv")
    assert len(table) == 2 * 4
    assert (table[["dataset", *lr_wd.SET]] == ["synthetic", 200, "exp", "first", "resnet32"]).all(axis=None)
    first = table[table.classifier == lr_wd.BEFORE].set_index("run")
    for run in runs.finished_runs(tuned / "tuning" / "demo_1"):
        assert first["all"][run.path.name] == pytest.approx(run.accuracy()["all"], abs=1e-3)
    assert capsys.readouterr().out.count("logit adjustment") == 2


@pytest.mark.seconds
def test_rows_of_other_runs_are_not_lost_and_runs_without_weights_are_passed_over(tuned, tmp_path):
    table, every = tmp_path / "map.csv", runs.finished_runs(tuned / "tuning" / "demo_1")
    table.write_text("run\nanother\n")
    with pytest.raises(
        InputError, match=r"^--table: must be another file, or another given too, whose rows map.csv holds"
    ):
        lr_wd.main([str(every[0].path), "--table", str(table)])
    assert table.read_text() == "run\nanother\n"
    shutil.copytree(tuned / "tuning" / "demo_1", tmp_path / "runs")
    (tmp_path / "runs" / every[0].path.name / "weights.pt").unlink()
    with pytest.warns(UserWarning, match=f"passed over, as their weights are not there: {every[0].path.name}"):
        assert lr_wd.run_folders([tmp_path / "runs"]) == [tmp_path / "runs" / each.path.name for each in every[1:]]


@pytest.mark.seconds
def test_a_network_whose_logits_are_not_finite_has_no_score(tuned, tmp_path):
    run = runs.finished_runs(tuned / "tuning" / "demo_1")[0].path
    shutil.copytree(run, tmp_path / run.name)
    weights = read_weights(run / "weights.pt")
    weights["classifier.weight"] = torch.full_like(weights["classifier.weight"], torch.nan)
    write_weights(tmp_path / run.name / "weights.pt", weights)
    first = next(lr_wd.scored(tmp_path / run.name, tmp_path, "cpu"))
    assert first.about["classifier"] == lr_wd.BEFORE
    assert np.isnan(first.hits).all()


@pytest.mark.seconds
def test_what_cannot_be_scored_is_one_line(tuned, tmp_path):
    sweep.main(f"{FIRST} --weight-decays 0 --out {tmp_path}".split())
    with pytest.raises(InputError, match="^RUN: must be trained with --hold-out 2 or more, "):
        lr_wd.main([str(tmp_path / "demo_1"), "--table", str(tmp_path / "map.csv")])
    with pytest.raises(InputError, match="^RUN: must be a finished run with its weights, or a folder of some, got "):
        lr_wd.main([str(tmp_path / "nowhere")])


@pytest.fixture(scope="module")
def cells():
    """The committed map of 40 epochs at batch 64: gains over lr 0.1, weight decay 5e-4, by lr and weight decay."""
    table = read_table(ROOT / "exp" / "tuning" / "lr_wd.csv")
    table = table[(table.batch == 64) & (table.classifier.isin((lr_wd.BEFORE, lr_wd.AFTER)))]
    return table.set_index(["classifier", "lr", "weight decay"])


def in_errors(row, group: str) -> float:
    """A gain in paired standard errors."""
    return row[f"{group} gain"] / row[f"{group} gain ±"]


@pytest.mark.parametrize("classifier", [lr_wd.BEFORE, lr_wd.AFTER])
def test_weight_decay_gains_and_so_does_a_learning_rate_at_the_same_product(cells, classifier):
    assert in_errors(cells.loc[classifier, 0.1, 0.0], "all") < -4
    assert in_errors(cells.loc[classifier, 0.01, 5e-3], "all") < -4
    assert np.isclose(cells.loc[(classifier, 0.01, 5e-3), "lr x wd"], cells.loc[(classifier, 0.1, 5e-4), "lr x wd"])
    for lr, decay in ((0.05, 1e-3), (0.1, 1e-3), (0.2, 5e-4)):  # products of 5e-5 and 1e-4 are alike from lr 0.05 on
        assert abs(in_errors(cells.loc[classifier, lr, decay], "all")) < 2


def test_weight_decay_serves_the_rare_classes_only_once_balanced(cells):
    assert abs(in_errors(cells.loc[lr_wd.BEFORE, 0.1, 0.0], "few")) < 2
    assert in_errors(cells.loc[lr_wd.AFTER, 0.1, 0.0], "few") < -3
    assert (
        in_errors(cells.loc[lr_wd.BEFORE, 0.1, 1e-3], "few") < -4
    )  # more of it takes from them what balancing gives back
    assert abs(in_errors(cells.loc[lr_wd.AFTER, 0.1, 1e-3], "few")) < 2


def test_less_weight_decay_with_stronger_augmentation_is_better_alone_and_no_better_once_balanced():
    table = read_table(ROOT / "exp" / "tuning" / "draw.csv")
    table = table[table.further == "augmentation autoaugment+cutout"]
    usual, less = (table[table["weight decay"] == decay].set_index("classifier") for decay in (0.0005, 0.0002))
    folder = ROOT / "exp" / "tuning" / "demo_1"
    hits = [runs.Result.read(folder / one.run.iloc[0]).predictions.hits for one in (usual, less)]
    gain = less["all"] - usual["all"]
    error = metrics.paired_difference(*hits).error
    page = " ".join((ROOT / "exp" / "README.md").read_text("utf-8").split())
    assert f"by {gain[lr_wd.BEFORE]:.2f} ± {error:.2f} points paired, and no better once balanced" in page
    assert gain[[lr_wd.AFTER, *lr_wd.BALANCED]].max() < 0.1


def test_a_map_is_held_against_the_plainest_of_those_in_the_middle():
    cells = [(0.1, 5e-4, "loss vs", "a"), (0.1, 5e-4, "", "b"), (0.1, 5e-4, "loss vs, sam_rho 0.1", "c")]
    table = pd.DataFrame(cells, columns=["lr", "weight decay", "further", "run"])
    table = table.assign(**dict.fromkeys(set(lr_wd.CELL) - {*table}, 1.0))
    assert lr_wd.reference_run(table) == "b"
    assert lr_wd.reference_run(table.assign(lr=[0.1, 0.2, 0.1])) == "a"

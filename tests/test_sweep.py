"""Seeds and weight decays side by side: the runs are the ones that the first notebook makes."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from ltr import runs
from ltr.errors import InputError, TrainingError
from ltr.runtime import configs
from ltr.settings import FirstStage, SecondStage
from ltr.study import sweep
from ltr.study.rows import open_rows

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_shapes")]
OPTIONS = "--preset demo --epochs 1 --imbalance-factor 50"


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep")
    sweep.main(f"--seeds 0 1 --weight-decays 0 0.01 --at-once 3 {OPTIONS} --out {out}".split())
    return out


def test_every_cell_is_a_finished_run(swept):
    found = runs.finished_runs(swept / "demo_1")
    cells = {(r.config["settings"]["seed"], r.config["settings"]["stage1_weight_decay"], r.label) for r in found}
    assert cells == {(s, d, m) for s in (0, 1) for d, m in ((0.0, "naive"), (0.01, "WD"))}
    assert len(pd.read_csv(swept / "results.csv")) == 4 * 4


def test_the_notebook_finds_them_finished(swept):
    settings = FirstStage.parse(f"{OPTIONS} --seed 1 --weight-decay 0.01 --out {swept}".split())
    data = sweep.datasets.load(**settings.data).describe()["fingerprint"]
    for method, decay in (("naive", 0.0), ("WD", 0.01)):
        for same in (decay, decay or 0):  # the presets' 0 and a command's 0.0 are one network
            label, identity = settings.run_key(method, same)
            assert runs.open_run(swept / "demo_1", label, identity, data).finished


def test_finished_cells_are_loaded(swept, monkeypatch, capsys):
    monkeypatch.setattr(sweep.training, "fit_together", None)  # not called
    sweep.main(f"--seeds 0 1 --weight-decays 0 0.01 {OPTIONS} --out {swept}".split())
    shown = capsys.readouterr().out
    assert "weight decay" in shown
    assert len(shown.splitlines()[-2:]) == 2


def test_cells_that_another_process_has_finished_meanwhile_are_loaded(swept, monkeypatch):
    monkeypatch.setattr(runs.Run, "finished", property(lambda run: False))  # as seen before a cell's turn
    monkeypatch.setattr(runs.Run, "begin", lambda run, *_: False)  # as seen under the lock
    monkeypatch.setattr(sweep.training, "fit_together", None)  # not called
    sweep.main(f"--seeds 0 --weight-decays 0 0.01 {OPTIONS} --out {swept}".split())


def test_the_seed_is_the_presets_and_none_is_trained_twice(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(sweep, "grid", lambda settings, seeds, decays: asked.append((seeds, decays)) or [])
    monkeypatch.setattr(sweep, "train", lambda cells, at_once: iter(()))
    monkeypatch.setattr(sweep, "summary", lambda results: pd.DataFrame())
    monkeypatch.setattr(sweep.runs, "append_results", lambda path, results: None)
    for words in ("", "--seeds 0 0 2 --weight-decays 0.005 5e-3", "--seed 7"):
        sweep.main(["--preset", "demo", "--device", "cpu", "--out", str(tmp_path), *words.split()])
    assert asked == [([1], [0, 0.005]), ([0, 2], [0.005]), ([7], [0, 0.005])]


def test_weight_decays_are_the_presets_or_those_given(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(sweep, "grid", lambda settings, seeds, decays: asked.append(decays) or [])
    monkeypatch.setattr(sweep, "train", lambda cells, at_once: iter(()))
    monkeypatch.setattr(sweep, "summary", lambda results: pd.DataFrame())
    monkeypatch.setattr(sweep.runs, "append_results", lambda path, results: None)
    for words in ("laptop", "paper", "paper --naive skip", "paper --weight-decay 0.03"):
        sweep.main(["--device", "cpu", "--out", str(tmp_path), "--preset", *words.split()])
    assert asked == [[5e-4], [0, 5e-3], [5e-3], [0, 0.03]]
    with pytest.raises(InputError, match="^--weight-decay: must not be given beside --weight-decays$"):
        sweep.main("--preset paper --weight-decays 0 --weight-decay 0.03".split())


def test_a_run_that_diverges_is_named_and_hinders_no_other(tmp_path, capsys):
    words = f"--seeds 1 --weight-decays 1e30 0.01 --at-once 2 {OPTIONS} --out {tmp_path}"
    with pytest.raises(TrainingError, match=r"^training diverged: wd_wd1e\+30_\S+; try a smaller --lr$"):
        sweep.main(words.split())
    assert "wd_wd1e+30" in capsys.readouterr().out
    (run,) = runs.finished_runs(tmp_path / "demo_1")
    assert run.config["settings"]["stage1_weight_decay"] == 0.01
    assert (tmp_path / "results.csv").exists()


def test_repeating_begins_anew_only_the_first_time(tmp_path, monkeypatch):
    asked = []

    def one_diverges(cells, retrain):
        asked.append(([cell.run.name for cell in cells], retrain))
        if "bad" in asked[-1][0]:
            raise TrainingError("diverged")

    def cell(name):
        return SimpleNamespace(run=SimpleNamespace(name=name, finished=True), settings=SimpleNamespace(retrain=True))

    monkeypatch.setattr(sweep, "train_together", one_diverges)
    diverged = list(sweep.train([cell("good"), cell("bad"), cell("late")], 2))
    assert [each.run.name for each in diverged] == ["bad"]
    assert asked == [(["good", "bad"], True), (["late"], True), (["good"], False), (["bad"], False)]


def test_held_out_images_take_the_place_of_the_test_images(tmp_path):
    sweep.main(f"--weight-decays 0.01 --hold-out 2 {OPTIONS.replace('50', '48')} --out {tmp_path}".split())
    (result,) = runs.finished_runs(tmp_path / "tuning" / "demo_1")
    assert result.config["data"]["test_images"] == 2 * 20
    assert not (tmp_path / "results.csv").exists()


def test_an_averaged_network_is_a_run_of_its_own_and_a_base(tmp_path, capsys):
    words = f"{OPTIONS} --out {tmp_path}"
    sweep.main(f"--weight-decays 0 0.01 --average swa {words}".split())
    first, mean = (r for r in runs.finished_runs(tmp_path / "demo_1") if r.label.startswith("WD"))
    assert (first.label, mean.label, mean.path.name) == ("WD", "WD + SWA", f"{first.path.name}-swa")
    assert first.averaged[0].path == mean.path
    assert mean.averaged == []
    assert not torch.equal(first.weights()["stem.1.running_mean"], mean.weights()["stem.1.running_mean"])
    assert set(pd.read_csv(tmp_path / "results.csv").method) == {"naive", "naive + SWA", "WD", "WD + SWA"}
    assert [line.split()[:3] for line in capsys.readouterr().out.splitlines() if " + SWA" in line][-1][0] == "naive"
    second = SecondStage.parse(f"--preset demo --out {tmp_path} --stage1 {mean.path.name}".split())
    rows = open_rows(second, sweep.datasets.load(**second.data))
    assert (rows.base.path, rows.naive.label) == (mean.path, "naive + SWA")
    assert torch.equal(rows.sources.classifier.weight, mean.weights()["classifier.weight"])
    unnamed = SecondStage.parse(f"--preset demo --out {tmp_path}".split()).base_settings
    for run in (first, mean):  # where none is named, the base learned without
        assert ("average", "swa", None) in configs.differences(run.config, unnamed)


@pytest.mark.parametrize(
    "bad", ["--seeds x", "--seeds -1", "--weight-decays nan", "--at-once 0", "--weight-decays -0.1", "--no-such 1"]
)
def test_bad_options_are_refused(bad, tmp_path):
    with pytest.raises(InputError, match="^--"):
        sweep.main(f"{bad} {OPTIONS} --out {tmp_path}".split())
    assert list(tmp_path.iterdir()) == []

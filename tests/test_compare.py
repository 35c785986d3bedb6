"""The comparison: tuned without the test, end to end on the embedded set, every method in one table."""

import contextlib
import dataclasses
import io
import json
import re
import shlex
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from gaussians import Gaussians

from ltr import datasets, metrics, models, runs, training
from ltr.balance import describe
from ltr.datasets import LabelledImages, LongTailed
from ltr.errors import InputError
from ltr.methods import BALANCERS, Balancer
from ltr.recipes import Recipe
from ltr.runtime.options import ROOT
from ltr.runtime.storage import read_table
from ltr.settings import FirstStage
from ltr.study import compare, published, sweep

pytestmark = pytest.mark.usefixtures("few_shapes")
RECIPE = Recipe(2, lr=0.05, loss="cb-ce")
OPTIONS = "--preset demo --stage1-epochs 1 --epochs 1 --imbalance-factor 120 --hold-out 2"


@pytest.fixture
def held_out():
    return Gaussians(seed=1)


@pytest.fixture
def final():
    return Gaussians(seed=0)


def run(words: str) -> str:
    """What `python -m ltr compare` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        compare.main(shlex.split(words))
    return shown.getvalue()


def make(message: str) -> None:
    """Run the command that a message names; one epoch at the preset's learning rate would blow up the features."""
    words = re.search(r"python -m ltr sweep (.*?)\)?$", message, re.MULTILINE)[1]
    with contextlib.redirect_stdout(io.StringIO()):
        sweep.main([*shlex.split(words), "--lr", "0.01"])


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """First a tuning network alone, then a full run and a naive one beside it; what was said at each step."""
    out = tmp_path_factory.mktemp("compare")
    with pytest.raises(InputError) as nothing_there:
        run(f"{OPTIONS} --out {out}")
    make(str(nothing_there.value))
    alone, first_table = run(f"{OPTIONS} --out {out}"), pd.read_csv(out / "comparison.csv")
    make(alone)
    with contextlib.redirect_stdout(io.StringIO()):
        words = "--weight-decays 0 --seeds 1 --preset demo --epochs 1 --imbalance-factor 120"
        sweep.main(f"{words} --out {out}".split())
    both = run(f"{OPTIONS} --out {out}")
    table = pd.read_csv(out / "comparison.csv")
    return SimpleNamespace(
        out=out, error=str(nothing_there.value), alone=alone, first_table=first_table, both=both, table=table
    )


def test_what_does_not_suit_a_cosine_classifier_is_a_dash(held_out, final):
    for each in (held_out, final):
        cosine = models.CosineClassifier(10, 12)
        cosine.weight.data = each.model.classifier.weight.detach().clone()
        each.model.classifier = cosine
    names = ["first stage alone", "L2norm", "tau-norm", "logit adjustment", "NCM", "CB", "LWS"]
    table, tried = compare.compare(held_out, final, RECIPE, {name: BALANCERS[name] for name in names})
    dashes = {"L2norm", "tau-norm", "logit adjustment"}  # its rows have one norm, and it has no bias
    assert table.method.tolist() == names
    assert set(table[table["all"].isna()].method) == dashes
    assert table[["all", "ECE"]].isna().all(axis=1).sum() == 3
    assert table.set_index("method")["hyper-parameters"]["L2norm"] == "does not suit a cosine classifier"
    assert set(tried.method) == set(names) - dashes
    assert set(tried[tried.method == "NCM"].metric) == {"cosine"}


@pytest.mark.slow
def test_a_missing_first_stage_is_one_line_that_names_the_command(demo):
    assert re.match(r"--out: there is no finished run in .*; this makes it: python -m ltr sweep ", demo.error)
    assert "--hold-out 2" in demo.error
    assert "\n" not in demo.error


@pytest.mark.slow
def test_the_named_commands_make_what_was_missing(demo):
    assert len(list((demo.out / "tuning" / "demo_1").glob("*/summary.json"))) == 1
    assert "no full first stage, so the tuning network is tested" in demo.alone
    assert "no full first stage" not in demo.both


@pytest.mark.slow
def test_without_a_full_run_the_tuning_network_is_the_one_tested(demo):
    measured = demo.first_table[demo.first_table["all"].notna()]
    assert (measured.run == measured.tuned_on).all()
    full = demo.table[demo.table.method.isin(BALANCERS)]
    assert (full.run == full.stage1_run).all()
    assert (full.run != full.tuned_on).all()
    assert (full.tuned_on == measured.tuned_on.iloc[0]).all()
    assert (full.held_out == 40).all()


@pytest.mark.slow
def test_every_method_is_a_row_with_its_protocol(demo):
    table = demo.table
    assert table.method.tolist()[: len(BALANCERS)] == list(BALANCERS)
    figures = table[table.method.isin(BALANCERS)][
        [*compare.MEASURES, "validation", "seconds", "forward 50", "backward 2"]
    ]
    assert figures.notna().all(axis=None)
    assert figures[["all", "ECE", "validation"]].apply(lambda values: values.between(0, 100)).all(axis=None)
    wanted = ["synthetic", 120, "exp", "resnet32", 1, 0.005, 1]
    assert (table[compare.PROTOCOL] == wanted).all(axis=None)
    columns = ["hyper-parameters", "published", "source", "tuned_on", "held_out", "run", "trained_by"]
    assert set(columns) <= set(table.columns)


@pytest.mark.slow
def test_every_setting_that_was_tried_is_kept_and_one_a_method_is_chosen(demo):
    tried = pd.read_csv(demo.out / "tuning" / "comparison.csv")
    assert tried.method.value_counts(sort=False).to_dict() == {name: len(m.candidates) for name, m in BALANCERS.items()}
    chosen = tried[tried.chosen].set_index("method")["all"]
    best = tried.groupby("method")["all"].max()
    assert (
        chosen.to_dict()
        == best.to_dict()
        == demo.table.dropna(subset="validation").set_index("method").validation.to_dict()
    )
    assert (tried[compare.PROTOCOL] == ["synthetic", 120, "exp", "resnet32", 1, 0.005, 1]).all(axis=None)
    assert (tried.held_out == 40).all()
    words = demo.table.set_index("method").loc["CB + WD + MaxNorm", "hyper-parameters"]
    row = tried[tried.chosen & (tried.method == "CB + WD + MaxNorm")].iloc[0]
    names = ("weight decay", "radius / mean norm", "lr")
    assert ", ".join(f"{name} {row[name]:g}" for name in names) == words


def test_each_committed_tuning_network_chose_once():
    tried = read_table(ROOT / "exp" / "tuning" / "comparison.csv")
    assert tried[tried.chosen.eq(True)].groupby(["stage1_run", "method"]).size().eq(1).all()


@pytest.mark.slow
def test_networks_trained_from_scratch_are_measured_where_a_run_is_there(demo):
    rows = demo.table.set_index("method")
    assert rows.loc["naive", "hyper-parameters"] == "weight decay 0, 1 epochs at 0.1"
    assert rows.loc["naive", "run"].startswith("naive_wd0_e1")
    assert rows.loc["mixup", "trained_by"] == "--mix mixup"
    assert "not measured: --mix mixup" in demo.both
    assert np.isnan(rows.loc["mixup", "all"])
    assert "naive" not in set(demo.first_table[demo.first_table["all"].notna()].method)
    assert not rows.index.duplicated().any()


@pytest.mark.parametrize("method", compare.FROM_SCRATCH)
def test_the_option_of_an_unmeasured_row_trains_that_method(method):
    option = compare.trained_by(method)
    if method == "naive":
        assert option == "--weight-decays 0"
    else:
        assert FirstStage.parse(option.split()).named("WD") == method


def test_a_method_that_is_not_here_says_so():
    known = {"hyper-parameters": ["weight decay 1", None, None], "run": ["wd", None, None]}
    rows = pd.DataFrame(known | {"trained_by": [None, compare.absent_row("PaCo")["trained_by"], "--mix mixup"]})
    assert compare.how(rows).tolist() == ["weight decay 1", "published only", "not measured: --mix mixup"]


@pytest.mark.slow
def test_what_is_printed_is_the_table(demo):
    for name in (*BALANCERS, *compare.FROM_SCRATCH):
        assert name in demo.both
    assert "standard error up to 7.9 points" in demo.both
    assert "forward 50" in demo.both


@pytest.mark.slow
def test_an_untouched_classifier_gives_the_runs_own_figures(demo):
    (full,) = [r for r in sweep.runs.finished_runs(demo.out / "demo_1") if r.label == "WD"]
    row = demo.table.set_index("method").loc["first stage alone"]
    assert row["all"] == pytest.approx(full.accuracy()["all"], abs=0.11)  # a tie may fall to the other side


@pytest.mark.seconds
def test_settings_do_not_depend_on_test_labels(held_out, final):
    before, tried = compare.compare(held_out, final, RECIPE)
    final.test_labels = np.random.default_rng(0).permutation(final.test_labels)
    after, tried_after = compare.compare(held_out, final, RECIPE)
    pd.testing.assert_frame_equal(tried, tried_after)
    assert before["hyper-parameters"].tolist() == after["hyper-parameters"].tolist()
    assert before.validation.tolist() == after.validation.tolist()
    assert (before["all"] != after["all"]).all()


@pytest.mark.seconds
def test_settings_do_not_depend_on_the_tested_network_or_its_images(held_out, final):
    other, _ = compare.compare(held_out, Gaussians(seed=5), RECIPE)
    table, _ = compare.compare(held_out, final, RECIPE)
    assert table["hyper-parameters"].tolist() == other["hyper-parameters"].tolist()


@pytest.mark.seconds
def test_a_network_chooses_the_same_for_bases_of_any_seed(held_out, final):
    names = {name: BALANCERS[name] for name in ("CB", "cRT")}
    _, tried = compare.compare(held_out, final, RECIPE, names)
    _, other = compare.compare(held_out, Gaussians(seed=5), dataclasses.replace(RECIPE, seed=5), names)
    pd.testing.assert_frame_equal(tried, other)


@pytest.mark.seconds
def test_settings_do_depend_on_the_held_out_labels(held_out, final):
    before, _ = compare.compare(held_out, final, RECIPE)
    held_out.test_labels = np.repeat(0, len(held_out.test_labels))  # all of the commonest class
    after, _ = compare.compare(held_out, final, RECIPE)
    assert after["hyper-parameters"].tolist() != before["hyper-parameters"].tolist()


def test_tuning_on_the_test_images_is_refused(final):
    with pytest.raises(ValueError, match="held_out"):
        compare.compare(final, final, RECIPE)


def test_of_equal_settings_the_first_is_chosen(held_out):
    same = Balancer(
        lambda first, features, recipe, candidates: [first for _ in candidates], [{"tau": 2.0}, {"tau": 0.0}]
    )
    assert compare.tune(same, held_out, RECIPE)[0] == {"tau": 2.0}


def diverges(first, features, recipe, candidates):
    """A method whose candidates give weights of their `value`, or the first stage's where that is 0."""
    return [models.linear(first.weight + each["value"], first.bias) for each in candidates]


def test_a_setting_that_diverges_is_never_chosen(held_out):
    candidate, tried = compare.tune(Balancer(diverges, [{"value": np.nan}, {"value": 0.0}]), held_out, RECIPE)
    assert candidate == {"value": 0.0}
    assert tried.chosen.tolist() == [False, True]
    assert tried["all"].isna().tolist() == [True, False]
    held_out.test_labels = np.full(len(held_out.test_labels), 11)  # hardly ever chosen, and class 0 never right
    assert compare.tune(Balancer(diverges, [{"value": np.inf}, {"value": 0.0}]), held_out, RECIPE)[0] == {"value": 0.0}


@pytest.mark.seconds
def test_what_diverges_has_no_figures_and_stops_nothing(held_out, final, tmp_path):
    compared = {"bad": Balancer(diverges, [{"value": np.nan}]), "first stage alone": BALANCERS["first stage alone"]}
    table = compare.compare(held_out, final, RECIPE, compared, tmp_path)[0].set_index("method")
    assert table.loc["bad", "hyper-parameters"] == "value nan, diverged"
    assert table.loc["bad", [*compare.MEASURES, "forward 50"]].isna().all()
    assert table.loc["first stage alone", "all"] > 0


def test_settings_are_described_in_words():
    values = {"weight_decay": 0.001, "radius": 0.75, "lr": 10.0, "metric": "cosine"}
    assert describe(values, Recipe(1, lr=0.01)) == (
        "weight decay 0.001, radius / mean norm 0.75, lr 0.1, metric cosine"
    )
    assert describe({}, Recipe(1)) == ""


@pytest.mark.seconds
def test_reliability_diagrams_go_to_a_folder(held_out, final, tmp_path):
    few = {name: BALANCERS[name] for name in ("first stage alone", "tau-norm")}
    compare.compare(held_out, final, RECIPE, few, tmp_path / "figures")
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names == ["reliability_first-stage-alone.png", "reliability_tau-norm.png"]


def test_published_figures_belong_to_one_set_and_network():
    narrow, deep = (published.methods("cifar100", 100.0, "exp", name) for name in ("resnet32", "resnet34"))
    assert narrow["PaCo"][0] == 52.0
    assert deep["CB + WD + MaxNorm"] == (53.35, "Alshammari et al. 2022, with weight decay")
    assert "PaCo" not in deep
    assert "CB" not in published.methods("cifar100", 50.0, "exp", "resnet34")  # not published
    assert published.methods("cifar100", 20.0, "exp", "resnet34") == {}
    assert published.methods("synthetic", 100.0, "exp", "resnet34") == {}
    assert published.methods("cifar100", 100.0, "step", "resnet34") == {}


def test_each_published_figure_is_there_once_with_its_source():
    rows = pd.DataFrame(published.OTHERS)
    assert not rows.duplicated([0, 1]).any()
    for method, figures in published.TABLE_2.items():
        assert figures[0] == published.TABLE_1[method][-1]
    assert set(rows[1]) <= set(models.BACKBONES)
    assert rows[5].str.len().gt(0).all()


@pytest.mark.parametrize(("decay", "absent"), [(0.0, False), (0.005, True)])
def test_the_naive_network_is_absent_from_others_comparisons_alone(decay, absent):
    protocol = dict(zip(compare.PROTOCOL, ["cifar100", 100.0, "exp", "resnet32", 100, decay, 0], strict=True))
    figures = dict.fromkeys([*compare.MEASURES, "validation", "seconds"], 1.0)
    measured = pd.DataFrame([{"method": "first stage alone", "hyper-parameters": ""} | figures])
    stages = SimpleNamespace(protocol=protocol | {"tuned_on": "tuning", "held_out": 9, "run": "run"})
    assert ("naive" in set(compare.assemble(measured, [], stages).method)) == absent


def test_a_comparison_replaces_its_earlier_rows_and_no_others(tmp_path):
    protocol = dict(zip(compare.PROTOCOL, ["cifar100", 100.0, "exp", "resnet32", 70, 0.005, 0], strict=True))
    for factor, method, value in ((100.0, "CB", 1.0), (50.0, "CB", 2.0), (100.0, "NCM", 3.0)):
        row = protocol | {"imbalance_factor": factor, "method": method, "all": value}
        compare.save(tmp_path / "comparison.csv", pd.DataFrame([row]))
    table = pd.read_csv(tmp_path / "comparison.csv")
    assert sorted(zip(table.imbalance_factor, table.method, strict=True)) == [(50.0, "CB"), (100.0, "NCM")]


PROTOCOL = dict(zip(compare.PROTOCOL, ["cifar100", 100.0, "exp", "resnet32", 70, 0.005, 0], strict=True))


def test_what_was_tried_is_told_of_the_network_that_it_was_tried_on():
    told = PROTOCOL | {"imbalance_factor": 50.0, "stage1_weight_decay": 0.0, "seed": 3}
    tuned = SimpleNamespace(path=ROOT / "tuned", config={"settings": told})
    held_out = SimpleNamespace(test_labels=np.zeros(4))
    stages = SimpleNamespace(tuned=tuned, held_out=held_out, protocol=PROTOCOL | {"stage1_run": "tested"})
    tried = pd.DataFrame([{"method": "CB", "all": 40.0}])
    (row,) = compare.tuning_table(tried, stages).to_dict("records")
    assert row == told | {"stage1_run": "tuned", "held_out": 4, "method": "CB", "all": 40.0}
    measured = pd.DataFrame({"method": ["first stage alone", "CB"], "validation": [30.0, 40.0]})
    assert compare.comparable(measured, stages).validation.isna().tolist() == [True, False]
    tuned.config["settings"] = told | {"imbalance_factor": 100.0}
    assert compare.comparable(measured, stages) is measured


def test_all_that_a_first_stage_did_otherwise_is_told():
    plain = {"dataset": "cifar100", "backbone": "resnet32", "lr": 0.1, "batch_size": 64, "mix": "none", "loss": "ce"}
    assert compare.learned(plain) == {"choice": None, "further": None}
    other = plain | {"lr": 0.3, "batch_size": 32, "mix": "mixup", "choice": "random"}
    assert compare.learned(other) == {"choice": "random", "further": "lr 0.3, batch_size 32, mix mixup"}


def save_twice(path, changes) -> pd.DataFrame:
    """The file after each comparison was saved, then all of them again."""
    for value in (1.0, 2.0):
        for change in changes:
            row = PROTOCOL | change | {"method": "CB", "hyper-parameters": "", "all": value}
            compare.save(path, pd.DataFrame([row]))
    return read_table(path)


def test_comparisons_on_data_of_any_name_stay_apart_and_none_doubles(tmp_path):
    """Also of names that pandas would read as numbers, as truth values or as nothing."""
    names = ["007", "7", "1.10", "1.1", "1e3", "1000", "NA", "None", "null", "nan", "True", "inf", "cats"]
    table = save_twice(tmp_path / "comparison.csv", [{"dataset": name} for name in names])
    assert table.dataset.tolist() == names
    assert (table["all"] == 2).all()


def test_a_comparison_of_a_setting_with_many_digits_does_not_double(tmp_path):
    changes = [{"imbalance_factor": 123.456789}, {"stage1_weight_decay": 1 / 3}, {"seed": 2**32 - 1}, {}]
    table = save_twice(tmp_path / "comparison.csv", changes)
    assert len(table) == len(changes)
    assert table.seed.tolist() == [0, 0, 2**32 - 1, 0]
    assert (table["all"] == 2).all()


def test_comparisons_on_another_first_stage_stay_apart(tmp_path):
    changes = [{"stage1_run": "wd-12ab"}, {"stage1_run": "wd-34cd"}]
    table = save_twice(tmp_path / "comparison.csv", changes)
    assert table.stage1_run.tolist() == ["wd-12ab", "wd-34cd"]
    assert (table["all"] == 2).all()


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "dataset,all\nx,1\n"])
def test_a_file_that_is_no_comparison_is_refused(tmp_path, content):
    path = tmp_path / "comparison.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=r"^--out: \S+comparison\.csv must "):
        compare.save(path, pd.DataFrame([PROTOCOL]))
    assert path.read_text() == content


@pytest.fixture
def network(tmp_path):
    """A finished first stage, of which a comparison on another one tells."""
    rng, counts = np.random.default_rng(0), np.array([200, 40, 6])
    images = LabelledImages(np.zeros((246, 2, 2, 3), np.uint8), np.repeat(np.arange(3), counts))
    data = LongTailed("7", list("abc"), images, images.take(np.arange(240, 246)), None, (0.5,) * 3, (0.5,) * 3)
    run = runs.Run(tmp_path / "demo_1" / "mixup", PROTOCOL | {"method": "mixup", "mix": "mixup", "mix_alpha": 0.4})
    run.begin(data.describe(), "cpu")
    logits = dict.fromkeys(metrics.VARIANTS, rng.normal(size=(12, 3)).astype(np.float32))
    history = pd.DataFrame({"epoch": [1]})
    run.save(training.Outcome(history, rng.random((2, 3)), logits, np.arange(12) % 3, {}, {"seconds": 1.0}), counts)
    about = {"protocol": PROTOCOL, "fingerprint": data.describe()["fingerprint"]}
    return run.path, SimpleNamespace(run=SimpleNamespace(path=None), **about)


def test_a_network_is_told_of_with_all_figures(network):
    path, stages = network
    (row,) = compare.finished_networks(path.parent, stages)
    assert (row["method"], row["run"]) == ("mixup", "mixup")
    assert row["hyper-parameters"].endswith(" epochs, mix_alpha 0.4"), "two that differ in this alone are two rows"
    assert row["forward 50"] >= 0
    assert row["all"] == pytest.approx(runs.Run(path, {}).load().accuracy()["all"])


@pytest.mark.parametrize("content", [None, b"", b"PK"])
def test_a_network_without_logits_keeps_its_other_figures(network, content):
    path, stages = network
    (path / "predictions.npz").unlink()
    if content is not None:
        (path / "predictions.npz").write_bytes(content)
    with pytest.warns(UserWarning, match=r"no accuracies on shifted test sets: --out: \S+mixup.*predictions\.npz"):
        (row,) = compare.finished_networks(path.parent, stages)
    assert row["all"] == pytest.approx(runs.Run(path, {}).load().accuracy()["all"])
    assert "forward 50" not in row


def test_a_network_that_cannot_be_read_is_passed_over(network):
    path, stages = network
    (path / "summary.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"mixup is passed over \(--out: \S+summary\.json cannot be read"):
        assert list(compare.finished_networks(path.parent, stages)) == []


@pytest.mark.parametrize(
    "bad",
    [
        "--hold-out 0",
        "--tuning-epochs -1",
        "--tuning-epochs x",
        "--no-such 1",
        "--figures ''",
        "--tau 1",
        "--max-norm=2",
        "--tuned-on none",
        "--tuning-run none",
    ],
)
def test_bad_options_are_refused(bad, tmp_path):
    with pytest.raises(InputError, match="^--"):
        run(f"{bad} --preset demo --out {tmp_path}")


@pytest.mark.slow
def test_a_named_base_has_its_tuning_network_whatever_its_seed(demo):
    (base,) = (run.name for run in (demo.out / "demo_1").iterdir() if run.name.startswith("wd_"))
    words = f"--preset demo --imbalance-factor 120 --out {demo.out} --stage1 {base}".split()
    assert compare.Comparison.parse(words).hold_out == compare.HELD_OUT  # and not the base's, which saw all images
    settings = compare.Comparison.parse([*words, "--hold-out", "2"])
    stages = compare.first_stages(settings)
    assert stages.run.path.name == base
    assert stages.tuned.config["settings"]["hold_out"] == 2
    other = dataclasses.replace(stages.run, config=json.loads(json.dumps(stages.run.config)))
    other.config["settings"]["seed"] = 7
    cut = datasets.load(**settings.data).for_tuning()
    assert settings.find_tuned_like(other, 1, cut).path == stages.tuned.path


@pytest.mark.slow
def test_a_named_tuning_network_chooses_for_bases_of_other_images(demo, tmp_path):
    (tuned,) = (demo.out / "tuning" / "demo_1").iterdir()
    words = f"--preset demo --imbalance-factor 60 --hold-out 2 --out {demo.out} --tuning-run {tuned.name}".split()
    settings = compare.Comparison.parse([*words, "--choice", "random", "--seed", "3"])
    run, data = settings.tuning_network(None)
    assert run.path == tuned
    assert data.for_tuning().describe()["fingerprint"] == run.config["data"]["fingerprint"]
    assert data.describe()["fingerprint"] != datasets.load(**settings.data).describe()["fingerprint"]
    with pytest.raises(runs.NoRun):  # it does not stand in for a network of other images
        compare.first_stages(settings)
    with pytest.raises(InputError, match=f"^--tuning-run: must be a finished run in .*, got {tuned.name}x"):
        compare.Comparison.parse([*words[:-1], f"{tuned.name}x"]).tuning_network(None)
    with pytest.raises(InputError, match=r"^--tuning-run: must be a run with backbone resnet34, .* has resnet32$"):
        dataclasses.replace(settings, backbone="resnet34").tuning_network(None)
    (base,) = (run for run in (demo.out / "demo_1").iterdir() if run.name.startswith("wd_"))
    shutil.copytree(base, tmp_path / "tuning" / "demo_1" / base.name)
    with pytest.raises(InputError, match=f"^--tuning-run: must be a run that was trained with --hold-out, {base.name}"):
        dataclasses.replace(settings, out=tmp_path, tuning_run=base.name).tuning_network(None)

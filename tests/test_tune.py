"""`python -m ltr tune`: every row gets values of its own from held-out images, and the second script takes them."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest

from ltr import datasets, runs
from ltr import settings as module
from ltr.errors import InputError, TrainingError
from ltr.methods import METHODS
from ltr.runtime.storage import read_table
from ltr.settings import SecondStage
from ltr.study import ship, sweep, tune
from ltr.study.rows import TRIED, VALUES, open_rows, read_values

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_shapes")]
FIRST = "--preset demo --epochs 1 --lr 0.05 --imbalance-factor 40 --weight-decays 0.002 --seeds 1"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A tuning network, the full one, and the values that the first chose; a small grid."""
    out = tmp_path_factory.mktemp("tune")
    sweep.main(f"{FIRST} --hold-out 10 --out {out}".split())
    sweep.main(f"{FIRST} --out {out}".split())
    (run,) = runs.finished_runs(out / "tuning" / "demo_1")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"DECAYS": (1e-3, 1e-2), "RADII": (1.0, 0.5), "TAUS": (0.0, 0.5, 1.0)}.items():
            patch.setattr(tune, name, value)
        patch.setattr(tune, "COARSE", {"weight_decay": (1e-3,), "radius": (1.0,)})
        tune.main(f"--preset demo --epochs 1 --lr 0.02 --out {out / 'tuning'} --stage1 {run.path.name}".split())
    return out, run.path.name


def test_every_row_has_values_that_its_grid_holds(tuned):
    out, name = tuned
    table = read_table(out / "tuning" / VALUES).set_index("method")
    assert set(METHODS) | {"WD", "WD + L2norm", "WD + tau-norm"} == set(table.index)
    assert set(table.tuning_run) == {name}
    assert "logits" not in table
    for row, method in METHODS.items():
        own = table.loc[row]
        told = {"none": [0.0], "stage 1": [0.002], "stage 2": [1e-3, 1e-2]}[method.weight_decay]
        assert own.weight_decay in told
        assert pd.notna(own.radius) == (method.constraint == "MaxNorm")
        assert own.temperature > 0
        assert 0 <= own["all"] <= 100
    assert table.tau["WD + tau-norm"] in (0.0, 0.5, 1.0)


def test_what_was_tried_is_kept_and_its_best_is_chosen(tuned):
    out, name = tuned
    tried = read_table(out / "tuning" / TRIED)
    assert set(tried.tuning_run) == {name}
    assert set(tried.held_out) == {200}
    values = read_table(out / "tuning" / VALUES).set_index("method")
    own = tried[tried.method == "CB + WD + MaxNorm"]
    assert len(own) == 2 * 2 * 2  # learning rates, weight decays, radii
    assert own["all"].max() == values["all"]["CB + WD + MaxNorm"]
    best, chosen = own.loc[own["all"].idxmax()], values.loc["CB + WD + MaxNorm"]
    assert all(best[name] == chosen[name] for name in ("lr", "weight_decay", "radius"))


def test_the_second_stage_takes_them_and_scales_the_radius(tuned):
    out, name = tuned
    words = f"--preset demo --imbalance-factor 40 --stage1-epochs 1 --stage1-weight-decay 0.002 --out {out}".split()
    settings = SecondStage.parse([*words, "--tuned-on", name])
    rows = open_rows(settings, datasets.load(**settings.data))
    table = read_table(out / "tuning" / VALUES).set_index("method")
    values = rows.values("CB + WD + MaxNorm", "paper")
    own = table.loc["CB + WD + MaxNorm"]
    mean = float(rows.sources.classifier.weight.detach().norm(dim=1).mean())
    assert values["weight_decay"] == own.weight_decay
    assert values["max_norm"] == pytest.approx(own.radius * mean, rel=1e-3)
    assert rows.values("CB + WD + MaxNorm", "published")["weight_decay"] == 0.1
    assert rows.tau("WD + tau-norm", 0.3) == table.tau["WD + tau-norm"]
    assert rows.tau("naive + tau-norm", 0.3) == 0.3
    found = open_rows(SecondStage.parse([*words, "--tuned-on", "auto"]), datasets.load(**settings.data))
    assert found.values("CB + WD + MaxNorm", "paper") == values
    _, identity = settings.run_key("CB", "paper", "first", **rows.values("CB", "paper"))
    assert "tuned_on" not in json.dumps(identity)


def test_values_ship_with_the_features(tuned, tmp_path, monkeypatch):
    out, name = tuned
    words = f"--preset demo --imbalance-factor 40 --stage1-epochs 1 --stage1-weight-decay 0.002 --out {out}".split()
    ship.main([*words, "--epochs", "1", "--tuned-on", name])
    (run,) = out.glob("demo_1/*/tuned.csv")
    monkeypatch.setattr(module, "shipped_stages", lambda: out / "demo_1")
    asked = ["--base", "shipped", "--backbone", "resnet32", "--out", str(tmp_path)]
    shipped = open_rows(SecondStage.parse(asked), None)
    table = read_table(out / "tuning" / VALUES).set_index("method")
    assert shipped.base.path == run.parent
    assert shipped.values("CB + WD", "paper")["weight_decay"] == table.weight_decay["CB + WD"]
    assert shipped.tau("WD + tau-norm", 0.3) == table.tau["WD + tau-norm"]
    given = open_rows(SecondStage.parse([*asked, "--weight-decay", "0.7"]), None)
    assert given.values("CB + WD", "paper")["weight_decay"] == 0.7


def test_what_was_chosen_is_not_given_too(tuned):
    out, name = tuned
    words = f"--preset demo --imbalance-factor 40 --stage1-epochs 1 --stage1-weight-decay 0.002 --out {out}".split()
    with pytest.raises(InputError, match="^--tau: must not be given with --tuned-on, whose values rows take$"):
        SecondStage.parse([*words, "--tuned-on", name, "--tau", "1.5"])
    for option in ("--max-norm", "--tau", "--weight-decay", "--tuned-on"):
        with pytest.raises(InputError, match=f"^{option}: must not be given, as the held-out images choose it$"):
            tune.main([*words, "--stage1", name, option, "1"])


@pytest.mark.parametrize(
    ("old", "new", "said"), [("lr", "rate", "a column lr"), ("0.02,", "fast,", "numbers in column lr")]
)
def test_a_table_of_other_values_is_one_line(tuned, tmp_path, old, new, said):
    text = (tuned[0] / "tuning" / VALUES).read_text()
    (tmp_path / VALUES).write_text(text.replace(old, new))
    with pytest.raises(InputError, match=f"^--tuned-on: .* must have {said}"):
        read_values(tmp_path / VALUES, "--tuned-on")


def test_a_naive_networks_values_alone_can_be_read(tmp_path):
    sweep.main(f"{FIRST.replace('0.002', '0')} --hold-out 10 --out {tmp_path}".split())
    (run,) = runs.finished_runs(tmp_path / "tuning" / "demo_1")
    tune.main(f"--preset demo --out {tmp_path / 'tuning'} --stage1 {run.path.name}".split())
    table = read_values(tmp_path / "tuning" / VALUES, "--tuned-on").set_index("method")
    assert [*table.index] == ["naive", "naive + tau-norm"]
    assert table[["lr", "weight_decay", "radius"]].isna().all(axis=None)


def test_a_run_without_values_is_one_line(tuned):
    out, _ = tuned
    words = f"--preset demo --imbalance-factor 40 --stage1-epochs 1 --stage1-weight-decay 0.002 --out {out}".split()
    settings = SecondStage.parse([*words, "--tuned-on", "nobody"])
    with pytest.raises(InputError, match=r"^--tuned-on: must be one run whose values are in .*, got nobody$"):
        open_rows(settings, datasets.load(**settings.data)).values("CB", "paper")


def test_a_network_that_saw_the_images_cannot_choose(tuned):
    out, _ = tuned
    (full,) = runs.finished_runs(out / "demo_1")
    with pytest.raises(InputError, match="^--hold-out: must be that of the first stage that chooses"):
        tune.main(f"--preset demo --out {out} --stage1 {full.path.name}".split())


def test_a_row_that_diverges_with_every_setting_is_left_out(monkeypatch):
    method, learner = METHODS["CB + L2norm"], (None, None, None)
    sources = SimpleNamespace(mean_norm=1.0, learner=lambda *_: learner)
    settings = SimpleNamespace(stage1_weight_decay=0.0, loss="cb-ce", lr=0.1, recipe=lambda **_: None)

    def diverge(*_, **__):
        raise TrainingError("the loss is nan in epoch 1: try a smaller --lr")

    monkeypatch.setattr(tune.training, "fit", diverge)
    assert method.constraint == "L2norm"
    assert tune.one_at_a_time(SimpleNamespace(settings=settings, sources=sources), "CB + L2norm") is None


def test_a_row_that_diverges_in_all_of_a_grid_is_left_out(tuned, monkeypatch, capsys):
    out, name = tuned
    words = f"--preset demo --epochs 1 --lr 1e30 --out {out / 'tuning'} --stage1 {name}".split()
    settings = SecondStage.parse(words)
    data = datasets.load(**settings.data).for_tuning()
    rows = open_rows(settings, data)
    found = tune.best_in_grid(*tune.trained_grid(rows), rows.sources.features["paper"])
    assert "CE + WD" not in {row["method"] for row in found}
    assert "CE + WD: training diverges with every setting; it keeps the preset's" in capsys.readouterr().out

"""What MaxNorm does to shipped features, and the sentences that are made of it."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from committed import SHIPPED

from ltr import metrics, runs
from ltr.runtime.options import ROOT
from ltr.runtime.storage import read_table, table_text
from ltr.study import maxnorm, other_tables, sweep


def drawn(size: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is right about how often they are, and labels."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(size, 4))
    labels = np.array([rng.choice(4, p=p) for p in metrics.softmax(logits)])
    return logits, labels


def test_a_radius_that_only_scales_is_undone_by_the_temperature():
    logits, labels = drawn()
    counts = np.array([200, 50, 10, 5])
    plain, scaled = (maxnorm.measured(scale * logits, labels, counts) for scale in (1.0, 5.0))
    assert plain["temperature"] == pytest.approx(1, abs=0.05)
    assert scaled["temperature"] == pytest.approx(5 * plain["temperature"], rel=1e-3)
    assert scaled["ece"] > 10 > 3 > scaled["ece scaled"]
    assert scaled["nll scaled"] == pytest.approx(plain["nll scaled"], abs=1e-4)
    assert plain["nll"] == pytest.approx(-np.log(metrics.softmax(logits)[np.arange(4000), labels]).mean())


@pytest.mark.slow
@pytest.mark.usefixtures("few_shapes")
def test_each_first_stage_has_rows_of_its_own(tmp_path):
    words = f"--preset demo --imbalance-factor 40 --out {tmp_path}".split()
    asked = "--base trained --stage1-epochs 1 --epochs 1 --orders 2 --stage1-weight-decay 0.002".split()
    sweep.main([*words, *"--epochs 1 --lr 0.05 --weight-decays 0 0.002 --seeds 1".split()])
    maxnorm.main([*words, *asked])
    table, norms = (read_table(tmp_path / name) for name in (maxnorm.NAME, maxnorm.NORMS))
    assert len(table) == 2 * 2 * 2 * (1 + 3 * 2)  # orders, losses, weight decays, and radii in two ways or none
    assert sorted(norms.weight_decay) == [0, 0.002]
    (tmp_path / maxnorm.NAME).write_text(table_text(table.assign(stage1_run="another")))
    maxnorm.main([*words, *asked])
    both = read_table(tmp_path / maxnorm.NAME)
    assert both.stage1_run.value_counts().to_dict() == {"another": len(table), table.stage1_run[0]: len(table)}
    text = other_tables.question_markdown(both)
    assert text.count("first stage ") == 2
    assert other_tables.question_markdown(table) in text


def test_norms_are_of_all_first_stages_on_such_images():
    base = runs.Result.read(SHIPPED)
    case = SimpleNamespace(base=base, naive=None, settings=SimpleNamespace(first_stages=SHIPPED.parent))
    names = [each.path.name for each in maxnorm.all_alike(case)]
    assert names[0] == SHIPPED.name
    assert len(names) == len(set(names))
    committed = read_table(ROOT / "exp" / "norms.csv")
    assert sorted(names) == sorted(committed.stage1_run)
    assert not any(f"_if{factor}_" in name for name in names for factor in (10, 50))  # of other images


def test_each_half_is_scaled_by_the_other():
    logits, labels = drawn()
    uneven = logits * np.where(np.arange(len(labels)) % 2, 3.0, 1.0)[:, None]
    scaled, temperature = maxnorm.temperature_scaled(uneven, labels)
    np.testing.assert_allclose(scaled[::2], logits[::2] / 3, rtol=0.1, atol=0.02)
    np.testing.assert_allclose(scaled[1::2], 3 * logits[1::2], rtol=0.1, atol=0.02)
    assert temperature == pytest.approx(2, abs=0.1)


def test_a_gain_is_taken_from_the_classifier_that_differs_by_max_norm_alone():
    shared = {"loss": "ce", "weight_decay": 0.0, "seed": 1}
    rows = [
        shared | {"max_norm": np.nan, "hits": np.array([1, 0, 0, 0.0]), "likelihood": -np.array([1, 2, 3, 4.0])},
        shared | {"max_norm": 0.5, "hits": np.array([1, 1, 0, 0.0]), "likelihood": -np.array([1, 1, 3, 4.0])},
        shared | {"seed": 2, "max_norm": np.nan, "hits": np.ones(4), "likelihood": np.zeros(4)},
    ]
    table = maxnorm.compared(pd.DataFrame(rows))
    limited = table.iloc[1]
    error = np.std([0, 1, 0, 0], ddof=1) / 2
    assert (limited.gain, limited["gain ±"]) == pytest.approx((25, 100 * error))
    assert (limited.nats, limited["nats ±"]) == pytest.approx((0.25, error))
    assert table.gain.isna().tolist() == [True, False, True]


def settings(gains: list[float], nats: list[float]) -> list[pd.DataFrame]:
    """A setting with MaxNorm in each of two orders, standard errors of 1 point and 0.1 nats."""
    return [
        pd.DataFrame({"gain": [gain - 0.1, gain + 0.1], "gain ±": 1.0, "nats": [nat, nat], "nats ±": 0.1})
        for gain, nat in zip(gains, nats, strict=True)
    ]


def test_sentences_count_what_lies_beyond_two_errors():
    text = other_tables.answer(settings([0.5, -3.0, 2.5], [0.1, 0.0, -0.5]))
    assert "accuracy, points**: -3.00 to +2.50; more than two standard errors above none in 1 of 3" in text
    assert "nats**: -0.500 to +0.100; more than two standard errors above none in 0 of 3 settings, below in 1." in text
    assert "no more than a temperature** in 1 of 3 settings" in text
    assert (
        "In 2 it costs accuracy or likelihood that no temperature gives back, in 1 it adds some (1 does both)." in text
    )
    same = settings([0.0], [0.0])[0].mul(0)  # no row ever met the ball
    assert "no more than a temperature** in 1 of 1 settings" in other_tables.answer([same])
    diverged = settings([np.nan, 0.5, 0.5], [0.0, np.nan, 0.0])
    assert "no more than a temperature** in 1 of 1 settings" in other_tables.answer(diverged)
    assert other_tables.answer(diverged[:2]) == "- Every training diverged.\n"


def test_the_committed_measurements_are_of_every_setting_in_several_orders():
    table = read_table(ROOT / "exp" / maxnorm.NAME)
    limited = table[table.max_norm.notna()]
    keys = ["loss", "weight_decay", "max_norm", "max_norm_every"]
    assert limited.groupby(keys).size().tolist() == [table.seed.nunique()] * 24
    assert table.seed.nunique() >= 3
    assert limited[["gain", "gain ±", "nats", "nats ±"]].notna().all(axis=None)
    assert (table["nll scaled"] <= table.nll + 0.01).all()

"""Tables from results.csv, and the README's copy of them."""

import pandas as pd
import pytest

from ltr import runs
from ltr.errors import InputError
from ltr.runtime.options import ROOT
from ltr.study import report


def results(**columns) -> pd.DataFrame:
    row = dict.fromkeys(runs.COLUMNS) | {
        "dataset": "cifar100", "imbalance_factor": 100.0, "profile": "exp", "backbone": "resnet32",
        "stage1_epochs": 60, "stage1_weight_decay": 0.005, "method": "WD", "seed": 0, "selection": "last",
        "tta": "none", "all": 40.0, "many": 70.0, "medium": 40.0, "few": float("nan"), "ece": 5.0,
        "max_norm_fired": float("nan"),
        "max_norm": float("nan"), "weight_decay": float("nan"), "run": "wd_s0-12ab", "device": "cpu", "torch": "2.6.0",
    }  # fmt: skip
    return pd.DataFrame([row | columns])


def test_a_row_shows_ours_and_the_papers_figure():
    text = report.markdown(results())
    assert (
        "| WD | 0.005 |  |  | 70.00 | 40.00 | – | 40.00 | – | – | – | 5.00 |  | 1 | 76.94 / 44.28 / 12.17 / 46.08 |"
        in text
    )


def test_seeds_become_mean_and_deviation():
    both = pd.concat([results(), results(seed=1, all=42.0)])
    assert "41.00 ± 1.41" in report.markdown(both)
    assert "| 2 | 76.94 / 44.28" in report.markdown(both)


def test_other_settings_are_other_models_and_never_averaged():
    tuned = {"method": "CB + WD", "mode": "paper", "loss": "cb-ce"}
    text = report.markdown(pd.concat([results(weight_decay=d, all=a, **tuned) for d, a in ((0.1, 40.0), (0.2, 42.0))]))
    assert "40.00" in text
    assert "42.00" in text
    assert "41.00" not in text


def test_a_seed_that_comes_twice_is_shown_run_by_run():
    text = report.markdown(pd.concat([results(), results(run="wd_s0-34cd", all=42.0)]))
    assert "| WD 12ab |" in text
    assert "| WD 34cd |" in text
    assert "41.00" not in text


def test_the_released_radius_may_differ_between_seeds():
    rows = [
        results(method="CB + MaxNorm", mode="released", max_norm=r, max_norm_every="epoch", seed=i, run=f"x-{i}")
        for i, r in enumerate((0.3, 0.4))
    ]
    assert "| CB + MaxNorm (released) | 0.005 |  | 0.35 |" in report.markdown(pd.concat(rows))


def counted(figures: tuple[float, float, float, float], **columns) -> pd.DataFrame:
    """A run's four rows: plain and flip of the last epoch, then of the best on the test set."""
    ways = [(selection, tta) for selection in ("last", "best_test") for tta in ("none", "flip")]
    return pd.concat(
        results(selection=selection, tta=tta, all=figure, **columns)
        for (selection, tta), figure in zip(ways, figures, strict=True)
    )


def test_the_headline_is_the_last_epoch_on_plain_images_and_the_other_ways_stand_beside_it():
    text = report.markdown(counted((40.0, 41.0, 42.0, 43.0)))
    assert text.count("| WD |") == 1
    assert "| 40.00 | 41.00 | 42.00 | 43.00 | 5.00 |" in text


def test_what_the_ways_of_counting_add_is_taken_run_by_run():
    table = pd.concat(
        [
            counted((40.0, 41.0, 40.5, 42.0), run="a"),
            counted((30.0, 33.0, 30.0, 33.0), run="b"),
            counted((10.0, 99.0, 99.0, 99.0), run="stranger"),
        ]
    )
    gains = report.counting_gains(table, ["a", "b"])
    assert gains.loc["mirrored images"].tolist() == ["+2.00", "+1.00", "+3.00"]
    assert gains.loc["best epoch on the test set"].tolist() == ["+0.25", "+0.00", "+0.50"]
    assert gains.loc["both"].tolist() == ["+2.50", "+2.00", "+3.00"]


def test_other_sets_have_no_published_figure():
    assert "paper" not in report.markdown(results(dataset="synthetic"))


def test_the_readme_is_rewritten_between_its_marks(tmp_path):
    results().to_csv(tmp_path / "results.csv", index=False)
    readme = tmp_path / "README.md"
    places = ("table-1", "table-2", "released", "max-norm")
    text = "".join(f"<!-- {place} -->\n<!-- /{place} -->\n" for place in places)
    readme.write_text(text + "before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    report.main([str(tmp_path / "results.csv"), "--readme", str(readme)])
    text = readme.read_text()
    assert "before\n<!-- results -->\n**cifar100" in text
    assert "<!-- table-1 -->\n| model | paper" in text
    assert text.endswith("<!-- /results -->\nafter\n")
    assert "old" not in text


def test_a_readme_without_marks_is_refused(tmp_path):
    results().to_csv(tmp_path / "results.csv", index=False)
    (tmp_path / "README.md").write_text("no marks")
    with pytest.raises(InputError, match="--readme"):
        report.main([str(tmp_path / "results.csv"), "--readme", str(tmp_path / "README.md")])


def test_table_1_has_every_row_and_says_what_is_not_measured():
    lines = report.table_1(pd.concat([results(), results(seed=1, all=42.0)])).splitlines()
    assert len(lines) == 2 + 17
    assert "| WD | 46.08 | 41.00 ± 1.41 |  |  | not measured | not measured |" in lines
    assert "| naive | 38.38 | not measured |  |  | not measured | not measured |" in lines
    assert "| CB | 47.09 | not measured |  | not measured | not measured | not measured |" in lines
    assert f"| CB + WD | 52.42 |{5 * ' not measured |'}" in lines
    assert lines[0].count("60 epochs, 2 seeds") == 1


def test_table_1_has_a_column_for_tuned_and_published_values_and_the_released_mode():
    modes = [
        results(method="CB + WD", mode=m, all=a) for m, a in (("paper", 3.0), ("published", 2.0), ("released", 1.0))
    ]
    assert "| CB + WD | 52.42 | 3.00 | 2.00 | 1.00 | not" in report.table_1(pd.concat(modes))


def test_a_tuned_value_that_is_the_published_one_needs_no_second_cell():
    text = report.table_1(results(method="CB + WD", mode="paper", weight_decay=0.1))
    assert "| CB + WD | 52.42 | 40.00 |  | not measured |" in text
    text = report.table_1(results(method="naive + tau-norm", tau=1.0))
    assert "| naive + tau-norm | 42.00 | 40.00 |  |  | not measured |" in text


def test_tau_normalisation_of_the_naive_network_has_a_tuned_and_a_published_cell():
    both = [
        results(method="naive + tau-norm", mode=m, tau=t, all=a) for m, t, a in ((None, 0.5, 3), ("published", 1, 2))
    ]
    assert "| naive + tau-norm | 42.00 | 3.00 | 2.00 |  | not measured |" in report.table_1(pd.concat(both))


def test_table_1_averages_no_different_settings_and_takes_the_longest_training():
    both = [results(method="CB + WD", mode="paper", weight_decay=d, all=a) for d, a in ((0.1, 40.0), (0.2, 42.0))]
    text = report.table_1(pd.concat([*both, results(method="CB + WD", mode="paper", stage1_epochs=8, all=1.0)]))
    assert "| CB + WD | 52.42 | 40.00 / 42.00 |" in text


def test_table_1_averages_the_released_radius_over_seeds():
    rows = [
        results(method="CB + MaxNorm", mode="released", max_norm=r, seed=i, all=10.0 + i) for i, r in enumerate((1, 2))
    ]
    assert "| 10.50 ± 0.71 |" in report.table_1(pd.concat(rows))


def test_table_1_takes_its_data_alone():
    for table in (report.table_1, report.table_2, report.table_of_released):
        assert table(results(dataset="synthetic")) == ""
    assert report.table_1(results(imbalance_factor=50.0)) == ""


def test_table_2_has_three_imbalance_factors_in_a_cell():
    lines = report.table_2(pd.concat([results(), results(imbalance_factor=10.0, all=60.0)])).splitlines()
    assert "| WD | 46.08 / 52.71 / 66.03 | 40.00 / not measured / 60.00 | not measured | not measured |" in lines
    assert f"| naive | 38.38 / 43.99 / 57.31 |{3 * ' not measured |'}" in lines
    assert len(lines) == 2 + 7


def test_the_released_numbers_stand_beside_ours_in_their_protocol():
    ours = counted((31.0, 32.0, 33.0, 34.0), method="CB + WD + MaxNorm", mode="released", few=20.0)
    ours = pd.concat([ours, counted((51.0, 52.0, 53.0, 54.0), method="CB + WD + MaxNorm", mode="paper", run="other")])
    lines = report.table_of_released(ours).splitlines()
    theirs = "| CB + WD + MaxNorm | 72.2 / 49.6 / 34.9 / 53.1 | 51.83 |"
    assert f"{theirs} 70.00 / 40.00 / 20.00 / 34.00 | 31.00 | not measured | not measured |" in lines
    assert f"| WD + L2norm | 77.0 / 50.3 / 21.6 / 51.0 | – |{4 * ' not measured |'}" in lines


def test_a_comparison_has_a_table_for_each_first_stage():
    protocol = {
        "dataset": "cifar100", "imbalance_factor": 100.0, "profile": "exp", "backbone": "resnet32",
        "stage1_epochs": 60, "stage1_weight_decay": 0.005, "seed": 0, "tuned_on": "9 held-out images", "source": "",
    }  # fmt: skip
    figures = dict.fromkeys(["many", "medium", "few", "ECE", "forward 50", "backward 50", "published"], 1.0)
    kinds = [("CB", 40.0, "run"), ("LOS", float("nan"), "run"), ("mixup", float("nan"), None)]  # LOS diverged
    rows = [
        protocol
        | figures
        | {"stage1_weight_decay": decay, "method": method, "hyper-parameters": "", "all": accuracy - i}
        | {"first stage": run}
        for i, decay in enumerate((0.005, 0.0))
        for method, accuracy, run in kinds
    ]
    decayed, naive = report.comparison_markdown(pd.DataFrame(rows)).split("**cifar100")[1:]
    assert "stage-1 weight decay 0.005**" in decayed
    assert "| 40.00 |" in decayed
    assert "| mixup |" in decayed
    assert "stage-1 weight decay 0**" in naive
    assert "| 39.00 |" in naive
    assert "| LOS |" in naive
    assert "mixup" not in naive


@pytest.mark.parametrize("name", ["results", "benchmarks", "comparison"])
def test_the_readmes_tables_are_those_of_the_files(name):
    readme = (ROOT / "README.md").read_text("utf-8")
    for place, text in report.tables(ROOT / "exp" / f"{name}.csv").items():
        found = report.block(place).search(readme)
        assert found[0] == f"{found[1]}{text}{found[2]}", "run `make tables`"


def with_and_without(seed: int, plain: float, limited: float, fired: float = 0.25, **columns) -> pd.DataFrame:
    """A pair of models, with MaxNorm and without it."""
    shared = {"mode": "paper", "loss": "cb-ce", "weight_decay": 0.001, "seed": seed, **columns}
    projected = {"max_norm": 1.0, "max_norm_every": "step", "max_norm_fired": fired}
    pair = [
        results(method="CB + WD", all=plain, run=f"cb-wd-{seed}", **shared),
        results(method="CB + WD + MaxNorm", all=limited, run=f"max-{seed}", **shared, **projected),
    ]
    return pd.concat(pair)


def test_the_gain_of_max_norm_is_taken_seed_by_seed():
    both = pd.concat([with_and_without(0, 40.0, 40.5), with_and_without(1, 30.0, 30.1, fired=0.75)])
    (row,) = report.max_norm_gains(both, "max-0").to_dict("records")
    assert row == {
        "model": "CB + WD + MaxNorm (paper)", "radius": "1.000", "projected": "after each step",
        "fired (% of checks)": "50.00", "all, with": "35.30", "all, without": "35.00",
        "gain": "+0.30", "± seeds": "0.28", "seeds": 2,
    }  # fmt: skip


def test_the_gain_of_max_norm_is_of_one_first_stage_and_one_weight_decay():
    own = with_and_without(0, 40.0, 40.5)
    strangers = [with_and_without(1, 1.0, 2.0, **{name: 7}) for name in (*report.SET[1:], "stage1_weight_decay")]
    rest = [results(method="CB + MaxNorm", mode="paper", loss="cb-ce", max_norm=1.0, max_norm_every="step", run="x")]
    rest += [own.iloc[:1].assign(weight_decay=0.1, all=9.0), own.assign(tta="flip"), own.assign(selection="best_test")]
    (row,) = report.max_norm_gains(pd.concat([own, *strangers, *rest]), "max-0").to_dict("records")
    assert (row["gain"], row["seeds"], row["± seeds"]) == ("+0.50", 1, "–")


def test_a_published_radius_is_compared_with_the_tuned_rows_plain_counterpart():
    pair = with_and_without(0, 40.0, 40.5, weight_decay=0.0)
    pair = pair.assign(method=["CB", "CB + MaxNorm"])
    published = pair.iloc[1:].assign(mode="published", max_norm=0.4, all=38.0, run="published")
    table = report.max_norm_gains(pd.concat([pair, published]), "max-0").set_index("model")
    assert table.gain.to_dict() == {"CB + MaxNorm (paper)": "+0.50", "CB + MaxNorm (published)": "-2.00"}


def test_what_max_norm_adds_stands_in_a_table_a_network():
    text = report.max_norm_table(with_and_without(0, 40.0, 40.5))
    assert "**narrow ResNet-32, 60 epochs, 1 seed**" in text
    assert "| CB + WD + MaxNorm (paper) | 1.000 | after each step | 25.00 | 40.50 | 40.00 | +0.50 | – | 1 |" in text
    assert report.max_norm_table(results()) == ""

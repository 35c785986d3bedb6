"""Tables from results.csv, and the README's copy of them."""

import pandas as pd
import pytest
from trees import complaint

from ltr import methods, runs
from ltr.errors import InputError
from ltr.runtime.configs import read_config
from ltr.runtime.options import ROOT
from ltr.runtime.storage import read_table
from ltr.study import bench, cells, compare, other_tables, paper_tables, published, report

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
NAN = float("nan")


def results(**columns) -> pd.DataFrame:
    row = dict.fromkeys(runs.COLUMNS) | {
        "dataset": "cifar100", "imbalance_factor": 100.0, "profile": "exp", "backbone": "resnet32",
        "stage1_epochs": 60, "stage1_weight_decay": 0.005, "method": "WD", "seed": 0, "selection": "last",
        "tta": "none", "all": 40.0, "many": 70.0, "medium": 40.0, "few": float("nan"), "ece": 5.0,
        "projected_share": float("nan"),
        "max_norm": float("nan"), "weight_decay": float("nan"), "run": "wd_s0-12ab", "device": "cpu", "torch": "2.6.0",
    }  # fmt: skip
    return pd.DataFrame([row | columns])


def test_a_row_shows_ours_and_the_papers_figure():
    text = paper_tables.markdown(results())
    assert (
        "| WD | 0.005 |  |  | 70.00 | 40.00 | – | 40.00 | – | – | – | 5.00 |  | 1 | 76.94 / 44.28 / 12.17 / 46.08 |"
        in text
    )


def test_seeds_become_mean_and_deviation():
    both = pd.concat([results(), results(seed=1, all=42.0)])
    assert "41.00 ± 1.41" in paper_tables.markdown(both)
    assert "| 2 | 76.94 / 44.28" in paper_tables.markdown(both)


def test_other_settings_are_other_models_and_never_averaged():
    tuned = {"method": "CB + WD", "mode": "paper", "loss": "cb-ce"}
    text = paper_tables.markdown(
        pd.concat([results(weight_decay=d, all=a, **tuned) for d, a in ((0.1, 40.0), (0.2, 42.0))])
    )
    assert "40.00" in text
    assert "42.00" in text
    assert "41.00" not in text


def test_a_seed_that_comes_twice_is_shown_run_by_run():
    text = paper_tables.markdown(pd.concat([results(), results(run="wd_s0-34cd", all=42.0)]))
    assert "| WD 12ab |" in text
    assert "| WD 34cd |" in text
    assert "41.00" not in text


def test_the_released_radius_may_differ_between_seeds():
    rows = [
        results(method="CB + MaxNorm", mode="released", max_norm=r, max_norm_every="epoch", seed=i, run=f"x-{i}")
        for i, r in enumerate((0.3, 0.4))
    ]
    assert "| CB + MaxNorm (released code) | 0.005 |  | 0.35 |" in paper_tables.markdown(pd.concat(rows))


def test_a_run_without_an_end_of_its_own_is_shown_by_its_name():
    text = paper_tables.markdown(pd.concat([results(run="007"), results(run="1e3")]))
    assert "| WD 007 |" in text
    assert "| WD 1e3 |" in text


def counted(values: tuple[float, float, float, float], **columns) -> pd.DataFrame:
    """A run's four rows: plain and flip of the last epoch, then of the best on the test set."""
    ways = [(selection, tta) for selection in ("last", "best_test") for tta in ("none", "flip")]
    return pd.concat(
        results(selection=selection, tta=tta, all=value, **columns)
        for (selection, tta), value in zip(ways, values, strict=True)
    )


def test_the_headline_is_the_last_epoch_on_plain_images_and_the_other_ways_stand_beside_it():
    text = paper_tables.markdown(counted((40.0, 41.0, 42.0, 43.0)))
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
    gains = paper_tables.counting_gains(table, ["a", "b"])
    assert gains.loc["mirrored images"].tolist() == ["+2.00", "+1.00", "+3.00"]
    assert gains.loc["best epoch on the test set"].tolist() == ["+0.25", "+0.00", "+0.50"]
    assert gains.loc["both"].tolist() == ["+2.50", "+2.00", "+3.00"]


def test_other_sets_have_no_published_figure():
    assert "paper" not in paper_tables.markdown(results(dataset="synthetic"))


def test_the_readme_is_rewritten_between_its_marks(tmp_path):
    results().to_csv(tmp_path / "results.csv", index=False)
    readme = tmp_path / "README.md"
    places = ("table-1", "table-2", "first-stages", "choices", "released", "max-norm")
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


def test_first_stages_stand_apart_and_those_that_were_balanced_alone_get_a_column_of_the_papers_table():
    wd = results(stage1_run="wd_s0-12ab")
    other = results(run="mixed_s0-1", stage1_run="mixed_s0-1", mix="mixup", all=44.0)
    own = {"stage1_run": wd.run.iloc[0], "mode": "paper"}
    rows = [results(method="CB + WD", run="cb_s0-1", all=48.0, **own)]
    rows.append(results(method="CB + WD", run="cb_s0-2", all=47.0, **own | {"mode": "published"}))
    table = pd.concat([wd, other, *rows])
    first = paper_tables.first_stages(table).splitlines()
    assert len(first) == 4
    assert first[2].split(" | ")[7] == "40.00"  # alone
    assert first[2].split(" | ")[-2].strip() == "48.00"  # tuned
    assert "mixup" in first[3]
    assert first[3].split(" | ")[-2].strip() == ""
    assert "mixup" not in paper_tables.table_1(table) + paper_tables.table_2(table) + paper_tables.table_of_released(
        table
    )
    assert "mixup" in paper_tables.table_1(pd.concat([wd, other]))  # where none was, all are shown


def test_of_a_network_that_was_trained_in_several_ways_the_plainest_and_the_best_have_columns():
    def kind(name: str, ends: float, **first: object) -> list[pd.DataFrame]:
        own = {"stage1_run": name, "mode": "paper"}
        first = {"lr": 0.1, "batch_size": 64, "stage1_run": name} | first
        return [results(run=name, **first), results(method="CB", run=f"cb-{name}", all=ends, **own)]

    mixed, best, worse = (
        kind("m", 44.0, mix="mixup"),
        kind("a", 48.0, augmentation="cutout"),
        kind("w", 41.0, mix="cutmix"),
    )
    ended = pd.concat([*mixed, *best, *kind("plain", 45.0), *worse, *kind("z", NAN, further="warm_up 5")])
    mild = results(method="CB", run="mild", stage1_run="m", mode="paper", imbalance_factor=10.0, all=60.0)
    assert "mixup" not in paper_tables.table_2(pd.concat([ended, mild]))
    untuned = results(method="CB", run="untuned", stage1_run="w", mode="published", all=70.0)
    head = paper_tables.table_1(pd.concat([ended, untuned])).splitlines()[0]
    assert head.count("narrow ResNet-32") == 2
    assert head.count("batch 64, cutout, 1 seed: tuned") == 1


def test_another_choice_of_the_images_stands_beside_the_usual_one():
    def kind(name: str, choice: str | None, *accuracies: float, further: str | None = None) -> list[pd.DataFrame]:
        told = {"few": 5.0, "further": further, "choice": choice}
        runs_of = [(f"{name}-{seed}", seed, accuracy) for seed, accuracy in enumerate(accuracies)]
        return [results(run=r, stage1_run=r, seed=s, all=a, **told) for r, s, a in runs_of]

    first = kind("first", "first", 40.0, 42.0, further="warm_up 8")
    drawn = kind("drawn", "random", 43.0, 45.0, further="warm_up 8")
    plain = kind("plain", None, 30.0, 31.0)  # learned in another way
    (line,) = paper_tables.choices(pd.concat([*first, *drawn, *plain])).splitlines()
    assert line.startswith("- narrow ResNet-32, 60 epochs")
    assert (
        "warm_up 8, weight decay 0.005: 44.00 ± 1.41 % (70.00 ± 0.00 / 40.00 ± 0.00 / 5.00 ± 0.00) on a draw of its own"
        in line
    )
    assert "41.00 ± 1.41 %" in line
    assert line.endswith(f"by file name, 2 seeds: -3.00 ± {2**0.5:.2f} points.")
    one = paper_tables.choices(pd.concat([*kind("other", "hash", 33.0), *plain]))
    assert "on a fair draw of the images, 2 seeds; 33.00 % (70.00 / 40.00 / 5.00) on as many in the order of" in one
    assert one.endswith(f"1 seed: +2.50 ± {(0.5 / 2 + 0.5) ** 0.5:.2f} points.\n"), "one seed has the others' variance"
    alone = paper_tables.choices(pd.concat([*plain[:1], *kind("other", "random", 33.0)]))
    assert alone.endswith("1 seed: +3.00 points.\n")
    others = *kind("a", "first", 29.0), *kind("b", "random", 32.0)
    every = paper_tables.choices(pd.concat([*plain, *others]))
    assert [line.rsplit(": ", 1)[1][:5] for line in every.splitlines()] == ["+1.50", "-1.50"], "each beside the usual"
    assert paper_tables.choices(pd.concat([*first, *plain])) == ""
    assert paper_tables.choices(pd.concat(plain).assign(choice=NAN)) == "", "as read from a file where none has it"
    assert paper_tables.choices(pd.concat([*plain, *drawn])) == "", "nothing to stand beside"


def test_table_1_has_every_row_and_says_what_is_not_measured():
    lines = paper_tables.table_1(pd.concat([results(), results(seed=1, all=42.0)])).splitlines()
    assert len(lines) == 2 + 17
    assert "| WD | 46.08 | 41.00 ± 1.41 |" in lines
    assert "| naive | 38.38 | not measured |" in lines
    assert "| CB | 47.09 | not measured |" in lines
    assert "| CB + WD | 52.42 | not measured |" in lines  # of a mode that was not run there is no column
    assert "ResNet-34, 60" not in lines[0]  # a network that was not measured has no column
    assert lines[0].count("60 epochs, 2 seeds") == 1


def test_table_1_has_a_column_for_tuned_and_published_values_and_the_released_mode():
    modes = [
        results(method="CB + WD", mode=m, all=a) for m, a in (("paper", 3.0), ("published", 2.0), ("released", 1.0))
    ]
    assert "| CB + WD | 52.42 | 3.00 | 2.00 | 1.00 |" in paper_tables.table_1(pd.concat(modes))


def test_a_tuned_value_that_is_the_published_one_needs_no_second_cell():
    text = paper_tables.table_1(results(method="CB + WD", mode="paper", weight_decay=0.1))
    assert "| CB + WD | 52.42 | 40.00 |\n" in text
    text = paper_tables.table_1(results(method="naive + tau-norm", tau=1.0))
    assert "| naive + tau-norm | 42.00 | 40.00 |\n" in text


def test_tau_normalisation_of_the_naive_network_has_a_tuned_and_a_published_cell():
    both = [
        results(method="naive + tau-norm", mode=m, tau=t, all=a) for m, t, a in ((None, 0.5, 3), ("published", 1, 2))
    ]
    assert "| naive + tau-norm | 42.00 | 3.00 | 2.00 |\n" in paper_tables.table_1(pd.concat(both))


def test_table_1_averages_no_different_settings_and_sets_ways_of_training_side_by_side():
    both = [results(method="CB + WD", mode="paper", weight_decay=d, all=a) for d, a in ((0.2, 40.0), (0.3, 42.0))]
    shorter = results(method="CB + WD", mode="paper", stage1_epochs=8, all=1.0)
    head, *lines = paper_tables.table_1(pd.concat([shorter, *both])).splitlines()
    assert head.index("ResNet-32, 60 epochs, 1 seed: tuned") < head.index("ResNet-32, 8 epochs, 1 seed: tuned")
    assert "| CB + WD | 52.42 | 40.00 / 42.00 | 1.00 |" in "\n".join(lines)


def of_two_first_stages() -> pd.DataFrame:
    """The same rows on a plain network and on one that was trained with more, of two seeds."""
    kinds = [
        ("wd", 0, {"lr": 0.1, "batch_size": 128}, 40.0),
        ("wd-1", 1, {"lr": 0.1, "batch_size": 128}, 42.0),
        ("aa", 0, {"lr": 0.1, "batch_size": 128, "mix": "mixup", "augmentation": "autoaugment+cutout"}, 50.0),
    ]
    rows = []
    for run, seed, recipe, value in kinds:
        shared = {"stage1_run": run, "seed": seed}
        rows += [results(run=run, loss="ce", all=value, **shared, **recipe)]
        rows += [results(run=f"cb-{run}", method="CB", mode="paper", loss="cb-ce", lr=0.01, all=value + 5, **shared)]
    return pd.concat(rows)


def test_first_stages_that_were_trained_in_other_ways_stand_apart():
    table = of_two_first_stages()
    plain, mixed = paper_tables.markdown(table).split("**cifar100")[1:]
    assert "60 epochs at 0.1, batch 128, mixup, autoaugment+cutout**" in mixed + plain
    both = [(text.count("| WD |"), "41.00 ± 1.41" in text, "46.00 ± 1.41" in text) for text in (plain, mixed)]
    assert sorted(both) == [(1, False, False), (1, True, True)]
    head, *lines = paper_tables.table_1(table).splitlines()
    assert "narrow ResNet-32, 60 epochs at 0.1, batch 128, 2 seeds: tuned |" in head
    assert "narrow ResNet-32, 60 epochs at 0.1, batch 128, mixup, autoaugment+cutout, 1 seed: tuned |" in head
    assert "| WD | 46.08 | 41.00 ± 1.41 | 50.00 |" in lines
    assert "| WD | 46.08 / 52.71 / 66.03 | 41.00 ± 1.41 | 50.00 |" in paper_tables.table_2(table)
    assert paper_tables.table_of_released(table).splitlines()[0].count("batch 128") == 2


def test_what_was_trained_on_several_choices_of_images_has_a_column_of_the_usual_ones_alone():
    usual = of_two_first_stages()
    by_name = usual.assign(run=usual.run + "-first", stage1_run=usual.stage1_run + "-first", all=usual["all"] - 20)
    by_name["choice"] = by_name.loss.map({"ce": "first"})  # of the first stage's rows alone, as in results.csv
    for table in (paper_tables.table_1, paper_tables.table_2, paper_tables.table_of_released):
        assert table(pd.concat([by_name, usual])) == table(usual)
    assert paper_tables.table_1(by_name).splitlines()[0].count("choice first") == 2  # where there is no other
    assert paper_tables.markdown(pd.concat([by_name, usual])) == paper_tables.markdown(usual)
    assert paper_tables.markdown(by_name).count("choice first**") == 2


def test_table_1_averages_the_released_radius_over_seeds():
    rows = [
        results(method="CB + MaxNorm", mode="released", max_norm=r, seed=i, all=10.0 + i) for i, r in enumerate((1, 2))
    ]
    assert "| 10.50 ± 0.71 |" in paper_tables.table_1(pd.concat(rows))


def test_table_1_takes_its_data_alone():
    for table in (paper_tables.table_1, paper_tables.table_2, paper_tables.table_of_released):
        assert table(results(dataset="synthetic")) == ""
    assert paper_tables.table_1(results(imbalance_factor=50.0)) == ""


def test_table_2_has_the_measured_imbalance_factors_in_a_cell():
    lines = paper_tables.table_2(pd.concat([results(), results(imbalance_factor=10.0, all=60.0)])).splitlines()
    assert "| WD | 46.08 / 52.71 / 66.03 | 40.00 / 60.00 |" in lines
    assert "| naive | 38.38 / 43.99 / 57.31 | – / – |" in lines
    assert len(lines) == 2 + 7


def test_the_released_numbers_stand_beside_ours_in_their_protocol():
    ours = counted((31.0, 32.0, 33.0, 34.0), method="CB + WD + MaxNorm", mode="released", few=20.0)
    ours = pd.concat([ours, counted((51.0, 52.0, 53.0, 54.0), method="CB + WD + MaxNorm", mode="paper", run="other")])
    lines = paper_tables.table_of_released(ours).splitlines()
    theirs = "| CB + WD + MaxNorm | 72.2 / 49.6 / 34.9 / 53.1 | 51.83 |"
    assert f"{theirs} 70.00 / 40.00 / 20.00 / 34.00 | 31.00 |" in lines
    assert f"| WD + L2norm | 77.0 / 50.3 / 21.6 / 51.0 | – |{2 * ' not measured |'}" in lines


COMPARISON = {
    "dataset": "cifar100", "imbalance_factor": 100.0, "profile": "exp", "backbone": "resnet32",
    "stage1_epochs": 60, "stage1_weight_decay": 0.005, "seed": 0, "tuned_on": "tuning", "held_out": 9, "source": "",
    "method": "CB", "hyper-parameters": "", "run": "run", "stage1_run": "run", "trained_by": None,
} | dict.fromkeys(["many", "medium", "few", "all", "ECE", "forward 50", "backward 50", "published"], 1.0)  # fmt: skip


def test_a_comparison_has_a_table_for_each_first_stage():
    kinds = [("CB", 40.0, "run"), ("LOS", NAN, "run"), ("mixup", NAN, None)]  # LOS diverged
    rows = [
        COMPARISON
        | {"stage1_weight_decay": decay, "method": method, "all": accuracy - i, "run": run}
        | {"stage1_run": f"run-{i}"}
        for i, decay in enumerate((0.005, 0.0))
        for method, accuracy, run in kinds
    ]
    decayed, naive = other_tables.comparison_markdown(pd.DataFrame(rows)).split("**cifar100")[1:]
    assert "stage-1 weight decay 0.005** · first stage run-0 ·" in decayed
    assert "| 40.00 |" in decayed
    assert "| mixup |" in decayed
    assert "stage-1 weight decay 0**" in naive
    assert "| 39.00 |" in naive
    assert "| LOS |" in naive
    assert "mixup" not in naive
    assert naive.count("</details>") == 1, "all tables but the first are folded"
    assert "<details><summary>cifar100, imbalance factor 100, resnet32, 60 epochs, stage-1 weight decay 0<" in decayed


@pytest.mark.parametrize("lacking", ["run", "trained_by", "held_out"])
def test_a_comparison_from_before_is_refused_in_one_line(tmp_path, lacking):
    path = tmp_path / "comparison.csv"
    pd.DataFrame([COMPARISON]).drop(columns=lacking).to_csv(path, index=False)
    with pytest.raises(InputError, match=rf"^results: \S+ must have a column {lacking}, got "):
        report.tables(path)


def test_a_comparison_without_rows_makes_no_table():
    assert other_tables.comparison_markdown(pd.DataFrame([COMPARISON])[:0]) == ""


def test_kinds_of_one_title_have_a_table_each():
    other = COMPARISON | {"stage1_run": "other", "run": "other", "tuned_on": "another"}
    assert other_tables.comparison_markdown(pd.DataFrame([COMPARISON, other])).count("**cifar100") == 2


def test_the_usual_choice_of_the_images_stands_alone():
    named = COMPARISON | {"choice": "first", "stage1_run": "named", "run": "named"}
    both, usual, other = map(
        other_tables.comparison_markdown, map(pd.DataFrame, ([named, COMPARISON], [COMPARISON], [named]))
    )
    assert both == usual
    assert "choice" not in usual
    assert "choice first**" in other, "where there is no other, its own stands and says so"
    mixed = named | {"further": "mix mixup"}
    assert "mix mixup, choice first**" in other_tables.comparison_markdown(pd.DataFrame([mixed, COMPARISON]))


def test_committed_comparisons_say_how_their_first_stages_learned():
    table = read_table(ROOT / "exp" / "comparison.csv").astype(object)
    for run, rows in table.groupby("stage1_run"):
        told = compare.learned(read_config(ROOT / "exp" / "demo_1" / run)["settings"])
        said = rows[["choice", "further"]].drop_duplicates()
        assert said.where(said.notna(), None).to_dict("records") == [told], run


def test_what_is_plain_and_most_imbalanced_comes_first():
    mild = COMPARISON | {"imbalance_factor": 10.0, "stage1_run": "mild", "run": "mild"}
    mixed = COMPARISON | {"further": "mix mixup", "stage1_run": "mixed", "run": "mixed", "stage1_epochs": 400}
    rows = [row | {"method": methods.FIRST, "validation": 50.0} for row in (mild, mixed, COMPARISON)]
    first, second, third = other_tables.comparison_markdown(pd.DataFrame(rows)).split("\n**cifar100, ")
    assert first.startswith("**cifar100, imbalance factor 100, resnet32, 60 epochs, stage-1 weight decay 0.005**")
    assert second.startswith("imbalance factor 100, resnet32, 400 epochs, stage-1 weight decay 0.005, mix mixup**")
    assert third.startswith("imbalance factor 10, ")


def test_seeds_that_one_network_tuned_are_one_table_of_means():
    rows = [
        COMPARISON | {"method": method, "all": accuracy + 2 * seed, "seed": seed, "validation": 50.0}
        | {"stage1_run": f"run-{seed}", "run": f"run-{seed}"}
        for seed in (0, 1)
        for method, accuracy in (("first stage alone", 30.0), ("CB", 40.0))
    ]  # fmt: skip
    told = other_tables.comparison_markdown(pd.DataFrame(rows))
    assert told.count("**cifar100") == 1
    assert "first stage run-0, run-1 ·" in told
    cells = [line.split(" | ")[5] for line in told.splitlines() if line.startswith(("| CB", "| first stage alone"))]
    assert cells == [f"41.00 ± {2**0.5:.2f}", f"31.00 ± {2**0.5:.2f}"]
    assert "Of the 2 methods on these features 1 lie within a point" in told
    assert "tuning network has 50.00 % of the held-out images, the first stage 31.00 % of the test" in told
    absent = COMPARISON | {"method": "CB", "run": None, "trained_by": "--x"} | {"stage1_run": "run-2"}
    assert "not measured" not in other_tables.comparison_markdown(pd.DataFrame([*rows, absent]))
    for differs in ({"tuned_on": "other"}, {"further": "warm_up 5"}, {"stage1_epochs": 40}):
        other = pd.DataFrame([COMPARISON | {"stage1_run": "run-2", "run": "run-2"} | differs])
        apart = other_tables.comparison_markdown(pd.concat([pd.DataFrame(rows), other]))
        assert apart.count("**cifar100") == 2


def test_methods_without_any_figure_are_a_sentence_with_their_options():
    blank = dict.fromkeys(["many", "medium", "few", "all", "ECE", "forward 50", "backward 50", "published"], NAN)
    rows = [
        COMPARISON,
        COMPARISON | blank | {"method": "mixup", "run": None, "trained_by": "--mix mixup"},
        COMPARISON | blank | {"method": "L2norm", "hyper-parameters": "does not suit a cosine classifier"},
        COMPARISON | blank | {"method": "LDAM", "run": None, "trained_by": "--loss ldam-drw", "published": 42.0},
    ]
    told = other_tables.comparison_markdown(pd.DataFrame(rows))
    assert told.endswith("\nNot measured; `python -m ltr sweep` trains the network: mixup (`--mix mixup`).\n")
    assert "| L2norm | does not suit a cosine classifier | – |" in told
    assert "| LDAM | not measured: --loss ldam-drw | – |" in told
    assert "| mixup |" not in told


@pytest.mark.parametrize(
    "name",
    ["results", "benchmarks", "comparison", "maxnorm", "tuning/laptop", "tuning/further", "tuning/draw"],
)
def test_the_readmes_tables_are_those_of_the_files(name):
    readme = (ROOT / "exp" / "README.md").read_text("utf-8")
    for place, text in report.tables(ROOT / "exp" / f"{name}.csv").items():
        found = report.block(place).search(readme)
        assert found[0] == f"{found[1]}{text}{found[2]}", "run `make tables`"


def with_and_without(seed: int, plain: float, limited: float, moved: float = 0.25, **columns) -> pd.DataFrame:
    """A pair of models, with MaxNorm and without it."""
    shared = {"mode": "paper", "loss": "cb-ce", "lr": 0.01, "weight_decay": 0.001, "seed": seed, **columns}
    projected = {"max_norm": 1.0, "max_norm_every": "step", "projected_share": moved}
    pair = [
        results(method="CB + WD", all=plain, run=f"cb-wd-{seed}", **shared),
        results(method="CB + WD + MaxNorm", all=limited, run=f"max-{seed}", **shared, **projected),
    ]
    return pd.concat(pair)


def test_the_gain_of_max_norm_is_taken_seed_by_seed():
    both = pd.concat([with_and_without(0, 40.0, 40.5), with_and_without(1, 30.0, 30.1, moved=0.75)])
    (row,) = paper_tables.max_norm_gains(both, "max-0").to_dict("records")
    assert row == {
        "model": "CB + WD + MaxNorm (tuned)", "radius": "1.000", "learning rate": "0.01",
        "projected": "after each step",
        "rows moved (% of checks)": "50.00", "all, with": "35.30", "all, without": "35.00",
        "gain": "+0.30", "±": "0.20", "seeds": 2,
    }  # fmt: skip


def test_the_gain_of_max_norm_is_of_one_first_stage_and_one_weight_decay():
    own = with_and_without(0, 40.0, 40.5)
    strangers = [with_and_without(1, 1.0, 2.0, **{name: 7}) for name in (*paper_tables.SET[1:], "stage1_weight_decay")]
    rest = [results(method="CB + MaxNorm", mode="paper", loss="cb-ce", max_norm=1.0, max_norm_every="step", run="x")]
    rest += [own.iloc[:1].assign(weight_decay=0.1, all=9.0), own.assign(tta="flip"), own.assign(selection="best_test")]
    (row,) = paper_tables.max_norm_gains(pd.concat([own, *strangers, *rest]), "max-0").to_dict("records")
    assert (row["gain"], row["seeds"], row["±"]) == ("+0.50", 1, "–")


def test_a_counterpart_of_the_same_learning_rate_goes_first_and_another_rate_is_told():
    pair = with_and_without(0, 40.0, 40.5)
    faster = pair.iloc[:1].assign(lr=0.1, all=30.0, run="faster")
    (row,) = paper_tables.max_norm_gains(pd.concat([faster, pair]), "max-0").to_dict("records")
    assert (row["learning rate"], row["gain"]) == ("0.01", "+0.50")
    (row,) = paper_tables.max_norm_gains(pd.concat([faster, pair.iloc[1:]]), "max-0").to_dict("records")
    assert (row["learning rate"], row["gain"]) == ("0.01 (without: 0.1)", "+10.50")


def test_a_published_radius_is_compared_with_the_tuned_rows_plain_counterpart():
    pair = with_and_without(0, 40.0, 40.5, weight_decay=0.0)
    pair = pair.assign(method=["CB", "CB + MaxNorm"])
    published = pair.iloc[1:].assign(mode="published", max_norm=0.4, all=38.0, run="published")
    table = paper_tables.max_norm_gains(pd.concat([pair, published]), "max-0").set_index("model")
    assert table.gain.to_dict() == {"CB + MaxNorm (tuned)": "+0.50", "CB + MaxNorm (published values)": "-2.00"}


def test_what_max_norm_adds_stands_in_a_table_a_network():
    text = paper_tables.max_norm_table(with_and_without(0, 40.0, 40.5))
    assert "**narrow ResNet-32, 60 epochs, 1 seed**" in text
    assert "| CB + WD + MaxNorm (tuned) | 1.000 | 0.01 | after each step | 25.00 | 40.50 | 40.00 | +0.50 |" in text
    assert paper_tables.max_norm_table(results()) == ""


# ---- numbers that are not there


def test_a_group_without_classes_is_a_dash_in_every_table():
    """An imbalance factor of 10 leaves no rare class."""
    rows = [
        counted((60.0, 61.0, NAN, NAN), imbalance_factor=factor, method=method, mode=mode, run=f"{method}-{factor}")
        for factor in (10.0, 100.0)
        for method, mode in (("WD", None), ("CB + WD", "paper"), ("CB + WD + MaxNorm", "released"))
    ]
    table = pd.concat([*rows, with_and_without(0, 40.0, 40.5, few=NAN)]).assign(few=NAN)
    made = [
        paper_tables.markdown(table),
        paper_tables.table_1(table),
        paper_tables.table_2(table),
        paper_tables.table_1(table, 10),
    ]
    made += [paper_tables.table_of_released(table), paper_tables.max_norm_table(table)]
    assert all(made)
    assert not [text for text in made if "nan" in text.replace("WD", "")]
    assert "| WD | 0.005 |  |  | 70.00 | 40.00 | – | 60.00 | 61.00 | – | – | 5.00 |" in made[0]


def test_seeds_that_diverged_are_left_out_and_counted():
    values = [pd.Series(values) for values in ([40.0, NAN], [40.0, 42.0, NAN], [NAN, NAN], [40.0], [NAN])]
    assert list(map(cells.cell, values)) == [
        "40.00 (1 of 2 seeds)", "41.00 ± 1.41 (2 of 3 seeds)", "–", "40.00", "–",
    ]  # fmt: skip


def test_a_gain_of_a_diverged_seed_is_none():
    both = pd.concat([with_and_without(0, 40.0, 40.5), with_and_without(1, 30.0, NAN)])
    (row,) = paper_tables.max_norm_gains(both, "max-0").to_dict("records")
    assert (row["all, with"], row["all, without"], row["gain"], row["seeds"]) == ("40.50", "40.00", "+0.50", 1)
    (row,) = paper_tables.max_norm_gains(with_and_without(0, 40.0, NAN), "max-0").to_dict("records")
    assert (row["all, with"], row["gain"], row["±"], row["seeds"]) == ("–", "–", "–", 0)
    assert "nan" not in paper_tables.max_norm_table(with_and_without(0, NAN, NAN))


def test_ways_of_counting_that_are_not_there_add_a_dash():
    plain = results(run="a")
    assert (paper_tables.counting_gains(plain, ["a"]) == "–").all(axis=None)
    assert (paper_tables.counting_gains(plain, ["b"]) == "–").all(axis=None)


def test_a_table_without_rows_makes_no_table(tmp_path):
    results().iloc[:0].to_csv(tmp_path / "results.csv", index=False)
    assert set(report.tables(tmp_path / "results.csv").values()) == {""}


def test_a_comparison_may_be_of_diverged_methods_alone():
    text = other_tables.comparison_markdown(pd.DataFrame([COMPARISON | {"all": NAN, "few": NAN, "tuned_on": NAN}]))
    assert "nan" not in text
    assert "| CB |  | 1.00 | 1.00 | – | – | 1.00 |" in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.12345, "0.123"), (1234.5, "1,234"), (float("nan"), "")],
)
def test_measured_numbers_have_three_digits(value, shown):
    assert cells.rounded(value) == shown


# ---- the paper's rows


def test_the_rows_that_are_tuned_are_those_with_a_value_to_choose():
    untuned = {"naive", "WD", "WD + L2norm", "CE + L2norm", "CB", "CB + L2norm"}
    assert {method for method in published.TABLE_1 if not paper_tables.is_tuned(method)} == untuned


def test_the_counterpart_without_max_norm_differs_by_it_alone():
    limited = {
        method: paper_tables.without_max_norm(method) for method in methods.METHODS if paper_tables.has_max_norm(method)
    }
    assert limited == {
        "CE + MaxNorm": None,
        "CE + WD + MaxNorm": "CE + WD",
        "CB + MaxNorm": "CB",
        "CB + stage-1 WD + MaxNorm": None,
        "CB + WD + MaxNorm": "CB + WD",
        "last 2 layers, CB + WD + MaxNorm": None,
        "last 5 layers, CB + WD + MaxNorm": None,
    }


# ---- words that look like numbers, or like nothing

WORDS = ["007", "1.10", "1e3", "NA", "None", "null", "True", "inf", "nan", "-inf", "#N/A", "0x10", " 7 ", "2024-01-01"]


@pytest.mark.parametrize("name", WORDS)
def test_words_are_read_as_they_stand(tmp_path, name):
    path = tmp_path / "results.csv"
    results(dataset=name, run=name, method=name, mode=name, few=NAN, torch="2.10").to_csv(path, index=False)
    row = read_table(path).iloc[0]
    assert row[["dataset", "run", "method", "mode", "torch"]].tolist() == [name, name, name, name, "2.10"]
    assert (row["all"], row["imbalance_factor"], row["stage1_epochs"]) == (40.0, 100.0, 60)
    assert row[["few", "loss", "tau", "max_norm_every"]].isna().all()


def test_a_table_that_is_read_and_written_is_the_same(tmp_path):
    rows = [results(dataset=name, run=name, all=i / 3) for i, name in enumerate(WORDS)]
    text = pd.concat(rows).to_csv(index=False, float_format="%.6g")
    (tmp_path / "results.csv").write_text(text)
    assert read_table(tmp_path / "results.csv").to_csv(index=False, float_format="%.6g") == text


@pytest.mark.parametrize("content", [b"", b'run,all\n"a', b"run,all\na,1,2,3\nb,1\nc,1,2,3,4\n", b"run\n\xff\n"])
def test_what_is_no_table_is_refused(tmp_path, content):
    (tmp_path / "results.csv").write_bytes(content)
    message = complaint(read_table, tmp_path / "results.csv")
    assert message.startswith(f"--out: {tmp_path / 'results.csv'} must be a table of comma-separated values (")


@pytest.mark.parametrize("name", WORDS)
def test_a_data_folder_may_have_any_name(tmp_path, name):
    rows = [results(dataset=each, run=f"{each}-1") for each in ("7", name)]
    pd.concat(rows).to_csv(tmp_path / "results.csv", index=False)
    text = report.tables(tmp_path / "results.csv")["results"]
    assert text.count("**7, imbalance factor 100") == 1
    assert text.count(f"**{name}, imbalance factor 100") == 1
    pd.DataFrame([COMPARISON | {"dataset": each} for each in ("7", name)]).to_csv(tmp_path / "c.csv", index=False)
    text = report.tables(tmp_path / "c.csv")["c"]
    assert text.count("**7, imbalance factor 100") == 1
    assert text.count(f"**{name}, imbalance factor 100") == 1


def test_speed_is_told_in_sentences_with_the_features_that_it_needs():
    shared = {"backbone": "resnet32", "device": "cpu (x)", "precision": "fp32", "images": 100, "torch": "", "date": ""}
    rows = [
        {**shared, "what": bench.STAGE_1, "images": 25, "ours_s": 1, "reference_s": 2, "ratio": 2},
        {**shared, "what": bench.STAGE_1, "ours_s": 4, "reference_s": 12, "ratio": 3},
        {**shared, "what": bench.FEATURES, "ours_s": 30},
        {**shared, "what": bench.GRID, "ours_s": 20, "reference_s": 1000, "ratio": 50},
        {**shared, "what": bench.BALANCE.format("all"), "backbone": "9 x 5", "ours_s": 90, "peak_mb": 1500},
    ]
    told = other_tables.benchmark_markdown(pd.DataFrame(rows, columns=bench.COLUMNS))
    assert "- resnet32 on cpu (x): an epoch takes 4.0 s, of the reference 12.0 s.\n" in told
    assert "a ratio of 50; the features take 30 s, with them the ratio is 20.\n" in told
    assert "- 9 x 5 on cpu (x): `balance` with `all` methods takes 1.5 minutes and 1.5 GB for 100 embeddings.\n" in told
    assert "What is not here is not measured: `python -m ltr bench`" in told


def test_networks_of_a_map_stand_as_a_table_the_best_balanced_first(tmp_path):
    shared = {"lr": 0.1, "lr x wd": 5e-5, "weight decay": 5e-4, "batch": 64, "warm-up": 0, "epochs": 40, "all ±": 1.0}
    rows = [
        {**shared, "run": run, "further": further, "classifier": classifier, "all": value}
        for run, further, values in (("a", None, (40.0, 44.0)), ("b", "mix mixup", (39.0, 47.0)))
        for classifier, value in zip(("first stage alone", "logit adjustment"), values, strict=True)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "cells.csv", index=False)
    lines = report.tables(tmp_path / "cells.csv")["cells"].splitlines()
    assert lines[0].endswith("| further | first stage alone | logit adjustment |")
    assert lines[2] == "| 0.1 | 0.0005 | 64 | 0 | 40 | mix mixup | 39.00 ± 1.00 | 47.00 ± 1.00 |"
    assert lines[3] == "| 0.1 | 0.0005 | 64 | 0 | 40 |  | 40.00 ± 1.00 | 44.00 ± 1.00 |"


def test_weight_decay_makes_norms_less_even_but_of_the_wide_network():
    table, results = (read_table(ROOT / "exp" / f"{name}.csv") for name in ("norms", "results"))
    firsts = paper_tables.plain_rows(results).set_index("run")
    firsts = firsts[firsts["first mix"].isna() & firsts["first augmentation"].isna() & (firsts["first loss"] == "ce")]
    known = (
        table.set_index("stage1_run")
        .drop(columns="weight_decay")
        .join(firsts, how="inner")
        .fillna({"first choice": ""})
    )
    pairs, uneven = known.groupby(["backbone", "stage1_epochs", "first lr", "first choice", "seed"]), {}
    for (backbone, *_), own in pairs:
        if {"naive", "WD"} <= {*own.method}:
            naive, decayed = (own[own.method == name].iloc[0] for name in ("naive", "WD"))
            for measure in ("many / few", "largest / smallest"):
                uneven.setdefault(backbone, []).append(decayed[measure] > naive[measure])
    assert uneven == {"resnet32": 12 * [True], "resnet34": 4 * [True], "resnet32-wide": 2 * [False]}
    wide = known[known.backbone == "resnet32-wide"].set_index("method")["largest / smallest"]
    page = " ".join((ROOT / "exp" / "README.md").read_text("utf-8").split())
    assert f"{wide['naive']:.2f} times the smallest, with it {wide['WD']:.2f} times" in page


def test_norms_are_means_over_the_seeds_of_a_kind(tmp_path):
    rows = [results(run=f"wd-{seed}", stage1_run=f"wd-{seed}", seed=seed) for seed in (0, 1)]
    named = results(run="named", stage1_run="named", choice="first")
    norms = {
        "stage1_run": ["wd-0", "wd-1", "named"],
        "many / few": [1.0, 2.0, 9.0],
        "largest / smallest": [3.0, 5.0, 9.0],
    }
    path = tmp_path / "norms.csv"
    pd.DataFrame(norms).to_csv(path, index=False)
    *_, line = paper_tables.norms_table(pd.concat([*rows, named]), path).splitlines()
    assert line.endswith("weight decay 0.005 | 2 | 1.50 ± 0.71 | 4.00 ± 1.41 |"), "those of the usual images alone"
    pd.DataFrame(norms).drop(columns="many / few").to_csv(path, index=False)
    with pytest.raises(InputError, match=r"norms\.csv must have a column many / few"):
        paper_tables.norms_table(pd.concat(rows), path)


def test_the_radii_that_held_out_images_chose_are_the_pages():
    table = cells.where(read_table(ROOT / "exp" / "tuning" / "values.csv"), method="CB + MaxNorm")
    radii = table.set_index("tuning_run").radius
    named = "9f51cd07", "72703097", "9ca02c82", "c0d3830e"  # plain, augmented, mixup, ResNet-34
    assert [radii[radii.index.str.endswith(name)].item() for name in named] == [1.5, 1.5, 0.5, 0.25]


def test_balanced_networks_of_the_first_images_end_below_as_the_page_says():
    results, compared = (read_table(ROOT / "exp" / f"{name}.csv") for name in ("results", "comparison"))
    adjusted = cells.where(compared, method=methods.ADJUSTMENT).set_index("stage1_run")["all"]
    firsts = paper_tables.plain_rows(results)
    kinds = paper_tables.by_choice(firsts.assign(balanced=firsts.run.map(adjusted)).dropna(subset="balanced"))
    ends = [{str(own["first choice"].iloc[0]): own.balanced.mean() for own in kind} for kind in kinds]
    below = [own["nan"] - own["first"] for own in ends if "first" in own]
    assert len(below) == 4
    page = " ".join((ROOT / "exp" / "README.md").read_text("utf-8").split())
    assert f"of *choice first* end {min(below):.1f} to {max(below):.1f} points below those of the draw" in page


def test_logits_in_bfloat16_cost_what_the_page_says():
    results, compared = (read_table(ROOT / "exp" / f"{name}.csv") for name in ("results", "comparison"))
    firsts = results[(results.run == results.stage1_run) & (results.selection == "last") & (results.tta == "none")]
    exact = cells.where(compared, method=methods.FIRST).set_index("stage1_run")["all"]
    apart = (firsts.set_index("run")["all"] - exact).dropna()
    firsts = firsts.set_index("run").loc[apart.index]
    later = (firsts.device == "NVIDIA H200") & firsts.choice.isna()
    assert apart[later].abs().max() < 0.05, "a network that was trained on a GPU, tested on a CPU"
    apart, rounded = apart[~later], firsts.precision[~later] == "bf16"
    assert (apart[~rounded] == 0).all()
    assert -0.2 < apart[rounded].min() < -0.15
    assert apart[rounded].max() <= 0.01
    assert "up to 0.2 points below" in " ".join((ROOT / "exp" / "README.md").read_text("utf-8").split())

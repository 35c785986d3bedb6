"""What an accuracy costs: the table of README, and where a cell has nothing to say."""

import pandas as pd
import pytest
from committed import assert_up_to_date

from ltr.errors import InputError
from ltr.runtime.options import ROOT
from ltr.runtime.storage import read_table
from ltr.study import costs, published
from ltr.study.bench import FEATURES, STAGE_1, epoch_flops
from ltr.study.cells import where

FILES = [ROOT / "exp" / f"{name}.csv" for name in ("results", "comparison", "benchmarks")]


def tables() -> list[pd.DataFrame]:
    return [read_table(path) for path in FILES]


def one_seed() -> tuple[str, list[pd.DataFrame]]:
    """The same with one seed of the network that README shows, and without others and other images; its run."""
    results, comparison, benchmarks = tables()
    usual = {"backbone": "resnet32", "imbalance_factor": 100, "choice": None, "mix": None}
    firsts = where(results[results.run == results.stage1_run], **usual)
    ours = where(firsts, stage1_epochs=200, lr=0.1, method="WD")
    kept = set(firsts.run) - set(ours.run[ours.seed > 0])
    cut = [table[table.stage1_run.isin(kept)] for table in (results, comparison)]
    return ours.run[ours.seed == 0].iloc[0], [*cut, benchmarks]


def rows_of(table: pd.DataFrame, words: str) -> pd.DataFrame:
    return table[table.network.str.contains(words, regex=False)]


@pytest.mark.parametrize("name", ["README.md", "exp/README.md"])
def test_the_readmes_have_what_the_files_say(tmp_path, name):
    assert_up_to_date(costs.main, FILES, name, tmp_path)


def test_the_released_rows_are_what_their_notebooks_print():
    naive, decayed = costs.released()
    assert naive == ["released code: ResNet-34, 320 epochs, naive", "24", "55", "RTX 3090", "39.13", "–", "–"]
    assert decayed[1:] == ["24", "57", "RTX 3090", "46.76", "51.83", "CB + WD + MaxNorm"]


def test_minutes_and_arithmetic_follow_from_the_epochs():
    _, (results, comparison, benchmarks) = one_seed()
    both = (
        benchmarks[(benchmarks.backbone == "resnet32") & (benchmarks.images == costs.IMAGES)].set_index("what").ours_s
    )
    (row,) = rows_of(costs.table_of(results, comparison, benchmarks), "batch 64, 1 seed").to_dict("records")
    assert row["minutes"] == f"{(200 * both[STAGE_1] + both[FEATURES]) / 60:.0f}"
    assert float(row["PFLOP"]) == pytest.approx(200 * epoch_flops("resnet32", costs.IMAGES) / 1e15, rel=0.05)
    (unmeasured,) = rows_of(costs.table_of(results, comparison, benchmarks[:0]), "batch 64, 1 seed").to_dict("records")
    assert unmeasured == row | {"minutes": "–", "on": "–"}


def test_a_sharpness_aware_step_costs_two():
    run, (results, comparison, benchmarks) = one_seed()
    sharp = results.assign(further=results.further.where(results.run != run, "sam_rho 0.1"))
    before, after = (costs.table_of(each, comparison, benchmarks) for each in (results, sharp))
    (plain,), (twice,) = (rows_of(table, "200 epochs at 0.1").to_dict("records") for table in (before, after))
    assert float(twice["PFLOP"]) == pytest.approx(2 * float(plain["PFLOP"]), rel=0.06)
    assert twice["minutes"] == "–"  # the measured steps are plain


def test_steps_that_do_more_than_crop_and_flip_have_no_minutes():
    augmented = rows_of(costs.table_of(*tables()), "autoaugment")
    assert len(augmented) == 1
    assert augmented[["minutes", "on"]].to_numpy().tolist() == [["–", "–"]]


def test_the_method_is_the_one_that_held_out_images_chose():
    run, (results, comparison, benchmarks) = one_seed()
    own = comparison.stage1_run == run
    for method in ("NCM", "LOS"):
        best = (own & (comparison.method == method)).astype(float)
        changed = comparison.assign(validation=comparison.validation + 100 * best, all=comparison["all"] - 20 * best)
        table = costs.table_of(results, changed, benchmarks)
        (row,) = rows_of(table, "200 epochs at 0.1, batch 64, 1 seed").to_dict("records")
        assert row["by"] == method, "whatever the test images say"


def test_seeds_are_means_and_other_images_have_no_row():
    run, (results, comparison, benchmarks) = one_seed()
    own, first = comparison[comparison.stage1_run == run], results[results.run == run]
    second = {"seed": 1, "stage1_run": "other"}
    compared = [comparison, own.assign(**second, all=own["all"] + 2), own.assign(imbalance_factor=50.0, tuned_on="x")]
    firsts = [results, first.assign(**second, run="other", all=first["all"] + 2), first.assign(imbalance_factor=50.0)]
    table = costs.table_of(pd.concat(firsts), pd.concat(compared), benchmarks)
    (row,) = rows_of(table, "200 epochs at 0.1, batch 64, 2 seeds").to_dict("records")
    alone = where(first, selection="last", tta="none")["all"].item()
    assert row["alone"] == f"{alone + 1:.2f} ± {2**0.5:.2f}"
    assert len(table) == len(costs.table_of(results, comparison, benchmarks))


def test_what_one_network_tuned_but_learned_otherwise_stands_apart():
    run, (results, comparison, benchmarks) = one_seed()
    other = {"stage1_run": "other", "stage1_epochs": 100}
    firsts = results[results.run == run].assign(run="other", **other)
    compared = comparison[comparison.stage1_run == run].assign(**other)
    table = costs.table_of(pd.concat([results, firsts]), pd.concat([comparison, compared]), benchmarks)
    assert len(rows_of(table, "100 epochs at 0.1, batch 64, 1 seed")) == 1
    assert len(rows_of(table, "200 epochs at 0.1, batch 64, 1 seed")) == 1


def test_of_several_choices_of_images_one_has_a_row():
    _, (results, comparison, benchmarks) = one_seed()
    expected = costs.table_of(results, comparison, benchmarks)
    firsts, told = (table.assign(stage1_run=table.stage1_run + "-other") for table in (results, comparison))
    worse = firsts.assign(run=firsts.run + "-other", choice="first")
    both = costs.table_of(pd.concat([results, worse]), pd.concat([comparison, told]), benchmarks)
    pd.testing.assert_frame_equal(both, expected)
    alone = costs.table_of(worse, told, benchmarks)
    assert alone.network[2:].str.contains("choice first").all(), "where there is no other, its own stands and says so"


def test_what_is_absent_is_one_line(tmp_path):
    with pytest.raises(InputError, match="^comparison: there is no file"):
        costs.main([str(FILES[0]), str(tmp_path / "none.csv"), str(FILES[2])])
    with pytest.raises(InputError, match="^benchmarks: .* must have a column what"):
        costs.main([*map(str, FILES[:2]), str(FILES[0])])
    (tmp_path / "page.md").write_text("nothing", "utf-8")
    with pytest.raises(InputError, match="has no <!-- costs -->"):
        costs.main([*map(str, FILES), "--readme", str(tmp_path / "page.md")])


def test_without_a_readme_the_table_is_printed(capsys):
    costs.main([*map(str, FILES)])
    text = capsys.readouterr().out
    assert published.RELEASED_DEVICE in text
    assert "PFLOP" in text

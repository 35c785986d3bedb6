"""The README's five rows, and the sentences of exp/README.md."""

import re
from types import SimpleNamespace

import pandas as pd
import pytest
from committed import SHIPPED, assert_up_to_date

from ltr import runs
from ltr.errors import InputError
from ltr.metrics import or_dash
from ltr.runtime.options import ROOT
from ltr.runtime.storage import read_table, table_text
from ltr.study import evidence, headline
from ltr.study.cells import where

FILES = ROOT / "exp" / "results.csv", ROOT / "exp" / "comparison.csv"


def one_seed() -> pd.DataFrame:
    """The committed rows of one seed, on the network whose features ship and on its naive one."""
    results = read_table(FILES[0])
    ours = results[results.run == SHIPPED.name].iloc[0]
    naive = where(results, method="naive", **{name: ours[name] for name in ("backbone", "seed", "choice")})
    return results[results.stage1_run.isin([SHIPPED.name, *naive.run])]


def of(table: pd.DataFrame, column: str = "all") -> list[str]:
    return table[column].tolist()


@pytest.mark.parametrize("name", ["README.md", "exp/README.md"])
def test_the_readmes_have_what_the_files_say(tmp_path, name):
    assert_up_to_date(headline.main, FILES, name, tmp_path)


def test_a_file_without_a_place_is_refused(tmp_path):
    (tmp_path / "page.md").write_text("nothing", "utf-8")
    with pytest.raises(InputError, match="has no <!-- headline -->"):
        headline.main([*map(str, FILES), "--readme", str(tmp_path / "page.md")])


def test_sentences_follow_the_rows():
    results = one_seed()
    best = (results.method == headline.BEST) & (results["mode"] == "paper")
    before, after = (headline.findings(each) for each in (results, results.assign(few=results.few + best)))
    few = results.few[best & (results.selection == "last") & (results.tta == "none")].iloc[0]
    assert f"to {few:.2f} % ({headline.BEST}, tuned)" in before
    assert f"to {few + 1:.2f} % ({headline.BEST}, tuned)" in after
    assert len(before.splitlines()) == 7
    tuned_alone = headline.findings(results[~results["mode"].isin(["published", "released"])])
    assert len(tuned_alone.splitlines()) == 5
    assert "nan" not in before + after + tuned_alone
    mixed = another_kind(results, "-mixed", mix="mixup")
    both = headline.findings(pd.concat([results, mixed]), [SHIPPED.name]).splitlines()
    assert len(both) == 8
    plain = where(results, selection="last", tta="none")
    ends = [
        where(plain, **row)["all"].item() + 5 for row in ({"method": headline.BEST, "mode": "paper"}, {"method": "WD"})
    ]
    assert all(f"{end:.2f}" in both[-2] for end in ends)
    assert both[-2].endswith(", mixup).")


def test_a_row_is_the_mean_of_its_seeds_whatever_their_radius():
    results = one_seed()
    other = results.assign(seed=1, all=results["all"] + 2, max_norm=results.max_norm * 1.1)
    other = other.assign(run=results.run + "-1", stage1_run=results.stage1_run + "-1")
    before, after = (headline.table_of(table) for table in (results, pd.concat([results, other])))
    assert [name.split(",")[0] for name in of(before, "model")] == [name.split(",")[0] for name in of(after, "model")]
    assert len(before) == 4
    for old, new in zip(of(before), of(after), strict=True):
        assert float(new.split(" ± ")[0]) == pytest.approx(float(old) + 1, abs=0.011)
        assert new.endswith(f" ± {2**0.5:.2f}")
    for group in ("many", "medium", "few"):
        assert of(after, group) == [f"{value} ± 0.00" for value in of(before, group)]


def test_a_seed_that_diverged_is_left_out_and_counted():
    results = one_seed()
    nothing = dict.fromkeys(("many", "medium", "few", "all", "ece"), float("nan"))
    after = headline.table_of(pd.concat([results, results.assign(seed=1, **nothing)]))
    assert of(after) == [f"{value} (1 of 2 seeds)" for value in of(headline.table_of(results))]


def test_without_a_naive_network_its_row_is_left_out():
    results = one_seed()
    table = headline.table_of(results[results.method != "naive"], read_table(FILES[1]))
    assert [name.split(":")[0].split(" (")[0] for name in of(table, "model")] == [
        "WD",
        "WD + tau-norm",
        "WD + logit adjustment",
        "WD + CB & WD & MaxNorm",
    ]


def another_kind(results: pd.DataFrame, name: str, **first: object) -> pd.DataFrame:
    """The same rows on a first stage of another run, which learned in another way."""
    others = results.assign(stage1_run=results.stage1_run + name, run=results.run + name, all=results["all"] + 5)
    firsts = others.run == others.stage1_run
    return others.assign(**{column: others[column].where(~firsts, value) for column, value in first.items()})


@pytest.mark.parametrize("first", [{"lr": 0.3}, {"mix": "mixup", "method": "mixup"}, {"further": "warm_up 5"}])
def test_several_kinds_of_networks_are_told_apart_and_never_averaged(tmp_path, capsys, first):
    results = one_seed()
    results = results.assign(further=results.get("further"))
    other = another_kind(results, "-other", **first)
    (tmp_path / "results.csv").write_text(table_text(pd.concat([results, other])), "utf-8")
    with pytest.raises(InputError, match=r"^--stage1: must choose one kind of balanced network, there are "):
        headline.main([str(tmp_path / "results.csv")])
    named = other.stage1_run[other.method == headline.BEST].iloc[0]
    headline.main([str(tmp_path / "results.csv"), "--stage1", named])
    text = capsys.readouterr().out
    before = of(headline.table_of(results))
    assert all(f"{float(value) + 5:.2f}" in text for value in before)
    assert "±" not in text
    shipped = tmp_path / "demo_1" / named.removesuffix("-other")
    shipped.mkdir(parents=True)
    (shipped / "features.npz").touch()
    headline.main([str(tmp_path / "results.csv")])  # of those whose features ship
    text = capsys.readouterr().out
    assert all(value in text for value in before)


def test_other_balanced_kinds_stand_beside_it_and_no_others():
    results = one_seed().assign(choice=None)
    deep = another_kind(results, "-deep").assign(backbone="resnet34")
    alone = another_kind(results, "-alone", mix="mixup")
    alone = alone[alone.run == alone.stage1_run]  # no classifier of it was retrained
    tail = another_kind(results, "-tail").assign(imbalance_factor=50.0)
    short = another_kind(results, "-short").assign(stage1_epochs=40)
    worse = another_kind(results, "-worse", mix="mixup").assign(backbone="resnet34", all=2.0)
    drawn, deeper = (one.assign(choice="first") for one in (another_kind(results, "-drawn"), deep))
    deeper = deeper.assign(run=deeper.run + "-drawn", stage1_run=deeper.stage1_run + "-drawn", all=1.0)
    every = pd.concat([results, deep, alone, tail, short, drawn, deeper, worse])
    table = headline.table_of(every, stage1=[SHIPPED.name])
    (column,) = [name for name in table.columns[len(headline.HEAD) :] if "paper" not in name]
    assert column.startswith("ResNet-34, 200 epochs at ")
    assert of(table, column) == [f"{float(value) + 5:.2f}" for value in of(table)]


def test_a_file_that_is_absent_is_one_line(tmp_path):
    with pytest.raises(InputError, match=f"^results: there is no file {tmp_path / 'none.csv'}$"):
        headline.main([str(tmp_path / "none.csv")])


def test_numbers_within_sentences_are_those_of_the_files():
    pages = [" ".join((ROOT / name).read_text("utf-8").split()) for name in ("README.md", "exp/README.md")]
    results, comparison = map(read_table, FILES)
    first = results[(results.run == results.stage1_run) & (results.selection == "last") & (results.tta == "none")]
    case = SimpleNamespace(settings=SimpleNamespace(out=ROOT / "exp"), base=SimpleNamespace(path=SHIPPED))
    seeds = evidence.over_seeds(SimpleNamespace(rows=case)).std(axis=1)
    naive = seeds.index.str.startswith("naive")
    least, most = seeds[~naive].min(), seeds[~naive].max()
    assert f"by {least:.1f} to {most:.1f} points, of the naive one by {seeds['naive']:.1f}" in pages[1]
    ldam = ROOT / "exp" / "demo_1" / first[first.loss == "ldam-drw"].run.item() / "metrics.csv"
    learned = pd.read_csv(ldam).set_index("epoch").train_accuracy[160]
    assert f"{learned:.1f} % of the training images are right" in pages[1]
    on_gpu = first[first.device.str.startswith("NVIDIA H100") & (first.stage1_epochs == 200)]
    deep, narrow = (on_gpu[on_gpu.backbone == name].seconds for name in ("resnet34", "resnet32"))
    took = (
        f"took {deep.mean():.0f} s for 200 epochs and the narrow ResNet-32 {narrow.min():.0f} to {narrow.max():.0f} s"
    )
    assert took in pages[0]
    minutes = first[first.run == SHIPPED.name].seconds.item() / 60
    assert f"on two threads of an AMD EPYC, in bfloat16, the narrow one took {minutes:.0f} minutes" in pages[0]
    exact = re.search(r"200 epochs at 0\.1, batch 64, 3 seeds \| [\d.]+ \| (\d+) \|", pages[0])
    assert minutes < int(exact[1]) / 2  # in bfloat16 less than half


def test_the_batch_of_the_guide_ends_at_the_number_that_it_says():
    guide = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    said, run = re.search(r"to (\d+\.\d+) %", guide)[1], re.search(r"\((exp/demo_2/[\w-]+)\)", guide)[1]
    result = runs.Result.read(ROOT / run)
    assert said == or_dash(result.accuracy()["all"])
    assert result.config["settings"]["stage1_run"] == SHIPPED.name
    assert result.config["settings"]["method"] == headline.BEST

"""The README's five rows, and the sentences of exp/README.md."""

import pandas as pd
import pytest

from ltr.errors import InputError
from ltr.runtime.options import ROOT
from ltr.runtime.storage import read_table, table_text
from ltr.study import headline

FILES = ROOT / "exp" / "results.csv", ROOT / "exp" / "comparison.csv"


@pytest.mark.parametrize("name", ["README.md", "exp/README.md"])
def test_the_readmes_have_what_the_files_say(tmp_path, name):
    readme = tmp_path / "README.md"
    readme.write_text((ROOT / name).read_text("utf-8"), "utf-8")
    headline.main([*map(str, FILES), "--readme", str(readme)])
    assert readme.read_text("utf-8") == (ROOT / name).read_text("utf-8"), "run `make tables`"


def test_a_file_without_a_place_is_refused(tmp_path):
    (tmp_path / "page.md").write_text("nothing", "utf-8")
    with pytest.raises(InputError, match="has no <!-- headline -->"):
        headline.main([*map(str, FILES), "--readme", str(tmp_path / "page.md")])


def test_sentences_follow_the_rows():
    results = read_table(FILES[0])
    best = (results.method == headline.BEST) & (results["mode"] == "paper")
    before, after = (headline.findings(each) for each in (results, results.assign(few=results.few + best)))
    few = results.few[best & (results.selection == "last") & (results.tta == "none")].iloc[0]
    assert f"to {few:.2f} % ({headline.BEST}, tuned)" in before
    assert f"to {few + 1:.2f} % ({headline.BEST}, tuned)" in after
    assert len(before.splitlines()) == 7
    tuned_alone = headline.findings(results[~results["mode"].isin(["published", "released"])])
    assert len(tuned_alone.splitlines()) == 5
    assert "nan" not in before + after + tuned_alone


def test_a_row_is_the_mean_of_its_seeds():
    results = read_table(FILES[0])
    other = results.assign(seed=1, all=results["all"] + 2)
    before, after = (headline.five_rows(table, None) for table in (results, pd.concat([results, other])))
    assert [row[0] for row in before] == [row[0] for row in after]
    assert len(before) == 4
    for old, new in zip(before, after, strict=True):
        assert float(new[4].split(" ± ")[0]) == pytest.approx(float(old[4]) + 1, abs=0.011)
        assert new[4].endswith(f" ± {2**0.5:.2f}")
        assert new[1:4] == [f"{value} ± 0.00" for value in old[1:4]]


def test_a_seed_that_diverged_is_left_out_and_counted():
    results = read_table(FILES[0])
    nothing = dict.fromkeys(("many", "medium", "few", "all", "ece"), float("nan"))
    rows = headline.five_rows(pd.concat([results, results.assign(seed=1, **nothing)]), None)
    before = headline.five_rows(results, None)
    assert [row[4] for row in rows] == [f"{row[4]} (1 of 2 seeds)" for row in before]


def test_without_a_naive_network_its_row_is_left_out():
    results = read_table(FILES[0])
    rows = headline.five_rows(results[results.method != "naive"], read_table(FILES[1]))
    assert [row[0].split(":")[0].split(" (")[0] for row in rows] == [
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
    results = read_table(FILES[0])
    results = results.assign(further=results.get("further"))
    other = another_kind(results, "-other", **first)
    (tmp_path / "results.csv").write_text(table_text(pd.concat([results, other])), "utf-8")
    with pytest.raises(InputError, match=r"^--stage1: must choose one kind of balanced network, there are "):
        headline.main([str(tmp_path / "results.csv")])
    named = other.stage1_run[other.method == headline.BEST].iloc[0]
    headline.main([str(tmp_path / "results.csv"), "--stage1", named])
    text = capsys.readouterr().out
    before = headline.five_rows(results, None)
    assert all(f"{float(row[4]) + 5:.2f}" in text for row in before)
    assert "±" not in text
    shipped = tmp_path / "demo_1" / named.removesuffix("-other")
    shipped.mkdir(parents=True)
    (shipped / "features.npz").touch()
    headline.main([str(tmp_path / "results.csv")])  # of those whose features ship
    text = capsys.readouterr().out
    assert all(row[4] in text for row in before)


def test_a_file_that_is_absent_is_one_line(tmp_path):
    with pytest.raises(InputError, match=f"^results: there is no file {tmp_path / 'none.csv'}$"):
        headline.main([str(tmp_path / "none.csv")])

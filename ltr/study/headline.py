"""The five rows that a reader sees first, and what all rows come to in sentences, from results.csv and comparison.csv:

    python -m ltr headline exp/results.csv exp/comparison.csv --readme README.md

Last epoch, plain test, tuned values; means where there are several seeds. Where several kinds of first stages were
balanced, the rows are of the one that `--stage1` names, or whose features ship. Without `--readme`
they are printed; a file has places for the rows, `<!-- headline -->`, for what they come to, `<!-- found -->`, for the
sentences about all rows, `<!-- findings -->`, or several of these.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ltr import recipes
from ltr.errors import InputError
from ltr.methods import ADJUSTMENT, METHODS, of_loss
from ltr.metrics import or_dash, with_dashes
from ltr.runtime.options import Parser, file
from ltr.runtime.storage import read_table, write_text
from ltr.second_stage import FEATURES
from ltr.study import cells, paper_tables, published
from ltr.study.cells import in_markdown, where
from ltr.study.report import block, replaced

BEST = "CB + WD + MaxNorm"
MEASURES = ("many", "medium", "few", "all", "ece")
PLACE = [*paper_tables.BASE, "stage1_weight_decay"]
HEAD = ["model", "many", "medium", "few", "all", "ECE"]


def networks(rows: pd.DataFrame, stage1: Sequence[str] = ()) -> pd.DataFrame:
    """The kinds of first stages whose classifier was balanced, a row each; of the runs that are named, if any are."""
    balanced = where(rows, method=BEST, mode="paper")
    if stage1:
        balanced = balanced[balanced.stage1_run.isin(stage1)]
    return balanced[PLACE].drop_duplicates()


def network(rows: pd.DataFrame, stage1: Sequence[str] = ()) -> dict[str, Any]:
    """The kind of first stage that the rows are of; seeds do not tell kinds apart.

    Args:
        rows: of `paper_tables.headline`.
        stage1: names of its runs; none where there is one kind alone.

    Raises:
        InputError: there is none, or there are several.
    """
    places = networks(rows, stage1)
    if len(places) != 1:
        names = ", ".join(sorted(set(where(rows, method=BEST, mode="paper").stage1_run.astype(str)))) or "none"
        raise InputError(f"--stage1: must choose one kind of balanced network, there are {names}")
    return places.iloc[0].to_dict()


def chosen(rows: pd.DataFrame, comparison: pd.DataFrame | None, place: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """The five rows of one kind of first stage.

    Args:
        rows: of `paper_tables.headline`.
        comparison: of comparison.csv, which logit adjustment is in; None to go without.
        place: see `network`.
    """
    ours = where(rows, **place)
    adjusted = rows[:0] if comparison is None else comparison[comparison.stage1_run.isin(ours.stage1_run)]
    return {
        "naive": where(rows, **place | {"stage1_weight_decay": 0, "method": "naive"}),
        "WD": where(ours, method="WD"),
        "WD + tau-norm": where(ours, method="WD + tau-norm", mode=None),
        ADJUSTMENT: where(adjusted, method=ADJUSTMENT).rename(columns={"ECE": "ece"}),
        BEST: where(ours, method=BEST, mode="paper"),
    }


def titles(found: dict[str, pd.DataFrame]) -> dict[str, str]:
    """What the five rows are called, with their values."""
    tau, best, adjusted = found["WD + tau-norm"], found[BEST], found[ADJUSTMENT]
    value = adjusted["hyper-parameters"].iloc[0] if len(adjusted) else ""
    return {
        "naive": "naive: cross-entropy without weight decay",
        "WD": "WD: with a tuned weight decay",
        "WD + tau-norm": f"WD + tau-norm (tau {tau.tau.mean():g})",
        ADJUSTMENT: f"WD + {ADJUSTMENT} ({value})",
        BEST: f"WD + CB & WD & MaxNorm (weight decay {best.weight_decay.mean():g}, radius {best.max_norm.mean():.2f})",
    }


def beside(rows: pd.DataFrame, place: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Other kinds of first stages that were balanced on such a set, by what a column of theirs is called.

    Those that differ in the choice of the images alone have one column, or none beside the place's own; of other ways
    to train the same network the one that ends best has it. Those that learned for less long have none; `ltr costs` has
    them, beside what they take.
    """
    same = where(rows, **{name: place[name] for name in ("dataset", "imbalance_factor", "profile")})
    same = same[same.stage1_epochs >= place["stage1_epochs"]]
    kinds = [pd.concat(kind)[PLACE] for kind in paper_tables.by_choice(networks(same))]
    others = [kind.iloc[0].to_dict() for kind in kinds if not len(where(kind, **place))]
    others.sort(key=lambda own: paper_tables.ends_at(where(rows, **own)))
    others = [*{own["backbone"]: own for own in others}.values()]  # the last of each
    trained = (paper_tables.training(pd.DataFrame([own])) for own in others)
    return {f"{paper_tables.NETWORKS[own['backbone']]}, {how}": own for own, how in zip(others, trained, strict=True)}


def table_of(results: pd.DataFrame, comparison: pd.DataFrame | None = None, stage1: Sequence[str] = ()) -> pd.DataFrame:
    """Naive, WD, tau-normalisation, logit adjustment, and the paper's own; those that are there.

    Args:
        results: of results.csv.
        comparison: see `chosen`.
        stage1: see `network`.

    Returns:
        text: groups, all classes and ECE of one kind of first stage; then all classes of other kinds, and the paper's.
    """
    rows = paper_tables.plain_rows(results)
    place = network(rows, stage1)
    found, lines = chosen(rows, comparison, place), []
    others = {name: chosen(rows, comparison, other) for name, other in beside(rows, place).items()}
    for name, title in titles(found).items():
        if len(found[name]):
            own = [cells.cell(found[name][measure]) for measure in MEASURES]
            theirs = [cells.cell(other[name]["all"]) for other in others.values()]
            lines.append([title, *own, *theirs, or_dash(published.TABLE_1.get(name, [np.nan])[-1])])
    return pd.DataFrame(lines, columns=[*HEAD, *(f"{name}: all" for name in others), "paper (ResNet-34): all"])


def found(results: pd.DataFrame, stage1: Sequence[str] = (), folder: Path | None = None) -> str:
    """What the five rows come to, in Markdown: what each step is worth, and what another network says.

    Arguments as of `findings`.
    """
    rows = paper_tables.plain_rows(results)
    place = network(rows, stage1)
    others = {name: own for name, own in beside(rows, place).items() if own["backbone"] != place["backbone"]}
    ours = chosen(rows, None, place)
    undone = where(rows, **place | {"method": "CB + WD", "mode": "paper"})

    def gain(before: pd.DataFrame, after: pd.DataFrame) -> str:
        error = paper_tables.error_of_gain(before, after, folder)
        return f"{after['all'].mean() - before['all'].mean():+.2f} ± {error:.2f} points"

    rare = [ours[method].few.mean() for method in ("naive", "WD")]
    lines = [
        f"Weight decay in the first stage is worth {gain(ours['naive'], ours['WD'])} over all classes (few-shot ones "
        f"go from {rare[0]:.2f} to {rare[1]:.2f} %). After it tau-normalisation, which needs no training, has "
        f"{gain(ours[BEST], ours['WD + tau-norm'])} over retraining by CB & WD & MaxNorm, and MaxNorm adds "
        f"{gain(undone, ours[BEST])} to CB & WD.",
    ]
    for name, other in others.items():
        deep = chosen(rows, None, other)
        wd, best = (deep[method].ece.mean() for method in ("WD", BEST))
        lines.append(
            f"On the {name.split(',')[0]} ({cells.seeds(deep[BEST])}) retraining has "
            f"{gain(deep['WD + tau-norm'], deep[BEST])} over it, and takes the ECE from {wd:.2f} to {best:.2f} %."
        )
    return with_dashes(" ".join(lines)) + "\n"


def between(values: pd.Series) -> str:
    """The least and the largest, with two decimals."""
    return f"{values.min():.2f} to {values.max():.2f}"


def findings(results: pd.DataFrame, stage1: Sequence[str] = (), folder: Path | None = None) -> str:
    """What the rows on one first stage come to, a sentence each in Markdown; a dash for what is not there.

    Arguments as of `table_of`; and the folder of the runs, see `paper_tables.error_of_gain`.
    """
    rows = paper_tables.plain_rows(results)
    place = network(rows, stage1)
    rows = rows.assign(mode=rows["mode"].fillna("paper"), chosen=rows["best"] - rows["all"])
    ours = where(rows, **place)
    modes = {mode: own.groupby("method").mean(numeric_only=True) for mode, own in ours.groupby("mode")}
    tuned, of = modes["paper"], where(ours, mode="paper")
    naive = where(rows, **place | {"stage1_weight_decay": 0, "method": "naive"})
    decayed = paper_tables.error_of_gain(naive, where(of, method="WD"), folder)
    lines = [*what_helps(tuned, naive.mean(numeric_only=True), decayed), *what_max_norm_does(tuned, of, folder)]
    lines += what_is_not_tuned(*(modes.get(name, tuned[:0]) for name in ("published", "released")))
    lines += other_trainings(rows, place)
    mirrored = between(ours.flip - ours["all"])
    most = ours.sort_values("chosen", na_position="first").iloc[-1]
    lines.append(
        f"**The way of counting.** Mirrored test images add {mirrored} points, to choose the epoch on the test "
        f"set up to {most.chosen:.2f}: {most.method} ({paper_tables.SETTINGS[most['mode']]}) ends at "
        f"{most['all']:.2f} %."
    )
    return with_dashes("".join(f"- {line}\n" for line in lines))


def other_trainings(rows: pd.DataFrame, place: dict[str, Any]) -> list[str]:
    """What the same network comes to that learned with weight decay in other ways; nothing where it did not."""
    same = where(rows, **{name: place[name] for name in ("dataset", "imbalance_factor", "profile", "backbone")})
    same = paper_tables.of_one_choice(same[same.stage1_weight_decay > 0])
    said = []
    for how, own in paper_tables.by_training(same).items():
        if len(where(own, **place)):
            continue
        balanced = where(own, method=BEST, mode="paper")
        after = f" and {cells.cell(balanced['all'])} with {BEST}" if len(balanced) else ""
        said.append(f"{cells.cell(own['all'][own.run == own.stage1_run])} % alone{after} ({how})")
    return [f"**Other ways to train it**, each with weight decay: {'; '.join(said)}."] if said else []


def what_helps(tuned: pd.DataFrame, naive: pd.Series, error: float) -> list[str]:
    """What the stages do to rare classes and to all, from rows by method; `error` is that of weight decay's gain."""
    wd, best = tuned.loc["WD"], tuned.loc[BEST]
    losses = {"plain cross-entropy": "CE", "the class-balanced loss": "CB"}
    by_loss = {words: tuned["all"][tuned.index.isin(of_loss(loss))] for words, loss in losses.items()}
    ends = [f"at {between(own)} % under {words}" for words, own in by_loss.items() if len(own)]
    return [
        f"**Rare classes.** Few-shot accuracy goes from {naive.few:.2f} % (naive) to {best.few:.2f} % ({BEST}, "
        f"tuned), accuracy over all classes from {naive['all']:.2f} to {best['all']:.2f} %. Against the network with "
        f"weight decay many-shot classes change by {best.many - wd.many:+.2f} points.",
        f"**Weight decay alone** takes all classes from {naive['all']:.2f} to {wd['all']:.2f} % "
        f"({wd['all'] - naive['all']:+.2f} ± {error:.2f} points), few-shot ones from {naive.few:.2f} to "
        f"{wd.few:.2f} %.",
        f"**The loss of the second stage.** With tuned values the classifier ends {', '.join(ends)}; normalised "
        f"without training at {tuned['all'].get('WD + L2norm', np.nan):.2f} (L2) and "
        f"{tuned['all'].get('WD + tau-norm', np.nan):.2f} % (tau).",
    ]


def what_max_norm_does(tuned: pd.DataFrame, rows: pd.DataFrame, folder: Path | None) -> list[str]:
    """What it adds to rows by method, and to their calibration."""
    pairs = {name: paper_tables.without_max_norm(name) for name in tuned.index if paper_tables.has_max_norm(name)}

    def error(name: str, plain: str) -> float:
        return paper_tables.error_of_gain(where(rows, method=plain), where(rows, method=name), folder)

    said = [
        f"{tuned['all'][name] - tuned['all'][plain]:+.2f} ± {error(name, plain):.2f} points to {plain} (ECE "
        f"{tuned.ece[plain]:.2f} to {tuned.ece[name]:.2f} %)"
        for name, plain in pairs.items()
        if plain in tuned.index and METHODS[name].layers == 1
    ]
    return [f"**MaxNorm.** With tuned values it adds {', '.join(said)}."]


def what_is_not_tuned(published: pd.DataFrame, released: pd.DataFrame) -> list[str]:
    """Where published values and the released code end, from rows by method; nothing where there are none."""
    lines = []
    if {"WD + tau-norm", BEST} <= {*published.index}:
        tau, decay = published.loc["WD + tau-norm"], published.loc[BEST]
        lines.append(
            f"**Published values on this network.** Tau {tau.tau:g} ends at {tau['all']:.2f} % (few-shot "
            f"{tau.few:.2f} %); weight decay {recipes.PUBLISHED_DECAY:g} takes {BEST} to {decay['all']:.2f} % "
            f"(few-shot {decay.few:.2f} %); there MaxNorm moves a row in {100 * decay.projected_share:.2f} % of the "
            "checks."
        )
    if BEST in released.index:
        row = released.loc[BEST]
        lines.append(
            f"**The released code**, whose loss is a mean over all classes: {BEST} ends at {row['all']:.2f} % "
            f"(few-shot {row.few:.2f} %); MaxNorm moves a row in {100 * row.projected_share:.2f} % of the checks."
        )
    return lines


def main(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: a file is absent, no or several networks were balanced, or the README has no place for the rows.
    """
    parser = Parser(prog="ltr headline", about=__doc__)
    parser.add_argument("results", type=file, help="a results.csv")
    parser.add_argument("comparison", type=file, nargs="?", help="a comparison.csv, for logit adjustment")
    parser.add_argument(
        "--stage1", nargs="+", help="first-stage runs, where several were balanced (default: that ship)"
    )
    parser.add_argument("--readme", type=file, help="a file whose rows are written anew")
    options = parser.parse_args(arguments)
    needs = [*paper_tables.SET, "stage1_weight_decay", "stage1_run", "method", "all"]
    comparison = None
    if options.comparison is not None:
        comparison = read_table(options.comparison, "comparison", [*needs, "hyper-parameters"])
    results = read_table(options.results, "results", [*needs, "selection", "tta", "mode", "run"])
    stage1 = options.stage1 or ()
    if not stage1 and len(networks(paper_tables.plain_rows(results))) > 1:
        stage1 = [path.parent.name for path in options.results.parent.glob(f"demo_1/*/{FEATURES}")]
    table = table_of(results, comparison, stage1)
    if options.readme is None:
        print(table.set_index("model").to_string())
        return
    if not options.readme.is_file():
        raise InputError(f"--readme: there is no file {options.readme}")
    made = {"headline": in_markdown(table)}
    made |= {each.__name__: each(results, stage1, options.results.parent) for each in (found, findings)}
    there = [name for name in made if block(name).search(options.readme.read_text("utf-8"))] or list(made)
    write_text(options.readme, replaced(options.readme, {name: made[name] for name in there}))

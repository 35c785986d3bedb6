"""The five rows that a reader sees first, and what all rows come to in sentences, from results.csv and comparison.csv:

    python -m ltr headline exp/results.csv exp/comparison.csv --readme README.md

Last epoch, plain test, tuned values; means where there are several seeds. Without `--readme` they are printed; a file
has places for the rows, `<!-- headline -->`, for the sentences, `<!-- findings -->`, or for both.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ltr import recipes
from ltr.errors import InputError
from ltr.methods import METHODS, of_loss
from ltr.metrics import percent, with_dashes
from ltr.runtime.options import Parser, file, whole
from ltr.runtime.storage import read_table, write_text
from ltr.study import published, report
from ltr.study.report import block, in_markdown, replaced, where

BEST = "CB + WD + MaxNorm"
ADJUSTED = "logit adjustment"
MEASURES = ("many", "medium", "few", "all", "ece")
PLACE = ["dataset", "imbalance_factor", "profile", "backbone", "stage1_epochs", "stage1_weight_decay"]
HEAD = ["model", "many", "medium", "few", "all", "ECE", "paper: all"]


def network(results: pd.DataFrame, epochs: int | None = None) -> dict[str, Any]:
    """The first stage that the rows are of: the only one whose classifier was balanced.

    Args:
        results: of results.csv, last epoch, plain.
        epochs: of the first stage; None for any.

    Raises:
        InputError: there is none, or there are several.
    """
    length = {} if epochs is None else {"stage1_epochs": epochs}
    balanced = where(results, method=BEST, mode="paper", **length)
    places = balanced[PLACE].drop_duplicates()
    if len(places) != 1:
        lengths = ", ".join(f"{value:g}" for value in places.stage1_epochs) or "none"
        raise InputError(f"--stage1-epochs: must choose one balanced network, there are {lengths}")
    return places.iloc[0].to_dict()


def line(title: str, rows: pd.DataFrame, paper: float = float("nan")) -> list[str]:
    """A row's cells: means over seeds, see `report.cell`, and the paper's accuracy."""
    figures = rows.rename(columns={"ECE": "ece"})
    return [title, *(report.cell(figures[name]) for name in MEASURES), percent(paper)]


def five_rows(results: pd.DataFrame, comparison: pd.DataFrame | None, epochs: int | None = None) -> list[list[str]]:
    """Naive, WD, tau-normalisation, logit adjustment, and the paper's own; those that are there.

    Args:
        results: of results.csv.
        comparison: of comparison.csv, which logit adjustment is in; None to go without.
        epochs: see `network`.
    """
    results = where(results, selection="last", tta="none")
    place = network(results, epochs)
    ours, decay = where(results, **place), place["stage1_weight_decay"]
    naive = where(results, **place | {"stage1_weight_decay": 0, "method": "naive"})
    tau = where(ours[ours["mode"].isna()], method="WD + tau-norm")
    best = where(ours, method=BEST, mode="paper")
    values = f"weight decay {best.weight_decay.mean():g}, radius {best.max_norm.mean():.2f}"
    named = {
        "naive": ("naive: cross-entropy without weight decay", naive),
        "WD": (f"WD: with weight decay {decay:g}", where(ours, method="WD")),
        "WD + tau-norm": (f"WD + tau-norm (tau {tau.tau.mean():g})", tau),
        BEST: (f"WD + CB & WD & MaxNorm ({values})", best),
    }
    lines = [line(title, rows, published.TABLE_1[method][-1]) for method, (title, rows) in named.items() if len(rows)]
    if comparison is not None:
        adjusted = where(comparison, **place, method=ADJUSTED)
        value = adjusted["hyper-parameters"].iloc[0] if len(adjusted) else ""
        lines[-1:-1] = [line(f"WD + {ADJUSTED} ({value})", adjusted)] if len(adjusted) else []
    return lines


def between(values: pd.Series) -> str:
    """The least and the largest, with two decimals."""
    return f"{values.min():.2f} to {values.max():.2f}"


def findings(results: pd.DataFrame, epochs: int | None = None) -> str:
    """What the rows on one first stage come to, a sentence each in Markdown; a dash for what is not there.

    Arguments as of `five_rows`.
    """
    place = network(where(results, selection="last", tta="none"), epochs)
    rows = report.headline(results)
    rows = rows.assign(mode=rows["mode"].fillna("paper"), chosen=rows["best"] - rows["all"])
    ours = where(rows, **place)
    modes = {mode: own.groupby("method").mean(numeric_only=True) for mode, own in ours.groupby("mode")}
    tuned = modes["paper"]
    naive = where(rows, **place | {"stage1_weight_decay": 0, "method": "naive"}).mean(numeric_only=True)
    lines = [*what_helps(tuned, naive), *what_max_norm_does(tuned)]
    lines += what_is_not_tuned(*(modes.get(name, tuned[:0]) for name in ("published", "released")))
    mirrored, most = between(ours.flip - ours["all"]), ours.loc[ours.chosen.idxmax()]
    lines.append(
        f"**The way of counting.** Mirrored test images add {mirrored} points, to choose the epoch on the test "
        f"set up to {most.chosen:.2f}: {most.method} ({report.SETTINGS[most['mode']]}) ends at {most['all']:.2f} %."
    )
    return with_dashes("".join(f"- {line}\n" for line in lines))


def what_helps(tuned: pd.DataFrame, naive: pd.Series) -> list[str]:
    """What the stages do to rare classes and to all, from rows by method."""
    wd, best, (ce, cb) = tuned.loc["WD"], tuned.loc[BEST], (tuned[tuned.index.isin(of_loss(x))] for x in ("CE", "CB"))
    return [
        f"**Rare classes.** Few-shot accuracy goes from {naive.few:.2f} % (naive) to {best.few:.2f} % ({BEST}, "
        f"tuned), accuracy over all classes from {naive['all']:.2f} to {best['all']:.2f} %. Against the network with "
        f"weight decay many-shot classes change by {best.many - wd.many:+.2f} points.",
        f"**Weight decay alone** takes all classes from {naive['all']:.2f} to {wd['all']:.2f} %, "
        f"few-shot ones from {naive.few:.2f} to {wd.few:.2f} %.",
        f"**The loss of the second stage.** With tuned values the classifier ends at {between(ce['all'])} % under "
        f"plain cross-entropy, at {between(cb['all'])} % under the class-balanced loss; normalised without training at "
        f"{tuned['all'].get('WD + L2norm', np.nan):.2f} (L2) and {tuned['all'].get('WD + tau-norm', np.nan):.2f} % "
        "(tau).",
    ]


def what_max_norm_does(tuned: pd.DataFrame) -> list[str]:
    """What it adds to rows by method, and to their calibration."""
    pairs = {name: report.without_max_norm(name) for name in tuned.index if report.has_max_norm(name)}
    said = [
        f"{tuned['all'][name] - tuned['all'][plain]:+.2f} points to {plain} (ECE {tuned.ece[plain]:.2f} to "
        f"{tuned.ece[name]:.2f} %)"
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
            f"(few-shot {decay.few:.2f} %); there MaxNorm moves a row in {100 * decay.max_norm_fired:.2f} % of the "
            "checks."
        )
    if BEST in released.index:
        row = released.loc[BEST]
        lines.append(
            f"**The released code**, whose loss is a mean over all classes: {BEST} ends at {row['all']:.2f} % "
            f"(few-shot {row.few:.2f} %); MaxNorm moves a row in {100 * row.max_norm_fired:.2f} % of the checks."
        )
    return lines


def main(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: a file is absent, no or several networks were balanced, or the README has no place for the rows.
    """
    parser = Parser(prog="ltr headline", description=__doc__.splitlines()[0])
    parser.add_argument("results", type=file, help="a results.csv")
    parser.add_argument("comparison", type=file, nargs="?", help="a comparison.csv, for logit adjustment")
    parser.add_argument("--stage1-epochs", type=whole, help="of the first stage, where several were balanced")
    parser.add_argument("--readme", type=file, help="a file whose rows are written anew")
    options = parser.parse_args(arguments)
    for path in filter(None, (options.results, options.comparison)):
        if not path.is_file():
            raise InputError(f"results: there is no file {path}")
    needs, comparison = [*PLACE, "method", "all"], None
    if options.comparison is not None:
        comparison = read_table(options.comparison, "comparison", [*needs, "hyper-parameters"])
    results = read_table(options.results, "results", [*needs, "selection", "tta", "mode"])
    rows = five_rows(results, comparison, options.stage1_epochs)
    table = pd.DataFrame(rows, columns=HEAD)
    if options.readme is None:
        print(table.set_index("model").to_string())
        return
    if not options.readme.is_file():
        raise InputError(f"--readme: there is no file {options.readme}")
    made = {"headline": in_markdown(table), "findings": findings(results, options.stage1_epochs)}
    there = [name for name in made if block(name).search(options.readme.read_text("utf-8"))] or list(made)
    write_text(options.readme, replaced(options.readme, {name: made[name] for name in there}))

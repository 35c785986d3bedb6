"""The five rows that a reader sees first, from results.csv and comparison.csv:

    python -m ltr headline exp/results.csv exp/comparison.csv --readme README.md

Last epoch, plain test, tuned values; means where there are several seeds. Without `--readme` they are printed.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ltr.errors import InputError
from ltr.metrics import percent
from ltr.runtime.options import Parser, file, whole
from ltr.runtime.storage import read_table, write_text
from ltr.study import published
from ltr.study.report import in_markdown, replaced, where

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
    """A row's cells: means over seeds, and the paper's accuracy."""
    figures = rows.rename(columns={"ECE": "ece"})
    return [title, *(percent(figures[name].mean()) for name in MEASURES), percent(paper)]


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
        if not path.exists():
            raise InputError(f"results: there is no file {path}")
    needs, comparison = [*PLACE, "method", "all"], None
    if options.comparison is not None:
        comparison = read_table(options.comparison, "comparison", [*needs, "hyper-parameters"])
    results = read_table(options.results, "results", [*needs, "selection", "tta", "mode"])
    rows = five_rows(results, comparison, options.stage1_epochs)
    table = pd.DataFrame(rows, columns=HEAD)
    if options.readme is None:
        print(table.set_index("model").to_string())
    else:
        write_text(options.readme, replaced(options.readme, {"headline": in_markdown(table)}))

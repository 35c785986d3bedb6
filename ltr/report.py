"""Tables from results.csv: `python -m ltr.report exp/results.csv [--readme README.md]`.

Without `--readme` the table is printed. With it, the part of the file between `<!-- results -->` and
`<!-- /results -->` is written anew, so that every figure in the README is a row of results.csv.
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from ltr import InputError, metrics
from ltr.settings import one_line
from ltr.storage import write_text

SET = ["dataset", "imbalance_factor", "profile", "backbone", "stage1_epochs"]
MODEL = ["stage1_weight_decay", "method", "mode", "loss", "weight_decay", "max_norm_every", "radius", "tau"]
FIGURES = ["many", "medium", "few", "all", "ece"]
BLOCK = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)
PAPER = {  # Table 1 of the paper, all, top-1 % (CIFAR100-LT, imbalance factor 100, ResNet-34)
    "naive": 38.38,
    "WD": 46.08,
    "WD + L2norm": 49.60,
    "WD + tau-norm": 51.31,
    "CB": 47.09,
    "CB + WD": 52.42,
    "CB + MaxNorm": 50.20,
    "CB + WD + MaxNorm": 53.35,
}


def cell(values: pd.Series) -> str:
    """Mean over seeds in percent, with the deviation where there are several."""
    text = metrics.percent(values.mean())
    return f"{text} ± {values.std():.2f}" if len(values) > 1 and not np.isnan(values.mean()) else text


def number(value: float) -> str:
    """A setting in short, empty where the model has none."""
    return "" if pd.isna(value) else f"{value:.3g}"


def model_rows(rows: pd.DataFrame) -> list[list[str]]:
    """A row of text a model, in the order of the paper's Table 1; means over seeds.

    Models of other settings are other models. Where one seed still comes twice (settings that results.csv has
    no column for), each run has a row of its own, named by its folder's last word.
    """
    position = rows.method.map({method: i for i, method in enumerate(PAPER)}).fillna(len(PAPER))
    radius = rows.max_norm.where(rows["mode"] != "released")  # the released radius is relative: another for each seed
    rows = rows.assign(mode=rows["mode"].astype(object).fillna(""), position=position, radius=radius)
    rows = rows.sort_values(["mode", "position"], kind="stable")
    lines = []
    for (weight_decay, method, mode, *_), group in rows.groupby(MODEL, sort=False, dropna=False):
        name = f"{method} ({mode})" if mode else method
        twice = group.seed.duplicated().any()
        parts = [(f"{name} {run.rsplit('-', 1)[1]}", part) for run, part in group.groupby("run")] if twice else []
        for title, part in parts or [(name, group)]:
            fired = "" if part.max_norm_fired.isna().all() else f"{100 * part.max_norm_fired.mean():.1f}"
            second = [number(part.weight_decay.mean()), number(part.max_norm.mean())]
            figures = [cell(part[figure]) for figure in FIGURES]
            lines.append([title, number(weight_decay), *second, *figures, fired, str(part.seed.nunique())])
    return lines


def markdown(results: pd.DataFrame) -> str:
    """One table a data set and network; last epoch, plain test.

    Args:
        results: the columns of `runs.COLUMNS`.
    """
    shown = results[(results.selection == "last") & (results.tta == "none")]
    parts = []
    for (dataset, factor, profile, backbone, epochs), rows in shown.groupby(SET):
        devices = ", ".join(sorted(rows.device.unique()))
        versions = ", ".join(sorted(rows.torch.astype(str).unique()))
        head = ["model", "stage-1 WD", "stage-2 WD", "radius", *FIGURES[:-1], "ECE", "MaxNorm fired", "seeds"]
        published = (dataset, factor, profile) == ("cifar100", 100, "exp")
        lines = model_rows(rows)
        if published:
            head.append("paper (ResNet-34), all")
            for line in lines:
                line.append(metrics.percent(PAPER.get(line[0].split(" (")[0], float("nan"))))
        parts.append(
            f"**{dataset}, imbalance factor {factor:g} ({profile}), {backbone}, {epochs} epochs** · last epoch, plain "
            f"test, in % · {devices} · torch {versions}\n\n"
            + "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])
        )
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """The command line.

    Raises:
        InputError: a file is absent, or the README has no place for the tables.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="a results.csv")
    parser.add_argument("--readme", type=Path, help="a file whose tables are written anew")
    options = parser.parse_args(arguments)
    if not options.results.exists():
        raise InputError(f"results: there is no file {options.results}")
    text = markdown(pd.read_csv(options.results, dtype={"torch": str}))
    if options.readme is None:
        print(text)
        return
    old = options.readme.read_text("utf-8")
    if not BLOCK.search(old):
        raise InputError(f"--readme: {options.readme} has no <!-- results --> ... <!-- /results -->")
    write_text(options.readme, BLOCK.sub(lambda found: f"{found[1]}{text}{found[2]}", old))


if __name__ == "__main__":
    sys.excepthook = one_line
    main()

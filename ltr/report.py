"""Tables of results, benchmarks and comparisons: `python -m ltr.report exp/results.csv [--readme README.md]`.

Without `--readme` a file's tables are printed. With it, the part of the README between `<!-- results -->` and
`<!-- /results -->` (the file's name; `table-1` too) is written anew, so that every figure there is a row of the file.
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from ltr import InputError, metrics
from ltr.process import one_line
from ltr.storage import write_text

SET = ["dataset", "imbalance_factor", "profile", "backbone", "stage1_epochs"]
MODEL = ["stage1_weight_decay", "method", "mode", "loss", "weight_decay", "max_norm_every", "radius", "tau"]
FIGURES = ["many", "medium", "few", "all", "ece"]
PAPER = {  # Table 1 of the paper, all, top-1 % (CIFAR100-LT, imbalance factor 100, ResNet-34)
    "naive": 38.38,
    "naive + tau-norm": 42.00,
    "WD": 46.08,
    "WD + tau-norm": 51.31,
    "WD + L2norm": 49.60,
    "CE + L2norm": 49.87,
    "CE + WD": 47.22,
    "CE + MaxNorm": 47.95,
    "CE + WD + MaxNorm": 47.83,
    "CB": 47.09,
    "CB + L2norm": 50.10,
    "CB + WD": 52.42,
    "CB + MaxNorm": 50.20,
    "CB + stage-1 WD + MaxNorm": 50.24,
    "CB + WD + MaxNorm": 53.35,
    "last 2 layers, CB + WD + MaxNorm": 53.55,
    "last 5 layers, CB + WD + MaxNorm": 51.45,
}
NETWORKS = {"resnet32": "narrow ResNet-32", "resnet32-wide": "wide ResNet-32", "resnet34": "ResNet-34"}
NOT_MEASURED = "not measured"


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
            counted = "MaxNorm" in method and part.max_norm_fired.notna().any()
            fired = f"{100 * part.max_norm_fired.mean():.1f}" if counted else ""
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


def variants(rows: pd.DataFrame) -> str:
    """Accuracy over all classes of a method; of each of its settings where it was run with several."""
    settings = ["stage1_weight_decay", "loss", "weight_decay", "max_norm", "tau"]
    return " / ".join(cell(group["all"]) for _, group in rows.groupby(settings, dropna=False))


def table_1(results: pd.DataFrame, factor: float = 100) -> str:
    """The paper's Table 1 beside ours: a row a model, a column a network, the paper's mode; last epoch, plain test.

    Args:
        results: the columns of `runs.COLUMNS`. Of several lengths of training the longest counts.
        factor: the imbalance factor.

    Returns:
        nothing where no row is of CIFAR100-LT.
    """
    rows = results[(results.selection == "last") & (results.tta == "none") & (results["mode"] != "released")]
    rows = rows[(rows.dataset == "cifar100") & (rows.imbalance_factor == factor) & (rows.profile == "exp")]
    head, columns = ["model", "paper (ResNet-34, best epoch on the test set)"], []
    for backbone, name in NETWORKS.items():
        own = rows[rows.backbone == backbone]
        own = own[own.stage1_epochs == own.stage1_epochs.max()]
        seeds = f", {own.stage1_epochs.max():.0f} epochs, {own.seed.nunique()} seed(s)" if len(own) else ""
        head.append(name + seeds)
        columns.append({method: variants(group) for method, group in own.groupby("method")})
    if not any(columns):
        return ""
    lines = [head, ["---"] * len(head)]
    for method, published in PAPER.items():
        ours = [column.get(method, NOT_MEASURED) for column in columns]
        lines.append([method, metrics.percent(published), *ours])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def max_norm_gains(results: pd.DataFrame, run: str) -> pd.DataFrame:
    """What MaxNorm adds at the same loss and weight decay, seed by seed, for the images and first stage of a run.

    Args:
        results: the columns of `runs.COLUMNS`.
        run: its folder's name.

    Returns:
        a row a model with MaxNorm as text: its radius, when it projects and how often it fired, accuracy over all
        classes with and without it (last epoch, plain test, percent, means over seeds), and the mean and deviation
        of the gain. Models whose counterpart without MaxNorm is not there have no row.
    """
    rows = results[(results.selection == "last") & (results.tta == "none")]
    same = [*SET, "stage1_weight_decay"]
    rows = rows[(rows[same] == rows.loc[rows.run == run, same].iloc[0]).all(axis=1)]
    limited = rows[rows.method.str.endswith("+ MaxNorm")]
    limited = limited.assign(model=limited.method, method=limited.method.str.removesuffix(" + MaxNorm"))
    pairs = limited.merge(rows, on=["method", "mode", "loss", "weight_decay", "seed"], suffixes=("", " without"))
    pairs["gain"] = pairs["all"] - pairs["all without"]
    lines = []
    for (mode, model), each in pairs.groupby(["mode", "model"]):
        line = {"model": f"{model} ({mode})", "radius": f"{each.max_norm.mean():.3f}"}
        line["projected"] = f"after each {each.max_norm_every.iloc[0]}"
        line["fired (% of checks)"] = metrics.percent(100 * each.max_norm_fired.mean())
        line["all, with"], line["all, without"] = (metrics.percent(each[n].mean()) for n in ("all", "all without"))
        line["gain"], line["± seeds"] = f"{each.gain.mean():+.2f}", metrics.percent(each.gain.std())
        lines.append(line | {"seeds": each.seed.nunique()})
    return pd.DataFrame(lines)


def rounded(value: str) -> str:
    """A measured figure to three digits; other words as they are."""
    try:
        return f"{float(value):,.3g}" if abs(float(value)) < 1000 else f"{float(value):,.0f}"
    except ValueError:
        return value


def benchmark_markdown(benchmarks: pd.DataFrame) -> str:
    """One table of all measured work, and of what still waits for its device.

    Args:
        benchmarks: the columns of `bench.COLUMNS`, as text.
    """
    names = {
        "reference_s": "reference (s)",
        "ours_s": "ours (s)",
        "ratio": "ratio",
        "floor_share": "share of the floor",
    }
    names |= {"peak_mb": "peak (MB)", "device": "device", "torch": "torch"}
    shown = benchmarks[["what", "backbone", "images", "precision", *names]].rename(columns=names)
    for name in [*names.values()][:5]:
        shown[name] = shown[name].map(rounded)
    lines = [shown.columns, ["---"] * shown.shape[1], *shown.itertuples(index=False)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def comparison_markdown(table: pd.DataFrame) -> str:
    """Every method of a comparison, the measured ones first by their accuracy; one table a network.

    Args:
        table: what `compare.assemble` gives.
    """
    figures, parts = ["many", "medium", "few", "all", "ECE", "forward 50", "backward 50", "published"], []
    for (dataset, factor, backbone, epochs), rows in table.groupby(
        ["dataset", "imbalance_factor", "backbone", "stage1_epochs"]
    ):
        rows = rows.sort_values("all", ascending=False, kind="stable")
        shown = rows[["method", "hyper-parameters", *figures, "source"]].fillna({"hyper-parameters": "", "source": ""})
        for name in figures:
            shown[name] = shown[name].map(metrics.percent)
        tuned, seeds = rows.tuned_on.dropna().iloc[0], rows.seed.nunique()
        lines = [shown.columns, ["---"] * shown.shape[1], *shown.itertuples(index=False)]
        parts.append(
            f"**{dataset}, imbalance factor {factor:g}, {backbone}, {epochs} epochs** · last epoch, plain test, in % · "
            f"{seeds} seed(s) · tuned on {tuned}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)
        )
    return "\n\n".join(parts) + "\n"


def tables(path: Path) -> dict[str, str]:
    """The Markdown of a file by its place in the README; its columns say which kind of file it is.

    Raises:
        InputError: there is no such file.
    """
    if not path.exists():
        raise InputError(f"results: there is no file {path}")
    text = pd.read_csv(path, dtype=str, keep_default_na=False)
    if "ours_s" in text:
        return {path.stem: benchmark_markdown(text)}
    if "published" in text:
        return {path.stem: comparison_markdown(pd.read_csv(path))}
    results = pd.read_csv(path, dtype={"torch": str})
    return {"table-1": table_1(results), path.stem: markdown(results)}


def block(name: str) -> re.Pattern:
    """The part of a README that holds the table of a file."""
    return re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)


def main(arguments: list[str] | None = None) -> None:
    """The command line.

    Raises:
        InputError: a file is absent, or the README has no place for its table.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="a results.csv or a benchmarks.csv")
    parser.add_argument("--readme", type=Path, help="a file whose tables are written anew")
    options = parser.parse_args(arguments)
    made = {name: text for path in options.results for name, text in tables(path).items()}
    if options.readme is None:
        print("\n".join(filter(None, made.values())))
        return
    readme = options.readme.read_text("utf-8")
    for name, text in made.items():
        if not block(name).search(readme):
            raise InputError(f"--readme: {options.readme} has no <!-- {name} --> ... <!-- /{name} -->")
        readme = block(name).sub(lambda found, text=text: f"{found[1]}{text}{found[2]}", readme)
    write_text(options.readme, readme)


if __name__ == "__main__":
    sys.excepthook = one_line
    main()

"""Tables of results, benchmarks and comparisons: `python -m ltr report exp/results.csv [--readme README.md]`.

Without `--readme` a file's tables are printed. With it, the part of the README between `<!-- results -->` and
`<!-- /results -->` (the file's name; `table-1`, `table-2`, `released` and `max-norm` too) is written anew, so that
every figure there is a row of the file.
"""

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ltr import metrics, recipes
from ltr.errors import InputError
from ltr.runtime.storage import write_text
from ltr.study import published

SET = ["dataset", "imbalance_factor", "profile", "backbone", "stage1_epochs"]
MODEL = ["stage1_weight_decay", "method", "mode", "loss", "weight_decay", "max_norm_every", "radius", "tau"]
FIGURES = ["many", "medium", "few", "all", "flip", "best", "both", "ece"]
# Rows of Table 1 without a value that the paper's mode tunes: published and tuned are the same model.
UNTUNED = ("naive", "WD", "WD + L2norm", "CE + L2norm", "CB", "CB + L2norm")
LEARNED = tuple(method for method in published.TABLE_1 if method.startswith(("CE", "CB", "last")))
NETWORKS = {"resnet32": "narrow ResNet-32", "resnet32-wide": "wide ResNet-32", "resnet34": "ResNet-34"}
NOT_MEASURED = "not measured"


def cell(values: pd.Series) -> str:
    """Mean over seeds in percent, with the deviation where there are several."""
    text = metrics.percent(values.mean())
    return f"{text} ± {values.std():.2f}" if len(values) > 1 and not np.isnan(values.mean()) else text


def headline(results: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last epoch and plain test; beside them accuracy over all classes counted in the other ways.

    Returns:
        `flip` (logits averaged with the mirrored image), `best` (best epoch on the test set) and `both` as columns.
    """
    ways = {"flip": ("last", "flip"), "best": ("best_test", "none"), "both": ("best_test", "flip")}
    shown = results[(results.selection == "last") & (results.tta == "none")]
    for name, (selection, tta) in ways.items():
        other = results[(results.selection == selection) & (results.tta == tta)]
        shown = shown.assign(**{name: shown.run.map(other.drop_duplicates("run").set_index("run")["all"])})
    return shown


def in_markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table; the first line is its head."""
    head, *rest = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rest)) + "\n"


def joined(figures: Iterable[float]) -> str:
    """Percentages in one cell."""
    return " / ".join(metrics.percent(figure) for figure in figures)


def number(value: float) -> str:
    """A setting in short, empty where the model has none."""
    return "" if pd.isna(value) else f"{value:.3g}"


def model_rows(rows: pd.DataFrame) -> list[list[str]]:
    """A row of text a model, in the order of the paper's Table 1; means over seeds.

    Models of other settings are other models. Where one seed still comes twice (settings that results.csv has
    no column for), each run has a row of its own, named by its folder's last word.
    """
    order = {method: i for i, method in enumerate(published.TABLE_1)}
    position = rows.method.map(order).fillna(len(order))
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
    parts = []
    for (dataset, factor, profile, backbone, epochs), rows in headline(results).groupby(SET):
        devices = ", ".join(sorted(rows.device.unique()))
        versions = ", ".join(sorted(rows.torch.astype(str).unique()))
        head = ["model", "stage-1 WD", "stage-2 WD", "radius", *FIGURES[:-1], "ECE", "MaxNorm fired", "seeds"]
        lines = model_rows(rows)
        if (dataset, factor, profile) == ("cifar100", 100, "exp"):
            head.append("paper (ResNet-34): many / medium / few / all")
            for line in lines:
                line.append(joined(published.TABLE_1.get(line[0].split(" (")[0], ())))
        parts.append(
            f"**{dataset}, imbalance factor {factor:g} ({profile}), {backbone}, {epochs} epochs** · last epoch, plain "
            "test, in %; `flip`, `best`, `both`: all classes, with mirrored images, of the best epoch on the test set, "
            f"both · {devices} · torch {versions}\n\n{in_markdown([head, *lines])}"
        )
    return "\n".join(parts)


def variants(rows: pd.DataFrame, figure: str = "all") -> str:
    """A figure of a method; of each of its settings where it was run with several. Nothing where it was not run."""
    settings = ["stage1_weight_decay", "loss", "weight_decay", "max_norm", "tau"]
    rows = rows.assign(max_norm=rows.max_norm.where(rows["mode"] != "released"))  # relative: another for each seed
    return " / ".join(cell(group[figure]) for _, group in rows.groupby(settings, dropna=False)) or NOT_MEASURED


def measured(results: pd.DataFrame, factor: float, backbone: str) -> pd.DataFrame:
    """The headline rows of CIFAR100-LT for a network; of several lengths of training the longest."""
    rows = headline(results)
    rows = rows[(rows.dataset == "cifar100") & (rows.imbalance_factor == factor) & (rows.profile == "exp")]
    rows = rows[rows.backbone == backbone]
    rows = rows[rows.stage1_epochs == rows.stage1_epochs.max()]
    return rows.assign(mode=rows["mode"].astype(object).fillna("paper"))


def protocol(rows: pd.DataFrame) -> str:
    """Length of training and number of seeds."""
    return f"{rows.stage1_epochs.max():.0f} epochs, {seeds(rows)}"


def seeds(rows: pd.DataFrame) -> str:
    """Their number in words."""
    number = rows.seed.nunique()
    return f"{number} seed{'s' * (number != 1)}"


def table_1_cell(rows: pd.DataFrame, method: str, mode: str) -> str:
    """Accuracy of a method in a mode; empty where the mode changes nothing about it."""
    if (mode == "published" and method in UNTUNED) or (mode == "released" and method not in LEARNED):
        return ""
    own = rows[rows.method == method]
    tuned, own = own[own["mode"] == "paper"], own[own["mode"] == mode]
    chosen = tuned.weight_decay.eq(recipes.PUBLISHED_DECAY) | tuned.tau.eq(recipes.PUBLISHED_TAU.get(method, np.nan))
    alike = mode == "published" and "MaxNorm" not in method and chosen.any()
    return "" if alike and own.empty else variants(own)


def table_1(results: pd.DataFrame, factor: float = 100) -> str:
    """The paper's Table 1 beside ours: a row a model; for each network the paper's mode with tuned and with
    published values, and the released mode. Last epoch, plain test.

    Args:
        results: the columns of `runs.COLUMNS`. Of several lengths of training the longest counts.
        factor: the imbalance factor.

    Returns:
        nothing where no row is of CIFAR100-LT.
    """
    head = ["model", "paper (ResNet-34, best epoch on the test set)"]
    lines = [[method, metrics.percent(figures[-1])] for method, figures in published.TABLE_1.items()]
    for backbone, name in NETWORKS.items():
        rows = measured(results, factor, backbone)
        modes = ("paper", "published", "released") if len(rows) else ("paper",)
        words = f", {protocol(rows)}: tuned", ": published values", ": released mode"
        head += [name + each for each in words] if len(rows) else [name]
        for line in lines:
            line += [table_1_cell(rows, line[0], mode) for mode in modes]
    return in_markdown([head, *lines]) if len(head) > 2 + len(NETWORKS) else ""


def table_2(results: pd.DataFrame) -> str:
    """The paper's Table 2 beside ours: accuracy at three imbalance factors in a cell, in the paper's mode, tuned.

    Args:
        results: see `table_1`.

    Returns:
        nothing where no row is of CIFAR100-LT.
    """
    factors = " / ".join(map(str, published.FACTORS))
    head, lines = ["model", f"paper (ResNet-34), imbalance factor {factors}"], []
    found = {backbone: [measured(results, factor, backbone) for factor in published.FACTORS] for backbone in NETWORKS}
    for backbone, parts in found.items():
        lengths = ", ".join(dict.fromkeys(protocol(rows) for rows in parts if len(rows)))
        head.append(NETWORKS[backbone] + f", {lengths}" * bool(lengths))
    for method, figures in published.TABLE_2.items():
        line = [method, joined(figures)]
        for parts in found.values():
            cells = [table_1_cell(rows, method, "paper") for rows in parts]
            line.append(NOT_MEASURED if set(cells) == {NOT_MEASURED} else " / ".join(cells))
        lines.append(line)
    return in_markdown([head, *lines]) if any(map(len, sum(found.values(), []))) else ""


def as_released(rows: pd.DataFrame, method: str) -> pd.DataFrame:
    """Rows of a method with the released notebooks' values."""
    own = rows[rows.method == method]
    if method in recipes.PUBLISHED_TAU:
        return own[own.tau == recipes.PUBLISHED_TAU[method]]
    return own[own["mode"] == ("released" if method in LEARNED else "paper")]


def table_of_released(results: pd.DataFrame) -> str:
    """What the released notebooks print beside ours, in their protocol and in their mode.

    Args:
        results: see `table_1`.

    Returns:
        nothing where no row is of CIFAR100-LT at imbalance factor 100.
    """
    printed, logged = "many / medium / few / all, flip, best epoch on the test set", "all, plain, last epoch"
    head = ["model", f"released notebooks (ResNet-34, 320 epochs): {printed}", f"their logs: {logged}"]
    lines = [
        [method, " / ".join(map(str, figures)), metrics.percent(last)]
        for method, (figures, last) in published.RELEASED.items()
    ]
    counted = results[(results.selection == "best_test") & (results.tta == "flip")].set_index("run")
    for backbone, name in NETWORKS.items():
        rows = measured(results, 100, backbone)
        head += [f"{name}, {protocol(rows)}: {printed}", f"{name}: {logged}"] if len(rows) else [name]
        theirs = counted.reindex(rows.run)
        rows = rows.assign(**{f"{group} both": theirs[group].to_numpy() for group in metrics.GROUPS})
        for line in lines:
            own = as_released(rows, line[0])
            groups = [variants(own, figure) for figure in (*(f"{group} both" for group in metrics.GROUPS), "both")]
            line += [" / ".join(groups), variants(own)] if len(own) else [NOT_MEASURED] * (1 + bool(len(rows)))
    return in_markdown([head, *lines]) if len(head) > 3 + len(NETWORKS) else ""


def counting_gains(results: pd.DataFrame, runs: Sequence[str]) -> pd.DataFrame:
    """What the ways of counting add to the headline, in points over all classes, as text.

    Args:
        results: the columns of `runs.COLUMNS`.
        runs: names of the folders of the models that count.

    Returns:
        a row a way: mean, least and most over the models.
    """
    rows = headline(results[results.run.isin(runs)])
    names = {"flip": "mirrored images", "best": "best epoch on the test set", "both": "both"}
    gains = rows[[*names]].sub(rows["all"], axis=0).rename(columns=names)
    return gains.agg(["mean", "min", "max"]).T.map("{:+.2f}".format)


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
    tuned = rows[rows["mode"] == "paper"]  # what published values leave alone stands there once, as tuned
    keys = ["method", "mode", "loss", "weight_decay", "seed"]
    plain = pd.concat([rows, tuned.assign(mode="published")]).drop_duplicates(keys)
    pairs = limited.merge(plain, on=keys, suffixes=("", " without"))
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


def max_norm_table(results: pd.DataFrame) -> str:
    """`max_norm_gains` of every measured network on CIFAR100-LT, imbalance factor 100.

    Args:
        results: the columns of `runs.COLUMNS`.
    """
    parts = []
    for backbone, name in NETWORKS.items():
        rows = measured(results, 100, backbone)
        limited = rows[rows.method.str.endswith("+ MaxNorm")]
        if len(limited):
            gains = max_norm_gains(results, limited.run.iloc[0]).astype(str)
            table = in_markdown([[*gains.columns], *gains.to_numpy().tolist()])
            parts.append(f"**{name}, {protocol(rows)}**\n\n{table}")
    return "\n".join(parts)


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
    return in_markdown([shown.columns, *shown.itertuples(index=False)])


def comparison_part(rows: pd.DataFrame) -> str:
    """The methods on one first stage under its protocol, the best first."""
    first, rows = rows.iloc[0], rows.sort_values("all", ascending=False, kind="stable")
    figures = ["many", "medium", "few", "all", "ECE", "forward 50", "backward 50", "published"]
    shown = rows[["method", "hyper-parameters", *figures, "source"]].fillna({"hyper-parameters": "", "source": ""})
    for name in figures:
        shown[name] = shown[name].map(metrics.percent)
    body = in_markdown([shown.columns, *shown.itertuples(index=False)])
    return (
        f"**{first.dataset}, imbalance factor {first.imbalance_factor:g}, {first.backbone}, {first.stage1_epochs} "
        f"epochs, stage-1 weight decay {first.stage1_weight_decay:g}** · last epoch, plain test, in % · "
        f"{seeds(rows)} · tuned on {rows.tuned_on.dropna().iloc[0]}\n\n{body}"
    )


def comparison_markdown(table: pd.DataFrame) -> str:
    """Every method of a comparison, the measured ones first by their accuracy; one table a first stage.

    Args:
        table: what `compare.assemble` gives, read from its file. What is not measured has no first stage, and stands in
            the first table of a network alone.
    """
    parts = []
    for _, network in table.groupby(["dataset", "imbalance_factor", "profile", "backbone", "stage1_epochs"]):
        stages = [rows for _, rows in network.groupby("stage1_weight_decay")][::-1]
        parts += [stages[0], *(rows[rows["first stage"].notna()] for rows in stages[1:])]
    return "\n".join(map(comparison_part, parts))


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
    made = {"table-1": table_1(results), "table-2": table_2(results), "released": table_of_released(results)}
    return made | {"max-norm": max_norm_table(results), path.stem: markdown(results)}


def block(name: str) -> re.Pattern:
    """The part of a README that holds the table of a file."""
    return re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)


def main(arguments: list[str] | None = None) -> None:
    """The command line.

    Raises:
        InputError: a file is absent, or the README has no place for its table.
    """
    parser = argparse.ArgumentParser(prog="ltr report", description=__doc__.splitlines()[0])
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

"""Tables of results, benchmarks and comparisons: `python -m ltr report exp/results.csv [--readme README.md]`.

Without `--readme` a file's tables are printed. With it, the part of the README between `<!-- results -->` and
`<!-- /results -->` (the file's name; `table-1`, `table-2`, `released` and `max-norm` too) is written anew, so that
every number there is one of the file.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ltr import metrics, recipes
from ltr.errors import InputError
from ltr.methods import METHODS
from ltr.runtime.options import Parser
from ltr.runtime.storage import read_table, write_text
from ltr.study import published

SET = ["dataset", "imbalance_factor", "profile", "backbone", "stage1_epochs"]
MODEL = ["stage1_weight_decay", "method", "mode", "loss", "weight_decay", "max_norm_every", "radius", "tau"]
MEASURES = ["many", "medium", "few", "all", "flip", "best", "both", "ece"]
COMPARED = ["many", "medium", "few", "all", "ECE", "forward 50", "backward 50", "published"]
NETWORKS = {"resnet32": "narrow ResNet-32", "resnet32-wide": "wide ResNet-32", "resnet34": "ResNet-34"}
NOT_MEASURED = "not measured"


# ---- cells


def or_dash(value: float, form: str) -> str:
    """A number in a format, or an en dash where there is none."""
    return "–" if pd.isna(value) else format(value, form)


def cell(values: pd.Series) -> str:
    """Mean over seeds in percent, with the deviation where there are several.

    Seeds without a number (training diverged) are left out, and the cell says of how many it is the mean.
    """
    known = values.dropna()
    text = metrics.percent(known.mean())
    if len(known) > 1:
        text += f" ± {known.std():.2f}"
    if 0 < len(known) < len(values):
        text += f" ({len(known)} of {len(values)} seeds)"
    return text


def joined(values: Iterable[float]) -> str:
    """Percentages in one cell."""
    return " / ".join(metrics.percent(value) for value in values)


def number(value: float) -> str:
    """A setting in short, empty where the model has none."""
    return "" if pd.isna(value) else f"{value:.3g}"


def seeds(rows: pd.DataFrame) -> str:
    """Their number in words."""
    count = rows.seed.nunique()
    return "1 seed" if count == 1 else f"{count} seeds"


def in_markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table; the first line is its head."""
    head, *rest = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rest)) + "\n"


# ---- all models of results.csv


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


def has_max_norm(method: str) -> bool:
    """Whether a row learns under MaxNorm."""
    return method in METHODS and METHODS[method].constraint == "MaxNorm"


def models_of(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Title and rows of each model, in the order of the paper's Table 1.

    Models of other settings are other models. Where one seed still comes twice (settings that results.csv has
    no column for), each run is a model of its own, named by its folder's last word.
    """
    order = {method: i for i, method in enumerate(published.TABLE_1)}
    position = rows.method.map(order).fillna(len(order))
    radius = rows.max_norm.where(rows["mode"] != "released")  # the released radius is relative: another for each seed
    rows = rows.assign(mode=rows["mode"].astype(object).fillna(""), position=position, radius=radius)
    rows = rows.sort_values(["mode", "position"], kind="stable")
    for (_, method, mode, *_), model in rows.groupby(MODEL, sort=False, dropna=False):
        title = f"{method} ({mode})" if mode else method
        if not model.seed.duplicated().any():
            yield title, model
            continue
        for run, own in model.groupby("run"):
            yield f"{title} {run.rsplit('-', 1)[-1]}", own


def model_line(title: str, rows: pd.DataFrame) -> list[str]:
    """A model's cells; means over its seeds."""
    fired = ""
    if has_max_norm(rows.method.iloc[0]) and rows.max_norm_fired.notna().any():
        fired = f"{100 * rows.max_norm_fired.mean():.1f}"
    settings = [rows.stage1_weight_decay.iloc[0], rows.weight_decay.mean(), rows.max_norm.mean()]
    return [title, *map(number, settings), *(cell(rows[name]) for name in MEASURES), fired, str(rows.seed.nunique())]


def set_part(place: tuple[Any, ...], rows: pd.DataFrame) -> str:
    """The models of a data set, network and length of training, `place` of `SET`; beside the paper's where it has some.

    Args:
        place: values of `SET`.
        rows: of `headline`.
    """
    dataset, factor, profile, backbone, epochs = place
    devices, versions = (", ".join(sorted(rows[name].unique())) for name in ("device", "torch"))
    lines = [["model", "stage-1 WD", "stage-2 WD", "radius", *MEASURES[:-1], "ECE", "MaxNorm fired", "seeds"]]
    theirs = ["paper (ResNet-34): many / medium / few / all"]
    for title, own in models_of(rows):
        lines.append(model_line(title, own))
        theirs.append(joined(published.TABLE_1.get(own.method.iloc[0], ())))
    if (dataset, factor, profile) == ("cifar100", 100, "exp"):
        lines = [[*line, paper] for line, paper in zip(lines, theirs, strict=True)]
    return (
        f"**{dataset}, imbalance factor {factor:g} ({profile}), {backbone}, {epochs:g} epochs** · last epoch, plain "
        "test, in %; `flip`, `best`, `both`: all classes, with mirrored images, of the best epoch on the test set, "
        f"both · {devices} · torch {versions}\n\n{in_markdown(lines)}"
    )


def markdown(results: pd.DataFrame) -> str:
    """One table a data set and network; last epoch, plain test.

    Args:
        results: the columns of `runs.COLUMNS`.
    """
    return "\n".join(set_part(place, rows) for place, rows in headline(results).groupby(SET, dropna=False))


# ---- the paper's tables beside ours


def variants(rows: pd.DataFrame, measure: str = "all") -> str:
    """A measure of a method; of each of its settings where it was run with several."""
    settings = ["stage1_weight_decay", "loss", "weight_decay", "max_norm", "tau"]
    rows = rows.assign(max_norm=rows.max_norm.where(rows["mode"] != "released"))  # relative: another for each seed
    return " / ".join(cell(own[measure]) for _, own in rows.groupby(settings, dropna=False)) or NOT_MEASURED


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


def is_tuned(method: str) -> bool:
    """Whether the paper's mode tunes a value of a row; of the other rows tuned and published are the same model."""
    if method in METHODS:
        return METHODS[method].weight_decay == "stage 2" or has_max_norm(method)
    return method in recipes.PUBLISHED_TAU


def chose_published(method: str, tuned: pd.DataFrame) -> bool:
    """Whether the value that was tuned for a row is the published one, so that there is no second model of it.

    A published radius is a part of a network's own norms, and never the tuned one.
    """
    if has_max_norm(method):
        return False
    tau = recipes.PUBLISHED_TAU.get(method, np.nan)
    return bool((tuned.weight_decay.eq(recipes.PUBLISHED_DECAY) | tuned.tau.eq(tau)).any())


def table_1_cell(rows: pd.DataFrame, method: str, mode: str) -> str:
    """Accuracy of a method in a mode; empty where the mode changes nothing about it."""
    if (mode == "published" and not is_tuned(method)) or (mode == "released" and method not in METHODS):
        return ""
    rows = rows[rows.method == method]
    own = rows[rows["mode"] == mode]
    if mode == "published" and own.empty and chose_published(method, rows[rows["mode"] == "paper"]):
        return ""
    return variants(own)


def table_1_columns(name: str, rows: pd.DataFrame) -> list[list[str]]:
    """A network's columns of `table_1`: a head, then a cell a method."""
    if rows.empty:
        return [[name] + [NOT_MEASURED] * len(published.TABLE_1)]
    heads = {
        "paper": f"{name}, {protocol(rows)}: tuned",
        "published": f"{name}: published values",
        "released": f"{name}: released mode",
    }
    return [[head, *(table_1_cell(rows, method, mode) for method in published.TABLE_1)] for mode, head in heads.items()]


def table_1(results: pd.DataFrame, factor: float = 100) -> str:
    """The paper's Table 1 beside ours: a row a model; for each network the paper's mode with tuned and with
    published values, and the released mode. Last epoch, plain test.

    Args:
        results: the columns of `runs.COLUMNS`. Of several lengths of training the longest counts.
        factor: the imbalance factor.

    Returns:
        nothing where no row is of CIFAR100-LT.
    """
    found = {name: measured(results, factor, backbone) for backbone, name in NETWORKS.items()}
    if all(rows.empty for rows in found.values()):
        return ""
    theirs = [metrics.percent(values[-1]) for values in published.TABLE_1.values()]
    columns = [["model", *published.TABLE_1], ["paper (ResNet-34, best epoch on the test set)", *theirs]]
    for name, rows in found.items():
        columns += table_1_columns(name, rows)
    return in_markdown(list(zip(*columns, strict=True)))


def table_2_column(name: str, parts: Sequence[pd.DataFrame]) -> list[str]:
    """A network's column of `table_2`: a head, then a cell a method.

    Args:
        name: the network's.
        parts: its rows at each of `published.FACTORS`.
    """
    lengths = dict.fromkeys(protocol(rows) for rows in parts if not rows.empty)
    column = [", ".join([name, *lengths])]
    for method in published.TABLE_2:
        cells = [table_1_cell(rows, method, "paper") for rows in parts]
        column.append(NOT_MEASURED if set(cells) == {NOT_MEASURED} else " / ".join(cells))
    return column


def table_2(results: pd.DataFrame) -> str:
    """The paper's Table 2 beside ours: accuracy at three imbalance factors in a cell, in the paper's mode, tuned.

    Args:
        results: see `table_1`.

    Returns:
        nothing where no row is of CIFAR100-LT.
    """
    found = {
        name: [measured(results, factor, backbone) for factor in published.FACTORS]
        for backbone, name in NETWORKS.items()
    }
    if all(rows.empty for parts in found.values() for rows in parts):
        return ""
    head = f"paper (ResNet-34), imbalance factor {' / '.join(map(str, published.FACTORS))}"
    columns = [["model", *published.TABLE_2], [head, *map(joined, published.TABLE_2.values())]]
    columns += [table_2_column(name, parts) for name, parts in found.items()]
    return in_markdown(list(zip(*columns, strict=True)))


# ---- the released notebooks beside ours


def as_released(rows: pd.DataFrame, method: str) -> pd.DataFrame:
    """Rows of a method with the released notebooks' values."""
    own = rows[rows.method == method]
    if method in recipes.PUBLISHED_TAU:
        return own[own.tau == recipes.PUBLISHED_TAU[method]]
    return own[own["mode"] == ("released" if method in METHODS else "paper")]


def released_columns(name: str, rows: pd.DataFrame, counted: pd.DataFrame, heads: Sequence[str]) -> list[list[str]]:
    """A network's two columns of `table_of_released`, one where it is not measured: a head, then a cell a method.

    Args:
        name: the network's.
        rows: of `measured`.
        counted: the rows of the best epoch on the test set and mirrored images, by run.
        heads: what the columns hold.
    """
    if rows.empty:
        return [[name] + [NOT_MEASURED] * len(published.RELEASED)]
    theirs = counted.reindex(rows.run)
    rows = rows.assign(**{f"{group} both": theirs[group].to_numpy() for group in metrics.GROUPS})
    measures = [*(f"{group} both" for group in metrics.GROUPS), "both"]
    printed, logged = [f"{name}, {protocol(rows)}: {heads[0]}"], [f"{name}: {heads[1]}"]
    for method in published.RELEASED:
        own = as_released(rows, method)
        groups = " / ".join(variants(own, measure) for measure in measures)
        printed.append(NOT_MEASURED if own.empty else groups)
        logged.append(variants(own))
    return [printed, logged]


def table_of_released(results: pd.DataFrame) -> str:
    """What the released notebooks print beside ours, in their protocol and in their mode.

    Args:
        results: see `table_1`.

    Returns:
        nothing where no row is of CIFAR100-LT at imbalance factor 100.
    """
    found = {name: measured(results, 100, backbone) for backbone, name in NETWORKS.items()}
    if all(rows.empty for rows in found.values()):
        return ""
    heads = "many / medium / few / all, flip, best epoch on the test set", "all, plain, last epoch"
    printed, logged = [f"released notebooks (ResNet-34, 320 epochs): {heads[0]}"], [f"their logs: {heads[1]}"]
    for values, last in published.RELEASED.values():
        printed.append(" / ".join(map(str, values)))
        logged.append(metrics.percent(last))
    columns = [["model", *published.RELEASED], printed, logged]
    counted = results[(results.selection == "best_test") & (results.tta == "flip")]
    counted = counted.drop_duplicates("run").set_index("run")
    for name, rows in found.items():
        columns += released_columns(name, rows, counted, heads)
    return in_markdown(list(zip(*columns, strict=True)))


# ---- what a way of counting, and what MaxNorm adds


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
    return gains.agg(["mean", "min", "max"]).T.map(or_dash, form="+.2f")


def without_max_norm(method: str) -> str | None:
    """The row of the paper's table that differs from this one by MaxNorm alone; None where there is none."""
    plain = dataclasses.replace(METHODS[method], constraint="none")
    return next((name for name, other in METHODS.items() if other == plain), None)


def gain_line(title: str, pairs: pd.DataFrame) -> dict[str, Any]:
    """A model's row of `max_norm_gains`; a seed counts where neither of its two trainings diverged."""
    pairs = pairs.dropna(subset="gain")
    return {
        "model": title,
        "radius": or_dash(pairs.max_norm.mean(), ".3f"),
        "projected": f"after each {pairs.max_norm_every.iloc[0]}" if len(pairs) else "–",
        "fired (% of checks)": metrics.percent(100 * pairs.max_norm_fired.mean()),
        "all, with": metrics.percent(pairs["all"].mean()),
        "all, without": metrics.percent(pairs["all without"].mean()),
        "gain": or_dash(pairs.gain.mean(), "+.2f"),
        "± seeds": metrics.percent(pairs.gain.std()),
        "seeds": pairs.seed.nunique(),
    }


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
    plain_names = {method: without_max_norm(method) for method in METHODS if has_max_norm(method)}
    plain_names = {method: plain for method, plain in plain_names.items() if plain is not None}
    limited = rows[rows.method.isin(plain_names)]
    limited = limited.assign(model=limited.method, method=limited.method.map(plain_names))
    tuned = rows[rows["mode"] == "paper"]  # what published values leave alone stands there once, as tuned
    keys = ["method", "mode", "loss", "weight_decay", "seed"]
    plain = pd.concat([rows, tuned.assign(mode="published")]).drop_duplicates(keys)
    pairs = limited.merge(plain, on=keys, suffixes=("", " without"))
    pairs["gain"] = pairs["all"] - pairs["all without"]
    return pd.DataFrame(
        [gain_line(f"{model} ({mode})", own) for (mode, model), own in pairs.groupby(["mode", "model"])]
    )


def max_norm_table(results: pd.DataFrame) -> str:
    """`max_norm_gains` of every measured network on CIFAR100-LT, imbalance factor 100.

    Args:
        results: the columns of `runs.COLUMNS`.
    """
    parts = []
    for backbone, name in NETWORKS.items():
        rows = measured(results, 100, backbone)
        limited = rows[rows.method.map(has_max_norm).astype(bool)]
        if len(limited):
            gains = max_norm_gains(results, limited.run.iloc[0]).astype(str)
            table = in_markdown([[*gains.columns], *gains.to_numpy().tolist()])
            parts.append(f"**{name}, {protocol(rows)}**\n\n{table}")
    return "\n".join(parts)


# ---- benchmarks


def rounded(value: str) -> str:
    """A measured number to three digits, an en dash for NaN; other words as they are."""
    try:
        measured = float(value)
    except ValueError:
        return value
    return or_dash(measured, ",.3g" if abs(measured) < 1000 else ",.0f")


def benchmark_markdown(benchmarks: pd.DataFrame) -> str:
    """One table of all measured work, and of what still waits for its device.

    Args:
        benchmarks: the columns of `bench.COLUMNS`, as text.
    """
    names = {"reference_s": "reference (s)", "ours_s": "ours (s)", "ratio": "ratio"}
    names |= {"floor_share": "share of the floor", "peak_mb": "peak (MB)"}
    shown = benchmarks[["what", "backbone", "images", "precision", *names, "device", "torch"]].copy()
    for name in names:
        shown[name] = shown[name].map(rounded)
    shown = shown.rename(columns=names)
    return in_markdown([shown.columns, *shown.itertuples(index=False)])


# ---- comparisons


def comparison_part(rows: pd.DataFrame) -> str:
    """The methods on one first stage under its protocol, the best first."""
    first, rows = rows.iloc[0], rows.sort_values("all", ascending=False, kind="stable")
    shown = rows[["method", "hyper-parameters", *COMPARED, "source"]].fillna({"hyper-parameters": "", "source": ""})
    for name in COMPARED:
        shown[name] = shown[name].map(metrics.percent)
    body = in_markdown([shown.columns, *shown.itertuples(index=False)])
    words = [
        f"**{first.dataset}, imbalance factor {first.imbalance_factor:g}, {first.backbone}, {first.stage1_epochs:g} "
        f"epochs, stage-1 weight decay {first.stage1_weight_decay:g}**",
        "last epoch, plain test, in %",
        seeds(rows),
        *(f"tuned on {images}" for images in rows.tuned_on.dropna().head(1)),
    ]
    return f"{' · '.join(words)}\n\n{body}"


def comparison_markdown(table: pd.DataFrame) -> str:
    """Every method of a comparison, the measured ones first by their accuracy; one table a first stage.

    Args:
        table: what `compare.assemble` gives, read from its file. What is not measured has no first stage, and stands in
            the first table of a network alone.
    """
    parts = []
    for _, network in table.groupby(["dataset", "imbalance_factor", "profile", "backbone", "stage1_epochs"]):
        stages = [rows for _, rows in network.groupby("stage1_weight_decay")]
        stages.reverse()  # the largest weight decay first
        parts.append(stages[0])
        parts += [rows[rows["first stage"].notna()] for rows in stages[1:]]
    return "\n".join(comparison_part(rows) for rows in parts if len(rows))


# ---- files


def tables(path: Path) -> dict[str, str]:
    """The Markdown of a file by its place in the README; its columns say which kind of file it is.

    Raises:
        InputError: there is no such file, or it is no table.
    """
    if not path.exists():
        raise InputError(f"results: there is no file {path}")
    table = read_table(path, "results")
    if "ours_s" in table:
        return {path.stem: benchmark_markdown(pd.read_csv(path, dtype=str, keep_default_na=False))}
    if "published" in table:
        return {path.stem: comparison_markdown(table)}
    made = {"table-1": table_1(table), "table-2": table_2(table), "released": table_of_released(table)}
    return made | {"max-norm": max_norm_table(table), path.stem: markdown(table)}


def block(name: str) -> re.Pattern:
    """The part of a README that holds the table of a file."""
    return re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)


def replaced(path: Path, made: dict[str, str]) -> str:
    """A README's text with these tables in their places.

    Raises:
        InputError: it has no place for one.
    """
    text = path.read_text("utf-8")
    for name, table in made.items():
        place = block(name).search(text)
        if place is None:
            raise InputError(f"--readme: {path} has no <!-- {name} --> ... <!-- /{name} -->")
        text = f"{text[: place.start()]}{place[1]}{table}{place[2]}{text[place.end() :]}"
    return text


def main(arguments: list[str] | None = None) -> None:
    """The command line.

    Raises:
        InputError: a file is absent, or the README has no place for its table.
    """
    parser = Parser(prog="ltr report", description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="a results.csv or a benchmarks.csv")
    parser.add_argument("--readme", type=Path, help="a file whose tables are written anew")
    options = parser.parse_args(arguments)
    made = {name: text for path in options.results for name, text in tables(path).items()}
    if options.readme is None:
        print("\n".join(filter(None, made.values())))
    else:
        write_text(options.readme, replaced(options.readme, made))

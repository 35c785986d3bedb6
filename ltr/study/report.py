"""Tables of results, benchmarks and comparisons: `python -m ltr report exp/results.csv [--readme README.md]`.

Without `--readme` a file's tables are printed. With it, the part of the README between `<!-- results -->` and
`<!-- /results -->` (the file's name; `table-1`, `table-2`, `first-stages`, `released` and `max-norm` too) is written
anew, so that every number there is one of the file.

`results` has the columns of `runs.COLUMNS`. Tables of CIFAR100-LT are empty text where no row is of it.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ltr import metrics, recipes, runs
from ltr.errors import InputError
from ltr.methods import METHODS
from ltr.runtime.options import Parser, file
from ltr.runtime.storage import check_columns, read_table, write_text
from ltr.study import published
from ltr.study.bench import BALANCE, FEATURES, GRID, STAGE_1

SET = ["dataset", "imbalance_factor", "profile", "backbone", "stage1_epochs"]
# How a first stage was trained, beside its length: the columns of its own rows, by what they are called beside others'.
HOW = ("lr", "batch_size", "loss", "mix", "augmentation", "sampling", "network", "further")
FIRST = {f"first {name}": name for name in HOW}
BASE = [*SET, *FIRST]
MODEL = ["stage1_weight_decay", "method", "mode", "loss", "lr", "weight_decay", "max_norm_every", "radius", "tau"]
MEASURES = ["many", "medium", "few", "all", "flip", "best", "both", "ece"]
COMPARED = ["many", "medium", "few", "all", "ECE", "forward 50", "backward 50", "published"]
NETWORKS = {"resnet32": "narrow ResNet-32", "resnet32-wide": "wide ResNet-32", "resnet34": "ResNet-34"}
SETTINGS = {"": "tuned", "paper": "tuned", "published": "published values", "released": "released code"}  # of a mode
LOSSES = {"cb-ce": "CB", "ce": "CE"}  # as rows are named by them
NOT_MEASURED = "not measured"
Column = list[str]  # a head, then a cell a line


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


def seeds(rows: pd.DataFrame) -> str:
    """Their number in words."""
    count = rows.seed.nunique()
    return "1 seed" if count == 1 else f"{count} seeds"


def in_markdown(table: pd.DataFrame) -> str:
    """A table whose cells are text, as it stands in a README."""
    lines = [[*table.columns], ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# ---- rows of results.csv


def where(table: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Rows that have these values; NaN and None are missing ones, and wanted as such."""
    for column, value in wanted.items():
        table = table[table[column].isna() if pd.isna(value) else table[column] == value]
    return table


def headline(results: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last epoch and plain test; beside them accuracy over all classes counted in the other ways.

    Returns:
        as further columns `flip` (logits averaged with the mirrored image), `best` (best epoch on the test set) and
        `both`; `radius`, which is MaxNorm's where a seed has several, and empty elsewhere, as tuned and released ones
        are parts of a network's own norms, others for each seed; and those of `FIRST`, which say how the first stage
        was trained, empty where its row is not there. First stages are called naive or WD, by their weight decay,
        whatever else they learned by.
    """
    ways = {"flip": ("last", "flip"), "best": ("best_test", "none"), "both": ("best_test", "flip")}
    results = results.reindex(columns=runs.COLUMNS)  # a table from before has fewer
    firsts = results[results.run == results.stage1_run].drop_duplicates("run").set_index("run")
    shown = where(results, selection="last", tta="none")
    shown = shown.assign(**{name: shown.stage1_run.map(firsts[own]) for name, own in FIRST.items()})
    plain = shown.stage1_weight_decay.map(lambda decay: "WD" if decay else "naive")
    shown["method"] = shown.method.where(shown.run != shown.stage1_run, plain)
    for name, (selection, tta) in ways.items():
        other = where(results, selection=selection, tta=tta).drop_duplicates("run").set_index("run")
        shown = shown.assign(**{name: shown.run.map(other["all"])})
    alike = [*BASE, *(name for name in MODEL if name != "radius")]
    doubled = shown.duplicated([*alike, "seed"], keep=False) & (shown["mode"] != "released")
    several = doubled.groupby([shown[name] for name in alike], dropna=False).transform("any")
    return shown.assign(radius=shown.max_norm.where(several))


def training(rows: pd.DataFrame) -> str:
    """How the first stage of some rows was trained, in words."""
    row = rows.iloc[0]
    words = [f"{row.stage1_epochs:g} epochs"]
    if pd.notna(row["first lr"]):
        words = [f"{words[0]} at {row['first lr']:g}", f"batch {row['first batch_size']:g}"]
    choices = [row[name] for name in FIRST if name not in ("first lr", "first batch_size")]
    return ", ".join([*words, *(choice for choice in choices if pd.notna(choice) and choice != "ce")])


def by_training(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Rows of each way of training first stages, in words: the plainest first, then the longest, then the most rows."""
    groups = [own for _, own in rows.groupby(["stage1_epochs", *FIRST], dropna=False)]
    groups.sort(key=lambda own: (training(own).count(","), -own.stage1_epochs.iloc[0], -len(own)))
    return {training(own): own for own in groups}


def measured(results: pd.DataFrame, *factors: float) -> dict[str, dict[str, pd.DataFrame]]:
    """The headline rows of CIFAR100-LT at some imbalance factors by network, and by how its first stage was trained."""
    rows = where(headline(results), dataset="cifar100", profile="exp")
    rows = rows[rows.imbalance_factor.isin(factors)]
    rows = rows.assign(mode=rows["mode"].astype(object).fillna("paper"))
    return {name: by_training(rows[rows.backbone == backbone]) for backbone, name in NETWORKS.items()}


def balanced(found: dict[str, dict[str, pd.DataFrame]]) -> dict[str, dict[str, pd.DataFrame]]:
    """Those of `measured` whose classifier was retrained; `first_stages` has the others."""
    learned = {
        name: {how: rows for how, rows in own.items() if rows.method.isin(METHODS).any()} for name, own in found.items()
    }
    return learned if any(learned.values()) else found


# ---- all models of results.csv


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
    rows = rows.assign(mode=rows["mode"].astype(object).fillna(""), position=position)
    rows = rows.sort_values(["mode", "position"], kind="stable")
    for (_, method, mode, *_), model in rows.groupby(MODEL, sort=False, dropna=False):
        title = f"{method} ({SETTINGS[mode]})" if mode else method
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
    short = ["" if pd.isna(value) else f"{value:.3g}" for value in settings]
    return [title, *short, *(cell(rows[name]) for name in MEASURES), fired, str(rows.seed.nunique())]


def set_part(rows: pd.DataFrame) -> str:
    """The models of rows of `headline` that are alike in `BASE`; beside the paper's where it has some."""
    one = rows.iloc[0]
    devices, versions = (", ".join(sorted(rows[name].unique())) for name in ("device", "torch"))
    models = list(models_of(rows))
    head = ["model", "stage-1 WD", "stage-2 WD", "radius", *MEASURES[:-1], "ECE", "MaxNorm fired", "seeds"]
    table = pd.DataFrame([model_line(title, own) for title, own in models], columns=head)
    if (one.dataset, one.imbalance_factor, one.profile) == ("cifar100", 100, "exp"):
        theirs = [published.TABLE_1.get(own.method.iloc[0], ()) for _, own in models]
        table["paper (ResNet-34): many / medium / few / all"] = [" / ".join(map(metrics.percent, r)) for r in theirs]
    place = f"{one.dataset}, imbalance factor {one.imbalance_factor:g} ({one.profile}), {one.backbone}"
    return (
        f"**{place}, {training(rows)}** · last epoch, plain test, in %; `flip`, `best`, `both`: all classes, with "
        f"mirrored images, of the best epoch on the test set, both · {devices} · torch {versions}\n\n"
        f"{in_markdown(table)}"
    )


def markdown(results: pd.DataFrame) -> str:
    """One table a data set, network and way of training the first stage; last epoch, plain test."""
    return "\n".join(set_part(rows) for _, rows in headline(results).groupby(BASE, dropna=False))


# ---- the paper's tables beside ours


def variants(rows: pd.DataFrame, measure: str = "all") -> str:
    """A measure of a method; of each of its settings where it was run with several."""
    settings = ["stage1_weight_decay", "loss", "lr", "weight_decay", "radius", "tau"]
    return " / ".join(cell(own[measure]) for _, own in rows.groupby(settings, dropna=False)) or NOT_MEASURED


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


def beside_theirs(
    theirs: Sequence[Column],
    found: dict[str, dict[str, pd.DataFrame]],
    make: Callable[[str, pd.DataFrame], list[Column]],
) -> str:
    """The paper's columns, then those of `make` for each network and way of training it.

    Args:
        theirs: the first one names the lines.
        found: of `measured`.
        make: columns of some rows, whose head begins as it is told.
    """
    if not any(found.values()):
        return ""
    columns = [*theirs]
    for name, trained in found.items():
        for words, rows in trained.items():
            columns += make(f"{name}, {words}, {seeds(rows)}", rows)
    head, *lines = zip(*columns, strict=True)
    return in_markdown(pd.DataFrame(lines, columns=head))


def table_1(results: pd.DataFrame, factor: float = 100) -> str:
    """The paper's Table 1 beside ours: a row a model; for each network, and each way of training its first stage, the
    paper's mode with tuned and with published values, and the released code's, where they were run. Last epoch, plain.
    """

    def modes(head: str, rows: pd.DataFrame) -> list[Column]:
        name, columns = head.split(",")[0], []
        for mode in ("paper", "published", "released"):
            cells = [table_1_cell(rows, row, mode) for row in published.TABLE_1]
            if mode == "paper" or {*cells} - {"", NOT_MEASURED}:
                columns.append([f"{head if mode == 'paper' else name}: {SETTINGS[mode]}", *cells])
        return columns

    best = [metrics.percent(values[-1]) for values in published.TABLE_1.values()]
    theirs = [["model", *published.TABLE_1], ["paper (ResNet-34, values tuned on the test set)", *best]]
    return beside_theirs(theirs, balanced(measured(results, factor)), modes)


def table_2(results: pd.DataFrame) -> str:
    """The paper's Table 2 beside ours: accuracy at three imbalance factors in a cell, in the paper's mode, tuned."""

    def one(head: str, rows: pd.DataFrame) -> list[Column]:
        factors = [factor for factor in published.FACTORS if factor in set(rows.imbalance_factor)]
        parts = [where(rows, imbalance_factor=factor) for factor in factors]
        cells = [[table_1_cell(part, method, "paper") for part in parts] for method in published.TABLE_2]
        texts = (" / ".join("–" if cell == NOT_MEASURED else cell for cell in each) for each in cells)
        return [[f"{head}: imbalance factor {' / '.join(map(str, factors))}", *texts]]

    head = f"paper (ResNet-34), imbalance factor {' / '.join(map(str, published.FACTORS))}"
    theirs = [" / ".join(map(metrics.percent, values)) for values in published.TABLE_2.values()]
    columns = [["model", *published.TABLE_2], [head, *theirs]]
    return beside_theirs(columns, balanced(measured(results, *published.FACTORS)), one)


# ---- first stages

ONCE_BALANCED = {
    "WD + L2norm": "L2norm",
    "WD + tau-norm": "tau-norm",
    "CB + WD": "CB & WD",
    "CB + WD + MaxNorm": "CB & WD & MaxNorm",
}


def first_stage_line(rows: pd.DataFrame) -> list[str]:
    """One kind of first stage: how it was trained, what it does alone, and over all classes once balanced."""
    alone, decay = rows[rows.run == rows.stage1_run], rows.stage1_weight_decay.iloc[0]
    how = [f"{rows.imbalance_factor.iloc[0]:g}", f"{training(rows)}, weight decay {decay:g}", str(alone.seed.nunique())]
    tuned = rows[rows["mode"] == "paper"]
    later = [tuned[tuned.method == method]["all"] for method in ONCE_BALANCED]
    figures = [cell(alone[name]) for name in (*metrics.GROUPS, "all", "ece")]
    return [*how, *figures, *(cell(values) if len(values) else "" for values in later)]


def first_stages(results: pd.DataFrame) -> str:
    """Every way in which first stages of CIFAR100-LT were trained: alone, and balanced by tuned values where they were.

    Last epoch, plain.
    """
    lines = []
    for network, trained in measured(results, *published.FACTORS).items():
        for rows in trained.values():
            kinds = [own for _, own in rows.groupby(["imbalance_factor", "stage1_weight_decay"])]
            lines += [[network, *first_stage_line(own)] for own in reversed(kinds)]
    if not lines:
        return ""
    head = ["network", "imbalance factor", "first stage", "seeds", *metrics.GROUPS, "all", "ECE"]
    return in_markdown(pd.DataFrame(lines, columns=[*head, *(f"all, {name}" for name in ONCE_BALANCED.values())]))


# ---- the released notebooks beside ours


def as_released(rows: pd.DataFrame, method: str) -> pd.DataFrame:
    """Rows of a method with the released notebooks' values."""
    own = rows[rows.method == method]
    if method in recipes.PUBLISHED_TAU:
        return own[own.tau == recipes.PUBLISHED_TAU[method]]
    return own[own["mode"] == ("released" if method in METHODS else "paper")]


def table_of_released(results: pd.DataFrame) -> str:
    """What the released notebooks print beside ours, in their protocol and in their mode; imbalance factor 100."""
    counted = where(results, selection="best_test", tta="flip").drop_duplicates("run").set_index("run")
    heads = "many / medium / few / all, flip, best epoch on the test set", "all, plain, last epoch"
    measures = [*(f"{group} both" for group in metrics.GROUPS), "both"]

    def two(head: str, rows: pd.DataFrame) -> list[Column]:
        theirs = counted.reindex(rows.run)
        rows = rows.assign(**{f"{group} both": theirs[group].to_numpy() for group in metrics.GROUPS})
        own = [as_released(rows, method) for method in published.RELEASED]
        groups = [NOT_MEASURED if each.empty else " / ".join(variants(each, name) for name in measures) for each in own]
        return [[f"{head}: {heads[0]}", *groups], [f"{head.split(',')[0]}: {heads[1]}", *map(variants, own)]]

    printed = [f"released notebooks (ResNet-34, 320 epochs): {heads[0]}"]
    printed += [" / ".join(map(str, values)) for values, _ in published.RELEASED.values()]
    logged = [f"their logs: {heads[1]}", *(metrics.percent(last) for _, last in published.RELEASED.values())]
    return beside_theirs([["model", *published.RELEASED], printed, logged], balanced(measured(results, 100)), two)


# ---- what a way of counting, and what MaxNorm adds


def counting_gains(results: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """What the ways of counting add to the headline of the runs of these names, in points over all classes, as text.

    Returns:
        a row a way: mean, least and most over the runs.
    """
    rows = headline(results[results.run.isin(names)])
    ways = {"flip": "mirrored images", "best": "best epoch on the test set", "both": "both"}
    gains = rows[[*ways]].sub(rows["all"], axis=0).rename(columns=ways)
    return gains.agg(["mean", "min", "max"]).T.map(or_dash, form="+.2f")


def without_max_norm(method: str) -> str | None:
    """The row of the paper's table that differs from this one by MaxNorm alone; None where there is none."""
    plain = dataclasses.replace(METHODS[method], constraint="none")
    return next((name for name, other in METHODS.items() if other == plain), None)


def hits_of(run: str, folder: Path) -> np.ndarray | None:
    """Whether each test image is a hit of a run below a folder, [N]; None where its files do not tell."""
    for stage in ("demo_1", "demo_2"):
        with contextlib.suppress(InputError):
            return runs.Result.read(folder / stage / run).predictions.hits
    return None


def error_of_gain(before: pd.DataFrame, after: pd.DataFrame, folder: Path | None) -> float:
    """How certain a difference of two models is, in points: over seeds its deviation; of one seed the paired standard
    error over the test images, from the runs in the folder; NaN where these do not tell.

    Args:
        before, after: rows of `headline`, one a seed.
    """
    pairs = before.merge(after, on="seed", suffixes=("", " after"))
    if len(pairs) != 1:
        return float((pairs["all after"] - pairs["all"]).std())
    both = [hits_of(run, folder) if folder else None for run in pairs.loc[0, ["run", "run after"]]]
    if any(hits is None for hits in both):
        return float("nan")
    return metrics.standard_error(both[1] - both[0])


def gain_line(title: str, pairs: pd.DataFrame, folder: Path | None) -> dict[str, Any]:
    """A model's row of `max_norm_gains`; a seed counts where neither of its two trainings diverged."""
    pairs = pairs.dropna(subset="gain")
    plain = pairs[["seed", "run without", "all without"]].set_axis(["seed", "run", "all"], axis=1)
    return {
        "model": title,
        "radius": or_dash(pairs.max_norm.mean(), ".3f"),
        "projected": f"after each {pairs.max_norm_every.iloc[0]}" if len(pairs) else "–",
        "fired (% of checks)": metrics.percent(100 * pairs.max_norm_fired.mean()),
        "all, with": metrics.percent(pairs["all"].mean()),
        "all, without": metrics.percent(pairs["all without"].mean()),
        "gain": or_dash(pairs.gain.mean(), "+.2f"),
        "±": metrics.percent(error_of_gain(plain, pairs[["seed", "run", "all"]], folder)),
        "seeds": pairs.seed.nunique(),
    }


def max_norm_gains(results: pd.DataFrame, run: str, folder: Path | None = None) -> pd.DataFrame:
    """What MaxNorm adds at the same loss and weight decay, seed by seed, for the images and first stage of a run.

    Args:
        folder: where the runs are, see `error_of_gain`.

    Returns:
        a row a model with MaxNorm as text: its radius, when it projects and how often it fired, accuracy over all
        classes with and without it (last epoch, plain test, percent, means over seeds), and the mean of the gain with
        its error. Models whose counterpart without MaxNorm is not there have no row.
    """
    rows = headline(results)
    rows = where(rows, **rows.loc[rows.run == run, [*BASE, "stage1_weight_decay"]].iloc[0])
    limited = rows[rows.method.map(has_max_norm).astype(bool)]
    limited = limited.assign(model=limited.method, method=limited.method.map(without_max_norm)).dropna(subset="method")
    tuned = rows[rows["mode"] == "paper"]  # what published values leave alone stands there once, as tuned
    keys = ["method", "mode", "loss", "weight_decay", "seed"]
    plain = pd.concat([rows, tuned.assign(mode="published")]).drop_duplicates(keys)
    pairs = limited.merge(plain, on=keys, suffixes=("", " without"))
    pairs["gain"] = pairs["all"] - pairs["all without"]
    groups = pairs.groupby(["mode", "model"])
    return pd.DataFrame([gain_line(f"{model} ({SETTINGS[mode]})", own, folder) for (mode, model), own in groups])


def max_norm_table(results: pd.DataFrame, folder: Path | None = None) -> str:
    """`max_norm_gains` of every measured network on CIFAR100-LT, imbalance factor 100, and way of training it."""
    parts = []
    for name, trained in measured(results, 100).items():
        for words, rows in trained.items():
            limited = rows[rows.method.map(has_max_norm).astype(bool)]
            if len(limited):
                table = in_markdown(max_norm_gains(results, limited.run.iloc[0], folder))
                parts.append(f"**{name}, {words}, {seeds(rows)}**\n\n{table}")
    return "\n".join(parts)


# ---- benchmarks


def rounded(value: float) -> str:
    """A number to three digits; nothing where it was not measured."""
    return "" if pd.isna(value) else format(value, ",.3g" if abs(value) < 1000 else ",.0f")


def speed(own: pd.DataFrame) -> Iterator[str]:
    """What the rows of one device and network come to, by what was measured; a sentence each."""
    if STAGE_1 in own.index:
        epoch = own.loc[STAGE_1]
        yield f"an epoch takes {epoch.ours_s:.1f} s, of the reference {epoch.reference_s:.1f} s"
    if {GRID, FEATURES} <= {*own.index}:
        grid, features_s = own.loc[GRID], own.ours_s[FEATURES]
        whole = grid.reference_s / (grid.ours_s + features_s)
        yield (
            f"500 classifiers of the second stage train in {grid.ours_s:.1f} s once their features are there, against "
            f"{grid.reference_s:,.0f} s of the reference, which passes every image through the backbone for each "
            f"classifier and epoch: a ratio of {grid.ratio:,.0f}; the features take {features_s:.0f} s, with them the "
            f"ratio is {whole:,.0f}"
        )
    for methods in ("fast", "all"):
        if (name := BALANCE.format(methods)) in own.index:
            row = own.loc[name]
            cost = f"{row.ours_s / 60:.1f} minutes and {row.peak_mb / 1e3:.1f} GB"
            yield f"`balance` with `{methods}` methods takes {cost} for {row.images:,.0f} embeddings"


def benchmark_markdown(benchmarks: pd.DataFrame) -> str:
    """A table of what was measured, and what it comes to in sentences; from `bench.COLUMNS`."""
    names = {"reference_s": "reference (s)", "ours_s": "ours (s)", "ratio": "ratio"}
    names |= {"floor_share": "share of the floor", "peak_mb": "peak (MB)"}
    shown = benchmarks[["what", "backbone", "images", "precision", *names, "device", "torch", "date"]].copy()
    for name in names:
        shown[name] = shown[name].map(rounded)
    lines = []
    for (device, backbone), own in benchmarks.groupby(["device", "backbone"]):
        largest = own.sort_values("images").drop_duplicates("what", keep="last").set_index("what")
        lines += [f"- {backbone} on {device}: {sentence}.\n" for sentence in speed(largest)]
    lines.append("- What is not here is not measured: `python -m ltr bench` adds the rows of another device.\n")
    return in_markdown(shown.rename(columns=names)) + "\n" + "".join(lines)


# ---- comparisons


def held_out_and_test(rows: pd.DataFrame) -> str:
    """How well the tuning network does on the images that chose, and the first stage on the test, in a sentence."""
    alone = where(rows, method="first stage alone").reindex(columns=["validation", "all"]).dropna()
    if alone.empty:
        return ""
    chose, tested = alone.mean()
    held_out = f" Alone, the tuning network has {chose:.2f} % of the held-out images"
    return f"{held_out}, the first stage {tested:.2f} % of the test."


def over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a method, the best first: means over the first stages' seeds, and in `text`, beside each, their cells."""
    groups = rows.fillna({"hyper-parameters": "", "source": ""}).groupby(
        ["method", "hyper-parameters", "source", "published"], dropna=False, sort=False
    )
    measures = [name for name in COMPARED if name != "published"]
    means = groups[measures].mean().join(groups[["first stage"]].first())
    texts = groups[measures].agg(cell).add_suffix(" text")
    return means.join(texts).reset_index().sort_values("all", ascending=False, kind="stable")


def comparison_said(merged: pd.DataFrame, rows: pd.DataFrame) -> str:
    """What the methods on one kind of first stage come to, in sentences; nothing where none was measured."""
    known = merged.dropna(subset=["all", "few", "ECE", "first stage"])
    own = tuple(rows.stage1_run.unique())
    known = known[known["first stage"].str.startswith(own)]  # not another network that stands beside them
    if known.empty:
        return ""
    near, few, sure = int((known["all"] > known["all"].max() - 1).sum()), known.few.idxmax(), known.ECE.idxmin()
    said = f"\n{near} of {len(known)} lie within a point of the best; few-shot accuracy is highest with "
    said += f"{known.method[few]} ({known.few[few]:.2f} %), the calibration error smallest with "
    return said + f"{known.method[sure]} ({known.ECE[sure]:.2f} %).{held_out_and_test(rows)}\n"


def comparison_part(rows: pd.DataFrame) -> str:
    """The methods on one kind of first stage under its protocol, the best first."""
    first, merged = rows.iloc[0], over_seeds(rows)
    silent = merged["hyper-parameters"].str.startswith(NOT_MEASURED) & merged.published.isna()
    options = merged["hyper-parameters"][silent].str.removeprefix(f"{NOT_MEASURED}: ")
    absent = [f"{method} (`{option}`)" for method, option in zip(merged.method[silent], options, strict=True)]
    shown = merged[~silent]
    shown = shown.assign(published=shown.published.map(partial(or_dash, form=".1f")))  # as most of the sources have it
    shown = shown[["method", "hyper-parameters", *(f"{name} text" for name in COMPARED[:-1]), "published", "source"]]
    further = f", {first.further}" if first.further else ""
    words = [
        f"**{first.dataset}, imbalance factor {first.imbalance_factor:g}, {first.backbone}, {first.stage1_epochs:g} "
        f"epochs, stage-1 weight decay {first.stage1_weight_decay:g}{further}**",
        f"first stage {', '.join(rows.stage1_run.unique())}",
        "last epoch, plain test, in %",
        *(f"tuned on {images}" for images in rows.tuned_on.dropna().head(1)),
    ]
    note = f"\nNot measured; `python -m ltr sweep` trains the network: {', '.join(absent)}.\n" if absent else ""
    table = in_markdown(shown.rename(columns=lambda name: name.removesuffix(" text")))
    return f"{' · '.join(words)}\n\n{table}{comparison_said(merged, rows)}{note}"


def comparison_markdown(table: pd.DataFrame) -> str:
    """Every method of `compare.assemble`, the measured ones first by their accuracy; one table a kind of first stage,
    whose seeds were all tuned on the same network.

    What is not measured has no first stage of its own, and stands in the first table of a network alone: that of the
    most epochs and the largest weight decay.
    """
    parts = []
    for _, network in table.groupby(["dataset", "imbalance_factor", "profile", "backbone"]):
        order = network.sort_values(["stage1_epochs", "stage1_weight_decay"], ascending=False, kind="stable")
        tuned = order.groupby("stage1_run").tuned_on.transform("first").fillna(order.stage1_run)
        further = order["further"].fillna("") if "further" in order else ""
        kinds = order.assign(tuned=tuned, further=further).groupby(
            ["tuned", "stage1_epochs", "stage1_weight_decay", "further"], sort=False
        )
        first, *others = (rows for _, rows in kinds)
        parts += [first, *(rows[rows["first stage"].notna()] for rows in others)]
    return "\n".join(comparison_part(rows) for rows in parts if len(rows))


# ---- what MaxNorm does, measured on shipped features


def spread(values: pd.Series, form: str) -> str:
    """Mean over orders of the images, and their deviation where there are several."""
    deviation = values.std()
    return or_dash(values.mean(), form) + ("" if pd.isna(deviation) else f" ± {deviation:{form.lstrip('+')}}")


def limited_line(rows: pd.DataFrame) -> list[str]:
    """A row of `question_markdown`, means over orders."""
    one = rows.iloc[0]
    gain = [spread(rows.gain, "+.2f"), or_dash(rows["gain ±"].mean(), ".2f")]
    nats = [spread(rows.nats, "+.3f"), or_dash(rows["nats ±"].mean(), ".3f")]
    radius = ["none", "–"] if pd.isna(one.max_norm) else [f"{one.max_norm:.2f}", f"each {one.max_norm_every}"]
    fired = or_dash(100 * rows.max_norm_fired.mean(), ".1f")
    calibration = [or_dash(rows[name].mean(), ".2f") for name in ("ece", "temperature", "ece scaled")]
    loss = LOSSES.get(one.loss, one.loss)
    return [loss, f"{one.weight_decay:g}", *radius, fired, spread(rows["all"], ".2f"), *gain, *calibration, *nats]


def beyond(rows: pd.DataFrame, name: str) -> float:
    """The mean of a gain in its standard errors: over the test images, and over orders where there are several."""
    orders = rows[name].var() / len(rows) if len(rows) > 1 else 0.0
    return rows[name].mean() / (rows[f"{name} ±"].mean() ** 2 + orders) ** 0.5


def answer(groups: Sequence[pd.DataFrame]) -> str:
    """What the rows of each setting with MaxNorm, one an order, say in sentences."""
    lines, above, below = [], np.zeros(len(groups), bool), np.zeros(len(groups), bool)
    nats = "likelihood at its own temperature, nats"
    for name, form, what in (("gain", "+.2f", "accuracy, points"), ("nats", "+.3f", nats)):
        sizes, means = np.array([beyond(rows, name) for rows in groups]), [rows[name].mean() for rows in groups]
        above, below = above | (sizes > 2), below | (sizes < -2)
        lines.append(
            f"- **MaxNorm against none, {what}**: {min(means):{form}} to {max(means):{form}}; more than two standard "
            f"errors above none in {(sizes > 2).sum()} of {len(groups)} settings, below in {(sizes < -2).sum()}."
        )
    alike, worse = f"{(~above & ~below).sum()} of {len(groups)} settings, where neither differs", below.sum()
    lines.append(
        f"- **A radius is no more than a temperature** in {alike}. In {worse} it costs accuracy or likelihood that "
        f"no temperature gives back, in {above.sum()} it adds some."
    )
    return "\n".join(lines) + "\n"


def question_markdown(table: pd.DataFrame) -> str:
    """Of `maxnorm.measure`, each first stage by itself: accuracy, calibration, and likelihood at each model's own
    temperature."""
    return "\n".join(question_part(rows) for _, rows in table.groupby("stage1_run", sort=False))


def question_part(table: pd.DataFrame) -> str:
    """The classifiers on one first stage, and what they say."""
    keys = ["loss", "weight_decay", "max_norm", "max_norm_every"]
    ordered = table.sort_values(keys, na_position="first", kind="stable")
    groups = [rows for _, rows in ordered.groupby(keys, dropna=False, sort=False)]
    head = ["loss", "weight decay", "radius", "projected", "fired (%)", "all", "gain", "± images", "ECE", "temperature"]
    head += ["ECE after it", "likelihood gained after it (nats)", "± images"]
    words = f"{table.seed.nunique()} orders of the images, mean ± deviation · first stage {table.stage1_run.iloc[0]}"
    body = in_markdown(pd.DataFrame(map(limited_line, groups), columns=head))
    return f"{words}\n\n{body}\n{answer([rows for rows in groups if rows.max_norm.notna().all()])}"


def norms_markdown(table: pd.DataFrame) -> str:
    """How even the norms of the first stages' classifiers are, a row a network."""
    shown = table.assign(**{name: table[name].map(metrics.percent) for name in table.columns[2:]})
    shown["weight_decay"] = shown.weight_decay.map("{:g}".format)
    return in_markdown(shown.rename(columns={"stage1_run": "first stage", "weight_decay": "weight decay"}))


def map_markdown(table: pd.DataFrame) -> str:
    """Of `ltr map`: a row a network, what held-out images say of it under each classifier, the best balanced first."""
    how, named = ["lr", "weight decay", "batch", "warm-up", "epochs", "further"], [*dict.fromkeys(table.classifier)]
    errors = table.assign(text=table["all"].map(metrics.percent) + " ± " + table["all ±"].map(metrics.percent))
    texts = errors.pivot(index="run", columns="classifier", values="text")[named]
    order = where(table, classifier=named[1]).sort_values("all", ascending=False, kind="stable")
    shown = order[["run", *how]].fillna({"further": ""}).join(texts, on="run")
    numbers = {name: shown[name].map("{:g}".format) for name in how[:-1]}
    return in_markdown(shown.drop(columns="run").assign(**numbers))


# ---- files


def tables(path: Path) -> dict[str, str]:
    """The Markdown of a file by its place in the README; its columns say which kind of file it is.

    Raises:
        InputError: there is no such file, or it is no table.
    """
    if not path.is_file():
        raise InputError(f"results: there is no file {path}")
    table = read_table(path, "results")
    if "ours_s" in table:
        return {path.stem: benchmark_markdown(table)}
    if "published" in table:
        return {path.stem: comparison_markdown(table)}
    if "temperature" in table:
        return {path.stem: question_markdown(table)}
    if "lr x wd" in table:
        return {path.stem: map_markdown(table)}
    if "largest / smallest" in table:
        return {path.stem: norms_markdown(table)}
    check_columns(table, path, "results", ("dataset", "method", "mode", "selection", "tta"))
    made = {"table-1": table_1(table), "table-2": table_2(table), "released": table_of_released(table)}
    made |= {"max-norm": max_norm_table(table, path.parent), "first-stages": first_stages(table)}
    return made | {path.stem: markdown(table)}


def block(name: str) -> re.Pattern:
    """The part of a README that holds the table of a file."""
    return re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)


def replaced(path: Path, made: dict[str, str]) -> str:
    """A README's text with these tables in their places.

    Raises:
        InputError: it has no place for one.
    """
    if not path.is_file():
        raise InputError(f"--readme: there is no file {path}")
    text = path.read_text("utf-8")
    for name, table in made.items():
        place = block(name).search(text)
        if place is None:
            raise InputError(f"--readme: {path} has no <!-- {name} --> ... <!-- /{name} -->")
        text = f"{text[: place.start()]}{place[1]}{table}{place[2]}{text[place.end() :]}"
    return text


def main(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: a file is absent, or the README has no place for its table.
    """
    parser = Parser(prog="ltr report", about=__doc__)
    parser.add_argument("results", type=file, nargs="+", help="results.csv, comparison.csv, benchmarks.csv, ...")
    parser.add_argument("--readme", type=file, help="a file whose tables are written anew")
    options = parser.parse_args(arguments)
    made = {name: text for path in options.results for name, text in tables(path).items()}
    if options.readme is None:
        print("\n".join(filter(None, made.values())))
    else:
        write_text(options.readme, replaced(options.readme, made))

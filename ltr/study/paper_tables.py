"""What results.csv says: every model, and the tables of the paper and of the released notebooks beside ours.

`results` has the columns of `runs.COLUMNS`. Tables of CIFAR100-LT are empty text where no row is of it.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ltr import metrics, recipes, runs
from ltr.errors import InputError
from ltr.methods import METHODS
from ltr.runtime.storage import read_table
from ltr.study import published
from ltr.study.cells import NOT_MEASURED, cell, in_markdown, seeds, where

SET = ["dataset", "imbalance_factor", "profile", "backbone", "stage1_epochs"]
# How a first stage was trained, beside its length: the columns of its own rows, by what they are called beside others'.
HOW = ("lr", "batch_size", "loss", "mix", "augmentation", "sampling", "network", "further", "choice")
TRAINED = {f"first {name}": name for name in HOW}
BASE = [*SET, *TRAINED]
MODEL = ["stage1_weight_decay", "method", "mode", "loss", "lr", "weight_decay", "max_norm_every", "radius", "tau"]
MEASURES = ["many", "medium", "few", "all", "flip", "best", "both", "ece"]
NETWORKS = {"resnet32": "narrow ResNet-32", "resnet32-wide": "wide ResNet-32", "resnet34": "ResNet-34"}
SETTINGS = {"": "tuned", "paper": "tuned", "published": "published values", "released": "released code"}  # of a mode
# Which images of a class a first stage learned from; each choice is held against the first that is there.
CHOICES = {
    "": "a fair draw of the images",
    "hash": "as many in the order of their hashes",
    "random": "a draw of its own for each seed",
    "first": "the first images of each class by file name",
}
Column = list[str]  # a head, then a cell a line


# ---- rows of results.csv


def plain_rows(results: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last epoch and plain test; beside them accuracy over all classes counted in the other ways.

    Returns:
        as further columns `flip` (logits averaged with the mirrored image), `best` (best epoch on the test set) and
        `both`; `radius`, which is MaxNorm's where a seed has several, and empty elsewhere, as tuned and released ones
        are parts of a network's own norms, others for each seed; and those of `TRAINED`, which say how the first stage
        was trained, empty where its row is not there. First stages are called naive or WD, by their weight decay,
        whatever else they learned by.
    """
    ways = {"flip": ("last", "flip"), "best": ("best_test", "none"), "both": ("best_test", "flip")}
    results = results.reindex(columns=runs.COLUMNS)  # a table from before has fewer
    firsts = results[results.run == results.stage1_run].drop_duplicates("run").set_index("run")
    shown = where(results, selection="last", tta="none")
    shown = shown.assign(**{name: shown.stage1_run.map(firsts[own]) for name, own in TRAINED.items()})
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
    told = [row[name] for name in TRAINED if name not in ("first lr", "first batch_size", "first choice")]
    words += [each for each in told if pd.notna(each) and each != "ce"]
    return ", ".join([*words, *([f"choice {row['first choice']}"] if pd.notna(row["first choice"]) else [])])


def by_training(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Rows of each way of training first stages, in words: the plainest first, then the longest, then the most rows."""
    groups = [own for _, own in rows.groupby(["stage1_epochs", *TRAINED], dropna=False)]
    groups.sort(key=lambda own: (training(own).count(","), -own.stage1_epochs.iloc[0], -len(own)))
    return {training(own): own for own in groups}


def by_choice(firsts: pd.DataFrame) -> Iterator[list[pd.DataFrame]]:
    """First stages that differ in their images alone, rows of `plain_rows`, those of each of `CHOICES` apart."""
    alike = [name for name in (*BASE, "stage1_weight_decay") if name != "first choice"]
    for _, kind in firsts.groupby(alike, dropna=False):
        kind = kind.astype({"first choice": object})
        yield [own for name in CHOICES if len(own := kind[kind["first choice"].fillna("") == name])]


def of_one_choice(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows without those of first stages that were trained alike on a more usual choice of the images."""
    kinds = by_choice(rows[rows.run == rows.stage1_run])
    return rows[~rows.stage1_run.isin([run for _, *others in kinds for other in others for run in other.run])]


def measured(rows: pd.DataFrame, *factors: float) -> dict[str, dict[str, pd.DataFrame]]:
    """Of `plain_rows` those of CIFAR100-LT at some imbalance factors, by network and how first stages were trained."""
    rows = where(rows, dataset="cifar100", profile="exp")
    rows = rows[rows.imbalance_factor.isin(factors)]
    rows = rows.assign(mode=rows["mode"].astype(object).fillna("paper"))
    return {name: by_training(rows[rows.backbone == backbone]) for backbone, name in NETWORKS.items()}


def balanced(results: pd.DataFrame, *factors: float) -> dict[str, dict[str, pd.DataFrame]]:
    """Those of `measured`, of one choice of images, whose classifier was retrained: of each network the plainest, and
    of other ways to train it the one that ends best. `first_stages` has the others.
    """
    found = measured(of_one_choice(plain_rows(results)), *factors)
    learned = {
        name: {how: rows for how, rows in own.items() if rows.method.isin(METHODS).any()} for name, own in found.items()
    }
    for own in learned.values():
        for how in sorted([*own][1:], key=lambda how: ends_at(own[how]))[:-1]:
            del own[how]
    return learned if any(learned.values()) else found


def ends_at(rows: pd.DataFrame) -> float:
    """Accuracy of the best tuned row whose classifier was retrained, mean over its seeds, at the largest imbalance
    factor that there is; minus infinity where every one diverged.
    """
    tuned = rows[rows.method.isin(METHODS) & (rows["mode"] == "paper")]
    tuned = tuned[tuned.imbalance_factor == tuned.imbalance_factor.max()]
    best = tuned.groupby("method")["all"].mean().max()
    return -np.inf if np.isnan(best) else float(best)


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
    moved = ""
    if has_max_norm(rows.method.iloc[0]) and rows.projected_share.notna().any():
        moved = f"{100 * rows.projected_share.mean():.1f}"
    settings = [rows.stage1_weight_decay.iloc[0], rows.weight_decay.mean(), rows.max_norm.mean()]
    short = ["" if pd.isna(value) else f"{value:.3g}" for value in settings]
    return [title, *short, *(cell(rows[name]) for name in MEASURES), moved, str(rows.seed.nunique())]


def set_part(rows: pd.DataFrame) -> str:
    """The models of rows of `plain_rows` that are alike in `BASE`; beside the paper's where it has some."""
    one = rows.iloc[0]
    devices, versions = (", ".join(sorted(rows[name].unique())) for name in ("device", "torch"))
    models = list(models_of(rows))
    head = ["model", "stage-1 WD", "stage-2 WD", "radius", *MEASURES[:-1], "ECE", "rows moved (%)", "seeds"]
    table = pd.DataFrame([model_line(title, own) for title, own in models], columns=head)
    if (one.dataset, one.imbalance_factor, one.profile) == ("cifar100", 100, "exp"):
        theirs = [published.TABLE_1.get(own.method.iloc[0], ()) for _, own in models]
        table["paper (ResNet-34): many / medium / few / all"] = [" / ".join(map(metrics.or_dash, r)) for r in theirs]
    place = f"{one.dataset}, imbalance factor {one.imbalance_factor:g} ({one.profile}), {one.backbone}"
    return (
        f"**{place}, {training(rows)}** · last epoch, plain test, in %; `flip`, `best`, `both`: all classes, with "
        f"mirrored images, of the best epoch on the test set, both · {devices} · torch {versions}\n\n"
        f"{in_markdown(table)}"
    )


def markdown(results: pd.DataFrame) -> str:
    """One table a data set, network and way of training the first stage, of one choice of images each; last epoch,
    plain test.
    """
    parts = [rows for _, rows in of_one_choice(plain_rows(results)).groupby(BASE, dropna=False)]
    return "\n".join(map(set_part, parts))


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
    if mode == "released" and method not in METHODS:
        return ""
    rows = rows[rows.method == method]
    own = rows[rows["mode"] == mode]
    alike = not is_tuned(method) or chose_published(method, rows[rows["mode"] == "paper"])
    if mode == "published" and own.empty and alike:
        return ""
    return variants(own)


def short_head(head: str) -> str:
    """Of a column's head the network, and its images where these are not the usual ones."""
    network, *words = head.split(", ")
    return ", ".join([network, *(word for word in words if word.startswith("choice"))])


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
        name = short_head(head)
        columns = []
        for mode in ("paper", "published", "released"):
            cells = [table_1_cell(rows, row, mode) for row in published.TABLE_1]
            if mode == "paper" or {*cells} - {"", NOT_MEASURED}:
                columns.append([f"{head if mode == 'paper' else name}: {SETTINGS[mode]}", *cells])
        return columns

    best = [metrics.or_dash(values[-1]) for values in published.TABLE_1.values()]
    theirs = [["model", *published.TABLE_1], ["paper (ResNet-34, values tuned on the test set)", *best]]
    return beside_theirs(theirs, balanced(results, factor), modes)


def table_2(results: pd.DataFrame) -> str:
    """The paper's Table 2 beside ours: accuracy at three imbalance factors in a cell, in the paper's mode, tuned."""

    def one(head: str, rows: pd.DataFrame) -> list[Column]:
        factors = [factor for factor in published.FACTORS if factor in set(rows.imbalance_factor)]
        parts = [where(rows, imbalance_factor=factor) for factor in factors]
        cells = [[table_1_cell(part, method, "paper") for part in parts] for method in published.TABLE_2]
        texts = (" / ".join("–" if cell == NOT_MEASURED else cell for cell in each) for each in cells)
        return [[f"{head}: imbalance factor {' / '.join(map(str, factors))}", *texts]]

    head = f"paper (ResNet-34), imbalance factor {' / '.join(map(str, published.FACTORS))}"
    theirs = [" / ".join(map(metrics.or_dash, values)) for values in published.TABLE_2.values()]
    columns = [["model", *published.TABLE_2], [head, *theirs]]
    return beside_theirs(columns, balanced(results, *published.FACTORS), one)


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
    first = [cell(alone[name]) for name in (*metrics.GROUPS, "all", "ece")]
    return [*how, *first, *(cell(values) if len(values) else "" for values in later)]


def first_stages(results: pd.DataFrame) -> str:
    """Every way in which first stages of CIFAR100-LT were trained: alone, and balanced by tuned values where they were.

    Last epoch, plain.
    """
    lines = []
    for network, trained in measured(plain_rows(results), *published.FACTORS).items():
        for rows in trained.values():
            kinds = [own for _, own in rows.groupby(["imbalance_factor", "stage1_weight_decay"])]
            lines += [[network, *first_stage_line(own)] for own in reversed(kinds)]
    if not lines:
        return ""
    head = ["network", "imbalance factor", "first stage", "seeds", *metrics.GROUPS, "all", "ECE"]
    return in_markdown(pd.DataFrame(lines, columns=[*head, *(f"all, {name}" for name in ONCE_BALANCED.values())]))


def norms_table(results: pd.DataFrame, path: Path) -> str:
    """How even the classifier's norms are after first stages of CIFAR100-LT, imbalance factor 100, that learned from
    one choice of images each: means over seeds.

    Args:
        path: the norms.csv of `ltr maxnorm`.

    Raises:
        InputError: it is no such table.
    """
    measures = ["many / few", "largest / smallest"]
    table = read_table(path, "results", ["stage1_run", *measures])
    even = table.drop_duplicates("stage1_run", keep="last").set_index("stage1_run")[measures]
    rows = of_one_choice(plain_rows(results)).join(even, on="run", how="inner")
    lines = [
        [network, f"{how}, weight decay {decay:g}", str(own.seed.nunique()), *(cell(own[name]) for name in even)]
        for network, trained in measured(rows, 100).items()
        for how, alike in trained.items()
        for decay, own in alike.groupby("stage1_weight_decay")
    ]
    return in_markdown(pd.DataFrame(lines, columns=["network", "first stage", "seeds", *even])) if lines else ""


def error_of_means(first: pd.Series, second: pd.Series) -> float:
    """Standard error of the difference of two means over seeds; where one has a single seed, with the other's variance.

    NaN where both have.
    """
    variances = pd.Series([first.var(), second.var()])
    variances = variances.fillna(variances.mean())  # of the only one there is
    return float((variances / [len(first), len(second)]).sum(skipna=False) ** 0.5)


def choice_line(usual: pd.DataFrame, other: pd.DataFrame) -> str:
    """What one kind of first stage does on one choice of the images, and on another; rows of `by_choice`."""
    gain = other["all"].mean() - usual["all"].mean()
    error = error_of_means(usual["all"], other["all"])
    how = training(usual.assign(**{"first choice": np.nan}))
    words = f"{NETWORKS[usual.backbone.iloc[0]]}, {how}, weight decay {usual.stage1_weight_decay.iloc[0]:g}"
    said = [
        f"{cell(own['all'])} % ({' / '.join(cell(own[group]) for group in metrics.GROUPS)}) on "
        f"{CHOICES[own['first choice'].fillna('').iloc[0]]}, {seeds(own)}"
        for own in (usual, other)
    ]
    known = "" if np.isnan(error) else f" ± {error:.2f}"
    return f"- {words}: {'; '.join(said)}: {gain:+.2f}{known} points.\n"


def choices(results: pd.DataFrame) -> str:
    """What another choice of the training images does to a first stage, a sentence a kind: all classes (many / medium /
    few), means and deviations; ± of the difference is its standard error over the seeds, where there are several.
    """
    rows = plain_rows(results)
    kinds = by_choice(rows[rows.run == rows.stage1_run])
    return "".join(choice_line(usual, other) for usual, *others in kinds for other in others)


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
        return [[f"{head}: {heads[0]}", *groups], [f"{short_head(head)}: {heads[1]}", *map(variants, own)]]

    printed = [f"released notebooks (ResNet-34, 320 epochs): {heads[0]}"]
    printed += [" / ".join(map(str, values)) for values, _ in published.RELEASED.values()]
    logged = [f"their logs: {heads[1]}", *(metrics.or_dash(last) for _, last in published.RELEASED.values())]
    return beside_theirs([["model", *published.RELEASED], printed, logged], balanced(results, 100), two)


# ---- what a way of counting, and what MaxNorm adds


def counting_gains(results: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """What the ways of counting add to a plain last epoch, of the runs of these names, in points over all classes, as
    text.

    Returns:
        a row a way: mean, least and most over the runs.
    """
    rows = plain_rows(results[results.run.isin(names)])
    ways = {"flip": "mirrored images", "best": "best epoch on the test set", "both": "both"}
    gains = rows[[*ways]].sub(rows["all"], axis=0).rename(columns=ways)
    return gains.agg(["mean", "min", "max"]).T.map(metrics.or_dash, form="+.2f")


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
    """Standard error of a difference of two models, in points: over seeds that of its mean; of one seed the paired one
    over the test images, from the runs in the folder; NaN where these do not tell.

    Args:
        before, after: rows of `plain_rows`, one a seed.
    """
    pairs = before.merge(after, on="seed", suffixes=("", " after"))
    if len(pairs) != 1:
        return float((pairs["all after"] - pairs["all"]).sem())
    both = [hits_of(run, folder) if folder else None for run in pairs.loc[0, ["run", "run after"]]]
    if any(hits is None for hits in both):
        return float("nan")
    return metrics.standard_error(both[1] - both[0])


def with_and_without(own: float, other: float) -> str:
    """A value of a row with MaxNorm, and that of the row without it where it is another."""
    return f"{own:g}" if own == other else f"{own:g} (without: {other:g})"


def gain_line(title: str, pairs: pd.DataFrame, folder: Path | None) -> dict[str, Any]:
    """A model's row of `max_norm_gains`; a seed counts where neither of its two trainings diverged."""
    pairs = pairs.dropna(subset="gain")
    rates = pairs[["lr", "lr without"]].drop_duplicates().to_numpy()
    plain = pairs[["seed", "run without", "all without"]].set_axis(["seed", "run", "all"], axis=1)
    return {
        "model": title,
        "radius": metrics.or_dash(pairs.max_norm.mean(), ".3f"),
        "learning rate": ", ".join(with_and_without(*each) for each in rates),
        "projected": f"after each {pairs.max_norm_every.iloc[0]}" if len(pairs) else "–",
        "rows moved (% of checks)": metrics.or_dash(100 * pairs.projected_share.mean()),
        "all, with": metrics.or_dash(pairs["all"].mean()),
        "all, without": metrics.or_dash(pairs["all without"].mean()),
        "gain": metrics.or_dash(pairs.gain.mean(), "+.2f"),
        "±": metrics.or_dash(error_of_gain(plain, pairs[["seed", "run", "all"]], folder)),
        "seeds": pairs.seed.nunique(),
    }


def max_norm_gains(results: pd.DataFrame, run: str, folder: Path | None = None) -> pd.DataFrame:
    """What MaxNorm adds at the same loss and weight decay, seed by seed, for the images and first stage of a run.

    Where values were tuned, each model has its own learning rate; a counterpart with the same one goes first.

    Args:
        folder: where the runs are, see `error_of_gain`.

    Returns:
        a row a model with MaxNorm as text: its radius, both learning rates, when it projects and how often it moved a
        row, accuracy over all classes with and without it (last epoch, plain test, percent, means over seeds), and the
        mean of the gain with its error. Models whose counterpart without MaxNorm is not there have no row.
    """
    rows = plain_rows(results)
    rows = where(rows, **rows.loc[rows.run == run, [*BASE, "stage1_weight_decay"]].iloc[0])
    limited = rows[rows.method.map(has_max_norm).astype(bool)]
    limited = limited.assign(model=limited.method, method=limited.method.map(without_max_norm)).dropna(subset="method")
    tuned = rows[rows["mode"] == "paper"]  # what published values leave alone stands there once, as tuned
    keys = ["method", "mode", "loss", "weight_decay", "seed"]
    plain = pd.concat([rows, tuned.assign(mode="published")])
    pairs = limited.merge(plain, on=keys, suffixes=("", " without"))
    pairs = pairs.assign(apart=pairs.lr != pairs["lr without"]).sort_values("apart", kind="stable")
    pairs = pairs.drop_duplicates(["model", *keys])
    pairs["gain"] = pairs["all"] - pairs["all without"]
    groups = pairs.groupby(["mode", "model"])
    return pd.DataFrame([gain_line(f"{model} ({SETTINGS[mode]})", own, folder) for (mode, model), own in groups])


def max_norm_table(results: pd.DataFrame, folder: Path | None = None) -> str:
    """`max_norm_gains` of every network on CIFAR100-LT, imbalance factor 100, and way of training it; of one choice of
    images each.
    """
    parts = []
    for name, trained in measured(of_one_choice(plain_rows(results)), 100).items():
        for words, rows in trained.items():
            limited = rows[rows.method.map(has_max_norm).astype(bool)]
            if len(limited):
                table = in_markdown(max_norm_gains(results, limited.run.iloc[0], folder))
                parts.append(f"**{name}, {words}, {seeds(rows)}**\n\n{table}")
    return "\n".join(parts)

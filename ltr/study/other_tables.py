"""What the tables beside results.csv say: benchmarks, comparisons, MaxNorm's question and tuning maps."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd

from ltr import metrics
from ltr.methods import FIRST
from ltr.study.bench import BALANCE, FEATURES, GRID, STAGE_1
from ltr.study.cells import cell, in_markdown, rounded, spread, where
from ltr.study.compare import how

COMPARED = ["many", "medium", "few", "all", "ECE", "forward 50", "backward 50", "published"]
ALIKE = ["stage1_epochs", "stage1_weight_decay", "further"]  # how a first stage was trained, beside its images
LOSSES = {"cb-ce": "CB", "ce": "CE"}  # as rows are named by them


# ---- benchmarks


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
    alone = where(rows, method=FIRST).reindex(columns=["validation", "all"]).dropna()
    if alone.empty:
        return ""
    chose, tested = alone.mean()
    held_out = f" Alone, the tuning network has {chose:.2f} % of the held-out images"
    return f"{held_out}, the first stage {tested:.2f} % of the test."


def kinds(table: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each kind of first stage in a comparison.csv: those that one network tuned and that learned alike, of
    all seeds; with the columns `tuned`, by what, and `further` and `choice` as text.
    """
    tuned = table.groupby("stage1_run").tuned_on.transform("first").astype(object).fillna(table.stage1_run)
    words = {name: table[name].astype(object).fillna("") if name in table else "" for name in ("further", "choice")}
    alike = ["tuned", "stage1_epochs", "stage1_weight_decay", *words]
    return [rows for _, rows in table.assign(tuned=tuned, **words).groupby(alike, sort=False)]


def over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a method, the best first: means over the first stages' seeds, and in `text`, beside each, their cells.

    What one seed has is not said to be absent because another lacks it.
    """
    rows = rows[rows.run.notna() | ~rows.method.isin(rows.method[rows.run.notna()])]
    told = rows.assign(**{"hyper-parameters": how(rows)}).fillna({"source": ""})
    groups = told.groupby(["method", "hyper-parameters", "source", "published"], dropna=False, sort=False)
    measures = [name for name in COMPARED if name != "published"]
    means = groups[measures].mean().join(groups[["run", "trained_by"]].first())
    texts = groups[measures].agg(cell).add_suffix(" text")
    return means.join(texts).reset_index().sort_values("all", ascending=False, kind="stable")


def comparison_said(merged: pd.DataFrame, rows: pd.DataFrame) -> str:
    """What the methods on one kind of first stage come to, in sentences; nothing where none was measured."""
    known = merged.dropna(subset=["all", "ECE"])
    known = known[known.run.isin(rows.stage1_run)]  # not another network that stands beside them
    if known.empty:
        return ""
    near = int((known["all"] > known["all"].max() - 1).sum())
    said = f"\nOf the {len(known)} methods on these features {near} lie within a point of the best of them; "
    if len(rare := known.few.dropna()):
        said += f"few-shot accuracy is highest with {known.method[rare.idxmax()]} ({rare.max():.2f} %), "
    sure = known.ECE.idxmin()
    said += f"the calibration error is smallest with {known.method[sure]} ({known.ECE[sure]:.2f} %)."
    return f"{said}{held_out_and_test(rows)}\n"


def title(rows: pd.DataFrame) -> str:
    """The kind of first stage that the rows of a comparison are of."""
    first = rows.iloc[0]
    words = [f"{first.dataset}, imbalance factor {first.imbalance_factor:g}", first.backbone]
    words += [f"{first.stage1_epochs:g} epochs", f"stage-1 weight decay {first.stage1_weight_decay:g}"]
    return ", ".join([*words, *filter(None, (first.further, first.choice and f"choice {first.choice}"))])


def comparison_part(rows: pd.DataFrame) -> str:
    """The methods on one kind of first stage under its protocol, the best first."""
    merged = over_seeds(rows)
    tuned = rows.dropna(subset="tuned_on").head(1)
    silent = merged.trained_by.notna() & merged.published.isna()
    absent = [f"{row.method} (`{row.trained_by}`)" for row in merged[silent].itertuples()]
    shown = merged[~silent]
    shown = shown.assign(
        published=shown.published.map(partial(metrics.or_dash, form=".1f"))
    )  # as most of the sources have it
    shown = shown[["method", "hyper-parameters", *(f"{name} text" for name in COMPARED[:-1]), "published", "source"]]
    words = [
        f"**{title(rows)}**",
        f"first stage {', '.join(rows.stage1_run.unique())}",
        "last epoch, plain test, in %",
        *(f"tuned on {each.held_out:g} held-out images, {each.tuned_on}" for each in tuned.itertuples()),
    ]
    note = f"\nNot measured; `python -m ltr sweep` trains the network: {', '.join(absent)}.\n" if absent else ""
    table = in_markdown(shown.rename(columns=lambda name: name.removesuffix(" text")))
    return f"{' · '.join(words)}\n\n{table}{comparison_said(merged, rows)}{note}"


def comparison_markdown(table: pd.DataFrame) -> str:
    """Every method of `compare.assemble`, the measured ones first by their accuracy; one table a kind of first stage,
    whose seeds were all tuned on the same network. What was trained alike on the usual choice of images stands with it
    alone.

    What is not measured has no first stage of its own, and stands in the first table of a network alone: that of the
    plainest training, the most epochs and the largest weight decay. The largest imbalance factor comes first. All
    tables but the first are folded.
    """
    parts = []
    table = table.sort_values("imbalance_factor", ascending=False, kind="stable")
    for _, network in table.groupby(["dataset", "imbalance_factor", "profile", "backbone"], sort=False):
        network = network.reindex(columns=list(dict.fromkeys([*network, "choice", "further"])))
        alike, usual = pd.MultiIndex.from_frame(network[ALIKE].astype(str)), network["choice"].isna()
        network = network[usual | ~alike.isin(alike[usual])]
        plain = network["further"].isna()
        keys = ["plain", "stage1_epochs", "stage1_weight_decay"]
        first, *others = kinds(network.assign(plain=plain).sort_values(keys, ascending=False, kind="stable"))
        parts += [first, *(rows[rows.run.notna()] for rows in others)]
    texts = [(title(rows), comparison_part(rows)) for rows in parts if len(rows)]
    return "\n".join([*(text for _, text in texts[:1]), *(folded(*each) for each in texts[1:])])


def folded(name: str, text: str) -> str:
    """Markdown that a reader opens by a click on its name."""
    return f"<details><summary>{name}</summary>\n\n{text}\n</details>\n"


# ---- what MaxNorm does, measured on shipped features


def limited_line(rows: pd.DataFrame) -> list[str]:
    """A row of `question_markdown`, means over orders."""
    one = rows.iloc[0]
    gain = [spread(rows.gain, "+.2f"), metrics.or_dash(rows["gain ±"].mean(), ".2f")]
    nats = [spread(rows.nats, "+.3f"), metrics.or_dash(rows["nats ±"].mean(), ".3f")]
    radius = ["none", "–"] if pd.isna(one.max_norm) else [f"{one.max_norm:.2f}", f"each {one.max_norm_every}"]
    moved = metrics.or_dash(100 * rows.projected_share.mean(), ".1f")
    calibration = [metrics.or_dash(rows[name].mean(), ".2f") for name in ("ece", "temperature", "ece scaled")]
    loss = LOSSES.get(one.loss, one.loss)
    return [loss, f"{one.weight_decay:g}", *radius, moved, spread(rows["all"], ".2f"), *gain, *calibration, *nats]


def beyond(rows: pd.DataFrame, name: str) -> float:
    """The mean of a gain in its standard errors: over the test images, and over orders where there are several.

    0 of a model that is the other one.
    """
    orders = rows[name].var() / len(rows) if len(rows) > 1 else 0.0
    gain = rows[name].mean()
    error = (rows[f"{name} ±"].mean() ** 2 + orders) ** 0.5
    return gain / error if error else 0.0


def answer(groups: Sequence[pd.DataFrame]) -> str:
    """What the rows of each setting with MaxNorm, one an order, say in sentences; nothing of those that diverged."""
    groups = [rows for rows in groups if rows[["gain", "nats"]].notna().all(axis=None)]
    if not groups:
        return "- Every training diverged.\n"
    lines = []
    above = np.zeros(len(groups), bool)
    below = np.zeros(len(groups), bool)
    nats = "likelihood at its own temperature, nats"
    for name, form, what in (("gain", "+.2f", "accuracy, points"), ("nats", "+.3f", nats)):
        sizes = np.array([beyond(rows, name) for rows in groups])
        means = [rows[name].mean() for rows in groups]
        above, below = above | (sizes > 2), below | (sizes < -2)
        lines.append(
            f"- **MaxNorm against none, {what}**: {min(means):{form}} to {max(means):{form}}; more than two standard "
            f"errors above none in {(sizes > 2).sum()} of {len(groups)} settings, below in {(sizes < -2).sum()}."
        )
    alike = f"{(~above & ~below).sum()} of {len(groups)} settings, where neither differs"
    both = f" ({(above & below).sum()} does both)" if (above & below).any() else ""
    lines.append(
        f"- **A radius is no more than a temperature** in {alike}. In {below.sum()} it costs accuracy or likelihood "
        f"that no temperature gives back, in {above.sum()} it adds some{both}."
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
    head = [
        "loss",
        "weight decay",
        "radius",
        "projected",
        "rows moved (%)",
        "all",
        "gain",
        "± images",
        "ECE",
        "temperature",
    ]
    head += ["ECE after it", "likelihood gained after it (nats)", "± images"]
    words = f"{table.seed.nunique()} orders of the images, mean ± deviation · first stage {table.stage1_run.iloc[0]}"
    body = in_markdown(pd.DataFrame(map(limited_line, groups), columns=head))
    return f"{words}\n\n{body}\n{answer([rows for rows in groups if rows.max_norm.notna().all()])}"


def map_markdown(table: pd.DataFrame) -> str:
    """Of `ltr map`: a row a network, what held-out images say of it under each classifier, the best balanced first."""
    how = ["lr", "weight decay", "batch", "warm-up", "epochs", "further"]
    named = [*dict.fromkeys(table.classifier)]
    errors = table.assign(text=table["all"].map(metrics.or_dash) + " ± " + table["all ±"].map(metrics.or_dash))
    texts = errors.pivot(index="run", columns="classifier", values="text")[named]
    order = where(table, classifier=named[1]).sort_values("all", ascending=False, kind="stable")
    shown = order[["run", *how]].fillna({"further": ""}).join(texts, on="run")
    numbers = {name: shown[name].map("{:g}".format) for name in how[:-1]}
    return in_markdown(shown.drop(columns="run").assign(**numbers))

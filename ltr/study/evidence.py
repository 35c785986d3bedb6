"""What the third chapter asks of finished rows: all side by side, what MaxNorm adds, what a temperature does."""

from collections.abc import Mapping
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn
from torch.nn import functional as F

from ltr import metrics, models, regularizers, runs
from ltr.methods import class_means, of_loss
from ltr.runtime import configs
from ltr.runtime.configs import read_configs, read_each
from ltr.runtime.options import ROOT
from ltr.runtime.storage import read_table
from ltr.second_stage import Features
from ltr.stack import Grid
from ltr.study import maxnorm, published
from ltr.study.cells import where
from ltr.study.paper_tables import (
    BASE,
    NETWORKS,
    SETTINGS,
    has_max_norm,
    plain_rows,
    with_and_without,
    without_max_norm,
)
from ltr.study.rows import Rows

AS_IT_IS_AND_SCALED = {
    **{"all": "all", "T": "temperature", "ECE": "ece", "ECE at T": "ece scaled"},
    **{"NLL": "nll", "NLL at T": "nll scaled"},
}
DECAYS = (0, 1e-4, 3e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5)
NORMALISED = ("WD", "WD + L2norm", "WD + tau-norm")  # rows on the same features, whose classifier is not retrained
PLAIN = "crop and flip"  # what others' augmentation is compared with
Row = tuple[str, str]  # method and setting


class Evidence:
    """All rows of the paper's Table 1 on one first stage, in each of their settings.

    Attributes:
        found: a run a method and setting; a setting that changes nothing about a row has none.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        settings, base, naive = rows.settings, rows.base, rows.naive
        results = [base, rows.normalised("WD + L2norm", 1.0, base)]
        results += rows.tau_normalised("WD + tau-norm", rows.tau("WD + tau-norm", settings.tau), base)
        if naive:
            results.append(naive)
            if not settings.shipped:  # its features do not ship
                tau = rows.tau("naive + tau-norm", settings.naive_tau)
                results += rows.tau_normalised("naive + tau-norm", tau, naive)
        results += rows.in_all_modes()
        first = {base.path: "WD", **({naive.path: "naive"} if naive else {})}  # whatever else they learned by
        self.found: dict[Row, runs.Result] = {
            (first.get(each.path, each.row[0]), SETTINGS[each.row[1]]): each for each in results
        }

    def accuracy(self, method: str, setting: str = "tuned", measure: str = "all", selection: str = "last") -> float:
        """In percent; NaN where there is no such row."""
        result = self.found.get((method, setting))
        return float("nan") if result is None else result.accuracy(selection)[measure]

    def mean_norm(self, method: str, setting: str = "tuned") -> float:
        """Mean norm of the classifier's rows; NaN where there is no such row."""
        result = self.found.get((method, setting))
        return float("nan") if result is None else float(result.norms[-1].mean())

    # ---- what rows say of each test image

    @property
    def features(self) -> Features | None:
        """Of the first stage in evaluation mode; None where neither images nor shipped features are there."""
        return self.rows.sources.features.get("paper")

    @cached_property
    def inputs(self) -> Tensor:
        """Test features [N, D] on the CPU."""
        return self.features.test_features(0, False).cpu()

    @property
    def labels(self) -> np.ndarray:
        """Of the test images, [N]."""
        return np.asarray(self.features.test_labels)

    def classifier(self, row: Row) -> nn.Linear | None:
        """Of a row on the first stage's features; None of one that is not there, or has a backbone of its own."""
        result = self.found.get(row)
        shares = row[0] in (*of_loss("CE"), *of_loss("CB"), *NORMALISED)
        if result is None or not shares or row[1] == "released code":
            return None
        if row[0] == "WD":
            return self.rows.sources.classifier
        weights = result.weights()
        return models.linear(weights["weight"], weights.get("bias"))

    def logits(self, row: Row) -> Tensor | None:
        """[N, C] on the test features; None without them, or of a row without a `classifier`."""
        classifier = self.classifier(row)
        return None if classifier is None or self.features is None else self.answer(classifier)

    def answer(self, classifier: nn.Linear) -> Tensor:
        """A classifier's logits [N, C] on the test features."""
        return F.linear(self.inputs, *(values.detach().cpu() for values in classifier.parameters()))

    def hits(self, row: Row) -> np.ndarray:
        """Whether each test image is a hit, [N]; NaN where training diverged."""
        return self.found[row].predictions.hits

    def error_of_gain(self, before: Row, after: Row) -> float:
        """Paired standard error of the difference of two rows, in points."""
        return metrics.standard_error(self.hits(after) - self.hits(before))

    @property
    def is_the_papers(self) -> bool:
        """Whether the images are those of the paper's Table 1."""
        about, settings = self.rows.base.config["data"], self.rows.settings
        return (about["name"], settings.imbalance_factor, settings.profile) == ("cifar100", 100, "exp")


# ---- tables


def side_by_side(case: Evidence) -> pd.DataFrame:
    """Accuracy of each row in each setting as HTML, below it the standard error and that of the rare classes.

    Bold are those that are not clearly below the best: within two paired standard errors.
    """
    hits = {row: case.hits(row) for row in case.found}
    known = [row for row, own in hits.items() if np.isfinite(own).all()]
    best = metrics.best_rows(np.stack([hits[row] for row in known])) if known else ()
    bold = {row for row, near in zip(known, best, strict=True) if near}
    lines = {}
    for method, theirs in published.TABLE_1.items():
        cells = {setting: cell(case, (method, setting), bold) for setting in dict.fromkeys(SETTINGS.values())}
        if any(cells.values()):
            lines[method] = {"paper": f"{theirs[3]:.2f}<br><small>few {theirs[2]:.1f}</small>", **cells}
    table = pd.DataFrame.from_dict(lines, orient="index")
    return table if case.is_the_papers else table.drop(columns="paper")


def cell(case: Evidence, row: Row, bold: set[Row]) -> str:
    """A cell of `side_by_side`."""
    if row not in case.found:
        return ""
    measured = case.found[row].accuracy()
    error = metrics.standard_error(case.hits(row))
    value = metrics.or_dash(measured["all"])
    value = f"<b>{value}</b>" if row in bold else value
    return metrics.with_dashes(f"{value}<br><small>±{error:.2f}, few {measured['few']:.1f}</small>")


def max_norm_gains(case: Evidence) -> pd.DataFrame:
    """What MaxNorm adds to a row, each with the values that are its own, a row a model.

    Method, setting, radius, learning rate, weight decay, when it projects, share of rows it moved (percent), gain and
    its error in points. What published values leave alone stands once, as tuned.
    """
    lines = []
    for (method, setting), result in case.found.items():
        plain = without_max_norm(method) if has_max_norm(method) else None
        row = next((r for r in ((plain, setting), (plain, "tuned")) if r in case.found), None)
        if row is None or (setting == "released code" and row[1] == "tuned"):
            continue
        before, after = case.found[row].accuracy(), result.accuracy()
        own, other = (each.config["settings"] for each in (result, case.found[row]))
        line = {
            "method": method,
            "setting": setting,
            "radius": result.summary["max_norm"],
            **{name: with_and_without(own[name], other[name]) for name in ("lr", "weight_decay")},
            "projected after": f"each {own['max_norm_every']}",
            "moved": 100 * result.summary["projected_share"],
            "gain": after["all"] - before["all"],
            "error": case.error_of_gain(row, (method, setting)),
        }
        lines.append(line | {"ECE without": before["ece"], "ECE with": after["ece"]})
    return pd.DataFrame(lines)


def temperatures(case: Evidence) -> pd.DataFrame:
    """How sure each classifier is, as it is and after its own temperature; a row each, none without features.

    Columns method, setting, norm (mean over classes), all, T; norm / T; same (percent of the test images that CB
    answers alike); ECE (percent) and NLL (nats), and both at the temperature, see `maxnorm.temperature_scaled`; T held
    out, which `ltr tune` fitted on a tuning network, and ECE at it, NaN where there is none.

    Source: Guo et al. 2017.
    """
    given = {row: case.logits(row) for row in case.found}
    cb = given.get(("CB", "tuned"))
    if cb is None:
        return pd.DataFrame(columns=["method", "setting", "T", "norm / T", "ECE", "ECE at T", "NLL at T"])
    lines = []
    for (method, setting), logits in given.items():
        if logits is not None and logits.isfinite().all():
            norm = case.mean_norm(method, setting)
            same = 100 * float((logits.argmax(1) == cb.argmax(1)).float().mean())
            line = {"method": method, "setting": setting, "norm": norm, "same": same}
            measured = maxnorm.measured(logits.numpy(), case.labels, case.rows.base.class_counts)
            line |= {name: measured[key] for name, key in AS_IT_IS_AND_SCALED.items()}
            lines.append(line | at_held_out_temperature(case, (method, setting), logits))
    table = pd.DataFrame(lines)
    return table.assign(**{"norm / T": table.norm / table["T"]})


def at_held_out_temperature(case: Evidence, row: Row, logits: Tensor) -> dict[str, float]:
    """The temperature that a tuned row got on held-out images, and its calibration error on the test images then."""
    known = row[1] == "tuned" and "temperature" in case.rows.tuned and row[0] in case.rows.tuned.index
    value = float(case.rows.tuned.temperature[row[0]]) if known else float("nan")
    error = metrics.Predictions.of((logits / value).numpy(), case.labels).calibration_error() if known else value
    return {"T held out": value, "ECE at T held out": error}


def over_temperature(case: Evidence, rows: Mapping[str, Row], tried: np.ndarray) -> pd.DataFrame:
    """Negative log-likelihood of the test images over the temperature: columns model, temperature, NLL."""
    lines = []
    for name, row in rows.items():
        logits = case.logits(row)
        for each in tried if logits is not None else ():
            value = -float(metrics.log_likelihood((logits / each).numpy(), case.labels).mean())
            lines.append({"model": name, "temperature": each, "NLL": value})
    return pd.DataFrame(lines, columns=["model", "temperature", "NLL"])


def without_training(case: Evidence, radius: float) -> dict[str, float]:
    """Accuracy by group of the first stage's classifier, its rows once brought inside a ball; NaN without features."""
    if case.features is None:
        return dict.fromkeys(("all", *metrics.GROUPS), float("nan"))
    start = case.rows.sources.classifier
    weight = regularizers.max_norm_project(start.weight.detach(), radius)
    logits = case.answer(models.linear(weight, start.bias))
    return metrics.group_accuracy(logits.numpy(), case.labels, case.rows.base.class_counts)


def along_means(case: Evidence, rows: Mapping[str, Row]) -> pd.Series:
    r"""Mean cosine of a classifier's rows with the classes' mean training features, each less its mean over classes.

    Under a weight decay so strong that all probabilities stay near 1/C, a balanced loss pulls each row along the
    difference of two means, :math:`w_k \propto \mu_k - \frac{1}{C} \sum_j \mu_j`, whatever the classifier answers:
    what its gradient is at equal probabilities.

    Args:
        rows: by any name. Their weights are [C, D], as the means are.

    Returns:
        by name; NaN of a row that is not there or has a backbone of its own, and without features.
    """
    found = dict.fromkeys(rows, float("nan"))
    if case.features is None:
        return pd.Series(found)
    features, labels = case.features.draw(case.rows.settings.batch_size, case.rows.settings.seed, 0)
    means = class_means(features, labels, len(case.rows.base.class_counts)).cpu()
    for name, row in rows.items():
        classifier = case.classifier(row)
        if classifier is not None:
            weight = classifier.weight.detach().cpu()
            along = F.cosine_similarity(weight - weight.mean(0), means - means.mean(0), dim=1)
            found[name] = float(along.mean())
    return pd.Series(found)


def told_apart(own: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """What another first stage is called beside a base: by its network, or by how its images were mixed or augmented.

    Empty where it differs in both or in neither, in seed or loss, or has no weight decay.
    """
    deeper = own["backbone"] != base["backbone"]
    further = not {"mix", "augmentation"}.isdisjoint(own)
    alike = all(own.get(name) == base.get(name) for name in ("seed", "loss"))
    if not alike or not own["stage1_weight_decay"] or deeper == further:
        return ""
    return NETWORKS.get(own["backbone"], own["backbone"]) if deeper else own["method"]


def others(case: Evidence, base: runs.Result | None = None) -> dict[str, dict[str, runs.Result]]:
    """Other first stages that learned from the same images as a base, see `told_apart`, and their tuned rows.

    By what they are called, or by their folders where several are called alike; each row by its method, the first
    stage itself as WD. Those without a row are left out, and so are, with a warning, those that cannot be read.

    Args:
        base: None for the case's own.
    """
    settings, own, found = case.rows.settings, (base or case.rows.base).config, {}
    for path, config in read_configs(settings.first_stages).items():
        name = told_apart(config["settings"], own["settings"])
        if name and config["data"]["fingerprint"] == own["data"]["fingerprint"]:
            rows = tuned_rows(settings.out / "demo_2", path.name)
            for first in read_each([path], runs.Result.read).values():
                found[path.name if name in found else name] = {"WD": first, **rows}
    return {name: rows for name, rows in found.items() if len(rows) > 1}


def learned_alike(case: Evidence) -> list[runs.Result]:
    """The case's first stage, then those that learned as it did from other images of their classes."""
    folder, base = case.rows.settings.first_stages, case.rows.base
    alike = configs.alike(folder, base.config, ("choice", "precision", "test_every"))
    return [base, *read_each([path for path in alike if path != base.path], runs.Result.read).values()]


def at_other_rates(case: Evidence) -> list[runs.Result]:
    """First stages with weight decay of the case's length that differ in learning rate and weight decay alone, by rate.

    Of the case's images or, where there is but one, of others of their classes; none where there is but one of these.
    """
    free = ("lr", "stage1_weight_decay", "precision", "test_every")
    for plain in learned_alike(case):
        found = configs.alike(case.rows.settings.first_stages, plain.config, free)
        if len(found) > 1:
            return sorted(read_each(found, runs.Result.read).values(), key=lambda run: run.config["settings"]["lr"])
    return []


def augmented(case: Evidence) -> dict[str, dict[str, runs.Result]]:
    """The case's first stage and those whose images were mixed or augmented, each with its tuned rows as in `others`.

    All are of the same images: the case's own, or, where nothing was augmented on these, others, from which a first
    stage like the case's learned as well. The plain one comes first, alone where there is no other.
    """
    tuned = {method: result for (method, setting), result in case.found.items() if setting == SETTINGS["paper"]}
    for plain in learned_alike(case):
        if further := {name: rows for name, rows in others(case, plain).items() if name not in NETWORKS.values()}:
            own = plain is case.rows.base
            rows = tuned if own else tuned_rows(case.rows.settings.out / "demo_2", plain.path.name)
            return {PLAIN: {"WD": plain, **rows}} | further
    return {PLAIN: tuned}


def tuned_rows(folder: Path, stage1: str) -> dict[str, runs.Result]:
    """The finished rows on a first stage in the paper's mode, by method."""
    told = {path: config["settings"] for path, config in read_configs(folder).items()}
    of_it = (path for path, own in told.items() if own.get("stage1_run") == stage1)
    tuned = [path for path in of_it if told[path].get("mode") in (None, "", "paper")]
    return {told[path]["method"]: run for path, run in read_each(tuned, runs.Result.read).items()}


def over_seeds(case: Evidence) -> pd.DataFrame:
    """Accuracy over all classes of tuned rows on the first stages that learned as this one did, but for the seed.

    Returns:
        a row a method, a column a seed; methods of several seeds alone, so none where there is one network.
    """
    path = case.rows.settings.out / "results.csv"
    if not path.exists():
        return pd.DataFrame()
    rows = plain_rows(read_table(path, "--out"))
    rows = rows[rows["mode"].isna() | (rows["mode"] == "paper")]
    base = rows[rows.run == case.rows.base.path.name]
    alike = where(rows, **base[BASE].iloc[0].to_dict()) if len(base) else rows[:0]
    table = alike.pivot_table(index="method", columns="seed", values="all").dropna()
    return table if len(table.columns) > 1 else table[:0]


def landscape(case: Evidence) -> pd.DataFrame | None:
    """A classifier for each weight decay, radius (NaN for none) and order of the images; None without features."""
    settings, sources = case.rows.settings, case.rows.sources
    lr = case.rows.values("CB + WD + MaxNorm", "paper")["lr"]
    recipe = settings.recipe(loss=settings.loss, lr=lr)

    def every_pair() -> pd.DataFrame:
        radii = [*(sources.mean_norm * np.geomspace(0.15, 1.5, 9)).round(3), np.nan]
        orders = {seed: case.features.reordered(seed) for seed in range(3)}
        asked = pd.DataFrame(product(orders, DECAYS, radii), columns=["seed", "weight_decay", "max_norm"])
        asked = asked.assign(loss=settings.loss, lr=lr, max_norm_every="step")
        return Grid(sources.classifier, orders, recipe, asked).fit().table()

    into = None
    if settings.shipped or settings.committed:  # the run's folder is the package's own
        into = (ROOT / "build" if settings.committed else settings.out) / "landscape"
    return case.rows.base.cached("landscape", every_pair if case.features else None, recipe.describe(), into)


def best_radii(pairs: pd.DataFrame) -> pd.DataFrame:
    """The radius of `landscape` that adds most at each weight decay, by the test set: what MaxNorm can add at most.

    Returns:
        a row a weight decay: weight_decay, max_norm, gain and its deviation (points), moved (percent of the rows).
    """
    key = ["weight_decay", "seed"]
    plain = pairs[pairs.max_norm.isna()].set_index(key)["all"]
    limited = pairs[pairs.max_norm.notna()].set_index(key)
    limited = limited.assign(gain=limited["all"] - plain.reindex(limited.index))
    gains = limited.groupby(["weight_decay", "max_norm"]).agg(
        gain=("gain", "mean"), deviation=("gain", "std"), moved=("projected_share", lambda share: 100 * share.mean())
    )
    best = gains.dropna(subset="gain").sort_values("gain").groupby("weight_decay").tail(1)
    return best.sort_index().reset_index()


def rows_of(table: pd.DataFrame, loss: str) -> pd.DataFrame:
    """Rows of `temperatures` that differ in norms alone: of a loss, tuned, and MaxNorm at each radius."""
    limited = table.method == f"{loss} + MaxNorm"
    return table[table.method.isin(of_loss(loss)) & ((table.setting == "tuned") | limited)]


def in_text(table: pd.DataFrame, forms: Mapping[str, str]) -> pd.DataFrame:
    """Some columns as text, by their heads in forms as `{gain:+.2f} ±{error:.2f}`; rows named by method and setting.

    A missing number is an en dash.
    """
    rows = table.to_dict("records")
    names = [", ".join([row["method"], row["setting"]]) if "method" in row else "" for row in rows]
    cells = {head: [metrics.with_dashes(form.format(**row)) for row in rows] for head, form in forms.items()}
    return pd.DataFrame(cells, index=names)

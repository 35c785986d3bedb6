"""Does MaxNorm do anything, and is a radius anything but a temperature? Measured on the features that ship:

    python -m ltr maxnorm [--orders 5]

Classifiers learn with and without MaxNorm, after each step and each epoch, under the plain and the class-balanced
cross-entropy, with and without weight decay, in several orders of the images. Each is compared with the one that
differs by MaxNorm alone, image by image: in accuracy, and in likelihood once each has its own best temperature. That is
fitted on one half of the test images and used on the other, in turn, so that no image says how sure to be of itself.

The measurements go to `<out>/maxnorm.csv`, and how even the norms of the classifiers are, of all first stages on these
classes, to `<out>/norms.csv`, in place of earlier ones of the same first stage; `ltr report` shows those of CIFAR100-LT
at imbalance factor 100. All other options are the second script's.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch

from ltr import datasets, metrics, recipes, regularizers, runs
from ltr.balance import fit_temperature
from ltr.metrics import Predictions
from ltr.runtime.options import ROOT, option, short, whole
from ltr.runtime.storage import check_writable, update_table
from ltr.settings import SHIPPED, SecondStage
from ltr.stack import Grid
from ltr.study.rows import Rows, open_rows

NAME = "maxnorm.csv"
NORMS = "norms.csv"
SHORT = 0.5  # mean norms: a radius that rows reach, whatever was tuned
PAIR = ["loss", "weight_decay", "seed"]  # what a classifier shares with the one without MaxNorm


@dataclass(frozen=True, kw_only=True)
class Question(SecondStage):
    """Whether MaxNorm does anything, on shipped features."""

    orders: int = option(5, "orders of the training images, in each of which every classifier is trained", whole, low=2)


def choices(settings: Question, rows: Rows) -> pd.DataFrame:
    """A row a classifier, see `stack.Grid`: the tuned and the released radius, half the mean norm, and none."""
    tuned = rows.values("CB + WD + MaxNorm", "paper")
    released = regularizers.relative_radius(rows.sources.classifier.weight.detach(), recipes.RELEASED_FRACTION)
    radii = (tuned["max_norm"], released, SHORT * rows.sources.mean_norm)
    constraints = [(None, "step"), *product(radii, regularizers.EVERY)]
    every = product(range(settings.orders), (settings.loss, "ce"), (0.0, tuned["weight_decay"]), constraints)
    columns = ["seed", "loss", "weight_decay", "max_norm", "max_norm_every"]
    table = pd.DataFrame([(*shared, *constraint) for *shared, constraint in every], columns=columns)
    return table.assign(lr=tuned["lr"]).astype({"max_norm": float})


def temperature_scaled(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Logits [N, C], each half of the images divided by the temperature of the other half; and the mean of the two."""
    found, result = [], np.empty_like(logits)
    for half in (0, 1):
        found.append(fit_temperature(torch.as_tensor(logits[1 - half :: 2]), torch.as_tensor(labels[1 - half :: 2])))
        result[half::2] = logits[half::2] / found[-1]
    return result, float(np.mean(found))


def measured(logits: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> dict[str, float | np.ndarray]:
    """A classifier's measures as it is and at its temperature; `hits` and `likelihood` [N] are for the comparison."""
    scaled, temperature = temperature_scaled(logits, labels)
    made = Predictions.of(logits, labels)
    before = metrics.log_likelihood(logits, labels)
    after = metrics.log_likelihood(scaled, labels)
    measures = made.summary(counts) | {"nll": -float(before.mean()), "temperature": temperature}
    measures |= {"ece scaled": Predictions.of(scaled, labels).calibration_error(), "nll scaled": -float(after.mean())}
    return measures | {"hits": made.hits, "likelihood": after}


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """Beside each row with MaxNorm what it adds: accuracy in points, nats of likelihood at its temperature.

    Both with their paired standard errors over the test images.
    """
    plain = table[table.max_norm.isna()].set_index(PAIR)
    for index, row in table[table.max_norm.notna()].iterrows():
        other = plain.loc[tuple(row[PAIR])]
        gain, error = metrics.mean_and_error(100 * (row.hits - other.hits))
        nats, spread = metrics.mean_and_error(row.likelihood - other.likelihood)
        table.loc[index, ["gain", "gain ±", "nats", "nats ±"]] = gain, error, nats, spread
    return table.drop(columns=["hits", "likelihood"])


def measure(settings: Question, rows: Rows) -> pd.DataFrame:
    """Train all classifiers side by side, test each and compare: a row each."""
    sources, features = rows.sources, rows.sources.features["paper"]
    recipe = settings.recipe(loss=settings.loss, lr=settings.lr)
    orders = {seed: features.reordered(seed) for seed in range(settings.orders)}
    grid = Grid(sources.classifier, orders, recipe, choices(settings, rows)).fit()
    settings_of = grid.table()[["loss", "weight_decay", "max_norm", "max_norm_every", "seed", "projected_share"]]
    found = []
    for number, chosen in settings_of.iterrows():
        logits = features.test_logits(grid.classifier(number), 0)
        found.append({**chosen, **measured(logits, features.test_labels, features.class_counts)})
    return compared(pd.DataFrame(found)).assign(stage1_run=sources.base.path.name)


def evenness(results: Iterable[runs.Result]) -> pd.DataFrame:
    """How even the classifier's norms are at the end: many over few, and the largest over the smallest."""
    rows = []
    for result in results:
        norms = result.norms[-1]
        groups = metrics.group_of(result.class_counts)
        means = {group: norms[groups == group].mean() for group in metrics.GROUPS if (groups == group).any()}
        about = {"stage1_run": result.path.name, "weight_decay": result.config["settings"]["stage1_weight_decay"]}
        ratio = means["many"] / means["few"] if {"many", "few"} <= means.keys() else np.nan
        rows.append(about | {"many / few": ratio, "largest / smallest": norms.max() / norms.min()})
    return pd.DataFrame(rows)


def all_alike(rows: Rows) -> list[runs.Result]:
    """The first stage, its naive one, and all others beside it that learned from as many images of the same classes."""

    def classes(result: runs.Result) -> list[Any]:
        return [result.config["data"][name] for name in ("name", "class_names", "class_counts")]

    own = [each for each in (rows.base, rows.naive) if each]
    known = {each.path for each in own}
    others = runs.finished_runs(rows.settings.first_stages)
    return own + [each for each in others if each.path not in known and classes(each) == classes(rows.base)]


def main(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: an option is not allowed, or there are no such features.
    """
    given = {word.split("=")[0] for word in arguments}
    usual = {"--base": SHIPPED, "--out": str(ROOT / "exp")}
    own = [word for name, value in usual.items() if name not in given for word in (name, value)]
    settings = Question.of_command([*own, *arguments])
    print(settings, flush=True)
    check_writable(settings.out)
    rows = open_rows(settings, None if settings.shipped else datasets.load(**settings.data))
    table = measure(settings, rows)
    found = {NAME: table, NORMS: evenness(all_alike(rows))}
    for name, own in found.items():
        update_table(settings.out / name, own, lambda old, new: old.stage1_run.isin(new.stage1_run), ["stage1_run"])
    print(short(f"{len(table)} classifiers: {settings.out / NAME}; norms: {settings.out / NORMS}"))

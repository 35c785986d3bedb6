"""Values for every row of the paper's Table 1 of its own, chosen on held-out images:

    python -m ltr tune --preset paper --out exp/tuning --stage1 RUN

`RUN` is a first stage below `<out>/demo_1` that was trained with `--hold-out`, so that it never saw the images that
choose here. Every row's learning rate, weight decay, radius or tau is the best of a grid on them, and beside it stands
the temperature that fits them best. Radii are multiples of the mean norm of the first stage's rows, so that they can
be carried to another network. The table goes to `<out>/values.csv`; `--tuned-on RUN` gives it to the second script.
What was tried of the rows that learn side by side goes to `<out>/tried.csv`. Of a naive network tau alone is chosen.
All other options are the second script's.
"""

import contextlib
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from ltr import datasets, metrics, models, regularizers, training
from ltr.balance import fit_temperature
from ltr.errors import InputError, TrainingError
from ltr.methods import METHODS, Method
from ltr.runtime.options import short
from ltr.runtime.storage import update_table
from ltr.second_stage import Features
from ltr.settings import SecondStage
from ltr.stack import Grid
from ltr.study.rows import TAUS, TRIED, VALUE, VALUES, Rows, check_none_chosen, open_rows

LR = (1.0, 10.0)  # times --lr
DECAYS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
RADII = (1.5, 1.25, 1.0, 0.85, 0.7, 0.5, 0.35, 0.25)  # times the mean norm
COARSE = {"weight_decay": (1e-3, 1e-2), "radius": (1.0, 0.7)}  # of rows with more layers, which train one at a time
DIVERGED = "{}: training diverges with every setting; it keeps the preset's"


def candidates(method: Method, stage1_weight_decay: float) -> Iterator[dict[str, Any]]:
    """Learning rates, weight decays and radii that a row is tuned over, the simplest first."""
    alone = method.layers > 1
    decays = {"none": (0.0,), "stage 1": (stage1_weight_decay,)}
    decays["stage 2"] = COARSE["weight_decay"] if alone else DECAYS
    radii = (COARSE["radius"] if alone else RADII) if method.constraint == "MaxNorm" else (np.nan,)
    for lr, decay, radius in product(LR[:1] if alone else LR, decays[method.weight_decay], radii):
        yield {"lr": lr, "weight_decay": decay, "radius": radius}


def trained_grid(rows: Rows) -> tuple[Grid, pd.DataFrame]:
    """The rows whose classifier alone learns, without a constraint or inside a ball: every setting, all at once.

    Returns:
        the classifiers, and a row for each: method, loss, lr, weight_decay, radius (times the mean norm), max_norm
        (the same, absolute), max_norm_every, held_out (number of these images), and `all` in percent of them.
    """
    settings, asked = rows.settings, []
    for name, method in METHODS.items():
        if method.layers == 1 and method.constraint != "L2norm":
            loss = "ce" if method.loss == "CE" else settings.loss
            own = candidates(method, settings.stage1_weight_decay)
            asked += [{"method": name, "loss": loss, **each} for each in own]
    table = pd.DataFrame(asked)
    radii = table.radius * rows.sources.mean_norm
    told = table.assign(lr=table.lr * settings.lr, max_norm=radii, max_norm_every="step")
    recipe = settings.recipe(loss=settings.loss, lr=settings.lr)
    held_out = rows.sources.features["paper"]
    grid = Grid(rows.sources.classifier, held_out, recipe, told).fit()
    return grid, told.assign(held_out=len(held_out.test_labels), all=grid.table()["all"])


def best_in_grid(grid: Grid, tried: pd.DataFrame, held_out: Features) -> Iterator[dict[str, Any]]:
    """Each row's best setting of `trained_grid`."""
    for name, own in tried.groupby("method", sort=False):
        if own["all"].isna().all():
            print(DIVERGED.format(name), flush=True)
            continue
        best = own["all"].idxmax()
        logits = held_out.test_logits(grid.classifier(best), 0)
        yield best_of([{**own.loc[best].drop("held_out").to_dict(), "logits": logits}], held_out)


def one_at_a_time(rows: Rows, name: str) -> dict[str, Any] | None:
    """A row that no grid can train: unit norms, or more layers than the classifier.

    Returns:
        None where training diverges with every setting.
    """
    settings, method, found = rows.settings, METHODS[name], []
    loss = "ce" if method.loss == "CE" else settings.loss
    for each in tqdm(list(candidates(method, settings.stage1_weight_decay)), name, leave=False, disable=None):
        told = {"lr": each["lr"] * settings.lr, "weight_decay": each["weight_decay"]}
        learner, source, engine = rows.sources.learner(method.layers, "paper")
        constraint = method.constrain(each["radius"] * rows.sources.mean_norm, "step")
        with contextlib.suppress(TrainingError):  # a setting that diverges is not the one to choose
            outcome = training.fit(learner, source, settings.recipe(loss=loss, **told), constraint, engine=engine)
            found.append({"loss": loss, **told, "radius": each["radius"], "logits": outcome.logits["last", "none"]})
    return {"method": name} | best_of(found, rows.sources.features["paper"]) if found else None


def over_tau(classifier: nn.Linear, name: str, held_out: Features, taus: Sequence[float]) -> dict[str, Any]:
    """Tau-normalisation of a first stage's classifier."""
    found, weight = [], classifier.weight.detach()
    for tau in taus:
        normalised = models.linear(regularizers.tau_normalize(weight, float(tau)), classifier.bias)
        found.append({"tau": float(tau), "logits": held_out.test_logits(normalised, 0)})
    return {"method": name} | best_of(found, held_out)


def best_of(found: Sequence[dict[str, Any]], held_out: Features) -> dict[str, Any]:
    """The best on the held-out images, of equals the first: its values, accuracies and best temperature."""
    labels, counts = held_out.test_labels, held_out.class_counts
    rows = [each | metrics.group_accuracy(each["logits"], labels, counts) for each in found]
    best = rows[metrics.best_index([row["all"] for row in rows])]
    logits = torch.as_tensor(best.pop("logits"))
    return best | {"temperature": fit_temperature(logits, torch.as_tensor(labels))}


def chosen(rows: Rows, grid: Grid | None, tried: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Every row's values, chosen on the images that take the place of the test images.

    Args:
        grid, tried: of `trained_grid`; of a naive network none.
    """
    held_out, classifier = rows.sources.features["paper"], rows.sources.classifier
    if grid is None:
        yield over_tau(classifier, "naive", held_out, [0.0])
        yield over_tau(classifier, "naive + tau-norm", held_out, TAUS)
        return
    yield over_tau(classifier, "WD", held_out, [0.0])
    yield over_tau(classifier, "WD + L2norm", held_out, [1.0])
    yield over_tau(classifier, "WD + tau-norm", held_out, TAUS)
    yield from best_in_grid(grid, tried, held_out)
    for name, method in METHODS.items():
        if method.layers > 1 or method.constraint == "L2norm":
            row = one_at_a_time(rows, name)
            if row is None:
                print(DIVERGED.format(name), flush=True)
            else:
                yield row


def save(path: Path, run: str, table: pd.DataFrame) -> None:
    """Put the rows of a tuning run into the file, in place of its earlier ones."""
    key = "tuning_run"
    table.insert(0, key, run)
    update_table(path, table, lambda old, new: old[key].isin(new[key]), [key])


def main(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: an option is not allowed, or the first stage saw the images that would choose.
    """
    check_none_chosen(arguments, ["tuned_on"])
    settings = SecondStage.of_command(arguments)
    if not settings.hold_out:
        raise InputError("--hold-out: must be that of the first stage that chooses, got none")
    data = datasets.load(**settings.data).for_tuning()
    rows = open_rows(settings, data)
    print(f"tuned on {len(data.test):,} held-out images: {rows.base.path.name}", flush=True)
    grid, tried = trained_grid(rows) if settings.stage1_weight_decay else (None, pd.DataFrame())
    found = []
    for row in chosen(rows, grid, tried):
        found.append(row)
        print(f"{row['method']}: {row['all']:.2f} % on the held-out images", flush=True)
    values = pd.DataFrame(found)
    values = values.reindex(columns=values.columns.union(VALUE, sort=False))  # a naive network alone has a tau alone
    for name, table in {VALUES: values, TRIED: tried}.items():
        if len(table):
            save(settings.out / name, rows.base.path.name, table)
    print(short(f"all values: {settings.out / VALUES}"))

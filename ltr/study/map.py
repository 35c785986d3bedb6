"""Learning rate x weight decay: what finished first stages do on held-out images, before and after balancing.

    python -m ltr map exp/tuning/demo_1 [RUN ...] --data-root data --table exp/tuning/lr_wd.csv

Each run was trained with `--hold-out`, so that it never saw the images that score it here. A row is a run's network
under one classifier: the first stage's; logit adjustment at tau 1, which has nothing to choose and so is *the* balanced
one; tau-normalisation and CB + WD, whose settings are cross-fitted: every class's held-out images are halved, and those
of each half are classified by the setting that is best on the other one. Chosen and scored on the same images they
would look better than they are.

Behind each accuracy stands its standard error over the images, and what the cell gains over the one that has most in
common with the others (learning rate, weight decay, their product), with the paired standard error of the same images.
Neither knows what another seed would give.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ltr import datasets, metrics, models, recipes, runs
from ltr.errors import InputError
from ltr.methods import ADJUSTMENT, BALANCERS, FIRST
from ltr.runtime import configs
from ltr.runtime.engine import Engine
from ltr.runtime.machine import usable_device
from ltr.runtime.options import ROOT, Parser, file, folder, short
from ltr.runtime.process import set_up_libraries
from ltr.runtime.storage import check_writable, read_table, table_text, write_text
from ltr.second_stage import FrozenFeatures

BEFORE, AFTER = FIRST, ADJUSTMENT  # the map's two sides
BALANCED = ("tau-norm", "CB + WD")
MEASURES = ("all", *metrics.GROUPS)
PASSES = 1  # over cropped, flipped training images, which each epoch of CB + WD takes in an order of its own
CELL = ("lr", "weight decay", "lr x wd", "batch", "warm-up", "epochs")
FURTHER = recipes.PLAIN.keys() - {"warm_up"}  # which the map itself has
CUT = ("imbalance_factor", "profile", "choice", "hold_out", "seed", "normalization", "resize")  # of `datasets.load`
SET = ("imbalance_factor", "profile", "choice", "backbone")  # beside the images' name: what a reader looks for a map of


@dataclass(frozen=True)
class Scored:
    """A run's network under one classifier: its settings, and each held-out image's hit (1 or 0) and group, [N]."""

    about: dict[str, Any]
    hits: np.ndarray
    groups: np.ndarray

    def accuracies(self, values: np.ndarray) -> dict[str, float]:
        """Mean of a value of each image [N] over all and over each group, in percent, and its standard error."""
        measures = {}
        for name in MEASURES:
            own = 100.0 * (values if name == "all" else values[self.groups == name])
            measures[name], measures[f"{name} ±"] = metrics.mean_and_error(own) if len(own) else (np.nan, np.nan)
        return measures


def cross_fitted(hits: np.ndarray, halves: np.ndarray) -> np.ndarray:
    """Hits [N] of settings that are chosen on one half of the images and scored on the other.

    Args:
        hits: [S, N], of each setting, NaN where it diverged; of equals the first is chosen.
        halves: [N], 0 or 1.
    """
    chosen = [metrics.best_index(hits[:, halves != half].mean(1)) for half in (0, 1)]
    return np.where(halves == 0, hits[chosen[0]], hits[chosen[1]])


def halves_of(labels: np.ndarray) -> np.ndarray:
    """A half, 0 or 1, for each image [N]: every class's images in turn."""
    return pd.Series(labels).groupby(labels).cumcount().to_numpy() % 2


def cell(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """A run's settings, as the map's rows have them."""
    lr, decay = settings["lr"], settings["stage1_weight_decay"]
    how = {"batch": settings["batch_size"], "warm-up": settings.get("warm_up", 0), "epochs": settings["stage1_epochs"]}
    own = {"lr": lr, "weight decay": decay, "lr x wd": round(lr * decay, 12)}
    return {**own, **how, "further": recipes.unusual(settings, FURTHER), "run": name}


@cache
def held_out_images(source: str, root: Path, **cut: Any) -> datasets.LongTailed:
    """Images that a run learned from, and those that it never saw to test on; many runs share them."""
    return datasets.load(source, root, **cut).for_tuning()


def scored(path: Path, root: Path, device: str) -> Iterator[Scored]:
    """A run's network under every classifier.

    Raises:
        InputError: it saw the held-out images, is not finished, or learned from other images.
    """
    run = runs.Result.read(path)
    settings = run.config["settings"]
    if settings["hold_out"] < 2:
        raise InputError(f"RUN: must be trained with --hold-out 2 or more, {path.name} has {settings['hold_out']}")
    data = held_out_images(settings["dataset"], root, **{name: settings[name] for name in CUT if name in settings})
    if data.describe()["fingerprint"] != run.config["data"]["fingerprint"]:
        raise InputError(f"--data-root: must hold the images of {path.name}, got others")
    model = models.restore(settings["backbone"], len(run.class_counts), run.weights(), device)
    recipe = recipes.Recipe(10, lr=0.01, loss="cb-ce", seed=settings["seed"])
    engine = Engine(model.classifier.weight.device)
    features = FrozenFeatures(model, data, device, seed=recipe.seed, engine=engine, augmented=PASSES)
    labels = features.test_labels
    groups = metrics.group_of(run.class_counts)[features.test_labels]
    for name in (BEFORE, AFTER, *BALANCED):
        tried = [{"tau": 1.0}] if name == AFTER else BALANCERS[name].candidates
        found = BALANCERS[name].fit(models.copy_classifier(model), features, recipe, tried)
        logits = (features.test_logits(classifier, 0) for classifier in found)
        hits = np.stack([metrics.hits_of(each, labels) for each in logits])
        own = cross_fitted(hits, halves_of(labels)) if name in BALANCED else hits[0]
        of = {"dataset": run.config["data"]["name"], **{key: settings[key] for key in SET}}
        yield Scored(of | cell(settings, path.name) | {"classifier": name}, own, groups)


def reference_run(cells: pd.DataFrame) -> str:
    """The run that has most in common with the others: learning rate, weight decay, product, batch, warm-up, length; of
    equals the plainest.
    """
    shared = [sum((cells[name] == row[name]).sum() for name in CELL) for row in cells.to_dict("records")]
    further = [len(str(words).split(", ")) if words else 0 for words in cells.further.fillna("")]
    return cells.run.iloc[max(range(len(cells)), key=lambda row: (shared[row], -further[row]))]


def tabulate(found: Sequence[Scored]) -> pd.DataFrame:
    """A row a network and classifier: settings, accuracies, gains over the middle cell's, by group; in percent."""
    reference = reference_run(pd.DataFrame([each.about for each in found if each.about["classifier"] == BEFORE]))
    against = {each.about["classifier"]: each.hits for each in found if each.about["run"] == reference}
    rows = []
    for each in found:
        gains = each.accuracies(each.hits - against[each.about["classifier"]])
        gains = {re.sub(r"^\w+", r"\g<0> gain", name): value for name, value in gains.items()}
        rows.append({**each.about, **each.accuracies(each.hits), **gains, "against": reference})
    table = pd.DataFrame(rows).sort_values(["batch", "warm-up", "epochs", "lr", "weight decay"], kind="stable")
    return table[[*table.columns.drop(["run", "against"]), "run", "against"]]


def with_weights(folder: Path) -> list[Path]:
    """The finished runs of a folder that can be scored; a warning names those whose weights are not there."""
    every = configs.finished_runs(folder)
    without = [run.name for run in every if not (run / "weights.pt").exists()]
    if 0 < len(without) < len(every):
        warnings.warn(f"passed over, as their weights are not there: {', '.join(without)}", stacklevel=2)
    return [run for run in every if run.name not in without]


def run_folders(given: Sequence[Path]) -> list[Path]:
    """The runs that are named, and those of each folder that is named.

    Raises:
        InputError: there is no finished run.
    """
    found = [run for each in given for run in ([each] if (each / "summary.json").exists() else with_weights(each))]
    if not found:
        raise InputError(f"RUN: must be a finished run with its weights, or a folder of some, got {short(given[0])}")
    return list(dict.fromkeys(found))


def check_none_lost(table: Path, given: Sequence[Path]) -> None:
    """Raises InputError where a table has rows of runs that are not given: all gains are over one cell."""
    if table.is_file():
        lost = sorted({*read_table(table, "--table", ["run"]).run} - {path.name for path in given})
        if lost:
            raise InputError(f"--table: must be another file, or {lost[0]} given too, whose rows {table.name} holds")


def main(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: see `scored`, `run_folders` and `check_none_lost`.
    """
    parser = Parser(prog="ltr map", about=__doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=folder, help="finished first stages, or folders of them")
    parser.add_argument("--data-root", type=folder, default=ROOT / "data", help="where the images are")
    parser.add_argument("--table", type=file, default=ROOT / "exp" / "tuning" / "lr_wd.csv", help="what to write")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    options = parser.parse_args(arguments)
    check_writable(options.table.parent, "--table")
    device = usable_device(options.device)
    found = []
    given = run_folders(options.runs)
    check_none_lost(options.table, given)
    set_up_libraries(deterministic=False)
    for path in given:
        found += scored(path, options.data_root, device)
        own = found[-2 - len(BALANCED) :]
        measures = {each.about["classifier"]: metrics.or_dash(100 * each.hits.mean()) for each in own}
        print(f"{path.name}: " + ", ".join(f"{name} {value} %" for name, value in measures.items()), flush=True)
    write_text(options.table, table_text(tabulate(found)))
    print(short(f"table: {options.table}"))

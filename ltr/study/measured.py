"""What tables beside the runs tell of a chapter's network: what was tried on held-out images, and compared."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ltr import metrics
from ltr.errors import InputError
from ltr.methods import FIRST
from ltr.recipes import of_images
from ltr.runtime.storage import read_table
from ltr.study.cells import where
from ltr.study.chapter import Chapter
from ltr.study.paper_tables import CHOICES
from ltr.study.rows import TRIED, Rows, tuned_like


def table_at(path: Path, needs: Sequence[str]) -> pd.DataFrame:
    """A table that a chapter can do without: no rows where there is none, or, with a warning, where it cannot be read.

    Args:
        needs: columns that it must have.
    """
    if path.exists():
        try:
            return read_table(path, "--out", needs)
        except (InputError, OSError) as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
    return pd.DataFrame(columns=[*needs])


def tuning(rows: Rows) -> pd.DataFrame:
    """What `ltr compare` tried on held-out images, on the longest network that learned as this first stage; no rows
    without any.

    Returns:
        a row a setting of a method: method, tau, weight decay, lr, ..., and many, medium, few, all in percent.
    """
    columns = ["method", "tau", "weight decay", "lr", "radius / mean norm", "all", "held_out", "chosen"]
    folder = rows.settings.out / "tuning"
    table = table_at(folder / "comparison.csv", [*columns, "stage1_run", "stage1_epochs"])
    table = table[table.stage1_run.isin(tuned_like(rows.base, folder / "demo_1", table.stage1_run))]
    return table[table.stage1_epochs == table.stage1_epochs.max()]


def tried(rows: Rows) -> pd.DataFrame:
    """What `ltr tune` tried on held-out images to choose the values of these rows; no rows without any.

    Returns:
        a row a setting of a method: method, lr, weight_decay, radius (times the mean norm), held_out (the number of
        images), all (percent of them).
    """
    columns = ["method", "lr", "weight_decay", "radius", "held_out", "all"]
    table = table_at(rows.settings.out / "tuning" / TRIED, ["tuning_run", *columns])
    return table[table.tuning_run.isin(rows.tuned.get("tuning_run", []))]


def compared(rows: Rows, method: str) -> pd.DataFrame:
    """What `ltr compare` measured of a method on this first stage and on the naive one, by their weight decay.

    Returns:
        columns many, medium, few, all in percent, hyper-parameters in words; index the first stage's weight decay.
    """
    measures = [*metrics.GROUPS, "all", "hyper-parameters"]
    table = table_at(rows.settings.out / "comparison.csv", ["stage1_run", "stage1_weight_decay", "method", *measures])
    firsts = [each.path.name for each in (rows.base, rows.naive) if each]
    found = where(table[table.stage1_run.isin(firsts)], method=method)
    return found.set_index("stage1_weight_decay")[measures]


def alike(chapter: Chapter) -> dict[str, Any]:
    """What rows of a table must have that are of a chapter's network on its images."""
    of = {name: getattr(chapter.settings, name) for name in ("imbalance_factor", "profile", "backbone")}
    return {"dataset": chapter.about["name"], **of}


def map_of(chapter: Chapter) -> pd.DataFrame:
    """What `ltr map` found of a chapter's network on its images, see there; no rows without any."""
    columns = ["lr", "weight decay", "classifier", "batch", "warm-up", "epochs", "further", "choice", "all", "all ±"]
    columns += [*metrics.GROUPS, *alike(chapter)]
    return where(table_at(chapter.settings.out / "tuning" / "lr_wd.csv", columns), **alike(chapter))


def tuning_runs(chapter: Chapter) -> pd.DataFrame:
    """First stages of several weight decays, trained without the held-out images and tested on these, a row each.

    Those of this network and learning rate, of the map where it has several, else of results.csv; the longest ones.

    Returns:
        columns stage1_weight_decay, stage1_epochs, choice, many, medium, few, all; last epoch, plain, percent.
    """
    settings = chapter.settings
    columns = ["stage1_weight_decay", "stage1_epochs", "choice", *metrics.GROUPS, "all"]
    own = {"lr": settings.lr, "batch": settings.batch_size, "warm-up": settings.warm_up, "further": None}
    mapped = where(map_of(chapter), **own, classifier=FIRST)
    mapped = mapped.rename(columns={"weight decay": columns[0], "epochs": columns[1]})
    if mapped[columns[0]].nunique() > 1:
        return mapped[columns]
    wanted = {**alike(chapter), "lr": settings.lr, "selection": "last", "tta": "none"}
    table = where(table_at(settings.out / "tuning" / "results.csv", [*columns, *wanted]), **wanted)
    table = table.fillna({"choice": of_images(settings.dataset)["choice"]})  # told where it is not the usual one
    return table[table.stage1_epochs == table.stage1_epochs.max()][columns]


def print_other_images(chapter: Chapter, choices: Iterable[str]) -> None:
    """Say which images networks learned from, where these are not the ones of the chapter's network."""
    if others := sorted({*choices} - {chapter.settings.choice}):
        words = [CHOICES.get(choice, choice) for choice in others]
        print(f"(these networks learned from another choice of the images: {', '.join(words)})")

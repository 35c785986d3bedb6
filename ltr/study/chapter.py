"""What a chapter is made of: images where they are at hand, runs, figures, tables, and claims that are checked.

A chapter without options reads the committed runs: it writes nothing, and shows the committed picture where images
would be needed. What it claims about them is asserted; of any other runs it says whether it holds.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from ltr import datasets, metrics, models, plots, runs, training
from ltr.errors import InputError
from ltr.first_stage import ImageData
from ltr.runtime import distributed, process
from ltr.settings import FirstStage, SecondStage
from ltr.study.rows import Rows, open_rows

COLUMNS = {"many": "many", "medium": "medium", "few": "few", "all": "all", "ece": "ECE"}


@dataclass(frozen=True)
class Chapter:
    """A notebook's or script's way to images, runs and readers.

    Attributes:
        settings: what was asked.
    """

    settings: FirstStage | SecondStage

    # ---- images and runs

    @cached_property
    def _images(self) -> tuple[datasets.LongTailed | None, datasets.Absent | None]:
        """The images, or why there are none."""
        if self.settings.committed or getattr(self.settings, "base", "trained") == "shipped":
            return None, None
        try:
            return datasets.load(**self.settings.data), None
        except datasets.Absent as absent:
            print(f"{absent}; only finished runs can be read")
            return None, absent

    @property
    def data(self) -> datasets.LongTailed | None:
        """The images; None where only finished runs can be read."""
        return self._images[0]

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the images are, as `LongTailed.describe` gives it; of a finished first stage where there are none.

        Raises:
            InputError: there are neither images nor a run.
        """
        data, absent = self._images
        if data is not None:
            return data.describe()
        if isinstance(self.settings, SecondStage):
            return self.rows.base.config["data"]
        stages = self.settings.out / "demo_1"
        return runs.find(stages, self.settings.identity(), absent=absent).config["data"]

    @cached_property
    def classes(self) -> pd.DataFrame:
        """A row a class: class_index, name, count (training images), group."""
        counts = np.array(self.about["class_counts"])
        shared = {"class_index": np.arange(len(counts)), "name": self.about["class_names"]}
        return pd.DataFrame({**shared, "count": counts, "group": metrics.group_of(counts)})

    @property
    def order(self) -> np.ndarray:
        """Classes from the most common to the rarest, [C]."""
        return np.argsort(-self.classes["count"].to_numpy(), kind="stable")

    def first_stage(self, method: str, weight_decay: float) -> runs.Result:
        """Train a network, or go on training it, or load it where it is finished.

        Args:
            method: its name in tables.
            weight_decay: lambda.
        """
        settings, counts = self.settings, self.classes["count"].to_numpy()
        label, identity = settings.run_key(method, weight_decay)
        run = runs.open_run(settings.out / "demo_1", label, identity, self.about["fingerprint"])

        def train() -> training.Outcome:
            model = models.build_model(settings.backbone, len(counts), settings.seed, settings.cosine)
            model.to(settings.device, memory_format=torch.channels_last)
            images = ImageData(self.data, settings.device, **settings.augmented)
            recipe, engine = settings.recipe(weight_decay), settings.engine
            return training.fit(model, images, recipe, None, run.checkpoint, method, engine)

        return run.load_or_train(self.data, train, settings.device, counts, settings.retrain)

    @cached_property
    def rows(self) -> Rows:
        """The second stage's rows on the first stage that the settings name."""
        return open_rows(self.settings, *self._images)

    def keep(self, results: list[runs.Result]) -> pd.DataFrame:
        """Put runs into results.csv, unless it has them already as committed; return the table."""
        path = self.settings.out / "results.csv"
        if self.settings.committed:
            return runs.read_table(path)
        return runs.append_results(path, results)

    # ---- what a reader sees

    def path(self, name: str) -> Path:
        """Where a figure is kept."""
        return self.settings.figures_folder / name

    def show(self, figure: Figure, name: str) -> None:
        """Show a figure, and keep it beside the runs."""
        plots.show(figure, None if self.settings.committed else self.path(name))

    def animate(self, figures: Iterable[Figure], name: str, seconds: float = 0.3) -> None:
        """Show figures of one size one after another, as an animation."""
        plots.show_animation(figures, None if self.settings.committed else self.path(name), seconds)

    def picture(self, name: str, make: Callable[[], Figure]) -> None:
        """Show a figure that needs images; without them the one that is committed.

        Args:
            name: of its file.
            make: draws it.
        """
        if self.data is not None:
            self.show(make(), name)
        elif self.path(name).exists():
            plots.show_picture(self.path(name))
        else:
            print(f"{name}: needs the images")

    def results(self, results: list[runs.Result], note: str = "") -> None:
        """Show accuracies by group with their standard errors; bold are those that the best is not clearly above.

        Args:
            results: a row each.
            note: beside the protocol.
        """
        show_table(accuracy_table(results), " ".join([protocol(self.settings), note]).strip())

    def claim(self, sentence: str, holds: bool) -> None:
        """Say what was found, and whether it is so.

        Args:
            sentence: what a reader is told.
            holds: whether the runs at hand say so.

        Raises:
            AssertionError: the committed runs do not.
        """
        if self.settings.committed and not holds:
            raise AssertionError(f"the committed runs do not say: {sentence}")
        print(f"{'holds' if holds else 'does not hold here'}: {sentence}")


def hits_of(result: runs.Result) -> tuple[np.ndarray, np.ndarray] | None:
    """Whether each test image is a hit, and its label, [N] each; None where the folder does not say."""
    try:
        logits, labels = result.test_logits
    except InputError:
        return None
    return logits.argmax(1) == labels, labels


def accuracy_table(results: Sequence[runs.Result]) -> pd.DataFrame:
    """Accuracies in percent as HTML, under each its standard error over test images.

    Args:
        results: a row each; rows that are not clearly below the best one over all classes are bold: within two paired
            standard errors of it.

    Source: `metrics.mean_and_error` for the errors, `metrics.best_rows` for what is bold.
    """
    hits = [hits_of(result) for result in results]
    known = [index for index, each in enumerate(hits) if each is not None]
    bold = np.zeros(len(results), bool)
    if known:
        bold[known] = metrics.best_rows(np.stack([hits[index][0] for index in known]))
    rows = {
        result.label: accuracy_cells(result, each, best) for result, each, best in zip(results, hits, bold, strict=True)
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def accuracy_cells(result: runs.Result, hits: tuple[np.ndarray, np.ndarray] | None, bold: bool) -> dict[str, str]:
    """A row of `accuracy_table`."""
    cells, groups = {}, metrics.group_of(result.class_counts)
    for key, name in COLUMNS.items():
        value = metrics.percent(result.accuracy()[key])
        value = f"<b>{value}</b>" if bold and key == "all" else value
        if hits is not None and key != "ece" and value != "–":
            hit, labels = hits
            inside = np.ones(len(labels), bool) if key == "all" else groups[labels] == key
            value += f"<br><small>±{metrics.standard_error(hit[inside], labels[inside]):.2f}</small>"
        cells[name] = value
    return cells


def show_table(frame: pd.DataFrame, note: str = "") -> None:
    """Show a table: HTML in a notebook, text in a script.

    Args:
        frame: its cells are text, as they shall stand.
        note: a line below it.
    """
    if not distributed.current().is_main:
        return
    if not process.in_ipython():
        plain = frame.replace({"<br>": " ", r"</?\w+>": ""}, regex=True)
        print(plain.to_string(), *([note] if note else []), sep="\n")
        return
    from IPython.display import HTML, display  # only a notebook has it

    html = frame.to_html(escape=False, border=0, justify="right")
    display(HTML(f"{html}<p><small>{note}</small></p>" if note else html))


def protocol(settings: FirstStage | SecondStage) -> str:
    """How figures came about: network, length, seed, epoch and test, in a line."""
    first = getattr(settings, "stage1_epochs", settings.epochs)
    length = f"{first} epochs" + (f", then {settings.epochs} of the classifier" if first is not settings.epochs else "")
    return f"{settings.backbone}, {length}, seed {settings.seed}; last epoch, plain test images; %."

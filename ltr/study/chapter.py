"""What a chapter is made of: images where they are at hand, runs, figures, tables, and claims that are checked.

A chapter without options reads the committed runs: it writes nothing, and shows the committed picture where images
would be needed. What it claims about them is asserted; of any other runs it says whether it holds.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ltr import analysis, datasets, metrics, models, plots, regularizers, runs, training
from ltr.first_stage import ImageData
from ltr.recipes import LATER
from ltr.runtime.options import flag
from ltr.runtime.storage import read_table
from ltr.second_stage import FrozenFeatures
from ltr.settings import FirstStage, SecondStage
from ltr.study.page import BOLD, accuracy_table, end, show_table
from ltr.study.rows import Rows, open_rows
from ltr.study.sweep import new_training

Compute = Callable[[FrozenFeatures], pd.DataFrame]


def train_network(
    settings: FirstStage, data: datasets.LongTailed, weight_decay: float, run: runs.Run, method: str
) -> training.Outcome:
    """Train a first stage, or go on with it."""
    images = ImageData(data, settings.device, **settings.augmented)
    return training.fit_together([new_training(settings, images, weight_decay, run.checkpoint, method)])[0]


def say_absent(absent: datasets.Absent | None) -> None:
    """Say that there are no images, where finished runs do in their place."""
    if absent is not None:
        print(f"{absent}; only finished runs can be read")


def first_stage_option(setting: str) -> str:
    """The first script's option of a setting of its runs, which the second one calls by another name."""
    return flag(setting.removeprefix("stage1_"))


def finished_first_stage(settings: FirstStage, absent: datasets.Absent | None) -> runs.Result:
    """A run like the one that the settings would make, on whatever images; `absent` says why there are none.

    Raises:
        NoRun: there is none.
    """
    wanted = dict.fromkeys((*settings.augmented, *LATER)) | settings.identity()  # None of a run that did without
    found = runs.find(settings.out / "demo_1", wanted, absent=absent, called=first_stage_option)
    say_absent(absent)
    return found


@dataclass(frozen=True)
class Chapter:
    """A notebook's or script's way to images, runs and readers, as its settings ask."""

    settings: FirstStage | SecondStage

    # ---- images and runs

    @cached_property
    def _images(self) -> tuple[datasets.LongTailed | None, datasets.Absent | None]:
        """The images, or why there are none."""
        settings = self.settings
        if settings.committed or settings.shipped:
            return None, None
        try:
            return datasets.load(**settings.data), None
        except datasets.Absent as absent:
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
        return finished_first_stage(self.settings, absent).config["data"]

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

    def run(self, method: str, weight_decay: float) -> runs.Run:
        """The folder of a first stage, see `first_stage`."""
        label, identity = self.settings.run_key(method, weight_decay)
        return runs.open_run(self.settings.out / "demo_1", label, identity, self.about["fingerprint"])

    def first_stage(self, method: str, weight_decay: float) -> runs.Result:
        """Train a network, or go on training it, or load it where it is finished; `method` names it in tables."""
        settings, run = self.settings, self.run(method, weight_decay)
        train = partial(train_network, settings, self.data, weight_decay, run, method)
        counts = self.classes["count"].to_numpy()
        about = None if self.data is None else self.data.describe()
        return run.load_or_train(about, train, settings.device, counts, settings.retrain)

    def of_images(self, name: str, result: runs.Result, compute: Compute) -> pd.DataFrame | None:
        """A table about a first stage's features, read from its run, else computed; None where that takes images."""
        settings = self.settings

        def make() -> pd.DataFrame:
            model = models.restore(settings.backbone, len(self.classes), result.weights(), settings.device)
            return compute(FrozenFeatures(model, self.data, settings.device, engine=settings.engine))

        return result.cached(name, None if self.data is None else make)

    @cached_property
    def rows(self) -> Rows:
        """The second stage's rows on the first stage that the settings name."""
        rows = open_rows(self.settings, *self._images)
        say_absent(self._images[1])
        return rows

    def keep(self, results: list[runs.Result]) -> pd.DataFrame:
        """Put runs into results.csv, unless it has them already as committed; return the table."""
        path = self.settings.out / "results.csv"
        if self.settings.committed:
            return read_table(path)
        return runs.append_results(path, results)

    def end_with(self, method: str, weight_decay: float) -> NoReturn:
        """Train or load one network alone, show it, and end the page: there is nothing to compare it to."""
        result = self.first_stage(method, weight_decay)
        self.results([result])
        self.keep([result])
        end("what this chapter compares needs --naive train")

    # ---- what a reader sees

    def path(self, name: str) -> Path:
        """Where a figure is kept: a folder for each first stage with weight decay, of that run's name."""
        settings = self.settings
        run = self.rows.base if isinstance(settings, SecondStage) else self.run("WD", settings.weight_decay)
        return settings.out / "figures" / run.path.name / name

    def show(self, figure: Figure, name: str) -> None:
        """Show a figure, and keep it beside the runs."""
        plots.show(figure, None if self.settings.committed else self.path(name))

    def animate(self, figures: Iterable[Figure], name: str) -> None:
        """Show figures of one size one after another, as an animation."""
        plots.show_animation(figures, None if self.settings.committed else self.path(name))

    def picture(self, name: str, make: Callable[[], Figure]) -> None:
        """Show a figure that needs images; without them the one that is committed."""
        if self.data is not None:
            self.show(make(), name)
        elif self.path(name).exists():
            plots.show_picture(self.path(name))
        else:
            print(f"{name}: needs the images")

    @property
    def protocol(self) -> str:
        """How this chapter's numbers came about, see `protocol`."""
        settings = self.settings
        first = self.rows.base.config["settings"] if isinstance(settings, SecondStage) else settings.identity()
        return protocol(settings, first)

    def results(self, results: Sequence[runs.Result] | Mapping[str, runs.Result], note: str = "") -> None:
        """Show accuracies by group with their standard errors; bold are those that the best is not clearly above.

        Args:
            results: a row each, under its own name or under those given.
            note: beside the protocol.
        """
        results = results if isinstance(results, Mapping) else {result.label: result for result in results}
        bold = BOLD if len(results) > 1 else ""
        show_table(accuracy_table(results), " ".join(filter(None, [self.protocol, note, bold])))

    def claim(self, sentence: str, holds: bool) -> None:
        """Tell a reader what was found, and whether it holds for the runs at hand.

        A sentence with a number that is NaN is about something that these runs have not measured.

        Raises:
            AssertionError: the committed runs do not say so.
        """
        if self.settings.committed and not holds:
            raise AssertionError(f"the committed runs do not say: {sentence}")
        said = metrics.with_dashes(sentence)
        print(f"{'not measured here' if said != sentence else 'holds' if holds else 'does not hold here'}: {said}")


def geometry(frozen: FrozenFeatures) -> pd.DataFrame:
    """Fisher's ratio and mean cosines, a row for training and for test images."""
    parts = {"train": frozen.plain(), "test": (frozen.test_features(0, False), frozen.test.labels)}
    return pd.DataFrame([{"images": name, **analysis.geometry(*pair)} for name, pair in parts.items()])


def mean_logits(frozen: FrozenFeatures) -> pd.DataFrame:
    """Mean logit of each class over its own test images and over all others, see `analysis.mean_logits`."""
    logits = frozen.test_logits(models.copy_classifier(frozen.model), 0)
    return analysis.mean_logits(logits, frozen.test_labels)


def where_the_tail_sits(frozen: FrozenFeatures) -> pd.DataFrame:
    """Accuracy by group of a first stage's classifier as learned, without its biases, and with rows of one length."""
    learned = models.copy_classifier(frozen.model)
    weight, bias = learned.weight.detach(), learned.bias
    heads = {"as learned": learned, "without biases": models.linear(weight, None)}
    heads["with rows of one length"] = models.linear(regularizers.tau_normalize(weight, 1.0), bias)
    counts = frozen.class_counts
    logits = {name: frozen.test_logits(head, 0) for name, head in heads.items()}
    parts = {name: metrics.group_accuracy(each, frozen.test_labels, counts) for name, each in logits.items()}
    return pd.DataFrame([{"classifier": name, **own} for name, own in parts.items()])


def difference(before: runs.Result, after: runs.Result) -> metrics.Difference:
    """What the second model has over the first one over all classes, in points, with its paired standard error."""
    return metrics.paired_difference(before.predictions.hits, after.predictions.hits)


def protocol(settings: FirstStage | SecondStage, first: Mapping[str, Any]) -> str:
    """How numbers came about: network, length, values, seed, epoch and test, in a line.

    Args:
        first: settings of the first stage, as its run's config has them.
    """
    widths = "-".join(map(str, models.BACKBONES[settings.backbone].get("widths", [])))
    network = f"{settings.backbone} ({widths} channels)" if widths else settings.backbone
    told = [f"{first['stage1_epochs']} epochs at {first['lr']:g}, batch {first['batch_size']}"]
    if isinstance(settings, SecondStage):
        told.append(f"then {settings.epochs} epochs of the classifier")
    return f"{network}, {', '.join(told)}, seed {settings.seed}; last epoch, plain test images; %."

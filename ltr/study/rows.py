"""The rows of the paper's Table 1 on one first stage: each is trained, or loaded where it is finished."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from ltr import metrics, models, recipes, regularizers, runs, second_stage, training
from ltr.data.large_sets import LARGE_SETS
from ltr.datasets import LongTailed
from ltr.errors import InputError, TrainingError, clip
from ltr.first_stage import ImageData
from ltr.methods import METHODS
from ltr.runtime import configs
from ltr.runtime.engine import Engine
from ltr.runtime.options import flag
from ltr.runtime.storage import read_table
from ltr.second_stage import FEATURES, Features, FrozenFeatures, read_features
from ltr.settings import CHOSEN, SHIPPED, SecondStage

VALUES = "values.csv"  # in a folder of tuning runs: what was chosen,
TRIED = "tried.csv"  # and from what
TUNED = "tuned.csv"  # beside features that ship
VALUE = ("lr", "weight_decay", "radius", "tau", "temperature")  # columns of either
AUTO = "auto"  # the tuning run that learned as the first stage did
TAUS = tuple(np.arange(0, 3.01, 0.1).round(1).tolist())  # of tau-normalisation
MAPS = 2  # last blocks, whose five layers are the most that a row trains


@dataclass(frozen=True)
class Sources:
    """What rows learn from: a first stage's network, and its features in each mode.

    Attributes:
        base: the first stage with weight decay.
        data: images; None where there are none, so that finished rows alone can be read.
        maps: what the last blocks take, by mode; gigabytes, so those of one mode at a time.
    """

    settings: SecondStage
    base: runs.Result
    data: LongTailed | None
    maps: dict[str, FrozenFeatures] = field(default_factory=dict)

    @property
    def streamed(self) -> bool:
        """Whether images stay in their files, so that their maps would be too large to keep."""
        return self.settings.dataset in LARGE_SETS

    def network(self, first: runs.Result) -> models.Network:
        """A network as its first stage left it."""
        settings = self.settings
        return models.restore(settings.backbone, len(first.class_counts), first.weights(), settings.device)

    @cached_property
    def classifier(self) -> nn.Linear:
        """The base's classifier."""
        return models.copy_classifier(self.network(self.base))

    @cached_property
    def mean_norm(self) -> float:
        """Of the rows of the base's classifier; radii that can be carried to another network are multiples of it."""
        return float(regularizers.row_norms(self.classifier.weight.detach()).mean())

    def extract(self, model: nn.Module, mode: str, on_host: bool = False) -> FrozenFeatures:
        """A network's features in the paper's or the released mode."""
        settings = self.settings
        mode = "released" if mode == "released" else "paper"
        draws = settings.batch_size, settings.seed, settings.engine
        return FrozenFeatures(model, self.data, settings.device, mode, *draws, on_host=on_host)

    @cached_property
    def features(self) -> dict[str, Features]:
        """The base's features by mode, computed when first needed; none where there are neither images nor features."""
        if self.settings.shipped or (self.data is None and (self.base.path / FEATURES).exists()):
            paper = read_features(self.base.path / FEATURES, self.settings.device)
            return {"paper": paper, "published": paper}
        if self.data is None:
            return {}
        paper, released = (self.extract(self.network(self.base), mode) for mode in ("paper", "released"))
        return {"paper": paper, "published": paper, "released": released}

    @property
    def paper(self) -> Features:
        """The base's features in the paper's mode.

        Raises:
            InputError: there are neither images nor features.
        """
        if "paper" not in self.features:
            raise InputError("--data-root: must hold the images, or give --base shipped")
        return self.features["paper"]

    def maps_of(self, mode: str) -> FrozenFeatures:
        """The maps of a mode; those of another one are let go."""
        mode = "released" if mode == "released" else "paper"
        if mode not in self.maps:
            self.maps.clear()
            self.maps[mode] = self.extract(models.Trunk(self.network(self.base), MAPS), mode, on_host=True)
        return self.maps[mode]

    def learner(self, layers: int, mode: str) -> tuple[nn.Module, training.Data, Engine]:
        """What learns, from what, and how: the classifier on features, more layers on maps or images."""
        settings = self.settings
        if layers == 1:
            start = models.linear(self.classifier.weight, self.classifier.bias)
            return start, self.features[mode], settings.engine.exact
        model, drifts = self.network(self.base), mode == "released"
        if self.streamed:
            last = models.LastLayers(model, layers, drifts=drifts, from_images=True)
            return last, ImageData(self.data, settings.device), settings.engine
        return models.LastLayers(model, layers, MAPS, drifts), self.maps_of(mode), settings.engine


@dataclass(frozen=True)
class Rows:
    """Rows on one first stage.

    Attributes:
        sources: what they learn from.
        naive: the first stage without weight decay, trained in the same way; None leaves its rows out.
    """

    sources: Sources
    naive: runs.Result | None

    @property
    def base(self) -> runs.Result:
        """The first stage with weight decay."""
        return self.sources.base

    @property
    def settings(self) -> SecondStage:
        """Values and folders."""
        return self.sources.settings

    @cached_property
    def modes(self) -> dict[str, dict[str, Any]]:
        """Values of the second stage by mode: "paper" tuned, "published" with the published ones, "released"."""
        settings = self.settings
        tuned = {"loss": settings.loss, "lr": settings.lr, "weight_decay": settings.weight_decay}
        tuned |= {"schedule": "cosine", "max_norm": settings.max_norm, "max_norm_every": "step"}
        radius = regularizers.relative_radius(self.sources.classifier.weight.detach(), recipes.RELEASED_FRACTION)
        published = {**tuned, "weight_decay": recipes.PUBLISHED_DECAY, "max_norm": radius}
        modes = {"paper": tuned, "published": published}
        if not self.settings.shipped:  # batch-norm's statistics drift with the images
            modes["released"] = {**recipes.RELEASED, "max_norm": radius}
        return modes

    def train_or_load(
        self, name: str, mode: str, first: runs.Result, train: Callable[[runs.Run], training.Outcome], **described: Any
    ) -> runs.Result:
        """A row's finished run; trained first where it is not finished."""
        settings = self.settings
        label, identity = settings.run_key(name, mode, first.path.name, **described)
        run = runs.open_run(settings.out / "demo_2", label, identity, self.base.config["data"]["fingerprint"])
        about = self.base.config["data"] if settings.shipped or self.sources.data is not None else None
        return run.load_or_train(about, lambda: train(run), settings.device, self.base.class_counts, settings.retrain)

    def normalised(self, name: str, tau: float, first: runs.Result, mode: str = "") -> runs.Result:
        """A first stage with tau-normalised weights; the summary of a chosen tau has a sweep over `TAUS` beside it."""

        def evaluate(run: runs.Run) -> training.Outcome:
            model = self.sources.network(first)
            features = self.sources.features["paper"] if first is self.base else self.sources.extract(model, "paper")
            start, outcomes = models.copy_classifier(model), {}
            for each in sorted({tau, *(TAUS if name in recipes.PUBLISHED_TAU and not mode else ())}):
                weight = regularizers.tau_normalize(start.weight.detach(), each)
                outcomes[each] = second_stage.evaluate(models.linear(weight, start.bias), features)
            outcomes[tau].extra["sweep"] = [
                {"tau": t, **metrics.group_accuracy(o.logits["last", "none"], o.labels, self.base.class_counts)}
                for t, o in outcomes.items()
            ]
            return outcomes[tau]

        described = {"loss": None, "weight_decay": None, "tau": tau}
        described["stage1_weight_decay"] = first.config["settings"]["stage1_weight_decay"]
        return self.train_or_load(name, mode, first, evaluate, **described)

    def tau_normalised(self, name: str, tau: float, first: runs.Result) -> list[runs.Result]:
        """With the chosen tau, then with the published one where that is another."""
        found = [self.normalised(name, tau, first)]
        published = recipes.PUBLISHED_TAU[name]
        if tau != published:
            found.append(self.normalised(name, published, first, mode="published"))
        return found

    def learned(self, name: str, mode: str) -> runs.Result:
        """A row that trains the last layers, or loads its run where it is finished."""
        method, values = METHODS[name], self.values(name, mode)

        def train(run: runs.Run) -> training.Outcome:
            learner, source, engine = self.sources.learner(method.layers, mode)
            of_the_mode = {key: values[key] for key in ("loss", "lr", "weight_decay", "schedule")}
            recipe = self.settings.recipe(**of_the_mode)
            constraint = method.constrain(values["max_norm"], self.modes[mode]["max_norm_every"])
            outcome = training.fit(learner, source, recipe, constraint, run.checkpoint, engine=engine)
            if isinstance(source, FrozenFeatures):
                outcome.weights |= source.drifted()
            return outcome

        return self.train_or_load(name, mode, self.base, train, **values)

    def values(self, name: str, mode: str) -> dict[str, Any]:
        """What a row takes of a mode's values, see `methods.Method.values`; in the paper's mode those tuned for it."""
        values = METHODS[name].values(self.modes[mode], self.settings.stage1_weight_decay)
        if mode == "paper" and name in self.tuned.index:
            own = self.tuned.loc[name]
            values |= {"lr": float(own.lr), "weight_decay": float(own.weight_decay)}
            if METHODS[name].constraint == "MaxNorm":
                values["max_norm"] = round(float(own.radius) * self.sources.mean_norm, 4)
        return values

    @cached_property
    def tuned(self) -> pd.DataFrame:
        """Values that `ltr tune` chose, a row each of its own: of a named tuning run, or `auto`; or those that ship.

        Raises:
            InputError: there are no values of that run, or with `auto` of none or of several that learned as these did.
        """
        settings = self.settings
        path = settings.out / "tuning" / VALUES
        shipped = self.base.path / TUNED
        if settings.tuned_on == SHIPPED and shipped.exists():
            return read_values(shipped, "--base").set_index("method")
        if settings.tuned_on in (None, SHIPPED):
            return pd.DataFrame(index=pd.Index([], name="method"))
        table = read_values(path, "--tuned-on") if path.exists() else pd.DataFrame(columns=["tuning_run", "method"])
        named = [settings.tuned_on]
        if settings.tuned_on == AUTO:
            firsts = filter(None, (self.base, self.naive))
            named = [name for first in firsts for name in tuned_like(first, path.parent / "demo_1", table.tuning_run)]
        table = table[table.tuning_run.isin(named)].set_index("method")
        if table.empty or table.index.has_duplicates:
            had = ", ".join(named) if len(named) > 1 else clip(settings.tuned_on)
            raise InputError(f"--tuned-on: must be one run whose values are in {path}, got {had}")
        return table

    def tau(self, name: str, given: float) -> float:
        """A row's tau, tuned or as given."""
        return float(self.tuned.tau[name]) if name in self.tuned.index else given

    def in_all_modes(self) -> Iterator[runs.Result]:
        """Learned rows in each mode, one after another; where published values change nothing, a row comes once.

        From shipped features the classifier alone learns; on streamed images more layers learn in the paper's mode
        alone, as each epoch reads all images. A row whose training diverges is left out, with a notice.
        """
        for mode in self.modes:
            one_layer = self.settings.shipped or (self.sources.streamed and mode != "paper")
            for name, method in METHODS.items():
                same = mode == "published" and self.values(name, mode) == self.values(name, "paper")
                if same or (method.layers > 1 and one_layer):
                    continue
                try:
                    yield self.learned(name, mode)
                except TrainingError as error:  # several layers at a rate that suits one; the other rows stand
                    print(f"{name}, {mode} values: left out, as {error}", flush=True)
        self.sources.maps.clear()


def check_none_chosen(arguments: Sequence[str], also: Sequence[str] = ()) -> None:
    """Raises InputError where an option gives what held-out images are about to choose; some commands name others."""
    for word in {flag(name) for name in (*CHOSEN - {"lr"}, *also)} & {word.split("=")[0] for word in arguments}:
        raise InputError(f"{word}: must not be given, as the held-out images choose it")


def read_values(path: Path, option: str) -> pd.DataFrame:
    """A table of values that `ltr tune` wrote.

    Raises:
        InputError: it is no such table, or a value is no number.
    """
    table = read_table(path, option, ["tuning_run", "method", *VALUE])
    for name in VALUE:
        if not pd.api.types.is_numeric_dtype(table[name]):
            raise InputError(f"{option}: {path} must have numbers in column {name}")
    return table


def tuned_like(first: runs.Result, folder: Path, names: Iterable[str]) -> list[str]:
    """Those of some tuning runs that learned as a first stage did: all but held-out images, length and seed alike."""
    free = "hold_out", "seed", "test_every", "stage1_epochs"
    known = set(names)
    return [path.name for path in configs.alike(folder, first.config, free) if path.name in known]


def open_rows(settings: SecondStage, data: LongTailed | None, absent: Exception | None = None) -> Rows:
    """The rows on the first stage that the settings name; `absent` says why there are no images.

    Raises:
        InputError: there is no such first stage, or several.
    """
    fingerprint = data.describe()["fingerprint"] if data is not None else None
    folder = settings.first_stages
    base = runs.find_base(folder, settings.stage1, settings.base_settings, fingerprint, absent)
    return Rows(Sources(settings, base, data), runs.find_naive(folder, base))

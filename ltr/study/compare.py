"""Every method in one table, tuned on held-out images alone:

    python -m ltr sweep --weight-decays 0.005 --hold-out 20 --preset paper --backbone resnet32 --imbalance-factor 100
    python -m ltr compare --preset paper --backbone resnet32 --imbalance-factor 100 [--figures build/figures]

The first command trains a network without the held-out images: below `<out>/tuning`, `--tuning-epochs` where its
epochs differ; `--tuning-run` names another run there, as for a base that learned from other images of the classes, or
at another imbalance factor. On its features, and scored by the held-out images, each method's setting is chosen. Then
each is fitted once, with this setting, on the features of the first stage's full run in `<out>/demo_1`, and tested
once. Where there is no full run, the tuning network is the one tested, unless it was named: `stage1_run` is the same as
`tuned_on` then. The table goes to `<out>/comparison.csv`, every setting that was tried to
`<out>/tuning/comparison.csv`. All other options are the second script's, but for those that are tuned. Methods that
train a whole network stand below, with the numbers of their finished runs in `<out>/demo_1`, or the option that trains
one.
"""

import dataclasses
import re
import shlex
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ltr import datasets, metrics, models, plots, runs
from ltr.balance import absolute, describe
from ltr.errors import InputError
from ltr.methods import BALANCERS, FIRST, Balancer, Candidate, suitable
from ltr.recipes import PLAIN, STAGE1, Recipe, unusual
from ltr.runtime import configs
from ltr.runtime.options import flag, folder, option, run_name, short, whole
from ltr.runtime.storage import check_writable, update_table
from ltr.second_stage import FrozenFeatures
from ltr.settings import MOST, OF_THE_BASE, FirstStage, SecondStage
from ltr.settings import WHOLE_NETWORK as NAMES
from ltr.study import published
from ltr.study.cells import NOT_MEASURED
from ltr.study.rows import check_none_chosen

PROTOCOL = ["dataset", "imbalance_factor", "profile", "backbone", "stage1_epochs", "stage1_weight_decay", "seed"]
KEY = [*PROTOCOL, "stage1_run"]  # what a comparison is one of: its table is replaced by a later one
CUT = "imbalance_factor", "profile", "choice", "seed", "hold_out"  # which images a tuning run learned from
FURTHER = PLAIN.keys() - {"average", "normalization"}  # for which the table has no column
MEASURES = ["many", "medium", "few", "all", "ECE"]
HELD_OUT = 20  # images of each class, unless told otherwise
FROM_SCRATCH = ("naive", "mixup", *NAMES.values())


def trained_by(method: str) -> str:
    """The option of `python -m ltr sweep` that trains a whole network by a method; nothing for others."""
    if method == "naive":
        return "--weight-decays 0"
    value = {name: value for value, name in NAMES.items()}.get(method, method)
    options = (each.name for each in dataclasses.fields(FirstStage) if value in each.metadata["choices"])
    return next((f"{flag(name)} {value}" for name in options), "")


def absent_row(method: str) -> dict[str, Any]:
    """A row without numbers, of no run: how the method is trained here, or that others' number is all there is."""
    return {"method": method, "trained_by": trained_by(method) or None} | dict.fromkeys(("run", "tuned_on", "held_out"))


def how(table: pd.DataFrame) -> pd.Series:
    """In words: the hyper-parameters of a method, or what it would take to measure it."""
    option = table.trained_by.fillna("")
    absent = (NOT_MEASURED + ": " + option).where(option != "", "published only")
    return table["hyper-parameters"].fillna("").where(table.run.notna(), absent)


def tune(method: Balancer, held_out: FrozenFeatures, recipe: Recipe) -> tuple[Candidate, pd.DataFrame]:
    """The setting with the best accuracy on held-out images, of equals the first; and all that were tried.

    Args:
        held_out: features of a network that never saw its test images, which are the held-out ones.

    Returns:
        a setting, and a row for each: the setting's values, then many, medium, few, all in percent on the held-out
        images, and whether it is the one chosen.
    """
    classifiers = method.fit_each(models.copy_classifier(held_out.model), held_out, recipe, method.candidates)
    logits = (held_out.test_logits(each, 0) for each in classifiers)
    rows = [metrics.group_accuracy(each, held_out.test_labels, held_out.class_counts) for each in logits]
    best = metrics.best_index([row["all"] for row in rows])
    named = [absolute(candidate, recipe) for candidate in method.candidates]
    tried = pd.DataFrame([own | row for own, row in zip(named, rows, strict=True)])
    return method.candidates[best], tried.assign(chosen=tried.index == best)


def measures_of(made: metrics.Predictions, counts: np.ndarray) -> dict[str, float]:
    """Percentages of a table's row: `MEASURES`, then those of shifted test sets; NaN where training diverged."""
    plain = made.summary(counts)
    return {name: plain[name.lower()] for name in MEASURES} | made.shifted(counts)


def draw_reliability(bins: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """A reliability diagram a method, the first one beside it."""
    first = next(iter(bins))
    for name in bins:
        pair = pd.concat([bins[each].assign(model=each) for each in dict.fromkeys((first, name))])
        slug = re.sub(r"\W+", "-", name.lower()).strip("-")
        plots.show(plots.reliability(pair), folder / f"reliability_{slug}.png")


def measure(
    method: Balancer, held_out: FrozenFeatures, final: FrozenFeatures, recipe: Recipe
) -> tuple[dict[str, Any], pd.DataFrame, metrics.Predictions]:
    """A method's row of `compare`, all settings that were tried, and what it says of the test images."""
    start = time.perf_counter()
    candidate, tried = tune(method, held_out, dataclasses.replace(recipe, seed=held_out.seed))
    own = dataclasses.replace(recipe, seed=final.seed)
    (classifier,) = method.fit(models.copy_classifier(final.model), final, own, [candidate])
    made = metrics.Predictions.of(final.test_logits(classifier, 0), final.test_labels)
    measured = measures_of(made, final.class_counts)
    words = describe(candidate, recipe)
    row = {"hyper-parameters": f"{words}, diverged" if np.isnan(measured["all"]) else words, **measured}
    row |= {"validation": tried["all"].max(), "seconds": time.perf_counter() - start}
    return row, tried, made


def compare(
    held_out: FrozenFeatures,
    final: FrozenFeatures,
    recipe: Recipe,
    compared: Mapping[str, Balancer] = BALANCERS,
    figures: Path | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tune every method on held-out images, then fit each once for the test and test it once.

    Args:
        held_out: features on `for_tuning()` data, of a network that did not train on the held-out images.
        final: features on the data to test on, of the network to report. No setting depends on its test labels.
        recipe: what the trained methods share; its loss is the class-balanced one, its seed the features' own.
        figures: a folder for reliability diagrams, each method beside the first one.

    Returns:
        a row a method: method, hyper-parameters, many, medium, few, all, ECE (percent; last epoch, plain),
        validation (accuracy on the held-out images), seconds (tuning, fit and test; features not counted), and
        the accuracies on shifted test sets, see `metrics.Predictions.shifted`. And a row for each setting that was
        tried: method, then what `tune` gives. A method that does not suit the classifier, see `methods.suitable`, has
        no numbers.

    Raises:
        ValueError: the tuning images are the test images.
    """
    if held_out.test_labels is final.test_labels:
        raise ValueError("held_out: must hold other images than those of the test")
    rows, tried, bins = [], {}, {}
    suited = suitable(compared, models.copy_classifier(final.model))
    for name in compared:
        if name not in suited:
            rows.append({"method": name, "hyper-parameters": "does not suit a cosine classifier"})
            continue
        row, tried[name], made = measure(suited[name], held_out, final, recipe)
        rows.append({"method": name} | row)
        if not np.isnan(row["all"]):
            bins[name] = made.reliability()
    if figures:
        draw_reliability(bins, figures)
    settings = pd.concat(tried, names=["method", "number"]).reset_index("method")
    last = ["all", *metrics.GROUPS, "chosen"]
    return pd.DataFrame(rows), settings[[*settings.columns.difference(last, sort=False), *last]]


# --- first stages of a folder, and the table's other columns -----------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Comparison(SecondStage):
    """Every post-hoc and second-stage method in one table, tuned on held-out images alone."""

    hold_out: int = option(HELD_OUT, "images a class that choose the settings", whole, low=1)
    tuning_epochs: int = option(
        0, "of the first stage without these images; 0: --stage1-epochs", whole, low=0, high=MOST
    )
    tuning_run: str = option(
        None,
        "the run, trained with --hold-out, that chooses, by its own held-out images (default: the one trained alike)",
        run_name,
    )
    figures: Path = option(None, "folder for reliability diagrams; without it none are drawn", folder)

    @classmethod
    def filled(cls, given: dict[str, Any]) -> dict[str, Any]:
        """As the second script's, but for the images held out, which a named base has seen."""
        return super().filled({"hold_out": HELD_OUT} | given)

    def command(self, epochs: int, hold_out: int) -> str:
        """The command that trains a first stage."""
        told = {"hold_out", "seed", "stage1_epochs", "stage1_weight_decay"}  # above, as the sweep calls them
        names = [name for name in OF_THE_BASE if name not in told]
        words = ["--weight-decays", f"{self.stage1_weight_decay:g}", "--epochs", epochs, "--seeds", self.seed]
        if hold_out:
            words += ["--hold-out", hold_out]
        for name in ("preset", "data_root", *names, "out"):
            value = getattr(self, name)
            if value is None:
                continue
            words += [flag(name), f"{value:g}" if isinstance(value, float) else short(value, Path.cwd())]
        return "python -m ltr sweep " + shlex.join(map(str, words))

    def find(self, where: Path, epochs: int, hold_out: int, data: datasets.LongTailed) -> runs.Result:
        """A finished first stage.

        Raises:
            InputError: there is none; the message names the command that makes it.
        """
        asked = dataclasses.replace(self, stage1_epochs=epochs, hold_out=hold_out, stage1=None)
        wanted = asked.base_settings | {"method": "WD" if self.stage1_weight_decay else "naive"}
        try:
            return runs.find(where, wanted, data.describe()["fingerprint"])
        except runs.NoRun as error:
            made = f"this makes it: {self.command(epochs, hold_out)}"
            raise runs.NoRun(f"{short(error)}; {made}") from error

    def find_tuned_like(self, base: runs.Result, epochs: int, data: datasets.LongTailed) -> runs.Result:
        """The run that learned as a base did, without the held-out images; its seed may be another one."""
        told = {**base.config["settings"], "hold_out": self.hold_out, "stage1_epochs": epochs}
        told = {name: value for name, value in told.items() if name not in ("test_every", "seed")}
        return runs.find(self.out / "tuning" / "demo_1", told, data.describe()["fingerprint"])

    def named_tuning_network(self) -> tuple[runs.Result, datasets.LongTailed]:
        """See `tuning_network`: the run that `--tuning-run` names, which may have learned from other images of a class,
        or from more.

        Raises:
            InputError: there is no such run, it saw the held-out images, or it is of another network or other classes.
        """
        run = runs.Result.read(configs.named_run(self.out / "tuning" / "demo_1", self.tuning_run, "--tuning-run"))
        told = run.config["settings"]
        if not told["hold_out"]:
            raise InputError(f"--tuning-run: must be a run that was trained with --hold-out, {self.tuning_run} was not")
        cut = {name: told[name] for name in CUT if name in told}
        try:
            data = datasets.load(**self.data | cut)
        except InputError as error:
            raise InputError(
                f"--tuning-run: must have learned from the images of --dataset ({short(error)})"
            ) from error
        wanted = {"backbone": self.backbone}
        if differs := configs.differences(run.config, wanted, data.for_tuning().describe()["fingerprint"]):
            key, have, value = differs[0]
            raise InputError(f"--tuning-run: must be a run with {key} {value}, {self.tuning_run} has {have}")
        return run, data

    def tuning_network(self, base: runs.Result | None) -> tuple[runs.Result, datasets.LongTailed]:
        """The run that settings are chosen on, and its images with those that it never saw held out.

        Args:
            base: the run that is tested, where it was named.
        """
        if self.tuning_run:
            return self.named_tuning_network()
        epochs = self.tuning_epochs or self.stage1_epochs
        data = datasets.load(**self.data)
        if base:
            return self.find_tuned_like(base, epochs, data.for_tuning()), data
        return self.find(self.out / "tuning" / "demo_1", epochs, self.hold_out, data.for_tuning()), data

    def features(self, run: runs.Result, data: datasets.LongTailed) -> FrozenFeatures:
        """Features of a run's network on a set, in the paper's mode and drawn by the run's own seed: whatever base a
        network chooses for, it chooses the same.
        """
        model = models.restore(self.backbone, len(data.class_counts), run.weights(), self.device)
        seed = run.config["settings"]["seed"]
        return FrozenFeatures(model, data, self.device, "paper", self.batch_size, seed, self.engine)


@dataclass(frozen=True)
class Stages:
    """What a comparison stands on: features as `compare` takes them, and the first stages that they are of.

    Beside them the fingerprint of a full run's images, and the table's columns that say how it was made.
    """

    held_out: FrozenFeatures
    final: FrozenFeatures
    tuned: runs.Result
    run: runs.Result
    fingerprint: dict[str, str]
    protocol: dict[str, Any]


def first_stages(settings: Comparison) -> Stages:
    """Find the network to tune on and the one to test.

    Raises:
        InputError: no network was trained without the held-out images, or the named one does not fit.
    """
    full = datasets.load(**settings.data | {"hold_out": 0})
    folder = settings.out / "demo_1"
    fingerprint = full.describe()["fingerprint"]
    run = None
    if settings.stage1:
        run = runs.find_base(folder, settings.stage1, settings.base_settings | {"hold_out": 0}, fingerprint)
    tuned, cut = settings.tuning_network(run)
    tuning = cut.for_tuning()
    held_out = settings.features(tuned, tuning)
    try:
        run = run or settings.find(folder, settings.stage1_epochs, 0, full)
        final = settings.features(run, full)
    except runs.NoRun as error:
        if settings.tuning_run:  # which may be of another imbalance factor
            raise
        print(f"no full first stage, so the tuning network is tested ({error})", flush=True)
        run, final = tuned, settings.features(tuned, cut)
        final.passes = held_out.passes  # the same network on the same training images
    protocol = {column: run.config["settings"][column] for column in PROTOCOL}
    protocol |= {"dataset": full.name, "stage1_run": run.path.name, **learned(run.config["settings"])}
    protocol |= {"run": run.path.name, "tuned_on": tuned.path.name, "held_out": len(tuning.test)}
    return Stages(held_out, final, tuned, run, fingerprint, protocol)


def learned(settings: Mapping[str, Any]) -> dict[str, str | None]:
    """In what a first stage was not trained as usual: `runs.otherwise`, and what results.csv has columns for beside
    length and weight decay.
    """
    usual = {"lr": STAGE1.get(settings["backbone"], {}).get("lr"), "batch_size": Recipe.batch_size}
    words = [f"{name} {settings[name]:g}" for name in usual if settings.get(name, usual[name]) != usual[name]]
    further = ", ".join(filter(None, (*words, unusual(settings, FURTHER))))
    return runs.otherwise(settings) | {"further": further or None}


def finished_networks(folder: Path, stages: Stages) -> Iterator[dict[str, Any]]:
    """Rows of the other finished first stages on the same images: another method, weight decay or length.

    Those without predictions have no numbers of shifted test sets; a warning says so.
    """
    same = {name: stages.protocol[name] for name in ("backbone", "seed")}
    for result in runs.finished_runs(folder):
        settings = result.config["settings"]
        if result.config["data"]["fingerprint"] != stages.fingerprint or result.path == stages.run.path:
            continue
        if any(settings.get(name) != value for name, value in same.items()):
            continue
        words = f"weight decay {settings['stage1_weight_decay']:g}, {settings['stage1_epochs']} epochs"
        words += f" at {settings['lr']:g}" if "lr" in settings else ""
        batch = settings.get("batch_size", Recipe.batch_size)
        words += f", batch {batch}" if batch != Recipe.batch_size else ""
        words = ", ".join(filter(None, (words, runs.otherwise(settings)["further"])))
        method = settings["method"]
        if method in BALANCERS:
            method += ", whole network"
        row = {"method": method, "hyper-parameters": words, "tuned_on": None, "held_out": None}
        try:
            row |= measures_of(result.predictions, result.class_counts)
        except InputError as error:
            warnings.warn(f"no accuracies on shifted test sets: {error}", stacklevel=2)
        row |= {name: result.accuracy()[name.lower()] for name in MEASURES}
        yield row | {"seconds": result.summary["seconds"], "run": result.path.name}


def comparable(measured: pd.DataFrame, stages: Stages) -> pd.DataFrame:
    """The rows of `compare`; without the held-out accuracy of a tuning network that learned at another imbalance factor
    than the one tested, beside whose own it would stand.
    """
    told = stages.tuned.config["settings"]
    if all(told[name] == stages.protocol[name] for name in ("imbalance_factor", "profile")):
        return measured
    return measured.assign(validation=measured.validation.where(measured.method != FIRST))


def assemble(measured: pd.DataFrame, networks: Sequence[Mapping[str, Any]], stages: Stages) -> pd.DataFrame:
    """One table of the methods of `compare`, of `finished_networks`, and of those that are not measured."""
    protocol = stages.protocol
    others = published.methods(*(protocol[name] for name in PROTOCOL[:4]))
    rows = [protocol | row for row in [*measured.to_dict("records"), *networks]]
    names = {row["method"] for row in rows}
    if not protocol["stage1_weight_decay"]:
        names.add("naive")  # it is the first stage alone
    absent = [name for name in dict.fromkeys((*FROM_SCRATCH, *others)) if name not in names]
    rows += [protocol | absent_row(name) for name in absent]
    for row in rows:
        row["published"], row["source"] = others.get(row["method"], (np.nan, ""))
    first = [
        *(name for name in (*KEY, "choice", "further") if name in protocol),
        "method",
        "hyper-parameters",
        *MEASURES,
    ]
    first += ["published", "source", "validation", "seconds", "tuned_on", "held_out", "run", "trained_by"]
    return pd.DataFrame(rows)[list(dict.fromkeys((*first, *rows[0])))]


def tuning_table(tried: pd.DataFrame, stages: Stages) -> pd.DataFrame:
    """Every setting that `compare` tried, with the protocol of the network that it was tried on and the number of its
    held-out images; whatever seed was tested, it is the same table.
    """
    tuned = stages.tuned
    told = tuned.config["settings"]
    own = {name: told[name] for name in PROTOCOL if name in told} | {"dataset": stages.protocol["dataset"]}
    own["stage1_run"] = tuned.path.name
    protocol = {name: (stages.protocol | own)[name] for name in KEY}
    protocol["held_out"] = len(stages.held_out.test_labels)
    return pd.DataFrame([protocol | row for row in tried.to_dict("records")])


def shown(table: pd.DataFrame, columns: Sequence[str]) -> str:
    """Some columns as text, numbers with two decimals."""
    text = table[[*columns]].copy()
    for name in text.select_dtypes("number"):
        text[name] = text[name].map(metrics.or_dash)
    return text.to_string(index=False)


def save(path: Path, table: pd.DataFrame) -> None:
    """Put a comparison into the file, in place of an earlier one of the same first stage and protocol.

    Raises:
        InputError: the file is there, and no comparison.
    """

    def replaces(old: pd.DataFrame, new: pd.DataFrame) -> pd.Series:
        same = pd.DataFrame({name: old[name].eq(new[name].iloc[0]) for name in KEY if name in old and name in new})
        replaced = same.all(axis=1)
        if {"tuned_on", "stage1_run"} <= set(old):  # a tuning network stood in until there was a full run
            stood_in = old.stage1_run[old.stage1_run == old.tuned_on]
            replaced |= old.stage1_run.isin(stood_in) & same[PROTOCOL].all(axis=1)
        return replaced

    update_table(path, table, replaces, PROTOCOL)


def main(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: an option is not allowed, or there is no first stage to tune on.
    """
    check_none_chosen(arguments, ["tuned_on"])
    settings = Comparison.of_command(arguments)
    print(settings, f"engine: {settings.engine}", sep="\n", flush=True)
    stages = first_stages(settings)
    check_writable(settings.out)
    recipe = settings.recipe(loss=settings.loss, lr=settings.lr)
    start = time.perf_counter()
    for features in (stages.held_out, stages.final):
        features.up_to(recipe.epochs - 1)
        features.test_features(0, False)
    error = 50 / len(stages.held_out.test_labels) ** 0.5
    print(f"tested: {stages.run.path.name}")
    images = f"{stages.protocol['held_out']} held-out images, {stages.tuned.path.name}"
    print(f"settings chosen on {images}; standard error up to {error:.1f} points")
    print(f"features: {time.perf_counter() - start:.0f} s, shared by all methods", flush=True)
    measured, tried = compare(stages.held_out, stages.final, recipe, figures=settings.figures)
    table = assemble(comparable(measured, stages), list(finished_networks(settings.out / "demo_1", stages)), stages)
    path = settings.out / "comparison.csv"
    tuning = settings.out / "tuning" / "comparison.csv"
    save(path, table)
    save(tuning, tuning_table(tried, stages))
    told = table.assign(**{"hyper-parameters": how(table)})
    print(shown(told, ["method", "hyper-parameters", *MEASURES, "published", "source", "seconds"]))
    shifts = [name for name in table if name.startswith(("forward", "backward"))]
    print("\nclasses of the test set long-tailed, forward as in training or backward, by the ratio of its ends:")
    print(shown(table[table["all"].notna()], ["method", *shifts]))
    print(f"\nlast epoch, plain test, in %; all columns: {short(path)}; what was tried: {short(tuning)}")

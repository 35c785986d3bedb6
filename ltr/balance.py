"""Balance the classifier you already have: embeddings in, a balanced linear head out.

    X, y, layer = features(model, loader)
    result = balance(model, (X, y), (Xv, yv), test=(Xt, yt), layer=layer)
    result.table, result.best, result.verdict
    result.write_into(model)

Every method of `methods.BALANCERS` is tuned on the validation images, by the mean of the classes' accuracies unless
told otherwise; a temperature that is fitted there is folded into the head; then each method is tested once. Nothing
here knows where the embeddings come from; `data.embeddings` checks and scales them.
"""

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ltr import __version__, metrics
from ltr.data import embeddings, heads
from ltr.data.embeddings import Embeddings, Problem
from ltr.data.extraction import features
from ltr.data.heads import Head
from ltr.errors import InputError, clip
from ltr.losses import cross_entropy
from ltr.methods import (
    ADJUSTMENT,
    BALANCERS,
    FIRST,
    NEED_BIAS,
    Balancer,
    Candidate,
    Candidates,
    class_balanced,
    combinations,
    logit_adjustment,
    without_bias,
)
from ltr.methods import LR as LEARNING_RATES
from ltr.metrics import Predictions
from ltr.models import linear
from ltr.recipes import Recipe
from ltr.regularizers import row_norms
from ltr.runtime.options import nearest, short
from ltr.runtime.storage import check_writable, table_text, write_json, write_text, write_weights

__all__ = ["Balanced", "balance", "features"]

BASELINES = {"gain": "the head as it was", "gain over LA": "logit adjustment at tau 1"}
WRITTEN = ("head.pt", "table.csv", "per_class.csv", "chosen.json")
SCORES = {"macro": "class-mean accuracy", "micro": "accuracy"}
LIKELIHOOD = "likelihood"  # chooses the first head where there is none
SHOWN = {"weight_decay": "weight decay", "radius": "radius / mean norm"}
FAMILIES = {"fast": (FIRST, "tau-norm", ADJUSTMENT, "NCM"), "all": tuple(BALANCERS)}
STEPS = 500  # of a training at least, where ten epochs have fewer
STEPS_AN_EPOCH = 200  # about, by larger batches; with small ones, writing the weights would take most of the time
LARGE = 2e12  # floating-point operations of a grid from which it is thinned
ONE_IN = 10  # candidates is trained to the end then
UNLIKE = 10.0  # times, in which features of one layer hardly differ between training and validation
TOO_FEW = 5  # validation images of a class below which its part in a choice is mostly chance
# Plain cross-entropy from zeros, where there is no head yet: the class-balanced method, told another loss.
PLAIN = Balancer(class_balanced, combinations(weight_decay=[0.0, 5e-4, 5e-3], lr=LEARNING_RATES))


# --- tuning ---------------------------------------------------------------------------------------------------


def recipe_for(size: int, seed: int = 0) -> Recipe:
    """How methods that learn are trained on so many images; published are ten epochs with batches of 64."""
    batch = 64
    while batch < 1024 and size > STEPS_AN_EPOCH * batch:
        batch *= 2
    epochs = max(10, math.ceil(STEPS / math.ceil(size / batch)))
    return Recipe(epochs, batch, lr=0.01, loss="cb-ce", seed=seed)


def validate(classifier: nn.Linear, data: Embeddings, score: str) -> float:
    """A score of `SCORES` in percent, or by `LIKELIHOOD` the mean logarithm of the labels' probabilities.

    Minus infinity where training diverged, so that it is never chosen.
    """
    logits = classifier(data.features).detach().cpu().numpy()
    labels = data.labels.cpu().numpy()
    if not np.isfinite(logits).all():
        return -math.inf
    if score == LIKELIHOOD:
        return -float(cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)))
    if score == "micro":
        return metrics.group_accuracy(logits, labels, data.class_counts)["all"]
    return float(np.nanmean(metrics.per_class_accuracy(logits, labels)))  # NaN for a class without images


@dataclass(frozen=True)
class Tuned:
    """What tuning a method gave.

    Attributes:
        candidate: the values that are best on validation, of equals the first.
        classifier: trained with its values, for scaled features.
        validation: its score, see `validate`.
        edge: names of its values at an end of the grid, where a better one may lie beyond.
        temperature: fitted on validation.
    """

    candidate: Candidate
    classifier: nn.Linear
    validation: float
    edge: tuple[str, ...]
    seconds: float
    temperature: float = 1.0

    def shown_score(self) -> float:
        """The score as a table shows it: NaN where every candidate diverged."""
        return self.validation if math.isfinite(self.validation) else math.nan


def successive_halving(method: Balancer, first: nn.Linear, problem: Problem, recipe: Recipe, score: str) -> Candidates:
    """A method's candidates, of a large grid those that are best after a single epoch: one in `ONE_IN`, two at least.

    Source: Jamieson and Talwalkar 2016 (successive halving), with a single round.
    """
    candidates, data = method.candidates, problem.train
    products = 3 * 2.0 * len(data) * first.weight.numel()  # forward, and backward to weights and biases, an epoch
    if len(candidates) <= 2 or "lr" not in candidates[0] or products * recipe.epochs * len(candidates) < LARGE:
        return candidates
    one_epoch = dataclasses.replace(recipe, epochs=1)
    scores = [validate(each, problem.validation, score) for each in method.fit_each(first, data, one_epoch, candidates)]
    best = sorted(range(len(scores)), key=lambda i: -scores[i])[: max(2, len(scores) // ONE_IN)]
    return [candidates[i] for i in sorted(best)]


def at_edge(candidates: Candidates, all_candidates: Candidates, scores: Sequence[float], best: int) -> tuple[str, ...]:
    """Names of the chosen values that end their range, unless one inside it does as well.

    Nothing lies below a zero, such as no weight decay.
    """
    found = []
    for name, value in candidates[best].items():
        if isinstance(value, str):
            continue
        values = {candidate[name] for candidate in all_candidates}
        ends = {max(values), min(values)} - {0.0} if len(values) > 1 else set()
        equal = (candidate[name] for candidate, each in zip(candidates, scores, strict=True) if each == scores[best])
        if value in ends and all(each in ends for each in equal):
            found.append(SHOWN.get(name, name))
    return tuple(found)


def tune(method: Balancer, first: nn.Linear, problem: Problem, recipe: Recipe, score: str) -> Tuned:
    """The candidate of a method with the best score on the validation images, and its classifier.

    It starts from the `first` stage's, which is for scaled features.
    """
    start = time.perf_counter()
    candidates = successive_halving(method, first, problem, recipe, score)
    scores: list[float] = []
    best, chosen = 0, first
    for i, classifier in enumerate(method.fit_each(first, problem.train, recipe, candidates)):
        scores.append(validate(classifier, problem.validation, score))
        if i == 0 or scores[i] > scores[best]:
            best, chosen = i, classifier
    edge = at_edge(candidates, method.candidates, scores, best)
    return Tuned(candidates[best], chosen, scores[best], edge, time.perf_counter() - start)


def tune_first(problem: Problem, recipe: Recipe, score: str) -> Tuned:
    """The head as it was; where there is none, plain cross-entropy, chosen by its likelihood on the validation images.

    Their accuracy would choose one trained far too long, whose probabilities say nothing that could be adjusted.
    """
    if problem.head is not None:
        return tune(BALANCERS[FIRST], problem.start(), problem, recipe, score)
    plain = dataclasses.replace(recipe, loss="ce")
    found = tune(PLAIN, problem.start(), problem, plain, LIKELIHOOD)
    return dataclasses.replace(found, validation=validate(found.classifier, problem.validation, score))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    r"""The T > 0 whose softmax of z / T, of logits [N, C], gives the labels [N] their largest likelihood.

    The slope in :math:`\beta = 1 / T` rises with it, so its zero is found by bisection, between a thousandth and a
    thousand over an image's spread of logits.

    Returns:
        1 where every image is right, as no temperature would be small enough; NaN where a logit is not finite.

    Source: Guo et al. 2017, section 4.2.
    """
    logits = logits - logits.mean(1, keepdim=True)  # what all classes share says nothing
    size = float(logits.std())
    if not size:
        return 1.0
    if not math.isfinite(size):
        return math.nan
    if (logits.argmax(1) == labels).all():
        return 1.0
    wanted = logits.gather(1, labels[:, None]).mean()
    low, high = math.log(1e-3 / size), math.log(1e3 / size)
    for _ in range(18):  # to a ten-thousandth
        middle = (low + high) / 2
        expected = torch.linalg.vecdot((math.exp(middle) * logits).softmax(1), logits).mean()
        low, high = (middle, high) if expected < wanted else (low, middle)
    return math.exp(-(low + high) / 2)


# --- testing --------------------------------------------------------------------------------------------------


def predict(head: nn.Linear, data: Embeddings) -> Predictions:
    """What a head says of images."""
    logits = head.to(data.features.device)(data.features)
    return Predictions.of(logits.detach().cpu().numpy(), data.labels.cpu().numpy())


def measures_of(made: Predictions, counts: np.ndarray) -> dict[str, float]:
    """many, medium, few, all, class mean and ECE in percent; NaN where training diverged."""
    found = made.summary(counts)
    found |= {"class mean": float(made.by_class[np.unique(made.labels)].mean()), "ECE": found["ece"]}
    return {name: found[name] for name in (*metrics.GROUPS, "all", "class mean", "ECE")}


def paired_gain(before: Predictions, after: Predictions, score: str) -> tuple[float, float]:
    """Points of the score that are gained, and their paired standard error, see `metrics.mean_and_error`."""
    return metrics.mean_and_error(100 * (after.hits - before.hits), None if score == "micro" else after.labels)


# --- the result -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Balanced:
    """Balanced heads, and what they are worth.

    Attributes:
        table: a row a method: method, hyper-parameters (learning rates for scaled features), validation (the score),
            temperature, then many, medium, few, all, class mean and ECE, all in percent, NaN where training diverged;
            what it gains over the head as it was and over logit adjustment at tau 1, each beside its paired standard
            error, in points of the score; edge (values at an end of their grid), seconds.
        best: the method with the best validation score, of equals the first.
        warnings: what to be careful about, a line each.
        classes, names, class_counts: what labels call the classes, what to call them, and their training images, [C].
        score: "macro" or "micro".
        tested_on: "test", or "validation" where there is no test set: then numbers are of the images that chose.
        heads: weight [C, D] and bias [C] or None by method, of the owner's type.
        predictions: of the tested images, by method.
        about: everything that was chosen and what it was chosen on, for `chosen.json`.
        layer: the head's name in the owner's state dict.
    """

    table: pd.DataFrame
    best: str
    warnings: tuple[str, ...]
    classes: np.ndarray
    names: tuple[str, ...]
    class_counts: np.ndarray
    score: str
    tested_on: str
    heads: Mapping[str, tuple[Tensor, Tensor | None]]
    predictions: Mapping[str, Predictions]
    about: Mapping[str, Any]
    layer: str = ""

    def __repr__(self) -> str:
        """What an interpreter or a notebook shows of it: the table in short, the verdict, the warnings."""
        table = self.table.drop(columns=["hyper-parameters", "seconds", "edge"])
        for name in table.select_dtypes("number"):
            table[name] = table[name].map(metrics.or_dash)
        tested = f"tested on the {self.tested_on} images; best on validation: {self.best}"
        warned = (f"warning: {line}" for line in self.warnings)
        return "\n".join([table.to_string(index=False), "", tested, *self.verdict, *warned])

    def parts(self, method: str | None = None) -> tuple[Tensor, Tensor | None]:
        """Weight [C, D] and bias [C] or None of a method's head; the best one's without a name.

        Raises:
            InputError: there is no such method in the table.
        """
        method = self.best if method is None else method
        if method not in self.heads:
            hint = nearest(str(method), list(self.heads))
            raise InputError(f"method: must be one of {', '.join(self.heads)}, got {clip(method)}{hint}")
        return self.heads[method]

    def head(self, method: str | None = None) -> nn.Linear:
        """A method's head as a layer for the features as they came, on the CPU, its temperature folded in."""
        return heads.mark(linear(*self.parts(method)), (method or self.best) != FIRST)

    def state(self, method: str | None = None) -> dict[str, Tensor]:
        """A method's head under the owner's own keys, for `load_state_dict(..., strict=False)`."""
        prefix = f"{self.layer}." if self.layer else ""
        values = zip(("weight", "bias"), self.parts(method), strict=True)
        return {prefix + name: value for name, value in values if value is not None}

    def write_into(self, model: Any, layer: str | None = None, method: str | None = None) -> None:
        """Put a method's head into a model, in place and in the layer's type.

        Args:
            model: a network, its linear layer itself, or an estimator with `coef_`.
            layer: the name of the network's layer; without one that of the state dict that the head came from.
            method: the best one without a name.

        Raises:
            InputError: there is no such layer, it has another shape, or it has no bias and the method needs one.
        """
        layer = self.layer if layer is None else layer
        if isinstance(model, nn.Module) and not isinstance(model, nn.Linear):
            modules = dict(model.named_modules())
            if layer not in modules or layer == "":
                known = ", ".join(name for name, part in modules.items() if isinstance(part, nn.Linear)) or "none here"
                raise InputError(f"layer: must be a linear layer of the model ({clip(known)}), got {clip(repr(layer))}")
            model = modules[layer]
        heads.write(model, *self.parts(method), self.classes)
        heads.mark(model, (method or self.best) != FIRST)

    @property
    def worth_it(self) -> bool:
        """Whether the best method gains over the head as it was, by more than two standard errors."""
        row = self.table.set_index("method").loc[self.best]
        return bool(row["gain"] > 2 * row["gain ±"])  # NaN where there are too few images to say

    @property
    def verdict(self) -> tuple[str, ...]:
        """What the best method gains, a sentence for each of both baselines, but for one that it is itself."""
        was = BASELINES["gain"] if self.about["head"] == "given" else "plain cross-entropy"
        if self.best == FIRST:
            return (f"no method is better than {was} on the validation images: not worth it",)
        row = self.table.set_index("method").loc[self.best]
        what = f"points of {SCORES[self.score]}"
        lines = []
        for column, baseline in BASELINES.items():
            gain, error = row[column], row[f"{column} ±"]
            if column != "gain" and gain == error == 0:
                continue  # it is that baseline
            over = was if column == "gain" else baseline
            if not math.isfinite(error):
                lines.append(f"too few images to say what {self.best} gains over {over}")
                continue
            doubt = "a loss" if gain < -2 * error else "within two standard errors"
            worth = "" if gain > 2 * error else f": not worth it, {doubt}"
            lines.append(f"{self.best} gains {gain:+.2f} ± {error:.2f} {what} over {over}{worth}")
        return tuple(lines)

    @property
    def per_class(self) -> pd.DataFrame:
        """A row a class, before and after by the best method.

        Columns: name, group, training images, tested images, accuracy before and after, recall (which is the accuracy
        after) and precision, both after, and precision before, all in percent; NaN where there is nothing to count.
        """
        before, after = self.predictions[FIRST], self.predictions[self.best]
        return pd.DataFrame(
            {
                "name": self.names,
                "group": metrics.group_of(self.class_counts),
                "training images": self.class_counts,
                "tested images": np.bincount(after.labels, minlength=len(self.names)),
                "accuracy before": before.by_class,
                "accuracy after": after.by_class,
                "recall": after.by_class,
                "precision": after.precision,
                "precision before": before.precision,
            }
        )

    def save(self, folder: str | Path) -> None:
        """Write chosen.json, head.pt (the best), table.csv and per_class.csv, each whole or not at all.

        Raises:
            InputError: the folder cannot be written to, or has such a file of another origin.
            StorageError: the disk is full.
        """
        folder = Path(folder)
        check_writable(folder, "folder")
        check_own(folder, WRITTEN, "folder")
        write_json(folder / "chosen.json", self.about)  # by which a later call knows the folder as one of its own
        write_weights(folder / "head.pt", self.state())
        write_text(folder / "table.csv", table_text(self.table))
        write_text(folder / "per_class.csv", table_text(self.per_class))


def check_own(folder: Path, names: Sequence[str], option: str) -> None:
    """Raises InputError where a file of one of these names is not one of ours, as chosen.json beside it says."""
    there = [name for name in names if (folder / name).exists()]
    if there and "chosen.json" not in there:
        got = clip(short(folder, Path.cwd()))
        raise InputError(f"{option}: must be a folder without a {there[0]} of another origin, got {got}")


def absolute(candidate: Candidate, recipe: Recipe) -> dict[str, Any]:
    """Values under the table's names, the learning rate no longer a multiple of the recipe's."""
    return {SHOWN.get(name, name): value * recipe.lr if name == "lr" else value for name, value in candidate.items()}


def describe(candidate: Candidate, recipe: Recipe) -> str:
    """Values in words."""
    shown = absolute(candidate, recipe).items()
    return ", ".join(f"{name} {value if isinstance(value, str) else f'{value:g}'}" for name, value in shown)


# --- all of it ------------------------------------------------------------------------------------------------


def choose_methods(methods: str | Sequence[str], head: Head | None) -> dict[str, Balancer]:
    """Methods by name, the first stage before all others; of a head without bias those that need none.

    Raises:
        InputError: a name is not known, or a named method needs a bias.
    """
    several = isinstance(methods, Iterable) and not isinstance(methods, str)
    given = tuple(methods) if several else (methods,)
    for name in given or ("",):
        if not isinstance(name, str) or name not in {*FAMILIES, *BALANCERS}:
            hint = nearest(str(name), [*FAMILIES, *BALANCERS])
            raise InputError(f"methods: must be fast, all or names of methods, got {clip(name) or 'nothing'}{hint}")
    wanted = (each for name in given for each in FAMILIES.get(name, (name,)))
    chosen = {name: BALANCERS[name] for name in dict.fromkeys((FIRST, *wanted))}
    if head is None or head.bias is not None:
        return chosen
    if lacking := [name for name in given if name in NEED_BIAS]:
        raise InputError(f"methods: must need no bias, as the head has none, got {lacking[0]}")
    return without_bias(chosen)


def unlike(problem: Problem) -> list[str]:
    """A line where training and validation features are of sizes that no layer gives to both."""
    sets = problem.train, problem.validation
    long, other = (float(row_norms(data.features).mean()) / problem.scale for data in sets)
    if max(long, other) <= UNLIKE * min(long, other):
        return []
    sizes = f"training features are {long:.3g} long in the mean, validation features {other:.3g}"
    return [f"{sizes}: are both what goes into the same layer?"]


def too_few(problem: Problem) -> list[str]:
    """A line where classes have too few validation images to choose by, or none."""
    counts = problem.validation.class_counts
    if counts.min() >= TOO_FEW:
        return []
    rarest = problem.names[int(counts.argmin())]
    left_out = int((counts == 0).sum())
    gone = f"; the {left_out} without any have no part in the choice" if left_out else ""
    return [
        f"{int((counts < TOO_FEW).sum())} of {len(counts)} classes have fewer than {TOO_FEW} validation images "
        f"({clip(rarest)} has {counts.min()}): of one such class they say little, and the choice rests on "
        f"{counts.sum():,} in all{gone}"
    ]


def warnings_for(problem: Problem, tuned: Mapping[str, Tuned], best: str, before: float) -> tuple[str, ...]:
    """What a reader of the table should know, a line each; `before` is the class mean of the head as it was."""
    lines = too_few(problem)
    counts = problem.validation.class_counts
    if problem.again:
        lines.append("the head was balanced before: give the one that was trained, for which methods are made")
    if tuned[best].edge:
        lines.append(f"{best} was chosen at an edge of its grid ({', '.join(tuned[best].edge)}): beyond may be better")
    untested = int((problem.tested.class_counts == 0).sum())
    if problem.has_test and untested:
        others = len(counts) - untested
        lines.append(
            f"{untested} of {len(counts)} classes have no test images: class mean and gains are of the other {others}"
        )
    if not problem.has_test:
        lines.append("no test set: numbers are of the validation images, which chose, and flatter the methods")
    if problem.repeated:
        lines.append(f"{problem.repeated} test images stand in training or validation too")
    lines += unlike(problem)
    means = tuned["NCM"].validation if "NCM" in tuned else 0.0
    if problem.head is not None and (before < 110 / len(counts) or means > 2 * tuned[FIRST].validation):
        lines.append(
            "the head as it was is hardly better than chance, or far below class means: are its rows in the order of "
            "the classes, and the features those that it had?"
        )
    return tuple(lines)


def balance(
    head: Any,
    train: Any,
    validation: Any = None,
    test: Any = None,
    *,
    layer: str | None = None,
    classes: Any = None,
    names: Sequence[str] | None = None,
    score: str = "macro",
    methods: str | Sequence[str] = "fast",
    validation_share: float | None = None,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> Balanced:
    """Balance a linear head on embeddings: tune every method on validation, fit a temperature, test once.

    Args:
        head: a linear layer; a pair of weight [C, D] and bias [C] or None; a fitted estimator of scikit-learn's kind; a
            state dict or a model, with `layer`; or None, and plain cross-entropy gives the first one.
        train: features [N, D], arrays or tensors of any float type, and labels [N], integers or strings.
        validation: as `train`; its images must be others. They choose hyper-parameters and temperatures.
        test: as `train`; nothing depends on it but the numbers.
        layer: the head's name in its state dict.
        classes: [C], what the head's rows are called in the labels, in their order. Without it integers are the rows;
            strings stand in alphabetical order, and in that of their numbers where all are whole numbers.
        names: [C], what to call the classes.
        score: "macro", the mean of the classes' accuracies, or "micro", the share of all images.
        methods: "fast" (in seconds), "all", or names of `methods.BALANCERS`.
        validation_share: without a head, the share of each class's training images to validate on; groups are of the
            images that are left to train on.
        seed: of the draws.
        say: is told each method's outcome in a line.

    Raises:
        InputError: something does not fit; the message is one line that begins with the argument.
    """
    if not isinstance(score, str) or score not in SCORES:
        hint = nearest(str(score), list(SCORES))
        raise InputError(f"score: must be one of {', '.join(SCORES)}, got {clip(score)}{hint}")
    if say is not None and not callable(say):
        raise InputError(f"say: must be a function that takes a line, as print, got {clip(repr(say))}")
    given = {"train": train, "validation": validation, "test": test}
    if not isinstance(seed, Integral) or not 0 <= seed < 2**32:
        raise InputError(f"seed: must be a whole number from 0 to 4294967295, got {clip(repr(seed))}")
    options = {"layer": layer, "classes": classes, "names": names, "validation_share": validation_share, "seed": seed}
    problem = embeddings.read(head, given, options)
    chosen = choose_methods(methods, problem.head)
    result = run(problem, chosen, recipe_for(len(problem.train), seed), score, say or (lambda line: None))
    for line in result.warnings:
        warnings.warn(line, stacklevel=2)
    return result


def run(
    problem: Problem, chosen: Mapping[str, Balancer], recipe: Recipe, score: str, say: Callable[[str], None]
) -> Balanced:
    """Tune and test some methods on what was checked, see `balance`."""
    tuned: dict[str, Tuned] = {}
    for name, method in tqdm(chosen.items(), "methods", leave=False, disable=None):
        if name == FIRST:
            found = tune_first(problem, recipe, score)
        else:
            found = tune(method, tuned[FIRST].classifier, problem, recipe, score)
            logits = found.classifier(problem.validation.features).detach()
            found = dataclasses.replace(found, temperature=fit_temperature(logits, problem.validation.labels))
        tuned[name] = found
        words = describe(found.candidate, recipe)
        say(f"{name}: validation {metrics.or_dash(found.shown_score())} % {words} ({found.seconds:.1f} s)")
    return summarise(problem, tuned, recipe, score)


def in_float32(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A head as a layer for float32 features, its values rounded to the owner's type as they will be used."""
    weight = weight.float()
    return linear(weight, weight.new_zeros(len(weight)) if bias is None else bias.float())


def summarise(problem: Problem, tuned: Mapping[str, Tuned], recipe: Recipe, score: str) -> Balanced:
    """Test every head once, and put all into a result."""
    heads = {name: problem.finished(one.classifier, one.temperature) for name, one in tuned.items()}
    if problem.head is not None:
        heads[FIRST] = problem.head.weight, problem.head.bias
    predictions = {name: predict(in_float32(*parts), problem.tested) for name, parts in heads.items()}
    first = in_float32(*heads[FIRST]).to(problem.train.features.device)
    (adjusted,) = logit_adjustment(first, problem.train, recipe, [{"tau": 1.0}])
    baselines = dict(zip(BASELINES, (predictions[FIRST], predict(adjusted, problem.tested)), strict=True))
    table = table_of(tuned, predictions, baselines, recipe, score, problem.train.class_counts)
    best = max(tuned, key=lambda name: tuned[name].validation)
    where = "test" if problem.has_test else "validation"
    notes = warnings_for(problem, tuned, best, table["class mean"].iloc[0])
    told = {"best": best, "score": score, "tested_on": where, "warnings": notes} | about(problem, tuned, recipe)
    told["temperature alone"] = temperature_alone(problem, tuned[FIRST].classifier)
    return Balanced(
        table=table,
        best=best,
        warnings=notes,
        classes=problem.classes,
        names=problem.names,
        class_counts=problem.train.class_counts,
        score=score,
        tested_on=where,
        heads=heads,
        predictions=predictions,
        about=told,
        layer=problem.head.layer if problem.head else "",
    )


def temperature_alone(problem: Problem, first: nn.Linear) -> dict[str, float]:
    """What a temperature, fitted on validation, makes of the calibration of the head as it was: a method's share in the
    table's ECE is beyond this.

    Args:
        first: for scaled features.
    """
    logits = first(problem.validation.features).detach()
    temperature = fit_temperature(logits, problem.validation.labels)
    calibrated = predict(in_float32(*problem.finished(first, temperature)), problem.tested)
    return {"temperature": temperature, "ECE": calibrated.calibration_error()}


def table_of(
    tuned: Mapping[str, Tuned],
    predictions: Mapping[str, Predictions],
    baselines: Mapping[str, Predictions],
    recipe: Recipe,
    score: str,
    counts: np.ndarray,
) -> pd.DataFrame:
    """The table of `Balanced`, a row a method; `counts` [C] are the training images of each class."""
    rows = []
    for name, one in tuned.items():
        row = {"method": name, "hyper-parameters": describe(one.candidate, recipe), "validation": one.shown_score()}
        row |= {"temperature": one.temperature, **measures_of(predictions[name], counts)}
        for column, baseline in baselines.items():
            row[column], row[f"{column} ±"] = paired_gain(baseline, predictions[name], score)
        rows.append(row | {"edge": ", ".join(one.edge), "seconds": one.seconds})
    return pd.DataFrame(rows)


def about(problem: Problem, tuned: Mapping[str, Tuned], recipe: Recipe) -> dict[str, Any]:
    """What was chosen, and on what."""
    images = {"train": len(problem.train), "validation": len(problem.validation)}
    images |= {"test": len(problem.tested)} if problem.has_test else {}
    methods = {
        name: {
            "hyper-parameters": absolute(one.candidate, recipe),
            "validation": one.shown_score(),
            "temperature": one.temperature,
        }
        for name, one in tuned.items()
    }
    shape = {"classes": len(problem.names), "features": problem.train.features.shape[1]}
    shape |= {"feature_scale": problem.scale, "head": "given" if problem.head else "trained by cross-entropy"}
    return {"methods": methods, "images": images, **shape, "recipe": recipe.describe(), "ltr": __version__}

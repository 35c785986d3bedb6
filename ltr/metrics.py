"""From logits to numbers: accuracy by class and by group, confusion, calibration, and how certain they are.

Everything is NumPy. Accuracies are percentages. An empty group is NaN and shows as an en dash, never as 0. So is every
figure of a model that gives a logit which is not finite: an argmax would make a class of it all the same.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

GROUPS = ("many", "medium", "few")
# Ways to count: which epoch's weights, and whether logits are averaged with the mirrored image's.
VARIANTS = (("last", "none"), ("last", "flip"), ("best_test", "none"), ("best_test", "flip"))
RATIOS = (50, 25, 10, 5, 2)  # of long-tailed test sets, as in SADE


def group_of(counts: np.ndarray) -> np.ndarray:
    """Name each class's group by its training images: many (> 100), medium (20..100), few (< 20).

    Source: Liu et al. 2019 (the field's split).
    """
    counts = np.asarray(counts)
    return np.where(counts > 100, "many", np.where(counts >= 20, "medium", "few"))


def hits_of(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """1 where the largest logit is the label's, else 0: float [N]; all NaN if a logit is not finite."""
    if not np.isfinite(logits).all():
        return np.full(len(labels), np.nan)
    return (logits.argmax(1) == labels).astype(float)


def accuracy_by_class(hits: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Percent of each class's images that are hits, [C]; NaN for a class without images."""
    images = np.bincount(labels, minlength=num_classes)
    found = np.bincount(labels, hits, minlength=num_classes)
    return np.divide(100.0 * found, images, out=np.full(len(images), np.nan), where=images > 0)


def accuracy_by_group(hits: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """Percent of all images that are hits, and of those of each group of classes.

    Args:
        hits: [N], of `hits_of`.
        labels: [N].
        counts: [C], training images of each class, which decide the groups.

    Returns:
        keys all, many, medium, few; NaN for a group without a test image.
    """
    groups = group_of(counts)[labels]
    inside = {"all": np.ones(len(labels), bool), **{group: groups == group for group in GROUPS}}
    return {name: 100.0 * float(hits[own].mean()) if own.any() else float("nan") for name, own in inside.items()}


def per_class_accuracy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`accuracy_by_class` of logits [N, C]; if one is not finite, every class's accuracy is NaN."""
    return accuracy_by_class(hits_of(logits, labels), labels, logits.shape[1])


def group_accuracy(logits: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """`accuracy_by_group` of logits [N, C]; if one is not finite, all are NaN."""
    return accuracy_by_group(hits_of(logits, labels), labels, counts)


def below_largest(logits: np.ndarray) -> np.ndarray:
    """Logits [N, C] less their row's largest, in float64 so that no exponential overflows; NaN in rows not finite."""
    logits = np.where(np.isfinite(logits).all(1, keepdims=True), logits, np.nan).astype(np.float64)
    return logits - logits.max(1, keepdims=True)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [N, C] in float64; NaN in rows that are not finite."""
    exponentials = np.exp(below_largest(logits))
    return exponentials / exponentials.sum(1, keepdims=True)


def log_likelihood(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Logarithm of the probability of each image's label in nats, [N]; less its mean is the cross-entropy.

    NaN in rows that are not finite.
    """
    logits = below_largest(logits)
    return logits[np.arange(len(labels)), labels] - np.log(np.exp(logits).sum(1))


@dataclass(frozen=True)
class Predictions:
    """What a model says of each test image: all that accuracy, calibration and the bootstrap need.

    Attributes:
        predicted: [N], the class with the largest logit.
        confidence: [N], its probability; NaN throughout if a logit is not finite.
        labels: [N].
        marginal: [C], mean probability of each class over the images. Sums to 1; on a balanced test set 1 / C each
            where no class is preferred (the paper's figure 6).
    """

    predicted: np.ndarray
    confidence: np.ndarray
    labels: np.ndarray
    marginal: np.ndarray

    @classmethod
    def of(cls, logits: np.ndarray, labels: np.ndarray) -> "Predictions":
        """Predictions of logits [N, C]."""
        probabilities = softmax(logits)
        marginal = probabilities.mean(0)  # NaN if a logit is not finite
        confidence = probabilities.max(1) if np.isfinite(marginal).all() else np.full(len(labels), np.nan)
        return cls(logits.argmax(1), confidence, np.asarray(labels), marginal)

    @property
    def hits(self) -> np.ndarray:
        """1 where an image is predicted as its class, else 0: float [N]; all NaN if a logit is not finite."""
        hits = (self.predicted == self.labels).astype(float)
        return np.where(np.isnan(self.confidence), np.nan, hits)

    @property
    def confusion(self) -> np.ndarray:
        """Counts [C, C]: row = true class, column = predicted class; none if a logit is not finite."""
        classes = len(self.marginal)
        if np.isnan(self.confidence).any():
            return np.zeros((classes, classes), np.int64)
        pairs = self.labels.astype(np.int64) * classes + self.predicted.astype(np.int64)
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    @property
    def by_class(self) -> np.ndarray:
        """Accuracy of each class in percent, its recall, [C]; NaN for a class without images."""
        return accuracy_by_class(self.hits, self.labels, len(self.marginal))

    @property
    def precision(self) -> np.ndarray:
        """Percent of the images predicted as each class that are of it, [C]; NaN where there are none."""
        return accuracy_by_class(self.hits, self.predicted, len(self.marginal))

    def reliability(self, bins: int = 15) -> pd.DataFrame:
        """Mean confidence and accuracy in equal-width bins of the confidence.

        Returns:
            a row for each bin that holds images: confidence and accuracy in 0..1, weight = share of the images. No row
            if a logit is not finite.
        """
        if np.isnan(self.confidence).any():
            return pd.DataFrame(columns=["confidence", "accuracy", "weight"], dtype=float)
        index = np.clip(np.ceil(self.confidence * bins).astype(int) - 1, 0, bins - 1)  # bins are (a, b]
        images = np.bincount(index, minlength=bins)
        filled = images > 0
        confidence, accuracy = (
            np.bincount(index, values, minlength=bins)[filled] / images[filled]
            for values in (self.confidence, self.hits)
        )
        weight = images[filled] / len(self.labels)
        return pd.DataFrame({"confidence": confidence, "accuracy": accuracy, "weight": weight})

    def calibration_error(self, bins: int = 15) -> float:
        """Expected calibration error: weighted mean distance of confidence and accuracy, in percent, or NaN.

        Source: Guo et al. 2017, equation 3.
        """
        table = self.reliability(bins)
        distance = 100.0 * float((table.weight * (table.confidence - table.accuracy).abs()).sum())
        return distance if len(table) else float("nan")

    def summary(self, counts: np.ndarray) -> dict[str, float]:
        """All measures of a model in percent, those of `accuracy_by_group` and ece; NaN if a logit is not finite."""
        return {**accuracy_by_group(self.hits, self.labels, counts), "ece": self.calibration_error()}

    def shifted(self, counts: np.ndarray, ratios: Sequence[float] = RATIOS) -> dict[str, float]:
        """Accuracy in percent on test sets whose classes are long-tailed, forward as in training or backward.

        The papers draw such sets from the balanced one. Here the accuracies of the classes are weighted by the shifted
        class distribution: what that drawing gives on average, without its noise and with all images used.

        Args:
            counts: [C], training images of each class, which give the order; classes without test images are left out.
            ratios: see `shifted_priors`.

        Returns:
            keys "forward 50", ..., "backward 50", from the most to the least like training.
        """
        seen = np.bincount(self.labels, minlength=len(self.marginal)) > 0
        shifts = [("forward", ratio) for ratio in sorted(ratios, reverse=True)]
        shifts += [("backward", ratio) for ratio in sorted(ratios)]
        by_class, result = self.by_class[seen], {}
        for name, ratio in shifts:
            weights = shifted_priors(counts, ratio, name == "backward")[seen]
            result[f"{name} {ratio:g}"] = float(np.average(by_class, weights=weights))
        return result


def shifted_priors(counts: np.ndarray, ratio: float, backward: bool = False) -> np.ndarray:
    r"""Class distribution of a long-tailed test set.

    .. math:: \pi_k \propto r^{-\mathrm{rank}(k) / (C - 1)}

    Args:
        counts: [C], training images of each class; rank 0 is the class with most of them, equal ones in their order.
        ratio: r, at least 1, images of the most common test class over those of the rarest.
        backward: turn the order around, so that the rarest class of training is the most common of the test.

    Returns:
        float64 [C], sums to 1.

    Source: Hong et al. 2021 (LADE); Zhang et al. 2022 (SADE, test-agnostic recognition).
    """
    rank = np.argsort(np.argsort(-np.asarray(counts), kind="stable"))
    rank = len(rank) - 1 - rank if backward else rank
    weights = float(ratio) ** (-rank / max(len(rank) - 1, 1))
    return weights / weights.sum()


def mean_and_error(values: np.ndarray, labels: np.ndarray | None = None) -> tuple[float, float]:
    """A mean over images and its standard error in closed form, both in the unit of the values.

    Args:
        values: [N], such as 100 times the difference of two models' hits for points.
        labels: [N]; with them it is the mean of the classes' means, whose variance is that within the classes. A class
            with a single image has the variance of all images.

    Returns:
        the mean and its error, which is NaN of a single image.
    """
    values = np.asarray(values, float)
    spread = values.var(ddof=1) if len(values) > 1 else np.nan
    if labels is None:
        return float(values.mean()), float(np.sqrt(spread / len(values)))
    _, own, images = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.bincount(own, values) / images
    within = np.bincount(own, (values - means[own]) ** 2) / np.maximum(images - 1, 1)
    variance = np.where(images > 1, within, spread)
    return float(means.mean()), float(np.sqrt((variance / images).sum()) / len(images))


def standard_error(hits: np.ndarray) -> float:
    """Standard error of one accuracy in points, see `mean_and_error`."""
    return 100.0 * mean_and_error(hits)[1]


class Difference(NamedTuple):
    """What one model has over another on the same test images, in points.

    Attributes:
        points: the difference.
        error: its paired standard error in closed form, see `mean_and_error`.
        resampled: the same by the bootstrap.
        low, high: ends of the bootstrap's 95 % interval.
    """

    points: float
    error: float
    resampled: float
    low: float
    high: float

    def __str__(self) -> str:
        """As a sentence speaks of it: "+4.7 ± 0.4 points"."""
        return f"{self.points:+.1f} ± {self.error:.1f} points"


def paired_difference(
    before: np.ndarray, after: np.ndarray, labels: np.ndarray | None = None, draws: int = 10_000, seed: int = 0
) -> Difference:
    """The second model's accuracy less the first one's, with its uncertainty by a paired bootstrap over test images.

    Each image gives -1, 0 or 1, so that how often each comes in a resampled set is multinomial: what drawing the
    images one by one gives, without drawing them.

    Args:
        before, after: [N], each model's hits on the same images.
        labels: [N]; with them accuracy is the mean over classes, and images are drawn class by class.
        draws: resampled test sets.
        seed: of the draws.

    Returns:
        NaN throughout where a model's hits are.

    Source: Efron and Tibshirani 1993, chapter 13 (the percentile interval).
    """
    change = np.asarray(after, float) - np.asarray(before, float)
    if np.isnan(change).any():
        return Difference(*[float("nan")] * len(Difference._fields))
    classes = np.zeros(len(change), np.int64) if labels is None else np.unique(labels, return_inverse=True)[1]
    outcomes = np.stack([np.bincount(classes, change == value) for value in (-1, 0, 1)], 1)  # [C, 3]
    generator = np.random.default_rng(seed)
    means = np.zeros(draws)
    for row in outcomes.astype(np.int64):
        lost, _, won = generator.multinomial(row.sum(), row / row.sum(), draws).T
        means += 100.0 * (won - lost) / row.sum() / len(outcomes)
    return Difference(
        *mean_and_error(100.0 * change, labels), float(means.std(ddof=1)), *np.percentile(means, (2.5, 97.5)).tolist()
    )


def best_rows(hits: np.ndarray) -> np.ndarray:
    """Which models lie within two paired standard errors of the best one: those that a table makes bold, bool [R].

    Args:
        hits: [R, N], a row a model, all on the same images; NaN of models that diverged, which are never among them.
    """
    hits = np.asarray(hits, float)
    best = hits[best_index([mean_and_error(row)[0] for row in hits])]
    behind = np.array([mean_and_error(best - row) for row in hits])
    return behind[:, 0] <= 2 * behind[:, 1]


def best_index(scores: Sequence[float]) -> int:
    """Of the largest score, of equals the first; one that is NaN is never chosen before one that is not."""
    return int(np.where(np.isnan(scores), -np.inf, scores).argmax())


def with_dashes(text: str) -> str:
    """A sentence or a cell whose missing numbers are en dashes."""
    return re.sub(r"[+-]?\bnan\b", "–", text)


def or_dash(value: float | None, form: str = ".2f") -> str:
    """A number in a format, as of an accuracy in percent; an en dash where there is none."""
    return "–" if value is None or np.isnan(value) else format(value, form)

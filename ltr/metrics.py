"""From logits to figures: accuracy by class and by group, confusion, calibration, norms.

Everything is NumPy. Accuracies are percentages. An empty group is NaN and shows as an en dash, never as 0. So is every
figure of a model that gives a logit which is not finite: an argmax would make a class of it all the same.
"""

from collections.abc import Sequence

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


def confusion_matrix(predictions: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts [C, C]: row = true class, column = predicted class."""
    pairs = np.asarray(labels, np.int64) * num_classes + np.asarray(predictions, np.int64)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class_accuracy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Percent of each class's test images whose largest logit is their class's; NaN where there are none.

    Args:
        logits: [N, C]; if one is not finite, every class's accuracy is NaN.
        labels: [N].
    """
    if not np.isfinite(logits).all():
        return np.full(logits.shape[1], np.nan)
    matrix = confusion_matrix(logits.argmax(1), labels, logits.shape[1])
    images = matrix.sum(1)
    return np.divide(100.0 * matrix.diagonal(), images, out=np.full(len(matrix), np.nan), where=images > 0)


def group_accuracy(logits: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """Top-1 accuracy in percent over all test images and over those of each group of classes.

    Args:
        logits: [N, C].
        labels: [N].
        counts: [C], training images of each class, which decide the groups.

    Returns:
        keys all, many, medium, few; NaN for a group with no class, and all of them if a logit is not finite.
    """
    if not np.isfinite(logits).all():
        return dict.fromkeys(("all", *GROUPS), float("nan"))
    hit = logits.argmax(1) == labels
    groups = group_of(counts)[labels]
    result = {"all": 100.0 * float(hit.mean())}
    for group in GROUPS:
        inside = groups == group
        result[group] = 100.0 * float(hit[inside].mean()) if inside.any() else float("nan")
    return result


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [N, C], in float64 so that float16 logits do not overflow; NaN in rows that are not finite."""
    logits = np.where(np.isfinite(logits).all(1, keepdims=True), logits, np.nan).astype(np.float64)
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def reliability(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> pd.DataFrame:
    """Mean confidence and accuracy in equal-width bins of the confidence.

    Returns:
        a row for each bin that holds images: confidence and accuracy in 0..1, weight = share of the images. No row
        if a logit is not finite.
    """
    if not np.isfinite(logits).all():
        return pd.DataFrame(columns=["confidence", "accuracy", "weight"], dtype=float)
    probabilities = softmax(logits)
    confidence, hit = probabilities.max(1), probabilities.argmax(1) == labels
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # bins are (a, b]
    images = np.bincount(index, minlength=bins)
    filled = images > 0

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(index, values, minlength=bins)[filled] / images[filled]

    weight = images[filled] / len(labels)
    return pd.DataFrame({"confidence": mean(confidence), "accuracy": mean(hit.astype(float)), "weight": weight})


def expected_calibration_error(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Weighted mean distance between confidence and accuracy, in percent; NaN if a logit is not finite.

    Source: Guo et al. 2017, equation 3.
    """
    if not np.isfinite(logits).all():
        return float("nan")
    table = reliability(logits, labels, bins)
    return 100.0 * float((table.weight * (table.confidence - table.accuracy).abs()).sum())


def summarise(logits: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """All figures of one evaluated model: all, many, medium, few and ece, in percent; NaN if a logit is not finite."""
    return {**group_accuracy(logits, labels, counts), "ece": expected_calibration_error(logits, labels)}


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


def shifted_accuracy(
    logits: np.ndarray, labels: np.ndarray, counts: np.ndarray, ratios: Sequence[float] = RATIOS
) -> dict[str, float]:
    """Accuracy in percent on test sets whose classes are long-tailed, forward as in training or backward.

    The papers draw such sets from the balanced one. Here the accuracies of the classes are weighted by the shifted
    class distribution: what that drawing gives on average, without its noise and with all images used.

    Args:
        logits: [N, C]; if one is not finite, every accuracy is NaN.
        labels: [N]; classes without test images are left out.
        counts: [C], training images of each class, which give the order.
        ratios: see `shifted_priors`.

    Returns:
        keys "forward 50", ..., "backward 50", from the most to the least like training.
    """
    accuracy = per_class_accuracy(logits, labels)
    seen = np.bincount(np.asarray(labels, np.int64), minlength=len(accuracy)) > 0
    shifts = [(ratio, False) for ratio in sorted(ratios, reverse=True)] + [(ratio, True) for ratio in sorted(ratios)]
    result = {}
    for ratio, backward in shifts:
        weights = shifted_priors(counts, ratio, backward)[seen]
        name = f"{'backward' if backward else 'forward'} {ratio:g}"
        result[name] = float(weights @ accuracy[seen] / weights.sum())
    return result


def percent(value: float) -> str:
    """Two decimals, or an en dash where there is no number."""
    return "–" if value is None or np.isnan(value) else f"{value:.2f}"

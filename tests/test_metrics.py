"""Metrics against small cases worked by hand."""

from math import nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltr import metrics


def logits_for(predictions: list[int], num_classes: int) -> np.ndarray:
    """Logits [N, C] whose largest entry is the prediction."""
    return np.eye(num_classes)[predictions]


def logits_of(confidences: list[float]) -> np.ndarray:
    """Logits [N, 2] that predict class 0 with these probabilities."""
    confidences = np.array(confidences)
    return np.log(np.stack([confidences, 1 - confidences], 1))


def test_group_boundaries():
    groups = metrics.group_of(np.array([500, 101, 100, 20, 19, 1]))
    assert groups.tolist() == ["many", "many", "medium", "medium", "few", "few"]


def test_confusion_matrix_has_true_classes_in_rows():
    made = metrics.Predictions(np.array([0, 1, 1, 2, 1]), np.ones(5), np.array([0, 0, 0, 1, 1]), np.full(3, 1 / 3))
    assert made.confusion.tolist() == [[1, 2, 0], [0, 1, 1], [0, 0, 0]]


def test_per_class_accuracy_by_hand():
    # class 0: 1 of 2, class 1: 3 of 3, class 2 has no test images
    accuracy = metrics.per_class_accuracy(logits_for([0, 2, 1, 1, 1], 3), np.array([0, 0, 1, 1, 1]))
    assert accuracy.tolist() == pytest.approx([50, 100, nan], nan_ok=True)


def test_group_accuracy_by_hand():
    # many (class 0): 1 of 2; medium (class 1): 0 of 1; few (classes 2, 3): 2 of 3; all: 3 of 6
    logits, labels = logits_for([0, 1, 0, 2, 3, 2], 4), np.array([0, 0, 1, 2, 3, 3])
    accuracy = metrics.group_accuracy(logits, labels, np.array([101, 100, 19, 5]))
    assert accuracy == pytest.approx({"all": 50, "many": 50, "medium": 0, "few": 200 / 3})


def test_an_empty_group_is_nan_and_shows_as_a_dash():
    accuracy = metrics.group_accuracy(logits_for([0, 0], 2), np.array([0, 1]), np.array([500, 50]))
    assert accuracy == pytest.approx({"all": 50, "many": 100, "medium": 0, "few": nan}, nan_ok=True)
    assert [metrics.or_dash(accuracy[key]) for key in ("all", "medium", "few")] == ["50.00", "0.00", "–"]


NOT_FINITE = {
    "all NaN": np.full((4, 2), nan),
    "all infinite": np.full((4, 2), np.inf),
    "one NaN": np.array([[1, 0], [1, 0], [nan, 0], [0, 1]]),
    "one infinite": np.array([[1, 0], [1, 0], [np.inf, 0], [0, 1]]),
    "one minus infinite": np.array([[1, 0], [1, 0], [1, -np.inf], [0, 1]]),
    "half precision": np.array([[1, 0], [1, 0], [nan, 0], [0, 1]], np.float16),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", NOT_FINITE)
def test_logits_that_are_not_finite_give_no_figure(kind):
    logits, labels, counts = NOT_FINITE[kind], np.array([0, 0, 0, 1]), np.array([500, 5])
    assert np.isnan(metrics.per_class_accuracy(logits, labels)).all()
    measures = metrics.Predictions.of(logits, labels).summary(counts)
    assert list(measures) == ["all", "many", "medium", "few", "ece"]
    assert {metrics.or_dash(value) for value in measures.values()} == {"–"}
    assert metrics.group_accuracy(logits, labels, counts) == pytest.approx(
        dict.fromkeys(("all", *metrics.GROUPS), nan), nan_ok=True
    )
    assert np.isnan(metrics.Predictions.of(logits, labels).calibration_error())
    assert metrics.Predictions.of(logits, labels).reliability().to_dict("list") == {
        "confidence": [],
        "accuracy": [],
        "weight": [],
    }
    assert np.isnan(metrics.Predictions.of(logits, labels).marginal).all()
    shifted = metrics.Predictions.of(logits, labels).shifted(counts)
    assert len(shifted) == 10
    assert np.isnan(list(shifted.values())).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", NOT_FINITE)
def test_probabilities_are_nan_in_rows_that_are_not_finite(kind):
    logits = NOT_FINITE[kind]
    finite, found = np.isfinite(logits).all(1), metrics.softmax(logits)
    assert np.isnan(found[~finite]).all()
    np.testing.assert_array_equal(found[finite], metrics.softmax(logits[finite]))


def test_a_number_or_a_dash():
    assert [metrics.or_dash(value) for value in (38.376, 100, None, nan)] == ["38.38", "100.00", "–", "–"]


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 4))
def test_on_a_balanced_test_set_every_mean_is_the_mean_of_its_classes(seed, num_classes, per_class):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num_classes), per_class)
    logits, counts = rng.normal(size=(len(labels), num_classes)), rng.integers(1, 200, num_classes)
    accuracy, by_class = metrics.group_accuracy(logits, labels, counts), metrics.per_class_accuracy(logits, labels)
    assert accuracy["all"] == pytest.approx(by_class.mean())
    for group in metrics.GROUPS:
        inside = metrics.group_of(counts) == group
        expected = by_class[inside].mean() if inside.any() else nan
        assert accuracy[group] == pytest.approx(expected, nan_ok=True)


def test_softmax_by_hand():
    np.testing.assert_allclose(metrics.softmax(np.log([[1.0, 2.0, 5.0]]) + 7), [[0.125, 0.25, 0.625]])


def test_softmax_keeps_float16_extremes():
    logits = np.array([[65504, -65504, 0], [65504, 65504, -65504], [-65504] * 3], np.float16)
    np.testing.assert_allclose(metrics.softmax(logits), [[1, 0, 0], [0.5, 0.5, 0], [1 / 3] * 3])


def test_marginal_likelihood_by_hand():
    made = metrics.Predictions.of(np.array([[0.0, np.log(3.0)], [50.0, 0.0]]), np.array([0, 0]))
    np.testing.assert_allclose(made.marginal, [(0.25 + 1) / 2, 0.75 / 2], rtol=1e-6)
    assert (made.predicted.tolist(), made.hits.tolist()) == ([1, 0], [0, 1])
    np.testing.assert_allclose(made.confidence, [0.75, 1], rtol=1e-6)


def test_calibration_error_by_hand():
    # 5 bins: (0.4, 0.6]: one image at 0.55, right, gap 0.45; (0.8, 1]: 0.85 and 0.95, one right, gap 0.9 - 0.5
    logits, labels = logits_of([0.55, 0.85, 0.95]), np.array([0, 0, 1])
    assert metrics.Predictions.of(logits, labels).calibration_error(bins=5) == pytest.approx(100 * (0.45 + 2 * 0.4) / 3)
    table = metrics.Predictions.of(logits, labels).reliability(bins=5)
    np.testing.assert_allclose(table[["confidence", "accuracy", "weight"]], [[0.55, 1, 1 / 3], [0.9, 0.5, 2 / 3]])


def test_perfect_calibration_is_zero():
    # three of four right at 0.75, three of five at 0.6
    logits, labels = logits_of([0.75] * 4 + [0.6] * 5), np.array([0, 0, 0, 1, 0, 0, 0, 1, 1])
    assert metrics.Predictions.of(logits, labels).calibration_error() == pytest.approx(0, abs=1e-9)


def test_bins_are_open_below_and_closed_above():
    # equal logits give exactly 1/2, the edge between (0, 1/2] and (1/2, 1]: 0.75 must not share its bin
    logits = np.stack([[0.0, 0.0], logits_of([0.75])[0]])
    assert metrics.Predictions.of(logits, np.array([0, 0])).reliability(bins=2).confidence.tolist() == pytest.approx(
        [0.5, 0.75]
    )


def test_full_confidence_falls_into_the_last_bin():
    table = metrics.Predictions.of(np.array([[1000.0, 0.0], [0.0, 1000.0]]), np.array([0, 0])).reliability()
    assert table.to_dict("list") == {"confidence": [1.0], "accuracy": [0.5], "weight": [1.0]}


def test_a_summary_holds_all_figures():
    logits, labels, counts = logits_of([0.75] * 4), np.array([0, 0, 0, 1]), np.array([500, 5])
    measures = metrics.Predictions.of(logits, labels).summary(counts)
    expected = {"all": 75, "many": 100, "medium": nan, "few": 0, "ece": 0}
    assert measures == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_shifted_priors_by_hand():
    # ratio 4 over three classes: 4, 2, 1, the most for the class with most training images
    np.testing.assert_allclose(metrics.shifted_priors(np.array([500, 5, 50]), 4), np.array([4, 1, 2]) / 7)
    np.testing.assert_allclose(
        metrics.shifted_priors(np.array([500, 5, 50]), 4, backward=True), np.array([1, 4, 2]) / 7
    )


@given(st.integers(0, 2**32), st.integers(1, 12), st.floats(1, 200))
def test_shifted_priors_span_the_ratio(seed, num_classes, ratio):
    counts = np.random.default_rng(seed).integers(1, 500, num_classes)
    forward, backward = (metrics.shifted_priors(counts, ratio, turned) for turned in (False, True))
    assert forward.sum() == pytest.approx(1)
    assert forward.max() / forward.min() == pytest.approx(ratio if num_classes > 1 else 1)
    assert sorted(forward) == pytest.approx(sorted(backward))
    assert (np.diff(forward[np.argsort(-counts, kind="stable")]) <= 1e-12).all()


def test_shifted_accuracy_by_hand():
    # classes right in 100, 50 and 0 %, ratio 4: (4 * 100 + 2 * 50) / 7 forward, (2 * 50 + 1 * 100) / 7 backward
    logits, labels = logits_for([0, 0, 1, 0, 1, 1], 3), np.array([0, 0, 1, 1, 2, 2])
    shifted = metrics.Predictions.of(logits, labels).shifted(np.array([500, 50, 5]), ratios=(4,))
    assert shifted == pytest.approx({"forward 4": 500 / 7, "backward 4": 200 / 7})


def test_a_ratio_of_one_is_the_balanced_test_set_and_unseen_classes_count_for_nothing():
    logits, labels = logits_for([0, 1, 1, 1], 4), np.array([0, 0, 1, 1])
    shifted = metrics.Predictions.of(logits, labels).shifted(np.array([9, 8, 7, 6]), ratios=(1,))
    assert shifted == pytest.approx({"forward 1": 75, "backward 1": 75})


def test_shifts_run_from_the_most_to_the_least_like_training():
    logits, labels = logits_for([0, 1], 2), np.array([0, 0])
    names = list(metrics.Predictions.of(logits, labels).shifted(np.array([9, 8])))
    assert names[:2] == ["forward 50", "forward 25"]
    assert names[-2:] == ["backward 25", "backward 50"]


def test_weighted_accuracy_is_what_drawing_shifted_test_sets_gives_on_average():
    rng = np.random.default_rng(0)
    labels, counts = np.repeat(np.arange(4), 100), np.array([400, 90, 20, 5])
    logits = rng.normal(size=(400, 4)) + 1.5 * np.eye(4)[labels] * np.array([2, 1.5, 1, 0.5])[labels, None]
    wanted = np.array([100, 46, 22, 10])  # 100 * 10 ** (-k / 3)
    drawn = []
    for _ in range(400):
        chosen = np.concatenate([rng.choice(np.flatnonzero(labels == k), n, False) for k, n in enumerate(wanted)])
        drawn.append(metrics.group_accuracy(logits[chosen], labels[chosen], counts)["all"])
    assert metrics.Predictions.of(logits, labels).shifted(counts, (10,))["forward 10"] == pytest.approx(
        np.mean(drawn), abs=0.4
    )


# ---- uncertainty


def test_the_standard_error_of_an_accuracy():
    hits = np.arange(10_000) < 4083
    assert metrics.mean_and_error(100 * hits) == pytest.approx((40.83, 100 * (0.4083 * 0.5917 / 9999) ** 0.5))
    assert metrics.standard_error(hits) == pytest.approx(0.4915, abs=1e-4)
    assert np.isnan(metrics.standard_error([1]))


def test_the_class_mean_and_its_error_by_hand():
    # class 3: 2 of 4 gained, class 7: 1 of 2, class 9 (one image, with the variance of all 7): 0
    change, labels = np.array([1, 1, 0, 0, 1, 0, 0]), np.array([3, 3, 3, 3, 7, 7, 9])
    mean, error = metrics.mean_and_error(100 * change, labels)
    assert mean == pytest.approx(100 * (0.5 + 0.5 + 0) / 3)
    assert error == pytest.approx(100 * (1 / 3 / 4 + 0.5 / 2 + np.var(change, ddof=1)) ** 0.5 / 3)


def two_models(size: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hits of two models that agree on most images, and uneven labels."""
    generator = np.random.default_rng(3)
    labels = generator.choice(5, size, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    before = generator.random(size) < 0.4
    after = np.where(generator.random(size) < 0.2, generator.random(size) < 0.5, before)
    return before, after, labels


@pytest.mark.parametrize("by_class", [False, True])
def test_the_bootstrap_agrees_with_the_closed_form(by_class):
    before, after, labels = two_models()
    found = metrics.paired_difference(before, after, labels if by_class else None)
    assert found.resampled == pytest.approx(found.error, rel=0.03)
    assert (found.low, found.high) == pytest.approx(
        (found.points - 1.96 * found.error, found.points + 1.96 * found.error), abs=0.1 * found.error
    )
    if not by_class:
        assert found.points == pytest.approx(100 * (after.mean() - before.mean()))
        independent = (metrics.standard_error(before) ** 2 + metrics.standard_error(after) ** 2) ** 0.5
        assert found.error < 0.6 * independent  # what pairing gains: most images are alike


def test_the_bootstrap_is_that_of_images_drawn_one_by_one():
    before, after, _ = two_models(300)
    change = after.astype(float) - before
    drawn = change[np.random.default_rng(1).integers(0, 300, (10_000, 300))].mean(1)
    found = metrics.paired_difference(before, after)
    assert found.resampled == pytest.approx(100 * drawn.std(ddof=1), rel=0.03)
    assert (found.low, found.high) == pytest.approx(tuple(100 * np.percentile(drawn, (2.5, 97.5))), abs=0.34)


def test_the_bootstrap_repeats_itself():
    before, after, labels = two_models(500)
    assert metrics.paired_difference(before, after, labels) == metrics.paired_difference(before, after, labels)
    assert metrics.paired_difference(before, after, seed=1) != metrics.paired_difference(before, after, seed=2)
    assert metrics.paired_difference(before, before) == (0, 0, 0, 0, 0)


def test_rows_within_two_paired_errors_of_the_best():
    best = np.arange(1000) < 500
    near, far = best.copy(), best.copy()
    near[:3] = False  # 0.3 points behind, +- 0.17
    far[:5] = False  # 0.5 points behind, +- 0.22
    assert metrics.best_rows([far, near, best]).tolist() == [False, True, True]
    other = best[::-1]  # as good, on other images
    assert metrics.best_rows([far, other]).tolist() == [True, True]
    diverged = np.full(len(far), np.nan)
    assert metrics.best_rows([diverged, far]).tolist() == [False, True]
    assert metrics.best_rows([diverged, diverged]).tolist() == [False, False]


def test_a_model_that_diverged_has_no_figure():
    diverged = metrics.Predictions.of(np.array([[1.0, 0.0], [np.nan, 0.0]]), np.array([0, 1]))
    assert not diverged.confusion.any()
    for before, after in ((diverged.hits, [1, 1]), ([0, 0], diverged.hits)):
        assert np.isnan(metrics.paired_difference(before, after)).all()
    assert str(metrics.paired_difference(diverged.hits, [1, 1])) == "+nan ± nan points"


def test_the_log_likelihood_of_an_answer_that_was_ruled_out():
    found = metrics.log_likelihood(np.array([[0.0, 1000.0], [0.0, np.inf]]), np.array([0, 0]))
    assert found[0] == -1000
    assert np.isnan(found[1])


def test_precision_and_recall_of_each_class_by_hand():
    made = metrics.Predictions.of(np.eye(3)[[0, 0, 1, 0]], np.array([0, 1, 1, 0]))
    np.testing.assert_allclose(made.by_class, [100, 50, np.nan])
    np.testing.assert_allclose(made.precision, [100 * 2 / 3, 100, np.nan])

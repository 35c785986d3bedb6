"""Post-hoc and second-stage methods: values worked by hand, and what each may and may not change."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from elsewhere import no_float64
from gaussians import Gaussians
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from ltr import losses, methods, models, stack
from ltr.methods import BALANCERS
from ltr.recipes import Recipe
from ltr.regularizers import row_norms

COUNTS = np.array([400, 60, 8])
norms = st.lists(st.floats(0, 10, allow_subnormal=False), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def gaussians() -> Gaussians:
    return Gaussians()


@pytest.fixture
def first() -> torch.nn.Linear:
    """A classifier of three classes whose rows have norms 5, 1 and 0.5."""
    return models.linear(torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.3, -0.4]]), torch.tensor([0.5, 0.0, -0.5]))


def fit(name: str, data, first: torch.nn.Linear, recipe: Recipe | None = None, **values) -> torch.nn.Linear:
    return BALANCERS[name].fit(first, data, recipe or Recipe(3, lr=0.05, loss="cb-ce"), [values])[0]


def test_logit_adjustment_subtracts_the_logarithm_of_the_prior():
    adjusted = methods.adjust_logits(torch.tensor([1.0, 1.0]), np.array([75, 25]), tau=2.0)
    expected = [1 - 2 * np.log(0.75), 1 - 2 * np.log(0.25)]
    np.testing.assert_allclose(adjusted, expected, rtol=1e-6)


def test_logit_adjustment_moves_only_biases(first, gaussians):
    data = SimpleNamespace(class_counts=COUNTS)
    adjusted = fit("logit adjustment", data, first, tau=1.0)
    assert torch.equal(adjusted.weight, first.weight)
    rise = (adjusted.bias - first.bias).detach().numpy()
    np.testing.assert_allclose(rise, -np.log(COUNTS / COUNTS.sum()), rtol=1e-6)


def test_untouched_settings_leave_the_first_classifier_as_it_is(first):
    data = SimpleNamespace(class_counts=COUNTS)
    for name, values in {"first stage alone": {}, "tau-norm": {"tau": 0.0}, "logit adjustment": {"tau": 0.0}}.items():
        torch.testing.assert_close(fit(name, data, first, **values).state_dict(), first.state_dict())


def test_l2norm_gives_unit_rows(first):
    same = fit("L2norm", None, first, **BALANCERS["L2norm"].candidates[0])
    torch.testing.assert_close(row_norms(same.weight), torch.ones(3))


def test_class_means_by_hand():
    features, labels = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]]), torch.tensor([0, 0, 1])
    assert methods.class_means(features, labels, 2).tolist() == [[2.0, 0.0], [0.0, 5.0]]


def test_class_means_of_half_precision_do_not_overflow():
    # 3,000 images of 60: their sum is beyond float16
    means = methods.class_means(torch.full((3_000, 2), 60.0).half(), torch.zeros(3_000, dtype=torch.long), 1)
    assert means.tolist() == [[60, 60]]


def test_the_nearest_mean_by_hand():
    # (2, 1) is nearer to (1, 0) than to (9, 9), but at a smaller angle to (9, 9)
    means, point = torch.tensor([[1.0, 0.0], [9.0, 9.0]]), torch.tensor([[2.0, 1.0]])
    assert methods.nearest_mean(means, "Euclidean")(point).argmax() == 0
    assert methods.nearest_mean(means, "cosine")(point).argmax() == 1


def test_the_nearest_mean_is_the_nearest_for_any_points():
    generator = torch.Generator().manual_seed(3)
    means, points = torch.randn(9, 5, generator=generator), torch.randn(200, 5, generator=generator)
    nearest = torch.cdist(points, means).argmin(1)
    assert torch.equal(methods.nearest_mean(means, "Euclidean")(points).argmax(1), nearest)
    cosines = F.normalize(points) @ F.normalize(means).T
    assert torch.equal(methods.nearest_mean(means, "cosine")(points).argmax(1), cosines.argmax(1))


@given(st.integers(0, 2**31), st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_class_balanced_sampling_draws_each_class_equally_often(seed, counts):
    labels = torch.as_tensor(np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts)))
    chosen = methods.balanced_positions(labels, len(counts), torch.Generator().manual_seed(seed))
    drawn = labels[chosen].bincount(minlength=len(counts))
    assert len(chosen) == len(labels)
    assert drawn.max() - drawn.min() <= 1


def test_class_balanced_sampling_reaches_every_image_evenly():
    labels = torch.tensor([0] * 40 + [1] * 10)
    generator = torch.Generator().manual_seed(0)
    drawn = sum(methods.balanced_positions(labels, 2, generator).bincount(minlength=50) for _ in range(400))
    expected = torch.tensor([25 / 40] * 40 + [25 / 10] * 10) * 400
    assert ((drawn - expected).abs() < 5 * expected.sqrt()).all()


def test_sampling_and_training_leave_the_global_random_state_alone(gaussians, random_state_untouched):
    for name in ("cRT", "LWS"):
        fit(name, gaussians, models.copy_classifier(gaussians.model), lr=1.0)


def test_smoothed_labels_equal_pytorchs_for_every_setting():
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(20, 3, 7, generator=generator), torch.randint(7, (20,), generator=generator)
    deltas = torch.tensor([0.0, 0.5, 0.98])
    logits.requires_grad_()
    sum(F.cross_entropy(logits[:, i], labels, label_smoothing=float(d)) for i, d in enumerate(deltas)).backward()
    torch.testing.assert_close(methods.smoothed_gradient(logits.detach(), labels, deltas), logits.grad)


def test_over_smoothing_leaves_the_true_class_little_more_than_its_share():
    # delta 0.98, C = 100: probabilities are pulled to 0.02 + 0.0098 on the label and to 0.0098 off it
    logits = torch.randn(1, 1, 100, generator=torch.Generator().manual_seed(4))
    gradient = methods.smoothed_gradient(logits, torch.tensor([4]), torch.tensor([0.98]))
    expected = torch.full((1, 1, 100), 0.0098).index_fill_(2, torch.tensor(4), 0.0298)
    torch.testing.assert_close(logits.softmax(2) - gradient, expected)


def test_balanced_softmax_by_hand():
    # equal logits: the loss is -log n_y / n
    loss = losses.balanced_softmax(torch.zeros(1, 2), torch.tensor([1]), np.array([90, 10]))
    assert float(loss) == pytest.approx(-np.log(0.1))
    logits, labels = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3] * 2)
    plain = F.cross_entropy(logits, labels)
    torch.testing.assert_close(losses.balanced_softmax(logits, labels, np.full(4, 9)), plain)


def brute_force_isotonic(values: list[float]) -> np.ndarray:
    """The best of all ways to cut a sequence into blocks of their means, if these rise."""
    best, distance = None, np.inf
    for cuts in product((False, True), repeat=len(values) - 1):
        blocks = np.split(np.array(values), [i + 1 for i, cut in enumerate(cuts) if cut])
        fitted = np.concatenate([np.full(len(block), block.mean()) for block in blocks])
        if (np.diff(fitted) >= 0).all() and ((fitted - values) ** 2).sum() < distance:
            best, distance = fitted, ((fitted - values) ** 2).sum()
    return best


@given(st.lists(st.integers(0, 9), min_size=1, max_size=7))
def test_isotonic_regression_equals_brute_force(values):
    np.testing.assert_allclose(methods.isotonic(values), brute_force_isotonic(values), atol=1e-9)


@given(norms)
def test_isotonic_regression_is_ordered_idempotent_and_keeps_the_sum(values):
    once = methods.isotonic(values)
    assert (np.diff(once) >= 0).all()
    assert methods.isotonic(once) == once
    assert sum(once) == pytest.approx(sum(values))
    assert methods.isotonic(sorted(values)) == sorted(values)


@given(st.integers(0, 2**31), st.integers(1, 12))
def test_the_isotonic_projection_orders_norms_by_rarity_and_keeps_directions(seed, num_classes):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(num_classes, 4, generator=generator)
    counts = torch.randint(1, 20, (num_classes,), generator=generator).numpy()
    projected = methods.isotonic_project(weight, counts)
    rarer = row_norms(projected)[np.argsort(-counts, kind="stable").copy()]
    assert (rarer.diff() >= -1e-6).all()
    torch.testing.assert_close(F.normalize(projected), F.normalize(weight))
    torch.testing.assert_close(methods.isotonic_project(projected, counts), projected)


def test_the_isotonic_projection_by_hand(first):
    # norms 5, 1, 0.5 from common to rare must not fall: all become their mean
    projected = methods.isotonic_project(first.weight.detach(), COUNTS)
    torch.testing.assert_close(row_norms(projected), torch.full((3,), 6.5 / 3))
    ordered = methods.isotonic_project(first.weight.detach(), COUNTS[::-1])
    assert torch.equal(ordered, first.weight.detach())
    assert not methods.isotonic_project(torch.zeros(3, 2), COUNTS).any()


def test_training_with_isotonic_norms_ends_with_them(gaussians):
    trained = fit("isotonic norms (SAMN)", gaussians, gaussians.naive(), lr=1.0)
    assert (row_norms(trained.weight.detach()).diff() >= -1e-5).all()


@pytest.mark.parametrize("num_classes", [2, 3, 100])
def test_the_frame_is_equiangular(num_classes):
    cosines = methods.simplex_etf(num_classes) @ methods.simplex_etf(num_classes).T
    expected = torch.full((num_classes, num_classes), -1 / (num_classes - 1)).fill_diagonal_(1.0)
    torch.testing.assert_close(cosines, expected)


def test_multiplicative_adjustment_by_hand():
    adjusted = methods.multiply_logits(torch.tensor([[2.0, 2.0, -1.0]]), np.array([100, 25, 1]), gamma=0.5)
    assert adjusted.tolist() == [[2.0, 4.0, -10.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_multiplicative_adjustment_holds_more_images_than_float16_and_leaves_logits_with_gamma_zero(dtype):
    values = torch.tensor([1.0, -2.0, 3.0], dtype=dtype)
    adjusted = methods.multiply_logits(values, np.array([160_000, 40_000, 10_000]), gamma=0.5)
    assert adjusted.dtype == torch.float32
    assert adjusted.tolist() == [1, -4, 12]
    assert methods.multiply_logits(values, np.array([160_000, 0, 3]), gamma=0.0).tolist() == [1, -2, 3]


def test_the_mapped_frame_starts_at_the_first_classifier(gaussians):
    first = gaussians.naive()
    start = fit("ETF + multiplicative LA", gaussians, first, Recipe(0), gamma=0.0, lr=1.0)
    given_, framed = (torch.as_tensor(gaussians.test_logits(one, 0)).softmax(1) for one in (first, start))
    torch.testing.assert_close(framed, given_)
    torch.testing.assert_close(start.weight.sum(0), torch.zeros(10), atol=1e-5, rtol=0)


def test_lws_keeps_directions_and_biases(gaussians):
    first = gaussians.naive()
    scaled = fit("LWS", gaussians, first, lr=1.0)
    ratio = scaled.weight / first.weight
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    assert ratio.std() > 0
    assert torch.equal(scaled.bias, first.bias)


def test_crt_forgets_the_first_classifier(gaussians):
    others = [models.linear(torch.full((12, 10), value), torch.zeros(12)) for value in (0.0, 5.0)]
    one, two = (fit("cRT", gaussians, other, lr=1.0) for other in others)
    assert torch.equal(one.weight, two.weight)
    other_seed = fit("cRT", gaussians, others[0], Recipe(3, lr=0.05, seed=1), lr=1.0)
    assert not torch.equal(one.weight, other_seed.weight)
    start = fit("cRT", gaussians, others[0], Recipe(0), lr=1.0)
    assert 0.5 / 10**0.5 < start.weight.abs().max() <= 1 / 10**0.5


def test_class_balanced_training_equals_the_grids(gaussians):
    first, recipe = gaussians.naive(), Recipe(3, lr=0.05, loss="cb-ce")
    norm = float(row_norms(first.weight.detach()).mean())
    choices = pd.DataFrame(
        {"loss": "cb-ce", "lr": [0.05, 0.5], "weight_decay": [0.0, 0.02], "max_norm": [np.nan, norm]}
    )
    frozen = SimpleNamespace(
        class_counts=gaussians.class_counts,
        train_batches=lambda size, seed, epoch: zip(
            gaussians.x.split(size), torch.as_tensor(gaussians.labels).split(size), strict=True
        ),
    )
    expected = stack.Grid(first, frozen, recipe, choices.assign(max_norm_every="step")).fit()
    candidates = [{"lr": 1.0}, {"lr": 10.0, "weight_decay": 0.02, "radius": 1.0}]
    for i, trained in enumerate(BALANCERS["CB + WD + MaxNorm"].fit(first, gaussians, recipe, candidates)):
        torch.testing.assert_close(trained.weight, expected.classifier(i).weight, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(trained.bias, expected.classifier(i).bias, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", BALANCERS)
def test_a_setting_gives_the_same_classifier_alone_and_beside_others(name, gaussians):
    method, first, recipe = BALANCERS[name], gaussians.naive(), Recipe(2, lr=0.02, loss="cb-ce")
    together = method.fit(first, gaussians, recipe, method.candidates)
    assert len(together) == len(method.candidates) > 0
    for i in {0, len(together) - 1}:
        (alone,) = method.fit(first, gaussians, recipe, [method.candidates[i]])
        torch.testing.assert_close(together[i].weight, alone.weight, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(together[i].bias, alone.bias, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", BALANCERS)
def test_no_method_changes_the_classifier_it_starts_from(name, gaussians):
    first = gaussians.naive()
    before = [values.clone() for values in first.parameters()]
    BALANCERS[name].fit(first, gaussians, Recipe(1, lr=0.05, loss="cb-ce"), BALANCERS[name].candidates)
    assert all(torch.equal(old, new) for old, new in zip(before, first.parameters(), strict=True))


@pytest.mark.parametrize("name", BALANCERS)
def test_the_tuned_method_is_no_worse_on_rare_classes_than_the_first_stage(name, gaussians):
    validation, method, first = Gaussians(seed=1), BALANCERS[name], gaussians.naive()
    trained = method.fit(first, gaussians, Recipe(10, lr=0.05, loss="cb-ce"), method.candidates)
    best = max(trained, key=lambda classifier: validation.accuracy(classifier)["all"])
    untouched, tuned = gaussians.accuracy(first), gaussians.accuracy(best)
    assert tuned["few"] >= untouched["few"]
    assert tuned["all"] > 2 * 100 / 12


def test_learning_methods_and_adjustments_rescue_rare_classes(gaussians):
    first, recipe = gaussians.naive(), Recipe(10, lr=0.05, loss="cb-ce")
    few = gaussians.accuracy(first)["few"]
    for name, values in {
        "logit adjustment": {"tau": 1.0},
        "cRT": {"lr": 1.0},
        "LWS": {"lr": 1.0},
        "CB": {"lr": 1.0},
        "Balanced Softmax": {"lr": 1.0},
    }.items():
        assert gaussians.accuracy(fit(name, gaussians, first, recipe, **values))["few"] > few + 10


def test_the_class_balanced_methods_take_the_recipes_loss(gaussians):
    first = gaussians.naive()
    one, two = (fit("CB", gaussians, first, Recipe(1, lr=0.05, loss=loss), lr=1.0) for loss in ("cb-ce", "ce"))
    assert not torch.equal(one.weight, two.weight)


@pytest.mark.parametrize("name", BALANCERS)
def test_no_method_needs_float64_on_its_device(name):
    method, recipe = BALANCERS[name], Recipe(2, batch_size=16, lr=0.05, loss="cb-ce")
    candidates, generator = method.candidates[-2:], torch.Generator().manual_seed(12)
    labels, features = torch.tensor([0] * 20 + [1] * 9 + [2] * 3), torch.randn(32, 6, generator=generator)
    weight, counts = torch.randn(3, 6, generator=generator), np.array([20, 9, 3])
    here = SimpleNamespace(class_counts=counts, draw=lambda *_: (features, labels))
    expected = method.fit(models.linear(weight, torch.zeros(3)), here, recipe, candidates)
    with no_float64() as device:
        there = SimpleNamespace(class_counts=counts, draw=lambda *_: (features.to(device), labels.to(device)))
        first = models.linear(weight.to(device), torch.zeros(3).to(device))
        for one, other in zip(method.fit(first, there, recipe, candidates), expected, strict=True):
            assert one.weight.device == device
            assert torch.equal(one.weight.detach().cpu(), other.weight)
            assert torch.equal(one.bias.detach().cpu(), other.bias)


def test_class_balanced_sampling_needs_every_class():
    with pytest.raises(ValueError, match="^labels: must have each of 3 classes, got none of 1$"):
        methods.balanced_positions(torch.tensor([0, 0, 2]), 3, torch.Generator())

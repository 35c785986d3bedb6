"""Each loss against numbers worked by hand, and the released form against torch's own binary cross-entropy."""

import pickle
from math import exp, log

import numpy as np
import pandas as pd
import pytest
import torch
from elsewhere import no_float64
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from ltr import losses
from ltr.methods import multiply_logits

# logits whose softmax is known: (1/2, 1/4, 1/4) with label 0 and (1/4, 1/4, 1/2) with label 1
LOGITS = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]], dtype=torch.float64).log() + 3
LABELS = torch.tensor([0, 1])
WEIGHTS = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)

counts_of_classes = st.lists(st.integers(1, 10_000), min_size=1, max_size=20)


def test_class_balanced_weights_by_hand():
    # beta 1/2: (1/2) / (1 - 1/2) = 1 and (1/2) / (1 - 1/4) = 2/3; times 2 / (5/3) to sum to 2
    assert losses.class_balanced_weights(torch.tensor([1, 2]), beta=0.5).tolist() == pytest.approx([1.2, 0.8])


def test_class_balanced_weights_beta_zero_is_no_weighting():
    assert losses.class_balanced_weights(torch.tensor([500, 1, 37]), beta=0).tolist() == [1, 1, 1]


def test_class_balanced_weights_tend_to_inverse_counts():
    weights = losses.class_balanced_weights(torch.tensor([500, 50, 1]), beta=1 - 1e-9)
    assert (weights / weights[2]).tolist() == pytest.approx([1 / 500, 1 / 50, 1], rel=1e-5)


@given(counts_of_classes, st.floats(0, 0.99999))
def test_class_balanced_weights_sum_to_classes_and_favour_the_rare(counts, beta):
    weights = losses.class_balanced_weights(torch.tensor(sorted(counts)), beta)
    assert float(weights.sum()) == pytest.approx(len(counts), rel=1e-5)
    assert (weights > 0).all()
    assert (weights.diff() <= 1e-6).all()


@pytest.mark.parametrize("beta", [-0.1, 1, 1.5, float("nan")])
def test_class_balanced_weights_refuse_beta(beta):
    with pytest.raises(ValueError, match="^beta: "):
        losses.class_balanced_weights(torch.tensor([5, 3]), beta)


def test_class_balanced_weights_refuse_an_empty_class():
    with pytest.raises(ValueError, match="^counts: "):
        losses.class_balanced_weights(torch.tensor([5, 0]))


def test_cross_entropy_by_hand():
    # -(ln 1/2 + ln 1/4) / 2 = 1.5 ln 2
    assert float(losses.cross_entropy(LOGITS, LABELS)) == pytest.approx(1.5 * log(2))


@pytest.mark.parametrize("name", ["cb-ce", "cb-bce", "cb-focal"])
def test_counts_of_other_classes_are_refused(name):
    loss = losses.build_loss(name, torch.tensor([9, 5, 2]))
    with pytest.raises(ValueError, match=r"^counts: must be one for each of the 4 logits, got 3$"):
        loss(torch.zeros(2, 4), torch.tensor([0, 1]))


def test_balanced_cross_entropy_divides_by_the_batch_not_by_the_weights():
    # (1 ln 2 + 2 ln 4) / 2 = 2.5 ln 2; a mean over the weights would give 5/3 ln 2
    assert float(losses.balanced_cross_entropy(LOGITS, LABELS, WEIGHTS)) == pytest.approx(2.5 * log(2))


def test_balanced_bce_on_softmax_by_hand():
    # row 0: 1 * (ln 2 + 2 ln 4/3); row 1: 2 * (ln 4 + ln 4/3 + ln 2); mean over 2 * 3 entries
    expected = (7 * log(2) + 4 * log(4 / 3)) / 6
    assert float(losses.balanced_bce_on_softmax(LOGITS, LABELS, WEIGHTS)) == pytest.approx(expected)


def test_balanced_focal_by_hand():
    # sigmoids 3/4, 1/2, 1/4 and label 0: p_t = 3/4, 1/2, 3/4; label 0 weighs 3; gamma 2
    logits = torch.tensor([[log(3), 0, -log(3)]], dtype=torch.float64)
    expected = 3 * (log(4 / 3) / 16 + log(2) / 4 + log(4 / 3) / 16)
    loss = losses.balanced_focal(logits, torch.tensor([0]), torch.tensor([3.0, 1, 1]), gamma=2)
    assert float(loss) == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gamma", [0.25, 0.5, 0.75, 2.0])
def test_balanced_focal_of_confident_logits_by_hand(gamma, dtype):
    # of all three classes 1 - p = e^-20, and -log p the same: the loss is 3 e^-20 (1 + gamma), its slope (1 + gamma)
    # times a class's share. In float32 1 - p rounds to 0 from 17.5 on.
    logits = torch.tensor([[20.0, -20.0, -20.0]], dtype=dtype, requires_grad=True)
    loss = losses.balanced_focal(logits, torch.tensor([0]), torch.ones(3), gamma)
    loss.backward()
    share = exp(-20 * (1 + gamma))
    assert loss.item() == pytest.approx(3 * share, rel=1e-5, abs=0)
    if dtype != torch.float16:  # which rounds such a slope to 0
        expected = [-(1 + gamma) * share, (1 + gamma) * share, (1 + gamma) * share]
        assert logits.grad.tolist()[0] == pytest.approx(expected, rel=1e-5 if dtype.itemsize > 2 else 1e-2, abs=0)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("margin", [6.25, 17.5, 120.0, 1000.0])
def test_balanced_focal_has_finite_gradients_for_every_gamma(gamma, margin):
    logits = torch.tensor([[margin, -margin, -margin]]).repeat(3, 1).requires_grad_()
    losses.balanced_focal(logits, torch.tensor([0, 1, 2]), torch.ones(3), gamma).backward()
    assert logits.grad.isfinite().all()


@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.3, 0.5, 1.0, 2.0]))
def test_balanced_focal_is_its_formula(seed, gamma):
    logits, labels, weights = random_batch(seed)
    p = torch.where(F.one_hot(labels, logits.shape[1]) > 0, logits, -logits).sigmoid()
    ours = losses.balanced_focal(logits, labels, weights, gamma)
    formula = -(weights[labels] * ((1 - p) ** gamma * p.log()).sum(1)).mean()
    torch.testing.assert_close(ours, formula)
    (our_gradient,), (expected,) = (torch.autograd.grad(loss, logits) for loss in (ours, formula))
    torch.testing.assert_close(our_gradient, expected)


@given(st.integers(0, 2**32), st.floats(0.1, 40))
def test_balanced_focal_with_gamma_one_keeps_the_bits_of_earlier_runs(seed, scale):
    logits, labels, weights = (values.detach() for values in random_batch(seed, scale))
    logits, weights = logits.float().requires_grad_(), weights.float()
    log_p = F.logsigmoid((2 * F.one_hot(labels, logits.shape[1]).float() - 1) * logits)
    earlier = (weights[labels] * -((1 - log_p.exp()) ** 1.0 * log_p).sum(1)).mean()
    ours = losses.balanced_focal(logits, labels, weights)
    assert torch.equal(ours, earlier)
    (our_gradient,), (expected,) = (torch.autograd.grad(loss, logits) for loss in (ours, earlier))
    assert torch.equal(our_gradient, expected)


def random_batch(seed: int, scale: float = 4.0):
    """Logits [B, C] that need a gradient, labels [B] and weights [C], all float64."""
    generator = torch.Generator().manual_seed(seed)
    batch, classes = (int(n) for n in torch.randint(2, 9, (2,), generator=generator))
    logits = scale * torch.randn(batch, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (batch,), generator=generator)
    weights = torch.rand(classes, generator=generator, dtype=torch.float64) + 0.1
    return logits.requires_grad_(), labels, weights


def released_form(logits, labels, weights):
    """The released code's loss in torch's own words."""
    targets = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    per_entry = weights[labels][:, None].expand_as(logits)
    return F.binary_cross_entropy(logits.softmax(1), targets, weight=per_entry)


@given(st.integers(0, 2**32))
def test_balanced_bce_on_softmax_is_the_released_form(seed):
    logits, labels, weights = random_batch(seed)
    ours, theirs = losses.balanced_bce_on_softmax(logits, labels, weights), released_form(logits, labels, weights)
    torch.testing.assert_close(ours, theirs)
    (our_gradient,), (their_gradient,) = (torch.autograd.grad(loss, logits) for loss in (ours, theirs))
    torch.testing.assert_close(our_gradient, their_gradient)


@given(st.integers(0, 2**32))
def test_balanced_focal_with_gamma_zero_is_binary_cross_entropy(seed):
    logits, labels, weights = random_batch(seed)
    targets = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    by_entry = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    expected = (weights[labels] * by_entry.sum(1)).mean()
    torch.testing.assert_close(losses.balanced_focal(logits, labels, weights, gamma=0), expected)


@given(st.integers(0, 2**32))
def test_vector_scaling_scales_and_shifts_by_class_counts(seed):
    logits, labels, _ = random_batch(seed)
    counts = torch.linspace(500, 5, logits.shape[1], dtype=logits.dtype)
    plain = losses.vector_scaling(logits, labels, counts, gamma=0)
    torch.testing.assert_close(plain, losses.balanced_softmax(logits, labels, counts))
    by_hand = (counts / 500) ** 0.3 * logits + (counts / counts.sum()).log()
    expected = F.cross_entropy(by_hand, labels)
    torch.testing.assert_close(losses.vector_scaling(logits, labels, counts), expected)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_balanced_bce_on_softmax_is_the_released_form_where_softmax_saturates(label):
    logits, labels, weights = torch.tensor([[200.0, 0.0, -200.0]]), torch.tensor([label]), WEIGHTS.float()
    ours, theirs = losses.balanced_bce_on_softmax(logits, labels, weights), released_form(logits, labels, weights)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("margin", [10.0, 17.0, 30.0, 200.0])  # from 17 on, float32 rounds the probability to 1
@pytest.mark.parametrize("name", losses.LOSSES)
def test_extreme_logits_give_finite_losses_and_gradients(name, margin):
    logits = torch.tensor([[margin, 0.0, -margin]]).repeat(3, 1).requires_grad_()
    loss = losses.build_loss(name, torch.tensor([500, 50, 5]))(logits, torch.tensor([0, 1, 2]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_build_loss_binds_the_weights_of_the_counts():
    counts = torch.tensor([500, 50, 5])
    weights = losses.class_balanced_weights(counts, 0.99)
    logits = LOGITS.float()
    expected = {
        "ce": losses.cross_entropy(logits, LABELS),
        "cb-ce": losses.balanced_cross_entropy(logits, LABELS, weights),
        "cb-bce": losses.balanced_bce_on_softmax(logits, LABELS, weights),
        "cb-focal": losses.balanced_focal(logits, LABELS, weights),
        "balanced-softmax": losses.balanced_softmax(logits, LABELS, counts),
        "vs": losses.vector_scaling(logits, LABELS, counts),
        "ldam-drw": losses.ldam(logits, LABELS, torch.ones(3), 30 * losses.ldam_margins(counts)),
        "ce-drw": losses.cross_entropy(logits, LABELS),
        "smooth": losses.smoothed_cross_entropy(logits, LABELS, torch.full((3,), 0.1)),
        "label-aware": losses.smoothed_cross_entropy(logits, LABELS, losses.label_aware_smoothing(counts)),
    }
    assert set(expected) == set(losses.LOSSES)
    for name, value in expected.items():
        assert losses.build_loss(name, counts, beta=0.99)(logits, LABELS) == value


@pytest.mark.parametrize(
    ("name", "nearest"), [("cb", "cb-ce"), ("LDAM", "ldam-drw"), ("balanced_softmax", "balanced-softmax")]
)
def test_build_loss_refuses_an_unknown_name_and_gives_the_nearest(name, nearest):
    with pytest.raises(KeyError, match=f"^.loss: {name} .*did you mean {nearest}[?]"):
        losses.build_loss(name, torch.tensor([5, 3]))


@pytest.mark.parametrize("name", losses.LOSSES)
def test_losses_can_be_pickled(name):
    loss = losses.build_loss(name, COUNTS)
    again = pickle.loads(pickle.dumps(loss))
    logits, labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(5)), torch.arange(6) % 3
    assert torch.equal(again(logits, labels), loss(logits, labels))
    if isinstance(loss, losses.Deferred):
        for each in (loss, again):
            each.begin_epoch(0.9)
        assert torch.equal(again(logits, labels), loss(logits, labels))


MANY = torch.tensor([70_000, *range(8_141, 0, -1)])  # 8,142 classes, more images than float16 can count


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", losses.LOSSES)
def test_half_precision_logits_give_the_loss_of_the_same_logits_in_float32(name, dtype):
    logits = (4 * torch.randn(5, len(MANY), generator=torch.Generator().manual_seed(6))).to(dtype).requires_grad_()
    single, labels = logits.detach().float().requires_grad_(), torch.tensor([0, 1, 8_141, 50, 4_000])
    loss = losses.build_loss(name, MANY)
    half, full = loss(logits, labels), loss(single, labels)
    half.backward()
    full.backward()
    assert half.dtype == torch.float32
    assert half.isfinite()
    assert torch.equal(half, full)
    assert torch.equal(logits.grad, single.grad.to(dtype))


def test_many_images_in_half_precision_give_a_mean():
    # 70,000 images, 1 nat each: their sum is beyond float16
    logits = torch.tensor([[0.0, log(exp(1) - 1)]]).repeat(70_000, 1).half()
    assert float(losses.cross_entropy(logits, torch.zeros(70_000, dtype=torch.long))) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_adjusted_logits_by_hand_of_more_images_than_float16_can_count(dtype):
    adjusted = losses.adjust_logits(torch.tensor([1.0, 2.0], dtype=dtype), torch.tensor([90_000, 10_000]), 2.0)
    assert adjusted.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert adjusted.tolist() == pytest.approx([1 - 2 * log(0.9), 2 - 2 * log(0.1)])


def test_tau_zero_leaves_the_logits_of_a_class_without_images_too():
    logits = torch.tensor([[1.0, -2.0, 3.0]])
    assert torch.equal(losses.adjust_logits(logits, torch.tensor([5, 0, 3]), 0.0), logits)


def test_counts_by_size_stand_in_the_order_of_their_classes():
    counts, logits, labels = pd.Series([50, 30, 5], index=[2, 0, 1]), torch.zeros(2, 3), torch.tensor([0, 2])
    ordered = torch.tensor([30, 5, 50])
    assert torch.equal(losses.adjust_logits(logits, counts, 1.0), losses.adjust_logits(logits, ordered, 1.0))
    assert losses.balanced_softmax(logits, labels, counts) == losses.balanced_softmax(logits, labels, ordered)
    assert torch.equal(multiply_logits(logits + 1, counts, 0.5), multiply_logits(logits + 1, ordered, 0.5))


@pytest.mark.parametrize("counts", [[81, 16, 1], torch.tensor([81, 16, 1]), torch.tensor([81.0, 16, 1]).double()])
@pytest.mark.parametrize("name", losses.LOSSES)
def test_losses_need_no_float64_on_the_device_of_the_logits(name, counts):
    logits, labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(7)), torch.arange(6) % 3
    here = logits.clone().requires_grad_()
    values = each_epoch(losses.build_loss(name, counts), here, labels)
    with no_float64() as device:
        there = logits.to(device).requires_grad_()
        if isinstance(counts, torch.Tensor) and counts.dtype == torch.int64:
            counts = counts.to(device)
        found = each_epoch(losses.build_loss(name, counts, device), there, labels.to(device))
        assert [float(value) for value in found] == values
        assert torch.equal(there.grad.cpu(), here.grad)


def each_epoch(loss: losses.Loss, logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """The loss early in training, and late, where it may re-weight; gradients go to the logits."""
    values = []
    for done in (0.0, 0.9):
        if isinstance(loss, losses.Deferred):
            loss.begin_epoch(done)
        value = loss(logits, labels)
        value.backward()
        values.append(value.item())
    return values


COUNTS = torch.tensor([81, 16, 1])


def test_ldam_margins_by_hand():
    # the fourth roots are 3, 2 and 1: margins 1/3, 1/2 and 1 of the largest
    torch.testing.assert_close(losses.ldam_margins(COUNTS), torch.tensor([1 / 6, 1 / 4, 1 / 2]))


def test_ldam_takes_the_margin_off_the_labels_logit_alone():
    logits, labels = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 2, 0])
    margins, weights = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 2.0])
    moved = logits.clone()
    for row, label in enumerate(labels):
        moved[row, label] -= margins[label]
    expected = F.cross_entropy(moved, labels, weight=weights)
    torch.testing.assert_close(losses.ldam(logits, labels, weights, margins), expected)
    without = losses.ldam(logits, labels, torch.ones(3), torch.zeros(3))
    torch.testing.assert_close(without, F.cross_entropy(logits, labels))


@pytest.mark.parametrize("name", ["ldam-drw", "ce-drw"])
def test_re_weighting_is_deferred_to_the_last_fifth_in_the_same_tensor(name):
    loss = losses.build_loss(name, COUNTS)
    logits, labels = torch.zeros(3, 3), torch.tensor([0, 1, 2])
    memory, values = loss.now.data_ptr(), []
    for epoch in range(10):
        loss.begin_epoch(epoch / 10)
        values.append(float(loss(logits, labels)))
    assert len(set(values[:8])) == 1
    assert len(set(values[8:])) == 1
    torch.testing.assert_close(loss.now, losses.class_balanced_weights(COUNTS))
    assert loss.now.data_ptr() == memory
    loss.begin_epoch(0.0)
    assert float(loss(logits, labels)) == values[0]
    if name == "ce-drw":
        assert values[0] == pytest.approx(float(F.cross_entropy(logits, labels)))


@pytest.mark.parametrize("name", ["ldam-drw", "ce-drw"])
def test_deferred_weights_give_torchs_weighted_mean(name):
    # a long-tailed batch: its mean weight is far below 1, and a mean over the images would be as much weaker
    counts = torch.tensor([1000, 100, 1])
    generator, labels = torch.Generator().manual_seed(8), torch.tensor([0] * 40 + [1] * 4 + [2])
    logits, weights = torch.randn(45, 3, generator=generator).requires_grad_(), losses.class_balanced_weights(counts)
    assert weights[labels].mean() < 0.15
    loss = losses.build_loss(name, counts)
    margins = 30 * losses.ldam_margins(counts) if name == "ldam-drw" else torch.zeros(3)
    moved = logits - margins[labels][:, None] * F.one_hot(labels, 3)
    for done, weight in ((0.0, None), (0.79, None), (0.8, weights), (1.0, weights)):
        loss.begin_epoch(done)
        ours, official = loss(logits, labels), F.cross_entropy(moved, labels, weight=weight)
        torch.testing.assert_close(ours, official)
        (our_gradient,), (their_gradient,) = (
            torch.autograd.grad(value, logits, retain_graph=True) for value in (ours, official)
        )
        torch.testing.assert_close(our_gradient, their_gradient)


def test_label_aware_smoothing_by_hand():
    smoothing = losses.label_aware_smoothing(torch.tensor([101, 51, 1]))
    torch.testing.assert_close(smoothing, torch.tensor([0.4, 0.1 + 0.3 * 0.5**0.5, 0.1]))
    assert losses.label_aware_smoothing(torch.tensor([7, 7])).tolist() == pytest.approx([0.1, 0.1])


def test_even_smoothing_is_pytorchs_up_to_who_gets_what_is_given_away():
    # PyTorch gives epsilon / C to every class, the label included; here epsilon / (C - 1) goes to the others
    logits, labels = torch.randn(6, 5, generator=torch.Generator().manual_seed(2)), torch.tensor([0, 1, 2, 3, 4, 0])
    ours = losses.smoothed_cross_entropy(logits, labels, torch.full((5,), 0.1))
    torch.testing.assert_close(ours, F.cross_entropy(logits, labels, label_smoothing=0.1 * 5 / 4))


def test_label_aware_smoothing_smooths_each_class_by_its_own_measure():
    logits, smoothing = torch.randn(2, 3, generator=torch.Generator().manual_seed(3)), torch.tensor([0.4, 0.2, 0.0])
    labels = torch.tensor([0, 2])
    soft = torch.tensor([[0.6, 0.2, 0.2], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(losses.smoothed_cross_entropy(logits, labels, smoothing), F.cross_entropy(logits, soft))


@pytest.mark.parametrize("name", losses.OF_NETWORKS)
def test_losses_of_the_first_stage_are_means_over_rows(name):
    logits, labels = torch.randn(12, 3, generator=torch.Generator().manual_seed(4)), torch.arange(12) % 3
    loss = losses.build_loss(name, COUNTS)
    halves = loss(logits[:6], labels[:6]) / 2 + loss(logits[6:], labels[6:]) / 2
    torch.testing.assert_close(loss(logits, labels), halves)


def test_counts_of_a_series_are_in_the_order_of_its_index():
    counted = pd.Series(np.repeat([0, 1, 2], [5, 100, 40])).value_counts()
    assert counted.index.tolist() == [1, 2, 0]
    expected = losses.class_balanced_weights(torch.tensor([5, 100, 40]))
    assert torch.equal(losses.class_balanced_weights(counted), expected)


@pytest.mark.parametrize("counts", [[3, 0], [3, -1], [3, float("nan")], [[3, 3]]])
@pytest.mark.parametrize("name", [name for name in losses.LOSSES if name != "ce"])
def test_counts_that_are_none_are_refused(name, counts):
    with pytest.raises(ValueError, match="^counts: must be"):
        losses.build_loss(name, torch.tensor(counts))


@pytest.mark.parametrize("name", ["ce-drw", "ldam-drw"])
def test_weighted_losses_take_logits_of_double_precision(name):
    loss = losses.build_loss(name, torch.tensor([10.0, 5.0]))
    logits = torch.tensor([[1.0, 2.0], [0.5, -1.0]])
    labels = torch.tensor([0, 1])
    torch.testing.assert_close(loss(logits.double(), labels).float(), loss(logits, labels))


@pytest.mark.parametrize("counts", [[4.0], [4.0, 2.0, 1.0]])
def test_as_many_counts_as_logits(counts):
    for loss in ("balanced-softmax", "vs"):
        with pytest.raises((ValueError, RuntimeError), match=r"counts: must be one for each of 2 logits|must match"):
            losses.build_loss(loss, torch.tensor(counts))(torch.zeros(1, 2), torch.tensor([0]))
    with pytest.raises(ValueError, match=rf"^counts: must be one for each of 2 logits, got \[{len(counts)}\]"):
        losses.adjust_logits(torch.zeros(1, 2), torch.tensor(counts), 1.0)


def test_a_count_that_is_no_number_has_no_weight():
    with pytest.raises(ValueError, match="^counts: every class needs at least one image"):
        losses.class_balanced_weights(torch.tensor([1.0, float("nan")]))

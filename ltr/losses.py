"""Losses of both stages: each takes logits [B, C] and labels [B] and gives a scalar.

Half-precision logits are taken to float32 first, since sums over many classes or images would overflow.

Two class-balanced forms go by one name: the paper re-weights the softmax cross-entropy, its released
code takes the binary cross-entropy of the softmax probabilities. Both are here, beside the focal form.
"""

import difflib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]
BETA = 0.9999  # of the released code


class Mixed(NamedTuple):
    """Labels of mixed images: `share` [B] of each is of the class `first` [B], the rest of `second` [B]."""

    first: Tensor
    second: Tensor
    share: Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision as float32, wider values as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def by_class(counts: Tensor) -> Tensor:
    """Class counts [C] as a tensor; of a pandas Series in the order of its index: `value_counts` has them by size."""
    return torch.as_tensor(counts.sort_index().to_numpy(copy=True) if hasattr(counts, "sort_index") else counts)


def in_float64(counts: Tensor) -> Tensor:
    """Class counts [C] in float64, on the CPU: Apple's GPU has no such numbers."""
    return by_class(counts).cpu().double()


def class_balanced_weights(counts: Tensor, beta: float = BETA) -> Tensor:
    r"""Weights by the effective number of images, scaled to sum to C.

    .. math:: \alpha_k \propto \frac{1 - \beta}{1 - \beta^{n_k}}

    Args:
        counts: [C], n_k, training images of each class, at least 1.
        beta: in [0, 1); 0 gives equal weights, towards 1 gives 1 / n_k.

    Returns:
        float32 [C], on the CPU.

    Raises:
        ValueError: beta outside [0, 1) or a class without images.

    Source: Cui et al. 2019, equation 2 and section 4.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta: must be at least 0 and below 1, got {beta}")
    counts = in_float64(counts)
    if not (counts >= 1).all():  # NaN is none
        raise ValueError("counts: every class needs at least one image")
    weights = (1 - beta) / (1 - beta**counts)
    return (weights / weights.sum() * len(counts)).float()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax cross-entropy, mean over the batch."""
    return F.cross_entropy(at_least_float32(logits), labels)


def label_weights(weights: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """The weight of each label's class, [B]; raises ValueError where there are not as many weights as logits."""
    if logits.shape[1] != len(weights):
        raise ValueError(f"counts: must be one for each of the {logits.shape[1]} logits, got {len(weights)}")
    return weights[labels]


def balanced_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Softmax cross-entropy times the weight of the label's class, mean over the batch.

    The mean divides by B, not by the sum of the weights: a batch of rare classes weighs more than
    one of common classes (the paper's equation 3 with Cui et al.'s weights).
    """
    losses = F.cross_entropy(at_least_float32(logits), labels, reduction="none")
    return (label_weights(weights, logits, labels) * losses).mean()


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    r"""Softmax cross-entropy, its mean weighted by the label's class.

    .. math:: -\frac{\sum_i \alpha_{y_i} \log p_{y_i}(x_i)}{\sum_i \alpha_{y_i}}

    As `torch.nn.CrossEntropyLoss` with `weight`, which LDAM's released code takes: what the weights of a batch have in
    common cancels.
    """
    logits = at_least_float32(logits)
    return F.cross_entropy(logits, labels, weights.to(logits.dtype))


def balanced_bce_on_softmax(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy of the softmax probabilities, weighted by the label's class, mean over B x C.

    The released code's form. Its mean over all C classes makes its gradient about C times smaller
    than cross-entropy's, which is why a weight decay of 0.1 goes with it.
    """
    log_p = F.log_softmax(at_least_float32(logits), dim=1)
    p = log_p.exp()
    certain = p >= 1  # in float32 from a margin of about 17 on: log(1 - p) would have no gradient but NaN
    log_not_p = torch.log1p(-p.masked_fill(certain, 0)).masked_fill(certain, -100)
    on_label = log_p.gather(1, labels[:, None]).clamp_min(-100).squeeze(1)  # clamped as binary_cross_entropy does
    off_label = log_not_p.scatter(1, labels[:, None], 0).sum(1)
    return -(label_weights(weights, logits, labels) * (on_label + off_label)).mean() / logits.shape[1]


def balanced_focal(logits: Tensor, labels: Tensor, weights: Tensor, gamma: float = 1.0) -> Tensor:
    r"""Sigmoid focal loss, weighted by the label's class, summed over classes, mean over the batch.

    .. math:: -\alpha_y \sum_c (1 - p^t_c)^\gamma \log p^t_c, \quad p^t_c = \sigma(\pm z_c)

    Source: Cui et al. 2019, equation 8 (focal loss: Lin et al. 2017).
    """
    logits = at_least_float32(logits)
    signs = 2 * F.one_hot(labels, logits.shape[1]).to(logits.dtype) - 1  # +1 on the label, -1 elsewhere
    log_p = F.logsigmoid(signs * logits)
    # 1 - p rounds to 0 where p is near 1, and the slope of 0 ** gamma is infinite for a gamma below 1.
    modulation = 1 - log_p.exp() if gamma == 1 else (gamma * F.logsigmoid(-signs * logits)).exp()
    return (label_weights(weights, logits, labels) * -(modulation * log_p).sum(1)).mean()


def adjust_logits(logits: Tensor, counts: Tensor, tau: float) -> Tensor:
    r"""Take the training set's class prior out of the logits [..., C]; tau = 0 leaves them.

    .. math:: z_k \leftarrow z_k - \tau \log \pi_k, \quad \pi_k = n_k / \sum_j n_j

    Returns:
        float32 of half-precision logits, which could not hold the counts; otherwise the logits' type. Infinite for a
        class without images, which has no prior.

    Raises:
        ValueError: there are not as many counts as logits.

    Source: Menon et al. 2021, equation 9.
    """
    logits = at_least_float32(logits)
    if tau == 0:
        return logits  # of a class without images too, whose prior has no logarithm
    counts = by_class(counts).to(logits.device, logits.dtype)
    if counts.shape != logits.shape[-1:]:
        raise ValueError(f"counts: must be one for each of {logits.shape[-1]} logits, got {list(counts.shape)}")
    return logits - tau * (counts / counts.sum()).log()


def balanced_softmax(logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    r"""Cross-entropy under a softmax that carries the class counts; the plain logits then answer a balanced test.

    .. math:: -\log \frac{n_y e^{z_y}}{\sum_k n_k e^{z_k}}

    The same as the logit-adjusted loss with tau = 1.

    Source: Ren et al. 2020, theorem 1; Menon et al. 2021, equation 10.
    """
    return F.cross_entropy(adjust_logits(logits, counts, -1.0), labels)


def vector_scaling(logits: Tensor, labels: Tensor, counts: Tensor, gamma: float = 0.3, tau: float = 1.0) -> Tensor:
    r"""Cross-entropy of logits that class counts scale and shift (VS loss); the plain ones then answer a balanced test.

    .. math:: z_k \leftarrow \left(\frac{n_k}{n_{max}}\right)^\gamma z_k + \tau \log \pi_k

    With gamma = 0 and tau = 1 it is `balanced_softmax`.

    Args:
        logits: [B, C].
        labels: [B].
        counts: [C], n_k, training images of each class.
        gamma: how much less a rare class's logit weighs; 0 leaves all alike.
        tau: of the shift, see `adjust_logits`.

    Source: Kini et al. 2021 (VS loss); gamma and tau are what implementations of it have by default.
    """
    counts = by_class(counts).to(logits.device)
    scaled = (counts / counts.max()) ** gamma * at_least_float32(logits)
    return F.cross_entropy(adjust_logits(scaled, counts, -tau), labels)


def ldam_margins(counts: Tensor, largest: float = 0.5) -> Tensor:
    r"""Margins that are larger the rarer the class, the rarest class's being `largest`: [C].

    .. math:: \Delta_k \propto n_k^{-1/4}

    Source: Cao et al. 2019, equation 13.
    """
    margins = in_float64(counts) ** -0.25
    return (largest * margins / margins.max()).float()


def ldam(logits: Tensor, labels: Tensor, weights: Tensor, margins: Tensor) -> Tensor:
    r"""Label-distribution-aware margin loss, its mean weighted by the label's class, see `weighted_cross_entropy`.

    .. math:: -\log \frac{e^{z_y - s \Delta_y}}{e^{z_y - s \Delta_y} + \sum_{k \ne y} e^{z_k}}

    Args:
        logits: [B, C], s times a cosine each: of `models.CosineClassifier`, whose scale s is 30.
        margins: [C], s Delta.

    Source: Cao et al. 2019, section 3.2.
    """
    logits = logits - F.one_hot(labels, logits.shape[1]) * margins[labels][:, None]
    return weighted_cross_entropy(logits, labels, weights)


def label_aware_smoothing(counts: Tensor, head: float = 0.4, tail: float = 0.1) -> Tensor:
    r"""How much of a label each class gives away: more the more images it has, the concave form: [C].

    .. math:: \epsilon_k = \epsilon_{tail} + (\epsilon_{head} - \epsilon_{tail})
        \sin \frac{\pi (n_k - n_{min})}{2 (n_{max} - n_{min})}

    Source: Zhong et al. 2021 (MiSLAS), equations 7 to 9; 0.4 and 0.1 are theirs at imbalance factor 100, and
    what `build_loss` takes at any.
    """
    counts = in_float64(counts)
    place = (counts - counts.min()) / (counts.max() - counts.min()).clamp(min=1)
    return (tail + (head - tail) * torch.sin(torch.pi / 2 * place)).float()


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: Tensor) -> Tensor:
    r"""Cross-entropy with smoothed labels, each class by its own measure, mean over the batch.

    .. math:: -(1 - \epsilon_y) \log p_y - \frac{\epsilon_y}{C - 1} \sum_{k \ne y} \log p_k

    Args:
        smoothing: [C], epsilon.
    """
    log_p = F.log_softmax(at_least_float32(logits), 1)
    on_label = log_p.gather(1, labels[:, None]).squeeze(1)
    given = smoothing[labels]
    return -((1 - given) * on_label + given * (log_p.sum(1) - on_label) / (logits.shape[1] - 1)).mean()


class Deferred:
    """A weighted loss that treats classes alike at first and re-weights them in the last fifth of training (DRW).

    The weights stay in one tensor, so that a captured step sees them change.

    Args:
        loss: of logits, labels and weights [C].
        weights: [C], from then on.
        start: the share of training after which.

    Source: Cao et al. 2019, algorithm 1.
    """

    def __init__(self, loss: Callable[[Tensor, Tensor, Tensor], Tensor], weights: Tensor, start: float = 0.8) -> None:
        self.loss, self.weights, self.start = loss, weights, start
        self.now = torch.ones_like(weights)

    def begin_epoch(self, done: float) -> None:
        """Set the weights of the next epoch, before which this share of training is done."""
        self.now.copy_(self.weights if done >= self.start else torch.ones_like(self.weights))

    def weight_of(self, labels: Tensor) -> Tensor:
        """What a batch with these labels [B] weighs in the mean over several: the sum of its weights."""
        return self.now[labels].sum()

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.loss(logits, labels, self.now)


ADJUSTED = {"balanced-softmax": balanced_softmax, "vs": vector_scaling}
BALANCED = {"cb-ce": balanced_cross_entropy, "cb-bce": balanced_bce_on_softmax, "cb-focal": balanced_focal}
OF_NETWORKS = ("ce", "balanced-softmax", "vs", "ldam-drw", "ce-drw", "smooth", "label-aware")
LOSSES = (*OF_NETWORKS, *BALANCED)


def build_loss(
    name: str, counts: Tensor, device: torch.device | str = "cpu", beta: float = BETA, scale: float = 30.0
) -> Loss:
    """Bind a loss to the class counts of a training set; it can be pickled.

    Args:
        name: one of `LOSSES`.
        counts: [C], training images of each class.
        device: where logits will live.
        beta: see `class_balanced_weights`.
        scale: s of LDAM's logits, see `ldam`.

    Raises:
        KeyError: the name is not known; the message gives the nearest.
        ValueError: a class has no images.
    """
    if name not in LOSSES:
        nearest = difflib.get_close_matches(name.lower(), LOSSES, 1, cutoff=0)[0]
        raise KeyError(f"loss: {name} is none of {', '.join(LOSSES)} (did you mean {nearest}?)")
    if name == "ce":
        return cross_entropy
    counts = in_float64(counts)
    if counts.dim() != 1 or not (counts > 0).all():
        raise ValueError("counts: must be [C], every class with at least one image")
    if name in ADJUSTED:
        return partial(ADJUSTED[name], counts=counts.float().to(device))
    if name in ("smooth", "label-aware"):
        smoothing = label_aware_smoothing(counts) if name == "label-aware" else torch.full((len(counts),), 0.1)
        return partial(smoothed_cross_entropy, smoothing=smoothing.to(device))
    weights = class_balanced_weights(counts, beta).to(device)
    if name == "ce-drw":
        return Deferred(weighted_cross_entropy, weights)
    if name == "ldam-drw":
        return Deferred(partial(ldam, margins=(scale * ldam_margins(counts)).to(device)), weights)
    return partial(BALANCED[name], weights=weights)

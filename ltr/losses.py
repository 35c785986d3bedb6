"""Losses of both stages: each takes logits [B, C] and labels [B] and gives a scalar.

Two class-balanced forms go by one name: the paper re-weights the softmax cross-entropy, its released
code takes the binary cross-entropy of the softmax probabilities. Both are here, beside the focal form.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]
BETA = 0.9999  # of the released code


def class_balanced_weights(counts: Tensor, beta: float = BETA) -> Tensor:
    r"""Weights by the effective number of images, scaled to sum to C.

    .. math:: \alpha_k \propto \frac{1 - \beta}{1 - \beta^{n_k}}

    Args:
        counts: [C], n_k, training images of each class, at least 1.
        beta: in [0, 1); 0 gives equal weights, towards 1 gives 1 / n_k.

    Returns:
        float32 [C].

    Raises:
        ValueError: beta outside [0, 1) or a class without images.

    Source: Cui et al. 2019, equation 2 and section 4.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta: must be at least 0 and below 1, got {beta}")
    counts = torch.as_tensor(counts, dtype=torch.float64)
    if counts.min() < 1:
        raise ValueError("counts: every class needs at least one image")
    weights = (1 - beta) / (1 - beta**counts)
    return (weights / weights.sum() * len(counts)).float()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax cross-entropy, mean over the batch."""
    return F.cross_entropy(logits, labels)


def balanced_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Softmax cross-entropy times the weight of the label's class, mean over the batch.

    The mean divides by B, not by the sum of the weights: a batch of rare classes weighs more than
    one of common classes (the paper's equation 3 with Cui et al.'s weights).
    """
    return (weights[labels] * F.cross_entropy(logits, labels, reduction="none")).mean()


def balanced_bce_on_softmax(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy of the softmax probabilities, weighted by the label's class, mean over B x C.

    The released code's form. Its mean over all C classes makes its gradient about C times smaller
    than cross-entropy's, which is why a weight decay of 0.1 goes with it.
    """
    log_p = F.log_softmax(logits, dim=1)
    p = log_p.exp()
    certain = p >= 1  # in float32 from a margin of about 17 on: log(1 - p) would have no gradient but NaN
    log_not_p = torch.log1p(-p.masked_fill(certain, 0)).masked_fill(certain, -100)
    on_label = log_p.gather(1, labels[:, None]).clamp_min(-100).squeeze(1)  # clamped as binary_cross_entropy does
    off_label = log_not_p.scatter(1, labels[:, None], 0).sum(1)
    return -(weights[labels] * (on_label + off_label)).mean() / logits.shape[1]


def balanced_focal(logits: Tensor, labels: Tensor, weights: Tensor, gamma: float = 1.0) -> Tensor:
    r"""Sigmoid focal loss, weighted by the label's class, summed over classes, mean over the batch.

    .. math:: -\alpha_y \sum_c (1 - p^t_c)^\gamma \log p^t_c, \quad p^t_c = \sigma(\pm z_c)

    Source: Cui et al. 2019, equation 8 (focal loss: Lin et al. 2017).
    """
    signs = 2 * F.one_hot(labels, logits.shape[1]).to(logits.dtype) - 1  # +1 on the label, -1 elsewhere
    log_p = F.logsigmoid(signs * logits)
    focal = -((1 - log_p.exp()) ** gamma * log_p).sum(1)
    return (weights[labels] * focal).mean()


BALANCED = {"cb-ce": balanced_cross_entropy, "cb-bce": balanced_bce_on_softmax, "cb-focal": balanced_focal}
LOSSES = ("ce", *BALANCED)


def build_loss(name: str, counts: Tensor, device: torch.device | str = "cpu", beta: float = BETA) -> Loss:
    """Bind a loss to the class counts of a training set.

    Args:
        name: one of `LOSSES`.
        counts: [C], training images of each class.
        device: where logits will live.
        beta: see `class_balanced_weights`.

    Raises:
        KeyError: the name is not known.
    """
    if name == "ce":
        return cross_entropy
    balanced, weights = BALANCED[name], class_balanced_weights(counts, beta).to(device)
    return lambda logits, labels: balanced(logits, labels, weights)

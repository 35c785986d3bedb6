"""What training did to features and weights: the paper's figures 3 and 6, and why weight decay helps.

Everything gives numbers or a data frame; `plots` draws them. Sums over features are taken in float64 and on the CPU,
since Apple's GPU has no such numbers.
"""

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn


def scatter(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    r"""Scatter within and between classes, every class weighing the same.

    .. math:: S_W = \frac{1}{C} \sum_k \frac{1}{n_k} \sum_{y_i = k} (x_i - \mu_k)(x_i - \mu_k)^\top, \quad
        S_B = \frac{1}{C} \sum_k (\mu_k - \mu)(\mu_k - \mu)^\top

    Args:
        features: [N, D]; labels: [N]. Classes without images are left out.

    Returns:
        float64 [D, D] each, on the CPU.
    """
    features = features.cpu().double()
    labels = labels.cpu().unique(return_inverse=True)[1]
    counts = labels.bincount().double()
    means = torch.zeros(len(counts), features.shape[1], dtype=torch.float64)
    means = means.index_add_(0, labels, features) / counts[:, None]
    centred = (features - means[labels]) / counts[labels, None].sqrt()
    between = means - means.mean(0)
    return centred.T @ centred / len(counts), between.T @ between / len(counts)


def fisher_ratio(features: Tensor, labels: Tensor) -> float:
    r"""Fisher's discriminant ratio of features [N, D] with labels [N]: the larger, the easier to tell classes apart.

    .. math:: \mathrm{tr}(S_W^{+} S_B)

    The pseudo-inverse leaves out directions in which nothing varies. NaN if a feature is not finite.

    Source: Hasegawa and Sato 2024, section 4; Fisher 1936.
    """
    within, between = scatter(features, labels)
    if not within.isfinite().all():
        return float("nan")
    return float((torch.linalg.pinv(within, rtol=1e-6, hermitian=True) @ between).trace())


def mean_cosine(features: Tensor, labels: Tensor) -> dict[str, float]:
    """Mean cosine of two images' features, of one class and of two classes.

    Args:
        features: [N, D], none all zeros; labels: [N], with a class of two images at least.

    Returns:
        keys "within" and "between"; each class, and each pair of classes, weighs the same.

    Source: Hasegawa and Sato 2024, section 4.
    """
    features = features.cpu().double()
    unit = nn.functional.normalize(features, eps=torch.finfo(features.dtype).tiny)  # small ones have directions too
    labels = labels.cpu().unique(return_inverse=True)[1]
    counts = labels.bincount().double()
    sums = torch.zeros(len(counts), unit.shape[1], dtype=torch.float64).index_add_(0, labels, unit)
    products = sums @ sums.T  # of all pairs of two classes, the pairs of an image with itself included
    several = counts > 1
    within = (products.diagonal() - counts)[several] / (counts * (counts - 1))[several]
    pairs = products / (counts[:, None] * counts)
    between = (pairs.sum() - pairs.trace()) / (len(counts) * (len(counts) - 1))
    return {"within": float(within.mean()), "between": float(between)}


def geometry(features: Tensor, labels: Tensor) -> dict[str, float]:
    """Fisher's ratio and both mean cosines of features [N, D] with labels [N]."""
    cosine = mean_cosine(features, labels)
    return {
        "Fisher's ratio": fisher_ratio(features, labels),
        "cosine within classes": cosine["within"],
        "cosine between classes": cosine["between"],
    }


def filter_norms(weights: dict[str, Tensor]) -> pd.DataFrame:
    """Mean and variance of the filters' norms of each convolution (the paper's figure 3).

    Args:
        weights: a state dict, in the order of the layers; shortcuts are left out.

    Returns:
        a row a layer: layer (from 1 on), name, mean, variance.
    """
    rows = []
    for name, weight in weights.items():
        if weight.dim() == 4 and "downsample" not in name:
            norms = torch.linalg.vector_norm(weight.float().flatten(1), dim=1)
            rows.append({"name": name, "mean": float(norms.mean()), "variance": float(norms.var(unbiased=False))})
    return pd.DataFrame(rows).assign(layer=range(1, len(rows) + 1))


def mean_logits(logits: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Mean logit that each class gets from its own images, and from all others.

    Args:
        logits: [N, C]; labels: [N].

    Returns:
        a row a class: class_index, own, others; NaN where there is no such image, or a logit is not finite.
    """
    logits = np.where(np.isfinite(logits).all(), logits, np.nan).astype(np.float64)
    mine = labels[:, None] == np.arange(logits.shape[1])  # [N, C]
    with np.errstate(invalid="ignore"):
        own, others = ((logits * each).sum(0) / each.sum(0) for each in (mine, ~mine))
    return pd.DataFrame({"class_index": np.arange(logits.shape[1]), "own": own, "others": others})

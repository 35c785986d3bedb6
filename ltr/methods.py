"""The second-stage methods, the paper's and those that people compare with, on frozen features.

`METHODS` are the paper's own rows, trained one at a time by `training.fit`. `BALANCERS` are ways from the first stage's
classifier to balanced ones, one for each of their candidates; those that learn train all of them side by side, by
`stack.learn`. n_k are the training images of class k, C the classes, D the features, w_k and b_k a class's weights and
bias, and the logit of class k is z_k = w_k^T f(x) + b_k. From a classifier without bias all but logit adjustment and
the Euclidean NCM lead to one whose biases are zero: its weights alone learn.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltr.data.loader import epoch_generator
from ltr.losses import adjust_logits, at_least_float32, by_class
from ltr.models import linear
from ltr.recipes import Recipe
from ltr.regularizers import Constraint, L2Norm, MaxNorm, max_norm_project, row_norms, tau_normalize
from ltr.stack import Backward, Classifier, Part, as_is, backward_of, copies, cross_entropy_gradient, learn

RHO = 0.01  # of ETF's feature regularisation
Candidate = Mapping[str, Any]  # values of the hyper-parameters that a method is tuned over
Candidates = Sequence[Candidate]


class TrainSet(Protocol):
    """What a method learns from; `second_stage.Features` in their paper mode."""

    class_counts: np.ndarray  # [C]

    def draw(self, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Training features [N, D] and labels [N] of an epoch, in a random order."""


# --- without learning -----------------------------------------------------------------------------------------


def identity(first: nn.Linear, features: TrainSet, recipe: Recipe, candidates: Candidates) -> list[nn.Linear]:
    """The first stage's classifier as it is."""
    return [first for _ in candidates]


def tau_norm(first: nn.Linear, features: TrainSet, recipe: Recipe, candidates: Candidates) -> list[nn.Linear]:
    """Divide each class's weights by their norm to the power `tau`; 1 is L2-normalisation.

    Source: Kang et al. 2020, section 4; see `regularizers.tau_normalize`.
    """
    return [linear(tau_normalize(first.weight.detach(), candidate["tau"]), first.bias) for candidate in candidates]


def logit_adjustment(first: nn.Linear, features: TrainSet, recipe: Recipe, candidates: Candidates) -> list[nn.Linear]:
    """Post-hoc logit adjustment by `tau`: see `adjust_logits`, which here moves the biases."""
    counts, weight = features.class_counts, first.weight.detach()
    bias = weight.new_zeros(len(weight)) if first.bias is None else first.bias.detach()
    return [linear(first.weight, adjust_logits(bias, counts, candidate["tau"])) for candidate in candidates]


def class_means(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean feature of each class: [N, D], [N] -> [C, D], float32 of features in half precision."""
    features = at_least_float32(features)  # whose sums would overflow
    sums = features.new_zeros(num_classes, features.shape[1]).index_add_(0, labels, features)
    return sums / labels.bincount(minlength=num_classes)[:, None]


def nearest_mean(means: Tensor, metric: str) -> nn.Linear:
    r"""The classifier that chooses the nearest of the class means mu_k [C, D].

    .. math:: -\lVert f - \mu_k \rVert^2 = 2 \mu_k^\top f - \lVert \mu_k \rVert^2 - \lVert f \rVert^2, \qquad
        \cos(f, \mu_k) \propto \mu_k^\top f / \lVert \mu_k \rVert

    Both are linear in f up to what all classes share. The paper brings the means to unit length for the Euclidean
    distance, which then chooses as the cosine does; here that one takes them as they are.

    Args:
        metric: "cosine" or "Euclidean".

    Source: Kang et al. 2020, section 4 (nearest class mean).
    """
    if metric == "cosine":
        return linear(tau_normalize(means, 1.0), means.new_zeros(len(means)))
    return linear(2 * means, -means.square().sum(1))


def ncm(first: nn.Linear, features: TrainSet, recipe: Recipe, candidates: Candidates) -> list[nn.Linear]:
    """Nearest class mean by `metric`, see `nearest_mean`; the means are of one pass of the training images."""
    means = class_means(*features.draw(recipe.batch_size, recipe.seed, 0), len(features.class_counts))
    return [nearest_mean(means, candidate["metric"]) for candidate in candidates]


# --- many classifiers at once ---------------------------------------------------------------------------------


def balanced_positions(labels: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """Class-balanced sampling: N positions at which every class stands equally often, up to one.

    A class comes first, then one of its images, with replacement.

    Args:
        labels: [N].
        generator: on the CPU.

    Raises:
        ValueError: a class does not occur.

    Source: Kang et al. 2020, equation 1 with q = 0.
    """
    size, device = len(labels), labels.device
    classes = (torch.randperm(size, generator=generator) % num_classes).to(device)
    share = torch.rand(size, generator=generator).to(device)
    counts = labels.bincount(minlength=num_classes)
    if not counts.all():
        raise ValueError(f"labels: must have each of {num_classes} classes, got none of {int(counts.argmin())}")
    first = counts.cumsum(0) - counts  # where a class begins once images lie class by class
    within = (share * counts[classes]).long().minimum(counts[classes] - 1)  # a product may round up
    return labels.argsort(stable=True)[first[classes] + within]


def train(
    features: TrainSet,
    recipe: Recipe,
    candidates: Candidates,
    start: Iterable[Tensor],
    backward: Backward,
    classifier: Classifier = as_is,
    balanced: bool = False,
    project: Callable[[Tensor], Tensor] | None = None,
) -> list[nn.Linear]:
    """`learn` a classifier for each candidate, on one seed's features, under one loss.

    Args:
        candidates: G of them; here `lr` (a multiple of the recipe's) and `weight_decay` are used, 0 without one.
        start: the parameters of each at first; what they are is the `classifier`'s, see `learn`.
        backward: of the loss.
        balanced: class-balanced sampling; otherwise every image once an epoch.
        project: gives the first parameter as it shall be after each step.
    """

    def batches(epoch: int) -> Iterable[Mapping[int, tuple[Tensor, Tensor]]]:
        inputs, labels = features.draw(recipe.batch_size, recipe.seed, epoch)
        if balanced:
            generator = epoch_generator(recipe.seed, recipe.epochs + epoch)  # not the one of the crops
            chosen = balanced_positions(labels, len(features.class_counts), generator)
            inputs, labels = inputs[chosen], labels[chosen]
        split = zip(inputs.split(recipe.batch_size), labels.split(recipe.batch_size), strict=True)
        return ({recipe.seed: batch} for batch in split)

    def after(values: Tensor, when: str) -> None:
        if project and when == "step":
            values.copy_(project(values))

    parameters = copies(len(candidates), *start)
    told = ([candidate.get(name, 0.0) for candidate in candidates] for name in ("lr", "weight_decay"))
    lr, decay = (parameters[0].new_tensor(values) for values in told)
    part = Part(recipe.seed, slice(None), backward)
    learn(parameters, recipe, batches, [part], lr, decay, classifier, after)
    return [linear(*one) for one in zip(*classifier(*parameters), strict=True)]


# --- balancers that learn -------------------------------------------------------------------------------------


def crt(first: nn.Linear, features: TrainSet, recipe: Recipe, candidates: Candidates) -> list[nn.Linear]:
    """Classifier re-training (cRT): a new classifier, cross-entropy, class-balanced sampling.

    Source: Kang et al. 2020, section 4.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    bound = first.in_features**-0.5  # as nn.Linear begins
    new = (torch.empty(values.shape).uniform_(-bound, bound, generator=generator) for values in first.parameters())
    start = [values.to(first.weight.device) for values in new]
    return train(features, recipe, candidates, start, cross_entropy_gradient, balanced=True)


def lws(first: nn.Linear, features: TrainSet, recipe: Recipe, candidates: Candidates) -> list[nn.Linear]:
    r"""Learnable weight scaling (LWS): one number a class, by cross-entropy and class-balanced sampling.

    .. math:: w_k \leftarrow s_k w_k, \quad s_k = 1 \text{ at first}

    Directions and biases stay.

    Source: Kang et al. 2020, section 4.
    """
    weight = first.weight.detach()
    bias = weight.new_zeros(len(weight)) if first.bias is None else first.bias.detach()

    def scaled(scale: Tensor) -> tuple[Tensor, Tensor]:
        return scale[:, :, None] * weight, bias.expand_as(scale)

    return train(features, recipe, candidates, [torch.ones_like(bias)], cross_entropy_gradient, scaled, balanced=True)


def class_balanced(first: nn.Linear, features: TrainSet, recipe: Recipe, candidates: Candidates) -> list[nn.Linear]:
    """The paper's second stage: class-balanced loss (the recipe's), weight decay, MaxNorm after each step.

    A candidate's `radius` is a multiple of the mean norm of the first stage's rows, so that what one network's
    images chose fits another's; without one nothing is projected.

    Source: Alshammari et al. 2022, section 4.3; Cui et al. 2019 (the loss).
    """
    weight = first.weight.detach()
    radii = (
        weight.new_tensor([candidate.get("radius", torch.inf) for candidate in candidates]) * row_norms(weight).mean()
    )
    backward = backward_of(recipe.loss, features.class_counts, weight.device)
    project = partial(max_norm_project, radius=radii[:, None]) if radii.isfinite().any() else None
    return train(features, recipe, candidates, first.parameters(), backward, project=project)


def retrain_balanced(first: nn.Linear, features: TrainSet, recipe: Recipe, candidates: Candidates) -> list[nn.Linear]:
    """Balanced Softmax on the classifier, see `balanced_softmax`; the paper trains the whole network by it."""
    backward = backward_of("balanced-softmax", features.class_counts, first.weight.device)
    return train(features, recipe, candidates, first.parameters(), backward)


def smoothed_gradient(logits: Tensor, labels: Tensor, smoothing: Tensor) -> Tensor:
    r"""What cross-entropies with smoothed labels send back, of logits [B, G, C], labels [B] and delta [G].

    .. math:: \frac{1}{B} (\mathrm{softmax}(z) - y), \quad y_k = (1 - \delta) [k = \mathrm{label}] + \delta / C
    """
    share = smoothing[None, :, None]
    wanted = (1 - share) * F.one_hot(labels, logits.shape[2])[:, None] + share / logits.shape[2]
    return (logits.softmax(2) - wanted) / len(labels)


def over_smooth(first: nn.Linear, features: TrainSet, recipe: Recipe, candidates: Candidates) -> list[nn.Linear]:
    """Label over-smoothing (LOS): so much `smoothing` that the true class keeps little more than 1 / C.

    As its released code: delta 0.98, every image once an epoch, no weight decay, from the first stage's classifier
    on, a learning rate of 0.0005 (a twentieth of the published one here), 20 epochs.

    Source: Sun et al. 2025 (ICLR); in its first form arXiv 2403.00250.
    """
    smoothing = first.weight.new_tensor([candidate["smoothing"] for candidate in candidates])
    backward = partial(smoothed_gradient, smoothing=smoothing)
    return train(features, recipe, candidates, first.parameters(), backward)


def isotonic(values: Iterable[float]) -> list[float]:
    """The nearest values, in least squares, that never fall: pool adjacent violators.

    Values that already rise come back as they are.

    Source: Barlow et al. 1972 (isotonic regression).
    """
    blocks: list[tuple[float, int]] = []  # mean and size
    for value in values:
        mean, size = value, 1
        while blocks and blocks[-1][0] > mean:
            before, number = blocks.pop()
            mean = (before * number + mean * size) / (number + size)
            size += number
        blocks.append((mean, size))
    return [mean for mean, size in blocks for _ in range(size)]


def isotonic_project(weight: Tensor, counts: np.ndarray) -> Tensor:
    r"""The nearest weights whose norms never fall from the most common to the rarest class.

    .. math:: n_j > n_k \Rightarrow \lVert w_j \rVert \le \lVert w_k \rVert

    Directions stay, so that the nearest matrix has the isotonic regression of the norms; rows of zeros stay zeros.

    Args:
        weight: [C, D].
        counts: [C]; classes with equally many images are taken in their order.
    """
    common_to_rare = torch.as_tensor(np.argsort(-np.asarray(counts), kind="stable"), device=weight.device)
    norms = row_norms(weight)
    wanted = torch.empty_like(norms)
    wanted[common_to_rare] = norms.new_tensor(isotonic(norms[common_to_rare].tolist()))
    return weight * torch.where(norms > 0, wanted / norms, 1.0)[:, None]


def isotonic_norms(first: nn.Linear, features: TrainSet, recipe: Recipe, candidates: Candidates) -> list[nn.Linear]:
    """The norm constraint of SAMN: no class has a smaller norm than a more common one, after each step.

    Our reading. The paper (Self-Adaptive Monotonic Normalization) learns directions and norms apart, the norms
    through pool adjacent violators inside the network; here the weights are projected onto the same set, as
    MaxNorm does onto its own. As its released code: cross-entropy, every image once an epoch, no weight decay.

    Source: Zhang et al. 2026 (CVPR), arXiv 2606.02526.
    """
    counts = features.class_counts

    def project(weights: Tensor) -> Tensor:
        return torch.stack([isotonic_project(weight, counts) for weight in weights])

    weight, *bias = first.parameters()
    start = [isotonic_project(weight.detach(), counts), *bias]
    return train(features, recipe, candidates, start, cross_entropy_gradient, project=project)


def simplex_etf(num_classes: int) -> Tensor:
    r"""Simplex equiangular tight frame: C unit vectors, as far apart as can be: every cosine is -1 / (C - 1).

    .. math:: M = \sqrt{C / (C - 1)} \, (I - 1 1^\top / C)

    Returns:
        [C, C], a row a class; symmetric.

    Source: Papyan et al. 2020, equation 1.
    """
    centred = torch.eye(num_classes) - 1 / num_classes
    return centred * (num_classes / (num_classes - 1)) ** 0.5


def multiply_logits(values: Tensor, counts: np.ndarray, gamma: float) -> Tensor:
    r"""Multiplicative logit adjustment of logits [..., C], or of a weight transposed; gamma = 0 leaves them.

    .. math:: z_k \leftarrow (n_{max} / n_k)^\gamma z_k

    Returns:
        float32 of values in half precision, which could not hold the counts; otherwise the values' type.

    Source: Kim and Kim 2020; Hasegawa and Sato 2024, whose factor n_k^-gamma differs by one that all classes share.
    """
    values = at_least_float32(values)
    counts = by_class(counts).to(values.device, values.dtype)
    return values * (counts.max() / counts) ** gamma


def etf(first: nn.Linear, features: TrainSet, recipe: Recipe, candidates: Candidates) -> list[nn.Linear]:
    r"""Fixed simplex ETF M on mapped features, then multiplicative logit adjustment by `gamma`.

    .. math:: z = M h, \quad h = A f(x) + a, \qquad \text{loss} = \text{cross-entropy} + \rho \lVert h \rVert^2

    The paper trains the whole network under the fixed M, with feature regularisation rho = 0.01 (`RHO`), and takes
    gamma 0.65. A frozen network has its classes elsewhere, and may have D < C - 1, where no such frame
    exists; so a linear map A [C, D] is learned before it, from the one that gives the first stage's logits. Then
    M A is a classifier whose rows sum to zero: what remains of the paper's method is its regularisation and its
    adjustment. ||h|| is taken within the range of M, where it is ||z|| up to the frame's factor.

    Source: Hasegawa and Sato 2024 (ICLR), arXiv 2305.16573.
    """
    counts, device = features.class_counts, first.weight.device
    frame = simplex_etf(len(counts)).to(device)
    shrink = 1 - 1 / len(counts)  # M M = centring / shrink

    def framed(mapping: Tensor, offset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return as_is(frame @ mapping, None if offset is None else offset @ frame)

    def backward(logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy_gradient(logits, labels) + 2 * RHO * shrink / len(labels) * logits

    rates = list(dict.fromkeys(candidate["lr"] for candidate in candidates))  # gamma comes after training
    start = [shrink * frame @ values.detach() for values in first.parameters()]
    learned = train(features, recipe, [{"lr": lr} for lr in rates], start, backward, framed)
    adjusted = []
    for candidate in candidates:
        one, gamma = learned[rates.index(candidate["lr"])], candidate["gamma"]
        weight = multiply_logits(one.weight.T, counts, gamma).T
        adjusted.append(linear(weight, multiply_logits(one.bias, counts, gamma)))
    return adjusted


# --- all of them ----------------------------------------------------------------------------------------------


ROOM = 2**28  # numbers that a stack of classifiers may hold at once


@dataclass(frozen=True)
class Balancer:
    """One way from the first stage's classifier to a balanced one.

    Attributes:
        fit: from the first stage's classifier, training features, a recipe and candidates to a classifier for each.
        candidates: what it is tuned over, the simplest first: of equals the first is chosen.
    """

    fit: Callable[[nn.Linear, TrainSet, Recipe, Candidates], list[nn.Linear]]
    candidates: Candidates

    def fit_each(
        self, first: nn.Linear, features: TrainSet, recipe: Recipe, candidates: Candidates
    ) -> Iterator[nn.Linear]:
        """The classifiers of `fit`, as many side by side as memory has room for: alone each would be the same."""
        classes, dimensions = first.weight.shape
        number = max(1, ROOM // (classes * (6 * dimensions + 5 * recipe.batch_size)))
        for start in range(0, len(candidates), number):
            yield from self.fit(first, features, recipe, candidates[start : start + number])


def combinations(**values: Sequence[Any]) -> Candidates:
    """All combinations, the last name's values next to each other; give each name's simplest value first."""
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in product(*values.values()))


LR = (1.0, 10.0, 100.0)  # times the recipe's
LR_SLOW = (0.05, *LR)  # 0.0005 with the published 0.01, as LOS and SAMN have it
RADII = (1.5, 1.0, 0.75, 0.5, 0.25)  # the larger, the less is projected
FIRST = "first stage alone"
ADJUSTMENT = "logit adjustment"
BALANCERS = {
    FIRST: Balancer(identity, combinations()),
    "L2norm": Balancer(tau_norm, combinations(tau=[1.0])),
    "tau-norm": Balancer(tau_norm, combinations(tau=[i / 10 for i in range(31)])),
    ADJUSTMENT: Balancer(logit_adjustment, combinations(tau=[i / 10 for i in range(26)])),
    "NCM": Balancer(ncm, combinations(metric=["cosine", "Euclidean"])),
    "cRT": Balancer(crt, combinations(weight_decay=[0.0, 5e-4, 5e-3], lr=LR)),
    "LWS": Balancer(lws, combinations(lr=LR)),
    "CB": Balancer(class_balanced, combinations(lr=LR)),
    "CB + WD": Balancer(class_balanced, combinations(weight_decay=[1e-3, 3e-3, 1e-2, 3e-2, 1e-1], lr=LR)),
    "CB + MaxNorm": Balancer(class_balanced, combinations(radius=RADII, lr=LR)),
    "CB + WD + MaxNorm": Balancer(class_balanced, combinations(weight_decay=[1e-3, 1e-2, 1e-1], radius=RADII, lr=LR)),
    "Balanced Softmax": Balancer(retrain_balanced, combinations(weight_decay=[0.0, 1e-3, 1e-2], lr=LR)),
    "LOS": Balancer(over_smooth, combinations(smoothing=[0.8, 0.9, 0.95, 0.98], lr=LR_SLOW)),
    "isotonic norms (SAMN)": Balancer(isotonic_norms, combinations(lr=LR_SLOW)),
    "ETF + multiplicative LA": Balancer(etf, combinations(gamma=[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65], lr=LR_SLOW)),
}


NEED_BIAS = (ADJUSTMENT,)  # it moves nothing else; the others do without one, but for the Euclidean NCM


def without_bias(balancers: Mapping[str, Balancer]) -> dict[str, Balancer]:
    """Those balancers under which a classifier without bias stays without one; NCM by the cosine alone."""
    found = {name: balancer for name, balancer in balancers.items() if name not in NEED_BIAS}
    if "NCM" in found:
        found["NCM"] = replace(found["NCM"], candidates=combinations(metric=["cosine"]))
    return found


def suitable(balancers: Mapping[str, Balancer], first: nn.Linear) -> dict[str, Balancer]:
    """Those balancers that suit a first stage's classifier, weight [C, D] and bias [C] or None.

    Without a bias it gets none. Where all rows have one norm, as a cosine classifier's, to normalise them changes no
    answer.
    """
    found = dict(balancers) if first.bias is not None else without_bias(balancers)
    norms = row_norms(first.weight.detach())
    if torch.allclose(norms, norms.mean(), rtol=1e-4):
        found = {name: balancer for name, balancer in found.items() if balancer.fit is not tau_norm}
    return found


# --- the paper's own rows -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A row of the paper's Table 1 that learns in the second stage.

    Attributes:
        loss: "CE" or "CB", which of the mode's two losses.
        weight_decay: "none", "stage 1" for the first stage's, or "stage 2" for the mode's.
        constraint: "none", "MaxNorm" or "L2norm", on the classifier.
        layers: how many of the last layers learn, the classifier included.
    """

    loss: str
    weight_decay: str = "none"
    constraint: str = "none"
    layers: int = 1

    def values(self, mode: Mapping[str, Any], stage1_weight_decay: float) -> dict[str, Any]:
        """What the row takes of a mode's values: loss, lr, weight_decay, schedule, max_norm, max_norm_every."""
        values = dict(mode)
        if self.loss == "CE":
            values["loss"] = "ce"
        decays = {"none": 0.0, "stage 1": stage1_weight_decay, "stage 2": mode["weight_decay"]}
        values["weight_decay"] = decays[self.weight_decay]
        if self.constraint != "MaxNorm":
            values["max_norm"] = values["max_norm_every"] = None
        return values

    def constrain(self, radius: float | None, every: str) -> Constraint | None:
        """The row's constraint, with this radius if it has one; None where it has none."""
        if self.constraint == "L2norm":
            return L2Norm(every)
        return MaxNorm(radius, every) if self.constraint == "MaxNorm" else None


# The order of the table; names are those of `published.TABLE_1`.
METHODS = {
    "CE + L2norm": Method("CE", constraint="L2norm"),
    "CE + WD": Method("CE", "stage 2"),
    "CE + MaxNorm": Method("CE", constraint="MaxNorm"),
    "CE + WD + MaxNorm": Method("CE", "stage 2", "MaxNorm"),
    "CB": Method("CB"),
    "CB + L2norm": Method("CB", constraint="L2norm"),
    "CB + WD": Method("CB", "stage 2"),
    "CB + MaxNorm": Method("CB", constraint="MaxNorm"),
    "CB + stage-1 WD + MaxNorm": Method("CB", "stage 1", "MaxNorm"),
    "CB + WD + MaxNorm": Method("CB", "stage 2", "MaxNorm"),
    "last 2 layers, CB + WD + MaxNorm": Method("CB", "stage 2", "MaxNorm", layers=2),
    "last 5 layers, CB + WD + MaxNorm": Method("CB", "stage 2", "MaxNorm", layers=5),
}


def of_loss(loss: str) -> tuple[str, ...]:
    """The rows whose classifier alone learns, under CE or CB."""
    return tuple(name for name, own in METHODS.items() if own.loss == loss and own.layers == 1)

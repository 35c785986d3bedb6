"""The post-hoc and second-stage methods that people compare with, on frozen features.

Each starts from the first stage's classifier and gives linear classifiers, one for each of its settings; those
that learn train all of them side by side. n_k are the training images of class k, C the classes, D the features,
w_k and b_k a class's weights and bias, and the logit of class k is z_k = w_k^T f(x) + b_k. `METHODS` names them
all, each with the settings that it is tuned over.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltr.classifiers import linear
from ltr.loader import epoch_generator
from ltr.losses import Loss, adjust_logits, balanced_softmax, build_loss
from ltr.regularizers import max_norm_project, row_norms, tau_normalize
from ltr.training import Recipe

RHO = 0.01  # of ETF's feature regularisation
Setting = Mapping[str, Any]
Settings = Sequence[Setting]


class Features(Protocol):
    """What a method learns from; `classifiers.FrozenFeatures` in its paper mode."""

    class_counts: np.ndarray  # [C]

    def draw(self, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Training features [N, D] and labels [N] of an epoch, in a random order."""


# --- without learning -----------------------------------------------------------------------------------------


def untouched(first: nn.Linear, features: Features, recipe: Recipe, settings: Settings) -> list[nn.Linear]:
    """The first stage's classifier as it is."""
    return [first for _ in settings]


def tau_norm(first: nn.Linear, features: Features, recipe: Recipe, settings: Settings) -> list[nn.Linear]:
    """Divide each class's weights by their norm to the power `tau`; 1 is L2-normalisation.

    Source: Kang et al. 2020, section 4; see `regularizers.tau_normalize`.
    """
    return [linear(tau_normalize(first.weight.detach(), setting["tau"]), first.bias) for setting in settings]


def logit_adjustment(first: nn.Linear, features: Features, recipe: Recipe, settings: Settings) -> list[nn.Linear]:
    """Post-hoc logit adjustment by `tau`: see `adjust_logits`, which here moves the biases."""
    counts, bias = features.class_counts, first.bias.detach()
    return [linear(first.weight, adjust_logits(bias, counts, setting["tau"])) for setting in settings]


def class_means(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean feature of each class: [N, D], [N] -> [C, D]."""
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


def ncm(first: nn.Linear, features: Features, recipe: Recipe, settings: Settings) -> list[nn.Linear]:
    """Nearest class mean by `metric`, see `nearest_mean`; the means are of one pass of the training images."""
    means = class_means(*features.draw(recipe.batch_size, recipe.seed, 0), len(features.class_counts))
    return [nearest_mean(means, setting["metric"]) for setting in settings]


# --- learning on the features ---------------------------------------------------------------------------------


def balanced_positions(labels: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """Class-balanced sampling: N positions at which every class stands equally often, up to one.

    A class comes first, then one of its images, with replacement.

    Args:
        labels: [N]; every class must occur.
        generator: on the CPU.

    Source: Kang et al. 2020, equation 1 with q = 0.
    """
    size, device = len(labels), labels.device
    classes = (torch.randperm(size, generator=generator) % num_classes).to(device)
    share = torch.rand(size, generator=generator).to(device)
    counts = labels.bincount(minlength=num_classes)
    first = counts.cumsum(0) - counts  # where a class begins once images lie class by class
    within = (share * counts[classes]).long().minimum(counts[classes] - 1)  # a product may round up
    return labels.argsort(stable=True)[first[classes] + within]


def epoch_batches(features: Features, recipe: Recipe, epoch: int, balanced: bool) -> Iterable[tuple[Tensor, Tensor]]:
    """Features [B, D] and labels [B] of an epoch's steps: every image once, or class-balanced."""
    inputs, labels = features.draw(recipe.batch_size, recipe.seed, epoch)
    if balanced:
        generator = epoch_generator(recipe.seed, recipe.epochs + epoch)  # not the one of the crops
        chosen = balanced_positions(labels, len(features.class_counts), generator)
        inputs, labels = inputs[chosen], labels[chosen]
    return zip(inputs.split(recipe.batch_size), labels.split(recipe.batch_size), strict=True)


def column(settings: Settings, name: str, like: Tensor) -> Tensor:
    """One value of every setting, [G], 0 where it has none, shaped to multiply a tensor [G, ...]."""
    values = like.new_tensor([setting.get(name, 0.0) for setting in settings])
    return values.view(-1, *[1] * (like.dim() - 1))


def side_by_side(loss: Loss) -> Loss:
    """The sum of G losses, of logits [B, G, C] and labels [B], from one that is a mean over its rows."""
    return lambda logits, labels: (
        logits.shape[1] * loss(logits.flatten(0, 1), labels.repeat_interleave(logits.shape[1]))
    )


def train(
    features: Features,
    recipe: Recipe,
    settings: Settings,
    parameters: Sequence[Tensor],
    classifier: Callable[..., tuple[Tensor, Tensor]],
    loss: Loss,
    balanced: bool = False,
    project: Callable[[Tensor], Tensor] | None = None,
) -> list[nn.Linear]:
    """Learn G linear classifiers side by side by SGD, each as `training.fit` would alone.

    A setting under which the loss diverges gives weights that are not finite, and loses the tuning.

    Args:
        settings: G of them; here `lr`, a multiple of the recipe's, and `weight_decay` are used.
        parameters: what is learned, each [G, ...], in place.
        classifier: gives weights [G, C, D] and biases [G, C] from them.
        loss: the sum of the G losses, of logits [B, G, C] and labels [B].
        balanced: class-balanced sampling; otherwise every image once an epoch.
        project: gives the first parameter as it shall be after each step.
    """
    velocity = [torch.zeros_like(values) for values in parameters]
    lr, decay = ([column(settings, name, values) for values in parameters] for name in ("lr", "weight_decay"))
    for epoch in range(recipe.epochs):
        for x, y in epoch_batches(features, recipe, epoch, balanced):
            weight, bias = classifier(*parameters)
            logits = torch.addmm(bias.flatten(), x, weight.flatten(0, 1).T).view(len(x), len(settings), -1)
            gradients = torch.autograd.grad(loss(logits, y), parameters)
            with torch.no_grad():
                for i, (values, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                    velocity[i].mul_(recipe.momentum).add_(gradient).addcmul_(values, decay[i])
                    values.addcmul_(velocity[i], lr[i], value=-recipe.learning_rate(epoch))
                if project:
                    parameters[0].copy_(project(parameters[0]))
    return [linear(*one) for one in zip(*classifier(*parameters), strict=True)]


def copies(settings: Settings, *tensors: Tensor) -> list[Tensor]:
    """Each tensor once for every setting, [G, ...], to be learned."""
    return [values.detach().repeat(len(settings), *[1] * values.dim()).requires_grad_() for values in tensors]


def as_is(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The classifier whose weights are themselves what is learned."""
    return weight, bias


def crt(first: nn.Linear, features: Features, recipe: Recipe, settings: Settings) -> list[nn.Linear]:
    """Classifier re-training (cRT): a new classifier, cross-entropy, class-balanced sampling.

    Source: Kang et al. 2020, section 4.
    """
    generator, bound = torch.Generator().manual_seed(recipe.seed), first.in_features**-0.5  # as nn.Linear begins
    new = [torch.empty(values.shape).uniform_(-bound, bound, generator=generator) for values in first.parameters()]
    start = copies(settings, *(values.to(first.weight.device) for values in new))
    return train(features, recipe, settings, start, as_is, side_by_side(F.cross_entropy), balanced=True)


def lws(first: nn.Linear, features: Features, recipe: Recipe, settings: Settings) -> list[nn.Linear]:
    r"""Learnable weight scaling (LWS): one number a class, by cross-entropy and class-balanced sampling.

    .. math:: w_k \leftarrow s_k w_k, \quad s_k = 1 \text{ at first}

    Directions and biases stay.

    Source: Kang et al. 2020, section 4.
    """
    weight, bias = first.weight.detach(), first.bias.detach()

    def scaled(scale: Tensor) -> tuple[Tensor, Tensor]:
        return scale[:, :, None] * weight, bias.expand_as(scale)

    start = copies(settings, torch.ones_like(bias))
    return train(features, recipe, settings, start, scaled, side_by_side(F.cross_entropy), balanced=True)


def class_balanced(first: nn.Linear, features: Features, recipe: Recipe, settings: Settings) -> list[nn.Linear]:
    """The paper's second stage: class-balanced loss (the recipe's), weight decay, MaxNorm after each step.

    A setting's `radius` is a multiple of the mean norm of the first stage's rows, so that what one network's
    images chose fits another's; without one nothing is projected.

    Source: Alshammari et al. 2022, section 4.3; Cui et al. 2019 (the loss).
    """
    weight = first.weight.detach()
    radii = weight.new_tensor([setting.get("radius", torch.inf) for setting in settings]) * row_norms(weight).mean()
    loss = build_loss(recipe.loss, torch.as_tensor(features.class_counts), weight.device)

    def max_norm(weights: Tensor) -> Tensor:
        rows = weights.flatten(0, 1)
        return max_norm_project(rows, radii.repeat_interleave(len(weight))).view_as(weights)

    project = max_norm if radii.isfinite().any() else None
    start = copies(settings, weight, first.bias)
    return train(features, recipe, settings, start, as_is, side_by_side(loss), project=project)


def retrain_balanced(first: nn.Linear, features: Features, recipe: Recipe, settings: Settings) -> list[nn.Linear]:
    """Balanced Softmax on the classifier, see `balanced_softmax`; the paper trains the whole network by it."""
    loss = side_by_side(partial(balanced_softmax, counts=features.class_counts))
    return train(features, recipe, settings, copies(settings, first.weight, first.bias), as_is, loss)


def smoothed(logits: Tensor, labels: Tensor, smoothing: Tensor) -> Tensor:
    r"""The sum of G cross-entropies with smoothed labels, of logits [B, G, C], labels [B] and delta [G].

    .. math:: -\sum_k y_k \log p_k, \quad y_k = (1 - \delta) [k = y] + \delta / C
    """
    log_p = logits.log_softmax(2)
    on_label = log_p.gather(2, labels[:, None, None].expand(-1, len(smoothing), 1)).squeeze(2)  # [B, G]
    return -((1 - smoothing) * on_label + smoothing * log_p.mean(2)).mean(0).sum()


def over_smooth(first: nn.Linear, features: Features, recipe: Recipe, settings: Settings) -> list[nn.Linear]:
    """Label over-smoothing (LOS): so much `smoothing` that the true class keeps little more than 1 / C.

    As its released code: delta 0.98, every image once an epoch, no weight decay, from the first stage's classifier
    on, a learning rate of 0.0005 (a twentieth of the published one here), 20 epochs.

    Source: Sun et al. 2025 (ICLR); in its first form arXiv 2403.00250.
    """
    loss = partial(smoothed, smoothing=first.weight.new_tensor([setting["smoothing"] for setting in settings]))
    return train(features, recipe, settings, copies(settings, first.weight, first.bias), as_is, loss)


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
            mean, size = (before * number + mean * size) / (number + size), number + size
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


def isotonic_norms(first: nn.Linear, features: Features, recipe: Recipe, settings: Settings) -> list[nn.Linear]:
    """The norm constraint of SAMN: no class has a smaller norm than a more common one, after each step.

    Our reading. The paper (Self-Adaptive Monotonic Normalization) learns directions and norms apart, the norms
    through pool adjacent violators inside the network; here the weights are projected onto the same set, as
    MaxNorm does onto its own. As its released code: cross-entropy, every image once an epoch, no weight decay.

    Source: Zhang et al. 2026 (CVPR), arXiv 2606.02526.
    """
    counts = features.class_counts

    def project(weights: Tensor) -> Tensor:
        return torch.stack([isotonic_project(weight, counts) for weight in weights])

    start = copies(settings, isotonic_project(first.weight.detach(), counts), first.bias)
    return train(features, recipe, settings, start, as_is, side_by_side(F.cross_entropy), project=project)


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

    Source: Kim and Kim 2020; Hasegawa and Sato 2024, whose factor n_k^-gamma differs by one that all classes share.
    """
    counts = torch.as_tensor(counts, dtype=values.dtype, device=values.device)
    return values * (counts.max() / counts) ** gamma


def etf(first: nn.Linear, features: Features, recipe: Recipe, settings: Settings) -> list[nn.Linear]:
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
    frame, shrink = simplex_etf(len(counts)).to(device), 1 - 1 / len(counts)  # M M = centring / shrink

    def framed(mapping: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        return frame @ mapping, offset @ frame

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        features_squared = shrink * logits.square().sum(2)  # [B, G]
        return side_by_side(F.cross_entropy)(logits, labels) + RHO * features_squared.mean(0).sum()

    start = copies(settings, *(shrink * frame @ values.detach() for values in (first.weight, first.bias)))
    learned = train(features, recipe, settings, start, framed, loss)
    gammas = [setting["gamma"] for setting in settings]
    return [
        linear(multiply_logits(one.weight.T, counts, gamma).T, multiply_logits(one.bias, counts, gamma))
        for one, gamma in zip(learned, gammas, strict=True)
    ]


# --- all of them ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """One way to a classifier.

    Attributes:
        fit: from the first stage's classifier, training features, a recipe and settings to a classifier for each.
        settings: what it is tuned over, the simplest first: of equals the first is chosen.
    """

    fit: Callable[[nn.Linear, Features, Recipe, Settings], list[nn.Linear]]
    settings: Settings


def grid(**values: Sequence[Any]) -> Settings:
    """All combinations, the last name's values next to each other; give each name's simplest value first."""
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in product(*values.values()))


LR = (1.0, 10.0, 100.0)  # times the recipe's
LR_SLOW = (0.05, *LR)  # 0.0005 with the published 0.01, as LOS and SAMN have it
RADII = (1.5, 1.0, 0.75, 0.5, 0.25)  # the larger, the less is projected
METHODS = {
    "first stage alone": Method(untouched, grid()),
    "L2norm": Method(tau_norm, grid(tau=[1.0])),
    "tau-norm": Method(tau_norm, grid(tau=[i / 10 for i in range(31)])),
    "logit adjustment": Method(logit_adjustment, grid(tau=[i / 10 for i in range(26)])),
    "NCM": Method(ncm, grid(metric=["cosine", "Euclidean"])),
    "cRT": Method(crt, grid(weight_decay=[0.0, 5e-4, 5e-3], lr=LR)),
    "LWS": Method(lws, grid(lr=LR)),
    "CB": Method(class_balanced, grid(lr=LR)),
    "CB + WD": Method(class_balanced, grid(weight_decay=[1e-3, 3e-3, 1e-2, 3e-2, 1e-1], lr=LR)),
    "CB + MaxNorm": Method(class_balanced, grid(radius=RADII, lr=LR)),
    "CB + WD + MaxNorm": Method(class_balanced, grid(weight_decay=[1e-3, 1e-2, 1e-1], radius=RADII, lr=LR)),
    "Balanced Softmax": Method(retrain_balanced, grid(weight_decay=[0.0, 1e-3, 1e-2], lr=LR)),
    "LOS": Method(over_smooth, grid(smoothing=[0.8, 0.9, 0.95, 0.98], lr=LR_SLOW)),
    "isotonic norms (SAMN)": Method(isotonic_norms, grid(lr=LR_SLOW)),
    "ETF + multiplicative LA": Method(etf, grid(gamma=[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65], lr=LR_SLOW)),
}

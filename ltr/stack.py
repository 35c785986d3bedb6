"""Many linear classifiers at once: SGD on a stack of them, by two matrix products a step.

`learn` is the trainer; `Grid` gives each classifier values of its own, `methods` ways to make one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ltr import metrics
from ltr.losses import Deferred, Loss, build_loss, class_balanced_weights
from ltr.models import linear
from ltr.recipes import Recipe
from ltr.regularizers import EVERY, max_norm_project, outside, row_norms

Classifier = Callable[..., tuple[Tensor, Tensor]]  # from what is learned to weights [G, C, D] and biases [G, C]
Backward = Callable[[Tensor, Tensor], Tensor]  # of logits [B, G, C] and labels [B]: what each loss sends back to them


class Part(NamedTuple):
    """Classifiers of a stack that see one seed's batches under one loss."""

    seed: int
    rows: slice
    backward: Backward


def by_autograd(loss: Loss) -> Backward:
    """What a loss of logits [B, C], a mean over its rows, sends back to the logits [B, G, C] of G classifiers.

    The mean may be weighted by the rows' labels, which all classifiers share.
    """

    def backward(logits: Tensor, labels: Tensor) -> Tensor:
        rows = logits.detach().flatten(0, 1).requires_grad_()  # [B * G, C]
        with torch.enable_grad():
            total = logits.shape[1] * loss(rows, labels.repeat_interleave(logits.shape[1]))
        return torch.autograd.grad(total, rows)[0].view_as(logits)

    return backward


def cross_entropy_gradient(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    r"""What `balanced_cross_entropy` of each of G classifiers sends back to its logits.

    .. math:: \frac{\alpha_y}{B} (\mathrm{softmax}(z) - 1_y)

    Args:
        logits: [B, G, C].
        labels: [B].
        weights: [C], alpha; None for the plain cross-entropy.

    Returns:
        [B, G, C]. Autograd gives the same, by way of more tensors of this size: most of a stack's time.
    """
    gradient = torch.softmax(logits, 2)
    gradient.scatter_add_(2, labels[:, None, None].expand(-1, logits.shape[1], 1), -torch.ones_like(logits[:, :, :1]))
    scale = torch.full_like(labels, 1, dtype=logits.dtype) if weights is None else weights[labels]
    return gradient.mul_((scale / len(labels))[:, None, None])


def backward_of(loss: str, counts: np.ndarray, device: torch.device) -> Backward:
    """What one of `losses.LOSSES` sends back to the logits of G classifiers.

    Raises:
        ValueError: the loss changes from epoch to epoch.
    """
    counts = torch.as_tensor(counts)
    if loss == "ce":
        return cross_entropy_gradient
    if loss == "cb-ce":
        return partial(cross_entropy_gradient, weights=class_balanced_weights(counts).to(device))
    found = build_loss(loss, counts, device)
    if isinstance(found, Deferred):
        raise ValueError(f"loss: must be the same in each epoch, got {loss}")
    return by_autograd(found)


def as_is(weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The classifiers whose weights are themselves what is learned; their biases too, or they stay zero."""
    return weight, weight.new_zeros(weight.shape[:2]) if bias is None else bias


def gradients(
    parameters: Sequence[Tensor],
    classifier: Classifier,
    batches: Mapping[int, tuple[Tensor, Tensor]],
    parts: list[Part],
) -> Sequence[Tensor]:
    """Gradients of what is learned by all classifiers, by two matrix products a part; arguments as of `learn`."""
    weight, bias = classifier(*parameters)  # [G, C, D], [G, C]
    with torch.no_grad():
        to_weight = torch.empty_like(weight)
        to_bias = torch.empty_like(bias)
        for part in parts:
            features, labels = batches[part.seed]
            rows, shape = part.rows, bias[part.rows].shape
            logits = torch.addmm(bias[rows].flatten(), features, weight[rows].flatten(0, 1).T)
            back = part.backward(logits.view(len(labels), *shape), labels)  # [B, G, C]
            torch.mm(back.flatten(1).T, features, out=to_weight[rows].flatten(0, 1))
            torch.sum(back, 0, out=to_bias[rows])
    given = [(values, back) for values, back in ((weight, to_weight), (bias, to_bias)) if values.requires_grad]
    outputs, sent_back = zip(*given, strict=True)  # a bias that does not learn sends nothing on
    return torch.autograd.grad(outputs, parameters, sent_back)


def learn(
    parameters: Sequence[Tensor],
    recipe: Recipe,
    epoch_batches: Callable[[int], Iterable[Mapping[int, tuple[Tensor, Tensor]]]],
    parts: list[Part],
    lr: Tensor,
    weight_decay: Tensor,
    classifier: Classifier = as_is,
    project: Callable[[Tensor, str], None] | None = None,
) -> None:
    """Learn G linear classifiers side by side by SGD, each as `training.fit` would alone.

    Values under which the loss diverges give weights that are not finite.

    Args:
        parameters: what is learned, each [G, ...], in place.
        recipe: what they share: epochs, learning rate, momentum, schedule.
        epoch_batches: the batches of an epoch by seed, features [B, D] and labels [B].
        parts: which classifiers see which seed's batches under which loss.
        lr: [G], multiples of the recipe's.
        weight_decay: [G].
        classifier: gives weights [G, C, D] and biases [G, C] from what is learned.
        project: brings the first parameter, in place, to where it shall be, after each "step" and "epoch".

    Raises:
        ValueError: the recipe has Nesterov's momentum, sharpness-aware steps or an averaged network, which are not to
            be had here.
    """
    if recipe.nesterov or recipe.sam_rho or recipe.average != "none":
        raise ValueError("nesterov, sam_rho, average: must be False, 0 and none for classifiers side by side")
    shapes = [(-1, *[1] * (values.dim() - 1)) for values in parameters]
    velocity = [torch.zeros_like(values) for values in parameters]
    for epoch in tqdm(range(recipe.epochs), f"{len(lr)} classifiers", leave=False, disable=None):
        rate = recipe.learning_rate(epoch)
        for batches in epoch_batches(epoch):
            found = gradients(parameters, classifier, batches, parts)
            with torch.no_grad():
                for values, moved, gradient, shape in zip(parameters, velocity, found, shapes, strict=True):
                    moved.mul_(recipe.momentum).add_(gradient).addcmul_(values, weight_decay.view(shape))
                    values.addcmul_(moved, lr.view(shape), value=-rate)
                if project:
                    project(parameters[0], "step")
        if project:
            with torch.no_grad():
                project(parameters[0], "epoch")


def copies(number: int, *tensors: Tensor) -> list[Tensor]:
    """Each tensor G times, [G, ...], to be learned."""
    return [values.detach().repeat(number, *[1] * values.dim()).requires_grad_() for values in tensors]


class Grid:
    """Linear classifiers that train side by side on the same batches, each by its own values.

    Args:
        start: where all of them start.
        data: frozen features, of the recipe's seed; or for each value of a column `seed` its own.
        recipe: what they share: epochs, batch size, momentum, schedule, seed. Its loss, learning rate and
            weight decay give way to the grid's.
        candidates: a row a classifier, columns loss, lr, weight_decay, max_norm (NaN for none) and
            max_norm_every, and seed where there are several.

    Attributes:
        candidates: a row a classifier, those of one seed and loss side by side; the index is the caller's order.
        weight, bias: [G, C, D] and [G, C], in the order of these rows; biases stay zero where the start has none.
        projected, checked: rows that MaxNorm moved and looked at, [G].
    """

    def __init__(self, start: nn.Linear, data: Any, recipe: Recipe, candidates: pd.DataFrame) -> None:
        self.data = data if isinstance(data, Mapping) else {recipe.seed: data}
        self.recipe = recipe
        candidates = candidates.reset_index(drop=True)
        candidates = candidates if "seed" in candidates else candidates.assign(seed=recipe.seed)
        # Rows of one seed and loss lie side by side, so that a part of the grid is a view.
        self.candidates = candidates.sort_values(["seed", "loss"], kind="stable")
        self.learned = copies(len(candidates), *start.parameters())
        self.weight, self.bias = as_is(*self.learned)
        self.lr, self.weight_decay, radius = (
            self.weight.new_tensor(self.candidates[name].to_numpy(np.float32))
            for name in ("lr", "weight_decay", "max_norm")
        )
        radius = radius.nan_to_num(torch.inf, torch.inf)
        self.projected = torch.zeros_like(self.lr, dtype=torch.int64)  # of many classes more than float32 counts
        self.checked = torch.zeros_like(self.projected)
        every = self.candidates.max_norm_every
        if unknown := set(every.dropna()) - {*EVERY}:
            raise ValueError(f"max_norm_every: must be step or epoch, got {unknown.pop()}")
        if (every.isna() & self.candidates.max_norm.notna()).any():
            raise ValueError("max_norm_every: must be step or epoch where there is a radius, got none")
        # The radius that holds after each step, or epoch; infinite for classifiers that are not projected then.
        self.radii = {
            when: torch.where(torch.tensor((every == when).to_numpy()).to(radius.device), radius, torch.inf)
            for when in EVERY
        }

    def parts(self) -> list[Part]:
        """Each seed's and loss's rows."""
        parts, end = [], 0
        for (seed, loss), rows in self.candidates.groupby(["seed", "loss"]):
            backward = backward_of(loss, self.data[seed].class_counts, self.weight.device)
            parts.append(Part(seed, slice(end, end + len(rows)), backward))
            end += len(rows)
        return parts

    def batches(self, epoch: int) -> Iterable[Mapping[int, tuple[Tensor, Tensor]]]:
        """An epoch's batches by seed."""
        each = (data.train_batches(self.recipe.batch_size, seed, epoch) for seed, data in self.data.items())
        return (dict(zip(self.data, batches, strict=True)) for batches in zip(*each, strict=True))

    def project(self, weight: Tensor, when: str) -> None:
        """MaxNorm for the classifiers that are projected now, counted."""
        radius = self.radii[when][:, None]
        if not radius.isfinite().any():
            return
        self.projected += outside(row_norms(weight), radius).sum(1)
        self.checked += radius.isfinite().sum(1) * weight.shape[1]
        weight.copy_(max_norm_project(weight, radius))

    def fit(self) -> "Grid":
        """Train to the end of the recipe."""
        lr, parts = self.lr / self.recipe.lr, self.parts()
        learn(self.learned, self.recipe, self.batches, parts, lr, self.weight_decay, project=self.project)
        return self

    def classifier(self, row: int) -> nn.Linear:
        """The classifier of a candidate, by its row as it was given."""
        position = self.candidates.index.get_loc(row)
        return linear(*(values[position] for values in self.learned))

    @torch.no_grad()
    def table(self) -> pd.DataFrame:
        """The candidates, and beside each all, many, medium, few (percent; last epoch, plain) and MaxNorm's share.

        Accuracies are NaN where training diverged.
        """
        rows = []
        for seed, weight, bias in zip(self.candidates.seed, self.weight, self.bias, strict=True):
            data = self.data[seed]
            logits = torch.addmm(bias, data.test_features(self.recipe.epochs - 1, False), weight.T)
            rows.append(metrics.group_accuracy(logits.cpu().numpy(), data.test_labels, data.class_counts))
        projected = (self.projected / self.checked).cpu().numpy()  # NaN where nothing was checked
        found = pd.DataFrame(rows, index=self.candidates.index).assign(projected_share=projected)
        return pd.concat([self.candidates, found], axis=1).sort_index()

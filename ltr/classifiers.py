"""The second stage: the backbone is frozen, so its features are computed once for all classifiers, and
a whole grid of classifiers trains at once, as one batched matrix product a step.

Two modes. "paper" keeps the backbone in evaluation mode, as freezing suggests. "released" leaves it in
training mode as the released code does: batch-norm normalises by the batch's own statistics while its
running ones drift, pass by pass, and the test images see the drifted ones. In both, each epoch draws new
crops and flips; but of images that are streamed from their files the paper's mode takes the centre crops, once.

Several processes share the batches of an extraction, and each ends with all features, those of one process. A
pass in released mode is the exception: each makes it whole, since its drift goes from batch to batch.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ltr import distributed, metrics, runs
from ltr.datasets import LongTailed
from ltr.engine import Engine
from ltr.features import Features, Pass
from ltr.loader import Loader
from ltr.losses import Loss, build_loss, class_balanced_weights
from ltr.models import Network, Trunk
from ltr.regularizers import outside, row_norms
from ltr.streaming import StreamLoader, open_loader
from ltr.training import Recipe

MODES = ("released", "paper")
Gradient = Callable[[Tensor, Tensor], Tensor]


class FrozenFeatures(Features):
    """Features of a frozen backbone, extracted when first asked for.

    Args:
        model: the first stage's network, or its `Trunk`; its buffers change in released mode, so hand over one of
            its own.
        data: images.
        device: where features live.
        mode: one of `MODES`.
        batch_size, seed: of the draws. In released mode a batch's features depend on the whole batch.
        engine: whose precision the backbone runs in; features are float32.
        augmented: passes over augmented images, which the epochs take in turn, each in an order of its own; 0 for
            one pass over centre crops (whole images where they are small); None for a new one each epoch, and of
            streamed images for 0. The released mode has a new one each epoch.
    """

    def __init__(
        self,
        model: Network | Trunk,
        data: LongTailed,
        device: torch.device | str,
        mode: str = "paper",
        batch_size: int = 64,
        seed: int = 0,
        engine: Engine | None = None,
        augmented: int | None = None,
    ) -> None:
        super().__init__([], {}, data.class_counts, data.test.labels, batch_size, seed, mode)
        self.model, self.engine, self.world = model, engine or Engine(torch.device(device)), distributed.current()
        self.train = open_loader(data.train, data.mean, data.std, device, data.workers)
        self.test = open_loader(data.test, data.mean, data.std, device, data.workers)
        if augmented is None and isinstance(self.train, StreamLoader):
            augmented = 0
        self.augmented = None if mode == "released" else augmented

    def __len__(self) -> int:
        return len(self.train)

    @torch.no_grad()
    def extract(self, images: Tensor) -> Tensor:
        """Features float32 [B, D, ...] of normalised images."""
        with self.engine.autocast():
            return self.model.features(images).float()

    def extract_all(self, images: Loader | StreamLoader, flip: bool = False) -> Tensor:
        """Features [N, D, ...] of images as they are, in evaluation mode; several processes share them."""
        self.model.eval()
        sizes = len(images), images.test_batch_size
        batches = images.test_batches(flip, self.world.share(*sizes))
        return self.world.gather(torch.cat([self.extract(batch) for batch, _ in batches]), *sizes)

    def plain(self) -> tuple[Tensor, Tensor]:
        """Features [N, D, ...] and labels [N] of the training images, not cropped or flipped."""
        features = self.extract_all(self.train)
        return features, self.train.labels.to(features.device)

    @torch.no_grad()
    def extract_pass(self, epoch: int) -> Pass:
        """Run the training images through the backbone once."""
        drifts = self.mode == "released"
        self.model.train(drifts)
        if self.augmented == 0:
            return Pass(*self.plain())
        world, sizes = distributed.World() if drifts else self.world, (len(self.train), self.batch_size)
        part = world.share(*sizes)
        batches = self.train.train_batches(self.batch_size, self.seed, epoch, part)
        total = -(-len(part) // self.batch_size)
        progress = tqdm(batches, f"features, pass {epoch + 1}", total, leave=False, disable=None)
        found = zip(*((self.extract(images), labels) for images, labels in progress), strict=True)
        features, labels = (world.gather(torch.cat(rows), *sizes) for rows in found)
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}
        return Pass(features, labels, buffers)

    def up_to(self, epoch: int) -> Pass:
        """The pass of an epoch; earlier ones are made first, since batch-norm may drift through them."""
        wanted = epoch if self.augmented is None else epoch % max(self.augmented, 1)
        while len(self.passes) <= wanted:
            if self.passes:
                self.model.load_state_dict(self.passes[-1].buffers, strict=False)
            self.passes.append(self.extract_pass(len(self.passes)))
        return self.passes[wanted] if self.augmented is None else self.passes[wanted].shuffled(self.seed, epoch)

    @torch.no_grad()
    def test_features(self, epoch: int, flip: bool) -> Tensor:
        """Features [N, D, ...] of the test images, in evaluation mode, after an epoch's drift."""
        key = (epoch if self.mode == "released" else 0, flip)
        if key not in self.tested:
            if self.mode == "released":
                self.model.load_state_dict(self.up_to(epoch).buffers, strict=False)
            self.tested[key] = self.extract_all(self.test, flip)
        return self.tested[key]


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A classifier with copies of this weight [C, D] and bias [C]; nothing is drawn from the global generator."""
    classifier = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], device=weight.device)
    classifier.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
    return classifier


def copy_classifier(model: Network) -> nn.Linear:
    """A classifier of its own with the first stage's weights, where the second stage starts."""
    return linear(model.classifier.weight, model.classifier.bias)


def evaluate(classifier: nn.Linear, data: Features) -> runs.Outcome:
    """The outcome of a classifier that needs no training, as L2- or tau-normalised ones."""
    plain, flipped = (data.test_logits(classifier, 0, flip) for flip in (False, True))
    logits = {(selection, tta): flipped if tta == "flip" else plain for selection, tta in runs.VARIANTS}
    norms = row_norms(classifier.weight.detach()).cpu().numpy()[None]
    weights = {name: value.cpu() for name, value in classifier.state_dict().items()}
    return runs.Outcome(pd.DataFrame({"epoch": [0]}), norms, logits, data.test_labels, weights, {"seconds": 0.0})


def cross_entropy_gradient(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    r"""What `balanced_cross_entropy` of each of G classifiers sends back to its logits.

    .. math:: \frac{\alpha_y}{B} (\mathrm{softmax}(z) - 1_y)

    Args:
        logits: [B, G, C].
        labels: [B].
        weights: [C], alpha; ones for the plain cross-entropy.

    Returns:
        [B, G, C]. Autograd gives the same, by way of more tensors of this size: most of a grid's time.
    """
    gradient = torch.softmax(logits, 2)
    gradient.scatter_add_(2, labels[:, None, None].expand(-1, logits.shape[1], 1), -torch.ones_like(logits[:, :, :1]))
    return gradient.mul_((weights[labels] / len(labels))[:, None, None])


def loss_gradient(logits: Tensor, labels: Tensor, loss: Loss) -> Tensor:
    """The same for any loss, by autograd: of logits [B, G, C] and labels [B]."""
    rows = logits.flatten(0, 1).requires_grad_()  # [B * G, C]: every loss is a mean over its rows
    total = logits.shape[1] * loss(rows, labels.repeat_interleave(logits.shape[1]))
    return torch.autograd.grad(total, rows)[0].view_as(logits)


class Grid:
    """Linear classifiers that train side by side on the same batches, each by its own settings.

    Args:
        start: where all of them start.
        data: frozen features, of the recipe's seed; or for each value of a column `seed` its own.
        recipe: what they share: epochs, batch size, momentum, schedule, seed. Its loss, learning rate and
            weight decay give way to the grid's.
        settings: a row a classifier, columns loss, lr, weight_decay, max_norm (NaN for none) and
            max_norm_every, and seed where there are several.

    Attributes:
        settings: a row a classifier, those of one seed and loss side by side; the index is the caller's order.
        weight, bias: [G, C, D] and [G, C], in the order of these rows.
        fired, checked: rows that MaxNorm moved and looked at, [G].
    """

    def __init__(
        self,
        start: nn.Linear,
        data: Features | Mapping[int, Features],
        recipe: Recipe,
        settings: pd.DataFrame,
    ) -> None:
        self.data = data if isinstance(data, Mapping) else {recipe.seed: data}
        self.recipe = recipe
        self.settings = settings.reset_index(drop=True)
        if "seed" not in settings:
            self.settings["seed"] = recipe.seed
        # Rows of one seed and loss lie side by side, so that a part of the grid is a view.
        self.settings = self.settings.sort_values(["seed", "loss"], kind="stable")
        device, size = start.weight.device, len(settings)
        self.weight = start.weight.detach().expand(size, -1, -1).clone()
        self.bias = start.bias.detach().expand(size, -1).clone()
        self.velocity = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        self.lr, self.weight_decay, self.radius = (
            torch.tensor(self.settings[name].fillna(np.inf).to_numpy(np.float32), device=device)
            for name in ("lr", "weight_decay", "max_norm")
        )
        self.each_step = torch.tensor((self.settings.max_norm_every == "step").to_numpy(), device=device)
        self.fired, self.checked = torch.zeros(size, device=device), torch.zeros(size, device=device)
        self.limited = {
            every: bool((self.radius.isfinite() & (self.each_step == every)).any()) for every in (True, False)
        }
        self.parts = self.split(device)

    def split(self, device: torch.device) -> list[tuple[int, slice, Gradient]]:
        """Each part's seed, rows, and what its loss sends back to the logits."""
        parts, end = [], 0
        for (seed, name), rows in self.settings.groupby(["seed", "loss"]):
            counts = torch.as_tensor(self.data[seed].class_counts)
            if name in ("ce", "cb-ce"):
                weights = torch.ones(len(counts)) if name == "ce" else class_balanced_weights(counts)
                gradient = partial(cross_entropy_gradient, weights=weights.to(device))
            else:
                gradient = partial(loss_gradient, loss=build_loss(name, counts, device))
            parts.append((seed, slice(end, end := end + len(rows)), gradient))
        return parts

    def step(self, batches: Mapping[int, tuple[Tensor, Tensor]], schedule: float) -> None:
        """One update of all classifiers, by two matrix products a part.

        Args:
            batches: features [B, D] and labels [B] by seed.
            schedule: the learning rate's share of its first value.
        """
        for seed, rows, gradient in self.parts:
            features, labels = batches[seed]
            weight, bias = self.weight[rows], self.bias[rows]  # [G, C, D], [G, C]
            logits = torch.addmm(bias.flatten(), features, weight.flatten(0, 1).T)
            back = gradient(logits.view(len(labels), *bias.shape), labels)  # [B, G, C]
            self.update(weight, (back.flatten(1).T @ features).view_as(weight), rows, 0, schedule)
            self.update(bias, back.sum(0), rows, 1, schedule)
        self.project(each_step=True)

    def update(self, values: Tensor, gradient: Tensor, rows: slice, which: int, schedule: float) -> None:
        """SGD with momentum and weight decay, in place, each classifier by its own settings."""
        shape = (-1, *[1] * (values.dim() - 1))
        velocity = self.velocity[which][rows].mul_(self.recipe.momentum).add_(gradient)
        velocity.addcmul_(values, self.weight_decay[rows].view(shape))
        values.addcmul_(velocity, self.lr[rows].view(shape), value=-schedule)

    @torch.no_grad()
    def project(self, each_step: bool) -> None:
        """MaxNorm for the classifiers that are projected now; those without a radius have an infinite one."""
        if not self.limited[each_step]:
            return
        radius = torch.where(self.each_step == each_step, self.radius, torch.inf)[:, None]
        norms = torch.linalg.vector_norm(self.weight, dim=2)
        self.fired += outside(norms, radius).sum(1)
        self.checked += radius.isfinite().sum(1) * norms.shape[1]
        self.weight.mul_((radius / norms).masked_fill(norms <= radius, 1)[:, :, None])

    def fit(self) -> "Grid":
        """Train to the end of the recipe."""
        size = self.recipe.batch_size
        for epoch in tqdm(range(self.recipe.epochs), f"{len(self.settings)} classifiers", leave=False, disable=None):
            schedule = self.recipe.learning_rate(epoch) / self.recipe.lr
            for batches in zip(
                *(data.train_batches(size, seed, epoch) for seed, data in self.data.items()), strict=True
            ):
                self.step(dict(zip(self.data, batches, strict=True)), schedule)
            self.project(each_step=False)
        return self

    def classifier(self, row: int) -> nn.Linear:
        """The classifier of a row of the settings as they were given."""
        position = self.settings.index.get_loc(row)
        return linear(self.weight[position], self.bias[position])

    @torch.no_grad()
    def table(self) -> pd.DataFrame:
        """The settings, and beside each all, many, medium, few (percent; last epoch, plain) and MaxNorm's share."""
        rows = []
        for seed, weight, bias in zip(self.settings.seed, self.weight, self.bias, strict=True):
            data = self.data[seed]
            logits = torch.addmm(bias, data.test_features(self.recipe.epochs - 1, False), weight.T)
            rows.append(metrics.group_accuracy(logits.cpu().numpy(), data.test_labels, data.class_counts))
        rows = pd.DataFrame(rows, index=self.settings.index)
        fired = (self.fired / self.checked).cpu().numpy()  # NaN where nothing was checked
        return pd.concat([self.settings, rows], axis=1).assign(max_norm_fired=fired).sort_index()

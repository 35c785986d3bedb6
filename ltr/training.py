"""The one training loop of both stages.

`fit` knows a model, a source of batches and a recipe. The first stage trains a network on images
(`ImageData`); the second trains a linear classifier on frozen features (`classifiers.FrozenFeatures`).
Nothing in a step waits for the device; losses and hits are read once an epoch.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ltr import InputError, TrainingError, metrics, runs
from ltr.datasets import LongTailed
from ltr.loader import Loader
from ltr.losses import build_loss
from ltr.regularizers import MaxNorm, row_norms
from ltr.storage import load_checkpoint, save_checkpoint

SCHEDULES = ("cosine", "released")


@dataclass(frozen=True)
class Recipe:
    """How to train: SGD with momentum, cosine to zero, an epoch at a time.

    Attributes:
        loss: one of `losses.LOSSES`.
        weight_decay: lambda of the paper's equation 4, on all weights of the trained part.
        schedule: "cosine" anneals from lr towards 0; "released" steps before each epoch, as the
            released code does, so that the first epoch is already lowered and the last runs at 0.
        test_every: epochs between two tests; the last epoch is always tested.
    """

    epochs: int
    batch_size: int = 64
    lr: float = 0.01
    weight_decay: float = 0.0
    momentum: float = 0.9
    schedule: str = "cosine"
    loss: str = "ce"
    seed: int = 0
    test_every: int = 1

    def learning_rate(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0."""
        step = epoch + 1 if self.schedule == "released" else epoch
        return self.lr * (1 + math.cos(math.pi * step / self.epochs)) / 2


class Data(Protocol):
    """What `fit` trains on."""

    class_counts: np.ndarray  # [C]
    test_labels: np.ndarray  # [N]

    def train_batches(self, batch_size: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of one epoch (inputs, labels), on the device."""

    def test_logits(self, model: nn.Module, epoch: int, flip: bool = False) -> np.ndarray:
        """Logits [N, C] after an epoch; the mean of both images' logits with `flip`."""


@torch.inference_mode()
def predict(model: nn.Module, loader: Loader, flip: bool = False) -> np.ndarray:
    """Logits [N, C] in evaluation mode; with `flip` of the mirrored images."""
    was_training = model.training
    model.eval()
    logits = [model(images) for images, _ in loader.test_batches(flip=flip)]
    model.train(was_training)
    return torch.cat(logits).float().cpu().numpy()


class ImageData:
    """Images for the first stage, on the device."""

    def __init__(self, data: LongTailed, device: torch.device | str) -> None:
        self.class_counts, self.test_labels = data.class_counts, data.test.labels
        self.train = Loader(data.train.images, data.train.labels, data.mean, data.std, device)
        self.test = Loader(data.test.images, data.test.labels, data.mean, data.std, device)

    def train_batches(self, batch_size: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled, cropped, flipped images."""
        return self.train.train_batches(batch_size, seed, epoch)

    def test_logits(self, model: nn.Module, epoch: int, flip: bool = False) -> np.ndarray:
        """Logits [N, C]; the epoch plays no part here."""
        logits = predict(model, self.test)
        return (logits + predict(model, self.test, flip=True)) / 2 if flip else logits


class Trainer:
    """The state of one training and its steps; `fit` is the way in."""

    def __init__(self, model: nn.Module, data: Data, recipe: Recipe, max_norm: MaxNorm | None) -> None:
        self.model, self.data, self.recipe, self.max_norm = model, data, recipe, max_norm
        self.classifier: nn.Linear = getattr(model, "classifier", model)
        self.device = self.classifier.weight.device
        self.loss = build_loss(recipe.loss, torch.as_tensor(data.class_counts), self.device)
        self.optimizer = torch.optim.SGD(
            model.parameters(), recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self.norms = [self.current_norms()]
        self.best: dict[str, Any] = {"accuracy": -1.0, "epoch": 0, "model": {}}

    def current_norms(self) -> Tensor:
        """Row norms of the classifier, [C]."""
        return row_norms(self.classifier.weight.detach()).cpu()

    def train_epoch(self) -> dict[str, float]:
        """One pass over the training data; mean loss and accuracy of its batches."""
        lr = self.recipe.learning_rate(self.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()
        loss_sum, hits, images = torch.zeros((), device=self.device), torch.zeros((), device=self.device), 0
        for inputs, labels in self.data.train_batches(self.recipe.batch_size, self.recipe.seed, self.epoch):
            logits = self.model(inputs)
            loss = self.loss(logits, labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            if self.max_norm and self.max_norm.every == "step":
                self.max_norm.apply(self.classifier.weight)
            loss_sum += loss.detach() * len(labels)
            hits += (logits.detach().argmax(1) == labels).sum()
            images += len(labels)
        if self.max_norm and self.max_norm.every == "epoch":
            self.max_norm.apply(self.classifier.weight)
        return {"lr": lr, "train_loss": float(loss_sum) / images, "train_accuracy": 100 * float(hits) / images}

    def test_epoch(self) -> dict[str, float]:
        """Accuracy on the test data, and the weights kept where it is the best so far."""
        logits = self.data.test_logits(self.model, self.epoch)
        accuracy = metrics.group_accuracy(logits, self.data.test_labels, self.data.class_counts)
        if accuracy["all"] > self.best["accuracy"]:
            weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
            self.best = {"accuracy": accuracy["all"], "epoch": self.epoch, "model": weights}
        return {"test_accuracy": accuracy["all"], **{group: accuracy[group] for group in metrics.GROUPS}}

    def run_epoch(self) -> dict[str, float]:
        """Train and, where it is time, test; give the epoch's row.

        Raises:
            TrainingError: the loss is not finite.
        """
        start = time.perf_counter()
        row = {"epoch": self.epoch + 1, **self.train_epoch()}
        if not math.isfinite(row["train_loss"]):
            raise TrainingError(f"the loss is {row['train_loss']} in epoch {self.epoch + 1}: try a smaller --lr")
        last = self.epoch + 1 == self.recipe.epochs
        if last or (self.epoch + 1) % self.recipe.test_every == 0:
            row |= self.test_epoch()
        if self.max_norm:
            row["max_norm_fired"] = self.max_norm.fired_share
        self.norms.append(self.current_norms())
        row["seconds"] = time.perf_counter() - start
        self.history.append(row)
        self.epoch += 1
        return row

    def settings(self) -> dict[str, Any]:
        """What a checkpoint must agree with: the recipe, MaxNorm's settings and the shape of every weight."""
        ball = {"max_norm": self.max_norm.radius, "max_norm_every": self.max_norm.every} if self.max_norm else {}
        shapes = {name: list(value.shape) for name, value in self.model.state_dict().items()}
        return {**asdict(self.recipe), **ball, **shapes}

    def state(self) -> dict[str, Any]:
        """All that a resumed training needs."""
        max_norm = {"checked": self.max_norm.checked, "fired": self.max_norm.fired} if self.max_norm else None
        return {
            "settings": self.settings(),
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "max_norm": max_norm,
            "history": self.history,
            "norms": torch.stack(self.norms),
            "best": self.best,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            InputError: it belongs to another recipe, MaxNorm or network.
        """
        own, theirs = self.settings(), state["settings"]
        for field in sorted(own.keys() | theirs.keys()):
            if own.get(field) != theirs.get(field):
                difference = f"{field} is {theirs.get(field)} there and {own.get(field)} here"
                raise InputError(f"--out: the checkpoint is of another run: {difference}; --retrain starts anew")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.history, self.best = state["epoch"], state["history"], state["best"]
        self.norms = list(state["norms"].cpu())
        if self.max_norm:
            self.max_norm.checked, self.max_norm.fired = state["max_norm"]["checked"], state["max_norm"]["fired"]

    def outcome(self) -> runs.Outcome:
        """Logits of the last and of the best test epoch, plain and with the mirrored image."""
        final = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        logits = {}
        for selection, epoch, weights in (
            ("best_test", self.best["epoch"], self.best["model"]),
            ("last", self.recipe.epochs - 1, final),  # last, so that the model ends with these weights
        ):
            self.model.load_state_dict(weights)
            for tta in ("none", "flip"):
                logits[selection, tta] = self.data.test_logits(self.model, epoch, flip=tta == "flip")
        history = pd.DataFrame(self.history)
        extra: dict[str, Any] = {"best_test_epoch": self.best["epoch"] + 1, "seconds": float(history.seconds.sum())}
        if self.max_norm:
            extra |= {"max_norm": self.max_norm.radius, "max_norm_fired": self.max_norm.fired_share}
        return runs.Outcome(history, torch.stack(self.norms).numpy(), logits, self.data.test_labels, final, extra)


def fit(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    max_norm: MaxNorm | None = None,
    checkpoint: Path | None = None,
    label: str = "",
) -> runs.Outcome:
    """Train a model to the end of its recipe, going on from a checkpoint where there is one.

    Args:
        model: a network with `.classifier`, or a linear classifier; trained in place, it ends with the
            last epoch's weights.
        data: batches and test logits.
        recipe: what to do.
        max_norm: projects the classifier's rows after each step or epoch.
        checkpoint: file to resume from and to save to; None keeps nothing. It is saved after each epoch,
            less often where that would take more than a twentieth of the time.
        label: begins each printed line; "" prints nothing.

    Raises:
        TrainingError: the loss is not finite; the last checkpoint stays.
        InputError: the checkpoint is another run's, or damaged.
    """
    trainer = Trainer(model, data, recipe, max_norm)
    if checkpoint and (state := load_checkpoint(checkpoint, trainer.device)):
        trainer.restore(state)
        if label:
            print(f"{label}: resuming at epoch {trainer.epoch + 1} of {recipe.epochs}", flush=True)
    saved_at, save_seconds = -math.inf, 0.0
    remaining = tqdm(range(trainer.epoch, recipe.epochs), desc=label or None, unit="epoch", disable=None, leave=False)
    for _ in remaining:
        row = trainer.run_epoch()
        now = time.perf_counter()
        if checkpoint and (trainer.epoch == recipe.epochs or now - saved_at > 20 * save_seconds):
            save_checkpoint(checkpoint, trainer.state())
            saved_at = time.perf_counter()
            save_seconds = saved_at - now
        if label:
            print(f"{label} {progress_line(row, recipe.epochs)}", flush=True)
    return trainer.outcome()


def progress_line(row: dict[str, float], epochs: int) -> str:
    """One epoch's row of the history in words."""
    tested = f", test {row['test_accuracy']:5.2f} %" if "test_accuracy" in row else ""
    return (
        f"{row['epoch']:3d}/{epochs}: loss {row['train_loss']:.4f}, train {row['train_accuracy']:5.2f} %{tested}, "
        f"{row['seconds']:.1f} s"
    )

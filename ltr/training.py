"""The one training loop of both stages.

`fit` knows a model, a source of batches and a recipe. The first stage trains a network on images
(`ImageData`); the second trains a linear classifier on frozen features (`classifiers.FrozenFeatures`).
A step reads and writes the same tensors each time and waits for nothing, so that `engine.Engine` can replay
it; losses and hits are read once an epoch. `fit_together` runs several trainings side by side.

Where several processes train together (see `distributed`), each takes its share of every batch, and gradients are
the whole batch's mean, so that a step is the one that a single process would take. Batch-norm alone differs: it
normalises by the statistics of a process's share (with `Engine.sync_batch_norm` by the batch's), and its running
statistics become their mean over the processes at the end of each epoch, for the test and the checkpoint.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ltr import InputError, TrainingError, augment, distributed, metrics, runs
from ltr.datasets import LongTailed
from ltr.engine import Engine, Step, copy_into
from ltr.loader import Draws, Loader, pad
from ltr.losses import Deferred, build_loss
from ltr.regularizers import MaxNorm, row_norms
from ltr.storage import load_checkpoint, save_checkpoint
from ltr.streaming import StreamLoader, open_loader

SCHEDULES = ("cosine", "released")
LATER = ("warm_up", "nesterov")  # of a recipe only where used, so that earlier checkpoints are still its own


@dataclass(frozen=True)
class Recipe:
    """How to train: SGD with momentum, cosine to zero, an epoch at a time.

    Attributes:
        loss: one of `losses.LOSSES`.
        weight_decay: lambda of the paper's equation 4, on all weights of the trained part.
        schedule: "cosine" anneals from lr towards 0; "released" steps before each epoch, as the
            released code does, so that the first epoch is already lowered and the last runs at 0.
        test_every: epochs between two tests; the last epoch is always tested.
        warm_up: first epochs, in which the learning rate rises to lr in equal steps; the schedule has the others.
        nesterov: momentum looks ahead (Sutskever et al. 2013).
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
    warm_up: int = 0
    nesterov: bool = False

    def learning_rate(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0."""
        if epoch < self.warm_up:
            return self.lr * (epoch + 1) / self.warm_up
        step = epoch + 1 if self.schedule == "released" else epoch
        return self.lr * (1 + math.cos(math.pi * (step - self.warm_up) / (self.epochs - self.warm_up))) / 2


class Data(Protocol):
    """What `fit` trains on."""

    class_counts: np.ndarray  # [C]
    test_labels: np.ndarray  # [N]
    # `draws_on`, where there is one: the device of draws and positions, if not the model's. Its batches are then made
    # by the host, so that no step is captured. `close`, where there is one, is called when training ends, however.

    def __len__(self) -> int:
        """Training images."""

    def draw(self, batch_size: int, seed: int, epoch: int) -> Sequence[Tensor]:
        """What one epoch differs in from another, on the device, in the same shapes each time.

        The same in every process of a group.
        """

    def batch(self, drawn: Sequence[Tensor], positions: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and labels at these positions [B] of the epoch's order, without waiting for the device."""

    def test_logits(self, model: nn.Module, epoch: int, flip: bool = False) -> np.ndarray:
        """Logits [N, C] after an epoch; the mean of both images' logits with `flip`."""


@torch.inference_mode()
def predict(model: nn.Module, loader: Loader, flip: bool = False) -> np.ndarray:
    """Logits [N, C] in evaluation mode; with `flip` of the mirrored images. Several processes share the batches."""
    was_training, world = model.training, distributed.current()
    sizes = len(loader), loader.test_batch_size
    model.eval()
    logits = [model(images) for images, _ in loader.test_batches(flip, world.share(*sizes))]
    model.train(was_training)
    return world.gather(torch.cat(logits).float(), *sizes).cpu().numpy()


class ImageData:
    """Images for the first stage, on the device, or streamed to it from their files.

    Args:
        data: images.
        device: where they live.
        mix, augmentation, sampling: one of `augment.MIXES`, `AUGMENTATIONS` and `SAMPLINGS`. Without them images
            are cropped and flipped, and each is seen once an epoch.
    """

    def __init__(
        self,
        data: LongTailed,
        device: torch.device | str,
        mix: str = "none",
        augmentation: str = "none",
        sampling: str = "instance",
    ) -> None:
        self.class_counts, self.test_labels = data.class_counts, data.test.labels
        self.train = open_loader(data.train, data.mean, data.std, device, data.workers)
        self.test = open_loader(data.test, data.mean, data.std, device, data.workers)
        self.mix, self.augmentation, self.sampling = mix, augmentation.split("+"), sampling
        self.batch_size, self.draws_on = len(self.train), self.train.device
        if isinstance(self.train, StreamLoader):
            self.draws_on = torch.device("cpu")
            for name in self.settings:
                raise InputError(f"--{name}: must not be given for images that are streamed from their files")
        else:
            self.train.repeats, self.side = sampling != "instance", tuple(self.train.images.shape[1:3])

    def __len__(self) -> int:
        return len(self.train)

    @property
    def settings(self) -> dict[str, str]:
        """What is not as in the paper."""
        chosen = {"mix": self.mix, "augmentation": "+".join(self.augmentation), "sampling": self.sampling}
        return {name: value for name, value in chosen.items() if value not in ("none", "instance")}

    def draw(self, batch_size: int, seed: int, epoch: int) -> Sequence[Tensor]:
        """Order, crops and flips of an epoch; then what mixing and Cutout need."""
        if isinstance(self.train, StreamLoader):
            return self.train.draw(batch_size, seed, epoch)
        draws, device, self.batch_size = Draws.sample(len(self), seed, epoch), self.train.device, batch_size
        if self.train.repeats:
            draws = draws._replace(order=augment.sampled_order(self.train.labels.cpu(), self.sampling, seed, epoch))
        if "autoaugment" in self.augmentation:
            self.train.padded.copy_(pad(augment.autoaugment(self.train.images, seed, epoch)))
        further = []
        if self.mix != "none":
            further += augment.draw_mixing(self.mix, -(-len(self) // batch_size), self.side, seed, epoch)
        if "cutout" in self.augmentation:
            further.append(augment.draw_holes(len(self), self.side, seed, epoch))
        return [*draws.to(device), *(values.to(device) for values in further)] if further else draws.to(device)

    def batch(self, drawn: Sequence[Tensor], positions: Tensor) -> tuple[Tensor, Tensor | augment.Mixed]:
        """Cropped, flipped, normalised images and their labels, mixed where that was asked."""
        if isinstance(self.train, StreamLoader):
            return self.train.batch(drawn, positions)
        images, labels = self.single(drawn, positions)
        if self.mix == "none":
            return images, labels
        step = positions // self.batch_size
        start = step * self.batch_size  # the batch in reverse order: images lie in a random order anyway
        partner = 2 * start + (len(self) - start).clamp(max=self.batch_size) - 1 - positions
        others, theirs = self.single(drawn, partner)
        share, boxes = drawn[3][step], drawn[4][step]
        return augment.mix(self.mix, images, others, share, boxes), augment.Mixed(labels, theirs, share)

    def single(self, drawn: Sequence[Tensor], positions: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels at these positions of the order, not mixed."""
        images, labels = self.train.batch(drawn[:3], positions)
        if "cutout" in self.augmentation:
            images = augment.cutout(images, drawn[-1][positions])
        return images, labels

    def test_logits(self, model: nn.Module, epoch: int, flip: bool = False) -> np.ndarray:
        """Logits [N, C]; the epoch plays no part here."""
        logits = predict(model, self.test)
        return (logits + predict(model, self.test, flip=True)) / 2 if flip else logits

    def close(self) -> None:
        """End the processes that read ahead, if any."""
        if isinstance(self.train, StreamLoader):
            self.train.close()


class Trainer:
    """One training: its state, its steps, its checkpoint; `fit` and `fit_together` are the ways in.

    Args: see `fit`.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        recipe: Recipe,
        max_norm: MaxNorm | None = None,
        checkpoint: Path | None = None,
        label: str = "",
        engine: Engine | None = None,
    ) -> None:
        self.model, self.data, self.recipe, self.checkpoint, self.label = model, data, recipe, checkpoint, label
        self.classifier: nn.Linear = getattr(model, "classifier", model)
        self.device = self.classifier.weight.device
        self.engine, self.world = engine or Engine(self.device), distributed.current()
        if self.engine.sync_batch_norm:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place, with the same weights
        self.draws_on = getattr(data, "draws_on", self.device)
        if self.draws_on.type != self.device.type:
            self.engine = replace(self.engine, graph=False)
        self.max_norm = max_norm.to(self.device) if max_norm else None
        self.loss = build_loss(recipe.loss, torch.as_tensor(data.class_counts), self.device)
        self.optimizer = self.make_optimizer()
        self.epoch, self.saved_at, self.save_seconds, self.prepare_seconds = 0, -math.inf, 0.0, 0.0
        self.history: list[dict[str, float]] = []
        self.norms = [self.current_norms()]
        self.best: dict[str, Any] = {"accuracy": -1.0, "epoch": 0, "model": {}}
        self.drawn: Sequence[Tensor] = ()
        self.position = torch.zeros((), dtype=torch.int64, device=self.draws_on)
        self.sums = torch.zeros(2, device=self.device)  # loss times images, hits
        self.steps: dict[int, Step] = {}
        self.stream: torch.cuda.Stream | None = None

    @property
    def learned(self) -> list[nn.Parameter]:
        """The weights that learn."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def make_optimizer(self) -> torch.optim.SGD:
        """SGD whose momentum stays in place; on CUDA one fused kernel, with its learning rate on the device."""
        cuda, recipe = self.device.type == "cuda", self.recipe
        optimizer = torch.optim.SGD(
            self.learned,
            recipe.lr,
            recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
            fused=cuda or None,
        )
        if cuda:  # a captured step would keep a number for ever
            optimizer.param_groups[0]["lr"] = torch.tensor(recipe.lr, device=self.device)
        if recipe.momentum:  # SGD would start from a copy of the first gradient, which zeros lead to as well
            for parameter in self.learned:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer

    def current_norms(self) -> Tensor:
        """Row norms of the classifier, [C]."""
        return row_norms(self.classifier.weight.detach()).cpu()

    def step(self, forward: Callable[[Tensor], Tensor], size: int) -> None:
        """Train on the next `size` images, or on this process's share of them."""
        share = self.world.share(size)
        positions = self.position + torch.arange(share.start, share.stop, device=self.draws_on)
        inputs, labels = self.data.batch(self.drawn, positions)
        with self.engine.autocast():
            logits = forward(inputs)
        logits = logits.float()
        loss = self.loss_of(logits, labels) if share else logits.sum()  # no images: zero, and so are its gradients
        self.optimizer.zero_grad(set_to_none=True)
        if self.world.size > 1:  # the processes' mean of this is the batch's mean, whatever their shares
            (loss * (len(share) * self.world.size / size)).backward()
        else:
            loss.backward()
        self.optimizer.step()
        if self.max_norm and self.max_norm.every == "step":
            self.max_norm.apply(self.classifier.weight)
        labels = labels.first if isinstance(labels, augment.Mixed) else labels
        hits = (logits.detach().argmax(1) == labels).sum()
        self.sums += torch.stack([loss.detach() * len(share), hits])
        self.position += size

    def loss_of(self, logits: Tensor, labels: Tensor | augment.Mixed) -> Tensor:
        """The loss of a batch; of mixed images that of both labels, by their shares."""
        if not isinstance(labels, augment.Mixed):
            return self.loss(logits, labels)
        share = labels.share.mean()  # the same for a whole batch
        return share * self.loss(logits, labels.first) + (1 - share) * self.loss(logits, labels.second)

    @property
    def momentum(self) -> list[Tensor]:
        """Momentum of every weight, in place; none where there is no momentum."""
        return [state["momentum_buffer"] for state in self.optimizer.state.values()]

    def state_tensors(self) -> list[Tensor]:
        """Every tensor that a step changes."""
        counts = [self.max_norm.checked, self.max_norm.fired] if self.max_norm else []
        return [*self.model.state_dict().values(), *self.momentum, *counts, self.position, self.sums]

    @property
    def sizes(self) -> list[int]:
        """Images of each step of an epoch; the last one may be short."""
        full, rest = divmod(len(self.data), self.recipe.batch_size)
        return [self.recipe.batch_size] * full + [rest] * bool(rest)

    def prepare(self) -> None:
        """Compile and capture, once everything is restored; the time it takes is not an epoch's."""
        start = time.perf_counter()
        fast = self.engine.compile or self.engine.graph
        self.stream = self.engine.stream()
        if self.stream:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        self.begin_epoch()

        def steps(forward: Callable[[Tensor], Tensor]) -> dict[int, Step]:
            forward = self.world.train_together(forward)
            return {size: partial(self.step, forward, size) for size in sorted(set(self.sizes), reverse=True)}

        with self.on_stream():
            self.steps, self.engine = self.engine.prepare(self.model, steps, self.state_tensors(), self.stream)
            if self.world.size > 1:  # gradients are packed anew after the first step: a resumed run does so here too
                self.engine.capture(self.steps, self.state_tensors(), self.stream)
        if fast:
            self.prepare_seconds = time.perf_counter() - start

    def on_stream(self) -> contextlib.AbstractContextManager:
        """The context in which all work of this training is queued."""
        return torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext()

    def begin_epoch(self) -> None:
        """Set the learning rate, draw the epoch, and start counting."""
        self.started, recipe = time.perf_counter(), self.recipe
        with self.on_stream():
            for group in self.optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(recipe.learning_rate(self.epoch))
                else:
                    group["lr"] = recipe.learning_rate(self.epoch)
            if isinstance(self.loss, Deferred):
                self.loss.begin_epoch(self.epoch / recipe.epochs)
            drawn = self.data.draw(recipe.batch_size, recipe.seed, self.epoch)
            self.drawn = self.drawn or [torch.empty_like(values) for values in drawn]
            copy_into([*self.drawn, self.position, self.sums], [*drawn, torch.zeros(()), torch.zeros(2)])
        self.model.train()

    def train_steps(self) -> Iterator[None]:
        """Queue the epoch's steps, one each time it is asked."""
        for size in self.sizes:
            with self.on_stream():
                self.steps[size]()
            yield

    def end_epoch(self) -> dict[str, float]:
        """Wait for the steps and, where it is time, test; give the epoch's row.

        Raises:
            TrainingError: the loss is not finite.
        """
        with self.on_stream():
            if self.max_norm and self.max_norm.every == "epoch":
                self.max_norm.apply(self.classifier.weight)
            loss, hits = (self.world.total(self.sums.double()) / len(self.data)).tolist()
            self.world.average_([values for values in self.model.buffers() if values.is_floating_point()])
            epoch, lr = self.epoch + 1, self.recipe.learning_rate(self.epoch)
            row = {"epoch": epoch, "lr": lr, "train_loss": loss, "train_accuracy": 100 * hits}
            if not math.isfinite(loss):
                raise TrainingError(f"the loss is {loss} in epoch {epoch}: try a smaller --lr")
            if epoch == self.recipe.epochs or epoch % self.recipe.test_every == 0:
                row |= self.test_epoch()
            if self.max_norm:
                row["max_norm_fired"] = self.max_norm.fired_share
            self.norms.append(self.current_norms())
        row["seconds"] = time.perf_counter() - self.started
        self.history.append(row)
        self.epoch += 1
        return row

    def test_epoch(self) -> dict[str, float]:
        """Accuracy on the test data, and the weights kept where it is the best so far."""
        logits = self.test_logits(self.epoch)
        accuracy = metrics.group_accuracy(logits, self.data.test_labels, self.data.class_counts)
        if accuracy["all"] > self.best["accuracy"]:
            weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
            self.best = {"accuracy": accuracy["all"], "epoch": self.epoch, "model": weights}
        return {"test_accuracy": accuracy["all"], **{group: accuracy[group] for group in metrics.GROUPS}}

    def test_logits(self, epoch: int, flip: bool = False) -> np.ndarray:
        """Logits [N, C] of the test data, in the precision of training."""
        with self.engine.autocast():
            return self.data.test_logits(self.model, epoch, flip)

    def settings(self) -> dict[str, Any]:
        """What a checkpoint must agree with: recipe, MaxNorm, the shape of every weight, and several processes."""
        ball = {"max_norm": self.max_norm.radius, "max_norm_every": self.max_norm.every} if self.max_norm else {}
        if self.max_norm and type(self.max_norm) is not MaxNorm:
            ball["constraint"] = type(self.max_norm).__name__
        shapes = {name: list(value.shape) for name, value in self.model.state_dict().items()}
        ball |= getattr(self.data, "settings", {})
        together = {"processes": self.world.size} if self.world.size > 1 else {}
        recipe = {name: value for name, value in asdict(self.recipe).items() if name not in LATER or value}
        return {**recipe, **ball, **shapes, **together}

    def state(self) -> dict[str, Any]:
        """All that a resumed training needs."""
        max_norm = {"checked": int(self.max_norm.checked), "fired": int(self.max_norm.fired)} if self.max_norm else None
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
        # Momentum alone: the optimizer's options are this device's, and a captured step needs its tensors in place.
        saved = [entry["momentum_buffer"] for entry in state["optimizer"]["state"].values()]
        copy_into(self.momentum, saved)
        self.epoch, self.history, self.best = state["epoch"], state["history"], state["best"]
        self.norms = list(state["norms"].cpu())
        if self.max_norm:
            self.max_norm.checked.fill_(state["max_norm"]["checked"])
            self.max_norm.fired.fill_(state["max_norm"]["fired"])

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
                logits[selection, tta] = self.test_logits(epoch, flip=tta == "flip")
        history = pd.DataFrame(self.history)
        extra: dict[str, Any] = {"best_test_epoch": self.best["epoch"] + 1, "seconds": float(history.seconds.sum())}
        extra |= {"engine": str(self.engine), "prepare_seconds": self.prepare_seconds}
        if self.max_norm:
            extra |= {"max_norm": self.max_norm.radius, "max_norm_fired": self.max_norm.fired_share}
        return runs.Outcome(history, torch.stack(self.norms).numpy(), logits, self.data.test_labels, final, extra)

    def resume(self) -> None:
        """Go on from the checkpoint, where there is one."""
        if self.checkpoint and (state := load_checkpoint(self.checkpoint, self.device)):
            self.restore(state)
            self.say(f": resuming at epoch {self.epoch + 1} of {self.recipe.epochs}")

    def save_when_due(self) -> None:
        """Save after each epoch, less often where that would take more than a twentieth of the time."""
        now = time.perf_counter()
        if self.world.leads and self.checkpoint and (self.finished or now - self.saved_at > 20 * self.save_seconds):
            save_checkpoint(self.checkpoint, self.state())
            self.saved_at = time.perf_counter()
            self.save_seconds = self.saved_at - now

    @property
    def finished(self) -> bool:
        """True after the last epoch."""
        return self.epoch == self.recipe.epochs

    def say(self, text: str) -> None:
        """Print a line that begins with the label; nothing without one."""
        if self.label and self.world.leads:
            print(self.label + text, flush=True)


def fit(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    max_norm: MaxNorm | None = None,
    checkpoint: Path | None = None,
    label: str = "",
    engine: Engine | None = None,
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
        engine: how to run the steps; None runs them plainly, where the model is.

    Raises:
        TrainingError: the loss is not finite; the last checkpoint stays.
        InputError: the checkpoint is another run's, or damaged.
    """
    return fit_together([Trainer(model, data, recipe, max_norm, checkpoint, label, engine)])[0]


def train_epoch(trainers: Sequence[Trainer]) -> None:
    """Queue an epoch's steps of several trainings in turn."""
    for trainer in trainers:
        trainer.begin_epoch()
    for _ in zip_longest(*(trainer.train_steps() for trainer in trainers)):
        pass


def fit_together(trainers: Sequence[Trainer]) -> list[runs.Outcome]:
    """Train several models side by side, each as `fit` would train it alone.

    Their steps take turns. On CUDA each has a graph and a stream of its own, so that small networks share
    the GPU; on a CPU there is nothing to gain.

    Args:
        trainers: of one engine.

    Raises: see `fit`; one that fails stops all, each with its last checkpoint.
    """
    with trainers[0].engine.backend(), contextlib.ExitStack() as at_the_end:
        for trainer in trainers:
            at_the_end.callback(getattr(trainer.data, "close", lambda: None))
            trainer.resume()
        running = [trainer for trainer in trainers if not trainer.finished]
        for trainer in running:
            trainer.prepare()
            if trainer.prepare_seconds:
                trainer.say(f": {trainer.engine}, ready after {trainer.prepare_seconds:.1f} s")
        first = min((trainer.epoch for trainer in running), default=0)
        total = max(trainer.recipe.epochs for trainer in trainers)
        label = trainers[0].label if len(trainers) == 1 else f"{len(trainers)} trainings"
        for _ in tqdm(range(first, total), label or None, unit="epoch", disable=None, leave=False):
            train_epoch(running)
            for trainer in running:
                row = trainer.end_epoch()
                trainer.save_when_due()
                trainer.say(" " + progress_line(row, trainer.recipe.epochs))
            running = [trainer for trainer in running if not trainer.finished]
        return [trainer.outcome() for trainer in trainers]


def progress_line(row: dict[str, float], epochs: int) -> str:
    """One epoch's row of the history in words."""
    tested = f", test {row['test_accuracy']:5.2f} %" if "test_accuracy" in row else ""
    return (
        f"{row['epoch']:3d}/{epochs}: loss {row['train_loss']:.4f}, train {row['train_accuracy']:5.2f} %{tested}, "
        f"{row['seconds']:.1f} s"
    )

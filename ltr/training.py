"""The one training loop of both stages.

`fit` knows a model, a source of batches and a recipe. The first stage trains a network on images
(`first_stage.ImageData`); the second trains a linear classifier on frozen features (`second_stage.FrozenFeatures`).
What one update does stands in `TrainingStep.update`. A step reads and writes the same tensors each time and waits for
nothing, so that `engine.Engine` can replay it; losses and hits are read once an epoch. `Trainer` leads through the
epochs; `fit_together` runs several trainings side by side.

Where several processes train together (see `distributed`), each takes its shard of every batch, and gradients are
the whole batch's mean, so that a step is the one that a single process would take. Batch-norm alone differs: it
normalises by the statistics of a process's shard (with `Engine.sync_batch_norm` by the batch's), and its running
statistics become their mean over the processes at the end of each epoch, for the test and the checkpoint.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, zip_longest
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from tqdm import tqdm

from ltr import metrics
from ltr.errors import InputError, TrainingError
from ltr.losses import Deferred, Mixed, build_loss
from ltr.models import CosineClassifier
from ltr.recipes import EMA_DECAY, SWA_START, Recipe
from ltr.regularizers import Constraint, row_norms
from ltr.runtime import distributed
from ltr.runtime.checkpoint import Checkpoints, check_same
from ltr.runtime.engine import Engine, Step, copy_into, on_stream


class Data(Protocol):
    """What `fit` trains on."""

    class_counts: np.ndarray  # [C]
    test_labels: np.ndarray  # [N]
    # Where draws and positions live. On another kind of device than the model's, batches are made by the host, so that
    # no step is captured.
    draws_on: torch.device

    def __len__(self) -> int:
        """Training images."""

    def describe_draws(self) -> dict[str, Any]:
        """What a checkpoint must agree with, beside recipe and network: nothing, unless a class says more."""
        return {}

    def draw(self, batch_size: int, seed: int, epoch: int) -> Sequence[Tensor]:
        """What one epoch differs in from another, on the device, in the same shapes each time.

        The same in every process of a group.
        """

    def batch(self, drawn: Sequence[Tensor], positions: Tensor) -> tuple[Tensor, Tensor | Mixed]:
        """Inputs and labels at these positions [B] of the epoch's order, without waiting for the device."""

    def test_logits(self, model: nn.Module, epoch: int, flip: bool = False) -> np.ndarray:
        """Logits [N, C] after an epoch; the mean of both images' logits with `flip`."""

    def close(self) -> None:
        """Training ends, however: let go what reads ahead."""


@dataclass
class Outcome:
    """What training gives back.

    Attributes:
        history: a row an epoch.
        norms: float32 [E + 1, C], the classifier's row norms before the first and after each epoch.
        logits: [N, C] for each (selection, tta) of `metrics.VARIANTS`.
        labels: [N] of the test images.
        weights: state dict to keep.
        extra: further entries of summary.json.
        averaged: that of the averaged network, where the recipe has one.
    """

    history: pd.DataFrame
    norms: np.ndarray
    logits: dict[tuple[str, str], np.ndarray]
    labels: np.ndarray
    weights: dict[str, torch.Tensor]
    extra: dict[str, Any]
    averaged: "Outcome | None" = None


def sgd(model: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.SGD:
    """SGD whose momentum stays in place; on CUDA one fused kernel, with its learning rate on the device."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    told = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay, "nesterov": recipe.nesterov}
    optimizer = torch.optim.SGD(learned, recipe.lr, fused=device.type == "cuda" or None, **told)
    if device.type == "cuda":  # a captured step would keep a number for ever
        optimizer.param_groups[0]["lr"] = torch.tensor(recipe.lr, device=device)
    if recipe.momentum:  # SGD would start from a copy of the first gradient, which zeros lead to as well
        for parameter in learned:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


@contextlib.contextmanager
def perturbed(model: nn.Module, rho: float) -> Iterator[None]:
    r"""A model whose weights are moved up their gradient; afterwards they, and batch-norm's statistics, are as before.

    .. math:: w + \rho \frac{g}{\lVert g \rVert_2}

    Args:
        model: its weights have their gradients; the norm is over all of them together.
        rho: how far, in the unit of the weights.

    Source: Foret et al. 2021 (sharpness-aware minimisation, SAM), equation 2.
    """
    learned = [parameter for parameter in model.parameters() if parameter.grad is not None]
    kept = [*learned, *model.buffers()]
    before = [values.detach().clone() for values in kept]
    with torch.no_grad():
        norm = torch.stack([parameter.grad.norm() for parameter in learned]).norm()
        for parameter in learned:
            parameter.add_(parameter.grad * (rho / (norm + 1e-12)))
    try:
        yield
    finally:
        with torch.no_grad():
            copy_into(kept, before)


@contextlib.contextmanager
def one_image_refused() -> Iterator[None]:
    """Say in a line what batch-norm says of a step of one image whose maps are a single pixel."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        what = "must leave no step of a single image, which batch-norm cannot normalise where maps are a single pixel"
        raise InputError(f"--batch-size: {what}") from error


def host_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights, copied to the host."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def keyed(**selections: Mapping[str, np.ndarray]) -> dict[tuple[str, str], np.ndarray]:
    """Logits by selection and tta, as `metrics.VARIANTS` has them."""
    return {(selection, tta): logits for selection, by_tta in selections.items() for tta, logits in by_tta.items()}


def engines_told(engines: Sequence[str]) -> dict[str, Any]:
    """For summary.json, how epochs were trained: the first engine, and later ones where training went on elsewhere."""
    first, *later = engines
    return {"engine": first} | ({"later_engines": later} if later else {})


class TrainingStep:
    """One update of the weights: what it needs, what it does, and what it counts.

    Attributes:
        drawn: the epoch's draws; every epoch's are copied into the same tensors.
        position: where in the epoch's order the next step begins.
        sums: loss times images, and hits, since the epoch began.
    """

    def __init__(
        self, model: nn.Module, data: Data, recipe: Recipe, constraint: Constraint | None, engine: Engine | None
    ) -> None:
        self.model, self.data, self.recipe = model, data, recipe
        self.classifier: nn.Linear = getattr(model, "classifier", model)
        self.device = self.classifier.weight.device
        self.group = distributed.current()
        self.engine = engine or Engine(self.device)
        if self.engine.sync_batch_norm:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place, with the same weights
        if data.draws_on.type != self.device.type:
            self.engine = replace(self.engine, graph=False)
        self.constraint = constraint.to(self.device) if constraint else None
        scale = {"scale": self.classifier.scale} if isinstance(self.classifier, CosineClassifier) else {}
        self.loss = build_loss(recipe.loss, torch.as_tensor(data.class_counts), self.device, **scale)
        self.optimizer = sgd(model, recipe, self.device)
        self.drawn: Sequence[Tensor] = ()
        self.position = torch.zeros((), dtype=torch.int64, device=data.draws_on)
        self.sums = torch.zeros(2, device=self.device)

    def update(self, forward: Callable[[Tensor], Tensor], size: int) -> None:
        """Train on the next `size` images, or on this process's shard of them."""
        shard = self.group.shard(size)
        positions = self.position + torch.arange(shard.start, shard.stop, device=self.data.draws_on)
        inputs, labels = self.data.batch(self.drawn, positions)
        loss, logits = self.backward(forward, inputs, labels, size)
        if self.recipe.sam_rho:  # the gradient from where the loss is highest nearby, in the place of this one
            with perturbed(self.model, self.recipe.sam_rho):
                self.backward(forward, inputs, labels, size)
        self.optimizer.step()  # adds weight decay to the gradient, then momentum
        self.project("step")
        self.count(loss, logits, labels, size)

    def backward(
        self, forward: Callable[[Tensor], Tensor], inputs: Tensor, labels: Tensor | Mixed, size: int
    ) -> tuple[Tensor, Tensor]:
        """Give the weights the gradient of a batch's loss; the loss, and the logits [B, C]."""
        with self.engine.autocast(), one_image_refused():
            logits = forward(inputs)  # of a body that may run in bfloat16
        logits = logits.float()
        loss = self.loss_of(logits, labels, size)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return loss, logits

    def loss_of(self, logits: Tensor, labels: Tensor | Mixed, size: int) -> Tensor:
        """The loss of a batch; of mixed images that of both labels, by their shares."""
        if not isinstance(labels, Mixed):
            return self.mean_loss(logits, labels, size)
        share = labels.share.mean() if len(labels.share) else 1.0  # the same for a whole batch
        first, second = (self.mean_loss(logits, each, size) for each in (labels.first, labels.second))
        return share * first + (1 - share) * second

    def mean_loss(self, logits: Tensor, labels: Tensor, size: int) -> Tensor:
        """The loss of a batch of `size`; of a shard of it, scaled so that the processes' mean is the batch's."""
        loss = self.loss(logits, labels) if len(labels) else logits.sum()  # no images: zero, and so are its gradients
        if self.group.size == 1:
            return loss
        if isinstance(self.loss, Deferred):  # a mean by class weights, of which each shard has another sum
            weight = self.loss.weight_of(labels)
            return loss * (weight * self.group.size / self.group.sum(weight))
        return loss * (len(labels) * self.group.size / size)

    def project(self, when: str) -> None:
        """Bring the classifier's rows back to their constraint, if it is held now."""
        if self.constraint and self.constraint.every == when:
            self.constraint.apply(self.classifier.weight)

    def count(self, loss: Tensor, logits: Tensor, labels: Tensor | Mixed, size: int) -> None:
        """Add a step's loss and hits to the epoch's, and move on in its order."""
        labels = labels.first if isinstance(labels, Mixed) else labels
        hits = (logits.detach().argmax(1) == labels).sum()
        self.sums += torch.stack([loss.detach() * (size / self.group.size), hits])
        self.position += size

    def inputs(self, epoch: int) -> Iterator[Tensor]:
        """The inputs of an epoch's steps, or this process's shards of them, one after another."""
        drawn = self.data.draw(self.recipe.batch_size, self.recipe.seed, epoch)
        for start, size in zip(accumulate(self.sizes, initial=0), self.sizes, strict=False):
            if shard := self.group.shard(size):
                positions = torch.arange(start + shard.start, start + shard.stop, device=self.data.draws_on)
                yield self.data.batch(drawn, positions)[0]

    def begin_epoch(self, epoch: int) -> None:
        """Set the learning rate, draw the epoch, and start counting."""
        recipe = self.recipe
        rate = recipe.learning_rate(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else rate
        if isinstance(self.loss, Deferred):
            self.loss.begin_epoch(epoch / recipe.epochs)
        drawn = self.data.draw(recipe.batch_size, recipe.seed, epoch)
        self.drawn = self.drawn or [torch.empty_like(values) for values in drawn]
        copy_into([*self.drawn, self.position, self.sums], [*drawn, torch.zeros(()), torch.zeros(2)])
        self.model.train()

    def steps(self, forward: Callable[[Tensor], Tensor]) -> dict[int, Step]:
        """The step of each size that an epoch has, the largest first. Together."""
        forward = self.group.data_parallel(forward)
        return {size: partial(self.update, forward, size) for size in sorted(set(self.sizes), reverse=True)}

    def norms(self) -> Tensor:
        """Row norms of the classifier, [C], on the CPU."""
        return row_norms(self.classifier.weight.detach()).cpu()

    @property
    def sizes(self) -> list[int]:
        """Images of each step of an epoch; the last one may be short."""
        size, images = self.recipe.batch_size, len(self.data)
        return [min(size, images - start) for start in range(0, images, size)]

    @property
    def momentum(self) -> list[Tensor]:
        """Momentum of every weight, in place; none where there is no momentum."""
        return [state["momentum_buffer"] for state in self.optimizer.state.values()]

    def describe(self) -> dict[str, Any]:
        """What a checkpoint must agree with: recipe, constraint, draws, every weight's shape, several processes."""
        constraint = self.constraint.describe() if self.constraint else {}
        shapes = {name: list(value.shape) for name, value in self.model.state_dict().items()}
        together = {"processes": self.group.size} if self.group.size > 1 else {}
        return {**self.recipe.describe(), **constraint, **self.data.describe_draws(), **shapes, **together}

    @property
    def changed(self) -> list[Tensor]:
        """Every tensor that a step changes."""
        counts = [self.constraint.checked, self.constraint.projected] if self.constraint else []
        return [*self.model.state_dict().values(), *self.momentum, *counts, self.position, self.sums]


class Evaluation:
    """A model's accuracy on the test data, in the precision of its training, and its weights where that was best.

    Attributes:
        best: accuracy in percent, epoch counted from 0, and state dict of the best test so far.
    """

    def __init__(self, step: TrainingStep) -> None:
        self.step, self.model, self.data = step, step.model, step.data
        self.best: dict[str, Any] = {"accuracy": -1.0, "epoch": 0, "model": {}}

    def logits(self, epoch: int, flip: bool = False, model: nn.Module | None = None) -> np.ndarray:
        """Logits [N, C] of the test data, of this or another model.

        Raises:
            TrainingError: one is not finite; weights can be finite all the same.
        """
        with self.step.engine.autocast():
            logits = self.data.test_logits(model or self.model, epoch, flip)
        if not np.isfinite(logits).all():
            raise TrainingError(f"logits of the test are not finite after epoch {epoch + 1}: try a smaller --lr")
        return logits

    def both(self, epoch: int, model: nn.Module | None = None) -> dict[str, np.ndarray]:
        """Logits, plain and with the mirrored image, by tta."""
        return {tta: self.logits(epoch, tta == "flip", model) for tta in ("none", "flip")}

    def after(self, epoch: int) -> dict[str, float]:
        """Accuracy after an epoch; its weights are kept where it is the best so far."""
        accuracy = metrics.group_accuracy(self.logits(epoch), self.data.test_labels, self.data.class_counts)
        if accuracy["all"] > self.best["accuracy"]:
            weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
            self.best = {"accuracy": accuracy["all"], "epoch": epoch, "model": weights}
        return {"test_accuracy": accuracy["all"], **{group: accuracy[group] for group in metrics.GROUPS}}

    def all_logits(self, last: int, weights: dict[str, Tensor]) -> dict[tuple[str, str], np.ndarray]:
        """Logits of the last and of the best test epoch, plain and with the mirrored image, see `metrics.VARIANTS`."""
        best = None
        if self.best["epoch"] != last:
            self.model.load_state_dict(self.best["model"])
            best = self.both(self.best["epoch"])
        self.model.load_state_dict(weights)  # with which the model ends
        final = self.both(last)
        return keyed(best_test=best or final, last=final)


class Average:
    """A second network beside the trained one, its weights the recipe's mean of those that training goes through.

    Attributes:
        network: the mean so far; its batch-norm statistics are not yet its own.

    Source: Izmailov et al. 2018 (stochastic weight averaging, algorithm 1).
    """

    def __init__(self, step: TrainingStep) -> None:
        self.step = step
        moving = get_ema_multi_avg_fn(EMA_DECAY) if step.recipe.average == "ema" else None
        self.network = AveragedModel(step.model, multi_avg_fn=moving)

    def after(self, when: str, epoch: int) -> None:
        """Take in the weights after a "step", or an "epoch", of the `epoch`-th from 1, where the mean is of these."""
        recipe = self.step.recipe
        late = epoch > SWA_START * recipe.epochs
        if (recipe.average, when) == ("ema", "step") or ((recipe.average, when) == ("swa", "epoch") and late):
            self.network.update_parameters(self.step.model)

    def outcome(self, trained: Outcome, test: Evaluation) -> Outcome:
        """What the averaged network gives, its batch-norm statistics those of one further epoch's inputs."""
        network, epochs = self.network.module, self.step.recipe.epochs
        with self.step.engine.autocast():
            update_bn(self.step.inputs(epochs), network)
        self.step.group.average_([values for values in network.buffers() if values.is_floating_point()])
        logits = test.both(epochs - 1, network)
        own = row_norms(getattr(network, "classifier", network).weight.detach()).cpu().numpy()
        norms = np.concatenate([trained.norms[:-1], own[None]])
        extra = {**trained.extra, "best_test_epoch": epochs}  # it is tested once, at the end
        logits = keyed(last=logits, best_test=logits)
        return replace(trained, norms=norms, logits=logits, weights=host_state(network), extra=extra)


@dataclass(eq=False, repr=False)
class Trainer:
    """One training, epoch by epoch; `fit` and `fit_together` are the ways in."""

    model: nn.Module
    data: Data
    recipe: Recipe
    constraint: Constraint | None = None
    checkpoint: Path | None = None
    label: str = ""
    engine: Engine | None = None

    def __post_init__(self) -> None:
        self.step = TrainingStep(self.model, self.data, self.recipe, self.constraint, self.engine)
        self.constraint, self.engine, self.group = self.step.constraint, self.step.engine, self.step.group
        self.checkpoints = Checkpoints(self.checkpoint)
        self.epoch, self.prepare_seconds = 0, 0.0
        self.history: list[dict[str, float]] = []
        self.engines: list[str] = []  # by which epochs were trained; several where it went on elsewhere
        self.norms = [self.step.norms()]
        self.test = Evaluation(self.step)
        self.average = None if self.recipe.average == "none" else Average(self.step)
        self.ready: dict[int, Step] = {}
        self.stream: torch.cuda.Stream | None = None

    @property
    def finished(self) -> bool:
        """True after the last epoch."""
        return self.epoch == self.recipe.epochs

    def prepare(self) -> None:
        """Compile and capture, once everything is restored; the time it takes is not an epoch's."""
        start = time.perf_counter()
        fast = self.engine.compile or self.engine.graph
        self.stream = self.engine.stream()
        if fast or self.group.size > 1:  # steps are tried on an epoch's draws
            self.begin_epoch()
        with on_stream(self.stream):
            self.ready, self.engine = self.engine.prepare(self.model, self.step.steps, self.step.changed, self.stream)
            self.step.engine = self.engine
            if self.group.size > 1:  # gradients are packed anew after the first step: a resumed run does so here too
                self.engine.capture(self.ready, self.step.changed, self.stream)
        if fast:
            self.prepare_seconds = time.perf_counter() - start

    def begin_epoch(self) -> None:
        """Draw the epoch, and start its clock."""
        self.started = time.perf_counter()
        with on_stream(self.stream):
            self.step.begin_epoch(self.epoch)

    def train_steps(self) -> Iterator[None]:
        """Queue the epoch's steps, one each time it is asked."""
        for size in self.step.sizes:
            with on_stream(self.stream):
                self.ready[size]()
                if self.average:
                    self.average.after("step", self.epoch + 1)
            yield

    def end_epoch(self) -> dict[str, float]:
        """Wait for the steps and, where it is time, test; give the epoch's row.

        Raises:
            TrainingError: the loss, or a logit of the test, is not finite.
        """
        epoch, recipe = self.epoch + 1, self.recipe
        with on_stream(self.stream):
            self.step.project("epoch")
            loss, hits = (self.group.sum(self.step.sums.cpu().double()) / len(self.data)).tolist()
            self.group.average_([values for values in self.model.buffers() if values.is_floating_point()])
            if not math.isfinite(loss):
                raise TrainingError(f"the loss is {loss} in epoch {epoch}: try a smaller --lr")
            if self.average:
                self.average.after("epoch", epoch)
            rate = recipe.learning_rate(self.epoch)
            row = {"epoch": epoch, "lr": rate, "train_loss": loss, "train_accuracy": 100 * hits}
            if epoch == recipe.epochs or epoch % recipe.test_every == 0:
                row |= self.test.after(self.epoch)
            if self.constraint:
                row["projected_share"] = self.constraint.projected_share
            self.norms.append(self.step.norms())
        self.history.append(row | {"seconds": time.perf_counter() - self.started})
        self.engines = [*dict.fromkeys([*self.engines, str(self.engine)])]
        self.epoch += 1
        return self.history[-1]

    def outcome(self) -> Outcome:
        """What training gives back; the model ends with the last epoch's weights."""
        weights = host_state(self.model)
        history = pd.DataFrame(self.history)
        logits = self.test.all_logits(self.recipe.epochs - 1, weights)
        extra = {"best_test_epoch": self.test.best["epoch"] + 1, "seconds": float(history.seconds.sum())}
        extra |= engines_told(self.engines or [str(self.engine)]) | {"prepare_seconds": self.prepare_seconds}
        if self.constraint:
            extra |= {"max_norm": self.constraint.radius, "projected_share": self.constraint.projected_share}
        found = Outcome(history, torch.stack(self.norms).numpy(), logits, self.data.test_labels, weights, extra)
        return replace(found, averaged=self.average.outcome(found, self.test)) if self.average else found

    def state(self) -> dict[str, Any]:
        """All that a resumed training needs."""
        return {
            "settings": self.step.describe(),
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.step.optimizer.state_dict(),
            "max_norm": self.constraint.counts() if self.constraint else None,
            "history": self.history,
            "norms": torch.stack(self.norms),
            "engines": self.engines,
            "best": self.test.best,
            "average": self.average.network.state_dict() if self.average else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            InputError: it belongs to another recipe, constraint or network.
        """
        check_same(self.step.describe(), state["settings"])
        self.model.load_state_dict(state["model"])
        # Momentum alone: the optimizer's options are this device's, and a captured step needs its tensors in place.
        copy_into(self.step.momentum, [own["momentum_buffer"] for own in state["optimizer"]["state"].values()])
        self.epoch = state["epoch"]
        self.history = state["history"]
        self.test.best = state["best"]
        self.norms = list(state["norms"].cpu())
        self.engines = list(state.get("engines", ()))  # earlier checkpoints do not say
        if self.constraint:
            self.constraint.go_on_from(state["max_norm"])
        if self.average:
            self.average.network.load_state_dict(state["average"])

    def resume(self) -> None:
        """Go on from the checkpoint, where there is one."""
        if state := self.checkpoints.load(self.step.device):
            self.restore(state)
            self.say(f": resuming at epoch {self.epoch + 1} of {self.recipe.epochs}")

    def save_when_due(self) -> None:
        """Save after the last epoch, and after those before it unless saving takes too much of the time."""
        if self.group.is_main:
            self.checkpoints.save_when_due(self.state, self.finished)

    def say(self, text: str) -> None:
        """Print a line that begins with the label; nothing without one."""
        if self.label and self.group.is_main:
            print(self.label + text, flush=True)


def fit(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    constraint: Constraint | None = None,
    checkpoint: Path | None = None,
    label: str = "",
    engine: Engine | None = None,
) -> Outcome:
    """Train a model to the end of its recipe, going on from a checkpoint where there is one.

    Args:
        model: a network with `.classifier`, or a linear classifier; trained in place, it ends with the
            last epoch's weights.
        data: batches and test logits.
        recipe: what to do.
        constraint: projects the classifier's rows after each step or epoch.
        checkpoint: file to resume from and to save to; None keeps nothing. It is saved after each epoch,
            less often where that would take more than a twentieth of the time.
        label: begins each printed line; "" prints nothing.
        engine: how to run the steps; None runs them plainly, where the model is.

    Raises:
        TrainingError: the loss, or a logit of the test, is not finite; the last checkpoint stays.
        InputError: the checkpoint is another run's, or damaged.
    """
    return fit_together([Trainer(model, data, recipe, constraint, checkpoint, label, engine)])[0]


def fit_together(trainers: Sequence[Trainer]) -> list[Outcome]:
    """Train several models side by side, each as `fit` would train it alone.

    Their steps take turns. On CUDA each has a graph and a stream of its own, so that small networks share
    the GPU; on a CPU there is nothing to gain.

    Args:
        trainers: of one engine.

    Raises: see `fit`; one that fails stops all, each with its last checkpoint.
    """
    with trainers[0].engine.backend(), contextlib.ExitStack() as at_the_end:
        for trainer in trainers:
            at_the_end.callback(trainer.data.close)
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


def train_epoch(trainers: Sequence[Trainer]) -> None:
    """Queue an epoch's steps of several trainings in turn."""
    for trainer in trainers:
        trainer.begin_epoch()
    for _ in zip_longest(*(trainer.train_steps() for trainer in trainers)):
        pass


def progress_line(row: dict[str, float], epochs: int) -> str:
    """One epoch's row of the history in words."""
    tested = f", test {row['test_accuracy']:5.2f} %" if "test_accuracy" in row else ""
    return (
        f"{row['epoch']:3d}/{epochs}: loss {row['train_loss']:.4f}, train {row['train_accuracy']:5.2f} %{tested}, "
        f"{row['seconds']:.1f} s"
    )

"""The second stage: the backbone is frozen, so its features are computed once for all classifiers.

Features are vectors [N, D], or maps [N, D, H, W] where the network's last blocks learn (`models.Trunk`). One classifier
trains on them by `training.fit`, a whole grid of them by `stack.Grid`.

Two modes. "paper" keeps the backbone in evaluation mode, as freezing suggests. "released" leaves it in
training mode as the released code does: batch-norm normalises by the batch's own statistics while its
running ones drift, pass by pass, and the test images see the drifted ones. In both, each epoch draws new
crops and flips; but of images that are streamed from their files the paper's mode takes the centre crops, once.

Several processes share the batches of an extraction, and each ends with all features, those of one process. A
pass in released mode is the exception: each makes it whole, since its drift goes from batch to batch.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ltr import metrics, training
from ltr.data.loader import Loader, epoch_generator
from ltr.data.streaming import open_loader
from ltr.datasets import LongTailed
from ltr.errors import InputError
from ltr.models import Network, Trunk, frozen_features
from ltr.regularizers import row_norms
from ltr.runtime import distributed
from ltr.runtime.engine import Engine

MODES = ("released", "paper")
FEATURES = "features.npz"  # in the folder of a first stage whose features ship
ORDER = 2**20  # keeps the generators of a new order apart from those of the crops


@dataclass(frozen=True)
class Pass:
    """One epoch's training features [N, D, ...] and labels [N], in the order of its batches, and the
    batch-norm buffers after it."""

    features: Tensor
    labels: Tensor
    buffers: dict[str, Tensor] = field(default_factory=dict)

    def shuffled(self, seed: int, epoch: int) -> "Pass":
        """The same features in another order."""
        order = torch.randperm(len(self.labels), generator=epoch_generator(seed, ORDER + epoch)).to(self.labels.device)
        return Pass(self.features[order], self.labels[order], self.buffers)


@dataclass(eq=False, repr=False)
class Features(training.Data):
    """Training features pass by pass, and those of the test images: `training.fit`'s data in the second stage.

    Args:
        passes: of the first epochs; later epochs see them again, in another order.
        tested: test features [N, D, ...] by epoch of drift (0 where there is none) and mirrored or not.
        class_counts: [C], training images of each class.
        test_labels: [N].
        batch_size, seed: of the draws.
        mode: one of `MODES`.
    """

    passes: list[Pass]
    tested: dict[tuple[int, bool], Tensor]
    class_counts: np.ndarray
    test_labels: np.ndarray
    batch_size: int = 64
    seed: int = 0
    mode: str = "paper"

    @property
    def draws_on(self) -> torch.device:
        """The device of the features."""
        return self.passes[0].features.device

    def __len__(self) -> int:
        return int(self.class_counts.sum())

    def up_to(self, epoch: int) -> Pass:
        """The pass of an epoch, and all before it."""
        this = self.passes[epoch % len(self.passes)]
        return this if epoch < len(self.passes) else this.shuffled(self.seed, epoch)

    def reordered(self, seed: int) -> "Features":
        """The same features in the order of another seed, so that the noise of the order can be seen."""
        passes = [each.shuffled(seed, epoch) for epoch, each in enumerate(self.passes)]
        shared = self.class_counts, self.test_labels, self.batch_size
        return Features(passes, self.tested, *shared, seed, self.mode)

    def draw(self, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Features [N, D, ...] and labels [N] of an epoch, in the order of the batches that the images' loader would
        have given.

        Raises:
            InputError: another batch size or seed than the features were extracted with.
        """
        if (batch_size, seed) != (self.batch_size, self.seed):
            wanted = f"{self.batch_size} and {self.seed}, as the features were extracted with"
            raise InputError(f"--batch-size, --seed: must be {wanted}, got {batch_size} and {seed}")
        this = self.up_to(epoch)
        return this.features.to(self.draws_on), this.labels.to(self.draws_on)

    def batch(self, drawn: tuple[Tensor, Tensor], positions: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, D, ...] and labels [B] at these positions [B] of the order."""
        return drawn[0][positions], drawn[1][positions]

    def train_batches(self, batch_size: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """An epoch's batches one after another, see `draw`."""
        return zip(*(values.split(batch_size) for values in self.draw(batch_size, seed, epoch)), strict=True)

    def drifted(self) -> dict[str, Tensor]:
        """Batch-norm buffers after the last pass, to be kept with a classifier; none where they do not drift."""
        if self.mode == "paper":
            return {}
        return {name: value.cpu() for name, value in self.passes[-1].buffers.items()}

    def test_features(self, epoch: int, flip: bool) -> Tensor:
        """Features [N, D, ...] of the test images, in evaluation mode, after an epoch's drift."""
        return self.tested[epoch if self.mode == "released" else 0, flip]

    @torch.no_grad()
    def test_logits(self, model: nn.Module, epoch: int, flip: bool = False) -> np.ndarray:
        """Logits [N, C] of a classifier or of last layers, in evaluation mode; the mean of both images' logits with
        `flip`."""
        was_training = model.training
        model.eval()
        logits = model(self.test_features(epoch, False))
        if flip:
            logits = (logits + model(self.test_features(epoch, True))) / 2
        model.train(was_training)
        return logits.float().cpu().numpy()


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
        on_host: keep what was extracted in the host's memory, an epoch's on the device at a time: maps of ten passes
            take gigabytes.
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
        on_host: bool = False,
    ) -> None:
        super().__init__([], {}, data.class_counts, data.test.labels, batch_size, seed, mode)
        self.model = model
        self.engine = engine or Engine(torch.device(device))
        self.group = distributed.current()
        self.train = open_loader(data.train, data.mean, data.std, device, data.workers)
        self.test = open_loader(data.test, data.mean, data.std, device, data.workers)
        if augmented is None and not self.train.in_memory:
            augmented = 0
        self.augmented = None if mode == "released" else augmented
        self.on_host = on_host
        self.drawn_by, self.in_other_order = seed, False  # crops and flips stay this seed's when `reordered`

    def keep(self, values: Tensor) -> Tensor:
        """What was extracted, where it stays."""
        return values.cpu() if self.on_host else values

    @property
    def draws_on(self) -> torch.device:
        """The device of the features; there need be none yet, and `on_host` they come to it an epoch at a time."""
        return self.train.device

    @torch.no_grad()
    def extract(self, images: Tensor) -> Tensor:
        """Features float32 [B, D, ...] of normalised images."""
        with self.engine.autocast():
            return frozen_features(self.model, images)

    def extract_all(self, images: Loader, flip: bool = False) -> Tensor:
        """Features [N, D, ...] of images as they are, in evaluation mode; several processes share them."""
        self.model.eval()
        sizes = len(images), images.test_batch_size
        batches = images.test_batches(flip, self.group.shard(*sizes))
        return self.group.gather(torch.cat([self.extract(batch) for batch, _ in batches]), *sizes)

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
            return Pass(*map(self.keep, self.plain()))
        group = distributed.ProcessGroup() if drifts else self.group
        sizes = len(self.train), self.batch_size
        part = group.shard(*sizes)
        batches = self.train.train_batches(self.batch_size, self.drawn_by, epoch, part)
        total = -(-len(part) // self.batch_size)
        progress = tqdm(batches, f"features, pass {epoch + 1}", total, leave=False, disable=None)
        found = zip(*((self.extract(images), labels) for images, labels in progress), strict=True)
        features, labels = (group.gather(torch.cat(rows), *sizes) for rows in found)
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}
        return Pass(self.keep(features), self.keep(labels), buffers)

    def up_to(self, epoch: int) -> Pass:
        """The pass of an epoch; earlier ones are made first, since batch-norm may drift through them."""
        wanted = epoch if self.augmented is None else epoch % max(self.augmented, 1)
        while len(self.passes) <= wanted:
            if self.passes:
                self.model.load_state_dict(self.passes[-1].buffers, strict=False)
            self.passes.append(self.extract_pass(len(self.passes)))
        this = self.passes[wanted] if self.augmented is None else self.passes[wanted].shuffled(self.drawn_by, epoch)
        return this.shuffled(self.seed, epoch) if self.in_other_order else this

    def reordered(self, seed: int) -> "FrozenFeatures":
        """As `Features.reordered`, of passes that need not be there yet: where every classifier is loaded, none is."""
        other = copy.copy(self)  # which shares what is extracted
        other.seed, other.in_other_order = seed, True
        return other

    @torch.no_grad()
    def test_features(self, epoch: int, flip: bool) -> Tensor:
        """Features [N, D, ...] of the test images, in evaluation mode, after an epoch's drift."""
        key = (epoch if self.mode == "released" else 0, flip)
        if key not in self.tested:
            if self.mode == "released":
                self.model.load_state_dict(self.up_to(epoch).buffers, strict=False)
                if self.on_host:  # of ten epochs they would take several gigabytes, and one is tested at a time
                    self.tested.clear()
            self.tested[key] = self.keep(self.extract_all(self.test, flip))
        return self.tested[key].to(self.train.device)


def read_features(path: Path, device: torch.device | str = "cpu") -> Features:
    """Features that `ltr ship` wrote, to train on a device.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        tensors = {
            name: torch.from_numpy(arrays[name]).to(device) for name in ("features", "labels", "test", "mirrored")
        }
        pairs = zip(tensors["features"].float(), tensors["labels"].long(), strict=True)
        tested = {(0, False): tensors["test"].float(), (0, True): tensors["mirrored"].float()}
        labels = arrays["test_labels"].astype(np.int64)
        draws = arrays["draws"].tolist()
        return Features([Pass(*pair) for pair in pairs], tested, arrays["class_counts"], labels, *draws)
    except FileNotFoundError as error:
        raise InputError(f"--base: no features ship with {path.parent}; python -m ltr ship makes them") from error
    except Exception as error:  # a damaged file raises whatever its damage leads to
        raise InputError(f"--base: {path} cannot be read ({error})") from error


def evaluate(classifier: nn.Linear, data: Features) -> training.Outcome:
    """The outcome of a classifier that needs no training, as L2- or tau-normalised ones."""
    plain, flipped = (data.test_logits(classifier, 0, flip) for flip in (False, True))
    logits = {(selection, tta): flipped if tta == "flip" else plain for selection, tta in metrics.VARIANTS}
    norms = row_norms(classifier.weight.detach()).cpu().numpy()[None]
    weights = {name: value.cpu() for name, value in classifier.state_dict().items()}
    return training.Outcome(pd.DataFrame({"epoch": [0]}), norms, logits, data.test_labels, weights, {"seconds": 0.0})

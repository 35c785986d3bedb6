"""Features of a frozen backbone, as the second stage trains on them; the network is not needed any more.

They are vectors [N, D], or maps [N, D, H, W] where the network's last blocks learn (`models.Trunk`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from ltr.loader import epoch_generator

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


class Features:
    """Training features pass by pass, and those of the test images: `training.fit`'s data in the second stage.

    Args:
        passes: of the first epochs; later epochs see them again, in another order.
        tested: test features [N, D, ...] by epoch of drift (0 where there is none) and mirrored or not.
        class_counts: [C], training images of each class.
        test_labels: [N].
        batch_size, seed: of the draws.
        mode: "paper" or "released", see `classifiers`.
    """

    def __init__(
        self,
        passes: list[Pass],
        tested: dict[tuple[int, bool], Tensor],
        class_counts: np.ndarray,
        test_labels: np.ndarray,
        batch_size: int = 64,
        seed: int = 0,
        mode: str = "paper",
    ) -> None:
        self.passes, self.tested, self.mode = passes, tested, mode
        self.class_counts, self.test_labels = class_counts, test_labels
        self.batch_size, self.seed = batch_size, seed

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
            ValueError: another batch size or seed than the features were extracted with.
        """
        if (batch_size, seed) != (self.batch_size, self.seed):
            raise ValueError(f"features are of batch size {self.batch_size} and seed {self.seed}")
        this = self.up_to(epoch)
        return this.features, this.labels

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

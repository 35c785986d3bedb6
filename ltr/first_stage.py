"""The first stage: images in, a network out.

`ImageData` is what `training.fit` trains a network on: images in batches, cropped and flipped, and augmented further
where that was asked.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ltr.data import augment
from ltr.data.loader import Loader
from ltr.data.streaming import open_loader
from ltr.datasets import LongTailed
from ltr.errors import InputError
from ltr.losses import Mixed
from ltr.runtime import distributed


@torch.inference_mode()
def predict(model: nn.Module, loader: Loader, flip: bool = False) -> np.ndarray:
    """Logits [N, C] in evaluation mode; with `flip` of the mirrored images. Several processes share the batches."""
    was_training, group = model.training, distributed.current()
    sizes = len(loader), loader.test_batch_size
    model.eval()
    logits = [model(images) for images, _ in loader.test_batches(flip, group.shard(*sizes))]
    model.train(was_training)
    return group.gather(torch.cat(logits).float(), *sizes).cpu().numpy()


class ImageData:
    """Images for the first stage, on the device, or streamed to it from their files.

    Args:
        data: images.
        device: where they live.
        mix, augmentation, sampling: one of `augment.MIXES`, `AUGMENTATIONS` and `SAMPLINGS`. Without them images
            are cropped and flipped, and each is seen once an epoch.
        mix_alpha: of the mixing's Beta distribution; None for that of `recipes.MIX_ALPHA`.

    Raises:
        InputError: one of these is asked of images that stay in their files.
    """

    def __init__(
        self,
        data: LongTailed,
        device: torch.device | str,
        mix: str = "none",
        augmentation: str = "none",
        sampling: str = "instance",
        mix_alpha: float | None = None,
    ) -> None:
        self.class_counts, self.test_labels = data.class_counts, data.test.labels
        pixels = data.mean, data.std, device, data.workers
        self.train = open_loader(data.train, *pixels, repeats=sampling != "instance")
        self.test = open_loader(data.test, *pixels)
        self.draws_on = self.train.draws_on
        self.mix, self.mix_alpha, self.sampling = mix, mix_alpha, sampling
        self.augmentation = augmentation.split("+")
        asked = self.describe_draws()
        if asked and not self.train.in_memory:
            raise InputError(f"--{next(iter(asked))}: must not be given for images that are streamed from their files")

    def __len__(self) -> int:
        return len(self.train)

    def describe_draws(self) -> dict[str, Any]:
        """What is not as in the paper."""
        chosen = {"mix": self.mix, "augmentation": "+".join(self.augmentation), "sampling": self.sampling}
        chosen = {name: value for name, value in chosen.items() if value not in ("none", "instance")}
        return chosen if self.mix_alpha is None else {**chosen, "mix_alpha": self.mix_alpha}

    def draw(self, batch_size: int, seed: int, epoch: int) -> Sequence[Tensor]:
        """Order, crops and flips of an epoch; then what was asked beyond them, see `further`."""
        plain = [*self.train.draw(batch_size, seed, epoch)]
        if self.sampling != "instance":
            order = augment.sampled_order(self.train.labels.cpu(), self.sampling, seed, epoch)
            plain[0] = order.to(self.draws_on)
        return plain + [values.to(self.draws_on) for values in self.further(plain, batch_size, seed, epoch)]

    def further(self, plain: Sequence[Tensor], batch_size: int, seed: int, epoch: int) -> list[Tensor]:
        """Share, box and partner of each position for mixing, its hole for Cutout, its pixels for AutoAugment.

        Empty where it was not asked.
        """
        share = boxes = partner = holes = pixels = torch.empty(0)
        positions = torch.arange(len(self))
        if self.mix != "none":
            step = positions // batch_size
            mixing = int(step[-1]) + 1, self.train.side, seed, epoch, self.mix_alpha
            share, boxes = (values[step] for values in augment.draw_mixing(self.mix, *mixing))
            start = step * batch_size  # the batch in reverse order: images lie in a random order anyway
            partner = 2 * start + (len(self) - start).clamp(max=batch_size) - 1 - positions
        if "cutout" in self.augmentation:
            holes = augment.draw_holes(len(self), self.train.side, seed, epoch)
        if "autoaugment" in self.augmentation:
            pixels = augment.autoaugment(self.train.pixels(plain, positions.to(self.draws_on)), seed, epoch)
        return [share, boxes, partner, holes, pixels]

    def batch(self, drawn: Sequence[Tensor], positions: Tensor) -> tuple[Tensor, Tensor | Mixed]:
        """Cropped, flipped, normalised images and their labels, mixed where that was asked."""
        images, labels = self.single(drawn, positions)
        if self.mix == "none":
            return images, labels
        *_, share, boxes, partner, _, _ = drawn
        others, theirs = self.single(drawn, partner[positions])
        mixed = augment.mix(self.mix, images, others, share[positions], boxes[positions])
        return mixed, Mixed(labels, theirs, share[positions])

    def single(self, drawn: Sequence[Tensor], positions: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels at these positions of the order, not mixed."""
        *plain, _, _, _, holes, pixels = drawn
        if "autoaugment" in self.augmentation:
            images = self.train.normalise(pixels[positions])
            labels = self.train.labels[plain[0][positions]]
        else:
            images, labels = self.train.batch(plain, positions)
        if "cutout" in self.augmentation:
            images = augment.cutout(images, holes[positions])
        return images, labels

    def test_logits(self, model: nn.Module, epoch: int, flip: bool = False) -> np.ndarray:
        """Logits [N, C]; the epoch plays no part here."""
        logits = predict(model, self.test)
        return (logits + predict(model, self.test, flip=True)) / 2 if flip else logits

    def close(self) -> None:
        """End the processes that read ahead, if any."""
        self.train.close()

"""Batches of images. What every loader gives, and the one whose whole set lives on the device as uint8 and is cropped,
flipped and normalised there in bulk; `streaming` has the one whose images stay in their files.

For the same draws a batch equals torchvision's `RandomCrop(32, padding=4)`, `RandomHorizontalFlip`,
`ToTensor` and `Normalize`. All draws of an epoch come from one generator made from (seed, epoch), so
a resumed run sees the crops that the uninterrupted one would have seen.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

RGB = tuple[float, float, float]  # mean or standard deviation of each channel, in 0..1
Device = torch.device | str
PADDING = 4  # pixels on each side, of raw zeros, as in the paper


def seed_of(*parts: int) -> int:
    """A seed that depends on these only."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """A generator on the CPU that depends on the seed and the epoch only."""
    return torch.Generator().manual_seed(seed_of(seed, epoch))


class Draws(NamedTuple):
    """The random choices of one epoch: order [N], crop corners [N, 2] (row, column), flips [N]."""

    order: Tensor
    corners: Tensor
    flips: Tensor

    @classmethod
    def sample(cls, size: int, seed: int, epoch: int) -> "Draws":
        """Draw for `size` images; entry i belongs to the i-th image *of the set*, not of the order (where images repeat
        in an epoch, as under balanced sampling, to the i-th place).
        """
        generator = epoch_generator(seed, epoch)
        return cls(
            order=torch.randperm(size, generator=generator),
            corners=torch.randint(0, 2 * PADDING + 1, (size, 2), generator=generator),
            flips=torch.rand(size, generator=generator) < 0.5,
        )

    def to(self, device: torch.device) -> "Draws":
        """The same draws on another device."""
        return Draws(*(values.to(device) for values in self))


def cut(values: Tensor, part: range | None) -> Tensor:
    """The rows of a part; all without one."""
    return values if part is None else values[part.start : part.stop]


def crop_and_flip(padded: Tensor, corners: Tensor, flips: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop every image at its own corner and mirror it where asked, in one indexing.

    Args:
        padded: uint8 [B, H + 2 * PADDING, W + 2 * PADDING, 3].
        corners: int64 [B, 2], row and column of the crop's upper left pixel.
        flips: bool [B].
        size: H, W of the crop.

    Returns:
        uint8 [B, H, W, 3].
    """
    height, width = size
    rows = corners[:, 0, None] + torch.arange(height, device=padded.device)  # [B, H]
    columns = torch.arange(width, device=padded.device).expand(len(padded), width)  # [B, W]
    columns = corners[:, 1, None] + torch.where(flips[:, None], width - 1 - columns, columns)
    batch = torch.arange(len(padded), device=padded.device)[:, None, None]
    return padded[batch, rows[:, :, None], columns[:, None, :]]


class Loader(Protocol):
    """A labelled set of images as batches on a device."""

    device: torch.device
    labels: Tensor  # [N]
    draws_on: torch.device  # where draws and positions live
    in_memory: bool  # False where workers decode files while the device trains
    test_batch_size: int

    def __len__(self) -> int:
        """Images."""

    def draw(self, batch_size: int, seed: int, epoch: int) -> Sequence[Tensor]:
        """The random choices of an epoch, its order [N] first."""

    def batch(self, draws: Sequence[Tensor], positions: Tensor) -> tuple[Tensor, Tensor]:
        """The images [B, 3, H, W] and labels [B] at these positions [B] of an epoch's order."""

    def train_batches(
        self, batch_size: int, seed: int, epoch: int, part: range | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield shuffled, augmented batches ([B, 3, H, W], [B]) of a part of the epoch; the last one may be short."""

    def test_batches(self, flip: bool = False, part: range | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images of a part in their order, not augmented; mirrored where `flip` is set."""

    def close(self) -> None:
        """Let go what reads ahead."""


class MemoryLoader:
    """A labelled set of images on a device.

    Args:
        images: uint8 [N, H, W, 3].
        labels: integers [N] in 0..C-1.
        mean, std: subtracted, and divided by.
        device: where images and batches live.
        repeats: whether an epoch may see an image more than once, each time cropped anew.
    """

    in_memory = True

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, mean: RGB, std: RGB, device: Device = "cpu", repeats: bool = False
    ) -> None:
        self.device = self.draws_on = torch.device(device)
        self.repeats = repeats
        self.images = torch.from_numpy(images).to(self.device)
        self.labels = torch.from_numpy(labels.astype(np.int64)).to(self.device)
        self.mean = torch.tensor(mean, device=self.device).view(1, 1, 1, 3)
        self.std = torch.tensor(std, device=self.device).view(1, 1, 1, 3)
        self.side = tuple(self.images.shape[1:3])  # height and width of an image
        self.test_batch_size = 100 if self.device.type == "cpu" else 1000  # few stay in a CPU's caches

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def padded(self) -> Tensor:
        """What crops are cut from; test images need none."""
        return F.pad(self.images, (0, 0, *[PADDING] * 4))

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] to normalised float [B, 3, H, W], in channels-last memory."""
        return ((images.float() / 255 - self.mean) / self.std).permute(0, 3, 1, 2)

    def draw(self, batch_size: int, seed: int, epoch: int) -> Draws:
        """Order, crops and flips of an epoch, on the device; the batch size plays no part."""
        return Draws.sample(len(self), seed, epoch).to(self.device)

    def pixels(self, draws: Sequence[Tensor], positions: Tensor) -> Tensor:
        """The cropped, flipped images at these positions [B] of an epoch's order, uint8 [B, H, W, 3].

        Nothing in it waits for the device or allocates by what the device holds, so a CUDA graph can capture it.
        """
        order, corners, flips, *_ = draws
        chosen = order[positions]
        drawn = positions if self.repeats else chosen
        return crop_and_flip(self.padded[chosen], corners[drawn], flips[drawn], self.side)

    def batch(self, draws: Sequence[Tensor], positions: Tensor) -> tuple[Tensor, Tensor]:
        """The images [B, 3, H, W] and labels [B] at these positions [B] of an epoch's order, see `pixels`."""
        return self.normalise(self.pixels(draws, positions)), self.labels[draws[0][positions]]

    def train_batches(
        self, batch_size: int, seed: int, epoch: int, part: range | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield shuffled, cropped, flipped batches ([B, 3, H, W], [B]); the last one may be short.

        With `part` only these positions of the order; one empty batch where there are none.
        """
        draws = self.draw(batch_size, seed, epoch)
        for positions in cut(torch.arange(len(self), device=self.device), part).split(batch_size):
            yield self.batch(draws, positions)

    def test_batches(self, flip: bool = False, part: range | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images of a part in their order, whole; mirrored where `flip` is set.

        One empty batch where the part is empty.
        """
        images, labels = (cut(values, part).split(self.test_batch_size) for values in (self.images, self.labels))
        for pixels, own in zip(images, labels, strict=True):
            yield self.normalise(pixels.flip(2) if flip else pixels), own

    def close(self) -> None:
        """Nothing reads ahead."""

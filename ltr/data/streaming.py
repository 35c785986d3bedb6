"""Batches of images that stay in their files: worker processes decode, crop and jitter while the device trains.

Training: a random resized crop of 224 pixels, a flip, and colour jitter where the set's recipe has it; test: 256
pixels on the shorter side and the centre's 224. An image's random choices come from a generator made of (seed,
epoch, its place in the set), so that neither the number of workers nor a resumed run changes a pixel.

Source: Kang et al. 2020 (augmentation of ImageNet-LT, Places-LT and iNaturalist 2018).
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ltr.data.images import LabelledImages, decode
from ltr.data.loader import RGB, Device, Loader, MemoryLoader, cut, epoch_generator, seed_of
from ltr.errors import InputError
from ltr.runtime import distributed
from ltr.runtime.process import script_set_aside

CROP, RESIZE = 224, 256  # pixels
THUMBNAIL = 64  # pixels of a side, for a look at a few images
MOST_WORKERS = 16  # beyond, one GPU waits for itself
Transform = Callable[[Image.Image], Tensor]
Drawn = tuple[Tensor, Tensor]  # an epoch's order [N], and its seed and number [2]; both on the CPU


@dataclass(frozen=True)
class Thumbnails:
    """Small pictures, uint8 [N, 64, 64, 3], that are decoded when they become an array: for a montage."""

    paths: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As of the array."""
        return len(self.paths), THUMBNAIL, THUMBNAIL, 3

    def __getitem__(self, chosen: np.ndarray | slice) -> "Thumbnails":
        return Thumbnails(self.paths[chosen])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        pictures = [ImageOps.fit(Image.fromarray(decode(path)), self.shape[1:3]) for path in self.paths]
        return np.asarray(np.stack(pictures), dtype)


@dataclass(frozen=True)
class ListedImages:
    """Images that stay in their files."""

    root: Path  # the folder that all paths lead from
    paths: np.ndarray  # [N], text
    labels: np.ndarray  # int64 [N]
    jitter: float = 0.0  # strength of the colour jitter in training

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "ListedImages":
        """The images at these positions, in their order."""
        return ListedImages(self.root, self.paths[indices], self.labels[indices], self.jitter)

    def fingerprint(self) -> str:
        """SHA-256 over the sorted list of label and path: it names the list, and opens no image."""
        rows = sorted(f"{label} {Path(path).as_posix()}" for label, path in zip(self.labels, self.paths, strict=True))
        return hashlib.sha256(os.fsencode("\n".join(rows))).hexdigest()

    @property
    def images(self) -> Thumbnails:
        """For a look at a few of them."""
        return Thumbnails(np.array([os.path.join(self.root, path) for path in self.paths], object))


def default_workers() -> int:
    """As many processes as this one may use cores, less one for itself."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, cores - 1)


def train_transform(jitter: float, crop: int) -> Transform:
    """Random resized crop, flip and jitter: a PIL image to uint8 [3, crop, crop]."""
    from torchvision.transforms import v2  # here, as torchvision alone takes two seconds to import

    colours = [v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter)] if jitter else []
    return v2.Compose(
        [v2.RandomResizedCrop(crop, antialias=True), v2.RandomHorizontalFlip(), *colours, v2.PILToTensor()]
    )


def centre_transform(crop: int, resize: int) -> Transform:
    """The shorter side to `resize` pixels, and the centre: a PIL image to uint8 [3, crop, crop]."""
    from torchvision.transforms import v2

    return v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(crop), v2.PILToTensor()])


class Decoded(Dataset):
    """Whole batches, each asked for by its images' places in the set; what the workers run.

    Args:
        draws: (seed, epoch) of augmented images; None for centre crops.
    """

    def __init__(self, images: ListedImages, draws: tuple[int, int] | None) -> None:
        self.images, self.draws, self.crop = images, draws, CROP
        self.transform = centre_transform(CROP, RESIZE) if draws is None else train_transform(images.jitter, CROP)

    def __getitem__(self, chosen: Sequence[int]) -> Tensor | str:
        """uint8 [B, 3, H, W]; or the message of an error, which would cross processes as a page of traceback."""
        try:
            images = [self.load(index) for index in chosen]
            return torch.stack(images) if images else torch.empty(0, 3, self.crop, self.crop, dtype=torch.uint8)
        except InputError as error:
            return str(error)

    def load(self, index: int) -> Tensor:
        """One image, uint8 [3, H, W]; see `decode`."""
        picture = Image.fromarray(decode(os.path.join(self.images.root, self.images.paths[index])))
        if self.draws is None:
            return self.transform(picture)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.default_generator.manual_seed(seed_of(*self.draws, index))
            return self.transform(picture)


class Prefetcher:
    """The planned batches of an epoch, decoded ahead by the workers, and the one given last.

    Args:
        plan: the images' places in the set, batch by batch.
        batches: their decoded images, in this order.
    """

    def __init__(self, plan: Sequence[list[int]], batches: Iterator[Tensor | str]) -> None:
        self.planned, self.batches = deque(plan), batches
        self.last: list[int] = []
        self.images: Tensor | str = ""

    def take(self, chosen: list[int]) -> Tensor | str | None:
        """The images at these places, where they are the next batch or were the last; None for any others."""
        if chosen != self.last:
            if not self.planned or chosen != self.planned[0]:
                return None
            self.last = self.planned.popleft()
            self.images = next(self.batches)
        if not self.planned:
            self.batches = iter(())  # ends the workers
        return self.images


class StreamLoader:
    """A set of image files as batches, see `loader.Loader`.

    Trainings side by side may share it: those of one seed see the same batches, which are decoded once; other seeds'
    are read ahead by workers of their own.

    Args:
        device: where batches go.
        workers: processes that decode; 0 decodes in this one, None takes `default_workers`.
    """

    in_memory, draws_on = False, torch.device("cpu")
    test_batch_size = 100

    def __init__(
        self, images: ListedImages, mean: RGB, std: RGB, device: Device = "cpu", workers: int | None = None
    ) -> None:
        self.images, self.device = images, torch.device(device)
        self.workers = default_workers() if workers is None else workers
        self.mean, self.std = (torch.tensor(values, device=self.device).view(1, 3, 1, 1) for values in (mean, std))
        self.labels = torch.from_numpy(images.labels)
        self.ahead: dict[int, tuple[int, Prefetcher]] = {}  # by seed: the epoch, and its batches

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, draws: tuple[int, int] | None, plan: Sequence[list[int]]) -> Iterator[Tensor | str]:
        """The planned batches, decoded ahead by the workers."""
        loader = DataLoader(
            Decoded(self.images, draws),
            batch_size=None,  # the plan has whole batches
            sampler=plan,
            num_workers=min(self.workers, len(plan)),
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it would draw from the global one
        )
        with script_set_aside():
            return iter(loader)  # starts the workers

    def normalise(self, images: Tensor | str) -> Tensor:
        """uint8 [B, 3, H, W] to normalised float on the device, in channels-last memory; raises an error's message."""
        if isinstance(images, str):
            raise InputError(images)
        images = images.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        return (images.float() / 255 - self.mean) / self.std

    # ---- training, by draws and positions

    def draw(self, batch_size: int, seed: int, epoch: int) -> Drawn:
        """An epoch's order and key, on the CPU; the workers begin with its batches, or this process's shard of each."""
        order = torch.randperm(len(self), generator=epoch_generator(seed, epoch))
        group = distributed.current()
        plan = [cut(chunk, group.shard(len(chunk))).tolist() for chunk in order.split(batch_size)]
        begun = self.ahead.get(seed)
        if begun is None or begun[0] != epoch or list(begun[1].planned) != plan:
            self.ahead[seed] = epoch, Prefetcher(plan, self.read((seed, epoch), plan))
        return order, torch.tensor([seed, epoch])

    def batch(self, drawn: Drawn, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The images [B, 3, H, W] and labels [B] at these positions [B] of an epoch's order.

        The next batch of a seed's last `draw`, and the one given last, are at hand; any other is decoded meanwhile.

        Raises:
            InputError: an image cannot be read.
        """
        chosen = drawn[0][positions.cpu()]
        seed, epoch = drawn[1].tolist()
        images = self.fetch(chosen.tolist(), seed, epoch)
        return self.normalise(images), self.labels[chosen].to(self.device, non_blocking=True)

    def fetch(self, chosen: list[int], seed: int, epoch: int) -> Tensor | str:
        """Decoded images, uint8 [B, 3, H, W], or the message of an error.

        On its own, as a traceback keeps the frame of `batch`, where `ahead` would keep the workers alive.
        """
        begun, ahead = self.ahead.get(seed, (None, None))
        images = ahead.take(chosen) if begun == epoch else None
        return Decoded(self.images, (seed, epoch))[chosen] if images is None else images

    def close(self) -> None:
        """End the workers of epochs that are not to be finished.

        Left to the garbage collector, each may be waited for in vain for 5 s: it ends their queues first.
        """
        self.ahead.clear()

    # ---- one batch after another

    def train_batches(
        self, batch_size: int, seed: int, epoch: int, part: range | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield shuffled, augmented batches ([B, 3, H, W], [B]) of a part of the epoch; the last one may be short."""
        order = torch.randperm(len(self), generator=epoch_generator(seed, epoch))
        yield from self.batches((seed, epoch), cut(order, part).split(batch_size))

    def test_batches(self, flip: bool = False, part: range | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the centres of a part's images in their order; mirrored where `flip` is set."""
        for images, labels in self.batches(None, cut(torch.arange(len(self)), part).split(self.test_batch_size)):
            yield images.flip(3) if flip else images, labels

    def batches(self, draws: tuple[int, int] | None, plan: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the planned batches; raises InputError where an image cannot be read."""
        ahead = self.read(draws, [chunk.tolist() for chunk in plan])
        try:
            for chosen in plan:
                yield self.normalise(next(ahead)), self.labels[chosen].to(self.device)
        finally:
            del ahead  # see `close`


def open_loader(
    images: LabelledImages | ListedImages,
    mean: RGB,
    std: RGB,
    device: Device,
    workers: int | None = None,
    repeats: bool = False,
) -> Loader:
    """The loader that suits the images: `MemoryLoader`, or `StreamLoader` with so many workers."""
    if isinstance(images, ListedImages):
        return StreamLoader(images, mean, std, device, workers)
    return MemoryLoader(images.images, images.labels, mean, std, device, repeats)

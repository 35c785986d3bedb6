"""Batches of images that stay in their files: worker processes decode, crop and jitter while the device trains.

Training: a random resized crop of 224 pixels, a flip, and colour jitter where the set's recipe has it; test: 256
pixels on the shorter side and the centre's 224. An image's random choices come from a generator made of (seed,
epoch, its place in the set), so that neither the number of workers nor a resumed run changes a pixel.

Source: Kang et al. 2020 (augmentation of ImageNet-LT, Places-LT and iNaturalist 2018).
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ltr import InputError, distributed
from ltr.images import LabelledImages, decode
from ltr.listed import ListedImages
from ltr.loader import Loader, cut, epoch_generator

CROP, RESIZE = 224, 256  # pixels
MOST_WORKERS = 16  # beyond, one GPU waits for itself
Transform = Callable[[Image.Image], Tensor]
Drawn = tuple[Tensor, Tensor]  # an epoch's order [N], and its seed and number [2]; both on the CPU


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


def image_seed(seed: int, epoch: int, index: int) -> int:
    """A seed that depends on these three only."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Decoded(Dataset):
    """Whole batches, each asked for by its images' places in the set; what the workers run.

    Args:
        images: the files.
        draws: (seed, epoch) of augmented images; None for centre crops.
        crop, resize: pixels of a side.
    """

    def __init__(self, images: ListedImages, draws: tuple[int, int] | None, crop: int, resize: int) -> None:
        self.images, self.draws, self.crop = images, draws, crop
        self.transform = centre_transform(crop, resize) if draws is None else train_transform(images.jitter, crop)

    def __getitem__(self, chosen: Sequence[int]) -> Tensor | str:
        """uint8 [B, 3, H, W]; or the message of an error, which would cross processes as a page of traceback."""
        try:
            images = [self.load(index) for index in chosen]
            return torch.stack(images) if images else torch.empty(0, 3, self.crop, self.crop, dtype=torch.uint8)
        except InputError as error:
            return str(error)

    def load(self, index: int) -> Tensor:
        """One image, uint8 [3, H, W].

        Raises:
            InputError: its file is absent or broken.
        """
        picture = Image.fromarray(decode(os.path.join(self.images.root, self.images.paths[index])))
        if self.draws is None:
            return self.transform(picture)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.default_generator.manual_seed(image_seed(*self.draws, index))
            return self.transform(picture)


class StreamLoader:
    """A set of image files, with the methods of `loader.Loader`.

    Args:
        images: files and labels.
        mean, std: RGB statistics in 0..1.
        device: where batches go.
        workers: processes that decode; 0 decodes in this one, None takes `default_workers`.
        crop, resize: pixels of a side, see `CROP` and `RESIZE`; None takes these.
    """

    def __init__(
        self,
        images: ListedImages,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        device: torch.device | str = "cpu",
        workers: int | None = None,
        crop: int | None = None,
        resize: int | None = None,
    ) -> None:
        self.images, self.device = images, torch.device(device)
        self.workers = default_workers() if workers is None else workers
        self.sides = crop or CROP, resize or RESIZE
        self.mean, self.std = (torch.tensor(values, device=self.device).view(1, 3, 1, 1) for values in (mean, std))
        self.labels = torch.from_numpy(images.labels)
        self.key: tuple[int, int] | None = None
        self.planned: deque[list[int]] = deque()
        self.ahead: Iterator[Tensor] = iter(())
        self.last: tuple[list[int], Tensor] = ([], torch.empty(0))

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, draws: tuple[int, int] | None, plan: Sequence[list[int]]) -> Iterator[Tensor | str]:
        """The planned batches, decoded ahead by the workers."""
        return iter(
            DataLoader(
                Decoded(self.images, draws, *self.sides),
                batch_size=None,  # the plan has whole batches
                sampler=plan,
                num_workers=min(self.workers, len(plan)),
                pin_memory=self.device.type == "cuda",
                generator=torch.Generator(),  # else it would draw from the global one
            )
        )

    def normalise(self, images: Tensor | str) -> Tensor:
        """uint8 [B, 3, H, W] to normalised float on the device, in channels-last memory.

        Raises:
            InputError: it is the message of an image that could not be read.
        """
        if isinstance(images, str):
            raise InputError(images)
        images = images.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        return (images.float() / 255 - self.mean) / self.std

    # ---- training, by draws and positions

    def draw(self, batch_size: int, seed: int, epoch: int) -> Drawn:
        """An epoch's order and key, on the CPU; the workers begin with its batches, or this process's share of each."""
        order = torch.randperm(len(self), generator=epoch_generator(seed, epoch))
        world = distributed.current()
        key, plan = (seed, epoch), [cut(chunk, world.share(len(chunk))).tolist() for chunk in order.split(batch_size)]
        if (key, plan) != (self.key, list(self.planned)):  # else they have begun
            self.key, self.planned, self.last = key, deque(plan), ([], torch.empty(0))
            self.ahead = self.read(key, plan)
        return order, torch.tensor([seed, epoch])

    def batch(self, drawn: Drawn, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The images [B, 3, H, W] and labels [B] at these positions [B] of an epoch's order.

        It depends on its arguments only. The next batch of the last `draw`, and the one given last, are at hand;
        any other is decoded while one waits.

        Raises:
            InputError: an image cannot be read.
        """
        chosen, key = drawn[0][positions.cpu()], tuple(drawn[1].tolist())
        images = self.fetch(chosen.tolist(), key)
        return self.normalise(images), self.labels[chosen].to(self.device, non_blocking=True)

    def fetch(self, chosen: list[int], key: tuple[int, int]) -> Tensor | str:
        """Decoded images, uint8 [B, 3, H, W], or the message of an error."""
        if key != self.key or chosen not in (self.last[0], self.planned[0] if self.planned else []):
            return Decoded(self.images, key, *self.sides)[chosen]
        if chosen != self.last[0]:
            self.last = self.planned.popleft(), next(self.ahead)
        if not self.planned:
            self.ahead = iter(())
        return self.last[1]

    def close(self) -> None:
        """End the workers of an epoch that is not to be finished.

        Left to the garbage collector, each may be waited for in vain for 5 s: it ends their queues first.
        """
        self.key, self.ahead = None, iter(())

    # ---- one batch after another

    def train_batches(
        self, batch_size: int, seed: int, epoch: int, part: range | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield shuffled, augmented batches ([B, 3, H, W], [B]) of a part of the epoch; the last one may be short."""
        order = torch.randperm(len(self), generator=epoch_generator(seed, epoch))
        yield from self.batches((seed, epoch), cut(order, part).split(batch_size))

    @property
    def test_batch_size(self) -> int:
        """Images of a test batch."""
        return 100

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
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    device: torch.device | str,
    workers: int | None = None,
) -> Loader | StreamLoader:
    """The loader that suits the images: from memory, or from their files."""
    if isinstance(images, ListedImages):
        return StreamLoader(images, mean, std, device, workers)
    return Loader(images.images, images.labels, mean, std, device)

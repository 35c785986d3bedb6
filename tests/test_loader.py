"""Bulk batches against torchvision's transforms, image by image; draws that follow (seed, epoch) alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import functional as TF

from ltr.data.loader import PADDING, Draws, MemoryLoader

MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
COUNT, HEIGHT, WIDTH = 11, 12, 10  # not square, so that swapped sides show


def make_loader(count: int = COUNT, device: str = "cpu") -> MemoryLoader:
    """Random images, each with its position as its label."""
    images = np.random.default_rng(0).integers(0, 256, (count, HEIGHT, WIDTH, 3), np.uint8)
    return MemoryLoader(images, np.arange(count), MEAN, STD, device)


def by_torchvision(image: torch.Tensor, corner: tuple[int, int] = (PADDING, PADDING), flip: bool = False):
    """Pad, crop, mirror and normalise one image [H, W, 3] as RandomCrop and its companions would."""
    x = TF.pad(image.permute(2, 0, 1), [4, 4, 4, 4], fill=0)
    x = TF.crop(x, corner[0], corner[1], HEIGHT, WIDTH)
    if flip:
        x = TF.hflip(x)
    return TF.normalize(TF.to_tensor(x.permute(1, 2, 0).numpy()), MEAN, STD)


def drawn_labels(loader: MemoryLoader, seed: int = 0, epoch: int = 0) -> list[int]:
    return torch.cat([labels for _, labels in loader.train_batches(4, seed, epoch)]).tolist()


def test_training_batches_equal_torchvisions_transforms():
    loader, compared = make_loader(), 0
    for epoch in range(3):
        draws = Draws.sample(COUNT, seed=1, epoch=epoch)
        for images, labels in loader.train_batches(4, seed=1, epoch=epoch):
            for image, i in zip(images, labels, strict=True):
                expected = by_torchvision(loader.images[i], draws.corners[i].tolist(), bool(draws.flips[i]))
                torch.testing.assert_close(image, expected, rtol=0, atol=1e-6)
                compared += 1
    assert compared == 3 * COUNT


@pytest.mark.parametrize("flip", [False, True])
def test_test_batches_keep_order_and_are_whole(flip):
    loader = make_loader(130)
    batches = list(loader.test_batches(flip=flip))
    assert len(batches) > 1  # so that a short last one is among them
    assert torch.cat([labels for _, labels in batches]).tolist() == list(range(130))
    expected = torch.stack([by_torchvision(image, flip=flip) for image in loader.images])
    torch.testing.assert_close(torch.cat([images for images, _ in batches]), expected, rtol=0, atol=1e-6)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**32), st.integers(0, 400))
def test_an_epoch_is_a_permutation_and_keeps_the_short_last_batch(count, batch_size, seed, epoch):
    batches = [labels for _, labels in make_loader(count).train_batches(batch_size, seed, epoch)]
    full, rest = divmod(count, batch_size)
    assert [len(labels) for labels in batches] == [batch_size] * full + [rest] * (rest > 0)
    assert sorted(torch.cat(batches).tolist()) == list(range(count))


def test_draws_follow_seed_and_epoch():
    def same(first: Draws, second: Draws) -> list[bool]:
        return [torch.equal(getattr(first, name), getattr(second, name)) for name in ("order", "corners", "flips")]

    draws = Draws.sample(100, seed=1, epoch=2)
    assert same(draws, Draws.sample(100, seed=1, epoch=2)) == [True] * 3
    for other in ((1, 3), (2, 2), (2, 1)):
        assert same(draws, Draws.sample(100, *other)) == [False] * 3


@pytest.mark.usefixtures("random_state_untouched")
def test_an_epoch_does_not_depend_on_what_was_drawn_before():
    fresh, resumed = make_loader(), make_loader()
    uninterrupted = [drawn_labels(fresh, seed=5, epoch=epoch) for epoch in range(3)]
    assert drawn_labels(resumed, seed=5, epoch=2) == uninterrupted[2]
    assert uninterrupted[0] != uninterrupted[1]


def test_corners_cover_the_padding_and_half_of_the_images_are_flipped():
    draws = Draws.sample(9000, seed=0, epoch=0)
    for axis in draws.corners.T:
        counts = torch.bincount(axis)
        assert len(counts) == 2 * PADDING + 1 == 9
        assert ((counts - 1000).abs() < 150).all()  # five standard deviations
    assert abs(int(draws.flips.sum()) - 4500) < 240


def test_rows_and_columns_are_drawn_apart():
    rows, columns = Draws.sample(9000, seed=0, epoch=0).corners.T
    assert abs(int((rows == columns).sum()) - 1000) < 150


def test_batches_are_channels_last():
    loader = make_loader()
    for images, _ in (*loader.train_batches(4, 0, 0), *loader.test_batches(), *loader.test_batches(flip=True)):
        assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, to compare its batches with the CPU's")
def test_batches_on_the_gpu_equal_those_on_the_cpu():
    pairs = zip(make_loader().train_batches(4, 1, 2), make_loader(device="cuda").train_batches(4, 1, 2), strict=True)
    for (images, labels), (gpu_images, gpu_labels) in pairs:
        assert gpu_images.is_cuda
        torch.testing.assert_close(gpu_images.cpu(), images, rtol=0, atol=1e-6)
        assert torch.equal(gpu_labels.cpu(), labels)

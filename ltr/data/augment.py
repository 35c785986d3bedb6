"""Augmentation beyond crop and flip, and other ways to sample: drawn by seed and epoch, done in bulk.

Every function takes tensors and gives tensors of the same shapes each time and waits for nothing, so that a CUDA
graph can capture a step; only AutoAugment works on an epoch's images one by one, on the host, before it begins.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ltr.recipes import MIX_ALPHA

MIXES = ("none", "mixup", "cutmix")
AUGMENTATIONS = ("none", "cutout", "autoaugment", "autoaugment+cutout")
SAMPLINGS = {"instance": 1.0, "sqrt": 0.5, "class-balanced": 0.0}  # q of Kang et al. 2020, equation 1


def generator(seed: int, epoch: int, purpose: int) -> np.random.Generator:
    """One for each purpose, apart from the one of crops and flips, which stay as they are."""
    return np.random.default_rng([seed, epoch, purpose])


def draw_mixing(
    kind: str, steps: int, side: tuple[int, int], seed: int, epoch: int, alpha: float | None = None
) -> tuple[Tensor, Tensor]:
    r"""How much of the first image stays in each step of an epoch, and the box that CutMix fills from the second.

    .. math:: \lambda \sim \mathrm{Beta}(\alpha, \alpha)

    Args:
        kind: mixup or cutmix.
        steps: S.
        side: height and width of the images.
        alpha: of the Beta distribution; None for that of `recipes.MIX_ALPHA`.

    Returns:
        float32 [S], of CutMix the share after its box was cut at the border; int64 [S, 4]: top, bottom, left, right.

    Source: Zhang et al. 2018 (mixup), Yun et al. 2019 (CutMix, algorithm 1).
    """
    rng = generator(seed, epoch, 1)
    alpha = MIX_ALPHA[kind] if alpha is None else alpha
    share = rng.beta(alpha, alpha, steps)
    size = np.array(side)
    half = np.sqrt(1 - share)[:, None] * np.array(side) / 2
    centre = rng.integers(0, size, (steps, 2))
    low, high = (np.clip(np.round(centre + sign * half), 0, size).astype(np.int64) for sign in (-1, 1))
    if kind == "cutmix":
        share = 1 - (high - low).prod(1) / size.prod()
    boxes = np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], 1)
    return torch.from_numpy(share.astype(np.float32)), torch.from_numpy(boxes)


def inside(boxes: Tensor, side: tuple[int, int]) -> Tensor:
    """Which pixels lie in the boxes [B, 4] (top, bottom, left, right): bool [B, 1, H, W]."""
    rows, columns = (torch.arange(size, device=boxes.device) for size in side)
    top, bottom, left, right = boxes.T[:, :, None]
    vertical = (rows >= top) & (rows < bottom)
    horizontal = (columns >= left) & (columns < right)
    return (vertical[:, :, None] & horizontal[:, None, :])[:, None]


def mix(kind: str, images: Tensor, others: Tensor, share: Tensor, boxes: Tensor) -> Tensor:
    """Blend each image with another one (mixup), or fill a box from it (CutMix).

    Args:
        images, others: [B, 3, H, W].
        share: [B], how much of `images` stays.
        boxes: [B, 4], for CutMix.
    """
    if kind == "mixup":
        share = share[:, None, None, None]
        return share * images + (1 - share) * others
    return torch.where(inside(boxes, images.shape[2:]), others, images)


def draw_holes(images: int, side: tuple[int, int], seed: int, epoch: int) -> Tensor:
    """Cutout's boxes, half as wide as the image (16 of 32 pixels), with their centres anywhere in it.

    Returns:
        int64 [N, 4]: top, bottom, left, right; beyond the border where they reach it.
    """
    hole = np.array(side) // 2
    centres = generator(seed, epoch, 2).integers(0, np.array(side), (images, 2))
    low = centres - hole // 2
    high = low + hole
    return torch.from_numpy(np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], 1))


def cutout(images: Tensor, holes: Tensor) -> Tensor:
    """Set a square of each normalised image [B, 3, H, W] to zero, the mean colour.

    Source: DeVries and Taylor 2017.
    """
    return images.masked_fill(inside(holes, images.shape[2:]), 0.0)


def autoaugment(images: Tensor, seed: int, epoch: int) -> Tensor:
    """AutoAugment's CIFAR-10 policy on each of an epoch's images, uint8 [N, H, W, 3], by torchvision.

    As in the paper, each image is cropped and flipped first and gets a policy of its own, drawn anew each epoch.

    Source: Cubuk et al. 2019.
    """
    from torchvision.transforms import v2  # here, as it takes as long to import as all else together

    policy = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
    pixels = images.cpu().numpy()
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
        torch.default_generator.manual_seed(int(generator(seed, epoch, 3).integers(2**63)))
        changed = [np.asarray(policy(Image.fromarray(image))) for image in pixels]
    return torch.from_numpy(np.stack(changed)).to(images.device)


def sampled_order(labels: Tensor, sampling: str, seed: int, epoch: int) -> Tensor:
    r"""Positions [N] of an epoch drawn with replacement, class k with probability :math:`n_k^q / \sum_j n_j^q`.

    Args:
        labels: [N], on the CPU.
        sampling: a key of `SAMPLINGS` other than instance.

    Source: Kang et al. 2020, equation 1.
    """
    counts = labels.bincount().double()
    weights = (counts ** (SAMPLINGS[sampling] - 1))[labels]
    state = int(generator(seed, epoch, 4).integers(2**63))
    return torch.multinomial(weights, len(labels), replacement=True, generator=torch.Generator().manual_seed(state))

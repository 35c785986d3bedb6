"""Trees and lists of a few tiny images, for the tests of sources, data sets and bad input."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ltr import InputError

NAMES = ["ant", "bee", "cow"]
TRAIN, TEST = 8, 2  # images a class
SHAPE = (6, 5, 3)  # not square, so that swapped sides show


def complaint(call, *arguments, error=InputError) -> str:
    """The message of the error that a call ends with: one line that begins with an option."""
    with pytest.raises(error) as caught:
        call(*arguments)
    message = str(caught.value)
    assert message.startswith("--")
    assert len(message.splitlines()) == 1
    return message


def random_images(count: int, seed: int = 0) -> np.ndarray:
    """uint8 [count, *SHAPE]."""
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), np.uint8)


def write_tree(root: Path, images: dict[str, np.ndarray], suffix: str = "png") -> Path:
    """Write each split's images [C * n, ...], class by class, as `root/split/class/number.suffix`."""
    for split, pixels in images.items():
        for name, members in zip(NAMES, np.split(pixels, len(NAMES)), strict=True):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number, image in enumerate(members):
                Image.fromarray(image).save(folder / f"{number:03d}.{suffix}", lossless=True, quality=95)
    return root


def write_lists(tree: Path) -> Path:
    """Write `train.txt` and `test.txt` beside a tree's splits, with the tree's own labels."""
    for split in ("train", "test"):
        paths = sorted((tree / split).glob("*/*"))
        rows = [f"{path.relative_to(tree).as_posix()} {NAMES.index(path.parent.name)}\n" for path in paths]
        (tree / f"{split}.txt").write_text("".join(rows))
    return tree


def flip_bit(data: bytes, position: int, bit: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]

"""Trees and lists of a few tiny images, for the tests of sources, data sets and bad input."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ltr.data.large_sets import LARGE_SETS
from ltr.errors import InputError

NAMES = ["ant", "bee", "cow"]
TRAIN, TEST = 8, 2  # images a class
SHAPE = (6, 5, 3)  # not square, so that swapped sides show

# Options of a script for `write_small`: 24, 9 and 4 images of 12x12 pixels, three steps an epoch, the last one of 5
SMALL = "--preset demo --dataset folder --profile exp --imbalance-factor 6 --batch-size 16 --lr 0.01"


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


def write_small(root: Path) -> Path:
    """Write 24 images of each class to train on and 4 to test."""
    draw = np.random.default_rng(0)
    counts = {"train": 24, "test": 4}
    return write_tree(
        root, {k: draw.integers(0, 256, (len(NAMES) * n, 12, 12, 3), np.uint8) for k, n in counts.items()}
    )


def write_lists(tree: Path) -> Path:
    """Write `train.txt` and `test.txt` beside a tree's splits, with the tree's own labels."""
    for split in ("train", "test"):
        paths = sorted((tree / split).glob("*/*"))
        rows = [f"{path.relative_to(tree).as_posix()} {NAMES.index(path.parent.name)}\n" for path in paths]
        (tree / f"{split}.txt").write_text("".join(rows))
    return tree


def flip_bit(data: bytes, position: int, bit: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]


# ---- the large benchmarks, small: their real file formats, a few tiny JPEGs

BENCHMARK_TRAIN, BENCHMARK_TEST, BENCHMARK_VALIDATION = (30, 12, 4), (4, 4, 4), (2, 2, 2)  # images of each class
FOLDERS = {
    "imagenet-lt": ("train/n01440764/n01440764_", "train/n01443537/n01443537_", "train/n01484850/n01484850_"),
    "places-lt": ("train/airfield/", "train/airplane_cabin/", "train/airport_terminal/"),
    "inaturalist2018": ("train_val2018/Plantae/0/", "train_val2018/Plantae/1/", "train_val2018/Aves/2/"),
}
SUFFIX = {"imagenet-lt": ".JPEG", "places-lt": ".jpg", "inaturalist2018": ".jpg"}
PREFIX = {"imagenet-lt": "ImageNet_LT", "places-lt": "Places_LT", "inaturalist2018": "iNaturalist18"}


def benchmark_rows(source: str, times: int = 1) -> dict[str, list[tuple[str, int]]]:
    """Path and label of each image of the splits, as the field's lists have them; `times` as many."""
    counts = {"train": BENCHMARK_TRAIN, "val": BENCHMARK_VALIDATION, "test": BENCHMARK_TEST}
    if source == "inaturalist2018":
        counts = {"train": BENCHMARK_TRAIN, "val": BENCHMARK_TEST}
    rows = {}
    for first, (split, per_class) in zip((190, 5000, 9000), counts.items(), strict=False):
        folders = FOLDERS[source]
        if split == "test":
            folders = [folder.replace("train/", "val/") for folder in folders]
        rows[split] = [
            (f"{folder}{number}{SUFFIX[source]}", label)
            for label, (folder, count) in enumerate(zip(folders, per_class, strict=True))
            for number in range(first, first + times * count)
        ]
    return rows


def write_benchmark(root: Path, source: str, times: int = 1) -> Path:
    """Write a benchmark's images, in its classes' colours, and its list files."""
    generator = np.random.default_rng(0)
    for split, rows in benchmark_rows(source, times).items():
        for path, label in rows:
            pixels = generator.integers(0, 120, (36, 48, 3), np.uint8)
            pixels[..., label] += 100
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / path, "JPEG")
        lines = [f"{path} {label}\n" for path, label in rows]
        (root / f"{PREFIX[source]}_{split}.txt").write_text("".join(lines))
    return root


def write_json(root: Path) -> Path:
    """Put the competition's JSON files in the place of iNaturalist's lists."""
    names = ["0", "1", "2"]
    for split, rows in benchmark_rows("inaturalist2018").items():
        ids = range(100, 100 + len(rows))
        content = {
            "info": {"year": 2018},
            "images": [{"id": i, "file_name": path, "width": 48} for i, (path, _) in zip(ids, rows, strict=True)],
            "annotations": [
                {"id": i, "image_id": i, "category_id": label} for i, (_, label) in zip(ids, rows, strict=True)
            ],
            "categories": [{"id": k, "name": f"species {name}"} for k, name in enumerate(names)],
        }
        (root / f"{split}2018.json").write_text(json.dumps(content))
        (root / f"iNaturalist18_{split}.txt").unlink()
    return root


def shrink_benchmarks(monkeypatch: pytest.MonkeyPatch, times: int = 1) -> None:
    """Let the readers expect what `write_benchmark` writes."""
    counts = {"train": sum(BENCHMARK_TRAIN), "validation": sum(BENCHMARK_VALIDATION), "test": sum(BENCHMARK_TEST)}
    for source, benchmark in LARGE_SETS.items():
        small = {split: times * counts[split] for split in benchmark.files}
        monkeypatch.setitem(LARGE_SETS, source, dataclasses.replace(benchmark, counts=small, num_classes=3))

"""Sets too large for memory, as lists of image files: ImageNet-LT, Places-LT and iNaturalist 2018.

Only paths and labels are read here; `ltr.data.streaming` opens the images while training runs. The sets are long-tailed
as they were published, so that nothing is cut. What is wrong with a file raises `InputError`, which says where.
"""

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ltr.data.images import Absent
from ltr.data.lists import Row, below, check_labels, check_paths, parse_row, read_lines
from ltr.data.streaming import ListedImages
from ltr.errors import InputError, clip


@dataclass(frozen=True)
class LargeSet:
    """A published long-tailed set."""

    files: Mapping[str, tuple[str, ...]]  # names of each split's file; the first that is there is read
    counts: Mapping[str, int]  # images that each split must have
    num_classes: int  # C
    jitter: float  # see `ListedImages`


# Counts: Liu et al. 2019, sections 4.1 and A; iNaturalist 2018's competition page. Its test labels were never
# published, so the field tests on the validation images. Colour jitter: as Kang et al. 2020 train.
LISTS = (("train", "train"), ("validation", "val"), ("test", "test"))
LARGE_SETS = {
    "imagenet-lt": LargeSet(
        {split: (f"ImageNet_LT_{name}.txt",) for split, name in LISTS},
        {"train": 115_846, "validation": 20_000, "test": 50_000},
        num_classes=1000,
        jitter=0.4,
    ),
    "places-lt": LargeSet(
        {split: (f"Places_LT_{name}.txt",) for split, name in LISTS},
        {"train": 62_500, "validation": 7_300, "test": 36_500},
        num_classes=365,
        jitter=0.4,
    ),
    "inaturalist2018": LargeSet(
        {"train": ("train2018.json", "iNaturalist18_train.txt"), "test": ("val2018.json", "iNaturalist18_val.txt")},
        {"train": 437_513, "test": 24_426},
        num_classes=8142,
        jitter=0.0,
    ),
}


def read(source: str, root: Path) -> tuple[ListedImages, ListedImages, list[str], ListedImages | None]:
    """A large set from its files in `root`.

    Returns:
        training and test images, class names, images of the validation list (None where the field tests on it).

    Raises:
        Absent: the folder or a list is not there.
        InputError: a line or an entry is wrong, counts are not as published, an image is listed twice or absent, or
            two files name the classes differently.
    """
    large_set = LARGE_SETS[source]
    files = {split: find_file(source, root, names) for split, names in large_set.files.items()}
    rows, named = {}, {}
    for split, file in files.items():
        if file.suffix == ".json":
            rows[split], named[file] = read_json(root, file, large_set.num_classes)
        else:
            rows[split] = [parse_row(root, *line) for line in read_lines(file)]
        if len(rows[split]) != (count := large_set.counts[split]):
            raise InputError(f"--data-root: {file} must list {count:,} images, it lists {len(rows[split]):,}")
        check_labels(file, rows[split], large_set.num_classes)
        check_paths(rows[split])
    names = agreed_names(named)
    check_paths(rows["train"] + rows["test"])
    for split, file in files.items():
        check_images(root, file, rows[split])
    parts = {split: listed(root, split_rows, large_set.jitter) for split, split_rows in rows.items()}
    names = names or folder_names(parts["train"], large_set.num_classes)
    return parts["train"], parts["test"], names, parts.get("validation")


def find_file(source: str, root: Path, names: tuple[str, ...]) -> Path:
    """The first of these files that is there; raises Absent where none is."""
    for name in names:
        if os.path.lexists(root / name):
            return root / name
    raise Absent(f"--data-root: must hold {' or '.join(names)} for --dataset {source}, there is none in {root}")


def listed(root: Path, rows: list[Row], jitter: float) -> ListedImages:
    """Rows as arrays."""
    paths = np.array([row.path for row in rows], object)
    return ListedImages(root, paths, np.array([row.label for row in rows], np.int64), jitter)


def folder_names(train: ListedImages, num_classes: int) -> list[str]:
    """Each class's name is its images' folder, as `n01440764` or `airfield`; the label where folders are shared."""
    first = np.unique(train.labels, return_index=True)[1]
    names = [Path(path).parent.name for path in train.paths[first]]
    return names if len(set(names)) == num_classes and all(names) else [str(k) for k in range(num_classes)]


# ---- checks


def agreed_names(named: Mapping[Path, list[str] | None]) -> list[str] | None:
    """The classes' names by label, on which those files that give them must agree; None where none does."""
    given = {file: names for file, names in named.items() if names is not None}
    if not given:
        return None
    first, agreed = next(iter(given.items()))
    for file, names in given.items():
        for k, (name, wanted) in enumerate(zip(names, agreed, strict=True)):
            if name != wanted:
                says = f"{file} must name the classes as {first.name} does, class {k} is {clip(wanted)} there"
                raise InputError(f"--data-root: {says}, got {clip(name)}")
    return agreed


def check_images(root: Path, file: Path, rows: list[Row]) -> None:
    """Raises InputError where an image is absent: it names the first, and says how many are there.

    Folders are listed, one after another, which costs far less than a look at each file.
    """
    members = defaultdict(list)
    for number, row in enumerate(rows):
        folder, name = os.path.split(row.path)
        members[folder].append((number, name))
    absent = []
    for folder, images in members.items():
        try:
            present = set(os.listdir(root / folder))
        except (OSError, ValueError):  # a name that no file can have
            present = set()
        absent += [number for number, name in images if name not in present]
    if absent:
        first, found = rows[min(absent)], len(rows) - len(absent)
        raise InputError(
            f"--data-root: {first.where}: must name an image file, there is no file {root / first.path}; "
            f"{found:,} of the {len(rows):,} images of {file.name} are there"
        )


# ---- iNaturalist's JSON


def read_json(root: Path, file: Path, num_classes: int) -> tuple[list[Row], list[str] | None]:
    """The competition's `images`, `annotations` and `categories`: rows, and names by label.

    Each image must have one annotation.

    Source: iNaturalist 2018 competition, annotation format.
    """
    content = load_json(file)
    labels: dict[int, int] = {}
    for number, entry in enumerate(content["annotations"]):
        where = f"{file} annotation {number}"
        image = field(where, entry, "image_id", int)
        if image in labels:
            raise InputError(f"--data-root: {where}: each image must have one annotation, image {image} has two")
        labels[image] = field(where, entry, "category_id", int)
        if labels[image] < 0:
            raise InputError(f"--data-root: {where}: category_id must be at least 0, got {labels[image]}")
    rows = []
    for number, entry in enumerate(content["images"]):
        where = f"{file} image {number}"
        image = field(where, entry, "id", int)
        if image not in labels:
            raise InputError(f"--data-root: {where}: must have an annotation, there is none of image {image}")
        rows.append(Row(where, below(root, where, field(where, entry, "file_name", str)), labels[image]))
    return rows, category_names(file, content["categories"], num_classes)


def load_json(file: Path) -> dict[str, list]:
    """A JSON file with the three lists, none of them empty; raises InputError where it is none."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"--data-root: {file} must be a JSON file that can be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"--data-root: {file} must be a whole JSON file ({error})") from error
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list) or not content[name]:
            raise InputError(f"--data-root: {file} must have images, annotations and categories, it has no {name}")
    return content


def field(where: str, entry: Any, key: str, kind: type) -> Any:
    """What a JSON entry has under a key; raises InputError where it is not of this kind."""
    value = entry.get(key) if isinstance(entry, dict) else None
    if type(value) is not kind:
        what = "a whole number" if kind is int else "a text"
        raise InputError(f"--data-root: {where}: {key} must be {what}, got {clip(json.dumps(value))}")
    return value


def category_names(file: Path, categories: list, num_classes: int) -> list[str] | None:
    """Names by label; None unless the categories are 0 to C - 1, each once and with a name of its own."""
    names = {}
    for number, entry in enumerate(categories):
        names[field(f"{file} category {number}", entry, "id", int)] = entry.get("name")
    words = {name for name in names.values() if isinstance(name, str) and name.isprintable() and name}
    whole = len(categories) == len(words) == num_classes and sorted(names) == list(range(num_classes))
    return [names[k] for k in range(num_classes)] if whole else None

"""Where images come from: CIFAR-100 or CIFAR-10, a tree of class folders, list files, an embedded synthetic set.

Each reader gives training images, test images and class names. Files and labels are checked before the first
image is decoded, and every fault is one line that says what is needed.
"""

import itertools
import os
import re
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from ltr import InputError, synthetic
from ltr.images import LabelledImages, Listing, read_listing

SPLITS = ("train", "test")
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SYNTHETIC = {"num_classes": 20, "train": 250, "test": 50, "size": 16}
Parts = tuple[LabelledImages, LabelledImages, list[str]]  # training images, test images, class names


class Absent(InputError):
    """The images are not there at all: finished runs can still be read."""


def read_cifar100(root: Path) -> Parts:
    """See `ltr.cifar`."""
    from ltr import cifar  # here, as torchvision alone takes two seconds to import

    return cifar.read(root)


def read_cifar10(root: Path) -> Parts:
    """See `ltr.cifar`."""
    from ltr import cifar

    return cifar.read(root, kind=cifar.CIFAR10)


# ---- a folder for each class


def refuse_folder(error: OSError) -> NoReturn:
    """Say that a folder cannot be read."""
    raise InputError(f"--data-root: {error.filename} must be a folder that can be read ({error.strerror})") from error


def is_image(name: str) -> bool:
    """Whether a file's name is an image's; `._photo.png` is what macOS leaves beside one."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def image_files(folder: Path) -> list[str]:
    """Image files in a class's folder and below it, in alphabetical order; links to folders are not followed.

    Raises:
        InputError: there is none, or a folder cannot be read.
    """
    paths = []
    for parent, folders, names in os.walk(folder, onerror=refuse_folder):
        folders[:] = (name for name in folders if not name.startswith("."))
        paths += [os.path.join(parent, name) for name in names if is_image(name)]
    if not paths:
        raise InputError(f"--data-root: {folder} must hold at least one image ({', '.join(SUFFIXES)})")
    return sorted(paths, key=os.path.split)


def list_classes(folder: Path) -> dict[str, list[str]]:
    """Image files of each class of a split, both in alphabetical order; names with a leading dot are left out.

    Raises:
        InputError: the folder is absent, or has no class or a class without images.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        refuse_folder(error)
    if not names:
        raise InputError(f"--data-root: {folder} must hold a folder of images for each class, and holds none")
    for name in names:
        if not name.isprintable():  # else it could be written to no table
            raise InputError(f"--data-root: class folders must have printable names, got {folder / name}")
    return {name: image_files(folder / name) for name in names}


def read_folder(root: Path) -> Parts:
    """Images of `root/train/<class>/*` and `root/test/<class>/*`.

    Raises:
        Absent: there is no such folder.
        InputError: a split, a class or an image is missing or broken.
    """
    check_root(root)
    classes = {split: list_classes(root / split) for split in SPLITS}
    names = list(classes["train"])
    if odd := sorted(classes["train"].keys() ^ classes["test"].keys()):
        where = "test" if odd[0] in names else "train"
        raise InputError(f"--data-root: train and test must have the same classes; {root / where} has no {odd[0]}")
    listings = []
    for split, members in classes.items():
        labels = [k for k, paths in enumerate(members.values()) for _ in paths]
        listings.append(Listing(split, list(itertools.chain(*members.values())), labels))
    return *read_pair(root, *listings), names


def check_root(root: Path) -> None:
    """Raises Absent where there is no folder `root`."""
    if not os.path.isdir(root):
        raise Absent(f"--data-root: must be a folder with train and test images, there is no folder {root}")


def read_pair(root: Path, *listings: Listing) -> tuple[LabelledImages, LabelledImages]:
    """Decode training and test images.

    Raises:
        InputError: an image is broken, or not all have one size.
    """
    train, test = (read_listing(root, listing) for listing in listings)
    if train.images.shape[1:] != test.images.shape[1:]:
        sizes = [f"{part.images.shape[2]}x{part.images.shape[1]}" for part in (train, test)]
        raise InputError(f"--data-root: all images must have one size; train's are {sizes[0]}, test's {sizes[1]}")
    return train, test


# ---- list files


class Row(NamedTuple):
    """A line of a list file: where it stands, its image's path below the root, its label."""

    where: str
    path: str
    label: int


def read_lines(path: Path) -> list[tuple[str, str]]:
    """The lines of a text file that are not blank, each after words that say where it stands.

    Raises:
        InputError: the file is absent, not UTF-8, or has none.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"--data-root: {path} must be a text file that can be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"--data-root: {path} line {line}: must be UTF-8 text") from error
    lines = [(f"{path} line {number}", line.strip()) for number, line in enumerate(text.split("\n"), 1)]
    lines = [(where, line) for where, line in lines if line]
    if not lines:
        raise InputError(f"--data-root: {path} must have at least one line, it is empty")
    return lines


def parse_row(root: Path, where: str, line: str) -> Row:
    """Check one line: a path below `root`, from there or in full, and a label, two words.

    Raises:
        InputError: it is anything else.
    """
    words = line.split()
    if len(words) != 2:
        raise InputError(f"--data-root: {where}: must be a path and a label without blanks, got {len(words)} words")
    path, label = words
    if not re.fullmatch(r"[0-9]{1,9}", label):
        raise InputError(f"--data-root: {where}: the label must be a whole number from 0 on, got {label}")
    return Row(where, below(root, where, path), int(label))


def below(root: Path, where: str, path: str) -> str:
    """A listed path as it leads from `root`; one in full must begin with it.

    Raises:
        InputError: it leads elsewhere.
    """
    relative = os.path.relpath(path, root) if os.path.isabs(path) else os.path.normpath(path)
    if ".." in Path(path).parts or relative.split(os.sep)[0] == ".." or os.path.isabs(relative):
        raise InputError(f"--data-root: {where}: the path must lead to a file below {root}, got {path}")
    return relative


def check_file(root: Path, row: Row) -> Row:
    """The row, where its file is there.

    Raises:
        InputError: it is not.
    """
    if not os.path.isfile(root / row.path):
        raise InputError(f"--data-root: {row.where}: must name an image file, there is no file {root / row.path}")
    return row


def check_labels(file: Path, rows: list[Row], num_classes: int) -> None:
    """Labels must be 0 to C - 1, each at least once.

    Raises:
        InputError: a label is beyond, or a class has no image.
    """
    last, largest = num_classes - 1, max(rows, key=lambda row: row.label)
    if largest.label > last:
        raise InputError(f"--data-root: {largest.where}: the label must be at most {last}, got {largest.label}")
    present = {row.label for row in rows}
    absent = next(k for k in itertools.count() if k not in present)
    if absent <= last:
        raise InputError(f"--data-root: {file} must have an image of each class 0 to {last}, class {absent} has none")


def check_paths(rows: list[Row]) -> None:
    """No image may be listed twice.

    Raises:
        InputError: one is.
    """
    seen: dict[str, str] = {}
    for row in rows:
        if row.path in seen:
            raise InputError(f"--data-root: {row.where}: each image must be listed once, {seen[row.path]} has it too")
        seen[row.path] = row.where


def read_list(root: Path) -> Parts:
    """Images that `root/train.txt` and `root/test.txt` name, a line each: `path/below/root.png label`.

    The format of the field's lists (ImageNet-LT, Places-LT). Labels are 0 to C - 1; `root/classes.txt` may name
    them, a line each, else the label is the name. Blank lines are skipped; there are no comments, as `#` may be
    part of a path.

    Raises:
        Absent: there is no such folder.
        InputError: a file is absent or a line wrong, an image is broken or listed twice, a class has no image.

    Source: Liu et al. 2019 (the lists of ImageNet-LT and Places-LT).
    """
    check_root(root)
    files = {split: root / f"{split}.txt" for split in SPLITS}
    rows = {
        split: [check_file(root, parse_row(root, *line)) for line in read_lines(file)] for split, file in files.items()
    }
    check_paths(list(itertools.chain(*rows.values())))
    named = root / "classes.txt"
    names = [line for _, line in read_lines(named)] if named.exists() else []
    labels = max(row.label for row in rows["train"]) + 1
    if len(names) > labels:
        raise InputError(f"--data-root: {named} must name the {labels} classes of train.txt, it names {len(names)}")
    num_classes = len(names) or labels
    for split in SPLITS:
        check_labels(files[split], rows[split], num_classes)
    listings = [
        Listing(files[split].name, [str(root / row.path) for row in rows[split]], [row.label for row in rows[split]])
        for split in SPLITS
    ]
    return *read_pair(root, *listings), names or [str(k) for k in range(num_classes)]


# ---- the embedded set


def read_synthetic(seed: int = 0) -> Parts:
    """Draw the embedded set, see `ltr.synthetic`."""
    num_classes, size = SYNTHETIC["num_classes"], SYNTHETIC["size"]
    parts = []
    for split in SPLITS:
        count = SYNTHETIC[split]
        images = [synthetic.draw_images(k, count, num_classes, size, seed, split) for k in range(num_classes)]
        parts.append(LabelledImages(np.concatenate(images), np.repeat(np.arange(num_classes), count)))
    return parts[0], parts[1], synthetic.class_names(num_classes)


READERS = {
    "cifar100": read_cifar100,
    "cifar10": read_cifar10,
    "folder": read_folder,
    "list": read_list,
    "synthetic": lambda _: read_synthetic(),
}

"""List files: text files that name images and their labels, a line each."""

import itertools
import os
import re
from pathlib import Path
from typing import NamedTuple

from ltr.data.images import SPLITS, Listing, Parts, check_root, read_pair
from ltr.errors import InputError


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
    try:
        relative = os.path.relpath(path, root) if Path(path).anchor else os.path.normpath(path)
    except ValueError:  # on another drive of Windows
        relative = os.pardir
    if ".." in Path(path).parts or relative.split(os.sep)[0] == ".." or os.path.isabs(relative):
        raise InputError(f"--data-root: {where}: the path must lead to a file below {root}, got {path}")
    return relative


def check_file(root: Path, row: Row) -> Row:
    """The row; raises InputError where its file is not there."""
    if not os.path.isfile(root / row.path):
        raise InputError(f"--data-root: {row.where}: must name an image file, there is no file {root / row.path}")
    return row


def check_labels(file: Path, rows: list[Row], num_classes: int) -> None:
    """Labels must be 0 to C - 1, each at least once.

    Raises:
        InputError: a label is beyond, or a class has no image.
    """
    last = num_classes - 1
    largest = max(rows, key=lambda row: row.label)
    if largest.label > last:
        raise InputError(f"--data-root: {largest.where}: the label must be at most {last}, got {largest.label}")
    present = {row.label for row in rows}
    absent = next(k for k in itertools.count() if k not in present)
    if absent <= last:
        raise InputError(f"--data-root: {file} must have an image of each class 0 to {last}, class {absent} has none")


def check_paths(rows: list[Row]) -> None:
    """No image may be listed twice; raises InputError where one is."""
    seen: dict[str, str] = {}
    for row in rows:
        if row.path in seen:
            raise InputError(f"--data-root: {row.where}: each image must be listed once, {seen[row.path]} has it too")
        seen[row.path] = row.where


def listings(root: Path, resize: int | None = None) -> tuple[list[Listing], list[str]]:
    """Images that `root/train.txt` and `root/test.txt` name, a line each: `path/below/root.png label`.

    The format of the field's lists (ImageNet-LT, Places-LT). Labels are 0 to C - 1; `root/classes.txt` may name
    them, a line each, else the label is the name. Blank lines are skipped; there are no comments, as `#` may be
    part of a path. `resize` brings images to one size, see `Listing`. None is decoded.

    Raises:
        Absent: there is no such folder.
        InputError: a file is absent or a line wrong, an image is listed twice, a class has no image.

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
    found = [
        Listing(file.name, [str(root / row.path) for row in rows[split]], [row.label for row in rows[split]], resize)
        for split, file in files.items()
    ]
    return found, names or [str(k) for k in range(num_classes)]


def read_list(root: Path, resize: int | None = None) -> Parts:
    """The images of `listings`, decoded.

    Raises:
        InputError: see `listings`; or an image is broken.
    """
    parts, names = listings(root, resize)
    return *read_pair(root, *parts), names

"""A tree of class folders: files and labels are checked before the first image is decoded."""

import itertools
import os
import warnings
from collections import Counter
from pathlib import Path
from typing import NoReturn

from ltr.data.images import SPLITS, Listing, Parts, check_root, read_pair
from ltr.errors import InputError, printable

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".avif", ".ppm", ".pgm", ".bmp", ".tif", ".tiff")
# What systems put beside one's own folders, in lower case: macOS into archives, Synology (small copies of the images),
# Windows, and Linux.
IGNORED = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "thumbs.db", "desktop.ini")


def refuse_folder(error: OSError) -> NoReturn:
    """Say that a folder cannot be read."""
    raise InputError(f"--data-root: {error.filename} must be a folder that can be read ({error.strerror})") from error


def is_litter(name: str) -> bool:
    """Whether a folder or file is hidden or a system's own, hence neither a class nor a part of one."""
    return name.startswith(".") or name.lower() in IGNORED


def image_files(folder: Path, others: Counter[str]) -> list[str]:
    """Image files in a class's folder and below it, in alphabetical order; links to folders are not followed.

    Args:
        others: what files of other names end in, to be counted.

    Raises:
        InputError: there is none, or a folder cannot be read.
    """
    paths = []
    for parent, folders, names in os.walk(folder, onerror=refuse_folder):
        folders[:] = (name for name in folders if not is_litter(name))
        names = [name for name in names if not is_litter(name)]  # `._photo.png` is what macOS leaves beside one
        paths += [os.path.join(parent, name) for name in names if name.lower().endswith(SUFFIXES)]
        others.update(os.path.splitext(name)[1] for name in names if not name.lower().endswith(SUFFIXES))
    if not paths:
        raise InputError(f"--data-root: {folder} must hold at least one image ({', '.join(SUFFIXES)})")
    return sorted(paths, key=os.path.split)


def list_classes(folder: Path) -> dict[str, list[str]]:
    """Image files of each class of a split, both in alphabetical order; see `is_litter` for what is passed over.

    A warning tells of files that are no images by their names.

    Raises:
        InputError: the folder is absent, or has no class or a class without images.
    """
    _, folders, _ = next(os.walk(folder, onerror=refuse_folder))
    names = sorted(name for name in folders if not is_litter(name))
    if not names:
        raise InputError(f"--data-root: {folder} must hold a folder of images for each class, and holds none")
    for name in names:
        if not name.isprintable():  # else it could be written to no table
            raise InputError(f"--data-root: class folders must have printable names, got {folder / name}")
    others: Counter[str] = Counter()
    found = {name: image_files(folder / name, others) for name in names}
    if others:
        ends = ", ".join(sorted(printable(end) or "no ending" for end in others))
        warnings.warn(f"{folder}: {others.total()} files are left out, no images by their names ({ends})", stacklevel=2)
    return found


def listings(root: Path, resize: int | None = None) -> tuple[list[Listing], list[str]]:
    """Images of `root/train/<class>/*` and `root/test/<class>/*`, none decoded, and the names of the classes.

    Raises:
        Absent: there is no such folder.
        InputError: a split or a class is missing or empty.
    """
    check_root(root)
    classes = {split: list_classes(root / split) for split in SPLITS}
    names = list(classes["train"])
    if odd := sorted(classes["train"].keys() ^ classes["test"].keys()):
        where = "test" if odd[0] in names else "train"
        raise InputError(f"--data-root: train and test must have the same classes; {root / where} has no {odd[0]}")
    found = []
    for split, members in classes.items():
        labels = [k for k, paths in enumerate(members.values()) for _ in paths]
        found.append(Listing(split, list(itertools.chain(*members.values())), labels, resize))
    return found, names


def read_folder(root: Path, resize: int | None = None) -> Parts:
    """The images of `listings`, brought to one size by `resize` (see `Listing`).

    Raises:
        InputError: see `listings`; or an image is broken.
    """
    parts, names = listings(root, resize)
    return *read_pair(root, *parts), names

"""CIFAR-100 and CIFAR-10: from their files where they are whole, else unpacked from the archive, else downloaded.

torchvision names the files and their MD5 sums, unpacks the archive and reads the files; a file whose sum is wrong
is never opened as a pickle.
"""

import os
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import calculate_md5, check_integrity, extract_archive

from ltr.download import Patience, fetch
from ltr.images import LabelledImages
from ltr.sources import SPLITS, Absent, Parts
from ltr.storage import remove_partial

Kind = type[CIFAR10]  # torchvision's CIFAR100 is a subclass, with other names and sums
TITLES = {CIFAR10: "CIFAR-10", CIFAR100: "CIFAR-100"}


def stored(root: Path, kind: Kind = CIFAR100) -> Parts | None:
    """The set as torchvision unpacked it; None unless every file has its right MD5."""
    try:
        parts = [kind(root, train=split == "train") for split in SPLITS]
    except (OSError, RuntimeError):  # not found or corrupted
        return None
    train, test = (LabelledImages(part.data, np.asarray(part.targets, np.int64)) for part in parts)
    return train, test, parts[0].classes


def wrong_sums(root: Path, kind: Kind) -> str:
    """Both MD5 sums of each of the set's files that is there and not as it should be."""
    members = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    expected = {root / kind.filename: kind.tgz_md5}
    expected |= {root / kind.base_folder / name: md5 for name, md5 in members}
    found = {path: calculate_md5(path) for path in expected if os.path.isfile(path) and os.access(path, os.R_OK)}
    wrong = [f"{path} has MD5 {md5}, expected {expected[path]}" for path, md5 in found.items() if md5 != expected[path]]
    return "".join(f"; {words}" for words in wrong)


def unpack(root: Path, patience: Patience, kind: Kind = CIFAR100) -> None:
    """Unpack the set's archive, after fetching it where it is not there whole.

    Raises:
        DownloadError: it cannot be had.
        OSError: it cannot be written.
    """
    archive = root / kind.filename
    remove_partial(root, archive.name)
    if not check_integrity(archive, kind.tgz_md5):
        fetch(kind.url, archive, kind.tgz_md5, patience)
    extract_archive(archive, root)


def obtain(root: Path, patience: Patience, kind: Kind) -> Parts | None:
    """Unpack the set while no other process does, and read it; raises what `unpack` does."""
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / f".{kind.__name__.lower()}.lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process that puts {TITLES[kind]} into {root}", flush=True)
        held = lock.acquire()
    with held:
        if (parts := stored(root, kind)) is None:  # else the other process has brought it
            unpack(root, patience, kind)
            parts = stored(root, kind)
        return parts


def read(root: Path, patience: Patience | None = None, kind: Kind = CIFAR100) -> Parts:
    """CIFAR-100 or CIFAR-10 from `root`; fetched and unpacked there where its files are not whole.

    The network is touched only where neither the unpacked files nor the archive have their right MD5.

    Raises:
        Absent: the files are neither there nor to be had; the message says what to put where.
    """
    reason = "its files are not as expected"
    try:
        if parts := stored(root, kind) or obtain(root, patience or Patience(), kind):
            return parts
    except (OSError, RuntimeError) as error:
        reason = str(error)
    raise Absent(
        f"--data-root: {TITLES[kind]} is not in {root} and could not be had from {kind.url} ({reason}); put "
        f"{kind.filename} (MD5 {kind.tgz_md5}) there, or use --dataset folder, list or synthetic"
        + wrong_sums(root, kind)
    )

"""CIFAR-100: from its files where they are whole, else unpacked from the archive, else downloaded.

torchvision names the files and their MD5 sums, unpacks the archive and reads the files; a file whose sum is wrong
is never opened as a pickle.
"""

import os
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from torchvision.datasets import CIFAR100
from torchvision.datasets.utils import calculate_md5, check_integrity, extract_archive

from ltr.download import Patience, fetch
from ltr.images import LabelledImages
from ltr.sources import SPLITS, Absent, Parts
from ltr.storage import remove_partial


def stored(root: Path) -> Parts | None:
    """CIFAR-100 as torchvision unpacked it; None unless every file has its right MD5."""
    try:
        parts = [CIFAR100(root, train=split == "train") for split in SPLITS]
    except (OSError, RuntimeError):  # not found or corrupted
        return None
    train, test = (LabelledImages(part.data, np.asarray(part.targets, np.int64)) for part in parts)
    return train, test, parts[0].classes


def wrong_sums(root: Path) -> str:
    """Both MD5 sums of each of CIFAR-100's files that is there and not as it should be."""
    members = [*CIFAR100.train_list, *CIFAR100.test_list, (CIFAR100.meta["filename"], CIFAR100.meta["md5"])]
    expected = {root / CIFAR100.filename: CIFAR100.tgz_md5}
    expected |= {root / CIFAR100.base_folder / name: md5 for name, md5 in members}
    found = {path: calculate_md5(path) for path in expected if os.path.isfile(path) and os.access(path, os.R_OK)}
    wrong = [f"{path} has MD5 {md5}, expected {expected[path]}" for path, md5 in found.items() if md5 != expected[path]]
    return "".join(f"; {words}" for words in wrong)


def unpack(root: Path, patience: Patience) -> None:
    """Unpack CIFAR-100's archive, after fetching it where it is not there whole.

    Raises:
        DownloadError: it cannot be had.
        OSError: it cannot be written.
    """
    archive = root / CIFAR100.filename
    remove_partial(root, archive.name)
    if not check_integrity(archive, CIFAR100.tgz_md5):
        fetch(CIFAR100.url, archive, CIFAR100.tgz_md5, patience)
    extract_archive(archive, root)


def obtain(root: Path, patience: Patience) -> Parts | None:
    """Unpack CIFAR-100 while no other process does, and read it; raises what `unpack` does."""
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / ".cifar100.lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process that puts CIFAR-100 into {root}", flush=True)
        held = lock.acquire()
    with held:
        if (parts := stored(root)) is None:  # else the other process has brought it
            unpack(root, patience)
            parts = stored(root)
        return parts


def read(root: Path, patience: Patience | None = None) -> Parts:
    """CIFAR-100 from `root`; fetched and unpacked there where its files are not whole.

    The network is touched only where neither the unpacked files nor the archive have their right MD5.

    Raises:
        Absent: the files are neither there nor to be had; the message says what to put where.
    """
    reason = "its files are not as expected"
    try:
        if parts := stored(root) or obtain(root, patience or Patience()):
            return parts
    except (OSError, RuntimeError) as error:
        reason = str(error)
    raise Absent(
        f"--data-root: CIFAR-100 is not in {root} and could not be had from {CIFAR100.url} ({reason}); put "
        f"{CIFAR100.filename} (MD5 {CIFAR100.tgz_md5}) there, or use --dataset folder, list or synthetic"
        + wrong_sums(root)
    )

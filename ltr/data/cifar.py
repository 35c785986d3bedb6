"""CIFAR-100 and CIFAR-10: from their files where they are whole, else unpacked from the archive, else downloaded.

torchvision names the files and their MD5 sums, unpacks the archive and reads the files; a file whose sum is wrong
is never opened as a pickle. torchvision's own download waits for ever on a host that stalls, takes a cut connection for
the end of the file, and leaves what it got under the file's name; so the transfer is here: in several attempts, with a
timeout, and kept only when it is whole.
"""

import hashlib
import http.client
import io
import os
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import calculate_md5, check_integrity, extract_archive

from ltr.data.images import SPLITS, Absent, LabelledImages, Parts
from ltr.errors import printable
from ltr.runtime.storage import remove_partial, write_whole

Kind = type[CIFAR10]  # torchvision's CIFAR100 is a subclass, with other names and sums
KINDS = {"cifar10": CIFAR10, "cifar100": CIFAR100}
TITLES = {CIFAR10: "CIFAR-10", CIFAR100: "CIFAR-100"}
CHUNK = 2**16  # bytes


class DownloadError(RuntimeError):
    """A file could not be had whole; the message says why."""


@dataclass(frozen=True)
class Retries:
    """How long to try."""

    attempts: int = 4  # at most
    pause: float = 2.0  # seconds before the second attempt, twice as long before each further one
    timeout: float = 30.0  # seconds without a single byte after which an attempt has failed


def receive(url: str, timeout: float) -> Iterator[bytes]:
    """Yield a file's bytes as they come and print each tenth of the way.

    Raises:
        DownloadError: the host cannot be reached, refuses, stalls, or stops before the end.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "ltr"})
    received = size = 0
    print(f"downloading {url}", end="", flush=True)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            size = int(response.headers.get("Content-Length") or 0)
            print(f" ({size / 1e6:.1f} MB):" if size else ", of unknown size", end="", flush=True)
            while chunk := response.read1(CHUNK):
                tenths = range(10 * received // size + 1, 10 * (received + len(chunk)) // size + 1) if size else ()
                print("".join(f" {10 * tenth} %" for tenth in tenths), end="", flush=True)
                received += len(chunk)
                yield chunk
    except (OSError, http.client.HTTPException, ValueError) as error:
        stalled = isinstance(getattr(error, "reason", error), TimeoutError)
        raise DownloadError(f"no answer for {timeout:g} s" if stalled else printable(str(error))) from error
    finally:
        print(flush=True)
    if received < size:
        raise DownloadError(f"connection cut after {received:,} of {size:,} bytes")


def fetch(url: str, path: Path, md5: str, retries: Retries) -> None:
    """Fetch a file in several attempts, each reported in a line: with its right MD5, or `path` stays as it was.

    Raises:
        DownloadError: every attempt failed; the message is the last one's.
        OSError: the disk is full or the folder not writable, which no further attempt would mend.
    """

    def write(file: io.BufferedIOBase) -> None:
        digest = hashlib.md5(usedforsecurity=False)
        for chunk in receive(url, retries.timeout):
            file.write(chunk)
            digest.update(chunk)
        if digest.hexdigest() != md5:
            raise DownloadError(f"what came as {path.name} has MD5 {digest.hexdigest()}, expected {md5}")

    for attempt in range(1, retries.attempts + 1):
        try:
            return write_whole(path, write)
        except DownloadError as error:
            if attempt == retries.attempts:
                raise DownloadError(f"{error}, at attempt {attempt} of {attempt}") from error
            pause = retries.pause * 2 ** (attempt - 1)
            print(f"attempt {attempt} of {retries.attempts} failed: {error}; the next in {pause:g} s", flush=True)
            time.sleep(pause)


# ---- the set


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


def unpack(root: Path, retries: Retries, kind: Kind = CIFAR100) -> None:
    """Unpack the set's archive, after fetching it where it is not there whole.

    Raises:
        DownloadError: it cannot be had.
        OSError: it cannot be written.
    """
    archive = root / kind.filename
    remove_partial(root, archive.name)
    if not check_integrity(archive, kind.tgz_md5):
        fetch(kind.url, archive, kind.tgz_md5, retries)
    extract_archive(archive, root)


def obtain(root: Path, retries: Retries, kind: Kind) -> Parts | None:
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
            unpack(root, retries, kind)
            parts = stored(root, kind)
        return parts


def read(root: Path, retries: Retries | None = None, kind: Kind = CIFAR100) -> Parts:
    """CIFAR-100 or CIFAR-10 from `root`; fetched and unpacked there where its files are not whole.

    The network is touched only where neither the unpacked files nor the archive have their right MD5.

    Raises:
        Absent: the files are neither there nor to be had; the message says what to put where.
    """
    reason = "its files are not as expected"
    try:
        if parts := stored(root, kind) or obtain(root, retries or Retries(), kind):
            return parts
    except (OSError, RuntimeError) as error:
        reason = str(error)
    raise Absent(
        f"--data-root: {TITLES[kind]} is not in {root} and could not be had from {kind.url} ({reason}); put "
        f"{kind.filename} (MD5 {kind.tgz_md5}) there, or use --dataset folder, list or synthetic"
        + wrong_sums(root, kind)
    )

"""Fetch one file over HTTP: in several attempts, with a timeout, and kept only when it is whole.

torchvision's own download waits for ever on a host that stalls, takes a cut connection for the end of the file,
and leaves what it got under the file's name; so the transfer is here, and torchvision unpacks and checks.
"""

import hashlib
import http.client
import io
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ltr import printable
from ltr.storage import write_whole

CHUNK = 2**16  # bytes


class DownloadError(RuntimeError):
    """A file could not be had whole; the message says why."""


@dataclass(frozen=True)
class Patience:
    """How long to try.

    Attributes:
        attempts: at most.
        pause: seconds before the second attempt, twice as long before each further one.
        timeout: seconds without a single byte after which an attempt has failed.
    """

    attempts: int = 4
    pause: float = 2.0
    timeout: float = 30.0


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


def receive_whole(url: str, path: Path, md5: str, timeout: float) -> None:
    """One attempt: the file appears at `path` with its right MD5, or `path` stays as it was.

    Raises:
        DownloadError: see `receive`, or the MD5 is wrong.
        OSError: the disk is full or the folder not writable.
    """
    digest = hashlib.md5(usedforsecurity=False)

    def write(file: io.BufferedIOBase) -> None:
        for chunk in receive(url, timeout):
            file.write(chunk)
            digest.update(chunk)
        if digest.hexdigest() != md5:
            raise DownloadError(f"what came as {path.name} has MD5 {digest.hexdigest()}, expected {md5}")

    write_whole(path, write)


def fetch(url: str, path: Path, md5: str, patience: Patience) -> None:
    """Fetch a file in several attempts, each reported in a line.

    Raises:
        DownloadError: every attempt failed; the message is the last one's.
        OSError: the disk is full or the folder not writable, which no further attempt would mend.
    """
    for attempt in range(1, patience.attempts + 1):
        try:
            return receive_whole(url, path, md5, patience.timeout)
        except DownloadError as error:
            if attempt == patience.attempts:
                raise DownloadError(f"{error}, at attempt {attempt} of {attempt}") from error
            pause = patience.pause * 2 ** (attempt - 1)
            print(f"attempt {attempt} of {patience.attempts} failed: {error}; the next in {pause:g} s", flush=True)
            time.sleep(pause)

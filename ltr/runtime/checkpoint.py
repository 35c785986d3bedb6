"""Checkpoints that notice damage, and how often one is saved.

A checkpoint is a magic word, the SHA-256 of what follows, and what `torch.save` wrote. The one before it is
kept as `<name>.previous` until the next is whole, so that at any moment one of the two can be loaded.
"""

import contextlib
import hashlib
import io
import math
import os
import pickle
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ltr.errors import InputError
from ltr.runtime.storage import serialise, write_whole

MAGIC = b"ltr-checkpoint-1\n"
DIGEST_SIZE = hashlib.sha256().digest_size


def previous(path: Path) -> Path:
    """Where the checkpoint before the latest one is kept."""
    return path.with_name(path.name + ".previous")


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Save tensors and plain values; the checkpoint before stays as the previous one.

    Raises:
        StorageError: the disk is full or the folder not writable; what could be loaded before still can.
    """
    content = serialise(state)

    def write(file: io.BufferedIOBase) -> None:
        file.write(MAGIC + hashlib.sha256(content).digest())
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        if path.exists():
            os.replace(path, previous(path))

    write_whole(path, write)


def read_checkpoint(path: Path, device: torch.device | str) -> dict[str, Any]:
    """Read one file and check its hash; nothing in it is executed.

    Raises:
        ValueError: it is cut short, changed, or no checkpoint.
    """
    content = path.read_bytes()
    start = len(MAGIC) + DIGEST_SIZE
    if not content.startswith(MAGIC) or len(content) <= start:
        raise ValueError("it is no checkpoint, or cut short")
    if hashlib.sha256(content[start:]).digest() != content[len(MAGIC) : start]:
        raise ValueError("its hash does not match its content")
    try:
        return torch.load(io.BytesIO(content[start:]), map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError("it holds more than tensors and plain values") from error


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """The latest whole checkpoint: `path`, or the previous one with a warning that names what is damaged, and goes.

    Returns:
        the state, or None where there is no checkpoint.

    Raises:
        InputError: there are checkpoints, and none can be read.
    """
    damaged, unreadable = [], False
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        try:
            state = read_checkpoint(candidate, device)
        except (OSError, ValueError) as error:
            damaged.append(f"{candidate} cannot be used: {error}")
            unreadable |= isinstance(error, OSError)  # which may pass
            continue
        for message in damaged:
            warnings.warn(f"{message}; going on from {candidate.name}", stacklevel=2)
        if candidate != path and path.exists() and not unreadable:
            with contextlib.suppress(OSError):  # a tree that is only read
                path.unlink()  # or the next save would put it in the place of this one
        return state
    if damaged:
        raise InputError(f"--out: {'; '.join(damaged)}; --retrain starts anew")
    return None


def remove_checkpoint(path: Path) -> None:
    """Remove the checkpoint and the previous one."""
    for candidate in (path, previous(path)):
        candidate.unlink(missing_ok=True)


def check_same(own: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """What a run is told must be what a checkpoint's was.

    Raises:
        InputError: it differs; the message names the first field that does, and both values.
    """
    for field in sorted(own.keys() | theirs.keys()):
        if own.get(field) != theirs.get(field):
            difference = f"{field} is {theirs.get(field)} there and {own.get(field)} here"
            raise InputError(f"--out: the checkpoint is of another run: {difference}; --retrain starts anew")


class Checkpoints:
    """One training's checkpoint at `path`; None keeps nothing."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.saved_at, self.seconds = path, -math.inf, 0.0

    def load(self, device: torch.device | str) -> dict[str, Any] | None:
        """See `load_checkpoint`."""
        return load_checkpoint(self.path, device) if self.path else None

    def save_when_due(self, state: Callable[[], Mapping[str, Any]], last: bool = False) -> None:
        """Save each time, less often where that would take more than a twentieth of the time; the last time always.

        Raises:
            StorageError: see `save_checkpoint`.
        """
        now = time.perf_counter()
        if self.path and (last or now - self.saved_at > 20 * self.seconds):
            save_checkpoint(self.path, state())
            self.saved_at = time.perf_counter()
            self.seconds = self.saved_at - now

"""Files that are written whole or not at all, and checkpoints that notice damage.

A checkpoint is a magic word, the SHA-256 of what follows, and what `torch.save` wrote. The one before it is
kept as `<name>.previous` until the next is whole, so that at any moment one of the two can be loaded.
"""

import contextlib
import hashlib
import io
import json
import os
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ltr import InputError, StorageError

MAGIC = b"ltr-checkpoint-1\n"
DIGEST_SIZE = hashlib.sha256().digest_size


def write_whole(path: Path, write: Callable[[io.BufferedIOBase], None]) -> None:
    """Write through a temporary file beside `path`, so that readers see the old file or the new one.

    Raises:
        StorageError: the disk is full or the folder not writable; `path` is as it was.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(f"cannot write {path}: {reason}; what was saved before is whole") from error
    finally:
        with contextlib.suppress(OSError):  # what stopped the writing may stop this too
            partial.unlink(missing_ok=True)


def remove_partial(folder: Path, name: str = "*") -> None:
    """Remove what killed processes left half-written; only for files that nobody else writes now."""
    for partial in folder.glob(f".{name}.*.tmp"):
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    write_whole(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON a person can read, whole or not at all; NaN becomes null."""
    clean = json.loads(json.dumps(content, default=str), parse_constant=lambda _: None)
    write_text(path, json.dumps(clean, indent=1, ensure_ascii=False) + "\n")


def serialise(content: Mapping[str, Any]) -> memoryview:
    """What `torch.save` writes; in memory, since it hides the system's reason where a file cannot be written."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    return buffer.getbuffer()


def write_weights(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Save a state dict as `torch.load(path, weights_only=True)` reads it anywhere."""
    content = serialise(weights)
    write_whole(path, lambda file: file.write(content))


def read_weights(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Load what `write_weights` wrote; nothing in the file is executed.

    Raises:
        InputError: the file is damaged or holds more than tensors and plain values.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"--out: {path} is damaged or holds no plain weights; --retrain repeats the run") from error


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
    """The latest whole checkpoint: `path`, or the previous one with a warning that names what is damaged.

    Returns:
        the state, or None where there is no checkpoint.

    Raises:
        InputError: there are checkpoints, and none can be read.
    """
    damaged = []
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        try:
            state = read_checkpoint(candidate, device)
        except (OSError, ValueError) as error:
            damaged.append(f"{candidate} cannot be used: {error}")
            continue
        for message in damaged:
            warnings.warn(f"{message}; going on from {candidate.name}", stacklevel=2)
        return state
    if damaged:
        raise InputError(f"--out: {'; '.join(damaged)}; --retrain starts anew")
    return None


def remove_checkpoint(path: Path) -> None:
    """Remove the checkpoint and the previous one."""
    for candidate in (path, previous(path)):
        candidate.unlink(missing_ok=True)

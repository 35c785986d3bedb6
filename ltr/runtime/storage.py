"""Files that are written whole or not at all, and tables that come back as they were written."""

import atexit
import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock

from ltr.errors import InputError, StorageError, clip

# Columns of the package's tables that hold words: of results.csv, and those that comparison.csv adds.
TEXT = (
    *("dataset", "profile", "backbone", "method", "loss", "max_norm_every", "mode", "selection", "tta", "run"),
    *("stage1_run", "network", "mix", "augmentation", "sampling", "precision", "commit"),
    *("device", "torch", "hyper-parameters", "source", "tuned_on", "tuning_run", "trained_by", "metric"),
    *("further", "classifier", "against"),
)


def check_writable(path: Path, option: str = "--out") -> None:
    """Try to write below a folder; raises InputError where it cannot be made or written to."""
    made = [each for each in (path, *path.parents) if not os.path.exists(each)]
    try:
        path.mkdir(parents=True, exist_ok=True)
        atexit.register(remove_empty, made)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"{option}: must be a folder that can be written to, got {path} ({error.strerror})") from error


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove those of some folders in which nothing was written, inner ones first."""
    for path in folders:
        with contextlib.suppress(OSError):
            path.rmdir()


def write_whole(path: Path, write: Callable[[io.BufferedIOBase], None]) -> None:
    """Write through a temporary file beside `path`, or what it links to, so that readers see the old file or the new.

    Raises:
        StorageError: the disk is full or the folder not writable; `path` is as it was.
    """
    path = Path(os.path.realpath(path))
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


def plain(value: Any) -> Any:
    """What JSON has no form for: a number of NumPy's as Python's own, all else in words."""
    return value.item() if isinstance(value, np.generic) else str(value)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON a person can read, whole or not at all; NaN becomes null."""
    clean = json.loads(json.dumps(content, default=plain), parse_constant=lambda _: None)
    write_text(path, json.dumps(clean, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path, parts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """JSON of these parts, each with entries of these names, or without any.

    Raises:
        ValueError: it has not all of them.
        OSError: it cannot be read.
    """
    content = json.loads(path.read_text("utf-8"))
    for part, entries in parts.items():
        if not isinstance(content, dict) or part not in content:
            raise ValueError(f"it has no {part}")
        for entry in entries:
            if not isinstance(content[part], dict) or entry not in content[part]:
                raise ValueError(f"its {part} has no {entry}")
    return content


def read_part(path: Path, read: Callable[[Path], Any], hint: str = "") -> Any:
    """A file of a run, as `read` reads it; an error ends with the hint.

    Raises:
        InputError: it is not there, or damaged; the message names it.
    """
    end = f"; {hint}" if hint else ""
    try:
        return read(path)
    except InputError as error:  # which says what is wrong
        raise InputError(f"{error}{end}") from error
    except Exception as error:  # a damaged file raises whatever its damage leads to
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"--out: {path} cannot be read: {reason}{end}") from error


def read_table(path: Path | io.StringIO, option: str = "--out", needs: Sequence[str] = ()) -> pd.DataFrame:
    """A table of the package: results.csv, comparison.csv, and the tuning's tables of the same columns.

    Words stay as they were written, in all columns of `TEXT`: a data folder's name may be `007`, `1e3`, `NA` or `True`.
    Of the other columns pandas tells the type. An empty cell is missing, and nothing else is: NaN in either kind.

    Args:
        path: of the file; or its text.
        option: what an error begins with.
        needs: columns that must be there.

    Raises:
        InputError: there is no such file, or it is no such table.
        OSError: it cannot be read.
    """
    if isinstance(path, Path) and not path.is_file():
        raise InputError(f"{option}: there is no file {path}")
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(TEXT, str), keep_default_na=False, na_values=[""])
    except ValueError as error:  # of pandas' parser, or of text that is not UTF-8
        reason = " ".join(str(error).split())
        raise InputError(f"{option}: {path} must be a table of comma-separated values ({reason})") from error
    check_columns(table, path, option, needs)
    return table


def check_columns(table: pd.DataFrame, path: Path | io.StringIO, option: str, needs: Sequence[str]) -> None:
    """Raises InputError where a file's table lacks a column."""
    if lacking := [name for name in needs if name not in table]:
        raise InputError(f"{option}: {path} must have a column {lacking[0]}, got {clip(', '.join(table))}")


def update_table(
    path: Path,
    rows: pd.DataFrame,
    replaces: Callable[[pd.DataFrame, pd.DataFrame], pd.Series],
    needs: Sequence[str],
    order: Sequence[str] = (),
) -> None:
    """Put rows into a table's file, which need not be there yet; no rows of another process are lost.

    Args:
        rows: new ones.
        replaces: which of the old rows give way, of both tables as the file has them.
        needs: columns that the file must have.
        order: columns to sort by.

    Raises:
        InputError: there is a file that is no such table.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        remove_partial(path.parent, path.name)
        table = read_table(io.StringIO(table_text(rows)))  # of the types that the file's columns have
        if path.exists():
            old = read_table(path, needs=needs)
            parts = [part for part in (old[~replaces(old, table)], table) if len(part)]
            table = pd.concat(parts, ignore_index=True) if parts else table
        write_text(path, table_text(table.sort_values([*order]) if order else table))


def is_table(path: Path) -> bool:
    """Whether a table is there and whole."""
    with contextlib.suppress(OSError, InputError):
        return len(read_table(path).columns) > 0
    return False


def table_text(table: pd.DataFrame) -> str:
    """A table as CSV, its figures with six digits."""
    return table.to_csv(index=False, float_format="%.6g")


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
    except Exception as error:  # a damaged file raises whatever its damage leads to
        raise InputError(f"--out: {path} is damaged or holds no plain weights") from error

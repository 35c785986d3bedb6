"""Balance a linear head that you have, on embeddings in npz files:

    python -m ltr balance --train train.npz --validation val.npz --test test.npz --head model.pt --layer fc

A file has `features` [N, D] of any float type and `labels` [N], integers or strings; the training one may have `names`
[C]: what classes are called, which for labels that are strings is also the order of the head's rows. `--head` is a
state dict, as `torch.save(model.state_dict(), ...)` writes it; without one plain cross-entropy gives the first head,
and `--validation-share 0.2` may take the validation images from the training ones. Into `--out` (`balanced`) go the
best head under the state dict's own keys (head.pt), table.csv, per_class.csv, chosen.json and report.html, one file
with its figures inside.
"""

import contextlib
import os
import re
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ltr.balance import SCORES, WRITTEN, Balanced, balance, check_own
from ltr.errors import InputError, clip
from ltr.runtime.machine import use_physical_cores
from ltr.runtime.options import file, flag, folder, given_values, option, real, short, whole
from ltr.runtime.storage import write_text
from ltr.study import balance_report

WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which checkpoints keep the weights
ALL_WRITTEN = (*WRITTEN, "report.html")
DAMAGED = (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Balance a linear head on embeddings, tuned on validation images and tested once (docs/balance.md)."""

    train: Path = option(None, "npz file with features, labels and optional names", file)
    validation: Path = option(None, "npz file of images that choose settings and temperatures", file)
    test: Path = option(None, "npz file of images that only the numbers depend on", file)
    head: Path = option(None, "file with the state dict of your model or its head", file)
    layer: str = option(None, "name of the linear layer in it, as fc or head.fc")
    score: str = option("macro", "what validation images choose by: the class mean, or all images", choices=(*SCORES,))
    methods: str = option("fast", "those that take seconds, all, or names, as tau-norm,CB + WD")
    validation_share: float = option(
        None, "without --head: share of each class to validate on", real, above=0, high=0.9
    )
    seed: int = option(0, "of the draws", whole, low=0, high=2**32 - 1)
    out: Path = option(Path("balanced"), "folder for what comes out", folder)


def read_npz(path: Path, name: str) -> dict[str, np.ndarray]:
    """features, labels and, if there are any, names of a file; nothing in it is executed.

    Raises:
        InputError: there is no such file, it is no npz, lacks one of both, or holds pickled objects.
    """
    what = f"{flag(name)}: must be an npz file with arrays features and labels, no pickled objects, got"
    try:
        with open(path, "rb") as opened:
            if not zipfile.is_zipfile(opened):
                raise InputError(f"{what} {clip(path.name)}, which is no npz")
            opened.seek(0)
            stored = np.load(opened, allow_pickle=False)
            arrays = {key: stored[key] for key in ("features", "labels", "names") if key in stored.files}
    except InputError:
        raise
    except DAMAGED as error:
        reason = (
            getattr(error, "strerror", None) or "damaged, or with pickled objects: np.asarray(labels, str) has none"
        )
        raise InputError(f"{what} {clip(path.name)} ({reason})") from error
    if lacking := {"features", "labels"} - arrays.keys():
        raise InputError(f"{what} {clip(path.name)} without {' and '.join(sorted(lacking))}")
    return arrays


def read_state(path: Path) -> Mapping[str, Any]:
    """The weights in a file of `torch.save`; nothing in it is executed.

    Raises:
        InputError: there is no such file, or it holds more than weights and plain values.
    """
    what = "--head: must be a file of weights, as torch.save(model.state_dict(), ...) writes it, got"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file each of the readers that torch.load may take raises its own
        reason = getattr(error, "strerror", None) or "damaged, or with more than weights"
        raise InputError(f"{what} {clip(path.name)} ({reason})") from error
    for key in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise InputError(f"{what} {clip(path.name)} with a {type(state).__name__}")
    inside = [str(key) for key, value in state.items() if isinstance(value, Mapping)]
    if inside and not any(isinstance(value, torch.Tensor) for value in state.values()):
        keys = clip(", ".join(inside))
        raise InputError(f"{what} {clip(path.name)} with {keys}: weights may lie under {', '.join(WRAPPERS)}")
    return state


def read_inputs(options: Options) -> dict[str, Any]:
    """The arguments of `ltr.balance.balance` that come from files.

    Raises:
        InputError: an option is missing, or a file cannot be read.
    """
    if options.train is None:
        raise InputError("--train: must be an npz file with arrays features and labels, got nothing")
    if options.layer is not None and options.head is None:
        raise InputError("--layer: must be given with --head")
    sets = {name: getattr(options, name) for name in ("train", "validation", "test")}
    arrays = {name: read_npz(path, name) for name, path in sets.items() if path is not None}
    given = {name: (found["features"], found["labels"]) for name, found in arrays.items()}
    state = None if options.head is None else read_state(options.head)
    return {"head": state, **given, "names": arrays["train"].get("names")}


def check_out(options: Options) -> None:
    """Raises InputError where the folder cannot be written to, or a file of the caller's own would be replaced."""
    out, shown = options.out, clip(short(options.out, Path.cwd()))
    try:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(out)  # whose name may be too long
        place = next(each for each in (out, *out.parents) if os.path.lexists(each))  # nothing is made yet
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise InputError(f"--out: must be a folder that can be written to, got {shown}") from error
    if folders := [name for name in ALL_WRITTEN if (out / name).is_dir()]:
        raise InputError(f"--out: must be a folder without a folder {folders[0]}, got {shown}")
    check_own(out, ALL_WRITTEN, "--out")
    for name in ("train", "validation", "test", "head"):
        path = getattr(options, name)
        if path is not None and path.resolve() in {(out / each).resolve() for each in ALL_WRITTEN}:
            raise InputError(
                f"--out: must be another folder than that of {flag(name)}, which {path.name} would replace"
            )


def run(options: Options) -> Balanced:
    """Balance what the options name; raises InputError whose message begins with the option."""
    inputs = read_inputs(options)
    check_out(options)
    told = {name: getattr(options, name) for name in ("layer", "score", "methods", "validation_share", "seed")}
    if "," in options.methods:
        told["methods"] = [name.strip() for name in options.methods.split(",") if name.strip()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # they are printed, in lines of their own
        try:
            return balance(**inputs, **told, say=lambda line: print(line, flush=True))
        except InputError as error:
            raise InputError(of_options(str(error))) from error


def of_options(message: str) -> str:
    """A message about an argument as one about the option that gave it."""
    name, _, rest = message.partition(":")
    if name in ("names", "classes"):
        return f"--train: {message}"
    rest = re.sub(r"\bwith validation$", f"with {flag('validation')}", rest)
    return flag(name) + ":" + rest.replace("validation_share", flag("validation_share"))


def main(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: an option or a file is not allowed.
    """
    options = Options(**given_values(Options, arguments))
    use_physical_cores()
    result = run(options)
    print("", result, sep="\n", flush=True)  # before a disk may be full
    result.save(options.out)
    write_text(options.out / "report.html", balance_report.html(result))
    print(f"{short(options.out, Path.cwd())}: {', '.join(ALL_WRITTEN)}")

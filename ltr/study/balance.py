"""Balance a linear head that you have, on embeddings in npz files:

    python -m ltr balance --train train.npz --validation val.npz --test test.npz --head model.pt --layer fc

A file has `features` [N, D] of any float type and `labels` [N], integers or strings; the training one may have `names`
[C]: what classes are called, which for labels that are strings is also the order of the head's rows. `--head` is a
state dict, as `torch.save(model.state_dict(), ...)` writes it; without one plain cross-entropy gives the first head,
and `--validation-share 0.2` may take the validation images from the training ones. Into `--out` (`balanced`) go the
best head under the state dict's own keys (head.pt), table.csv, per_class.csv, chosen.json and report.html, one file
with its figures inside.
"""

import dataclasses
import os
import pickle
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ltr import metrics
from ltr.balance import METHODS, SCORES, Balanced, balance
from ltr.errors import InputError, clip
from ltr.runtime.options import Once, Parser, allowed, check, flag, folder, join_negative, option, real, short, whole
from ltr.runtime.process import use_physical_cores
from ltr.runtime.storage import write_text
from ltr.study import balance_report

WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which checkpoints keep the weights
DAMAGED = (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)


def file(text: str) -> Path:
    """A file, from the folder that one works in."""
    return folder(text)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Balance a linear head on embeddings, tuned on validation images and tested once."""

    train: Path = option(None, "npz file with features, labels and optional names", file)
    validation: Path = option(None, "npz file of images that choose settings and temperatures", file)
    test: Path = option(None, "npz file of images that only the figures depend on", file)
    head: Path = option(None, "file with the state dict of your model or its head", file)
    layer: str = option(None, "name of the linear layer in it, as fc or head.fc")
    score: str = option("macro", "what validation images choose by: the class mean, or all images", choices=(*SCORES,))
    methods: str = option("fast", "those that take seconds, or all", choices=(*METHODS,))
    validation_share: float = option(
        None, "without --head: share of each class to validate on", real, above=0, high=0.9
    )
    seed: int = option(0, "of the draws", whole, low=0)
    out: Path = option(Path("balanced"), "folder for what comes out", folder)


def parse(arguments: Sequence[str]) -> Options:
    """Options from a list of words.

    Raises:
        InputError: a word is not known, or a value not allowed.
    """
    parser = Parser(prog="ltr balance", description=Options.__doc__, allow_abbrev=False)
    fields = {field.name: field for field in dataclasses.fields(Options)}
    for name, field in fields.items():
        default = "none" if field.default is None else field.default
        kind = "a file" if field.metadata["read"] is file else allowed(field.metadata)
        text = f"{field.metadata['help']}: {kind} (default: {default})"
        parser.add_argument(flag(name), action=Once, metavar=name.upper(), help=text)
    given = vars(parser.parse_args(join_negative(arguments)))
    values = {name: check(name, text, fields[name].metadata) for name, text in given.items() if text is not None}
    return Options(**values)


def read_npz(path: Path, name: str) -> dict[str, np.ndarray]:
    """features, labels and, if there are any, names of a file; nothing in it is executed.

    Raises:
        InputError: there is no such file, it is no npz, lacks one of both, or holds pickled objects.
    """
    what = "an npz file with arrays features and labels, no pickled objects"
    try:
        with open(path, "rb") as opened:
            if not zipfile.is_zipfile(opened):
                raise InputError(f"{flag(name)}: must be {what}, got {clip(path.name)}, which is no npz")
            opened.seek(0)
            stored = np.load(opened, allow_pickle=False)
            arrays = {key: stored[key] for key in ("features", "labels", "names") if key in stored.files}
    except InputError:
        raise
    except DAMAGED as error:
        reason = getattr(error, "strerror", None) or "damaged, or with pickled objects"
        raise InputError(f"{flag(name)}: must be {what}, got {clip(path.name)} ({reason})") from error
    for key in ("features", "labels"):
        if key not in arrays:
            raise InputError(f"{flag(name)}: must be {what}, got {clip(path.name)} without {key}")
    return arrays


def read_state(path: Path) -> Mapping[str, Any]:
    """The weights in a file of `torch.save`; nothing in it is executed.

    Raises:
        InputError: there is no such file, or it holds more than weights and plain values.
    """
    what = "a file of weights, as torch.save(model.state_dict(), ...) writes it"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, AttributeError, *DAMAGED) as error:
        reason = getattr(error, "strerror", None) or "damaged, or with more than weights"
        raise InputError(f"--head: must be {what}, got {clip(path.name)} ({reason})") from error
    for key in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise InputError(f"--head: must be {what}, got {clip(path.name)} with a {type(state).__name__}")
    return state


def check_place(path: Path) -> None:
    """See that a folder can be made or written to before the work begins; nothing is written yet.

    Raises:
        InputError: it cannot.
    """
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"--out: must be a folder that can be written to, got {clip(short(path, Path.cwd()))}")


def read_inputs(options: Options) -> dict[str, Any]:
    """The arguments of `ltr.balance.balance`.

    Raises:
        InputError: an option is missing, or a file cannot be used.
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


def run(options: Options) -> Balanced:
    """Balance what the options name.

    Raises:
        InputError: something does not fit; the message begins with the option.
    """
    inputs = read_inputs(options)
    check_place(options.out)
    told = {name: getattr(options, name) for name in ("layer", "score", "methods", "validation_share", "seed")}
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
    return flag(name) + ":" + rest.replace("validation_share", flag("validation_share"))


def shown(result: Balanced) -> str:
    """The table as text, without what the lines before it have said."""
    table = result.table.drop(columns=["hyper-parameters", "seconds", "edge"])
    for name in table.select_dtypes("number"):
        table[name] = table[name].map(metrics.percent)
    return table.to_string(index=False)


def main(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: an option or a file is not allowed.
    """
    options = parse(arguments)
    use_physical_cores()
    result = run(options)
    result.save(options.out)
    write_text(options.out / "report.html", balance_report.html(result))
    print(
        "", shown(result), "", f"tested on the {result.tested_on} images; best on validation: {result.best}", sep="\n"
    )
    for line in result.verdict:
        print(line)
    for line in result.warnings:
        print(f"warning: {line}")
    print(f"{short(options.out, Path.cwd())}: head.pt, table.csv, per_class.csv, chosen.json, report.html")

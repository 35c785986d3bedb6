"""A run's folder: what was asked, what came out, and how to go on after an interruption.

`config.json` (settings, data fingerprint, versions, device, commit), `metrics.csv` (a row an epoch),
`norms.npy` (the classifier's row norms, epoch by class), `test_logits.npz` (float16, last epoch, plain),
`summary.json`, `weights.pt`, and while it trains `checkpoint.pt` and `.lock`. A folder with a summary is finished:
it is loaded, not repeated. Of several processes rank 0 alone writes; the others wait, and read what it wrote.
"""

import contextlib
import hashlib
import json
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout

from ltr import metrics
from ltr.errors import InputError
from ltr.metrics import VARIANTS
from ltr.runtime import distributed
from ltr.runtime.checkpoint import remove_checkpoint
from ltr.runtime.storage import read_weights, remove_partial, write_json, write_text, write_weights, write_whole
from ltr.training import Outcome

COLUMNS = (
    "dataset,imbalance_factor,profile,backbone,stage1_epochs,stage1_weight_decay,method,loss,weight_decay,"
    "max_norm,max_norm_every,max_norm_fired,tau,mode,seed,selection,tta,all,many,medium,few,ece,run,device,"
    "torch,seconds"
).split(",")
COMMIT_LIMIT = 4 * 2**20  # bytes; larger weights are kept out of git
PACKAGES = ("torch", "torchvision", "numpy", "pandas", "matplotlib")


def commit() -> str:
    """The source's git commit, with `+` where tracked files differ from it; `unknown` outside git."""
    where = Path(__file__).resolve().parent
    try:
        return subprocess.run(
            ["git", "-C", str(where), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def device_name(device: torch.device | str) -> str:
    """A GPU's own name, or the processor's and the number of threads."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # Linux alone has the file, and knows the processor's name by no other way
        models = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
        name = models[0] if models else name
    return f"{torch.device(device).type} ({name}, {torch.get_num_threads()} threads)"


def environment(device: torch.device | str) -> dict[str, str]:
    """Versions, device and commit, for the config."""
    versions, processes = {}, distributed.current().size
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    return {
        "device": f"{processes} x {device_name(device)}" if processes > 1 else device_name(device),
        "python": sys.version.split()[0],
        "platform": platform.platform(terse=True),
        "commit": commit(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **versions,
    }


class Described(Protocol):
    """What a run is made of: images, or features of them."""

    def describe(self) -> Mapping[str, Any]:
        """See `datasets.LongTailed.describe`."""


class Run:
    """A folder below `exp/demo_1` or `exp/demo_2`.

    Args:
        path: the folder.
        identity: every setting that decides the result; two runs with equal identity and equal data
            are the same run. The columns of `COLUMNS` that describe a model are taken from here.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.identity = identity
        # The system frees a dead process's lock. One lock a path and process: a cell that was interrupted in
        # Jupyter may still hold it, and must be able to start again.
        self.lock = FileLock(path / ".lock", timeout=0, is_singleton=True)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def finished(self) -> bool:
        """True once everything is written, as this process sees it; the summary comes last."""
        return (self.path / "summary.json").exists()

    @property
    def checkpoint(self) -> Path:
        """Where training keeps its state."""
        return self.path / "checkpoint.pt"

    def load_or_train(
        self,
        data: "Described | None",
        train: Callable[[], Outcome],
        device: torch.device | str,
        counts: np.ndarray,
        retrain: bool = False,
    ) -> "Result":
        """The finished run; trained first, or trained on, where it is not finished. Together.

        Args:
            data: what it learns from; None where that is not at hand.
            train: gives the outcome, going on from `checkpoint` where there is one.
            device: where it trains.
            counts: [C], training images of each class.
            retrain: repeat a finished run, and start an interrupted one anew.

        Raises:
            InputError: see `begin` and `load`.
        """
        if retrain or not distributed.current().broadcast(self.finished):  # as one process sees it, so that all agree
            self.begin(data, device, retrain)
            self.save(train(), counts)
        return self.load()

    def begin(self, data: "Described | None", device: torch.device | str, retrain: bool = False) -> None:
        """Take the folder, write its config; `retrain` first clears what an earlier run left. Together.

        Raises:
            InputError: the images are not at hand, or another process trains this run.
        """
        if data is None:
            raise InputError(f"--data-root: {self.name} is not finished and the images to train on are not there")
        group = distributed.current()
        if group.is_main:
            self.take(data, device, retrain)
        group.broadcast()

    def take(self, data: Described, device: torch.device | str, retrain: bool) -> None:
        """Lock the folder and write its config, see `begin`."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire()
        except Timeout as error:
            raise InputError(f"--out: another process is training {self.path}") from error
        remove_partial(self.path)
        if retrain:  # the summary first: without it the run is not finished, whatever else is there
            for path in (self.path / "summary.json", *self.path.glob("*.csv"), *self.path.glob("*.np[yz]")):
                path.unlink(missing_ok=True)
            remove_checkpoint(self.checkpoint)
        config = {"settings": self.identity, "data": data.describe(), "environment": environment(device)}
        write_json(self.path / "config.json", config)

    def save(self, outcome: Outcome, counts: np.ndarray) -> None:
        """Write all files of a finished run, the summary last, drop the checkpoint and free the folder."""
        group = distributed.current()
        if group.is_main:
            self.write(outcome, counts)
        group.broadcast()

    def write(self, outcome: Outcome, counts: np.ndarray) -> None:
        """Write all files, see `save`."""
        write_text(self.path / "metrics.csv", outcome.history.to_csv(index=False))
        write_whole(self.path / "norms.npy", lambda file: np.save(file, outcome.norms.astype(np.float32)))
        largest = np.finfo(np.float16).max  # a logit beyond it would be stored as infinite
        logits = outcome.logits["last", "none"].clip(-largest, largest).astype(np.float16)
        last = {"logits": logits, "labels": outcome.labels.astype(np.int16)}
        write_whole(self.path / "test_logits.npz", lambda file: np.savez_compressed(file, **last))
        write_weights(self.path / "weights.pt", outcome.weights)
        if (self.path / "weights.pt").stat().st_size > COMMIT_LIMIT:
            write_text(self.path / ".gitignore", "weights.pt\n")
        summary = dict(outcome.extra)
        for (selection, tta), logits in outcome.logits.items():
            per_class = metrics.per_class_accuracy(logits, outcome.labels).round(4).tolist()
            figures = metrics.summarise(logits, outcome.labels, counts)
            summary[f"{selection}/{tta}"] = {**figures, "per_class": per_class}
        write_json(self.path / "summary.json", summary)
        remove_checkpoint(self.checkpoint)
        self.lock.release(force=True)

    def load(self) -> "Result":
        """Read a finished run; a checkpoint that a kill at the very end left there goes.

        Raises:
            InputError: the run is not finished, or a file of it cannot be read.
        """
        try:
            if distributed.current().is_main and (self.path / "summary.json").exists():
                with contextlib.suppress(OSError):  # a tree that is only read
                    remove_checkpoint(self.checkpoint)
            return Result.read(self.path)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"--out: the run {self.path} cannot be read: {error}; --retrain repeats it") from error


@dataclass(frozen=True)
class Result:
    """A finished run as the notebooks read it; everything comes from the folder."""

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    history: pd.DataFrame
    norms: np.ndarray

    @classmethod
    def read(cls, path: Path) -> "Result":
        """Read the folder's files."""
        config, summary = (json.loads((path / name).read_text("utf-8")) for name in ("config.json", "summary.json"))
        norms = np.load(path / "norms.npy", allow_pickle=False)
        return cls(path, config, summary, pd.read_csv(path / "metrics.csv"), norms)

    def differences(
        self, wanted: Mapping[str, Any], fingerprint: Mapping[str, str] | None = None
    ) -> list[tuple[str, Any, Any]]:
        """In what the run is not as wanted: the setting, what it has, what is wanted."""
        have = self.config["settings"]
        differs = [(key, have.get(key), value) for key, value in wanted.items() if have.get(key) != value]
        if fingerprint and not differs and self.config["data"]["fingerprint"] != fingerprint:
            differs = [("data_root", "another set of images", "the images loaded here")]
        return differs

    @property
    def label(self) -> str:
        """The model's name in tables: its method, and the mode of the second stage."""
        settings = self.config["settings"]
        return settings["method"] + (f" ({settings['mode']})" if settings.get("mode") else "")

    def provenance(self) -> str:
        """Which run it is, on what it ran and for how long."""
        device, seconds = self.config["environment"]["device"], self.summary["seconds"]
        return f"{self.path.name}: {seconds:.0f} s on {device}"

    @property
    def class_counts(self) -> np.ndarray:
        """Training images of each class, [C]."""
        return np.asarray(self.config["data"]["class_counts"])

    @cached_property
    def test_logits(self) -> tuple[np.ndarray, np.ndarray]:
        """Logits [N, C] of the last epoch, plain, and labels [N].

        Raises:
            InputError: they are not there (git has few).
        """
        if not (self.path / "test_logits.npz").exists():
            raise InputError(f"--out: {self.path} has no test_logits.npz; --retrain repeats the run")
        with np.load(self.path / "test_logits.npz", allow_pickle=False) as stored:
            return stored["logits"].astype(np.float32), stored["labels"].astype(np.int64)

    def weights(self, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """The state dict.

        Raises:
            InputError: weights.pt is not there (larger ones are not in git).
        """
        if not (self.path / "weights.pt").exists():
            raise InputError(f"--out: {self.path} has no weights.pt; run the first stage with --retrain")
        return read_weights(self.path / "weights.pt", device)

    def cached(
        self, name: str, make: Callable[[], pd.DataFrame] | None, settings: Mapping[str, Any] | None = None
    ) -> pd.DataFrame | None:
        """A further table of this run: read from its folder, or made and written there.

        Args:
            name: of the file, without its end.
            make: makes the table; None where that cannot be done here.
            settings: what the table depends on beside the run; each has a file of its own.

        Returns:
            None where it is neither there nor can be made.
        """
        name = name if settings is None else f"{name}-{digest(settings)}"
        path, group = self.path / f"{name}.csv", distributed.current()
        if not group.broadcast(path.exists()):
            if make is None:
                return None
            table = make()  # together, since features are
            if group.is_main:
                write_text(path, table.to_csv(index=False, float_format="%.6g"))
            group.broadcast()
        return pd.read_csv(path)

    def accuracy(self, selection: str = "last", tta: str = "none") -> dict[str, float]:
        """all, many, medium, few, ece in percent; NaN for an empty group."""
        figures = self.summary[f"{selection}/{tta}"]
        return {k: float("nan") if figures[k] is None else figures[k] for k in ("all", *metrics.GROUPS, "ece")}

    def per_class(self, selection: str = "last", tta: str = "none") -> pd.DataFrame:
        """A row a class: model, class_index, count, accuracy (percent), norm."""
        counts = self.class_counts
        return pd.DataFrame(
            {
                "model": self.label,
                "class_index": np.arange(len(counts)),
                "count": counts,
                "accuracy": self.summary[f"{selection}/{tta}"]["per_class"],
                "norm": self.norms[-1],
            }
        )

    def rows(self) -> list[dict[str, Any]]:
        """The run's four rows of results.csv."""
        settings, environment = self.config["settings"], self.config["environment"]
        shared = {column: settings.get(column) for column in COLUMNS}
        shared |= {key: self.summary[key] for key in ("max_norm", "max_norm_fired", "seconds") if key in self.summary}
        shared |= {"run": self.path.name, "device": environment["device"], "torch": environment["torch"]}
        shared["dataset"] = self.config["data"]["name"]
        return [
            {**shared, "selection": selection, "tta": tta, **self.accuracy(selection, tta)}
            for selection, tta in VARIANTS
        ]


def digest(*parts: Any) -> str:
    """Eight hexadecimal digits that stand for plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:8]


def finished_runs(folder: Path) -> list[Result]:
    """All finished runs of `exp/demo_1` or `exp/demo_2`, by name; a warning names one that cannot be read."""
    results = []
    for path in sorted(folder.glob("*/summary.json")):
        try:
            results.append(Run(path.parent, {}).load())
        except InputError as error:
            warnings.warn(f"{path.parent} is passed over ({error})", stacklevel=2)
    return results


class NoRun(InputError):
    """There is no finished run as wanted."""


def find(
    folder: Path,
    wanted: dict[str, Any],
    fingerprint: dict[str, str] | None = None,
    absent: InputError | None = None,
) -> Result:
    """The finished run whose settings hold all that is wanted.

    Args:
        folder: `exp/demo_1` or `exp/demo_2`.
        wanted: settings and their values.
        fingerprint: of the data at hand; None takes any.
        absent: why there is no data at hand, to be said where there is no run either.

    Raises:
        NoRun: there is none; the message says in what the nearest one differs.
        InputError: there are several; the message names them.
    """
    cause = f"{absent}; " if absent else ""
    wanted = json.loads(json.dumps(wanted, default=str))
    candidates = finished_runs(folder)
    if not candidates:
        raise NoRun(f"{cause}--out: there is no finished run in {folder}")
    differences = [result.differences(wanted, fingerprint) for result in candidates]
    fitting = [result for result, differs in zip(candidates, differences, strict=True) if not differs]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(result.path.name for result in fitting)
        differ = differing(fitting)
        raise InputError(f"{cause}--stage1: must say which of {len(fitting)} runs that differ in {differ}: {names}")
    nearest = min(range(len(candidates)), key=lambda i: len(differences[i]))
    key, have, value = differences[nearest][0]
    option = f"--{key.replace('_', '-')}"
    nearest_run = candidates[nearest].path.name
    raise NoRun(f"{cause}{option}: no finished run in {folder} with {value}; {nearest_run} has {have}")


def differing(results: Sequence[Result]) -> str:
    """Names of the settings in which runs differ."""
    settings = [result.config["settings"] for result in results]
    names = {name for each in settings for name in each}
    found = [name for name in sorted(names) if len({json.dumps(each.get(name)) for each in settings}) > 1]
    return ", ".join(found) or "their images"


def find_base(
    folder: Path,
    name: str | None,
    wanted: dict[str, Any],
    fingerprint: dict[str, str] | None = None,
    absent: InputError | None = None,
) -> Result:
    """The first-stage run that a second stage starts from: the named one, or the only one that is as wanted.

    Args:
        folder: `exp/demo_1`.
        name: the run's folder; None for the only one.
        wanted, fingerprint, absent: see `find`.

    Raises:
        InputError: see `find`; or the named run differs from what is wanted.
    """
    if name is None:
        return find(folder, wanted, fingerprint, absent)
    base = Run(folder / name, {}).load()
    if differs := base.differences(json.loads(json.dumps(wanted, default=str)), fingerprint):
        key, have, value = differs[0]
        raise InputError(f"--stage1: must be a run with {key} {value}, {name} has {have}")
    return base


def find_naive(folder: Path, base: Result) -> Result | None:
    """The run that differs from a first stage in weight decay alone, which is 0; None where there is none.

    Raises:
        InputError: there are several.
    """
    told = {"stage1_weight_decay", "method", "test_every"}
    wanted = {name: value for name, value in base.config["settings"].items() if name not in told}
    fingerprint, found = base.config["data"]["fingerprint"], []
    for result in finished_runs(folder):
        settings = result.config["settings"]
        alike = {name: value for name, value in settings.items() if name not in told} == wanted
        if alike and settings["stage1_weight_decay"] == 0 and result.config["data"]["fingerprint"] == fingerprint:
            found.append(result)
    if len(found) > 1:
        names = ", ".join(result.path.name for result in found)
        raise InputError(f"--out: must hold one naive run beside {base.path.name}, there are {names}")
    return found[0] if found else None


def open_run(folder: Path, label: str, identity: dict[str, Any], fingerprint: dict[str, str]) -> Run:
    """The folder of a run, whether it was started before or not.

    Args:
        folder: `exp/demo_1` or `exp/demo_2`.
        label: the readable part of the folder's name.
        identity: see `Run`.
        fingerprint: of the data, see `datasets.LongTailed.describe`.
    """
    return Run(folder / f"{label}-{digest(identity, fingerprint)}", identity)


def table(results: list[Result], selection: str = "last", tta: str = "none") -> pd.DataFrame:
    """Many, medium, few, all and ECE of each model as text, in percent."""
    columns = {"many": "many", "medium": "medium", "few": "few", "all": "all", "ece": "ECE"}
    rows = {
        r.label: {name: metrics.percent(r.accuracy(selection, tta)[key]) for key, name in columns.items()}
        for r in results
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def variants(results: list[Result]) -> pd.DataFrame:
    """Accuracy over all test images of each model as text: {last, best test epoch} x {plain, flip}."""
    names = {"last": "last epoch", "best_test": "best test epoch"}, {"none": "plain", "flip": "flip"}
    rows = {
        r.label: {f"{names[0][s]}, {names[1][t]}": metrics.percent(r.accuracy(s, t)["all"]) for s, t in VARIANTS}
        for r in results
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def append_results(path: Path, results: list[Result]) -> pd.DataFrame:
    """Put the rows of these runs into results.csv, in place of rows they had there; return the table."""
    group = distributed.current()
    if group.is_main:
        merge_results(path, results)
    group.broadcast()
    return pd.read_csv(path)


def merge_results(path: Path, results: list[Result]) -> None:
    """Write results.csv, see `append_results`; no rows of another process are lost."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        remove_partial(path.parent, path.name)
        table = pd.DataFrame([row for result in results for row in result.rows()], columns=COLUMNS)
        if path.exists():
            old = pd.read_csv(path)
            old = old[~old.run.isin(table.run)]
            table = pd.concat([old, table], ignore_index=True) if len(old) else table
        table = table.sort_values(["dataset", "imbalance_factor", "backbone", "run", "selection", "tta"])
        write_text(path, table.to_csv(index=False, float_format="%.6g"))

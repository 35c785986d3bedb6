"""A run's folder: what was asked, what came out, and how to go on after an interruption.

`config.json` (settings, data fingerprint, versions, device, commit), `metrics.csv` (a row an epoch),
`norms.npy` (the classifier's row norms, epoch by class), `predictions.npz` (of the test images; last epoch, plain),
`summary.json`, `weights.pt`, and while it trains `checkpoint.pt` and `.lock`. A folder with a summary is finished:
it is loaded, not repeated. Of several processes rank 0 alone writes; the others wait, and read what it wrote.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout

from ltr import recipes
from ltr.errors import InputError
from ltr.metrics import GROUPS, VARIANTS, Predictions
from ltr.runtime import configs, distributed, storage
from ltr.runtime.checkpoint import remove_checkpoint
from ltr.runtime.machine import environment
from ltr.runtime.options import flag
from ltr.runtime.storage import read_part
from ltr.training import Outcome

COLUMNS = (
    "dataset,imbalance_factor,profile,backbone,stage1_epochs,stage1_weight_decay,method,loss,weight_decay,"
    "max_norm,max_norm_every,projected_share,tau,mode,seed,selection,tta,all,many,medium,few,ece,run,device,"
    "torch,seconds,stage1_run,network,lr,batch_size,mix,augmentation,sampling,choice,further,precision,commit"
).split(",")
FURTHER = recipes.PLAIN.keys() - {*COLUMNS, "average", "normalization"}  # told by `network`, by the images
STEPS = 65_535  # of a stored confidence: 15 times 4,369, so that the edges of ECE's bins are among them
COMMIT_LIMIT = 4 * 2**20  # bytes; larger weights are kept out of git
MEASURES = ("all", *GROUPS, "ece")
# What a summary holds, as far as the package reads it.
SUMMARY = {"seconds": (), **{f"{selection}/{tta}": (*MEASURES, "per_class") for selection, tta in VARIANTS}}
ANEW = "without its folder, this run is trained anew"
read_file = partial(read_part, hint=ANEW)


class NoRun(InputError):
    """There is no finished run as wanted."""


class Run:
    """A folder below `exp/demo_1` or `exp/demo_2`.

    Args:
        path: the folder.
        identity: every setting that decides the result; two runs with equal identity and equal data
            are the same run. The columns of `COLUMNS` that describe a model are taken from here.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path, self.name, self.identity = path, path.name, identity
        self.checkpoint = path / "checkpoint.pt"
        # The system frees a dead process's lock. One lock a path and process: a cell that was interrupted in
        # Jupyter may still hold it, and must be able to start again.
        self.lock = FileLock(path / ".lock", timeout=0, is_singleton=True)

    @property
    def finished(self) -> bool:
        """True once everything is written, as this process sees it; the summary comes last."""
        return (self.path / "summary.json").exists()

    def load_or_train(
        self,
        about: Mapping[str, Any] | None,
        train: Callable[[], Outcome],
        device: torch.device | str,
        counts: np.ndarray,
        retrain: bool = False,
    ) -> "Result":
        """The finished run; trained first, or trained on, where it is not finished. Together.

        Args:
            about: the images, as `datasets.LongTailed.describe` has them; None where there is nothing to learn from.
            train: gives the outcome, going on from `checkpoint` where there is one.
            counts: [C], training images of each class.
            retrain: repeat a finished run, and start an interrupted one anew.

        Raises:
            InputError: see `begin` and `load`.
        """
        if (retrain or not distributed.current().broadcast(self.finished)) and self.begin(about, device, retrain):
            self.save(train(), counts)
        return self.load()

    def begin(self, about: Mapping[str, Any] | None, device: torch.device | str, retrain: bool = False) -> bool:
        """Take the folder, write its config; `retrain` first clears what an earlier run left. Together.

        Arguments as of `load_or_train`.

        Returns:
            whether there is something to train; not where another process has finished it meanwhile.

        Raises:
            InputError: the images are not at hand, or another process trains this run.
        """
        if about is None:
            what = InputError(f"--data-root: {self.name} is not finished and the images to train on are not there")
            find(self.path.parent, self.identity, absent=what)  # raises, and says in what the nearest run differs
            raise what
        distributed.current().on_main(lambda: self.take(about, device, retrain))
        return not distributed.current().broadcast(self.finished)  # as one process sees it, so that all agree

    def take(self, about: Mapping[str, Any], device: torch.device | str, retrain: bool) -> None:
        """Lock the folder and write its config, unless the run is finished by now; see `begin`."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire()
        except Timeout as error:
            raise InputError(f"--out: another process is training {self.path}") from error
        if self.finished and not retrain:
            self.lock.release(force=True)
            return
        storage.remove_partial(self.path)
        if retrain:
            self.clear()
            remove_checkpoint(self.checkpoint)
        config = {"settings": self.identity, "data": about, **self.environments(device)}
        storage.write_json(self.path / "config.json", config)

    def clear(self) -> None:
        """Remove what a finished run wrote, and what was found out about it."""
        # The summary first: without it the run is not finished, whatever else is there.
        for path in (self.path / "summary.json", *self.path.glob("*.csv"), *self.path.glob("*.np[yz]")):
            path.unlink(missing_ok=True)

    def environments(self, device: torch.device | str) -> dict[str, Any]:
        """Where and by what the run was begun; of one that goes on from a checkpoint also where it did so."""
        now = environment(device)
        with contextlib.suppress(InputError):
            if self.checkpoint.exists():
                before = configs.read_config(self.path)
                return {"environment": before["environment"], "resumed": [*before.get("resumed", []), now]}
        return {"environment": now}

    def save(self, outcome: Outcome, counts: np.ndarray) -> None:
        """Write all files of a finished run, the summary last, drop the checkpoint and free the folder."""
        distributed.current().on_main(lambda: self.write(outcome, counts))

    def write_averaged(self, outcome: Outcome, counts: np.ndarray) -> None:
        """Write the averaged network as a run of its own, `<name>-swa` or `<name>-ema`, before this one is finished."""
        average = self.identity["average"]
        told = {"network": "averaged", "method": f"{self.identity['method']} + {average.upper()}"}
        other = Run(self.path.with_name(f"{self.name}-{average}"), self.identity | told)
        other.path.mkdir(exist_ok=True)
        other.clear()
        storage.write_json(other.path / "config.json", configs.read_config(self.path) | {"settings": other.identity})
        other.write(outcome, counts)

    def write(self, outcome: Outcome, counts: np.ndarray) -> None:
        """Write all files, see `save`."""
        if outcome.averaged:
            self.write_averaged(outcome.averaged, counts)
        storage.write_text(self.path / "metrics.csv", outcome.history.to_csv(index=False))
        storage.write_whole(self.path / "norms.npy", lambda file: np.save(file, outcome.norms.astype(np.float32)))
        write_predictions(self.path, Predictions.of(outcome.logits["last", "none"], outcome.labels))
        storage.write_weights(self.path / "weights.pt", outcome.weights)
        if (self.path / "weights.pt").stat().st_size > COMMIT_LIMIT:
            storage.write_text(self.path / ".gitignore", "weights.pt\n")
        summary = dict(outcome.extra)
        for (selection, tta), logits in outcome.logits.items():
            made = Predictions.of(logits, outcome.labels)
            summary[f"{selection}/{tta}"] = {**made.summary(counts), "per_class": made.by_class.round(4).tolist()}
        storage.write_json(self.path / "summary.json", summary)
        remove_checkpoint(self.checkpoint)
        self.lock.release(force=True)

    def load(self) -> "Result":
        """Read a finished run; a checkpoint that a kill at the very end left there goes.

        Raises:
            InputError: the run is not finished, or a file of it cannot be read.
        """
        if distributed.current().is_main and self.finished:
            with contextlib.suppress(OSError):  # a tree that is only read
                remove_checkpoint(self.checkpoint)
        return Result.read(self.path)


def read_norms(path: Path) -> np.ndarray:
    """Row norms [E + 1, C], of packed runs [2, C]; raises ValueError where it holds something else."""
    norms = np.load(path, allow_pickle=False)
    if not isinstance(norms, np.ndarray) or norms.ndim != 2 or not len(norms):
        raise ValueError("it holds no row norms by epoch and class")
    return norms


def read_history(path: Path) -> pd.DataFrame:
    """Rows an epoch; raises ValueError where it is no such table."""
    history = pd.read_csv(path)
    if "epoch" not in history or history.empty:
        raise ValueError("it has no row of an epoch")
    return history


def in_steps(confidence: np.ndarray) -> np.ndarray:
    """Confidences [N] in 0..1 as uint16 of `STEPS`, each in the bin of ECE that it was in; float32 where one is NaN."""
    if np.isnan(confidence).any():
        return confidence.astype(np.float32)
    exact = STEPS * np.asarray(confidence, np.float64)
    steps = np.rint(exact)
    steps += (steps % (STEPS // 15) == 0) & (exact > steps)  # bins are (a, b]
    return steps.astype(np.uint16)


def write_predictions(run: Path, made: Predictions) -> None:
    """Write a run's predictions.npz: classes in as few bytes as hold them, confidences in two bytes, see `in_steps`."""
    small = np.min_scalar_type(len(made.marginal) - 1)
    arrays = {name: getattr(made, name).astype(small) for name in ("predicted", "labels")}
    arrays |= {"confidence": in_steps(made.confidence), "marginal": made.marginal.astype(np.float32)}
    storage.write_whole(run / "predictions.npz", lambda file: np.savez_compressed(file, **arrays))


def read_predictions(path: Path) -> Predictions:
    """What `write_predictions` wrote."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        classes = (stored[name].astype(np.int64) for name in ("predicted", "labels"))
        confidence, marginal = (stored[name].astype(np.float64) for name in ("confidence", "marginal"))
        confidence /= STEPS if stored["confidence"].dtype == np.uint16 else 1  # float32, where one is NaN
        return Predictions(next(classes), confidence, next(classes), marginal)


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
        """Read the folder's files.

        Raises:
            InputError: one is not there, or damaged; the message names it.
        """
        if not (path / "summary.json").exists():
            raise InputError(f"--out: the run {path} is not finished")
        config = read_file(path / "config.json", lambda file: storage.read_json(file, configs.PARTS))
        summary = read_file(path / "summary.json", lambda file: storage.read_json(file, SUMMARY))
        history = read_file(path / "metrics.csv", read_history)
        return cls(path, config, summary, history, read_file(path / "norms.npy", read_norms))

    @property
    def label(self) -> str:
        """The model's name in tables: its method, and the mode of the second stage."""
        method, mode = self.row
        return f"{method} ({mode})" if mode else method

    @property
    def row(self) -> tuple[str, str]:
        """Method and mode of a second stage, as tables order them."""
        settings = self.config["settings"]
        return settings["method"], settings.get("mode") or ""

    @property
    def averaged(self) -> list["Result"]:
        """The averaged network of the same training, if it has one: none or one run."""
        settings = self.config["settings"]
        if "average" not in settings or "network" in settings:
            return []
        return [Result.read(self.path.with_name(f"{self.path.name}-{settings['average']}"))]

    @property
    def precision(self) -> str | None:
        """In which it was trained, by its engines' words: several where it went on elsewhere, None where it was not."""
        engines = [self.summary.get("engine"), *self.summary.get("later_engines", ())]
        told = [engine.split(", ")[1] for engine in engines if engine]
        return ", then ".join(dict.fromkeys(told)) or None

    @property
    def class_counts(self) -> np.ndarray:
        """Training images of each class, [C]."""
        return np.asarray(self.config["data"]["class_counts"])

    @cached_property
    def predictions(self) -> Predictions:
        """What the last epoch says of each plain test image.

        Raises:
            InputError: they are not there, or damaged.
        """
        if not (self.path / "predictions.npz").exists():
            raise InputError(f"--out: {self.path} has no predictions.npz; {ANEW}")
        return read_file(self.path / "predictions.npz", read_predictions)

    def weights(self) -> dict[str, torch.Tensor]:
        """The state dict, on the CPU.

        Raises:
            InputError: weights.pt is not there (larger ones are not in git), or damaged.
        """
        if not (self.path / "weights.pt").exists():
            raise InputError(f"--out: {self.path} has no weights.pt; {ANEW}")
        return read_file(self.path / "weights.pt", storage.read_weights)

    def cached(
        self,
        name: str,
        make: Callable[[], pd.DataFrame] | None,
        settings: Mapping[str, Any] | None = None,
        into: Path | None = None,
    ) -> pd.DataFrame | None:
        """A further table of this run: read from its folder, or made and written there, also in place of a damaged one.

        Args:
            name: of the file, without its end.
            make: makes the table; None where that cannot be done here.
            settings: what the table depends on beside the run; each has a file of its own.
            into: a folder to write to where the run's own is only read, as that of one which ships.

        Returns:
            None where it is neither there nor can be made.
        """
        name = name if settings is None else f"{name}-{digest(settings)}"
        path, group = self.path / f"{name}.csv", distributed.current()
        if into is not None and not path.exists():
            path = into / self.path.name / path.name
        if not group.broadcast(storage.is_table(path)):
            if make is None:
                return None
            table = make()  # together, since features are
            group.on_main(lambda: path.parent.mkdir(parents=True, exist_ok=True))
            group.on_main(lambda: storage.write_text(path, storage.table_text(table)))
        return storage.read_table(path)

    def accuracy(self, selection: str = "last", tta: str = "none") -> dict[str, float]:
        """all, many, medium, few, ece in percent; NaN for an empty group."""
        saved = self.summary[f"{selection}/{tta}"]
        return {k: float("nan") if saved[k] is None else saved[k] for k in MEASURES}

    def per_class(self) -> pd.DataFrame:
        """A row a class: model, class_index, count, accuracy (percent; last epoch, plain), norm."""
        counts = self.class_counts
        return pd.DataFrame(
            {
                "model": self.label,
                "class_index": np.arange(len(counts)),
                "count": counts,
                "accuracy": self.summary["last/none"]["per_class"],
                "norm": self.norms[-1],
            }
        )

    def rows(self) -> list[dict[str, Any]]:
        """The run's four rows of results.csv."""
        settings, environment = self.config["settings"], self.config["environment"]
        shared = {column: settings.get(column) for column in COLUMNS}
        shared |= {key: self.summary[key] for key in ("projected_share", "seconds") if key in self.summary}
        shared |= {name: environment.get(name) for name in ("device", "torch", "commit")}
        shared |= {"run": self.path.name, "stage1_run": settings.get("stage1_run", self.path.name)}
        shared |= {"dataset": self.config["data"]["name"], "precision": self.precision}
        shared |= {"choice": None, "further": None} if "stage1_run" in settings else otherwise(settings)
        if shared["loss"] is None:  # nothing was learned
            shared |= {"lr": None, "batch_size": None}
        return [
            {**shared, "selection": selection, "tta": tta, **self.accuracy(selection, tta)}
            for selection, tta in VARIANTS
        ]


def seeds_of(result: Result) -> dict[int, Result]:
    """A first stage, and those beside it that learned as it did from other seeds, by seed."""
    paths = configs.alike(result.path.parent, result.config, ("seed", "precision", "test_every"))
    found = configs.read_each(paths, Result.read).values()
    return {each.config["settings"]["seed"]: each for each in found}


def predictions_of(result: Result) -> Predictions | None:
    """What a run says of each test image; None where its folder does not tell."""
    try:
        return result.predictions
    except InputError:
        return None


def otherwise(settings: Mapping[str, Any]) -> dict[str, str | None]:
    """In what a first stage was not trained as usual, beyond what tables have columns for: `choice`, where its images
    were chosen otherwise than is usual for their source, and `further`.
    """
    usual = recipes.of_images(settings.get("dataset", ""))["choice"]
    choice = settings.get("choice", usual)
    return {"choice": None if choice == usual else choice, "further": recipes.unusual(settings, FURTHER) or None}


def digest(*parts: Any) -> str:
    """Eight hexadecimal digits that stand for plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=storage.plain).encode()).hexdigest()[:8]


# ---- the runs of a folder


def finished_runs(folder: Path) -> list[Result]:
    """All finished runs of `exp/demo_1` or `exp/demo_2`, by name; a warning names one that cannot be read."""
    return [*configs.read_each(configs.finished_runs(folder), lambda path: Run(path, {}).load()).values()]


def find(
    folder: Path,
    wanted: dict[str, Any],
    fingerprint: dict[str, str] | None = None,
    absent: InputError | None = None,
    called: Callable[[str], str] = flag,
) -> Result:
    """The only finished run whose settings hold all that is wanted; others, damaged ones too, are no hindrance.

    Args:
        folder: `exp/demo_1` or `exp/demo_2`.
        wanted: settings and their values.
        fingerprint: of the data at hand; None takes any.
        absent: why there is no data at hand, to be said where there is no run either.
        called: gives the option of a setting.

    Raises:
        NoRun: there is none; the message says in what the nearest one differs, or which could not be read.
        InputError: there are several, which the message names, or a file of it cannot be read.
    """
    known = configs.read_configs(folder)
    cause = f"{absent}; " if absent else ""
    unread = [run.name for run in configs.finished_runs(folder) if run not in known]
    besides = f"; but the config.json of {', '.join(unread)} cannot be read: {ANEW}" if unread else ""
    found = {run: configs.differences(config, wanted, fingerprint) for run, config in known.items()}
    fitting = [run for run, differs in found.items() if not differs]
    if len(fitting) == 1:
        return Result.read(fitting[0])
    if fitting:
        names = ", ".join(run.name for run in fitting)
        differ = configs.differing([known[run] for run in fitting])
        raise InputError(f"{cause}--stage1: must say which of {len(fitting)} runs that differ in {differ}: {names}")
    if not found:
        raise NoRun(f"{cause}--out: there is no finished run in {folder}{besides}")
    closest = min(found, key=lambda run: len(found[run]))
    key, have, value = found[closest][0]
    raise NoRun(f"{cause}{called(key)}: no finished run in {folder} with {value}; {closest.name} has {have}{besides}")


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
        InputError: see `find`; or there is no run of this name, or it differs from what is wanted.
    """
    if name is None:
        return find(folder, wanted, fingerprint, absent)
    base = Result.read(configs.named_run(folder, name))
    if differs := configs.differences(base.config, wanted, fingerprint):
        key, have, value = differs[0]
        raise InputError(f"--stage1: must be a run with {key} {value}, {name} has {have}")
    return base


def find_naive(folder: Path, base: Result) -> Result | None:
    """The run that differs from a first stage at most in weight decay, which is 0; None where there is none.

    Raises:
        InputError: there are several, which the message names, or a file of it cannot be read.
    """
    own = {"stage1_weight_decay", "method", "test_every"}  # the method's name follows from the weight decay

    def shared(config: configs.Config) -> tuple[dict[str, Any], dict[str, str]]:
        settings = {name: value for name, value in config["settings"].items() if name not in own}
        return settings, config["data"]["fingerprint"]

    alike = {run: each for run, each in configs.read_configs(folder).items() if shared(each) == shared(base.config)}
    found = [run for run, each in alike.items() if each["settings"].get("stage1_weight_decay") == 0]
    tested = base.config["settings"].get("test_every")  # decides no weight; of several the one of the same command
    found = [run for run in found if alike[run]["settings"].get("test_every") == tested] or found
    if len(found) > 1:
        names = ", ".join(run.name for run in found)
        raise InputError(f"--out: must hold one naive run beside {base.path.name}, there are {names}; move others away")
    return Result.read(found[0]) if found else None


def open_run(folder: Path, label: str, identity: dict[str, Any], fingerprint: dict[str, str]) -> Run:
    """The folder of a run below `exp/demo_1` or `exp/demo_2`, whether it was started before or not.

    Args:
        label: the readable part of the folder's name.
        identity: see `Run`.
        fingerprint: of the data, see `datasets.LongTailed.describe`.
    """
    return Run(folder / f"{label}-{digest(identity, fingerprint)}", identity)


# ---- results.csv


def append_results(path: Path, results: list[Result]) -> pd.DataFrame:
    """Put the rows of these runs, and of their averaged networks, into results.csv; return the table.

    They take the place of rows that they had there.

    Raises:
        InputError: there is a results.csv that is none.
    """
    every = (each for result in results for each in (result, *result.averaged))
    order = ["dataset", "imbalance_factor", "backbone", "run", "selection", "tta"]

    def write() -> None:
        rows = pd.DataFrame([row for result in every for row in result.rows()], columns=COLUMNS)
        storage.update_table(path, rows, lambda old, new: old.run.isin(new.run), order, order)

    distributed.current().on_main(write)
    return storage.read_table(path)

"""The configs of finished runs: which run of a folder is as wanted, and in what the others differ.

A run is a folder with `summary.json`, which is written last, and `config.json`, which says what was asked. One that
cannot be read hinders no other: a warning names it.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ltr.errors import InputError, clip
from ltr.runtime.options import flag, nearest
from ltr.runtime.storage import read_json, read_part

Config = Mapping[str, Any]
# What a config holds, as far as the package reads it.
PARTS = {
    "settings": ("method",),
    "data": ("name", "class_counts", "fingerprint"),
    "environment": ("device", "torch"),
}
ANEW = "without its folder, the first stage trains this run anew"


class NoRun(InputError):
    """There is no finished run as wanted."""


def read_config(run: Path) -> dict[str, Any]:
    """The config in a run's folder.

    Raises:
        InputError: it cannot be read.
    """
    return read_part(run / "config.json", lambda path: read_json(path, PARTS))


def finished_runs(folder: Path) -> list[Path]:
    """The folders of all finished runs of `exp/demo_1` or `exp/demo_2`, by name."""
    return sorted(path.parent for path in folder.glob("*/summary.json"))


def pass_over(run: Path, error: InputError) -> None:
    """Warn of a run that cannot be read."""
    warnings.warn(f"{run} is passed over ({error})", stacklevel=2)


def read_configs(folder: Path) -> dict[Path, Config]:
    """The configs of all finished runs by their folders; a warning names one that cannot be read."""
    configs = {}
    for run in finished_runs(folder):
        try:
            configs[run] = read_config(run)
        except InputError as error:
            pass_over(run, error)
    return configs


def differences(
    config: Config, wanted: Mapping[str, Any], fingerprint: Mapping[str, str] | None = None
) -> list[tuple[str, Any, Any]]:
    """In what a run is not as wanted: the setting, what it has, what is wanted."""
    have, wanted = config["settings"], json.loads(json.dumps(wanted, default=str))
    differs = [(key, have.get(key), value) for key, value in wanted.items() if have.get(key) != value]
    if fingerprint and not differs and config["data"]["fingerprint"] != fingerprint:
        differs = [("data_root", "another set of images", "the images loaded here")]
    return differs


def differing(configs: Sequence[Config]) -> str:
    """Names of the settings in which runs differ."""
    settings = [config["settings"] for config in configs]
    names = {name for each in settings for name in each}
    found = [name for name in sorted(names) if len({json.dumps(each.get(name)) for each in settings}) > 1]
    return ", ".join(found) or "their images"


def wanted_run(
    folder: Path, wanted: Mapping[str, Any], fingerprint: Mapping[str, str] | None = None, cause: str = ""
) -> Path:
    """The folder of the only run whose settings hold all that is wanted.

    Args:
        folder: of the runs.
        wanted: settings and their values.
        fingerprint: of the data at hand; None takes any.
        cause: what an error begins with, as why there is no data at hand.

    Raises:
        NoRun: there is none; the message says in what the nearest one differs, or which could not be read.
        InputError: there are several; the message names them.
    """
    configs = read_configs(folder)
    unread = [run.name for run in finished_runs(folder) if run not in configs]
    besides = f"; but the config.json of {', '.join(unread)} cannot be read: {ANEW}" if unread else ""
    found = {run: differences(config, wanted, fingerprint) for run, config in configs.items()}
    fitting = [run for run, differs in found.items() if not differs]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names, differ = ", ".join(run.name for run in fitting), differing([configs[run] for run in fitting])
        raise InputError(f"{cause}--stage1: must say which of {len(fitting)} runs that differ in {differ}: {names}")
    if not found:
        raise NoRun(f"{cause}--out: there is no finished run in {folder}{besides}")
    closest = min(found, key=lambda run: len(found[run]))
    key, have, value = found[closest][0]
    raise NoRun(f"{cause}{flag(key)}: no finished run in {folder} with {value}; {closest.name} has {have}{besides}")


def named_run(folder: Path, name: str) -> Path:
    """The folder of the first-stage run of this name.

    Raises:
        InputError: there is no such finished run; the message names the one of the nearest name.
    """
    here = [run.name for run in finished_runs(folder)]
    if name not in here:
        raise InputError(
            f"--stage1: must be a finished run in {folder}, got {clip(name)}{nearest(Path(name).name, here)}"
        )
    return folder / name


def naive_run(folder: Path, base: Path, config: Config) -> Path | None:
    """The folder of the run that differs from a first stage in weight decay alone, which is 0; None if there is none.

    Args:
        folder: of the runs.
        base: the first stage's folder.
        config: the first stage's.

    Raises:
        InputError: there are several; the message names them.
    """
    told = {"stage1_weight_decay", "method", "test_every"}  # the method's name follows from the weight decay
    wanted = {name: value for name, value in config["settings"].items() if name not in told}
    found = []
    for run, other in read_configs(folder).items():
        settings = other["settings"]
        alike = {name: value for name, value in settings.items() if name not in told} == wanted
        same_images = other["data"]["fingerprint"] == config["data"]["fingerprint"]
        if alike and same_images and settings.get("stage1_weight_decay") == 0:
            found.append(run)
    if len(found) > 1:
        names = ", ".join(run.name for run in found)
        raise InputError(f"--out: must hold one naive run beside {base.name}, there are {names}")
    return found[0] if found else None

"""The configs of finished runs: which run of a folder is as wanted, and in what the others differ.

A run is a folder with `summary.json`, which is written last, and `config.json`, which says what was asked. One that
cannot be read hinders no other: a warning names it.
"""

import json
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ltr.errors import InputError, clip
from ltr.runtime.options import nearest
from ltr.runtime.storage import plain, read_json, read_part

Config = Mapping[str, Any]
# What a config holds, as far as the package reads it.
PARTS = {"settings": ("method",), "data": ("name", "class_counts", "fingerprint"), "environment": ("device", "torch")}
T = TypeVar("T")


def read_config(run: Path) -> dict[str, Any]:
    """The config in a run's folder; raises InputError where it cannot be read."""
    return read_part(run / "config.json", lambda path: read_json(path, PARTS))


def finished_runs(folder: Path) -> list[Path]:
    """The folders of all finished runs of `exp/demo_1` or `exp/demo_2`, by name."""
    return sorted(path.parent for path in folder.glob("*/summary.json"))


def read_each(runs: Iterable[Path], read: Callable[[Path], T]) -> dict[Path, T]:
    """What `read` gives of each run's folder; a warning names one that cannot be read."""
    found = {}
    for run in runs:
        try:
            found[run] = read(run)
        except InputError as error:
            warnings.warn(f"{run} is passed over ({error})", stacklevel=2)
    return found


def read_configs(folder: Path) -> dict[Path, Config]:
    """The configs of all finished runs by their folders, see `read_each`."""
    return read_each(finished_runs(folder), read_config)


def differences(
    config: Config, wanted: Mapping[str, Any], fingerprint: Mapping[str, str] | None = None
) -> list[tuple[str, Any, Any]]:
    """In what a run is not as wanted: the setting, what it has, what is wanted."""
    have = config["settings"]
    wanted = json.loads(json.dumps(wanted, default=plain))
    differs = [(key, have.get(key), value) for key, value in wanted.items() if have.get(key) != value]
    if fingerprint and not differs and config["data"]["fingerprint"] != fingerprint:
        differs = [("data_root", "another set of images", "the images loaded here")]
    return differs


def alike(folder: Path, config: Config, free: Collection[str]) -> list[Path]:
    """Finished runs of a folder whose settings are a config's in all but some, by name; the config's own among them."""

    def told(each: Config) -> dict[str, Any]:
        return {name: value for name, value in each["settings"].items() if name not in free}

    return [path for path, each in read_configs(folder).items() if told(each) == told(config)]


def differing(configs: Sequence[Config]) -> str:
    """Names of the settings in which runs differ."""
    settings = [config["settings"] for config in configs]
    names = {name for each in settings for name in each}
    found = [name for name in sorted(names) if len({json.dumps(each.get(name)) for each in settings}) > 1]
    return ", ".join(found) or "their images"


def named_run(folder: Path, name: str, option: str = "--stage1") -> Path:
    """The folder of the first-stage run of this name, which the option gives.

    Raises:
        InputError: there is no such finished run; the message names the one of the nearest name.
    """
    here = [run.name for run in finished_runs(folder)]
    if name not in here:
        raise InputError(
            f"{option}: must be a finished run in {folder}, got {clip(name)}{nearest(Path(name).name, here)}"
        )
    return folder / name

"""The committed runs that the chapters show, among those of other seeds and networks."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from ltr.runtime.options import ROOT
from ltr.second_stage import FEATURES

SHIPPED = next((ROOT / "exp").glob(f"demo_1/*/{FEATURES}")).parent
KIND = ("backbone", "imbalance_factor", "choice", "stage1_epochs", "lr", "seed", "augmentation", "mix")


def assert_up_to_date(command: Callable[[list[str]], None], files: Sequence[Path], name: str, tmp_path: Path) -> None:
    """A page of the repository has what a command makes of the committed files."""
    page, text = tmp_path / "README.md", (ROOT / name).read_text("utf-8")
    page.write_text(text, "utf-8")
    command([*map(str, files), "--readme", str(page)])
    assert page.read_text("utf-8") == text, "run `make tables`"


def settings(run: Path) -> dict:
    """What a run was told."""
    return json.loads((run / "config.json").read_text("utf-8"))["settings"]


def shown(out: Path, pattern: str) -> Path:
    """The run of this name that is on the network which ships, is that network itself, or its naive one."""
    own = settings(SHIPPED)
    for run in sorted(out.glob(pattern)):
        told = settings(run)
        if told.get("stage1_run") == SHIPPED.name:
            return run
        if "stage1_run" not in told and all(told.get(name) == own.get(name) for name in KIND):
            return run
    raise LookupError(f"no run {pattern} on {SHIPPED.name}")

"""Make the runs of a folder small enough to be committed:

    python -m ltr pack exp --keep wd_wd0.0005_e200_resnet32_if100_s0-ee82bd89

Digits of the history past the seventh go; but for the runs to keep, weights and features of more than 100 kB too, and
of the norms of many epochs all rows between the first and the last. What each test image was taken for stays.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ltr import runs
from ltr.errors import InputError, clip
from ltr.runtime.options import Parser, folder, short
from ltr.runtime.storage import write_text, write_whole
from ltr.second_stage import FEATURES

LARGE, LONG = 100_000, 20_000  # bytes of weights and features, and of norms
DIGITS = 7  # of what a run told while it trained


def pack(path: Path, keep: bool) -> None:
    """Make one run ready, see above."""
    run = runs.Result.read(path)
    if not keep:
        for file in (path / "weights.pt", path / FEATURES):
            if file.exists() and file.stat().st_size > LARGE:
                file.unlink()
        if (path / "norms.npy").stat().st_size > LONG:
            write_whole(path / "norms.npy", lambda file: np.save(file, run.norms[[0, -1]]))
    write_text(path / "metrics.csv", run.history.to_csv(index=False, float_format=f"%.{DIGITS}g"))


def main(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: an option is not allowed, or names no run; or a run is damaged.
    """
    parser = Parser(prog="ltr pack", about=__doc__)
    parser.add_argument("folder", type=folder, help="of the runs of both stages, as exp; its tuning is packed too")
    parser.add_argument("--keep", nargs="*", default=[], metavar="RUN", help="whose weights and features stay")
    options = parser.parse_args(arguments)
    found = sorted(path.parent for path in options.folder.glob("**/demo_[12]/*/summary.json"))
    for name in options.keep:
        if name not in {path.name for path in found}:
            raise InputError(f"--keep: must be finished runs in {options.folder}, got {clip(name)}")
    if not found:
        raise InputError(f"folder: must hold finished runs, got {short(options.folder)}")
    for path in found:
        pack(path, path.name in options.keep)
    size = sum(file.stat().st_size for file in options.folder.rglob("*") if file.is_file())
    print(f"{len(found)} runs are ready to be committed; {options.folder} has {size / 2**20:.1f} MiB")

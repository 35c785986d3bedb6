"""Features that ship with the package, so that the second stage runs without images, download or GPU:

    python -m ltr ship --preset paper --backbone resnet32 --stage1-epochs 100

writes `features.npz` into the folder of the first stage with weight decay, at most 12 MB, and with `--tuned-on` the
values of its rows, `tuned.csv`. All options are the second script's, and say which first stage. `--base shipped` on the
second notebook starts from such a folder.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ltr import datasets
from ltr.errors import InputError
from ltr.runtime.options import short
from ltr.runtime.storage import table_text, write_text, write_whole
from ltr.second_stage import FEATURES, Features
from ltr.settings import SecondStage
from ltr.study.rows import TUNED, open_rows

LARGEST = 12 * 10**6  # bytes of a file


def half(features: Tensor) -> np.ndarray:
    """Features as float16 on the CPU; raises InputError where they are too large for it."""
    if float(features.abs().max()) > np.finfo(np.float16).max:
        raise InputError("--stage1: must be a network whose features fit half precision, got larger ones")
    return features.cpu().numpy().astype(np.float16)


def write(path: Path, features: Features, epochs: int) -> int:
    """Write the passes of some epochs and the test features as float16; fewer passes where the file would be too large.

    Returns:
        passes written.

    Raises:
        InputError: not even one pass fits.
    """
    arrays = {
        "test": half(features.test_features(0, False)),
        "mirrored": half(features.test_features(0, True)),
        "class_counts": features.class_counts,
        "test_labels": features.test_labels.astype(np.int16),
        "draws": np.array([features.batch_size, features.seed]),
    }
    room = LARGEST - sum(values.nbytes for values in arrays.values())
    number = min(epochs, room // (2 * features.up_to(0).features.numel() + 2 * len(features)))
    if number < 1:
        raise InputError(f"--backbone: features of one pass and of the test are larger than {LARGEST:,} bytes")
    passes = [features.up_to(epoch) for epoch in range(number)]
    arrays["features"] = np.stack([half(each.features) for each in passes])
    arrays["labels"] = np.stack([each.labels.cpu().numpy().astype(np.int16) for each in passes])
    write_whole(path, lambda file: np.savez_compressed(file, **arrays))
    return number


def main(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: an option is not allowed, or there is no such first stage.
    """
    settings = SecondStage.of_command(arguments)
    if settings.base != "trained":
        raise InputError(f"--base: must be trained, whose features are to ship, got {settings.base}")
    rows = open_rows(settings, datasets.load(**settings.data))
    run, sources = rows.base, rows.sources
    features = sources.extract(sources.network(run), "paper")
    passes = write(run.path / FEATURES, features, settings.epochs)
    (run.path / TUNED).unlink(missing_ok=True)  # of features from before
    if len(rows.tuned):
        write_text(run.path / TUNED, table_text(rows.tuned.reset_index()))
    size = (run.path / FEATURES).stat().st_size / 1e6
    print(short(f"{run.path / FEATURES}: {passes} passes of {len(features):,} images, {size:.1f} MB"))

"""Features that ship with the package, so that the second stage runs without images, download or GPU:

    python -m ltr ship --preset paper --backbone resnet32 --stage1-epochs 100

writes `features.npz` into the folder of the first stage with weight decay, at most 12 MB. All options are the second
script's, and say which first stage. `--base shipped` on the second notebook starts from such a file.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ltr import datasets, models, runs, second_stage
from ltr.errors import InputError
from ltr.runtime.options import short
from ltr.runtime.storage import write_whole
from ltr.second_stage import Features, Pass
from ltr.settings import SecondStage

NAME = "features.npz"
LARGEST = 12 * 10**6  # bytes of a file


def half(features: Tensor) -> np.ndarray:
    """Features as float16 on the CPU."""
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


def read(path: Path, device: torch.device | str = "cpu") -> Features:
    """Read a file of `write`, to train on a device.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        tensors = {
            name: torch.from_numpy(arrays[name]).to(device) for name in ("features", "labels", "test", "mirrored")
        }
        pairs = zip(tensors["features"].float(), tensors["labels"].long(), strict=True)
        tested = {(0, False): tensors["test"].float(), (0, True): tensors["mirrored"].float()}
        labels, draws = arrays["test_labels"].astype(np.int64), arrays["draws"].tolist()
        return Features([Pass(*pair) for pair in pairs], tested, arrays["class_counts"], labels, *draws)
    except FileNotFoundError as error:
        raise InputError(f"--base: no features ship with {path.parent}; python -m ltr ship makes them") from error
    except Exception as error:  # a damaged file raises whatever its damage leads to
        raise InputError(f"--base: {path} cannot be read ({error})") from error


def main(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: an option is not allowed, or there is no such first stage.
    """
    settings = SecondStage.of_command(arguments)
    if settings.base != "trained":
        raise InputError(f"--base: must be trained, whose features are to ship, got {settings.base}")
    data = datasets.load(**settings.data)
    fingerprint = data.describe()["fingerprint"]
    run = runs.find_base(settings.first_stages, settings.stage1, settings.base_settings, fingerprint)
    network = models.restore(settings.backbone, len(run.class_counts), run.weights(), settings.device)
    draws = settings.batch_size, settings.seed, settings.engine
    features = second_stage.FrozenFeatures(network, data, settings.device, "paper", *draws)
    passes = write(run.path / NAME, features, settings.epochs)
    size = (run.path / NAME).stat().st_size / 1e6
    print(short(f"{run.path / NAME}: {passes} passes of {len(features):,} images, {size:.1f} MB"))

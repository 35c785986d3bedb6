"""Make the runs of a folder small enough to be committed:

    python -m ltr pack exp --data-root data --keep wd_wd0.0005_e200_resnet32_if100_s0-ee82bd89

Every run keeps its predictions. Where an earlier run has none yet they are computed from its weights and the test
images, and must give its own summary. Then logits go, and digits of the history past the seventh; but for the runs to
keep, weights and features of more than 100 kB too, and of the norms of many epochs all rows between the first and the
last. A run whose predictions cannot be had is left as it is, and named.
"""

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ltr import datasets, models, runs
from ltr.errors import InputError, clip
from ltr.metrics import Predictions
from ltr.runtime import configs
from ltr.runtime.options import Parser, folder, short
from ltr.runtime.storage import write_text, write_whole
from ltr.second_stage import FEATURES, FrozenFeatures

LARGE, LONG = 100_000, 20_000  # bytes of weights and features, and of norms
HEAVY = ("weights.pt", FEATURES)
CUT = ("imbalance_factor", "profile", "choice", "hold_out", "seed", "normalization", "resize")  # of `datasets.load`
DIGITS = 7  # of what a run told while it trained
SLACK = 0.005  # points: less than one image of 10,000, more than what adding in another order does


def state_of(run: runs.Result) -> dict[str, Tensor]:
    """The whole network's state after a run of either stage.

    Raises:
        InputError: its weights, or those of the network that it started from, are not there.
    """
    own, base = run.weights(), run.config["settings"].get("stage1_run")
    if base is None:
        return own
    state = runs.Result.read(run.path.parents[1] / "demo_1" / base).weights()
    # A classifier's names are its own; last layers keep the network's, and so do statistics that drifted.
    names = {"weight": "classifier.weight", "bias": "classifier.bias"}
    return state | {names.get(name, name.removeprefix("trunk.")): value for name, value in own.items()}


def tested_images(settings: Mapping[str, Any], root: Path) -> datasets.LongTailed:
    """Images of a run with these settings; held-out ones, where it had some, in the place of the test images."""
    cut = {name: settings[name] for name in CUT if name in settings}
    if settings["choice"] == "first" and not settings.get("hold_out"):
        cut["seed"] = 0  # which no image depends on
    return loaded(settings["dataset"], root, **cut)


@cache
def loaded(source: str, root: Path, **cut: Any) -> datasets.LongTailed:
    """See `tested_images`."""
    data = datasets.load(source, root, **cut)
    return data.for_tuning() if cut["hold_out"] else data


class Images:
    """Test images of runs, and what networks make of them; what a backbone sees in them is computed once.

    Args:
        root: see `datasets.load`; None where there are none.
    """

    def __init__(self, root: Path | None) -> None:
        self.root = root
        self.features: dict[str, Tensor] = {}

    def of(self, run: runs.Result) -> datasets.LongTailed:
        """The images that a run was tested on.

        Raises:
            InputError: they are not there, or others.
        """
        if self.root is None:
            raise InputError("--data-root: must be given")
        settings = run.config["settings"]
        data = tested_images(settings, self.root)
        if data.describe()["fingerprint"] != run.config["data"]["fingerprint"]:
            raise InputError(f"--data-root: must hold the images of the run, {short(self.root)} has others")
        return data

    def predictions(self, run: runs.Result) -> Predictions:
        """What a run's network says of its test images.

        Raises:
            InputError: its weights or images are not there, or it says something else than its summary.
        """
        state, data = state_of(run), self.of(run)
        model = models.restore(run.config["settings"]["backbone"], len(data.class_counts), state)
        backbone = {name: value.numpy().tobytes() for name, value in state.items() if "classifier" not in name}
        key = hashlib.sha256(b"".join([*backbone.values(), data.test.fingerprint().encode()])).hexdigest()
        if key not in self.features:
            self.features[key] = FrozenFeatures(model, data, "cpu").test_features(0, False)
        made = Predictions.of(model.classifier(self.features[key]).detach().numpy(), data.test.labels)
        told = run.accuracy()
        for name, value in made.summary(data.class_counts).items():
            if not np.isclose(value, told[name], rtol=0, atol=SLACK, equal_nan=True):
                raise InputError(
                    f"--data-root: {name} is {value:.4f} from its weights, {told[name]:.4f} in its summary"
                )
        return made


def pack(path: Path, images: Images, keep: bool) -> str:
    """Make one run ready, see above; what stopped it in a word, or nothing."""
    try:
        run = runs.Result.read(path)
        if not (path / "predictions.npz").exists():
            runs.write_predictions(path, images.predictions(run))
    except InputError as error:
        return str(error)
    for name in ("test_logits.npz", *HEAVY):
        file = path / name
        if file.exists() and (name not in HEAVY or not keep and file.stat().st_size > LARGE):
            file.unlink()
    if not keep and (path / "norms.npy").stat().st_size > LONG:
        write_whole(path / "norms.npy", lambda file: np.save(file, run.norms[[0, -1]]))
    write_text(path / "metrics.csv", run.history.to_csv(index=False, float_format=f"%.{DIGITS}g"))
    return ""


def base_of(path: Path) -> str | None:
    """The first stage that a head's run stands on; None where its config does not tell."""
    with contextlib.suppress(InputError):
        return configs.read_config(path)["settings"].get("stage1_run")
    return None


def main(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: an option is not allowed, or names no run.
    """
    parser = Parser(prog="ltr pack", about=__doc__)
    parser.add_argument("folder", type=folder, help="of the runs of both stages, as exp; its tuning is packed too")
    parser.add_argument("--data-root", type=folder, help="images, for runs without predictions")
    parser.add_argument("--keep", nargs="*", default=[], metavar="RUN", help="whose weights and features stay")
    options = parser.parse_args(arguments)
    found = sorted(path.parent for path in options.folder.glob("**/demo_[12]/*/summary.json"))
    for name in options.keep:
        if name not in {path.name for path in found}:
            raise InputError(f"--keep: must be finished runs in {options.folder}, got {clip(name)}")
    if not found:
        raise InputError(f"folder: must hold finished runs, got {short(options.folder)}")
    images, stayed, needed = Images(options.data_root), 0, set()
    # Heads first: they need the weights of the networks that they stand on.
    for path in sorted(found, key=lambda path: path.parent.name, reverse=True):
        stopped = pack(path, images, path.name in {*options.keep, *needed})
        if stopped:
            needed.add(base_of(path))
            stayed += 1
            print(f"{path.name} stays as it is: {stopped}", flush=True)
    size = sum(file.stat().st_size for file in options.folder.rglob("*") if file.is_file())
    ready = f"{len(found) - stayed} of {len(found)} runs are ready to be committed"
    print(f"{ready}; {options.folder} has {size / 2**20:.1f} MiB")

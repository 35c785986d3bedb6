"""First-stage runs for many seeds and weight decays, side by side on one GPU.

    python -m ltr sweep --seeds 0 1 2 --weight-decays 0 0.005 --preset paper --backbone resnet34
    python -m ltr sweep --weight-decays 0 0.001 0.002 0.005 0.01 --hold-out 20 --preset paper

All other options are the first script's. The runs are the ones that the notebook would make, and it finds
them finished. With `--hold-out` the held-out images take the place of the test images, and the runs go to
`<out>/tuning`: that is how a weight decay is chosen.
"""

import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch

from ltr import datasets, first_stage, models, runs, training
from ltr.errors import InputError, TrainingError
from ltr.runtime.options import Parser, real, whole
from ltr.runtime.storage import check_writable
from ltr.settings import FirstStage

AT_ONCE = {"resnet32": 8, "resnet32-wide": 4, "resnet34": 2}  # on CUDA; a CPU gains nothing by sharing its cores


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One run of the grid, and the images it learns from."""

    settings: FirstStage
    weight_decay: float
    data: datasets.LongTailed

    @cached_property
    def run(self) -> runs.Run:
        """Its folder."""
        label, identity = self.settings.run_key("WD" if self.weight_decay else "naive", self.weight_decay)
        return runs.open_run(self.settings.out / "demo_1", label, identity, self.data.describe()["fingerprint"])


def new_training(
    settings: FirstStage, images: first_stage.ImageData, weight_decay: float, checkpoint: Path, label: str
) -> training.Trainer:
    """A first stage: a new network, its images, and its recipe."""
    model = models.build_model(settings.backbone, len(images.class_counts), settings.seed, settings.cosine)
    model.to(settings.device, memory_format=torch.channels_last)
    return training.Trainer(model, images, settings.recipe(weight_decay), None, checkpoint, label, settings.engine)


def grid(settings: FirstStage, seeds: Sequence[int], weight_decays: Sequence[float]) -> list[Cell]:
    """All cells; seeds share their images unless these are drawn by the seed."""
    cells, shared = [], None
    for seed in seeds:
        own = dataclasses.replace(settings, seed=seed)
        if shared is None or settings.choice == "random":
            shared = datasets.load(**own.data)
            shared = shared.for_tuning() if settings.hold_out else shared
        cells += [Cell(own, weight_decay, shared) for weight_decay in weight_decays]
    return cells


def train(cells: Sequence[Cell], at_once: int) -> Iterator[Cell]:
    """Train what is not finished, some side by side; give the cells whose training diverged.

    Of a group of which one diverges each is trained alone.
    """
    retrain = cells[0].settings.retrain  # the first time; afterwards there is a checkpoint to go on from
    waiting = [cell for cell in cells if retrain or not cell.run.finished]
    begun: set[str] = set()
    groups = deque(waiting[start : start + at_once] for start in range(0, len(waiting), at_once))
    while groups:
        group = groups.popleft()
        anew = retrain and not {cell.run.name for cell in group} <= begun
        begun |= {cell.run.name for cell in group}
        try:
            train_together(group, anew)
        except TrainingError as error:
            if len(group) == 1:
                print(f"{group[0].run.name}: {error}", flush=True)
                yield group[0]
            else:
                groups.extend([cell] for cell in group)


def train_together(cells: Sequence[Cell], retrain: bool) -> None:
    """Train some runs side by side, but for those that another process has finished; one set of images is shared."""
    images, trainers = {}, []
    cells = [cell for cell in cells if cell.run.begin(cell.data.describe(), cell.settings.device, retrain)]
    if not cells:
        return
    for cell in cells:
        settings, key = cell.settings, id(cell.data)
        if key not in images:
            images[key] = first_stage.ImageData(cell.data, settings.device, **settings.augmented)
        label = cell.run.name.rsplit("-", 1)[0]
        trainers.append(new_training(settings, images[key], cell.weight_decay, cell.run.checkpoint, label))
    for cell, outcome in zip(cells, training.fit_together(trainers), strict=True):
        cell.run.save(outcome, cell.data.class_counts)


def summary(results: Sequence[runs.Result]) -> pd.DataFrame:
    """Mean and deviation over seeds of each weight decay, and of the averaged networks: all, many, medium, few.

    Last epoch, plain, percent.
    """
    results = [each for result in results for each in (result, *result.averaged)]
    decays = [result.config["settings"]["stage1_weight_decay"] for result in results]
    rows = [{"method": r.label, "weight decay": d, **r.accuracy()} for r, d in zip(results, decays, strict=True)]
    groups = pd.DataFrame(rows).groupby(["method", "weight decay"])[["all", "many", "medium", "few"]]
    deviation = groups.std().add_suffix(" ±")
    return pd.concat([groups.mean(), deviation], axis=1).round(2).sort_index(axis=1).assign(seeds=groups.size())


def check_grid(seeds: Sequence[int], decays: Sequence[float], at_once: int) -> None:
    """Raises InputError where a value is out of range."""
    if min(seeds) < 0 or max(seeds) >= 2**32:
        raise InputError(f"--seeds: must be from 0 to 4294967295, got {min(seeds) if min(seeds) < 0 else max(seeds)}")
    if min(decays) < 0:
        raise InputError(f"--weight-decays: must be at least 0, got {min(decays):g}")
    if at_once < 1:
        raise InputError(f"--at-once: must be at least 1, got {at_once}")


def main(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: an option is not allowed.
    """
    parser = Parser(prog="ltr sweep", about=__doc__, epilog="All else: see the first script.")
    parser.add_argument("--seeds", nargs="+", type=whole, help="of weights, order, crops and flips (default: --seed)")
    parser.add_argument("--weight-decays", nargs="+", type=real, help="0 is the naive model (default: by preset)")
    parser.add_argument("--at-once", type=whole, help="runs side by side (default: by backbone on CUDA, 1 on a CPU)")
    options, rest = parser.parse_known_args(arguments)
    settings = FirstStage.of_command(rest)
    by_preset = [settings.weight_decay] if settings.naive == "skip" else [0, settings.weight_decay]
    if options.weight_decays and any(word.split("=")[0] == "--weight-decay" for word in rest):
        raise InputError("--weight-decay: must not be given beside --weight-decays")
    chosen = options.seeds or [settings.seed], options.weight_decays or by_preset
    seeds, decays = (list(dict.fromkeys(each)) for each in chosen)
    usual = AT_ONCE.get(settings.backbone, 1) if settings.device.startswith("cuda") else 1
    at_once = usual if options.at_once is None else options.at_once
    check_grid(seeds, decays, at_once)
    if settings.hold_out:
        settings = dataclasses.replace(settings, out=settings.out / "tuning")
    check_writable(settings.out)
    print(settings, f"engine: {settings.engine}", sep="\n", flush=True)
    cells = grid(settings, seeds, decays)
    diverged = list(train(cells, at_once))
    if results := [cell.run.load() for cell in cells if cell not in diverged]:
        print(summary(results).to_string())
        runs.append_results(settings.out / "results.csv", results)
    if diverged:
        raise TrainingError(f"training diverged: {', '.join(cell.run.name for cell in diverged)}; try a smaller --lr")

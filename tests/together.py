"""A script for torchrun, in tests of several processes: a first stage with the first script's options, on small images.

It trains a run as the notebook does. With `KILL`, a number, the second process kills itself (SIGKILL) at so many
batches. With `CHECKS`, a folder, each process also writes there what it computes
together with the others (`computed`), and which files it has opened to write (`written`).
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from trees import shrink_benchmarks

from ltr import datasets, first_stage, models, recipes, regularizers, runs, second_stage, training
from ltr.data import streaming
from ltr.datasets import LabelledImages, LongTailed
from ltr.runtime import distributed
from ltr.settings import FirstStage

TIMES = 4  # as many images as `trees.write_benchmark` writes else
SIZES = (1, 2, 5, 8)  # of gathered rows: less than a row each, equal and unequal shares
BATCH = 16
written: list[str] = []


def small_set(train: int = 65, test: int = 250) -> LongTailed:
    """8x8 images of 4 classes: noise around a colour of the class. 65 are four batches and one image."""
    rng = np.random.default_rng(3)
    labels = np.concatenate([np.sort(rng.permutation(np.arange(train) % 7) % 4), np.arange(test) % 4])
    noise = rng.normal(0, 40, (len(labels), 8, 8, 3)) + rng.integers(40, 216, (4, 1, 1, 3))[labels]
    images = np.clip(noise, 0, 255).astype(np.uint8)
    parts = [LabelledImages(images[part], labels[part]) for part in (slice(train), slice(train, None))]
    return LongTailed("noise", list("abcd"), *parts, None, (0.5,) * 3, (0.25,) * 3)


def network(batch_norm: bool = True, classes: int = 4) -> models.CifarResNet:
    """A small network of the real blocks, with or without batch-norm."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.CifarResNet(classes, (8, 16), [1, 1], projection=True)
    for module in list(model.modules()) if not batch_norm else ():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    return model.to(memory_format=torch.channels_last)


def trained(
    model: nn.Module, data: training.Data, loss: str = "ce", epochs: int = 3, sam_rho: float = 0.0
) -> dict[str, Any]:
    """What a few epochs with weight decay and MaxNorm end with."""
    recipe = recipes.Recipe(epochs, BATCH, lr=0.05, weight_decay=5e-3, loss=loss, sam_rho=sam_rho)
    outcome = training.fit(model, data, recipe, regularizers.MaxNorm(0.4))
    history = torch.tensor(outcome.history.drop(columns="seconds").to_numpy())
    return {"weights": outcome.weights, "history": history, "logits": torch.tensor(outcome.logits["last", "flip"])}


class FatalImages(first_stage.ImageData):
    """Images that kill the process at the batch numbered `KILL`, the steps of preparing counted in."""

    batches = 0

    def batch(self, drawn: Any, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.batches += 1
        if self.batches == int(os.environ["KILL"]) and distributed.current().rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(drawn, positions)


def features(mode: str) -> second_stage.FrozenFeatures:
    """A network's features."""
    return second_stage.FrozenFeatures(network(), small_set(), "cpu", mode, BATCH)


def computed() -> dict[str, Any]:
    """What must be the same however many processes compute it, most of it to the bit."""
    group, found = distributed.current(), {}
    for size in SIZES:
        rows = torch.arange(2 * size).view(size, 2)
        share = group.shard(size)
        found[f"gathered {size}"] = group.gather(rows[share.start : share.stop], size)
    for test in (37, 250):  # a batch, which rank 0 tests alone; three, of which it tests two
        images = first_stage.ImageData(small_set(test=test), "cpu")
        found[f"logits {test}"] = torch.tensor(images.test_logits(network(), 0, flip=True))
    for mode in second_stage.MODES:
        frozen = features(mode)
        found[f"{mode} features"] = [*frozen.draw(BATCH, 0, 1), frozen.test_features(1, True)]
    found["trained classifier"] = trained(models.copy_classifier(network()), features("paper"), "cb-ce")
    found["trained"] = trained(network(batch_norm=False), first_stage.ImageData(small_set(), "cpu"))
    # The last of five epochs weighs the classes.
    found["trained, deferred"] = trained(network(False), first_stage.ImageData(small_set(), "cpu"), "ce-drw", 5)
    mixed = first_stage.ImageData(small_set(), "cpu", mix="mixup")
    found["trained, mixed"] = trained(network(False), mixed, "ce-drw", 5)
    found["trained, sharp"] = trained(network(False), first_stage.ImageData(small_set(), "cpu"), sam_rho=0.05)
    found["batch-norm"] = trained(network(), first_stage.ImageData(small_set(), "cpu"))
    return found


def streamed(root: Path) -> dict[str, Any]:
    """The same of a benchmark whose JPEGs stay in their files, 256 of them, decoded by a worker."""
    with pytest.MonkeyPatch.context() as patch:
        shrink_benchmarks(patch, TIMES)
        patch.setattr(streaming, "CROP", 16)
        patch.setattr(streaming, "RESIZE", 20)
        data = datasets.load("imagenet-lt", root, 1.0, "as-is", normalization="imagenet", workers=1)
        images, model = first_stage.ImageData(data, "cpu"), network(batch_norm=False, classes=3)
        frozen = second_stage.FrozenFeatures(model, data, "cpu", "paper", BATCH)
        found = {"streamed logits": torch.tensor(images.test_logits(model, 0, flip=True))}
        found["streamed features"] = [*frozen.draw(BATCH, 0, 1), frozen.test_features(1, True)]
        return found | {"streamed training": trained(model, images)}


def train_first_stage(settings: FirstStage) -> runs.Result:
    """The first notebook's way through a run, and its table."""
    data = small_set()
    label, identity = settings.run_key("WD", settings.weight_decay)
    run = runs.open_run(settings.out / "demo_1", label, identity, data.describe()["fingerprint"])

    def train() -> training.Outcome:
        images = (FatalImages if "KILL" in os.environ else first_stage.ImageData)(data, settings.device)
        recipe = settings.recipe(settings.weight_decay)
        return training.fit(network(), images, recipe, None, run.checkpoint, "WD", settings.engine)

    result = run.load_or_train(data.describe(), train, settings.device, data.class_counts, settings.retrain)
    runs.append_results(settings.out / "results.csv", [result])
    print("finished", flush=True)
    return result


def note_writes(event: str, arguments: tuple) -> None:
    """An audit hook: keep what is opened to be written, made, renamed or removed."""
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
        written.append(str(arguments[0]))


if __name__ == "__main__":
    sys.addaudithook(note_writes)
    settings = FirstStage.read()
    train_first_stage(settings)
    if folder := os.environ.get("CHECKS"):
        from matplotlib import pyplot  # the other tests need not wait for it

        from ltr import plots

        plots.show(pyplot.figure(), settings.out / "figures" / "figure.png")
        group = distributed.current()
        below = [path for path in written if path.startswith(str(settings.out))]
        of_files = streamed(Path(os.environ["TREE"]))
        torch.save({"computed": computed() | of_files, "written": below}, Path(folder) / f"{group.rank}.pt")

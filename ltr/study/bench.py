"""What the fast path is worth: it and a plain reference, timed in turn in one run.

    python -m ltr bench                        # what this machine can measure, into exp/benchmarks.csv
    python -m ltr bench --only 'stage 1' --backbones resnet34

The reference trains as the released code does: torchvision's transforms on PIL images in a DataLoader with
workers, eager, float32 (TF32 where PyTorch's defaults use it), a test after every epoch. Both sides have the
same network, batch, images and arithmetic. Pixels are drawn, since their content does not change the time.
Times are medians of `--repeat` repetitions.
"""

import dataclasses
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from ltr import first_stage, models, recipes, second_stage, stack, training
from ltr.balance import balance, recipe_for
from ltr.datasets import STATISTICS, LabelledImages, LongTailed, class_counts
from ltr.errors import InputError
from ltr.runtime import engine, storage
from ltr.runtime.engine import Engine
from ltr.runtime.machine import device_name, usable_device
from ltr.runtime.options import ROOT, Parser, file, whole
from ltr.runtime.process import set_up_libraries
from ltr.runtime.storage import check_writable

COLUMNS = "what,backbone,device,images,batch,precision,reference_s,ours_s,ratio,floor_share,peak_mb,torch,date".split(
    ","
)
BATCH = 64
TEST_EVERY = 10  # of the paper preset
EPOCHS = {"resnet32": 200, "resnet32-wide": 200, "resnet34": 320}

STAGE_1 = "stage 1, an epoch and its share of the tests"
READY = "stage 1, compile and capture"
WHOLE = "stage 1, {} epochs (reference scaled)"
EIGHT = "stage 1, 10 epochs of eight seeds at once (reference: one after another)"
FEATURES = "stage 2, features of 10 passes and of the test images"
GRID = "stage 2, 500 classifiers (reference scaled)"
BALANCE = "balance a head, {} methods"
HEAD = {"images": 100_000, "classes": 1000, "features": 512}  # that is balanced


def drawn(scale: float = 1.0) -> LongTailed:
    """Random images, some share or multiple of what CIFAR100-LT has at imbalance factor 100, and of its test set."""
    rng, counts = np.random.default_rng(0), class_counts(500, 100, 100)
    train = rng.permutation(np.repeat(np.arange(100), counts))
    labels = np.resize(train, int(scale * len(train))), np.arange(int(scale * 10_000)) % 100
    parts = [LabelledImages(rng.integers(0, 256, (len(y), 32, 32, 3), np.uint8), y) for y in labels]
    return LongTailed("drawn", [str(k) for k in range(100)], *parts, None, *STATISTICS["cifar100"])


class Pictures(Dataset):
    """Images and labels one by one, through PIL and a transform, as torchvision's CIFAR-100 gives them."""

    def __init__(self, images: LabelledImages, transform: Callable) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images.images[index])), int(self.images.labels[index])


class Reference:
    """The released code's way to train and to test.

    Args:
        frozen: train the classifier alone, behind a backbone that each image passes again each epoch (stage 2).
    """

    def __init__(self, data: LongTailed, backbone: str, device: torch.device, frozen: bool = False) -> None:
        from torchvision import transforms  # here, as it takes seconds to import

        normal = [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
        crop = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        workers = {"num_workers": min(8, torch.get_num_threads()), "pin_memory": device.type == "cuda"}
        self.train = DataLoader(Pictures(data.train, transforms.Compose(crop + normal)), BATCH, shuffle=True, **workers)
        self.test = DataLoader(Pictures(data.test, transforms.Compose(normal)), BATCH, **workers)
        self.device = device
        self.model = models.build_model(backbone, 100).to(device)
        trained = self.model.classifier if frozen else self.model
        self.model.requires_grad_(False)
        trained.requires_grad_(True)
        self.optimizer = torch.optim.SGD(trained.parameters(), 0.01, 0.9, weight_decay=5e-3)

    def epoch(self) -> None:
        """Train on every image, then test."""
        self.model.train()
        hits = 0
        for images, labels in self.train:
            images = images.to(self.device)
            labels = labels.to(self.device)
            logits = self.model(images)
            loss = nn.functional.cross_entropy(logits, labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            hits += (logits.argmax(1) == labels).sum().item()
        self.evaluate()

    @torch.no_grad()
    def evaluate(self) -> float:
        """Accuracy on the test images, a share."""
        self.model.eval()
        hits = [self.model(images.to(self.device)).argmax(1).cpu() == labels for images, labels in self.test]
        return torch.cat(hits).float().mean().item()


def trainer(data: LongTailed, backbone: str, how: Engine, seed: int = 0) -> training.Trainer:
    """The package's own training of the same network."""
    model = models.build_model(backbone, 100, seed).to(how.device, memory_format=torch.channels_last)
    recipe = recipes.Recipe(EPOCHS[backbone], BATCH, 0.01, 5e-3, seed=seed, test_every=TEST_EVERY)
    return training.Trainer(model, first_stage.ImageData(data, how.device), recipe, engine=how)


def ready(*trainers: training.Trainer) -> list[training.Trainer]:
    """Trainings that can run their steps."""
    for one in trainers:
        one.prepare()
    return list(trainers)


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Wall time of some work, the device's included."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - start


def in_turn(repeat: int, device: torch.device, *works: Callable[[], Any]) -> list[float]:
    """Median seconds of each piece of work, all of them once a round."""
    rounds = [[seconds(work, device) for work in works] for _ in range(repeat)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def peak_flops(how: Engine) -> float:
    """Floating-point operations a second of a large matrix product in the precision of the network."""
    size, device = (8192, how.device) if how.device.type == "cuda" else (2048, how.device)
    dtype = torch.bfloat16 if how.precision == "bf16" else torch.float32
    draw = torch.Generator(device).manual_seed(0)  # equal numbers would draw less power, and run faster on a GPU
    a, b = torch.randn(2, size, size, device=device, generator=draw).to(dtype)
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(10))


def epoch_flops(backbone: str, images: int) -> float:
    """Operations of an epoch's training: the forward pass, and twice as much backward."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.device("meta"):  # shapes alone
        models.build_model(backbone, 100).eval()(torch.zeros(1, 3, 32, 32))
    return 3 * counter.get_total_flops() * images


def row(what: str, backbone: str, how: Engine, images: int = 10_847, **measured: Any) -> dict[str, Any]:
    """A row of the table; the ratio follows from the two times."""
    if {"reference_s", "ours_s"} <= measured.keys():
        measured["ratio"] = measured["reference_s"] / measured["ours_s"]
    where = {"device": device_name(how.device), "precision": how.precision, "batch": BATCH, "images": images}
    versions = {"torch": torch.__version__.split("+")[0], "date": date.today().isoformat()}
    return {"what": what, "backbone": backbone, **where, **measured, **versions}


def stage_1(backbone: str, how: Engine, repeat: int, scale: float = 1.0) -> Iterator[dict[str, Any]]:
    """An epoch and its share of the tests, beside the reference's epoch and its test."""
    data = drawn(scale)
    reference = Reference(data, backbone, how.device)
    with how.backend():
        (own,) = ready(trainer(data, backbone, how))
    images = len(data.train)
    if own.prepare_seconds:
        yield row(READY + compiled(own.engine), backbone, how, images, ours_s=own.prepare_seconds)
    works = lambda: training.train_epoch([own]), lambda: own.test.after(own.epoch), reference.epoch
    with how.backend():
        train_s, test_s, reference_s = in_turn(repeat, how.device, *works)
    times = {"reference_s": reference_s, "ours_s": train_s + test_s / TEST_EVERY}
    floor = epoch_flops(backbone, images) / peak_flops(how) / train_s
    peak = {"peak_mb": peak_mb(backbone, how)} if scale == 1 else {}
    yield row(STAGE_1 + compiled(own.engine), backbone, how, images, **times, floor_share=floor, **peak)


def compiled(how: Engine) -> str:
    """What a row's name adds where the network was compiled."""
    return ", compiled" if how.compile else ""


def whole_training(backbone: str, how: Engine, repeat: int) -> Iterator[dict[str, Any]]:
    """All epochs of stage 1 with their tests; the reference's time is scaled from a few of its epochs."""
    data, epochs = drawn(), EPOCHS[backbone]
    reference = Reference(data, backbone, how.device)
    own = trainer(data, backbone, how)
    seconds(reference.epoch, how.device)  # the first one takes longer
    (reference_s,) = in_turn(repeat, how.device, reference.epoch)
    (outcome,) = training.fit_together([own])
    own_s = outcome.extra["seconds"]
    floor = epochs * epoch_flops(backbone, len(data.train)) / peak_flops(how) / own_s
    times = {"reference_s": epochs * reference_s, "ours_s": own_s, "floor_share": floor}
    yield row(WHOLE.format(epochs) + compiled(own.engine), backbone, how, **times)


def eight_at_once(backbone: str, how: Engine, repeat: int) -> Iterator[dict[str, Any]]:
    """Ten epochs of eight seeds side by side, beside eight times one seed's."""
    data = drawn()
    with how.backend():
        eight = ready(*(trainer(data, backbone, how, seed) for seed in range(8)))

    def epochs(trainers: list[training.Trainer]) -> None:
        for _ in range(10):
            training.train_epoch(trainers)

    with how.backend():
        one_s, eight_s = in_turn(repeat, how.device, lambda: epochs(eight[:1]), lambda: epochs(eight))
    yield row(EIGHT, backbone, how, reference_s=8 * one_s, ours_s=eight_s)


def stage_2(backbone: str, how: Engine, repeat: int) -> Iterator[dict[str, Any]]:
    """500 classifiers of 10 epochs from features, beside a pass of the backbone for each of them and each epoch."""
    data, recipe = drawn(), recipes.Recipe(10, BATCH)
    model = models.build_model(backbone, 100).to(how.device, memory_format=torch.channels_last)
    frozen = second_stage.FrozenFeatures(model, data, how.device, engine=how)
    features_s = seconds(lambda: (frozen.up_to(9), frozen.test_features(9, False)), how.device)
    yield row(FEATURES, backbone, how, ours_s=features_s)
    grid_of = product((0.003, 0.01, 0.03, 0.1), np.geomspace(1e-4, 0.1, 25), (np.nan, 0.5, 1.0, 1.5, 2.0))
    choices = pd.DataFrame(grid_of, columns=["lr", "weight_decay", "max_norm"])
    choices = choices.assign(loss="cb-ce", max_norm_every="step")
    start = models.copy_classifier(model)
    reference = Reference(data, backbone, how.device, frozen=True)

    def grid() -> None:
        stack.Grid(start, frozen, recipe, choices).fit().table()

    grid_s, epoch_s = in_turn(repeat, how.device, grid, reference.epoch)
    flops = 6 * recipe.epochs * len(frozen) * len(choices) * start.weight.numel()
    floor = flops / peak_flops(how.exact) / grid_s
    times = {"reference_s": len(choices) * recipe.epochs * epoch_s, "ours_s": grid_s, "floor_share": floor}
    yield row(GRID, backbone, how, **times)


def in_child(call: str) -> tuple[float, float]:
    """What a call of this module gives in a fresh process, and the most memory that the process held, in MB."""
    code = f"from ltr.study import bench; print(bench.{call}, bench.peak_memory())"
    child = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    result, peak = map(float, child.stdout.split()[-2:])
    return result, peak


def peak_memory() -> float:
    """The most memory that this process has held, in MB."""
    import resource  # not there on Windows

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def peak_mb(backbone: str, how: Engine) -> float:
    """Most memory that an epoch of stage 1 and its test hold, in MB: the device's, or on a CPU a fresh process's."""
    if how.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(how.device)
        training.train_epoch(ready(trainer(drawn(), backbone, how)))
        return torch.cuda.max_memory_allocated(how.device) / 1e6
    return in_child(f"epoch_seconds({backbone!r}, {str(how.device)!r}, {how.precision!r})")[1]


def epoch_seconds(backbone: str, device: str, precision: str) -> float:
    """Seconds of an epoch of stage 1 and its test."""
    (own,) = ready(trainer(drawn(), backbone, Engine(torch.device(device), precision)))
    return seconds(lambda: (training.train_epoch([own]), own.test.after(own.epoch)), own.engine.device)


def balance_seconds(methods: str, images: int, classes: int, features: int) -> float:
    """Seconds that `balance` takes for a head on drawn features of a long tail, 20 validation images a class.

    About so many images train, in the rarest class a hundredth of those in the most common one.
    """
    rng = np.random.default_rng(0)
    means = rng.normal(size=(classes, features)).astype(np.float32)
    counts = class_counts(int(images * np.log(100) / classes), classes, 100)
    labels = [np.repeat(np.arange(classes), number) for number in (counts, 20)]
    sets = [(means[y] + 5 * rng.normal(size=(len(y), features)).astype(np.float32), y) for y in labels]
    head = means / 25, np.log(counts / counts.sum()) - np.square(means).sum(1) / 50  # Bayes' classifier
    return seconds(lambda: balance(head, *sets, methods=methods), torch.device("cpu"))


def balancing(methods: str) -> Iterator[dict[str, Any]]:
    """`balance` by some methods in a process of its own."""
    took, peak = in_child(f"balance_seconds({methods!r}, **{HEAD})")
    images = HEAD["images"]
    shape = f"{HEAD['classes']:,} x {HEAD['features']}"
    batch = recipe_for(images).batch_size
    yield row(BALANCE.format(methods), shape, Engine(), images, ours_s=took, peak_mb=peak, batch=batch)


Work = Callable[[], Iterator[dict[str, Any]]]


def plan(device: torch.device, repeat: int) -> list[tuple[str, str, Work]]:
    """All that is measured on a device: what, backbone, and the work that gives its rows.

    How the time grows is seen on one, two and four times as many images: from all of them up on a GPU, from a
    quarter up on a CPU, which measures the narrow network alone (the others take it an hour an epoch).
    """
    cuda, parts = device.type == "cuda", []
    first, second = (2, 4) if cuda else (0.25, 0.5)
    for backbone in models.CIFAR_BACKBONES if cuda else ("resnet32",):
        how = engine.choose(device, large=models.is_large(backbone))
        other = dataclasses.replace(how, compile=not how.compile)
        parts += [
            (STAGE_1, backbone, partial(stage_1, backbone, how, repeat)),
            (STAGE_1, backbone, partial(stage_1, backbone, how, 1, first)),
            (STAGE_1, backbone, partial(stage_1, backbone, how, 1, second)),
            (STAGE_1, backbone, partial(stage_1, backbone, other, 1, 1 if cuda else first)),
            (GRID, backbone, partial(stage_2, backbone, how, repeat)),
        ]
        if cuda:
            parts.append((WHOLE.format(EPOCHS[backbone]), backbone, partial(whole_training, backbone, how, repeat)))
        if cuda and backbone == "resnet32":
            parts.append((EIGHT, backbone, partial(eight_at_once, backbone, how, repeat)))
    if not cuda:
        parts += [(BALANCE.format(methods), "", partial(balancing, methods)) for methods in ("fast", "all")]
    return parts


def same_work(old: pd.DataFrame, new: pd.DataFrame) -> pd.Series:
    """Which old rows are of a new one's work, device and images."""
    key = ["what", "backbone", "device", "precision", "images"]
    known = set(new[key].astype(str).itertuples(index=False, name=None))
    return old[key].astype(str).apply(tuple, axis=1).isin(known)


def add(path: Path, row: dict[str, Any]) -> None:
    """Put a measurement into a file, in the place of an earlier one of the same work on the same device."""
    new = pd.DataFrame([row], columns=COLUMNS)
    storage.update_table(path, new, same_work, COLUMNS, ["what", "backbone", "device", "images"])


def main(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: an option is not allowed.
    """
    parser = Parser(prog="ltr bench", about=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--repeat", type=whole, default=3, help="repetitions, of which the median counts")
    parser.add_argument("--only", default="", help="measure what begins so, as 'stage 2'")
    parser.add_argument("--backbones", nargs="*", choices=models.CIFAR_BACKBONES, default=list(models.CIFAR_BACKBONES))
    parser.add_argument("--out", type=file, default=ROOT / "exp" / "benchmarks.csv")
    options = parser.parse_args(arguments)
    if options.repeat < 1:
        raise InputError(f"--repeat: must be at least 1, got {options.repeat}")
    check_writable(options.out.parent)
    if options.out.exists():
        storage.read_table(options.out, needs=COLUMNS)
    device = torch.device(usable_device(options.device))
    set_up_libraries(deterministic=False)
    print(f"{device_name(device)}, torch {torch.__version__}", flush=True)
    parts = plan(device, options.repeat)
    if not any(what.startswith(options.only) for what, _, _ in parts):
        names = ", ".join(dict.fromkeys(what for what, _, _ in parts))
        raise InputError(f"--only: must be the beginning of one of {names}, got {options.only}")
    for what, backbone, work in parts:
        if backbone not in ("", *options.backbones) or not what.startswith(options.only):
            continue
        for measured in work():
            new = pd.DataFrame([measured], columns=COLUMNS)
            print(new.drop(columns=["device", "torch", "date"]).to_string(index=False, header=True), flush=True)
            add(options.out, measured)

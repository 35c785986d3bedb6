"""Settings of the two stages: their options, presets, and a run's identity.

They come from the command line, in Jupyter from one string in `LTR_ARGS` (`process.begin`). Relative folders are the
caller's; a checkout's defaults lie at its root.
"""

import dataclasses
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from ltr import datasets, losses, models, recipes
from ltr.data import augment
from ltr.errors import InputError, clip
from ltr.runtime import configs, distributed, engine, process
from ltr.runtime.machine import usable_device
from ltr.runtime.options import PACKAGE, ROOT, flag, folder, given_values, option, real, run_name, short, whole

SHIPPED = "shipped"
BASES = ("trained", SHIPPED)
CHOSEN = {"lr", "weight_decay", "max_norm", "tau", "naive_tau"}  # what `ltr tune` chooses, unless one is given
COMMITTED = "committed"  # beside the recipes' presets, one that reads this package's own runs
OUT = {name: ROOT / "build" / name for name in ("demo", "laptop")} | dict.fromkeys(("paper", COMMITTED), ROOT / "exp")
# What these leave alone is no part of a run's identity, so that runs from before they could be chosen are found; and a
# run made on a GPU is found without one.
UNUSED = {
    "base": "trained",
    "resize": None,
    "precision": "auto",
    "deterministic": False,
    "sync_batch_norm": False,
    **recipes.PLAIN_IMAGES,
    **recipes.LATER,
}
# These decide no result; `stage1` is a run's `stage1_run`, `naive_tau` the `tau` of the run that it decides.
ELSEWHERE = (
    *("preset", "data_root", "workers", "device", "out", "retrain", "compile", "graph", "naive", "stage1", "tuned_on"),
    "naive_tau",
)
# What a second stage must share with the first one that it starts from.
OF_THE_BASE = (
    *("dataset", "imbalance_factor", "profile", "choice", "hold_out", "normalization", "backbone", "seed"),
    *("resize", "stage1_epochs", "stage1_weight_decay"),
)
WHOLE_NETWORK = {  # names of what the first stage learns by, apart from cross-entropy
    "balanced-softmax": "Balanced Softmax, whole network",
    "vs": "VS loss",
    "ldam-drw": "LDAM-DRW",
    "ce-drw": "CE-DRW",
    "smooth": "label smoothing",
    "label-aware": "label-aware smoothing",
    "cutmix": "CutMix",
    "cutout": "Cutout",
    "autoaugment": "AutoAugment",
    "autoaugment+cutout": "AutoAugment and Cutout",
    "sqrt": "square-root sampling",
    "class-balanced": "class-balanced sampling",
}
MOST = 100_000  # epochs, or images a step: far beyond use, and a clear line for a slip of the keyboard
S = TypeVar("S", bound="Common")


def uncut(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, float]:
    """The imbalance factor where nothing is cut, so that any other names the same run; `values` are of all options.

    Raises:
        InputError: a factor is given for one's own images, which no profile cuts.
    """
    if values["profile"] != "as-is":
        return {}
    if "imbalance_factor" in given and "profile" not in given and values["dataset"] in recipes.OWN_IMAGES:
        got = f"{given['imbalance_factor']:g} with --dataset {values['dataset']}, which keeps every image"
        raise InputError(f"--imbalance-factor: must be given with --profile exp or step, got {got}")
    return {"imbalance_factor": 1.0}


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of both stages."""

    shipped = False  # whether features come with the package, in place of images

    preset: str = option(
        None,
        "demo: a few minutes on a CPU; laptop: real images in an hour of a CPU; paper: the paper's job; committed: "
        "reads this package's own runs",
        choices=(*recipes.PRESETS, COMMITTED),
    )
    dataset: str = option(None, "where images come from", choices=datasets.SOURCES)
    data_root: Path = option(ROOT / "data", "CIFAR's folder, or that of the tree or the list files", folder)
    workers: int = option(None, "processes that decode large images; 0 for none", whole, low=0, high=1024)
    imbalance_factor: float = option(None, "images of the largest class over the smallest's", real, low=1)
    profile: str = option(None, "shape of the tail; as-is, which your own get, keeps all", choices=datasets.PROFILES)
    resize: int = option(None, "pixels of a side that your own images are brought to", whole, low=8, high=1024)
    choice: str = option(None, "which images of a class stay; your own go by hash", choices=datasets.CHOICES)
    hold_out: int = option(0, "images a class kept for a validation set, before the tail is cut", whole, low=0)
    normalization: str = option("cifar100", "mean and deviation", choices=tuple(datasets.STATISTICS))
    backbone: str = option(None, "the network", choices=tuple(models.BACKBONES))
    seed: int = option(0, "of weights, order, crops and flips", whole, low=0, high=2**32 - 1)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    out: Path = option(None, "folder of demo_1/, demo_2/, figures/ and results.csv", folder)
    retrain: bool = option(False, "repeat finished runs and start interrupted ones anew")
    precision: str = option("auto", "bf16 where the GPU is fast at it", choices=engine.PRECISIONS)
    compile: str = option("auto", "torch.compile: large networks on CUDA", choices=engine.COMPILE)
    graph: str = option("auto", "replay each step from a CUDA graph", choices=engine.GRAPH)
    deterministic: bool = option(False, "the same bits each time on CUDA too, slower")
    sync_batch_norm: bool = option(False, "batch-norm over the batches of all processes; torchrun on CUDA")

    preset_values = staticmethod(recipes.first_stage)  # where what is not given comes from
    # What shipped features bring along, where it is not the setting of the same name.
    of_first = {"epochs": "stage1_epochs", "weight_decay": "stage1_weight_decay"}

    @classmethod
    def filled(cls, given: dict[str, Any]) -> dict[str, Any]:
        """What was given, and beside it what its preset, its images and its network say."""
        preset, out = given["preset"], OUT[given["preset"]]
        if preset == COMMITTED:
            given = cls.of_shipped(given) | {"device": "cpu"} | given
            preset = "paper"
        return {"out": out} | cls.preset_values(preset, given.get("dataset"), given.get("backbone")) | given

    @classmethod
    def of_shipped(cls, given: dict[str, Any]) -> dict[str, Any]:
        """This stage's settings for the first stage whose features ship."""
        first = shipped(given.get("backbone", "resnet32"))
        names = {field.name: cls.of_first.get(field.name, field.name) for field in dataclasses.fields(cls)}
        return {name: first[theirs] for name, theirs in names.items() if theirs in first}

    @classmethod
    def parse(cls: type[S], arguments: Sequence[str], preset: str | None = None) -> S:
        """Settings from a list of words.

        Args:
            preset: where they give none; None for the paper's job on CUDA, and the demo without.

        Raises:
            InputError: a word is not known, or a value not allowed.
        """
        given = given_values(cls, arguments)
        if given.pop("resume", False) and given.get("retrain"):
            raise InputError("--resume: must not be given with --retrain, which starts anew")
        values = cls.filled({"preset": preset or ("paper" if torch.cuda.is_available() else "demo")} | given)
        datasets.check_options(values["dataset"], values["profile"], values.get("choice"), values.get("resize"))
        settings = cls(**values | uncut(values, given))
        return dataclasses.replace(settings, device=usable_device(settings.device))

    @classmethod
    def read(cls: type[S], options: str = "") -> S:
        """Settings from the command line, else from `LTR_ARGS`, else from a notebook's own cell.

        Without any word a notebook shows the committed runs; so does a script without CUDA. In a script, bad input
        from here on ends in one line and exit code 2; where torchrun started several processes, they meet here and
        part when the script ends.

        Args:
            options: words of the notebook's `parameters` cell.
        """
        job, words, source = process.begin(options)
        reads = not words and (process.in_ipython() or not torch.cuda.is_available())
        with process.naming(source):
            settings = cls.parse(words, COMMITTED if reads else None).for_job(job)
        process.set_up(job, settings.device, None if settings.committed else settings.out, settings.deterministic)
        announce(settings, words, job.process_group.size)
        return settings

    @classmethod
    def of_command(cls: type[S], arguments: Sequence[str], preset: str | None = None) -> S:
        """Settings of a command of `python -m ltr`, see `parse` and `to_make`."""
        settings = to_make(cls.parse(arguments, preset)).for_job(distributed.ALONE)
        process.set_up_libraries(settings.deterministic)
        return settings

    @property
    def committed(self) -> bool:
        """Whether only this package's own finished runs are read, and nothing is written."""
        return self.preset == COMMITTED

    def for_job(self: S, job: distributed.Job) -> S:
        """The settings of one process of a job.

        Raises:
            InputError: they do not suit so many processes.
        """
        size, device = job.process_group.size, job.device(self.device)
        if self.batch_size < size:
            raise InputError(f"--batch-size: must be at least the number of processes, {size}, got {self.batch_size}")
        if self.sync_batch_norm and (size == 1 or device == "cpu"):
            got = f"{size} on {device}"
            raise InputError(f"--sync-batch-norm: must be given to several processes (torchrun) on CUDA, got {got}")
        return dataclasses.replace(self, device=device)

    def __str__(self) -> str:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "retrain"}
        shown = [f"{flag(name)} {value}" for name, value in values.items() if value is not None]
        return textwrap.fill("settings: " + short(" ".join(shown)), 100, subsequent_indent="  ", break_on_hyphens=False)

    @property
    def data(self) -> dict[str, Any]:
        """Arguments of `datasets.load`."""
        names = ("imbalance_factor", "profile", "choice", "hold_out", "seed", "normalization", "workers", "resize")
        return {"source": self.dataset, "root": self.data_root} | self.values(*names)

    def values(self, *names: str) -> dict[str, Any]:
        """Some options' values, by their names."""
        return {name: getattr(self, name) for name in names}

    @property
    def engine(self) -> engine.Engine:
        """How steps are run with these options on this machine."""
        how = self.values("precision", "compile", "deterministic", "sync_batch_norm", "graph")
        processes = distributed.current().size
        return engine.choose(self.device, large=models.is_large(self.backbone), processes=processes, **how)

    def label(self, method: str, *words: str) -> str:
        """The readable part of a run's folder: with network, imbalance factor and seed."""
        tail = "as-is" if self.profile == "as-is" else f"if{self.imbalance_factor:g}"
        return "_".join([re.sub(r"[^a-z0-9]+", "-", method.lower()), *words, self.backbone, tail, f"s{self.seed}"])

    def identity(self, **described: Any) -> dict[str, Any]:
        """All settings that decide a run's result, and what `described` adds to say which model it is."""
        own = dataclasses.asdict(self)
        unused = {name for name, value in UNUSED.items() if own.get(name) == value}
        own = {name: value for name, value in own.items() if name not in unused and name not in ELSEWHERE}
        if (processes := distributed.current().size) > 1:  # batch-norm sees a shard of the batch
            own["processes"] = processes
        return own | described


def to_make(settings: S) -> S:
    """The settings; raises InputError where they ask for the committed runs, which scripts read and nothing makes."""
    if settings.committed:
        raise InputError(f"--preset: must be one of {', '.join(recipes.PRESETS)}, got {COMMITTED}, which scripts read")
    return settings


def announce(settings: Common, words: Sequence[str], processes: int) -> None:
    """Say what was chosen by these words, and how so many processes will run; committed runs say so themselves."""
    if settings.committed:
        if not words and not process.in_ipython():
            print("the committed runs, as there is no CUDA here; --preset paper trains anew, --preset demo on a CPU")
        return
    if not {settings.preset, f"--preset={settings.preset}"} & {*words}:  # none was given, or it gave way
        reason = "CUDA is there" if settings.preset == "paper" else "CUDA is not there"
        if settings.shipped:
            reason = "the shipped features are of its job"
        print(f"--preset {settings.preset}, as {reason}")
    print(settings)
    print(f"engine: {'; '.join([str(settings.engine), *settings.engine.notices])}")
    if processes > 1:
        shared = f"{processes} processes share each batch of {settings.batch_size} images"
        print(f"{shared}, so the learning rate stays {settings.lr:g}")


@dataclass(frozen=True, kw_only=True)
class FirstStage(Common):
    """First stage: learn features with cross-entropy, without and with weight decay."""

    epochs: int = option(None, "passes over the training images", whole, low=1, high=MOST)
    batch_size: int = option(64, "images a step", whole, low=2, high=MOST)
    lr: float = option(None, "learning rate of the first epoch", real, above=0)
    weight_decay: float = option(None, "of the model with weight decay", real, low=0)
    naive: str = option("train", "the model without weight decay", choices=("train", "skip"))
    momentum: float = option(0.9, "of SGD", real, low=0, high=1)
    schedule: str = option("cosine", "how the learning rate falls", choices=recipes.SCHEDULES)
    warm_up: int = option(0, "first epochs, in which the learning rate rises in equal steps", whole, low=0, high=MOST)
    nesterov: bool = option(False, "momentum that looks ahead")
    average: str = option("none", "a second network, of averaged weights", choices=recipes.AVERAGES)
    sam_rho: float = option(0.0, "radius of sharpness-aware steps; 0 for plain ones", real, low=0, high=100)
    test_every: int = option(None, "epochs between two tests; the last is always tested", whole, low=1, high=MOST)
    loss: str = option("ce", "of the whole network", choices=losses.OF_NETWORKS)
    mix: str = option("none", "blend pairs of images", choices=augment.MIXES)
    mix_alpha: float = option(None, "of the mixing's Beta distribution; mixup 0.2, cutmix 1", real, above=0, high=1000)
    augmentation: str = option("none", "beyond crop and flip", choices=augment.AUGMENTATIONS)
    sampling: str = option("instance", "how often a class is seen", choices=tuple(augment.SAMPLINGS))

    def __post_init__(self) -> None:
        if self.warm_up >= self.epochs:
            raise InputError(f"--warm-up: must be less than --epochs, {self.epochs}, got {self.warm_up}")
        if self.nesterov and not self.momentum:
            raise InputError("--nesterov: must not be given without momentum, got --momentum 0")
        if self.mix == "none" and self.mix_alpha is not None:
            raise InputError(f"--mix-alpha: must be given with --mix mixup or cutmix, got {self.mix_alpha:g} without")

    def run_key(self, method: str, weight_decay: float) -> tuple[str, dict[str, Any]]:
        """A run's label and identity. Its epochs and weight decay are named as stage 1's from here on."""
        method = self.named(method)
        identity = self.identity(method=method, stage1_weight_decay=float(weight_decay))  # 0 is 0.0 in JSON, too
        return self.label(method, f"wd{weight_decay:g}", f"e{self.epochs}"), identity

    def identity(self, **described: Any) -> dict[str, Any]:
        """As the common one, without `--epochs` and `--weight-decay`: tables know those of stage 2 so."""
        own = super().identity(stage1_epochs=self.epochs, stage1_weight_decay=self.weight_decay)
        if "autoaugment" in self.augmentation:
            own["autoaugment"] = "each image"  # once it was drawn for sixteen at a time
        return {k: v for k, v in own.items() if k not in ("epochs", "weight_decay")} | described

    def named(self, method: str) -> str:
        """The model's name: what was given (naive, WD) with the paper's choices, else what differs from them."""
        chosen = (self.loss, self.mix, self.augmentation, self.sampling)
        different = [name for name in chosen if name not in ("ce", "none", "instance")]
        name = " + ".join(WHOLE_NETWORK.get(name, name) for name in different)
        return method if not name else name + (", no WD" if method == "naive" else "")

    @property
    def augmented(self) -> dict[str, str]:
        """Arguments of `first_stage.ImageData`."""
        return self.values(*recipes.PLAIN_IMAGES)

    @property
    def cosine(self) -> bool:
        """Whether the loss wants a cosine classifier."""
        return self.loss == "ldam-drw"

    def recipe(self, weight_decay: float) -> recipes.Recipe:
        """How to train one of the two models."""
        names = ("epochs", "batch_size", "lr", "momentum", "schedule", "seed", "test_every", "loss", *recipes.LATER)
        return recipes.Recipe(weight_decay=weight_decay, **self.values(*names))


def shipped_stages() -> Path:
    """The folder of the first stages whose features ship: in an installed package its own, else a checkout's."""
    installed = PACKAGE / "shipped"  # by pyproject.toml, which takes it from the checkout's exp/demo_1
    return installed if installed.is_dir() else ROOT / "exp" / "demo_1"


def shipped(backbone: str) -> dict[str, Any]:
    """Settings of the first stage whose features ship for a backbone.

    Raises:
        InputError: none do.
    """
    stages = [path.parent for path in sorted(shipped_stages().glob("*/features.npz"))]
    every = [config["settings"] for config in configs.read_each(stages, configs.read_config).values()]
    found = {settings["backbone"]: settings for settings in every}
    if backbone not in found:
        names = ", ".join(found) or "none yet"
        raise InputError(f"--backbone: must be one whose features ship ({names}), got {clip(backbone)}")
    return found[backbone]


@dataclass(frozen=True, kw_only=True)
class SecondStage(Common):
    """Second stage: balance the classifier of the first stage's network.

    `--lr`, `--loss`, `--weight-decay` and `--max-norm` are of the paper's mode; the released mode is fixed by
    the released code.
    """

    base: str = option("trained", "images and a trained first stage, or shipped features", choices=BASES)
    stage1: str = option(None, "the first-stage run to start from, by its folder's name")
    stage1_epochs: int = option(None, "which first stage to start from", whole, low=1, high=MOST)
    stage1_weight_decay: float = option(None, "which first stage to start from", real, low=0)
    epochs: int = option(10, "passes over the training images, each classifier", whole, low=1, high=MOST)
    batch_size: int = option(64, "images a step", whole, low=2, high=MOST)
    lr: float = option(None, "learning rate of the first epoch", real, above=0)
    momentum: float = option(0.9, "of SGD", real, low=0, high=1)
    loss: str = option("cb-ce", "class-balanced loss", choices=tuple(losses.BALANCED))
    weight_decay: float = option(None, "of the classifier", real, low=0)
    max_norm: float = option(None, "MaxNorm's radius", real, above=0)
    tau: float = option(None, "of tau-normalisation", real, low=0, high=10)
    naive_tau: float = option(None, "of tau-normalisation without weight decay in stage 1", real, low=0, high=10)
    tuned_on: str = option(
        None, "the run of `ltr tune` whose values rows take; auto: the one trained alike; shipped: what ships", run_name
    )

    preset_values = staticmethod(recipes.second_stage)
    of_first = {"lr": None, "loss": None}  # its own, whatever the first stage's were

    @classmethod
    def of_shipped(cls, given: dict[str, Any]) -> dict[str, Any]:
        """As the common one, and the values that ship unless some are given."""
        return super().of_shipped(given) | ({} if CHOSEN & given.keys() else {"tuned_on": SHIPPED})

    @classmethod
    def filled(cls, given: dict[str, Any]) -> dict[str, Any]:
        """As the common one; from shipped features or a named run, what the first stage says that they are of.

        Raises:
            InputError: a value is given beside a run of `ltr tune`, which has it.
        """
        if given.get("tuned_on") not in (None, SHIPPED) and (both := CHOSEN & given.keys()):
            raise InputError(f"{flag(min(both))}: must not be given with --tuned-on, whose values rows take")
        if given.get("base") == SHIPPED:
            own = {"out": ROOT / "build" / "shipped"} | cls.of_shipped(given)
            return super().filled(own | given | {"preset": "paper"})
        if "stage1" in given:
            stages = given.get("out", OUT[given["preset"]]) / "demo_1"
            first = configs.read_config(configs.named_run(stages, given["stage1"]))["settings"]
            given = {name: first[name] for name in OF_THE_BASE if name in first} | given
        return super().filled(given)

    @property
    def shipped(self) -> bool:
        """Whether features come with the package, in place of images."""
        return self.base == SHIPPED

    @property
    def first_stages(self) -> Path:
        """The folder of the first stage's runs."""
        return shipped_stages() if self.shipped else self.out / "demo_1"

    @property
    def base_settings(self) -> dict[str, Any]:
        """Settings of the first-stage run to start from; one that was not named learned by plain cross-entropy."""
        wanted = self.values(*OF_THE_BASE)
        if self.stage1:
            return wanted
        return wanted | {"loss": "ce"} | dict.fromkeys(("mix", "augmentation", "sampling", "average", "sam_rho"))

    def run_key(self, method: str, mode: str, stage1: str, **described: Any) -> tuple[str, dict[str, Any]]:
        """A run's label and identity; `described` overrides what the mode decides."""
        described = {"tau": None, "max_norm": None, "max_norm_every": None} | described
        identity = self.identity(method=method, mode=mode or None, stage1_run=stage1, **described)
        return self.label(method, *([mode] if mode else [])), identity

    def recipe(self, **of_the_mode: Any) -> recipes.Recipe:
        """How to train a classifier: what all share, and loss, lr, weight_decay and schedule of its mode."""
        return recipes.Recipe(**self.values("epochs", "batch_size", "momentum", "seed"), **of_the_mode)

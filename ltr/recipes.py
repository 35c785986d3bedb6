"""Every number that a training is told, beside its source: the only table of values.

`Recipe` is what a training is told. `first_stage` and `second_stage` give a preset's values for a set of images and a
network; `settings` fills its options from them. What a preset or its images say wins over what suits a network.

The large sets: section 4.1 of the paper (arXiv 2203.14197) gives what all its trainings share. Its tuned weight decays,
radii and taus for these sets were never published: the appendix and the released code are of CIFAR100-LT alone, and
questions 9 and 13 at ShadeAlsha/LTR-weight-balancing have no answer. Places-LT is not in the paper.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

PRESETS = ("demo", "laptop", "paper")
SCHEDULES = ("cosine", "linear", "step", "released")
STEPS = {0.8: 0.01, 0.9: 0.0001}  # what is left of the rate from these shares of training on: epochs 160 and 180 of 200
AVERAGES = ("none", "swa", "ema")
SWA_START = 0.75  # of training, as in Izmailov et al. 2018
EMA_DECAY = 0.999  # a step
# Of the Beta distribution that says how much of each image a mix has: chosen on held-out images
# (exp/tuning/further.csv), and as in Yun et al. 2019.
MIX_ALPHA = {"mixup": 0.2, "cutmix": 1.0}
# What came later is told only where it is used.
LATER = {"warm_up": 0, "nesterov": False, "average": "none", "sam_rho": 0.0}
PLAIN_IMAGES = {"mix": "none", "mix_alpha": None, "augmentation": "none", "sampling": "instance"}
# A first stage's plain way, from which a table says in what a run differs.
PLAIN = {"schedule": "cosine", "momentum": 0.9, "loss": "ce", **PLAIN_IMAGES, **LATER}
PLAIN |= {"network": None, "normalization": "cifar100"}  # `network` says "averaged" of one that is


@dataclass(frozen=True)
class Recipe:
    """How to train: SGD with momentum, its learning rate set an epoch at a time.

    Attributes:
        schedule: "cosine" anneals from lr towards 0; "released" steps before each epoch, as the
            released code does, so that the first epoch is already lowered and the last runs at 0; "linear" falls in
            a straight line, with a warm-up the one-cycle policy (Smith and Topin 2019); "step" keeps lr, then what
            `STEPS` leaves of it (Cao et al. 2019, whose warm-up is of 5 epochs).
        average: a second network beside the trained one: "swa", the mean of its weights after each epoch from
            `SWA_START` on (stochastic weight averaging, Izmailov et al. 2018); "ema", an exponential moving average
            over the steps.
        sam_rho: rho of sharpness-aware minimisation (Foret et al. 2021), each of whose steps takes its gradient that
            far up the slope, and costs two; 0 takes plain steps.

    Raises:
        ValueError: a value is out of range.
    """

    epochs: int
    batch_size: int = 64
    lr: float = 0.01
    weight_decay: float = 0.0  # lambda of the paper's equation 4, on all weights of the trained part
    momentum: float = 0.9
    schedule: str = "cosine"
    loss: str = "ce"  # one of `losses.LOSSES`
    seed: int = 0
    test_every: int = 1  # epochs between two tests; the last epoch is always tested
    warm_up: int = 0  # first epochs, in which the learning rate rises to lr in equal steps; the schedule has the others
    nesterov: bool = False  # momentum looks ahead (Sutskever et al. 2013)
    average: str = "none"
    sam_rho: float = 0.0

    def __post_init__(self) -> None:
        for name, known in {"schedule": SCHEDULES, "average": AVERAGES}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: must be one of {', '.join(known)}, got {getattr(self, name)}")
        for name in ("batch_size", "test_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        for name in ("epochs", "lr", "weight_decay", "momentum", "warm_up", "sam_rho"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: must be at least 0, got {getattr(self, name)}")
        for name, end in {"momentum": 1, "warm_up": max(self.epochs, 1)}.items():
            if getattr(self, name) >= end:
                raise ValueError(f"{name}: must be below {end}, got {getattr(self, name)}")

    def learning_rate(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0."""
        if epoch < self.warm_up:
            return self.lr * (epoch + 1) / self.warm_up
        if self.schedule == "step":
            return self.lr * min([left for share, left in STEPS.items() if epoch >= share * self.epochs], default=1.0)
        step = epoch + 1 if self.schedule == "released" else epoch
        if self.schedule == "linear":
            return self.lr * (1 - (step - self.warm_up) / (self.epochs - self.warm_up))
        return self.lr * (1 + math.cos(math.pi * (step - self.warm_up) / (self.epochs - self.warm_up))) / 2

    def describe(self) -> dict[str, Any]:
        """All values that decide a training; later ones only where they are used, so that earlier runs stay found."""
        unused = {name for name, value in LATER.items() if getattr(self, name) == value}
        return {name: value for name, value in asdict(self).items() if name not in unused}


def unusual(settings: Mapping[str, Any], names: Collection[str]) -> str:
    """In what a run's settings differ from `PLAIN`: "name value, ...", of these names; empty where in nothing."""
    told = {name: settings[name] for name in PLAIN if name in names and name in settings}
    return ", ".join(f"{name} {value}" for name, value in told.items() if value != PLAIN[name])


# ---- small images: presets

DEMO = {"dataset": "synthetic", "backbone": "resnet32", "imbalance_factor": 100.0, "profile": "exp", "seed": 1}
# The paper's network and length; a test after each epoch would be a third more work on CIFAR-100, after every tenth
# it is 3 %.
PAPER = {"dataset": "cifar100", "backbone": "resnet34", "imbalance_factor": 100.0, "profile": "exp"}
# The weight-decay network alone: meant for half an hour of two AVX-512 cores, an hour of two AVX2 ones. Rate and decay
# are the best of eight networks of 40 epochs on held-out images, once balanced (exp/tuning/lr_wd.csv), the schedule and
# its warm-up of eleven further ones (exp/tuning/laptop.csv).
LAPTOP = {
    **{"dataset": "cifar100", "backbone": "resnet32", "imbalance_factor": 100.0, "profile": "exp"},
    **{"epochs": 40, "lr": 0.2, "weight_decay": 5e-4, "batch_size": 64, "loss": "ce", "schedule": "linear"},
    **{"warm_up": 8, "nesterov": False, "average": "none", "test_every": 10, "naive": "skip"},
}
OWN_IMAGES = ("folder", "list")  # nobody's own photos are to be cut unasked
FIRST_STAGE = {
    "demo": {**DEMO, "epochs": 30, "lr": 0.1, "weight_decay": 5e-3, "test_every": 1},
    "laptop": LAPTOP,
    "paper": {**PAPER, "epochs": 200, "test_every": 10},
}
SECOND_STAGE = {
    "demo": {"lr": 0.1, "weight_decay": 2e-3, "max_norm": 1.0, "tau": 0.75, "naive_tau": 1.0},
    # Chosen on held-out images of a fair draw by its own network without them (exp/tuning/comparison.csv); the radius
    # is the mean norm of that network's rows.
    "laptop": {"lr": 0.01, "weight_decay": 0.001, "max_norm": 2.16, "tau": 0.7},
    "paper": {"lr": 0.01},
}

# ---- small images: what suits a network

PUBLISHED_DECAY = 0.1  # of the released notebooks' second stage
PUBLISHED_TAU = {"naive + tau-norm": 1.0, "WD + tau-norm": 1.9}
RELEASED_FRACTION = 0.1  # radius: min + 0.1 (max - min) of the first stage's norms
# The released second stage; its binary cross-entropy of the softmax probabilities is a mean over all classes.
RELEASED = {
    **{"loss": "cb-bce", "lr": 0.01, "weight_decay": PUBLISHED_DECAY},
    **{"schedule": "released", "max_norm_every": "epoch"},
}
# The narrow network's are tuned on held-out images (exp/tuning/lr_wd.csv), and what others train it with; the next are
# the paper's, of ResNet-34; the last a start for images of no recipe below.
STAGE1 = {
    "resnet32": {"lr": 0.1, "weight_decay": 5e-4},
    **dict.fromkeys(("resnet32-wide", "resnet34"), {"lr": 0.01, "weight_decay": 5e-3}),
    **dict.fromkeys(("resnext50", "resnet50", "resnet152"), {"lr": 0.01, "weight_decay": 5e-4}),
}
# Of the paper's mode. The narrow network's are tuned on held-out images (exp/tuning/values.csv has each row's own). For
# the larger two weight decay and tau are the published ones of ResNet-34; a radius was not published, so 1.0 is only a
# start for that tuning.
STAGE2 = {
    "resnet32": {"weight_decay": 0.01, "max_norm": 2.39, "tau": 1.0, "naive_tau": 0.4},
    "resnet32-wide": {"weight_decay": PUBLISHED_DECAY, "max_norm": 1.0, "tau": PUBLISHED_TAU["WD + tau-norm"]},
    "resnet34": {"weight_decay": PUBLISHED_DECAY, "max_norm": 1.0, "tau": PUBLISHED_TAU["WD + tau-norm"]},
    **dict.fromkeys(("resnext50", "resnet50", "resnet152"), {"weight_decay": 0.1, "max_norm": 1.0, "tau": 1.0}),
}

# ---- the large sets

# "4.1" is the paper's section 4.1, "Kang" the released configurations of Kang et al. 2020
# (facebookresearch/classifier-balancing), "start" a start for tuning: a value that was never published.
LARGE_SHARED = {"profile": "as-is", "normalization": "imagenet"}  # long-tailed as they came; torchvision's statistics
LARGE_FIRST_STAGE: dict[str, dict[str, Any]] = {
    "imagenet-lt": {
        "backbone": "resnext50",  # 4.1
        "epochs": 200,  # 4.1
        "batch_size": 64,  # 4.1
        "lr": 0.01,  # 4.1, cosine to 0
        "weight_decay": 5e-4,  # start: Kang, and near the best of the paper's figure 4
        "test_every": 10,  # ours: a test costs two fifths of an epoch
    },
    "places-lt": {
        "backbone": "resnet152",  # Kang; there pretrained on ImageNet, here from scratch: resnet50 is cheaper
        "epochs": 90,  # Kang et al. in the answer to their question 4: 30 or 90
        # Kang's first stage is not released: these three are start, Kang's for the second.
        "batch_size": 256,
        "lr": 0.1,
        "weight_decay": 5e-4,
        "test_every": 10,  # ours: a test costs more than half an epoch
    },
    "inaturalist2018": {
        "backbone": "resnet50",  # 4.1
        "epochs": 200,  # 4.1
        "batch_size": 512,  # 4.1
        "lr": 0.01,  # 4.1, cosine to 0
        "weight_decay": 1e-4,  # start: Kang, and near the best of the paper's figure 4
        "test_every": 10,  # ours, as for the other sets
    },
}
LARGE_SECOND_STAGE: dict[str, dict[str, Any]] = {
    "imagenet-lt": {
        "epochs": 10,  # start: Kang, and the released code on CIFAR100-LT
        "batch_size": 64,  # 4.1
        "lr": 0.01,  # 4.1
        "tau": 1.0,  # start; 1 is L2-normalisation, 0.3 points below the best (table 3)
    },
    "places-lt": {
        "epochs": 10,  # Kang
        "batch_size": 256,  # Kang
        "lr": 0.1,  # Kang
        "tau": 1.0,  # start
    },
    "inaturalist2018": {
        "epochs": 10,  # start: the released code's on CIFAR100-LT; Kang has 30 for cRT and 5 for LWS
        "batch_size": 512,  # 4.1
        "lr": 0.01,  # 4.1
        "tau": 0.5,  # start; below 1, where L2-normalisation loses 14 points (table 3)
    },
}
# All start: weight decay is the released code's on CIFAR100-LT, the naive network's tau the paper's there.
LARGE_START = {"weight_decay": PUBLISHED_DECAY, "max_norm": 1.0, "naive_tau": 1.0}


# ---- a preset's values


def of_images(dataset: str) -> dict[str, Any]:
    """What a set decides in any preset: its profile, which images of a class stay, and its statistics.

    The order of one's own images is that of their file names, whose first ones may be no fair sample of a class.
    """
    if dataset in OWN_IMAGES:
        return {"profile": "as-is", "choice": "hash"}
    if dataset == "cifar10":
        return {"choice": "first", "normalization": "cifar10"}
    return {"choice": "first"} | (LARGE_SHARED if dataset in LARGE_FIRST_STAGE else {})


def first_stage(preset: str, dataset: str | None = None, backbone: str | None = None) -> dict[str, Any]:
    """A preset's values of the first stage.

    Args:
        preset: one of `PRESETS`.
        dataset: None for the preset's.
        backbone: None for that of the images, or of the preset.
    """
    values = dict(FIRST_STAGE[preset])
    dataset = dataset or values["dataset"]
    values |= of_images(dataset)
    if preset == "paper":
        values |= LARGE_FIRST_STAGE.get(dataset, {})
    return STAGE1[backbone or values["backbone"]] | values


def second_stage(preset: str, dataset: str | None = None, backbone: str | None = None) -> dict[str, Any]:
    """A preset's values of the second stage, and those of the first that it starts from; arguments as above."""
    first = first_stage(preset, dataset, backbone)
    shared = ("dataset", "backbone", "imbalance_factor", "profile", "choice", "normalization", "seed")
    values = {name: first[name] for name in shared if name in first} | SECOND_STAGE[preset]
    values |= {"stage1_epochs": first["epochs"], "stage1_weight_decay": first["weight_decay"]}
    if preset == "paper" and dataset in LARGE_SECOND_STAGE:
        values |= LARGE_START | LARGE_SECOND_STAGE[dataset]
    naive_tau = PUBLISHED_TAU["naive + tau-norm"]
    return {"naive_tau": naive_tau} | STAGE2[backbone or values["backbone"]] | values

"""What this machine makes of the paper's job, in under a minute:

    python -m ltr doctor [--backbone resnet34] [--device cuda] [--data-root data]

It names device and engine, trains a few steps in each way that the machine has (plain, in bfloat16, captured,
compiled; and with images in PyTorch's own memory order), says how far they end from the plain ones and how fast they
are, looks for the images, memory and disk space, and tells how many hours the job would take. Nothing is downloaded
or decoded, and no run written.
All options are the first script's.
"""

import dataclasses
import os
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from ltr import datasets, first_stage, models, recipes, training
from ltr.data import folders, lists
from ltr.errors import InputError
from ltr.runtime.engine import Engine, has_fast_bf16
from ltr.runtime.machine import device_name
from ltr.runtime.options import short
from ltr.settings import FirstStage
from ltr.study.bench import drawn, seconds

BATCH = 64
STEPS = 4  # of each way, the first of which is not timed
JOB_STEPS = 2  # of the asked network, which may take seconds each
NEED_GB = 2  # for the runs of one job
LISTINGS = {"folder": folders.listings, "list": lists.listings}  # of one's own images
CHANNELS_FIRST = "plain, channels-first"  # all others are channels-last


def ways(how: Engine) -> dict[str, Engine]:
    """The plain way, and those that the chosen one is made of."""
    plain = Engine(how.device, deterministic=how.deterministic)
    found = {"plain, float32": plain, CHANNELS_FIRST: plain}
    if how.precision != "fp32" or has_fast_bf16(how.device):
        found["plain, bf16"] = dataclasses.replace(plain, precision="bf16")
    if how.graph:
        found["captured"] = dataclasses.replace(plain, graph=True)
    found["compiled"] = dataclasses.replace(plain, compile=True)
    found["as chosen"] = how
    return found


def small_network() -> models.CifarResNet:
    """The narrow network with one block a stage: compiled in seconds, of the same layers."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return models.CifarResNet(100, (16, 32, 64), (1, 1, 1), projection=False)


def trained(
    model: models.Network, how: Engine, steps: int, channels_first: bool = False
) -> tuple[training.Trainer, float]:
    """A training after some steps on drawn images, and the seconds of one; the first step is not timed."""
    if channels_first:
        model.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    model.to(how.device, memory_format=torch.contiguous_format if channels_first else torch.channels_last)
    data = drawn()
    whole = dataclasses.replace(data, train=data.train.take(np.arange(steps * BATCH)))
    images = first_stage.ImageData(whole, how.device)
    images.class_counts = data.class_counts
    trainer = training.Trainer(model, images, recipes.Recipe(epochs=1, batch_size=BATCH, lr=0.01), engine=how)
    with how.backend():
        trainer.prepare()
        trainer.begin_epoch()
        queue = trainer.train_steps()
        seconds(lambda: next(queue), how.device)  # not counted; waits for the device
        rest = seconds(lambda: list(queue), how.device)
    return trainer, rest / (steps - 1)


def difference(one: torch.nn.Module, other: torch.nn.Module) -> float:
    """The largest difference of two models' weights."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a.detach() - b.detach()).abs().max()) for a, b in pairs)


def compare_ways(how: Engine) -> Iterator[dict[str, Any]]:
    """A row for each way to run a step: whether it ran as asked, its speed, and how far it ends from the plain way."""
    plain = None
    for name, engine in ways(how).items():
        trainer, step = trained(small_network(), engine, STEPS, name == CHANNELS_FIRST)
        plain = plain or trainer
        yield {
            "steps": name,
            "ran as": str(trainer.engine),
            "ready (s)": round(trainer.prepare_seconds, 1),
            "step (ms)": round(1000 * step, 1),
            "largest difference": f"{difference(trainer.model, plain.model):.1e}",
        }


def hours_of_the_job(settings: FirstStage) -> float:
    """Hours of the first-stage trainings on CIFAR100-LT at most, from a few steps of the asked network.

    Tests come on top. Not compiled: a large network takes the compiler more than a minute.
    """
    how = dataclasses.replace(settings.engine, compile=False)
    _, step = trained(models.build_model(settings.backbone, 100), how, JOB_STEPS)
    images = datasets.class_counts(500, 100, settings.imbalance_factor).sum()
    networks = 1 if settings.naive == "skip" else 2
    return networks * settings.epochs * images / BATCH * step / 3600  # a larger batch takes as much longer


def memory(device: torch.device) -> str:
    """Free and whole memory of the device."""
    if device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(device)
        return f"{free / 2**30:.1f} of {whole / 2**30:.1f} GiB free on the GPU"
    if not hasattr(os, "sysconf"):  # Windows
        return "the host's"
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB on the host"


def images_at_hand(settings: FirstStage) -> str:
    """Whether the images can be read, in a sentence; none is fetched."""
    where = short(settings.data_root)
    if datasets.to_be_fetched(settings.dataset, settings.data_root):
        return f"not in {where} yet, the first script fetches them"
    try:
        if settings.dataset in LISTINGS:
            parts, names = LISTINGS[settings.dataset](settings.data_root)
            images = sum(len(part.paths) for part in parts)
            return f"{images:,} of {len(names):,} classes in {where}, which the first script decodes"
        return f"{datasets.load(**settings.data).name}, ready in {where}"
    except datasets.Absent as error:
        return f"not there ({short(error)})"
    except InputError as error:
        return f"cannot be used ({short(error)})"


def main(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: an option is not allowed.
    """
    settings = FirstStage.of_command(arguments, "paper")
    how = settings.engine
    print(f"device: {device_name(how.device)}, torch {torch.__version__}")
    print(f"engine: {'; '.join([str(how), *how.notices])}")
    print(f"memory: {memory(how.device)}")
    free = shutil.disk_usage(next(path for path in (settings.out, *settings.out.parents) if path.exists())).free
    print(f"disk: {free / 2**30:.1f} GiB free for {short(settings.out)}, of which a job needs about {NEED_GB}")
    print(f"images: {images_at_hand(settings)}", flush=True)
    print(f"\n{STEPS} steps of a small network, batch {BATCH}, from the same weights:", flush=True)
    print(pd.DataFrame(compare_ways(how)).to_string(index=False), flush=True)
    speed = "; torch.compile saves some of them" if how.compile else ""
    both = "with weight decay" if settings.naive == "skip" else "without and with weight decay"
    job = f"were it on CIFAR100-LT: {settings.backbone}, {settings.epochs} epochs, {both}"
    print(f"\n{job}: about {hours_of_the_job(settings):.1f} hours, and the tests{speed}")

"""What a process runs on: its device and cores; for the record their names, versions, and the source's commit."""

import contextlib
import os
import platform
import re
import subprocess
import sys
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ltr.errors import InputError, clip
from ltr.runtime import distributed

PACKAGES = ("torch", "torchvision", "numpy", "pandas", "matplotlib")


def usable_device(name: str) -> str:
    """The device to use: `auto` takes CUDA, then MPS, then the CPU.

    Raises:
        InputError: the name is unknown or there is no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()  # `meta` makes the tensor, but there is nothing in it
    except Exception as error:  # each backend that is not there says so in its own way
        here = "auto, or a device of this machine (cpu works)"
        raise InputError(f"--device: must be {here}, got {clip(name)}") from error
    return name


def physical_cores() -> int:
    """Cores that this process may use, hyperthreads of one core counted once."""
    try:
        cpus = os.sched_getaffinity(0)
        topology = Path("/sys/devices/system/cpu")
        return len({(topology / f"cpu{cpu}/topology/thread_siblings_list").read_text() for cpu in cpus})
    except (OSError, AttributeError):  # not Linux, or a sandbox that hides its cores
        return os.cpu_count() or 1


def use_physical_cores() -> None:
    """Let PyTorch run no more threads than there are physical cores; fewer stay fewer (OMP_NUM_THREADS)."""
    torch.set_num_threads(min(torch.get_num_threads(), physical_cores()))


@cache
def commit() -> str:
    """The source's git commit, with `+` where tracked files differ from it; `unknown` where git does not track it.

    Asked for once a process. An installed package may lie inside the repository of something else.
    """
    source = Path(__file__).resolve()
    git = ["git", "-C", str(source.parent)]
    how = {"capture_output": True, "text": True, "check": True, "timeout": 10}
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", source.name], **how)
        described = subprocess.run([*git, "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"], **how)
        return described.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def device_name(device: torch.device | str) -> str:
    """A GPU's own name, or the processor's and the number of threads."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # Linux alone has the file, and knows the processor's name by no other way
        models = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
        name = models[0] if models else name
    return f"{torch.device(device).type} ({name}, {torch.get_num_threads()} threads)"


def environment(device: torch.device | str) -> dict[str, str]:
    """Versions, device and commit, for a run's config."""
    versions = dict.fromkeys(PACKAGES, "absent")
    processes = distributed.current().size
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "device": (f"{processes} x " if processes > 1 else "") + device_name(device),
        "python": sys.version.split()[0],
        "platform": platform.platform(terse=True),
        "commit": commit(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **versions,
    }

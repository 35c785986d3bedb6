"""How a process begins and ends: its device, its folder, its meeting with torchrun's others, errors in one line."""

import contextlib
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from ltr.errors import InputError, TrainingError, clip
from ltr.runtime import distributed

GO_ON = "interrupted; the same command goes on from the last saved epoch"
LOST = "another process of this job is gone or stuck; the same command goes on from the last saved epoch"


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


def check_writable(path: Path) -> None:
    """Try to write below a folder.

    Raises:
        InputError: it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"--out: must be a folder that can be written to, got {path} ({error.strerror})") from error


def check_folder(path: Path) -> None:
    """Let the leader try to write below a folder, and every process see it there.

    Raises:
        InputError: it cannot be written to, or each of several machines has one of its own.
    """
    group = distributed.current()
    if group.is_main:
        check_writable(path)
    if group.size > 1:
        with contextlib.ExitStack() as kept:
            probe = kept.enter_context(tempfile.NamedTemporaryFile(dir=path)).name if group.is_main else None
            seen = os.path.exists(group.broadcast(probe))
            seen = group.sum(torch.tensor(int(seen)))  # also keeps the file until all have looked
        if seen < group.size:
            raise InputError(f"--out: must be a folder that all processes see, got {path}")


def begin_script(environment: Mapping[str, str]) -> distributed.Job:
    """Meet torchrun's other processes, and let errors and SIGTERM end a script in one line.

    Args:
        environment: where torchrun tells of the others.

    Raises:
        InputError: see `distributed.connect`.
    """
    sys.excepthook = one_line
    job = distributed.connect(environment)
    job.mute()
    sys.excepthook = partial(one_line, job=job)
    signal.signal(signal.SIGTERM, partial(terminate, job=job))
    return job


def one_line(
    kind: type[BaseException], error: BaseException, trace: Any, job: distributed.Job = distributed.ALONE
) -> None:
    """An exception hook for scripts: one line, and exit code 2 for bad input, 1 for failed training or a full
    disk, 130 for Ctrl-C. Of several processes the first to fail says why."""
    codes = {InputError: 2, TrainingError: 1, OSError: 1, KeyboardInterrupt: 130}
    for known, code in codes.items():
        if isinstance(error, known):
            job.end(f"error: {GO_ON if code == 130 else error}", code)
    if job.process_group.size == 1:
        sys.__excepthook__(kind, error, trace)
    else:
        lost = distributed.lost_another(error)
        job.end(f"error: {LOST}" if lost else "".join(traceback.format_exception(kind, error, trace)), 1)


def terminate(number: int, frame: Any, job: distributed.Job = distributed.ALONE) -> NoReturn:
    """SIGTERM's handler: say how to go on, exit 143."""
    job.end(f"error: {GO_ON}", 128 + number)


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

"""How a process begins and ends: its options' words, its device, its folder, its meeting with torchrun's others, what
it prints where, errors in one line."""

import atexit
import contextlib
import io
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NoReturn

import torch

from ltr.errors import InputError, TrainingError
from ltr.runtime import distributed
from ltr.runtime.machine import use_physical_cores
from ltr.runtime.options import ROOT, split_words
from ltr.runtime.storage import check_writable

GO_ON = "interrupted; where a network trains, the same command goes on from its last saved epoch"
# Seconds after which a process that was told to end, and has not, is told so again; while it puts its files in order it
# is left alone, but where Python ignored the first word it would go on.
AGAIN, SOON = 5.0, 0.05
LAUNCHERS = ("__main__", "ipykernel_launcher", "colab_kernel_launcher", "pydevconsole")  # of IPython's processes
LOST = "another process of this job is gone or stuck; the same command goes on from the last saved epoch"


def check_folder(path: Path) -> None:
    """Let rank 0 try to write below a folder, and every process see it there.

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


# ---- how a script or a notebook begins


def in_ipython() -> bool:
    """Whether IPython runs this process: a notebook's kernel, Spyder's, the console of an IDE."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def is_launcher(arguments: Sequence[str]) -> bool:
    """Whether `sys.argv` in IPython is a kernel's own, not of a script that it runs (`%run script.py --epochs 3`)."""
    program = Path(arguments[0] if arguments else "")
    launches = program.stem in LAUNCHERS or "-f" in arguments
    return launches or program.suffix != ".py"


def in_finaliser(frame: FrameType | None) -> bool:
    """Whether a frame is part of a `__del__`, in which Python ignores what is raised."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def stop(number: int, frame: FrameType | None, job: distributed.Job) -> None:
    """End at a signal in one line; and again after a while, as what is raised may be ignored, see `in_finaliser`."""

    def leave(*_: Any) -> NoReturn:
        raise SystemExit(128 + number)

    if hasattr(signal, "setitimer"):  # not on Windows
        signal.signal(signal.SIGALRM, leave)
        signal.setitimer(signal.ITIMER_REAL, SOON if in_finaliser(frame) else AGAIN, AGAIN)
        atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)  # the interpreter's own end may take its time
    job.end(f"error: {GO_ON}", 128 + number)


def begin(options: str = "") -> tuple[distributed.Job, list[str], str]:
    """Begin a script or a notebook; a script meets torchrun's other processes.

    Args:
        options: of a notebook's own cell.

    Returns:
        the processes that run it; the words of its options: of the command line where it has any, else of
        `LTR_ARGS`, else of the cell; and "LTR_ARGS" where that is where they stand, else nothing.

    Raises:
        InputError: see `distributed.connect` and `split_words`.
    """
    interactive, job = in_ipython(), distributed.ALONE
    if not interactive:  # errors and SIGTERM end a script in one line
        sys.excepthook = one_line
        job = distributed.connect(os.environ)
        job.mute()
        forgive_output()
        sys.excepthook = partial(one_line, job=job)
        signal.signal(signal.SIGTERM, partial(stop, job=job))
    words = [] if interactive and is_launcher(sys.argv) else sys.argv[1:]
    set_before = [] if words else split_words(os.environ.get("LTR_ARGS", ""))
    return job, words or set_before or split_words(options), "LTR_ARGS" if set_before else ""


@contextlib.contextmanager
def naming(source: str) -> Iterator[None]:
    """While it lasts, bad input says where it stands, unless that is empty."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{error} (in {source})" if source else str(error)) from error


def set_up(job: distributed.Job, device: str, out: Path | None, deterministic: bool) -> None:
    """Join the other processes until this one ends, and see to what libraries read when they start. Together.

    Args:
        job: of `begin`.
        out: the folder to write to; None to write nothing.
        deterministic: see `Engine`.

    Raises:
        InputError: see `check_folder`.
    """
    at_the_end = contextlib.ExitStack()
    at_the_end.enter_context(job.join(device))
    atexit.register(at_the_end.close)
    set_up_libraries(deterministic)
    if out is not None:
        check_folder(out)


def set_up_libraries(deterministic: bool) -> None:
    """See to what libraries read when they start, and how many threads they take; `deterministic` as of `Engine`."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(ROOT / "build" / "compiled"))  # compile once
    use_physical_cores()


@contextlib.contextmanager
def script_set_aside() -> Iterator[None]:
    """While it lasts, processes that are started do not run this one's script again.

    Where they are not forked (Windows, macOS, Python from 3.14 on), multiprocessing lets each run the file of the main
    module first, for the sake of functions that live there. What workers of this package run lives in the package, and
    a notebook's script has nothing that would keep its training from beginning anew.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


# ---- what is printed, and how a process ends


def short_warning(message: Warning | str, *_: Any) -> str:
    """A warning in one line, without its place in the code."""
    return f"warning: {' '.join(str(message).split())}\n"


def forgive_output() -> None:
    """Print what the streams cannot encode as question marks, warn in one line, and end quietly where nobody reads any
    more."""
    warnings.formatwarning = short_warning
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before Python began, as by `2>&-`; progress bars want one
            setattr(sys, name, open(os.devnull, "w", errors="replace"))  # noqa: SIM115 (until the process ends)
        elif isinstance(stream, io.TextIOWrapper):
            try:
                "–\udcff".encode(stream.encoding, stream.errors)  # of a table's empty cell, and of a file's odd name
            except UnicodeEncodeError:
                stream.reconfigure(errors="replace")
    atexit.register(flush_output)


def flush_output() -> None:
    """Print what is still to be printed, to nowhere where the reader has left, as `head` does."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):  # a full disk, of which Python tells when it ends; or somebody has closed it
            continue


def one_line(
    kind: type[BaseException], error: BaseException, trace: Any, job: distributed.Job = distributed.ALONE
) -> None:
    """An exception hook for scripts: one line, and exit code 2 for bad input, 1 for failed training or a full
    disk, 130 for Ctrl-C. Of several processes the first to fail says why. Nothing, and 141 as of other programs, where
    nobody reads what is printed."""
    if isinstance(error, BrokenPipeError) and job.process_group.size == 1:
        flush_output()
        raise SystemExit(128 + 13)  # SIGPIPE's number, which Windows does not know
    codes = {InputError: 2, TrainingError: 1, OSError: 1, KeyboardInterrupt: 130}
    for known, code in codes.items():
        if isinstance(error, known):
            job.end(f"error: {GO_ON if code == 130 else error}", code)
    if job.process_group.size == 1:
        sys.__excepthook__(kind, error, trace)
    else:
        lost = distributed.lost_another(error)
        job.end(f"error: {LOST}" if lost else "".join(traceback.format_exception(kind, error, trace)), 1)

"""Scripts in processes of their own that need not wait for their imports, which take longer than what most of them do.

A server, multiprocessing's own, has imported once what scripts import, and forks a process for each: it has the
script's file as its main module, its command line, its streams and its exit code, and signals find it as they would
else.
"""

import atexit
import itertools
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from multiprocessing.process import BaseProcess
from pathlib import Path

import matplotlib
import pandas as pd
import torch

from ltr import plots
from ltr.runtime.options import ROOT
from ltr.runtime.process import script_set_aside

PRELOADED = ["ltr.plots", "ltr.study.rows", "ltr.study.report", "torchvision.transforms.v2", "torch.distributed.run"]
SCRIPTS = sorted((ROOT / "scripts").glob("demo?_*.py"))
if "forkserver" in multiprocessing.get_all_start_methods():
    SERVER = multiprocessing.get_context("forkserver")
    SERVER.set_forkserver_preload(PRELOADED)
else:  # Windows: the same, and each waits
    SERVER = multiprocessing.get_context("spawn")


def nothing() -> None:
    """What most scripts need beforehand."""


def be(
    script: str, words: Sequence[str], logs: Sequence[str], environment: Mapping[str, str], before: Callable[[], None]
) -> None:
    """In the new process: be `python script words`, with one thread, and figures that no window shows."""
    for number, log in enumerate(logs, 1):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)  # threads that wait for each other take minutes where another process has a core
    matplotlib.use("Agg")
    multiprocessing.set_start_method(None, force=True)  # its own workers start as everywhere
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are deaf to Ctrl-C
    sys.argv = [script, *words]
    before()
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit:
        raise
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        raise SystemExit(1) from None
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


def call(function: Callable, *arguments: object) -> BaseProcess:
    """Start a process that calls a module's function."""
    process = SERVER.Process(target=function, args=arguments)
    with script_set_aside():  # pytest's
        process.start()
    return process


def start(
    script: Path, words: Sequence[str], *logs: Path, before: Callable[[], None] = nothing, **environment: str
) -> BaseProcess:
    """Start a script.

    Args:
        script: its file.
        words: of its command line.
        logs: files to which it adds what it prints, one for both streams or one each; whole even if it is killed.
        before: is called in its process before it; must be a module's function.
        environment: what else its environment has.
    """
    logs = [str(log) for log in (logs if len(logs) == 2 else logs * 2)]
    return call(be, str(script), list(words), logs, {**os.environ, **environment}, before)


def run(script: Path, words: Sequence[str], timeout: float = 300, **how) -> subprocess.CompletedProcess:
    """Run a script to its end, see `start`."""
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, name) for name in ("stdout", "stderr")]
        process = start(script, words, *logs, **how)
        process.join(timeout)
        ended = process.exitcode
        process.kill()  # where it has not ended
        return subprocess.CompletedProcess([script, *words], ended, *(log.read_text() for log in logs))


def die(event: str, name: str, nth: int) -> None:
    """Be killed at a moment: when the nth file of such a name is about to be opened, or put in its place.

    Args:
        event: of Python's audit table, "open" or "os.rename".
        name: a pattern of the file's name.
        nth: 1 for the first.
    """
    times = itertools.count(1)

    def hook(happens: str, arguments: tuple) -> None:
        path = str(arguments[event == "os.rename"]) if happens == event else ""
        if fnmatch(os.path.basename(path), name) and next(times) == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def hasten(*moment: object) -> None:
    """Draw figures but save none, which takes longer than a small training; and die, where a moment is given."""
    plots.show = plots.show_animation = lambda *figure, **how: None
    if moment:
        die(*moment)


# ---- what scripts end with


def assert_same_run(one: Path, two: Path) -> None:
    """All that a finished run holds is the same to the bit, but for times."""
    histories = [pd.read_csv(run / "metrics.csv").drop(columns="seconds", errors="ignore") for run in (one, two)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, two)]
    untimed = [{name: value for name, value in each.items() if "seconds" not in name} for each in summaries]
    assert untimed[0] == untimed[1]
    arrays = [sorted(path.name for path in run.glob("*.np?")) for run in (one, two)]
    assert arrays[0] == arrays[1]
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in arrays[0])
    weights, others = (torch.load(run / "weights.pt", weights_only=True) for run in (one, two))
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        assert value.numpy().tobytes() == others[name].numpy().tobytes(), name


def assert_same_runs(one: Path, two: Path) -> list[Path]:
    """All runs below two folders have the same names, which hold a digest of settings and data, and are the same.

    Returns:
        their paths below the folders.
    """
    runs = sorted(path.relative_to(one) for path in one.glob("demo_?/*"))
    assert runs == sorted(path.relative_to(two) for path in two.glob("demo_?/*"))
    for run in runs:
        assert not list((one / run).glob("*checkpoint*")), "a finished run keeps no checkpoint and no litter"
        assert_same_run(one / run, two / run)
    return runs

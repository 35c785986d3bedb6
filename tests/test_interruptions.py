"""The real scripts, struck again and again, end where uninterrupted ones end.

SIGTERM and Ctrl-C are answered. SIGKILL cannot be: what holds after it holds because of what lay on the disk. Its worst
moments are met exactly, as Python tells of each file that it opens or renames; `make soak` adds twenty at any moment.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import forked
import nbformat
import psutil  # comes with Jupyter
import pytest

from ltr.runtime.checkpoint import load_checkpoint
from ltr.runtime.options import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no POSIX signals"),
]
OPTIONS = ("--epochs 12 --test-every 4", "--stage1-epochs 12 --epochs 4")  # of each stage


def start(options: str, stage: int, out: Path, log: Path, *moment: object) -> BaseProcess:
    """Start the script of a stage, 0 or 1; it is killed at a moment, where one is given, see `forked.die`."""
    words = f"{options} {OPTIONS[stage]} --out {out}".split()
    return forked.start(forked.SCRIPTS[stage], words, log, before=partial(forked.hasten, *moment))


def finish(options: str, stage: int, out: Path, log: Path) -> float:
    """Run the script of a stage to its end; the seconds that it took."""
    begun, process = time.monotonic(), start(options, stage, out, log)
    process.join(600)
    assert process.exitcode == 0, log.read_text()
    return time.monotonic() - begun


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory) -> SimpleNamespace:
    """Both scripts uninterrupted: their folder, what the first one left there, and the seconds of each."""
    out = tmp_path_factory.mktemp("whole")
    first, log = out.with_name("first"), out / "log"
    seconds = [finish(small, 0, out, log)]
    shutil.copytree(out, first)
    return SimpleNamespace(out=out, first=first, seconds=[*seconds, finish(small, 1, out, log)])


def loadable(out: Path) -> None:
    """What a kill left can be read: the checkpoint is whole, or the one before it is."""
    for folder in out.glob("demo_?/*"):
        if list(folder.glob("checkpoint.pt*")):
            assert load_checkpoint(folder / "checkpoint.pt")


def kill(event: str, name: str, nth: int, *script: object, out: Path, log: Path) -> None:
    """Run a script that is killed at a moment."""
    process = start(*script, out, log, event, name, nth)
    process.join(300)
    assert process.exitcode == -signal.SIGKILL, log.read_text()
    loadable(out)


def stop(number: int, code: int, once: str, *script: object, out: Path, log: Path) -> None:
    """Run a script that gets a signal once there is a file."""
    process = start(*script, out, log)
    while process.is_alive() and not list(out.glob(once)):
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(300)
    assert process.exitcode == code, log.read_text()
    assert log.read_text().endswith(
        "error: interrupted; where a network trains, the same command goes on from its last saved epoch\n"
    )


STRIKES = [
    [
        partial(stop, signal.SIGTERM, 143, "demo_1/naive*/checkpoint.pt"),
        partial(kill, "open", ".checkpoint.pt.*", 2),  # the second checkpoint is begun
        partial(kill, "os.rename", "checkpoint.pt", 2),  # the first is put aside, the second not in its place
        partial(kill, "os.rename", "config.json", 2),  # a network is finished, the next one begins
        partial(stop, signal.SIGINT, 130, "demo_1/wd*/checkpoint.pt"),
        partial(kill, "os.rename", "results.csv", 1),
    ],
    [
        partial(kill, "os.rename", "checkpoint.pt", 2),
        partial(stop, signal.SIGTERM, 143, "demo_2/*/summary.json"),
        partial(kill, "os.rename", "summary.json", 1),  # of a run all but this is there
        partial(kill, "os.rename", "results.csv", 1),
    ],
]


@pytest.mark.parametrize("stage", [0, 1])
def test_a_script_that_is_struck_ends_where_others_end(whole, small, tmp_path, stage):
    if stage:
        shutil.copytree(whole.first, tmp_path, dirs_exist_ok=True)
    logs = [tmp_path / f"{number}.log" for number in range(len(STRIKES[stage]) + 1)]
    for strike, log in zip(STRIKES[stage], logs, strict=False):
        strike(small, stage, out=tmp_path, log=log)
    finish(small, stage, tmp_path, logs[-1])
    forked.assert_same_runs(tmp_path, whole.out if stage else whole.first)
    assert stage or sum("resuming at epoch" in log.read_text() for log in logs) >= 3
    assert "naive   1/" not in logs[-1].read_text()  # finished before, so loaded


def struck_at_random(options: str, out: Path, seconds: list[float]) -> Iterator[bool]:
    """Both stages with ten kills each, a short while after work has begun; whether each found the script alive."""
    chance = random.Random(7)
    for stage in (0, 1):
        for _ in range(10):
            log = out / "log"
            log.unlink(missing_ok=True)
            process = start(options, stage, out, log)
            while process.is_alive() and not (log.exists() and "engine:" in log.read_text()):
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.2) * seconds[stage])
            process.kill()
            process.join(60)
            loadable(out)
            yield process.exitcode == -signal.SIGKILL
        finish(options, stage, out, out / "log")


@pytest.mark.soak
def test_twenty_kills_change_nothing(whole, small, tmp_path, report):
    killed = list(struck_at_random(small, tmp_path, whole.seconds))
    report(f"kills survived: {sum(killed)} of {len(killed)}")
    forked.assert_same_runs(tmp_path, whole.out)
    assert sum(killed) == 20


def execute_notebook(options: str, out: Path, log: Path) -> subprocess.Popen:
    """Run the first notebook as Jupyter does, with the first script's options, up to the last network."""
    notebook = nbformat.read(next((ROOT / "notebooks").glob("demo1_*.ipynb")), 4)
    trains = [number for number, cell in enumerate(notebook.cells) if "chapter.first_stage(" in cell.source]
    notebook.cells = notebook.cells[: trains[-1] + 1]
    path = out / "notebook" / "demo1.ipynb"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--output-dir", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LTR_ARGS": f"{options} {OPTIONS[0]} --out {out}"}
    with open(log, "w") as file:
        return subprocess.Popen([*command, str(path)], stdout=file, stderr=subprocess.STDOUT, env=environment)


def test_a_killed_notebook_goes_on_and_ends_as_the_script_does(whole, small, tmp_path):
    naive = next(whole.first.glob("demo_1/naive*"))
    shutil.copytree(naive, tmp_path / "demo_1" / naive.name)  # one of two networks is enough
    log = tmp_path / "log"
    process = execute_notebook(small, tmp_path, log)
    while process.poll() is None and not list(tmp_path.glob("demo_1/*/checkpoint.pt")):
        time.sleep(0.02)
    kernel = psutil.Process(process.pid).children(recursive=True)
    for each in (process, *kernel):
        each.kill()
    psutil.wait_procs(kernel, timeout=60)
    assert process.wait() == -signal.SIGKILL
    assert execute_notebook(small, tmp_path, log).wait(timeout=600) == 0, log.read_text()
    assert "WD: resuming at epoch" in next(tmp_path.glob("*.ipynb")).read_text()
    forked.assert_same_runs(tmp_path, whole.first)

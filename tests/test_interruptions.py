"""The real scripts, stopped and started again, end where uninterrupted ones end.

SIGTERM and Ctrl-C are answered. SIGKILL, six times over both stages (`make soak`: twenty), cannot be: what holds after
it holds because of what lay on the disk.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import psutil  # comes with Jupyter
import pytest
import torch

from ltr.runtime.checkpoint import load_checkpoint
from ltr.runtime.options import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no POSIX signals"),
]
SCRIPTS = sorted((ROOT / "scripts").glob("demo?_*.py"))
SHARED = "--preset demo --imbalance-factor 250"  # 250 images down to 1, the shortest epoch
OPTIONS = (f"{SHARED} --epochs 8", f"{SHARED} --stage1-epochs 8 --epochs 4")
ALONE = {"OMP_NUM_THREADS": "1"}  # threads that wait for each other take minutes where another process has a core
FINAL = ("metrics.csv", "norms.npy", "predictions.npz", "weights.pt")
Moment = Callable[[Path, int, int], bool]


def working(out: Path, process: int, finished: int) -> bool:
    """From the first line on that a script prints."""
    return True


def saving(out: Path, process: int, finished: int) -> bool:
    """A checkpoint is being written, not the run's first."""
    return any((p.parent / "checkpoint.pt").exists() for p in out.glob(f"demo_?/*/.checkpoint.pt.{process}.tmp"))


def evaluating(out: Path, process: int, finished: int) -> bool:
    """A model is tested and its final files are being written, the summary not yet."""
    folders = {path.parent for name in FINAL for path in out.glob(f"demo_?/*/{name}")}
    return any(not (folder / "summary.json").exists() for folder in folders)


def between(out: Path, process: int, finished: int) -> bool:
    """One more model is finished; the next one begins, or the tables and figures at a script's end."""
    return count_finished(out) > finished


def count_finished(out: Path) -> int:
    """Models whose run is whole."""
    return len(list(out.glob("demo_?/*/summary.json")))


# Each stage's kills: what to wait for, and the largest share of a whole run's time to wait beyond it.
SIX = (
    [(working, 0.2), (saving, 0.0), (between, 0.0)],
    [(working, 0.2), (saving, 0.0), (evaluating, 0.0)],
)
TWENTY = (
    [(working, 0.2)] * 5 + [(saving, 0.0)] * 4 + [(between, 0.0), (evaluating, 0.0), (between, 0.02)],
    [(working, 0.2)] * 4 + [(saving, 0.0)] * 2 + [(evaluating, 0.0), (between, 0.01)] * 2,
)


def start(stage: int, out: Path, log: Path) -> subprocess.Popen:
    """Run a script; what it prints goes to a file, whole even if it is killed."""
    environment = {**os.environ, **ALONE, "MPLBACKEND": "Agg", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(SCRIPTS[stage]), *OPTIONS[stage].split(), "--out", str(out)]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs start deaf to Ctrl-C
    with open(log, "w") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, preexec_fn=heed)


def kill_at(process: subprocess.Popen, moment: Moment, delay: float, out: Path, log: Path) -> bool:
    """Kill a script some seconds after a moment; False where it ended before."""
    finished, begun, deadline = count_finished(out), False, time.monotonic() + 300
    while process.poll() is None and not (begun and moment(out, process.pid, finished)):
        begun = begun or "engine:" in log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.0005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)  # takes no effect on a process that has ended
    return process.wait() == -signal.SIGKILL


def finish(stage: int, out: Path, log: Path) -> None:
    """Run a script to its end."""
    process = start(stage, out, log)
    assert process.wait(timeout=600) == 0, log.read_text()


def outcome(out: Path) -> dict[str, dict]:
    """All that the finished runs of both stages hold, but for times."""
    found = {}
    for path in sorted(out.glob("demo_?/*")):
        assert not list(path.glob("*checkpoint*")), "a finished run keeps no checkpoint and no litter"
        summary = json.loads((path / "summary.json").read_text())
        with np.load(path / "predictions.npz") as stored:
            logits = dict(stored)
        found[f"{path.parent.name}/{path.name}"] = {
            "metrics": pd.read_csv(path / "metrics.csv").drop(columns="seconds", errors="ignore"),
            "arrays": {"norms": np.load(path / "norms.npy"), **logits},
            "weights": torch.load(path / "weights.pt", weights_only=True),
            "summary": {k: v for k, v in summary.items() if "seconds" not in k},
        }
    return found


def assert_equal(one: dict, other: dict) -> None:
    """Equal at tolerance 0."""
    pd.testing.assert_frame_equal(one["metrics"], other["metrics"], check_exact=True)
    assert one["summary"] == other["summary"]
    for name, value in one["arrays"].items():
        assert np.array_equal(value, other["arrays"][name]), name
    assert one["weights"].keys() == other["weights"].keys()
    for name, value in one["weights"].items():
        assert torch.equal(value, other["weights"][name]), name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[dict[str, dict], list[float], Path]:
    """What both scripts end with, how long each took, and the first one's folder."""
    out, times = tmp_path_factory.mktemp("whole"), []
    first = out.with_name("first")
    for stage in range(2):
        begun = time.monotonic()
        finish(stage, out, out / "log")
        times.append(time.monotonic() - begun)
        if stage == 0:
            shutil.copytree(out, first)
    return outcome(out), times, first


def assert_loadable(out: Path) -> None:
    """What a kill left can be read: the checkpoint is whole, or the one before it is."""
    for folder in out.glob("demo_?/*"):
        if list(folder.glob("checkpoint.pt*")):
            assert load_checkpoint(folder / "checkpoint.pt")


def survive(out: Path, times: list[float], plan: tuple) -> Iterator[tuple[str, str]]:
    """Run both scripts with all their kills; yields each kill's kind ("" for none) and what the script had shown."""
    chance, log = random.Random(7), out / "log"
    for stage, kills in enumerate(plan):
        for moment, share in kills if stage else sorted(kills, key=lambda kill: kill[0] is between):
            hit = kill_at(start(stage, out, log), moment, chance.uniform(0.1, 1) * share * times[stage], out, log)
            assert_loadable(out)
            yield moment.__name__ if hit else "", log.read_text()
        finish(stage, out, log)
        yield "", log.read_text()


@pytest.mark.parametrize(
    ("plan", "least"), [(SIX, 5), pytest.param(TWENTY, 20, marks=pytest.mark.soak)], ids=["six", "twenty"]
)
def test_kills_change_nothing(uninterrupted, tmp_path, report, plan, least):
    expected, times, _ = uninterrupted
    killed, shown = zip(*survive(tmp_path, times, plan), strict=True)
    kinds = Counter(filter(None, killed))
    epochs = Counter(line.split(":")[0] for log in shown for line in log.splitlines() if ": loss " in line)
    repeated, resumed = sum(epochs.values()) - len(epochs), sum(log.count("resuming at epoch") for log in shown)
    report(f"kills survived: {sum(kinds.values())} ({', '.join(f'{n} {kind}' for kind, n in kinds.items())})")
    report(f"resumed {resumed} times; of {len(epochs)} epochs of the first stage {repeated} were finished twice")
    found = outcome(tmp_path)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_equal(found[name], value)
    assert sum(kinds.values()) >= least
    assert least < 20 or set(kinds) == {moment.__name__ for kills in plan for moment, _ in kills}
    assert resumed


@pytest.mark.parametrize(
    ("stage", "number", "code", "seen"),
    [
        (0, signal.SIGTERM, 143, "WD   1/8"),
        (0, signal.SIGINT, 130, "WD   2/8"),
        (1, signal.SIGTERM, 143, "CB (paper)"),
    ],
)
def test_a_stopped_script_says_how_to_go_on_and_does(uninterrupted, tmp_path, stage, number, code, seen):
    expected, _, first = uninterrupted
    if stage:
        shutil.copytree(first, tmp_path, dirs_exist_ok=True)
    log = tmp_path / "log"
    process = start(stage, tmp_path, log)
    while process.poll() is None and f"\n{seen}" not in log.read_text():
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(timeout=300) == code
    assert log.read_text().endswith("error: interrupted; the same command goes on from the last saved epoch\n")
    finish(stage, tmp_path, log)
    assert stage or "WD: resuming at epoch" in log.read_text()
    assert "naive   1/8" not in log.read_text()  # finished before, so loaded
    for name, value in outcome(tmp_path).items():
        assert_equal(value, expected[name])


def execute_notebook(out: Path, log: Path) -> subprocess.Popen:
    """Run the first notebook as Jupyter does, with the first script's options."""
    notebook = next((ROOT / "notebooks").glob("demo1_*.ipynb"))
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--output-dir", str(out)]
    environment = {**os.environ, **ALONE, "LTR_ARGS": f"{OPTIONS[0]} --out {out}"}
    with open(log, "w") as file:
        return subprocess.Popen([*command, str(notebook)], stdout=file, stderr=subprocess.STDOUT, env=environment)


def test_a_killed_notebook_goes_on_and_ends_as_the_script_does(uninterrupted, tmp_path):
    expected, *_ = uninterrupted
    log = tmp_path / "log"
    process = execute_notebook(tmp_path, log)
    while process.poll() is None and not list(tmp_path.glob("demo_1/*/checkpoint.pt")):
        time.sleep(0.01)
    kernel = psutil.Process(process.pid).children(recursive=True)
    for each in (process, *kernel):
        each.kill()
    psutil.wait_procs(kernel, timeout=60)
    assert process.wait() == -signal.SIGKILL
    assert execute_notebook(tmp_path, log).wait(timeout=600) == 0, log.read_text()
    assert "naive: resuming at epoch" in next(tmp_path.glob("*.ipynb")).read_text()
    for name, value in outcome(tmp_path).items():
        assert_equal(value, expected[name])

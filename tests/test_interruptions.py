"""A script that is stopped and started again ends where an uninterrupted one ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from ltr.settings import ROOT

SCRIPT = next((ROOT / "scripts").glob("demo1_*.py"))
OPTIONS = "--preset demo --epochs 3 --imbalance-factor 250"  # 250 images down to 1, the shortest epoch
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}


def start(out: Path) -> subprocess.Popen:
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(SCRIPT), *OPTIONS.split(), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def outcome(out: Path) -> dict[str, tuple[pd.DataFrame, dict[str, torch.Tensor]]]:
    """History without times, and weights, of both models."""
    found = {}
    for path in sorted((out / "demo_1").iterdir()):
        assert not (path / "checkpoint.pt").exists()
        history = pd.read_csv(path / "metrics.csv").drop(columns="seconds")
        found[path.name] = history, torch.load(path / "weights.pt", weights_only=True)
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    stdout, stderr = start(out).communicate(timeout=300)
    assert "demo_1" in stdout, stderr
    return outcome(out)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no POSIX signals")
@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_stopped_script_goes_on_and_ends_as_if_it_had_not_been_stopped(number, uninterrupted, tmp_path):
    process = start(tmp_path)
    for line in process.stdout:
        if line.startswith("WD   1/3"):  # the naive model is finished, the other under way
            process.send_signal(number)
            break
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == CODES[number]
    if number != signal.SIGKILL:
        assert stderr == "error: interrupted; the same command goes on from the last saved epoch\n"
    stdout, stderr = start(tmp_path).communicate(timeout=300)
    assert "WD: resuming at epoch" in stdout, stderr
    assert "naive   1/3" not in stdout  # finished, so loaded
    for name, (history, weights) in outcome(tmp_path).items():
        expected, expected_weights = uninterrupted[name]
        pd.testing.assert_frame_equal(history, expected, check_exact=True)
        for key, value in expected_weights.items():
            assert torch.equal(weights[key], value), key

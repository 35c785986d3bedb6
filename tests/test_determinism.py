"""The same seed twice in fresh processes: the same bits in every file of both stages, but for the times."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import forked
import pytest
import torch

RUNS = 2 + 7  # networks and classifiers
OPTIONS = ["--epochs 2", "--epochs 2 --stage1-epochs 2"]
RUN = """
import runpy, sys
from ltr import plots
plots.show = plots.show_animation = lambda *told, **options: None  # to save figures would take longer than training
for script, words in {runs!r}:
    sys.argv = [script, *words.split()]
    runpy.run_path(script, run_name="__main__")
"""


def run_both_stages(out: Path, options: str, hash_seed: int) -> None:
    """Both scripts in a fresh process."""
    runs = [(str(script), f"{options} {own} --out {out}") for script, own in zip(forked.SCRIPTS, OPTIONS, strict=True)]
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONHASHSEED": str(hash_seed)}
    command = [sys.executable, "-c", RUN.format(runs=runs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr


def run_twice(folder: Path, options: str) -> list[Path]:
    outs = [folder / "one", folder / "two"]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run_both_stages, outs, [options] * 2, [1, 2]))
    return outs


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_on_the_cpu(small, tmp_path):
    one, two = run_twice(tmp_path, f"{small} --device cpu")
    assert len(forked.assert_same_runs(one, two)) == RUNS
    naive, decayed = (torch.load(path) for path in sorted(one.glob("demo_1/*/weights.pt")))
    assert not torch.equal(naive["classifier.weight"], decayed["classifier.weight"])


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here: bits on a GPU are not checked")
def test_the_same_seed_gives_the_same_bits_on_cuda(small, tmp_path):
    assert len(forked.assert_same_runs(*run_twice(tmp_path, f"{small} --device cuda --deterministic"))) == RUNS

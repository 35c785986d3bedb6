"""The same seed twice in fresh processes: the same bits in every file of both stages, but for the times."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from trees import NAMES, write_tree

from ltr.runtime.options import ROOT

SCRIPTS = sorted((ROOT / "scripts").glob("demo*.py"))
OPTIONS = ["--preset demo --epochs 2", "--preset demo --epochs 2 --stage1-epochs 2"]
DATA = "--dataset folder --profile exp --imbalance-factor 6 --batch-size 16 --lr 0.01"  # 24, 9 and 4 images
RUN = """
import runpy, sys
from ltr import plots
plots.show = lambda *arguments, **options: None  # figures are drawn, but saving them would take longer than training
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def small_tree(tmp_path_factory) -> Path:
    draw = np.random.default_rng(0)
    counts = {"train": 24, "test": 4}
    pixels = {k: draw.integers(0, 256, (len(NAMES) * n, 12, 12, 3), np.uint8) for k, n in counts.items()}
    return write_tree(tmp_path_factory.mktemp("data") / "tree", pixels)


def run_both_stages(out: Path, tree: Path, options: str, hash_seed: int) -> None:
    """Each script in a process of its own."""
    environment = {"MPLBACKEND": "Agg", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONHASHSEED": str(hash_seed)}
    for script, own in zip(SCRIPTS, OPTIONS, strict=True):
        words = f"{own} {DATA} {options}".split() + ["--data-root", str(tree), "--out", str(out)]
        command = [sys.executable, "-c", RUN, str(script), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env={**os.environ, **environment})
        assert done.returncode == 0, done.stderr


def run_twice(folder: Path, tree: Path, options: str) -> list[Path]:
    outs = [folder / "one", folder / "two"]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run_both_stages, outs, [tree] * 2, [options] * 2, [1, 2]))
    return outs


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "weights.pt", weights_only=True)


def assert_same_run(one: Path, two: Path) -> None:
    """Every file that training writes holds the same bits."""
    histories = [pd.read_csv(run / "metrics.csv").drop(columns="seconds", errors="ignore") for run in (one, two)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    for name in ("norms.npy", "predictions.npz"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    weights, others = weights_of(one), weights_of(two)
    assert weights.keys() == others.keys()
    for key, tensor in weights.items():
        assert tensor.numpy().tobytes() == others[key].numpy().tobytes(), key


def assert_same_bits(one: Path, two: Path) -> None:
    """Both stages' runs have the same names, which hold a digest of settings and data, and the same files."""
    runs = sorted(path.parent.relative_to(one) for path in one.glob("demo_*/*/summary.json"))
    assert runs == sorted(path.parent.relative_to(two) for path in two.glob("demo_*/*/summary.json"))
    assert len(runs) == 17 + 10 + 12  # the paper's Table 1, with published values, in the released mode
    for run in runs:
        assert_same_run(one / run, two / run)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_on_the_cpu(small_tree, tmp_path):
    one, two = run_twice(tmp_path, small_tree, "--device cpu")
    assert_same_bits(one, two)
    naive, decayed = sorted((one / "demo_1").iterdir())
    assert not torch.equal(weights_of(naive)["classifier.weight"], weights_of(decayed)["classifier.weight"])


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here: bits on a GPU are not checked")
def test_the_same_seed_gives_the_same_bits_on_cuda(small_tree, tmp_path):
    assert_same_bits(*run_twice(tmp_path, small_tree, "--device cuda --deterministic"))

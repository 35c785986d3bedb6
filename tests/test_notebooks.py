"""The notebooks as committed, their scripts, and a full demo run of both."""

import json
import os
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
from nbconvert import PythonExporter
from nbconvert.preprocessors import ExecutePreprocessor

from ltr.runtime.options import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
named = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:5])


def run_script(name: str, *arguments: str) -> subprocess.CompletedProcess:
    script = next((ROOT / "scripts").glob(f"{name}_*.py"))
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning:matplotlib", str(script), "--preset", "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=900,
        env=environment,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> pd.DataFrame:
    """Both scripts with `--preset demo`, in a folder of its own; results.csv."""
    out = tmp_path_factory.mktemp("demo")
    for name in ("demo1", "demo2"):
        done = run_script(name, "--out", str(out))
        assert done.returncode == 0, done.stderr
    table = pd.read_csv(out / "results.csv")
    table.attrs["out"] = out
    return table


def figures_of(demo: pd.DataFrame, method: str, mode: str | None = None) -> pd.Series:
    rows = demo[(demo.selection == "last") & (demo.tta == "none") & (demo.method == method)]
    rows = rows[rows["mode"] == mode] if mode else rows
    assert len(rows) == 1
    return rows.iloc[0]


@pytest.mark.slow
def test_the_demo_rescues_rare_classes(demo):
    naive, balanced = figures_of(demo, "naive"), figures_of(demo, "CB + WD + MaxNorm", "paper")
    assert balanced.few >= naive.few + 10
    assert balanced["all"] > naive["all"]


@pytest.mark.slow
def test_the_demo_evaluates_every_model(demo):
    models = 17 + 10 + 12  # the paper's Table 1; its rows with published values; those that learn, in the released mode
    assert len(demo) == 4 * models
    assert demo[["all", "many", "medium", "few", "ece"]].notna().all(axis=None)
    fired = demo[demo.method.str.contains("MaxNorm")].max_norm_fired
    assert fired.between(0, 1).all()


@pytest.mark.slow
@named
def test_notebooks_run_in_demo_preset(path, demo, monkeypatch):
    monkeypatch.setenv("LTR_ARGS", f"--preset demo --out {demo.attrs['out']}")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.read(path, 4)
    ExecutePreprocessor(timeout=600).preprocess(notebook, {"metadata": {"path": str(path.parent)}})
    kinds = [out.output_type for cell in notebook.cells for out in cell.get("outputs", [])]
    assert kinds.count("display_data") >= 5  # the figures


@pytest.mark.slow
def test_the_headline_comparison_needs_no_images(tmp_path):
    """Real features ship with the package: rare classes of CIFAR100-LT are rescued, as in exp/results.csv."""
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    script = str(next((ROOT / "scripts").glob("demo2_*.py")))
    words = [sys.executable, script, "--base", "shipped", "--data-root", str(tmp_path / "none"), "--out", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr
    ours, committed = (pd.read_csv(folder / "results.csv") for folder in (tmp_path, ROOT / "exp"))
    committed = committed[(committed.stage1_epochs == ours.stage1_epochs[0]) & (committed.seed == ours.seed[0])]
    for method in ("WD", "WD + L2norm", "CB", "CB + WD + MaxNorm"):
        mode = "paper" if method.startswith("CB") else None
        mine, theirs = (figures_of(table, method, mode) for table in (ours, committed))
        assert mine["all"] == pytest.approx(theirs["all"], abs=0.5)
    assert figures_of(ours, "CB + WD + MaxNorm", "paper").few > figures_of(ours, "naive").few + 10


def test_the_second_stage_says_when_the_first_is_absent(tmp_path):
    done = run_script("demo2", "--out", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("error: --out: there is no finished run")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_second_stage_refuses_another_backbone(demo):
    done = run_script("demo2", "--out", str(demo.attrs["out"]), "--backbone", "resnet34")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --backbone: no finished run")


@named
def test_scripts_are_what_nbconvert_makes_of_the_notebooks(path):
    exporter = PythonExporter(exclude_input_prompt=True, exclude_output_prompt=True)
    text, _ = exporter.from_filename(str(path))
    assert (ROOT / "scripts" / f"{path.stem}.py").read_text("utf-8") == text, "run `make scripts`"


@named
def test_committed_notebooks_were_executed_in_order(path):
    notebook = json.loads(path.read_text("utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert path.stat().st_size < 500_000
    assert not any(line.lstrip().startswith(("%", "!")) for cell in code for line in cell["source"])
    assert str(ROOT) not in path.read_text("utf-8"), "a path of this machine"

"""The chapters: as committed, as anyone reruns them, their scripts, and a full demo run."""

import json
import re
import shutil
import subprocess
import warnings
from functools import partial

import forked
import nbformat
import pandas as pd
import pytest
from committed import SHIPPED, shown
from nbconvert import PythonExporter
from nbconvert.preprocessors import ExecutePreprocessor

from ltr.runtime.options import ROOT
from ltr.study import rows

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if path.stem.startswith("demo")]
OPTIONS = {"demo1": "--epochs 8 --test-every 4", "demo2": "--stage1-epochs 8 --epochs 3"}  # what is enough
named = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:5])
chapters = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem[:5])
# What is trained anew wherever the page is made: lines, and cells that have this word.
LIVE = ("by hand:", "holds: the loop above", "holds: a few epochs are enough", "holds: a radius changes confidence")
LIVE_CELLS = "of_radius"


def run_script(name: str, *arguments: str, preset: str | None = "demo") -> subprocess.CompletedProcess:
    script = next((ROOT / "scripts").glob(f"{name}_*.py"))
    words = [*(["--preset", preset] if preset else []), *arguments]
    strict = partial(warnings.filterwarnings, "error", category=UserWarning, module=r"matplotlib\Z")
    return forked.run(script, words, timeout=900, before=strict)


def execute(path, extra: list[str] = ()) -> nbformat.NotebookNode:
    """A notebook, executed anew where it lies, with further cells at its end."""
    notebook = nbformat.read(path, 4)
    notebook.cells += [nbformat.v4.new_code_cell(source) for source in extra]
    ExecutePreprocessor(timeout=600).preprocess(notebook, {"metadata": {"path": str(path.parent)}})
    return notebook


def words_of(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """What each code cell says: its lines and tables, without what is trained live."""
    said = []
    for cell in notebook.cells:
        if cell.cell_type != "code" or LIVE_CELLS in cell.source:
            continue
        parts = (output.get("text") or output.get("data", {}).get("text/html", "") + "\n" for output in cell.outputs)
        text = "".join(parts)  # a kernel under load may send one line in two outputs
        said.append([line for line in text.splitlines() if not line.startswith(LIVE)])
    return said


def solutions(path) -> list[str]:
    """The code of an executed chapter's folded solutions."""
    text = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
    folded = re.findall(r"<details>.*?</details>", text, re.DOTALL)
    return [code for part in folded for code in re.findall(r"```python\n(.*?)```", part, re.DOTALL)]


def files_of(folder) -> dict:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@chapters
def test_run_all_gives_the_committed_page_and_writes_nothing(path, monkeypatch):
    """Without options, images or GPU; and the solutions of the exercises run at its end."""
    monkeypatch.delenv("LTR_ARGS", raising=False)
    monkeypatch.delenv("MPLBACKEND", raising=False)
    before, extra = files_of(ROOT / "exp"), solutions(path)
    assert extra
    executed = execute(path, extra)
    assert files_of(ROOT / "exp") == before
    assert words_of(executed)[: -len(extra)] == words_of(nbformat.read(path, 4))
    figures = [o for cell in executed.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(figures) >= 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "run", "claim"),
    [
        ("demo1", "demo_1/naive_*", "of the test images of many-shot"),
        ("demo2", "demo_2/cb-wd-maxnorm_paper_*", "few-shot classes gain"),
    ],
)
def test_a_claim_fails_where_a_committed_number_is_altered(tmp_path, name, run, claim):
    out = shutil.copytree(ROOT / "exp", tmp_path / "exp", ignore=shutil.ignore_patterns("figures"))
    summary = shown(out, run) / "summary.json"
    figures = json.loads(summary.read_text("utf-8"))
    figures["last/none"]["few"], figures["last/none"]["many"] = (40.0, 50.0) if name == "demo1" else (2.0, 70.0)
    summary.write_text(json.dumps(figures), "utf-8")
    done = run_script(name, "--out", str(out), preset="committed")
    assert done.returncode == 1
    assert f"AssertionError: the committed runs do not say: {claim}" in done.stderr


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> pd.DataFrame:
    """Both scripts with `--preset demo`, for fewer epochs, in a folder of its own; results.csv."""
    out = tmp_path_factory.mktemp("demo")
    for name, options in OPTIONS.items():
        done = run_script(name, *options.split(), "--out", str(out))
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
def test_the_second_chapter_leaves_the_curve_of_a_chosen_tau_to_the_third(demo):
    out = demo.attrs["out"] / "demo_2"
    for name in ("WD + tau-norm", "naive + tau-norm"):
        chosen = figures_of(demo, name)
        swept = json.loads((out / chosen.run / "summary.json").read_text("utf-8"))["sweep"]
        assert [each["tau"] for each in swept] == sorted({*rows.TAUS, chosen.tau})
        (at_it,) = (each["all"] for each in swept if each["tau"] == chosen.tau)
        assert at_it == pytest.approx(chosen["all"], abs=0.01)


@pytest.mark.slow
def test_the_demo_evaluates_every_model(demo):
    assert len(demo) == 4 * (2 + 1 + 6)  # networks, the naive one with tau-normalisation, classifiers
    assert demo[["all", "many", "medium", "few", "ece"]].notna().all(axis=None)
    moved = demo[demo.method.str.contains("MaxNorm")].projected_share
    assert moved.between(0, 1).all()


@pytest.mark.slow
@chapters
def test_notebooks_run_in_demo_preset(path, demo, monkeypatch):
    monkeypatch.setenv("LTR_ARGS", f"--preset demo {OPTIONS[path.stem[:5]]} --out {demo.attrs['out']}")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    kinds = [out.output_type for cell in execute(path).cells for out in cell.get("outputs", [])]
    assert kinds.count("display_data") >= 5  # the figures


@pytest.mark.slow
def test_the_headline_comparison_needs_no_images(tmp_path):
    """Real features ship with the package: rare classes of CIFAR100-LT are rescued, as in exp/results.csv."""
    words = ["--base", "shipped", "--data-root", str(tmp_path / "none"), "--out", str(tmp_path)]
    done = forked.run(forked.SCRIPTS[1], words, timeout=900)
    assert done.returncode == 0, done.stderr
    ours, committed = (pd.read_csv(folder / "results.csv") for folder in (tmp_path, ROOT / "exp"))
    committed = committed[committed.stage1_run == SHIPPED.name]
    for method in ("WD", "WD + L2norm", "CB", "CB + WD + MaxNorm"):
        mode = "paper" if method.startswith("CB") else None
        mine, theirs = (figures_of(table, method, mode) for table in (ours, committed))
        assert mine["all"] == pytest.approx(theirs["all"], abs=0.5)
    assert figures_of(ours, "CB + WD + MaxNorm", "paper").few > 1.5 * figures_of(ours, "naive").few


@pytest.mark.slow
def test_the_second_stage_says_when_the_first_is_absent(tmp_path):
    done = run_script("demo2", "--out", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("error: --out: there is no finished run")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_second_stage_refuses_another_backbone(demo):
    done = run_script("demo2", *OPTIONS["demo2"].split(), "--out", str(demo.attrs["out"]), "--backbone", "resnet34")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --backbone: no finished run")


@named
def test_scripts_are_what_nbconvert_makes_of_the_notebooks(path):
    exporter = PythonExporter(exclude_input_prompt=True, exclude_output_prompt=True)
    text, _ = exporter.from_filename(str(path))
    assert (ROOT / "scripts" / f"{path.stem}.py").read_text("utf-8") == text, "run `make scripts`"


@named
def test_options_stand_in_a_cell_that_papermill_knows(path):
    tagged = [cell for cell in nbformat.read(path, 4).cells if "parameters" in cell.metadata.get("tags", ())]
    assert [cell.source.splitlines()[0] for cell in tagged] == ['options = ""']


@named
def test_committed_notebooks_were_executed_in_order(path):
    notebook = json.loads(path.read_text("utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    shown = [output["data"] for output in outputs if "data" in output]
    assert any("image/png" in data for data in shown)
    # All that a page shows is what every reader of notebooks draws, and no number is missing without a dash.
    assert not [data for data in shown if not {"image/png", "text/html", "text/markdown"} & {*data}]
    words = [output.get("text") or output.get("data", {}).get("text/html", "") for output in outputs]
    assert not re.search(r"\bnan\b", "".join(line for lines in words for line in lines))
    assert path.stat().st_size < 1_000_000
    assert not any(line.lstrip().startswith(("%", "!")) for cell in code for line in cell["source"])
    assert str(ROOT) not in path.read_text("utf-8"), "a path of this machine"

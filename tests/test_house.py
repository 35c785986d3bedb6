"""Who may import whom, and how large a thing may grow, read from the syntax trees."""

import ast
from pathlib import Path

import pytest
import yaml

from ltr.runtime.options import PACKAGE, ROOT

GROUND = {"errors", "recipes", "models", "losses", "regularizers", "metrics", "analysis"}
WINGS = ("data", "runtime", "study")
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text("utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imported(name: str) -> set[str]:
    """Modules of the package that a module imports, also late ones, as `data.loader`."""
    found = set()
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ltr":
            base = node.module.split(".")[1:]
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                found.add(whole if whole in MODULES else ".".join(base) or "__init__")
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("ltr.") for alias in node.names if alias.name.split(".")[0] == "ltr"}
    return found


IMPORTS = {name: imported(name) for name in MODULES}


def wing(name: str) -> str:
    """The wing that a module stands in; the top level is none."""
    first = name.split(".")[0]
    return first if first in WINGS else ""


@pytest.mark.parametrize("name", sorted(GROUND))
def test_the_ground_floor_imports_nothing(name):
    assert IMPORTS[name] == set()


@pytest.mark.parametrize("name", [name for name in MODULES if wing(name) == "runtime"])
def test_runtime_imports_only_errors(name):
    assert {each for each in IMPORTS[name] if wing(each) != "runtime"} <= {"errors"}


@pytest.mark.parametrize("name", [name for name in MODULES if wing(name) == "data"])
def test_data_imports_only_runtime_and_the_ground(name):
    assert {each for each in IMPORTS[name] if wing(each) not in ("data", "runtime")} <= GROUND


def test_training_knows_no_images_options_or_folders():
    assert not {each for each in IMPORTS["training"] if wing(each) in ("data", "study")}
    assert not IMPORTS["training"] & {"datasets", "settings", "runs"}


def test_only_study_and_the_command_line_import_study():
    users = {name for name, found in IMPORTS.items() if any(wing(each) == "study" for each in found)}
    assert {name for name in users if wing(name) != "study"} <= {"__main__"}


def test_only_settings_looks_at_the_command_line_and_the_environment():
    """And `__main__`, which hands the command line on; `process` names the streams of the process it ends."""
    looking = set()
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            whole = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if whole in ("sys.argv", "os.environ"):
                looking.add(name)
    assert looking <= {"settings", "__main__", "runtime.process"}


def test_the_workflow_says_when_where_and_what():
    tests = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text("utf-8"))
    assert tests[True] == ["push", "pull_request"]  # YAML's `on`
    for job in tests["jobs"].values():
        assert {"runs-on", "timeout-minutes", "steps"} <= job.keys()
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])
    assert tests["jobs"]["linux"]["steps"][-1]["run"] == "bash .ci/run"


def test_there_are_no_circles():
    def reach(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way, name])
        for each in sorted(IMPORTS.get(name, ())):
            if each not in done:
                reach(each, (*way, name))
        done.add(name)

    done: set[str] = set()
    for name in MODULES:
        reach(name, ())


def size(node: ast.AST) -> int:
    """Lines of a definition; of a function without those of its docstring."""
    lines = node.end_lineno - node.lineno + 1
    first = node.body[0]
    if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
        lines -= first.end_lineno - first.lineno + 1
    return lines


@pytest.mark.parametrize("name", MODULES)
def test_things_stay_small(name):
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.FunctionDef):
            assert size(node) <= 30, node.name
        elif isinstance(node, ast.ClassDef):
            assert size(node) < 150, node.name


def test_a_circle_would_be_seen(monkeypatch):
    monkeypatch.setitem(IMPORTS, "metrics", {"training"})
    with pytest.raises(AssertionError, match="metrics -> training -> metrics|training -> metrics -> training"):
        test_there_are_no_circles()
    with pytest.raises(AssertionError):
        test_the_ground_floor_imports_nothing("metrics")


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__init__")])
def test_every_public_thing_is_explained(name):
    tree = MODULES[name]
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


def test_the_top_level_is_a_handful_of_rooms():
    top = {path.stem for path in Path(PACKAGE).glob("*.py") if not path.stem.startswith("__")}
    assert top >= GROUND
    assert len(top) <= 17

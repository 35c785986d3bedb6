"""The package as pip installs it, in an environment of its own and from an empty folder, without a download."""

import os
import shutil
import site
import subprocess
import sys
import zipfile

import pytest

from ltr.runtime.options import PACKAGE, ROOT

BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
USE = """
from ltr.__main__ import main
from ltr.settings import SecondStage
from ltr.study.rows import open_rows
settings = SecondStage.parse(["--base", "shipped"])
rows = open_rows(settings, None)
features = rows.sources.features["paper"]
print(rows.base.path)
print(len(features.test_labels), len(features), rows.naive.path.name, settings.out, sep="|")
main(["--help"])
"""
pytestmark = pytest.mark.slow


def quietly(words: list[str], folder, **environment: str) -> str:
    """What a command prints that must succeed."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=clean | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of what git has, so that nothing is left in the checkout."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    kept = ("pyproject.toml", "README.md", "LICENSE", "ltr", "exp/demo_1")
    tracked = quietly(["git", "ls-files", "-z", "--", *kept], ROOT).split("\0")
    for name in filter(None, tracked):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    quietly([sys.executable, "-c", BUILD, str(out)], copy)
    return next(out.glob("*.whl"))


def test_what_ships_is_in_the_wheel_once(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert sum(name.endswith("/features.npz") for name in names) == 1
    modules = {f"ltr/{path.relative_to(PACKAGE).as_posix()}" for path in PACKAGE.rglob("*.py")}
    assert modules <= set(names)
    assert "ltr/py.typed" in names
    assert wheel.stat().st_size < 20e6


def test_shipped_features_are_found_from_any_folder(wheel, tmp_path):
    place, folder = tmp_path / "place", tmp_path / "empty"
    folder.mkdir()
    quietly([sys.executable, "-m", "venv", "--without-pip", str(place)], tmp_path)
    python = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    own = quietly([str(python), "-c", "import site; print(site.getsitepackages()[0])"], tmp_path).strip()
    zipfile.ZipFile(wheel).extractall(own)
    with open(os.path.join(own, "others.pth"), "w") as file:  # PyTorch and the rest, which would be a download
        file.write("\n".join(site.getsitepackages()))
    path, found, usage, *_ = quietly([str(python), "-W", "error::UserWarning", "-c", USE], folder).splitlines()
    assert path.startswith(own)
    naive = "naive_wd0_e200_resnet32_if100_s0-527af3ca"
    assert found == f"10000|10847|{naive}|{folder.resolve() / 'build' / 'shipped'}"
    assert usage.startswith("usage: python -m ltr")
    assert not list(folder.iterdir())

"""The chapters as HTML pages."""

import re

import nbformat
import pytest

from ltr.errors import InputError
from ltr.study import tutorial


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repository of three small chapters that link to one another."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setattr(tutorial, "ROOT", tmp_path)
    for number, name in enumerate(tutorial.CHAPTERS):
        following = tutorial.CHAPTERS[(number + 1) % 3]
        words = f"# {number} · Title & more\n\n**Goals.** See it.\n\n**Time**: a minute\n\n"
        words += f"[next]({following}.ipynb#There) [code](../ltr/losses.py) [paper](https://arxiv.org/abs/2203.14197)"
        cells = [nbformat.v4.new_markdown_cell(words), nbformat.v4.new_code_cell("print(1)")]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebooks" / f"{name}.ipynb")
    return tmp_path


@pytest.mark.seconds
def test_links_lead_from_page_to_page_and_into_the_repository(clone, capsys):
    out = clone / "build" / "pages"
    tutorial.main(["--out", str(out)])
    first = (out / f"{tutorial.CHAPTERS[0]}.html").read_text("utf-8")
    assert f'href="{tutorial.CHAPTERS[1]}.html#There"' in first
    assert 'href="../../ltr/losses.py"' in first
    assert 'href="https://arxiv.org/abs/2203.14197"' in first
    assert not re.search(r'href="[^":]*\.ipynb', first)
    assert capsys.readouterr().out.endswith("3 chapters\n")


def test_the_contents_page_names_goals_and_time(clone):
    tutorial.main(["--out", str(clone / "pages")])
    index = (clone / "pages" / "index.html").read_text("utf-8")
    for number, name in enumerate(tutorial.CHAPTERS):
        assert f'<a href="{name}.html">{number} · Title &amp; more</a>' in index
    assert index.count("<p>See it.</p>") == index.count("a minute") == 3


def test_without_the_notebooks_it_says_so_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tutorial, "ROOT", tmp_path)
    with pytest.raises(InputError, match="^tutorial: must be run in a clone of the repository"):
        tutorial.main(["--out", str(tmp_path / "pages")])
    assert not (tmp_path / "pages").exists()

"""The chapters as a folder of HTML pages with a contents page:

    python -m ltr tutorial --out build/tutorial

Pages are the notebooks as they were executed; links between them lead from page to page, and links to other files into
the repository.
"""

import html
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltr.errors import InputError
from ltr.runtime.options import ROOT, Parser, folder, short
from ltr.runtime.storage import write_text

TITLE = "Long-tailed recognition by weight balancing"
CHAPTERS = ("demo1_first-stage-training", "demo2_second-stage-training", "study_paper-versus-code")
STYLE = "body{font:17px/1.6 sans-serif;max-width:44rem;margin:3rem auto;padding:0 1rem}h2{margin:2rem 0 .2rem}"


@dataclass(frozen=True)
class Chapter:
    """A notebook's words about itself.

    Attributes:
        name: of its file, without its end.
        title: its heading.
        goals, time: its paragraphs that begin so.
    """

    name: str
    title: str
    goals: str
    time: str

    @classmethod
    def of(cls, name: str, notebook: Any) -> "Chapter":
        """Of an executed notebook."""
        text = notebook.cells[0].source
        title, *_ = re.findall(r"^# (.+)$", text, re.MULTILINE) or [name]
        goals, time = (re.search(rf"\*\*{word}\.?\*\*:? ([^\n]+)", text) for word in ("Goals", "Time"))
        return cls(name, title, goals[1] if goals else "", time[1] if time else "")


def page(exporter: Any, notebook: Any, root: str) -> str:
    """A chapter's HTML, with links that lead to other pages, or from them to the repository's root."""
    body, _ = exporter.from_notebook_node(notebook)
    body = re.sub(r'href="([\w-]+)\.ipynb(#[^"]*)?"', r'href="\1.html\2"', body)
    return re.sub(r'href="\.\./', f'href="{root}/', body)


def contents(chapters: Sequence[Chapter]) -> str:
    """The contents page."""
    parts = [
        f'<h2><a href="{each.name}.html">{html.escape(each.title)}</a></h2>'
        f"<p>{html.escape(each.goals)}</p><p><small>{html.escape(each.time)}</small></p>"
        for each in chapters
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{TITLE}</title>'
    return (
        f"<!doctype html><html lang=en><head>{head}<style>{STYLE}</style></head><body><h1>{TITLE}</h1>{''.join(parts)}"
    )


def main(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: a notebook is absent, as where the package is installed without its repository.
    """
    import nbformat  # here, as both take a second to import
    from nbconvert import HTMLExporter

    parser = Parser(prog="ltr tutorial", description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=str(ROOT / "build" / "tutorial"), help="the folder of the pages")
    out, chapters = folder(parser.parse_args(arguments).out), []
    for name in CHAPTERS:
        path = ROOT / "notebooks" / f"{name}.ipynb"
        if not path.exists():
            raise InputError(f"tutorial: must be run in a clone of the repository, there is no {path}")
        out.mkdir(parents=True, exist_ok=True)
        notebook = nbformat.read(path, 4)
        write_text(out / f"{name}.html", page(HTMLExporter(), notebook, Path(os.path.relpath(ROOT, out)).as_posix()))
        chapters.append(Chapter.of(name, notebook))
    write_text(out / "index.html", contents(chapters))
    print(short(f"{out / 'index.html'}: {len(chapters)} chapters"))

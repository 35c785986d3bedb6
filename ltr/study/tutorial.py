"""The chapters as a folder of HTML pages with a contents page:

    python -m ltr tutorial --out build/tutorial

Pages are the notebooks as they were executed; links between them lead from page to page, and links to other files into
the repository.
"""

import html
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltr.errors import InputError
from ltr.runtime.options import ROOT, Parser, folder, short
from ltr.runtime.storage import check_writable, write_text

TITLE = "Long-tailed recognition by weight balancing"
CHAPTERS = ("demo1_first-stage-training", "demo2_second-stage-training", "study_paper-versus-code")
STYLE = "body{font:17px/1.6 sans-serif;max-width:44rem;margin:3rem auto;padding:0 1rem}h2{margin:2rem 0 .2rem}"


def entry(name: str, notebook: Any) -> str:
    """What the contents page says of a chapter: its heading, and its paragraphs on goals and time."""
    text = notebook.cells[0].source
    title, *_ = re.findall(r"^# (.+)$", text, re.MULTILINE) or [name]
    found = (re.search(rf"\*\*{word}\.?\*\*:? ([^\n]+)", text) for word in ("Goals", "Time"))
    title, goals, time = map(html.escape, (title, *(each[1] if each else "" for each in found)))
    return f'<h2><a href="{name}.html">{title}</a></h2><p>{goals}</p><p><small>{time}</small></p>'


def page(exporter: Any, notebook: Any, root: str) -> str:
    """A chapter's HTML, with links that lead to other pages, or from them to the repository's root."""
    body, _ = exporter.from_notebook_node(notebook)
    body = re.sub(r'href="([\w-]+)\.ipynb(#[^"]*)?"', r'href="\1.html\2"', body)
    return re.sub(r'href="\.\./', f'href="{root}/', body)


def contents(entries: Sequence[str]) -> str:
    """The contents page."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{TITLE}</title>'
    head = f"<!doctype html><html lang=en><head>{head}<style>{STYLE}</style></head>"
    return f"{head}<body><h1>{TITLE}</h1>{''.join(entries)}"


def main(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: a notebook is absent, as where the package is installed without its repository.
    """
    import nbformat  # here, as both take a second to import
    from nbconvert import HTMLExporter

    parser = Parser(prog="ltr tutorial", about=__doc__)
    parser.add_argument("--out", type=folder, default=ROOT / "build" / "tutorial", help="the folder of the pages")
    out, chapters = parser.parse_args(arguments).out, []
    for name in CHAPTERS:
        path = ROOT / "notebooks" / f"{name}.ipynb"
        if not path.exists():
            raise InputError(f"tutorial: must be run in a clone of the repository, there is no {path}")
        check_writable(out)
        notebook = nbformat.read(path, 4)
        write_text(out / f"{name}.html", page(HTMLExporter(), notebook, Path(os.path.relpath(ROOT, out)).as_posix()))
        chapters.append(entry(name, notebook))
    write_text(out / "index.html", contents(chapters))
    print(short(f"{out / 'index.html'}: {len(chapters)} chapters"))

"""What a reader sees of a chapter, in a notebook or a script: tables, what to remember, an end before the last line."""

from collections.abc import Mapping
from typing import NoReturn

import numpy as np
import pandas as pd

from ltr import metrics, runs
from ltr.runtime import distributed, process

COLUMNS = {"many": "many", "medium": "medium", "few": "few", "all": "all", "ece": "ECE"}

BOLD = "Bold: within two paired standard errors of the best."


class EndOfPage(Exception):
    """A notebook has nothing more to show; Jupyter stops there without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def end(words: str) -> NoReturn:
    """End a script or a notebook before its last line, and say why."""
    if process.in_ipython():
        raise EndOfPage(words)
    print(words)
    raise SystemExit


def accuracy_table(results: Mapping[str, runs.Result | None]) -> pd.DataFrame:
    """Accuracies in percent as HTML, under each its standard error over test images.

    Args:
        results: a row each, dashes where there is none; rows that are not clearly below the best one over all classes
            are bold: within two paired standard errors of it.

    Source: `metrics.best_rows` for what is bold.
    """
    said = [runs.predictions_of(result) if result else None for result in results.values()]
    known = [index for index, each in enumerate(said) if each is not None]
    bold = np.zeros(len(results), bool)
    if len(known) > 1:
        bold[known] = metrics.best_rows(np.stack([said[index].hits for index in known]))
    parts = zip(results.items(), said, bold, strict=True)
    rows = {name: accuracy_cells(result, each, best) for (name, result), each, best in parts}
    return pd.DataFrame.from_dict(rows, orient="index")


def accuracy_cells(result: runs.Result | None, said: metrics.Predictions | None, bold: bool) -> dict[str, str]:
    """A row of `accuracy_table`."""
    if result is None:
        return dict.fromkeys(COLUMNS.values(), "–")
    cells, groups = {}, metrics.group_of(result.class_counts)
    for key, name in COLUMNS.items():
        value = metrics.or_dash(result.accuracy()[key])
        value = f"<b>{value}</b>" if bold and key == "all" else value
        if said is not None and key != "ece" and value != "–":
            inside = np.ones(len(said.labels), bool) if key == "all" else groups[said.labels] == key
            value += f"<br><small>±{metrics.standard_error(said.hits[inside]):.2f}</small>"
        cells[name] = value
    return cells


def show_table(frame: pd.DataFrame, note: str = "") -> None:
    """Show a table: HTML in a notebook, text in a script.

    Args:
        frame: its cells are text, as they shall stand, missing numbers as dashes; rows without a name have no first
            column.
        note: a line below it.
    """
    if not distributed.current().is_main:
        return
    frame = frame.map(lambda cell: metrics.with_dashes(str(cell)))
    named = any(map(str, frame.index))
    if not process.in_ipython():
        plain = frame.replace({"<br>": " ", r"</?\w+>": ""}, regex=True)
        print(plain.to_string(index=named), *([note] if note else []), sep="\n")
        return
    from IPython.display import HTML, display  # only a notebook has it

    html = frame.to_html(escape=False, border=0, justify="right", index=named)
    display(HTML(f"{html}<p><small>{note}</small></p>" if note else html))


def take_aways(*sentences: str) -> None:
    """End a chapter with what to remember: a numbered list."""
    if not distributed.current().is_main:
        return
    numbered = "\n".join(f"{number}. {metrics.with_dashes(text)}" for number, text in enumerate(sentences, 1))
    if not process.in_ipython():
        print(numbered)
        return
    from IPython.display import Markdown, display  # only a notebook has it

    display(Markdown(numbered))

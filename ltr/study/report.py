"""Tables of results, benchmarks and comparisons: `python -m ltr report exp/results.csv [--readme README.md]`.

Without `--readme` a file's tables are printed. With it, the part of the README between `<!-- results -->` and
`<!-- /results -->` (the file's name; of a results.csv `table-1`, `table-2`, `first-stages`, `choices`, `released` and
`max-norm` too, and `norms` where a norms.csv lies beside it) is written anew, so that every number there is one of the
file.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from ltr.errors import InputError
from ltr.runtime.options import Parser, file
from ltr.runtime.storage import check_columns, read_table, write_text
from ltr.study import other_tables, paper_tables
from ltr.study.maxnorm import NORMS


def tables(path: Path) -> dict[str, str]:
    """The Markdown of a file by its place in the README; its columns say which kind of file it is.

    Raises:
        InputError: there is no such file, or it is no table.
    """
    table = read_table(path, "results")
    if "ours_s" in table:
        return {path.stem: other_tables.benchmark_markdown(table)}
    if "published" in table:
        check_columns(table, path, "results", ("stage1_run", "tuned_on", "held_out", "run", "trained_by"))
        return {path.stem: other_tables.comparison_markdown(table)}
    if "temperature" in table:
        return {path.stem: other_tables.question_markdown(table)}
    if "lr x wd" in table:
        return {path.stem: other_tables.map_markdown(table)}
    check_columns(table, path, "results", ("dataset", "method", "mode", "selection", "tta"))
    made = {
        "table-1": paper_tables.table_1(table),
        "table-2": paper_tables.table_2(table),
        "first-stages": paper_tables.first_stages(table),
        "choices": paper_tables.choices(table),
        "released": paper_tables.table_of_released(table),
        "max-norm": paper_tables.max_norm_table(table, path.parent),
    }
    if (path.parent / NORMS).is_file():
        made["norms"] = paper_tables.norms_table(table, path.parent / NORMS)
    return made | {path.stem: paper_tables.markdown(table)}


def block(name: str) -> re.Pattern:
    """The part of a README that holds the table of a file."""
    return re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)


def replaced(path: Path, made: dict[str, str]) -> str:
    """A README's text with these tables in their places.

    Raises:
        InputError: it has no place for one.
    """
    if not path.is_file():
        raise InputError(f"--readme: there is no file {path}")
    text = path.read_text("utf-8")
    for name, table in made.items():
        place = block(name).search(text)
        if place is None:
            raise InputError(f"--readme: {path} has no <!-- {name} --> ... <!-- /{name} -->")
        text = f"{text[: place.start()]}{place[1]}{table}{place[2]}{text[place.end() :]}"
    return text


def main(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: a file is absent, or the README has no place for its table.
    """
    parser = Parser(prog="ltr report", about=__doc__)
    parser.add_argument("results", type=file, nargs="+", help="results.csv, comparison.csv, benchmarks.csv, ...")
    parser.add_argument("--readme", type=file, help="a file whose tables are written anew")
    options = parser.parse_args(arguments)
    made = {name: text for path in options.results for name, text in tables(path).items()}
    if options.readme is None:
        print("\n".join(filter(None, made.values())))
    else:
        write_text(options.readme, replaced(options.readme, made))

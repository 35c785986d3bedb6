"""Rows of tables as pandas has them, and their cells as Markdown has them."""

from typing import Any

import pandas as pd

from ltr import metrics

NOT_MEASURED = "not measured"


def where(table: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Rows that have these values; NaN and None are missing ones, and wanted as such."""
    for column, value in wanted.items():
        table = table[table[column].isna() if pd.isna(value) else table[column] == value]
    return table


def cell(values: pd.Series) -> str:
    """Mean over seeds in percent, with the deviation where there are several.

    Seeds without a number (training diverged) are left out, and the cell says of how many it is the mean.
    """
    known = values.dropna()
    text = metrics.or_dash(known.mean())
    if len(known) > 1:
        text += f" ± {known.std():.2f}"
    if 0 < len(known) < len(values):
        text += f" ({len(known)} of {len(values)} seeds)"
    return text


def spread(values: pd.Series, form: str) -> str:
    """Mean over orders of the images, and their deviation where there are several."""
    deviation = values.std()
    return metrics.or_dash(values.mean(), form) + ("" if pd.isna(deviation) else f" ± {deviation:{form.lstrip('+')}}")


def rounded(value: float) -> str:
    """A number to three digits; nothing where it was not measured."""
    return "" if pd.isna(value) else format(value, ",.3g" if abs(value) < 1000 else ",.0f")


def seeds(rows: pd.DataFrame) -> str:
    """Their number in words."""
    count = rows.seed.nunique()
    return "1 seed" if count == 1 else f"{count} seeds"


def in_markdown(table: pd.DataFrame) -> str:
    """A table whose cells are text, as it stands in a README."""
    lines = [[*table.columns], ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)

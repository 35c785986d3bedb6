"""One page on what balancing did: report.html, a single file with its figures inside, for a desk and for a phone."""

import base64
import io
from collections.abc import Sequence
from html import escape

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ltr import metrics, plots
from ltr.balance import BASELINES, FIRST, SCORES, Balanced
from ltr.metrics import GROUPS, Predictions, or_dash

SHOWN = 8  # classes that gain or lose most, and mistakes
DPI = 160  # sharp on a phone's screen
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#222;background:#fff;margin:0 auto;max-width:70rem;padding:1rem}
h1{font-size:1.6rem;line-height:1.2;margin:.5rem 0}h2{font-size:1.2rem;margin:2.2rem 0 .5rem;border-top:1px solid #ddd;
padding-top:1rem}p{margin:.5rem 0}.verdict{background:#eef4fa;border-left:4px solid #0072B2;padding:.6rem 1rem}
.warning{background:#fdf3e7;border-left:4px solid #D55E00;padding:.6rem 1rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums;margin:.5rem 0}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #e4e4e4;white-space:nowrap}
th{white-space:normal}
th:first-child,td:first-child{text-align:left}
td.text,.wordy :is(th,td):last-child{text-align:left;white-space:normal;min-width:8rem}
.facts td{text-align:left;white-space:normal}
tr.best{background:#eef4fa;font-weight:600}.pair{display:grid;grid-template-columns:1fr 1fr;gap:1rem}
.pair>*{min-width:0}figure{margin:.8rem 0}figcaption{font-size:.875rem;color:#555}img{width:100%;height:auto;
max-width:46rem}@media(max-width:45rem){.pair{grid-template-columns:1fr}body{padding:.75rem}
table{font-size:.8125rem}th,td{padding:.2rem .25rem}}
"""
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width,initial-scale=1"><style>{style}</style></head>
<body>{body}</body></html>
"""


def picture(figure: Figure, caption: str) -> str:
    """A figure as an image inside the page; the figure is closed."""
    with plots.drawing(), io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None}, pil_kwargs={"optimize": True})
        png = base64.b64encode(file.getvalue()).decode()
    plt.close(figure)
    text = escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{png}"><figcaption>{text}</figcaption></figure>'


def class_table(result: Balanced) -> pd.DataFrame:
    """Index, name, training images and group of each class, as figures take them."""
    counts = result.class_counts
    table = {"name": result.names, "count": counts, "group": metrics.group_of(counts)}
    return pd.DataFrame({"class_index": range(len(counts)), **table})


def class_figure(result: Balanced) -> str:
    """Accuracy of each class, before and after."""
    counts = class_table(result)
    found = {name: each.by_class for name, each in both(result).items()}
    parts = [counts[["class_index", "count"]].assign(model=name, accuracy=own) for name, own in found.items()]
    caption = "Accuracy by class: each point is a class, lines are moving averages."
    return picture(plots.per_class_accuracy(pd.concat(parts), counts), caption)


def confusion_figure(result: Balanced, name: str) -> str:
    """The confusion matrix before or after."""
    matrix = both(result)[name].confusion
    return picture(plots.confusion(matrix, class_table(result), result.tested_on), f"Confusion {name}.")


def both(result: Balanced) -> dict[str, Predictions]:
    """Predictions of the head as it was and of the best one, by what the page calls them."""
    return {"before": result.predictions[FIRST], f"after ({result.best})": result.predictions[result.best]}


def measures(result: Balanced) -> tuple[pd.Series, pd.Series]:
    """The table's rows of the head as it was and of the best one."""
    table = result.table.set_index("method")
    return table.loc[FIRST], table.loc[result.best]


def table_of(rows: Sequence[Sequence[str]], heading: Sequence[str], best: int | None = None) -> str:
    """A table of texts, which scrolls by itself where it is too wide; with a `best` row its last column is words."""
    lines = ["<tr>" + "".join(f"<th>{escape(text)}</th>" for text in heading) + "</tr>"]
    for number, row in enumerate(rows):
        kind = ' class="best"' if number == best else ""
        cells = (f"<td{' class=text' if len(text) > 24 else ''}>{escape(text)}</td>" for text in row)
        lines.append(f"<tr{kind}>{''.join(cells)}</tr>")
    words = "" if best is None else ' class="wordy"'
    return f'<div class="wide"><table{words}>{"".join(lines)}</table></div>'


def methods_table(result: Balanced) -> str:
    """All methods, the best one marked."""
    columns = ["validation", *GROUPS, "all", "class mean", "ECE"]
    rows = []
    for row in result.table.to_dict("records"):
        gained = [f"{or_dash(row[name], '+.1f')} ± {or_dash(row[f'{name} ±'], '.1f')}" for name in BASELINES]
        rows.append([row["method"], *gained, *(or_dash(row[name], ".1f") for name in columns), row["hyper-parameters"]])
    heading = ["method", "gain", "over logit adj. at 1", *columns, "hyper-parameters"]
    return table_of(rows, heading, list(result.table["method"]).index(result.best))


def groups(result: Balanced) -> str:
    """Accuracy of each group before and after, as a table and drawn."""
    before, after = measures(result)
    drawn = plots.group_bars(pd.DataFrame([before, after]).assign(model=list(both(result))))
    classes = result.per_class.groupby("group").size()
    rows = [
        [
            name,
            str(classes.get(name, "")),
            or_dash(before[name], ".1f"),
            or_dash(after[name], ".1f"),
            or_dash(after[name] - before[name], "+.1f"),
        ]
        for name in (*GROUPS, "all", "class mean")
    ]
    table = table_of(rows, ["", "classes", "before", "after", "change"])
    return table + picture(drawn, "Accuracy by training images of the class, and of all images.")


def classes_table(result: Balanced, gaining: bool) -> str:
    """The classes that gain most, or lose most."""
    table = result.per_class.assign(change=lambda rows: rows["accuracy after"] - rows["accuracy before"])
    table = table[table["change"] > 0 if gaining else table["change"] < 0]
    if table.empty:
        return f"<p>No class {'gains' if gaining else 'loses'}.</p>"
    table = table.sort_values("change", ascending=not gaining, kind="stable").head(SHOWN)
    rows = [
        [
            row["name"],
            or_dash(row["change"], "+.1f"),
            or_dash(row["accuracy before"], ".1f"),
            or_dash(row["accuracy after"], ".1f"),
        ]
        + [str(row["training images"])]
        for row in table.to_dict("records")
    ]
    return table_of(rows, ["gain most" if gaining else "lose most", "change", "before", "after", "trained on"])


def mistakes_table(result: Balanced) -> str:
    """The mistakes whose number changed most."""
    before, after = (each.confusion for each in both(result).values())
    change = (after - before) * ~np.eye(len(after), dtype=bool)
    order = np.argsort(-np.abs(change), axis=None, kind="stable")[:SHOWN]
    pairs = [divmod(int(cell), len(after)) for cell in order if change.flat[cell]]
    if not pairs:
        return ""
    rows = [
        [f"{result.names[true]} taken for {result.names[taken]}", str(before[true, taken]), str(after[true, taken])]
        for true, taken in pairs
    ]
    return table_of(rows, ["mistakes that changed most (images)", "before", "after"])


def about_table(result: Balanced) -> str:
    """What was balanced."""
    told, counts = result.about, result.class_counts
    images = ", ".join(f"{number:,} {name}" for name, number in told["images"].items())
    head = f"{told['features']:,} features, {len(counts):,} classes"
    if result.layer:
        head += f", layer {result.layer}"
    rows = [
        ["head", head],
        ["images", images],
        ["training images of a class", f"{counts.max():,} down to {counts.min():,}"],
        ["chosen by", f"{SCORES[result.score]} on the validation images"],
        ["numbers on", f"the {result.tested_on} images"],
    ]
    lines = (f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in rows)
    return f'<table class="facts">{"".join(lines)}</table>'


def cost(result: Balanced) -> str:
    """What balancing takes away, and the time it took."""
    before, after = measures(result)
    table = result.per_class
    change = table["accuracy after"] - table["accuracy before"]
    lines = [f"{int((change < 0).sum())} of {len(table)} classes lose and {int((change > 0).sum())} gain."]
    many, overall = (or_dash(after[name] - before[name], "+.1f") for name in ("many", "all"))
    if many != "–":
        lines.append(f"Common classes (more than 100 images) change by {many} points.")
    lines.append(f"Accuracy over all images, as often as they come in this set, changes by {overall} points.")
    fallen = (table["precision"] - table["precision before"]).dropna()
    if len(fallen) and result.best != FIRST:
        number = f"{int((fallen < 0).sum())} of {len(fallen)} classes"
        lines.append(f"Precision falls for {number}, as more images are taken for rare ones.")
    lines.append(f"Tuning took {result.table['seconds'].sum():.0f} s. The head has the same size and speed as before.")
    return f"<p>{escape(' '.join(lines))}</p>"


def calibration(result: Balanced) -> str:
    """Both calibration errors in a sentence, and confidence against accuracy."""
    before, after = measures(result)
    alone = result.about["temperature alone"]
    text = f"<p>Expected calibration error {or_dash(before['ECE'])} % before, {or_dash(alone['ECE'])} % by a "
    text += f"temperature alone ({alone['temperature']:.3g}), {or_dash(after['ECE'])} % after"
    if result.best != FIRST:
        value = f"{after['temperature']:.3g}"
        text += f"; a temperature of {value}, fitted on the validation images, is folded into the head"
    bins = [each.reliability().assign(model=name) for name, each in both(result).items()]
    caption = "Calibration: on the diagonal, confidence is accuracy."
    return f"{text}.</p>" + picture(plots.reliability(pd.concat(bins)), caption)


def notes(lines: Sequence[str], kind: str) -> str:
    """A box of sentences; none without sentences."""
    inside = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f'<div class="{kind}">{inside}</div>' if lines else ""


def html(result: Balanced) -> str:
    """The page: what was balanced, who gains and loses, confusion, calibration and the cost."""
    names = list(both(result))
    title = "Left as it was" if result.best == FIRST else f"Balanced by {result.best}"
    title = escape(title if result.worth_it or result.best == FIRST else f"{title}: not worth it")
    parts = [
        f"<h1>{title}</h1>",
        notes(result.verdict, "verdict"),
        notes(result.warnings, "warning"),
        "<h2>What was balanced</h2>" + about_table(result),
        "<h2>Methods</h2><p>Percent; gains in points of the score, ± a paired standard error.</p>"
        + methods_table(result),
        "<h2>Who gains, who loses</h2>" + groups(result) + class_figure(result),
        f'<div class="pair">{classes_table(result, True)}{classes_table(result, False)}</div>',
        "<h2>Confusion</h2>",
        f'<div class="pair">{"".join(confusion_figure(result, name) for name in names)}</div>' + mistakes_table(result),
        "<h2>Calibration</h2>" + calibration(result),
        "<h2>What it costs</h2>" + cost(result),
    ]
    return PAGE.format(title=title, style=STYLE, body="".join(parts))

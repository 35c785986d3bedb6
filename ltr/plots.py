"""Figures of the notebooks: data frames or arrays in, a matplotlib Figure out.

Every function draws under its own `STYLE` and leaves matplotlib's global settings alone. Colours are
those of Okabe and Ito (2008), which colour-blind readers tell apart; line style, marker or hatch always
repeats what the colour says, so that a grey print reads the same. Models keep the order in which a table
first names them, which also fixes their colours: name them in the same order to compare two figures. Names
of models and classes are drawn as they stand, `$` included.

A group without classes and a model whose training diverged have accuracies of NaN: a dash, a line less, or a
sentence in the place of what cannot be drawn.

Accuracies are in percent. "The paper" is Alshammari et al., CVPR 2022 (arXiv 2203.14197).
"""

import functools
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image

from ltr.runtime import distributed

DPI = 90
STYLE: dict[str, Any] = {
    "figure.dpi": DPI,
    "savefig.facecolor": "white",
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "lines.linewidth": 1.6,
    "hatch.linewidth": 0.7,
}

# Blue, vermilion, green, purple, orange, black, sky blue, yellow.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000", "#56B4E9", "#F0E442")
LINES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)), (0, (9, 2)))
MARKS = "osD^"
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "oo")

GROUPS = ("many", "medium", "few")
GROUP_COLORS = {"many": "#0072B2", "medium": "#E69F00", "few": "#D55E00", "all": "#000000"}
GROUP_MARKERS = {"many": "o", "medium": "s", "few": "^", "all": "D"}
GROUP_LINES = {"many": LINES[0], "medium": LINES[1], "few": LINES[2], "all": LINES[3]}
GROUP_NAMES = {"many": "many (> 100 images)", "medium": "medium (20–100)", "few": "few (< 20)"}

CLASS_AXIS = "class, from common to rare"
NAMED = 10  # classes at each end of an axis that have their names
ACCURACY_AXIS = "accuracy (%)"
NO_CLASS, DIVERGED = "no class in this group", "training diverged"
SWEEP_TICKS = 8  # so many values of a swept setting have each its own tick
FIGURE_BYTES = 45_000  # a notebook keeps its figures as text, so a large one bloats it
MAP_PLACE = ["epochs", "batch", "warm-up", "lr"]  # what a column of the map of learning rates has in common
MAP_PRODUCT = 0.01 * 5e-3
NON_INTERACTIVE = frozenset({"agg", "cairo", "pdf", "pgf", "ps", "svg", "template"})

P = ParamSpec("P")


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Run `draw` under `STYLE`; lay the figure out there too, as ticks take their style when first drawn."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with plt.rc_context(STYLE):
            fig = draw(*args, **kwargs)
            fig.draw_without_rendering()
        return fig

    return styled


def _models(table: pd.DataFrame) -> list[str]:
    """Names in column `model`, in the order of their first row."""
    return list(dict.fromkeys(table["model"]))


def _literal(name: Any) -> str:
    """A name as matplotlib draws it unchanged: between two bare `$` it would read mathematics."""
    return str(name).replace("$", r"\$")


def _line_style(index: int) -> dict[str, Any]:
    """Colour and line style of the model at `index`; the pair repeats after 24 models."""
    return {"color": COLORS[index % len(COLORS)], "linestyle": LINES[index % len(LINES)]}


def _common_to_rare(table: pd.DataFrame) -> pd.DataFrame:
    """Rows sorted by falling `count` (by `class_index` alone where there is none)."""
    if "count" not in table:
        return table.sort_values("class_index", kind="stable").reset_index(drop=True)
    return table.sort_values(["count", "class_index"], ascending=[False, True]).reset_index(drop=True)


def _moving_average(values: pd.Series) -> pd.Series:
    """Centred mean over 9 of 100 classes (3 of 20), with a shorter window at both ends."""
    window = max(3, round(0.09 * len(values)) | 1)  # | 1 makes it odd, hence symmetric
    return values.rolling(window, center=True, min_periods=1).mean()


def _legend_below(fig: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """One legend under the axes, in as many columns as fit the figure's width; none where nothing was drawn."""
    if not labels:
        return
    widths = [0.65 + 0.066 * len(label) for label in labels]  # inches: line and gaps, then the letters
    columns = len(labels)
    while columns > 1 and sum(map(max, np.array_split(widths, columns))) > fig.get_figwidth() - 0.2:
        columns -= 1
    rows = math.ceil(len(labels) / columns)
    fig.legend(handles, labels, loc="outside lower center", ncols=math.ceil(len(labels) / rows))


def _mark_groups(axes: Axes, counts: pd.DataFrame) -> None:
    """Light vertical lines between many, medium and few, with their names above the axes."""
    groups = list(_common_to_rare(counts)["group"])
    for group in GROUPS:
        places = [place for place, name in enumerate(groups) if name == group]
        if not places:
            continue
        if places[0] > 0:
            axes.axvline(places[0] - 0.5, color="0.75", linewidth=1, zorder=0)
        middle = (places[0] + places[-1]) / 2
        axes.text(middle, 1.01, group, transform=axes.get_xaxis_transform(), ha="center", color="0.4", size=8)


def _panels(number: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A grid of `number` panels, three to a row at most, each `width` by `height` inches, sharing y."""
    columns = 2 if number == 4 else min(number, 3)
    rows = math.ceil(number / columns)
    size = (width * columns + 0.6, height * rows + 0.4)
    fig, grid = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for axes in panels[number:]:
        axes.remove()
    return fig, panels[:number]


def _class_ticks(axis: Axis) -> None:
    """Whole numbers at round steps for an axis of classes."""
    axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _name_classes(axes: Axes, counts: pd.DataFrame | None) -> None:
    """Names of the commonest and the rarest classes, numbers between them; without names numbers alone."""
    if counts is None or "name" not in counts or len(counts) < 3:
        _class_ticks(axes.xaxis)
        return
    names = [_literal(name).replace("_", " ") for name in _common_to_rare(counts)["name"]]
    shown = ends(range(len(names)), NAMED)
    between = [place for place in range(0, len(names), 20) if NAMED + 3 < place < len(names) - NAMED - 3]
    places = sorted({*shown, *between})
    axes.set_xticks(places, [names[place] if place in shown else str(place) for place in places])
    for place, label in zip(places, axes.get_xticklabels(), strict=True):
        label.set(rotation=90 if place in shown else 0, size=6.5 if place in shown else 8)


def _log_ticks(axis: Axis) -> None:
    """Plain numbers at 1, 2, 5, 10, 20, ... for a log axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _tick(value: Any) -> str:
    """A setting's value as a tick label: numbers short, everything else as it prints."""
    return f"{value:g}" if isinstance(value, (int, float, np.number)) else _literal(value)


def _digits(value: float, decimals: int = 1) -> str:
    """A number with so many decimals; a dash where there is none."""
    return "–" if np.isnan(value) else f"{value:.{decimals}f}"


def _say(axes: Axes, words: str) -> None:
    """A sentence in the middle of axes that have nothing to show."""
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color="0.4")


def _largest(arrays: Iterable[np.ndarray]) -> float | None:
    """The largest of all finite values; None, for matplotlib to choose a scale, where training diverged."""
    values = np.concatenate([np.ravel(array) for array in arrays])
    values = values[np.isfinite(values)]
    return float(values.max()) if len(values) else None


def ends(order: Sequence[int], number: int = 3) -> list[int]:
    """The first and the last `number` of a sequence, each element once where there are fewer than twice as many.

    Args:
        order: classes, say from common to rare.
        number: from each end.
    """
    order = list(order)
    return order[:number] + order[max(number, len(order) - number) :]


@_styled
def class_counts(counts: pd.DataFrame) -> Figure:
    """Training images of each class, on a log axis: the long tail.

    Args:
        counts: columns class_index, count, group ('many', 'medium' or 'few'), one row a class.
    """
    table = _common_to_rare(counts)
    fig, axes = plt.subplots(figsize=(9.0, 3.6))
    for group in GROUPS:
        rows = table[table["group"] == group]
        color, marker = GROUP_COLORS[group], GROUP_MARKERS[group]
        label = f"{GROUP_NAMES[group]}: {len(rows)} {'class' if len(rows) == 1 else 'classes'}"
        axes.bar(rows.index, rows["count"], width=0.85, color=color, alpha=0.45)
        axes.plot(rows.index, rows["count"], marker, color=color, markersize=3.5, label=label)
    axes.set(yscale="log", xlabel=CLASS_AXIS, ylabel="training images", xlim=(-0.8, len(table) - 0.2))
    axes.set_ylim(bottom=max(0.8, 0.5 * table["count"].min()))
    _log_ticks(axes.yaxis)
    _name_classes(axes, table)
    axes.legend(loc="upper right", markerscale=1.6, handlelength=1)
    return fig


@_styled
def montage(images: np.ndarray, row_labels: Sequence[str], title: str | None = None) -> Figure:
    """Example images, a row to a class, each pixel drawn as exactly 1 or 2 x 2 pixels of the figure.

    Args:
        images: uint8 [R, K, H, W, 3], K images of each of R classes.
        row_labels: R names, such as "apple (500)", drawn as they stand.
        title: a line above the images, drawn so too.
    """
    rows, _, height, _, _ = images.shape
    scale, gap, dpi = (2 if height <= 64 else 1), 4, DPI
    tiles = images.repeat(scale, axis=2).repeat(scale, axis=3)
    tiles = np.pad(tiles, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    canvas = np.concatenate([np.concatenate(list(row), axis=1) for row in tiles])  # [R(H+gap), K(W+gap), 3]
    left, top = 12 + 7 * max(len(label) for label in row_labels), (22 if title else gap)
    size = np.array([left + canvas.shape[1], top + canvas.shape[0]])
    fig = plt.figure(figsize=tuple(size / dpi), layout="none")
    axes = fig.add_axes((left / size[0], 0, canvas.shape[1] / size[0], canvas.shape[0] / size[1]))
    axes.imshow(canvas, interpolation="nearest")
    axes.axis("off")
    for row, label in enumerate(row_labels):
        middle = (row + 0.5) * canvas.shape[0] / rows - gap / 2
        axes.text(-8, middle, _literal(label), ha="right", va="center")
    if title:
        axes.text(0, -8, _literal(title), va="bottom")
    return fig


@_styled
def learning_curves(history: pd.DataFrame) -> Figure:
    """Accuracy over the epochs, train dashed and test solid, one panel a model.

    Args:
        history: columns model, epoch, train_accuracy, test_accuracy (NaN where an epoch was not tested).
            The number in a panel is the last tested epoch's.
    """
    names = _models(history)
    width, height = (4.6, 2.7) if len(names) == 1 else (2.7, 2.2)
    fig, panels = _panels(len(names), width, height)
    for index, (name, axes) in enumerate(zip(names, panels, strict=True)):
        rows, color = history[history["model"] == name].sort_values("epoch"), COLORS[index % len(COLORS)]
        tested = rows.dropna(subset=["test_accuracy"])
        axes.plot(rows["epoch"], rows["train_accuracy"], "--", color=color, linewidth=1.2)
        axes.plot(tested["epoch"], tested["test_accuracy"], "-", color=color, linewidth=2)
        if len(tested):
            epoch, last = tested["epoch"].iloc[-1], tested["test_accuracy"].iloc[-1]
            axes.plot(epoch, last, "o", color=color, markersize=4, clip_on=False)
            axes.annotate(f"{last:.1f}", (epoch, last), (5, 0), textcoords="offset points", va="center")
        elif rows["train_accuracy"].isna().all():
            _say(axes, DIVERGED)
        axes.set(title=_literal(name), xlabel="epoch", ylim=(0, 102))
        axes.set_ylabel(ACCURACY_AXIS if axes.get_subplotspec().is_first_col() else "")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        axes.grid(axis="y")
    train = Line2D([], [], color="0.3", linestyle="--", linewidth=1.2)
    test = Line2D([], [], color="0.3", linestyle="-", linewidth=2)
    _legend_below(fig, [train, test], ["training images", "test images (number: last epoch)"])
    return fig


@_styled
def loss_curves(history: pd.DataFrame) -> Figure:
    """Mean training loss by epoch, models overlaid, beside the learning rate that all of them have.

    Args:
        history: columns model, epoch, train_loss, lr.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(8.2, 2.8), width_ratios=(2, 1))
    for index, name in enumerate(_models(history)):
        rows = history[history["model"] == name].sort_values("epoch")
        left.plot(rows["epoch"], rows["train_loss"], **_line_style(index), label=_literal(name))
    right.plot(rows["epoch"], rows["lr"], color="0.3")
    left.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
    right.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    left.grid(axis="y")
    if history["train_loss"].isna().all():
        _say(left, DIVERGED)
    _legend_below(fig, *left.get_legend_handles_labels())
    return fig


@_styled
def regions(panels: dict[str, tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], np.ndarray]]]) -> Figure:
    """What a classifier answers in the plane, and the points that it learned from, a panel each.

    Args:
        panels: title -> points [N, 2], their labels [N], and what gives the label of points [M, 2].
    """
    fig, grid = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 3.3), sharex=True, sharey=True)
    every = np.concatenate([points for points, _, _ in panels.values()])
    reach = 1.05 * np.abs(every).max()
    ticks = np.linspace(-reach, reach, 241)
    plane = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    look = {"extent": (-reach, reach) * 2, "origin": "lower", "alpha": 0.22, "interpolation": "nearest"}
    for (title, (points, labels, answer)), axes in zip(panels.items(), np.atleast_1d(grid), strict=True):
        answers = answer(plane).reshape(len(ticks), len(ticks))
        palette = ListedColormap(COLORS[: int(labels.max()) + 1])
        axes.imshow(answers, cmap=palette, vmin=0, vmax=labels.max(), **look)
        for k in np.unique(labels):
            mine = points[labels == k]
            axes.plot(*mine.T, MARKS[k % len(MARKS)], color=COLORS[k], markersize=2.5, alpha=0.6)
        axes.set(title=_literal(title), xticks=[], yticks=[], aspect="equal")
    return fig


@_styled
def projections(before: np.ndarray, after: dict[str, np.ndarray], radius: float) -> Figure:
    """Vectors in the plane before and after each of some rules, a panel a rule, with the ball's edge.

    Args:
        before: [C, 2].
        after: rule -> [C, 2].
        radius: of the circle that is drawn.
    """
    fig, grid = plt.subplots(1, len(after), figsize=(2.9 * len(after), 3.0), sharex=True, sharey=True)
    reach = 1.1 * max(np.abs(each).max() for each in (before, *after.values()))
    for (title, vectors), axes in zip(after.items(), np.atleast_1d(grid), strict=True):
        axes.add_patch(Circle((0, 0), radius, facecolor="0.94", edgecolor="0.6"))
        for index, (old, new) in enumerate(zip(before, vectors, strict=True)):
            color = COLORS[index % len(COLORS)]
            axes.plot(*old, "o", color=color, markerfacecolor="none", markersize=6)
            axes.annotate("", new, (0, 0), arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 1.6})
        axes.set(
            title=_literal(title), xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[]
        )
        axes.spines[:].set_visible(False)
    return fig


@_styled
def per_class_accuracy(table: pd.DataFrame, counts: pd.DataFrame | None = None) -> Figure:
    """Accuracy of each class, common to rare, models overlaid on the class counts (grey area, right axis).

    Points are classes; lines are moving averages over 9 of 100 classes. As the figure of per-class
    accuracy in the paper and in its released code's readme.

    Args:
        table: columns model, class_index, count, accuracy (percent), one row a model and class.
        counts: as for `class_counts`; where given, lines separate many, medium and few.
    """
    names = _models(table)
    fig, axes = plt.subplots(figsize=(9.0, 4.2))
    behind = axes.twinx()
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
    for index, name in enumerate(names):
        rows = _common_to_rare(table[table["model"] == name])
        style = _line_style(index)
        axes.plot(rows.index, rows["accuracy"], ".", color=style["color"], markersize=4, alpha=0.25)
        axes.plot(rows.index, _moving_average(rows["accuracy"]), **style, linewidth=2, label=_literal(name))
    images = _common_to_rare(table[table["model"] == names[0]])["count"]
    behind.fill_between(images.index, images, 0.5, step="mid", color="0.92", linewidth=0)
    behind.set(yscale="log", ylim=(1, images.max() * 1.1), ylabel="training images (grey area)")
    _log_ticks(behind.yaxis)
    behind.spines["right"].set_visible(True)
    axes.set(xlabel=CLASS_AXIS, ylabel=ACCURACY_AXIS, ylim=(-2, 102), xlim=(-0.5, len(images) - 0.5))
    _name_classes(axes, counts)
    if counts is not None:
        _mark_groups(axes, counts)
    _legend_below(fig, *axes.get_legend_handles_labels())
    return fig


@_styled
def class_differences(table: pd.DataFrame, base: str, counts: pd.DataFrame) -> Figure:
    """Accuracy of each class less that of another model, common to rare: who gains, and who pays.

    Bars are the classes of one model, points where there are several; lines are moving averages.

    Args:
        table: columns model, class_index, count, accuracy (percent), one row a model and class.
        base: the model that the others are compared with.
        counts: as for `class_counts`.
    """
    fig, axes = plt.subplots(figsize=(9.0, 3.9))
    before = table[table["model"] == base].set_index("class_index")["accuracy"]
    names = [name for name in _models(table) if name != base]
    for index, name in enumerate(names, start=1):
        rows = _common_to_rare(table[table["model"] == name])
        gains, style = rows["accuracy"] - rows["class_index"].map(before), _line_style(index)
        if len(names) == 1:
            axes.bar(rows.index, gains, width=0.85, color=style["color"], alpha=0.3)
        else:
            axes.plot(rows.index, gains, ".", color=style["color"], markersize=4, alpha=0.25)
        axes.plot(rows.index, _moving_average(gains), **style, linewidth=2, label=_literal(name))
    axes.axhline(0, color="0.3", linewidth=1)
    axes.set(xlabel=CLASS_AXIS, ylabel=f"points above {_literal(base)}", xlim=(-0.5, len(before) - 0.5))
    axes.grid(axis="y")
    _name_classes(axes, counts)
    _mark_groups(axes, counts)
    _legend_below(fig, *axes.get_legend_handles_labels())
    return fig


@_styled
def class_norms(table: pd.DataFrame, counts: pd.DataFrame | None = None, log: bool = False) -> Figure:
    """L2 norm of each class's row of the classifier, models overlaid: balanced weights are a flat line.

    As the paper's figure of per-class weight norms.

    Args:
        table: columns model, class_index, norm, one row a model and class.
        counts: as for `class_counts`; where given, it sorts the classes (otherwise class_index does) and
            lines separate many, medium and few.
        log: a log axis, for models whose norms differ tenfold.
    """
    return _class_lines(table, "norm", "L2 norm of the class's weights", counts, log)


@_styled
def class_logits(table: pd.DataFrame, counts: pd.DataFrame) -> Figure:
    """Mean logit of each class over its own test images, and over all others, common to rare.

    Args:
        table: columns model (one alone), class_index, own, others; see `analysis.mean_logits`.
        counts: as for `class_counts`.
    """
    kinds = {"own": "images of the class", "others": "images of other classes"}
    long = table.melt(["class_index"], list(kinds), "model", "logit")
    fig = _class_lines(long.replace({"model": kinds}), "logit", "mean logit of the class", counts, log=False)
    axes = fig.axes[0]
    axes.axhline(0, color="0.3", linewidth=1)
    axes.set_ylim(auto=True)
    axes.autoscale(axis="y")
    return fig


@_styled
def marginal_likelihoods(table: pd.DataFrame, counts: pd.DataFrame) -> Figure:
    """Probability that a model gives each class over a balanced test set (paper, figure 6): flat is balanced.

    Args:
        table: columns model, class_index, likelihood (sums to 1 over the classes), one row a model and class.
        counts: as for `class_counts`; it sorts the classes.
    """
    classes = table["class_index"].nunique()
    scaled = table.assign(share=classes * table["likelihood"])
    fig = _class_lines(scaled, "share", "marginal likelihood x C", counts, log=True)
    fig.axes[0].axhline(1, color="0.5", linewidth=1, zorder=0)
    return fig


def _class_lines(table: pd.DataFrame, column: str, label: str, counts: pd.DataFrame | None, log: bool) -> Figure:
    """A value of each class, common to rare, a line a model."""
    if counts is not None:
        table = table.drop(columns="count", errors="ignore")
        table = table.merge(counts[["class_index", "count"]], on="class_index")
    fig, axes = plt.subplots(figsize=(9.0, 3.9))
    for index, name in enumerate(_models(table)):
        rows = _common_to_rare(table[table["model"] == name])
        axes.plot(rows.index, rows[column], **_line_style(index), label=_literal(name))
    classes = table["class_index"].nunique()
    axes.set(xlabel=CLASS_AXIS, ylabel=label, xlim=(-0.5, classes - 0.5))
    _name_classes(axes, counts)
    axes.grid(axis="y")
    if table[column].isna().all():
        _say(axes, DIVERGED)
    if log and (table[column] > 0).any():
        axes.set_yscale("log")
        _log_ticks(axes.yaxis)
    else:
        axes.set_ylim(bottom=0)
    if counts is not None:
        _mark_groups(axes, counts)
    _legend_below(fig, *axes.get_legend_handles_labels())
    return fig


@_styled
def filter_norms(table: pd.DataFrame) -> Figure:
    """Mean and variance of the filters' norms, layer by layer (paper, figure 3).

    Args:
        table: columns model, layer (from 1 on), mean, variance.
    """
    fig, panels = plt.subplots(1, 2, figsize=(7.2, 3.0))
    for axes, column in zip(panels, ("mean", "variance"), strict=True):
        for index, name in enumerate(_models(table)):
            rows = table[table["model"] == name]
            axes.plot(rows["layer"], rows[column], **_line_style(index), label=_literal(name))
        axes.set(
            xlabel="convolution, from the first to the last", ylabel=f"{column} of the filters' norms", yscale="log"
        )
        axes.grid(axis="y")
    _log_ticks(panels[0].yaxis)  # the variance spans decades, which need no help
    _legend_below(fig, *panels[0].get_legend_handles_labels())
    return fig


@_styled
def weight_rays(norms: dict[str, np.ndarray], epoch: int) -> Figure:
    """The norm of each class's weights as a ray, one panel a model: balanced weights fill a disc.

    Classes go clockwise from the top, from common to rare. The figures of all epochs make an animation.

    Args:
        norms: model -> [E, C], row 0 before training, common classes first.
        epoch: the row to draw; the scale is that of all rows and models.
    """
    size = (2.2 * len(norms), 2.7)
    fig, panels = plt.subplots(1, len(norms), figsize=size, subplot_kw={"projection": "polar"})
    top = _largest(norms.values())
    for axes, (name, values) in zip(np.atleast_1d(panels), norms.items(), strict=True):
        classes = values.shape[1]
        angles = 2 * np.pi * np.arange(classes) / classes
        colors = plt.get_cmap("viridis", 5)(np.linspace(0, 1, classes))  # few colours keep an animation small
        lengths = values[min(epoch, len(values) - 1)]
        axes.vlines(angles, 0, np.where(np.isfinite(lengths), lengths, 0), colors=colors, linewidth=2)
        if not np.isfinite(lengths).any():
            _say(axes, DIVERGED)
        axes.set(ylim=(0, top), xticks=[], title=_literal(name))
        axes.yaxis.set_major_locator(MaxNLocator(3, prune="lower"))
        axes.set_rlabel_position(350)
        axes.tick_params(axis="y", labelsize=7)
        axes.set_theta_zero_location("N")
        axes.set_theta_direction(-1)
        axes.spines["polar"].set_color("0.8")
    ends = Line2D([], [], color=colors[0], linewidth=3), Line2D([], [], color=colors[-1], linewidth=3)
    _legend_below(fig, ends, ["common", "rare"])
    fig.suptitle(f"epoch {epoch}", size=9)
    return fig


@_styled
def norm_evolution(norms: dict[str, np.ndarray], shared: bool = True, first_epoch: int = 1) -> Figure:
    """Heat map of the norms of the classifier's rows, epoch by class, one panel a model (paper, figure 2).

    Args:
        norms: model -> [E, C], the norm of each class's weights after each epoch, common classes first.
        shared: one colour scale for all panels; otherwise each panel has its own bar.
        first_epoch: the epoch of row 0.
    """
    width, height = (4.8, 2.8) if len(norms) == 1 else (2.6, 2.2)
    fig, panels = _panels(len(norms), width, height)
    top = _largest(norms.values())
    label = "norm of the class's weights"
    for (name, values), axes in zip(norms.items(), panels, strict=True):
        epochs, classes = values.shape
        extent = (first_epoch - 0.5, first_epoch + epochs - 0.5, classes - 0.5, -0.5)
        limits = {"vmin": 0, "vmax": top} if shared else {"vmin": 0}
        look = {"cmap": "viridis", "interpolation": "nearest"}
        image = axes.imshow(values.T, aspect="auto", extent=extent, **look, **limits)
        if _largest([values]) is None:
            _say(axes, DIVERGED)
        axes.set(title=_literal(name), xlabel="epoch")
        axes.set_ylabel(CLASS_AXIS if axes.get_subplotspec().is_first_col() else "")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
        _class_ticks(axes.yaxis)
        if not shared:
            fig.colorbar(image, ax=axes, label=label if axes.get_subplotspec().is_last_col() else "")
    if shared:
        fig.colorbar(image, ax=panels, label=label, aspect=30)
    return fig


@_styled
def group_bars(table: pd.DataFrame) -> Figure:
    """Accuracy on many, medium, few and all classes, a bar for each model: Table 1 of the paper, drawn.

    Args:
        table: columns model, many, medium, few, all (percent; NaN for a group without classes, shown as "–").
    """
    columns, number = [*GROUPS, "all"], len(table)
    fig, axes = plt.subplots(figsize=(min(max(5.6, 1.2 + 1.2 * number), 8.0), 3.4))
    width, turn = 0.84 / number, 90 if number > 6 else 0
    for index, (_, row) in enumerate(table.iterrows()):
        places = np.arange(len(columns)) + (index - (number - 1) / 2) * width
        values = row[columns].to_numpy(dtype=float)
        color, hatch = COLORS[index % len(COLORS)], HATCHES[index % len(HATCHES)]
        look = {"facecolor": color, "hatch": hatch, "edgecolor": "white", "label": _literal(row["model"])}
        axes.bar(places, values, 0.92 * width, **look)
        for place, value in zip(places, values, strict=True):
            text = _digits(value)
            above = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "va": "bottom"}
            axes.annotate(text, (place, np.nan_to_num(value)), **above, size=7, rotation=turn)
    axes.set(ylabel=ACCURACY_AXIS, xlim=(-0.5, len(columns) - 0.5))
    axes.set_xticks(range(len(columns)), [*GROUP_NAMES.values(), "all"])
    axes.tick_params(axis="x", length=0)
    axes.margins(y=0.12 if turn else 0.08)
    if table[columns].isna().all(axis=None):
        axes.set_ylim(0, 100)
    _legend_below(fig, *axes.get_legend_handles_labels())
    return fig


def _log_settings(axes: Axes, values: pd.Series) -> None:
    """A log axis for a setting; where a value is 0, linear below the smallest positive one."""
    positive = values[values > 0]
    if positive.empty:
        return
    if len(positive) < len(values):
        axes.set_xscale("symlog", linthresh=positive.min(), linscale=0.5)
    else:
        axes.set_xscale("log")
    tried = sorted(values.unique())
    if len(tried) <= SWEEP_TICKS:  # else powers of ten, which need not be among the values
        axes.set_xticks(tried, [_tick(value) for value in tried])
        axes.xaxis.set_minor_formatter(NullFormatter())


@_styled
def sweep(
    table: pd.DataFrame, x: str, xlabel: str, best: float | dict[str, float] | None = None, log: bool = False
) -> Figure:
    """Accuracy of each group over a swept setting; a vertical line marks the choice.

    As the paper's weight-decay sweep.

    Args:
        table: columns `x`, many, medium, few, all (percent; a group of NaN alone is left out).
        x: the column with the swept values.
        xlabel: the name of the setting, with its unit.
        best: the chosen value; or several, by what they are.
        log: a log axis; where a value is 0 (no weight decay), linear below the smallest positive value.
    """
    rows = table.sort_values(x)
    fig, axes = plt.subplots(figsize=(5.6, 3.6))
    measured = [group for group in [*GROUPS, "all"] if rows[group].notna().any()]
    for group in measured:
        color, line, marker = GROUP_COLORS[group], GROUP_LINES[group], GROUP_MARKERS[group]
        name = GROUP_NAMES.get(group, group)
        axes.plot(rows[x], rows[group], color=color, linestyle=line, marker=marker, label=name)
    if not measured:
        _say(axes, DIVERGED)
    if log:
        _log_settings(axes, rows[x])
    marks = best if isinstance(best, dict) else {} if best is None else {"chosen": best}
    for name, value in marks.items():
        axes.axvline(value, color="0.5", linewidth=1, zorder=0)
        axes.text(value, 1.01, f"{name}: {value:g}", transform=axes.get_xaxis_transform(), ha="center", size=8)
    axes.set(xlabel=xlabel, ylabel=ACCURACY_AXIS)
    axes.grid(axis="y")
    _legend_below(fig, *axes.get_legend_handles_labels())
    return fig


@_styled
def lines(
    table: pd.DataFrame, x: str, y: str, xlabel: str, ylabel: str, least: bool = False, log: tuple[str, ...] = ()
) -> Figure:
    """A value over another, a line a model.

    Args:
        table: columns model, `x` and `y`.
        x, y: columns.
        xlabel, ylabel: names of the axes, with their units.
        least: a dot at each line's least value.
        log: "x", "y": axes that are logarithmic.
    """
    fig, axes = plt.subplots(figsize=(6.4, 3.7))
    for index, name in enumerate(_models(table)):
        rows = table[table["model"] == name].dropna(subset=[y]).sort_values(x)
        style = _line_style(index)
        axes.plot(rows[x], rows[y], **style, label=_literal(name))
        if least and len(rows):
            lowest = rows.loc[rows[y].idxmin()]
            axes.plot(lowest[x], lowest[y], MARKS[index % len(MARKS)], color=style["color"], markersize=6)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(axis="y")
    if table[y].isna().all():
        _say(axes, DIVERGED)
    else:
        axes.set(**{f"{axis}scale": "log" for axis in log})
        for axis in log:
            _log_ticks(axes.xaxis if axis == "x" else axes.yaxis)
    _legend_below(fig, *axes.get_legend_handles_labels())
    return fig


@_styled
def heatmap(
    table: pd.DataFrame, xlabel: str, ylabel: str, label: str, chosen: tuple[float, float] | None = None
) -> Figure:
    """Annotated heat map over a grid of two settings.

    Args:
        table: one setting in the columns, the other in the index, a number in each cell (NaN: not run).
        xlabel: the name of the columns' setting.
        ylabel: the name of the index's setting.
        label: what a cell holds, with its unit.
        chosen: a row's and a column's value, whose cell is framed.
    """
    values = table.to_numpy(dtype=float)
    rows, columns = values.shape
    fig, axes = plt.subplots(figsize=(2.0 + 0.62 * columns, max(2.4, 1.0 + 0.42 * rows)))
    image = axes.imshow(values, aspect="auto", cmap="cividis", interpolation="nearest")
    for (row, column), value in np.ndenumerate(values):
        text = _digits(value)
        dark = not np.isnan(value) and image.norm(value) < 0.55
        axes.text(column, row, text, ha="center", va="center", size=8, color="white" if dark else "black")
    axes.set_xticks(range(columns), [_tick(name) for name in table.columns])
    axes.set_yticks(range(rows), [_tick(name) for name in table.index])
    if chosen is not None:
        y, x = list(table.index).index(chosen[0]), list(table.columns).index(chosen[1])
        axes.add_patch(Rectangle((x - 0.47, y - 0.44), 0.94, 0.88, fill=False, edgecolor=COLORS[1], linewidth=2))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    fig.colorbar(image, ax=axes, label=label)
    return fig


def _map_panel(
    axes: Axes, cells: pd.DataFrame, places: Sequence[tuple], decays: Sequence[float], **scale: float
) -> Any:
    """One side of `lr_wd_map`: a cell's colour is its accuracy, below which stand those of the groups."""
    values = np.full((len(decays), len(places)), np.nan)
    for row in cells.to_dict("records"):
        x, y = places.index(tuple(row[name] for name in MAP_PLACE)), decays.index(row["weight decay"])
        values[y, x] = row["all"]
    image = axes.imshow(values, aspect="auto", cmap="cividis", origin="lower", interpolation="none", **scale)
    for row in cells.to_dict("records"):
        x, y = places.index(tuple(row[name] for name in MAP_PLACE)), decays.index(row["weight decay"])
        dark = not np.isnan(row["all"]) and image.norm(row["all"]) < 0.55
        look = {"ha": "center", "color": "white" if dark else "black"}
        axes.text(x, y, _digits(row["all"]), va="bottom", size=9, **look)
        axes.text(x, y, " / ".join(_digits(row[group], 0) for group in GROUPS), va="top", size=7, **look)
        if np.isclose(row["lr x wd"], MAP_PRODUCT):
            edge = {"fill": False, "edgecolor": COLORS[1], "linewidth": 2}
            axes.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, **edge))
    axes.set_facecolor("0.93")  # of cells that no run has
    axes.set_yticks(range(len(decays)), [_tick(decay) for decay in decays])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image


@_styled
def lr_wd_map(table: pd.DataFrame, before: str = "first stage alone", after: str = "logit adjustment") -> Figure:
    """Accuracy over learning rate and weight decay, before and after a classifier is balanced; nothing in between.

    A cell holds the accuracy over all classes, and below it many / medium / few. A frame marks the cells at the product
    of the paper's learning rate and weight decay.

    Args:
        table: of `ltr map`: columns lr, weight decay, lr x wd, batch, warm-up, epochs, classifier, many, medium, few,
            all (percent), a row a run and classifier. Runs of another batch, warm-up or length have columns of their
            own; those that differ in what the column `further` names are left out.
        before, after: classifiers.
    """
    table = table[table["further"].fillna("") == ""]
    places = sorted({tuple(row) for row in table[MAP_PLACE].itertuples(index=False)})
    decays = sorted(table["weight decay"].unique())
    shown = table[table["classifier"].isin((before, after))]["all"]
    usual = Counter(tuple(row) for row in table[MAP_PLACE[:-1]].itertuples(index=False)).most_common(1)[0][0]
    names = []
    for *how, lr in places:
        other = [f"{name} {own:g}" for name, own, most in zip(MAP_PLACE, how, usual, strict=False) if own != most]
        names.append("\n".join([f"{lr:g}", *other]))
    unless = ", ".join(f"{name} {value:g}" for name, value in zip(MAP_PLACE, usual, strict=False))
    size = (1.6 + 1.7 * len(places), 1.2 + 0.54 * len(decays))
    fig, panels = plt.subplots(1, 2, figsize=size, sharey=True)
    for axes, name in zip(panels, (before, after), strict=True):
        cells = table[table["classifier"] == name]
        image = _map_panel(axes, cells, places, decays, vmin=shown.min(), vmax=shown.max())
        axes.set(title=_literal(name), xlabel=f"learning rate ({unless} unless said)")
        axes.set_xticks(range(len(places)), names)
    panels[0].set_ylabel("weight decay")
    fig.colorbar(image, ax=panels, label="accuracy on held-out images (%)")
    handle = Rectangle((0, 0), 1, 1, fill=False, edgecolor=COLORS[1], linewidth=2)
    _legend_below(fig, [handle], [f"learning rate x weight decay = {MAP_PRODUCT:g}, the paper's"])
    return fig


def _between(cells: Sequence[float], value: float) -> float:
    """Where a value lies among the rising values of a grid's cells: a whole number on one, in logarithms in between.

    0 counts as a tenth of the smallest positive value, and "none" (infinite) as ten times the largest.
    """
    cells = np.asarray(cells, float)
    usual = cells[(cells > 0) & np.isfinite(cells)]
    *places, place = np.log(np.clip([*cells, value], usual.min() / 10, usual.max() * 10))
    return float(np.interp(place, places, range(len(cells))))


def _landscape_panel(axes: Axes, cells: pd.DataFrame, marks: Iterable[tuple[float, float]]) -> AxesImage:
    """Accuracy [weight decays, radii] as colours, and marks exactly where their settings lie."""
    image = axes.imshow(cells, aspect="auto", cmap="cividis", origin="lower", interpolation="nearest")
    radii = ["none" if np.isinf(radius) else f"{radius:.2f}" for radius in cells.columns]
    axes.set_xticks(range(cells.shape[1]), radii, rotation=90)
    axes.set_yticks(range(cells.shape[0]), [_tick(decay) for decay in cells.index])
    if cells.isna().any(axis=None):
        axes.set_facecolor("0.8")  # of cells where training diverged, so that a white mark shows on them
    for index, (decay, radius) in enumerate(marks):
        x, y = _between(cells.columns, radius), _between(cells.index, decay)
        marker = MARKS[index % len(MARKS)]
        axes.plot(x, y, marker, color=COLORS[1], markersize=9, markeredgecolor="white", markeredgewidth=1.5)
    return image


@_styled
def landscape(
    table: pd.DataFrame, marks: dict[str, tuple[float, float]], shown: Sequence[str] = ("few", "all")
) -> Figure:
    """Accuracy over weight decay and MaxNorm's radius, a panel a group, with chosen points marked.

    Args:
        table: columns weight_decay, max_norm (infinite for none), all, and those of `shown` (percent; NaN where
            training diverged, and for a group without classes), a row a classifier; both settings form a grid.
        marks: name -> (weight decay, radius), drawn where they lie, in logarithms between the cells' centres.
        shown: groups.
    """
    fig, panels = plt.subplots(1, len(shown), figsize=(3.9 * len(shown), 3.6), sharey=True, squeeze=False)
    for axes, group in zip(panels[0], shown, strict=True):
        axes.set(title=GROUP_NAMES.get(group, group), xlabel=r"MaxNorm radius $\delta$")
        axes.spines[:].set_visible(False)
        cells = table.groupby(["weight_decay", "max_norm"])[group].mean().unstack()
        if cells.isna().all(axis=None):
            axes.set(xticks=[], ylim=(-0.5, len(cells) - 0.5))  # as the other panels, which share the axis
            axes.set_yticks(range(len(cells)), [_tick(decay) for decay in cells.index])
            _say(axes, DIVERGED if table["all"].isna().all() else NO_CLASS)
            continue
        image = _landscape_panel(axes, cells, marks.values())
        fig.colorbar(image, ax=axes, label=ACCURACY_AXIS)
    panels[0][0].set_ylabel("weight decay")
    look = {"linestyle": "", "color": COLORS[1], "markersize": 7}
    handles = [Line2D([], [], marker=MARKS[index % len(MARKS)], **look) for index in range(len(marks))]
    _legend_below(fig, handles, [_literal(name) for name in marks])
    return fig


@_styled
def confusion(matrix: np.ndarray, group_edges: Sequence[int]) -> Figure:
    """Confusion matrix, each row scaled to 100 %, with lines between many, medium and few.

    The colour scale grows with the square root, since most confusions are far rarer than the hits.

    Args:
        matrix: [C, C] numbers of test images, true class by predicted class, common classes first.
        group_edges: the class at which medium starts and the one at which few starts.
    """
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(100.0 * matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    fig, axes = plt.subplots(figsize=(5.2, 4.4))
    norm = PowerNorm(0.5, vmin=0, vmax=100)
    image = axes.imshow(shares, cmap="viridis", norm=norm, interpolation="nearest")
    for edge in group_edges:
        axes.axvline(edge - 0.5, color="white", linewidth=0.8)
        axes.axhline(edge - 0.5, color="white", linewidth=0.8)
    starts, above = [0, *group_edges, len(matrix)], axes.get_xaxis_transform()
    for group, first, end in zip(GROUPS, starts, starts[1:], strict=False):
        if end > first:
            axes.text((first + end - 1) / 2, 1.01, group, transform=above, ha="center", size=8)
    axes.set(xlabel=f"predicted {CLASS_AXIS}", ylabel=f"true {CLASS_AXIS}")
    _class_ticks(axes.xaxis)
    _class_ticks(axes.yaxis)
    bar = fig.colorbar(image, ax=axes, label="share of the class's test images (%)")
    bar.set_ticks([0, 1, 5, 10, 25, 50, 100])
    return fig


@_styled
def reliability(bins: pd.DataFrame) -> Figure:
    """Reliability diagram: accuracy over confidence; under the diagonal a model is too sure of itself.

    A point's area is its share of the images. The legend gives the expected calibration error (ECE),
    the mean gap between the two, weighted by those shares (Guo et al. 2017).

    Args:
        bins: columns model, confidence and accuracy (means in the bin, 0 to 1), weight (images, or their
            share); `Predictions.reliability` with the model's name added.
    """
    fig, axes = plt.subplots(figsize=(5.4, 4.9))
    axes.plot([0, 100], [0, 100], color="0.6", linewidth=1, label="calibrated")
    for index, name in enumerate(_models(bins)):
        rows = bins[(bins["model"] == name) & (bins["weight"] > 0)].sort_values("confidence")
        share = rows["weight"] / rows["weight"].sum()
        error = 100 * (share * (rows["accuracy"] - rows["confidence"]).abs()).sum(min_count=1, skipna=False)
        style = _line_style(index)
        x, y = 100 * rows["confidence"], 100 * rows["accuracy"]
        words = "ECE –" if np.isnan(error) else f"ECE {error:.1f} %"
        axes.plot(x, y, **style, label=f"{_literal(name)} ({words})")
        axes.scatter(x, y, 6 + 150 * share, color=style["color"], alpha=0.6)
    axes.set(xlabel="confidence (%)", ylabel=ACCURACY_AXIS, xlim=(0, 102), ylim=(0, 102), aspect="equal")
    axes.grid()
    _legend_below(fig, *axes.get_legend_handles_labels())
    return fig


def _png(fig: Figure, dpi: int = 2 * DPI) -> bytes:
    """The figure as PNG, shown at half its size; past 45 KB with a palette of as many colours as fit."""
    with plt.rc_context(STYLE), io.BytesIO() as file:
        fig.savefig(file, dpi=dpi, format="png", metadata={"Software": None}, pil_kwargs={"optimize": True})
        png = file.getvalue()
        picture = Image.open(file).convert("RGB")
    for colors in (256, 128, 64, 32):
        if len(png) <= FIGURE_BYTES:
            break
        with io.BytesIO() as file:
            method = Image.Quantize.MAXCOVERAGE  # unlike the median cut, keeps the colours of thin lines
            small = picture.quantize(colors, method=method, kmeans=5, dither=Image.Dither.NONE)
            small.save(file, format="png", optimize=True)
            png = file.getvalue()
    return png


def _display(data: bytes, kind: str, width: int | None = None) -> None:
    """Show a picture's very bytes in a notebook."""
    from IPython.display import Image as Picture  # only a notebook has it
    from IPython.display import display

    display(Picture(data=data, format=kind, width=width))


def _width(png: bytes) -> int:
    """Half a PNG's width in pixels, at which it is shown."""
    with Image.open(io.BytesIO(png)) as picture:
        return picture.width // 2


def in_a_page() -> bool:
    """Whether figures go into a notebook's page."""
    return "inline" in plt.get_backend().lower()


def show_picture(path: Path) -> None:
    """Show a PNG that `show` wrote."""
    if in_a_page():
        data = path.read_bytes()
        _display(data, "png", _width(data))


def show_animation(figures: Iterable[Figure], path: Path | None, seconds: float = 0.15) -> None:
    """Save figures of one size as a GIF that repeats, show it in a notebook, and close them.

    Args:
        figures: the frames; of several processes rank 0 alone draws them.
        path: the GIF to write; None to write nothing.
        seconds: of each frame; the last one stays six times as long.
    """
    if not distributed.current().is_main:
        return
    frames = []
    for fig in figures:
        frames.append(Image.open(io.BytesIO(_png(fig, DPI))).convert("RGB").quantize(12, dither=Image.Dither.NONE))
        plt.close(fig)
    times = [round(1000 * seconds)] * (len(frames) - 1) + [round(6000 * seconds)]
    with io.BytesIO() as file:
        frames[0].save(file, "gif", save_all=True, append_images=frames[1:], duration=times, loop=0, optimize=True)
        data = file.getvalue()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    if in_a_page():
        _display(data, "gif")


def show(fig: Figure, path: Path | None = None) -> None:
    """Save the figure as PNG, show it where someone can see it, and close it.

    A notebook shows the very bytes of the file; a script without a screen (Agg) only saves. Of several processes
    rank 0 alone does either.

    Args:
        fig: the figure; closed afterwards.
        path: the PNG to write, its folder made where missing; None to write nothing.
    """
    if not distributed.current().is_main:
        plt.close(fig)
        return
    if path is not None or in_a_page():
        png = _png(fig)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(png)
    if in_a_page():
        _display(png, "png", _width(png))
    elif plt.get_backend().lower() not in NON_INTERACTIVE:
        plt.show()
    plt.close(fig)

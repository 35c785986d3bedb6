"""Figures of the notebooks: data frames or arrays in, a matplotlib Figure out.

Every function draws under its own `STYLE` and leaves matplotlib's global settings alone. Colours are
those of Okabe and Ito (2008), which colour-blind readers tell apart; line style, marker or hatch always
repeats what the colour says, so that a grey print reads the same. Models keep the order in which a table
first names them, which also fixes their colours; where the column is categorical, the categories do, so that
a model looks alike in several figures. Names of models and classes are drawn as they stand, `$` included.

A group without classes and a model whose training diverged have accuracies of NaN: a dash, a line less, or a
sentence in the place of what cannot be drawn.

A `table` of classes has columns model, class_index and the value that is drawn, one row a model and class. `counts`
has class_index, count (training images), group ('many', 'medium' or 'few') and perhaps name, one row a class: classes
stand from common to rare, and lines separate the groups.

Accuracies are in percent. "The paper" is Alshammari et al., CVPR 2022 (arXiv 2203.14197).
"""

import contextlib
import functools
import io
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from matplotlib.transforms import ScaledTranslation
from PIL import Image

from ltr.metrics import GROUPS, or_dash
from ltr.runtime import distributed
from ltr.runtime.storage import write_whole

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

GROUP_LOOKS: dict[str, dict[str, Any]] = {
    "many": {"color": COLORS[0], "linestyle": LINES[0], "marker": "o"},
    "medium": {"color": COLORS[4], "linestyle": LINES[1], "marker": "s"},
    "few": {"color": COLORS[1], "linestyle": LINES[2], "marker": "^"},
    "all": {"color": COLORS[5], "linestyle": LINES[3], "marker": "D"},
}
GROUP_NAMES = {"many": "many (> 100 images)", "medium": "medium (20–100)", "few": "few (< 20)"}
FRAME: dict[str, Any] = {"fill": False, "edgecolor": COLORS[1], "linewidth": 2}  # of a cell

CLASS_AXIS = "class, from common to rare"
NAMED = 10  # classes at each end of an axis that have their names
NAME = 24  # letters of a class's name that an axis has room for
LINE = 1 / 23  # of a heat map's side, which a name beside it takes
ACCURACY_AXIS = "accuracy (%)"
NO_CLASS, DIVERGED = "no class in this group", "training diverged"
SWEEP_TICKS = 8  # so many values of a swept setting have each its own tick
FIGURE_BYTES = 45_000  # a notebook keeps its figures as text, so a large one bloats it
MAP_PLACE = ["epochs", "batch", "warm-up", "lr"]  # what a column of the map of learning rates has in common
NON_INTERACTIVE = frozenset({"agg", "cairo", "pdf", "pgf", "ps", "svg", "template"})

P = ParamSpec("P")


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """While it lasts figures have `STYLE`, and letters of a name that the font lacks are boxes without a warning."""
    with plt.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        yield


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Run `draw` under `STYLE`; lay the figure out there too, as ticks take their style when first drawn."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with drawing():
            fig = draw(*args, **kwargs)
            fig.draw_without_rendering()
        return fig

    return styled


def _literal(name: Any) -> str:
    """A name as matplotlib draws it unchanged: between two bare `$` it would read mathematics."""
    return str(name).replace("$", r"\$")


def _places(models: pd.Series) -> dict[str, int]:
    """The number of each model, which decides how it looks."""
    names = models.cat.categories if isinstance(models.dtype, pd.CategoricalDtype) else models.unique()
    return {name: index for index, name in enumerate(names)}


def _by_model(table: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, dict[str, Any]]]:
    """Rows of each model, in the order of their first ones, and how its line looks; looks repeat after 24 models."""
    places = _places(table["model"])
    for name, rows in table.groupby("model", sort=False, observed=True):
        look = {"color": COLORS[places[name] % len(COLORS)], "linestyle": LINES[places[name] % len(LINES)]}
        yield rows, look | {"label": _literal(name)}


def _common_to_rare(counts: pd.DataFrame) -> pd.DataFrame:
    """Rows sorted by falling `count`."""
    return counts.sort_values(["count", "class_index"], ascending=[False, True]).reset_index(drop=True)


def _by_class(table: pd.DataFrame, counts: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, dict[str, Any]]]:
    """See `_by_model`; the rows of a model go from common to rare."""
    order = _common_to_rare(counts)["class_index"]
    for rows, look in _by_model(table):
        yield rows.set_index("class_index").reindex(order).reset_index(), look


def _legend_below(fig: Figure, handles: Sequence[Any] = (), labels: Sequence[str] = ()) -> None:
    """One legend, by default of the first axes, in as many columns as fit the figure; none where nothing was drawn."""
    if not labels:
        handles, labels = fig.axes[0].get_legend_handles_labels()
    if not labels:
        return
    widths = [0.65 + 0.066 * len(label) for label in labels]  # inches: line and gaps, then the letters
    columns = len(labels)
    while columns > 1 and sum(map(max, np.array_split(widths, columns))) > fig.get_figwidth() - 0.2:
        columns -= 1
    rows = math.ceil(len(labels) / columns)
    fig.legend(handles, labels, loc="outside lower center", ncols=math.ceil(len(labels) / rows))


def _epoch_panels(
    names: Sequence[str], single: tuple[float, float], several: tuple[float, float], ylabel: str, ticks: int
) -> tuple[Figure, list[Axes]]:
    """A panel over the epochs for each name, three to a row at most, sharing y, with so many named epochs at most.

    Of width and height in inches: those of a single panel, and of each of several.
    """
    number = len(names)
    width, height = single if len(names) == 1 else several
    columns = 2 if number == 4 else min(number, 3)
    rows = math.ceil(number / columns)
    size = (width * columns + 0.6, height * rows + 0.4)
    fig, grid = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False)
    panels, unused = grid.flat[:number], grid.flat[number:]
    for axes in unused:
        axes.remove()
    for name, axes in zip(names, panels, strict=True):
        axes.set(title=_literal(name), xlabel="epoch")
        axes.set_ylabel(ylabel if axes.get_subplotspec().is_first_col() else "")
        axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True, min_n_ticks=1))
    return fig, list(panels)


def _class_ticks(axis: Axis) -> None:
    """Whole numbers at round steps for an axis of classes."""
    axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _class_names(counts: pd.DataFrame) -> list[str]:
    """As a figure has them, from common to rare."""
    names = _common_to_rare(counts)["name"].astype(str)
    short = (name if len(name) <= NAME else f"{name[: NAME - 1]}…" for name in names)
    return [_literal(name).replace("_", " ") for name in short]


def _name_classes(axes: Axes, counts: pd.DataFrame) -> None:
    """Names of the commonest and the rarest classes, numbers between them; without names numbers alone."""
    if "name" not in counts or len(counts) < 3:
        _class_ticks(axes.xaxis)
        return
    names = _class_names(counts)
    shown = ends(range(len(names)), NAMED)
    between = [place for place in range(0, len(names), 20) if NAMED + 3 < place < len(names) - NAMED - 3]
    places = sorted({*shown, *between})
    axes.set_xticks(places, [names[place] if place in shown else str(place) for place in places])
    for place, label in zip(places, axes.get_xticklabels(), strict=True):
        label.set(rotation=90 if place in shown else 0, size=6.5 if place in shown else 8)


def _name_lines(axes: Axes, axis: Axis, counts: pd.DataFrame | None) -> None:
    """The same for a heat map's classes, common ones at its top or left: names stand apart, each joined to its line."""
    if counts is None or "name" not in counts or len(counts) < 3:
        _class_ticks(axis)
        return
    names, upright = _class_names(counts), axis is axes.yaxis
    classes = len(names)
    apart = max(1.0, classes * LINE)
    look = {"labelsize": 5.5, "labelrotation": 0 if upright else 90}
    shown = np.array(ends(range(classes), NAMED))
    rank = np.minimum(shown, classes - 1 - shown)  # from its end
    room = np.maximum(rank, (rank + 0.5) * apart - 0.5)
    spots = np.where(shown == rank, room, classes - 1 - room)
    axis.set_ticks(spots, [names[place] for place in shown])
    axis.set_tick_params(length=0, pad=10, **look)
    away = (-9 / 72, 0) if upright else (0, -9 / 72)  # inches
    outside = axes.transAxes + ScaledTranslation(*away, axes.figure.dpi_scale_trans)
    arrow = {"arrowstyle": "-", "linewidth": 0.4, "color": "0.6", "shrinkA": 0, "shrinkB": 0}
    for pair in zip(shown, spots, strict=True):
        shares = [(place + 0.5) / classes for place in pair]
        start, end = ((0, 1 - share) if upright else (share, 0) for share in shares)
        axes.annotate("", start, end, xycoords=axes.transAxes, textcoords=outside, arrowprops=arrow)


def _log_ticks(axis: Axis) -> None:
    """Plain numbers at 1, 2, 5, 10, 20, ... for a log axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _tick(value: Any) -> str:
    """A setting's value as a tick label: numbers short, everything else as it prints."""
    return f"{value:g}" if isinstance(value, (int, float, np.number)) else _literal(value)


def _say(axes: Axes, words: str) -> None:
    """A sentence in the middle of axes that have nothing to show."""
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color="0.4")


def _largest(arrays: Iterable[np.ndarray]) -> float | None:
    """The largest of all finite values; None, for matplotlib to choose a scale, where training diverged."""
    values = np.concatenate([np.ravel(array) for array in arrays])
    values = values[np.isfinite(values)]
    return float(values.max()) if len(values) else None


def ends(order: Sequence[int], number: int = 3) -> list[int]:
    """The first and the last `number` of a sequence, each element once where there are fewer than twice as many."""
    order = list(order)
    return order[:number] + order[max(number, len(order) - number) :]


@_styled
def class_counts(counts: pd.DataFrame) -> Figure:
    """Training images of each class, on a log axis: the long tail."""
    table = _common_to_rare(counts)
    fig, axes = plt.subplots(figsize=(9.0, 3.6))
    for group in GROUPS:
        rows = table[table["group"] == group]
        look = GROUP_LOOKS[group] | {"linestyle": ""}
        label = f"{GROUP_NAMES[group]}: {len(rows)} {'class' if len(rows) == 1 else 'classes'}"
        axes.bar(rows.index, rows["count"], width=0.85, color=look["color"], alpha=0.45)
        axes.plot(rows.index, rows["count"], **look, markersize=3.5, label=label)
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
    left = 12 + 7 * max(len(label) for label in row_labels)
    top = 22 if title else gap
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

    Of columns model, epoch, train_accuracy, test_accuracy (NaN where an epoch was not tested). The number in a panel is
    the last tested epoch's.
    """
    fig, panels = _epoch_panels(history["model"].unique(), (4.6, 2.7), (2.7, 2.2), ACCURACY_AXIS, 5)
    for (rows, look), axes in zip(_by_model(history), panels, strict=True):
        rows, color = rows.sort_values("epoch"), look["color"]
        tested = rows.dropna(subset=["test_accuracy"])
        axes.plot(rows["epoch"], rows["train_accuracy"], "--", color=color, linewidth=1.2)
        axes.plot(tested["epoch"], tested["test_accuracy"], "-", color=color, linewidth=2)
        if len(tested):
            epoch, last = tested["epoch"].iloc[-1], tested["test_accuracy"].iloc[-1]
            axes.plot(epoch, last, "o", color=color, markersize=4, clip_on=False)
            axes.annotate(f"{last:.1f}", (epoch, last), (5, 0), textcoords="offset points", va="center")
        elif rows["train_accuracy"].isna().all():
            _say(axes, DIVERGED)
        axes.set_ylim(0, 102)
        axes.grid(axis="y")
    train = Line2D([], [], color="0.3", linestyle="--", linewidth=1.2)
    test = Line2D([], [], color="0.3", linestyle="-", linewidth=2)
    _legend_below(fig, [train, test], ["training images", "test images (number: last epoch)"])
    return fig


@_styled
def loss_curves(history: pd.DataFrame) -> Figure:
    """Mean training loss by epoch, models overlaid, beside the learning rate that all of them have.

    Of columns model, epoch, train_loss, lr.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(8.2, 2.8), width_ratios=(2, 1))
    for rows, look in _by_model(history):
        rows = rows.sort_values("epoch")
        left.plot(rows["epoch"], rows["train_loss"], **look)
    right.plot(rows["epoch"], rows["lr"], color="0.3")
    left.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
    right.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    left.grid(axis="y")
    if history["train_loss"].isna().all():
        _say(left, DIVERGED)
    _legend_below(fig)
    return fig


@_styled
def regions(
    panels: dict[str, tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], np.ndarray]]], names: Sequence[str]
) -> Figure:
    """What a classifier answers in the plane, and the points that it learned from, a panel each.

    Args:
        panels: by title points [N, 2], their labels [N], and what gives the label of points [M, 2].
        names: of the classes, four at most, from common to rare; they look as the groups do.
    """
    looks = [{**look, "linestyle": ""} for look in GROUP_LOOKS.values()]
    fig, grid = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 3.3), sharex=True, sharey=True)
    every = np.concatenate([points for points, _, _ in panels.values()])
    reach = 1.05 * np.abs(every).max()
    ticks = np.linspace(-reach, reach, 241)
    plane = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    look = {"extent": (-reach, reach) * 2, "origin": "lower", "alpha": 0.22, "interpolation": "nearest"}
    for (title, (points, labels, answer)), axes in zip(panels.items(), np.atleast_1d(grid), strict=True):
        answers = answer(plane).reshape(len(ticks), len(ticks))
        palette = ListedColormap([own["color"] for own in looks[: len(names)]])
        axes.imshow(answers, cmap=palette, vmin=0, vmax=len(names) - 1, **look)
        for k, name in enumerate(names):
            axes.plot(*points[labels == k].T, **looks[k], markersize=2.5, alpha=0.6, label=_literal(name))
        axes.set(title=_literal(title), xticks=[], yticks=[], aspect="equal")
    _legend_below(fig)
    return fig


@_styled
def projections(before: np.ndarray, after: dict[str, np.ndarray], radius: float, names: Sequence[str] = ()) -> Figure:
    """Vectors [C, 2] in the plane before and after each of some rules, a panel a rule, with a ball's edge.

    Args:
        names: of the C vectors, four at most, from common to rare, for the legend; they look as the groups do.
    """
    colors = [look["color"] for look in GROUP_LOOKS.values()]
    every = np.concatenate([before, *after.values(), radius * np.array([[-1, -1], [1, 1]])])
    low, high = every.min(0) - 0.3, every.max(0) + 0.3
    size = (2.7 * len(after), 2.7 * (high - low)[1] / (high - low)[0] + 0.7)
    fig, grid = plt.subplots(1, len(after), figsize=size, sharex=True, sharey=True)
    arrow = {"arrowstyle": "-|>", "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
    for (title, vectors), axes in zip(after.items(), np.atleast_1d(grid), strict=True):
        ball = axes.add_patch(Circle((0, 0), radius, facecolor="0.94", edgecolor="0.6"))
        for old, new, color in zip(before, vectors, colors, strict=False):
            axes.plot(*old, "o", color=color, markerfacecolor="none", markersize=6)
            axes.annotate("", new, (0, 0), arrowprops={**arrow, "color": color})
        axes.set(title=_literal(title), xticks=[], yticks=[], aspect="equal")
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        axes.spines[:].set_visible(False)
    rows = [Line2D([], [], color=color) for color in colors[: len(names)]]
    old = Line2D([], [], marker="o", color="0.3", markerfacecolor="none", linestyle="")
    labels = [*map(_literal, names), "where the row was", f"ball of radius {radius:g}"]
    _legend_below(fig, [*rows, old, ball], labels)
    return fig


def _window(classes: int) -> int:
    """How many neighbours a moving average takes: 9 of 100 classes, 3 of 20."""
    return max(3, round(0.09 * classes) | 1)  # | 1 makes it odd, hence symmetric


def _smoothed(axes: Axes, values: pd.Series, look: dict[str, Any], bars: bool = False) -> None:
    """A point or bar a class, and a line: the centred mean over its neighbours, over fewer at both ends."""
    if bars:
        axes.bar(values.index, values, width=0.85, color=look["color"], alpha=0.3)
    else:
        axes.plot(values.index, values, ".", color=look["color"], markersize=4, alpha=0.25)
    means = values.rolling(_window(len(values)), center=True, min_periods=1).mean()
    axes.plot(values.index, means, **look, linewidth=2)


def _over_classes(axes: Axes, counts: pd.DataFrame, ylabel: str, smoothed: str = "") -> Figure:
    """The figure of axes over classes, once these are named, the groups are kept apart, and the legend is there.

    `smoothed` names what stands for a class where lines are moving averages.
    """
    key = f" ({smoothed}: classes, lines: means over {_window(len(counts))} neighbours)" if smoothed else ""
    axes.set(xlabel=CLASS_AXIS + key, ylabel=ylabel, xlim=(-0.5, len(counts) - 0.5))
    _name_classes(axes, counts)
    above = {"transform": axes.get_xaxis_transform(), "ha": "center", "color": "0.4", "size": 8}
    for group, rows in _common_to_rare(counts).groupby("group", sort=False):
        first, last = rows.index[0], rows.index[-1]
        if first > 0:
            axes.axvline(first - 0.5, color="0.75", linewidth=1, zorder=0)
        axes.text((first + last) / 2, 1.01, group, **above)
    _legend_below(axes.figure)
    return axes.figure


@_styled
def per_class_accuracy(table: pd.DataFrame, counts: pd.DataFrame) -> Figure:
    """Accuracy (percent) of each class, models overlaid on the class counts (grey area, right axis).

    As the figure of per-class accuracy in the paper and in its released code's readme.
    """
    _, axes = plt.subplots(figsize=(9.0, 4.2))
    behind = axes.twinx()
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
    for rows, look in _by_class(table, counts):
        _smoothed(axes, rows["accuracy"], look)
    images = _common_to_rare(counts)["count"]
    behind.fill_between(images.index, images, 0.5, step="mid", color="0.92", linewidth=0)
    behind.set(yscale="log", ylim=(1, images.max() * 1.1), ylabel="training images (grey area)")
    _log_ticks(behind.yaxis)
    behind.spines["right"].set_visible(True)
    axes.set_ylim(-2, 102)
    return _over_classes(axes, counts, ACCURACY_AXIS, "points")


@_styled
def class_differences(table: pd.DataFrame, base: str, counts: pd.DataFrame) -> Figure:
    """Accuracy (percent) of each class less that of the model `base`: who gains, and who pays.

    Bars are the classes of one model, points where there are several; lines are moving averages.

    Raises:
        ValueError: `base` is none of the models.
    """
    if base not in set(table["model"]):
        raise ValueError(f"base: must be one of the models, got {base}")
    _, axes = plt.subplots(figsize=(9.0, 3.9))
    base_first = table.sort_values("model", key=lambda names: names != base, kind="stable")
    (before, _), *others = _by_class(base_first, counts)
    for rows, look in others:
        _smoothed(axes, rows["accuracy"] - before["accuracy"], look, bars=len(others) == 1)
    axes.axhline(0, color="0.3", linewidth=1)
    axes.grid(axis="y")
    kind = "bars" if len(others) == 1 else "points"
    return _over_classes(axes, counts, f"accuracy less that of {_literal(base)} (points)", kind)


@_styled
def class_norms(table: pd.DataFrame, counts: pd.DataFrame, log: bool = False) -> Figure:
    """L2 norm of each class's row of the classifier, models overlaid: balanced weights are a flat line.

    As the paper's figure of per-class weight norms. A log axis is for models whose norms differ tenfold.
    """
    return _class_lines(table, "norm", "L2 norm of the class's weights", counts, log)


@_styled
def class_logits(table: pd.DataFrame, counts: pd.DataFrame) -> Figure:
    """Mean logit of each class over its own test images (`own`), and over all `others`; see `analysis.mean_logits`.

    The table is of one model alone. Its `norm`, of each class's weights, is drawn to the scale of `own`.
    """
    ratio = table["own"].mean() / table["norm"].mean()
    scale = round(float(ratio), 1) if np.isfinite(ratio) and ratio > 0 else 1
    table = table.assign(norm=scale * table["norm"])
    kinds = {"own": "images of the class", "others": "images of other classes"}
    kinds["norm"] = f"norm of the class's weights × {scale:g}"
    long = table.melt(["class_index"], list(kinds), "model", "logit").replace({"model": kinds})
    long["model"] = pd.Categorical(long["model"], ["naive", "WD", *kinds.values()])  # in no network's colour
    fig = _class_lines(long, "logit", "mean logit of the class", counts, log=False)
    axes = fig.axes[0]
    axes.axhline(0, color="0.3", linewidth=1)
    axes.set_ylim(auto=True)
    axes.autoscale(axis="y")
    return fig


@_styled
def marginal_likelihoods(table: pd.DataFrame, counts: pd.DataFrame) -> Figure:
    """Probability that a model gives each class over a balanced test set (paper, figure 6): flat is balanced.

    Its `likelihood` sums to 1 over the classes.
    """
    scaled = table.assign(share=len(counts) * table["likelihood"])
    fig = _class_lines(scaled, "share", "marginal likelihood × C", counts, log=True)
    fig.axes[0].axhline(1, color="0.5", linewidth=1, zorder=0)
    return fig


def _class_lines(table: pd.DataFrame, column: str, label: str, counts: pd.DataFrame, log: bool) -> Figure:
    """A value of each class, a line a model."""
    _, axes = plt.subplots(figsize=(9.0, 3.9))
    for rows, look in _by_class(table, counts):
        axes.plot(rows.index, rows[column], **look)
    axes.grid(axis="y")
    if table[column].isna().all():
        _say(axes, DIVERGED)
    if log and (table[column] > 0).any():
        axes.set_yscale("log")
        _log_ticks(axes.yaxis)
    else:
        axes.set_ylim(bottom=0)
    return _over_classes(axes, counts, label)


@_styled
def filter_norms(table: pd.DataFrame) -> Figure:
    """Mean, variance, and deviation over mean of the filters' norms, layer by layer (the first two: paper, figure 3).

    Of columns model, layer (from 1 on), mean, variance.
    """
    fig, panels = plt.subplots(1, 3, figsize=(9.0, 2.9))
    table = table.assign(relative=table["variance"] ** 0.5 / table["mean"])
    names = {"mean": "mean of the norms", "variance": "variance", "relative": "deviation / mean"}
    for axes, (column, name) in zip(panels, names.items(), strict=True):
        for rows, look in _by_model(table):
            axes.plot(rows["layer"], rows[column], **look)
        axes.set(xlabel="convolution, first to last", ylabel=name, yscale="log")
        axes.grid(axis="y")
        if column != "variance":  # which spans decades, that need no help
            _log_ticks(axes.yaxis)
    _legend_below(fig)
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
        colors = plt.get_cmap("viridis", 12)(np.linspace(0, 1, classes))  # few colours keep an animation small
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
    _legend_below(fig, ends, ["the most common class", "the rarest"])
    fig.suptitle(f"epoch {epoch}", size=9)
    return fig


@_styled
def norm_evolution(
    norms: dict[str, np.ndarray], shared: bool = True, first_epoch: int = 1, counts: pd.DataFrame | None = None
) -> Figure:
    """Heat map of the norms of the classifier's rows, epoch by class, one panel a model (paper, figure 2).

    Args:
        norms: model -> [E, C], the norm of each class's weights after each epoch, common classes first.
        shared: one colour scale for all panels; otherwise each panel has its own bar.
        first_epoch: the epoch of row 0.
        counts: see `class_counts`, for the names of the commonest and rarest classes; None for numbers.
    """
    fig, panels = _epoch_panels(list(norms), (4.8, 2.9), (2.6, 2.7), CLASS_AXIS, 4)
    top = _largest(norms.values())
    label = "norm of the class's weights"
    for values, axes in zip(norms.values(), panels, strict=True):
        epochs, classes = values.shape
        extent = (first_epoch - 0.5, first_epoch + epochs - 0.5, classes - 0.5, -0.5)
        limits = {"vmin": 0, "vmax": top} if shared else {"vmin": 0}
        look = {"cmap": "viridis", "interpolation": "nearest"}
        image = axes.imshow(values.T, aspect="auto", extent=extent, **look, **limits)
        if _largest([values]) is None:
            _say(axes, DIVERGED)
        if axes.get_subplotspec().is_first_col():
            _name_lines(axes, axes.yaxis, counts)
        else:
            axes.tick_params(axis="y", length=0)
        if not shared:
            fig.colorbar(image, ax=axes, label=label if axes.get_subplotspec().is_last_col() else "")
    if shared:
        fig.colorbar(image, ax=panels, label=label, aspect=30)
    return fig


@_styled
def group_bars(table: pd.DataFrame) -> Figure:
    """Accuracy on many, medium, few and all classes, a bar for each model: Table 1 of the paper, drawn.

    Of columns model, many, medium, few, all.
    """
    columns, number = [*GROUPS, "all"], len(table)
    fig, axes = plt.subplots(figsize=(min(max(5.6, 1.2 + 1.2 * number), 8.0), 3.4))
    width, turn = 0.84 / number, 90 if number > 6 else 0
    looks = _places(table["model"])
    for index, (_, row) in enumerate(table.iterrows()):
        places = np.arange(len(columns)) + (index - (number - 1) / 2) * width
        values = row[columns].to_numpy(dtype=float)
        own = looks[row["model"]]
        color, hatch = COLORS[own % len(COLORS)], HATCHES[own % len(HATCHES)]
        look = {"facecolor": color, "hatch": hatch, "edgecolor": "white", "label": _literal(row["model"])}
        axes.bar(places, values, 0.92 * width, **look)
        above = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "va": "bottom"}
        for place, value in zip(places, values, strict=True):
            axes.annotate(or_dash(value, ".1f"), (place, np.nan_to_num(value)), **above, size=7, rotation=turn)
    axes.set(ylabel=ACCURACY_AXIS, xlim=(-0.5, len(columns) - 0.5))
    axes.set_xticks(range(len(columns)), [*GROUP_NAMES.values(), "all"])
    axes.tick_params(axis="x", length=0)
    axes.margins(y=0.12 if turn else 0.08)
    if table[columns].isna().all(axis=None):
        axes.set_ylim(0, 100)
    _legend_below(fig)
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
    table: pd.DataFrame,
    x: str,
    xlabel: str,
    best: float | dict[str, float] | None = None,
    log: bool = False,
    images: str = "",
) -> Figure:
    """Accuracy of each group over a swept setting; a vertical line marks the choice.

    As the paper's weight-decay sweep.

    Args:
        table: columns `x` (the swept values), many, medium, few, all; a group of NaN alone is left out.
        xlabel: the name of the setting, with its unit.
        best: the chosen value; or several, by what they are.
        log: a log axis; where a value is 0 (no weight decay), linear below the smallest positive value.
        images: which ones the accuracy is of, such as "held-out".
    """
    rows = table.sort_values(x)
    fig, axes = plt.subplots(figsize=(5.6, 3.6))
    measured = [group for group in [*GROUPS, "all"] if rows[group].notna().any()]
    for group in measured:
        axes.plot(rows[x], rows[group], **GROUP_LOOKS[group], label=GROUP_NAMES.get(group, group))
    if not measured:
        _say(axes, DIVERGED)
    if log:
        _log_settings(axes, rows[x])
    marks = best if isinstance(best, dict) else {} if best is None else {"chosen": best}
    for name, value in marks.items():
        axes.axvline(value, color="0.5", linewidth=1, zorder=0)
        axes.text(value, 1.01, f"{name}: {value:g}", transform=axes.get_xaxis_transform(), ha="center", size=8)
    axes.set(xlabel=xlabel, ylabel=f"{images} {ACCURACY_AXIS}".strip())
    axes.grid(axis="y")
    _legend_below(fig)
    return fig


@_styled
def lines(
    table: pd.DataFrame, x: str, y: str, xlabel: str, ylabel: str, least: bool = False, log: tuple[str, ...] = ()
) -> Figure:
    """A value over another, a line a model.

    Args:
        table: columns model, `x` and `y`.
        xlabel, ylabel: names of the axes, with their units.
        least: a dot at each line's least value.
        log: "x", "y": axes that are logarithmic.
    """
    fig, axes = plt.subplots(figsize=(6.4, 3.7))
    for index, (rows, look) in enumerate(_by_model(table)):
        rows = rows.dropna(subset=[y]).sort_values(x)
        axes.plot(rows[x], rows[y], **look)
        if least and len(rows):
            lowest = rows.loc[rows[y].idxmin()]
            axes.plot(lowest[x], lowest[y], MARKS[index % len(MARKS)], color=look["color"], markersize=6)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(axis="y")
    if table[y].isna().all():
        _say(axes, DIVERGED)
    else:
        axes.set(**{f"{axis}scale": "log" for axis in log})
        for axis in log:
            _log_ticks(axes.xaxis if axis == "x" else axes.yaxis)
    _legend_below(fig)
    return fig


def _cells(axes: Axes, table: pd.DataFrame, **look: Any) -> AxesImage:
    """Numbers as colours, each under its column's and beside its row's name."""
    image = axes.imshow(table.to_numpy(dtype=float), aspect="auto", cmap="cividis", **look)
    axes.set_xticks(range(table.shape[1]), [_tick(name) for name in table.columns])
    axes.set_yticks(range(table.shape[0]), [_tick(name) for name in table.index])
    axes.spines[:].set_visible(False)
    return image


def _ink(image: AxesImage, value: float) -> str:
    """The colour of a number that stands on its own cell."""
    return "white" if not np.isnan(value) and image.norm(value) < 0.55 else "black"


@_styled
def heatmap(
    table: pd.DataFrame, xlabel: str, ylabel: str, label: str, chosen: tuple[float, float] | None = None
) -> Figure:
    """Annotated heat map over a grid of two settings.

    Args:
        table: one setting in the columns, the other in the index, upwards; a number in each cell (NaN: not run).
        label: what a cell holds, with its unit.
        chosen: a row's and a column's value, whose cell is framed.
    """
    rows, columns = table.shape
    fig, axes = plt.subplots(figsize=(2.0 + 0.62 * columns, max(2.4, 1.0 + 0.42 * rows)))
    image = _cells(axes, table, origin="lower", interpolation="nearest")
    for (row, column), value in np.ndenumerate(table.to_numpy(dtype=float)):
        axes.text(column, row, or_dash(value, ".1f"), ha="center", va="center", size=8, color=_ink(image, value))
    if chosen is not None:
        y = list(table.index).index(chosen[0])
        x = list(table.columns).index(chosen[1])
        axes.add_patch(Rectangle((x - 0.47, y - 0.44), 0.94, 0.88, **FRAME))
    axes.tick_params(length=0)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    fig.colorbar(image, ax=axes, label=label)
    return fig


def _map_panel(axes: Axes, cells: pd.DataFrame, grid: pd.DataFrame, product: float, **scale: float) -> AxesImage:
    """One side of `lr_wd_map`: a cell's colour is its accuracy, below which stand those of the groups.

    Args:
        cells: rows of one classifier, each at its `x` and `y`.
        grid: an empty table of the map's rows and columns.
        product: see `lr_wd_map`.
    """
    values = grid.to_numpy(dtype=float, copy=True)
    values[cells["y"], cells["x"]] = cells["all"]
    image = _cells(axes, pd.DataFrame(values, grid.index, grid.columns), origin="lower", interpolation="none", **scale)
    for row in cells.to_dict("records"):
        x, y = row["x"], row["y"]
        look = {"ha": "center", "color": _ink(image, row["all"])}
        axes.text(x, y, or_dash(row["all"], ".1f"), va="bottom", size=9, **look)
        axes.text(x, y, " / ".join(or_dash(row[group], ".0f") for group in GROUPS), va="top", size=7, **look)
        if np.isclose(row["lr x wd"], product):
            axes.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, **FRAME))
    axes.set_facecolor("0.93")  # of cells that no run has
    axes.tick_params(length=0)
    return image


@_styled
def lr_wd_map(
    table: pd.DataFrame, product: float, before: str = "first stage alone", after: str = "logit adjustment"
) -> Figure:
    """Accuracy over learning rate and weight decay, before and after a classifier is balanced; nothing in between.

    A cell holds the accuracy over all classes, and below it many / medium / few. A frame marks the cells at the product
    of the paper's learning rate and weight decay.

    Args:
        table: of `ltr map`: columns lr, weight decay, lr x wd, batch, warm-up, epochs, classifier, many, medium, few,
            all (percent), a row a run and classifier. Runs of another batch, warm-up or length have columns of their
            own, those of several seeds one cell, the mean; those that differ in what `further` names are left out.
        product: the paper's learning rate times its weight decay.
        before, after: classifiers.
    """
    table = table[table["further"].fillna("") == ""]
    alike = table.groupby([*MAP_PLACE, "weight decay", "lr x wd", "classifier"])
    table = alike[[*GROUPS, "all"]].agg(lambda own: own.mean(skipna=False)).reset_index()  # NaN where a seed diverged
    # A number for each column and row of the map, in the order of their values.
    table = table.assign(x=table.groupby(MAP_PLACE).ngroup(), y=table.groupby("weight decay").ngroup())
    shown = table[table["classifier"].isin((before, after))]["all"]
    usual = Counter(table[MAP_PLACE[:-1]].itertuples(index=False, name=None)).most_common(1)[0][0]
    names = []
    for *how, lr in sorted(set(table[MAP_PLACE].itertuples(index=False, name=None))):
        other = [f"{name} {own:g}" for name, own, most in zip(MAP_PLACE, how, usual, strict=False) if own != most]
        names.append("\n".join([f"{lr:g}", *other]))
    unless = ", ".join(f"{name} {value:g}" for name, value in zip(MAP_PLACE, usual, strict=False))
    grid = pd.DataFrame(np.nan, sorted(table["weight decay"].unique()), names)
    fig, panels = plt.subplots(1, 2, figsize=(1.6 + 1.7 * len(names), 1.2 + 0.54 * len(grid)), sharey=True)
    for axes, name in zip(panels, (before, after), strict=True):
        cells = table[table["classifier"] == name]
        image = _map_panel(axes, cells, grid, product, vmin=shown.min(), vmax=shown.max())
        axes.set(title=_literal(name), xlabel=f"learning rate ({unless} unless said)")
    panels[0].set_ylabel("weight decay")
    fig.colorbar(image, ax=panels, label="accuracy on held-out images (%)")
    handle = Rectangle((0, 0), 1, 1, **FRAME)
    _legend_below(fig, [handle], [f"learning rate × weight decay = {product:.5f}, the paper's"])
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
    radii = ["none" if np.isinf(radius) else f"{radius:.2f}" for radius in cells.columns]
    image = _cells(axes, cells.set_axis(radii, axis=1), origin="lower", interpolation="nearest")
    axes.tick_params(axis="x", rotation=90)
    if cells.isna().any(axis=None):
        axes.set_facecolor("0.8")  # of cells where training diverged, so that a white mark shows on them
    for index, (decay, radius) in enumerate(marks):
        x = _between(cells.columns, radius)
        y = _between(cells.index, decay)
        marker = MARKS[index % len(MARKS)]
        axes.plot(x, y, marker, color=COLORS[1], markersize=9, markeredgecolor="white", markeredgewidth=1.5)
    return image


@_styled
def landscape(
    table: pd.DataFrame, marks: dict[str, tuple[float, float]], shown: Sequence[str] = ("few", "all")
) -> Figure:
    """Accuracy over weight decay and MaxNorm's radius, a panel a group, with chosen points marked.

    Args:
        table: columns weight_decay, max_norm (infinite for none), all, and the groups of `shown`, a row a classifier;
            both settings form a grid.
        marks: name -> (weight decay, radius), drawn where they lie, in logarithms between the cells' centres.
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
def confusion(matrix: np.ndarray, counts: pd.DataFrame, images: str = "test") -> Figure:
    """Confusion matrix, common classes first, each row scaled to 100 %, with lines between many, medium and few.

    The colour scale grows with the square root, since most confusions are far rarer than the hits.

    Args:
        matrix: [C, C] numbers of test images, true class by predicted class.
        counts: see `class_counts`.
        images: which they are of.
    """
    table = _common_to_rare(counts)
    matrix = matrix[np.ix_(table["class_index"], table["class_index"])]
    edges = [int((table["group"] == "many").sum()), int((table["group"] != "few").sum())]
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(100.0 * matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    fig, axes = plt.subplots(figsize=(5.6, 4.8))
    norm = PowerNorm(0.5, vmin=0, vmax=100)
    image = axes.imshow(shares, cmap="viridis", norm=norm, interpolation="nearest")
    for edge in edges:
        axes.axvline(edge - 0.5, color="white", linewidth=0.8)
        axes.axhline(edge - 0.5, color="white", linewidth=0.8)
    starts = [0, *edges, len(matrix)]
    above = axes.get_xaxis_transform()
    for group, first, end in zip(GROUPS, starts, starts[1:], strict=False):
        if end > first:
            axes.text((first + end - 1) / 2, 1.01, group, transform=above, ha="center", size=8)
    axes.set(xlabel=f"predicted {CLASS_AXIS}", ylabel=f"true {CLASS_AXIS}")
    for axis in (axes.xaxis, axes.yaxis):
        _name_lines(axes, axis, counts)
    bar = fig.colorbar(image, ax=axes, label=f"share of the class's {images} images (%)")
    bar.set_ticks([0, 1, 5, 10, 25, 50, 100])
    return fig


@_styled
def reliability(bins: pd.DataFrame) -> Figure:
    """Reliability diagram: accuracy over confidence; under the diagonal a model is too sure of itself.

    A point's area is its share of the images. The legend gives the expected calibration error (ECE),
    the mean gap between the two, weighted by those shares (Guo et al. 2017).
    Bins are those of `Predictions.reliability`, in column model the name added.
    """
    fig, axes = plt.subplots(figsize=(5.4, 4.9))
    axes.plot([0, 100], [0, 100], color="0.6", linewidth=1, label="calibrated")
    for rows, look in _by_model(bins):
        rows = rows[rows["weight"] > 0].sort_values("confidence")
        share = rows["weight"] / rows["weight"].sum()
        error = 100 * (share * (rows["accuracy"] - rows["confidence"]).abs()).sum(min_count=1, skipna=False)
        x, y = 100 * rows["confidence"], 100 * rows["accuracy"]
        words = "ECE –" if np.isnan(error) else f"ECE {error:.1f} %"
        axes.plot(x, y, **look | {"label": f"{look['label']} ({words})"})
        axes.scatter(x, y, 6 + 150 * share, color=look["color"], alpha=0.6)
    axes.set(xlabel="confidence (%)", ylabel=ACCURACY_AXIS, xlim=(0, 102), ylim=(0, 102), aspect="equal")
    axes.grid()
    _legend_below(fig)
    return fig


def _png(fig: Figure) -> bytes:
    """The figure as PNG, shown at half its size; past 45 KB with a palette of as many colours as fit."""
    with drawing(), io.BytesIO() as file:
        fig.savefig(file, dpi=2 * DPI, format="png", metadata={"Software": None}, pil_kwargs={"optimize": True})
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


def _in_a_page() -> bool:
    """Whether figures go into a notebook's page."""
    return "inline" in plt.get_backend().lower()


def _give(data: bytes, path: Path | None) -> None:
    """Write a picture's bytes if it has a path, its folder too; show them in a notebook, at half their size."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: file.write(data))
    if _in_a_page():
        from IPython.display import Image as Picture  # only a notebook has it
        from IPython.display import display

        with Image.open(io.BytesIO(data)) as picture:
            kind, width = picture.format.lower(), picture.width // 2
        display(Picture(data=data, format=kind, width=width))


def show_picture(path: Path) -> None:
    """Show a PNG that `show` wrote."""
    _give(path.read_bytes(), None)


def show_animation(figures: Iterable[Figure], path: Path | None) -> None:
    """Save figures of one size as an animated PNG that repeats, show it in a notebook, and close them.

    Each frame stays 0.3 seconds, the last one six times as long. Of several processes rank 0 alone draws them. Pages
    show a PNG wherever they are read; of a GIF, nbconvert and GitHub show its name as text.
    """
    if not distributed.current().is_main:
        return
    frames = []
    for fig in figures:
        frames.append(Image.open(io.BytesIO(_png(fig))).convert("RGB"))
        plt.close(fig)
    palette = frames[-1].quantize(32, dither=Image.Dither.NONE)  # frames of one palette keep the file small
    first, *others = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    times = [300] * (len(frames) - 1) + [1800]  # milliseconds
    with io.BytesIO() as file:
        first.save(file, "png", save_all=True, append_images=others, duration=times, loop=0, optimize=True)
        _give(file.getvalue(), path)


def show(fig: Figure, path: Path | None = None) -> None:
    """Save the figure as PNG if it has a path, show it where someone can see it, and close it.

    A notebook shows the very bytes of the file; a script without a screen (Agg) only saves. Of several processes
    rank 0 alone does either.
    """
    if distributed.current().is_main:
        if path is not None or _in_a_page():
            _give(_png(fig), path)
        if not _in_a_page() and plt.get_backend().lower() not in NON_INTERACTIVE:
            plt.show()
    plt.close(fig)

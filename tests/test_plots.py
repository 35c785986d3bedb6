"""Figures of awkward tables: names with `$`, a group without classes, models whose training diverged."""

import re
import warnings
from collections.abc import Callable

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from ltr import metrics, plots

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning", "error::UserWarning")
NAN = float("nan")
CLASSES = 12
PLAIN, DOLLARS = ("naive", "WD"), ("$x_1$ naive", r"a$\frac{$")  # the second is no formula that can be drawn
LAST, EVERY = (1.0, NAN), (NAN, NAN)  # factors of a model's numbers: training diverged


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def classes(rarest: int) -> pd.DataFrame:
    """Counts from 500 down; without few-shot classes where the rarest has 20 images or more."""
    counts = np.geomspace(500, rarest, CLASSES).round().astype(int)
    return pd.DataFrame({"class_index": range(CLASSES), "count": counts, "group": metrics.group_of(counts)})


def groups(rarest: int, factor: float = 1.0, **columns) -> dict[str, object]:
    """A row of accuracies; NaN for few-shot classes where there are none."""
    few = 10.0 if rarest < 20 else NAN
    return columns | {"many": 70.0 * factor, "medium": 40.0 * factor, "few": few * factor, "all": 50.0 * factor}


def curve(name: str, factor: float) -> pd.DataFrame:
    epochs = np.arange(1, 7)
    test = np.where(epochs % 3 == 0, 10.0 * epochs * factor, NAN)
    return pd.DataFrame(
        {"model": name, "epoch": epochs, "train_accuracy": 15.0 * epochs * factor, "test_accuracy": test}
    )


def tuning_map(rarest: int, names: tuple[str, str], factors: tuple[float, float]) -> pd.DataFrame:
    """A table of `ltr map`: three cells at one batch size, and one of them at another."""
    cells = [(0.01, 5e-3, 64), (0.1, 5e-4, 64), (0.1, 0.0, 64), (0.1, 5e-4, 128)]
    same = {"warm-up": 0, "epochs": 40, "further": ""}
    how = [{"lr": a, "weight decay": b, "lr x wd": a * b, "batch": n, **same} for a, b, n in cells]
    how.append({"lr": 0.4, "weight decay": 0.0, "lr x wd": 0.0, "batch": 64, **same, "further": "nesterov True"})
    pairs = zip(names, factors, strict=True)
    return pd.DataFrame([groups(rarest, f, classifier=name) | each for name, f in pairs for each in how])


def figures(
    names: tuple[str, str] = PLAIN, rarest: int = 5, factors: tuple[float, float] = (1.0, 1.0)
) -> dict[str, Callable[[], Figure]]:
    """Every function of `plots`, on tables of two models."""
    about, models = classes(rarest), list(zip(names, factors, strict=True))
    falling, decays, radii = np.linspace(90, 10, CLASSES), (0.0, 1e-3, 1e-2), (0.5, 1.0, np.inf)
    per_class = pd.concat(
        about.assign(model=name, accuracy=falling * f, norm=falling / 90 * f, likelihood=f / CLASSES)
        for name, f in models
    )
    bins = {"confidence": np.array([0.2, 0.5, 0.9]), "accuracy": np.array([0.1, 0.5, 0.7]), "weight": 1 / 3}
    layers = {"layer": np.arange(1, 5), "mean": np.arange(1, 5), "variance": np.array([0, 1e-3, 1e-2, 1e-1])}
    swept = pd.DataFrame([groups(rarest, factors[1], wd=decay) for decay in decays])
    grid = pd.DataFrame(
        [groups(rarest, factors[1] + 0.1 * r, weight_decay=d, max_norm=r) for d in decays for r in (0.5, 1.0)]
        + [groups(rarest, factors[1], weight_decay=d, max_norm=np.inf) for d in decays]
    )
    norms = {name: np.linspace(1, 2, 5)[:, None] * f + np.zeros((5, CLASSES)) for name, f in models}
    return {
        "class_counts": lambda: plots.class_counts(about),
        "montage": lambda: plots.montage(np.zeros((2, 3, 8, 8, 3), np.uint8), names, names[0]),
        "learning_curves": lambda: plots.learning_curves(pd.concat(curve(*model) for model in models)),
        "loss_curves": lambda: plots.loss_curves(
            pd.concat(
                pd.DataFrame({"epoch": [1, 2], "train_loss": [2 * f, f], "lr": 0.1, "model": n}) for n, f in models
            )
        ),
        "regions": lambda: plots.regions(
            {name: (np.eye(2), np.arange(2), lambda plane: (plane[:, 0] < plane[:, 1]).astype(int)) for name in names},
            names,
        ),
        "projections": lambda: plots.projections(np.eye(2), dict.fromkeys(names, 0.5 * np.eye(2)), 0.5),
        "class_differences": lambda: plots.class_differences(per_class, names[0], about),
        "class_logits": lambda: plots.class_logits(
            about.assign(model=names[1], own=falling * factors[1], others=-falling, norm=falling), about
        ),
        "per_class_accuracy": lambda: plots.per_class_accuracy(per_class, about),
        "class_norms": lambda: plots.class_norms(per_class, about),
        "class_norms, log": lambda: plots.class_norms(per_class, about, log=True),
        "marginal_likelihoods": lambda: plots.marginal_likelihoods(per_class, about),
        "filter_norms": lambda: plots.filter_norms(
            pd.concat(pd.DataFrame(layers).mul(f).assign(model=name, layer=layers["layer"]) for name, f in models)
        ),
        "weight_rays": lambda: plots.weight_rays(norms, 3),
        "norm_evolution": lambda: plots.norm_evolution(norms),
        "norm_evolution, apart": lambda: plots.norm_evolution(norms, shared=False),
        "group_bars": lambda: plots.group_bars(pd.DataFrame([groups(rarest, f, model=name) for name, f in models])),
        "sweep": lambda: plots.sweep(swept, "wd", "weight decay", best=1e-3, log=True),
        "sweep, nothing but 0": lambda: plots.sweep(swept[:1], "wd", "weight decay", best=0, log=True),
        "heatmap": lambda: plots.heatmap(
            pd.DataFrame([[1.0 * f, 2.0 * f] for f in factors], index=names), "radius", "model", "accuracy"
        ),
        "lines": lambda: plots.lines(
            pd.concat(curve(*model) for model in models), "epoch", "test_accuracy", "epoch", "%", least=True, log=("y",)
        ),
        "landscape": lambda: plots.landscape(grid, {names[0]: (0.0, 0.5), names[1]: (1e-2, radii[-1])}),
        "lr_wd_map": lambda: plots.lr_wd_map(tuning_map(rarest, names, factors), 5e-5, *names),
        "confusion": lambda: plots.confusion(3 * np.eye(CLASSES, dtype=int), about),
        "reliability": lambda: plots.reliability(
            pd.concat(pd.DataFrame(bins).mul([f, f, 1]).assign(model=name) for name, f in models)
        ),
    }


NAMES = list(figures())


def words(fig: Figure) -> list[str]:
    return [text.get_text() for text in fig.findobj(Text) if text.get_text()]


# ---- names


@pytest.mark.parametrize("name", NAMES)
def test_dollars_in_names_are_drawn_as_they_stand(name):
    named = [text for text in figures(DOLLARS)[name]().findobj(Text) if re.search("naive|frac", text.get_text())]
    assert bool(named) == (name not in ("class_counts", "sweep", "sweep, nothing but 0", "confusion", "class_logits"))
    for text in named:
        width = text.get_window_extent().width
        text.set_text(text.get_text().replace(r"\$", "$"))
        text.set_parse_math(False)
        assert "$" in text.get_text()
        assert width == text.get_window_extent().width


def test_axes_may_have_formulas():
    fig = plots.sweep(pd.DataFrame([groups(5, tau=1.0)]), "tau", r"$\tau$")
    assert r"$\tau$" in words(fig)


@pytest.mark.parametrize(
    ("order", "number", "expected"),
    [
        (range(10), 3, [0, 1, 2, 7, 8, 9]),
        (range(7), 3, [0, 1, 2, 4, 5, 6]),
        (range(6), 3, [0, 1, 2, 3, 4, 5]),
        (range(4), 3, [0, 1, 2, 3]),
        (range(2), 3, [0, 1]),
        ([], 3, []),
        (np.array([4, 2, 0, 1, 3]), 1, [4, 3]),
    ],
)
def test_ends_give_each_class_once(order, number, expected):
    assert plots.ends(order, number) == expected


def test_the_map_of_learning_rates_keeps_its_cells_apart():
    fig = plots.lr_wd_map(tuning_map(5, PLAIN, (1.0, 1.0)), 5e-5, *PLAIN)
    left = fig.axes[0]
    image = left.images[0].get_array()
    assert [label.get_text() for label in left.get_yticklabels()] == ["0", "0.0005", "0.005"]
    assert [label.get_text() for label in left.get_xticklabels()] == ["0.01", "0.1", "0.1\nbatch 128"]
    assert np.ma.masked_invalid(image).mask.tolist() == [[True, False, True], [True, False, False], [False, True, True]]
    assert len(left.patches) == 3  # of one product
    assert left.images[0].get_interpolation() == "none"
    assert words(fig).count("70 / 40 / 10") == 8


def test_the_map_of_learning_rates_has_one_cell_for_several_seeds():
    table = tuning_map(5, PLAIN, (1.0, 1.0))
    higher = table.assign(all=table["all"] + 2, many=table["many"] + 2)
    said = words(plots.lr_wd_map(pd.concat([table, higher]), 5e-5, *PLAIN))
    assert said.count("71 / 40 / 10") == 8
    assert "70 / 40 / 10" not in said


# ---- numbers that are not there


@pytest.mark.seconds
@pytest.mark.parametrize("factors", [LAST, EVERY], ids=["one diverged", "both diverged"])
@pytest.mark.parametrize("name", NAMES)
def test_diverged_models_show_no_nan(name, factors):
    assert not [text for text in words(figures(factors=factors)[name]()) if "nan" in text.lower()]


@pytest.mark.seconds
@pytest.mark.parametrize("rarest", [50, 300], ids=["no few", "many alone"])
@pytest.mark.parametrize("name", NAMES)
def test_a_group_without_classes_shows_no_nan(name, rarest):
    assert not [text for text in words(figures(rarest=rarest)[name]()) if "nan" in text.lower()]


def test_a_group_without_classes_has_a_dash_or_a_sentence():
    drawn = figures(rarest=50)
    assert words(drawn["group_bars"]()).count("–") == 2
    assert "few (< 20): 0 classes" in words(drawn["class_counts"]())
    landscape = words(drawn["landscape"]())
    assert landscape.count(plots.NO_CLASS) == 1
    assert plots.DIVERGED not in landscape
    assert not [text for text in words(drawn["sweep"]()) if text.startswith("few")]


@pytest.mark.seconds
def test_diverged_training_has_a_dash_or_a_sentence():
    drawn = figures(factors=LAST)
    assert words(drawn["group_bars"]()).count("–") == 4
    assert "WD (ECE –)" in words(drawn["reliability"]())
    for name in ("learning_curves", "norm_evolution", "sweep", "weight_rays"):
        assert words(drawn[name]()).count(plots.DIVERGED) == 1, name
    assert plots.DIVERGED in words(figures(factors=EVERY)["class_norms, log"]())
    landscape = words(drawn["landscape"]())
    assert landscape.count(plots.DIVERGED) == 2
    assert plots.NO_CLASS not in landscape


def test_a_landscape_keeps_the_values_at_which_training_diverged():
    rows = [groups(5, NAN if decay == 0.1 else 1.0, weight_decay=decay, max_norm=1.0) for decay in (0.0, 0.01, 0.1)]
    fig = plots.landscape(pd.DataFrame(rows), {"published": (0.1, 1.0)})
    panel = fig.axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["0", "0.01", "0.1"]
    assert [(*line.get_xdata(), *line.get_ydata()) for line in panel.lines] == [(0, 2)]


def test_classes_at_both_ends_have_their_names_and_those_between_numbers():
    counts = np.geomspace(500, 5, 100).astype(int)
    about = pd.DataFrame({"class_index": range(100), "count": counts, "group": "many"})
    named = about.assign(name=[f"class_{k} $x$" for k in range(100)])
    labels = [tick.get_text() for tick in plots.class_counts(named).axes[0].get_xticklabels()]
    ends = [rf"class {k} \$x\$" for k in (*range(10), *range(90, 100))]
    assert labels == [*ends[:10], "20", "40", "60", "80", *ends[10:]]
    assert not [tick for tick in plots.class_counts(about).axes[0].get_xticklabels() if "class" in tick.get_text()]


@pytest.mark.parametrize("size", [100, 40, 7])
def test_names_beside_a_heat_map_stand_apart_in_order_and_are_joined_to_their_lines(size):
    counts = np.geomspace(500, 5, size).astype(int)
    about = pd.DataFrame({"class_index": range(size), "count": counts, "name": [f"c_{k}" for k in range(size)]})
    about["group"] = metrics.group_of(counts)
    about = about.sample(frac=1, random_state=0)  # any order will do
    maps = plots.confusion(np.eye(size), about), plots.norm_evolution({"x": np.ones((3, size))}, counts=about)
    for axes in (fig.axes[0] for fig in maps):
        places = plots.ends(range(size), 10)
        assert [tick.get_text() for tick in axes.get_yticklabels()] == [f"c {k}" for k in places]
        spots = axes.yaxis.get_ticklocs()
        assert np.diff(spots).min() > 0.99 * max(1, plots.LINE * size)
        assert -0.5 < spots[0] < spots[-1] < size - 0.5
        lines = [mark.xy[1] for mark in axes.texts if isinstance(mark, Annotation) and mark.xy[0] == 0]
        assert lines == pytest.approx([1 - (k + 0.5) / size for k in places])
    assert [tick.get_text() for tick in maps[0].axes[0].get_xticklabels()] == [f"c {k}" for k in places]
    plain = plots.norm_evolution({"x": np.ones((3, size))}).axes[0]
    assert not [tick for tick in plain.get_yticklabels() if "c" in tick.get_text()]


def test_a_confusion_matrix_goes_from_common_to_rare():
    about = pd.DataFrame({"class_index": [0, 1, 2], "count": [5, 200, 50], "group": ["few", "many", "medium"]})
    (image,) = plots.confusion(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 2]]), about).axes[0].get_images()
    np.testing.assert_allclose(image.get_array(), [[100, 0, 0], [0, 100, 0], [25, 0, 75]])


def test_differences_are_those_of_the_named_model():
    about = pd.DataFrame({"class_index": [0, 1, 2], "count": [200, 50, 5], "group": ["many", "medium", "few"]})
    table = pd.concat(about.assign(model=name, accuracy=a) for name, a in {"A": [80, 50, 1], "B": [70, 55, 9]}.items())
    bars = [bar.get_height() for bar in plots.class_differences(table, "A", about).axes[0].patches]
    assert bars == [-10, 5, 8]


def test_regions_show_what_the_classifier_answers():
    points, labels = np.array([[-1.0, 0], [1, 0]]), np.array([0, 1])
    answer = {"halves": (points, labels, lambda plane: (plane[:, 0] > 0).astype(int))}
    fig = plots.regions(answer, ["common", "rare"])
    shown = fig.axes[0].images[0].get_array()
    assert (shown[:, :100] == 0).all()
    assert (shown[:, -100:] == 1).all()
    assert [line.get_label() for line in fig.axes[0].lines] == ["common", "rare"]


def test_categories_fix_the_colours_of_models():
    norms = pd.DataFrame({"model": list("BC"), "layer": 1, "mean": 1.0, "variance": 1.0})
    colour = {line.get_label(): line.get_color() for line in plots.filter_norms(norms).axes[0].lines}
    assert list(colour.values()) == list(plots.COLORS[:2])
    norms = norms.astype({"model": pd.CategoricalDtype(list("ABC"))})
    colour = {line.get_label(): line.get_color() for line in plots.filter_norms(norms).axes[0].lines}
    assert colour == {"B": plots.COLORS[1], "C": plots.COLORS[2]}
    bars = plots.group_bars(norms.assign(many=1.0, medium=1.0, few=1.0, all=1.0)).axes[0].patches
    assert [bar.get_facecolor()[:3] for bar in bars[::4]] == [to_rgb(each) for each in plots.COLORS[1:3]]


def test_filters_are_compared_relative_to_their_mean_too():
    norms = pd.DataFrame({"model": "A", "layer": [1, 2], "mean": [1.0, 2.0], "variance": [0.04, 0.04]})
    assert plots.filter_norms(norms).axes[2].lines[0].get_ydata() == pytest.approx([0.2, 0.1])


def test_rays_of_all_models_have_one_scale():
    norms = {"A": np.full((2, 4), 1.0), "B": np.full((2, 4), 3.0)}
    assert [axes.get_ylim()[1] for axes in plots.weight_rays(norms, 1).axes] == [3.0, 3.0]


def test_long_names_are_cut_and_letters_that_a_font_lacks_are_no_warning(tmp_path):
    counts = pd.DataFrame({"class_index": range(4), "name": ["x" * 200, "日本", "a_b", "c"], "count": [4, 3, 2, 1]})
    counts["group"] = "few"
    assert plots._class_names(counts) == ["x" * 23 + "…", "日本", "a b", "c"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.show(plots.class_counts(counts), tmp_path / "counts.png")
    assert (tmp_path / "counts.png").exists()

"""Balancing a head that the caller brings: tuned on validation alone, folded back exactly, mistakes in one line."""

import dataclasses
import json
import pickle
import re
import subprocess
import sys
import warnings
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from elsewhere import no_float64
from gaussians import Gaussians
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ltr import balance as module
from ltr import methods, metrics, models
from ltr.balance import FIRST, balance, features, fit_temperature, paired_gain
from ltr.data import embeddings
from ltr.data.embeddings import Embeddings
from ltr.errors import InputError, StorageError
from ltr.losses import build_loss
from ltr.methods import BALANCERS, Balancer, logit_adjustment
from ltr.metrics import Predictions
from ltr.models import linear
from ltr.recipes import Recipe
from ltr.runtime.options import ROOT
from ltr.study import balance as command
from ltr.study import balance_report, compare

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
C = 12
NAMES = tuple(f"class {chr(97 + k)}" for k in range(C))


def pair(seed: int, of: str = "test") -> tuple[torch.Tensor, np.ndarray]:
    """Features and labels: a long-tailed set, or a balanced one."""
    data = Gaussians(seed)
    return (data.x, data.labels) if of == "train" else (data.test_x, data.test_labels)


@pytest.fixture(scope="module")
def sets():
    return {"train": pair(0, "train"), "validation": pair(1), "test": pair(2)}


@pytest.fixture(scope="module")
def head():
    return Gaussians(0).naive()


@pytest.fixture(scope="module")
def result(head, sets):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return balance(head, **sets, names=NAMES)


@pytest.fixture(scope="module")
def everything(head, sets):
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr(module, "STEPS", 0)
        return balance(head, **sets, methods="all", score="micro")


def logits(layer: nn.Linear, pair_) -> np.ndarray:
    return layer(torch.as_tensor(pair_[0])).detach().float().numpy()


def problem_of(head: nn.Linear, sets: dict) -> embeddings.Problem:
    """What `balance` makes of its arguments."""
    return embeddings.read(head, sets, dict.fromkeys(("layer", "classes", "names", "validation_share", "seed")))


def complaint(*args, **kwargs) -> str:
    """The one line that a call ends in."""
    with pytest.raises(InputError) as caught:
        balance(*args, **kwargs)
    message = str(caught.value)
    assert message.isprintable()
    assert " must " in message
    return message


# ---- what comes out


def test_balancing_rescues_rare_classes_and_says_what_it_is_worth(result):
    table = result.table.set_index("method")
    assert list(table.index) == list(module.FAMILIES["fast"])
    assert table.loc[result.best, "few"] > table.loc[FIRST, "few"] + 20
    assert table.loc[result.best, "validation"] == table.validation.max()
    assert table.loc[FIRST, ["gain", "gain ±"]].tolist() == [0.0, 0.0]
    over_head, over_adjustment = result.verdict
    assert "over the head as it was" in over_head
    assert "not worth it" not in over_head
    assert "over logit adjustment at tau 1" in over_adjustment


def test_figures_are_those_of_the_head_that_comes_out(result, sets):
    for row in result.table.to_dict("records"):
        z = logits(result.head(row["method"]), sets["test"])
        expected = metrics.Predictions.of(z, sets["test"][1]).summary(result.class_counts)
        for name in ("all", "many", "medium", "few"):
            assert row[name] == pytest.approx(expected[name])
        assert row["ECE"] == pytest.approx(expected["ece"])
        assert row["class mean"] == pytest.approx(np.mean(metrics.per_class_accuracy(z, sets["test"][1])))


def test_the_first_stage_is_the_head_as_it_was(result, head):
    assert torch.equal(result.head(FIRST).weight, head.weight)
    assert torch.equal(result.head(FIRST).bias, head.bias)


def test_the_temperature_is_folded_in(result, head, sets):
    row = result.table.set_index("method").loc["logit adjustment"]
    tau = float(row["hyper-parameters"].split()[1])
    (adjusted,) = logit_adjustment(head, SimpleNamespace(class_counts=result.class_counts), None, [{"tau": tau}])
    expected = logits(adjusted, sets["test"]) / row.temperature
    np.testing.assert_allclose(logits(result.head("logit adjustment"), sets["test"]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.seconds
def test_the_same_table_as_the_comparisons(everything, head, sets):
    """On the same arrays, features of the scale that the grids are made for, and by all images.

    The comparison fits a chosen setting anew, alone: the rounding differs, which a large learning rate amplifies.
    """
    train, validation, test = (Embeddings(torch.as_tensor(x), torch.as_tensor(y), C) for x, y in sets.values())
    scale, recipe = train.scale(), Recipe(**everything.about["recipe"])

    def stage(held: Embeddings) -> SimpleNamespace:
        held, first = held.scaled(scale), linear(head.weight / scale, head.bias)
        return SimpleNamespace(
            model=SimpleNamespace(classifier=first),
            class_counts=train.class_counts,
            seed=recipe.seed,
            draw=train.scaled(scale).draw,
            test_labels=held.labels.numpy(),
            test_logits=lambda classifier, epoch: classifier(held.features).detach().numpy(),
        )

    compared, _ = compare.compare(stage(validation), stage(test), recipe)
    columns = ["method", "hyper-parameters", "many", "medium", "few", "all"]
    pd.testing.assert_frame_equal(everything.table[columns], compared[columns], check_exact=False, atol=2.0)
    easy = ~compared.method.isin(["LOS"])
    pd.testing.assert_frame_equal(everything.table[columns][easy], compared[columns][easy], check_exact=False, atol=0.3)


@pytest.mark.seconds
@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_the_scale_of_features_changes_no_conclusion(factor, result, head, sets):
    scaled = {name: (x * factor, y) for name, (x, y) in sets.items()}
    other = balance((head.weight / factor, head.bias), **scaled, methods=[*module.FAMILIES["fast"], "CB", "cRT"])
    own = balance(head, **sets, methods=[*module.FAMILIES["fast"], "CB", "cRT"])
    assert other.best == own.best
    columns = ["method", "hyper-parameters", "validation", "all", "ECE", "gain"]
    pd.testing.assert_frame_equal(other.table[columns], own.table[columns], check_exact=False, atol=0.2)


def test_nothing_depends_on_the_test_but_the_figures(result, head, sets):
    x, y = sets["test"]
    other = balance(head, sets["train"], sets["validation"], (x, np.random.default_rng(0).permutation(y)))
    columns = ["method", "hyper-parameters", "validation", "temperature"]
    pd.testing.assert_frame_equal(other.table[columns], result.table[columns])
    assert (other.table["all"] != result.table["all"]).all()


def test_the_score_decides(head, sets):
    """Validation images of the commonest class alone: by all images nothing beats the head, class by class neither."""
    x, y = sets["validation"]
    common = np.flatnonzero((y == 0) | ((y == 11) & (np.arange(len(y)) % 20 == 0)))
    few = balance(head, sets["train"], (x[common], y[common]), sets["test"], score="micro")
    mean = balance(head, sets["train"], (x[common], y[common]), sets["test"], score="macro")
    adjusted = [one.table.set_index("method").loc["logit adjustment", "hyper-parameters"] for one in (few, mean)]
    assert float(adjusted[0].split()[1]) < float(adjusted[1].split()[1])


@pytest.mark.seconds
def test_the_caller_and_the_global_random_state_are_left_alone(head, sets, random_state_untouched):
    before = {name: value.clone() for name, value in head.state_dict().items()}, sets["train"][0].clone()
    balance(None, **sets, methods=[*module.FAMILIES["fast"], "cRT", "LWS"])
    balance(head, **sets)
    assert all(torch.equal(before[0][name], value) for name, value in head.state_dict().items())
    assert torch.equal(before[1], sets["train"][0])


def test_progress_is_said(head, sets):
    lines = []
    balance(head, **sets, say=lines.append)
    assert [line.split(":")[0] for line in lines] == list(module.FAMILIES["fast"])


# ---- forms of features, labels and heads


@pytest.mark.parametrize("kind", [np.float16, np.float64, torch.bfloat16, torch.float64])
def test_any_float_type(kind, head, sets):
    def as_kind(x):
        return x.to(kind) if isinstance(kind, torch.dtype) else x.numpy().astype(kind)

    other = balance(head, **{name: (as_kind(x), y) for name, (x, y) in sets.items()})
    assert other.table.set_index("method").loc["NCM", "all"] > 60


def test_strings_are_classes_in_alphabetical_order_or_in_the_order_of_names(result, head, sets):
    named = {name: (x, np.array(NAMES)[y]) for name, (x, y) in sets.items()}
    assert balance(head, **named).table.drop(columns="seconds").equals(result.table.drop(columns="seconds"))
    turned = linear(head.weight.flip(0), head.bias.flip(0))
    assert balance(turned, **named, names=NAMES[::-1]).table["all"].tolist() == result.table["all"].tolist()
    other = balance(turned, **named, classes=NAMES[::-1])
    assert other.table["all"].tolist() == result.table["all"].tolist()
    assert other.per_class.name.tolist() == list(NAMES[::-1])


def test_a_column_of_a_data_frame_will_do(head, sets):
    named = {name: (x.numpy(), pd.Series(np.array(NAMES)[y], dtype=object)) for name, (x, y) in sets.items()}
    assert balance(head, **named).per_class.name.tolist() == list(NAMES)


def test_a_head_is_a_layer_a_pair_a_state_dict_or_a_model(result, head, sets):
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, C))
    model[1].load_state_dict(head.state_dict())
    state = {f"head.fc.{name}": value for name, value in head.state_dict().items()} | {"stem.weight": torch.ones(3, 2)}
    forms = [((head.weight, head.bias), None), (state, "head.fc"), (state, None), (model, "1")]
    for form, layer in forms:
        other = balance(form, **sets, layer=layer)
        assert other.table["all"].tolist() == result.table["all"].tolist()
        if layer is not None:
            assert list(other.state()) == [f"{layer}.weight", f"{layer}.bias"]


def test_a_head_comes_back_in_its_own_type(head, sets):
    other = balance((head.weight.double(), head.bias.double()), **sets)
    assert {value.dtype for value in other.state("NCM").values()} == {torch.float64}
    half = balance((head.weight.half(), head.bias.half()), **sets)
    assert half.head().weight.dtype == torch.float16


@pytest.mark.seconds
def test_a_head_without_bias_gets_methods_that_need_none(head, sets):
    other = balance((head.weight, None), **sets, methods="all")
    assert other.table.method.tolist() == [name for name in BALANCERS if name != "logit adjustment"]
    assert other.table["all"].notna().all()
    assert all(other.head(name).bias is None for name in other.heads)
    assert other.table.set_index("method").loc["NCM", "hyper-parameters"] == "metric cosine"
    layer = nn.Linear(10, C, bias=False)
    other.write_into(layer)
    assert torch.equal(layer.weight, other.head().weight)


def test_without_bias_the_weights_learn_as_in_a_plain_loop(head, sets):
    problem, recipe = problem_of((head.weight, None), sets), Recipe(2, 64, 0.01, loss="cb-ce")
    (found,) = BALANCERS["CB"].fit(problem.start(), problem.train, recipe, [{"lr": 1.0}])
    layer, loss = linear(problem.start().weight), build_loss("cb-ce", torch.as_tensor(problem.train.class_counts))
    optimizer = torch.optim.SGD(layer.parameters(), momentum=0.9)
    for epoch in range(2):
        optimizer.param_groups[0]["lr"] = recipe.learning_rate(epoch)
        for x, y in zip(*(values.split(64) for values in problem.train.draw(64, 0, epoch)), strict=True):
            optimizer.zero_grad()
            loss(layer(x), y).backward()
            optimizer.step()
    torch.testing.assert_close(found.weight, layer.weight, rtol=1e-4, atol=1e-5)
    assert not found.bias.any()


def test_without_a_head_plain_cross_entropy_comes_first(sets):
    other = balance(None, **sets)
    row = other.table.set_index("method").loc[FIRST]
    assert "lr" in row["hyper-parameters"]
    assert row["all"] > 40
    assert other.table["all"].max() > row["all"]


def test_a_share_of_the_training_images_validates(sets):
    other = balance(None, sets["train"], test=sets["test"], validation_share=0.2)
    counts, images = np.bincount(sets["train"][1]), other.about["images"]
    assert images["train"] + images["validation"] == counts.sum()
    assert images["validation"] == sum(max(1, round(0.2 * int(count))) for count in counts)


@pytest.mark.seconds
@given(st.lists(st.integers(2, 40), min_size=2, max_size=6), st.floats(0.01, 0.99), st.integers(0, 99))
def test_a_split_takes_of_each_class_one_at_least_and_never_all(counts, share, seed):
    labels = torch.as_tensor(np.repeat(np.arange(len(counts)), counts))
    data = Embeddings(torch.arange(len(labels), dtype=torch.float32)[:, None], labels, len(counts))
    rest, taken = embeddings.split(data, share, [str(k) for k in range(len(counts))], seed)
    assert rest.class_counts.min() >= 1
    assert taken.class_counts.min() >= 1
    assert sorted(torch.cat([rest.features, taken.features]).flatten().tolist()) == list(range(len(labels)))


# ---- writing back


def test_a_head_is_written_into_a_model_by_name(result, sets):
    model = nn.Sequential(nn.Identity(), nn.Linear(10, C))
    result.write_into(model, "1")
    torch.testing.assert_close(model(sets["test"][0]), result.head()(sets["test"][0]))
    result.write_into(model[1], method="tau-norm")
    assert torch.equal(model[1].weight, result.head("tau-norm").weight)


def test_writing_over_the_head_does_not_change_the_result(head, sets):
    layer = linear(head.weight, head.bias)
    result = balance(layer, **sets)
    result.write_into(layer)
    assert torch.equal(result.head(FIRST).weight, head.weight)
    result.write_into(layer, method=FIRST)
    assert torch.equal(layer.bias, head.bias)


def test_a_layer_without_bias_takes_no_method_that_needs_one(result):
    layer = nn.Linear(10, C, bias=False)
    before = layer.weight.detach().clone()
    with pytest.raises(InputError, match="^layer: must have a bias"):
        result.write_into(layer, method="logit adjustment")
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (nn.Sequential(nn.Linear(10, C)), "fc"),
        (nn.Sequential(nn.Linear(10, C)), None),
        (nn.Linear(11, C), None),
        (nn.Sequential(nn.ReLU()), "0"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(10, C)), None),
    ],
)
def test_what_cannot_be_written_into_is_refused(result, model, layer):
    with pytest.raises(InputError, match="^layer: must be"):
        result.write_into(model, layer)


def test_an_unknown_method_is_answered_with_the_nearest(result):
    with pytest.raises(InputError, match=r"^method: must be one of .*did you mean tau-norm\?"):
        result.head("tau norm")


def test_a_balanced_model_can_be_traced_and_exported(result, sets):
    model = nn.Sequential(nn.Identity(), nn.Linear(10, C)).eval()
    result.write_into(model, "1")
    x = sets["test"][0][:4]
    torch.testing.assert_close(torch.jit.trace(model, x)(x), model(x))
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


# ---- choosing, warning, worth


def grid(candidates, scores, best):
    return module.at_edge(candidates, candidates, scores, best)


def test_the_edge_of_a_grid():
    taus = [{"tau": float(tau)} for tau in range(4)]
    assert grid(taus, [1, 2, 3, 4], 3) == ("tau",)
    assert grid(taus, [4, 3, 2, 1], 0) == ()  # nothing below 0
    assert grid(taus, [1, 4, 2, 1], 1) == ()
    assert grid([{"lr": 1.0}, {"lr": 10.0}, {"lr": 100.0}], [5, 5, 1], 0) == ()  # one inside is as good
    assert grid([{"lr": 1.0}, {"lr": 10.0}], [5, 1], 0) == ("lr",)
    assert grid([{"metric": "cosine"}], [5], 0) == ()
    assert grid([{"weight_decay": 0.0, "lr": 1.0}, {"weight_decay": 1.0, "lr": 1.0}], [1, 5], 1) == ("weight decay",)


def test_warnings(head, sets):
    x, y = sets["validation"]
    keep = np.flatnonzero((y != 3) | (np.arange(len(y)) % 25 == 0))
    with pytest.warns(UserWarning, match=r"1 of 12 classes have fewer than 5 validation images \(3 has 4\)"):
        other = balance(head, sets["train"], (x[keep], y[keep]))
    assert any(line.startswith("no test set") for line in other.warnings)
    assert other.tested_on == "validation"
    x, y = sets["test"]
    repeated = torch.cat([x, sets["train"][0][:2]]), np.append(y, sets["train"][1][:2])
    assert (
        "2 test images stand in training or validation too"
        in balance(head, sets["train"], sets["validation"], repeated).warnings
    )
    wrong = balance((head.weight.roll(1, 0), head.bias.roll(1, 0)), **sets)
    assert any("hardly better than chance" in line for line in wrong.warnings)


def test_a_head_that_was_balanced_is_not_balanced_again_without_a_word(sets, head):
    said = "the head was balanced before: give the one that was trained, for which methods are made"
    model = nn.Sequential(nn.Identity(), linear(head.weight, head.bias))
    first = balance(model, **sets, layer="1")
    assert said not in first.warnings
    first.write_into(model)
    for again in (balance(model, **sets, layer="1"), balance(model[1], **sets), balance(deepcopy(model), **sets)):
        assert said in again.warnings
    assert said in balance(first.head(), **sets).warnings
    first.write_into(model, method=FIRST)
    assert said not in balance(model, **sets, layer="1").warnings
    first.write_into(model)
    with torch.no_grad():
        model[1].weight.copy_(head.weight)  # trained anew, say
    assert said not in balance(model, **sets, layer="1").warnings


def test_worth_it_is_what_the_verdict_says(result, sets):
    assert result.worth_it
    even = Gaussians(3)
    x, y = even.test_x, even.test_labels
    half = np.arange(len(y)) % 2 == 0
    good = balance(None, (x[half], y[half]), (x[~half], y[~half]), methods=["tau-norm"])
    stays = balance(good.head(), (x[half], y[half]), (x[~half], y[~half]), methods=["tau-norm"])
    assert stays.worth_it == (not any("not worth it" in line and "as it was" in line for line in stays.verdict))


def test_a_temperature_alone_is_told(result, head, sets):
    alone = result.about["temperature alone"]
    logits = head(torch.as_tensor(sets["validation"][0])).detach()
    assert alone["temperature"] == pytest.approx(fit_temperature(logits, torch.as_tensor(sets["validation"][1])), 1e-3)
    tested = Predictions.of(head(sets["test"][0]).detach().numpy() / alone["temperature"], sets["test"][1])
    assert alone["ECE"] == pytest.approx(tested.calibration_error(), abs=0.05)
    assert "by a temperature alone" in balance_report.html(result)


def test_a_setting_that_diverges_is_never_chosen(head, sets):
    problem = problem_of(head, sets)

    def diverges(first, data, recipe, candidates):
        return [linear(first.weight + one["value"], first.bias) for one in candidates]

    method = Balancer(diverges, [{"value": np.nan}, {"value": 0.0}, {"value": np.inf}])
    recipe = module.recipe_for(len(problem.train))
    assert module.tune(method, problem.start(), problem, recipe, "macro").candidate == {"value": 0.0}
    lost = module.tune(Balancer(diverges, [{"value": np.nan}]), problem.start(), problem, recipe, "macro")
    assert np.isnan(lost.shown_score())


def test_a_method_that_diverges_has_no_figures_and_stops_nothing(head, sets, monkeypatch):
    def diverges(first, data, recipe, candidates):
        return [linear(first.weight * np.nan, first.bias) for _ in candidates]

    monkeypatch.setitem(BALANCERS, "NCM", Balancer(diverges, [{"metric": "cosine"}]))
    said = []
    row = balance(head, **sets, say=said.append).table.set_index("method").loc["NCM"]
    assert any(line.startswith("NCM: validation – %") for line in said)
    assert row[["validation", "all", "few", "ECE", "gain", "gain over LA ±"]].isna().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_head_needs_no_float64_on_the_device_of_the_features(head, sets, dtype):
    parts = head.weight.to(dtype), head.bias.to(dtype)
    here = balance(parts, **sets)
    with no_float64() as device:
        there = balance(parts, **{name: (x.to(device), y) for name, (x, y) in sets.items()})
        assert there.best == here.best
        for one, other in zip(there.parts(), here.parts(), strict=True):
            assert (one.device.type, one.dtype) == ("cpu", dtype)
            torch.testing.assert_close(one, other)


def test_a_large_grid_is_thinned_and_a_small_one_is_not(head, sets, monkeypatch):
    problem = problem_of(head, sets)
    seen = []

    def fit(first, data, recipe, candidates):
        seen.append((recipe.epochs, len(candidates)))
        return [linear(first.weight, first.bias + one["lr"] * torch.arange(C)) for one in candidates]

    method, recipe = Balancer(fit, [{"lr": i / 10} for i in range(40)]), module.recipe_for(len(problem.train))
    whole = module.tune(method, problem.start(), problem, recipe, "macro")
    monkeypatch.setattr(module, "LARGE", 0)
    thinned = module.tune(method, problem.start(), problem, recipe, "macro")
    assert seen == [(recipe.epochs, 40), (1, 40), (recipe.epochs, 4)]
    assert thinned.candidate == whole.candidate


@pytest.mark.seconds
def test_settings_in_pieces_are_settings_at_once(head, sets, monkeypatch):
    whole = balance(head, **sets, methods=["LWS"])
    monkeypatch.setattr(methods, "ROOM", 1)
    pieces = balance(head, **sets, methods=["LWS"])
    columns = ["hyper-parameters", "validation", "all"]
    pd.testing.assert_frame_equal(whole.table[columns], pieces.table[columns], check_exact=False, atol=0.2)


def test_the_temperature_is_the_most_likely():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4000, 5, generator=generator)
    labels = torch.multinomial(z.softmax(1), 1, generator=generator).squeeze(1)
    assert fit_temperature(z, labels) == pytest.approx(1.0, abs=0.06)
    assert fit_temperature(40 * z, labels) == pytest.approx(40 * fit_temperature(z, labels), rel=1e-3)
    certain = 3.0 * nn.functional.one_hot(labels, 5).float()
    assert fit_temperature(certain, labels) == 1.0, "no temperature is small enough"
    certain[0] = certain[0].roll(1)
    assert 0 < fit_temperature(certain, labels) < 1
    assert fit_temperature(torch.zeros(3, 2), torch.tensor([0, 1, 1])) == 1.0
    for value in (np.nan, np.inf):
        assert np.isnan(fit_temperature(torch.tensor([[1.0, value], [2.0, 1.0]]), torch.tensor([0, 1])))


def outcome(hits: list[int], labels: list[int]) -> Predictions:
    """Predictions that are right where a hit stands."""
    predictions = np.where(np.array(hits, bool), labels, (np.array(labels) + 1) % 2)
    return Predictions(predictions, np.ones(len(labels)), np.array(labels), np.full(2, 0.5))


def test_the_paired_gain_by_hand():
    labels = [0, 0, 0, 0, 1, 1]
    before, after = outcome([1, 1, 0, 0, 0, 0], labels), outcome([1, 1, 1, 0, 1, 0], labels)
    gain, error = paired_gain(before, after, "macro")
    assert gain == pytest.approx(100 * (1 / 4 + 1 / 2) / 2)
    assert error == pytest.approx(100 * ((0.25 / 4 + 0.5 / 2) ** 0.5) / 2)
    gain, error = paired_gain(before, after, "micro")
    assert gain == pytest.approx(100 / 3)
    assert error == pytest.approx(100 * np.std([0, 0, 1, 0, 1, 0], ddof=1) / 6**0.5)
    assert paired_gain(before, before, "macro") == (0.0, 0.0)


def test_not_worth_it_within_two_standard_errors(result):
    table = result.table.set_index("method")
    table.loc[result.best, ["gain", "gain ±"]] = 1.9, 1.0
    poor = dataclasses.replace(result, table=table.reset_index())
    assert poor.verdict[0].endswith("not worth it, within two standard errors")
    table.loc[result.best, ["gain over LA", "gain over LA ±"]] = -2.1, 1.0
    assert dataclasses.replace(result, table=table.reset_index()).verdict[1].endswith("not worth it, a loss")
    assert "not worth it" in dataclasses.replace(result, best=FIRST).verdict[0]


# ---- files


def test_files(result, tmp_path, sets):
    result.save(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "chosen.json", "head.pt", "per_class.csv", "table.csv"
    ]  # fmt: skip
    state = torch.load(tmp_path / "out" / "head.pt", weights_only=True)
    assert torch.equal(state["weight"], result.head().weight)
    per_class = pd.read_csv(tmp_path / "out" / "per_class.csv")
    assert per_class.name.tolist() == list(NAMES)
    assert per_class["training images"].tolist() == result.class_counts.tolist()
    z = logits(result.head(), sets["test"])
    np.testing.assert_allclose(per_class["accuracy after"], metrics.per_class_accuracy(z, sets["test"][1]), atol=1e-3)
    predicted = np.bincount(z.argmax(1), minlength=C)
    hits = Predictions.of(z, sets["test"][1]).confusion.diagonal()
    np.testing.assert_allclose(per_class["precision"], 100 * hits / predicted, atol=1e-3)
    chosen = json.loads((tmp_path / "out" / "chosen.json").read_text())
    assert chosen["best"] == result.best
    assert set(chosen["methods"]) == set(result.table.method)


@pytest.fixture
def folder(tmp_path, sets, head, monkeypatch):
    """npz files, a model's weights, and the folder to work in."""
    for name, (x, y) in sets.items():
        np.savez(tmp_path / f"{name}.npz", features=x.numpy(), labels=np.array(NAMES)[y], names=np.array(NAMES))
    state = {f"fc.{name}": value for name, value in head.state_dict().items()}
    torch.save({"state_dict": {**state, "conv.weight": torch.zeros(2, 3, 3, 3)}, "epoch": 3}, tmp_path / "model.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


SETS = ["--train", "train.npz", "--validation", "validation.npz", "--test", "test.npz"]
HEAD = ["--head", "model.pt", "--layer", "fc"]


@pytest.mark.seconds
def test_the_command(folder, capsys, result):
    command.main([*SETS, *HEAD, "--out", "balanced"])
    said = capsys.readouterr().out
    for line in (*result.verdict, *result.table.method):
        assert line in said
    written = {path.name for path in (folder / "balanced").iterdir()}
    assert written == {"head.pt", "table.csv", "per_class.csv", "chosen.json", "report.html"}
    state = torch.load(folder / "balanced" / "head.pt", weights_only=True)
    assert list(state) == ["fc.weight", "fc.bias"]
    torch.testing.assert_close(state["fc.weight"], result.head().weight)
    page = (folder / "balanced" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert not re.search(r'(src|href)="(?!data:)', page)  # a single file
    for words in ("What was balanced", "Who gains, who loses", "Confusion", "Calibration", "What it costs", NAMES[-1]):
        assert words in page
    assert str(folder) not in page + said


def test_names_are_shown_as_they_are(result):
    named = dataclasses.replace(result, names=tuple(f"<script>{k}&" for k in range(C)))
    page = balance_report.classes_table(named, True) + balance_report.mistakes_table(named)
    assert "<script>" not in page
    assert "&lt;script&gt;11&amp;" in page


def test_the_command_without_a_head(folder, capsys, monkeypatch):
    monkeypatch.setattr(balance_report, "html", lambda result: "")
    command.main(["--train", "train.npz", "--validation-share", "0.3", "--score", "micro"])
    assert "no test set" in capsys.readouterr().out
    assert list(torch.load(folder / "balanced" / "head.pt", weights_only=True)) == ["weight", "bias"]


def test_the_command_on_a_head_without_bias(folder, capsys, monkeypatch):
    monkeypatch.setattr(balance_report, "html", lambda result: "")
    torch.save({"fc.weight": torch.load("model.pt", weights_only=True)["state_dict"]["fc.weight"]}, "weight.pt")
    command.main([*SETS, "--head", "weight.pt"])
    assert list(torch.load(folder / "balanced" / "head.pt", weights_only=True)) == ["fc.weight"]


@pytest.mark.seconds
@pytest.mark.parametrize("classes", [2, 3])
def test_a_page_of_few_classes_and_missing_validation_images(classes):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), 6)
    x = rng.normal(size=(len(labels), 4)) + labels[:, None]
    result = balance(None, (x, labels), (x[:6] + 0.1, labels[:6]), methods="all")
    assert np.isnan(result.per_class["accuracy after"][1])
    assert "What it costs" in balance_report.html(result)


def test_a_page_of_a_head_that_stays_says_so(head, sets):
    result = balance(head, sets["train"], sets["validation"], methods=[FIRST], names=NAMES)
    page = balance_report.html(result)
    assert "<h1>Left as it was</h1>" in page
    assert "is folded into the head" not in page
    assert "Precision falls" not in page


def test_features_of_another_size_than_the_validations_are_told(head, sets):
    x, y = sets["train"]
    for factor, told in ((1.0, False), (1e6, True), (0.0, True)):
        result = balance(head, (factor * x, y), sets["validation"], methods=[FIRST])
        assert any("long in the mean" in line for line in result.warnings) == told


@pytest.mark.parametrize(
    ("model", "loader", "message"),
    [
        ([1], nn.Linear(4, 2), "model: must be a torch.nn.Module, got list"),
        (nn.Linear(4, 2), None, "loader: must give batches .images, labels., got NoneType"),
        (
            nn.Linear(4, 2),
            [(torch.ones(3, 4), 1)],
            "loader: must give batches, a label for each image, got .* and 1",
        ),
        (nn.Linear(4, 2), [(torch.ones(3, 4), [1, 0])], "loader: must give batches, .* and 2 labels"),
        (nn.Linear(4, 2), [(np.ones((3, 4)), [1, 0, 1])], "loader: images must be tensors"),
        (nn.Linear(4, 2), [torch.ones(3, 4)], "loader: must give batches .images, labels., got Tensor"),
    ],
)
def test_what_features_cannot_use_is_told(model, loader, message):
    with pytest.raises(InputError, match=f"^{message}"):
        features(model, loader)


class Evil:
    """Would leave a file behind if it were ever unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("unpickled"),)


def damaged(folder: Path) -> None:
    """Files that are wrong in some way."""
    (folder / "text.npz").write_text("no archive")
    (folder / "pickle.npz").write_bytes(pickle.dumps(Evil()))
    np.save(folder / "array.npy", np.ones(3))
    labels = np.zeros(2, int)
    np.savez(folder / "objects.npz", features=np.array([Evil()]), labels=labels)
    np.savez(folder / "lacking.npz", features=np.ones((2, 2)))
    np.savez(folder / "names.npz", features=np.eye(3, 10), labels=["a", "b", "c"], names=["a", "b", "b"])
    np.savez(folder / "longer.npz", features=np.ones((2, 10)), labels=np.arange(3))
    np.savez(folder / "nan.npz", features=np.array([[1.0] * 10, [np.nan] * 10]), labels=np.array(NAMES[:2]))
    np.savez(folder / "stranger.npz", features=np.random.default_rng(5).normal(size=(2, 10)), labels=["x", NAMES[0]])
    np.savez(folder / "narrow.npz", features=np.random.default_rng(5).normal(size=(2, 3)), labels=NAMES[:2])
    whole = (folder / "train.npz").read_bytes()
    (folder / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "flipped.npz").write_bytes(whole[:300] + bytes([whole[300] ^ 1]) + whole[301:])
    torch.save(nn.Linear(2, 2), folder / "module.pt")
    (folder / "evil.pt").write_bytes(pickle.dumps(Evil()))
    torch.save([1, 2], folder / "list.pt")
    torch.save({"fc.weight": torch.zeros(C, 9)}, folder / "nine.pt")
    torch.save({"fc.weight": torch.zeros(5, 10)}, folder / "five.pt")


BAD = [
    ([], "--train"),
    (["--train", "absent.npz"], "--train"),
    (["--train", "."], "--train"),
    *([["--train", f"{name}"], "--train"] for name in ("text.npz", "pickle.npz", "array.npy", "objects.npz")),
    *([["--train", f"{name}.npz"], "--train"] for name in ("lacking", "longer", "nan", "cut", "flipped", "names")),
    (["--train", "train.npz"], "--validation"),
    (["--train", "train.npz", *HEAD], "--validation"),
    (["--train", "train.npz", *HEAD, "--validation-share", "0.2"], "--validation"),
    ([*SETS, "--validation-share", "0.2"], "--validation-share"),
    (["--train", "train.npz", "--validation-share", "0"], "--validation-share"),
    (["--train", "train.npz", "--validation-share", "nan"], "--validation-share"),
    (["--train", "train.npz", "--validation", "train.npz"], "--validation"),
    (["--train", "train.npz", "--validation", "validation.npz", "--test", "validation.npz"], "--test"),
    (["--train", "train.npz", "--validation", "stranger.npz"], "--validation"),
    (["--train", "train.npz", "--validation", "narrow.npz"], "--validation"),
    (["--train", "train.npz", "--validation", "nan.npz"], "--validation"),
    ([*SETS, "--layer", "fc"], "--layer"),
    ([*SETS, "--head", "model.pt", "--layer", "conv"], "--layer"),
    ([*SETS, "--head", "model.pt", "--layer", "f"], "--layer"),
    *([[*SETS, "--head", f"{name}.pt"], "--head"] for name in ("absent", "module", "evil", "list", "five")),
    ([*SETS, "--head", "nine.pt", "--layer", "fc"], "--head"),
    ([*SETS, "--head", "train.npz"], "--head"),
    ([*SETS, "--score", "mean"], "--score"),
    ([*SETS, "--methods", "slow"], "--methods"),
    ([*SETS, "--seed", "-1"], "--seed"),
    ([*SETS, "--out", "train.npz"], "--out"),
    ([*SETS, "--out", "train.npz/below"], "--out"),
    ([*SETS, "--out", "a" * 300], "--out"),
    ([*SETS, "--out", "dangling"], "--out"),
    ([*SETS, "--out", "earlier"], "--out"),
    ([*SETS, "--trian", "x"], "--trian"),
    ([*SETS, *SETS], "--train"),
]


@pytest.mark.parametrize(("words", "option"), BAD, ids=[" ".join(words) or "nothing" for words, _ in BAD])
def test_mistakes_are_one_line_and_write_nothing(words, option, folder):
    damaged(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "dangling").symlink_to("nowhere")
    (folder / "earlier" / "report.html").mkdir(parents=True)
    with pytest.raises(InputError, match=f"^{option}: ") as caught:
        command.main(words)
    assert str(caught.value).isprintable()
    assert " must " in str(caught.value)
    assert str(folder) not in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["earlier"]


@pytest.mark.slow
def test_mistakes_have_exit_code_2(folder):
    words = [sys.executable, "-m", "ltr", "balance", "--train", "absent.npz"]
    done = subprocess.run(words, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "PATH": ""})
    assert done.returncode == 2
    assert done.stderr.startswith("error: --train: must be")
    assert done.stderr.count("\n") == 1


# ---- mistakes in the call


def test_mistakes_name_their_row(head, sets):
    x, y = sets["train"]
    broken = x.clone()
    broken[7, 3] = torch.inf
    assert complaint(head, (broken, y), sets["validation"]).endswith("in row 7")
    message = complaint(
        head, sets["train"], (torch.cat([sets["validation"][0], x[4:5]]), np.append(sets["validation"][1], 0))
    )
    assert "row 1200 is its row 4 (1 shared)" in message
    other = sets["validation"][1].copy()
    other[5] = 99
    assert "got 99 in row 5" in complaint(head, sets["train"], (sets["validation"][0], other))


def test_mistakes_of_shape_and_kind(head, sets):
    x, y = sets["train"]
    rest = {"validation": sets["validation"]}
    for train in (
        (x, y[:-1]),
        (x[0], y),
        (x, y.astype(float)),
        (x > 0, y),
        ([[1.0], [1.0, 2.0]], [0, 1]),
        (x, [[0], [1, 2]]),
        (x[:0], y[:0]),
        x,
        (x, y[:, None]),
    ):
        assert complaint(head, train, **rest).startswith("train: ")
    missing = np.flatnonzero(y != 5)
    assert "5 has none" in complaint(head, (x[missing], y[missing]), **rest)
    assert complaint(head, None, **rest).startswith("train: ")
    assert complaint(head, (x, y + 1), **rest).startswith("train: labels")
    assert complaint(head, (x, np.array(NAMES)[y]), **rest).startswith("validation: labels")
    for bad in (
        nn.Linear(9, C),
        nn.Linear(10, 11),
        nn.Conv2d(10, C, 1),
        "fc",
        (torch.ones(C), None),
        ("w", "b"),
        ([[1], [2, 3]], None),
        3,
    ):
        assert re.match("(head|layer|train): ", complaint(bad, sets["train"], **rest))
    assert complaint((head.weight, torch.zeros(3)), sets["train"], **rest).startswith("head: bias")
    assert complaint((head.weight * torch.nan, None), sets["train"], **rest).startswith("head: weight")
    one_row = SimpleNamespace(coef_=np.ones((1, 10)), intercept_=np.ones(1), classes_=np.arange(3))
    assert complaint(one_row, sets["train"], **rest).startswith("head: weight must be numbers [C, D] with a row for")


def test_too_few_names_are_named(sets):
    assert complaint(None, **sets, names=NAMES[:4]) == f"names: must be one for each of {C} classes, got 4"


def test_mistakes_of_options(head, sets):
    assert "did you mean macro?" in complaint(head, **sets, score="makro")
    assert "did you mean tau-norm?" in complaint(head, **sets, methods=["taunorm"])
    for named in (["tau-norm", "logit adjustment"], "logit adjustment"):
        assert complaint((head.weight, None), **sets, methods=named).startswith("methods: must need no bias")
    assert complaint(head, **sets, names=NAMES[1:]).startswith("names: ")
    assert complaint(head, **sets, classes=[0] * C).startswith("classes: ")
    assert complaint(head, **sets, classes=range(11)).startswith("head: ")
    assert complaint(None, sets["train"], validation_share=2).startswith("validation_share: ")
    twice = torch.cat([sets["train"][0], sets["train"][0][4:5]]), np.append(sets["train"][1], sets["train"][1][4])
    message = complaint(None, twice, validation_share=0.2)
    assert message.startswith("validation_share: ")
    assert f"row {len(sets['train'][1])} is there before (1 such)" in message
    lonely = np.concatenate([[0], np.flatnonzero(sets["train"][1] != sets["train"][1][0])])
    assert "has 1" in complaint(None, (sets["train"][0][lonely], sets["train"][1][lonely]), validation_share=0.5)


# ---- features of a model


class Net(nn.Module):
    """A network with dropout and a frozen part in evaluation mode, whose head is not its last registered layer."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.body = nn.Linear(4, 6)
        self.frozen = nn.BatchNorm1d(6).eval()
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.head(self.drop(self.frozen(self.body(x)).relu()))


def test_features_are_what_the_head_gets(random_state_untouched):
    with torch.random.fork_rng():
        net = Net().train()
        images = torch.randn(7, 4)
    net.frozen.eval()
    loader = [(images[:4], torch.tensor([0, 1, 2, 0])), (images[4:], torch.tensor([1, 1, 2]))]
    x, y, layer = features(net, loader)
    assert layer == "head"
    assert y.tolist() == [0, 1, 2, 0, 1, 1, 2]
    assert net.training
    assert net.drop.training
    assert not net.frozen.training
    torch.testing.assert_close(net.eval()(images), net.head(x))
    assert not net.head._forward_pre_hooks
    assert not x.requires_grad


def test_a_head_may_be_called_by_its_arguments_name():
    class Named(Net):
        def forward(self, x):
            return self.head(input=self.body(x))

    net, images = Named(), torch.ones(2, 4)
    x, _, layer = features(net, [(images, torch.tensor([0, 1]))])
    assert layer == "head"
    torch.testing.assert_close(net.eval()(images), net.head(x))


def test_what_was_interrupted_by_a_full_disk_can_be_repeated(folder, monkeypatch):
    def full(path, weights):
        raise StorageError(f"cannot write {path}: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_weights", full)
        with pytest.raises(StorageError):
            command.main([*SETS, *HEAD, "--out", "balanced"])
    command.main([*SETS, *HEAD, "--out", "balanced"])
    assert (folder / "balanced" / "report.html").exists()


def test_features_keep_labels_that_are_strings():
    _, y, _ = features(Net(), [(torch.ones(2, 4), ["a", "b"]), (torch.ones(1, 4), ("c",))])
    assert y.tolist() == ["a", "b", "c"]


@pytest.mark.parametrize("loader", [[], [torch.ones(2, 4)], [{"x": 1}]])
def test_a_loader_that_gives_something_else_is_refused(loader):
    with pytest.raises(InputError, match="^loader: must"):
        features(Net(), loader)


def test_a_model_with_no_linear_output_is_refused():
    for model in (nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), nn.Sequential(nn.Conv1d(4, 3, 1), nn.Flatten())):
        with pytest.raises(InputError, match="^model: must end in a linear layer"):
            features(model, [(torch.ones(2, 4, 1) if isinstance(model[0], nn.Conv1d) else torch.ones(2, 4), [0, 1])])


def test_every_method_is_there(everything):
    assert everything.table.method.tolist() == list(BALANCERS)


def estimator(weight: np.ndarray, bias: np.ndarray, classes: np.ndarray) -> SimpleNamespace:
    return SimpleNamespace(coef_=weight, intercept_=bias, classes_=classes)


def test_an_estimator_whose_text_labels_came_from_a_data_frame(head, sets, result):
    """Their classes are objects, as pandas has strings."""
    weight, bias = (values.detach().numpy() for values in (head.weight, head.bias))
    text = {name: (x, pd.Series(np.array(NAMES)[y], dtype=object)) for name, (x, y) in sets.items()}
    found = balance(estimator(weight, bias, np.array(NAMES, dtype=object)), **text)
    pd.testing.assert_frame_equal(found.table.drop(columns="seconds"), result.table.drop(columns="seconds"))
    found = balance(head, **text, classes=pd.Index(NAMES))
    assert found.best == result.best


def test_a_head_is_written_into_an_estimator_of_its_shape_alone(head, result):
    weight, bias = (values.detach().numpy() for values in (head.weight, head.bias))
    mine = estimator(weight.copy(), bias.copy(), np.arange(C))
    result.write_into(mine)
    np.testing.assert_allclose(mine.coef_, result.parts()[0].numpy())
    with pytest.raises(InputError, match="^layer: must have the 12 classes of the head, got 0, 1, 2$"):
        result.write_into(estimator(np.zeros((3, 5)), np.zeros(3), np.arange(3)))
    with pytest.raises(InputError, match=r"^layer: must be \[12, \d+\], got coef_ \[12, 5\]$"):
        result.write_into(estimator(np.zeros((12, 5)), np.zeros(12), np.arange(12)))
    turned = estimator(weight.copy(), bias.copy(), np.arange(C)[::-1])
    result.write_into(turned)
    np.testing.assert_allclose(turned.coef_[::-1], mine.coef_)


def test_a_head_with_negative_strides_and_features_of_any_size(head, sets, result):
    weight, bias = (values.detach().numpy()[::-1].copy()[::-1] for values in (head.weight, head.bias))
    found = balance((weight, bias), **sets, names=NAMES)
    pd.testing.assert_frame_equal(found.table.drop(columns="seconds"), result.table.drop(columns="seconds"))
    for factor in (2.0**66, 2.0**-66):
        large = {name: (x * factor, y) for name, (x, y) in sets.items()}
        found = balance((weight / factor, bias), **large, names=NAMES, methods="tau-norm")
        assert found.table["all"].iloc[0] == result.table["all"].iloc[0]


@pytest.mark.parametrize("methods", [None, 3, [["tau-norm"]]])
def test_methods_that_are_no_names_are_refused(head, sets, methods):
    with pytest.raises(InputError, match="^methods: must be fast, all or names of methods, got "):
        balance(head, **sets, methods=methods)


def test_a_score_that_is_no_name_is_refused(head, sets):
    with pytest.raises(InputError, match="^score: must be one of macro, micro, got "):
        balance(head, **sets, score=["macro"])


def test_without_a_head_the_verdict_speaks_of_none(sets):
    found = balance(None, sets["train"], sets["validation"])
    assert not any("as it was" in line for line in found.verdict)
    assert "plain cross-entropy" in found.verdict[0]


def test_class_numbers_as_text_stand_in_the_order_of_numbers(head, sets, result):
    text = {name: (x, y.astype(str)) for name, (x, y) in sets.items()}
    found = balance(head, **text, names=None)
    assert found.names == tuple(map(str, range(C)))
    assert found.table["all"].tolist() == result.table["all"].tolist()


def test_rows_in_another_order_are_warned_of(head, sets):
    turned = linear(head.weight.detach().roll(3, 0), head.bias.detach().roll(3, 0))
    with pytest.warns(UserWarning, match="are its rows in the order of the classes"):
        balance(turned, **sets)


def test_classes_without_test_images_are_warned_of(head, sets):
    x, y = sets["test"]
    with pytest.warns(UserWarning, match="^8 of 12 classes have no test images"):
        balance(head, sets["train"], sets["validation"], (x[y < 4], y[y < 4]))


@pytest.mark.parametrize("odd", [{"dual_coef_": 0}, {"classes_": None}])
def test_an_estimator_without_a_row_a_class_is_refused(head, sets, odd):
    weight, bias = (values.detach().numpy() for values in (head.weight, head.bias))
    given = estimator(weight, bias, np.arange(C))
    for name, value in odd.items():
        setattr(given, name, value) if value is not None else delattr(given, name)
    with pytest.raises(InputError, match="^head: must be a linear classifier with a row for each class"):
        balance(given, **sets)


@pytest.mark.parametrize("seed", [-1, 1.5, "a", 2**32])
def test_a_seed_that_is_none_is_refused(head, sets, seed):
    with pytest.raises(InputError, match="^seed: must be a whole number"):
        balance(head, **sets, seed=seed)


def test_a_head_of_another_width_is_named(sets):
    state = {"fc.weight": torch.zeros(C, 3), "fc.bias": torch.zeros(C), 7: torch.zeros(2)}
    with pytest.raises(InputError, match=r"^head: must take the \d+ features of train, got 3$"):
        balance(state, **sets)


def test_own_files_are_not_replaced(tmp_path, head, sets, monkeypatch):
    for name, (x, y) in sets.items():
        np.savez(tmp_path / f"{name}.npz", features=x, labels=y)
    torch.save(head.state_dict(), tmp_path / "head.pt")
    before = (tmp_path / "head.pt").read_bytes()
    words = [f"--{name}={tmp_path / name}.npz" for name in sets]
    words += ["--head", str(tmp_path / "head.pt")]
    with pytest.raises(InputError, match=r"^--out: must be a folder without a head\.pt of another origin"):
        command.main([*words, "--out", str(tmp_path)])
    (tmp_path / "chosen.json").write_text("{}")  # as if balanced before
    with pytest.raises(InputError, match=r"^--out: must be another folder than that of --head"):
        command.main([*words, "--out", str(tmp_path)])
    assert (tmp_path / "head.pt").read_bytes() == before


# ---- the README


def readme_code() -> list[str]:
    """The Python of the README, block by block."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)


class Body(nn.Module):
    """A network whose classifier is `fc`."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(2, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.body(x).tanh())


def test_the_readmes_code_runs(capsys):
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        model = Body()

    def loader(number: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        labels = torch.repeat_interleave(torch.arange(3), torch.tensor(number))
        points = nn.functional.one_hot(labels, 3)[:, :2] + 0.3 * torch.randn(len(labels), 2, generator=draw)
        return [*zip(points.split(16), labels.split(16), strict=True)]

    names = {"model": model, "device": "cpu", "train_labels": torch.repeat_interleave(torch.tensor([60, 20, 6]))}
    names |= {"train_loader": loader([60, 20, 6]), "validation_loader": loader([9] * 3), "test_loader": loader([9] * 3)}
    names["loader"] = names["train_loader"]
    before = model.fc.weight.detach().clone()
    balancing, training = readme_code()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a tiny set
        exec(balancing, names)
    assert "tau-norm" in capsys.readouterr().out
    assert set(names["result"].state()) == {"fc.weight", "fc.bias"}
    radius = float(model.fc.weight.detach().norm(dim=1).mean())
    exec(training, names)
    assert not torch.equal(model.fc.weight, before)
    assert float(model.fc.weight.detach().norm(dim=1).max()) <= radius * (1 + 1e-6)


def test_the_code_of_the_guide_runs(tmp_path, monkeypatch, sets, head):
    monkeypatch.chdir(tmp_path)
    guide = (ROOT / "docs" / "balance.md").read_text("utf-8")
    codes = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    model = nn.ModuleDict({"fc": linear(head.weight, head.bias)})
    x, y = sets["train"]
    names = {"balance": balance, "torch": torch, "np": np, "model": model, **sets, "x": x, "y": y, "names": NAMES}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for code in codes:
            exec(code.replace('methods="all"', 'methods="fast"'), names)
            if "torch.save" not in code:
                assert torch.equal(model["fc"].weight, names["result"].state()["fc.weight"])
            model["fc"].load_state_dict(head.state_dict())
    assert names["result"].worth_it
    command.read_state(tmp_path / "model.pt")
    assert {*command.read_npz(tmp_path / "train.npz", "train")} == {"features", "labels", "names"}
    told = " ".join(guide.split())
    columns = {*names["result"].table.filter(regex="^[^±]*$")} - {"method", "edge", "seconds"}
    assert all(name in told for name in (BALANCERS.keys() - {FIRST}) | columns)


def test_a_layer_that_is_no_plain_one_is_refused(sets, result):
    network = models.build_model("resnet32", 5, cosine=True)
    batches = [(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))]
    said = r"must end in a linear layer x @ weight\.T \+ bias, got CosineClassifier"
    with pytest.raises(InputError, match=f"^model: {said}"):
        features(network, batches)
    x, y = sets["train"]
    layer = models.CosineClassifier(x.shape[1], int(y.max()) + 1)
    for head in (layer, torch.nn.Sequential(layer)):
        with pytest.raises(InputError, match=f"^head: {said}"):
            balance(head, **sets)
    with pytest.raises(InputError, match=f"^layer: {said}"):
        result.write_into(layer)


def test_classes_of_an_estimator_are_its_own(head, sets):
    weight, bias = (part.detach().numpy() for part in (head.weight, head.bias))
    estimator = SimpleNamespace(coef_=weight, intercept_=bias, classes_=np.arange(len(weight)))
    balance(estimator, **sets, methods=["tau-norm"], classes=range(len(weight)))
    with pytest.raises(InputError, match="^classes: must be the estimator's own or left out, got "):
        balance(estimator, **sets, classes=range(len(weight))[::-1])


def test_labels_and_features_of_any_kind(head, sets, result):
    x, y = sets["train"]
    for labels in (np.array(y.tolist(), object), torch.as_tensor(y).int()):
        again = balance(head, (x, labels), sets["validation"], methods=["tau-norm"])
        assert again.class_counts.tolist() == result.class_counts.tolist()
    for labels in (torch.as_tensor(y).bfloat16(), np.array([*y.tolist()[:-1], True], object)):
        with pytest.raises(InputError, match=r"^train: labels must be integers or strings \[N\]"):
            balance(head, (x, labels), sets["validation"])
    with pytest.raises(InputError, match="^train: features must be a plain tensor, got torch.sparse_coo"):
        balance(head, (torch.as_tensor(x).to_sparse(), y), sets["validation"])


def test_what_is_a_baseline_itself_is_not_held_against_it(result):
    column, over = list(module.BASELINES)[1], list(module.BASELINES.values())[1]
    same = result.table.method == result.best
    table = result.table.assign(**{name: result.table[name].mask(same, 0.0) for name in (column, f"{column} ±")})
    assert any(over in line for line in result.verdict)
    assert not any(over in line for line in dataclasses.replace(result, table=table).verdict)


def test_files_of_another_origin_stay(result, tmp_path):
    (tmp_path / "head.pt").write_text("mine")
    with pytest.raises(InputError, match=r"^folder: must be a folder without a head\.pt of another origin"):
        result.save(tmp_path)
    assert (tmp_path / "head.pt").read_text() == "mine"
    for _ in range(2):
        result.save(tmp_path / "own")


@pytest.mark.parametrize("content", [b"junk", b"a,b\n1,2\n", b"\x10\0\0\0\0\0\0\0{}", b""])
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_head_that_is_no_file_of_weights_is_one_line(folder, content, name):
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match="^--head: must be a file of weights"):
        command.main([*SETS, "--head", name, "--layer", "fc", "--out", "none"])
    assert not (folder / "none").exists()


def test_weights_that_lie_deeper_are_named(folder):
    torch.save({"net": {"fc.weight": torch.zeros(2, 2)}, "epoch": 3}, folder / "deep.pt")
    with pytest.raises(InputError, match="with net: weights may lie under state_dict"):
        command.read_state(folder / "deep.pt")


def test_methods_by_name_on_the_command_line(folder, monkeypatch):
    monkeypatch.setattr(balance_report, "html", lambda result: "")
    command.main([*SETS, *HEAD, "--methods", "tau-norm, NCM", "--out", "named"])
    assert [*pd.read_csv("named/table.csv").method] == [FIRST, "tau-norm", "NCM"]
    command.main([*SETS, *HEAD, "--methods", "fast, CB,", "--out", "named"])
    assert [*pd.read_csv("named/table.csv").method] == [*module.FAMILIES["fast"], "CB"]
    with pytest.raises(InputError, match=r"^--methods: must be fast, all or names of methods, got CRT"):
        command.main([*SETS, *HEAD, "--methods", "tau-norm,CRT"])


def test_outputs_that_are_no_logits_are_named():
    class Wrapped(nn.Module):
        def __init__(self, wrap):
            super().__init__()
            self.fc, self.wrap = nn.Linear(4, 3), wrap

        def forward(self, x):
            return self.wrap(self.fc(x))

    batches = [(torch.ones(2, 4), torch.tensor([0, 1]))]
    for wrap, got in ((lambda z: {"logits": z}, "a dict"), (lambda z: (z, None), "a tuple")):
        with pytest.raises(InputError, match=rf"^model: must give a tensor \[B, C\], got {got} from Wrapped: wrap it"):
            features(Wrapped(wrap), batches)
    with pytest.raises(InputError, match="got Wrapped, whose output is of no linear layer as it is"):
        features(Wrapped(lambda z: z.log_softmax(1)), batches)


def test_a_parametrised_layer_says_what_helps(sets, head):
    model = nn.Sequential(linear(head.weight, head.bias))
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(InputError, match="^layer: must have plain weights, got 0, which is parametrised: fold it by "):
        balance(model, **sets, layer="0")
    balance(model[0], **sets, methods=["tau-norm"])


def test_no_method_is_refused_and_families_among_names_leave_out_what_needs_a_bias(head, sets):
    with pytest.raises(InputError, match="^methods: must be fast, all or names of methods, got nothing"):
        balance(head, **sets, methods=[])
    bare = linear(head.weight, None)
    mixed = balance(bare, **sets, methods=["fast", "L2norm"])
    assert {"tau-norm", "L2norm"} <= {*mixed.table.method}
    assert "logit adjustment" not in {*mixed.table.method}
    with pytest.raises(InputError, match="^methods: must need no bias, as the head has none, got logit adjustment"):
        balance(bare, **sets, methods=["fast", "logit adjustment"])

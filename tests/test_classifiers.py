"""Frozen features: equal to running the backbone each epoch, in both modes."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from elsewhere import no_float64

from ltr import first_stage, losses, methods, metrics, models, recipes, second_stage, stack, training
from ltr.datasets import LabelledImages, LongTailed
from ltr.regularizers import MaxNorm


@pytest.fixture(scope="module")
def data() -> LongTailed:
    """50 training images of 3 classes and 20 test images, 8x8 noise."""
    rng = np.random.default_rng(5)
    images, labels = rng.integers(0, 256, (70, 8, 8, 3), dtype=np.uint8), np.arange(70) % 3
    train, test = LabelledImages(images[:50], labels[:50]), LabelledImages(images[50:], labels[50:])
    return LongTailed("noise", list("abc"), train, test, None, (0.5,) * 3, (0.25,) * 3)


def network() -> models.CifarResNet:
    return models.build_model("resnet32", 3, seed=2)


def one_at_a_time(data: LongTailed, mode: str, recipe: recipes.Recipe) -> tuple[models.CifarResNet, np.ndarray]:
    """The plain way: the whole network each step, the classifier's weights alone trained."""
    model, images = network(), first_stage.ImageData(data, "cpu")
    optimizer = torch.optim.SGD(
        model.classifier.parameters(), recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay
    )
    for epoch in range(recipe.epochs):
        model.train(mode == "released")
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate(epoch)
        for pictures, labels in images.train.train_batches(recipe.batch_size, recipe.seed, epoch):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(pictures), labels).backward()
            optimizer.step()
    return model, images.test_logits(model, recipe.epochs - 1, flip=True)


@pytest.mark.parametrize("mode", second_stage.MODES)
def test_stage_two_on_features_equals_the_whole_network(data, mode):
    recipe = recipes.Recipe(3, batch_size=16, lr=0.1, weight_decay=0.01)  # batches of 16, 16, 16, 2
    model, expected = one_at_a_time(data, mode, recipe)
    frozen = second_stage.FrozenFeatures(network(), data, "cpu", mode, batch_size=16)
    classifier = models.copy_classifier(network())
    outcome = training.fit(classifier, frozen, recipe)
    torch.testing.assert_close(classifier.weight, model.classifier.weight, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(outcome.logits["last", "flip"], expected, atol=1e-4)
    drifted = dict(model.named_buffers()) if mode == "released" else {}
    assert frozen.drifted().keys() == drifted.keys()
    for name, value in frozen.drifted().items():
        torch.testing.assert_close(value, drifted[name])


def test_a_cosine_network_gives_a_linear_classifier_without_bias(data):
    """Its function on unit features is the network's; every balancer that learns leaves the bias out."""
    model = models.build_model("resnet32", 3, seed=2, cosine=True)
    expected = first_stage.ImageData(data, "cpu").test_logits(model, 0)
    frozen = second_stage.FrozenFeatures(model, data, "cpu", batch_size=16, augmented=1)
    classifier = models.copy_classifier(model)
    assert type(classifier) is torch.nn.Linear
    assert classifier.bias is None
    np.testing.assert_allclose(frozen.test_logits(classifier, 0), expected, atol=1e-4)
    recipe = recipes.Recipe(1, batch_size=16, lr=0.1, loss="cb-ce")
    for name, method in methods.BALANCERS.items():
        (found,) = method.fit(classifier, frozen, recipe, method.candidates[:1])
        assert np.isfinite(frozen.test_logits(found, 0)).all(), name
    outcome = training.fit(classifier, frozen, recipe, MaxNorm(20.0))
    assert outcome.weights.keys() == {"weight"}
    assert outcome.norms[-1].max() <= 20.001


@pytest.mark.parametrize("layers", [2, 5])
@pytest.mark.parametrize("mode", second_stage.MODES)
def test_last_layers_on_maps_equal_those_on_images(data, mode, layers):
    recipe, drifts = recipes.Recipe(3, batch_size=16, lr=0.05, weight_decay=0.01), mode == "released"
    on_images = models.LastLayers(network(), layers, drifts=drifts, from_images=True)
    expected = training.fit(on_images, first_stage.ImageData(data, "cpu"), recipe, MaxNorm(0.3))
    frozen = second_stage.FrozenFeatures(models.Trunk(network(), 2), data, "cpu", mode, batch_size=16)
    outcome = training.fit(models.LastLayers(network(), layers, 2, drifts), frozen, recipe, MaxNorm(0.3))
    np.testing.assert_allclose(outcome.norms, expected.norms, atol=1e-5)
    for way, logits in expected.logits.items():
        np.testing.assert_allclose(outcome.logits[way], logits, atol=1e-4)
    assert outcome.history.test_accuracy.tolist() == expected.history.test_accuracy.tolist()
    for name, value in frozen.drifted().items():
        torch.testing.assert_close(value, expected.weights[f"trunk.{name}"])
    assert bool(frozen.drifted()) == drifts


@pytest.mark.parametrize("mode", second_stage.MODES)
def test_features_do_not_depend_on_the_order_of_asking(data, mode):
    ahead, behind = (second_stage.FrozenFeatures(network(), data, "cpu", mode) for _ in range(2))
    late = ahead.test_features(2, True)
    ahead.test_features(0, False)
    for epoch in range(3):
        behind.test_features(epoch, False)
    assert torch.equal(late, behind.test_features(2, True))
    assert torch.equal(ahead.up_to(3).features, behind.up_to(3).features)


@pytest.mark.parametrize("mode", second_stage.MODES)
def test_features_that_stay_on_the_host_are_the_same(data, mode):
    here, there = (second_stage.FrozenFeatures(network(), data, "cpu", mode, on_host=host) for host in (False, True))
    for epoch in range(2):
        for one, other in zip(here.draw(64, 0, epoch), there.draw(64, 0, epoch), strict=True):
            assert torch.equal(one, other)
        assert torch.equal(here.test_features(epoch, True), there.test_features(epoch, True))


def test_what_stays_on_the_host_leaves_the_device(data, monkeypatch):
    moved, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda values: moved.append(values.shape) or cpu(values))
    frozen = second_stage.FrozenFeatures(network(), data, "cpu", "released", on_host=True)
    frozen.draw(64, 0, 1)
    frozen.test_features(1, False)
    shapes = [frozen.passes[0].features.shape] * 2 + [frozen.tested[1, False].shape]
    assert all(moved.count(shape) >= shapes.count(shape) for shape in shapes)


def test_on_the_host_the_released_mode_keeps_the_test_of_one_epoch(data):
    frozen = second_stage.FrozenFeatures(network(), data, "cpu", "released", on_host=True)
    first = frozen.test_features(0, False)
    frozen.test_features(1, False)
    assert [*frozen.tested] == [(1, False)]
    assert torch.equal(frozen.test_features(0, False), first)  # made again


def test_only_the_released_mode_drifts(data):
    released = second_stage.FrozenFeatures(network(), data, "cpu", "released")
    paper = second_stage.FrozenFeatures(network(), data, "cpu", "paper")
    assert not torch.equal(released.test_features(0, False), released.test_features(1, False))
    assert paper.test_features(0, False) is paper.test_features(1, False)
    assert not torch.equal(paper.up_to(0).features, paper.up_to(1).features)  # new crops and flips each epoch


def test_features_of_another_batch_size_are_refused(data):
    with pytest.raises(ValueError, match="must be 64 and 0, as the features"):
        next(iter(second_stage.FrozenFeatures(network(), data, "cpu").train_batches(32, 0, 0)))


def test_evaluation_without_training_has_no_best_epoch_to_choose(data):
    frozen = second_stage.FrozenFeatures(network(), data, "cpu")
    outcome = second_stage.evaluate(models.copy_classifier(network()), frozen)
    assert np.array_equal(outcome.logits["last", "none"], outcome.logits["best_test", "none"])
    assert not np.array_equal(outcome.logits["last", "none"], outcome.logits["last", "flip"])
    images = first_stage.ImageData(data, "cpu")
    np.testing.assert_allclose(outcome.logits["last", "flip"], images.test_logits(network(), 0, True), atol=1e-5)


@pytest.mark.seconds
def test_a_grid_equals_its_classifiers_trained_one_at_a_time(data):
    recipe = recipes.Recipe(3, batch_size=16, schedule="released")
    frozen = second_stage.FrozenFeatures(network(), data, "cpu", "released", batch_size=16)
    start = models.copy_classifier(network())
    choices = [
        {"loss": loss, "lr": lr, "weight_decay": weight_decay, "max_norm": radius, "max_norm_every": every}
        for loss in ("ce", *losses.BALANCED)
        for lr, weight_decay, radius, every in [
            (0.1, 0.0, np.nan, None),
            (0.05, 0.1, np.nan, None),
            (0.1, 0.02, 0.5, "step"),
            (0.1, 0.0, 0.5, "epoch"),
        ]
    ]
    grid = stack.Grid(start, frozen, recipe, pd.DataFrame(choices)).fit()
    table = grid.table()
    assert len(table) == 16
    for i, choice in enumerate(choices):
        ball = MaxNorm(choice["max_norm"], choice["max_norm_every"]) if choice["max_norm_every"] else None
        own = recipes.Recipe(3, 16, choice["lr"], choice["weight_decay"], schedule="released", loss=choice["loss"])
        classifier = models.copy_classifier(network())
        outcome = training.fit(classifier, frozen, own, ball)
        torch.testing.assert_close(grid.classifier(i).weight, classifier.weight, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(grid.classifier(i).bias, classifier.bias, atol=1e-5, rtol=1e-4)
        assert table["all"][i] == pytest.approx(outcome.history.test_accuracy.iloc[-1])
        if ball:
            assert table.projected_share[i] == pytest.approx(ball.projected_share)
        else:
            assert np.isnan(table.projected_share[i])


def test_a_grid_of_classifiers_without_bias_keeps_them_so(data):
    """As a cosine network's are."""
    recipe, weight = recipes.Recipe(2, batch_size=16, lr=0.1), models.copy_classifier(network()).weight
    frozen = second_stage.FrozenFeatures(network(), data, "cpu", batch_size=16)
    row = {"loss": "ce", "lr": 0.1, "weight_decay": 0.01, "max_norm": 0.5, "max_norm_every": "step"}
    grid = stack.Grid(models.linear(weight), frozen, recipe, pd.DataFrame([row])).fit()
    alone = models.linear(weight)
    outcome = training.fit(alone, frozen, dataclasses.replace(recipe, weight_decay=0.01), MaxNorm(0.5))
    assert grid.classifier(0).bias is None
    torch.testing.assert_close(grid.classifier(0).weight, alone.weight, atol=1e-5, rtol=1e-4)
    assert grid.table()["all"][0] == pytest.approx(outcome.history.test_accuracy.iloc[-1])


def test_a_grid_over_seeds_equals_a_grid_for_each(data):
    recipe, start = recipes.Recipe(2, batch_size=16), models.copy_classifier(network())
    frozen = {s: second_stage.FrozenFeatures(network(), data, "cpu", batch_size=16, seed=s) for s in (4, 0)}
    row = {"loss": "cb-ce", "lr": 0.1, "max_norm": 0.6, "max_norm_every": "step"}
    choices = pd.DataFrame([{**row, "weight_decay": d, "seed": s} for d in (0.0, 0.1) for s in (4, 0)])
    together = stack.Grid(start, frozen, recipe, choices).fit()
    table = together.table()
    assert table.seed.tolist() == [4, 0, 4, 0]  # the caller's order
    for seed, rows in choices.groupby("seed"):
        alone = stack.Grid(start, frozen[seed], dataclasses.replace(recipe, seed=seed), rows.drop(columns="seed"))
        expected = alone.fit().table()
        assert np.array_equal(expected["all"], table.loc[rows.index, "all"])
        torch.testing.assert_close(together.classifier(rows.index[1]).weight, alone.classifier(1).weight)
    assert not torch.allclose(together.classifier(0).weight, together.classifier(1).weight)


def frozen_rows(device: str | torch.device = "cpu") -> SimpleNamespace:
    """Features [40, 6] of 3 classes and 15 test features, on a device."""
    generator, labels = torch.Generator().manual_seed(9), torch.tensor([0] * 28 + [1] * 9 + [2] * 3)
    features, tested = (torch.randn(size, 6, generator=generator).to(device) for size in (40, 15))
    return SimpleNamespace(
        class_counts=np.array([28, 9, 3]),
        test_labels=np.arange(15) % 3,
        train_batches=lambda size, seed, epoch: zip(features.split(size), labels.to(device).split(size), strict=True),
        test_features=lambda epoch, flip: tested,
    )


def grid_of(device: str | torch.device, settings: list[dict]) -> stack.Grid:
    """Classifiers on these features, trained."""
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(10))
    start = models.linear(weight.to(device), torch.zeros(3).to(device))
    return stack.Grid(start, frozen_rows(device), recipes.Recipe(2, batch_size=16), pd.DataFrame(settings)).fit()


@pytest.mark.filterwarnings("error")
def test_a_classifier_that_diverged_has_no_accuracies_and_the_others_keep_theirs():
    settings = [
        {"loss": "ce", "lr": lr, "weight_decay": 1.0, "max_norm": np.nan, "max_norm_every": None}
        for lr in (0.1, 1e30, 0.2)
    ]
    table, alone = grid_of("cpu", settings).table(), grid_of("cpu", settings[::2]).table()
    figures = ["all", *metrics.GROUPS]
    assert table.loc[1, figures].isna().all()
    assert table.loc[[0, 2], "all"].tolist() == alone["all"].tolist()
    assert {metrics.or_dash(value) for value in table.loc[1, figures]} == {"–"}


def test_a_stack_refuses_what_it_does_not_do(data):
    frozen = second_stage.FrozenFeatures(models.build_model("resnet32", 4), data, "cpu", batch_size=8)
    start = models.linear(torch.zeros(4, 64), torch.zeros(4))
    row = {"lr": 0.1, "weight_decay": 0.0, "max_norm": np.nan, "max_norm_every": None}
    for loss, recipe, said in (
        ("ce-drw", recipes.Recipe(1, 8), "loss: must be the same in each epoch, got ce-drw"),
        ("ce", recipes.Recipe(1, 8, nesterov=True), "nesterov, sam_rho, average: must be False, 0 and none"),
        ("ce", recipes.Recipe(1, 8, sam_rho=0.1), "nesterov, sam_rho, average: must be False, 0 and none"),
        ("ce", recipes.Recipe(1, 8, average="swa"), "nesterov, sam_rho, average: must be False, 0 and none"),
    ):
        with pytest.raises(ValueError, match=said):
            stack.Grid(start, frozen, recipe, pd.DataFrame([{**row, "loss": loss}])).fit()
    with pytest.raises(ValueError, match="^max_norm_every: must be step or epoch where there is a radius, got none"):
        stack.Grid(start, frozen, recipes.Recipe(1, 8), pd.DataFrame([{**row, "loss": "ce", "max_norm": 1.0}]))


def test_a_grid_needs_no_float64_on_its_device():
    settings = [
        {"loss": loss, "lr": 0.1, "weight_decay": 0.01, "max_norm": radius, "max_norm_every": every}
        for loss in losses.LOSSES
        if not loss.endswith("drw")
        for radius, every in ((1.0, "step"), (1.0, "epoch"), (np.nan, None))
    ]
    expected = grid_of("cpu", settings)
    with no_float64() as device:
        grid = grid_of(device, settings)
        assert torch.equal(grid.weight.detach().cpu(), expected.weight)
        pd.testing.assert_frame_equal(grid.table(), expected.table(), check_exact=True)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_each_classifier_of_a_stack_gets_the_gradient_of_its_own_loss(name):
    loss = losses.build_loss(name, torch.tensor([50, 9, 2]))
    if isinstance(loss, losses.Deferred):
        loss.begin_epoch(1.0)  # its mean is weighted now
    logits, labels = torch.randn(7, 4, 3, generator=torch.Generator().manual_seed(11)), torch.arange(7) % 3
    sent_back = stack.by_autograd(loss)(logits, labels)
    for i in range(4):
        own = logits[:, i].clone().requires_grad_()
        loss(own, labels).backward()
        torch.testing.assert_close(sent_back[:, i], own.grad)


def test_a_grid_knows_when_to_project(data):
    frozen = second_stage.FrozenFeatures(network(), data, "cpu", batch_size=8)
    row = {"loss": "ce", "lr": 0.1, "weight_decay": 0.0, "max_norm": 1.0, "max_norm_every": "batch"}
    with pytest.raises(ValueError, match="^max_norm_every: must be step or epoch, got batch$"):
        stack.Grid(models.copy_classifier(network()), frozen, recipes.Recipe(1, 8), pd.DataFrame([row]))

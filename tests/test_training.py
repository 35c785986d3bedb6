"""The loop of both stages: schedule, memorising, resuming, MaxNorm, divergence."""

import dataclasses

import numpy as np
import pytest
import torch
from elsewhere import no_float64
from torch import nn

from ltr import first_stage, metrics, models, recipes, training
from ltr.datasets import LabelledImages, LongTailed
from ltr.errors import InputError, TrainingError
from ltr.regularizers import MaxNorm
from ltr.runtime.checkpoint import load_checkpoint, save_checkpoint
from ltr.runtime.engine import Engine


@pytest.fixture
def small() -> LongTailed:
    """64 images of 4 classes, 8x8: noise around a colour of the class."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), (32, 16, 12, 4))
    colours = rng.integers(40, 216, (4, 1, 1, 3))
    images = np.clip(colours[labels] + rng.normal(0, 30, (64, 8, 8, 3)), 0, 255).astype(np.uint8)
    train, test = LabelledImages(images, labels), LabelledImages(images[::2], labels[::2])
    return LongTailed("small", list("abcd"), train, test, None, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class Rows:
    """Fixed inputs for a linear model, in one batch or several."""

    def __init__(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        self.inputs, self.labels = inputs, labels
        self.class_counts, self.test_labels = np.bincount(labels.numpy()), labels.numpy()

    def __len__(self):
        return len(self.inputs)

    draws_on = torch.device("cpu")

    def describe_draws(self):
        return {}

    def close(self):
        pass

    def draw(self, batch_size, seed, epoch):
        return self.inputs, self.labels

    def batch(self, drawn, positions):
        return drawn[0][positions], drawn[1][positions]

    @torch.no_grad()
    def test_logits(self, model, epoch, flip=False):
        return model(self.inputs.flip(1) if flip else self.inputs).numpy()


@pytest.fixture
def rows() -> Rows:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(3).repeat(6)
    return Rows(torch.randn(18, 5, generator=generator) + labels[:, None], labels)


def linear() -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Linear(5, 3)


def test_schedules_at_their_ends():
    cosine, linear, step, released = (recipes.Recipe(4, lr=0.1, schedule=name) for name in recipes.SCHEDULES)
    assert [cosine.learning_rate(epoch) for epoch in range(4)] == pytest.approx(
        [0.1, 0.0853553, 0.05, 0.0146447], rel=1e-5
    )
    assert [linear.learning_rate(epoch) for epoch in range(4)] == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert [step.learning_rate(epoch) for epoch in range(4)] == pytest.approx([0.1, 0.1, 0.1, 0.1])
    assert [released.learning_rate(epoch) for epoch in range(4)] == pytest.approx(
        [0.0853553, 0.05, 0.0146447, 0], rel=1e-5
    )


def test_steps_come_where_the_field_has_them():
    """At epochs 160 and 180 of 200, whatever the warm-up."""
    recipe = recipes.Recipe(200, lr=0.1, schedule="step", warm_up=5)
    rates = {0: 0.02, 4: 0.1, 5: 0.1, 159: 0.1, 160: 0.001, 179: 0.001, 180: 1e-5, 199: 1e-5}
    assert {epoch: recipe.learning_rate(epoch) for epoch in rates} == pytest.approx(rates)


class Unchanged(first_stage.ImageData):
    """The training images as they are."""

    def batch(self, drawn, positions):
        inputs, labels = next(self.train.test_batches())
        return inputs[positions], labels[positions]


@pytest.mark.seconds
def test_a_network_memorises_64_images():
    rng = np.random.default_rng(0)
    noise = LabelledImages(rng.integers(0, 256, (64, 8, 8, 3), dtype=np.uint8), np.arange(64) % 4)
    data = LongTailed("noise", list("abcd"), noise, noise, None, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    model = models.build_model("resnet32", 4)
    history = training.fit(model, Unchanged(data, "cpu"), recipes.Recipe(25, 16, lr=0.05)).history
    assert history.train_loss.iloc[0] > 1.2  # nothing to see in noise: near log(4)
    assert history.test_accuracy.iloc[-1] == 100


def test_a_step_is_plain_sgd_with_momentum_and_weight_decay(rows):
    model, reference = linear(), linear()
    recipe = recipes.Recipe(3, batch_size=7, lr=0.1, weight_decay=0.05)  # batches of 7, 7 and 4
    training.fit(model, rows, recipe)
    velocity = [torch.zeros_like(p) for p in reference.parameters()]
    for epoch in range(3):
        for inputs, labels in zip(rows.inputs.split(7), rows.labels.split(7), strict=True):
            loss = nn.functional.cross_entropy(reference(inputs), labels)
            gradients = torch.autograd.grad(loss, list(reference.parameters()))
            with torch.no_grad():
                for i, (p, g) in enumerate(zip(reference.parameters(), gradients, strict=True)):
                    velocity[i] = 0.9 * velocity[i] + g + 0.05 * p
                    p -= recipe.learning_rate(epoch) * velocity[i]
    torch.testing.assert_close(model.weight, reference.weight)
    torch.testing.assert_close(model.bias, reference.bias)


@pytest.mark.parametrize(("every", "checks"), [("step", 3 * 3 * 4), ("epoch", 3 * 4)])
def test_max_norm_holds_after_every_epoch_and_is_counted(rows, every, checks):
    ball = MaxNorm(0.3, every)
    outcome = training.fit(linear(), rows, recipes.Recipe(4, batch_size=7, lr=0.1), ball)
    assert (outcome.norms[1:] <= 0.3 + 1e-6).all()
    assert outcome.norms[0].max() > 0.3
    assert ball.checked == checks
    assert outcome.extra["projected_share"] == int(ball.projected) / checks > 0


def test_the_outcome_holds_last_and_best_epochs(rows):
    outcome = training.fit(linear(), rows, recipes.Recipe(6, lr=0.5))
    tested = outcome.history.test_accuracy
    accuracy = {key: 100 * (logits.argmax(1) == rows.test_labels).mean() for key, logits in outcome.logits.items()}
    assert set(accuracy) == set(metrics.VARIANTS)
    assert accuracy["last", "none"] == pytest.approx(tested.iloc[-1])
    assert accuracy["best_test", "none"] == pytest.approx(tested.max())
    assert outcome.extra["best_test_epoch"] == tested.idxmax() + 1
    assert outcome.norms.shape == (7, 3)


def test_testing_every_k_epochs_always_tests_the_last(rows):
    history = training.fit(linear(), rows, recipes.Recipe(5, test_every=2)).history
    assert history.test_accuracy.notna().tolist() == [False, True, False, True, True]


@pytest.mark.seconds
def test_a_resumed_run_ends_where_the_uninterrupted_one_ends(small, tmp_path):
    recipe, images = recipes.Recipe(4, batch_size=24, lr=0.05), first_stage.ImageData(small, "cpu")
    whole = training.fit(models.build_model("resnet32", 4), images, recipe)

    first = training.Trainer(models.build_model("resnet32", 4), images, recipe, None)
    first.prepare()
    for _ in range(2):
        first.begin_epoch()
        list(first.train_steps())
        first.end_epoch()
    save_checkpoint(tmp_path / "checkpoint.pt", first.state())
    model = models.build_model("resnet32", 4, seed=9)  # other weights: all must come from the checkpoint
    resumed = training.fit(model, images, recipe, checkpoint=tmp_path / "checkpoint.pt")

    for name, value in whole.weights.items():
        assert torch.equal(value, resumed.weights[name]), name
    assert np.array_equal(whole.norms, resumed.norms)
    for key in metrics.VARIANTS:
        assert np.array_equal(whole.logits[key], resumed.logits[key])
    columns = [c for c in whole.history if c != "seconds"]
    assert whole.history[columns].equals(resumed.history[columns])


def test_a_training_that_went_on_elsewhere_says_where_it_began(rows, tmp_path):
    path, recipe = tmp_path / "checkpoint.pt", recipes.Recipe(2)
    first = stopped(linear(), rows, recipe, epochs=1)
    first.engines = ["cuda, bf16, CUDA graph"]  # as a GPU would have left it
    save_checkpoint(path, first.state())
    extra = training.fit(linear(), rows, recipe, checkpoint=path).extra
    assert (extra["engine"], extra["later_engines"]) == ("cuda, bf16, CUDA graph", ["cpu, fp32, eager steps"])
    save_checkpoint(path, {name: value for name, value in first.state().items() if name != "engines"})
    extra = training.fit(linear(), rows, recipe, checkpoint=path).extra  # an earlier checkpoint does not say
    assert extra["engine"] == "cpu, fp32, eager steps"
    assert "later_engines" not in extra


def test_a_checkpoint_of_another_recipe_is_refused(rows, tmp_path):
    path = tmp_path / "checkpoint.pt"
    training.fit(linear(), rows, recipes.Recipe(2, lr=0.1), checkpoint=path)
    with pytest.raises(InputError, match=r"lr is 0.1 there and 0.2 here"):
        training.fit(linear(), rows, recipes.Recipe(2, lr=0.2), checkpoint=path)


@pytest.mark.parametrize("other", [None, MaxNorm(0.4), MaxNorm(0.3, "epoch")], ids=["none", "radius", "every"])
def test_a_checkpoint_of_another_max_norm_is_refused(rows, tmp_path, other):
    path = tmp_path / "checkpoint.pt"
    training.fit(linear(), rows, recipes.Recipe(1), MaxNorm(0.3), path)
    with pytest.raises(InputError, match=r"max_norm(_every)? is (0\.3|step) there"):
        training.fit(linear(), rows, recipes.Recipe(1), other, path)


def test_a_checkpoint_of_another_network_is_refused(small, tmp_path):
    path, images = tmp_path / "checkpoint.pt", first_stage.ImageData(small, "cpu")
    training.fit(models.build_model("resnet32", 4), images, recipes.Recipe(1), checkpoint=path)
    with pytest.raises(InputError, match=r"classifier\.bias is \[4\] there and \[5\] here"):
        training.fit(models.build_model("resnet32", 5), images, recipes.Recipe(1), checkpoint=path)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(rows, tmp_path):
    path = tmp_path / "checkpoint.pt"
    training.fit(linear(), rows, recipes.Recipe(1), checkpoint=path)
    before = path.read_bytes()
    rows.inputs[0] = float("nan")
    recipe = recipes.Recipe(2)
    state = load_checkpoint(path)
    state["settings"]["epochs"] = 2
    save_checkpoint(path, state)
    before = path.read_bytes()
    with pytest.raises(TrainingError, match="epoch 2"):
        training.fit(linear(), rows, recipe, checkpoint=path)
    assert path.read_bytes() == before


def test_flip_means_the_mean_of_both_logits(small):
    model, images = models.build_model("resnet32", 4).eval(), first_stage.ImageData(small, "cpu")
    pictures = images.test.normalise(images.test.images)
    with torch.no_grad():
        expected = (model(pictures) + model(pictures.flip(3))) / 2
    np.testing.assert_allclose(images.test_logits(model, 0, flip=True), expected.numpy(), atol=1e-5)
    assert not np.allclose(images.test_logits(model, 0), expected.numpy(), atol=1e-5)


def stopped(model, images, recipe, epochs: int) -> training.Trainer:
    """A training after some epochs."""
    trainer = training.Trainer(model, images, recipe)
    trainer.prepare()
    for _ in range(epochs):
        training.train_epoch([trainer])
        trainer.end_epoch()
    return trainer


@pytest.mark.seconds
@pytest.mark.parametrize("average", ["swa", "ema"])
def test_a_resumed_average_ends_where_the_uninterrupted_one_ends(small, tmp_path, average):
    images = first_stage.ImageData(small, "cpu")
    recipe = recipes.Recipe(5, batch_size=24, lr=0.05, average=average)
    whole = training.fit(models.build_model("resnet32", 4), images, recipe)
    save_checkpoint(tmp_path / "checkpoint.pt", stopped(models.build_model("resnet32", 4), images, recipe, 4).state())
    model = models.build_model("resnet32", 4, seed=9)
    resumed = training.fit(model, images, recipe, checkpoint=tmp_path / "checkpoint.pt")
    for one, other in ((whole, resumed), (whole.averaged, resumed.averaged)):
        assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())
        assert np.array_equal(one.norms, other.norms)
        assert all(np.array_equal(one.logits[key], other.logits[key]) for key in metrics.VARIANTS)


@pytest.mark.seconds
def test_averaging_leaves_training_as_it_is_and_has_statistics_of_its_own(small):
    images, recipe = first_stage.ImageData(small, "cpu"), recipes.Recipe(4, batch_size=24, lr=0.05)
    plain = training.fit(models.build_model("resnet32", 4), images, recipe)
    with_mean = training.fit(models.build_model("resnet32", 4), images, dataclasses.replace(recipe, average="swa"))
    assert plain.averaged is None
    assert all(torch.equal(value, with_mean.weights[name]) for name, value in plain.weights.items())
    averaged = with_mean.averaged
    assert averaged.weights.keys() == plain.weights.keys()
    assert torch.equal(
        averaged.weights["classifier.weight"], plain.weights["classifier.weight"]
    )  # of one epoch, 4 of 4
    model = models.restore("resnet32", 4, averaged.weights)
    assert np.array_equal(images.test_logits(model, 0), averaged.logits["last", "none"])
    # One pass over the inputs of the epoch after the last, from statistics that know nothing else.
    convolution = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    inputs = list(training.TrainingStep(model, images, recipe, None, None).inputs(4))
    assert [len(each) for each in inputs] == [24, 24, 16]
    means = torch.stack([convolution(each).detach().mean((0, 2, 3)) for each in inputs])
    torch.testing.assert_close(norm.running_mean, means.mean(0))


def test_the_means_are_those_of_their_formulas(rows):
    seen = []

    def watched(average: str) -> torch.Tensor:
        """The averaged weight after 8 epochs of one step, beside the weights that training went through."""
        seen.clear()
        trainer = stopped(linear(), rows, recipes.Recipe(8, batch_size=18, lr=0.5, average=average), 0)
        while not trainer.finished:
            training.train_epoch([trainer])
            trainer.end_epoch()
            seen.append(trainer.model.weight.detach().clone())
        return trainer.average.network.module.weight.detach()

    torch.testing.assert_close(watched("swa"), torch.stack(seen[6:]).mean(0))  # of the last quarter
    moving = watched("ema")
    expected = seen[0]
    for weight in seen[1:]:
        expected = recipes.EMA_DECAY * expected + (1 - recipes.EMA_DECAY) * weight
    torch.testing.assert_close(moving, expected)


def test_a_checkpoint_of_another_average_is_refused(small, tmp_path):
    path, images = tmp_path / "checkpoint.pt", first_stage.ImageData(small, "cpu")
    training.fit(models.build_model("resnet32", 4), images, recipes.Recipe(1), checkpoint=path)
    with pytest.raises(InputError, match=r"average is None there and swa here"):
        training.fit(models.build_model("resnet32", 4), images, recipes.Recipe(1, average="swa"), checkpoint=path)


def test_warm_up_rises_in_equal_steps_and_leaves_the_schedule_the_rest():
    recipe, plain = recipes.Recipe(8, lr=0.5, warm_up=4), recipes.Recipe(4, lr=0.5)
    assert [recipe.learning_rate(epoch) for epoch in range(4)] == [0.125, 0.25, 0.375, 0.5]
    assert [recipe.learning_rate(epoch) for epoch in range(4, 8)] == [plain.learning_rate(e) for e in range(4)]


def test_nesterov_steps_along_the_gradient_and_the_momentum(rows):
    model, reference = linear(), linear()
    training.fit(model, rows, recipes.Recipe(1, batch_size=18, lr=0.1, nesterov=True))
    loss = nn.functional.cross_entropy(reference(rows.inputs), rows.labels)
    (gradient,) = torch.autograd.grad(loss, [reference.weight])
    torch.testing.assert_close(model.weight, reference.weight - 0.1 * (1 + 0.9) * gradient)


def test_a_sharpness_aware_step_takes_its_gradient_from_up_the_slope(rows):
    model, reference = linear(), linear()
    start = [values.detach().clone() for values in reference.parameters()]
    recipe = recipes.Recipe(1, batch_size=18, lr=0.1, momentum=0.0, weight_decay=0.01, sam_rho=0.5)
    outcome = training.fit(model, rows, recipe)
    loss, slope = loss_and_gradient(reference, rows)
    length = torch.cat([values.flatten() for values in slope]).norm()
    with torch.no_grad():
        for values, gradient in zip(reference.parameters(), slope, strict=True):
            values += 0.5 * gradient / length
    _, above = loss_and_gradient(reference, rows)
    for after, values, gradient in zip(model.parameters(), start, above, strict=True):
        torch.testing.assert_close(after, values - 0.1 * (gradient + 0.01 * values))
    assert outcome.history.train_loss.item() == pytest.approx(loss)


def loss_and_gradient(model: nn.Linear, rows: Rows) -> tuple[float, tuple[torch.Tensor, ...]]:
    loss = nn.functional.cross_entropy(model(rows.inputs), rows.labels)
    return loss.item(), torch.autograd.grad(loss, list(model.parameters()))


def test_the_way_up_leaves_what_batch_norm_counted(images):
    model = models.build_model("resnet32", 4)
    inputs = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model(inputs).sum().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with training.perturbed(model, 0.1):
        model(inputs)
        assert not torch.equal(model.classifier.weight, before["classifier.weight"])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(("worse", "passes"), [(False, 1 + 2), (True, 2 + 4)])
def test_the_best_test_is_made_again_only_where_it_is_not_the_last(rows, monkeypatch, worse, passes):
    model, seen = models.linear(torch.zeros(3, 5)), []
    if worse:  # the second epoch's test
        scores = iter([{"all": 90.0}, {"all": 10.0}])
        rest = dict.fromkeys(metrics.GROUPS, 0.0)
        monkeypatch.setattr(training.metrics, "group_accuracy", lambda *_: rest | next(scores, {"all": 0.0}))
    plain = Rows.test_logits

    def counted(self, model, epoch, flip=False):
        seen.append(flip)
        return plain(self, model, epoch, flip)

    monkeypatch.setattr(Rows, "test_logits", counted)
    test_every = 1 if worse else 2
    outcome = training.fit(model, rows, recipes.Recipe(epochs=2, batch_size=6, lr=0.5, test_every=test_every))
    assert len(seen) == passes
    assert np.array_equal(outcome.logits["best_test", "none"], outcome.logits["last", "none"]) != worse


@pytest.mark.seconds
@pytest.mark.parametrize("loss", ["ce", "ldam-drw"])
def test_a_training_needs_no_float64_on_its_device(small, monkeypatch, loss):
    cosine = loss == "ldam-drw"
    expected, model = (models.CifarResNet(4, (8, 16), (1, 1), projection=True) for _ in range(2))
    for network in (expected, model):
        network.classifier = models.CosineClassifier(16, 4) if cosine else network.classifier
    model.load_state_dict(expected.state_dict())
    recipe = recipes.Recipe(epochs=2, batch_size=16, lr=0.05, loss=loss)
    there = training.fit(expected, first_stage.ImageData(small, "cpu"), recipe)
    monkeypatch.setattr(first_stage, "predict", without_inference_mode(first_stage.predict))
    with no_float64() as device:
        here = training.fit(model.to(device), first_stage.ImageData(small, device), recipe, engine=Engine(device))
    np.testing.assert_allclose(here.history.train_loss, there.history.train_loss, rtol=1e-4)
    np.testing.assert_allclose(here.logits["last", "none"], there.logits["last", "none"], atol=1e-3)


def without_inference_mode(predict):
    """The function below its decorator, as tensors of `elsewhere` know no inference mode."""
    return torch.no_grad()(predict.__wrapped__)


@pytest.mark.parametrize("backbone", ["resnet32", "resnet50"])
@pytest.mark.parametrize("training_mode", [True, False])
def test_logits_are_exact_where_the_body_computes_in_bfloat16(training_mode, backbone):
    network = models.build_model(backbone, 5, 0).train(training_mode)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    last = models.LastLayers(models.build_model("resnet32", 5, 0), layers=2, from_images=True)
    with Engine(torch.device("cpu"), precision="bf16").autocast(), torch.no_grad():
        for each in (network, last):
            features = []
            hook = each.classifier.register_forward_pre_hook(lambda _, inputs, seen=features: seen.append(inputs[0]))
            logits = each(images)
            hook.remove()
            assert logits.dtype == features[0].dtype == torch.float32
    assert (logits != logits.bfloat16().float()).any()


def test_a_step_of_one_image_is_refused_where_batch_norm_cannot_normalise_it(small):
    images = first_stage.ImageData(small, "cpu")
    recipe = recipes.Recipe(epochs=1, batch_size=63)  # of 64
    training.fit(models.build_model("resnet32", 4), images, recipe)  # maps of 2 x 2
    with pytest.raises(InputError, match="^--batch-size: must leave no step of a single image"):
        training.fit(models.build_model("resnet34", 4), images, recipe)  # of a single pixel


@pytest.mark.parametrize("average", ["swa", "ema"])
def test_a_classifier_alone_has_an_average_too(average):
    inputs, labels = torch.eye(4).repeat(2, 1), torch.arange(4).repeat(2)
    outcome = training.fit(nn.Linear(4, 4), Rows(inputs, labels), recipes.Recipe(4, 8, lr=0.1, average=average))
    assert outcome.averaged.weights.keys() == {"weight", "bias"}


def test_a_constraint_that_was_used_before_counts_anew():
    inputs, labels = torch.eye(4).repeat(2, 1), torch.arange(4).repeat(2)
    constraint, shares = MaxNorm(0.1), []
    for _ in range(2):
        start = models.linear(torch.eye(4), torch.zeros(4))
        training.fit(start, Rows(inputs, labels), recipes.Recipe(3, 8), constraint)
        shares.append(constraint.counts())
    assert shares[0] == shares[1]

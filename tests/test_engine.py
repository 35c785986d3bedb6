"""The fast path against the plain loop, side by side against alone, and what happens where it cannot be had."""

import os

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ltr import first_stage, losses, models, recipes, regularizers, second_stage, training
from ltr.datasets import LabelledImages, LongTailed
from ltr.runtime import engine, machine
from ltr.runtime.engine import Engine

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
BATCH = 16  # 70 images: four batches and a short one of 6


@pytest.fixture(scope="module")
def data() -> LongTailed:
    """70 training images of 4 classes, 40 to test, 8x8: noise around a colour of the class."""
    rng = np.random.default_rng(3)
    labels = np.concatenate([np.repeat(np.arange(4), (40, 15, 10, 5)), np.arange(40) % 4])
    noise = rng.normal(0, 40, (110, 8, 8, 3)) + rng.integers(40, 216, (4, 1, 1, 3))[labels]
    images = np.clip(noise, 0, 255).astype(np.uint8)
    train, test = LabelledImages(images[:70], labels[:70]), LabelledImages(images[70:], labels[70:])
    return LongTailed("noise", list("abcd"), train, test, None, (0.5,) * 3, (0.25,) * 3)


def network(seed: int = 0, device: str = "cpu", widths: tuple[int, ...] = (8, 16)) -> models.CifarResNet:
    """A small network of the real blocks."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = models.CifarResNet(4, widths, [1] * len(widths), projection=True)
    return model.to(device, memory_format=torch.channels_last)


def recipe(epochs: int = 2, **changes) -> recipes.Recipe:
    return recipes.Recipe(epochs, BATCH, lr=0.05, weight_decay=5e-3, **changes)


def plain_loop(model: nn.Module, data: LongTailed, recipe: recipes.Recipe, radius: float | None = None) -> list[float]:
    """Training as a tutorial would write it; the loss of each step."""
    loader, shown = first_stage.ImageData(data, "cpu").train, []
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, 0.9, weight_decay=recipe.weight_decay)
    for epoch in range(recipe.epochs):
        optimizer.param_groups[0]["lr"] = recipe.learning_rate(epoch)
        model.train()
        for images, labels in loader.train_batches(recipe.batch_size, recipe.seed, epoch):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            if radius:
                with torch.no_grad():
                    model.classifier.weight.copy_(regularizers.max_norm_project(model.classifier.weight, radius))
            shown.append(loss.item())
    return shown


def train(model: nn.Module, data: LongTailed, recipe: recipes.Recipe, how: Engine | None = None, ball=None):
    device = model.classifier.weight.device
    return training.fit(model, first_stage.ImageData(data, device), recipe, ball, engine=how)


def assert_same(one: nn.Module, other: nn.Module, **tolerance: float) -> None:
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value.cpu(), other.state_dict()[name].cpu(), **tolerance)


@pytest.mark.parametrize("radius", [None, 0.4])
def test_training_equals_the_plain_loop_with_its_short_batch(data, radius):
    ours, plain = network(), network()
    ball = regularizers.MaxNorm(radius) if radius else None
    history = train(ours, data, recipe(), ball=ball).history
    shown = np.reshape(plain_loop(plain, data, recipe(), radius), (2, 5))
    assert_same(ours, plain, atol=1e-6, rtol=1e-5)
    np.testing.assert_allclose(history.train_loss, shown @ [16, 16, 16, 16, 6] / 70, rtol=1e-5)
    assert not radius or ball.projected_share > 0


def test_preparing_a_step_leaves_no_trace(data, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    ours, plain = network(), network()
    balls = regularizers.MaxNorm(0.4), regularizers.MaxNorm(0.4)
    prepared = train(ours, data, recipe(), Engine(compile=True), balls[0])
    train(plain, data, recipe(), None, balls[1])
    assert_same(ours, plain, atol=0, rtol=0)
    assert [int(b.checked) for b in balls] == [40, 40]
    assert balls[0].projected == balls[1].projected
    assert prepared.extra["prepare_seconds"] > 0


@pytest.mark.slow
def test_compiled_training_is_near_the_plain_one(data):
    ours, plain = network(widths=(8,)), network(widths=(8,))
    compiled = train(ours, data, recipe(), Engine(compile=True))
    expected = train(plain, data, recipe())
    if "torch.compile" not in compiled.extra["engine"]:
        pytest.skip("no compiler on this machine")
    np.testing.assert_allclose(compiled.history.train_loss, expected.history.train_loss, rtol=1e-4)
    assert_same(ours, plain, atol=1e-4, rtol=1e-3)


def test_without_a_compiler_training_goes_on_plainly_and_says_so(data, monkeypatch):
    def no_compiler(model, **_):
        def call(images):
            model(images)  # moves batch-norm's statistics before it fails
            raise RuntimeError("no C++ compiler\nand a long story")

        return call

    monkeypatch.setattr(torch, "compile", no_compiler)
    ours, plain = network(), network()
    with pytest.warns(UserWarning, match=r"torch\.compile: failed.*\(no C\+\+ compiler\)$"):
        outcome = train(ours, data, recipe(), Engine(compile=True))
    train(plain, data, recipe())
    assert outcome.extra["engine"] == "cpu, fp32, eager steps"
    assert_same(ours, plain, atol=0, rtol=0)


def test_bfloat16_stays_near_float32_and_keeps_float32_weights(data):
    ours, plain = network(), network()
    half = train(ours, data, recipe(), Engine(precision="bf16")).history.train_loss
    full = train(plain, data, recipe()).history.train_loss
    np.testing.assert_allclose(half, full, rtol=0.02)
    assert not np.array_equal(half, full)
    assert {value.dtype for value in ours.parameters()} == {torch.float32}


def test_side_by_side_equals_alone(data):
    images = first_stage.ImageData(data, "cpu")
    choices = [recipe(2), recipe(3, seed=1), recipe(2, seed=2, test_every=2)]
    together = [network(), network(1), network(2)]
    outcomes = training.fit_together(
        [training.Trainer(model, images, choice) for model, choice in zip(together, choices, strict=True)]
    )
    for i, (model, choice) in enumerate(zip(together, choices, strict=True)):
        alone = network(i)
        expected = train(alone, data, choice)
        assert_same(model, alone, atol=0, rtol=0)
        columns = [c for c in expected.history if c != "seconds"]
        assert outcomes[i].history[columns].equals(expected.history[columns])


class OffDevice(TorchDispatchMode):
    """Notes every operation that touches a tensor of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.found = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        self.seen += 1
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.found.append(str(func))
        return out


@pytest.mark.parametrize("loss", losses.LOSSES)
@pytest.mark.parametrize("stage", [1, 2])
def test_a_step_never_waits_for_the_device_nor_copies_from_the_host(data, monkeypatch, loss, stage):
    """On the meta device reading a value raises, and a tensor of the host shows: neither could be captured."""
    monkeypatch.setattr(training.TrainingStep, "norms", lambda self: None)
    with torch.device("meta"):
        model = models.CifarResNet(4, (8, 16), (1, 1), projection=True)
    images = first_stage.ImageData(data, "meta")
    if stage == 2:
        features = torch.empty(70, 16, device="meta"), images.train.labels
        monkeypatch.setattr(second_stage.FrozenFeatures, "draw", lambda *_: features)
        images = second_stage.FrozenFeatures(model, data, "meta", batch_size=BATCH)
        model = model.classifier
    ball, how = regularizers.MaxNorm(1.0), Engine(torch.device("meta"))
    trainer = training.Trainer(model, images, recipe(loss=loss), ball, engine=how)
    trainer.begin_epoch()
    with OffDevice() as watched:
        for size in set(trainer.step.sizes):
            trainer.step.update(model, size)
    assert watched.seen > 50
    assert not watched.found


def test_the_watch_sees_what_a_capture_would_refuse():
    with OffDevice() as watched:
        torch.tensor([1.0]).to("meta")
    assert watched.found
    with pytest.raises(RuntimeError, match="meta"):
        torch.zeros((), device="meta").item()


@pytest.mark.parametrize(
    ("options", "shown", "said"),
    [
        ({}, "cpu, fp32, eager steps", "no CUDA graph on cpu"),
        ({"precision": "bf16"}, "cpu, bf16, eager steps", "no fast bf16"),
        ({"precision": "fp32", "compile": "on"}, "cpu, fp32, eager steps, torch.compile", "no CUDA graph"),
        ({"deterministic": True, "large": True}, "cpu, fp32, eager steps, deterministic", "no CUDA graph"),
    ],
)
def test_a_cpu_falls_back_and_says_so(monkeypatch, options, shown, said):
    monkeypatch.setattr(engine, "has_fast_bf16", lambda _: False)
    chosen = engine.choose("cpu", **options)
    assert str(chosen) == shown
    assert said in "; ".join(chosen.notices)


@pytest.mark.parametrize("name", engine.CPU_BF16)
def test_a_cpu_that_has_bf16_keeps_float32_unless_asked(monkeypatch, name):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, name: True}, raising=False)
    auto, asked = engine.choose("cpu"), engine.choose("cpu", precision="bf16")
    assert (auto.precision, asked.precision) == ("fp32", "bf16")
    assert "--precision bf16 is faster on this processor" in auto.notices
    assert not any("bf16" in notice for notice in asked.notices)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, name: False})
    assert not any("bf16" in notice for notice in engine.choose("cpu").notices)
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # PyTorch 2.6
    assert not engine.has_fast_bf16(torch.device("cpu"))


@pytest.mark.parametrize("bf16", [True, False])
def test_a_gpu_takes_the_fast_path_it_has(monkeypatch, bf16):
    monkeypatch.setattr(engine, "has_fast_bf16", lambda _: bf16)
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    auto = engine.choose("cuda", large=True)
    assert (auto.precision, auto.graph, auto.compile) == ("bf16" if bf16 else "fp32", True, True)
    asked = engine.choose("cuda", precision="bf16", compile="off", large=True)
    assert (asked.precision, asked.compile) == (auto.precision, False)
    assert bool(asked.notices) == (not bf16)


def test_mps_trains_in_float32_and_says_so():
    chosen = engine.choose("mps", precision="bf16")
    assert str(chosen) == "mps, fp32, eager steps"
    assert len(chosen.notices) == 2


def test_switches_are_put_back_after_an_error():
    before = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    within = []

    def fail() -> None:
        with Engine(deterministic=True).backend():
            within.append(torch.are_deterministic_algorithms_enabled())
            raise ZeroDivisionError

    pytest.raises(ZeroDivisionError, fail)
    assert within == [True]
    assert before == (torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled())


@pytest.mark.parametrize(("cores", "threads", "expected"), [(2, 4, 2), (8, 1, 1), (4, 4, 4)])
def test_threads_are_the_physical_cores_or_fewer(monkeypatch, cores, threads, expected):
    chosen = []
    monkeypatch.setattr(machine, "physical_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    machine.use_physical_cores()
    assert chosen == [expected]


def test_there_is_a_physical_core():
    assert 1 <= machine.physical_cores() <= os.cpu_count()


@needs_cuda
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-2), ("bf16", 3e-2)])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_captured_step_equals_the_plain_loop(data, precision, tolerance, compiled):
    ours, plain = network(device="cuda"), network()
    how = Engine(torch.device("cuda"), precision, compiled, graph=True)
    outcome = train(ours, data, recipe(), how, regularizers.MaxNorm(0.4))
    expected = train(plain, data, recipe(), None, regularizers.MaxNorm(0.4))
    assert "CUDA graph" in outcome.extra["engine"]
    np.testing.assert_allclose(outcome.history.train_loss, expected.history.train_loss, rtol=tolerance)
    assert outcome.norms[-1].max() <= 0.4 + 1e-5


@needs_cuda
def test_captured_side_by_side_equals_captured_alone(data):
    how, images = Engine(torch.device("cuda"), graph=True, deterministic=True), first_stage.ImageData(data, "cuda")
    together = [network(i, "cuda") for i in range(3)]
    training.fit_together([training.Trainer(m, images, recipe(seed=i), engine=how) for i, m in enumerate(together)])
    for i, model in enumerate(together):
        alone = network(i, "cuda")
        train(alone, data, recipe(seed=i), how)
        assert_same(model, alone, atol=1e-6, rtol=1e-5)


@needs_cuda
def test_the_fast_path_learns_as_well_over_three_seeds(data):
    fast, slow = [], []
    for seed in range(3):
        how = engine.choose("cuda")
        fast.append(train(network(seed, "cuda"), data, recipe(20, seed=seed), how).history.test_accuracy.iloc[-1])
        slow.append(train(network(seed), data, recipe(20, seed=seed)).history.test_accuracy.iloc[-1])
    spread = max(np.std(fast), np.std(slow), 2.5)  # 2.5 points are one of the 40 test images
    assert abs(np.mean(fast) - np.mean(slow)) <= 2 * spread


@pytest.mark.parametrize(
    ("release", "asked", "captured", "said"),
    [
        ("2.11.0+cu130", "auto", True, 0),
        ("2.10.1", "auto", False, 1),
        ("2.6.0", "on", True, 0),
        ("2.14.1", "off", False, 0),
    ],
)
def test_a_graph_is_captured_where_a_failed_capture_does_no_harm(monkeypatch, release, asked, captured, said):
    monkeypatch.setattr(engine, "has_fast_bf16", lambda _: True)
    monkeypatch.setattr(torch, "__version__", release)
    chosen = engine.choose("cuda:1", graph=asked)
    assert chosen.graph == captured
    assert len(chosen.notices) == said
    assert all("--graph on" in notice for notice in chosen.notices)


@pytest.mark.parametrize("warns", [True, False])
def test_the_callers_deterministic_algorithms_come_back(warns):
    try:
        torch.use_deterministic_algorithms(True, warn_only=warns)
        with engine.Engine(deterministic=not warns).backend():
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.is_deterministic_algorithms_warn_only_enabled() == warns
        assert torch.is_deterministic_algorithms_warn_only_enabled() == warns
    finally:
        torch.use_deterministic_algorithms(False)

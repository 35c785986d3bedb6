"""Balancing beside the libraries that heads and networks come from; each test skips where its library is not there.

Networks have random weights and see a few small images: what counts is that features are those of the head.
"""

import importlib

import numpy as np
import pytest
import torch

from ltr.balance import FIRST, balance, features
from ltr.errors import InputError

pytestmark = [pytest.mark.seconds, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")]
NETWORKS = [
    ("torchvision.models", "resnet18", 32, "fc"),
    ("torchvision.models", "efficientnet_b0", 32, "classifier.1"),
    ("torchvision.models", "swin_t", 32, "head"),
    ("timm", "convnext_atto", 32, "head.fc"),
    ("timm", "vit_tiny_patch16_224", 32, "head"),
]
CLASSES, BATCH = 5, 15


def build(library: str, name: str, size: int) -> torch.nn.Module:
    """A network with random weights, drawn without touching the global random state."""
    module = importlib.import_module(library) if library != "timm" else pytest.importorskip("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if library == "timm":
            sized = {"img_size": size} if name.startswith("vit") else {}
            return module.create_model(name, pretrained=False, num_classes=CLASSES, **sized)
        return getattr(module, name)(weights=None, num_classes=CLASSES)


def loader(size: int, seed: int, batches: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Random images of every class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(BATCH) % CLASSES
    return [(torch.randn(BATCH, 3, size, size, generator=generator), labels) for _ in range(batches)]


@pytest.mark.parametrize(("library", "name", "size", "layer"), NETWORKS, ids=[name for _, name, _, _ in NETWORKS])
def test_logits_written_back_are_features_times_head(library, name, size, layer):
    model = build(library, name, size)
    x, y, found = features(model, loader(size, 0))
    assert found == layer
    assert model.training
    result = balance(model.get_submodule(found), (x, y), features(model, loader(size, 1))[:2])
    result.write_into(model, found, "logit adjustment")
    model.eval()
    images = torch.cat([images for images, _ in loader(size, 0)])
    with torch.no_grad():
        weight, bias = result.parts("logit adjustment")
        torch.testing.assert_close(model(images), x @ weight.T + bias, atol=1e-3, rtol=1e-3)


def test_a_balanced_network_can_be_traced_and_exported():
    model = build("torchvision.models", "resnet18", 32)
    x, y, layer = features(model, loader(32, 0))
    balance(model.get_submodule(layer), (x, y), features(model, loader(32, 1))[:2]).write_into(model, layer)
    model.eval()
    images = loader(32, 2)[0][0]
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(model, images)(images), model(images))
        torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), model(images))


def test_a_network_without_a_linear_output_is_refused():
    model = build("torchvision.models", "squeezenet1_1", 32)
    with pytest.raises(InputError, match=r"^model: must end in a linear layer, got SqueezeNet without one$"):
        features(model, loader(64, 0))


@pytest.fixture(scope="module")
def digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """scikit-learn's digits, in training cut to a long tail of 90 down to 5 images."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for digit in range(10):
        own = order[data.target[order] == digit]
        parts["test"] += list(own[:60])
        parts["validation"] += list(own[60:80])
        parts["train"] += list(own[80 : 80 + int(90 * (5 / 90) ** (digit / 9))])
    return {name: (data.data[rows], data.target[rows]) for name, rows in parts.items()}


@pytest.fixture(scope="module")
def estimator(digits):
    return pytest.importorskip("sklearn.linear_model").LogisticRegression(max_iter=2000).fit(*digits["train"])


def test_coefficients_round_trip(digits, estimator):
    coefficients, intercept = estimator.coef_.copy(), estimator.intercept_.copy()
    result = balance(estimator, **digits)
    weight, bias = (values.detach().numpy() for values in result.head(FIRST).parameters())
    np.testing.assert_array_equal(weight, coefficients)
    np.testing.assert_array_equal(bias, intercept)
    result.write_into(estimator, method=FIRST)
    np.testing.assert_array_equal(estimator.coef_, coefficients)
    assert result.table.set_index("method").loc[result.best, "gain"] > 0


def test_the_score_is_scikit_learns(digits, estimator):
    result = balance(estimator, **digits)
    score = pytest.importorskip("sklearn.metrics").balanced_accuracy_score
    x, y = digits["test"]
    for row in result.table.to_dict("records"):
        result.write_into(estimator, method=row["method"])
        assert row["class mean"] == pytest.approx(100 * score(y, estimator.predict(x)))
        assert row["all"] == pytest.approx(100 * estimator.score(x, y))


def test_an_estimator_of_strings_fixes_the_order_of_rows(digits):
    words = np.array("zero one two three four five six seven eight nine".split())
    named = {name: (x, words[y]) for name, (x, y) in digits.items()}
    fitted = pytest.importorskip("sklearn.linear_model").LogisticRegression(max_iter=2000).fit(*named["train"])
    result = balance(fitted, **named)
    assert result.per_class.name.tolist() == fitted.classes_.tolist()
    assert result.table.set_index("method").loc[FIRST, "all"] == pytest.approx(100 * fitted.score(*named["test"]))


@pytest.mark.parametrize("name", ["LogisticRegression", "RidgeClassifier", "SGDClassifier"])
def test_a_binary_estimator_has_a_row_a_class_within(digits, name):
    two = {which: (x[y < 2], y[y < 2]) for which, (x, y) in digits.items()}
    fitted = getattr(pytest.importorskip("sklearn.linear_model"), name)().fit(*two["train"])
    x, y = two["test"]
    before, shapes = fitted.decision_function(x), (fitted.coef_.shape, np.shape(fitted.intercept_))
    result = balance(fitted, **two, methods=["tau-norm", "CB"])
    assert result.table.set_index("method").loc[FIRST, "all"] == pytest.approx(100 * fitted.score(x, y))
    result.write_into(fitted, method=FIRST)
    np.testing.assert_allclose(fitted.decision_function(x), before, rtol=1e-4, atol=1e-4)
    result.write_into(fitted, method="CB")
    assert fitted.coef_.shape == shapes[0]
    logits = result.head("CB")(torch.as_tensor(x).double()).detach().numpy()
    np.testing.assert_allclose(fitted.decision_function(x), logits[:, 1] - logits[:, 0], rtol=1e-4, atol=1e-4)


def test_a_pipeline_is_no_head(digits, estimator):
    pipeline = pytest.importorskip("sklearn.pipeline").make_pipeline(estimator)
    with pytest.raises(
        InputError, match="^head: must be a fitted linear estimator, of a pipeline its last step, got Pipeline"
    ):
        balance(pipeline, **digits)

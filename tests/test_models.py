"""Shapes, sizes and seeds of the networks; ResNet-34 against torchvision's, the shortcut against numbers."""

from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from ltr import losses, models, training
from ltr.models import BACKBONES, BasicBlock, CosineClassifier, LastLayers, Trunk, build_model, count_parameters
from ltr.recipes import Recipe

PARAMETERS = {
    # By hand, 3x3 convolutions of a and b channels having 9ab weights and batch-norm 2b:
    # stem 9*3*16 + 32 = 464; stage one 10 * (9*16*16 + 32) = 23,360;
    # stage two 9*16*32 + 9 * 9*32*32 + 10 * 64 = 88,192; stage three 9*32*64 + 9 * 9*64*64 + 10 * 128 = 351,488;
    # classifier 64*100 + 100 = 6,500. Option-A shortcuts have none.
    "resnet32": 464 + 23_360 + 88_192 + 351_488 + 6_500,  # 470,004
    "resnet32-wide": 7_409_316,
    "resnet34": 21_328_292,
    # torchvision's documented counts, less 1,000 classes' 2,049,000 weights, and 100 classes' 204,900
    "resnext50": 25_028_904 - 2_049_000 + 204_900,
    "resnet50": 25_557_032 - 2_049_000 + 204_900,
    "resnet152": 60_192_808 - 2_049_000 + 204_900,
}
FEATURES = {
    "resnet32": 64,
    "resnet32-wide": 256,
    "resnet34": 512,
    "resnext50": 2048,
    "resnet50": 2048,
    "resnet152": 2048,
}


def test_every_backbone_is_tested():
    assert set(PARAMETERS) == set(FEATURES) == set(BACKBONES)


@pytest.mark.seconds
@pytest.mark.parametrize("backbone", BACKBONES)
def test_number_of_parameters(backbone):
    assert count_parameters(build_model(backbone, 100)) == PARAMETERS[backbone]


@pytest.mark.seconds
@pytest.mark.parametrize("size", [32, 16])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_shapes(backbone, size):
    model = build_model(backbone, 7).eval()  # batch-norm would refuse the large networks' last maps of one pixel
    x = torch.zeros(2, 3, size, size)
    features = model.features(x)
    assert features.shape == (2, FEATURES[backbone])
    assert model.classifier(features).shape == model(x).shape == (2, 7)


def test_logits_are_the_classifier_of_the_features():
    model = build_model("resnet32", 5).eval()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x), model.classifier(model.features(x)))


@pytest.mark.usefixtures("random_state_untouched")
def test_the_seed_decides_the_weights():
    first, again, other = (build_model("resnet32", 10, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    for name in ("stem.0.weight", "blocks.14.conv2.weight", "classifier.weight", "classifier.bias"):
        assert not torch.equal(first[name], other[name])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, whose global generator this is about")
def test_building_leaves_the_random_state_of_the_gpu():
    torch.cuda.manual_seed(123)
    before = torch.cuda.get_rng_state()
    build_model("resnet32", 10, seed=3)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_an_unknown_backbone_is_refused():
    with pytest.raises(KeyError):
        build_model("resnet18", 10)


@pytest.mark.seconds
def test_resnet34_is_torchvisions_with_a_small_stem():
    theirs = torchvision.models.resnet34(weights=None, num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    generator = torch.Generator().manual_seed(0)
    for module in theirs.modules():  # as after training, so that no batch-norm is the identity
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.2, generator=generator)
    ours = build_model("resnet34", 10)
    for mine, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        mine.copy_(other)  # refuses another shape
    x = torch.randn(2, 3, 16, 16, generator=generator)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.seconds
@pytest.mark.parametrize("backbone", ["resnext50", "resnet50", "resnet152"])
def test_the_large_networks_have_as_many_weights_as_torchvisions(backbone):
    name = BACKBONES[backbone]["architecture"]
    assert PARAMETERS[backbone] == count_parameters(torchvision.models.get_model(name, num_classes=100))


@pytest.mark.seconds
def test_resnet50_is_torchvisions():
    theirs = torchvision.models.resnet50(weights=None, num_classes=7).eval()
    ours = build_model("resnet50", 7).eval()
    for mine, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        mine.copy_(other)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(ours(x), theirs(x))


def test_option_a_shortcut_subsamples_and_pads_with_zero_channels():
    x = torch.arange(32.0).view(1, 2, 4, 4)  # channel 0 counts from 0, channel 1 from 16
    out = BasicBlock(2, 4, stride=2, projection=False).shortcut(x)
    zero = [[0, 0], [0, 0]]
    assert out[0].tolist() == [zero, [[0, 2], [8, 10]], [[16, 18], [24, 26]], zero]


@pytest.mark.parametrize("projection", [False, True])
def test_equal_shapes_pass_the_shortcut_unchanged(projection):
    x = torch.ones(1, 2, 4, 4)
    assert BasicBlock(2, 2, stride=1, projection=projection).shortcut(x) is x


def step(model: nn.Module, lr: float = 0.1) -> None:
    """One step of SGD on noise."""
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learned, lr)
    nn.functional.cross_entropy(model.train()(x), torch.arange(4)).backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("layers", "learned"),
    [
        (1, {"classifier"}),
        (2, {"classifier", "blocks.14.conv2", "blocks.14.bn2"}),
        (3, {"classifier", "blocks.14.conv2", "blocks.14.bn2", "blocks.14.conv1", "blocks.14.bn1"}),
    ],
)
def test_only_the_last_layers_learn(layers, learned):
    network = build_model("resnet32", 4)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    step(LastLayers(network, layers, from_images=True))
    changed = {
        name.rsplit(".", 1)[0] for name, value in network.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == learned


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backbone", ["resnet34", "resnet50"])
@pytest.mark.parametrize("from_images", [False, True])
def test_batch_norm_keeps_its_statistics_and_logits_are_those_of_evaluation(backbone, from_images):
    network, x = build_model(backbone, 4).eval(), noise(2, 3, 32, 32)
    expected = network(x)
    last = LastLayers(network, 5, from_images=from_images)
    assert not any(module.training for module in last.train().modules())
    maps = x if from_images else Trunk(network, len(last.blocks)).features(x)
    torch.testing.assert_close(last(maps), expected)
    assert last.classifier is network.classifier


def test_batch_norm_drifts_in_frozen_layers_too_where_it_shall():
    network = build_model("resnet32", 4)
    before = {name: value.clone() for name, value in network.named_buffers()}
    step(LastLayers(network, 2, drifts=True, from_images=True))
    drifted = {name for name, value in network.named_buffers() if not torch.equal(value, before[name])}
    assert drifted == set(before)


@pytest.mark.parametrize(("layers", "needed"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)])
def test_last_layers_are_in_as_few_blocks_as_hold_them(layers, needed):
    network = build_model("resnet32", 4)
    assert len(LastLayers(network, layers).blocks) == needed
    assert len(LastLayers(network, layers, needed + 1).blocks) == needed + 1
    if needed:
        with pytest.raises(ValueError, match=f"blocks: must be {needed} to 15"):
            LastLayers(network, layers, needed - 1)


def test_more_blocks_than_needed_learn_no_more():
    few, more = (LastLayers(build_model("resnet32", 4), 2, blocks) for blocks in (1, 3))
    learned = [[p.shape for p in last.parameters() if p.requires_grad] for last in (few, more)]
    assert learned[0] == learned[1]


@pytest.mark.parametrize("layers", [0, 33])
def test_layers_that_are_not_there_are_refused(layers):
    with pytest.raises(ValueError, match="layers: must be 1 to 31"):
        LastLayers(build_model("resnet32", 4), layers)


def test_ldams_margins_are_scaled_as_the_cosines_are(monkeypatch):
    counts = torch.tensor([500, 50, 5])
    logits, labels = torch.zeros(3, 3), torch.arange(3)
    assert CosineClassifier.scale == 30, "as in LDAM's released code, and by default in its loss"
    default, wide = (losses.build_loss("ldam-drw", counts, **told)(logits, labels) for told in ({}, {"scale": 60.0}))
    monkeypatch.setattr(CosineClassifier, "scale", 60.0)
    network = models.build_model("resnet32", 3, cosine=True)
    rows = SimpleNamespace(class_counts=counts, draws_on=torch.device("cpu"))
    step = training.TrainingStep(network, rows, Recipe(1, loss="ldam-drw"), None, None)
    assert step.loss(logits, labels) == wide != default


def test_small_rows_have_the_cosines_of_large_ones():
    classifier = CosineClassifier(8, 3)
    features = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    expected = classifier(features)
    with torch.no_grad():
        classifier.weight.mul_(1e-15)
    torch.testing.assert_close(classifier(1e-15 * features), expected)


@pytest.mark.parametrize("size", [1e-30, 1e-23, 1.0, 1e20, 1e30])
def test_rows_of_any_size_come_to_unit_length(size):
    rows = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    expected = F.normalize(rows)
    torch.testing.assert_close(models.unit_rows(size * rows), expected)
    assert torch.equal(models.unit_rows(rows), expected), "ordinary rows keep their bits"
    assert torch.equal(models.unit_rows(torch.zeros(2, 3)), torch.zeros(2, 3))
    network = models.build_model("resnet32", 4, cosine=True)
    with torch.no_grad():
        network.classifier.weight.mul_(size)
    torch.testing.assert_close(models.copy_classifier(network).weight.norm(dim=1), torch.full((4,), 30.0))

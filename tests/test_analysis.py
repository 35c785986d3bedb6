"""Features and weights in numbers: values worked by hand, and what must not change them."""

import numpy as np
import pytest
import torch
from elsewhere import no_float64
from hypothesis import given
from hypothesis import strategies as st

from ltr import analysis, models

# Two classes on a line: at -1 and +1 around 0, and at 9 and 11 around 10.
LINE, OF = torch.tensor([[-1.0], [1.0], [9.0], [11.0]]), torch.tensor([0, 0, 1, 1])


def test_scatter_by_hand():
    within, between = analysis.scatter(LINE, OF)
    assert within.item() == pytest.approx(1)  # every image is 1 from its class's mean
    assert between.item() == pytest.approx(25)  # every mean is 5 from their middle
    assert analysis.fisher_ratio(LINE, OF) == pytest.approx(25.0)


def test_every_class_weighs_the_same():
    often = torch.cat([LINE, LINE[:2].repeat(50, 1)]), torch.cat([OF, torch.zeros(100, dtype=torch.long)])
    assert analysis.fisher_ratio(*often) == pytest.approx(25.0)
    twice = torch.cat([LINE, LINE[:2]]) + 20, torch.cat([OF, OF[:2]])
    assert analysis.mean_cosine(*twice)["between"] == pytest.approx(analysis.mean_cosine(LINE + 20, OF)["between"])


@given(st.integers(0, 2**31))
def test_fishers_ratio_is_the_same_in_any_coordinates(seed):
    generator = torch.Generator().manual_seed(seed)
    features, labels = torch.randn(60, 4, generator=generator), torch.arange(60) % 3
    mixed = torch.eye(4) + 0.2 * torch.randn(4, 4, generator=generator)
    assert analysis.fisher_ratio(features @ mixed + 3, labels) == pytest.approx(
        analysis.fisher_ratio(features, labels), rel=1e-3
    )


def test_directions_without_variation_are_left_out():
    flat = torch.cat([LINE, torch.full((4, 2), 7.0)], 1)
    assert analysis.fisher_ratio(flat, OF) == pytest.approx(25.0)


def test_absent_classes_are_left_out():
    assert analysis.fisher_ratio(LINE, OF * 5) == pytest.approx(25.0)


def test_mean_cosines_by_hand():
    # class 0 along x and along the diagonal, class 1 along y: 45 degrees within, 90 and 45 between
    features = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 3.0]])
    cosines = analysis.mean_cosine(features, torch.tensor([0, 0, 1]))
    assert cosines["within"] == pytest.approx(0.5**0.5)
    assert cosines["between"] == pytest.approx((0 + 0.5**0.5) / 2)
    small = analysis.mean_cosine(1e-30 * features, torch.tensor([0, 0, 1]))
    assert small == pytest.approx(cosines)


def test_filter_norms_by_hand():
    weights = {
        "stem.0.weight": torch.tensor([3.0, 4.0]).view(2, 1, 1, 1),
        "stem.1.weight": torch.ones(2),
        "blocks.0.downsample.0.weight": torch.ones(2, 2, 1, 1),
        "blocks.0.conv1.weight": torch.ones(2, 1, 2, 2),
    }
    table = analysis.filter_norms(weights)
    assert table["name"].tolist() == ["stem.0.weight", "blocks.0.conv1.weight"]
    assert table["layer"].tolist() == [1, 2]
    np.testing.assert_allclose(table[["mean", "variance"]], [[3.5, 0.25], [2.0, 0.0]])


@pytest.mark.parametrize(("backbone", "layers"), [("resnet32", 31), ("resnet34", 33)])
def test_every_convolution_is_a_layer(backbone, layers):
    assert len(analysis.filter_norms(models.build_model(backbone, 3).state_dict())) == layers


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_give_no_figure(value):
    features = LINE.clone()
    features[2, 0] = value
    assert np.isnan(list(analysis.geometry(features, OF).values())).all()


def test_features_are_summed_without_float64_on_their_device():
    features, labels = torch.randn(60, 4, generator=torch.Generator().manual_seed(1)), torch.arange(60) % 7
    weights = {"conv.weight": features.view(60, 1, 2, 2)}
    expected = analysis.geometry(features, labels), analysis.filter_norms(weights)
    with no_float64() as device:
        features, labels = features.to(device), labels.to(device)
        assert analysis.geometry(features, labels) == expected[0]
        assert all(part.device.type == "cpu" for part in analysis.scatter(features, labels))
        assert analysis.filter_norms({"conv.weight": weights["conv.weight"].to(device)}).equals(expected[1])


def test_the_device_without_float64_refuses_it_whichever_way_it_comes():
    with no_float64() as device:
        values, wide = torch.ones(3).to(device), torch.ones(3, dtype=torch.float64)
        for make in (
            lambda: values.double(),
            lambda: wide.to(device),
            lambda: torch.zeros(3, dtype=torch.float64, device=device),
            lambda: torch.as_tensor([1, 2], dtype=torch.float64, device=device),
            lambda: torch.tensor(np.ones(3), device=device),
            lambda: values.new_tensor([1.0], dtype=torch.float64),
            lambda: values.new_zeros(3, dtype=torch.float64),
            lambda: values.sum(dtype=torch.float64),
        ):
            with pytest.raises(TypeError, match="no float64"):
                make()
        with pytest.raises(RuntimeError, match="two devices"):
            values + torch.ones(3)
        assert values.cpu().double().sum() == 3
        assert (2 * values).tolist() == [2, 2, 2]


def test_mean_logits_are_of_a_class_own_images_and_of_all_others():
    logits = np.array([[3.0, 0.0], [1.0, -2.0], [-1.0, 5.0]])
    table = analysis.mean_logits(logits, np.array([0, 0, 1]))
    assert table.own.tolist() == [2.0, 5.0]
    assert table.others.tolist() == [-1.0, -1.0]


def test_mean_logits_of_no_image_or_no_number_are_none():
    alone = analysis.mean_logits(np.ones((2, 2)), np.array([0, 0]))
    assert alone.isna().to_numpy().tolist() == [[False, False, True], [False, True, False]]
    broken = analysis.mean_logits(np.array([[np.inf, 1.0], [0, 1]]), np.array([0, 1]))
    assert broken[["own", "others"]].isna().all(axis=None)

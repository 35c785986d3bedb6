"""Stored features: passes that come again, other orders, and the file that ships."""

import numpy as np
import pytest
import together
import torch

from ltr import second_stage
from ltr.errors import InputError
from ltr.second_stage import Features, Pass
from ltr.study import ship


@pytest.fixture
def features() -> Features:
    """Three passes of 12 images in two classes, and 6 test images."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 8 + [1] * 4)
    passes = []
    for _ in range(3):
        order = torch.randperm(12, generator=generator)
        passes.append(Pass(torch.randn(12, 5, generator=generator), labels[order]))
    tested = {(0, flip): torch.randn(6, 5, generator=generator) for flip in (False, True)}
    return Features(passes, tested, np.array([8, 4]), np.array([0, 0, 0, 1, 1, 1]), batch_size=5, seed=3)


def pairs(drawn) -> set:
    """Features with their labels, without their order."""
    return {(*row, int(label)) for row, label in zip(drawn[0].tolist(), drawn[1], strict=True)}


def test_the_first_epochs_see_the_passes_as_they_are(features):
    for epoch in range(3):
        drawn = features.draw(5, 3, epoch)
        assert torch.equal(drawn[0], features.passes[epoch].features)


def test_later_epochs_see_the_passes_again_in_another_order(features):
    again = features.draw(5, 3, 4)
    assert pairs(again) == pairs(features.draw(5, 3, 1))
    assert not torch.equal(again[0], features.passes[1].features)
    assert torch.equal(again[0], features.draw(5, 3, 4)[0])  # the same order each time


def test_another_seed_is_another_order_of_the_same(features, random_state_untouched):
    other = features.reordered(7)
    for epoch in range(4):
        assert pairs(other.draw(5, 7, epoch)) == pairs(features.draw(5, 3, epoch))
        assert not torch.equal(other.draw(5, 7, epoch)[0], features.draw(5, 3, epoch)[0])
    assert other.test_features(0, True) is features.test_features(0, True)


def test_features_that_are_not_extracted_yet_are_reordered_too():
    """As in a second stage whose classifiers are all finished, so that nothing has asked for them."""
    fresh, known = together.features("paper").reordered(7), together.features("paper")
    for epoch in range(2):
        known.draw(together.BATCH, 0, epoch)
        expected = known.passes[epoch].shuffled(7, epoch)
        drawn = fresh.draw(together.BATCH, 7, epoch)
        assert torch.equal(drawn[0], expected.features)
        assert torch.equal(drawn[1], expected.labels)
    assert torch.equal(fresh.test_features(0, True), known.test_features(0, True))


def test_other_draws_are_refused(features):
    with pytest.raises(ValueError, match="must be 5 and 3, as the features"):
        features.draw(5, 4, 0)


def test_what_ships_comes_back_in_half_precision(features, tmp_path):
    assert ship.write(tmp_path / "features.npz", features, epochs=10) == 10
    back = second_stage.read_features(tmp_path / "features.npz")
    assert len(back) == 12
    assert (back.batch_size, back.seed, back.mode) == (5, 3, "paper")
    for epoch in range(10):
        for ours, theirs in zip(back.draw(5, 3, epoch), features.draw(5, 3, epoch), strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-3)
    for flip in (False, True):
        torch.testing.assert_close(back.test_features(0, flip), features.test_features(0, flip), atol=2e-3, rtol=1e-3)
    np.testing.assert_array_equal(back.test_labels, features.test_labels)
    np.testing.assert_array_equal(back.class_counts, features.class_counts)


def test_as_many_passes_ship_as_fit(features, tmp_path, monkeypatch):
    a_pass = 2 * (12 * 5 + 12)
    test = 2 * 2 * 6 * 5 + 2 * 6 + 8 * 2 + 8 * 2  # both test sets, their labels, counts, draws
    for room, passes in ((test + 3 * a_pass, 3), (test + 3 * a_pass - 1, 2), (test + a_pass, 1)):
        monkeypatch.setattr(ship, "LARGEST", room)
        assert ship.write(tmp_path / "features.npz", features, epochs=10) == passes
        assert len(second_stage.read_features(tmp_path / "features.npz").passes) == passes
    monkeypatch.setattr(ship, "LARGEST", test + a_pass - 1)
    with pytest.raises(InputError, match=r"^--backbone: "):
        ship.write(tmp_path / "none.npz", features, epochs=10)
    assert not (tmp_path / "none.npz").exists()


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"^--base: no features ship with .*python -m ltr ship makes them$"):
        second_stage.read_features(tmp_path / "features.npz")


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_damaged_file_is_one_line(features, tmp_path, damage):
    path = tmp_path / "features.npz"
    ship.write(path, features, 1)
    if damage == "other":
        np.savez(path, something=np.zeros(3))
    else:
        path.write_bytes(path.read_bytes()[:300] if damage == "cut" else b"")
    with pytest.raises(InputError, match=r"^--base: .* cannot be read") as error:
        second_stage.read_features(path)
    assert "\n" not in str(error.value)

"""Mixing, Cutout, AutoAugment and sampling: by hand, in bulk, the same each time, and through the loop of training."""

import pytest
import torch
from test_training import small  # noqa: F401 (a fixture)
from torch.nn import functional as F

from ltr import losses, models, training
from ltr.data import augment
from ltr.errors import InputError
from ltr.first_stage import ImageData
from ltr.recipes import Recipe

CHOICES = [
    {"mix": "mixup"},
    {"mix": "cutmix"},
    {"augmentation": "cutout"},
    {"augmentation": "autoaugment"},
    {"mix": "cutmix", "augmentation": "autoaugment+cutout", "sampling": "sqrt"},
    {"sampling": "class-balanced"},
]
ids = ["-".join(choice.values()) for choice in CHOICES]


def test_boxes_by_hand():
    mask = augment.inside(torch.tensor([[0, 1, 1, 3], [-5, 1, 3, 9]]), (2, 4))
    assert mask.int().tolist() == [[[[0, 1, 1, 0], [0, 0, 0, 0]]], [[[0, 0, 0, 1], [0, 0, 0, 0]]]]


def test_mixup_by_hand():
    mixed = augment.mix("mixup", torch.full((1, 3, 2, 2), 10.0), torch.zeros(1, 3, 2, 2), torch.tensor([0.3]), None)
    torch.testing.assert_close(mixed, torch.full((1, 3, 2, 2), 3.0))


def test_cutmix_by_hand():
    box = torch.tensor([[0, 1, 0, 2]])
    mixed = augment.mix("cutmix", torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 7.0), torch.tensor([0.5]), box)
    assert mixed.tolist() == [[[[7, 7], [1, 1]]]]


def test_cutmixs_share_is_what_its_box_leaves():
    share, boxes = augment.draw_mixing("cutmix", 500, (8, 6), seed=1, epoch=2)
    left = 1 - augment.inside(boxes, (8, 6)).float().mean((1, 2, 3))
    torch.testing.assert_close(share, left)
    assert boxes.min() == 0
    assert (boxes.max(0).values <= torch.tensor([8, 8, 6, 6])).all()


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_shares_are_drawn_from_the_beta_distribution(kind):
    share, _ = augment.draw_mixing(kind, 4000, (32, 32), seed=0, epoch=0)
    assert ((share >= 0) & (share <= 1)).all()
    if kind == "mixup":  # variance of Beta(a, a): 1 / (4 (2a + 1)); CutMix's boxes are cut at the border
        assert float(share.mean()) == pytest.approx(0.5, abs=0.03)
        assert float(share.var()) == pytest.approx(1 / (4 * 1.4), abs=0.01)


def test_cutout_takes_a_square_of_16_pixels_or_what_of_it_is_inside():
    holes = augment.draw_holes(300, (32, 32), seed=0, epoch=0)
    cut = augment.cutout(torch.ones(300, 3, 32, 32), holes)
    gone = (cut == 0).sum((1, 2, 3)) / 3
    assert gone.max() == 16 * 16
    assert 8 * 8 <= gone.min() < 16 * 16
    assert (cut[:, 0] == cut[:, 2]).all()


def test_autoaugment_changes_many_images_and_leaves_the_global_state_alone(random_state_untouched):
    images = torch.randint(0, 256, (200, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    before = images.clone()
    once, again, later = (augment.autoaugment(images, 5, epoch) for epoch in (1, 1, 2))
    assert torch.equal(images, before)
    assert torch.equal(once, again)
    assert not torch.equal(once, later)
    assert once.shape == images.shape
    changed = (once != images).flatten(1).any(1).float().mean()
    assert 0.3 < changed < 1


@pytest.mark.parametrize(("sampling", "shares"), [("sqrt", [0.75, 0.25]), ("class-balanced", [0.5, 0.5])])
def test_sampling_follows_the_power_of_the_counts(sampling, shares, random_state_untouched):
    labels = torch.tensor([0] * 900 + [1] * 100)  # 30 : 10 by their roots
    orders = [augment.sampled_order(labels, sampling, 0, epoch) for epoch in range(20)]
    drawn = labels[torch.cat(orders)].bincount() / 20_000
    torch.testing.assert_close(drawn, torch.tensor(shares), atol=0.02, rtol=0)
    assert len(orders[0]) == len(labels)
    assert torch.cat(orders).bincount(minlength=1000).min() > 0


@pytest.mark.parametrize("choice", CHOICES, ids=ids)
def test_draws_depend_on_seed_and_epoch_alone(small, choice, random_state_untouched):  # noqa: F811
    first, second = ImageData(small, "cpu", **choice), ImageData(small, "cpu", **choice)
    second.draw(24, 3, 8)  # what was drawn before plays no part
    for data in (first, second):
        data.batches = data.batch(data.draw(24, 3, 5), torch.arange(24, 48))
    assert torch.equal(first.batches[0], second.batches[0])
    other = first.batch(first.draw(24, 4, 5), torch.arange(24, 48))
    assert not torch.equal(other[0], first.batches[0])


def test_without_choices_nothing_is_drawn_but_crops_and_flips(small):  # noqa: F811
    data = ImageData(small, "cpu")
    assert [len(values) for values in data.draw(24, 0, 0)] == [64, 64, 64, 0, 0, 0, 0, 0]
    assert data.describe_draws() == {}


def test_mixing_pairs_each_image_with_one_of_its_batch_and_knows_both_labels(small):  # noqa: F811
    data = ImageData(small, "cpu", mix="mixup")
    drawn = data.draw(24, 0, 0)
    data.draw(32, 0, 1)  # draws are of their own batch size and epoch, whatever was drawn since
    for positions in torch.arange(64).split(24):  # the last batch is short
        images, labels = data.batch(drawn, positions)
        plain, own = data.single(drawn, positions)
        share = drawn[3][positions[0]]
        torch.testing.assert_close(images, share * plain + (1 - share) * plain.flip(0))
        assert torch.equal(labels.first, own)
        assert torch.equal(labels.second, own.flip(0))
        assert (labels.share == share).all()


def test_a_part_of_a_batch_is_mixed_as_in_the_whole(small):  # noqa: F811
    data = ImageData(small, "cpu", mix="cutmix", augmentation="cutout")
    drawn = data.draw(24, 0, 0)
    whole, part = (data.batch(drawn, torch.arange(*ends)) for ends in ((48, 64), (50, 55)))
    torch.testing.assert_close(part[0], whole[0][2:7])
    assert torch.equal(part[1].second, whole[1].second[2:7])


def test_the_loss_of_mixed_images_is_that_of_mixed_labels(small):  # noqa: F811
    data = ImageData(small, "cpu", mix="mixup")
    trainer = training.Trainer(models.build_model("resnet32", 4), data, Recipe(1, batch_size=24))
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels = losses.Mixed(torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([1, 1, 3, 0, 2, 2]), torch.full((6,), 0.7))
    soft = 0.7 * F.one_hot(labels.first, 4) + 0.3 * F.one_hot(labels.second, 4)
    torch.testing.assert_close(trainer.step.loss_of(logits, labels, 6), F.cross_entropy(logits, soft))


def test_repeated_images_are_cropped_anew(small):  # noqa: F811
    data = ImageData(small, "cpu", sampling="class-balanced")
    drawn = data.draw(64, 0, 0)
    images, _ = data.batch(drawn, torch.arange(64))
    repeated = drawn[0].bincount().argmax()
    places = (drawn[0] == repeated).nonzero().flatten()
    assert len(places) > 2
    assert not all(torch.equal(images[places[0]], images[place]) for place in places[1:])


def train(data, recipe: Recipe, checkpoint=None, stop: int | None = None) -> dict[str, torch.Tensor]:
    """Weights at the end; with `stop` the training is given up after that many epochs."""
    model = models.build_model("resnet32", 4, seed=1, cosine=recipe.loss == "ldam-drw")
    trainer = training.Trainer(model, data, recipe, None, checkpoint)
    trainer.resume()
    trainer.prepare()
    while trainer.epoch < (stop or recipe.epochs):
        training.train_epoch([trainer])
        trainer.end_epoch()
        trainer.save_when_due()
    return model.state_dict()


@pytest.mark.seconds
@pytest.mark.parametrize("choice", [{"loss": "ldam-drw"}, *CHOICES[:4:3], CHOICES[4]], ids=str)
def test_a_resumed_training_ends_with_the_same_weights(small, choice, tmp_path):  # noqa: F811
    choice = dict(choice)
    recipe = Recipe(5, batch_size=24, lr=0.05, loss=choice.pop("loss", "ce"), test_every=5)
    whole = train(ImageData(small, "cpu", **choice), recipe)
    train(ImageData(small, "cpu", **choice), recipe, tmp_path / "checkpoint.pt", stop=3)
    again = train(ImageData(small, "cpu", **choice), recipe, tmp_path / "checkpoint.pt")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_a_checkpoint_of_another_augmentation_is_refused(small, tmp_path):  # noqa: F811
    recipe = Recipe(2, batch_size=24, test_every=2)
    train(ImageData(small, "cpu", mix="mixup"), recipe, tmp_path / "checkpoint.pt", stop=1)
    with pytest.raises(InputError, match="mix is mixup there and None here"):
        train(ImageData(small, "cpu"), recipe, tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("choice", [*CHOICES, {"loss": "ldam-drw"}, {"loss": "label-aware"}], ids=str)
def test_a_step_waits_for_nothing_on_its_device(small, choice):  # noqa: F811
    """On `meta` tensors, which have no values, whatever asked for one would fail: a CUDA graph could not hold it."""
    choice = dict(choice)
    loss = choice.pop("loss", "ce")
    data = ImageData(small, "cpu", **choice)
    drawn = data.draw(24, 0, 0)
    data.train.__dict__ |= {
        name: value.to("meta") for name, value in data.train.__dict__.items() if isinstance(value, torch.Tensor)
    }
    images, labels = data.batch([values.to("meta") for values in drawn], torch.arange(24, device="meta"))
    trainer = training.Trainer(models.build_model("resnet32", 4), ImageData(small, "cpu"), Recipe(1, batch_size=24))
    trainer.step.loss = losses.build_loss(loss, torch.tensor([32, 16, 12, 4]), "meta")
    assert images.shape == (24, 3, 8, 8)
    assert trainer.step.loss_of(torch.zeros(24, 4, device="meta"), labels, 24).shape == ()

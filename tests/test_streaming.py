"""Images streamed from their files: the same pixels for any number of workers and after a resume, and both stages."""

import multiprocessing
import time

import forked
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision import transforms
from trees import complaint, shrink_benchmarks, write_benchmark

from ltr import datasets, first_stage, models, recipes, second_stage, stack, training
from ltr.data import streaming
from ltr.data.streaming import StreamLoader
from ltr.errors import InputError
from ltr.regularizers import MaxNorm

CROP, RESIZE = 16, 20


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_benchmark(tmp_path_factory.mktemp("imagenet"), "imagenet-lt")


@pytest.fixture
def data(root, monkeypatch):
    shrink_benchmarks(monkeypatch)
    monkeypatch.setattr(streaming, "CROP", CROP)
    monkeypatch.setattr(streaming, "RESIZE", RESIZE)
    return datasets.load("imagenet-lt", root, 1.0, "as-is", normalization="imagenet", workers=0)


def loader(data, workers: int = 0) -> StreamLoader:
    return StreamLoader(data.train, data.mean, data.std, "cpu", workers)


def network(seed: int = 0) -> models.CifarResNet:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return models.CifarResNet(3, (8,), (1,), projection=True)


def epoch_of(stream: StreamLoader, epoch: int, batch_size: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
    drawn = stream.draw(batch_size, 5, epoch)
    return [stream.batch(drawn, positions) for positions in torch.arange(len(stream)).split(batch_size)]


def assert_equal(some, others) -> None:
    for (images, labels), (other_images, other_labels) in zip(some, others, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


# ---- pixels


@pytest.mark.seconds
@pytest.mark.usefixtures("random_state_untouched")
def test_workers_change_no_pixel(data):
    alone = loader(data)
    for workers in (1, 2):
        assert_equal(epoch_of(loader(data, workers), 3), epoch_of(alone, 3))
        assert_equal(loader(data, workers).test_batches(), alone.test_batches())


@pytest.mark.usefixtures("random_state_untouched")
def test_both_ways_through_an_epoch_give_the_same(data):
    stream = loader(data)
    assert_equal(stream.train_batches(8, 5, 1), epoch_of(stream, 1))
    assert [len(labels) for _, labels in stream.train_batches(8, 5, 1)] == [8] * 5 + [6]
    order = torch.cat([labels for _, labels in stream.train_batches(46, 5, 1)])
    assert torch.bincount(order).tolist() == [30, 12, 4]


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)], ids=["one seed", "two seeds"])
def test_trainings_that_share_a_stream_decode_each_seeds_images_once(data, monkeypatch, seeds):
    """Side by side, as `fit_together` has them: both draw, then their steps take turns."""
    opened, begin = [], streaming.Decoded.__init__
    monkeypatch.setattr(streaming.Decoded, "__init__", lambda self, *told: opened.append(told[1]) or begin(self, *told))
    shared, alone = loader(data), [loader(data) for _ in seeds]
    drawn = [shared.draw(8, seed, 0) for seed in seeds]
    found = []
    for positions in torch.arange(len(shared)).split(8):
        found.append([shared.batch(draws, positions) for draws in drawn])
    assert sorted(opened) == [(seed, 0) for seed in sorted(set(seeds))]  # read ahead, and no batch decoded by itself
    expected = [stream.draw(8, seed, 0) for stream, seed in zip(alone, seeds, strict=True)]
    for positions, pair in zip(torch.arange(len(shared)).split(8), found, strict=True):
        assert_equal(pair, [stream.batch(draws, positions) for stream, draws in zip(alone, expected, strict=True)])


def test_an_images_draws_are_its_own(data):
    """Whatever stands beside it in its batch, and different in another epoch and of another seed."""
    stream = loader(data)
    (whole, _), *_ = stream.train_batches(46, 5, 1)
    parts = torch.cat([images for images, _ in stream.train_batches(4, 5, 1)])
    assert torch.equal(whole, parts)
    decoded = [streaming.Decoded(data.train, key)[[7]] for key in ((5, 1), (5, 2), (6, 1))]
    assert not torch.equal(decoded[0], decoded[1])
    assert not torch.equal(decoded[0], decoded[2])


def test_a_batch_depends_on_what_is_asked_for_only(data):
    """Twice, out of order, of another epoch, by two trainings that share the images."""
    stream, expected = loader(data, workers=1), epoch_of(loader(data), 0)
    drawn, later = stream.draw(8, 5, 0), stream.draw(8, 5, 1)
    chunks = torch.arange(46).split(8)
    for which in (0, 0, 3, 1, 1, 2, 5):
        assert_equal([stream.batch(drawn, chunks[which])], [expected[which]])
    assert_equal([stream.batch(later, chunk) for chunk in chunks], epoch_of(loader(data), 1))
    assert_equal([stream.batch(drawn, chunks[0][:3])], [tuple(values[:3] for values in expected[0])])


def test_test_images_are_torchvisions(data):
    expected = transforms.Compose(
        [
            transforms.Resize(RESIZE),
            transforms.CenterCrop(CROP),
            transforms.ToTensor(),
            transforms.Normalize(data.mean, data.std),
        ]
    )
    pictures = [expected(Image.open(data.train.root / path)) for path in data.train.paths]
    batches = list(loader(data).test_batches())
    torch.testing.assert_close(torch.cat([images for images, _ in batches]), torch.stack(pictures))
    flipped = torch.cat([images for images, _ in loader(data).test_batches(flip=True)])
    torch.testing.assert_close(flipped, torch.stack(pictures).flip(3))


def test_the_sides_are_those_of_the_field(data, monkeypatch):
    monkeypatch.undo()
    images, _ = next(loader(data).test_batches())
    assert images.shape[1:] == (3, 224, 224)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_inaturalist_has_no_colour_jitter():
    with_jitter, without = (streaming.train_transform(jitter, 16).transforms for jitter in (0.4, 0.0))
    assert [type(step).__name__ for step in without] == ["RandomResizedCrop", "RandomHorizontalFlip", "PILToTensor"]
    assert [type(step).__name__ for step in with_jitter][2] == "ColorJitter"
    assert {about.jitter for about in datasets.LARGE_SETS.values()} == {0.4, 0.0}
    assert datasets.LARGE_SETS["inaturalist2018"].jitter == 0


# ---- training


def train(data, epochs: int, checkpoint=None, images=None):
    recipe = recipes.Recipe(epochs, batch_size=8, lr=0.05, weight_decay=1e-4, seed=5)
    model = network()
    return model, training.fit(model, images or first_stage.ImageData(data, "cpu"), recipe, checkpoint=checkpoint)


class Cut(first_stage.ImageData):
    """Images that end in the second epoch, after its third batch."""

    def batch(self, drawn, positions):
        if drawn[1][1] == 1 and positions[0] >= 24:
            raise KeyboardInterrupt
        return super().batch(drawn, positions)


@pytest.mark.seconds
def test_a_resumed_training_ends_where_an_uninterrupted_one_does(data, tmp_path):
    model, outcome = train(data, 3)
    with pytest.raises(KeyboardInterrupt):
        train(data, 3, tmp_path / "checkpoint.pt", Cut(data, "cpu"))
    resumed, again = train(data, 3, tmp_path / "checkpoint.pt")
    for value, other in zip(model.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(value, other)
    columns = ["train_loss", "train_accuracy", "test_accuracy"]
    pd.testing.assert_frame_equal(again.history[columns], outcome.history[columns])
    for key, logits in outcome.logits.items():
        assert np.array_equal(logits, again.logits[key])


def test_a_network_learns_from_a_stream(data):
    _, outcome = train(data, 4)
    assert outcome.history.train_loss.iloc[-1] < outcome.history.train_loss.iloc[0]
    assert outcome.history.test_accuracy.iloc[-1] > 100 / 3


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["absent", "broken"])
def test_an_image_that_is_lost_while_training_ends_in_one_line(tmp_path, monkeypatch, workers, damage):
    shrink_benchmarks(monkeypatch)
    monkeypatch.setattr(streaming, "CROP", CROP)
    root = write_benchmark(tmp_path / "images", "imagenet-lt")
    data = datasets.load("imagenet-lt", root, 1.0, "as-is", workers=workers)
    path = root / "train/n01443537/n01443537_195.JPEG"
    path.unlink() if damage == "absent" else path.write_bytes(path.read_bytes()[:300])
    message = complaint(train, data, 1, error=InputError)
    assert message.startswith(f"--data-root: {path} must be a whole image, as PNG, JPEG or WebP (")


@pytest.mark.seconds
@pytest.mark.parametrize("ends", ["as it should", "by an interruption", "by a lost image"])
def test_no_worker_outlives_its_training(root, monkeypatch, ends):
    shrink_benchmarks(monkeypatch)
    monkeypatch.setattr(streaming, "CROP", CROP)
    monkeypatch.setattr(streaming, "RESIZE", RESIZE)
    data = datasets.load("imagenet-lt", root, 1.0, "as-is", workers=2)
    images, before = first_stage.ImageData(data, "cpu"), time.monotonic()
    if ends == "as it should":
        train(data, 2, images=images)
    elif ends == "by an interruption":
        with pytest.raises(KeyboardInterrupt):
            train(data, 2, images=Cut(data, "cpu"))
    else:
        data.train.paths[5] = "nowhere.JPEG"
        complaint(train, data, 2, None, images)
    assert not multiprocessing.active_children()
    assert time.monotonic() - before < 9  # a worker that is not told to end is waited for 5 seconds each


# ---- the second stage


def test_features_of_centre_crops_are_extracted_once(data, monkeypatch):
    frozen = second_stage.FrozenFeatures(network(), data, "cpu", batch_size=8, seed=5)
    with torch.no_grad():
        model = network().eval()
        expected = torch.cat([model.features(images) for images, _ in loader(data).test_batches()])
    frozen.up_to(0)
    assert torch.equal(frozen.passes[0].features, expected)
    monkeypatch.setattr(frozen.train, "read", lambda *_: pytest.fail("the images were read again"))
    epochs = [frozen.draw(8, 5, epoch) for epoch in range(4)]
    assert not torch.equal(epochs[0][1], epochs[1][1])  # each in an order of its own
    for features, labels in epochs:
        assert torch.equal(features.sum(1).sort().values, expected.sum(1).sort().values)
        assert torch.bincount(labels).tolist() == [30, 12, 4]


def test_augmented_passes_are_taken_in_turn(data):
    frozen = second_stage.FrozenFeatures(network(), data, "cpu", batch_size=8, seed=5, augmented=2)
    totals = [frozen.draw(8, 5, epoch)[0].double().sum().item() for epoch in range(4)]
    assert len(frozen.passes) == 2
    assert totals[0] == pytest.approx(totals[2], rel=1e-6)
    assert totals[1] == pytest.approx(totals[3], rel=1e-6)
    assert totals[0] != pytest.approx(totals[1], rel=1e-6)


def test_the_released_mode_drifts_pass_by_pass(data):
    frozen = second_stage.FrozenFeatures(network(), data, "cpu", "released", batch_size=8, seed=5)
    frozen.draw(8, 5, 1)
    assert len(frozen.passes) == 2
    assert not torch.equal(frozen.passes[0].buffers["stem.1.running_mean"], frozen.drifted()["stem.1.running_mean"])


def test_a_resumed_second_stage_is_equal(data, tmp_path):
    def fit(epochs_seen, checkpoint):
        frozen = second_stage.FrozenFeatures(network(), data, "cpu", batch_size=8, seed=5)
        recipe = recipes.Recipe(6, batch_size=8, lr=0.1, weight_decay=1e-3, loss="cb-ce", seed=5)
        classifier, ball = models.copy_classifier(network()), MaxNorm(0.5, "step")
        trainer = training.Trainer(classifier, frozen, recipe, ball, checkpoint)
        if epochs_seen:  # as `fit_together`, up to an interruption
            trainer.prepare()
            for _ in range(epochs_seen):
                training.train_epoch([trainer])
                trainer.end_epoch()
            trainer.save_when_due()
            return None
        return training.fit_together([trainer])[0]

    whole = fit(0, None)
    fit(3, tmp_path / "checkpoint.pt")
    resumed = fit(0, tmp_path / "checkpoint.pt")
    assert torch.equal(whole.weights["weight"], resumed.weights["weight"])
    assert np.array_equal(whole.logits["last", "flip"], resumed.logits["last", "flip"])


def test_a_grid_is_tuned_on_the_validation_list(data):
    held_out = second_stage.FrozenFeatures(network(), data.for_tuning(), "cpu", batch_size=8, seed=5)
    settings = pd.DataFrame({"loss": "cb-ce", "lr": [0.1, 0.01], "weight_decay": 0.0, "max_norm": [np.nan, 1.0]})
    settings["max_norm_every"] = "step"
    recipe = recipes.Recipe(5, batch_size=8, seed=5)
    table = stack.Grid(models.copy_classifier(network()), held_out, recipe, settings).fit().table()
    assert len(held_out.test_labels) == 6
    assert table["all"].between(0, 100).all()


# ---- the scripts, from the options to the table


def make_small() -> None:
    """In a script's process: benchmarks and crops as here."""
    shrink_benchmarks(pytest.MonkeyPatch())
    streaming.CROP, streaming.RESIZE = CROP, RESIZE


@pytest.mark.slow
def test_both_scripts_run_on_a_benchmark(root, tmp_path):
    shared = "--preset paper --dataset imagenet-lt --backbone resnet32 --batch-size 16 --workers 1 --device cpu".split()
    shared += ["--data-root", str(root), "--out", str(tmp_path / "out")]
    second = [*shared, "--stage1-epochs", "1", "--epochs", "2"]
    for script, words in zip(forked.SCRIPTS, ([*shared, "--epochs", "1"], second), strict=True):
        done = forked.run(script, words, before=make_small)
        assert done.returncode == 0, done.stderr
        of_the_first = "imagenet-lt: 46 training images, 30 to 4 a class" in done.stdout
        assert of_the_first == (script == forked.SCRIPTS[0])
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    assert set(table.dataset) == {"imagenet-lt"}
    assert len(table) == 4 * (2 + 1 + 6)  # networks, the naive one with tau-normalisation, classifiers
    assert set(table.profile) == {"as-is"}


@pytest.mark.slow
def test_a_script_ends_a_missing_image_in_one_line(tmp_path):
    root = write_benchmark(tmp_path / "images", "imagenet-lt")
    (root / "val/n01440764/n01440764_9001.JPEG").unlink()
    words = f"--preset paper --dataset imagenet-lt --device cpu --data-root {root} --out {tmp_path / 'out'}".split()
    done = forked.run(forked.SCRIPTS[0], words, before=make_small)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --data-root: {root}/ImageNet_LT_test.txt line 2: must name an image file")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()

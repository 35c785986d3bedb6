"""Long-tailed counts, hold-out, the as-is profile, fingerprints, on trees of a few tiny images."""

import hashlib
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from trees import NAMES, TEST, complaint, random_images, write_lists, write_small, write_tree

from ltr import datasets, metrics, runs
from ltr.datasets import LabelledImages, class_counts, split_indices
from ltr.errors import InputError
from ltr.settings import FirstStage

CUT = ("exp", "step")  # the profiles that cut a tail


# ---- how many images a class keeps


@pytest.mark.parametrize(("factor", "total", "rarest"), [(100, 10_847, 5), (50, 12_608, 10), (10, 19_573, 50)])
def test_counts_of_cifar100_lt(factor, total, rarest):
    counts = class_counts(500, 100, factor)
    assert (counts[0], counts[-1], counts.sum()) == (500, rarest, total)


@pytest.mark.parametrize(("factor", "total", "rarest"), [(100, 12_406, 50), (50, 13_996, 100), (10, 20_431, 500)])
def test_counts_of_cifar10_lt(factor, total, rarest):
    counts = class_counts(5000, 10, factor)
    assert (counts[0], counts[-1], counts.sum()) == (5000, rarest, total)


def test_groups_of_cifar100_lt():
    def sizes(factor):
        groups = metrics.group_of(class_counts(500, 100, factor)).tolist()
        return [groups.count(group) for group in metrics.GROUPS]

    assert sizes(100) == [35, 35, 30]
    assert sizes(10)[2] == 0


def test_step_profile_halves_the_classes():
    assert class_counts(500, 4, 100, "step").tolist() == [500, 500, 5, 5]


@pytest.mark.parametrize("profile", CUT)
def test_imbalance_factor_one_keeps_all(profile):
    assert class_counts(7, 5, 1, profile).tolist() == [7] * 5


@given(st.integers(1, 2000), st.integers(2, 200), st.floats(0, 1), st.sampled_from(CUT))
def test_counts_fall_from_the_largest_class_by_the_imbalance_factor(n_max, num_classes, share, profile):
    factor = n_max**share  # anything from 1 to n_max, where the rarest class keeps one image
    counts = class_counts(n_max, num_classes, factor, profile)
    assert counts[0] == n_max
    assert (np.diff(counts) <= 0).all()
    assert counts[-1] == int(n_max / factor + 1e-9)


@pytest.mark.parametrize("profile", CUT)
@pytest.mark.parametrize(
    ("factor", "limit"),
    [(0.5, "least 1,"), (0, "least 1,"), (-100, "least 1,"), (float("nan"), "least 1,")]
    + [(501, "most 500:"), (float("inf"), "most 500:")],
)
def test_counts_refuse_the_imbalance_factor(factor, limit, profile):
    message = complaint(class_counts, 500, 100, factor, profile)
    assert message.startswith(f"--imbalance-factor: must be at {limit}")


def test_rounding_costs_no_image():
    assert 49 * (1 / 49) < 1
    assert class_counts(49, 2, 49).tolist() == [49, 1]


def test_counts_refuse_an_unknown_profile():
    assert complaint(class_counts, 500, 100, 10, "linear").startswith("--profile: ")


# ---- which images they are

CIFAR_LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(100), 500))
CIFAR_NAMES = [str(k) for k in range(100)]


def test_without_hold_out_the_first_images_of_each_class_are_kept():
    labels = np.array([0, 1, 0, 1, 2, 0, 2, 1, 2, 0, 1, 2])
    train, validation = split_indices(labels, NAMES, imbalance_factor=4)  # 4, 2, 1 images
    assert train.tolist() == [0, 2, 5, 9, 1, 3, 4]
    assert len(validation) == 0


def test_hold_out_is_balanced_disjoint_and_lowers_the_head():
    train, validation = split_indices(CIFAR_LABELS, CIFAR_NAMES, 100, hold_out=20)
    assert np.bincount(CIFAR_LABELS[validation]).tolist() == [20] * 100
    assert not set(train) & set(validation)
    assert np.bincount(CIFAR_LABELS[train]).tolist() == class_counts(480, 100, 100).tolist()


@pytest.mark.parametrize("hold_out", [-1, 500, 1000])
def test_hold_out_must_leave_images(hold_out):
    message = complaint(lambda: split_indices(CIFAR_LABELS, CIFAR_NAMES, 10, hold_out=hold_out))
    assert message.startswith("--hold-out: must be between 0 and 499")


@pytest.mark.usefixtures("random_state_untouched")
def test_random_choice_follows_its_seed():
    def chosen(seed, choice="random"):
        return split_indices(CIFAR_LABELS, CIFAR_NAMES, 100, choice=choice, hold_out=20, seed=seed)

    (train, validation), again, other, (first, first_validation) = chosen(1), chosen(1), chosen(2), chosen(1, "first")
    assert np.array_equal(train, again[0])
    assert np.array_equal(validation, again[1])
    assert not np.array_equal(train, other[0])
    assert not np.array_equal(train, first)
    assert (
        len(set(validation) & set(other[1])) < 200
    )  # of 2,000: drawn too, since a folder's first may be no fair sample
    assert len(set(validation) & set(first_validation)) < 200
    assert np.array_equal(CIFAR_LABELS[validation], CIFAR_LABELS[first_validation])
    assert len(set(train)) == len(train)
    assert not set(train) & set(validation)
    assert np.array_equal(CIFAR_LABELS[train], CIFAR_LABELS[first])


def test_the_choice_by_hash_is_the_same_from_every_source_and_of_a_part(tree):
    options = {"imbalance_factor": 3, "hold_out": 2, "choice": "hash"}  # of 8: 2 held out, then 6, 3 and 2
    whole, first = (
        datasets.load("folder", tree, **options),
        datasets.load("folder", tree, **options | {"choice": "first"}),
    )
    kept = [whole.train, whole.validation]
    assert [len(each) for each in kept] == [len(first.train), len(first.validation)]
    assert whole.train.fingerprint() != first.train.fingerprint()
    needed = {image.tobytes() for each in kept for image in each.images}
    for number, path in enumerate(sorted((tree / "train").glob("*/*"))):
        pixels = np.asarray(Image.open(path).convert("RGB")).tobytes()
        if pixels in needed:
            path.rename(path.with_name(f"{(7 * number) % 31:02d}-{path.name}"))
        else:
            path.unlink()
    part = datasets.load("folder", tree, **options)
    for one, other in zip(kept, (part.train, part.validation), strict=True):
        assert one.fingerprint() == other.fingerprint()
        assert np.array_equal(one.images, other.images)
    shorter = datasets.load("folder", tree, **options | {"imbalance_factor": 6})
    assert {image.tobytes() for image in shorter.train.images} < {image.tobytes() for image in whole.train.images}


def test_a_tree_cut_to_what_is_needed_gives_the_same_set(tree):
    options = {"imbalance_factor": 3, "hold_out": 2}  # of 8: 2 held out, then 6, 3 and 2
    full = datasets.load("folder", tree, **options)
    for name, kept in zip(NAMES, (8, 5, 4), strict=True):
        for path in sorted((tree / "train" / name).iterdir())[kept:]:
            path.unlink()
    cut = datasets.load("folder", tree, **options)
    assert cut.class_counts.tolist() == [6, 3, 2]
    assert np.bincount(cut.validation.labels).tolist() == [2, 2, 2]
    assert cut.describe() == full.describe()


def test_as_is_keeps_every_image_in_its_order():
    labels = np.array([1, 0, 2, 1, 1, 0])
    train, validation = split_indices(labels, NAMES, imbalance_factor=100, profile="as-is", choice="random")
    assert train.tolist() == [0, 1, 2, 3, 4, 5]
    assert len(validation) == 0


def test_as_is_holds_out_the_first_images_of_each_class():
    labels = np.array([1, 0, 2, 1, 1, 0, 2])
    train, validation = split_indices(labels, NAMES, 1, profile="as-is", hold_out=1)
    assert validation.tolist() == [1, 0, 2]
    assert train.tolist() == [3, 4, 5, 6]


def test_as_is_leaves_each_class_an_image():
    message = complaint(lambda: split_indices(np.array([0, 0, 0, 1, 1]), ["a", "b"], 1, "as-is", hold_out=2))
    assert message == "--hold-out: must be between 0 and 1, got 2"


def test_the_profile_must_be_known():
    assert complaint(split_indices, np.array([0, 1]), ["a", "b"], 1, "long").startswith("--profile: must be exp ")


# ---- loading


@pytest.mark.parametrize("source", ["folder", "list"])
def test_a_set_is_taken_as_it_is(tree, images, source):
    write_lists(tree)
    data = datasets.load(source, tree, imbalance_factor=100, profile="as-is", hold_out=1)
    assert data.class_counts.tolist() == [7, 7, 7]
    assert (data.name, len(data.validation)) == ("tree", 3)
    assert np.array_equal(data.test.images, images["test"])


@pytest.mark.parametrize("source", ["folder", "list"])
def test_images_of_several_sizes_are_brought_to_one(tree, images, source):
    wide = Image.fromarray(np.repeat(np.arange(40, dtype=np.uint8), 3).reshape(1, 40, 3).repeat(20, 0))
    wide.save(tree / "train" / "ant" / "000.png")
    write_lists(tree)
    message = complaint(datasets.load, source, tree, 1.0, "as-is")
    assert message.startswith("--data-root: all images must have one size, unless --resize is given; ")
    data = datasets.load(source, tree, 1.0, "as-is", resize=10)
    assert data.train.images.shape == (24, 10, 10, 3)
    assert data.test.images.shape == (6, 10, 10, 3)
    middle = data.train.images[0, 5, :, 0]  # of columns 10 to 29, each of the brightness of its number
    np.testing.assert_allclose(middle, np.arange(10.5, 30, 2), atol=1)
    assert datasets.load(source, tree, 1.0, "as-is", resize=12).train.images.shape[1:3] == (12, 12)  # no stale cache
    again = datasets.load(source, tree, 1.0, "as-is", resize=10)
    assert np.array_equal(again.train.images, data.train.images)


def test_the_embedded_set_is_taken_as_it_is():
    data = datasets.load("synthetic", Path(), imbalance_factor=100, profile="as-is")
    assert data.class_counts.tolist() == [250] * 20


def test_a_list_may_bring_its_own_tail(tree):
    write_lists(tree)
    lines = (tree / "train.txt").read_text().splitlines()
    (tree / "train.txt").write_text("\n".join(lines[:2] + lines[8:15] + lines[16:21]))
    data = datasets.load("list", tree, imbalance_factor=1, profile="as-is")
    assert data.class_counts.tolist() == [2, 7, 5]  # the second class is the largest
    assert data.class_names == ["0", "1", "2"]
    same = datasets.load("list", tree, imbalance_factor=250, profile="as-is", choice="random", seed=3)
    assert same.describe() == data.describe()


def test_load_keeps_the_test_set_whole_and_names_the_tree(tree, images):
    data = datasets.load("folder", tree, imbalance_factor=4)
    assert data.class_counts.tolist() == [8, 4, 2]
    assert np.array_equal(data.train.images, images["train"][[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 16, 17]])
    assert np.array_equal(data.test.images, images["test"])
    assert (data.name, data.validation) == ("tree", None)


def test_a_tree_with_the_images_of_cifar100_goes_by_its_name(tree, images, monkeypatch):
    test = LabelledImages(images["test"], np.repeat(np.arange(3), TEST))
    monkeypatch.setattr(datasets, "CIFAR100_TEST", test.fingerprint())
    assert datasets.load("folder", tree, imbalance_factor=1).name == "cifar100"


@pytest.mark.parametrize(("root", "name"), [("cifar100", "own cifar100"), ("birds", "birds"), ("/", "images")])
def test_ones_own_images_are_not_taken_for_a_known_set_and_have_a_name(root, name):
    assert datasets.name_of(Path(root)) == name


@pytest.mark.parametrize(("hold_out", "takes"), [(0, "4 training images"), (3, "2 training images and 3 to hold out")])
def test_a_class_with_too_few_images_is_refused(tree, hold_out, takes):
    for path in sorted((tree / "train" / "bee").iterdir())[3:]:
        path.unlink()
    message = complaint(lambda: datasets.load("folder", tree, 4, hold_out=hold_out))
    assert message == f"--data-root: class bee has 3 images, the profile takes {takes}"


def test_synthetic_seed_of_the_choice_does_not_change_the_pixels():
    first, other = (datasets.load("synthetic", Path(), 10, seed=seed) for seed in (0, 1))
    assert first.describe() == other.describe()


def test_a_list_goes_from_the_options_to_a_run(tree, tmp_path):
    write_lists(tree)

    def run_of(factor: int) -> runs.Run:
        words = f"--preset demo --dataset list --profile as-is --imbalance-factor {factor} --data-root {tree}"
        settings = FirstStage.parse(words.split())
        data = datasets.load(**settings.data)
        return runs.open_run(tmp_path, *settings.run_key("WD", 5e-3), data.describe()["fingerprint"])

    run = run_of(100)
    assert run.name.startswith("wd_wd0.005_e30_resnet32_as-is_s1-")
    assert (run.identity["dataset"], run.identity["profile"]) == ("list", "as-is")
    assert run_of(10).name == run.name  # the factor plays no part


# ---- fingerprints


def test_fingerprint_is_the_formula_of_the_shared_copy_of_cifar100():
    images, labels = random_images(3), np.array([7, 12, 7])
    pairs = zip(images, labels, strict=True)
    rows = sorted(b"%02d" % label + hashlib.sha256(image.tobytes()).digest() for image, label in pairs)
    assert LabelledImages(images, labels).fingerprint() == hashlib.sha256(b"".join(rows)).hexdigest()


@given(st.permutations(range(6)))
def test_fingerprint_does_not_depend_on_the_order(order):
    labelled = LabelledImages(random_images(6), np.array([0, 0, 1, 1, 2, 2]))
    assert labelled.take(np.array(order)).fingerprint() == labelled.fingerprint()


def test_fingerprint_sees_one_pixel_and_one_label():
    images, labels = random_images(6), np.array([0, 0, 1, 1, 2, 2])
    original = LabelledImages(images, labels).fingerprint()
    other_images, other_labels = images.copy(), labels.copy()
    other_images[3, 2, 4, 1] ^= 1
    other_labels[5] = 1
    assert LabelledImages(other_images, labels).fingerprint() != original
    assert LabelledImages(images, other_labels).fingerprint() != original


def test_test_images_that_are_learned_are_counted(tmp_path):
    images = {"train": random_images(8 * len(NAMES)), "test": random_images(4 * len(NAMES), seed=1)}
    images["test"][:3] = images["train"][-3:]
    with pytest.warns(UserWarning, match=f"^3 of {4 * len(NAMES)} test images are training images, too$"):
        datasets.load("folder", write_tree(tmp_path / "shared", images), 1.0, "as-is")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        datasets.load("folder", write_small(tmp_path / "apart"), 1.0, "as-is")


@pytest.mark.parametrize("profile", ["exp", "as-is"])
def test_a_class_without_an_image_is_named(profile):
    with pytest.raises(InputError, match="^--data-root: every class must have an image, got none of b"):
        datasets.split_indices(np.array([0, 0, 2]), ["a", "b", "c"], 2, profile)

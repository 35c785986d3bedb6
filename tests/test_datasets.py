"""Long-tailed counts, hold-out, fingerprints and the three sources, on trees of a few tiny images."""

import errno
import hashlib
import os
import shutil
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ltr import InputError, datasets, metrics, synthetic
from ltr.datasets import LabelledImages, class_counts, split_indices

NAMES = ["ant", "bee", "cow"]
TRAIN, TEST = 8, 2  # images a class
SHAPE = (6, 5, 3)  # not square, so that swapped sides show


def complaint(call, *arguments, error=InputError) -> str:
    """The message of the error that a call ends with: one line that begins with an option."""
    with pytest.raises(error) as caught:
        call(*arguments)
    message = str(caught.value)
    assert message.startswith("--")
    assert len(message.splitlines()) == 1
    return message


def random_images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), np.uint8)


def write_tree(root: Path, images: dict[str, np.ndarray], suffix: str = "png") -> Path:
    """Write each split's images [C * n, ...], class by class, as `root/split/class/number.suffix`."""
    for split, pixels in images.items():
        for name, members in zip(NAMES, np.split(pixels, len(NAMES)), strict=True):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number, image in enumerate(members):
                Image.fromarray(image).save(folder / f"{number:03d}.{suffix}", lossless=True, quality=95)
    return root


@pytest.fixture
def images():
    return {"train": random_images(len(NAMES) * TRAIN, 1), "test": random_images(len(NAMES) * TEST, 2)}


@pytest.fixture
def tree(tmp_path, images):
    return write_tree(tmp_path / "tree", images)


# ---- how many images a class keeps


@pytest.mark.parametrize(("factor", "total", "rarest"), [(100, 10_847, 5), (50, 12_608, 10), (10, 19_573, 50)])
def test_counts_of_cifar100_lt(factor, total, rarest):
    counts = class_counts(500, 100, factor)
    assert (counts[0], counts[-1], counts.sum()) == (500, rarest, total)


def test_groups_of_cifar100_lt():
    def sizes(factor):
        groups = metrics.group_of(class_counts(500, 100, factor)).tolist()
        return [groups.count(group) for group in metrics.GROUPS]

    assert sizes(100) == [35, 35, 30]
    assert sizes(10)[2] == 0


def test_step_profile_halves_the_classes():
    assert class_counts(500, 4, 100, "step").tolist() == [500, 500, 5, 5]


@pytest.mark.parametrize("profile", datasets.PROFILES)
def test_imbalance_factor_one_keeps_all(profile):
    assert class_counts(7, 5, 1, profile).tolist() == [7] * 5


@given(st.integers(1, 2000), st.integers(2, 200), st.floats(0, 1), st.sampled_from(datasets.PROFILES))
def test_counts_fall_from_the_largest_class_by_the_imbalance_factor(n_max, num_classes, share, profile):
    factor = n_max**share  # anything from 1 to n_max, where the rarest class keeps one image
    counts = class_counts(n_max, num_classes, factor, profile)
    assert counts[0] == n_max
    assert (np.diff(counts) <= 0).all()
    assert counts[-1] == int(n_max / factor + 1e-9)


@pytest.mark.parametrize("profile", datasets.PROFILES)
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

    (train, validation), (again, _), (other, _) = chosen(1), chosen(1), chosen(2)
    first, first_validation = chosen(1, "first")
    assert np.array_equal(train, again)
    assert not np.array_equal(train, other)
    assert not np.array_equal(train, first)
    assert np.array_equal(validation, first_validation)
    assert len(set(train)) == len(train)
    assert not set(train) & set(validation)
    assert np.array_equal(CIFAR_LABELS[train], CIFAR_LABELS[first])


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


# ---- a folder of images


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_lossless_trees_are_read_back_exactly(tmp_path, images, suffix):
    train, test, names = datasets.read_folder(write_tree(tmp_path / "tree", images, suffix))
    assert names == NAMES
    for split, pixels in ((train, images["train"]), (test, images["test"])):
        assert np.array_equal(split.images, pixels)
        assert split.labels.tolist() == np.repeat([0, 1, 2], len(pixels) // 3).tolist()


def test_jpeg_trees_are_read(tmp_path):
    colours = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]], np.uint8)
    plain = np.broadcast_to(colours[:, None, None], (3, *SHAPE))
    train, _, _ = datasets.read_folder(write_tree(tmp_path / "tree", {"train": plain, "test": plain}, "jpg"))
    np.testing.assert_allclose(train.images.astype(int), plain.astype(int), atol=3)


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


def no_decoding(path):
    raise AssertionError(f"{path} was decoded again")


def cache_of(tree: Path, split: str) -> Path:
    (cache,) = tree.glob(f".ltr-{split}-*.npz")
    return cache


def test_pixels_are_cached_and_not_decoded_twice(tree, images, monkeypatch):
    datasets.read_folder(tree)
    monkeypatch.setattr(datasets, "decode", no_decoding)
    train, test, names = datasets.read_folder(tree)
    assert names == NAMES
    assert np.array_equal(train.images, images["train"])
    assert np.array_equal(test.images, images["test"])
    assert train.labels.tolist() == np.repeat([0, 1, 2], TRAIN).tolist()


def test_the_cache_is_refreshed_when_a_file_changes(tree, images):
    datasets.read_folder(tree)
    path = tree / "train" / "bee" / "003.png"
    modified = path.stat().st_mtime_ns
    changed = images["train"][TRAIN + 3] ^ 1
    Image.fromarray(changed).save(path)
    os.utime(path, ns=(modified + 1, modified + 1))  # a clock may be too coarse for this test
    assert np.array_equal(datasets.read_folder(tree)[0].images[TRAIN + 3], changed)


def flip_bit(data: bytes, position: int, bit: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: b"not an archive", id="garbage"),
        pytest.param(lambda data: data[: len(data) // 2], id="cut short"),
        pytest.param(lambda data: flip_bit(data, len(data) // 3, 0), id="one bit of a pixel"),
        # byte 10 of a central directory's entry is the compression method, byte 8 the flag "encrypted"
        pytest.param(lambda data: flip_bit(data, data.index(b"PK\1\2") + 10, 2), id="unknown compression"),
        pytest.param(lambda data: flip_bit(data, data.index(b"PK\1\2") + 8, 0), id="seemingly encrypted"),
    ],
)
def test_a_damaged_cache_is_decoded_anew(tree, images, damage, monkeypatch):
    datasets.read_folder(tree)
    cache = cache_of(tree, "train")
    cache.write_bytes(damage(cache.read_bytes()))
    assert np.array_equal(datasets.read_folder(tree)[0].images, images["train"])
    monkeypatch.setattr(datasets, "decode", no_decoding)  # and the cache is whole again
    assert np.array_equal(datasets.read_folder(tree)[0].images, images["train"])


def refuse_to_write(*args, **kwargs):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_tree_on_a_read_only_medium_is_read(tree, images, monkeypatch):
    monkeypatch.setattr(np, "savez", refuse_to_write)
    monkeypatch.setattr(Path, "unlink", refuse_to_write)  # Linux says EROFS there even for a file that is absent
    assert np.array_equal(datasets.read_folder(tree)[0].images, images["train"])


def test_a_cache_that_cannot_be_put_in_place_leaves_no_litter(tree, images, monkeypatch):
    monkeypatch.setattr(os, "replace", refuse_to_write)
    assert np.array_equal(datasets.read_folder(tree)[0].images, images["train"])
    assert sorted(path.name for path in tree.iterdir()) == ["test", "train"]


def shrink(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def resize(path: Path) -> None:
    Image.new("RGB", (9, 4)).save(path)


DAMAGES = {
    "no training images": (lambda tree: shutil.rmtree(tree / "train"), ["train"]),
    "no test images": (lambda tree: shutil.rmtree(tree / "test"), ["test"]),
    "a file for a split": (lambda tree: (shutil.rmtree(tree / "test"), (tree / "test").touch()), ["test"]),
    "a split without classes": (lambda tree: [shutil.rmtree(tree / "train" / name) for name in NAMES], ["train"]),
    "a class missing in test": (lambda tree: shutil.rmtree(tree / "test" / "bee"), ["test", "bee"]),
    "a class missing in train": (lambda tree: shutil.rmtree(tree / "train" / "bee"), ["train", "bee"]),
    "an empty class": (lambda tree: [path.unlink() for path in (tree / "train" / "cow").iterdir()], ["cow"]),
    "no image": (lambda tree: (tree / "train" / "cow" / "001.png").write_text("cow"), ["cow/001.png"]),
    "an empty file": (lambda tree: (tree / "train" / "ant" / "000.png").write_bytes(b""), ["ant/000.png"]),
    "a truncated image": (lambda tree: shrink(tree / "test" / "bee" / "001.png"), ["bee/001.png"]),
    "an image of another size": (lambda tree: resize(tree / "train" / "bee" / "002.png"), ["bee/002.png", "9x4"]),
    "other sizes in test": (
        lambda tree: [resize(tree / "test" / name / f"00{i}.png") for name in NAMES for i in range(TEST)],
        ["size"],
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_tree_is_refused_by_name(tree, damage):
    break_tree, named = DAMAGES[damage]
    break_tree(tree)
    message = complaint(datasets.read_folder, tree)
    assert message.startswith("--data-root: ")
    for word in named:
        assert word in message


def test_a_truncated_image_of_any_format_is_refused(tmp_path, images):
    for suffix in ("png", "webp", "jpg"):
        tree = write_tree(tmp_path / suffix, images, suffix)
        shrink(tree / "train" / "cow" / f"000.{suffix}")
        assert f"cow/000.{suffix}" in complaint(datasets.read_folder, tree)


def test_an_image_with_a_broken_header_is_refused(tree):
    path = tree / "train" / "cow" / "001.png"
    path.write_bytes(flip_bit(path.read_bytes(), 11, 3))  # the length of a PNG's first chunk, 13, becomes 5
    assert "cow/001.png" in complaint(datasets.read_folder, tree)


@pytest.mark.parametrize(("hold_out", "takes"), [(0, "4 training images"), (3, "2 training images and 3 to hold out")])
def test_a_class_with_too_few_images_is_refused(tree, hold_out, takes):
    for path in sorted((tree / "train" / "bee").iterdir())[3:]:
        path.unlink()
    message = complaint(lambda: datasets.load("folder", tree, 4, hold_out=hold_out))
    assert message == f"--data-root: class bee has 3 images, the profile takes {takes}"


def test_a_missing_tree_is_absent(tmp_path):
    message = complaint(datasets.read_folder, tmp_path / "nowhere", error=datasets.Absent)
    assert str(tmp_path / "nowhere") in message


# ---- CIFAR-100 through torchvision, which is stood in for: no download


def test_cifar100_is_read_through_torchvision(tree, images, tmp_path, monkeypatch):
    class Stored:
        tgz_md5, classes = "0123", NAMES

        def __init__(self, root, train, download):
            assert (root, download) == (tmp_path, True)
            self.data = images["train" if train else "test"]
            self.targets = np.repeat(np.arange(3), len(self.data) // 3).tolist()

    monkeypatch.setattr(datasets, "CIFAR100", Stored)
    ours = datasets.load("cifar100", tmp_path, imbalance_factor=4)
    assert ours.train.labels.dtype == np.int64
    # the same images as a tree: the same set by its fingerprints, under another name
    assert ours.describe() == {**datasets.load("folder", tree, imbalance_factor=4).describe(), "name": "cifar100"}


@pytest.mark.parametrize(
    "error",
    [
        URLError(OSError(-3, "Temporary failure in name resolution")),
        RuntimeError("File not found\nor corrupted."),
        PermissionError(errno.EACCES, "Permission denied"),
    ],
)
def test_cifar100_that_cannot_be_had_says_what_to_do(error, tmp_path, monkeypatch):
    class Unreachable:
        tgz_md5 = datasets.CIFAR100.tgz_md5

        def __init__(self, root, train, download):
            raise error

    monkeypatch.setattr(datasets, "CIFAR100", Unreachable)
    message = complaint(datasets.read_cifar100, tmp_path, error=datasets.Absent)
    assert message.startswith("--data-root: ")
    for hint in (str(tmp_path), "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", "synthetic"):
        assert hint in message


# ---- the embedded set


@pytest.mark.usefixtures("random_state_untouched")
def test_synthetic_set_is_deterministic_and_balanced():
    (train, test, names), (again, _, _) = datasets.read_synthetic(), datasets.read_synthetic()
    assert train.fingerprint() == again.fingerprint()
    classes, size = datasets.SYNTHETIC["num_classes"], datasets.SYNTHETIC["size"]
    assert len(set(names)) == classes
    for split, images in (("train", train), ("test", test)):
        assert images.images.shape == (classes * datasets.SYNTHETIC[split], size, size, 3)
        assert images.images.dtype == np.uint8
        assert np.bincount(images.labels).tolist() == [datasets.SYNTHETIC[split]] * classes
        drawn = synthetic.draw_images(3, 2, classes, size, 0, split)
        assert np.array_equal(images.images[images.labels == 3][:2], drawn)


def test_synthetic_seed_of_the_choice_does_not_change_the_pixels():
    first, other = (datasets.load("synthetic", Path(), 10, seed=seed) for seed in (0, 1))
    assert first.describe() == other.describe()


@given(st.integers(0, 19), st.integers(0, 12))
def test_synthetic_images_do_not_depend_on_how_many_are_drawn(class_index, count):
    few, many = (synthetic.draw_images(class_index, n, 20, 16, 0, "train") for n in (count, 12))
    assert np.array_equal(few, many[:count])


def test_synthetic_images_all_differ():
    drawn = [
        synthetic.draw_images(class_index, 5, 20, 16, seed, split)
        for class_index in range(20)
        for seed in (0, 1)
        for split in ("train", "test")
    ]
    assert len({image.tobytes() for image in np.concatenate(drawn)}) == 20 * 2 * 2 * 5

"""Where images come from: trees of class folders, list files and the embedded set, on a few tiny images."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from trees import NAMES, SHAPE, TEST, TRAIN, complaint, flip_bit, write_lists, write_tree

from ltr.data import synthetic
from ltr.data.folders import read_folder
from ltr.data.images import Absent
from ltr.data.lists import read_list
from ltr.data.synthetic import PAIRS, SIZE, SYNTHETIC, read_synthetic

# ---- a folder of images


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_lossless_trees_are_read_back_exactly(tmp_path, images, suffix):
    train, test, names = read_folder(write_tree(tmp_path / "tree", images, suffix))
    assert names == NAMES
    for split, pixels in ((train, images["train"]), (test, images["test"])):
        assert np.array_equal(split.images, pixels)
        assert split.labels.tolist() == np.repeat([0, 1, 2], len(pixels) // 3).tolist()


def test_jpeg_trees_are_read(tmp_path):
    colours = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]], np.uint8)
    plain = np.broadcast_to(colours[:, None, None], (3, *SHAPE))
    train, _, _ = read_folder(write_tree(tmp_path / "tree", {"train": plain, "test": plain}, "jpg"))
    np.testing.assert_allclose(train.images.astype(int), plain.astype(int), atol=3)


def no_decoding(path):
    raise AssertionError(f"{path} was decoded again")


def cache_of(tree: Path, split: str) -> Path:
    (cache,) = tree.glob(f".ltr-{split}-*.npz")
    return cache


def test_pixels_are_cached_and_not_decoded_twice(tree, images, monkeypatch):
    read_folder(tree)
    monkeypatch.setattr("ltr.data.images.decode", no_decoding)
    train, test, names = read_folder(tree)
    assert names == NAMES
    assert np.array_equal(train.images, images["train"])
    assert np.array_equal(test.images, images["test"])
    assert train.labels.tolist() == np.repeat([0, 1, 2], TRAIN).tolist()


def test_the_cache_is_refreshed_when_a_file_changes(tree, images):
    read_folder(tree)
    path = tree / "train" / "bee" / "003.png"
    modified = path.stat().st_mtime_ns
    changed = images["train"][TRAIN + 3] ^ 1
    Image.fromarray(changed).save(path)
    os.utime(path, ns=(modified + 1, modified + 1))  # a clock may be too coarse for this test
    assert np.array_equal(read_folder(tree)[0].images[TRAIN + 3], changed)


def write_in_place(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def move_over(path: Path, content: bytes) -> None:
    other = path.with_name("other")
    other.write_bytes(content)
    other.replace(path)


@pytest.mark.parametrize("put", [write_in_place, move_over])
def test_a_swapped_file_of_equal_size_and_time_is_seen(tmp_path, images, put):
    tree = write_tree(tmp_path / "tree", images, "bmp")
    read_folder(tree)
    path = tree / "train" / "bee" / "003.bmp"
    before, other = path.stat(), (tree / "train" / "cow" / "000.bmp").read_bytes()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # a clock may be too coarse for this test
        put(path, other)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert np.array_equal(read_folder(tree)[0].images[TRAIN + 3], images["train"][2 * TRAIN])


def test_a_copied_tree_is_decoded_once_more_and_then_no_more(tree, images, tmp_path, monkeypatch):
    read_folder(tree)
    copied = shutil.copytree(tree, tmp_path / "copied")  # with sizes, times and caches
    monkeypatch.setattr("ltr.data.images.decode", lambda path: np.zeros(SHAPE, np.uint8))
    assert not read_folder(copied)[0].images.any()
    monkeypatch.setattr("ltr.data.images.decode", no_decoding)
    read_folder(copied)


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
    read_folder(tree)
    cache = cache_of(tree, "train")
    cache.write_bytes(damage(cache.read_bytes()))
    assert np.array_equal(read_folder(tree)[0].images, images["train"])
    monkeypatch.setattr("ltr.data.images.decode", no_decoding)  # and the cache is whole again
    assert np.array_equal(read_folder(tree)[0].images, images["train"])


def refuse_to_write(*args, **kwargs):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_tree_on_a_read_only_medium_is_read(tree, images, monkeypatch):
    monkeypatch.setattr(np, "savez", refuse_to_write)
    monkeypatch.setattr(Path, "unlink", refuse_to_write)  # Linux says EROFS there even for a file that is absent
    assert np.array_equal(read_folder(tree)[0].images, images["train"])


def test_a_cache_that_cannot_be_put_in_place_leaves_no_litter(tree, images, monkeypatch):
    monkeypatch.setattr(os, "replace", refuse_to_write)
    assert np.array_equal(read_folder(tree)[0].images, images["train"])
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
    message = complaint(read_folder, tree)
    assert message.startswith("--data-root: ")
    for word in named:
        assert word in message


def test_a_truncated_image_of_any_format_is_refused(tmp_path, images):
    for suffix in ("png", "webp", "jpg"):
        tree = write_tree(tmp_path / suffix, images, suffix)
        shrink(tree / "train" / "cow" / f"000.{suffix}")
        assert f"cow/000.{suffix}" in complaint(read_folder, tree)


def test_an_image_with_a_broken_header_is_refused(tree):
    path = tree / "train" / "cow" / "001.png"
    path.write_bytes(flip_bit(path.read_bytes(), 11, 3))  # the length of a PNG's first chunk, 13, becomes 5
    assert "cow/001.png" in complaint(read_folder, tree)


def test_a_missing_tree_is_absent(tmp_path):
    message = complaint(read_folder, tmp_path / "nowhere", error=Absent)
    assert str(tmp_path / "nowhere") in message


def test_hidden_files_and_folders_are_no_images(tree, images):
    (tree / "train" / ".ipynb_checkpoints").mkdir()
    (tree / "train" / "bee" / "._003.png").write_bytes(b"what macOS leaves beside a file")
    (tree / "train" / "bee" / ".hidden").mkdir()
    shutil.copy(tree / "train" / "bee" / "003.png", tree / "train" / "bee" / ".hidden" / "003.png")
    for name in ("Thumbs.db", "desktop.ini"):
        (tree / "train" / name).touch()
        (tree / "train" / "bee" / name).touch()
    train, _, names = read_folder(tree)
    assert names == NAMES
    assert np.array_equal(train.images, images["train"])


@pytest.mark.parametrize("name", ["__MACOSX", "@eaDir", "$Recycle.Bin", "System Volume Information", "lost+found"])
def test_folders_of_the_system_are_no_classes(tree, images, name):
    for place in (tree / "train", tree / "test", tree / "train" / "bee"):
        (place / name).mkdir()
        shutil.copy(tree / "train" / "bee" / "003.png", place / name / "003.png")
    train, test, names = read_folder(tree)
    assert names == NAMES
    assert np.array_equal(train.images, images["train"])
    assert np.array_equal(test.images, images["test"])


def test_a_link_that_leads_back_gives_no_image_twice(tree, images):
    (tree / "train" / "bee" / "again").symlink_to(tree / "train" / "bee", target_is_directory=True)
    assert np.array_equal(read_folder(tree)[0].images, images["train"])


def test_classes_may_be_links_and_hold_folders(tree, images):
    shutil.move(tree / "train" / "bee", tree / "elsewhere")
    (tree / "train" / "bee").symlink_to(tree / "elsewhere", target_is_directory=True)
    (tree / "elsewhere" / "more").mkdir()
    shutil.move(tree / "elsewhere" / "007.png", tree / "elsewhere" / "more" / "000.png")
    assert np.array_equal(read_folder(tree)[0].images, images["train"])


@pytest.mark.skipif(os.name == "nt", reason="Windows has only Unicode names")
def test_an_image_whose_name_is_no_text_is_read(tree, images):
    os.rename(tree / "train" / "bee" / "007.png", os.fsencode(tree / "train" / "bee") + b"/\xff.png")
    assert np.array_equal(read_folder(tree)[0].images, images["train"])


def test_litter_of_a_killed_process_is_cleared(tree):
    (tree / "..ltr-train-0123456789abcdef.npz.4711.tmp").write_bytes(b"half")
    read_folder(tree)
    assert not list(tree.glob("..ltr-*"))


# ---- list files


@pytest.fixture
def listed(tree):
    return write_lists(tree)


def test_lists_give_the_tree_they_name(listed):
    (train, test, names), (same_train, same_test, _) = read_list(listed), read_folder(listed)
    assert names == ["0", "1", "2"]
    assert train.fingerprint() == same_train.fingerprint()
    assert test.fingerprint() == same_test.fingerprint()
    assert train.labels.dtype == np.int64


def test_lists_keep_their_order(listed, images):
    lines = (listed / "train.txt").read_text().splitlines()
    (listed / "train.txt").write_text("\n".join(reversed(lines)))
    train, _, _ = read_list(listed)
    assert np.array_equal(train.images, images["train"][::-1])
    assert train.labels.tolist() == np.repeat([2, 1, 0], TRAIN).tolist()


def test_a_changed_label_is_seen_though_the_pixels_are_cached(listed, monkeypatch):
    read_list(listed)
    monkeypatch.setattr("ltr.data.images.decode", no_decoding)
    path = listed / "train.txt"
    path.write_text(path.read_text().replace("train/bee/003.png 1", "train/bee/003.png 2"))
    assert read_list(listed)[0].labels.tolist() == np.repeat([0, 1, 2, 1, 2], [TRAIN, 3, 1, 4, TRAIN]).tolist()


def test_classes_get_their_names(listed):
    (listed / "classes.txt").write_text("fire ant\n\nbee\nhighland cow\n")
    assert read_list(listed)[2] == ["fire ant", "bee", "highland cow"]


def test_blank_lines_byte_order_marks_and_line_ends_of_windows_are_skipped(listed, images):
    text = (listed / "train.txt").read_text().replace("train/bee/000.png", "\n  \ntrain/bee/000.png")
    (listed / "train.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert np.array_equal(read_list(listed)[0].images, images["train"])


def test_a_missing_folder_of_lists_is_absent(tmp_path):
    assert str(tmp_path / "nowhere") in complaint(read_list, tmp_path / "nowhere", error=Absent)


FIRST, SECOND = "train/ant/000.png 0", "train/ant/001.png 0"  # the first two lines of train.txt
BAD_ROWS = {  # what stands for the second line of train.txt: what the message says of it
    "one word": ("train/ant/001.png", "line 2: must be a path and a label without blanks, got 1 words"),
    "three words": ("train/ant/001.png 0 0", "line 2: must be a path and a label without blanks, got 3 words"),
    "a comment": ("# two words", "line 2: must be a path and a label without blanks, got 3 words"),
    "a word for a label": ("train/ant/001.png ant", "line 2: the label must be a whole number from 0 on, got ant"),
    "half a label": ("train/ant/001.png 0.5", "line 2: the label must be a whole number from 0 on, got 0.5"),
    "a negative label": ("train/ant/001.png -1", "line 2: the label must be a whole number from 0 on, got -1"),
    "a gap": ("train/ant/001.png 4", "train.txt must have an image of each class 0 to 4, class 3 has none"),
    "a huge gap": ("train/ant/001.png 999999999", "each class 0 to 999999999, class 3 has none"),
    "no such file": ("train/ant/999.png 0", "line 2: must name an image file, there is no file"),
    "a folder": ("train/ant 0", "line 2: must name an image file, there is no file"),
    "a way out": ("../tree/train/ant/001.png 0", "line 2: the path must lead to a file below"),
    "from the root": ("/etc/hostname 0", "line 2: the path must lead to a file below"),
    "a repetition": (FIRST, "line 2: each image must be listed once"),
    "a hidden repetition": (f"./{FIRST}".replace("/000", "//000"), "line 2: each image must be listed once"),
    "a test image": ("test/ant/000.png 0", "test.txt line 1: each image must be listed once"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_line_is_named_by_its_number(listed, kind):
    line, says = BAD_ROWS[kind]
    text = (listed / "train.txt").read_text()
    (listed / "train.txt").write_text(text.replace(SECOND, line))
    message = complaint(read_list, listed)
    assert message.startswith(f"--data-root: {listed}")
    assert says in message
    assert not list(listed.glob(".ltr*"))  # found before the first image is decoded


def test_test_labels_must_be_those_of_training(listed):
    path = listed / "test.txt"
    path.write_text(path.read_text().replace("test/cow/001.png 2", "test/cow/001.png 3"))
    assert "test.txt line 6: the label must be at most 2, got 3" in complaint(read_list, listed)


def test_every_class_needs_a_test_image(listed):
    path = listed / "test.txt"
    path.write_text(path.read_text().replace(" 2", " 1"))
    assert "test.txt must have an image of each class 0 to 2, class 2 has none" in complaint(read_list, listed)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("ant\nbee\n", "train.txt line 17: the label must be at most 1, got 2"),
        ("ant\nbee\ncow\ndog\n", "classes.txt must name the 3 classes of train.txt, it names 4"),
        (" \n", "classes.txt must have at least one line"),
    ],
)
def test_as_many_names_as_classes(listed, names, says):
    (listed / "classes.txt").write_text(names)
    assert says in complaint(read_list, listed)


def test_a_list_must_be_text(listed):
    path = listed / "train.txt"
    path.write_bytes(path.read_bytes().replace(b"001.png", b"\xff\xfe.png", 1))
    assert "train.txt line 2: must be UTF-8 text" in complaint(read_list, listed)


@pytest.mark.parametrize("name", ["train.txt", "test.txt"])
def test_both_lists_must_be_there_and_hold_something(listed, name):
    (listed / name).write_text("\n \n")
    assert f"{name} must have at least one line, it is empty" in complaint(read_list, listed)
    (listed / name).unlink()
    assert f"{name} must be a text file that can be read (No such file" in complaint(read_list, listed)


def test_images_that_do_not_fit_into_memory_are_refused(listed, monkeypatch):
    def no_room(*args):
        raise MemoryError

    monkeypatch.setattr("ltr.data.images.np.empty", no_room)
    assert "all images must fit into memory; train.txt's 24 images take 0.0 GiB" in complaint(read_list, listed)


# ---- the embedded set


@pytest.mark.seconds
@pytest.mark.usefixtures("random_state_untouched")
def test_synthetic_set_is_deterministic_and_balanced():
    (train, test, names), (again, _, _) = read_synthetic(), read_synthetic()
    assert train.fingerprint() == again.fingerprint()
    assert len(set(names)) == len(PAIRS) == 20
    for split, images in (("train", train), ("test", test)):
        assert images.images.shape == (20 * SYNTHETIC[split], SIZE, SIZE, 3)
        assert images.images.dtype == np.uint8
        assert np.bincount(images.labels).tolist() == [SYNTHETIC[split]] * 20
        drawn = synthetic.draw_images(3, 2, 0, split)
        assert np.array_equal(images.images[images.labels == 3][:2], drawn)


@given(st.integers(0, 19), st.integers(0, 12))
def test_synthetic_images_do_not_depend_on_how_many_are_drawn(class_index, count):
    few, many = (synthetic.draw_images(class_index, n, 0, "train") for n in (count, 12))
    assert np.array_equal(few, many[:count])


def test_synthetic_images_all_differ():
    drawn = [
        synthetic.draw_images(class_index, 5, seed, split)
        for class_index in range(20)
        for seed in (0, 1)
        for split in ("train", "test")
    ]
    assert len({image.tobytes() for image in np.concatenate(drawn)}) == 20 * 2 * 2 * 5


def test_files_that_are_no_images_by_their_names_are_warned_of(tmp_path, images):
    root = write_tree(tmp_path / "tree", images)
    classes = sorted(path for path in (root / "train").iterdir())
    (classes[0] / "notes.txt").write_text("mine")
    (classes[1] / "photo.heic").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"train: 2 files are left out, no images by their names \(\.heic, \.txt\)$"):
        read_folder(root)


def test_caches_of_several_sizes_stay_beside_each_other(tmp_path, images):
    root = write_tree(tmp_path / "tree", images)
    for size in (None, 16, 8, 16):
        read_folder(root, size)
    kept = sorted(path.name.rpartition("-")[2] for path in root.glob(".ltr-train-*.npz"))
    assert len(kept) == 3
    assert {"16.npz", "8.npz"} <= set(kept)

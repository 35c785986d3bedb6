"""Hundreds of bad settings, trees and lists: each ends in one line that says what is allowed, and writes nothing.

Three families are generated, from the options' own bounds, from every split, class and kind of damage of a small
tree, and from the lines of its lists. A dozen of them go through the real scripts.
"""

import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import forked
import numpy as np
import pytest
from bad_inputs import IMAGES, LISTS, SETTINGS, STAGES, TREES
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from trees import NAMES, complaint, flip_bit, random_images, write_lists, write_tree

from ltr import datasets
from ltr.data.folders import read_folder
from ltr.data.lists import read_list
from ltr.errors import InputError
from ltr.runtime.storage import check_writable
from ltr.settings import FirstStage, SecondStage


def checked(message: str, option: str) -> str:
    """A message as promised: one line, begins with its option, says what must be."""
    assert message.startswith(f"{option}: ")
    assert " must " in message
    assert message.isprintable()
    return message


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file's content, None for what is no regular file; whole caches may come beside a tree, and are left out."""
    paths = (Path(parent, name) for parent, folders, files in os.walk(folder) for name in (*folders, *files))
    kept = (path for path in paths if not (path.name.startswith(".ltr-") and path.suffix == ".npz"))
    return {str(path): path.read_bytes() if path.is_file() else None for path in kept}


@pytest.fixture(scope="module")
def sound_tree(tmp_path_factory) -> Path:
    pixels = {split: random_images(len(NAMES) * count, count) for split, count in IMAGES.items()}
    return write_lists(write_tree(tmp_path_factory.mktemp("sound") / "tree", pixels))


@pytest.fixture
def copy_tree(sound_tree, tmp_path) -> Callable[[], Path]:
    """Makes a fresh copy of a tree with lists beside it, at each call."""
    numbers = iter(range(10**6))
    return lambda: shutil.copytree(sound_tree, tmp_path / f"tree{next(numbers)}")


# ---- settings


@pytest.mark.seconds
def test_bad_settings_are_refused_in_one_line():
    for stage, option, words in SETTINGS:
        checked(complaint(stage.parse, list(words)), option)


@pytest.mark.seconds
@pytest.mark.parametrize("stage", STAGES)
@given(words=st.lists(st.text(max_size=12) | st.sampled_from(["--epochs", "--lr", "--out", "--", "-1", "nan"])))
@settings(max_examples=200)
def test_any_words_are_settings_or_one_line(stage, words):
    assume(not any(word.startswith(("-h", "--h")) for word in words))  # help ends in SystemExit
    try:
        result = stage.parse(words)
    except InputError as error:
        result = str(error)
    assert isinstance(result, stage) or (result.startswith("--") and result.isprintable())


NEAR = [  # what was given, what was meant
    ("--dataset CIFAR100", "cifar100"),
    ("--dataset sinthetic", "synthetic"),
    ("--dataset folders", "folder"),
    ("--profile asis", "as-is"),
    ("--profile EXP", "exp"),
    ("--backbone resnet-32", "resnet32"),
    ("--backbone resnet32wide", "resnet32-wide"),
    ("--choice rand", "random"),
    ("--preset demos", "demo"),
    ("--normalization cifar-10", "cifar10"),
    ("--epoch 3", "--epochs"),
    ("--hold_out 3", "--hold-out"),
    ("--imbalancefactor 3", "--imbalance-factor"),
    ("--wieght-decay 0.1", "--weight-decay"),
    ("--batchsize 3", "--batch-size"),
    ("--maxnorm 1", "--max-norm"),
    ("--Seed 1", "--seed"),
    ("-epochs 3", "--epochs"),
    ("—seed 3", "--seed"),
    ("--retrian", "--retrain"),
    ("--xyzzy 0.1", None),
    ("--dataset x", None),
]


@pytest.mark.parametrize(("words", "meant"), NEAR)
def test_nearly_right_names_get_the_right_one(words, meant):
    message = complaint(SecondStage.parse, words.split())
    assert message.endswith(f"(did you mean {meant}?)") if meant else "did you mean" not in message


def in_the_way(folder: Path) -> Iterator[Path]:
    """Paths that cannot be a folder."""
    (folder / "file").write_text("in the way")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "dangling").symlink_to(folder / "nowhere" / "at all")
    yield from (folder / name for name in ("file", "file/below", "loop", "loop/below", "dangling", "x" * 300))
    if sys.platform == "linux":
        yield from map(Path, ("/dev/null", "/dev/null/below", "/proc/out", "/sys/out"))


def test_an_out_that_cannot_be_a_folder_is_refused(tmp_path):
    paths = list(in_the_way(tmp_path))
    before = snapshot(tmp_path)
    for path in paths:
        checked(complaint(check_writable, FirstStage.parse(["--out", str(path)]).out), "--out")
    assert snapshot(tmp_path) == before


# ---- trees


@pytest.mark.seconds
def test_bad_trees_are_refused_in_one_line(copy_tree):
    for kind, place, act in TREES:
        tree = copy_tree()
        act(tree / place)
        before = snapshot(tree)
        checked(complaint(datasets.load, "folder", tree, 2), "--data-root")
        assert snapshot(tree) == before, kind
        shutil.rmtree(tree)


@pytest.mark.parametrize("source", ["folder", "list"])
def test_a_root_that_is_no_folder_is_refused(source, tmp_path):
    for path in in_the_way(tmp_path):
        checked(complaint(datasets.load, source, path, 2), "--data-root")


@pytest.mark.parametrize("source", ["folder", "list"])
@pytest.mark.parametrize(
    ("option", "arguments"),
    [("--imbalance-factor", {"imbalance_factor": factor}) for factor in (0, 0.99, -1, 5, 1e30, np.nan, np.inf)]
    + [("--hold-out", {"hold_out": count}) for count in (-1, 4, 5, 10**30)]
    + [("--hold-out", {"profile": "as-is", "hold_out": count}) for count in (-1, 4, 10**30)]
    + [("--profile", {"profile": "log"}), ("--choice", {"choice": "last"})],
)
def test_what_the_images_do_not_allow_is_refused(source, option, arguments, copy_tree):
    arguments = {"imbalance_factor": 2} | arguments
    checked(complaint(lambda: datasets.load(source, copy_tree(), **arguments)), option)


@pytest.mark.parametrize("source", ["folder", "list"])
@pytest.mark.parametrize("name", NAMES)
def test_a_class_with_too_few_images_is_refused(source, name, copy_tree):
    """The profile takes 4, 3 and 2 of each class's 4 images."""
    tree = copy_tree()
    for number in range(1, 4):
        (tree / "train" / name / f"{number:03d}.png").unlink()
    write_lists(tree)
    message = complaint(datasets.load, source, tree, 2)
    first = "--imbalance-factor: must be at most 1"  # the first class says how many a full one holds
    assert message.startswith(first if name == NAMES[0] else "--data-root: class ")


def refuse(*arguments, **options):
    raise PermissionError(13, os.strerror(13), str(arguments[0]))


@pytest.mark.parametrize(
    ("call", "read"),
    [("os.scandir", read_folder), ("PIL.Image.open", read_folder), ("pathlib.Path.read_bytes", read_list)],
)
def test_what_may_not_be_read_is_refused(call, read, copy_tree, monkeypatch):
    """By a stand-in for the system's answer, as root may read everything."""
    tree = copy_tree()
    monkeypatch.setattr(call, refuse)
    assert os.strerror(13) in checked(complaint(read, tree), "--data-root")


# ---- list files


@pytest.mark.seconds
def test_bad_lists_are_refused_in_one_line_that_says_where(copy_tree):
    for kind, place, act, where in LISTS:
        tree = copy_tree()
        act(tree / place)
        before = snapshot(tree)
        message = checked(complaint(datasets.load, "list", tree, 2), "--data-root")
        assert f"{tree}/{where}" in message, kind
        assert snapshot(tree) == before, kind
        assert not list(tree.glob(".ltr*")), kind  # found before any image was decoded
        shutil.rmtree(tree)


# ---- damaged caches, the one bad input that needs no word: the images are decoded anew


def damaged(content: bytes) -> Iterator[bytes]:
    """A cache cut short, flipped, or replaced, in sixty ways."""
    draw = random.Random(0)
    yield from (content[: draw.randrange(len(content))] for _ in range(20))
    yield from (flip_bit(content, draw.randrange(len(content)), draw.randrange(8)) for _ in range(35))
    yield from (b"", b"PK", bytes(len(content)), content * 2, content[::-1])


OTHER_ARRAYS = [
    {"labels": np.zeros(12)},
    {"images": random_images(5)},
    {"images": random_images(12).astype(np.float32)},
    {"images": random_images(12)[..., :1]},
    {"images": random_images(12)[0]},
    {"images": np.array([{"a": "pickle"}], object)},
]


@pytest.mark.parametrize("read", [read_folder, read_list])
def test_damaged_caches_are_decoded_anew(read, copy_tree):
    tree = copy_tree()
    expected = read(tree)[0].images
    (path,) = tree.glob(".ltr-train*.npz")
    content = path.read_bytes()
    for bad in damaged(content):
        path.write_bytes(bad)
        assert np.array_equal(read(tree)[0].images, expected)
    for arrays in OTHER_ARRAYS:
        np.savez(path, **arrays)
        assert np.array_equal(read(tree)[0].images, expected)
        with np.load(path) as stored:  # and it is whole again
            assert np.array_equal(stored["images"], expected)


# ---- through the real scripts

THROUGH_SCRIPTS = [  # script, options, damage, what stderr begins with
    (0, "--epochs 1000000000000000000000000000000", None, "--epochs: must be"),
    (1, "--tau nan", None, "--tau: must be"),
    (0, "--seed 1 --seed 2", None, "--seed: must be given once"),
    (1, "--learning-rate 0.1", None, "--learning-rate: must be"),
    (0, "--device meta", None, "--device: must be"),
    (1, "--hold-out 250", None, "--hold-out: must be between 0 and 249"),
    (0, "--imbalance-factor 251", None, "--imbalance-factor: must be at most 250"),
    (0, "--dataset folder", "train/bee is an empty folder", "--data-root: "),
    (1, "--dataset folder", "test/cow/001.png is cut to 60%", "--data-root: "),
    (0, "--dataset list", "test label 1000", "--data-root: "),
    (1, "--dataset list", "train.txt 12 is ../{path} {label}", "--data-root: "),
    (0, "--dataset list", "train.txt is UTF-16", "--data-root: "),
]


@pytest.mark.slow
@pytest.mark.parametrize(("script", "options", "damage", "begins"), THROUGH_SCRIPTS)
def test_a_script_ends_in_one_line_and_exit_code_2(script, options, damage, begins, copy_tree, tmp_path):
    tree, out = copy_tree(), tmp_path / "out"
    for kind, place, act, *_ in (*TREES, *LISTS):
        if kind == damage:
            act(tree / place)
    words = ["--preset", "demo", "--out", str(out), "--data-root", str(tree), *options.split()]
    done = forked.run(forked.SCRIPTS[script], words)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: {begins}")
    assert done.stderr.count("\n") == 1
    assert not out.exists() or not list(out.iterdir())


def test_at_least_three_hundred_bad_inputs_are_tried(capsys):
    kinds = {"settings": SETTINGS, "trees": {case[0] for case in TREES}, "lists": {case[0] for case in LISTS}}
    counts = {kind: len(set(cases)) for kind, cases in kinds.items()}
    with capsys.disabled():
        print(
            f"\nbad inputs: {sum(counts.values())} ({', '.join(f'{count} {kind}' for kind, count in counts.items())})"
        )
    assert list(counts.values()) == [len(SETTINGS), len(TREES), len(LISTS)]  # no two are one
    assert all(count >= 100 for count in counts.values())

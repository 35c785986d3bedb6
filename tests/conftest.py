"""Shared by all tests: hypothesis without a deadline (the cores are shared), and a guard on the global random state."""

import gc
import os
import random

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # scripts that tests start may share the cores with others

import numpy as np
import pytest
import torch
from hypothesis import settings
from trees import NAMES, SMALL, TEST, TRAIN, random_images, write_small, write_tree

from ltr.data.synthetic import SYNTHETIC

LONGEST = ["test_study", "test_notebooks", "test_interruptions", "test_distributed", "test_streaming"]  # in this order

settings.register_profile("ltr", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("ltr")


@pytest.fixture
def random_state_untouched():
    """Fails the test that draws from, or seeds, the global generators of Python, NumPy or torch (CPU)."""
    before = random.getstate(), repr(np.random.get_state()), torch.get_rng_state()
    yield
    assert random.getstate() == before[0]
    assert repr(np.random.get_state()) == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.fixture
def images():
    """Random pixels of a training and a test set of three classes."""
    return {"train": random_images(len(NAMES) * TRAIN, 1), "test": random_images(len(NAMES) * TEST, 2)}


@pytest.fixture
def tree(tmp_path, images):
    """The same as a tree of class folders."""
    return write_tree(tmp_path / "tree", images)


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> str:
    """Options of a script that trains within seconds, on few and small images."""
    return f"{SMALL} --data-root {write_small(tmp_path_factory.mktemp('small') / 'tree')}"


@pytest.fixture(scope="module")
def few_shapes():
    """The embedded set with fewer images: 125 of each class to train on, 10 to test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SYNTHETIC, "train", 125)
        patch.setitem(SYNTHETIC, "test", 10)
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """The longest files first, then the others with slow tests, so that workers end together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    place = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (place.get(item.path.stem, len(LONGEST)), item.path not in slow))


def pytest_configure():
    """No garbage collection until all tests are there: it would look through millions of objects that stay."""
    gc.disable()


def pytest_collection_finish():
    """From here on only what tests make is looked through."""
    gc.freeze()
    gc.enable()


REPORT = pytest.StashKey[list]()


@pytest.fixture
def report(request):
    """Call it with a line that shall stand at the end of pytest's output."""
    return request.config.stash.setdefault(REPORT, []).append


def pytest_terminal_summary(terminalreporter, config):
    """Show what tests have counted."""
    for line in config.stash.get(REPORT, []):
        terminalreporter.write_line(line)

"""Shared by all tests: hypothesis without a deadline (the cores are shared), and a guard on the global random state."""

import random

import numpy as np
import pytest
import torch
from hypothesis import settings

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

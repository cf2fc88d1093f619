"""What every test shares: idle threads sleep, and torch takes two cores."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.pop("OMP_NUM_THREADS", None)

import sys

import pytest


@pytest.fixture(autouse=True, scope="session")
def two_threads() -> None:
    """More threads than cores make tests slow and change nothing; tests without torch load none."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(2)

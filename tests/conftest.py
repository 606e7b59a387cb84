"""Tests run on the CPU, whatever else the machine has, and may be begun in the background."""

import os
import signal

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
# A shell that begins them in the background has Ctrl-C ignored, by the commands that they start, too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Linux allows a process 65,530 memory maps; compiled programs take some each, and without one XLA crashes."""
    yield
    import jax

    jax.clear_caches()

"""Watches interpreted kernels for races."""

import contextlib

from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter


@contextlib.contextmanager
def no_races():
    """Fails if a kernel that ran inside, in "checked" mode, had a race. Results must be read inside, to be there.

    The interpreter of jax 0.10.2 only prints what it finds, and keeps no more than the last kernel's.
    """
    original, found = interpreter.RaceDetectionState, []

    def recorded(*args, **kwargs):
        found.append(original(*args, **kwargs))
        return found[-1]

    interpreter.RaceDetectionState = recorded
    try:
        yield
    finally:
        interpreter.RaceDetectionState = original
    assert found and not any(state.races_found for state in found)

"""What a pod's leader sends; the pod itself, as processes, is in `tests.serve.test_pod`."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.model import tiny
from tml_jax.executor.live import _pack, _unpack
from tml_jax.streams.micro_turn import empty_input

SLOTS = 4


@pytest.mark.parametrize("rows", [[0, 1], [1, 3], [0, 1, 2, 3]])
def test_a_process_gets_its_own_sessions_bit_for_bit_and_of_pictures_what_there_is(rows):
    spec = dataclasses.replace(tiny.config().stream, max_patches=3)
    inputs = jax.tree.map(lambda x: x[:, 0], tiny.random_inputs(spec, SLOTS, 1))
    inputs.num_patches[:] = [2, 0, 1, 3]
    inputs.patches[np.arange(3) >= inputs.num_patches[:, None]] = 0  # as the engine leaves them
    keys, mine = np.arange(2 * SLOTS, dtype=np.uint32).reshape(SLOTS, 2), np.array(rows)
    message = b"".join(_pack((inputs, keys), mine))
    got = empty_input(spec, (SLOTS,)), np.zeros_like(keys)
    _unpack(got, mine, bytearray(message))
    for want, have in zip(jax.tree.leaves((inputs, keys)), jax.tree.leaves(got), strict=True):
        assert np.array_equal(have[mine], want[mine])
        assert not np.delete(have, mine, axis=0).any()
    patch = inputs.patches[0, 0].nbytes
    assert len(message) // patch == inputs.num_patches[mine].sum()


def test_a_mask_goes_the_same_way():
    mask, got, mine = np.array([True, False, True, True]), np.zeros(SLOTS, bool), np.array([1, 2])
    _unpack((None, got), mine, bytearray(b"".join(_pack((None, mask), mine))))
    assert got.tolist() == [False, False, True, False]

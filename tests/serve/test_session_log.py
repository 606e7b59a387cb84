"""What is kept of a session on disk, and how many sessions are let in."""

import pathlib

import numpy as np
import pytest

from tml_jax.serve.engine import Engine
from tml_jax.serve.errors import BusyError, HeldElsewhereError
from tml_jax.serve.inbox import Block, Note
from tml_jax.serve.session_log import SessionLog, sweep, unpack


def test_no_session_more_is_admitted_than_the_steps_bear(bundle) -> None:
    engine = Engine(bundle, 4, fullest=0.9)
    first, second = object(), object()
    engine.admit(first, 0)
    engine._step_ms_of[1].extend([100.0] * 60)
    engine.release(engine.admit(second, 0), second)
    engine._step_ms_of[1].extend([185.0] * 60)
    with pytest.raises(BusyError, match="steps take up to 185 ms of 200: try again later"):
        engine.admit(second, 0)
    assert engine.stats().refused == 1
    engine._step_ms_of[1].extend([100.0] * 250)
    engine.admit(second, 0)


def test_a_log_is_read_back_to_its_last_whole_record(tmp_path: pathlib.Path) -> None:
    log = SessionLog.create(tmp_path / "a", {"digest": b"x"}, 3)
    blocks = [Block(np.full((10, 80), k, np.int32), tokens=(k,), notes=(Note("user_text", "é"),)) for k in range(5)]
    assert [log.append(k, block) for k, block in enumerate(blocks)] == [False, False, True, False, False]
    with pytest.raises(HeldElsewhereError):
        SessionLog.open(tmp_path / "a")
    log.close(forget=False)
    last = tmp_path / "a" / "00001.log"
    whole = last.read_bytes()
    (_,), first = unpack(whole[:-1])
    for size in range(0, len(whole), 97):
        last.write_bytes(whole[:size] + bytes(size % 50))
        log, kept = SessionLog.open(tmp_path / "a")
        assert [block.tokens for block in kept.blocks] == [(k,) for k in range(3 + (size >= first))], size
        assert kept.blocks[0].notes == blocks[0].notes and np.array_equal(kept.blocks[2].levels, blocks[2].levels)
        log.close(forget=False)
    changed = bytearray(whole)
    changed[first + 100] ^= 1
    assert unpack(bytes(changed))[1] == first, "a record that was changed ends what is read"
    log, kept = SessionLog.open(tmp_path / "a")
    log.save(3, {"turn": 3})
    log.close(forget=False)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["00001.log", "00001.state", "head"]
    sweep(tmp_path, 0.0, 0.0)
    assert not list(tmp_path.iterdir())

"""The demo's player with a real server: each scene is a session of its own, at the pace of time."""

import asyncio
import pathlib
import time
from collections.abc import Callable

import numpy as np

from tml_jax.data.demonstration import Scene
from tml_jax.data.timeline import Conversation, SpokenWord, UserSpeech
from tml_jax.eval import performance
from tml_jax.serve.bundle import ModelBundle
from tml_jax.wire.journal import read_journal


def test_scenes_follow_each_other(
    serving: Callable, run: Callable, bundle: ModelBundle, tmp_path: pathlib.Path
) -> None:
    spec = bundle.spec
    speech = UserSpeech(0.2, np.full(8_000, 0.2, np.float32), (SpokenWord("hello", 0.0, 0.5),))
    silent = {"kind": "silent", "reason": "quiet", "from": 0.1, "to": 0.9}
    scenes = [Scene(name, "voice", Conversation(0.9, (speech,), True, name, (silent,))) for name in ("One", "Two")]

    async def go() -> tuple[list[performance.Performance], int]:
        async with serving(slots=2, real_time=True) as server:
            return await asyncio.to_thread(performance.play, server.address, scenes, spec, 3)

    begun = time.monotonic()
    played, _ = run(go())
    assert time.monotonic() - begun > 2 * (0.9 + performance.TAIL_S)
    assert [one.start_s for one in played] == [0.0, played[0].end_s]
    assert all(len(one.outcomes) == 1 and one.recording.session_id for one in played)
    figures = performance.keep(tmp_path, played, 0, "title")
    assert figures["expectations"] == 2
    events = read_journal(tmp_path / "session.jsonl")
    assert sum(event["type"] == "session" for event in events) == 2
    steps = [event["turn"] for event in events if event["type"] == "step"]
    assert steps == sorted(set(steps)) and steps[-1] * spec.micro_turn_s > played[1].start_s

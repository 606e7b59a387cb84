"""What a client leaves with the server that it shouldn't: no more of it is kept than is documented."""

import json
import tracemalloc

import grpc

from tests.serve.hostile_clients import Doors, frame, opened
from tests.serve.test_resume import CONFIG, OneServer, call, refusal, resume, sound, turns
from tml_jax import client
from tml_jax.serve.doors import live_config
from tml_jax.serve.engine import Engine

KEEP_MS = 600


def test_what_is_never_acknowledged_is_kept_for_so_long_and_then_told_no_more(bundle, run) -> None:
    """Public case P15, of resumable sessions: what their clients do not acknowledge does not add up."""
    engine = Engine(bundle, 2)
    engine.start()

    async def scenario() -> tuple[int, tuple[grpc.StatusCode, str], list[int]]:
        async with OneServer(engine, keep_ms=KEEP_MS) as server, client.connect(server.address) as channel:
            one = await call(channel, CONFIG, *(sound(3200 * k) for k in range(12)))
            token = (await one.read()).started.resume_token
            told = await turns(one, 12)
            (session,) = server.sessions._live
            kept = [number for number, _ in session._audience.kept]
            early = await refusal(await call(channel, resume(token, 1)))
            late = await call(channel, resume(token, kept[0] - 1))
            await late.read()
            again = await turns(late, 1)
            return len(kept), early, [told[kept[0] - 1] == again[0], again[0].sequence == kept[0]]

    try:
        kept, early, same = run(scenario())
    finally:
        engine.stop()
    assert 0 < kept <= (KEEP_MS // 200) * 3  # of a micro-turn: that it was, words, sound
    assert early[0] is grpc.StatusCode.OUT_OF_RANGE
    assert early[1] == "The session cannot tell again what followed its response 1: it is too long ago."
    assert same == [True, True]


def test_large_pictures_that_come_before_a_session_are_answered_and_not_kept(serving_web, run) -> None:
    """Public case P15: the client reads nothing until it has sent them all."""
    picture = frame(json.dumps({"type": live_config.IMAGE, "image_url": "x" * 500_000}).encode())
    start = frame(json.dumps({"type": "session.start", "session": {"model": "m"}}).encode())

    async def scenario() -> tuple[list[dict], int]:
        async with serving_web() as server, opened(Doors(0, server.server.web.port), "/v1/live/sessions") as socket:
            tracemalloc.start()
            for _ in range(320):
                await socket.write(picture)
            await socket.write(start)
            told = [json.loads((await socket.read())[1]) for _ in range(321)]
            return told, tracemalloc.get_traced_memory()[1]

    try:
        told, most = run(scenario())
    finally:
        tracemalloc.stop()
    assert [event["error"]["code"] for event in told[:-1]] == ["session_not_started"] * 320
    assert told[-1]["type"] == "session.started"
    assert most < 16 << 20, "of 160 MB"

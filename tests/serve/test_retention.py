"""What a session keeps for a client that never says what it has: no more than is documented."""

import grpc

from tests.serve.test_resume import CONFIG, OneServer, call, refusal, resume, sound, turns
from tml_jax import client
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

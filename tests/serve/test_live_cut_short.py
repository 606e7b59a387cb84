"""What a client of GPT-Live is told where the user cuts the model short."""

import base64
import dataclasses
import json
from collections.abc import Iterable

import numpy as np
import openai
from websockets.asyncio.client import connect

from tests.serve.test_live_door import START, send, teller, turn
from tml_jax.wire import events


def sound_of(told: Iterable[dict]) -> np.ndarray:
    pieces = (event["delta"] for event in told if event["type"] == "session.output_audio.delta")
    return np.frombuffer(b"".join(map(base64.b64decode, pieces)), "<i2").astype(int)


def test_of_speech_that_the_user_cut_short_nothing_is_left() -> None:
    telling = teller(audio={"format": {"type": "audio/pcm", "rate": 16_000}})
    loud = np.full(3200, 0.5, np.float32)
    yields = dataclasses.replace(turn(2), yielded=1)
    told = [turn(0), turn(1), events.Sound(1, 400, 600, loud, 0.5, 1), yields, events.Sound(2, 600, 800, loud, 0.5, 1)]
    told += [turn(3), events.Sound(3, 800, 1000, loud, 0.5, 2)]
    said = [message for event in told for message in telling.translate(event, False)]
    (notice,) = [message for message in said if message["type"] == "info"]
    assert (notice["code"], notice["offset_ms"]) == ("output_audio_interrupted", 600)
    assert said.index(notice) == 4, "before all sound of its micro-turn, after all that is stale"
    sound = sound_of(said).reshape(-1, 1600)
    assert sound.max(1).tolist() == [0, 0, 16384, 16384, 16384, 0, 16384, 16384]
    assert not sound[4][160:].any() and (np.diff(sound[4][:160]) <= 0).all(), "it fades for 10 ms"


def test_a_client_is_told_that_the_user_has_cut_the_model_short(serving_web, run) -> None:
    """By OpenAI's own client; the fake model says and hears one word a micro-turn, for some, and then yields."""

    async def scenario() -> tuple[list[dict], list[dict]]:
        async with serving_web(late_ms=100) as server:
            client = openai.AsyncOpenAI(api_key="any", base_url=server.base_url)
            told: list[dict] = []
            async with client.live.connect() as live, connect(server.url, max_size=None) as other:
                await live.session.start(session={"model": "m"})
                await send(other, START)
                for word in ("one", "two", "three", "four", "five"):  # each fills the text of a micro-turn
                    await live.session.commentary.append(content=" ".join([word] * 7), delegation_id=None)
                await send(other, {"type": "session.commentary.append", "content": "nine", "delegation_id": None})
                async for event in live:
                    told.append(event.to_dict())
                    if event.type == "info":
                        await live.session.close()
                await send(other, {"type": "session.close"})
                return told, [json.loads(message) async for message in other]

    told, alone = run(scenario())
    kinds = [event["type"] for event in told]
    assert kinds[-1] == "session.closed" and kinds.count("info") == 1
    at = kinds.index("info")
    assert told[at]["code"] == "output_audio_interrupted"
    before, after = sound_of(told[:at]), sound_of(told[at:])
    assert told[at]["offset_ms"] == 200 + len(before) // 24, "the session's time with all that came before it"
    assert np.abs(before).max() > 1000
    assert np.abs(after[24 * 20 :]).max() < 40, "and nothing of it comes after"
    assert "info" not in [event["type"] for event in alone], "who ends by himself is not cut"

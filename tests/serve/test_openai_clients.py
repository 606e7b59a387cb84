"""OpenAI's own client, unmodified, talks with the shipped model: speech in, sound and transcripts out."""

import asyncio
import base64
import dataclasses
import json
from typing import Any

import numpy as np
import openai
import pytest

from tests.serve.conftest import start_web
from tml_jax.data.speech_bank import Clip, SpeechBank
from tml_jax.serve.bundle import load_bundle
from tml_jax.serve.doors.audio import AudioEncoder, AudioFormat
from tml_jax.serve.server import ServerSettings

pytestmark = pytest.mark.clients
GATE = 0.0018  # of full scale, root mean square: where LiveKit's client begins to take sound for speech
RATE = 16_000


@dataclasses.dataclass
class Heard:
    """What one client was told; `sound` is int16."""

    user: str = ""
    model: str = ""
    sound: list[np.ndarray] = dataclasses.field(default_factory=list)
    kinds: list[str] = dataclasses.field(default_factory=list)
    usage_s: float = 0.0
    reason: str = ""


async def talk(base_url: str, form: AudioFormat, speech: np.ndarray) -> Heard:
    """Speaks at real-time pace, works out what it is asked to, hangs up politely."""
    client, heard = openai.AsyncOpenAI(api_key="any", base_url=base_url), Heard()
    async with asyncio.timeout(60), client.live.connect() as connection:
        audio: Any = {"format": dataclasses.asdict(form)}
        await connection.session.start(session={"model": "gpt-live-1", "audio": audio})

        async def speak() -> None:
            encoder, loop = AudioEncoder(form, RATE), asyncio.get_running_loop()
            start = loop.time()
            for number, frame in enumerate(np.split(speech, len(speech) // (RATE // 10))):
                await asyncio.sleep(start + number / 10 - loop.time())
                await connection.session.input_audio.append(audio=base64.b64encode(encoder.push(frame)).decode())
            await connection.session.close()

        speaking = None
        async for event in connection:
            heard.kinds.append(event.type)
            match event.type:
                case "session.started":
                    speaking = asyncio.create_task(speak())
                case "session.output_audio.delta":
                    heard.sound.append(np.frombuffer(form.decode(event.delta), "<i2"))
                case "session.input_transcript.delta":
                    heard.user += event.delta
                case "session.output_transcript.delta":
                    heard.model += event.delta
                case "session.delegation.created":
                    assert event.delegation.target == "client"
                    name = event.delegation.id
                    await connection.session.commentary.append(content="twenty four", delegation_id=name)
                case "session.closed":
                    heard.usage_s, heard.reason = event.usage.seconds, event.reason
        assert speaking is not None
        await speaking
    return heard


async def talk_in_turns(base_url: str, speech: np.ndarray) -> Heard:
    """The same over Realtime, with a function for the model's questions."""
    client, heard, form = openai.AsyncOpenAI(api_key="any", base_url=base_url), Heard(), AudioFormat()
    parameters = {"type": "object", "properties": {"question": {"type": "string"}}, "required": ["question"]}
    audio: Any = {"input": {"transcription": {"model": "own"}, "turn_detection": {"type": "semantic_vad"}}}
    async with asyncio.timeout(60), client.realtime.connect(model="inkling_tiny") as connection:

        async def speak() -> None:
            encoder, loop = AudioEncoder(form, RATE), asyncio.get_running_loop()
            start = loop.time()
            for number, frame in enumerate(np.split(speech, len(speech) // (RATE // 10))):
                await asyncio.sleep(start + number / 10 - loop.time())
                audio = base64.b64encode(encoder.push(frame)).decode()
                await connection.input_audio_buffer.append(audio=audio)
            await connection.close()

        speaking = None
        async for event in connection:
            heard.kinds.append(event.type)
            match event.type:
                case "session.created":
                    ask: Any = {"type": "function", "name": "ask", "parameters": parameters}
                    await connection.session.update(session={"type": "realtime", "audio": audio, "tools": [ask]})
                    speaking = asyncio.create_task(speak())
                case "response.output_audio.delta":
                    heard.sound.append(np.frombuffer(base64.b64decode(event.delta), "<i2"))
                case "conversation.item.input_audio_transcription.completed":
                    heard.user += f" {event.transcript}"
                case "response.output_audio_transcript.delta":
                    heard.model += event.delta
                case "response.function_call_arguments.done":
                    assert "four" in json.loads(event.arguments)["question"]
                    item: Any = {"type": "function_call_output", "call_id": event.call_id, "output": "twenty four"}
                    await connection.conversation.item.create(item=item)
                    await connection.response.create()
                case "response.done":
                    assert event.response.status == "completed", event
        assert speaking is not None
        await speaking
    return heard


def sentences(gap_s: float = 2.5, tail_s: float = 4.0) -> np.ndarray:
    """A command and a question, float32 at 16 kHz, with silence around them."""
    bank = SpeechBank.load("checkpoints/speech_bank")

    def clip(text: str) -> Clip:
        return bank.select(split="heldout", voice="kokoro/bf_emma", text=text)[0]

    def silence(seconds: float) -> np.ndarray:
        return np.zeros(round(seconds * RATE), np.float32)

    command, question = (bank.audio(clip(text)) for text in ("repeat seven eight please", "what is six times four"))
    speech = np.concatenate([silence(1.0), command, silence(gap_s), question, silence(tail_s)])
    return np.concatenate([speech, silence((-len(speech) % (RATE // 10)) / RATE)])


def test_openais_client_holds_a_spoken_conversation() -> None:
    speech = sentences()
    formats = (AudioFormat("audio/pcm", 24_000), AudioFormat("audio/pcmu", 8000))

    async def scenario() -> list[Heard]:
        settings = ServerSettings(slots=3, http_address="127.0.0.1:0")
        async with start_web(load_bundle("checkpoints/inkling_tiny"), settings) as server:
            talks = [talk(server.base_url, form, speech) for form in formats]
            return await asyncio.gather(*talks, talk_in_turns(server.base_url, speech))

    *others, in_turns = asyncio.run(scenario())
    print(in_turns.user, "|", in_turns.model, in_turns.kinds)
    assert "repeat seven eight please" in in_turns.user
    assert "six times four" in in_turns.user
    assert "seven eight" in in_turns.model
    assert "twenty four" in in_turns.model
    assert "error" not in in_turns.kinds
    turns = [kind for kind in in_turns.kinds if kind.endswith(("speech_started", "committed", "response.done"))]
    assert turns[:3] == ["input_audio_buffer.speech_started", "input_audio_buffer.committed", "response.done"]
    level = np.sqrt(np.mean((np.concatenate(in_turns.sound).reshape(-1, 2400) / 32768) ** 2, axis=1))
    assert (level > GATE).sum() >= 10
    assert not level[-5:].any(), "the pause that ends a response is exact silence"
    for form, heard in zip(formats, others, strict=True):
        print(form, heard.user, "|", heard.model, heard.usage_s)
        assert heard.kinds[0] == "session.started"
        assert heard.kinds[-1] == "session.closed"
        assert "error" not in heard.kinds
        assert heard.reason == "close_requested"
        assert "repeat seven eight please" in heard.user
        assert "six times four" in heard.user
        assert "seven eight" in heard.model
        assert "twenty four" in heard.model
        sound = np.concatenate(heard.sound)
        assert len(sound) == pytest.approx(heard.usage_s * form.rate), "there is sound for all of the session"
        assert heard.usage_s >= len(speech) / RATE
        level = np.sqrt(np.mean((sound.reshape(-1, form.rate // 10) / 32768) ** 2, axis=1))
        assert not level[:20].any(), "exact zeros until the user has spoken"
        assert (level > GATE).sum() >= 10

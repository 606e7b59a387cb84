"""What a live session makes of a conversation is what the trainer's `render` makes of it, bit for bit."""

import asyncio
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serve.fakes import SPEC
from tml_jax.data.timeline import (
    BackgroundResult,
    Conversation,
    Frames,
    Instructions,
    UserSpeech,
    UserText,
    render,
)
from tml_jax.serve import intake
from tml_jax.serve.bundle import ModelBundle
from tml_jax.serve.config import SessionConfig, SessionSettings
from tml_jax.serve.engine import Engine
from tml_jax.serve.sessions import Session, Sessions
from tml_jax.streams import packed
from tml_jax.streams.micro_turn import MicroTurnInput, empty_input

RATE = SPEC.sample_rate
# Little room: texts take several micro-turns, and frames are thinned and paired.
NARROW = dataclasses.replace(SPEC, frame_height=80, max_patches=4, max_text=3)
Timed = tuple[int, UserText | BackgroundResult | np.ndarray]  # samples since the beginning


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    """One to nine micro-turns of sound or none, frames of any size, and texts."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    samples, has_audio = draw(st.integers(1, 9 * SPEC.samples)), draw(st.booleans())
    instructions = draw(st.text("ab é日", max_size=12))
    found: list = [Instructions(0.0, instructions)] if instructions.strip() else []
    if has_audio:
        found.append(UserSpeech(0.0, rng.normal(0, draw(st.sampled_from([1e-4, 0.1, 0.7])), samples).astype("f4")))
    texts = st.tuples(
        st.sampled_from([UserText, BackgroundResult]), st.integers(0, samples - 1), st.text("ab é日", min_size=1)
    )
    for kind, at, text in draw(st.lists(texts, max_size=4)):
        found += [kind(at / RATE, text.strip())] if text.strip() else []
    count, fps = draw(st.integers(0, 20)), draw(st.sampled_from([1, 5, 12.5, 30, 60]))
    if count:
        size = draw(st.sampled_from([(40, 40), (80, 40), (33, 70)]))
        shots = rng.integers(0, 256, (count, *size, 3), np.uint8)
        found.append(Frames(draw(st.integers(0, samples - 1)) / RATE, fps, shots))
    return Conversation(samples / RATE, tuple(found), has_audio)


def script(conversation: Conversation) -> list[Timed]:
    """What is typed, answered and shown, in order."""
    timed: list[Timed] = [(round(event.time_s * RATE), event) for event in conversation.of(UserText | BackgroundResult)]
    for event in conversation.of(Frames):
        times = (event.start_s + i / event.fps for i in range(len(event.frames)))
        timed += [(int(time_s * RATE + 0.001), shot) for time_s, shot in zip(times, event.frames, strict=True)]
    return sorted(timed, key=lambda one: one[0])


async def live(bundle: ModelBundle, conversation: Conversation) -> list[MicroTurnInput]:
    """The micro-turns that a session hands to the engine, when its client sends all that at its time."""
    engine = Engine(bundle, 1, faster_than_real_time=True)  # not started: the test takes what it would take
    sessions = Sessions(engine, SessionSettings(max_queue_ms=1_000_000, max_text_ms=1_000_000), None)
    instructions = "".join(event.text for event in conversation.of(Instructions))
    sound = intake.SoundFormat(RATE, 1, intake.SampleFormat.F32LE)
    config = SessionConfig(conversation.has_audio, sends_video=True, instructions=instructions, sound=sound)
    session = sessions.open(config)
    if not conversation.has_audio:
        session._starved = lambda now: False  # type: ignore[method-assign]  # time is the test's
    count, sent = conversation.num_turns(bundle.spec), 0
    for at, event in script(conversation):
        if at < count * bundle.spec.samples:
            sent = await go_on(session, conversation, sent, at)
            if isinstance(event, UserText):
                await session.push_text(event.text)
            elif isinstance(event, BackgroundResult):
                session._answer(event.text)
            else:
                height, width = event.shape[:2]
                await session.push_frame(event.tobytes(), intake.FrameFormat.RGB24, width, height)
    await go_on(session, conversation, sent, count * bundle.spec.samples)
    await session.close_input()
    taken: list[MicroTurnInput] = []
    while len(taken) < count:
        if session.ready(None):
            taken.append(empty_input(bundle.spec, (1,)))
            session.take(taken[-1], 0)
        else:
            await asyncio.sleep(0.001)
    session.end(None)
    return taken


async def go_on(session: Session, conversation: Conversation, start: int, end: int) -> int:
    """Session time goes on from sample `start` to `end`; what there is of sound is sent, in chunks of any length."""
    for event in conversation.of(UserSpeech):
        piece = event.audio[start:end]
        for chunk in np.split(piece, range(777, len(piece), 777)):
            if len(chunk):
                await session.push_audio((chunk.tobytes(), None))
    if not conversation.has_audio:
        for _ in range(end // session._spec.samples - start // session._spec.samples):
            session._assembler.pad(expected=False)
    return end


@pytest.mark.parametrize("spec", [SPEC, NARROW], ids=["tiny", "narrow"])
@settings(max_examples=25, deadline=None)
@given(conversation=conversations())
def test_a_live_session_reads_what_render_writes(bundle: ModelBundle, spec, conversation: Conversation) -> None:
    bundle = dataclasses.replace(bundle, spec=spec)
    rendered, _ = render(conversation, spec, bundle.tokenizer)
    for turn, taken in enumerate(asyncio.run(live(bundle, conversation))):
        expected = packed.live_turn(spec, [rendered], turn, 1)
        for field in dataclasses.fields(MicroTurnInput):
            found, wanted = getattr(taken, field.name), getattr(expected, field.name)
            assert found.dtype == wanted.dtype
            np.testing.assert_array_equal(found, wanted, f"{field.name} of micro-turn {turn}")

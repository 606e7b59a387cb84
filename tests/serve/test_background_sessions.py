"""The background model inside of live sessions: interruptions, bursts, and what clients are told."""

import asyncio
import collections
import contextlib
import dataclasses
import threading
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest

from tests.serve.background_rig import Scripted
from tml_jax.serve import intake
from tml_jax.serve.background.backend import Answer, Desk
from tml_jax.serve.background.mind import Mind
from tml_jax.serve.bundle import ModelBundle
from tml_jax.serve.config import SessionConfig, SessionSettings
from tml_jax.serve.server import Server, ServerSettings
from tml_jax.serve.sessions import Session
from tml_jax.streams import number_words, vocabulary
from tml_jax.wire import events
from tml_jax.wire.pcm import to_pcm

SESSIONS, QUESTIONS = 4, 50
QUIET = 0.01
_NOISE = np.random.default_rng(0).standard_normal(3200).astype(np.float32)
SILENCE, NOISE = bytes(6400), to_pcm(0.2 * _NOISE).tobytes()
DIGITS = number_words.UNITS[:10]
RESULTS = [word for word in vocabulary.words() if word.isalpha() and word not in (*DIGITS, "hello", "what", "time")]


@dataclasses.dataclass
class Task:
    """One question under way in the backend of a test."""

    release: threading.Event = dataclasses.field(default_factory=threading.Event)
    answered: threading.Event = dataclasses.field(default_factory=threading.Event)


class Gated(Scripted):
    """Answers question "what SESSION NUMBER" with `RESULTS[NUMBER]`, once the test releases it."""

    def __init__(self) -> None:
        super().__init__(self._wait)
        self.tasks: dict[str, Task] = collections.defaultdict(Task)

    async def _wait(self, desk: Desk) -> Answer:
        # The fake model "hears" the first word of what is typed, too.
        question = [entry.text for entry in desk.context.said if entry.text.startswith("what ")][-1]
        task = self.tasks[question]
        while not task.release.is_set():
            await asyncio.sleep(0.002)
        task.answered.set()
        return Answer(RESULTS[int(question.split()[-1])])


class Conversation:
    """A client that lets one micro-turn go by at a time and sees all that it brings."""

    def __init__(self, session: Session) -> None:
        self.session, self._told = session, session.subscribe()
        self.events: list[events.Event] = []
        self.turns: list[events.Turn] = []

    async def turn(self, sound: bytes = SILENCE) -> None:
        """One micro-turn of sound, and what the session tells of it."""
        before = len(self.turns)
        await self.session.push_audio((sound, None))
        while len(self.turns) == before or self._told.waiting:
            event = await anext(self._told)
            self.events.append(event)
            if isinstance(event, events.Turn):
                self.turns.append(event)

    async def until(self, kind: type, sound: bytes = SILENCE, **fields: object) -> None:
        """Micro-turns go by until such an event comes."""
        seen = len(self.events)
        async with asyncio.timeout(60):
            while not any(
                isinstance(event, kind) and fields.items() <= vars(event).items() for event in self.events[seen:]
            ):
                seen = len(self.events)
                await self.turn(sound)


@pytest.fixture
def serving_session(bundle: ModelBundle) -> Callable[[Mind], contextlib.AbstractAsyncContextManager[Conversation]]:
    """One session of a server that steps as sound comes."""

    @contextlib.asynccontextmanager
    async def start(mind: Mind) -> AsyncIterator[Conversation]:
        settings = ServerSettings(slots=1, faster_than_real_time=True, session=SessionSettings(mind=mind))
        server = Server(bundle, settings)
        try:
            await server.start()
            yield Conversation(server.sessions.open(SessionConfig(sound=intake.SoundFormat(16_000))))
        finally:
            await server.stop(0.0)

    return start


async def interrupted(conversation: Conversation, backend: Gated, name: int) -> None:
    """Hands a question over, is told something, talks over it, and goes on after the result is there."""
    for number in range(QUESTIONS):
        task = backend.tasks[f"what {name} {number}"]
        await conversation.session.push_text(f"what {name} {number}")
        await conversation.until(events.Background, state="started")
        await conversation.session.push_text("hello")
        await conversation.until(events.Words, text=" hello")
        for _ in range(2):  # the user talks over what was said
            await conversation.turn(NOISE)
        task.release.set()
        assert await asyncio.to_thread(task.answered.wait, 30)
        for _ in range(3):
            await conversation.turn(NOISE)
        await conversation.until(events.Background, state="finished")
        await conversation.turn(NOISE)  # and over the result
        for _ in range(2):
            await conversation.turn()


def test_two_hundred_interrupted_results_are_each_said_once_when_nobody_speaks(bundle: ModelBundle, run) -> None:
    """Public case P16, and the issue's: 200 of 200."""

    async def scenario() -> tuple[list[Conversation], Gated]:
        backend = Gated()
        settings = ServerSettings(
            slots=SESSIONS, faster_than_real_time=True, session=SessionSettings(mind=Mind(backend))
        )
        server = Server(bundle, settings)
        try:
            await server.start()
            config = SessionConfig(sound=intake.SoundFormat(16_000))
            conversations = [Conversation(server.sessions.open(config)) for _ in range(SESSIONS)]
            await asyncio.gather(*(interrupted(one, backend, name) for name, one in enumerate(conversations)))
            return conversations, backend
        finally:
            await server.stop(0.0)

    conversations, backend = run(scenario())
    assert len(RESULTS) >= QUESTIONS
    assert len(backend.asked) == SESSIONS * QUESTIONS, "no question was worked on twice"
    once = idle = 0
    for conversation in conversations:
        turns = {turn.turn: turn for turn in conversation.turns}
        said = collections.Counter(event.text for event in conversation.events if isinstance(event, events.Words))
        put = [e for e in conversation.events if isinstance(e, events.Background) and e.state == "finished"]
        assert [event.text for event in put] == RESULTS[:QUESTIONS]
        for event in put:
            before = [turns[event.turn - 2], turns[event.turn - 1]]
            once += said[f" {event.text}"] == 1
            idle += all(t.decision is not events.Decision.SPEAK and t.input_level < QUIET for t in before)
    assert (once, idle) == (200, 200)


def test_the_next_command_is_answered_while_a_task_hangs(serving_session, run) -> None:
    """Public case P16: the session does not wait for what takes 30 s, and the tool runs once."""
    backend = Gated()

    async def scenario() -> list[events.Event]:
        async with serving_session(Mind(backend)) as conversation:
            await conversation.session.push_text("what 0 0")
            await conversation.until(events.Background, state="started")
            for _ in range(150):  # thirty seconds of the conversation
                await conversation.turn()
            await conversation.session.push_text("seven please")
            await conversation.until(events.Words, text=" seven")
            backend.tasks["what 0 0"].release.set()
            await conversation.until(events.Words, text=f" {RESULTS[0]}")
            for _ in range(20):
                await conversation.turn()
            return conversation.events

    told = run(scenario())
    assert [event.text for event in told if isinstance(event, events.Words)] == [" seven", f" {RESULTS[0]}"]
    assert len(backend.asked) == 1


def test_a_client_that_appends_without_end_is_told_to_stop(serving_session, run) -> None:
    """Public case P15."""

    async def scenario() -> tuple[int, str]:
        async with serving_session(Mind()) as conversation:
            taken, sentence = 0, ""
            for number in range(1000):
                try:
                    conversation.session.push_context(f"result {number}", to_say=True)
                    taken += 1
                except intake.BadInputError as error:
                    sentence = str(error)
            await conversation.until(events.Words)
            return taken, sentence

    taken, sentence = run(scenario())
    assert 0 < taken < 400
    assert sentence == "The model would have more than 20 s of text to read: send less, or later."

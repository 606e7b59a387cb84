"""What a client alone knows: how much it has played of speech that was cut short, and who answers questions."""

import asyncio
from collections.abc import Callable

import pytest

from tests.serve.background_rig import Scripted
from tml_jax import client
from tml_jax.serve.background.backend import Answer, Desk
from tml_jax.serve.background.context import Said, Timeline
from tml_jax.serve.background.mind import Mind
from tml_jax.wire import events, messages, protos

SILENCE = protos.ConverseRequest(audio=protos.AudioChunk(pcm=bytes(6400)))


class Context(Scripted):
    """A backend that keeps what the model was said to have said."""

    def __init__(self) -> None:
        super().__init__(self._keep)
        self.said: list[str] = []

    async def _keep(self, desk: Desk) -> Answer:  # before anything waits: with `asked`
        self.said = [entry.text for entry in desk.context.said if entry.who == "model"]
        return Answer("forty two")


def text(words: str) -> protos.ConverseRequest:
    return protos.ConverseRequest(text=protos.TextInput(text=words))


def played(epoch: int, until_ms: int) -> protos.ConverseRequest:
    return protos.ConverseRequest(played=protos.Played(epoch=epoch, until_ms=until_ms))


# The fake model says and hears the first word of what is typed: it speaks for three micro-turns, and the user in them.
STEPS = [[text("one")], [text("two")], [text("three")], [], [], [text("what is that")], [], [], []]


@pytest.mark.parametrize(
    ("acknowledged", "said"),
    [
        ([], [" one", " two", " three"]),
        ([played(1, 800)], [" one", " two", " three"]),
        ([played(1, 500)], [" one", " two"]),  # two began to sound at 400, three at 600
        ([played(1, 0)], []),
        ([played(2, 0), played(0, 0)], [" one", " two", " three"]),  # these were not cut short
    ],
)
def test_what_was_not_played_was_not_said(
    serving: Callable, run: Callable, acknowledged: list[protos.ConverseRequest], said: list[str]
) -> None:
    async def scenario() -> tuple[Context, list[events.Event]]:
        backend, told = Context(), list[events.Event]()
        async with serving(mind=Mind(backend)) as server, client.connect(server.address) as channel:
            call = protos.converse_method(channel)()
            await call.write(protos.ConverseRequest(config=protos.SessionConfig(sends_audio=True, wants_audio=True)))
            for turn, step in enumerate(STEPS):
                for request in [*step, *(acknowledged if turn == 5 else []), SILENCE]:
                    await call.write(request)
                while not any(isinstance(event, events.Turn) and event.turn == turn for event in told):
                    told.append(messages.to_event(await call.read()))
            async with asyncio.timeout(20):
                while not backend.asked:
                    await asyncio.sleep(0.01)
            call.cancel()
        return backend, told

    backend, told = run(scenario())
    assert len(backend.asked) == 1
    assert backend.said == said
    assert {event.turn: event.yielded for event in told if isinstance(event, events.Turn) and event.yielded} == {3: 1}
    assert {event.turn: event.epoch for event in told if isinstance(event, events.Sound)}.items() >= {
        0: 1,
        1: 1,
    }.items()
    assert "".join(event.text for event in told if isinstance(event, events.Words))[:14] == " one two three", "as told"


def test_the_server_s_background_model_is_not_asked_where_the_client_has_one(serving: Callable, run: Callable) -> None:
    async def scenario(own: bool) -> list[events.Event]:
        async with serving() as server, client.connect(server.address) as channel:
            call, told = protos.converse_method(channel)(), list[events.Event]()
            config = protos.SessionConfig(sends_audio=True, client_background=own)
            for request in (protos.ConverseRequest(config=config), text("what is that"), SILENCE, SILENCE):
                await call.write(request)
            await call.write(protos.ConverseRequest(close=protos.CloseInput()))
            while not told or not isinstance(told[-1], events.Ended):
                told.append(messages.to_event(await call.read()))
            return told

    for own in (True, False):
        told = run(scenario(own))
        assert any(isinstance(event, events.Turn) and event.decision is events.Decision.DELEGATE for event in told)
        assert any(isinstance(event, events.Background) for event in told) is not own


def test_only_the_model_s_words_of_that_time_are_taken_back() -> None:
    timeline = Timeline()
    entries = [Said(t / 10, who, f"{who} {t}") for t in range(2, 10, 2) for who in ("model", "user")]
    for entry in entries:
        timeline.add(entry)
    timeline.unsay(0.4, 0.8)
    assert list(timeline) == [one for one in entries if (one.who, one.time_s) not in {("model", 0.4), ("model", 0.6)}]

"""A server is measured through its door: what the client recorded is kept, and scored again with equal figures."""

import asyncio
import pathlib

import pytest

from tests.eval.test_recorded import talker
from tests.serve.conftest import Running
from tml_jax import client
from tml_jax.data.speech_bank import SpeechBank
from tml_jax.eval import miniatures, panel, targets
from tml_jax.eval.recorded import Recorded, load_all
from tml_jax.streams.micro_turn import StreamSpec


def figures(cases: list[Recorded]) -> list[panel.Figure]:
    return panel.figures([panel.judged(case) for case in cases])


def test_a_server_is_a_target(serving, run, tmp_path: pathlib.Path) -> None:
    users = [talker((0.4, 1.6)), talker((0.4, 1.6), (3.0, 4.0)), talker((2.0, 2.6))]
    cases = [targets.Case(f"smoke/command/{i}", "smoke", "command", user, i) for i, user in enumerate(users)]

    def measure(server: Running) -> list[Recorded]:
        target = targets.Grpc(server.address, real_time=False, sessions=2)
        assert (target.spec.frame_height, target.spec.micro_turn_ms) == (40, 200)
        return list(target.play(cases, sound=True))

    async def scenario() -> list[Recorded]:
        async with serving() as server:
            return await asyncio.to_thread(measure, server)

    played = run(scenario())
    assert [len(case.behaviour().words) for case in played] == [1, 2, 1], "a digit after each sound"
    assert [len(case.output) for case in played] == [len(case.input) for case in played] == [96_000] * 3
    for case in played:
        case.save(tmp_path)
    assert figures(played) == figures(list(load_all(tmp_path)))
    (latency,) = next(f.values for f in figures(played[:1]) if f.name == "turn_taking_latency_median_s")
    assert latency == pytest.approx(0.2, abs=0.11)
    (told,) = [(start, end) for start, end in played[0].heard(0.1)]
    assert told[0] == pytest.approx(played[0].behaviour().sound[0][0], abs=0.05), "the sound says what the journal says"


def test_what_is_typed_and_shown_reaches_a_server(serving, run) -> None:
    """Of own data for a published suite: the fake model repeats the first word that is typed."""
    bank = SpeechBank.load("checkpoints/speech_bank")
    drawn = miniatures.draw("proactive", bank, StreamSpec(), 3, 1)
    (case,) = [case for case in drawn.cases if case.category == "sight"]

    def measure(server: Running) -> Recorded:
        (one,) = targets.Grpc(server.address, real_time=False, sessions=1).play([case], sound=True)
        return one

    async def scenario() -> Recorded:
        async with serving() as server:
            return await asyncio.to_thread(measure, server)

    played = run(scenario())
    assert played.events is not None and played.behaviour().words[0][1] == "say"
    seen = sum(event["count"] for event in played.events if event["type"] == "frame")
    assert seen == pytest.approx(10 * case.conversation.duration_s, abs=4)


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(client.SessionError, match="does not answer"):
        targets.Grpc("127.0.0.1:1", real_time=True, sessions=1)

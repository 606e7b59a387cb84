"""A server is measured through its door: what the client recorded is kept, and scored again with equal figures."""

import asyncio
import json
import pathlib
import re
import sys

import pytest

from tests.eval.test_recorded import talker
from tests.serve.conftest import Running
from tml_jax import client
from tml_jax.data.speech_bank import SpeechBank
from tml_jax.eval import miniatures, panel, shows, targets
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


def test_cases_that_belong_together_are_played_at_once(serving, run) -> None:
    """A server of one slot refuses the second of two, and takes them one after the other."""
    users = [talker((0.4, 1.6), seconds=2.0)] * 2

    def measure(server: Running, together: int) -> list[Recorded]:
        target = targets.Grpc(server.address, real_time=False, sessions=1)
        assert target.slots == 1
        cases = [targets.Case(f"a/{i}", "load", "2", user, i, together=together) for i, user in enumerate(users)]
        return list(target.play(cases, sound=True))

    async def scenario(together: int) -> list[Recorded]:
        async with serving(slots=1) as server:
            return await asyncio.to_thread(measure, server, together)

    assert len(run(scenario(0))) == 2
    with pytest.raises(client.SessionError):
        run(scenario(2))


def measured(serving, slots: int, *flags: str) -> tuple[int, str]:
    """Exit status and errors of `launch.evaluate --suite=all`, of a server of so many slots."""

    async def scenario() -> tuple[int, str]:
        async with serving(slots=slots) as server:
            target = [f"--target=grpc:{server.address}", "--pace=fast", "--conversations=1", "--suite=all"]
            command = [sys.executable, "-m", "launch.evaluate", *target, *flags]
            process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
            _, told = await process.communicate()
            return process.returncode or 0, told.decode()

    return asyncio.run(asyncio.wait_for(scenario(), 500))


def test_all_of_a_server_is_one_table(serving, tmp_path: pathlib.Path) -> None:
    """Every suite that needs no data is played through the door; no row is left out."""
    out, page = tmp_path / "figures.json", tmp_path / "page.html"
    flags = ("--scenarios=command,quiet,cue,shadow", f"--json={out}", f"--report={page}")
    status, told = measured(serving, 4, "--sessions=4", *flags)
    assert status == 0, told
    figures = json.loads(out.read_text())
    assert list(figures)[:2] == ["table", "smoke"] and "full_duplex_bench" in figures
    assert "load" not in figures and "overheard" not in figures, (
        "there are no recordings, and the pace is not that of time"
    )
    rows = {row["name"]: row for row in figures["table"]}
    assert len(rows) == len(shows.ROWS)
    assert rows["visual cue: said within 0.6 s"]["value_events"] > 0
    assert rows["shadowing: digits right while the user speaks"]["value"] < 0.5, "a digit after each one, but which"
    assert rows["step at 16 sessions, 99th percentile"]["note"].startswith("needs `load`")
    assert page.read_text().count("<audio") >= 6


def test_what_a_server_refuses_leaves_the_rest_measured(serving, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "figures.json"
    status, told = measured(serving, 1, "--sessions=2", "--scenarios=quiet", f"--json={out}")
    assert status == 1 and "launch.evaluate: full_duplex_bench: " in told
    assert not re.search(r'File "\S*/(launch|tml_jax)/', told), (
        "no traceback through our code; gRPC's poller may log one"
    )
    figures = json.loads(out.read_text())
    assert "smoke" in figures and "full_duplex_bench" not in figures

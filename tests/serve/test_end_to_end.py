"""A real gRPC server and real clients: what a session gives back, and that sessions do not touch each other."""

import asyncio
import pathlib

import grpc
import jax
import numpy as np
import pytest

from tests.serve.conftest import bursts, talk
from tml_jax import client
from tml_jax.serve.engine import compilations
from tml_jax.wire.journal import read_journal


def decisive(recording: client.Recording) -> list[dict]:
    """Everything that must repeat: not times."""
    return [
        event
        for event in recording.events
        if event["type"] in ("speak", "listen", "delegate", "word", "heard", "voice")
    ]


def test_a_conversation_gives_one_decision_per_micro_turn_words_and_sound(serving, run, tmp_path: pathlib.Path) -> None:
    async def scenario() -> client.Recording:
        async with serving(journal_dir=tmp_path) as server:
            return await talk(server.address, client.Script(bursts(4.0, seed=1), tail_s=1.0))

    recording = run(scenario())
    decisions = [event for event in recording.events if event["type"] in ("speak", "listen")]
    assert [event["turn"] for event in decisions] == list(range(len(decisions)))
    assert len(decisions) >= 25
    words = [event for event in recording.events if event["type"] == "word"]
    assert [event["turn"] for event in words] == [3, 8, 13, 18], (
        "it answers in the first silent micro-turn of each second"
    )
    level = np.abs(recording.reply.reshape(-1, 3200)).max(axis=1)
    assert [k for k in range(len(level)) if level[k] > 0.01][:1] == [4], (
        "the sound of micro-turn 3 plays in micro-turn 4"
    )
    kept = read_journal(tmp_path / f"{recording.session_id}.jsonl")
    assert _plain(kept) == _plain(recording.events), "the client saw what the server's journal says"


def _plain(events: list[dict]) -> list[dict]:
    """Without what differs on purpose: wall times, and the levels that lose bits on the wire."""
    return [
        {k: v for k, v in event.items() if k not in ("ms", "level", "started_unix_s")}
        for event in events
        if event["type"] != "end"
    ]


def test_a_session_beside_others_in_a_used_slot_equals_the_session_alone(serving, run) -> None:
    script = client.Script(bursts(3.0, seed=7), texts=[(1.3, "seven please")], seed=11)
    other = [client.Script(bursts(3.0, seed=s), seed=s) for s in (1, 2, 3)]

    async def scenario() -> tuple[client.Recording, list[client.Recording]]:
        async with serving(slots=1) as server:
            alone = await talk(server.address, script)
        async with serving(slots=4) as server:
            await asyncio.gather(
                *(talk(server.address, one) for one in [*other, script])
            )  # leaves traces in every slot
            together = await asyncio.gather(*(talk(server.address, one) for one in [*other, script]))
        return alone, together

    alone, together = run(scenario())
    assert decisive(alone) == decisive(together[-1])
    assert np.array_equal(alone.reply, together[-1].reply)
    assert not np.array_equal(alone.reply, together[0].reply)


@pytest.mark.parametrize("chunk_ms", [0.0625 * 37, 20, 313, 1000])
def test_how_the_sound_is_cut_changes_nothing(serving, run, chunk_ms: float) -> None:
    script = client.Script(bursts(2.0, seed=3, rate=44_100, channels=2), tail_s=0.5)

    async def scenario() -> tuple[client.Recording, client.Recording]:
        async with serving() as server:
            return await talk(server.address, script, chunk_ms=200), await talk(
                server.address, script, chunk_ms=chunk_ms
            )

    whole, cut = run(scenario())
    assert [e for e in decisive(whole) if e["type"] == "word"], "the model answered"
    assert decisive(whole) == decisive(cut)
    assert np.array_equal(whole.reply, cut.reply)


def test_a_full_server_says_so_and_a_freed_slot_can_be_had(serving, run) -> None:
    async def scenario() -> tuple[client.SessionError, client.Recording]:
        async with serving(slots=1, real_time=True) as server:
            first = asyncio.create_task(talk(server.address, client.Script(bursts(5.0, 0)), real_time=True))
            await asyncio.sleep(0.5)
            with pytest.raises(client.SessionError) as refused:
                await talk(server.address, client.Script(bursts(0.4, 0)))
            first.cancel()  # hangs up in the middle
            await asyncio.gather(first, return_exceptions=True)
            await asyncio.sleep(0.2)
            assert server.server.engine.stats().live == 0
            return refused.value, await talk(server.address, client.Script(bursts(0.4, 0), tail_s=0))

    refused, recording = run(scenario())
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(refused) == "All 1 sessions of this server are taken: try again when one has ended."
    assert recording.events


def test_the_counter_counts_compilations() -> None:
    before = compilations.count
    jax.jit(lambda x: 3 * x)(1.0).block_until_ready()
    assert compilations.count > before


def test_nothing_is_compiled_once_the_port_is_open(serving, run) -> None:
    async def scenario() -> int:
        async with serving(slots=3) as server:
            before = compilations.count
            scripts = [
                client.Script(bursts(2.0, 1), texts=[(0.5, "hello there " * 20)]),
                client.Script(None, texts=[(0.1, "what is two times two")], tail_s=0.2),
                client.Script(bursts(1.0, 2), wants_audio=False, instructions="be quiet"),
            ]
            await asyncio.gather(*(talk(server.address, script) for script in scripts))
            assert server.server.engine.stats().steps > 15
            channel = client.connect(server.address)
            async with channel:
                assert (await client.server_info(channel)).compilations_after_warmup == 0
            return compilations.count - before

    assert run(scenario()) == 0


def test_a_delegated_question_is_answered_in_the_conversation(serving, run) -> None:
    async def scenario() -> client.Recording:
        async with serving(real_time=True) as server:
            script = client.Script(bursts(0.2, 1), texts=[(0.3, "what is six times seven")], tail_s=1.6)
            return await talk(server.address, script, real_time=True)

    events = run(scenario()).events
    (delegate,) = [event for event in events if event["type"] == "delegate"]
    started, finished = (event for event in events if event["type"] == "background")
    assert (started["state"], finished["state"]) == ("started", "finished")
    assert started["text"].startswith("what is six times seven")
    assert finished["text"] == "forty two"
    assert [event["text"] for event in events if event["type"] == "word" and event["turn"] > delegate["turn"]] == [
        " forty"
    ]

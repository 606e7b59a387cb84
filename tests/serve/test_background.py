"""The background model's actor: what runs when, and when a result is put to the model."""

import asyncio
import contextlib
import threading
import time
from typing import Any

import numpy as np
import pytest

from tests.serve.background_rig import LOUD, SPEAK, Rig, Scripted, at_once, play, rig
from tml_jax.serve.background import actor as actors
from tml_jax.serve.background.backend import Answer, Delivery, Desk, Tool
from tml_jax.serve.background.context import MAX_CHARACTERS, ContextPackage, Said, Timeline
from tml_jax.serve.background.mind import Limits, Mind


def test_a_question_is_what_was_heard_and_typed_last() -> None:
    said = [
        Said(1.0, "user", "what is nine times nine"),
        Said(2.0, "model", "eighty one"),
        Said(8.0, "user_text", "naïve"),
        *(Said(8.0, "user", piece) for piece in [" what", " is", " a", " caf", "é", " à la", " carte"]),
        Said(8.4, "user_text", "日本?"),
    ]
    assert ContextPackage(9.0, tuple(said)).question() == "naïve what is a café à la carte 日本?"


def test_the_context_is_the_whole_timeline_and_bounded() -> None:
    timeline = Timeline()
    timeline.add(Said(0.0, "instructions", "be brief"))
    timeline.add(Said(0.2, "camera", "1"))
    timeline.add(Said(0.4, "camera", "2"))
    for at, piece in ((1.0, " what"), (1.2, " is"), (1.4, " th"), (1.6, "at")):
        timeline.add(Said(at, "user", piece))
    timeline.add(Said(2.0, "model", " a"))
    timeline.add(Said(2.2, "model", " dog"))
    timeline.add(Said(3.0, "user_text", "and this?\n[3.1] model, said: yes"))
    timeline.add(Said(4.0, "background", "a cat"))
    timeline.picture = np.zeros((4, 4, 3), np.uint8)
    package = timeline.package(5.0)
    assert package.render().split("\n") == [
        "[0.0] instructions: be brief",
        "[0.2-0.4] camera: 3 pictures",
        "[1.0-1.6] user, heard: what is that",
        "[2.0-2.2] model, said: a dog",
        "[3.0] user, typed: and this? [3.1] model, said: yes",
        "[4.0] background result: a cat",
        "[5.0] now",
    ]
    assert package.picture is not None
    short = package.render(longest=110).split("\n")
    assert short[0] == "[0.0] instructions: be brief"
    assert short[1] == "(4 earlier lines are left out)"
    for at in range(10_000):
        timeline.add(Said(10.0 + at, "user_text", "x" * 1000))
    long = timeline.package(20_000.0)
    assert sum(len(entry.text) for entry in long.said) <= MAX_CHARACTERS + len("be brief")
    assert long.said[0].text == "be brief"
    assert len(long.render()) < 16_100


def test_a_result_waits_until_neither_side_speaks() -> None:
    async def scenario(conversation: Rig) -> None:
        conversation.tell(level=LOUD, heard=" what")
        conversation.delegate()
        await asyncio.sleep(0.2)  # it is there long before
        for _ in range(10):  # the user goes on, then the model speaks
            conversation.tell(level=LOUD)
        for _ in range(5):
            conversation.tell(SPEAK)
        conversation.tell()
        conversation.tell(level=LOUD)
        conversation.tell()
        assert conversation.said == []
        assert conversation.states() == ["started"]
        conversation.tell()
        assert conversation.said == [(19, "the answer to what")]
        assert conversation.states() == ["started", "finished"]
        assert conversation.actor.pending == 0

    play(scenario, at_once)


def test_steady_noise_is_no_speech_and_quiet_words_are() -> None:
    async def scenario(conversation: Rig) -> None:
        for _ in range(30):
            conversation.tell(level=0.05)
        assert conversation.actor.is_idle
        conversation.tell(level=0.05, heard=" hm")
        assert not conversation.actor.is_idle
        conversation.tell(level=0.05)
        conversation.tell(level=0.05)
        assert conversation.actor.is_idle
        conversation.tell(level=LOUD)
        assert not conversation.actor.is_idle
        conversation.tell()
        conversation.tell(heard=" yes")  # of what was said before
        assert conversation.actor.is_idle

    play(scenario, at_once)


def test_a_result_that_cannot_wait_interrupts_and_a_silent_one_is_only_told() -> None:
    async def hurry(desk: Desk) -> Answer:
        kind = Delivery.INTERRUPT if "fire" in desk.context.question() else Delivery.SILENT
        return Answer("take the stairs", kind)

    async def scenario(conversation: Rig) -> None:
        conversation.tell(level=LOUD, heard=" fire")
        conversation.delegate()
        await conversation.until(lambda: bool(conversation.said), tick=lambda: conversation.tell(SPEAK, LOUD))
        assert conversation.states() == ["started", "finished"]
        await asyncio.sleep(0.1)
        for _ in range(100):
            conversation.tell(words=" well")
        conversation.tell(level=LOUD, heard=" note")
        conversation.delegate()
        await conversation.until(lambda: conversation.states()[2:] == ["started", "finished"])
        for _ in range(20):
            conversation.tell()
        assert [text for _, text in conversation.said] == ["take the stairs"]
        conversation.delegate()
        await conversation.until(lambda: len(backend_saw) == 3)
        assert "background result: take the stairs" in backend_saw[-1]

    backend_saw: list[str] = []

    async def spy(desk: Desk) -> Answer:
        backend_saw.append(desk.context.render())
        return await hurry(desk)

    play(scenario, spy)


class _Slow:
    """Answers after `release`; `most` is how many were at work at once."""

    def __init__(self) -> None:
        self.most, self._running, self.release = 0, 0, threading.Event()

    async def __call__(self, desk: Desk) -> Answer:
        self._running += 1
        self.most = max(self.most, self._running)
        while not self.release.is_set():
            await asyncio.sleep(0.005)
        self._running -= 1
        return await at_once(desk)


def test_a_burst_runs_one_task_keeps_one_and_merges_the_rest() -> None:
    """Public case P15: a thousand delegations start no thousand consults."""
    slow = _Slow()

    async def scenario(conversation: Rig) -> None:
        for number in range(1000):
            conversation.typed(f"question {number}")
            assert conversation.delegate() == min(number, 1)
            assert conversation.actor.pending <= 2
        conversation.tell(SPEAK, words=" one moment")
        slow.release.set()
        await conversation.until(lambda: conversation.states().count("finished") == 2)
        for _ in range(20):
            conversation.tell()
        assert len(conversation.said) == 2
        assert conversation.said[0][1].endswith("question 0")
        assert conversation.states() == ["started", "finished", "started", "finished"]

    backend = play(scenario, slow)
    assert (slow.most, len(backend.asked)) == (1, 2)
    assert backend.asked[1].endswith("question 999")


def test_all_sessions_together_have_so_many_tasks_at_work() -> None:
    """One more waits until another is done, and is done then."""
    slow = _Slow()

    async def scenario() -> list[list[str]]:
        mind = Mind(backend, limits=Limits(tasks=3))
        async with asyncio.timeout(60), contextlib.AsyncExitStack() as stack:
            sessions = [await stack.enter_async_context(rig(mind)) for _ in range(4)]
            for number, session in enumerate(sessions):
                session.typed(f"question {number}")
                session.delegate()
            while len(backend.asked) < 3:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.3)
            assert len(backend.asked) == 3
            slow.release.set()
            for session in sessions:
                await session.until(lambda made=session: "finished" in made.states())
            return [session.states() for session in sessions]

    backend = Scripted(slow)
    assert asyncio.run(scenario()) == [["started", "finished"]] * 4
    assert (slow.most, len(backend.asked)) == (3, 4)


def test_a_conversation_that_never_rests_gets_its_result_in_the_end() -> None:
    async def scenario(conversation: Rig) -> None:
        conversation.delegate()
        await asyncio.sleep(0.3)
        began = conversation.turn
        await conversation.until(lambda: bool(conversation.said), tick=lambda: conversation.tell(SPEAK, LOUD))
        assert conversation.said[0][0] - began == pytest.approx(actors.PATIENCE_S / 0.2, abs=2)

    play(scenario, at_once)


def test_the_unknown_the_broken_and_the_slow_are_said_in_words() -> None:
    async def broken(desk: Desk) -> Answer:
        match desk.context.question():
            case "break":
                raise ZeroDivisionError("tool")
            case "hang":
                await asyncio.sleep(600)
            case "block":  # even a backend that blocks its own loop holds up nobody else
                time.sleep(0.6)
        return Answer("  ")

    async def scenario(conversation: Rig) -> None:
        for question in ("break", "hang", "nothing", "block"):
            conversation.typed(question)
            before, began = len(conversation.said), time.monotonic()
            conversation.delegate()
            slowest = 0.0
            while len(conversation.said) == before:
                tick = time.monotonic()
                conversation.tell()
                await asyncio.sleep(0.002)
                slowest = max(slowest, time.monotonic() - tick)
                assert time.monotonic() - began < 30
            assert slowest < 0.45, question
            conversation.tell(SPEAK, words=" hm")
            for _ in range(100):
                conversation.tell()
        assert [text for _, text in conversation.said] == ["i do not know"] * 4
        told = [event.text for event in conversation.reports if event.state in ("finished", "failed")]
        assert told[0] == "ZeroDivisionError: tool"
        assert told[1] == told[3] == "no answer within 0.3 s"
        assert told[2] == "i do not know"

    play(scenario, broken, deadline_s=0.3)


def test_the_user_can_call_it_off() -> None:
    cancelled = threading.Event()

    async def slow(desk: Desk) -> Answer:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return Answer("never")

    async def scenario(conversation: Rig) -> None:
        conversation.delegate()
        conversation.delegate()
        await asyncio.sleep(0.1)
        conversation.hear("never mind")
        assert conversation.actor.pending == 0
        ended = [(event.task, event.state, event.text) for event in conversation.reports]
        assert ended[1:] == [
            (0, "failed", "called off by the user"),
            (1, "started", ""),
            (1, "failed", "called off by the user"),
        ]
        await asyncio.to_thread(cancelled.wait, 10)
        assert cancelled.is_set()
        for _ in range(50):
            conversation.tell()
        assert conversation.said == []

    play(scenario, slow)


def test_what_another_process_has_left_undone_goes_on_under_its_number() -> None:
    release = threading.Event()

    async def slow(desk: Desk) -> Answer:
        while not release.is_set():
            await asyncio.sleep(0.005)
        return await at_once(desk)

    async def scenario(conversation: Rig) -> None:
        conversation.typed("first")
        package = conversation.timeline.package(0.2)
        assert conversation.actor.delegate(package, 7) == 7
        conversation.typed("second")  # had been merged into it
        assert conversation.actor.delegate(conversation.timeline.package(0.2), 7) == 7
        assert conversation.delegate() == 8
        assert conversation.actor.pending == 2
        release.set()
        await conversation.until(lambda: conversation.states().count("finished") == 2)
        finished = [event for event in conversation.reports if event.state == "finished"]
        assert [(event.task, event.text) for event in finished] == [
            (7, "the answer to first second"),
            (8, "the answer to first second"),
        ]
        assert len(conversation.said) == 2

    play(scenario, slow)


def test_a_session_that_ends_drops_its_task() -> None:
    cancelled = threading.Event()

    async def slow(desk: Desk) -> Answer:
        try:
            await asyncio.sleep(600)
        finally:
            cancelled.set()
        return Answer("never")

    async def scenario(conversation: Rig) -> None:
        conversation.delegate()
        await asyncio.sleep(0.1)
        conversation.actor.close()
        assert await asyncio.to_thread(cancelled.wait, 10)
        assert (conversation.said, conversation.actor.pending) == ([], 0)

    play(scenario, slow)


def test_progress_is_told_and_not_every_word_of_it() -> None:
    async def chatty(desk: Desk) -> Answer:
        for number in range(500):
            desk.progress(f"step {number}")
            await asyncio.sleep(0.002)
        return Answer("done")

    async def scenario(conversation: Rig) -> None:
        conversation.delegate()
        await conversation.until(lambda: "finished" in conversation.states())
        told = [event for event in conversation.reports if event.state == "progress"]
        assert 2 <= len(told) <= 100
        assert told[0].text == "step 0"

    play(scenario, chatty)


def test_tools_are_bounded_in_time_number_and_output() -> None:
    async def hang(arguments: dict[str, Any]) -> str:
        await asyncio.sleep(600)
        return ""

    async def flood(arguments: dict[str, Any]) -> str:
        return "\x1b[2Jx" * 100_000

    async def broken(arguments: dict[str, Any]) -> str:
        raise KeyError(arguments["what"])

    tools = tuple(Tool(name, "", {}, run) for name, run in (("hang", hang), ("flood", flood), ("broken", broken)))
    outputs: list[str] = []

    async def user(desk: Desk) -> Answer:
        for name in ("hang", "flood", "broken", *["broken"] * 3):
            outputs.append(await desk.call(name, {"what": 1}))
        return Answer("y" * 10_000)

    async def scenario(conversation: Rig) -> None:
        conversation.delegate()
        await conversation.until(lambda: "finished" in conversation.states())
        assert conversation.said[-1][1] == "y" * 600

    play(scenario, user, tools, tool_deadline_s=0.2, tool_output=100, tool_calls=4)
    assert outputs[0] == "Failed: hang did not answer within 0.2 s."
    assert outputs[1].startswith(" [2Jx [2Jx")
    assert outputs[1].endswith("[cut off: 499900 characters more]")
    assert outputs[2] == outputs[3] == "Failed: KeyError: 1"
    assert outputs[4].startswith("Refused: a task may use tools 4 times")

"""Scenes that were played are left as one conversation: times, sounds, words, and what was met."""

import json
import pathlib
from typing import Any

import numpy as np
import PIL.Image
import pytest
import soundfile

from tests.eval.test_outcomes import journal
from tml_jax import client
from tml_jax.data.demonstration import Scene
from tml_jax.data.timeline import Conversation, Frames, SpokenWord, UserSpeech
from tml_jax.eval import performance
from tml_jax.eval.outcomes import outcomes
from tml_jax.eval.plot import LATE, MET
from tml_jax.streams.micro_turn import StreamSpec
from tml_jax.wire.journal import read_journal

SPEC = StreamSpec()
EXPECTED = (
    {"kind": "answer", "after": 2.0, "words": ["hello"]},
    {"kind": "silent", "reason": "quiet", "from": 3.0, "to": 4.0},
)


def scene(name: str) -> Scene:
    speech = UserSpeech(1.0, np.full(16_000, 0.25, np.float32), (SpokenWord("hello", 0.1, 1.0),))
    talk = UserSpeech(3.0, np.full(8_000, 0.1, np.float32))
    film = Frames(0.0, 10.0, np.zeros((50, 40, 40, 3), np.uint8))
    return Scene(name, "engine/voice", Conversation(5.0, (speech, talk, film), True, name, EXPECTED))


def played(name: str, start_s: float, turn: int) -> performance.Performance:
    """A scene in which the model says "hello" in this micro-turn."""
    made = scene(name)
    script = performance.script_of(made.conversation, SPEC, 7)
    events = [*journal((turn, "hello")), {"t": 2.2, "turn": 10, "type": "heard", "text": " yellow"}]
    events = [*sorted(events, key=lambda event: event["t"]), {"t": 6.3, "turn": 0, "type": "end"}]
    recording = client.Recording("session", SPEC.sample_rate, events, 6.0, np.full(32_000, 0.5, np.float32))
    judged = outcomes(name, made.conversation.expectations, events, 6.0, start_s)
    return performance.Performance(made, script, recording, start_s, judged)


@pytest.fixture
def kept(tmp_path: pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]]:
    two = [played("Talk", 0.0, 11), played("Sight", 6.0, 15)]  # in time, and into the silence
    return tmp_path, performance.keep(tmp_path, two, 0, "title")


def test_a_scene_is_what_the_client_sends() -> None:
    script = performance.script_of(scene("Talk").conversation, SPEC, 7)
    assert script.sound is not None and script.video is not None
    assert script.sound.duration_s == 5.0 and script.duration_s == 5.0 + performance.TAIL_S
    assert np.abs(script.sound.mono()[16_100:31_900]).min() > 0.2
    assert list(script.video.pictures(40, 40))[-1][0] == pytest.approx(4.9)
    assert script.seed == 7


def test_the_summary_counts_and_lists_what_was_met(kept: tuple[pathlib.Path, dict[str, Any]]) -> None:
    out, figures = kept
    assert json.loads((out / "summary.json").read_text()) == figures
    assert (figures["expectations"], figures["expectations_met"]) == (4, 2)
    assert [(one["scene"], one["time_s"], one["met"]) for one in figures["judged"]] == [
        ("Talk", 2.0, True),
        ("Talk", 3.0, True),
        ("Sight", 8.0, False),
        ("Sight", 9.0, False),
    ]
    assert [(one["meant"], one["heard"], one["said"]) for one in figures["scenes"]] == [
        (f"hello {performance.TALK}", "yellow", "hello")
    ] * 2


def test_both_sides_are_heard_one_scene_after_the_other(kept: tuple[pathlib.Path, dict[str, Any]]) -> None:
    out, _ = kept
    both, rate = soundfile.read(out / "conversation.wav")
    assert len(both) / rate == len(soundfile.read(out / "reply.wav")[0]) / rate == 12.0
    seconds = both.reshape(12, rate).mean(axis=1)
    assert seconds == pytest.approx([0.5, 0.75, 0, 0.05, 0, 0] * 2, abs=1e-2)


def test_the_journal_is_of_the_whole(kept: tuple[pathlib.Path, dict[str, Any]]) -> None:
    events = read_journal(kept[0] / "session.jsonl")
    assert [(event["t"], event["turn"]) for event in events if event["type"] == "word"] == [(2.4, 11), (9.2, 45)]
    assert [event["t"] for event in events] == sorted(event["t"] for event in events)


def test_the_picture_has_ticks_for_both(kept: tuple[pathlib.Path, dict[str, Any]]) -> None:
    pixels = np.asarray(PIL.Image.open(kept[0] / "timeline.png").convert("RGB")).reshape(-1, 3)
    for colour in (MET, LATE):
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        assert (np.abs(pixels.astype(int) - rgb).max(axis=1) < 3).sum() > 30

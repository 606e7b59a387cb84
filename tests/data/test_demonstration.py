"""The demo's scenes: drawn by the seed, from held-out voices, with every behaviour, in about three minutes."""

import numpy as np
import pytest

from tml_jax.data.demonstration import Scene, draw_scenes
from tml_jax.data.pipeline import open_bank
from tml_jax.data.speech_bank import SpeechBank
from tml_jax.data.timeline import Frames, Instructions, UserSpeech, user_sound
from tml_jax.streams import number_words
from tml_jax.streams.micro_turn import StreamSpec

BANK = "checkpoints/speech_bank"
SPEC = StreamSpec()


@pytest.fixture(scope="module", params=[0, 1, 2])
def scenes(request: pytest.FixtureRequest) -> list[Scene]:
    return draw_scenes(open_bank(BANK), SPEC, request.param)


def test_every_behaviour_is_there_in_about_three_minutes(scenes: list[Scene]) -> None:
    expected = [one for scene in scenes for one in scene.conversation.expectations]
    kinds = {one["kind"] for one in expected}
    assert kinds == {"answer", "silent", "delegate", "result", "timer", "cue", "goes on", "stop", "count"}
    assert {one["reason"] for one in expected if one["kind"] == "silent"} - {"told to be silent"} == {
        "hesitation",
        "quiet",
        "talk",
        "stopped",
        "not asked",
    }
    words = {word for one in expected if one["kind"] == "timer" for word in one["words"]}
    assert words == {"now", "beep"}
    assert sum("of" in one for one in expected) == 2, "two timers at once"
    cued = {scene.name: [e for e in scene.conversation.expectations if e["kind"] == "cue"] for scene in scenes}
    assert len(cued["At once"]) >= 2 and {word for e in cued["Cue"] for word in e["words"]} == {"beep"}
    assert {word for e in cued["Anew"] for word in e["words"]} <= set(number_words.SPANISH) and len(cued["Anew"]) >= 2
    told = next(scene for scene in scenes if scene.name == "As told").conversation
    assert len(list(told.of(Instructions))) == 1 and told.expectations
    assert sum(scene.conversation.duration_s for scene in scenes) < 190 - len(scenes)


def test_what_is_expected_lies_within_its_scene(scenes: list[Scene]) -> None:
    for scene in scenes:
        made = scene.conversation
        times = [value for one in made.expectations for value in one.values() if isinstance(value, float)]
        assert min(times) > 0 and max(times) <= made.duration_s
        assert len(user_sound(made, SPEC)) >= made.duration_s * SPEC.sample_rate
        films = [film for film in made.of(Frames) if len(film.frames) / film.fps >= made.duration_s]
        assert len(films) == (scene.name in ("Sight", "Cue"))


def test_voices_are_held_out_and_differ(scenes: list[Scene]) -> None:
    heldout = {clip.voice for clip in open_bank(BANK).clips if clip.split == "heldout"}
    voices = [scene.voice for scene in scenes]
    assert set(voices) <= heldout
    assert len(set(voices)) >= len(voices) - 1, "few can say all of the new requests"
    assert len(set(voices[:5])) == 5


def test_a_seed_draws_the_same_scenes_and_another_does_not() -> None:
    def drawn(seed: int) -> tuple[list[str], list[np.ndarray], list[dict]]:
        scenes = draw_scenes(open_bank(BANK), SPEC, seed)
        sounds = [speech.audio for scene in scenes for speech in scene.conversation.of(UserSpeech)]
        return (
            [scene.voice for scene in scenes],
            sounds,
            [one for scene in scenes for one in scene.conversation.expectations],
        )

    first, again, other = drawn(5), drawn(5), drawn(6)
    assert first[0] == again[0] and first[2] == again[2]
    assert all(np.array_equal(a, b) for a, b in zip(first[1], again[1], strict=True))
    assert first[2] != other[2]


def test_a_bank_that_cannot_say_it_all_is_told() -> None:
    bank = open_bank(BANK)
    bank = SpeechBank(bank.path, list(bank.voices.values()), [clip for clip in bank.clips if "stop" not in clip.text])
    with pytest.raises(ValueError, match=r"No held-out voice .* can say all of the scene 'Time'"):
        draw_scenes(bank, SPEC, 0)

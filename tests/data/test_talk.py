"""Talk is seeded, split by sentence between training and held-out voices, and never begins with a command."""

import pytest

from tml_jax.data import phrases, talk
from tml_jax.data.talk import talk_phrases


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_plan_is_seeded_and_grows_in_place(split) -> None:
    plan = talk_phrases(7, 40, split)
    assert talk_phrases(7, 400, split)[:40] == plan
    assert talk_phrases(8, 40, split) != plan
    assert len({u.text for u in plan}) == 40
    assert all(u.kind == "talk" and u.speed in phrases.USER_SPEEDS for u in plan)


def test_held_out_voices_say_what_was_never_trained_on() -> None:
    frames = len(set(talk.FRAMES))
    assert frames == len(talk.FRAMES) >= 300
    held_out = {frame for frame in talk.FRAMES if talk.split_of(frame) == "heldout"}
    assert 0.1 < len(held_out) / frames < 0.3
    said = {
        split: {u.text for seed in range(5) for u in talk_phrases(seed, 500, split)} for split in ("train", "heldout")
    }
    assert not said["train"] & said["heldout"]


def test_no_sentence_begins_with_a_whole_command() -> None:
    """Else nobody could tell, at the command's end, that it wasn't one."""
    commands = {u.text for seed in range(40) for u in phrases.user_phrases(seed, 200) if u.kind == "command"}
    assert {"stop", "hello", "count to ten", "what time is it"} <= commands
    for split in ("train", "heldout"):
        for utterance in (u for seed in range(5) for u in talk_phrases(seed, 500, split)):
            words = utterance.text.split()
            assert not any(" ".join(words[:end]) in commands for end in range(1, len(words) + 1)), utterance.text


def test_every_slot_is_filled_and_the_transcript_is_plain() -> None:
    for utterance in talk_phrases(1, 600, "train"):
        assert "{" not in utterance.spoken and utterance.spoken[0].isupper()
        assert utterance.text.replace("'", "").replace(" ", "").isalpha() and utterance.text.islower()
    assert any("don't" in u.text.split() for u in talk_phrases(1, 600, "train"))

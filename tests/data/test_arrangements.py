"""What holds for a while once it was asked for: cues, digits said along, Spanish, the time that ran, instructions."""

import dataclasses
import itertools

import numpy as np
import pytest

from tests.data.simulated import CONFIG, SPEC, expectations_of
from tml_jax.data import arrangements, pipeline
from tml_jax.data.simulator import Simulator
from tml_jax.data.timeline import AssistantSpeech, Frames, Instructions, UserSpeech, UserText
from tml_jax.streams import number_words


@pytest.fixture(scope="module")
def simulators():
    bank = pipeline.open_bank(CONFIG.bank)
    return {split: Simulator(CONFIG, SPEC, bank, split) for split in ("train", "heldout")}


def test_cues_are_what_the_video_shows(simulators):
    for conversation, cues in expectations_of(simulators, "cue", "cue"):
        assert next(conversation.of(UserText)).text == "say beep when something moves"
        film = next(conversation.of(Frames))
        still = np.abs(np.diff(film.frames.astype(np.float32).mean(axis=(3)), axis=0)).mean(axis=(1, 2))
        for cue in cues:
            at = round(cue["at"] * film.fps)
            assert still[at : at + 8].max() > 1.02 * still[at - 10 : at - 2].max(), "at rest before, and then it moves"


@pytest.mark.parametrize("name", ["cue", "shadow", "translate"])
def test_what_is_typed_can_be_asked_for_aloud(simulators, name):
    behaviour = dataclasses.replace(CONFIG.behaviour, aloud_share=1.0)
    config = dataclasses.replace(CONFIG, behaviour=behaviour)
    simulator = Simulator(config, SPEC, simulators["heldout"].cast.bank, "heldout")
    asked = {"cue": "when something moves", "shadow": "as i say it", "translate": "in spanish"}[name]
    able = {speaker.name for speaker in simulator.cast.speakers if speaker.family(name)}
    assert len(able) >= 5
    for conversation in (simulator.conversation(index, name) for index in range(12)):
        first = next(conversation.of(UserSpeech))
        aloud = " ".join(w.text for w in first.words).endswith(asked)
        assert (bool(list(conversation.of(UserText))), aloud) == (
            (False, True) if conversation.voice in able else (True, False)
        )


def test_digits_to_shadow_come_while_the_user_goes_on(simulators):
    for conversation, digits in expectations_of(simulators, "shadow", "cue"):
        said = {u.start_s + u.words[-1].end_s: u.words[-1].text for u in conversation.of(UserSpeech)}
        for digit in digits:
            assert said[digit["at"]] == digit["words"][0]
            assert any(digit["at"] + 0.6 < end < digit["at"] + 2.5 for end in said), "another one ends later"


def test_typed_requests_of_held_out_users_are_their_own(simulators):
    texts_of = {"cue": arrangements.CUES, "shadow": arrangements.SHADOWS, "translate": arrangements.TRANSLATIONS}
    for name, texts in texts_of.items():
        typed = {
            split: {e.text for i in range(24) for e in simulators[split].conversation(i, name).of(UserText)}
            for split in ("train", "heldout")
        }
        assert typed["heldout"] == {texts[0]} and typed["train"] == set(texts[1:])


def test_digits_are_translated_and_what_is_left_of_a_timer_told(simulators):
    spanish = dict(zip(number_words.UNITS, number_words.SPANISH, strict=False))
    for conversation, digits in expectations_of(simulators, "translate", "cue"):
        said = {u.start_s + u.words[-1].end_s: u.words[-1].text for u in conversation.of(UserSpeech)}
        assert digits and all(digit["words"] == [spanish[said[digit["at"]]]] for digit in digits)
    told = 0
    for _, answers in expectations_of(simulators, "elapsed", "answer"):
        for began, asked in itertools.pairwise(answers):
            if asked["words"] != ["okay"]:
                seconds = asked["after"] - began["after"]
                assert abs(seconds - number_words.from_words(asked["words"][0])) <= 0.2
                told += 1
    assert told > 8


def test_what_was_begun_and_broken_off_is_not_answered(simulators):
    for conversation, answers in expectations_of(simulators, "repair", "answer"):
        for answer in answers:
            (request,) = (
                u for u in conversation.of(UserSpeech) if abs(u.start_s + u.words[-1].end_s - answer["after"]) < 1e-6
            )
            words = [word.text for word in request.words]
            assert answer["words"] == words[1:-1] if words[0] == "repeat" else answer["words"][-1] in (words[-1], "one")


def test_instructions_hold_for_the_whole_conversation(simulators):
    seen = set()
    for index in range(24):
        conversation = simulators["heldout"].conversation(index, "instructed")
        (given,) = conversation.of(Instructions)
        (what,) = (name for name, texts in arrangements.INSTRUCTIONS.items() if given.text == texts[0])
        said = [word.text for speech in conversation.of(AssistantSpeech) for word in speech.words]
        assert given.time_s == 0.0 and "okay" not in said
        if what == arrangements.SILENT:
            assert not said and len(conversation.expectations) > 1
        elif what == arrangements.YES:
            assert set(said) == {"yes", "now"}
        else:
            assert said and set(said) <= set(number_words.SPANISH)
        seen.add(what)
    assert seen == set(arrangements.INSTRUCTIONS)


def test_a_conversation_without_instructions_gets_none_later(simulators):
    shares = dataclasses.replace(CONFIG.shares, instructed=20.0)
    config = dataclasses.replace(CONFIG, shares=shares)
    simulator = Simulator(config, SPEC, simulators["train"].cast.bank, "train")
    given = 0
    for conversation in (simulator.conversation(index) for index in range(160)):
        said = {word.text for speech in conversation.of(AssistantSpeech) for word in speech.words}
        if list(conversation.of(Instructions)):
            assert said <= {"yes", "now", *number_words.SPANISH}, "nothing that it does not obey, before or after"
            given += 1
    assert 40 < given < 160

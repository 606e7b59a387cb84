"""What the model writes as words: every letter and space of it, whichever micro-turns its tokens fall into."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.serve.fakes import SPEC
from tml_jax.serve.bundle import ModelBundle
from tml_jax.serve.outlet import Outlet
from tml_jax.wire import events, messages
from tml_jax.wire.behaviour import text_of, whole_words
from tml_jax.wire.journal import Journal, journal_event


def told(bundle: ModelBundle, text: str, pause: int = 0) -> list[events.Event]:
    """What is told when a model says, and hears, `text` at one token a micro-turn, with silence before each token."""
    outlet, control = Outlet(SPEC, bundle.tokenizer), bundle.tokenizer.control
    found: list[events.Event] = []
    turn = 0
    for token in bundle.tokenizer.encode(text):
        for _ in range(pause):
            found += outlet.words(turn, np.array([control.speak]), np.array([control.nothing]))
            turn += 1
        found += outlet.words(turn, np.array([token]), np.array([token]))
        turn += 1
    return found


def said(found: list[events.Event], kind: type) -> str:
    return "".join(event.text for event in found if isinstance(event, kind))


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.integers(0, 2))
def test_the_pieces_are_the_text(bundle: ModelBundle, text: str, pause: int) -> None:
    found = told(bundle, text, pause)
    assert said(found, events.Words) == text
    tokens = bundle.tokenizer.encode(text)
    again = any(a == b for a, b in itertools.pairwise(tokens))  # is heard once, where the second comes at once
    assert said(found, events.HeardWords) == text or (again and not pause)
    assert all(event.text and event.start_ms < event.end_ms for event in found)


def test_a_word_that_is_heard_in_two_micro_turns_running_is_one(bundle: ModelBundle) -> None:
    def heard(*words: str) -> str:
        outlet, control = Outlet(SPEC, bundle.tokenizer), bundle.tokenizer.control
        found: list[events.Event] = []
        for turn, word in enumerate(words):
            tokens = bundle.tokenizer.encode(word) or [control.nothing]
            found += outlet.words(turn, np.array([control.listen]), np.array(tokens))
            outlet, before = Outlet(SPEC, bundle.tokenizer), outlet
            outlet.go_on(before.state())  # on another server, if need be
        return said(found, events.HeardWords)

    assert heard(" what", " is", " is", " five", "", " five", " plus") == " what is five five plus"
    assert heard(" o", "o", "o") == " ooo", "pieces of a word that is spelled are no words"


def test_a_character_of_several_micro_turns_is_told_whole_when_it_is_there_and_dated_by_its_first_byte(
    bundle: ModelBundle,
) -> None:
    tokens = [bundle.tokenizer.encode(piece) for piece in (" caf", "é")]
    assert len(tokens[1]) == 2, "the two bytes of é are two tokens of the tiny vocabulary"
    found = [event for event in told(bundle, " café") if isinstance(event, events.Words)]
    assert "".join(event.text for event in found) == " café"
    last = found[-1]
    first_byte = len(tokens[0])
    assert (last.text, last.turn) == ("é", first_byte + 1)
    assert (last.start_ms, last.end_ms) == (200 * (first_byte + 1), 200 * (first_byte + 3))


def test_a_journal_s_pieces_are_whole_words_again(bundle: ModelBundle) -> None:
    with Journal(None, keep=True) as journal:
        for event in told(bundle, " un café, s'il vous plaît"):
            journal_event(journal, event, 0.2, True)
    assert text_of(journal.events, "word") == text_of(journal.events, "heard") == "un café, s'il vous plaît"
    words = [event for event in whole_words(journal.events) if event["type"] == "word"]
    assert [event["text"] for event in words] == ["un", "café,", "s'il", "vous", "plaît"]
    begun = [event["t"] for event in journal.events if event["type"] == "word" and event["text"][0] == " "]
    assert [event["t"] for event in words] == begun, "each dated by its first piece"


@pytest.mark.parametrize(
    "event",
    [
        events.Started("abc", events.Stream(200, 16_000, 40, 40, 8), 1000, 0.125),
        events.Turn(7, events.Decision.DELEGATE, 12.5, True, 40, 0.25, 2),
        events.Words(7, " café", 1600, 1800),
        events.HeardWords(7, "日", 1400, 1600),
        events.Background(7, 0, "failed", "no answer"),
        events.Background(7, None, "finished", "ten"),
        events.Ended(9, 1, 10.5, 20.25, 40),
    ],
)
def test_an_event_comes_out_of_its_message_as_it_went_in(event: events.Event) -> None:
    assert messages.to_event(messages.to_message(event)) == event


def test_sound_is_float_until_the_door_and_loses_no_more_than_16_bits_there() -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 3200).astype(np.float32)
    there = messages.to_event(messages.to_message(events.Sound(7, 1600, 1800, samples, 0.5)))
    assert (there.turn, there.start_ms, there.end_ms, there.level) == (7, 1600, 1800, 0.5)
    assert there.samples.dtype == np.float32
    np.testing.assert_allclose(there.samples, samples, atol=0.5001 / 32767)


def yields(bundle: ModelBundle, speaks: str, hears: str) -> list[int]:
    """What is yielded in each micro-turn: "s" where the model speaks, "h" where a word of the user is heard."""
    outlet, control = Outlet(SPEC, bundle.tokenizer), bundle.tokenizer.control
    (word,) = bundle.tokenizer.encode(" stop")
    return [
        outlet.yielded(
            turn,
            np.array([control.speak if s == "s" else control.listen]),
            np.array([word if h == "h" else control.nothing]),
        )
        for turn, (s, h) in enumerate(zip(speaks, hears, strict=True))
    ]


@pytest.mark.parametrize(
    ("speaks", "hears", "expected"),
    [
        ("sssss..", ".......", [0] * 7),  # it has finished
        ("sssss..", "...h...", [0, 0, 0, 0, 0, 1, 0]),  # it was cut short, told once
        ("sssss..", ".....h.", [0, 0, 0, 0, 0, 1, 0]),  # with the word that silences it
        ("ssssss.", "..h....", [0] * 7),  # it had gone on after that
        (".sss...", "h......", [0] * 7),  # an answer
        (".ss....", "..h....", [0] * 7),  # the question's last word, heard late
        ("ss.sssss.", ".......h.", [0] * 8 + [2]),  # epochs count
    ],
)
def test_an_epoch_is_yielded_where_words_of_the_user_end_it(
    bundle: ModelBundle, speaks: str, hears: str, expected: list[int]
) -> None:
    assert yields(bundle, speaks, hears) == expected

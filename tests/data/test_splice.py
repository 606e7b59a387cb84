"""Requests spliced from a voice's clips: right numbers, right times, the voice's own sound."""

import numpy as np
import pytest

from tml_jax.data.config import DataConfig
from tml_jax.data.speech_bank import SAMPLE_RATE, SpeechBank
from tml_jax.data.splice import MOST_REPEATED, RANGES, Spliced, sentence, splice
from tml_jax.data.voices import Cast, Speaker
from tml_jax.streams import number_words


@pytest.fixture(scope="module")
def bank():
    return SpeechBank.load("checkpoints/speech_bank")


@pytest.fixture(scope="module")
def speaker(bank) -> Speaker:
    return max(Cast(DataConfig(), bank, "train").speakers, key=lambda s: len(s.family("repeat")))


@pytest.mark.parametrize(("family", "start"), [("repeat", "repeat"), ("timer", "tell"), ("count_down", "count down")])
def test_only_the_numbers_change(bank, speaker, family, start):
    rng = np.random.default_rng(0)
    clip = speaker.family(family)[0]
    spoken = [splice(bank, clip, speaker.clips, rng) for _ in range(20)]
    assert len({s.text for s in spoken}) > 3
    low, high = RANGES[start]
    for one in spoken:
        numbers = [w for w in one.text.split() if w in number_words.UNITS]
        assert 1 <= len(numbers) <= (MOST_REPEATED if family == "repeat" else 1)
        assert all(low <= number_words.from_words(n) <= high for n in numbers)
        assert [w for w in one.text.split() if w not in numbers] == [
            w for w in clip.text.split() if w not in number_words.UNITS
        ]


def test_every_word_is_where_it_says(bank, speaker):
    """The sound of a word in the splice is the sound of that word in some clip of the voice."""
    clip = speaker.family("repeat")[0]
    one = splice(bank, clip, speaker.clips, np.random.default_rng(1))
    assert isinstance(one, Spliced) and one.words[-1].end_s <= len(one.audio) / SAMPLE_RATE
    sources = [(w, bank.audio(c)) for c in speaker.clips for w in c.words]
    for word in one.words:
        begin = round((word.start_s + word.end_s) / 2 * SAMPLE_RATE)
        middle = one.audio[begin : begin + 200]
        candidates = [(w, audio) for w, audio in sources if w.text == word.text]
        centres = [(round((w.start_s + w.end_s) / 2 * SAMPLE_RATE), audio) for w, audio in candidates]
        assert any(
            np.array_equal(middle, audio[c + shift : c + shift + 200]) for c, audio in centres for shift in (-1, 0, 1)
        ), word


def test_what_holds_no_number_stays(bank, speaker):
    clip = speaker.family("stop")[0]
    assert splice(bank, clip, speaker.clips, np.random.default_rng(0)) is clip


def test_a_sentence_that_nobody_recorded(bank, speaker):
    """Of the longest runs: three of them, with the last word from a clip's end where there is one."""
    said = sentence(bank, speaker.clips, "tell me when three repetitions have passed", np.random.default_rng(0))
    assert said is not None and said.text == "tell me when three repetitions have passed"
    starts = [word.start_s for word in said.words]
    assert starts == sorted(starts) and said.words[-1].end_s <= len(said.audio) / SAMPLE_RATE
    whole = speaker.family("stop")[0]
    again = sentence(bank, speaker.clips, whole.text, np.random.default_rng(0))
    assert again is not None and any(
        np.array_equal(again.audio, bank.audio(clip)) for clip in speaker.clips if clip.text == whole.text
    )
    assert sentence(bank, speaker.clips, "tell me when pigs fly", np.random.default_rng(0)) is None

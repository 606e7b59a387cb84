"""Forced alignment finds words where they are: in recordings put together, of which it is known."""

import numpy as np

from tml_jax.data.alignment import load_aligner, sounding_span
from tml_jax.data.pipeline import open_bank
from tml_jax.data.speech_bank import SAMPLE_RATE
from tml_jax.streams import number_words


def test_words_are_found_where_they_are():
    bank, rng, align = open_bank("checkpoints/speech_bank"), np.random.default_rng(0), load_aligner()
    numbers, off_ms = (*number_words.UNITS, *number_words.TENS), list[float]()
    for _ in range(60):
        words, sound, starts = [str(word) for word in rng.choice(numbers, 4)], np.zeros(0, np.float32), list[float]()
        for word in words:
            piece = bank.audio(bank.select(kind="assistant", text=word)[0])
            starts.append((len(sound) + sounding_span(piece)[0]) / SAMPLE_RATE)
            sound = np.concatenate([sound, piece, np.zeros(round(rng.uniform(0.0, 0.08) * SAMPLE_RATE), np.float32)])
        found = align(sound, words)
        assert found is not None
        off_ms += [1000 * abs(word.start_s - start) for word, start in zip(found, starts, strict=True)][1:]
    median, p90 = np.percentile(off_ms, [50, 90])
    print(f"{len(off_ms)} words, off by {median:.0f} ms at the median, {p90:.0f} at the 90th percentile")
    assert median < 30
    assert p90 < 180


def test_what_was_not_said_is_not_found():
    bank, align = open_bank("checkpoints/speech_bank"), load_aligner()
    sound = bank.audio(bank.select(kind="assistant", text="seven")[0])
    assert align(sound, ["seven", "12"]) is None
    assert align(np.zeros(SAMPLE_RATE, np.float32), ["seven"]) is None
    assert align(sound, ["seven", "twelve", "nineteen", "thirty", "forty", "fifty"]) is None

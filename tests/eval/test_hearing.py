"""The outside ear: errors counted by hand; pocketsphinx understands the assistant's recordings."""

import numpy as np
import pytest

from tml_jax.data.pipeline import open_bank
from tml_jax.eval.hearing import Ear, errors
from tml_jax.eval.recorded import RATE, Chunk, Recorded


@pytest.mark.parametrize(
    ("said", "heard", "wrong"),
    [
        ("one two three", "one two three", 0),
        ("one two three", "one three", 1),
        ("one two", "one five two", 1),
        ("one two three", "two three one", 2),
        ("", "one two", 2),
        ("one two", "", 2),
    ],
)
def test_errors(said, heard, wrong):
    assert errors(said.split(), heard.split()) == wrong


def test_recordings_are_understood_and_noise_is_not():
    bank = open_bank("checkpoints/speech_bank")
    ear, words = Ear(bank), ["seven", "twelve", "nineteen"]
    said = np.concatenate([bank.audio(bank.select(kind="assistant", text=word)[0]) for word in words])
    ends = np.cumsum([bank.select(kind="assistant", text=word)[0].duration_s for word in words])
    chunks = [Chunk(w, float(s) + 1.0, float(e) + 1.0) for w, s, e in zip(words, [0.0, *ends], ends, strict=False)]
    hiss = 0.1 * np.random.default_rng(0).standard_normal(len(said)).astype(np.float32)
    heard = []
    for sound in (said, hiss):
        output = np.pad(sound, RATE)
        (one,) = ear.misheard(Recorded("a", output, output, len(output) / RATE, chunks=chunks))
        assert one.words == 3 and one.recordings <= 1
        heard.append(one.system)
    assert heard[0] <= 1 and heard[1] == 3
    silent = Recorded("a", output, None, 4.0, chunks=chunks)
    other = Recorded("a", output, output, 4.0, chunks=[Chunk("okay", 1.0, 1.4)])
    assert not [*ear.misheard(silent), *ear.misheard(other)], "no sound, and no number"

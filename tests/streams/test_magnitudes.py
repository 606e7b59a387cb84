"""The vocoder's voice: linear magnitudes from mel ones, and the sound that is made of them."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.streams.voice import voice
from tml_jax.streams import magnitudes, speech
from tml_jax.streams.magnitudes import CONTEXT
from tml_jax.streams.micro_turn import StreamSpec
from tml_jax.streams.vocoder import Vocoder, placed

SPEC = StreamSpec()
FILTERS = magnitudes.Filters.of(SPEC)


def weights(scale=0.05):
    rng = np.random.default_rng(0)
    return placed({n: scale * rng.standard_normal(s, np.float32) for n, s in magnitudes.shapes(SPEC).items()})


def blocks(seconds=2):
    return speech.mel(voice(seconds), SPEC).reshape(-1, SPEC.mel_frames, SPEC.mel_bins)


def play(vocoder, pushed):
    return np.concatenate([vocoder.push(block) for block in (*pushed, None)])


def mel_magnitudes(seconds=1):
    return jnp.asarray(10 ** (speech.mel(voice(seconds), SPEC) * speech.STD + speech.MEAN)) - speech.FLOOR


def test_a_voice_that_knows_nothing_is_the_filters():
    mel = mel_magnitudes()
    nothing = {name: jnp.zeros(shape) for name, shape in magnitudes.shapes(SPEC).items()}
    np.testing.assert_allclose(magnitudes.estimate(nothing, FILTERS, mel), FILTERS.smooth(mel[CONTEXT:]), rtol=1e-5)


def test_an_estimate_sees_its_context_and_no_future():
    mel, known = mel_magnitudes(), weights()
    whole = magnitudes.estimate(known, FILTERS, mel)
    assert whole.shape == (len(mel) - CONTEXT, SPEC.mel_window // 2 + 1)
    np.testing.assert_allclose(magnitudes.estimate(known, FILTERS, mel[7 : 13 + CONTEXT]), whole[7:13], rtol=1e-4)
    changed = magnitudes.estimate(known, FILTERS, mel.at[20].add(1.0))
    np.testing.assert_array_equal(changed[: 20 - CONTEXT], whole[: 20 - CONTEXT])
    assert (changed[20 - CONTEXT :] != whole[20 - CONTEXT :]).any(axis=1)[: CONTEXT + 1].all()


def test_silence_stays_silence():
    vocoder, silent = Vocoder(SPEC, weights()), np.full((SPEC.mel_frames, SPEC.mel_bins), speech.SILENCE, np.float32)
    for frames in (None, silent, None):
        assert not vocoder.push(frames).any()
    sound = play(vocoder, [*blocks(1), silent, silent])
    assert np.abs(sound).max() > 0.01
    assert not vocoder.push(silent).any()


def test_sound_goes_on_elsewhere_bit_for_bit():
    pushed, known = blocks(), weights()
    whole = play(Vocoder(SPEC, known), pushed)
    here, there = Vocoder(SPEC, known), Vocoder(SPEC, known)
    parts = [here.push(block) for block in pushed[:4]]
    there.go_on(here.state())
    np.testing.assert_array_equal(np.concatenate([*parts, play(there, pushed[4:])]), whole)
    np.testing.assert_array_equal(play(there, pushed), whole)  # after a silent micro-turn nothing is remembered


@pytest.mark.parametrize("scale", [0.0, 0.05])
def test_sound_has_the_mel_asked_for_whatever_the_voice_believes(scale):
    target, vocoder = speech.mel(voice(2), SPEC), Vocoder(SPEC, weights(scale))
    sound = play(vocoder, target.reshape(-1, SPEC.mel_frames, SPEC.mel_bins))
    assert np.abs(sound).max() <= 1
    heard = speech.mel(sound[vocoder.delay :], SPEC)[: len(target)]
    wanted, got = (10 ** (frames * speech.STD + speech.MEAN) for frames in (target, heard))
    assert np.linalg.norm(got - wanted) < 0.15 * np.linalg.norm(wanted)

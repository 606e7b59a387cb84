"""Log mel frames, and the streaming vocoder."""

import threading
import time

import numpy as np
import pytest

from tests.streams.voice import voice
from tml_jax.streams import speech
from tml_jax.streams.micro_turn import StreamSpec
from tml_jax.streams.vocoder import Vocoder

SPEC = StreamSpec()
HOP, TURN = SPEC.mel_hop, SPEC.samples


def play(vocoder, frames):
    """The sound of the frames and of one silent micro-turn after them."""
    blocks = frames.reshape(-1, SPEC.mel_frames, SPEC.mel_bins)
    return np.concatenate([*map(vocoder.push, blocks), vocoder.push(None)])


def magnitude(frames):
    return 10 ** (frames * speech.STD + speech.MEAN)


@pytest.mark.parametrize("window", [1000, 960])
def test_windows_that_do_not_add_up_are_refused(window):
    with pytest.raises(ValueError, match=f"mel_window={window} must be a multiple of mel_hop=320, 4 or more"):
        StreamSpec(mel_window=window)


def test_frames_tile_the_micro_turn():
    sound = voice(2)
    frames = speech.mel(sound, SPEC)
    assert frames.shape == (100, 80)
    assert frames.dtype == np.float32
    np.testing.assert_allclose(speech.mel(sound[HOP * 30 :], SPEC)[2:], frames[32:], atol=1e-5)
    assert speech.mel(sound[: TURN + 1], SPEC).shape == (11, 80)
    assert speech.mel(sound[:0], SPEC).shape == (0, 80)


@pytest.mark.parametrize("sample", [0, 159, 7 * HOP + 1, 8 * HOP - 1, TURN - 1])
def test_a_click_is_loudest_in_the_frame_whose_samples_hold_it(sample):
    sound = np.zeros(TURN, np.float32)
    sound[sample] = 1
    assert speech.mel(sound, SPEC).mean(axis=1).argmax() == sample // HOP


def test_silence_is_a_constant_and_speech_is_about_normal():
    assert (speech.mel(np.zeros(TURN, np.float32), SPEC) == np.float32(speech.SILENCE)).all()
    frames = speech.mel(voice(4), SPEC)
    assert frames.min() >= speech.SILENCE - 1e-6
    assert abs(frames.mean()) < 1
    assert 0.5 < frames.std() < 1.5


@pytest.mark.parametrize("seed", range(2))
def test_sound_has_the_mel_asked_for(seed):
    target = speech.mel(voice(2, seed), SPEC)
    vocoder = Vocoder(SPEC)
    heard = speech.mel(play(vocoder, target)[vocoder.delay :], SPEC)[: len(target)]
    wanted, got = magnitude(target), magnitude(heard)
    assert np.linalg.norm(got - wanted) < 0.1 * np.linalg.norm(wanted)
    loud = wanted.max(axis=1) > 0.01
    decibels = 20 * speech.STD * np.abs(heard - target)[loud].mean()
    assert decibels < 2
    # The iterations earn their keep.
    crude = speech.mel(play(Vocoder(SPEC, num_iterations=0), target)[vocoder.delay :], SPEC)[: len(target)]
    assert 20 * speech.STD * np.abs(crude - target)[loud].mean() > 3 * decibels


def test_a_click_is_heard_after_the_delay():
    sound = np.zeros(3 * TURN, np.float32)
    sound[TURN + 1000] = 1
    vocoder = Vocoder(SPEC)
    loudest = np.abs(play(vocoder, speech.mel(sound, SPEC))).argmax()
    assert abs(loudest - (TURN + 1000 + vocoder.delay)) < HOP


def test_micro_turns_join_without_a_step():
    time = np.arange(20 * TURN) / 16_000
    phase = 2 * np.pi * np.cumsum(200 + 60 * np.sin(2 * np.pi * 1.7 * time)) / 16_000
    glide = (0.1 * sum(np.sin(k * phase + k) / k for k in range(1, 6))).astype(np.float32)
    bends = np.abs(np.diff(play(Vocoder(SPEC), speech.mel(glide, SPEC)), 2))
    near = [
        np.mean([bends[k - 3 : k + 2].max() for k in range(TURN + at, 19 * TURN, TURN)]) for at in range(0, TURN, 400)
    ]
    assert near[0] < 1.5 * np.mean(near[1:])  # at the joints as anywhere else


def test_stopping_fades_out_at_once():
    tone = (0.3 * np.sin(2 * np.pi * 331 * np.arange(2 * TURN) / 16_000)).astype(np.float32)
    vocoder = Vocoder(SPEC)
    sound = play(vocoder, speech.mel(tone, SPEC))
    tail = sound[2 * TURN :]
    assert np.abs(tail[:100]).max() > 0.1  # what was still to be played
    assert not tail[960:].any()
    assert np.abs(np.diff(sound))[2 * TURN - 100 :].max() < 1.5 * np.abs(np.diff(tone)).max()
    assert np.abs(tail[700:]).max() < 0.03
    assert not vocoder.push(None).any()


def test_silence_costs_and_sounds_nothing():
    vocoder = Vocoder(SPEC)
    silent = np.full((SPEC.mel_frames, SPEC.mel_bins), speech.SILENCE, np.float32)
    for frames in (None, silent, None):
        sound = vocoder.push(frames)
        assert sound.shape == (TURN,)
        assert sound.dtype == np.float32
        assert not sound.any()


def test_same_frames_same_bits():
    frames = speech.mel(voice(1), SPEC)
    vocoder = Vocoder(SPEC)
    first = play(vocoder, frames)
    np.testing.assert_array_equal(play(vocoder, frames), first)  # after a silent micro-turn nothing is remembered
    vocoder.push(frames[20:30])
    vocoder.reset()
    np.testing.assert_array_equal(play(vocoder, frames), first)
    np.testing.assert_array_equal(play(Vocoder(SPEC), frames), first)


def test_sound_does_not_wait_for_who_holds_pythons_lock():
    """A vocoder in numpy gives the lock up, and waits for it again, three hundred times: 1 s beside two threads."""
    vocoder, blocks = Vocoder(SPEC), speech.mel(voice(3), SPEC).reshape(-1, SPEC.mel_frames, SPEC.mel_bins)
    over, took_s = threading.Event(), []

    def compute():
        while not over.is_set():
            sum(range(1000))

    threads = [threading.Thread(target=compute) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for block in blocks:
            began = time.monotonic()
            vocoder.push(block)
            took_s.append(time.monotonic() - began)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert np.median(took_s) < 0.2, took_s


def test_frames_that_are_no_numbers_stay_in_their_place():
    frames = speech.mel(voice(1), SPEC)
    vocoder = Vocoder(SPEC)
    bad = frames[:10].copy()
    bad[3, 5], bad[4, 6], bad[5] = np.nan, np.inf, 1e30
    sound = np.concatenate([vocoder.push(bad), vocoder.push(frames[10:20]), vocoder.push(None)])
    assert np.isfinite(sound).all()
    assert np.abs(sound).max() <= 1
    np.testing.assert_array_equal(play(vocoder, frames), play(Vocoder(SPEC), frames))

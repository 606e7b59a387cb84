"""The input front end: Inkling's levels, and the same bits streaming as offline."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.inkling.feature_extraction_inkling import InklingFeatureExtractor

from tests.streams.voice import voice
from tml_jax.streams.dmel import MAX_LOG10, MIN_LOG10, DmelStream, dmel
from tml_jax.streams.micro_turn import StreamSpec

SPEC = StreamSpec()
SOUND = np.concatenate([voice(6), np.zeros(7000, np.float32), np.float32(0.3) * voice(2, seed=1)[:-123]])


def reference(log_mel, dtype):
    """Levels and distance to the next boundary, as `InklingProcessor` makes them (which cannot be made alone)."""
    centers = torch.linspace(MIN_LOG10, MAX_LOG10, 16, dtype=torch.float64).to(dtype)
    clamped = log_mel.clamp(MIN_LOG10, MAX_LOG10)
    levels = (clamped.unsqueeze(-1) - centers).abs().argmin(dim=-1)
    boundaries = (centers[1:] + centers[:-1]) / 2
    return levels.numpy(), (clamped.unsqueeze(-1) - boundaries).abs().amin(dim=-1).numpy()


def test_levels_are_inklings():
    log_mel = InklingFeatureExtractor()(SOUND, sampling_rate=16_000, return_tensors="pt")["input_features"][0]
    levels, distance = reference(log_mel, torch.float32)
    ours = dmel(SOUND, SPEC)
    assert ours.shape == levels.shape == (-(-len(SOUND) // 800), 80)
    assert ours.dtype == np.int32
    assert len(np.unique(ours)) > 8
    assert (distance < 1e-4).sum() < 20
    np.testing.assert_array_equal(ours[distance >= 1e-4], levels[distance >= 1e-4])


def test_levels_are_exact_in_double_precision():
    extractor = InklingFeatureExtractor()
    extractor.window, extractor.mel_filters = extractor.window.double(), extractor.mel_filters.double()
    log_mel = extractor._torch_extract_fbank_features(torch.from_numpy(SOUND).double()[None])[0]
    levels, distance = reference(log_mel, torch.float64)
    assert distance.min() > 1e-10
    np.testing.assert_array_equal(dmel(SOUND, SPEC), levels)


@pytest.mark.parametrize("size", [1, 7, 799, 800, 801, 3200])
def test_streaming_is_offline_bit_for_bit(size):
    sound = SOUND[: 16_000 if size < 10 else None]
    stream = DmelStream(SPEC)
    frames = np.concatenate([stream.push(sound[i : i + size]) for i in range(0, len(sound), size)])
    whole = len(sound) // 800
    assert len(frames) == whole
    np.testing.assert_array_equal(frames, dmel(sound, SPEC)[:whole])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 6000), max_size=12))
def test_streaming_is_offline_for_any_pieces(sizes):
    stream = DmelStream(SPEC)
    pieces = np.split(SOUND, np.minimum(np.cumsum(sizes), len(SOUND)))
    frames = np.concatenate([stream.push(piece) for piece in pieces])
    np.testing.assert_array_equal(frames, dmel(SOUND, SPEC)[: len(SOUND) // 800])


def test_future_does_not_matter():
    changed = SOUND.copy()
    changed[32_000:] = 0.5
    np.testing.assert_array_equal(dmel(changed, SPEC)[:40], dmel(SOUND, SPEC)[:40])
    assert (dmel(changed, SPEC)[40] != dmel(SOUND, SPEC)[40]).any()


def test_silence_is_constant_and_no_sound_is_no_frame():
    levels = dmel(np.zeros(4000, np.float32), SPEC)
    assert (levels == levels[0]).all()
    assert dmel(np.zeros(0, np.float32), SPEC).shape == (0, 80)


def test_reset_forgets():
    stream = DmelStream(SPEC)
    stream.push(SOUND[:5000])
    stream.reset()
    np.testing.assert_array_equal(stream.push(SOUND[:8000]), dmel(SOUND[:8000], SPEC))

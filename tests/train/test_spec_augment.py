import jax
import numpy as np
import pytest

from tml_jax.train.spec_augment import SpecAugment, change_sound

RATE, BINS = 16_000, 80


def changed(levels: np.ndarray, seed: int = 0, **how) -> np.ndarray:
    return np.asarray(change_sound(levels, SpecAugment(**how), RATE, jax.random.key(seed)))


@pytest.fixture
def levels() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 16, (6, 20, 4, BINS)).astype(np.uint8)


def test_nothing_asked_for_changes_nothing(levels):
    assert np.array_equal(changed(levels), levels)


def test_bands_are_silent_for_a_stretch_and_differ_between_conversations(levels):
    out = changed(levels, bands=2, band_bins=10, stretch=8)
    silent = out == 0
    assert np.array_equal(out[~silent], levels[~silent])
    assert (silent == silent[:, :, :1]).all(), "a band is silent in every frame of a micro-turn"
    for start, stop in ((0, 8), (8, 16), (16, 20)):
        assert (silent[:, start:stop] == silent[:, start : start + 1]).all()
    lost = silent[:, ::8, 0].sum(axis=-1)
    assert lost.max() <= 20 and 3 < lost.mean() < 10, "two bands of 0 to 10 bins, some over each other"
    assert len({row.tobytes() for row in silent}) == len(silent)
    assert not np.array_equal(silent, changed(levels, 1, bands=2, band_bins=10, stretch=8) == 0)


def test_so_many_frames_are_silent(levels):
    silent = changed(levels, frames=0.25) == 0
    assert (silent == silent[..., :1]).all()
    assert 0.15 < silent[..., 0].mean() < 0.35


def test_a_warp_moves_every_sound_of_a_conversation_by_one_ratio():
    """A tone at each frequency: where it is found, in hertz, is where it was times the conversation's own ratio."""
    ramp = np.broadcast_to(np.arange(BINS, dtype=np.uint8), (40, 3, 4, BINS))
    source = changed(ramp, warp=0.2)
    assert (source == source[:, :1, :1]).all()
    corners = np.linspace(0, 15 + 27 * np.log(8) / np.log(6.4), BINS + 2)[1:-1]
    hertz = np.where(corners < 15, corners * 200 / 3, 1000 * 6.4 ** ((corners - 15) / 27))
    ratios = hertz[source[:, 0, 0, 20:70]] / hertz[20:70]
    assert np.ptp(ratios, axis=1).max() < 0.1, "within the rounding to a bin"
    means = ratios.mean(axis=1)  # a bin is 2.6 % of its frequency
    assert means.min() < 0.87 and means.max() > 1.13 and means.min() > 0.78 and means.max() < 1.22


@pytest.mark.parametrize("wrong", [{"warp": 0.5}, {"warp": -0.1}, {"frames": 1.0}, {"bands": -1}, {"stretch": 0}])
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=r"not|below"):
        SpecAugment(**wrong)

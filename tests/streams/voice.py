"""A made-up voice, so that the tests need no recording."""

import numpy as np

RATE = 16_000


def voice(seconds: float, seed: int = 0) -> np.ndarray:
    """Syllables: gliding harmonics under two moving formants, a hiss before each, pauses; float32 at 16 kHz."""
    rng = np.random.default_rng(seed)
    n = int(seconds * RATE)
    t = np.arange(n) / RATE
    pitch = 160 + 40 * np.sin(2 * np.pi * 0.7 * t + rng.uniform(0, 6))
    formants = 600 + 250 * np.sin(2 * np.pi * 1.3 * t), 1700 + 600 * np.sin(2 * np.pi * 0.9 * t + 1)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    voiced = np.zeros(n)
    for k in range(1, 25):
        gain = sum(1 / (1 + ((k * pitch - formant) / 150) ** 2) for formant in formants)
        voiced += (gain + 0.02) / np.sqrt(k) * np.sin(k * phase + k)
    syllable = np.clip(np.sin(2 * np.pi * 2.5 * t), 0, 1) ** 0.5 * (np.sin(2 * np.pi * 0.4 * t) > -0.8)
    hiss = np.diff(rng.standard_normal(n + 1)) * np.clip(np.sin(2 * np.pi * 2.5 * t + 1.2), 0, 1) ** 8
    return (0.12 * voiced * syllable + 0.02 * hiss + 1e-4 * rng.standard_normal(n)).astype(np.float32)

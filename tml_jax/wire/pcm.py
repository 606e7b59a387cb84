"""Samples as 16-bit little-endian integers, and back."""

import numpy as np


def to_pcm(samples: np.ndarray) -> np.ndarray:
    """Float in [-1, 1] -> int16."""
    return np.clip(np.round(samples * 32767), -32768, 32767).astype("<i2")


def from_pcm(pcm: bytes) -> np.ndarray:
    """The bytes of `to_pcm` -> float32."""
    return np.frombuffer(pcm, "<i2").astype(np.float32) / 32767

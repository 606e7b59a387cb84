"""When the known words of a sound are said: forced alignment.

By pocketsphinx (Huggins-Daines et al. 2006; extra `speech`) with its own model of American English. It dates the words
of the speech bank, and those of a transcript that has no times.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from tml_jax.data.speech_bank import SAMPLE_RATE, Word
from tml_jax.data.speech_engines import Waveform, optional_import

FRAME = SAMPLE_RATE // 100
# Sound begins where a 10 ms frame comes within this of the loudest; a weak f or h lies 30 dB down.
_SILENCE_DB = -38.0
_PAD_S = 0.25
# Digital silence upsets the aligner's cepstral normalisation: without this hiss it loses half of espeak's clips.
_HISS = 1e-3
# Outside these bounds the engine has stumbled (dropped a word, or babbled), or the alignment has.
_SECONDS_PER_WORD = (0.015, 1.6)

Aligner = Callable[[Waveform, Sequence[str]], list[Word] | None]


def sounding_span(samples: Waveform) -> tuple[int, int]:
    """First and one-past-last sample of the sound, at 10 ms steps; (0, 0) for silence."""
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
    if not len(frames):
        return 0, 0
    level = 20 * np.log10(np.sqrt(np.mean(frames**2, axis=1)) + 1e-6)
    if level.max() < -80:
        return 0, 0
    loud = np.flatnonzero(level > level.max() + _SILENCE_DB)
    return int(loud[0]) * FRAME, int(loud[-1] + 1) * FRAME


def load_aligner() -> Aligner:
    """An aligner: a sound at the bank's rate and its words -> when each is said; None where they are not all found.

    Of running speech it finds onsets to 9 ms at the median and 40 ms at the 90th percentile, of words put together with
    gaps between them to 14 and 168 ms: a gap goes to the word after it.

    Raises:
      RuntimeError: pocketsphinx is not installed.
    """
    decoder = optional_import("pocketsphinx").Decoder(samprate=SAMPLE_RATE, lm=None, loglevel="FATAL")
    pad = round(_PAD_S * SAMPLE_RATE)

    def align(samples: Waveform, words: Sequence[str]) -> list[Word] | None:
        start, end = sounding_span(samples)
        bounds = (start / SAMPLE_RATE, end / SAMPLE_RATE)
        if not end:
            return None
        if len(words) == 1:  # the sound's own bounds are sharper than any alignment
            return [Word(words[0], *bounds)]
        heard = np.pad(samples, pad)
        heard = heard + _HISS * np.random.default_rng(0).normal(size=len(heard))
        try:
            decoder.set_align_text(" ".join(words))
            decoder.start_utt()
            decoder.process_raw(_pcm(heard), full_utt=True)
            decoder.end_utt()
            segments = [s for s in decoder.seg() or () if s.word.split("(")[0] in words]
        except RuntimeError:  # no path through the words: the sound isn't what the text says
            return None
        if [s.word.split("(")[0] for s in segments] != list(words):
            return None
        found = [
            Word(w, s.start_frame / 100 - _PAD_S, (s.end_frame + 1) / 100 - _PAD_S)
            for w, s in zip(words, segments, strict=True)
        ]
        found[0] = dataclasses.replace(found[0], start_s=bounds[0])
        found[-1] = dataclasses.replace(found[-1], end_s=bounds[1])
        low, high = _SECONDS_PER_WORD
        return found if all(low <= w.end_s - w.start_s <= high for w in found) else None

    return align


def _pcm(samples: Waveform) -> bytes:
    return (np.clip(samples, -1, 1) * 32767).astype(np.int16).tobytes()

"""Whether what a system says can be understood: an outside recogniser's word error, beside its own on real recordings.

The recogniser is pocketsphinx (Huggins-Daines et al. 2006; extra `speech`) with its own model of American English,
listening for numbers in any order: other utterances are left out. It is no good ear. So each utterance is also put
together from the recordings of the assistant's voice that the model learned from, word for word, and what counts is how
much more often it mishears the system than these.
"""

import importlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tml_jax.data.config import DataConfig
from tml_jax.data.speech_bank import SpeechBank
from tml_jax.data.voices import Cast
from tml_jax.eval.recorded import RATE, Chunk, Recorded
from tml_jax.streams import number_words

_APART_S = 0.6  # a longer silence parts utterances
_AROUND_S = 0.2  # silence that the recogniser gets before and after
_HISS = 3e-3  # with less of it, it mishears more
_NUMBERS = (*number_words.UNITS, *number_words.TENS)
# Without a price on words it hears more than were said; with narrower beams it hears nothing of some utterances.
_SEARCH = {"wip": 1e-5, "beam": 1e-70, "pbeam": 1e-70, "wbeam": 1e-50, "cmn": "batch"}


class Misheard(NamedTuple):
    """One utterance: its words, and how many of them were misheard of the system and of the recordings."""

    words: int
    system: int
    recordings: int


class Ear:
    """A recogniser, and the assistant's recordings in a bank, joined with gaps drawn by `seed`.

    Raises:
      ImportError: pocketsphinx is not installed.
      ValueError: the bank has no assistant.
    """

    def __init__(self, bank: SpeechBank, seed: int = 0) -> None:
        pocketsphinx = importlib.import_module("pocketsphinx")
        self._cast, self._rng = Cast(DataConfig(), bank, "heldout"), np.random.default_rng(seed)
        self._decoder = pocketsphinx.Decoder(samprate=RATE, lm=None, loglevel="FATAL", **_SEARCH)
        grammar = f"#JSGF V1.0; grammar said; public <said> = ( {' | '.join(_NUMBERS)} )+ ;"
        self._decoder.add_jsgf_string("said", grammar)
        self._decoder.activate_search("said")

    def misheard(self, case: Recorded) -> Iterator[Misheard]:
        """What was misheard of each utterance of a case, where its sound was kept."""
        for chunks in _utterances(case.chunks or ()):
            words = [chunk.text for chunk in chunks]
            if case.output is None or not set(words) <= set(_NUMBERS):
                continue
            start, end = chunks[0].start_s, max(chunk.end_s or chunk.start_s for chunk in chunks)
            said = case.output[round(max(0.0, start - _AROUND_S) * RATE) : round((end + _AROUND_S) * RATE)]
            own = np.concatenate([self._recording(word) for word in words])
            yield Misheard(len(words), *(errors(words, self.heard(sound)) for sound in (said, own)))

    def _recording(self, word: str) -> np.ndarray:
        gap = np.zeros(int(self._rng.uniform(0.0, 0.08) * RATE), np.float32)
        return np.concatenate([self._cast.assistant(word, self._rng), gap])

    def heard(self, sound: np.ndarray) -> list[str]:
        """The words in a sound, float32 [samples] at 16 kHz."""
        sound = np.pad(sound, round(_AROUND_S * RATE))
        sound = sound + _HISS * np.random.default_rng(0).standard_normal(len(sound))
        self._decoder.start_utt()
        self._decoder.process_raw((np.clip(sound, -1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return found.hypstr.split() if found else []


def _utterances(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    found: list[list[Chunk]] = []
    for chunk in chunks:
        last = found[-1][-1] if found else None
        if last is not None and chunk.start_s - (last.end_s or last.start_s) < _APART_S:
            found[-1].append(chunk)
        else:
            found.append([chunk])
    return found


def errors(said: Sequence[str], heard: Sequence[str]) -> int:
    """Words put in, left out or taken for others: the edit distance (Levenshtein 1966) of two texts."""
    row = np.arange(len(heard) + 1)
    for i, word in enumerate(said, 1):
        last, row[0] = row.copy(), i
        for j, other in enumerate(heard, 1):
            row[j] = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (word != other))
    return int(row[-1])

"""New requests from a voice's clips: the same sentence with other numbers, cut in between words.

A voice has a few dozen clips, and a model that hears them ten thousand times learns them by heart: it knows the
sentence by its first word. Numbers taken from the voice's other clips make every request new.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tml_jax.data.speech_bank import SAMPLE_RATE, Clip, SpeechBank, Word
from tml_jax.streams import number_words

FADE = 80  # samples at a cut
MOST_REPEATED = 4  # numbers in "repeat ... please", as in the bank's own phrases


@dataclasses.dataclass(frozen=True, eq=False)
class Spliced:
    """Something said that is no clip of the bank: as `Clip`, with its sound at `SAMPLE_RATE`."""

    text: str
    words: tuple[Word, ...]
    audio: np.ndarray


_Piece = tuple[Clip, int]  # a clip and the index of a word in it


RANGES = {"repeat": (0, 9), "count to": (3, 20), "count down": (3, 10), "tell": (2, 15), "say": (2, 8), "what": (1, 20)}
"""Which numbers a sentence may hold, by its beginning."""


def _numbers(clip: Clip) -> list[int]:
    return [i for i, word in enumerate(clip.words) if word.text in number_words.UNITS]


def _is_last(piece: _Piece) -> bool:
    return piece[1] == len(piece[0].words) - 1


def splice(bank: SpeechBank, clip: Clip, donors: Sequence[Clip], rng: np.random.Generator) -> Clip | Spliced:
    """The request `clip` with numbers from `donors`, clips of the same voice; `clip` itself where it has none.

    Talk gives no numbers: inside a fluent sentence they are said too loosely to stand in a request.

    A number at the end of a sentence sounds otherwise than one inside it: each comes from a like place. "repeat"
    gets as many numbers as it likes, up to `MOST_REPEATED`; other sentences keep their form.
    """
    slots = _numbers(clip)
    low, high = next((r for start, r in RANGES.items() if clip.text.startswith(start)), (0, -1))
    pool = [(donor, i) for donor in donors if donor.kind != "talk" for i in _numbers(donor)]
    pool = [(donor, i) for donor, i in pool if low <= number_words.from_words(donor.words[i].text) <= high]

    def draw(last: bool) -> _Piece:
        like = [piece for piece in pool if _is_last(piece) == last]
        return like[int(rng.integers(len(like)))]

    pieces: list[_Piece] = [(clip, i) for i in range(len(clip.words))]
    if not slots or any(piece not in pool for piece in (pieces[i] for i in slots)):
        return clip
    if clip.words[0].text == "repeat":
        pieces[slots[0] : slots[-1] + 1] = [draw(False) for _ in range(int(rng.integers(1, MOST_REPEATED + 1)))]
    else:
        for slot in slots:
            pieces[slot] = draw(_is_last(pieces[slot]))
    return _join(bank, pieces)


def sentence(bank: SpeechBank, clips: Sequence[Clip], text: str, rng: np.random.Generator) -> Spliced | None:
    """`text` in a voice that has no clip of it: put together of the longest runs of its words in `clips`, but talk.

    Returns:
      What is said, or None where the voice lacks a word.
    """
    told = [(clip, [word.text for word in clip.words]) for clip in clips if clip.kind != "talk"]
    rest, pieces = text.split(), list[_Piece]()
    while rest:
        starts = [(clip, i, _alike(words[i:], rest)) for clip, words in told for i in range(len(words))]
        longest = max((length for *_, length in starts), default=0)
        if not longest:
            return None
        # The last word of a clip falls, as the last one of a sentence does.
        best = [(c, i) for c, i, length in starts if length == longest]
        like = [(c, i) for c, i in best if (i + longest == len(c.words)) == (longest == len(rest))] or best
        clip, first = like[int(rng.integers(len(like)))]
        pieces += [(clip, first + k) for k in range(longest)]
        rest = rest[longest:]
    return _join(bank, pieces)


def _alike(words: Sequence[str], others: Sequence[str]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(words, others, strict=False)) if a != b), min(len(words), len(others))
    )


def _join(bank: SpeechBank, pieces: Sequence[_Piece]) -> Spliced:
    audio, words, length = [], [], 0
    fade = np.linspace(1, 0, FADE, dtype=np.float32)
    for place, (clip, i) in enumerate(pieces):
        start, end = _cut(clip, i), _cut(clip, i + 1)
        sound = bank.audio(clip)[start:end].copy()
        if place and pieces[place - 1] != (clip, i - 1):
            sound[:FADE] *= fade[::-1][: len(sound)]
        if place + 1 < len(pieces) and pieces[place + 1] != (clip, i + 1):
            sound[-FADE:] *= fade[-len(sound) :]
        word, shift = clip.words[i], (length - start) / SAMPLE_RATE
        words.append(Word(word.text, word.start_s + shift, word.end_s + shift))
        audio.append(sound)
        length += len(sound)
    return Spliced(" ".join(word.text for word in words), tuple(words), np.concatenate(audio))


def _cut(clip: Clip, i: int) -> int:
    """Where word i of a clip begins, halfway from the word before: samples."""
    if i == 0:
        return 0
    if i == len(clip.words):
        return clip.num_samples
    return round((clip.words[i - 1].end_s + clip.words[i].start_s) / 2 * SAMPLE_RATE)

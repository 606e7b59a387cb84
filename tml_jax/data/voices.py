"""Who speaks: the users of a split, each with clips by family, and the assistant's words, each in several takes."""

import collections
import functools

import numpy as np

from tml_jax.data import augment
from tml_jax.data.config import DataConfig
from tml_jax.data.speech_bank import Clip, SpeechBank

_FAMILIES = {
    "repeat": "repeat ",
    "count_to": "count to ",
    "count_down": "count down ",
    "timer": "tell me when ",
    "beeper": "say beep every ",
    "repetitions": "count the repetitions",
    "delegate": "what ",
    "cue": "say beep when ",
    "shadow": "say every digit as ",
    "translate": "say every digit in ",
    "elapsed": "how long ",
}
_GREETINGS = {"hello": "hello", "good morning": "good morning", "how are you": "fine thanks"}
_STOPS = ("stop", "please stop", "be quiet", "that is enough")
_BACKCHANNELS = ("yeah", "okay", "right")
_OTHER_ENGINE = 0.05  # what the voices of an engine weigh that the config doesn't name


def family_of(clip: Clip) -> str:
    """The family of a user's clip: what it asks for."""
    if clip.kind not in ("command", "request"):
        backchannel = clip.kind == "filler" and clip.text in _BACKCHANNELS
        return "backchannel" if backchannel else clip.kind
    if clip.text in _STOPS:
        return "stop"
    if clip.text in _GREETINGS:
        return "greeting"
    return next((name for name, start in _FAMILIES.items() if clip.text.startswith(start)), "other")


def reply_to_greeting(text: str) -> str:
    """What the model says to a greeting."""
    return _GREETINGS[text]


class Speaker:
    """One user's voice: its clips by family."""

    def __init__(self, name: str, clips: list[Clip]) -> None:
        self.name, self.clips = name, clips
        self._families: dict[str, list[Clip]] = collections.defaultdict(list)
        for clip in clips:
            self._families[family_of(clip)].append(clip)

    def family(self, name: str) -> list[Clip]:
        """Its clips of a family, in the bank's order."""
        return self._families.get(name, [])

    def families(self) -> list[str]:
        """The families that it has clips of."""
        return list(self._families)

    def can(self, needs: tuple[tuple[str, ...], ...]) -> bool:
        """Whether it has a clip of one family of each group."""
        return all(any(self.family(name) for name in group) for group in needs)


def _weights(speakers: list[Speaker], engines: tuple[tuple[str, float], ...]) -> np.ndarray:
    """How often each speaks: an engine's voices weigh together what the config says, or `_OTHER_ENGINE`."""
    of_engine = collections.Counter(speaker.clips[0].engine for speaker in speakers)
    shares = np.array(
        [dict(engines).get(e, _OTHER_ENGINE) / of_engine[e] for e in (s.clips[0].engine for s in speakers)]
    )
    return shares / max(shares.sum(), 1e-12)


class Cast:
    """Everybody who may speak in one split's conversations, and the rooms and noises around them.

    Raises:
      ValueError: the bank holds no user voice of the split, or no assistant.
    """

    def __init__(self, config: DataConfig, bank: SpeechBank, split: str) -> None:
        self.bank, self.split = bank, split
        users = collections.defaultdict(list)
        takes = collections.defaultdict(list)
        for clip in bank.clips:
            if clip.kind == "assistant":
                takes[clip.text].append(clip)
            elif clip.split == split:
                users[clip.voice].append(clip)
        self.speakers = [Speaker(name, clips) for name, clips in sorted(users.items())]
        self._takes = dict(takes)
        if not self.speakers or not self._takes:
            raise ValueError(
                f"The speech bank {bank.path} has no {'assistant' if self.speakers else split + ' voice'}."
            )
        self._shares = _weights(self.speakers, config.engines)
        self.talkers = [speaker for speaker in self.speakers if speaker.family("talk")]
        self._talk_shares = _weights(self.talkers, config.talkers)
        self.rooms = augment.make_rooms(config.acoustics, config.seed)
        self.microphones = augment.make_microphones(config.acoustics, config.seed)
        self.noises = augment.make_noises(config.seed, self._babble(config.seed))

    def _babble(self, seed: int) -> np.ndarray:
        """Several of the split's voices at once."""
        rng = np.random.default_rng((seed, 3))
        length = 20 * augment.RATE
        babble = np.zeros(length, np.float32)
        clips = [clip for speaker in self.speakers for clip in speaker.family("repeat") + speaker.family("delegate")]
        for _ in range(min(120, 6 * len(clips))):
            audio = augment.set_level(self.bank.audio(clips[int(rng.integers(len(clips)))]), -20.0)[:length]
            start = int(rng.integers(0, length - len(audio) + 1))
            babble[start : start + len(audio)] += audio
        return babble if clips else rng.standard_normal(length).astype(np.float32)

    def speaker(self, rng: np.random.Generator, needs: tuple[tuple[str, ...], ...]) -> Speaker:
        """Draws a user who can say everything in `needs`; engines weigh as the config says."""
        able = np.array([s.can(needs) for s in self.speakers])
        if not able.any():
            raise ValueError(f"No voice of the speech bank {self.bank.path} can say all of {needs}.")
        shares = np.where(able, self._shares, 0.0)
        return self.speakers[int(rng.choice(len(self.speakers), p=shares / shares.sum()))]

    def talker(self, rng: np.random.Generator) -> Speaker:
        """Draws somebody who talks, but not to the model."""
        return self.talkers[int(rng.choice(len(self.talkers), p=self._talk_shares))]

    def split_words(self, text: str) -> list[str]:
        """`text` in the assistant's recorded units, longest first ("good morning" is one)."""
        rest, units = text.split(), []
        while rest:
            for size in range(min(4, len(rest)), 0, -1):
                if " ".join(rest[:size]) in self._takes:
                    units.append(" ".join(rest[:size]))
                    rest = rest[size:]
                    break
            else:
                raise ValueError(f"The assistant of the speech bank {self.bank.path} cannot say {rest[0]!r}.")
        return units

    def assistant(self, text: str, rng: np.random.Generator) -> np.ndarray:
        """A take of one of the assistant's units, float32."""
        takes = self._takes[text]
        return self._audio(takes[int(rng.integers(len(takes)))])

    @functools.lru_cache(maxsize=1024)  # noqa: B019  a cast lives as long as its process
    def _audio(self, clip: Clip) -> np.ndarray:
        return augment.set_level(self.bank.audio(clip), -18.0)

"""Talk by recorded people, none of which is meant for the model: it should never speak.

Any folder of sound files will do. Files that lie together are taken to be one speaker's, and are played one after the
other, as recorded but for the level, with pauses between them.
"""

import pathlib
from collections.abc import Iterable, Iterator

import numpy as np

from tml_jax.data import augment
from tml_jax.data.timeline import Conversation, UserSpeech
from tml_jax.streams.sound import read_sound
from tml_jax.wire.behaviour import Behaviour

ENDINGS = frozenset({".flac", ".g722", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".wav", ".webm"})
LEVEL_DB = -22.0
"""Of the speech: the middle of what simulated users have."""
_SPEAKER_S = 60.0  # how long one conversation gets before the next begins
_PAUSE_S = (0.3, 2.0)
_START_APART_S = 0.6  # sound after a shorter silence goes on with what was begun


def conversations(folder: str, seed: int = 0) -> Iterator[Conversation]:
    """Conversations of about a minute that hold every recording in `folder` once.

    Args:
      folder: sound files, in folders of its own or not.
      seed: of the pauses, 0.3 to 2 s.

    Raises:
      ValueError: there is no sound file, or one can't be decoded.
    """
    files = sorted(path for path in pathlib.Path(folder).rglob("*") if path.suffix.lower() in ENDINGS)
    if not files:
        raise ValueError(f"{folder} holds no recordings ({', '.join(sorted(ENDINGS))}).")
    rng = np.random.default_rng(seed)
    events: list[UserSpeech] = []
    now, speaker = 0.0, files[0].parent
    for path in files:
        if events and (now > _SPEAKER_S or path.parent != speaker):
            yield Conversation(now, tuple(events))
            events, now = [], 0.0
        speaker = path.parent
        audio = augment.set_level(read_sound(path, augment.RATE), LEVEL_DB)
        now += float(rng.uniform(*_PAUSE_S))
        events.append(UserSpeech(now, audio))
        now += len(audio) / augment.RATE
    yield Conversation(now + _PAUSE_S[1], tuple(events))


def starts(sound: Iterable[tuple[float, float]]) -> list[float]:
    """When a model began to speak, of the stretches (start, end) in which it is heard, sorted."""
    found, silent_since = [], -np.inf
    for start, end in sound:
        if start - silent_since > _START_APART_S:
            found.append(start)
        silent_since = end
    return found


def summarise(heard: Iterable[tuple[float, Behaviour]]) -> dict[str, float]:
    """Minutes of talk, how often a minute a model began to speak, and which share of the time it was heard.

    Args:
      heard: of each conversation its length in seconds, and what the model did.
    """
    seconds = spoken = begun = 0.0
    for duration_s, done in heard:
        seconds += duration_s
        begun += len(starts(done.sound))
        spoken += sum(end - start for start, end in done.sound)
    minutes = seconds / 60
    return {
        "overheard_minutes": minutes,
        "overheard_starts_a_minute": begun / minutes,
        "overheard_share_spoken": spoken / seconds,
    }

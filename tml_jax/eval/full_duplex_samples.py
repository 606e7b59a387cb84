"""Own samples for Full-Duplex-Bench, in its published folders: held-out voices say what the tiny model knows.

Nobody's recordings are shipped for it: a sample is a pure function of (bank, seed, task, number). The user sits in a
quiet room. What the published data has and no rule reads (``context.wav``, ``interrupt.wav``) is left out.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from tml_jax.data.config import QUIET_ROOM, DataConfig
from tml_jax.data.director import Director
from tml_jax.data.speech_bank import Clip, SpeechBank
from tml_jax.data.timeline import Conversation, Event, UserSpeech
from tml_jax.data.voices import Cast
from tml_jax.eval.full_duplex_bench import SUITE, transcript_from
from tml_jax.eval.targets import Case
from tml_jax.streams import number_words
from tml_jax.streams.micro_turn import StreamSpec

_ANSWER_S = 5.0  # after the user's end
_LONG = 8  # a count to this number or further lasts long enough to be spoken over
_FAINT_DB = 10.0  # how far talk in the background lies under the user
_TALK_S = 10.0  # of somebody whom one would acknowledge
_BIN_S = 0.2  # of the histogram of when one would acknowledge

Annotations = dict[str, Any]


def draw(bank: SpeechBank, spec: StreamSpec, seed: int, samples: int) -> list[Case]:
    """So many samples of each task, those of v1.5 with the same user undisturbed before each.

    Raises:
      ValueError: the bank lacks held-out voices for a task.
    """
    config = DataConfig(seed=seed, acoustics=QUIET_ROOM)
    cast = Cast(config, bank, "heldout")
    cases = []
    for task, (folder, (needs, make)) in enumerate(_TASKS.items()):
        for number in range(samples):
            rng = np.random.default_rng((seed, task, number))
            director = Director(rng, config, spec, cast, cast.speaker(rng, needs))
            notes = make(director)
            events, name = tuple(director.events), f"{folder}/{number}"
            whole = Case(name, SUITE, folder.split("/")[1], Conversation(director.now, events), number, notes)
            whole = dataclasses.replace(whole, transcript_from_s=transcript_from(notes))
            if "metadata" in notes:
                alone = Conversation(director.now, events[:1])
                cases.append(dataclasses.replace(whole, conversation=alone, prefix="clean_"))
            cases.append(whole)
    return cases


def _pause_handling(director: Director) -> Annotations:
    """A request with a pause in it; it ends with its last word."""
    clips = [clip for clip in director.speaker.family("count_to") if len(clip.words) > 1]
    director.now = director.user(_one(director, clips), director.now, hesitate=True)
    gap = director.expectations[-1]
    pause = {"text": "[PAUSE]", "timestamp": [gap["from"], gap["to"]]}
    return {"pause": [pause], "transcription": _transcription(director.events)}


def _turn_taking(director: Director) -> Annotations:
    """A request that a turn answers."""
    end = director.user(_long_count(director), director.now)
    director.now = end + _ANSWER_S
    taking = {"text": "[TURN-TAKING]", "timestamp": [end, end + 0.4]}
    return {"turn_taking": [taking], "transcription": _transcription(director.events)}


def _backchannel(director: Director) -> Annotations:
    """Talk with pauses, in which one would acknowledge."""
    pauses = []
    while director.now < _TALK_S:
        end = director.user(_one(director, director.speaker.family("talk")), director.now)
        director.now = end + float(director.rng.uniform(0.6, 1.2))
        pauses.append((end, director.now))
    times = np.arange(int(director.now / _BIN_S) + 1) * _BIN_S
    wanted = np.sum([(times >= start) & (times < end) for start, end in pauses], axis=0) + 1e-10
    return {"distribution": (wanted / wanted.sum()).tolist()}


def _interruption(director: Director) -> Annotations:
    """A long answer, "stop", and another request."""
    asked = _long_count(director)
    at = _over_answer(director, asked)
    stop, request = _one(director, director.speaker.family("stop")), _long_count(director)
    end = director.user(request, director.user(stop, at) + 0.3)
    director.now = end + _ANSWER_S
    return {"interrupt": [{"context": asked.text, "interrupt": f"{stop.text} {request.text}", "timestamp": [at, end]}]}


def _overlap(says: str, *, by_others: bool = False) -> Callable[[Director], Annotations]:
    """A long answer, over which something of the family `says` is said, by the user or faintly by somebody else."""

    def make(director: Director) -> Annotations:
        asked = _long_count(director)
        at = _over_answer(director, asked)
        if by_others:
            director.voice = dataclasses.replace(director.voice, level_db=director.voice.level_db - _FAINT_DB)
            others = [talker for talker in director.cast.talkers if talker.name != director.speaker.name]
            director.speaker = others[int(director.rng.integers(len(others)))]
        said = _one(director, director.speaker.family(says))
        end = director.user(said, at)
        director.now = end + _ANSWER_S
        times = {"timestamps": [at, end]}
        return {"metadata": {"context_text": asked.text, "current_turn_text": said.text} | times}

    return make


def _one(director: Director, clips: list[Clip]) -> Clip:
    return clips[int(director.rng.integers(len(clips)))]


def _long_count(director: Director) -> Clip:
    clips = director.speaker.family("count_to")
    return _one(director, [c for c in clips if number_words.from_words(c.text.split()[-1]) >= _LONG] or clips)


def _over_answer(director: Director, asked: Clip) -> float:
    """The user asks; a time at which a good system is in the middle of its answer."""
    return director.heard_at(director.user(asked, director.now)) + float(director.rng.uniform(0.8, 1.6))


def _transcription(events: list[Event]) -> list[dict[str, Any]]:
    return [
        {"text": word.text, "timestamp": [event.start_s + word.start_s, event.start_s + word.end_s]}
        for event in events
        if isinstance(event, UserSpeech)
        for word in event.words or ()
    ]


_COUNTS = (("count_to",),)
_TASKS: dict[str, tuple[tuple[tuple[str, ...], ...], Callable[[Director], Annotations]]] = {
    "v1_0/synthetic_pause_handling": (_COUNTS, _pause_handling),
    "v1_0/synthetic_turn_taking": (_COUNTS, _turn_taking),
    "v1_0/synthetic_backchannel": ((("talk",),), _backchannel),
    "v1_0/synthetic_user_interruption": ((*_COUNTS, ("stop",)), _interruption),
    "v1_5/user_interruption": ((*_COUNTS, ("greeting",)), _overlap("greeting")),
    "v1_5/user_backchannel": ((*_COUNTS, ("backchannel",)), _overlap("backchannel")),
    "v1_5/talking_to_other": ((*_COUNTS, ("talk",)), _overlap("talk")),
    "v1_5/background_speech": (_COUNTS, _overlap("talk", by_others=True)),
}
"""By folder: what the user must be able to say, and how a sample is made."""

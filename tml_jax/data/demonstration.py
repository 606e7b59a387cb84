"""The demo's conversation: every behaviour once, in seven short scenes, drawn from held-out voices by a seed.

A scene is a chain of the simulator's own scenarios, so that what is expected of the model comes from the same code as
in training and in evaluation. What is fixed here is the order, and ranges that keep the whole near three minutes; who
speaks, the numbers, the times and the motion are drawn. The user sits in a quiet room, close to the microphone.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tml_jax.data import arrangements, scenarios
from tml_jax.data.config import QUIET_ROOM, Behaviour, DataConfig
from tml_jax.data.director import Director
from tml_jax.data.speech_bank import Clip, SpeechBank
from tml_jax.data.timeline import Conversation
from tml_jax.data.voices import Cast, Speaker
from tml_jax.streams import number_words
from tml_jax.streams.micro_turn import StreamSpec

_BEHAVIOUR = Behaviour(
    gap=(1.2, 1.8),
    hesitation=(0.8, 1.4),
    hesitation_share=0.0,
    background_latency=(0.2, 0.4),  # this background model is a calculator
    repetition=(1.0, 1.7),
    repetitions=(3, 5),
    quiet_sounds=(1, 2),
)


@dataclasses.dataclass(frozen=True)
class _Exchange:
    """One exchange: a scenario, what the user may say in it (by family, those texts), and other habits than usual."""

    scenario: Callable[[Director], None]
    says: Mapping[str, Callable[[str], bool]] = dataclasses.field(default_factory=dict)
    habits: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def clips(self, speaker: Speaker) -> list[list[Clip]]:
        """What this user could say, by family."""
        return [[c for c in speaker.family(family) if wanted(c.text)] for family, wanted in self.says.items()]


def _any(text: str) -> bool:
    return bool(text)


def _number_between(place: int, low: int, high: int) -> Callable[[str], bool]:
    """Whether the word at `place` is a number from low to high."""
    return lambda text: low <= number_words.from_words(text.split()[place]) <= high


_SCENES: dict[str, tuple[_Exchange, ...]] = {
    "Talk": (
        _Exchange(scenarios.greeting, {"greeting": _any}),
        _Exchange(
            scenarios.command,
            {"repeat": lambda text: len(text.split()) >= 5, "filler": _any},
            {"hesitation_share": 1.0},
        ),
        _Exchange(scenarios.quiet, {"filler": _any, "backchannel": _any}),
        _Exchange(scenarios.delegate, {"delegate": lambda text: " times " in text}),
        _Exchange(scenarios.talk),
    ),
    "Time": (
        _Exchange(scenarios.timer, {"timer": _number_between(3, 3, 6)}),
        _Exchange(
            scenarios.undeterred,
            {"count_to": _number_between(-1, 12, 15), "backchannel": _any, "stop": lambda text: "stop" in text},
        ),
        _Exchange(scenarios.beeper, {"beeper": _number_between(3, 2, 3), "stop": lambda text: "stop" in text}),
    ),
    "Sight": (
        _Exchange(scenarios.watch),
        _Exchange(scenarios.count, {"repetitions": _any}),
    ),
    "At once": (
        _Exchange(scenarios.two_timers, {"timer": _number_between(3, 3, 9)}),
        _Exchange(
            scenarios.redirect,
            {"count_to": _number_between(-1, 10, 20), "stop": lambda text: "stop" in text, "repeat": _any},
        ),
        _Exchange(arrangements.shadow, {"word": _any, "stop": lambda text: "stop" in text}),
    ),
    "Cue": (_Exchange(arrangements.cue),),
    "Anew": (
        _Exchange(arrangements.repair, {"repeat": _any, "filler": _any}),
        _Exchange(arrangements.elapsed, {"timer": _number_between(3, 7, 8), "elapsed": _any}),
        _Exchange(arrangements.translate, {"word": _any, "stop": lambda text: "stop" in text}),
    ),
    "As told": (_Exchange(arrangements.instructed, {"repeat": _any, "timer": _number_between(3, 2, 5)}),),
}
_FILMED = frozenset({"Sight", "Cue"})
_SECONDS = {"Cue": 12.0}  # of a scene whose exchange goes on as long as there is time; others end with theirs


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """A scene of the demo: its name, the user's voice in the bank, and the simulated conversation."""

    name: str
    voice: str
    conversation: Conversation


def draw_scenes(bank: SpeechBank, spec: StreamSpec, seed: int) -> list[Scene]:
    """Draws the demo's scenes, each a session of its own; the same for the same bank and seed.

    Raises:
      ValueError: the bank lacks held-out voices that can say what a scene needs.
    """
    config = DataConfig(bank=str(bank.path), seed=seed, acoustics=QUIET_ROOM, behaviour=_BEHAVIOUR)
    cast = Cast(config, bank, "heldout")
    scenes: list[Scene] = []
    for number, (name, exchanges) in enumerate(_SCENES.items()):
        rng = np.random.default_rng((seed, number))
        speaker = _draw_speaker(cast, name, rng, [scene.voice for scene in scenes])
        director = Director(rng, config, spec, cast, speaker)
        director.limit = _SECONDS.get(name, np.inf)
        for exchange in exchanges:
            director.speaker = Speaker(speaker.name, [clip for family in exchange.clips(speaker) for clip in family])
            director.config = dataclasses.replace(config, behaviour=dataclasses.replace(_BEHAVIOUR, **exchange.habits))
            exchange.scenario(director)
            director.pause()
        # A silence may be expected for longer than the last exchange takes.
        ends = [one[end] for one in director.expectations for end in ("to", "until") if end in one]
        director.limit = max([director.now, *ends])
        if name in _FILMED:
            scenarios.film(director)
        made = Conversation(director.limit, tuple(director.events), True, name, tuple(director.expectations))
        scenes.append(Scene(name, speaker.name, made))
    return scenes


def _draw_speaker(cast: Cast, scene: str, rng: np.random.Generator, used: list[str]) -> Speaker:
    """A voice that can say all of the scene, one that has not spoken yet where there is one."""
    able = [s for s in cast.speakers if all(all(exchange.clips(s)) for exchange in _SCENES[scene])]
    if not able:
        raise ValueError(f"No held-out voice of the speech bank {cast.bank.path} can say all of the scene {scene!r}.")
    fresh = [s for s in able if s.name not in used] or able
    return fresh[int(rng.integers(len(fresh)))]

"""Exchanges that no model of this repository was taught: what is measured before it is learned.

They are played as the scenarios are, on held-out voices, and need no expectation of a kind of their own. No voice of
the bank says what two of them ask for, so the user types it. Once one is taught it belongs among the scenarios.
"""

import dataclasses
import itertools
from collections.abc import Callable

from tml_jax.data import scenarios, scenes
from tml_jax.data.config import DataConfig
from tml_jax.data.director import Director
from tml_jax.data.speech_bank import Clip
from tml_jax.data.timeline import UserText
from tml_jax.streams import number_words

_APART_S = 1.5  # two timers end at least so far from each other
_CUE_S = (0.8, 2.5)  # how long what moves once does so
_BETWEEN_CUES_S = (2.5, 5.0)
_DIGITS = 6
_BETWEEN_DIGITS_S = (0.5, 0.8)
_LONG_S = 3.0  # a shorter answer is not talked over


def two_timers(director: Director) -> None:
    """A second timer is set while the first one runs: "now" at the end of each."""

    def seconds(clip: Clip) -> int:
        return number_words.from_words(clip.text.split()[3])

    def fits(first: Clip, second: Clip) -> bool:  # the second request takes about 1.1 s to begin
        asked = 1.1 + second.duration_s
        return seconds(first) > asked + 1.0 and abs(seconds(first) - asked - seconds(second)) > _APART_S + 0.5

    pairs = [pair for pair in itertools.permutations(director.speaker.family("timer"), 2) if fits(*pair)]
    if not pairs:
        scenarios.timer(director)
        return
    ends = []
    for clip in pairs[int(director.rng.integers(len(pairs)))]:
        end = director.user(clip, director.now)
        director.now = director.answer("okay", end) + float(director.rng.uniform(0.2, 0.5))
        ends.append(end + seconds(clip))
    for at in sorted(ends):
        director.expect("timer", at=at, words=["now"], of=2)
        heard = director.heard_at(at, 0.0)
        if heard < director.now:
            director.interrupt(heard)
        director.now = director.say("now", heard)


def redirect(director: Director) -> None:
    """The user says "stop" while the model speaks and asks for something else: silence, then the other thing."""
    habits, director.config = director.config, _without(director, "backchannel_share", "hesitation_share")
    scenarios.barge_in(director)
    scenarios.command(director)
    director.config = habits


def side_talk(director: Director) -> None:
    """People talk to each other while the model speaks: it goes on."""
    start, over = scenarios.count_aloud(director)
    if over - start > _LONG_S:
        director.now = start + float(director.rng.uniform(0.6, 1.2))
        at = director.now
        director.talk()
        director.expect("goes on", **{"from": at, "to": min(director.now, over - 1.0)})
    director.now = max(director.now, over)


def cue(director: Director) -> None:
    """ "say beep when something moves": "beep" at each motion, and nothing else."""
    director.events.append(UserText(director.now, "say beep when something moves"))
    time = director.now + 1.0
    while (time := time + float(director.rng.uniform(*_BETWEEN_CUES_S))) < director.limit - _CUE_S[1] - 0.5:
        end = time + float(director.rng.uniform(*_CUE_S))
        director.motions.append(scenes.Repetitions((time,), (end,)))
        director.expect("timer", at=time, words=["beep"])
        director.say("beep", director.heard_at(time))
        time = end
    director.now = director.limit


def shadow(director: Director) -> None:
    """ "say every digit as i say it": each digit while the user goes on with the next ones."""
    director.events.append(UserText(director.now, "say every digit as i say it"))
    start, said = director.now + 1.0, ""
    for i in range(_DIGITS):
        words = director.speaker.family("word")
        clips = [clip for clip in words if clip.text != said] or words
        clip = clips[int(director.rng.integers(len(clips)))]
        end, said = director.user(clip, start), clip.text
        heard = director.heard_at(end)
        if heard < director.now:
            director.interrupt(heard)
        if i < _DIGITS - 1:  # of the last one the model cannot say it while the user speaks
            director.expect("timer", at=end, words=[said])
        director.now = director.say(said, heard)
        start = end + float(director.rng.uniform(*_BETWEEN_DIGITS_S))


def _without(director: Director, *habits: str) -> DataConfig:
    behaviour = dataclasses.replace(director.config.behaviour, **dict.fromkeys(habits, 0.0))
    return dataclasses.replace(director.config, behaviour=behaviour)


TRIALS: dict[str, Callable[[Director], None]] = {
    "two_timers": two_timers,
    "redirect": redirect,
    "side_talk": side_talk,
    "cue": cue,
    "shadow": shadow,
}
_COUNTS = ("count_to", "count_down")
NEEDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "two_timers": (("timer",),),
    "redirect": (_COUNTS, ("stop",), ("repeat", *_COUNTS)),
    "side_talk": (_COUNTS,),
    "cue": (),
    "shadow": (("word",),),
}
FILMED = frozenset({"cue"})

"""What happens in simulated conversations: one function a kind of exchange, placed on the timeline by a `Director`."""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from tml_jax.data import arrangements, scenes
from tml_jax.data.config import DataConfig
from tml_jax.data.director import Director
from tml_jax.data.speech_bank import Clip
from tml_jax.data.splice import Spliced
from tml_jax.data.voices import reply_to_greeting
from tml_jax.streams import number_words

_UNKNOWN_SHARE = 0.06  # of the answers in training: one that is right is what a held-out user waits for
_APART_S = 1.5  # two timers end at least so far from each other
_LONG_S = 3.0  # a shorter answer is not talked over


def command(director: Director) -> None:
    """ "repeat five two please", "count to seven": the model does it at once."""
    clip = director.pick("repeat", "repeat", "count_to", "count_down")
    director.now = director.answer(" ".join(director.wanted(clip)), director.ask(clip))


def greeting(director: Director) -> None:
    """ "how are you": "fine thanks"."""
    clip = director.pick("greeting")
    director.now = director.answer(reply_to_greeting(clip.text), director.user(clip, director.now))


def timer(director: Director) -> None:
    """ "tell me when five seconds have passed": "okay", and then "now", counted from the end of the request."""
    clip = director.pick("timer")
    end = director.ask(clip)
    director.answer("okay", end)
    at = end + director.seconds(clip)
    if director.speaker.family("stop") and director.rng.random() < 0.12:  # called off
        stop = director.user(director.pick("stop"), float(director.rng.uniform(end + 1.2, max(end + 1.3, at - 0.8))))
        if stop + 0.4 < at:
            director.expect("silent", reason="timer called off", **{"from": stop + 0.6, "to": at + 1.0})
            director.now = at + 1.0
            return
    director.expect("timer", at=at, words=["now"])
    director.now = director.say("now", director.heard_at(at, 0.0))


def beeper(director: Director) -> None:
    """ "say beep every three seconds": "okay", and "beep" each time, until "stop"."""
    clip = director.pick("beeper")
    end = director.ask(clip)
    director.answer("okay", end)
    every = director.seconds(clip)
    beeps = int(director.rng.integers(2, 6)) if director.speaker.family("stop") else 100
    last = end
    for i in range(1, beeps + 1):
        last = end + i * every
        if last > director.limit:
            director.now = last  # it beeps on: nothing else fits
            return
        director.expect("timer", at=last, words=["beep"])
        director.now = director.say("beep", director.heard_at(last, 0.0))
    low = director.now + 0.2
    stop = director.user(director.pick("stop"), float(director.rng.uniform(low, max(low + 0.1, last + every - 1.2))))
    director.expect("silent", reason="stopped", **{"from": stop + 0.6, "to": stop + every + 1.0})
    director.now = stop + float(director.rng.uniform(1.0, every + 1.5))


def count_aloud(director: Director) -> tuple[float, float]:
    """The user asks for a long count: when the model begins it, and when it is over if nobody interrupts."""
    clips = [
        clip for clip in director.speaker.family("count_to") if number_words.from_words(clip.text.split()[-1]) >= 8
    ]
    clips = clips or director.speaker.family("count_down") or director.speaker.family("count_to")
    clip = clips[int(director.rng.integers(len(clips)))]
    end = director.ask(clip)
    return director.heard_at(end), director.answer(" ".join(director.wanted(clip)), end)


def _acknowledge(director: Director, at: float) -> float:
    """The user says "yeah" at this time; the end of it."""
    backchannels = director.speaker.family("backchannel")
    return director.user(backchannels[int(director.rng.integers(len(backchannels)))], at)


def cut_off(director: Director, at: float, over: float) -> None:
    """The user says "stop" at this time, while the model would speak until `over`."""
    stop = director.user(director.pick("stop"), at)
    director.interrupt(director.heard_at(stop, director.config.behaviour.yielding))
    answer = next(expected for expected in reversed(director.expectations) if expected["kind"] == "answer")
    answer["interrupted"] = stop
    director.expect("stop", after=stop, until=max(over, stop + 1.5))
    director.now = stop + 0.6


def barge_in(director: Director) -> None:
    """The user speaks while the model does: "stop" silences it, "yeah" doesn't."""
    start, over = count_aloud(director)
    at = float(director.rng.uniform(start + 0.7, max(start + 0.8, over - 1.5)))
    if director.speaker.family("backchannel") and director.rng.random() < director.config.behaviour.backchannel_share:
        _acknowledge(director, at)
        director.expect("goes on", reason="backchannel", **{"from": at, "to": over})
        director.now = over
        return
    cut_off(director, at, over)


def undeterred(director: Director) -> None:
    """The user speaks twice while the model does: it goes on after "yeah" and is silent after "stop"."""
    start, over = count_aloud(director)
    at = start + float(director.rng.uniform(0.8, 1.4))
    stop = _acknowledge(director, at) + float(director.rng.uniform(1.2, 1.8))
    director.expect("goes on", reason="backchannel", **{"from": at, "to": min(stop, over)})
    cut_off(director, stop, over)


def count(director: Director) -> None:
    """ "count the repetitions": "okay", and the running count at the end of each repetition seen."""
    behaviour = director.config.behaviour
    end = director.ask(director.pick("repetitions"))
    ready = director.answer("okay", end)
    wanted = int(director.rng.integers(behaviour.repetitions[0], behaviour.repetitions[1] + 1))
    start = max(end + 0.4, ready + float(director.rng.uniform(-0.4, 1.0)))
    motion = scenes.draw_repetitions(director.rng, wanted, start, behaviour.repetition, director.limit - 1.0)
    director.motions.append(motion)
    director.now = ready
    for i, over in enumerate(motion.ends):
        heard = director.heard_at(over)
        if heard < director.now:
            director.interrupt(heard)
        director.now = director.say(number_words.to_words(i + 1), heard)
    if motion.ends:
        director.expect("count", total=len(motion.ends), times=list(motion.ends), until=director.now + 1.0)
    director.now = director.now + 0.8


def watch(director: Director) -> None:
    """Something moves that nobody asked about: silence."""
    start = director.now
    motion = scenes.draw_repetitions(director.rng, 4, start, director.config.behaviour.repetition, director.limit)
    director.motions.append(motion)
    director.now = max([start + 1.0, *motion.ends])
    director.expect("silent", reason="not asked", **{"from": start, "to": director.now})


def background_answer(director: Director, clip: Clip | Spliced) -> str:
    """The background model's answer to "what is ..."; in training it has none now and then, held out it is right."""
    if director.cast.split == "train" and director.rng.random() < _UNKNOWN_SHARE:
        return "i do not know"
    words = clip.text.split()
    if words[:2] == ["what", "time"]:
        hour, minute = int(director.rng.integers(1, 13)), int(director.rng.integers(0, 60))
        minutes = ("zero " if minute < 10 else "") + number_words.to_words(minute)
        tail = minutes if minute else "o clock"
        return f"it is {number_words.to_words(hour)} {tail}"
    left, right = number_words.from_words(words[2]), number_words.from_words(words[4])
    return number_words.to_words({"times": left * right, "plus": left + right, "minus": left - right}[words[3]])


def delegate(director: Director) -> None:
    """ "what is twelve times seven": handed to the background model, "okay", and its result when it comes."""
    clip = director.pick("delegate")
    director.now = director.delegate(clip.text, director.ask(clip), background_answer(director, clip))


def quiet(director: Director) -> None:
    """Nothing that asks for an answer: silence, fillers, backchannels."""
    start = director.now
    fewest, most = director.config.behaviour.quiet_sounds
    for _ in range(int(director.rng.integers(fewest, most + 1))):
        sounds = director.speaker.family("filler") + director.speaker.family("backchannel")
        if sounds:
            director.now = director.user(sounds[int(director.rng.integers(len(sounds)))], director.now)
        director.now += float(director.rng.uniform(0.4, 2.0))
    director.now = max(director.now, start + 2.0)
    director.expect("silent", reason="quiet", **{"from": start, "to": director.now})


def talk(director: Director) -> None:
    """People talk, but not to the model: silence."""
    start = director.now
    for _ in range(int(director.rng.integers(1, 4))):
        director.talk()
        director.now += float(director.rng.uniform(0.1, 1.5))
    director.now += 0.6
    director.expect("silent", reason="talk", **{"from": start, "to": director.now})


def two_timers(director: Director) -> None:
    """A second timer is set while the first one runs: "now" at the end of each."""

    def fits(first: Clip, second: Clip) -> bool:  # the second request takes about 1.1 s to begin
        asked = 1.1 + second.duration_s
        return (
            director.seconds(first) > asked + 1.0
            and abs(director.seconds(first) - asked - director.seconds(second)) > _APART_S + 0.5
        )

    pairs = [pair for pair in itertools.permutations(director.speaker.family("timer"), 2) if fits(*pair)]
    if not pairs:
        timer(director)
        return
    ends = []
    for clip in pairs[int(director.rng.integers(len(pairs)))]:
        end = director.user(clip, director.now)
        director.now = director.answer("okay", end) + float(director.rng.uniform(0.2, 0.5))
        ends.append(end + director.seconds(clip))
    for at in sorted(ends):
        director.expect("timer", at=at, words=["now"], of=2)
        director.say_over("now", director.heard_at(at, 0.0))


def redirect(director: Director) -> None:
    """The user says "stop" while the model speaks and asks for something else: silence, then the other thing."""
    habits, director.config = director.config, _without(director, "backchannel_share", "hesitation_share")
    barge_in(director)
    command(director)
    director.config = habits


def _without(director: Director, *habits: str) -> DataConfig:
    behaviour = dataclasses.replace(director.config.behaviour, **dict.fromkeys(habits, 0.0))
    return dataclasses.replace(director.config, behaviour=behaviour)


def side_talk(director: Director) -> None:
    """People talk to each other while the model speaks: it goes on."""
    start, over = count_aloud(director)
    if over - start > _LONG_S:
        director.now = start + float(director.rng.uniform(0.6, 1.2))
        at = director.now
        director.talk()
        director.expect("goes on", reason="side talk", **{"from": at, "to": min(director.now, over - 1.0)})
    director.now = max(director.now, over)


SCENARIOS: dict[str, Callable[[Director], None]] = {
    "command": command,
    "greeting": greeting,
    "timer": timer,
    "beeper": beeper,
    "barge_in": barge_in,
    "undeterred": undeterred,
    "count": count,
    "watch": watch,
    "delegate": delegate,
    "quiet": quiet,
    "talk": talk,
    "two_timers": two_timers,
    "redirect": redirect,
    "side_talk": side_talk,
    "cue": arrangements.cue,
    "shadow": arrangements.shadow,
    "translate": arrangements.translate,
    "elapsed": arrangements.elapsed,
    "repair": arrangements.repair,
    "instructed": arrangements.instructed,
}
NEEDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "command": (("repeat", "count_to", "count_down"),),
    "greeting": (("greeting",),),
    "timer": (("timer",),),
    "beeper": (("beeper",),),
    "barge_in": (("count_to", "count_down"), ("stop",)),
    "undeterred": (("count_to", "count_down"), ("backchannel",), ("stop",)),
    "count": (("repetitions",),),
    "watch": (),
    "delegate": (("delegate",),),
    "quiet": (),
    "talk": (),
    "two_timers": (("timer",),),
    "redirect": (("count_to", "count_down"), ("stop",), ("repeat", "count_to", "count_down")),
    "side_talk": (("count_to", "count_down"),),
    "cue": (),
    "shadow": (("word",), ("stop",)),
    "translate": (("word",), ("stop",)),
    "elapsed": (("timer",), ("elapsed",)),
    "repair": (("repeat", "count_to", "count_down"),),
    "instructed": (("repeat",), ("timer",)),
}
"""What a user must be able to say for a scenario: a clip of one family of each group."""
FILMED = frozenset({"count", "watch", "cue"})
"""What a camera sees."""
WHOLE = frozenset({"instructed"})
"""What holds for a whole conversation, from its beginning on."""


def film(director: Director) -> None:
    """Draws what the camera saw: one scene, at rest but for the motions."""
    scene = scenes.draw_scene(director.rng)
    fps = director.config.behaviour.video_fps
    times = np.arange(round((director.limit + 1.0) * fps)) / fps
    phases = sum((motion.phases(times) for motion in director.motions), np.zeros(len(times), np.float32))
    director.film(scene.frames(phases, director.rng))

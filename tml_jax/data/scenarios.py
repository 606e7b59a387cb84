"""What happens in simulated conversations: one function a kind of exchange, placed on the timeline by a `Director`."""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from tml_jax.data import scenes
from tml_jax.data.config import DataConfig
from tml_jax.data.director import Director
from tml_jax.data.speech_bank import Clip
from tml_jax.data.splice import Spliced
from tml_jax.data.timeline import UserText
from tml_jax.data.voices import reply_to_greeting
from tml_jax.streams import number_words

CUES = (
    "say beep when something moves",
    "beep when it moves",
    "say beep when it moves",
    "beep when you see something move",
    "when something moves say beep",
)
SHADOWS = (
    "say every digit as i say it",
    "say every number as i say it",
    "say each number after me",
    "say what i say as i say it",
    "repeat every number at once",
)
"""What users type who ask for these, as no voice of the bank says it: the first is kept for held-out users."""

_UNKNOWN_SHARE = 0.06  # of the answers in training: one that is right is what a held-out user waits for
_APART_S = 1.5  # two timers end at least so far from each other
_CUE_S = (0.8, 2.5)  # how long what moves once does so
_BETWEEN_CUES_S = (2.5, 5.0)
_SEEN_S = 0.3  # a motion that begins gently cannot be seen any sooner
_DIGITS = (3, 9)
_BETWEEN_DIGITS_S = (0.4, 0.8)
_LONG_S = 3.0  # a shorter answer is not talked over


def _pick(director: Director, *families: str) -> Clip | Spliced:
    """One of the user's requests, from one of these families: those that this user has."""
    families = tuple(name for name in families if director.speaker.family(name))
    return director.pick(families[int(director.rng.integers(len(families)))])


def _ask(director: Director, clip: Clip | Spliced) -> float:
    """The user asks, hesitating now and then; the end of the request."""
    hesitate = director.rng.random() < director.config.behaviour.hesitation_share
    return director.user(clip, director.now, hesitate=hesitate)


def _counting(clip: Clip | Spliced) -> list[str]:
    number = number_words.from_words(clip.text.split()[-1])
    order = range(number, 0, -1) if clip.text.startswith("count down") else range(1, number + 1)
    return [number_words.to_words(n) for n in order]


def command(director: Director) -> None:
    """ "repeat five two please", "count to seven": the model does it at once."""
    clip = _pick(director, "repeat", "repeat", "count_to", "count_down")
    words = _counting(clip) if clip.text.startswith("count") else clip.text.split()[1:-1]
    director.now = director.answer(" ".join(words), _ask(director, clip))


def greeting(director: Director) -> None:
    """ "how are you": "fine thanks"."""
    clip = _pick(director, "greeting")
    director.now = director.answer(reply_to_greeting(clip.text), director.user(clip, director.now))


def timer(director: Director) -> None:
    """ "tell me when five seconds have passed": "okay", and then "now", counted from the end of the request."""
    clip = _pick(director, "timer")
    end = _ask(director, clip)
    director.answer("okay", end)
    at = end + number_words.from_words(clip.text.split()[3])
    if director.speaker.family("stop") and director.rng.random() < 0.12:  # called off
        stop = director.user(_pick(director, "stop"), float(director.rng.uniform(end + 1.2, max(end + 1.3, at - 0.8))))
        if stop + 0.4 < at:
            director.expect("silent", reason="timer called off", **{"from": stop + 0.6, "to": at + 1.0})
            director.now = at + 1.0
            return
    director.expect("timer", at=at, words=["now"])
    director.now = director.say("now", director.heard_at(at, 0.0))


def beeper(director: Director) -> None:
    """ "say beep every three seconds": "okay", and "beep" each time, until "stop"."""
    clip = _pick(director, "beeper")
    end = _ask(director, clip)
    director.answer("okay", end)
    every = number_words.from_words(clip.text.split()[3])
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
    stop = director.user(_pick(director, "stop"), float(director.rng.uniform(low, max(low + 0.1, last + every - 1.2))))
    director.expect("silent", reason="stopped", **{"from": stop + 0.6, "to": stop + every + 1.0})
    director.now = stop + float(director.rng.uniform(1.0, every + 1.5))


def count_aloud(director: Director) -> tuple[float, float]:
    """The user asks for a long count: when the model begins it, and when it is over if nobody interrupts."""
    clips = [
        clip for clip in director.speaker.family("count_to") if number_words.from_words(clip.text.split()[-1]) >= 8
    ]
    clips = clips or director.speaker.family("count_down") or director.speaker.family("count_to")
    clip = clips[int(director.rng.integers(len(clips)))]
    end = _ask(director, clip)
    return director.heard_at(end), director.answer(" ".join(_counting(clip)), end)


def _acknowledge(director: Director, at: float) -> float:
    """The user says "yeah" at this time; the end of it."""
    backchannels = director.speaker.family("backchannel")
    return director.user(backchannels[int(director.rng.integers(len(backchannels)))], at)


def cut_off(director: Director, at: float, over: float) -> None:
    """The user says "stop" at this time, while the model would speak until `over`."""
    stop = director.user(_pick(director, "stop"), at)
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
    end = _ask(director, _pick(director, "repetitions"))
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
    clip = _pick(director, "delegate")
    director.now = director.delegate(clip.text, _ask(director, clip), background_answer(director, clip))


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

    def seconds(clip: Clip) -> int:
        return number_words.from_words(clip.text.split()[3])

    def fits(first: Clip, second: Clip) -> bool:  # the second request takes about 1.1 s to begin
        asked = 1.1 + second.duration_s
        return seconds(first) > asked + 1.0 and abs(seconds(first) - asked - seconds(second)) > _APART_S + 0.5

    pairs = [pair for pair in itertools.permutations(director.speaker.family("timer"), 2) if fits(*pair)]
    if not pairs:
        timer(director)
        return
    ends = []
    for clip in pairs[int(director.rng.integers(len(pairs)))]:
        end = director.user(clip, director.now)
        director.now = director.answer("okay", end) + float(director.rng.uniform(0.2, 0.5))
        ends.append(end + seconds(clip))
    for at in sorted(ends):
        director.expect("timer", at=at, words=["now"], of=2)
        _say_over(director, "now", director.heard_at(at, 0.0))


def _say_over(director: Director, text: str, start_s: float) -> None:
    """The model says this at its time, and gives up what it is still saying."""
    if start_s < director.now:
        director.interrupt(start_s)
    director.now = director.say(text, start_s)


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


def _type(director: Director, texts: tuple[str, ...]) -> None:
    """The user types one of these: the first is for users that are held out, who have it to themselves."""
    text = texts[0] if director.cast.split == "heldout" else texts[int(director.rng.integers(1, len(texts)))]
    director.events.append(UserText(director.now, text))
    director.now += float(director.rng.uniform(0.8, 1.2))


def cue(director: Director) -> None:
    """ "say beep when something moves": "beep" at each motion, and nothing else."""
    _type(director, CUES)
    time = director.now
    while (time := time + float(director.rng.uniform(*_BETWEEN_CUES_S))) < director.limit - _CUE_S[1] - 0.5:
        end = time + float(director.rng.uniform(*_CUE_S))
        director.motions.append(scenes.Repetitions((time,), (end,)))
        director.expect("cue", at=time, words=["beep"])
        director.say("beep", director.heard_at(time, _SEEN_S))
        time = end
    director.now = director.limit


def shadow(director: Director) -> None:
    """ "say every digit as i say it": each digit while the user goes on with the next ones, until "stop"."""
    _type(director, SHADOWS)
    start, said = director.now, ""
    digits = int(director.rng.integers(_DIGITS[0], _DIGITS[1] + 1))
    for i in range(digits):
        words = director.speaker.family("word")
        clips = [clip for clip in words if clip.text != said] or words
        clip = clips[int(director.rng.integers(len(clips)))]
        end, said = director.user(clip, start), clip.text
        if i < digits - 1:  # of the last one the model cannot say it while the user speaks
            director.expect("cue", at=end, words=[said])
        _say_over(director, said, director.heard_at(end))
        start = end + float(director.rng.uniform(*_BETWEEN_DIGITS_S))
    stop = director.user(_pick(director, "stop"), director.now + float(director.rng.uniform(0.3, 0.8)))
    director.now = stop + float(director.rng.uniform(1.0, 2.0))
    director.expect("silent", reason="stopped", **{"from": stop, "to": director.now})


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
    "cue": cue,
    "shadow": shadow,
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
}
"""What a user must be able to say for a scenario: a clip of one family of each group."""
FILMED = frozenset({"count", "watch", "cue"})


def film(director: Director) -> None:
    """Draws what the camera saw: one scene, at rest but for the motions."""
    scene = scenes.draw_scene(director.rng)
    fps = director.config.behaviour.video_fps
    times = np.arange(round((director.limit + 1.0) * fps)) / fps
    phases = sum((motion.phases(times) for motion in director.motions), np.zeros(len(times), np.float32))
    director.film(scene.frames(phases, director.rng))

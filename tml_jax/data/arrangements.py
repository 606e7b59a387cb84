"""Scenarios of what holds for a while once it was asked for: cues, digits said while the user goes on, instructions.

Who asks says so, or types it. Of typed texts the first is for users that are held out, who have it to themselves.
"""

from tml_jax.data import scenes
from tml_jax.data.director import Director
from tml_jax.data.speech_bank import Clip
from tml_jax.data.splice import Spliced
from tml_jax.data.timeline import Instructions, UserText
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
TRANSLATIONS = (
    "say every digit in spanish",
    "say every number in spanish",
    "say what i say in spanish",
    "spanish please",
    "repeat in spanish",
)
SPANISH, SILENT, YES = "spanish", "silent", "yes"
INSTRUCTIONS = {
    SPANISH: ("all numbers in spanish", "say it in spanish", "in spanish please", "spanish only", "say all in spanish"),
    SILENT: ("you must not say more", "do not say it", "stay quiet please", "you must be quiet", "say not one word"),
    YES: ("say yes not okay", "yes for okay", "say yes and no okay", "yes please not okay", "okay is yes"),
}
"""What an operator tells the model: to say numbers in Spanish, to stay silent, or that it says "yes" for "okay"."""

_CUE_S = (0.8, 2.5)  # how long what moves once does so
_BETWEEN_CUES_S = (2.5, 5.0)
_SEEN_S = 0.3  # a motion that begins gently cannot be seen any sooner
_DIGITS = (3, 9)
_BETWEEN_DIGITS_S = (0.4, 0.8)
_SILENCE_S = 2.5  # what is expected where an answer would come
_SURE_S = 0.2  # a time is asked for so near to whole seconds
_RESUMES_S = (0.2, 0.9)  # after a false start


def _drawn(director: Director, texts: tuple[str, ...]) -> str:
    return texts[0] if director.cast.split == "heldout" else texts[int(director.rng.integers(1, len(texts)))]


def _ask_for(director: Director, family: str, texts: tuple[str, ...]) -> None:
    """The user asks for it aloud, where the voice can, or types one of these."""
    share = director.config.behaviour.aloud_share
    if share and director.speaker.family(family) and director.rng.random() < share:
        director.now = director.ask(director.pick(family))
    else:
        director.events.append(UserText(director.now, _drawn(director, texts)))
    director.now += float(director.rng.uniform(0.8, 1.2))


def cue(director: Director) -> None:
    """ "say beep when something moves": "beep" at each motion, and nothing else."""
    _ask_for(director, "cue", CUES)
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
    _ask_for(director, "shadow", SHADOWS)
    _say_along(director, number_words.UNITS)


def translate(director: Director) -> None:
    """ "say every digit in spanish": the same, in Spanish."""
    _ask_for(director, "translate", TRANSLATIONS)
    _say_along(director, number_words.SPANISH)


def _say_along(director: Director, names: tuple[str, ...]) -> None:
    """The user says digits, and the model their names while the user goes on with the next ones, until "stop"."""
    start, said = director.now, ""
    digits = int(director.rng.integers(_DIGITS[0], _DIGITS[1] + 1))
    for i in range(digits):
        words = director.speaker.family("word")
        clips = [clip for clip in words if clip.text != said] or words
        clip = clips[int(director.rng.integers(len(clips)))]
        end, said = director.user(clip, start), clip.text
        name = names[number_words.from_words(said)]
        if i < digits - 1:  # of the last one the model cannot say it while the user speaks
            director.expect("cue", at=end, words=[name])
        director.say_over(name, director.heard_at(end))
        start = end + float(director.rng.uniform(*_BETWEEN_DIGITS_S))
    stop = director.user(director.pick("stop"), director.now + float(director.rng.uniform(0.3, 0.8)))
    director.now = stop + float(director.rng.uniform(1.0, 2.0))
    director.expect("silent", reason="stopped", **{"from": stop, "to": director.now})


def elapsed(director: Director) -> None:
    """While a timer runs, "how long has it been?": the seconds since it was set, and "now" when it is over."""
    timers = [clip for clip in director.speaker.family("timer") if director.seconds(clip) >= 6]
    clips = timers or director.speaker.family("timer")
    timer, question = clips[int(director.rng.integers(len(clips)))], director.pick("elapsed")
    length = director.seconds(timer)
    set_at = director.ask(timer)
    director.now = director.answer("okay", set_at)
    takes = question.words[-1].end_s
    fewest = int(director.now + 0.3 + takes - set_at) + 1
    if fewest > length - 2:
        director.now = director.say("now", director.heard_at(set_at + length, 0.0))
        director.expect("timer", at=set_at + length, words=["now"])
        return
    # The voice's pace is drawn: where the question ends tells which second it is.
    asked = set_at + int(director.rng.integers(fewest, length - 1)) - takes
    end = director.user(question, asked)
    seconds = round(end - set_at)
    if abs(end - set_at - seconds) <= _SURE_S:
        director.now = director.answer(number_words.to_words(seconds), end)
    else:
        director.now = director.say(number_words.to_words(seconds), director.heard_at(end))
    director.expect("timer", at=set_at + length, words=["now"])
    director.say_over("now", director.heard_at(set_at + length, 0.0))


def repair(director: Director) -> None:
    """ "repeat five, er, repeat six two please": the user begins anew, and the model does what was said whole."""
    first, clip = (director.pick("repeat", "count_to", "count_down") for _ in range(2))
    kept = int(director.rng.integers(1, max(2, len(first.words) - 1)))
    broken = director.user(_beginning(director, first, kept), director.now)
    director.now = broken + float(director.rng.uniform(*_RESUMES_S))
    fillers = director.speaker.family("filler")
    if fillers and director.rng.random() < director.config.behaviour.filler_share:
        director.now = director.user(fillers[int(director.rng.integers(len(fillers)))], director.now) + 0.1
    director.expect("silent", reason="hesitation", **{"from": broken, "to": director.now})
    director.now = director.answer(" ".join(director.wanted(clip)), director.user(clip, director.now))


def _beginning(director: Director, clip: Clip | Spliced, kept: int) -> Spliced:
    """So many words of a clip."""
    audio = clip.audio if isinstance(clip, Spliced) else director.cast.bank.audio(clip)
    cut_s = (clip.words[kept - 1].end_s + clip.words[kept].start_s) / 2 if kept < len(clip.words) else None
    words = clip.words[:kept]
    return Spliced(
        " ".join(word.text for word in words), words, audio[: cut_s and round(cut_s * director.spec.sample_rate)]
    )


def instructed(director: Director) -> None:
    """The operator says how to behave, before anything else; then requests to which that matters."""
    if not director.instruction:
        director.instruction = tuple(INSTRUCTIONS)[int(director.rng.integers(len(INSTRUCTIONS)))]
        director.events.append(Instructions(0.0, _drawn(director, INSTRUCTIONS[director.instruction])))
        director.now += 0.4
    if director.instruction == YES:
        clip = director.pick("timer")
        end = director.ask(clip)
        director.now = director.answer("yes", end)
        at = end + director.seconds(clip)
        director.expect("timer", at=at, words=["now"])
        director.say_over("now", director.heard_at(at, 0.0))
        return
    clip = _small(director) if director.instruction == SPANISH else director.pick("repeat", "count_to", "count_down")
    end = director.ask(clip)
    if director.instruction == SPANISH:
        words = (number_words.SPANISH[number_words.from_words(word)] for word in director.wanted(clip))
        director.now = director.answer(" ".join(words), end)
    else:
        director.expect("silent", reason="told to be silent", **{"from": end, "to": end + _SILENCE_S})
        director.now = end + _SILENCE_S


def _small(director: Director) -> Clip | Spliced:
    """A request with no number beyond those that the model knows in Spanish."""
    while True:
        clip = director.pick("repeat", "count_to", "count_down")
        if max(map(number_words.from_words, director.wanted(clip))) < len(number_words.SPANISH):
            return clip

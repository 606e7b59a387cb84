"""Own small data for the published suites, in the published layouts: held-out voices ask, drawn videos show.

None of it is anybody's recording, and no figure of it can be compared with a published one. A case is a pure function
of (bank, seed, suite, kind, number). It asks for what the tiny model knows where a suite has such a thing, and for what
it was never taught where not: the latter is typed, or cut together of a voice's own words (`splice.sentence`).
"""

import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import av
import numpy as np

from tml_jax.data import scenes
from tml_jax.data.config import QUIET_ROOM, DataConfig
from tml_jax.data.director import Director
from tml_jax.data.scenarios import background_answer
from tml_jax.data.speech_bank import Clip, SpeechBank
from tml_jax.data.splice import Spliced, sentence
from tml_jax.data.timeline import Conversation, Frames, UserText
from tml_jax.data.voices import Cast
from tml_jax.eval.suites.common import APART_S
from tml_jax.eval.suites.judge import never_says, says
from tml_jax.eval.targets import Case
from tml_jax.streams import number_words
from tml_jax.streams.micro_turn import StreamSpec

NOTE = "own data, drawn by --seed: no figure of it is comparable with a published one"
_EARLY_S, _LATE_S = 0.3, 0.3  # of a timer, around its time
_SEEN_EARLY_S, _SEEN_LATE_S = 0.2, 0.6  # of what is said at something seen: words are dated by their micro-turn
_ANSWER_S = 5.0  # after the user's end
_LONG_S = 5  # a timer from here on can be called off in good time
_RESTS_S = 3.0  # how long a film goes on after its last motion
_SIGHTS = {
    "ball": "a ball bounces",
    "arms": "a person raises both arms",
    "bar": "a bar swings",
    "mouth": "a mouth opens and closes",
}
_VIDEO = "input.mp4"

Row = dict[str, Any]
Needs = tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Miniature:
    """A suite's own data: users to be played, and what the published layout says of them.

    Attributes:
      cases: named by the suite and the case's name in the annotations.
      file: the annotations' name.
      annotations: the file's text.
    """

    cases: Sequence[Case]
    file: str
    annotations: str

    def write(self, folder: pathlib.Path) -> pathlib.Path:
        """Writes the annotations; returns their path."""
        path = folder / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.annotations, encoding="utf-8")
        return path

    def write_videos(self, folder: pathlib.Path) -> None:
        """Writes what the users show, ``input.mp4`` in each case's folder, for systems that have none of our doors."""
        for case in self.cases:
            for film in case.conversation.of(Frames):
                (folder / case.name).mkdir(parents=True, exist_ok=True)
                _encode(folder / case.name / _VIDEO, film)


def file_of(suite: str) -> str:
    """What the annotations of a suite's own data are called, in the folder of a run."""
    return _SUITES[suite][1]


def draw(suite: str, bank: SpeechBank, spec: StreamSpec, seed: int, samples: int) -> Miniature:
    """So many cases of each kind that the suite has.

    Raises:
      ValueError: the bank lacks held-out voices for a kind.
    """
    kinds, _, write = _SUITES[suite]
    config = DataConfig(seed=seed, acoustics=QUIET_ROOM)
    cast = Cast(config, bank, "heldout")
    cases, rows = [], []
    for kind, (category, (needs, make)) in enumerate(kinds.items()):
        for number in range(samples):
            rng = np.random.default_rng((seed, list(_SUITES).index(suite), kind, number))
            director = Director(rng, config, spec, cast, cast.speaker(rng, needs))
            row = make(director) | {"id": f"{category.replace('/', '-')}-{number}", "category": category}
            ended = director.now
            rows.append(row | {"duration": ended})
            whole = Conversation(ended, tuple(director.events), True, category)
            name = f"{suite}/{row['id']}" + row.get("moment", "")
            cases.append(Case(name, suite, category, whole, number))
    return Miniature(cases, file_of(suite), write(rows))


def _encode(path: pathlib.Path, film: Frames) -> None:
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=round(film.fps))
        stream.height, stream.width = film.frames.shape[1:3]
        stream.pix_fmt, stream.options = "yuv444p", {"crf": "10"}
        for frame in film.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


# ---- the parts of a case


def _number(clip: Clip | Spliced) -> int:
    return next(number_words.from_words(word) for word in clip.text.split() if word in number_words.UNITS)


def _request(director: Director, *text: str) -> tuple[Clip | Spliced, float]:
    """The user says one of these sentences, cut together where the voice has no clip of it; and its end.

    Raises:
      ValueError: the voice lacks a word.
    """
    words = text[int(director.rng.integers(len(text)))]
    said = sentence(director.cast.bank, director.speaker.clips, words, director.rng)
    if said is None:
        raise ValueError(f"The voice {director.speaker.name} of the speech bank cannot say “{words}”.")
    return said, director.user(said, director.now)


def _due(word: str, at: float) -> Row:
    return {"say": [word], "from": round(at - _EARLY_S, 3), "to": round(at + _LATE_S, 3)}


def _never(word: str, start: float, end: float) -> Row:
    return {"never": [word], "from": round(start, 3), "to": round(end, 3)}


def _seen(word: str, at: float) -> Row:
    return {"say": [word], "from": round(at - _SEEN_EARLY_S, 3), "to": round(at + _SEEN_LATE_S, 3)}


def _film(director: Director, after: float, fewest: int = 2, shortest_s: float = 0.0) -> tuple[str, scenes.Repetitions]:
    """Something repeats from soon after that time on; what it is, and when."""
    behaviour, rng = director.config.behaviour, director.rng
    lengths = max(shortest_s, behaviour.repetition[0]), behaviour.repetition[1]
    limit = float(rng.uniform(*behaviour.filmed_duration))
    wanted = int(rng.integers(fewest, behaviour.repetitions[1] + 1))
    motion = scenes.draw_repetitions(rng, wanted, after + rng.uniform(1.0, 2.0), lengths, limit - _RESTS_S)
    scene = scenes.draw_scene(rng)
    director.now = motion.ends[-1] + _RESTS_S
    times = np.arange(round((director.now + 1.0) * behaviour.video_fps)) / behaviour.video_fps
    director.film(scene.frames(motion.phases(times), rng))
    return scene.kind, motion


def _words_up_to(number: int) -> list[str]:
    return [number_words.to_words(n) for n in range(1, number + 1)]


# ---- TimeSpeak and CueSpeak


def _once(director: Director) -> Row:
    clip = director.pick("timer")
    end = director.user(clip, director.now)
    at = end + _number(clip)
    director.now = at + 2.0
    return {"asked": clip.text, "expect": [_due("now", at)]}


def _two_at_once(director: Director) -> Row:
    """A second timer while the first one runs."""
    first, second = (director.pick("timer") for _ in range(2))
    one = director.user(first, director.now)
    two = director.user(second, one + 1.2)
    times = one + _number(first), two + _number(second)
    director.now = max(times) + 2.0
    return {"asked": f"{first.text}, {second.text}", "expect": [_due("now", at) for at in times]}


def _called_off(director: Director) -> Row:
    timers = director.speaker.family("timer")
    long = [clip for clip in timers if _number(clip) >= _LONG_S] or timers
    clip, stop = long[int(director.rng.integers(len(long)))], director.pick("stop")
    end = director.user(clip, director.now)
    at = end + _number(clip)
    over = director.user(stop, float(director.rng.uniform(end + 1.2, max(end + 1.3, at - 2.0))))
    director.now = max(at, over) + 2.0
    return {"asked": f"{clip.text}, {stop.text}", "expect": [_never("now", over + 0.6, director.now)]}


def _repeated(director: Director) -> Row:
    clip = director.pick("beeper")
    end, every = director.user(clip, director.now), _number(clip)
    times = [end + every * i for i in range(1, 4)]
    director.now = times[-1] + min(2.0, every / 2)
    return {"asked": clip.text, "expect": [_due("beep", at) for at in times]}


def _stopped(director: Director) -> Row:
    clip, stop = director.pick("beeper"), director.pick("stop")
    end, every = director.user(clip, director.now), _number(clip)
    times = [end + every, end + 2 * every]
    over = director.user(stop, times[-1] + float(director.rng.uniform(0.5, max(0.6, every - 1.2))))
    director.now = over + every + 1.0
    return {
        "asked": f"{clip.text}, {stop.text}",
        "expect": [*(_due("beep", at) for at in times), _never("beep", over + 0.6, director.now)],
    }


def _each_repetition(director: Director) -> Row:
    clip = director.pick("repetitions")
    _, motion = _film(director, director.user(clip, director.now))
    counted = zip(_words_up_to(len(motion.ends)), motion.ends, strict=True)
    return {"asked": clip.text, "expect": [_seen(word, at) for word, at in counted]}


def _while_speaking(director: Director) -> Row:
    """The user talks on while the model is to count: it speaks at the cue all the same."""
    row, over = _each_repetition(director), director.now
    at = row["expect"][0]["from"]
    while at < over - _RESTS_S:
        at = director.user(director.pick("talk"), at) + 0.4
    director.now = max(over, at)
    return row


def _after_repetitions(director: Director) -> Row:
    """Nobody taught the tiny model this."""
    asked, end = _request(
        director, *(f"tell me when {word} repetitions have passed" for word in ("two", "three", "four"))
    )
    _, motion = _film(director, end, fewest=4)
    due = _number(asked)
    said = [_seen("now", motion.ends[due - 1])] if due <= len(motion.ends) else [_never("now", end, director.now)]
    return {"asked": asked.text, "expect": said}


def _lines(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# ---- RepCount-A


def _count(director: Director) -> Row:
    kind, motion = _film(director, director.user(director.pick("repetitions"), director.now))
    return {"type": kind, "ends": motion.ends, "starts": motion.starts, "fps": director.config.behaviour.video_fps}


def _table(rows: Sequence[Row]) -> str:
    marks = [
        [round(time * row["fps"]) for pair in zip(row["starts"], row["ends"], strict=True) for time in pair]
        for row in rows
    ]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["", "type", "name", "count", *(f"L{i + 1}" for i in range(max(map(len, marks))))])
    for i, (row, frames) in enumerate(zip(rows, marks, strict=True)):
        writer.writerow([i, row["type"], f"{row['id']}.mp4", len(row["ends"]), *frames])
    return file.getvalue()


# ---- Charades


def _moment(director: Director) -> Row:
    """Typed, since no voice of the bank says it."""
    asked = director.now
    kind, motion = _film(director, asked + 1.0)
    director.events.append(UserText(asked, f"say start when this begins, and stop when it ends: {_SIGHTS[kind]}"))
    return {"sentence": _SIGHTS[kind], "start": motion.starts[0], "end": motion.ends[-1], "moment": "/1"}


def _moments(rows: Iterable[Row]) -> str:
    return "".join(f"{row['id']} {row['start']:.2f} {row['end']:.2f}##{row['sentence']}\n" for row in rows)


# ---- ProactiveVideoQA


def _running_count(director: Director) -> Row:
    clip = director.pick("repetitions")
    _, motion = _film(director, director.user(clip, director.now), shortest_s=1.2 * APART_S)
    ends = [*motion.ends, director.now]
    return {
        "question": clip.text,
        "turns": [
            (word, start, end) for word, start, end in zip(_words_up_to(len(motion.ends)), ends, ends[1:], strict=False)
        ],
    }


def _what_moves(director: Director) -> Row:
    asked = director.now
    kind, motion = _film(director, asked + 1.0)
    director.events.append(UserText(asked, "say what moves as soon as you see it"))
    turns = [(_SIGHTS[kind], motion.starts[0], director.now)]
    return {"question": "say what moves as soon as you see it", "turns": turns}


def _questions(rows: Iterable[Row]) -> str:
    told = []
    for row in rows:
        answers = []
        for content, *span in row["turns"]:
            span = [round(time, 3) for time in span]
            answers.append({"role": "assistant", "content": content, "related_timespan": span, "reply_timespan": span})
        asked = [{"role": "user", "content": row["question"], "time": 0}]
        about = {"video": f"{row['id']}.mp4", "question_id": row["id"], "duration": round(row["duration"], 3)}
        told.append(about | {"conversation": asked, "answer": answers})
    return json.dumps(told, indent=1, ensure_ascii=False) + "\n"


# ---- Audio MultiChallenge


def _numbers_in(clip: Clip | Spliced) -> str:
    return " ".join(clip.text.split()[1:-1])


def _edited(director: Director) -> Row:
    """The user takes back what was asked, and asks for something else."""
    first = director.pick("repeat")
    others = [c for c in director.speaker.family("repeat") if _numbers_in(first) not in _numbers_in(c)]
    if not others:
        raise ValueError(f"The voice {director.speaker.name} of the speech bank asks to repeat one thing alone.")
    again, filler, start = others[int(director.rng.integers(len(others)))], director.pick("filler"), director.now
    begun, end = _request(director, f"repeat {_numbers_in(first)}")
    director.now = director.user(again, director.user(filler, end + 0.1) + 0.1) + _ANSWER_S
    rubric = [says(_numbers_in(again)), never_says(_numbers_in(first))]
    return _asked([(f"{begun.text}, {filler.text}, {again.text}", "")], rubric, start)


def _retained(director: Director) -> Row:
    """The beeps that the user has stopped stay away."""
    beeper, stop, count = director.pick("beeper"), director.pick("stop"), director.pick("count_to")
    over = director.answer("okay", director.user(beeper, director.now))
    start = director.user(stop, over + float(director.rng.uniform(2.0, 6.0))) + 1.2
    wanted = " ".join(_words_up_to(_number(count)))
    director.now = max(director.answer(wanted, director.user(count, start)), start + _number(beeper)) + 2.0
    turns = [(beeper.text, "okay"), (stop.text, ""), (count.text, wanted)]
    return _asked(turns, [says(wanted), never_says("beep")], start)


def _coherent(director: Director) -> Row:
    """The same question twice has the same answer."""
    sums = [clip for clip in director.speaker.family("delegate") if not clip.text.startswith("what time")]
    clip = sums[int(director.rng.integers(len(sums)))]
    result = background_answer(director, clip)
    start = director.delegate(clip.text, director.user(clip, director.now), result) + 1.0
    director.now = director.delegate(clip.text, director.user(clip, start), result) + 2.0
    return _asked([(clip.text, result)] * 2, [says(result)], start)


def _remembered(director: Director) -> Row:
    """Nobody taught the tiny model this."""
    clip = director.pick("repeat")
    director.now = start = director.answer(_numbers_in(clip), director.user(clip, director.now)) + 1.0
    asked, end = _request(director, "repeat that please")
    director.now = end + _ANSWER_S
    return _asked([(clip.text, _numbers_in(clip)), (asked.text, "")], [says(_numbers_in(clip))], start)


def _asked(turns: Sequence[tuple[str, str]], rubric: Sequence[str], last_from: float) -> Row:
    return {"turns": turns, "rubric": rubric, "last_turn_from": round(last_from, 3)}


def _conversations(rows: Iterable[Row]) -> str:
    told = []
    for row in rows:
        about = {"id": row["id"], "axis": row["category"].upper(), "rubric": row["rubric"]}
        for k, (user, assistant) in enumerate(row["turns"], 1):
            about |= {f"user_turn_{k}_transcript": user, f"assistant_turn_{k}_transcript": assistant}
        told.append(about | {"last_turn_from": row["last_turn_from"]})
    return _lines(told)


_FILMED = (("repetitions",),)
_SUITES: Mapping[str, tuple[Mapping[str, tuple[Needs, Callable[[Director], Row]]], str, Callable[..., str]]] = {
    "timed_speech": (
        {
            "timespeak/once": ((("timer",),), _once),
            "timespeak/two_at_once": ((("timer",),), _two_at_once),
            "timespeak/called_off": ((("timer",), ("stop",)), _called_off),
            "timespeak/repeated": ((("beeper",),), _repeated),
            "timespeak/stopped": ((("beeper",), ("stop",)), _stopped),
            "cuespeak/each_repetition": (_FILMED, _each_repetition),
            "cuespeak/while_speaking": ((*_FILMED, ("talk",)), _while_speaking),
            "cuespeak/after_repetitions": ((*_FILMED, ("timer",), ("repeat",)), _after_repetitions),
        },
        "timed_speech.jsonl",
        _lines,
    ),
    "repcount": ({"count": (_FILMED, _count)}, "repcount.csv", _table),
    "charades": ({"moment": ((), _moment)}, "charades_sta.txt", _moments),
    "proactive": (
        {"count": (_FILMED, _running_count), "sight": ((), _what_moves)},
        "proactive/anno.json",
        _questions,
    ),
    "audio_multichallenge": (
        {
            "voice_editing": ((("repeat",), ("filler",)), _edited),
            "instruction_retention": ((("beeper",), ("stop",), ("count_to",)), _retained),
            "self_coherence": ((("delegate",),), _coherent),
            "inference_memory": ((("repeat",), ("stop",)), _remembered),
        },
        "audio_multichallenge.jsonl",
        _conversations,
    ),
}
"""By suite: its kinds of cases (what the user must be able to say, and how one is made), and their annotations."""

"""The demo's scenes, played to a server one after the other, judged, and left as one conversation."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tml_jax import client
from tml_jax.client import media
from tml_jax.data.demonstration import Scene
from tml_jax.data.timeline import Conversation, Frames, Instructions, UserSpeech, UserText, user_sound
from tml_jax.eval import plot
from tml_jax.eval.conversation import converse, leave
from tml_jax.eval.outcomes import Outcome, outcomes
from tml_jax.streams import sound
from tml_jax.streams.micro_turn import StreamSpec
from tml_jax.wire.behaviour import text_of
from tml_jax.wire.journal import Journal

CHUNK_MS = 20.0
TALK = "(talk to somebody else)"
TAIL_S = 1.0  # after a scene, for a late answer


@dataclasses.dataclass(frozen=True, eq=False)
class Performance:
    """A scene that was played: its script, what came back, when it begins in the whole, and how it is judged."""

    scene: Scene
    script: client.Script
    recording: client.Recording
    start_s: float
    outcomes: Sequence[Outcome]

    @property
    def end_s(self) -> float:
        """When the scene is over in the whole."""
        return self.start_s + self.recording.duration_s

    @property
    def sound(self) -> np.ndarray:
        """The user's sound, for as long as the scene took; float32."""
        assert self.script.sound is not None
        return _fit(self.script.sound.mono(), round(self.recording.duration_s * self.script.sound.sample_rate))

    def meant(self) -> list[tuple[float, str]]:
        """(seconds of the whole, word) of the user; of some talk to others it is only known that there is some."""
        words = []
        for speech in self.scene.conversation.of(UserSpeech):
            start = self.start_s + speech.start_s
            words += [(start + word.start_s, word.text) for word in speech.words or ()] or [(start, TALK)]
        return sorted(words)

    def text(self, kind: str) -> str:
        """The words of the journal's `heard` or `word` events."""
        return text_of(self.recording.events, kind)


def script_of(conversation: Conversation, spec: StreamSpec, seed: int, tail_s: float = TAIL_S) -> client.Script:
    """What the client says, types and shows in a conversation, and `tail_s` of silence after it."""
    spoken = media.SoundFile(user_sound(conversation, spec)[:, None], spec.sample_rate)
    typed = [(text.time_s, text.text) for text in conversation.of(UserText)]
    instructions = " ".join(given.text for given in conversation.of(Instructions))
    film = next(conversation.of(Frames), None)
    video = None
    if film is not None:
        times = (film.start_s + np.arange(len(film.frames)) / film.fps).tolist()
        video = media.VideoFile(list(film.frames), times)
    return client.Script(spoken, video, typed, tail_s=tail_s, instructions=instructions, seed=seed)


def play(server: str, scenes: Sequence[Scene], spec: StreamSpec, seed: int) -> tuple[list[Performance], int]:
    """Plays the scenes to a server at the pace of time, each as a session.

    Args:
      server: host:port.
      scenes: of `draw_scenes`.
      spec: the stream of the server's model.
      seed: of the sessions.

    Returns:
      The performances, and how often the server compiled after its warm-up.

    Raises:
      SessionError: the server refused or ended a session, or has gone.
    """
    played: list[Performance] = []
    compilations, start_s = 0, 0.0
    for number, scene in enumerate(scenes, 1):
        script, recording = script_of(scene.conversation, spec, seed), client.Recording()
        print(f"\nScene {number} of {len(scenes)}: {scene.name}, spoken by {scene.voice}", flush=True)
        compilations = converse(server, script, recording, None, CHUNK_MS)
        length = recording.duration_s = _whole_turns(recording.duration_s, spec)
        judged = outcomes(scene.name, scene.conversation.expectations, recording.events, length, start_s)
        played.append(Performance(scene, script, recording, start_s, judged))
        start_s += length
    return played, compilations


def keep(out: pathlib.Path, played: Sequence[Performance], compilations: int, title: str) -> dict[str, Any]:
    """Writes the performances to a folder as one conversation, and returns its summary.

    ``conversation.wav`` holds both sides; the rest is as `conversation.hold` leaves it, and the summary says in
    ``judged`` what was expected and what happened.

    Raises:
      ValueError: something cannot be written.
    """
    whole, rate = client.Recording(session_id="demo", sample_rate=played[0].recording.sample_rate), 0
    for one in played:
        recording = one.recording
        size = round(recording.duration_s * recording.sample_rate)
        whole.events += _moved(recording, one.start_s)
        whole.reply = np.concatenate([whole.reply, _fit(recording.reply, size)])
        whole.underruns += recording.underruns
        whole.round_trip_ms += recording.round_trip_ms
        whole.thumbnails.shots += [(one.start_s + t, shot) for t, shot in recording.thumbnails.shots]
        whole.duration_s = one.end_s
        rate = one.script.sound.sample_rate if one.script.sound else rate
    (out / "session.jsonl").unlink(missing_ok=True)
    with Journal(out / "session.jsonl") as journal:
        for event in whole.events:
            rest = {name: value for name, value in event.items() if name not in ("type", "t", "turn")}
            journal.write(event["type"], event["t"], event["turn"], **rest)
    user = np.concatenate([one.sound for one in played])
    judged = [outcome for one in played for outcome in one.outcomes]
    score = plot.Score(
        [(one.start_s, one.end_s, _heading(one)) for one in played],
        [word for one in played for word in one.meant()],
        [plot.Mark(outcome.time_s, outcome.end_s, outcome.expected, outcome.met) for outcome in judged],
    )
    figures = {
        "expectations": len(judged),
        "expectations_met": sum(outcome.met is True for outcome in judged),
        "judged": [dataclasses.asdict(outcome) for outcome in judged],
        "scenes": [
            {
                "scene": one.scene.name,
                "voice": one.scene.voice,
                "start_s": round(one.start_s, 3),
                "end_s": round(one.end_s, 3),
                "meant": " ".join(word for _, word in one.meant()),
                "heard": one.text("heard"),
                "said": one.text("word"),
            }
            for one in played
        ],
    }
    reply = sound.resample(whole.reply, whole.sample_rate, rate)
    sound.write_sound(out / "conversation.wav", np.clip(user + _fit(reply, len(user)), -1, 1), rate)
    return leave(out, whole, media.SoundFile(user[:, None], rate), compilations, title, score, figures)


def _heading(one: Performance) -> str:
    met = sum(outcome.met is True for outcome in one.outcomes)
    return f"{one.scene.name}: {met} of {len(one.outcomes)} met, spoken by {one.scene.voice}"


def _moved(recording: client.Recording, start_s: float) -> Iterator[dict[str, Any]]:
    """A scene's events in the time of the whole."""
    period_s = next(event["micro_turn_s"] for event in recording.events if event["type"] == "session")
    for event in recording.events:
        if event["t"] <= recording.duration_s + 1e-6:
            yield event | {"t": round(event["t"] + start_s, 4), "turn": event["turn"] + round(start_s / period_s)}


def _whole_turns(seconds: float, spec: StreamSpec) -> float:
    return round(float(np.ceil(seconds / spec.micro_turn_s - 1e-6)) * spec.micro_turn_s, 6)


def _fit(samples: np.ndarray, size: int) -> np.ndarray:
    """Cut, or followed by silence, to that many samples."""
    return np.pad(samples[:size], (0, max(0, size - len(samples)))).astype(np.float32)

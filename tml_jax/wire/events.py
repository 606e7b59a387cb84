"""What a session tells its client, in the order it happens. Doors translate these to their wire format.

`start_ms` and `end_ms` are session time: where in the conversation a thing sounds.
"""

import dataclasses
import enum

import numpy as np


class Decision(enum.Enum):
    """What the model chose to do in a micro-turn."""

    LISTEN = "listen"
    SPEAK = "speak"
    DELEGATE = "delegate"


@dataclasses.dataclass(frozen=True)
class Stream:
    """The sizes of a micro-turn, as a client needs them; frames in pixels, `max_text` in tokens."""

    micro_turn_ms: int
    sample_rate: int
    frame_width: int
    frame_height: int
    max_text: int


@dataclasses.dataclass(frozen=True)
class Position:
    """How much there is of a client's input: samples of each channel, pictures, texts; whether it was closed."""

    sound: int = 0
    frames: int = 0
    texts: int = 0
    closed: bool = False


@dataclasses.dataclass(frozen=True)
class Started:
    """The session has a slot; `next_tick_s` seconds from now the engine ticks.

    `resume_token` opens it again, within `resume_within_ms` after a call has ended (empty: nothing does); `received` is
    what there is of the input.
    """

    session_id: str
    stream: Stream
    max_chunk_ms: int
    next_tick_s: float
    resume_token: str = ""
    resume_within_ms: int = 0
    received: Position = Position()


@dataclasses.dataclass(frozen=True)
class Turn:
    """One micro-turn was stepped; `input_level`, `silence_ms`, `lost_ms`, `shortened_ms` are of the user's sound in it.

    `frames` came in it, and `frames_dropped` of these were too many to be seen. It waited `queued_ms` for its step.

    `received` is what there is for good of the input, and what its client need not keep. `yielded`, where it is not 0,
    is the epoch that ended here because the user spoke over it: what is not played yet of `Sound` up to it is stale.
    """

    turn: int
    decision: Decision
    step_ms: float
    missed: bool
    silence_ms: int
    input_level: float
    frames: int
    received: Position = Position()
    lost_ms: int = 0
    yielded: int = 0
    shortened_ms: int = 0
    frames_dropped: int = 0
    queued_ms: float = 0.0


@dataclasses.dataclass(frozen=True)
class Words:
    """What the model says in this micro-turn: all these texts, put together as they are, are what it said."""

    turn: int
    text: str
    start_ms: int
    end_ms: int


@dataclasses.dataclass(frozen=True)
class HeardWords:
    """What the user was heard to say, up to the end of this micro-turn; as exact as `Words`."""

    turn: int
    text: str
    start_ms: int
    end_ms: int


@dataclasses.dataclass(frozen=True, eq=False)
class Sound:
    """The model's sound, float32 mono in [-1, 1] at the stream's rate; `level` is its root mean square.

    `epoch` counts, from 1, the stretches of speech, each from one silent decision of the model to the next.
    """

    turn: int
    start_ms: int
    end_ms: int
    samples: np.ndarray
    level: float
    epoch: int = 0


@dataclasses.dataclass(frozen=True)
class Background:
    """A background task started, went on, finished or failed; without a `task`, the client's own model has finished."""

    turn: int
    task: int | None
    state: str
    text: str


@dataclasses.dataclass(frozen=True)
class Ended:
    """The session ended well."""

    turns: int
    deadline_misses: int
    step_p50_ms: float
    step_p99_ms: float
    silence_ms: int


@dataclasses.dataclass(frozen=True)
class GoAway:
    """The server goes down, for this `reason`; the session can be resumed elsewhere, for so long."""

    reason: str
    reconnect_within_ms: int


Event = Started | Turn | Words | HeardWords | Sound | Background | Ended | GoAway

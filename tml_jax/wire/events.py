"""What a session tells its client, in the order it happens. Doors translate these to their wire format."""

import dataclasses
import enum


class Decision(enum.Enum):
    """What the model chose to do in a micro-turn."""

    LISTEN = "listen"
    SPEAK = "speak"
    DELEGATE = "delegate"


@dataclasses.dataclass(frozen=True)
class Started:
    """The session has a slot; `next_tick_s` seconds from now the engine ticks."""

    session_id: str
    next_tick_s: float


@dataclasses.dataclass(frozen=True)
class Turn:
    """One micro-turn was stepped; `input_level` and `silence_ms` describe the user's sound in it."""

    turn: int
    decision: Decision
    step_ms: float
    missed: bool
    silence_ms: int
    input_level: float
    frames: int


@dataclasses.dataclass(frozen=True)
class Words:
    """Words that the model says in this micro-turn."""

    turn: int
    text: str


@dataclasses.dataclass(frozen=True)
class HeardWords:
    """Words of the user that ended in this micro-turn, as the model heard them."""

    turn: int
    text: str


@dataclasses.dataclass(frozen=True)
class Sound:
    """Sound that plays from `time_s` of session time on: 16-bit little-endian mono; `level` is its root mean square."""

    turn: int
    time_s: float
    pcm: bytes
    level: float


@dataclasses.dataclass(frozen=True)
class Background:
    """A background task started, finished or failed."""

    turn: int
    task: int
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


Event = Started | Turn | Words | HeardWords | Sound | Background | Ended

"""What a session sends and wants, and how a server treats its sessions."""

import dataclasses
from typing import Any, Self

from tml_jax.serve import intake
from tml_jax.serve.background.mind import Mind


@dataclasses.dataclass(frozen=True)
class SessionConfig:
    """What a session sends and wants; without `background`, what the model hands over is for its client alone."""

    sends_audio: bool = True
    sends_video: bool = False
    wants_audio: bool = True
    instructions: str = ""
    sound: intake.SoundFormat = intake.SoundFormat()
    seed: int = 0
    background: bool = True

    def to_plain(self) -> dict[str, Any]:
        """It, of plain values alone."""
        sound = vars(self.sound) | {"samples": self.sound.samples.value}
        return vars(self) | {"sound": sound}

    @classmethod
    def of_plain(cls, plain: dict[str, Any]) -> Self:
        """What `to_plain` gave."""
        sound = plain["sound"] | {"samples": intake.SampleFormat(plain["sound"]["samples"])}
        return cls(**plain | {"sound": intake.SoundFormat(**sound)})


@dataclasses.dataclass(frozen=True)
class SessionSettings:
    """How a server treats its sessions.

    Attributes:
      late_ms: sound that is later than this is replaced by silence.
      max_queue_ms: input that may wait for the engine; then the client is slowed down.
      max_text_ms: of text, how long reading what waits may take; then the client is slowed down.
      max_unsent_ms: output that may wait for a reader; then it is told no more.
      linger_ms: silence after the client closed its input that ends the session. longest_linger_ms: at the latest.
      resume_s: how long a resumable session waits for its client. keep_ms: how much it can tell again.
      snapshot_turns: of a session that is kept on disk, micro-turns from one state to the next.
      first_s: how long a session whose time stands still until something comes may wait for that.
      longest_s: how long a session may last. idle_s: how long nothing may be sent or said. most_bytes: sound, pictures
        and text that may be sent. None: without limit.
      mind: the background model of all sessions.
    """

    late_ms: int = 400
    max_queue_ms: int = 2000
    max_text_ms: int = 20_000
    max_unsent_ms: int = 10_000
    linger_ms: int = 1000
    longest_linger_ms: int = 15_000
    resume_s: float = 30.0
    keep_ms: int = 60_000
    snapshot_turns: int = 50
    first_s: float = 60.0
    longest_s: float | None = None
    idle_s: float | None = None
    most_bytes: int | None = None
    mind: Mind = dataclasses.field(default_factory=Mind)

"""What a session sends and wants, and how a server treats its sessions."""

import dataclasses

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


@dataclasses.dataclass(frozen=True)
class SessionSettings:
    """How a server treats its sessions.

    Attributes:
      late_ms: sound that is later than this is replaced by silence.
      max_queue_ms: input that may wait for the engine; then the client is slowed down.
      max_text_ms: of text, how long reading what waits may take; then the client is slowed down.
      max_unsent_ms: output that may wait for a reader; then it is told no more.
      linger_ms: silence after the client closed its input that ends the session. longest_linger_ms: at the latest.
      mind: the background model of all sessions.
    """

    late_ms: int = 400
    max_queue_ms: int = 2000
    max_text_ms: int = 20_000
    max_unsent_ms: int = 10_000
    linger_ms: int = 1000
    longest_linger_ms: int = 15_000
    mind: Mind = dataclasses.field(default_factory=Mind)

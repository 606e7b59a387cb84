"""What can be measured: anything that takes a case's user and gives back a recorded timeline.

A target has a stream's shape, by which cases are made, and one method. A further door needs one more class here.
"""

import asyncio
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from tml_jax import client
from tml_jax.data.timeline import Conversation, user_sound
from tml_jax.eval.performance import script_of
from tml_jax.eval.recorded import RATE, Recorded, chunks_of, words_after
from tml_jax.eval.rollout import Rollout
from tml_jax.streams.micro_turn import StreamSpec
from tml_jax.streams.sound import resample
from tml_jax.wire.behaviour import Behaviour

CHUNK_MS = 20.0
_KINDS = ("checkpoint", "grpc", "folder")


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A user to be played, for as long as the conversation lasts.

    Attributes:
      seed: of the system's draws, where it has any.
      name, suite, category, annotations, prefix: as in `Recorded`.
      transcript_from_s: from when on the system's words are written down.
      together: of a server: so many cases are played at once, this one and those after it; 0: as it is asked for.
    """

    name: str
    suite: str
    category: str
    conversation: Conversation
    seed: int = 0
    annotations: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prefix: str = ""
    transcript_from_s: float = 0.0
    together: int = 0

    def recorded(self, spec: StreamSpec, output: np.ndarray | None, events: Sequence[dict[str, Any]]) -> Recorded:
        """What was heard of it while it lasted: what a system does afterwards belongs to no side of the recording.

        Args:
          spec: the stream's.
          output: float32 [samples] at the stream's rate, from session time 0; None: no sound was kept.
          events: the journal's.
        """
        rate = spec.sample_rate
        events = [event for event in events if event["t"] < self.conversation.duration_s]
        size = round(self.conversation.duration_s * rate)
        spoken = user_sound(self.conversation, spec)[:size]
        if output is not None:
            output = resample(np.pad(output[:size], (0, max(0, size - len(output)))), rate, RATE)
        return Recorded(
            name=self.name,
            input=resample(spoken, rate, RATE),
            output=output,
            duration_s=self.conversation.duration_s,
            suite=self.suite,
            category=self.category,
            expectations=self.conversation.expectations,
            events=events,
            chunks=words_after(chunks_of(Behaviour.from_events(events)), self.transcript_from_s),
            annotations=self.annotations,
            prefix=self.prefix,
        )


class Target(Protocol):
    """See the module."""

    @property
    def spec(self) -> StreamSpec:
        """The stream for which cases are made."""

    def play(self, cases: Sequence[Case], *, sound: bool) -> Iterator[Recorded]:
        """Plays cases, and tells of each, in their order; where no `sound` is asked for it may be left out."""


class Checkpoint:
    """A saved model, through the very step that serves.

    Args:
      rollout: of the model.
    """

    def __init__(self, rollout: Rollout) -> None:
        self._rollout = rollout

    @property
    def spec(self) -> StreamSpec:
        """The model's."""
        return self._rollout.spec

    def play(self, cases: Sequence[Case], *, sound: bool) -> Iterator[Recorded]:
        """As `Target`."""
        slots = self._rollout.slots
        for first in range(0, len(cases), slots):
            now = cases[first : first + slots]
            played = self._rollout.run([case.conversation for case in now], [case.seed for case in now], sound=sound)
            for case, (events, output) in zip(now, played, strict=True):
                yield case.recorded(self.spec, output, events)


class Grpc:
    """A server behind the gRPC door.

    Args:
      server: host:port, or more of it.
      real_time: play at the pace of time, as people do; False: as fast as the server takes it, for one that has
        ``--faster_than_real_time``.
      sessions: conversations at once.

    Raises:
      SessionError: the server cannot be reached.
    """

    def __init__(self, server: str | client.Address, *, real_time: bool, sessions: int) -> None:
        self._server, self._real_time, self._sessions = server, real_time, sessions
        info = asyncio.run(self._info())
        self.slots, stream = info.slots, info.stream
        self.spec = dataclasses.replace(
            StreamSpec(),
            sample_rate=stream.sample_rate,
            micro_turn_ms=stream.micro_turn_ms,
            frame_width=stream.frame_width,
            frame_height=stream.frame_height,
        )

    async def _info(self) -> Any:
        channel = client.connect(self._server)
        async with channel:
            return await client.server_info(channel)

    def play(self, cases: Sequence[Case], *, sound: bool) -> Iterator[Recorded]:
        """As `Target`; always with sound.

        Raises:
          SessionError: the server refused or ended a session, or has gone.
        """
        del sound
        while cases:
            size = cases[0].together or self._sessions
            yield from asyncio.run(self._hold(cases[:size]))
            cases = cases[size:]

    async def _hold(self, cases: Sequence[Case]) -> list[Recorded]:
        async def one(case: Case) -> Recorded:
            script = script_of(case.conversation, self.spec, case.seed, tail_s=0.0)
            channel = client.connect(self._server)
            async with channel:
                recording = await client.converse(channel, script, chunk_ms=CHUNK_MS, real_time=self._real_time)
            reply = resample(recording.reply, recording.sample_rate, self.spec.sample_rate)
            return case.recorded(self.spec, reply, recording.events)

        return await asyncio.gather(*map(one, cases))


def parse(target: str) -> tuple[str, str]:
    """``kind:rest`` -> (kind, rest).

    Raises:
      ValueError: there is no such target.
    """
    kind, _, rest = target.partition(":")
    if kind not in _KINDS or not rest:
        raise ValueError(f"A target is checkpoint:PATH, grpc:HOST:PORT or folder:DIR, not {target!r}.")
    return kind, rest

"""A session's output half: what the model writes becomes words and sound, is acted on, told, and kept."""

import asyncio
import collections
import dataclasses
import time
from typing import Any

import numpy as np

from tml_jax.serve.audience import Audience
from tml_jax.serve.background.context import Said
from tml_jax.serve.config import SessionConfig, SessionSettings
from tml_jax.serve.engine import Engine, TurnResult
from tml_jax.serve.errors import JournalError, OverloadedError
from tml_jax.serve.inbox import Block
from tml_jax.serve.outlet import Outlet
from tml_jax.serve.recording import Recording
from tml_jax.serve.session_input import Pools, SessionInput
from tml_jax.serve.session_log import SessionLog
from tml_jax.serve.watch import SessionWatch
from tml_jax.streams.micro_turn import StreamSpec
from tml_jax.wire import events, messages, protos
from tml_jax.wire.journal import Journal, journal_event

REMEMBERED = 20_000  # step times


def stream_of(spec: StreamSpec) -> events.Stream:
    """What clients are told of a stream."""
    return events.Stream(**{field.name: getattr(spec, field.name) for field in dataclasses.fields(events.Stream)})


class SessionOutput(SessionInput):
    """A `Session` without those who come and go. All that it tells is a function of the micro-turns' blocks."""

    def __init__(
        self,
        config: SessionConfig,
        engine: Engine,
        journal: Journal,
        pools: Pools,
        settings: SessionSettings,
        log: SessionLog | None,
        keep_ms: int | None,
    ) -> None:
        super().__init__(config, engine, pools, settings, log)
        self._journal, self._recording = journal, journal if isinstance(journal, Recording) else None
        self.watch = SessionWatch(config, self._spec.micro_turn_s)
        self._audience = Audience(self._spec.micro_turn_ms, keep_ms, engine.notify)
        self._outlet = Outlet(self._spec, self._tokenizer, engine.bundle.voice)
        self._results: asyncio.Queue[TurnResult] = asyncio.Queue()
        self._step_ms: collections.deque[float] = collections.deque(maxlen=REMEMBERED)
        self._misses = self._silence_ms = self._quiet = 0
        self._cut: tuple[int, float] = (0, 0.0)  # the last epoch that the user cut short, and its end

    @property
    def turns(self) -> int:
        """Micro-turns so far."""
        return self._turn + 1

    def _receive(self, result: TurnResult) -> None:
        self._results.put_nowait(result)
        self._room.set()
        limit_ms = self._settings.max_unsent_ms
        if not self._engine.unpaced and self._results.qsize() * self._spec.micro_turn_ms > limit_ms:
            behind = f"{limit_ms / 1000:g} s behind in making this session's sound"
            self.end(OverloadedError(f"The server is {behind}, so the session was ended."))

    def _unread_ms(self) -> int:
        """Of an engine that waits for its sessions: how far the slowest reader is behind."""
        return self._results.qsize() * self._spec.micro_turn_ms + self._audience.behind_ms

    async def _tell(self) -> None:
        """Takes what the model writes, keeps it, acts on it and tells it: whether anybody reads or not."""
        try:
            while not self._finished():
                result = await self._results.get()
                told = await self._work(self._decode, result, pool=self._pools.output)
                told = self._record(result.block, told)
                self.watch.told(told)
                self._audience.tell(told)
                await self._keep_told(result, told)
                if result.state is not None:
                    await self._save(result)
                self._engine.notify()
            times = np.asarray(self._step_ms or [0.0])
            p50, p99 = (float(np.percentile(times, q)) for q in (50, 99))
            self._journal.write("end", self._now(), self._turn)
            self._audience.tell([events.Ended(self._turn + 1, self._misses, p50, p99, self._silence_ms)])
            self.end(None)
        except Exception as error:  # reported, or nobody would know
            self.end(error)

    def _decode(self, result: TurnResult) -> list[events.Event]:
        """Tokens and mel to words and sound; runs in the pool."""
        turn, block = result.turn, result.block
        decision = self._outlet.decision(result.tokens)
        told: list[events.Event] = [
            events.Turn(
                turn,
                decision,
                result.step_ms,
                result.missed,
                block.silence_ms,
                block.level,
                block.frames,
                block.received,
                block.lost_ms,
                self._outlet.yielded(turn, result.tokens, result.heard),
                block.shortened_ms,
                block.frames_dropped,
                result.queued_ms,
            )
        ]
        told += self._outlet.words(turn, result.tokens, result.heard)
        if self.config.wants_audio:
            mel = result.mel.reshape(self._spec.mel_frames, self._spec.mel_bins)
            sound = self._outlet.sound(turn, mel if result.speaking else None)
            told += [sound] if sound else []
        return told

    def _record(self, block: Block, told: list[events.Event]) -> list[events.Event]:
        """A micro-turn's events into the journal, and into what the background model will be told; then asks it."""
        delegates, turn = False, self._turn + 1
        for note in block.notes:
            if note.who == "task":
                told.append(events.Background(turn, note.task, note.state, note.text))
                self._tasks.told(note)
                continue
            if note.who not in ("background", "remembered"):
                kind = "instructions" if note.who == "instructions" else "text"
                self._journal.write(kind, turn * self._spec.micro_turn_s, turn, text=note.text)
            who = "background" if note.who == "remembered" else note.who
            self._said.add(Said(turn * self._spec.micro_turn_s, who, note.text))
            if note.who == "user_text":
                self._actor.typed(note.text)
        for event in told:
            journal_event(self._journal, event, self._spec.micro_turn_s, self.config.sends_audio)
            match event:
                case events.Turn():
                    self._count(event)
                    delegates = event.decision is events.Decision.DELEGATE
                    if event.frames:
                        self._said.add(Said(self._now(), "camera", str(event.frames)))
                case events.HeardWords():
                    self._said.add(Said(self._now(), "user", event.text))
                case events.Words():
                    self._said.add(Said(self._now(), "model", event.text))
        self._actor.observe(told)
        if any(note.who == "background" for note in block.notes):
            self._quiet = 0
        if delegates and self.config.background:
            self._tasks.hand_over(self._now(), self._said)
        return told

    def played(self, epoch: int, until_ms: int) -> None:
        """Of an epoch that was cut short the client has played what comes before `until_ms`; the rest was not said.

        What the background model will be told depends on it, and nothing that the model reads but the answer to that,
        which is kept with the session's input. Without it all that was told counts as said.
        """
        cut, end_s = self._cut
        if epoch == cut:
            self.unsay(until_ms, round(end_s * 1000))

    def unsay(self, start_ms: int, end_ms: int) -> None:
        """The words whose sound begins in this session time were not heard: the background model is not told them."""
        self._said.unsay(start_ms / 1000, end_ms / 1000)

    def _count(self, event: events.Turn) -> None:
        self._turn = event.turn
        if event.yielded:
            self._cut = event.yielded, self._now()
        self._step_ms.append(event.step_ms)
        self._misses += event.missed
        self._silence_ms += event.silence_ms
        if event.decision is not events.Decision.LISTEN:
            self._active_at = time.monotonic()
        quiet = (
            self._closed_at is not None and event.turn >= self._closed_at and event.decision is events.Decision.LISTEN
        )
        self._quiet = self._quiet + 1 if quiet else 0

    def _finished(self) -> bool:
        if self._closed_at is None:
            return False
        since_close = (self._turn + 1 - self._closed_at) * self._spec.micro_turn_ms
        settled = self._quiet * self._spec.micro_turn_ms >= self._settings.linger_ms and not self._tasks.pending
        return settled or since_close >= self._longest_linger_ms

    # What is kept.

    async def _keep_told(self, result: TurnResult, told: list[events.Event]) -> None:
        """A micro-turn that was told, where the session is recorded."""
        if self._recording is not None:
            said = next((event.samples for event in told if isinstance(event, events.Sound)), None)
            lines = self._recording.taken()
            await self._work(self._recording.append, result, said, lines, pool=self._pools.output)

    async def _save(self, result: TurnResult) -> None:
        """Keeps all that the session is after this micro-turn."""
        assert self._log is not None
        log, block, turn = self._log, result.block, self._turn + 1
        told = [(number, messages.to_message(event).SerializeToString()) for number, event in self._audience.kept]
        state = {
            "outlet": self._outlet.state(),
            "said": [dataclasses.astuple(said) for said in self._said],
            "told": (self._audience.told, told),
            "tasks": self._tasks.state(),
            "waiting": block.waiting,
            "counts": (self._misses, self._silence_ms, self._quiet),
            "closed": (self._closed_at, self._longest_linger_ms),
            "cut": self._cut,
            "last": {"received": vars(block.received), "heard": block.heard, "held": block.held},
            "journal": self._journal.size,
        }
        try:
            await self._work(
                lambda: log.save(turn, state | {"row": self._engine.to_host(result.state)}), pool=self._pools.output
            )
        except OSError as error:
            raise JournalError(f"What this session is kept in cannot be written: {error.strerror}.") from error

    def _restore(self, turn: int, state: dict[str, Any]) -> None:
        self._turn = turn - 1
        self._outlet.go_on(state["outlet"])
        for said in state["said"]:
            self._said.add(Said(*said))
        told, kept = state["told"]
        again = ((number, messages.to_event(protos.ConverseResponse.FromString(data))) for number, data in kept)
        self._audience.go_on(told, again)
        self._inbox.go_on(turn, state["waiting"], state["last"]["received"]["texts"])
        self._misses, self._silence_ms, self._quiet = state["counts"]
        self._close_at(*state["closed"])
        self._cut = state["cut"]

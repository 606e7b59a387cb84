"""A session: a client's sound, frames and text become micro-turns, and what the model writes becomes sound and words.

A session's own work runs in small thread pools, one piece at a time, so that neither the event loop nor the
engine's thread waits for it, and one session's work or failure never touches another's. What comes in has a
pool of its own: it must be ready by the next tick, while making sound may take a little longer.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import pathlib
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tml_jax.serve import intake
from tml_jax.serve.assembler import Assembler
from tml_jax.serve.background.actor import BackgroundActor, TaskEvent
from tml_jax.serve.config import SessionConfig, SessionSettings
from tml_jax.serve.engine import Engine, TurnResult
from tml_jax.serve.errors import JournalError, OverloadedError
from tml_jax.serve.inbox import Block, Inbox
from tml_jax.serve.outlet import Outlet
from tml_jax.serve.pacing import Pacer
from tml_jax.serve.subscription import Subscription
from tml_jax.streams.micro_turn import MicroTurnInput, StreamSpec
from tml_jax.wire import events
from tml_jax.wire.journal import Journal, journal_event

WATCH_S = 0.02
AHEAD = 4  # micro-turns that an unpaced session whose input is closed keeps ready


def stream_of(spec: StreamSpec) -> events.Stream:
    """What clients are told of a stream."""
    return events.Stream(**{field.name: getattr(spec, field.name) for field in dataclasses.fields(events.Stream)})


class Pools:
    """The threads that sessions share: for sound that comes in, for pictures (no sound waits for them), for output."""

    def __init__(self, output_workers: int = 2) -> None:
        """Starts no thread before it is needed."""
        self.intake = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="intake")
        self.pictures = concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="pictures")
        self.heavy = asyncio.Lock()  # one large picture at a time: small ones find a thread
        self.output = concurrent.futures.ThreadPoolExecutor(output_workers, thread_name_prefix="output")


class Session:
    """One live conversation, which runs by itself: to its end, whether anybody reads what it tells or not.

    Made and used on the event loop; `ready`, `take`, `deliver`, `fail` are the engine's.

    Attributes:
      id: unique on this server. config: what its client asked for.
    """

    def __init__(
        self,
        session_id: str,
        config: SessionConfig,
        engine: Engine,
        journal: Journal,
        pools: Pools,
        settings: SessionSettings,
        on_over: Callable[["Session"], None],
    ) -> None:
        """Takes a slot; `on_over` is called when the session has ended.

        Raises:
          ServerFullError: there is none.
          JournalError: the journal cannot be written.
        """
        self.id, self.config, self._settings = session_id, config, settings
        self._engine, self._journal, self._pools = engine, journal, pools
        self._spec, self._tokenizer = engine.bundle.spec, engine.bundle.tokenizer
        self._control = self._tokenizer.control
        self._loop, self._busy, self._room = asyncio.get_running_loop(), asyncio.Lock(), asyncio.Event()
        self._readers: list[Subscription] = []
        self._on_over = on_over
        self._inbox = Inbox(self._spec, self._control.tick, engine.notify)
        self._pacer = Pacer(self._spec.micro_turn_s, settings.late_ms / 1000)
        self._sound = intake.SoundIntake(config.sound, self._spec)
        self._assembler = Assembler(self._spec, config.sends_audio, self._inbox, self._pacer)
        self._outlet = Outlet(self._spec, self._tokenizer)
        self._results: asyncio.Queue[TurnResult | events.Event] = asyncio.Queue()
        self._step_ms: list[float] = []
        self._misses = self._silence_ms = self._quiet = 0
        self._turn, self._longest_linger_ms = -1, settings.longest_linger_ms
        self._closed_at: int | None = None
        self._over = False
        self._error: Exception | None = None
        self._actor = BackgroundActor(settings.mind, self._answer, self._report, self._now)
        self._slot = engine.admit(self, config.seed)
        try:
            self._begin()
        except OSError as error:
            engine.release(self._slot, self)
            raise JournalError(f"The journal of this session cannot be written: {error.strerror}.") from error
        self._watcher = asyncio.create_task(self._watch())
        self._pump = asyncio.create_task(self._tell())

    def _begin(self) -> None:
        self._journal.write(
            "session",
            0,
            0,
            session=self.id,
            seed=self.config.seed,
            micro_turn_s=self._spec.micro_turn_s,
            started_unix_s=time.time(),
        )
        if instructions := self.config.instructions.strip():
            self._put_text("instructions", self._control.instructions, instructions)
            self._actor.instructed(instructions)
        if not self.config.sends_audio:
            self._pacer.begin(time.monotonic())

    # What the client sends.

    async def push_audio(self, pcm: bytes) -> None:
        """Sound; waits while the engine is behind. Raises BadInputError for what cannot be taken."""
        if not self.config.sends_audio:
            raise intake.BadInputError(
                "This session was opened without sound: set sends_audio in its config to send some."
            )
        self._check_open("sound")
        async with self._busy:
            await self._work(self._take_sound, pcm)
        while self._inbox.queued * self._spec.micro_turn_ms > self._settings.max_queue_ms and not self._over:
            self._room.clear()
            await self._room.wait()

    async def push_frame(self, data: bytes, form: intake.FrameFormat, width: int = 0, height: int = 0) -> None:
        """A picture. Raises BadInputError for what cannot be taken."""
        if not self.config.sends_video:
            raise intake.BadInputError(
                "This session was opened without video: set sends_video in its config to send some."
            )
        self._check_open("a picture")
        arguments, pictures = (data, form, width, height, self._spec), self._pools.pictures
        heavy = await self._work(intake.is_heavy, data, form, pool=pictures)
        async with self._pools.heavy if heavy else contextlib.nullcontext():
            frame = await self._work(intake.decode_frame, *arguments, pool=pictures)
        async with self._busy:
            self._assembler.push_frame(frame)
            self._actor.saw(frame)

    async def push_text(self, text: str) -> None:
        """Typed text; waits while there is much to read. Raises BadInputError for what cannot be taken."""
        text = intake.check_text(text)
        self._check_open("text")
        count, most = 1 + len(self._tokenizer.encode(" " + text)), self._max_text
        if count > most:
            raise intake.BadInputError(f"A text message of {count} tokens is too long: send at most {most} at once.")
        while self._inbox.waiting_text + count > most and not (self._over or self._engine.unpaced):
            self._room.clear()
            await self._room.wait()
        self._put_text("text", self._control.user, text)
        self._actor.typed(text)

    def _check_open(self, what: str) -> None:
        if self._closed_at is not None:
            raise intake.BadInputError(f"This session's input was closed, but {what} came after that.")

    @property
    def _max_text(self) -> int:
        """Tokens of text that may wait, as many as are read in `max_text_ms`."""
        return self._settings.max_text_ms * self._spec.max_text // self._spec.micro_turn_ms

    def push_context(self, text: str, *, to_say: bool) -> None:
        """What the client's own background model found, for the model `to_say`, or else further instructions.

        Raises BadInputError for what cannot be taken, also where the model has too much to read already.
        """
        text = intake.check_text(text)
        self._check_open("text")
        if self._inbox.waiting_text + 1 + len(self._tokenizer.encode(" " + text)) > self._max_text:
            seconds = f"{self._settings.max_text_ms / 1000:g}"
            raise intake.BadInputError(
                f"The model would have more than {seconds} s of text to read: send less, or later."
            )
        if not to_say:
            self._put_text("instructions", self._control.instructions, text)
            self._actor.instructed(text)
        elif not self._actor.offer(text):
            raise intake.BadInputError("Too many results wait to be said already: send fewer, or later.")

    def begin(self) -> None:
        """Time goes on from now on, whether sound comes or not."""
        self._pacer.begin(time.monotonic())

    async def close_input(self, longest_linger_ms: int | None = None) -> None:
        """No more will come: silence follows until the model has nothing more to say, or for so long."""
        if self._closed_at is not None:
            return
        self._longest_linger_ms = longest_linger_ms or self._longest_linger_ms
        async with self._busy:
            if self._pacer.begun and self.config.sends_audio:
                await self._work(self._assembler.push, self._sound.flush())
            self._pacer.begin(time.monotonic())
            self._closed_at = self._inbox.completed

    # What the session tells.

    def subscribe(self) -> Subscription:
        """A new reader of everything that the session tells from now on; the first thing is `Started`."""
        limit_ms = None if self._engine.unpaced else self._settings.max_unsent_ms
        reader = Subscription(self._spec.micro_turn_ms, limit_ms, self._engine.notify)
        reader.put(events.Started(self.id, stream_of(self._spec), intake.MAX_CHUNK_MS, self._engine.next_tick_s()))
        if self._over:
            reader.finish(self._error)
        self._readers.append(reader)
        return reader

    def end(self, error: Exception | None) -> None:
        """Ends the session, for an `error` if it does not end well, and frees its slot; only the first reason counts.

        As `fail`, for the event loop.
        """
        if self._over:
            return
        self._over, self._error = True, error
        self._engine.release(self._slot, self)
        for task in (self._watcher, self._pump):
            if task is not asyncio.current_task():
                task.cancel()
        self._actor.close()
        with contextlib.suppress(OSError):  # what the session ends for may be its journal
            if error:
                self._journal.write("error", self._now(), max(0, self._turn), text=str(error))
            self._journal.close()
        for reader in self._readers:
            reader.finish(error)
        self._room.set()
        self._on_over(self)

    # What the engine's thread calls.

    def ready(self, now: float | None) -> bool:
        """Whether a micro-turn can be stepped."""
        if self._engine.unpaced and self._unread_ms() > self._settings.max_unsent_ms:
            return False
        return self._inbox.ready(now)

    def take(self, inputs: MicroTurnInput, row: int) -> Block:
        """Writes the next micro-turn into the engine's arrays."""
        return self._inbox.take(inputs, row)

    def deliver(self, result: TurnResult) -> None:
        """The model's part of that micro-turn."""
        self._call(self._receive, result)

    def fail(self, error: Exception) -> None:
        """The session cannot go on."""
        self._call(self.end, error)

    def _call(self, function: Callable[[Any], None], argument: object) -> None:
        if not self._over and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, argument)

    # Input side.

    async def _work(  # noqa: ANN202
        self, function: Callable[..., Any], *arguments: object, pool: concurrent.futures.Executor | None = None
    ):
        return await self._loop.run_in_executor(pool or self._pools.intake, function, *arguments)

    def _take_sound(self, pcm: bytes) -> None:
        samples = self._sound.push(pcm)
        self._pacer.begin(time.monotonic(), len(samples) / self._spec.sample_rate)
        self._assembler.push(samples)

    async def _watch(self) -> None:
        """Completes micro-turns whose sound does not come."""
        try:
            while True:
                async with self._busy:
                    while self._starved(time.monotonic()):
                        await self._work(lambda: self._assembler.pad(expected=self._closed_at is not None))
                await asyncio.sleep(0.001 if self._engine.unpaced and self._closed_at is not None else WATCH_S)
        except Exception as error:  # reported, or the session would wait for ever
            self.end(error)

    def _starved(self, now: float) -> bool:
        if self._closed_at is not None:
            return self._inbox.queued < (AHEAD if self._engine.unpaced else 1)
        if not self.config.sends_audio:
            return self._inbox.queued < 1
        return not self._engine.unpaced and self._inbox.queued == 0 and self._pacer.late(now)

    def _put_text(self, kind: str, head: int, text: str) -> None:
        turn = self._inbox.completed
        self._journal.write(kind, turn * self._spec.micro_turn_s, turn, text=text)
        self._inbox.put_text([head, *self._tokenizer.encode(" " + text)])

    # Output side.

    def _receive(self, result: TurnResult) -> None:
        self._results.put_nowait(result)
        self._room.set()
        limit_ms = self._settings.max_unsent_ms
        if not self._engine.unpaced and self._results.qsize() * self._spec.micro_turn_ms > limit_ms:
            behind = f"{limit_ms / 1000:g} s behind in making this session's sound"
            self.end(OverloadedError(f"The server is {behind}, so the session was ended."))

    def _unread_ms(self) -> int:
        """Of an engine that waits for its sessions: how far the slowest reader is behind."""
        slowest = max((reader.behind_ms for reader in tuple(self._readers) if not reader.over.is_set()), default=0)
        return self._results.qsize() * self._spec.micro_turn_ms + slowest

    async def _tell(self) -> None:
        """Takes what the model writes, keeps it, acts on it and tells it: whether anybody reads or not."""
        try:
            while not self._finished():
                item = await self._results.get()
                told = [item]
                if isinstance(item, TurnResult):
                    told = await self._work(self._decode, item, pool=self._pools.output)
                self._record(told)
                self._publish(told)
                self._engine.notify()
            times = np.asarray(self._step_ms or [0.0])
            p50, p99 = (float(np.percentile(times, q)) for q in (50, 99))
            self._journal.write("end", self._now(), self._turn)
            self._publish([events.Ended(len(self._step_ms), self._misses, p50, p99, self._silence_ms)])
            self.end(None)
        except Exception as error:  # reported, or nobody would know
            self.end(error)

    def _publish(self, told: Sequence[events.Event]) -> None:
        self._readers = [reader for reader in self._readers if not reader.over.is_set()]
        for reader in self._readers:
            for event in told:
                reader.put(event)

    def _decode(self, result: TurnResult) -> list[events.Event]:
        """Tokens and mel to words and sound; runs in the pool."""
        turn, block = result.turn, result.block
        decision = self._outlet.decision(result.tokens)
        told: list[events.Event] = [
            events.Turn(turn, decision, result.step_ms, result.missed, block.silence_ms, block.level, block.frames)
        ]
        told += self._outlet.words(turn, result.tokens, result.heard)
        if self.config.wants_audio:
            mel = result.mel.reshape(self._spec.mel_frames, self._spec.mel_bins)
            sound = self._outlet.sound(turn, mel if result.speaking else None)
            told += [sound] if sound else []
        return told

    def _record(self, told: Sequence[events.Event]) -> None:
        """Events of a micro-turn into the journal, and into what the background model will be told; then asks it."""
        delegates = False
        for event in told:
            journal_event(self._journal, event, self._spec.micro_turn_s, self.config.sends_audio)
            if isinstance(event, events.Turn):
                self._count(event)
                delegates = event.decision is events.Decision.DELEGATE
        self._actor.observe(told)
        if delegates and self.config.background:
            self._actor.delegate()

    def _count(self, event: events.Turn) -> None:
        self._turn = event.turn
        self._step_ms.append(event.step_ms)
        self._misses += event.missed
        self._silence_ms += event.silence_ms
        quiet = (
            self._closed_at is not None and event.turn >= self._closed_at and event.decision is events.Decision.LISTEN
        )
        self._quiet = self._quiet + 1 if quiet else 0

    def _finished(self) -> bool:
        if self._closed_at is None:
            return False
        since_close = (self._turn + 1 - self._closed_at) * self._spec.micro_turn_ms
        settled = self._quiet * self._spec.micro_turn_ms >= self._settings.linger_ms and not self._actor.pending
        return settled or since_close >= self._longest_linger_ms

    def _now(self) -> float:
        return (self._turn + 1) * self._spec.micro_turn_s

    def _report(self, event: TaskEvent) -> None:
        self._results.put_nowait(events.Background(max(0, self._turn), event.task, event.state, event.text))

    def _answer(self, text: str) -> None:
        self._quiet = 0
        self._inbox.put_text([self._control.background, *self._tokenizer.encode(" " + text)])


class Sessions:
    """All live sessions of a server.

    Attributes:
      engine: steps them. settings: how they are treated.
    """

    def __init__(self, engine: Engine, settings: SessionSettings, journal_dir: pathlib.Path | None) -> None:
        """Makes a server's sessions; journals go to `journal_dir`, one file each, if there is one."""
        self.engine, self.settings, self._journal_dir = engine, settings, journal_dir
        self._pools = Pools()
        self._live: set[Session] = set()

    def __len__(self) -> int:
        return len(self._live)

    def open(self, config: SessionConfig) -> Session:
        """A new session.

        Raises:
          ServerFullError: every slot is taken.
          JournalError: its journal cannot be written.
        """
        session_id = uuid.uuid4().hex[:12]
        path = self._journal_dir and self._journal_dir / f"{session_id}.jsonl"
        journal, over = Journal(path), self._live.discard
        session = Session(session_id, config, self.engine, journal, self._pools, self.settings, over)
        self._live.add(session)
        return session

    def end_all(self, error: Exception) -> None:
        """Ends every session with this error."""
        for session in tuple(self._live):
            session.end(error)

"""A session's input half: what its client sends becomes micro-turns, and so does the time in which nothing comes."""

import asyncio
import concurrent.futures
import functools
import time
from collections.abc import Callable
from typing import Any

from tml_jax.serve import intake
from tml_jax.serve.assembler import Assembler
from tml_jax.serve.background.actor import BackgroundActor, TaskEvent
from tml_jax.serve.background.context import Timeline
from tml_jax.serve.config import SessionConfig, SessionSettings
from tml_jax.serve.engine import Engine
from tml_jax.serve.errors import JournalError, LimitError, TimeLimitError
from tml_jax.serve.inbox import Block, Inbox, Note
from tml_jax.serve.pacing import Pacer
from tml_jax.serve.picture_decoder import PictureDecoder
from tml_jax.serve.reading import Reading
from tml_jax.serve.session_log import Kept, SessionLog
from tml_jax.serve.tasks import Tasks
from tml_jax.streams import pictures
from tml_jax.wire import events

WATCH_S = 0.02
Piece = tuple[bytes, int | None]
AHEAD = 4  # micro-turns that an unpaced session whose input is closed keeps ready


class Pools:
    """The threads that sessions share: for sound that comes in, for pictures (no sound waits for them), for output."""

    def __init__(self, output_workers: int = 2) -> None:
        """Starts no thread before it is needed."""
        self.intake = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="intake")
        self.pictures = concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="pictures")
        self.decoder = PictureDecoder()  # with a process for each of these threads
        self.heavy = asyncio.Lock()  # one large picture at a time: small ones find a thread
        self.output = concurrent.futures.ThreadPoolExecutor(output_workers, thread_name_prefix="output")

    def close(self) -> None:
        """Ends the processes."""
        self.decoder.close()


def _keep(log: SessionLog | None, turn: int, block: Block) -> bool:
    if log is None:
        return False
    try:
        return log.append(turn, block)
    except OSError as error:
        raise JournalError(f"What this session is kept in cannot be written: {error.strerror}.") from error


class SessionInput:
    """The input half of a `Session`. Made and used on the event loop."""

    def __init__(
        self, config: SessionConfig, engine: Engine, pools: Pools, settings: SessionSettings, log: SessionLog | None
    ) -> None:
        self.config, self._settings = config, settings
        self._engine, self._pools, self._log = engine, pools, log
        self._spec, self._tokenizer = engine.bundle.spec, engine.bundle.tokenizer
        self._reading = Reading(self._tokenizer, self._spec, settings.max_text_ms)
        self._control = self._tokenizer.control
        self._loop, self._busy, self._room = asyncio.get_running_loop(), asyncio.Lock(), asyncio.Event()
        self._inbox = Inbox(
            self._spec, self._control.tick, engine.notify, functools.partial(_keep, log), engine.bundle.view
        )
        self._pacer = Pacer(self._spec.micro_turn_s, settings.late_ms / 1000)
        self._hear_from(None)
        self._turn, self._longest_linger_ms = -1, settings.longest_linger_ms
        self._closed_at: int | None = None
        self._over = False
        self._bytes, self._active_at = 0, time.monotonic()
        self._opened_at = self._active_at
        self._parked: asyncio.Task[Any] | None = None
        self._said = Timeline()
        actor = BackgroundActor(settings.mind, self._answer, self._remember, self._report, self._now)
        self._actor, self._tasks = actor, Tasks(actor)
        self._reports: list[TaskEvent] = []
        if config.sends_video:
            pools.pictures.submit(pools.decoder.start)

    def _hear_from(self, last: Block | None) -> None:
        """Makes what hears and sees, after a micro-turn that another process has completed."""
        self._sound = intake.SoundIntake(self.config.sound, self._spec, last.heard if last else 0)
        has_audio, sent = self.config.sends_audio, self._sound.sent
        self._assembler = Assembler(self._spec, has_audio, self._inbox, self._pacer, sent=sent)
        if last is not None:
            self._assembler.go_on(last)

    def _read_again(self, kept: Kept, last: Block) -> None:
        """Goes on with what another process has completed: what was not stepped, or not kept, is stepped again."""
        for index, block in enumerate(kept.blocks, kept.turn):
            self._close_at(index, block.closes)
            self._inbox.put_again(block)
        self._hear_from(last)
        self._pacer.go_on(time.monotonic(), last.heard / self._spec.sample_rate, kept.stood_s)
        self._engine.notify()

    def end(self, error: Exception | None) -> None:
        """Ends the session."""
        raise NotImplementedError

    # What the client sends.

    async def push_audio(self, *pieces: Piece) -> None:
        """Sound, in pieces; waits while the engine is behind. Raises BadInputError for what cannot be taken.

        Of a piece with the offset of its first sample in all that the client sends, what is there already is dropped.
        """
        if not self.config.sends_audio:
            raise intake.BadInputError(
                "This session was opened without sound: set sends_audio in its config to send some."
            )
        new = [(pcm, offset) for pcm, offset in pieces if not self._is_old(offset, None)]
        if not new:
            return
        self._check_open("sound")
        self._count_input(sum(len(pcm) for pcm, _ in new))
        while new and not self._over:
            async with self._busy:
                new = await self._work(self._take_sound, new)
            while self._full and not self._over:
                self._room.clear()
                await self._room.wait()

    @property
    def _full(self) -> bool:
        """Whether as much waits for the engine as may."""
        return self._inbox.queued * self._spec.micro_turn_ms > self._settings.max_queue_ms

    async def push_frame(
        self, data: bytes, form: intake.FrameFormat, width: int = 0, height: int = 0, offset: int | None = None
    ) -> None:
        """A picture, the client's `offset`-th from 0 on. Raises BadInputError for what cannot be taken."""
        if not self.config.sends_video:
            raise intake.BadInputError(
                "This session was opened without video: set sends_video in its config to send some."
            )
        if self._is_old(offset, self._assembler.frames):
            return
        self._check_open("a picture")
        self._count_input(len(data))
        arguments, pool = (self._pools.decoder, data, form, width, height, self._spec), self._pools.pictures
        try:
            frame = await self._work(intake.decode_frame, *arguments, pictures.HEAVY_PIXELS, pool=pool)
        except pictures.HeavyError:
            async with self._pools.heavy:
                frame = await self._work(intake.decode_frame, *arguments, pool=pool)
        self.begin()
        async with self._busy:
            self._assembler.push_frame(frame)
            self._said.picture = frame

    async def push_text(self, text: str, offset: int | None = None) -> None:
        """Typed text, the client's `offset`-th from 0 on; waits while there is much to read.

        Raises:
          BadInputError: it cannot be taken.
        """
        if self._is_old(offset, self._inbox.texts):
            return
        text = intake.check_text(text)
        self._count_input(len(text))
        self._check_open("text")
        count, most = self._reading.count(text), self._reading.most
        if count > most:
            raise intake.BadInputError(f"A text message of {count} tokens is too long: send at most {most} at once.")
        while self._inbox.waiting_text + count > most and not (self._over or self._engine.unpaced):
            self._room.clear()
            await self._room.wait()
        self.begin()  # also of a session that could send sound and does not
        self._put_text(self._control.user, Note("user_text", text), counted=True)

    def _is_old(self, offset: int | None, count: int | None) -> bool:
        """Whether a client that has come back sends this again; of sound (no count) `SoundIntake` knows."""
        return offset is not None and (self._closed_at is not None or (count is not None and offset < count))

    def _count_input(self, size: int) -> None:
        self._active_at = time.monotonic()
        self._bytes += size
        if self._settings.most_bytes is not None and self._bytes > self._settings.most_bytes:
            raise LimitError(f"This session has sent {self._settings.most_bytes} bytes, as much as it may.")

    def _check_open(self, what: str) -> None:
        if self._closed_at is not None:
            raise intake.BadInputError(f"This session's input was closed, but {what} came after that.")

    def push_context(self, text: str, *, to_say: bool, offset: int | None = None) -> None:
        """What the client's own background model found, for the model `to_say`, or else further instructions.

        With an `offset` it is counted among the client's texts, as if typed, and what is there already is dropped.
        Raises BadInputError for what cannot be taken, also where the model has too much to read already.
        """
        if self._is_old(offset, self._inbox.texts):
            return
        text = intake.check_text(text)
        self._count_input(len(text))
        self._check_open("text")
        if self._inbox.waiting_text + self._reading.count(text) > self._reading.most:
            seconds = f"{self._settings.max_text_ms / 1000:g}"
            raise intake.BadInputError(
                f"The model would have more than {seconds} s of text to read: send less, or later."
            )
        self.begin()
        counted = offset is not None
        if to_say:
            self._put_text(self._control.background, Note("background", text), counted=counted)
            self._report(TaskEvent(None, "finished", text))
        else:
            self._put_text(self._control.instructions, Note("instructions", text), counted=counted)

    def begin(self) -> None:
        """Time goes on from now on, whether sound comes or not. It does so with the first thing that comes, too."""
        self._pacer.begin(time.monotonic())

    async def close_input(self, longest_linger_ms: int | None = None) -> None:
        """No more will come: silence follows until the model has nothing more to say, or for so long."""
        if self._closed_at is not None:
            return
        async with self._busy:
            if self._pacer.begun and self.config.sends_audio:
                await self._work(self._assembler.push, self._sound.flush())
            self._pacer.begin(time.monotonic())
            linger_ms = longest_linger_ms or self._longest_linger_ms
            self._close_at(self._inbox.completed, linger_ms)
            await self._work(lambda: self._assembler.pad(expected=True, closes=linger_ms))

    def _close_at(self, turn: int, linger_ms: int | None) -> None:
        if linger_ms is not None:
            self._closed_at, self._longest_linger_ms = turn, linger_ms

    def _received(self) -> events.Position:
        """What there is of the client's input."""
        closed = self._closed_at is not None
        return events.Position(self._sound.received, self._assembler.frames, self._inbox.texts, closed)

    # What the background model finds.

    def _report(self, event: TaskEvent) -> None:
        """What became of a task is told with the next micro-turn; an answer that follows at once goes with it."""
        self._reports.append(event)
        self._loop.call_soon(self._put_reports)

    def _put_reports(self) -> None:
        self._inbox.put_text((), *self._reported())

    def _reported(self) -> list[Note]:
        notes = [self._tasks.note(event) for event in self._reports]
        self._reports.clear()
        return [note for note in notes if note is not None]

    def _answer(self, text: str) -> None:
        self._put_text(self._control.background, Note("background", text))

    def _remember(self, text: str) -> None:
        """What is in the context only."""
        self._inbox.put_text((), *self._reported(), Note("remembered", text))

    # Inside.

    async def _work(  # noqa: ANN202
        self, function: Callable[..., Any], *arguments: object, pool: concurrent.futures.Executor | None = None
    ):
        return await self._loop.run_in_executor(pool or self._pools.intake, function, *arguments)

    def _take_sound(self, pieces: list[Piece]) -> list[Piece]:
        """Takes pieces in until there is enough; gives the others."""
        for number, (sent, offset) in enumerate(pieces, 1):
            pcm, lost = self._sound.place(sent, offset)
            if lost:
                self._assembler.lose(lost * 1000 // self.config.sound.sample_rate)
            for chunk in (*self._sound.silence(lost), *([pcm] if pcm or offset is None else [])):
                samples = self._sound.push(chunk)
                sent_s = len(samples) / self._spec.sample_rate if chunk is pcm else 0.0
                self._pacer.begin(time.monotonic(), sent_s)
                self._assembler.push(samples)
            if self._full:
                return pieces[number:]
        return []

    async def _watch(self) -> None:
        """Completes micro-turns whose sound does not come."""
        try:
            while True:
                async with self._busy:
                    while self._starved(time.monotonic()):
                        await self._work(lambda: self._assembler.pad(expected=self._closed_at is not None))
                self._check_time()
                if self._over:
                    return
                await asyncio.sleep(0.001 if self._engine.unpaced and self._closed_at is not None else WATCH_S)
        except Exception as error:  # reported, or the session would wait for ever
            self.end(error)

    def _check_time(self) -> None:
        settings, now = self._settings, time.monotonic()
        longest_s, first_s, idle_s = settings.longest_s, settings.first_s, settings.idle_s
        open_s = now - self._opened_at  # session time stands still until something comes
        if longest_s is not None and max(open_s, self._now()) >= longest_s:
            self.end(TimeLimitError(f"This session has lasted {longest_s:g} s, as long as it may."))
        elif self._parked is not None:
            return
        elif not self._pacer.begun and open_s > first_s:
            self.end(TimeLimitError(f"Nothing was sent within {first_s:g} s, so the session was ended."))
        elif idle_s is not None and now - self._active_at > idle_s:
            self.end(TimeLimitError(f"For {idle_s:g} s nothing was sent or said, so the session was ended."))

    def _starved(self, now: float) -> bool:
        if self._parked is not None:
            return False
        if self._closed_at is not None:
            return self._inbox.queued < (AHEAD if self._engine.unpaced else 1)
        if not self.config.sends_audio:
            return self._inbox.queued < 1
        return not self._engine.unpaced and self._inbox.queued == 0 and self._pacer.late(now)

    def _put_text(self, head: int, note: Note, *, counted: bool = False) -> None:
        """What the model is told: begins with that token."""
        tokens, standing = self._reading.tokens(head, note.text), note.who == "instructions"
        self._inbox.put_text(tokens, *self._reported(), note, counted=counted, standing=standing)

    def _now(self) -> float:
        return (self._turn + 1) * self._spec.micro_turn_s

"""A session: a client's sound, frames and text become micro-turns, and what the model writes becomes sound and words.

A session's own work runs in small thread pools, one piece at a time, so that neither the event loop nor the
engine's thread waits for it, and one session's work or failure never touches another's. What comes in has a
pool of its own: it must be ready by the next tick, while making sound may take a little longer.
"""

import asyncio
import concurrent.futures
import contextlib
import hmac
import pathlib
import secrets
import time
import uuid
from collections.abc import Callable
from typing import Any

from tml_jax.serve import intake, keeping, session_log, waiting, watch
from tml_jax.serve.config import SessionConfig, SessionSettings
from tml_jax.serve.engine import Engine, EngineDiedError, TurnResult
from tml_jax.serve.errors import DrainedError, GoneError, JournalError, MovedError, TakenOverError, UnknownSessionError
from tml_jax.serve.inbox import Block, Note
from tml_jax.serve.reading import Reading
from tml_jax.serve.recording import open_journal
from tml_jax.serve.session_input import Pools
from tml_jax.serve.session_log import Kept, SessionLog
from tml_jax.serve.session_output import SessionOutput, stream_of
from tml_jax.serve.subscription import Subscription
from tml_jax.streams.micro_turn import MicroTurnInput
from tml_jax.wire import events
from tml_jax.wire.journal import Journal


class Session(SessionOutput):
    """One live conversation, which runs by itself: to its end, whether anybody reads what it tells or not.

    Made and used on the event loop; `ready`, `take`, `deliver`, `fail` are the engine's.

    Attributes:
      error: why it is over, or None. owner: whose key its client has.
      id: unique on this server. config: what its client asked for.
      token: opens it again; empty where nothing does.
      all_arrived: set when it is over and its client, which can resume it, has been told everything.
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
        token: str = "",
        log: SessionLog | None = None,
        kept: Kept | None = None,
    ) -> None:
        """Takes a slot; `on_over` is called when the session has ended.

        With a `token` the session can be resumed; then a `log` keeps its input, and `kept` is what another process has
        left of it.

        Raises:
          ServerFullError, BusyError: there is no slot.
          JournalError: the journal cannot be written.
        """
        keep_ms = (None if engine.unpaced else settings.keep_ms) if token else 0
        super().__init__(config, engine, journal, pools, settings, log, keep_ms)
        self.id, self.token, self._on_over = session_id, token, on_over
        self.error: Exception | None = None
        self.owner = ""
        self._client: Subscription | None = None
        self._attaching, self.all_arrived = asyncio.Lock(), asyncio.Event()
        self._expiry: asyncio.TimerHandle | None = None
        row = engine.row_of(kept.state["row"]) if kept and kept.state else None
        self._slot: int | None = engine.admit(self, config.seed, row)
        try:
            if kept is None or kept.last is None:
                self._begin()
            else:
                self._go_on(kept, kept.last)
        except Exception as error:
            engine.release(self._slot, self)
            if isinstance(error, OSError):
                raise JournalError(f"The journal of this session cannot be written: {error.strerror}.") from error
            raise
        self._watcher: asyncio.Task[None] | None = asyncio.create_task(self._watch())
        self._pump: asyncio.Task[None] | None = asyncio.create_task(self._tell())

    def _begin(self) -> None:
        self._write_head()
        if instructions := self.config.instructions.strip():
            self._put_text(self._control.instructions, Note("instructions", instructions))
        if not self.config.sends_audio:
            self._pacer.begin(time.monotonic())

    def _go_on(self, kept: Kept, last: Block) -> None:
        """Goes on where another process was."""
        if kept.state is None:
            self._write_head()
        else:
            self._restore(kept.turn, kept.state)
        notes = (note for block in kept.blocks for note in block.notes)
        self._tasks.go_on(kept.state and kept.state["tasks"], notes, self._said)
        self._read_again(kept, last)

    def _write_head(self) -> None:
        self._journal.write(
            "session",
            0,
            0,
            session=self.id,
            seed=self.config.seed,
            micro_turn_s=self._spec.micro_turn_s,
            started_unix_s=time.time(),
        )

    # What the session tells.

    def subscribe(self) -> Subscription:
        """A new reader of everything that the session tells from now on; the first thing is `Started`."""
        return self._subscribe(self._started(), None)

    def _started(self, **resumed: Any) -> events.Started:
        return events.Started(
            self.id, stream_of(self._spec), intake.MAX_CHUNK_MS, self._engine.next_tick_s(), **resumed
        )

    def _subscribe(self, started: events.Started, after: int | None) -> Subscription:
        limit_ms = self._settings.max_unsent_ms + self._inbox.queued * self._spec.micro_turn_ms
        reader = self._audience.subscribe([started], None if self._engine.unpaced else limit_ms, after)
        if self._over:
            reader.finish(self.error)
        return reader

    # Who comes, goes and comes back.

    @property
    def _within_ms(self) -> int:
        return round(self._settings.resume_s * 1000)

    @property
    def moves(self) -> bool:
        """Whether another server can go on with it."""
        return self._log is not None

    async def attach(self, after: int) -> Subscription:
        """The session's client is here, and has been told all up to event `after`; time goes on.

        One that is here already is told that it was taken over.

        Raises:
          ServerFullError, BusyError: there is no slot for one who comes back; later there may be.
          ToldTooLongAgoError: not all that follows can be told again.
        """
        async with self._attaching:
            if self._client is not None:
                self._client.finish(TakenOverError("Another connection has taken this session over."))
                self._client = None
            try:
                if self._parked is not None and not self._over:
                    self._slot = self._engine.admit(self, self.config.seed, await self._parked)
                    self._parked = None
                    self._pacer.go_on(time.monotonic())
                    self._active_at = time.monotonic()
                received = await self._work(self._received)
                known = {"resume_token": self.token, "resume_within_ms": self._within_ms} if self.token else {}
                self._client = self._subscribe(self._started(received=received, **known), after)
            finally:
                if self._client is None and self._parked is None and not self._over:
                    self._be_alone()
            if self._expiry is not None:
                self._expiry.cancel()
                self._expiry = None
            return self._client

    def leave(self, reader: Subscription) -> None:
        """The client that reads this has gone: its session ends, or if it can be resumed waits for it."""
        if reader is not self._client or self._over:
            return
        self._client = None
        self._be_alone()

    def _be_alone(self) -> None:
        """Ends; or, where it can be resumed, time stands still, and the slot is free for others, until `attach`."""
        if not self.token:
            self.end(GoneError("The client that opened this session has gone."))
            return
        assert self._slot is not None
        parking, self._slot = self._engine.park(self._slot, self), None
        self._parked = asyncio.create_task(self._put_away(parking))
        if self._expiry is not None:
            self._expiry.cancel()
        seconds = self._settings.resume_s
        gone = GoneError(f"The client that opened this session has gone, and did not come back within {seconds:g} s.")
        self._expiry = self._loop.call_later(seconds, self.end, gone)

    async def _put_away(self, parking: concurrent.futures.Future[Any]) -> Any:
        row = await asyncio.wrap_future(parking)
        return None if row is None else self._engine.row_of(await self._work(self._engine.to_host, row))

    @property
    def parked(self) -> bool:
        """Whether it waits for its client."""
        return self._parked is not None and not self._attaching.locked()

    @property
    def gone(self) -> bool:
        """Whether it was over because its client did not come back, or is elsewhere."""
        return isinstance(self.error, GoneError | MovedError)

    def arrived(self, sequence: int) -> None:
        """Its client has all events up to this one."""
        self._audience.arrived(sequence)
        if self._over and sequence >= self._audience.told:
            self.all_arrived.set()

    def move(self) -> None:
        """Leaves the session to another server, which finds it where it is kept."""
        if self._client is not None:
            self._client.put(events.GoAway("The server is going down: resume the session elsewhere.", self._within_ms))
        self.end(MovedError("The server is going down, and the session is to be resumed elsewhere."))

    def forget(self) -> None:
        """The session is over, and its client knows: nothing is kept of it."""
        if self._log is not None:
            self._log.close(forget=True)

    def end(self, error: Exception | None) -> None:
        """Ends the session, for an `error` if it does not end well, and frees its slot; only the first reason counts.

        As `fail`, for the event loop.
        """
        if self._over:
            return
        self._over, self.error = True, error
        if self._slot is not None:
            self._engine.release(self._slot, self)
        for task in (self._watcher, self._pump, self._parked):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        self._watcher = self._pump = self._parked = None  # they would hold it, by the frames that their ends passed
        if self._expiry is not None:
            self._expiry.cancel()
        self._actor.close()
        with contextlib.suppress(OSError):  # what the session ends for may be its journal
            if error and not isinstance(error, MovedError):
                self._journal.write("error", self._now(), max(0, self._turn), text=str(error))
            self._journal.close()
        if error and self._log is not None:  # of one that ended well all is kept until its client knows
            self._log.close(forget=not isinstance(error, MovedError | EngineDiedError))
        self._audience.finish(error)
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


class Sessions:
    """All live sessions of a server.

    Attributes:
      engine: steps them. settings: how they are treated. reading: how much text its model may be given.
      resumed: how many were resumed so far. of_owner: how many each key may have; 0 is any number.
      draining: the server is going down, and nobody gets a session.
    """

    def __init__(
        self,
        engine: Engine,
        settings: SessionSettings,
        journal_dir: pathlib.Path | None,
        session_dir: pathlib.Path | None = None,
        record_dir: pathlib.Path | None = None,
    ) -> None:
        """Makes a server's sessions.

        Args:
          engine: steps them.
          settings: how they are treated.
          journal_dir: for their journals, one file each, if there is one.
          session_dir: for all that another process needs to go on with those that can be resumed, if there is one.
          record_dir: for recordings of all of them, if there is one.
        """
        self.engine, self.settings, self._session_dir = engine, settings, session_dir
        self._folders = journal_dir, record_dir
        self._pools = Pools()
        self._live: set[Session] = set()
        self._resumable: dict[str, Session] = {}  # by id; also those that are over, while their clients may not know
        self._since = time.time()
        self.resumed = self.of_owner = 0
        self.draining = False
        self.reading = Reading(engine.bundle.tokenizer, engine.bundle.spec, settings.max_text_ms)

    def __len__(self) -> int:
        return len(self._live)

    @property
    def parked(self) -> int:
        """Sessions that wait for their clients."""
        return sum(session.parked for session in self._live)

    def check_room(self) -> None:
        """Raises what `open` would raise now, whatever is asked for."""
        self._check_draining()
        self.engine.check_room()

    def _check_draining(self) -> None:
        if self.draining:
            raise DrainedError("The server is going down and takes no new session: use another one.")

    def open(self, config: SessionConfig, *, resumable: bool = False, owner: str = "") -> Session:
        """A new session; `resumable` where the engine can put conversations into slots.

        Raises:
          BadInputError: its instructions are too long.
          ServerFullError, BusyError, DrainedError: there is no slot.
          JournalError: its journal, or what it is to be kept in, cannot be written.
        """
        self.reading.check_instructions(config.instructions)
        session_id, token, log = uuid.uuid4().hex[:12], "", None
        with watch.refusals():
            self.check_room()
            if resumable and self.engine.parks:
                token = f"{session_id}.{secrets.token_urlsafe(24)}"
                if self._session_dir is not None:
                    own = session_id, token, config, self.engine, self.settings.snapshot_turns
                    log = keeping.keep(self._session_dir, *own)
            session = self._add(session_id, config, token, log)
        self._give(session, owner, "new")
        return session

    def _give(self, session: Session, owner: str, kind: str) -> None:
        """The session has a client, of this owner, and another one may have to go for it."""
        session.owner = owner
        watch.admitted(kind)
        if spare := waiting.one_too_many(self._live, self.engine.num_slots, owner, self.of_owner):
            spare.end(GoneError("The client that opened this session has gone, and too many others wait for theirs."))

    def _add(
        self, session_id: str, config: SessionConfig, token: str, log: SessionLog | None, kept: Kept | None = None
    ) -> Session:
        journal = open_journal(session_id, config, self.engine, kept, *self._folders)
        settings = self.engine, journal, self._pools, self.settings
        try:
            session = Session(session_id, config, *settings, self._is_over, token, log, kept)
        except BaseException:
            if log is not None:
                log.close(forget=kept is None)
            raise
        session.watch.begin(session_id, resumed=kept is not None)
        self._live.add(session)
        if token:
            self._resumable[session_id] = session
        return session

    def _is_over(self, session: Session) -> None:
        session.watch.over(session.error)
        self._live.discard(session)
        if session.gone:
            self.forget(session)
        elif session.id in self._resumable:
            asyncio.get_running_loop().call_later(self.settings.resume_s, self.forget, session)

    def forget(self, session: Session) -> None:
        """The session is over and its client knows, or has had long enough: nothing is kept of it."""
        if self._resumable.pop(session.id, None) is not None:
            session.forget()

    async def resume(self, token: str, after: int, owner: str = "") -> tuple[Session, Subscription]:
        """The session that this token opens, of this process or left by another, and what follows its event `after`.

        Raises:
          UnknownSessionError: there is none.
          HeldElsewhereError: another process runs it.
          ServerFullError, BusyError, DrainedError: there is no slot.
          NotHereError: it was kept by a server of another version, or with another model, or is damaged.
          ToldTooLongAgoError: not all that follows can be told again.
        """
        with watch.refusals():
            self._check_draining()
            session = await self._find(token)
            told = await session.attach(after)
        self.resumed += 1
        self._give(session, owner, "resumed")
        return session, told

    async def _find(self, token: str) -> Session:
        session_id, _, _ = token.partition(".")
        if session := self._resumable.get(session_id):
            if not hmac.compare_digest(session.token.encode(), token.encode()):
                raise UnknownSessionError
            return session
        if self._session_dir is None:
            raise UnknownSessionError
        config, log, kept = await keeping.take_up(self._session_dir, token, self.engine)
        return self._add(session_id, config, token, log, kept)

    async def sweep(self) -> None:
        """Removes, as long as it runs, what is kept of sessions that nobody has resumed in time."""
        while self._session_dir is not None:
            await asyncio.to_thread(session_log.sweep, self._session_dir, self.settings.resume_s, self._since)
            await asyncio.sleep(self.settings.resume_s)

    def move_all(self) -> None:
        """Leaves every session to other servers that another one can go on with."""
        for session in tuple(self._live):
            if session.moves:
                session.move()

    def close(self) -> None:
        """Ends what the sessions, all of which are over, have shared."""
        self._pools.close()

    def end_all(self, error: Exception) -> None:
        """Ends every session with this error."""
        for session in tuple(self._live):
            session.end(error)

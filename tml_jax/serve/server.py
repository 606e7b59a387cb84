"""A whole server: engine, sessions and doors, from start to drained."""

import asyncio
import dataclasses
import gc
import pathlib
import signal
from collections.abc import Callable, Sequence

import threadpoolctl

from tml_jax.executor.live import LiveModel
from tml_jax.serve import watch
from tml_jax.serve.bundle import ModelBundle
from tml_jax.serve.config import SessionSettings
from tml_jax.serve.doors.access import Access, Quota
from tml_jax.serve.doors.address import Safety, Tls, check_address
from tml_jax.serve.doors.grpc import GrpcDoor
from tml_jax.serve.doors.web import WebDoor
from tml_jax.serve.engine import Engine, EngineDiedError
from tml_jax.serve.sessions import Sessions


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """How a server runs.

    Attributes:
      address: of the gRPC door, ``host:port``; port 0 takes any free one.
      http_address: of the web door, likewise; None: there is none.
      api_keys: one of them opens the doors, if there are any. quota: what each of them may use.
      tls: of both doors. behind_proxy: others reach this server through a proxy alone, which ends TLS.
      slots: sessions at once.
      journal_dir: where the sessions' journals are, or None. record_dir: where all of a session is recorded, or None.
      session_dir: where those that can be resumed are kept for another process, or None.
      fullest: part of a micro-turn; no session is admitted while the 99th percentile of steps takes longer.
      grace_s: how long live sessions may go on once the server was told to stop.
      faster_than_real_time: step as inputs come instead of on the clock (for tests).
      session: how sessions are treated.

    Raises:
      ValueError: a door would be open to others and ask for no key, or not be encrypted; two folders are one.
    """

    address: str = "127.0.0.1:0"
    http_address: str | None = None
    api_keys: Sequence[str] = ()
    quota: Quota = Quota()
    tls: Tls | None = None
    behind_proxy: bool = False
    slots: int = 8
    journal_dir: pathlib.Path | None = None
    session_dir: pathlib.Path | None = None
    record_dir: pathlib.Path | None = None
    fullest: float = 0.9
    grace_s: float = 10.0
    faster_than_real_time: bool = False
    session: SessionSettings = SessionSettings()

    def __post_init__(self) -> None:
        for address in filter(None, (self.address, self.http_address)):
            check_address(_split(address)[0], self.safety())
        if self.session_dir and self.record_dir and self.session_dir.resolve() == self.record_dir.resolve():
            raise ValueError("Recordings would be removed with sessions: --record_dir and --session_dir must differ.")

    def http(self) -> tuple[str, int]:
        """Host and port of the web door."""
        return _split(self.http_address or "")

    def safety(self) -> Safety:
        """What guards the doors."""
        return Safety(bool(self.api_keys), self.tls, self.behind_proxy)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


class Server:
    """Everything that serves one model; must be made and used inside a running event loop.

    Attributes:
      engine, sessions, door, web: its parts; `door` is gRPC's.
    """

    def __init__(self, bundle: ModelBundle, settings: ServerSettings) -> None:
        """Makes a server that is not started."""
        self._settings = settings
        self._sweeper: asyncio.Task[None] | None = None
        unpaced = settings.faster_than_real_time
        self.engine = Engine(bundle, settings.slots, faster_than_real_time=unpaced, fullest=settings.fullest)
        folders = settings.journal_dir, settings.session_dir, settings.record_dir
        self.sessions = Sessions(self.engine, settings.session, *folders)
        self.engine.watch = watch.stepped
        self.sessions.of_owner = settings.quota.sessions
        access = Access(settings.api_keys, settings.quota)
        self.door = GrpcDoor(self.sessions, access, settings.tls)
        self.web = WebDoor(self.sessions, self.door, access, settings.safety())

    async def start(self) -> int:
        """Compiles, then opens the ports and returns gRPC's.

        Raises:
          ValueError: an address cannot be listened on, or is open to others and asks for no key; the background
            model cannot work.
        """
        # The sessions' small products run side by side: more BLAS threads would only wait, busily, for each other.
        threadpoolctl.threadpool_limits(1, user_api="blas")
        keeps = bool(self._settings.session_dir or self._settings.record_dir)
        await asyncio.to_thread(lambda: self.engine.start(identify=keeps))
        await asyncio.to_thread(self._settings.session.mind.start)
        gc.collect()
        gc.freeze()  # the weights and programs stay; collections after this look at the sessions only
        if self._settings.http_address is not None:
            await self.web.open(*self._settings.http())
        self._sweeper = asyncio.create_task(self.sessions.sweep())
        return await self.door.open(self._settings.address)

    async def stop(self, grace_s: float | None = None) -> None:
        """Drains, then ends the engine."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.web.drain()
        await self.door.drain(self._settings.grace_s if grace_s is None else grace_s)
        await self.web.close()
        await asyncio.to_thread(self.sessions.close)
        await asyncio.to_thread(self.engine.stop)
        await asyncio.to_thread(self._settings.session.mind.close)


async def serve(bundle: ModelBundle, settings: ServerSettings, ready: Callable[[int, int], None]) -> None:
    """Serves until SIGTERM or SIGINT, then drains. `ready` is called with gRPC's and the web door's port once open.

    Raises:
      EngineDiedError: the model cannot be stepped any more.
    """
    loop, told_to_stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told_to_stop.set)
    server = Server(bundle, settings)
    try:
        ready(await server.start(), server.web.port)
        died = asyncio.wrap_future(server.engine.died)
        died.add_done_callback(lambda _: told_to_stop.set())
        await told_to_stop.wait()
        if died.done():
            raise EngineDiedError("The engine has failed; the log has the reason.") from died.result()
    finally:
        await server.stop()


def follow(bundle: ModelBundle, settings: ServerSettings) -> None:
    """What a pod's other processes do while the first one serves: they run its engine's programs, until it ends."""
    model = LiveModel(bundle.executor, bundle.model, bundle.spec, settings.slots)
    state = model.warm_up(bundle.params)
    gc.collect()
    gc.freeze()
    model.follow(bundle.params, state)

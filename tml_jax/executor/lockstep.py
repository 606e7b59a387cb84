"""The lockstep of a pod that serves: process 0 says which program runs next, all others run it on their devices.

A program over the devices of several hosts has to be called on all of them, in the same order; only process 0, which
has the doors, knows what comes. Its word goes to each of the others over a TCP connection, with their sessions' inputs:
24 kB, the sound of 64 sessions, are with another process of the same machine after 0.05 ms. By the key-value store of
JAX's coordination service that took 0.5 ms, by `multihost_utils.broadcast_one_to_all` 1.2 to 2.0 (and for 2.8 MB, a
session's pictures: 1.4, 35 and 17 to 21 ms). A broadcast also takes the devices' time, brings everything to everyone,
and cannot wait: a process that listens is a program that runs. And where a connection ends, a process has: the others
know at once which.
"""

import atexit
import contextlib
import logging
import math
import os
import secrets
import selectors
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jax._src import distributed

from tml_jax.executor.watchdog import SLOW_S, Watchdog

LOG = logging.getLogger(__name__)

_KEY = "tml_jax/lockstep"
_START_S = 300
_GREETING_S = 10
# A greeting: what the leader told all processes, and which process this is. A word: which program, bytes of its inputs.
_GREETING, _WORD = struct.Struct("<16sI"), struct.Struct("<BQ")
_END = 255
# A micro-turn has 0.2 s.
_STUCK_AFTER_S = 30.0


class Lockstep:
    """This process's end of it; a context manager around all that it serves. JAX's processes have joined before.

        with Lockstep() as lockstep:
            if lockstep.leads:
                with lockstep.telling(program, inputs):
                    ...  # run it
            else:
                lockstep.follow(run)

    The others' `follow` returns when the leader leaves the block. SIGTERM on a follower becomes the leader's own: a pod
    is taken away as a whole. Where a process is dead or stuck the others end (`watchdog`).
    """

    def __init__(self) -> None:
        state = distributed.global_state
        self.leads = state.process_id == 0
        self._client, self._process, self._count = state.client, state.process_id, state.num_processes
        self._host = (state.coordinator_address or "").rpartition(":")[0].strip("[]")
        self._watchdog, self._turn = Watchdog(_STUCK_AFTER_S), 0
        self._others: dict[int, socket.socket] = {}
        self._ending = False

    def __enter__(self) -> "Lockstep":
        self._watchdog.__enter__()
        self._watchdog.at(0, "finding the others", SLOW_S)
        if self.leads:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # JAX has taken it, for steps that are agreed on
            self._listen()
            threading.Thread(target=self._watch, name="lockstep", daemon=True).start()
        else:
            self._connect()
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._ask_to_end)
        self._watchdog.at(0, "starting", SLOW_S)
        return self

    def __exit__(self, kind: object, error: BaseException | None, *traceback: object) -> None:
        self._ending = True
        for connection in self._others.values():
            with contextlib.suppress(OSError):
                if self.leads and error is None:
                    connection.sendall(_WORD.pack(_END, 0))
                connection.close()
        self._watchdog.__exit__(kind, error, *traceback)
        if error is not None:
            atexit.register(os._exit, 1)  # before JAX's own handler, which waits for the others

    def _listen(self) -> None:
        """Waits for all others, each of which knows a word that only they were told."""
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        with socket.create_server(("", 0), family=family, backlog=self._count, dualstack_ipv6=dual) as door:
            word = secrets.token_bytes(16)
            self._client.key_value_set(_KEY, f"{door.getsockname()[1]} {word.hex()}")
            while len(self._others) < self._count - 1:
                connection, _ = door.accept()
                connection.settimeout(_GREETING_S)
                with contextlib.suppress(OSError):
                    said, process = _GREETING.unpack(_read(connection, _GREETING.size))
                    if secrets.compare_digest(said, word):
                        self._others[process] = _ready(connection)
                        continue
                connection.close()

    def _connect(self) -> None:
        port, word = self._client.blocking_key_value_get(_KEY, _START_S * 1000).split()
        connection = _ready(socket.create_connection((self._host, int(port)), _START_S))
        connection.sendall(_GREETING.pack(bytes.fromhex(word), self._process))
        self._others[0] = connection

    def _ask_to_end(self, number: int, frame: object) -> None:
        with contextlib.suppress(OSError):
            self._others[0].send(b"!")

    def _watch(self) -> None:
        """The leader's thread: hears which process is gone, and which was asked to end."""
        with selectors.DefaultSelector() as selector:
            for process, connection in self._others.items():
                selector.register(connection, selectors.EVENT_READ, process)
            asked = False
            while True:
                for key, _ in selector.select():
                    try:
                        gone = not key.fileobj.recv(64)
                    except OSError:
                        gone = True
                    if self._ending:
                        return
                    if gone:
                        self._watchdog.end(f"process {key.data} is dead: its connection has ended")
                    if not asked:
                        LOG.warning("SIGTERM on process %d: the whole pod ends", key.data)
                        os.kill(os.getpid(), signal.SIGTERM)
                    asked = True

    def rest(self) -> None:
        """There is nothing to run until the leader says more, however long that may be."""
        self._watchdog.at(self._turn, "waiting for the next program", math.inf)

    @contextlib.contextmanager
    def telling(self, program: int, inputs: Callable[[int], Sequence[np.ndarray]]) -> Iterator[None]:
        """The leader runs a program in this block, and the others with it; where that fails, all of them end.

        Args:
          program: its number, below 255.
          inputs: what a process needs for it, as contiguous arrays.
        """
        with self._running():
            for process, connection in self._others.items():
                parts = inputs(process)
                word = _WORD.pack(program, sum(part.nbytes for part in parts))
                connection.sendall(b"".join((word, *map(memoryview, parts))))
            yield

    def follow(self, run: Callable[[int, bytearray], None]) -> None:
        """The others run what the leader tells them, given its number and the bytes of its inputs, until it ends."""
        while True:
            try:
                program, size = _WORD.unpack(_read(self._others[0], _WORD.size))
                inputs = _read(self._others[0], size)
            except OSError:
                self._watchdog.end("process 0 is dead: its connection has ended")
            if program == _END:
                return
            with self._running():
                run(program, inputs)

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        self._turn += 1
        self._watchdog.at(self._turn, "running a program")
        try:
            yield
        except Exception as error:
            self._watchdog.blame(error)
            self._watchdog.end(f"process {self._process} failed ({str(error).partition(chr(10))[0]})")
        self.rest()


def _ready(connection: socket.socket) -> socket.socket:
    """Without delays and time limits."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.settimeout(None)
    return connection


def _read(connection: socket.socket, size: int) -> bytearray:
    """So many bytes. Raises OSError where the connection has ended."""
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        count = connection.recv_into(rest)
        if not count:
            raise ConnectionResetError
        rest = rest[count:]
    return data

"""Ctrl-C and SIGTERM as a request: the run ends after the step it is in, in order, with its work saved."""

import logging
import multiprocessing
import os
import signal
import socket
import threading

from jax.experimental import multihost_utils

LOG = logging.getLogger(__name__)


class Interruption:
    """Watches for SIGINT and SIGTERM; used as a context manager around a run, in the main thread.

        with Interruption() as interruption:
            while not interruption.requested:
                ...  # a step
                interruption.after(step)
            ...  # save, close

    Until `after` is called there is nothing to save, and a signal ends the process at once. From then on the first
    one sets `requested`; the block ends by itself, and leaving it raises SystemExit. A second signal ends the process
    at once, whatever it is doing. The status is the one that a shell gives for the signal: 130 (SIGINT) or 143
    (SIGTERM). Worker processes end with the process.

    An exception would be raised wherever the main thread happens to be, within a save or between a step and the
    checkpoint of its data, and the interpreter would then come down around threads that still make data and compute.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._deferred = False

    @property
    def requested(self) -> bool:
        """Whether the run should end."""
        return self.signal is not None

    def after(self, step: int) -> None:
        """So many steps are taken: there is work to save, so the first signal from now on only asks for the end."""
        del step
        self._deferred = True

    def __enter__(self) -> "Interruption":
        # The wake-up descriptor is written as the signal arrives; a handler would wait for the main thread to come
        # back from compiled code.
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._handlers = {number: signal.signal(number, _ignore) for number in self.SIGNALS}
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno())
        self._watcher = threading.Thread(target=self._watch, name="interruption", daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._writer.close()
        self._watcher.join()
        self._reader.close()
        if kind is None and self.signal is not None:
            raise SystemExit(128 + self.signal)

    def _watch(self) -> None:
        while received := self._reader.recv(1):
            if received[0] not in self.SIGNALS:
                continue
            if self.requested or not self._deferred:
                for worker in multiprocessing.active_children():
                    worker.kill()
                os._exit(128 + received[0])
            self.signal = signal.Signals(received[0])
            LOG.warning("%s: ending after this step; once more ends at once, without saving", self.signal.name)


def _ignore(number: int, frame: object) -> None:
    """The watcher acts."""


class PodInterruption(Interruption):
    """The same on many hosts, one of which may hear SIGTERM alone: all of them end after the same step.

    JAX's coordination service hears the signal, tells the other hosts and agrees on the step. `after` has to be called
    on every host for every step.
    """

    def __enter__(self) -> "PodInterruption":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is None and self.signal is not None:
            raise SystemExit(128 + self.signal)

    def after(self, step: int) -> None:
        """So many steps are taken, on every host."""
        if multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
            LOG.warning("SIGTERM on a host of the pod: all of them end after step %d", step)

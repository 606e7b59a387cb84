"""Ends all of a pod's work when one process is dead or stuck, in a sentence that names it, its step and the cause.

Otherwise the others would wait in a collective for ever. Every process tells the coordination service each second where
it is, from a thread of its own; one that waits long looks where the others are.
"""

import dataclasses
import logging
import os
import threading
from typing import NoReturn

import jax
from jax._src import distributed

LOG = logging.getLogger(__name__)

STATUS = os.EX_TEMPFAIL
"""Of a process that the watchdog ends: once more may do."""

_BEAT_S = 1.0
_SUSPICION_BEATS = 5
_KEY = "tml_jax/watchdog/"

SLOW_S = 1800.0
"""For what may take its time: compiling, an evaluation, a save that waits for the one before."""


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a process is: what it is doing for which step, the how manieth thing that is, and beats it may take."""

    step: int
    count: int
    what: str
    within: float


class Watchdog:
    """Watches over a pod's work; a context manager around its loop, and nothing on one process alone.

        with Watchdog(stuck_after_s=40) as watchdog:
            ...
            watchdog.at(step, "waiting for its data")

    All processes have to do the same things in the same order. Time is counted in beats of the watchdog's own, so that
    a process which was stopped and goes on is not held to have been stuck.

    Args:
      stuck_after_s: how long a process may be at one thing, where nothing else is said of it.
      silent_after_s: after how long without a word a process is dead.
    """

    def __init__(self, stuck_after_s: float, silent_after_s: float = 20.0) -> None:
        self._client, self._process = distributed.global_state.client, distributed.global_state.process_id
        self._stuck, self._silent = stuck_after_s / _BEAT_S, silent_after_s / _BEAT_S
        self._at = _Place(0, 0, "starting", SLOW_S / _BEAT_S)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def at(self, step: int, what: str, within_s: float | None = None) -> None:
        """This process is now doing `what`, such as "saving", for this step.

        Args:
          within_s: how long that may take, such as `SLOW_S` or for ever (infinity); None: `stuck_after_s`.
        """
        within = self._stuck if within_s is None else within_s / _BEAT_S
        self._at = _Place(step, self._at.count + 1, what, within)

    def __enter__(self) -> "Watchdog":
        if self._client is not None:
            self._say(0, self._at)
            self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, *traceback: object) -> None:
        if self._client is None:
            return
        if isinstance(error, jax.errors.JaxRuntimeError):
            self.blame(error)
        self._over.set()
        self._thread.join()

    def blame(self, error: BaseException) -> None:
        """A collective failed, so a process is gone. Waits to be ended by the sentence that names it, for a while."""
        LOG.error("%s", error, exc_info=error)
        self._thread.join((_SUSPICION_BEATS + 2 * self._silent) * _BEAT_S)

    def end(self, cause: str) -> NoReturn:
        """Ends this process for this cause, such as "process 1 is dead", from any thread."""
        self._end(cause, self._at.step)

    def _say(self, beat: int, place: _Place) -> None:
        word = f"{beat} {place.step} {place.count} {place.what}"
        self._client.key_value_set(f"{_KEY}{self._process}", word, allow_overwrite=True)

    def _watch(self) -> None:
        own, waited, beat = self._at, 0, 0
        heard: dict[int, tuple[str, int]] = {}  # by process: its last word, and the beat at which it was new
        while not self._over.wait(_BEAT_S):
            beat += 1
            own, waited = (self._at, 0) if self._at is not own else (own, waited + 1)
            try:
                self._say(beat, own)
                if waited < _SUSPICION_BEATS:
                    heard.clear()
                    continue
                words = {int(key.rpartition("/")[2]): value for key, value in self._client.key_value_dir_get(_KEY)}
            except jax.errors.JaxRuntimeError as error:
                self._end(
                    f"process 0 is dead: it coordinates and doesn't answer ({str(error).splitlines()[0]})", own.step
                )
            for process, word in words.items():
                if heard.get(process, ("", 0))[0] != word:
                    heard[process] = word, beat
            dead = [process for process, (_, since) in heard.items() if beat - since >= self._silent]
            if dead:
                silent_s = self._silent * _BEAT_S
                self._end(f"{_named(dead)} dead: no word from it for {silent_s:.0f} s", own.step)
            if waited >= own.within:
                places = {process: word.split(" ", 3)[1:] for process, word in words.items()}
                step, count, what = min(places.values(), key=lambda place: int(place[1]))
                behind = [process for process, place in places.items() if place[1] == count]
                self._end(f"{_named(behind)} stuck: {what} for {waited * _BEAT_S:.0f} s", int(step))

    def _end(self, cause: str, step: int) -> NoReturn:
        LOG.error("step %d cannot end: %s; process %d ends", step, cause, self._process)
        logging.shutdown()
        os._exit(STATUS)


def _named(processes: list[int]) -> str:
    if len(processes) == 1:
        return f"process {processes[0]} is"
    return f"processes {', '.join(map(str, sorted(processes)[:8]))}{' ...' if len(processes) > 8 else ''} are"

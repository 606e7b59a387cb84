"""The engine: one thread that owns the model's state and steps all session slots together, every 200 ms.

Whose input comes late for a tick is stepped soon after it, as far as steps are short enough to be over by the next one,
or with those who catch up.

The compiled shapes never change: a slot without a session, or whose input is not complete, is inactive in that
step. Everything that belongs to a single session (sound to dMel, frames to patches, mel to sound, text) is done
on the session's side; this thread stacks arrays, calls the compiled step and hands out rows of its result.
"""

import collections
import concurrent.futures
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging

from tml_jax.executor.executor import compilations
from tml_jax.executor.live import LiveModel
from tml_jax.serve.bundle import ModelBundle
from tml_jax.serve.errors import BusyError
from tml_jax.serve.inbox import Block
from tml_jax.streams.micro_turn import MicroTurnInput, MicroTurnOutput, empty_input
from tml_jax.streams.vocoder import Vocoder

# Within a tick, sessions that are behind are stepped again, if this part of the micro-turn is not used up yet.
CATCH_UP_BUDGET = 0.5
SECOND_CHANCES = (0.25, 0.5)  # parts of a micro-turn after its tick
STEPS_REMEMBERED = 100_000
JUDGED, JUDGED_AFTER = 250, 50  # the last steps at an occupancy, by which a session more is admitted; not by fewer


class ServerFullError(RuntimeError):
    """Every slot is taken."""


class EngineDiedError(RuntimeError):
    """The engine cannot step any more."""


@dataclasses.dataclass(frozen=True)
class TurnResult:
    """One session's part of a step: its rows of `MicroTurnOutput`, how the step went and for how long it was awaited.

    `rung` is the number of the block that all were stepped in (`LiveModel.rungs`). `state` is the conversation after it
    where the session's own block is `cut`, for `Engine.to_host`.
    """

    turn: int
    tokens: np.ndarray
    speaking: bool
    mel: np.ndarray
    heard: np.ndarray
    block: Block
    step_ms: float
    missed: bool
    queued_ms: float
    rung: int
    state: Any = None


class Live(Protocol):
    """A session, as the engine's thread sees it. `deliver` and `fail` must only hand over and return."""

    def ready(self, now: float | None) -> bool:
        """Whether it has a micro-turn to step."""

    def take(self, inputs: MicroTurnInput, row: int) -> Block:
        """Writes that micro-turn into row `row`."""

    def deliver(self, result: TurnResult) -> None:
        """What the model wrote."""

    def fail(self, error: Exception) -> None:
        """The session cannot go on."""


@dataclasses.dataclass(frozen=True)
class EngineStats:
    """How the engine has done since its port opened; step times in milliseconds from when a step was due to results."""

    slots: int
    live: int
    refused: int
    steps: int
    deadline_misses: int
    step_p50_ms: float
    step_p99_ms: float
    compilations_after_warmup: int


@dataclasses.dataclass
class _Slot:
    live: Live | None = None
    fresh: bool = False
    row: Any = None  # of a session that comes back, until it is in the state
    parking: concurrent.futures.Future[Any] | None = None


class Engine:
    """Steps `num_slots` sessions in one compiled program.

    Attributes:
      identity: of the model, where `start` was asked for it; see `ModelBundle.identity`.
      watch: called after each step: live sessions, when it began (ns), its seconds, whether they were too many, and how
        many seconds after they were due its micro-turns were taken.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        num_slots: int = 8,
        *,
        faster_than_real_time: bool = False,
        fullest: float = 0.9,
    ) -> None:
        """Makes an engine that is not started.

        Args:
          bundle: the model.
          num_slots: sessions at once.
          faster_than_real_time: step as soon as every session has input, instead of on the clock (for tests:
            a session that sends nothing then holds up the others).
          fullest: part of a micro-turn: no session is admitted while the 99th percentile of steps takes longer.
        """
        self._fullest_ms = fullest * bundle.spec.micro_turn_ms
        self.bundle, self.num_slots, self.unpaced = bundle, num_slots, faster_than_real_time
        self._slots = [_Slot() for _ in range(num_slots)]
        self._keys = np.zeros((num_slots, 2), np.uint32)
        self._wake = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.died: concurrent.futures.Future[Exception] = concurrent.futures.Future()
        self._step_ms: collections.deque[float] = collections.deque(maxlen=STEPS_REMEMBERED)
        self._took_s: collections.deque[float] = collections.deque(maxlen=JUDGED)  # steps, however late they began
        self._step_ms_of = collections.defaultdict[int, collections.deque[float]](
            lambda: collections.deque(maxlen=JUDGED)
        )
        self._steps = self._misses = self._compiled = self._refused = 0
        self._counting = threading.Lock()
        self._next_tick = time.monotonic()
        self.identity: dict[str, Any] = {}
        self.watch: Callable[[int, int, float, bool, Sequence[float]], None] = lambda *_: None

    def start(self, *, identify: bool = False) -> None:
        """Compiles everything that will ever run, then starts to tick; `identify` the model for sessions to be kept."""
        bundle = self.bundle
        Vocoder(bundle.spec, bundle.voice)  # the sessions' run its program
        self._model = LiveModel(bundle.executor, bundle.model, bundle.spec, self.num_slots)
        self._params = bundle.params
        self._state = self._model.warm_up(self._params)
        if identify and self.parks:
            self.identity = bundle.identity(self._model.row_layout)
        self._compiled = compilations.count
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; sessions are left as they are."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join()

    def admit(self, live: Live, seed: int, row: Any = None) -> int:
        """Gives a session an empty slot; or one with its conversation, as `park` and `row_of` gave it.

        Raises:
          ServerFullError: there is none.
          BusyError: steps take too long for one more.
          EngineDiedError: no session will ever be stepped again.
        """
        with self._wake:
            self.check_room()
            index, slot = next((index, slot) for index, slot in enumerate(self._slots) if slot.live is None)
            slot.live, slot.fresh, slot.row = live, row is None, row
            self._keys[index] = np.asarray([0, seed], np.uint32)
            self._wake.notify_all()
            return index

    def check_room(self) -> None:
        """Raises what `admit` would raise now."""
        with self._wake:
            if self.died.done():
                raise EngineDiedError("This server has failed and takes no session any more: use another one.")
            self._check_pace()
            if all(slot.live is not None for slot in self._slots):
                self._refused += 1
                sentence = "try again when one has ended."
                raise ServerFullError(f"All {self.num_slots} sessions of this server are taken: {sentence}")

    def _check_pace(self) -> None:
        live = sum(slot.live is not None for slot in self._slots)
        times = self._step_ms_of[live]
        if self.unpaced or not live or len(times) < JUDGED_AFTER:
            return
        if (p99 := float(np.percentile(times, 99))) > self._fullest_ms:
            self._refused += 1
            raise BusyError(
                f"With {live} sessions this server's steps take up to {p99:.0f} ms of {self.bundle.spec.micro_turn_ms}:"
                " try again later, or another one."
            )

    def release(self, index: int, live: Live) -> None:
        """Frees the slot that `live` holds; does nothing if it holds it no more."""
        with self._wake:
            slot = self._slots[index]
            if slot.live is live:
                slot.live, slot.row = None, None
                if slot.parking is not None:
                    slot.parking.cancel()
                    slot.parking = None
            self._wake.notify_all()

    def park(self, index: int, live: Live) -> concurrent.futures.Future[Any]:
        """Takes a session out of its slot, and gives its conversation, for `admit`: None of one that did not begin."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        with self._wake:
            assert self._slots[index].live is live
            self._slots[index].parking = future
            self._wake.notify_all()
        return future

    @property
    def parks(self) -> bool:
        """Whether sessions can be taken out of their slots and put back: not on a pod of several processes."""
        return self._model.moves_rows

    def to_host(self, state: Any) -> list[np.ndarray]:
        """The arrays of a `TurnResult.state`; waits for the device."""
        return self._model.row_leaves(state)

    def row_of(self, arrays: list[np.ndarray]) -> Any:
        """A conversation of such arrays, for `admit`."""
        return self._model.row_of_leaves(arrays)

    def notify(self) -> None:
        """Some session has new input (only an engine that is not paced by the clock waits for that)."""
        if self.unpaced:
            with self._wake:
                self._wake.notify_all()

    def next_tick_s(self) -> float:
        """Seconds until the next tick, where there are ticks; also while a step, however long, goes on."""
        return (self._next_tick - time.monotonic()) % self.bundle.spec.micro_turn_s

    def stats(self) -> EngineStats:
        """How the engine has done so far."""
        with self._counting:
            times = np.asarray(self._step_ms or [0.0])
        return EngineStats(
            slots=self.num_slots,
            live=sum(slot.live is not None for slot in self._slots),
            refused=self._refused,
            steps=self._steps,
            deadline_misses=self._misses,
            step_p50_ms=float(np.percentile(times, 50)),
            step_p99_ms=float(np.percentile(times, 99)),
            compilations_after_warmup=compilations.count - self._compiled,
        )

    def _loop(self) -> None:
        try:
            self._tick_on()
        except Exception as error:
            logging.exception("The engine cannot go on.")
            with self._wake:  # no session is admitted between
                self.died.set_result(error)
                live = [slot.live for slot in self._slots if slot.live is not None]
            for one in live:
                one.fail(error)

    def _tick_on(self) -> None:
        period = self.bundle.spec.micro_turn_s
        self._next_tick = time.monotonic() + period
        chances = collections.deque[float]()  # that the last tick leaves
        while True:
            moment = chances[0] if chances else self._next_tick
            with self._wake:
                wait_s = None if self.unpaced else max(0.0, moment - time.monotonic())
                self._wake.wait_for(self._should_go, timeout=wait_s)
                if self._stopping:
                    return
            self._move()
            if not self.unpaced and time.monotonic() < moment:
                continue
            if chances:
                chances.popleft()
                if self._ends_in_time():
                    self._step_ready(moment)
                continue
            tick = time.monotonic() if self.unpaced else moment
            self._tick(tick)
            while self._next_tick <= time.monotonic():  # ticks that a slow step ran over are lost, not made up for
                self._next_tick += period
            if not self.unpaced:
                free = time.monotonic()
                chances.extend(max(free, tick + part * period) for part in SECOND_CHANCES)

    def _ends_in_time(self) -> bool:
        """Whether even a slow step would be over at the next tick: who is late makes nobody else late."""
        took_s = float(np.percentile(self._took_s, 99)) if self._took_s else 0.0
        return time.monotonic() + took_s < self._next_tick

    def _should_go(self) -> bool:
        if self._stopping or any(slot.parking is not None for slot in self._slots):
            return True
        live = [slot.live for slot in self._slots if slot.live is not None]
        return self.unpaced and bool(live) and all(one.ready(None) for one in live)

    def _tick(self, tick: float) -> None:
        period = self.bundle.spec.micro_turn_s
        until = tick if self.unpaced else tick + CATCH_UP_BUDGET * period
        while self._step_ready(tick) and time.monotonic() < until:
            pass

    def _move(self) -> None:
        """Takes out sessions that are to be parked, and puts in those that come back."""
        with self._wake:
            for index, slot in enumerate(self._slots):
                if slot.live is None or (slot.row is None and slot.parking is None):
                    continue
                if slot.parking is None:
                    self._state = self._model.with_row(self._state, index, slot.row)
                else:
                    there = slot.row is None and not slot.fresh
                    if slot.parking.set_running_or_notify_cancel():
                        slot.parking.set_result(self._model.row(self._state, index) if there else slot.row)
                    slot.live = slot.parking = None
                slot.row = None

    def _step_ready(self, moment: float) -> bool:
        """Steps who has a micro-turn, where any had one at that moment, when it was due; else gives False."""
        self._move()
        with self._wake:
            live = [
                (i, slot.live)
                for i, slot in enumerate(self._slots)
                if slot.live is not None and slot.row is None and slot.parking is None
            ]
            if not any(one.ready(None if self.unpaced else moment) for _, one in live):
                return False
            began = time.monotonic()  # who came since goes with them
            ready = [(i, one) for i, one in live if one.ready(None if self.unpaced else began)]
            fresh = np.asarray([slot.fresh for slot in self._slots])
            for slot in self._slots:
                slot.fresh = False
        inputs, taken = empty_input(self.bundle.spec, (self.num_slots,)), []
        for i, one in ready:
            try:
                taken.append((i, one, one.take(inputs, i)))
            except Exception as error:  # one session's trouble is its own
                inputs.active[i] = False
                one.fail(error)
        try:
            if fresh.any():
                self._state = self._model.reset(self._state, fresh)
            outputs = self._run_step(inputs)
        except Exception as error:
            logging.exception("The step failed; every session is ended and the state made anew.")
            for _, one in live:
                one.fail(error)
            self._state = self._model.init()
            return True
        due = [began if self.unpaced else block.not_before or began for _, _, block in taken]  # replayed: no age
        ages_s = [began - not_before for not_before in due]
        self._hand_out(moment, inputs, outputs, taken, len(live), ages_s)
        return True

    def _run_step(self, inputs: MicroTurnInput) -> MicroTurnOutput:
        begun = time.monotonic()
        self._state, outputs = self._model.step(self._params, self._state, inputs, self._keys)
        outputs = jax.device_get(outputs)
        self._took_s.append(time.monotonic() - begun)
        return outputs

    def _hand_out(
        self,
        due: float,
        inputs: MicroTurnInput,
        outputs: MicroTurnOutput,
        taken: list[tuple[int, Live, Block]],
        live: int,
        ages_s: list[float],
    ) -> None:
        elapsed = time.monotonic() - due
        missed = not self.unpaced and elapsed > self.bundle.spec.micro_turn_s
        with self._counting:
            self._steps += 1
            self._misses += missed
            self._step_ms.append(elapsed * 1000)
            self._step_ms_of[live].append(elapsed * 1000)
        self.watch(live, time.time_ns() - round(elapsed * 1e9), elapsed, missed, ages_s)
        rung = self._model.rung_of(inputs)
        for (i, one, block), age_s in zip(taken, ages_s, strict=True):
            count = int(outputs.num_tokens[i])
            one.deliver(
                TurnResult(
                    turn=int(inputs.turn[i]),
                    tokens=outputs.tokens[i, :count],
                    speaking=bool(outputs.speaking[i]),
                    mel=outputs.mel[i],
                    heard=outputs.heard[i, :count],
                    block=block,
                    step_ms=elapsed * 1000,
                    missed=missed,
                    queued_ms=max(0.0, age_s * 1000),
                    rung=rung,
                    state=self._model.row(self._state, i) if block.cut else None,
                )
            )

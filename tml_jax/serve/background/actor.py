"""The background model's side of one session: takes what the model hands over, and puts what was found to the model.

It runs beside the conversation: the model goes on listening and speaking meanwhile, and an interrupted answer
interrupts no work here. The rules:

- One task runs at a time and one waits. What is handed over while one waits is merged into it: it begins with the
  conversation as it then was. The next begins once the result of the last was put to the model.
- A result is put to the model once, and never again if its speech is interrupted: at once (`Delivery.INTERRUPT`), once
  neither side has spoken for two micro-turns (`WHEN_IDLE`), or never (`SILENT`). What finds no idle moment for
  `PATIENCE_S` is put then.
- Whatever goes wrong in a task is one event and the answer "i do not know". "Never mind", "forget it" or "cancel
  that" from the user ends the work without an answer.
- A tool that is consequential runs if the user has confirmed just that call (`consent`), and not otherwise.
"""

import asyncio
import collections
import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tml_jax.serve.background import consent
from tml_jax.serve.background.backend import UNKNOWN, Answer, Delivery, Tool, ToolSpec, cut
from tml_jax.serve.background.context import ContextPackage
from tml_jax.serve.background.mind import Mind
from tml_jax.wire import events

IDLE_TURNS = 2  # micro-turns without speech
REACTION_TURNS = 5  # that the model may take to begin to say what it was given
PATIENCE_S = 20.0
RECENT_S = 3.0  # what the user says within it may be one sentence
MAX_ANNOUNCED = 500  # characters of the arguments of a call that the user is asked to confirm
PROGRESS_S = 0.5  # between two words of progress
SPEECH = 0.01  # root mean square, full scale 1; quieter sound is no speech, but where words were heard in it
SILENCE = 0.003  # quieter sound is none: words that are heard now were in sound before it


@dataclasses.dataclass(frozen=True)
class TaskEvent:
    """A task began, went on or ended: `state` is "started", "progress", "finished" (its result was put to the model)
    or "failed". Without a `task`, it was the client's.
    """  # noqa: D205

    task: int | None
    state: str
    text: str


@dataclasses.dataclass(frozen=True, eq=False)
class _Result:
    """Words of a task for the model, and what happens when they are put to it."""

    task: int
    text: str
    since_s: float
    when_put: Callable[[], None]


def _to_say(text: str, longest: int) -> str:
    """One line of at most `longest` characters, ending with a whole word."""
    line = " ".join(cut(text, len(text)).split())
    return line if len(line) <= longest else line[: longest + 1].rsplit(" ", 1)[0][:longest]


class _Floor:
    """Tells speech from steady noise: the quietest micro-turn of the last five seconds is no speech."""

    def __init__(self) -> None:
        self._levels: collections.deque[float] = collections.deque([0.0] * 25, maxlen=25)

    def is_speech(self, level: float) -> bool:
        self._levels.append(level)
        return level > max(SPEECH, 3 * min(self._levels))


class BackgroundActor:
    """See the module. Made and used on the session's event loop."""

    def __init__(
        self,
        mind: Mind,
        say: Callable[[str], None],
        remember: Callable[[str], None],
        report: Callable[[TaskEvent], None],
        now: Callable[[], float],
    ) -> None:
        """Makes an actor.

        Args:
          mind: does the work.
          say: called with text for the model. remember: with text for the context alone.
          report: called when a task starts, goes on or ends.
          now: session time, seconds.
        """
        self._mind, self._say, self._remember, self._report, self._now = mind, say, remember, report, now
        self._loop = asyncio.get_running_loop()
        self._recent: collections.deque[tuple[float, str]] = collections.deque(maxlen=64)
        self._floor, self._level, self._quiet = _Floor(), 0.0, 0
        self._running: tuple[int, asyncio.Task[None]] | None = None
        self._waiting: tuple[int, ContextPackage] | None = None
        self._results: collections.deque[_Result] = collections.deque()
        self._request: consent.Request | None = None
        self._asking = asyncio.Lock()
        self._timer: asyncio.Timeout | None = None
        self._told_s = -PROGRESS_S
        self._put_s = 0.0
        self._count = 0

    @property
    def pending(self) -> int:
        """Tasks whose result was not put to the model yet."""
        return (self._running is not None) + (self._waiting is not None)

    @property
    def is_idle(self) -> bool:
        """Whether neither side speaks."""
        return self._quiet >= IDLE_TURNS

    # What the session tells.

    def observe(self, told: Iterable[events.Event]) -> None:
        """What one micro-turn brought, in order."""
        for event in told:
            match event:
                case events.Turn():
                    self._turn(event)
                case events.HeardWords(text=text):
                    if self._level > SILENCE:
                        self._quiet = min(self._quiet, 0)
                    self._user_said(text)
                    if self._request is not None:
                        self._request.heard(text)
        if self._results:
            waits_s = self._now() - max(self._results[0].since_s, self._put_s)
            if self.is_idle or waits_s > PATIENCE_S:
                self._put(self._results.popleft())

    def typed(self, text: str) -> None:
        """The user typed this."""
        self._user_said(f" {text} ")
        if self._request is not None:
            self._request.typed(text)

    def delegate(self, context: ContextPackage, number: int | None = None) -> int:
        """The model hands over; returns the number of the task that will answer.

        Args:
          context: the conversation so far.
          number: that of a task which another process has left undone; None takes the next.
        """
        if self._running is not None and number == self._running[0]:  # it was merged into it before that had begun
            self._running[1].cancel()
            self._start(number, context)
            return number
        if self._waiting is None:
            number = self._count if number is None else number
            self._count = max(self._count, number + 1)
        else:
            number = self._waiting[0]
        self._waiting = number, context
        self._begin()
        return number

    def cancel(self, reason: str) -> None:
        """Ends the work under way, and what waits, without an answer."""
        if self._running is not None:
            number, task = self._running
            task.cancel()
            self._running = None
            self._results = collections.deque(result for result in self._results if result.task != number)
            self._report(TaskEvent(number, "failed", reason))
        if self._waiting is not None:
            (number, context), self._waiting = self._waiting, None
            self._report(TaskEvent(number, "started", context.question()))
            self._report(TaskEvent(number, "failed", reason))

    def close(self) -> None:
        """Drops everything, the session, too, which is over."""
        self._say = self._remember = lambda _: None
        self._report = lambda _: None
        self._now = lambda: 0.0
        if self._running is not None:
            self._running[1].cancel()
        self._running = self._waiting = None
        self._results.clear()

    # Inside.

    def _turn(self, turn: events.Turn) -> None:
        self._level = turn.input_level
        loud, speaks = self._floor.is_speech(turn.input_level), turn.decision is events.Decision.SPEAK
        if speaks:
            self._quiet = 0
        else:
            self._quiet = min(self._quiet, 0) if loud else self._quiet + 1
        if self._request is not None:
            self._request.turn(speaks, loud, self._quiet)

    def _user_said(self, piece: str) -> None:
        self._recent.append((self._now(), piece))
        words = "".join(piece for time_s, piece in self._recent if time_s >= self._now() - RECENT_S)
        if self._running is not None and consent.calls_off(words):
            self._recent.clear()
            self.cancel("called off by the user")

    def _begin(self) -> None:
        if self._running is None and self._waiting is not None:
            (number, context), self._waiting = self._waiting, None
            self._start(number, context)

    def _start(self, number: int, context: ContextPackage) -> None:
        self._running = number, asyncio.create_task(self._run(number, context))
        self._report(TaskEvent(number, "started", context.question()))

    async def _run(self, number: int, context: ContextPackage) -> None:
        desk, limits = _Desk(self, number, context, self._mind), self._mind.limits
        answer, state, told = Answer(UNKNOWN), "failed", ""
        try:
            async with asyncio.timeout(limits.deadline_s) as self._timer:
                answer = await self._mind.answer(desk)
            answer = Answer(_to_say(answer.text, limits.answer) or UNKNOWN, answer.delivery)
            state, told = "finished", answer.text
        except Exception as error:  # a backend may raise anything; the conversation goes on
            late = self._timer is not None and self._timer.expired()
            told = f"no answer within {limits.deadline_s:g} s" if late else f"{type(error).__name__}: {error}"
        finally:
            desk.over = True

        def put() -> None:
            self._running = None
            self._report(TaskEvent(number, state, told))

        result = _Result(number, answer.text, self._now(), put)
        match answer.delivery:
            case Delivery.SILENT:
                put()
                self._remember(answer.text)
                self._begin()
            case Delivery.INTERRUPT:
                self._put(result)
            case Delivery.WHEN_IDLE:
                self._results.append(result)

    def _put(self, result: _Result) -> None:
        """A result goes to the model; that it has is reported with it, so that whoever keeps one keeps both."""
        self._quiet, self._put_s = -REACTION_TURNS, self._now()
        result.when_put()
        self._say(result.text)
        self._begin()

    def progress(self, number: int, text: str) -> None:
        """A task says how it goes; not every word of it is told."""
        now = self._loop.time()
        if self._running is not None and self._running[0] == number and now - self._told_s >= PROGRESS_S:
            self._told_s = now
            self._report(TaskEvent(number, "progress", cut(text, 500)))

    async def confirm(self, number: int, request: str) -> bool:
        """Asks the user, and waits for what they say to it; True only for a yes."""
        async with self._asking:
            if self._running is None or self._running[0] != number:
                return False
            self._report(TaskEvent(number, "progress", request))
            asked = self._request = consent.Request()
            result = _Result(number, request, self._now(), asked.put)
            self._results.append(result)
            timer, began = self._timer, self._loop.time()
            deadline = timer.when() if timer else None
            if timer:
                timer.reschedule(None)
            try:
                async with asyncio.timeout(self._mind.limits.confirm_s):
                    return await asked.decided
            except TimeoutError:
                return False
            finally:
                self._request = None
                if timer and deadline is not None:
                    with contextlib.suppress(RuntimeError):  # the task may be over
                        timer.reschedule(deadline + self._loop.time() - began)
                with contextlib.suppress(ValueError):
                    self._results.remove(result)


class _Desk:
    """One task as its backend sees it; lives on the mind's loop. What it refuses no backend can do."""

    def __init__(self, actor: BackgroundActor, number: int, context: ContextPackage, mind: Mind) -> None:
        self.context, self.over = context, False
        self._actor, self._number, self._limits = actor, number, mind.limits
        self._loop = asyncio.get_running_loop()
        self._tools = mind.tools()
        self._calls = 0

    @property
    def tools(self) -> Mapping[str, ToolSpec]:
        return {name: ToolSpec(tool.name, tool.description, tool.parameters) for name, tool in self._tools.items()}

    def progress(self, text: str) -> None:
        with contextlib.suppress(RuntimeError):  # the session's loop may be over
            self._loop.call_soon_threadsafe(self._actor.progress, self._number, text)

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        self._calls += 1
        if self.over or self._calls > self._limits.tool_calls:
            return f"Refused: a task may use tools {self._limits.tool_calls} times, while it runs."
        tool = self._tools.get(name)
        if tool is None:
            return f"There is no tool {name[:64]!r}."
        try:
            given = json.dumps(arguments, ensure_ascii=False)
        except (TypeError, ValueError):
            return "Refused: the arguments are no JSON."
        if tool.consequential and not await self._confirmed(tool, given):
            return "Not done: the user did not confirm it."
        self.progress(f"{name}: {given}")
        try:
            async with asyncio.timeout(self._limits.tool_deadline_s):
                return cut(await tool.run(json.loads(given)), self._limits.tool_output)
        except TimeoutError:
            return f"Failed: {name} did not answer within {self._limits.tool_deadline_s:g} s."
        except Exception as error:
            return cut(f"Failed: {type(error).__name__}: {error}", 300)

    async def _confirmed(self, tool: Tool, given: str) -> bool:
        """Asks the user for just this call. What is too long to be read to them is never done."""
        if len(given) > MAX_ANNOUNCED:
            return False
        words = tool.name.replace("_", " ").replace("-", " ")
        details = ", ".join(f"{key} {value}" for key, value in json.loads(given).items())
        request = cut(f"may i {words}{': ' + details if details else ''}? please confirm", MAX_ANNOUNCED + 200)
        asked = asyncio.run_coroutine_threadsafe(self._actor.confirm(self._number, request), self._loop)
        return await asyncio.wrap_future(asked) and not self.over

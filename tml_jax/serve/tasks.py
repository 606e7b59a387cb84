"""Which of the things that a session's model has handed over are answered: each once, whatever process answers.

An answer counts once it is kept with the session's input. What was under way when a process ended is begun again by the
next one, under its number; what was answered is not.
"""

import collections
from collections.abc import Iterable
from typing import Any

from tml_jax.serve.background.actor import BackgroundActor, TaskEvent
from tml_jax.serve.background.context import Timeline
from tml_jax.serve.inbox import Note

_ENDS = ("finished", "failed")


class Tasks:
    """One session's. Used on its event loop."""

    def __init__(self, actor: BackgroundActor) -> None:
        """Makes those of a session that begins."""
        self._actor = actor
        self._handed_over = self._on_the_way = 0
        self._of: dict[int, tuple[float, list[int]]] = {}  # task: when, and what it answers
        # Of what is kept: what is answered, the task of each, and what was told of a task.
        self._answered: set[int] = set()
        self._task: dict[int, int] = {}
        self._told = collections.Counter[tuple[int | None, str]]()

    @property
    def pending(self) -> bool:
        """Whether an answer may be to come."""
        return bool(self._actor.pending or self._on_the_way)

    def go_on(self, kept: dict[str, Any] | None, notes: Iterable[Note], said: Timeline) -> None:
        """Goes on with `kept`, which `state` gave (None: from the beginning), and what was noted after it.

        `said` is the conversation at that time.
        """
        for note in notes:
            if note.who == "task":
                self._on_the_way += note.state in _ENDS
                self._told[note.task, note.state] += 1
                self._answered |= set(note.answers) if note.state in _ENDS else set()
                self._task |= {number: note.task for number in note.answers if note.task is not None}
        if kept is not None:
            self._handed_over = kept["handed_over"]
            for task, when, answers, begun in kept["open"]:
                if not self._answered.issuperset(answers):
                    self._told[task, "started"] += begun
                    self._begin(when, said, task, answers)

    def state(self) -> dict[str, Any]:
        """What `go_on` needs."""
        return {
            "handed_over": self._handed_over,
            "open": [(task, *of, self._told[task, "started"] > 0) for task, of in self._of.items()],
        }

    def hand_over(self, now: float, said: Timeline) -> None:
        """The model hands over the conversation so far."""
        number = self._handed_over
        self._handed_over += 1
        if number not in self._answered:
            self._begin(now, said, self._task.get(number), [number])

    def _begin(self, now: float, said: Timeline, task: int | None, answers: list[int]) -> None:
        task = self._actor.delegate(said.package(now), task)
        when, before = self._of.get(task, (now, []))
        self._of[task] = max(when, now), [*before, *answers]

    def note(self, event: TaskEvent) -> Note | None:
        """What is kept of what the actor reports; None where it is kept already."""
        if event.state == "started" and self._told[event.task, event.state]:
            return None
        _, answers = self._of.get(event.task, (0.0, []))
        self._on_the_way += event.state in _ENDS
        return Note("task", event.text, event.task, event.state, tuple(answers))

    def told(self, note: Note) -> None:
        """This is told now."""
        self._told[note.task, note.state] += 1
        if note.state in _ENDS:
            self._on_the_way -= 1
            if note.task is not None:
                self._of.pop(note.task, None)

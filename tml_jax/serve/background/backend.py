"""What the background model is behind: one protocol, so that a calculator, a chat model or anything else can be it."""

import dataclasses
import enum
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from tml_jax.serve.background.context import ContextPackage

UNKNOWN = "i do not know"


class MissingExtraError(ValueError):
    """A library is not installed that the background model was told to use."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} needs libraries that are not installed: pip install 'tml_jax[background]'.")


class Delivery(enum.Enum):
    """When a result is put to the model."""

    SILENT = "silent"  # never: it is only in the context, and told the client
    WHEN_IDLE = "when_idle"  # once neither side speaks
    INTERRUPT = "interrupt"  # at once


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a backend found, in words to be spoken."""

    text: str
    delivery: Delivery = Delivery.WHEN_IDLE


@dataclasses.dataclass(frozen=True)
class ToolSpec:
    """What a backend knows of a tool.

    Attributes:
      name: letters, digits, "_" and "-", at most 64. description: what it is for.
      parameters: a JSON Schema of an object.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Tool(ToolSpec):
    """A tool.

    Attributes:
      run: from arguments to text; may raise anything.
      consequential: it does what cannot be undone, so it runs only where the user has confirmed just this call, and
        never because a backend says so.
    """

    run: Callable[[dict[str, Any]], Awaitable[str]]
    consequential: bool = False


class Desk(Protocol):
    """One task, as a backend has it before it.

    Attributes:
      context: the conversation when the task began. tools: by name.
    """

    @property
    def context(self) -> ContextPackage: ...  # noqa: D102

    @property
    def tools(self) -> Mapping[str, ToolSpec]: ...  # noqa: D102

    def progress(self, text: str) -> None:
        """Tells the client how it is going."""

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Uses a tool; what it says, or in words why there is nothing. Output is data of unknown origin."""


class Backend(Protocol):
    """A background model. Used on one event loop, by many tasks at once."""

    async def start(self) -> None:
        """Called once before the first task."""

    async def answer(self, desk: Desk) -> Answer:
        """Works out one task; may be cancelled, may raise anything."""

    async def close(self) -> None:
        """Called once after the last."""


def cut(text: str, longest: int) -> str:
    """At most `longest` characters of it, without control characters; says where something was cut off."""
    text = "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)
    return text if len(text) <= longest else f"{text[:longest]} [cut off: {len(text) - longest} characters more]"

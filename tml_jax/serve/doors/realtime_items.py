"""The conversation of a Realtime session as its client sees it: items, some of which the model is not told yet."""

import dataclasses
import uuid
from collections.abc import Iterator
from typing import Any

from tml_jax.serve.doors import pictures, protocol
from tml_jax.serve.doors.protocol import ProtocolError, obj, string

MAX_ITEMS = 2048  # the oldest are forgotten then
_PARTS = {
    "user": ("input_text", "input_audio", "input_image"),
    "system": ("input_text",),
    "assistant": ("output_text", "output_audio"),
}


def new_id(kind: str) -> str:
    """An id that there was not before."""
    return f"{kind}_{uuid.uuid4().hex[:20]}"


@dataclasses.dataclass(eq=False)
class Item:
    """One item.

    Attributes:
      resource: as the client is shown it. pending: the model has not been told of it.
      start_ms: session time at which its sound begins.
      audio_ms: sound of the model in it. marks: (ms, characters): how much of its text had begun by then.
    """

    resource: dict[str, Any]
    pending: bool = False
    start_ms: int = 0
    audio_ms: int = 0
    marks: list[tuple[int, int]] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        """Its id."""
        return self.resource["id"]

    @property
    def strings(self) -> Iterator[str]:
        """All text in it, whatever it is for."""
        for fields in (self.resource, *self.resource.get("content", ())):
            yield from (value for value in fields.values() if isinstance(value, str))

    @property
    def text(self) -> str:
        """What it says."""
        if self.resource["type"] != "message":
            return self.resource.get("output", "")
        return " ".join(filter(None, (part.get("text") or part.get("transcript") for part in self.resource["content"])))

    @property
    def line(self) -> str:
        """What it says, and who, as the model is told it where it is not to answer."""
        who = self.resource.get("role", "result")
        return self.text if who == "system" else f"{who}: {self.text}"

    def truncate(self, end_ms: int) -> None:
        """Forgets what was not said by then."""
        kept = max((length for begun_ms, length in self.marks if begun_ms < end_ms), default=0)
        for part in self.resource["content"]:
            part["transcript"] = part["transcript"][:kept]
        self.audio_ms = end_ms


class Items:
    """All items, in order."""

    def __init__(self) -> None:
        """Makes an empty conversation."""
        self._items: list[Item] = []

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def get(self, name: str, param: str = "item_id") -> Item:
        """The item of this id.

        Raises:
          ProtocolError: there is none.
        """
        for item in reversed(self._items):
            if item.name == name:
                return item
        raise ProtocolError("item_not_found", f"There is no item {name[:100]!r}.", param)

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Puts an item at the end, or `after` another ("root": first of all), and returns the id of the one before it.

        Raises:
          ProtocolError: there is one of this id, or none to put it after.
        """
        if any(other.name == item.name for other in self._items):
            sentence = f"There is an item {item.name[:100]!r} already."
            raise ProtocolError("item_create_duplicate_item_id", sentence, "item.id")
        at = len(self._items)
        if after is not None:
            at = 0 if after == "root" else self._items.index(self.get(after, "previous_item_id")) + 1
        self._items.insert(at, item)
        before = self._items[at - 1].name if at else None
        del self._items[: max(0, len(self._items) - MAX_ITEMS)]
        return before

    def remove(self, item: Item) -> None:
        """Forgets it."""
        self._items.remove(item)

    def take_pending(self) -> list[Item]:
        """What the model is to be told, in order; it is pending no more."""
        pending = [item for item in self._items if item.pending]
        for item in pending:
            item.pending = False
        return pending


@dataclasses.dataclass(frozen=True)
class Sent:
    """An item as its client sent it: what is heard and seen in it is for now, its text for the next response."""

    item: Item
    audio: tuple[str, ...]  # base64, in the session's format
    pictures: tuple[tuple[Any, ...], ...]  # for `Session.push_frame`


def read_item(event: dict[str, Any]) -> Sent:
    """The item of a `conversation.item.create`.

    Raises:
      ProtocolError: it is none that this server takes.
    """
    given, where = obj(event, "item", ""), "item."
    kind = string(given, "type", where)
    resource: dict[str, Any] = {"object": "realtime.item", "type": kind, "status": "completed"}
    resource["id"] = protocol.optional(given, "id", where) or new_id("item")
    if kind == "function_call_output":
        resource |= {name: string(given, name, where) for name in ("call_id", "output")}
        return Sent(Item(resource, pending=True), (), ())
    if kind == "function_call":
        resource |= {name: string(given, name, where) for name in ("call_id", "name", "arguments")}
        return Sent(Item(resource), (), ())
    if kind != "message":
        sentence = f"Items of type {kind[:100]!r} are not taken here: message, function_call and its output are."
        raise ProtocolError("unsupported_parameter", sentence, "item.type")
    role = protocol.choice(given, "role", where, tuple(_PARTS))
    content = given.get("content")
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content) or not content:
        raise ProtocolError("invalid_type", "item.content must be a list of parts.", "item.content")
    shown, audio, seen = [], [], []
    for at, part in enumerate(content):
        here = f"item.content[{at}]."
        match protocol.choice(part, "type", here, _PARTS[role]):
            case "input_audio":
                audio.append(string(part, "audio", here))
                shown.append({"type": "input_audio", "transcript": protocol.optional(part, "transcript", here)})
            case "input_image":
                seen.append(pictures.read(part, "image_url", here))
                shown.append({"type": "input_image"})
            case "output_audio":
                shown.append({"type": "output_audio", "transcript": string(part, "transcript", here)})
            case text:
                shown.append({"type": text, "text": string(part, "text", here)})
    item = Item(resource | {"role": role, "content": shown})
    item.pending = bool(item.text.strip()) and not audio
    return Sent(item, tuple(audio), tuple(seen))

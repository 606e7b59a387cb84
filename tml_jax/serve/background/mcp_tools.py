"""Tools of MCP servers: programs that are started here (stdio), or services (streamable HTTP).

A server that dies, hangs or talks rubbish costs the call that met it, up to its deadline, and nothing else: it is
started again when a call next needs it, at most every `RETRY_S`, and everything that it started ends with it.
"""

import asyncio
import contextlib
import dataclasses
import logging
import os
import pathlib
import re
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from tml_jax.serve.background.backend import MissingExtraError, Tool

START_S = 20.0  # for a server to start and name its tools
RETRY_S = 2.0  # between two starts
MAX_TOOLS = 64
_PING_S = 2.0


@dataclasses.dataclass(frozen=True)
class McpSettings:
    """One server: a `command` or a `url`.

    Attributes:
      name: its tools are called name_tool. env: for the command, besides PATH, HOME and the like.
      headers: for the url.
      harmless: tools that may be used without the user's confirmation, "*" for all; what a server itself says of
        its tools is not believed.
    """

    name: str
    command: tuple[str, ...] = ()
    url: str = ""
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    harmless: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", self.name):
            raise ValueError(f"The name of an MCP server, {self.name!r}, must be letters, digits, _ and -, at most 32.")
        if bool(self.command) == bool(self.url):
            raise ValueError(f"The MCP server {self.name} needs a command or a url, one of the two.")


class McpServer:
    """A source of tools; all of it on one event loop."""

    def __init__(self, settings: McpSettings, call_s: float) -> None:
        """Makes one that is not started; a call may take `call_s`.

        Raises:
          MissingExtraError: there is no `mcp`.
        """
        try:
            import mcp
            from mcp.client.streamable_http import streamable_http_client
            from mcp.shared._httpx_utils import create_mcp_http_client
        except ImportError:
            raise MissingExtraError("An MCP server") from None
        self._mcp, self._http, self._http_client = mcp, streamable_http_client, create_mcp_http_client
        self._settings, self._call_s = settings, call_s
        self._tools: tuple[Tool, ...] = ()
        self._life: asyncio.Task[None] | None = None
        self._client: asyncio.Future[Any] | None = None
        self._started_s = -RETRY_S
        self.starts = 0
        # Every line of rubbish on its stdout would be a traceback in the log.
        logging.getLogger("mcp.client.stdio").setLevel(logging.CRITICAL)

    @property
    def tools(self) -> Sequence[Tool]:
        """Those that the server named when it was last started."""
        return self._tools

    async def start(self) -> None:
        """Starts the server and asks for its tools; one that does not answer now is tried again later."""
        try:
            await self._connected()
        except Exception as error:
            logging.getLogger(__name__).warning("The MCP server %s is down: %s", self._settings.name, error)

    async def close(self) -> None:
        """Ends the server."""
        await self._stop()

    async def _connected(self) -> Any:
        """The client of a live server; starts it where there is none.

        Raises:
          ConnectionError: it is down.
        """
        if self._ended():  # between two calls; what it met is not the fault of this one
            await self._stop()
        if self._life is None or self._life.done():
            wait_s = self._started_s + RETRY_S - time.monotonic()
            if wait_s > 0:
                raise ConnectionError(f"{self._settings.name} is down; it is tried again in {wait_s:.0f} s")
            self._started_s = time.monotonic()
            self.starts += 1
            self._client = asyncio.get_running_loop().create_future()
            self._life = asyncio.create_task(self._live(self._client))
        assert self._client is not None
        try:
            async with asyncio.timeout(START_S):
                return await asyncio.shield(self._client)
        except TimeoutError:
            await self._stop()
            raise ConnectionError(f"{self._settings.name} did not start within {START_S:g} s") from None

    async def _live(self, client: asyncio.Future[Any]) -> None:
        """One life of the server, in one task, as the library wants it: until it is cancelled or the server is gone."""
        try:
            async with (
                self._transport() as transport,
                self._mcp.Client(transport, mode="legacy", cache=None) as session,
            ):
                listed = await session.list_tools()
                self._tools = tuple(self._tool(tool) for tool in listed.tools[:MAX_TOOLS])
                client.set_result(session)
                while not self._ended():  # one that died is cleared away between calls, too
                    await asyncio.sleep(_PING_S)
        except BaseException as error:
            if not client.done():
                reason = _first(error)
                client.set_exception(
                    ConnectionError(f"{self._settings.name} is down: {type(reason).__name__}: {reason}")
                )
                client.exception()  # somebody may or may not wait for it
            if isinstance(error, asyncio.CancelledError):
                raise

    @contextlib.asynccontextmanager
    async def _transport(self) -> AsyncIterator[Any]:
        if self._settings.url:
            async with self._http_client(headers=dict(self._settings.headers)) as http:
                yield self._http(self._settings.url, http_client=http)
            return
        with tempfile.TemporaryDirectory(prefix="mcp-") as folder, open(os.devnull, "w") as nowhere:
            # The library keeps the process to itself, and leaves what it forked when it dies by itself. So it says
            # its number, which is its process group's, and becomes the server.
            self._pid_file = pathlib.Path(folder) / "pid"
            line = ["-c", 'echo $$ > "$0" && exec "$@"', str(self._pid_file), *self._settings.command]
            parameters = self._mcp.StdioServerParameters(
                command="/bin/sh", args=line, env=dict(self._settings.env), encoding_error_handler="replace"
            )
            try:
                yield self._mcp.stdio_client(parameters, errlog=nowhere)
            finally:
                self._reap()

    def _group(self) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            return int(self._pid_file.read_text())
        return None

    def _alive(self) -> bool:
        group = self._group()
        if group is None:
            return False
        with contextlib.suppress(OSError):
            return pathlib.Path(f"/proc/{group}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        return not pathlib.Path("/proc").is_dir()

    def _reap(self) -> None:
        """Ends everything of the server's process group."""
        if (group := self._group()) is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)

    async def _stop(self) -> None:
        life, self._life = self._life, None
        if life is not None and not life.done():
            if self._settings.command:
                self._reap()  # first, so that nothing is waited for
            life.cancel()
            await asyncio.wait({life}, timeout=3.0)

    def _tool(self, tool: Any) -> Tool:
        async def run(arguments: dict[str, Any]) -> str:
            return await self._call(tool.name, arguments)

        name = re.sub(r"[^A-Za-z0-9_-]", "_", f"{self._settings.name}_{tool.name}")[:64]
        harmless = "*" in self._settings.harmless or tool.name in self._settings.harmless
        return Tool(name, (tool.description or "")[:1000], tool.input_schema, run, consequential=not harmless)

    async def _call(self, name: str, arguments: dict[str, Any]) -> str:
        session = await self._connected()
        life = self._life
        assert life is not None
        call = asyncio.create_task(session.call_tool(name, arguments, read_timeout_seconds=self._call_s))
        try:
            # A server that dies answers nothing; its life ends.
            await asyncio.wait({call, life}, timeout=self._call_s, return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                raise ConnectionError(f"{self._settings.name} {'has died' if life.done() else 'does not answer'}")
            return _text(call.result())
        except Exception as error:
            # A refusal leaves the server as it is. Its output is closed before its process is gone: a server that
            # dies may look alive for a moment.
            types = self._mcp.types
            if not isinstance(error, self._mcp.MCPError) or error.code in (
                types.CONNECTION_CLOSED,
                types.REQUEST_TIMEOUT,
            ):
                await self._stop()
            raise
        finally:
            call.cancel()  # a call that its session gave up is not the end of the others'

    def _ended(self) -> bool:
        """Whether the program of a life that goes on is gone."""
        started = self._client is not None and self._client.done() and not self._client.exception()
        return started and bool(self._settings.command) and not self._alive()


def _text(result: Any) -> str:
    """What a call gave, as text."""
    parts = [getattr(part, "text", f"({part.type})") for part in result.content]
    return f"{'Failed: ' if result.is_error else ''}{' '.join(parts)}"


def _first(error: BaseException) -> BaseException:
    """The first reason in a group of errors."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

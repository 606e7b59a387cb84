"""Serves a saved model over gRPC: ``python -m launch.serve --checkpoint=checkpoints/inkling_tiny --port=0``.

With --http_port also to the clients of OpenAI's protocols (docs/doors.md).

SIGTERM or Ctrl-C lets live sessions end, then the server. On a pod all hosts run the same command, with a mesh over all
their devices; process 0 has the port, the others run what it runs. SIGTERM on any of them ends all in order; where one
is dead or stuck, the others end within a minute, with status 75.
"""

import asyncio
import contextlib
import dataclasses
import pathlib
import sys

from absl import flags, logging

from launch import cli
from tml_jax.executor.executor import Executor
from tml_jax.executor.lockstep import Lockstep
from tml_jax.serve import bundle, config, server
from tml_jax.serve.background.settings import BackgroundSettings, build, read_settings
from tml_jax.serve.doors import web

_CHECKPOINT = cli.checkpoint()
_MESH = cli.mesh("the first device alone")
_DTYPE = cli.dtype()
_WEIGHTS = cli.weights()
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
_PORT = flags.DEFINE_integer(
    "port", 50051, "Port to listen on; 0 takes any free one and prints it.", lower_bound=0, upper_bound=65535
)
_HTTP_PORT = flags.DEFINE_integer(
    "http_port", None, "Port for OpenAI's protocols; 0 takes any free one. None without it.", 0, 65535
)
_API_KEY_FILE = flags.DEFINE_string("api_key_file", None, "File of keys for that port, one a line.")
_SLOTS = flags.DEFINE_integer("slots", 8, "Sessions at once.", lower_bound=1)
_JOURNAL_DIR = cli.out_folder("journal_dir", None, "Folder for the sessions' journals; none are kept without it.")
_BACKGROUND = flags.DEFINE_string(
    "background", None, "File that says which background model, with which tools (docs/background.md)."
)
_DOCUMENTS = flags.DEFINE_string("documents", None, "Folder of texts that the background model searches.")
_GRACE_S = flags.DEFINE_float("grace_s", 10.0, "Seconds that live sessions may go on after SIGTERM.", lower_bound=0)
_LATE_MS = flags.DEFINE_integer("late_ms", 400, "Sound that is later than this is replaced by silence.", lower_bound=0)
_LINGER_MS = flags.DEFINE_integer(
    "longest_linger_ms", 15_000, "How long a session may go on after its client closed its input.", lower_bound=0
)
_UNPACED = flags.DEFINE_bool("faster_than_real_time", False, "Step as input comes instead of on the clock (for tests).")
_STATUS = flags.DEFINE_integer(
    "stopped_status", 0, "Exit status after SIGTERM; 143 has a pod's launcher start the server again.", lower_bound=0
)
_POD = cli.pod()


def main(argv: list[str]) -> None:
    """Serves until SIGTERM."""
    del argv
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.WARNING)
    wanted = BackgroundSettings()
    if _BACKGROUND.value:
        wanted = read_settings(pathlib.Path(_BACKGROUND.value))
    if _DOCUMENTS.value:
        wanted = dataclasses.replace(wanted, documents=_DOCUMENTS.value)
    session = config.SessionSettings(late_ms=_LATE_MS.value, longest_linger_ms=_LINGER_MS.value, mind=build(wanted))
    settings = server.ServerSettings(
        address=f"{_HOST.value}:{_PORT.value}",
        http_address=None if _HTTP_PORT.value is None else f"{_HOST.value}:{_HTTP_PORT.value}",
        api_keys=web.read_keys(pathlib.Path(_API_KEY_FILE.value)) if _API_KEY_FILE.value else (),
        slots=_SLOTS.value,
        journal_dir=pathlib.Path(_JOURNAL_DIR.value) if _JOURNAL_DIR.value else None,
        grace_s=_GRACE_S.value,
        faster_than_real_time=_UNPACED.value,
        session=session,
    )
    lockstep = Lockstep() if cli.join_pod(_POD) else None
    with lockstep or contextlib.nullcontext():
        executor = Executor.of_shape(cli.mesh_shape(_MESH), lockstep)
        model = bundle.load_bundle(_CHECKPOINT.value, executor, _DTYPE.value, _WEIGHTS.value == "int8")

        def ready(port: int, http_port: int) -> None:
            if _HTTP_PORT.value is not None:
                print(f"OpenAI's protocols are on http://{_HOST.value}:{http_port}/v1", flush=True)
            print(f"Serving {model.name} to {_SLOTS.value} sessions on {_HOST.value}:{port}", flush=True)

        if lockstep is None or lockstep.leads:
            asyncio.run(server.serve(model, settings, ready))
        else:
            server.follow(model, settings)
    if _STATUS.value:
        sys.exit(_STATUS.value)


if __name__ == "__main__":
    cli.run(main)

"""Serves a saved model over gRPC: ``python -m launch.serve --checkpoint=checkpoints/inkling_tiny --port=0``.

With --http_port also a page to talk on, and the clients of OpenAI's protocols (docs/doors.md). Where others are to
reach it, it asks for keys and TLS (docs/operation.md).

SIGTERM or Ctrl-C lets live sessions end, then the server; with --session_dir those that can be resumed are left to
another one (docs/sessions.md). On a pod all hosts run the same command, with a mesh over all their devices; process 0
has the port, the others run what it runs. SIGTERM on any of them ends all in order; where one is dead or stuck, the
others end within a minute, with status 75.
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
from tml_jax.serve import bundle, config, server, watch
from tml_jax.serve.background.settings import BackgroundSettings, build, read_settings
from tml_jax.serve.doors import access
from tml_jax.serve.doors.address import Tls

_CHECKPOINT = cli.checkpoint()
_MESH = cli.mesh("the first device alone")
_DTYPE = cli.dtype()
_WEIGHTS = cli.weights()
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
_PORT = flags.DEFINE_integer(
    "port", 50051, "Port to listen on; 0 takes any free one and prints it.", lower_bound=0, upper_bound=65535
)
_HTTP_PORT = flags.DEFINE_integer(
    "http_port", None, "Port for the page and OpenAI's protocols; 0 takes any free one. None without it.", 0, 65535
)
_API_KEY_FILE = flags.DEFINE_string("api_key_file", None, "File of keys, one a line: clients must send one of them.")
_KEY_SESSIONS = flags.DEFINE_integer(
    "key_sessions", 0, "Sessions at once for each key, those that wait for it counted; 0 is any number.", 0
)
_KEY_MINUTES = flags.DEFINE_float(
    "key_minutes", 0.0, "Minutes of sessions in 24 hours for each key; 0 is any number.", 0
)
_TLS_CERT = flags.DEFINE_string("tls_cert", None, "PEM file of the server's certificate and its chain.")
_TLS_KEY = flags.DEFINE_string("tls_key", None, "PEM file of its key.")
_TLS_CLIENT_CA = flags.DEFINE_string(
    "tls_client_ca", None, "PEM file: clients must show a certificate signed by these."
)
_BEHIND_PROXY = flags.DEFINE_bool(
    "behind_proxy", False, "Others reach this server through a proxy alone, which ends TLS: none is needed here."
)
_SLOTS = flags.DEFINE_integer("slots", 8, "Sessions at once.", lower_bound=1)
_JOURNAL_DIR = cli.out_folder("journal_dir", None, "Folder for the sessions' journals; none are kept without it.")
_RECORD_DIR = cli.out_folder(
    "record_dir", None, "Folder for recordings of all that people say and show in sessions; none are made without it."
)
_BACKGROUND = flags.DEFINE_string(
    "background", None, "File that says which background model, with which tools (docs/background.md)."
)
_DOCUMENTS = flags.DEFINE_string("documents", None, "Folder of texts that the background model searches.")
_SESSION_DIR = cli.out_folder(
    "session_dir", None, "Folder, shared by servers, from which sessions are resumed after this one; None without it."
)
_GRACE_S = flags.DEFINE_float("grace_s", 10.0, "Seconds that live sessions may go on after SIGTERM.", lower_bound=0)
_RESUME_S = flags.DEFINE_float("resume_s", 30.0, "How long a session waits for a client that is to come back.", 0.0)
_FIRST_S = flags.DEFINE_float("first_s", 60.0, "A session to which nothing is sent for so long is ended.", 0.2)
_LONGEST_S = flags.DEFINE_float("longest_s", None, "How long a session may last; without it as long as it likes.", 0.2)
_IDLE_S = flags.DEFINE_float("idle_s", None, "A session in which so long nothing is sent or said is ended.", 0.2)
_MOST_BYTES = flags.DEFINE_integer("most_bytes", None, "Bytes that a session may send; any number without it.", 1)
_FULLEST = flags.DEFINE_float(
    "fullest", 0.9, "Part of a micro-turn: no session is admitted while the 99th percentile of steps takes longer.", 0.0
)
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
    session = config.SessionSettings(
        late_ms=_LATE_MS.value,
        longest_linger_ms=_LINGER_MS.value,
        resume_s=_RESUME_S.value,
        first_s=_FIRST_S.value,
        longest_s=_LONGEST_S.value,
        idle_s=_IDLE_S.value,
        most_bytes=_MOST_BYTES.value,
        mind=build(wanted),
    )
    settings = server.ServerSettings(
        address=f"{_HOST.value}:{_PORT.value}",
        http_address=None if _HTTP_PORT.value is None else f"{_HOST.value}:{_HTTP_PORT.value}",
        api_keys=access.read_keys(pathlib.Path(_API_KEY_FILE.value)) if _API_KEY_FILE.value else (),
        quota=access.Quota(_KEY_SESSIONS.value, _KEY_MINUTES.value),
        tls=_tls(),
        behind_proxy=_BEHIND_PROXY.value,
        slots=_SLOTS.value,
        journal_dir=pathlib.Path(_JOURNAL_DIR.value) if _JOURNAL_DIR.value else None,
        record_dir=pathlib.Path(_RECORD_DIR.value) if _RECORD_DIR.value else None,
        session_dir=pathlib.Path(_SESSION_DIR.value) if _SESSION_DIR.value else None,
        grace_s=_GRACE_S.value,
        faster_than_real_time=_UNPACED.value,
        fullest=_FULLEST.value,
        session=session,
    )
    if watch.spans_wanted():
        watch.send_spans()
    lockstep = Lockstep() if cli.join_pod(_POD) else None
    with lockstep or contextlib.nullcontext():
        executor = Executor.of_shape(cli.mesh_shape(_MESH), lockstep)
        model = bundle.load_bundle(_CHECKPOINT.value, executor, _DTYPE.value, _WEIGHTS.value == "int8")

        def ready(port: int, http_port: int) -> None:
            if _HTTP_PORT.value is not None:
                scheme = "http" if settings.tls is None else "https"
                print(f"A page to talk on is at {scheme}://{_HOST.value}:{http_port}/", flush=True)
                print(f"OpenAI's protocols are on {scheme}://{_HOST.value}:{http_port}/v1", flush=True)
            print(f"Serving {model.name} to {_SLOTS.value} sessions on {_HOST.value}:{port}", flush=True)

        if lockstep is None or lockstep.leads:
            asyncio.run(server.serve(model, settings, ready))
        else:
            server.follow(model, settings)
    if _STATUS.value:
        sys.exit(_STATUS.value)


def _tls() -> Tls | None:
    if bool(_TLS_CERT.value) != bool(_TLS_KEY.value) or (_TLS_CLIENT_CA.value and not _TLS_CERT.value):
        raise ValueError("TLS needs both --tls_cert and --tls_key.")
    if not _TLS_CERT.value:
        return None
    client_ca = pathlib.Path(_TLS_CLIENT_CA.value) if _TLS_CLIENT_CA.value else None
    return Tls(pathlib.Path(_TLS_CERT.value), pathlib.Path(_TLS_KEY.value), client_ca)


if __name__ == "__main__":
    cli.run(main)

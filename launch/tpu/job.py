"""A job on TPUs, described once; everything that Google Cloud wants to be told of it is made from this."""

import dataclasses
import importlib.util
import re
import shlex

from launch.tpu.slices import Slice
from launch.tpu.xla_flags import init_args
from tml_jax.train.interrupt import Interruption

MOUNT = "/gcs"
"""Where every host sees the bucket."""

INTERRUPTED = tuple(128 + signal for signal in Interruption.SIGNALS)
"""Exit statuses of a command that was asked to end and has saved its work: to be started again, and no failure."""

GRACE_S = 600
"""Time to end in order after SIGTERM. Hosts that go for repair give it; a spot host is gone after half a minute."""

_SERVE_PORT = 50051  # of `launch.serve`, where its command names none

_DNS_LABEL = r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?"


@dataclasses.dataclass(frozen=True)
class TpuJob:
    """One command of this project on every host of one or more slices.

    Attributes:
      topology: the slice, as `launch.aot_compile` names it: ``v5p:2x4x4``.
      project, zone: of Google Cloud; the slices lie in the zone.
      bucket: its name, without ``gs://``; mounted at `MOUNT` on every host.
      command: a module of `launch` and its flags, as one types them.
      name: of the job and of everything that is made for it.
      slices: how many; more than one talk over the data centre's network.
      spot: cheaper, and taken away at any moment.
      restarts: how many failures the job survives; interruptions are not counted.

    Raises:
      ValueError: one of them cannot be; nothing was made.
    """

    topology: str
    project: str
    zone: str
    bucket: str
    command: str
    name: str = "tml-jax"
    slices: int = 1
    spot: bool = False
    restarts: int = 10

    def __post_init__(self) -> None:
        wanted = {
            "project": (r"[a-z][-a-z0-9]{4,28}[a-z0-9]", "my-project"),
            "zone": (r"[a-z]+-[a-z]+\d+-[a-z]", "us-east5-a"),
            "bucket": (r"[a-z0-9][-_.a-z0-9]{1,61}[a-z0-9]", "my-bucket, without gs://"),
            "name": (_DNS_LABEL, "tml-jax, at most 40 letters, digits and hyphens"),
        }
        for field, (pattern, example) in wanted.items():
            if not re.fullmatch(pattern, getattr(self, field)):
                raise ValueError(f"{getattr(self, field)!r} is no {field}, such as {example}.")
        if self.slices > 1 and self.slice.hosts == 1:
            raise ValueError(f"{self.topology} is a single host: only slices of several hosts can be joined.")
        if self.slices < 1 or self.restarts < 0:
            raise ValueError(f"A job needs a slice and cannot restart {self.restarts} times.")
        module = self.arguments[0] if self.arguments else ""
        if not module.startswith("launch.") or importlib.util.find_spec(module) is None:
            raise ValueError(f"{module!r} is no command of this project, such as launch.train.")
        if self.port is not None:
            if "--host=0.0.0.0" not in self.arguments:
                raise ValueError("launch.serve is heard on its own host alone: add --host=0.0.0.0 to the command.")
            if not any(argument.startswith("--api_key_file=") for argument in self.arguments):
                raise ValueError("launch.serve asks others for a key: add --api_key_file=FILE to the command.")
            if not any(argument.startswith(("--behind_proxy", "--tls_cert=")) for argument in self.arguments):
                raise ValueError(
                    "launch.serve is encrypted where others reach it: add --behind_proxy (the cluster's network alone "
                    "reaches it) or --tls_cert=FILE and --tls_key=FILE to the command."
                )
            if self.hosts > 1 and "--distributed" not in self.arguments:
                raise ValueError(f"{self.hosts} hosts serve together with --distributed: add it to the command.")

    @property
    def slice(self) -> Slice:
        """One of its slices."""
        return Slice(self.topology)

    @property
    def region(self) -> str:
        """Of its zone."""
        return self.zone.rpartition("-")[0]

    @property
    def arguments(self) -> list[str]:
        """The module and its flags."""
        return shlex.split(self.command)

    @property
    def hosts(self) -> int:
        """Of all its slices."""
        return self.slices * self.slice.hosts

    @property
    def port(self) -> int | None:
        """Where the first host listens, if the job serves."""
        if self.arguments[0] != "launch.serve":
            return None
        given = [argument.partition("=")[2] for argument in self.arguments if argument.startswith("--port=")]
        return int(given[-1]) if given else _SERVE_PORT

    @property
    def image(self) -> str:
        """The container image that its hosts run."""
        return f"{self.region}-docker.pkg.dev/{self.project}/{self.name}/tml_jax:latest"

    @property
    def account(self) -> str:
        """The service account that its hosts act as."""
        return f"{self.name}@{self.project}.iam.gserviceaccount.com"

    @property
    def environment(self) -> dict[str, str]:
        """Of its processes; the compiled programs lie in the bucket, where a restart finds them."""
        return {
            "JAX_PLATFORMS": "tpu,cpu",
            "JAX_COMPILATION_CACHE_DIR": f"{MOUNT}/compiled/{self.name}",
            "LIBTPU_INIT_ARGS": init_args(self.slice.kind),
        }

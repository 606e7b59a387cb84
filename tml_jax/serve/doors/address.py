"""Where doors listen, who reaches that, and what it takes: keys and TLS, unless only this machine does."""

import dataclasses
import ipaddress
import pathlib


@dataclasses.dataclass(frozen=True)
class Tls:
    """PEM files: a server's certificate chain and key, and whose certificates its clients must show, if any must."""

    cert: pathlib.Path
    key: pathlib.Path
    client_ca: pathlib.Path | None = None

    def __post_init__(self) -> None:
        """Raises ValueError where one of them cannot be read."""
        for path in filter(None, (self.cert, self.key, self.client_ca)):
            try:
                path.read_bytes()
            except OSError as error:
                raise ValueError(f"The TLS file {path} cannot be read: {error.strerror}.") from error


@dataclasses.dataclass(frozen=True)
class Safety:
    """What guards a server that others reach.

    Attributes:
      keys: whether one is asked for.
      tls: ends at this server. behind_proxy: it ends before, at a proxy that alone reaches this server.
    """

    keys: bool = False
    tls: Tls | None = None
    behind_proxy: bool = False


def check_address(host: str, safety: Safety) -> None:
    """Whether a door may be opened on `host`.

    Raises:
      ValueError: others reach it, and it would ask for no key, or be heard by everybody on the way.
    """
    if is_loopback(host):
        return
    if not safety.keys:
        raise ValueError(f"Others reach {host}, so the server needs API keys there: give --api_key_file.")
    if safety.tls is None and not safety.behind_proxy:
        raise ValueError(
            f"Others reach {host}, so the server needs TLS there: give --tls_cert and --tls_key, "
            "or --behind_proxy where a proxy before it ends TLS."
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

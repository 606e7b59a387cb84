"""How commands reach a server: its address, key and certificates."""

import pathlib
from collections.abc import Callable

from absl import flags

from tml_jax import client

# A flag belongs to the command that asks for it here, whose --help lists it.
flags.disclaim_key_flags()


def server() -> Callable[[], client.Address]:
    """Defines ``--server`` and what it asks for; the function reads them, and raises ValueError for a bad file."""
    target, read = flags.DEFINE_string("server", "127.0.0.1:50051", "host:port of the server."), credentials()
    return lambda: read(target.value)


def credentials() -> Callable[[str], client.Address]:
    """Defines what a server asks for; the function gives the address of ``host:port`` with it, errors as `server`."""
    keys = flags.DEFINE_string("api_key_file", None, "File whose first line is the API key that the server asks for.")
    tls = flags.DEFINE_bool("tls", False, "The server has TLS; one of the files below says so too.")
    names = {"ca": "trusted certificates", "cert": "this client's certificate", "key": "its key"}
    files = {name: flags.DEFINE_string(f"tls_{name}", None, f"PEM file: {text}.") for name, text in names.items()}

    def read(target: str) -> client.Address:
        paths = {name: pathlib.Path(holder.value) for name, holder in files.items() if holder.value}
        try:
            key = pathlib.Path(keys.value).read_text().split("\n")[0].strip() if keys.value else ""
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"The API key in {keys.value} cannot be read: {error}.") from error
        return client.Address(target, key, client.Tls(**paths) if tls.value or paths else None)

    return read

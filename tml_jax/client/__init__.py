"""The public client: it imports neither the engine nor JAX."""

from tml_jax.client.address import Address, Tls
from tml_jax.client.conversation import (
    STOPPED,
    Recording,
    Script,
    SessionError,
    converse,
    server_info,
)
from tml_jax.client.resuming import connect

__all__ = [
    "STOPPED",
    "Address",
    "Recording",
    "Script",
    "SessionError",
    "Tls",
    "connect",
    "converse",
    "server_info",
]

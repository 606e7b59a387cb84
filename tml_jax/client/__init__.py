"""The public client: it imports neither the engine nor JAX."""

from tml_jax.client.address import Address, Tls
from tml_jax.client.conversation import (
    STOPPED,
    Context,
    Recording,
    Script,
    SessionError,
    Typed,
    converse,
    server_info,
)
from tml_jax.client.resuming import connect

__all__ = [
    "STOPPED",
    "Address",
    "Context",
    "Recording",
    "Script",
    "SessionError",
    "Tls",
    "Typed",
    "connect",
    "converse",
    "server_info",
]

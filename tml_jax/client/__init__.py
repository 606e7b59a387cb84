"""The public client: it imports neither the engine nor JAX."""

from tml_jax.client.conversation import (
    STOPPED,
    Recording,
    Script,
    SessionError,
    connect,
    converse,
    server_info,
)

__all__ = ["STOPPED", "Recording", "Script", "SessionError", "connect", "converse", "server_info"]

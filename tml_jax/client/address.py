"""Where a server is, and what it asks of those who come."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from tml_jax.wire import protos

_OPTIONS = (("grpc.max_receive_message_length", protos.MAX_MESSAGE_BYTES),)


@dataclasses.dataclass(frozen=True)
class Tls:
    """PEM files: whose certificates are trusted (None: those that gRPC trusts), and a client's own, if it shows one.

    Raises:
      ValueError: one of them cannot be read, or only one of `cert` and `key` is given.
    """

    ca: pathlib.Path | None = None
    cert: pathlib.Path | None = None
    key: pathlib.Path | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("A certificate and its key go together: give both or none.")
        self.credentials()

    def credentials(self) -> grpc.ChannelCredentials:
        """For a channel."""
        read: list[bytes | None] = []
        for path in (self.ca, self.key, self.cert):
            try:
                read.append(path and path.read_bytes())
            except OSError as error:
                raise ValueError(f"The TLS file {path} cannot be read: {error.strerror}.") from error
        return grpc.ssl_channel_credentials(*read)


@dataclasses.dataclass(frozen=True)
class Address:
    """A server: ``host:port``, the API key that it asks for, and TLS, if it has that."""

    target: str
    api_key: str = ""
    tls: Tls | None = None


class _Streams(grpc.aio.StreamStreamClientInterceptor):
    """Sends the key with a conversation."""

    def __init__(self, key: str) -> None:
        self._key = key

    async def intercept_stream_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await continuation(_with_key(client_call_details, self._key), request_iterator)


class _Calls(grpc.aio.UnaryUnaryClientInterceptor):
    """Sends the key with a question."""

    def __init__(self, key: str) -> None:
        self._key = key

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        return await continuation(_with_key(client_call_details, self._key), request)


def _with_key(details: Any, key: str) -> Any:
    metadata = grpc.aio.Metadata(*(details.metadata or ()), ("authorization", f"Bearer {key}"))
    return details._replace(metadata=metadata)


def open_channel(server: str | Address, options: Sequence[tuple[str, Any]] = ()) -> grpc.aio.Channel:
    """A channel to a server: ``host:port``, or an `Address` where it asks for a key or has TLS."""
    address = Address(server) if isinstance(server, str) else server
    keys = [_Streams(address.api_key), _Calls(address.api_key)] if address.api_key else []
    options = (*_OPTIONS, *options)
    if address.tls is None:
        return grpc.aio.insecure_channel(address.target, options=options, interceptors=keys)
    return grpc.aio.secure_channel(address.target, address.tls.credentials(), options=options, interceptors=keys)

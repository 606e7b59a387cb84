"""What stands before the gRPC door: TLS, keys and quotas."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health

from tml_jax.serve.doors.access import Access, AccessError, QuotaError
from tml_jax.serve.doors.address import Tls
from tml_jax.wire import protos


class Guard(grpc.aio.ServerInterceptor):
    """Asks every call for a key, health checks excepted, and counts every conversation as a session of its key."""

    def __init__(self, access: Access) -> None:
        """Makes the guard of a server."""
        self._access = access

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """As gRPC has it."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        if handler_call_details.method.startswith(f"/{health.SERVICE_NAME}/"):
            return _read(handler)
        sent = dict(handler_call_details.invocation_metadata or ())
        try:
            owner = self._access.owner(sent.get("authorization", ""), sent.get("api-key", ""))
        except AccessError as error:
            return _refused(handler, grpc.StatusCode.UNAUTHENTICATED, str(error))
        talks = handler_call_details.method == f"/{protos.SERVICE}/Converse"
        return self._counted(handler, owner) if owner and talks else _read(handler)

    def _counted(self, handler: grpc.RpcMethodHandler, owner: str) -> grpc.RpcMethodHandler:
        inner = handler.stream_stream

        async def stream(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
            try:
                with self._access.session(owner):
                    await inner(requests, context, owner)
            except QuotaError as error:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))

        return grpc.stream_stream_rpc_method_handler(stream, handler.request_deserializer, handler.response_serializer)


def _refused(handler: grpc.RpcMethodHandler, code: grpc.StatusCode, sentence: str) -> grpc.RpcMethodHandler:
    async def abort(request: Any, context: grpc.aio.ServicerContext) -> None:
        await context.abort(code, sentence)

    return _kind(handler)(abort, None, handler.response_serializer)  # whatever came


def _kind(handler: grpc.RpcMethodHandler) -> Callable[..., grpc.RpcMethodHandler]:
    return {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]


def _read(handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
    """A method whose client is told where its message is none: gRPC would say UNKNOWN."""
    if (read := handler.request_deserializer) is None:
        return handler

    async def one(data: bytes, context: grpc.aio.ServicerContext) -> Any:
        try:
            return read(data)
        except DecodeError:
            sentence = f"A message of {len(data)} bytes is none that this method takes."
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, sentence)

    async def several(sent: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        async for data in sent:
            yield await one(data, context)

    def method(inner: Callable[..., Any]) -> Callable[..., Any]:
        async def respond(sent: Any, context: grpc.aio.ServicerContext) -> Any:
            answer = inner(several(sent, context) if handler.request_streaming else await one(sent, context), context)
            if not hasattr(answer, "__aiter__"):
                return await answer
            async for part in answer:
                await context.write(part)

        return respond

    return _kind(handler)(method(_inner(handler)), None, handler.response_serializer)


def _inner(handler: grpc.RpcMethodHandler) -> Callable[..., Any]:
    return handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream


def add_port(server: grpc.aio.Server, address: str, tls: Tls | None) -> int:
    """Has a server listen on ``host:port``, with TLS if there is one, and returns the port.

    Raises:
      RuntimeError: it cannot.
      ValueError: the certificate and key are no pair.
    """
    if tls is None:
        return server.add_insecure_port(address)
    client_ca = tls.client_ca and tls.client_ca.read_bytes()
    credentials = grpc.ssl_server_credentials(
        [(tls.key.read_bytes(), tls.cert.read_bytes())], client_ca, require_client_auth=client_ca is not None
    )
    return server.add_secure_port(address, credentials)

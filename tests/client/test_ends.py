"""Why a conversation ended: what the server said of it, where gRPC tells the client something else."""

import asyncio

import grpc
from grpc.aio import AioRpcError, Metadata

from tml_jax.client import conversation

FULL = (grpc.StatusCode.RESOURCE_EXHAUSTED, "The server is full.")


def test_what_a_server_said_is_kept_and_told_where_grpc_says_that_sending_failed():
    async def refused(requests, context):
        await context.abort(*FULL)
        yield b""

    class Service(grpc.GenericRpcHandler):
        def service(self, details):
            return grpc.stream_stream_rpc_method_handler(refused)

    async def scenario():
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Service(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.stream_stream("/a.Service/Method")()
            said = conversation._said(call)
            await call.code()
            await asyncio.sleep(0)
        await server.stop(None)
        return said

    said = asyncio.run(scenario())
    assert said == [FULL]
    failed = AioRpcError(grpc.StatusCode.INTERNAL, Metadata(), Metadata(), details=conversation._WRITE_FAILED)
    assert FULL[1] in str(conversation._cause(failed, None, said))
    assert "while something was being sent" in str(conversation._cause(failed, None, []))

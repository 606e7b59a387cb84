"""Who floods the web door with what costs it most is read in turn with everybody else, encrypted or not."""

import asyncio
import pathlib
import ssl

import pytest

from tests.serve.conftest import start_web
from tests.serve.hostile_clients import KEY, Doors, Socket, bare, frame, opened
from tests.serve.test_guard import certificates  # noqa: F401
from tml_jax.serve.doors import web
from tml_jax.serve.doors.address import Tls
from tml_jax.serve.server import ServerSettings

FLOOD = frame(b"", 10) * 1_000_000  # pongs that nobody asked for: six bytes each, and no answer
TURNS = 12  # of the flood's, while another one asks and is answered: each way has its own, and TLS some more


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_flood_is_read_in_turn_with_others(bundle, run, monkeypatch, certificates: pathlib.Path, encrypted) -> None:  # noqa: F811
    sizes: dict[object, list[int]] = {}
    received = web._Protocol.data_received

    def data_received(protocol: web._Protocol, data: bytes) -> None:
        sizes.setdefault(protocol, []).append(len(data))
        received(protocol, data)

    monkeypatch.setattr(web._Protocol, "data_received", data_received)

    async def ask(other: Socket) -> None:
        await other.write(frame(b"here", 9))
        while (await other.read())[0] != 10:
            pass

    async def scenario() -> list[int]:
        tls = Tls(certificates / "server.pem", certificates / "server.key") if encrypted else None
        settings = ServerSettings(slots=2, http_address="127.0.0.1:0", api_keys=[KEY], tls=tls)
        async with start_web(bundle, settings) as server:
            known = ssl.create_default_context(cafile=certificates / "ca.pem") if encrypted else None
            doors = Doors(0, server.server.web.port, known)
            async with opened(doors, "/v1/stream") as flood, opened(doors, "/v1/stream") as other:
                sizes.clear()  # of the handshakes
                flood.writer.write(FLOOD)
                while not sizes:
                    await asyncio.sleep(0)
                (read,) = sizes.values()
                between = []
                for _ in range(20):
                    before = sum(read)
                    await ask(other)
                    between.append(sum(read) - before)
                assert before < len(FLOOD), "it goes on all the while"
                assert max(read) <= web.READ_BYTES
                return between

    assert max(run(scenario())) <= TURNS * web.READ_BYTES


def test_a_request_is_read_in_turn_with_others(bundle, run, monkeypatch) -> None:
    sizes, received = [], web._Http.data_received

    def data_received(protocol: web._Http, data: bytes) -> None:
        sizes.append(len(data))
        received(protocol, data)

    monkeypatch.setattr(web._Http, "data_received", data_received)
    head = (
        f"POST /v1/tokens HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 1000000\r\n\r\n"
    )

    async def scenario() -> tuple[int, bytes]:
        settings = ServerSettings(slots=2, http_address="127.0.0.1:0", api_keys=[KEY])
        async with start_web(bundle, settings) as server:
            return await bare(Doors(0, server.server.web.port), head.encode() + bytes(1_000_000))

    assert run(scenario())[0] == 200
    assert max(sizes) <= web.READ_BYTES

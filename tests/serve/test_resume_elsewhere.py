"""A session that is kept is gone on with by a server like the one that kept it; any other says what differs."""

import asyncio
import contextlib
import dataclasses
import json
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import jax
import jax.numpy as jnp
import pytest

from tests.serve.fakes import SPEC, FakeModel
from tests.serve.test_resume import (
    CONFIG,
    Breakable,
    Holding,
    OneServer,
    call,
    kept,
    refusal,
    resume,
    script,
    sound,
    turns,
    uninterrupted,
)
from tml_jax import client
from tml_jax.client.conversation import SessionError
from tml_jax.executor.live import LiveModel
from tml_jax.serve import session_log
from tml_jax.serve.bundle import ModelBundle, difference, load_bundle
from tml_jax.serve.engine import Engine
from tml_jax.serve.inbox import Note
from tml_jax.serve.session_log import pack, unpack
from tml_jax.streams.text import Tokenizer

TURNS = 8


class OtherState(FakeModel):
    """Remembers in another way."""

    def init_state(self, num_slots: int) -> Any:
        return dataclasses.replace(super().init_state(num_slots), loud=jnp.zeros((num_slots, 2), bool))

    def state_axes(self, num_slots: int) -> Any:
        return dataclasses.replace(super().state_axes(num_slots), loud=("slot", None))

    def reset(self, state: Any, mask: Any) -> Any:
        return dataclasses.replace(super().reset(state, mask), loud=state.loud & ~mask[:, None])

    def step(self, params: Any, state: Any, inputs: Any, rng: Any) -> Any:
        new, written = super().step(params, dataclasses.replace(state, loud=state.loud[:, 0]), inputs, rng)
        return dataclasses.replace(new, loud=jnp.stack([new.loud, new.loud], 1)), written


def other_spec(bundle: ModelBundle, folder: pathlib.Path) -> ModelBundle:
    spec = dataclasses.replace(SPEC, max_text=16)
    return dataclasses.replace(bundle, spec=spec, model=FakeModel(spec, bundle.tokenizer))


def other_state(bundle: ModelBundle, folder: pathlib.Path) -> ModelBundle:
    return dataclasses.replace(bundle, model=OtherState(SPEC, bundle.tokenizer))


def other_tokenizer(bundle: ModelBundle, folder: pathlib.Path) -> ModelBundle:
    text = bundle.tokenizer.path.read_text().replace('"seven"', '"severn"').replace('"Ġseven"', '"Ġsevern"')
    (folder / "other.json").write_text(text)
    return dataclasses.replace(bundle, tokenizer=Tokenizer(folder / "other.json"))


OTHERS: dict[str, tuple[Callable[[ModelBundle, pathlib.Path], ModelBundle], str]] = {
    "weights": (
        lambda bundle, _: dataclasses.replace(bundle, params={"gain": jnp.nextafter(jnp.ones(()), jnp.float32(2))}),
        r"weights checksum is [0-9a-f]{16} there and [0-9a-f]{16} here",
    ),
    "stream": (other_spec, "stream max_text is 8 there and 16 here"),
    "state": (other_state, r"state \.loud is bool\[\] there and bool\[2\] here"),
    "tokenizer": (other_tokenizer, r"tokenizer checksum is [0-9a-f]{16} there and [0-9a-f]{16} here"),
    "config": (
        lambda bundle, _: dataclasses.replace(bundle, config={"sliding_window": 64}),
        "config sliding_window is not known there and 64 here",
    ),
}


@contextlib.contextmanager
def running(bundle: ModelBundle) -> Iterator[Engine]:
    engine = Engine(bundle, 2, faster_than_real_time=True)
    engine.start(identify=True)
    try:
        yield engine
    finally:
        engine.stop()


@pytest.fixture(scope="module")
def engine(bundle) -> Iterator[Engine]:
    with running(bundle) as engine:
        yield engine


async def left(engine: Engine, folder: pathlib.Path) -> tuple[str, int]:
    """Has a server keep a session of `TURNS` micro-turns and die; its token, and how much was told of it."""
    async with OneServer(engine, folder, snapshot_turns=3) as server, client.connect(server.address) as channel:
        one = await call(channel, CONFIG, *(sound(3200 * k) for k in range(TURNS)))
        token = (await one.read()).started.resume_token
        told = await turns(one, TURNS)
        await server.die()
        return token, told[-1].sequence


async def asked(engine: Engine, folder: pathlib.Path, token: str, sequence: int = 0) -> tuple[grpc.StatusCode, str]:
    async with OneServer(engine, folder) as server, client.connect(server.address) as channel:
        return await refusal(await call(channel, resume(token, sequence)))


@pytest.mark.parametrize("what", OTHERS)
def test_another_model_is_refused_by_what_differs(bundle, engine, run, tmp_path: pathlib.Path, what: str) -> None:
    change, differs = OTHERS[what]

    async def scenario() -> tuple[tuple[grpc.StatusCode, str], Any]:
        token, told = await left(engine, tmp_path / "kept")
        with running(change(bundle, tmp_path)) as other:
            refused = await asked(other, tmp_path / "kept", token)
        async with OneServer(engine, tmp_path / "kept") as server, client.connect(server.address) as channel:
            one = await call(channel, resume(token, told), sound(3200 * TURNS))  # is there for who can
            await one.read()
            return refused, (await turns(one, 1))[-1].turn

    (code, sentence), turn = run(scenario())
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    whole = rf"This session is held with the model fake, and not with fake as this server has it: {differs}\."
    assert re.fullmatch(whole, sentence), sentence
    assert turn.turn == TURNS


def test_the_same_model_by_another_name_goes_on_with_the_same_bits(bundle, engine, run, tmp_path: pathlib.Path) -> None:
    """And one that is another is passed over, where there are several servers to be tried."""
    named = dataclasses.replace(bundle, name="renamed", params={"gain": jnp.asarray(1.0)})

    async def scenario() -> tuple:
        whole = await uninterrupted(engine, script(7))
        with running(named) as renamed, running(other_state(bundle, tmp_path)) as other:
            async with (
                OneServer(engine, tmp_path) as first,
                OneServer(other, tmp_path) as second,
                OneServer(renamed, tmp_path) as third,
                client.connect(first.address, second.address, third.address, resume=True) as channel,
            ):
                holding = Holding(channel, script(7))
                await holding.until(20)
                await first.door.drain(60.0)
                return whole, await holding.all(), third.sessions.resumed

    whole, told, resumed = run(scenario())
    assert kept(told) == kept(whole)
    assert resumed == 1


def test_a_client_gives_up_at_once_where_no_server_can_go_on(bundle, engine, run, tmp_path: pathlib.Path) -> None:
    async def scenario() -> float:
        way, now = Breakable(), asyncio.get_running_loop().time
        with running(other_state(bundle, tmp_path)) as other:
            async with (
                OneServer(engine, tmp_path) as first,
                OneServer(other, tmp_path) as second,
                way.listening() as there,
                client.connect(there, resume=True, within_s=100.0) as channel,
            ):
                way.target = first.address
                holding = Holding(channel, script(7))
                await holding.until(20)
                way.target, began = second.address, now()
                await first.door.drain(60.0)
                with pytest.raises(SessionError, match=r"is bool\[\] there and bool\[2\] here"):
                    await holding.all()
                return now() - began

    assert run(scenario()) < 80


def test_another_format_is_refused_and_swept_away_in_time(engine, run, tmp_path: pathlib.Path) -> None:
    """As older servers wrote it, whose heads name none, and as newer ones will."""

    def written_in(folder: pathlib.Path, form: int | None) -> None:
        (head,) = unpack((folder / "head").read_bytes())[0]
        known = {"digest": head["digest"], "config": {"sends_smell": True}, "model": f"fake {SPEC}"}
        (folder / "head").write_bytes(pack(known if form is None else known | {"format": form}))
        for path in (*folder.glob("*.log"), *folder.glob("*.state")):
            path.write_bytes(pack({"of": "another version"}))

    async def scenario() -> list[tuple[grpc.StatusCode, str]]:
        token, _ = await left(engine, tmp_path)
        found = []
        for form in (None, session_log.FORMAT + 1):
            written_in(tmp_path / token.partition(".")[0], form)
            found += [await asked(engine, tmp_path, token), await asked(engine, tmp_path, token[:-1])]
        session_log.sweep(tmp_path, 0.0, 0.0)
        return found

    sentence = "This session was kept in format {} by another version of the server, and this one reads format 3 alone."
    unknown = run(scenario())
    assert [code for code, _ in unknown] == [grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND] * 2
    assert [said for _, said in unknown[::2]] == [sentence.format(1), sentence.format(4)]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("harm", ["a state that is cut", "a part that is gone", "a part that is cut"])
def test_what_is_damaged_is_not_gone_on_with(engine, run, tmp_path: pathlib.Path, harm: str) -> None:
    async def scenario() -> tuple[grpc.StatusCode, str]:
        token, _ = await left(engine, tmp_path)
        folder = tmp_path / token.partition(".")[0]
        (state,) = folder.glob("*.state")
        if harm == "a state that is cut":
            state.write_bytes(state.read_bytes()[:-1])
        else:
            first = folder / f"{state.stem}.log"
            (folder / f"{int(state.stem) + 1:05d}.log").write_bytes(first.read_bytes())
            first.unlink() if "gone" in harm else first.write_bytes(first.read_bytes()[:100])
        return await asked(engine, tmp_path, token)

    damaged = "What is kept of this session is damaged, and nothing can go on with it."
    assert run(scenario()) == (grpc.StatusCode.FAILED_PRECONDITION, damaged)


FORMAT_3 = {
    "head": "config digest every format identity name",
    "config": "background instructions seed sends_audio sends_video sound wants_audio",
    "block": "closes frames frames_dropped heard held level levels lost_ms notes patches received "
    "shortened_ms silence_ms standing tokens",
    "note": "answers state task text who",
    "received": "closed frames sound texts",
    "state": "closed counts cut journal last outlet row said tasks told waiting",
    "last": "heard held received",
    "outlet": "heard said speech vocoder",
    "outlet.said": "decoder since",
    "outlet.speech": "epoch heard since",
    "outlet.vocoder": "mel past silent",
    "tasks": "handed_over open",
}


def test_what_is_kept_is_of_this_format(engine, run, tmp_path: pathlib.Path) -> None:
    """Who adds to what is kept, or takes from it, raises `session_log.FORMAT`, and writes here what it is then."""

    async def scenario() -> tuple[Any, ...]:
        token, _ = await left(engine, tmp_path)
        folder = tmp_path / token.partition(".")[0]
        (state,) = folder.glob("*.state")
        return tuple(unpack(path.read_bytes())[0][0] for path in (folder / "head", state.with_suffix(".log"), state))

    head, block, state = run(scenario())
    outlet = state["outlet"]
    found = {"head": head, "config": head["config"], "block": block, "note": vars(Note("", ""))}
    found |= {"received": block["received"], "state": state, "last": state["last"], "outlet": outlet}
    found |= {f"outlet.{name}": outlet[name] for name in ("said", "speech", "vocoder")} | {"tasks": state["tasks"]}
    assert {name: " ".join(sorted(fields)) for name, fields in found.items()} == FORMAT_3
    assert (head["format"], session_log.FORMAT) == (3, 3)


@pytest.fixture(scope="module")
def shipped() -> ModelBundle:
    return load_bundle("checkpoints/inkling_tiny")


def one_bit(params: Any) -> Any:
    leaves, tree = jax.tree.flatten(params)
    largest = max(range(len(leaves)), key=lambda k: leaves[k].size)
    x = leaves[largest].ravel()
    leaves[largest] = x.at[x.size // 3].set(jnp.nextafter(x[x.size // 3], jnp.inf)).reshape(leaves[largest].shape)
    return jax.tree.unflatten(tree, leaves)


def identity(bundle: ModelBundle) -> dict[str, Any]:
    return bundle.identity(LiveModel(bundle.executor, bundle.model, bundle.spec, 2).row_layout)


def saved_with(folder: pathlib.Path, change: Callable[[dict[str, Any]], None]) -> ModelBundle:
    """The shipped model with another config beside the same weights."""
    shutil.copytree("checkpoints/inkling_tiny", folder)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return load_bundle(str(folder))


def test_no_other_model_is_taken_for_the_shipped_one(shipped, tmp_path: pathlib.Path) -> None:
    known = identity(shipped)
    (copied,) = unpack(pack(known))[0]
    assert difference(copied, known) == ""
    other_eps = saved_with(tmp_path / "eps", lambda config: config["text"].update(rms_norm_eps=1e-5))
    others = [
        (load_bundle("checkpoints/inkling_tiny", dtype="bfloat16"), "config dtype is float32 there and bfloat16 here"),
        (dataclasses.replace(shipped, params=one_bit(shipped.params)), "weights checksum is "),
        (dataclasses.replace(shipped, voice={"out.bias": jnp.zeros(3)}), "voice checksum is "),
        (other_eps, "config text rms_norm_eps is 1e-06 there and 1e-05 here"),
    ]
    for other, differs in others:
        assert difference(copied, identity(other)).startswith(differs), differs


def test_who_goes_while_a_session_is_opened_finds_it_again(engine, run, tmp_path: pathlib.Path, monkeypatch) -> None:
    """What is opened for a client that has gone meanwhile would be held by this server for ever."""
    opened = session_log.SessionLog.open

    def slowly(folder: pathlib.Path) -> Any:
        time.sleep(0.3)
        return opened(folder)

    monkeypatch.setattr(session_log.SessionLog, "open", slowly)

    async def scenario() -> int:
        async with OneServer(engine, tmp_path) as first, client.connect(first.address) as channel:
            one = await call(channel, CONFIG, *(sound(3200 * k) for k in range(8)))
            token = (await one.read()).started.resume_token
            await turns(one, 7)
            await first.die()
        async with OneServer(engine, tmp_path) as second:
            going = asyncio.create_task(second.sessions.resume(token, 0))
            await asyncio.sleep(0.1)
            going.cancel()
            await asyncio.sleep(0.5)
            await second.sessions.resume(token, 0)
            return second.sessions.resumed

    assert run(scenario()) == 1

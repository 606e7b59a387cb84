"""The commands, each a process of its own, with a small real model of random weights."""

import asyncio
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import soundfile

from tests.serve.conftest import bursts, talk
from tml_jax import client
from tml_jax.checkpoint import store
from tml_jax.model.config import FlowConfig, InteractionConfig, StateConfig, TextConfig, VisionConfig
from tml_jax.model.interaction import InteractionModel
from tml_jax.serve import subprocess_server
from tml_jax.serve.bundle import load_bundle
from tml_jax.serve.config import SessionSettings
from tml_jax.serve.server import Server, ServerSettings
from tml_jax.streams import vocabulary
from tml_jax.streams.micro_turn import StreamSpec
from tml_jax.wire.journal import read_journal

CONFIG = InteractionConfig(
    text=TextConfig(
        vocab_size=512,
        unpadded_vocab_size=vocabulary.NUM_ROWS,
        hidden_size=32,
        layer_types=("hybrid_sliding", "hybrid"),
        mlp_layer_types=("dense", "sparse"),
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        swa_num_attention_heads=2,
        swa_num_key_value_heads=1,
        swa_head_dim=16,
        sliding_window_size=16,
        rel_extent=32,
        d_rel=4,
        intermediate_size=32,
        moe_intermediate_size=32,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        logits_mup_width_multiplier=1.0,
    ),
    vision=VisionConfig(folds=((1, 5, 8), (1, 2, 8), (1, 4, 8), (2, 1, 0))),
    stream=StreamSpec(
        audio_tokens=1,
        max_patches=1,
        max_text=8,
        max_output=1,
        frame_height=40,
        frame_width=40,
        dmel_hop=320,
        dmel_window=1280,
    ),
    flow=FlowConfig(width=16, depth=1, euler_steps=2),
    state=StateConfig(sinks=8, global_window=32),
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("small")
    (folder / "tokenizer.json").write_text(vocabulary.build_json())
    rng = np.random.default_rng(0)  # to compile `init_params` takes longer than all the rest
    params = jax.tree.map(
        lambda x: np.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), InteractionModel(CONFIG).abstract
    )
    store.save_model(folder / "model", CONFIG, params, folder / "tokenizer.json")
    return folder / "model"


def command(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)


def test_serve_and_chat_as_processes_leave_what_they_promise(checkpoint: pathlib.Path, tmp_path: pathlib.Path) -> None:
    sound = bursts(1.0, seed=1, rate=44_100, channels=2)
    soundfile.write(tmp_path / "in.wav", sound.samples, sound.sample_rate)
    (tmp_path / "broken.wav").write_bytes(b"RIFF no sound at all")
    out, journals = tmp_path / "out", tmp_path / "journals"
    flags = ["--journal_dir", str(journals), "--longest_linger_ms=600", "--slots=2", "--weights=int8"]
    with subprocess_server.run(str(checkpoint), flags) as address:
        broken = command("launch.chat", "--wav", tmp_path / "broken.wav", "--server", address, "--out", out)
        chat = command("launch.chat", "--wav", tmp_path / "in.wav", "--server", address, "--out", out, "--tail_s=1")
    assert broken.returncode == 1
    assert broken.stderr.strip().splitlines()[-1].endswith("is it damaged, cut off, or of another kind?")
    assert "Traceback" not in broken.stderr
    assert chat.returncode == 0, chat.stderr
    assert {path.name for path in out.iterdir()} == {"reply.wav", "session.jsonl", "timeline.png", "summary.json"}
    figures = json.loads((out / "summary.json").read_text())
    assert figures["compilations_after_warmup"] == 0
    assert figures["micro_turns"] >= 10
    assert all(name in chat.stdout for name in figures), "what is written is what is printed"
    reply, rate = soundfile.read(out / "reply.wav")
    assert rate == 16_000
    assert len(reply) >= 32_000
    (journal,) = journals.iterdir()
    server_side = [event["type"] for event in read_journal(journal)]
    assert server_side == [event["type"] for event in read_journal(out / "session.jsonl")]


@pytest.mark.parametrize("damage", ["missing", "no config", "cut off", "other sizes"])
def test_an_unreadable_checkpoint_is_one_sentence(
    checkpoint: pathlib.Path, tmp_path: pathlib.Path, damage: str
) -> None:
    folder = tmp_path / "model"
    if damage != "missing":
        folder.mkdir()
        for path in checkpoint.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    if damage == "no config":
        (folder / "config.json").write_text("{")
    if damage == "cut off":
        path = max(folder.iterdir(), key=lambda path: path.stat().st_size)
        path.write_bytes(path.read_bytes()[:1000])
    if damage == "other sizes":
        config = json.loads((folder / "config.json").read_text())
        config["text"]["hidden_size"] = 64
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        load_bundle(str(folder))
    assert str(folder) in str(error.value)


def test_serve_says_why_it_cannot_start(tmp_path: pathlib.Path) -> None:
    result = command("launch.serve", "--checkpoint", tmp_path / "nothing", "--port=0")
    assert result.returncode == 1
    assert (
        result.stderr.strip()
        == f"launch.serve: There is no checkpoint at {tmp_path / 'nothing'}: give a folder that holds a saved model."
    )


def test_chat_says_when_no_server_is_there(tmp_path: pathlib.Path) -> None:
    result = command("launch.chat", "--text=hello", "--server=127.0.0.1:9", "--out", tmp_path)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("The server does not answer: ")
    assert "Traceback" not in result.stderr


def test_the_real_model_repeats_itself_bit_for_bit_in_any_company(checkpoint: pathlib.Path, run) -> None:
    bundle = load_bundle(str(checkpoint))
    script = client.Script(bursts(1.2, seed=7), texts=[(0.5, "seven please")], seed=11, tail_s=0.0)
    others = [client.Script(bursts(1.2, seed=s), seed=s, tail_s=0.0) for s in (1, 2)]
    settings = ServerSettings(slots=3, faster_than_real_time=True, session=SessionSettings(longest_linger_ms=400))

    async def scenario() -> tuple[client.Recording, client.Recording, int]:
        server = Server(bundle, settings)
        address = f"127.0.0.1:{await server.start()}"
        alone = await talk(address, script)
        await talk(address, others[0])
        *_, beside = await _together(address, [*others, script])
        compiled = server.engine.stats().compilations_after_warmup
        await server.stop(0.0)
        return alone, beside, compiled

    alone, beside, compiled = run(scenario())
    assert alone.reply.any()
    assert np.array_equal(alone.reply, beside.reply)
    assert compiled == 0


async def _together(address: str, scripts: list[client.Script]) -> list[client.Recording]:
    return await asyncio.gather(*(talk(address, script) for script in scripts))

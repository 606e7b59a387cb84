"""Published weights into a sharded training checkpoint and out again, and served, on eight devices."""

import asyncio
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from tests.checkpoint.published import tensors
from tests.model import tiny
from tests.serve.conftest import bursts, talk
from tests.train.experiment_small import CONFIG
from tml_jax import client
from tml_jax.checkpoint import convert, store
from tml_jax.checkpoint.source import open_source
from tml_jax.checkpoint.tensors import TensorFiles, TensorSpec, write_tensors
from tml_jax.model.interaction import InteractionModel
from tml_jax.serve import subprocess_server
from tml_jax.train.loop import Run

TOKENIZER = pathlib.Path("checkpoints/inkling_tiny/tokenizer.json")
MODEL = InteractionModel(CONFIG.model)
EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
# Each run is cut before its first step, and what the run would judge itself by is left out.
SCRIPT = """
import dataclasses, json, sys
import jax
from tests.train.experiment_small import CONFIG
from tml_jax.train import loop

loop.evaluate = lambda *_: {"loss": 0.0}
train = dataclasses.replace(CONFIG.train, workers=0, eval_conversations=1, batch_size=8, mesh=(1, 2, 2, 2))
experiment = dataclasses.replace(CONFIG, train=train)
for init_from, workdir in zip(sys.argv[2::2], sys.argv[3::2]):
    state = loop.Run(experiment, workdir, sys.argv[1], init_from).train(stop_after=0)
    cut = [not x.sharding.is_fully_replicated for x in jax.tree.leaves(state.params)]
    assert len(jax.devices()) == 8 and sum(cut) > 20, sum(cut)
"""
# What the server loads and runs, on one device and on eight: the numbers before they are sent.
LIVE = """
import sys
import jax, numpy as np
from tests.model import tiny
from tml_jax.executor.executor import Executor
from tml_jax.executor.live import LiveModel
from tml_jax.serve.bundle import load_bundle

outputs = []
for shape in ((1, 1, 1, 1), (1, 2, 2, 2)):
    bundle = load_bundle(sys.argv[1], Executor.of_shape(shape))
    live = LiveModel(bundle.executor, bundle.model, bundle.spec, 4)
    conversations, inputs = live.init(), tiny.random_inputs(bundle.spec, 4, 12)
    for t in range(12):
        now = jax.tree.map(lambda x: x[:, t], inputs)
        conversations, out = live.step(bundle.params, conversations, now, np.zeros((4, 2), np.uint32))
        outputs.append(jax.device_get(out))
for one, eight in zip(outputs[:12], outputs[12:]):
    np.testing.assert_array_equal(one.tokens, eight.tokens)
    np.testing.assert_array_equal(one.speaking, eight.speaking)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=0, atol=1e-5), one, eight)
assert any(out.speaking.any() for out in outputs) and any(np.abs(out.mel).max() > 0.1 for out in outputs)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """``taught``: published with our heads; ``inkling``: without; ``*_run``: runs that began with them."""
    root = tmp_path_factory.mktemp("init_from")
    store.save_model(root / "saved", CONFIG.model, tiny.random_params(MODEL), TOKENIZER, dtype=jnp.bfloat16)
    convert.to_published(root / "saved", root / "taught", max_shard_bytes=40_000)
    shutil.copytree(root / "taught", root / "inkling")
    for path in (root / "inkling").glob("*.safetensors*"):
        path.unlink()
    found = {name: x for name, x in TensorFiles(root / "taught").items() if not name.startswith("interaction.")}
    specs = [TensorSpec(name, x.shape, x.dtype) for name, x in found.items()]
    write_tensors(root / "inkling", specs, lambda name: [found[name]], max_shard_bytes=40_000)
    config = json.loads((root / "taught" / "config.json").read_text())
    del config["interaction"]
    config |= {"eos_token_id": [5, 6]}
    (root / "inkling" / "config.json").write_text(json.dumps(config))
    assert len(list((root / "inkling").glob("*.safetensors"))) >= 6
    arguments = [root / name for name in ("taught", "taught_run", "inkling", "inkling_run")]
    command = [sys.executable, "-c", SCRIPT, TOKENIZER, *arguments]
    run = subprocess.run(command, env=os.environ | EIGHT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    return root


def test_what_was_taught_comes_out_bit_for_bit(root, tmp_path):
    convert.to_published(root / "taught_run", tmp_path / "back")
    assert tensors(tmp_path / "back") == tensors(root / "taught")
    for name in ("config.json", "tokenizer.json"):
        assert json.loads((tmp_path / "back" / name).read_text()) == json.loads((root / "taught" / name).read_text())


def test_published_weights_get_heads_and_control_tokens(root, tmp_path):
    convert.to_published(root / "inkling_run", tmp_path / "back")
    back, original = TensorFiles(tmp_path / "back"), TensorFiles(root / "inkling")
    control = MODEL.control
    for name, weight in original.items():
        expected = np.array(weight)
        if name in ("model.llm.embed.weight", "model.llm.unembed.weight"):
            used = expected[: control.base].astype(np.float64)
            np.testing.assert_allclose(back[name][control.base].astype(np.float64), used.mean(0), rtol=2**-8, atol=1e-6)
            expected[control.base : control.stop] = back[name][control.base]
        np.testing.assert_array_equal(back[name].view(np.uint8), expected.view(np.uint8), err_msg=name)
    heads = set(back) - set(original)
    assert heads == {name for name in TensorFiles(root / "taught") if name.startswith("interaction.")}
    assert np.std(back["interaction.heard.w"].astype(np.float32)) > 0
    found = json.loads((tmp_path / "back" / "config.json").read_text())
    assert found.pop("interaction") and found == json.loads((root / "inkling" / "config.json").read_text())
    # As the run's own checkpoint has them: float32, each control token's row the mean of all that are used.
    (root / "inkling_run" / "dtypes.json").rename(tmp_path / "dtypes.json")
    table = open_source(root / "inkling_run").weights["text.table"][()]
    np.testing.assert_allclose(
        table[control.base : control.stop],
        np.tile(table[: control.base].mean(0, dtype=np.float64), (len(control.names()), 1)),
        atol=1e-6,
    )
    (tmp_path / "dtypes.json").rename(root / "inkling_run" / "dtypes.json")


def test_a_run_begins_with_a_run_or_with_orbax_arrays(root, tmp_path):
    convert.to_orbax(root / "taught_run", tmp_path / "orbax")
    for source in (root / "taught_run", tmp_path / "orbax"):
        opened = open_source(source)
        assert opened.config == CONFIG.model and not opened.fresh
        for path, weight in open_source(root / "saved").weights.items():
            np.testing.assert_array_equal(opened.weights[path][()], np.asarray(weight[()]), err_msg=path)


def tokens_swapped(data):
    vocab = data["model"]["vocab"]
    first, second = [name for name, row in vocab.items() if row in (300, 301)]
    vocab[first], vocab[second] = vocab[second], vocab[first]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tokens_swapped, r"gives other tokens their rows than .*tokenizer.json, with which the weights were made"),
        (lambda data: data["model"]["vocab"].update({"zz": 480}), r"it uses 481 rows of the vocabulary.* says 480"),
    ],
)
def test_another_tokenizer_is_refused_before_anything_is_written(root, tmp_path, change, message):
    shutil.copytree(root / "inkling", tmp_path / "from")
    data = json.loads(TOKENIZER.read_text())
    change(data)
    (tmp_path / "from" / "tokenizer.json").write_text(json.dumps(data))
    refused(CONFIG, tmp_path, message)


def test_another_vocabulary_is_refused_before_anything_is_written(root, tmp_path):
    shutil.copytree(root / "inkling", tmp_path / "from")
    path = tmp_path / "from" / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["unpadded_vocab_size"] = 481
    path.write_text(json.dumps(config))
    refused(CONFIG, tmp_path, r"model of other sizes: config.text.unpadded_vocab_size was 481 and is now 480")
    text = dataclasses.replace(CONFIG.model.text, vocab_size=488)
    small = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, text=text))
    refused(small, tmp_path, r"vocabulary has 488 rows, .* with the control tokens it needs 489")


def refused(experiment, tmp_path, message):
    experiment = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, workers=0))
    with pytest.raises(ValueError, match=message) as error:
        Run(experiment, str(tmp_path / "run"), str(TOKENIZER), str(tmp_path / "from")).train(stop_after=0)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_eight_devices_serve_it_as_one_does(root, tmp_path, monkeypatch):
    convert.to_saved_model(root / "taught_run", tmp_path / "model")
    monkeypatch.setenv("XLA_FLAGS", EIGHT["XLA_FLAGS"])
    script = client.Script(bursts(2.4, seed=7), texts=[(0.5, "seven please")], seed=11, tail_s=0.6)

    def converse(*flags: str) -> client.Recording:
        common = ["--slots=4", "--faster_than_real_time", "--longest_linger_ms=600"]
        with subprocess_server.run(str(tmp_path / "model"), [*common, *flags]) as address:
            return asyncio.run(talk(address, script))

    one, eight = converse(), converse("--mesh=1,2,2,2")

    def decided(recording: client.Recording) -> list[str]:
        said = ("type", "turn", "text", "word", "token", "tokens", "speaking")
        return [json.dumps({k: v for k, v in event.items() if k in said}) for event in recording.events]

    assert decided(one) == decided(eight) and len(decided(one)) > 10
    # Sound is sent in 16 bits: where it lies between two steps, the least difference makes one.
    assert one.reply.size and np.abs(one.reply).max() > 0
    steps = np.rint((eight.reply - one.reply) * 2**15)
    assert np.abs(steps).max() <= 1 and np.mean(steps != 0) < 0.01
    command = [sys.executable, "-c", LIVE, tmp_path / "model"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]

"""Saved models and training checkpoints: what is written is read back, and what is damaged is named."""

import dataclasses
import errno
import functools
import json
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint._src.path import atomicity

from tests.model import tiny
from tml_jax import sharding
from tml_jax.checkpoint import convert, store
from tml_jax.checkpoint.tensors import TensorFiles, TensorSpec, write_file, write_tensors
from tml_jax.model.config import ClockConfig, FlowConfig, InteractionConfig, TextConfig, VisionConfig
from tml_jax.model.interaction import InteractionModel
from tml_jax.streams.micro_turn import StreamSpec

CONFIG = InteractionConfig(
    text=TextConfig(
        vocab_size=64,
        unpadded_vocab_size=48,
        hidden_size=16,
        layer_types=("hybrid_sliding", "hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid"),
        mlp_layer_types=("dense", "sparse", "sparse", "sparse", "sparse"),
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        swa_num_attention_heads=2,
        swa_num_key_value_heads=1,
        swa_head_dim=8,
        sliding_window_size=4,
        d_rel=2,
        rel_extent=8,
        intermediate_size=24,
        moe_intermediate_size=12,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
    ),
    vision=VisionConfig(folds=((1, 5, 4), (1, 2, 4), (1, 4, 8), (2, 1, 0))),
    stream=StreamSpec(audio_tokens=1, max_patches=1, max_text=4, max_output=1, frame_height=40, frame_width=40),
    flow=FlowConfig(width=8, depth=1),
    clock=ClockConfig(features=2),
)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), InteractionModel(CONFIG).abstract)


@pytest.fixture
def tokenizer(tmp_path):
    path = tmp_path / "source_tokenizer.json"
    path.write_text(tiny.tokenizer_json())
    return path


def test_a_saved_model_is_read_back_exactly(params, tokenizer, tmp_path):
    store.save_model(tmp_path / "model", CONFIG, params, tokenizer)
    config, loaded, text = store.load_model(tmp_path / "model")
    assert config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert text.vocab_size == 48 and text.control == InteractionModel(config).control


def test_bfloat16_on_disk_is_half_the_size_and_loads_as_float32(params, tokenizer, tmp_path):
    store.save_model(tmp_path / "wide", CONFIG, params, tokenizer)
    store.save_model(tmp_path / "model", CONFIG, params, tokenizer, dtype=jnp.bfloat16)
    wide, narrow = ((tmp_path / d / "model.safetensors").stat().st_size for d in ("wide", "model"))
    assert narrow < 0.6 * wide
    files = TensorFiles(tmp_path / "model")
    assert files.spec("text.table").dtype == jnp.bfloat16
    # The router's correction and the convolutions are float32 in every model.
    assert files.spec("transformer.unit_0.mlp.correction").dtype == np.float32
    assert files.spec("transformer.unit_0.attn_conv.w").dtype == np.float32
    _, loaded, _ = store.load_model(tmp_path / "model")
    rounded = params["text"]["table"].astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(loaded["text"]["table"], rounded)
    assert loaded["text"]["table"].dtype == jnp.float32
    _, half = store.load_params(tmp_path / "model", dtype=jnp.bfloat16, mesh=sharding.make_mesh())
    np.testing.assert_array_equal(half["text"]["table"].astype(jnp.float32), rounded)


def test_a_loaded_model_runs(params, tokenizer, tmp_path):
    store.save_model(tmp_path, CONFIG, params, tokenizer)
    config, loaded, _ = store.load_model(tmp_path)
    net = InteractionModel(config).net(loaded)
    ids = jnp.arange(6)
    np.testing.assert_array_equal(net.text(ids), InteractionModel(CONFIG).net(params).text(ids))


def test_errors_of_a_saved_model_are_one_sentence(params, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="holds no model"):
        store.load_model(tmp_path)
    store.save_model(tmp_path, CONFIG, params, tokenizer)
    other = dataclasses.replace(CONFIG, clock=ClockConfig(features=3))
    (tmp_path / "config.json").write_text(json.dumps(other.to_json()))
    with pytest.raises(ValueError, match=r"clock.proj.w is \[4, 16\] in the file and \[6, 16\] in the model"):
        store.load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"text": {"width": 3}}))
    with pytest.raises(ValueError, match="unknown fields"):
        store.load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "inkling", "text_config": {}}))
    with pytest.raises(
        ValueError, match=r"has the published layout: `launch.convert --layout=saved` makes a model of it"
    ):
        store.load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_json()))
    (tmp_path / "model.safetensors").write_bytes(b"\x10" * 100)
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        store.load_model(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer.json' cannot be read: there is no such file"):
        store.load_model(tmp_path)


@pytest.mark.parametrize(
    ("rows", "sizes", "message"),
    [
        (40, {}, r"tokenizer.json is of another model: it uses 40 rows of the vocabulary, and .* config says 48"),
        (49, {}, r"it uses 49 rows of the vocabulary, and the model's config says 48"),
        (64, {"unpadded_vocab_size": None}, r"vocabulary has 64 rows, of which the tokenizer .* uses 64; .* needs 73"),
        (56, {"unpadded_vocab_size": 56}, r"vocabulary has 64 rows, of which the tokenizer .* uses 56; .* needs 65"),
    ],
)
def test_a_tokenizer_of_another_model_is_refused(params, tokenizer, tmp_path, rows, sizes, message):
    config = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, **sizes))
    tokenizer.write_text(tiny.tokenizer_json(rows))
    store.save_model(tmp_path / "model", config, params, tokenizer)
    with pytest.raises(ValueError, match=message):
        store.load_model(tmp_path / "model")
    for write in (convert.to_published, functools.partial(convert.to_saved_model, dtype="int8")):
        with pytest.raises(ValueError, match=message):
            write(tmp_path / "model", tmp_path / "to")
        assert not (tmp_path / "to").exists()


def test_a_tokenizer_may_leave_rows_out(tmp_path):
    whole = json.loads(tiny.tokenizer_json())
    vocab = whole["model"]["vocab"]
    vocab["<|end|>"] = 47
    del vocab["c"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    assert store.open_tokenizer(tmp_path / "tokenizer.json", CONFIG.text).control.listen == 48


def test_an_index_that_lies_is_refused(tmp_path):
    specs = [TensorSpec(name, (3,), np.dtype(np.float32)) for name in ("a", "b")]
    write_tensors(tmp_path, specs, lambda name: [np.full(3, ord(name), np.float32)], max_shard_bytes=12)
    files = TensorFiles(tmp_path)
    assert sorted(files) == ["a", "b"] and files["b"].tolist() == [98.0] * 3
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"b"', '"c"'))
    with pytest.raises(ValueError, match="'c'"):
        TensorFiles(tmp_path)
    index.write_text("[]")
    with pytest.raises(ValueError, match="not an index"):
        TensorFiles(tmp_path)


def test_a_tensor_is_that_of_the_file_in_which_the_index_places_it(tmp_path):
    """Also where another file still holds one of that name: what was trained further replaces it."""
    for file, names in (("old", "ab"), ("new", "b")):
        specs = [TensorSpec(name, (3,), np.dtype(np.float32)) for name in names]
        write_file(tmp_path / file, specs, lambda name, file=file: [np.full(3, file == "new", np.float32)])
    index = tmp_path / "model.safetensors.index.json"
    for place in ("old", "new"):
        index.write_text(json.dumps({"weight_map": {"b": place, "a": "old"}}))
        files = TensorFiles(tmp_path)
        assert files["b"].tolist() == [place == "new"] * 3 and files["a"].tolist() == [0.0] * 3


def test_tensors_come_in_the_order_of_their_file(tmp_path):
    """Whatever order the index has: how a conversion cuts them into files depends on it."""
    names = [f"weight.{i}" for i in (7, 2, 5, 0, 3, 6, 1, 4)]
    specs = [TensorSpec(name, (3,), np.dtype(np.float32)) for name in names]
    write_file(tmp_path / "all", specs, lambda name: [np.zeros(3, np.float32)])
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(sorted(names), "all")}))
    assert list(TensorFiles(tmp_path)) == names


def training_state(params, seed=0):
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    opt = optimiser.init(params)
    noise = jax.tree.map(lambda x: jnp.asarray(np.random.default_rng(seed).normal(size=x.shape), x.dtype), opt)
    return {"params": params, "opt": noise, "key": jax.random.PRNGKey(seed)}


@pytest.mark.parametrize("data", [{"next_index": 7, "worker": [1, 2]}, b"\x00\xffgrain", None])
def test_a_training_checkpoint_is_read_back_exactly(params, tmp_path, data):
    state = training_state(params)
    with store.TrainCheckpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None
        checkpoints.save(12, state, data)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    with store.TrainCheckpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(abstract)
    assert restored.step == 12 and restored.data == data
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored.state, state)
    jax.tree.map(lambda x, y: x.sharding == y.sharding or pytest.fail(str(x.sharding)), restored.state, state)


def test_the_newest_checkpoints_are_kept_and_an_unfinished_one_is_ignored(tmp_path):
    with store.TrainCheckpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, {"x": jnp.full(3, step)})
    newest = tmp_path / "checkpoints" / "3"
    (newest.parent / "4.orbax-checkpoint-tmp-0").mkdir()  # what a run killed while saving leaves
    with store.TrainCheckpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 3
        assert checkpoints.restore({"x": jnp.zeros(3, jnp.int32)}, step=2).state["x"].tolist() == [2, 2, 2]
        with pytest.raises(ValueError, match="no checkpoint of step 1"):
            checkpoints.restore({"x": jnp.zeros(3, jnp.int32)}, step=1)


def test_errors_of_a_training_checkpoint_are_one_sentence(tmp_path):
    with store.TrainCheckpoints(tmp_path, config={"model": {"width": 3}}) as checkpoints:
        with pytest.raises(ValueError, match="holds no checkpoint"):
            checkpoints.restore({})
        checkpoints.save(5, {"a": {"w": jnp.ones((2, 3))}})
        with pytest.raises(ValueError, match=r"a.w is \[2, 3\] in the checkpoint and \[4, 3\] in the model"):
            checkpoints.restore({"a": {"w": jnp.ones((4, 3))}})
        with pytest.raises(ValueError, match=r"b is absent in the checkpoint"):
            checkpoints.restore({"a": {"w": jnp.ones((2, 3))}, "b": jnp.ones(1)})
    with (
        store.TrainCheckpoints(tmp_path, config={"model": {"width": 4}}) as checkpoints,
        pytest.raises(ValueError, match=r"another config: config.model.width was 3 and is now 4"),
    ):
        checkpoints.restore({"a": {"w": jnp.ones((2, 3))}})
    for file in (tmp_path / "checkpoints" / "5").rglob("*"):
        if file.is_file():
            file.write_bytes(b"junk")
    with store.TrainCheckpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match=r"5 cannot be read"):
        checkpoints.restore({"a": {"w": jnp.ones((2, 3))}})


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """What is written is the state as it was, though later steps have taken over its memory; leaving waits for it."""
    writing = threading.Event()
    finalize = atomicity.AtomicRenameTemporaryPath.finalize

    async def slow(self, *arguments, **named):
        writing.wait(60)
        return await finalize(self, *arguments, **named)

    monkeypatch.setattr(atomicity.AtomicRenameTemporaryPath, "finalize", slow)
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros(1 << 20)
    with store.TrainCheckpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": x})
        for _ in range(3):
            x = step(x)
        x.block_until_ready()
        assert not (tmp_path / "checkpoints" / "1").exists()
        writing.set()
    with store.TrainCheckpoints(tmp_path) as checkpoints:
        assert not checkpoints.restore({"x": x}, step=1).state["x"].any() and x[0] == 3


def test_a_copy_of_a_checkpoint_is_one(tmp_path):
    """Public case P25: a copy is whole without whatever a file system marks it by, and nothing of it is deleted."""
    with store.TrainCheckpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(3, {"x": jnp.arange(3)}, {"at": 7})
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    with store.TrainCheckpoints(tmp_path / "copy") as checkpoints:
        restored = checkpoints.restore({"x": jnp.zeros(3, jnp.int32)})
    assert (restored.step, restored.state["x"].tolist(), restored.data) == (3, [0, 1, 2], {"at": 7})
    assert (tmp_path / "copy" / "checkpoints" / "3").is_dir()


@pytest.mark.parametrize("then", ["save", "finish", "close"])
def test_a_save_that_fails_is_not_silent_and_costs_nothing_else(tmp_path, monkeypatch, then):
    """Public case P25: a disk that is full while a checkpoint is written behind the run's back."""

    async def full(self, *arguments, **named):
        raise OSError(errno.ENOSPC, "No space left on device")

    state = {"x": jnp.arange(3)}
    (tmp_path / "notes.txt").write_text("mine")
    with store.TrainCheckpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    checkpoints = store.TrainCheckpoints(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(atomicity.AtomicRenameTemporaryPath, "finalize", full)
        with pytest.raises(OSError, match="No space left on device"):
            checkpoints.save(2, state)
            {"save": lambda: checkpoints.save(3, state), "finish": checkpoints.finish, "close": checkpoints.close}[
                then
            ]()
    with store.TrainCheckpoints(tmp_path) as again:
        assert again.latest() == 1
        assert again.restore(state).state["x"].tolist() == [0, 1, 2]
    assert (tmp_path / "notes.txt").read_text() == "mine"

"""Weights as int8 on disk: what they cost, what stays as it is, and that they read like any others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from hypothesis import given
from hypothesis import strategies as st

from launch import convert as command
from pallas_kernels.int8 import Int8Weight
from tests.model import tiny
from tml_jax import sharding
from tml_jax.checkpoint import convert, store
from tml_jax.checkpoint.quantize import quantize
from tml_jax.checkpoint.tensors import TensorFiles, TensorSpec, write_tensors
from tml_jax.checkpoint.weights import flatten
from tml_jax.model.interaction import InteractionModel
from tml_jax.model.quantized import scale_shape, shared_axes

CONFIG = tiny.config(  # a dense layer, then (local, global) twice, stacked
    layer_types=("hybrid_sliding", *(("hybrid_sliding", "hybrid") * 2)), mlp_layer_types=("dense", *(("sparse",) * 4))
)
MODEL = InteractionModel(CONFIG)
EXPERTS, UNEMBED, ROUTER = "transformer.unit_0.mlp.gate_up", "transformer.unembed", "transformer.unit_0.mlp.router"


@pytest.fixture(scope="module")
def params():
    return tiny.random_params(MODEL)


@pytest.fixture(scope="module")
def saved(params, tmp_path_factory):
    """(as it is, as int8)"""
    root = tmp_path_factory.mktemp("quantize")
    (root / "tokenizer.json").write_text(tiny.tokenizer_json())
    store.save_model(root / "whole", CONFIG, params, root / "tokenizer.json")
    store.save_model(root / "int8", CONFIG, params, root / "tokenizer.json", dtype="int8")
    return root / "whole", root / "int8"


def damaged(source, target, change):
    """A copy of a saved model whose tensors were changed."""
    found = {name: np.array(x) for name, x in TensorFiles(source).items()}
    change(found)
    specs = [TensorSpec(name, x.shape, x.dtype) for name, x in found.items()]
    write_tensors(target, specs, lambda name: [found[name]])
    (target / "config.json").write_text((source / "config.json").read_text())
    return target


def test_every_value_is_within_half_a_step_of_its_own_output(params, saved):
    _, loaded = store.load_params(saved[1])
    axes = shared_axes(MODEL)
    for path, read in flatten(loaded).items():
        weight = np.asarray(flatten(params)[path])
        if path in axes:
            step = np.max(np.abs(weight), axis=axes[path], keepdims=True) / 127
            assert np.all(np.abs(read - weight) <= 0.5001 * step), path
            assert np.any(read != weight), path
        else:
            np.testing.assert_array_equal(read, weight, err_msg=path)


def test_layers_experts_and_outputs_have_scales_of_their_own():
    axes, shapes = shared_axes(MODEL), flatten(MODEL.abstract)
    assert scale_shape(shapes[EXPERTS].shape, axes[EXPERTS]) == (2, 4, 2, 1, 24)
    assert scale_shape(shapes["transformer.unit_0.attn.o"].shape, axes["transformer.unit_0.attn.o"]) == (2, 1, 1, 32)
    assert scale_shape(shapes[UNEMBED].shape, axes[UNEMBED]) == (64, 1)
    large = [path for path, x in shapes.items() if len(x.shape) > 2 and path not in axes]
    assert all(path.endswith(("router", "profiles", "conv.w")) for path in large), large


def test_int8_is_a_quarter_of_the_size_and_what_is_small_keeps_its_dtype(saved):
    whole, int8 = (TensorFiles(directory) for directory in saved)
    assert int8.spec(EXPERTS).dtype == np.int8 and int8.spec(EXPERTS + ".scale").dtype == np.float32
    assert sum(int8.spec(n).nbytes for n in shared_axes(MODEL)) * 4 == sum(
        whole.spec(n).nbytes for n in shared_axes(MODEL)
    )
    for name in (ROUTER, "transformer.unit_0.attn_conv.w", "transformer.unit_0.mlp.scale", "text.norm.w"):
        assert int8.spec(name).dtype == whole.spec(name).dtype == np.float32


@given(st.data())
def test_a_block_is_the_block_of_the_whole(data):
    rng = np.random.default_rng(0)
    weight = Int8Weight(*quantize(rng.normal(size=(2, 3, 4, 5)), (2,)))
    count = data.draw(st.integers(0, 4))
    index = tuple(slice(*sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))) for n in (2, 3, 4, 5))
    np.testing.assert_array_equal(weight[index[:count]], np.asarray(weight)[index[:count]])
    np.testing.assert_array_equal(weight[1], np.asarray(weight)[1])


def test_zeros_stay_zeros_and_what_is_not_finite_never_reads_as_a_number():
    x = np.array([[0, 0], [1, -2], [np.nan, 1], [np.inf, 1]], np.float32)
    with np.errstate(invalid="ignore"):
        read = np.asarray(Int8Weight(*quantize(x, (1,))))
    assert read[0].tolist() == [0, 0] and read[1, 1] == -2
    assert not np.isfinite(read[2:]).any()


def test_it_loads_in_any_dtype_and_on_a_mesh(saved):
    _, wide = store.load_params(saved[1])
    _, half = store.load_params(saved[1], dtype=jnp.bfloat16, mesh=sharding.make_mesh())
    assert half["text"]["table"].dtype == jnp.bfloat16
    cast = jax.tree.map(lambda x, like: x.astype(like.dtype), wide, half)
    jax.tree.map(np.testing.assert_array_equal, half, cast)


def test_convert_writes_and_reads_int8(saved, tmp_path):
    whole, int8 = saved
    convert.to_saved_model(whole, tmp_path / "int8", dtype="int8", max_shard_bytes=20_000)
    assert len(list((tmp_path / "int8").glob("*.safetensors"))) > 1
    _, wanted = store.load_params(int8)
    _, found, _ = store.load_model(tmp_path / "int8")
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    convert.to_published(int8, tmp_path / "published")
    convert.to_saved_model(tmp_path / "published", tmp_path / "back")
    _, found, _ = store.load_model(tmp_path / "back")
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_convert_command(saved, tmp_path):
    flags.FLAGS.mark_as_parsed()
    whole, int8 = saved
    with flagsaver.flagsaver(**{"from": str(int8), "to": str(tmp_path / "half"), "weights": "bfloat16"}):
        command.main(["convert"])
    assert TensorFiles(tmp_path / "half").spec(EXPERTS).dtype == jnp.bfloat16
    convert.to_published(whole, tmp_path / "published")
    with flagsaver.flagsaver(**{"from": str(tmp_path / "published"), "to": str(tmp_path / "ours"), "weights": "int8"}):
        command.main(["convert"])
    assert sorted(TensorFiles(tmp_path / "ours")) == sorted(TensorFiles(int8))
    for name, x in TensorFiles(int8).items():
        np.testing.assert_array_equal(TensorFiles(tmp_path / "ours")[name], x, err_msg=name)
    flag_values = {"from": str(whole), "to": str(tmp_path / "no"), "weights": "int8", "layout": "published"}
    with flagsaver.flagsaver(**flag_values), pytest.raises(SystemExit, match=r"int8 in saved models alone"):
        command.main(["convert"])
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(UNEMBED + ".scale"), r"unembed.scale is absent in the file and \[64, 1\] in the model"),
        (lambda t: t.pop(UNEMBED), r"unembed is absent in the file"),
        (
            lambda t: t.update({UNEMBED + ".scale": np.ones((1, 32), np.float32)}),
            r"unembed.scale is \[1, 32\] in the file and \[64, 1\] in the model",
        ),
        (
            lambda t: t.update({UNEMBED + ".scale": np.ones((64, 1), np.float16)}),
            r"unembed.scale is float16, not float32",
        ),
        (
            lambda t: t.update({UNEMBED: t[UNEMBED].astype(np.float32)}),
            r"unembed.scale is \[64, 1\] in the file and absent",
        ),
        (lambda t: t.update({ROUTER: t[ROUTER].astype(np.int8)}), r"router.scale is absent in the file"),
    ],
)
def test_damage_is_named_in_one_sentence(saved, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        store.load_params(damaged(saved[1], tmp_path / "model", change))

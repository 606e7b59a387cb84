"""Import and export against `transformers` itself: what it writes we read, what we write it reads, bit for bit."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from absl import flags
from absl.testing import flagsaver
from safetensors.numpy import load_file, save_file
from transformers import InklingConfig, InklingForConditionalGeneration

from launch import convert as command
from tests.model import tiny
from tml_jax import sharding
from tml_jax.checkpoint import convert, huggingface, store
from tml_jax.checkpoint.tensors import TensorFiles
from tml_jax.model import config as model_config
from tml_jax.model.interaction import InteractionModel

TEXT = dict(
    vocab_size=96,
    unpadded_vocab_size=80,
    hidden_size=32,
    num_hidden_layers=7,
    layer_types=["hybrid_sliding"] + ["hybrid_sliding", "hybrid_sliding", "hybrid"] * 2,
    mlp_layer_types=["dense"] + ["sparse"] * 6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    swa_num_attention_heads=6,
    swa_num_key_value_heads=3,
    swa_head_dim=6,
    sliding_window_size=5,
    d_rel=4,
    rel_extent=12,
    log_scaling_n_floor=3,
    intermediate_size=48,
    moe_intermediate_size=20,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_shared_experts=2,
    logits_mup_width_multiplier=2.0,
)


def reference(seed=0, dtype=torch.float32, **text):
    torch.manual_seed(seed)
    config = InklingConfig(
        text_config=TEXT | text,
        audio_config=dict(mel_vocab_size=16),
        vision_config=dict(num_hidden_layers=4),
        image_token_id=90,
        audio_token_id=91,
    )
    model = InklingForConditionalGeneration(config).eval()
    with torch.no_grad():  # constants (norms, scales, biases) tell no two tensors apart
        for tensor in [*model.parameters(), *(b for n, b in model.named_buffers() if n.endswith("correction_bias"))]:
            tensor.add_(0.1 * torch.randn_like(tensor))
    return model.to(dtype)


def save(model, directory, **kwargs):
    """Saves as `transformers` does, and asks for small heads of ours."""
    model.save_pretrained(directory, **kwargs)
    path = directory / "config.json"
    heads = {"flow": {"width": 16, "depth": 1}, "clock": {"features": 2}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"interaction": heads}))


def tensors(directory):
    result = {}
    for file in sorted(directory.glob("*.safetensors")):
        result |= load_file(file)
    return result


def assert_same_bits(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        assert found[name].tobytes() == value.tobytes(), name


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    directory = tmp_path_factory.mktemp("published")
    save(reference(), directory, max_shard_size="200KB")
    assert (directory / "model.safetensors.index.json").is_file()
    return directory


@pytest.fixture(scope="module")
def imported(published):
    checkpoint = huggingface.HuggingFaceCheckpoint(published)
    model = InteractionModel(checkpoint.config)
    return checkpoint, model, huggingface.import_params(checkpoint, model)


@pytest.fixture(scope="module")
def exported(imported, tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported")
    checkpoint, _, params = imported
    huggingface.export_params(directory, checkpoint.config, params, max_shard_bytes=200_000)
    return directory


def test_import_then_export_gives_back_every_tensor(published, imported, exported):
    checkpoint, _, params = imported
    assert checkpoint.report.fresh and "no interaction heads" in str(checkpoint.report)
    found = tensors(exported)
    backbone = {name: x for name, x in found.items() if not name.startswith("interaction.")}
    assert_same_bits(backbone, tensors(published))
    assert len(backbone) < len(found)
    assert len(list(exported.glob("*.safetensors"))) > 1
    again = huggingface.HuggingFaceCheckpoint(exported)
    assert again.config == checkpoint.config and not again.report.fresh
    restored = huggingface.import_params(again, InteractionModel(again.config))
    jax.tree.map(np.testing.assert_array_equal, params, restored)


def test_import_fills_every_weight_of_the_reference(published, imported):
    _, model, params = imported
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), model.abstract
    )
    text = params["transformer"]
    ref = reference().state_dict()
    layer = "model.language_model.layers.4."  # the second repeat of the first layer of the unit
    gate_up = ref[layer + "mlp.experts.gate_up_proj"].numpy()  # [experts, gate then up, d]
    np.testing.assert_array_equal(text["unit_0"]["mlp"]["gate_up"][1, :, 0], gate_up[:, :20].swapaxes(1, 2))
    np.testing.assert_array_equal(text["unit_0"]["mlp"]["gate_up"][1, :, 1], gate_up[:, 20:].swapaxes(1, 2))
    query = ref[layer + "self_attn.q_proj.weight"].numpy()
    np.testing.assert_array_equal(text["unit_0"]["attn"]["q"]["w"][1].reshape(32, 36), query.T)


def test_transformers_loads_our_export_and_gives_equal_logits(exported):
    ours, info = InklingForConditionalGeneration.from_pretrained(
        exported, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["mismatched_keys"]
    theirs = reference()
    weights = {name: x.numpy() for name, x in ours.state_dict().items()}
    assert_same_bits(weights, {name: x.numpy() for name, x in theirs.state_dict().items()})
    rng = np.random.default_rng(0)
    ids = torch.tensor(rng.integers(0, 80, (1, 24)))
    ids[0, 3:6], ids[0, 8] = 91, 90
    batch = dict(
        input_ids=ids,
        audio_input_ids=torch.tensor(rng.integers(0, 16, (1, 3, 80))),
        pixel_values=torch.tensor(rng.normal(size=(1, 2, 40, 40, 3)), dtype=torch.float32),
    )
    ours.config.image_token_id, ours.config.audio_token_id = 90, 91
    with torch.no_grad():
        # The bits of torch's matmuls depend on where a weight lies in memory.
        np.testing.assert_allclose(ours.eval()(**batch).logits, theirs(**batch).logits, atol=2e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convert_there_and_back_keeps_every_bit(dtype, tmp_path):
    save(reference(seed=1, dtype=dtype), tmp_path / "hf")
    report = convert.to_saved_model(tmp_path / "hf", tmp_path / "ours", max_shard_bytes=100_000).report
    assert report.tensors == len(tensors(tmp_path / "hf"))
    convert.to_published(tmp_path / "ours", tmp_path / "back")
    back = tensors(tmp_path / "back")
    assert_same_bits({n: x for n, x in back.items() if not n.startswith("interaction.")}, tensors(tmp_path / "hf"))
    convert.to_saved_model(tmp_path / "back", tmp_path / "again", max_shard_bytes=100_000)
    assert_same_bits(tensors(tmp_path / "again"), tensors(tmp_path / "ours"))
    # A float32 model holds either exactly.
    _, params = store.load_params(tmp_path / "ours")
    stored = TensorFiles(tmp_path / "hf")["model.llm.layers.6.attn_norm.weight"]
    assert params["transformer"]["unit_2"]["attn_norm"]["w"].dtype == jnp.float32
    assert stored.dtype == (jnp.bfloat16 if dtype == torch.bfloat16 else jnp.float32)
    np.testing.assert_array_equal(params["transformer"]["unit_2"]["attn_norm"]["w"][1], stored.astype(np.float32))


def test_an_exported_config_has_every_field_that_it_was_read_with(tmp_path):
    save(reference(), tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    original = json.loads(path.read_text())
    # As published: other names and derived lists, and what neither we nor `transformers` know.
    text = original["text_config"]
    text["sconv_kernel_size"] = text.pop("conv_kernel_size")
    text["local_layer_ids"] = [i for i, kind in enumerate(text.pop("layer_types")) if kind == "hybrid_sliding"]
    text["dense_mlp_idx"] = text.pop("mlp_layer_types").count("dense")
    text["dense_intermediate_size"], text["intermediate_size"] = 48, text.pop("moe_intermediate_size")
    text |= {"model_max_length": 4096, "bos_token_id": 7, "num_mtp_layers": 3, "of_tomorrow": [1, {"a": None}]}
    original |= {"eos_token_id": [5, 6], "mtp_config": {"num_nextn_predict_layers": 3}, "of_tomorrow": {"b": 1.5}}
    path.write_text(json.dumps(original))
    convert.to_saved_model(tmp_path / "hf", tmp_path / "ours")
    convert.to_saved_model(tmp_path / "ours", tmp_path / "half", dtype="bfloat16")
    for source in (tmp_path / "ours", tmp_path / "half"):
        back = source.with_name(f"{source.name}_back")
        convert.to_published(source, back)
        found = json.loads((back / "config.json").read_text())
        ours = found.pop("interaction")
        assert found == {name: value for name, value in original.items() if name != "interaction"}
        assert ours["flow"]["width"] == 16 and ours["clock"]["features"] == 2
        assert huggingface.read_config(back) == huggingface.read_config(tmp_path / "hf")
    # The published config of another model is not passed off as this one's.
    text["rms_norm_eps"] = 1e-3
    (tmp_path / "half" / "published_config.json").write_text(json.dumps(original))
    with pytest.raises(ValueError, match=r"is of a model of other sizes: text.rms_norm_eps was 0.001 and is now 1e-06"):
        convert.to_published(tmp_path / "half", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_multi_token_prediction_is_skipped_by_name(published, tmp_path):
    found = tensors(published)
    found["model.mtp.layers.0.attn_norm.weight"] = np.ones(32, np.float32)
    write(tmp_path, found, published)
    report = huggingface.HuggingFaceCheckpoint(tmp_path).report
    assert report.skipped == ("model.mtp.layers.0.attn_norm.weight",)
    assert "model.mtp.layers.0.attn_norm.weight" in str(report)


def write(directory, found, like):
    save_file(found, directory / "model.safetensors")
    (directory / "config.json").write_text((like / "config.json").read_text())


EXPERTS = "model.llm.layers.3.mlp.experts."


def quantize(found):
    """As NVFP4 is published: two values in a byte, a scale for 16 of them, and one for an expert."""
    e, f, d = found[EXPERTS + "w13_weight"].shape
    found[EXPERTS + "w13_weight"] = np.zeros((e, f, d // 2), np.uint8)
    found[EXPERTS + "w13_weight_scale"] = np.zeros((e, f, d // 16), ml_dtypes.float8_e4m3fn)
    found[EXPERTS + "w13_weight_scale_2"] = np.zeros(e, np.float32)


def split(found):
    for i, expert in enumerate(found.pop(EXPERTS + "w13_weight")):
        found[f"{EXPERTS}{i}.w1.weight"], found[f"{EXPERTS}{i}.w3.weight"] = expert[::2].copy(), expert[1::2].copy()


def split_projections(found):
    stacked = found.pop(EXPERTS + "w13_weight")
    found[EXPERTS + "gate_proj"], found[EXPERTS + "up_proj"] = stacked[:, ::2].copy(), stacked[:, 1::2].copy()


def pad(name, rows):
    def change(found):
        found[name] = np.zeros((rows, 32), np.float32)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.llm.layers.3.attn.wq_du.weight"), r"lacks tensor .*layers.3.attn.wq_du.* \[32, 32\]"),
        (
            lambda t: t.update({"model.llm.norm.weight": np.zeros(31, np.float32)}),
            r"'model.llm.norm.weight' .* shape \[31\], but by its config.json it is \[32\]",
        ),
        (
            lambda t: t.update({"model.llm.layers.9.x": np.zeros(1)}),
            r"holds tensor 'model.llm.layers.9.x', .* place\.$",
        ),
        (lambda t: t.update({"interaction.clock.w": np.zeros(1)}), r"'interaction.clock.w'"),
        (quantize, r"3.mlp.experts.w13_weight_scale' and 1 more, .* are quantized, as NVFP4 or FP8 are"),
        (split, r"3.mlp.experts.0.w1.weight' and 7 more, .* experts lie one by one"),
        (split_projections, r"3.mlp.experts.gate_proj' and 1 more, .* not interleaved"),
        (pad("model.llm.embed.weight", 128), r"embed.weight' .* \[128, 32\], but by its config.json it is \[96, 32\]"),
        (
            pad("model.llm.unembed.weight", 80),
            r"unembed.weight' .* \[80, 32\], but by its config.json it is \[96, 32\]",
        ),
    ],
)
def test_a_checkpoint_of_another_layout_is_refused_before_anything_is_written(published, tmp_path, change, message):
    found = tensors(published)
    change(found)
    (tmp_path / "from").mkdir()
    write(tmp_path / "from", found, published)
    refused(tmp_path, message)


def refused(tmp_path, message):
    with pytest.raises(ValueError, match=message) as error:
        convert.to_saved_model(tmp_path / "from", tmp_path / "to")
    assert "\n" not in str(error.value) and not (tmp_path / "to").exists()


@pytest.mark.parametrize(("rows", "message"), [(79, r"it uses 79 rows .* config says 80"), (97, r"config says 80")])
def test_a_tokenizer_of_another_model_is_refused(published, tmp_path, rows, message):
    shutil.copytree(published, tmp_path / "from")
    (tmp_path / "from" / "tokenizer.json").write_text(tiny.tokenizer_json(rows))
    refused(tmp_path, message)
    (tmp_path / "from" / "tokenizer.json").write_text(tiny.tokenizer_json(80))
    convert.to_saved_model(tmp_path / "from", tmp_path / "to")
    assert store.load_model(tmp_path / "to")[2].vocab_size == 80


@pytest.mark.parametrize("model_type", ["inkling2", "llama", None])
def test_another_model_type_is_refused(published, tmp_path, model_type):
    shutil.copytree(published, tmp_path / "from")
    path = tmp_path / "from" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": model_type}))
    refused(tmp_path, rf"not an Inkling config: its model_type is {model_type!r}, not 'inkling_mm_model'")


def test_a_missing_and_a_cut_shard_are_named(published, tmp_path):
    shutil.copytree(published, tmp_path / "from")
    shard = sorted((tmp_path / "from").glob("*.safetensors"))[1]
    data = shard.read_bytes()
    shard.write_bytes(data[:-7])
    refused(tmp_path, rf"{shard.name} is cut off: it has {len(data) - 7} of the {len(data)} bytes")
    for junk in (data[:100], data[:5], b""):  # within its header
        shard.write_bytes(junk)
        refused(tmp_path, rf"{shard.name} is not a readable safetensors file")
    shard.unlink()
    refused(tmp_path, rf"model.safetensors.index.json names {shard.name}, which is not there")


def test_damaged_files_are_refused_in_a_sentence(published, tmp_path):
    with pytest.raises(ValueError, match=r"config.json cannot be read"):
        huggingface.HuggingFaceCheckpoint(tmp_path)
    (tmp_path / "config.json").write_text((published / "config.json").read_text())
    with pytest.raises(ValueError, match=r"holds no model.safetensors"):
        huggingface.HuggingFaceCheckpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"not an Inkling config"):
        huggingface.HuggingFaceCheckpoint(tmp_path)


def test_import_onto_a_mesh_gives_the_same_values(imported, exported):
    _, model, params = imported
    checkpoint = huggingface.HuggingFaceCheckpoint(exported)
    placement = sharding.shardings(model.axes, model.abstract, sharding.make_mesh())
    placed = huggingface.import_params(checkpoint, model, placement)
    jax.tree.map(np.testing.assert_array_equal, params, placed)
    jax.tree.map(lambda x, s: x.sharding == s or pytest.fail(f"{x.sharding} {s}"), placed, placement)


def test_blocks_of_a_stacked_weight_are_read_alone(imported):
    checkpoint, _, params = imported
    index = (slice(1, 2), slice(2, 4), slice(None), slice(1, 2), slice(5, 9))
    block = checkpoint.weights["transformer.unit_1.mlp.gate_up"][index]
    np.testing.assert_array_equal(block, params["transformer"]["unit_1"]["mlp"]["gate_up"][index])


@pytest.mark.parametrize(
    "text",
    [
        {},
        dict(layer_types=None, mlp_layer_types=None, num_hidden_layers=12),
        dict(layer_types=None, mlp_layer_types=None, local_layer_ids=[0, 2], dense_mlp_idx=2, num_hidden_layers=4),
        dict(dense_intermediate_size=64, intermediate_size=24),
        dict(log_scaling_n_floor=None, unpadded_vocab_size=None),
    ],
)
def test_configs_round_trip_through_transformers(text):
    hf = InklingConfig(text_config=TEXT | text, audio_config=dict(mel_vocab_size=16))
    ours = model_config.InteractionConfig.from_hf(hf.to_dict())
    for field in dataclasses.fields(ours.text):
        wanted = getattr(hf.text_config, field.name)
        assert getattr(ours.text, field.name) == (tuple(wanted) if isinstance(wanted, list) else wanted), field.name
    assert model_config.InteractionConfig.from_hf(huggingface.config_to_hf(ours)) == ours
    back = InklingConfig(**json.loads(json.dumps(huggingface.config_to_hf(ours))))
    for name in TEXT:
        assert getattr(back.text_config, name) == getattr(hf.text_config, name), name


def test_raw_checkpoint_configs_read_as_transformers_reads_them():
    raw = TEXT | dict(layer_types=None, mlp_layer_types=None, local_layer_ids=[0, 1, 2], dense_mlp_idx=2)
    raw |= dict(dense_intermediate_size=64, intermediate_size=24, sconv_kernel_size=3)
    raw.pop("moe_intermediate_size")
    hf = InklingConfig(text_config=dict(raw))
    ours = model_config.text_config_from_hf({"model_type": "inkling_mm_model", "text_config": raw})
    assert (ours.moe_intermediate_size, ours.intermediate_size, ours.conv_kernel_size) == (24, 64, 3)
    assert list(ours.layer_types) == hf.text_config.layer_types
    assert list(ours.mlp_layer_types) == hf.text_config.mlp_layer_types


def test_convert_command(exported, tmp_path, capsys):
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**{"from": str(exported), "to": str(tmp_path / "ours")}):
        command.main(["convert"])
        assert "read 171 tensors" in capsys.readouterr().out
        with pytest.raises(SystemExit, match=r"ours is not empty"):
            command.main(["convert"])
    config, params = store.load_params(tmp_path / "ours")
    assert config.text.vocab_size == 96 and params["text"]["table"].shape == (96, 32)
    with flagsaver.flagsaver(**{"from": str(tmp_path / "ours"), "to": str(tmp_path / "back")}):
        command.main(["convert"])
    assert huggingface.is_published(tmp_path / "back") and not huggingface.is_published(tmp_path / "ours")

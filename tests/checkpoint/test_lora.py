"""A saved LoRA against `peft` itself, on the reference in `transformers`: the same logits, in float32."""

import copy
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from transformers import InklingForConditionalGeneration

from tests.model import tiny
from tests.model.test_parity import AUDIO, IMAGE, LENGTH, reference
from tml_jax.checkpoint import convert, store
from tml_jax.checkpoint.huggingface import flatten
from tml_jax.model.interaction import InteractionModel
from tml_jax.model.lora import TARGETS, Lora, LoraConfig

ROWS = 112  # of the tokenizer; the control tokens' follow
# One dense layer, and a unit of a local and a global one that is stacked.
TEXT = dict(
    num_hidden_layers=5,
    local_layer_ids=[0, 1, 3],
    mlp_layer_types=["dense"] + ["sparse"] * 4,
    unpadded_vocab_size=ROWS,
)
HEADS = {"flow": {"width": 8, "depth": 1}, "clock": {"features": 2}, "state": {"sinks": 0, "global_window": 10_000}}
EXPERTS = tuple(name for name in TARGETS if "experts" in name)
OTHERS = tuple(name for name in TARGETS if name not in EXPERTS)


class Reference:
    """The model of `transformers`, its import as a saved model, and the logits of both."""

    def __init__(self, directory, **text):
        self.directory, self.theirs = directory, reference(0, **TEXT | text)
        published = directory / "published"
        self.theirs.save_pretrained(published)
        config = json.loads((published / "config.json").read_text()) | {"interaction": HEADS}
        (published / "config.json").write_text(json.dumps(config))
        (published / "tokenizer.json").write_text(tiny.tokenizer_json(ROWS))
        convert.to_saved_model(published, directory / "base")
        self.model = InteractionModel(store.read_config(directory / "base"))
        self._logits = jax.jit(self._ours, compiler_options={"xla_backend_optimization_level": 0})

    def _ours(self, params, ids, levels, pixels):
        net = self.model.net(params)
        sound = net.audio(jnp.pad(levels, ((0, 0), (0, 2), (0, 0))).reshape(2, 3, 4, 80)).reshape(2, 12, -1)[:, :10]
        x = net.text(ids).at[:, 10:20].set(sound).at[:, 30:36].set(net.vision(pixels).reshape(2, 6, -1))
        return net.transformer.logits(net.transformer.sequence(x)[0])

    def ours(self, params, inputs):
        return np.asarray(self._logits(params, *inputs))[..., :ROWS]

    def their(self, theirs, inputs):
        ids, levels, pixels = map(torch.tensor, inputs)
        with torch.inference_mode():
            return theirs(input_ids=ids, pixel_values=pixels, audio_input_ids=levels).logits.numpy()

    def save_lora(self, targets, directory):
        """Additions that matter to the targets, and other heads and rows of control tokens."""
        lora, rng = Lora(self.model, LoraConfig(rank=3, alpha=4.0, targets=targets)), np.random.default_rng(0)
        trained = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), lora.abstract)
        base = self.directory / "base"
        store.save_lora(directory, lora, trained, base, base / "tokenizer.json")
        return trained


def inputs(rows):
    """Text with ids below `rows`, sound and pictures in one sequence."""
    rng = np.random.default_rng(1)
    ids = rng.integers(1, rows, (2, LENGTH))
    ids[:, 10:20], ids[:, 30:36] = AUDIO, IMAGE
    return ids, rng.integers(0, 16, (2, 10, 80)), rng.normal(size=(12, 2, 40, 40, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def two_shared(tmp_path_factory):
    return Reference(tmp_path_factory.mktemp("reference"))


def equals_peft_and_the_merged_export(reference, targets, directory):
    reference.save_lora(targets, directory / "lora")
    _, params = store.load_params(directory / "lora")
    text = inputs(ROWS)
    ours = reference.ours(params, text)
    assert np.abs(ours - reference.their(reference.theirs, text)).max() > 0.1  # what was added matters

    convert.to_peft(directory / "lora", directory / "peft")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # such as that of a tensor without a place, or of one missing
        adapted = peft.PeftModel.from_pretrained(copy.deepcopy(reference.theirs), directory / "peft")
    np.testing.assert_allclose(reference.their(adapted, text), ours, rtol=0, atol=1e-5)

    convert.to_published(directory / "lora", directory / "merged")
    merged = InklingForConditionalGeneration.from_pretrained(directory / "merged", dtype=torch.float32).eval()
    control = inputs(ROWS + 8)  # the control tokens' rows as well
    found, wanted = reference.their(merged, control), reference.ours(params, control)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("targets", [OTHERS, ("experts.down_proj",), EXPERTS], ids=["others", "one", "experts"])
def test_an_adapter_in_peft_and_the_merged_export_give_our_logits(two_shared, targets, tmp_path):
    equals_peft_and_the_merged_export(two_shared, targets, tmp_path)


def test_training_sees_the_model_that_is_saved(two_shared, tmp_path):
    """There the additions are no part of the weights."""
    trained = two_shared.save_lora(tuple(TARGETS), tmp_path / "lora")
    _, base = store.load_params(two_shared.directory / "base")
    _, merged = store.load_params(tmp_path / "lora")
    lora = Lora(two_shared.model, LoraConfig(rank=3, alpha=4.0))
    found = two_shared.ours(lora.merge(base, trained), inputs(ROWS + 8))
    np.testing.assert_allclose(found, two_shared.ours(merged, inputs(ROWS + 8)), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_all_at_once_with_one_shared_expert(tmp_path):
    """Which `peft` takes for a linear layer."""
    equals_peft_and_the_merged_export(Reference(tmp_path, n_shared_experts=1), tuple(TARGETS), tmp_path)


def test_a_saved_lora_reads_in_blocks_and_converts_to_a_saved_model(two_shared, tmp_path):
    trained = two_shared.save_lora(tuple(TARGETS), tmp_path / "lora")
    config, weights = store.open_model(tmp_path / "lora")
    _, base = store.open_model(two_shared.directory / "base")
    trained = flatten(trained)
    for path, x in weights.items():
        whole = np.asarray(x)
        if path + ".lora_a" in trained:
            assert np.abs(whole - base[path]).max() > 0.1, path
        elif path + ".control_rows" in trained:
            np.testing.assert_array_equal(whole[ROWS : ROWS + 9], trained[path + ".control_rows"])
            np.testing.assert_array_equal(whole[:ROWS], base[path][:ROWS])
            np.testing.assert_array_equal(whole[ROWS + 9 :], base[path][ROWS + 9 :])
        else:
            np.testing.assert_array_equal(whole, trained.get(path, base[path]))
        block = tuple(slice(size // 3, size) for size in x.shape)
        np.testing.assert_allclose(x[block], whole[block], rtol=0, atol=1e-6)
    convert.to_saved_model(tmp_path / "lora", tmp_path / "bf16", dtype="bfloat16")
    found, half = store.load_params(tmp_path / "bf16")
    assert found == config and not (tmp_path / "bf16" / "lora.json").exists()
    for path in ("transformer.unit_0.attn.o", "transformer.unit_1.mlp.gate_up", "text.table", "heard.w"):
        np.testing.assert_array_equal(flatten(half)[path], np.asarray(weights[path]).astype("bfloat16"), path)


def test_what_does_not_fit_is_named(two_shared, tmp_path):
    two_shared.save_lora(("q_proj",), tmp_path / "lora")
    with pytest.raises(ValueError, match=r"base holds no LoRA: it has no lora.json"):
        convert.to_peft(two_shared.directory / "base", tmp_path / "peft")
    description = json.loads((tmp_path / "lora" / "lora.json").read_text())
    for change, message in (
        ({"base": str(tmp_path)}, r"lora adds to the model in .*, which can't be read: .* holds no model"),
        ({"rank": 5}, r"transformer.layer_0.attn.q.w.lora_a is \[64, 3\] in the file and \[64, 5\] in the model"),
        ({"targets": ["qkv"]}, r"no LoRA target 'qkv'"),
        ({"size": 5}, r"lora.json does not describe a LoRA \(TypeError: .*size"),
    ):
        (tmp_path / "lora" / "lora.json").write_text(json.dumps(description | change))
        with pytest.raises(ValueError, match=message):
            store.open_model(tmp_path / "lora")
    assert not (tmp_path / "peft").exists()

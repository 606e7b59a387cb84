"""Our decoder against the reference implementation in `transformers`: the same weights, the same logits, in float32."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import InklingConfig, InklingForConditionalGeneration

from tml_jax.checkpoint import huggingface
from tml_jax.model.interaction import InteractionModel

AUDIO, IMAGE, LENGTH = 125, 126, 70
BASE = dict(
    vocab_size=128,
    hidden_size=64,
    num_hidden_layers=7,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    swa_num_attention_heads=4,
    swa_num_key_value_heads=1,
    swa_head_dim=16,
    sliding_window_size=16,
    rel_extent=24,
    intermediate_size=96,
    moe_intermediate_size=32,
    n_routed_experts=8,
    num_experts_per_tok=2,
    n_shared_experts=2,
    logits_mup_width_multiplier=2.0,
    log_scaling_n_floor=20,
    initializer_range=0.1,
    mlp_layer_types=["dense"] + ["sparse"] * 6,
    local_layer_ids=[0, 1, 2, 4, 5],
    pad_token_id=0,
)
CONFIGS = {
    "repeating unit, log scaling": {},
    "other heads in global layers": dict(
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=8,
        mlp_layer_types=["dense"] * 2 + ["sparse"] * 3,
        local_layer_ids=[0, 2, 3],
    ),
    "local only": dict(local_layer_ids=list(range(7)), rel_extent=200),
    "global only, beyond the bias": dict(
        num_hidden_layers=3, local_layer_ids=[], mlp_layer_types=["sparse", "dense", "sparse"], rel_extent=7
    ),
    "one shared expert, top-3": dict(n_shared_experts=1, num_experts_per_tok=3, sliding_window_size=9),
}


def reference(seed, **text):
    torch.manual_seed(seed)
    config = InklingConfig(
        text_config=BASE | text,
        audio_config=dict(mel_vocab_size=16),
        vision_config=dict(num_hidden_layers=4),
        image_token_id=IMAGE,
        audio_token_id=AUDIO,
    )
    model = InklingForConditionalGeneration(config).float().eval()
    with torch.no_grad():  # norms, scales and biases that do something
        for name, x in model.named_parameters():
            if "norm" in name or "global_scale" in name:
                x.copy_(1 + 0.2 * torch.randn_like(x))
        for name, x in model.named_buffers():
            if "correction" in name:
                x.copy_(0.1 * torch.randn_like(x))
    return model


def imported(model, directory):
    model.save_pretrained(directory)
    path = directory / "config.json"
    heads = {"flow": {"width": 8, "depth": 1}, "clock": {"features": 2}, "state": {"sinks": 0, "global_window": 10_000}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"interaction": heads}))
    checkpoint = huggingface.HuggingFaceCheckpoint(directory)
    ours = InteractionModel(checkpoint.config)
    return ours, huggingface.import_params(checkpoint, ours)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_the_reference(name, tmp_path):
    """Text, sound and pictures in one sequence, longer than the window and than the bias reaches."""
    seed = list(CONFIGS).index(name)
    theirs = reference(seed, **CONFIGS[name])
    ours, params = imported(theirs, tmp_path)
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, 120, (2, LENGTH))
    ids[:, 10:20], ids[:, 30:36] = AUDIO, IMAGE
    levels = rng.integers(0, 16, (2, 10, 80))
    pixels = rng.normal(size=(12, 2, 40, 40, 3)).astype(np.float32)
    with torch.inference_mode():
        wanted = theirs(
            input_ids=torch.tensor(ids), pixel_values=torch.tensor(pixels), audio_input_ids=torch.tensor(levels)
        ).logits.numpy()

    @jax.jit
    def logits(params):
        net = ours.net(params)
        # The spec's audio embedding takes whole micro-turns of four frames: pad ten frames to twelve.
        sound = net.audio(jnp.pad(levels, ((0, 0), (0, 2), (0, 0))).reshape(2, 3, 4, 80)).reshape(2, 12, -1)[:, :10]
        x = net.text(ids).at[:, 10:20].set(sound).at[:, 30:36].set(net.vision(pixels).reshape(2, 6, -1))
        hidden, _ = net.transformer.sequence(x)
        return net.transformer.logits(hidden)

    found = np.asarray(logits(params))[..., : wanted.shape[-1]]
    assert np.abs(wanted).max() > 0.5
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)

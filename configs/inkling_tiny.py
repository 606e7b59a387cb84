"""Inkling at a size that trains on two CPU cores: every kind of layer, one trunk token of sound each way."""

from tml_jax.data.config import DataConfig, Shares
from tml_jax.model.config import ClockConfig, FlowConfig, InteractionConfig, StateConfig, TextConfig, VisionConfig
from tml_jax.streams.micro_turn import StreamSpec
from tml_jax.train.config import ExperimentConfig, TrainConfig

CONFIG = ExperimentConfig(
    name="inkling_tiny",
    model=InteractionConfig(
        text=TextConfig(
            vocab_size=512,
            unpadded_vocab_size=480,
            hidden_size=128,
            # One dense local layer, then (local, local, global) twice, sparse.
            layer_types=("hybrid_sliding", *(("hybrid_sliding", "hybrid_sliding", "hybrid") * 2)),
            mlp_layer_types=("dense", *(("sparse",) * 6)),
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            swa_num_attention_heads=4,
            swa_num_key_value_heads=2,
            swa_head_dim=32,
            sliding_window_size=48,
            rel_extent=256,
            log_scaling_n_floor=None,
            intermediate_size=384,
            moe_intermediate_size=128,
            n_routed_experts=8,
            num_experts_per_tok=2,
            n_shared_experts=1,
            route_scale=3.0,
            logits_mup_width_multiplier=1.0,
        ),
        vision=VisionConfig(folds=((1, 5, 16), (1, 2, 32), (1, 4, 64), (2, 1, 0))),
        stream=StreamSpec(audio_tokens=1, max_patches=1, max_text=8, max_output=1, frame_height=40, frame_width=40),
        flow=FlowConfig(width=192, depth=2, euler_steps=4, draws=2),
        clock=ClockConfig(features=16),
        state=StateConfig(sinks=8, global_window=304),
    ),
    # Time and sight take the most exposure to learn.
    data=DataConfig(window_turns=160, window_tokens=328, shares=Shares(timer=4.0, barge_in=2.4, count=6.0, watch=0.8)),
    train=TrainConfig(
        batch_size=8,
        steps=3900,
        cooldown=0.2,
        ema=0.99,
        remat=False,
        eval_every=200,
        checkpoint_every=100,
        eval_conversations=16,
    ),
)

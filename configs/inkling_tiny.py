"""Inkling at a size that trains on two CPU cores: every kind of layer, one trunk token of sound each way."""

from tml_jax.data.config import Acoustics, Behaviour, DataConfig, Shares
from tml_jax.model.config import ClockConfig, FlowConfig, InteractionConfig, StateConfig, TextConfig, VisionConfig
from tml_jax.streams.micro_turn import StreamSpec
from tml_jax.train.config import ExperimentConfig, TrainConfig
from tml_jax.train.spec_augment import SpecAugment

CONFIG = ExperimentConfig(
    name="inkling_tiny",
    model=InteractionConfig(
        text=TextConfig(
            vocab_size=512,
            unpadded_vocab_size=480,
            hidden_size=256,
            # One dense local layer, then (local, local, global) three times, sparse.
            layer_types=("hybrid_sliding", *(("hybrid_sliding", "hybrid_sliding", "hybrid") * 3)),
            mlp_layer_types=("dense", *(("sparse",) * 9)),
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=32,
            swa_num_attention_heads=8,
            swa_num_key_value_heads=4,
            swa_head_dim=32,
            sliding_window_size=48,
            rel_extent=256,
            log_scaling_n_floor=None,
            intermediate_size=768,
            moe_intermediate_size=256,
            n_routed_experts=8,
            num_experts_per_tok=2,
            n_shared_experts=1,
            route_scale=3.0,
            logits_mup_width_multiplier=1.0,
        ),
        vision=VisionConfig(folds=((1, 5, 32), (1, 2, 64), (1, 4, 128), (2, 1, 0))),
        stream=StreamSpec(audio_tokens=1, max_patches=1, max_text=8, max_output=1, frame_height=40, frame_width=40),
        flow=FlowConfig(width=320, depth=3, euler_steps=4, draws=2),
        clock=ClockConfig(features=16),
        state=StateConfig(sinks=8, global_window=304),
    ),
    data=DataConfig(
        window_turns=160,
        window_tokens=328,
        # Time, sight and interruptions take the most exposure to learn.
        shares=Shares(
            command=6.0,
            greeting=1.0,
            timer=4.0,
            beeper=2.0,
            barge_in=3.2,
            count=5.0,
            watch=0.8,
            delegate=3.4,
            quiet=2.0,
            talk=3.0,
            two_timers=3.4,
            redirect=2.8,
            side_talk=1.2,
            cue=1.6,
            shadow=1.8,
            translate=2.0,
            elapsed=2.0,
            repair=2.0,
            instructed=2.4,
        ),
        # It is bound by voices: each is changed further than those that it is measured with.
        acoustics=Acoustics(
            pitch=(0.82, 1.22),
            formants_share=0.5,
            pace=(0.8, 1.25),
            pace_share=0.5,
            level=(-32.0, -10.0),
            swell_share=0.4,
            microphone_share=0.4,
        ),
        behaviour=Behaviour(backchannel_share=0.4, aloud_share=0.6),
    ),
    train=TrainConfig(
        batch_size=16,
        minutes=150.0,
        learning_rate=5e-3,
        adam_learning_rate=2e-3,
        cooldown=0.4,
        augment=SpecAugment(warp=0.08, bands=2, band_bins=10, frames=0.04),
        ema=0.998,
        remat=False,
        eval_every_s=600.0,
        checkpoint_every_s=300.0,
        eval_conversations=32,
    ),
)

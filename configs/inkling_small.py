"""The published Inkling-Small, 276B parameters of which 12B are active, plus our heads; for TPU pods."""

from tml_jax.data.config import DataConfig
from tml_jax.model.config import FlowConfig, InteractionConfig, NumericsConfig, StateConfig, TextConfig, VisionConfig
from tml_jax.streams.micro_turn import StreamSpec
from tml_jax.train.config import ExperimentConfig, TrainConfig

CONFIG = ExperimentConfig(
    name="inkling_small",
    model=InteractionConfig(
        text=TextConfig(),
        vision=VisionConfig(),
        stream=StreamSpec(audio_tokens=4, max_patches=72, max_text=32, max_output=5, frame_height=320, frame_width=320),
        flow=FlowConfig(width=1536, depth=6, euler_steps=4, draws=4),
        state=StateConfig(sinks=256, global_window=32_768),
        numerics=NumericsConfig(key_block=256),
    ),
    data=DataConfig(window_tokens=4096, window_turns=256, window_patches=2048, window_speech=640, group=1),
    # (data, fsdp, expert, tensor) of a v5p slice 8x8x8: a window on each device.
    train=TrainConfig(dtype="bfloat16", batch_size=512, loss_turns=128, steps=100_000, mesh=(1, 8, 64, 1)),
)

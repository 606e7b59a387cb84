"""What a model is: sizes only, frozen and typed, read from a Hugging Face ``config.json`` or written by hand.

Field names of the backbone are those of the published Inkling configuration; the `stream`, `flow`, `clock`
and `state` parts are this project's own.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from tml_jax.streams.micro_turn import StreamSpec

LayerType = Literal["hybrid_sliding", "hybrid"]
MlpType = Literal["dense", "sparse"]


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The Inkling decoder (`transformers.models.inkling.InklingTextConfig`; defaults: Inkling-Small).

    `layer_types` says which layers look through the sliding window ("hybrid_sliding") and which are global
    ("hybrid"); `mlp_layer_types` which are "dense" and which are "sparse" (routed and shared experts).
    """

    vocab_size: int = 201_024
    hidden_size: int = 4096
    layer_types: tuple[LayerType, ...] = (*(("hybrid_sliding",) * 5), "hybrid") * 7
    mlp_layer_types: tuple[MlpType, ...] = (*(("dense",) * 2), *(("sparse",) * 40))
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    swa_num_attention_heads: int = 32
    swa_num_key_value_heads: int = 8
    swa_head_dim: int = 128
    sliding_window_size: int = 512
    d_rel: int = 16
    rel_extent: int = 1024
    log_scaling_n_floor: int | None = 128_000
    log_scaling_alpha: float = 0.1
    conv_kernel_size: int = 4
    intermediate_size: int = 16_384
    moe_intermediate_size: int = 2048
    n_routed_experts: int = 256
    num_experts_per_tok: int = 6
    n_shared_experts: int = 2
    route_scale: float = 8.0
    logits_mup_width_multiplier: float = 16.0
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    unpadded_vocab_size: int | None = 200_058

    def __post_init__(self) -> None:
        if len(self.layer_types) != len(self.mlp_layer_types):
            raise ValueError(
                f"layer_types has {len(self.layer_types)} layers and mlp_layer_types {len(self.mlp_layer_types)}; "
                "they must agree."
            )
        for heads, kv_heads in (
            (self.num_attention_heads, self.num_key_value_heads),
            (self.swa_num_attention_heads, self.swa_num_key_value_heads),
        ):
            if heads % kv_heads:
                raise ValueError(
                    f"{heads} query heads cannot share {kv_heads} key/value heads: the second must divide the first."
                )

    @property
    def num_hidden_layers(self) -> int:
        """Decoder layers."""
        return len(self.layer_types)

    @property
    def tokenizer_rows(self) -> int:
        """Rows of the vocabulary that are the tokenizer's; the control tokens follow."""
        return self.unpadded_vocab_size or self.vocab_size


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The patch-folding MLP (hMLP).

    Each fold is (frames, pixels on a side, output width); the last width is `hidden_size`. The published one folds
    5x5, 2x2, 4x4 and 2 frames: 75 -> 128, 512 -> 320, 5120 -> 4800, 9600 -> hidden_size.
    """

    folds: tuple[tuple[int, int, int], ...] = ((1, 5, 128), (1, 2, 320), (1, 4, 4800), (2, 1, 0))


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """The flow head: conditional flow matching on mel patches with an adaLN MLP (Li et al. 2024, arXiv:2406.11838).

    Attributes:
      width, depth: of the MLP. euler_steps: at inference. draws: noise draws per hidden state in training.
      sigma_feedback: standard deviation of the noise on fed-back mel patches in training.
    """

    width: int = 1536
    depth: int = 6
    euler_steps: int = 4
    draws: int = 4
    sigma_feedback: float = 0.1


@dataclasses.dataclass(frozen=True)
class ClockConfig:
    """Fourier features of the elapsed time: `features` periods, geometric from `min_period_s` to `max_period_s`."""

    features: int = 16
    min_period_s: float = 0.5
    max_period_s: float = 8192.0


@dataclasses.dataclass(frozen=True)
class StateConfig:
    """How much of a conversation a global layer keeps: the first `sinks` tokens and the last `global_window`."""

    sinks: int = 256
    global_window: int = 32_768


@dataclasses.dataclass(frozen=True)
class NumericsConfig:
    """In what order sums are made. With both set, training and a live stream compute the same bits.

    Attributes:
      key_block: attention adds keys up in blocks of so many positions, counted from a conversation's beginning, and a
        live stream goes through its TPU kernel; there it is a multiple of 128, best 256. None: all keys at once.
      row_tile: what is computed for each token by itself is computed for so many tokens at a time, wherever they
        come from. None: for all that there are, the fastest.
    """

    key_block: int | None = None
    row_tile: int | None = None


@dataclasses.dataclass(frozen=True)
class InteractionConfig:
    """A whole interaction model: Inkling backbone, stream, and our heads."""

    text: TextConfig = TextConfig()
    vision: VisionConfig = VisionConfig()
    stream: StreamSpec = StreamSpec()
    flow: FlowConfig = FlowConfig()
    clock: ClockConfig = ClockConfig()
    state: StateConfig = StateConfig()
    numerics: NumericsConfig = NumericsConfig()

    def to_json(self) -> dict[str, Any]:
        """A plain dict that `from_json` reads back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "InteractionConfig":
        """Reads `to_json`'s dict.

        Raises:
          ValueError: a part or a field is unknown.
        """
        parts = {f.name: f.type for f in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - set(parts)):
            raise ValueError(f"The model config has unknown parts {unknown}; known: {sorted(parts)}.")
        return cls(**{name: _build(parts[name], name, value) for name, value in data.items()})

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], **ours: Any) -> "InteractionConfig":
        """Reads the backbone's sizes from a Hugging Face Inkling ``config.json``.

        Args:
          hf: the parsed file (its ``text_config`` or a bare text config).
          **ours: `stream`, `flow`, `clock`, `state`, `vision` parts; the file doesn't know them.
        """
        return cls(text=text_config_from_hf(hf), **ours)


def _build(part: Any, name: str, value: Mapping[str, Any]) -> Any:
    known = {f.name for f in dataclasses.fields(part)}
    if unknown := sorted(set(value) - known):
        raise ValueError(f"The model config's part {name!r} has unknown fields {unknown}.")
    return part(**{k: _tuples(v) for k, v in value.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


_MODEL_TYPES = ("inkling_mm_model", "inkling_text")
_HF_NAMES = {
    "sliding_window": "sliding_window_size",
    "sconv_kernel_size": "conv_kernel_size",
    "num_local_experts": "n_routed_experts",
    "embedding_multiplier": "logits_mup_width_multiplier",
}


def text_config_from_hf(hf: Mapping[str, Any]) -> TextConfig:
    """The decoder's sizes from a Hugging Face Inkling config, published or written by `transformers`.

    Raises:
      ValueError: the config lacks a size that has no default, or is of another model type.
    """
    if (found := hf.get("model_type")) not in _MODEL_TYPES:
        raise ValueError(
            f"This config.json is not an Inkling config: its model_type is {found!r}, not {_MODEL_TYPES[0]!r}."
        )
    text = dict(hf.get("text_config", hf))
    text = {_HF_NAMES.get(k, k): v for k, v in text.items()}
    if "hidden_size" not in text or not ("num_hidden_layers" in text or "layer_types" in text):
        raise ValueError("This config.json is not an Inkling config: it names no hidden_size and num_hidden_layers.")
    layers = text.get("num_hidden_layers") or len(text["layer_types"])
    if text.get("dense_intermediate_size") is not None:
        text["moe_intermediate_size"] = text["intermediate_size"]
        text["intermediate_size"] = text["dense_intermediate_size"]
    if not text.get("layer_types"):
        local = text.get("local_layer_ids")
        local = set(local) if local is not None else {i for i in range(layers) if (i + 1) % 6}
        text["layer_types"] = ["hybrid_sliding" if i in local else "hybrid" for i in range(layers)]
    if not text.get("mlp_layer_types"):
        dense = text.get("dense_mlp_idx", 0)
        text["mlp_layer_types"] = ["dense" if i < dense else "sparse" for i in range(layers)]
    known = {f.name for f in dataclasses.fields(TextConfig)}
    defaults = {"log_scaling_n_floor": None, "unpadded_vocab_size": None}
    return TextConfig(**(defaults | {k: _tuples(v) for k, v in text.items() if k in known}))


def text_config_to_hf(config: TextConfig) -> dict[str, Any]:
    """The `text_config` block of a Hugging Face Inkling ``config.json``."""
    data = dataclasses.asdict(config)
    data["layer_types"] = list(config.layer_types)
    data["mlp_layer_types"] = list(config.mlp_layer_types)
    return data | {"model_type": "inkling_text", "num_hidden_layers": config.num_hidden_layers}

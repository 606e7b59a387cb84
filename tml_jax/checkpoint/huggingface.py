"""Weights in the published Inkling layout (Hugging Face safetensors), read and written bit for bit.

`MODEL` and `LAYER` are the one table: our weight, its published name, and how its axes lie. The published names are
those that `transformers` reads and that its `save_pretrained` writes (`transformers.conversion_mapping`,
"inkling_mm_model"). What Inkling doesn't have (the flow head, the clock, `heard`, ...) is stored beside it under
``interaction.``, in our own layout. Layers that we keep stacked are single layers there.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from tml_jax.checkpoint.tensors import DEFAULT_SHARD_BYTES, TensorFiles, TensorSpec, write_tensors
from tml_jax.checkpoint.weights import Weight, Weights, blocks, flatten, fresh_params, place_params
from tml_jax.model.config import InteractionConfig, text_config_to_hf
from tml_jax.model.interaction import InteractionModel, Params
from tml_jax.model.plan import layer_plan

# (our weight, published name, "published axes -> our axes"); {i} is an index that both sides share.
MODEL = (
    ("text.table", "model.llm.embed.weight", "v d -> v d"),
    ("text.norm.w", "model.llm.embed_norm.weight", "d -> d"),
    ("transformer.norm.w", "model.llm.norm.weight", "d -> d"),
    ("transformer.unembed", "model.llm.unembed.weight", "v d -> v d"),
    ("audio.table", "model.audio.encoder.weight", "(frame bin level) d -> frame bin level d"),
    ("audio.norm.w", "model.audio.final_norm.weight", "d -> d"),
    ("vision.fold_{i}.w", "model.visual.layers.linear_{i}.weight", "out in -> in out"),
    ("vision.norm_{i}.w", "model.visual.layers.norm_{i}.weight", "d -> d"),
    ("vision.norm.w", "model.visual.final_norm.weight", "d -> d"),
)
# Within "transformer.<group>." and "model.llm.layers.<layer>.". w13 holds gate and up interleaved row by row.
LAYER = (
    ("attn_norm.w", "attn_norm.weight", "d -> d"),
    ("attn.q.w", "attn.wq_du.weight", "(h k) d -> d h k"),
    ("attn.k.w", "attn.wk_dv.weight", "(h k) d -> d h k"),
    ("attn.v.w", "attn.wv_dv.weight", "(h k) d -> d h k"),
    ("attn.r.w", "attn.wr_du.weight", "(h k) d -> d h k"),
    ("attn.o", "attn.wo_ud.weight", "d (h k) -> h k d"),
    ("attn.k_conv.w", "attn.k_sconv.weight", "c 1 tap -> tap c"),
    ("attn.v_conv.w", "attn.v_sconv.weight", "c 1 tap -> tap c"),
    ("attn.q_norm.w", "attn.q_norm.weight", "k -> k"),
    ("attn.k_norm.w", "attn.k_norm.weight", "k -> k"),
    ("attn.profiles", "attn.rel_logits_proj.proj", "r n -> r n"),
    ("attn_conv.w", "attn_sconv.weight", "c 1 tap -> tap c"),
    ("mlp_norm.w", "mlp_norm.weight", "d -> d"),
    ("mlp.gate_up.w", "mlp.w13_dn.weight", "(f gate_up) d -> d gate_up f"),
    ("mlp.down.w", "mlp.w2_md.weight", "d f -> f d"),
    ("mlp.router", "mlp.gate.weight", "e d -> e d"),
    ("mlp.correction", "mlp.gate.bias", "e -> e"),
    ("mlp.gate_up", "mlp.experts.w13_weight", "e (f gate_up) d -> e gate_up d f"),
    ("mlp.down", "mlp.experts.w2_weight", "e d f -> e f d"),
    ("mlp.shared_gate_up", "mlp.shared_experts.shared_w13_weight", "s (f gate_up) d -> s gate_up d f"),
    ("mlp.shared_down", "mlp.shared_experts.shared_w2_weight", "s d f -> s f d"),
    ("mlp_conv.w", "mlp_sconv.weight", "c 1 tap -> tap c"),
)
# The learned scale sits elsewhere in a dense block than in a sparse one.
SCALE = {"dense": "mlp.global_scale", "sparse": "mlp.gate.global_scale"}
OURS = "interaction."
# Multi-token prediction: published, not part of the model that interacts.
SKIPPED = "model.mtp."
# What other layouts call their tensors, and what that means.
FOREIGN = (
    (
        r"_scale(_inv|_2)?$|_packed$|_zero_point$",
        "its weights are quantized, as NVFP4 or FP8 are; take the bfloat16 ones",
    ),
    (r"\.experts\.\d+\.", "its experts lie one by one, where the published layout stacks them"),
    (r"(gate|up|gate_up)_proj|\.w[13](_|\.|$)", "its gate and up projections are not interleaved as w13"),
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a published tensor's axes lie in ours: "(h k) d -> d h k" splits the first axis and moves it."""

    published: tuple[tuple[str, ...], ...]
    ours: tuple[str, ...]

    @classmethod
    @functools.cache
    def parse(cls, text: str) -> "Layout":
        """Reads "published axes -> our axes"; parentheses group axes that are one on the published side."""
        left, right = text.split(" -> ")
        groups: list[tuple[str, ...]] = []
        for part in left.replace("(", "|(").replace(")", ")|").split("|"):
            if part.startswith("("):
                groups.append(tuple(part.strip("()").split()))
            else:
                groups += [() if name == "1" else (name,) for name in part.split()]
        return cls(tuple(groups), tuple(right.split()))

    @property
    def _flat(self) -> tuple[str, ...]:
        return tuple(axis for group in self.published for axis in group)

    def published_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The published shape of a weight of our shape."""
        size = dict(zip(self.ours, shape, strict=True))
        return tuple(math.prod(size[a] for a in group) for group in self.published)

    def to_ours(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """A view of a published tensor as our weight of `shape`."""
        size = dict(zip(self.ours, shape, strict=True))
        return x.reshape([size[a] for a in self._flat]).transpose([self._flat.index(a) for a in self.ours])

    def to_published(self, x: np.ndarray) -> np.ndarray:
        """Our weight as it is published."""
        shape = self.published_shape(x.shape)
        return x.transpose([self.ours.index(a) for a in self._flat]).reshape(shape)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One published tensor: a weight of ours, or one layer of a stacked one.

    Attributes:
      path: our weight. name: the published one. shape: ours, without the stack.
      layer: index in the stack; None: not stacked. layout: None: the tensor is stored as it is.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    layer: int | None = None
    layout: Layout | None = None

    @property
    def published_shape(self) -> tuple[int, ...]:
        """Its shape in a file."""
        return self.layout.published_shape(self.shape) if self.layout else self.shape

    def read(self, files: TensorFiles) -> np.ndarray:
        """The weight, as a view of the mapped file."""
        x = files[self.name]
        return self.layout.to_ours(x, self.shape) if self.layout else x

    def pieces(self, weight: Weight) -> Iterator[np.ndarray]:
        """The tensor from the weight, in parts that follow one another."""
        stack = () if self.layer is None else (slice(self.layer, self.layer + 1),)
        # Where the first axis is the same on both sides, it can be cut.
        aligned = self.layout is None or self.layout.published[0] == self.layout.ours[:1]
        for part in blocks(self.shape, weight.dtype.itemsize, range(1 if aligned else 0, len(self.shape))):
            x = np.asarray(weight[(*stack, *part)])
            x = x[0] if stack else x
            yield self.layout.to_published(x) if self.layout else x


def entries(config: InteractionConfig) -> tuple[Entry, ...]:
    """Every published tensor of a model, in the order of our weights."""
    model = {}
    for path, name, layout in MODEL:
        for i in range(len(config.vision.folds)):
            model[path.format(i=i)] = (name.format(i=i), layout)
    layer = {path: (name, layout) for path, name, layout in LAYER}
    groups = {group.name: group for group in layer_plan(config.text)}
    result = []
    for path, weight in flatten(InteractionModel(config).abstract).items():
        part, _, rest = path.partition(".")
        group_name, _, inner = rest.partition(".")
        if part == "transformer" and group_name in groups:
            group = groups[group_name]
            name, layout = (SCALE[group.mlp_type], "one -> one") if inner == "mlp.scale" else layer[inner]
            for i, number in enumerate(group.layers()):
                stacked = i if group.repeats else None
                shape = weight.shape[1:] if group.repeats else weight.shape
                published = f"model.llm.layers.{number}.{name}"
                result.append(Entry(path, published, shape, stacked, Layout.parse(layout)))
        elif path in model:
            name, layout = model[path]
            result.append(Entry(path, name, weight.shape, None, Layout.parse(layout)))
        else:
            result.append(Entry(path, OURS + path, weight.shape))
    return tuple(result)


@dataclasses.dataclass(frozen=True)
class PublishedWeight:
    """A weight of ours in published files: one tensor, or the layers of a stack.

    Attributes:
      files: where they lie. entries: its tensors, in the order of the stack.
    """

    files: TensorFiles
    entries: tuple[Entry, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight, the stack first."""
        first = self.entries[0]
        return first.shape if first.layer is None else (len(self.entries), *first.shape)

    @property
    def dtype(self) -> np.dtype:
        """In which it is stored; of a stack, one that holds every layer's exactly."""
        return np.result_type(*(self.files.spec(entry.name).dtype for entry in self.entries))

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """A block of it; only that is read."""
        if self.entries[0].layer is None:
            return self.entries[0].read(self.files)[index]
        layers, *rest = index or (slice(None),)
        return np.stack([entry.read(self.files)[tuple(rest)] for entry in self.entries[layers]], dtype=self.dtype)


@dataclasses.dataclass(frozen=True)
class Report:
    """What an import found: tensors and parameters read, tensors skipped, and weights of ours that start fresh."""

    tensors: int
    parameters: int
    skipped: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        """A few lines for a terminal."""
        lines = [f"read {self.tensors} tensors, {self.parameters:,} parameters"]
        if self.skipped:
            lines.append(f"skipped {len(self.skipped)} tensors of multi-token prediction: {', '.join(self.skipped)}")
        if self.fresh:
            lines.append(f"the checkpoint has no interaction heads; these start fresh: {', '.join(self.fresh)}")
        return "\n".join(lines)


class HuggingFaceCheckpoint:
    """A checkpoint in the published layout, opened and checked against the model that it should hold.

    Args:
      directory: of its files.
      like: a model whose `interaction` parts are the checkpoint's where it holds no heads of its own; None: those that
        its ``config.json`` names, else the defaults.

    Attributes:
      config: the model.
      weights: those that it holds, by our dotted paths, not yet read.
      report: what it holds.

    Raises:
      ValueError: it can't be read, it is no Inkling model or of a foreign layout, or a tensor is missing, of another
        shape, or has no place in the model.
    """

    def __init__(self, directory: str | os.PathLike[str], like: InteractionConfig | None = None) -> None:
        self.directory = pathlib.Path(directory)
        self.config = read_config(directory)
        self.files = TensorFiles(directory)
        has_heads = any(name.startswith(OURS) for name in self.files)
        if like is not None and not has_heads:
            self.config = dataclasses.replace(like, text=self.config.text)
        table = list(entries(self.config))
        fresh = [] if has_heads else [e.path for e in table if e.name.startswith(OURS)]
        table = [e for e in table if e.path not in set(fresh)]
        known = {e.name for e in table}
        skipped = [name for name in self.files if name.startswith(SKIPPED)]
        if extra := sorted(set(self.files) - known - set(skipped)):
            more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
            meaning = next((f": {text}" for pattern, text in FOREIGN if re.search(pattern, extra[0])), "")
            raise ValueError(
                f"{directory} holds tensor {extra[0]!r}{more}, for which this model has no place{meaning}."
            )
        for entry in table:
            self._check(entry)
        parameters = sum(math.prod(e.shape) for e in table)
        self.report = Report(len(table), parameters, tuple(sorted(skipped)), tuple(fresh))
        by_path: dict[str, list[Entry]] = {}
        for entry in table:
            by_path.setdefault(entry.path, []).append(entry)
        self.weights: dict[str, Weight] = {
            path: PublishedWeight(self.files, tuple(found)) for path, found in by_path.items()
        }

    def _check(self, entry: Entry) -> None:
        if entry.name not in self.files:
            raise ValueError(f"{self.directory} lacks tensor {entry.name!r} of shape {list(entry.published_shape)}.")
        found = self.files.spec(entry.name).shape
        if found != entry.published_shape:
            raise ValueError(
                f"Tensor {entry.name!r} of {self.directory} has shape {list(found)}, "
                f"but by its config.json it is {list(entry.published_shape)}."
            )


def import_params(
    checkpoint: HuggingFaceCheckpoint, model: InteractionModel, shardings: Params | None = None, seed: int = 0
) -> Params:
    """A model's weights from a checkpoint, as `place_params`; `seed` is of those that the checkpoint doesn't hold."""
    fresh = fresh_params(model, checkpoint.report.fresh, seed)
    return place_params(model, {**checkpoint.weights, **fresh}, shardings)


def export_params(
    directory: str | os.PathLike[str],
    config: InteractionConfig,
    params: Params,
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Writes a model in the published layout, with its ``config.json``; dtypes stay what they are.

    Args:
      directory: made where it isn't there.
      config: the model's sizes.
      params: its weights.
      max_shard_bytes: of a file.
    """
    write_weights(directory, config, flatten(jax.device_get(params)), max_shard_bytes=max_shard_bytes)
    (pathlib.Path(directory) / "config.json").write_text(json.dumps(config_to_hf(config), indent=2) + "\n")


def write_weights(
    directory: str | os.PathLike[str],
    config: InteractionConfig,
    weights: Weights,
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    share: tuple[int, int] | None = None,
) -> None:
    """Writes weights in the published layout, a block at a time; dtypes stay what they are.

    Args:
      directory: made where it isn't there.
      config: the model's sizes.
      weights: by dotted path.
      max_shard_bytes, share: as `write_tensors`.
    """
    table = {entry.name: entry for entry in entries(config)}
    specs = [TensorSpec(e.name, e.published_shape, np.dtype(weights[e.path].dtype)) for e in table.values()]

    def pieces(name: str) -> Iterator[np.ndarray]:
        return table[name].pieces(weights[table[name].path])

    write_tensors(directory, specs, pieces, max_shard_bytes=max_shard_bytes, share=share)


def config_to_hf(config: InteractionConfig, published: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A ``config.json`` that `transformers` reads; what it doesn't know lies under "interaction".

    All else is word for word as it was `published`, or, where it wasn't, what the sizes say.
    """
    interaction = {part: value for part, value in config.to_json().items() if part != "text"}
    return {**(_sizes_to_hf(config) if published is None else published), "interaction": interaction}


def _sizes_to_hf(config: InteractionConfig) -> dict[str, Any]:
    spec, size = config.stream, config.text.hidden_size
    frames = spec.dmel_frames // spec.audio_tokens
    return {
        "architectures": ["InklingForConditionalGeneration"],
        "model_type": "inkling_mm_model",
        "text_config": text_config_to_hf(config.text),
        "audio_config": {
            "model_type": "inkling_audio",
            "n_mel_bins": frames * spec.dmel_bins,
            "mel_vocab_size": spec.dmel_levels,
            "text_hidden_size": size,
        },
        "vision_config": {
            "model_type": "inkling_vision",
            "n_layers": len(config.vision.folds),
            "patch_size": spec.patch_size,
            "temporal_patch_size": spec.patch_frames,
            "text_hidden_size": size,
        },
    }


def is_published(directory: str | os.PathLike[str]) -> bool:
    """Whether a directory's ``config.json`` is that of a published checkpoint, not of a saved model.

    Raises:
      ValueError: there is no readable one.
    """
    config = read_json(pathlib.Path(directory) / "config.json")
    return "text_config" in config or "model_type" in config


def read_config(directory: str | os.PathLike[str]) -> InteractionConfig:
    """The config of a checkpoint in the published layout.

    Raises:
      ValueError: there is no ``config.json``, or it is not of an Inkling model.
    """
    hf = read_json(pathlib.Path(directory) / "config.json")
    ours = InteractionConfig.from_json(hf.get("interaction", {}))
    parts = {f.name: getattr(ours, f.name) for f in dataclasses.fields(ours) if f.name != "text"}
    return InteractionConfig.from_hf(hf, **parts)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
      ValueError: the file isn't there or holds something else.
    """
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}).") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds no JSON object.")
    return data

"""A model that a LoRA run saved: what was trained, on top of the saved model that ``lora.json`` names.

Its weights are read as those of the whole model, each addition summed as its block is asked for: so a saved LoRA is
served, evaluated, trained on and exported as any saved model. `export_peft` writes the additions alone, as `peft` reads
them onto the model of `transformers`.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tml_jax.checkpoint.huggingface import read_json
from tml_jax.checkpoint.tensors import TensorFiles, TensorSpec, write_file
from tml_jax.model.config import InteractionConfig
from tml_jax.model.interaction import InteractionModel
from tml_jax.model.lora import ROWS, TARGETS, A, B, Lora, LoraConfig, LowRank
from tml_jax.model.plan import layer_plan

FILE = "lora.json"
# The modules and parameters of a layer in `transformers` that a target is there, in the order of their declaration.
_PEFT = {
    "q_proj": ("self_attn.q_proj",),
    "k_proj": ("self_attn.k_proj",),
    "v_proj": ("self_attn.v_proj",),
    "r_proj": ("self_attn.r_proj",),
    "o_proj": ("self_attn.o_proj",),
    "gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "down_proj": ("mlp.down_proj",),
    "experts.gate_up_proj": ("mlp.experts.gate_up_proj",),
    "experts.down_proj": ("mlp.experts.down_proj",),
    "shared_experts.gate_up_proj": ("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"),
    "shared_experts.down_proj": ("mlp.shared_experts.down_proj",),
}
_LAYERS = "base_model.model.model.language_model.layers"


@dataclasses.dataclass(frozen=True)
class _Summed:
    """A stored weight and the addition to it, or the rows of it that were trained; it reads as float32, in blocks."""

    base: Any
    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return self.base.shape

    def __getitem__(self, index: Any) -> np.ndarray:
        """A block of it; only that block is read and summed.

        Args:
          index: a slice of each axis, or of the first ones; or a layer's number.
        """
        index = index if isinstance(index, tuple) else (index,)
        block = tuple(i if isinstance(i, slice) else slice(i, i + 1) for i in index)
        block += (slice(None),) * (len(self.shape) - len(block))
        x = self._change(np.array(self.base[block], np.float32), block)
        return x[tuple(slice(None) if isinstance(i, slice) else 0 for i in index)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of it."""
        return np.asarray(self[()], dtype)

    def _change(self, x: np.ndarray, block: tuple[slice, ...]) -> np.ndarray:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class _Adapted(_Summed):
    a: np.ndarray
    b: np.ndarray
    low_rank: LowRank
    scale: float

    def _change(self, x: np.ndarray, block: tuple[slice, ...]) -> np.ndarray:
        a, b = self.a[self.low_rank.of_a(block, slice(None))], self.b[self.low_rank.of_b(block, slice(None))]
        x += np.float32(self.scale) * self.low_rank.product(np.asarray(a), np.asarray(b))
        return x


@dataclasses.dataclass(frozen=True)
class _Replaced(_Summed):
    rows: np.ndarray
    at: slice

    def _change(self, x: np.ndarray, block: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = block[0].indices(self.shape[0])
        first, last = max(start, self.at.start), min(stop, self.at.stop)
        if first < last:
            x[first - start : last - start] = self.rows[
                (slice(first - self.at.start, last - self.at.start), *block[1:])
            ]
        return x


def write_description(directory: pathlib.Path, config: LoraConfig, base: str | os.PathLike[str]) -> None:
    """Writes ``lora.json``: what was added to which saved model."""
    description = {"base": os.fspath(base)} | dataclasses.asdict(config)
    (directory / FILE).write_text(json.dumps(description, indent=2) + "\n")


def read_description(directory: pathlib.Path) -> tuple[LoraConfig, pathlib.Path]:
    """Reads ``lora.json``: what was added, and the folder of the model to which it was.

    Raises:
      ValueError: there is none, or it holds something else.
    """
    if not (directory / FILE).is_file():
        raise ValueError(f"{directory} holds no LoRA: it has no {FILE}.")
    description = read_json(directory / FILE)
    try:
        base = pathlib.Path(description.pop("base"))
        return LoraConfig(**description | {"targets": tuple(description["targets"])}), base
    except (KeyError, TypeError) as error:
        raise ValueError(f"{directory / FILE} does not describe a LoRA ({type(error).__name__}: {error}).") from error


def overlay(weights: Mapping[str, Any], lora: Lora, trained: Mapping[str, Any]) -> dict[str, Any]:
    """A saved model's weights with what a LoRA run trained, by dotted path; nothing is read yet."""
    changed: dict[str, Any] = {}
    for path, x in weights.items():
        if path in lora.maps:
            changed[path] = _Adapted(x, trained[path + A], trained[path + B], lora.maps[path], lora.config.scale)
        elif path + ROWS in trained:
            changed[path] = _Replaced(x, trained[path + ROWS], lora.rows)
        else:
            changed[path] = trained.get(path, x)
    return changed


@dataclasses.dataclass(frozen=True)
class _PeftTensor:
    """An A or a B of one layer's module or parameter: the published tensor, of ours."""

    path: str
    layer: int | None
    low_rank: LowRank
    planes: int
    plane: int

    def of(self, weights: Mapping[str, np.ndarray], rank: int) -> np.ndarray:
        """Of an A [experts * rank, inputs], experts outermost; of a B [outputs, rank * experts], experts innermost."""
        x = np.asarray(weights[self.path] if self.layer is None else weights[self.path][self.layer])
        experts = x.shape[0] if self.low_rank.batch else 1
        if self.path.endswith(A):
            return x.reshape(experts, -1, rank).transpose(0, 2, 1).reshape(experts * rank, -1)
        planes = x.reshape(experts, rank, self.planes, -1)
        return planes[:, :, self.plane].transpose(2, 1, 0).reshape(-1, rank * experts)


def export_peft(directory: pathlib.Path, config: InteractionConfig, source: pathlib.Path) -> None:
    """Writes a saved LoRA's additions as `peft` reads them: ``adapter_config.json`` and ``adapter_model.safetensors``.

    Experts are its `target_parameters`. Where `transformers` keeps gate and up apart, both get the A that is one for
    us. The heads, and the control tokens' rows, which `transformers` has no part and no logits for, are not in it.

    Args:
      directory: there, and empty. config: the model's sizes. source: of the saved LoRA.

    Raises:
      ValueError: it is no saved LoRA, or no weight of this model is a target of it.
    """
    settings, base = read_description(source)
    table = _peft_tensors(Lora(InteractionModel(config), settings))
    if not table:
        raise ValueError(f"{source} adds nothing to a weight that is in `transformers`; there is nothing for peft.")
    weights = TensorFiles(source)

    def tensor(name: str) -> np.ndarray:
        return table[name].of(weights, settings.rank)

    specs = [TensorSpec(name, tensor(name).shape, tensor(name).dtype) for name in table]
    write_file(directory / "adapter_model.safetensors", specs, lambda name: (tensor(name),))
    parts = [part for name in _PEFT if name in settings.targets for part in _PEFT[name]]
    description = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": os.fspath(base),
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": [part for part in parts if not _is_parameter(part)],
        "target_parameters": [part for part in parts if _is_parameter(part)],
    }
    (directory / "adapter_config.json").write_text(json.dumps(description, indent=2) + "\n")


def _is_parameter(part: str) -> bool:
    """Whether `transformers` has a bare parameter, which stacks experts, and no module."""
    return "experts" in part


def _peft_tensors(lora: Lora) -> dict[str, _PeftTensor]:
    """Every tensor of the adapter by its name."""
    found = {}
    for group in layer_plan(lora.model.config.text):
        paths = {name: f"transformer.{group.name}.{TARGETS[name]}" for name in _PEFT if name in lora.config.targets}
        paths = {name: path for name, path in paths.items() if path in lora.maps}
        parts = [part for name in paths for part in _PEFT[name]]
        for name, path in paths.items():
            for plane, part in enumerate(_PEFT[name]):
                for i, number in enumerate(group.layers()):
                    for suffix, theirs in ((A, "lora_A"), (B, "lora_B")):
                        layer, where = i if group.repeats else None, _peft_module(part, parts)
                        tensor = _PeftTensor(path + suffix, layer, lora.maps[path], len(_PEFT[name]), plane)
                        found[f"{_LAYERS}.{number}.{where}.{theirs}.weight"] = tensor
    return found


def _peft_module(part: str, targeted: list[str]) -> str:
    """Where `peft` puts a target's A and B.

    It wraps a module once for each of its parameters that is a target, the first one innermost, and calls what is
    within a wrapper its base layer.
    """
    if not _is_parameter(part):
        return part
    module = part.rpartition(".")[0]
    siblings = [other for other in targeted if other.rpartition(".")[0] == module]
    return module + ".base_layer" * (len(siblings) - 1 - siblings.index(part))

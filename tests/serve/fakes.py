"""A small model with the methods of `InteractionModel`, whose every answer can be foreseen.

It keeps a running hash of everything that a slot was given, and its sound depends on that hash and on the session's
key: two sessions that share anything they should not, or a slot that was not emptied, sound different.

- after loud sound has ended it says the word for (hash mod 10);
- typed text is repeated, its first word; "time" and "what" are handed to the background model instead;
- the first word of a background result is said.
"""

import dataclasses
import functools
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from tml_jax.serve.bundle import ModelBundle
from tml_jax.streams import vocabulary
from tml_jax.streams.micro_turn import MicroTurnInput, MicroTurnOutput, StreamSpec
from tml_jax.streams.text import Tokenizer

SPEC = StreamSpec(
    audio_tokens=1,
    max_patches=1,
    max_text=8,
    max_output=1,
    frame_height=40,
    frame_width=40,
    dmel_hop=320,
    dmel_window=1280,
)
LOUD = 6.0


@functools.partial(jax.tree_util.register_dataclass, data_fields=["hash", "loud"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class FakeState:
    """uint32 [B] hash of the input so far; bool [B], whether the last micro-turn was loud."""

    hash: Any
    loud: Any


class FakeModel:
    """See the module."""

    def __init__(self, spec: StreamSpec, tokenizer: Tokenizer) -> None:
        self.spec, self.control = spec, tokenizer.control
        self.digits = [
            tokenizer.encode(f" {word}")[0]
            for word in ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
        ]
        self.delegated = [tokenizer.encode(f" {word}")[0] for word in ("what", "time")]

    def init_state(self, num_slots: int) -> FakeState:
        return FakeState(jnp.zeros(num_slots, jnp.uint32), jnp.zeros(num_slots, bool))

    def state_axes(self, num_slots: int) -> FakeState:
        return FakeState(("slot",), ("slot",))

    def reset(self, state: FakeState, mask: jax.Array) -> FakeState:
        return FakeState(jnp.where(mask, 0, state.hash), state.loud & ~mask)

    def step(
        self, params: Any, state: FakeState, inputs: MicroTurnInput, rng: jax.Array
    ) -> tuple[FakeState, MicroTurnOutput]:
        control, active = self.control, inputs.active
        weights = jnp.arange(1, 1 + inputs.audio[0].size, dtype=jnp.uint32)
        sound = jnp.sum(inputs.audio.reshape(len(active), -1).astype(jnp.uint32) * weights, axis=1, dtype=jnp.uint32)
        pixels = jnp.sum(inputs.patches, axis=(1, 2, 3, 4, 5)).astype(jnp.int32).astype(jnp.uint32)
        mixed = state.hash * jnp.uint32(1_664_525) + sound + 7 * pixels + inputs.turn.astype(jnp.uint32)
        loud = jnp.mean(inputs.audio, axis=(1, 2)) > LOUD
        head, word = jnp.pad(inputs.text, ((0, 0), (0, 2)))[:, :2].T  # a block may have no room for text
        typed = (inputs.num_text > 1) & ((head == control.user) | (head == control.background))
        asks = typed & (head == control.user) & jnp.isin(word, jnp.asarray(self.delegated))
        answers = state.loud & ~loud
        token = jnp.where(answers, jnp.asarray(self.digits)[mixed % 10], control.listen)
        token = jnp.where(asks, control.delegate, jnp.where(typed, word, token)).astype(jnp.int32)
        speaking = active & (token != control.listen) & (token != control.delegate)
        keys = jax.vmap(jax.random.fold_in)(rng, inputs.turn)
        noise = jax.vmap(lambda key: jax.random.normal(key, (10, 80)))(keys) * 0.3
        tone = jnp.where(jnp.arange(80) == (mixed % 60)[:, None, None] + 5, 2.0, -1.0) + noise
        mel = jnp.where(speaking[:, None, None], tone * params["gain"], 0.0)[:, None]
        written = MicroTurnOutput(
            tokens=jnp.where(active, token, 0)[:, None],
            num_tokens=active.astype(jnp.int32),
            speaking=speaking,
            mel=mel,
            heard=jnp.where(typed, word, control.nothing).astype(jnp.int32)[:, None],
        )
        return FakeState(jnp.where(active, mixed, state.hash), jnp.where(active, loud, state.loud)), written


def fake_bundle(folder: pathlib.Path) -> ModelBundle:
    """The fake model, ready to be served; its tokenizer's file goes to `folder`."""
    path, mine = folder / "tokenizer.json", folder / f"{os.getpid()}.json"
    mine.write_text(vocabulary.build_json())
    mine.replace(path)  # which another process of a pod may be reading
    tokenizer = Tokenizer(path)
    return ModelBundle("fake", FakeModel(SPEC, tokenizer), {"gain": jnp.ones(())}, tokenizer, SPEC)

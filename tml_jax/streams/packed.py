"""Whole conversations, packed: only the patches and the speech that there are, one after another.

A conversation of N micro-turns is a `MicroTurnInput` and a `MicroTurnOutput` with the leading axis [N], but its
`patches` are [P, *patch] and its `mel` [S, *patch]: those of the first micro-turn, then those of the next, and so on.
Which belongs where follows from `num_patches`, and from `speaking` and `num_tokens` (an output slot that speaks has a
mel patch). A batch of B conversations has [B, N], and every `B / G` of them share a pack: `patches` [G, P, *patch] and
`mel` [G, S, *patch], in the order (conversation, micro-turn, slot), zero past the last. A live step is the case of one
micro-turn with packs of one conversation each.

Dense arrays would hold almost nothing: at the published size 0.7 TB a batch.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from tml_jax.streams.micro_turn import MicroTurnInput, MicroTurnOutput, StreamSpec, empty_input, empty_output

Conversation = tuple[MicroTurnInput, MicroTurnOutput]
"""A packed conversation [N], or a batch of them [B, N]."""

DTYPE = np.float16
"""Of packed pixels and mel: normalised values of a few units, to a part in two thousand."""


@dataclasses.dataclass(frozen=True)
class Room:
    """What a conversation of a batch may hold: micro-turns, trunk tokens, patches and mel patches.

    Patches and mel patches are a mean: conversations that share a pack share the room for them.
    """

    turns: int
    tokens: int
    patches: int
    speech: int


def empty(spec: StreamSpec, lead: tuple[int, ...], packs: tuple[int, ...], patches: int, speech: int) -> Conversation:
    """Zeroed arrays of micro-turns [*lead], with packs [*packs] of so many patches and mel patches."""
    inputs = dataclasses.replace(empty_input(dataclasses.replace(spec, max_patches=0), lead), patches=None)
    outputs = dataclasses.replace(empty_output(spec, lead), mel=None)
    size = spec.patch_size
    pixels = np.zeros((*packs, patches, spec.patch_frames, size, size, 3), DTYPE)
    mel = np.zeros((*packs, speech, spec.mel_frames_per_patch, spec.mel_bins), DTYPE)
    return dataclasses.replace(inputs, patches=pixels), dataclasses.replace(outputs, mel=mel)


def abstract(spec: StreamSpec, lead: tuple[int, ...], packs: int, patches: int, speech: int) -> Conversation:
    """Shapes and dtypes of a batch [*lead] with so many packs, as ShapeDtypeStructs; nothing is allocated."""
    one = empty(spec, (), (), 1, 1)

    def shapes(part: MicroTurnInput | MicroTurnOutput, packed: str, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            name: jax.ShapeDtypeStruct((packs, size, *x.shape[1:]) if name == packed else (*lead, *x.shape), x.dtype)
            for name, x in vars(part).items()
        }

    return MicroTurnInput(**shapes(one[0], "patches", patches)), MicroTurnOutput(**shapes(one[1], "mel", speech))


def num_speech(outputs: MicroTurnOutput) -> np.ndarray:
    """Mel patches of each micro-turn, int [...]."""
    return outputs.num_tokens * outputs.speaking


def trunk_tokens(spec: StreamSpec, inputs: MicroTurnInput, outputs: MicroTurnOutput) -> np.ndarray:
    """Trunk tokens of each micro-turn, int [...]."""
    tokens = inputs.has_audio * spec.audio_tokens + inputs.num_patches + inputs.num_text + outputs.num_tokens
    return tokens * inputs.active


def window(conversation: Conversation, start: int, stop: int) -> Conversation:
    """The micro-turns from `start` to `stop` of one conversation."""
    inputs, outputs = conversation
    starts = [np.concatenate([[0], np.cumsum(n)]) for n in (inputs.num_patches, num_speech(outputs))]
    own = [slice(int(s[start]), int(s[min(stop, len(s) - 1)])) for s in starts]

    def cut(part: MicroTurnInput | MicroTurnOutput, packed: str, where: slice) -> dict[str, np.ndarray]:
        return {name: x[where if name == packed else slice(start, stop)] for name, x in vars(part).items()}

    return MicroTurnInput(**cut(inputs, "patches", own[0])), MicroTurnOutput(**cut(outputs, "mel", own[1]))


def fit(spec: StreamSpec, conversation: Conversation, tokens: int, patches: int, speech: int) -> Conversation:
    """The conversation up to the first micro-turn with which it would hold more than that."""
    inputs, outputs = conversation
    counts = (trunk_tokens(spec, inputs, outputs), inputs.num_patches, num_speech(outputs))
    fits = np.all([np.cumsum(n) <= most for n, most in zip(counts, (tokens, patches, speech), strict=True)], axis=0)
    return conversation if fits.all() else window(conversation, 0, int(np.argmin(fits)))


def pack(spec: StreamSpec, conversations: Sequence[Conversation], room: Room) -> Conversation:
    """Conversations [R, turns] that share one pack [1, ...], no longer than what they hold.

    A conversation that exceeds its room ends at the last whole micro-turn that fits; the room for patches and speech
    is that of all of them, taken by the first that come.
    """
    left_patches, left_speech, chosen = room.patches * len(conversations), room.speech * len(conversations), []
    for one in conversations:
        one = window(one, 0, room.turns)
        chosen.append(fit(spec, one, room.tokens, left_patches, left_speech))
        left_patches -= len(chosen[-1][0].patches)
        left_speech -= len(chosen[-1][1].mel)
    group = empty(spec, (len(chosen), room.turns), (1,), 0, 0)
    for row, one in enumerate(chosen):
        for part, target, packed in zip(one, group, ("patches", "mel"), strict=True):
            for name, value in vars(part).items():
                if name != packed:
                    getattr(target, name)[row, : len(value)] = value
    patches = np.concatenate([c[0].patches for c in chosen])[None].astype(DTYPE, copy=False)
    mel = np.concatenate([c[1].mel for c in chosen])[None].astype(DTYPE, copy=False)
    return dataclasses.replace(group[0], patches=patches), dataclasses.replace(group[1], mel=mel)


def batch(groups: Sequence[Conversation], room: Room) -> Conversation:
    """A batch of groups that `pack` made: [sum of R, turns], with packs [len(groups), R * room, ...] of one size."""

    def padded(x: np.ndarray, size: int) -> np.ndarray:
        out = np.zeros((len(x), size, *x.shape[2:]), x.dtype)
        out[:, : x.shape[1]] = x
        return out

    parts = []
    for which, (packed, most) in enumerate((("patches", room.patches), ("mel", room.speech))):
        fields: dict[str, list[np.ndarray]] = {}
        for group in groups:
            for name, x in vars(group[which]).items():
                size = most * len(group[0].active)
                fields.setdefault(name, []).append(padded(x, size) if name == packed else x)
        parts.append({name: np.concatenate(values) for name, values in fields.items()})
    return MicroTurnInput(**parts[0]), MicroTurnOutput(**parts[1])


def live_turn(spec: StreamSpec, conversations: Sequence[MicroTurnInput], turn: int, slots: int) -> MicroTurnInput:
    """Micro-turn `turn` of packed conversations [N] as a live step takes it, [slots]; ended ones are not active."""
    inputs = empty_input(spec, (slots,))
    for slot, one in enumerate(conversations):
        if turn >= len(one.active):
            continue
        first, count = int(np.sum(one.num_patches[:turn])), int(one.num_patches[turn])
        inputs.patches[slot, :count] = one.patches[first : first + count]
        for name, value in vars(one).items():
            if name != "patches":
                getattr(inputs, name)[slot] = value[turn]
    return inputs

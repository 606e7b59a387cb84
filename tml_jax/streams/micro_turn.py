"""The stream: what one micro-turn holds on the way in and on the way out.

A conversation is cut into micro-turns of 200 ms, each an input block followed by an output block:
``in0 out0 in1 out1 ...``. Every compiled shape is fixed by a `StreamSpec`; how many of a block's
slots are real differs per micro-turn and session ("ragged but static"). The same two types are used
from the wire to the model, for one micro-turn or (with more leading axes) for whole conversations. Most micro-turns
have no picture and are silent, so whole conversations hold their patches and their speech packed (`streams.packed`).

Order of the trunk tokens of one micro-turn::

    audio (0 or `audio_tokens`) | patches (`num_patches`) | text (`num_text`) || output (`num_tokens`)

An input block is never empty: when nothing arrived, the text holds one ``<|tick|>`` token, so that
time passes for the model.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

Array = Any  # np.ndarray on the host, jax.Array on the device


@dataclasses.dataclass(frozen=True)
class StreamSpec:
    """The static shape of a micro-turn.

    Attributes:
      audio_tokens: trunk tokens that carry the micro-turn's input sound; divides `dmel_frames`.
      max_patches: most 2x40x40 patches that arrive in a micro-turn.
      max_text: most text tokens that arrive in a micro-turn (typed text, instructions, background results).
      max_output: most output tokens of a micro-turn; divides `mel_frames`. Each carries a text (or control)
        token and, while the model speaks with sound, a patch of `mel_frames_per_patch` mel frames.
      frame_height, frame_width: size that a video frame is resized to before it is cut into patches, pixels.
      sample_rate: Hz, on both sides.
      micro_turn_ms: length of a micro-turn.
      dmel_hop, dmel_window, dmel_bins, dmel_levels: input sound (Inkling's front end), in samples and counts.
      mel_hop, mel_window, mel_bins: output sound, in samples and counts.
      patch_size, patch_frames: pixels on a side, and frames deep, of a video patch.
    """

    audio_tokens: int = 4
    max_patches: int = 72
    max_text: int = 32
    max_output: int = 5
    frame_height: int = 320
    frame_width: int = 320
    sample_rate: int = 16_000
    micro_turn_ms: int = 200
    dmel_hop: int = 800
    dmel_window: int = 1600
    dmel_bins: int = 80
    dmel_levels: int = 16
    mel_hop: int = 320
    mel_window: int = 1280
    mel_bins: int = 80
    patch_size: int = 40
    patch_frames: int = 2

    def __post_init__(self) -> None:
        if self.dmel_frames % self.audio_tokens:
            raise ValueError(
                f"audio_tokens={self.audio_tokens} must divide the {self.dmel_frames} dMel frames of a micro-turn."
            )
        if self.mel_frames % self.max_output:
            raise ValueError(
                f"max_output={self.max_output} must divide the {self.mel_frames} mel frames of a micro-turn."
            )
        if self.mel_window % self.mel_hop or self.mel_window < 4 * self.mel_hop:
            raise ValueError(f"mel_window={self.mel_window} must be a multiple of mel_hop={self.mel_hop}, 4 or more.")

    @property
    def micro_turn_s(self) -> float:
        """Seconds in a micro-turn."""
        return self.micro_turn_ms / 1000

    @property
    def samples(self) -> int:
        """Samples of sound in a micro-turn, on each side."""
        return self.sample_rate * self.micro_turn_ms // 1000

    @property
    def dmel_frames(self) -> int:
        """Input dMel frames in a micro-turn."""
        return self.samples // self.dmel_hop

    @property
    def mel_frames(self) -> int:
        """Output mel frames in a micro-turn."""
        return self.samples // self.mel_hop

    @property
    def mel_frames_per_patch(self) -> int:
        """Mel frames that one output token carries."""
        return self.mel_frames // self.max_output

    @property
    def max_input(self) -> int:
        """Most trunk tokens in an input block."""
        return self.audio_tokens + self.max_patches + self.max_text


def _pytree(cls: type) -> type:
    fields = [f.name for f in dataclasses.fields(cls)]
    return jax.tree_util.register_dataclass(cls, data_fields=fields, meta_fields=[])


@_pytree
@dataclasses.dataclass(frozen=True)
class MicroTurnInput:
    """What arrived in a micro-turn. `...` is any number of leading axes (slots; conversation, micro-turn).

    `patches` is of the live step, [..., max_patches, *patch]; of whole conversations it is packed (`streams.packed`).

    Attributes:
      active: bool [...]; False means that the slot takes no step: nothing advances.
      turn: int32 [...], index of the micro-turn in its session; the clock reads ``turn * micro_turn_s``.
      audio: uint8 [..., dmel_frames, dmel_bins], dMel levels.
      has_audio: bool [...], whether the session has sound in this micro-turn.
      patches: float [..., max_patches, patch_frames, patch_size, patch_size, 3], normalised pixels.
      num_patches: int32 [...], real patches; they come first.
      text: int32 [..., max_text], token ids.
      num_text: int32 [...], real text tokens; they come first.
    """

    active: Array
    turn: Array
    audio: Array
    has_audio: Array
    patches: Array
    num_patches: Array
    text: Array
    num_text: Array


UNHEARD = -1
"""In `MicroTurnOutput.heard` of a target: what is said there isn't known, and nothing is to be learnt from it."""


@_pytree
@dataclasses.dataclass(frozen=True)
class MicroTurnOutput:
    """What the model wrote in a micro-turn; also the target in training. `...` as in `MicroTurnInput`.

    ``tokens[0]`` is the decision: ``<|listen|>`` (silent) and ``<|delegate|>`` close the block; anything else
    speaks: a text token, or ``<|speak|>`` (sound goes on, no new word). With sound a speaking block has
    `max_output` tokens; without sound it ends at ``<|end|>``. `mel` is as the step writes it, [..., max_output,
    *patch]; of whole conversations it is packed (`streams.packed`).

    Attributes:
      tokens: int32 [..., max_output], token ids.
      num_tokens: int32 [...], real output tokens (0 only where the slot was not active).
      speaking: bool [...], whether this micro-turn carries sound.
      mel: float [..., max_output, mel_frames_per_patch, mel_bins], normalised log mel (see `streams.speech`);
        zero where not speaking.
      heard: int32 [..., max_output], the user's word that has just ended, or ``<|nothing|>``; in a target `UNHEARD`
        where somebody speaks and nobody wrote down what.
    """

    tokens: Array
    num_tokens: Array
    speaking: Array
    mel: Array
    heard: Array


def empty_input(spec: StreamSpec, shape: tuple[int, ...] = ()) -> MicroTurnInput:
    """A host-side input of inactive micro-turns, to be filled in."""
    size = spec.patch_size
    return MicroTurnInput(
        active=np.zeros(shape, bool),
        turn=np.zeros(shape, np.int32),
        audio=np.zeros((*shape, spec.dmel_frames, spec.dmel_bins), np.uint8),
        has_audio=np.zeros(shape, bool),
        patches=np.zeros((*shape, spec.max_patches, spec.patch_frames, size, size, 3), np.float32),
        num_patches=np.zeros(shape, np.int32),
        text=np.zeros((*shape, spec.max_text), np.int32),
        num_text=np.zeros(shape, np.int32),
    )


def empty_output(spec: StreamSpec, shape: tuple[int, ...] = ()) -> MicroTurnOutput:
    """A host-side output with no tokens, to be filled in."""
    return MicroTurnOutput(
        tokens=np.zeros((*shape, spec.max_output), np.int32),
        num_tokens=np.zeros(shape, np.int32),
        speaking=np.zeros(shape, bool),
        mel=np.zeros((*shape, spec.max_output, spec.mel_frames_per_patch, spec.mel_bins), np.float32),
        heard=np.zeros((*shape, spec.max_output), np.int32),
    )

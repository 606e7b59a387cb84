"""Our micro-turn step beside `transformers`' Inkling with its key/value cache: the same weights, the same tokens.

Both run in float32 on all cores, one conversation, with the same tokens in their caches. The reference gets its
tokens embedded and only runs the decoder up to the logits; our step also embeds, decides, transcribes and draws the
speech patch. So the ratio is, if anything, too small. Logits of both are compared in the same run.
"""

import dataclasses
import functools
import os
import statistics
import tempfile
import time
from typing import Any

import jax
import numpy as np

from tml_jax.checkpoint import huggingface
from tml_jax.executor.executor import Executor
from tml_jax.executor.live import LiveModel
from tml_jax.model.config import InteractionConfig
from tml_jax.model.interaction import InteractionModel, Params
from tml_jax.model.layout import Layout
from tml_jax.streams.micro_turn import MicroTurnInput, MicroTurnOutput, empty_input
from tml_jax.streams.packed import Conversation

# Trunk tokens in the caches when timing begins, as a share of what the global layers keep.
FILL = 0.75
# Micro-turns of one in a row, then of the other: the threads of both spin for a while after a call, and would
# otherwise take the cores from each other.
ROUND = 10
KEY = np.zeros((1, 2), np.uint32)


def measure(config: InteractionConfig, repeats: int) -> dict[str, float]:
    """Median seconds of a micro-turn of both, their ratio, and the largest difference of their logits.

    Args:
      config: the model; its weights are random.
      repeats: timed micro-turns.

    Raises:
      ValueError: torch or transformers is not installed, or `config` or `repeats` doesn't fit the comparison.
    """
    try:
        import torch
    except ImportError as error:
        raise ValueError("The micro_turn suite needs torch and transformers: install the extra `test`.") from error
    tokens, window = config.stream.audio_tokens + 1, config.state.global_window
    fill = int(FILL * window) // tokens
    if config.stream.max_output != 1:
        raise ValueError("The micro_turn suite compares one decoder call with another: max_output must be 1.")
    if (fill + repeats) * tokens > window:
        raise ValueError(f"{repeats} repeats are too many: the global window of {window} tokens would begin to forget.")
    model = InteractionModel(config)
    params = model.init_params(0)
    inputs = [_turn(config, turn) for turn in range(fill + repeats)]
    live = LiveModel(Executor(), model, config.stream, 1)
    embedded, logits = _record(model, live, params, inputs)
    step, state = live.step, live.init()
    torch.set_num_threads(os.cpu_count() or 1)
    theirs, cache = _load_transformers(config, params)
    ours_s, theirs_s = [], []
    with torch.inference_mode():
        for one in inputs[:fill]:
            state, _ = step(params, state, one, KEY)
        # The block of a micro-turn is the last output token and the sound; the first has no output before it.
        begin, block = fill * tokens - 1, torch.from_numpy(embedded)
        call = functools.partial(theirs, past_key_values=cache, use_cache=True)
        wanted = [call(inputs_embeds=block[:, :begin]).logits[0, tokens - 2 :: tokens]]
        for first in range(fill, fill + repeats, ROUND):
            turns = range(first, min(first + ROUND, fill + repeats))
            for turn in turns:
                start = time.perf_counter()
                state, written = jax.block_until_ready(step(params, state, inputs[turn], KEY))
                ours_s.append(time.perf_counter() - start)
                assert int(written.tokens[0, 0]) == int(logits[turn].argmax()), "the live step left the offline forward"
            for _ in turns:
                start = time.perf_counter()
                out = call(inputs_embeds=block[:, begin : begin + tokens], logits_to_keep=1).logits[0]
                theirs_s.append(time.perf_counter() - start)
                wanted.append(out)
                begin += tokens
    reference = torch.cat(wanted).numpy()
    difference = np.abs(logits[:, : reference.shape[1]] - reference)
    ours, reference_s = statistics.median(ours_s), statistics.median(theirs_s)
    return {
        "micro_turn.ours_s": ours,
        "micro_turn.transformers_s": reference_s,
        "micro_turn.speed_over_transformers": reference_s / ours,
        "micro_turn.max_logit_difference": float(difference.max()),
        "micro_turn.max_logit": float(np.abs(logits).max()),
        "micro_turn.trunk_tokens": tokens,
        "micro_turn.cached_tokens": fill * tokens,
    }


def _turn(config: InteractionConfig, turn: int) -> MicroTurnInput:
    """A micro-turn that holds sound and nothing else."""
    levels = np.random.default_rng(turn).integers(
        0, config.stream.dmel_levels, (1, config.stream.dmel_frames, config.stream.dmel_bins)
    )
    return dataclasses.replace(
        empty_input(config.stream, (1,)),
        active=np.ones((1,), bool),
        turn=np.full((1,), turn, np.int32),
        audio=levels.astype(np.int32),
        has_audio=np.ones((1,), bool),
    )


def _record(
    model: InteractionModel, live: LiveModel, params: Params, inputs: list[MicroTurnInput]
) -> tuple[np.ndarray, np.ndarray]:
    """What a session writes: its embedded tokens [1, L, D] in order, and the logits [N, V] of every decision."""
    state, outputs = live.init(), []
    for one in inputs:
        state, written = live.step(params, state, one, KEY)
        outputs.append(written)
    whole = (jax.tree.map(lambda *x: np.stack(x, axis=1), *turns) for turns in (inputs, outputs))
    length = len(inputs) * (model.config.stream.audio_tokens + 1)

    @jax.jit
    def offline(params: Params, inputs: MicroTurnInput, outputs: MicroTurnOutput) -> tuple[Any, Any]:
        layout = Layout.of(model.config.stream, inputs, outputs, length)
        x = model.net(params).embed_sequence(inputs, outputs, outputs.mel, layout)
        return x, model.forward(params, inputs, outputs, length).logits[0, :, 0]

    return jax.tree.map(np.array, offline(params, *_pack(*whole)))


def _pack(inputs: MicroTurnInput, outputs: MicroTurnOutput) -> Conversation:
    """One dense conversation [1, N] without pictures, packed: the mel patches that there are come first."""
    first = np.argsort(~outputs.speaking[0], kind="stable")
    mel = outputs.mel[:, first, 0]
    return dataclasses.replace(inputs, patches=inputs.patches[:, 0]), dataclasses.replace(outputs, mel=mel)


def _load_transformers(config: InteractionConfig, params: Params) -> tuple[Any, Any]:
    """`transformers`' model with these weights, and an empty cache of its own kind."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as directory:
        huggingface.export_params(directory, config, jax.device_get(params))
        # Our vision tower may have widths of its own; no picture is shown here.
        model = transformers.InklingForConditionalGeneration.from_pretrained(
            directory, dtype=torch.float32, ignore_mismatched_sizes=True
        )
    return model.eval(), transformers.DynamicCache(config=model.config.get_text_config())

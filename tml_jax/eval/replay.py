"""A recorded session as files, and stepped again through the programs that served it, compared bit by bit."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import soundfile

from tml_jax.eval.trace import trace
from tml_jax.executor.live import LiveModel
from tml_jax.serve.bundle import ModelBundle, difference
from tml_jax.serve.config import SessionConfig
from tml_jax.serve.inbox import Inbox
from tml_jax.serve.outlet import Outlet
from tml_jax.serve.recording import Recorded
from tml_jax.serve.session_log import block_of
from tml_jax.streams.micro_turn import StreamSpec, empty_input
from tml_jax.wire.journal import Event
from tml_jax.wire.pcm import to_pcm


def export(recorded: Recorded, out: pathlib.Path) -> tuple[int, bool]:
    """Writes ``conversation.wav``, ``session.jsonl`` and ``trace.json`` to a folder that is there.

    The sound is stereo, from session time 0: what was heard, with the silence that was put in, and what was said.

    Returns:
      How many micro-turns there are, and whether the session's end is there too.

    Raises:
      ValueError: there is no whole micro-turn.
      OSError: something cannot be written.
    """
    head, spec = recorded.head, StreamSpec(**recorded.head["stream"])
    silence, turns = np.zeros(spec.samples, np.int16), 0
    said, lines = silence, list[Event]()
    if recorded.turn:  # the journal's first line was written elsewhere
        known = {"session": head["session"], "seed": head["config"]["seed"], "micro_turn_s": spec.micro_turn_s}
        lines.append({"t": 0.0, "turn": 0, "type": "session", **known, "started_unix_s": head["began"]})
    with (
        (out / "conversation.wav").open("wb") as file,
        soundfile.SoundFile(file, "w", spec.sample_rate, 2, "PCM_16", format="WAV") as wav,
    ):
        wav.write(np.zeros((recorded.turn * spec.samples, 2), np.int16))
        for record in recorded.records():
            lines += record["lines"]
            if "turn" in record:
                turns += 1
                user = np.pad(record["user"], (0, spec.samples - len(record["user"])))
                wav.write(np.stack([user, said], axis=1))
                said = silence if record["said"] is None else to_pcm(record["said"])
        wav.write(np.stack([silence, said], axis=1))
    if not turns:
        raise ValueError("The recording holds no whole micro-turn.")
    journal = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (out / "session.jsonl").write_text(journal, encoding="utf-8")
    (out / "trace.json").write_text(json.dumps(trace(lines)))
    return turns, lines[-1]["type"] in ("end", "error")


def replay(recorded: Recorded, bundle: ModelBundle) -> tuple[int, str]:
    """Steps a recording's inputs again, up to the first micro-turn that comes out otherwise than it was recorded.

    Bits depend on the slots and the block of a step, which are those of the recording, and on the kind of machine.

    Returns:
      How many micro-turns are the same bits, from the first on, and what the next differs in; empty where none does.

    Raises:
      ValueError: the recording was made with another model.
    """
    same = 0
    for there, here in _steps(recorded, bundle):
        if differs := next((what for what in there if _bits(there[what]) != _bits(here[what])), ""):
            return same, differs
        same += 1
    return same, ""


def _bits(x: Any) -> tuple[Any, ...]:
    return () if x is None else (np.asarray(x).dtype, np.shape(x), np.asarray(x).tobytes())


def _steps(recorded: Recorded, bundle: ModelBundle) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each micro-turn as it was recorded, and as it comes out here: what is compared, by its name."""
    head, spec, slots = recorded.head, bundle.spec, recorded.head["slots"]
    model = LiveModel(bundle.executor, bundle.model, spec, slots)
    if differs := difference(head["identity"], bundle.identity(model.row_layout)):
        here = f"not with {bundle.name} as it is here: {differs}"
        raise ValueError(f"This recording was made with the model {head['name']}, and {here}.")
    config = SessionConfig.of_plain(head["config"])
    inbox = Inbox(spec, bundle.tokenizer.control.tick, lambda: None, view=bundle.view)
    outlet = Outlet(spec, bundle.tokenizer, bundle.voice)
    state, keys = model.init(), np.zeros((slots, 2), np.uint32)
    keys[0, 1] = config.seed
    if recorded.state is not None:
        inbox.go_on(recorded.turn, recorded.state["waiting"], 0)
        outlet.go_on(recorded.state["outlet"])
        state = model.with_row(state, 0, model.row_of_leaves(recorded.state["row"]))
    for there in recorded.records():
        if "turn" not in there:
            return
        inbox.put_again(block_of(there["block"]))
        inputs = empty_input(spec, (slots,))
        inbox.take(inputs, 0)
        state, outputs = model.step(bundle.params, state, inputs, keys, there["rung"])
        one = jax.tree.map(lambda x: x[0], jax.device_get(outputs))
        mel = one.mel if one.speaking else None
        frames = None if mel is None else mel.reshape(spec.mel_frames, spec.mel_bins)
        sound = outlet.sound(there["turn"], frames) if config.wants_audio else None
        yield (
            _named(outlet, there["tokens"], there["heard"], there["mel"], there["said"]),
            _named(outlet, one.tokens[: one.num_tokens], one.heard[: one.num_tokens], mel, sound and sound.samples),
        )


def _named(outlet: Outlet, tokens: np.ndarray, heard: np.ndarray, mel: Any, said: Any) -> dict[str, Any]:
    return {
        "the decision": outlet.decision(tokens).value,
        "the words said": tokens,
        "the words heard": heard,
        "the mel frames": mel,
        "the sound": said,
    }

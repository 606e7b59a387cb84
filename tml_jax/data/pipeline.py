"""From conversations to batches: a Grain pipeline, deterministic and resumable.

A batch is a pure function of (config, split, its index), drawn from the simulator or from a store. Its arrays are
allocated once and every conversation is rendered into its row. A row holds at most `window_turns` micro-turns and
`window_tokens` trunk tokens: it is cut at the last whole micro-turn that fits.
"""

import dataclasses
import functools
from collections.abc import Sequence

import grain
import jax
import numpy as np

from tml_jax.data.config import DataConfig
from tml_jax.data.simulator import Simulator
from tml_jax.data.speech_bank import SpeechBank
from tml_jax.data.store import ConversationStore
from tml_jax.data.timeline import render_into
from tml_jax.streams.micro_turn import MicroTurnInput, MicroTurnOutput, StreamSpec, empty_input, empty_output
from tml_jax.streams.text import Tokenizer

Batch = tuple[MicroTurnInput, MicroTurnOutput]
_ENDLESS = 2**40


@functools.lru_cache(maxsize=4)
def open_bank(path: str) -> SpeechBank:
    """The bank at `path`, opened once a process.

    Raises:
      ValueError: there is none, or it can't be read.
    """
    try:
        return SpeechBank.load(path)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error


def trunk_tokens(spec: StreamSpec, inputs: MicroTurnInput, outputs: MicroTurnOutput) -> np.ndarray:
    """Trunk tokens of each micro-turn, int [...]."""
    tokens = inputs.has_audio * spec.audio_tokens + inputs.num_patches + inputs.num_text + outputs.num_tokens
    return tokens * inputs.active


def cut_to_budget(spec: StreamSpec, inputs: MicroTurnInput, outputs: MicroTurnOutput, most: int) -> None:
    """Empties the micro-turns [N, ...] from the first one on with which the row would hold more than `most` tokens."""
    fits = np.cumsum(trunk_tokens(spec, inputs, outputs)) <= most
    first = int(np.argmin(fits)) if not fits.all() else len(fits)
    for part in (inputs, outputs):
        for field in dataclasses.fields(part):
            getattr(part, field.name)[first:] = 0


class BatchSource:
    """Makes the batch of any index, or some of its rows; picklable, opened at the first use in each process."""

    def __init__(
        self,
        config: DataConfig,
        spec: StreamSpec,
        tokenizer_path: str,
        batch_size: int,
        split: str,
        rows: Sequence[int] | None = None,
    ) -> None:
        self.config, self.spec, self.batch_size, self.split = config, spec, batch_size, split
        self.rows = tuple(range(batch_size) if rows is None else rows)
        self._tokenizer_path = tokenizer_path

    @functools.cached_property
    def _simulator(self) -> Simulator:
        return Simulator(self.config, self.spec, open_bank(self.config.bank), self.split)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer(self._tokenizer_path)

    @functools.cached_property
    def _store(self) -> ConversationStore:
        assert self.config.store is not None
        return ConversationStore.open(self.config.store)

    def __getstate__(self) -> dict[str, object]:
        opened = ("_simulator", "_tokenizer", "_store")
        return {name: value for name, value in self.__dict__.items() if name not in opened}

    def __call__(self, index: int) -> Batch:
        """These rows of the batch of this index: leading axes [rows, window_turns]."""
        shape = (len(self.rows), self.config.window_turns)
        inputs, outputs = empty_input(self.spec, shape), empty_output(self.spec, shape)
        for place, row in enumerate(self.rows):
            one, written = jax.tree.map(lambda x, place=place: x[place], (inputs, outputs))
            self._fill(one, written, index * self.batch_size + row)
            cut_to_budget(self.spec, one, written, self.config.window_tokens)
        return inputs, outputs

    def _fill(self, inputs: MicroTurnInput, outputs: MicroTurnOutput, index: int) -> None:
        rng = np.random.default_rng((self.config.seed, 7, self.split == "train", index))
        if self.config.store_share and rng.random() < self.config.store_share:
            self._read(inputs, outputs, rng)
            return
        behaviour = self.config.behaviour
        late = rng.random() < behaviour.late_start_share
        start = int(rng.integers(0, behaviour.latest_start)) if late else 0
        conversation = self._simulator.conversation(index)
        render_into(conversation, self.spec, self._tokenizer, inputs, outputs, start)

    def _read(self, inputs: MicroTurnInput, outputs: MicroTurnOutput, rng: np.random.Generator) -> None:
        """A random window of a stored conversation."""
        which = int(rng.integers(len(self._store)))
        turns = self._store.num_turns(which)
        start = int(rng.integers(0, max(1, turns - len(inputs.active) + 1)))
        stored = self._store.read(which, start, min(len(inputs.active), turns - start))
        for target, part in zip((inputs, outputs), stored, strict=True):
            for field in dataclasses.fields(part):
                value = getattr(part, field.name)
                getattr(target, field.name)[: len(value)] = value


def make_pipeline(
    config: DataConfig,
    spec: StreamSpec,
    tokenizer: Tokenizer,
    batch_size: int,
    split: str,
    rows: Sequence[int] | None = None,
    prefetch: int = 2,
) -> grain.IterDataset:
    """An endless pipeline of batches; its iterators have `get_state` and `set_state`.

    Args:
      config: what to draw. spec: the stream. tokenizer: of the model.
      batch_size: conversations of a batch.
      split: "train" or "heldout".
      rows: those of every batch that this process makes; None: all. A batch doesn't depend on who makes which rows.
      prefetch: batches made ahead, in one thread.

    Raises:
      ValueError: the bank or the store cannot be read.
    """
    open_bank(config.bank)
    source = BatchSource(config, spec, str(tokenizer.path), batch_size, split, rows)
    options = grain.ReadOptions(num_threads=1 if prefetch else 0, prefetch_buffer_size=prefetch)
    return grain.MapDataset.range(_ENDLESS).map(source).to_iter_dataset(options)

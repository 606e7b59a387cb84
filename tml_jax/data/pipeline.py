"""From conversations to batches: made by Grain's worker processes, in an order that a resumed run repeats.

The unit of work is a *group*: `DataConfig.group` conversations, packed together (`streams.packed`). A group is a pure
function of (config, split, its number), whoever makes it. A batch is so many groups: the next ones of the sequence,
and, where the config says so, a share of *replayed* ones, drawn from the newest that came before. A training step that
is faster than the workers can then use every conversation a few times instead of waiting.

What has to be known to go on is the number of the batch alone: the groups that may be replayed are made again.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from multiprocessing import resource_tracker

import grain
import jax
import numpy as np
import threadpoolctl
from absl import flags

from tml_jax.data.config import DataConfig
from tml_jax.data.simulator import Simulator
from tml_jax.data.speech_bank import SpeechBank
from tml_jax.data.store import ConversationStore
from tml_jax.data.timeline import render
from tml_jax.streams import packed
from tml_jax.streams.micro_turn import StreamSpec
from tml_jax.streams.text import Tokenizer

Batch = packed.Conversation
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


class GroupSource:
    """Makes the group of any number; picklable, opened at the first use in each process."""

    def __init__(self, config: DataConfig, spec: StreamSpec, tokenizer_path: str, split: str) -> None:
        self.config, self.spec, self.split = config, spec, split
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

    def __call__(self, number: int) -> Batch:
        """The conversations [group, window_turns] of this number, packed, no longer than what they hold."""
        size = self.config.group
        return packed.pack(self.spec, [self._one(number * size + i) for i in range(size)], self.config.room)

    def _one(self, index: int) -> packed.Conversation:
        rng = np.random.default_rng((self.config.seed, 7, self.split == "train", index))
        if self.config.store_share and rng.random() < self.config.store_share:
            return self._read(rng)
        behaviour = self.config.behaviour
        late = rng.random() < behaviour.late_start_share
        start = int(rng.integers(0, behaviour.latest_start)) if late else 0
        return render(self._simulator.conversation(index), self.spec, self._tokenizer, start)

    def _read(self, rng: np.random.Generator) -> packed.Conversation:
        """A random window of a stored conversation."""
        which, most = int(rng.integers(len(self._store))), self.config.window_turns
        turns = self._store.num_turns(which)
        start = int(rng.integers(0, max(1, turns - most + 1)))
        return self._store.read(which, start, min(most, turns - start))


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """An endless sequence of batches.

    Attributes:
      config: what to draw. spec: the stream. tokenizer_path: of the model.
      batch_size: conversations of a batch, a multiple of `config.group`.
      split: "train" or "heldout".
      groups: those of every batch that this process makes; None: all. A batch doesn't depend on who makes which, but
        for what is replayed: that is drawn from a process's own.
      workers: processes that make groups; 0: one thread of this process does.
    """

    config: DataConfig
    spec: StreamSpec
    tokenizer_path: str
    batch_size: int
    split: str
    groups: Sequence[int] | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.config.group:
            raise ValueError(
                f"A batch of {self.batch_size} conversations is not made of whole groups: batch_size must be a "
                f"multiple of {self.config.group}, the config's data.group."
            )
        open_bank(self.config.bank)
        if self.config.store is not None:
            ConversationStore.open(self.config.store)

    def _mine(self) -> Sequence[int]:
        return range(self.batch_size // self.config.group) if self.groups is None else self.groups

    @property
    def fresh(self) -> int:
        """Groups of a batch that are new, of those that this process makes."""
        share = self.config.replay if self.split == "train" else 0.0
        return max(1, round((1 - share) * len(self._mine())))

    def batches(self, first: int = 0) -> Generator[Batch, None, None]:
        """The batches from number `first` on: this process's groups, [rows, window_turns], with one pack a group."""
        fresh, count, space = self.fresh, len(self._mine()), self.config.room
        replayed = count - fresh
        begin = max(0, first - -(-self.config.replay_pool // fresh)) if replayed else first
        made = self._made(begin * fresh)
        pool: collections.deque[Batch] = collections.deque(maxlen=self.config.replay_pool)
        with contextlib.closing(made):
            for number in itertools.count(begin):
                # Copies: what a worker sends lies in shared memory, which is scarce and goes back at once.
                with _signals_blocked():  # the workers begin in it
                    new = [jax.tree.map(np.array, group) for group in itertools.islice(made, fresh)]
                if number >= first:
                    rng = np.random.default_rng((self.config.seed, 11, number))
                    old = [pool[int(i)] for i in rng.integers(len(pool), size=replayed)] if pool else new[:1] * replayed
                    yield packed.batch(new + old, space)
                if replayed:
                    pool.extend(new)

    def _made(self, first: int) -> grain.DatasetIterator:
        """This process's new groups, from the one with place `first` among them on."""
        mine = self._mine()[: self.fresh]
        of = self.fresh if self.groups is None else self.batch_size // self.config.group
        source = GroupSource(self.config, self.spec, self.tokenizer_path, self.split)
        numbers = _Numbers(tuple(mine), of)
        data = grain.MapDataset.range(first, _ENDLESS).map(numbers).map(source)
        if not self.workers:
            return iter(data.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))
        if not flags.FLAGS.is_parsed():  # Grain hands absl's flags on to its workers
            flags.FLAGS.mark_as_parsed()
        one = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        options = grain.MultiprocessingOptions(num_workers=self.workers, per_worker_buffer_size=4)
        return iter(data.to_iter_dataset(one).mp_prefetch(options, _begin_worker))


@dataclasses.dataclass(frozen=True)
class _Numbers:
    """The number of the group at each place of a process's own: `mine` of each batch of `of`."""

    mine: tuple[int, ...]
    of: int

    def __call__(self, place: int) -> int:
        batch, i = divmod(place, len(self.mine))
        return batch * self.of + self.mine[i]


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Threads and processes that begin in it never see Ctrl-C or SIGTERM.

    A terminal or a service manager sends them to all of a run's processes; the trainer says what becomes of workers.
    """
    resource_tracker.ensure_running()  # it unblocks both where it begins
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(worker: int, workers: int) -> None:
    """In a worker: one core, no accelerator, and it ends with its trainer, however that ended."""
    jax.config.update("jax_platforms", "cpu")
    threadpoolctl.threadpool_limits(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()

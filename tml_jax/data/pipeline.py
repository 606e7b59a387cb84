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
import math
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
from tml_jax.data.store import Corpus
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
    def _stores(self) -> list[Corpus]:
        return [Corpus(path, self.split, self.spec) for path, _ in self.config.stores]

    def __getstate__(self) -> dict[str, object]:
        opened = ("_simulator", "_tokenizer", "_stores")
        return {name: value for name, value in self.__dict__.items() if name not in opened}

    def __call__(self, number: int) -> Batch:
        """The conversations [group, window_turns] of this number, packed, no longer than what they hold."""
        size = self.config.group
        return packed.pack(self.spec, [self._one(number * size + i) for i in range(size)], self.config.room)

    def _one(self, index: int) -> packed.Conversation:
        rng = np.random.default_rng((self.config.seed, 7, self.split == "train", index))
        if self.config.stores:
            ends = np.cumsum([share for _, share in self.config.stores])
            which = int(np.searchsorted(ends, rng.random(), side="right"))
            if which < len(ends):
                corpus = self._stores[which]
                return corpus.window(int(rng.integers(len(corpus))), rng, self.config.window_turns)
        behaviour = self.config.behaviour
        late = rng.random() < behaviour.late_start_share
        start = int(rng.integers(0, behaviour.latest_start)) if late else 0
        return render(self._simulator.conversation(index), self.spec, self._tokenizer, start)


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """An endless sequence of batches.

    Attributes:
      config: what to draw. spec: the stream. tokenizer_path: of the model.
      batch_size: conversations of a batch, a multiple of `config.group`.
      split: "train" or "heldout".
      groups: the places of every batch that this process fills; None: all. A batch doesn't depend on who fills which.
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
        for path, _ in self.config.stores:
            Corpus(path, self.split, self.spec)

    def _mine(self) -> Sequence[int]:
        return range(self.batch_size // self.config.group) if self.groups is None else self.groups

    @functools.cached_property
    def _order(self) -> "_Order":
        size, share = self.batch_size // self.config.group, self.config.replay if self.split == "train" else 0.0
        return _Order(size, max(1, round((1 - share) * size)))

    def batches(self, first: int = 0) -> Generator[Batch, None, None]:
        """The batches from number `first` on: this process's groups, [rows, window_turns], with one pack a group."""
        order, depth = self._order, -(-self.config.replay_pool // self._order.size)
        pools = {place: collections.deque[Batch](maxlen=depth) for place in self._mine()}
        # What comes before the first batch only fills the pools.
        first += order.within(1)
        begin = max(0, first - order.within(depth))
        with contextlib.closing(self._made(begin)) as made:
            for number in itertools.count(begin):
                groups = []
                for place, pool in pools.items():
                    if order.number(number, place) is not None:
                        # Copies: what a worker sends lies in shared memory, which is scarce and goes back at once.
                        with _signals_blocked():  # the workers begin in it
                            groups.append(jax.tree.map(np.array, next(made)))
                        if order.replays:
                            pool.append(groups[-1])
                    elif number >= first:
                        rng = np.random.default_rng((self.config.seed, 11, number, place))
                        groups.append(pool[int(rng.integers(len(pool)))])
                if number >= first:
                    yield packed.batch(groups, self.config.room)

    def _made(self, begin: int) -> grain.DatasetIterator:
        """This process's new groups, from those of batch `begin` on."""
        source = GroupSource(self.config, self.spec, self.tokenizer_path, self.split)
        numbers = _Numbers(self._order, tuple(self._mine()))
        data = grain.MapDataset.range(numbers.before(begin), _ENDLESS).map(numbers).map(source)
        if not self.workers:
            return iter(data.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))
        if not flags.FLAGS.is_parsed():  # Grain hands absl's flags on to its workers
            flags.FLAGS.mark_as_parsed()
        one = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        options = grain.MultiprocessingOptions(num_workers=self.workers, per_worker_buffer_size=4)
        return iter(data.to_iter_dataset(one).mp_prefetch(options, _begin_worker))


@dataclasses.dataclass(frozen=True)
class _Order:
    """Which places of which batch take new groups: `fresh` of `size`, spread evenly over places and over batches."""

    size: int
    fresh: int

    @property
    def replays(self) -> bool:
        """Whether there are places that take none."""
        return self.fresh < self.size

    @property
    def period(self) -> int:
        """Batches after which the same places take new ones."""
        return self.size // math.gcd(self.size, self.fresh)

    def number(self, batch: int, place: int) -> int | None:
        """Of the group that is new at this place; None: there is none."""
        start, here, after = (i * self.fresh // self.size for i in (batch, batch + place, batch + place + 1))
        return batch * self.fresh + here - start if after > here else None

    def within(self, count: int) -> int:
        """Batches in which every place has had so many new ones; 0 where nothing is replayed."""
        return -(-count * self.size // self.fresh) if self.replays else 0


class _Numbers:
    """The numbers of the new groups of a process's places, in the order of batches; picklable."""

    def __init__(self, order: _Order, places: tuple[int, ...]) -> None:
        self._period, self._step = order.period, order.period * order.fresh
        found = [[order.number(batch, place) for place in places] for batch in range(order.period)]
        self._found = [[number for number in batch if number is not None] for batch in found]
        self._flat = [number for batch in self._found for number in batch]

    def before(self, batch: int) -> int:
        """How many there are in earlier batches."""
        periods, rest = divmod(batch, self._period)
        return periods * len(self._flat) + sum(map(len, self._found[:rest]))

    def __call__(self, index: int) -> int:
        """The one with this index."""
        periods, rest = divmod(index, len(self._flat))
        return periods * self._step + self._flat[rest]


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

"""The arrays as the TPU kernels take them, and the blocks of them that a grid step has in memory."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from pallas_kernels import platform
from pallas_kernels.prefill_attention.tiles import Tiling, document_bounds, steps


def finite(x: Array, instead: float = 0) -> Array:
    """A number in the place of NaN and infinity."""
    return jnp.where(jnp.isfinite(x), x, instead)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The arrays as the kernels take them, tokens padded to whole tiles, and the blocks of each.

    Attributes:
      tiling: of the call. sequences, groups, dim: B, G and K. documents: whether there are document beginnings.
    """

    tiling: Tiling
    sequences: int
    groups: int
    dim: int
    documents: bool

    @classmethod
    def of(cls, tiling: Tiling, q: Array, k: Array, document_start: Array | None) -> "Layout":
        """The layout of a call."""
        return cls(tiling, q.shape[0], k.shape[2], q.shape[3], document_start is not None)

    def by_query(self, x: Array) -> Array:
        """[B, T, H, N] as [B G, J, Tq, N]."""
        b, t, h, n = x.shape
        x = jnp.pad(x, ((0, 0), (0, self.tiling.query_length - t), (0, 0), (0, 0)))
        return jnp.moveaxis(x, 1, 2).reshape(b * self.groups, h // self.groups, -1, n)

    def by_key(self, x: Array) -> Array:
        """[B, T, G, K] as [B G, Tk, K]."""
        b, t, g, n = x.shape
        x = jnp.pad(x, ((0, 0), (0, self.tiling.key_length - t), (0, 0), (0, 0)))
        return jnp.moveaxis(x, 1, 2).reshape(b * g, -1, n)

    def transposed(self, r: Array) -> Array:
        """[B, T, H, R] as [B G, J, R, Tq]: with few ranks in the lanes most of each vector would be empty."""
        b, t, h, n = r.shape
        r = jnp.pad(r, ((0, 0), (0, self.tiling.query_length - t), (0, 0), (0, 0)))
        return jnp.transpose(r, (0, 2, 3, 1)).reshape(b * self.groups, h // self.groups, n, -1)

    def by_row(self, x: Array) -> Array:
        """[B, T, H] as [B G, J, Tq], zero where there is no token."""
        return self.by_query(x[..., None])[..., 0]

    def from_query(self, x: Array, t: int) -> Array:
        """The inverse of `by_query`."""
        x = x.reshape(self.sequences, -1, *x.shape[2:])
        return jnp.moveaxis(x, 1, 2)[:, :t]

    def from_row(self, x: Array, t: int) -> Array:
        """The inverse of `by_row`."""
        return self.from_query(x[..., None], t)[..., 0]

    def from_transposed(self, r: Array, t: int) -> Array:
        """The inverse of `transposed`; of keys' [B G, K, Tk] too, as [B, T, G, K]."""
        r = r.reshape(self.sequences, -1, *r.shape[-2:])
        return jnp.transpose(r, (0, 3, 1, 2))[:, :t]

    def starts(self, document_start: Array | None) -> tuple[Array | None, Array, Array, Array]:
        """Document beginnings [B, 1, Tq] and the tables that the grid runs over: pairs, fetch, bounds."""
        tiling = self.tiling
        if document_start is not None:
            more = tiling.query_length - document_start.shape[1]
            document_start = jnp.pad(document_start, ((0, 0), (0, more)), mode="edge")
        bounds = document_bounds(document_start, tiling)
        pairs, fetch = steps(bounds, tiling, self.documents)
        row = None if document_start is None else document_start[:, None]
        return row, jnp.asarray(pairs), fetch, bounds

    def grid(self, pairs: Array) -> tuple[int, int]:
        """Sequences and kv heads together, and the steps of each."""
        return self.sequences * self.groups, pairs.shape[1]

    def compiler_params(self) -> pltpu.CompilerParams:
        """Sequences and heads may go to either core; a sequence's steps go in order."""
        return platform.compiler_params(("parallel", "arbitrary"), int(0.95 * platform.chip().vmem_capacity_bytes))

    def cost(self, products: int, biases: int, arrays: Sequence[Any]) -> pl.CostEstimate:
        """Of a kernel that reads and writes these arrays once (documents not counted).

        Args:
          products: of each query with each key that it sees, K numbers each. biases: the same, R numbers each.
          arrays: operands and results.
        """
        tiling = self.tiling
        position = tiling.before + np.arange(tiling.query_length)
        seen = np.minimum(position + 1, tiling.window + np.minimum(tiling.sinks, position))
        pairs = self.sequences * self.groups * tiling.queries * int(np.minimum(seen, tiling.key_length).sum())
        return pl.CostEstimate(
            flops=2 * pairs * (products * self.dim + biases * tiling.rank),
            transcendentals=pairs,
            bytes_accessed=sum(x.size * jnp.dtype(x.dtype).itemsize for x in arrays),
        )

    @property
    def query(self) -> pl.BlockSpec:
        """Queries of a tile, of all heads that share a kv head."""
        return self._spec(
            (None, self.tiling.queries, self.tiling.query_tile, self.dim), lambda i, p, f: (i, 0, p[0], 0)
        )

    @property
    def key(self) -> pl.BlockSpec:
        """Keys of a tile."""
        return self._spec((None, self.tiling.key_tile, self.dim), lambda i, p, f: (i, f, 0))

    @property
    def key_sums(self) -> pl.BlockSpec:
        """A sum for each key of a sequence, transposed."""
        return self._spec((None, self.dim, self.tiling.key_length), lambda i, p, f: (i, 0, 0))

    @property
    def relative(self) -> pl.BlockSpec:
        """Relative states of a tile of queries, transposed."""
        shape = (None, self.tiling.queries, self.tiling.rank, self.tiling.query_tile)
        return self._spec(shape, lambda i, p, f: (i, 0, 0, p[0]))

    @property
    def profiles(self) -> pl.BlockSpec:
        """All profiles."""
        return self._spec((self.tiling.rank, self.tiling.profile_lanes), lambda i, p, f: (0, 0))

    @property
    def profile_sums(self) -> pl.BlockSpec:
        """A sum for each number of the profiles, of one sequence and kv head."""
        return self._spec((None, self.tiling.rank, self.tiling.profile_lanes), lambda i, p, f: (i, 0, 0))

    @property
    def per_row(self) -> pl.BlockSpec:
        """One number a query and head: [B G, J, Tq]."""
        return self._spec((None, self.tiling.queries, self.tiling.query_tile), lambda i, p, f: (i, 0, p[0]))

    @property
    def start(self) -> pl.BlockSpec:
        """Where the documents of a tile of queries begin."""
        return self._spec((None, 1, self.tiling.query_tile), lambda i, p, f: (i // self.groups, 0, p[0]))

    def _spec(self, shape: tuple[int | None, ...], index: Any) -> pl.BlockSpec:
        def index_map(i: Any, s: Any, pairs: Any, fetch: Any, bounds: Any) -> tuple[Any, ...]:
            del bounds
            return index(i, (pairs[0, s], pairs[1, s]), fetch[i // self.groups if self.documents else 0, s])

        return pl.BlockSpec(shape, index_map)

"""Grouped matmul on a CPU: a loop over experts, and within an expert over tiles of its rows.

`lax.ragged_dot` multiplies every row by every expert here. Rows are already sorted by expert, so a tile is a plain
slice: first as many large tiles as fill up, then small ones for the rest, of which the last writes only the rows
that are its own. How often the loops turn depends on the data; tile sizes come from static shapes alone, and a row's
bits depend neither on its place in a tile nor on the tile's size (the tests hold XLA to that).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels import int8
from pallas_kernels.grouped_matmul import routing


def tile_rows(m: int) -> tuple[int, int]:
    """Rows of a large and of a small tile, from the static number of rows only."""
    large, small = (256, 64) if m >= 1024 else (64, 8)
    return min(large, m), min(small, m)


@jax.custom_vjp
def _grouped_matmul(
    lhs: Float[Array, "m k"], rhs: Float[Array, "e k n"], group_sizes: Int[Array, " e"]
) -> Float[Array, "m n"]:
    m, n = lhs.shape[0], rhs.shape[2]
    if m == 0:
        return jnp.zeros((m, n), lhs.dtype)
    ends = jnp.cumsum(group_sizes)

    def expert(e: Array, out: Array) -> Array:
        w, scale = int8.split(jax.tree.map(lambda w: lax.dynamic_index_in_dim(w, e, keepdims=False), rhs))
        w = w.astype(lhs.dtype)

        def tile(at: Array, rows: int, mine: Array | None, out: Array) -> Array:
            y = lax.dynamic_slice_in_dim(lhs, at, rows) @ w
            return _write(out, y if scale is None else (y * scale).astype(y.dtype), at, mine)

        return _tiles(m, ends[e] - group_sizes[e], ends[e], tile, out)

    return lax.fori_loop(0, rhs.shape[0], expert, jnp.zeros((m, n), lhs.dtype))


def _tiles(m: int, start: Array, end: Array, tile: routing.Tile, carry: Any) -> Any:
    """Runs `tile(at, rows, mine, carry)` over the rows from `start` to `end`; `mine` [rows, 1], None: all."""
    large, small = tile_rows(m)
    full = (end - start) // large
    rest = start + full * large

    def one_large(i: Array, carry: Array | tuple) -> Array | tuple:
        return tile(start + i * large, large, None, carry)

    def one_small(i: Array, carry: Array | tuple) -> Array | tuple:
        first = rest + i * small
        at = jnp.minimum(first, m - small)  # a slice past the end would be shifted back anyway
        rows = at + jnp.arange(small)[:, None]
        return tile(at, small, (rows >= first) & (rows < end), carry)

    carry = lax.fori_loop(0, full, one_large, carry)
    return lax.fori_loop(0, (end - rest + small - 1) // small, one_small, carry)


def _write(out: Array, y: Array, at: Array, mine: Array | None) -> Array:
    """Writes a tile's rows, or only those that are its own."""
    if mine is not None:
        y = jnp.where(mine, y, lax.dynamic_slice_in_dim(out, at, y.shape[0]))
    return lax.dynamic_update_slice_in_dim(out, y, at, 0)


def _grouped_matmul_fwd(lhs: Array, rhs: Array, group_sizes: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return _grouped_matmul(lhs, rhs, group_sizes), (lhs, rhs, group_sizes)


def _grouped_matmul_bwd(saved: tuple[Array, Array, Array], grad: Array) -> tuple[Array, Array, None]:
    """The gradients of both operands in one loop: they share the tiles of `grad`."""
    lhs, rhs, group_sizes = saved
    m = lhs.shape[0]
    if m == 0:
        return lhs, jnp.zeros_like(rhs), None
    ends = jnp.cumsum(group_sizes)

    def expert(e: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        d_lhs, d_rhs = carry
        w = lax.dynamic_index_in_dim(rhs, e, keepdims=False)

        def tile(at: Array, rows: int, mine: Array | None, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            d_lhs, total = carry
            upstream = lax.dynamic_slice_in_dim(grad, at, rows)
            y = lax.dot_general(upstream, w, (((1,), (1,)), ((), ())))
            x = lax.dynamic_slice_in_dim(lhs, at, rows)
            if mine is not None:  # other rows must not count; both sides may hold NaN there
                x, upstream = jnp.where(mine, x, 0), jnp.where(mine, upstream, 0)
            # Transposed here, not by the product: XLA's fast CPU kernel contracts the last axis of its left side.
            x = lax.optimization_barrier(x.T)
            return _write(d_lhs, y, at, mine), total + jnp.matmul(x, upstream, preferred_element_type=total.dtype)

        total = jnp.zeros(rhs.shape[1:], jnp.float32)
        d_lhs, total = _tiles(m, ends[e] - group_sizes[e], ends[e], tile, (d_lhs, total))
        return d_lhs, lax.dynamic_update_index_in_dim(d_rhs, total.astype(rhs.dtype), e, 0)

    d_lhs, d_rhs = lax.fori_loop(0, rhs.shape[0], expert, (jnp.zeros_like(lhs), jnp.zeros_like(rhs)))
    return d_lhs, d_rhs, None


_grouped_matmul.defvjp(_grouped_matmul_fwd, _grouped_matmul_bwd)


def grouped_matmul(
    lhs: Float[Array, "m k"],
    rhs: Float[Array, "e k n"],
    group_sizes: Int[Array, " e"],
    row_scale: Float[Array, " m"] | None = None,
) -> Float[Array, "m n"]:
    """See `api.grouped_matmul`."""
    y = _grouped_matmul(lhs, rhs, group_sizes)
    return y if row_scale is None else y * row_scale[:, None].astype(y.dtype)


grouped_swiglu = functools.partial(routing.swiglu_of_one_product, _grouped_matmul)
expert_mlp = functools.partial(routing.sorted_mlp, grouped_swiglu, grouped_matmul)

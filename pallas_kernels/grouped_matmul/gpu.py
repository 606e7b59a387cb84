"""Grouped matmul on a GPU, in plain XLA: tiles of rows, each times its own expert, all in one batched product.

`lax.ragged_dot`, in plain XLA, is a masked product of all M rows for each of E experts: k times what every expert for
every token takes. Here each group is padded to whole tiles of about M / E rows. There are at most ``M / tile + E`` of
them, known from static shapes, so there is no loop: at most 3 E copies of an expert's matrix are read and, where M /
E is 16 or more, at most 2 M rows multiplied. Where experts are few for each token's k, computing them all costs
little more, in large products without sort, copies or gathers: what the reference does.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.grouped_matmul import reference, routing
from pallas_kernels.int8 import einsum

# Experts for each of a token's k, up to which all are computed: at most 4 k rows a token, where tiles have up to 2 k.
EVERY_EXPERT = 4


def tile_rows(m: int, experts: int) -> int:
    """Rows of a tile, from static shapes alone: a power of two, at most the rows of an even share."""
    return 2 ** max(4, (m // experts).bit_length() - 1)


def _tiles(m: int, group_sizes: Int[Array, " e"]) -> tuple[Int[Array, " n"], Int[Array, "n s"], Int[Array, " m"]]:
    """Cuts M rows, sorted by group, into N tiles of S rows of which none has rows of two groups.

    Returns:
      group: int32 [N], of each tile; E past the last tile in use. source: int32 [N, S], the row at each place, M at
      an empty one. place: int32 [M], where each row went, N S for a row of no group.
    """
    size = tile_rows(m, group_sizes.shape[0])
    num = m // size + group_sizes.shape[0]
    ends, tile_ends = jnp.cumsum(group_sizes), jnp.cumsum(-(-group_sizes // size))
    shift = size * (tile_ends - -(-group_sizes // size)) - (ends - group_sizes)  # from a row to its place
    group = jnp.searchsorted(tile_ends, jnp.arange(num), side="right", method="compare_all").astype(jnp.int32)
    row = jnp.arange(num * size).reshape(num, size) - jnp.take(shift, group, mode="clip")[:, None]
    source = jnp.where(row < jnp.take(ends, group, mode="fill", fill_value=0)[:, None], row, m)
    of_row = jnp.searchsorted(ends, jnp.arange(m), side="right", method="compare_all")
    place = jnp.arange(m) + jnp.take(shift, of_row, mode="clip")
    return group, source, jnp.where(jnp.arange(m) < ends[-1], place, num * size)


def _lay(rows: Float[Array, "m k"], source: Int[Array, "n s"]) -> Float[Array, "n s k"]:
    """Rows at their places in the tiles, zeros at empty ones."""
    return jnp.take(rows, source, axis=0, mode="fill", fill_value=0)


def _pick(tiles: Float[Array, "n s k"], place: Int[Array, " m"]) -> Float[Array, "m k"]:
    """Rows back from the tiles, zeros for those of no group."""
    return jnp.take(tiles.reshape(-1, tiles.shape[2]), place, axis=0, mode="fill", fill_value=0)


@jax.custom_vjp
def _grouped_matmul(
    lhs: Float[Array, "m k"], rhs: Float[Array, "e k n"], group_sizes: Int[Array, " e"]
) -> Float[Array, "m n"]:
    group, source, place = _tiles(lhs.shape[0], group_sizes)
    # An empty tile, all zeros, takes the last group's matrix.
    each = jax.tree.map(lambda w: jnp.take(w, group, axis=0, mode="clip"), rhs)
    return _pick(einsum("tsk,tkn->tsn", _lay(lhs, source), each), place)


def _grouped_matmul_fwd(lhs: Array, rhs: Array, group_sizes: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return _grouped_matmul(lhs, rhs, group_sizes), (lhs, rhs, group_sizes)


def _grouped_matmul_bwd(saved: tuple[Array, Array, Array], grad: Array) -> tuple[Array, Array, None]:
    """Gathers alone, but for the sum over the tiles of a group, which are neighbours; that sum is float32."""
    lhs, rhs, group_sizes = saved
    group, source, place = _tiles(lhs.shape[0], group_sizes)
    x, upstream = _lay(lhs, source), _lay(grad, source)
    d_lhs = jnp.einsum("tsn,tkn->tsk", upstream, jnp.take(rhs, group, axis=0, mode="clip"))
    each = jnp.einsum("tsk,tsn->tkn", x, upstream, preferred_element_type=jnp.float32)
    d_rhs = jax.ops.segment_sum(each, group, rhs.shape[0], indices_are_sorted=True)
    return _pick(d_lhs, place), d_rhs.astype(rhs.dtype), None


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
_sorted_mlp = functools.partial(routing.sorted_mlp, grouped_swiglu, grouped_matmul)


def expert_mlp(
    x: Float[Array, "t d"],
    expert_ids: Int[Array, "t k"],
    weights: Float[Array, "t k"],
    gate_up: Float[Array, "e 2 d f"],
    down: Float[Array, "e f d"],
) -> Float[Array, "t d"]:
    """See `api.expert_mlp`."""
    every = gate_up.shape[0] <= EVERY_EXPERT * expert_ids.shape[1]
    return (reference.expert_mlp if every else _sorted_mlp)(x, expert_ids, weights, gate_up, down)

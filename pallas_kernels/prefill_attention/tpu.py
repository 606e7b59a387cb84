"""Prefill attention on a TPU: flash attention (Dao 2023, arXiv:2307.08691) with Inkling's relative bias.

The grid is (sequences x kv heads, steps): a step is a tile of queries of all the heads that share a kv head, and a
tile of keys. The list of steps (`tiles.steps`) holds only pairs of tiles that can see each other, so a window reads
its own keys and no others; where documents make a step empty, nothing is fetched for it. Both dimensions of the
shapes are static, so the list is a constant but for documents.

The bias of a tile of queries is made when the tile begins, once for all key blocks: a small matmul of the relative
states with the profiles, whose rows of distances a strided roll then turns into rows of keys. It stays in VMEM in
float32, after a block of zeros for keys beyond the profiles.

Inside a step a loop goes over blocks of keys (`tpu_tile.Step`). Those that every query sees whole need no mask, and
take all queries at once. An online softmax in float32 adds the blocks up in rising order. A block or a key that a query
does not see changes none of its bits: they depend on neither later tokens nor other sequences.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels import platform
from pallas_kernels.prefill_attention.layout import Layout, finite
from pallas_kernels.prefill_attention.tiles import LANES, Tiling, reversed_profiles
from pallas_kernels.prefill_attention.tpu_tile import MASKED, Step, column, dot, visible, wide


def _folded(x: Array) -> Array:
    """[M, N] as [M, LANES] with the same sums of rows."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % LANES)))
    return functools.reduce(jnp.add, (x[:, i : i + LANES] for i in range(0, x.shape[1], LANES)))


def _bias_by_key(states: Array, profiles: Any, tiling: Tiling) -> Float[Array, "tq lanes"]:
    """Of the keys from `reach` before an inner tile's first token to its last: token i's nearest is ``reach + i``."""
    by_distance = dot(states, profiles[:, tiling.farthest + 1 - tiling.reach : tiling.farthest + 1])
    x = by_distance.reshape(-1, tiling.tokens, tiling.reach)
    x = jnp.concatenate([x, jnp.zeros((*x.shape[:2], tiling.tokens), x.dtype)], axis=2)
    return pltpu.roll(x, 1, 2, stride=1, stride_axis=1).reshape(states.shape[0], -1)


def _bias_lanes(tiling: Tiling, query: Any, key: Any) -> Any:
    """Where the bias of the block at `key` is, for the inner tile at `query`."""
    lane = jnp.maximum(tiling.key_block + tiling.reach - (query - key), 0)
    if tiling.tokens % LANES == 0 and tiling.key_block % LANES == 0:
        lane = pl.multiple_of(lane, LANES)
    return pl.ds(lane, tiling.key_block)


def _kernel(
    pairs: Any,
    fetch: Any,
    bounds: Any,
    q: Any,
    k: Any,
    v: Any,
    r: Any,
    profiles: Any,
    *refs: Any,
    tiling: Tiling,
    groups: int,
    documents: bool,
) -> None:
    """One step. q [J, Tq, K], k, v [Tk, K], r [J, R, Tq], profiles [R, lanes]; out y [J, Tq, K], lse [J, Tq]."""
    del fetch
    start, refs = (refs[0], refs[1:]) if documents else (None, refs)
    y, lse, m, l_, acc, bias, starts = refs
    index, last = pl.program_id(1), pl.num_programs(1) - 1
    tile = pairs[0, index]

    @pl.when(index == 0)
    def _() -> None:
        bias[:, :, : tiling.key_block] = jnp.zeros((*bias.shape[:2], tiling.key_block), jnp.float32)

    @pl.when((index == 0) | (tile != pairs[0, jnp.maximum(index - 1, 0)]))
    def _() -> None:
        m[...] = jnp.full(m.shape, MASKED / 2, jnp.float32)  # so what is masked weighs zero while nothing is visible
        l_[...] = jnp.zeros(l_.shape, jnp.float32)
        acc[...] = jnp.zeros(acc.shape, jnp.float32)
        for head in range(tiling.queries):
            states = jnp.transpose(r[head].astype(jnp.float32)).astype(r.dtype)
            lanes = pl.ds(tiling.key_block, tiling.reach + tiling.tokens)
            bias[head, :, lanes] = _bias_by_key(states, profiles, tiling)
        if start is not None:
            starts[...] = column(start[...])

    def add(row: Any, key: Any, whole: bool = False) -> None:
        rows = tiling.query_tile if whole else tiling.tokens
        tokens, keys, flat = pl.ds(row, rows), pl.ds(key, tiling.key_block), tiling.queries * rows
        s = dot(q[:, tokens].reshape(flat, -1), k[keys], (1, 1))
        biases = [
            bias[:, pl.ds(at, tiling.tokens), _bias_lanes(tiling, step.query + at, step.key + key)]
            for at in (row + i for i in range(0, rows, tiling.tokens))
        ]
        s = s + jnp.concatenate(biases, axis=1).reshape(flat, -1)
        if not whole:
            own = None if start is None else jnp.concatenate([starts[tokens]] * tiling.queries)
            s = jnp.where(visible(tiling, step.query + row, step.key + key, own), s, MASKED)
        before = m[:, tokens].reshape(flat, LANES)
        after = jnp.maximum(before, jnp.max(s, axis=1, keepdims=True))
        alpha = jnp.exp(before - after)
        p = jnp.exp(s - wide(after, tiling.key_block))
        total = alpha * l_[:, tokens].reshape(flat, LANES) + _folded(p)
        old = acc[:, tokens].reshape(flat, -1)
        new = old * wide(alpha, old.shape[1]) + dot(p.astype(v.dtype), v[keys])
        for ref, value in ((m, after), (l_, total), (acc, new)):
            ref[:, tokens] = value.reshape(tiling.queries, rows, -1)

    step = Step(
        tiling,
        tiling.before + tile * tiling.query_tile,
        pairs[1, index] * tiling.key_tile,
        bounds,
        pl.program_id(0) // groups if documents else 0,
    )
    step.each(near=add, far=lambda key: add(0, key, whole=True), distance=0)

    @pl.when((index == last) | (tile != pairs[0, jnp.minimum(index + 1, last)]))
    def _() -> None:
        for head in range(tiling.queries):
            total = jnp.sum(l_[head], axis=1, keepdims=True)
            total = jnp.broadcast_to(jnp.where(total == 0, 1, total), l_.shape[1:])
            y[head] = (acc[head] / wide(total, acc.shape[2])).astype(y.dtype)
            lse[head] = jnp.transpose(m[head])[0] + jnp.log(jnp.transpose(total)[0])


def attend(
    tiling: Tiling, q: Array, k: Array, v: Array, r: Array, profiles: Array, document_start: Array | None
) -> tuple[Float[Array, "b t h k"], Float[Array, "b t h"]]:
    """The result, and the logarithm of each row's sum of exponentials, in float32."""
    layout = Layout.of(tiling, q, k, document_start)
    # Zero times a value that isn't finite is NaN, also for a query that doesn't see it. So the scores tell of it, which
    # are masked. And a row that isn't finite is NaN, never finite by way of a score of minus infinity.
    k = jnp.where(jnp.isfinite(v).all(axis=-1, keepdims=True), k, jnp.nan)
    q, k, r, profiles = (finite(x, jnp.nan) for x in (q, k, r, profiles))
    v = finite(v)
    start, *tables = layout.starts(document_start)
    operands = [layout.by_query(q), layout.by_key(k), layout.by_key(v), layout.transposed(r)]
    operands += [reversed_profiles(profiles, tiling)] + ([] if start is None else [start])
    specs = [layout.query, layout.key, layout.key, layout.relative, layout.profiles]
    specs += [] if start is None else [layout.start]
    rows, dim = (tiling.queries, tiling.query_tile), q.shape[3]
    out_shape = [
        jax.ShapeDtypeStruct(operands[0].shape, q.dtype),
        jax.ShapeDtypeStruct(operands[0].shape[:3], jnp.float32),
    ]
    y, lse = pl.pallas_call(
        functools.partial(_kernel, tiling=tiling, groups=layout.groups, documents=layout.documents),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(tables),
            grid=layout.grid(tables[0]),
            in_specs=specs,
            out_specs=[layout.query, layout.per_row],
            scratch_shapes=[
                pltpu.VMEM((*rows, LANES), jnp.float32),
                pltpu.VMEM((*rows, LANES), jnp.float32),
                pltpu.VMEM((*rows, dim), jnp.float32),
                pltpu.VMEM((*rows, tiling.bias_lanes), jnp.float32),
                pltpu.VMEM((tiling.query_tile, LANES), jnp.int32),
            ],
        ),
        out_shape=out_shape,
        compiler_params=layout.compiler_params(),
        cost_estimate=layout.cost(2, 1, operands + out_shape),
        interpret=platform.interpret(),
        name="prefill_attention",
    )(*tables, *operands)
    return layout.from_query(y, q.shape[1]), layout.from_row(lse, q.shape[1])

"""The gradient of prefill attention on a TPU, in one kernel; scores and bias are recomputed from the log-sum-exp.

Grid, steps and inner tiles are the forward kernel's: tiles of queries in order, within each the tiles of keys that it
can see. dq, dr stay in VMEM for a tile of queries, dk, dv and dprofiles for a whole sequence and kv head: with J query
heads to a kv head that is J times less than all dq. What has no room goes in several calls, each with some of the keys
and the queries that see any of these.

dk and dv are made transposed, as (q^T) (ds) and (grad^T) (p): so a tile of queries is transposed once, and no tile of
weights ever. Each sequence has its own sums in an order of its own, so its gradients don't depend on the others'.

What is not finite: a row whose result or whose gradient isn't gets a log-sum-exp of NaN. So its weights are NaN where
it sees, and zero, by the mask, where it doesn't; and what they are multiplied with is finite.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels import platform
from pallas_kernels.prefill_attention.layout import Layout, finite
from pallas_kernels.prefill_attention.tiles import LANES, Tiling, reversed_profiles, unreversed_profiles
from pallas_kernels.prefill_attention.tpu_tile import Step, column, dot, skew, unskew, visible, wide, window

# Bytes of VMEM for the sums of dk and dv in float32, those that are being written included. Where all is float32, half
# of it: the tiles take twice as much.
SUMS_BYTES = 32 << 20


def _kernel(
    pairs: Any,
    fetch: Any,
    bounds: Any,
    q: Any,
    grad: Any,
    y: Any,
    lse: Any,
    k: Any,
    v: Any,
    r: Any,
    profiles: Any,
    *refs: Any,
    tiling: Tiling,
    groups: int,
    documents: bool,
) -> None:
    """One step. q, grad, y [J, Tq, K], lse [J, Tq], k, v [Tk, K], r [J, R, Tq], profiles [R, lanes].

    Out: dq [J, Tq, K], dr [J, R, Tq], and of the whole sequence dk, dv [K, all Tk] and dprofiles [R, lanes].
    """
    del fetch
    start, refs = (refs[0], refs[1:]) if documents else (None, refs)
    dq, dr, dk, dv, dprofiles, *scratch = refs
    dq_sum, q_turned, grad_turned, relative, log_sum, delta, starts = scratch
    index, last = pl.program_id(1), pl.num_programs(1) - 1
    tile = pairs[0, index]

    @pl.when(index == 0)
    def _() -> None:
        for ref in (dk, dv, dprofiles):
            ref[...] = jnp.zeros(ref.shape, jnp.float32)

    @pl.when((index == 0) | (tile != pairs[0, jnp.maximum(index - 1, 0)]))
    def _() -> None:
        for ref in (dq_sum, dr):
            ref[...] = jnp.zeros(ref.shape, jnp.float32)
        for head in range(tiling.queries):
            for ref, turned in ((q, q_turned), (grad, grad_turned), (r, relative)):
                turned[head] = jnp.transpose(finite(ref[head].astype(jnp.float32))).astype(ref.dtype)
            product = grad[head].astype(jnp.float32) * y[head].astype(jnp.float32)
            total = jnp.broadcast_to(jnp.sum(product, axis=1, keepdims=True), delta.shape[1:])
            log_sum[head] = jnp.where(jnp.isfinite(total), column(lse[head : head + 1]), jnp.nan)
            delta[head] = total
        if start is not None:
            starts[...] = column(start[...])

    def add(row: Any, key: Any, near: bool = True) -> None:
        rows = tiling.tokens if near else tiling.query_tile
        tokens, keys, flat = pl.ds(row, rows), pl.ds(key, tiling.key_block), tiling.queries * rows

        def turned(ref: Any) -> Array:
            return jnp.concatenate([ref[head, :, tokens] for head in range(tiling.queries)], axis=1)

        s = dot(q[:, tokens].reshape(flat, -1), k[keys], (1, 1))
        first = (step.query + row, step.key + key)
        if near:
            s = s + skew(dot(relative[:, tokens].reshape(flat, -1), profiles[:, window(tiling, *first)]), tiling)
        p = jnp.exp(s - wide(log_sum[:, tokens].reshape(flat, LANES), tiling.key_block))
        dp = dot(grad[:, tokens].reshape(flat, -1), v[keys], (1, 1))
        ds = p * (dp - wide(delta[:, tokens].reshape(flat, LANES), tiling.key_block))
        if near:
            own = None if start is None else jnp.concatenate([starts[tokens]] * tiling.queries)
            seen = visible(tiling, *first, own)
            p, ds = (jnp.where(seen, x, 0) for x in (p, ds))
        p, rounded = p.astype(q.dtype), ds.astype(q.dtype)
        at = pl.ds(pl.multiple_of(step.key + key, tiling.key_block), tiling.key_block)
        dv[:, at] += dot(turned(grad_turned), p)
        dk[:, at] += dot(turned(q_turned), rounded)
        dq_sum[:, tokens] += dot(rounded, k[keys]).reshape(tiling.queries, rows, -1)
        if near:
            lanes, by_distance = window(tiling, *first), unskew(ds, tiling).astype(q.dtype)
            dprofiles[:, lanes] += dot(turned(r), by_distance)
            by_distance = by_distance.reshape(tiling.queries, rows, -1)
            for head in range(tiling.queries):
                dr[head, :, tokens] += dot(profiles[:, lanes], by_distance[head], (1, 1))

    sequence = pl.program_id(0) // groups if documents else 0
    step = Step(tiling, tiling.before + tile * tiling.query_tile, pairs[1, index] * tiling.key_tile, bounds, sequence)
    step.each(near=add, far=lambda key: add(0, key, near=False), distance=tiling.extent)

    @pl.when((index == last) | (tile != pairs[0, jnp.minimum(index + 1, last)]))
    def _() -> None:
        dq[...] = dq_sum[...].astype(dq.dtype)


Gradients = tuple[
    Float[Array, "b t h k"],
    Float[Array, "b s g k"],
    Float[Array, "b s g k"],
    Float[Array, "b t h r"],
    Float[Array, "r e"],
]


def _call(
    tiling: Tiling,
    dtype: jnp.dtype,
    of_queries: Sequence[Array],
    of_keys: Sequence[Array],
    profiles: Array,
    document_start: Array | None,
) -> Gradients:
    """dq of this dtype, dk, dv, dr and dprofiles in float32: what these queries and these keys add to them."""
    (q, grad, y, lse, r), (k, v) = of_queries, of_keys
    layout = Layout.of(tiling, q, k, document_start)
    start, *tables = layout.starts(document_start)
    operands = [layout.by_query(q), layout.by_query(grad), layout.by_query(y), layout.by_row(lse)]
    operands += [layout.by_key(k), layout.by_key(v), layout.transposed(r), reversed_profiles(profiles, tiling)]
    specs = [layout.query, layout.query, layout.query, layout.per_row, layout.key, layout.key]
    specs += [layout.relative, layout.profiles]
    if start is not None:
        operands, specs = [*operands, start], [*specs, layout.start]
    each, rows, dim = operands[0].shape[0], (tiling.queries, tiling.query_tile), q.shape[3]
    sums = jax.ShapeDtypeStruct((each, dim, tiling.key_length), jnp.float32)
    out_shape = [
        jax.ShapeDtypeStruct(operands[0].shape, dtype),
        jax.ShapeDtypeStruct(operands[6].shape, jnp.float32),
        sums,
        sums,
        jax.ShapeDtypeStruct((each, *operands[7].shape), jnp.float32),
    ]
    dq, dr, dk, dv, dprofiles = pl.pallas_call(
        functools.partial(_kernel, tiling=tiling, groups=layout.groups, documents=layout.documents),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(tables),
            grid=layout.grid(tables[0]),
            in_specs=specs,
            out_specs=[layout.query, layout.relative, layout.key_sums, layout.key_sums, layout.profile_sums],
            scratch_shapes=[
                pltpu.VMEM((*rows, dim), jnp.float32),
                pltpu.VMEM((tiling.queries, dim, tiling.query_tile), q.dtype),
                pltpu.VMEM((tiling.queries, dim, tiling.query_tile), q.dtype),
                pltpu.VMEM((*rows, tiling.rank), q.dtype),
                pltpu.VMEM((*rows, LANES), jnp.float32),
                pltpu.VMEM((*rows, LANES), jnp.float32),
                pltpu.VMEM((tiling.query_tile, LANES), jnp.int32),
            ],
        ),
        out_shape=out_shape,
        compiler_params=layout.compiler_params(),
        cost_estimate=layout.cost(5, 3, operands + out_shape),
        interpret=platform.interpret(),
        name="prefill_attention_backward",
    )(*tables, *operands)
    t, keys = q.shape[1], k.shape[1]
    return (
        layout.from_query(dq, t),
        layout.from_transposed(dk, keys),
        layout.from_transposed(dv, keys),
        layout.from_transposed(dr, t),
        unreversed_profiles(dprofiles, tiling).sum(axis=0),
    )


def gradients(
    window: int,
    sinks: int,
    key_block: int | None,
    grad: Float[Array, "b t h k"],
    q: Float[Array, "b t h k"],
    k: Float[Array, "b s g k"],
    v: Float[Array, "b s g k"],
    r: Float[Array, "b t h r"],
    profiles: Float[Array, "r e"],
    document_start: Array | None,
    y: Float[Array, "b t h k"],
    lse: Float[Array, "b t h"],
) -> Gradients:
    """The gradients of q, k, v, r and profiles, in their dtype, from that of y; y and `lse` are `tpu.attend`'s."""
    t, s, queries, (rank, extent) = q.shape[1], k.shape[1], q.shape[2] // k.shape[2], profiles.shape
    before = s - t
    # The log-sum-exp of a row that isn't finite is NaN, so the kernel needs not see it from these: no zero times NaN.
    q, k, v, r, profiles = map(finite, (q, k, v, r, profiles))
    block = key_block or LANES
    per_call = max(SUMS_BYTES // (8 * q.dtype.itemsize * q.shape[3]) // block, 1) * block
    parts = []
    for first in range(0, s, per_call):
        keys, pinned = min(per_call, s - first), sinks if document_start is not None else max(sinks - first, 0)
        # The queries, by their numbers, that may see any of these keys.
        begin, end = max(first - before, 0), t if pinned else min(t, first + keys + window - 1 - before)
        if begin >= end:
            parts.append([jnp.zeros(x.shape, jnp.float32) for x in (q, k[:, :keys], v[:, :keys], r, profiles)])
            continue
        place = before + begin - first
        tiling = Tiling.of(end - begin, queries, rank, extent, window, pinned, key_block, keys, place)
        of_queries = [x[:, begin:end] for x in (q, grad, y, lse, r)]
        of_keys = [x[:, first : first + keys] for x in (k, v)]
        start = None if document_start is None else document_start[:, begin:end] - first
        dtype = q.dtype if keys == s else jnp.dtype(jnp.float32)  # another call adds to it
        part = _call(tiling, dtype, of_queries, of_keys, profiles, start)
        at = ((0, 0), (begin, t - end), (0, 0), (0, 0))
        parts.append([jnp.pad(part[0], at), *part[1:3], jnp.pad(part[3], at), part[4]])
    dq, dk, dv, dr, dprofiles = zip(*parts, strict=True)
    return (
        functools.reduce(jnp.add, dq).astype(q.dtype),
        jnp.concatenate(dk, axis=1).astype(q.dtype),
        jnp.concatenate(dv, axis=1).astype(q.dtype),
        functools.reduce(jnp.add, dr).astype(q.dtype),
        functools.reduce(jnp.add, dprofiles).astype(q.dtype),
    )

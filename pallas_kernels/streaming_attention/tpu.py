"""Streaming attention on a TPU: one kernel that writes a block of new tokens into the caches and attends to them.

The grid is (cores, live sessions). A core takes its own kv heads of every session: the cores' work is equal whatever
the sessions' lengths, and no two touch the same bytes. A session walks its key blocks (`walk.py`); while one is
attended to, the next, or the next session's first, is on its way from HBM. Only rows that some new token sees cross
HBM, in units of `ROW_UNIT`, so a ragged block comes as a few DMAs of static sizes.

The blocks that the new tokens take are completed in VMEM when they have arrived. A small matmul with a matrix of
zeros and ones shifts the new rows to their place, exactly; the touched units are copied to a staging buffer and
written back from there while the walk goes on. A walk never reads again what it has written: those blocks are its
last, in slots of their own (the ring is at least two blocks), and other sessions have their own rows.

Queries go in tiles of a few tokens: a tile's rows are [heads of a kv head, tokens]. The relative bias is a small
matmul with the window of the profiles that this tile and block need, whose row of distances a strided roll then
shifts by one a token. Blocks beyond the profiles' extent that every query sees whole skip bias and masks.

An online softmax adds blocks up in float32. A block or key that a query does not see changes none of its bits, so
these depend on neither the other tokens of its block nor the other sessions.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels import platform
from pallas_kernels.streaming_attention.cache import KVCache, encode
from pallas_kernels.streaming_attention.tiling import LANES, Tiling, round_up
from pallas_kernels.streaming_attention.tpu_cache import CacheWindow, dot, only, place

MASKED = -1e30


def _wide(x: Array, width: int) -> Array:
    """[M, LANES], the same in all lanes, as [M, width]."""
    return x[:, :width] if width <= LANES else jnp.concatenate([x] * (width // LANES), axis=1)


def _profile_window(profiles: Any, tiling: Tiling, distance: Any) -> Array:
    """[R, lanes]: the profile at `distance` in lane 0 and one nearer in each lane after it."""
    lane = tiling.farthest - jnp.minimum(distance, tiling.farthest)
    base = pl.multiple_of(lane // LANES * LANES, LANES)
    x = profiles[:, pl.ds(base, tiling.lanes + LANES)]
    return pltpu.roll(x, tiling.lanes + LANES - (lane - base), 1)[:, : tiling.lanes]


def _bias(r: Array, window: Array, tiling: Tiling) -> Array:
    """[rows, key_block]: row (j, t) is the window's row of distances, read from lane ``tokens - 1 - t``."""
    bias = dot(r, window)
    if tiling.tokens > 1:
        bias = bias.reshape(tiling.queries, tiling.tokens, tiling.lanes)
        bias = pltpu.roll(bias, tiling.lanes - (tiling.tokens - 1), 2, stride=1, stride_axis=1)
        bias = bias.reshape(tiling.rows, tiling.lanes)
    return bias[:, : tiling.key_block]


@dataclasses.dataclass(frozen=True)
class _Softmax:
    """The online softmax of every head and tile: m, l [heads, tiles, rows, LANES], acc [heads, tiles, rows, K]."""

    m: Any
    l: Any  # noqa: E741
    acc: Any

    def reset(self, head: int, tile: Any) -> None:
        self.m[head, tile] = jnp.full(self.m.shape[2:], MASKED, jnp.float32)
        self.l[head, tile] = jnp.zeros(self.l.shape[2:], jnp.float32)
        self.acc[head, tile] = jnp.zeros(self.acc.shape[2:], jnp.float32)

    def add(self, tile: Any, scores: list[Array], v: list[Array], v_scales: list[Array], visible: Array | None) -> None:
        """Adds a block of every head's scores [rows, key_block] and values [key_block, K].

        One operation for all heads, then the next: so what each waits for, the others' fills.
        """
        heads, width = range(len(scores)), scores[0].shape[1]
        if visible is not None:
            scores = [jnp.where(visible, s, MASKED) for s in scores]
        m, l_, acc = ([ref[head, tile] for head in heads] for ref in (self.m, self.l, self.acc))
        m_next = [jnp.maximum(m[head], jnp.max(scores[head], axis=1, keepdims=True)) for head in heads]
        p = [jnp.exp(scores[head] - _wide(m_next[head], width)) for head in heads]
        if visible is not None:
            p = [jnp.where(visible, x, 0) for x in p]  # also while nothing was visible, when exp gives one
        weights = p
        if v_scales:
            weights = [p[head] * v_scales[head] for head in heads]
            weights = weights if visible is None else [jnp.where(visible, x, 0) for x in weights]
        products = [dot(weights[head].astype(v[head].dtype), v[head]) for head in heads]
        alpha = [jnp.exp(m[head] - m_next[head]) for head in heads]
        for head in heads:
            self.m[head, tile] = m_next[head]
            self.l[head, tile] = alpha[head] * l_[head] + jnp.sum(p[head], axis=1, keepdims=True)
            self.acc[head, tile] = acc[head] * _wide(alpha[head], acc[head].shape[1]) + products[head]

    def result(self, head: int, tile: Any) -> Array:
        l_ = self.l[head, tile]
        return self.acc[head, tile] / _wide(jnp.where(l_ == 0, 1, l_), self.acc.shape[3])


def _attend(
    q: Any,
    r: Any,
    profiles: Any,
    memory: CacheWindow,
    softmax: _Softmax,
    slot: Any,
    position: Any,
    tile: Any,
    start: Any,
    live: tuple[Any, Any],
) -> None:
    """One tile of queries, the first token of which is at `start`, and one key block, of which rows `live` are seen."""
    tiling = memory.tiling
    is_sink = position < tiling.sinks
    nearest = start - (position + tiling.key_block - 1)
    farthest = start + (tiling.tokens - 1) - position
    whole = (nearest >= tiling.extent) & (is_sink | (farthest < tiling.window))

    def add(window: Array | None, visible: Array | None) -> None:
        heads = range(tiling.heads)
        keys, values, *scales = memory.buffers
        scores = [dot(q[0, head, tile], keys[slot, head].astype(q.dtype), transposed=True) for head in heads]
        if scales:
            scores = [scores[head] * scales[0][slot, head] for head in heads]
        if window is not None:
            scores = [scores[head] + _bias(r[0, head, tile], window, tiling) for head in heads]
        v = [values[slot, head] for head in heads]
        if visible is not None and not scales:
            v = only(v, *live)
        v_scales = [scale[slot, head] for scale in scales[1:] for head in heads]
        softmax.add(tile, scores, [x.astype(q.dtype) for x in v], v_scales, visible)

    @pl.when(whole)
    def _() -> None:
        add(None, None)

    @pl.when(~whole)
    def _() -> None:
        shape = (tiling.rows, tiling.key_block)
        token = lax.broadcasted_iota(jnp.int32, shape, 0) & (tiling.tokens - 1)
        distance = token - lax.broadcasted_iota(jnp.int32, shape, 1) + (start - position)
        reach = jnp.where(is_sink, jnp.iinfo(jnp.int32).max, tiling.window)
        window = _profile_window(profiles, tiling, farthest)
        add(window.astype(q.dtype), (distance >= 0) & (distance < reach))


def _kernel(
    order: Any, rows: Any, starts: Any, counts: Any, q: Any, r: Any, *refs: Any, tiling: Tiling, planes: int
) -> None:
    """One session on one core."""
    new, profiles, refs = refs[:planes], refs[planes], refs[2 * planes + 1 :]  # the caches' inputs are their outputs
    y, caches, refs = refs[0], refs[1 : planes + 1], refs[planes + 1 :]
    buffers, staged, (m, l_, acc, parity, written, *sems) = refs[:planes], refs[planes : 2 * planes], refs[2 * planes :]
    memory = CacheWindow(tiling, pl.program_id(0) * tiling.heads, caches, buffers, staged, written, *sems)
    softmax = _Softmax(m, l_, acc)
    index, sessions = pl.program_id(1), pl.num_programs(1)
    session, next_session = order[index], order[jnp.minimum(index + 1, sessions - 1)]
    walk = tiling.walk(starts[session], counts[session])
    tiles = (walk.count + tiling.tokens - 1) // tiling.tokens

    @pl.when(index == 0)
    def _() -> None:
        parity[0] = 0
        for slot in range(2):
            for kind in range(2):
                written[slot, kind] = 0

        @pl.when(walk.steps > 0)
        def _() -> None:
            memory.read(rows[session], walk, 0, 0, wait=False)

    def reset(tile: Any, _: None) -> None:
        for head in range(tiling.heads):
            softmax.reset(head, tile)

    def step(i: Any, _: None) -> None:
        slot = (parity[0] + i) % 2

        is_last = i + 1 == walk.steps
        ahead = jnp.where(is_last, next_session, session)

        @pl.when(~is_last | (index + 1 < sessions))
        def _() -> None:
            next_walk = tiling.walk(starts[ahead], counts[ahead])
            memory.read(rows[ahead], next_walk, jnp.where(is_last, 0, i + 1), 1 - slot, wait=False)

        memory.read(rows[session], walk, i, slot, wait=True)
        position = walk.position(i)
        first_new, last_new = walk.new(position)

        @pl.when(last_new > first_new)
        def _() -> None:
            stage = (position > walk.start).astype(jnp.int32)  # the second block that the new tokens take
            memory.wait_written(stage)
            row = place(memory, new, walk, position, slot, stage)
            memory.write(rows[session], walk, position, stage, row)

        def attend(tile: Any, _: None) -> None:
            start = walk.start + tile * tiling.tokens
            _attend(q, r, profiles, memory, softmax, slot, position, tile, start, walk.live(position))

        lax.fori_loop(0, tiles, attend, None)

    def finish(tile: Any, _: None) -> None:
        for head in range(tiling.heads):
            y[0, head, tile] = softmax.result(head, tile).astype(y.dtype)

    lax.fori_loop(0, tiles, reset, None)
    lax.fori_loop(0, walk.steps, step, None)
    lax.fori_loop(0, tiles, finish, None)
    parity[0] = (parity[0] + walk.steps) % 2

    @pl.when(index == sessions - 1)
    def _() -> None:
        for stage in range(2):
            memory.wait_written(stage)


def streaming_attention(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b t g k"],
    v: Float[Array, "b t g k"],
    r: Float[Array, "b t h r"],
    profiles: Float[Array, "r e"],
    cache: KVCache,
    start: Int[Array, " b"],
    count: Int[Array, " b"],
    layer: Int[Array, ""] | None,
    *,
    window: int,
    sinks: int,
    key_block: int,
) -> tuple[Float[Array, "b t h k"], KVCache]:
    """See `api.streaming_attention`."""
    b, t, query_heads, _ = q.shape
    kv_heads, chip = k.shape[2], platform.chip()
    cores = chip.num_cores if kv_heads % chip.num_cores == 0 else 1
    tiling = Tiling.of(
        t,
        kv_heads // cores,
        query_heads // kv_heads,
        key_block,
        window=window,
        sinks=sinks,
        ring=cache.capacity - sinks,
        extent=profiles.shape[1],
    )
    new_k, new_v, scales = encode(cache, k, v)
    padding = (0, round_up(t, 16) - t)
    new = [jnp.pad(x, ((0, 0), (0, 0), padding, (0, 0))) for x in (new_k, new_v)]
    new += [jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, tiling.key_block - t))) for x in scales]
    q_tiles, r_tiles = _to_tiles(q, kv_heads, tiling), _to_tiles(r.astype(q.dtype), kv_heads, tiling)
    first = tiling.farthest + 1 - tiling.extent
    last = tiling.profile_lanes - first - tiling.extent
    reversed_profiles = jnp.pad(profiles.astype(jnp.float32)[:, ::-1], ((0, 0), (first, last)))
    # The live sessions first; what is done for the others is nothing.
    order = jnp.argsort(count <= 0, stable=True).astype(jnp.int32)
    live = jnp.sum(count > 0, dtype=jnp.int32)
    rows = jnp.arange(b, dtype=jnp.int32) + (0 if layer is None else b * layer.astype(jnp.int32))
    caches = [x.reshape(-1, *x.shape[-3:]) for x in cache.arrays]
    y, *caches = _call(
        tiling, cores, live, (order, rows, start, count), q_tiles, r_tiles, new, reversed_profiles, caches
    )
    y = _from_tiles(y, t, tiling)
    y = jnp.where((jnp.arange(t) < count[:, None])[:, :, None, None], y, 0)
    return y, KVCache(*(x.reshape(old.shape) for x, old in zip(caches, cache.arrays, strict=True)))


def _call(
    tiling: Tiling,
    cores: int,
    sessions: Array,
    scalars: tuple[Array, ...],
    q: Array,
    r: Array,
    new: list[Array],
    profiles: Array,
    caches: list[Array],
) -> list[Array]:
    """The kernel: query tiles, new tokens and caches in, results in tiles and the same caches out."""
    b, dim, rank, planes = q.shape[0], q.shape[-1], r.shape[-1], len(caches)
    chip = platform.chip()

    def session(x: Array) -> pl.BlockSpec:
        """One core's heads of one session."""
        zeros = (0,) * (x.ndim - 2)
        return pl.BlockSpec((1, tiling.heads, *x.shape[2:]), lambda core, i, order, *_: (order[i], core, *zeros))

    in_hbm = pl.BlockSpec(memory_space=pltpu.HBM)
    inner = [(x.shape[2] == 1, x.dtype, x.shape[3]) for x in caches]
    buffers = [
        pltpu.VMEM((2, tiling.heads, *((1, tiling.key_block) if is_scale else (tiling.key_block, width))), dtype)
        for is_scale, dtype, width in inner
    ]
    staged = [
        pltpu.VMEM((2, tiling.heads, *((1, tiling.key_block) if is_scale else (tiling.new_rows, width))), dtype)
        for is_scale, dtype, width in inner
    ]
    softmax = [
        pltpu.VMEM((tiling.heads, tiling.tiles, tiling.rows, width), jnp.float32) for width in (LANES, LANES, dim)
    ]
    needed = tiling.vmem_bytes(dim, rank, q.dtype, caches[0].dtype)
    seen = min(tiling.window + tiling.sinks, caches[0].shape[2])
    heads = tiling.heads * cores
    query_rows = b * heads * tiling.tiles * tiling.rows
    row_bytes = sum(x.dtype.itemsize * heads * (1 if x.shape[2] == 1 else dim) for x in caches)
    first_cache = len(scalars) + 2 + planes + 1
    return pl.pallas_call(
        functools.partial(_kernel, tiling=tiling, planes=planes),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(cores, jnp.maximum(sessions, 1)),
            in_specs=[
                session(q),
                session(r),
                *map(session, new),
                pl.BlockSpec(profiles.shape, lambda *_: (0, 0)),
                *[in_hbm] * planes,
            ],
            out_specs=[session(q), *[in_hbm] * planes],
            scratch_shapes=[
                *buffers,
                *staged,
                *softmax,
                pltpu.SMEM((1,), jnp.int32),
                pltpu.SMEM((2, 2), jnp.int32),
                pltpu.SemaphoreType.DMA((2,)),
                pltpu.SemaphoreType.DMA((2,)),
            ],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, *caches)],
        input_output_aliases={first_cache + i: 1 + i for i in range(planes)},
        compiler_params=platform.compiler_params(
            ("parallel", "arbitrary"), min(2 * needed + 2**22, int(0.95 * chip.vmem_capacity_bytes))
        ),
        cost_estimate=pl.CostEstimate(
            flops=4 * query_rows * seen * dim,
            bytes_accessed=b * seen * row_bytes + 2 * query_rows * dim * q.dtype.itemsize,
            transcendentals=query_rows * seen,
        ),
        interpret=platform.interpret(),
        name="streaming_attention",
    )(*scalars, q, r, *new, profiles, *caches)


def _to_tiles(x: Float[Array, "b t h x"], kv_heads: int, tiling: Tiling) -> Float[Array, "b g n m x"]:
    """Tiles of queries: rows (query head, token) of each kv head."""
    b, t, _, width = x.shape
    x = jnp.pad(x, ((0, 0), (0, tiling.tiles * tiling.tokens - t), (0, 0), (0, 0)))
    x = x.reshape(b, tiling.tiles, tiling.tokens, kv_heads, tiling.queries, width).transpose(0, 3, 1, 4, 2, 5)
    x = x.reshape(b, kv_heads, tiling.tiles, tiling.queries * tiling.tokens, width)
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, tiling.rows - x.shape[3]), (0, 0)))


def _from_tiles(x: Float[Array, "b g n m x"], t: int, tiling: Tiling) -> Float[Array, "b t h x"]:
    b, kv_heads, tiles, _, width = x.shape
    x = x[:, :, :, : tiling.queries * tiling.tokens]
    x = x.reshape(b, kv_heads, tiles, tiling.queries, tiling.tokens, width).transpose(0, 2, 4, 1, 3, 5)
    return x.reshape(b, tiles * tiling.tokens, kv_heads * tiling.queries, width)[:, :t]

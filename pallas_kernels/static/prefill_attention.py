"""Cases of prefill_attention: whole sequences, ours beside splash attention of jax, which has no bias."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.prefill_attention import api
from pallas_kernels.prefill_attention.tiles import Tiling, document_bounds, steps
from pallas_kernels.static.case import Case, Count, Load, Part
from pallas_kernels.static.chips import Chip
from pallas_kernels.static.compile import Kernel
from pallas_kernels.static.grouped_libraries import Built
from pallas_kernels.static.schedule import Region

# The attention of the 276B model (configs/inkling_small.py): window, sinks and extent of its two kinds of layers.
LAYERS = {"local": (512, 0, 512), "global": (32768, 256, 1024)}
HEADS, KV_HEADS, HEAD_DIM, RANK = 32, 8, 128, 16
TOKENS = {"train_8192": 8192, "prefill_2048": 2048}
# Blocks of splash worth a try: queries, keys, keys at once.
SPLASH = ((512, 512, 512), (512, 1024, 512), (1024, 1024, 512), (1024, 1024, 1024))


def _array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)


def ours(tokens: int, layer: str) -> Built:
    """One sequence of one document."""
    window, sinks, _ = LAYERS[layer]
    q, k = _array(1, tokens, HEADS, HEAD_DIM), _array(1, tokens, KV_HEADS, HEAD_DIM)
    f = functools.partial(api.prefill_attention, window=window, sinks=sinks)
    return f, (q, k, k, _array(1, tokens, HEADS, RANK), _array(RANK, LAYERS[layer][2]))


def ours_backward(tokens: int, layer: str) -> Built:
    """The gradients of one sequence of one document."""
    f, args = ours(tokens, layer)
    return _gradients(f), args


def _gradients(f: Any) -> Any:
    """Of all arguments, for any gradient of the result."""

    def gradients(*args: jax.Array) -> Any:
        y, vjp = jax.vjp(f, *args)
        return vjp(y)

    return gradients


def splash(tokens: int, layer: str, blocks: tuple[int, int, int]) -> Built:
    """The library's kernel for the same mask; no sequence here is longer than the global layers' window."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    window, shape = LAYERS[layer][0], (tokens, tokens)
    mask = masks.LocalMask(shape, (window - 1, 0), 0) if window < tokens else masks.CausalMask(shape)
    queries, keys, at_once = blocks
    sizes = kernel.BlockSizes(queries, keys, at_once, queries, keys, at_once, queries, keys)
    attend = kernel.make_splash_mha_single_device(masks.MultiHeadMask([mask] * HEADS), block_sizes=sizes)

    def f(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        return attend(q, k, v)

    kv = _array(KV_HEADS, tokens, HEAD_DIM)
    return f, (_array(HEADS, tokens, HEAD_DIM), kv, kv)


def splash_backward(tokens: int, layer: str, blocks: tuple[int, int, int]) -> Built:
    """Its gradients."""
    f, args = splash(tokens, layer, blocks)
    return _gradients(f), args


def cases(chip: Chip) -> list[Case]:
    """Lengths and layers, each way; the gradients where one trains."""
    del chip
    found = []
    for name, tokens in TOKENS.items():
        for layer in LAYERS:
            found += _forward(name, tokens, layer)
            found += _backward(name, tokens, layer) if name.startswith("train") else []
    return found


def _forward(name: str, tokens: int, layer: str) -> list[Case]:
    kwargs: dict[str, Any] = {"tokens": tokens, "layer": layer}
    part = Part(f"{__name__}:ours", kwargs, "prefill_attention", functools.partial(_ours, tokens, layer, 1))
    found = [_case(name, layer, 1, "ours", (part,))]
    for blocks in SPLASH:
        count = functools.partial(_splash, tokens, layer, blocks)
        part = Part(f"{__name__}:splash", kwargs | {"blocks": list(blocks)}, "splash_mha_fwd_no_residuals", count)
        found.append(_case(name, layer, 1, f"splash {'x'.join(map(str, blocks))}", (part,), "no bias"))
    return found


def _backward(name: str, tokens: int, layer: str) -> list[Case]:
    """The library's has a kernel for dq and one for dk and dv. Names of kernels say by which transforms they came."""
    kwargs: dict[str, Any] = {"tokens": tokens, "layer": layer}
    count = functools.partial(_ours, tokens, layer, 2)
    part = Part(f"{__name__}:ours_backward", kwargs, r"\w*prefill_attention_backward_*", count)
    found = [_case(name, layer, 2, "ours", (part,))]
    for blocks in SPLASH:
        parts = tuple(
            Part(
                f"{__name__}:splash_backward",
                kwargs | {"blocks": list(blocks)},
                rf"\w*splash_mha_{phase}_no_residuals_*",
                functools.partial(_splash_backward, tokens, layer, blocks, phase == "dkv"),
            )
            for phase in ("dq", "dkv")
        )
        found.append(_case(name, layer, 2, f"splash {'x'.join(map(str, blocks))}", parts, "no bias"))
    return found


def _case(name: str, layer: str, passes: int, way: str, parts: tuple[Part, ...], note: str = "") -> Case:
    """Products of each query with each key that it sees: two forward, five backward, whatever is computed twice."""
    tokens, window = TOKENS[name], LAYERS[layer][0]
    seen = int(np.minimum(np.arange(tokens) + 1, window).sum())
    least = passes * 2 * tokens * HEAD_DIM * (2 * HEADS + 2 * KV_HEADS)
    load = Load("one document", {1: 4.0, 2: 10.0}[passes] * HEADS * HEAD_DIM * seen, least)
    workload = f"{name}.{layer}" + ("" if passes == 1 else ".backward")
    return Case("prefill_attention", workload, way, parts, (load,), note)


def _ours(tokens: int, layer: str, passes: int, kernel: Kernel, chip: Chip, load: str) -> Count:
    """A loop over pairs of tiles; in it one over key blocks, seen whole by all queries or else a loop over queries."""
    del load
    assert kernel.regions is not None
    window, sinks, extent = LAYERS[layer]
    tiling = Tiling.of(tokens, HEADS // KV_HEADS, RANK, extent, window, sinks, None, tokens, 0)
    pairs, fetch = steps(document_bounds(None, tiling), tiling, documents=False)
    query, key = pairs[0] * tiling.query_tile, pairs[1] * tiling.key_tile
    begin = (query[:, None], key[:, None] + np.arange(tiling.key_tile // tiling.key_block) * tiling.key_block)
    visited = begin[1] <= begin[0] + tiling.query_tile - 1
    distance = (0, extent)[passes - 1]  # the forward kernel has a bias for all keys
    all_see = tiling.whole(begin[0], tiling.query_tile, begin[1], tiling.key_block, (0, 0), distance)
    whole = visited & np.asarray(all_see)
    row = begin[0][..., None] + np.arange(tiling.query_tile // tiling.tokens) * tiling.tokens
    meets = np.asarray(tiling.meets(row, tiling.tokens, begin[1][..., None], tiling.key_block, (0, 0)))
    near = meets & (visited & ~whole)[..., None]

    grid = kernel.regions.grid()
    blocks = next(region for region in grid.loops() if region.total("matmuls"))
    rows = next(region for region in blocks.loops() if region.total("matmuls"))
    in_rows = rows.products()
    in_blocks = [region for region in blocks.products() if region not in in_rows]
    if len(in_rows) != 1 or len(in_blocks) != 1:
        raise ValueError(f"expected a body for whole blocks and one for others, found {len(blocks.products())}.")
    turns = KV_HEADS / chip.cores
    runs: dict[Region, float] = {grid: turns * pairs.shape[1], blocks: turns * int(visited.sum())}
    runs |= {in_blocks[0]: turns * int(whole.sum()), rows: turns * int((visited & ~whole).sum()) * row.shape[-1]}
    runs[in_rows[0]] = turns * int(near.sum())
    # What begins and what ends a tile of queries; before these, what begins a sequence.
    tiles = turns * len(np.unique(pairs[0]))
    bodies = {*in_rows, *in_blocks}
    around = [region for region in grid.walk() if region.kind == "branch" and bodies.isdisjoint(region.walk())]
    runs |= {region: turns for region in around[:-2]}
    runs |= {region: tiles for region in around[-2:]}
    fetches = 1 + int(np.count_nonzero(np.diff(np.asarray(fetch)[0])))
    keys = 4 * KV_HEADS * fetches * tiling.key_tile * HEAD_DIM
    queries = 2 * tokens * HEADS * (passes * 2 * HEAD_DIM + RANK)
    sums = (passes - 1) * 4 * tokens * (2 * KV_HEADS * HEAD_DIM + HEADS * RANK)  # dk, dv, dr in float32
    return Count(runs, keys + queries + sums)


def splash_steps(tokens: int, window: int, query_block: int, key_block: int, by_key: bool = False) -> tuple[int, int]:
    """Steps of a head's grid, and those of them that multiply: the others are there since some row has as many."""
    query = np.arange(0, tokens, query_block)[:, None]
    key = np.arange(0, tokens, key_block)[None, :]
    active = (key <= query + query_block - 1) & (query - (key + key_block - 1) < window)
    active = active.T if by_key else active
    return len(active) * int(active.sum(axis=1).max()), int(active.sum())


def _splash(tokens: int, layer: str, blocks: tuple[int, int, int], kernel: Kernel, chip: Chip, load: str) -> Count:
    """A loop over heads, query blocks and key blocks, of which one branch multiplies."""
    del load
    assert kernel.regions is not None
    grid = kernel.regions.grid()
    total, active = splash_steps(tokens, LAYERS[layer][0], *blocks[:2])
    heads = HEADS / chip.cores
    runs: dict[Region, float] = {grid: heads * total}
    inner = [region for region in grid.walk() if region.kind == "branch" and not region.inside]
    runs |= {region: heads * (active if region.matmuls else tokens // blocks[0]) for region in inner}
    return Count(runs, 4 * HEAD_DIM * HEADS * (active * blocks[1] + tokens))


def _splash_backward(
    tokens: int, layer: str, blocks: tuple[int, int, int], dkv: bool, kernel: Kernel, chip: Chip, load: str
) -> Count:
    """As `_splash`, on one core: its grid says that no dimension may be cut. dk and dv go over the queries of a key."""
    del load, chip
    assert kernel.regions is not None
    grid = kernel.regions.grid()
    rows, columns = blocks[:2]
    total, active = splash_steps(tokens, LAYERS[layer][0], rows, columns, by_key=dkv)
    runs: dict[Region, float] = {grid: HEADS * total}
    inner = [region for region in grid.walk() if region.kind == "branch" and not region.inside]
    outer = tokens // (columns if dkv else rows)
    runs |= {region: HEADS * (active if region.matmuls else outer) for region in inner}
    moved, kept = (rows, 4 * tokens) if dkv else (columns, 3 * tokens)
    return Count(runs, 4 * HEAD_DIM * HEADS * active * moved + 2 * HEAD_DIM * HEADS * kept)

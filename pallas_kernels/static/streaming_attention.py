"""Cases of streaming_attention: decoding against live caches, ours beside jax's ragged paged attention.

The library kernel has neither the relative bias nor the writing of new tokens, which ours does on the way. Its pages
and blocks are those of its own tuned table for 32 heads over 8 at head dimension 128, with fewer queries a block too.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.static.case import Case, Count, Load, Part
from pallas_kernels.static.chips import Chip
from pallas_kernels.static.compile import Kernel
from pallas_kernels.static.grouped_libraries import Built
from pallas_kernels.static.schedule import Region
from pallas_kernels.streaming_attention import tpu
from pallas_kernels.streaming_attention.cache import KVCache
from pallas_kernels.streaming_attention.tiling import Tiling
from pallas_kernels.streaming_attention.walk import hbm_bytes

# The attention of the 276B model (configs/inkling_small.py): window, sinks, ring and extent of its two kinds of layers.
LAYERS = {"local": (512, 0, 768, 512), "global": (32768, 256, 33024, 1024)}
HEADS, KV_HEADS, HEAD_DIM, RANK, KEY_BLOCK = 32, 8, 128, 16, 256
SESSIONS, TOKENS = (1, 16, 64), 1
PAGE, PAGES_PER_BLOCK, QUERY_BLOCKS = 128, 8, (8, 32)
_LOADS = ("full", "ragged")


def lengths(load: str, sessions: int) -> np.ndarray:
    """Positions of each session's new token: all past the window, or from 256 to 32768, evenly in their logarithm."""
    if load == "full":
        return np.full(sessions, 40000)
    return np.exp(np.random.default_rng(0).uniform(np.log(256), np.log(32768), sessions)).astype(int)


def _layers(sessions: int) -> int:
    """So many that the caches never fit VMEM, where the compiler would put them: a model's don't."""
    return max(SESSIONS) // sessions


def ours(sessions: int, layer: str) -> Built:
    """The kernel on one layer of bfloat16 caches."""
    window, sinks, ring, extent = LAYERS[layer]

    def array(*shape: int, dtype: jnp.dtype = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    def new(heads: int, width: int) -> jax.ShapeDtypeStruct:
        return array(sessions, TOKENS, heads, width)

    scalars = array(sessions, dtype=jnp.int32)
    cache = KVCache(*[array(_layers(sessions), sessions, KV_HEADS, sinks + ring, HEAD_DIM)] * 2)
    f = functools.partial(tpu.streaming_attention, window=window, sinks=sinks, key_block=KEY_BLOCK)
    keys, number = new(KV_HEADS, HEAD_DIM), array(dtype=jnp.int32)
    new_tokens = (new(HEADS, HEAD_DIM), keys, keys, new(HEADS, RANK), array(RANK, extent))
    return f, (*new_tokens, cache, scalars, scalars, number)


def ragged_paged(sessions: int, layer: str, query_block: int) -> Built:
    """The library's kernel on pages of the same capacity."""
    from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention

    window, sinks, ring, _ = LAYERS[layer]
    pages = -(-(sinks + ring) // PAGE)

    def f(
        q: jax.Array, kv: jax.Array, length: jax.Array, table: jax.Array, start: jax.Array, n: jax.Array
    ) -> jax.Array:
        return ragged_paged_attention(
            q, kv, length, table, start, n,
            sliding_window=window, num_kv_pages_per_block=min(PAGES_PER_BLOCK, pages),
            num_queries_per_block=query_block, vmem_limit_bytes=60 * 2**20,
        )  # fmt: skip

    def scalars(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    q = jax.ShapeDtypeStruct((sessions * TOKENS, HEADS, HEAD_DIM), jnp.bfloat16)
    kv = jax.ShapeDtypeStruct((_layers(sessions) * sessions * pages, PAGE, 2 * KV_HEADS, HEAD_DIM), jnp.bfloat16)
    return f, (q, kv, scalars(sessions), scalars(sessions, pages), scalars(sessions + 1), scalars(1))


def cases(chip: Chip) -> list[Case]:
    """Sessions and layers, each way."""
    del chip
    found = []
    for sessions in SESSIONS:
        for layer in LAYERS:
            kwargs = {"sessions": sessions, "layer": layer}
            count = functools.partial(_ours, sessions, layer)
            found.append(_case(sessions, layer, "ours", Part(f"{__name__}:ours", kwargs, "streaming_attention", count)))
            for block in sorted({min(sessions * TOKENS, block) for block in QUERY_BLOCKS}):
                count = functools.partial(_ragged_paged, sessions, layer, block)
                build = f"{__name__}:ragged_paged"
                part = Part(build, kwargs | {"query_block": block}, "ragged_paged_attention_kernel", count)
                note = "no bias, and the new tokens are written before"
                found.append(_case(sessions, layer, f"ragged paged {block} queries", part, note))
    return found


def _cache_bytes(sessions: int, layer: str, load: str) -> tuple[int, int]:
    """Bytes of keys and values that the new tokens see, and that ours moves."""
    window, sinks, ring, _ = LAYERS[layer]
    bytes_ = hbm_bytes(
        lengths(load, sessions), np.full(sessions, TOKENS), window=window, sinks=sinks, ring=ring, key_block=KEY_BLOCK,
        kv_heads=KV_HEADS, head_dim=HEAD_DIM, itemsize=2,
    )  # fmt: skip
    return bytes_.live, bytes_.read + bytes_.written


def _case(sessions: int, layer: str, way: str, part: Part, note: str = "") -> Case:
    wanted = []
    for load in _LOADS:
        live, _ = _cache_bytes(sessions, layer, load)
        # A byte of the cache is half an element, and each is multiplied by all query heads of its kv head.
        flops = 2.0 * (live / 2) * (HEADS // KV_HEADS) * TOKENS
        wanted.append(Load(load, flops, live + 4 * sessions * TOKENS * HEADS * HEAD_DIM))
    return Case("streaming_attention", f"decode_{sessions}.{layer}", way, (part,), tuple(wanted), note)


def _ours(sessions: int, layer: str, kernel: Kernel, chip: Chip, load: str) -> Count:
    """A loop over sessions; in it one over key blocks; in that one over query tiles, which take one of two branches."""
    assert kernel.regions is not None
    window, sinks, ring, extent = LAYERS[layer]
    start = lengths(load, sessions).astype(np.int32)
    tiling = Tiling.of(
        TOKENS, KV_HEADS // chip.cores, HEADS // KV_HEADS, KEY_BLOCK,
        window=window, sinks=sinks, ring=ring, extent=extent,
    )  # fmt: skip
    walk = tiling.walk(start[:, None], np.full((sessions, 1), TOKENS, np.int32))
    block = np.arange(int(np.max(walk.steps)))[None, :]
    real, position = np.asarray(block < walk.steps), np.asarray(walk.position(block))
    steps = int(real.sum())
    far = start[:, None] - (position + KEY_BLOCK - 1) >= extent
    whole = far & ((position < sinks) | (start[:, None] + tiling.tokens - 1 - position < window)) & real
    first, last = walk.new(position)

    grid = kernel.regions.grid()
    step = next(region for region in grid.loops() if region.total("matmuls"))
    tiles = next((region for region in step.loops() if region.total("matmuls")), step)
    bodies = sorted(tiles.products(), key=lambda region: region.matmuls)
    if len(bodies) != 2:
        raise ValueError(f"expected blocks with and without bias, found {len(bodies)} bodies that multiply.")
    runs: dict[Region, float] = {loop: sessions * tiling.tiles for loop in grid.loops()}
    runs |= {grid: sessions, step: steps, tiles: steps * tiling.tiles}
    runs |= {bodies[0]: int(whole.sum()) * tiling.tiles, bodies[1]: (steps - int(whole.sum())) * tiling.tiles}
    placed = np.count_nonzero(np.asarray(last > first) & real)
    runs |= {region: placed for region in step.products() if region not in bodies}
    _, moved = _cache_bytes(sessions, layer, load)
    return Count(runs, moved + 4 * sessions * TOKENS * HEADS * HEAD_DIM)


def _ragged_paged(sessions: int, layer: str, query_block: int, kernel: Kernel, chip: Chip, load: str) -> Count:
    """A grid over query blocks; in it a loop over the sessions in a block; in that one over their key blocks.

    Its grid is not parallel: on v5p it leaves one of the two cores idle. It reads whole blocks from key zero on; of a
    local layer it is given the pages from that of the window's first key on, and a page is whole.
    """
    del chip
    assert kernel.regions is not None
    window, sinks, _, _ = LAYERS[layer]
    end = lengths(load, sessions) + TOKENS
    seen = end - np.maximum(end - (window + sinks), 0) // PAGE * PAGE
    keys = PAGE * min(PAGES_PER_BLOCK, math.ceil(sum(LAYERS[layer][1:3]) / PAGE))
    blocks = int(np.sum(-(-seen // keys)))
    # A grid of one step has no loop of its own.
    loops = [region for region in kernel.regions.loops() if region.total("matmuls")]
    if len(loops) not in (2, 3):
        raise ValueError(f"expected loops over sessions and over key blocks, found {len(loops)}.")
    runs: dict[Region, float] = {loops[0]: math.ceil(sessions * TOKENS / query_block)}
    runs |= {loops[-2]: sessions, loops[-1]: blocks}
    pages = int(np.sum(-(-seen // PAGE)))
    return Count(runs, 4 * pages * PAGE * KV_HEADS * HEAD_DIM + 4 * sessions * TOKENS * HEADS * HEAD_DIM)

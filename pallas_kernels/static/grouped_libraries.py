"""What a user would otherwise pick for a grouped matmul: XLA's `lax.ragged_dot`, and megablox of jax or of tokamax.

All walk a grid (column tiles, visits, K tiles), a visit being a row tile for one of the groups that have rows in it:
where groups meet inside a tile, all of the tile is multiplied once for each of them.
"""

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.static.case import Count, waits
from pallas_kernels.static.chips import Chip
from pallas_kernels.static.compile import Kernel
from pallas_kernels.static.schedule import Region

# What to compile, and the shapes of its arguments.
Built = tuple[Callable[..., Any], tuple[Any, ...]]


def _shapes(m: int, k: int, n: int, experts: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    return (
        jax.ShapeDtypeStruct((m, k), jnp.bfloat16),
        jax.ShapeDtypeStruct((experts, k, n), jnp.bfloat16),
        jax.ShapeDtypeStruct((experts,), jnp.int32),
    )


def ragged_dot(m: int, k: int, n: int, experts: int) -> Built:
    """XLA's own lowering; on a TPU it is a kernel too, whose tiles stand in the compiled program."""

    def f(lhs: jax.Array, rhs: jax.Array, sizes: jax.Array) -> jax.Array:
        return jax.lax.ragged_dot(lhs, rhs, sizes, preferred_element_type=jnp.bfloat16)

    return f, _shapes(m, k, n, experts)


def megablox(m: int, k: int, n: int, experts: int, tiles: tuple[int, int, int]) -> Built:
    """jax's megablox with the given tiles of (rows, K, columns)."""
    from jax.experimental.pallas.ops.tpu.megablox import gmm

    def f(lhs: jax.Array, rhs: jax.Array, sizes: jax.Array) -> jax.Array:
        return gmm(lhs, rhs, sizes, preferred_element_type=jnp.bfloat16, tiling=tuple(tiles))

    return f, _shapes(m, k, n, experts)


def tokamax(m: int, k: int, n: int, experts: int, tiles: tuple[int, int, int]) -> Built:
    """tokamax's own megablox, on the same grid; its public `ragged_dot` finds tiles only by tuning on a chip."""
    from tokamax._src.ops.ragged_dot.pallas_mosaic_tpu_kernel import gmm

    def f(lhs: jax.Array, rhs: jax.Array, sizes: jax.Array) -> jax.Array:
        dtype, precision = jnp.dtype(jnp.bfloat16), jax.lax.Precision.DEFAULT
        return gmm(lhs, rhs, group_sizes=sizes, out_dtype=dtype, precision=precision, tiling=tuple(tiles))

    return f, _shapes(m, k, n, experts)


def installed() -> dict[str, str]:
    """The functions of this module that take tiles and can be imported, and the names of their kernels."""
    return {"megablox": "gmm"} | ({"tokamax": "gmm_megablox"} if importlib.util.find_spec("tokamax") else {})


def megablox_tiles(k: int, n: int) -> list[tuple[int, int, int]]:
    """Tiles worth a try: all of K at once, so that a group's weights are fetched once, and as wide as VMEM allows.

    A wider search (K cut in pieces of 1024 and 2048, narrower columns) found none that is faster at the workloads here.
    Those that do not fit are refused by the compiler: megablox takes the default limit of 16 MiB.
    """
    wide = 2**21 // k
    tiles = [(128, k, wide), (256, k, wide), (512, k, wide), (512, k, wide // 2)]
    return [each for each in tiles if n % each[2] == 0]


def visits(sizes: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The row tile and the group of each visit, in order; an empty group has none."""
    ends = np.cumsum(sizes)
    starts = ends - sizes
    first, last = starts // rows, (ends + rows - 1) // rows
    groups = np.repeat(np.arange(len(sizes)), np.where(sizes > 0, last - first, 0))
    tiles = [np.arange(a, b) for a, b, size in zip(first, last, sizes, strict=True) if size > 0]
    return (np.concatenate(tiles) if tiles else np.zeros(0, int)), groups


def steps(sizes: np.ndarray, k: int, n: int, tiles: tuple[int, int, int], cores: int) -> int:
    """Steps of the grid on the busiest core; the columns are cut over the cores."""
    return -(-math.ceil(n / tiles[2]) // cores) * len(visits(sizes, tiles[0])[0]) * math.ceil(k / tiles[1])


def transfers(sizes: np.ndarray, k: int, n: int, tiles: tuple[int, int, int]) -> np.ndarray:
    """Bytes in bfloat16 that the pipeline moves for each step of one column tile; its width may be a fraction.

    A block is fetched where its index differs from the step before, and written where it differs from the one after.
    """
    rows, depth, columns = tiles
    tile, group = visits(sizes, rows)
    k_tiles, width = math.ceil(k / depth), n / math.ceil(n / columns)
    new_tile, new_group = (np.diff(x, prepend=-1) != 0 for x in (tile, group))
    lhs, rhs = (np.repeat(new, k_tiles) | (k_tiles > 1) for new in (new_tile, new_group))
    out = np.repeat(np.append(new_tile[1:], True), k_tiles) & (np.arange(len(tile) * k_tiles) % k_tiles == k_tiles - 1)
    return 2 * (lhs * rows * depth + rhs * depth * width + out * rows * width)


def hbm_bytes(sizes: np.ndarray, k: int, n: int, tiles: tuple[int, int, int]) -> int:
    """All bytes of a call."""
    return round(float(transfers(sizes, k, n, tiles).sum()) * math.ceil(n / tiles[2]))


def runs(kernel: Region, steps: int, k_tiles: int) -> dict[Region, float]:
    """How often each region of either kernel runs on a core.

    Of megablox's two bodies the longer, which also stores, runs for the last tile of K.
    """
    loop = kernel.grid()
    bodies = sorted(loop.products(), key=lambda region: region.own)
    counts: dict[Region, float] = {loop: steps}
    if len(bodies) == 2:
        counts |= {bodies[0]: steps * (1 - 1 / k_tiles), bodies[1]: steps / k_tiles}
    for region in loop.walk():
        # The accumulator is cleared for the first tile of K alone.
        if region.kind == "branch" and not region.total("matmuls"):
            counts[region] = steps / k_tiles
    return counts


def count(
    kernel: Kernel, chip: Chip, sizes: np.ndarray, k: int, n: int, tiles: tuple[int, int, int] | None = None
) -> Count:
    """The steps of either kernel for these group sizes; without `tiles`, of those that XLA chose."""
    if tiles is None and kernel.tiles is not None:
        tiles = (kernel.tiles[0], kernel.tiles[1], kernel.tiles[2])
    if tiles is None or kernel.regions is None:
        raise ValueError("the compiled program does not say which tiles XLA chose.")
    grid = steps(sizes, k, n, tiles, chip.cores)
    turns = runs(kernel.regions, grid, math.ceil(k / tiles[1]))
    moved = transfers(sizes, k, n, tiles)
    columns = math.ceil(n / tiles[2])
    waiting = waits(np.full(len(moved), kernel.regions.spent("cycles", turns) / grid), moved, chip)
    return Count(turns, moved.sum() * columns, waiting * math.ceil(columns / chip.cores))

"""The experts of a few tokens on a TPU: each needed expert's weights cross HBM once, everything else stays in VMEM.

With few tokens the time goes into reading weights, and the kernel is built around that stream. The distinct experts
that any token chose, in rising order, are prefetched as scalars and pick the weight blocks in the index maps; their
number is the length of the grid, so an expert that nobody chose costs nothing. A step takes one tile of F of one
expert: gate and up over its tokens, ``silu(gate) * up``, and that tile's part of down. Meanwhile Pallas's pipeline
fetches the next tile.

An expert has few of the tokens, and all of them would keep the matrix unit busy for longer than int8 weights take to
come. So with its first tile its tokens' rows are gathered, one below the other, and after its last one what they got
is added to their rows of y, which stays in VMEM in float32 over the whole grid. Rows move one by one, so that a token's
sum has the same terms in the same order whoever else is there, and NaN stays with those who chose it. Tiles of F do
not depend on how many tokens there are.

A v5p device has two cores: each takes half of F, and the two halves of y are added outside.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels import platform

# With more tokens the matrix unit, not HBM, is the limit: `grouped_matmul` is for them.
MAX_TOKENS = 128
LANES = 128
# Rows of a tile of bfloat16, as many as most experts have tokens; and of float32, in which `down_scale` is fetched.
ROWS, SCALE_ROWS = 16, 8
# Of VMEM, what the blocks may take. Nothing is computed until the first blocks are there, so they are not larger
# than pays for a step.
VMEM_SHARE, BLOCK_BYTES = 0.5, 8 << 20
# VMEM for the compiler's own temporaries.
HEADROOM = 16 << 20


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How a call is cut.

    Attributes:
      rows: tokens, rounded up. d: their width, rounded up. f: columns of the hidden layer in a step.
      cores: TensorCores that share F. steps: tiles of F of one expert on one core.
      vmem: bytes of all blocks.
    """

    rows: int
    d: int
    f: int
    cores: int
    steps: int
    vmem: int


def choose_tiles(tokens: int, d: int, f: int, weights_dtype: Any, chip: pltpu.TpuInfo) -> Tiles:
    """Tiles from static shapes and the chip.

    Args:
      tokens: of a call. d, f: widths. weights_dtype: of the experts. chip: facts of the TPU.
    """
    d, f = (-(-size // LANES) * LANES for size in (d, f))
    rows = max(ROWS, pl.next_power_of_2(tokens))
    cores = chip.num_cores if f % (LANES * chip.num_cores) == 0 else 1
    column = 3 * d * jnp.dtype(weights_dtype).itemsize
    row = 6 * 4 * d  # of x and y twice, and of an expert's own rows and results; float32
    budget = min(int(VMEM_SHARE * chip.vmem_capacity_bytes) - MAX_TOKENS * row, 2 * BLOCK_BYTES)
    widths = range(LANES, f // cores + 1, LANES)
    width = max((w for w in widths if f // cores % w == 0 and 2 * w * column <= budget), default=LANES)
    return Tiles(rows, d, width, cores, f // cores // width, 2 * width * column + rows * row)


def needed_experts(expert_ids: Int[Array, "t k"], experts: int) -> tuple[Int[Array, " s"], Int[Array, ""]]:
    """The distinct experts of all tokens, rising, and how many they are; S = min(E, T k), the most there can be.

    With none at all one is still named, since a grid may not be empty; no token has chosen it.
    """
    numbers = jnp.arange(experts, dtype=jnp.int32)
    used = jnp.any(expert_ids.reshape(-1, 1) == numbers, axis=0)
    order = jnp.sort(jnp.where(used, numbers, experts))[: min(experts, expert_ids.size)]
    return jnp.minimum(order, experts - 1), jnp.maximum(jnp.sum(used, dtype=jnp.int32), 1)


def rows_by_expert(
    expert_ids: Int[Array, "t k"], weights: Float[Array, "t k"], experts: int
) -> tuple[Int[Array, " e"], Int[Array, " e"], Int[Array, " r"], Float[Array, " r"]]:
    """Each expert's tokens, rising, one expert after the other, in R = T k places.

    Returns:
      Where each expert's begin, and how many they are; the token at each place, and its weight.
    """
    hot = expert_ids[:, :, None] == jnp.arange(experts)
    chosen = jnp.any(hot, axis=1).astype(jnp.int32)  # an expert that a token named twice has it once
    sizes = jnp.sum(chosen, axis=0)
    begins = jnp.cumsum(sizes) - sizes
    place = jnp.sum(jnp.where(hot, (begins + jnp.cumsum(chosen, axis=0) - chosen)[:, None], 0), axis=2)
    place = jnp.where(expert_ids < experts, place, expert_ids.size).reshape(-1, 1)
    # By comparison: a scatter would go one by one.
    here = place == jnp.arange(expert_ids.size)
    token = jnp.arange(expert_ids.size, dtype=jnp.int32)[:, None] // expert_ids.shape[1]
    rows = jnp.max(jnp.where(here, token, 0), axis=0)
    return begins, sizes, rows, jnp.sum(jnp.where(here, weights.reshape(-1, 1), 0), axis=0)


def blocks(tiles: Tiles, quantised: bool) -> list[pl.BlockSpec]:
    """What of x, gate, up, down (and both scales) a step of the grid (core, expert, tile of F) reads.

    Of the scalars the index maps take the needed experts, and the first expert of the layer.
    """
    d, f, steps = tiles.d, tiles.f, tiles.steps
    specs = [
        pl.BlockSpec((tiles.rows, d), lambda *_: (0, 0)),
        # Gate and up apart: three streams of equal length.
        pl.BlockSpec((1, 1, d, f), lambda core, at, tile, e, one, *_: (one[0] + e[at], 0, 0, core * steps + tile)),
        pl.BlockSpec((1, 1, d, f), lambda core, at, tile, e, one, *_: (one[0] + e[at], 1, 0, core * steps + tile)),
        pl.BlockSpec((1, f, d), lambda core, at, tile, e, one, *_: (one[0] + e[at], core * steps + tile, 0)),
    ]
    if quantised:
        specs += [
            pl.BlockSpec((1, 2, f), lambda core, at, tile, e, *_: (e[at], 0, core * steps + tile)),
            pl.BlockSpec((SCALE_ROWS, d), lambda core, at, tile, e, *_: (e[at] // SCALE_ROWS, 0)),
        ]
    return specs


def pieces(tiles: Tiles) -> tuple[int, ...]:
    """Rows that are multiplied at once: the fewest of these that hold an expert's tokens."""
    return tuple(sorted({ROWS, tiles.rows}))


def _kernel(
    order_ref: Any,
    _first_ref: Any,
    begins_ref: Any,
    sizes_ref: Any,
    rows_ref: Any,
    weights_ref: Any,
    x_ref: Any,
    gate_ref: Any,
    up_ref: Any,
    down_ref: Any,
    *refs: Any,
    tiles: Tiles,
    dtype: Any,
) -> None:
    """One tile of one expert, for this core's y [1, R, D]; of int8 weights the scales come before y."""
    *scales, y_ref, own, part = refs
    at, tile = pl.program_id(1), pl.program_id(2)
    begin, size = begins_ref[at], sizes_ref[at]

    @pl.when((at == 0) & (tile == 0))
    def _() -> None:
        y_ref[...] = jnp.zeros(y_ref.shape, y_ref.dtype)

    @pl.when(tile == 0)
    def _() -> None:
        def gather(i: Any, _: None) -> None:
            own[pl.ds(i, 1)] = x_ref[pl.ds(rows_ref[begin + i], 1)]

        lax.fori_loop(0, size, gather, None)

    # Float32 is multiplied as float32, which the matrix unit does in several passes.
    precision = lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT

    def product(rows: Array, weight: Array) -> Array:
        weight = weight.astype(dtype)
        return jnp.dot(rows.astype(dtype), weight, preferred_element_type=jnp.float32, precision=precision)

    def multiply(rows: int) -> None:
        x = own[:rows]
        gate, up = product(x, gate_ref[0, 0]), product(x, up_ref[0, 0])
        if scales:  # a channel's scale is a factor of its column of the product: the weights need no arithmetic
            gate, up = gate * scales[0][0, :1], up * scales[0][0, 1:]
        y = product(jax.nn.silu(gate) * up, down_ref[0])
        part[:rows] = jnp.where(tile == 0, y, part[:rows] + y) if tiles.steps > 1 else y

    for below, rows in zip((0, *pieces(tiles)), pieces(tiles), strict=False):
        pl.when((size > below) & (size <= rows))(functools.partial(multiply, rows))

    @pl.when(tile == tiles.steps - 1)
    def _() -> None:
        def add(i: Any, _: None) -> None:
            at_row, mine = pl.ds(rows_ref[begin + i], 1), weights_ref[begin + i] * part[pl.ds(i, 1)]
            if scales:
                mine = mine * scales[1][pl.ds(order_ref[at] % SCALE_ROWS, 1)]
            y_ref[0, at_row] = y_ref[0, at_row] + mine

        lax.fori_loop(0, size, add, None)


def expert_gemv(
    x: Float[Array, "t d"],
    expert_ids: Int[Array, "t k"],
    weights: Float[Array, "t k"],
    gate_up: Float[Array, "*l e 2 d f"],
    down: Float[Array, "*l e f d"],
    gate_up_scale: Float[Array, "*l e 2 f"] | None = None,
    down_scale: Float[Array, "*l e d"] | None = None,
    layer: Int[Array, ""] | None = None,
) -> Float[Array, "t d"]:
    """See `api.expert_gemv`."""
    (tokens, width), (experts, _, _, f) = x.shape, gate_up.shape[-4:]
    if tokens > MAX_TOKENS:
        raise ValueError(f"expert_gemv takes at most {MAX_TOKENS} tokens on a TPU, got {tokens}: use grouped_matmul.")
    tiles = choose_tiles(tokens, width, f, gate_up.dtype, platform.chip())
    order, count = needed_experts(expert_ids, experts)
    begins, sizes, rows, factors = rows_by_expert(expert_ids, weights.astype(jnp.float32), experts)
    # The layers' experts in one row: the index maps reach into the weights of all layers, so that none are copied. Of
    # the scales, which are small, this layer's are: XLA would fetch those of all layers to have them near.
    first = jnp.int32(0) if layer is None else layer.astype(jnp.int32) * experts
    gate_up, down = gate_up.reshape(-1, *gate_up.shape[-3:]), down.reshape(-1, *down.shape[-2:])
    operands = [
        _pad(x.astype(jnp.float32), tiles.rows, LANES),
        *[_pad(gate_up, 1, 1, LANES, LANES)] * 2,
        _pad(down, 1, LANES, LANES),
    ]
    if gate_up_scale is not None and down_scale is not None:
        if layer is not None:
            gate_up_scale, down_scale = gate_up_scale[layer], down_scale[layer]
        operands += [_pad(gate_up_scale, 1, 1, LANES), _pad(down_scale, SCALE_ROWS, LANES)]
    most = order.shape[0]
    y = pl.pallas_call(
        functools.partial(_kernel, tiles=tiles, dtype=x.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=6,
            grid=(tiles.cores, count, tiles.steps),
            in_specs=blocks(tiles, gate_up_scale is not None),
            out_specs=pl.BlockSpec((1, tiles.rows, tiles.d), lambda core, *_: (core, 0, 0)),
            scratch_shapes=[pltpu.VMEM((tiles.rows, tiles.d), jnp.float32)] * 2,
        ),
        out_shape=jax.ShapeDtypeStruct((tiles.cores, tiles.rows, tiles.d), jnp.float32),
        compiler_params=platform.compiler_params(("parallel", "arbitrary", "arbitrary"), tiles.vmem + HEADROOM),
        cost_estimate=pl.CostEstimate(
            flops=6 * expert_ids.size * width * f,
            bytes_accessed=3 * width * f * gate_up.dtype.itemsize * most,
            transcendentals=expert_ids.size * f,
        ),
        interpret=platform.interpret(),
        name="expert_gemv",
    )(order, first.reshape(1), begins[order], sizes[order], rows, factors, *operands)
    return functools.reduce(jnp.add, list(y))[:tokens, :width].astype(x.dtype)


def _pad(x: Array, *multiples: int, value: float = 0) -> Array:
    """Filled up to a multiple along each axis; nothing where it already is one, as the weights at every real width."""
    widths = [(0, -size % multiple) for size, multiple in zip(x.shape, multiples, strict=True)]
    return jnp.pad(x, widths, constant_values=value) if any(after for _, after in widths) else x


def hbm_bytes(
    expert_ids: np.ndarray, experts: int, d: int, f: int, weights_dtype: Any, chip: pltpu.TpuInfo
) -> tuple[int, int]:
    """What one call moves through HBM, counted by walking its grid: a block is fetched where its index changes.

    Args:
      expert_ids: [T, k], actual choices. experts, d, f, weights_dtype: of the weights. chip: facts of the TPU.

    Returns:
      All bytes that the kernel reads and writes, and the bytes of the weights of the distinct experts.
    """
    tiles = choose_tiles(len(expert_ids), d, f, weights_dtype, chip)
    order = np.unique(expert_ids[expert_ids < experts])
    quantised = jnp.issubdtype(weights_dtype, jnp.integer)
    wide = [jnp.float32, *[weights_dtype] * 3, jnp.float32, jnp.float32]
    total = 4 * tiles.cores * tiles.rows * tiles.d  # y
    for spec, element in zip(blocks(tiles, quantised), wide, strict=False):
        last = None
        for core, at, tile in np.ndindex(tiles.cores, max(len(order), 1), tiles.steps):
            needed = order if len(order) else np.array([experts - 1])
            index = (core, *spec.index_map(core, at, tile, needed, (0,)))
            total += (index != last) * math.prod(spec.block_shape) * jnp.dtype(element).itemsize
            last = index
    return total, 3 * len(order) * d * f * jnp.dtype(weights_dtype).itemsize

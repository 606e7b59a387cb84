"""The experts of a few tokens on a TPU: each needed expert's weights cross HBM once, everything else stays in VMEM.

With few tokens the time goes into reading weights, and the kernel is built around that stream. The distinct experts
that any token chose, in rising order, are prefetched as scalars and pick the weight blocks in the index maps; their
number is the length of the grid, so an expert that nobody chose costs nothing. A step takes one tile of F of one
expert: gate and up over all tokens, ``silu(gate) * up``, that tile's part of down, and the weighted sum into y, which
stays in VMEM in float32 over the whole grid. Meanwhile Pallas's pipeline fetches the next tile.

Every token goes through every needed expert, in rows of the matrix unit that would otherwise idle. A token that did
not choose the expert is left alone by a select, not by a zero weight: its sum has the same terms in the same order
whoever else is there, and NaN stays with those who chose it. Tiles of F do not depend on how many tokens there are.

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

# An id that is no expert's.
NOBODY = -1
# With more tokens the matrix unit, not HBM, is the limit: `grouped_matmul` is for them.
MAX_TOKENS = 128
LANES = 128
# Rows of a tile of bfloat16; and of float32, in which a row of `down_scale` is fetched.
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


def choose_tiles(tokens: int, d: int, f: int, weights_dtype: Any, dtype: Any, chip: pltpu.TpuInfo) -> Tiles:
    """Tiles from static shapes and the chip.

    Args:
      tokens: of a call. d, f: widths. weights_dtype, dtype: of the experts and of x. chip: facts of the TPU.
    """
    d, f = (-(-size // LANES) * LANES for size in (d, f))
    rows = max(ROWS, pl.next_power_of_2(tokens))
    cores = chip.num_cores if f % (LANES * chip.num_cores) == 0 else 1
    column = 3 * d * jnp.dtype(weights_dtype).itemsize
    row = 2 * d * (jnp.dtype(dtype).itemsize + 4)
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


def blocks(tiles: Tiles, k: int, quantised: bool) -> list[pl.BlockSpec]:
    """What of x, ids, weights, gate, up, down (and both scales) a step of the grid (core, expert, tile of F) reads."""
    rows, d, f, steps = tiles.rows, tiles.d, tiles.f, tiles.steps

    def whole(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda *_: (0, 0))

    specs = [
        whole(rows, d),
        whole(rows, k),
        whole(rows, k),
        # Gate and up apart: three streams of equal length.
        pl.BlockSpec((1, 1, d, f), lambda core, at, tile, order: (order[at], 0, 0, core * steps + tile)),
        pl.BlockSpec((1, 1, d, f), lambda core, at, tile, order: (order[at], 1, 0, core * steps + tile)),
        pl.BlockSpec((1, f, d), lambda core, at, tile, order: (order[at], core * steps + tile, 0)),
    ]
    if quantised:
        specs += [
            pl.BlockSpec((1, 2, f), lambda core, at, tile, order: (order[at], 0, core * steps + tile)),
            pl.BlockSpec((SCALE_ROWS, d), lambda core, at, tile, order: (order[at] // SCALE_ROWS, 0)),
        ]
    return specs


def _kernel(
    order_ref: Any, x_ref: Any, ids_ref: Any, weights_ref: Any, gate_ref: Any, up_ref: Any, down_ref: Any, *refs: Any
) -> None:
    """One tile of one expert, added to this core's y [1, R, D]; of int8 weights the scales come before y."""
    *scales, y_ref = refs
    at, tile = pl.program_id(1), pl.program_id(2)
    expert = order_ref[at]

    @pl.when((at == 0) & (tile == 0))
    def _() -> None:
        y_ref[...] = jnp.zeros(y_ref.shape, y_ref.dtype)

    x = x_ref[...]
    # Float32 is multiplied as float32, which the matrix unit does in several passes.
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else lax.Precision.DEFAULT

    def product(rows: Array, weight: Array) -> Array:
        return jnp.dot(rows, weight.astype(rows.dtype), preferred_element_type=jnp.float32, precision=precision)

    gate, up = product(x, gate_ref[0, 0]), product(x, up_ref[0, 0])
    if scales:  # a channel's scale is a factor of its column of the product: the weights need no arithmetic
        gate, up = gate * scales[0][0, :1], up * scales[0][0, 1:]
    part = product((jax.nn.silu(gate) * up).astype(x.dtype), down_ref[0])
    if scales:
        part = part * scales[1][pl.ds(expert % SCALE_ROWS, 1)]
    mine = ids_ref[...] == expert
    weight = jnp.sum(jnp.where(mine, weights_ref[...], 0), axis=1, keepdims=True)
    chose = jnp.sum(jnp.where(mine, 1.0, 0.0), axis=1, keepdims=True) > 0
    y_ref[0] = jnp.where(chose, y_ref[0] + weight * part, y_ref[0])


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
    (tokens, width), (experts, _, _, f), k = x.shape, gate_up.shape[-4:], expert_ids.shape[1]
    if tokens > MAX_TOKENS:
        raise ValueError(f"expert_gemv takes at most {MAX_TOKENS} tokens on a TPU, got {tokens}: use grouped_matmul.")
    tiles = choose_tiles(tokens, width, f, gate_up.dtype, x.dtype, platform.chip())
    order, count = needed_experts(expert_ids, experts)
    # The layers' experts in one row: the index maps reach into the weights of all layers, so that none are copied.
    first = jnp.int32(0) if layer is None else layer.astype(jnp.int32) * experts
    expert_ids = jnp.where(expert_ids < experts, expert_ids + first, NOBODY)
    gate_up, down = gate_up.reshape(-1, *gate_up.shape[-3:]), down.reshape(-1, *down.shape[-2:])
    operands = [
        _pad(x, tiles.rows, LANES),
        _pad(expert_ids, tiles.rows, 1, value=NOBODY),
        _pad(weights.astype(jnp.float32), tiles.rows, 1),
        *[_pad(gate_up, 1, 1, LANES, LANES)] * 2,
        _pad(down, 1, LANES, LANES),
    ]
    if gate_up_scale is not None and down_scale is not None:
        operands += [
            _pad(gate_up_scale.reshape(-1, 2, f), 1, 1, LANES),
            _pad(down_scale.reshape(-1, width), SCALE_ROWS, LANES),
        ]
    most = order.shape[0]
    y = pl.pallas_call(
        _kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(tiles.cores, count, tiles.steps),
            in_specs=blocks(tiles, k, gate_up_scale is not None),
            out_specs=pl.BlockSpec((1, tiles.rows, tiles.d), lambda core, *_: (core, 0, 0)),
        ),
        out_shape=jax.ShapeDtypeStruct((tiles.cores, tiles.rows, tiles.d), jnp.float32),
        compiler_params=platform.compiler_params(("parallel", "arbitrary", "arbitrary"), tiles.vmem + HEADROOM),
        cost_estimate=pl.CostEstimate(
            flops=6 * tiles.rows * width * f * most,
            bytes_accessed=3 * width * f * gate_up.dtype.itemsize * most,
            transcendentals=tiles.rows * f * most,
        ),
        interpret=platform.interpret(),
        name="expert_gemv",
    )(order + first, *operands)
    return functools.reduce(jnp.add, list(y))[:tokens, :width].astype(x.dtype)


def _pad(x: Array, *multiples: int, value: float = 0) -> Array:
    """Filled up to a multiple along each axis; nothing where it already is one, as the weights at every real width."""
    widths = [(0, -size % multiple) for size, multiple in zip(x.shape, multiples, strict=True)]
    return jnp.pad(x, widths, constant_values=value) if any(after for _, after in widths) else x


def hbm_bytes(
    expert_ids: np.ndarray, experts: int, d: int, f: int, weights_dtype: Any, dtype: Any, chip: pltpu.TpuInfo
) -> tuple[int, int]:
    """What one call moves through HBM, counted by walking its grid: a block is fetched where its index changes.

    Args:
      expert_ids: [T, k], actual choices. experts, d, f: of the weights. weights_dtype, dtype: of the experts and of x.
      chip: facts of the TPU.

    Returns:
      All bytes that the kernel reads and writes, and the bytes of the weights of the distinct experts.
    """
    tiles = choose_tiles(len(expert_ids), d, f, weights_dtype, dtype, chip)
    order = np.unique(expert_ids[expert_ids < experts])
    quantised = jnp.issubdtype(weights_dtype, jnp.integer)
    wide = [dtype, jnp.int32, jnp.float32, *[weights_dtype] * 3, jnp.float32, jnp.float32]
    total = 4 * tiles.cores * tiles.rows * tiles.d  # y
    for spec, element in zip(blocks(tiles, expert_ids.shape[1], quantised), wide, strict=False):
        last = None
        for core, at, tile in np.ndindex(tiles.cores, max(len(order), 1), tiles.steps):
            index = (core, *spec.index_map(core, at, tile, order if len(order) else np.array([experts - 1])))
            total += (index != last) * math.prod(spec.block_shape) * jnp.dtype(element).itemsize
            last = index
    return total, 3 * len(order) * d * f * jnp.dtype(weights_dtype).itemsize

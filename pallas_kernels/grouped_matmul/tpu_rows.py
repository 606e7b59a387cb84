"""Grouped matmul on a TPU: tiles of rows that begin where their group begins.

With many fine-grained experts the edges of groups are the problem: a grid of fixed row tiles, as the libraries have
it, multiplies a tile once for every group that touches it. Here a tile belongs to one group. It starts at the
group's first row, rounded down to `ALIGN` rows (what a DMA may address), and the matrix unit runs over as many rows
as there are: over a full tile at once, else in pieces of which the last is rounded up to one of a few static sizes
(`PIECES`).

A step of the grid is (group, column tile, row tile), row tiles innermost, so that a group's weights cross HBM once.
The weights come through Pallas's own pipeline; rows come and go by DMAs of this kernel, since only they know where a
group ends. The block of `ALIGN` rows where two groups meet is carried in VMEM from one group to the next: each block
of the output is written once, by its last group, whole.

Row tiles, column tiles and pieces depend on widths and on the chip, never on how many rows there are.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels import platform
from pallas_kernels.grouped_matmul.tiles import ALIGN, STRIP_WORK, Tiles, choose_tiles, pad, precision, schedule
from pallas_kernels.int8 import Int8Weight

# Rows that the matrix unit runs over at once: of a full tile, and of a tile that is not.
TILE_ROWS = 768
PIECES = (32, 64, 96, 128, 160, 192, 224, 256)

# What becomes of the planes of a weight [E, P, ...]: a result each, silu(first) * second, or their sum.
Combine = Literal["each", "swiglu", "sum"]


def _pieces(rows: Any, limit: int) -> list[tuple[Any, Any, int]]:
    """A number of rows, a multiple of ALIGN, as DMAs of static sizes: (is there one, its first row, its rows)."""
    size = 1 << (limit - 1).bit_length()
    pieces = []
    while size >= ALIGN:
        if size <= limit:
            first = pl.multiple_of(rows & ~(2 * size - 1), ALIGN)
            pieces.append(((rows & size) != 0, first, size))
        size //= 2
    return pieces


def copy_rows(src: Any, dst: Any, sem: Any, src_row: Any, dst_row: Any, rows: Any, limit: int, wait: bool) -> None:
    """Starts, or waits for, the copies of `rows` rows; src and dst are refs [P, rows, columns]."""
    for present, first, size in _pieces(rows, limit):

        @pl.when(present)
        def _(first: Any = first, size: int = size) -> None:
            copy = pltpu.make_async_copy(
                src.at[:, pl.ds(pl.multiple_of(src_row + first, ALIGN), size)],
                dst.at[:, pl.ds(pl.multiple_of(dst_row + first, ALIGN), size)],
                sem,
            )
            copy.wait() if wait else copy.start()


@dataclasses.dataclass(frozen=True)
class Step:
    """One step as read from scalar memory: row numbers are of the whole array."""

    group: Any
    column: Any
    base: Any  # the tile's first row, a multiple of ALIGN
    low: Any  # its group's rows in it: low <= row < high
    high: Any

    @classmethod
    def read(cls, step: Any, refs: tuple[Any, ...], rows: int) -> "Step":
        """Reads a step's numbers; `rows` is the size of a row tile."""
        group_ref, column_ref, base_ref, end_ref = refs
        group, base = group_ref[step], pl.multiple_of(base_ref[step], ALIGN)
        start = jnp.where(group == 0, 0, end_ref[jnp.maximum(group - 1, 0)])
        high = jnp.minimum(end_ref[group], base + rows)
        return cls(group, column_ref[step], base, jnp.maximum(start, base), high)

    def same_rows(self, other: "Step") -> Any:
        """Whether both are of the same rows of the same group."""
        return (self.group == other.group) & (self.base == other.base)

    @property
    def loaded(self) -> Any:
        """Rows that are read, a multiple of ALIGN."""
        return (self.high - self.base + ALIGN - 1) & ~(ALIGN - 1)

    @property
    def written(self) -> Any:
        """Rows that are complete with this tile, a multiple of ALIGN; the next group goes on after them."""
        return (self.high - self.base) & ~(ALIGN - 1)


def _forward_kernel(
    group_ref: Any,
    column_ref: Any,
    base_ref: Any,
    end_ref: Any,
    steps_ref: Any,
    _first_ref: Any,
    lhs_hbm: Any,
    *refs: Any,
    tiles: Tiles,
    experts: int,
    combine: Combine,
    transpose: bool,
    scaled: bool,
    int8: bool,
) -> None:
    """One row tile times one column tile of its group's weights, double-buffered on both sides."""
    scale_hbm, refs = (refs[0], refs[1:]) if scaled else (None, refs)
    of_columns, refs = (refs[0], refs[1:]) if int8 else (None, refs)
    rhs, out_hbm, lhs, out, carry, lhs_slot, sems, *scales = refs
    meta = (group_ref, column_ref, base_ref, end_ref)
    core, step, steps = pl.program_id(0), pl.program_id(1), steps_ref[0]
    now = Step.read(step, meta, tiles.rows)
    before, after = (Step.read(i, meta, tiles.rows) for i in (jnp.maximum(step - 1, 0), step + 1))
    limit = min(tiles.rows, out_hbm.shape[1])
    is_real = now.group < experts

    def load(of: Step, slot: Any, wait: bool) -> None:
        copy_rows(lhs_hbm, lhs.at[slot], sems.at[0, slot], of.base, 0, of.loaded, limit, wait)
        if scaled:
            rows = scale_hbm.at[pl.ds(of.base // ALIGN, tiles.rows // ALIGN)]
            copy = pltpu.make_async_copy(rows, scales[0].at[slot], sems.at[2, slot])
            copy.wait() if wait else copy.start()

    def store(of: Step, slot: Any, wait: bool) -> None:
        column = pl.multiple_of((core * tiles.core_columns + of.column) * tiles.columns, tiles.columns)
        dst = out_hbm.at[:, :, pl.ds(column, tiles.columns)]
        copy_rows(out.at[slot], dst, sems.at[1, slot], 0, of.base, of.written, limit, wait)

    @pl.when(step == 0)
    def _() -> None:
        lhs_slot[0] = 0

        @pl.when(is_real)
        def _() -> None:
            load(now, 0, wait=False)

    # Rows that are multiplied by one column tile after another are loaded once.
    here, slot = lhs_slot[0], step % 2
    goes_on = (step + 1 < steps) & (after.group < experts) & ~after.same_rows(now)

    @pl.when(goes_on)
    def _() -> None:
        load(after, 1 - here, wait=False)
        lhs_slot[0] = 1 - here

    @pl.when(is_real & ((step == 0) | ~now.same_rows(before)))
    def _() -> None:
        load(now, here, wait=True)
        if scaled:
            scales[1][...] = _column(scales[0][here])

    @pl.when(step >= 2)
    def _() -> None:
        store(Step.read(step - 2, meta, tiles.rows), slot, wait=True)

    def multiply(first: Any, rows: int) -> None:
        at = pl.ds(first, rows)
        scale = scales[1].at[at] if scaled else None
        _multiply(lhs.at[here, :, at], rhs, of_columns, out.at[slot, :, at], scale, combine, transpose, tiles)

    size = now.high - now.base
    full = size > tiles.rows - PIECES[0]

    @pl.when(is_real & full)
    def _() -> None:
        multiply(0, tiles.rows)

    def piece(i: Any, _: None) -> None:
        first = pl.multiple_of(i * PIECES[-1], PIECES[-1])
        left = jnp.minimum(size - first, PIECES[-1])
        for below, rows in zip((0, *PIECES), PIECES, strict=False):
            pl.when((left > below) & (left <= rows))(functools.partial(multiply, first, rows))

    pieces = (size + PIECES[-1] - 1) // PIECES[-1]
    lax.fori_loop(0, jnp.where(is_real & ~full, pieces, 0), piece, None)

    @pl.when(~is_real)  # rows past the last group
    def _() -> None:
        out[slot] = jnp.zeros(out.shape[1:], out.dtype)

    _meet(now, out.at[slot], carry.at[now.column])
    store(now, slot, wait=False)

    @pl.when(step == steps - 1)
    def _() -> None:
        @pl.when(step >= 1)
        def _() -> None:
            store(before, 1 - slot, wait=True)

        store(now, slot, wait=True)


def _column(scale: Float[Array, "n 1 lanes"]) -> Float[Array, "rows 1"]:
    """Factors of rows, `ALIGN` of them in the first lanes of each vector, one below the other."""
    shape = (scale.shape[0], ALIGN, scale.shape[2])
    own = lax.broadcasted_iota(jnp.int32, shape, 1) == lax.broadcasted_iota(jnp.int32, shape, 2)
    return jnp.sum(jnp.where(own, scale, 0), axis=2, keepdims=True).reshape(-1, 1)


def _meet(now: Step, out: Any, carry: Any) -> None:
    """Takes the rows before this group from the carry, and leaves there the block that the next group completes."""
    shape = (out.shape[0], ALIGN, out.shape[2])

    @pl.when(now.low > now.base)
    def _() -> None:
        mine = lax.broadcasted_iota(jnp.int32, shape, 1) >= now.low - now.base
        out[:, :ALIGN] = jnp.where(mine, out[:, :ALIGN], carry[...])

    @pl.when((now.high - now.base) & (ALIGN - 1) != 0)
    def _() -> None:
        carry[...] = out[:, pl.ds(pl.multiple_of(now.written, ALIGN), ALIGN)]


def _multiply(
    lhs: Any,
    rhs: Any,
    of_columns: Any,
    out: Any,
    scale: Any,
    combine: Combine,
    transpose: bool,
    tiles: Tiles,
) -> None:
    """Rows [Q, rows, C] times their group's weights, a strip of columns at a time; int8 ones are scaled as results."""
    mxu = precision(lhs.dtype)
    contract = (((1,), (1 if transpose else 0,)), ((), ()))

    width = tiles.strip(tiles.columns, rhs.shape[1] * lhs.shape[2])

    def strip(i: Any, _: None) -> None:
        at = pl.ds(pl.multiple_of(i * width, width), width)

        def product(plane: int) -> Array:
            w = rhs[0, plane, at, :] if transpose else rhs[0, plane, :, at]
            x = lhs[plane if combine == "sum" else 0]
            y = lax.dot_general(x, w.astype(x.dtype), contract, preferred_element_type=jnp.float32, precision=mxu)
            return y if of_columns is None else y * of_columns[0, plane, :, at]

        results = [product(plane) for plane in range(rhs.shape[1])]
        if combine == "swiglu":
            results = [jax.nn.silu(results[0]) * results[1]]
        elif combine == "sum":
            results = [sum(results[1:], results[0])]
        for plane, y in enumerate(results):
            out[plane, :, at] = (y if scale is None else y * scale[...]).astype(out.dtype)

    lax.fori_loop(0, tiles.columns // width, strip, None)


def grouped_planes(
    lhs: Float[Array, "q m c"],
    rhs: "Float[Array, '*l e p c n'] | Int8Weight",
    group_sizes: Int[Array, " e"],
    row_scale: Float[Array, " m"] | None = None,
    layer: Int[Array, ""] | None = None,
    *,
    combine: Combine = "each",
    transpose: bool = False,
) -> Float[Array, "o m n"]:
    """Rows sorted by group times the planes of their group's weight.

    Args:
      lhs: [Q, M, C]; Q is 1, or P for "sum".
      rhs: [E, P, C, N], or [E, P, N, C] with `transpose`; of all layers, [L, ...], with a `layer`. Of lhs's dtype, or
        int8 with a scale a column, without `transpose`.
      group_sizes: int32 [E]; rows past their sum give zero.
      row_scale: [M] float32, a factor of each row of the result.
      layer: int32, which layer of rhs. In a scan over layers a slice of rhs would be a copy of every expert.
      combine: "each": a result a plane [P, M, N]; "swiglu": silu(first) * second [1, M, N]; "sum": over planes, of
        as many planes of lhs [1, M, N].
    """
    q, m, c = lhs.shape
    experts, planes = rhs.shape[-4:-2]
    first = jnp.zeros((1,), jnp.int32) if layer is None else (layer * experts).astype(jnp.int32).reshape(1)
    of_columns = []
    if isinstance(rhs, Int8Weight):  # of the scales this layer's: XLA would fetch those of all layers to have them near
        of_columns, rhs = [pad(rhs.scale if layer is None else rhs.scale[layer], (3, 128))], rhs.values
    rhs = rhs.reshape(-1, *rhs.shape[-3:])
    n = rhs.shape[2] if transpose else rhs.shape[3]
    lhs = pad(lhs, (1, ALIGN), (2, 128))
    rhs = pad(rhs, (2, 128), (3, 128))
    padded_n = rhs.shape[2] if transpose else rhs.shape[3]
    outs = planes if combine == "each" else 1
    vmem = functools.partial(_vmem_bytes, q=q, planes=planes, outs=outs)
    tiles = choose_tiles(vmem, TILE_ROWS, lhs.shape[2], padded_n, 1, lhs.dtype, platform.chip())
    scaled = row_scale is not None
    rows = lhs.shape[1]
    meta = schedule(group_sizes, rows, tiles.rows, tiles.core_columns, rest=True)
    block = (1, planes, tiles.columns, lhs.shape[2]) if transpose else (1, planes, lhs.shape[2], tiles.columns)

    def columns(core: Any, step: Any, group: Any, column: Any, *_: Any) -> tuple[Any, ...]:
        # Past the last group the weights that are there stay.
        return jnp.minimum(group[step], experts - 1), 0, 0, core * tiles.core_columns + column[step]

    def weights(*args: Any) -> tuple[Any, ...]:
        own, _, _, at = columns(*args)
        real = args[-1][0] + own
        return (real, 0, at, 0) if transpose else (real, 0, 0, at)

    in_hbm = pl.BlockSpec(memory_space=pltpu.HBM)
    column_block = pl.BlockSpec((1, planes, 1, tiles.columns), columns)
    scale_operand = []
    if scaled:  # the factors of ALIGN rows side by side: below each other, each would take 512 bytes
        scale = pad(row_scale.astype(jnp.float32)[None], (1, ALIGN)).reshape(-1, 1, ALIGN)
        scale_operand = [jnp.pad(scale, ((0, tiles.rows // ALIGN), (0, 0), (0, 128 - ALIGN)))]
    scratch = [
        pltpu.VMEM((2, q, tiles.rows, lhs.shape[2]), lhs.dtype),
        pltpu.VMEM((2, outs, tiles.rows, tiles.columns), lhs.dtype),
        pltpu.VMEM((tiles.core_columns, outs, ALIGN, tiles.columns), lhs.dtype),
        pltpu.SMEM((1,), jnp.int32),
        pltpu.SemaphoreType.DMA((3, 2)),
    ]
    if scaled:
        scratch += [pltpu.VMEM((2, tiles.rows // ALIGN, 1, 128), jnp.float32), pltpu.VMEM((tiles.rows, 1), jnp.float32)]
    itemsize = lhs.dtype.itemsize
    kernel = functools.partial(
        _forward_kernel,
        tiles=tiles,
        experts=experts,
        combine=combine,
        transpose=transpose,
        scaled=scaled,
        int8=bool(of_columns),
    )
    y = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=6,
            grid=(tiles.cores, meta[-1][0]),
            in_specs=[in_hbm, *([in_hbm] * scaled), *([column_block] * len(of_columns)), pl.BlockSpec(block, weights)],
            out_specs=in_hbm,
            scratch_shapes=scratch,
        ),
        out_shape=jax.ShapeDtypeStruct((outs, rows, padded_n), lhs.dtype),
        compiler_params=platform.compiler_params(("parallel", "arbitrary"), tiles.vmem_limit),
        cost_estimate=pl.CostEstimate(
            flops=2 * m * c * n * planes,
            bytes_accessed=itemsize * (q * m * c + outs * m * n) + rhs.dtype.itemsize * experts * planes * c * n,
            transcendentals=m * n if combine == "swiglu" else 0,
        ),
        interpret=platform.interpret(),
        name=f"grouped_matmul_{combine}" + ("_transposed" if transpose else ""),
    )(*meta, first, lhs, *scale_operand, *of_columns, rhs)
    return y[:, :m, :n]


def _vmem_bytes(rows: int, columns: int, c: int, itemsize: int, *, q: int, planes: int, outs: int) -> int:
    """Rows, weights and results twice, and the float32 products of a strip."""
    products = 8 * planes * rows * min(columns, max(256, STRIP_WORK * 256 // (planes * c)))
    return 2 * itemsize * (q * rows * c + planes * c * columns + outs * rows * columns) + products

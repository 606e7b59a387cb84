"""The gradient of grouped weights on a TPU: each group's rows, transposed, times the gradients of its results.

As in `tpu_rows`, a row tile begins where its group begins. Rows of the neighbours that a tile takes along are
zeroed on both sides of the product (a NaN times zero would stay). A group without rows has one tile, which writes
zeros.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels import platform
from pallas_kernels.grouped_matmul.tiles import ALIGN, STRIP_WORK, Tiles, choose_tiles, pad, precision, schedule
from pallas_kernels.grouped_matmul.tpu_rows import Step, copy_rows

# Rows are what is summed over here, and the matrix unit sums over a whole column of its cells at once.
BRANCHES = (128, 256)  # the last is a row tile


def _kernel(
    group_ref: Any,
    column_ref: Any,
    base_ref: Any,
    end_ref: Any,
    steps_ref: Any,
    lhs_hbm: Any,
    grad_hbm: Any,
    out: Any,
    lhs: Any,
    grad: Any,
    total: Any,
    lhs_slot: Any,
    sems: Any,
    *,
    tiles: Tiles,
    plane_columns: int,
) -> None:
    meta = (group_ref, column_ref, base_ref, end_ref)
    core, step, steps = pl.program_id(0), pl.program_id(1), steps_ref[0]
    now, before, after = (
        Step.read(i, meta, tiles.rows) for i in (step, jnp.maximum(step - 1, 0), jnp.minimum(step + 1, steps - 1))
    )
    limit = min(tiles.rows, lhs_hbm.shape[1])

    def load_lhs(of: Step, slot: Any, wait: bool) -> None:
        copy_rows(lhs_hbm, lhs.at[slot], sems.at[0, slot], of.base, 0, of.loaded, limit, wait)

    def load_grad(of: Step, slot: Any, wait: bool) -> None:
        plane, column = _plane(core, of.column, tiles, plane_columns)
        at = pl.ds(pl.multiple_of(column * tiles.columns, tiles.columns), tiles.columns)
        src = grad_hbm.at[pl.ds(plane, 1), :, at]
        copy_rows(src, grad.at[slot], sems.at[1, slot], of.base, 0, of.loaded, limit, wait)

    @pl.when(step == 0)
    def _() -> None:
        lhs_slot[0] = 0
        load_lhs(now, 0, wait=False)
        load_grad(now, 0, wait=False)

    here, slot = lhs_slot[0], step % 2

    @pl.when(step + 1 < steps)
    def _() -> None:
        load_grad(after, 1 - slot, wait=False)

    @pl.when((step + 1 < steps) & ~after.same_rows(now))
    def _() -> None:
        load_lhs(after, 1 - here, wait=False)
        lhs_slot[0] = 1 - here

    @pl.when((step == 0) | ~now.same_rows(before))
    def _() -> None:
        load_lhs(now, here, wait=True)

    load_grad(now, slot, wait=True)
    first = (step == 0) | (before.group != now.group) | (before.column != now.column)
    last = (step == steps - 1) | (after.group != now.group) | (after.column != now.column)
    for below, rows in zip((-1, *BRANCHES), BRANCHES, strict=False):

        @pl.when((now.high - now.base > below) & (now.high - now.base <= rows))
        def _(rows: int = rows) -> None:
            _add(now, lhs.at[here, 0], grad.at[slot, 0], total, out.at[0, 0], rows, first, last, tiles)


def _plane(core: Any, column: Any, tiles: Tiles, plane_columns: int) -> tuple[Any, Any]:
    """The plane that a core's column tile lies in, and which of the plane's column tiles it is."""
    at = core * tiles.core_columns + column
    return at // plane_columns, at % plane_columns


def _add(now: Step, lhs: Any, grad: Any, total: Any, out: Any, rows: int, first: Any, last: Any, tiles: Tiles) -> None:
    """Adds the tile's first `rows` rows, a strip of the result's rows at a time."""
    row = lax.broadcasted_iota(jnp.int32, (rows, 1), 0) + now.base
    mine = (row >= now.low) & (row < now.high)
    upstream = jnp.where(mine, grad[:rows], 0)

    width = tiles.strip(lhs.shape[1], STRIP_WORK)

    def strip(i: Any, _: None) -> None:
        at = pl.ds(pl.multiple_of(i * width, width), width)
        x = jnp.where(mine, lhs[:rows, at], 0)
        product = lax.dot_general(
            x,
            upstream,
            (((0,), (0,)), ((), ())),
            preferred_element_type=jnp.float32,
            precision=precision(lhs.dtype),
        )

        @pl.when(first & last)
        def _() -> None:
            out[at] = product.astype(out.dtype)

        @pl.when(first & ~last)
        def _() -> None:
            total[at] = product

        @pl.when(~first & last)
        def _() -> None:
            out[at] = (total[at] + product).astype(out.dtype)

        @pl.when(~first & ~last)
        def _() -> None:
            total[at] += product

    lax.fori_loop(0, lhs.shape[1] // width, strip, None)


def grouped_transposed(
    lhs: Float[Array, "m c"], grad: Float[Array, "p m n"], group_sizes: Int[Array, " e"]
) -> Float[Array, "e p c n"]:
    """For each group and plane, its rows of lhs [M, C] transposed times its rows of grad [P, M, N]: [E, P, C, N]."""
    (m, c), (planes, _, n), experts = lhs.shape, grad.shape, group_sizes.shape[0]
    lhs = pad(lhs[None], (1, ALIGN), (2, 128))
    grad = pad(grad, (1, ALIGN), (2, 128))
    width_c, width_n = lhs.shape[2], grad.shape[2]
    tiles = choose_tiles(_vmem_bytes, BRANCHES[-1], width_c, width_n, planes, lhs.dtype, platform.chip())
    meta = schedule(group_sizes, lhs.shape[1], tiles.rows, tiles.core_columns, rest=False)
    plane_columns = width_n // tiles.columns

    def weights(core: Any, step: Any, group: Any, column: Any, *_: Any) -> tuple[Any, ...]:
        plane, at = _plane(core, column[step], tiles, plane_columns)
        return group[step], plane, 0, at

    in_hbm = pl.BlockSpec(memory_space=pltpu.HBM)
    y = pl.pallas_call(
        functools.partial(_kernel, tiles=tiles, plane_columns=plane_columns),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=5,
            grid=(tiles.cores, meta[-1][0]),
            in_specs=[in_hbm, in_hbm],
            out_specs=pl.BlockSpec((1, 1, width_c, tiles.columns), weights),
            scratch_shapes=[
                pltpu.VMEM((2, 1, tiles.rows, width_c), lhs.dtype),
                pltpu.VMEM((2, 1, tiles.rows, tiles.columns), lhs.dtype),
                pltpu.VMEM((width_c, tiles.columns), jnp.float32),
                pltpu.SMEM((1,), jnp.int32),
                pltpu.SemaphoreType.DMA((2, 2)),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct((experts, planes, width_c, width_n), lhs.dtype),
        compiler_params=platform.compiler_params(("parallel", "arbitrary"), tiles.vmem_limit),
        cost_estimate=pl.CostEstimate(
            flops=2 * m * c * n * planes,
            bytes_accessed=lhs.dtype.itemsize * (m * c + planes * m * n + experts * planes * c * n),
            transcendentals=0,
        ),
        interpret=platform.interpret(),
        name="grouped_matmul_weights",
    )(*meta, lhs, grad)
    return y[:, :, :c, :n]


def _vmem_bytes(rows: int, columns: int, c: int, itemsize: int) -> int:
    """Rows, gradients and the result twice, its float32 sum and the masked gradients once."""
    return itemsize * (2 * rows * c + 3 * rows * columns + 2 * c * columns) + 4 * c * columns

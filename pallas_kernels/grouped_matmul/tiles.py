"""How the TPU kernels cut their work: tile sizes from the chip's memory, and the list of steps from the group sizes."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int

# Rows that a DMA can address: a tile of bfloat16.
ALIGN = 16
# Bytes of the widest column tile of a plane: while the first weights come, nothing is multiplied.
MAX_WEIGHTS = 8 << 20
# Weights that a strip of columns has, about, for each row of a matrix unit; its code is unrolled.
STRIP_WORK = 1 << 13
# Of VMEM, what the tiles may take; the compiler's own temporaries need room too.
VMEM_SHARE = 0.8


@dataclasses.dataclass(frozen=True)
class Tiles:
    """One way to cut the work.

    Attributes:
      cores: TensorCores of a device; each takes its own columns.
      rows, columns: of a tile. core_columns: column tiles of a core.
      mxu: side of a matrix unit.
      vmem_limit: bytes of VMEM that the kernel asks for.
    """

    cores: int
    rows: int
    columns: int
    core_columns: int
    mxu: int
    vmem_limit: int

    def strip(self, width: int, depth: int) -> int:
        """What of a width is multiplied at once: enough to hide how a matrix unit starts and ends, and no more code.

        `depth` is how many numbers each result is a sum of, over all planes.
        """
        return math.gcd(max(self.mxu, STRIP_WORK * self.mxu // depth // self.mxu * self.mxu), width)


def choose_tiles(
    vmem_bytes: Callable[[int, int, int, int], int],
    rows: int,
    c: int,
    n: int,
    planes: int,
    dtype: Any,
    chip: pltpu.TpuInfo,
) -> Tiles:
    """The widest column tile that fits the chip.

    Args:
      vmem_bytes: what a kernel needs, of (rows, columns, c, bytes of an element). rows: of a tile.
      c, n: widths of a row before and after, multiples of 128. planes: how many widths of n are cut over the cores.
      dtype: of the elements. chip: facts of the TPU.
    """
    cores = chip.num_cores if planes * n % (128 * chip.num_cores) == 0 else 1
    budget = int(VMEM_SHARE * chip.vmem_capacity_bytes)
    itemsize = jnp.dtype(dtype).itemsize
    fits = [
        columns
        for columns in range(128, min(n, MAX_WEIGHTS // (c * itemsize)) + 1, 128)
        if n % columns == 0 and planes * n // cores % columns == 0 and vmem_bytes(rows, columns, c, itemsize) <= budget
    ]
    columns = max(fits, default=128)
    return Tiles(
        cores=cores,
        rows=rows,
        columns=columns,
        core_columns=planes * n // cores // columns,
        mxu=chip.mxu_column_size,
        vmem_limit=int(0.95 * chip.vmem_capacity_bytes),
    )


def schedule(
    group_sizes: Int[Array, " e"], m: int, rows: int, columns: int, *, rest: bool
) -> tuple[Array, Array, Array, Array, Array]:
    """The steps of one core, in order: groups, within a group column tiles, within these row tiles.

    Args:
      group_sizes: [E]. m: rows in all, a multiple of ALIGN. rows: of a tile. columns: column tiles of a core.
      rest: True: the rows past the last group are group E. False: they have no steps, but an empty group has one
        row tile, of no rows.

    Returns:
      int32 arrays: the group, the column tile and the first row of each step [S]; the end of each group
      [E] or [E + 1]; the number of steps [1]. S is the most that there can be.
    """
    ends = jnp.cumsum(group_sizes.astype(jnp.int32))
    if rest:
        ends = jnp.concatenate([ends, jnp.full((1,), m, jnp.int32)])
    starts = jnp.concatenate([jnp.zeros((1,), jnp.int32), ends[:-1]])
    base = starts // ALIGN * ALIGN
    tiles = jnp.where(ends > starts, (ends - base + rows - 1) // rows, 0 if rest else 1)
    last = jnp.cumsum(tiles * columns)
    groups = ends.shape[0]
    # A group has its rows rounded up, and at most ALIGN - 1 more before them.
    most = columns * (-(-m // rows) + 2 * min(groups, m) if rest else -(-m // rows) + 2 * groups)
    step = jnp.arange(most + 1, dtype=jnp.int32)  # the kernel looks one step ahead
    group = jnp.minimum(jnp.searchsorted(last, step, side="right", method="compare_all"), groups - 1).astype(jnp.int32)
    local = step - (last - tiles * columns)[group]
    in_group = jnp.maximum(tiles[group], 1)
    return group, local // in_group, base[group] + rows * (local % in_group), ends, last[-1:]


def pad(x: Array, *multiples: tuple[int, int]) -> Array:
    """Zeros up to a multiple along the axes; nothing where it already is one, as at every real width."""
    widths = [(0, 0)] * x.ndim
    for axis, multiple in multiples:
        widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths) if any(after for _, after in widths) else x


def precision(dtype: Any) -> lax.Precision:
    """Float32 is multiplied as float32, which the matrix unit does in several passes."""
    return lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT

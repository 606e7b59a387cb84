"""Cases of grouped_matmul: the forward products of the experts, ours beside `lax.ragged_dot` and megablox."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from pallas_kernels.grouped_matmul import tiles as our_tiles
from pallas_kernels.grouped_matmul import tpu_rows
from pallas_kernels.grouped_matmul.workloads import WORKLOADS, D, F, Workload
from pallas_kernels.static import grouped_libraries as libraries
from pallas_kernels.static import loads
from pallas_kernels.static.case import Case, Count, Load, Part, waits
from pallas_kernels.static.chips import Chip
from pallas_kernels.static.compile import Kernel
from pallas_kernels.static.schedule import Region

# Widths of a product, the planes of its weight, and those of what ours gives: it applies SwiGLU on the way.
PRODUCTS = {"gate_up": (D, F, 2, 1), "down": (F, D, 1, 1)}
_KERNELS = {"gate_up": "grouped_matmul_swiglu", "down": "grouped_matmul_each"}


def ours(workload: str, product: str) -> libraries.Built:
    """The kernel call of a named workload."""
    return next(each for each in WORKLOADS if each.name == workload).calls()[product]


def cases(chip: Chip) -> list[Case]:
    """Every workload and product, each way."""
    found = []
    for workload in WORKLOADS:
        for product in PRODUCTS:
            of = functools.partial(_case, workload, product)
            c, n, planes, _ = PRODUCTS[product]
            shape: dict[str, Any] = {"m": workload.rows, "k": c, "n": n * planes, "experts": workload.experts}
            build = f"{__name__}:ours"
            kwargs = {"workload": workload.name, "product": product}
            count = functools.partial(_count_ours, workload, product)
            found.append(of("ours", Part(build, kwargs, _KERNELS[product], count)))
            note = "" if product == "down" else "without SwiGLU"
            count = functools.partial(_count_library, workload, product, None)
            build = f"{libraries.__name__}:ragged_dot"
            found.append(of("lax.ragged_dot", Part(build, shape, "ragged-dot-none", count), note))
            for tiles in libraries.megablox_tiles(c, n * planes):
                count = functools.partial(_count_library, workload, product, tiles)
                kwargs = shape | {"tiles": list(tiles)}
                for library, kernel in libraries.installed().items():
                    part = Part(f"{libraries.__name__}:{library}", kwargs, kernel, count)
                    found.append(of(f"{library} {'x'.join(map(str, tiles))}", part, note))
    return found


def _case(workload: Workload, product: str, way: str, part: Part, note: str = "") -> Case:
    c, n, planes, outs = PRODUCTS[product]
    wanted = []
    for name in loads.NAMES:
        sizes = loads.group_sizes(name, workload.rows, workload.experts)
        weights = np.count_nonzero(sizes) * planes * c * n
        least = 2 * (weights + workload.rows * (c + outs * n))
        wanted.append(Load(name, 2.0 * workload.rows * c * n * planes, least))
    return Case("grouped_matmul", f"{workload.name}.{product}", way, (part,), tuple(wanted), note)


def _count_library(
    workload: Workload, product: str, tiles: tuple[int, int, int] | None, kernel: Kernel, chip: Chip, load: str
) -> Count:
    c, n, planes, _ = PRODUCTS[product]
    sizes = loads.group_sizes(load, workload.rows, workload.experts)
    return libraries.count(kernel, chip, sizes, c, n * planes, tiles)


def _count_ours(workload: Workload, product: str, kernel: Kernel, chip: Chip, load: str) -> Count:
    """Walks the list of steps that the kernel itself is given; each step takes one of its branches."""
    assert kernel.regions is not None
    c, n, planes, outs = PRODUCTS[product]
    sizes = loads.group_sizes(load, workload.rows, workload.experts)
    vmem = functools.partial(tpu_rows._vmem_bytes, q=1, planes=planes, outs=outs)
    tiles = our_tiles.choose_tiles(vmem, tpu_rows.TILE_ROWS, c, n, 1, "bfloat16", chip.info)
    meta = our_tiles.schedule(jnp.asarray(sizes, jnp.int32), workload.rows, tiles.rows, tiles.core_columns, rest=True)
    *table, ends, steps = (np.asarray(x) for x in meta)
    group, column, base = (x[: int(steps[0])] for x in table)
    rows = np.minimum(ends[group], base + tiles.rows) - base

    grid = kernel.regions.grid()
    loop, bodies = _bodies(grid)
    taken = _taken(rows, tiles.rows)
    turns = tiles.columns // tiles.strip(tiles.columns, planes * c)
    once = np.asarray([body.spent("cycles", dict.fromkeys(body.loops(), turns)) for body in bodies])
    runs: dict[Region, float] = {grid: float(len(group)), loop: float(taken[:, 1:].sum())}
    for body, count in zip(bodies, taken.sum(axis=0), strict=True):
        runs[body] = count
        runs |= {inner: count * turns for inner in body.loops()}
    # After the products comes the branch of a tile of the rows past the last group.
    runs[next(r for r in grid.walk() if r.first >= loop.last)] = float(np.count_nonzero(group == len(sizes)))

    # A step's own transfers: its weights and its rows, unless they are there, and the rows that it completes.
    new_group = np.diff(group, prepend=-1) != 0
    new_rows = new_group | (np.diff(base, prepend=-1) != 0)
    new_weights = new_group | (np.diff(column, prepend=-1) != 0)
    # Factors of rows, a vector for ALIGN of them; where XLA keeps them in VMEM, a loop copies eight a turn.
    factor_turns = float(new_rows.sum() * (tiles.rows // our_tiles.ALIGN // 8))
    runs |= {region: factor_turns for region in grid.loops() if region not in runs}
    factors = 256 * (tiles.rows // our_tiles.ALIGN) if product == "down" else 0
    read = np.where(new_rows, -(-rows // our_tiles.ALIGN) * our_tiles.ALIGN * c + factors, 0)
    read = read + np.where(new_weights, planes * c * tiles.columns, 0)
    written = rows // our_tiles.ALIGN * our_tiles.ALIGN * outs * tiles.columns
    transfers = 2.0 * (read + written)  # bytes of bfloat16
    multiplied = taken @ once
    common = (kernel.regions.spent("cycles", runs) - multiplied.sum()) / len(group)
    return Count(runs, transfers.sum() * tiles.cores, waits(multiplied + common, transfers, chip))


def _bodies(grid: Region) -> tuple[Region, list[Region]]:
    """The loop over the pieces of a tile that is not full, and what multiplies: a full tile first, then each piece."""
    bodies = [region for region in grid.walk() if region.kind == "branch" and len(region.products()) == 1]
    loop = next((r for r in grid.loops() if len(r.products()) == len(tpu_rows.PIECES)), None)
    if loop is None or len(bodies) != 1 + len(tpu_rows.PIECES):
        raise ValueError(f"expected {1 + len(tpu_rows.PIECES)} branches that multiply, found {len(bodies)}.")
    return loop, bodies


def _taken(rows: np.ndarray, tile: int) -> np.ndarray:
    """How often each of `_bodies` runs for tiles with so many rows: [S, 1 + number of piece sizes]."""
    sizes = np.asarray(tpu_rows.PIECES)
    full = rows > tile - sizes[0]
    whole, rest = np.divmod(np.where(full, 0, rows), sizes[-1])
    pieces = np.eye(len(sizes) + 1)[np.where(rest, np.searchsorted(sizes, rest) + 1, 0)][:, 1:]
    pieces[:, -1] += whole
    return np.concatenate([full[:, None], pieces], axis=1)

"""Cases of expert_gemv: the routed experts while decoding, ours beside two grouped matmuls of a library.

A library has no such kernel: what a user would otherwise do is to sort the few rows by expert and take a grouped
matmul for gate and up, and one for down. Sorting, SwiGLU and the weighted sum come on top and are left out here.
"""

import functools
from typing import Any

import numpy as np

from pallas_kernels.expert_gemv import tpu
from pallas_kernels.expert_gemv.workloads import EXPERTS, TOP_K, WORKLOADS, D, F, Workload
from pallas_kernels.static import grouped_libraries as libraries
from pallas_kernels.static.case import Case, Count, Load, Part, waits
from pallas_kernels.static.chips import Chip
from pallas_kernels.static.compile import Kernel
from pallas_kernels.static.schedule import Region

_PRODUCTS = ((D, 2 * F), (F, D))
# Tiles of megablox: the rows of its tile beside the widest blocks of weights that fit; the same rows for both products.
_MEGABLOX = {rows: ((rows, D, 512), (rows, F, 1024)) for rows in (16, 32, 128)}
_LOADS = ("random", "skewed")


def ours(workload: str) -> libraries.Built:
    """The kernel of a named workload."""
    return next(each for each in WORKLOADS if each.name == workload).call()


def expert_ids(workload: Workload, load: str) -> np.ndarray:
    """Choices [T, k]: of a balanced router, or skewed by Zipf's law with exponent one half."""
    if load == "random":
        return workload.expert_ids()
    rng = np.random.default_rng(0)
    popularity = -0.5 * np.log(1 + rng.permutation(EXPERTS))
    noise = rng.gumbel(size=(workload.tokens, EXPERTS))  # the largest k are drawn without replacement
    chosen = np.argsort(-(popularity + noise), axis=1)[:, :TOP_K]
    return np.minimum(chosen, workload.experts).astype(np.int32)


def cases(chip: Chip) -> list[Case]:
    """Every workload, each way; the libraries have no int8 weights."""
    del chip
    found = []
    for workload in WORKLOADS:
        part = Part(f"{__name__}:ours", {"workload": workload.name}, "expert_gemv", functools.partial(_ours, workload))
        found.append(_case(workload, "ours", part))
        if workload.int8:
            continue
        ways: dict[str, Any] = {"lax.ragged_dot": (None, None)}
        ways |= {f"megablox {rows} rows": tiles for rows, tiles in _MEGABLOX.items()}
        for way, both in ways.items():
            parts = []
            for (k, n), tiles in zip(_PRODUCTS, both, strict=True):
                rows = _rows(workload, tiles[0] if tiles else 16)
                kwargs: dict[str, Any] = {"m": rows, "k": k, "n": n, "experts": workload.experts}
                name, kernel = ("megablox", "gmm") if tiles else ("ragged_dot", "ragged-dot-none")
                kwargs |= {"tiles": list(tiles)} if tiles else {}
                count = functools.partial(_library, workload, k, n, tiles)
                parts.append(Part(f"{libraries.__name__}:{name}", kwargs, kernel, count))
            found.append(_case(workload, way, *parts, note="without sort, SwiGLU and weighted sum"))
    return found


def _rows(workload: Workload, multiple: int) -> int:
    return -(-workload.tokens * TOP_K // multiple) * multiple


def _case(workload: Workload, way: str, *parts: Part, note: str = "") -> Case:
    wanted = []
    for load in _LOADS:
        ids = expert_ids(workload, load)
        here = ids[ids < workload.experts]
        weights = 3 * len(np.unique(here)) * D * F * (1 if workload.int8 else 2)
        wanted.append(Load(load, 6.0 * len(here) * D * F, weights + 4 * workload.tokens * D))
    return Case("expert_gemv", workload.name, way, parts, tuple(wanted), note)


def _ours(workload: Workload, kernel: Kernel, chip: Chip, load: str) -> Count:
    """Each step multiplies in one of its branches; each token's row comes and goes once an expert, in loops."""
    assert kernel.regions is not None
    ids, dtype = expert_ids(workload, load), workload.weights_dtype
    tiles = tpu.choose_tiles(workload.tokens, D, F, dtype, chip.info)
    total, _ = tpu.hbm_bytes(ids, workload.experts, D, F, dtype, chip.info)
    sizes = np.bincount(ids[ids < workload.experts], minlength=workload.experts)
    sizes, grid, sides = sizes[sizes > 0], kernel.regions.grid(), tpu.pieces(tiles)
    bodies = [region for region in grid.walk() if region.kind == "branch" and region.matmuls]
    rows = [loop for loop in grid.loops() if not loop.total("matmuls")]
    if len(bodies) != len(sides) or len(rows) != 2:
        raise ValueError(f"expected {len(sides)} branches that multiply and 2 loops, found {len(bodies)}, {len(rows)}.")
    taken = np.eye(len(sides))[np.searchsorted(sides, sizes)].repeat(tiles.steps, axis=0)
    runs: dict[Region, float] = {grid: float(len(taken))} | dict.fromkeys(rows, float(sizes.sum()))
    runs |= dict(zip(bodies, taken.sum(axis=0), strict=True))
    multiplied = taken @ [body.spent("cycles", {}) for body in bodies]
    common = (kernel.regions.spent("cycles", runs) - multiplied.sum()) / len(taken)
    weights = np.full(len(taken), 3.0 * D * tiles.f * (1 if workload.int8 else 2))
    return Count(runs, total, waits(multiplied + common, weights, chip))


def _library(
    workload: Workload, k: int, n: int, tiles: tuple[int, int, int] | None, kernel: Kernel, chip: Chip, load: str
) -> Count:
    ids = expert_ids(workload, load)
    sizes = np.bincount(ids[ids < workload.experts], minlength=workload.experts)
    return libraries.count(kernel, chip, sizes, k, n, tiles)

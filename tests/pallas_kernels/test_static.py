"""The static bench: it reads schedules as they are printed, and counts steps as the kernels take them."""

import dataclasses
import json

import numpy as np
import pytest

from pallas_kernels.static import bench, compile, expert_gemv, grouped_libraries, loads, prefill_attention, table
from pallas_kernels.static.case import Case, Count, Load, Part, waits
from pallas_kernels.static.chips import TOPOLOGIES, Chip
from pallas_kernels.static.measure import Row, measure
from pallas_kernels.static.schedule import parse, parse_bundles

# A loop of two turns' worth of text: its body skips a block with three matmuls on unit 0, one of them of float32.
BUNDLES = """
= control target key start
LB: loop body
PF: predicated region fallthrough
= control target key end

     0   :  { %s1 = sld [smem:[#allocation0]] }
   0x1   :  { %9 = shalt.err (!%p1) /* BoundsCheck 0 [deref of %s1] for %13 = dma.hbm_to_vmem /*hbm=*/%s1, /*size_in_granules=*/48, /*vmem=*/[#allocation3]
hlo: k
 */ }
   0x2 LB: > { %v2 = vld [vmem:[#allocation1]]  ;;  %13 = dma.hbm_to_vmem /*hbm=*/%s1, /*size_in_granules=*/64, /*vmem=*/%s2 } /* Start region 7 */
   0x3   : > { %20 = sbr.rel (%p3) target = $region9 }
   0x4   : > {}
   0x5   : > {}
   0x6   : > {}
   0x7   : > {} /* End region 7 */
   0x8   : > { %30 = vmatmul.bf16.gmra.mxu0 %v2  ;;  %31 = vmatmul.bf16.gmra.mxu1 %v2 } /* Start region 8 */
   0x9   : > { %32 = vmatmul.f32.gmra.mxu0 %v2 }
   0xa   : > { %33 = vmatmul.mubr.bf16.gmra.mxu0 %v2  ;;  %34 = vst [vmem:[#allocation5_spill]] %v2 } /* End region 8 */
   0xb PF: > { %40 = sbr.rel (!%p4) target = $region7 } /* Start/End empty region 9 */
   0xc   : > {}
   0xd   : > {}
   0xe   : > {}
   0xf   : > {}
  0x10   :  { %50 = vsyncpa [#allocation1], 1 }
"""  # noqa: E501
USED = [0] * 8 + [4, 4, 2] + [0] * 6
SPILLS = [0] * 10 + [1] + [0] * 6
UTILISATION = "\n".join(
    ["== CAPACTIY:", "MXU, VALU, VLOAD, VLOAD:FILL, VSTORE, VSTORE:SPILL", " 4 4 3 3 1 1", "== UTILIZATION:"]
    + [f"{mxu} 1 0 0 {spill} {spill}" for mxu, spill in zip(USED, SPILLS, strict=True)]
)


def regions():
    kernel = parse(BUNDLES, UTILISATION, matmul_cycles=16)
    (loop,) = kernel.inside
    (branch,) = loop.inside
    return kernel, loop, branch


def test_a_schedule_is_read_as_loops_and_branches():
    kernel, loop, branch = regions()
    assert [(r.kind, r.first, r.last) for r in (kernel, loop, branch)] == [
        ("kernel", 0, 17),
        ("loop", 2, 16),
        ("branch", 8, 11),
    ]
    assert [r.own for r in (kernel, loop, branch)] == [3, 11, 3]


def test_a_bounds_check_is_no_dma():
    assert [bundle.dmas for bundle in parse_bundles(BUNDLES) if bundle.dmas] == [(("hbm_to_vmem", 64 * 32),)]


def test_a_bundle_waits_for_its_matrix_unit():
    _, loop, branch = regions()
    # Unit 0 takes 16 rows at cycle 0, 8 rows of float32 at 16, and 16 rows at 24, where the last bundle issues.
    assert branch.cycles == 25
    assert branch.matmuls == 3.5
    assert loop.cycles == loop.own  # no matmuls of its own


def test_unit_shares_and_spills_are_those_of_a_region():
    kernel, _, branch = regions()
    assert branch.busy["MXU"] == pytest.approx(10 / 12)
    assert branch.busy["VALU"] == pytest.approx(1 / 4)
    assert branch.spills == kernel.total("spills") == 1


def test_cycles_are_counted_with_our_own_turns():
    kernel, loop, branch = regions()
    assert kernel.spent("cycles", {loop: 10, branch: 4}) == 3 + 10 * 11 + 4 * 25
    # A branch of which nothing is said runs whenever what it is in does.
    assert kernel.spent("cycles", {loop: 10}) == 3 + 10 * (11 + 25)
    assert kernel.spent("VALU", {loop: 10}) == pytest.approx((3 + 10 * 14) / 4)
    with pytest.raises(ValueError, match="how often the loop at bundle 2 turns"):
        kernel.spent("cycles", {})


def test_a_table_of_other_length_is_refused():
    with pytest.raises(ValueError, match="17 bundles"):
        parse(BUNDLES, UTILISATION.rsplit("\n", 1)[0], 16)


@pytest.mark.parametrize("name", loads.NAMES)
def test_group_sizes_add_up_and_are_the_same_every_time(name):
    sizes = loads.group_sizes(name, 1000, 24)
    assert sizes.sum() == 1000 and sizes.shape == (24,) and (sizes >= 0).all()
    np.testing.assert_array_equal(sizes, loads.group_sizes(name, 1000, 24))


def test_loads_are_as_skewed_as_they_say():
    spread = {name: np.ptp(loads.group_sizes(name, 49152, 256)) for name in loads.NAMES}
    assert spread["balanced"] == 0 < spread["random"] < 100
    assert loads.group_sizes("skewed", 49152, 256).max() > 6 * 49152 / 256


def brute_force_visits(sizes, rows):
    """Every (row tile, group) that share a row, in order."""
    group_of_row = np.repeat(np.arange(len(sizes)), sizes)
    pairs = [(row // rows, group) for row, group in enumerate(group_of_row)]
    return list(dict.fromkeys(pairs))


SIZES = [[5, 0, 3, 8, 0], [16, 16], [0, 0, 1], [1] * 20, [7, 9, 16, 31, 1], [0, 0]]


@pytest.mark.parametrize("sizes", [*SIZES, loads.group_sizes("skewed", 400, 12).tolist()])
@pytest.mark.parametrize("rows", [4, 16])
def test_visits_are_the_tiles_that_groups_touch(sizes, rows):
    tile, group = grouped_libraries.visits(np.asarray(sizes), rows)
    assert list(zip(tile.tolist(), group.tolist(), strict=True)) == brute_force_visits(sizes, rows)


@pytest.mark.parametrize("sizes", [[5, 0, 3, 8, 0], [7, 9, 16, 31, 1], [1] * 20])
@pytest.mark.parametrize("tiles", [(16, 8, 4), (16, 32, 4), (4, 16, 8)])
def test_bytes_are_those_of_walking_the_grid(sizes, tiles):
    k, n = 32, 16
    rows, depth, columns = tiles
    total, last = 0, {}
    for column in range(n // columns):
        for tile, group in brute_force_visits(sizes, rows):
            for piece in range(k // depth):
                blocks = {
                    "lhs": ((tile, piece), rows * depth),
                    "rhs": ((group, piece, column), depth * columns),
                    "out": ((tile, column), rows * columns),
                }
                for name, (index, size) in blocks.items():
                    # A walk of one column tile is counted alone: its first blocks are fetched.
                    index = (*index, column)
                    total += 2 * size * (last.get(name) != index)
                    last[name] = index
    assert grouped_libraries.hbm_bytes(np.asarray(sizes), k, n, tiles) == total


def test_columns_are_cut_over_the_cores():
    sizes = np.asarray([16, 16])
    assert grouped_libraries.steps(sizes, 32, 40, (16, 16, 8), cores=1) == 5 * 2 * 2
    assert grouped_libraries.steps(sizes, 32, 40, (16, 16, 8), cores=2) == 3 * 2 * 2


@pytest.mark.parametrize("window", [3, 16, 17, 40, 200])
@pytest.mark.parametrize("blocks", [(8, 8), (8, 16), (16, 8)])
def test_splash_multiplies_the_blocks_that_hold_a_visible_pair(window, blocks):
    tokens = 64
    distance = np.arange(tokens)[:, None] - np.arange(tokens)[None, :]
    visible = (distance >= 0) & (distance < window)
    active = visible.reshape(tokens // blocks[0], blocks[0], tokens // blocks[1], blocks[1]).any(axis=(1, 3))
    for by_key, of_row in ((False, active), (True, active.T)):
        steps = of_row.shape[0] * int(of_row.sum(axis=1).max())
        assert prefill_attention.splash_steps(tokens, window, *blocks, by_key=by_key) == (steps, active.sum())


@pytest.mark.parametrize("load", ["random", "skewed"])
def test_a_router_chooses_distinct_experts(load):
    workload = next(w for w in expert_gemv.WORKLOADS if w.name == "decode_64_sessions")
    ids = expert_gemv.expert_ids(workload, load)
    assert ids.shape == (64, 6)
    assert all(len(set(row)) == 6 for row in ids.tolist())


def test_a_pipeline_waits_where_the_next_transfer_is_longer_than_a_step():
    chip = Chip("v6e")
    per_cycle = chip.bytes_per_second / chip.clock
    cycles, transfers = np.asarray([100.0, 100.0, 100.0]), np.asarray([50.0, 300.0, 100.0]) * per_cycle
    assert waits(cycles, transfers, chip) == pytest.approx(200)  # the second step's, beside the first


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_chip_does_its_peak_in_its_clock(name):
    chip = Chip(name)
    info = chip.info
    rate = 2 * 16 * info.mxu_column_size**2 * info.num_mxus / chip.matmul_cycles * chip.cores * chip.clock
    assert rate == pytest.approx(chip.flops_per_second)
    assert 0.9e9 < chip.clock < 2.5e9


def _rows():
    base = Row("op", "w", "random", "ours", min_bytes=1.0)
    values = {"ours": 3.0, "lib a": 4.0, "lib b": 2.0, "other": None}
    return [
        dataclasses.replace(base, way=way, time_s=time, cycles=time, hbm_bytes=1.0, error="" if time else "too big")
        for way, time in values.items()
    ]


def test_of_a_librarys_tiles_the_fastest_is_shown_beside_ours():
    rows = _rows()
    assert [row.way for row in table.best(rows)] == ["ours", "lib b", "other"]
    assert [table.ratio(row, rows) for row in rows] == [None, 0.75, 1.5, None]
    text = table.table(rows, Chip("v5p"))
    assert "lib b" in text and "lib a" not in text and "too big" in text


def test_an_unknown_chip_and_a_missing_compiler_are_one_line(monkeypatch):
    with pytest.raises(ValueError, match="no chip 'v9'; expected one of v5e, v5p, v6e, tpu7x"):
        bench.run("v9", None)
    with pytest.raises(ValueError, match="no op 'softmax'"):
        bench.run("v5p", "softmax")
    monkeypatch.setattr(compile, "available", lambda: False)
    with pytest.raises(ValueError, match="compiler is not installed"):
        bench.run("v5p", None)


def small_ragged_dot(kernel, chip, load):
    return grouped_libraries.count(kernel, chip, loads.group_sizes(load, 512, 4), 256, 256)


@pytest.mark.tpu_compile
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_kernel_is_compiled_and_counted(name):
    pytest.importorskip("libtpu")
    chip = Chip(name)
    build = f"{grouped_libraries.__name__}:ragged_dot"
    part = Part(build, {"m": 512, "k": 256, "n": 256, "experts": 4}, "ragged-dot-none", small_ragged_dot)
    wanted = tuple(Load(load, 2.0 * 512 * 256 * 256, 2.0 * (512 * 512 + 4 * 256 * 256)) for load in loads.NAMES)
    rows = measure([Case("grouped_matmul", "small", "lax.ragged_dot", (part,), wanted)], chip)
    assert [row.load for row in rows] == list(loads.NAMES) and not any(row.error for row in rows)
    for row in rows:
        # What is useful can't be more than what the matrix units do, nor that more than they can.
        assert 0 < row.mxu_useful <= row.mxu <= 1
        assert row.hbm_bytes >= row.min_bytes and 0 < row.vmem_bytes < chip.info.vmem_capacity_bytes
    assert rows[0].cycles <= rows[2].cycles
    json.dumps([dataclasses.asdict(row) for row in rows])


@pytest.mark.tpu_compile
def test_what_does_not_compile_is_a_row_too():
    pytest.importorskip("libtpu")
    kwargs = {"m": 512, "k": 8192, "n": 4096, "experts": 2, "tiles": [512, 8192, 4096]}
    part = Part(f"{grouped_libraries.__name__}:megablox", kwargs, "gmm", lambda *_: Count({}, 0.0))
    (row,) = measure([Case("grouped_matmul", "huge", "megablox", (part,), (Load("any", 1.0, 1.0),))], Chip("v5e"))
    assert "RESOURCE_EXHAUSTED" in row.error and row.cycles is None

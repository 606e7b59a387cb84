"""Prints the rows of the static bench as a table."""

from collections.abc import Iterable

from pallas_kernels.static.chips import Chip
from pallas_kernels.static.measure import Row

_COLUMNS = (
    ("workload", 34), ("load", 12), ("kernel", 26), ("VMEM MiB", 8), ("GFLOP", 8), ("HBM GB", 7), ("bytes", 6),
    ("roof us", 8), ("Mcycles", 8), ("HBM Mc", 7), ("waits", 6), ("time us", 8), ("useful", 6), ("MXU", 5),
    ("VALU", 5), ("VLD", 5), ("VST", 5), ("spills", 6), ("ours/it", 7),
)  # fmt: skip


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"


def _number(value: float | None, scale: float, digits: int) -> str:
    return "-" if value is None else f"{value / scale:.{digits}f}"


def best(rows: Iterable[Row]) -> list[Row]:
    """Of the tiles of one library that were tried (ways with the same first word), the fastest for each load."""
    found: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = (row.op, row.workload, row.load, row.way.split()[0])
        old = found.get(key)
        if old is None or (row.time_s is not None and (old.time_s is None or row.time_s < old.time_s)):
            found[key] = row
    return list(found.values())


def ratio(row: Row, rows: Iterable[Row]) -> float | None:
    """Ours over a row, in time; None where either is missing, or the row is ours."""
    of = (row.op, row.workload, row.load)
    ours = next((r for r in rows if r.way == "ours" and (r.op, r.workload, r.load) == of), None)
    if row.way == "ours" or ours is None or ours.time_s is None or row.time_s is None:
        return None
    return ours.time_s / row.time_s


def _line(row: Row, rows: list[Row]) -> list[str]:
    names = [row.workload, row.load, row.way]
    if row.error:
        return [*names, row.error]
    return [
        *names,
        _number(row.vmem_bytes, 2**20, 1),
        _number(row.flops, 1e9, 1),
        _number(row.hbm_bytes, 1e9, 3),
        _number(None if row.hbm_bytes is None else row.hbm_bytes / row.min_bytes, 1, 2),
        _number(row.roofline_s, 1e-6, 1),
        _number(row.cycles, 1e6, 3),
        _number(row.hbm_cycles, 1e6, 3),
        _number(row.waits, 1e6, 2),
        _number(row.time_s, 1e-6, 1),
        *[_percent(value) for value in (row.mxu_useful, row.mxu, row.valu, row.vload, row.vstore)],
        "-" if row.spills is None else str(row.spills),
        _number(ratio(row, rows), 1, 2),
    ]


def table(rows: list[Row], chip: Chip) -> str:
    """The rows, library tiles reduced to the fastest, with a heading of what the chip can do."""
    facts = (
        f"{chip.name}: {chip.cores} core(s) at {chip.clock / 1e9:.2f} GHz, {chip.flops_per_second / 1e12:.0f} TFLOP/s, "
        f"{chip.bytes_per_second / 1e9:.0f} GB/s, {chip.info.vmem_capacity_bytes >> 20} MiB of VMEM a core"
    )
    rows = best(rows)
    lines = [facts]
    for op in dict.fromkeys(row.op for row in rows):
        widths = [width for _, width in _COLUMNS]
        lines += [
            "",
            op,
            "  " + " ".join(name.ljust(w) if i < 3 else name.rjust(w) for i, (name, w) in enumerate(_COLUMNS)),
        ]
        for row in rows:
            if row.op == op:
                cells = _line(row, rows)
                pairs = enumerate(zip(cells, widths, strict=False))
                last = len(cells) < len(widths)
                lines.append("  " + " ".join(c.ljust(w) if i < 3 else c if last else c.rjust(w) for i, (c, w) in pairs))
        lines += [
            f"  {way}: {note}" for way, note in dict.fromkeys((r.way, r.note) for r in rows if r.op == op and r.note)
        ]
    return "\n".join(lines)

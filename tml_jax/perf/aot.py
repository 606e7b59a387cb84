"""Compiles whole programs for a TPU slice that isn't there: the TPU compiler runs on any machine, on shapes alone.

It says whether the shardings are legal, whether the program fits the chips' memory, and what moves between them.
It says nothing of numerics or of real speed. No weight is ever allocated.
"""

import dataclasses
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh

from tml_jax import sharding
from tml_jax.executor.executor import Executor
from tml_jax.executor.live import LiveModel, Rung
from tml_jax.model.interaction import InteractionModel
from tml_jax.model.quantized import as_int8
from tml_jax.perf import hlo, roofline
from tml_jax.streams import packed
from tml_jax.train.config import ExperimentConfig
from tml_jax.train.trainer import Trainer

ProgramName = Literal["micro_turn", "train_step"]
MICRO_TURN_S = 0.2
PROGRAMS: tuple[ProgramName, ...] = ("micro_turn", "train_step")


@dataclasses.dataclass(frozen=True)
class Report:
    """What the compiler said of one program. Bytes are of one device.

    Attributes:
      arguments, outputs, temporaries, aliased: bytes; `aliased` is what outputs share with arguments.
      peak: bytes that are in use at once, of all of these; temporaries may lie where an argument is used no more.
      sessions: live conversations, or windows of a training step. block: of a micro-turn, what it has room for.
      int8: whether its weights are.
      turns: micro-turns that a call takes all of them further.
      bound: the least time of a call (`perf.roofline`).
    """

    program: str
    topology: str
    mesh: dict[str, int]
    device: str
    parameters: int
    arguments: int
    outputs: int
    temporaries: int
    aliased: int
    peak: int
    sessions: int
    block: str
    int8: bool
    turns: float
    bound: roofline.Bound
    compile_s: float
    hlo: hlo.Program

    @property
    def chip_hours(self) -> float:
        """Of a conversation-hour, at the least: all slots are live, and chips that serve wait for the next tick."""
        chips, hours = math.prod(self.mesh.values()), self.sessions * self.turns * MICRO_TURN_S
        return chips * (MICRO_TURN_S if self.program == "micro_turn" else self.bound.apart) / hours

    def to_json(self) -> dict[str, Any]:
        """A flat object: names as printed."""
        fields = dataclasses.asdict(self)
        program, bound = fields.pop("hlo"), fields.pop("bound")
        extra = {"binds": self.bound.binds, "overlapped": self.bound.overlapped, "apart": self.bound.apart}
        extra |= {
            "mfu_overlapped": self.bound.mfu(self.bound.overlapped),
            "mfu_apart": self.bound.mfu(self.bound.apart),
        }
        return fields | program | bound | extra | {"chip_hours": self.chip_hours}


def make_mesh(topology: str, shape: Sequence[int], own: Sequence[int] = ()) -> Mesh:
    """A mesh (data, fsdp, expert, tensor) over a slice such as ``v5p:2x4x4``.

    Args:
      topology: the slice, as the TPU compiler names it.
      shape: four sizes; empty: `own` where those cover the slice, else its physical axes.
      own: the experiment's.

    Raises:
      ValueError: there is no such slice, or the sizes don't cover it.
    """
    try:
        slice_ = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"The TPU compiler knows no slice {topology!r}, such as v5p:2x4x4 or v6e:4x4 ({reason})."
        ) from error
    devices = len(slice_.devices)
    shape = tuple(shape) or (tuple(own) if math.prod(own) == devices else _default_shape(topology, devices))
    return sharding.make_mesh(shape, slice_.devices)


def _default_shape(topology: str, devices: int) -> tuple[int, ...]:
    """The slice's physical axes as (data, 1, expert, tensor), the smallest first; one device: all ones."""
    sizes = sorted(int(size) for size in topology.partition(":")[2].split("x"))
    if math.prod(sizes) != devices or len(sizes) > 3:
        return (devices, 1, 1, 1)
    data, expert, tensor = (*(1,) * (3 - len(sizes)), *sizes)
    return (data, 1, expert, tensor)


def compile_program(
    experiment: ExperimentConfig,
    topology: str,
    program: ProgramName,
    *,
    sessions: int,
    mesh_shape: Sequence[int] = (),
    block: str | None = None,
    int8: bool = False,
) -> tuple[Report, jax.stages.Compiled]:
    """Compiles a program for a slice.

    Args:
      experiment: the model, and what a training window holds.
      topology: the slice; see `make_mesh`.
      program: "micro_turn", one step of `sessions` live conversations, or "train_step", of `sessions` windows.
      sessions: conversations in all.
      mesh_shape: sizes of (data, fsdp, expert, tensor).
      block: of a micro-turn, the rung of `executor.live.ladder` by name; None: the longest.
      int8: of a micro-turn, whether its weights are (`model.quantized`).

    Raises:
      ValueError: no such slice or block, a training step with int8 weights, or the program doesn't fit; then it says
        whether half as many sessions do.
    """
    if int8 and program == "train_step":
        raise ValueError("int8 weights can't be trained: --weights=int8 is of a micro_turn.")
    try:
        return _compiled(experiment, topology, program, sessions, mesh_shape, block, int8)
    except MemoryError as error:
        reason, fewer = error, sessions // 2
    while fewer:
        try:
            report, _ = _compiled(experiment, topology, program, fewer, mesh_shape, block, int8)
        except (MemoryError, ValueError):
            fewer //= 2
        else:
            fits = f"{fewer} do, in {report.peak / 2**30:.1f} GiB a device"
            break
    else:
        fits = "nor does one: take a larger slice, or cut the weights over more of it"
    raise ValueError(f"{program} of {sessions} sessions doesn't fit {topology} ({reason}); {fits}.")


def _compiled(
    experiment: ExperimentConfig,
    topology: str,
    program: ProgramName,
    sessions: int,
    mesh_shape: Sequence[int],
    block: str | None,
    int8: bool,
) -> tuple[Report, jax.stages.Compiled]:
    """As `compile_program`; raises MemoryError where HBM or VMEM are short, saying how much is asked for."""
    mesh = make_mesh(topology, mesh_shape, experiment.train.mesh if program == "train_step" else ())
    start = time.monotonic()
    try:
        if program == "micro_turn":
            rung, lowered = _micro_turn(experiment, mesh, sessions, block, int8)
        else:
            rung, lowered = None, _train_step(experiment, mesh, sessions)
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        lines = [line.strip() for line in str(error).splitlines()]
        said = next((line for line in lines if "exceed" in line.lower() or "Used" in line), lines[0])
        raise MemoryError(said.removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".")) from error
    seconds = time.monotonic() - start
    memory, found, model = (
        compiled.memory_analysis(),
        hlo.analyse(compiled.as_text()),
        InteractionModel(experiment.model),
    )
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    if rung is not None:
        length = 1 + experiment.model.stream.audio_tokens + rung.patches + rung.text
        work, traffic, turns = roofline.of_micro_turn(model, sessions, length), held, 1.0
    else:
        # The state is read and written; what is kept for the backward pass is too.
        work, traffic = roofline.of_train_step(experiment, model, sessions), 2 * (held + memory.temp_size_in_bytes)
        turns = experiment.data.window_turns
    report = Report(
        program=program,
        topology=topology,
        mesh=dict(mesh.shape),
        device=mesh.devices.flat[0].device_kind,
        parameters=model.num_params(),
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        sessions=sessions,
        block="" if rung is None else rung.name,
        int8=int8,
        turns=turns,
        bound=roofline.bound(work, traffic, found.collectives, mesh.shape, roofline.chip_of(topology)),
        compile_s=seconds,
        hlo=found,
    )
    return report, compiled


def _micro_turn(
    experiment: ExperimentConfig, mesh: Mesh, sessions: int, block: str | None, int8: bool
) -> tuple[Rung, jax.stages.Lowered]:
    executor, model = Executor(mesh), InteractionModel(experiment.model, jnp.bfloat16)
    live = LiveModel(executor, model, experiment.model.stream, sessions)
    named = {rung.name: rung for rung in live.rungs}
    if block is not None and block not in named:
        raise ValueError(f"{experiment.name} has no block {block!r}; it is compiled for {', '.join(named)}.")
    rung = live.rungs[-1] if block is None else named[block]
    kept = as_int8(model) if int8 else model
    return rung, live.lower_step(executor.abstract(kept.abstract, kept.axes), rung)


def _train_step(experiment: ExperimentConfig, mesh: Mesh, windows: int) -> jax.stages.Lowered:
    train = dataclasses.replace(experiment.train, dtype="bfloat16", batch_size=windows)
    trainer = Trainer(dataclasses.replace(experiment, train=train), mesh)
    trainer.groups()
    space, group = experiment.data.room, experiment.data.group
    packs = (windows // group, group * space.patches, group * space.speech)
    batch = packed.abstract(experiment.model.stream, (windows, space.turns), *packs)
    return trainer.lower(trainer.abstract_state(), trainer.abstract_batch(batch))


def render(report: Report) -> str:
    """The report as text for a terminal."""
    gib = {name: getattr(report, name) / 2**30 for name in ("arguments", "outputs", "aliased", "temporaries", "peak")}
    mesh = " x ".join(f"{axis} {size}" for axis, size in report.mesh.items())
    bound = report.bound
    times = ", ".join(f"{name} {1e3 * s:.3g}" for name, s in _times(bound))
    lines = [
        f"{report.program} for {report.topology} ({report.device}; {mesh}), {report.parameters / 1e9:.2f} B parameters"
        + (" in int8" if report.int8 else ""),
        ", ".join(filter(None, (f"{report.sessions} sessions", report.block, f"compiled in {report.compile_s:.1f} s"))),
        "memory of a device, GiB: " + ", ".join(f"{name} {value:.2f}" for name, value in gib.items()),
        f"bounds of a call, ms: {times}; {bound.binds} binds",
        f"  {1e3 * bound.overlapped:.3g} ms if all overlaps (MFU {bound.mfu(bound.overlapped):.0%}), "
        f"{1e3 * bound.apart:.3g} if nothing does (MFU {bound.mfu(bound.apart):.0%})",
        f"  {report.chip_hours:.3f} chip-hours a conversation-hour"
        + ("" if report.program == "micro_turn" else ", if nothing overlaps"),
        "collectives of a call, on a device:",
        f"  {'kind':20} {'runs':>6} {'MB':>12}  groups",
    ]
    lines += [f"  {c.kind:20} {c.count:6} {c.bytes / 1e6:12.2f}  {c.groups[:60]}" for c in report.hlo.collectives]
    if report.hlo.kernels:
        lines.append("custom kernels: " + ", ".join(f"{name} x{runs}" for name, runs in report.hlo.kernels.items()))
    if report.hlo.open_loops:
        lines.append(f"{report.hlo.open_loops} loops turn as often as their data says; their bodies are counted once")
    return "\n".join(lines)


def _times(bound: roofline.Bound) -> list[tuple[str, float]]:
    return [("compute", bound.compute), ("HBM", bound.memory), ("links", bound.links)]


def table(reports: Sequence[Report]) -> str:
    """A sweep as a Markdown table, a row for each program that fits."""
    head = ["slice", "sessions", "block", "GiB", "compute ms", "HBM ms", "links ms", "binds", "MFU", "chip-hours"]
    rows = [head, ["---"] * len(head)]
    for r in reports:
        times = [f"{1e3 * s:.3g}" for _, s in _times(r.bound)]
        mfu = f"{r.bound.mfu(r.bound.apart):.0%}-{r.bound.mfu(r.bound.overlapped):.0%}"
        cells = [r.topology, str(r.sessions), r.block, f"{r.peak / 2**30:.1f}", *times, r.bound.binds, mfu]
        rows.append([*cells, f"{r.chip_hours:.3f}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def plot(reports: Sequence[Report], path: pathlib.Path) -> None:
    """A sweep for planning: least time of a call, between all overlapping and nothing, and memory, by sessions."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (times, memory) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for topology in dict.fromkeys(r.topology for r in reports):
        mine = sorted((r for r in reports if r.topology == topology), key=lambda r: r.sessions)
        sessions = [r.sessions for r in mine]
        (line,) = times.plot(sessions, [1e3 * r.bound.apart for r in mine], marker="o", label=topology)
        least = [1e3 * r.bound.overlapped for r in mine]
        times.fill_between(sessions, least, [1e3 * r.bound.apart for r in mine], color=line.get_color(), alpha=0.15)
        memory.plot(sessions, [r.peak / 2**30 for r in mine], marker="o", color=line.get_color(), label=topology)
    times.set(xlabel="sessions", ylabel="ms a call", title="bounds: all overlaps to nothing does", ylim=0)
    memory.set(xlabel="sessions", ylabel="GiB a device", title="memory", ylim=0)
    times.legend()
    figure.savefig(path)
    plt.close(figure)

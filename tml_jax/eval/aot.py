"""Compiles whole programs for a TPU slice that isn't there: the TPU compiler runs on any machine, on shapes alone.

It says whether the shardings are legal, whether the program fits the chips' memory, and what moves between them.
It says nothing of numerics or of real speed. No weight is ever allocated.
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh

from tml_jax import sharding
from tml_jax.eval import hlo
from tml_jax.executor.executor import Executor
from tml_jax.executor.live import LiveModel
from tml_jax.model.interaction import InteractionModel
from tml_jax.streams import packed
from tml_jax.train.config import ExperimentConfig
from tml_jax.train.trainer import Trainer

ProgramName = Literal["micro_turn", "train_step"]
PROGRAMS: tuple[ProgramName, ...] = ("micro_turn", "train_step")


@dataclasses.dataclass(frozen=True)
class Report:
    """What the compiler said of one program. Bytes are of one device.

    Attributes:
      arguments, outputs, temporaries, aliased: bytes; `aliased` is what outputs share with arguments.
      flops: of the compiler's own analysis, None where it has none; it counts a loop's body once.
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
    flops: float | None
    compile_s: float
    hlo: hlo.Program

    @property
    def total(self) -> int:
        """Bytes a device needs while the program runs."""
        return self.arguments + self.outputs - self.aliased + self.temporaries

    def to_json(self) -> dict[str, Any]:
        """A flat object: names as printed."""
        fields = dataclasses.asdict(self)
        program = fields.pop("hlo")
        return fields | program | {"total": self.total}


def make_mesh(topology: str, shape: Sequence[int]) -> Mesh:
    """A mesh (data, fsdp, expert, tensor) over a slice such as ``v5p:2x4x4``.

    Args:
      topology: the slice, as the TPU compiler names it.
      shape: four sizes; empty: chosen so that experts are cut over the largest half of the physical axes.

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
    shape = tuple(shape) or _default_shape(topology, devices)
    if len(shape) != len(sharding.MESH_AXES) or math.prod(shape) != devices:
        raise ValueError(
            f"Mesh {shape} must give four sizes {sharding.MESH_AXES} whose product is the {devices} devices."
        )
    try:
        return topologies.make_mesh(slice_, shape, sharding.MESH_AXES)
    except (NotImplementedError, ValueError) as error:
        raise ValueError(
            f"Mesh {shape} doesn't lie on {topology}: each size must be a product of physical axes."
        ) from error


def _default_shape(topology: str, devices: int) -> tuple[int, ...]:
    """The slice's physical axes as (data, 1, expert, tensor), the smallest first; one device: all ones."""
    sizes = sorted(int(size) for size in topology.partition(":")[2].split("x"))
    if math.prod(sizes) != devices or len(sizes) > 3:
        return (devices, 1, 1, 1)
    data, expert, tensor = (*(1,) * (3 - len(sizes)), *sizes)
    return (data, 1, expert, tensor)


def compile_program(
    experiment: ExperimentConfig, topology: str, program: ProgramName, *, sessions: int, mesh_shape: Sequence[int] = ()
) -> tuple[Report, jax.stages.Compiled]:
    """Compiles a program for a slice.

    Args:
      experiment: the model, and what a training window holds.
      topology: the slice; see `make_mesh`.
      program: "micro_turn", one step of `sessions` live conversations, or "train_step", of `sessions` windows.
      sessions: conversations in all.
      mesh_shape: sizes of (data, fsdp, expert, tensor).

    Raises:
      ValueError: no such slice, or the program doesn't fit it.
    """
    mesh = make_mesh(topology, mesh_shape)
    start = time.monotonic()
    lower = _micro_turn if program == "micro_turn" else _train_step
    try:
        compiled = lower(experiment, mesh, sessions).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = next((line for line in str(error).splitlines() if "Used" in line), str(error).splitlines()[0])
        raise ValueError(f"{program} of {sessions} sessions doesn't fit {topology}: {reason.strip()}") from error
    seconds = time.monotonic() - start
    memory = compiled.memory_analysis()
    costs = compiled.cost_analysis() or {}
    report = Report(
        program=program,
        topology=topology,
        mesh=dict(mesh.shape),
        device=mesh.devices.flat[0].device_kind,
        parameters=InteractionModel(experiment.model).num_params(),
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        flops=costs.get("flops"),
        compile_s=seconds,
        hlo=hlo.analyse(compiled.as_text()),
    )
    return report, compiled


def _micro_turn(experiment: ExperimentConfig, mesh: Mesh, sessions: int) -> jax.stages.Lowered:
    executor, model = Executor(mesh), InteractionModel(experiment.model, jnp.bfloat16)
    params = executor.abstract(model.abstract, model.axes)
    return LiveModel(executor, model, experiment.model.stream, sessions).lower_step(params)


def _train_step(experiment: ExperimentConfig, mesh: Mesh, windows: int) -> jax.stages.Lowered:
    trainer = Trainer(
        dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, dtype="bfloat16")), mesh
    )
    space, group = experiment.data.room, experiment.data.group
    packs = (windows // group, group * space.patches, group * space.speech)
    batch = packed.abstract(experiment.model.stream, (windows, space.turns), *packs)
    batch = trainer.executor.abstract(batch, sharding.leading("batch", batch))
    return trainer.lower(trainer.abstract_state(), batch)


def render(report: Report) -> str:
    """The report as text for a terminal."""
    gib = {name: getattr(report, name) / 2**30 for name in ("arguments", "outputs", "aliased", "temporaries", "total")}
    mesh = " x ".join(f"{axis} {size}" for axis, size in report.mesh.items())
    lines = [
        f"{report.program} for {report.topology} ({report.device}; {mesh}), {report.parameters / 1e9:.2f} B parameters",
        f"compiled in {report.compile_s:.1f} s",
        "memory of a device, GiB: " + ", ".join(f"{name} {value:.2f}" for name, value in gib.items()),
    ]
    if report.flops:
        lines.append(
            f"the compiler counts {report.flops / 1e12:.3f} TFLOP a device; that is no measure of work: "
            "it takes a loop's body once and no custom kernel"
        )
    lines.append("collectives of a call, on a device:")
    lines.append(f"  {'kind':20} {'runs':>6} {'MB':>12}  groups")
    lines += [f"  {c.kind:20} {c.count:6} {c.bytes / 1e6:12.2f}  {c.groups[:60]}" for c in report.hlo.collectives]
    if report.hlo.kernels:
        lines.append("custom kernels: " + ", ".join(f"{name} x{runs}" for name, runs in report.hlo.kernels.items()))
    if report.hlo.open_loops:
        lines.append(f"{report.hlo.open_loops} loops turn as often as their data says; their bodies are counted once")
    return "\n".join(lines)

"""Compiles a function for a TPU that isn't there, in a process of its own, and keeps what the compiler says.

The compiler reads its flags once a process, hence the child. Needs `libtpu` (the extra `tpu`), no TPU.
"""

import dataclasses
import importlib
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from pallas_kernels.static.chips import TOPOLOGIES, Chip
from pallas_kernels.static.schedule import Region, parse

# Quiet, and safe beside other processes: no accelerator is looked for, no metadata server asked.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
}
# An instruction begins a line; its metadata may go on over several.
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%(\S+) = (?:(?!^\s*(?:ROOT )?%\S+ = |^}$).*\n)*", re.MULTILINE)
_SCOPED = re.compile(r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"(\d+)","size":"(\d+)"')
_RAGGED_DOT_TILES = re.compile(r'ragged_dot_tiling="(\d+),(\d+),(\d+)"')


@dataclasses.dataclass
class Kernel:
    """One Mosaic kernel of a program.

    Attributes:
      name: of its instruction. regions: its schedule; None where the compiler printed none.
      vmem_bytes: that it uses, the compiler's own scratch included.
      tiles: (rows, K, columns) that XLA chose, if it is a `lax.ragged_dot`.
    """

    name: str
    regions: Region | None
    vmem_bytes: int
    tiles: tuple[int, ...] | None


@dataclasses.dataclass
class Compilation:
    """What became of a function: its kernels by name, or an error; `instructions` of the program besides kernels."""

    kernels: dict[str, Kernel] = dataclasses.field(default_factory=dict)
    instructions: int = 0
    temp_bytes: int = 0
    error: str | None = None

    def kernel(self, pattern: str) -> Kernel:
        """The one whose name fully matches the pattern, any trailing number aside."""
        found = [kernel for name, kernel in self.kernels.items() if re.fullmatch(pattern + r"(\.\d+)*", name)]
        if len(found) != 1:
            raise ValueError(f"{len(found)} kernels are named {pattern!r}, of {sorted(self.kernels)}.")
        return found[0]


def available() -> bool:
    """Whether the TPU compiler is installed."""
    return importlib.util.find_spec("libtpu") is not None


def compile_for(chip: Chip, build: str, kwargs: Mapping[str, Any], timeout: float = 600) -> Compilation:
    """Compiles what `build` makes for one device of the chip.

    Args:
      chip: to compile for.
      build: "module:function"; the function returns what to compile and a tuple of the shapes of its arguments.
      kwargs: of that function, as JSON can hold them.
      timeout: seconds after which the compiler is given up.

    Returns:
      What the compiler said; where it refused, its error in a line.
    """
    with tempfile.TemporaryDirectory() as directory:
        flags = (
            f"--xla_jf_dump_to={directory} --xla_jf_dump_llo_text=true "
            "--xla_jf_dump_llo_pass_label_regex=final_bundles|final_hlo"
        )
        command = [sys.executable, "-m", __spec__.name, build, json.dumps(kwargs), chip.name, directory]
        paths = [str(pathlib.Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | ENVIRONMENT | {"LIBTPU_INIT_ARGS": flags, "PYTHONPATH": os.pathsep.join(paths)}
        try:
            child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            return Compilation(error=f"not compiled after {timeout:.0f} s")
        result = pathlib.Path(directory) / "result.json"
        if not result.exists():
            return Compilation(error=_reason(child.stderr) or f"the compiler ended with {child.returncode}")
        return _read(pathlib.Path(directory), json.loads(result.read_text()), chip)


def _reason(stderr: str) -> str:
    """The line of a traceback that tells most."""
    lines = [line.strip() for line in stderr.splitlines() if re.match(r"[\w.]*(Error|Exception|INTERNAL)\b", line)]
    return lines[-1][:300] if lines else stderr.strip()[-300:]


def _read(directory: pathlib.Path, result: dict[str, Any], chip: Chip) -> Compilation:
    hlo = (directory / "program.txt").read_text()
    kernels = {}
    for call in _INSTRUCTION.finditer(hlo):
        if 'custom_call_target="tpu_custom_call"' not in call[0]:
            continue
        scoped, tiles = _SCOPED.search(call[0]), _RAGGED_DOT_TILES.search(call[0])
        vmem = int(scoped[2]) - int(scoped[1]) if scoped else 0
        kernels[call[1]] = Kernel(
            call[1], _regions(directory, call[1], chip), vmem, tuple(map(int, tiles.groups())) if tiles else None
        )
    others = len(re.findall(r"^\s*(?:ROOT )?%\S+ = \S+ (?:fusion|copy|sort|reduce-window|gather)\(", hlo, re.MULTILINE))
    return Compilation(kernels, others, result["temp_bytes"])


def _regions(directory: pathlib.Path, name: str, chip: Chip) -> Region | None:
    """The schedule of a kernel, from the files that the compiler dumped (<time>-<name>-<number>-<pass>.txt)."""
    files = {}
    for path in directory.iterdir():
        if found := re.fullmatch(
            rf"\d+-{re.escape(name)}-\d+-(final_bundles|final_hlo-static\S*utilization)\.txt", path.name
        ):
            files[found[1].partition("-")[0]] = path.read_text(errors="replace")
    if len(files) != 2:
        return None
    return parse(files["final_bundles"], files["final_hlo"], chip.matmul_cycles)


def _child(build: str, kwargs: str, chip: str, directory: str) -> None:
    import jax
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    module, _, name = build.partition(":")
    f, args = getattr(importlib.import_module(module), name)(**json.loads(kwargs))
    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip]).devices
    mesh = Mesh(np.array(devices[:1]), ("device",))
    placed = NamedSharding(mesh, PartitionSpec())
    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), args)
    with jax.set_mesh(mesh):
        compiled = jax.jit(f).lower(*args).compile()
    folder = pathlib.Path(directory)
    (folder / "program.txt").write_text(compiled.as_text())
    result = {"temp_bytes": compiled.memory_analysis().temp_size_in_bytes}
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    _child(*sys.argv[1:])

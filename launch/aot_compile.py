"""Compiles a program for a TPU slice, no chip needed, and prints its memory and what moves between chips.

    python -m launch.aot_compile --config=configs/inkling_small.py --topology=v5p:2x4x4 --program=micro_turn

Needs the TPU compiler: ``pip install -c constraints.txt 'tml_jax[tpu]'``.
"""

import importlib.util
import json
import os
import pathlib
import sys

from absl import flags

# Read when jax and libtpu are loaded: no accelerator is looked for, no metadata server asked, no log written.
os.environ["JAX_PLATFORMS"] = "cpu"
for _name, _value in {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
}.items():
    os.environ.setdefault(_name, _value)

from launch import cli  # noqa: E402
from tml_jax.eval import aot  # noqa: E402
from tml_jax.train.config import load_experiment  # noqa: E402

CONFIG = cli.config("configs/inkling_small.py")
TOPOLOGY = flags.DEFINE_string("topology", "v5p:2x4x4", "The slice: v5p:2x4x4, v6e:4x4, tpu7x:2x2x4, ...")
PROGRAM = flags.DEFINE_enum("program", "micro_turn", aot.PROGRAMS, "What is compiled.")
SESSIONS = flags.DEFINE_integer("sessions", 32, "Live conversations, or windows of a training step.", lower_bound=1)
MESH = cli.mesh("the slice's own axes")
JSON = cli.json_out()
HLO = cli.out_file("hlo", None, "Also write the compiled program's HLO text here.")


def main(argv: list[str]) -> None:
    del argv
    if importlib.util.find_spec("libtpu") is None:
        sys.exit(
            "launch.aot_compile: libtpu, the TPU compiler, is missing; pip install -c constraints.txt 'tml_jax[tpu]'."
        )
    experiment = load_experiment(CONFIG.value)
    report, compiled = aot.compile_program(
        experiment, TOPOLOGY.value, PROGRAM.value, sessions=SESSIONS.value, mesh_shape=cli.mesh_shape(MESH)
    )
    print(aot.render(report))
    if JSON.value:
        pathlib.Path(JSON.value).write_text(json.dumps(report.to_json(), indent=1) + "\n")
    if HLO.value:
        pathlib.Path(HLO.value).write_text(compiled.as_text())


if __name__ == "__main__":
    cli.run(main)

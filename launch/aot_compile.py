"""Compiles a program for a TPU slice, no chip needed: its memory, what moves between chips, the least time of a call.

    python -m launch.aot_compile --config=configs/inkling_small.py --topology=v5p:2x4x4 --program=micro_turn

    python -m launch.aot_compile --sweep=DIR --topologies=v5p:2x4x4,v6e:8x8 --counts=16,32,64

Needs the TPU compiler: ``pip install -c constraints.txt 'tml_jax[tpu]'``.
"""

import importlib.util
import json
import os
import pathlib
import sys

from absl import app, flags

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
from tml_jax.perf import aot  # noqa: E402
from tml_jax.train.config import load_experiment  # noqa: E402

CONFIG = cli.config("configs/inkling_small.py")
TOPOLOGY = flags.DEFINE_string("topology", "v5p:2x4x4", "The slice: v5p:2x4x4, v6e:4x4, tpu7x:2x2x4, ...")
PROGRAM = flags.DEFINE_enum("program", "micro_turn", aot.PROGRAMS, "What is compiled.")
SESSIONS = flags.DEFINE_integer("sessions", 32, "Live conversations, or windows of a training step.", lower_bound=1)
BLOCK = flags.DEFINE_string("block", None, "Of a micro-turn: sound, sound+text, ...; none: the longest.")
SWEEP = cli.out_folder("sweep", None, "Compiles for several slices and sizes: a table, and a plot, in this folder.")
TOPOLOGIES = flags.DEFINE_list("topologies", None, "Of a sweep, instead of --topology.")
COUNTS = flags.DEFINE_list("counts", None, "Numbers of sessions of a sweep, such as 16,32,64, instead of --sessions.")


@flags.validator("counts")
def _check_counts(counts: list[str] | None) -> bool:
    if counts is not None and not all(count.isdigit() and int(count) for count in counts):
        raise flags.ValidationError(f"numbers of 1 and more are needed, such as 16,32, not {','.join(counts)}.")
    return True


WEIGHTS = cli.weights()
MESH = cli.mesh("of a training step the experiment's, where it covers the slice; else the slice's own axes")
JSON = cli.json_out()
HLO = cli.out_file("hlo", None, "Also write the compiled program's HLO text here.")


def main(argv: list[str]) -> None:
    del argv
    if importlib.util.find_spec("libtpu") is None:
        sys.exit(
            "launch.aot_compile: libtpu, the TPU compiler, is missing; pip install -c constraints.txt 'tml_jax[tpu]'."
        )
    experiment = load_experiment(CONFIG.value)
    reports, compiled = [], None
    topologies, counts = [TOPOLOGY.value], [SESSIONS.value]
    if (TOPOLOGIES.value or COUNTS.value) and not SWEEP.value:
        raise app.UsageError("--topologies and --counts are of a sweep: name its folder with --sweep.")
    if SWEEP.value:
        topologies, counts = TOPOLOGIES.value or topologies, [int(n) for n in COUNTS.value or counts]
    cases = [(topology, sessions) for topology in topologies for sessions in counts]
    for topology, sessions in cases:
        try:
            report, compiled = aot.compile_program(
                experiment,
                topology,
                PROGRAM.value,
                sessions=sessions,
                mesh_shape=cli.mesh_shape(MESH),
                block=BLOCK.value,
                int8=WEIGHTS.value == "int8",
            )
        except ValueError as error:
            if not SWEEP.value:
                raise
            print(error, file=sys.stderr)
        else:
            reports.append(report)
            print(aot.render(report), flush=True)
    if SWEEP.value:
        print(aot.table(reports))
        folder = pathlib.Path(SWEEP.value)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "table.md").write_text(aot.table(reports) + "\n")
        aot.plot(reports, folder / "plot.png")
    if JSON.value:
        written = [report.to_json() for report in reports]
        pathlib.Path(JSON.value).write_text(json.dumps(written if SWEEP.value else written[0], indent=1) + "\n")
    if HLO.value and compiled is not None:
        pathlib.Path(HLO.value).write_text(compiled.as_text())


if __name__ == "__main__":
    cli.run(main)

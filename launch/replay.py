"""Replays a recorded session: ``python -m launch.replay --recording=DIR/ID --checkpoint=checkpoints/inkling_tiny``.

What a server with --record_dir has recorded of a session is left in --out: ``conversation.wav`` (left what was heard,
right what was said), ``session.jsonl`` and ``trace.json`` (for Perfetto or chrome://tracing). With a model it is
stepped again, and every decision, word and sound compared bit by bit; status 1 says that one differs.
"""

import pathlib
import sys

from absl import flags

from launch import cli
from tml_jax.eval.conversation import make_folder
from tml_jax.eval.replay import export, replay
from tml_jax.executor.executor import Executor
from tml_jax.serve.bundle import load_bundle
from tml_jax.serve.recording import Recorded

_RECORDING = flags.DEFINE_string(
    "recording", None, "Folder of one session, below that of launch.serve --record_dir.", required=True
)
_CHECKPOINT = cli.checkpoint(None)
_MESH = cli.mesh("the first device alone")
_DTYPE = cli.dtype()
_WEIGHTS = cli.weights()
_OUT = cli.out_folder("out", "out", "Folder for the sound, the journal and the trace.")


def main(argv: list[str]) -> None:
    """Exports the recording and, with a model, replays it."""
    del argv
    out = pathlib.Path(_OUT.value)
    recorded = Recorded(pathlib.Path(_RECORDING.value))
    make_folder(out)
    turns, ended = export(recorded, out)
    print(f"{turns} micro-turns are in {out}{'.' if ended else ', up to where they are cut off or went on elsewhere.'}")
    if not _CHECKPOINT.value:
        return
    executor = Executor.of_shape(cli.mesh_shape(_MESH))
    bundle = load_bundle(_CHECKPOINT.value, executor, _DTYPE.value, _WEIGHTS.value == "int8")
    same, differs = replay(recorded, bundle)
    if differs:
        turn = recorded.turn + same
        sys.exit(f"Micro-turn {turn} differs in {differs}; of {turns} the {same} before it are the same bits.")
    print(f"{same} of {turns} micro-turns are the same bits.")


if __name__ == "__main__":
    cli.run(main)

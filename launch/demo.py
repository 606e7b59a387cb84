"""The demo: a server in a second process, a conversation that shows each behaviour once, and how the model did.

``python -m launch.demo`` draws the scenes from held-out voices by ``--seed``, plays them through the real client at
the pace of time, and leaves ``conversation.wav`` (both sides), ``reply.wav``, ``session.jsonl``, ``timeline.png`` and
``summary.json`` in ``out/``. What the model does otherwise than expected is told, and is no error.
"""

import pathlib
import sys

from rich.console import Console
from rich.table import Table

from launch import cli
from tml_jax import client
from tml_jax.checkpoint.store import open_model
from tml_jax.client import summary
from tml_jax.data.demonstration import draw_scenes
from tml_jax.data.pipeline import open_bank
from tml_jax.eval.conversation import make_folder
from tml_jax.eval.performance import Performance, keep, play
from tml_jax.serve import subprocess_server

_CHECKPOINT = cli.checkpoint()
_BANK = cli.bank()
_OUT = cli.out_folder("out", "out", "Folder for what comes back.")
_SEED = cli.seed(0, "Of everything that is drawn, and of the sessions.")


def tables(played: list[Performance]) -> list[Table]:
    """What the user meant and the model heard and said; and what was expected, what happened, and whether met."""
    words = Table("scene", "the user meant", "the model heard", "the model said", show_lines=True)
    judged = Table("scene", "second", "expected", "what happened", "")
    marks = {True: "[green]met", False: "[red]missed", None: "not tested"}
    for one in played:
        meant = " ".join(word for _, word in one.meant())
        words.add_row(one.scene.name, meant, one.text("heard"), one.text("word"))
        for outcome in one.outcomes:
            told = (f"{outcome.time_s:.1f}", outcome.expected, outcome.happened, marks[outcome.met])
            judged.add_row(outcome.scene, *told)
        judged.add_section()
    return [words, judged]


def main(argv: list[str]) -> None:
    """Runs the demo."""
    del argv
    out = pathlib.Path(_OUT.value)
    try:
        make_folder(out)
        spec = open_model(_CHECKPOINT.value)[0].stream
        scenes = draw_scenes(open_bank(_BANK.value), spec, _SEED.value)
        print("Starting the server (it compiles before it opens its port) ...", flush=True)
        arguments = ["--slots=2", f"--journal_dir={out / 'journals'}"]
        with subprocess_server.run(_CHECKPOINT.value, arguments) as address:
            played, compilations = play(address, scenes, spec, _SEED.value)
        name = pathlib.Path(_CHECKPOINT.value).name
        figures = keep(out, played, compilations, f"A live conversation with {name}, seed {_SEED.value}")
    except (ValueError, client.SessionError, subprocess_server.ServerFailedError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("Stopped by Ctrl-C.", file=sys.stderr)
        sys.exit(130)
    console = Console(width=None if sys.stdout.isatty() else 120)
    for table in tables(played):
        console.print(table)
    shown = {name: value for name, value in figures.items() if not isinstance(value, list) and name not in _TOLD}
    print(summary.table(shown))
    print(f"\n{figures['expectations_met']} of {figures['expectations']} expectations met.")
    print(f"Look at {out / 'timeline.png'} and listen to {out / 'conversation.wav'}.")


_TOLD = ("heard", "said")  # the tables hold them


if __name__ == "__main__":
    cli.run(main)

"""The demo: a server in a second process, the bundled conversation through the real client, figures and a picture.

``python -m launch.demo`` leaves ``reply.wav``, ``session.jsonl``, ``timeline.png`` and ``summary.json`` in ``out/``
and exits with an error where the server fails or the model stays silent.
"""

import pathlib
import sys

from absl import app, flags

from launch import chat
from tml_jax.serve import client, media, subprocess_server, summary

_CHECKPOINT = flags.DEFINE_string("demo_checkpoint", "checkpoints/inkling_tiny", "Folder of the saved model.")
_SOUND = flags.DEFINE_string("demo_wav", "examples/demo.wav", "Sound of the user.")
_MOVIE = flags.DEFINE_string("demo_video", "examples/demo.mp4", "Video of the user; empty for none.")
_FOLDER = flags.DEFINE_string("demo_out", "out", "Folder for what comes back.")
_TITLE = "A live conversation with inkling_tiny"


def main(argv: list[str]) -> None:
    """Runs the demo."""
    del argv
    try:
        script = client.Script(
            sound=media.read_sound(_SOUND.value),
            video=media.read_video(_MOVIE.value, 10.0) if _MOVIE.value else None,
        )
        print("Starting the server (it compiles before it opens its port) ...", flush=True)
        out = pathlib.Path(_FOLDER.value)
        with subprocess_server.run(_CHECKPOINT.value, ["--journal_dir", str(out / "journals")]) as address:
            print(f"Streaming {_SOUND.value} at real-time pace to {address} ...", flush=True)
            figures = chat.hold(address, script, out, chunk_ms=20.0, title=_TITLE)
    except (ValueError, client.SessionError, subprocess_server.ServerFailedError) as error:
        sys.exit(str(error))
    print()
    print(summary.table(figures))
    print(f"\nLook at {out / 'timeline.png'} and listen to {out / 'reply.wav'}.")
    if not figures["reply_sound_s"]:
        sys.exit("The model stayed silent: the demo failed.")


if __name__ == "__main__":
    app.run(main)

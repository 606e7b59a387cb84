"""Talks to a server: ``python -m launch.chat --wav=in.wav [--video=clip.mp4] --server=127.0.0.1:50051 --out=out``.

Streams files or the microphone at the pace of time, shows the conversation live, and leaves in the folder
``reply.wav`` (what was heard, from session time 0), ``session.jsonl``, ``timeline.png`` and ``summary.json``; also
of a session that Ctrl-C (exit status 130) or the server's end (1) cut short.
"""

import math
import pathlib
import sys

import numpy as np
from absl import flags

from launch import cli, reach
from tml_jax import client
from tml_jax.client import media, summary
from tml_jax.eval.conversation import MIC_RATE, hold, make_folder
from tml_jax.serve import intake

_SERVER = reach.server()
_WAV = flags.DEFINE_string("wav", None, "Sound of the user: any format, rate and channels.")
_MIC = flags.DEFINE_bool("mic", False, "Take the user's sound from the microphone.")
_SECONDS = flags.DEFINE_float("seconds", 30.0, "How long the microphone is open.", lower_bound=0.2)
_VIDEO = flags.DEFINE_string(
    "video", None, "Video of the user; its own sound is used unless --wav, --mic or --text is given."
)
_FPS = flags.DEFINE_float("fps", 10.0, "Most frames a second that are sent.", lower_bound=0.1)
_TEXT = flags.DEFINE_multi_string("text", [], "Typed text, as SECONDS:TEXT or TEXT (at once).")
_INSTRUCTIONS = flags.DEFINE_string("instructions", "", "Instructions for the whole session.")
_OUT = cli.out_folder("out", "out", "Folder for what comes back.")
_TAIL_S = flags.DEFINE_float(
    "tail_s", 3.0, "Seconds of silence after the sound, in which the model may answer.", lower_bound=0
)
_CHUNK_MS = cli.chunk_ms()
_SEED = cli.seed(0, "Seed of the session.")

for _number in ("seconds", "fps", "tail_s", "chunk_ms"):
    flags.register_validator(_number, math.isfinite, "must be a finite number")


def parse_text(text: str) -> tuple[float, str]:
    """``"3.5:hello"`` -> (3.5, "hello"); without a number in front, at once.

    Raises:
      ValueError: the time is none of a session, or there is no text.
    """
    head, colon, rest = text.partition(":")
    try:
        time_s, words = (float(head), rest) if colon else (0.0, text)
    except ValueError:
        time_s, words = 0.0, text
    if not (math.isfinite(time_s) and time_s >= 0):
        raise ValueError(f"--text={text} cannot be typed at {head.strip()} s: give seconds from 0 on.")
    return time_s, intake.check_text(words)


def script_of_flags() -> client.Script:
    """What the flags ask to say and show.

    Raises:
      ValueError: there is nothing, or too much, or a file cannot be read.
    """
    if not (_WAV.value or _MIC.value or _TEXT.value or _VIDEO.value):
        raise ValueError("Nothing to say: give --wav, --mic, --text or --video.")
    if _WAV.value and _MIC.value:
        raise ValueError("--wav and --mic are two sounds for one user: give one of them.")
    texts = [parse_text(text) for text in _TEXT.value]
    video = media.read_video(_VIDEO.value, _FPS.value) if _VIDEO.value else None
    spoken = None
    if _WAV.value:
        spoken = media.read_sound(_WAV.value)
    elif _MIC.value:
        spoken = media.SoundFile(np.zeros((0, 1), np.float32), MIC_RATE)
    elif video and not texts:
        spoken = media.sound_of_video(_VIDEO.value)
    return client.Script(
        sound=spoken,
        video=video,
        texts=texts,
        tail_s=_TAIL_S.value,
        instructions=_INSTRUCTIONS.value,
        seed=_SEED.value,
    )


def main(argv: list[str]) -> None:
    """Holds the conversation that the flags describe."""
    del argv
    out = pathlib.Path(_OUT.value)
    try:
        make_folder(out)
        mic_s = _SECONDS.value if _MIC.value else 0.0
        figures = hold(_SERVER(), script_of_flags(), out, _CHUNK_MS.value, mic_s)
    except (ValueError, client.SessionError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print(f"Stopped by Ctrl-C: what there was of a session is in {out}.", file=sys.stderr)
        sys.exit(130)
    print(summary.table(figures))


if __name__ == "__main__":
    cli.run(main)

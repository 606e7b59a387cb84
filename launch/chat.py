"""Talks to a server: ``python -m launch.chat --wav=in.wav [--video=clip.mp4] --server=127.0.0.1:50051 --out=out``.

Streams files or the microphone at the pace of time, shows the conversation live, and leaves in the folder
``reply.wav`` (what was heard, from session time 0), ``session.jsonl``, ``timeline.png`` and ``summary.json``.
"""

import asyncio
import json
import pathlib
import sys
from typing import Any

import numpy as np
from absl import app, flags

from tml_jax.eval import plot
from tml_jax.serve import client, live_view, media, microphone, summary
from tml_jax.serve.journal import Journal
from tml_jax.streams import sound

_SERVER = flags.DEFINE_string("server", "127.0.0.1:50051", "host:port of the server.")
_WAV = flags.DEFINE_string("wav", None, "Sound of the user: any rate, channels and format.")
_MIC = flags.DEFINE_bool("mic", False, "Take the user's sound from the microphone.")
_SECONDS = flags.DEFINE_float("seconds", 30.0, "How long the microphone is open.", lower_bound=0.2)
_VIDEO = flags.DEFINE_string("video", None, "Video of the user.")
_FPS = flags.DEFINE_float("fps", 10.0, "Most frames a second that are sent.", lower_bound=0.1)
_TEXT = flags.DEFINE_multi_string("text", [], "Typed text, as SECONDS:TEXT or TEXT (at once).")
_INSTRUCTIONS = flags.DEFINE_string("instructions", "", "Instructions for the whole session.")
_OUT = flags.DEFINE_string("out", "out", "Folder for what comes back.")
_TAIL_S = flags.DEFINE_float(
    "tail_s", 3.0, "Seconds of silence after the sound, in which the model may answer.", lower_bound=0
)
_CHUNK_MS = flags.DEFINE_float(
    "chunk_ms", 20.0, "Length of the pieces of sound that are sent.", lower_bound=0.1, upper_bound=1000
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the session.", lower_bound=0, upper_bound=2**32 - 1)

MIC_RATE = 16_000


def hold(
    server: str, script: client.Script, out: pathlib.Path, chunk_ms: float, mic_s: float = 0.0, title: str = ""
) -> dict[str, Any]:
    """Holds a conversation, shows it, and writes everything that `out` should hold.

    Args:
      server: host:port.
      script: what is said and shown.
      out: the folder.
      chunk_ms: length of the pieces of sound.
      mic_s: seconds of microphone instead of the script's sound.
      title: heading of the picture.

    Returns:
      The summary.

    Raises:
      SessionError: the server refused or ended the session.
      ValueError: the microphone cannot be opened.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "session.jsonl").unlink(missing_ok=True)
    kept: list[bytes] = []

    async def run() -> tuple[client.Recording, Any]:
        channel = client.connect(server)
        async with channel:
            await client.server_info(channel)  # a server that is not there is told before anything is shown
            mic = microphone.listen(MIC_RATE, chunk_ms, mic_s, kept) if mic_s else None
            with Journal(out / "session.jsonl", keep=True) as journal, live_view.LiveView() as view:
                recording = await client.converse(
                    channel, script, chunk_ms=chunk_ms, journal=journal, observe=view.observe, microphone=mic
                )
            return recording, await client.server_info(channel)

    recording, info = asyncio.run(run())
    said = script.sound
    if kept:
        said = media.SoundFile(np.frombuffer(b"".join(kept), "<i2").astype(np.float32).reshape(-1, 1) / 32767, MIC_RATE)
    user, rate = (said.mono(), said.sample_rate) if said else (None, MIC_RATE)
    sound.write_sound(out / "reply.wav", recording.reply, recording.sample_rate)
    figures = summary.summarise(recording.events, user, rate, recording.reply, recording.sample_rate)
    figures |= {
        "round_trip_p50_ms": round(float(np.percentile(recording.round_trip_ms or [0.0], 50)), 2),
        "round_trip_p99_ms": round(float(np.percentile(recording.round_trip_ms or [0.0], 99)), 2),
        "playback_underruns": recording.underruns,
        "compilations_after_warmup": info.compilations_after_warmup,
    }
    (out / "summary.json").write_text(json.dumps(figures, indent=2) + "\n")
    frames = list(zip(script.video.times_s, script.video.frames, strict=True)) if script.video else []
    plot.plot_timeline(
        out / "timeline.png",
        recording.events,
        plot.Sound(user, rate) if user is not None else None,
        plot.Sound(recording.reply, recording.sample_rate),
        frames,
        title,
    )
    return figures


def parse_text(text: str) -> tuple[float, str]:
    """``"3.5:hello"`` -> (3.5, "hello"); without a number in front, at once."""
    head, colon, rest = text.partition(":")
    try:
        return (float(head), rest) if colon else (0.0, text)
    except ValueError:
        return 0.0, text


def main(argv: list[str]) -> None:
    """Holds the conversation that the flags describe."""
    del argv
    try:
        if not (_WAV.value or _MIC.value or _TEXT.value):
            raise ValueError("Nothing to say: give --wav, --mic or --text.")
        if _WAV.value and _MIC.value:
            raise ValueError("--wav and --mic are two sounds for one user: give one of them.")
        spoken = media.read_sound(_WAV.value) if _WAV.value else None
        if _MIC.value:
            spoken = media.SoundFile(np.zeros((0, 1), np.float32), MIC_RATE)
        script = client.Script(
            sound=spoken,
            video=media.read_video(_VIDEO.value, _FPS.value) if _VIDEO.value else None,
            texts=[parse_text(text) for text in _TEXT.value],
            tail_s=_TAIL_S.value,
            instructions=_INSTRUCTIONS.value,
            seed=_SEED.value,
        )
        figures = hold(
            _SERVER.value, script, pathlib.Path(_OUT.value), _CHUNK_MS.value, _SECONDS.value if _MIC.value else 0.0
        )
    except (ValueError, client.SessionError) as error:
        sys.exit(str(error))
    print(summary.table(figures))


if __name__ == "__main__":
    app.run(main)

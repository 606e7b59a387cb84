"""A conversation with a server, from the script to the folder that holds what came back."""

import asyncio
import json
import os
import pathlib
import tempfile
import types
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import numpy as np

from tml_jax import client
from tml_jax.client import live_view, media, microphone, summary
from tml_jax.eval import plot
from tml_jax.streams import sound
from tml_jax.wire import events
from tml_jax.wire.journal import Journal

MIC_RATE = 16_000
_FILES = ("reply.wav", "session.jsonl", "timeline.png", "summary.json")


def hold(
    server: str | client.Address,
    script: client.Script,
    out: pathlib.Path,
    chunk_ms: float,
    mic_s: float = 0.0,
    title: str = "",
) -> dict[str, Any]:
    """Holds a conversation, shows it, and writes everything that `out` should hold.

    What was in `out` stays until the session has begun. A session that is cut short leaves what there was of it.

    Args:
      server: host:port, or more of it.
      script: what is said and shown.
      out: the folder.
      chunk_ms: length of the pieces of sound.
      mic_s: seconds of microphone instead of the script's sound.
      title: heading of the picture.

    Returns:
      The summary.

    Raises:
      SessionError: the server refused or ended the session, or has gone.
      ValueError: `out` cannot be written, the microphone cannot be opened, or the video is damaged.
      KeyboardInterrupt: Ctrl-C.
    """
    make_folder(out)
    recording, heard = client.Recording(), list[bytes]()
    compilations: int | None = None

    def listen() -> AsyncIterator[bytes]:
        return microphone.listen(MIC_RATE, chunk_ms, mic_s, heard)

    try:
        journal = out / "session.jsonl"
        compilations = converse(server, script, recording, journal, chunk_ms, listen if mic_s else None)
    finally:
        said = script.sound
        if mic_s:
            pcm = np.frombuffer(b"".join(heard), "<i2").astype(np.float32)
            said = media.SoundFile(pcm.reshape(-1, 1) / 32767, MIC_RATE)
        figures = leave(out, recording, said, compilations, title) if recording.session_id else {}
    return figures


def converse(
    server: str | client.Address,
    script: client.Script,
    recording: client.Recording,
    journal: pathlib.Path | None,
    chunk_ms: float,
    listen: Callable[[], AsyncIterator[bytes]] | None = None,
) -> int:
    """Holds a conversation and shows it; returns how often the server has compiled since it was warm.

    Args:
      server: host:port, or more of it.
      script: what is said and shown.
      recording: filled with what comes back, however the session ends.
      journal: the file for its events, replaced when the session has begun; None: they are only in `recording`.
      chunk_ms: length of the pieces of sound.
      listen: opens the microphone, whose sound is sent instead of the script's.

    Raises:
      SessionError: the server refused or ended the session, or has gone.
      ValueError: the microphone cannot be opened, or the video is damaged.
    """

    async def run() -> int:
        channel = client.connect(server)
        async with channel:
            await client.server_info(channel)  # a server that is not there is told before anything is shown
            mic = listen() if listen else None
            with Journal(journal, keep=True) as kept, live_view.LiveView() as view:

                def observe(event: events.Event) -> None:
                    if journal and isinstance(event, events.Started):
                        journal.unlink(missing_ok=True)
                    view.observe(event)

                await client.converse(
                    channel,
                    script,
                    chunk_ms=chunk_ms,
                    journal=kept,
                    observe=observe,
                    microphone=mic,
                    recording=recording,
                )
            return int((await client.server_info(channel)).compilations_after_warmup)

    return asyncio.run(run())


def leave(
    out: pathlib.Path,
    recording: client.Recording,
    said: media.SoundFile | None,
    compilations: int | None,
    title: str,
    score: plot.Score | None = None,
    more: Mapping[str, Any] = types.MappingProxyType({}),
) -> dict[str, Any]:
    """Writes what there is of a session (its journal is written already), and returns its summary.

    Args:
      out: the folder.
      recording: what came back.
      said: the user's sound.
      compilations: of the server since it was warm; None: unknown.
      title: heading of the picture.
      score: what was expected, for the picture.
      more: figures that come first in the summary.

    Raises:
      ValueError: something cannot be written.
    """
    user, rate = None, MIC_RATE
    if said:
        user, rate = said.mono()[: round(recording.duration_s * said.sample_rate)], said.sample_rate
    figures = dict(more) | summary.summarise(recording.events, user, rate, recording.reply, recording.sample_rate)
    figures |= {
        "round_trip_p50_ms": round(float(np.percentile(recording.round_trip_ms or [0.0], 50)), 2),
        "round_trip_p99_ms": round(float(np.percentile(recording.round_trip_ms or [0.0], 99)), 2),
        "playback_underruns": recording.underruns,
        "compilations_after_warmup": compilations,
    }
    sound.write_sound(out / "reply.wav", recording.reply, recording.sample_rate)
    try:
        (out / "summary.json").write_text(json.dumps(figures, indent=2) + "\n")
        plot.plot_timeline(
            out / "timeline.png",
            recording.events,
            plot.Sound(user, rate) if user is not None else None,
            plot.Sound(recording.reply, recording.sample_rate),
            [shot for shot in recording.thumbnails.shots if shot[0] <= recording.duration_s],
            title,
            score,
        )
    except OSError as error:
        raise ValueError(f"What came back cannot be written to {out}: {error.strerror}.") from error
    return figures


def make_folder(out: pathlib.Path) -> None:
    """Makes the folder for what comes back.

    Raises:
      ValueError: nothing can be written there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
        for path in (out / name for name in _FILES):
            if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
                raise PermissionError(0, f"{path.name} is there and cannot be replaced")
    except OSError as error:
        raise ValueError(f"Nothing can be written to {out} ({error.strerror}): give another --out.") from error

"""Puts load on a server: ``python -m launch.load --server=127.0.0.1:50051 --sessions=8 --seconds=60 --json=load.json``.

Every session is a real gRPC client that streams sound (and frames) at the pace of time; all of them live in this
one process. Prints how long steps took on the server and how many were too late.
"""

import asyncio
import json
import pathlib
import sys
from typing import Any

import numpy as np
from absl import app, flags

from tml_jax.serve import client, media, summary

_SERVER = flags.DEFINE_string("server", "127.0.0.1:50051", "host:port of the server.")
_SESSIONS = flags.DEFINE_integer("sessions", 8, "Sessions at once.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 60.0, "Length of each.", lower_bound=1)
_WAV = flags.DEFINE_string("wav", None, "Sound that every session sends, over and over; noise in bursts without it.")
_VIDEO = flags.DEFINE_bool("video", False, "Send ten small frames a second, too.")
_CHUNK_MS = flags.DEFINE_float(
    "chunk_ms", 20.0, "Length of the pieces of sound that are sent.", lower_bound=1, upper_bound=1000
)
_JSON = flags.DEFINE_string("json", None, "Where the figures are written as JSON.")


def _sound(seed: int) -> media.SoundFile:
    if _WAV.value:
        once = media.read_sound(_WAV.value)
        size = round(_SECONDS.value * once.sample_rate)
        repeats = -(-size // len(once.samples))
        return media.SoundFile(np.tile(once.samples, (repeats, 1))[:size], once.sample_rate)
    rng, rate = np.random.default_rng(seed), 16_000
    time_s = np.arange(round(_SECONDS.value * rate)) / rate
    talks = np.sin(2 * np.pi * (time_s / rng.uniform(3, 6) + rng.random())) > 0
    return media.SoundFile((0.1 * talks * rng.standard_normal(len(time_s))).astype(np.float32)[:, None], rate)


def _video(seed: int) -> media.VideoFile:
    rng = np.random.default_rng(seed)
    count = round(_SECONDS.value * 10)
    return media.VideoFile(
        [rng.integers(0, 255, (40, 40, 3), np.uint8) for _ in range(count)], [i / 10 for i in range(count)]
    )


async def _run() -> tuple[list[client.Recording], list[str], Any]:
    async def one(seed: int) -> client.Recording:
        channel = client.connect(_SERVER.value)
        async with channel:
            script = client.Script(_sound(seed), _video(seed) if _VIDEO.value else None, tail_s=0.0, seed=seed)
            return await client.converse(channel, script, chunk_ms=_CHUNK_MS.value)

    results = await asyncio.gather(*(one(seed) for seed in range(_SESSIONS.value)), return_exceptions=True)
    recordings = [result for result in results if isinstance(result, client.Recording)]
    failures = [str(result) for result in results if isinstance(result, BaseException)]
    channel = client.connect(_SERVER.value)
    async with channel:
        return recordings, failures, await client.server_info(channel)


def main(argv: list[str]) -> None:
    """Runs the load and prints its figures."""
    del argv
    try:
        recordings, failures, info = asyncio.run(_run())
    except (ValueError, client.SessionError) as error:
        sys.exit(str(error))
    steps = [event for recording in recordings for event in recording.events if event["type"] == "step"]
    step_ms = np.asarray([event["ms"] for event in steps] or [0.0])
    trips = np.concatenate([recording.round_trip_ms for recording in recordings]) if recordings else np.zeros(1)
    figures = {
        "sessions": _SESSIONS.value,
        "sessions_failed": len(failures),
        "seconds": _SECONDS.value,
        "micro_turns": len(steps),
        "step_p50_ms": round(float(np.percentile(step_ms, 50)), 2),
        "step_p99_ms": round(float(np.percentile(step_ms, 99)), 2),
        "step_max_ms": round(float(step_ms.max()), 2),
        "deadline_misses": sum(event["missed"] for event in steps),
        "round_trip_p50_ms": round(float(np.percentile(trips, 50)), 2),
        "round_trip_p99_ms": round(float(np.percentile(trips, 99)), 2),
        "silence_inserted_ms": sum(
            event["ms"] for recording in recordings for event in recording.events if event["type"] == "silence"
        ),
        "playback_underruns": sum(recording.underruns for recording in recordings),
        "compilations_after_warmup": info.compilations_after_warmup,
    }
    print(summary.table(figures))
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(figures, indent=2) + "\n")
    if failures:
        sys.exit(f"{len(failures)} sessions failed, the first because: {failures[0]}")


if __name__ == "__main__":
    app.run(main)

"""Puts load on a server: ``python -m launch.load --server=127.0.0.1:50051 --sessions=8 --seconds=60 --json=load.json``.

Every session is a real gRPC client that streams sound (and frames) at the pace of time; all of them live in this
one process. Prints how long steps took on the server and how many were too late.
"""

import asyncio
import json
import math
import pathlib
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from absl import flags

from launch import cli, reach
from tml_jax import client
from tml_jax.client import media, summary

_SERVER = reach.server()
_SESSIONS = flags.DEFINE_integer("sessions", 8, "Sessions at once.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 60.0, "Length of each.", lower_bound=1)
_WAV = flags.DEFINE_string(
    "wav", None, "Sound that every session sends, over and over, each from another place on; else noise."
)
_FRAMES = flags.DEFINE_bool("frames", False, "Send ten small frames a second, too.")
_CHUNK_MS = cli.chunk_ms()
flags.register_validator("seconds", math.isfinite, "must be a finite number")
_JSON = cli.json_out()
_MINUTE_S = 60


def _sound(seed: int) -> media.SoundFile:
    if _WAV.value:
        once = media.read_sound(_WAV.value)
        size = round(_SECONDS.value * once.sample_rate)
        begins = seed * len(once.samples) // _SESSIONS.value  # not all say the same at once
        places = (begins + np.arange(size)) % len(once.samples)
        return media.SoundFile(once.samples[places], once.sample_rate)
    rng, rate = np.random.default_rng(seed), 16_000
    time_s = np.arange(round(_SECONDS.value * rate)) / rate
    talks = np.sin(2 * np.pi * (time_s / rng.uniform(3, 6) + rng.random())) > 0
    return media.SoundFile((0.1 * talks * rng.standard_normal(len(time_s))).astype(np.float32)[:, None], rate)


def _video(seed: int) -> media.VideoFile:
    rng = np.random.default_rng(seed)
    shots = [rng.integers(0, 255, (40, 40, 3), np.uint8) for _ in range(16)]
    times_s = [i / 10 for i in range(round(_SECONDS.value * 10))]
    return media.VideoFile([shots[i % len(shots)] for i in range(len(times_s))], times_s)


async def _run(recordings: list[client.Recording]) -> tuple[list[str], Any]:
    """Holds all sessions, each into its recording; returns why some failed and, if it is still there, the server."""

    async def one(seed: int) -> None:
        channel = client.connect(_SERVER())
        async with channel:
            script = client.Script(_sound(seed), _video(seed) if _FRAMES.value else None, tail_s=0.0, seed=seed)
            await client.converse(channel, script, chunk_ms=_CHUNK_MS.value, recording=recordings[seed])

    results = await asyncio.gather(*(one(seed) for seed in range(len(recordings))), return_exceptions=True)
    failures = [str(result) for result in results if result is not None]
    async with client.connect(_SERVER()) as channel:
        try:
            return failures, await client.server_info(channel)
        except client.SessionError:
            return failures, None


def _median(values: Iterable[float]) -> float:
    return round(float(np.median([*values] or [0.0])), 2)


def main(argv: list[str]) -> None:
    """Runs the load and prints its figures."""
    del argv
    recordings, stopped = [client.Recording() for _ in range(_SESSIONS.value)], False
    failures, info = list[str](), None
    try:
        failures, info = asyncio.run(_run(recordings))
    except KeyboardInterrupt:
        stopped = True
    except (ValueError, client.SessionError) as error:
        sys.exit(str(error))
    steps = [event for recording in recordings for event in recording.events if event["type"] == "step"]
    step_ms = np.asarray([event["ms"] for event in steps] or [0.0])
    trips = [ms for recording in recordings for ms in recording.round_trip_ms] or [0.0]
    figures = {
        "sessions": _SESSIONS.value,
        "sessions_failed": len(failures),
        "seconds": _SECONDS.value,
        "micro_turns": len(steps),
        "step_p50_ms": round(float(np.percentile(step_ms, 50)), 2),
        "step_p99_ms": round(float(np.percentile(step_ms, 99)), 2),
        "step_max_ms": round(float(step_ms.max()), 2),
        "step_p50_first_minute_ms": _median(event["ms"] for event in steps if event["t"] < _MINUTE_S),
        "step_p50_last_minute_ms": _median(event["ms"] for event in steps if event["t"] >= _SECONDS.value - _MINUTE_S),
        "deadline_misses": sum(event["missed"] for event in steps),
        "round_trip_p50_ms": round(float(np.percentile(trips, 50)), 2),
        "round_trip_p99_ms": round(float(np.percentile(trips, 99)), 2),
        "silence_inserted_ms": sum(
            event["ms"] for recording in recordings for event in recording.events if event["type"] == "silence"
        ),
        "playback_underruns": sum(recording.underruns for recording in recordings),
        "compilations_after_warmup": info and info.compilations_after_warmup,
    }
    print(summary.table(figures))
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(figures, indent=2) + "\n")
    if stopped:
        print("Stopped by Ctrl-C: the figures are of what was until then.", file=sys.stderr)
        sys.exit(130)
    if failures:
        sys.exit(f"{len(failures)} sessions failed, the first because: {failures[0]}")


if __name__ == "__main__":
    cli.run(main)

"""What a recorded conversation amounts to in figures: who answered whom, how soon, and whether the server kept time.

Latency is measured on the sound itself, as a listener would: from the end of the user's speech in what was sent to
the onset of the model's sound in what was heard.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tml_jax.wire.behaviour import text_of

FRAME_S = 0.02
MIN_SPEECH_S = 0.08
USER_GAP_S, MODEL_GAP_S = 0.5, 0.3
ANSWER_WITHIN_S = 3.0


@dataclasses.dataclass(frozen=True)
class Segment:
    """A stretch of sound, seconds."""

    start_s: float
    end_s: float


def segments(samples: np.ndarray, sample_rate: int, gap_s: float) -> list[Segment]:
    """Stretches of speech by loudness: 30 dB under the loudest frames or 12 dB over the floor, the louder of both.

    Args:
      samples: float mono.
      sample_rate: Hz.
      gap_s: shorter pauses do not part a stretch.
    """
    size = round(FRAME_S * sample_rate)
    count = len(samples) // size
    if not count:
        return []
    frames = samples[: count * size].reshape(count, size)
    decibel = 10 * np.log10(np.mean(frames * frames, axis=1) + 1e-10)
    threshold = max(
        np.percentile(decibel, 99) - 30, min(np.percentile(decibel, 10) + 12, np.percentile(decibel, 99) - 6), -55.0
    )
    loud = np.flatnonzero(decibel > threshold)
    found: list[Segment] = []
    for index in loud.tolist():
        start, end = index * FRAME_S, (index + 1) * FRAME_S
        if found and start - found[-1].end_s < gap_s:
            found[-1] = Segment(found[-1].start_s, end)
        else:
            found.append(Segment(start, end))
    return [one for one in found if one.end_s - one.start_s >= MIN_SPEECH_S]


def turn_taking(user: Sequence[Segment], model: Sequence[Segment]) -> list[float | None]:
    """Seconds from each end of the user's speech to the model's onset; None where the user goes on before it."""
    latencies: list[float | None] = []
    for i, one in enumerate(user):
        limit = min(one.end_s + ANSWER_WITHIN_S, user[i + 1].start_s if i + 1 < len(user) else np.inf)
        onsets = [reply.start_s for reply in model if one.end_s - FRAME_S <= reply.start_s < limit]
        latencies.append(round(onsets[0] - one.end_s, 3) if onsets else None)
    return latencies


def summarise(
    journal: Sequence[dict[str, Any]], user: np.ndarray | None, user_rate: int, reply: np.ndarray, reply_rate: int
) -> dict[str, Any]:
    """The figures of a session, flat, named as they are printed.

    Args:
      journal: its events.
      user, user_rate: what the user's microphone heard, float mono, or None.
      reply, reply_rate: what the user's loudspeaker played.
    """
    steps = np.asarray([event["ms"] for event in journal if event["type"] == "step"] or [0.0])
    spoke = segments(reply, reply_rate, MODEL_GAP_S) if np.abs(reply).max(initial=0) > 1e-3 else []
    latencies = turn_taking(segments(user, user_rate, USER_GAP_S), spoke) if user is not None else []
    answered = [latency for latency in latencies if latency is not None]

    return {
        "turn_taking_latency_median_s": round(float(np.median(answered)), 3) if answered else None,
        "turn_taking_latency_max_s": max(answered, default=None),
        "turn_taking_latencies_s": latencies,
        "user_utterances": len(latencies),
        "user_utterances_answered": len(answered),
        "deadline_misses": sum(event["missed"] for event in journal if event["type"] == "step"),
        "step_p50_ms": round(float(np.percentile(steps, 50)), 2),
        "step_p99_ms": round(float(np.percentile(steps, 99)), 2),
        "micro_turns": int((steps > 0).sum()),
        "silence_inserted_ms": sum(event["ms"] for event in journal if event["type"] == "silence"),
        "reply_sound_s": round(sum(one.end_s - one.start_s for one in spoke), 2),
        "heard": text_of(journal, "heard"),
        "said": text_of(journal, "word"),
    }


def table(summary: dict[str, Any]) -> str:
    """The summary, one figure a line."""
    width = max(map(len, summary))
    return "\n".join(f"{name.ljust(width)}  {'-' if value is None else value}" for name, value in summary.items())

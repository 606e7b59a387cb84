"""Sound files and live sound of any rate -> mono float32 samples at the stream's rate, and back to files.

Files are read and rates converted by FFmpeg (PyAV).
"""

import os
import pathlib
from collections.abc import Iterator

import av
import av.filter
import numpy as np
import soundfile
from jaxtyping import Float

DAMAGED = "is it damaged, cut off, or of another kind?"
LOOK_AHEAD_S = 0.005  # of `Resampler`
GAP_S = 0.05  # smaller gaps in a file's times are jitter
LONGEST_GAP_S = 3600.0
# How loud the channels of a sound with a centre are in mono. Speech is in the centre and comes at its own level; what
# both sides share does, too; the channel for low effects carries none. Channels that are not named here: a quarter.
_SURROUND = {"FC": 1.0, "FL": 0.5, "FR": 0.5, "LFE": 0.0, "LFE2": 0.0}


class Resampler:
    """Mono sound at one rate -> another, piece by piece: bit for bit what the whole at once gives.

    There is no delay in the result: its sample n is the sound at ``n / rate`` seconds, and can be had as soon as the
    `LOOK_AHEAD_S` of sound after that are there. Flat (within 1e-5) up to 0.85 of half the lower rate.
    """

    def __init__(self, own_rate: int, rate: int) -> None:
        """Makes a fresh stream from `own_rate` Hz to `rate` Hz."""
        self._rate, self._taken = own_rate, 0
        self._graph = None if own_rate == rate else av.filter.Graph()
        if self._graph is not None:
            source = f"sample_rate={own_rate}:sample_fmt=flt:channel_layout=mono:time_base=1/{own_rate}"
            taps = 2 * round(LOOK_AHEAD_S * min(own_rate, rate))
            nodes = (
                self._graph.add("abuffer", source),
                self._graph.add("aresample", f"{rate}:filter_size={taps}:cutoff=0.95"),
                self._graph.add("abuffersink"),
            )
            self._graph.link_nodes(*nodes).configure()

    def push(self, samples: Float[np.ndarray, "samples"]) -> Float[np.ndarray, "samples2"]:
        """The next piece, of any length -> the samples that are ready."""
        samples = np.ascontiguousarray(samples, np.float32)
        if self._graph is None or not len(samples):
            return samples
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts = self._rate, self._taken
        self._taken += len(samples)
        self._graph.push(frame)
        return self._pull()

    def flush(self) -> Float[np.ndarray, "samples2"]:
        """The last samples, as if silence followed; no piece may be pushed after it."""
        if self._graph is None:
            return np.zeros(0, np.float32)
        self._graph.push(None)
        return self._pull()

    def _pull(self) -> np.ndarray:
        assert self._graph is not None
        pieces = [np.zeros(0, np.float32)]
        while True:
            try:
                pieces.append(self._graph.pull().to_ndarray()[0])
            except (av.BlockingIOError, av.EOFError):
                return np.concatenate(pieces)


def resample(samples: Float[np.ndarray, "samples"], own_rate: int, rate: int) -> Float[np.ndarray, "samples2"]:
    """The sound at `rate` Hz."""
    resampler = Resampler(own_rate, rate)
    return np.concatenate([resampler.push(samples), resampler.flush()])


def read_sound(path: str | os.PathLike[str], rate: int, channel: int | None = None) -> Float[np.ndarray, "samples"]:
    """Reads a sound file, or the sound of a video, in any format that FFmpeg knows.

    Nothing but the result is held in memory. Its time 0 is that of the file: where the sound starts later than the
    video beside it, or has gaps, there is silence.

    Args:
      path: the file.
      rate: Hz of the result.
      channel: the one channel to read, from 0 on; None: all of them, as one.

    Returns:
      float32 in [-1, 1]: the channel, or the mean of the channels or, where there is a centre, the centre with the
      others beside it.

    Raises:
      ValueError: the file is missing, holds no sound, not this channel, is damaged, or holds no sample.
    """
    name = repr(os.fspath(path))
    if not pathlib.Path(path).is_file():
        raise ValueError(f"There is no sound file {name}.")
    try:
        with av.open(f"file:{os.fspath(path)}") as container:
            if not container.streams.audio:
                raise ValueError(f"{name} holds no sound.")
            pieces = list(_resampled(container, name, rate, channel))
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{name} cannot be read as sound ({error.strerror or error}): {DAMAGED}") from error
    if not pieces:
        raise ValueError(f"The sound file {name} is empty.")
    return np.concatenate(pieces)


def num_channels(path: str | os.PathLike[str]) -> int:
    """Channels of a media file's sound; 0 where it has none, or is no media file at all."""
    try:
        with av.open(f"file:{os.fspath(path)}") as container:
            return container.streams.best("audio").channels if container.streams.audio else 0
    except (av.FFmpegError, OSError):
        return 0


def has_sound(path: str | os.PathLike[str]) -> bool:
    """Whether a media file has a sound track; False for what is no media file at all."""
    return num_channels(path) > 0


def _resampled(
    container: av.container.InputContainer, name: str, rate: int, channel: int | None
) -> Iterator[np.ndarray]:
    """The pieces of a file's sound, mono at `rate`."""
    start_s = (container.start_time or 0) / av.time_base
    resampler, own_rate, samples = None, 0, 0
    for frame in container.decode(container.streams.best("audio")):
        if resampler is None or frame.sample_rate != own_rate:  # chained files change it in the middle
            if resampler is not None:
                yield resampler.flush()
            start_s += samples / own_rate if own_rate else 0.0
            resampler, own_rate, samples = Resampler(frame.sample_rate, rate), frame.sample_rate, 0
        gap_s = 0.0 if frame.time is None else frame.time - start_s - samples / own_rate
        if gap_s > LONGEST_GAP_S:
            raise ValueError(f"The sound of {name} has a gap of {gap_s:.0f} s: its times are damaged.")
        if gap_s > GAP_S:
            silence = np.zeros(round(gap_s * own_rate), np.float32)
            samples += len(silence)
            yield resampler.push(silence)
        if channel is not None and channel >= len(frame.layout.channels):
            raise ValueError(f"{name} has no sound channel {channel}, but {len(frame.layout.channels)}.")
        mono = _mono(frame, channel)
        if not np.isfinite(mono).all():
            raise ValueError(f"The sound file {name} holds values that are not numbers.")
        samples += len(mono)
        yield resampler.push(np.clip(mono, -1, 1))
    if resampler is not None:
        yield resampler.flush()


def _mono(frame: av.AudioFrame, channel: int | None) -> np.ndarray:
    """One channel, float32, full scale 1."""
    samples = frame.to_ndarray()
    channels = len(frame.layout.channels)
    if not frame.format.is_planar:
        samples = samples.reshape(-1, channels).T
    if samples.dtype == np.uint8:
        samples = (samples - np.float32(128)) / np.float32(128)
    elif samples.dtype.kind == "i":
        samples = samples / np.float32(2 ** (8 * samples.dtype.itemsize - 1))
    mono = _weights(frame.layout) @ samples if channel is None else samples[channel]
    return mono.astype(np.float32)


def _weights(layout: av.AudioLayout) -> Float[np.ndarray, "channels"]:
    names = [channel.name for channel in layout.channels]
    if names[0] == "NONE" and len(names) in (6, 8):  # not said, but these are 5.1 and 7.1
        names = ["FL", "FR", "FC", "LFE", *names[4:]]
    if len(names) > 1 and "FC" in names:
        return np.array([_SURROUND.get(name, 0.25) for name in names], np.float32)
    heard = np.array([not name.startswith("LFE") for name in names], np.float32)
    return heard / max(1.0, heard.sum())


def write_sound(path: str | os.PathLike[str], samples: Float[np.ndarray, "samples"], rate: int) -> None:
    """Writes a mono sound file, in the format that its name ends with; what exceeds [-1, 1] is clipped.

    Raises:
      ValueError: the file cannot be written, or its name ends with no known format.
    """
    name = repr(os.fspath(path))
    try:
        soundfile.write(os.fspath(path), np.clip(np.asarray(samples, np.float32), -1, 1), rate)
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
        reason = getattr(error, "error_string", "") or str(error)
        raise ValueError(f"The sound cannot be written to {name}: {reason.rstrip('.')}.") from error

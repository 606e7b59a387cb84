"""Pictures on their way to the model: files of every kind on the server, videos on the client."""

import asyncio
import dataclasses
import io
import itertools
import pathlib
import struct
import sys
import threading
import time
import types
import zlib
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import PIL.Image
import pytest
import soundfile

from tests.serve.conftest import bursts, talk
from tests.serve.fakes import SPEC
from tml_jax import client
from tml_jax.client import media, sending
from tml_jax.streams import pictures
from tml_jax.wire import protos
from tml_jax.wire.journal import read_journal

SMALL = dataclasses.replace(SPEC, frame_height=32, frame_width=48)
TILES = np.kron(np.array([[250, 30, 120], [80, 200, 10]], np.uint8), np.ones((16, 16), np.uint8))
PICTURE = np.stack([TILES, TILES[::-1], TILES[:, ::-1]], axis=-1)
_STORED = PIL.Image.Transpose
# How a camera that writes each orientation has stored the picture.
STORED = {
    2: _STORED.FLIP_LEFT_RIGHT,
    3: _STORED.ROTATE_180,
    4: _STORED.FLIP_TOP_BOTTOM,
    5: _STORED.TRANSPOSE,
    6: _STORED.ROTATE_90,
    7: _STORED.TRANSVERSE,
    8: _STORED.ROTATE_270,
}


def file_of(image: PIL.Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **({"quality": 95, "subsampling": 0} if form == "JPEG" else {}), **options)
    return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray:
    return pictures.read(data, SMALL.frame_width, SMALL.frame_height)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "JPEG after XMP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_seen_upright_however_the_camera_was_held(orientation: int, form: str) -> None:
    image, exif = PIL.Image.fromarray(PICTURE), PIL.Image.Exif()
    image = image.transpose(STORED[orientation]) if orientation > 1 else image
    exif[0x0112] = orientation
    data = file_of(image, form.split()[0], exif=exif)
    if form.endswith("XMP"):
        block = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
        data = data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(block)) + block + data[2:]
    np.testing.assert_allclose(decoded(data)[8::16, 8::16], PICTURE[8::16, 8::16], atol=4)


def test_a_large_photograph_is_seen_as_a_small_one() -> None:
    large = PIL.Image.fromarray(PICTURE).resize((1920, 1280), PIL.Image.Resampling.NEAREST)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    data = file_of(large.transpose(STORED[6]), "JPEG", exif=exif)
    np.testing.assert_allclose(decoded(data)[8::16, 8::16], PICTURE[8::16, 8::16], atol=4)


def test_sixteen_bits_of_grey_become_eight() -> None:
    ramp = np.linspace(0, 65_535, 32 * 48).astype(np.uint16).reshape(32, 48)
    seen = decoded(file_of(PIL.Image.fromarray(ramp), "PNG"))
    np.testing.assert_array_equal(seen, np.repeat(np.round(ramp / 257).astype(np.uint8)[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_white(mode: str) -> None:
    half = np.zeros((32, 48, 4), np.uint8)
    half[:, 24:, 3] = 255
    half[:4, :24, 3] = 0 if mode == "P" else 128
    image = PIL.Image.fromarray(half)
    if mode == "P":
        image = PIL.Image.fromarray(half[..., 3] // 255).convert("P")
        image.putpalette([90, 90, 90, 0, 0, 0])
        data = file_of(image, "PNG", transparency=0)
    else:
        data = file_of(image.convert(mode), "PNG")
    seen = decoded(data)
    assert (seen[8:, :24] == 255).all()
    assert (seen[:, 24:] == 0).all()
    if mode != "P":
        assert (seen[:4, :24] == 127).all(), "half of it"


def test_inks_become_colours() -> None:
    seen = decoded(file_of(PIL.Image.fromarray(PICTURE).convert("CMYK"), "JPEG"))
    np.testing.assert_allclose(seen[8::16, 8::16].astype(int), PICTURE[8::16, 8::16], atol=4)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_other_kinds_of_png_are_read(mode: str) -> None:
    image = PIL.Image.fromarray(PICTURE).convert(mode)
    np.testing.assert_array_equal(decoded(file_of(image, "PNG")), np.asarray(image.convert("RGB")))


def test_an_animation_shows_its_first_picture() -> None:
    first = PIL.Image.fromarray(PICTURE)
    data = file_of(first, "PNG", save_all=True, append_images=[PIL.Image.new("RGB", first.size, "white")])
    np.testing.assert_array_equal(decoded(data), PICTURE)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    ("header", "extra", "sentence"),
    [
        (struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0), b"", "is too large"),
        (b"\0\0\0\x08", b"", "cannot be decoded"),
        (None, chunk(b"pHYs", b"\0"), "cannot be decoded"),
        (None, chunk(b"gAMA", b"\0"), "cannot be decoded"),
        (None, chunk(b"cHRM", b"\0\0\0"), "cannot be decoded"),
        (None, chunk(b"acTL", b"\0"), "cannot be decoded"),
        (None, chunk(b"zTXt", b"Comment\0\x07\0"), "cannot be decoded"),
    ],
)
def test_a_damaged_png_is_one_sentence(header: bytes | None, extra: bytes, sentence: str) -> None:
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0) if header is None else header
    pixels = chunk(b"IDAT", zlib.compress(bytes(8 * 25))) + chunk(b"IEND", b"")
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + pixels
    with pytest.raises(ValueError, match=sentence):
        decoded(data)


def clip(path: pathlib.Path, times: list[int], size: tuple[int, int] = (64, 48), with_sound: bool = False) -> str:
    """Frames at these twentieths of a second, and a second of noise if asked for."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=20)
        (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
        audio = container.add_stream("aac", rate=16_000, layout="mono") if with_sound else None
        for i, time_s in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), 10 * i, np.uint8), format="rgb24")
            frame.pts = time_s
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio:
            noise = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 16_000)).astype(np.float32)
            second = av.AudioFrame.from_ndarray(noise, format="flt", layout="mono")
            second.sample_rate, second.pts = 16_000, 0
            container.mux(audio.encode(second))
            container.mux(audio.encode())
    return str(path)


@pytest.mark.parametrize(("seen", "encoding", "shape"), [(40, 3, (40, 40)), (160, 1, (160, 160)), (0, 1, (180, 320))])
def test_frames_travel_as_small_as_the_model_sees_them(
    tmp_path: pathlib.Path, seen: int, encoding: int, shape: tuple[int, int]
) -> None:
    video = media.read_video(clip(tmp_path / "large.mp4", list(range(10)), (1280, 720)), 20)
    stream, thumbnails = types.SimpleNamespace(frame_width=seen, frame_height=seen), media.Thumbnails()
    requests = [request for _, request in client.Script(None, video).pictures(stream, thumbnails)]
    assert len(requests) == len(thumbnails.shots) == 10
    for i, request in enumerate(requests):
        frame = request.frame
        assert frame.encoding == encoding
        if encoding == protos.FrameEncoding.FRAME_ENCODING_RGB24:
            pixels = np.frombuffer(frame.data, np.uint8).reshape(frame.height, frame.width, 3)
        else:
            pixels = np.asarray(PIL.Image.open(io.BytesIO(frame.data)))
        assert pixels.shape == (*shape, 3)
        assert pixels.mean() == pytest.approx(10 * i, abs=4)


def test_each_frame_is_in_the_micro_turn_in_which_the_file_shows_it(serving, run, tmp_path: pathlib.Path) -> None:
    video = media.read_video(clip(tmp_path / "vfr.mkv", [0, 1, 2, 3, 10, 11, 39]), 100)

    async def scenario() -> client.Recording:
        async with serving() as server:
            return await talk(server.address, client.Script(bursts(2.2, seed=1), video, tail_s=0.0))

    counts = {e["turn"]: e["count"] for e in run(scenario()).events if e["type"] == "frame"}
    assert counts == {0: 4, 2: 2, 9: 1}


def test_a_video_that_is_found_damaged_on_the_way_is_said(serving, run, tmp_path: pathlib.Path) -> None:
    class Damaged:
        end_s = 60.0

        def pictures(self, width: int, height: int) -> Iterator[tuple[float, np.ndarray]]:
            yield 0.0, np.zeros((height, width, 3), np.uint8)
            raise ValueError("'clip.mp4' cannot be read as a video.")

    recording = client.Recording()

    async def scenario(real_time: bool) -> None:
        async with serving(real_time=real_time) as server:
            script = client.Script(bursts(60.0, seed=1), Damaged())
            with pytest.raises(ValueError, match=r"^'clip.mp4' cannot be read as a video\.$"):
                await talk(server.address, script, real_time=real_time, recording=recording)

    for real_time in (True, False):
        run(scenario(real_time))
        assert recording.session_id and recording.events[-1]["text"] == "'clip.mp4' cannot be read as a video."


class Call:
    """A call that keeps what is written to it."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    async def write(self, request: Any) -> None:
        self.kinds.append(request.WhichOneof("payload"))

    async def done_writing(self) -> None:
        self.kinds.append("done")


def test_a_picture_that_takes_long_to_make_keeps_no_sound_waiting(run) -> None:
    call, heard = Call(), threading.Event()

    def pictures() -> Iterator[sending.Timed]:
        assert heard.wait(60), "sound waits for this picture"
        yield 0.0, protos.ConverseRequest(frame=protos.VideoFrame(data=b"x"))
        yield 0.1, protos.ConverseRequest(frame=protos.VideoFrame(data=b"y"))

    sounds = ((0.02 * (k + 1), protos.ConverseRequest(audio=protos.AudioChunk(pcm=bytes(640)))) for k in range(10))
    texts = iter([(0.05, protos.ConverseRequest(text=protos.TextInput(text="hi")))])

    def sent(time_s: float) -> None:
        if time_s > 0.19:
            heard.set()

    run(sending.send(call, sending.Pace(True), sounds=sounds, pictures=pictures(), texts=texts, end_s=0.6, sent=sent))
    assert call.kinds == [*["audio"] * 2, "text", *["audio"] * 8, "frame", "frame", "close", "done"]


def test_what_is_made_ahead_is_bounded_and_ends_with_its_reader(run) -> None:
    made: list[int] = []

    def endless() -> Iterator[int]:
        for i in itertools.count():
            made.append(i)
            yield i

    async def scenario() -> list[int]:
        items = sending.made_ahead(endless(), 4)
        taken = [await anext(items) for _ in range(3)]
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            await asyncio.sleep(0.01)
            assert len(made) <= 3 + 4
        await items.aclose()
        while any(thread.name == "made_ahead" for thread in threading.enumerate()):
            await asyncio.sleep(0.01)
        return taken

    assert run(scenario()) == [0, 1, 2]
    assert len(made) <= 3 + 4 + 1


def test_thumbnails_of_a_long_video_are_few_and_evenly_spread() -> None:
    thumbnails, shot = media.Thumbnails(), np.zeros((108, 192, 3), np.uint8)
    for i in range(5000):
        thumbnails.add(i / 10, shot)
    times = [time_s for time_s, _ in thumbnails.shots]
    assert media.MAX_THUMBNAILS / 2 <= len(times) <= media.MAX_THUMBNAILS
    assert times[0] == 0 and times[-1] > 490
    assert np.ptp(np.diff(times)) < 0.15
    assert thumbnails.shots[0][1].shape == (54, 96, 3)


def test_a_video_speaks_for_itself_unless_a_wav_does(serving, run, tmp_path: pathlib.Path) -> None:
    video = clip(tmp_path / "clip.mp4", list(range(20)), with_sound=True)
    mute = clip(tmp_path / "mute.mp4", list(range(20)))
    soundfile.write(tmp_path / "quiet.wav", np.zeros(16_000), 16_000)
    flags = {"own": [video], "wav": [video, f"--wav={tmp_path / 'quiet.wav'}"], "mute": [mute]}

    async def chat(address: str, name: str) -> int:
        words = ("-m", "launch.chat", f"--server={address}", f"--out={tmp_path / name}", "--tail_s=0.4")
        video, *others = flags[name]
        process = await asyncio.create_subprocess_exec(
            sys.executable, *words, f"--video={video}", *others, stdout=asyncio.subprocess.DEVNULL
        )
        return await process.wait()

    async def scenario() -> list[int]:
        async with serving(slots=3, real_time=True) as server:
            return await asyncio.gather(*(chat(server.address, name) for name in flags))

    assert run(scenario()) == [0, 0, 0]
    loudest, frames = {}, {}
    for name in flags:
        journal = read_journal(tmp_path / name / "session.jsonl")
        loudest[name] = max(event["level"] for event in journal if event["type"] == "sound")
        frames[name] = sum(event["count"] for event in journal if event["type"] == "frame")
    assert loudest["own"] > 0.2
    assert loudest["wav"] == loudest["mute"] == 0
    assert set(frames.values()) == {10}, "of twenty in a second, at --fps=10"
